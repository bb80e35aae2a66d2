"""Types of the user's that states can keep, by names that stand in what is stored.

Nothing is imported, and nothing of the user's is called, because a stored value says so: a name only finds what was
registered under it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum, Flag
from functools import cached_property, partial
from threading import Lock
from typing import Any, Final, NamedTuple, TypeVar, cast

from asgi_context._codec._paths import short

_T = TypeVar("_T")

Upgrade = Callable[[dict[str, Any], int], Mapping[str, Any]]

_LAST_VERSION: Final = 999_999_999
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
    if type(version) is not int or not 1 <= version <= _LAST_VERSION:
        message = f"version must be an int from 1 on, with 9 digits at most, not {version!r}"
        raise ValueError(message)
    if upgrade is not None and not callable(upgrade):
        message = f"upgrade must be callable, not {type(upgrade).__qualname__}"
        raise TypeError(message)
    take_apart, put_together = _ways(kind, upgrade)
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


def can_be_registered(kind: Any) -> bool:  # noqa: ANN401 - any class
    """Say whether `register_state_type` takes a class.

    Args:
        kind: any class.

    Returns:
        Whether it does.
    """
    if is_dataclass(kind):
        return not issubclass(cast("type", kind), _HOLDERS)
    return issubclass(kind, Enum) or _is_model(kind)


def _is_model(kind: object) -> bool:
    return hasattr(kind, "model_fields") and hasattr(kind, "model_construct")


def _ways(kind: Any, upgrade: object) -> tuple[Callable[[Any], object], Callable[[Any], object]]:  # noqa: ANN401 - any class
    if issubclass(kind, Enum):
        if upgrade is not None:
            raise TypeError("upgrade is for types with fields, and an enum has none")
        if issubclass(kind, Flag):
            return _value_of, kind
        # By what stands behind `name` and `kind[...]`, which a class may have made something else.
        return _name_of, partial(_member, kind._member_map_)
    if is_dataclass(kind):
        if issubclass(cast("type", kind), _HOLDERS):
            message = f"{kind!r} holds more than its fields, so it would not come back as it was"
            raise TypeError(message)
        return _dataclass_ways(cast("type", kind))
    if _is_model(kind):
        model = _Model(kind)
        return model.take_apart, model.put_together
    message = f"states keep dataclasses, enums and pydantic models, and {kind.__qualname__} is none of these"
    raise TypeError(message)


_HOLDERS: Final = (list, dict, set, frozenset, tuple, str, bytes, int, float, BaseException)


def _value_of(member: Any) -> object:  # noqa: ANN401 - of an enum
    value: object = member._value_
    return value


def _name_of(member: Any) -> object:  # noqa: ANN401 - of an enum
    name: object = member._name_
    return name


def _member(members: Mapping[str, object], name: object) -> object:
    if type(name) is not str or name not in members:
        message = f"it has no member {short(name)}"
        raise LookupError(message)
    return members[name]


def _dataclass_ways(kind: type) -> tuple[Callable[[Any], object], Callable[[Any], object]]:
    declared = {field.name: field for field in fields(kind)}

    def take_apart(value: object) -> dict[str, object]:
        for name in getattr(value, "__dict__", ()):
            if name not in declared:
                raise _unknown(name)
        try:
            return {name: getattr(value, name) for name in declared}
        except AttributeError as error:
            raise _unset(str(error.name)) from None

    def put_together(kept: dict[str, object]) -> object:
        if type(kept) is not dict:
            raise LookupError(_NO_FIELDS)
        _refuse_unknown(kept, declared)
        value = cast("object", object.__new__(kind))
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


def _unset(name: str) -> LookupError:
    return LookupError(f"its field {name!r} is not set")


def _unknown(name: str) -> LookupError:
    return LookupError(f"it has no field {name!r}")


def _missing(name: str) -> LookupError:
    return LookupError(f"the field {name!r} is missing, and has no default")


class _Model:
    """How models of pydantic's are taken apart and put together.

    By the methods that pickle and copy use, which leave a model as it is: validating it once more could change it.
    """

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 - a class of pydantic's
        if kind.__pydantic_root_model__:
            raise TypeError("a RootModel cannot be kept: keep what it holds")
        self._kind = kind
        self._declared = kind.model_fields
        # Where a model has a place for these, it is a dictionary, and else there must be none.
        self._parts = {"extra": kind.model_config.get("extra") == "allow", "private": bool(kind.__private_attributes__)}

    def take_apart(self, value: Any) -> dict[str, object]:  # noqa: ANN401 - a model
        state = value.__getstate__()
        kept: dict[str, object] = {}
        for name, item in state["__dict__"].items():
            if name in self._declared:
                kept[name] = item
            elif not isinstance(getattr(self._kind, name, None), cached_property):  # made again when it is asked for
                raise _unknown(name)
        for name in self._declared:
            if name not in kept:
                raise _unset(name)
        if state["__pydantic_fields_set__"] != kept.keys():
            kept[_SET] = sorted(state["__pydantic_fields_set__"])
        for part in self._parts:
            if state[f"__pydantic_{part}__"]:
                kept[f"${part}"] = state[f"__pydantic_{part}__"]
        return kept

    def put_together(self, kept: dict[str, Any]) -> object:
        parts = {part: kept.pop(f"${part}", {} if has else None) for part, has in self._parts.items()}
        is_set = kept.pop(_SET, None)
        if is_set is None:
            is_set = list(kept)
        if any(type(parts[part]) is not (dict if has else type(None)) for part, has in self._parts.items()):
            raise LookupError(_NO_FIELDS)
        if type(is_set) is not list or any(type(name) is not str for name in cast("list[object]", is_set)):
            raise LookupError(_NO_FIELDS)
        _refuse_unknown(kept, self._declared)
        for name, field in self._declared.items():
            if name not in kept:
                if field.is_required():
                    raise _missing(name)
                kept[name] = field.get_default(call_default_factory=True, validated_data=kept)
        value = self._kind.__new__(self._kind)
        value.__setstate__({
            "__dict__": kept,
            "__pydantic_fields_set__": set(cast("list[str]", is_set)),
            **{f"__pydantic_{part}__": content for part, content in parts.items()},
        })
        return value


_SET: Final = "$set"  # no name of a field begins like this
_NO_FIELDS: Final = "what is stored are not its fields"


def _refuse_unknown(kept: Mapping[str, object], declared: Mapping[str, object]) -> None:
    for name in kept:
        if name not in declared:
            raise _unknown(name)
