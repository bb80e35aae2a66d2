"""Factories that note what becomes of what they make, and apps that ask for it."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from driver import Exchange, hello, http, run, who

from asgi_context import ContextMiddleware, Identity, RequestContext, current_resource, from_header, json_message

LONG = 20  # seconds: never waited for, unless something hangs
BOB = Identity("globex", "bob")


class A:
    def __init__(self, context: RequestContext | None = None) -> None:
        self.context = context


class B(A): ...


class C(A): ...


class D(A): ...


def errors_in(records: list[logging.LogRecord]) -> list[str]:
    found = [record for record in records if record.name == "asgi_context" and record.levelno > logging.INFO]
    return [f"{r.getMessage()}: {r.exc_info[1]}" if r.exc_info else r.getMessage() for r in found]


def logged_errors(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A fixture: what was logged as an error since it was last asked."""

    def take() -> list[str]:
        texts = errors_in(caplog.records)
        caplog.clear()
        return texts

    return take


async def quiet_loop(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """A fixture for ``asyncio_only``: neither the loop has anything to complain about, nor the log, nor is a task left.

    A coroutine that nobody awaits is a warning, and so an error, once it is collected.
    """
    loop, complaints = asyncio.get_running_loop(), []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        yield
        for _ in range(10):  # what was cancelled or released last
            await asyncio.sleep(0)
        gc.collect()
        assert complaints == []
        assert errors_in(caplog.get_records("call")) == []  # what a test has asked for is cleared
        assert [task for task in asyncio.all_tasks() if "TestRunner" not in repr(task) and not task.done()] == []
    finally:
        loop.set_exception_handler(handler)


def wrap(handle: Callable[[], Awaitable[object]], resources: Any = None, **options: Any) -> ContextMiddleware:
    """An app that handles every request by a function."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handle()
        await hello(scope, receive, send)

    return mount(app, resources, **options)


def mount(app: Any, resources: Any = None, **options: Any) -> ContextMiddleware:
    options.setdefault("tenant", from_header("x-tenant-id"))
    options.setdefault("user", from_header("x-user-id"))
    return ContextMiddleware(app, resources=resources, **options)


async def serve(handle: Callable[[], Awaitable[object]], resources: Any = None, **options: Any) -> Exchange:
    async with asyncio.timeout(LONG):
        return await run(wrap(handle, resources, **options), http(*who()))


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(LONG):
        await event.wait()


def spawn(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.get_running_loop().create_task(coroutine)


async def settle(*tasks: Any) -> list[Any]:
    async with asyncio.timeout(LONG):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def turns(number: int = 10) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class Gate:
    """Holds somebody up, and says that somebody has come."""

    def __init__(self) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await self.go.wait()


def plainly(log: list[Any], kind: type = A, *, fails: BaseException | None = None) -> Any:
    """A factory that notes what becomes of what it makes."""

    @contextmanager
    def factory(context: RequestContext) -> Iterator[Any]:
        log.append(f"open {kind.__name__}")
        try:
            yield kind(context)
        finally:
            log.append(f"close {kind.__name__}")
            if fails:
                raise fails

    return factory


def waiting(log: list[Any], kind: type = A, *, fails: BaseException | None = None, holds: Gate | None = None) -> Any:
    """The same in an asynchronous way; closing can be held up."""

    @asynccontextmanager
    async def factory(context: RequestContext) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        log.append(f"open {kind.__name__}")
        try:
            yield kind(context)
        finally:
            log.append(f"closing {kind.__name__}" if holds else f"close {kind.__name__}")
            await (holds.wait() if holds else asyncio.sleep(0))
            if holds:
                log.append(f"close {kind.__name__}")
            if fails:
                raise fails

    return factory


def text(tenant: str, user: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": json.dumps({"tenant": tenant, "user": user})}


MESSAGES: dict[str, Any] = {
    "tenant": None,
    "user": None,
    "message": json_message(tenant="tenant", user="user"),
}
CHAT = [{"type": "websocket.connect"}, text("acme", "ann"), text("globex", "bob"), {"type": "websocket.disconnect"}]


class BoomError(Exception): ...


PAUSE: dict[str, Any] = {}
ANN_THEN_BOB = [{"type": "websocket.connect"}, text("acme", "bob")]


class Pausing(Exchange):
    """Its client says nothing for a while, and the read is given up."""

    async def receive(self) -> dict[str, Any]:
        event = await super().receive()
        if event is PAUSE:
            raise TimeoutError
        return event


async def wait_in_vain(receive: Any) -> None:
    with pytest.raises(TimeoutError):
        await receive()


class ByHand:
    """Drives a coroutine as a task does, so that it can be closed in the midst."""

    def __init__(self, middleware: ContextMiddleware, scope: Any = None, exchange: Exchange | None = None) -> None:
        exchange = exchange or Exchange([{"type": "http.request"}])
        self.coroutine: Any = middleware(scope or http(*who()), exchange.receive, exchange.send)

    async def until(self, event: asyncio.Event) -> None:
        reached = spawn(event.wait())
        while True:
            waits = self.coroutine.send(None)
            if waits is None:
                await asyncio.sleep(0)
            else:
                waits._asyncio_future_blocking = False
                await asyncio.wait([waits, reached], return_when=asyncio.FIRST_COMPLETED)
            if event.is_set():
                await reached
                return


def used_for_ever(used: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def handle() -> None:
        for kind in (A, B, C):
            await current_resource(kind)
        used.set()
        await asyncio.get_running_loop().create_future()

    return handle
