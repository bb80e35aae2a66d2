"""Sums of numbers in their texts."""

import re
from math import isfinite
from typing import Final, Literal

_LEAST, _MOST = -(2**63), 2**63 - 1
_INT: Final = re.compile(rb"-?[0-9]+")
_FLOAT: Final = re.compile(rb"-?[0-9]+(\.[0-9]+)?([eE][+\-]?[0-9]+)?")


def add(text: bytes | None, by: float) -> float | Literal["type", "overflow"]:
    """Add to a number, as `Store.increment` has it.

    Args:
        text: the JSON text of an int or a float; ``None`` for 0.
        by: what to add.

    Returns:
        The sum, or why there is none.
    """
    number: float
    if text is None:
        number = 0
    elif _INT.fullmatch(text):
        number = int(text)
    elif _FLOAT.fullmatch(text):
        number = float(text)
    else:
        return "type"
    total = number + by
    if type(total) is int:
        return total if _LEAST <= total <= _MOST else "overflow"
    return total if isfinite(total) else "overflow"
