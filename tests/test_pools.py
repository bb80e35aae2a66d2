"""Named pools: jobs run under their caller's context, tenants share the threads fairly, and nothing is lost silently."""

import asyncio
import concurrent.futures
import contextvars
import inspect
import json
import sys
import threading
from functools import lru_cache, partial, wraps
from operator import mul, neg
from typing import Any

import pytest
from driver import hello, http, run, websocket, who
from pools import (
    LONG,
    TENANT,
    Job,
    Site,
    assert_empty,
    from_job,
    site,
    threads_of,
    watch,
)

from asgi_context import (
    ContextMiddleware,
    Identity,
    Pool,
    bind_context,
    current_context,
    json_message,
    run_in_pool,
    unbound_context,
)
from asgi_context._pools import _inside
from asgi_context.errors import (
    AsgiContextError,
    JobError,
    PoolClosedError,
    PoolError,
    PoolFullError,
    PoolNotFoundError,
    PoolWaitError,
    UnsupportedLoopError,
)
from asgi_context.values import get_from_context, update_request_context

pytestmark = pytest.mark.anyio

mark: contextvars.ContextVar[Any] = contextvars.ContextVar("mark", default=None)


# What may be said of a pool


def test_a_pool_has_room_for_a_thousand_jobs_of_each_tenant_and_no_limit_to_what_one_may_run() -> None:
    pool = Pool(8)
    assert (pool.threads, pool.per_tenant, pool.queue) == (8, None, 1000)
    assert pool == Pool(8, per_tenant=None, queue=1000)
    with pytest.raises(AttributeError):
        pool.threads = 9  # type: ignore[misc]


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 0), (3, 3), (3, 1, 10**6)])
def test_the_least_and_the_largest_sizes(sizes: Any) -> None:
    assert Pool(*sizes).threads == sizes[0]


@pytest.mark.parametrize(
    ("sizes", "error", "text"),
    [
        (("8",), TypeError, "Pool: threads must be an int, not str"),
        ((True,), TypeError, "Pool: threads must be an int, not bool"),
        ((8.0,), TypeError, "Pool: threads must be an int, not float"),
        ((None,), TypeError, "Pool: threads must be an int, not NoneType"),
        ((8, "2"), TypeError, "Pool: per_tenant must be an int, not str"),
        ((8, 2, None), TypeError, "Pool: queue must be an int, not NoneType"),
        ((0,), ValueError, "Pool: threads must be at least 1, not 0"),
        ((8, 0), ValueError, "Pool: per_tenant must be at least 1, not 0"),
        ((8, 2, -1), ValueError, "Pool: queue must be at least 0, not -1"),
        ((8, 9), ValueError, "Pool: per_tenant=9 is more than threads=8"),
    ],
)
def test_sizes_are_checked(sizes: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Pool(*sizes)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", [1, None, b"tool", ("tool",)])
def test_a_pool_is_named_by_a_str(name: Any) -> None:
    with pytest.raises(TypeError, match="pools: a name must be a str that is not empty, not ") as caught:
        ContextMiddleware(hello, tenant=TENANT, pools={name: 1})
    assert repr(name) in str(caught.value)


def test_a_pool_needs_a_name_that_is_not_empty() -> None:
    with pytest.raises(ValueError, match="pools: a name must be a str that is not empty, not ''"):
        ContextMiddleware(hello, tenant=TENANT, pools={"": 1})


@pytest.mark.parametrize(("size", "error"), [("8", TypeError), (None, TypeError), (True, TypeError), (0, ValueError)])
def test_a_size_that_is_no_pool_is_a_number_of_threads(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="Pool: threads must be"):
        ContextMiddleware(hello, tenant=TENANT, pools={"tool": size})


# What a job is and sees


async def test_a_job_takes_arguments_of_both_kinds_and_its_result_comes_back(asyncio_only: None) -> None:
    def job(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs, threading.current_thread() is threading.main_thread()

    async with site(tool=1) as web:
        assert await web.ask("acme", job, 1, "two", three=3) == ((1, "two"), {"three": 3}, False)
        names = {"func": 1, "job": 2, "self": 3, "call": 4, "tenant": 5, "context": 6, "args": 7, "kwargs": 8}
        assert await web.handle("acme", lambda: run_in_pool("tool", job, **names)) == ((), names, False)


async def test_a_job_runs_under_its_callers_context_in_a_thread_that_may_have_run_others(asyncio_only: None) -> None:
    def job() -> Any:
        context = current_context(None)
        before = mark.get()
        mark.set("a job's")
        return context and (context.tenant, context.user), before

    async def handler() -> Any:
        mark.set("a request's")
        result = await run_in_pool("tool", job)
        return result, mark.get()

    async with site(tool=1) as web:
        assert await web.ask("acme", job) == (("acme", "ann"), None)
        task = asyncio.create_task(web.handle("globex", handler))
        assert await task == ((("globex", "ann"), "a request's"), "a request's"), "a job's own goes with the job"
        assert await web.ask(None, job) == (None, None)
        assert mark.get() is None


async def test_a_job_writes_the_values_of_its_request(asyncio_only: None) -> None:
    async def handler() -> Any:
        await run_in_pool("tool", lambda: update_request_context(found=1))
        return get_from_context("found")

    async with site(tool=1) as web:
        assert await web.handle("acme", handler) == 1


async def test_as_many_jobs_run_at_a_time_as_there_are_threads(asyncio_only: None) -> None:
    async with site(tool=3, single=1) as web:
        barrier = threading.Barrier(3)
        await asyncio.gather(*(web.ask("acme", barrier.wait, LONG) for _ in range(3)))
        first, second = Job(), Job()
        tasks = [await web.start("acme", job, pool="single") for job in (first, second)]
        assert first.has_started()
        first.go.set()
        assert second.has_started()
        second.go.set()
        await asyncio.gather(*tasks)
        assert len(threads_of(web.pools["single"])) == 1


async def test_threads_are_started_as_they_are_needed_named_after_the_pool_and_daemons(asyncio_only: None) -> None:
    """A job that never ends must not keep the process from ending."""
    async with site(tool=8) as web:
        await web.handle("acme", lambda: asyncio.sleep(0))
        assert threads_of(web.pools["tool"]) == []
        jobs = [Job(), Job()]
        tasks = [await web.start("acme", job) for job in jobs]
        assert [(thread.name, thread.daemon) for thread in threads_of(web.pools["tool"])] == [
            ("asgi_context-tool_0", True),
            ("asgi_context-tool_1", True),
        ]
        turned = watch(web.pools["tool"])
        for job, task in zip(jobs, tasks, strict=True):
            job.go.set()
            await task
            assert turned.acquire(timeout=LONG)
        await web.ask("acme", int)
        assert len(threads_of(web.pools["tool"])) == 2, "those that are free are used first"


async def test_pools_have_threads_of_their_own(asyncio_only: None) -> None:
    async with site(tool=1, user=1) as web:
        busy = Job()
        task = await web.start("acme", busy)
        assert await web.ask("acme", lambda: "free", pool="user") == "free"
        busy.go.set()
        assert await task == ("job", "acme")


class Later:
    async def __call__(self) -> None: ...

    async def method(self) -> None: ...


async def later() -> None: ...


def generator() -> Any:
    yield


async def asynchronous_generator() -> Any:
    yield


def attributed(func: Any) -> Any:
    func.limit = 3
    return func


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        (later, "a coroutine function"),
        (Later(), "a coroutine function"),
        (Later().method, "a coroutine function"),
        (Later.method, "a coroutine function"),
        (partial(partial(later)), "a coroutine function"),
        (partial(Later()), "a coroutine function"),
        (generator, "a generator function"),
        (asynchronous_generator, "a generator function"),
        (attributed(partial(generator)), "a generator function"),
    ],
)
async def test_what_would_run_later_is_refused(asyncio_only: None, job: Any, kind: str) -> None:
    async with site(tool=1) as web:
        with pytest.raises(TypeError, match=f"is {kind}: a thread would only make what"):
            await web.ask("acme", job)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction is of Python 3.12")
async def test_a_function_that_is_marked_as_a_coroutine_function_is_refused(asyncio_only: None) -> None:
    class Marked:
        def method(self) -> Any:
            return later()

        def __call__(self) -> Any:
            return later()

    def plain() -> Any:
        return later()

    mark_as: Any = inspect.markcoroutinefunction  # type: ignore[attr-defined]
    mark_as(Marked.method)
    async with site(tool=1) as web:
        for job in (mark_as(plain), mark_as(lambda: later()), mark_as(Marked()), Marked().method, partial(plain)):
            with pytest.raises(TypeError, match="is a coroutine function"):
                await web.ask("acme", job)


class Plain:
    def __call__(self, number: int) -> int:
        return -number

    def method(self, number: int) -> int:
        return -number

    @attributed
    def attributed(self, number: int) -> int:
        return -number

    @classmethod
    def of_class(cls, number: int) -> int:
        return -number


@wraps(later)
def wrapping(number: int) -> int:
    return -number


@pytest.mark.parametrize(
    "job",
    [
        lambda number: -number,
        attributed(lambda number: -number),
        wrapping,
        lru_cache(lambda number: -number),
        Plain(),
        Plain().method,
        Plain().attributed,
        Plain.of_class,
        partial(Plain().method),
        partial(partial(Plain.method, Plain())),
        neg,
        (0).__sub__,
        partial(mul, -1),
    ],
)
async def test_what_runs_when_it_is_called_is_a_job(asyncio_only: None, job: Any) -> None:
    """Also a plain function that wraps one which would run later, and what has attributes of its own."""
    async with site(tool=1) as web:
        assert await web.ask("acme", job, 3) == -3


async def test_a_class_is_a_job_whatever_its_instances_do(asyncio_only: None) -> None:
    async with site(tool=1) as web:
        assert isinstance(await web.ask("acme", Later), Later)


async def test_what_is_not_callable_is_refused(asyncio_only: None) -> None:
    async with site(tool=1) as web:
        with pytest.raises(TypeError, match="the job must be callable, not int"):
            await web.ask("acme", 3)


async def test_on_trio_it_says_what_to_use(trio_only: None) -> None:
    web = Site(tool=1)
    with pytest.raises(UnsupportedLoopError, match=r"run_in_pool.*trio\.to_thread\.run_sync"):
        await web.ask("acme", int)
    assert_empty(web.pools["tool"])
    await web.middleware.close()


async def test_a_pool_that_is_not_there_is_an_error_that_says_what_to_do(asyncio_only: None) -> None:
    async with site(tool=1) as web:
        with pytest.raises(PoolNotFoundError, match="there is no pool 'user' here") as caught:
            await web.ask("acme", int, pool="user")
    assert caught.value.pool == "user"
    assert "ContextMiddleware(pools={'user': 8})" in str(caught.value)
    assert isinstance(caught.value, LookupError)
    with pytest.raises(PoolNotFoundError):
        await run_in_pool("tool", int)
    with bind_context(Identity("acme")), pytest.raises(PoolNotFoundError):
        await run_in_pool("tool", int)


async def test_a_pool_is_there_inside_of_its_own_middleware_and_not_of_another_one_in_it(asyncio_only: None) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(await run_in_pool("inner", int))
        with pytest.raises(PoolNotFoundError):
            await run_in_pool("outer", int)

    inner = ContextMiddleware(app, tenant=TENANT, pools={"inner": 1})
    outer = ContextMiddleware(inner, tenant=TENANT, pools={"outer": 1})
    await run(outer, http(*who()))
    await inner.close()
    await outer.close()
    assert seen == [0]


@pytest.mark.parametrize(
    "made",
    [PoolFullError("tool"), PoolWaitError("tool", "user"), PoolClosedError("tool"), PoolNotFoundError("tool")],
    ids=lambda made: type(made).__name__,
)
def test_errors_of_pools_are_of_one_tree_and_name_the_pool(made: PoolError) -> None:
    assert isinstance(made, PoolError)
    assert isinstance(made, AsgiContextError)
    assert isinstance(made, RuntimeError)
    assert made.pool == "tool"
    assert "'tool'" in str(made)


async def test_blocks_in_a_request_use_its_pools_each_for_its_own_tenant(asyncio_only: None) -> None:
    def tenant() -> Any:
        context = current_context(None)
        return context and context.tenant

    busy = Job()

    async def handler() -> Any:
        with bind_context(Identity("globex", "bob")):
            first = await run_in_pool("tool", tenant)
        with unbound_context():
            second = await run_in_pool("tool", tenant)
        with bind_context():
            asking = asyncio.create_task(run_in_pool("tool", tenant))
            await asyncio.sleep(0)
        assert not asking.done(), "acme's turn is taken"
        busy.go.set()
        return first, second, await asking

    async with site(tool=Pool(2, per_tenant=1)) as web:
        task = await web.start("acme", busy)
        assert busy.has_started()
        assert await web.handle("acme", handler) == ("globex", None, "acme")
        await task


async def test_a_job_of_a_message_is_the_messages(asyncio_only: None) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(2):
            await receive()
            seen.append(await run_in_pool("tool", lambda: current_context().tenant))

    def message(tenant: str) -> Any:
        return {"type": "websocket.receive", "text": json.dumps({"tenant_id": tenant})}

    middleware = ContextMiddleware(app, message=json_message(tenant="tenant_id", user=None), pools={"tool": 1})
    await run(middleware, websocket(), [{"type": "websocket.connect"}, message("acme"), message("globex")])
    await middleware.close()
    assert seen == ["acme", "globex"]


# What a job raises


async def test_what_a_job_raises_reaches_its_caller_as_it_is(asyncio_only: None) -> None:
    class Odd(BaseException):
        pass

    def job(error: BaseException) -> None:
        raise error

    async with site(tool=1) as web:
        for error in (KeyError("job"), Odd(), ExceptionGroup("both", [KeyError(1)]), TimeoutError()):
            with pytest.raises(type(error)) as caught:
                await web.ask("acme", job, error)
            assert caught.value is error
        assert await web.ask("acme", int) == 0


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
async def test_what_no_caller_can_be_handed_reaches_it_as_an_error(
    asyncio_only: None, raised: type[BaseException]
) -> None:
    def job() -> None:
        raise raised("reason")

    async with site(tool=1) as web:
        with pytest.raises(JobError, match=raised.__name__) as caught:
            await asyncio.wait_for(web.ask("acme", job), LONG)
        assert isinstance(caught.value.__cause__, raised)
        assert await web.ask("acme", int) == 0, "the thread goes on"


# Jobs that ask for pools


async def test_a_job_that_waits_for_its_own_pool_gets_an_error_even_if_a_thread_is_free(asyncio_only: None) -> None:
    loop = asyncio.get_running_loop()

    def job() -> None:
        from_job(loop, lambda: run_in_pool("tool", int))

    for threads in (1, 4):
        async with site(tool=threads) as web:
            with pytest.raises(PoolWaitError, match="a job of the pool 'tool', which still runs, would wait") as caught:
                await asyncio.wait_for(web.ask("acme", job), LONG)
            assert caught.value.pool == "tool"
            assert await web.ask("acme", int) == 0


async def test_a_job_may_wait_for_a_pool_after_its_own_and_for_no_other(asyncio_only: None) -> None:
    loop = asyncio.get_running_loop()

    def job(*path: str) -> Any:
        if not path:
            return current_context().tenant
        return from_job(loop, lambda: run_in_pool(path[0], job, *path[1:]))

    async with site(a=1, b=1, c=1) as web:
        assert await asyncio.wait_for(web.ask("acme", job, "b", "c", pool="a"), LONG) == "acme"
        assert await asyncio.wait_for(web.ask("acme", job, "c", pool="a"), LONG) == "acme"
        for path in (["b", "a"], ["b", "c", "a"], ["b", "c", "b"]):
            with pytest.raises(PoolWaitError) as caught:
                await asyncio.wait_for(web.ask("acme", job, *path, pool="a"), LONG)
            assert caught.value.pool == path[-1]
            assert caught.value.own == ["a", *path][-2]
        with pytest.raises(PoolWaitError, match=r"a job of the pool 'c', .* the pool 'a'"):
            await asyncio.wait_for(web.ask("acme", job, "a", pool="c"), LONG)


async def test_what_a_job_leaves_behind_may_ask_for_the_pool_once_the_job_has_ended(asyncio_only: None) -> None:
    loop = asyncio.get_running_loop()
    asked, go = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def left_behind() -> Any:
        with pytest.raises(PoolWaitError):
            await run_in_pool("tool", int)
        asked.set()
        await go.wait()
        # From the other pool back again, by a job whose own caller was in that one.
        back = await run_in_pool("other", lambda: from_job(loop, lambda: run_in_pool("tool", lambda: "back")))
        with pytest.raises(PoolWaitError):
            await run_in_pool("other", lambda: from_job(loop, lambda: run_in_pool("other", int)))
        return back, await run_in_pool("tool", lambda: current_context().tenant)

    job = Job()

    def leaving() -> Any:
        loop.call_soon_threadsafe(lambda: tasks.append(asyncio.create_task(left_behind())))
        return job()

    async with site(other=1, tool=1) as web:
        task = await web.start("acme", leaving)
        await asyncio.wait_for(asked.wait(), LONG)
        job.go.set()
        await task
        go.set()
        assert await asyncio.wait_for(tasks[0], LONG) == ("back", "acme")


async def test_a_job_that_fails_has_ended_as_well(asyncio_only: None) -> None:
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Any]] = []
    go = asyncio.Event()

    async def left_behind() -> Any:
        await go.wait()
        return await run_in_pool("tool", lambda: "asked")

    def job() -> None:
        loop.call_soon_threadsafe(lambda: tasks.append(asyncio.create_task(left_behind())))
        raise KeyError

    async with site(tool=1) as web:
        with pytest.raises(KeyError):
            await web.ask("acme", job)
        go.set()
        assert await asyncio.wait_for(tasks[0], LONG) == "asked"


async def test_a_job_may_run_an_event_loop_of_its_own(asyncio_only: None) -> None:
    def job() -> Any:
        async def nested() -> Any:
            with pytest.raises(PoolWaitError):
                await run_in_pool("tool", int)
            return await run_in_pool("other", lambda: current_context().tenant)

        return asyncio.run(nested())

    async with site(tool=1, other=1) as web:
        assert await asyncio.wait_for(web.ask("acme", job), LONG) == "acme"


async def test_pools_of_two_middlewares_are_two_whatever_their_names(asyncio_only: None) -> None:
    loop = asyncio.get_running_loop()
    async with site(tool=1) as web, site(tool=1) as other:
        assert await web.ask("acme", lambda: from_job(loop, lambda: other.ask("globex", lambda: "there"))) == "there"
        with pytest.raises(PoolWaitError):
            await web.ask(
                "acme",
                lambda: from_job(loop, lambda: other.ask("globex", from_job, loop, lambda: web.ask("acme", int))),
            )


async def test_jobs_that_are_asked_for_by_what_others_left_behind_make_no_chain(asyncio_only: None) -> None:
    async with site(tool=1) as web:
        context = await web.ask("acme", contextvars.copy_context)
        for _ in range(100):
            context = await asyncio.create_task(run_in_pool("tool", contextvars.copy_context), context=context)
    innermost = context[_inside]
    assert innermost is not None
    assert innermost.outer is None
