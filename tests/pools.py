"""For the tests of pools: jobs that run until they are let go, an app with pools, and what must hold of one."""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from driver import http, run, who

from asgi_context import (
    ContextMiddleware,
    Pool,
    current_context,
    from_header,
    run_in_pool,
)
from asgi_context._pools import Workers

TENANT, USER = from_header("x-tenant-id"), from_header("x-user-id")
LONG = 20  # seconds: no test takes it, but where something hangs


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


async def finish(*pairs: tuple[Job, asyncio.Task[Any]]) -> None:
    for job, task in pairs:
        assert job.has_started()
        job.go.set()
        await task


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])  # not awaited itself: this task would hold on to the error for a moment
    assert task.cancelled()


def from_job(loop: asyncio.AbstractEventLoop, func: Callable[[], Any]) -> Any:
    """Wait in a job for what the event loop does."""

    async def later() -> Any:
        return await func()

    return asyncio.run_coroutine_threadsafe(later(), loop).result(LONG)


def in_loops(number: int, main: Callable[[int], Any]) -> None:
    """Run event loops in threads of their own, and see that none fails."""
    with concurrent.futures.ThreadPoolExecutor(number) as threads:
        for future in [threads.submit(asyncio.run, main(each)) for each in range(number)]:
            future.result(3 * LONG)
