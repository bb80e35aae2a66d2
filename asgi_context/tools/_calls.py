"""The call that a tool is at."""

from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import Any, Final

from asgi_context.errors import BridgeError, ContextClosedError, ToolCallNotBoundError
from asgi_context.tools._bridge import WebSocketBridge
from asgi_context.tools._events import encode


class ToolCall:
    """One call of a tool, as the tool sees it.

    Args:
        tool: name of the tool.
        call_id: id of the call.
        correlation_id: id of the tool system.
        bridge: where events go; ``None`` where there is no WebSocket.
    """

    __slots__ = {  # noqa: RUF023 - in the order of reading
        "tool": "Name of the tool.",
        "call_id": "Id of the call.",
        "correlation_id": "Id of the tool system.",
        "json_ids": "The three of them as members of a JSON object, for events; empty where there is no WebSocket.",
        "_bridge": "Where events go.",
    }

    def __init__(self, tool: str, call_id: str, correlation_id: str, bridge: WebSocketBridge | None) -> None:
        self.tool = tool
        self.call_id = call_id
        self.correlation_id = correlation_id
        self._bridge = bridge
        self.json_ids = ""

    async def progress(self, **data: Any) -> bool:  # noqa: ANN401 - whatever has a JSON form
        """Tell the client how far the tool is, by an event ``tool_progress``.

        Args:
            **data: what to tell, as ``data`` of the event.

        Returns:
            Whether there was somebody to tell: an open WebSocket.

        Raises:
            TypeError: something has no JSON form.
        """
        if self._bridge is None:
            return False
        try:
            await self._bridge.send_json(self._event(data))
        except (BridgeError, ContextClosedError):
            return False
        return True

    def progress_from_thread(self, **data: Any) -> bool:  # noqa: ANN401 - as above
        """Tell the same from a thread; see `progress`.

        Raises:
            ToolBlockingError: an event loop runs in this thread.
            ToolTimeoutError: the client does not read.
        """
        bridge = self._bridge
        if bridge is None:
            return False
        try:
            bridge.send_json_blocking(self._event(data), lambda: self._bridge is not None)
        except (BridgeError, ContextClosedError):
            return False
        return True

    def started(self) -> str:
        """Make the event that it begins.

        Returns:
            The event, as JSON.
        """
        return f'{{"type":"tool_started",{self.json_ids}}}'

    def ended(self, code: str | None, text: str) -> str:
        """Make the event that it has ended, after which there is none of its progress.

        Args:
            code: why it came to nothing; ``None`` where it did not.
            text: the same in words.

        Returns:
            The event, as JSON.
        """
        self._bridge = None
        if code is None:
            return f'{{"type":"tool_completed",{self.json_ids}}}'
        return f'{{"type":"tool_failed",{self.json_ids},"code":{encode(code)},"text":{encode(text)}}}'

    def _event(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "type": "tool_progress",
            "tool": self.tool,
            "call_id": self.call_id,
            "correlation_id": self.correlation_id,
            "data": data,
        }


_current: Final[ContextVar[ToolCall | None]] = ContextVar("asgi_context.tools", default=None)

enter_call: Final = _current.set


def exit_call(token: Token[ToolCall | None]) -> None:
    """Restore what was entered before.

    Args:
        token: what `enter_call` gave.
    """
    try:  # noqa: SIM105 - `suppress` would cost more than all else here
        _current.reset(token)
    except ValueError:  # a coroutine that was begun in another Context is closed here, as garbage
        pass


def current_tool_call() -> ToolCall:
    """Give the call that this code is a part of.

    Returns:
        The call.

    Raises:
        ToolCallNotBoundError: no dispatcher has called it.
    """
    call = _current.get()
    if call is None:
        raise ToolCallNotBoundError
    return call
