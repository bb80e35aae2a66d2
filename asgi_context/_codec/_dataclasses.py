"""How dataclasses are taken apart and put together."""

from dataclasses import MISSING, Field, fields
from inspect import getattr_static
from types import MemberDescriptorType
from typing import Any, cast

from asgi_context._codec._attributes import (
    NO_FIELDS,
    Renew,
    is_made_again,
    is_plain,
    made,
    missing,
    other_slots,
    refuse_set,
    refuse_unknown,
    unknown,
    unset,
)
from asgi_context._codec._paths import UnfitError
from asgi_context._shown import short


class Dataclass:
    """A dataclass, whose instances are their fields.

    Args:
        kind: the class.

    Raises:
        TypeError: an instance is more than its fields, or a field is not what was assigned to it.
    """

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 - a dataclass
        if not is_plain(kind):
            message = f"{kind!r} holds more than its fields, so it would not come back as it was"
            raise TypeError(message)
        self._kind: type = kind
        self._declared = {field.name: field for field in fields(kind)}
        for name in self._declared:
            attribute: object = getattr_static(kind, name, None)
            if hasattr(type(attribute), "__set__") and not isinstance(attribute, MemberDescriptorType):
                message = f"the field {short(name)} of {kind!r} is a descriptor, so it would not come back as it was"
                raise TypeError(message)
        self._slots = other_slots(kind, self._declared)

    def take_apart(self, value: object) -> dict[str, object]:
        """Give the fields of an instance.

        Args:
            value: an instance of exactly this class.

        Returns:
            Values by field.

        Raises:
            UnfitError: it is not only its fields, or lacks one.
        """
        for name in getattr(value, "__dict__", ()):
            if name not in self._declared and not is_made_again(self._kind, name):
                raise unknown(name)
        refuse_set(value, self._slots)
        kept: dict[str, object] = {}
        for name in self._declared:
            try:
                kept[name] = getattr(value, name)
            except AttributeError:
                raise unset(name) from None
        return kept

    def put_together(self, kept: Any, renew: Renew | None) -> object:  # noqa: ANN401 - what is stored
        """Make an instance of its fields, past what freezes it: the value is to be what it was.

        Args:
            kept: values by field.
            renew: where they are of an older version.

        Returns:
            The instance.

        Raises:
            UnfitError: they do not fit.
        """
        if type(kept) is not dict:
            raise UnfitError(NO_FIELDS)
        content = cast("dict[str, object]", kept)
        if renew is not None:
            content = renew(content)
        refuse_unknown(content, self._declared)
        for name, field in self._declared.items():
            if name not in content:
                content[name] = _default(field)
        value = cast("object", object.__new__(self._kind))
        for name in self._declared:
            object.__setattr__(value, name, content[name])
        return value


def _default(field: "Field[Any]") -> object:
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return made(field.name, field.default_factory)
    raise missing(field.name)
