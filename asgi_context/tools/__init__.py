"""Tools of agents, which always act as the right user.

Needs the extra ``tools``: pydantic reads hints, checks arguments, and writes JSON schemas.
"""

from asgi_context.errors import ToolError
from asgi_context.tools._base import AsyncBaseTool
from asgi_context.tools._bridge import WebSocketBridge
from asgi_context.tools._calls import ToolCall, current_tool_call
from asgi_context.tools._dispatcher import ToolDispatcher
from asgi_context.tools._limits import ToolLimits
from asgi_context.tools._registry import ToolRegistry
from asgi_context.tools._results import ToolResult
from asgi_context.tools._system import ToolSystem, ToolSystemFactory

__all__ = [
    "AsyncBaseTool",
    "ToolCall",
    "ToolDispatcher",
    "ToolError",
    "ToolLimits",
    "ToolRegistry",
    "ToolResult",
    "ToolSystem",
    "ToolSystemFactory",
    "WebSocketBridge",
    "current_tool_call",
]
