"""Documents, compiled: what must be filled is found once, all else is copied."""

from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final, TypeAlias, TypeGuard

from asgi_context._shown import type_name
from asgi_context.errors import ExpansionDocumentError, ExpansionTypeError
from asgi_context.expansion._filling import Filling
from asgi_context.expansion._limits import DEEPEST, LONG, MOST_VALUES
from asgi_context.expansion._names import Names
from asgi_context.expansion._places import Place, tell
from asgi_context.expansion._syntax import Part, parse

_SCALARS: Final = frozenset({int, float, bool, type(None), bytes, date, datetime, time, Decimal})
"""What parsers of JSON, TOML and YAML give beside text: nothing that can be changed, or requests would share it."""


class Text:
    """A text that holds references.

    Args:
        parts: its parts.
        place: where it stands, or where it stands first.
        size: how many values it counts as.
    """

    __slots__ = ("_parts", "_place", "is_shared", "size")

    def __init__(self, parts: tuple[Part, ...], place: Place, size: int) -> None:
        self._parts = parts
        self._place = place
        self.size = size
        self.is_shared = False

    def build(self, filling: Filling, made: dict["Node", Any]) -> Any:  # noqa: ANN401 - whatever is filled in
        """Fill it.

        Args:
            filling: the values.
            made: what was made before, of what stands in several places.

        Returns:
            What it is then.
        """
        if self.is_shared and self in made:
            return made[self]
        filled = filling.fill(self._parts, self._place)
        if self.is_shared:
            made[self] = filled
        return filled


class Container:
    """A mapping, a list or a tuple.

    Args:
        is_tuple: whether it is a tuple.
        constant: a dict or list of its members, with ``None`` in place of those that are made anew.
        built: those, by key or index.
        size: how many values it holds, and is.
    """

    __slots__ = ("_built", "_constant", "_is_tuple", "height", "is_shared", "size")

    def __init__(self, constant: Any, built: list[tuple[Any, "Node"]], size: int, *, is_tuple: bool) -> None:  # noqa: ANN401 - a dict or a list
        self._constant = constant
        self._built = built
        self._is_tuple = is_tuple
        self.height: int = 1 + max((child.height for _, child in built if isinstance(child, Container)), default=0)
        self.size = size
        self.is_shared = False

    def build(self, filling: Filling, made: dict["Node", Any]) -> Any:  # noqa: ANN401 - a dict, list or tuple
        """Copy it, and fill what is in it.

        Args:
            filling: the values.
            made: what was made before, of what stands in several places.

        Returns:
            The copy.
        """
        if self.is_shared and self in made:
            return made[self]
        copy = self._constant.copy()
        for key, node in self._built:
            copy[key] = node.build(filling, made)
        if self._is_tuple:
            copy = tuple(copy)
        if self.is_shared:
            made[self] = copy
        return copy


Node: TypeAlias = Text | Container

_Members: TypeAlias = Mapping[Any, Any] | list[Any] | tuple[Any, ...]


def compile_document(document: object, names: Names) -> object:
    """Find what must be filled.

    Args:
        document: the document; it is copied.
        names: what it may refer to.

    Returns:
        A node; or what it is in any case, where that is a scalar.

    Raises:
        ExpansionSyntaxError: a text is not by the syntax.
        ExpansionForbiddenError: a text refers to a name that it may not.
        ExpansionDocumentError: it holds itself, or is too deep or too large.
        ExpansionTypeError: it holds what a document cannot.
    """
    return _Compiler(names).node(document)


class _Compiler:
    __slots__ = ("_known", "_names", "_steps", "_texts")

    def __init__(self, names: Names) -> None:
        self._names = names
        self._steps: list[object] = []  # to where it is
        # By id, with the object itself: a mapping may make its values as they are asked for, and ids are used again.
        self._known: dict[int, tuple[object, Container | None]] = {}
        # Short aliases of a long text would else take time, and room, by the square of the document's length.
        self._texts: dict[str, str | Text] = {}

    def node(self, value: Any) -> object:  # noqa: ANN401 - a document
        if type(value) is str:
            return self._text(value)
        if type(value) in _SCALARS:
            return value
        if not _is_container(value):
            reason = f"a document holds what JSON, TOML and YAML can say, with lists and tuples, not {type_name(value)}"
            raise ExpansionTypeError(self._place(), reason)
        _, known = self._known.get(id(value), (None, _UNKNOWN))
        if known is None:
            raise ExpansionDocumentError(self._place(), "the document holds itself")
        if len(self._steps) + (1 if known is _UNKNOWN else known.height) > DEEPEST:
            raise ExpansionDocumentError(self._place(), f"it is nested more than {DEEPEST} deep")
        if known is not _UNKNOWN:
            known.is_shared = True
            return known
        self._known[id(value)] = (value, None)
        made = self._container(value)
        if made.size > MOST_VALUES:
            raise ExpansionDocumentError(self._place(), f"it holds more than {MOST_VALUES} values")
        self._known[id(value)] = (value, made)
        return made

    def _text(self, text: str) -> object:
        if "$" not in text:
            return text
        known = self._texts.get(text)
        if known is None:
            place = tuple(self._steps)
            parts = parse(text, place, self._names)
            texts = [part for part in parts if isinstance(part, str)]
            known = "".join(texts) if len(texts) == len(parts) else Text(parts, place, _size(text))
            self._texts[text] = known
        elif isinstance(known, Text):
            known.is_shared = True
        return known

    def _container(self, value: _Members) -> Container:
        members = value.items() if isinstance(value, Mapping) else enumerate(value)
        constant: dict[Any, Any] = {}
        built: list[tuple[Any, Node]] = []
        size = 1
        for key, member in members:
            self._steps.append(key)
            if key in constant:
                raise ExpansionDocumentError(self._place(), "the mapping has that key already")
            node = self.node(member)
            self._steps.pop()
            size += _size(node) + (_size(key) - 1)
            if isinstance(node, Node):
                built.append((key, node))
                node = None
            constant[key] = node
        made = constant if isinstance(value, Mapping) else list(constant.values())
        return Container(made, built, size, is_tuple=isinstance(value, tuple))

    def _place(self) -> str:
        return tell(tuple(self._steps))


def _size(value: object) -> int:
    if isinstance(value, Node):
        return value.size
    return 1 + len(value) // LONG if isinstance(value, str | bytes) else 1


def _is_container(value: object) -> TypeGuard[_Members]:
    return isinstance(value, Mapping | list | tuple)


_UNKNOWN: Final = Container([], [], 1, is_tuple=False)
