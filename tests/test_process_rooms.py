"""What runs in the processes, run in this one: the messages that are taken, and the stores that are kept."""

import contextvars
import multiprocessing
import operator
import os
import pickle
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import process_jobs as jobs
import pytest
import redis_servers

from asgi_context import Identity, MemoryStore, StateLimits, bind_context, current_context, current_state
from asgi_context._processes import Fleet, _forks
from asgi_context._processes._answers import outcome
from asgi_context._processes._crossing import Crossings, bound
from asgi_context._processes._executor import _run_chunk
from asgi_context._processes._fleet import _end_all
from asgi_context._processes._forks import _Forks, forks
from asgi_context._processes._line import _MARK, Line
from asgi_context._processes._serving import READY, _Server, packed, serve
from asgi_context._processes._stores import CrossedStore, Stores
from asgi_context._processes._worker import NotBegunError, Setup, Worker, _signals_waiting
from asgi_context.errors import (
    AsgiContextError,
    ContextClosedError,
    ContextNotBoundError,
    JobError,
    JobPickleError,
    ProcessContextError,
    ProcessDiedError,
    ProcessStartError,
    StoreNotSharedError,
)
from asgi_context.redis import RedisStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

ANN = Identity("acme", "ann", {"roles": ["admin"]}, expires_at=2e9)


@contextmanager
def signals_kept() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def served(*jobs_: Any, initializer: bytes | None = None, ignores: bool = True) -> list[Any]:
    """Hand over all jobs at once, have them served here, and give the messages that came back."""
    ours, theirs = socket.socketpair()
    with ours, signals_kept():
        line = Line(ours)
        for job in jobs_:
            line.send(*job)
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, initializer, ignores)
        messages: list[Any] = []
        with pytest.raises(EOFError):
            while True:
                messages.append(line.receive())
    return messages


def job(func: Any, *args: Any, **kwargs: Any) -> Any:
    return packed(Crossings(("locale",)).take(), func, args, kwargs)


def results(messages: list[Any]) -> list[Any]:
    ready, *answers = messages
    assert ready == READY
    found: list[Any] = []
    for answer in answers:
        try:
            found.append(outcome(answer))
        except (AsgiContextError, KeyError, SyntaxError) as error:
            found.append(error)
    return found


def test_jobs_are_served_one_after_the_other_each_for_its_own_submitter() -> None:
    with bind_context(ANN, request_id="r1", values={"locale": "de"}):
        first, second = job(jobs.who), job(jobs.value, "locale")
    fourth = job(jobs.fail, SystemExit(3))
    found = results(served(first, second, job(jobs.who), fourth, job(operator.neg, 1)))
    assert found[:3] == [("acme", "ann", "r1", {"roles": ["admin"]}), "de", None]
    assert isinstance(found[3], JobError)
    assert found[4] == -1
    assert current_context(None) is None


def test_a_job_sees_nothing_of_the_context_that_its_process_is_in() -> None:
    def serve_one() -> list[Any]:
        jobs.mark.set("the process's")
        with bind_context(ANN):
            return results(served(unbound))

    unbound = job(jobs.marked)
    assert contextvars.copy_context().run(serve_one) == ["unset"]


def test_what_a_job_leaves_behind_keeps_whose_it_is_and_its_values_have_ended() -> None:
    with bind_context(ANN, values={"locale": "de"}):
        crossing = Crossings(("locale",)).take()
    with bound(crossing, Stores()):
        left = contextvars.copy_context()
        assert left.run(jobs.value, "locale") == "de"
    assert left.run(jobs.tenant_at) == "acme"
    with pytest.raises(ContextClosedError):
        left.run(jobs.value, "locale")


def test_what_cannot_be_read_is_the_jobs_error() -> None:
    (broken, fine) = results(served([b"\0\0\0\0no pickle"], job(operator.neg, 1)))
    assert isinstance(broken, JobPickleError)
    assert fine == -1
    (holding,) = results(served(job(jobs.fail_with, "holding")))
    assert isinstance(holding, JobPickleError)
    assert holding.what == "error"


def test_an_error_that_cannot_be_told_is_told_as_far_as_that_goes() -> None:
    (unclear, refusing, changed) = results(
        served(*(job(jobs.fail_with, kind) for kind in ("syntax", "refusing", "text")))
    )
    assert isinstance(unclear, SyntaxError)
    assert str(unclear.__cause__).endswith('raise error\nSyntaxError\n"""')
    assert [type(error) for error in (refusing, changed)] == [JobPickleError] * 2


def test_an_initializer_runs_first_and_its_failing_is_told_in_place_of_being_ready() -> None:
    assert served(initializer=pickle.dumps((jobs.marked, ()))) == [READY]
    (message,) = served(initializer=pickle.dumps((jobs.fail, (KeyError("x"),))))
    with pytest.raises(ProcessStartError, match="KeyError: 'x'"):
        outcome(message)


def test_an_interrupt_counts_while_a_job_runs_and_never_where_it_is_ignored() -> None:
    (interrupted,) = results(served(job(signal.raise_signal, signal.SIGINT), ignores=False))
    assert isinstance(interrupted, JobError)
    assert interrupted.kind == "KeyboardInterrupt"
    assert results(served(job(signal.raise_signal, signal.SIGINT))) == [None]
    interrupt = pickle.dumps((signal.raise_signal, (signal.SIGINT,)))
    assert served(initializer=interrupt, ignores=False) == [READY], "it has no job yet"


def test_where_signals_cannot_be_blocked_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "pthread_sigmask")
    with _signals_waiting():
        pass
    assert results(served(job(operator.neg, 1))) == [-1]


def test_interrupted_between_jobs_nothing_happens() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = _Server(Line(ours))
        server.interrupted(signal.SIGINT, None)
        server._busy = True
        with pytest.raises(KeyboardInterrupt):
            server.interrupted(signal.SIGINT, None)


def test_a_chunk_of_a_map_is_one_job() -> None:
    assert results(served(job(_run_chunk, operator.neg, [(1,), (2,)]))) == [[-1, -2]]


def test_what_stays_behind_and_what_has_ended_says_so() -> None:
    with bind_context(ANN):
        ended = contextvars.copy_context()
        resources, pools = job(jobs.use_resource), job(jobs.use_pool)
    elsewhere = contextvars.copy_context()
    block = bind_context(ANN)
    elsewhere.run(block.__enter__)
    block.__exit__(None, None, None)
    found = results(
        served(
            resources, pools, ended.run(job, jobs.value, "locale"), elsewhere.run(job, jobs.who), job(jobs.use_state)
        )
    )
    kinds = [ProcessContextError, ProcessContextError, ContextClosedError, ContextClosedError, ContextNotBoundError]
    assert [type(error) for error in found] == kinds


# The end of this process


def test_at_the_end_of_this_process_all_others_end_whatever_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process(Quick):
        def join(self, timeout: float | None = None) -> None:
            seen.append(timeout)

        def kill(self) -> None:
            seen.append("kill")

    seen: list[Any] = []
    monkeypatch.setattr("asgi_context._processes._fleet._GRACE", 0.0)
    for of_server in (False, True):
        fleet = Fleet(Setup(multiprocessing.get_context("spawn"), of_server=of_server), ())
        busy, idle, ending = (Worker(fleet._setup) for _ in range(3))
        for worker in (busy, idle, ending):
            worker.process = Process()  # type: ignore[assignment]
        fleet._busy.add(busy)
        fleet._idle.append(idle)
        fleet._dismiss(ending)
        with monkeypatch.context() as patched:
            patched.setattr("asgi_context._processes._fleet._fleets", {fleet})
            _end_all()
        assert seen == ([0, 0, "kill", 0, 0, "kill", "kill", "kill"] if of_server else [0, 0])
        seen.clear()
    with pytest.raises(ProcessStartError, match="all processes were ended"):
        fleet.call(operator.neg, (1,), {})(contextvars.Context())


def test_no_process_is_started_for_a_job_whose_process_was_ended_before_it_had_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asgi_context._processes._worker._PATIENCE", 1)
    worker, other = worker_of(monkeypatch)
    fleet = Fleet(Setup(multiprocessing.get_context("spawn")), ())
    fleet._idle.append(worker)
    fleet.end("kill")
    other.close()
    with pytest.raises(ProcessDiedError):
        fleet.call(operator.neg, (1,), {})(contextvars.Context())
    worker.close()


def test_sigterm_is_left_to_the_parent_in_a_process_of_a_server_but_not_in_those_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert results(served(job(signal.raise_signal, signal.SIGTERM))) == [None]
    ours, theirs = socket.socketpair()
    with ours, theirs, signals_kept():
        server = _Server(Line(ours))
        sent: list[Any] = []
        monkeypatch.setattr(os, "kill", lambda *what: sent.append(what))
        monkeypatch.setattr(os, "getpid", lambda: 1)
        server.told_to_end(signal.SIGTERM, None)
        assert sent == [(1, signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_fork_closes_all_ends_but_that_which_it_is_for_and_forgets() -> None:
    made, seen = _Forks(), list[Any]()
    first, second = made.pair()
    third, fourth = made.pair()
    part = MemoryStore()
    made.add(part, seen.append)
    with made.keeping(fourth):
        made.hold()
        made.forget()
    assert [end.fileno() == -1 for end in (first, second, third, fourth)] == [True, True, True, False]
    assert seen == [part]
    made.hold()
    made.let_go()
    fourth.close()


def test_where_no_process_is_forked_nothing_is_to_be_done_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    assert runpy.run_path(_forks.__file__)["forks"] is not forks


# Messages


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 3_000_000])
def test_a_message_arrives_whole_whatever_its_size_and_in_whatever_pieces(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.01)
        looks: list[int] = []
        sending, receiving = Line(ours, lambda: looks.append(1)), Line(theirs)
        message = bytes(range(256)) * (size // 256 + 1)
        message = message[:size]
        received: list[Any] = []

        def receive() -> None:
            received.extend(receiving.receive() for _ in range(3))

        thread = threading.Thread(target=receive)
        if size > 1_000_000:  # let it be too much for the pipe, until somebody reads
            timer = threading.Timer(0.05, thread.start)
            timer.start()
        else:
            timer = None
            thread.start()
        sending.send(message[: size // 2], message[size // 2 :])
        sending.send(b"second")
        sending.send(message)
        if timer is not None:
            timer.join()
            assert looks
        thread.join(jobs.LONG)
        assert received == [message, b"second", message]


def test_an_end_with_a_timeout_and_nothing_to_look_at_waits() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.01)
        timer = threading.Timer(0.05, Line(theirs).send, [b"late"])
        timer.start()
        assert Line(ours).receive() == b"late"
        timer.join()


def test_a_pipe_that_ends_within_a_message_is_at_its_end() -> None:
    for begun in (b"", _MARK[:7], _MARK + b"\0" * 7 + b"\x09half"):
        ours, theirs = socket.socketpair()
        with theirs:
            ours.sendall(begun)
            ours.close()
            with pytest.raises(EOFError):
                Line(theirs).receive()


def test_who_waits_for_a_message_leaves_it_unread() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        line = Line(theirs)
        Line(ours).send(b"job")
        line.wait()
        theirs.close()
        with pytest.raises(ConnectionResetError):
            ours.recv(1)


def test_what_does_not_begin_as_a_message_is_none() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\0" * 16)
        with pytest.raises(OSError, match="no message"):
            Line(ours).receive()


# Stores


class Kept(MemoryStore):
    """A store that pickles, and says when it is closed."""

    closed: ClassVar[list[int]] = []

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __reduce__(self) -> Any:
        return Kept, (self.number,)

    def close(self) -> None:
        Kept.closed.append(self.number)


class Waiting(Kept):
    def __reduce__(self) -> Any:
        return Waiting, (self.number,)

    async def close(self) -> None:  # type: ignore[override]
        Kept.closed.append(-self.number)
        raise ValueError("close")


def test_a_process_keeps_the_stores_that_were_used_last_and_closes_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Kept.closed = []
    stores = Stores()
    made = [pickle.dumps(Kept(number)) for number in range(9)]
    found = [stores.get("Kept", each) for each in made[:8]]
    assert stores.get("Kept", made[0]) is found[0]
    stores.get("Kept", made[8])
    assert Kept.closed == [1]
    assert stores.get("Kept", made[0]) is found[0]
    stores.get("Waiting", pickle.dumps(Waiting(1)))
    stores.get("MemoryStore", pickle.dumps(bare := [1]))
    assert bare == [1]
    stores.close()
    assert sorted(Kept.closed) == [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert "closing a store of a process for jobs" in caplog.text
    stores.close()


def test_a_store_is_made_when_it_is_first_used() -> None:
    stores = Stores()
    with bind_context(ANN, store=Kept(1)):
        crossing = Crossings(()).take()
    with bound(crossing, stores):
        assert not stores._open
        assert current_state().sync.increment("counts", "a") == 1
        assert len(stores._open) == 1
    with bound(crossing, stores):
        assert current_state().sync.get("counts") == {"a": 1}
    stores.close()


def test_a_store_that_cannot_be_made_there_says_so() -> None:
    with pytest.raises(StoreNotSharedError, match=r"the Kept does not .* unpickled there \(UnpicklingError"):
        Stores().get("Kept", b"no pickle")
    with pytest.raises(StoreNotSharedError, match=r"the Kept does not .*: reason"):
        _ = CrossedStore(Stores(), "Kept", "reason").deadline
    with pytest.raises(AttributeError):
        _ = CrossedStore(Stores(), "Kept", "reason").__nothing__


def test_the_address_of_a_store_is_taken_once_as_long_as_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    crossings, one, two = Crossings(()), Kept(1), Kept(2)
    pickled: list[int] = []
    monkeypatch.setattr(Kept, "__reduce__", lambda self: (pickled.append(self.number), (Kept, (1,)))[1])
    for store in (one, one, two, two):
        with bind_context(ANN, store=store):
            crossings.take()
    assert pickled == [1, 2]


class Own(RedisStore):
    """Of the user's."""


@pytest.mark.parametrize("kind", [RedisStore, Own])
def test_a_redis_store_is_the_same_again_after_pickling(kind: type[RedisStore]) -> None:
    store = kind.from_url(
        "rediss://ann:secret@example.com:6380/3?ssl_cert_reqs=none",
        prefix="p",
        default_ttl=60,
        sliding=True,
        limits=StateLimits(fields=3),
        timeout=2.0,
        connections=3,
        durable=1,
    )
    again = pickle.loads(pickle.dumps(store))
    assert type(again) is kind
    assert again._made == store._made
    assert (again._client._options, again._client._hosts) == (store._client._options, store._client._hosts)
    for url in ("redis+cluster://a:1,b:2", "redis+sentinel://a:1,b:2/main"):
        other = pickle.loads(pickle.dumps(kind.from_url(url)))
        assert other._client._hosts == [("a", 1), ("b", 2)]
    with pytest.raises(StoreNotSharedError, match="make it by from_url"):
        pickle.dumps(redis_servers.Fake().store())


# The parent's side


class Quick:
    """In place of a process: answered from here."""

    exitcode: int | None = None

    def join(self, timeout: float | None) -> None: ...

    def kill(self) -> None:
        self.exitcode = -9


def worker_of(monkeypatch: pytest.MonkeyPatch) -> tuple[Worker, socket.socket]:
    kept: list[socket.socket] = []

    def launch(self: Any) -> None:
        self._end, other = forks.pair()
        kept.append(other)
        self._line = Line(self._end)
        self.process = Quick()
        Line(other).send(READY)

    monkeypatch.setattr(Worker, "_launch", launch)
    worker = Worker(Setup(multiprocessing.get_context("spawn")))
    worker.start()
    return worker, kept[0]


@pytest.mark.parametrize("tells", [True, False])
def test_where_a_pipe_tells_that_a_job_was_not_read_it_has_not_begun(
    monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    monkeypatch.setattr("asgi_context._processes._worker._TELLS_UNREAD", tells)
    monkeypatch.setattr("asgi_context._processes._worker._PATIENCE", 1)
    worker, other = worker_of(monkeypatch)

    class Reset(Line):
        def receive(self) -> Any:
            raise ConnectionResetError

    worker._line = Reset(other)
    with pytest.raises(NotBegunError if tells else ProcessDiedError):
        worker.ask([b"job"])
    worker.close()
    other.close()


def test_what_is_no_answer_is_the_end_of_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, other = worker_of(monkeypatch)
    monkeypatch.setattr("asgi_context._processes._worker._PATIENCE", 1)
    other.close()
    with pytest.raises(NotBegunError):
        worker.ask([b"job"])
    assert worker.died().exitcode is None
    worker.close()


def test_a_new_one_that_is_gone_before_it_has_read_its_first_job_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, other = worker_of(monkeypatch)
    worker.close()
    other.close()
    launch: Any = Worker._launch

    def launch_and_die(self: Any) -> None:
        launch(self)
        pairs[-1].close()

    monkeypatch.setattr("asgi_context._processes._worker._PATIENCE", 1)
    pairs: list[Any] = []
    pair = forks.pair
    monkeypatch.setattr(forks, "pair", lambda: (made := pair(), pairs.append(made[1]))[0])
    monkeypatch.setattr(Worker, "_launch", launch_and_die)
    with pytest.raises(ProcessDiedError):
        Fleet(Setup(multiprocessing.get_context("spawn")), ()).call(operator.neg, (1,), {})(contextvars.Context())


def test_a_fork_server_that_is_anothers_is_told_by_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(_: object) -> None:
        raise ChildProcessError

    monkeypatch.setattr(Worker, "_launch", launch)
    with pytest.raises(ProcessStartError, match="Start processes there by spawn"):
        Worker(Setup(multiprocessing.get_context("forkserver"))).start()


def test_one_that_was_never_started_can_be_ended_and_closed() -> None:
    worker = Worker(Setup(multiprocessing.get_context("spawn")))
    worker.end("kill")
    worker.close()
    assert worker.died().exitcode is None


def test_whoever_waits_for_long_looks_whether_the_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, other = worker_of(monkeypatch)
    other.setblocking(False)
    worker._end.settimeout(0.01)  # type: ignore[union-attr]
    looked: list[int | None] = []

    def look() -> None:
        looked.append(worker.process.exitcode)  # type: ignore[union-attr]
        worker._look()
        if len(looked) == 3:
            worker.process.kill()  # type: ignore[union-attr]

    worker._line = Line(worker._end, look)  # type: ignore[arg-type]
    with pytest.raises(ProcessDiedError) as caught:
        worker.ask([b"job"])
    assert looked == [None, None, None, -9]
    assert caught.value.exitcode == -9
    worker.close()
    other.close()
