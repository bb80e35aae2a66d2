"""Values as trees of JSON, and back.

JSON keeps less than Python tells apart. What it keeps stands in the text as it is. What it does not is an object of one
member, whose name is a tag that begins with ``$``: ``{"$tuple":[1,2]}``. A dict of one member whose name begins with
``$`` gets one ``$`` more, so that no data can pass for a tag.
"""

import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from math import isfinite, isnan
from typing import Any, Final, cast
from uuid import UUID

from asgi_context._codec._json import encoder
from asgi_context._codec._registry import BY_NAME, BY_TYPE
from asgi_context.errors import StateDecodeError, StateSerializationError

_ATOMS: Final = frozenset({str, bool, type(None)})  # stand as they are, whatever they hold
_LONGEST_STEP: Final = 60  # characters of a name in an error
_DEEPEST: Final = 100  # levels of JSON; the encoders' own limits begin at about 250
_NO_STACK: Final = "nested deeper than the stack of this thread still allows"
_TOO_DEEP: Final = f"nested deeper than {_DEEPEST} levels of JSON"
_SHOWN: Final = (int, str, tuple)  # keys of dicts, in an error
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
        tree = value if type(value) in _ATOMS else _tree(value, 0)
    except _UnfitError as unfit:
        raise StateSerializationError(state, _path(field, unfit.path), unfit.reason) from None
    except RecursionError:
        raise StateSerializationError(state, _path(field, ()), _NO_STACK) from None
    try:
        return encoder.dumps(tree)
    except (UnicodeEncodeError, TypeError):  # which of them depends on the encoder; nothing else in a tree is refused
        path = _path_to_surrogate(value) or ()
        raise StateSerializationError(state, _path(field, path), "a str holds a lone surrogate") from None
    except RecursionError:
        raise StateSerializationError(state, _path(field, ()), _NO_STACK) from None


def _path_to_surrogate(value: Any) -> list[object] | None:  # noqa: ANN401 - any value
    steps: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, str):
        return None if _is_text(value) else []
    if isinstance(value, dict):
        members: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
        steps = members.items()
    elif isinstance(value, list | tuple | set | frozenset):
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
    try:
        tree = encoder.loads(text)
        return _value(tree) if b'"$' in text else tree
    except RecursionError:
        raise StateDecodeError(state, _path(field, ()), "it is nested too deep") from None
    except Exception as error:
        reason = str(error) if isinstance(error, _UnreadableError) else f"it is not what was written ({error!r:.200})"
        raise StateDecodeError(state, _path(field, ()), reason) from error


class _UnfitError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[object] = []  # from the inside out, filled in on the way up


class _UnreadableError(Exception):
    pass


def _path(field: str, inside: Iterable[object]) -> str:
    return f"field {_short(field)}" + "".join(f"[{_short(step)}]" for step in inside)


def _short(step: object) -> str:
    shown = repr(step)
    return shown if len(shown) <= _LONGEST_STEP else f"{shown[:_LONGEST_STEP]}..."


# To trees. `depth` counts levels of JSON, which a tag adds as well.


def _tree(value: Any, depth: int) -> Any:  # noqa: ANN401, PLR0911 - any value, and the commonest types first
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
    if kind in _ATOMS:
        return value
    if kind is int:
        return value if _LEAST <= value <= _MOST else {"$int": _digits(value)}
    if kind is float:
        return value if isfinite(value) else _unbounded(value)
    if depth >= _DEEPEST:
        raise _UnfitError(_TOO_DEEP)
    if kind is dict:
        return _tree_of_dict(value, depth)
    if kind is list:
        return _trees(value, depth)
    writer = _WRITERS.get(kind)
    if writer is not None:
        return writer(value, depth)
    registered = BY_TYPE.get(kind)
    if registered is None:
        raise _UnfitError(_unfit(value))
    try:
        apart = registered.take_apart(value)
    except LookupError as error:
        reason = f"{kind.__qualname__} cannot be kept: {error.args[0]}"
        raise _UnfitError(reason) from None
    return {registered.tag: _payload(apart, depth)}


def _trees(values: Iterable[Any], depth: int) -> list[Any]:
    trees: list[Any] = []
    for index, item in enumerate(values):
        try:
            trees.append(item if type(item) in _ATOMS else _tree(item, depth + 1))
        except _UnfitError as unfit:
            unfit.path.insert(0, index)
            raise
    return trees


def _tree_of_dict(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    if any(type(name) is not str for name in value):
        pairs: list[list[Any]] = []
        for name, item in value.items():
            try:
                pairs.append([_tree(name, depth + 3), _tree(item, depth + 3)])
            except _UnfitError as unfit:
                unfit.path.insert(0, cast("object", name) if isinstance(name, _SHOWN) else type(name).__name__)
                raise
        return {"$dict": pairs}
    trees: dict[str, Any] = _payload(value, depth)
    if len(trees) == 1:
        name = next(iter(trees))
        if name[:1] == "$":  # it looks like a tag
            return {f"${name}": trees[name]}
    return trees


def _payload(value: Any, depth: int) -> Any:  # noqa: ANN401 - what stands behind a tag is never taken for one
    if type(value) is not dict:
        return _tree(value, depth + 1)
    trees: dict[str, Any] = {}
    for name, item in cast("dict[str, Any]", value).items():
        try:
            trees[name] = item if type(item) in _ATOMS else _tree(item, depth + 1)
        except _UnfitError as unfit:
            unfit.path.insert(0, name)
            raise
    return trees


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError as error:  # more than sys.get_int_max_str_digits()
        raise _UnfitError(str(error)) from None


def _unbounded(value: float) -> dict[str, str]:
    if isnan(value):
        raise _UnfitError("NaN is equal to nothing, itself included")
    return {"$float": repr(value)}


def _unfit(value: object) -> str:
    name = type(value).__qualname__
    base = next((base.__name__ for base in type(value).__mro__[1:] if base in _KNOWN), None)
    if base is not None:
        return f"{name} would come back as {base}: convert it, or register it with register_state_type"
    return f"{name} cannot be kept: convert it, or register it with register_state_type"


def _decimal(value: Decimal, _depth: int) -> dict[str, str]:
    if value.is_nan():
        raise _UnfitError("NaN is equal to nothing, itself included")
    return {"$decimal": str(value)}


def _is_named(zone: Any) -> bool:  # noqa: ANN401 - any time zone
    # Whoever has one has loaded the module; it is large, and few need it.
    module = sys.modules.get("zoneinfo")
    return module is not None and type(zone) is module.ZoneInfo and zone.key is not None


def _is_of_its_name(zone: Any) -> bool:  # noqa: ANN401 - a ZoneInfo
    try:
        return _zone(zone.key) is zone
    except (OSError, ValueError, LookupError):  # there is none of that name
        return False


def _zone(key: str) -> tzinfo:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - as above

    return ZoneInfo(key)


def _is_pydantic(zone: tzinfo) -> bool:
    # What pydantic gives to the moments that it reads: an offset, which comes back as a datetime.timezone.
    return type(zone).__name__ == "TzInfo" and type(zone).__module__.startswith("pydantic_core")


def _moment(tag: str) -> Callable[[Any, int], dict[str, Any]]:
    def write(value: datetime | time, _depth: int) -> dict[str, Any]:
        zone = value.tzinfo
        if _is_named(zone):
            if not _is_of_its_name(zone):
                raise _UnfitError(
                    "the ZoneInfo is not the one that its name stands for, so it would come back as another"
                )
            return {tag: [value.replace(tzinfo=None).isoformat(), cast("Any", zone).key, value.fold]}
        if zone is not None and type(zone) is not timezone and not _is_pydantic(zone):
            reason = f"the time zone {type(zone).__qualname__} cannot be kept: use zoneinfo or datetime.timezone"
            raise _UnfitError(reason)
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

_KNOWN: Final = frozenset({*_ATOMS, int, float, dict, list, *_WRITERS}) - {object}


# From trees.


def _value(tree: Any) -> Any:  # noqa: ANN401 - any tree
    kind: Any = type(tree)  # pyright: ignore[reportUnknownVariableType]  # as above
    if kind is list:
        return [item if type(item) in _ATOMS else _value(item) for item in tree]
    if kind is not dict:
        return tree
    if len(tree) == 1:
        name = next(iter(tree))
        if name[:1] == "$":
            return {name[1:]: _value(tree[name])} if name[:2] == "$$" else _tagged(name, tree[name])
    return _members(tree)


def _members(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: item if type(item) in _ATOMS else _value(item) for name, item in tree.items()}


def _content(payload: Any) -> Any:  # noqa: ANN401 - what stands behind a tag is never taken for one
    if type(payload) is not dict or payload.keys() == {"$int"}:  # the latter for a Flag of more than 64 bits
        return _value(payload)
    return _members(cast("dict[str, Any]", payload))


def _tagged(tag: str, payload: Any) -> Any:  # noqa: ANN401 - any value
    reader = _READERS.get(tag)
    if reader is not None:
        if type(payload) not in _SHAPES.get(tag, _TEXT):
            raise _UnreadableError(_MALFORMED)
        return reader(payload)
    match = _TYPE_TAG.fullmatch(tag)
    if match is None:
        reason = f"it holds the tag {_short(tag)}, which this version does not know"
        raise _UnreadableError(reason)
    name, version = match[1], int(match[2])
    registered = BY_NAME.get(name)
    if registered is None:
        reason = f"it holds a {name!r}: register that type at start-up, with register_state_type"
        raise _UnreadableError(reason)
    content = _content(payload)
    if version != registered.version:
        if version > registered.version or registered.upgrade is None:
            raise _UnreadableError(
                f"it holds version {version} of {name!r}, and version {registered.version} is registered here"
                + ("" if version > registered.version else ", without upgrade=")
            )
        content = dict(registered.upgrade(content, version))
    try:
        return registered.put_together(content)
    except LookupError as error:
        reason = f"it holds a {name!r} that does not fit: {error.args[0] if error.args else error}"
        raise _UnreadableError(reason) from error


_TYPE_TAG: Final = re.compile(r"\$([A-Za-z_][A-Za-z0-9_.\-]*)@([0-9]{1,9})")


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
        return moment.replace(tzinfo=moment.tzinfo if zone is None else _zone(cast("str", zone)), fold=fold)

    return read


_MALFORMED: Final = "what stands behind a tag is not what that tag is for"
_SECOND: Final = 1_000_000  # microseconds
_TEXT: Final[tuple[type, ...]] = (str,)
_SHAPES: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(["$tuple", "$set", "$frozenset", "$dict", "$timedelta"], (list,)),
    **dict.fromkeys(["$datetime", "$time"], (str, list)),
}


def _read_pairs(payload: list[Any]) -> dict[Any, Any]:
    if any(type(pair) is not list for pair in payload):
        raise _UnreadableError(_MALFORMED)
    return {_value(key): _value(item) for key, item in payload}


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
    "$tuple": lambda payload: tuple(_value(payload)),
    "$set": lambda payload: set(_value(payload)),
    "$frozenset": lambda payload: frozenset(_value(payload)),
    "$dict": _read_pairs,
    "$bytes": lambda payload: b64decode(payload, validate=True),
    "$datetime": _read_moment(datetime),
    "$time": _read_moment(time),
    "$date": date.fromisoformat,
    "$timedelta": _read_timedelta,
    "$decimal": _read_decimal,
    "$uuid": UUID,
}
