"""What references stand for in one expansion. A name is looked up at most once, so that it is the same everywhere."""

from collections.abc import Mapping
from typing import Any, Final

from asgi_context._context import current_context
from asgi_context._shown import type_name
from asgi_context.errors import ExpansionAmbiguousError, ExpansionTypeError, ExpansionUnsetError
from asgi_context.expansion._names import IDENTITY
from asgi_context.expansion._places import Place, tell
from asgi_context.expansion._syntax import Part, Reference
from asgi_context.values import get_from_context

_UNSET: Final[Any] = object()
_UNREAD: Final[Any] = object()
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
"""What a value may be. A list or a dict would change the structure of the document."""


class Filling:
    """The values of one expansion.

    Args:
        environ: the environment.
    """

    __slots__ = ("_environ", "_known")

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._known: dict[tuple[str | None, str], Any] = {}

    def fill(self, parts: tuple[Part, ...], place: Place) -> Any:  # noqa: ANN401 - whatever the value is
        """Fill a text.

        Args:
            parts: its parts.
            place: where it stands, for errors.

        Returns:
            The value, where the text is one reference and nothing else; else a text.

        Raises:
            ExpansionUnsetError: a reference has no value.
            ExpansionAmbiguousError: a reference could be of the request and of the environment.
            ExpansionTypeError: a value cannot stand in a document, or not inside of a text.
            ContextClosedError: what is bound here has ended.
        """
        if len(parts) == 1:
            part = parts[0]
            return part if isinstance(part, str) else self._value(part, place)
        return "".join([part if isinstance(part, str) else self._text(part, place) for part in parts])

    def _text(self, reference: Reference, place: Place) -> str:
        value = self._value(reference, place)
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if value is None:
            raise ExpansionTypeError(
                tell(place), "a value that is None cannot stand inside of a text: write a default by :-"
            )
        try:
            return repr(value)
        except ValueError:  # Python writes no int of thousands of digits
            raise ExpansionTypeError(tell(place), "a value is too large a number to stand inside of a text") from None

    def _value(self, reference: Reference, place: Place) -> Any:  # noqa: ANN401 - whatever the value is
        key = (reference.source, reference.name)
        value = self._known.get(key, _UNREAD)
        if value is _UNREAD:
            value = self._known[key] = self._find(reference, place)
        missing = value is _UNSET or (reference.or_empty and (value is None or value == ""))
        if reference.operator == "-":
            return self.fill(reference.word, place) if missing else value
        if reference.operator == "+":
            return "" if missing else self.fill(reference.word, place)
        if missing:
            raise ExpansionUnsetError(tell(place), reference.name, empty=value is not _UNSET, message=reference.message)
        return value

    def _find(self, reference: Reference, place: Place) -> Any:  # noqa: ANN401 - whatever the value is
        name, where = reference.name, reference.where
        value = _of_request(name) if where.request else _UNSET
        if value is _UNSET:
            value = self._environ.get(name, _UNSET) if where.env else _UNSET
        elif where.env and not where.listed and name in self._environ:
            raise ExpansionAmbiguousError(tell(place), name)
        if value is not _UNSET and type(value) not in _SCALARS:
            reason = f"the value of {name} must be a str, an int, a float, a bool or None, not {type_name(value)}"
            raise ExpansionTypeError(tell(place), reason)
        return value


def _of_request(name: str) -> Any:  # noqa: ANN401 - whatever was set
    if name not in IDENTITY:
        return get_from_context(name, _UNSET)
    context = current_context(None)
    value = None if context is None else getattr(context, name)
    return _UNSET if value is None else value
