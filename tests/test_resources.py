"""Resources are made once for whom they are, whoever asks and whoever is cancelled, and closed at its end, all of them."""

import asyncio
import contextvars
import functools
import gc
import json
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, assert_type

import anyio
import pytest
from driver import Exchange, hello, http, run, websocket, who

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    ContextNotBoundError,
    Identity,
    RequestContext,
    bind_context,
    current_context,
    current_resource,
    from_header,
    json_message,
    message_context,
    unbound_context,
)
from asgi_context.errors import (
    JobError,
    ResourceCloseError,
    ResourceCycleError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    UnsupportedLoopError,
)

pytestmark = pytest.mark.anyio

LONG = 20  # seconds: never waited for, unless something hangs
BOB = Identity("globex", "bob")


class A:
    def __init__(self, context: RequestContext | None = None) -> None:
        self.context = context


class B(A): ...


class C(A): ...


class D(A): ...


def errors_in(records: list[logging.LogRecord]) -> list[str]:
    found = [record for record in records if record.name == "asgi_context" and record.levelno > logging.INFO]
    return [f"{r.getMessage()}: {r.exc_info[1]}" if r.exc_info else r.getMessage() for r in found]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged as an error since it was last asked."""

    def take() -> list[str]:
        texts = errors_in(caplog.records)
        caplog.clear()
        return texts

    return take


@pytest.fixture
async def asyncio_only(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """As in conftest, and neither the loop has anything to complain about, nor the log, nor is any task left.

    A coroutine that nobody awaits is a warning, and so an error, once it is collected.
    """
    loop, complaints = asyncio.get_running_loop(), []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        yield
        for _ in range(10):  # what was cancelled or released last
            await asyncio.sleep(0)
        gc.collect()
        assert complaints == []
        assert errors_in(caplog.get_records("call")) == []  # what a test has asked for is cleared
        assert [task for task in asyncio.all_tasks() if "TestRunner" not in repr(task) and not task.done()] == []
    finally:
        loop.set_exception_handler(handler)


def wrap(handle: Callable[[], Awaitable[object]], resources: Any = None, **options: Any) -> ContextMiddleware:
    """An app that handles every request by a function."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handle()
        await hello(scope, receive, send)

    return mount(app, resources, **options)


def mount(app: Any, resources: Any = None, **options: Any) -> ContextMiddleware:
    options.setdefault("tenant", from_header("x-tenant-id"))
    options.setdefault("user", from_header("x-user-id"))
    return ContextMiddleware(app, resources=resources, **options)


async def serve(handle: Callable[[], Awaitable[object]], resources: Any = None, **options: Any) -> Exchange:
    async with asyncio.timeout(LONG):
        return await run(wrap(handle, resources, **options), http(*who()))


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(LONG):
        await event.wait()


def spawn(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.get_running_loop().create_task(coroutine)


async def settle(*tasks: Any) -> list[Any]:
    async with asyncio.timeout(LONG):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def turns(number: int = 10) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class Gate:
    """Holds somebody up, and says that somebody has come."""

    def __init__(self) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await self.go.wait()


def plainly(log: list[Any], kind: type = A, *, fails: BaseException | None = None) -> Any:
    """A factory that notes what becomes of what it makes."""

    @contextmanager
    def factory(context: RequestContext) -> Iterator[Any]:
        log.append(f"open {kind.__name__}")
        try:
            yield kind(context)
        finally:
            log.append(f"close {kind.__name__}")
            if fails:
                raise fails

    return factory


def waiting(log: list[Any], kind: type = A, *, fails: BaseException | None = None, holds: Gate | None = None) -> Any:
    """The same in an asynchronous way; closing can be held up."""

    @asynccontextmanager
    async def factory(context: RequestContext) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        log.append(f"open {kind.__name__}")
        try:
            yield kind(context)
        finally:
            log.append(f"closing {kind.__name__}" if holds else f"close {kind.__name__}")
            await (holds.wait() if holds else asyncio.sleep(0))
            if holds:
                log.append(f"close {kind.__name__}")
            if fails:
                raise fails

    return factory


# --- factories


class Entering(A):
    """An object that is its own context manager, by a class that is its own factory."""

    log: list[str]

    def __enter__(self) -> Self:
        self.log.append("open A")
        return self

    def __exit__(self, *error: object) -> None:
        self.log.append("close A")


class AsyncEntering(Entering):
    """Both kinds at once, as some clients are: the asynchronous one is meant."""

    async def __aenter__(self) -> Self:
        self.log.append("open A")
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.sleep(0)
        self.log.append("close A")


class Awaited(AsyncEntering):
    """Awaitable and a context manager, as pools of database drivers are."""

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self


def kinds_of_factories(log: list[str]) -> dict[str, Any]:  # noqa: C901 - one of each
    opened = ["open A", "close A"]

    async def coroutine(context: RequestContext) -> A:
        await asyncio.sleep(0)
        return A(context)

    class Own:
        def __call__(self, context: RequestContext) -> A:
            return A(context)

        def method(self, context: RequestContext) -> A:
            return A(context)

        async def coroutine(self, context: RequestContext) -> A:
            return A(context)

        def generator(self, context: RequestContext) -> Any:
            log.append("open A")
            yield A(context)
            log.append("close A")

    class AsyncCallable:
        async def __call__(self, context: RequestContext) -> A:
            return A(context)

    def generator(context: RequestContext) -> Any:
        log.append("open A")
        yield A(context)
        log.append("close A")

    async def async_generator(context: RequestContext) -> Any:
        log.append("open A")
        yield A(context)
        log.append("close A")

    async def manager_later(context: RequestContext) -> Any:
        return plainly(log)(context)

    async def async_manager_later(context: RequestContext) -> Any:
        await asyncio.sleep(0)
        return waiting(log)(context)

    def future(context: RequestContext) -> Any:
        made = asyncio.get_running_loop().create_future()
        made.set_result(A(context))
        return made

    def entering(cls: type[Entering]) -> Any:
        return type("Own", (cls,), {"log": log})

    return {
        "a function": (lambda context: A(context), []),
        "a class": (A, []),
        "a coroutine function": (coroutine, []),
        "a callable object": (Own(), []),
        "an object with an async __call__": (AsyncCallable(), []),
        "a method": (Own().method, []),
        "a coroutine method": (Own().coroutine, []),
        "a generator method": (Own().generator, opened),
        "a partial": (functools.partial(lambda made, context: made(context), A), []),
        "a partial of a generator function": (functools.partial(generator), opened),
        "a function that returns a future": (future, []),
        "a contextmanager": (plainly(log), opened),
        "an asynccontextmanager": (waiting(log), opened),
        "a generator function": (generator, opened),
        "an async generator function": (async_generator, opened),
        "a coroutine that returns a context manager": (manager_later, opened),
        "a coroutine that returns an async context manager": (async_manager_later, opened),
        "a class of context managers": (entering(Entering), opened),
        "a class of both kinds of context managers": (entering(AsyncEntering), opened),
        "an awaitable context manager": (entering(Awaited), opened),
    }


@pytest.mark.parametrize("name", list(kinds_of_factories([])))
async def test_factories_of_every_kind_make_one_object_from_the_context(name: str, asyncio_only: None) -> None:
    log: list[str] = []
    factory, expected = kinds_of_factories(log)[name]

    async def handle() -> None:
        made = await current_resource(A)
        assert_type(made, A)
        assert isinstance(made, A)
        assert made.context is current_context()
        assert await current_resource(A) is made
        assert await spawn(current_resource(A)) is made
        assert log == expected[:1]

    assert (await serve(handle, {A: factory})).status == 200
    assert log == expected


async def test_what_a_context_manager_gives_is_the_resource_even_none(asyncio_only: None) -> None:
    calls: list[str] = []

    @contextmanager
    def number(context: RequestContext) -> Iterator[int]:
        yield 7

    async def nothing(context: RequestContext) -> None:
        calls.append("nothing")

    async def handle() -> None:
        assert await current_resource(int) == 7
        assert await current_resource(str) is None
        assert await current_resource(str) is None

    await serve(handle, {int: number, str: nothing})
    assert calls == ["nothing"]


async def test_factories_run_and_close_under_the_binding_that_they_make_for(asyncio_only: None) -> None:
    seen: list[Any] = []

    def look(what: str) -> None:
        seen.append((what, current_context().user, current_context().request_id))

    @contextmanager
    def plain(context: RequestContext) -> Iterator[A]:
        look("open")
        yield A()
        look("close")

    @asynccontextmanager
    async def later(context: RequestContext) -> AsyncIterator[B]:
        look("open")
        yield B()
        await asyncio.sleep(0)
        look("close")

    async def handle() -> None:
        await current_resource(A)
        await current_resource(B)
        seen.append(current_context().request_id)

    await serve(handle, {A: plain, B: later})
    request_id = seen.pop(2)
    assert seen == [(what, "ann", request_id) for what in ("open", "open", "close", "close")]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"A": A}, "a key must be a class, not 'A'"),
        ({A(): A}, "a key must be a class"),
        ({A: None}, "the factory of A must be callable, not None"),
    ],
)
def test_what_is_no_factory_is_refused_at_start_up(resources: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        mount(hello, resources)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        *[(wrong, TypeError) for wrong in ("1", True, None)],
        *[(wrong, ValueError) for wrong in (0, -1, float("inf"), float("nan"))],
    ],
)
def test_a_close_timeout_is_a_positive_number_of_seconds(timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="close_timeout"):
        mount(hello, {A: A}, close_timeout=timeout)


async def test_a_type_without_a_factory_says_where_one_belongs(asyncio_only: None) -> None:
    async def handle() -> None:
        with pytest.raises(ResourceNotFoundError, match=r"no factory for B here: give ContextMiddleware\(resources="):
            await current_resource(B)
        await current_resource(A)
        with pytest.raises(LookupError):
            await current_resource(B)

    await serve(handle, {A: A})


async def test_where_nobody_is_bound_there_is_nothing(asyncio_only: None) -> None:
    async def handle() -> None:
        with pytest.raises(ContextNotBoundError) as caught:
            await current_resource(A)
        assert caught.value.wanted == "resource"

    await handle()
    async with asyncio.timeout(LONG):
        await run(wrap(handle, {A: A}, missing="unbound"), http())
        await run(wrap(handle, {A: A}, exempt=lambda scope: True), http(*who()))

    async def inside() -> None:
        await current_resource(A)
        with unbound_context():
            await handle()

    await serve(inside, {A: A})
    with bind_context(BOB), pytest.raises(ResourceNotFoundError):
        await current_resource(A)


async def test_without_an_asyncio_loop_it_says_so(trio_only: None) -> None:
    async def handle() -> None:
        with pytest.raises(UnsupportedLoopError, match="current_resource needs a running asyncio event loop"):
            await current_resource(A)

    middleware = wrap(handle, {A: A})
    assert (await run(middleware, http(*who()))).status == 200
    await middleware.close()


# --- made once


async def test_many_tasks_at_once_get_one_object(asyncio_only: None) -> None:
    made: list[A] = []

    async def factory(context: RequestContext) -> A:
        for _ in range(5):
            await asyncio.sleep(0)
        made.append(A(context))
        return made[-1]

    async def handle() -> None:
        assert set(await settle(*(spawn(current_resource(A)) for _ in range(50)))) == set(made)

    await serve(handle, {A: factory})
    assert len(made) == 1


async def test_a_cancelled_first_caller_takes_nothing_from_the_others_nor_from_who_asks_later(
    asyncio_only: None,
) -> None:
    started, go, calls = asyncio.Event(), asyncio.Event(), []

    async def factory(context: RequestContext) -> A:
        calls.append(context)
        started.set()
        await go.wait()
        return A(context)

    async def handle() -> None:
        first, second = spawn(current_resource(A)), spawn(current_resource(A))
        await soon(started)
        first.cancel()
        assert isinstance((await settle(first))[0], asyncio.CancelledError)
        go.set()
        made = await second
        assert await current_resource(A) is made

    await serve(handle, {A: factory})
    assert len(calls) == 1


async def test_when_all_callers_were_cancelled_it_is_still_made_for_the_next(asyncio_only: None) -> None:
    started, go, calls = asyncio.Event(), asyncio.Event(), []

    async def factory(context: RequestContext) -> A:
        calls.append(context)
        started.set()
        await go.wait()
        return A(context)

    async def handle() -> None:
        callers = [spawn(current_resource(A)) for _ in range(3)]
        await soon(started)
        for caller in callers:
            caller.cancel()
        await settle(*callers)
        next_one = spawn(current_resource(A))
        await turns()
        go.set()
        assert await next_one is await current_resource(A)

    await serve(handle, {A: factory})
    assert len(calls) == 1


@pytest.mark.parametrize("where", ["at once", "later", "entering", "entering later", "plain entering later"])
async def test_a_failure_reaches_all_who_asked_and_the_next_tries_again(where: str, asyncio_only: None) -> None:
    error, calls = ValueError("no"), []

    def fail_first() -> None:
        calls.append(where)
        if len(calls) == 1:
            raise error

    def at_once(context: RequestContext) -> A:
        fail_first()
        return A(context)

    async def later(context: RequestContext) -> A:
        await turns(3)
        fail_first()
        return A(context)

    @contextmanager
    def entering(context: RequestContext) -> Iterator[A]:
        fail_first()
        yield A(context)

    @asynccontextmanager
    async def entering_later(context: RequestContext) -> AsyncIterator[A]:
        await turns(3)
        fail_first()
        yield A(context)

    async def plain_entering_later(context: RequestContext) -> Any:
        await turns(3)
        return entering(context)

    factory: Any = {
        "at once": at_once,
        "later": later,
        "entering": entering,
        "entering later": entering_later,
        "plain entering later": plain_entering_later,
    }[where]

    async def handle() -> None:
        if "later" in where:
            assert await settle(*(spawn(current_resource(A)) for _ in range(3))) == [error] * 3
        else:
            with pytest.raises(ValueError, match="no"):
                await current_resource(A)
        assert await current_resource(A) is await current_resource(A)

    await serve(handle, {A: factory})
    assert len(calls) == 2


async def test_a_failure_after_all_callers_were_cancelled_is_logged(asyncio_only: None, logged: Any) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def factory(context: RequestContext) -> A:
        started.set()
        await go.wait()
        raise ValueError("too late\n")

    async def handle() -> None:
        caller = spawn(current_resource(A))
        await soon(started)
        caller.cancel()
        await settle(caller)
        go.set()
        await turns()

    await serve(handle, {A: factory})
    assert logged() == ["making A failed after its caller was cancelled: builtins.ValueError: too late\\n"]


# --- factories that ask for other resources


def asking(*kinds: type, made: type = A) -> Any:
    async def factory(context: RequestContext) -> Any:
        await asyncio.sleep(0)
        for kind in kinds:
            await current_resource(kind)
        return made(context)

    return factory


async def test_factories_ask_for_other_resources_and_are_closed_before_them(asyncio_only: None) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def needing(context: RequestContext) -> AsyncIterator[A]:
        await current_resource(B)
        async with waiting(log, A)(context) as made:
            yield made

    async def needing_too(context: RequestContext) -> Any:
        await current_resource(C)
        return plainly(log, B)(context)

    async def handle() -> None:
        await current_resource(A)

    await serve(handle, {A: needing, B: needing_too, C: waiting(log, C)})
    assert log == ["open C", "open B", "open A", "close A", "close B", "close C"]


@pytest.mark.parametrize(
    "resources",
    [
        {A: asking(A)},
        {A: asking(B), B: asking(A)},
        {A: asking(B), B: asking(C), C: asking(A)},
        {A: asking(D, B), B: asking(C), C: asking(D, A), D: asking(made=D)},
    ],
    ids=["direct", "over two", "over three", "beside another"],
)
async def test_a_cycle_is_an_error(resources: Any, asyncio_only: None) -> None:
    async def handle() -> None:
        for _ in range(2):
            with pytest.raises(ResourceCycleError, match="waits for itself"):
                await current_resource(A)

    await serve(handle, resources)


async def test_a_cycle_that_two_tasks_enter_at_once_is_an_error_for_both(asyncio_only: None) -> None:
    async def handle() -> None:
        errors = await settle(spawn(current_resource(A)), spawn(current_resource(B)))
        assert [type(error) for error in errors] == [ResourceCycleError] * 2

    await serve(handle, {A: asking(B), B: asking(A)})


async def test_a_cycle_by_way_of_a_task_of_the_factory_is_an_error(asyncio_only: None) -> None:
    async def factory(context: RequestContext) -> A:
        await spawn(current_resource(B))
        return A(context)

    async def handle() -> None:
        with pytest.raises(ResourceCycleError):
            await current_resource(A)

    await serve(handle, {A: factory, B: asking(A)})


async def test_a_factory_that_catches_the_cycle_can_go_on(asyncio_only: None) -> None:
    async def factory(context: RequestContext) -> A:
        with pytest.raises(ResourceCycleError):
            await current_resource(A)
        return A(context)

    async def handle() -> None:
        assert await current_resource(A) is await current_resource(A)

    await serve(handle, {A: factory})


async def test_a_diamond_is_no_cycle_and_its_foot_is_made_once(asyncio_only: None) -> None:
    made: list[str] = []

    async def foot(context: RequestContext) -> D:
        await turns(5)
        made.append("D")
        return D(context)

    async def top(context: RequestContext) -> A:
        await asyncio.gather(current_resource(B), current_resource(C), current_resource(D), current_resource(D))
        return A(context)

    async def handle() -> None:
        kinds: list[type] = [D, C, B, A]
        made = await settle(*(spawn(current_resource(kind)) for kind in kinds))
        assert [type(one) for one in made] == kinds

    resources: Any = {A: top, B: asking(D, made=B), C: asking(D, made=C), D: foot}
    await serve(handle, resources)
    assert made == ["D"]


async def test_a_wait_that_was_given_up_is_no_part_of_a_cycle(asyncio_only: None) -> None:
    """A asks for B and gives up; B may then ask for A."""
    given_up, started = asyncio.Event(), asyncio.Event()

    async def a(context: RequestContext) -> A:
        waits = spawn(current_resource(B))
        await started.wait()
        waits.cancel()
        await settle(waits)
        given_up.set()
        await turns()  # still being made when B asks for it
        return A(context)

    async def b(context: RequestContext) -> B:
        started.set()
        await given_up.wait()
        await current_resource(A)
        return B(context)

    async def handle() -> None:
        await current_resource(A)
        assert type(await current_resource(B)) is B

    await serve(handle, {A: a, B: b})


# --- whose


async def test_each_request_has_its_own(asyncio_only: None) -> None:
    made: list[A] = []

    async def handle() -> None:
        made.append(await current_resource(A))
        await turns()
        assert await current_resource(A) is made[-1] or made[-1].context is not current_context()

    async with asyncio.timeout(LONG):
        middleware = wrap(handle, {A: waiting([])})
        await asyncio.gather(*(run(middleware, http(*who("acme", f"user{n}"))) for n in range(20)))
    assert sorted(one.context.user for one in made if one.context) == sorted(f"user{n}" for n in range(20))


@pytest.mark.parametrize("factory", [plainly, waiting])
@pytest.mark.parametrize("block", ["with", "async with"])
@pytest.mark.parametrize("identity", [BOB, None], ids=["somebody else", "the same"])
async def test_a_block_has_its_own(factory: Any, block: str, identity: Identity | None, asyncio_only: None) -> None:
    log: list[str] = []

    async def inside(outer: A) -> None:
        inner = await current_resource(A)
        assert inner is not outer
        assert inner.context is current_context()
        assert await current_resource(A) is inner

    async def handle() -> None:
        outer = await current_resource(A)
        if block == "with":
            with bind_context(identity):
                await inside(outer)
            await turns()  # which does not wait for what waits
        else:
            async with bind_context(identity):
                await inside(outer)
        assert log == ["open A", "open A", "close A"]
        assert await current_resource(A) is outer

    await serve(handle, {A: factory(log)})
    assert log == ["open A", "open A", "close A", "close A"]


async def test_a_connection_has_its_own_for_all_its_messages(asyncio_only: None) -> None:
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        first = await current_resource(A)
        while (await receive())["type"] != "websocket.disconnect":
            assert await current_resource(A) is first
        assert log == ["open A"]

    events = [{"type": "websocket.connect"}, text("acme", "ann"), text("acme", "ann"), {"type": "websocket.disconnect"}]
    async with asyncio.timeout(LONG):
        await run(mount(app, {A: waiting(log)}), websocket(*who()), events)
    assert log == ["open A", "close A"]


def text(tenant: str, user: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": json.dumps({"tenant": tenant, "user": user})}


MESSAGES: dict[str, Any] = {
    "tenant": None,
    "user": None,
    "message": json_message(tenant="tenant", user="user"),
}
CHAT = [{"type": "websocket.connect"}, text("acme", "ann"), text("globex", "bob"), {"type": "websocket.disconnect"}]


@pytest.mark.parametrize("factory", [plainly, waiting])
async def test_each_message_has_its_own_which_is_closed_when_the_next_is_read(factory: Any, asyncio_only: None) -> None:
    log: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        while (await receive())["type"] != "websocket.disconnect":
            made = await current_resource(A)
            assert made.context is current_context()
            assert await current_resource(A) is made
            log.append(current_context().user)
        log.append("disconnect")
        with pytest.raises(ContextNotBoundError):
            await current_resource(A)

    async with asyncio.timeout(LONG):
        await run(mount(app, {A: factory(log)}, **MESSAGES), websocket(), CHAT)
    assert log == ["open A", "ann", "close A", "open A", "bob", "close A", "disconnect"]


async def test_the_last_message_s_are_closed_with_the_connection(asyncio_only: None) -> None:
    log: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        await current_resource(A)
        await current_resource(B)

    async with asyncio.timeout(LONG):
        await run(mount(app, {A: waiting(log), B: plainly(log, B)}, **MESSAGES), websocket(), CHAT)
    assert log == ["open A", "open B", "close B", "close A"]


async def test_a_message_s_are_not_given_out_any_more_once_another_task_has_read(asyncio_only: None) -> None:
    """They are closed with the connection: until then somebody may be in the midst of using them."""
    log: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        await current_resource(A)
        await spawn(receive())
        with pytest.raises(ContextClosedError) as caught:
            await current_resource(A)
        assert caught.value.why == "messages"
        assert log == ["open A"]

    async with asyncio.timeout(LONG):
        await run(mount(app, {A: waiting(log)}, **MESSAGES), websocket(), CHAT)
    assert log == ["open A", "close A"]


async def test_a_message_that_cannot_be_closed_well_fails_the_read_and_loses_no_message(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        await current_resource(A)
        with pytest.raises(ResourceCloseError) as caught:
            await receive()
        assert [str(error) for error in caught.value.exceptions] == ["no"]
        assert "bob" in (await receive())["text"]

    async with asyncio.timeout(LONG):
        await run(mount(app, {A: waiting([], fails=OSError("no"))}, **MESSAGES), websocket(), CHAT)


async def test_a_message_context_has_its_own_in_a_task_per_message(asyncio_only: None) -> None:
    log: list[str] = []
    users: list[Any] = []

    async def handle(event: Any) -> None:
        async with message_context(event=event):
            made = await current_resource(A)
            await turns()
            assert await current_resource(A) is made
            users.append(made.context and made.context.user)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        tasks = [spawn(handle(await receive())) for _ in range(2)]
        assert await settle(*tasks) == [None, None]
        assert log == ["open A"] * 2 + ["close A"] * 2

    async with asyncio.timeout(LONG):
        await run(mount(app, {A: waiting(log)}, **MESSAGES), websocket(), CHAT)
    assert sorted(users) == ["ann", "bob"]


@pytest.mark.parametrize("factory", [plainly, waiting])
async def test_what_authorize_made_for_whom_it_refused_is_closed(factory: Any, asyncio_only: None) -> None:
    log: list[str] = []

    async def authorize(context: RequestContext, scope: Any) -> bool:
        await current_resource(A)
        return False

    async def handle() -> None: ...

    assert (await serve(handle, {A: factory(log)}, authorize=authorize)).status == 403
    assert log == ["open A", "close A"]


async def test_what_authorize_made_before_it_crashed_is_closed(asyncio_only: None, logged: Any) -> None:
    log: list[str] = []

    async def authorize(context: RequestContext, scope: Any) -> bool:
        await current_resource(A)
        raise OSError("crash")

    async def handle() -> None: ...

    assert (await serve(handle, {A: waiting(log)}, authorize=authorize)).status == 500
    assert log == ["open A", "close A"]
    assert len(logged()) == 1


async def test_what_authorize_made_before_it_was_cancelled_is_closed(asyncio_only: None) -> None:
    log: list[str] = []
    made = asyncio.Event()

    async def authorize(context: RequestContext, scope: Any) -> bool:
        await current_resource(A)
        made.set()
        return await asyncio.get_running_loop().create_future()

    async def handle() -> None: ...

    request = spawn(serve(handle, {A: waiting(log)}, authorize=authorize))
    await soon(made)
    request.cancel()
    assert isinstance((await settle(request))[0], asyncio.CancelledError)
    assert log == ["open A", "close A"]


async def test_what_authorize_made_is_the_request_s(asyncio_only: None) -> None:
    seen: list[A] = []

    async def authorize(context: RequestContext, scope: Any) -> bool:
        seen.append(await current_resource(A))
        return True

    async def handle() -> None:
        seen.append(await current_resource(A))

    await serve(handle, {A: waiting([])}, authorize=authorize)
    assert seen[0] is seen[1]


@pytest.mark.parametrize("factory", [plainly, waiting])
async def test_what_authorize_made_for_a_refused_message_is_closed(factory: Any, asyncio_only: None) -> None:
    log: list[str] = []

    async def authorize(context: RequestContext, scope: Any) -> bool:
        await current_resource(A)
        return False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["code"] == 1008

    middleware = mount(app, {A: factory(log)}, authorize=authorize, **MESSAGES)
    async with asyncio.timeout(LONG):
        await run(middleware, websocket(), CHAT)
        await middleware.close()
    assert log == ["open A", "close A"]


# --- closing


async def test_all_is_closed_in_the_reverse_order_whatever_its_kind(asyncio_only: None) -> None:
    log: list[str] = []

    async def handle() -> None:
        for kind in (A, B, C, D):
            await current_resource(kind)

    resources: Any = {A: plainly(log, A), B: waiting(log, B), C: plainly(log, C), D: waiting(log, D)}
    await serve(handle, resources)
    assert log == [f"open {name}" for name in "ABCD"] + [f"close {name}" for name in "DCBA"]
    log.clear()
    await serve(handle, {A: resources[B], B: resources[A], C: resources[D], D: resources[C]})
    assert log == [f"open {name}" for name in "BADC"] + [f"close {name}" for name in "CDAB"]


async def test_the_answer_goes_out_before_anything_is_closed_and_streams_and_background_tasks_may_use_it(
    asyncio_only: None,
) -> None:
    log: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for more in (True, True, False):
            log.append(type(await current_resource(A)).__name__)
            await send({"type": "http.response.body", "body": b"x", "more_body": more})
        log.append("background")
        assert await current_resource(A) is await spawn(current_resource(A))

    async with asyncio.timeout(LONG):
        exchange = await run(mount(app, {A: waiting(log)}), http(*who()))
    assert exchange.body == b"xxx"
    assert log == ["open A", "A", "A", "A", "background", "close A"]


async def test_a_task_that_outlives_its_request_block_or_message_gets_an_error(asyncio_only: None) -> None:
    tasks: list[Any] = []
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        for kind in (A, B):  # made, and never asked for
            with pytest.raises(ContextClosedError) as caught:
                await current_resource(kind)
            assert (caught.value.wanted, caught.value.why) == ("resource", "ended")
        async with bind_context():
            assert await current_resource(A) is await current_resource(A)

    async def handle() -> None:
        await current_resource(A)
        tasks.append(spawn(later()))
        async with bind_context(BOB):
            await current_resource(A)
            tasks.append(spawn(later()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(3):
            await receive()
            if current_context(None):
                await current_resource(A)
                tasks.append(spawn(later()))

    await serve(handle, {A: waiting([]), B: B})
    async with asyncio.timeout(LONG):
        await run(mount(app, {A: waiting([]), B: B}, **MESSAGES), websocket(), CHAT)
    go.set()
    assert await settle(*tasks) == [None] * 4


async def test_what_closing_itself_asks_for_is_refused(asyncio_only: None) -> None:
    log: list[str] = []

    @contextmanager
    def plain(context: RequestContext) -> Iterator[A]:
        yield A()
        log.append("closed")

    @asynccontextmanager
    async def later(context: RequestContext) -> AsyncIterator[B]:
        yield B()
        for kind in (A, B, C):
            with pytest.raises(ContextClosedError):
                await current_resource(kind)
        log.append("refused")

    async def handle() -> None:
        await current_resource(A)
        await current_resource(B)

    await serve(handle, {A: plain, B: later, C: C})
    assert log == ["refused", "closed"]


async def test_a_block_left_out_of_order_revokes_what_it_bound(asyncio_only: None) -> None:
    log: list[str] = []
    tasks: list[Any] = []
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        with pytest.raises(ContextClosedError) as caught:
            await current_resource(A)
        assert caught.value.why == "revoked"

    async def handle() -> None:
        outer, inner = bind_context(BOB), bind_context()
        outer.__enter__()
        await current_resource(A)
        tasks.append(spawn(later()))
        inner.__enter__()
        outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        await turns()
        assert log == ["open A", "close A"]

    middleware = wrap(handle, {A: waiting(log)})
    async with asyncio.timeout(LONG):
        await spawn(run(middleware, http(*who())))
    go.set()
    assert await settle(*tasks) == [None]


class BoomError(Exception): ...


@pytest.mark.parametrize("block", ["request", "with", "async with"])
async def test_exits_are_given_the_error_and_can_neither_suppress_nor_replace_it(  # noqa: C901 - one of each
    block: str, asyncio_only: None, logged: Any
) -> None:
    seen: list[Any] = []
    boom = BoomError("boom")

    class Plain:
        def __init__(self, context: RequestContext) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *info: object) -> bool:
            seen.append(info)
            return True

    class Later:
        def __init__(self, context: RequestContext) -> None: ...

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *info: object) -> bool:
            seen.append(info)
            return True

    @contextmanager
    def raising(context: RequestContext) -> Iterator[None]:
        try:
            yield
        except BoomError as error:
            seen.append((type(error), error, error.__traceback__))
            raise

    @asynccontextmanager
    async def raising_later(context: RequestContext) -> AsyncIterator[None]:
        try:
            yield
        except BoomError as error:
            seen.append((type(error), error, error.__traceback__))
            raise

    class Again(Plain):
        """Raises the error itself, as an exit must not, but some do."""

        def __exit__(self, *info: object) -> bool:
            raise boom

    class AgainLater(Later):
        async def __aexit__(self, *info: object) -> bool:
            raise boom

    resources: Any = {
        A: Plain,
        B: Later,
        C: raising,
        D: raising_later,
        int: Again,
        str: AgainLater,
        bytes: plainly([], fails=OSError("plain")),
        dict: waiting([], fails=OSError("later")),
    }

    async def fail() -> None:
        for kind in resources:
            await current_resource(kind)
        raise boom

    async def handle() -> None:
        if block == "request":
            await fail()
        elif block == "with":
            with bind_context():
                await fail()
        else:
            async with bind_context():
                await fail()

    with pytest.raises(BoomError) as caught:
        await serve(handle, resources)
    await turns(30)
    assert caught.value is boom
    assert [(kind, error) for kind, error, _ in seen] == [(BoomError, boom)] * 4
    assert all(traceback is not None for *_, traceback in seen)
    assert logged() == [
        "closing dict failed: builtins.OSError: later",
        "closing bytes failed: builtins.OSError: plain",
    ]


@pytest.mark.parametrize("block", ["request", "async with"])
async def test_errors_of_closing_are_raised_together_once_all_are_closed(block: str, asyncio_only: None) -> None:
    log: list[str] = []
    plain, later = ValueError("plain"), OSError("later")
    resources: Any = {
        A: plainly(log, A, fails=plain),
        B: waiting(log, B, fails=later),
        C: plainly(log, C),
        D: plainly(log, D, fails=KeyboardInterrupt("stop")),
    }

    async def use() -> None:
        for kind in (A, B, C, D):
            await current_resource(kind)

    async def handle() -> None:
        if block == "request":
            await use()
            return
        async with bind_context():
            await use()

    with pytest.raises(ResourceCloseError, match="resources could not be closed") as caught:
        await serve(handle, resources)
    stop, *others = caught.value.exceptions
    assert others == [later, plain]
    assert isinstance(stop, JobError)
    assert stop.kind == "KeyboardInterrupt"
    assert isinstance(stop.__cause__, KeyboardInterrupt)
    assert log[4:] == ["close D", "close C", "close B", "close A"]


async def test_what_a_plain_block_closes_at_once_is_raised_and_the_rest_logged(asyncio_only: None, logged: Any) -> None:
    log: list[str] = []

    async def handle() -> None:
        with pytest.raises(ResourceCloseError) as caught, bind_context():
            await current_resource(A)
            await current_resource(B)
        assert [str(error) for error in caught.value.exceptions] == ["plain"]
        await turns()

    resources: Any = {A: waiting(log, A, fails=OSError("later")), B: plainly(log, B, fails=OSError("plain"))}
    await serve(handle, resources)
    assert log[2:] == ["close B", "close A"]
    assert logged() == ["closing A failed: builtins.OSError: later"]


async def test_errors_of_several_messages_are_raised_together_at_the_end(asyncio_only: None) -> None:
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current_resource(A)
        await receive()
        await receive()
        await current_resource(A)
        await spawn(receive())  # the message's is left for the end

    factory = waiting(log, fails=OSError("no"))
    with pytest.raises(ResourceCloseError) as caught:
        await run(mount(app, {A: factory}, message=MESSAGES["message"]), websocket(*who()), [*CHAT[:2], CHAT[1]])
    assert [str(error) for error in caught.value.exceptions] == ["no", "no"]
    assert log == ["open A", "open A", "close A", "close A"]


@pytest.mark.parametrize("stubborn", [False, True], ids=["hangs", "swallows its cancellation"])
async def test_what_cannot_be_closed_in_time_is_cancelled_and_the_others_are_closed(
    stubborn: bool, asyncio_only: None
) -> None:
    log: list[str] = []
    never, cancelled = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def hanging(context: RequestContext) -> AsyncIterator[B]:
        yield B()
        while not never.is_set():
            try:
                await never.wait()
            except asyncio.CancelledError:
                cancelled.set()
                if not stubborn:
                    raise

    async def handle() -> None:
        for kind in (A, B, C):
            await current_resource(kind)

    with pytest.raises(ResourceCloseError) as caught:
        await serve(handle, {A: plainly(log, A), B: hanging, C: waiting(log, C)}, close_timeout=0.01)
    (error,) = caught.value.exceptions
    assert isinstance(error, ResourceTimeoutError)
    assert "closing B took longer than close_timeout" in str(error)
    assert log == ["open A", "open C", "close C", "close A"]
    await soon(cancelled)
    never.set()


async def test_a_factory_that_does_not_end_when_the_request_has_is_told_and_the_others_are_closed(
    asyncio_only: None,
) -> None:
    log: list[str] = []
    started, never = asyncio.Event(), asyncio.Event()
    waiters: list[Any] = []

    async def stubborn(context: RequestContext) -> B:
        started.set()
        while not never.is_set():
            try:
                await never.wait()
            except asyncio.CancelledError:
                log.append("cancelled")
        raise OSError("in the end")

    async def handle() -> None:
        await current_resource(A)
        waiters.append(spawn(current_resource(B)))
        await soon(started)

    with pytest.raises(ResourceCloseError) as caught:
        await serve(handle, {A: plainly(log), B: stubborn}, close_timeout=0.01)
    assert [type(error) for error in caught.value.exceptions] == [ResourceTimeoutError]
    assert log == ["open A", "cancelled", "close A"]
    never.set()
    (error,) = await settle(*waiters)
    assert isinstance(error, OSError)


async def test_what_is_being_made_when_the_request_ends_is_cancelled_and_who_waits_is_told(asyncio_only: None) -> None:
    log: list[str] = []
    started = asyncio.Event()
    waiters: list[Any] = []

    async def endless(context: RequestContext) -> B:
        started.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            log.append("cancelled B")

    async def handle() -> None:
        await current_resource(A)
        waiters.append(spawn(current_resource(B)))
        await soon(started)

    await serve(handle, {A: waiting(log), B: endless})
    assert log == ["open A", "cancelled B", "close A"]
    (error,) = await settle(*waiters)
    assert isinstance(error, ContextClosedError)
    assert (error.wanted, error.why) == ("resource", "ended")


# --- entered and left in one task, and in one Context


MARK: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="unset")


async def test_variables_set_on_entering_can_be_reset_on_leaving_and_stay_inside(asyncio_only: None) -> None:
    log: list[str] = []

    @contextmanager
    def plain(context: RequestContext) -> Iterator[A]:
        token = MARK.set("plain")
        yield A()
        log.append(MARK.get())
        MARK.reset(token)

    @asynccontextmanager
    async def later(context: RequestContext) -> AsyncIterator[B]:
        token = MARK.set("later")
        yield B()
        await asyncio.sleep(0)
        log.append(MARK.get())
        MARK.reset(token)

    async def plain_later(context: RequestContext) -> Any:
        return plain(context)

    async def handle() -> None:
        for kind in (A, B, C):
            await current_resource(kind)
        assert MARK.get() == "unset"

    await serve(handle, {A: plain, B: later, C: plain_later})
    assert log == ["plain", "later", "plain"]


async def test_task_groups_cancel_scopes_and_timeouts_can_be_held_open(asyncio_only: None) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def group(context: RequestContext) -> AsyncIterator[A]:
        ticked = anyio.Event()

        async def tick() -> None:
            try:
                ticked.set()
                await anyio.sleep_forever()
            finally:
                log.append("ticker ended")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            await ticked.wait()
            yield A()
            tasks.cancel_scope.cancel()
        log.append("group left")

    @asynccontextmanager
    async def scope(context: RequestContext) -> AsyncIterator[B]:
        with anyio.CancelScope() as inside:
            yield B()
            inside.cancel()
            await anyio.sleep_forever()
        log.append("scope left")

    @asynccontextmanager
    async def timeout(context: RequestContext) -> AsyncIterator[C]:
        async with asyncio.timeout(LONG), asyncio.TaskGroup() as tasks:
            yield C()
            await tasks.create_task(asyncio.sleep(0))
        log.append("timeout left")

    async def handle() -> None:
        for kind in (A, B, C):
            await spawn(current_resource(kind))
        await turns()

    await serve(handle, {A: group, B: scope, C: timeout})
    assert log == ["timeout left", "scope left", "ticker ended", "group left"]


async def test_a_group_inside_that_fails_meanwhile_is_told_on_closing(asyncio_only: None) -> None:
    failed = asyncio.Event()

    @asynccontextmanager
    async def group(context: RequestContext) -> AsyncIterator[A]:
        async def fail() -> None:
            raise OSError("inside")

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
                yield A()
        finally:
            failed.set()

    async def handle() -> None:
        await current_resource(A)
        await soon(failed)
        await turns()

    with pytest.raises(ResourceCloseError) as caught:
        await serve(handle, {A: group})
    assert [str(error) for error in caught.value.exceptions[0].exceptions] == ["inside"]  # type: ignore[attr-defined]


async def test_a_timeout_inside_that_expires_meanwhile_is_told_on_closing(asyncio_only: None) -> None:
    expired = asyncio.Event()

    @asynccontextmanager
    async def limited(context: RequestContext) -> AsyncIterator[A]:
        try:
            async with asyncio.timeout(0):
                yield A()
        finally:
            expired.set()

    async def handle() -> None:
        await current_resource(A)
        await soon(expired)
        await turns()

    with pytest.raises(ResourceCloseError) as caught:
        await serve(handle, {A: limited})
    assert [type(error) for error in caught.value.exceptions] == [TimeoutError]


# --- disconnect


class Request:
    """A request that is cancelled as servers and frameworks do it: its task, or an anyio scope around it."""

    def __init__(self, middleware: ContextMiddleware, way: str) -> None:
        self.way = way
        self.scope = anyio.CancelScope()
        self.task = spawn(self._run(middleware))

    async def _run(self, middleware: ContextMiddleware) -> None:
        if self.way == "task.cancel":
            await run(middleware, http(*who()))
            return
        with self.scope:
            await run(middleware, http(*who()))

    def cancel(self) -> None:
        if self.way == "task.cancel":
            self.task.cancel()
        else:
            self.scope.cancel()

    async def ended(self) -> None:
        (outcome,) = await settle(self.task)
        assert isinstance(outcome, asyncio.CancelledError) or self.scope.cancelled_caught


@pytest.fixture(params=["task.cancel", "cancel scope"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_disconnect_while_a_resource_is_used_closes_it(way: str, asyncio_only: None) -> None:
    log: list[Any] = []
    used = asyncio.Event()

    @asynccontextmanager
    async def noting(context: RequestContext) -> AsyncIterator[C]:
        try:
            yield C()
        except BaseException as error:
            log.append(type(error).__name__)
            raise

    async def handle() -> None:
        for kind in (A, B, C):
            await current_resource(kind)
        used.set()
        await asyncio.get_running_loop().create_future()

    middleware = wrap(handle, {A: waiting(log), B: plainly(log, B), C: noting})
    request = Request(middleware, way)
    await soon(used)
    request.cancel()
    await request.ended()
    await middleware.close()  # what goes on by itself: an anyio scope cancels again and again
    assert log == ["open A", "open B", "CancelledError", "close B", "close A"]


@pytest.mark.parametrize("entering", [False, True], ids=["made", "entered"])
async def test_a_disconnect_while_a_resource_is_made_ends_that_and_closes_the_others(
    way: str, entering: bool, asyncio_only: None
) -> None:
    log: list[str] = []
    started = asyncio.Event()

    async def making(context: RequestContext) -> B:
        started.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            log.append("cancelled B")

    @asynccontextmanager
    async def being_entered(context: RequestContext) -> AsyncIterator[B]:
        yield await making(context)

    async def handle() -> None:
        await current_resource(A)
        await current_resource(B)

    middleware = wrap(handle, {A: waiting(log), B: being_entered if entering else making})
    request = Request(middleware, way)
    await soon(started)
    request.cancel()
    await request.ended()
    await middleware.close()
    assert log == ["open A", "cancelled B", "close A"]


async def test_a_disconnect_while_resources_are_closed_lets_that_go_on_by_itself(way: str, asyncio_only: None) -> None:
    log: list[str] = []
    gate = Gate()

    async def handle() -> None:
        await current_resource(A)
        await current_resource(B)

    middleware = wrap(handle, {A: plainly(log), B: waiting(log, B, holds=gate)})
    request = Request(middleware, way)
    await soon(gate.reached)
    request.cancel()
    await request.ended()
    assert log == ["open A", "open B", "closing B"]
    shutdown = spawn(middleware.close())
    await turns()
    assert not shutdown.done(), "the end of the lifespan waits for it"
    gate.go.set()
    await settle(shutdown)
    assert log == ["open A", "open B", "closing B", "close B", "close A"]


async def test_one_cancellation_waits_for_closing_and_a_second_does_not(asyncio_only: None, logged: Any) -> None:
    for second in (False, True):
        log: list[str] = []
        used, gate = asyncio.Event(), Gate()

        async def handle(used: asyncio.Event = used) -> None:
            await current_resource(A)
            used.set()
            await asyncio.get_running_loop().create_future()

        middleware = wrap(handle, {A: waiting(log, holds=gate, fails=OSError("no"))})
        request = Request(middleware, "task.cancel")
        await soon(used)
        request.cancel()
        await soon(gate.reached)
        await turns()
        assert not request.task.done()
        if second:
            request.cancel()
            await request.ended()
            assert "close A" not in log
        gate.go.set()
        await request.ended()
        await middleware.close()
        await turns()
        assert log[-1] == "close A"
        assert logged() == ["closing A failed: builtins.OSError: no"]


async def test_a_disconnect_while_one_message_s_are_closed_closes_the_rest_of_the_connection_s(
    asyncio_only: None,
) -> None:
    log: list[str] = []
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current_resource(B)
        await receive()
        await receive()
        await current_resource(A)

    resources: Any = {A: waiting(log, holds=gate), B: waiting(log, B)}
    middleware = mount(app, resources, message=MESSAGES["message"])
    request = spawn(run(middleware, websocket(*who()), CHAT))
    await soon(gate.reached)
    request.cancel()
    await settle(request)
    gate.go.set()
    await middleware.close()
    assert sorted(log[3:]) == ["close A", "close B"]


# --- coroutines that are closed, and loops that end


class ByHand:
    """Drives a coroutine as a task does, so that it can be closed in the midst."""

    def __init__(self, middleware: ContextMiddleware) -> None:
        exchange = Exchange([{"type": "http.request"}])
        self.coroutine: Any = middleware(http(*who()), exchange.receive, exchange.send)

    async def until(self, event: asyncio.Event) -> None:
        reached = spawn(event.wait())
        while True:
            waits = self.coroutine.send(None)
            if waits is None:
                await asyncio.sleep(0)
            else:
                waits._asyncio_future_blocking = False
                await asyncio.wait([waits, reached], return_when=asyncio.FIRST_COMPLETED)
            if event.is_set():
                await reached
                return


def used_for_ever(used: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def handle() -> None:
        for kind in (A, B, C):
            await current_resource(kind)
        used.set()
        await asyncio.get_running_loop().create_future()

    return handle


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in its Context", "in another Context"])
async def test_a_request_coroutine_that_is_closed_has_its_resources_closed(
    elsewhere: bool, asyncio_only: None, logged: Any
) -> None:
    log: list[str] = []
    used = asyncio.Event()
    resources: Any = {A: plainly(log), B: waiting(log, B, fails=OSError("no")), C: plainly(log, C)}
    middleware = wrap(used_for_ever(used), resources)

    async def drive() -> None:
        by_hand = ByHand(middleware)
        await by_hand.until(used)
        if elsewhere:
            contextvars.copy_context().run(by_hand.coroutine.close)
        else:
            by_hand.coroutine.close()
        assert log[3:4] == ["close C"], "what need not wait is closed at once"

    await settle(driving := spawn(drive()))
    driving.result()
    await middleware.close()
    await turns()
    assert log[3:] == ["close C", "close B", "close A"]
    assert logged() == ["closing B failed: builtins.OSError: no"]


def test_a_request_coroutine_that_is_closed_after_its_loop_says_what_it_leaves_open(logged: Any) -> None:
    log: list[str] = []
    loop = asyncio.new_event_loop()
    started = asyncio.Event()

    async def endless(context: RequestContext) -> D:
        started.set()
        return await asyncio.get_running_loop().create_future()

    async def handle() -> None:
        for kind in (A, B, C, D):
            await current_resource(kind)

    by_hand = ByHand(wrap(handle, {A: plainly(log), B: waiting(log, B), C: plainly(log, C), D: endless}))
    try:
        loop.run_until_complete(by_hand.until(started))
        by_hand.coroutine.close()
        assert logged() == [
            "resources were left open, since their event loop does not run any more: D, B",
        ]
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
    assert "close B" in log, "by the end of the loop"


def test_at_the_end_of_the_loop_what_is_open_is_closed(logged: Any) -> None:
    log: list[str] = []

    async def main() -> None:
        used = asyncio.Event()
        middleware = wrap(used_for_ever(used), {A: plainly(log), B: waiting(log, B), C: waiting(log, C)})
        main.request = spawn(run(middleware, http(*who())))  # type: ignore[attr-defined]
        await soon(used)

    asyncio.run(main())
    assert sorted(log[3:]) == ["close A", "close B", "close C"]
    assert main.request.cancelled()  # type: ignore[attr-defined]
    assert logged() == []


def test_at_the_end_of_the_loop_what_is_being_made_is_given_up(logged: Any) -> None:
    log: list[str] = []

    async def main() -> None:
        started = asyncio.Event()

        @asynccontextmanager
        async def endless(context: RequestContext) -> AsyncIterator[B]:
            started.set()
            try:
                yield await asyncio.get_running_loop().create_future()
            finally:
                log.append("cancelled B")

        async def handle() -> None:
            await current_resource(A)
            await current_resource(B)

        main.request = spawn(run(wrap(handle, {A: plainly(log), B: endless}), http(*who())))  # type: ignore[attr-defined]
        await soon(started)

    asyncio.run(main())
    assert log == ["open A", "cancelled B", "close A"]
    assert logged() == []


# --- lifespan


async def test_the_end_of_the_lifespan_waits_for_what_is_still_being_closed(asyncio_only: None) -> None:
    log: list[str] = []
    gate, shutdown = Gate(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            with bind_context():  # does not wait for what waits
                await current_resource(A)
            await hello(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await run(middleware, http(*who()))
        await receive()
        log.append("shutdown")
        shutdown.set()
        await send({"type": "lifespan.shutdown.complete"})

    middleware = mount(app, {A: waiting(log, holds=gate)})
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    lifespan = spawn(run(middleware, {"type": "lifespan", "asgi": {"version": "3.0"}}, events))
    await soon(shutdown)
    await turns()
    assert not lifespan.done()
    gate.go.set()
    (exchange,) = await settle(lifespan)
    assert [message["type"] for message in exchange.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert [*log[:1], *log[-1:]] == ["open A", "close A"]


async def test_with_nothing_left_the_end_of_the_lifespan_is_at_once_and_requests_go_on_after_it(
    asyncio_only: None,
) -> None:
    log: list[str] = []

    async def handle() -> None:
        await current_resource(A)

    middleware = wrap(handle, {A: waiting(log)})
    async with asyncio.timeout(LONG):
        for _ in range(2):
            assert (await run(middleware, http(*who()))).status == 200
            await middleware.close()
    assert log == ["open A", "close A"] * 2


# --- nothing left alive


async def kinds_left(factory: Any, *, collect: bool) -> tuple[list[str], int]:
    """What is still there of one request, and how much of what went was for the collector."""
    refs: dict[str, weakref.ref[Any]] = {}
    request_id = ""

    async def handle() -> None:
        nonlocal request_id
        refs["resource"] = weakref.ref(await current_resource(A))
        refs["request"] = weakref.ref(asyncio.current_task())  # type: ignore[arg-type]
        request_id = current_context().request_id
        for number, task in enumerate(asyncio.all_tasks() - before):
            refs[f"task {number}"] = weakref.ref(task)

    def noting(context: RequestContext) -> Any:
        made = factory(context)
        refs["factory result"] = weakref.ref(made)
        return made

    middleware = wrap(handle, {A: noting})
    gc.collect()
    gc.disable()
    try:
        before = asyncio.all_tasks()
        await spawn(run(middleware, http(*who())))
        await turns()
        before = set()
        if collect:
            gc.collect()
        left = [name for name, ref in refs.items() if ref() is not None]
        contexts = [one for one in gc.get_objects() if type(one) is RequestContext]
        left += ["context" for one in contexts if one.request_id == request_id]
        return left, len(refs)
    finally:
        gc.enable()


def made_later(manager: Any) -> Any:
    async def factory(context: RequestContext) -> Any:
        await asyncio.sleep(0)
        return manager(context)

    return factory


@pytest.mark.parametrize(
    "factory",
    [A, plainly([]), waiting([]), made_later(A), made_later(plainly([])), made_later(waiting([]))],
    ids=["plain", "plain manager", "manager", "coroutine", "plain manager later", "manager later"],
)
async def test_nothing_is_left_alive_after_the_request(factory: Any, asyncio_only: None) -> None:
    left, known = await kinds_left(factory, collect=True)
    assert left == []
    assert known >= 3


@pytest.mark.parametrize("factory", [A, plainly([])], ids=["plain", "plain manager"])
async def test_what_is_made_at_once_leaves_nothing_for_the_collector(factory: Any, asyncio_only: None) -> None:
    left, _ = await kinds_left(factory, collect=False)
    assert left == []


async def test_a_task_that_outlives_its_request_keeps_none_of_its_resources(asyncio_only: None) -> None:
    refs: list[weakref.ref[Any]] = []
    go = asyncio.Event()
    tasks: list[Any] = []

    async def handle() -> None:
        refs.extend([weakref.ref(await current_resource(kind)) for kind in (A, B)])
        tasks.append(spawn(go.wait()))

    await serve(handle, {A: plainly([]), B: waiting([], B)})
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    go.set()
    await settle(*tasks)
