"""For the tests of tools: requests in which they are called, tools that block, callers that go."""

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from driver import http, run, who
from resources import spawn, wrap

from asgi_context import Identity
from asgi_context.tools import ToolDispatcher

LONG = 20  # seconds: never waited for, unless something hangs
SHORT = 0.02  # seconds: of what is to be late
ANN = Identity("acme", "ann")


async def serve(handle: Callable[[], Awaitable[Any]], **options: Any) -> Any:
    """Run something in a request of ann's, and give what it returns."""
    given: list[Any] = []

    async def once() -> None:
        given.append(await handle())

    middleware = wrap(once, **options)
    async with asyncio.timeout(LONG):
        await run(middleware, http(*who()))
        await middleware.close()
    return given[0]


class Block:
    """A tool that blocks until it is let go."""

    def __init__(self) -> None:
        self.started, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.started.set()
        assert self.go.wait(LONG)
        self.ended.set()
        return "done"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110 - threads set no event of the loop
            await asyncio.sleep(0)


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def outlived(dispatcher: ToolDispatcher, block: Block, name: str = "Block") -> None:
    """Have a call of a tool that blocks come to its end, while the tool goes on."""
    task = spawn(dispatcher.dispatch(name, timeout=SHORT))
    await asyncio.sleep(0)
    assert block.started.wait(LONG)  # the loop is held up, so that its time is not over before it begins
    assert (await task).code == "tool_timeout"
    assert not block.ended.is_set()


class Driven:
    """Drives a coroutine by hand, in a Context of its own, up to where it waits for something."""

    def __init__(self, coroutine: Any) -> None:
        self.coroutine, self.context = coroutine, contextvars.copy_context()

    async def until(self, event: asyncio.Event) -> None:
        while not event.is_set():
            waits = self.context.run(self.coroutine.send, None)
            if waits is not None:
                waits._asyncio_future_blocking = False
            await asyncio.sleep(0)
