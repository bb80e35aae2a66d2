"""States in this process's memory."""

from collections.abc import Mapping
from threading import Lock

from asgi_context._types import Space


class MemoryStore:
    """Keeps states in this process's memory: for one process, tests and development.

    Safe to use from several threads and event loops at once. What is kept is gone with the process, and no other
    process sees it.
    """

    def __init__(self) -> None:
        # Space by space, so that what belongs to one tenant and user is found without looking at anybody else's.
        self._spaces: dict[Space, dict[str, dict[str, bytes]]] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._spaces)} spaces>"

    async def merge(self, space: Space, state: str, fields: Mapping[str, bytes], /) -> bool:
        """Set fields of a state; see `Store`."""
        with self._lock:
            states = self._spaces.setdefault(space, {})
            kept = states.get(state)
            if kept is None:
                states[state] = dict(fields)
                return True
            kept.update(fields)
            return False

    async def read(self, space: Space, state: str, /) -> Mapping[str, bytes] | None:
        """Give all fields of a state; see `Store`."""
        with self._lock:
            fields = self._spaces.get(space, {}).get(state)
            return None if fields is None else fields.copy()

    async def read_field(self, space: Space, state: str, field: str, /) -> bytes | None:
        """Give one field of a state; see `Store`."""
        with self._lock:
            return self._spaces.get(space, {}).get(state, {}).get(field)

    async def remove_field(self, space: Space, state: str, field: str, /) -> int:
        """Remove a field of a state; see `Store`."""
        with self._lock:
            fields = self._spaces.get(space, {}).get(state, {})
            if fields.pop(field, None) is None:
                return 0
            if not fields:
                self._forget(space, state)
            return 1

    async def remove(self, space: Space, state: str, /) -> int:
        """Remove a state; see `Store`."""
        with self._lock:
            if state not in self._spaces.get(space, {}):
                return 0
            self._forget(space, state)
            return 1

    async def exists(self, space: Space, state: str, /) -> bool:
        """Say whether there is such a state; see `Store`."""
        with self._lock:
            return state in self._spaces.get(space, {})

    async def names(self, space: Space, /) -> list[str]:
        """Give the names of the space's states; see `Store`."""
        with self._lock:
            return list(self._spaces.get(space, {}))

    async def clear(self, space: Space, /) -> int:
        """Remove all states of the space; see `Store`."""
        with self._lock:
            return len(self._spaces.pop(space, {}))

    def _forget(self, space: Space, state: str) -> None:
        states = self._spaces[space]
        del states[state]
        if not states:
            del self._spaces[space]
