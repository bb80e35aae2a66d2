"""From values to JSON.

JSON keeps less than Python tells apart. What it keeps stands in the text as it is. What it does not is an object of one
member, whose name is a tag that begins with ``$``: ``{"$tuple":[1,2]}``. A dict of one member whose name begins with
``$`` gets one ``$`` more, so that no data can pass for a tag.
"""

import sys
from base64 import b64encode
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from math import isfinite, isnan
from typing import Any, Final, cast
from uuid import UUID

from asgi_context._codec._json import ATOMS, encoder
from asgi_context._codec._paths import UnfitError, path_to
from asgi_context._codec._registry import BY_TYPE, Registered, can_be_registered
from asgi_context._codec._zones import is_named, is_of_its_name, is_pydantic
from asgi_context._shown import type_name
from asgi_context.errors import StateSerializationError

_DEEPEST: Final = 100  # levels of JSON; the encoders' own limits begin at about 250
_NO_STACK: Final = "nested deeper than the stack of this thread still allows"
_TOO_DEEP: Final = f"nested deeper than {_DEEPEST} levels of JSON"
_OTHER_ZONE: Final = (
    "the ZoneInfo is not the one that its name stands for, so it would come back as another: it has other rules, or is "
    "a copy of its own (ZoneInfo.no_cache, ZoneInfo.clear_cache)"
)
_LEAST, _MOST = -(2**63), 2**63 - 1


def encode(state: str, field: str, value: object) -> bytes:
    """Write one value of a state.

    Args:
        state: name of the state, for the error.
        field: name of the field, for the error.
        value: what is to be kept.

    Returns:
        JSON text (RFC 8259) in UTF-8.

    Raises:
        StateSerializationError: the value, or one inside it, would not come back equal and of the same type.
    """
    try:
        tree = value if type(value) in ATOMS else _tree(value, 0)
        try:
            return encoder.dumps(tree)
        except (UnicodeEncodeError, TypeError) as error:  # which of them depends on the encoder
            raise _surrogate(error, value) from None
    except RecursionError:
        path, reason = list[object](), f"{type_name(value)} {_NO_STACK}"
    except Exception as error:  # noqa: BLE001 - as in _unfit
        unfit = _unfit(error, value)
        path, reason = unfit.path, unfit.reason
        del unfit  # which holds the frames that hold the value
    raise StateSerializationError(state, path_to(field, path), reason) from None


def _unfit(error: Exception, value: object) -> UnfitError:
    if isinstance(error, UnfitError):
        return error
    # Raised by the user's code (a property, a metaclass), or for what another thread changed meanwhile. What it says
    # may quote the value.
    return UnfitError(f"{type_name(value)} cannot be kept: writing it raised {type_name(error)}")


def _inside(step: object, error: Exception, value: object) -> Exception:
    if isinstance(error, RecursionError):  # it may be too early to do more than pass it on
        return error
    unfit = _unfit(error, value)
    unfit.path.insert(0, step)
    return unfit


def _surrogate(error: Exception, value: object) -> UnfitError:
    path = _path_to_surrogate(value)
    if path is None:  # another thread took it away
        return _unfit(error, value)
    unfit = UnfitError("a str holds a lone surrogate")
    unfit.path = path
    return unfit


def _path_to_surrogate(value: Any) -> list[object] | None:  # noqa: ANN401 - any value
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
    registered = BY_TYPE.get(kind)
    if registered is not None:
        value = registered.take_apart(value)
    if type(value) is str:
        return None if _is_text(value) else []
    steps: Iterable[tuple[Any, Any]] = ()
    if type(value) is dict:
        members: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
        steps = [pair for name, item in members.items() for pair in ((name, name), (name, item))]
    elif kind in _SEVERAL:
        steps = enumerate(cast("Iterable[Any]", value))
    for step, item in steps:
        found = _path_to_surrogate(item)
        if found is not None:
            return [step, *found]
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# To trees. `depth` counts levels of JSON, which a tag adds as well.


def _tree(value: Any, depth: int) -> Any:  # noqa: ANN401, PLR0911 - any value, and the commonest types first
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
    if kind in ATOMS:
        return value
    if kind is int:
        return value if _LEAST <= value <= _MOST else {"$int": _digits(value)}
    if kind is float:
        return value if isfinite(value) else _unbounded(value)
    if depth >= _DEEPEST:
        reason = f"{type_name(value)} {_TOO_DEEP}"
        raise UnfitError(reason)
    if kind is dict:
        return _tree_of_dict(value, depth)
    if kind is list:
        return _trees(value, depth)
    writer = _WRITERS.get(kind)
    if writer is not None:
        return writer(value, depth)
    registered = BY_TYPE.get(kind)
    if registered is None:
        raise UnfitError(_advice(value))
    return _tree_of_registered(registered, value, depth)


def _tree_of_registered(registered: Registered, value: object, depth: int) -> dict[str, Any]:
    try:
        apart = registered.take_apart(value)
    except UnfitError as unfit:
        reason = f"{type_name(value)} cannot be kept: {unfit.reason}"
        raise UnfitError(reason) from None
    return {registered.tag: _payload(apart, depth)}


def _trees(values: Iterable[Any], depth: int) -> list[Any]:
    trees: list[Any] = []
    for index, item in enumerate(values):
        try:
            trees.append(item if type(item) in ATOMS else _tree(item, depth + 1))
        except Exception as error:  # noqa: BLE001 - as in _unfit
            raise _inside(index, error, item) from None
    return trees


def _tree_of_dict(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    if any(type(name) is not str for name in value):
        return {"$dict": [_pair(pair, depth + 3) for pair in value.items()]}
    trees: dict[str, Any] = _payload(value, depth)
    if len(trees) == 1:
        name = next(iter(trees))
        if name[:1] == "$":  # it looks like a tag
            return {f"${name}": trees[name]}
    return trees


def _pair(pair: tuple[Any, Any], depth: int) -> list[Any]:
    trees: list[Any] = []
    for part in pair:
        try:
            trees.append(_tree(part, depth))
        except Exception as error:  # noqa: BLE001 - as in _unfit
            raise _inside(pair[0], error, part) from None
    return trees


def _payload(value: Any, depth: int) -> Any:  # noqa: ANN401 - what stands behind a tag is never taken for one
    if type(value) is not dict:
        return _tree(value, depth + 1)
    trees: dict[str, Any] = {}
    for name, item in cast("dict[str, Any]", value).items():
        try:
            trees[name] = item if type(item) in ATOMS else _tree(item, depth + 1)
        except Exception as error:  # noqa: BLE001 - as in _unfit
            raise _inside(name, error, item) from None
    return trees


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:
        reason = f"int of more than the {sys.get_int_max_str_digits()} digits that sys.set_int_max_str_digits allows"
        raise UnfitError(reason) from None


def _unbounded(value: float) -> dict[str, str]:
    if isnan(value):
        raise UnfitError("float NaN is equal to nothing, itself included")
    return {"$float": repr(value)}


def _advice(value: object) -> str:
    name = type_name(value)
    base = next((base.__name__ for base in type(value).__mro__[1:] if base in _KNOWN), None)
    problem = f"{name} cannot be kept" if base is None else f"{name} would come back as {base}"
    advice = ", or register it with register_state_type" if can_be_registered(type(value)) else ""
    return f"{problem}: convert it{advice}"


def _decimal(value: Decimal, _depth: int) -> dict[str, str]:
    if value.is_nan():
        raise UnfitError("Decimal NaN is equal to nothing, itself included")
    return {"$decimal": str(value)}


def _moment(tag: str) -> Callable[[Any, int], dict[str, Any]]:
    def write(value: datetime | time, _depth: int) -> dict[str, Any]:
        zone = value.tzinfo
        if is_named(zone):
            if not is_of_its_name(zone):
                raise UnfitError(_OTHER_ZONE)
            return {tag: [value.replace(tzinfo=None).isoformat(), cast("Any", zone).key, value.fold]}
        if zone is not None and type(zone) is not timezone and not is_pydantic(zone):
            reason = f"the time zone {type_name(zone)} cannot be kept: use zoneinfo or datetime.timezone"
            raise UnfitError(reason)
        text = value.isoformat()
        away = None if zone is None else zone.utcoffset(None)
        if away and abs(away) < timedelta(seconds=1):  # which fromisoformat takes for UTC
            return {tag: [value.replace(tzinfo=None).isoformat(), away // timedelta(microseconds=1), value.fold]}
        return {tag: [text, None, value.fold] if value.fold else text}

    return write


_WRITERS: Final[dict[object, Callable[[Any, int], dict[str, Any]]]] = {
    tuple: lambda value, depth: {"$tuple": _trees(value, depth + 1)},
    set: lambda value, depth: {"$set": _trees(value, depth + 1)},
    frozenset: lambda value, depth: {"$frozenset": _trees(value, depth + 1)},
    bytes: lambda value, _depth: {"$bytes": b64encode(value).decode()},
    datetime: _moment("$datetime"),
    time: _moment("$time"),
    date: lambda value, _depth: {"$date": value.isoformat()},
    timedelta: lambda value, _depth: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    Decimal: _decimal,
    UUID: lambda value, _depth: {"$uuid": str(value)},
}

_SEVERAL: Final = frozenset({list, tuple, set, frozenset})
_KNOWN: Final = frozenset({*ATOMS, int, float, dict, list, *_WRITERS}) - {object}
