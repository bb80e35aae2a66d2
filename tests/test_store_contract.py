"""What every store must do, at both levels: the `Store` protocol, and `SharedState` above it.

A further store is one more `Stage` in ``STAGES``; no test looks at which one it has.

The state machine at the end runs 10,000 steps for each store; ``STORE_CONTRACT_STEPS=1000000`` in the environment has it
run that many.
"""

import asyncio
import math
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from typing import Any, ClassVar

import pytest
import redis_servers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from asgi_context import KEEP, Identity, MemoryStore, SharedState, Store, bind_context, current_state
from asgi_context.errors import StateConflictError, StateDecodeError, StateNumberError, StateSerializationError

pytestmark = pytest.mark.anyio

LEAST, MOST = -(2**63), 2**63 - 1
Space = tuple[str, str | None]


class Delegating:
    """A store in front of another. Without ``immediate``, whatever the other says."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    async def before(self, method: str, arguments: tuple[Any, ...]) -> None:
        pass

    async def after(self) -> None:
        pass


def _delegates(method: str) -> Callable[..., Awaitable[Any]]:
    async def call(self: Delegating, *arguments: Any) -> Any:
        await self.before(method, arguments)
        try:
            return await getattr(self.inner, method)(*arguments)
        finally:
            await self.after()

    return call


METHODS = [name for name, value in vars(Store).items() if asyncio.iscoroutinefunction(value)]
for _method in METHODS:  # not by __getattr__, which a check for the protocol does not see
    setattr(Delegating, _method, _delegates(_method))


class Waiting(Delegating):
    """Lets everybody else run before and after each call, as a store behind a connection does."""

    async def before(self, method: str, arguments: tuple[Any, ...]) -> None:
        await asyncio.sleep(0)

    async def after(self) -> None:
        await asyncio.sleep(0)


class Stage:
    """One kind of store, and the time that it lives in."""

    precision: ClassVar[float] = 0
    """How many seconds what it says of time may be off."""
    most_drift: float = 0
    """The most that ``drift`` was at the end of a call: by so much may an end have been set too late."""

    def drift(self) -> float:
        """How many seconds have passed for the store by themselves: a machine may stand still at any place."""
        return 0

    async def make(self, *, default_ttl: float | None = None) -> Any:
        """Make an empty store. Called once for each stage, on the loop that it is used on."""
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        """Let time pass for the store."""
        raise NotImplementedError

    async def close(self) -> None:
        """Take down what ``make`` has put up."""


class InMemory(Stage):
    def __init__(self) -> None:
        self.now = 1000.0

    async def make(self, *, default_ttl: float | None = None) -> Any:
        return MemoryStore(default_ttl=default_ttl, clock=lambda: self.now)

    async def advance(self, seconds: float) -> None:
        self.now += seconds


class InMemoryThatWaits(InMemory):
    async def make(self, *, default_ttl: float | None = None) -> Any:
        return Waiting(await super().make(default_ttl=default_ttl))


class Still(Delegating):
    """A store for which time stands still, but for what a call itself takes."""

    def __init__(self, inner: Store, stage: "OnServers") -> None:
        super().__init__(inner)
        self.stage = stage

    async def before(self, method: str, arguments: tuple[Any, ...]) -> None:
        await self.stage.settle()

    async def after(self) -> None:
        self.stage.most_drift = max(self.stage.most_drift, self.stage.drift())


class OnServers(Stage):
    """On servers, whose clock nobody can set: what they hold is moved towards its end instead.

    What is real time in between is taken off again, so that for the tests time stands still.
    """

    kind: ClassVar[str]
    precision = 0.01  # it counts milliseconds
    number: ClassVar[int] = 0

    async def make(self, *, default_ttl: float | None = None) -> Any:
        OnServers.number += 1
        self.servers = redis_servers.shared(self.kind)
        self.prefix = f"contract{OnServers.number}"
        self.store = self.servers.store(prefix=self.prefix, default_ttl=default_ttl, timeout=20)
        await self.store.open()
        self.seen = time.monotonic()
        return Still(self.store, self)

    def drift(self) -> float:
        return time.monotonic() - self.seen

    async def advance(self, seconds: float) -> None:
        by = round((seconds - self.drift()) * 1000)
        self.seen += seconds - by / 1000
        await asyncio.to_thread(self.move, by)

    async def settle(self) -> None:
        """Take off what time has passed by itself."""
        if self.drift() > 0.05:
            await self.advance(0)

    def move(self, milliseconds: int) -> None:
        for server in self.servers.masters():
            with closing(server.client()) as client:
                client.eval(MOVE, 0, f"{self.prefix}:", milliseconds)

    async def close(self) -> None:
        await self.store.close()
        await asyncio.to_thread(self.forget)

    def forget(self) -> None:
        for server in self.servers.masters():
            with closing(server.client()) as client:
                client.eval(FORGET, 0, f"{self.prefix}:")


class OnFake(OnServers):
    """On fakeredis, which asks `time.time` what time it is."""

    kind = "fakeredis"
    only_on: ClassVar[list[str]] = ["uvloop"]

    async def make(self, *, default_ttl: float | None = None) -> Any:
        self.now = time.time()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(time, "time", lambda: self.now)
        await super().make(default_ttl=default_ttl)
        return self.store

    async def advance(self, seconds: float) -> None:
        self.now += seconds

    def drift(self) -> float:
        return 0

    async def close(self) -> None:
        self.patch.undo()
        await super().close()


FORGET = """
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do redis.call('DEL', key) end
"""
MOVE = """
local by = tonumber(ARGV[2])
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'zset' then
    local scored = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for at = 1, #scored, 2 do
      local score = tonumber(scored[at + 1])
      if score and score < math.huge then
        redis.call('ZADD', key, string.format('%.0f', score - by), scored[at])
      end
    end
  end
  local left = redis.call('PTTL', key)
  if left >= 0 then
    if left - by > 0 then redis.call('PEXPIRE', key, left - by) else redis.call('DEL', key) end
  end
end
"""


def on(kind: str) -> type[Stage]:
    """Redis on every loop, whatever else there is on one: the loop is the same to all of them."""
    loops = {} if kind == "redis" else {"only_on": ["uvloop"]}
    return type(f"On{kind.title()}", (OnServers,), {"kind": kind, **loops})


STAGES: dict[str, type[Stage]] = {
    "memory": InMemory,
    "waiting": InMemoryThatWaits,
    **{kind: on(kind) for kind in redis_servers.KINDS},
    "fakeredis": OnFake,
}


@pytest.fixture(params=list(STAGES.values()), ids=list(STAGES))
async def stage(request: pytest.FixtureRequest, asyncio_only: None) -> AsyncIterator[Stage]:
    made = request.param()
    yield made
    await made.close()


@pytest.fixture
async def store(stage: Stage) -> Any:
    return await stage.make()


@pytest.fixture
def state(store: Store) -> SharedState:
    return SharedState(store, "acme", "ann")


SPACE: Space = ("acme", "ann")
ONE = {"f": b"1"}


# The protocol: states.


async def test_every_store_is_a_store(store: Store) -> None:
    assert isinstance(store, Store)


async def test_merge_makes_a_state_and_then_sets_fields_of_it(store: Store) -> None:
    assert await store.merge(SPACE, "s", {"a": b"1", "b": b"2"}, KEEP) is True
    assert await store.merge(SPACE, "s", {"b": b"3", "c": b"4"}, KEEP) is False
    assert await store.read(SPACE, "s") == {"a": b"1", "b": b"3", "c": b"4"}


async def test_replace_makes_a_state_and_then_leaves_nothing_of_what_it_was(store: Store) -> None:
    assert await store.replace(SPACE, "s", {"a": b"1", "b": b"2"}, KEEP) is True
    assert await store.replace(SPACE, "s", {"b": b"3"}, KEEP) is False
    assert await store.read(SPACE, "s") == {"b": b"3"}


async def test_what_is_not_there_is_none_zero_or_false(store: Store) -> None:
    assert await store.read(SPACE, "s") is None
    assert await store.read_field(SPACE, "s", "f") is None
    assert (await store.read_version(SPACE, "s"))[0] is None
    assert await store.remove_field(SPACE, "s", "f") == 0
    assert await store.remove(SPACE, "s") == 0
    assert await store.exists(SPACE, "s") is False
    assert await store.names(SPACE) == []
    assert await store.clear(SPACE) == 0
    assert await store.touch(SPACE, "s", 1) is False
    assert await store.touch(SPACE, "s", None) is False
    assert await store.remaining(SPACE, "s") is None
    assert await store.erase("acme") == 0
    assert await store.release(SPACE, "l", "h") is False


async def test_asking_for_what_is_not_there_makes_nothing(store: Store) -> None:
    await store.read(SPACE, "s")
    await store.read_field(SPACE, "s", "f")
    await store.read_version(SPACE, "s")
    await store.touch(SPACE, "s", 10)
    await store.remaining(SPACE, "s")
    await store.remove_field(SPACE, "s", "f")
    assert await store.replace_version(SPACE, "s", {}, (await store.read_version(SPACE, "s"))[1]) is True
    assert await store.names(SPACE) == []
    assert await store.exists(SPACE, "s") is False
    assert await store.merge(SPACE, "s", ONE, KEEP) is True


BYTES = [b"", b"\x00", bytes(range(256)), "naïve 😀".encode(), b"a" * 100_000, b"\r\n*1\r\n$1\r\n"]


@pytest.mark.parametrize("kept", BYTES, ids=range(len(BYTES)))
async def test_any_bytes_come_back_as_they_were(store: Store, kept: bytes) -> None:
    await store.merge(SPACE, "s", {"f": kept}, KEEP)
    assert await store.read_field(SPACE, "s", "f") == kept
    assert await store.read(SPACE, "s") == {"f": kept}
    await store.replace(SPACE, "s", {"g": kept}, KEEP)
    fields, version = await store.read_version(SPACE, "s")
    assert fields == {"g": kept}
    assert await store.replace_version(SPACE, "s", {"h": kept}, version)
    assert await store.read(SPACE, "s") == {"h": kept}


async def test_a_state_holds_many_fields(store: Store) -> None:
    fields = {f"field {number}": b"%d" % number for number in range(2000)}
    await store.merge(SPACE, "s", fields, KEEP)
    assert await store.read(SPACE, "s") == fields
    await store.replace(SPACE, "s", fields, KEEP)
    assert await store.read(SPACE, "s") == fields


async def test_what_is_handed_over_and_handed_out_are_copies(store: Store) -> None:
    for write, before in product(
        (
            lambda fields: store.merge(SPACE, "s", fields, KEEP),
            lambda fields: store.replace(SPACE, "s", fields, KEEP),
            lambda fields: _replace_version(store, fields),
        ),
        (None, {"f": b"0"}),
    ):
        if before is not None:
            await store.merge(SPACE, "s", before, KEEP)
        given = {"f": b"1"}
        await write(given)
        given["f"] = given["g"] = b"2"
        for read in (store.read(SPACE, "s"), _fields_of_version(store)):
            fields: Any = await read
            assert fields == {"f": b"1"}
            fields.update(f=b"3", h=b"3")
        assert await store.read(SPACE, "s") == {"f": b"1"}
        await store.remove(SPACE, "s")


async def _replace_version(store: Store, fields: Mapping[str, bytes]) -> bool:
    return await store.replace_version(SPACE, "s", fields, (await store.read_version(SPACE, "s"))[1])


async def _fields_of_version(store: Store) -> Any:
    return (await store.read_version(SPACE, "s"))[0]


async def test_without_its_last_field_a_state_is_gone(store: Store) -> None:
    await store.merge(SPACE, "s", {"a": b"1", "b": b"2"}, 100)
    assert await store.remove_field(SPACE, "s", "x") == 0
    assert await store.remove_field(SPACE, "s", "a") == 1
    assert await store.remove_field(SPACE, "s", "a") == 0
    assert await store.read(SPACE, "s") == {"b": b"2"}
    assert await store.remove_field(SPACE, "s", "b") == 1
    assert await store.exists(SPACE, "s") is False
    assert await store.read(SPACE, "s") is None
    assert await store.names(SPACE) == []
    assert await store.remaining(SPACE, "s") is None
    assert await store.merge(SPACE, "s", ONE, KEEP) is True
    assert await store.remaining(SPACE, "s") == math.inf, "the time to live went with the state"


async def test_remove_and_clear_say_how_many(store: Store) -> None:
    for name in "abc":
        await store.merge(SPACE, name, {"f": b"1", "g": b"2"}, KEEP)
    assert sorted(await store.names(SPACE)) == ["a", "b", "c"]
    assert await store.remove(SPACE, "a") == 1
    assert await store.remove(SPACE, "a") == 0
    assert await store.clear(SPACE) == 2
    assert await store.clear(SPACE) == 0
    assert await store.names(SPACE) == []
    assert await store.read(SPACE, "b") is None


async def test_clear_removes_more_states_than_one_step_takes(store: Store) -> None:
    for number in range(2500):
        await store.merge(SPACE, str(number), ONE, KEEP if number % 2 else 100)
    await store.merge(("acme", "bob"), "s", ONE, KEEP)
    assert await store.clear(SPACE) == 2500
    assert await store.names(SPACE) == []
    assert await store.names(("acme", "bob")) == ["s"]


# Versions.

CHANGES: dict[str, Callable[[Store], Awaitable[object]]] = {
    "merge": lambda store: store.merge(SPACE, "s", {"f": b"2"}, KEEP),
    "merge of another field": lambda store: store.merge(SPACE, "s", {"g": b"2"}, KEEP),
    "replace": lambda store: store.replace(SPACE, "s", {"f": b"2"}, KEEP),
    "increment": lambda store: store.increment(SPACE, "s", "f", 1),
    "remove_field": lambda store: store.remove_field(SPACE, "s", "x"),
    "remove": lambda store: store.remove(SPACE, "s"),
    "clear": lambda store: store.clear(SPACE),
    "erase": lambda store: store.erase("acme"),
    "replace_version": lambda store: _replace_version(store, {"f": b"2"}),
    "replace_version with nothing": lambda store: _replace_version(store, {}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_version_that_was_changed_is_not_replaced(store: Store, change: Callable[[Store], Any]) -> None:
    await store.merge(SPACE, "s", {"f": b"1", "x": b"1"}, KEEP)
    _, version = await store.read_version(SPACE, "s")
    await change(store)
    after = await store.read(SPACE, "s")
    assert await store.replace_version(SPACE, "s", {"mine": b"1"}, version) is False
    assert await store.replace_version(SPACE, "s", {}, version) is False
    assert await store.read(SPACE, "s") == after


async def test_a_state_that_is_what_it_was_before_is_yet_another_version(store: Store) -> None:
    await store.merge(SPACE, "s", {"f": b"a"}, KEEP)
    _, version = await store.read_version(SPACE, "s")
    await store.merge(SPACE, "s", {"f": b"b"}, KEEP)
    await store.merge(SPACE, "s", {"f": b"a"}, KEEP)
    assert await store.replace_version(SPACE, "s", {"f": b"c"}, version) is False


@pytest.mark.parametrize("end", ["remove", "remove_field", "clear", "erase", "expiry"])
async def test_a_state_that_is_made_anew_is_another_version(stage: Stage, store: Store, end: str) -> None:
    await store.merge(SPACE, "s", {"f": b"a"}, 10)
    _, version = await store.read_version(SPACE, "s")
    match end:
        case "remove":
            await store.remove(SPACE, "s")
        case "remove_field":
            await store.remove_field(SPACE, "s", "f")
        case "clear":
            await store.clear(SPACE)
        case "erase":
            await store.erase("acme")
        case _:
            await stage.advance(11)
    await store.merge(SPACE, "s", {"f": b"a"}, 10)
    assert await store.replace_version(SPACE, "s", {"f": b"c"}, version) is False
    assert await store.read(SPACE, "s") == {"f": b"a"}


async def test_what_changes_no_field_changes_no_version(store: Store) -> None:
    await store.merge(SPACE, "s", {"f": b"true"}, KEEP)
    _, version = await store.read_version(SPACE, "s")
    await store.touch(SPACE, "s", 10)
    await store.touch(SPACE, "s", None)
    await store.remove_field(SPACE, "s", "x")
    await store.merge(SPACE, "other", ONE, KEEP)
    with pytest.raises(StateNumberError):
        await store.increment(SPACE, "s", "f", 1)
    assert await store.replace_version(SPACE, "s", {"f": b"a"}, b"no version of it") is False
    assert (await store.read_version(SPACE, "s"))[1] == version
    assert await store.replace_version(SPACE, "s", {"f": b"c"}, version) is True
    assert await store.replace_version(SPACE, "s", {"f": b"d"}, version) is False


async def test_a_state_that_is_not_there_has_a_version_too(store: Store) -> None:
    _, version = await store.read_version(SPACE, "s")
    assert await store.replace_version(SPACE, "s", {"f": b"1"}, version) is True
    assert await store.replace_version(SPACE, "s", {"f": b"2"}, version) is False
    assert await store.read(SPACE, "s") == {"f": b"1"}


async def test_replacing_a_version_leaves_nothing_of_what_it_was_and_without_fields_removes_it(store: Store) -> None:
    await store.merge(SPACE, "s", {"a": b"1", "b": b"1"}, KEEP)
    assert await _replace_version(store, {"b": b"2"}) is True
    assert await store.read(SPACE, "s") == {"b": b"2"}
    assert await _replace_version(store, {}) is True
    assert await store.exists(SPACE, "s") is False
    assert await store.names(SPACE) == []


# Time to live.

WRITES: dict[str, Callable[[SharedState, Any], Awaitable[object]]] = {
    "upsert": lambda state, ttl: state.upsert("s", {"f": 1}, ttl=ttl),
    "replace": lambda state, ttl: state.replace("s", {"f": 1}, ttl=ttl),
    "update_field": lambda state, ttl: state.update_field("s", "f", 1, ttl=ttl),
}


@pytest.mark.parametrize("default", [None, 500])
@pytest.mark.parametrize("ttl", [KEEP, None, 30, 2.5])
@pytest.mark.parametrize("before", ["absent", None, 100])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_write_keeps_removes_or_sets_the_time_to_live(
    stage: Stage, write: Callable[..., Any], before: Any, ttl: Any, default: float | None
) -> None:
    state = SharedState(await stage.make(default_ttl=default), "acme", "ann")
    if before != "absent":
        await state.upsert("s", {"f": 0}, ttl=before)
    assert await write(state, ttl) is (before == "absent")
    expected = ttl
    if ttl is KEEP:
        expected = default if before == "absent" else before
    assert about(await state.ttl("s"), expected, stage)


@pytest.mark.parametrize("default", [None, 500])
@pytest.mark.parametrize("before", ["absent", None, 100])
@pytest.mark.parametrize("write", ["increment", "modify", "replace_version"])
async def test_increment_and_modify_keep_the_time_to_live(
    stage: Stage, write: str, before: Any, default: float | None
) -> None:
    store = await stage.make(default_ttl=default)
    state = SharedState(store, "acme", "ann")
    if before != "absent":
        await state.upsert("s", {"f": 0}, ttl=before)
    if write == "increment":
        await state.increment("s", "f")
    elif write == "modify":
        await state.modify("s", lambda data: {**data, "g": 1})
    else:
        assert await _replace_version(store, {"g": b"1"})
    assert about(await state.ttl("s"), default if before == "absent" else before, stage)


async def test_removing_a_field_keeps_the_time_to_live(stage: Stage, store: Store) -> None:
    await store.merge(SPACE, "s", {"a": b"1", "b": b"2"}, 100)
    await store.remove_field(SPACE, "s", "a")
    assert about(await store.remaining(SPACE, "s"), 100, stage)


def about(left: float | None, expected: float | None, stage: Stage) -> bool:
    if left is None or expected is None:
        return left is expected
    return expected - stage.drift() - stage.precision <= left <= expected + stage.most_drift + stage.precision


async def test_a_time_to_live_runs_down_and_is_of_the_whole_state(stage: Stage, store: Store) -> None:
    await store.merge(SPACE, "s", {"f": b"1"}, 100)
    await stage.advance(40)
    await store.merge(SPACE, "s", {"g": b"1"}, KEEP)
    assert about(await store.remaining(SPACE, "s"), 60, stage)
    await stage.advance(70)
    assert await store.read(SPACE, "s") is None


async def test_touch_sets_and_removes_the_time_to_live(stage: Stage, state: SharedState) -> None:
    assert await state.touch("s", 10) is False
    await state.upsert("s", {"f": 1})
    assert await state.ttl("s") is None
    assert await state.touch("s", 10) is True
    assert about(await state.ttl("s"), 10, stage)
    assert await state.touch("s", 100.5) is True
    await stage.advance(50)
    assert about(await state.ttl("s"), 50.5, stage)
    assert await state.touch("s", 20) is True
    assert await state.touch("s", None) is True
    await stage.advance(1000)
    assert await state.ttl("s") is None
    assert await state.get("s") == {"f": 1}


async def test_a_time_to_live_that_is_shortened_lengthened_or_removed_holds(stage: Stage, state: SharedState) -> None:
    for name, ttl in (("shorter", 10), ("longer", 100), ("endless", None)):
        await state.upsert(name, {"f": 1}, ttl=50)
        await state.update_field(name, "g", 1, ttl=ttl)
    await stage.advance(20)
    assert await state.list_states() == ["endless", "longer"]
    await stage.advance(50)
    assert await state.list_states() == ["endless", "longer"]
    await stage.advance(50)
    assert await state.list_states() == ["endless"]


async def test_the_longest_times_to_live_are_kept(stage: Stage, state: SharedState) -> None:
    """A hundred years; what no store can hold as a time is refused, or the state is kept, but never half."""
    await state.upsert("s", {"f": 1}, ttl=100 * 365 * 86400)
    await stage.advance(86400)
    assert await state.exists("s")


@pytest.mark.parametrize("ttl", [1e300, 10**400], ids=["1e300", "10**400"])
@pytest.mark.parametrize("call", ["upsert new", "upsert", "touch"])
async def test_a_time_to_live_beyond_any_time_is_kept_or_refused_but_never_half(
    stage: Stage, state: SharedState, call: str, ttl: float
) -> None:
    if call != "upsert new":
        await state.upsert("s", {"f": 1}, ttl=10)
    before = await state.get("s")
    try:
        await (state.touch("s", ttl) if call == "touch" else state.upsert("s", {"g": 1}, ttl=ttl))
    except ValueError:
        assert await state.get("s") == before, "refused means that nothing was written"
    await state.upsert("s", {"h": 1}, ttl=10)
    assert about(await state.ttl("s"), 10, stage)
    await state.modify("s", lambda data: {**data, "i": 1})
    await stage.advance(11)
    assert await state.list_states() == []


ASKS: dict[str, tuple[Callable[[Store], Awaitable[object]], object]] = {
    "read": (lambda store: store.read(SPACE, "s"), None),
    "read_field": (lambda store: store.read_field(SPACE, "s", "f"), None),
    "read_version": (lambda store: _fields_of_version(store), None),
    "remove_field": (lambda store: store.remove_field(SPACE, "s", "f"), 0),
    "remove": (lambda store: store.remove(SPACE, "s"), 0),
    "exists": (lambda store: store.exists(SPACE, "s"), False),
    "names": (lambda store: store.names(SPACE), []),
    "clear": (lambda store: store.clear(SPACE), 0),
    "touch": (lambda store: store.touch(SPACE, "s", 10), False),
    "touch without limit": (lambda store: store.touch(SPACE, "s", None), False),
    "remaining": (lambda store: store.remaining(SPACE, "s"), None),
    "erase": (lambda store: store.erase("acme"), 0),
    "increment": (lambda store: store.increment(SPACE, "s", "f", 1), 1),
    "merge": (lambda store: store.merge(SPACE, "s", {"g": b"1"}, KEEP), True),
    "replace": (lambda store: store.replace(SPACE, "s", {"g": b"1"}, KEEP), True),
}


@pytest.mark.parametrize("ttl", [10, 0.25, 1.75])
@pytest.mark.parametrize(("ask", "answer"), ASKS.values(), ids=ASKS)
async def test_a_state_whose_time_is_over_is_gone_for_every_call(
    stage: Stage, store: Store, ask: Callable[[Store], Any], answer: object, ttl: float
) -> None:
    """Each call is the first after the end; parts of seconds count too."""
    await store.merge(SPACE, "s", {"f": b"41", "x": b"1"}, ttl)
    await stage.advance(ttl + 0.375)
    assert await ask(store) == answer
    assert not {"f", "x"} & set(await store.read(SPACE, "s") or {}) or answer == 1
    assert (await store.read(SPACE, "s") or {}).get("x") is None


@pytest.mark.parametrize(("ask", "answer"), ASKS.values(), ids=ASKS)
async def test_a_state_whose_time_is_nearly_over_is_there_for_every_call(
    stage: Stage, store: Store, ask: Callable[[Store], Any], answer: object
) -> None:
    await store.merge(SPACE, "s", {"f": b"41", "x": b"1"}, 10)
    await stage.advance(9)
    assert await ask(store) != answer


async def test_a_version_whose_time_is_over_is_not_replaced(stage: Stage, store: Store) -> None:
    await store.merge(SPACE, "s", ONE, 10)
    _, version = await store.read_version(SPACE, "s")
    await stage.advance(11)
    assert await store.replace_version(SPACE, "s", {"g": b"1"}, version) is False
    assert await store.exists(SPACE, "s") is False


async def test_a_state_made_after_an_end_gets_the_default_again(stage: Stage) -> None:
    store = await stage.make(default_ttl=20)
    await store.merge(SPACE, "s", ONE, 10)
    await stage.advance(11)
    assert await store.increment(SPACE, "s", "n", 1) == 1
    assert about(await store.remaining(SPACE, "s"), 20, stage)
    await stage.advance(21)
    assert await store.names(SPACE) == []


async def test_only_those_whose_time_is_over_are_gone(stage: Stage, store: Store) -> None:
    for number in range(200):
        await store.merge(SPACE, str(number), ONE, (number + 0.5) if number % 3 else None)
    await stage.advance(100)
    alive = sorted(str(number) for number in range(200) if number % 3 == 0 or number >= 100)
    assert sorted(await store.names(SPACE)) == alive
    assert await store.clear(SPACE) == len(alive)


# Numbers.

SUMS: list[tuple[Any, float, float]] = [
    (None, 1, 1),
    (None, -1, -1),
    (None, 0, 0),
    (None, 0.5, 0.5),
    (None, MOST, MOST),
    (None, LEAST, LEAST),
    (41, 1, 42),
    (-1, 1, 0),
    (MOST - 1, 1, MOST),
    (MOST, 0, MOST),
    (MOST, LEAST, -1),
    (LEAST + 1, -1, LEAST),
    (LEAST, MOST, -1),
    (LEAST, 0, LEAST),
    (2**53, 1, 2**53 + 1),
    (1, 0.5, 1.5),
    (0.5, 1, 1.5),
    (1, 1.0, 2.0),
    (1.0, 1, 2.0),
    (0.1, 0.2, 0.1 + 0.2),
    (-0.0, -0.0, -0.0),
    (0.0, -0.0, 0.0),
    (1e308, 0.5, 1e308),
    (1.5, -1.5, 0.0),
    (1e16, 1, 1e16 + 1),
    (1e22, 1.0, 1e22),
    (5e-324, 5e-324, 1e-323),
    (-1.7976931348623157e308, 1.7976931348623157e308, 0.0),
    (MOST, 0.0, float(MOST)),
    (MOST, 1.0, float(MOST) + 1.0),
    (2**53 + 1, 0.5, (2**53 + 1) + 0.5),
]


@pytest.mark.parametrize(("number", "by", "total"), SUMS)
async def test_increment_adds_ints_exactly_and_floats_as_doubles(
    state: SharedState, number: Any, by: float, total: float
) -> None:
    if number is not None:
        await state.update_field("s", "n", number)
    added = await state.increment("s", "n", by)
    kept = await state.get_field("s", "n")
    assert (type(added), repr(added)) == (type(total), repr(total))
    assert (type(kept), repr(kept)) == (type(total), repr(total))


OVERFLOWS = [
    (MOST, 1),
    (MOST, MOST),
    (LEAST, -1),
    (LEAST, LEAST),
    (1.7976931348623157e308, 1.7976931348623157e308),
    (-1.7976931348623157e308, -1e308),
]


@pytest.mark.parametrize(("number", "by"), OVERFLOWS)
async def test_a_sum_beyond_its_type_is_an_error_and_nothing_is_written(
    state: SharedState, number: float, by: float
) -> None:
    await state.upsert("s", {"n": number, "other": 1}, ttl=100)
    with pytest.raises(StateNumberError, match="would go beyond") as caught:
        await state.increment("s", "n", by)
    assert (caught.value.state, caught.value.field, caught.value.why) == ("s", "n", "overflow")
    assert await state.get("s") == {"n": number, "other": 1}
    assert type(await state.get_field("s", "n")) is type(number)


@pytest.mark.parametrize("by", [MOST + 1, LEAST - 1, 10**400, math.inf, -math.inf, math.nan])
async def test_adding_what_is_no_number_of_64_bits_is_an_error_and_makes_nothing(state: SharedState, by: float) -> None:
    with pytest.raises(StateNumberError) as caught:
        await state.increment("s", "n", by)
    assert caught.value.why == "overflow"
    assert await state.list_states() == []
    for number in (-1, 1):  # the sum would fit
        await state.update_field("s", "n", number)
        with pytest.raises(StateNumberError):
            await state.increment("s", "n", by)
        assert await state.get("s") == {"n": number}


NO_NUMBERS: list[Any] = [
    True,
    False,
    None,
    "1",
    "",
    "1.5",
    b"1",
    [1],
    {"a": 1},
    {},
    Decimal(1),
    MOST + 1,
    LEAST - 1,
    10**30,
    math.inf,
    -math.inf,
    (1,),
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("by", [1, 1.5])
async def test_what_is_no_number_cannot_be_incremented_and_stays(state: SharedState, value: Any, by: float) -> None:
    await state.update_field("s", "f", value)
    with pytest.raises(StateNumberError, match="holds no int or float") as caught:
        await state.increment("s", "f", by)
    assert (caught.value.state, caught.value.field, caught.value.why) == ("s", "f", "type")
    assert await state.get("s") == {"f": value}


@pytest.mark.parametrize("by", ["1", None, True, Decimal(1), 1j, [1]], ids=repr)
async def test_only_an_int_or_a_float_can_be_added(state: SharedState, by: Any) -> None:
    with pytest.raises(TypeError, match="by must be an int or a float"):
        await state.increment("s", "n", by)
    assert await state.list_states() == []


@pytest.mark.parametrize(
    "text", [b"", b" 1", b"1 ", b"+1", b"1.", b".5", b"0x1", b"1_0", b"NaN", b"Infinity", b"1e", b"1\n", b"\xd9\xa1"]
)
async def test_what_is_no_json_number_is_not_taken_for_one(store: Store, text: bytes) -> None:
    await store.merge(SPACE, "s", {"f": text}, KEEP)
    with pytest.raises(StateNumberError):
        await store.increment(SPACE, "s", "f", 1)
    assert await store.read(SPACE, "s") == {"f": text}


@pytest.mark.parametrize("text", [b"1e2", b"1E2", b"1e+2", b"100.0", b"1.0e2", b"10000e-2"])
async def test_a_number_with_a_point_or_an_exponent_is_a_float(store: Store, text: bytes) -> None:
    await store.merge(SPACE, "s", {"f": text}, KEEP)
    total = await store.increment(SPACE, "s", "f", 1)
    assert (type(total), total) == (float, 101.0)


async def test_increment_makes_state_and_field_and_leaves_other_fields(state: SharedState) -> None:
    assert await state.increment("s", "n") == 1
    assert await state.increment("s", "m", -2) == -2
    assert await state.increment("s", "n", 2) == 3
    await state.update_field("s", "text", "x")
    assert await state.increment("s", "n", 0.5) == 3.5
    assert await state.get("s") == {"n": 3.5, "m": -2, "text": "x"}


# Counters.


async def test_a_counter_adds_until_its_window_is_over(stage: Stage, store: Store) -> None:
    assert await counted(stage, store, "c", 1, 10, left=10) == 1
    await stage.advance(4)
    assert await counted(stage, store, "c", 2, 10, left=6) == 3
    assert await counted(stage, store, "c", 0, 99, left=6) == 3, "the window began with the first"
    assert await counted(stage, store, "c", -1, 10, left=6) == 2
    await stage.advance(7)
    assert await counted(stage, store, "c", 5, 200, left=200) == 5
    await stage.advance(190)
    assert await counted(stage, store, "c", 1, 200, left=10) == 6


async def counted(stage: Stage, store: Store, name: str, by: int, window: float, *, left: float) -> int:
    """What a counter says, which has so many seconds left then."""
    total, remaining = await store.count(SPACE, name, by, window)
    assert about(remaining, left, stage)
    return total


@pytest.mark.parametrize("window", [10, 0.25, 1.75])
async def test_a_counter_begins_at_nothing_when_its_window_is_over(stage: Stage, store: Store, window: float) -> None:
    await store.count(SPACE, "c", 5, window)
    await stage.advance(window + 0.375)
    assert (await store.count(SPACE, "c", 1, 100))[0] == 1
    assert (await store.count(SPACE, "c", 1, 100))[0] == 2


async def test_counters_stand_beside_states_and_leases_of_the_same_name(stage: Stage, store: Store) -> None:
    await store.merge(SPACE, "x", ONE, KEEP)
    assert (await store.count(SPACE, "x", 7, 10))[0] == 7
    assert await store.acquire(SPACE, "x", "x", 1, 10) is True
    assert await store.names(SPACE) == ["x"]
    assert await store.remove(SPACE, "x") == 1
    assert await store.names(SPACE) == []
    assert await store.clear(SPACE) == 0
    assert (await store.count(SPACE, "x", 1, 10))[0] == 8
    assert await store.release(SPACE, "x", "x") is True
    assert (await store.count(SPACE, "x", 1, 10))[0] == 9
    await stage.advance(11)
    assert (await store.count(SPACE, "x", 1, 10))[0] == 1


async def test_clear_leaves_counters_and_leases_and_erase_does_not(store: Store) -> None:
    await store.merge(SPACE, "x", ONE, KEEP)
    await store.count(SPACE, "x", 7, 10)
    await store.acquire(SPACE, "x", "h", 1, 10)
    assert await store.clear(SPACE) == 1
    assert (await store.count(SPACE, "x", 1, 10))[0] == 8
    assert await store.acquire(SPACE, "x", "other", 1, 10) is False
    assert await store.erase("acme") == 0, "only states are counted"
    assert (await store.count(SPACE, "x", 1, 10))[0] == 1
    assert await store.acquire(SPACE, "x", "other", 1, 10) is True


# Leases.


async def test_no_more_leases_than_there_are(store: Store) -> None:
    assert [await store.acquire(SPACE, "l", str(holder), 3, 10) for holder in range(5)] == [True] * 3 + [False] * 2
    assert await store.release(SPACE, "l", "4") is False
    assert await store.release(SPACE, "l", "1") is True
    assert await store.release(SPACE, "l", "1") is False
    assert await store.acquire(SPACE, "l", "4", 3, 10) is True
    assert await store.acquire(SPACE, "l", "1", 3, 10) is False


async def test_who_holds_a_lease_renews_it_and_takes_no_second(stage: Stage, store: Store) -> None:
    assert await store.acquire(SPACE, "l", "a", 2, 10) is True
    assert await store.acquire(SPACE, "l", "b", 2, 10) is True
    await stage.advance(6)
    assert await store.acquire(SPACE, "l", "a", 2, 10) is True, "there is none free, but it has one"
    await stage.advance(6)
    assert await store.release(SPACE, "l", "b") is False, "its time was over"
    assert await store.acquire(SPACE, "l", "c", 2, 10) is True
    assert await store.acquire(SPACE, "l", "d", 2, 10) is False
    await stage.advance(5)
    assert await store.acquire(SPACE, "l", "d", 2, 10) is True
    assert await store.acquire(SPACE, "l", "a", 2, 10) is False


@pytest.mark.parametrize("ttl", [10, 0.25, 1.75])
async def test_a_lease_that_is_not_renewed_ends(stage: Stage, store: Store, ttl: float) -> None:
    await store.acquire(SPACE, "l", "a", 1, 100)
    assert await store.acquire(SPACE, "l", "b", 1, ttl) is False
    assert await store.acquire(SPACE, "l", "a", 1, ttl) is True
    await stage.advance(ttl + 0.375)
    assert await store.acquire(SPACE, "l", "b", 1, 100) is True
    assert await store.release(SPACE, "l", "a") is False
    assert await store.release(SPACE, "l", "b") is True


@pytest.mark.parametrize("ttl", [10, 0.25, 1.75])
async def test_a_lease_that_has_ended_was_not_held(stage: Stage, store: Store, ttl: float) -> None:
    await store.acquire(SPACE, "l", "a", 1, ttl)
    await stage.advance(ttl + 0.375)
    assert await store.release(SPACE, "l", "a") is False


async def test_a_lease_may_be_renewed_for_a_shorter_time(stage: Stage, store: Store) -> None:
    await store.acquire(SPACE, "l", "a", 1, 100)
    await store.acquire(SPACE, "l", "a", 1, 5)
    await stage.advance(6)
    assert await store.acquire(SPACE, "l", "b", 1, 5) is True


async def test_leases_of_two_names_and_two_spaces_are_apart(store: Store) -> None:
    for space in (SPACE, ("acme", None), ("acme", "bob"), ("other", "ann")):
        for lease in ("l", "m", "l:a"):
            assert await store.acquire(space, lease, "a", 1, 10) is True
            assert await store.acquire(space, lease, "b", 1, 10) is False
    assert await store.release(SPACE, "l", "a") is True
    assert await store.acquire(("acme", None), "l", "b", 1, 10) is False


# Erase.


async def test_erase_removes_all_of_a_tenant_and_nothing_of_another(stage: Stage, store: Store) -> None:
    for tenant, user in product(("acme", "acme2", "other"), ("ann", "bob", None)):
        for number in range(3):
            await store.merge((tenant, user), f"s{number}", ONE, KEEP if number else 100)
        await store.count((tenant, user), "c", 5, 100)
        await store.acquire((tenant, user), "l", "h", 1, 100)
    assert await store.erase("acme") == 9
    assert await store.erase("acme") == 0
    for user in ("ann", "bob", None):
        assert await store.names(("acme", user)) == []
        assert await store.read(("acme", user), "s1") is None
        for tenant in ("acme2", "other"):
            assert sorted(await store.names((tenant, user))) == ["s0", "s1", "s2"]
            assert (await store.count((tenant, user), "c", 1, 100))[0] == 6
            assert await store.acquire((tenant, user), "l", "other", 1, 100) is False
    await store.merge(("acme", "ann"), "s0", ONE, KEEP)
    await stage.advance(200)
    assert await store.names(("acme", "ann")) == ["s0"], "an end from before does not reach what was made after"


async def test_erase_counts_many_and_not_those_whose_time_is_over(stage: Stage, store: Store) -> None:
    for number in range(2500):
        await store.merge(SPACE, str(number), ONE, 10 if number % 5 == 0 else None)
    await stage.advance(60)
    assert await store.erase("acme") == 2000


# SharedState: the table of what each call returns.


async def test_upsert_makes_a_state_and_then_merges_into_it(state: SharedState) -> None:
    assert await state.upsert("cart", {"a": 1, "b": [2]}) is True
    assert await state.upsert("cart", {"b": 3, "c": None}) is False
    assert await state.get("cart") == {"a": 1, "b": 3, "c": None}


async def test_replace_makes_a_state_be_exactly_that(state: SharedState) -> None:
    assert await state.replace("cart", {"a": 1, "b": [2]}) is True
    assert await state.replace("cart", {"c": (None,)}) is False
    assert await state.get("cart") == {"c": (None,)}


async def test_a_state_that_is_not_there_is_none_and_its_fields_are_the_default(state: SharedState) -> None:
    assert await state.get("cart") is None
    assert await state.get_field("cart", "a") is None
    assert await state.get_field("cart", "a", 7) == 7
    assert await state.exists("cart") is False
    await state.upsert("cart", {"a": None})
    assert await state.get_field("cart", "a", 7) is None
    assert await state.get_field("cart", "b", 7) == 7
    assert await state.get("cart") == {"a": None}
    assert await state.exists("cart") is True


async def test_update_field_sets_one_field_and_makes_the_state(state: SharedState) -> None:
    assert await state.update_field("profile", "colour", "green") is True
    assert await state.update_field("profile", "colour", "blue") is False
    assert await state.update_field("profile", "size", 4) is False
    assert await state.get("profile") == {"colour": "blue", "size": 4}


async def test_deleting_says_how_many(state: SharedState) -> None:
    for name in ("b", "a", "c"):
        await state.upsert(name, {"x": 1, "y": 2})
    assert (await state.delete("a"), await state.delete("a")) == (1, 0)
    assert (await state.delete_field("b", "x"), await state.delete_field("b", "x")) == (1, 0)
    assert (await state.delete_field("b", "y"), await state.exists("b")) == (1, False)
    await state.upsert("d", {"x": 1})
    assert (await state.clear_all_states(), await state.clear_all_states()) == (2, 0)
    assert await state.list_states() == []


async def test_states_are_listed_sorted(state: SharedState) -> None:
    for name in ("b", "a", "C", "é", "😀", "1", "aa", " "):
        await state.upsert(name, {"x": 1})
    assert await state.list_states() == [" ", "1", "C", "a", "aa", "b", "é", "😀"]


async def test_values_come_back_equal_of_the_same_type_and_as_copies(state: SharedState) -> None:
    data: dict[str, Any] = {
        "none": None,
        "bool": True,
        "int": 10**30,
        "float": math.inf,
        "text": "😀\x00",
        "bytes": b"\x00\xff",
        "tuple": (1, [2]),
        "set": {1, "a"},
        "dict": {1: {"$tuple": 2}},
        "when": datetime(2026, 11, 21, tzinfo=UTC),
        "decimal": Decimal("1.10"),
    }
    await state.upsert("s", data)
    again = await state.get("s")
    assert again == data
    assert typed(again) == typed(data)
    data["tuple"][1].append(3)
    assert again["tuple"] == (1, [2])
    again["dict"].clear()
    assert await state.get_field("s", "tuple") == (1, [2])
    assert await state.get_field("s", "dict") == {1: {"$tuple": 2}}


async def test_modify_takes_a_copy_and_gives_what_it_has_written(state: SharedState) -> None:
    seen: list[object] = []

    def change(data: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(data))
        data["n"] = data.get("n", 0) + 1
        return data

    assert await state.modify("s", change) == {"n": 1}
    await state.update_field("s", "other", (1,))
    assert await state.modify("s", change) == {"n": 2, "other": (1,)}
    assert seen == [{}, {"n": 1, "other": (1,)}]
    given = [1]
    written: Any = await state.modify("s", lambda data: {"list": given})
    written["list"].append(2)
    assert given == [1]
    assert await state.get("s") == {"list": [1]}, "what is not returned is gone"


async def test_modify_to_nothing_deletes(state: SharedState) -> None:
    assert await state.modify("s", lambda data: {}) == {}
    assert await state.exists("s") is False
    await state.upsert("s", {"a": 1})
    assert await state.modify("s", lambda data: {}) == {}
    assert await state.list_states() == []


async def test_modify_whose_function_raises_writes_nothing(state: SharedState) -> None:
    await state.upsert("s", {"a": 1})
    with pytest.raises(ZeroDivisionError):
        await state.modify("s", lambda data: {"a": 1 // 0})
    with pytest.raises(TypeError, match="mapping"):
        await state.modify("s", lambda data: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(StateSerializationError):
        await state.modify("s", lambda data: {"a": object()})

    async def later(data: dict[str, Any]) -> dict[str, Any]:
        return data

    for wrong in (later, None, 1):
        with pytest.raises(TypeError, match="plain function"):
            await state.modify("s", wrong)  # type: ignore[arg-type]
    assert await state.get("s") == {"a": 1}


class Meddling(Delegating):
    """Somebody else writes just before a version is replaced, so many times."""

    times = 0
    seen = 0

    async def before(self, method: str, arguments: tuple[Any, ...]) -> None:
        if method == "replace_version":
            self.seen += 1
            if self.seen <= self.times:
                await self.inner.increment(arguments[0], arguments[1], "theirs", 1)


async def test_modify_begins_again_when_somebody_else_has_written(store: Store) -> None:
    meddling = Meddling(store)
    meddling.times = 5
    state = SharedState(meddling, "acme", "ann")
    seen: list[object] = []

    def change(data: dict[str, Any]) -> dict[str, Any]:
        seen.append(data.get("theirs"))
        return {**data, "mine": 1}

    assert await state.modify("s", change) == {"theirs": 5, "mine": 1}
    assert seen == [None, 1, 2, 3, 4, 5]


async def test_modify_gives_up_after_some_attempts_and_says_so(store: Store) -> None:
    meddling = Meddling(store)
    meddling.times = 10**9
    with pytest.raises(StateConflictError, match="nothing was written") as caught:
        await SharedState(meddling, "acme", "ann").modify("s", lambda data: {"mine": 1})
    assert caught.value.attempts == meddling.seen
    assert await SharedState(store, "acme", "ann").get("s") == {"theirs": meddling.seen}


async def test_the_time_to_live_of_what_is_not_there_is_a_key_error(stage: Stage, state: SharedState) -> None:
    with pytest.raises(KeyError, match="cart"):
        await state.ttl("cart")
    await state.upsert("cart", {"a": 1}, ttl=10)
    await stage.advance(11)
    with pytest.raises(KeyError, match="cart"):
        await state.ttl("cart")


@pytest.mark.parametrize("wrong", [0, -1, 0.0, math.inf, math.nan, True, "10", KEEP, [1]], ids=repr)
async def test_a_time_to_live_is_seconds(state: SharedState, wrong: Any) -> None:
    await state.upsert("s", {"a": 1})
    calls = [state.touch("s", wrong)]
    if wrong is not KEEP:
        calls += [
            state.upsert("s", {"a": 2}, ttl=wrong),
            state.replace("s", {"a": 2}, ttl=wrong),
            state.update_field("s", "a", 2, ttl=wrong),
        ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="ttl must be"):
            await call
    assert await state.get("s") == {"a": 1}
    assert await state.ttl("s") is None


NAMED: dict[str, Callable[[SharedState, Any], Awaitable[object]]] = {
    "upsert": lambda state, name: state.upsert(name, {"a": 1}),
    "upsert a field": lambda state, name: state.upsert("a", {name: 1}),
    "replace": lambda state, name: state.replace(name, {"a": 1}),
    "replace a field": lambda state, name: state.replace("a", {name: 1}),
    "get": lambda state, name: state.get(name),
    "get_field": lambda state, name: state.get_field(name, "a"),
    "get_field, the field": lambda state, name: state.get_field("a", name),
    "update_field": lambda state, name: state.update_field(name, "a", 1),
    "update_field, the field": lambda state, name: state.update_field("a", name, 1),
    "increment": lambda state, name: state.increment(name, "a"),
    "increment, the field": lambda state, name: state.increment("a", name),
    "modify": lambda state, name: state.modify(name, lambda data: {"a": 1}),
    "modify, the field": lambda state, name: state.modify("a", lambda data: {name: 1}),
    "delete_field": lambda state, name: state.delete_field(name, "a"),
    "delete_field, the field": lambda state, name: state.delete_field("a", name),
    "delete": lambda state, name: state.delete(name),
    "exists": lambda state, name: state.exists(name),
    "touch": lambda state, name: state.touch(name, 1),
    "ttl": lambda state, name: state.ttl(name),
}


@pytest.mark.parametrize("call", NAMED.values(), ids=NAMED)
async def test_names_are_strings_that_are_not_empty_and_hold_no_lone_surrogate(
    state: SharedState, call: Callable[..., Any]
) -> None:
    for wrong, error in (
        (1, TypeError),
        (None, TypeError),
        (b"a", TypeError),
        ("", ValueError),
        ("\ud800", ValueError),
    ):
        with pytest.raises(error, match=r"must|surrogate"):
            await call(state, wrong)
    assert await state.list_states() == []


@pytest.mark.parametrize(("tenant", "user"), [(None, None), ("", None), ("acme", ""), ("acme", 1), ("\ud800", None)])
async def test_a_state_belongs_to_somebody(store: Store, tenant: Any, user: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"must|surrogate"):
        SharedState(store, tenant, user)


async def test_data_is_a_mapping_with_at_least_one_field(state: SharedState) -> None:
    for write in (state.upsert, state.replace):
        with pytest.raises(ValueError, match="at least one field"):
            await write("s", {})
        for wrong in ([("a", 1)], None, "text"):
            with pytest.raises(TypeError, match="must be a mapping"):
                await write("s", wrong)  # type: ignore[arg-type]
    assert await state.list_states() == []


async def test_a_value_that_cannot_be_kept_is_an_error_and_nothing_of_the_call_is_written(state: SharedState) -> None:
    for value in (object(), math.nan, "\ud800", {"a": [object()]}):
        for write in (
            state.upsert("s", {"good": 1, "f": value}),
            state.replace("s", {"good": 1, "f": value}),
            state.update_field("s", "f", value),
            state.modify("s", lambda data, value=value: {"good": 1, "f": value}),  # type: ignore[misc]
        ):
            with pytest.raises(StateSerializationError, match="field 'f'") as caught:
                await write
            assert caught.value.state == "s"
    assert await state.list_states() == []


async def test_text_that_cannot_be_read_is_an_error_and_stays(store: Store, state: SharedState) -> None:
    await store.merge(SPACE, "s", {"f": b"{", "good": b"1"}, KEEP)
    for read in (state.get("s"), state.get_field("s", "f"), state.modify("s", lambda data: {})):
        with pytest.raises(StateDecodeError, match="cannot be read"):
            await read
    assert await state.get_field("s", "good") == 1
    assert await state.exists("s")


# Spaces.

NAMES = [
    *(
        "a",
        "b",
        "c",
        "a:b",
        "b:c",
        ":",
        "::",
        "*",
        "?",
        "[a]",
        "{a}",
        "{",
        "}",
        "%",
        "%s",
        "%3A",
        " ",
        "a b",
        "\t",
        "\r\n",
    ),
    *(
        "é",
        "e\u0301",
        "😀",
        "\x00",
        "a\x00b",
        "None",
        "null",
        "acme",
        "..",
        "/",
        "\\",
        '"',
        "'",
        "|",
        "$",
        "A",
        "a" * 300,
    ),
]
LOOKALIKES: list[Space] = [
    ("a:b", "c"),
    ("a", "b:c"),
    ("a", "b"),
    ("a:b:c", None),
    ("a", None),
    ("a", "None"),
    ("a", "null"),
    ("a", ":"),
    ("a:", "b"),
    ("a", ":b"),
    ("a:None", "b"),
    ("{a}", "b"),
    ("{a", "}b"),
    ("a}{", "b"),
    ("*", "*"),
    ("*", None),
    ("?", "b"),
    ("[a]", "b"),
    ("a%3Ab", "c"),
    ("a\x00b", "c"),
    ("a", "\x00b\x00c"),
    ("A", "b"),
    ("é", "b"),
    ("e\u0301", "b"),
    ("😀", "😀"),
    (" a", "b"),
    ("a ", "b"),
]


async def test_no_two_spaces_ever_meet_whatever_characters_their_names_hold(store: Store) -> None:
    spaces: list[Space] = list(
        dict.fromkeys([*LOOKALIKES, *((name, name) for name in NAMES), *((name, None) for name in NAMES)])
    )
    states = {
        space: [NAMES[(7 * number + step) % len(NAMES)] for step in range(4)] for number, space in enumerate(spaces)
    }
    for number, space in enumerate(spaces):
        for name in states[space]:
            assert await SharedState(store, *space).upsert(name, {"owner": number, name: name}) is True
        assert (await store.count(space, "c", number, 100))[0] == number
        assert await store.acquire(space, "l", str(number), 1, 100) is True
    for number, space in enumerate(spaces):
        state = SharedState(store, *space)
        assert await state.list_states() == sorted(states[space])
        for name in states[space]:
            assert await state.get(name) == {"owner": number, name: name}
        assert (await store.count(space, "c", 0, 100))[0] == number
        assert await store.release(space, "l", str(number)) is True
    left = set(spaces)
    for space in spaces[::2]:
        assert await SharedState(store, *space).clear_all_states() == 4
        left.remove(space)
    for tenant in ("*", "a", "?", "[a]", "{a}"):
        of_tenant = {space for space in left if space[0] == tenant}
        assert await store.erase(tenant) == 4 * len(of_tenant)
        left -= of_tenant
    for space in spaces:
        assert await SharedState(store, *space).list_states() == (sorted(states[space]) if space in left else [])


async def test_no_two_states_fields_counters_or_leases_ever_meet(store: Store) -> None:
    for name in NAMES:
        assert await store.merge(SPACE, name, {field: f"{name}/{field}".encode() for field in NAMES}, KEEP) is True
        assert (await store.count(SPACE, name, 1, 100))[0] == 1
        for holder in NAMES:
            assert await store.acquire(SPACE, name, holder, len(NAMES), 100) is True
        assert await store.acquire(SPACE, name, "another", len(NAMES), 100) is False
    assert sorted(await store.names(SPACE)) == sorted(NAMES)
    for name in NAMES:
        assert await store.read(SPACE, name) == {field: f"{name}/{field}".encode() for field in NAMES}
    assert await store.remove(SPACE, "*") == 1
    assert await store.remove_field(SPACE, "?", "*") == 1
    assert await store.release(SPACE, "*", "*") is True
    assert sorted(await store.names(SPACE)) == sorted(set(NAMES) - {"*"})
    assert set(await store.read(SPACE, "?") or {}) == set(NAMES) - {"*"}
    for name in NAMES:
        if name != "*":
            assert await store.acquire(SPACE, name, "another", len(NAMES), 100) is False


async def test_tenant_wide_is_shared_by_users_and_no_users_own(store: Store) -> None:
    ann, bob, tenant = SharedState(store, "acme", "ann"), SharedState(store, "acme", "bob"), SharedState(store, "acme")
    await ann.upsert("s", {"of": "ann"})
    await bob.tenant_wide.upsert("s", {"of": "acme"})
    assert (
        await ann.tenant_wide.get("s") == await tenant.get("s") == await tenant.tenant_wide.get("s") == {"of": "acme"}
    )
    assert await ann.get("s") == {"of": "ann"}
    assert await bob.get("s") is None
    assert await SharedState(store, "acme", "None").get("s") is None
    assert await SharedState(store, "other").get("s") is None
    assert await tenant.clear_all_states() == 1
    assert await ann.list_states() == ["s"]


# Many at once.


async def in_threads(many: int, work: Callable[[int], Any]) -> list[Any]:
    """All begin at once, each in a thread of its own, while this loop runs."""
    barrier = threading.Barrier(many)

    def one(number: int) -> Any:
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(many) as pool:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, one, number) for number in range(many)))


@pytest.fixture
async def bound(store: Store) -> SharedState:
    """A state that knows the loop of its app, as blocking calls need."""
    with bind_context(Identity("acme", "ann"), store=store):
        return current_state()


async def test_a_thousand_increments_by_50_tasks_give_a_thousand(state: SharedState) -> None:
    async def work() -> list[float]:
        return [await state.increment("s", "n") for _ in range(20)]

    totals = await asyncio.gather(*(work() for _ in range(50)))
    assert sorted(total for some in totals for total in some) == list(range(1, 1001)), "each sum was given once"
    assert await state.get("s") == {"n": 1000}


async def test_a_thousand_increments_by_10_threads_give_a_thousand(bound: SharedState) -> None:
    totals = await in_threads(10, lambda number: [bound.sync.increment("s", "n") for _ in range(100)])
    assert sorted(total for some in totals for total in some) == list(range(1, 1001))
    assert await bound.get("s") == {"n": 1000}


async def test_a_thousand_increments_by_tasks_and_threads_together_give_a_thousand(bound: SharedState) -> None:
    async def work() -> None:
        for _ in range(10):
            await bound.increment("s", "n")
            await asyncio.sleep(0)

    await asyncio.gather(
        in_threads(10, lambda number: [bound.sync.increment("s", "n") for _ in range(50)]), *(work() for _ in range(50))
    )
    assert await bound.get("s") == {"n": 1000}


async def test_modify_by_50_tasks_at_once_loses_nothing(state: SharedState) -> None:
    async def work(number: int) -> None:
        await state.modify("s", lambda data: {**data, "n": data.get("n", 0) + 1, str(number): number})

    await asyncio.gather(*(work(number) for number in range(50)))
    assert await state.get("s") == {"n": 50} | {str(number): number for number in range(50)}


async def test_modify_by_tasks_that_never_stop_loses_nothing_and_who_gives_up_has_written_nothing(
    state: SharedState,
) -> None:
    given_up: list[str] = []

    async def work(number: int) -> None:
        for step in range(10):
            mine = f"{number} {step}"
            try:
                await state.modify("s", lambda data, mine=mine: {**data, "n": data.get("n", 0) + 1, mine: step})  # noqa: B023
            except StateConflictError:
                given_up.append(mine)

    await asyncio.gather(*(work(number) for number in range(20)))
    kept = await state.get("s")
    assert kept is not None
    assert kept.pop("n") == 200 - len(given_up)
    assert kept == {
        f"{number} {step}": step for number, step in product(range(20), range(10)) if f"{number} {step}" not in given_up
    }


async def test_modify_by_many_threads_loses_nothing(bound: SharedState) -> None:
    def work(number: int) -> None:
        for _ in range(20):
            bound.sync.modify("s", lambda data: {"n": data.get("n", 0) + 1})

    await in_threads(10, work)
    assert await bound.get("s") == {"n": 200}


async def test_merges_of_different_fields_by_threads_are_all_kept_and_one_made_the_state(bound: SharedState) -> None:
    def work(number: int) -> list[bool]:
        return [bound.sync.upsert("s", {f"{number} {step}": step, f"also {number}": step}) for step in range(20)]

    made = await in_threads(10, work)
    assert Counter(one for some in made for one in some) == {True: 1, False: 199}
    fields = {f"{number} {step}": step for number in range(10) for step in range(20)}
    assert await bound.get("s") == fields | {f"also {number}": 19 for number in range(10)}


async def test_what_many_delete_is_deleted_once(state: SharedState) -> None:
    await state.upsert("s", {"a": 1, "b": 1})
    await state.upsert("t", {"a": 1})
    for _ in range(2):
        await state.upsert("u", {"a": 1})
    assert sum(await asyncio.gather(*(state.delete_field("s", "a") for _ in range(30)))) == 1
    assert sum(await asyncio.gather(*(state.delete("t") for _ in range(30)))) == 1
    assert sum(await asyncio.gather(*(state.clear_all_states() for _ in range(30)))) == 2


async def test_counts_by_many_tasks_add_up(store: Store) -> None:
    async def work() -> list[int]:
        return [(await store.count(SPACE, "c", 1, 1000))[0] for _ in range(20)]

    totals = await asyncio.gather(*(work() for _ in range(50)))
    assert sorted(total for some in totals for total in some) == list(range(1, 1001))


async def test_there_are_never_more_holders_than_leases(store: Store) -> None:
    holding: set[str] = set()
    most_seen = 0

    async def work(holder: str) -> int:
        nonlocal most_seen
        had = 0
        for _ in range(40):
            if await store.acquire(SPACE, "l", holder, 5, 1000):
                had += 1
                holding.add(holder)
                most_seen = max(most_seen, len(holding))
                await asyncio.sleep(0)
                holding.remove(holder)  # before it is given back: from then on it may be another's
                assert await store.release(SPACE, "l", holder)
            else:
                await asyncio.sleep(0)
        return had

    had = await asyncio.gather(*(work(str(number)) for number in range(50)))
    assert 0 < most_seen <= 5
    assert sum(had) >= 5
    assert [await store.acquire(SPACE, "l", str(number), 5, 1000) for number in range(6)] == [True] * 5 + [False]


async def test_of_many_that_ask_at_once_as_many_get_a_lease_as_there_are(store: Store) -> None:
    got = await asyncio.gather(*(store.acquire(SPACE, "l", str(number), 7, 1000) for number in range(100)))
    assert Counter(got) == {True: 7, False: 93}


async def test_what_is_written_while_a_tenant_is_erased_is_whole_or_gone(store: Store) -> None:
    for number in range(3000):
        await store.merge(("acme", str(number % 7)), str(number), ONE, KEEP)
    done = asyncio.Event()
    written: list[str] = []

    async def write() -> None:
        while not done.is_set():
            await store.merge(("acme", "new"), str(len(written)), {"a": b"1", "b": b"2"}, KEEP)
            await store.merge(("other", "ann"), str(len(written)), ONE, KEEP)
            written.append(str(len(written)))
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    erased = await store.erase("acme")
    done.set()
    await writing
    assert erased >= 3000
    names = await store.names(("acme", "new"))
    for name in names:
        assert await store.read(("acme", "new"), name) == {"a": b"1", "b": b"2"}
    assert sorted(await store.names(("other", "ann"))) == sorted(written)
    for user in range(7):
        assert await store.names(("acme", str(user))) == []


# All of it, in any order, beside plain dictionaries.


def typed(value: Any) -> Any:
    """A value with the types of all that is inside, and the sign of zeros."""
    if isinstance(value, list | tuple):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    return type(value), value if isinstance(value, set) else repr(value)


@dataclass
class Kept:
    fields: dict[str, Any]
    ends: float
    stamp: object  # another one with each change


SOME_SPACES: list[Space] = [
    ("a:b", "c"),
    ("a", "b:c"),
    ("a", None),
    ("a", "None"),
    ("*", "😀"),
    ("{a}", "\x00"),
]
SPACES = st.sampled_from(SOME_SPACES)
STATES = st.sampled_from(["s", "a:b", "*", "[s]?", "{%s} 😀", "\x00"])
FIELDS = st.sampled_from(["n", "f", "*:", "😀\x00"])
VALUES = (
    st.integers(-3, 3)
    | st.sampled_from([MOST, LEAST, MOST + 1, 10**25, math.inf, 1e308, -0.0, 0.1, True, None, "1", "😀\x00", b"\xff"])
    | st.sampled_from([(1, [2]), {"$tuple": [1]}, {"a": {"b": 1}}, [], {}, Decimal("1.0"), frozenset({1})])
)
DATA = st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3)
# Ends lie between the times that are reached: whether the very moment of the end belongs to the time to live is left to
# each store. And far from them: a machine that stands still for a while does not bring an end nearer than that.
SHORT = 125.25
DEFAULT = 525.25
TTLS = st.sampled_from([None, SHORT, DEFAULT, 6025.25])
STEPS = st.sampled_from([50, 50, 100, 200, 600, 6100])


class StoreMachine(RuleBasedStateMachine):
    def __init__(self, kind: type[Stage]) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stage = kind()
        self.default: float | None = DEFAULT
        self.store: Store = self.loop.run_until_complete(self.stage.make(default_ttl=self.default))
        self.now = 0.0
        self.states: dict[Space, dict[str, Kept]] = {space: {} for space in SOME_SPACES}
        self.counters: dict[tuple[Space, str], tuple[int, float]] = {}
        self.leases: dict[tuple[Space, str], dict[str, float]] = {}
        self.versions: list[tuple[Space, str, bytes, object]] = []

    def teardown(self) -> None:
        self.run(self.stage.close())
        self.loop.close()

    def run(self, call: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(call)  # type: ignore[arg-type]

    def call(self, space: Space, method: str, *arguments: Any, **options: Any) -> Any:
        return self.run(getattr(SharedState(self.store, *space), method)(*arguments, **options))

    def ask(self, method: str, *arguments: Any) -> Any:
        return self.run(getattr(self.store, method)(*arguments))

    def end(self, ttl: float | None) -> float:
        return math.inf if ttl is None else self.now + ttl

    def write(self, space: Space, name: str, fields: Mapping[str, Any], ttl: Any) -> bool:
        kept = self.states[space].get(name)
        if kept is None:
            ends = self.end(self.default if ttl is KEEP else ttl)
        else:
            ends = kept.ends if ttl is KEEP else self.end(ttl)
        self.states[space][name] = Kept(dict(fields), ends, object())
        return kept is None

    def fields(self, space: Space, name: str) -> dict[str, Any]:
        kept = self.states[space].get(name)
        return {} if kept is None else kept.fields

    @rule(space=SPACES, name=STATES, data=DATA, ttl=TTLS | st.just(KEEP))
    def upsert(self, space: Space, name: str, data: dict[str, Any], ttl: Any) -> None:
        made = self.write(space, name, {**self.fields(space, name), **data}, ttl)
        assert self.call(space, "upsert", name, data, ttl=ttl) is made

    @rule(space=SPACES, name=STATES, data=DATA, ttl=TTLS | st.just(KEEP))
    def replace(self, space: Space, name: str, data: dict[str, Any], ttl: Any) -> None:
        made = self.write(space, name, data, ttl)
        assert self.call(space, "replace", name, data, ttl=ttl) is made

    @rule(space=SPACES, name=STATES, field=FIELDS, value=VALUES, ttl=TTLS | st.just(KEEP))
    def update_field(self, space: Space, name: str, field: str, value: Any, ttl: Any) -> None:
        made = self.write(space, name, {**self.fields(space, name), field: value}, ttl)
        assert self.call(space, "update_field", name, field, value, ttl=ttl) is made

    @rule(space=SPACES, name=STATES, field=FIELDS, by=st.integers(-3, 3) | st.sampled_from([MOST, LEAST, 0.5, 1e308]))
    def increment(self, space: Space, name: str, field: str, by: float) -> None:
        before = self.fields(space, name).get(field, 0)
        why = None
        total: float = 0
        if (
            type(before) not in {int, float}
            or not math.isfinite(before)
            or (type(before) is int and not LEAST <= before <= MOST)
        ):
            why = "type"
        else:
            total = before + by
            if not (LEAST <= total <= MOST if type(total) is int else math.isfinite(total)):
                why = "overflow"
        if why is None:
            self.write(space, name, {**self.fields(space, name), field: total}, KEEP)
            assert typed(self.call(space, "increment", name, field, by)) == typed(total)
        else:
            with pytest.raises(StateNumberError) as caught:
                self.call(space, "increment", name, field, by)
            assert caught.value.why == why

    @rule(
        space=SPACES,
        name=STATES,
        data=DATA,
        field=FIELDS,
        kind=st.sampled_from(["set", "merge", "drop", "empty", "same"]),
    )
    def modify(self, space: Space, name: str, data: dict[str, Any], field: str, kind: str) -> None:
        def change(found: dict[str, Any]) -> dict[str, Any]:
            match kind:
                case "set":
                    return data
                case "merge":
                    return {**found, **data}
                case "drop":
                    found.pop(field, None)
                    return found
                case "empty":
                    return {}
            return found

        before = self.fields(space, name)
        expected = change(dict(before))
        assert typed(self.call(space, "modify", name, change)) == typed(expected)
        if typed(expected) == typed(before):
            # Whether it was written is the facade's business: what stands there is the same.
            self.versions = [known for known in self.versions if known[:2] != (space, name)]
        elif expected:
            self.write(space, name, expected, KEEP)
        else:
            self.states[space].pop(name, None)

    @rule(space=SPACES, name=STATES, field=FIELDS)
    def delete_field(self, space: Space, name: str, field: str) -> None:
        there = field in self.fields(space, name)
        if there:
            left = {other: value for other, value in self.fields(space, name).items() if other != field}
            if left:
                self.write(space, name, left, KEEP)
            else:
                del self.states[space][name]
        assert self.call(space, "delete_field", name, field) == int(there)

    @rule(space=SPACES, name=STATES)
    def delete(self, space: Space, name: str) -> None:
        there = self.states[space].pop(name, None)
        assert self.call(space, "delete", name) == int(there is not None)

    @rule(space=SPACES, name=STATES, field=FIELDS)
    def read(self, space: Space, name: str, field: str) -> None:
        kept = self.states[space].get(name)
        assert self.call(space, "exists", name) is (kept is not None)
        assert typed(self.call(space, "get", name)) == typed(None if kept is None else kept.fields)
        absent = object()
        expected = self.fields(space, name).get(field, absent)
        assert typed(self.call(space, "get_field", name, field, absent)) == typed(expected)

    @rule(space=SPACES, name=STATES)
    def ttl(self, space: Space, name: str) -> None:
        kept = self.states[space].get(name)
        if kept is None:
            with pytest.raises(KeyError):
                self.call(space, "ttl", name)
        else:
            expected = None if kept.ends == math.inf else kept.ends - self.now
            assert about(self.call(space, "ttl", name), expected, self.stage)

    @rule(space=SPACES, name=STATES, ttl=TTLS)
    def touch(self, space: Space, name: str, ttl: float | None) -> None:
        kept = self.states[space].get(name)
        if kept is not None:
            kept.ends = self.end(ttl)
        assert self.call(space, "touch", name, ttl) is (kept is not None)

    @rule(space=SPACES)
    def clear(self, space: Space) -> None:
        assert self.call(space, "clear_all_states") == len(self.states[space])
        self.states[space].clear()

    @rule(tenant=st.sampled_from(sorted({tenant for tenant, _ in SOME_SPACES})))
    def erase(self, tenant: str) -> None:
        own = [space for space in SOME_SPACES if space[0] == tenant]
        assert self.ask("erase", tenant) == sum(len(self.states[space]) for space in own)
        for space in own:
            self.states[space].clear()
        self.counters = {key: value for key, value in self.counters.items() if key[0][0] != tenant}
        self.leases = {key: value for key, value in self.leases.items() if key[0][0] != tenant}

    @rule(space=SPACES, name=STATES)
    def read_version(self, space: Space, name: str) -> None:
        kept = self.states[space].get(name)
        fields, version = self.ask("read_version", space, name)
        assert (fields is None) is (kept is None)
        self.versions.append((space, name, version, None if kept is None else kept.stamp))

    @rule(number=st.integers(0, 10), field=FIELDS, empty=st.booleans())
    def replace_version(self, number: int, field: str, empty: bool) -> None:
        if not self.versions:
            return
        space, name, version, stamp = self.versions[-1 - number % len(self.versions)]
        kept = self.states[space].get(name)
        unchanged = (None if kept is None else kept.stamp) is stamp
        assert self.ask("replace_version", space, name, {} if empty else {field: b"7"}, version) is unchanged
        if unchanged:
            if empty:
                self.states[space].pop(name, None)
            else:
                self.write(space, name, {field: 7}, KEEP)

    @rule(space=SPACES, name=STATES, by=st.integers(-2, 5), window=st.sampled_from([SHORT, DEFAULT]))
    def count(self, space: Space, name: str, by: int, window: float) -> None:
        value, ends = self.counters.get((space, name), (0, self.now + window))
        self.counters[space, name] = value + by, ends
        total, left = self.ask("count", space, name, by, window)
        assert total == value + by
        assert about(left, ends - self.now, self.stage)

    @rule(space=SPACES, name=STATES, holder=FIELDS, most=st.integers(1, 3), ttl=st.sampled_from([SHORT, DEFAULT]))
    def acquire(self, space: Space, name: str, holder: str, most: int, ttl: float) -> None:
        holders = self.leases.setdefault((space, name), {})
        expected = holder in holders or len(holders) < most
        if expected:
            holders[holder] = self.now + ttl
        assert self.ask("acquire", space, name, holder, most, ttl) is expected

    @rule(space=SPACES, name=STATES, holder=FIELDS)
    def release(self, space: Space, name: str, holder: str) -> None:
        held = self.leases.get((space, name), {}).pop(holder, None)
        assert self.ask("release", space, name, holder) is (held is not None)

    @rule(seconds=STEPS)
    def let_time_pass(self, seconds: float) -> None:
        self.run(self.stage.advance(seconds))
        self.now += seconds
        for states in self.states.values():
            for name in [name for name, kept in states.items() if kept.ends <= self.now]:
                del states[name]
        self.counters = {key: value for key, value in self.counters.items() if value[1] > self.now}
        for holders in self.leases.values():
            for holder in [holder for holder, ends in holders.items() if ends <= self.now]:
                del holders[holder]

    @invariant()
    def every_space_holds_what_its_dictionary_holds(self) -> None:
        async def contents() -> dict[Space, Any]:
            return {
                space: {name: await state.get(name) for name in await state.list_states()}
                for space in SOME_SPACES
                for state in [SharedState(self.store, *space)]
            }

        expected = {
            space: {name: kept.fields for name, kept in sorted(states.items())} for space, states in self.states.items()
        }
        assert typed(list(self.run(contents()).values())) == typed(list(expected.values()))


@pytest.mark.parametrize("kind", STAGES.values(), ids=STAGES)
def test_any_sequence_of_calls_leaves_what_it_leaves_in_plain_dictionaries(kind: type[Stage]) -> None:
    each = 50
    steps = int(os.environ.get("STORE_CONTRACT_STEPS", "10000"))
    run_state_machine_as_test(
        lambda: StoreMachine(kind),
        settings=settings(
            max_examples=math.ceil(steps / each),
            stateful_step_count=each,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
