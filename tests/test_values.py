"""Values: one dictionary for a request, one for each block; dropped at the end."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import asgi_context.values
from asgi_context import (
    ContextClosedError,
    ContextNotBoundError,
    Identity,
    bind_context,
    carry_context,
    unbound_context,
)
from asgi_context.values import (
    clear_request_context,
    get_from_context,
    request_context,
    set_request_context,
    update_request_context,
)

ANN = Identity("acme", "ann")


def test_values_are_set_read_updated_and_cleared() -> None:
    with bind_context(ANN):
        assert get_from_context("a") is None
        assert get_from_context("a", "default") == "default"
        set_request_context({"a": 1, "b": 2})
        update_request_context(b=3, c=4)
        assert [get_from_context(key) for key in "abc"] == [1, 3, 4]
        set_request_context({"d": 5})
        assert [get_from_context(key) for key in "abcd"] == [None, None, None, 5]
        clear_request_context()
        assert get_from_context("d") is None


def test_what_is_set_is_copied() -> None:
    given = {"a": 1}
    with bind_context(ANN):
        set_request_context(given)
        update_request_context(a=2)
        assert given == {"a": 1}
        given["a"] = 3
        assert get_from_context("a") == 2


def test_child_tasks_and_threads_write_for_the_whole_request() -> None:
    async def child() -> None:
        update_request_context(task=1)
        await asyncio.to_thread(update_request_context, thread=2)

    async def request() -> tuple[Any, Any]:
        await asyncio.create_task(child())
        return get_from_context("task"), get_from_context("thread")

    with bind_context(ANN):
        assert asyncio.run(request()) == (1, 2)


def test_two_requests_share_nothing() -> None:
    with bind_context(ANN):
        update_request_context(a=1)
        with bind_context(ANN):
            assert get_from_context("a") is None
            update_request_context(a=2)
        assert get_from_context("a") == 1


@pytest.mark.parametrize("where", [unbound_context, contextvars.copy_context], ids=["unbound", "never bound"])
def test_unbound_reading_gives_the_default_and_writing_raises(where: Any) -> None:
    def look() -> None:
        assert get_from_context("a") is None
        assert get_from_context("a", 1) == 1
        clear_request_context()
        with pytest.raises(ContextNotBoundError, match="values"):
            set_request_context({"a": 1})
        with pytest.raises(ContextNotBoundError, match="values"):
            update_request_context(a=1)
        assert get_from_context("a") is None

    if where is unbound_context:
        with unbound_context():
            look()
    else:
        where().run(look)


def test_a_block_starts_as_a_copy_of_what_is_outside_and_is_dropped_at_its_end() -> None:
    with bind_context(ANN, values={"a": 1, "b": 2}):
        with request_context(b=3, c=4):
            assert [get_from_context(key) for key in "abc"] == [1, 3, 4]
            update_request_context(a=5)
            with request_context(d=6):
                assert [get_from_context(key) for key in "abcd"] == [5, 3, 4, 6]
                clear_request_context()
                assert get_from_context("a") is None
            assert get_from_context("a") == 5
            set_request_context({"e": 7})
            assert [get_from_context(key) for key in "abcde"] == [None, None, None, None, 7]
        assert [get_from_context(key) for key in "abcde"] == [1, 2, None, None, None]


def test_a_block_works_where_nothing_is_bound() -> None:
    with request_context(a=1):
        assert get_from_context("a") == 1
        update_request_context(a=2)
        set_request_context({"a": get_from_context("a") + 1})
        assert get_from_context("a") == 3
        clear_request_context()
        assert get_from_context("a") is None
    assert get_from_context("a") is None
    with request_context():
        assert get_from_context("a") is None


def test_a_block_is_shared_by_what_starts_inside() -> None:
    with bind_context(ANN), request_context(), ThreadPoolExecutor(1) as pool:
        pool.submit(carry_context(update_request_context), a=1).result()
        assert get_from_context("a") == 1


def test_a_block_does_not_reach_into_another_binding() -> None:
    with bind_context(ANN), request_context(a=1):
        with bind_context(ANN):
            assert get_from_context("a") is None
            update_request_context(a=2)
        with unbound_context():
            assert get_from_context("a") is None
        assert get_from_context("a") == 1


def test_a_block_ends_with_an_exception_too() -> None:
    with bind_context(ANN):
        with pytest.raises(KeyError), request_context(a=1):
            raise KeyError
        assert get_from_context("a") is None


def test_what_outlives_a_block_cannot_read_it() -> None:
    with bind_context(ANN):
        with request_context(a=1):
            outliving = contextvars.copy_context()
        for read in (get_from_context, lambda key: get_from_context(key, "default")):
            with pytest.raises(ContextClosedError, match="values bound here ended"):
                outliving.run(read, "a")
        for write in (lambda: update_request_context(a=1), lambda: set_request_context({}), clear_request_context):
            with pytest.raises(ContextClosedError):
                outliving.run(write)
        with pytest.raises(ContextClosedError):
            outliving.run(request_context().__enter__)


def test_a_block_that_outlives_its_request_cannot_be_read() -> None:
    entered = contextvars.copy_context()
    request = bind_context(ANN)
    request.__enter__()
    inside = contextvars.copy_context()
    block = request_context(a=1)
    inside.run(block.__enter__)
    request.__exit__(None, None, None)
    with pytest.raises(ContextClosedError):
        inside.run(get_from_context, "a")
    inside.run(block.__exit__, None, None, None)
    assert entered.run(get_from_context, "a") is None


def test_a_block_left_in_another_context_is_revoked() -> None:
    block = request_context(a=1)
    entered = contextvars.copy_context()
    entered.run(block.__enter__)
    block.__exit__(None, None, None)
    assert get_from_context("a") is None
    with pytest.raises(ContextClosedError, match="revoked"):
        entered.run(get_from_context, "a")


def test_a_block_left_in_a_copy_of_its_context_is_revoked_in_both() -> None:
    block = request_context(a=1)
    entered = contextvars.copy_context()
    entered.run(block.__enter__)
    copied = entered.copy()
    copied.run(block.__exit__, None, None, None)
    for where in (entered, copied):
        with pytest.raises(ContextClosedError, match="revoked"):
            where.run(get_from_context, "a")


def test_a_block_left_out_of_order_disturbs_no_other() -> None:
    def interleave() -> None:
        first, second = request_context(a=1), request_context(a=2)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert get_from_context("a") == 2
        second.__exit__(None, None, None)
        with pytest.raises(ContextClosedError, match="revoked"):
            get_from_context("a")

    contextvars.copy_context().run(interleave)


def test_updates_by_many_threads_are_all_kept() -> None:
    """No read-modify-write that could lose one."""
    names = [f"name{number}" for number in range(400)]
    barrier = threading.Barrier(8)

    def write(part: list[str]) -> None:
        barrier.wait()
        for name in part:
            update_request_context(**{name: name})

    with bind_context(ANN), ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(carry_context(write), names[start::8]) for start in range(8)]
        for job in jobs:
            job.result()
        assert [get_from_context(name) for name in names] == names


def test_the_module_promises_its_names() -> None:
    assert sorted(asgi_context.values.__all__) == [
        "clear_request_context",
        "get_from_context",
        "request_context",
        "set_request_context",
        "update_request_context",
    ]
