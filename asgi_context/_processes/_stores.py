"""The stores of a process that runs jobs for others: found again by how they were pickled, and closed at the end."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from inspect import isawaitable
from threading import Lock
from typing import Any, Final

from asgi_context._blocking import run_on_loop
from asgi_context._crashes import log_crash
from asgi_context._types import Store
from asgi_context.errors import StoreNotSharedError

_MOST: Final = 8  # that are open at a time: each holds connections
_LONGEST: Final = 5.0  # seconds that closing one may take


class Stores:
    """Stores by their pickles, the last used ones open."""

    def __init__(self) -> None:
        self._lock = Lock()  # of the threads that a job may start
        self._open: OrderedDict[bytes, Store] = OrderedDict()

    def get(self, name: str, made: bytes) -> Store:
        """Give a store, and make it where there is none.

        Args:
            name: of its type.
            made: its pickle.

        Returns:
            The store.

        Raises:
            StoreNotSharedError: it cannot be unpickled.
        """
        with self._lock:
            store = self._open.pop(made, None)
            if store is None:
                try:
                    store = pickle.loads(made)  # noqa: S301 - it comes from the process that has started this one
                except Exception as error:
                    reason = f"it cannot be unpickled there ({type(error).__qualname__}: {error})"
                    raise StoreNotSharedError(name, reason) from error
            self._open[made] = store
            oldest = self._open.popitem(last=False)[1] if len(self._open) > _MOST else None
        if oldest is not None:
            _close(oldest)
        return store

    def close(self) -> None:
        """Close all."""
        with self._lock:
            stores = list(self._open.values())
            self._open.clear()
        for store in stores:
            _close(store)


def _close(store: Store) -> None:
    hook: Callable[[], object] | None = getattr(store, "close", None)
    if not callable(hook):
        return

    async def close() -> None:
        done = hook()
        if isawaitable(done):
            await done

    try:
        run_on_loop(close, _LONGEST, None)
    except Exception as error:  # noqa: BLE001 - of whatever store: the others are to be closed too
        with suppress(Exception):  # of whoever handles the log
            log_crash("closing a store of a process for jobs", error)


class CrossedStore:
    """A store as a job in another process has it: made when it is first used, since most jobs use none.

    Args:
        stores: those of this process.
        name: of its type.
        made: its pickle; a str where it has none, which says why.
    """

    __slots__ = ("_made", "_name", "_stores")

    def __init__(self, stores: Stores, name: str, made: bytes | str) -> None:
        self._stores = stores
        self._name = name
        self._made = made

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401 - of whatever store
        if attribute.startswith("__"):
            raise AttributeError(attribute)  # asked by Python itself, such as copy()
        if isinstance(self._made, str):
            raise StoreNotSharedError(self._name, self._made)
        return getattr(self._stores.get(self._name, self._made), attribute)
