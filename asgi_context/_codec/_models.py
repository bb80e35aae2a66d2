"""How models of pydantic's are taken apart and put together.

By the methods that pickle and copy use, which leave a model as it is: validating it once more could change it.
"""

import sys
from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from typing import Any, Final, cast

from asgi_context._codec._attributes import (
    NO_FIELDS,
    Renew,
    is_made_again,
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

# What a model holds besides its fields. No name of a field begins like this.
_SET: Final = "$set"  # names of the fields and extras that were set; left out where they are the fields
_EXTRA: Final = "$extra"
_PRIVATE: Final = "$private"


class Model:
    """A class of pydantic's.

    Args:
        kind: the class.

    Raises:
        TypeError: its instances would not come back as they were.
    """

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 - a class of pydantic's
        if kind.__pydantic_root_model__:
            raise TypeError("a RootModel cannot be kept: keep what it holds")
        self._kind = kind
        self._declared: dict[str, Any] = kind.model_fields
        for name in self._declared:
            if name[:1] == "$":
                message = f"{kind!r} cannot be kept: the name of its field {short(name)} begins with '$'"
                raise TypeError(message)
        self._private: dict[str, Any] = kind.__private_attributes__
        self._is_open: bool = kind.model_config.get("extra") == "allow"
        self._slots = other_slots(kind, self._declared)

    def take_apart(self, value: Any) -> dict[str, object]:  # noqa: ANN401 - a model
        """Give the fields of a model, and what else it holds.

        Args:
            value: an instance of exactly this class.

        Returns:
            Values by field, and the other parts by their names.

        Raises:
            UnfitError: it holds something that the class has no place for, or lacks a field.
        """
        state = value.__getstate__()
        extra: dict[str, object] = state["__pydantic_extra__"] or {}
        private: dict[str, object] = state["__pydantic_private__"] or {}
        kept = self._fields_of(state["__dict__"])
        for name in extra:
            if not self._is_open or name in self._declared:
                raise unknown(name)
        refuse_unknown(private, self._private)
        refuse_set(value, self._slots)
        # An extra that was deleted is still among the names that were set.
        is_set = state["__pydantic_fields_set__"] & {*kept, *extra}
        if is_set != kept.keys():
            kept[_SET] = sorted(is_set)
        if extra:
            kept[_EXTRA] = extra
        if self._private:  # also where none is set: without it, they would be given their defaults
            kept[_PRIVATE] = private
        return kept

    def put_together(self, kept: Any, renew: Renew | None) -> object:  # noqa: ANN401 - what is stored
        """Make a model of its fields and what else it holds.

        Args:
            kept: values by field, and the other parts by their names.
            renew: where they are of an older version. It is given the fields alone.

        Returns:
            The model.

        Raises:
            UnfitError: they do not fit.
        """
        if type(kept) is not dict:
            raise UnfitError(NO_FIELDS)
        fields = cast("dict[str, Any]", kept)
        is_set: set[str] | None = _names(fields.pop(_SET, None), list)
        extra: dict[str, Any] = fields.pop(_EXTRA, {})
        private: dict[str, Any] | None = fields.pop(_PRIVATE, None)
        _names(extra, dict)
        _names(private, dict)
        if is_set is None:
            is_set = {*fields}
        refuse_unknown(is_set, {**(self._declared if renew is None else fields), **extra})
        if renew is not None:
            before = {*fields}
            fields = renew(fields)
            is_set = {name for name in (*fields, *extra) if name in is_set or name not in before}
        for name in extra.keys() & self._declared.keys():  # the class has made a field of it
            fields.setdefault(name, extra.pop(name))
        if not self._is_open:
            refuse_unknown(extra, {})
        refuse_unknown(fields, self._declared)
        self._add_defaults(fields)
        # Made past a `__new__` of the user's. A class that C makes otherwise cannot be a model as well.
        value: Any = object.__new__(self._kind)
        value.__setstate__({
            "__dict__": fields,
            "__pydantic_fields_set__": is_set,
            "__pydantic_extra__": extra if self._is_open else None,
            "__pydantic_private__": self._private_of(private, fields, was_older=renew is not None),
        })
        return value

    def _fields_of(self, attributes: dict[str, object]) -> dict[str, object]:
        kept: dict[str, object] = {}
        for name, item in attributes.items():
            if name in self._declared:
                kept[name] = item
            elif not is_made_again(self._kind, name):
                raise unknown(name)
        for name in self._declared:
            if name not in kept:
                raise unset(name)
        return kept

    def _add_defaults(self, fields: dict[str, Any]) -> None:
        for name, field in self._declared.items():
            if name not in fields:
                if field.is_required():
                    raise missing(name)
                fields[name] = made(name, partial(field.get_default, call_default_factory=True, validated_data=fields))

    def _private_of(self, kept: dict[str, Any] | None, fields: dict[str, Any], *, was_older: bool) -> object:
        if kept is not None and not was_older:
            refuse_unknown(kept, self._private)
        if not self._private:
            return None
        private = {name: item for name, item in (kept or {}).items() if name in self._private}
        if kept is None or was_older:  # the class may have been given more since
            undefined = sys.modules["pydantic_core"].PydanticUndefined
            for name in [name for name in self._private if name not in private]:
                default = made(name, partial(_default, self._private[name], {**fields, **private}))
                if default is not undefined:
                    private[name] = default
        return private


def _default(attribute: Any, before: dict[str, Any]) -> object:  # noqa: ANN401 - a private attribute
    # Not by its `get_default`, whose parameters changed.
    factory = attribute.default_factory
    if factory is None:
        return deepcopy(attribute.default)
    return factory(before) if getattr(attribute, "default_factory_takes_validated_data", False) else factory()


def _names(part: Any, kind: type) -> set[str] | None:  # noqa: ANN401 - what is stored
    if part is None:
        return None
    names = cast("Iterable[str]", part)
    if type(part) is not kind or any(type(name) is not str for name in names):
        raise UnfitError(NO_FIELDS)
    return {*names}
