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

    A call that is broken off in between, by Ctrl-C or for want of stack, may leave an entry in a bucket that is not its
    own, or in none: nothing here relies on it.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Entry, None]] = {}
        self._due: list[int] = []  # a heap of their seconds, and of some that are no more
        self.next = inf
        """From when on `first` should be asked, in seconds."""

    def put(self, entry: Entry, ends: float) -> None:
        """Let an entry end.

        Args:
            entry: the entry.
            ends: when, in seconds; infinity for never.
        """
        if ends == inf:
            self.take_out(entry)
            return
        second = ceil(ends)
        if entry.ends != inf:
            self.take_out(entry)
        entry.ends = ends
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
        bucket = self._buckets.get(second)
        if bucket is not None:
            bucket.pop(entry, None)
            if not bucket:
                self._forget(second)
        entry.ends = inf

    def first(self) -> Entry | None:
        """Take one out that ends in the second `next`, or before.

        Returns:
            An entry; ``None`` if nothing ends then any more, and `next` has moved on.
        """
        second = self._due[0]
        bucket = self._buckets.get(second)
        if not bucket:
            heappop(self._due)
            self._buckets.pop(second, None)
            self._look()
            return None
        entry, _ = bucket.popitem()  # from its end: at its beginning, a dict that was deleted from is full of holes
        return entry

    def _forget(self, second: int) -> None:
        self._buckets.pop(second, None)
        if len(self._due) > 2 * len(self._buckets) + _MOST_STALE:
            self._buckets = dict(self._buckets)
            self._due = list(self._buckets)
            heapify(self._due)
            self._look()

    def _look(self) -> None:
        self.next = self._due[0] if self._due else inf
