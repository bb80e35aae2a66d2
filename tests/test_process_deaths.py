"""A process that dies is an error of its own job alone; and processes end with whoever has started them."""

import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from random import Random
from typing import Any

import process_jobs as jobs
import pytest
from process_jobs import LONG, Gate

from asgi_context import Identity, bind_context
from asgi_context._processes import Fleet, Setup
from asgi_context._processes._forks import forks
from asgi_context.errors import ProcessDiedError, ProcessStartError
from asgi_context.processes import ContextProcessPoolExecutor

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks and signals"),
    # That of Python 3.12 to whoever forks in spite of it.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

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
    with executor_of(2, request.param) as made:
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


def died(future: "Future[Any]") -> tuple[int | None, str]:
    error = future.exception(LONG)
    assert isinstance(error, ProcessDiedError)
    return error.exitcode, error.when


# What a process can die of


def test_a_process_that_is_killed_while_it_runs_a_job_is_the_error_of_that_job_alone(executor: Any, gate: Gate) -> None:
    futures = [executor.submit(jobs.wait_at, gate.address, "done") for _ in range(2)]
    pid, _ = gate.started(), gate.started()
    waiting = [executor.submit(operator.neg, number) for number in range(10)]
    os.kill(pid, signal.SIGKILL)
    (killed,), _ = wait(futures, LONG, FIRST_COMPLETED)
    assert died(killed) == (-signal.SIGKILL, "running")
    assert [done(future) for future in waiting] == [-number for number in range(10)]
    gate.go()
    (alive,) = (future for future in futures if future is not killed)
    assert done(alive) == "done"
    assert done(executor.submit(os.getpid)) != pid


@pytest.mark.parametrize(
    ("job", "arguments", "exitcode"),
    [
        (jobs.die, (0,), 0),
        (jobs.die, (3,), 3),
        (jobs.kill, (signal.SIGSEGV,), -signal.SIGSEGV),
        (jobs.kill, (signal.SIGTERM,), -signal.SIGTERM),
        (jobs.die_answering, (100,), -signal.SIGKILL),
        (jobs.die_answering, (10_000_000,), -signal.SIGKILL),
    ],
)
def test_a_process_that_ends_in_a_job_or_while_it_answers_is_that_jobs_error(
    executor: Any, job: Any, arguments: Any, exitcode: int
) -> None:
    assert died(executor.submit(job, *arguments)) == (exitcode, "running")
    assert done(executor.submit(operator.neg, 1)) == -1


def test_a_process_that_dies_while_it_has_no_job_is_nobodys_error(executor: Any) -> None:
    for _ in range(5):
        pid = done(executor.submit(os.getpid))
        os.kill(pid, signal.SIGKILL)
        assert done(executor.submit(os.getpid)) != pid  # perhaps before the other is quite dead


def test_a_process_that_dies_while_it_starts_is_the_error_of_the_job_that_it_was_for(tmp_path: Path) -> None:
    with executor_of(1, initializer=jobs.kill_at_start, initargs=(tmp_path,)) as executor:
        for number in (1, 2):
            assert died(executor.submit(jobs.who)) == (-signal.SIGKILL, "starting")
            assert len(list(tmp_path.iterdir())) == number, "it is tried once"


def test_a_death_is_noticed_where_something_else_holds_the_pipe(gate: Gate) -> None:
    fleet = Fleet(Setup(multiprocessing.get_context("fork"), look=0.05), ())
    outcome: list[BaseException] = []

    def ask() -> None:
        try:
            fleet.call(jobs.die_leaving_the_pipe_open, (gate.address,), {})(Context())
        except ProcessDiedError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    holder = gate.started()
    gate.go()
    thread.join(LONG / 3)
    noticed = list(outcome)
    os.kill(holder, signal.SIGKILL)
    thread.join(LONG)
    assert [str(error) for error in noticed] == ["the process died while it ran the job (exit status 4)"]
    fleet.close(LONG)


def test_a_process_that_lives_on_without_its_pipe_is_ended() -> None:
    with executor_of(1) as executor:
        pid = done(executor.submit(os.getpid))
        assert died(executor.submit(jobs.live_without_the_pipe)) == (None, "running")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("data", [b"x", b"\0" * 8])
def test_what_a_job_writes_into_the_pipe_is_no_answer_of_it_nor_of_a_later_one(data: bytes) -> None:
    with executor_of(1) as executor:
        assert died(executor.submit(jobs.write_into_the_pipe, data)) == (None, "running")
        assert [done(executor.submit(operator.neg, number)) for number in range(3)] == [0, -1, -2]


def test_a_job_that_closes_all_files_is_the_end_of_its_process_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with executor_of(1) as executor:
        assert died(executor.submit(jobs.close_all_files)) == (0, "running")
    assert "Bad file descriptor" not in capfd.readouterr().err


def test_a_large_job_for_one_that_has_died_while_its_pipe_was_held_gets_another() -> None:
    with executor_of(1) as executor:
        pid, holder = done(executor.submit(jobs.leave_the_pipe_open))
        os.kill(pid, signal.SIGKILL)
        try:
            assert done(executor.submit(len, b"x" * 5_000_000)) == 5_000_000
        finally:
            os.kill(holder, signal.SIGKILL)


def test_processes_under_fire_lose_no_job_but_those_that_they_ran(executor: Any) -> None:
    rng, running = Random(1), True
    pids = [done(executor.submit(os.getpid)) for _ in range(2)]

    def fire() -> None:
        while running:
            with suppress(ProcessLookupError, IndexError):
                os.kill(pids.pop(), signal.SIGKILL)

    thread = threading.Thread(target=fire)
    thread.start()
    try:
        for _ in range(3):
            futures = [executor.submit(os.getpid) for _ in range(rng.randrange(5, 30))]
            for future in futures:
                error = future.exception(LONG)
                assert error is None or (isinstance(error, ProcessDiedError) and error.when == "running")
            pids.extend(done(future) for future in futures[-2:] if not future.exception())
    finally:
        running = False
        thread.join(LONG)
    assert [done(executor.submit(operator.neg, number)) for number in range(5)] == [0, -1, -2, -3, -4]


@pytest.mark.parametrize(
    ("method", "number"), [("terminate_workers", signal.SIGTERM), ("kill_workers", signal.SIGKILL)]
)
def test_all_workers_can_be_ended_at_once(gate: Gate, method: str, number: int) -> None:
    executor = executor_of(2)
    running = [executor.submit(jobs.wait_at, gate.address) for _ in range(2)]
    waiting = executor.submit(jobs.who)
    pids = [gate.started() for _ in range(2)]
    getattr(executor, method)()
    assert [died(future) for future in running] == [(-number, "running")] * 2
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(jobs.who)
    executor.shutdown()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_that_is_ended_while_it_starts_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    from asgi_context._processes._worker import Worker

    launch = Worker._launch

    def ended(self: Any) -> None:
        launch(self)
        process, self.process = self.process, None
        executor.kill_workers()
        self.process = process

    monkeypatch.setattr(Worker, "_launch", ended)
    executor = executor_of(1)
    assert died(executor.submit(jobs.wait_at, ("127.0.0.1", 1)))[0] == -signal.SIGKILL
    executor.shutdown()


def test_processes_that_cannot_be_had_are_an_error_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> Any:
        raise OSError(24, "Too many open files")

    with executor_of(1) as executor:
        with monkeypatch.context() as patched:
            patched.setattr(forks, "pair", none_left)
            with pytest.raises(ProcessStartError, match="Too many open files"):
                done(executor.submit(jobs.who))
        with monkeypatch.context() as patched:
            patched.setattr("asgi_context._processes._worker.Thread", Never)
            worker = Fleet(Setup(multiprocessing.get_context("fork")), ())
            with pytest.raises(ProcessStartError, match="can't start new thread"):
                worker.call(jobs.who, (), {})(Context())
        assert done(executor.submit(operator.neg, 1)) == -1


class Never(threading.Thread):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ProcessDiedError(3, "running"), "died while it ran the job (exit status 3)"),
        (ProcessDiedError(-9, "running"), "(signal SIGKILL)"),
        (ProcessDiedError(-99, "running"), "(signal 99)"),
        (ProcessDiedError(None, "running"), "(it is not known how)"),
        (ProcessDiedError(1, "starting"), 'inside of `if __name__ == "__main__":`'),
    ],
)
def test_the_error_says_how_it_died(error: ProcessDiedError, text: str) -> None:
    assert text in str(error)


# Forks


def test_what_a_job_forks_off_does_not_hold_the_pipe(executor: Any) -> None:
    assert done(executor.submit(jobs.in_a_child_of_its_own)) == [True, False]


def in_a_fork(check: Callable[[], bool]) -> int:
    """Fork, and say by the exit status whether something holds there."""
    child = os.fork()
    if not child:
        status = 1
        with suppress(BaseException):
            status = 0 if check() else 2
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_process_that_is_forked_off_has_processes_of_its_own_and_ends_of_none(method: str) -> None:
    with executor_of(1, method) as executor, bind_context(Identity("acme", "ann")):
        pid = done(executor.submit(os.getpid))
        held = [end for end in forks._ends if end.fileno() != -1]
        assert held

        def check() -> bool:
            closed = all(end.fileno() == -1 for end in held)
            own = done(executor.submit(os.getpid)) != pid
            bound = done(executor.submit(jobs.tenant_at)) == "acme"
            executor.shutdown()
            return closed and own and bound

        assert in_a_fork(check) == 0
        assert all(end.fileno() != -1 for end in held)
        assert done(executor.submit(os.getpid)) == pid


def test_a_fork_server_is_not_that_of_a_process_that_is_forked_off_which_says_so() -> None:
    with executor_of(1, "forkserver") as executor:
        done(executor.submit(os.getpid))

        def check() -> bool:
            error = executor.submit(os.getpid).exception(LONG)
            return isinstance(error, ProcessStartError) and "the fork server is that of" in str(error)

        assert in_a_fork(check) == 0


def test_an_executor_that_was_shut_down_is_so_in_a_process_that_is_forked_off() -> None:
    executor = executor_of(1)
    executor.shutdown()

    def check() -> bool:
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(os.getpid)
        return True

    assert in_a_fork(check) == 0


# The end of the parent


def script(method: str, text: str) -> "subprocess.Popen[str]":
    """Run a script beside this; it prints what it and its processes do, and its output ends with the last of them."""
    code = f"""
import multiprocessing, os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import process_jobs as jobs
from asgi_context.processes import ContextProcessPoolExecutor
if __name__ == "__main__":
    executor = ContextProcessPoolExecutor(2, multiprocessing.get_context({method!r}))
{text}
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("method", METHODS)
def test_at_the_end_of_the_interpreter_all_that_was_submitted_is_done(method: str) -> None:
    text = "    for n in range(5): executor.submit(jobs.say, n)"
    if method == "fork" and sys.version_info[:2] == (3, 12):  # which does not fork any more then
        text = "    list(executor.map(jobs.hold_output, [0.1] * 2))\n" + text
    with script(method, text) as process:
        output, errors = process.communicate(timeout=LONG)
    assert sorted(output.split()) == ["0", "1", "2", "3", "4"]
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("method", METHODS)
def test_processes_end_by_themselves_when_their_parent_is_killed(method: str) -> None:
    text = """
    list(executor.map(jobs.say, range(2)))
    busy = [executor.submit(jobs.hold_output, 0.1) for _ in range(2)]
    print(busy[0].result(), busy[1].result(), flush=True)
    time.sleep(60)
"""
    with script(method, text) as process:
        assert process.stdout is not None
        while "held" not in process.stdout.readline():
            pass
        process.kill()
        output, _ = process.communicate(timeout=LONG)  # until the last process that has it is gone
        assert output == ""


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "unguarded.py"
    path.write_text(
        "from asgi_context.processes import ContextProcessPoolExecutor\n"
        "import os\n"
        "print(ContextProcessPoolExecutor(1).submit(os.getpid).result())\n"
    )
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=LONG)
    assert done.returncode == 1
    assert "ProcessDiedError: the process died while it was starting (exit status 1)" in done.stderr
