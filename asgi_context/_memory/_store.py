"""The store itself."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NoReturn

from asgi_context._blocking import pause
from asgi_context._limits import StateLimits, check_ttl
from asgi_context._memory._entries import Counter, Lease, State, bytes_of, shrunk, size_of
from asgi_context._memory._homes import Homes
from asgi_context._memory._numbers import add
from asgi_context._types import KEEP, Space, Ttl
from asgi_context.errors import StateLimitError, StateNumberError, StoreNotSharedError

_NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})


class MemoryStore(Homes):
    """Keeps states in this process's memory: for one process, tests and development.

    Safe to use from several threads and event loops at once. What is kept is gone with the process, and no other
    process sees it.

    Args:
        default_ttl: time to live of new states, in seconds; ``None`` for no limit.
        limits: how much it may hold; without them, those of ``StateLimits()``.
        clock: gives the time in seconds, and never goes back.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``default_ttl`` is not positive and finite.
    """

    immediate = True
    """Its coroutines, but for ``erase``, never wait; see `Store`."""

    def __init__(
        self,
        *,
        default_ttl: float | None = None,
        limits: StateLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if default_ttl is not None:
            check_ttl(default_ttl, "default_ttl")
        if limits is not None and not isinstance(limits, StateLimits):
            message = f"limits must be StateLimits, not {type(limits).__qualname__}"
            raise TypeError(message)
        if not callable(clock):
            message = f"clock must be callable, not {type(clock).__qualname__}"
            raise TypeError(message)
        super().__init__(StateLimits() if limits is None else limits, clock)
        self._default_ttl = default_ttl
        self._version = 0

    def __repr__(self) -> str:
        return f"<MemoryStore: {self._states} states of {len(self._tenants)} tenants>"

    def __reduce__(self) -> NoReturn:
        raise StoreNotSharedError(type(self).__qualname__, "its states are in the memory of the process that made it")

    async def merge(self, space: Space, state: str, fields: Mapping[str, bytes], ttl: Ttl, /) -> bool:
        """Set fields of a state; see `Store`."""
        return self._write(space, state, fields, ttl, merge=True)

    async def replace(self, space: Space, state: str, fields: Mapping[str, bytes], ttl: Ttl, /) -> bool:
        """Set the fields of a state and remove all others; see `Store`."""
        return self._write(space, state, fields, ttl, merge=False)

    async def read(self, space: Space, state: str, /) -> Mapping[str, bytes] | None:
        """Give all fields of a state; see `Store`."""
        with self._lock:
            found = self._find(space, state)
            return None if found is None else found.fields.copy()

    async def read_field(self, space: Space, state: str, field: str, /) -> bytes | None:
        """Give one field of a state; see `Store`."""
        with self._lock:
            found = self._find(space, state)
            return None if found is None else found.fields.get(field)

    async def read_version(self, space: Space, state: str, /) -> tuple[Mapping[str, bytes] | None, bytes]:
        """Give all fields of a state and its version; see `Store`."""
        with self._lock:
            found = self._find(space, state)
            return (None, b"") if found is None else (found.fields.copy(), b"%d" % found.version)

    async def replace_version(self, space: Space, state: str, fields: Mapping[str, bytes], version: bytes, /) -> bool:
        """Set the fields of a state if it still has that version; see `Store`."""
        self._limits.check_values(fields)
        with self._lock:
            found = self._find(space, state)
            if version != (b"" if found is None else b"%d" % found.version):
                return False
            if fields:
                self._put(space, state, found, fields, KEEP, merge=False)
            elif found is not None:
                self._drop(found)
            return True

    async def increment(self, space: Space, state: str, field: str, by: float, /) -> float:
        """Add to a number; see `Store`."""
        with self._lock:
            found = self._find(space, state)
            total = add(None if found is None else found.fields.get(field), by)
            if isinstance(total, str):
                raise StateNumberError(state, field, total)
            changes = {field: repr(total).encode()}
            self._limits.check_values(changes)
            self._put(space, state, found, changes, KEEP, merge=True)
            return total

    async def remove_field(self, space: Space, state: str, field: str, /) -> int:
        """Remove a field of a state; see `Store`."""
        with self._lock:
            found = self._find(space, state)
            if found is None or field not in found.fields:
                return 0
            if len(found.fields) == 1:
                self._drop(found)
            else:
                growth = 0 if self._limits.total_bytes is None else -size_of({field: found.fields[field]})
                found.version = self._next_version()
                del found.fields[field]
                self._bytes += growth
                found.fields = shrunk(found.fields)
            return 1

    async def remove(self, space: Space, state: str, /) -> int:
        """Remove a state; see `Store`."""
        with self._lock:
            found = self._find(space, state)
            if found is None:
                return 0
            self._drop(found)
            return 1

    async def exists(self, space: Space, state: str, /) -> bool:
        """Say whether there is such a state; see `Store`."""
        with self._lock:
            return self._find(space, state) is not None

    async def names(self, space: Space, /) -> list[str]:
        """Give the names of the space's states; see `Store`."""
        with self._lock:
            home = self._home(space)
            if home is None:
                return []
            return [name for name, state in home.states.items() if state.ends > self._now]

    async def clear(self, space: Space, /) -> int:
        """Remove all states of the space; see `Store`."""
        with self._lock:
            home = self._home(space)
            if home is None:
                return 0
            states = list(home.states.values())
            cleared = sum(state.ends > self._now for state in states)
            for state in states:
                self._drop(state)
            return cleared

    async def touch(self, space: Space, state: str, ttl: float | None, /) -> bool:
        """Set the time to live of a state; see `Store`."""
        with self._lock:
            found = self._find(space, state)
            if found is None:
                return False
            self._let_end(found, ttl)
            return True

    async def remaining(self, space: Space, state: str, /) -> float | None:
        """Give the seconds that a state has to live; see `Store`."""
        with self._lock:
            found = self._find(space, state)
            if found is None:
                return None
            return found.ends - self._now

    async def erase(self, tenant: str, /) -> int:
        """Remove everything of a tenant; others have their turn every 1,000 states; see `Store`."""
        with self._lock:
            homes = list(self._tenants.pop(tenant, {}).values())  # from now on nobody finds it
        erased = 0
        try:
            while homes:
                erased += self._take_down(homes)
                await pause(0)
        finally:
            while homes:  # where this is cancelled: the other threads have their turn, but nothing is left behind
                self._take_down(homes)
        return erased

    async def count(self, space: Space, counter: str, by: int, window: float, /) -> tuple[int, float]:
        """Add to a counter; see `Store`."""
        check_ttl(window, "window")
        with self._lock:
            home = self._home(space)
            found = None if home is None else home.counters.get(counter)
            if found is None or found.ends <= self._now:
                if found is not None:
                    self._drop(found)
                home = self._own_home(space)
                found = Counter(home, counter)
                self._let_end(found, window)
                home.counters[counter] = found
            found.value += by
            return found.value, found.ends - self._now

    async def acquire(self, space: Space, lease: str, holder: str, most: int, ttl: float, /) -> bool:
        """Take, or renew, one of a number of leases; see `Store`."""
        check_ttl(ttl, "ttl")
        with self._lock:
            home = self._home(space)
            holders = None if home is None else home.leases.get(lease)
            if holders and len(holders) >= most:  # else those that are over take nobody's place
                for held in [held for held in holders.values() if held.ends <= self._now]:
                    self._drop(held)
                home = self._look_up(space)  # without leases it may be gone
                holders = None if home is None else home.leases.get(lease)
            if holders:
                renewed = holders.get(holder)
                if renewed is not None:
                    self._let_end(renewed, ttl)
                    return True
                if len(holders) >= most:
                    return False
            elif most < 1:
                return False
            if home is None:
                home = self._own_home(space)
            taken = Lease(home, holder, lease)
            self._let_end(taken, ttl)
            if holders is None:
                home.leases[lease] = {holder: taken}
            else:
                holders[holder] = taken
            return True

    async def release(self, space: Space, lease: str, holder: str, /) -> bool:
        """Give a lease back; see `Store`."""
        with self._lock:
            home = self._home(space)
            holders = None if home is None else home.leases.get(lease)
            held = None if holders is None else holders.get(holder)
            if home is None or holders is None or held is None:
                return False
            in_time = held.ends > self._now
            if len(holders) > 1:
                self._drop(held)
            else:  # the last one, as mostly: there is nothing to be made smaller
                self._ends.take_out(held)
                del home.leases[lease]
                if home.is_empty():
                    self._forget(home)
            return in_time

    # All below under the lock; see `Homes`.

    def _write(self, space: Space, state: str, fields: Mapping[str, bytes], ttl: Ttl, *, merge: bool) -> bool:
        self._limits.check_values(fields)
        with self._lock:
            found = self._find(space, state)
            self._put(space, state, found, fields, ttl, merge=merge)
            return found is None

    def _put(
        self, space: Space, state: str, found: State | None, fields: Mapping[str, bytes], ttl: Ttl, *, merge: bool
    ) -> None:
        kept = found.fields if merge and found is not None else _NOTHING
        growth = 0
        if self._limits.total_bytes is not None:
            growth = size_of(fields)
            if found is None:
                growth += bytes_of(state)
            elif merge:
                growth -= size_of({name: kept[name] for name in fields if name in kept})
            else:
                growth -= size_of(found.fields)
        self._make_room(space, found, kept, fields, growth)
        if found is None:
            home = self._own_home(space)
            made = State(home, state, dict(fields), self._next_version())
            self._let_end(made, self._default_ttl if ttl is KEEP else ttl)
            home.states[state] = made
            self._states += 1
        else:
            if ttl is not KEEP:
                self._let_end(found, ttl)
            found.version = self._next_version()
            if merge:
                found.fields.update(fields)
            else:
                found.fields = dict(fields)
        self._bytes += growth

    def _make_room(
        self, space: Space, found: State | None, kept: Mapping[str, bytes], fields: Mapping[str, bytes], growth: int
    ) -> None:
        limits = self._limits
        if len(kept) + len(fields) > limits.fields and len(kept.keys() | fields.keys()) > limits.fields:
            raise StateLimitError("fields", limits.fields)
        if found is None:
            home = self._look_up(space)
            if home is not None and len(home.states) >= limits.user_states:
                for own in [own for own in home.states.values() if own.ends <= self._now]:
                    self._drop(own)
                if len(home.states) >= limits.user_states:
                    raise StateLimitError("user_states", limits.user_states)
            while limits.states is not None and self._states >= limits.states:
                if not self._purge(1):
                    raise StateLimitError("states", limits.states)
        while growth > 0 and limits.total_bytes is not None and self._bytes + growth > limits.total_bytes:
            if not self._purge(1):
                raise StateLimitError("total_bytes", limits.total_bytes)

    def _next_version(self) -> int:
        self._version += 1  # of the whole store: one that is made anew is another version than the one of before
        return self._version
