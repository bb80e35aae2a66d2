"""Values of states as JSON text that a person can read, exact: what cannot come back equal is refused.

JSON itself keeps less than Python tells apart: a tuple comes back as a list, the key ``1`` as ``"1"``, ``True`` and
``1`` are one key, NaN is no JSON. Hence every value is looked at before it is written.
"""

import json
from math import isfinite
from typing import Any, Final, cast

from asgi_context.errors import StateSerializationError

_ATOMS: Final = frozenset({str, int, bool, type(None)})
_LONGEST_STEP: Final = 60  # characters of a name in an error
_DEEPEST: Final = 100  # well under the recursion limit of the JSON encoder


def encode(state: str, field: str, value: object) -> bytes:
    """Write one value of a state.

    Args:
        state: name of the state, for the error.
        field: name of the field, for the error.
        value: ``None``, ``bool``, ``int``, ``float`` (finite), ``str``, ``list``, ``dict`` with ``str`` keys.

    Returns:
        JSON text (RFC 8259) in UTF-8.

    Raises:
        StateSerializationError: the value, or one inside it, would not come back equal and of the same type.
    """
    try:
        _check(value, (), 0)
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except _UnfitError as unfit:
        raise StateSerializationError(state, _path(field, unfit.path), unfit.reason) from None
    except UnicodeEncodeError:
        raise StateSerializationError(state, _path(field, ()), "a str holds a lone surrogate") from None
    except ValueError as error:  # an int of more digits than sys.get_int_max_str_digits()
        raise StateSerializationError(state, _path(field, ()), str(error)) from None


def decode(text: bytes) -> Any:  # noqa: ANN401 - what was written
    """Read what `encode` wrote.

    Args:
        text: JSON text in UTF-8.

    Returns:
        A value equal to the one that was written, and of the same type.
    """
    return json.loads(text)


class _UnfitError(Exception):
    def __init__(self, path: tuple[object, ...], reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


def _check(value: object, path: tuple[object, ...], depth: int) -> None:
    if type(value) in _ATOMS:
        return
    if type(value) is float:
        if not isfinite(value):
            raise _UnfitError(path, "NaN and Infinity are no JSON")
        return
    unfit = type(value).__qualname__
    if depth == _DEEPEST:
        raise _UnfitError(path[:3], f"nested deeper than {_DEEPEST} levels")
    if type(value) is list:
        for index, item in enumerate(cast("list[object]", value)):
            _check(item, (*path, index), depth + 1)
    elif type(value) is dict:
        for name, item in cast("dict[object, object]", value).items():
            if type(name) is not str:
                raise _UnfitError(path, f"a key of a dict must be a str, not {type(name).__qualname__}")
            _check(item, (*path, name), depth + 1)
    else:
        raise _UnfitError(path, f"{unfit} cannot be kept: convert it to str, int, float, bool, list, dict")


def _path(field: str, inside: tuple[object, ...]) -> str:
    return f"field {_short(field)}" + "".join(f"[{_short(step)}]" for step in inside)


def _short(step: object) -> str:
    shown = repr(step)
    return shown if len(shown) <= _LONGEST_STEP else f"{shown[:_LONGEST_STEP]}..."
