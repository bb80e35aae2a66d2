"""Named pools: jobs run under their caller's context, tenants share the threads fairly, and nothing is lost silently."""

import asyncio
import concurrent.futures
import contextvars
import gc
import json
import logging
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from queue import SimpleQueue
from random import Random
from typing import Any

import pytest
from driver import Exchange, hello, http, run, websocket, who
from hypothesis import given
from hypothesis import strategies as st

from asgi_context import (
    ContextMiddleware,
    Identity,
    Pool,
    bind_context,
    current_context,
    from_header,
    json_message,
    run_in_pool,
    unbound_context,
)
from asgi_context._pools import Workers
from asgi_context.errors import (
    AsgiContextError,
    JobError,
    PoolClosedError,
    PoolError,
    PoolFullError,
    PoolNotFoundError,
    PoolWaitError,
)
from asgi_context.values import get_from_context, update_request_context

pytestmark = pytest.mark.anyio

TENANT, USER = from_header("x-tenant-id"), from_header("x-user-id")
LONG = 20  # seconds: no test takes it, but where something hangs
mark: contextvars.ContextVar[Any] = contextvars.ContextVar("mark", default=None)


class Thing:
    """What weak references can be made to."""


class Job:
    """A job that says when it starts, and runs until it is let go."""

    def __init__(self, name: Any = "job", log: list[Any] | None = None, error: BaseException | None = None) -> None:
        self.name, self.log, self.error = name, [] if log is None else log, error
        self.started, self.go = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self, *_: object) -> Any:
        self.thread = threading.current_thread()
        self.log.append(self.name)
        self.started.set()
        assert self.go.wait(LONG)
        if self.error is not None:
            raise self.error
        context = current_context(None)
        return self.name, context and context.tenant

    def has_started(self) -> bool:
        """Wait for it. To start, no job needs the event loop, so it may be held up."""
        return self.started.wait(LONG)


class Site:
    """An app with pools, each of whose requests runs a function that a test hands it."""

    def __init__(self, close_timeout: float = LONG, **pools: int | Pool) -> None:
        self.middleware = ContextMiddleware(
            self.app, tenant=TENANT, user=USER, missing="unbound", pools=pools, close_timeout=close_timeout
        )
        self.pools: Any = self.middleware._services.pools

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        scope["test.result"] = await scope["test.handler"]()

    async def handle(self, tenant: str | None, handler: Callable[[], Any]) -> Any:
        """Run something in a request of a tenant."""
        scope = http(*(who(tenant) if tenant else ()), **{"test.handler": handler})
        await run(self.middleware, scope)
        return scope["test.result"]

    async def ask(self, tenant: str | None, func: Any, *args: Any, pool: str = "tool", **kwargs: Any) -> Any:
        """Run a job in a request of its own."""
        return await self.handle(tenant, lambda: run_in_pool(pool, func, *args, **kwargs))

    async def start(self, tenant: str | None, func: Any, *args: Any, pool: str = "tool") -> asyncio.Task[Any]:
        """The same, until the pool has been asked."""
        asked = asyncio.Event()

        def handler() -> Any:
            asked.set()
            return run_in_pool(pool, func, *args)

        task = asyncio.create_task(self.handle(tenant, handler))
        await asyncio.wait_for(asked.wait(), LONG)
        return task


@asynccontextmanager
async def site(close_timeout: float = LONG, **pools: int | Pool) -> AsyncIterator[Site]:
    """A site that is closed in the end, and of which nothing is left then."""
    made = Site(close_timeout, **pools)
    try:
        yield made
    finally:
        await made.middleware.close()
    for workers in made.pools.values():
        assert_empty(workers)


def threads_of(workers: Workers) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if workers._inbox in (getattr(thread, "_args", None) or ())]


def assert_empty(workers: Workers) -> None:
    """Nothing is left in a closed pool, and its threads have ended."""
    for thread in threads_of(workers):
        thread.join(LONG)
        assert not thread.is_alive()
    assert (workers._running, workers._alive, workers._lanes, workers._on_idle) == (0, 0, {}, None)
    assert not any(workers._turns)
    assert workers._inbox.empty()


def assert_invariants(workers: Workers) -> None:
    """Those of the module: they hold whenever the lock is free."""
    with workers._lock:
        pool, lanes = workers._pool, workers._lanes
        assert sum(lane.running for lane in lanes.values()) == workers._running <= workers._alive <= pool.threads
        for tenant, lane in lanes.items():
            assert lane.tenant == tenant
            assert lane.running or lane.waiting, "a lane without jobs is forgotten"
            assert lane.running <= workers._per_tenant
            assert len(lane.waiting) <= pool.queue
            if lane.waiting:
                assert workers._running == pool.threads or lane.running == workers._per_tenant
        stand = {(lane.running, lane) for lane in lanes.values() if lane.waiting}
        assert {(place, lane) for place, turn in enumerate(workers._turns) for lane in turn} == stand


def watch(workers: Workers) -> threading.Semaphore:
    """Say, by a semaphore, when a thread has handed over what came of a job and has taken the next, or none."""
    turned, following = threading.Semaphore(0), workers._next

    def watched(lane: Any) -> Any:
        following_job = following(lane)
        turned.release()
        return following_job

    workers._next = watched  # type: ignore[method-assign]
    return turned


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds that nothing tells of."""
    async with asyncio.timeout(LONG):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


@pytest.fixture
def logged() -> Iterator[Any]:
    """What was logged: level, text, and the tenant for whom it was. A test reads all of it."""
    lines: SimpleQueue[tuple[str, str, str | None]] = SimpleQueue()

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            context = current_context(None)
            crash = f": {record.exc_info[1]}" if record.exc_info else ""
            record.exc_info = None  # pytest keeps records, and with them it would all that is in a traceback
            lines.put((record.levelname, record.getMessage() + crash, context and context.tenant))

    handler = Noting()
    logger = logging.getLogger("asgi_context")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
    assert lines.empty()


async def next_line(logged: Any) -> Any:
    return await asyncio.to_thread(logged.get, timeout=LONG)


LOST = "the result of a job of the pool 'tool' is lost: its caller was cancelled"
FAILED = "a job of the pool 'tool' failed, and nobody hears of it: its caller was cancelled"


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


def test_a_pool_needs_a_name() -> None:
    with pytest.raises((TypeError, ValueError), match="a str that is not empty"):
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


async def test_what_would_run_later_is_refused(asyncio_only: None) -> None:
    async def later() -> None: ...

    def generator() -> Any:
        yield

    async with site(tool=1) as web:
        for wrong in (later, generator, partial(later)):
            with pytest.raises(TypeError, match=r"is a (coroutine|generator) function"):
                await web.ask("acme", wrong)
        with pytest.raises(TypeError, match="the job must be callable, not int"):
            await web.ask("acme", 3)


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


@pytest.mark.parametrize("error", [PoolFullError, PoolWaitError, PoolClosedError, PoolNotFoundError])
def test_errors_of_pools_are_of_one_tree_and_name_the_pool(error: type[PoolError]) -> None:
    made = error("tool")
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


# Fairness


async def finish(*pairs: tuple[Job, asyncio.Task[Any]]) -> None:
    for job, task in pairs:
        assert job.has_started()
        job.go.set()
        await task


async def test_a_flood_of_one_tenant_does_not_hold_up_anothers_job(asyncio_only: None) -> None:
    log: list[Any] = []
    async with site(tool=2) as web:
        flood = [Job(("acme", number), log) for number in range(50)]
        flooding = [await web.start("acme", job) for job in flood]
        other = Job("globex", log)
        task = await web.start("globex", other)
        assert flood[0].has_started()
        assert flood[1].has_started()
        flood[1].go.set()
        assert other.has_started(), "before 48 that asked earlier"
        assert len(log) == 3
        later = Job("globex again", log)
        again = await web.start("globex", later)
        flood[0].go.set()
        assert flood[2].has_started(), "each has one of the two threads"
        assert not later.started.is_set()
        other.go.set()
        assert later.has_started()
        for job in (later, *flood):
            job.go.set()
        await asyncio.gather(task, again, *flooding)
        assert log[:2] in ([("acme", 0), ("acme", 1)], [("acme", 1), ("acme", 0)])
        assert log[2:5] == ["globex", ("acme", 2), "globex again"]
        # Two threads note their starts, so that neighbours may change places.
        assert [abs(place - number) <= 1 for number, (_, place) in enumerate(log[5:], 3)] == [True] * 47


async def test_equals_take_turns_and_jobs_of_one_tenant_keep_their_order(asyncio_only: None) -> None:
    log: list[Any] = []
    async with site(tool=1) as web:
        jobs = [Job(name, log) for name in ("a1", "a2", "a3", "b1", "b2", "c1", "c2", "-1", "-2")]
        tenants = {"a": "acme", "b": "globex", "c": "initech", "-": None}
        tasks = [await web.start(tenants[job.name[0]], job) for job in jobs]
        for job in jobs:
            job.go.set()
        await asyncio.gather(*tasks)
    assert log == ["a1", "b1", "c1", "-1", "a2", "b2", "c2", "-2", "a3"]


async def test_a_free_thread_goes_to_the_tenant_that_has_the_fewest_running(asyncio_only: None) -> None:
    log: list[Any] = []
    async with site(tool=4) as web:
        names = ["a1", "a2", "a3", "b1", "a4", "b2", "c1", "b3"]
        jobs = {name: Job(name, log) for name in names}
        tenants = {"a": "acme", "b": "globex", "c": "initech"}
        tasks = {name: await web.start(tenants[name[0]], jobs[name]) for name in names}
        for name in names[:4]:
            assert jobs[name].has_started()
        for ended, started in (("b1", "c1"), ("a1", "b2"), ("a2", "b3"), ("b2", "a4")):
            # acme runs three of four at first, so that its fourth comes last though it was asked for first.
            jobs[ended].go.set()
            await tasks[ended]
            assert jobs[started].has_started(), (ended, started, log)
        for job in jobs.values():
            job.go.set()
        await asyncio.gather(*tasks.values())


async def test_a_limit_per_tenant_leaves_threads_to_the_others(asyncio_only: None) -> None:
    async with site(tool=Pool(3, per_tenant=2)) as web:
        first, second, third, other = (Job(number) for number in range(4))
        tasks = [await web.start("acme", job) for job in (first, second, third)]
        assert first.has_started()
        assert second.has_started()
        tasks.append(await web.start("globex", other))
        assert other.has_started(), "at once: one thread was left"
        turned = watch(web.pools["tool"])
        other.go.set()
        assert turned.acquire(timeout=LONG)
        assert not third.started.is_set(), "that thread stays free"
        assert_invariants(web.pools["tool"])
        first.go.set()
        assert third.has_started()
        second.go.set()
        third.go.set()
        await asyncio.gather(*tasks)


async def test_what_bears_no_tenant_counts_as_one(asyncio_only: None) -> None:
    async with site(tool=Pool(2, per_tenant=1, queue=1)) as web:
        first, second, other = Job(1), Job(2), Job(3)
        tasks = [await web.start(None, first), await web.start(None, second)]
        with pytest.raises(PoolFullError):
            await web.ask(None, int)
        tasks.append(await web.start("None", other))
        assert other.has_started(), "a tenant of that name is another"
        assert not second.started.is_set()
        for job in (first, second, other):
            job.go.set()
        assert await asyncio.gather(*tasks) == [(1, None), (2, None), (3, "None")]


async def test_only_a_tenants_own_queue_fills(asyncio_only: None) -> None:
    async with site(tool=Pool(1, queue=2)) as web:
        jobs = [Job(number) for number in range(3)]
        tasks = [await web.start("acme", job) for job in jobs]
        for _ in range(2):
            with pytest.raises(PoolFullError, match="too many jobs of this tenant wait for the pool 'tool'"):
                await web.ask("acme", int)
        others = [await web.start("globex", lambda: "other") for _ in range(2)]
        with pytest.raises(PoolFullError):
            await web.ask("globex", int)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        more = await web.start("acme", lambda: "more")
        with pytest.raises(PoolFullError):
            await web.ask("acme", int)
        jobs[0].go.set()
        jobs[2].go.set()
        assert await asyncio.gather(tasks[0], tasks[2], more, *others) == [
            (0, "acme"),
            (2, "acme"),
            "more",
            "other",
            "other",
        ]
        assert not jobs[1].started.is_set()


async def test_without_a_queue_a_job_runs_at_once_or_not_at_all(asyncio_only: None) -> None:
    async with site(tool=Pool(1, queue=0)) as web:
        busy = Job()
        task = await web.start("acme", busy)
        for tenant in ("acme", "globex", None):
            with pytest.raises(PoolFullError):
                await web.ask(tenant, int)
        assert list(web.pools["tool"]._lanes) == ["acme"], "who was refused leaves nothing"
        busy.go.set()
        await task


class Model:
    """Which job starts when, by the words of the documentation and without a thread."""

    def __init__(self, threads: int, per_tenant: int, queue: int) -> None:
        self.threads, self.per_tenant, self.queue = threads, per_tenant, queue
        self.running: list[tuple[str | None, int]] = []
        self.waiting: list[tuple[str | None, int]] = []
        self.started: list[int] = []
        self.clock = count()
        self.since: dict[str | None, int] = {}  # when a tenant came to stand where it stands among its equals

    def runs(self, tenant: str | None) -> int:
        return sum(running == tenant for running, _ in self.running)

    def waits(self, tenant: str | None) -> int:
        return sum(waiting == tenant for waiting, _ in self.waiting)

    def start(self, tenant: str | None, number: int) -> None:
        self.running.append((tenant, number))
        self.started.append(number)
        self.since[tenant] = next(self.clock)

    def ask(self, tenant: str | None, number: int) -> bool:
        if len(self.running) < self.threads and self.runs(tenant) < self.per_tenant:
            self.start(tenant, number)
            return True
        if self.waits(tenant) == self.queue:
            return False
        if not self.waits(tenant):
            self.since[tenant] = next(self.clock)
        self.waiting.append((tenant, number))
        return True

    def end(self, tenant: str | None, number: int) -> None:
        self.running.remove((tenant, number))
        self.since[tenant] = next(self.clock)
        able = [one for one in self.waiting if self.runs(one[0]) < self.per_tenant]
        if able:
            following = min(able, key=lambda one: (self.runs(one[0]), self.since[one[0]], one[1]))
            self.waiting.remove(following)
            self.start(*following)


class Play:
    """Does with a pool what it does with the model, one step at a time."""

    def __init__(self, threads: int, per_tenant: int, queue: int) -> None:
        self.model = Model(threads, per_tenant, queue)
        self.workers = Workers("model", Pool(threads, per_tenant, queue), LONG)
        self.turned = watch(self.workers)
        self.jobs: list[Job] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.log: list[Any] = []

    async def ask(self, pick: int) -> None:
        tenant = (None, "acme", "globex", "initech")[pick % 4]
        number = len(self.jobs)
        self.jobs.append(Job(number, self.log))
        self.tasks.append(asyncio.create_task(self.workers.run(self.jobs[-1], tenant)))
        await asyncio.sleep(0)
        if not self.model.ask(tenant, number):
            with pytest.raises(PoolFullError):
                await self.tasks[number]

    async def end(self, pick: int) -> None:
        if self.model.running:
            tenant, number = self.model.running[pick % len(self.model.running)]
            self.jobs[number].go.set()
            assert self.turned.acquire(timeout=LONG)
            self.model.end(tenant, number)
            if not self.tasks[number].cancelled():
                assert await self.tasks[number] == (number, None)

    async def cancel(self, pick: int) -> None:
        # Also callers of jobs that run, or have run.
        if self.tasks:
            number = pick % len(self.tasks)
            if self.tasks[number].cancel():
                with pytest.raises(asyncio.CancelledError):
                    await self.tasks[number]
            self.model.waiting = [one for one in self.model.waiting if one[1] != number]

    async def run(self, steps: list[tuple[str, int]]) -> None:
        for step, pick in steps:
            await getattr(self, step)(pick)
            self.check()
        while self.model.running:
            await self.end(0)
            self.check()
        await self.workers.close()
        assert_empty(self.workers)

    def check(self) -> None:
        for number in self.model.started[-1:]:
            assert self.jobs[number].has_started()
        assert self.log == self.model.started
        assert_invariants(self.workers)
        assert self.workers._running == len(self.model.running)


@given(
    threads=st.integers(1, 4),
    per_tenant=st.integers(1, 4),
    queue=st.integers(0, 3),
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "ask", "end", "end", "cancel"]), st.integers(0, 99)), max_size=40
    ),
)
def test_jobs_start_as_a_simple_model_says(
    threads: int, per_tenant: int, queue: int, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(Play(threads, min(per_tenant, threads), queue).run(steps))


@pytest.mark.parametrize("seed", range(10))
def test_jobs_start_as_a_simple_model_says_in_long_walks(seed: int) -> None:
    rng = Random(seed)
    threads = rng.randint(1, 6)
    steps = [(rng.choice(["ask", "ask", "end", "cancel"]), rng.randrange(1000)) for _ in range(300)]
    asyncio.run(Play(threads, rng.randint(1, threads), rng.randint(0, 10)).run(steps))


# Callers that are cancelled


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])  # not awaited itself: this task would hold on to the error for a moment
    assert task.cancelled()


async def test_a_job_that_waits_is_dropped_with_its_caller(asyncio_only: None, logged: Any) -> None:
    log: list[Any] = []
    async with site(tool=1) as web:
        jobs = [Job(number, log) for number in range(5)]
        thing = Thing()
        alive = weakref.ref(thing)
        tenants = ["acme", "acme", "acme", "globex", "globex"]
        tasks = [await web.start(tenant, job, thing) for tenant, job in zip(tenants, jobs, strict=True)]
        alone = await web.start("initech", Job("alone", log), thing)
        del thing
        for task in (tasks[1], alone, tasks[4]):
            await cancelled(task)
            assert_invariants(web.pools["tool"])
        assert list(web.pools["tool"]._lanes) == ["acme", "globex"]
        for job in jobs:
            job.go.set()
        await asyncio.gather(tasks[0], tasks[2], tasks[3])
        assert log == [0, 3, 2]
        del tasks, alone, task, jobs, job
    gc.collect()
    assert alive() is None


async def test_what_a_waiting_job_holds_goes_with_its_caller_though_the_pool_is_busy(asyncio_only: None) -> None:
    async with site(tool=1) as web:
        busy = Job()
        task = await web.start("acme", busy)
        thing = Thing()
        alive = weakref.ref(thing)
        dropped = await web.start("acme", id, thing)
        del thing
        await cancelled(dropped)
        del dropped
        gc.collect()
        assert alive() is None
        busy.go.set()
        await task


class Held(SimpleQueue[Any]):
    """An inbox at which a thread is held up when it has taken a job but has not looked at it."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item = super().get(block, timeout)
        assert self.go.wait(LONG)
        return item


async def test_a_job_whose_thread_has_not_begun_with_it_is_dropped_as_well(asyncio_only: None, logged: Any) -> None:
    async with site(tool=1) as web:
        workers = web.pools["tool"]
        workers._inbox = inbox = Held()
        turned = watch(workers)
        job = Job()
        await cancelled(await web.start("acme", job))
        assert_invariants(workers)
        inbox.go.set()
        assert turned.acquire(timeout=LONG)
        assert not job.started.is_set()
        assert workers._lanes == {}
        assert await web.ask("acme", lambda: "next") == "next"


async def test_a_job_that_runs_goes_on_for_its_tenant_and_what_comes_of_it_is_logged(
    asyncio_only: None, logged: Any
) -> None:
    async with site(tool=1) as web:
        seen: list[Any] = []
        job = Job()

        def noting() -> Any:
            seen.append(job())

        task = await web.start("acme", noting)
        assert job.has_started()
        await cancelled(task)
        waiting = await web.start("acme", lambda: list(seen))
        assert_invariants(web.pools["tool"])
        job.go.set()
        assert await waiting == [("job", "acme")], "it kept its thread to the end, and knew for whom it ran"
        assert await next_line(logged) == ("WARNING", LOST, "acme")


async def test_an_error_that_no_caller_is_left_for_is_logged_and_escaped(asyncio_only: None, logged: Any) -> None:
    for error, text in (
        (ValueError("two\nlines"), r"builtins.ValueError: two\nlines"),
        (SystemExit(3), "asgi_context.errors.JobError: the job raised SystemExit, which"),
    ):
        async with site(tool=1) as web:
            job = Job(error=error)
            task = await web.start("globex", job)
            assert job.has_started()
            await cancelled(task)
            job.go.set()
            level, line, tenant = await next_line(logged)
            assert (level, tenant) == ("ERROR", "globex")
            assert line.startswith(f"{FAILED}: {text}")


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, ("WARNING", LOST, "acme")), (KeyError("k"), ("ERROR", f"{FAILED}: builtins.KeyError: 'k'", "acme"))],
)
async def test_what_came_just_before_the_caller_was_cancelled_is_logged_too(
    asyncio_only: None, logged: Any, error: Exception | None, expected: Any
) -> None:
    """The result is there, but the caller has not been woken yet."""
    async with site(tool=1) as web:
        turned = watch(web.pools["tool"])
        job = Job(error=error)
        task = await web.start("acme", job)
        job.go.set()
        assert turned.acquire(timeout=LONG), "handed over, while this task keeps the loop from seeing it"
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await next_line(logged) == expected


async def test_a_timeout_around_a_job_is_the_callers(asyncio_only: None, logged: Any) -> None:
    async with site(tool=1) as web:
        job = Job()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(web.ask("acme", job), 0.01)
        job.go.set()
        if job.started.is_set():  # it may have been too slow to begin
            assert await next_line(logged) == ("WARNING", LOST, "acme")


# Jobs that ask for pools


def from_job(loop: asyncio.AbstractEventLoop, func: Callable[[], Any]) -> Any:
    """Wait in a job for what the event loop does."""

    async def later() -> Any:
        return await func()

    return asyncio.run_coroutine_threadsafe(later(), loop).result(LONG)


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


async def test_a_job_may_wait_for_another_pool_and_not_from_there_for_its_own(asyncio_only: None) -> None:
    loop = asyncio.get_running_loop()

    def job(*path: str) -> Any:
        if not path:
            return current_context().tenant
        return from_job(loop, lambda: run_in_pool(path[0], job, *path[1:]))

    async with site(a=1, b=1, c=1) as web:
        assert await asyncio.wait_for(web.ask("acme", job, "b", "c", pool="a"), LONG) == "acme"
        for path in (["b", "a"], ["b", "c", "a"], ["b", "c", "b"]):
            with pytest.raises(PoolWaitError) as caught:
                await asyncio.wait_for(web.ask("acme", job, *path, pool="a"), LONG)
            assert caught.value.pool == path[-1]


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

    async with site(tool=1, other=1) as web:
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


# Shutdown and opening


LIFESPAN = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]


async def test_pools_live_as_long_as_the_lifespan(asyncio_only: None) -> None:
    log: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            log.append(await run_in_pool("tool", lambda: current_context().tenant))
            scope["test.later"].append(asyncio.create_task(later()))
            return
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await run(middleware, http(*who("acme"), **{"test.later": tasks}))
            else:
                log.append(len(threads_of(workers)))
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def later() -> Any:
        await go.wait()
        return await run_in_pool("tool", int)

    for _ in range(2):  # a second lifespan opens them again
        tasks: list[Any] = []
        go = asyncio.Event()
        middleware = ContextMiddleware(app, tenant=TENANT, pools={"tool": 2})
        workers = middleware._services.pools["tool"]
        for _ in range(2):
            exchange = await run(middleware, {"type": "lifespan"}, LIFESPAN)
            assert [message["type"] for message in exchange.sent] == [
                "lifespan.startup.complete",
                "lifespan.shutdown.complete",
            ]
            assert_empty(workers)
        go.set()
        for task in tasks:
            with pytest.raises(PoolClosedError, match="the pool 'tool' was shut down with the app's lifespan"):
                await task
    assert log == ["acme", 1] * 4


async def test_without_a_lifespan_the_first_request_opens_them(asyncio_only: None) -> None:
    async with site(tool=1) as web:
        assert await web.ask("acme", int) == 0
        await web.middleware.close()
        assert_empty(web.pools["tool"])
        assert await web.ask("acme", int) == 0, "again"
        await web.middleware.close()

        async def handler() -> Any:
            await web.middleware.close()
            with pytest.raises(PoolClosedError) as caught:
                await run_in_pool("tool", int)
            return caught.value.pool

        assert await web.handle("acme", handler) == "tool"
        assert web.pools["tool"]._lanes == {}


async def test_on_trio_a_middleware_with_pools_opens_and_closes(trio_only: None) -> None:
    middleware = ContextMiddleware(hello, tenant=TENANT, pools={"tool": 1})
    exchange = await run(middleware, http(*who()))
    assert exchange.status == 200
    await middleware.close()
    assert isinstance(await run(middleware, http(*who())), Exchange)
    await middleware.close()


async def test_closing_waits_for_jobs_that_run_and_wait_and_for_the_loop_without_blocking_it(
    asyncio_only: None, logged: Any
) -> None:
    loop = asyncio.get_running_loop()
    log: list[Any] = []
    async with site(tool=Pool(2, per_tenant=1)) as web:
        first = Job("first", log)

        def needing() -> Any:
            return first(), from_job(loop, partial(asyncio.sleep, 0, "from the loop"))

        tasks = [await web.start("acme", needing)]
        tasks += [await web.start("acme", lambda number=number: log.append(number)) for number in range(3)]
        turned = watch(web.pools["tool"])
        await web.ask("globex", int)
        assert turned.acquire(timeout=LONG)
        assert first.has_started()
        closing = asyncio.create_task(web.middleware.close())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
        assert web.pools["tool"]._closed
        first.go.set()
        await asyncio.wait_for(closing, LONG)
        assert await asyncio.gather(*tasks) == [(("first", "acme"), "from the loop"), None, None, None]
        assert log == ["first", 0, 1, 2]
        assert_empty(web.pools["tool"])


async def test_closing_waits_for_the_last_job_and_not_for_the_first(asyncio_only: None) -> None:
    async with site(tool=3) as web:
        turned = watch(web.pools["tool"])
        jobs = [Job(number) for number in range(3)]
        tasks = [await web.start("acme", job) for job in jobs]
        closing = asyncio.create_task(web.middleware.close())
        await until(lambda: web.pools["tool"]._on_idle is not None)
        for job, task in zip(jobs[:2], tasks[:2], strict=True):
            await finish((job, task))
            assert turned.acquire(timeout=LONG)
            for _ in range(10):
                await asyncio.sleep(0)
            assert not closing.done()
        await finish((jobs[2], tasks[2]))
        await asyncio.wait_for(closing, LONG)


async def test_nothing_new_is_taken_while_a_pool_closes(asyncio_only: None) -> None:
    async with site(tool=2) as web:
        job, go = Job(), asyncio.Event()

        async def handler() -> Any:
            await go.wait()
            return await run_in_pool("tool", int)

        late = asyncio.create_task(web.handle("acme", handler))
        task = await web.start("acme", job)
        closing = asyncio.create_task(web.middleware.close())
        await until(lambda: web.pools["tool"]._closed)
        go.set()
        with pytest.raises(PoolClosedError):
            await late
        assert not closing.done()
        job.go.set()
        await asyncio.gather(closing, task)


async def test_closing_takes_no_longer_than_its_timeout_and_fails_what_still_waits(
    asyncio_only: None, logged: Any
) -> None:
    async with site(close_timeout=0.01, tool=1) as web:
        job, never = Job("slow"), Job("never")
        task = await web.start("acme", job)
        waiting = [await web.start(tenant, never) for tenant in ("acme", "acme", "globex")]
        assert job.has_started()
        await asyncio.wait_for(web.middleware.close(), LONG)
        assert await next_line(logged) == ("WARNING", "the pool 'tool' is shut down, and 1 of its jobs still run", None)
        for one in waiting:
            with pytest.raises(PoolClosedError, match="and the job did not run"):
                await one
        assert_invariants(web.pools["tool"])
        assert list(web.pools["tool"]._lanes) == ["acme"]
        assert not task.done()
        job.go.set()
        assert await task == ("slow", "acme"), "it was left to itself, and its caller still got what came of it"
        assert not never.started.is_set()
        assert_empty(web.pools["tool"])


async def test_closing_ends_threads_that_are_free_while_others_are_busy(asyncio_only: None, logged: Any) -> None:
    async with site(close_timeout=0.01, tool=3) as web:
        workers = web.pools["tool"]
        jobs = [Job(number) for number in range(3)]
        tasks = [await web.start("acme", job) for job in jobs]
        turned = watch(workers)
        await finish(*zip(jobs[:2], tasks[:2], strict=True))
        assert turned.acquire(timeout=LONG)
        assert turned.acquire(timeout=LONG)
        before = threads_of(workers)
        assert len(before) == 3
        await web.middleware.close()
        await next_line(logged)
        for thread in before:
            if thread is not jobs[2].thread:
                thread.join(LONG)
        assert threads_of(workers) == [jobs[2].thread]
        await finish((jobs[2], tasks[2]))


async def test_opened_again_a_pool_counts_the_jobs_of_before_that_still_run(asyncio_only: None, logged: Any) -> None:
    async with site(close_timeout=0.01, tool=Pool(2, per_tenant=1)) as web:
        workers = web.pools["tool"]
        old = Job("old")
        task = await web.start("acme", old)
        assert old.has_started()
        await web.middleware.close()
        await next_line(logged)
        new, other = Job("new"), Job("other")
        tasks = [await web.start("acme", new), await web.start("globex", other)]
        assert other.has_started()
        assert not new.started.is_set()
        assert_invariants(workers)
        assert workers._alive == 2
        old.go.set()
        assert new.has_started(), "in the thread of the old one"
        assert_invariants(workers)
        new.go.set()
        other.go.set()
        assert await asyncio.gather(task, *tasks) == [("old", "acme"), ("new", "acme"), ("other", "globex")]
        await workers.close()
        assert_empty(workers)


async def test_opened_again_a_thread_of_before_stays_when_its_job_ends(asyncio_only: None, logged: Any) -> None:
    async with site(close_timeout=0.01, tool=1) as web:
        old = Job()
        turned = watch(web.pools["tool"])
        task = await web.start("acme", old)
        assert old.has_started()
        await web.middleware.close()
        await next_line(logged)
        await web.middleware.open()
        before = threads_of(web.pools["tool"])
        await finish((old, task))
        assert turned.acquire(timeout=LONG)
        assert await web.ask("acme", threading.current_thread) == before[0]


async def test_pools_close_from_the_last_to_the_first_while_jobs_use_those_before(asyncio_only: None) -> None:
    loop = asyncio.get_running_loop()
    async with site(tool=1, user=1) as web:
        job = Job()

        def using() -> Any:
            job()
            return from_job(loop, lambda: run_in_pool("tool", lambda: current_context().tenant))

        task = await web.start("acme", using, pool="user")
        closing = asyncio.create_task(web.middleware.close())
        await until(lambda: web.pools["user"]._closed)
        job.go.set()
        await asyncio.wait_for(closing, LONG)
        assert await task == "acme"


# Event loops that end, and several at a time


def abandoned(web: Site, *asks: tuple[str, Job]) -> list[asyncio.Task[Any]]:
    """Ask from an event loop that is closed then."""
    loop = asyncio.new_event_loop()

    async def main() -> list[asyncio.Task[Any]]:
        tasks = [await web.start(tenant, job) for tenant, job in asks]
        assert asks[0][1].has_started()
        return tasks

    tasks = loop.run_until_complete(main())
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    return tasks


@pytest.mark.parametrize(("error", "level", "text"), [(None, "WARNING", LOST), (KeyError("k"), "ERROR", FAILED)])
def test_what_comes_of_a_job_after_its_loop_was_closed_is_logged(
    logged: Any, error: Exception | None, level: str, text: str
) -> None:
    web = Site(tool=1)
    turned = watch(web.pools["tool"])
    job = Job(error=error)
    tasks = abandoned(web, ("acme", job))
    job.go.set()
    assert turned.acquire(timeout=LONG)
    seen, line, tenant = logged.get(timeout=LONG)
    # Its text may name another reason than a cancellation.
    assert (seen, line[:30], tenant) == (level, text[:30], "acme")
    assert asyncio.run(web.ask("globex", lambda: "next")) == "next", "the thread goes on"
    asyncio.run(web.middleware.close())
    assert_empty(web.pools["tool"])
    del tasks


def test_closing_fails_jobs_that_wait_whose_loop_was_closed(logged: Any) -> None:
    web = Site(close_timeout=0.01, tool=1)
    turned = watch(web.pools["tool"])
    job, never = Job(), Job()
    tasks = abandoned(web, ("acme", job), ("globex", never))
    asyncio.run(web.middleware.close())
    assert logged.get(timeout=LONG)[1].startswith("the pool 'tool' is shut down")
    level, line, tenant = logged.get(timeout=LONG)
    assert (level, tenant) == ("ERROR", "globex")
    assert "PoolClosedError" in line
    job.go.set()
    assert turned.acquire(timeout=LONG)
    assert logged.get(timeout=LONG)[2] == "acme"
    assert not never.started.is_set()
    assert_empty(web.pools["tool"])
    del tasks


def in_loops(number: int, main: Callable[[int], Any]) -> None:
    """Run event loops in threads of their own, and see that none fails."""
    with concurrent.futures.ThreadPoolExecutor(number) as threads:
        for future in [threads.submit(asyncio.run, main(each)) for each in range(number)]:
            future.result(3 * LONG)


def test_event_loops_in_several_threads_share_a_pool_fairly_and_each_gets_its_own() -> None:
    web = Site(tool=Pool(3, per_tenant=2, queue=10**6))
    asyncio.run(web.middleware.open())
    ran: list[Any] = []

    def job(number: int) -> Any:
        ran.append((current_context().tenant, number))
        return current_context().tenant, number

    async def main(loop: int) -> None:
        asks = [(f"tenant{number % 5}", 1000 * loop + number) for number in range(200)]
        tasks = [asyncio.create_task(web.ask(tenant, job, number)) for tenant, number in asks]
        await asyncio.sleep(0)
        for task in tasks[::10]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result for result in results if not isinstance(result, asyncio.CancelledError)] == [
            ask for ask, task in zip(asks, tasks, strict=True) if not task.cancelled()
        ]
        assert results[1] == asks[1]

    in_loops(4, main)
    asyncio.run(web.middleware.close())
    assert_empty(web.pools["tool"])
    assert max(Counter(ran).values()) == 1
    assert len(ran) >= 4 * 180


def test_a_flood_from_one_loop_does_not_hold_up_a_job_of_another() -> None:
    web = Site(tool=1)
    asyncio.run(web.middleware.open())
    flooded, ended = threading.Event(), threading.Event()
    first, log = Job("flood", log := []), log  # noqa: PLW0127

    async def main(loop: int) -> None:
        if loop == 0:
            tasks = [await web.start("acme", first)]
            tasks += [await web.start("acme", log.append, number) for number in range(20)]
            flooded.set()
            await asyncio.to_thread(ended.wait, LONG)
            first.go.set()
            await asyncio.gather(*tasks)
        else:
            await asyncio.to_thread(flooded.wait, LONG)
            task = await web.start("globex", log.append, "other")
            ended.set()
            await task

    in_loops(2, main)
    asyncio.run(web.middleware.close())
    assert_empty(web.pools["tool"])
    assert log == ["flood", "other", *range(20)]


def test_closing_in_one_loop_fails_what_waits_in_another() -> None:
    web = Site(close_timeout=0.01, tool=1)
    asyncio.run(web.middleware.open())
    asked, closed = threading.Event(), threading.Event()
    job = Job()

    async def main(loop: int) -> None:
        if loop == 0:
            running, waiting = await web.start("acme", job), await web.start("acme", int)
            asked.set()
            with pytest.raises(PoolClosedError):
                await asyncio.wait_for(waiting, LONG)
            await asyncio.to_thread(closed.wait, LONG)
            job.go.set()
            assert await running == ("job", "acme")
        else:
            await asyncio.to_thread(asked.wait, LONG)
            await web.middleware.close()
            closed.set()

    in_loops(2, main)
    assert_empty(web.pools["tool"])


# What is left


async def test_a_thread_that_cannot_be_started_is_the_callers_error_and_leaves_nothing(
    asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    async with site(tool=2) as web:
        with monkeypatch.context() as patched:
            patched.setattr("asgi_context._pools.Thread", Never)
            for tenant in ("acme", "acme", "globex"):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await web.ask(tenant, int)
            assert_invariants(web.pools["tool"])
            assert (web.pools["tool"]._lanes, web.pools["tool"]._alive) == ({}, 0)
        assert await web.ask("acme", int) == 0


async def test_nothing_that_a_job_held_is_left_while_its_thread_waits_for_the_next(asyncio_only: None) -> None:
    alive: list[weakref.ref[Any]] = []

    def note(thing: Any) -> Any:
        alive.append(weakref.ref(thing))
        return thing

    def job(*, given: Thing) -> Thing:
        note(contextvars.copy_context())
        return note(Thing())

    async def handler() -> None:
        mark.set(note(Thing()))
        given = note(Thing())
        for _ in range(2):
            await run_in_pool("tool", job, given=given)

    async with site(tool=1) as web:
        turned = watch(web.pools["tool"])
        gc.collect()
        gc.disable()
        try:
            await asyncio.create_task(web.handle("acme", handler))
            assert turned.acquire(timeout=LONG)
            assert turned.acquire(timeout=LONG)
            with web.pools["tool"]._lock:  # so the thread has let go of it
                pass
            await asyncio.sleep(0)
            left = [ref() for ref in alive if ref() is not None]
        finally:
            gc.enable()
        assert left == [], "also without a search for rings"
        assert len(alive) == 6


async def test_nothing_is_left_of_jobs_that_fail_or_outlive_their_callers(asyncio_only: None, logged: Any) -> None:
    alive: list[weakref.ref[Any]] = []
    slow = Job()

    def job(thing: Thing, error: bool) -> Any:
        slow()
        alive.extend((weakref.ref(thing), weakref.ref(contextvars.copy_context())))
        if error:
            raise ValueError
        return thing

    async with site(tool=3) as web:
        turned = watch(web.pools["tool"])
        thing = Thing()
        tasks = [await web.start("acme", job, thing, error) for error in (True, False, True)]
        del thing
        assert slow.has_started()
        await until(lambda: len(slow.log) == 3)
        await cancelled(tasks[1])
        await cancelled(tasks[2])
        slow.go.set()
        await asyncio.wait(tasks)
        assert isinstance(tasks[0].exception(), ValueError)
        tasks.clear()
        for _ in range(3):
            assert turned.acquire(timeout=LONG)
        assert sorted([(await next_line(logged))[0], (await next_line(logged))[0]]) == ["ERROR", "WARNING"]
        with web.pools["tool"]._lock:
            pass
        await asyncio.sleep(0)
        gc.collect()
        assert len(alive) == 6
        assert [ref() for ref in alive if ref() is not None] == []


class Storm:
    """Many clients that ask for jobs and lose patience, as a seed decides."""

    def __init__(self, seed: int, web: Site) -> None:
        self.rng = Random(seed)
        self.web = web
        self.numbers = count()
        self.ran: list[int] = []
        self.refused: list[int] = []

    def job(self, tenant: str | None, number: int) -> int:
        context = current_context(None)
        assert (context and context.tenant) == tenant
        self.ran.append(number)
        if number % 7 == 0:
            raise KeyError(number)
        return number

    async def client(self) -> None:
        for _ in range(6):
            number = next(self.numbers)
            tenant = self.rng.choice([None, "acme", "globex", "initech"])
            pool = self.rng.choice(["tool", "user"])
            task = asyncio.create_task(self.web.ask(tenant, self.job, tenant, number, pool=pool))
            if self.rng.random() < 0.5:
                for _ in range(self.rng.randrange(8)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                self.settle(number, task)

    def settle(self, number: int, task: asyncio.Task[Any]) -> None:
        error = task.exception()
        if isinstance(error, PoolFullError):
            self.refused.append(number)
        else:
            assert number in self.ran
            assert error.args == (number,) if number % 7 == 0 else task.result() == number


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_of_jobs_and_cancellations_leaves_nothing_behind(asyncio_only: None, seed: int) -> None:
    async with site(tool=Pool(4, per_tenant=2, queue=5), user=Pool(2, queue=8)) as web:
        storm = Storm(seed, web)
        await asyncio.gather(*(storm.client() for _ in range(40)))
        for workers in web.pools.values():
            assert_invariants(workers)
    assert max(Counter(storm.ran).values()) == 1, "none ran twice"
    assert not set(storm.ran) & set(storm.refused)
