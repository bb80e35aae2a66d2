"""What the methods of states take, checked."""

from collections.abc import Mapping
from typing import Any, cast

from asgi_context._codec import encode
from asgi_context._limits import check_ttl
from asgi_context._types import KEEP, Ttl


def name_of(name: object, what: str) -> str:
    """Check a name.

    Args:
        name: what was given.
        what: what to call it in an error.

    Returns:
        The name, as a plain str.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty, or no text.
    """
    if type(name) is not str:
        if not isinstance(name, str):
            message = f"{what} must be a str, not {type(name).__qualname__}"
            raise TypeError(message)
        name = str.__str__(name)  # of a subclass, such as an enum
    if not name:
        message = f"{what} must not be empty"
        raise ValueError(message)
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            message = f"{what} holds a lone surrogate, which is no character"
            raise ValueError(message) from None
    return name


def encoded(key: str, data: object) -> dict[str, bytes]:
    """Write all fields of a state.

    Args:
        key: name of the state.
        data: values by field.

    Returns:
        JSON text by field.

    Raises:
        TypeError: it is no mapping, or the name of a field is no str.
        ValueError: the name of a field cannot be.
        StateSerializationError: a value cannot be kept exactly.
    """
    if not isinstance(data, Mapping):
        message = f"a state must be a mapping of values by field, not {type(data).__qualname__}"
        raise TypeError(message)
    fields = cast("Mapping[str, Any]", data)
    texts = {name_of(field, "field"): encode(key, field, value) for field, value in fields.items()}
    if len(texts) != len(fields):  # of a subclass of str that has another idea of what is equal
        message = "two fields have the same name"
        raise ValueError(message)
    return texts


def time_to_live(ttl: Ttl) -> Ttl:
    """Check a time to live, which may be ``KEEP`` or ``None``.

    Args:
        ttl: what was given.

    Returns:
        The same.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive and finite.
    """
    if ttl is not None and ttl is not KEEP:
        check_ttl(ttl, "ttl")
    return ttl
