"""What crosses into another process with a job: who asks, chosen values, and where the store is.

All else that is bound belongs to the process that it was made in.
"""

import pickle
from collections.abc import Collection, Generator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, Literal, NamedTuple, NoReturn, cast

from asgi_context._context import Services, current_binding, enter_binding, make_binding
from asgi_context._identity import Identity, read_id
from asgi_context._processes._stores import CrossedStore, Stores
from asgi_context._types import Store
from asgi_context.errors import ProcessContextError, StoreNotSharedError
from asgi_context.values import chosen_values, request_context


class Crossing(NamedTuple):
    """What crosses with one job, as plain values."""

    identity: tuple[str, str | None, dict[str, Any], float | None] | None
    request_id: str | None
    values: dict[str, Any] | None
    """``None`` where they had ended."""
    store: tuple[str, bytes | str] | None
    """The name of its type, and its pickle, or why there is none."""
    revoked: Literal["revoked", "messages"] | None


class Crossings:
    """Takes what crosses, where a job is submitted.

    Args:
        values: which of `asgi_context.values` cross, by name.
    """

    def __init__(self, values: Collection[str]) -> None:
        self._values = tuple(values)
        self._last: tuple[Store, tuple[str, bytes | str]] | None = None

    def take(self) -> Crossing:
        """Take what is bound here.

        Returns:
            What crosses of it.
        """
        binding = current_binding()
        if binding.revoked:
            return Crossing(None, None, None, None, binding.revoked)
        identity = None
        if binding.tenant is not None:
            identity = binding.tenant, binding.user, binding.claims.to_dict(), binding.expires_at
        return Crossing(
            identity,
            None if binding.ids is None else read_id(binding.ids),
            chosen_values(self._values),
            None if binding.services.store is None else self._address_of(binding.services.store),
            None,
        )

    def _address_of(self, store: Store) -> tuple[str, bytes | str]:
        # An app has one, which does not change.
        if self._last is None or self._last[0] is not store:
            name = type(store).__qualname__
            made: bytes | str
            try:
                made = pickle.dumps(store)
            except StoreNotSharedError as error:
                made = error.reason
            except Exception as error:  # noqa: BLE001 - whatever pickle raises; the job may not need it
                made = f"it cannot be pickled ({type(error).__qualname__}: {error})"
            self._last = store, (name, made)
        return self._last[1]


class _StaysBehind(dict[Any, Any]):
    """In place of what a middleware has by name or type."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def get(self, key: object, default: object = None) -> NoReturn:  # noqa: ARG002 - as any mapping's
        raise ProcessContextError(self._what)


_SERVICES: Final = Services(pools=_StaysBehind("pools"), factories=_StaysBehind("resources"))


@contextmanager
def bound(crossing: Crossing, stores: Stores) -> Generator[None, None, None]:
    """Bind what has crossed, for a block.

    Args:
        crossing: what has crossed.
        stores: those of this process.

    Yields:
        Nothing.
    """
    services = _SERVICES
    if crossing.store is not None:
        services = services._replace(store=cast("Store", CrossedStore(stores, *crossing.store)))
    identity = None if crossing.identity is None else Identity(*crossing.identity)
    binding = make_binding(identity, services, None if crossing.request_id is None else [crossing.request_id])
    values = crossing.values
    token = enter_binding(binding)
    if crossing.revoked:
        binding.revoke(crossing.revoked)
    elif values is None:
        binding.ended = True
    elif identity is not None:
        binding.values, values = values, None
    try:
        with request_context(**values) if values else nullcontext():  # of a block, where nothing was bound
            yield
    finally:
        binding.leave(token)
