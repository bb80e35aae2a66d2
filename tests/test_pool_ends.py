"""How jobs and pools end: callers that leave, shutdown, event loops that were closed, and what is left then."""

import asyncio
import contextvars
import gc
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from queue import SimpleQueue
from random import Random
from typing import Any

import pytest
from driver import Exchange, hello, http, run, who
from pools import (
    LONG,
    TENANT,
    Job,
    Site,
    Thing,
    assert_empty,
    assert_invariants,
    cancelled,
    finish,
    from_job,
    in_loops,
    site,
    threads_of,
    until,
    watch,
)

from asgi_context import (
    ContextMiddleware,
    Pool,
    current_context,
    run_in_pool,
)
from asgi_context.errors import (
    PoolClosedError,
    PoolFullError,
)

pytestmark = pytest.mark.anyio

mark: contextvars.ContextVar[Any] = contextvars.ContextVar("mark", default=None)


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
LOST_LOOP = "the result of a job of the pool 'tool' is lost: its event loop has ended"
FAILED_LOOP = "a job of the pool 'tool' failed, and nobody hears of it: its event loop has ended"


# Callers that are cancelled


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


async def test_a_job_that_waits_is_dropped_with_a_caller_that_is_closed(asyncio_only: None) -> None:
    # As coroutines are that a loop left behind, whenever they are collected: perhaps by a thread that has the lock.
    async with site(tool=1) as web:
        workers, busy, never = web.pools["tool"], Job(), Job("never")
        never.go.set()
        task = await web.start("acme", busy)
        for tenant in ("acme", "globex"):
            asking = workers.run(never, tenant)
            asking.send(None)
            with workers._lock:
                asking.close()
        busy.go.set()
        await task
        assert await web.ask("acme", lambda: "next") == "next"
        assert await web.ask("globex", lambda: "next") == "next"
        assert not never.started.is_set()


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, ("WARNING", LOST, "acme")), (KeyError("k"), ("ERROR", f"{FAILED}: builtins.KeyError: 'k'", "acme"))],
)
async def test_what_comes_of_a_job_that_runs_when_its_caller_is_closed_is_logged(
    asyncio_only: None, logged: Any, error: Exception | None, expected: Any
) -> None:
    async with site(tool=1) as web:
        job = Job(error=error)

        async def handler() -> Any:
            asking = run_in_pool("tool", job)
            asking.send(None)
            return asking

        asking = await web.handle("acme", handler)
        assert job.has_started()
        asking.close()
        job.go.set()
        assert await next_line(logged) == expected
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
        (SystemExit(3), "asgi_context.errors.JobError: SystemExit was raised, which"),
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


async def test_a_shutdown_that_is_cancelled_sends_threads_home_and_fails_what_waits(asyncio_only: None) -> None:
    async with site(tool=Pool(2, per_tenant=1)) as web:
        workers = web.pools["tool"]
        busy, never = Job("busy"), Job("never")
        running, waiting = await web.start("acme", busy), await web.start("acme", never)
        await web.ask("globex", int)
        assert busy.has_started()
        closing = asyncio.create_task(web.middleware.close())
        await until(lambda: workers._on_idle is not None)
        before = threads_of(workers)
        assert len(before) == 2
        await cancelled(closing)
        with pytest.raises(PoolClosedError):
            await asyncio.wait_for(waiting, LONG)
        for thread in before:
            if thread is not busy.thread:
                thread.join(LONG)
        assert threads_of(workers) == [busy.thread]
        await finish((busy, running))
        assert_empty(workers)
        assert not never.started.is_set()


async def test_what_waits_when_a_pool_is_opened_again_while_it_closes_still_runs(asyncio_only: None) -> None:
    async with site(tool=1) as web:
        workers, busy = web.pools["tool"], Job("busy")
        running, waiting = await web.start("acme", busy), await web.start("acme", lambda: "waited")
        closing = asyncio.create_task(workers.close())
        await until(lambda: workers._on_idle is not None)
        workers.open()
        await cancelled(closing)
        assert_invariants(workers)
        await finish((busy, running))
        assert await asyncio.wait_for(waiting, LONG) == "waited"


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


async def test_pools_close_from_the_first_to_the_last_while_jobs_use_those_after(asyncio_only: None) -> None:
    loop = asyncio.get_running_loop()
    async with site(user=1, tool=1) as web:
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


# Event loops that end


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, ("WARNING", LOST_LOOP, "acme")),
        (KeyError("k"), ("ERROR", f"{FAILED_LOOP}: builtins.KeyError: 'k'", "acme")),
    ],
)
def test_what_comes_of_a_job_after_its_loop_was_closed_is_logged(
    logged: Any, error: Exception | None, expected: Any
) -> None:
    web = Site(tool=1)
    turned = watch(web.pools["tool"])
    job = Job(error=error)
    tasks = abandoned(web, ("acme", job))
    job.go.set()
    assert turned.acquire(timeout=LONG)
    assert logged.get(timeout=LONG) == expected
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
    assert line == f"{FAILED_LOOP}: asgi_context.errors.PoolClosedError: {PoolClosedError('tool')}"
    job.go.set()
    assert turned.acquire(timeout=LONG)
    assert logged.get(timeout=LONG) == ("WARNING", LOST_LOOP, "acme")
    assert not never.started.is_set()
    assert_empty(web.pools["tool"])
    del tasks


def test_a_shutdown_whose_loop_was_closed_loses_no_thread(logged: Any) -> None:
    web = Site(tool=1)
    workers, job = web.pools["tool"], Job()
    loop = asyncio.new_event_loop()

    async def main() -> list[asyncio.Task[Any]]:
        task = await web.start("acme", job)
        assert job.has_started()
        closing = asyncio.create_task(web.middleware.close())
        await until(lambda: workers._on_idle is not None)
        return [task, closing]

    tasks = loop.run_until_complete(main())
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    job.go.set()
    assert logged.get(timeout=LONG) == ("WARNING", LOST_LOOP, "acme")
    assert job.thread is not None
    job.thread.join(LONG)
    assert_invariants(workers)
    assert (workers._running, workers._alive) == (0, 0)

    async def again() -> None:
        await web.middleware.open()
        assert await asyncio.wait_for(web.ask("acme", lambda: "next"), LONG) == "next"
        await web.middleware.close()

    asyncio.run(again())
    assert_empty(workers)
    del tasks


class Raising(logging.Handler):
    """A handler, and a filter, of logs that fails."""

    def emit(self, record: logging.LogRecord) -> None:
        raise KeyError("handler")

    def filter(self, record: logging.LogRecord) -> bool:
        raise KeyError("filter")


@contextmanager
def raising(kind: str) -> Iterator[None]:
    logger, bad = logging.getLogger("asgi_context"), Raising()
    if kind == "handler":
        bad.filter = lambda record: True  # type: ignore[method-assign]
        logger.addHandler(bad)
    else:
        logger.addFilter(bad)
    yield
    logger.removeHandler(bad)
    logger.removeFilter(bad)


@pytest.mark.parametrize("kind", ["handler", "filter"])
@pytest.mark.parametrize("error", [None, ValueError()])
def test_a_log_that_fails_costs_no_thread(kind: str, error: Exception | None) -> None:
    web = Site(tool=1)
    job = Job(error=error)
    with raising(kind):
        tasks = abandoned(web, ("acme", job))
        job.go.set()
        # In the same thread, so that what there was to be logged has been.
        assert asyncio.run(asyncio.wait_for(web.ask("acme", threading.current_thread), LONG)) is job.thread
    asyncio.run(web.middleware.close())
    assert_empty(web.pools["tool"])
    del tasks


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
            # Also without a search for rings, and before the thread has another job.
            await until(lambda: not any(ref() for ref in alive))
        finally:
            gc.enable()
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
        gc.collect()
        await until(lambda: not any(ref() for ref in alive))
        assert len(alive) == 6


async def test_an_error_is_gone_with_its_handling(asyncio_only: None) -> None:
    """Also without a search for rings: what a job, its caller and its thread have in hand is in its traceback."""

    def fail(thing: Thing) -> None:
        raise ValueError

    async def handler() -> Any:
        thing = Thing()
        with suppress(ValueError):
            await run_in_pool("tool", fail, thing)
        return weakref.ref(thing)

    async with site(tool=1) as web:
        gc.collect()
        gc.disable()
        try:
            alive = await web.handle("acme", handler)
            await until(lambda: alive() is None)
        finally:
            gc.enable()


async def test_finalizers_of_what_a_job_holds_run_outside_of_the_lock(asyncio_only: None) -> None:
    """One that waits for the event loop, while that waits for the lock, would stop both for ever."""
    left, ended = threading.Event(), threading.Event()
    seen: list[Any] = []

    class Last:
        def __del__(self) -> None:
            free = workers._lock.acquire(blocking=False)
            if free:
                workers._lock.release()
            seen.append((free, threading.current_thread()))
            ended.set()

    async with site(tool=1) as web:
        workers = web.pools["tool"]
        following = workers._next

        def held(lane: Any) -> Any:
            following_job = following(lane)
            assert left.wait(LONG)
            return following_job

        workers._next = held
        task = await web.start("acme", lambda _: threading.current_thread(), Last())
        thread = await task  # the caller has it, while the thread is held up
        del task
        await asyncio.sleep(0)
        gc.collect()
        assert seen == []
        left.set()
        assert ended.wait(LONG), "the thread was the last to let go of it"
        assert seen == [(True, thread)]


async def test_a_pool_that_nobody_refers_to_any_more_ends_its_threads(asyncio_only: None) -> None:
    web = Site(tool=3)
    barrier = threading.Barrier(3)
    await asyncio.gather(*(web.ask("acme", barrier.wait, LONG) for _ in range(3)))
    threads = threads_of(web.pools["tool"])
    assert len(threads) == 3
    del web
    gc.collect()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


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
