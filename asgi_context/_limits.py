"""How much a store may hold, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from asgi_context.errors import StateLimitError

_LONGEST: Final = 10_000_000_000  # seconds; some 300 years, which every store can tell from never


@dataclass(frozen=True, slots=True)
class StateLimits:
    """How much a store may hold. A write that would go beyond is refused; nobody's states are ever evicted.

    What has ended does not count any more; for ``states`` and ``total_bytes``, from the next whole second on.

    Args:
        value_bytes: the longest value, in bytes of its text.
        fields: how many fields a state may have.
        user_states: how many states one user may have, and how many a tenant may have of its own.
        states: how many states there may be in all; ``None`` for no limit.
        total_bytes: how many bytes the texts of all states may have, with their names; ``None`` for no limit.

    Raises:
        TypeError: a limit is no int.
        ValueError: a limit is less than 1.
    """

    value_bytes: int = 1_000_000
    fields: int = 10_000
    user_states: int = 100_000
    states: int | None = None
    total_bytes: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            most = getattr(self, field.name)
            if most is None and field.default is None:
                continue
            if type(most) is not int:
                message = f"StateLimits: {field.name} must be an int, not {type(most).__qualname__}"
                raise TypeError(message)
            if most < 1:
                message = f"StateLimits: {field.name} must be at least 1, not {most}"
                raise ValueError(message)

    def check_values(self, texts: Mapping[str, bytes]) -> None:
        """Check the lengths of values.

        Args:
            texts: texts by field.

        Raises:
            StateLimitError: one is too long.
        """
        for text in texts.values():
            if len(text) > self.value_bytes:
                raise StateLimitError("value_bytes", self.value_bytes)


def check_ttl(ttl: object, option: str) -> None:
    """Check a time to live.

    Args:
        ttl: what was given.
        option: what to call it in an error.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive and finite.
    """
    if type(ttl) is not float and (isinstance(ttl, bool) or not isinstance(ttl, int | float)):
        message = f"{option} must be a number of seconds, not {type(ttl).__qualname__}"
        raise TypeError(message)
    if not 0 < ttl <= _LONGEST:
        message = f"{option} must be more than 0 seconds, and at most {_LONGEST}; None is for no limit"
        raise ValueError(message)
