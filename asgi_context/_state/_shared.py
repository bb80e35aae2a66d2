"""The states themselves."""

import random
from collections.abc import Callable, Coroutine, Mapping
from math import inf, isfinite
from typing import Any, Final, TypeVar

from asgi_context._blocking import AppLoop, app_loop, pause, run_blocking
from asgi_context._callables import runs_later
from asgi_context._codec import decode, decode_all, encode
from asgi_context._limits import check_ttl
from asgi_context._state._arguments import encoded, name_of, time_to_live
from asgi_context._state._blocking_state import BlockingState
from asgi_context._types import KEEP, Space, Store, Ttl, check_store
from asgi_context.errors import StateConflictError, StateNumberError

_T = TypeVar("_T")

_MOST_ATTEMPTS: Final = 100  # of modify: among n writers at once, one succeeds in every round
_LONGEST_PAUSE: Final = 20  # milliseconds, between two of them
_LEAST, _MOST = -(2**63), 2**63 - 1


class SharedState:
    """The states of one tenant and user, or of a whole tenant.

    Holds its tenant and user by itself: wherever the object is taken, it stays theirs. A state is a hash of fields;
    without fields it does not exist. Every value comes back equal and of the same type: ``None``, ``bool``, ``int``,
    ``float`` (not NaN), ``str``, ``bytes``, ``list``, ``tuple``, ``set``, ``frozenset``, ``dict``, ``datetime``,
    ``date``, ``time``, ``timedelta``, ``Decimal``, ``UUID``, and dataclasses, enums and pydantic models after
    `register_state_type`. In threads and scripts, `sync` has the same methods blocking.

    Where a method takes ``ttl``, that is the state's time to live in seconds: ``KEEP`` keeps what it has, and gives a
    new state the store's default; ``None`` removes it. Besides what stands at each method, all raise TypeError and
    ValueError for names and arguments that cannot be, `StateUnavailableError` where the store is down or slow, and
    those that write `StateLimitError` where the store's limits refuse.

    Args:
        store: where the states are kept.
        tenant: the tenant.
        user: the user inside the tenant; ``None`` for the states of the whole tenant.

    Raises:
        TypeError: tenant or user is no str.
        ValueError: tenant or user is empty.

    Example:
        >>> from asgi_context import MemoryStore, SharedState
        >>> state = SharedState(MemoryStore(), "acme", "ann").sync
        >>> state.upsert("cart", {"items": ("book", "pen")}, ttl=3600)
        True
        >>> state.get("cart")
        {'items': ('book', 'pen')}
        >>> state.tenant_wide.increment("sales", "items", 2)
        2
    """

    __slots__ = ("_loop", "_space", "_store")

    def __init__(self, store: Store, tenant: str, user: str | None = None) -> None:
        check_store(store)
        tenant = name_of(tenant, "tenant")
        if user is not None:
            user = name_of(user, "user")
        self._store = store
        self._space: Space = (tenant, user)
        self._loop = None if getattr(store, "immediate", False) else app_loop(None)

    def __repr__(self) -> str:
        tenant, user = self._space
        return f"SharedState(tenant={tenant!r}, user={user!r})"

    @property
    def tenant_wide(self) -> "SharedState":
        """The states that all users of the tenant share."""
        return make_state(self._store, (self._space[0], None), self._loop)

    @property
    def sync(self) -> "BlockingState":
        """The same methods, blocking, for threads and scripts."""
        return BlockingState(self, self._block)

    def _block(self, call: Callable[[], Coroutine[Any, Any, _T]], /) -> _T:
        return run_blocking(call, self._store, self._loop)

    async def upsert(self, key: str, data: Mapping[str, Any], *, ttl: Ttl = KEEP) -> bool:
        """Merge fields into a state, which is made where there is none.

        Args:
            key: name of the state.
            data: values by field, at least one.
            ttl: time to live of the state, in seconds.

        Returns:
            Whether this call made the state.

        Raises:
            ValueError: ``data`` is empty, or a name is.
            StateSerializationError: a value cannot be kept exactly; nothing was written.
        """
        key, fields = name_of(key, "key"), encoded(key, data)
        if not fields:
            message = "data must have at least one field: a state without fields does not exist"
            raise ValueError(message)
        return await self._store.merge(self._space, key, fields, time_to_live(ttl))

    async def replace(self, key: str, data: Mapping[str, Any], *, ttl: Ttl = KEEP) -> bool:
        """Make a state be exactly this.

        Args:
            key: name of the state.
            data: values by field, at least one.
            ttl: time to live of the state, in seconds.

        Returns:
            Whether this call made the state.

        Raises:
            ValueError: ``data`` is empty, or a name is.
            StateSerializationError: a value cannot be kept exactly; nothing was written.
        """
        key, fields = name_of(key, "key"), encoded(key, data)
        if not fields:
            message = "data must have at least one field: a state without fields does not exist; use delete"
            raise ValueError(message)
        return await self._store.replace(self._space, key, fields, time_to_live(ttl))

    async def get(self, key: str) -> dict[str, Any] | None:
        """Read a whole state.

        Args:
            key: name of the state.

        Returns:
            A copy, values by field; ``None`` only where there is no such state.

        Raises:
            StateDecodeError: a value holds a type that is not registered here.
        """
        key = name_of(key, "key")
        fields = await self._store.read(self._space, key)
        return None if fields is None else decode_all(key, fields)

    async def get_field(self, key: str, field: str, default: Any = None) -> Any:  # noqa: ANN401 - what was stored
        """Read one field of a state.

        Args:
            key: name of the state.
            field: name of the field.
            default: what to return where there is no such state or field.

        Returns:
            A copy of the value, or the default.

        Raises:
            StateDecodeError: the value holds a type that is not registered here.
        """
        key, field = name_of(key, "key"), name_of(field, "field")
        text = await self._store.read_field(self._space, key, field)
        return default if text is None else decode(key, field, text)

    async def update_field(self, key: str, field: str, value: Any, *, ttl: Ttl = KEEP) -> bool:  # noqa: ANN401 - to be stored
        """Set one field of a state, which is made where there is none.

        Args:
            key: name of the state.
            field: name of the field.
            value: what to keep.
            ttl: time to live of the state, in seconds.

        Returns:
            Whether this call made the state.

        Raises:
            StateSerializationError: the value cannot be kept exactly; nothing was written.
        """
        key, field = name_of(key, "key"), name_of(field, "field")
        text = encode(key, field, value)
        return await self._store.merge(self._space, key, {field: text}, time_to_live(ttl))

    async def increment(self, key: str, field: str, by: float = 1) -> int | float:
        """Add to a number; the state and the field are made where there are none, from 0.

        Args:
            key: name of the state.
            field: name of the field.
            by: what to add, an int or a float; negative to subtract.

        Returns:
            The sum: an int of 64 bits with sign where both are ints, else a float (IEEE double).

        Raises:
            StateNumberError: the field holds something else, or the sum would be beyond its type; nothing was written.
        """
        key, field = name_of(key, "key"), name_of(field, "field")
        if type(by) is not int and type(by) is not float:
            message = f"by must be an int or a float, not {type(by).__qualname__}"
            raise TypeError(message)
        if not isfinite(by) if type(by) is float else not _LEAST <= by <= _MOST:
            raise StateNumberError(key, field, "overflow")
        return await self._store.increment(self._space, key, field, by)

    async def modify(self, key: str, func: Callable[[dict[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
        """Change a state by a function of what it holds, atomically.

        The function is called again where somebody else has changed the state meanwhile, so it must do nothing else.

        Args:
            key: name of the state.
            func: a plain function that takes a copy of the state, ``{}`` where there is none, and returns what it is to
                be, values by field; ``{}`` deletes it. Its time to live is kept.

        Returns:
            What was written.

        Raises:
            TypeError: ``func`` is no plain function, or returns no mapping.
            StateSerializationError: a value cannot be kept exactly; nothing was written.
            StateConflictError: others have changed it each time; nothing was written.
        """
        key = name_of(key, "key")
        kind = runs_later(func)
        if kind is not None or not callable(func):
            message = f"func must be a plain function, not {func!r}"
            raise TypeError(message)
        for attempt in range(_MOST_ATTEMPTS):
            if attempt and not getattr(self._store, "immediate", False):
                # Else those who are always just too late would stay that.
                await pause(random.uniform(0, min(attempt, _LONGEST_PAUSE) / 1000))  # noqa: S311 - no secret
            fields, version = await self._store.read_version(self._space, key)
            data = func({} if fields is None else decode_all(key, fields))
            changed = encoded(key, data)
            if changed == fields or await self._store.replace_version(self._space, key, changed, version):
                return decode_all(key, changed)
        raise StateConflictError(key, _MOST_ATTEMPTS)

    async def touch(self, key: str, ttl: float | None) -> bool:
        """Set a state's time to live.

        Args:
            key: name of the state.
            ttl: seconds from now; ``None`` for no limit.

        Returns:
            Whether there is such a state.
        """
        key = name_of(key, "key")
        if ttl is not None:
            check_ttl(ttl, "ttl")
        return await self._store.touch(self._space, key, ttl)

    async def ttl(self, key: str) -> float | None:
        """Give a state's time to live.

        Args:
            key: name of the state.

        Returns:
            Seconds from now; ``None`` without limit.

        Raises:
            KeyError: there is no such state.
        """
        key = name_of(key, "key")
        left = await self._store.remaining(self._space, key)
        if left is None:
            raise KeyError(key)
        return None if left == inf else left

    async def delete_field(self, key: str, field: str) -> int:
        """Delete one field of a state; with its last field the state is gone.

        Args:
            key: name of the state.
            field: name of the field.

        Returns:
            How many were deleted, 0 or 1.
        """
        return await self._store.remove_field(self._space, name_of(key, "key"), name_of(field, "field"))

    async def delete(self, key: str) -> int:
        """Delete a state.

        Args:
            key: name of the state.

        Returns:
            How many were deleted, 0 or 1.
        """
        return await self._store.remove(self._space, name_of(key, "key"))

    async def exists(self, key: str) -> bool:
        """Say whether there is such a state.

        Args:
            key: name of the state.

        Returns:
            Whether there is.
        """
        return await self._store.exists(self._space, name_of(key, "key"))

    async def list_states(self) -> list[str]:
        """List the states of this tenant and user, and of nobody else.

        Returns:
            Their names, sorted.
        """
        return sorted(await self._store.names(self._space))

    async def clear_all_states(self) -> int:
        """Delete all states of this tenant and user, and of nobody else.

        Returns:
            How many were deleted.
        """
        return await self._store.clear(self._space)


def make_state(store: Store, space: Space, loop: AppLoop | None) -> SharedState:
    """Make a `SharedState` of what was checked when it was bound.

    Checking a protocol of so many methods costs more than several calls of the state.

    Args:
        store: where the states are kept.
        space: whose they are.
        loop: the event loop for blocking calls; ``None`` for one of this process's own.

    Returns:
        The state.
    """
    state = SharedState.__new__(SharedState)
    state._store = store  # noqa: SLF001 - made here, as those below
    state._space = space  # noqa: SLF001
    state._loop = loop  # noqa: SLF001
    return state
