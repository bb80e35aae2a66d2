"""The blocking calls of shared state: the same methods for threads and scripts, on the right event loop or on none."""

import asyncio
import concurrent.futures
import contextvars
import gc
import inspect
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import anyio
import anyio.to_thread
import pytest
from driver import http, run, who

from asgi_context import (
    ContextMiddleware,
    Identity,
    MemoryStore,
    RequestContext,
    SharedState,
    Store,
    bind_context,
    carry_context,
    current_context,
    current_state,
    from_header,
    run_in_executor,
    run_in_pool,
    unbound_context,
)
from asgi_context import _blocking as blocking
from asgi_context.errors import (
    StateBlockingError,
    StateConflictError,
    StateLimitError,
    StateNumberError,
    StateSerializationError,
    StateUnavailableError,
)

pytestmark = pytest.mark.anyio

SOON = 30  # seconds after which a test is given up
AT_ONCE = 0.01  # a deadline that is to pass, wherever the call has got to
LATE = 0.5  # one that is to pass after the store was asked
ANN, BOB = Identity("acme", "ann"), Identity("globex", "bob")

mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="unset")

# A store that waits.


class Asked(NamedTuple):
    """How a store was asked."""

    method: str
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    context: RequestContext | None
    mark: str


class AskedStore:
    """A memory store that is asked as if over a wire: every call waits, on whatever loop it runs."""

    def __init__(self, during: Callable[[], Awaitable[None]] | None = None, deadline: float = SOON) -> None:
        self.memory = MemoryStore()
        self.during = during
        self.deadline = deadline
        self.asked: list[Asked] = []

    async def ask(self, method: str, *args: Any) -> Any:
        loop, thread = asyncio.get_running_loop(), threading.current_thread()
        self.asked.append(Asked(method, loop, thread, current_context(None), mark.get()))
        await asyncio.sleep(0)
        if self.during is not None:
            await self.during()
        return await getattr(self.memory, method)(*args)

    @property
    def loops(self) -> set[asyncio.AbstractEventLoop]:
        return {asked.loop for asked in self.asked}


def asking(method: str) -> Callable[..., Awaitable[Any]]:
    async def ask(self: AskedStore, *args: Any) -> Any:
        return await self.ask(method, *args)

    return ask


def coroutine_methods(kind: type) -> dict[str, Any]:
    return {name: method for name, method in inspect.getmembers(kind, inspect.iscoroutinefunction) if name[0] != "_"}


WaitingStore: Any = type("WaitingStore", (AskedStore,), {name: asking(name) for name in coroutine_methods(Store)})


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def during() -> None:
        raise error

    return during


class Standing:
    """What a store does that never answers."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def in_thread(func: Callable[..., Any], *args: Any) -> Any:
    """Run it in a thread that knows of no context, and wait."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(func, *args).result(SOON)


async def in_bare_thread(func: Callable[..., Any], *args: Any) -> Any:
    """The same beside a running loop."""
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(func, *args))


def on_a_loop(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run it on an event loop of its own, here."""

    async def whole() -> Any:
        return await main()

    return asyncio.run(whole())


@contextmanager
def nothing_is_left_unawaited() -> Iterator[None]:
    """A coroutine that is made and never awaited is a warning when it goes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


@pytest.fixture(params=[MemoryStore, WaitingStore], ids=["in memory", "waiting"])
def store(request: pytest.FixtureRequest) -> Any:
    return request.param()


CALLS: dict[str, tuple[Any, ...]] = {
    "upsert": ("s", {"a": 1}),
    "replace": ("s", {"a": 1}),
    "get": ("s",),
    "get_field": ("s", "a"),
    "update_field": ("s", "a", 1),
    "increment": ("s", "a"),
    "modify": ("s", dict),
    "touch": ("s", 5),
    "ttl": ("s",),
    "delete_field": ("s", "a"),
    "delete": ("s",),
    "exists": ("s",),
    "list_states": (),
    "clear_all_states": (),
}


# The same methods.


def test_what_blocks_has_every_method_and_no_other() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if name[0] != "_"}

    assert public(SharedState) == public(blocking_type()) | {"sync"}
    assert set(CALLS) == set(coroutine_methods(SharedState))


def blocking_type() -> type:
    return type(SharedState(MemoryStore(), "acme").sync)


@pytest.mark.parametrize("method", CALLS)
def test_every_method_that_blocks_has_the_same_signature(method: str) -> None:
    blocks = getattr(blocking_type(), method)
    assert inspect.signature(blocks) == inspect.signature(getattr(SharedState, method))
    assert not inspect.iscoroutinefunction(blocks)
    assert f"SharedState.{method}`" in blocks.__doc__


def conversation() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls with each argument, by position and by name, and with each kind of answer."""

    def add(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "new": len(data)}

    def call(method: str, *args: Any, **kwargs: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return method, args, kwargs

    return [
        call("get", "s"),
        call("ttl", "s"),
        call("touch", "s", 5),
        call("upsert", "s", {"a": 1, "b": (2, b"3")}, ttl=60),
        call("upsert", key="s", data={"a": 2}, ttl=None),
        call("ttl", "s"),
        call("get", "s"),
        call("get_field", "s", "b"),
        call("get_field", "s", "c"),
        call("get_field", "s", "c", 7),
        call("get_field", key="s", field="c", default=8),
        call("update_field", "s", "c", {1: None}, ttl=60),
        call("ttl", "s"),
        call("update_field", "t", "c", value={"x"}),
        call("increment", "s", "a"),
        call("increment", "s", "a", 5),
        call("increment", "s", "a", by=0.5),
        call("increment", "s", "b"),
        call("modify", "s", add),
        call("modify", "u", func=add),
        call("modify", "u", lambda data: {}),
        call("get", "u"),
        call("touch", "s", None),
        call("touch", key="s", ttl=60),
        call("exists", "s"),
        call("exists", "x"),
        call("list_states"),
        call("delete_field", "s", "a"),
        call("delete_field", "s", "x"),
        call("replace", "s", {"z": 1}),
        call("replace", "w", {"z": 1}, ttl=5),
        call("get", "s"),
        call("delete", "s"),
        call("delete", "s"),
        call("clear_all_states"),
        call("list_states"),
        call("get", 1),
        call("upsert", "s", {}),
        call("upsert", "s", {"a": object()}),
        call("modify", "s", 5),
        call("get"),
    ]


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return type(error), error.args


def test_every_method_that_blocks_returns_and_raises_the_same(store: Any) -> None:
    clock = types.SimpleNamespace(now=1000.0)

    def state() -> SharedState:
        memory = MemoryStore(clock=lambda: clock.now)
        if isinstance(store, MemoryStore):
            return SharedState(memory, "acme", "ann")
        waiting = WaitingStore()
        waiting.memory = memory
        return SharedState(waiting, "acme", "ann")

    waits, blocks = state(), state()
    for method, args, kwargs in conversation():
        expected = outcome(lambda: on_a_loop(lambda: getattr(waits, method)(*args, **kwargs)))  # noqa: B023 - now
        found = outcome(lambda: getattr(blocks.sync, method)(*args, **kwargs))  # noqa: B023 - now
        if isinstance(expected, tuple) and expected[0] is TypeError:  # which tells the class of the method
            assert found[0] is TypeError
        else:
            assert found == expected
            assert type(found) is type(expected)


def test_what_blocks_has_the_tenants_own_states_too(store: Any) -> None:
    state = SharedState(store, "acme", "ann")
    state.sync.tenant_wide.upsert("s", {"whose": "all"})
    state.tenant_wide.sync.increment("s", "n")
    assert state.sync.get("s") is None
    assert SharedState(store, "acme").sync.get("s") == {"whose": "all", "n": 1}
    assert SharedState(store, "acme", "bob").sync.tenant_wide.tenant_wide.list_states() == ["s"]


def test_its_repr_shows_whose_it_is_and_no_values(store: Any) -> None:
    state = SharedState(store, "acme", "ann")
    state.sync.upsert("s", {"password": "hunter2"})
    assert repr(state.sync) == "SharedState(tenant='acme', user='ann').sync"


# In memory, without a hop.


def test_in_memory_no_loop_is_made_and_no_thread_started(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SharedState(MemoryStore(), "acme", "ann")

    def never(*args: Any) -> None:
        raise AssertionError("it hops")

    monkeypatch.setattr(asyncio, "new_event_loop", never)
    monkeypatch.setattr(threading.Thread, "start", never)
    monkeypatch.setattr(blocking, "_background", never)
    assert state.sync.upsert("s", {"a": 1}) is True
    for method, args in CALLS.items():
        getattr(state.sync, method)(*args)
        state.sync.upsert("s", {"a": 1})
    assert state.sync.modify("s", lambda data: {**data, "b": 2}) == {"a": 1, "b": 2}


def test_in_memory_it_is_answered_in_the_thread_that_asks_even_where_the_app_has_a_loop() -> None:
    threads: list[threading.Thread] = []

    class Store(MemoryStore):
        async def read(self, *args: Any) -> Any:
            threads.append(threading.current_thread())
            return await super().read(*args)

    async def main() -> None:
        with bind_context(ANN, store=Store()):
            state = current_state()
            await in_bare_thread(lambda: (threads.append(threading.current_thread()), state.sync.get("s")))

    asyncio.run(main())
    assert len(threads) == 2
    assert threads[0] is threads[1]


async def test_in_memory_it_works_in_the_threads_of_every_event_loop() -> None:
    with bind_context(ANN, store=MemoryStore()):
        assert await anyio.to_thread.run_sync(lambda: current_state().sync.upsert("s", {"a": 1})) is True
        assert await current_state().get("s") == {"a": 1}


def test_a_store_that_claims_to_answer_at_once_and_waits_is_an_error_that_says_so() -> None:
    store = WaitingStore()
    store.immediate = True
    ended: list[str] = []

    class Pause:
        def __await__(self) -> Iterator[None]:
            try:
                yield
            except GeneratorExit:
                ended.append("ended")
                raise

    async def read(*args: Any) -> None:
        await Pause()

    store.read = read
    with nothing_is_left_unawaited(), pytest.raises(RuntimeError, match="`immediate` is true has waited"):
        SharedState(store, "acme").sync.get("s")
    assert ended == ["ended"]


def test_errors_of_a_store_that_answers_at_once_come_through_as_they_are() -> None:
    class Store(MemoryStore):
        async def read(self, *args: Any) -> Any:
            raise error

    for error in (OSError("down"), TimeoutError("own"), KeyboardInterrupt("own"), asyncio.CancelledError("own")):
        with pytest.raises(type(error), match=r"down|own") as caught:
            SharedState(Store(), "acme").sync.get("s")
        assert caught.value is error


# On the thread of a running event loop.


@pytest.mark.parametrize("method", CALLS)
async def test_on_the_thread_of_a_running_loop_it_raises_at_once_whatever_the_store(method: str, store: Any) -> None:
    state = SharedState(store, "acme", "ann")
    with nothing_is_left_unawaited():
        for blocks in (state.sync, state.sync.tenant_wide, state.tenant_wide.sync):
            with pytest.raises(StateBlockingError, match="await the method of SharedState") as caught:
                getattr(blocks, method)(*CALLS[method])
            assert isinstance(caught.value, RuntimeError)
    if not isinstance(store, MemoryStore):
        assert store.asked == []


async def test_so_it_does_in_the_callbacks_of_a_loop(asyncio_only: None, store: Any) -> None:
    state = SharedState(store, "acme", "ann")
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: found.set_result(outcome(lambda: state.sync.get("s"))))
    assert await found == (StateBlockingError, ())


async def test_a_loop_that_runs_in_another_thread_is_no_matter(store: Any) -> None:
    """Also trio's, of which the thread that asks knows nothing."""

    def job() -> Any:
        return SharedState(store, "acme", "ann").sync.upsert("s", {"a": 1})

    assert await anyio.to_thread.run_sync(job) is True


def test_where_another_thread_is_importing_trio_it_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module stands in sys.modules before it has its names."""
    monkeypatch.setitem(sys.modules, "trio", types.ModuleType("trio"))
    assert SharedState(MemoryStore(), "acme").sync.get("s") is None


# Over the loop of the app.


def app_of(store: Any, handle: Callable[[], Awaitable[Any]], **options: Any) -> ContextMiddleware:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        await handle()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    headers = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}
    return ContextMiddleware(app, **headers, store=store, **options)


async def by_carry_context(func: Callable[..., Any], *args: Any) -> Any:
    return await in_bare_thread(carry_context(func), *args)


async def by_run_in_executor(func: Callable[..., Any], *args: Any) -> Any:
    return await run_in_executor(None, func, *args)


async def by_run_in_pool(func: Callable[..., Any], *args: Any) -> Any:
    return await run_in_pool("jobs", func, *args)


async def by_to_thread(func: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(func, *args)


WAYS = [by_carry_context, by_run_in_executor, by_run_in_pool, by_to_thread]


@pytest.mark.parametrize("way", WAYS)
async def test_from_a_requests_thread_the_store_runs_on_the_apps_loop(asyncio_only: None, way: Any) -> None:
    """Where the state was not asked for before, as well."""
    store = WaitingStore()

    def job() -> None:
        mark.set("job")
        state = current_state()
        state.sync.upsert("s", {"a": 1})
        assert state.sync.tenant_wide.get("s") is None
        assert state.sync.modify("s", lambda data: {**data, "b": 2}) == {"a": 1, "b": 2}

    await run(app_of(store, lambda: way(job), pools={"jobs": 2}), http(*who("acme", "ann")))
    assert [asked.method for asked in store.asked] == ["merge", "read", "read_version", "replace_version"]
    for asked in store.asked:
        assert asked.loop is asyncio.get_running_loop()
        assert asked.thread is threading.current_thread()
        assert asked.context is not None
        assert (asked.context.tenant, asked.context.user, asked.mark) == ("acme", "ann", "job")


async def test_a_bare_thread_that_holds_a_state_reaches_the_apps_loop(asyncio_only: None) -> None:
    store = WaitingStore()

    async def handle() -> None:
        kept = current_state()
        assert await in_bare_thread(kept.sync.upsert, "s", {"a": 1}) is True
        assert await in_bare_thread(kept.tenant_wide.sync.upsert, "s", {"a": 2}) is True
        assert await kept.get("s") == {"a": 1}

    await run(app_of(store, handle), http(*who()))
    assert store.loops == {asyncio.get_running_loop()}
    assert [asked.context and asked.context.tenant for asked in store.asked] == [None, None, "acme"]


async def test_a_thread_that_holds_a_state_keeps_its_tenant_whatever_is_bound_there(
    asyncio_only: None, store: Any
) -> None:
    def look(kept: SharedState) -> list[Any]:
        found = [kept.sync.get_field("s", "whose")]
        with bind_context(BOB, store=store):
            found += [kept.sync.get_field("s", "whose"), current_state().sync.get_field("s", "whose")]
            found.append(kept.sync.tenant_wide.get_field("s", "whose"))
            kept.sync.update_field("t", "whose", "ann")
        with unbound_context():
            found.append(kept.sync.get_field("s", "whose"))
        return found

    await SharedState(store, "globex", "bob").upsert("s", {"whose": "bob"})
    await SharedState(store, "acme").upsert("s", {"whose": "acme"})
    with bind_context(ANN, store=store):
        kept = current_state()
        await kept.upsert("s", {"whose": "ann"})
        for way in (in_bare_thread, by_carry_context, by_run_in_executor):
            assert await way(look, kept) == ["ann", "ann", "bob", "acme", "ann"]
    with bind_context(BOB, store=store):
        assert await in_bare_thread(carry_context(look), kept) == ["ann", "ann", "bob", "acme", "ann"]
    assert await SharedState(store, "globex", "bob").list_states() == ["s"]
    assert await kept.list_states() == ["s", "t"]


async def test_the_store_sees_the_context_of_the_thread_that_asks(asyncio_only: None) -> None:
    """Not that of the loop, nor that of whoever asked first; and what it sets stays with it."""
    store = WaitingStore()

    async def during() -> None:
        mark.set("store")

    store.during = during
    with bind_context(ANN, store=store):
        mark.set("loop")
        kept = current_state()

        def job() -> str:
            kept.sync.get("s")
            mark.set("job")
            with bind_context(BOB):
                kept.sync.get("s")
            return mark.get()

        assert await in_bare_thread(job) == "job"
        assert mark.get() == "loop"
    seen = [(asked.context and asked.context.user, asked.mark) for asked in store.asked]
    assert seen == [(None, "unset"), ("bob", "job")]


async def test_inside_of_modify_the_function_runs_on_the_loop_where_blocking_is_refused(asyncio_only: None) -> None:
    state = SharedState(WaitingStore(), "acme")
    state = await by_to_thread(lambda: state)

    def func(data: dict[str, Any]) -> dict[str, Any]:
        state.sync.get("s")
        return data

    with pytest.raises(StateBlockingError):
        await by_to_thread(state.sync.modify, "s", func)


def test_each_app_has_its_own_loop() -> None:
    """Two at once in one process, and a state of one that is used in a thread of the other."""
    store = WaitingStore()
    states: dict[str, SharedState] = {}
    loops: dict[str, Any] = {}
    both = threading.Barrier(2)

    def serve(tenant: str) -> None:
        async def handle() -> None:
            loops[tenant] = asyncio.get_running_loop()
            states[tenant] = await asyncio.to_thread(lambda: current_state())
            both.wait(SOON)
            other = states["globex" if tenant == "acme" else "acme"]
            await asyncio.to_thread(other.sync.update_field, "s", "from", tenant)
            await asyncio.to_thread(both.wait, SOON)  # the loop must run as long as the other asks it

        asyncio.run(run_it(app_of(store, handle), tenant))

    async def run_it(app: Any, tenant: str) -> None:
        await run(app, http(*who(tenant)))

    threads = [threading.Thread(target=serve, args=(tenant,)) for tenant in ("acme", "globex")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert [asked.method for asked in store.asked] == ["merge", "merge"]
    for asked in store.asked:
        assert asked.context is not None
        assert asked.loop is not loops[asked.context.tenant]
    assert SharedState(store.memory, "acme", "ann").sync.get("s") == {"from": "globex"}


async def test_from_a_thread_that_has_a_loop_of_its_own_it_is_the_apps_loop(asyncio_only: None) -> None:
    """Whoever asks first may have a loop for a moment; the state is everybody's as long as the request lasts."""
    store = WaitingStore()

    async def inner() -> None:
        await asyncio.to_thread(current_state().sync.get, "s")

    async def handle() -> None:
        await by_carry_context(lambda: asyncio.run(inner()))
        await asyncio.to_thread(current_state().sync.get, "s")
        assert store.loops == {asyncio.get_running_loop()}
        assert len(store.asked) == 2

    await run(app_of(store, handle), http(*who()))


async def test_a_store_that_is_bound_inside_a_request_is_reached_over_the_apps_loop_too(asyncio_only: None) -> None:
    """Also where the app's own store answers at once, and so needs none."""
    store = WaitingStore()

    async def handle() -> None:
        with bind_context(store=store):
            await by_carry_context(lambda: current_state().sync.get("s"))

    for outer in (WaitingStore(), MemoryStore(), None):
        await run(app_of(outer, handle), http(*who()))
    assert store.loops == {asyncio.get_running_loop()}


async def test_many_threads_at_once_lose_nothing(asyncio_only: None) -> None:
    store = WaitingStore()

    def job(number: int) -> None:
        state = current_state()
        for _ in range(25):
            state.sync.increment("s", "n")
            state.sync.increment("s", f"n{number}")
        state.sync.modify("t", lambda data: {"modified": [*data.get("modified", ()), number]})

    async def handle() -> None:
        with ThreadPoolExecutor(10) as pool:
            jobs = [run_in_executor(pool, job, number) for number in range(20)]
            await asyncio.gather(*jobs)

    await run(app_of(store, handle), http(*who()))
    kept = SharedState(store, "acme", "ann")
    assert await kept.get("s") == {"n": 500, **{f"n{number}": 25 for number in range(20)}}
    assert sorted(await kept.get_field("t", "modified")) == list(range(20))
    assert store.loops == {asyncio.get_running_loop()}


# The app's loop.


async def test_the_apps_loop_is_noted_with_each_request() -> None:
    """A middleware may serve on several loops in turn, as tests do; under trio there is none."""
    known: list[Any] = []

    async def handle() -> None:
        known.append(app._services.app_loop.loop)

    app = app_of(WaitingStore(), handle)
    assert app._services.app_loop.loop is None
    await run(app, http(*who()))
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        assert known == [None]
    else:
        assert known == [running]
        await asyncio.to_thread(lambda: asyncio.run(run(app, http(*who()))))
        assert known[1] is not running
        await run(app, http(*who()))
        assert known[2] is running


def test_a_store_in_memory_needs_no_loop() -> None:
    assert cast("Any", SharedState(MemoryStore(), "acme"))._loop is None


async def test_after_the_lifespan_what_still_runs_asks_on_the_apps_loop() -> None:
    store = WaitingStore()

    async def work() -> None:
        await asyncio.to_thread(current_state().sync.get, "s")

    async def handle() -> None:
        tasks.append(asyncio.get_running_loop().create_task(after()))

    async def after() -> None:
        await over.wait()
        await work()

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return  # under trio there is none
    tasks: list[asyncio.Task[None]] = []
    over = asyncio.Event()
    app = app_of(store, handle)
    await app.open()
    await run(app, http(*who()))
    await app.close()
    over.set()
    await tasks[0]
    assert store.loops == {loop}


async def test_under_trio_what_is_asked_for_in_a_thread_runs_where_no_app_has_a_loop(trio_only: None) -> None:
    store = WaitingStore()

    async def handle() -> None:
        await anyio.to_thread.run_sync(lambda: current_state().sync.upsert("s", {"a": 1}))

    async with anyio.create_task_group() as group:
        group.start_soon(run, app_of(store, handle), http(*who()))
    assert [asked.thread.name for asked in store.asked] == ["asgi_context-background"]


async def test_a_job_that_still_runs_at_shutdown_reaches_the_apps_loop(asyncio_only: None) -> None:
    """The pools wait for their jobs while the app's loop runs, and the store is closed after them."""
    store, go = WaitingStore(), threading.Event()

    def job() -> None:
        go.wait(SOON)
        current_state().sync.upsert("s", {"a": 1})

    tasks: list[asyncio.Task[Any]] = []
    begun = asyncio.Event()

    async def handle() -> None:
        async def wait() -> None:
            await run_in_pool("jobs", job)

        tasks.append(asyncio.create_task(wait()))
        await asyncio.sleep(0)
        begun.set()

    app = app_of(store, handle, pools={"jobs": 1})
    await run(app, http(*who()))
    await begun.wait()
    closing = asyncio.create_task(app.close())
    for _ in range(10):
        await asyncio.sleep(0)
    go.set()
    await asyncio.gather(closing, *tasks)
    assert store.loops == {asyncio.get_running_loop()}


# The deadline.


async def test_a_call_that_is_late_is_cancelled_and_the_store_is_told_unavailable(asyncio_only: None) -> None:
    standing = Standing()
    store = WaitingStore(standing, deadline=LATE)
    state = SharedState(store, "acme", "ann")
    before = asyncio.all_tasks()
    with pytest.raises(StateUnavailableError, match=r"within 0\.5 seconds; whether a write took place is not known"):
        await by_to_thread(state_here(state).sync.upsert, "s", {"a": 1})
    assert await asyncio.to_thread(standing.cancelled.wait, SOON)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before, "nothing is left running"
    assert store.memory._states == 0
    store.during = None
    store.deadline = SOON
    assert await by_to_thread(state.sync.upsert, "s", {"a": 1}) is True, "and the next call is a call like any other"


def state_here(state: SharedState) -> SharedState:
    """Let a state that was made by hand use the loop that runs here, as `current_state` does."""
    state._loop = blocking.AppLoop(asyncio.get_running_loop())
    return state


def test_a_call_that_is_late_is_cancelled_in_scripts_too() -> None:
    standing = Standing()
    store = WaitingStore(standing, deadline=LATE)
    with pytest.raises(StateUnavailableError) as caught:
        SharedState(store, "acme").sync.get("s")
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert standing.cancelled.wait(SOON)


async def test_a_store_that_answers_after_all_is_heard_no_more(
    asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it swallows its cancellation and answers, or fails."""
    for error in (None, OSError("late")):
        ended = asyncio.Event()

        async def during() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.set()  # noqa: B023 - of this round
                if error is not None:  # noqa: B023 - of this round
                    raise error from None  # noqa: B023 - of this round

        state = state_here(SharedState(WaitingStore(during, deadline=LATE), "acme"))
        with nothing_is_left_unawaited():
            with pytest.raises(StateUnavailableError):
                await by_to_thread(state.sync.get, "s")
            await ended.wait()
            for _ in range(5):
                await asyncio.sleep(0)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_call_that_was_given_up_before_the_loop_came_to_it_never_asks_the_store(asyncio_only: None) -> None:
    store = WaitingStore(deadline=AT_ONCE)
    state = state_here(SharedState(store, "acme"))
    given_up = threading.Event()
    found: list[Any] = []

    def job() -> None:
        found.append(outcome(lambda: state.sync.upsert("s", {"a": 1})))
        given_up.set()

    with nothing_is_left_unawaited():
        thread = threading.Thread(target=job)
        thread.start()
        assert given_up.wait(SOON)  # the loop stands still as long as this does
        thread.join(SOON)
        for _ in range(5):
            await asyncio.sleep(0)
    assert found[0][0] is StateUnavailableError
    assert store.asked == []


def test_a_store_that_says_nothing_has_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocking._DEADLINE == 30
    monkeypatch.setattr(blocking, "_DEADLINE", LATE)
    standing = Standing()
    store = WaitingStore(standing)
    del store.deadline
    with pytest.raises(StateUnavailableError, match=r"within 0\.5 seconds"):
        SharedState(store, "acme").sync.get("s")
    assert standing.cancelled.wait(SOON)


# Errors of the store.


class OwnError(BaseException):
    """What no handler of Exception catches."""


@pytest.mark.parametrize(
    "error",
    [
        OSError("down"),
        TimeoutError("own"),
        concurrent.futures.CancelledError("own"),
        KeyError("own"),
        StateLimitError("states", 5),
        StateUnavailableError("gone"),
        OwnError("own"),
        GeneratorExit("own"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_store_come_through_as_they_are(error: BaseException) -> None:
    store = WaitingStore(raising(error))
    state = SharedState(store, "acme")
    with nothing_is_left_unawaited(), pytest.raises(type(error)) as caught:
        state.sync.get("s")
    assert caught.value is error
    store.during = None
    assert state.sync.get("s") is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_would_stop_the_loop_reaches_the_caller_and_the_loop_runs_on(error: type[BaseException]) -> None:
    """In a process of its own, since the loop is everybody's."""
    said = script(f"""
        own, store.deadline = {error.__name__}("own"), 1
        store.during = raising(own)
        try:
            state.sync.get("s")
        except BaseException as error:
            say(error is own)
        store.during = None
        say(state.sync.get("s"))
    """)
    assert said == ["True", "None"]


def test_a_cancellation_inside_of_the_store_is_no_cancellation_of_the_caller() -> None:
    state = SharedState(WaitingStore(raising(asyncio.CancelledError())), "acme")
    with pytest.raises(StateUnavailableError, match="cancelled on its event loop"):
        state.sync.get("s")


def test_where_a_task_cannot_be_made_the_caller_is_told() -> None:
    """A loop's task factory is whatever others have put there, such as one that takes no context."""
    store = WaitingStore(deadline=1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with bind_context(ANN, store=store):
            state = current_state()
        job = loop.run_in_executor(None, lambda: outcome(lambda: state.sync.get("s")))
        loop.set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))  # type: ignore[arg-type,misc]
        try:
            found.append(await job)
        finally:
            loop.set_task_factory(None)

    found: list[Any] = []
    with nothing_is_left_unawaited():
        runner = asyncio.Runner()
        runner.get_loop().set_exception_handler(lambda loop, context: found.append(context["message"]))
        with runner:
            runner.run(main())
    assert [kind for kind, _ in found] == [TypeError]


# Loops that end.


def noted(store: Any, main: Callable[[], Awaitable[Any]] | None = None) -> SharedState:
    """A state that was asked for on a loop which has ended since."""

    async def asked_for() -> SharedState:
        with bind_context(ANN, store=store):
            return current_state()

    return asyncio.run(asked_for())


def test_where_the_apps_loop_is_closed_the_process_has_its_own() -> None:
    store = WaitingStore()
    state = noted(store)
    assert state._loop is not None
    assert state._loop.loop.is_closed()
    assert state.sync.upsert("s", {"a": 1}) is True
    assert [asked.thread.name for asked in store.asked] == ["asgi_context-background"]


def test_where_the_apps_loop_is_stopped_the_process_has_its_own() -> None:
    store = WaitingStore()
    state: Any = SharedState(store, "acme")
    loop = asyncio.new_event_loop()
    state._loop = blocking.AppLoop(loop)
    assert state.sync.upsert("s", {"a": 1}) is True
    loop.close()
    assert [asked.thread.name for asked in store.asked] == ["asgi_context-background"]


async def test_the_loop_that_a_request_has_noted_serves_the_next_ones_too(asyncio_only: None) -> None:
    store = WaitingStore()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await run_in_executor(None, current_state().sync.upsert, "s", {"a": 1})

    wrapped = ContextMiddleware(app, tenant=from_header("x-tenant-id"), store=store)
    for _ in range(3):
        await run(wrapped, http((b"x-tenant-id", b"acme")))
    assert [asked.thread for asked in store.asked] == [threading.current_thread()] * 3


class JustStopped(blocking.AppLoop):
    """A loop that was seen to run a moment ago."""

    def usable(self) -> asyncio.AbstractEventLoop | None:
        return self.loop


def test_a_loop_that_was_stopped_and_goes_on_drops_what_was_given_up() -> None:
    store = WaitingStore(deadline=AT_ONCE)
    state: Any = SharedState(store, "acme")
    loop = asyncio.new_event_loop()
    state._loop = JustStopped(loop)
    with nothing_is_left_unawaited():
        with pytest.raises(StateUnavailableError, match="within"):
            state.sync.get("s")
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
    assert asyncio.all_tasks(loop) == set()
    loop.close()
    assert store.asked == []


class ClosingLoop:
    """A loop that ends between two calls; the real one leaves no such moment to a test."""

    def __init__(self, loop: Any, calls: int) -> None:
        self.loop, self.calls = loop, calls

    def is_running(self) -> bool:
        return True

    def create_task(self, *args: Any, **kwargs: Any) -> Any:
        return self.loop.create_task(*args, **kwargs)

    def call_soon_threadsafe(self, *args: Any) -> None:
        if not self.calls:
            raise RuntimeError("Event loop is closed")
        self.calls -= 1
        self.loop.call_soon_threadsafe(*args)


def test_where_the_apps_loop_ends_just_then_it_is_unavailable() -> None:
    state: Any = SharedState(WaitingStore(), "acme")
    state._loop = blocking.AppLoop(ClosingLoop(None, 0))
    with nothing_is_left_unawaited(), pytest.raises(StateUnavailableError, match="its event loop has ended"):
        state.sync.get("s")


def test_where_the_apps_loop_ends_before_the_deadline_it_is_unavailable() -> None:
    state: Any = SharedState(WaitingStore(deadline=AT_ONCE), "acme")
    loop = asyncio.new_event_loop()
    state._loop = blocking.AppLoop(ClosingLoop(loop, 1))
    with nothing_is_left_unawaited():
        with pytest.raises(StateUnavailableError, match="within"):
            state.sync.get("s")
        loop.close()
        state._loop = None


def test_where_the_app_ends_while_a_thread_waits_the_thread_is_told() -> None:
    """The end of asyncio.run cancels whatever still runs."""
    standing = Standing()
    store = WaitingStore(standing)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(outcome(lambda: states[0].sync.get("s"))))
    states: list[SharedState] = []

    async def main() -> None:
        with bind_context(ANN, store=store):
            states.append(current_state())
        thread.start()
        await asyncio.to_thread(standing.begun.wait, SOON)

    asyncio.run(main())
    thread.join(SOON)
    assert found == [(StateUnavailableError, ("it was cancelled on its event loop",))]
    assert standing.cancelled.is_set()


# The waiting thread is interrupted.


@pytest.mark.skipif(sys.platform == "win32", reason="no signal reaches one thread there")
def test_an_interrupt_of_the_waiting_thread_ends_the_call() -> None:
    ended = Standing()

    async def during() -> None:
        # Once it stands still: a signal that comes just before it begins to wait would only be seen after that.
        main, seen = threading.main_thread().ident or 0, [0]
        while len(seen) < 20 or len(set(seen[-20:])) > 1:
            await asyncio.sleep(0.005)
            seen.append(sys._current_frames()[main].f_lasti)
        signal.pthread_kill(main, signal.SIGINT)
        await ended()

    state = SharedState(WaitingStore(during), "acme")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            state.sync.get("s")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.cancelled.wait(SOON)


def test_an_interrupt_while_the_process_gets_its_own_loop_leaves_that_for_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    background = blocking._Background()
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.loop()
    monkeypatch.undo()
    before = threading.active_count()
    loop = background.loop()
    assert threading.active_count() == before
    assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "runs"), loop).result(SOON) == "runs"
    thread: Any = background._thread
    loop.call_soon_threadsafe(loop.stop)
    thread.join(SOON)
    loop.close()


def test_a_task_that_is_cancelled_as_it_ends_has_answered() -> None:
    complaints: list[Any] = []

    async def during() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    store = WaitingStore(during)
    state = SharedState(store, "acme").sync
    for _ in range(20):
        with suppress(StateUnavailableError):
            assert state.get("s") is None
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), store.asked[0].loop).result(SOON)
    store.asked[0].loop.call_soon_threadsafe(store.asked[0].loop.set_exception_handler, None)
    assert complaints == []


@pytest.mark.parametrize("deadline", [0, -1, None, "5", True, float("nan"), float("inf")])
def test_a_deadline_must_be_a_number_of_seconds(deadline: Any) -> None:
    store = WaitingStore()
    store.deadline = deadline
    with pytest.raises(ValueError, match="deadline of WaitingStore must be a number of seconds"):
        SharedState(store, "acme").sync.get("s")
    assert store.asked == []


def test_an_interrupt_between_asking_and_waiting_ends_the_call() -> None:
    """The signal comes while the loop is being woken."""
    standing = Standing()
    store = WaitingStore(standing)
    state: Any = SharedState(store, "acme")

    class Interrupted(ClosingLoop):
        def call_soon_threadsafe(self, *args: Any) -> None:
            super().call_soon_threadsafe(*args)
            if self.calls == 9:  # the first of 10
                assert standing.begun.wait(SOON)
                raise KeyboardInterrupt

    # The loop that this process has for itself.
    asking = WaitingStore()
    SharedState(asking, "acme").sync.get("s")
    state._loop = blocking.AppLoop(Interrupted(asking.asked[0].loop, 10))
    with pytest.raises(KeyboardInterrupt):
        state.sync.get("s")
    try:
        assert standing.cancelled.wait(5)
    finally:
        for task in asyncio.all_tasks(asking.asked[0].loop):
            asking.asked[0].loop.call_soon_threadsafe(task.cancel)


# Scripts and workers: no app, no loop.


def test_without_an_app_there_is_one_loop_for_the_process_in_a_thread_that_holds_up_no_exit() -> None:
    store = WaitingStore()
    states = [SharedState(store, tenant) for tenant in ("acme", "globex")]
    for state in states:
        state.sync.get("s")
        in_thread(state.sync.get, "s")
        with bind_context(ANN, store=store):
            current_state().sync.get("s")
            in_thread(current_state().sync.get, "s")
    assert len(store.asked) == 8
    assert len(store.loops) == 1
    [thread] = {asked.thread for asked in store.asked}
    assert thread.daemon
    assert thread.name == "asgi_context-background"


def test_many_threads_that_ask_first_make_one_loop_and_lose_nothing() -> None:
    said = script("""
        states = [SharedState(store, "acme", str(number % 3)) for number in range(16)]
        barrier = threading.Barrier(16)

        def work(state):
            barrier.wait(30)
            for _ in range(25):
                state.sync.increment("s", "n")
                state.sync.tenant_wide.increment("s", "n")

        threads = [threading.Thread(target=work, args=(state,)) for state in states]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        say(SharedState(store, "acme").sync.get("s"), len({asked.loop for asked in store.asked}))
        say([thread.name for thread in threading.enumerate() if thread is not threading.main_thread()])
    """)
    assert said == ["{'n': 400} 1", "['asgi_context-background']"]


def test_a_script_ends_by_itself_and_in_silence() -> None:
    assert script("say(state.sync.upsert('s', {'a': 1}), state.sync.get('s'))") == ["True {'a': 1}"]


def test_where_no_thread_can_be_started_the_next_call_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    background = blocking._Background()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with nothing_is_left_unawaited():
        monkeypatch.setattr(threading.Thread, "start", refuse)
        monkeypatch.setattr(blocking, "_background", background)
        with pytest.raises(StateUnavailableError, match=r"no thread could be started .*can't start"):
            SharedState(WaitingStore(), "acme").sync.get("s")
        monkeypatch.undo()
        loop = background.loop()
        try:
            running = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "runs"), loop)
            assert running.result(5) == "runs"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            for thread in threading.enumerate():
                if getattr(thread, "_target", None) == loop.run_forever:
                    thread.join(SOON)
            if not loop.is_running():
                loop.close()


SCRIPT = """
import asyncio, multiprocessing, os, sys, threading
sys.path.insert(0, {tests!r})
from test_blocking import Standing, WaitingStore, raising
from asgi_context import Identity, SharedState, bind_context, current_state

def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")  # whole lines, whichever process says them

def wait_for(child):
    say("child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

store = WaitingStore()
state = SharedState(store, "acme", "ann")
"""


def script(body: str, *more: str) -> list[str]:
    """Run a script in a process of its own, where warnings are errors; what it said."""
    source = SCRIPT.format(tests=str(Path(__file__).parent)) + textwrap.dedent(body)
    # That a process with threads is forked is the point here.
    allowed = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    ended = subprocess.run(
        [sys.executable, *allowed, "-c", source, *more], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.stderr, ended.returncode) == ("", 0)
    return ended.stdout.splitlines()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


@needs_fork
def test_after_a_fork_the_child_has_a_loop_of_its_own_and_the_parent_keeps_its() -> None:
    said = script("""
        state.sync.upsert("s", {"a": 1})
        loop = store.asked[0].loop
        child = os.fork()
        if not child:
            say("child", state.sync.get("s"), store.asked[-1].loop is loop)
            state.sync.get("s")
            say("child", store.asked[-1].loop is store.asked[-2].loop)
            os._exit(0)
        wait_for(child)
        say("parent", state.sync.get("s"), store.asked[-1].loop is loop)
    """)
    assert said == ["child {'a': 1} False", "child True", "child ended with 0", "parent {'a': 1} True"]


@needs_fork
def test_a_lock_that_another_thread_held_at_the_fork_is_no_lock_in_the_child() -> None:
    background = blocking._Background()
    background._lock.acquire()
    background.forget()  # what the child does first
    assert background._lock.acquire(blocking=False)


def test_where_no_process_can_be_forked_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    again: dict[str, Any] = runpy.run_path(blocking.__file__ or "")
    assert "_background" in again


@needs_fork
def test_after_a_fork_the_childs_child_has_one_too() -> None:
    said = script("""
        state.sync.upsert("s", {"a": 1})
        for generation in range(3):
            child = os.fork()
            if child:
                wait_for(child)
                break
            say(generation, state.sync.increment("s", "a"))
        sys.stdout.flush()
        os._exit(0)
    """)
    assert said == ["0 2", "1 3", "2 4", *["child ended with 0"] * 3]


@needs_fork
def test_a_fork_in_the_middle_of_a_call_leaves_both_sides_whole() -> None:
    """Another thread of the parent waits for its answer, and a third one holds the lock, as the child is forked off."""
    said = script("""
        from asgi_context import _blocking

        standing = store.during = Standing()
        go = threading.Event()

        async def during():
            standing.begun.set()
            while not go.is_set():
                await asyncio.sleep(0.001)

        store.during = during
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(state.sync.upsert("s", {"a": 1})))
        waiting.start()
        standing.begun.wait(30)
        held, done = threading.Event(), threading.Event()

        def hold():
            with _blocking._background._lock:
                held.set()
                done.wait(30)

        holding = threading.Thread(target=hold)
        holding.start()
        held.wait(30)
        child = os.fork()
        if not child:
            store.during = None
            say("child", SharedState(store, "globex").sync.upsert("s", {"a": 1}))
            os._exit(0)
        done.set()
        wait_for(child)
        go.set()
        waiting.join(30)
        holding.join(30)
        say("parent", answers, state.sync.get("s"))
    """)
    assert said == ["child True", "child ended with 0", "parent [True] {'a': 1}"]


@needs_fork
@pytest.mark.parametrize(
    "asked",
    [
        "kept.sync",
        "kept.tenant_wide.sync",
        "kept.sync.tenant_wide",
        "current_state().sync",
        "bind_context(Identity('acme', 'ann')).run(lambda: current_state().sync)",
        "bind_context(Identity('acme', 'ann'), store=store).run(lambda: current_state().sync)",
    ],
)
def test_after_a_fork_the_loop_of_the_parents_app_is_not_waited_for(asked: str) -> None:
    """It was taken along as an object, but runs in the parent alone."""
    said = script(
        """
        from contextvars import copy_context

        class Inside:
            def __init__(self, *args, **kwargs):
                self.block = bind(*args, **kwargs)

            def run(self, call):
                with self.block:
                    return call()

        bind = bind_context

        async def main():
            with bind(Identity("acme", "ann"), store=store):
                kept = current_state()
            with bind(Identity("acme", "bob"), store=store):  # whose state nobody has asked for yet
                context = copy_context()

            def fork():
                store.deadline = 5
                child = os.fork()
                if not child:
                    bind_context = Inside
                    try:
                        say("child", context.run(lambda: ASKED).upsert("s", {"a": 1}))
                    except BaseException as error:
                        say("child", type(error).__name__)
                    os._exit(0)
                wait_for(child)

            await asyncio.to_thread(fork)
            say("parent", await asyncio.to_thread(kept.sync.get, "s"))

        asyncio.run(main())
    """.replace("ASKED", asked)
    )
    assert said == ["child True", "child ended with 0", "parent None"]


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_in_processes_of_multiprocessing_it_works(tmp_path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this platform")
    main = tmp_path / "main.py"
    body = textwrap.dedent("""
        def work(answers):
            answers.put((state.sync.upsert("child", {"a": 1}), state.sync.list_states()))

        if __name__ == "__main__":
            state.sync.upsert("parent", {"a": 1})
            context = multiprocessing.get_context(sys.argv[1])
            answers = context.SimpleQueue()
            process = context.Process(target=work, args=(answers,))
            process.start()
            say(answers.get())
            process.join(60)
            say(process.exitcode, state.sync.list_states())
    """)
    main.write_text(SCRIPT.format(tests=str(Path(__file__).parent)) + body)
    ended = subprocess.run(
        [sys.executable, str(main), method], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    there = "['child', 'parent']" if method == "fork" else "['child']"
    assert ended.stdout.splitlines() == [f"(True, {there})", "0 ['parent']"]


def test_errors_of_shared_state_come_through_every_hop() -> None:
    state = SharedState(WaitingStore(), "acme")
    with pytest.raises(StateSerializationError, match="field 'a'"):
        state.sync.upsert("s", {"a": object()})
    state.sync.upsert("s", {"a": "text"})
    with pytest.raises(StateNumberError):
        state.sync.increment("s", "a")
    with pytest.raises(KeyError, match="nothing"):
        state.sync.ttl("nothing")

    class Contended(AskedStore):
        async def ask(self, method: str, *args: Any) -> Any:
            return False if method == "replace_version" else await super().ask(method, *args)

    contended: Any = type("Contended", (Contended,), {name: asking(name) for name in coroutine_methods(Store)})
    with pytest.raises(StateConflictError):
        SharedState(contended(), "acme").sync.modify("s", lambda data: {"n": 1})
