"""What can be wrong with tools of agents."""

from asgi_context.errors._root import AsgiContextError


class ToolError(AsgiContextError):
    """Raised by a tool to tell the model, and through it perhaps the user, what went wrong.

    Its text is handed on as it is. What any other exception says goes to the log alone.

    Args:
        text: what to tell.
        code: a stable name for it.
    """

    def __init__(self, text: str, *, code: str = "tool_error") -> None:
        super().__init__(text)
        self.text = text
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return _tool_error, (self.text, self.code)

    def __str__(self) -> str:
        return self.text


def _tool_error(text: str, code: str) -> ToolError:
    return ToolError(text, code=code)


class ToolDefinitionError(AsgiContextError, TypeError):
    """A tool cannot be used as one, or not be built.

    Args:
        tool: its name.
        reason: why not.
    """

    def __init__(self, tool: str, reason: str) -> None:
        super().__init__(tool, reason)
        self.tool = tool
        self.reason = reason

    def __str__(self) -> str:
        return f"the tool {self.tool} {self.reason}"


class ToolNotFoundError(AsgiContextError, LookupError):
    """There is no tool of that name in the registry.

    Args:
        known: the names that there are.
    """

    def __init__(self, known: tuple[str, ...]) -> None:
        super().__init__(known)
        self.known = known

    def __str__(self) -> str:
        return f"there is no tool of that name; there are: {', '.join(self.known) or 'none'}"


class ToolCallNotBoundError(AsgiContextError, LookupError):
    """No tool is being called here."""

    def __str__(self) -> str:
        return "no tool is being called here: ask in a tool that a ToolDispatcher calls"


class ToolBlockingError(AsgiContextError, RuntimeError):
    """A blocking call on the thread of a running event loop, which would wait for itself.

    Args:
        call: what was called.
        instead: what to write instead.
    """

    def __init__(self, call: str, instead: str) -> None:
        super().__init__(call, instead)
        self.call = call
        self.instead = instead

    def __str__(self) -> str:
        return (
            f"{self.call} would block the event loop that runs in this thread: write `{self.instead}`; or, on a loop "
            "that is not the app's, call it by `await asyncio.to_thread(...)`"
        )


class ToolRunError(AsgiContextError, RuntimeError):
    """The event loop that a tool was to run on did not run it.

    Args:
        tool: its name.
        reason: why not.
    """

    def __init__(self, tool: str, reason: str) -> None:
        super().__init__(tool, reason)
        self.tool = tool
        self.reason = reason

    def __str__(self) -> str:
        return f"the tool {self.tool} did not run to its end: {self.reason}"


class ToolTimeoutError(ToolRunError, TimeoutError):
    """A tool did not end in time, and was cancelled."""


class ToolOwnerError(AsgiContextError, RuntimeError):
    """A dispatcher was used on behalf of somebody else than it was made for."""

    def __str__(self) -> str:
        return (
            "this dispatcher was made for another tenant or user than is bound here: ask for one with "
            "`await current_resource(ToolSystem)` where it is used"
        )


class BridgeError(AsgiContextError):
    """The root of what a `WebSocketBridge` raises."""


class BridgeNotBoundError(BridgeError, LookupError):
    """No WebSocket connection is bound here that a bridge can be made for."""

    def __str__(self) -> str:
        return (
            "no WebSocket connection is bound here to which a bridge could lead: make it in the handling of one, in no "
            "block for another tenant or user, by `await current_resource(WebSocketBridge)` with "
            "ContextMiddleware(resources={WebSocketBridge: WebSocketBridge}), or as a part of a ToolSystem"
        )


class BridgeLoopError(BridgeError, RuntimeError):
    """A bridge was made or used on another event loop than that of its connection."""

    def __str__(self) -> str:
        return (
            "a bridge, and a dispatcher that sends events over it, are used on the event loop of the connection: from "
            "a loop in a thread, `await asyncio.to_thread(bridge.sync.send_json, event)`, or of a dispatcher, "
            "`await asyncio.to_thread(dispatcher.sync.dispatch, name, arguments)`"
        )


class BridgeNotOpenError(BridgeError, RuntimeError):
    """The connection has not been accepted yet."""

    def __str__(self) -> str:
        return "the WebSocket was not accepted yet: send events after the app has accepted it"


class BridgeClosedError(BridgeError, OSError):
    """The connection has been closed."""

    def __str__(self) -> str:
        return "the WebSocket is closed: nothing can be sent any more"
