"""What a forked process must not keep of its parent's: ends of pipes, and whoever counts on threads.

An end that a sibling holds too is never closed: neither does a worker learn that its parent is gone, nor the parent
that its worker is.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from socket import socket, socketpair
from threading import Lock, get_ident
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary, WeakSet

_T = TypeVar("_T")


class _Forks:
    def __init__(self) -> None:
        # Held while this process is forked, so that no pair is half known then. Whoever holds it asks for no other.
        self._lock = Lock()
        self._ends: WeakSet[socket] = WeakSet()
        self._kept: dict[int, socket] = {}  # by the thread that forks
        self._forgetting: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()

    def pair(self) -> tuple[socket, socket]:
        """Make a pipe whose ends are closed in every process that is forked off.

        Returns:
            Its two ends.
        """
        with self._lock:
            pair = socketpair()
            self._ends.update(pair)
        return pair

    def add_end(self, end: socket) -> None:
        """Close an end that was made elsewhere in every process that is forked off.

        Args:
            end: the end.
        """
        with self._lock:
            self._ends.add(end)

    def add(self, part: _T, forget: Callable[[_T], None]) -> None:
        """Have something begin anew in every process that is forked off: what was under way is the parent's.

        Args:
            part: what.
            forget: is called with it there.
        """
        with self._lock:
            self._forgetting[part] = forget

    @contextmanager
    def keeping(self, end: socket) -> Generator[None, None, None]:
        """Leave an end to the process that is forked off by this thread inside of the block.

        Args:
            end: the end.

        Yields:
            Nothing.
        """
        self._kept[get_ident()] = end
        try:
            yield
        finally:
            self._kept.pop(get_ident(), None)

    def hold(self) -> None:
        self._lock.acquire()

    def let_go(self) -> None:
        self._lock.release()

    def forget(self) -> None:
        kept, ends = self._kept.get(get_ident()), list(self._ends)
        self._kept.clear()
        self._ends.clear()
        for end in ends:
            if end is not kept:
                end.close()
        for part, forget in list(self._forgetting.items()):
            forget(part)
        self._lock.release()


forks: Final = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=forks.hold, after_in_parent=forks.let_go, after_in_child=forks.forget)
