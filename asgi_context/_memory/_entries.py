"""What is kept."""

import sys
from math import inf
from typing import Any, Final, TypeVar, cast

from asgi_context._types import Space

_K = TypeVar("_K")
_V = TypeVar("_V")

_SMALL: Final = 4096  # bytes of a table that is not worth being made smaller
_BYTES_EACH: Final = 256  # of a table, for each that is in it: it is well over half empty


class Entry:
    """What may have an end: a state, a counter or a lease."""

    __slots__ = ("ends", "home", "key")

    def __init__(self, home: "Home", key: str) -> None:
        self.home = home
        self.key = key
        self.ends = inf


class State(Entry):
    """A state."""

    __slots__ = ("fields", "version")

    def __init__(self, home: "Home", key: str, fields: dict[str, bytes], version: int) -> None:
        super().__init__(home, key)
        self.fields = fields
        self.version = version

    def size(self) -> int:
        """Count its bytes.

        Returns:
            Those of its name, of its fields' names and of their texts.
        """
        return bytes_of(self.key) + size_of(self.fields)


class Counter(Entry):
    """A counter."""

    __slots__ = ("value",)

    def __init__(self, home: "Home", key: str) -> None:
        super().__init__(home, key)
        self.value = 0


class Lease(Entry):
    """A lease that somebody holds."""

    __slots__ = ("name",)

    def __init__(self, home: "Home", key: str, name: str) -> None:
        self.home = home  # in one frame, since every call that counts takes one
        self.key = key
        self.ends = inf
        self.name = name


class Home:
    """What belongs to one space."""

    __slots__ = ("counters", "leases", "space", "states")

    def __init__(self, space: Space) -> None:
        self.space = space
        self.states: dict[str, State] = {}
        self.counters: dict[str, Counter] = {}
        self.leases: dict[str, dict[str, Lease]] = {}  # by name, then by holder

    def is_empty(self) -> bool:
        """Say whether nothing is in it.

        Returns:
            Whether that is so.
        """
        return not (self.states or self.counters or self.leases)

    def remove(self, entry: Entry) -> bool:
        """Remove an entry.

        Args:
            entry: what is to go.

        Returns:
            Whether it was in it: another of its name may have taken its place.
        """
        kept: dict[str, Any]
        if type(entry) is State:
            kept = self.states
        elif type(entry) is Lease:
            kept = self.leases.get(entry.name, {})
        else:
            kept = self.counters
        if kept.get(entry.key) is not entry:
            return False
        del kept[entry.key]
        return True

    def shrink(self, entry: Entry) -> None:
        """Give back the memory where an entry was removed from.

        Args:
            entry: what was removed.
        """
        if type(entry) is State:
            self.states = shrunk(self.states)
        elif type(entry) is Counter:
            self.counters = shrunk(self.counters)
        else:
            name = cast("Lease", entry).name
            holders = shrunk(self.leases[name])
            if holders:
                self.leases[name] = holders
            else:
                del self.leases[name]

    def take_one(self) -> Entry:
        """Take any entry out of one that is not empty.

        Returns:
            The entry.
        """
        # From the end: at its beginning, a dict that was deleted from is full of holes.
        if self.states:
            return self.states.popitem()[1]
        if self.counters:
            return self.counters.popitem()[1]
        name, holders = self.leases.popitem()
        _, lease = holders.popitem()
        if holders:
            self.leases[name] = holders
        return lease


def bytes_of(name: str) -> int:
    """Count the bytes of a name.

    Args:
        name: the name.

    Returns:
        How many it has in UTF-8.
    """
    return len(name) if name.isascii() else len(name.encode())


def size_of(fields: Any) -> int:  # noqa: ANN401 - a mapping of bytes by str
    """Count the bytes of fields.

    Args:
        fields: texts by name.

    Returns:
        Those of the names and of the texts.
    """
    return sum(bytes_of(name) + len(text) for name, text in fields.items())


def shrunk(kept: dict[_K, _V]) -> dict[_K, _V]:
    """Give memory back: a dict keeps the table that it once needed.

    Args:
        kept: a dict that something was deleted from.

    Returns:
        The same, or a smaller copy; copying costs as many steps as were deleted since the last time.
    """
    size = len(kept)
    if size & (size - 1) or sys.getsizeof(kept) <= _SMALL + _BYTES_EACH * size:
        return kept
    return dict(kept)
