"""A tool system for each request, connection or message."""

from collections.abc import Iterable, Mapping
from functools import partial
from inspect import isroutine
from types import ModuleType, TracebackType
from typing import Any, ClassVar, Self, cast
from uuid import uuid4

from asgi_context._context import current_binding
from asgi_context._identity import RequestContext
from asgi_context.errors import ToolDefinitionError
from asgi_context.tools._bridge import WebSocketBridge
from asgi_context.tools._dispatcher import Permit, ToolDispatcher
from asgi_context.tools._limits import ToolLimits
from asgi_context.tools._registry import ToolRegistry
from asgi_context.tools._specs import spec_of


class ToolSystem:
    """The tools of one request, connection or message, and what calls them.

    It is made by a `ToolSystemFactory`, and closed with what it belongs to.

    Args:
        registry: the tools.
        dispatcher: calls them.
        tools: what was registered; of classes that are no models, instances of its own.
        bridge: sends events to the WebSocket that asked; ``None`` where there is none.
        correlation_id: goes with all events: a UUID.
    """

    __slots__ = {  # noqa: RUF023 - in the order of reading
        "registry": "The tools, by name.",
        "dispatcher": "Calls them.",
        "tools": "What was registered; of classes that are no models, instances of its own.",
        "bridge": "Sends events to the WebSocket that asked; ``None`` where there is none.",
        "correlation_id": "Goes with all events: a UUID.",
        "__weakref__": "It may be referred to weakly.",
    }

    needs_connection: ClassVar[bool] = True
    """Tells the middleware that connections are to be kept ready for its bridge."""

    def __init__(
        self,
        registry: ToolRegistry,
        dispatcher: ToolDispatcher,
        tools: list[Any],
        bridge: WebSocketBridge | None,
        correlation_id: str,
    ) -> None:
        self.registry = registry
        self.dispatcher = dispatcher
        self.tools = tools
        self.bridge = bridge
        self.correlation_id = correlation_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.dispatcher.close()
        self.registry.clear()
        self.tools.clear()


class ToolSystemFactory:
    """Makes a `ToolSystem` for each request, connection or message that asks for one.

    Name it in ``ContextMiddleware(resources={ToolSystem: ToolSystemFactory([...])})``, and ask by
    ``await current_resource(ToolSystem)``. The hints of the tools are read once, here.

    Args:
        tool_classes: classes and functions, see `ToolRegistry`; or a mapping, of names to them.
        timeout: see `ToolDispatcher`.
        pool: see `ToolDispatcher`.
        permit: see `ToolDispatcher`.
        user_limits: see `ToolDispatcher`.
        tenant_limits: see `ToolDispatcher`.

    Raises:
        ToolDefinitionError: one cannot be used as a tool, or is an instance, which all users would share.
        TypeError: an argument is of the wrong type.
        ValueError: two tools have the same name, or an argument cannot be.
    """

    needs_connection: ClassVar[bool] = True
    """Tells the middleware that connections are to be kept ready for its bridges."""

    def __init__(
        self,
        tool_classes: Iterable[Any] | Mapping[str, Any],
        *,
        timeout: float = 60.0,
        pool: str | None = None,
        permit: Permit | None = None,
        user_limits: ToolLimits | None = None,
        tenant_limits: ToolLimits | None = None,
    ) -> None:
        if isinstance(tool_classes, Mapping):
            named = cast("Mapping[str, Any]", tool_classes)
            self._specs = [spec_of(_checked(tool), name) for name, tool in named.items()]
        else:
            self._specs = [spec_of(_checked(tool)) for tool in tool_classes]
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "pool": pool,
            "permit": permit,
            "user_limits": user_limits,
            "tenant_limits": tenant_limits,
        }
        names = [spec.name for spec in self._specs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            message = f"there are two tools {twice!r}: give a mapping, of names to tools"
            raise ValueError(message)
        ToolDispatcher(**self._options)  # what is wrong with the options shows now

    def __call__(self, context: RequestContext) -> ToolSystem:
        """Make a tool system for whoever is bound.

        Args:
            context: who that is.

        Returns:
            The system, nothing of which is anybody else's.

        Raises:
            ToolDefinitionError: a tool cannot be built.
        """
        correlation_id = str(uuid4())
        registry = ToolRegistry()
        tools = [registry.add(spec) for spec in self._specs]
        binding = current_binding()
        bridge = None if binding.connection is None or binding.is_guest else WebSocketBridge(context)
        dispatcher = ToolDispatcher(registry, bridge=bridge, correlation_id=correlation_id, **self._options)
        return ToolSystem(registry, dispatcher, tools, bridge, correlation_id)


def _checked(tool: Any) -> Any:  # noqa: ANN401 - whatever was given
    known: Any = tool
    while isinstance(known, partial) or hasattr(known, "__wrapped__"):
        known = known.func if isinstance(known, partial) else known.__wrapped__
    owner: Any = getattr(known, "__self__", None) if isroutine(known) else None
    if not (isinstance(known, type) or isroutine(known)) or not (owner is None or isinstance(owner, type | ModuleType)):
        shared: Any = known if owner is None else owner
        raise ToolDefinitionError(
            type(shared).__qualname__,
            "is an instance, which all users would share: give its class, or register it in a ToolRegistry",
        )
    return tool
