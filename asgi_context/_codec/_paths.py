"""What errors say of where a value stands."""

from collections.abc import Iterable

from asgi_context._shown import short


class UnfitError(Exception):
    """A value cannot be kept, or what is stored is no such value.

    Args:
        reason: why, in words, without the value.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[object] = []  # filled in on the way up, from the inside out


def path_to(field: str, inside: Iterable[object] = ()) -> str:
    """Tell the way to a value.

    Args:
        field: name of the field that it stands in.
        inside: the steps from there: names of members, keys, and indices.

    Returns:
        Such as ``"field 'cart'['items'][2]"``.
    """
    return f"field {short(field)}" + "".join(f"[{short(step)}]" for step in inside)
