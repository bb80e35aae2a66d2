"""Limits of tools: how many calls at a time and within a minute, over requests and processes, for users and tenants."""

import asyncio
import itertools
import json
import os
import runpy
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis_servers
from driver import http, run, who
from resources import Gate, logged_errors, quiet_loop, settle, soon, spawn, turns, wrap
from tool_calls import ANN, LONG, SHORT, Block, Driven, cancel, outlived, until

from asgi_context import Identity, MemoryStore, bind_context, current_context, current_resource
from asgi_context.errors import StateUnavailableError
from asgi_context.tools import ToolDispatcher, ToolLimits, ToolRegistry, ToolResult, ToolSystem, ToolSystemFactory
from asgi_context.tools import _dispatcher as dispatcher_module
from asgi_context.tools import _limits as limits_module

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)
logged = pytest.fixture(logged_errors)

BOB = Identity("acme", "bob")
EVE = Identity("globex", "ann")
NOBODY = Identity("acme")
TEN_A_MINUTE = ToolLimits(per_minute=10)
TWO_AT_ONCE = ToolLimits(at_once=2)

numbers = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, asyncio_only: None) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryStore()
        return
    servers = redis_servers.shared("redis")
    prefix = f"limits{next(numbers)}"
    made = servers.store(prefix=prefix, timeout=LONG)
    yield made
    await made.close()
    forget(servers, prefix)


def forget(servers: Any, prefix: str) -> None:
    with closing(servers.client()) as client:
        for key in client.keys(f"{prefix}*"):
            client.delete(key)


class Site:
    """An app with tools, of which each request calls one."""

    def __init__(self, store: Any, **limits: Any) -> None:
        self.gate, self.running, self.most, self.begun = asyncio.Event(), 0, 0, 0

        async def tool(wait: bool = False) -> str:
            self.begun += 1
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                if wait:
                    await self.gate.wait()
                await turns(3)
            finally:
                self.running -= 1
            return "done"

        async def handle() -> None:
            system = await current_resource(ToolSystem)
            self.results.append(await system.dispatcher.dispatch("tool", self.arguments))

        self.results: list[ToolResult] = []
        self.arguments: Any = {}
        self.middleware = wrap(handle, {ToolSystem: ToolSystemFactory([tool], **limits)}, store=store)

    async def call(self, tenant: str = "acme", user: str = "ann", **arguments: Any) -> ToolResult:
        """A request of its own, in which the tool is called."""
        self.arguments = arguments
        async with asyncio.timeout(LONG):
            await run(self.middleware, http(*who(tenant, user)))
        return self.results.pop()

    async def hold(self, number: int, tenant: str = "acme", user: str = "ann") -> list[Any]:
        """As many requests, whose calls run until the gate is opened."""
        begun = self.begun
        self.arguments = {"wait": True}
        tasks = [spawn(run(self.middleware, http(*who(tenant, user)))) for _ in range(number)]
        await until(lambda: self.begun - begun + sum(task.done() for task in tasks) == number)
        return tasks

    async def let_go(self, *tasks: Any) -> None:
        self.gate.set()
        await settle(*tasks)
        self.gate.clear()


# --- what may be said of limits


def test_limits_are_none_unless_they_are_given() -> None:
    limits = ToolLimits()
    assert (limits.at_once, limits.per_minute) == (None, None)
    assert ToolLimits(1, 2) == ToolLimits(at_once=1, per_minute=2)
    with pytest.raises(AttributeError):
        limits.at_once = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["at_once", "per_minute"])
@pytest.mark.parametrize(("value", "error"), [("1", TypeError), (1.0, TypeError), (True, TypeError), (0, ValueError)])
def test_limits_are_positive_ints(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} must be"):
        ToolLimits(**{name: value})


async def test_limits_that_limit_nothing_ask_no_store(asyncio_only: None) -> None:
    site = Site(Broken("acquire", "count", "release"), user_limits=ToolLimits(), tenant_limits=ToolLimits())
    assert (await site.call()).ok


# --- calls within a minute


@pytest.mark.parametrize("whose", ["user_limits", "tenant_limits"])
async def test_of_twenty_requests_ten_call_a_tool_where_ten_a_minute_may(store: Any, whose: str) -> None:
    site = Site(store, **{whose: TEN_A_MINUTE})
    results = [await site.call() for _ in range(20)]
    assert [result.code for result in results] == [None] * 10 + ["rate_limited"] * 10
    assert site.begun == 10
    for result in results[10:]:
        assert result.text == "There were too many calls within a minute. Try again later."
        assert result.retry_after is not None
        assert 0 < result.retry_after <= 60
    waits = [result.retry_after or 0 for result in results[10:]]
    assert waits == sorted(waits, reverse=True), "who asks again does not wait for longer"


@pytest.mark.parametrize("whose", ["user_limits", "tenant_limits"])
async def test_of_a_hundred_requests_at_once_ten_do_too(store: Any, whose: str) -> None:
    site = Site(store, **{whose: TEN_A_MINUTE})
    await settle(*[spawn(site.call()) for _ in range(100)])
    assert site.begun == 10


async def test_a_minute_begins_with_the_first_call_and_ends(asyncio_only: None) -> None:
    clock = Clock()
    site = Site(MemoryStore(clock=clock), user_limits=ToolLimits(per_minute=2))
    codes: list[Any] = []
    for now in (0, 59, 59.9, 60, 100, 119, 120):
        clock.now = now
        result = await site.call()
        codes.append((result.code, result.retry_after))
    limited = "rate_limited"
    assert codes[:2] == [(None, None)] * 2
    assert codes[2] == (limited, pytest.approx(0.1))
    assert codes[3:] == [(None, None), (None, None), (limited, 1), (None, None)]


async def test_calls_that_crash_or_are_late_count_and_those_that_never_began_do_not(
    store: Any, logged: Callable[[], list[str]]
) -> None:
    async def crash() -> None:
        raise SystemExit

    async def late() -> None:
        await asyncio.get_running_loop().create_future()

    async def work(a: int) -> None: ...

    async with bind_context(ANN, store=store):
        dispatcher = ToolDispatcher(ToolRegistry([crash, late, work]), user_limits=ToolLimits(3, 3))
        codes = [(await dispatcher.dispatch(name)).code for name in ("work", "other", "crash")]
        codes.append((await dispatcher.dispatch("late", timeout=1)).code)  # which is also for the server to count it
        assert codes == ["arguments_invalid", "tool_not_found", "tool_crashed", "tool_timeout"]
        codes = [(await dispatcher.dispatch("work", {"a": 1})).code for _ in range(2)]
        assert codes == [None, "rate_limited"]
    assert len(logged()) == 1


# --- calls at a time


@pytest.mark.parametrize("whose", ["user_limits", "tenant_limits"])
async def test_as_many_run_at_a_time_as_may_and_each_that_ends_makes_room(store: Any, whose: str) -> None:
    site = Site(store, **{whose: TWO_AT_ONCE})
    held = await site.hold(2)
    refused = await site.call()
    assert (refused.code, refused.retry_after) == ("too_many_calls", None)
    assert refused.text == "Too many calls are running. Try again when one has ended."
    await site.let_go(*held)
    for _ in range(5):
        assert (await site.call()).ok
    assert site.most == 2


async def test_however_many_ask_never_more_run_than_may(store: Any) -> None:
    site = Site(store, user_limits=ToolLimits(at_once=3), tenant_limits=ToolLimits(at_once=5))
    calls = [spawn(site.call(user=f"user{n % 4}")) for n in range(60)]
    assert {type(result) for result in await settle(*calls)} == {ToolResult}
    assert 1 <= site.most <= 5
    held = [task for user in ("user0", "user1") for task in await site.hold(4, user=user)]
    assert site.running == 5
    await site.let_go(*held)


async def test_calls_of_one_correlation_id_are_counted_each(store: Any) -> None:
    """A correlation id may be that of a request, and so be given by a client."""
    gate = Gate()

    async def tool() -> None:
        await gate.wait()

    async with bind_context(ANN, store=store):
        one, two = (
            ToolDispatcher(ToolRegistry([tool]), user_limits=ToolLimits(at_once=1), correlation_id="c") for _ in "12"
        )
        task = spawn(one.dispatch("tool", call_id="1"))
        await soon(gate.reached)
        assert (await two.dispatch("tool", call_id="1")).code == "too_many_calls"
        gate.go.set()
        assert (await task).ok


async def test_a_tool_that_calls_another_holds_two(store: Any) -> None:
    async def outer() -> Any:
        return (await dispatchers[0].dispatch("inner")).code

    async def inner() -> None: ...

    dispatchers: list[ToolDispatcher] = []
    async with bind_context(ANN, store=store):
        for most, code in ((1, "too_many_calls"), (2, None)):
            registry = ToolRegistry([outer, inner])
            dispatchers[:] = [ToolDispatcher(registry, user_limits=ToolLimits(at_once=most))]
            assert (await dispatchers[0].dispatch("outer")).value == code


# --- whose


async def test_what_one_does_is_nothing_to_others(store: Any) -> None:
    site = Site(store, user_limits=ToolLimits(at_once=1, per_minute=2))
    held = await site.hold(1)
    assert (await site.call()).code == "too_many_calls"
    for tenant, user in (("acme", "bob"), ("globex", "ann"), ("globex", "bob")):
        assert (await site.call(tenant, user)).ok
    await site.let_go(*held)
    assert [(await site.call()).code for _ in range(2)] == [None, "rate_limited"]
    assert (await site.call("globex", "ann")).ok


async def test_a_tenant_s_limit_is_for_all_its_users_and_no_other_tenant(store: Any) -> None:
    site = Site(store, tenant_limits=ToolLimits(at_once=2, per_minute=4))
    held = [*await site.hold(1, user="ann"), *await site.hold(1, user="bob")]
    assert (await site.call(user="eve")).code == "too_many_calls"
    assert (await site.call("globex", "eve")).ok
    await site.let_go(*held)
    assert [(await site.call(user=user)).code for user in ("a", "b", "c")] == [None, None, "rate_limited"]
    assert [(await site.call("globex", user)).code for user in ("a", "b", "c")] == [None] * 3


async def test_whom_the_tenant_s_limit_refuses_holds_nothing_of_their_own(store: Any) -> None:
    site = Site(store, user_limits=ToolLimits(at_once=1), tenant_limits=ToolLimits(at_once=1))
    held = await site.hold(1, user="bob")
    assert (await site.call(user="ann")).code == "too_many_calls"
    await site.let_go(*held)
    assert (await site.call(user="ann")).ok


async def test_calls_without_a_user_share_what_one_user_may_and_a_tenant_s_limit_beside_it(store: Any) -> None:
    gate = Gate()

    async def tool() -> None:
        await gate.wait()

    options: Any = {"user_limits": ToolLimits(at_once=1), "tenant_limits": ToolLimits(at_once=2)}

    async def code(who: Identity) -> Any:
        async with bind_context(who, store=store):
            return (await ToolDispatcher(ToolRegistry([tool]), **options).dispatch("tool")).code

    first = spawn(code(NOBODY))
    await soon(gate.reached)
    assert await code(NOBODY) == "too_many_calls"
    gate.reached.clear()
    second = spawn(code(ANN))
    await soon(gate.reached)
    assert await code(BOB) == "too_many_calls"
    gate.go.set()
    assert await settle(first, second) == [None, None]
    assert await code(EVE) is None


async def test_a_call_without_a_user_counts_once_for_its_user_s_limit_and_once_for_its_tenant_s(store: Any) -> None:
    async def tool() -> None: ...

    options: Any = {"user_limits": ToolLimits(per_minute=2), "tenant_limits": ToolLimits(per_minute=3)}
    codes = []
    for identity in (NOBODY, NOBODY, NOBODY, ANN, BOB):
        async with bind_context(identity, store=store):
            codes.append((await ToolDispatcher(ToolRegistry([tool]), **options).dispatch("tool")).code)
    assert codes == [None, None, "rate_limited", None, "rate_limited"]


async def test_calls_are_counted_in_the_store_that_is_bound(asyncio_only: None) -> None:
    async def tool() -> None: ...

    one, two = MemoryStore(), MemoryStore()
    dispatcher = ToolDispatcher(ToolRegistry([tool]), user_limits=ToolLimits(per_minute=1))
    codes = []
    for store in (one, two, one):
        async with bind_context(ANN, store=store):
            codes.append((await dispatcher.dispatch("tool")).code)
    assert codes == [None, None, "rate_limited"]


async def test_whom_the_tenant_s_limit_refuses_has_begun_nothing_of_their_own(store: Any) -> None:
    site = Site(store, user_limits=ToolLimits(per_minute=2), tenant_limits=ToolLimits(per_minute=1))
    assert (await site.call(user="bob")).ok
    for _ in range(5):
        assert (await site.call()).code == "rate_limited"
    assert (await store.count(("acme", "ann"), "tool_calls", 0, 60))[0] == 0


@pytest.mark.parametrize("error", [StateUnavailableError, RuntimeError])
async def test_a_call_that_cannot_be_counted_for_its_tenant_is_not_for_its_user(
    error: Any, asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    store = Broken("count 2", "count 5", "count 6", error=error)
    site = Site(store, **BOTH)
    assert not (await site.call()).ok
    assert (await MemoryStore.count(store, ("acme", "ann"), "tool_calls", 0, 60))[0] == 0
    assert not (await site.call()).ok  # and it cannot be told either
    assert (await MemoryStore.count(store, ("acme", "ann"), "tool_calls", 0, 60))[0] == 1
    assert "a call of a tool was refused cannot be told" in "".join(logged())


async def test_what_is_taken_back_makes_no_room_in_the_next_minute(asyncio_only: None) -> None:
    clock = Clock()

    class Slow(MemoryStore):
        async def count(self, space: Any, counter: str, by: int, window: float) -> Any:
            if by == -1:
                clock.now += 60  # the user's minute is over
            return await super().count(space, counter, by, window)

    store = Slow(clock=clock)
    site = Site(store, user_limits=ToolLimits(per_minute=2), tenant_limits=ToolLimits(per_minute=1))
    assert (await site.call(user="bob")).ok
    assert (await site.call()).code == "rate_limited"
    assert (await store.count(("acme", "ann"), "tool_calls", 0, 60))[0] == 0


# --- two processes

FORK = """
import asyncio, os
from asgi_context import Identity, MemoryStore, bind_context
from asgi_context.tools import ToolDispatcher, ToolLimits, ToolRegistry

class Store(MemoryStore):
    async def acquire(self, space, lease, holder, most, ttl):
        os.write(1, f"{holder}\\n".encode())
        return await super().acquire(space, lease, holder, most, ttl)

async def add(): ...

dispatcher = ToolDispatcher(ToolRegistry([add]), user_limits=ToolLimits(at_once=1))

async def main():
    with bind_context(Identity("acme", "ann"), store=Store()):
        assert (await dispatcher.dispatch("add")).ok

children = []
for _ in range(2):
    child = os.fork()
    if not child:
        asyncio.run(main())
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
asyncio.run(main())
"""


def test_where_there_is_no_fork_it_works_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    again: dict[str, Any] = runpy.run_path(limits_module.__file__ or "")
    assert again["_process"].id != limits_module._process.id


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_what_processes_of_one_parent_hold_is_not_each_other_s() -> None:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(FORK)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True).stdout.split()
    assert len(set(said)) == 3


SCRIPT = """
import asyncio, json, sys
sys.path.insert(0, {tests!r})
from driver import hello, http, run, who
from asgi_context import ContextMiddleware, current_resource, from_header
from asgi_context.redis import RedisStore
from asgi_context.tools import ToolLimits, ToolSystem, ToolSystemFactory

url, prefix, limits, number, users = json.loads(sys.argv[1])

async def main():
    gate, begun, refused = asyncio.Event(), [], []

    async def tool():
        begun.append(1)
        await gate.wait()

    async def app(scope, receive, send):
        system = await current_resource(ToolSystem)
        result = await system.dispatcher.dispatch("tool")
        if not result.ok:
            refused.append(result.code)
        await hello(scope, receive, send)

    def line():
        return asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    options = {{whose: ToolLimits(**limit) for whose, limit in limits.items()}}
    store = RedisStore.from_url(url, prefix=prefix, timeout=30)
    middleware = ContextMiddleware(
        app, tenant=from_header("x-tenant-id"), user=from_header("x-user-id"), store=store,
        resources={{ToolSystem: ToolSystemFactory([tool], **options)}},
    )
    print("ready", flush=True)
    await line()
    requests = [run(middleware, http(*who("acme", f"user{{n % users}}"))) for n in range(number)]
    tasks = [asyncio.create_task(request) for request in requests]
    while len(begun) + len(refused) < number:
        await asyncio.sleep(0.001)
    print(json.dumps([len(begun), sorted(set(refused))]), flush=True)
    await line()
    gate.set()
    await asyncio.gather(*tasks)
    await middleware.close()

asyncio.run(main())
"""


@contextmanager
def process(arguments: Any) -> Iterator[Any]:
    """A process with an app, whose requests wait to be told to begin; it is killed where it hangs."""
    source = SCRIPT.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(source), json.dumps(arguments)]
    made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield made
        _, said = made.communicate("\n", timeout=3 * LONG), made.returncode
        assert said == 0
    finally:
        made.kill()
        made.communicate()


@pytest.mark.parametrize(
    ("limits", "users", "code"),
    [
        ({"user_limits": {"per_minute": 10}}, 1, "rate_limited"),
        ({"tenant_limits": {"per_minute": 10}}, 3, "rate_limited"),
        ({"user_limits": {"at_once": 10}}, 1, "too_many_calls"),
        ({"tenant_limits": {"at_once": 10}}, 3, "too_many_calls"),
    ],
)
def test_over_two_processes_on_one_server_ten_calls_begin_where_ten_may(limits: Any, users: int, code: str) -> None:
    servers = redis_servers.shared("redis")
    prefix = f"processes{next(numbers)}"
    try:
        with ExitStack() as stack:
            arguments = [servers.url, prefix, limits, 15, users]
            both = [stack.enter_context(process(arguments)) for _ in range(2)]
            for one in both:
                assert one.stdout.readline() == "ready\n"
            for one in both:
                one.stdin.write("\n")
                one.stdin.flush()
            said = [json.loads(one.stdout.readline()) for one in both]
            assert sum(begun for begun, _ in said) == 10
            assert {code for _, codes in said for code in codes} == {code}
    finally:
        forget(servers, prefix)


# --- stores that fail


class Broken(MemoryStore):
    """Of which some calls fail."""

    def __init__(self, *calls: str, error: type[Exception] = StateUnavailableError, **options: Any) -> None:
        super().__init__(**options)
        self.calls, self.error, self.asked = calls, error, list[str]()

    def _ask(self, call: str) -> None:
        self.asked.append(call)
        for asked in (call, f"{call} {self.asked.count(call)}"):
            if asked in self.calls:
                raise self.error(f"{call} failed")

    async def acquire(self, *arguments: Any) -> bool:
        self._ask("acquire")
        return await super().acquire(*arguments)

    async def count(self, *arguments: Any) -> tuple[int, float]:
        self._ask("count")
        return await super().count(*arguments)

    async def release(self, *arguments: Any) -> bool:
        self._ask("release")
        return await super().release(*arguments)

    async def is_free(self) -> bool:
        for space, name in ((("acme", "ann"), "tool_calls"), (("acme", None), "tool_calls_of_all")):
            if not await MemoryStore.acquire(self, space, name, "another", 1, 60):
                return False
            await MemoryStore.release(self, space, name, "another")
        return True


BOTH: Any = {"user_limits": ToolLimits(1, 10), "tenant_limits": ToolLimits(1, 10)}


@pytest.mark.parametrize("call", ["acquire 1", "acquire 2", "count 1", "count 2"])
async def test_where_the_store_cannot_say_no_tool_is_called_and_nothing_is_held(
    call: str, asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    store = Broken(call)
    site = Site(store, **BOTH)
    result = await site.call()
    assert (result.code, result.retry_after) == ("limits_unavailable", None)
    assert result.text == "It cannot be found out now whether the call is within its limits. Try again later."
    assert site.begun == 0
    assert await store.is_free()
    (line,) = logged()
    assert line.startswith("the limits of tools cannot be kept: ")
    assert (await site.call()).ok


@pytest.mark.parametrize("call", ["acquire 1", "acquire 2", "count 1", "count 2"])
async def test_a_store_that_crashes_holds_nothing_either(
    call: str, asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    store = Broken(call, error=RuntimeError)
    site = Site(store, **BOTH)
    assert (await site.call()).code == "tool_crashed"
    assert site.begun == 0
    assert await store.is_free()
    assert len(logged()) == 1


@pytest.mark.parametrize("call", ["release 1", "release 2"])
async def test_a_store_that_crashes_when_a_call_has_ended_takes_no_result(
    call: str, asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    clock = Clock()
    store = Broken(call, error=RuntimeError, clock=clock)
    site = Site(store, **BOTH)
    assert (await site.call()).value == "done"
    (line,) = logged()
    assert "counts for some time as running" in line
    clock.now = 66
    assert (await site.call()).ok
    assert await store.is_free()


async def test_where_the_store_cannot_be_told_that_a_call_has_ended_its_slot_ends_by_itself(
    asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    clock = Clock()
    store = Broken("release 1", "release 2", clock=clock)
    site = Site(store, timeout=10.0, **BOTH)
    assert (await site.call()).value == "done"
    lines = logged()
    assert len(lines) == 2
    assert all("counts for some time as running" in line for line in lines)
    for now, code in ((0, "too_many_calls"), (14.9, "too_many_calls"), (15, None)):
        clock.now = now
        assert (await site.call()).code == code


async def test_a_server_that_is_down_is_no_permission(asyncio_only: None, logged: Callable[[], list[str]]) -> None:
    with redis_servers.running() as server:
        store = server.store(timeout=1)
        site = Site(store, **BOTH)
        assert (await site.call()).ok
        server.kill()
        result = await site.call()
        assert (result.code, site.begun) == ("limits_unavailable", 1)
        assert any("the limits of tools cannot be kept" in line for line in logged())
        await store.close()


async def test_a_server_that_goes_while_a_tool_runs_does_not_disturb_it(
    asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    with redis_servers.running() as server:
        store = server.store(timeout=1)
        site = Site(store, **BOTH)
        held = await site.hold(1)
        server.kill()
        await site.let_go(*held)
        assert site.results.pop().value == "done"
        assert any("counts for some time as running" in line for line in logged())
        await store.close()


# --- slots that nobody gives back


async def test_a_slot_of_a_process_that_has_crashed_ends_by_itself(asyncio_only: None) -> None:
    clock, gate = Clock(), Gate()

    async def tool() -> None:
        await gate.wait()

    store = MemoryStore(clock=clock)
    async with bind_context(ANN, store=store):
        dispatcher = ToolDispatcher(ToolRegistry([tool]), user_limits=ToolLimits(at_once=1), timeout=10.0)
        driven = Driven(dispatcher.dispatch("tool"))
        await driven.until(gate.reached)
        driven.coroutine.close()
        gate.go.set()
        for now, code in ((0, "too_many_calls"), (14.9, "too_many_calls"), (15, None)):
            clock.now = now
            assert (await dispatcher.dispatch("tool")).code == code


async def test_a_slot_on_a_server_ends_by_itself_as_well(asyncio_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "_GRACE", SHORT)
    servers = redis_servers.shared("redis")
    prefix = f"limits{next(numbers)}"
    store = servers.store(prefix=prefix, timeout=LONG)
    gate = Gate()

    async def tool() -> None:
        await gate.wait()

    async with bind_context(ANN, store=store):
        dispatcher = ToolDispatcher(ToolRegistry([tool]), user_limits=ToolLimits(at_once=1), timeout=1)
        driven = Driven(dispatcher.dispatch("tool"))
        await driven.until(gate.reached)
        driven.coroutine.close()
        gate.go.set()
        async with asyncio.timeout(LONG):
            while not (await dispatcher.dispatch("tool")).ok:
                await turns()
    await store.close()
    forget(servers, prefix)


class Watched(Broken):
    """Says when a lease has been taken or renewed so often."""

    def __init__(self, *calls: str) -> None:
        super().__init__(*calls)
        self.renewed = asyncio.Event()
        self.bound: list[bool] = []

    async def acquire(self, *arguments: Any) -> bool:
        self.bound.append(current_context(None) is not None)
        if self.asked.count("acquire") >= 5:
            self.renewed.set()
        return await super().acquire(*arguments)


@pytest.mark.parametrize("call", ["none", "acquire 3"])
async def test_a_job_that_outlives_its_call_holds_its_slot_for_as_long_as_it_runs(
    call: str,
    asyncio_only: None,
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[], list[str]],
) -> None:
    monkeypatch.setattr(dispatcher_module, "_GRACE", SHORT)
    block, store = Block(), Watched(call)
    async with bind_context(ANN, store=store):
        dispatcher = ToolDispatcher(ToolRegistry([block]), user_limits=ToolLimits(at_once=1))
        await outlived(dispatcher, block)
        await soon(store.renewed)
        assert not block.ended.is_set()
        assert store.bound == [True] + [False] * (len(store.bound) - 1), "it holds nothing of the request's"
        block.go.set()
        await until(lambda: "release" in store.asked)
        await until(lambda: len(asyncio.all_tasks()) <= 2)
        assert await store.is_free()
    assert block.ended.wait(LONG)
    lines = logged()
    assert len(lines) == (call != "none")
    assert all("that a call of a tool still runs cannot be told" in line for line in lines)


async def test_a_job_whose_place_is_another_s_meanwhile_is_logged(
    asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    class Taken(MemoryStore):
        async def acquire(self, *arguments: Any) -> bool:
            taken.append(1)
            return len(taken) == 1

    taken: list[int] = []
    block = Block()
    async with bind_context(ANN, store=Taken()):
        await outlived(ToolDispatcher(ToolRegistry([block]), user_limits=ToolLimits(at_once=1)), block)
        await until(lambda: "whose place is another's already" in caplog.text)
        block.go.set()
        await until(lambda: len(asyncio.all_tasks()) <= 2)
    caplog.clear()


@pytest.mark.parametrize("turns_until", range(0, 60, 3))
async def test_whoever_goes_at_any_time_leaves_nothing_on_the_server(turns_until: int, asyncio_only: None) -> None:
    servers = redis_servers.shared("redis")
    prefix = f"limits{next(numbers)}"
    store = servers.store(prefix=prefix, timeout=LONG)
    ran: list[int] = []

    async def tool() -> None:
        ran.append(1)
        await turns(5)

    async with bind_context(ANN, store=store):
        dispatcher = ToolDispatcher(ToolRegistry([tool]), **BOTH)
        for _ in range(2):  # once connected, everything comes sooner
            task = spawn(dispatcher.dispatch("tool"))
            await turns(turns_until)
            if task.done():
                assert task.result().ok
            else:
                await cancel(task)
            await until(lambda: not dispatcher._tasks)
        with closing(servers.client()) as client:
            assert [key for key in client.keys(f"{prefix}*") if b":l:" in key] == []
        assert (await dispatcher.dispatch("tool")).ok
    await store.close()
    forget(servers, prefix)
