"""Where states, counters and leases are: by tenant and user, and by their ends."""

from collections.abc import Callable
from math import inf
from threading import Lock
from typing import Final

from asgi_context._limits import StateLimits
from asgi_context._memory._ends import Ends
from asgi_context._memory._entries import Entry, Home, State, shrunk
from asgi_context._memory._forks import forks
from asgi_context._types import Space

_MOST_PURGED: Final = 8  # of what is over, in one call
_MOST_ERASED: Final = 1000  # entries, in one hold of the lock


class Homes:
    """What each tenant's users have, and what it comes to.

    All under the lock, but for making it. What can fail for want of stack is done before the first change, and what
    stands in the midst of an entry's change by Ctrl-C is no error in anybody's later call.

    Args:
        limits: how much they may hold.
        clock: gives the time in seconds, and never goes back.
    """

    def __init__(self, limits: StateLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = Lock()
        self._tenants: dict[str, dict[str | None, Home]] = {}
        self._states: int = 0
        self._bytes: int = 0  # counted only where there is a limit
        self._now = 0.0  # of the call that has the lock: nothing can end in the midst of one
        self._ends = Ends()
        forks.add(self._lock)

    def _home(self, space: Space) -> Home | None:
        # At the beginning of every call, and only there.
        self._now = self._clock()
        if self._ends.next <= self._now:
            self._purge(_MOST_PURGED)
        return self._look_up(space)

    def _look_up(self, space: Space) -> Home | None:
        homes = self._tenants.get(space[0])
        return None if homes is None else homes.get(space[1])

    def _own_home(self, space: Space) -> Home:
        home = self._look_up(space)
        if home is None:
            home = self._tenants.setdefault(space[0], {})[space[1]] = Home(space)
        return home

    def _find(self, space: Space, state: str) -> State | None:
        home = self._home(space)
        if home is None:
            return None
        found = home.states.get(state)
        if found is not None and found.ends <= self._now:
            self._drop(found)
            return None
        return found

    def _let_end(self, entry: Entry, ttl: float | None) -> None:
        self._ends.put(entry, inf if ttl is None else self._now + ttl)

    def _purge(self, most: int) -> bool:
        """Drop some of what ended in a second that is over; say whether there was something to do."""
        due = self._ends.next <= self._now
        while most and self._ends.next <= self._now:
            most -= 1
            entry = self._ends.first()
            if entry is not None:
                self._drop(entry)
        return due

    def _drop(self, entry: Entry) -> None:
        home = entry.home
        states = size = 0
        if type(entry) is State:
            states = 1
            size = 0 if self._limits.total_bytes is None else entry.size()
        self._ends.take_out(entry)
        if home.remove(entry):
            self._states -= states
            self._bytes -= size
            home.shrink(entry)
            if home.is_empty():
                self._forget(home)

    def _forget(self, home: Home) -> None:
        tenant, user = home.space
        homes = self._tenants.get(tenant)
        if homes is not None and homes.get(user) is home:  # else it was erased
            del homes[user]
            if homes:
                self._tenants[tenant] = shrunk(homes)
            else:
                del self._tenants[tenant]
                self._tenants = shrunk(self._tenants)

    def _take_down(self, homes: list[Home]) -> int:
        erased = 0
        with self._lock:
            self._now = self._clock()
            for _ in range(_MOST_ERASED):
                while homes and homes[-1].is_empty():
                    homes.pop()
                if not homes:
                    break
                entry = homes[-1].take_one()
                if type(entry) is State:
                    erased += entry.ends > self._now
                    self._states -= 1
                    self._bytes -= 0 if self._limits.total_bytes is None else entry.size()
                self._ends.take_out(entry)
        return erased
