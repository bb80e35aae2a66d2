"""Events to the WebSocket that asked."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, cast

from asgi_context._blocking import AppLoop, BlockedError, loop_runs_here, run_on_loop
from asgi_context._connection import Connection
from asgi_context._context import current_binding
from asgi_context._crashes import log
from asgi_context._identity import RequestContext
from asgi_context._options import seconds
from asgi_context.errors import (
    BridgeClosedError,
    BridgeError,
    BridgeLoopError,
    BridgeNotBoundError,
    ContextClosedError,
    ToolBlockingError,
    ToolTimeoutError,
    UnsupportedLoopError,
)
from asgi_context.tools._events import Events, encode


class WebSocketBridge:
    """Sends events to the WebSocket connection that it was made for, and to no other.

    Made for what is bound where it is made, and until that ends; in a block for another tenant or user there is none.
    Events come in the order in which they were sent, and before what the app itself sends later. At most 100 wait to be
    sent; who sends more waits. Name it in ``ContextMiddleware(resources={WebSocketBridge: WebSocketBridge})``, or have
    it as ``ToolSystem.bridge``.

    Args:
        context: is not needed; so that the class is a factory of resources.
        timeout: how long `sync` waits, in seconds.

    Raises:
        BridgeNotBoundError: no WebSocket connection is bound here.
        BridgeLoopError: the connection belongs to another event loop.
        UnsupportedLoopError: there is no running asyncio event loop.
        TypeError: ``timeout`` is no number.
        ValueError: ``timeout`` is not positive.
    """

    needs_connection: ClassVar[bool] = True
    """Tells the middleware that connections are to be kept ready for it."""

    def __init__(self, context: RequestContext | None = None, *, timeout: float = 30.0) -> None:
        del context
        self._timeout = seconds(timeout, "timeout")
        binding = current_binding()
        connection: Connection | None = binding.connection
        if connection is None or binding.is_guest:
            raise BridgeNotBoundError
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise UnsupportedLoopError("WebSocketBridge") from None
        self._loop: AppLoop = connection.app_loop
        self.check_loop(loop)
        if connection.outbox is None:
            connection.outbox = Events(connection, loop)
        self._events = cast("Events", connection.outbox)
        self._binding = binding
        self.owner = None if binding.tenant is None else (binding.tenant, binding.user)
        """For which tenant and user it was made; ``None`` where nobody in particular was bound."""

    @property
    def sync(self) -> "BlockingBridge":
        """The same for threads."""
        return BlockingBridge(self)

    async def send_json(self, event: Mapping[str, Any]) -> None:
        """Send an event, as a text message with JSON in it.

        It returns when the event waits to be sent, or has been.

        Args:
            event: a JSON object.

        Raises:
            TypeError: it, or something in it, has no JSON form.
            ValueError: there is a number in it that JSON does not have.
            BridgeNotOpenError: the connection was not accepted yet.
            BridgeClosedError: the connection is closed.
            BridgeLoopError: the connection belongs to another event loop.
            ContextClosedError: the request, message or block that it was made for has ended.
        """
        await self.put(_text_of(event))

    async def put(self, text: str) -> None:
        """Send an event that is JSON already; see `send_json`."""
        self._check_here()
        await self._events.put(text)

    async def put_surely(self, text: str, most: float) -> None:
        """Send an event that is JSON already, whether there is room within so many seconds or not; see `send_json`."""
        self._check_here()
        await self._events.put_surely(text, most)

    def put_where_room(self, text: str) -> bool:
        """Send an event that is JSON already, if it need not wait for room; the caller has had the loop checked.

        Args:
            text: the event.

        Returns:
            Whether it was done; else it must be `put`.
        """
        self.check()
        return self._events.put_where_room(text)

    def put_at_once(self, text: str) -> None:
        """Send an event that is JSON already, however many wait; see `send_json`."""
        self._check_here()
        self._events.put_at_once(text)

    def check(self) -> None:
        """Refuse to be used once what it was made for has ended.

        Raises:
            ContextClosedError: it has.
        """
        self._binding.check("bridge")
        if self._binding.ended:
            raise ContextClosedError("bridge", "ended")

    def check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse to be used on another event loop than that of the connection.

        Args:
            loop: the loop.

        Raises:
            BridgeLoopError: it is another.
        """
        if loop is not self._loop.loop:
            raise BridgeLoopError

    def _check_here(self) -> None:
        self.check()
        self.check_loop(asyncio.get_running_loop())

    def send_json_blocking(self, event: Mapping[str, Any], wanted: Callable[[], bool] | None = None) -> None:
        """Send an event from a thread, if it is still wanted when its turn comes; see `WebSocketBridge.send_json`."""
        if loop_runs_here():
            raise ToolBlockingError("bridge.sync.send_json()", "await bridge.send_json(event)")
        text = _text_of(event)
        self.check()
        if self._loop.usable() is None:
            raise BridgeClosedError
        try:
            run_on_loop(partial(self._put_wanted, text, wanted), self._timeout, self._loop)
        except BlockedError as error:
            if error.late:
                raise ToolTimeoutError("bridge.sync.send_json", error.reason) from None
            raise BridgeClosedError from None

    async def _put_wanted(self, text: str, wanted: Callable[[], bool] | None) -> None:
        if wanted is not None and not wanted():
            raise BridgeClosedError
        await self.put(text)


def _text_of(event: Mapping[str, Any]) -> str:
    if not isinstance(event, Mapping):
        message = f"an event must be a mapping, not {type(event).__qualname__}"
        raise TypeError(message)
    return encode(dict(event))


class BlockingBridge:
    """A `WebSocketBridge` for threads.

    Args:
        bridge: the bridge.
    """

    __slots__ = ("_bridge",)

    def __init__(self, bridge: WebSocketBridge) -> None:
        self._bridge = bridge

    def send_json(self, event: Mapping[str, Any]) -> None:
        """Send an event; see `WebSocketBridge.send_json`.

        Args:
            event: a JSON object.

        Raises:
            ToolBlockingError: an event loop runs in this thread.
            ToolTimeoutError: it could not be handed over in time, since the client does not read. All that
                `WebSocketBridge.send_json` raises is raised here, too.
        """
        self._bridge.send_json_blocking(event)


def told(bridge: WebSocketBridge, event: str) -> bool:
    """Tell the client of a call, if that need not wait for room.

    Args:
        bridge: the bridge to the client.
        event: the event, as JSON.

    Returns:
        Whether that is done; else it must be told by `tell`. Where nobody is there to be told, it is.
    """
    try:
        return bridge.put_where_room(event)
    except (BridgeError, ContextClosedError) as error:  # the tool goes on
        log.debug("an event of a tool was not sent: %s", type(error).__qualname__)
        return True


async def tell(bridge: WebSocketBridge, event: str, most: float | None = None) -> None:
    """Tell the client of a call, when there is room.

    Args:
        bridge: the bridge to the client.
        event: the event, as JSON.
        most: how many seconds to wait for room, after which it is told all the same; ``None`` for as long as it takes.
    """
    try:
        await (bridge.put(event) if most is None else bridge.put_surely(event, most))
    except (BridgeError, ContextClosedError) as error:  # as above
        log.debug("an event of a tool was not sent: %s", type(error).__qualname__)


def tell_at_once(bridge: WebSocketBridge, event: str) -> None:
    """Tell the client of a call, whether there is room or not.

    Args:
        bridge: the bridge to the client.
        event: the event, as JSON.
    """
    with suppress(BridgeError, ContextClosedError):
        bridge.put_at_once(event)
