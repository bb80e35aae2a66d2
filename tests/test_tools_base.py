"""Tools that are classes: from every thread they run on the app's loop, as whoever asked, and end in time."""

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import anyio.lowlevel
import anyio.to_thread
import pytest
from driver import http, run, websocket, who
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from test_blocking import ANN, AT_ONCE, BOB, LATE, SOON, WAYS, Standing, WaitingStore, app_of, in_bare_thread, in_thread

from asgi_context import (
    ContextMiddleware,
    Identity,
    MemoryStore,
    SharedState,
    bind_context,
    carry_context,
    current_context,
    current_state,
    from_header,
    run_in_executor,
    run_in_pool,
    unbound_context,
)
from asgi_context.errors import (
    ContextClosedError,
    ContextNotBoundError,
    JobError,
    StateBlockingError,
    StoreNotBoundError,
    ToolBlockingError,
    ToolDefinitionError,
    ToolError,
    ToolRunError,
    ToolTimeoutError,
    UnsupportedLoopError,
)
from asgi_context.tools import AsyncBaseTool, ToolDispatcher, ToolRegistry
from asgi_context.tools._threads import run_in_thread

pytestmark = pytest.mark.anyio

WHO: Any = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}

mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="unset")


class Where(AsyncBaseTool):
    """Say where it runs, and as whom."""

    async def _arun(self) -> dict[str, Any]:
        context = current_context(None)
        before = mark.get()
        mark.set("tool")
        await asyncio.sleep(0)
        return {
            "loop": asyncio.get_running_loop(),
            "thread": threading.current_thread(),
            "who": context and (context.tenant, context.user),
            "mark": before,
        }


class Remember(AsyncBaseTool):
    """Remember a colour."""

    colour: str

    async def _arun(self) -> Any:
        await self.ss.update_field("profile", "colour", self.colour)
        return await self.ss.get("profile")


class Stand(AsyncBaseTool):
    """Never end."""

    run_timeout = LATE

    standing: ClassVar[Standing]

    async def _arun(self) -> None:
        await self.standing()


class Fail(AsyncBaseTool):
    """Raise something."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    error: BaseException

    async def _arun(self) -> None:
        await asyncio.sleep(0)
        raise self.error


class Block(AsyncBaseTool):
    """Use the state from the thread that it runs in."""

    colour: str

    def run(self) -> Any:
        self.upsert_state("profile", {"colour": self.colour})
        return self.get_state("profile"), threading.current_thread()


async def handled(handle: Callable[[], Awaitable[Any]], store: Any = None, **options: Any) -> Any:
    """What an app's handling gives, bound to acme's ann."""
    found: list[Any] = []

    async def handling() -> None:
        found.append(await handle())

    await run(app_of(store, handling, **options), http(*who("acme", "ann")))
    return found[0]


@pytest.fixture(params=[MemoryStore, WaitingStore], ids=["in memory", "waiting"])
def store(request: pytest.FixtureRequest) -> Any:
    return request.param()


# From a thread of a request.


@pytest.mark.parametrize("way", WAYS)
async def test_from_a_requests_thread_it_runs_on_the_apps_loop_as_the_caller(
    asyncio_only: None, way: Any, store: Any
) -> None:
    def job() -> Any:
        mark.set("job")
        return Where().run(), mark.get()

    found, after = await handled(lambda: way(job), store, pools={"jobs": 1})
    assert found == {
        "loop": asyncio.get_running_loop(),
        "thread": threading.current_thread(),
        "who": ("acme", "ann"),
        "mark": "job",
    }
    assert after == "job", "what the tool sets is its own"


async def test_so_it_does_where_nobody_has_named_a_store(asyncio_only: None) -> None:
    found = await handled(lambda: asyncio.to_thread(Where().run))
    assert found["loop"] is asyncio.get_running_loop()


async def test_so_it_does_in_a_block_that_binds_whatever_its_store(asyncio_only: None) -> None:
    async def outside(**options: Any) -> Any:
        with bind_context(ANN, **options):
            return await asyncio.to_thread(Where().run)

    async def inside() -> Any:
        with bind_context(BOB):
            return await asyncio.to_thread(Where().run)

    for found, user in [
        (await outside(), "ann"),
        (await outside(store=MemoryStore()), "ann"),
        (await outside(store=WaitingStore()), "ann"),
        (await handled(inside), "bob"),
        (await handled(inside, MemoryStore()), "bob"),
        (await handled(inside, WaitingStore()), "bob"),
    ]:
        assert found["loop"] is asyncio.get_running_loop()
        assert found["who"][1] == user


async def test_so_it_does_in_a_block_that_is_bound_in_the_thread(asyncio_only: None) -> None:
    def job() -> Any:
        with bind_context(BOB):
            return Where().run()

    found = await handled(lambda: asyncio.to_thread(job))
    assert (found["loop"], found["who"]) == (asyncio.get_running_loop(), ("globex", "bob"))


async def test_so_it_does_where_a_request_binds_nobody(asyncio_only: None) -> None:
    async def without_a_binding() -> Any:
        with unbound_context():
            return await asyncio.to_thread(Where().run)

    found = await handled(without_a_binding)
    assert (found["loop"], found["who"]) == (asyncio.get_running_loop(), None)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        exempt.append(await asyncio.to_thread(Where().run))

    exempt: list[Any] = []
    await run(ContextMiddleware(app, tenant=from_header("x-tenant-id"), exempt=lambda scope: True), http())
    assert (exempt[0]["loop"], exempt[0]["who"]) == (asyncio.get_running_loop(), None)


async def test_so_it_does_over_a_websocket(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        found.append(await asyncio.to_thread(Where().run))
        await send({"type": "websocket.close"})

    found: list[Any] = []
    await run(ContextMiddleware(app, **WHO), websocket(*who("acme", "ann")))
    assert (found[0]["loop"], found[0]["who"]) == (asyncio.get_running_loop(), ("acme", "ann"))


async def test_an_app_that_runs_on_another_loop_than_before_is_found_there(asyncio_only: None) -> None:
    """Tests serve one app on many loops."""

    async def handle() -> None:
        found = await asyncio.to_thread(Where().run)
        seen.append(found["loop"] is asyncio.get_running_loop())

    seen: list[bool] = []
    app = app_of(None, handle)
    await run(app, http(*who()))
    await asyncio.to_thread(lambda: asyncio.run(run(app, http(*who()))))
    await run(app, http(*who()))
    assert seen == [True, True, True]


def test_a_block_inside_of_what_an_ended_loop_has_left_finds_the_loop_that_runs() -> None:
    async def left() -> Any:
        return contextvars.copy_context()

    async def main() -> Any:
        with bind_context():
            return (await asyncio.to_thread(Where().run))["loop"] is asyncio.get_running_loop()

    context = asyncio.run(handled(left))
    assert context.run(asyncio.run, main())


async def test_a_tool_may_run_another_from_a_thread(asyncio_only: None) -> None:
    class Outer(AsyncBaseTool):
        async def _arun(self) -> Any:
            return await asyncio.to_thread(Where().run)

    found = await handled(lambda: asyncio.to_thread(Outer().run))
    assert (found["loop"], found["who"]) == (asyncio.get_running_loop(), ("acme", "ann"))


async def test_many_run_at_once_each_as_its_own_caller(asyncio_only: None) -> None:
    together = asyncio.Event()
    begun: list[str] = []

    class Meet(AsyncBaseTool):
        user: str

        async def _arun(self) -> bool:
            begun.append(self.user)
            if len(begun) == len(users):
                together.set()
            await together.wait()
            return current_context().user == self.user

    async def app(scope: Any, receive: Any, send: Any) -> None:
        same.append(await run_in_pool("tool", Meet(user=current_context().user or "").run))

    same: list[bool] = []
    users = [f"user{number}" for number in range(20)]
    wrapped = ContextMiddleware(app, **WHO, pools={"tool": 20})
    await asyncio.gather(*(run(wrapped, http(*who("acme", user))) for user in users))
    await wrapped.close()
    assert same == [True] * 20


async def test_a_thread_that_outlives_its_request_still_runs_tools_as_its_user(asyncio_only: None) -> None:
    async def handle() -> Any:
        return carry_context(Where().run)

    kept = await handled(handle)
    found = await in_bare_thread(kept)
    assert (found["loop"], found["who"]) == (asyncio.get_running_loop(), ("acme", "ann"))


# Scripts.


def test_in_a_script_it_runs_on_a_loop_of_the_process() -> None:
    found = Where().run()
    assert (found["thread"].name, found["who"], found["mark"]) == ("asgi_context-background", None, "unset")
    with bind_context(ANN):
        assert in_thread(Where().run)["who"] is None
        assert Where().run()["who"] == ("acme", "ann")
        assert in_thread(carry_context(Where().run))["who"] == ("acme", "ann")
    assert Where().run()["loop"] is found["loop"]
    assert mark.get() == "unset"


def test_in_a_script_it_has_the_state_of_whoever_is_bound(store: Any) -> None:
    with bind_context(ANN, store=store):
        assert Remember(colour="red").run() == {"colour": "red"}
        assert Block(colour="blue").run()[0] == {"colour": "blue"}
    assert SharedState(store, "acme", "ann").sync.get("profile") == {"colour": "blue"}
    assert SharedState(store, "acme").sync.list_states() == []


def test_where_the_apps_loop_has_ended_it_runs_on_a_loop_of_the_process() -> None:
    async def main() -> Any:
        return await handled(carried)

    async def carried() -> Any:
        return carry_context(Where().run)

    found = asyncio.run(main())()
    assert (found["thread"].name, found["who"]) == ("asgi_context-background", ("acme", "ann"))


def test_where_the_apps_loop_ends_meanwhile_the_thread_is_told() -> None:
    class Wait(AsyncBaseTool):
        async def _arun(self) -> None:
            await standing()

    def job() -> None:
        with pytest.raises(ToolRunError) as caught:
            Wait().run()
        told.append(str(caught.value))

    async def main() -> None:
        with bind_context(ANN):
            threads.append(threading.Thread(target=carry_context(job)))
        threads[0].start()
        assert await asyncio.to_thread(standing.begun.wait, SOON)

    standing, threads = Standing(), list[threading.Thread]()
    told: list[str] = []
    asyncio.run(main())
    threads[0].join(SOON)
    name = Wait.__qualname__
    assert told == [f"the tool {name} did not run to its end: it was cancelled on its event loop"]


# On the thread of a loop.


@pytest.mark.parametrize("tool", [Where(), Remember(colour="red"), Stand()])
async def test_on_the_thread_of_a_loop_it_raises_at_once_and_says_what_to_write(tool: AsyncBaseTool) -> None:
    with pytest.raises(ToolBlockingError) as caught:
        tool.run()
    expected = (
        "run() would block the event loop that runs in this thread: write `await tool.arun()`; or, on a loop that is "
        "not the app's, call it by `await asyncio.to_thread(...)`"
    )
    assert str(caught.value) == expected
    assert isinstance(caught.value, RuntimeError)


async def test_so_it_does_inside_of_a_request(asyncio_only: None) -> None:
    async def handle() -> None:
        with pytest.raises(ToolBlockingError):
            Where().run()

    await handled(handle)


async def test_so_it_does_inside_of_a_tool_that_runs_on_the_loop(asyncio_only: None) -> None:
    class Outer(AsyncBaseTool):
        async def _arun(self) -> Any:
            return Where().run()

    with pytest.raises(ToolBlockingError):
        await handled(lambda: asyncio.to_thread(Outer().run))


def test_so_it_does_in_a_thread_that_has_a_loop_of_its_own() -> None:
    async def main() -> None:
        with pytest.raises(ToolBlockingError):
            Where().run()

    in_thread(asyncio.run, main())


async def test_on_the_thread_of_a_loop_the_calls_of_the_state_say_so_too() -> None:
    with bind_context(ANN, store=MemoryStore()), pytest.raises(StateBlockingError):
        Block(colour="red").run()


# The timeout.


async def test_a_tool_that_is_late_is_cancelled_and_nothing_of_it_is_left(asyncio_only: None) -> None:
    Stand.standing = Standing()
    before = asyncio.all_tasks()
    with pytest.raises(ToolTimeoutError) as caught:
        await handled(lambda: asyncio.to_thread(Stand().run))
    assert str(caught.value) == "the tool Stand did not run to its end: it did not answer within 0.5 seconds"
    assert (caught.value.tool, caught.value.reason) == ("Stand", "it did not answer within 0.5 seconds")
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, ToolRunError)
    assert caught.value.__suppress_context__
    assert await asyncio.to_thread(Stand.standing.cancelled.wait, SOON)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert (await handled(lambda: asyncio.to_thread(Where().run)))["who"] == ("acme", "ann"), "the loop runs on"


def test_so_is_one_in_a_script() -> None:
    Stand.standing = Standing()
    with pytest.raises(ToolTimeoutError, match=r"within 0\.5 seconds"):
        Stand().run()
    assert Stand.standing.cancelled.wait(SOON)


async def test_a_timeout_of_the_tools_own_is_an_error_like_any_other(asyncio_only: None) -> None:
    with pytest.raises(TimeoutError, match="own") as caught:
        await asyncio.to_thread(Fail(error=TimeoutError("own")).run)
    assert type(caught.value) is TimeoutError


async def test_what_it_does_when_it_is_cancelled_is_heard_no_more(
    asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()  # it may run on a loop of its own

    class Stubborn(AsyncBaseTool):
        run_timeout = 1

        async def _arun(self) -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                ended.set()
                raise OSError("late") from None
            return ""

    with pytest.raises(ToolTimeoutError):
        await asyncio.to_thread(Stubborn().run)
    assert await asyncio.to_thread(ended.wait, SOON)
    await asyncio.sleep(LATE)  # for that loop to make an end of it
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_tool_that_was_given_up_before_the_loop_came_to_it_never_runs(asyncio_only: None) -> None:
    class Note(AsyncBaseTool):
        run_timeout = AT_ONCE

        async def _arun(self) -> None:
            ran.append("ran")

    def job() -> None:
        with pytest.raises(ToolTimeoutError):
            Note().run()
        ran.append("late")

    ran: list[str] = []
    with bind_context(ANN):
        thread = threading.Thread(target=carry_context(job))
    thread.start()
    thread.join(SOON)  # the loop stands still as long as this does
    for _ in range(5):
        await asyncio.sleep(0)
    assert ran == ["late"]


def test_a_tool_has_a_minute_unless_its_class_says_otherwise() -> None:
    assert AsyncBaseTool.run_timeout == 60
    assert (Where.run_timeout, Stand.run_timeout) == (60, LATE)


@pytest.mark.parametrize(
    ("timeout", "error", "text"),
    [
        ("5", TypeError, "must be a number of seconds, not str"),
        (None, TypeError, "must be a number of seconds, not NoneType"),
        (True, TypeError, "must be a number of seconds, not bool"),
        (0, ValueError, "must be more than 0 seconds, and finite, not 0"),
        (-1, ValueError, "must be more than 0 seconds, and finite, not -1"),
        (float("inf"), ValueError, "must be more than 0 seconds, and finite, not inf"),
        (float("nan"), ValueError, "must be more than 0 seconds, and finite, not nan"),
    ],
)
def test_a_timeout_that_cannot_be_is_an_error_of_the_class(timeout: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        type("Late", (AsyncBaseTool,), {"run_timeout": timeout, "__module__": __name__})
    assert str(caught.value) == f"run_timeout of Late {text}"


# Errors.


@pytest.mark.parametrize(
    "error",
    [
        KeyError("own"),
        ToolError("no"),
        ContextNotBoundError(),
        ToolRunError("Other", "why"),
        ToolTimeoutError("Other", "why"),
        ExceptionGroup("", [KeyError()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_a_tool_raises_reaches_the_caller_as_it_is(asyncio_only: None, error: Exception) -> None:
    tool = Fail(error=error)
    ways: list[Callable[[], Awaitable[Any]]] = [lambda: asyncio.to_thread(tool.run), tool.arun]
    for way in ways:
        with pytest.raises(type(error)) as caught:
            await way()
        assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, concurrent.futures.CancelledError])
async def test_what_would_stop_the_loop_or_pass_for_its_cancellation_is_told_as_an_error(
    asyncio_only: None, error: type[BaseException]
) -> None:
    own = error("own")
    with pytest.raises(ToolRunError) as caught:
        await asyncio.to_thread(Fail(error=own).run)
    assert str(caught.value) == f"the tool Fail did not run to its end: it raised {error.__name__}"
    assert caught.value.__cause__ is own
    assert not isinstance(caught.value, ToolTimeoutError)
    await asyncio.sleep(0)
    assert await asyncio.to_thread(Where().run), "the loop runs on"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_in_a_script_it_is_told_too_and_the_loop_of_the_process_runs_on(error: type[BaseException]) -> None:
    with pytest.raises(ToolRunError, match=f"it raised {error.__name__}"):
        Fail(error=error()).run()
    assert Where().run()


async def test_a_stop_iteration_is_what_python_makes_of_it(asyncio_only: None) -> None:
    with pytest.raises(RuntimeError, match="coroutine raised StopIteration"):
        await asyncio.to_thread(Fail(error=StopIteration()).run)


async def test_a_cancellation_that_the_tool_raises_is_none_of_the_caller(asyncio_only: None) -> None:
    with pytest.raises(ToolRunError, match="it was cancelled on its event loop"):
        await asyncio.to_thread(Fail(error=asyncio.CancelledError()).run)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration, asyncio.CancelledError])
async def test_what_an_overridden_run_raises_stops_no_loop(asyncio_only: None, error: type[BaseException]) -> None:
    class Blocks(AsyncBaseTool):
        def run(self) -> None:
            raise error("own")

    with pytest.raises(JobError, match=error.__name__):
        await Blocks().arun()
    assert await asyncio.to_thread(Where().run)


# Whoever is bound.


async def test_where_nothing_is_bound_there_is_no_state(asyncio_only: None) -> None:
    tool = Remember(colour="red")
    for way in (tool.arun, lambda: asyncio.to_thread(tool.run), lambda: handled(lambda: in_bare_thread(tool.run))):
        with pytest.raises(ContextNotBoundError):
            await way()
    with pytest.raises(ContextNotBoundError):
        await asyncio.to_thread(Block(colour="red").run)
    with pytest.raises(ContextNotBoundError):
        _ = tool.ss


async def test_where_no_store_is_bound_there_is_no_state() -> None:
    with bind_context(ANN), pytest.raises(StoreNotBoundError):
        await Remember(colour="red").arun()


def test_after_the_identity_was_revoked_there_is_no_state() -> None:
    def inside() -> None:
        block = bind_context(ANN, store=MemoryStore())
        block.enter()
        contextvars.copy_context().run(block.__exit__, None, None, None)
        for tool in (Remember(colour="red"), Block(colour="red")):
            with pytest.raises(ContextClosedError):
                tool.run()

    contextvars.copy_context().run(inside)


async def test_a_fallback_is_bound_at_start_up_for_what_no_request_starts(asyncio_only: None, store: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(Remember(colour="red").run)

    async def jobs() -> None:
        await asyncio.to_thread(Remember(colour="blue").run)
        await asyncio.to_thread(Block(colour="green").run)

    with bind_context(Identity("acme", "jobs"), store=store):
        await asyncio.create_task(jobs())
        await run(ContextMiddleware(app, **WHO, store=store), http(*who("acme", "ann")))
        assert current_context().user == "jobs"
    assert await SharedState(store, "acme", "jobs").get("profile") == {"colour": "green"}
    assert await SharedState(store, "acme", "ann").get("profile") == {"colour": "red"}
    if not isinstance(store, MemoryStore):
        assert store.loops == {asyncio.get_running_loop()}


def test_a_fallback_may_be_bound_before_there_is_a_loop() -> None:
    async def main() -> Any:
        return await asyncio.to_thread(Remember(colour="red").run), await Remember(colour="blue").arun()

    with bind_context(Identity("acme", "jobs"), store=MemoryStore()):
        assert asyncio.run(main()) == ({"colour": "red"}, {"colour": "blue"})


async def test_the_state_is_that_of_whoever_is_bound() -> None:
    with bind_context(ANN, store=MemoryStore()):
        assert Remember(colour="red").ss is current_state()
        assert await Remember(colour="red").arun() == {"colour": "red"}
        with bind_context(BOB):
            assert await current_state().get("profile") is None


def test_the_state_cannot_be_set_or_handed_in() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Remember(colour="red", ss=5)  # type: ignore[call-arg]
    with pytest.raises((AttributeError, ValueError)):
        Remember(colour="red").ss = 5  # type: ignore[misc,assignment]


# The calls of the state.


WRAPPERS = {
    "get_state": "get",
    "upsert_state": "upsert",
    "get_field": "get_field",
    "update_field": "update_field",
    "delete_field": "delete_field",
    "delete_state": "delete",
    "state_exists": "exists",
    "list_states": "list_states",
    "clear_all_states": "clear_all_states",
}


@pytest.mark.parametrize(("wrapper", "method"), WRAPPERS.items())
def test_every_call_of_the_state_has_the_signature_of_its_method(wrapper: str, method: str) -> None:
    blocks = getattr(AsyncBaseTool, wrapper)
    assert inspect.signature(blocks) == inspect.signature(getattr(SharedState, method))
    assert f"SharedState.{method}`" in blocks.__doc__


def said(wrapper: str, *args: Any, **kwargs: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    return wrapper, args, kwargs


CONVERSATION = [
    said("get_state", "s"),
    said("state_exists", "s"),
    said("upsert_state", "s", {"a": 1, "b": (2, b"3")}, ttl=60),
    said("upsert_state", key="s", data={"a": 2}, ttl=None),
    said("get_state", key="s"),
    said("get_field", "s", "b"),
    said("get_field", "s", "c"),
    said("get_field", "s", "c", 7),
    said("get_field", key="s", field="c", default=8),
    said("update_field", "s", "c", {1: None}),
    said("update_field", key="t", field="c", value={"x"}, ttl=60),
    said("state_exists", key="t"),
    said("list_states"),
    said("delete_field", "s", "a"),
    said("delete_field", key="s", field="a"),
    said("get_state", "s"),
    said("delete_state", "s"),
    said("delete_state", key="s"),
    said("clear_all_states"),
    said("clear_all_states"),
    said("list_states"),
]
"""Calls with each argument, by position and by name, and with each kind of answer."""


class Converse(AsyncBaseTool):
    """Call the state in every way."""

    def run(self) -> list[Any]:
        return [getattr(self, wrapper)(*args, **kwargs) for wrapper, args, kwargs in CONVERSATION]


def answers() -> list[Any]:
    """What the methods themselves give."""

    async def ask() -> list[Any]:
        state = SharedState(MemoryStore(), "acme", "ann")
        return [await getattr(state, WRAPPERS[wrapper])(*args, **kwargs) for wrapper, args, kwargs in CONVERSATION]

    return asyncio.run(ask())


ANSWERS = answers()


def same(found: Any, expected: Any) -> bool:
    return bool(found == expected and [type(value) for value in found] == [type(value) for value in expected])


async def test_in_a_request_every_call_of_the_state_gives_what_its_method_gives(asyncio_only: None, store: Any) -> None:
    tool = Converse()
    assert same(await handled(lambda: run_in_pool("tool", tool.run), store, pools={"tool": 1}), ANSWERS)
    assert same(await handled(lambda: asyncio.to_thread(tool.run), store), ANSWERS)
    assert same(await handled(tool.arun, store), ANSWERS)
    if not isinstance(store, MemoryStore):
        assert store.loops == {asyncio.get_running_loop()}


def test_in_a_script_every_call_of_the_state_gives_what_its_method_gives(store: Any) -> None:
    with bind_context(ANN, store=store):
        assert same(Converse().run(), ANSWERS)


def test_every_call_of_the_state_ends_with_its_lifetime(store: Any) -> None:
    """The argument ttl gets through."""
    with bind_context(ANN, store=store):
        state = current_state().sync
        tool = Converse()
        tool.upsert_state("s", {"a": 1}, ttl=60)
        assert 0 < (state.ttl("s") or 0) <= 60
        tool.update_field("s", "a", 2, ttl=None)
        assert state.ttl("s") is None
        tool.upsert_state("s", {"a": 3})
        tool.update_field("t", "a", 1, ttl=30)
        assert 0 < (state.ttl("t") or 0) <= 30
        tool.upsert_state("t", {"a": 3})
        assert 0 < (state.ttl("t") or 0) <= 30


@pytest.mark.parametrize("wrapper", WRAPPERS)
async def test_on_the_thread_of_a_loop_every_call_of_the_state_is_refused(wrapper: str, store: Any) -> None:
    arguments = dict.fromkeys(inspect.signature(getattr(SharedState, WRAPPERS[wrapper])).parameters, "x")
    del arguments["self"]
    with bind_context(ANN, store=store), pytest.raises(StateBlockingError):
        getattr(Converse(), wrapper)(**arguments)


# From a coroutine.


async def test_what_waits_is_awaited_in_the_callers_task_on_any_loop() -> None:
    class Task(AsyncBaseTool):
        async def _arun(self) -> Any:
            mark.set("tool")
            return threading.current_thread()

    assert await Task().arun() is threading.current_thread()
    assert mark.get() == "tool"


async def test_an_overridden_run_goes_to_a_thread_as_the_caller(asyncio_only: None, store: Any) -> None:
    for pools in ({}, {"other": 1}):
        found, thread = await handled(Block(colour="red").arun, store, pools=pools)
        assert found == {"colour": "red"}
        assert thread is not threading.current_thread()
        assert not thread.name.startswith("asgi_context")


async def test_to_the_pool_of_that_name_where_there_is_one(asyncio_only: None) -> None:
    _, thread = await handled(Block(colour="red").arun, pools={"tool": 1, "other": 1})
    assert thread.name == "asgi_context-tool_0"


async def test_to_the_pool_that_a_dispatcher_names(asyncio_only: None) -> None:
    pools = {"tool": 1, "other": 1}
    thread = await handled(lambda: run_in_thread(threading.current_thread, "other"), pools=pools)
    assert thread.name == "asgi_context-other_0"


async def test_to_a_thread_where_nobody_is_bound_too(asyncio_only: None) -> None:
    class Thread(AsyncBaseTool):
        def run(self) -> Any:
            return threading.current_thread()

    assert await Thread().arun() is not threading.current_thread()


async def test_an_overridden_run_that_waits_is_awaited() -> None:
    class Waits(AsyncBaseTool):
        async def run(self) -> Any:
            await anyio.lowlevel.checkpoint()
            return threading.current_thread()

    assert await Waits().arun() is threading.current_thread()


async def test_what_gives_something_to_await_in_a_thread_is_awaited(asyncio_only: None) -> None:
    """As a decorator leaves it that knows nothing of coroutines."""

    async def later() -> Any:
        return threading.current_thread()

    class Waits(AsyncBaseTool):
        def run(self) -> Any:
            return later()

    assert await Waits().arun() is threading.current_thread()


async def test_of_both_it_is_the_one_that_waits() -> None:
    class Both(AsyncBaseTool):
        async def _arun(self) -> str:
            return "_arun"

        def run(self) -> Any:
            return "run: " + super().run()

    assert await Both().arun() == "_arun"
    assert await anyio.to_thread.run_sync(Both().run) == "run: _arun"


async def test_what_a_class_inherits_is_its_own() -> None:
    class Below(Remember):
        more: str = "more"

    class Also(Block):
        pass

    with bind_context(ANN, store=MemoryStore()):
        assert await Below(colour="red").arun() == {"colour": "red"}
    assert Also.run is Block.run


class Awaited(AsyncBaseTool):
    async def _arun(self) -> str:
        return "_arun"


class Blocks(Awaited):
    def run(self) -> str:
        return "run"


class AwaitedAgain(Blocks):
    async def _arun(self) -> str:
        return "_arun again"


@pytest.mark.parametrize(("tool", "said"), [(Awaited, "_arun"), (Blocks, "run"), (AwaitedAgain, "_arun again")])
async def test_what_a_later_class_says_is_what_is_done(tool: Any, said: str, asyncio_only: None) -> None:
    with bind_context(ANN):
        assert await tool().arun() == said
        assert await run_in_executor(None, tool().run) == said
        assert (await ToolDispatcher(ToolRegistry([tool])).dispatch(tool.__name__)).value == said


class Unfinished(ABC):
    """As the base class of another framework's tools."""

    @abstractmethod
    def run(self) -> Any: ...


class MixedRun:
    def run(self) -> str:
        return "run"


class MixedArun:
    async def _arun(self) -> str:
        return "_arun"


class First(Unfinished, Blocks): ...


class Second(Unfinished, MixedRun, AsyncBaseTool): ...


class Third(Unfinished, AsyncBaseTool, MixedRun): ...


class Fourth(AsyncBaseTool, MixedRun): ...


class Fifth(MixedArun, Blocks): ...


class Sixth(Unfinished, Awaited): ...


class Seventh(First):
    async def _arun(self) -> str:
        return "_arun again"


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (First, "run"),
        (Second, "run"),
        (Third, "run"),
        (Fourth, "run"),
        (Fifth, "_arun"),
        (Sixth, "_arun"),
        (Seventh, "_arun again"),
    ],
)
async def test_in_whatever_order_its_bases_come_what_is_written_is_done(
    tool: Any, said: str, asyncio_only: None
) -> None:
    with bind_context(ANN):
        assert await tool().arun() == said
        assert await run_in_executor(None, tool().run) == said
        assert (await ToolDispatcher(ToolRegistry([tool])).dispatch(tool.__name__)).value == said


def test_what_a_class_leaves_to_those_after_it_is_not_what_came_before() -> None:
    class Left(Blocks):
        @abstractmethod
        def run(self) -> Any: ...

    with pytest.raises(ToolDefinitionError, match="Left is abstract: it does not define run"):
        ToolRegistry([Left])


@pytest.mark.parametrize("how", ["run", "arun"])
async def test_what_defines_neither_is_an_error_that_says_so(asyncio_only: None, how: str) -> None:
    class Nothing(AsyncBaseTool):
        pass

    ways = {"run": lambda: asyncio.to_thread(Nothing().run), "arun": Nothing().arun}
    with pytest.raises(ToolDefinitionError, match=r"defines neither `async def _arun\(self\)` nor `run\(self\)`"):
        await ways[how]()


async def test_a_cancelled_caller_takes_what_waits_with_it(asyncio_only: None) -> None:
    Stand.standing = Standing()
    task = asyncio.create_task(Stand().arun())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Stand.standing.cancelled.is_set()


# Under trio.


async def test_under_trio_what_waits_is_awaited_and_what_blocks_says_that_it_cannot(trio_only: None) -> None:
    with bind_context(ANN, store=MemoryStore()):
        assert await Remember(colour="red").arun() == {"colour": "red"}
        with pytest.raises(UnsupportedLoopError):
            await Block(colour="red").arun()
        with pytest.raises(ToolBlockingError):
            Where().run()


async def test_under_trio_it_runs_from_a_thread_on_a_loop_of_the_process(trio_only: None, store: Any) -> None:
    async def handle() -> Any:
        return await anyio.to_thread.run_sync(Where().run), await anyio.to_thread.run_sync(Block(colour="red").run)

    found, (state, _) = await handled(handle, store)
    assert (found["thread"].name, found["who"]) == ("asgi_context-background", ("acme", "ann"))
    assert state == {"colour": "red"}


# The fields of a tool.


def test_fields_are_checked_and_unknown_ones_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        Remember(color="red")  # type: ignore[call-arg]
    found = [(error["loc"], error["type"]) for error in caught.value.errors()]
    assert found == [(("colour",), "missing"), (("color",), "extra_forbidden")]


TAKEN = ["arun", "run", "run_timeout", "ss", *WRAPPERS]


@pytest.mark.filterwarnings("ignore:Field name")
@pytest.mark.parametrize("name", TAKEN)
def test_a_field_that_is_called_as_something_that_a_tool_has_is_an_error(name: str) -> None:
    for value in ({}, {name: 5}):
        with pytest.raises(ToolDefinitionError) as caught:
            type("Mine", (AsyncBaseTool,), {"__annotations__": {name: int}, "__module__": __name__, **value})
        assert str(caught.value) == f"the tool Mine has a field {name!r}, which is a name of its base class"


def test_nothing_else_that_is_public_is_taken() -> None:
    own = {name for name in vars(AsyncBaseTool) if not name.startswith("_")} - vars(BaseModel).keys()
    assert own == set(TAKEN)


# Beside the base class of another framework.


class Framework(BaseModel, ABC):
    """As Agency Swarm has its BaseTool."""

    _caller_agent: Any = None
    _context: Any = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._context = {"of": "the framework"}

    class ToolConfig:
        strict: bool = False

    @property
    def context(self) -> Any:
        return self._context

    @abstractmethod
    def run(self) -> Any: ...


class Before(Framework, AsyncBaseTool):
    """Remember a colour."""

    colour: str = Field(description="which")

    async def _arun(self) -> Any:
        await self.ss.update_field("profile", "colour", self.colour)
        return await self.ss.get("profile"), self.context


class After(AsyncBaseTool, Framework):
    """Remember a colour."""

    colour: str = Field(description="which")

    async def _arun(self) -> Any:
        await self.ss.update_field("profile", "colour", self.colour)
        return await self.ss.get("profile"), self.context


class BaseBefore(Framework, AsyncBaseTool):
    """A base class for all tools of an app."""


class Between(BaseBefore):
    """Remember a colour."""

    colour: str = Field(description="which")

    async def _arun(self) -> Any:
        await self.ss.update_field("profile", "colour", self.colour)
        return await self.ss.get("profile"), self.context


class BlocksBefore(Framework, AsyncBaseTool):
    """Remember a colour."""

    colour: str = Field(description="which")

    def run(self) -> Any:
        self.update_field("profile", "colour", self.colour)
        return self.get_state("profile"), self.context


class BlocksAfter(AsyncBaseTool, Framework):
    """Remember a colour."""

    colour: str = Field(description="which")

    def run(self) -> Any:
        self.update_field("profile", "colour", self.colour)
        return self.get_state("profile"), self.context


BESIDE = [Before, After, Between, BlocksBefore, BlocksAfter]


@pytest.mark.parametrize("kind", BESIDE)
async def test_beside_another_base_class_it_works_in_either_order(asyncio_only: None, kind: Any, store: Any) -> None:
    tool = kind(colour="red")
    expected = {"colour": "red"}, {"of": "the framework"}
    assert await handled(lambda: asyncio.to_thread(tool.run), store) == expected
    assert await handled(tool.arun, store) == expected
    tool._context = {"set": "by the framework"}
    assert await handled(lambda: asyncio.to_thread(tool.run), store) == (expected[0], {"set": "by the framework"})
    assert not inspect.isabstract(kind)
    assert not inspect.iscoroutinefunction(tool.run), "or the framework would await it on its loop"


@pytest.mark.parametrize("kind", BESIDE)
async def test_beside_another_base_class_it_is_registered_as_any_tool(asyncio_only: None, kind: Any) -> None:
    async def handle() -> Any:
        registry = ToolRegistry([kind])
        [schema] = registry.schemas()
        entry = registry.find(kind.__name__)
        assert entry is not None
        found: Any = entry.prepare({"colour": "red"})
        return schema, await (found() if entry.waits else asyncio.to_thread(found))

    schema, found = await handled(handle)
    assert schema["parameters"]["properties"] == {
        "colour": {"description": "which", "title": "Colour", "type": "string"}
    }
    assert schema["parameters"]["additionalProperties"] is False
    assert found == ({"colour": "red"}, {"of": "the framework"})


def test_what_is_abstract_in_a_class_of_ones_own_stays_so() -> None:
    class Own(AsyncBaseTool, ABC):
        @abstractmethod
        def say(self) -> str: ...

        async def _arun(self) -> str:
            return self.say()

    with pytest.raises(TypeError, match="abstract"):
        Own()  # type: ignore[abstract]
    with pytest.raises(ToolDefinitionError, match="is abstract: it does not define say"):
        ToolRegistry([Own])


def test_a_run_that_another_base_class_has_is_not_taken_from_it() -> None:
    class Runs(BaseModel):
        def run(self) -> str:
            return "theirs"

    class Mine(Runs, AsyncBaseTool):
        pass

    assert Mine().run() == "theirs"
