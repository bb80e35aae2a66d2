"""Shared state: named hashes ("states") of one tenant and user, or of a whole tenant."""

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from asgi_context._codec import decode, encode
from asgi_context._context import REQUIRED, current_binding
from asgi_context._types import Space, Store
from asgi_context.errors import ContextNotBoundError, StoreNotBoundError

_T = TypeVar("_T")


class SharedState:
    """The states of one tenant and user, or of a whole tenant.

    Holds its tenant and user by itself: wherever the object is taken, it stays theirs. Its methods are coroutines, for
    the event loop: a function in a thread returns what is to be kept. A state is a hash of fields; without fields it
    does not exist. Values come back equal and of the same type: ``None``, ``bool``, ``int``,
    ``float`` (finite), ``str``, ``list``, and ``dict`` with ``str`` keys.

    Args:
        store: where the states are kept.
        tenant: the tenant.
        user: the user inside the tenant; ``None`` for the states of the whole tenant.

    Raises:
        TypeError: tenant or user is no str.
        ValueError: tenant or user is empty.
    """

    __slots__ = ("_space", "_store")

    def __init__(self, store: Store, tenant: str, user: str | None = None) -> None:
        _name(tenant, "tenant")
        if user is not None:
            _name(user, "user")
        self._store = store
        self._space: Space = (tenant, user)

    def __repr__(self) -> str:
        tenant, user = self._space
        return f"SharedState(tenant={tenant!r}, user={user!r})"

    async def upsert(self, key: str, data: Mapping[str, Any]) -> bool:
        """Merge fields into a state, which is made where there is none.

        Args:
            key: name of the state.
            data: values by field, at least one.

        Returns:
            Whether this call made the state.

        Raises:
            ValueError: ``data`` is empty, or a name is.
            TypeError: a name is not a str, or ``data`` no mapping.
            StateSerializationError: a value cannot be kept exactly; nothing was written.
        """
        _name(key, "key")
        if not isinstance(data, Mapping):
            message = f"data must be a mapping of values by field, not {type(data).__qualname__}"
            raise TypeError(message)
        if not data:
            message = "data must have at least one field: a state without fields does not exist"
            raise ValueError(message)
        fields = {_name(field, "field"): encode(key, field, value) for field, value in data.items()}
        return await self._store.merge(self._space, key, fields)

    async def get(self, key: str) -> dict[str, Any] | None:
        """Read a whole state.

        Args:
            key: name of the state.

        Returns:
            A copy, values by field; ``None`` only where there is no such state.
        """
        fields = await self._store.read(self._space, _name(key, "key"))
        return None if fields is None else {field: decode(text) for field, text in fields.items()}

    async def get_field(self, key: str, field: str, default: Any = None) -> Any:  # noqa: ANN401 - what was stored
        """Read one field of a state.

        Args:
            key: name of the state.
            field: name of the field.
            default: what to return where there is no such state or field.

        Returns:
            A copy of the value, or the default.
        """
        text = await self._store.read_field(self._space, _name(key, "key"), _name(field, "field"))
        return default if text is None else decode(text)

    async def update_field(self, key: str, field: str, value: Any) -> bool:  # noqa: ANN401 - what is to be stored
        """Set one field of a state, which is made where there is none.

        Args:
            key: name of the state.
            field: name of the field.
            value: what to keep.

        Returns:
            Whether this call made the state.

        Raises:
            StateSerializationError: the value cannot be kept exactly; nothing was written.
        """
        _name(key, "key")
        return await self._store.merge(self._space, key, {_name(field, "field"): encode(key, field, value)})

    async def delete_field(self, key: str, field: str) -> int:
        """Delete one field of a state; with its last field the state is gone.

        Args:
            key: name of the state.
            field: name of the field.

        Returns:
            How many were deleted, 0 or 1.
        """
        return await self._store.remove_field(self._space, _name(key, "key"), _name(field, "field"))

    async def delete(self, key: str) -> int:
        """Delete a state.

        Args:
            key: name of the state.

        Returns:
            How many were deleted, 0 or 1.
        """
        return await self._store.remove(self._space, _name(key, "key"))

    async def exists(self, key: str) -> bool:
        """Say whether there is such a state.

        Args:
            key: name of the state.

        Returns:
            Whether there is.
        """
        return await self._store.exists(self._space, _name(key, "key"))

    async def list_states(self) -> list[str]:
        """List the states of this tenant and user, and of nobody else.

        Returns:
            Their names, sorted.
        """
        return sorted(await self._store.names(self._space))

    async def clear_all_states(self) -> int:
        """Delete all states of this tenant and user, and of nobody else.

        Returns:
            How many were deleted.
        """
        return await self._store.clear(self._space)


def _name(name: object, what: str) -> str:
    if not isinstance(name, str):
        message = f"{what} must be a str, not {type(name).__qualname__}"
        raise TypeError(message)
    if not name:
        message = f"{what} must not be empty"
        raise ValueError(message)
    return name


@overload
def current_state() -> SharedState: ...
@overload
def current_state(default: _T, /) -> SharedState | _T: ...
def current_state(default: object = REQUIRED, /) -> object:
    """Give the shared state of the tenant and user on whose behalf this code runs.

    Args:
        default: what to return where nothing is bound, instead of raising.

    Returns:
        The `SharedState` of the bound tenant and user; where the user is ``None``, of the whole tenant.

    Raises:
        ContextNotBoundError: nothing is bound here, and there is no default.
        StoreNotBoundError: an identity is bound here, but no store, and there is no default.
        ContextClosedError: what is bound here was revoked, whatever the default.
    """
    binding = current_binding()
    if binding.state is not None:
        return binding.state
    binding.check("state")
    tenant, store = binding.tenant, binding.services.store
    if tenant is None or store is None:
        if default is not REQUIRED:
            return default
        raise ContextNotBoundError("state") if tenant is None else StoreNotBoundError
    state = binding.state = SharedState(store, tenant, binding.user)
    if binding.revoked:  # asked after the store above, or a thread could put back what a revocation took away
        binding.state = None
        binding.check("state")
    return state
