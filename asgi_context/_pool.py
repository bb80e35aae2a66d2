"""How large a pool is, and of what."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

Kind = Literal["thread", "process"]
StartMethod = Literal["spawn", "forkserver", "fork"]

_CHOICES: Final = (("kind", get_args(Kind)), ("start_method", get_args(StartMethod)))


@dataclass(frozen=True, slots=True)
class Pool:
    """How large a pool of `ContextMiddleware(pools=...) <ContextMiddleware>` is, and of what.

    Args:
        threads: how many jobs run at a time; with ``kind="process"``, in as many processes.
        per_tenant: how many of one tenant do; without a limit here, as many as there are threads. What bears no tenant
            counts as one tenant.
        queue: how many jobs of one tenant may wait; beyond that, `PoolFullError`.
        kind: ``"process"`` runs each job in another process, as `ContextProcessPoolExecutor` does. Ctrl-C in a terminal
            does not reach these, nor does SIGTERM, so that a server that is asked to end can finish its jobs.
        values: with processes, which of `asgi_context.values` cross, by name. They must be such as can be pickled.
        start_method: with processes, how they are started (see `multiprocessing`).

    Raises:
        TypeError: a number is no int, or ``values`` no collection of names.
        ValueError: a number is too small, ``per_tenant`` larger than ``threads``, or another option is not one of those
            that there are, or is for processes alone.
    """

    threads: int
    per_tenant: int | None = None
    queue: int = 1000
    kind: Kind = "thread"
    values: Collection[str] = ()
    start_method: StartMethod = "spawn"

    def __post_init__(self) -> None:
        for option, number, least in (
            ("threads", self.threads, 1),
            ("per_tenant", self.threads if self.per_tenant is None else self.per_tenant, 1),
            ("queue", self.queue, 0),
        ):
            if type(number) is not int:
                message = f"Pool: {option} must be an int, not {type(number).__qualname__}"
                raise TypeError(message)
            if number < least:
                message = f"Pool: {option} must be at least {least}, not {number}"
                raise ValueError(message)
        if self.per_tenant is not None and self.per_tenant > self.threads:
            message = f"Pool: per_tenant={self.per_tenant} is more than threads={self.threads}"
            raise ValueError(message)
        for option, choices in _CHOICES:
            if getattr(self, option) not in choices:
                message = (
                    f"Pool: {option} must be one of {', '.join(map(repr, choices))}, not {getattr(self, option)!r}"
                )
                raise ValueError(message)
        check_names(self.values, "Pool: values")
        if self.kind == "thread" and (self.values or self.start_method != "spawn"):
            message = 'Pool: values and start_method are for kind="process"; threads have all that is bound'
            raise ValueError(message)


def check_names(names: object, option: str) -> None:
    """Check an option that is several names.

    Args:
        names: what was given.
        option: its name.

    Raises:
        TypeError: it is no collection of str.
    """
    several = cast("Collection[object]", names)
    if isinstance(names, str) or not isinstance(names, Collection) or any(type(name) is not str for name in several):
        message = f"{option} must be a collection of names such as ('locale',), not {names!r}"
        raise TypeError(message)
