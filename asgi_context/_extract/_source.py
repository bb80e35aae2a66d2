"""What the sources of one identifier have in common."""

from asgi_context._extract._identifiers import Valid, check_rule, checked, decoded
from asgi_context._extract._step import BuiltIn
from asgi_context.errors import RequestRejected


class Source(BuiltIn):
    """An extractor that reads one identifier; its subclasses say where."""

    gives = str

    def __init__(self, name: str, argument: object, valid: Valid | None) -> None:
        check_rule(valid, f"{name}: valid=")
        self._repr = f"{name}({argument!r})"
        self._valid = valid

    def __repr__(self) -> str:
        return self._repr


def text_of(value: object, option: str) -> str:
    """Check an option that is a text.

    Args:
        value: what was given.
        option: what to call it in an error.

    Returns:
        The text.

    Raises:
        TypeError: it is none.
        ValueError: it is empty.
    """
    if not isinstance(value, str):
        message = f"{option} must be a str, not {type(value).__qualname__}"
        raise TypeError(message)
    if not value:
        message = f"{option} must not be empty"
        raise ValueError(message)
    return value


def only_one(values: list[bytes], valid: Valid | None, role: str) -> str | None:
    """Take the value that must stand alone.

    Args:
        values: all that were found.
        valid: the rule that it must keep.
        role: what it is to be, for the code of a refusal.

    Returns:
        The value; ``None`` where there is none.

    Raises:
        RequestRejected: there are several, or it is not acceptable.
    """
    if len(values) > 1:
        raise RequestRejected(400, f"{role}_repeated")
    return checked(decoded(values[0], role), valid, role) if values else None
