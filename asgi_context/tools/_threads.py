"""Where tools that block run."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from inspect import isawaitable, iscoroutine
from threading import Lock
from typing import Any, Final, TypeVar

from asgi_context._context import current_binding
from asgi_context._crashes import log_crash
from asgi_context._executors import run_in_executor
from asgi_context._pools import run_in_pool

_T = TypeVar("_T")

POOL: Final = "tool"
"""The pool that is taken where there is one of that name, and none is named."""


def pool_here(pool: str | None) -> str | None:
    """Say in which pool blocking calls run.

    Args:
        pool: in which of the middleware's pools; ``None`` for the one that is called ``tool``, or else for the default
            executor of the event loop.

    Returns:
        The pool; ``None`` for the default executor.
    """
    return POOL if pool is None and POOL in current_binding().services.pools else pool


async def run_in_thread(call: Callable[[], _T], pool: str | None) -> _T:
    """Run a blocking call in a thread, under the caller's context.

    Args:
        call: the call.
        pool: what `pool_here` says.

    Returns:
        What it returns.
    """
    return await (run_in_executor(None, call) if pool is None else run_in_pool(pool, call))


class Job:
    """A blocking call of which it is known whether it still runs in its thread, whoever has given it up."""

    __slots__ = ("_given_up", "_lock", "_logs", "_loop", "_outcome", "_runs", "_then")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = Lock()
        self._then: Callable[[], object] | None = None
        self._runs = False
        self._given_up = False
        self._logs = False
        self._outcome: tuple[object, BaseException | None] | None = None  # until somebody has it

    async def run(self, call: Callable[[], Any], pool: str | None) -> Any:  # noqa: ANN401 - what the call gives
        """Run it; see `run_in_thread`.

        Args:
            call: the call.
            pool: see `pool_here`.

        Returns:
            What the call gives; where that is a coroutine, what that gives.
        """
        pool = pool_here(pool)
        self._logs = pool is None  # pools do it themselves
        try:
            given = await run_in_thread(partial(self._work, call), pool)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._outcome = None
            raise
        self._outcome = None
        return await given if isawaitable(given) else given

    def give_up(self, then: Callable[[], object]) -> bool:
        """Wait for it no more. If it has not begun, it never will.

        Args:
            then: what to call on the event loop, as soon as it has ended, if it still runs.

        Returns:
            Whether it still runs.
        """
        with self._lock:
            self._given_up = True
            if self._runs:
                self._then = then
            runs, outcome, self._outcome = self._runs, self._outcome, None
        if outcome is not None:
            self._lose(*outcome)
        return runs

    def _lose(self, given: object, error: BaseException | None) -> None:
        if error is not None and self._logs:
            log_crash("a tool that nobody waits for any more failed", error)
        if iscoroutine(given):
            given.close()

    def _work(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the call gives
        with self._lock:
            if self._given_up:
                return None
            self._runs = True
        given = error = None
        try:
            given = call()
        except BaseException as raised:
            error = raised
            raise
        finally:
            with self._lock:
                self._runs = False
                then = self._then
                if then is None:
                    self._outcome = given, error
            if then is not None:
                self._lose(given, error)
                with suppress(RuntimeError):  # the loop was closed
                    self._loop.call_soon_threadsafe(then, context=Context())
            error = None  # or it, and this frame, would hold each other
        return given
