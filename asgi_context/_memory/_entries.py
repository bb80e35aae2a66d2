"""What is kept."""

from math import inf
from typing import Any

from asgi_context._types import Space


class Entry:
    """What may have an end: a state, a counter or a lease."""

    __slots__ = ("ends", "home", "key", "place")

    def __init__(self, home: "Home", place: "dict[str, Any]", key: str) -> None:
        self.home = home
        self.place = place  # the dictionary that it stands in
        self.key = key
        self.ends = inf


class State(Entry):
    """A state."""

    __slots__ = ("fields", "version")

    fields: dict[str, bytes]
    version: int

    def size(self) -> int:
        """Count its bytes.

        Returns:
            Those of its name, of its fields' names and of their texts.
        """
        return bytes_of(self.key) + sum(bytes_of(name) + len(text) for name, text in self.fields.items())


class Counter(Entry):
    """A counter."""

    __slots__ = ("value",)

    value: int


class Lease(Entry):
    """A lease that somebody holds."""

    __slots__ = ("name",)

    name: str


class Home:
    """What belongs to one space."""

    __slots__ = ("counters", "leases", "space", "states")

    def __init__(self, space: Space) -> None:
        self.space = space
        self.states: dict[str, State] = {}
        self.counters: dict[str, Counter] = {}
        self.leases: dict[str, dict[str, Lease]] = {}  # by name, then by holder

    def places(self) -> "list[dict[str, Any]]":
        """Give the dictionaries of what is in it.

        Returns:
            Those of its states, of its counters and of the holders of each lease.
        """
        return [self.states, self.counters, *self.leases.values()]


def bytes_of(name: str) -> int:
    """Count the bytes of a name.

    Args:
        name: the name.

    Returns:
        How many it has in UTF-8.
    """
    return len(name) if name.isascii() else len(name.encode())
