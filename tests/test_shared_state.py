"""The face of shared state: what its methods take, refuse and promise, whatever the store."""

import asyncio
import gc
import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum, IntEnum, StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any

import anyio
import pytest
from driver import http, run
from test_blocking import WaitingStore, in_bare_thread

from asgi_context import (
    KEEP,
    ContextMiddleware,
    Identity,
    MemoryStore,
    SharedState,
    Store,
    bind_context,
    constant,
    current_state,
    unbound_context,
)
from asgi_context.errors import (
    ContextClosedError,
    ContextNotBoundError,
    StateConflictError,
    StateNumberError,
    StateSerializationError,
    StoreNotBoundError,
)

pytestmark = pytest.mark.anyio

ANN = Identity("acme", "ann")


class Spied(MemoryStore):
    """Notes how it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, ...]] = []


def spying(method: str) -> Callable[..., Any]:
    async def ask(self: Any, *args: Any) -> Any:
        self.asked.append((method, *args))
        return await getattr(MemoryStore, method)(self, *args)

    return ask


STORE_METHODS = [name for name in dir(Store) if name[0] != "_"]
SpiedStore: Any = type("SpiedStore", (Spied,), {name: spying(name) for name in STORE_METHODS})


@pytest.fixture
def store() -> Any:
    return SpiedStore()


@pytest.fixture
def state(store: Any) -> SharedState:
    return SharedState(store, "acme", "ann")


class Name(StrEnum):
    CART = "cart"
    ITEMS = "items"
    ACME = "acme"
    ANN = "ann"


class Mixed(str, Enum):  # noqa: UP042 - whose str() and format() are not its value
    CART = "cart"
    ITEMS = "items"
    ACME = "acme"
    ANN = "ann"


# Names.

TAKING_KEY: dict[str, Callable[[Any, Any], Any]] = {
    "upsert": lambda state, name: state.upsert(name, {"a": 1}),
    "replace": lambda state, name: state.replace(name, {"a": 1}),
    "get": lambda state, name: state.get(name),
    "get_field": lambda state, name: state.get_field(name, "a"),
    "update_field": lambda state, name: state.update_field(name, "a", 1),
    "increment": lambda state, name: state.increment(name, "a"),
    "modify": lambda state, name: state.modify(name, lambda data: {"a": 1}),
    "touch": lambda state, name: state.touch(name, 5),
    "ttl": lambda state, name: state.ttl(name),
    "delete_field": lambda state, name: state.delete_field(name, "a"),
    "delete": lambda state, name: state.delete(name),
    "exists": lambda state, name: state.exists(name),
}
TAKING_FIELD: dict[str, Callable[[Any, Any], Any]] = {
    "upsert": lambda state, name: state.upsert("s", {"good": 1, name: 1}),
    "replace": lambda state, name: state.replace("s", {"good": 1, name: 1}),
    "get_field": lambda state, name: state.get_field("s", name),
    "update_field": lambda state, name: state.update_field("s", name, 1),
    "increment": lambda state, name: state.increment("s", name),
    "modify": lambda state, name: state.modify("s", lambda data: {"good": 1, name: 1}),
    "delete_field": lambda state, name: state.delete_field("s", name),
}
NAMED = [("key", method, call) for method, call in TAKING_KEY.items()]
NAMED += [("field", method, call) for method, call in TAKING_FIELD.items()]
named = pytest.mark.parametrize(
    ("what", "method", "call"), NAMED, ids=[f"{what}-{method}" for what, method, _ in NAMED]
)

WRONG: list[tuple[Any, type[Exception], str]] = [
    (1, TypeError, "{} must be a str, not int"),
    (None, TypeError, "{} must be a str, not NoneType"),
    (b"a", TypeError, "{} must be a str, not bytes"),
    (("a",), TypeError, "{} must be a str, not tuple"),
    ("", ValueError, "{} must not be empty"),
    ("\ud800", ValueError, "{} holds a lone surrogate"),
    ("a\udfff", ValueError, "{} holds a lone surrogate"),
    (type("Text", (str,), {})(""), ValueError, "{} must not be empty"),
    (type("Text", (str,), {})("\ud800"), ValueError, "{} holds a lone surrogate"),
]


@named
async def test_names_are_strings_of_characters_that_are_not_empty(
    state: SharedState, store: Any, what: str, method: str, call: Any
) -> None:
    for wrong, error, message in WRONG:
        with pytest.raises(error, match=message.format(what)):
            await call(state, wrong)
    assert {asked[0] for asked in store.asked} <= {"read_version"}, "nothing was written"


@named
async def test_names_may_hold_every_character(state: SharedState, what: str, method: str, call: Any) -> None:
    for name in ("é", "😀", "\x00", " ", "*", "a:b", "{a}", "x" * 1000):
        try:
            await call(state, name)
        except KeyError as absent:
            assert absent.args == (name,)
            assert method == "ttl"


@named
@pytest.mark.parametrize("kind", [Name, Mixed])
async def test_names_of_a_subclass_of_str_become_plain(
    state: SharedState, store: Any, what: str, method: str, call: Any, kind: Any
) -> None:
    """What a store makes of a member, by str() or in an f-string, is not always its value."""
    name = kind.CART if what == "key" else kind.ITEMS
    try:
        await call(state, name)
    except KeyError as absent:
        assert type(absent.args[0]) is str
    for asked in store.asked:
        if what == "field" and asked[0] == "read_version":
            continue  # which is asked of the whole state
        plain = [asked[2]] if what == "key" else [part for part in asked[3:] if isinstance(part, str)]
        if len(asked) > 3 and isinstance(asked[3], dict):
            plain += asked[3]
        assert plain
        assert {type(part) for part in plain} == {str}


@pytest.mark.parametrize("kind", [Name, Mixed])
async def test_a_tenant_and_a_user_of_a_subclass_of_str_become_plain(store: Any, kind: Any) -> None:
    state = SharedState(store, kind.ACME, kind.ANN)
    assert repr(state) == "SharedState(tenant='acme', user='ann')"
    for space in (state, state.tenant_wide):
        await space.exists("s")
    for _, (tenant, user), _ in store.asked:
        assert type(tenant) is str
        assert type(user) in {str, type(None)}


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_a_state_belongs_to_somebody(wrong: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.format("tenant")):
        SharedState(MemoryStore(), wrong)
    if wrong is not None:
        with pytest.raises(error, match=message.format("user")):
            SharedState(MemoryStore(), "acme", wrong)


@pytest.mark.parametrize("wrong", [None, {}, MemoryStore, object()])
def test_a_state_is_kept_in_a_store(wrong: Any) -> None:
    with pytest.raises(TypeError, match="store must be a Store such as"):
        SharedState(wrong, "acme")


# Times to live.

TAKING_TTL: dict[str, Callable[[Any, Any], Any]] = {
    "upsert": lambda state, ttl: state.upsert("s", {"a": 1}, ttl=ttl),
    "replace": lambda state, ttl: state.replace("s", {"a": 1}, ttl=ttl),
    "update_field": lambda state, ttl: state.update_field("s", "a", 1, ttl=ttl),
    "touch": lambda state, ttl: state.touch("s", ttl),
}
taking_ttl = pytest.mark.parametrize("call", TAKING_TTL.values(), ids=TAKING_TTL)


@taking_ttl
async def test_a_time_to_live_is_seconds_that_are_positive_and_finite(
    state: SharedState, store: Any, call: Any
) -> None:
    for wrong in (True, False, "5", b"5", (), 5j, object()):
        with pytest.raises(TypeError, match="ttl must be a number of seconds"):
            await call(state, wrong)
    for wrong in (0, 0.0, -1, -0.5, float("inf"), float("-inf"), float("nan")):
        with pytest.raises(ValueError, match="ttl must be more than 0 seconds"):
            await call(state, wrong)
    assert store.asked == []


@taking_ttl
async def test_a_time_to_live_beyond_what_a_float_holds_is_refused_and_nothing_is_written(
    state: SharedState, store: Any, call: Any
) -> None:
    with pytest.raises(ValueError, match="ttl must be"):
        await call(state, 10**400)
    assert store.asked == []
    assert await state.exists("s") is False


async def test_touch_does_not_take_keep(state: SharedState) -> None:
    with pytest.raises(TypeError, match="ttl must be a number of seconds, not Keep"):
        await state.touch("s", KEEP)  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_time_to_live_is_kept_set_and_removed() -> None:
    clock = Clock()
    state = SharedState(MemoryStore(clock=clock, default_ttl=100), "acme", "ann")
    await state.upsert("s", {"a": 1})
    assert await state.ttl("s") == 100
    clock.now += 10
    await state.upsert("s", {"a": 2})
    await state.update_field("s", "b", 1)
    await state.replace("s", {"a": 3}, ttl=KEEP)
    await state.increment("s", "a")
    assert await state.modify("s", lambda data: {**data, "c": 1}) == {"a": 4, "c": 1}
    assert await state.ttl("s") == 90
    for ttl, write in (
        (5, partial(state.upsert, "s", {"a": 1})),
        (6, partial(state.replace, "s", {"a": 1})),
        (7.5, partial(state.update_field, "s", "a", 1)),
        (None, partial(state.upsert, "s", {"a": 1})),
        (8, partial(state.replace, "s", {"a": 1})),
        (None, partial(state.replace, "s", {"a": 1})),
        (9, partial(state.update_field, "s", "a", 1)),
        (None, partial(state.update_field, "s", "a", 1)),
    ):
        assert await write(ttl=ttl) is False
        assert await state.ttl("s") == ttl
    assert await state.touch("s", 3) is True
    assert await state.ttl("s") == 3
    assert await state.touch("s", None) is True
    assert await state.ttl("s") is None
    await state.touch("s", 3)
    clock.now += 3
    assert await state.exists("s") is False
    assert await state.touch("s", 3) is False


async def test_the_time_to_live_of_nothing_is_a_key_error(state: SharedState) -> None:
    with pytest.raises(KeyError) as caught:
        await state.ttl("cart")
    assert caught.value.args == ("cart",)


# Data.


@pytest.mark.parametrize("data", [None, 1, "ab", [("a", 1)], {"a"}, iter({"a": 1})])
async def test_a_state_is_a_mapping(state: SharedState, store: Any, data: Any) -> None:
    for write in (state.upsert("s", data), state.replace("s", data)):
        with pytest.raises(TypeError, match="a state must be a mapping of values by field, not"):
            await write
    assert store.asked == []


async def test_any_mapping_will_do(state: SharedState) -> None:
    for data in (OrderedDict(a=1), MappingProxyType({"a": 1})):
        await state.upsert("s", data)
        assert await state.get("s") == {"a": 1}
        await state.replace("t", data)
        assert await state.modify("s", lambda _, data=data: data) == {"a": 1}  # type: ignore[misc]


async def test_a_state_of_nothing_is_refused(state: SharedState, store: Any) -> None:
    with pytest.raises(ValueError, match="at least one field: a state without fields does not exist"):
        await state.upsert("s", {})
    with pytest.raises(ValueError, match=r"at least one field.*use delete"):
        await state.replace("s", {})
    assert store.asked == []


async def test_replace_leaves_no_field_of_before(state: SharedState) -> None:
    assert await state.replace("s", {"a": 1, "b": 2}) is True
    assert await state.replace("s", {"b": 3}) is False
    assert await state.get("s") == {"b": 3}


async def test_one_value_that_cannot_be_kept_and_nothing_is_written(state: SharedState, store: Any) -> None:
    bad: Any = {"good": 1, "bad": object()}
    for write in (
        state.upsert("s", bad),
        state.replace("s", bad),
        state.update_field("s", "bad", object()),
        state.modify("s", lambda _: bad),
    ):
        with pytest.raises(StateSerializationError, match="state 's', field 'bad'"):
            await write
    assert [asked[0] for asked in store.asked] == ["read_version"]


# Numbers.


async def test_increment_adds_and_makes(state: SharedState) -> None:
    assert await state.increment("s", "n") == 1
    assert await state.increment("s", "n", 41) == 42
    assert await state.increment("s", "n", -(2**62)) == 42 - 2**62
    total = await state.increment("s", "x", 0.5)
    assert (total, type(total)) == (0.5, float)
    assert await state.get("s") == {"n": 42 - 2**62, "x": 0.5}


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize("by", [True, None, "1", 1j, Number.ONE, [1]])
async def test_what_is_added_is_an_int_or_a_float(state: SharedState, store: Any, by: Any) -> None:
    with pytest.raises(TypeError, match="by must be an int or a float, not"):
        await state.increment("s", "n", by)
    assert store.asked == []


@pytest.mark.parametrize("by", [2**63, -(2**63) - 1, float("inf"), float("-inf"), float("nan"), 10**400])
async def test_what_is_added_is_within_its_type(state: SharedState, store: Any, by: float) -> None:
    with pytest.raises(StateNumberError, match="beyond a signed 64-bit integer or a finite double"):
        await state.increment("s", "n", by)
    assert store.asked == []


@pytest.mark.parametrize("by", [2**63 - 1, -(2**63), 1e308])
async def test_the_largest_numbers_are_added(state: SharedState, by: float) -> None:
    assert await state.increment("s", "n", by) == by


# Modify.


async def test_modify_gets_what_there_is_and_returns_what_is_then_there(state: SharedState) -> None:
    seen: list[Any] = []

    def add(data: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(data))
        data["items"] = [*data.get("items", ()), len(seen)]
        return data

    assert await state.modify("s", add) == {"items": [1]}
    assert await state.modify("s", add) == {"items": [1, 2]}
    assert seen == [{}, {"items": [1]}]
    assert await state.get("s") == {"items": [1, 2]}


async def test_what_modify_returns_is_a_copy(state: SharedState) -> None:
    kept: dict[str, Any] = {"items": [1]}
    written = await state.modify("s", lambda _: kept)
    kept["items"].append(2)
    assert written == {"items": [1]}
    written["items"].append(3)
    assert await state.get("s") == {"items": [1]}


async def coroutine_function(data: Any) -> Any:
    return data


def generator_function(data: Any) -> Any:
    yield data


async def async_generator_function(data: Any) -> Any:
    yield data


class Awaited:
    async def __call__(self, data: Any) -> Any:
        return data


@pytest.mark.parametrize(
    "func",
    [
        None,
        5,
        "func",
        {"a": 1},
        coroutine_function,
        generator_function,
        async_generator_function,
        partial(coroutine_function),
        partial(partial(generator_function)),
        Awaited(),
        Awaited().__call__,
    ],
    ids=repr,
)
async def test_modify_takes_a_plain_function(state: SharedState, store: Any, func: Any) -> None:
    with pytest.raises(TypeError, match="func must be a plain function, not"):
        await state.modify("s", func)
    assert store.asked == []


class Plain:
    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "a": 1}

    def method(self, data: dict[str, Any]) -> dict[str, Any]:
        return self(data)


@pytest.mark.parametrize(
    "func", [Plain(), Plain().method, partial(Plain()), lambda data: Plain()(data), partial(dict, a=1)], ids=range(5)
)
async def test_whatever_can_be_called_is_one(state: SharedState, func: Any) -> None:
    assert await state.modify("s", func) == {"a": 1}
    assert await state.modify("s", dict) == {"a": 1}


@pytest.mark.parametrize("returned", [None, 1, "ab", [("a", 1)], {"a"}])
async def test_modify_writes_nothing_where_the_function_returns_no_mapping(state: SharedState, returned: Any) -> None:
    """None above all, of a function that changes its copy and forgets to return it."""
    await state.upsert("s", {"a": 1})

    def func(data: dict[str, Any]) -> Any:
        data["a"] = 2
        return returned

    with pytest.raises(TypeError, match="a state must be a mapping of values by field, not"):
        await state.modify("s", func)
    assert await state.get("s") == {"a": 1}


async def test_modify_writes_nothing_where_the_function_raises(state: SharedState, store: Any) -> None:
    await state.upsert("s", {"a": 1})
    error = LookupError("own")

    def func(data: dict[str, Any]) -> Any:
        data["a"] = 2
        raise error

    with pytest.raises(LookupError) as caught:
        await state.modify("s", func)
    assert caught.value is error
    assert await state.get("s") == {"a": 1}
    assert [asked[0] for asked in store.asked] == ["merge", "read_version", "read"]


async def test_modify_writes_nothing_where_nothing_changes(state: SharedState, store: Any) -> None:
    await state.upsert("s", {"a": (1, {2})})
    store.asked.clear()
    assert await state.modify("s", lambda data: data) == {"a": (1, {2})}
    assert await state.modify("s", lambda _: {"a": (1, {2})}) == {"a": (1, {2})}
    assert [asked[0] for asked in store.asked] == ["read_version"] * 2


async def test_modify_to_nothing_deletes(state: SharedState) -> None:
    await state.upsert("s", {"a": 1})
    assert await state.modify("s", lambda data: {}) == {}
    assert await state.exists("s") is False
    assert await state.modify("s", lambda data: data) == {}
    assert await state.list_states() == []


async def test_modify_is_called_again_with_a_fresh_copy_where_others_wrote(state: SharedState, store: Any) -> None:
    await state.upsert("s", {"items": []})
    seen: list[Any] = []

    def func(data: dict[str, Any]) -> dict[str, Any]:
        seen.append([*data["items"]])
        if len(seen) < 4:
            store_now("s", {"items": [f"other {len(seen)}"]})
        data["items"].append("mine")
        return data

    def store_now(key: str, data: dict[str, Any]) -> None:
        threading_state = SharedState(store, "acme", "ann")
        thread = threading.Thread(target=threading_state.sync.replace, args=(key, data))
        thread.start()
        thread.join(30)

    assert await state.modify("s", func) == {"items": ["other 3", "mine"]}
    assert seen == [[], ["other 1"], ["other 2"], ["other 3"]]
    assert await state.get("s") == {"items": ["other 3", "mine"]}


async def test_modify_sees_a_state_that_went_or_came_meanwhile(state: SharedState) -> None:
    seen: list[Any] = []

    def func(data: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(data))
        thread = threading.Thread(target=changes[len(seen) - 1])
        thread.start()
        thread.join(30)
        return {"n": len(seen)}

    changes: list[Any] = [partial(state.sync.upsert, "s", {"a": 1}), partial(state.sync.delete, "s"), lambda: None]
    assert await state.modify("s", func) == {"n": 3}
    assert seen == [{}, {"a": 1}, {}]


class Contended(MemoryStore):
    """Somebody else always was first, but for the last so many times."""

    def __init__(self, conflicts: int) -> None:
        super().__init__()
        self.conflicts = conflicts
        self.attempts = 0

    async def replace_version(self, *args: Any) -> bool:
        self.attempts += 1
        return self.attempts > self.conflicts and await super().replace_version(*args)


async def test_modify_gives_up_after_100_attempts() -> None:
    store = Contended(100)
    state = SharedState(store, "acme")
    with pytest.raises(StateConflictError, match="in each of 100 attempts") as caught:
        await state.modify("s", lambda data: {"n": 1})
    assert (caught.value.state, caught.value.attempts, store.attempts) == ("s", 100, 100)
    assert await state.exists("s") is False


async def test_the_100th_attempt_counts() -> None:
    store = Contended(99)
    state = SharedState(store, "acme")
    assert await state.modify("s", lambda data: {"n": 1}) == {"n": 1}
    assert store.attempts == 100


async def test_many_who_modify_at_once_lose_nothing() -> None:
    state = SharedState(WaitingStore() if in_asyncio() else MemoryStore(), "acme")

    async def work(number: int) -> None:
        for _ in range(5):
            await state.modify("s", lambda data: {**data, "n": data.get("n", 0) + 1})

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(work, number)
    assert await state.get("s") == {"n": 50}


def in_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# Whose it is.


async def test_the_tenants_own_states_are_nobodys_else(state: SharedState, store: Any) -> None:
    await state.upsert("s", {"whose": "ann"})
    await state.tenant_wide.upsert("s", {"whose": "acme"})
    assert await SharedState(store, "acme").get("s") == {"whose": "acme"}
    assert await SharedState(store, "acme", "bob").tenant_wide.tenant_wide.get("s") == {"whose": "acme"}
    assert await SharedState(store, "globex", "ann").tenant_wide.get("s") is None
    assert await state.get("s") == {"whose": "ann"}
    assert await state.tenant_wide.clear_all_states() == 1
    assert await state.list_states() == ["s"]


async def test_a_tenant_is_erased_on_every_event_loop(state: SharedState, store: Any) -> None:
    """Which lets others have their turn meanwhile."""
    await state.upsert("s", {"a": 1})
    await state.tenant_wide.upsert("s", {"a": 1})
    await SharedState(store, "globex").upsert("s", {"a": 1})
    assert await store.erase("acme") == 2
    assert await state.list_states() == await state.tenant_wide.list_states() == []
    assert await SharedState(store, "globex").list_states() == ["s"]


async def test_names_come_sorted(state: SharedState) -> None:
    for name in ("b", "é", "a", "B", "😀"):
        await state.upsert(name, {"a": 1})
    assert await state.list_states() == ["B", "a", "b", "é", "😀"]
    assert await state.clear_all_states() == 5


async def test_the_tenants_own_states_are_reached_over_the_same_loop(asyncio_only: None) -> None:
    store = WaitingStore()
    with bind_context(ANN, store=store):
        state = current_state()
    for blocks in (state.tenant_wide.sync, state.sync.tenant_wide, state.tenant_wide.tenant_wide.sync):
        await in_bare_thread(blocks.upsert, "s", {"a": 1})
    assert store.loops == {asyncio.get_running_loop()}
    assert await SharedState(store.memory, "acme").list_states() == ["s"]


async def test_its_repr_shows_no_values(state: SharedState) -> None:
    await state.upsert("s", {"password": "hunter2"})
    assert repr(state) == "SharedState(tenant='acme', user='ann')"
    assert repr(state.tenant_wide) == "SharedState(tenant='acme', user=None)"


def test_a_state_has_no_room_for_what_is_not_its_own(state: SharedState) -> None:
    with pytest.raises(AttributeError):
        state.anything = 1  # type: ignore[attr-defined]


# What is bound.


async def test_the_state_that_is_bound_is_one_object(store: Any) -> None:
    with bind_context(ANN, store=store):
        assert current_state() is current_state()
        with bind_context():
            assert current_state() is not None
            assert repr(current_state()) == "SharedState(tenant='acme', user='ann')"
        with bind_context(Identity("acme")):
            assert repr(current_state()) == "SharedState(tenant='acme', user=None)"


async def test_where_nothing_is_bound_there_is_no_state_but_the_default() -> None:
    with pytest.raises(ContextNotBoundError):
        current_state()
    assert current_state(None) is None
    assert current_state("default") == "default"
    with unbound_context(), pytest.raises(ContextNotBoundError):
        current_state()


async def test_where_no_store_is_bound_it_says_so() -> None:
    with bind_context(ANN):
        with pytest.raises(StoreNotBoundError):
            current_state()
        assert current_state(None) is None


async def test_a_revocation_in_the_moment_of_the_first_question_wins(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that asks as the binding is being revoked must not put back what that took away."""
    from asgi_context._context import current_binding
    from asgi_context._state import _current

    make = _current.make_state
    with bind_context(ANN, store=store):
        binding = current_binding()

        def revoking(*arguments: Any) -> Any:
            binding.revoked = "revoked"
            return make(*arguments)

        monkeypatch.setattr(_current, "make_state", revoking)
        with pytest.raises(ContextClosedError):
            current_state(None)
        assert binding.state is None
        binding.revoked = None


async def test_in_an_app_it_is_the_apps_store(store: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current_state().upsert("s", {"path": scope["path"]})

    middleware = ContextMiddleware(app, tenant=constant("acme"), user=constant("ann"), store=store)
    await run(middleware, http(path="/a"))
    assert await SharedState(store, "acme", "ann").get("s") == {"path": "/a"}


async def test_two_fields_of_one_name_are_refused(state: SharedState) -> None:
    """A dict may hold both, where a subclass of str has another idea of what is equal."""

    class Name(str):
        __slots__ = ()
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            return self is other

    for call in (state.upsert, state.replace):
        with pytest.raises(ValueError, match="two fields have the same name"):
            await call("s", {Name("a"): 1, Name("a"): 2})
    assert await state.get("s") is None


def test_what_is_held_holds_no_request() -> None:
    """A state that outlives its request pins neither its values nor its scope."""

    class Large:
        pass

    store = MemoryStore()
    with bind_context(ANN, store=store, values={"large": Large()}):
        held = current_state()
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Large]
    assert held.sync.get("s") is None
