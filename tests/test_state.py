"""Whose state is bound. What its calls do is in test_store_contract.py, how values are written in test_codec.py."""

import pytest

from asgi_context import Identity, MemoryStore, bind_context, current_state

pytestmark = pytest.mark.anyio


async def test_the_state_that_is_bound_is_the_one_of_the_tenant_and_user() -> None:
    store = MemoryStore()
    with bind_context(Identity("acme", "ann"), store=store):
        assert repr(current_state()) == "SharedState(tenant='acme', user='ann')"
        kept = current_state()
        await kept.update_field("a", "b", 1)
    with bind_context(Identity("acme"), store=store):
        assert repr(current_state()) == "SharedState(tenant='acme', user=None)"
        assert await current_state().list_states() == []
        assert await kept.list_states() == ["a"], "an object that was kept stays its own tenant's and user's"
