"""Which job runs next: tenants share the threads of a pool fairly."""

import asyncio
import threading
from collections import Counter
from functools import partial
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import (
    LONG,
    Job,
    Site,
    assert_empty,
    assert_invariants,
    from_job,
    in_loops,
    site,
    threads_of,
    watch,
)

from asgi_context import (
    Pool,
    current_context,
    run_in_pool,
)
from asgi_context._pools import Workers
from asgi_context.errors import (
    PoolFullError,
)

pytestmark = pytest.mark.anyio


# Fairness


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


async def test_jobs_one_after_the_other_need_no_queue(asyncio_only: None) -> None:
    async with site(tool=Pool(1, queue=0)) as web:

        async def handler() -> None:
            for number in range(100):
                assert await run_in_pool("tool", abs, -number) == number

        await web.handle("acme", handler)


class Late:
    """A lock that threads of a pool take only when the event loop had time to do what there is to do."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.loop, self.thread = asyncio.get_running_loop(), threading.get_ident()

    def __enter__(self) -> None:
        if threading.get_ident() != self.thread:
            for _ in range(20):
                from_job(self.loop, partial(asyncio.sleep, 0))
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


async def test_a_caller_that_has_its_result_finds_its_thread_free(asyncio_only: None) -> None:
    async with site(tool=Pool(1, queue=0)) as web:
        workers = web.pools["tool"]
        workers._lock = Late(workers._lock)

        async def handler() -> Any:
            return [await run_in_pool("tool", threading.current_thread) for _ in range(3)]

        assert len(set(await web.handle("acme", handler))) == 1


async def test_where_no_more_threads_can_be_had_a_job_waits_for_one_that_is_there(
    asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    async with site(tool=Pool(3, queue=2)) as web:
        log: list[Any] = []
        busy = Job("acme", log)
        with monkeypatch.context() as patched:
            tasks = [await web.start("acme", busy)]
            assert busy.has_started()
            patched.setattr("asgi_context._pools.Thread", Never)
            tasks += [await web.start("acme", log.append, number) for number in range(2)]
            tasks.append(await web.start("globex", log.append, "globex"))
            with pytest.raises(PoolFullError):
                await web.ask("acme", int)
            assert (web.pools["tool"]._running, web.pools["tool"]._alive) == (1, 1)
            busy.go.set()
            await asyncio.gather(*tasks)
            assert log == ["acme", "globex", 0, 1], "as fairly as with all threads"
            await web.ask("acme", int)
            assert len(threads_of(web.pools["tool"])) == 1
        barrier = threading.Barrier(3)
        await asyncio.gather(*(web.ask("acme", barrier.wait, LONG) for _ in range(3)))
        assert_invariants(web.pools["tool"])


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


# Event loops in several threads


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


async def test_what_waits_for_want_of_a_thread_goes_before_what_comes_when_there_are_some_again(
    asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    log: list[Any] = []
    async with site(tool=2) as web:
        first, second, third = jobs = [Job(number, log) for number in range(3)]
        tasks = [await web.start("acme", first)]
        with monkeypatch.context() as patched:
            patched.setattr("asgi_context._pools.Thread", Never)
            tasks.append(await web.start("acme", second))
        tasks.append(await web.start("acme", third))
        for job in jobs:
            job.go.set()
        await asyncio.gather(*tasks)
    assert log == [0, 1, 2]
