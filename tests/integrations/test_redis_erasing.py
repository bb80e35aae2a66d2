"""Erasing a tenant in steps, while others erase it too, write into it, or break off: nothing stays that is not found."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from typing import Any

import pytest
import redis_servers

from asgi_context import KEEP
from asgi_context.errors import StateUnavailableError
from asgi_context.redis import RedisStore
from asgi_context.redis import _scripts as scripts

pytestmark = pytest.mark.anyio

ANN = "acme", "ann"
ONE = {"f": b"1"}
Hook = Callable[[Any, list[str]], Awaitable[None]]

numbers = itertools.count()


class Tenant:
    """What all its stores hold, on servers of one kind; as many states as are not cleared in one step."""

    def __init__(self, kind: str) -> None:
        self.servers = redis_servers.shared(kind)
        self.prefix = f"erasing{next(numbers)}"
        self.many = 3 if kind == "cluster" else 1500
        self.stores: list[RedisStore] = []

    def store(self, *, before: Hook | None = None, after: Hook | None = None) -> RedisStore:
        """One of another process, say: with something that happens before or after its scripts."""
        made: RedisStore = self.servers.store(prefix=self.prefix, timeout=20)
        self.stores.append(made)
        link: Any = made._link()
        run = link.run

        async def hooked(script: Any, keys: list[str], *arguments: Any, **options: Any) -> Any:
            if before is not None:
                await before(script, keys)
            answer = await run(script, keys, *arguments, **options)
            if after is not None:
                await after(script, keys)
            return answer

        link.run = hooked
        return made

    async def fill(self) -> None:
        store = self.store()
        await asyncio.gather(*(store.merge(ANN, f"s{number}", ONE, None) for number in range(self.many)))

    def left(self) -> dict[bytes, Any]:
        """All keys, but for the indexes that remain empty for a minute."""
        found = {}
        for server in self.servers.masters():
            with closing(server.client()) as client:
                for key in client.keys(f"{self.prefix}:*"):
                    members = client.zrange(key, 0, -1) if client.type(key) == b"zset" else None
                    if members != [b"\xff"] or not 0 < client.pttl(key) <= 60_000:
                        found[key] = client.pttl(key), members
        return found

    def indexes(self) -> list[int]:
        """For how many milliseconds the indexes are kept."""
        found: list[int] = []
        for server in self.servers.masters():
            with closing(server.client()) as client:
                found += [client.pttl(key) for key in client.keys(f"{self.prefix}:*:states")]
        return found


@pytest.fixture(params=["redis", "cluster"])
async def tenant(request: pytest.FixtureRequest, asyncio_only: None) -> AsyncIterator[Tenant]:
    made = Tenant(request.param)
    yield made
    with suppress(StateUnavailableError):
        await made.store().erase("acme")
    for store in made.stores:
        await store.close()


async def test_what_is_written_between_two_who_erase_is_found_by_the_next(tenant: Tenant) -> None:
    """One has begun, the writer registers, the other erases all and takes the user out, the first goes on."""
    begun, registered, cleared, ended = (asyncio.Event() for _ in range(4))

    async def wait_after_the_first_step(script: Any, keys: list[str]) -> None:
        if script is scripts.CLEAR and not begun.is_set():
            begun.set()
            await cleared.wait()

    async def wait_once_registered(script: Any, _: list[str]) -> None:
        if script is scripts.REGISTER and not registered.is_set():
            registered.set()
            await ended.wait()

    async def say_when_cleared(script: Any, _: list[str]) -> None:
        if script is scripts.UNREGISTER:
            cleared.set()

    await tenant.fill()
    first = tenant.store(after=wait_after_the_first_step)
    other = tenant.store(before=say_when_cleared)
    writer = tenant.store(after=wait_once_registered)

    async def erase_first() -> None:
        await first.erase("acme")
        ended.set()

    async def write() -> None:
        await begun.wait()
        await writer.merge(ANN, "late", ONE, None)

    async def erase_too() -> None:
        await registered.wait()
        await other.erase("acme")

    async with asyncio.timeout(30):
        await asyncio.gather(erase_first(), write(), erase_too())
    assert await writer.names(ANN) == ["late"]
    assert await tenant.store().erase("acme") == 1
    assert tenant.left() == {}


async def test_where_erasing_was_broken_off_a_short_life_does_not_end_the_index_of_the_others(tenant: Tenant) -> None:
    async def break_off(script: Any, _: list[str]) -> None:
        if script is scripts.CLEAR:
            raise asyncio.CancelledError

    await tenant.fill()
    with pytest.raises(asyncio.CancelledError):
        await tenant.store(after=break_off).erase("acme")
    store = tenant.store()
    await store.merge(ANN, "short", ONE, 1)
    assert tenant.indexes() == [-1]
    left = len(await store.names(ANN))
    assert left > 1
    assert await store.erase("acme") == left
    assert tenant.left() == {}


async def test_what_was_written_while_a_space_is_cleared_keeps_its_index(tenant: Tenant) -> None:
    """The empty index that erasing leaves ends by itself, unless somebody has written into it since."""
    store = tenant.store()
    await store.merge(ANN, "s", ONE, None)
    await store.erase("acme")
    assert all(0 < left <= 60_000 for left in tenant.indexes())
    await store.merge(ANN, "s", ONE, None)
    assert tenant.indexes() == [-1]
    await store.clear(ANN)
    await store.merge(ANN, "s", ONE, None)
    assert tenant.indexes() == [-1]


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_goes_on_meanwhile_a_later_erase_finds_all(tenant: Tenant, seed: int) -> None:
    chance = random.Random(seed)
    users = [("acme", "ann"), ("acme", "bob"), ("acme", None)]

    async def dawdle(*_: Any) -> None:
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() / 200)

    stores = [tenant.store(before=dawdle, after=dawdle) for _ in range(3)]
    calls: list[Callable[[RedisStore, Any], Awaitable[object]]] = [
        lambda store, space: store.merge(
            space, f"s{chance.randrange(30)}", ONE, chance.choice([None, KEEP, 0.05, 500])
        ),
        lambda store, space: store.merge(space, f"s{chance.randrange(30)}", ONE, None),
        lambda store, space: store.increment(space, f"s{chance.randrange(30)}", "n", 1),
        lambda store, space: store.touch(space, f"s{chance.randrange(30)}", chance.choice([None, 0.05, 5000])),
        lambda store, space: store.count(space, f"c{chance.randrange(5)}", 1, chance.choice([0.05, 50, 50_000])),
        lambda store, space: store.acquire(space, f"l{chance.randrange(5)}", f"{chance.random()}", 9, 500),
        lambda store, space: store.remove(space, f"s{chance.randrange(30)}"),
        lambda store, space: store.clear(space),
        lambda store, _: store.erase("acme"),
    ]
    done = 0

    async def work() -> None:
        nonlocal done
        for _ in range(60):
            call = asyncio.ensure_future(chance.choice(calls)(chance.choice(stores), chance.choice(users)))  # type: ignore[arg-type]
            if chance.random() < 0.1:
                await asyncio.sleep(chance.random() / 500)
                call.cancel()
            await asyncio.wait({call})
            if not call.cancelled():
                with suppress(StateUnavailableError):  # it was erased again and again
                    call.result()
                    done += 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(work() for _ in range(12)))
    assert done > 500
    await asyncio.sleep(0.1)  # what was cancelled on its way arrives
    last = tenant.store()
    await last.erase("acme")
    assert tenant.left() == {}
