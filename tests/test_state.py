"""Shared state: what is kept comes back equal, and only to its own tenant and user."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_context import Identity, MemoryStore, SharedState, Store, bind_context, current_state
from asgi_context._codec import decode, encode
from asgi_context.errors import StateSerializationError

pytestmark = pytest.mark.anyio

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def store() -> Store:
    return MemoryStore()


@pytest.fixture
def state(store: Store) -> SharedState:
    return SharedState(store, "acme", "ann")


async def test_upsert_makes_a_state_and_then_merges_into_it(state: SharedState) -> None:
    assert await state.upsert("cart", {"a": 1, "b": [2]}) is True
    assert await state.upsert("cart", {"b": 3, "c": None}) is False
    assert await state.get("cart") == {"a": 1, "b": 3, "c": None}


async def test_a_state_that_is_not_there_is_none_and_its_fields_are_the_default(state: SharedState) -> None:
    assert await state.get("cart") is None
    assert await state.get_field("cart", "a") is None
    assert await state.get_field("cart", "a", 7) == 7
    assert await state.exists("cart") is False
    await state.upsert("cart", {"a": None})
    assert await state.get_field("cart", "a", 7) is None
    assert await state.get_field("cart", "b", 7) == 7
    assert await state.exists("cart") is True


async def test_update_field_sets_one_field_and_makes_the_state(state: SharedState) -> None:
    assert await state.update_field("profile", "colour", "green") is True
    assert await state.update_field("profile", "colour", "blue") is False
    assert await state.get_field("profile", "colour") == "blue"


async def test_without_its_last_field_a_state_is_gone(state: SharedState) -> None:
    await state.upsert("cart", {"a": 1, "b": 2})
    assert await state.delete_field("cart", "x") == 0
    assert await state.delete_field("cart", "a") == 1
    assert await state.delete_field("cart", "a") == 0
    assert await state.list_states() == ["cart"]
    assert await state.delete_field("cart", "b") == 1
    assert await state.exists("cart") is False
    assert await state.get("cart") is None
    assert await state.list_states() == []
    assert await state.delete_field("cart", "b") == 0
    assert await state.update_field("cart", "a", 1) is True


async def test_delete_and_clear_say_how_many(state: SharedState) -> None:
    for name in ("b", "a", "c"):
        await state.upsert(name, {"x": 1})
    assert await state.list_states() == ["a", "b", "c"]
    assert (await state.delete("a"), await state.delete("a")) == (1, 0)
    assert (await state.clear_all_states(), await state.clear_all_states()) == (2, 0)
    assert await state.list_states() == []
    assert await state.delete("a") == 0


async def test_what_comes_back_is_a_copy(state: SharedState) -> None:
    given: dict[str, Any] = {"items": [1]}
    await state.upsert("cart", given)
    given["items"].append(2)
    first = await state.get("cart")
    assert first == {"items": [1]}
    first["items"].append(3)
    assert await state.get_field("cart", "items") == [1]


NAMES = [
    "a",
    "a:b",
    "b",
    ":",
    "*",
    "?",
    "[a]",
    "{a}",
    "%",
    " ",
    "a b",
    "é",
    "😀",
    "\x00",
    "a\x00b",
    "None",
    "null",
    "acme",
    "..",
    "/",
]


async def test_no_two_tenants_users_and_states_ever_meet(store: Store) -> None:
    """Whatever characters their names hold, and with the tenant's own states beside those of its users."""
    spaces = [(tenant, user) for tenant in NAMES for user in [*NAMES, None]]
    for number, (tenant, user) in enumerate(spaces):
        for name in NAMES:
            await SharedState(store, tenant, user).upsert(name, {"owner": number, name: name})
    for number, (tenant, user) in enumerate(spaces):
        state = SharedState(store, tenant, user)
        assert await state.list_states() == sorted(NAMES)
        for name in NAMES:
            assert await state.get(name) == {"owner": number, name: name}
    assert await SharedState(store, "*", "*").clear_all_states() == len(NAMES)
    assert await SharedState(store, "*", "?").list_states() == sorted(NAMES)
    assert await SharedState(store, "a").clear_all_states() == len(NAMES)
    assert await SharedState(store, "a", "a").list_states() == sorted(NAMES)


async def test_the_state_that_is_bound_is_the_one_of_the_tenant_and_user(store: Store) -> None:
    with bind_context(Identity("acme", "ann"), store=store):
        assert repr(current_state()) == "SharedState(tenant='acme', user='ann')"
        kept = current_state()
        await kept.update_field("a", "b", 1)
    with bind_context(Identity("acme"), store=store):
        assert repr(current_state()) == "SharedState(tenant='acme', user=None)"
        assert await current_state().list_states() == []
        assert await kept.list_states() == ["a"], "an object that was kept stays its own tenant's and user's"


@given(VALUES)
def test_every_value_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    again = decode(encode("state", "field", value))
    assert again == value
    assert typed(again) == typed(value)


def typed(value: Any) -> Any:
    """The value with the types of all that is inside; the sign of a zero too."""
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    return type(value), repr(value)


def test_what_is_stored_can_be_read_by_a_person() -> None:
    assert encode("s", "f", {"naïve": [1, 2.5, True, None, "😀"]}) == '{"naïve":[1,2.5,true,null,"😀"]}'.encode()


class Text(str):
    __slots__ = ()


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


UNFIT: list[tuple[Any, str]] = [
    (float("nan"), "field 'f': NaN and Infinity"),
    (float("-inf"), "field 'f': NaN and Infinity"),
    ((1, 2), "field 'f': tuple cannot be kept"),
    ({1}, "set cannot be kept"),
    (b"bytes", "bytes cannot be kept"),
    (object(), "object cannot be kept"),
    (Text("a"), "Text cannot be kept"),
    ({1: "a"}, "field 'f': a key of a dict must be a str, not int"),
    ({Text("a"): "a"}, "must be a str, not Text"),
    ({"items": [1, {"when": object()}]}, r"field 'f'\['items'\]\[1\]\['when'\]: object cannot be kept"),
    ("\ud800", "field 'f': a str holds a lone surrogate"),
    ({"a": ["\ud800"]}, "lone surrogate"),
    (10**5000, "digits"),
    (deep(101), "nested deeper than 100 levels"),
]


@pytest.mark.parametrize(("value", "reason"), UNFIT, ids=range(len(UNFIT)))
async def test_what_cannot_be_kept_is_an_error_that_names_it_and_nothing_is_written(
    state: SharedState, value: Any, reason: str
) -> None:
    for write in (state.upsert("s", {"good": 1, "f": value}), state.update_field("s", "f", value)):
        with pytest.raises(StateSerializationError, match=reason) as caught:
            await write
        assert "state 's'" in str(caught.value)
        assert isinstance(caught.value, TypeError)
    assert await state.exists("s") is False


async def test_the_deepest_value_that_is_kept_comes_back(state: SharedState) -> None:
    await state.update_field("s", "f", deep(100))
    assert await state.get_field("s", "f") == deep(100)


async def test_a_value_that_contains_itself_is_refused(state: SharedState) -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(StateSerializationError, match="nested deeper"):
        await state.update_field("s", "f", ring)


@pytest.mark.parametrize(
    "call",
    [
        lambda state, name: state.upsert(name, {"a": 1}),
        lambda state, name: state.upsert("a", {name: 1}),
        lambda state, name: state.get(name),
        lambda state, name: state.get_field(name, "a"),
        lambda state, name: state.get_field("a", name),
        lambda state, name: state.update_field(name, "a", 1),
        lambda state, name: state.update_field("a", name, 1),
        lambda state, name: state.delete_field(name, "a"),
        lambda state, name: state.delete_field("a", name),
        lambda state, name: state.delete(name),
        lambda state, name: state.exists(name),
    ],
)
async def test_names_are_strings_that_are_not_empty(state: SharedState, call: Callable[..., Any]) -> None:
    for wrong, error in ((1, TypeError), (None, TypeError), (b"a", TypeError), ("", ValueError)):
        with pytest.raises(error, match="must"):
            await call(state, wrong)


@pytest.mark.parametrize(("tenant", "user"), [(None, None), ("", None), ("acme", ""), ("acme", 1)])
def test_a_state_belongs_to_somebody(tenant: Any, user: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="must"):
        SharedState(MemoryStore(), tenant, user)


async def test_data_must_be_a_mapping(state: SharedState) -> None:
    with pytest.raises(TypeError, match="data must be a mapping"):
        await state.upsert("s", [("a", 1)])  # type: ignore[arg-type]


async def test_an_error_shows_the_beginning_of_a_long_name(state: SharedState) -> None:
    with pytest.raises(StateSerializationError) as caught:
        await state.update_field("s", "f", {"x" * 100_000: object()})
    assert len(str(caught.value)) < 300


async def test_an_upsert_of_nothing_is_refused(state: SharedState) -> None:
    with pytest.raises(ValueError, match="at least one field"):
        await state.upsert("s", {})


def test_the_memory_store_is_safe_from_several_threads_and_loops() -> None:
    import asyncio

    store = MemoryStore()
    barrier = threading.Barrier(8)
    made: list[bool] = []

    async def work(number: int) -> None:
        state = SharedState(store, "acme", "ann")
        made.append(await state.upsert("shared", {f"field{number}": number}))
        for _ in range(200):
            await state.update_field(f"state{number}", "n", number)
            assert await state.delete_field(f"state{number}", "n") == 1

    def thread(number: int) -> None:
        barrier.wait(10)
        asyncio.run(work(number))

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(8)]
    for running in threads:
        running.start()
    for running in threads:
        running.join(30)
    assert sorted(made) == [False] * 7 + [True]
    assert asyncio.run(SharedState(store, "acme", "ann").get("shared")) == {f"field{n}": n for n in range(8)}
    assert repr(store) == "<MemoryStore: 1 spaces>"


async def test_spaces_that_are_empty_take_no_memory(store: MemoryStore) -> None:
    for number in range(100):
        state = SharedState(store, f"tenant{number}")
        await state.upsert("a", {"b": 1})
        await state.upsert("c", {"d": 1})
        await state.delete("a")
        await state.delete_field("c", "d")
    assert store._spaces == {}


async def test_asking_leaves_nothing_behind(store: MemoryStore) -> None:
    state = SharedState(store, "acme")
    await state.get("a")
    await state.get_field("a", "b")
    await state.exists("a")
    await state.list_states()
    await state.delete("a")
    await state.delete_field("a", "b")
    await state.clear_all_states()
    assert store._spaces == {}
