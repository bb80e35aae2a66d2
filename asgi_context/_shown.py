"""What errors show of a value: a name or an index, or else its type; never the value itself."""

from typing import Any, Final

_LONGEST_STEP: Final = 60  # characters of a name
_LEAST, _MOST = -(2**63), 2**63 - 1
_QUALNAME: Final[Any] = type.__dict__["__qualname__"].__get__


def short(step: object) -> str:
    """Tell one step, cut where it is long.

    Args:
        step: a name, an index, or any key of a dict.

    Returns:
        Its repr, where that is a name or an index; else, its type: a repr of the user's may show anything, or raise.
    """
    if type(step) is str:
        shown = repr(step[: _LONGEST_STEP + 1])
        return shown if len(shown) <= _LONGEST_STEP else f"{shown[:_LONGEST_STEP]}..."
    if type(step) is int and _LEAST <= step <= _MOST:
        return repr(step)
    return type_name(step)


def type_name(value: object) -> str:
    """Tell the type of a value.

    Args:
        value: any value.

    Returns:
        The qualified name of its class, also where a metaclass says otherwise, or raises.
    """
    return str.__str__(_QUALNAME(type(value)))
