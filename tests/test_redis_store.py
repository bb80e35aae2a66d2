"""What is `RedisStore`'s own, beyond what every store does: its options, what lies on the server, event loops, clients."""

import asyncio
import itertools
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any
from urllib.parse import unquote

import pytest
import redis
import redis_servers
from driver import Exchange, hello, http, run, who
from hypothesis import example, given
from hypothesis import strategies as st
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.crc import key_slot
from redis_servers import Server

from asgi_context import (
    KEEP,
    ContextMiddleware,
    SharedState,
    StateLimits,
    Store,
    current_state,
    from_header,
    run_in_pool,
)
from asgi_context._blocking import run_blocking
from asgi_context.errors import (
    StateBlockingError,
    StateLimitError,
    StateNotConfirmedError,
    StateNumberError,
    StateUnavailableError,
    UnsupportedLoopError,
)
from asgi_context.redis import RedisStore
from asgi_context.redis import _scripts as scripts
from asgi_context.redis._keys import Keys
from asgi_context.redis._link import Link

pytestmark = pytest.mark.anyio

Space = tuple[str, str | None]
ANN: Space = ("acme", "ann")
BOB: Space = ("acme", "bob")
WIDE: Space = ("acme", None)
OTHER: Space = ("other", "ann")
ONE = {"f": b"1"}
SOON = 30

numbers = itertools.count()


class Until:
    """When a key ends, to the second; Redis 6 says only how long it has to live."""

    def __init__(self, left: int, now: float) -> None:
        self.moment = left if left < 0 else left / 1000 + now

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Until) and abs(self.moment - other.moment) < 1

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"until {self.moment}"


class Place:
    """A server, and the keys of one test on it."""

    def __init__(self, servers: Any) -> None:
        self.servers = servers
        self.prefix = f"store{next(numbers)}"
        self.stores: list[RedisStore] = []
        self.client = servers.client()
        self.client.flushall()  # what other tests left here would end in the midst of this one

    def store(self, **options: Any) -> RedisStore:
        made: RedisStore = self.servers.store(**{"prefix": self.prefix, "timeout": 20, **options})
        self.stores.append(made)
        return made

    def key(self, space: Space, rest: str) -> str:
        tenant, user = space
        return f"{self.prefix}:{{{tenant if user is None else f'{tenant}:{user}'}}}:{rest}"

    def own(self) -> set[str]:
        """All that there are, but for what an erase leaves for a minute: that there was one, for who writes meanwhile."""
        keys = {key.decode() for key in self.client.keys(f"{self.prefix}:*")}
        left = {key for key in keys if self.is_left(key)}
        assert all(0 < self.client.ttl(key) <= 60 for key in left)
        return keys - left

    def is_left(self, key: str | bytes) -> bool:
        """Whether it is the index of what was erased, in which nothing is but that."""
        return self.client.type(key) == b"zset" and self.client.zrange(key, 0, -1) == [b"\xff"]

    def everything(self) -> dict[bytes, Any]:
        """All that is on the server, and until when."""
        found = {}
        for key in self.client.keys("*"):
            if self.is_left(key):
                continue
            kind = self.client.type(key)
            value = (
                self.client.hgetall(key)
                if kind == b"hash"
                else self.client.zrange(key, 0, -1, withscores=True)
                if kind == b"zset"
                else self.client.get(key)
            )
            found[key] = kind, value, Until(self.client.pttl(key), time.time())
        return found

    @contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """How often the server was told each command inside the block, also by scripts."""
        counts: dict[str, int] = {}
        self.client.config_resetstat()
        yield counts
        for name, stats in self.client.info("commandstats").items():
            counts[name.removeprefix("cmdstat_")] = stats["calls"]
        for own in ("config|resetstat", "info", "config"):
            counts.pop(own, None)

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """What the server was told inside the block, also by scripts, in order."""
        told: list[str] = []
        with self.client.monitor() as monitor:
            yield told
            self.client.echo("the end")
            while True:
                line = monitor.next_command()["command"]
                if line == "ECHO the end":
                    return
                told.append(line)


async def ended(place: Place) -> None:
    for store in place.stores:
        await store.close()
    for key in place.client.keys(f"{place.prefix}*"):
        place.client.delete(key)
    place.client.close()


@pytest.fixture(params=["redis", "fakeredis"])
async def place(request: pytest.FixtureRequest, asyncio_only: None) -> AsyncIterator[Place]:
    made = Place(redis_servers.shared(request.param))
    yield made
    await ended(made)


@pytest.fixture
async def real(asyncio_only: None) -> AsyncIterator[Place]:
    made = Place(redis_servers.shared("redis"))
    yield made
    await ended(made)


@pytest.fixture
def store(place: Place) -> RedisStore:
    return place.store()


# Options.


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"prefix": None}, TypeError, "prefix must be a str, not NoneType"),
        ({"prefix": b"a"}, TypeError, "prefix must be a str, not bytes"),
        *(
            ({"prefix": wrong}, ValueError, r"prefix must be ASCII letters, digits and \. _ - ~ @ : \| \+ =, not ")
            for wrong in ("", "a b", "a{b", "a}b", "ä", "a\n", "a/b", "a%b", "*")
        ),
        ({"default_ttl": 0}, ValueError, "default_ttl must be more than 0 seconds"),
        ({"default_ttl": -1}, ValueError, "default_ttl must be more than 0 seconds"),
        ({"default_ttl": math.inf}, ValueError, "default_ttl must be more than 0 seconds"),
        ({"default_ttl": math.nan}, ValueError, "default_ttl must be more than 0 seconds"),
        ({"default_ttl": "5"}, TypeError, "default_ttl must be a number of seconds, not str"),
        ({"default_ttl": True}, TypeError, "default_ttl must be a number of seconds, not bool"),
        ({"sliding": 1}, TypeError, "sliding must be a bool, not int"),
        ({"sliding": True}, ValueError, "sliding needs default_ttl"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds"),
        ({"timeout": math.inf}, ValueError, "timeout must be more than 0 seconds"),
        ({"timeout": None}, TypeError, "timeout must be a number of seconds, not NoneType"),
        ({"connections": 0}, ValueError, "connections must be at least 1, not 0"),
        ({"connections": 1.0}, TypeError, "connections must be an int, not float"),
        ({"connections": True}, TypeError, "connections must be an int, not bool"),
        ({"durable": -1}, ValueError, "durable must be at least 0, not -1"),
        ({"durable": True}, TypeError, "durable must be an int, not bool"),
        ({"limits": 5}, TypeError, "limits must be StateLimits, not int"),
        ({"limits": StateLimits(states=5)}, ValueError, "states and total_bytes are for the server to keep"),
        ({"limits": StateLimits(total_bytes=5)}, ValueError, "states and total_bytes are for the server to keep"),
        ({"other": 1}, TypeError, "other"),
    ],
)
def test_options_are_checked_when_the_store_is_made(options: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        RedisStore.from_url("redis://127.0.0.1", **options)
    with pytest.raises(error, match=told):
        RedisStore(Redis(), **options)


@pytest.mark.parametrize("client", [None, "redis://127.0.0.1", Redis, object(), redis.Redis()])
def test_a_client_is_one_of_redis_asyncio(client: Any) -> None:
    with pytest.raises(TypeError, match=r"^client must be a Redis or RedisCluster of redis\.asyncio, not \w+$"):
        RedisStore(client)


@pytest.mark.parametrize(
    "client",
    [Redis(decode_responses=True), RedisCluster("127.0.0.1", decode_responses=True)],
    ids=lambda client: type(client).__name__,
)
def test_a_client_that_decodes_answers_is_refused(client: Any) -> None:
    with pytest.raises(ValueError, match=r"^client must not decode answers: make it without decode_responses=True$"):
        RedisStore(client)


def test_a_store_is_made_without_a_loop_and_connects_to_nothing() -> None:
    port = redis_servers.free_port()
    for form in ("redis://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/main", "redis+cluster://127.0.0.1:{}"):
        store = RedisStore.from_url(form.format(port), prefix="a:b")
        assert isinstance(store, Store)
        assert repr(store) == "<RedisStore a:b>"


def test_blocking_calls_wait_a_little_longer_than_the_call_itself() -> None:
    assert RedisStore.from_url("redis://h").deadline == 6.0
    assert RedisStore.from_url("redis://h", timeout=0.5).deadline == 1.5


# Keys.

IDENTIFIERS = st.text(st.characters(codec="utf-8"), min_size=1) | st.text("a:{}%/ _*", min_size=1, max_size=5)
USERS = st.none() | IDENTIFIERS
PREFIXES = st.from_regex(r"\A[A-Za-z0-9._~@|+=:\-]+\Z")


def hash_tag(key: str) -> str:
    """What is hashed, as the Redis Cluster specification has it, "Hash tags"."""
    start = key.find("{")
    if start >= 0:
        end = key.find("}", start + 1)
        if end > start + 1:
            return key[start + 1 : end]
    return key


def parsed(key: str) -> tuple[str, str, str | None, str]:
    """The way back: prefix, tenant, user, and the rest of a key."""
    found = re.fullmatch(r"([^{]*):\{([^{}:]*)(?::([^{}:]*))?\}:(.*)", key, re.DOTALL)
    assert found is not None
    prefix, tenant, user, rest = found.groups()
    return prefix, unquote(tenant), None if user is None else unquote(user), rest


@given(PREFIXES, IDENTIFIERS, USERS, IDENTIFIERS)
@example("a", "b:c", "d", "e")
@example("a:b", "c", "d", "e")
@example("a", "b", "c:d", "e")
@example("a", "b", None, "c")
@example("a", "}", "{}", "}:s:")
@example("a", "%3A", ":", "%")
@example("a", "*", "*", "*")
@example("a", "_", "a_b", "a_b_c")
@example("a", "ä\n", "\x00", "\r\n")
def test_what_a_key_is_made_of_can_be_told_from_it_so_that_no_two_share_one(
    prefix: str, tenant: str, user: str | None, state: str
) -> None:
    keys = Keys(prefix)
    assert parsed(keys.state((tenant, user), state)) == (prefix, tenant, user, f"s:{state}")
    assert parsed(keys.users(tenant)) == (prefix, tenant, None, "users")
    assert parsed(keys.of((tenant, user))) == (prefix, tenant, user, "")


@given(PREFIXES, IDENTIFIERS, USERS, IDENTIFIERS)
def test_all_keys_of_a_user_are_in_one_slot(prefix: str, tenant: str, user: str | None, state: str) -> None:
    keys = Keys(prefix)
    space = tenant, user
    tag = hash_tag(keys.of(space))
    assert list(map(unquote, tag.split(":"))) == ([tenant] if user is None else [tenant, user])
    for key in (keys.state(space, state), *(keys.of(space) + rest for rest in ("states", "limits", f"c:{state}"))):
        assert hash_tag(key) == tag
        assert key_slot(key.encode()) == key_slot(tag.encode())


NAMES = [
    "a",
    "a:b",
    "a_b",
    "*",
    "?",
    "[a]",
    "{",
    "}",
    "{a}",
    "%",
    "%3A",
    " ",
    "\n",
    "\x00",
    "ä",
    "😀",
    "users",
    "states",
    "s:a",
]


async def test_names_of_any_kind_stay_apart_on_the_server(place: Place, store: RedisStore) -> None:
    spaces: list[Space] = [(tenant, user) for tenant in NAMES for user in (None, "a", tenant)]
    spaces = list(dict.fromkeys(spaces))
    for number, space in enumerate(spaces):
        for name in NAMES[number % 3 :: 3]:
            assert await store.merge(space, name, {"of": repr((space, name)).encode()}, KEEP) is True
            assert (await store.count(space, name, number + 1, 1000))[0] == number + 1
            assert await store.acquire(space, name, "me", 1, 1000)
    for number, space in enumerate(spaces):
        assert sorted(await store.names(space)) == sorted(NAMES[number % 3 :: 3])
        for name in NAMES[number % 3 :: 3]:
            assert await store.read(space, name) == {"of": repr((space, name)).encode()}
    assert await store.clear(spaces[0]) == len(NAMES[::3])
    for number, space in enumerate(spaces[1:], 1):
        assert len(await store.names(space)) == len(NAMES[number % 3 :: 3])
    for tenant in NAMES:
        await store.erase(tenant)
    assert place.own() == set()


# What lies on the server.


async def test_a_state_is_a_hash_of_json_texts_with_its_version_under_the_empty_field(
    place: Place, store: RedisStore
) -> None:
    state = SharedState(store, "acme", "ann")
    await state.upsert("cart", {"items": ["book", 1.5], "open": True})
    key = f"{place.prefix}:{{acme:ann}}:s:cart"
    found = place.client.hgetall(key)
    version = found.pop(b"")
    assert {name.decode(): json.loads(text) for name, text in found.items()} == {"items": ["book", 1.5], "open": True}
    assert re.fullmatch(rb"\d+", version)
    assert place.client.ttl(key) == -1

    await state.update_field("cart", "open", False)
    assert place.client.hget(key, "open") == b"false"
    assert place.client.hget(key, "") != version, "each change makes another one"
    await state.tenant_wide.upsert("plan", {"name": "free"}, ttl=100)
    assert place.client.hget(f"{place.prefix}:{{acme}}:s:plan", "name") == b'"free"'
    assert 98 <= place.client.ttl(f"{place.prefix}:{{acme}}:s:plan") <= 100


async def test_beside_the_states_there_are_an_index_and_who_has_something(place: Place, store: RedisStore) -> None:
    await store.merge(ANN, "s", ONE, KEEP)
    await store.merge(ANN, "t", ONE, 100)
    await store.count(BOB, "c", 1, 100)
    await store.acquire(WIDE, "l", "me", 1, 100)
    assert place.own() == {
        place.key(ANN, "s:s"),
        place.key(ANN, "s:t"),
        place.key(ANN, "states"),
        place.key(BOB, "c:c"),
        place.key(BOB, "limits"),
        place.key(WIDE, "l:l"),
        place.key(WIDE, "limits"),
        place.key(WIDE, "users"),
    }
    assert set(place.client.zrange(place.key(ANN, "states"), 0, -1)) == {b"", b"s", b"t"}
    assert set(place.client.zrange(place.key(WIDE, "users"), 0, -1)) == {b"ann", b"bob", b""}


async def test_where_everything_has_a_time_to_live_everything_ends(place: Place, store: RedisStore) -> None:
    await store.merge(ANN, "s", ONE, 100)
    await store.count(BOB, "c", 1, 100)
    await store.acquire(WIDE, "l", "me", 1, 100)
    for key in place.own():
        assert 0 < place.client.ttl(key) < 4 * 3600, key


async def test_what_has_no_end_is_registered_without_one(place: Place, store: RedisStore) -> None:
    await store.merge(ANN, "s", ONE, 100)
    await store.merge(ANN, "t", ONE, None)
    for rest in (place.key(ANN, "states"), place.key(ANN, "s:t"), place.key(WIDE, "users")):
        assert place.client.ttl(rest) == -1
    await store.merge(BOB, "s", ONE, 100)
    assert place.client.ttl(place.key(WIDE, "users")) == -1, "since ann is in it"
    await store.touch(ANN, "s", None)
    assert place.client.ttl(place.key(ANN, "s:s")) == -1


# Nobody else's keys.


@pytest.fixture
async def crowd(place: Place, store: RedisStore) -> AsyncIterator[dict[bytes, Any]]:
    """What other stores, tenants, users and programs have on the same server."""
    others = [
        place.store(prefix=f"{place.prefix}{more}") for more in (":", ":x", "x", ":{acme:ann}:s:"[:1], "-s", "=acme")
    ]
    for other in others:
        for space in (ANN, BOB, WIDE):
            await other.merge(space, "s", ONE, KEEP)
            await other.count(space, "c", 1, 10_000)
    for space in (OTHER, ("other", None), ("acme:ann", None), ("acm", "e:ann"), ("acme ", "ann"), ("ACME", "ann")):
        await store.merge(space, "s", ONE, KEEP)
        await store.acquire(space, "l", "me", 1, 10_000)
    for key in ("acme", "{acme:ann}", "acme:ann", f"{place.prefix}", f"{place.prefix}:acme:ann:s:s"):
        place.client.set(key, "of another program")
    yield place.everything()
    for key in ("acme", "{acme:ann}", "acme:ann"):
        place.client.delete(key)


async def fill(store: RedisStore, *spaces: Space) -> None:
    for space in spaces:
        await store.merge(space, "s", ONE, KEEP)
        await store.merge(space, "t", ONE, 100)
        await store.count(space, "c", 1, 100)
        await store.acquire(space, "l", "me", 1, 100)


async def test_erase_touches_nothing_of_another_prefix_tenant_or_program(
    place: Place, store: RedisStore, crowd: dict[bytes, Any]
) -> None:
    await fill(store, ANN, BOB, WIDE)
    assert await store.erase("acme") == 6
    assert place.everything() == crowd


async def test_clear_touches_nothing_but_the_states_of_its_user(
    place: Place, store: RedisStore, crowd: dict[bytes, Any]
) -> None:
    await fill(store, BOB, WIDE, ANN)
    before = place.everything()
    assert await store.clear(ANN) == 2
    after = place.everything()
    assert before.keys() - after.keys() == {place.key(ANN, rest).encode() for rest in ("s:s", "s:t")}
    after.pop(place.key(ANN, "states").encode())
    assert after == {key: before[key] for key in after}
    assert (await store.count(ANN, "c", 1, 100))[0] == 2
    assert not await store.acquire(ANN, "l", "other", 1, 100)


async def test_removing_a_state_touches_nothing_else(place: Place, store: RedisStore, crowd: dict[bytes, Any]) -> None:
    await fill(store, ANN, BOB, WIDE)
    await store.merge(ANN, "u", ONE, KEEP)
    before = place.everything()
    assert await store.remove(ANN, "u") == 1
    after = place.everything()
    index = place.key(ANN, "states").encode()
    assert before.keys() - after.keys() == {place.key(ANN, "s:u").encode()}
    assert b"u" in dict(before.pop(index)[1])
    assert b"u" not in dict(after.pop(index)[1])
    assert after == {key: before[key] for key in after}


# A tenant erased.


async def test_erase_leaves_no_key_of_the_tenant(place: Place, store: RedisStore) -> None:
    users = [None, *NAMES, *(f"user {number}" for number in range(90))]
    for user in users:
        await fill(store, ("acme", user))
        await store.increment(("acme", user), "numbers", "n", 1)
        await store.replace(("acme", user), "t", {"g": b"2"}, None)
        await store.touch(("acme", user), "numbers", 100)
        await store.remove(("acme", user), "s")
    await store.merge(ANN, "many 0", ONE, KEEP)
    await asyncio.gather(*(store.merge(ANN, f"many {number}", ONE, KEEP) for number in range(1100)))
    await asyncio.gather(*(store.count(ANN, f"many {number}", 1, 1000) for number in range(1100)))
    await store.acquire(("acme", "only a lease"), "l", "me", 1, 100)
    await store.count(("acme", "only a counter"), "c", 1, 100)
    assert await store.erase("acme") == 2 * len(users) + 1100
    assert place.own() == set()
    assert await store.erase("acme") == 0


async def test_an_erase_that_is_broken_off_is_ended_by_the_next(place: Place, store: RedisStore) -> None:
    for number in range(120):
        await fill(store, ("acme", str(number)))
    for moment in (0, 1, 2, 3, 5, 8, 13, 21, 34):
        erasing = asyncio.ensure_future(store.erase("acme"))
        for _ in range(moment):
            await asyncio.sleep(0)
        erasing.cancel()
        await asyncio.wait([erasing])
    await store.erase("acme")
    assert place.own() == set()


async def test_an_erase_that_fails_for_one_user_is_done_for_the_others_and_for_that_one_by_the_next(
    place: Place, store: RedisStore
) -> None:
    await fill(store, ANN, BOB, WIDE)
    index = place.client.zrange(place.key(ANN, "states"), 0, -1, withscores=True)
    place.client.set(place.key(ANN, "states"), "of another program")
    with pytest.raises(StateUnavailableError, match="another program has put something under one of the store's"):
        await store.erase("acme")
    assert {key for key in place.own() if "{acme:ann}" not in key} == {place.key(WIDE, "users")}
    place.client.delete(place.key(ANN, "states"))
    place.client.zadd(place.key(ANN, "states"), dict(index))
    assert await store.erase("acme") == 2
    assert place.own() == set()


async def test_who_writes_again_after_an_erase_is_found_by_the_next(place: Place, store: RedisStore) -> None:
    for _ in range(3):
        await fill(store, ANN, BOB)
        assert await store.erase("acme") == 4
        assert place.own() == set()


# Registration: what is written can be found again.


async def test_the_first_write_of_a_user_registers_before_anything_is_written(real: Place) -> None:
    store = real.store()
    await store.merge(BOB, "s", ONE, KEEP)  # so that the server has the scripts
    writes: list[Any] = [
        lambda space: store.merge(space, "s", ONE, KEEP),
        lambda space: store.replace(space, "s", ONE, 100),
        lambda space: store.increment(space, "s", "n", 1),
        lambda space: store.replace_version(space, "s", ONE, b""),
        lambda space: store.count(space, "c", 1, 100),
        lambda space: store.acquire(space, "l", "me", 1, 100),
    ]
    for number, write in enumerate(writes):
        with real.watched() as told:
            await write(("acme", f"user{number}"))
        changes = [line.split()[:2] for line in told if line.split()[0] in {"ZADD", "HSET", "HINCRBY", "SET"}]
        assert changes[0] == ["ZADD", real.key(WIDE, "users")], write
        assert any(key.startswith(real.key(("acme", f"user{number}"), "")) for _, key in changes[1:])


@pytest.mark.parametrize("ttl", [None, 100])
async def test_what_is_erased_between_registering_and_writing_is_registered_again(
    place: Place, store: RedisStore, monkeypatch: pytest.MonkeyPatch, ttl: float | None
) -> None:
    run = Link.run
    erased = 0

    async def erase_after_registering(link: Any, script: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal erased
        answer = await run(link, script, *arguments, **options)
        if script is scripts.REGISTER and erased < 3:
            erased += 1
            await store.erase("acme")
            assert place.client.zscore(place.key(WIDE, "users"), "ann") is None
        return answer

    monkeypatch.setattr(Link, "run", erase_after_registering)
    await store.merge(ANN, "s", ONE, ttl)
    assert erased == 3
    assert await store.erase("acme") == 1
    assert place.own() == set()


async def test_who_is_erased_again_and_again_gives_up(
    place: Place, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Link.run

    async def erase_after_registering(link: Any, script: Any, *arguments: Any, **options: Any) -> Any:
        answer = await run(link, script, *arguments, **options)
        if script is scripts.REGISTER:
            await store.erase("acme")
        return answer

    monkeypatch.setattr(Link, "run", erase_after_registering)
    with pytest.raises(StateUnavailableError, match="the tenant is being erased again and again; try again later"):
        await store.merge(ANN, "s", ONE, KEEP)
    assert place.own() == set()


async def test_who_registers_while_it_is_being_erased_stays_registered(
    place: Place, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.merge(ANN, "s", ONE, KEEP)
    run = Link.run
    written = False

    async def write_before_it_is_unregistered(link: Any, script: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal written
        if script is scripts.UNREGISTER and not written:
            written = True
            await store.merge(ANN, "t", ONE, KEEP)
        return await run(link, script, *arguments, **options)

    monkeypatch.setattr(Link, "run", write_before_it_is_unregistered)
    assert await store.erase("acme") == 1
    assert await store.names(ANN) == ["t"]
    assert await store.erase("acme") == 1
    assert place.own() == set()


async def test_users_who_write_all_the_time_do_not_hide_others_from_an_erase(
    place: Place, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    active: list[Space] = [("acme", f"active {number}") for number in range(150)]
    idle: list[Space] = [("acme", f"idle {number}") for number in range(50)]
    await asyncio.gather(*(store.merge(space, "s", ONE, 100) for space in active))
    await asyncio.gather(*(store.merge(space, "s", ONE, None) for space in idle))
    run = Link.run

    async def write_again(link: Any, script: Any, keys: Any, arguments: Any, **options: Any) -> Any:
        answer = await run(link, script, keys, arguments, **options)
        if script is scripts.UNREGISTER and arguments[0].startswith(b"active"):
            await store.merge(("acme", arguments[0].decode()), "s", ONE, 100)
        return answer

    monkeypatch.setattr(Link, "run", write_again)
    assert await asyncio.wait_for(store.erase("acme"), SOON) >= 200
    for space in idle:
        assert await store.names(space) == []


@pytest.mark.parametrize("options", [{}, {"default_ttl": 50}, {"default_ttl": 50, "sliding": True}], ids=str)
async def test_after_the_first_write_every_call_is_one_round_trip(real: Place, options: Any) -> None:
    store = real.store(**options)
    calls: dict[str, Callable[[], Any]] = {
        "merge": lambda: store.merge(ANN, "s", ONE, KEEP),
        "merge for a time": lambda: store.merge(ANN, "t", ONE, 50),
        "merge for another time": lambda: store.merge(ANN, "t", ONE, 60),
        "replace": lambda: store.replace(ANN, "s", {"n": b"1"}, KEEP),
        "replace for a time": lambda: store.replace(ANN, "t", {"n": b"1"}, 50),
        "increment": lambda: store.increment(ANN, "s", "n", 1),
        "increment, a new one": lambda: store.increment(ANN, "u", "n", 1),
        "read": lambda: store.read(ANN, "s"),
        "read_field": lambda: store.read_field(ANN, "s", "f"),
        "read_version": lambda: store.read_version(ANN, "s"),
        "replace_version": lambda: store.replace_version(ANN, "s", ONE, b"0"),
        "replace_version, a new one": lambda: store.replace_version(ANN, "v", ONE, b""),
        "exists": lambda: store.exists(ANN, "s"),
        "names": lambda: store.names(ANN),
        "touch": lambda: store.touch(ANN, "s", 50),
        "remaining": lambda: store.remaining(ANN, "s"),
        "remove_field": lambda: store.remove_field(ANN, "t", "n"),
        "remove": lambda: store.remove(ANN, "u"),
        "count": lambda: store.count(ANN, "c", 1, 50),
        "count, a new one": lambda: store.count(ANN, "d", 1, 50),
        "acquire": lambda: store.acquire(ANN, "l", "me", 1, 50),
        "release": lambda: store.release(ANN, "l", "me"),
        "clear": lambda: store.clear(ANN),
        "merge after clear": lambda: store.merge(ANN, "s", ONE, KEEP),
    }
    for call in calls.values():
        await call()
    for name in ("u", "v"):
        await store.remove(ANN, name)
    real.client.delete(real.key(ANN, "c:d"))
    for name, call in calls.items():
        with real.watched() as told:
            await call()
        sent = [line.split()[0] for line in told]
        scripts_sent = [one for one in sent if one in {"EVALSHA", "EVAL"}]
        assert len(scripts_sent or sent) == 1, (name, sent)


async def test_a_write_with_a_time_to_live_registers_for_longer_so_that_the_next_need_not(real: Place) -> None:
    store = real.store()
    await store.merge(ANN, "s", ONE, 100)
    with real.counted() as counts:
        for _ in range(50):
            await store.merge(ANN, "s", ONE, 100)
            await store.merge(ANN, "t", ONE, 200)
    assert counts["evalsha"] == 100
    with real.counted() as counts:
        await store.merge(ANN, "u", ONE, 100_000)
        await store.merge(ANN, "u", ONE, 150_000)
    assert counts["evalsha"] == 3 + 1, "one that lasts longer registers anew, and for twice as long"


async def test_scripts_that_the_server_has_lost_are_sent_again(real: Place) -> None:
    store = real.store(default_ttl=100, sliding=True)
    for _ in range(2):
        for call in (
            lambda: store.merge(ANN, "s", {"n": b"1"}, KEEP),
            lambda: store.increment(ANN, "s", "n", 1),
            lambda: store.read(ANN, "s"),
            lambda: store.names(ANN),
            lambda: store.count(ANN, "c", 1, 10),
            lambda: store.clear(ANN),
        ):
            real.client.script_flush()
            await call()
    with real.counted() as counts:
        await asyncio.gather(*(store.merge(ANN, str(number), ONE, KEEP) for number in range(50)))
        await asyncio.gather(*(store.merge(ANN, str(number), ONE, KEEP) for number in range(50)))
    assert counts.get("eval", 0) <= 50
    assert counts["evalsha"] == 100


def test_a_script_is_named_by_its_digest() -> None:
    from hashlib import sha1

    made = [script for script in vars(scripts).values() if isinstance(script, scripts.Script)]
    assert len({script.digest for script in made}) == len(made) > 10
    for script in made:
        assert script.digest == sha1(script.text.encode()).hexdigest()


# Evicted.


@pytest.mark.parametrize("ttl", [None, 100], ids=["no end", "an end"])
async def test_an_index_that_was_evicted_comes_back_with_the_next_writes(
    place: Place, store: RedisStore, ttl: float | None
) -> None:
    for name in "abc":
        await store.merge(ANN, name, {"n": b"1"}, ttl)
    place.client.delete(place.key(ANN, "states"))
    assert await store.names(ANN) == []
    await store.merge(ANN, "a", ONE, KEEP)
    assert await store.names(ANN) == ["a"]
    await store.increment(ANN, "b", "n", 1)
    await store.replace(ANN, "c", ONE, KEEP)
    assert sorted(await store.names(ANN)) == ["a", "b", "c"]
    scores = dict(place.client.zrange(place.key(ANN, "states"), 0, -1, withscores=True))
    now = place.client.time()[0] * 1000
    for name in "abc":
        score = scores[name.encode()]
        assert score == math.inf if ttl is None else now + 98_000 <= score <= now + 101_000
        left = await store.remaining(ANN, name)
        assert left == math.inf if ttl is None else 98 < (left or 0) <= 100, "and the time to live is as it was"
    assert await store.erase("acme") == 3
    assert place.own() == set()


async def test_states_that_were_evicted_have_no_names(place: Place, store: RedisStore) -> None:
    for name in "abc":
        await store.merge(ANN, name, ONE, KEEP)
    place.client.delete(place.key(ANN, "s:b"))
    assert sorted(await store.names(ANN)) == ["a", "c"]
    assert await store.exists(ANN, "b") is False
    assert await store.merge(ANN, "b", ONE, KEEP) is True
    place.client.delete(place.key(ANN, "s:b"))
    assert await store.clear(ANN) == 2


async def test_a_state_that_has_ended_has_no_name_though_the_index_has_it_still(
    place: Place, store: RedisStore
) -> None:
    await store.merge(ANN, "a", ONE, KEEP)
    place.client.zadd(place.key(ANN, "states"), {"ended": 1000, "a": 1000})
    assert await store.names(ANN) == []


async def test_many_names_are_given_and_many_states_cleared(place: Place, store: RedisStore) -> None:
    await store.merge(ANN, "state 0", ONE, KEEP)
    await asyncio.gather(*(store.merge(ANN, f"state {number}", ONE, KEEP) for number in range(2500)))
    names = await store.names(ANN)
    assert sorted(names) == sorted(f"state {number}" for number in range(2500))
    assert await store.clear(ANN) == 2500
    assert await store.names(ANN) == []


# Limits.


async def test_a_user_has_no_more_states_than_the_limit(place: Place) -> None:
    store = place.store(limits=StateLimits(user_states=2))
    for space in (ANN, BOB, WIDE):
        await store.merge(space, "a", {"n": b"1"}, KEEP)
        await store.increment(space, "b", "n", 1)
        before = place.everything()
        for write in (
            lambda space: store.merge(space, "c", ONE, KEEP),
            lambda space: store.replace(space, "c", ONE, 100),
            lambda space: store.increment(space, "c", "n", 1),
            lambda space: store.replace_version(space, "c", ONE, b""),
        ):
            with pytest.raises(StateLimitError) as caught:
                await write(space)
            assert (caught.value.limit, caught.value.most) == ("user_states", 2)
        assert place.everything() == before, "nothing was written"
        await store.merge(space, "a", ONE, KEEP)
        await store.count(space, "c", 1, 100)
    await store.remove(ANN, "a")
    await store.merge(ANN, "c", ONE, KEEP)


async def test_states_that_have_ended_do_not_count(place: Place) -> None:
    store = place.store(limits=StateLimits(user_states=2))
    for name in "ab":
        await store.merge(ANN, name, ONE, 100)
        place.client.delete(place.key(ANN, f"s:{name}"))
        place.client.zadd(place.key(ANN, "states"), {name: 1000})  # as it is after these 100 seconds
    await store.merge(ANN, "c", ONE, KEEP)
    await store.merge(ANN, "d", ONE, KEEP)
    with pytest.raises(StateLimitError):
        await store.merge(ANN, "e", ONE, KEEP)
    assert sorted(await store.names(ANN)) == ["c", "d"]


async def test_a_state_has_no_more_fields_than_the_limit(place: Place) -> None:
    store = place.store(limits=StateLimits(fields=3))
    await store.merge(ANN, "s", {"a": b"1", "b": b"1"}, KEEP)
    await store.merge(ANN, "s", {"a": b"2", "b": b"2", "c": b"2"}, KEEP)
    before = place.everything()
    _, version = await store.read_version(ANN, "s")
    four = dict.fromkeys("abcd", b"1")
    for write in (
        lambda: store.merge(ANN, "s", {"a": b"3", "d": b"3"}, KEEP),
        lambda: store.merge(ANN, "t", four, KEEP),
        lambda: store.replace(ANN, "s", four, KEEP),
        lambda: store.replace(ANN, "t", four, KEEP),
        lambda: store.replace_version(ANN, "s", four, version),
        lambda: store.increment(ANN, "s", "d", 1),
    ):
        with pytest.raises(StateLimitError) as caught:
            await write()
        assert (caught.value.limit, caught.value.most) == ("fields", 3)
    assert place.everything() == before, "nothing was written"
    assert await store.increment(ANN, "s", "a", 1) == 3
    assert await store.replace(ANN, "s", dict.fromkeys("xyz", b"1"), KEEP) is False


async def test_a_value_is_no_longer_than_the_limit(place: Place) -> None:
    store = place.store(limits=StateLimits(value_bytes=10))
    await store.merge(ANN, "s", {"f": b"0123456789"}, KEEP)
    before = place.everything()
    for write in (store.merge, store.replace):
        with pytest.raises(StateLimitError) as caught:
            await write(ANN, "s", {"a": b"1", "f": b"0123456789a"}, KEEP)
        assert (caught.value.limit, caught.value.most) == ("value_bytes", 10)
    with pytest.raises(StateLimitError):
        await store.replace_version(ANN, "s", {"f": b"0123456789a"}, (await store.read_version(ANN, "s"))[1])
    assert place.everything() == before


async def test_what_is_no_number_is_not_counted_and_stays(place: Place, store: RedisStore) -> None:
    await store.merge(ANN, "s", {"text": b'"1"', "most": b"9223372036854775807", "huge": b"1e308"}, KEEP)
    before = place.everything()
    for field, by, why in (("text", 1, "type"), ("most", 1, "overflow"), ("huge", 1e308, "overflow")):
        with pytest.raises(StateNumberError) as caught:
            await store.increment(ANN, "s", field, by)
        assert (caught.value.state, caught.value.field, caught.value.why) == ("s", field, why)
    assert place.everything() == before


# Times to live that begin anew.


@pytest.fixture
def sliding(place: Place) -> RedisStore:
    return place.store(default_ttl=100, sliding=True)


READS: dict[str, Callable[[RedisStore, str], Any]] = {
    "read": lambda store, name: store.read(ANN, name),
    "read_field": lambda store, name: store.read_field(ANN, name, "f"),
}


def half_over(place: Place, name: str, left: float = 49) -> None:
    place.client.pexpire(place.key(ANN, f"s:{name}"), int(left * 1000))


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_a_read_renews_a_time_to_live_that_is_half_over(place: Place, sliding: RedisStore, read: Any) -> None:
    await sliding.merge(ANN, "s", ONE, KEEP)
    half_over(place, "s", 51)
    assert await read(sliding, "s") in (ONE, b"1")
    assert 49 < (await sliding.remaining(ANN, "s") or 0) <= 51, "it is not over yet"
    half_over(place, "s")
    assert await read(sliding, "s") in (ONE, b"1")
    assert 98 < (await sliding.remaining(ANN, "s") or 0) <= 100
    score = place.client.zscore(place.key(ANN, "states"), "s")
    now = place.client.time()[0] * 1000
    assert now + 98_000 < score <= now + 101_000, "and so the index has it"


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_only_what_lives_for_as_long_as_is_the_default_is_renewed(
    place: Place, sliding: RedisStore, read: Any
) -> None:
    await sliding.merge(ANN, "given", ONE, 100)
    await sliding.merge(ANN, "touched", ONE, KEEP)
    await sliding.touch(ANN, "touched", 100)
    await sliding.merge(ANN, "merged", ONE, KEEP)
    await sliding.merge(ANN, "merged", ONE, 100)
    await sliding.replace(ANN, "replaced", ONE, KEEP)
    await sliding.replace(ANN, "replaced", ONE, 100)
    for name in ("given", "touched", "merged", "replaced"):
        half_over(place, name)
        assert await read(sliding, name) in (ONE, b"1")
        assert (await sliding.remaining(ANN, name) or 0) <= 49, name
    await sliding.merge(ANN, "for ever", ONE, None)
    assert await read(sliding, "for ever") in (ONE, b"1")
    assert await sliding.remaining(ANN, "for ever") == math.inf
    assert await read(sliding, "not there") is None


async def test_what_was_written_by_any_way_and_kept_its_default_is_renewed(place: Place, sliding: RedisStore) -> None:
    await sliding.merge(ANN, "merged", ONE, KEEP)
    await sliding.merge(ANN, "merged", ONE, KEEP)
    await sliding.replace(ANN, "replaced", ONE, KEEP)
    await sliding.replace(ANN, "replaced", ONE, KEEP)
    await sliding.increment(ANN, "incremented", "f", 1)
    await sliding.increment(ANN, "incremented", "f", 0)
    await sliding.replace_version(ANN, "versioned", ONE, b"")
    await sliding.replace_version(ANN, "versioned", ONE, (await sliding.read_version(ANN, "versioned"))[1])
    await sliding.merge(ANN, "fewer", {"f": b"1", "g": b"1"}, KEEP)
    await sliding.remove_field(ANN, "fewer", "g")
    for name in ("merged", "replaced", "incremented", "versioned", "fewer"):
        half_over(place, name)
        await sliding.read(ANN, name)
        assert (await sliding.remaining(ANN, name) or 0) > 98, name


async def test_a_read_that_renews_does_not_change_the_version(place: Place, sliding: RedisStore) -> None:
    await sliding.merge(ANN, "s", ONE, KEEP)
    fields, version = await sliding.read_version(ANN, "s")
    assert fields == ONE
    half_over(place, "s")
    await sliding.read(ANN, "s")
    assert await sliding.read_version(ANN, "s") == (ONE, version)
    assert await sliding.replace_version(ANN, "s", {"g": b"2"}, version)


async def test_a_write_that_keeps_the_time_to_live_renews_nothing(place: Place, sliding: RedisStore) -> None:
    await sliding.merge(ANN, "s", {"f": b"1"}, KEEP)
    half_over(place, "s")
    await sliding.merge(ANN, "s", ONE, KEEP)
    await sliding.increment(ANN, "s", "f", 1)
    await sliding.replace(ANN, "s", ONE, KEEP)
    await sliding.exists(ANN, "s")
    await sliding.names(ANN)
    assert (await sliding.remaining(ANN, "s") or 0) <= 49


async def test_without_sliding_reads_renew_nothing(place: Place) -> None:
    store = place.store(default_ttl=100)
    await store.merge(ANN, "s", ONE, KEEP)
    half_over(place, "s")
    await store.read(ANN, "s")
    await store.read_field(ANN, "s", "f")
    assert (await store.remaining(ANN, "s") or 0) <= 49


async def test_most_reads_are_no_writes(real: Place) -> None:
    store = real.store(default_ttl=100, sliding=True)
    await store.merge(ANN, "s", ONE, KEEP)
    changes = real.client.info("persistence")["rdb_changes_since_last_save"]
    for _ in range(100):
        await store.read(ANN, "s")
        await store.read_field(ANN, "s", "f")
    assert real.client.info("persistence")["rdb_changes_since_last_save"] == changes
    half_over(real, "s")
    changes = real.client.info("persistence")["rdb_changes_since_last_save"]
    with real.counted() as counts:
        await asyncio.gather(*(store.read(ANN, "s") for _ in range(100)))
    assert counts["evalsha"] == 100
    assert counts["pexpireat"] == counts["zadd"] == 1, "of all that read, one renews"
    assert real.client.info("persistence")["rdb_changes_since_last_save"] - changes <= 2


async def test_a_read_that_renews_beyond_what_is_registered_registers_first(place: Place, sliding: RedisStore) -> None:
    await sliding.merge(ANN, "s", ONE, KEEP)
    soon = place.client.time()[0] * 1000 + 50_000
    place.client.zadd(place.key(ANN, "states"), {"": soon})
    place.client.zadd(place.key(WIDE, "users"), {"ann": soon})
    for read in READS.values():
        half_over(place, "s")
        assert await read(sliding, "s") in (ONE, b"1")
        assert (await sliding.remaining(ANN, "s") or 0) > 98
        assert place.client.zscore(place.key(WIDE, "users"), "ann") > soon + 50_000
        place.client.zadd(place.key(ANN, "states"), {"": soon})
        place.client.zadd(place.key(WIDE, "users"), {"ann": soon})


async def test_a_read_that_cannot_renew_reads_all_the_same(asyncio_only: None) -> None:
    """It may not write who has something, say, or that node of the cluster is down."""
    server = Server(user="reader on >pw ~asgi_context:{acme:ann}:* +@all")
    options: Any = {"default_ttl": 100, "sliding": True}
    try:
        async with (
            server.store(**options) as writer,
            RedisStore.from_url(f"redis://reader:pw@127.0.0.1:{server.port}", **options) as store,
        ):
            await writer.merge(ANN, "s", ONE, KEEP)
            server.run("ZADD", "asgi_context:{acme:ann}:states", 1, "")  # so that it would have to register again
            for read in READS.values():
                server.run("PEXPIRE", "asgi_context:{acme:ann}:s:s", 40_000)
                assert await read(store, "s") in (ONE, b"1")
                assert (await store.remaining(ANN, "s") or 0) <= 40
            with pytest.raises(StateUnavailableError, match="the server's ACL does not let this user do it"):
                await store.merge(ANN, "t", ONE, KEEP)
            assert await store.names(ANN) == ["s"]
    finally:
        server.close()


@pytest.mark.parametrize("field", [True, False])
async def test_a_read_that_cannot_register_in_half_of_its_time_still_reads(
    real: Place, monkeypatch: pytest.MonkeyPatch, *, field: bool
) -> None:
    store = real.store(default_ttl=100, sliding=True, timeout=1)
    await store.merge(ANN, "s", ONE, KEEP)
    real.client.zadd(real.key(ANN, "states"), {"": 1})
    half_over(real, "s")
    run = Link.run
    given: list[float] = []

    async def hang(link: Any, script: Any, *arguments: Any, **options: Any) -> Any:
        if script is scripts.REGISTER:
            loop = asyncio.get_running_loop()
            given.append(options["expires"] - loop.time())
            await asyncio.sleep(given[-1])
            raise StateUnavailableError("no answer")
        return await run(link, script, *arguments, **options)

    monkeypatch.setattr(Link, "run", hang)
    assert (await store.read_field(ANN, "s", "f") if field else await store.read(ANN, "s")) in (ONE, b"1")
    assert len(given) == 1
    assert 0.3 < given[0] <= 0.5


# Event loops, threads and processes.


def on_a_loop(main: Callable[[], Any]) -> Any:
    """Run a coroutine on an event loop of this thread's own."""
    return asyncio.run(main())


async def test_several_event_loops_in_several_threads_use_one_store(real: Place) -> None:
    store = real.store()
    together = threading.Barrier(4)

    async def work(name: str) -> list[float]:
        async with store:
            together.wait(SOON)
            try:
                mine = SharedState(store, "acme", name)
                assert await mine.upsert("mine", {"is": name})
                totals = [
                    total
                    for _ in range(20)
                    for total in await asyncio.gather(*(store.increment(ANN, "all", "n", 1) for _ in range(10)))
                ]
                assert await mine.get("mine") == {"is": name}
            finally:
                together.wait(SOON)
        return totals

    with ThreadPoolExecutor(4) as threads:
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(
            *(loop.run_in_executor(threads, on_a_loop, lambda name=name: work(name)) for name in "abcd")
        )
    assert sorted(total for totals in found for total in totals) == list(range(1, 801))
    assert await store.read(ANN, "all") == {"n": b"800"}
    assert len(store._links) == 1, "the others were closed"


async def test_a_loop_that_ended_without_a_close_is_forgotten(real: Place) -> None:
    store = real.store()
    await store.open()

    async def use() -> Any:
        await store.open()
        link = store._links[asyncio.get_running_loop()]
        await link.close()  # its connections only, so that none is left open here
        return link

    for _ in range(3):
        await asyncio.to_thread(on_a_loop, use)
        assert len(store._links) == 2
    await store.close()
    await store.open()
    assert len(store._links) == 1


async def test_after_close_it_can_be_used_again(place: Place, store: RedisStore) -> None:
    for _ in range(3):
        async with store as entered:
            assert entered is store
            await store.merge(ANN, "s", ONE, KEEP)
        await store.close()
    assert await store.read(ANN, "s") == ONE
    await store.open()
    await store.open()


async def test_the_connections_are_made_with_open_or_first_use_and_end_with_close(asyncio_only: None) -> None:
    server = Server()

    try:
        store = server.store(connections=3)
        assert count_clients(server) == 0
        await store.open()
        assert 1 <= count_clients(server) <= 3
        await asyncio.gather(*(store.read(("acme", str(number)), "s") for number in range(1000)))
        assert count_clients(server) == 3
        await store.close()
        redis_servers.until(lambda: count_clients(server) == 0)
    finally:
        server.close()


def count_clients(server: Server) -> int:
    """How many are connected, but for the one that asks."""
    return len(server.run("CLIENT", "LIST").splitlines()) - 1


async def test_what_waits_when_it_is_closed_is_answered_and_what_comes_later_connects_anew(real: Place) -> None:
    store = real.store()
    await store.increment(ANN, "s", "n", 1)
    asked = [asyncio.ensure_future(store.increment(ANN, "s", "n", 1)) for _ in range(50)]
    for _ in range(2):
        await asyncio.sleep(0)
    await store.close()
    assert sorted(await asyncio.gather(*asked)) == list(range(2, 52))
    assert await store.read(ANN, "s") == {"n": b"51"}


async def test_what_would_have_to_ask_again_after_a_close_says_that_it_was_closed(real: Place) -> None:
    store = real.store()
    await store.open()
    real.client.script_flush()
    asked = [asyncio.ensure_future(store.increment(ANN, "s", "n", 1)) for _ in range(3)]
    for _ in range(2):
        await asyncio.sleep(0)
    await store.close()
    for task in asked:
        with pytest.raises(StateUnavailableError, match="the store was closed meanwhile"):
            await task


async def test_under_trio_it_says_what_to_use_instead(trio_only: None) -> None:
    store = RedisStore.from_url("redis://127.0.0.1")
    calls: list[Callable[[], Any]] = [
        store.open,
        store.close,
        lambda: store.read(ANN, "s"),
        lambda: store.merge(ANN, "s", ONE, KEEP),
        lambda: store.count(ANN, "c", 1, 10),
        lambda: store.erase("acme"),
    ]
    for call in calls:
        with pytest.raises(
            UnsupportedLoopError, match=r"RedisStore needs a running asyncio event loop.* use MemoryStore"
        ):
            await call()


async def test_threads_reach_it_over_the_loop_of_the_app(real: Place) -> None:
    store = real.store()
    state = SharedState(store, "acme", "ann")
    with pytest.raises(StateBlockingError):
        state.sync.get("s")

    def work(number: int) -> None:
        for _ in range(20):
            state.sync.increment("s", "n")
            assert state.sync.upsert(f"own {number}", {"n": number}) in {True, False}
            assert state.sync.get(f"own {number}") == {"n": number}

    with ThreadPoolExecutor(8) as threads:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(threads, work, number) for number in range(8)))
    assert await state.get("s") == {"n": 160}
    assert list(store._links) == [loop], "and over no other"


def test_scripts_without_a_loop_use_it_blocking() -> None:
    place = Place(redis_servers.shared("redis"))
    store = place.store()
    try:
        state = SharedState(store, "acme", "ann").sync
        assert state.upsert("s", {"when": 1}) is True
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda _: state.increment("s", "n"), range(40)))
        assert state.get("s") == {"when": 1, "n": 40}
        assert state.list_states() == ["s"]
        assert state.clear_all_states() == 1
        assert len(store._links) == 1
    finally:
        run_blocking(store.close, store, None)
        with closing(place.client) as client:
            client.delete(*client.keys(f"{place.prefix}*"))


def test_a_blocking_call_ends_with_the_deadline_of_the_call() -> None:
    server = Server()
    store = server.store(timeout=0.3)
    state = SharedState(store, "acme", "ann").sync
    try:
        assert state.get("s") is None
        with server.paused(), pytest.raises(StateUnavailableError, match=r"^.*no answer within 0\.3 seconds$"):
            state.get("s")
        assert state.get("s") is None, "and it goes on where the server does"
    finally:
        run_blocking(store.close, store, None)
        server.close()


SCRIPT = """
import asyncio, os, signal, sys
from asgi_context import SharedState
from asgi_context.redis import RedisStore

def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")  # whole lines, whichever process says them

def in_child(work):
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            work()
        except BaseException as error:
            say("child raised", repr(error))
            os._exit(1)
        os._exit(0)
    return child

def wait_for(child):
    say("child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

store = RedisStore.from_url({url!r}, prefix={prefix!r}, timeout=20)
state = SharedState(store, "acme", "ann")
"""


def script(body: str) -> list[str]:
    """Run a script in a process of its own, where warnings are errors; what it said."""
    place = Place(redis_servers.shared("redis"))
    source = SCRIPT.format(url=place.servers.url, prefix=place.prefix) + textwrap.dedent(body)
    # That a process with threads is forked is the point here.
    allowed = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    try:
        ended = subprocess.run(
            [sys.executable, *allowed, "-c", source], capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        with closing(place.client) as client:
            for key in client.keys(f"{place.prefix}*"):
                client.delete(key)
    assert (ended.stderr, ended.returncode) == ("", 0)
    return ended.stdout.splitlines()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def test_a_script_ends_by_itself_and_in_silence() -> None:
    said = script("""
        say(state.sync.upsert("s", {"a": 1}))
        say(state.sync.get("s"))
    """)
    assert said == ["True", "{'a': 1}"]


@needs_fork
def test_a_forked_worker_has_connections_of_its_own_and_the_parent_keeps_its() -> None:
    said = script("""
        say("parent", state.sync.upsert("s", {"n": 0}))

        def work():
            say("child", all(isinstance(state.sync.increment("s", "n"), int) for _ in range(200)))

        children = [in_child(work) for _ in range(2)]
        say("parent", all(isinstance(state.sync.increment("s", "n"), int) for _ in range(200)))
        for child in children:
            wait_for(child)
        say("parent", state.sync.get("s"))
    """)
    assert sorted(said) == sorted([
        "parent True",
        "child True",
        "child True",
        "parent True",
        *["child ended with 0"] * 2,
        "parent {'n': 600}",
    ])


@needs_fork
def test_a_worker_that_is_forked_before_its_loop_runs_is_served() -> None:
    """As servers do that load the app once and fork afterwards."""
    said = script("""
        async def serve(name):
            async with store:
                await asyncio.gather(*(state.increment("s", "n") for _ in range(100)))
                say(name, "served")

        asyncio.run(serve("parent"))
        for _ in range(2):
            wait_for(in_child(lambda: asyncio.run(serve("child"))))
        asyncio.run(serve("parent"))
        say(state.sync.get("s"))
    """)
    assert said == [
        "parent served",
        *["child served", "child ended with 0"] * 2,
        "parent served",
        "{'n': 400}",
    ]


# A client that the user has made.


@asynccontextmanager
async def users_client(kind: str) -> AsyncIterator[Any]:
    servers = redis_servers.shared(kind)
    client: Any = (
        RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", servers.servers[0].port)])
        if kind == "cluster"
        else Redis(port=servers.port)
    )
    try:
        yield client
    finally:
        await client.aclose()


@pytest.mark.parametrize("kind", ["redis", "cluster"])
async def test_a_client_of_the_users_is_left_open_and_can_be_used_beside(asyncio_only: None, kind: str) -> None:
    prefix = f"users{next(numbers)}"
    async with users_client(kind) as client:
        store = RedisStore(client, prefix=prefix)
        for _ in range(2):
            await store.merge(ANN, "s", ONE, 100)
            key = f"{prefix}:{{acme:ann}}:s:s"
            together = store.read(ANN, "s"), client.hget(key, "f"), store.exists(ANN, "s")
            assert await asyncio.gather(*together) == [ONE, b"1", True]
            await store.close()
            assert await client.hget(key, "f") == b"1"
            assert await store.erase("acme") == 1
            await store.close()


@pytest.mark.parametrize("kind", ["redis", "cluster"])
async def test_a_client_of_the_users_that_nobody_has_used_before_is_closed_by_its_own_method(
    asyncio_only: None, kind: str
) -> None:
    async with users_client(kind) as client:
        store = RedisStore(client, prefix=f"users{next(numbers)}")
        await store.open()
        assert await store.read(ANN, "s") is None
        await store.close()


async def test_a_client_of_the_users_is_not_taken_to_another_loop(asyncio_only: None) -> None:
    async with users_client("redis") as client:
        store = RedisStore(client, prefix="users")
        await store.open()

        def in_thread() -> None:
            with pytest.raises(StateUnavailableError, match=r"belongs to another event loop: use from_url$"):
                on_a_loop(store.open)
            with pytest.raises(StateUnavailableError, match=r"belongs to another event loop: use from_url$"):
                on_a_loop(lambda: store.read(ANN, "s"))

        await asyncio.to_thread(in_thread)
        assert await store.read(ANN, "s") is None
        await store.close()


# In an app.


async def test_the_middleware_opens_it_with_the_lifespan_and_closes_it_and_tenants_stay_apart(
    asyncio_only: None,
) -> None:
    server = Server()
    store = server.store()
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            seen.append(("startup", count_clients(server) > 0))
            await send({"type": "lifespan.startup.complete"})
            await requests()
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        state = current_state()
        assert await state.increment("visits", "n") == await state.get_field("visits", "n")
        await state.tenant_wide.increment("visits", "n")
        await run_in_pool("threads", lambda: current_state().sync.increment("visits", "in threads"))
        seen.append((await state.get("visits"), await state.tenant_wide.get("visits")))
        await hello(scope, receive, send)

    middleware = ContextMiddleware(
        app, tenant=from_header("x-tenant-id"), user=from_header("x-user-id"), store=store, pools={"threads": 2}
    )

    async def requests() -> None:
        for tenant, user in (("acme", "ann"), ("acme", "ann"), ("acme", "bob"), ("other", "ann")):
            exchange = await run(middleware, http(*who(tenant, user)))
            assert exchange.status == 200

    try:
        exchange = Exchange([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
        await middleware({"type": "lifespan", "asgi": {"version": "3.0"}}, exchange.receive, exchange.send)
        assert [message["type"] for message in exchange.sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]
        assert seen == [
            ("startup", True),
            ({"n": 1, "in threads": 1}, {"n": 1}),
            ({"n": 2, "in threads": 2}, {"n": 2}),
            ({"n": 1, "in threads": 1}, {"n": 3}),
            ({"n": 1, "in threads": 1}, {"n": 1}),
        ]
        redis_servers.until(lambda: count_clients(server) == 0)
        assert store._links == {}
    finally:
        server.close()


async def test_where_no_server_answers_the_app_does_not_start(
    asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore.from_url(f"redis://127.0.0.1:{redis_servers.free_port()}", timeout=0.5)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    middleware = ContextMiddleware(app, tenant=from_header("x-tenant-id"), store=store)
    exchange = Exchange([{"type": "lifespan.startup"}])
    with pytest.raises(StateUnavailableError, match="see whether the server runs"):
        await middleware({"type": "lifespan", "asgi": {"version": "3.0"}}, exchange.receive, exchange.send)
    assert [message["type"] for message in exchange.sent] == ["lifespan.startup.failed"]
    await store.close()


# What the server refuses, and what gets lost.


async def test_what_somebody_else_has_put_under_a_key_is_an_error_that_says_so(place: Place, store: RedisStore) -> None:
    place.client.set(place.key(ANN, "s:s"), "of another program")
    calls: list[Callable[[], Any]] = [
        lambda: store.read(ANN, "s"),
        lambda: store.read_field(ANN, "s", "f"),
        lambda: store.merge(ANN, "s", ONE, KEEP),
    ]
    for call in calls:
        with pytest.raises(StateUnavailableError, match="another program has put something under one of the store's"):
            await call()
    assert place.client.get(place.key(ANN, "s:s")) == b"of another program"


async def test_an_error_that_nobody_knows_is_told_by_its_code(real: Place) -> None:
    store = real.store()
    await store.count(ANN, "c", 2**62, 1000)
    with pytest.raises(StateUnavailableError, match=r"the server refused the command \(ERR\)$"):
        await store.count(ANN, "c", 2**62, 1000)


async def test_a_connection_that_is_lost_is_made_again_and_reads_do_not_notice(real: Place) -> None:
    store = real.store(connections=1)
    await store.merge(ANN, "s", ONE, KEEP)
    for _ in range(5):
        real.client.client_kill_filter(_type="normal", skipme=True)
        assert await store.read(ANN, "s") == ONE
        real.client.client_kill_filter(_type="normal", skipme=True)
        assert await asyncio.gather(*(store.read_field(ANN, "s", "f") for _ in range(20))) == [b"1"] * 20


async def test_a_write_whose_answer_is_lost_is_not_sent_again(asyncio_only: None) -> None:
    server = Server()
    store = server.store(timeout=5, connections=1)
    try:
        await store.increment(ANN, "s", "n", 1)
        server.pause()
        writing = asyncio.ensure_future(store.increment(ANN, "s", "n", 1))
        reading = asyncio.ensure_future(store.read(ANN, "s"))
        await asyncio.sleep(0.05)
        server.kill()
        with pytest.raises(StateUnavailableError, match="the connection was lost before the answer came"):
            await writing
        with pytest.raises(StateUnavailableError, match="see whether the server runs"):
            await reading
        with pytest.raises(StateUnavailableError, match="see whether the server runs"):
            await store.increment(ANN, "s", "n", 1)
        server.start()
        assert await store.increment(ANN, "s", "n", 1) == 1
    finally:
        await store.close()
        server.close()


async def test_what_is_wrong_with_any_connection_shows_when_it_is_opened(asyncio_only: None) -> None:
    server = Server()
    try:
        store = server.store(connections=3, timeout=5)
        server.run("CONFIG", "SET", "maxclients", 2)
        with pytest.raises(StateUnavailableError):
            await store.open()
        await store.close()
        server.run("CONFIG", "SET", "maxclients", 100)
        await store.open()
        await store.close()
    finally:
        server.close()


async def test_whether_it_may_wait_for_replicas_shows_when_it_is_opened(asyncio_only: None) -> None:
    server = Server(user="hasty on >pw ~* +@all -wait")
    try:
        url = f"redis://hasty:pw@127.0.0.1:{server.port}"
        async with RedisStore.from_url(url) as store:
            assert await store.merge(ANN, "s", ONE, KEEP)
        store = RedisStore.from_url(url, durable=1)
        with pytest.raises(StateUnavailableError, match="the server's ACL does not let this user do it"):
            await store.open()
        await store.close()
    finally:
        server.close()


async def test_a_node_that_has_become_a_replica_does_not_keep_a_durable_store_from_opening(asyncio_only: None) -> None:
    """Writes find the new master."""
    server = Server()
    try:
        server.run("REPLICAOF", "127.0.0.1", 1)
        async with server.store(durable=1, timeout=5) as store:
            with pytest.raises(StateUnavailableError):
                await store.merge(ANN, "s", ONE, KEEP)
    finally:
        server.close()


async def test_a_lease_is_registered_for_as_long_as_the_longest_of_its_holders(place: Place, store: RedisStore) -> None:
    """The index may have been evicted meanwhile."""
    await store.acquire(ANN, "l", "long", 2, 100_000)
    place.client.delete(place.key(ANN, "limits"))
    await store.acquire(ANN, "l", "short", 2, 1)
    assert place.client.ttl(place.key(ANN, "limits")) >= 100_000


async def test_what_passes_by_itself_is_waited_for(real: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that loads its data says so and has done nothing."""
    from redis.exceptions import BusyLoadingError

    from asgi_context.redis._lane import Lane

    store = real.store()
    await store.open()
    ask = Lane.ask
    left = 2

    async def loading(lane: Any, command: Any, expires: float) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise BusyLoadingError("Redis is loading the dataset in memory")
        return await ask(lane, command, expires)

    monkeypatch.setattr(Lane, "ask", loading)
    assert await store.increment(ANN, "s", "n", 1) == 1
    left = 100
    with pytest.raises(StateUnavailableError, match="the server is loading its data; try again in a moment"):
        await store.increment(ANN, "s", "n", 1)
    left = 0
    assert await store.read(ANN, "s") == {"n": b"1"}


async def test_no_answer_within_the_timeout(asyncio_only: None) -> None:
    server = Server()
    store = server.store(timeout=0.2)
    calls: list[Callable[[], Any]] = [
        lambda: store.read(ANN, "s"),
        lambda: store.merge(ANN, "s", ONE, KEEP),
        lambda: asyncio.gather(*(store.read(ANN, "s") for _ in range(50))),
        store.open,
    ]
    try:
        await store.merge(ANN, "s", ONE, KEEP)
        with server.paused():
            for call in calls:
                with pytest.raises(
                    StateUnavailableError, match=r"no answer within 0\.2 seconds$|no connection can be made"
                ):
                    await call()
        assert await store.read(ANN, "s") == ONE
    finally:
        await store.close()
        server.close()


async def test_what_is_tried_again_ends_with_the_timeout(asyncio_only: None) -> None:
    store = RedisStore.from_url(f"redis://127.0.0.1:{redis_servers.free_port()}", timeout=0.06)
    with pytest.raises(StateUnavailableError):
        await store.read(ANN, "s")
    await store.close()


# Writes that replicas must have.


async def test_without_replicas_a_durable_write_is_done_and_told_not_to_be_confirmed(real: Place) -> None:
    before = real.store()
    await before.merge(ANN, "s", {"f": b"0"}, KEEP)
    await before.remove(ANN, "t")
    store = real.store(durable=1, timeout=1)
    writes: list[Callable[[], Any]] = [lambda: store.merge(ANN, "s", ONE, KEEP), lambda: store.remove(ANN, "s")]
    for write in writes:
        with pytest.raises(StateNotConfirmedError, match="0 of the 1 replicas that durable asks for") as caught:
            await write()
        assert (caught.value.replicas, caught.value.durable) == (0, 1)
        assert await store.read(ANN, "s") in (ONE, None)
    assert await store.read(ANN, "s") is None
    assert await store.names(ANN) == []


async def test_so_it_is_for_a_user_who_is_new(real: Place) -> None:
    store = real.store(durable=1, timeout=2)
    with pytest.raises(StateNotConfirmedError):
        await store.merge(ANN, "s", ONE, KEEP)
    assert await store.read(ANN, "s") == ONE
    assert await store.read_field(ANN, "s", "f") == b"1"
    assert await store.names(ANN) == ["s"]
    assert real.client.zscore(real.key(WIDE, "users"), "ann") is not None


async def test_with_replicas_a_durable_write_is_on_them_when_it_returns(asyncio_only: None) -> None:
    servers = redis_servers.shared("sentinel")
    prefix = f"durable{next(numbers)}"
    async with servers.store(durable=1, prefix=prefix) as store:
        replica = next(server for server in servers.servers if server is not servers.master())
        with closing(replica.client()) as client:
            for number in range(20):
                await store.merge(ANN, f"s{number}", ONE, KEEP)
                assert client.hget(f"{prefix}:{{acme:ann}}:s:s{number}", "f") == b"1"
        await asyncio.gather(*(store.increment(ANN, "n", "n", 1) for _ in range(50)))
        assert await store.read(ANN, "n") == {"n": b"50"}
        assert await store.erase("acme") == 21
