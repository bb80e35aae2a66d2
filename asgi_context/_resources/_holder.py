"""What was made for one binding, and how it is closed."""

import asyncio
from contextvars import copy_context
from typing import Any, TypeAlias

from asgi_context._crashes import log, log_crash
from asgi_context._resources._factories import Entered, Yielding, has
from asgi_context._resources._flight import Flight, patiently, presentable
from asgi_context.errors import ResourceCloseError, ResourceTimeoutError


class Closing:
    """The closings under way in a middleware, as a part of it whose own closing waits for them.

    Args:
        time_limit: how long closing one resource may take, in seconds.
    """

    def __init__(self, time_limit: float) -> None:
        self.time_limit = time_limit
        self.plain: dict[type, type] = {}  # what a factory gave last, if that was neither awaitable nor a manager
        self.tasks: set[asyncio.Task[_Failures]] = set()
        self._late: set[asyncio.Task[None]] = set()

    def note_late(self, task: "asyncio.Task[None]") -> None:
        """Keep a task that may go on when its closing is over.

        Args:
            task: of a factory that does not end when it is cancelled, say.
        """
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def close(self) -> None:
        """Wait for what is under way on this event loop; it has its time limits."""
        if not (self.tasks or self._late):  # under trio there are none
            return
        loop = asyncio.get_running_loop()
        while tasks := [task for task in self.tasks if task.get_loop() is loop]:
            await asyncio.wait(tasks)
        if late := [task for task in self._late if task.get_loop() is loop]:
            _, left = await asyncio.wait(late, timeout=self.time_limit)
            if left:
                log.error("%d resources are still being made or closed, and are left to themselves", len(left))


_Failures: TypeAlias = "list[tuple[type, BaseException]]"


class Resources:
    """What was made for one binding.

    Args:
        closing: where its closing is noted.
        loop: the event loop that it is made on.
    """

    __slots__ = ("_closing", "closers", "flights", "is_closing", "is_over", "loop", "made")

    def __init__(self, closing: Closing, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._closing = closing
        self.made: dict[type, Any] = {}
        self.flights: dict[type, Flight] = {}  # of those that are not made yet
        self.closers: list[tuple[type, Flight | Entered | Yielding]] = []  # in the order in which they were made
        self.is_closing = False
        self.is_over = False  # closed, but for what is made too late

    def enter(self, kind: type, made: Any) -> Any:  # noqa: ANN401 - the resource
        """Enter what a factory returned, if it is a plain context manager.

        Args:
            kind: what the factory makes.
            made: what it returned.

        Returns:
            The resource.
        """
        if has(made, "__enter__"):
            context = copy_context()
            value = context.run(made.__enter__)
            self.closers.append((kind, Entered(made, context)))
        else:
            value = made
        return value

    def launch(self, kind: type, made: Any) -> Flight:  # noqa: ANN401 - an awaitable, or a context manager
        """Let what a factory returned become the resource, in a task of its own.

        Args:
            kind: what the factory makes.
            made: what it returned.

        Returns:
            What to wait for.
        """
        flight = self.flights[kind] = Flight(kind)
        flight.launch(made, self)
        return flight

    def leave(self, error: BaseException | None) -> None:
        """Close all, without waiting for what waits.

        Args:
            error: with what that has ended, for the context managers.

        Raises:
            ResourceCloseError: something failed at once, and there is no error that it would hide.
        """
        failures: _Failures = []
        task = self._close(error, failures)
        if task is not None:
            task.add_done_callback(_log_all)
        _report(failures, error)

    async def finish(self, error: BaseException | None) -> None:
        """Close all, and wait for it.

        Args:
            error: with what that has ended, for the context managers.

        Raises:
            ResourceCloseError: something failed, and there is no error that it would hide.
        """
        failures: _Failures = []
        task = self._close(error, failures)
        if task is not None:
            try:
                if isinstance(error, GeneratorExit):  # who is closed must not wait for anything
                    raise error
                await asyncio.wait({task})
            except (asyncio.CancelledError, GeneratorExit):
                task.add_done_callback(_log_all)  # it goes on by itself
                _log(failures)
                if isinstance(error, GeneratorExit):
                    return
                raise
            failures += task.result()
        _report(failures, error)

    def close_late(self) -> None:
        """Close what was made when all else had been closed."""
        failures: _Failures = []
        while self.closers:
            kind, closer = self.closers.pop()
            if not isinstance(closer, Flight):  # a flight closes by itself
                _attempt(kind, closer, None, failures)
        _log(failures)

    def _close(self, error: BaseException | None, failures: _Failures) -> "asyncio.Task[_Failures] | None":
        self.is_closing = True
        while self.closers and not self.flights:
            kind, closer = self.closers[-1]
            if isinstance(closer, Flight):
                break
            # At once: there is nothing that could wait, or be cancelled.
            self.closers.pop()
            _attempt(kind, closer, error, failures)
        if not (self.closers or self.flights):
            self._end()
            return None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a request that is dropped after its loop has ended
            self._close_without_loop(error, failures)
            return None
        task = loop.create_task(self._close_all(error))
        self._closing.tasks.add(task)
        task.add_done_callback(self._closing.tasks.discard)
        return task

    def _close_without_loop(self, error: BaseException | None, failures: _Failures) -> None:
        left = [kind.__qualname__ for kind in self.flights]
        while self.closers:
            kind, closer = self.closers.pop()
            if isinstance(closer, Flight):
                left.append(kind.__qualname__)
            else:
                _attempt(kind, closer, error, failures)
        self._end()
        log.error("resources were left open, since their event loop does not run any more: %s", ", ".join(left))

    async def _close_all(self, error: BaseException | None) -> _Failures:
        failures: _Failures = []
        limit = self._closing.time_limit
        pending = list(self.flights.items())
        if pending:
            for _, flight in pending:
                flight.task.cancel()
                self._closing.note_late(flight.task)
            await patiently([flight.ready() for _, flight in pending], limit)
            failures += [(kind, ResourceTimeoutError(kind.__qualname__)) for kind in self.flights]
        while self.closers:
            kind, closer = self.closers.pop()
            if isinstance(closer, Flight):
                self._closing.note_late(closer.task)
                try:
                    await closer.close(error, limit)
                except BaseException as failure:  # noqa: BLE001 - told once all are closed
                    failures.append((kind, failure))
            else:
                _attempt(kind, closer, error, failures)
        self._end()
        return failures

    def _end(self) -> None:
        self.is_over = True
        self.made.clear()


def _attempt(kind: type, closer: Entered | Yielding, error: BaseException | None, failures: _Failures) -> None:
    try:
        closer.close(error)
    except BaseException as failure:  # noqa: BLE001 - told once all are closed
        failures.append((kind, failure))


async def finish_all(leftovers: list[Resources], error: BaseException | None) -> None:
    """Close what was made for several bindings, one after the other, and wait for it.

    Args:
        leftovers: what is to be closed, in order; the list is used up.
        error: with what they have ended.

    Raises:
        ResourceCloseError: something failed, and there is no error that it would hide.
    """
    failures: list[Exception] = []
    try:
        while leftovers:
            try:
                await leftovers.pop(0).finish(error)
            except ResourceCloseError as group:
                failures += group.exceptions
    except (asyncio.CancelledError, GeneratorExit) as interrupted:
        for failure in failures:
            log_crash("closing failed", failure)
        for resources in leftovers:
            resources.leave(interrupted if error is None else error)
        raise
    if failures:
        raise ResourceCloseError(failures)


def _report(failures: _Failures, error: BaseException | None) -> None:
    if not failures:
        return
    if error is None:
        raise ResourceCloseError([presentable(failure) for _, failure in failures])
    _log(failures)


def _log(failures: _Failures) -> None:
    for kind, failure in failures:
        log_crash(f"closing {kind.__qualname__} failed", failure)


def _log_all(task: "asyncio.Task[_Failures]") -> None:
    if task.cancelled():  # before it could begin, by the end of the loop
        log.error("resources were left open: their event loop has ended")
    else:
        _log(task.result())
