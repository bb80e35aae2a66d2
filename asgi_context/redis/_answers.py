"""Fields and scores, as the protocol has them: in one list, or in protocol 3 in a map or in pairs."""

from collections.abc import Mapping
from typing import Any, cast

from asgi_context.redis._commands import Answer


def flat(fields: Mapping[str, bytes]) -> list[str | bytes]:
    """Write fields as arguments.

    Args:
        fields: texts by name.

    Returns:
        Names and texts in turns.
    """
    return [part for pair in fields.items() for part in pair]


def fields_of(answer: Answer) -> dict[str, bytes]:
    """Read fields.

    Args:
        answer: what the server says.

    Returns:
        Texts by name.
    """
    if isinstance(answer, dict):
        return {name.decode(): text for name, text in cast("dict[bytes, bytes]", answer).items()}
    parts = iter(cast("list[bytes]", answer))
    return {name.decode(): text for name, text in zip(parts, parts, strict=True)}


def scores_of(answer: Answer) -> dict[bytes, float]:
    """Read members of a sorted set with their scores.

    Args:
        answer: what the server says.

    Returns:
        Scores by member.
    """
    parts = cast("list[Any]", answer)
    pairs = parts if parts and isinstance(parts[0], list) else zip(parts[::2], parts[1::2], strict=True)
    return {member: float(score) for member, score in pairs}
