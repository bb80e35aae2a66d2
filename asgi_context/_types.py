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
    """What ``ttl=`` may be besides seconds: `KEEP`, to leave a state's time to live as it is.

    A state that is made gets the store's default then.
    """

    KEEP = "KEEP"


KEEP: Final = Keep.KEEP
"""As ``ttl=``: keep what time to live a state has; a new one gets the store's default."""

Ttl: TypeAlias = float | Keep | None
"""Time to live, in seconds from now; ``None`` for no limit."""


@runtime_checkable
class Store(Protocol):
    """Where states are kept. It moves bytes; what they mean is decided above it.

    A state is a hash of fields, in the space of one tenant and user. Every method is atomic, but for ``erase``. A
    state without fields does not exist, and neither does one whose time to live is over. Besides what stands at each
    method, all raise `StateUnavailableError` where the store cannot answer, and those that write `StateLimitError`
    where its limits refuse.

    A store may have ``open`` and ``close`` (plain or coroutine functions), which go with the app's lifespan. With a
    true attribute ``immediate`` its coroutines, but for ``erase``, never wait, and are run on the spot where code
    blocks. An attribute ``deadline`` says after how many seconds blocking calls give up, in place of 30.
    """

    async def merge(self, space: Space, state: str, fields: Mapping[str, bytes], ttl: Ttl, /) -> bool:
        """Set fields of a state, which is made where there is none.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.
            fields: what is kept, by field, at least one.
            ttl: seconds to live; ``KEEP`` keeps what it has, and gives a new state the store's default; ``None`` for
                no limit.

        Returns:
            Whether this call made the state.
        """
        ...

    async def replace(self, space: Space, state: str, fields: Mapping[str, bytes], ttl: Ttl, /) -> bool:
        """Set the fields of a state and remove all others.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.
            fields: what is kept, by field, at least one.
            ttl: seconds to live; ``KEEP`` keeps what it has, and gives a new state the store's default; ``None`` for
                no limit.

        Returns:
            Whether this call made the state.
        """
        ...

    async def read(self, space: Space, state: str, /) -> Mapping[str, bytes] | None:
        """Give all fields of a state.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.

        Returns:
            What is kept, by field; ``None`` where there is no such state.
        """
        ...

    async def read_field(self, space: Space, state: str, field: str, /) -> bytes | None:
        """Give one field of a state.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.
            field: name of the field.

        Returns:
            What is kept; ``None`` where there is no such state or field.
        """
        ...

    async def read_version(self, space: Space, state: str, /) -> tuple[Mapping[str, bytes] | None, bytes]:
        """Give all fields of a state, and what tells this version of it from others.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.

        Returns:
            What is kept, by field, or ``None``; and the version, also of a state that is not there.
        """
        ...

    async def replace_version(self, space: Space, state: str, fields: Mapping[str, bytes], version: bytes, /) -> bool:
        """Set the fields of a state if it still has that version, and keep its time to live.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.
            fields: what is kept, by field; without any, the state is removed.
            version: what `Store.read_version` gave.

        Returns:
            Whether it had.
        """
        ...

    async def increment(self, space: Space, state: str, field: str, by: float, /) -> float:
        """Add to a number; the state and the field are made where there are none, from 0.

        A number is the JSON text of an int without point and exponent, or of a float with one of them. Ints are 64 bits
        with sign, floats IEEE doubles, and the sum is a float where either is.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.
            field: name of the field.
            by: what to add.

        Returns:
            The sum.

        Raises:
            StateNumberError: the field holds no number, or the sum would be beyond its type.
        """
        ...

    async def remove_field(self, space: Space, state: str, field: str, /) -> int:
        """Remove a field of a state.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.
            field: name of the field.

        Returns:
            How many were removed, 0 or 1.
        """
        ...

    async def remove(self, space: Space, state: str, /) -> int:
        """Remove a state.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.

        Returns:
            How many were removed, 0 or 1.
        """
        ...

    async def exists(self, space: Space, state: str, /) -> bool:
        """Say whether there is such a state.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.

        Returns:
            Whether there is.
        """
        ...

    async def names(self, space: Space, /) -> list[str]:
        """Give the names of the space's states. The cost does not depend on other spaces.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.

        Returns:
            The names, in any order.
        """
        ...

    async def clear(self, space: Space, /) -> int:
        """Remove all states of the space.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.

        Returns:
            How many were removed.
        """
        ...

    async def touch(self, space: Space, state: str, ttl: float | None, /) -> bool:
        """Set the time to live of a state.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.
            ttl: seconds from now; ``None`` for no limit.

        Returns:
            Whether there is such a state.
        """
        ...

    async def remaining(self, space: Space, state: str, /) -> float | None:
        """Give the time that a state has to live.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            state: name of the state.

        Returns:
            Seconds from now, infinity without limit; ``None`` where there is no such state.
        """
        ...

    async def erase(self, tenant: str, /) -> int:
        """Remove everything of a tenant, in bounded steps.

        Args:
            tenant: the tenant.

        Returns:
            How many states were removed.
        """
        ...

    async def count(self, space: Space, counter: str, by: int, window: float, /) -> tuple[int, float]:
        """Add to a counter. Counters are in a key space of their own.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            counter: name of the counter.
            by: what to add.
            window: after how many seconds from its first count it begins at 0 again.

        Returns:
            The sum, and the seconds that are left of the window.
        """
        ...

    async def acquire(self, space: Space, lease: str, holder: str, most: int, ttl: float, /) -> bool:
        """Take, or renew, one of a number of leases. Leases are in a key space of their own.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            lease: what is lent.
            holder: who takes it.
            most: how many may hold it at a time.
            ttl: after how many seconds it ends where it is neither renewed nor released.

        Returns:
            Whether it was to be had.
        """
        ...

    async def release(self, space: Space, lease: str, holder: str, /) -> bool:
        """Give a lease back.

        Args:
            space: tenant and user, whose states they are; the user is ``None`` for those of the whole tenant.
            lease: what was lent.
            holder: who has taken it.

        Returns:
            Whether it was held.
        """
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
