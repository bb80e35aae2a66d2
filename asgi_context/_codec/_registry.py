"""Types of the user's that states can keep, by names that stand in what is stored.

Nothing is imported, and nothing of the user's is called, because a stored value says so: a name only finds what was
registered under it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum, Flag
from threading import Lock
from typing import Any, Final, NamedTuple, TypeVar, cast

_T = TypeVar("_T")

Upgrade = Callable[[dict[str, Any], int], Mapping[str, Any]]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,99}")


class Registered(NamedTuple):
    """A type and how it is taken apart and put together."""

    kind: type
    name: str
    version: int
    upgrade: Upgrade | None
    take_apart: Callable[[Any], object]
    put_together: Callable[[Any], object]

    @property
    def tag(self) -> str:
        """What stands in the text."""
        return f"${self.name}@{self.version}"


BY_TYPE: Final[dict[object, Registered]] = {}
BY_NAME: Final[dict[str, Registered]] = {}
_lock: Final = Lock()


def register_state_type(kind: type[_T], /, *, name: str, version: int = 1, upgrade: Upgrade | None = None) -> type[_T]:
    """Let states keep values of a type: a dataclass, an enum or a pydantic model.

    At start-up, in every process that reads such values. The name stands in what is stored, so the class can be renamed
    and moved. Fields are kept as they are, without calling ``__init__`` or a validator when they come back; what they
    hold must be a value that states can keep. Exactly this class is meant, not its subclasses.

    Args:
        kind: the class.
        name: its name in what is stored, of letters, digits, ``_``, ``.`` and ``-``.
        version: raised when the fields change in a way that older values do not fit.
        upgrade: takes the fields of an older value and its version, and returns fields that fit; without one, an older
            value is an error when it is read.

    Returns:
        The class, so that this can decorate it with ``functools.partial``.

    Raises:
        TypeError: it is no such class, or an argument is of the wrong type.
        ValueError: the name or the version cannot be, or the name is taken by another class, or the class by another
            name.
    """
    if not isinstance(kind, type):
        message = f"register_state_type takes a class, not {kind!r}"
        raise TypeError(message)
    if type(name) is not str or _NAME.fullmatch(name) is None:
        message = f"name must be 1 to 100 letters, digits, '_', '.' and '-', not starting with a digit: not {name!r}"
        raise ValueError(message)
    if type(version) is not int or version < 1:
        message = f"version must be an int from 1 on, not {version!r}"
        raise ValueError(message)
    if upgrade is not None and not callable(upgrade):
        message = f"upgrade must be callable, not {type(upgrade).__qualname__}"
        raise TypeError(message)
    take_apart, put_together = _ways(kind)
    entry = Registered(kind, name, version, upgrade, take_apart, put_together)
    with _lock:
        by_type, by_name = BY_TYPE.get(kind), BY_NAME.get(name)
        if by_type is not None and by_type.name != name:
            message = f"{kind.__qualname__} is registered already, under the name {by_type.name!r}"
            raise ValueError(message)
        if by_name is not None and by_name.kind is not kind:
            message = f"the name {name!r} is taken by {by_name.kind.__qualname__}"
            raise ValueError(message)
        BY_TYPE[kind] = BY_NAME[name] = entry
    return kind


def _ways(kind: Any) -> tuple[Callable[[Any], object], Callable[[Any], object]]:  # noqa: ANN401 - any class
    if issubclass(kind, Flag):
        return lambda member: member.value, kind
    if issubclass(kind, Enum):
        return lambda member: member.name, kind.__getitem__
    if is_dataclass(kind):
        return _dataclass_ways(cast("type", kind))
    if hasattr(kind, "model_fields") and hasattr(kind, "model_construct"):
        return _model_ways(kind)
    message = f"states keep dataclasses, enums and pydantic models, and {kind.__qualname__} is none of these"
    raise TypeError(message)


def _dataclass_ways(kind: type) -> tuple[Callable[[Any], object], Callable[[Any], object]]:
    declared = {field.name: field for field in fields(kind)}

    def take_apart(value: object) -> dict[str, object]:
        return {name: getattr(value, name) for name in declared}

    def put_together(kept: dict[str, object]) -> object:
        _refuse_unknown(kept, declared)
        value: object = cast("Any", kind).__new__(kind)
        for name, field in declared.items():
            # Past __init__ and past what freezes it: the value is to be what it was.
            object.__setattr__(value, name, kept[name] if name in kept else _default(field))
        return value

    return take_apart, put_together


def _default(field: "Field[Any]") -> object:
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    raise _missing(field.name)


def _missing(name: str) -> LookupError:
    return LookupError(f"the field {name!r} is missing, and has no default")


def _model_ways(kind: Any) -> tuple[Callable[[Any], object], Callable[[Any], object]]:  # noqa: ANN401 - a class of pydantic's
    declared = kind.model_fields

    # By the methods that pickle and copy use, which leave the model as it is: validating once more could change it.
    def take_apart(value: Any) -> dict[str, object]:  # noqa: ANN401 - a model of pydantic's
        state = value.__getstate__()
        kept = dict(state["__dict__"])
        if state["__pydantic_fields_set__"] != kept.keys():
            kept[_SET] = sorted(state["__pydantic_fields_set__"])
        for part in _MORE:
            if state[f"__pydantic_{part}__"]:
                kept[f"${part}"] = state[f"__pydantic_{part}__"]
        return kept

    def put_together(kept: dict[str, Any]) -> object:
        more = {part: kept.pop(f"${part}", None) for part in _MORE}
        is_set = set(kept.pop(_SET, kept))
        _refuse_unknown(kept, declared)
        for name, field in declared.items():
            if name not in kept:
                if field.is_required():
                    raise _missing(name)
                kept[name] = field.get_default(call_default_factory=True)
        value = kind.__new__(kind)
        value.__setstate__({
            "__dict__": kept,
            "__pydantic_fields_set__": is_set,
            **{f"__pydantic_{part}__": content for part, content in more.items()},
        })
        return value

    return take_apart, put_together


_SET: Final = "$set"  # no name of a field begins like this
_MORE: Final = ("extra", "private")


def _refuse_unknown(kept: Mapping[str, object], declared: Mapping[str, object]) -> None:
    for name in kept:
        if name not in declared:
            message = f"it has no field {name!r}"
            raise LookupError(message)
