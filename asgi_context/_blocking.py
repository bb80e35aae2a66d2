"""Coroutines for callers that block: threads and scripts."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from threading import TIMEOUT_MAX, Lock, Thread
from typing import Any, Final, TypeVar

from asgi_context.errors import StateBlockingError, StateUnavailableError

_T = TypeVar("_T")


class BlockedError(Exception):
    """What a coroutine was run for did not come of it.

    Args:
        reason: why not.
        late: whether that is for want of time.
    """

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.late = late


# As `get_running_loop`, but where there is none it does not raise, which would cost as much as all else.
_running_loop: Final = asyncio._get_running_loop  # noqa: SLF001
_DEADLINE: Final = 30.0  # seconds, for stores that say nothing


class AppLoop:
    """The event loop that blocking calls are run on, noted where it was seen to run.

    Args:
        loop: the loop, where it is known already.
    """

    __slots__ = ("_pid", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop
        self._pid = os.getpid()

    def note(self) -> None:
        """Note the loop that runs in this thread; under trio there is none."""
        running = _running_loop()
        if running is not self.loop and running is not None:
            self.loop, self._pid = running, os.getpid()

    def usable(self) -> asyncio.AbstractEventLoop | None:
        """Give the loop, where calls can be run on it.

        Returns:
            The loop; ``None`` where there is none, or it does not run, or in another process: a fork takes the loop
            along, but not the thread that it runs in.
        """
        loop = self.loop
        return None if loop is None or not loop.is_running() or self._pid != os.getpid() else loop


def app_loop(known: AppLoop | None) -> AppLoop | None:
    """Find the loop on which blocking calls of a state are to run.

    Args:
        known: where the app has noted its loop.

    Returns:
        The app's, where it runs: whoever asks may have a loop of its own for a moment. Else the one that runs in this
        thread.
    """
    if known is not None and known.usable() is not None:
        return known
    seen = AppLoop()
    seen.note()
    return known if seen.loop is None else seen


def run_blocking(call: Callable[[], Coroutine[Any, Any, _T]], store: object, known: AppLoop | None) -> _T:
    """Run a coroutine to its end, and wait for it.

    Args:
        call: makes the coroutine.
        store: whose coroutine it is.
        known: where to run it; without a loop that is usable, on one of this process's own.

    Returns:
        What it returns.

    Raises:
        StateBlockingError: an event loop runs in this thread.
        StateUnavailableError: it was not done within the store's deadline, and was cancelled.
    """
    if loop_runs_here():
        raise StateBlockingError
    if getattr(store, "immediate", False):
        return _run_at_once(call())
    deadline = _deadline_of(store)
    try:
        return run_on_loop(call, deadline, known)
    except BlockedError as error:
        reason = error.reason + "; whether a write took place is not known" * error.late
        raise StateUnavailableError(reason) from None


def run_on_loop(call: Callable[[], Coroutine[Any, Any, _T]], deadline: float, known: AppLoop | None) -> _T:
    """Run a coroutine to its end on the loop of an app, under the caller's context, and wait for it.

    Args:
        call: makes the coroutine.
        deadline: how long to wait, in seconds.
        known: where to run it; without a loop that is usable, on one of this process's own.

    Returns:
        What it returns.

    Raises:
        BlockedError: it was not done in time, and was cancelled; or the loop has ended.
    """
    loop = (None if known is None else known.usable()) or _background.loop()
    answer: _T = _Call(loop, call).wait(deadline)
    return answer


def _deadline_of(store: object) -> float:
    deadline = getattr(store, "deadline", _DEADLINE)
    if isinstance(deadline, bool) or not isinstance(deadline, int | float) or not 0 < deadline < float("inf"):
        message = f"the attribute deadline of {type(store).__qualname__} must be a number of seconds, more than 0"
        raise ValueError(message)
    return deadline


async def pause(seconds: float) -> None:
    """Wait, on any event loop.

    Args:
        seconds: how long; 0 for a turn of the others.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # under trio that module is loaded already
        await sys.modules["trio"].sleep(seconds)
    else:
        await asyncio.sleep(seconds)


def loop_runs_here() -> bool:
    """Say whether an event loop runs in this thread, asyncio's or trio's.

    Returns:
        Whether one does.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # Missing where another thread is importing it, and so nothing of it runs here.
        in_trio_run = getattr(sys.modules.get("trio.lowlevel"), "in_trio_run", None)
        return in_trio_run is not None and in_trio_run()
    return True


def _run_at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    coroutine.close()
    message = "a store whose attribute `immediate` is true has waited"
    raise RuntimeError(message)


class _Call:
    """A coroutine that runs on a loop, and a thread that waits for it.

    Leaner than ``run_coroutine_threadsafe``, which chains two futures in both directions: here a lock is the answer's
    arrival. The coroutine is made on the loop, so that none is left over where the loop never comes to it.
    """

    __slots__ = ("_answered", "_arrived", "_call", "_context", "_error", "_given_up", "_loop", "_result", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._loop = loop
        self._call = call
        self._context = copy_context()
        self._arrived = Lock()
        self._arrived.acquire()  # released by the answer
        self._answered = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._given_up = False
        self._task: asyncio.Task[Any] | None = None

    def wait(self, deadline: float) -> Any:  # noqa: ANN401 - what the coroutine returns
        arrived = False
        try:
            try:
                self._loop.call_soon_threadsafe(self._start)
            except RuntimeError:
                raise BlockedError("its event loop has ended") from None
            arrived = self._arrived.acquire(timeout=min(deadline, TIMEOUT_MAX))
        finally:
            if not arrived:  # it is late, or the thread was interrupted
                self._given_up = True
                with suppress(RuntimeError):  # the loop has ended, and the task with it
                    self._loop.call_soon_threadsafe(self._stop)
        if not arrived:
            reason = f"it did not answer within {deadline:g} seconds"
            raise BlockedError(reason, late=True)
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback holds this frame
        return self._result

    def _start(self) -> None:
        if self._given_up:
            return
        coroutine = self._run()
        try:
            self._task = self._loop.create_task(coroutine, context=self._context)
        except BaseException as error:  # noqa: BLE001 - whatever a task factory raises: the thread waits
            coroutine.close()
            self._fail(error)
        else:
            self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        try:
            self._result = await self._call()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - some would stop the loop, which is everybody's
            self._fail(error)
        else:
            self._answered = True
            self._arrived.release()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if (
            task.cancelled() and not self._answered
        ):  # by the end of the loop, say: in the caller it would look as if that had been cancelled
            self._fail(BlockedError("it was cancelled on its event loop"))

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._answered = True
        self._arrived.release()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()


class _Background:
    """One event loop of this process's own, in a thread, for where no app has one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            alive = self._thread is not None and self._thread.is_alive() and self._pid == os.getpid()
            if self._loop is None or not alive:  # a fork takes the loop along, but not its thread
                loop = asyncio.new_event_loop()
                self._thread = Thread(target=loop.run_forever, name="asgi_context-background", daemon=True)
                self._loop, self._pid = loop, os.getpid()  # before it starts: Ctrl-C may come once it has
                try:
                    self._thread.start()
                except RuntimeError as error:  # there are too many, or the interpreter ends
                    loop.close()
                    reason = f"no thread could be started for it ({error})"
                    raise BlockedError(reason) from None
            return self._loop

    def forget(self) -> None:
        self._lock = Lock()  # another thread may have held it when this process was forked off


_background: Final = _Background()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_background.forget)
