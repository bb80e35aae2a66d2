"""The recipe for a bare ``asyncio.Queue``."""

import asyncio
import gc
import logging
import random
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from importlib import import_module
from typing import Any

import pytest
from queue_probes import bound, leave
from queue_recipes import ANN, BOB, SECONDS, recipe

from asgi_context import Identity, MemoryStore, bind_context, current_context, current_state, unbound_context
from asgi_context.errors import ContextNotBoundError, StoreNotBoundError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("asyncio_only")]


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    with recipe("jobs_asyncio", "class Jobs"):
        yield import_module("jobs_asyncio")


@pytest.fixture(scope="module")
def jobs_of(jobs: Any) -> Any:
    """The block, which must not take for ever."""

    @asynccontextmanager
    async def bounded(**options: Any) -> AsyncIterator[Any]:
        async with asyncio.timeout(SECONDS), jobs.Jobs(**options) as made:
            yield made

    return bounded


seen: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


async def see(*more: Any) -> None:
    seen.append((bound(), *more))


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the recipe has logged: in debug mode asyncio has something to say on a busy machine, too."""
    return [record for record in caplog.records if record.name == "jobs_asyncio"]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_job_runs_on_behalf_of_whoever_has_put_it(jobs_of: Any) -> None:
    ids = []

    async def job() -> None:
        ids.append(current_context().request_id)

    async with jobs_of() as jobs:
        with bind_context(ANN) as context:
            jobs.put(see, 1)
            jobs.put(job)
    assert seen == [("acme/ann", 1)]
    assert ids == [context.request_id]


async def test_a_job_that_nobody_has_put_is_nobodys_whoever_has_started_the_workers(jobs_of: Any) -> None:
    async def must_know() -> None:
        with pytest.raises(ContextNotBoundError):
            current_context()
        seen.append("raised")

    with bind_context(BOB):
        async with jobs_of(workers=1) as jobs:
            with bind_context(ANN):
                jobs.put(see)
            with unbound_context():
                jobs.put(see)
                jobs.put(must_know)
    assert seen == [("acme/ann",), (None,), "raised"]


async def test_jobs_of_many_tenants_at_once_each_see_their_own(jobs_of: Any) -> None:
    chance = random.Random(1)

    async def job(whose: str) -> None:
        before = bound()
        await turns(chance.randrange(20))
        seen.append((whose, before, bound()))

    async with jobs_of(workers=5) as jobs:
        for number in chance.choices(range(8), k=100):
            with bind_context(Identity(f"tenant{number}", f"user{number}")):
                jobs.put(job, whose=f"tenant{number}/user{number}")
    assert len(seen) == 100
    assert all(whose == before == after for whose, before, after in seen)


async def test_a_job_that_fails_or_is_cancelled_ends_neither_the_worker_nor_the_next_job(
    jobs_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(BaseException):
        pass

    async def fail() -> None:
        raise ValueError

    async def fail_oddly() -> None:
        raise Odd

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await turns(1)

    async with jobs_of(workers=1) as jobs:
        with bind_context(ANN):
            for job in (fail, fail_oddly, cancelled, cancel_itself):
                jobs.put(job)
        jobs.put(see)
    assert seen == [(None,)]
    failed, cancelled_too = "a job has failed", "a job was cancelled"
    assert [record.message for record in told(caplog)] == [failed, failed, cancelled_too, cancelled_too]


def test_a_job_that_exits_ends_the_loop_as_anywhere(jobs: Any) -> None:
    async def leave_all() -> None:
        raise SystemExit(3)

    async def main() -> None:
        async with asyncio.timeout(SECONDS), jobs.Jobs() as running:
            running.put(leave_all)
            await asyncio.Event().wait()

    with pytest.raises(SystemExit, match="3"):
        asyncio.run(main())


async def test_nothing_is_kept_of_a_job_that_has_ended(jobs_of: Any) -> None:
    kept: ContextVar[object] = ContextVar("kept")
    over = asyncio.Event()
    references: list[weakref.ref[Any]] = []

    class Thing:
        pass

    async def job() -> None:
        kept.set(thing := Thing())
        references.append(weakref.ref(thing))
        over.set()

    async with jobs_of(workers=1) as jobs:
        with bind_context(ANN):
            jobs.put(job)
        await over.wait()
        await turns(10)  # the worker waits for the next one
        gc.collect()
        assert references[0]() is None


async def test_what_a_job_binds_and_forgets_is_gone_with_it(jobs_of: Any) -> None:
    async def leave_something() -> None:
        seen.append(leave(BOB))

    async with jobs_of(workers=1) as jobs:
        with bind_context(ANN):
            jobs.put(leave_something)
        jobs.put(see)
    assert seen == ["bolt/bob", (None,)]


async def test_jobs_have_the_state_of_the_store_that_is_given(jobs_of: Any) -> None:
    async def save() -> None:
        await current_state().update_field("profile", "colour", "green")

    async def no_store() -> None:
        with pytest.raises(StoreNotBoundError):
            current_state()

    store = MemoryStore()
    async with jobs_of(store=store) as jobs, jobs_of() as others:
        with bind_context(ANN, store=MemoryStore()):
            jobs.put(save)
            others.put(no_store)
    with bind_context(ANN, store=store):
        assert await current_state().get_field("profile", "colour") == "green"


async def test_at_the_end_what_takes_too_long_is_cancelled_and_what_waits_is_dropped(
    jobs_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(bound())

    async with jobs_of(workers=2, grace=0) as jobs:
        with bind_context(ANN):
            for job in (wait, wait, see, see, see):
                jobs.put(job)
        await turns(10)
    assert seen == ["acme/ann"] * 2
    assert [record.message for record in told(caplog)] == ["a job was cancelled"] * 2 + ["3 jobs were dropped"]
    assert {record.levelno for record in told(caplog)} == {logging.WARNING}


async def test_a_job_that_fails_when_it_is_cancelled_does_not_hold_up_the_end(
    jobs_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_late() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    async with jobs_of(workers=1, grace=0) as jobs:
        jobs.put(fail_late)
        jobs.put(see)
        await turns(10)
    assert seen == []
    assert [record.message for record in told(caplog)] == ["a job has failed", "1 jobs were dropped"]


@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError])
async def test_where_the_block_fails_nothing_is_waited_for(
    jobs_of: Any, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(error):
        async with jobs_of(workers=1, grace=None) as jobs:
            for job in (asyncio.Event().wait, see):
                jobs.put(job)
            await turns(10)
            raise error
    assert [record.message for record in told(caplog)] == ["a job was cancelled", "1 jobs were dropped"]


async def test_jobs_that_jobs_put_are_waited_for_too(jobs_of: Any) -> None:
    async with jobs_of(workers=1) as jobs:

        async def more() -> None:
            await turns(3)
            jobs.put(see)

        with bind_context(ANN):
            jobs.put(more)
    assert seen == [("acme/ann",)]


async def test_in_threads_jobs_are_refused_unless_the_loop_puts_them(jobs_of: Any) -> None:
    """A queue would take them, and not wake the worker."""
    async with jobs_of(workers=1) as jobs:
        with bind_context(ANN):
            with pytest.raises(RuntimeError, match="no running event loop"):
                await asyncio.to_thread(jobs.put, see)
            await asyncio.to_thread(asyncio.get_running_loop().call_soon_threadsafe, jobs.put, see)
    assert seen == [("acme/ann",)]


async def test_too_many_jobs_are_refused(jobs_of: Any) -> None:
    async with jobs_of(size=2) as jobs:
        jobs.put(see)
        jobs.put(see)
        with pytest.raises(asyncio.QueueFull):
            jobs.put(see)
    assert len(seen) == 2


async def test_the_workers_do_not_hold_on_to_whoever_has_started_them(
    jobs_of: Any, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = asyncio.create_task

    def create_noted(what: Any) -> Any:
        seen.append(bound())
        return create(what)

    monkeypatch.setattr(jobs.asyncio, "create_task", create_noted)
    with bind_context(BOB):
        async with jobs_of(workers=2):
            assert bound() == "bolt/bob"
    assert seen == [None, None]


async def test_outside_of_the_block_jobs_are_refused(jobs: Any) -> None:
    one = jobs.Jobs()
    with pytest.raises(RuntimeError, match="async with"):
        one.put(see)
    for _ in range(2):
        async with one:
            with bind_context(ANN) if seen else nullcontext():
                one.put(see)
        with pytest.raises(RuntimeError, match="async with"):
            one.put(see)
    assert seen == [(None,), ("acme/ann",)]
