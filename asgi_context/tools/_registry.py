"""The tools of one request."""

from collections.abc import Iterable, Sequence
from typing import Any

from asgi_context.errors import ToolNotFoundError
from asgi_context.tools._specs import Entry, Spec, spec_of


class ToolRegistry:
    """The tools of one request, by name.

    A tool is a pydantic model such as a subclass of `AsyncBaseTool`, of which each call makes an instance; or another
    class, or an object, with a method ``__call__``, ``arun`` or ``run``; or a function. Arguments need hints.

    Args:
        tools: what to register.

    Raises:
        ToolDefinitionError: one cannot be used as a tool.
        ValueError: two have the same name.
    """

    def __init__(self, tools: Iterable[Any] = ()) -> None:
        self._entries: dict[str, Entry] = {}
        for tool in tools:
            self.register(tool)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<ToolRegistry {', '.join(self._entries)}>"

    def register(self, tool: Any, *, name: str | None = None) -> None:  # noqa: ANN401 - as above
        """Add a tool, under its own name or another.

        Args:
            tool: the tool.
            name: what to call it; by default, what the class or the function is called.

        Raises:
            ToolDefinitionError: it cannot be used as a tool.
            ValueError: there is one of that name.
        """
        self.add(spec_of(tool, name))

    def add(self, spec: Spec) -> Any:  # noqa: ANN401 - as above
        """Add a tool whose hints were read already.

        Args:
            spec: what it is.

        Returns:
            The tool, which for a class that is no model is an instance, made for this registry.

        Raises:
            ToolDefinitionError: it cannot be built.
            ValueError: there is one of that name.
        """
        if spec.name in self._entries:
            message = f"there is a tool {spec.name!r} already: give another name"
            raise ValueError(message)
        entry = self._entries[spec.name] = spec.entry()
        return entry.tool

    def has(self, name: str) -> bool:
        """Say whether there is such a tool.

        Args:
            name: its name.

        Returns:
            Whether there is.
        """
        return name in self._entries

    def get(self, name: str) -> Any:  # noqa: ANN401 - as above
        """Give a tool.

        Args:
            name: its name.

        Returns:
            What was registered; for a class that is no model, its instance.

        Raises:
            ToolNotFoundError: there is none of that name.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise ToolNotFoundError(tuple(self._entries))
        return entry.tool

    def find(self, name: str) -> Entry | None:
        """Give what is known of a tool.

        Args:
            name: its name.

        Returns:
            Its entry; ``None`` where there is none.
        """
        return self._entries.get(name)

    def list(self) -> list[str]:
        """Give the names of all tools.

        Returns:
            The names, in the order in which they were registered.
        """
        return [*self._entries]

    def schemas(self) -> Sequence[dict[str, Any]]:
        """Give what a model is told of the tools.

        Returns:
            Of each, ``name``, ``description`` and ``parameters``, a JSON schema (2020-12).
        """
        return [entry.spec.schema() for entry in self._entries.values()]

    def clear(self) -> None:
        """Remove all tools."""
        self._entries.clear()
