"""The state of whoever is bound."""

from typing import TypeVar, overload

from asgi_context._blocking import app_loop
from asgi_context._context import REQUIRED, current_binding
from asgi_context._state._shared import SharedState, make_state
from asgi_context.errors import ContextNotBoundError, StoreNotBoundError

_T = TypeVar("_T")


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
    loop = None if getattr(store, "immediate", False) else app_loop(binding.services.app_loop)
    state = make_state(store, (tenant, binding.user), loop)
    binding.state = state
    if binding.revoked:  # asked after the store above, or a thread could put back what a revocation took away
        binding.state = None
        binding.check("state")
    return state
