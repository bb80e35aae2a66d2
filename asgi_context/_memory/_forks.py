"""Locks that are free in a process that was forked off."""

import os
from threading import Lock
from typing import Final
from weakref import WeakSet


class _Forks:
    """Holds all locks while the process is forked: the child has no thread that would let go of one.

    What they guard is whole then. A new lock in the child would guard what another thread was in the midst of.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._locks: WeakSet[Lock] = WeakSet()
        self._held: list[Lock] = []

    def add(self, lock: Lock) -> None:
        """Free a lock in the processes that are forked off from now on.

        Args:
            lock: the lock.
        """
        with self._lock:
            self._locks.add(lock)

    def hold(self) -> None:
        self._lock.acquire()
        self._held = list(self._locks)
        for lock in self._held:
            lock.acquire()

    def let_go(self) -> None:
        held, self._held = self._held, []
        for lock in held:
            lock.release()
        self._lock.release()


forks: Final = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=forks.hold, after_in_parent=forks.let_go, after_in_child=forks.let_go)
