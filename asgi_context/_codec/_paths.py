"""Where in a value something is, for errors."""

from collections.abc import Iterable
from typing import Final

_LONGEST_STEP: Final = 60  # characters of a name


def path_to(field: str, inside: Iterable[object] = ()) -> str:
    """Tell the way to a value.

    Args:
        field: name of the field that it stands in.
        inside: the steps from there: names of members, and indices.

    Returns:
        Such as ``"field 'cart'['items'][2]"``.
    """
    return f"field {short(field)}" + "".join(f"[{short(step)}]" for step in inside)


def short(step: object) -> str:
    """Tell one step, cut where it is long.

    Args:
        step: a name or an index.

    Returns:
        Its repr.
    """
    shown = repr(step)
    return shown if len(shown) <= _LONGEST_STEP else f"{shown[:_LONGEST_STEP]}..."
