"""Types at the two boundaries that belong to others: ASGI, and stores.

Source of the ASGI types, loose on purpose: ASGI specification 3.0, "Applications" and "Connection Scope".
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from enum import Enum
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

Space: TypeAlias = tuple[str, str | None]
"""Whose states: tenant and user, or tenant and ``None`` for the states of the whole tenant."""


class Keep(Enum):
    """The type of ``KEEP``."""

    KEEP = "KEEP"


KEEP: Final = Keep.KEEP
"""As ``ttl=``: keep what time to live a state has; a new one gets the store's default."""

Ttl: TypeAlias = float | Keep | None
"""Time to live, in seconds from now; ``None`` for no limit."""


@runtime_checkable
class Store(Protocol):
    """Where states are kept. It moves bytes; what they mean is decided above it.

    A state is a hash of fields, in the `Space` of one tenant and user. Every method is atomic, but for ``erase``. A
    state without fields does not exist, and neither does one whose time to live is over. A store that cannot answer
    raises `StateUnavailableError`, one that refuses a write by its limits `StateLimitError`.

    A store may have ``open`` and ``close`` (plain or coroutine functions), which go with the app's lifespan. With a
    true attribute ``immediate`` its coroutines, but for ``erase``, never wait, and are run on the spot where code
    blocks. An attribute ``deadline`` says after how many seconds blocking calls give up, in place of 30.
    """

    async def merge(self, space: Space, state: str, fields: Mapping[str, bytes], ttl: Ttl, /) -> bool:
        """Set fields of a state, which is made where there is none; say whether this call made it."""
        ...

    async def replace(self, space: Space, state: str, fields: Mapping[str, bytes], ttl: Ttl, /) -> bool:
        """Set the fields of a state and remove all others; say whether this call made it."""
        ...

    async def read(self, space: Space, state: str, /) -> Mapping[str, bytes] | None:
        """Give all fields of a state, or ``None`` where there is none."""
        ...

    async def read_field(self, space: Space, state: str, field: str, /) -> bytes | None:
        """Give one field of a state, or ``None`` where there is none."""
        ...

    async def read_version(self, space: Space, state: str, /) -> tuple[Mapping[str, bytes] | None, bytes]:
        """Give all fields of a state, or ``None``, and what tells this version of it from others."""
        ...

    async def replace_version(self, space: Space, state: str, fields: Mapping[str, bytes], version: bytes, /) -> bool:
        """Set the fields of a state if it still has that version, and keep its time to live; say whether it had.

        Without fields, the state is removed.
        """
        ...

    async def increment(self, space: Space, state: str, field: str, by: float, /) -> float:
        """Add to a number and give the sum; the state and the field are made where there are none, from 0.

        A number is the JSON text of an int without point and exponent, or of a float with one of them. Ints are 64 bits
        with sign, floats IEEE doubles, and the sum is a float where either is. Raises `StateNumberError`.
        """
        ...

    async def remove_field(self, space: Space, state: str, field: str, /) -> int:
        """Remove a field of a state; say how many were removed."""
        ...

    async def remove(self, space: Space, state: str, /) -> int:
        """Remove a state; say how many were removed."""
        ...

    async def exists(self, space: Space, state: str, /) -> bool:
        """Say whether there is such a state."""
        ...

    async def names(self, space: Space, /) -> list[str]:
        """Give the names of the space's states, in any order. The cost does not depend on other spaces."""
        ...

    async def clear(self, space: Space, /) -> int:
        """Remove all states of the space; say how many were removed."""
        ...

    async def touch(self, space: Space, state: str, ttl: float | None, /) -> bool:
        """Set the time to live of a state; say whether there is one."""
        ...

    async def remaining(self, space: Space, state: str, /) -> float | None:
        """Give the seconds that a state has to live, infinity without limit; ``None`` where there is no such state."""
        ...

    async def erase(self, tenant: str, /) -> int:
        """Remove everything of a tenant, in bounded steps; say how many states were removed."""
        ...

    async def count(self, space: Space, counter: str, by: int, window: float, /) -> tuple[int, float]:
        """Add to a counter, and give the sum and the seconds after which it begins at 0 again.

        Counters are in a key space of their own. The window begins with the first count.
        """
        ...

    async def acquire(self, space: Space, lease: str, holder: str, most: int, ttl: float, /) -> bool:
        """Take, or renew, one of a number of leases; say whether it was to be had.

        Leases are in a key space of their own. One that is neither renewed nor released ends after ``ttl`` seconds.
        """
        ...

    async def release(self, space: Space, lease: str, holder: str, /) -> bool:
        """Give a lease back; say whether it was held."""
        ...


def check_store(store: object) -> None:
    """Check what stands where a store must.

    Args:
        store: what was given.

    Raises:
        TypeError: it is no store, or a class where an instance is meant.
    """
    if isinstance(store, type) or not isinstance(store, Store):
        message = f"store must be a Store such as MemoryStore(), not {store!r}"
        raise TypeError(message)
