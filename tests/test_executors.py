"""Jobs in threads run under their caller's context, each in a copy of its own, and stop nothing but themselves."""

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from asgi_context import (
    ContextThreadPoolExecutor,
    Identity,
    bind_context,
    carry_context,
    current_context,
    run_in_executor,
)
from asgi_context.errors import JobError, UnsupportedLoopError
from asgi_context.values import get_from_context, update_request_context

pytestmark = pytest.mark.anyio

ANN, BOB = Identity("acme", "ann"), Identity("globex", "bob")
mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="unset")


def who(*args: Any, **kwargs: Any) -> Any:
    context = current_context(None)
    return (context and context.tenant, args, kwargs)


async def submitted(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with ContextThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(func, *args, **kwargs))


async def carried(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    carrying = carry_context(func)
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(carrying, *args, **kwargs))


async def on_default(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return await run_in_executor(None, func, *args, **kwargs)


async def on_a_pool(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return await run_in_executor(pool, func, *args, **kwargs)


async def on_ours(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with ContextThreadPoolExecutor(1) as pool:
        return await run_in_executor(pool, func, *args, **kwargs)


WAYS = [submitted, carried, on_default, on_a_pool, on_ours]


@pytest.fixture(params=WAYS, ids=[way.__name__ for way in WAYS])
def way(request: pytest.FixtureRequest, asyncio_only: None) -> Any:
    return request.param


async def test_a_job_sees_its_callers_context_and_takes_arguments_of_every_kind(way: Any) -> None:
    with bind_context(ANN):
        assert await way(who, 1, "two", three=3) == ("acme", (1, "two"), {"three": 3})
    assert await way(who) == (None, (), {})


async def test_what_a_job_sets_stays_in_the_job_and_its_values_are_the_requests(way: Any) -> None:
    def job() -> None:
        mark.set("job")
        update_request_context(job=True)

    with bind_context(ANN):
        await way(job)
        assert mark.get() == "unset"
        assert get_from_context("job") is True


@pytest.mark.parametrize(
    "raised",
    [
        StopIteration,
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        asyncio.CancelledError,
        concurrent.futures.CancelledError,
    ],
)
async def test_what_would_hang_or_stop_the_loop_reaches_the_caller_as_an_error(
    way: Any, raised: type[BaseException]
) -> None:
    def job() -> None:
        raise raised("reason")

    with pytest.raises(JobError, match=raised.__name__) as caught:
        await asyncio.wait_for(way(job), 10)
    assert isinstance(caught.value.__cause__, raised)
    assert await way(who) == (None, (), {}), "nothing was stopped"


async def test_an_ordinary_exception_reaches_the_caller_as_it_is(way: Any) -> None:
    error = KeyError("job")

    def job() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        await way(job)
    assert caught.value is error


async def test_what_would_run_later_without_the_context_is_refused(way: Any) -> None:
    async def job() -> None: ...

    def generator() -> Any:
        yield

    async def asynchronous_generator() -> Any:
        yield

    class Later:
        async def __call__(self) -> None: ...

    later = functools.partial(Later())
    for wrong in (job, functools.partial(job), Later(), later, generator, asynchronous_generator):
        with pytest.raises(TypeError, match=r"is a (coroutine|generator) function"):
            await way(wrong)


async def test_on_trio_a_cancellation_passes_through_a_carried_function(trio_only: None) -> None:
    import trio

    carrying = carry_context(lambda: trio.from_thread.run(trio.sleep_forever))
    with trio.move_on_after(0.05) as scope:
        await trio.to_thread.run_sync(carrying)
    assert scope.cancelled_caught


async def test_no_job_sees_what_an_earlier_one_left_in_the_worker(asyncio_only: None) -> None:
    """A bare submit would: the worker's own context keeps what a bare job sets."""
    with ThreadPoolExecutor(1) as bare:
        bare.submit(mark.set, "left").result()
        assert bare.submit(mark.get).result() == "left"
        assert await run_in_executor(bare, mark.get) == "unset"
        assert bare.submit(carry_context(mark.get)).result() == "unset"
    with ContextThreadPoolExecutor(1) as ours:
        ours.submit(mark.set, "left").result()
        assert ours.submit(mark.get).result() == "unset"


async def test_as_default_executor_it_serves_libraries_that_carry_nothing(asyncio_only: None) -> None:
    loop = asyncio.get_running_loop()
    with bind_context(ANN):
        assert (await loop.run_in_executor(None, who))[0] is None
    pool = ContextThreadPoolExecutor(2)
    loop.set_default_executor(pool)
    try:
        with bind_context(ANN):
            assert (await loop.run_in_executor(None, who))[0] == "acme"
            assert (await asyncio.to_thread(who))[0] == "acme"
        assert (await loop.run_in_executor(None, who))[0] is None
    finally:
        loop.set_default_executor(ThreadPoolExecutor())
        pool.shutdown()


def test_every_item_of_a_map_has_a_context_of_its_own() -> None:
    barrier = threading.Barrier(4)

    def job(number: int) -> tuple[str, str]:
        before = mark.get()
        mark.set(f"item {number}")
        barrier.wait(10)  # all at once: one Context could not be entered twice
        return current_context().tenant, before

    with ContextThreadPoolExecutor(4) as pool, bind_context(ANN):
        assert list(pool.map(job, range(4))) == [("acme", "unset")] * 4
        assert list(pool.map(lambda a, b: a + b, [1, 2], [10, 20], timeout=10)) == [11, 22]


def test_a_map_runs_under_the_context_that_it_was_called_in() -> None:
    with ContextThreadPoolExecutor(1) as pool:
        with bind_context(ANN):
            results = pool.map(who, [1, 2])
        with bind_context(BOB):
            assert [tenant for tenant, *_ in results] == ["acme", "acme"]


def test_a_carried_function_takes_the_context_of_where_it_was_wrapped() -> None:
    with bind_context(ANN):
        carrying = carry_context(who)
    with bind_context(BOB):
        assert carrying(1)[0] == "acme"
        assert current_context().tenant == "globex"
    seen: list[Any] = []
    thread = threading.Thread(target=carry_context(lambda: seen.append(carrying())))
    thread.start()
    thread.join(10)
    assert seen == [("acme", (), {})]


def test_a_carried_function_can_be_called_often_at_once_and_inside_itself() -> None:
    barrier = threading.Barrier(3)

    def job(depth: int) -> str:
        mark.set(mark.get() + "!")
        if depth:
            return carrying(depth - 1)
        barrier.wait(10)
        return mark.get()

    carrying: Any = carry_context(job)
    with ThreadPoolExecutor(3) as pool:
        assert [future.result(10) for future in [pool.submit(carrying, 2) for _ in range(3)]] == ["unset!"] * 3


def test_a_carried_function_looks_like_the_original() -> None:
    def job(a: int, *, b: str = "") -> str:
        """Say it."""
        return b * a

    carrying = carry_context(job)
    assert (carrying.__name__, carrying.__doc__) == ("job", "Say it.")
    assert inspect.signature(carrying) == inspect.signature(job)


async def test_the_context_is_that_of_the_call_and_not_of_the_await(asyncio_only: None) -> None:
    with bind_context(ANN):
        future = run_in_executor(None, who)
    with bind_context(BOB):
        assert (await future)[0] == "acme"


async def test_a_context_does_not_cross_into_a_process(asyncio_only: None) -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(TypeError, match="does not cross into another process"):
        await run_in_executor(pool, who)


async def test_what_is_no_executor_or_no_function_is_refused(asyncio_only: None) -> None:
    with pytest.raises(TypeError, match="must be an executor, or None"):
        await run_in_executor(who, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be callable"):
        carry_context(3)  # type: ignore[arg-type]


async def test_a_class_may_be_called_whatever_its_instances_do(way: Any) -> None:
    class Later:
        async def __call__(self) -> None: ...

    assert isinstance(await way(Later), Later)


def test_outside_of_a_loop_it_says_so() -> None:
    with pytest.raises(UnsupportedLoopError, match="needs a running asyncio event loop"):
        run_in_executor(None, who)


async def test_on_trio_it_says_what_to_use(trio_only: None) -> None:
    with pytest.raises(UnsupportedLoopError, match=r"trio\.to_thread\.run_sync"):
        run_in_executor(None, who)


def test_a_pool_that_was_shut_down_says_so() -> None:
    pool = ContextThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(who)
