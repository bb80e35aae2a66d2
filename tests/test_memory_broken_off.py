"""Calls of `MemoryStore` that are broken off in between: by Ctrl-C, for want of stack, by a fork."""

import linecache
import os
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable
from threading import Lock
from types import FrameType
from typing import Any

import pytest

from asgi_context import MemoryStore, SharedState, StateLimits
from asgi_context._memory import _forks
from asgi_context._memory._entries import Counter, Lease, State

ONE = {"f": b"1"}


class Now:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def at_once(coroutine: Any) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it has waited")


CALLS: dict[str, Callable[[MemoryStore], Any]] = {
    "merge, new": lambda store: store.merge(("acme", "ann"), "new", ONE, 5),
    "merge": lambda store: store.merge(("acme", "ann"), "s", {"g": b"1"}, 50),
    "replace": lambda store: store.replace(("acme", "ann"), "s", {"g": b"1"}, None),
    "increment": lambda store: store.increment(("acme", "ann"), "s", "f", 1),
    "remove": lambda store: store.remove(("acme", "ann"), "s"),
    "remove_field": lambda store: store.remove_field(("acme", "ann"), "s", "f"),
    "clear": lambda store: store.clear(("acme", "ann")),
    "touch": lambda store: store.touch(("acme", "ann"), "s", 50),
    "count": lambda store: store.count(("acme", "ann"), "new", 1, 5),
    "acquire": lambda store: store.acquire(("acme", "ann"), "new", "h", 1, 5),
    "release": lambda store: store.release(("acme", "ann"), "l", "h"),
}


def prepared(now: Now) -> MemoryStore:
    store = MemoryStore(limits=StateLimits(total_bytes=10**6, states=10**6), clock=now)
    at_once(store.merge(("acme", "ann"), "s", {"f": b"1", "g": b"1"}, 5))
    at_once(store.acquire(("acme", "ann"), "l", "h", 1, 5))
    return store


def broken_off(store: MemoryStore, call: Callable[[MemoryStore], Any], at: int) -> bool:
    """Make a call, and interrupt it as the line begins that is so many lines of the store on; whether it came to that."""
    left = at

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if not frame.f_globals["__name__"].startswith("asgi_context._memory"):
            return None
        # An interrupt within the statement that takes the lock would be the lock's own affair.
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and "with self._lock" not in line:
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    coroutine = call(store)
    try:
        coroutine.send(None)
    except (StopIteration, KeyboardInterrupt):
        pass
    finally:
        sys.settrace(before)
        coroutine.close()
    return left <= 0


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_interrupted_call_is_no_error_in_anybodys_later_call(call: Callable[[MemoryStore], Any]) -> None:
    at = 1
    while True:
        now = Now()
        store = prepared(now)
        if not broken_off(store, call, at):
            break
        for seconds in (0, 5, 50, 1000):
            now.seconds = seconds
            for _ in range(3):
                bob = SharedState(store, "globex", "bob").sync
                bob.upsert("s", {"a": 1}, ttl=5)
                assert bob.get("s") == {"a": 1}
                assert bob.delete("s") == 1
            ann = SharedState(store, "acme", "ann").sync
            for name in ann.list_states():
                ann.get(name)
                ann.modify(name, lambda data: {**data, "n": 1})
                ann.delete(name)
            at_once(store.count(("acme", "ann"), "new", 1, 5))
            assert at_once(store.acquire(("acme", "ann"), "new", "h", 1, 5)) is True
        at += 1
    assert at > 5


def deep(levels: int, call: Callable[[], Any]) -> Any:
    return deep(levels - 1, call) if levels else call()


def depth() -> int:
    frame: FrameType | None = sys._getframe()
    many = 0
    while frame is not None:
        many, frame = many + 1, frame.f_back
    return many


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_that_has_too_little_stack_changes_all_or_nothing(call: Callable[[MemoryStore], Any]) -> None:
    """Of what is counted, and of a state and its time to live."""
    failed = 0
    for left in range(1, 40):
        now = Now()
        store = prepared(now)
        coroutine = call(store)

        def send(coroutine: Any = coroutine) -> None:
            coroutine.send(None)

        try:
            deep(sys.getrecursionlimit() - depth() - left, send)
        except RecursionError:
            failed += 1
        except StopIteration:
            pass
        coroutine.close()
        states = [
            state for homes in store._tenants.values() for home in homes.values() for state in home.states.values()
        ]
        assert store._states == len(states)
        assert store._bytes == sum(state.size() for state in states)
        for state in states:
            assert state.fields
            assert state.version > 0
            if state.key == "new":
                assert state.ends == 5
        now.seconds = 1000
        assert at_once(store.names(("acme", "ann"))) in ([], ["s"])
        assert at_once(store.merge(("acme", "ann"), "s", ONE, None)) in {True, False}
    assert failed >= 3  # a call is so many frames deep at least; one more where it is traced


def test_what_is_not_in_its_place_any_more_takes_nobody_elses() -> None:
    """As an interrupted call may have left it: it is due, and another of its name is there, or none."""
    now = Now()
    store = prepared(now)
    home = store._tenants["acme"]["ann"]
    for entry in (Lease(home, "h", "l"), Lease(home, "h", "m"), State(home, "s", {}, 1), Counter(home, "c")):
        store._ends.put(entry, 4)
    now.seconds = 4
    assert at_once(store.read(("acme", "ann"), "s")) == {"f": b"1", "g": b"1"}
    assert set(home.leases["l"]) == {"h"}
    assert store._states == 1
    assert store._ends.next == 5


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")

FORKING = """
import os, signal, sys, threading
from asgi_context import MemoryStore, SharedState

store = MemoryStore()
state = SharedState(store, "acme", "ann").sync
state.upsert("s", {"a": 1})

def in_child(work):
    child = os.fork()
    if not child:
        signal.alarm(30)
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def forking(body: str) -> str:
    """Run a script in a process of its own: a child of this one would fork what watches over the tests, too."""
    source = FORKING + textwrap.dedent(body)
    # That a process with threads is forked is the point here.
    allowed = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    ended = subprocess.run(
        [sys.executable, *allowed, "-c", source], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.stderr, ended.returncode) == ("", 0)
    return ended.stdout.strip()


@needs_fork
def test_a_child_that_is_forked_while_others_use_the_store_can_use_it() -> None:
    said = forking("""
        stop = threading.Event()

        def work():
            while not stop.is_set():
                state.update_field("s", "a", 1)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        print({in_child(lambda: state.get("s") == {"a": 1} and state.delete("s") == 1) for _ in range(40)})
        stop.set()
        for thread in threads:
            thread.join(30)
    """)
    assert said == "{0}"


@needs_fork
def test_a_fork_waits_for_the_calls_that_are_under_way() -> None:
    """What they change would be half changed in the child, and the lock held by a thread that is not there."""
    said = forking("""
        held, forks = threading.Event(), threading.Event()
        os.register_at_fork(before=forks.set)  # the last that is registered runs first

        def hold():
            with store._lock:
                held.set()
                forks.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(30)
        print(in_child(lambda: state.exists("s")), state.exists("s"))
        thread.join(30)
    """)
    assert said == "0 True"


def test_what_ends_while_its_tenant_is_erased_leaves_the_new_home_of_that_name_alone() -> None:
    now = Now()
    store = prepared(now)
    erased = store._tenants.pop("acme")["ann"]  # what erasing does first; the rest is taken down in steps
    at_once(store.merge(("acme", "ann"), "new", ONE, None))
    now.seconds = 5
    for _ in range(3):
        at_once(store.exists(("acme", "ann"), "new"))
    assert erased.is_empty()
    assert at_once(store.names(("acme", "ann"))) == ["new"]


def test_all_locks_are_held_for_a_fork_and_let_go_after_it() -> None:
    """As the system calls it; where that is really done, nothing watches over the tests."""
    forks = _forks._Forks()
    locks = [Lock(), Lock()]
    for lock in locks:
        forks.add(lock)
    forks.hold()
    assert all(lock.locked() for lock in locks)
    forks.let_go()
    assert not any(lock.locked() for lock in locks)


def test_where_no_process_can_be_forked_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    again: dict[str, Any] = runpy.run_path(_forks.__file__ or "")
    assert "forks" in again


def test_a_store_that_is_gone_is_not_held_for_forks() -> None:
    store = MemoryStore()
    lock = store._lock
    assert lock in _forks.forks._locks
    before = len(_forks.forks._locks)
    del store, lock
    assert len(_forks.forks._locks) == before - 1
