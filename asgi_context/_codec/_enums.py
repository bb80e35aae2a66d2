"""How members of enums are taken apart and put together."""

from collections.abc import Mapping
from enum import KEEP, Flag
from typing import Any

from asgi_context._codec._attributes import Renew
from asgi_context._codec._paths import UnfitError
from asgi_context._shown import short


class Names:
    """An enum, whose members are known by their names.

    Args:
        kind: the class.
    """

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 - an enum
        # What stands behind `name` and `kind[...]`, which a class may have made something else.
        self._members: Mapping[str, object] = kind._member_map_

    def take_apart(self, member: Any) -> object:  # noqa: ANN401 - of an enum
        """Give the name of a member.

        Args:
            member: of exactly this class.

        Returns:
            Its name.
        """
        name: object = member._name_
        return name

    def put_together(self, name: object, _renew: Renew | None) -> object:
        """Find a member.

        Args:
            name: its name.

        Returns:
            The member.

        Raises:
            UnfitError: there is none of that name.
        """
        if type(name) is not str or name not in self._members:
            reason = f"it has no member {short(name)}"
            raise UnfitError(reason)
        return self._members[name]


class Flags:
    """A flag, whose members can be several at once: they are known by their values.

    Args:
        kind: the class.
    """

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 - a flag
        self._kind: type[Flag] = kind
        self._named = {member._value_ for member in kind._member_map_.values() if isinstance(member._value_, int)}
        self._others: int = ~0 if kind._boundary_ is KEEP else kind._flag_mask_

    def take_apart(self, member: Any) -> object:  # noqa: ANN401 - of a flag
        """Give the value of a member.

        Args:
            member: of exactly this class.

        Returns:
            An int.

        Raises:
            UnfitError: its value is none that comes back.
        """
        value: object = member._value_
        self._refuse_other(value)
        return value

    def put_together(self, value: Any, _renew: Renew | None) -> object:  # noqa: ANN401 - what is stored
        """Find a member.

        Args:
            value: its value.

        Returns:
            The member.

        Raises:
            UnfitError: there is none of that value.
        """
        self._refuse_other(value)  # before the class is called: it may have a `_missing_` of the user's
        return self._kind(value)

    def _refuse_other(self, value: object) -> None:
        if not isinstance(value, int) or not (value in self._named or (value >= 0 and not value & ~self._others)):
            raise UnfitError("it has no member of that value")
