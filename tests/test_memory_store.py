"""What is `MemoryStore`'s own, beyond what every store does: limits, memory, several threads, flat cost."""

import asyncio
import gc
import math
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import ceil, inf
from random import Random
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgi_context import KEEP, MemoryStore, SharedState, StateLimits, Store
from asgi_context._memory._entries import State
from asgi_context.errors import StateLimitError, StateNumberError

pytestmark = pytest.mark.anyio

Space = tuple[str, str | None]
ANN: Space = ("acme", "ann")
BOB: Space = ("acme", "bob")
OTHER: Space = ("other", "ann")
ONE = {"f": b"1"}


class Clock:
    """Time that passes when a test says so; with ``jumps``, by so many seconds at the n-th look from now on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.jumps: dict[int, float] = {}
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        self.now += self.jumps.pop(self.looks, 0)
        return self.now

    def jump(self, seconds: float, at_look: int) -> None:
        self.looks, self.jumps = 0, {at_look: seconds}


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limited(clock: Callable[[], float] | None = None, **limits: Any) -> MemoryStore:
    return MemoryStore(limits=StateLimits(**limits), clock=clock or Clock())


def entries(store: MemoryStore) -> Iterator[Any]:
    for homes in store._tenants.values():
        for home in homes.values():
            yield from home.states.values()
            yield from home.counters.values()
            for holders in home.leases.values():
                yield from holders.values()


def check(store: MemoryStore) -> None:
    """Compare all that the store notes about what it holds with a count of what it holds."""
    there = list(entries(store))
    states = [entry for entry in there if type(entry) is State]
    assert store._states == len(states)
    if store._limits.total_bytes is not None:
        assert store._bytes == sum(
            size(entry.key) + sum(size(name) + len(text) for name, text in entry.fields.items()) for entry in states
        )
        assert store._bytes <= store._limits.total_bytes
    noted = {id(entry): second for second, bucket in store._ends._buckets.items() for entry in bucket}
    assert noted == {id(entry): ceil(entry.ends) for entry in there if entry.ends != inf}
    assert set(store._ends._buckets) <= set(store._ends._due)
    assert len(store._ends._due) <= 2 * len(store._ends._buckets) + 1000
    assert store._ends.next == min(store._ends._due, default=inf)
    assert all(
        store._ends._due[(place - 1) // 2] <= store._ends._due[place] for place in range(1, len(store._ends._due))
    )
    for tenant, homes in store._tenants.items():
        assert homes, "a tenant without anything was kept"
        for user, home in homes.items():
            assert home.space == (tenant, user)
            assert home.states or home.counters or home.leases, "a space without anything was kept"
            assert all(home.leases.values()), "a lease without holders was kept"
            assert len(home.states) <= store._limits.user_states
            for name, state in home.states.items():
                assert (state.key, state.home) == (name, home)
                assert state.fields
                assert len(state.fields) <= store._limits.fields


def size(name: str) -> int:
    return len(name.encode())


def nothing_left(store: MemoryStore) -> None:
    check(store)
    assert store._tenants == {}
    assert store._ends._buckets == {}
    assert (store._states, store._bytes) == (0, 0)


async def contents(store: MemoryStore, *spaces: Space) -> Any:
    return {
        space: {
            name: (
                await store.read(space, name),
                await store.read_version(space, name),
                await store.remaining(space, name),
            )
            for name in await store.names(space)
        }
        for space in spaces
    }


# Options.


@pytest.mark.parametrize("wrong", ["10", True, [1], object()], ids=repr)
def test_the_default_time_to_live_is_a_number(wrong: Any) -> None:
    with pytest.raises(TypeError, match="default_ttl must be a number of seconds"):
        MemoryStore(default_ttl=wrong)


@pytest.mark.parametrize("wrong", [0, -1, 0.0, inf, float("nan"), -inf])
def test_the_default_time_to_live_is_positive_and_finite(wrong: float) -> None:
    with pytest.raises(ValueError, match="default_ttl must be more than 0 seconds"):
        MemoryStore(default_ttl=wrong)


@pytest.mark.parametrize("wrong", [{"states": 1}, 5, StateLimits], ids=repr)
def test_limits_are_state_limits(wrong: Any) -> None:
    with pytest.raises(TypeError, match="limits must be StateLimits"):
        MemoryStore(limits=wrong)


def test_options_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        MemoryStore(10)  # type: ignore[misc]


LIMITS = ["value_bytes", "fields", "user_states", "states", "total_bytes"]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_is_an_int_from_one_on(limit: str) -> None:
    for wrong in (1.0, "1", True, object()):
        with pytest.raises(TypeError, match=f"StateLimits: {limit} must be an int"):
            StateLimits(**{limit: wrong})
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"StateLimits: {limit} must be at least 1"):
            StateLimits(**{limit: wrong})
    assert getattr(StateLimits(**{limit: 1}), limit) == 1


def test_only_limits_of_the_whole_store_can_be_left_out() -> None:
    limits = StateLimits(states=None, total_bytes=None)
    assert limits == StateLimits()
    for limit in ("value_bytes", "fields", "user_states"):
        with pytest.raises(TypeError, match=limit):
            StateLimits(**{limit: None})  # type: ignore[arg-type]


async def test_without_a_clock_time_is_the_machines_own() -> None:
    store = MemoryStore(default_ttl=1000)
    await store.merge(ANN, "s", ONE, KEEP)
    left = await store.remaining(ANN, "s")
    assert left is not None
    assert 0 < left <= 1000


async def test_the_very_moment_of_the_end_is_beyond_it(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    await store.merge(ANN, "s", ONE, 10)
    await store.count(ANN, "c", 5, 10)
    await store.acquire(ANN, "l", "a", 1, 10)
    clock.now += 10
    assert await store.names(ANN) == []
    assert await store.exists(ANN, "s") is False
    assert (await store.count(ANN, "c", 1, 10))[0] == 1
    assert await store.acquire(ANN, "l", "b", 1, 10) is True


async def test_repr_says_how_much_it_holds() -> None:
    store = MemoryStore()
    assert repr(store) == "<MemoryStore: 0 states of 0 tenants>"
    for space in (ANN, BOB, OTHER):
        await store.merge(space, "secret", {"secret": b"secret"}, KEEP)
    assert repr(store) == "<MemoryStore: 3 states of 2 tenants>"


# It answers at once.

CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "merge": lambda store: store.merge(ANN, "s", ONE, KEEP),
    "replace": lambda store: store.replace(ANN, "s", ONE, KEEP),
    "read": lambda store: store.read(ANN, "s"),
    "read_field": lambda store: store.read_field(ANN, "s", "f"),
    "read_version": lambda store: store.read_version(ANN, "s"),
    "replace_version": lambda store: store.replace_version(ANN, "s", ONE, b"9"),
    "increment": lambda store: store.increment(ANN, "s", "f", 1),
    "remove_field": lambda store: store.remove_field(ANN, "s", "f"),
    "remove": lambda store: store.remove(ANN, "s"),
    "exists": lambda store: store.exists(ANN, "s"),
    "names": lambda store: store.names(ANN),
    "clear": lambda store: store.clear(ANN),
    "touch": lambda store: store.touch(ANN, "s", 5),
    "remaining": lambda store: store.remaining(ANN, "s"),
    "count": lambda store: store.count(ANN, "s", 1, 5),
    "acquire": lambda store: store.acquire(ANN, "s", "h", 1, 5),
    "release": lambda store: store.release(ANN, "s", "h"),
}
assert {*CALLS, "erase"} == {name for name, value in vars(Store).items() if asyncio.iscoroutinefunction(value)}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("full", [False, True])
def test_its_coroutines_never_wait(call: Callable[[Store], Any], full: bool) -> None:
    store = MemoryStore()
    assert store.immediate is True
    if full:
        at_once(store.merge(ANN, "s", ONE, 10))
        at_once(store.acquire(ANN, "s", "h", 1, 10))
    at_once(call(store))
    check(store)


def at_once(coroutine: Any) -> Any:
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value


async def test_every_scheduler_can_use_it() -> None:
    """Trio too, where there is no other store."""
    store = MemoryStore()
    state = SharedState(store, "acme", "ann")
    assert await state.upsert("s", {"a": (1,)})
    assert await state.increment("s", "n") == 1
    assert await state.modify("s", lambda data: {**data, "b": 2}) == {"a": (1,), "n": 1, "b": 2}
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(state.increment, "s", "n")
    assert await state.get_field("s", "n") == 51
    assert await anyio.to_thread.run_sync(lambda: state.sync.increment("s", "n")) == 52
    assert await state.list_states() == ["s"]
    assert await store.erase("acme") == 1
    nothing_left(store)


# Limits: at the edge, one beyond, and what a refusal leaves.

BEYOND: dict[str, tuple[dict[str, int], Callable[[MemoryStore], Awaitable[object]]]] = {
    "value_bytes, merge": ({"value_bytes": 3}, lambda store: store.merge(ANN, "s", {"f": b"1", "g": b"1234"}, 5)),
    "value_bytes, merge into": ({"value_bytes": 3}, lambda store: store.merge(ANN, "a", {"f": b"1", "g": b"1234"}, 5)),
    "value_bytes, replace": ({"value_bytes": 3}, lambda store: store.replace(ANN, "a", {"f": b"1234"}, 5)),
    "value_bytes, version": ({"value_bytes": 3}, lambda store: change(store, "a", {"f": b"1234"})),
    "value_bytes, increment": ({"value_bytes": 3}, lambda store: store.increment(ANN, "a", "n", 1000)),
    "value_bytes, increment to a new state": ({"value_bytes": 3}, lambda store: store.increment(ANN, "s", "n", 1000)),
    "fields, merge": ({"fields": 3}, lambda store: store.merge(ANN, "s", fields(4), 5)),
    "fields, merge into": ({"fields": 3}, lambda store: store.merge(ANN, "a", {"x": b"1", "y": b"1"}, 5)),
    "fields, replace": ({"fields": 3}, lambda store: store.replace(ANN, "a", fields(4), 5)),
    "fields, version": ({"fields": 3}, lambda store: change(store, "a", fields(4))),
    "fields, increment": ({"fields": 2}, lambda store: store.increment(ANN, "a", "new", 1)),
    "user_states, merge": ({"user_states": 2}, lambda store: store.merge(ANN, "s", ONE, 5)),
    "user_states, replace": ({"user_states": 2}, lambda store: store.replace(ANN, "s", ONE, 5)),
    "user_states, version": ({"user_states": 2}, lambda store: change(store, "s", ONE)),
    "user_states, increment": ({"user_states": 2}, lambda store: store.increment(ANN, "s", "n", 1)),
    "user_states, tenant": ({"user_states": 2}, lambda store: store.merge(("acme", None), "s", ONE, 5)),
    "states, merge": ({"states": 6}, lambda store: store.merge(ANN, "s", ONE, 5)),
    "states, new tenant": ({"states": 6}, lambda store: store.merge(("new", None), "s", ONE, 5)),
    "states, replace": ({"states": 6}, lambda store: store.replace(OTHER, "s", ONE, 5)),
    "states, version": ({"states": 6}, lambda store: change(store, "s", ONE)),
    "states, increment": ({"states": 6}, lambda store: store.increment(ANN, "s", "n", 1)),
    "total_bytes, merge": ({"total_bytes": 30}, lambda store: store.merge(ANN, "s", ONE, 5)),
    "total_bytes, merge into": ({"total_bytes": 30}, lambda store: store.merge(ANN, "a", {"f": b"12"}, 5)),
    "total_bytes, merge a field": ({"total_bytes": 30}, lambda store: store.merge(ANN, "a", {"x": b""}, 5)),
    "total_bytes, replace": ({"total_bytes": 30}, lambda store: store.replace(ANN, "a", {"f": b"1234"}, 5)),
    "total_bytes, version": ({"total_bytes": 30}, lambda store: change(store, "a", {"f": b"1234"})),
    "total_bytes, increment": ({"total_bytes": 30}, lambda store: store.increment(ANN, "a", "n", 10)),
    "total_bytes, increment to a new field": ({"total_bytes": 30}, lambda store: store.increment(ANN, "a", "x", 1)),
}


def fields(many: int) -> dict[str, bytes]:
    return {f"f{number}": b"1" for number in range(many)}


async def change(store: MemoryStore, name: str, data: dict[str, bytes]) -> bool:
    return await store.replace_version(ANN, name, data, (await store.read_version(ANN, name))[1])


async def fill(store: MemoryStore) -> tuple[Space, ...]:
    """Six states of five bytes each, two in each space."""
    spaces: tuple[Space, ...] = (ANN, ("acme", None), OTHER)
    for space in spaces:
        for name in "ab":
            await store.merge(space, name, {"f": b"1", "n": b"1"}, 100 if name == "a" else None)
    return spaces


@pytest.mark.parametrize(("limits", "write"), BEYOND.values(), ids=BEYOND)
async def test_a_write_beyond_a_limit_is_refused_and_leaves_everything_as_it_was(
    limits: dict[str, int], write: Callable[[MemoryStore], Any]
) -> None:
    store = limited(**limits)
    spaces = await fill(store)
    before = await contents(store, *spaces, ("new", None))
    (limit,) = limits
    with pytest.raises(StateLimitError, match="nothing was written") as caught:
        await write(store)
    assert (caught.value.limit, caught.value.most) == (limit, limits[limit])
    assert await contents(store, *spaces, ("new", None)) == before
    assert set(store._tenants) == {"acme", "other"}
    check(store)


WITHIN: dict[str, tuple[dict[str, int], Callable[[MemoryStore], Awaitable[object]]]] = {
    "value_bytes": ({"value_bytes": 3}, lambda store: store.merge(ANN, "a", {"f": b"123", "g": b"123"}, 5)),
    "value_bytes, increment": ({"value_bytes": 3}, lambda store: store.increment(ANN, "a", "n", 998)),
    "fields, merge": ({"fields": 3}, lambda store: store.merge(ANN, "a", {"f": b"2", "n": b"2", "x": b"1"}, 5)),
    "fields, replace": ({"fields": 3}, lambda store: store.replace(ANN, "a", fields(3), 5)),
    "fields, increment": ({"fields": 3}, lambda store: store.increment(ANN, "a", "new", 1)),
    "user_states, of others": ({"user_states": 2}, lambda store: store.merge(BOB, "s", ONE, 5)),
    "user_states, again": ({"user_states": 2}, lambda store: store.merge(ANN, "a", ONE, 5)),
    "states": ({"states": 7}, lambda store: store.merge(ANN, "s", ONE, 5)),
    "states, again": ({"states": 6}, lambda store: store.replace(ANN, "a", ONE, 5)),
    "total_bytes": ({"total_bytes": 33}, lambda store: store.merge(ANN, "s", ONE, 5)),
    "total_bytes, as long": ({"total_bytes": 30}, lambda store: store.merge(ANN, "a", {"f": b"2"}, 5)),
    "total_bytes, shorter": ({"total_bytes": 30}, lambda store: store.replace(ANN, "a", {"f": b""}, 5)),
    "total_bytes, another field": ({"total_bytes": 30}, lambda store: store.replace(ANN, "a", {"xyz": b"1"}, 5)),
    "total_bytes, increment": ({"total_bytes": 30}, lambda store: store.increment(ANN, "a", "n", 8)),
    "total_bytes, version": ({"total_bytes": 30}, lambda store: change(store, "a", {"f": b"123"})),
}


@pytest.mark.parametrize(("limits", "write"), WITHIN.values(), ids=WITHIN)
async def test_a_write_up_to_a_limit_is_done(limits: dict[str, int], write: Callable[[MemoryStore], Any]) -> None:
    store = limited(**limits)
    await fill(store)
    await write(store)
    check(store)


@pytest.mark.parametrize("limits", [{"user_states": 2}, {"states": 2}, {"total_bytes": 6}], ids=str)
@pytest.mark.parametrize("way", ["remove", "remove_field", "clear", "erase", "replace_version", "expiry"])
async def test_what_is_gone_makes_room(clock: Clock, limits: dict[str, int], way: str) -> None:
    store = limited(clock, **limits)
    await store.merge(ANN, "a", ONE, 10)
    await store.merge(ANN, "b", ONE, 10)
    with pytest.raises(StateLimitError):
        await store.merge(ANN, "c", ONE, None)
    match way:
        case "remove":
            await store.remove(ANN, "a")
        case "remove_field":
            await store.remove_field(ANN, "a", "f")
        case "clear":
            await store.clear(ANN)
        case "erase":
            await store.erase("acme")
        case "replace_version":
            await change(store, "a", {})
        case _:
            clock.now += 10
    assert await store.merge(ANN, "c", ONE, None) is True
    check(store)


@pytest.mark.parametrize(
    ("limits", "ttl"),
    [({"user_states": 40}, 10), ({"user_states": 40}, 9.25), ({"states": 40}, 10), ({"total_bytes": 200}, 10)],
    ids=str,
)
@pytest.mark.parametrize("others", [0, 300])
async def test_what_is_over_does_not_count(clock: Clock, limits: dict[str, int], others: int, ttl: float) -> None:
    """However many there are, and whatever else is over at the same time."""
    store = limited(clock, **limits)
    for number in range(40):
        await store.merge(ANN, f"{number:03}", ONE, ttl)
    with pytest.raises(StateLimitError):
        await store.merge(ANN, "new", ONE, None)
    for number in range(others):
        await store.count(OTHER, str(number), 1, ttl)
        await store.acquire(OTHER, "l", str(number), others, ttl)
    clock.now += ttl
    for number in range(40):
        assert await store.merge(ANN, f"n{number:02}", ONE, None) is True
    with pytest.raises(StateLimitError):
        await store.merge(ANN, "new", ONE, None)
    check(store)


@pytest.mark.parametrize("limits", [{"states": 1}, {"total_bytes": 4}], ids=str)
async def test_in_the_whole_store_what_is_over_counts_until_its_second_is(clock: Clock, limits: dict[str, int]) -> None:
    """Its memory is still held; to look for it would cost everybody, at every write that is refused."""
    store = limited(clock, **limits)
    await store.merge(ANN, "a", ONE, 9.25)
    clock.now += 9.25
    with pytest.raises(StateLimitError):
        await store.merge(BOB, "b", ONE, None)
    clock.now = ceil(clock.now)
    assert await store.merge(BOB, "b", ONE, None) is True
    check(store)


async def test_a_write_has_the_room_of_all_that_is_over(clock: Clock) -> None:
    store = limited(clock, total_bytes=500)
    for number in range(100):
        await store.merge(ANN, f"{number:03}", ONE, 10)
    clock.now += 10
    assert await store.merge(BOB, "s", {"f": b"1" * 498}, None) is True
    check(store)


async def test_the_bytes_of_names_count_as_bytes() -> None:
    store = limited(total_bytes=9)
    assert await store.merge(ANN, "😀", {"😀": b"1"}, None)
    with pytest.raises(StateLimitError, match="total_bytes=9"):
        await store.merge(ANN, "a", {"f": b""}, None)
    store = limited(total_bytes=8)
    with pytest.raises(StateLimitError, match="total_bytes=8"):
        await store.merge(ANN, "😀", {"😀": b"1"}, None)


async def test_counters_and_leases_are_no_states(clock: Clock) -> None:
    store = limited(clock, states=1, user_states=1, total_bytes=3)
    for number in range(50):
        await store.count(ANN, str(number), 1, 10)
        assert await store.acquire(ANN, "l", str(number), 50, 10)
    assert await store.merge(ANN, "s", ONE, None)
    check(store)


async def test_a_removed_field_makes_room() -> None:
    store = limited(total_bytes=5, fields=2)
    await store.merge(ANN, "s", {"f": b"1", "g": b"1"}, None)
    with pytest.raises(StateLimitError, match="fields=2"):
        await store.merge(ANN, "s", {"h": b"1"}, None)
    await store.remove_field(ANN, "s", "g")
    assert await store.merge(ANN, "s", {"h": b"1"}, None) is False
    check(store)


# What it notes about what it holds never drifts.


async def storm(  # noqa: PLR0912 - one case for each call
    store: MemoryStore, random: Random, steps: int, pass_time: Callable[[], None], tenants: str
) -> None:
    for _ in range(steps):
        space: Space = (random.choice(tenants), random.choice(["a", "b", None]))
        name, field = random.choice("stuvwxyz😀"), random.choice("fgh")
        ttl: Any = random.choice([KEEP, None, 0.25, 1, 1.75, 3, 10])
        seconds = random.choice([0.25, 1, 1.75, 3, 10])
        data = {each: b"1" * random.randrange(9) for each in random.sample("fghijk", random.randrange(1, 6))}
        try:
            match random.randrange(18):
                case 0 | 1 | 2:
                    await store.merge(space, name, data, ttl)
                case 3 | 4:
                    await store.replace(space, name, data, ttl)
                case 5:
                    await store.replace_version(space, name, data, (await store.read_version(space, name))[1])
                case 6:
                    await store.replace_version(space, name, {}, (await store.read_version(space, name))[1])
                case 7:
                    await store.increment(space, name, field, random.choice([1, 10**8, 0.5]))
                case 8 | 9:
                    await store.remove_field(space, name, field)
                case 10:
                    await store.remove(space, name)
                case 11:
                    await store.touch(space, name, seconds)
                case 12:
                    await store.clear(space) if random.random() < 0.2 else await store.names(space)
                case 13:
                    await store.erase(space[0]) if random.random() < 0.1 else await store.exists(space, name)
                case 14:
                    await store.count(space, name, 1, seconds)
                case 15:
                    await store.acquire(space, name, field, 2, seconds)
                case 16:
                    await store.release(space, name, field)
                case _:
                    pass_time()
        except (StateLimitError, StateNumberError):
            pass


@pytest.mark.parametrize("seed", range(10))
async def test_after_a_storm_of_calls_all_that_is_noted_is_true(clock: Clock, seed: int) -> None:
    random = Random(seed)
    store = limited(clock, value_bytes=8, fields=5, user_states=5, states=12, total_bytes=150)

    def pass_time() -> None:
        clock.now += random.choice([0, 0.25, 0.5, 1, 5])

    for _ in range(40):
        await storm(store, random, 25, pass_time, "xyz")
        noted = sum(
            len(entry.key) + sum(len(name) + len(text) for name, text in entry.fields.items())
            for entry in entries(store)
            if type(entry) is State
        )
        assert store._states == sum(type(entry) is State for entry in entries(store))
        # In whatever unit the store has it: what is one is tested above.
        assert store._bytes in {
            noted,
            noted
            + sum(
                size(text) - len(text)
                for entry in entries(store)
                if type(entry) is State
                for text in (entry.key, *entry.fields)
            ),
        }
    for tenant in "xyz":
        await store.erase(tenant)
    assert (store._states, store._bytes, store._tenants) == (0, 0, {})
    clock.now += 1000
    await store.exists(ANN, "s")
    nothing_left(store)


@pytest.mark.parametrize("look", range(1, 12))
@pytest.mark.parametrize("write", ["merge", "replace", "increment", "replace_version", "touch", "count", "acquire"])
async def test_time_that_passes_within_a_call_does_no_harm(clock: Clock, write: str, look: int) -> None:
    """The clock is looked at several times in a call, and what it works on can be over at any of them."""
    store = limited(clock, total_bytes=12)
    await store.merge(OTHER, "x", {"f": b"1"}, 10)
    await store.merge(ANN, "s", {"f": b"1", "g": b"1"}, 10)
    await store.count(ANN, "c", 1, 10)
    await store.acquire(ANN, "l", "h", 1, 10)
    clock.jump(10, look)
    data = {"f": b"123456"}  # there is room for it when the other is over
    done: object = None
    try:
        match write:
            case "merge":
                done = await store.merge(ANN, "s", data, 60)
            case "replace":
                done = await store.replace(ANN, "s", data, 60)
            case "increment":
                done = await store.increment(ANN, "s", "f", 100_000)
            case "replace_version":
                done = await change(store, "s", data)
            case "touch":
                done = await store.touch(ANN, "s", 60)
            case "count":
                done = await store.count(ANN, "c", 1, 60)
            case _:
                done = await store.acquire(ANN, "l", "h", 1, 60)
    except StateLimitError:
        done = None
    check(store)
    if write in {"merge", "replace"} and done is not None:
        assert await store.read_field(ANN, "s", "f") == b"123456", "it said that it was written, for 60 seconds"
        assert (await store.remaining(ANN, "s") or 0) > 0


@pytest.mark.parametrize("look", range(1, 6))
async def test_the_time_that_is_left_is_never_less_than_nothing(clock: Clock, look: int) -> None:
    store = MemoryStore(clock=clock)
    await store.merge(ANN, "s", ONE, 1.5)
    clock.jump(2, look)
    left = await store.remaining(ANN, "s")
    assert left is None or left > 0


@pytest.mark.parametrize("look", range(1, 8))
async def test_a_window_is_never_longer_than_was_asked_for(clock: Clock, look: int) -> None:
    store = MemoryStore(clock=clock)
    clock.jump(2, look)
    _, left = await store.count(ANN, "c", 1, 10)
    assert 0 < left <= 10


# Memory comes back.

FREED: dict[str, Callable[[MemoryStore, Clock, list[str]], Awaitable[None]]] = {}


def frees(call: Callable[[MemoryStore, Clock, list[str]], Awaitable[None]]) -> None:
    FREED[call.__name__] = call


@frees
async def remove(store: MemoryStore, clock: Clock, names: list[str]) -> None:
    for name in names:
        assert await store.remove(ANN, name) == 1


@frees
async def remove_field(store: MemoryStore, clock: Clock, names: list[str]) -> None:
    for name in names:
        assert await store.remove_field(ANN, name, "f") == 1


@frees
async def replace_version(store: MemoryStore, clock: Clock, names: list[str]) -> None:
    for name in names:
        assert await change(store, name, {})


@frees
async def clear(store: MemoryStore, clock: Clock, names: list[str]) -> None:
    assert await store.clear(ANN) == len(names)


@frees
async def erase(store: MemoryStore, clock: Clock, names: list[str]) -> None:
    assert await store.erase("acme") == len(names)


@frees
async def expiry_found_by_reading(store: MemoryStore, clock: Clock, names: list[str]) -> None:
    for name in names:
        await store.touch(ANN, name, 5)
    clock.now += 5
    for name in names:
        assert await store.read(ANN, name) is None


@frees
async def expiry_found_by_calls_of_others(store: MemoryStore, clock: Clock, names: list[str]) -> None:
    for number, name in enumerate(names):
        await store.touch(ANN, name, 1 + number % 50)
    clock.now += 100
    for _ in names:
        await store.exists(OTHER, "s")


@pytest.mark.parametrize("free", FREED.values(), ids=FREED)
@pytest.mark.parametrize("ttl", [None, 3600])
async def test_memory_comes_back_when_states_go(clock: Clock, free: Any, ttl: float | None) -> None:
    store = limited(clock, total_bytes=10**9)
    names = [str(number) for number in range(3000)]
    gc.collect()
    tracemalloc.start()
    try:
        empty, _ = tracemalloc.get_traced_memory()
        for name in names:
            await store.merge(ANN, name, {"f": b"x" * 100 + name.encode()}, ttl)
        gc.collect()
        full, _ = tracemalloc.get_traced_memory()
        await free(store, clock, names)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert full - empty > 3000 * 100
    assert after - empty < (full - empty) / 50
    nothing_left(store)


async def test_what_is_removed_before_its_end_leaves_nothing_behind(clock: Clock) -> None:
    """A state whose time to live is renewed again and again would else leave a trace of each time."""
    store = MemoryStore(clock=clock)
    await store.merge(ANN, "s", ONE, 100_000)
    for _ in range(5000):
        clock.now += 1
        await store.touch(ANN, "s", 100_000)
    assert len(store._ends._buckets) <= 100
    await store.remove(ANN, "s")
    nothing_left(store)


async def test_counters_and_leases_leave_nothing_behind(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    for number in range(200):
        await store.count(ANN, str(number), 1, 10)
        await store.acquire(BOB, str(number), "h", 1, 10)
        await store.acquire(OTHER, "l", str(number), 200, 10)
    check(store)
    for number in range(100):
        assert await store.release(BOB, str(number), "h")
        assert await store.release(OTHER, "l", str(number))
    check(store)
    clock.now += 10
    for _ in range(200):
        await store.exists(ANN, "s")
    nothing_left(store)


async def test_asking_and_being_refused_leaves_nothing_behind() -> None:
    store = limited(value_bytes=1, fields=1, total_bytes=2)
    for number in range(100):
        space = (f"tenant{number}", None)
        await store.read(space, "s")
        await store.read_field(space, "s", "f")
        await store.read_version(space, "s")
        await store.exists(space, "s")
        await store.names(space)
        await store.remove(space, "s")
        await store.remove_field(space, "s", "f")
        await store.clear(space)
        await store.touch(space, "s", 10)
        await store.remaining(space, "s")
        await store.release(space, "l", "h")
        await store.erase(space[0])
        assert await store.replace_version(space, "s", ONE, b"no such version") is False
        assert await store.replace_version(space, "s", {}, b"") is True
        for data in ({"f": b"12"}, {"f": b"1", "g": b"1"}, {"f": b"1"}):
            with pytest.raises(StateLimitError):
                await store.merge(space, "s", data, 10)
        with pytest.raises(StateLimitError):
            await store.increment(space, "s", "f", 1)
    nothing_left(store)


async def test_leases_of_which_there_are_none_leave_nothing_behind() -> None:
    store = MemoryStore()
    assert await store.acquire(ANN, "l", "h", 0, 10) is False
    nothing_left(store)


# No call pays for many, or for others.


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("spread", [False, True])
def test_a_call_takes_out_a_few_of_what_is_over(clock: Clock, call: Callable[[Store], Any], spread: bool) -> None:
    """Whether all ended in one second or each in its own."""
    store = MemoryStore(clock=clock)
    for number in range(1000):
        at_once(store.merge(OTHER, str(number), ONE, 1 + number if spread else 1))
    clock.now += 5000
    at_once(call(store))
    assert 1000 - 40 <= sum(entry.home.space == OTHER for entry in entries(store)) < 1000
    for _ in range(1000):
        at_once(call(store))
    assert "other" not in store._tenants
    check(store)


async def test_a_call_takes_out_a_few_of_the_seconds_in_which_nothing_ends_any_more(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    for number in range(1000):
        await store.merge(OTHER, str(number), ONE, 1 + number)
        await store.remove(OTHER, str(number))
    clock.now += 5000
    before = len(store._ends._due)
    await store.exists(ANN, "s")
    assert before - len(store._ends._due) <= 40


async def test_what_is_over_is_taken_out_in_the_order_of_its_end(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    for ttl in (50, 10, 30, 20, 40):
        await store.merge(OTHER, str(ttl), ONE, ttl)
    for seconds in (10, 20, 30, 40, 50):
        clock.now = 1000.0 + seconds
        await store.exists(ANN, "s")
        assert {entry.key for entry in entries(store)} == {str(ttl) for ttl in (10, 20, 30, 40, 50) if ttl > seconds}


class Steps:
    """Counts the bytecodes of this package that a coroutine runs; what a garbage collection calls is not its own."""

    def __init__(self) -> None:
        self.many = 0

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_globals["__name__"].startswith("asgi_context"):
            return None
        frame.f_trace_opcodes = True
        self.many += event == "opcode"
        return self._trace

    def of(self, coroutine: Any) -> int:
        self.many = 0
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            coroutine.send(None)
        except StopIteration:
            pass
        finally:
            sys.settrace(before)
        return self.many


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_takes_as_many_steps_however_much_others_keep(clock: Clock, call: Callable[[Store], Any]) -> None:
    def steps(tenants: int, users: int, states: int) -> int:
        store = limited(clock, total_bytes=10**9, states=10**6)
        for tenant in range(tenants):
            for user in range(users):
                for state in range(states):
                    at_once(store.merge((f"tenant{tenant}", str(user)), str(state), ONE, 1000 + tenant))
                at_once(store.count((f"tenant{tenant}", str(user)), "c", 1, 1000))
                at_once(store.acquire((f"tenant{tenant}", str(user)), "l", "h", 1, 1000))
        for user in range(users):
            at_once(store.merge(("acme", f"other{user}"), "s", ONE, 100))
        at_once(store.merge(ANN, "s", {"f": b"1", "g": b"1"}, 100))
        at_once(store.acquire(ANN, "s", "h", 1, 100))
        at_once(store.count(ANN, "s", 1, 100))
        return Steps().of(call(store))

    steps(1, 1, 1)  # Python 3.12 reports no bytecodes the first time that somebody asks for them
    few = steps(2, 1, 1)
    assert few > 10
    assert abs(steps(200, 3, 5) - few) <= 5


def test_a_call_on_one_state_takes_as_many_steps_however_many_its_user_has() -> None:
    for name, call in CALLS.items():
        if name in {"names", "clear"}:
            continue
        few, many = [], []
        for steps, states in ((few, 3), (many, 2000)):
            store = MemoryStore(clock=Clock())
            for state in range(states):
                at_once(store.merge(ANN, str(state), ONE, 1000 + state))
            at_once(store.merge(ANN, "s", {"f": b"1", "g": b"1"}, 100))
            steps.append(Steps().of(call(store)))
        assert abs(many[0] - few[0]) <= 5, name


# Erasing.


@pytest.fixture
async def big(clock: Clock) -> MemoryStore:
    store = limited(clock, total_bytes=10**9, states=10**6)
    for number in range(5500):
        await store.merge(ANN if number % 2 else ("acme", None), str(number), ONE, 100 if number % 3 else None)
    await store.merge(OTHER, "s", ONE, None)
    return store


async def test_others_have_their_turn_while_a_tenant_is_erased(big: MemoryStore) -> None:
    seen: list[int] = []
    done = False

    async def look() -> None:
        while not done:
            seen.append(big._states)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(look)
        await anyio.lowlevel.checkpoint()
        assert await big.erase("acme") == 5500
        done = True
    assert len(set(seen)) >= 3, "it was seen half done"
    # Two steps, since trio lets tasks run in any order: one that is last in a round can be followed by itself.
    assert all(before - after <= 2000 for before, after in pairwise(seen))
    check(big)


async def test_what_is_written_while_a_tenant_is_erased_survives(big: MemoryStore) -> None:
    written: list[str] = []
    done = False

    async def write() -> None:
        while not done:
            name = str(len(written))  # of states that are being erased
            assert await big.merge(ANN, name, {"new": b"1"}, None) is True
            assert await big.names(ANN) == [*written, name], "nothing of what is being erased is to be seen"
            written.append(name)
            await big.count(ANN, "c", 1, 100)
            await anyio.lowlevel.checkpoint()

    # The first step is taken by hand, so that no write comes before it.
    erasing = big.erase("acme")
    result: list[int] = []

    async def erase() -> None:
        result.append(await erasing)

    async with anyio.create_task_group() as group:
        group.start_soon(erase)
        while big._states > 5000:
            await anyio.lowlevel.checkpoint()
        group.start_soon(write)
        while not result:
            await anyio.lowlevel.checkpoint()
        done = True
    assert result == [5500]
    assert len(written) >= 3
    assert await big.names(ANN) == written
    assert (await big.count(ANN, "c", 0, 100))[0] == len(written)
    assert await big.names(OTHER) == ["s"]
    check(big)


async def test_what_ends_while_it_is_erased_is_taken_out_once(clock: Clock, big: MemoryStore) -> None:
    done = False

    async def purge() -> None:
        clock.now += 200
        while not done:
            for _ in range(20):
                await big.exists(OTHER, "t")
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(purge)
        erased = await big.erase("acme")
        done = True
    assert 0 < erased < 5500
    check(big)
    assert big._states == 1


async def test_two_that_erase_one_tenant_at_once_count_each_state_once(big: MemoryStore) -> None:
    counts: list[int] = []

    async def erase() -> None:
        counts.append(await big.erase("acme"))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(erase)
    assert sorted(counts) == [0, 0, 5500]
    check(big)


async def test_erasing_that_is_cancelled_leaves_nothing_that_counts(clock: Clock, big: MemoryStore) -> None:
    """Nobody finds what is left of the tenant any more, so nobody could remove it."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await big.erase("acme")
    assert await big.names(ANN) == [] or big._states == 5501, "all of it, or nothing"
    check(big)
    await big.erase("acme")
    assert big._states == 1
    check(big)


# Several threads.


def impatient(work: Callable[[], Any]) -> Any:
    """Run in this thread, and let another run after every line of the store: where there is no lock, that shows."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_globals["__name__"].startswith("asgi_context._memory"):
            return None
        if event == "line":
            time.sleep(0)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return work()
    finally:
        sys.settrace(before)


def test_what_it_notes_is_true_after_threads_and_loops_have_used_it_at_once() -> None:
    clock = Clock()
    store = limited(clock, value_bytes=30, fields=5, user_states=6, states=30)
    barrier = threading.Barrier(8)

    def pass_time() -> None:
        clock.now += 0.25

    def thread(number: int) -> None:
        barrier.wait(30)
        impatient(lambda: asyncio.run(storm(store, Random(number), 200, pass_time, "xyz")))

    with ThreadPoolExecutor(8) as pool:
        for running in [pool.submit(thread, number) for number in range(8)]:
            running.result(120)
    check(store)


def test_threads_and_loops_make_each_state_once_and_lose_no_write() -> None:
    store = MemoryStore()
    barrier = threading.Barrier(8)

    async def work(number: int) -> list[object]:
        made: list[object] = [await store.merge(ANN, "shared", {f"field{number}": b"%d" % number}, None)]
        for step in range(50):
            await store.increment(ANN, "shared", "n", 1)
            assert await store.merge((f"tenant{number}", "u"), str(step), ONE, 1000) is True
            assert await store.remove_field((f"tenant{number}", "u"), str(step), "f") == 1
            made.append(await store.acquire(ANN, f"lease{step}", str(number), 3, 1000))
        return made

    def thread(number: int) -> list[object]:
        barrier.wait(30)
        return impatient(lambda: asyncio.run(work(number)))

    with ThreadPoolExecutor(8) as pool:
        made = [running.result(120) for running in [pool.submit(thread, number) for number in range(8)]]
    assert Counter(some[0] for some in made) == {True: 1, False: 7}
    for step in range(1, 51):
        assert sum(some[step] is True for some in made) == 3
    kept = at_once(store.read(ANN, "shared"))
    assert kept == {f"field{n}": b"%d" % n for n in range(8)} | {"n": b"400"}
    assert set(store._tenants) == {"acme"}


def test_tenants_are_erased_while_threads_write_to_them() -> None:
    store = limited(total_bytes=10**9, states=10**6)
    barrier = threading.Barrier(5)
    rounds = 50

    def write(number: int) -> None:
        for step in range(rounds):
            at_once(store.merge(("acme", str(number)), str(step), ONE, 1000 if step % 2 else None))
            at_once(store.count(("acme", str(number)), str(step), 1, 1000))
            at_once(store.acquire(("acme", str(number)), "l", str(step), 1000, 1000))

    def begin(number: int) -> None:
        barrier.wait(30)
        impatient(lambda: write(number))

    def erase() -> int:
        async def again() -> int:
            return sum([await store.erase("acme") for _ in range(50)])

        barrier.wait(30)
        return impatient(lambda: asyncio.run(again()))

    with ThreadPoolExecutor(5) as pool:
        writing = [pool.submit(begin, number) for number in range(4)]
        erased = pool.submit(erase).result(120)
        for running in writing:
            running.result(120)
    check(store)
    assert erased + store._states == 4 * rounds


# What does not stay.


def places(store: MemoryStore) -> Iterator[dict[Any, Any]]:
    yield store._tenants
    for homes in store._tenants.values():
        yield homes
        for home in homes.values():
            yield from (home.states, home.counters, home.leases, *home.leases.values())
            yield from (state.fields for state in home.states.values())


async def test_what_stays_does_not_hold_the_memory_of_what_has_gone(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    for number in range(5000):
        name = str(number)
        await store.merge(ANN, name, ONE, 10 if number else None)
        await store.count(ANN, name, 1, 10 if number else 10**6)
        await store.acquire(ANN, "l", name, 5000, 10 if number else 10**6)
        await store.merge((name, None), "s", ONE, 10 if number else None)
        await store.merge(("acme", name), "s", ONE, 10 if number else None)
    await store.merge(BOB, "s", {str(number): b"1" for number in range(5000)}, None)
    clock.now += 10
    for _ in range(4000):
        await store.exists(BOB, "s")
    for number in range(1, 5000):
        assert await store.remove_field(BOB, "s", str(number)) == 1
    check(store)
    assert len(list(entries(store))) == 6
    for place in places(store):
        assert sys.getsizeof(place) <= 8192


@pytest.mark.parametrize("limits", [{"fields": 2}, {"user_states": 1}], ids=str)
async def test_a_write_that_is_refused_for_ones_own_limit_pays_for_nobody_else(
    clock: Clock, limits: dict[str, int]
) -> None:
    store = limited(clock, **limits)
    for number in range(1000):
        await store.merge((f"tenant{number}", None), "s", ONE, 1)
    await store.merge(ANN, "s", ONE, None)
    clock.now += 5
    with pytest.raises(StateLimitError):
        await store.merge(ANN, "t", {"a": b"", "b": b"", "c": b""}, None)
    assert len(store._tenants) >= 1000 - 10
    check(store)


@pytest.mark.parametrize("limits", [{}, {"total_bytes": 10**9}], ids=str)
def test_writing_a_field_takes_as_many_steps_however_many_the_state_has(limits: dict[str, int]) -> None:
    def steps(fields: int) -> int:
        store = limited(Clock(), **limits)
        at_once(store.merge(ANN, "s", {str(number): b"1" for number in range(fields)}, None))
        return Steps().of(store.merge(ANN, "s", {"0": b"2"}, KEEP))

    steps(1)
    assert abs(steps(9000) - steps(10)) <= 5


class Holds:
    """A lock that notes how much was dropped while it was held."""

    def __init__(self, store: MemoryStore) -> None:
        self.store, self.lock = store, store._lock
        self.dropped: list[int] = []

    def __enter__(self) -> None:
        self.lock.acquire()
        self.before = self.store._states

    def __exit__(self, *exc: object) -> None:
        self.dropped.append(self.before - self.store._states)
        self.lock.release()


async def test_erasing_that_is_cancelled_goes_on_in_steps(big: MemoryStore) -> None:
    """Other threads have their turn."""
    holds: Any = Holds(big)
    big._lock = holds
    with anyio.CancelScope() as scope:
        scope.cancel()
        await big.erase("acme")
    assert sum(holds.dropped) == 5500
    assert max(holds.dropped) <= 1000
    check(big)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, inf, -inf, 10**400])
async def test_a_counter_or_lease_without_an_end_is_refused_and_leaves_nothing(seconds: float) -> None:
    store = MemoryStore()
    for call in (store.count(ANN, "c", 1, seconds), store.acquire(ANN, "l", "h", 1, seconds)):
        with pytest.raises(ValueError, match="more than 0 seconds"):
            await call
    nothing_left(store)


def test_a_clock_must_be_callable() -> None:
    clock: Any = 5
    with pytest.raises(TypeError, match="clock must be callable, not int"):
        MemoryStore(clock=clock)
