"""How large a pool of threads is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pool:
    """How large a pool of `ContextMiddleware(pools=...) <ContextMiddleware>` is.

    Args:
        threads: how many jobs run at a time.
        per_tenant: how many of one tenant do; without a limit here, as many as there are threads. What bears no tenant
            counts as one tenant.
        queue: how many jobs of one tenant may wait; beyond that, `PoolFullError`.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is too small, or ``per_tenant`` larger than ``threads``.
    """

    threads: int
    per_tenant: int | None = None
    queue: int = 1000

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
