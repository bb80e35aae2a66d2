"""What resources do where things go wrong late, or elsewhere."""

import asyncio
import functools
import gc
import pickle
import weakref
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from driver import Exchange, http, run, websocket, who
from resources import (
    CHAT,
    LONG,
    MESSAGES,
    A,
    B,
    ByHand,
    C,
    Gate,
    logged_errors,
    mount,
    plainly,
    quiet_loop,
    serve,
    settle,
    soon,
    spawn,
    turns,
    waiting,
    wrap,
)

from asgi_context import ContextClosedError, RequestContext, current_resource
from asgi_context._resources import Closing, Resources
from asgi_context.errors import ResourceCloseError, ResourceLoopError, ResourceTimeoutError

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)
logged = pytest.fixture(logged_errors)


class OddError(Exception): ...


async def test_a_failure_later_leaves_nothing_for_the_collector(asyncio_only: None) -> None:
    refs: list[Any] = []

    async def failing(context: RequestContext) -> A:
        await asyncio.sleep(0)
        error = OddError()
        refs.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def handle() -> None:
        with suppress(OddError):
            await current_resource(A)

    middleware = wrap(handle, {A: failing})
    gc.collect()
    gc.disable()
    try:
        await spawn(run(middleware, http(*who())))
        await turns()
        assert [ref() for ref in refs] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["generator", "async generator"])
async def test_a_partial_of_an_object_with_a_generator_call(kind: str, asyncio_only: None) -> None:
    class Plain:
        def __call__(self, context: RequestContext) -> Any:
            yield A(context)

    class Later:
        async def __call__(self, context: RequestContext) -> Any:
            yield A(context)

    async def handle() -> None:
        assert isinstance(await current_resource(A), A)

    await serve(handle, {A: functools.partial(Plain() if kind == "generator" else Later())})


async def test_a_late_async_manager_whose_exit_fails_is_logged(asyncio_only: None, logged: Any) -> None:
    log: list[str] = []
    release, started = asyncio.Event(), asyncio.Event()
    callers: list[Any] = []

    async def stubborn(context: RequestContext) -> Any:
        started.set()
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        return waiting(log, B, fails=OSError("late"))(context)

    async def handle() -> None:
        callers.append(spawn(current_resource(B)))
        await soon(started)

    with pytest.raises(ResourceCloseError):
        await serve(handle, {B: stubborn}, close_timeout=0.01)
    release.set()
    await settle(*callers)
    await turns()
    assert log == ["open B", "close B"]
    assert logged() == ["closing B failed: builtins.OSError: late"]


@pytest.mark.parametrize("late", [False, True], ids=["in time", "after close_timeout"])
@pytest.mark.parametrize("factory", [plainly, waiting])
async def test_who_waits_for_what_is_made_after_the_end_does_not_get_it(
    late: bool, factory: Any, asyncio_only: None
) -> None:
    log: list[str] = []
    release, started = asyncio.Event(), asyncio.Event()
    got: list[Any] = []

    async def ask() -> None:
        try:
            made = await current_resource(B)
        except ContextClosedError:
            return
        got.append((made, list(log)))

    callers: list[Any] = []

    async def stubborn(context: RequestContext) -> Any:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                if not late:
                    break
        return factory(log, B)(context)

    async def handle() -> None:
        callers.append(spawn(ask()))
        await soon(started)

    with suppress(ResourceCloseError):
        await serve(handle, {B: stubborn}, close_timeout=0.01 if late else LONG)
    release.set()
    await settle(*callers)
    await turns()
    assert got == []


async def test_a_connection_coroutine_closed_while_its_resources_close_after_we_closed_it(asyncio_only: None) -> None:
    """Waiting for anything then would be "coroutine ignored GeneratorExit"."""
    log: list[str] = []
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current_resource(A)
        await receive()
        assert (await receive())["code"] == 1008

    middleware = mount(app, {A: waiting(log, holds=gate)}, message=MESSAGES["message"])
    bad = {"type": "websocket.receive", "text": "no json"}

    async def drive() -> None:
        by_hand = ByHand(middleware, websocket(*who()), Exchange([CHAT[0], bad]))
        await by_hand.until(gate.reached)
        by_hand.coroutine.close()

    await settle(driving := spawn(drive()))
    gate.go.set()
    await middleware.close()
    await turns()
    driving.result()


async def test_another_event_loop_is_told_that_the_resources_here_are_not_its_own(asyncio_only: None) -> None:
    log: list[str] = []
    loop = asyncio.get_running_loop()

    async def handle() -> None:
        made = await current_resource(A), await current_resource(B)

        def elsewhere() -> None:
            for kind in (A, B, C):
                with pytest.raises(ResourceLoopError, match="run_coroutine_threadsafe"):
                    asyncio.run(current_resource(kind))
            here = asyncio.run_coroutine_threadsafe(current_resource(A), loop)
            assert here.result(LONG) is made[0]

        await asyncio.to_thread(elsewhere)

    await serve(handle, {A: plainly(log), B: waiting(log, B), C: C})
    assert log == ["open A", "open B", "close B", "close A"]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_factory_that_returns_a_generator_is_told_to_be_one(kind: str, asyncio_only: None) -> None:
    def plain() -> Any:
        yield A()

    async def later() -> Any:
        yield A()

    async def handle() -> None:
        with pytest.raises(TypeError, match="factory of A returned a generator: register the generator function"):
            await current_resource(A)

    await serve(handle, {A: lambda context: plain() if kind == "plain" else later()})


async def test_what_is_both_awaitable_and_a_manager_is_entered(asyncio_only: None) -> None:
    """As the connections of some database drivers are: entering awaits them, and twice would be an error."""
    log: list[str] = []

    class Connection:
        def __await__(self) -> Any:
            log.append("awaited")
            yield from asyncio.sleep(0).__await__()
            return self

        async def __aenter__(self) -> Any:
            return await self

        async def __aexit__(self, *_: object) -> None:
            log.append("closed")

    async def handle() -> None:
        assert isinstance(await current_resource(Connection), Connection)

    await serve(handle, {Connection: lambda context: Connection()})
    assert log == ["awaited", "closed"]


async def test_what_has_ended_by_itself_is_made_anew(asyncio_only: None) -> None:
    """A failing task of a task group inside of it cancels the task that holds it."""
    log: list[str] = []
    fail = asyncio.Event()

    @asynccontextmanager
    async def make(context: RequestContext) -> Any:
        async with asyncio.TaskGroup() as group:
            log.append("open")
            if len(log) == 1:
                group.create_task(break_off())
            yield A()
            log.append("close")

    async def break_off() -> None:
        await fail.wait()
        raise OddError

    async def handle() -> None:
        first = await current_resource(A)
        fail.set()
        await turns()
        second = await current_resource(A)
        assert second is not first
        assert second is await current_resource(A)

    with pytest.raises(ResourceCloseError) as caught:
        await serve(handle, {A: make})
    assert log == ["open", "open", "close"]
    (group,) = caught.value.exceptions
    assert isinstance(group, ExceptionGroup)


async def test_the_end_of_the_lifespan_leaves_what_does_not_end_to_itself(asyncio_only: None, logged: Any) -> None:
    release, started = asyncio.Event(), asyncio.Event()
    callers: list[Any] = []

    async def stubborn(context: RequestContext) -> A:
        started.set()
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        return A()

    async def handle() -> None:
        callers.append(spawn(current_resource(A)))
        await soon(started)

    middleware = wrap(handle, {A: stubborn}, close_timeout=0.01)
    with pytest.raises(ResourceCloseError):
        await run(middleware, http(*who()))
    await middleware.close()
    assert logged() == ["1 resources are still being made or closed, and are left to themselves"]
    release.set()
    await settle(*callers)
    await turns()


def test_notes_on_a_group_survive_being_pickled() -> None:
    error = ResourceCloseError([ResourceTimeoutError("A")])
    error.add_note("while the request of acme ended")
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__


async def test_what_was_made_at_once_needs_no_waiting(asyncio_only: None) -> None:
    """As eager tasks make it, before whoever asked begins to wait."""
    loop = asyncio.get_running_loop()
    resources = Resources(Closing(LONG), loop)
    made: asyncio.Future[A] = loop.create_future()
    made.set_result(A())
    flight = resources.launch(A, made)
    await turns()
    assert await flight.wait(joins=True) is made.result() is resources.made[A]


def test_part_of_a_group_is_a_group_of_its_kind() -> None:
    error = ResourceCloseError([ResourceTimeoutError("A"), ValueError("b")])
    part = error.subgroup(ValueError)
    assert type(part) is ResourceCloseError
    assert [str(each) for each in part.exceptions] == ["b"]


async def test_the_end_of_the_lifespan_waits_for_what_ends_late(asyncio_only: None, logged: Any) -> None:
    release, started = asyncio.Event(), asyncio.Event()
    callers: list[Any] = []

    async def stubborn(context: RequestContext) -> A:
        started.set()
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        return A()

    async def handle() -> None:
        callers.append(spawn(current_resource(A)))
        await soon(started)

    middleware = wrap(handle, {A: stubborn}, close_timeout=0.2)
    with pytest.raises(ResourceCloseError):
        await run(middleware, http(*who()))
    closing = spawn(middleware.close())
    await turns()
    release.set()
    await settle(closing, *callers)
    assert logged() == []
