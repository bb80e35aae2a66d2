"""Resources that are made by waiting."""

import asyncio
from collections.abc import Iterable
from contextvars import ContextVar, copy_context
from functools import partial
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Final

from asgi_context._crashes import log_crash
from asgi_context._resources._factories import has
from asgi_context.errors import ContextClosedError, JobError, ResourceCycleError, ResourceTimeoutError

if TYPE_CHECKING:
    from asgi_context._resources._holder import Resources


class _Maker:
    """What the Context of a factory says of it. Not the flight itself, which holds that Context: it would be a ring."""

    __slots__ = ("waits_for",)

    def __init__(self) -> None:
        self.waits_for: list[_Maker] = []

    def needs(self, other: "_Maker") -> bool:
        seen: set[_Maker] = set()
        todo = [self]
        while todo:
            maker = todo.pop()
            if maker is other:
                return True
            if maker not in seen:
                seen.add(maker)
                todo += maker.waits_for
        return False


_maker: Final[ContextVar[_Maker | None]] = ContextVar("asgi_context.resources", default=None)


class Flight:
    """A resource that is made, and perhaps kept, in a task of its own.

    Those who ask wait for a future each: one that is cancelled does not reach the others, nor the task.
    """

    __slots__ = (
        "_asking",
        "_closing",
        "_error",
        "_failure",
        "_is_ready",
        "_kind",
        "_maker",
        "_value",
        "_waiters",
        "task",
    )

    task: "asyncio.Task[None]"

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._maker = _Maker()
        self._asking = 1  # whoever has it launched, and then waits; the task may begin, and fail, before that
        self._waiters: list[asyncio.Future[None]] = []
        self._is_ready = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._closing: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self._failure: BaseException | None = None

    def launch(self, made: Any, resources: "Resources") -> None:  # noqa: ANN401 - an awaitable, or a context manager
        context = copy_context()
        context.run(_maker.set, self._maker)
        self.task = asyncio.get_running_loop().create_task(self._run(made, resources), context=context)
        self.task.add_done_callback(partial(self._ended, made, resources))

    def ready(self) -> "asyncio.Future[None]":
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._is_ready:
            waiter.set_result(None)
        else:
            self._waiters.append(waiter)
        return waiter

    async def wait(self, *, joins: bool) -> Any:  # noqa: ANN401 - the resource
        asker = _maker.get()
        if asker is not None:
            if self._maker.needs(asker):
                raise ResourceCycleError(self._kind.__qualname__)
            asker.waits_for.append(self._maker)
        self._asking += joins
        try:
            await self.ready()
        finally:
            self._asking -= 1
            if asker is not None:
                asker.waits_for.remove(self._maker)
        if self._error is None:
            return self._value
        error = self._error
        if not self._asking:
            self._error = None  # the last to ask: its traceback is going to hold this object
        del self  # the traceback holds this frame
        try:
            raise error
        finally:
            del error

    async def _run(self, made: Any, resources: "Resources") -> None:  # noqa: ANN401 - an awaitable, or a context manager
        entered = False
        try:
            if has(made, "__await__") and not has(made, "__aenter__"):  # a few are both, and entering them awaits them
                made = await made
            entered = has(made, "__aenter__")
            value = await made.__aenter__() if entered else resources.enter(self._kind, made)
        except BaseException as error:  # noqa: BLE001 - handed to those who asked
            self._settle(resources, None, error)
            return
        resources.made[self._kind] = value
        if entered:
            resources.closers.append((self._kind, self))
        # Whoever still waits when closing has begun must not be handed what is about to be closed.
        self._settle(resources, value, ContextClosedError("resource", "ended") if resources.is_closing else None)
        del value
        is_late = resources.is_over
        if is_late:  # it was not made in time: nobody else is going to close it
            resources.made.clear()
            self._closing.set_result(None)
            resources.close_late()
        if entered:
            await self._keep(made, resources)
            if is_late and self._failure is not None:
                log_crash(f"closing {self._kind.__qualname__} failed", self._failure)

    def _settle(self, resources: "Resources", value: Any, error: BaseException | None) -> None:  # noqa: ANN401 - the resource
        del resources.flights[self._kind]
        if isinstance(error, asyncio.CancelledError) and _was_cancelled():  # at the end of the request, or the loop
            error = ContextClosedError("resource", "ended")
        elif error is not None:
            error = presentable(error)
            if not self._asking and not resources.is_closing:
                log_crash(f"making {self._kind.__qualname__} failed after its caller was cancelled", error)
        self._value, self._error, self._is_ready = value, error, True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def _ended(self, made: Any, resources: "Resources", _task: object) -> None:  # noqa: ANN401 - what was to be awaited
        if not self._is_ready:  # cancelled before it could begin, by the end of the loop
            if iscoroutine(made):
                made.close()
            self._settle(resources, None, ContextClosedError("resource", "ended"))

    async def _keep(self, manager: Any, resources: "Resources") -> None:  # noqa: ANN401 - an async context manager
        error: BaseException | None
        try:
            error = await self._closing
        except asyncio.CancelledError as cancelled:  # by a task group inside of it, or at the end of the loop
            error = cancelled
            if self._kind in resources.made and resources.made[self._kind] is self._value:  # the next gets another
                del resources.made[self._kind]
        kind, traceback = (None, None) if error is None else (type(error), error.__traceback__)
        try:
            await manager.__aexit__(kind, error, traceback)
        except BaseException as failure:  # noqa: BLE001 - kept for whoever closes it
            if failure is not error:
                self._failure = failure

    async def close(self, error: BaseException | None, time_limit: float) -> None:
        self._value = None
        if not self._closing.done():
            self._closing.set_result(error)
        await patiently([self.task], time_limit)
        if not self.task.done():
            self.task.cancel()
            raise ResourceTimeoutError(self._kind.__qualname__)
        if self._failure is not None:
            raise self._failure


def _was_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def patiently(futures: "Iterable[asyncio.Future[Any]]", time_limit: float) -> None:
    # Closing has a time limit; whoever cancels it, as the end of the loop does, waits for that.
    while True:
        try:
            await asyncio.wait(futures, timeout=time_limit)
        except asyncio.CancelledError:
            continue
        return


def presentable(failure: BaseException) -> Exception:
    # What cannot be handed to a caller (StopIteration hangs it, CancelledError passes for its own cancellation).
    if isinstance(failure, Exception) and not isinstance(failure, StopIteration):
        return failure
    error = JobError(type(failure).__qualname__)
    error.__cause__ = failure
    return error
