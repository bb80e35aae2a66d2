"""Jobs in other processes: they run on behalf of whoever submits them, and of nobody once they are done."""

import asyncio
import concurrent.futures
import contextvars
import gc
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import process_jobs as jobs
import pytest
import redis_servers
from process_jobs import LONG, Gate

from asgi_context import (
    Identity,
    MemoryStore,
    RequestContext,
    SharedState,
    bind_context,
    current_context,
    run_in_executor,
    unbound_context,
)
from asgi_context._blocking import run_on_loop
from asgi_context._processes import Fleet
from asgi_context.errors import (
    ContextClosedError,
    ContextNotBoundError,
    JobError,
    JobPickleError,
    JobTracebackError,
    ProcessContextError,
    ProcessStartError,
    StateUnavailableError,
    StoreNotSharedError,
    UnsupportedLoopError,
)
from asgi_context.processes import ContextProcessPoolExecutor
from asgi_context.redis import RedisStore
from asgi_context.values import request_context, set_request_context, update_request_context

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="forks and signals"),
    # That of Python 3.12 to whoever forks in spite of it.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

ANN, BOB = Identity("acme", "ann"), Identity("globex", "bob")
METHODS = ["spawn", "forkserver", "fork"]


@pytest.fixture(scope="module", autouse=True)
def light_main() -> Iterator[None]:
    """Each process that is spawned would import pytest, as the main module of its parent."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="module", params=METHODS)
def executor(request: pytest.FixtureRequest, light_main: None) -> Iterator[ContextProcessPoolExecutor]:
    context = multiprocessing.get_context(request.param)
    with ContextProcessPoolExecutor(2, context, values=("locale", "theme")) as made:
        yield made


@pytest.fixture(scope="module")
def forked(light_main: None) -> Iterator[ContextProcessPoolExecutor]:
    """For what is the same however processes are started: to fork costs the least."""
    with executor_of(2) as made:
        yield made


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


def executor_of(size: int, method: str = "fork", **options: Any) -> ContextProcessPoolExecutor:
    return ContextProcessPoolExecutor(size, multiprocessing.get_context(method), **options)


def done(future: "Future[Any]") -> Any:
    return future.result(LONG)


def fleet_of(executor: ContextProcessPoolExecutor) -> Fleet:
    return executor._fleet


# What crosses


def test_a_job_runs_on_behalf_of_who_submits_it_and_a_later_one_on_behalf_of_nobody(executor: Any) -> None:
    ann = Identity("acme", "ann", {"roles": ["admin"]}, expires_at=2e9)
    with bind_context(ann, request_id="r1"):
        first = executor.submit(jobs.who)
    with bind_context(BOB):
        request_id = current_context().request_id
        second = executor.submit(jobs.who)
    assert done(first) == ("acme", "ann", "r1", {"roles": ["admin"]})
    assert done(second) == ("globex", "bob", request_id, {})
    assert [done(executor.submit(jobs.who)) for _ in range(4)] == [None] * 4
    with bind_context(Identity("acme")):
        assert done(executor.submit(jobs.who))[:2] == ("acme", None)


def test_what_a_job_leaves_bound_no_later_one_sees(executor: Any) -> None:
    for _ in range(4):
        done(executor.submit(jobs.leave_bound, ANN))
    for _ in range(4):
        assert done(executor.submit(jobs.who)) is None
        assert done(executor.submit(jobs.marked)) == "unset"


@pytest.mark.parametrize("method", METHODS)
def test_a_process_that_is_started_inside_of_a_request_keeps_nothing_of_it(method: str) -> None:
    with executor_of(1, method, values=("locale",)) as executor:
        jobs.mark.set("a request's")
        with bind_context(ANN, values={"locale": "de"}), request_context(locale="fr"):
            assert done(executor.submit(jobs.who))[:2] == ("acme", "ann")
        assert done(executor.submit(jobs.who)) is None
        assert done(executor.submit(jobs.value, "locale")) == "none"
        assert done(executor.submit(jobs.marked)) == "unset"
    jobs.mark.set("unset")


def test_the_values_that_were_named_cross_and_no_others(executor: Any) -> None:
    with bind_context(ANN, values={"locale": "de", "session": threading.Lock()}):
        assert done(executor.submit(jobs.value, "locale")) == "de"
        assert done(executor.submit(jobs.value, "session")) == "none"
        assert done(executor.submit(jobs.value, "theme")) == "none", "it was not set"
        with request_context(theme="dark"):
            job = executor.submit(jobs.value, "theme")
        assert done(job) == "dark", "as they were when it was submitted"
        done(executor.submit(jobs.update, locale="fr"))
        assert done(executor.submit(jobs.value, "locale")) == "de", "they are a copy"
        set_request_context({})
        done(executor.submit(jobs.update, locale="fr"))


def test_values_of_a_block_cross_where_nothing_is_bound(forked: Any) -> None:
    with executor_of(1, values=("locale",)) as executor:
        with pytest.raises(ContextNotBoundError):
            done(executor.submit(jobs.update, locale="fr"))
        with request_context(locale="de"):
            assert done(executor.submit(jobs.value, "locale")) == "de"
            done(executor.submit(jobs.update, locale="fr"))
        with bind_context(ANN), request_context(locale="it"), unbound_context():
            assert done(executor.submit(jobs.value, "locale")) == "none"


def test_what_has_ended_where_a_job_is_submitted_has_ended_in_the_job(forked: Any) -> None:
    with bind_context(ANN, values={"locale": "de"}):
        after = contextvars.copy_context()
    assert done(after.run(forked.submit, jobs.who))[:2] == ("acme", "ann")
    with pytest.raises(ContextClosedError, match="the values bound here ended"):
        done(after.run(forked.submit, jobs.value, "locale"))


def test_what_is_revoked_where_a_job_is_submitted_is_revoked_in_the_job(forked: Any) -> None:
    elsewhere = contextvars.copy_context()
    block = bind_context(ANN)
    elsewhere.run(block.__enter__)
    block.__exit__(None, None, None)
    for job in (jobs.who, jobs.use_state):
        with pytest.raises(ContextClosedError, match="revoked"):
            done(elsewhere.run(forked.submit, job))


def test_arguments_are_unpickled_and_results_pickled_for_whom_the_job_is(forked: Any) -> None:
    with bind_context(ANN):
        assert done(forked.submit(jobs.seen, jobs.Noting())) == "acme"
        job = forked.submit(jobs.Noting)
    assert done(job).seen == "acme"


def test_arguments_of_every_kind_cross_and_come_back(executor: Any) -> None:
    names = {"fn": 1, "self": 2, "func": 3, "args": 4, "kwargs": 5, "context": 6}
    assert done(executor.submit(jobs.take, 1, "two", **names)) == ((1, "two"), names)
    large = os.urandom(3_000_000)
    assert done(executor.submit(jobs.take, large)) == ((large,), {})
    assert done(executor.submit(partial(pow, 2), 10)) == 1024


def test_resources_and_pools_stay_behind(forked: Any) -> None:
    with bind_context(ANN):
        for job, what in ((jobs.use_resource, "resources"), (jobs.use_pool, "pools")):
            with pytest.raises(ProcessContextError, match=f"{what} of a request do not cross") as caught:
                done(forked.submit(job))
            assert caught.value.wanted == what
    with pytest.raises(ContextNotBoundError):
        done(forked.submit(jobs.use_resource))


# Stores


@pytest.fixture(scope="module")
def server() -> Any:
    return redis_servers.shared("redis")


@pytest.fixture
def store(server: Any) -> Iterator[RedisStore]:
    yield server.store(prefix="processes", timeout=10.0)
    for key in (client := server.client()).scan_iter("processes:*"):
        client.delete(key)
    client.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_job_uses_the_state_of_whoever_submits_it_over_redis(store: RedisStore, method: str) -> None:
    with executor_of(1, method) as executor:
        for who, field in ((ANN, "a"), (BOB, "a"), (ANN, "a")):
            with bind_context(who, store=store):
                total = done(executor.submit(jobs.add, field, 2))
        assert total == 4
        with bind_context(ANN, store=store):
            assert done(executor.submit(jobs.add_in_a_loop, "b")) == 1
        with pytest.raises(ContextNotBoundError):
            done(executor.submit(jobs.add, "a", 1))
    assert SharedState(store, "acme", "ann").sync.get("counts") == {"a": 4, "b": 1}
    assert SharedState(store, "globex", "bob").sync.get("counts") == {"a": 2}

    run_on_loop(store.close, LONG, None)


def test_a_server_that_is_down_is_the_error_of_the_jobs_that_ask_it_and_tells_nobody_its_password(forked: Any) -> None:
    down = RedisStore.from_url(f"redis://:hunter2@127.0.0.1:{redis_servers.free_port()}", timeout=1)
    with bind_context(ANN, store=down):
        with pytest.raises(StateUnavailableError) as caught:
            done(forked.submit(jobs.add, "a", 2))
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
        assert done(forked.submit(jobs.who))[:2] == ("acme", "ann")


@pytest.mark.parametrize("method", METHODS)
def test_states_in_memory_do_not_cross_and_it_says_so_where_they_are_asked_for(executor: Any, method: str) -> None:
    with bind_context(ANN, store=MemoryStore()):
        assert done(executor.submit(jobs.no_state))[0] == "acme"
        with pytest.raises(StoreNotSharedError, match="in the memory of the process that made it") as caught:
            done(executor.submit(jobs.use_state))
    assert caught.value.store == "MemoryStore"
    assert "RedisStore.from_url" in str(caught.value)


def test_a_store_over_a_client_of_the_users_does_not_cross(forked: Any) -> None:
    with (
        bind_context(ANN, store=redis_servers.Fake().store()),
        pytest.raises(StoreNotSharedError, match=r"the RedisStore does not .* made with a client"),
    ):
        done(forked.submit(jobs.use_state))


class Locked(MemoryStore):
    def __reduce__(self) -> Any:
        return Locked, (threading.Lock(),)


def test_a_store_that_cannot_be_pickled_does_not_cross(forked: Any) -> None:
    told = r"the Locked does not .*: it cannot be pickled \(TypeError"
    with bind_context(ANN, store=Locked()), pytest.raises(StoreNotSharedError, match=told):
        done(forked.submit(jobs.use_state))


# What comes back


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
def test_what_no_caller_can_be_handed_is_an_error_of_the_job_and_the_process_lives(
    forked: Any, raised: type[BaseException]
) -> None:
    pids = {done(forked.submit(os.getpid)) for _ in range(4)}
    with pytest.raises(JobError, match=raised.__name__) as caught:
        done(forked.submit(jobs.fail, raised("reason")))
    assert raised.__name__ in str(caught.value.__cause__)
    assert done(forked.submit(os.getpid)) in pids


async def test_a_stop_iteration_does_not_hang_who_awaits(forked: Any, asyncio_only: None) -> None:
    with pytest.raises(JobError):
        await asyncio.wait_for(run_in_executor(forked, jobs.fail, StopIteration()), LONG)


def test_an_error_comes_back_as_it_is_with_its_traceback_there_as_its_cause(executor: Any) -> None:
    with pytest.raises(KeyError) as caught:
        done(executor.submit(jobs.fail, KeyError("job")))
    assert caught.value.args == ("job",)
    assert isinstance(caught.value.__cause__, JobTracebackError)
    assert "in fail\n    raise error\nKeyError: 'job'" in str(caught.value.__cause__)
    with pytest.raises(ExceptionGroup) as group:
        done(executor.submit(jobs.fail_with, "group"))
    assert [type(error) for error in group.value.exceptions] == [ValueError, KeyError]


@pytest.mark.parametrize(
    ("kind", "reason"), [("needy", "missing 1 required"), ("holding", "cannot pickle"), ("silent", "")]
)
def test_an_error_that_does_not_cross_is_told_with_its_traceback(forked: Any, kind: str, reason: str) -> None:
    expected = jobs.SilentError if kind == "silent" else JobPickleError
    with pytest.raises(expected) as caught:
        done(forked.submit(jobs.fail_with, kind))
    assert "in fail_with" in str(caught.value.__cause__)
    if isinstance(caught.value, JobPickleError):
        assert caught.value.what == "error"
        assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("kind", "expected", "text"),
    [
        ("syntax", SyntaxError, "syntax"),
        ("refusing", JobPickleError, "the error does not cross between processes: SystemExit: 5"),
        ("text", JobPickleError, "it was unpickled as str"),
        ("exit", JobError, "SystemExit was raised"),
        ("stop", JobError, "StopIteration was raised"),
    ],
)
def test_an_error_with_methods_of_its_own_is_the_jobs_whatever_they_do(
    forked: Any, kind: str, expected: type[Exception], text: str
) -> None:
    pids = {done(forked.submit(os.getpid)) for _ in range(4)}
    with pytest.raises(expected, match=text) as caught:
        done(forked.submit(jobs.fail_with, kind))
    assert "in fail_with" in str(caught.value.__cause__)
    assert done(forked.submit(os.getpid)) in pids, "the process lives"


def test_a_job_that_does_not_pickle_is_an_error_of_its_own(forked: Any) -> None:
    futures = [forked.submit(operator.neg, 1), forked.submit(lambda: None), forked.submit(jobs.take, threading.Lock())]
    assert done(futures[0]) == -1
    for future in futures[1:]:
        with pytest.raises(JobPickleError, match="the job does not cross") as caught:
            done(future)
        assert isinstance(caught.value, TypeError)
    with (
        bind_context(ANN, values={"locale": threading.Lock()}),
        executor_of(1, values=("locale",)) as executor,
        pytest.raises(JobPickleError, match=r"cannot pickle.*lock"),
    ):
        done(executor.submit(jobs.who))


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, StopIteration])
def test_what_cannot_be_unpickled_on_either_side_is_an_error_of_the_job(
    forked: Any, raised: type[BaseException]
) -> None:
    with pytest.raises(JobPickleError, match=f"the job does not cross.*{raised.__name__}: exploded"):
        done(forked.submit(jobs.take, jobs.Exploding(raised)))
    with pytest.raises(JobPickleError, match=f"the result does not cross.*{raised.__name__}: exploded"):
        done(forked.submit(jobs.exploding, raised))
    with pytest.raises(JobPickleError, match=r"the result does not cross.*cannot pickle"):
        done(forked.submit(jobs.unpicklable))
    assert done(forked.submit(operator.neg, 1)) == -1


async def later() -> None: ...


def generator() -> Any:
    yield


def test_what_would_run_later_or_cannot_be_called_is_refused(forked: Any) -> None:
    for wrong in (later, generator):
        with pytest.raises(TypeError, match="a process would only make what then runs elsewhere"):
            forked.submit(wrong)
        with pytest.raises(TypeError, match="a process would only make"):
            forked.map(wrong, [])
    with pytest.raises(TypeError, match="must be callable"):
        forked.submit(3)


# As an executor


async def test_run_in_executor_takes_it_with_arguments_of_every_kind(executor: Any, asyncio_only: None) -> None:
    with bind_context(ANN):
        future = run_in_executor(executor, jobs.who)
    assert (await asyncio.wait_for(future, LONG))[:2] == ("acme", "ann")
    assert await run_in_executor(executor, jobs.take, 1, executor=2) == ((1,), {"executor": 2})
    loop = asyncio.get_running_loop()
    with bind_context(BOB):
        assert (await loop.run_in_executor(executor, jobs.who))[0] == "globex"
    with pytest.raises(JobPickleError):
        await run_in_executor(executor, lambda: None)


def test_outside_of_a_loop_run_in_executor_says_so(forked: Any) -> None:
    with pytest.raises(UnsupportedLoopError):
        run_in_executor(forked, jobs.who)


def test_map_runs_every_item_in_order_on_behalf_of_who_called_it(executor: Any) -> None:
    with bind_context(ANN):
        tenants = executor.map(jobs.tenant_at, [None] * 3)
    with bind_context(BOB):
        assert list(tenants) == ["acme"] * 3
    assert list(executor.map(pow, range(10), [2] * 10, chunksize=4)) == [n * n for n in range(10)]
    assert list(executor.map(pow, [], [])) == []


def test_map_ends_with_the_first_error_and_within_its_time(forked: Any, gate: Gate) -> None:
    results = forked.map(operator.truediv, [4, 1, 1], [2, 0, 1], timeout=LONG)
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(JobError, match="StopIteration"):
        list(forked.map(jobs.fail, [StopIteration()], chunksize=2))
    late = forked.map(jobs.wait_at, [gate.address], timeout=0)
    with pytest.raises(TimeoutError):
        next(late)
    with pytest.raises(ValueError, match="chunksize must be at least 1, not 0"):
        forked.map(pow, [1], chunksize=0)


def test_a_job_is_running_when_it_has_begun_and_can_be_cancelled_before(gate: Gate) -> None:
    with executor_of(1) as executor:
        running = executor.submit(jobs.wait_at, gate.address, "done")
        waiting = executor.submit(jobs.who)
        gate.started()
        assert running.running()
        assert not running.cancel()
        assert waiting.cancel()
        gate.go()
        assert done(running) == "done"


def test_as_many_jobs_run_at_a_time_as_there_are_processes(gate: Gate) -> None:
    with executor_of(2) as executor:
        futures = [executor.submit(jobs.wait_at, gate.address, number) for number in range(3)]
        assert gate.started() != gate.started()
        gate.go()
        gate.started()
        gate.go()
        assert [done(future) for future in futures] == [0, 1, 2]


def test_by_default_there_are_as_many_as_processors_and_each_is_spawned() -> None:
    executor = ContextProcessPoolExecutor()
    assert executor._max_workers == (os.cpu_count() if sys.version_info < (3, 13) else os.process_cpu_count())
    assert fleet_of(executor)._setup.context.get_start_method() == "spawn"
    executor.shutdown()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be at least 1, not 0"),
        ({"max_workers": "2"}, TypeError, "max_workers must be an int, not str"),
        ({"max_tasks_per_child": True}, TypeError, "max_tasks_per_child must be an int, not bool"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be at least 1, not 0"),
        ({"mp_context": "spawn"}, TypeError, "mp_context must be one of multiprocessing.get_context"),
        ({"values": "locale"}, TypeError, "values must be a collection of names such as .*, not 'locale'"),
        ({"values": [1]}, TypeError, "values must be a collection of names"),
        ({"values": 3}, TypeError, "values must be a collection of names"),
        ({"initializer": 3}, TypeError, "must be callable"),
        ({"initializer": later}, TypeError, "is a coroutine function"),
        ({"initializer": print, "initargs": (threading.Lock(),)}, JobPickleError, "cannot pickle"),
    ],
)
def test_its_options_are_checked(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ContextProcessPoolExecutor(**options)


def test_the_initializer_is_called_in_each_process_with_nothing_bound(tmp_path: Path) -> None:
    with bind_context(ANN), executor_of(1, initializer=jobs.note_start, initargs=(tmp_path,)) as executor:
        pids = {done(executor.submit(os.getpid)) for _ in range(3)}
    assert {int(path.name) for path in tmp_path.iterdir()} == pids


def test_an_initializer_that_fails_is_an_error_of_each_job_and_is_tried_once_for_each(tmp_path: Path) -> None:
    with executor_of(1, initializer=jobs.fail_to_start, initargs=(tmp_path,)) as executor:
        for number in (1, 2):
            with pytest.raises(ProcessStartError, match="initializer failed: LookupError: no licence") as caught:
                done(executor.submit(jobs.who))
            assert "in fail_to_start" in str(caught.value.__cause__)
            assert len(list(tmp_path.iterdir())) == number
    exploding = executor_of(1, initializer=jobs.take, initargs=(jobs.Exploding(SystemExit),))
    with exploding, pytest.raises(ProcessStartError, match="SystemExit: exploded"):
        done(exploding.submit(jobs.who))


def test_a_process_is_replaced_after_as_many_jobs_as_it_may_run() -> None:
    with executor_of(1, max_tasks_per_child=2) as executor:
        pids = [done(executor.submit(os.getpid)) for _ in range(5)]
    assert [pids[0] == pids[1], pids[1] == pids[2], pids[2] == pids[3], pids[3] == pids[4]] == [
        True,
        False,
        True,
        False,
    ]


def test_shutdown_waits_for_all_that_was_submitted_and_takes_no_more() -> None:
    executor = executor_of(1)
    futures = [executor.submit(operator.neg, number) for number in range(3)]
    pid = executor.submit(os.getpid)
    executor.shutdown()
    assert [future.result(0) for future in futures] == [0, -1, -2]
    with pytest.raises(ProcessLookupError):
        os.kill(pid.result(0), 0)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(jobs.who)
    executor.shutdown()


def test_shutdown_without_waiting_ends_the_processes_after_the_last_job(gate: Gate) -> None:
    executor = executor_of(1)
    first, last = executor.submit(jobs.wait_at, gate.address), executor.submit(os.getpid)
    pid = gate.started()
    executor.shutdown(wait=False)
    assert not first.done()
    gate.go()
    assert done(last) == pid
    gone(executor)
    executor.shutdown(wait=False)


def test_shutdown_can_cancel_what_has_not_begun(gate: Gate) -> None:
    executor = executor_of(1)
    running, waiting = executor.submit(jobs.wait_at, gate.address, 1), executor.submit(jobs.who)
    gate.started()
    executor.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    gate.go()
    assert done(running) == 1
    gone(executor)


def test_shutdown_without_waiting_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    executor = executor_of(1)
    monkeypatch.setattr("asgi_context._processes._executor.Thread.start", start)
    executor.shutdown(wait=False)


def gone(executor: ContextProcessPoolExecutor) -> None:
    """Its processes end by themselves."""
    fleet = fleet_of(executor)
    redis_servers.until(lambda: not fleet._idle and not fleet._busy and not fleet.ends())


def test_an_executor_that_nobody_refers_to_any_more_ends_its_processes() -> None:
    executor = executor_of(1)
    future = executor.submit(os.getpid)
    pid = done(future)
    (process,) = (worker.process for worker in fleet_of(executor)._idle)
    assert process is not None
    alive = weakref.ref(executor)
    del executor
    gc.collect()
    assert alive() is None, "also where somebody keeps a future"
    process.join(LONG)
    assert (process.pid, process.exitcode) == (pid, 0)


def test_an_error_is_gone_with_its_handling(forked: Any) -> None:
    """Also without a search for rings."""
    gc.collect()
    gc.disable()
    try:
        future = forked.submit(jobs.fail, jobs.PlainError())
        alive = weakref.ref(future.exception(LONG))
        del future
        redis_servers.until(lambda: alive() is None)
    finally:
        gc.enable()


# Interrupts


def test_ctrl_c_interrupts_the_job_alone_and_does_nothing_to_a_process_without_one(executor: Any, gate: Gate) -> None:
    with bind_context(ANN):
        job = executor.submit(jobs.interrupted, gate.address)
    pid = gate.started()
    os.kill(pid, signal.SIGINT)
    with pytest.raises(JobError, match="KeyboardInterrupt"):
        done(job)
    if sys.version_info < (3, 13) or fleet_of(executor)._setup.context.get_start_method() != "fork":
        os.kill(pid, signal.SIGINT)  # there, a fork by a thread sees its signals only when it next waits for something
    futures = [executor.submit(jobs.wait_at, gate.address) for _ in range(2)]
    assert pid in {gate.started(), gate.started()}
    gate.go()
    for future in futures:
        done(future)


@pytest.mark.parametrize("method", METHODS)
def test_a_process_takes_its_signals_itself(method: str) -> None:
    """After a fork, the parent's event loop would be told of what is sent to the process."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    terminate = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writes)
    try:
        with executor_of(1, method) as executor:
            assert done(executor.submit(jobs.handlers)) == (-1, signal.SIG_DFL)
            assert not done(executor.submit(jobs.blocked)) & {signal.SIGINT, signal.SIGTERM}
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, terminate)
        os.close(reads)
        os.close(writes)


def test_processes_of_others_from_the_same_fork_server_can_still_be_terminated() -> None:
    code = """
import multiprocessing, operator, time
from asgi_context.processes import ContextProcessPoolExecutor
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    with ContextProcessPoolExecutor(1, context) as executor:
        executor.submit(operator.neg, 1).result()
    other = context.Process(target=time.sleep, args=(60,))
    other.start()
    time.sleep(0.2)
    other.terminate()
    other.join(10)
    print(other.exitcode, flush=True)
    other.kill()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LONG)
    assert done.stdout == f"-{signal.SIGTERM:d}\n", done.stderr


# Contexts of other kinds


def test_a_context_that_is_inherited_whole_crosses(forked: Any) -> None:
    with bind_context(RequestContext("acme", "ann", request_id="r7")):
        assert done(forked.submit(jobs.who))[:3] == ("acme", "ann", "r7")
        update_request_context(anything=threading.Lock())
        assert done(forked.submit(jobs.who))[0] == "acme"
