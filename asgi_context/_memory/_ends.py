"""What ends when."""

from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Final

from asgi_context._memory._entries import Entry

_MOST_STALE: Final = 1000  # seconds in which nothing ends any more, that are still in the heap


class Ends:
    """Entries by the second in which they end.

    What is taken out before its end leaves nothing behind but its second, and that is forgotten at its time or when
    there are many such. Finding what is over takes no look at what is not.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Entry, None]] = {}
        self._due: list[int] = []  # a heap of their seconds, and of some that are no more
        self.next = inf
        """When to call `over` again, in seconds."""

    def put(self, entry: Entry, ends: float) -> None:
        """Let an entry end.

        Args:
            entry: the entry.
            ends: when, in seconds; infinity for never.
        """
        self.take_out(entry)
        if ends == inf:
            return
        entry.ends = ends
        second = ceil(ends)
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = {}
            heappush(self._due, second)
            self.next = self._due[0]
        bucket[entry] = None

    def take_out(self, entry: Entry) -> None:
        """Let an entry never end.

        Args:
            entry: the entry.
        """
        if entry.ends == inf:
            return
        second = ceil(entry.ends)
        entry.ends = inf
        bucket = self._buckets[second]
        del bucket[entry]
        if not bucket:
            del self._buckets[second]
            if len(self._due) > 2 * len(self._buckets) + _MOST_STALE:
                self._due = list(self._buckets)
                heapify(self._due)
                self._look()

    def first(self) -> Entry | None:
        """Give one that ends in the second `next`.

        Returns:
            An entry; ``None`` if nothing ends then any more, and `next` has moved on.
        """
        bucket = self._buckets.get(self._due[0])
        if bucket is None:
            heappop(self._due)
            self._look()
            return None
        entry, _ = bucket.popitem()  # from its end: at the beginning, a dict that was deleted from is full of holes
        bucket[entry] = None
        return entry

    def in_second_of(self, now: float) -> list[Entry]:
        """Give those that end in this second, before or after now.

        Args:
            now: the time, in seconds.

        Returns:
            They.
        """
        return list(self._buckets.get(ceil(now), ()))

    def _look(self) -> None:
        self.next = self._due[0] if self._due else inf
