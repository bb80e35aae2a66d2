"""What can be wrong with jobs, pools and resources."""

from collections.abc import Sequence
from typing import Self

from asgi_context.errors._root import AsgiContextError


class JobError(AsgiContextError, RuntimeError):
    """A job or a factory ended by an exception that must not reach its caller as it is; that one is the ``__cause__``.

    StopIteration would hang a waiting coroutine on Python 3.11 and 3.12, SystemExit and KeyboardInterrupt would stop
    the event loop, CancelledError would look as if the caller had been cancelled.

    Args:
        kind: name of the exception's type.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    def __str__(self) -> str:
        return f"{self.kind} was raised, which cannot be handed to the caller: raise an ordinary exception there"


class PoolError(AsgiContextError, RuntimeError):
    """The root of what `run_in_pool` raises for a pool.

    Args:
        pool: name of the pool.
    """

    def __init__(self, pool: str) -> None:
        super().__init__(pool)
        self.pool = pool


class PoolNotFoundError(PoolError, LookupError):
    """There is no pool of that name here."""

    def __str__(self) -> str:
        return (
            f"there is no pool {self.pool!r} here: name it in ContextMiddleware(pools={{{self.pool!r}: 8}}), and ask "
            "for it inside of that middleware"
        )


class PoolFullError(PoolError):
    """As many jobs of this tenant wait for the pool as may."""

    def __str__(self) -> str:
        return (
            f"too many jobs of this tenant wait for the pool {self.pool!r}: try again later, tell the client so "
            "(HTTP 429 or 503), or give the pool more threads or a longer queue= in Pool(...)"
        )


class PoolWaitError(PoolError):
    """A job would wait for its own pool, or for one that stands before it: they could wait for each other for ever.

    Args:
        pool: name of the pool that it asks for.
        own: name of the pool that it runs in.
    """

    def __init__(self, pool: str, own: str) -> None:
        AsgiContextError.__init__(self, pool, own)
        self.pool = pool
        self.own = own

    def __str__(self) -> str:
        return (
            f"a job of the pool {self.own!r}, which still runs, would wait for a thread of the pool {self.pool!r}: "
            "call the function directly there, or run it in a pool that stands after its own in pools=. Were jobs to "
            "wait in both directions, they could wait for each other for ever"
        )


class PoolClosedError(PoolError):
    """The pool was shut down, with the app's lifespan, before the job could run."""

    def __str__(self) -> str:
        return f"the pool {self.pool!r} was shut down with the app's lifespan, and the job did not run"


class ResourceError(AsgiContextError, RuntimeError):
    """The root of what is wrong with one resource.

    Args:
        resource: name of its type.
    """

    def __init__(self, resource: str) -> None:
        super().__init__(resource)
        self.resource = resource


class ResourceNotFoundError(ResourceError, LookupError):
    """There is no factory for that type here."""

    def __str__(self) -> str:
        return (
            f"there is no factory for {self.resource} here: give ContextMiddleware(resources={{{self.resource}: "
            "factory}), and ask inside of that middleware"
        )


class ResourceCycleError(ResourceError):
    """The factory of a resource asks, by way of other factories perhaps, for the resource that it is making."""

    def __str__(self) -> str:
        return f"the factory of {self.resource} waits for itself: a factory that it asks asks for {self.resource}"


class ResourceLoopError(ResourceError):
    """The resources of this request, message or block were made on another event loop than the one that asks."""

    def __str__(self) -> str:
        return (
            f"{self.resource} was asked for on another event loop than the one that the resources here were made on: "
            "from a thread, use asyncio.run_coroutine_threadsafe(current_resource(...), loop) with the app's loop"
        )


class ResourceTimeoutError(ResourceError, TimeoutError):
    """Closing a resource took longer than ``close_timeout``, and was cancelled."""

    def __str__(self) -> str:
        return f"closing {self.resource} took longer than close_timeout, and was cancelled"


class ResourceCloseError(AsgiContextError, ExceptionGroup[Exception]):
    """Resources of a request, message or block that had ended well could not be closed.

    Each error is in ``exceptions``. All resources were tried. Where the request itself had failed, that error goes on,
    and these are logged.

    Args:
        errors: what closing raised.
    """

    def __new__(cls, errors: Sequence[Exception], /) -> Self:
        """Make the group.

        Args:
            errors: what closing raised.

        Returns:
            The group.
        """
        return super().__new__(cls, "resources could not be closed", errors)

    def __init__(self, errors: Sequence[Exception], /) -> None:
        super().__init__("resources could not be closed", errors)

    def __reduce__(self) -> tuple[type["ResourceCloseError"], tuple[Sequence[Exception]], dict[str, object]]:
        return ResourceCloseError, (self.exceptions,), self.__dict__  # in which notes stand

    def derive(self, errors: Sequence[Exception], /) -> "ResourceCloseError":  # type: ignore[override]  # of its kind
        """Make a group of some of the errors, for ``split`` and ``subgroup``.

        Args:
            errors: the errors.

        Returns:
            The group.
        """
        return ResourceCloseError(errors)
