"""Resources are closed at the end of what they belong to, all of them, however that ends."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
import pytest
from driver import Exchange, http, run, websocket, who
from resources import (
    ANN_THEN_BOB,
    BOB,
    CHAT,
    LONG,
    MESSAGES,
    PAUSE,
    A,
    B,
    BoomError,
    ByHand,
    C,
    D,
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
    used_for_ever,
    wait_in_vain,
    waiting,
    wrap,
)

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    RequestContext,
    bind_context,
    current_context,
    current_resource,
)
from asgi_context.errors import JobError, ResourceCloseError, ResourceTimeoutError

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)
logged = pytest.fixture(logged_errors)


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


@pytest.mark.parametrize("block", ["request", "with", "async with"])
async def test_exits_are_given_the_error_and_can_neither_suppress_nor_replace_it(
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


# --- factories that do not end with the request


def stubborn(made: Any, release: asyncio.Event, started: asyncio.Event, *, times: int = 1000) -> Any:
    """A factory that swallows its cancellation, some times or until it is released."""

    async def factory(context: RequestContext) -> Any:
        left = times
        started.set()
        while left and not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                left -= 1
        return made(context)

    return factory


@pytest.mark.parametrize(
    ("factory", "fails"),
    [(plainly, False), (plainly, True), (waiting, False)],
    ids=["plain manager", "failing plain manager", "manager"],
)
async def test_what_is_made_after_close_timeout_is_closed_at_once(
    factory: Any, fails: bool, asyncio_only: None, logged: Any
) -> None:
    log: list[str] = []
    release, started = asyncio.Event(), asyncio.Event()
    callers: list[Any] = []
    late = factory(log, B, fails=OSError("late") if fails else None)

    async def handle() -> None:
        await current_resource(A)
        callers.append(spawn(current_resource(B)))
        await soon(started)

    middleware = wrap(handle, {A: plainly(log), B: stubborn(late, release, started)}, close_timeout=0.01)
    with pytest.raises(ResourceCloseError) as caught:
        await run(middleware, http(*who()))
    assert [type(error) for error in caught.value.exceptions] == [ResourceTimeoutError]
    assert log == ["open A", "close A"]
    release.set()
    await settle(*callers)
    await turns()
    assert log[2:] == ["open B", "close B"]
    assert logged() == ["closing B failed: builtins.OSError: late"] * fails


@pytest.mark.parametrize("factory", [plainly, waiting])
async def test_what_is_made_in_time_though_its_making_was_cancelled_is_closed_without_complaint(
    factory: Any, asyncio_only: None
) -> None:
    """Nothing waits for ``close_timeout``, which is far longer than the test may take."""
    log: list[str] = []
    release, started = asyncio.Event(), asyncio.Event()
    callers: list[Any] = []

    async def handle() -> None:
        await current_resource(A)
        callers.append(spawn(current_resource(B)))
        await soon(started)

    resources: Any = {A: waiting(log), B: stubborn(factory(log, B), release, started, times=1)}
    await serve(handle, resources, close_timeout=LONG * 1000)
    assert log == ["open A", "open B", "close B", "close A"]
    await settle(*callers)


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


def test_at_the_end_of_the_loop_closing_that_waits_for_a_factory_still_closes_the_rest(logged: Any) -> None:
    log: list[str] = []
    left: list[Any] = []

    async def main() -> None:
        release, started, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def making(context: RequestContext) -> Any:
            started.set()
            for event in (cancelled, asyncio.Event()):  # the second time it is cancelled by the end of the loop
                with suppress(asyncio.CancelledError):
                    await release.wait()
                event.set()
            await turns()
            return plainly(log, C)(context)

        async def handle() -> None:
            await current_resource(A)
            await current_resource(B)
            left.append(spawn(current_resource(C)))
            await soon(started)

        resources: Any = {A: plainly(log), B: waiting(log, B), C: making}
        left.append(spawn(run(wrap(handle, resources, close_timeout=LONG * 1000), http(*who()))))
        await soon(cancelled)

    asyncio.run(main())
    assert sorted(log[2:]) == ["close A", "close B", "close C", "open C"]
    assert all(task.done() for task in left)
    assert logged() == []


def test_at_the_end_of_the_loop_closing_that_has_not_begun_is_told(logged: Any) -> None:
    log: list[str] = []

    async def handle() -> None:
        with bind_context():
            await current_resource(A)
            before = asyncio.all_tasks()
        (closing,) = asyncio.all_tasks() - before
        closing.cancel()

    async def main() -> None:
        await run(wrap(handle, {A: waiting(log)}), http(*who()))

    asyncio.run(main())
    assert log == ["open A", "close A"]
    assert logged() == ["resources were left open: their event loop has ended"]


def test_the_end_of_a_lifespan_on_another_loop_does_not_wait_for_what_is_closed_on_this_one() -> None:
    log: list[str] = []
    gate = Gate()

    async def handle() -> None:
        await current_resource(A)

    async def until_closing() -> None:
        requests.append(spawn(run(middleware, http(*who()))))
        await soon(gate.reached)

    async def close() -> None:
        async with asyncio.timeout(LONG):
            await middleware.close()

    middleware = wrap(handle, {A: waiting(log, holds=gate)})
    requests: list[Any] = []
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(until_closing())
        asyncio.run(close())
        assert log == ["open A", "closing A"]
        gate.go.set()
        loop.run_until_complete(settle(*requests))
        assert log == ["open A", "closing A", "close A"]
    finally:
        loop.close()


# --- failures of what was closed at once, while the rest still waits


async def use_both() -> None:
    await current_resource(A)
    await current_resource(B)


async def test_what_failed_at_once_is_logged_when_waiting_for_the_rest_is_cancelled(
    asyncio_only: None, logged: Any
) -> None:
    log: list[str] = []
    gate = Gate()
    resources: Any = {A: waiting(log, holds=gate), B: plainly(log, B, fails=OSError("at once"))}
    middleware = wrap(use_both, resources)
    request = spawn(run(middleware, http(*who())))
    await soon(gate.reached)
    request.cancel()
    assert isinstance((await settle(request))[0], asyncio.CancelledError)
    assert logged() == ["closing B failed: builtins.OSError: at once"]
    gate.go.set()
    await middleware.close()
    assert log[-1] == "close A"


@pytest.mark.parametrize("when", ["while it is used", "while it is closed"])
async def test_what_failed_at_once_is_logged_when_the_request_coroutine_is_closed(
    when: str, asyncio_only: None, logged: Any
) -> None:
    log: list[str] = []
    gate, used = Gate(), asyncio.Event()
    resources: Any = {A: waiting(log, holds=gate), B: plainly(log, B, fails=OSError("at once"))}

    async def handle() -> None:
        await use_both()
        used.set()
        if when == "while it is used":
            await asyncio.get_running_loop().create_future()

    middleware = wrap(handle, resources)

    async def drive() -> None:
        by_hand = ByHand(middleware)
        await by_hand.until(used if when == "while it is used" else gate.reached)
        by_hand.coroutine.close()
        assert logged() == ["closing B failed: builtins.OSError: at once"]

    await settle(driving := spawn(drive()))
    driving.result()
    gate.go.set()
    await middleware.close()
    assert log[-1] == "close A"
    assert logged() == []


# --- several bindings of one connection


def three_bindings(log: list[Any], gate: Gate, used: asyncio.Event | None = None) -> tuple[ContextMiddleware, Exchange]:
    """A connection with a resource of its own, one made between two messages, and one of the second."""
    fails: Any = [OSError("first"), OSError("second"), OSError("third")]
    made: list[A] = []

    @asynccontextmanager
    async def factory(context: RequestContext) -> AsyncIterator[A]:
        number = len(made)
        made.append(A(context))
        try:
            yield made[-1]
        finally:
            log.append(number)
            if number == 1:
                await gate.wait()
            raise fails[number]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current_resource(A)
        await receive()
        await receive()
        await wait_in_vain(receive)
        await current_resource(A)
        await receive()
        await current_resource(A)
        if used is not None:
            used.set()
            await asyncio.get_running_loop().create_future()

    options: Any = {"message": MESSAGES["message"], "authorize": lambda context, scope: True}
    middleware = mount(app, {A: factory}, **options)
    return middleware, Pausing([*ANN_THEN_BOB, PAUSE, text("acme", "bob")])


THREE = [
    "closing failed: builtins.OSError: first",
    "closing A failed: builtins.OSError: third",
    "closing A failed: builtins.OSError: second",
]


async def test_a_disconnect_while_several_bindings_are_closed_closes_the_rest_and_logs_all_that_fails(
    asyncio_only: None, logged: Any
) -> None:
    log: list[int] = []
    gate = Gate()
    middleware, exchange = three_bindings(log, gate)
    request = spawn(middleware(websocket(*who()), exchange.receive, exchange.send))
    await soon(gate.reached)
    assert log == [0, 1], "one after the other"
    request.cancel()
    assert isinstance((await settle(request))[0], asyncio.CancelledError)
    await turns()
    assert log == [0, 1, 2]
    gate.go.set()
    await middleware.close()
    await turns()
    assert logged() == THREE


async def test_a_connection_coroutine_that_is_closed_while_several_bindings_are_closed_closes_the_rest(
    asyncio_only: None, logged: Any
) -> None:
    log: list[int] = []
    gate = Gate()
    middleware, exchange = three_bindings(log, gate)

    async def drive() -> None:
        by_hand = ByHand(middleware, websocket(*who()), exchange)
        await by_hand.until(gate.reached)
        by_hand.coroutine.close()

    await settle(driving := spawn(drive()))
    driving.result()
    await turns()
    assert log == [0, 1, 2]
    gate.go.set()
    await middleware.close()
    await turns()
    assert logged() == THREE


async def test_a_connection_coroutine_that_is_closed_closes_several_bindings(asyncio_only: None, logged: Any) -> None:
    log: list[int] = []
    gate, used = Gate(), asyncio.Event()
    middleware, exchange = three_bindings(log, gate, used)

    async def drive() -> None:
        by_hand = ByHand(middleware, websocket(*who()), exchange)
        await by_hand.until(used)
        by_hand.coroutine.close()

    await settle(driving := spawn(drive()))
    driving.result()
    await soon(gate.reached)
    await turns()
    assert sorted(log) == [0, 1, 2]
    gate.go.set()
    await middleware.close()
    await turns()
    assert sorted(logged()) == sorted(line.replace("closing failed", "closing A failed") for line in THREE)
