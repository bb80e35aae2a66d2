"""Where something stands in a document: written out for errors alone, since each text has a place, however deep."""

import re
from typing import Final, TypeAlias

from asgi_context._shown import short

Place: TypeAlias = tuple[object, ...]
"""The keys and indices that lead there."""

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,59}").fullmatch


def tell(place: Place) -> str:
    """Tell a place.

    Args:
        place: the keys and indices that lead there.

    Returns:
        Such as ``"servers[2].url"``.
    """
    told = ""
    for step in place:
        if type(step) is str and _PLAIN(step):
            told += f".{step}" if told else step
        else:
            told += f"[{short(step)}]"
    return told or "the document"
