"""Pools of processes: as fair as those of threads, and opened and closed with the app."""

import asyncio
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import process_jobs as jobs
import pytest
from pools import LONG, Site, assert_empty, cancelled, site, until
from process_jobs import Gate

from asgi_context import MemoryStore, Pool, current_context, run_in_pool
from asgi_context._processes import Fleet
from asgi_context.errors import JobPickleError, PoolClosedError, PoolFullError, ProcessDiedError, StoreNotSharedError
from asgi_context.values import set_request_context

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="forks and signals"),
    # That of Python 3.12 to whoever forks in spite of it.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def light_main() -> Iterator[None]:
    """Each process that is spawned would import pytest, as the main module of its parent."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    yield
    sys.modules["__main__"] = main


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


def forked(processes: int, **options: Any) -> Pool:
    return Pool(processes, kind="process", start_method="fork", **options)


def fleet_of(web: Site) -> Fleet:
    fleet: Fleet = web.pools["tool"].fleet
    return fleet


async def started(gate: Gate) -> int:
    return await asyncio.to_thread(gate.started)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kind": "fibre"}, ValueError, "Pool: kind must be one of 'thread', 'process', not 'fibre'"),
        ({"kind": "process", "start_method": "clone"}, ValueError, "Pool: start_method must be one of 'spawn', "),
        ({"kind": "process", "values": "locale"}, TypeError, "Pool: values must be a collection of names"),
        ({"values": ["locale"]}, ValueError, 'Pool: values and start_method are for kind="process"'),
        ({"start_method": "fork"}, ValueError, 'Pool: values and start_method are for kind="process"'),
    ],
)
def test_what_may_be_said_of_a_pool(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Pool(2, **options)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
async def test_a_job_runs_in_another_process_on_behalf_of_its_request(asyncio_only: None, method: Any) -> None:
    async def handler() -> Any:
        set_request_context({"locale": "de", "session": asyncio.get_running_loop()})
        request_id = current_context().request_id
        assert (await run_in_pool("tool", jobs.who))[2] == request_id
        assert await run_in_pool("tool", jobs.take, 1, pool=2) == ((1,), {"pool": 2})
        with pytest.raises(StoreNotSharedError):
            await run_in_pool("tool", jobs.use_state)
        with pytest.raises(JobPickleError):
            await run_in_pool("tool", lambda: None)
        return await run_in_pool("tool", jobs.value, "locale"), await run_in_pool("tool", os.getpid)

    async with site(tool=Pool(1, kind="process", values=("locale",), start_method=method)) as web:
        locale, pid = await web.handle("acme", handler)
        assert locale == "de"
        assert pid != os.getpid()
        assert (await web.ask("globex", jobs.who))[:2] == ("globex", "ann")
        assert await web.ask(None, jobs.who) is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_process_that_dies_is_an_error_of_its_request_alone(asyncio_only: None, gate: Gate) -> None:
    async with site(tool=forked(2)) as web:
        task = await web.start("acme", jobs.wait_at, gate.address, "done")
        await started(gate)
        with pytest.raises(ProcessDiedError):
            await web.ask("globex", jobs.kill)
        assert (await web.ask("globex", jobs.who))[0] == "globex"
        gate.go()
        assert await task == "done"


async def test_tenants_share_the_processes_fairly(asyncio_only: None, gate: Gate) -> None:
    async with site(tool=forked(2, per_tenant=1, queue=1)) as web:
        running = await web.start("acme", jobs.tenant_at, gate.address)
        await started(gate)
        waiting = await web.start("acme", jobs.tenant_at)
        with pytest.raises(PoolFullError):
            await web.ask("acme", jobs.who)
        assert await web.ask("globex", jobs.tenant_at) == "globex"
        assert not waiting.done()
        gate.go()
        assert [await running, await waiting] == ["acme", "acme"]


async def test_a_job_that_waits_is_not_started_once_its_caller_is_cancelled(
    asyncio_only: None, gate: Gate, tmp_path: Path
) -> None:
    async with site(tool=forked(1)) as web:
        running = await web.start("acme", jobs.wait_at, gate.address)
        await started(gate)
        waiting = await web.start("acme", jobs.note_start, tmp_path)
        await cancelled(waiting)
        gate.go()
        await running
        assert await web.ask("acme", jobs.tenant_at) == "acme"
        assert await web.ask("acme", os.listdir, tmp_path) == []


async def test_a_job_that_runs_when_its_caller_is_cancelled_runs_to_its_end_and_what_comes_of_it_is_logged(
    asyncio_only: None, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tool=forked(1)) as web:
        running = await web.start("acme", jobs.wait_at, gate.address)
        pid = await started(gate)
        await cancelled(running)
        gate.go()
        assert await web.ask("acme", os.getpid) == pid
        await until(lambda: "the result of a job of the pool 'tool' is lost" in caplog.text)


async def test_a_pool_can_be_opened_again(asyncio_only: None) -> None:
    web = Site(tool=forked(1))
    pids = []
    for _ in range(2):
        await web.middleware.open()
        pids += [await web.ask("acme", os.getpid), await web.ask("acme", os.getpid)]
        await web.middleware.close()
        assert_empty(web.pools["tool"])
        assert not fleet_of(web).ends()
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_a_job_that_outlasts_the_closing_goes_on_and_its_process_ends_with_it(
    asyncio_only: None, gate: Gate
) -> None:
    web = Site(close_timeout=0.01, tool=forked(1))
    running = await web.start("acme", jobs.wait_at, gate.address, "done")
    await started(gate)
    waiting = await web.start("acme", jobs.who)
    await web.middleware.close()
    with pytest.raises(PoolClosedError):
        await waiting
    gate.go()
    assert await running == "done"
    await until(lambda: not fleet_of(web).ends())


async def test_a_process_that_takes_its_time_to_end_is_waited_for_as_long_as_closing_may_take(
    asyncio_only: None, gate: Gate
) -> None:
    web = Site(close_timeout=0.01, tool=forked(1))
    await web.ask("acme", jobs.linger, gate.address)
    await started(gate)
    await web.middleware.close()
    assert fleet_of(web).ends(), "it is given up"
    gate.go()
    await until(lambda: not fleet_of(web).ends())


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_asks_a_server_to_end_does_not_reach_the_jobs_that_it_finishes(
    asyncio_only: None, gate: Gate, method: Any, number: int
) -> None:
    async with site(tool=Pool(1, kind="process", start_method=method)) as web:
        running = await web.start("acme", jobs.interrupted, gate.address)
        os.kill(await started(gate), number)
        gate.go()
        assert await running is None


def test_a_thread_that_a_pools_job_leaves_behind_does_not_keep_the_interpreter_from_ending() -> None:
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import process_jobs as jobs
from pools import Site
from asgi_context import Pool

async def main():
    web = Site(close_timeout=0.01, tool=Pool(1, kind="process"))
    await web.ask("acme", jobs.leave_a_thread)
    await web.middleware.close()

if __name__ == "__main__":
    asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LONG)
    assert done.returncode == 0, done.stderr


def test_a_pools_job_that_never_ends_does_not_keep_the_interpreter_from_ending() -> None:
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import process_jobs as jobs
from pools import Site
from asgi_context import Pool

async def main():
    web, gate = Site(close_timeout=0.01, tool=Pool(1, kind="process", start_method="fork")), jobs.Gate()
    task = await web.start("acme", jobs.wait_at, gate.address)
    await asyncio.to_thread(gate.started)
    await web.middleware.close()
    print("closed", flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LONG)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


def test_a_middleware_without_such_a_pool_does_not_import_multiprocessing() -> None:
    code = (
        "import sys; from asgi_context import ContextMiddleware, constant\n"
        "ContextMiddleware(lambda *_: None, tenant=constant('a'), pools={'tool': 2})\n"
        "print([name for name in sys.modules if name.startswith('multiprocessing')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LONG)
    assert done.stdout == "[]\n"


def test_a_memory_store_cannot_be_pickled_and_says_so() -> None:
    import pickle

    with pytest.raises(StoreNotSharedError, match="the MemoryStore does not cross"):
        pickle.dumps(MemoryStore())
