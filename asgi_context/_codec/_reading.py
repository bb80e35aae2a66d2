"""From JSON back to values; `asgi_context._codec._writing` says how they are kept."""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from math import isnan
from typing import Any, Final, cast
from uuid import UUID

from asgi_context._codec._attributes import Renew
from asgi_context._codec._json import ATOMS, encoder
from asgi_context._codec._paths import UnfitError, path_to
from asgi_context._codec._registry import BY_NAME, Registered
from asgi_context._codec._zones import zone_of
from asgi_context._shown import short, type_name
from asgi_context.errors import StateDecodeError


def decode(state: str, field: str, text: bytes) -> Any:  # noqa: ANN401 - what was written
    """Read what `encode` wrote.

    Args:
        state: name of the state, for the error.
        field: name of the field, for the error.
        text: JSON text in UTF-8.

    Returns:
        A value equal to the one that was written, and of the same type.

    Raises:
        StateDecodeError: it is no such text, or holds a type that is not registered here, or not in that version.
    """
    cause = None
    try:
        tree = encoder.loads(text)
        return _value(tree) if b'"$' in text else tree
    except RecursionError:
        reason = "it is nested deeper than the stack of this thread still allows"
    except _UnreadableError as error:
        reason, cause = str(error), error.__cause__
    except Exception as error:  # noqa: BLE001 - without its own text and traceback, which may quote what is stored
        reason = f"it is not what was written ({type_name(error)})"
    raise StateDecodeError(state, path_to(field), reason) from cause


def decode_all(state: str, texts: Mapping[str, bytes]) -> dict[str, Any]:
    """Read all fields of a state, as `decode` reads one.

    Args:
        state: name of the state, for the error.
        texts: JSON text by field.

    Returns:
        Values by field.

    Raises:
        StateDecodeError: as there.
    """
    loads = encoder.loads
    values: dict[str, Any] = {}
    try:
        for field, text in texts.items():
            values[field] = _value(loads(text)) if b'"$' in text else loads(text)
    except Exception:  # noqa: BLE001 - read once more, one by one, for the error that names the field
        return {field: decode(state, field, text) for field, text in texts.items()}
    return values


class _UnreadableError(Exception):
    pass


# To values. With no more frames for a level of JSON than the writer has: what is written can be read from as deep.


def _value(tree: Any) -> Any:  # noqa: ANN401 - any tree
    kind: Any = type(tree)  # pyright: ignore[reportUnknownVariableType]  # as above
    if kind is list:
        return [item if type(item) in ATOMS else _value(item) for item in tree]
    if kind is not dict:
        return tree
    if len(tree) == 1:
        name = next(iter(tree))
        if name[:1] == "$":
            return {name[1:]: _value(tree[name])} if name[:2] == "$$" else _tagged(name, tree[name])
    return {name: item if type(item) in ATOMS else _value(item) for name, item in tree.items()}


def _tagged(tag: str, payload: Any) -> Any:  # noqa: ANN401 - any value
    reader = _READERS.get(tag)
    if reader is not None:
        if type(payload) not in _SHAPES.get(tag, _TEXT):
            raise _UnreadableError(_MALFORMED)
        return reader(payload)
    items = _OF_ITEMS.get(tag)
    if items is not None:
        if type(payload) is not list:
            raise _UnreadableError(_MALFORMED)
        values: list[Any] = payload  # pyright: ignore[reportUnknownVariableType]  # as above
        return items([item if type(item) in ATOMS else _value(item) for item in values])
    # What stands behind the tag of a type is never taken for a tag; but a Flag can have more than 64 bits.
    if type(payload) is not dict or payload.keys() == {"$int"}:
        return _registered(tag, _value(payload))
    members = cast("dict[str, Any]", payload)
    content = {name: item if type(item) in ATOMS else _value(item) for name, item in members.items()}
    return _registered(tag, content)


def _registered(tag: str, content: Any) -> Any:  # noqa: ANN401 - any value
    match = _TYPE_TAG.fullmatch(tag)
    if match is None:
        reason = f"it holds the tag {short(tag)}, which this version does not know"
        raise _UnreadableError(reason)
    name, version = match[1], int(match[2])
    registered = BY_NAME.get(name)
    if registered is None:
        reason = f"it holds a {name!r}: register that type at start-up, with register_state_type"
        raise _UnreadableError(reason)
    renew = None if version == registered.version else _renewal(registered, version)
    try:
        return registered.put_together(content, renew)
    except UnfitError as unfit:
        reason = f"it holds a {name!r} that does not fit: {unfit.reason}"
        raise _UnreadableError(reason) from None


def _renewal(registered: Registered, version: int) -> Renew:
    holds = f"it holds version {version} of {registered.name!r}"
    upgrade = registered.upgrade
    if version > registered.version or upgrade is None:
        advice = "" if version > registered.version else ", without upgrade="
        reason = f"{holds}, and version {registered.version} is registered here{advice}"
        raise _UnreadableError(reason)

    def renew(fields: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(upgrade(fields, version))
        except Exception as error:
            reason = f"{holds}, and its upgrade= raised {type_name(error)}"
            raise _UnreadableError(reason) from error

    return renew


_TYPE_TAG: Final = re.compile(r"\$([A-Za-z_][A-Za-z0-9_.\-]{0,99})@([0-9]{1,9})")


def _read_moment(kind: Any) -> Callable[[Any], Any]:  # noqa: ANN401 - datetime or time
    def read(payload: str | list[Any]) -> Any:  # noqa: ANN401 - a datetime or time
        if isinstance(payload, str):
            return kind.fromisoformat(payload)
        text: str
        zone: Any
        text, zone, fold = payload
        moment = kind.fromisoformat(text)
        if type(zone) is int and 0 < abs(zone) < _SECOND:
            return moment.replace(tzinfo=timezone(timedelta(microseconds=zone)), fold=fold)
        return moment.replace(tzinfo=moment.tzinfo if zone is None else zone_of(cast("str", zone)), fold=fold)

    return read


_MALFORMED: Final = "what stands behind a tag is not what that tag is for"
_OF_ITEMS: Final[dict[str, Callable[[list[Any]], Any]]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}
_SECOND: Final = 1_000_000  # microseconds
_TEXT: Final[tuple[type, ...]] = (str,)
_SHAPES: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(["$dict", "$timedelta"], (list,)),
    **dict.fromkeys(["$datetime", "$time"], (str, list)),
}


def _read_pairs(payload: list[Any]) -> dict[Any, Any]:
    pairs: dict[Any, Any] = {}
    for pair in payload:
        if type(pair) is not list:
            raise _UnreadableError(_MALFORMED)
        both: list[Any] = pair  # pyright: ignore[reportUnknownVariableType]  # as above
        key, item = both
        pairs[_value(key)] = _value(item)
    return pairs


def _read_float(payload: str) -> float:
    value = float(payload)
    if isnan(value):
        raise _UnreadableError(_MALFORMED)
    return value


def _read_decimal(payload: str) -> Decimal:
    value = Decimal(payload)
    if value.is_nan():  # also what is none, where the decimal context does not trap that
        raise _UnreadableError(_MALFORMED)
    return value


def _read_timedelta(payload: list[Any]) -> timedelta:
    days, seconds, microseconds = payload
    if {type(part) for part in payload} != {int}:
        raise _UnreadableError(_MALFORMED)
    return timedelta(days, seconds, microseconds)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$int": int,
    "$float": _read_float,
    "$dict": _read_pairs,
    "$bytes": lambda payload: b64decode(payload, validate=True),
    "$datetime": _read_moment(datetime),
    "$time": _read_moment(time),
    "$date": date.fromisoformat,
    "$timedelta": _read_timedelta,
    "$decimal": _read_decimal,
    "$uuid": UUID,
}
