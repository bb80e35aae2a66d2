"""A call of a coroutine is as if it were awaited where it is called: how it ends, what it holds, and for how long."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from driver import Exchange, websocket, who
from resources import Gate, mount, quiet_loop, soon, spawn, turns
from tool_calls import LONG, SHORT, cancel, serve

from asgi_context import current_resource
from asgi_context.tools import ToolDispatcher, ToolRegistry, ToolSystem, ToolSystemFactory
from asgi_context.tools._steps import Rest

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)

forever = asyncio.Event


class Thing: ...


@pytest.fixture
def no_gc() -> Iterator[None]:
    """What goes now, goes because nothing holds it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def in_request(tool: Any, use: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]], **options: Any) -> Any:
    async def handle() -> Any:
        dispatcher = ToolDispatcher(ToolRegistry(), **options)
        dispatcher.registry.register(tool, name="tool")
        return await use(lambda: dispatcher.dispatch("tool"))

    return await serve(handle)


# --- cancellation


async def swallows() -> str:
    with suppress(asyncio.CancelledError):
        await forever().wait()
    return "went on"


async def turns_into_another() -> None:
    try:
        await forever().wait()
    except asyncio.CancelledError:
        raise ValueError from None


async def waits() -> None:
    await forever().wait()


@pytest.mark.parametrize("tool", [swallows, turns_into_another, waits])
async def test_a_scope_of_anyio_around_a_call_ends_with_it_whatever_the_tool_does(
    tool: Any, asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(dispatch: Any) -> bool:
        with anyio.move_on_after(SHORT) as scope:
            await dispatch()
        await asyncio.sleep(0)
        return scope.cancelled_caught

    assert await in_request(tool, use) is True
    caplog.clear()  # one of them is a crash


async def test_a_tool_that_cancels_its_caller_cancels_it_once(asyncio_only: None) -> None:
    cleaned: list[str] = []

    async def abort() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "done"

    async def use(dispatch: Any) -> None:
        async def caller() -> None:
            try:
                await dispatch()
            finally:
                await asyncio.sleep(0)
                cleaned.append("caller")

        task = spawn(caller())
        await asyncio.wait([task])
        assert task.cancelled()

    await in_request(abort, use)
    assert cleaned == ["caller"]


async def fails() -> None:
    await asyncio.sleep(0)
    raise KeyError("SECRET")


async def catches() -> str:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
    except* KeyError:
        pass
    return "fallback"


async def catches_while_it_works() -> str:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await forever().wait()
    except* KeyError:
        pass
    return "fallback"


async def lets_it_out() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails())


@pytest.mark.parametrize(
    ("tool", "code"), [(catches, None), (catches_while_it_works, None), (lets_it_out, "tool_crashed")]
)
async def test_a_task_group_of_a_tool_cancels_nobody_but_the_tool(
    tool: Any, code: str | None, asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(dispatch: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(2):
            assert (await dispatch()).code == code
            assert task.cancelling() == 0

    await in_request(tool, use)
    caplog.clear()  # one of them is a crash


async def test_a_caller_that_is_cancelled_while_a_task_group_of_the_tool_ends_is_cancelled(asyncio_only: None) -> None:
    gate = Gate()

    async def cleans_up() -> None:
        try:
            await forever().wait()
        finally:
            await gate.wait()

    async def tool() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(cleans_up())
                group.create_task(fails())
        except* KeyError:
            pass
        return "fallback"

    async def use(dispatch: Any) -> None:
        task = spawn(dispatch())
        await soon(gate.reached)
        task.cancel()
        await turns()
        gate.go.set()
        await asyncio.wait([task])
        assert task.cancelled()

    await in_request(tool, use)


async def test_the_time_of_a_call_counts_from_its_beginning(asyncio_only: None) -> None:
    """Not from where it first waits."""
    later: list[str] = []
    seen: list[list[str]] = []

    async def slow_first_step() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 0.2:
            pass
        loop.call_later(0.1, later.append, "half the time of a call later")
        try:
            await forever().wait()
        finally:
            seen.append(list(later))

    async def use(dispatch: Any) -> Any:
        return (await dispatch()).code

    assert await in_request(slow_first_step, use, timeout=0.2) == "tool_timeout"
    assert seen == [[]]


# --- what is held


async def test_what_a_tool_that_is_cancelled_or_late_held_goes_at_once(asyncio_only: None, no_gc: None) -> None:
    held: list[weakref.ref[Thing]] = []
    gate = Gate()

    async def tool() -> None:
        thing = Thing()
        held.append(weakref.ref(thing))
        await gate.wait()

    async def use(dispatch: Any) -> None:
        task = spawn(dispatch())
        await soon(gate.reached)
        await cancel(task)
        del task
        await turns()
        assert held.pop()() is None

    await in_request(tool, use)

    async def late(dispatch: Any) -> None:
        assert (await dispatch()).code == "tool_timeout"
        await turns()
        assert held.pop()() is None

    await in_request(tool, late, timeout=SHORT)


@pytest.mark.parametrize("how", ["task", "thread"])
async def test_what_a_tool_held_that_fails_goes_at_once(
    how: str, asyncio_only: None, no_gc: None, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[weakref.ref[Thing]] = []

    async def tool() -> None:
        thing = Thing()
        held.append(weakref.ref(thing))
        await spawn(fails())

    def in_thread() -> None:
        thing = Thing()
        held.append(weakref.ref(thing))
        raise KeyError

    async def use(dispatch: Any) -> None:
        caplog.set_level(logging.CRITICAL, "asgi_context")  # the log holds what it is given
        assert (await dispatch()).code == "tool_crashed"
        await turns()
        assert held.pop()() is None

    await in_request(tool if how == "task" else in_thread, use)


async def test_what_a_tool_has_waited_for_is_its_own(asyncio_only: None, no_gc: None) -> None:
    gate = Gate()
    held: list[weakref.ref[Thing]] = []

    async def tool() -> None:
        async def give() -> Thing:
            await asyncio.sleep(0)
            thing = Thing()
            held.append(weakref.ref(thing))
            return thing

        await spawn(give())
        await gate.wait()

    async def use(dispatch: Any) -> None:
        task = spawn(dispatch())
        await soon(gate.reached)
        assert held[0]() is None
        gate.go.set()
        assert (await task).ok

    await in_request(tool, use)


async def test_nothing_of_a_connection_is_held_for_as_long_as_a_call_may_take(asyncio_only: None) -> None:
    """A timer that was cancelled stays in the loop's heap until its time, and holds the Context that it was made in."""
    held: list[weakref.ref[Any]] = []
    earlier = asyncio.get_running_loop().call_later(LONG, print)  # or the loop would drop the others at once

    async def tool() -> None:
        await asyncio.sleep(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        system = await current_resource(ToolSystem)
        held.append(weakref.ref(system.bridge))
        assert (await system.dispatcher.dispatch("tool")).ok
        await send({"type": "websocket.close", "code": 1000})

    middleware = mount(app, {ToolSystem: ToolSystemFactory([tool], timeout=60)})

    async def connect() -> None:
        server = Exchange([{"type": "websocket.connect"}])
        held.append(weakref.ref(server))
        await middleware(websocket(*who()), server.receive, server.send)

    await asyncio.gather(*(spawn(connect()) for _ in range(10)))
    await turns()
    gc.collect()
    assert [thing() for thing in held] == [None] * 20
    earlier.cancel()


# --- the steps


async def test_the_rest_of_a_coroutine_is_what_awaiting_it_gives(asyncio_only: None) -> None:
    class Steps:
        """Waits for numbers, and is told what it was sent."""

        def __await__(self) -> Any:
            sent = yield 1
            try:
                yield sent + 1
            except KeyError:
                yield "caught"
            return "done"

    async def work() -> Any:
        return await Steps()

    coroutine = work()
    steps: Any = Rest(coroutine.send(None), coroutine).__await__()
    assert steps.send(None) == 1
    assert steps.send(2) == 3
    assert steps.throw(KeyError()) == "caught"
    with pytest.raises(StopIteration) as ended:
        steps.send(None)
    assert ended.value.value == "done"


async def test_the_rest_of_a_coroutine_closes_it(asyncio_only: None) -> None:
    closed: list[str] = []

    class Step:
        def __await__(self) -> Any:
            try:
                yield 1
            finally:
                closed.append("step")

    async def work() -> None:
        await Step()

    coroutine = work()
    steps: Any = Rest(coroutine.send(None), coroutine).__await__()
    assert steps.send(None) == 1
    steps.close()
    assert closed == ["step"]
