"""What must be opened before the first request and closed after the last.

With the lifespan where the server sends one (ASGI specification, "Lifespan Protocol"), else on the first request: a
mounted app gets no lifespan, and a server may have it switched off.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from inspect import isawaitable
from typing import Any

from asgi_context._respond import crashed
from asgi_context._types import ASGIApp, Message, Receive, Scope, Send


class Lifespan:
    """Opens and closes the parts of a middleware.

    Args:
        parts: anything; what has a callable ``open`` or ``close`` counts, once each.
    """

    def __init__(self, parts: Iterable[object]) -> None:
        distinct = {id(part): part for part in parts}.values()
        self._parts = [part for part in distinct if _hook(part, "open") or _hook(part, "close")]
        self._stack: AsyncExitStack | None = None
        self._loop: object = None
        self._lock: Any = None
        self.ready = not self._parts
        """Whether requests may be handled: all is open, or there is nothing to open."""

    async def open(self) -> None:
        """Open what is not open yet, in order; what was opened before one fails is closed again."""
        async with self._turn():
            if self.ready:
                return
            async with AsyncExitStack() as stack:
                for part in self._parts:
                    await _call(_hook(part, "open"))
                    stack.push_async_callback(_call, _hook(part, "close"))
                self._stack = stack.pop_all()
            self.ready = True

    async def close(self) -> None:
        """Close what is open, in reverse order, all of it even if one fails. It can be opened again."""
        async with self._turn():
            stack, self._stack = self._stack, None
            self.ready = not self._parts
            if stack is not None:
                await stack.aclose()

    def _turn(self) -> Any:  # noqa: ANN401 - the lock of asyncio or of trio
        # One for each event loop in turn. The package imports nothing but the standard library, and under trio that
        # module is loaded already.
        try:
            loop: object = asyncio.get_running_loop()
            make = asyncio.Lock
        except RuntimeError:
            trio = sys.modules["trio"]
            loop, make = trio.lowlevel.current_trio_token(), trio.Lock
        if self._lock is None or self._loop is not loop:
            self._loop, self._lock = loop, make()
        return self._lock

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app's lifespan: open before its startup, close after its shutdown.

        Args:
            app: the app.
            scope: the lifespan scope.
            receive: the server's receive.
            send: the server's send.
        """
        if not self._parts:
            await app(scope, receive, send)
            return
        failed = False

        async def receive_opened() -> Message:
            nonlocal failed
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.open()
                except Exception as error:
                    # Told here, since not every app turns an error of its receive into the message that stops a server.
                    failed = True
                    crashed("opening for the lifespan", error)
                    await send({
                        "type": "lifespan.startup.failed",
                        "message": "asgi_context could not open; see its log",
                    })
                    raise
            return message

        async def send_closed(message: Message) -> None:
            if message["type"] != "lifespan.startup.complete":
                try:
                    await self.close()  # before the server hears of the end, since it may exit at once
                except Exception as error:  # noqa: BLE001 - whatever it is, the server is told and the log too
                    crashed("closing with the lifespan", error)
                    if message["type"] == "lifespan.shutdown.complete":
                        text = "asgi_context could not close; see its log"
                        message = {"type": "lifespan.shutdown.failed", "message": text}
            if not failed:
                await send(message)

        try:
            await app(scope, receive_opened, send_closed)
        finally:
            await self.close()


def _hook(part: object, name: str) -> Callable[[], object] | None:
    hook = getattr(part, name, None)
    return hook if callable(hook) else None


async def _call(hook: Callable[[], object] | None) -> None:
    if hook is not None:
        result = hook()
        if isawaitable(result):
            await result
