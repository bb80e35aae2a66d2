"""Resources are made once for whom they are, whoever asks and whoever is cancelled, and closed at its end, all of them."""

import asyncio
import functools
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, assert_type

import pytest
from driver import hello, http, run, websocket, who
from resources import (
    ANN_THEN_BOB,
    BOB,
    CHAT,
    LONG,
    MESSAGES,
    PAUSE,
    A,
    B,
    C,
    Gate,
    Pausing,
    logged_errors,
    mount,
    plainly,
    quiet_loop,
    serve,
    settle,
    soon,
    spawn,
    text,
    turns,
    wait_in_vain,
    waiting,
    wrap,
)

from asgi_context import (
    ContextClosedError,
    ContextNotBoundError,
    Identity,
    RequestContext,
    bind_context,
    current_context,
    current_resource,
    message_context,
    unbound_context,
)
from asgi_context.errors import ResourceCloseError, ResourceNotFoundError, UnsupportedLoopError

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)
logged = pytest.fixture(logged_errors)


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


def kinds_of_factories(log: list[str]) -> dict[str, Any]:
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

        async def async_generator(self, context: RequestContext) -> Any:
            log.append("open A")
            yield A(context)
            log.append("close A")

    class GeneratorCallable:
        def __call__(self, context: RequestContext) -> Any:
            log.append("open A")
            yield A(context)
            log.append("close A")

    class AsyncGeneratorCallable:
        async def __call__(self, context: RequestContext) -> Any:
            log.append("open A")
            yield A(context)
            log.append("close A")

    class MadeByAClass(A):
        """Made by calling the class, whatever calling an instance of it does."""

        def __call__(self) -> Any:
            yield

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
        "a partial of an async generator function": (functools.partial(async_generator), opened),
        "an async generator method": (Own().async_generator, opened),
        "a partial of a generator method": (functools.partial(Own().generator), opened),
        "a partial of an async generator method": (functools.partial(Own().async_generator), opened),
        "an object with a generator __call__": (GeneratorCallable(), opened),
        "an object with an async generator __call__": (AsyncGeneratorCallable(), opened),
        "the __call__ of such an object": (GeneratorCallable().__call__, opened),
        "a class whose instances have a generator __call__": (MadeByAClass, []),
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


async def test_a_factory_may_return_something_of_another_kind_each_time(asyncio_only: None) -> None:
    log: list[str] = []

    async def later() -> A:
        await asyncio.sleep(0)
        log.append("awaited")
        return A()

    ways: list[Callable[[RequestContext], Any]] = [A, plainly(log), A, lambda _: later(), A, waiting(log), A, B, A]
    expected: list[list[str]] = [[], ["open A", "close A"], [], ["awaited"], [], ["open A", "close A"], [], [], []]

    async def handle() -> None:
        assert isinstance(await current_resource(A), A)
        assert await current_resource(A) is await current_resource(A)

    middleware = wrap(handle, {A: lambda context: ways[0](context)})
    async with asyncio.timeout(LONG):
        for outcome in expected:
            for _ in range(2):  # it is known by now what it returned last
                assert (await run(middleware, http(*who()))).status == 200
            assert log == outcome * 2
            log.clear()
            ways.pop(0)


async def test_what_one_factory_returns_says_nothing_of_another_s(asyncio_only: None) -> None:
    log: list[str] = []

    async def handle() -> None:
        for kind in (A, B, C):
            assert isinstance(await current_resource(kind), A)

    middleware = wrap(handle, {A: A, B: plainly(log), C: A})
    async with asyncio.timeout(LONG):
        for _ in range(3):
            assert (await run(middleware, http(*who()))).status == 200
    assert log == ["open A", "close A"] * 3


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
@pytest.mark.parametrize("after", ["the disconnect", "a message", "a message and before another"])
async def test_what_is_made_once_a_message_has_changed_whose_it_is_is_closed_with_the_connection(
    after: str, factory: Any, asyncio_only: None
) -> None:
    """Between messages, and after the last, the connection's own user is bound, in a binding made for that."""
    log: list[str] = []
    tasks: list[Any] = []
    gate = Gate()

    async def later() -> str:
        await gate.wait()
        with pytest.raises(ContextClosedError) as caught:
            await current_resource(A)
        return caught.value.why

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        assert current_context().user == "bob"
        if after == "the disconnect":
            await receive()
        else:
            await wait_in_vain(receive)
        made = await current_resource(A)
        assert made.context is current_context()
        assert made.context.user == "ann"
        assert await current_resource(A) is made
        tasks.append(spawn(later()))
        if after == "a message and before another":
            await receive()
            assert current_context().user == "bob"
            assert await current_resource(A) is not made
            gate.go.set()
            await settle(*tasks)
        assert "close A" not in log

    last = {"type": "websocket.disconnect"}
    events = [last] if after == "the disconnect" else [PAUSE, text("acme", "bob"), last]
    exchange = Pausing([*ANN_THEN_BOB, *events])
    options: Any = {"message": MESSAGES["message"], "authorize": lambda context, scope: True}
    middleware = mount(app, {A: factory(log)}, **options)
    async with asyncio.timeout(LONG):
        await middleware(websocket(*who()), exchange.receive, exchange.send)
    made = 2 if after == "a message and before another" else 1
    assert log == ["open A"] * made + ["close A"] * made
    gate.go.set()
    assert await settle(*tasks) == ["messages" if made == 2 else "ended"]


@pytest.mark.parametrize("factory", [plainly, waiting])
async def test_what_authorize_made_for_whom_it_refused_is_closed(factory: Any, asyncio_only: None) -> None:
    log: list[str] = []

    async def authorize(context: RequestContext, scope: Any) -> bool:
        await current_resource(A)
        return False

    async def handle() -> None: ...

    assert (await serve(handle, {A: factory(log)}, authorize=authorize)).status == 403
    assert log == ["open A", "close A"]


@pytest.mark.parametrize("factory", [plainly, waiting])
async def test_a_task_that_authorize_has_started_finds_nothing_once_the_request_is_refused(
    factory: Any, asyncio_only: None
) -> None:
    """Not while the answer is still being sent either, when what was made is still open."""
    log: list[str] = []
    tasks: list[Any] = []
    gate = Gate()

    async def later() -> None:
        await gate.wait()
        for kind in (A, B):  # made, and never asked for
            with pytest.raises(ContextClosedError) as caught:
                await current_resource(kind)
            assert (caught.value.wanted, caught.value.why) == ("resource", "revoked")
        assert "close A" not in log

    async def authorize(context: RequestContext, scope: Any) -> bool:
        await current_resource(A)
        tasks.append(spawn(later()))
        return False

    def on_reject(rejection: Any, scope: Any) -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            gate.go.set()
            assert await settle(*tasks) == [None]
            await hello(scope, receive, send)

        return answer

    async def handle() -> None: ...

    resources: Any = {A: factory(log), B: B}
    assert (await serve(handle, resources, authorize=authorize, on_reject=on_reject)).body == b"hello"
    assert log == ["open A", "close A"]


@pytest.mark.parametrize("factory", [plainly, waiting])
async def test_a_task_that_authorize_has_started_finds_nothing_once_the_message_is_refused(
    factory: Any, asyncio_only: None
) -> None:
    tasks: list[Any] = []
    gate = Gate()

    async def later() -> None:
        await gate.wait()
        with pytest.raises(ContextClosedError) as caught:
            await current_resource(A)
        assert caught.value.why == "revoked"

    async def authorize(context: RequestContext, scope: Any) -> bool:
        await current_resource(A)
        tasks.append(spawn(later()))
        return False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["code"] == 1008
        gate.go.set()
        assert await settle(*tasks) == [None]

    middleware = mount(app, {A: factory([])}, authorize=authorize, **MESSAGES)
    async with asyncio.timeout(LONG):
        await run(middleware, websocket(), CHAT)
        await middleware.close()


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


async def test_what_authorize_made_for_a_message_that_is_bound_to_nobody_is_closed_and_its_failure_logged(
    asyncio_only: None, logged: Any
) -> None:
    """Raised in the read, it would take the message with it."""

    async def authorize(context: RequestContext, scope: Any) -> bool:
        await current_resource(A)
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        assert "bob" in (await spawn(receive()))["text"]
        (line,) = logged()
        assert line.startswith("closing what authorize had made failed")

    middleware = mount(app, {A: plainly([], fails=OSError("no"))}, authorize=authorize, **MESSAGES)
    with pytest.raises(ResourceCloseError):  # of the first message
        await run(middleware, websocket(), CHAT)


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
@pytest.mark.parametrize("collect", [True, False], ids=["collected", "by reference counts alone"])
async def test_nothing_is_left_alive_after_the_request(factory: Any, collect: bool, asyncio_only: None) -> None:
    """Also without the collector: what is in a ring lives until that comes by."""
    left, known = await kinds_left(factory, collect=collect)
    assert left == []
    assert known >= 3


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


def holding_a_timer(timers: list[Any], factory: Any) -> Any:
    """A factory that leaves a timer behind, which holds its Context until it fires."""

    @functools.wraps(factory)
    def noting(context: RequestContext) -> Any:
        timers.append(asyncio.get_running_loop().call_later(3600, int))
        return factory(context)

    async def noting_later(context: RequestContext) -> Any:
        await asyncio.sleep(0)
        return noting(context)

    return noting, noting_later


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("factory", [A, plainly([]), waiting([])], ids=["plain", "plain manager", "manager"])
async def test_a_timer_that_a_factory_leaves_keeps_no_resource(factory: Any, later: bool, asyncio_only: None) -> None:
    timers: list[Any] = []
    refs: list[weakref.ref[Any]] = []

    async def handle() -> None:
        refs.append(weakref.ref(await current_resource(A)))

    await serve(handle, {A: holding_a_timer(timers, factory)[later]})
    await turns()
    gc.collect()
    assert [ref() for ref in refs] == [None]
    assert len(timers) == 1
    timers[0].cancel()


async def test_a_timer_that_an_entered_factory_leaves_keeps_no_resource(asyncio_only: None) -> None:
    timers: list[Any] = []
    refs: list[weakref.ref[Any]] = []

    def remember() -> None:
        timers.append(asyncio.get_running_loop().call_later(3600, int))

    def generator(context: RequestContext) -> Iterator[A]:
        remember()
        yield A()

    async def async_generator(context: RequestContext) -> AsyncIterator[B]:
        remember()
        yield B()

    async def handle() -> None:
        refs.extend([weakref.ref(await current_resource(kind)) for kind in (A, B)])

    await serve(handle, {A: generator, B: async_generator})
    await turns()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    for timer in timers:
        timer.cancel()


class OddError(Exception): ...


async def test_a_failure_at_once_leaves_nothing_for_the_collector(asyncio_only: None) -> None:
    refs: list[weakref.ref[Any]] = []

    def fail() -> None:
        error = OddError()
        refs.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error  # the traceback holds this frame

    def failing(context: RequestContext) -> A:
        fail()
        return A()

    async def handle() -> None:
        try:
            await current_resource(A)
        except OddError:
            refs.append(weakref.ref(asyncio.current_task()))  # type: ignore[arg-type]

    middleware = wrap(handle, {A: failing})
    gc.collect()
    gc.disable()
    try:
        await spawn(run(middleware, http(*who())))
        await turns()
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("factory", [A, plainly([]), waiting([])], ids=["plain", "plain manager", "manager"])
async def test_a_request_that_fails_leaves_nothing_for_the_collector(factory: Any, asyncio_only: None) -> None:
    refs: list[weakref.ref[Any]] = []

    async def handle() -> None:
        refs.append(weakref.ref(await current_resource(A)))
        error = OddError()
        refs.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error  # the traceback holds this frame

    async def request() -> None:
        with pytest.raises(OddError):
            await run(middleware, http(*who()))

    middleware = wrap(handle, {A: factory})
    gc.collect()
    gc.disable()
    try:
        await spawn(request())
        await turns()
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()
