"""The same states for code that blocks."""

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from asgi_context._types import KEEP, Ttl

if TYPE_CHECKING:
    from asgi_context._state._shared import SharedState

_T = TypeVar("_T")


class _Run(Protocol):
    def __call__(self, call: Callable[[], Coroutine[Any, Any, _T]], /) -> _T: ...


class BlockingState:
    """`SharedState` for threads and scripts: the same methods, blocking. It is what `SharedState.sync` gives.

    In memory, calls are answered on the spot. Otherwise they run on the app's event loop, or where there is none on one
    of this process's own, and give up after the store's deadline. On the thread of a running event loop they raise at
    once, whatever the store.

    Args:
        state: whose methods these are.
        run: runs a coroutine to its end, and waits for it.
    """

    __slots__ = ("_run", "_state")

    def __init__(self, state: "SharedState", run: _Run) -> None:
        self._state = state
        self._run = run

    def __repr__(self) -> str:
        return f"{self._state!r}.sync"

    @property
    def tenant_wide(self) -> "BlockingState":
        """The states that all users of the tenant share."""
        return self._state.tenant_wide.sync

    def upsert(self, key: str, data: Mapping[str, Any], *, ttl: Ttl = KEEP) -> bool:
        """See `SharedState.upsert`."""
        return self._run(lambda: self._state.upsert(key, data, ttl=ttl))

    def replace(self, key: str, data: Mapping[str, Any], *, ttl: Ttl = KEEP) -> bool:
        """See `SharedState.replace`."""
        return self._run(lambda: self._state.replace(key, data, ttl=ttl))

    def get(self, key: str) -> dict[str, Any] | None:
        """See `SharedState.get`."""
        return self._run(lambda: self._state.get(key))

    def get_field(self, key: str, field: str, default: Any = None) -> Any:  # noqa: ANN401 - as there
        """See `SharedState.get_field`."""
        return self._run(lambda: self._state.get_field(key, field, default))

    def update_field(self, key: str, field: str, value: Any, *, ttl: Ttl = KEEP) -> bool:  # noqa: ANN401 - as there
        """See `SharedState.update_field`."""
        return self._run(lambda: self._state.update_field(key, field, value, ttl=ttl))

    def increment(self, key: str, field: str, by: float = 1) -> int | float:
        """See `SharedState.increment`."""
        return self._run(lambda: self._state.increment(key, field, by))

    def modify(self, key: str, func: Callable[[dict[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
        """See `SharedState.modify`."""
        return self._run(lambda: self._state.modify(key, func))

    def touch(self, key: str, ttl: float | None) -> bool:
        """See `SharedState.touch`."""
        return self._run(lambda: self._state.touch(key, ttl))

    def ttl(self, key: str) -> float | None:
        """See `SharedState.ttl`."""
        return self._run(lambda: self._state.ttl(key))

    def delete_field(self, key: str, field: str) -> int:
        """See `SharedState.delete_field`."""
        return self._run(lambda: self._state.delete_field(key, field))

    def delete(self, key: str) -> int:
        """See `SharedState.delete`."""
        return self._run(lambda: self._state.delete(key))

    def exists(self, key: str) -> bool:
        """See `SharedState.exists`."""
        return self._run(lambda: self._state.exists(key))

    def list_states(self) -> list[str]:
        """See `SharedState.list_states`."""
        return self._run(self._state.list_states)

    def clear_all_states(self) -> int:
        """See `SharedState.clear_all_states`."""
        return self._run(self._state.clear_all_states)
