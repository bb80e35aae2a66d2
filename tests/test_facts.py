"""What a request calls, in every way that there is to call something: whose context it sees, and what comes back.

The tables are those that the package is built on. Where the callee is not bound, the package has a way of its own.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from threading import Barrier, Thread, Timer
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import uvloop
from asgiref.sync import async_to_sync, sync_to_async
from driver import http, run, who
from starlette.concurrency import run_in_threadpool

from asgi_context import (
    ContextMiddleware,
    ContextNotBoundError,
    ContextThreadPoolExecutor,
    Identity,
    bind_context,
    carry_context,
    current_context,
    from_header,
    run_in_executor,
    unbound_context,
)

ANN = Identity("acme", "ann")
BOB = Identity("globex", "bob")
NOBODY = "nobody"

marked: ContextVar[str] = ContextVar("marked")


def whose() -> str | None:
    try:
        return current_context().user
    except ContextNotBoundError:
        return NOBODY


def callee() -> str | None:
    """Says whom it runs for, sets a variable, and binds somebody else for a while."""
    seen = whose()
    marked.set("by the callee")
    with bind_context(BOB):
        assert whose() == "bob"
    assert whose() == seen
    return seen


async def async_callee() -> str | None:
    await anyio.lowlevel.checkpoint()
    seen = callee()
    await anyio.lowlevel.checkpoint()
    return seen


def settle(done: Any, call: Callable[[], Any]) -> None:
    """Hand over what a call returns or raises: who waits for it is not to wait for ever."""
    try:
        done.set_result(call())
    except Exception as error:  # noqa: BLE001 - whatever it is
        done.set_exception(error)


# Ways to call. Each calls the callee, and returns what that returned.


async def await_() -> Any:
    return await async_callee()


async def asyncio_timeout() -> Any:
    async with asyncio.timeout(30):
        return await async_callee()


async def asyncio_wait_for() -> Any:
    return await asyncio.wait_for(async_callee(), 30)


async def create_task() -> Any:
    return await asyncio.get_running_loop().create_task(async_callee())


async def gather() -> Any:
    return (await asyncio.gather(async_callee(), asyncio.sleep(0)))[0]


async def task_group() -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(async_callee())
    return task.result()


async def anyio_start_soon() -> Any:
    seen = []

    async def task() -> None:
        seen.append(await async_callee())

    async with anyio.create_task_group() as group:
        group.start_soon(task)
    return seen[0]


async def asyncio_to_thread() -> Any:
    return await asyncio.to_thread(callee)


async def anyio_to_thread() -> Any:
    return await anyio.to_thread.run_sync(callee)


async def starlette_run_in_threadpool() -> Any:
    return await run_in_threadpool(callee)


async def asgiref_sync_to_async() -> Any:
    return await sync_to_async(callee)()


async def asgiref_async_to_sync_in_sync_to_async() -> Any:
    return await sync_to_async(lambda: async_to_sync(async_callee)())()


async def loop_run_in_executor() -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, callee)


async def loop_run_in_executor_with_copy_context() -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, copy_context().run, callee)


async def loop_run_in_executor_with_carry_context() -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, carry_context(callee))


async def loop_run_in_executor_with_our_pool() -> Any:
    with ContextThreadPoolExecutor(1) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, callee)


async def our_run_in_executor() -> Any:
    return await run_in_executor(None, callee)


async def our_run_in_executor_with_a_plain_pool() -> Any:
    with ThreadPoolExecutor(1) as pool:
        return await run_in_executor(pool, callee)


async def submit() -> Any:
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(callee))


async def submit_with_carry_context() -> Any:
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(carry_context(callee)))


async def submit_to_our_pool() -> Any:
    with ContextThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(callee))


async def map_() -> Any:
    with ThreadPoolExecutor(1) as pool:
        return only(pool.map(lambda _: callee(), range(3)))


async def map_with_carry_context() -> Any:
    with ThreadPoolExecutor(1) as pool:
        return only(pool.map(carry_context(lambda _: callee()), range(3)))


async def map_of_our_pool() -> Any:
    with ContextThreadPoolExecutor(1) as pool:
        return only(pool.map(lambda _: callee(), range(3)))


def only(seen: Iterator[Any]) -> Any:
    (one,) = set(seen)
    return one


async def thread() -> Any:
    return await in_thread(callee, lambda target: Thread(target=target))


async def thread_with_carry_context() -> Any:
    return await in_thread(carry_context(callee), lambda target: Thread(target=target))


async def timer() -> Any:
    return await in_thread(callee, lambda target: Timer(0, target))


async def timer_with_carry_context() -> Any:
    return await in_thread(carry_context(callee), lambda target: Timer(0, target))


async def in_thread(call: Callable[[], Any], make: Callable[[Callable[[], None]], Thread]) -> Any:
    done: Future[Any] = Future()
    started = make(lambda: settle(done, call))
    started.start()
    seen = await asyncio.wrap_future(done)
    started.join()
    return seen


async def call_soon() -> Any:
    return await when_called(asyncio.get_running_loop().call_soon)


async def call_later() -> Any:
    return await when_called(lambda call: asyncio.get_running_loop().call_later(0, call))


async def done_callback() -> Any:
    return await when_called(when_done)


async def when_called(register: Callable[[Callable[[], None]], object]) -> Any:
    done = asyncio.get_running_loop().create_future()
    register(lambda: settle(done, callee))
    return await done


def when_done(call: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    future.add_done_callback(lambda _: call())
    loop.call_soon(future.set_result, None)


NEW_IN_312 = sys.version_info >= (3, 12)

ON_ASYNCIO = [
    # way                                      sees     what it sets comes back
    (asyncio_timeout, "ann", True),
    (asyncio_wait_for, "ann", NEW_IN_312),
    (create_task, "ann", False),
    (gather, "ann", False),
    (task_group, "ann", False),
    (call_soon, "ann", False),
    (call_later, "ann", False),
    (done_callback, "ann", False),
    (asyncio_to_thread, "ann", False),
    (asgiref_sync_to_async, "ann", True),
    (asgiref_async_to_sync_in_sync_to_async, "ann", True),
    (loop_run_in_executor, NOBODY, False),
    (loop_run_in_executor_with_copy_context, "ann", False),
    (loop_run_in_executor_with_carry_context, "ann", False),
    (loop_run_in_executor_with_our_pool, "ann", False),
    (our_run_in_executor, "ann", False),
    (our_run_in_executor_with_a_plain_pool, "ann", False),
    (submit, NOBODY, False),
    (submit_with_carry_context, "ann", False),
    (submit_to_our_pool, "ann", False),
    (map_, NOBODY, False),
    (map_with_carry_context, "ann", False),
    (map_of_our_pool, "ann", False),
    (thread, NOBODY, False),
    (thread_with_carry_context, "ann", False),
    (timer, NOBODY, False),
    (timer_with_carry_context, "ann", False),
]

ON_EVERY_LOOP = [
    (await_, "ann", True),
    (anyio_start_soon, "ann", False),
    (anyio_to_thread, "ann", False),
    (starlette_run_in_threadpool, "ann", False),
]


def rows(table: list[Any]) -> Any:
    return pytest.mark.parametrize(
        ("way", "sees", "comes_back"), table, ids=[row[0].__name__.strip("_") for row in table]
    )


@pytest.mark.anyio
@rows(ON_ASYNCIO)
async def test_on_asyncio(asyncio_only: None, way: Any, sees: str, comes_back: bool) -> None:
    await check(way, sees, comes_back)


@pytest.mark.anyio
@rows(ON_EVERY_LOOP)
async def test_on_every_loop(way: Any, sees: str, comes_back: bool) -> None:
    await check(way, sees, comes_back)


async def check(way: Callable[[], Awaitable[Any]], sees: str, comes_back: bool) -> None:
    found = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        marked.set("by the app")
        found.extend([await way(), marked.get(), whose()])

    await run(ContextMiddleware(app, tenant=from_header("x-tenant-id"), user=from_header("x-user-id")), http(*who()))
    # Whatever comes back: what the callee binds is unbound again by then.
    assert found == [sees, "by the callee" if comes_back else "by the app", "ann"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "register",
    [
        lambda call: asyncio.get_running_loop().call_soon(call),
        lambda call: asyncio.get_running_loop().call_later(0, call),
        when_done,
    ],
    ids=["call_soon", "call_later", "done callback"],
)
async def test_a_callback_sees_what_was_bound_when_it_was_registered(asyncio_only: None, register: Any) -> None:
    done = asyncio.get_running_loop().create_future()
    with bind_context(ANN):
        register(lambda: settle(done, whose))
    with bind_context(BOB):
        assert await done == "ann"


@pytest.mark.anyio
@pytest.mark.parametrize("call", ["run_coroutine_threadsafe", "call_soon_threadsafe"])
@pytest.mark.parametrize(
    ("block", "sees"), [(lambda: bind_context(BOB), "bob"), (unbound_context, NOBODY)], ids=["bound", "unbound"]
)
async def test_what_a_thread_starts_on_the_loop_sees_the_threads(
    asyncio_only: None, call: str, block: Any, sees: str
) -> None:
    loop = asyncio.get_running_loop()

    def from_thread() -> Any:
        with block():
            if call == "run_coroutine_threadsafe":
                return asyncio.run_coroutine_threadsafe(async_callee(), loop).result()
            done: Future[Any] = Future()
            loop.call_soon_threadsafe(lambda: settle(done, callee))
            return done.result()

    with bind_context(ANN):
        assert await asyncio.to_thread(from_thread) == sees
        assert whose() == "ann"


@pytest.mark.anyio
@pytest.mark.parametrize("call", ["run", "run_sync"])
@pytest.mark.parametrize(
    ("block", "sees"), [(lambda: bind_context(BOB), "bob"), (unbound_context, NOBODY)], ids=["bound", "unbound"]
)
async def test_what_a_thread_of_anyio_starts_on_the_loop_sees_the_threads(call: str, block: Any, sees: str) -> None:
    def from_thread() -> Any:
        with block():
            return anyio.from_thread.run(async_callee) if call == "run" else anyio.from_thread.run_sync(callee)

    with bind_context(ANN):
        assert await anyio.to_thread.run_sync(from_thread) == sees
        assert whose() == "ann"


def test_async_to_sync_sees_its_callers_and_gives_back() -> None:
    def caller() -> None:
        with bind_context(ANN):
            assert async_to_sync(async_callee)() == "ann"
            assert (marked.get(), whose()) == ("by the callee", "ann")

    copy_context().run(caller)


@pytest.mark.parametrize("loop", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_as_default_executor_our_pool_carries_the_context_for_other_libraries(loop: Any) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ContextThreadPoolExecutor(1))
        await check(loop_run_in_executor, "ann", False)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.anyio
async def test_a_bare_job_sees_what_an_earlier_one_left_on_its_worker_and_ours_its_callers(asyncio_only: None) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(bind_and_never_leave).result()
        with bind_context(ANN):
            assert pool.submit(whose).result() == "bob"
            assert pool.submit(carry_context(whose)).result() == "ann"
            assert await run_in_executor(pool, whose) == "ann"
        assert pool.submit(whose).result() == "bob"
        assert pool.submit(carry_context(whose)).result() == NOBODY
        assert await run_in_executor(pool, whose) == NOBODY


def bind_and_never_leave(_: object = None) -> str | None:
    seen = whose()
    bind_context(BOB).__enter__()
    return seen


def test_on_a_worker_of_our_pool_nothing_is_left_for_the_next_job() -> None:
    with ContextThreadPoolExecutor(1) as pool:
        assert pool.submit(bind_and_never_leave).result() == NOBODY
        with bind_context(ANN):
            assert [pool.submit(bind_and_never_leave).result() for _ in range(2)] == ["ann", "ann"]
            assert list(pool.map(bind_and_never_leave, range(2))) == ["ann", "ann"]
        assert pool.submit(whose).result() == NOBODY


def test_every_call_of_a_carried_function_has_a_context_of_its_own() -> None:
    """One Context cannot be entered twice at a time."""
    with bind_context(ANN):
        carried = carry_context(bind_and_never_leave)
        meet = carry_context(Barrier(2).wait)
    assert [carried(), carried()] == ["ann", "ann"]
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(meet, [30, 30])) == [0, 1]
