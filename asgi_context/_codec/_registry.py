"""Types of the user's that states can keep, by names that stand in what is stored.

Nothing is imported, and nothing of the user's is called, because a stored value says so: a name only finds what was
registered under it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import Enum, Flag
from threading import Lock
from typing import Any, Final, NamedTuple, TypeVar, cast

from asgi_context._codec._attributes import Renew, is_plain
from asgi_context._codec._dataclasses import Dataclass
from asgi_context._codec._enums import Flags, Names
from asgi_context._codec._models import Model

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
    put_together: Callable[[Any, Renew | None], object]

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
            value is an error when it is read. Of a pydantic model, it is given the fields alone: extra fields stay as
            they are, private attributes that are new get their defaults, and those that are gone are left out.

    Returns:
        The class, so that this can decorate it with ``functools.partial``.

    Raises:
        TypeError: it is no such class, or an argument is of the wrong type.
        ValueError: the name or the version cannot be, or the name is taken by another class, or the class by another
            name.

    Example:
        >>> from dataclasses import dataclass
        >>> from functools import partial
        >>> from asgi_context import register_state_type
        >>> def upgrade(fields, version):
        ...     return {**fields, "count": 1}
        >>> @partial(register_state_type, name="docs.line", version=2, upgrade=upgrade)
        ... @dataclass
        ... class Line:
        ...     item: str
        ...     count: int
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
    ways = _ways(kind, upgrade)
    entry = Registered(kind, name, version, upgrade, ways.take_apart, ways.put_together)
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
        return is_plain(cast("type", kind))
    return issubclass(kind, Enum) or _is_model(kind)


def _is_model(kind: object) -> bool:
    return hasattr(kind, "model_fields") and hasattr(kind, "model_construct")


def _ways(kind: Any, upgrade: object) -> Dataclass | Flags | Model | Names:  # noqa: ANN401 - any class
    if issubclass(kind, Enum):
        if upgrade is not None:
            raise TypeError("upgrade is for types with fields, and an enum has none")
        return Flags(kind) if issubclass(kind, Flag) else Names(kind)
    if is_dataclass(kind):
        return Dataclass(kind)
    if _is_model(kind):
        return Model(kind)
    message = f"states keep dataclasses, enums and pydantic models, and {kind.__qualname__} is none of these"
    raise TypeError(message)
