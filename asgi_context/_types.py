"""Types at the two boundaries that belong to others: ASGI, and stores.

Source of the ASGI types, loose on purpose: ASGI specification 3.0, "Applications" and "Connection Scope".
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

Space: TypeAlias = tuple[str, str | None]
"""Whose states: tenant and user, or tenant and ``None`` for the states of the whole tenant."""


@runtime_checkable
class Store(Protocol):
    """Where states are kept. It moves bytes; what they mean is decided above it.

    A state is a hash of fields, in the `Space` of one tenant and user. Every method is atomic. A state without fields
    does not exist.
    """

    async def merge(self, space: Space, state: str, fields: Mapping[str, bytes], /) -> bool:
        """Set fields of a state, which is made where there is none; say whether this call made it."""
        ...

    async def read(self, space: Space, state: str, /) -> Mapping[str, bytes] | None:
        """Give all fields of a state, or ``None`` where there is none."""
        ...

    async def read_field(self, space: Space, state: str, field: str, /) -> bytes | None:
        """Give one field of a state, or ``None`` where there is none."""
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
