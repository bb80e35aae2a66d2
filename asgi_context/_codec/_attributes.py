"""What a class says of the attributes of its instances, and how an error calls those that do not fit."""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import BuiltinFunctionType, MemberDescriptorType
from typing import Any, Final, TypeVar

from asgi_context._codec._paths import UnfitError
from asgi_context._shown import short, type_name

_T = TypeVar("_T")

Renew = Callable[[dict[str, Any]], dict[str, Any]]
"""From the fields of an older version to those of today's."""

NO_FIELDS: Final = "what is stored are not its fields"


def is_plain(kind: type) -> bool:
    """Say whether instances of a class hold nothing but attributes.

    Args:
        kind: any class.

    Returns:
        Whether ``object.__new__`` makes them. It is not tried: what it makes would run the class's ``__del__``.
    """
    base: Any = kind
    while not isinstance(base.__dict__.get("__new__"), BuiltinFunctionType):
        base = base.__base__
    new: object = base.__dict__["__new__"]
    return new is object.__new__


def is_made_again(kind: type, name: str) -> bool:
    """Say whether an attribute need not be kept.

    Args:
        kind: the class.
        name: of an attribute in the dictionary of an instance.

    Returns:
        Whether it comes by itself: what is computed when it is asked for, and what ``Box[int](1)`` notes of ``int``.
    """
    return name == "__orig_class__" or isinstance(getattr(kind, name, None), cached_property)


def other_slots(kind: type, declared: Iterable[str]) -> dict[str, Any]:
    """Find the slots that are no fields.

    Args:
        kind: the class.
        declared: names of its fields.

    Returns:
        Members of it and its bases, by name.
    """
    own = {*declared, "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"}
    return {
        name: slot
        for base in kind.__mro__
        for name, slot in vars(base).items()
        if name not in own and isinstance(slot, MemberDescriptorType)
    }


def refuse_set(value: object, slots: Mapping[str, Any]) -> None:
    """Refuse a value with a slot that holds something.

    Args:
        value: an instance.
        slots: of its class, as `other_slots` found them.

    Raises:
        UnfitError: it has.
    """
    for name, slot in slots.items():
        try:
            slot.__get__(value)
        except AttributeError:
            continue
        raise unknown(name)


def refuse_unknown(kept: Iterable[object], declared: Mapping[str, object]) -> None:
    """Refuse names that are no fields.

    Args:
        kept: names.
        declared: fields by name.

    Raises:
        UnfitError: there is one.
    """
    for name in kept:
        if name not in declared:
            raise unknown(name)


def made(name: str, make: Callable[[], _T]) -> _T:
    """Make a default.

    Args:
        name: of the field that it is for.
        make: code of the user's.

    Returns:
        What it returns.

    Raises:
        UnfitError: it raised; what it said may quote other fields.
    """
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises
        reason = f"the default of the field {short(name)} raised {type_name(error)}"
        raise UnfitError(reason) from None


def unset(name: str) -> UnfitError:
    """Say that a field has no value."""
    return UnfitError(f"its field {short(name)} is not set")


def unknown(name: object) -> UnfitError:
    """Say that a class has no such field."""
    return UnfitError(f"it has no field {short(name)}")


def missing(name: str) -> UnfitError:
    """Say that a field is not in what is stored."""
    return UnfitError(f"the field {short(name)} is missing, and has no default")
