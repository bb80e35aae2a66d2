"""Binding for one WebSocket message, explicitly."""

from collections.abc import Mapping
from types import TracebackType

from asgi_context._connection import Connection
from asgi_context._context import Block, current_binding, current_context
from asgi_context._identity import RequestContext
from asgi_context._types import Message
from asgi_context.errors import MessagesNotBoundError


class MessageBlock:
    """A block that binds for one message: what `message_context` returns."""

    __slots__ = ("_block", "_event")

    def __init__(self, event: Message) -> None:
        self._event: Message | None = event
        self._block: Block | None = None

    async def __aenter__(self) -> RequestContext | None:
        event, self._event = self._event, None
        if event is None:
            message = "a message_context block can be entered once: call message_context() for each `async with`"
            raise RuntimeError(message)
        connection: Connection | None = current_binding().connection
        if connection is None or not connection.has_messages:
            raise MessagesNotBoundError
        self._block = Block(await connection.identify(event))
        self._block.enter()
        return current_context(None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        block, self._block = self._block, None
        if block is None:
            message = "this message_context block was left without having been entered"
            raise RuntimeError(message)
        await block.__aexit__(kind, error, traceback)


def message_context(*, event: Message | None = None, payload: str | bytes | None = None) -> MessageBlock:
    """Bind the identity of one WebSocket message for a block.

    For apps that read in another task than they handle in, and for messages that are handled in tasks of their own:
    what is bound by itself then ends with the next read. It takes messages of the connection that is bound where it is
    called, and of no other: a worker of several connections is to be started in ``with unbound_context():``, and given
    identities rather than messages. The extractor given as ``ContextMiddleware(message=...)`` is asked again, so it
    must give the same answer for the same message. Values and resources belong to the block.

    Args:
        event: the ``websocket.receive`` event (ASGI specification, "Receive - receive event").
        payload: where a framework hands out no events: the text or the bytes of the message, as they came.

    Returns:
        A context manager for ``async with`` that can be entered once. It gives the `RequestContext`, or ``None`` where
        neither the message nor the connection says who asks. Entering it raises MessagesNotBoundError where no such
        connection is bound, and RequestRejected for a message that is refused, after closing the connection with 1008.

    Raises:
        TypeError: not exactly one of the two is given, or it is of the wrong type.
        ValueError: the event is of another type.
    """
    if (event is None) is (payload is None):
        message = "message_context takes either event= or payload="
        raise TypeError(message)
    if event is None:
        if not isinstance(payload, str | bytes):
            message = f"payload must be the str or bytes that came, not {type(payload).__qualname__}"
            raise TypeError(message)
        event = {"type": "websocket.receive", "text" if isinstance(payload, str) else "bytes": payload}
    elif not isinstance(event, Mapping):
        message = f"event must be an ASGI event, not {type(event).__qualname__}"
        raise TypeError(message)
    elif event.get("type") != "websocket.receive":
        message = "event must be a websocket.receive event: others are not anybody's message"
        raise ValueError(message)
    return MessageBlock(event)
