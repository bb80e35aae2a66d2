"""Claims: what a proof says besides tenant and user, as a value that nobody can change."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

JSONScalar: TypeAlias = str | int | float | bool | None
FrozenJSON: TypeAlias = "JSONScalar | tuple[FrozenJSON, ...] | Claims"

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


class Claims(Mapping[str, Any]):
    """A deeply immutable JSON object: objects inside are ``Claims``, arrays are tuples.

    Its ``repr`` counts the members and shows none of them, since claims hold what must not reach a log.

    Args:
        members: the object, as a JSON parser gives it.

    Raises:
        TypeError: a member is not JSON; the message says where.
    """

    __slots__ = ("_members",)

    _members: dict[str, FrozenJSON]

    def __init__(self, members: Mapping[str, Any]) -> None:
        if not isinstance(members, Mapping):
            message = f"claims must be a mapping, not {type(members).__qualname__}"
            raise TypeError(message)
        self._members = {_name(name, "claims"): _freeze(value, f"claims[{name!r}]") for name, value in members.items()}

    def __getitem__(self, name: str, /) -> Any:  # noqa: ANN401 - JSON
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Claims):
            return self._members == other._members
        if isinstance(other, Mapping):
            return self.to_dict() == other
        return NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._members.items()))

    def __repr__(self) -> str:
        return f"<Claims: {len(self._members)} members>"

    def __reduce__(self) -> tuple[type["Claims"], tuple[dict[str, Any]]]:
        return Claims, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """Copy into plain dictionaries and lists.

        Returns:
            A new dictionary that may be changed; arrays are lists again.
        """
        return {name: _thaw(value) for name, value in self._members.items()}


NO_CLAIMS: Final = Claims({})


def _name(name: object, where: str) -> str:
    if type(name) is not str:
        message = f"{where}: the name of a member must be a str, not {type(name).__qualname__}"
        raise TypeError(message)
    return name


def _freeze(value: Any, where: str) -> FrozenJSON:  # noqa: ANN401 - whatever is claimed
    if type(value) in _SCALARS:
        return value  # type: ignore[no-any-return]  # one of _SCALARS
    if isinstance(value, Claims):
        return value
    if isinstance(value, Mapping):
        return Claims(cast("Mapping[str, Any]", value))
    if isinstance(value, list | tuple):
        items = cast("list[Any]", value)
        return tuple(_freeze(item, f"{where}[{index}]") for index, item in enumerate(items))
    message = f"{where} must be JSON (str, int, float, bool, None, list, dict), not {type(value).__qualname__}"
    raise TypeError(message)


def _thaw(value: FrozenJSON) -> object:
    if isinstance(value, Claims):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_thaw(item) for item in value]
    return value
