"""A WebSocket is closed when the identity that it was opened with expires, and nothing of the watch is left over."""

import asyncio
import gc
import logging
import time
import weakref
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest
from driver import Exchange, Seen, hello, http, run, websocket

from asgi_context import ContextMiddleware, Identity, RequestRejected, current_context, json_message, message_context
from asgi_context._connection import Connection
from asgi_context._connection import _line as module
from asgi_context._context import Services, make_binding
from asgi_context._resources import Closing
from asgi_context.errors import ConnectionClosedError

pytestmark = pytest.mark.anyio

CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}
GONE = {"type": "websocket.disconnect", "code": 1001}
ANN = {"type": "websocket.receive", "text": '{"tenant": "acme", "user": "ann"}'}
JSON = json_message(tenant="tenant", user="user")
CLOSE = {"type": "websocket.close", "code": 4401, "reason": "identity_expired"}
CUT = {"type": "websocket.disconnect", "code": 4401, "reason": "identity_expired"}
PLENTY = 60  # seconds until a test that waits in vain gives up
SOON = 0.02  # seconds; how long it really takes does not matter

both = pytest.mark.parametrize("message", [None, JSON], ids=["expiry alone", "with messages"])


def ann(left: float) -> Any:
    """An extractor of an identity that is good for so many seconds more."""
    return lambda scope: Identity("acme", "ann", {"role": "admin"}, time.time() + left)


class Wire:
    """A server's side. What it sends can be made to fail or to hang."""

    def __init__(self, *events: Any) -> None:
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.put(*events)
        self.sent: list[Any] = []
        self.bound: list[Any] = []
        self.closed = asyncio.Event()
        self.error: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    def put(self, *events: Any) -> None:
        for event in events:
            self.events.put_nowait(event)

    async def receive(self) -> Any:
        return await self.events.get()

    async def send(self, message: Any) -> None:
        self.bound.append(current_context(None))
        if message["type"] == "websocket.close":
            self.closed.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    async def run(self, app: Any, **options: Any) -> list[Any]:
        """Run an app behind a middleware, its identity being ann's, which expires soon."""
        middleware = ContextMiddleware(app, **{"identity": ann(SOON), **options})
        async with asyncio.timeout(PLENTY):
            await middleware(websocket(), self.receive, self.send)
        return self.sent


class Clock:
    """A clock on the wall, which is set by hand; ``looked`` tells that it was looked at."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looked = asyncio.Event()

    def __call__(self) -> float:
        self.looked.set()
        return self.now


class Watched:
    """A connection by itself, whose identity expires when the test says so."""

    def __init__(self, message: Any = None, left: float = 60) -> None:
        self.wire = Wire()
        self.clock = Clock()
        self.expires_at = self.clock.now + left
        binding = make_binding(Identity("acme", "ann", expires_at=self.expires_at), Services(closing=Closing(10)), [])
        self.connection = Connection(
            binding,
            websocket(),
            self.wire.receive,
            self.wire.send,
            message=message,
            authorize=None,
            now=self.clock,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.connection.end()
        await self.connection.closed()

    def expire(self) -> None:
        """What the timer does, in this very turn of the loop."""
        self.clock.now = self.expires_at
        self.connection._watch(self.expires_at)

    async def reading(self, receive: Any = None) -> "asyncio.Task[Any]":
        """A task that waits for an event."""
        task = asyncio.ensure_future((receive or self.connection.receive)())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        return task


# What the client and the app see.


@both
async def test_the_connection_is_closed_once_and_the_app_sees_a_disconnect(asyncio_only: None, message: Any) -> None:
    ended: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == CONNECT
        await send(ACCEPT)
        ended.extend([await receive(), await receive(), await receive()])
        for kind in ("websocket.send", "websocket.close"):
            with pytest.raises(OSError, match="closed by ContextMiddleware, with code 4401") as caught:
                await send({"type": kind})
            assert isinstance(caught.value, ConnectionClosedError)
            assert (caught.value.code, caught.value.reason) == (4401, "identity_expired")

    wire = Wire(CONNECT)
    assert await wire.run(app, message=message) == [ACCEPT, CLOSE]
    assert ended == [CUT] * 3


@both
async def test_until_then_everything_passes(asyncio_only: None, message: Any) -> None:
    seen: list[Any] = []
    events = [CONNECT, ANN, ANN, GONE]
    wire = Wire(*events)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive() for _ in events])
        await send(ACCEPT)
        context = current_context()
        seen.append((context.tenant, context.user, context.claims["role"]))

    assert await wire.run(app, message=message, identity=ann(PLENTY)) == [ACCEPT]
    assert [saw is event for saw, event in zip(seen, events, strict=False)] == [True] * 4
    assert seen[4] == ("acme", "ann", "admin")


async def test_the_identity_stays_readable_in_the_app_that_winds_up(asyncio_only: None) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == CUT
        seen.append(current_context().user)

    await Wire(CONNECT).run(app)
    assert seen == ["ann"]


async def test_the_close_is_sent_with_nothing_bound(asyncio_only: None) -> None:
    """The timer's Context is its own: what is bound would live as long as the timer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    wire = Wire(CONNECT)
    await wire.run(app)
    assert wire.bound == [None]


async def test_an_app_that_only_sends_finds_out_by_an_os_error(asyncio_only: None) -> None:
    errors: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        try:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await asyncio.sleep(0)
        except OSError as error:
            errors.append(error)

    sent = await Wire(CONNECT).run(app)
    assert (sent[-1], sent.count(CLOSE), len(errors)) == (CLOSE, 1, 1)


async def test_an_app_that_lets_the_os_error_through_fails_by_it(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await wire.closed.wait()
        await send({"type": "websocket.send", "text": "late"})

    wire = Wire(CONNECT)
    with pytest.raises(ConnectionClosedError):
        await wire.run(app)
    assert wire.sent == [CLOSE]


@both
async def test_an_app_that_neither_reads_nor_sends_is_left_alone(asyncio_only: None, message: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await wire.closed.wait()
        await asyncio.sleep(0)
        assert asyncio.current_task().cancelling() == 0
        assert await receive() == CUT

    wire = Wire(CONNECT)
    assert await wire.run(app, message=message) == [CLOSE]


async def test_before_accept_it_is_closed_and_cannot_be_accepted(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == CONNECT
        assert await receive() == CUT
        with pytest.raises(OSError):
            await send(ACCEPT)

    assert await Wire(CONNECT).run(app) == [CLOSE]


async def test_before_connect_was_read_the_app_sees_a_disconnect(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await wire.closed.wait()
        assert await receive() == CUT

    wire = Wire(CONNECT)
    assert await wire.run(app) == [CLOSE]


@both
@pytest.mark.parametrize("ending", ["websocket.close", "websocket.http.response.start"])
async def test_a_connection_that_the_app_has_ended_is_not_closed_again(
    asyncio_only: None, message: Any, ending: str
) -> None:
    async with Watched(message) as watched:
        await watched.connection.send({"type": ending})
        reading = await watched.reading()
        watched.expire()
        await asyncio.sleep(0)
        watched.wire.put(GONE)
        assert await reading is GONE
        await watched.connection.send({"type": "websocket.http.response.body"})
    assert [sent["type"] for sent in watched.wire.sent] == [ending, "websocket.http.response.body"]


@both
async def test_a_client_that_has_gone_is_not_told(asyncio_only: None, message: Any) -> None:
    async with Watched(message) as watched:
        watched.wire.put(GONE)
        assert await watched.connection.receive() is GONE
        watched.expire()
    assert watched.wire.sent == []


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("no\nway")], ids=repr)
async def test_a_close_that_cannot_be_sent_is_over_all_the_same(
    asyncio_only: None, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asgi_context")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == CUT
        with pytest.raises(ConnectionClosedError):
            await send(ACCEPT)

    wire = Wire(CONNECT)
    wire.error = error
    assert await wire.run(app) == []
    (record,) = caplog.records
    if isinstance(error, OSError):
        assert record.levelno == logging.DEBUG
        assert record.getMessage() == "the client has gone before it could be told of 4401: OSError"
    else:
        assert (record.levelno, record.getMessage()) == (logging.ERROR, "closing a WebSocket failed")
        assert "no\\nway" in caplog.text


async def test_a_close_that_hangs_keeps_nothing_from_the_app_and_is_waited_for(asyncio_only: None) -> None:
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == CUT
        order.append("app")

        def go() -> None:
            order.append("go")
            wire.go.set()

        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, loop.call_soon, go)

    wire = Wire(CONNECT)
    wire.go.clear()
    assert await wire.run(app) == [CLOSE]
    assert order == ["app", "go"]


async def test_a_close_that_hangs_does_not_stop_a_cancellation(asyncio_only: None) -> None:
    over = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        over.set()

    wire = Wire(CONNECT)
    wire.go.clear()
    serving = asyncio.create_task(wire.run(app))
    await asyncio.wait_for(over.wait(), PLENTY)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    wire.go.set()
    await asyncio.wait_for(anyio.wait_all_tasks_blocked(), PLENTY)
    assert wire.sent == [CLOSE]  # it goes on by itself


# A read that is pending is interrupted in the app's own task, and nothing else is.


@both
async def test_a_pending_read_leaves_its_task_without_a_pending_cancellation(asyncio_only: None, message: Any) -> None:
    async def read() -> Any:
        event = await watched.connection.receive()
        task = asyncio.current_task()
        cancelling = task.cancelling()
        await asyncio.sleep(0)  # where a cancellation that was left would strike
        return event, cancelling

    async with Watched(message) as watched:
        reading = await watched.reading(read)
        watched.expire()
        assert await reading == (CUT, 0)
    assert watched.wire.sent == [CLOSE]


async def test_reads_pending_in_several_tasks_all_see_the_disconnect(asyncio_only: None) -> None:
    async with Watched() as watched:
        readings = [await watched.reading() for _ in range(3)]
        watched.expire()
        assert await asyncio.gather(*readings) == [CUT] * 3
        assert await watched.connection.receive() == CUT
    assert watched.wire.sent == [CLOSE]


async def test_a_read_that_was_cancelled_before_is_not_interrupted_any_more(asyncio_only: None) -> None:
    async with Watched() as watched:
        reading = await watched.reading()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        watched.expire()
        assert watched.connection._reads == set()


@both
@pytest.mark.parametrize("first", ["cancelled", "expired"])
async def test_a_real_cancellation_at_the_same_moment_is_one(asyncio_only: None, message: Any, first: str) -> None:
    async with Watched(message) as watched:
        reading = await watched.reading()
        if first == "cancelled":
            reading.cancel("real")
            watched.expire()
        else:
            watched.expire()
            reading.cancel("real")
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert reading.cancelled()
        assert await watched.connection.receive() == CUT
    assert watched.wire.sent == [CLOSE]


@both
@pytest.mark.parametrize("first", ["timeout", "expiry"])
async def test_a_timeout_of_the_apps_at_the_same_moment_is_one(asyncio_only: None, message: Any, first: str) -> None:
    async def app() -> Any:
        timeout = asyncio.timeout(None)
        timeouts.append(timeout)
        try:
            async with timeout:
                event = await watched.connection.receive()
        except TimeoutError:
            event = "timeout"
        cancelling = asyncio.current_task().cancelling()
        await asyncio.sleep(0)
        return event, timeout.expired(), cancelling

    timeouts: list[Any] = []
    async with Watched(message) as watched:
        reading = await watched.reading(app)
        now = asyncio.get_running_loop().time()
        if first == "timeout":
            timeouts[0].reschedule(now)
            watched.expire()
        else:
            watched.expire()
            timeouts[0].reschedule(now)
        assert await reading == ("timeout", True, 0)


@both
async def test_inside_of_a_timeout_of_the_apps_it_is_no_timeout(asyncio_only: None, message: Any) -> None:
    async def app() -> Any:
        async with asyncio.timeout(PLENTY) as outer, asyncio.timeout(PLENTY):
            event = await watched.connection.receive()
            await asyncio.sleep(0)
        return event, outer.expired(), asyncio.current_task().cancelling()

    async with Watched(message) as watched:
        reading = await watched.reading(app)
        watched.expire()
        assert await reading == (CUT, False, 0)


@both
async def test_inside_of_wait_for_it_is_no_timeout(asyncio_only: None, message: Any) -> None:
    async with Watched(message) as watched:
        reading = await watched.reading(lambda: asyncio.wait_for(watched.connection.receive(), PLENTY))
        watched.expire()
        assert await reading == CUT


@both
@pytest.mark.parametrize("first", ["scope", "expiry", None])
async def test_inside_of_a_cancel_scope_of_the_apps(asyncio_only: None, message: Any, first: str | None) -> None:
    """Cancelled at the same moment, the scope is cancelled and catches that itself; else it notices nothing."""
    scopes: list[anyio.CancelScope] = []

    async def app() -> Any:
        event = None
        with anyio.fail_after(PLENTY), anyio.CancelScope() as scope:
            scopes.append(scope)
            event = await watched.connection.receive()
            if first is None:
                await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        return event, scope.cancelled_caught, asyncio.current_task().cancelling()

    async with Watched(message) as watched:
        reading = await watched.reading(app)
        if first == "scope":
            scopes[0].cancel()
        watched.expire()
        if first == "expiry":
            scopes[0].cancel()
        assert await reading == ((CUT, False, 0) if first is None else (None, True, 0))
        assert await watched.connection.receive() == CUT


async def test_a_task_group_around_the_read_notices_nothing(asyncio_only: None) -> None:
    async def app() -> Any:
        async with asyncio.TaskGroup() as group:
            child = group.create_task(watched.connection.receive())
            event = await watched.connection.receive()
        return event, child.result(), asyncio.current_task().cancelling()

    async with Watched() as watched:
        reading = await watched.reading(app)
        watched.expire()
        assert await reading == (CUT, CUT, 0)


async def test_a_timeout_of_the_servers_own_passes_unchanged(asyncio_only: None) -> None:
    async def receive() -> Any:
        raise TimeoutError("the server's")

    async with Watched() as watched:
        watched.connection._receive = receive
        with pytest.raises(TimeoutError, match="the server's"):
            await watched.connection.receive()


async def test_a_message_that_is_being_examined_does_not_reach_the_app(asyncio_only: None) -> None:
    async def extract(event: Any) -> Identity:
        examining.set()
        await asyncio.Event().wait()
        raise NotImplementedError

    examining = asyncio.Event()
    async with Watched(extract) as watched:
        reading = await watched.reading()
        watched.wire.put(ANN)
        await asyncio.wait_for(examining.wait(), PLENTY)
        watched.expire()
        assert await reading == CUT
    assert watched.wire.sent == [CLOSE]


async def test_a_message_that_is_refused_as_it_expires_closes_once(asyncio_only: None) -> None:
    refused = {"type": "websocket.disconnect", "code": 1008, "reason": "message_invalid"}
    async with Watched(JSON) as watched:
        watched.wire.go.clear()
        reading = await watched.reading()
        watched.wire.put({"type": "websocket.receive", "text": "?"})
        await asyncio.wait_for(watched.wire.closed.wait(), PLENTY)
        watched.expire()
        assert await reading == refused  # although the close still hangs
        watched.wire.go.set()
    assert watched.wire.sent == [{"type": "websocket.close", "code": 1008, "reason": "message_invalid"}]


async def test_after_the_expiry_a_message_that_is_refused_closes_nothing_more(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == CUT
        with pytest.raises(RequestRejected):
            async with message_context(payload="?"):
                pass
        assert await receive() == CUT

    assert await Wire(CONNECT).run(app, message=JSON) == [CLOSE]


# When it expires: by the clock on the wall, which may be set.


@both
async def test_an_identity_that_has_expired_already_is_refused(asyncio_only: None, message: Any) -> None:
    app = Seen(lambda: None)
    middleware = ContextMiddleware(app, identity=ann(-1), message=message)
    exchange = await run(middleware, websocket(denial=True))
    assert (exchange.status, exchange.problem["code"]) == (401, "identity_expired")
    assert exchange.problem["detail"] == "What says who asks has expired."
    exchange = await run(middleware, websocket())
    assert exchange.sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]
    assert app.seen == []


async def test_an_identity_that_has_expired_is_challenged_anew(asyncio_only: None) -> None:
    class Extractor:
        challenge = "Bearer"

        def __call__(self, scope: Any) -> Identity:
            return Identity("acme", expires_at=1)

    exchange = await run(ContextMiddleware(hello, identity=Extractor()), websocket(denial=True))
    assert exchange.header(b"www-authenticate") == [b"Bearer"]


@pytest.mark.parametrize("left", [0, -0.001, -1e9])
async def test_it_expires_at_the_very_second(asyncio_only: None, left: float) -> None:
    with pytest.raises(RequestRejected) as caught:
        Watched(left=left)
    assert (caught.value.status, caught.value.code) == (401, "identity_expired")


@pytest.mark.parametrize("left", [0, -1, 1])
async def test_an_identity_of_a_message_expires_at_the_very_second_too(asyncio_only: None, left: float) -> None:
    """It is looked at as the message is read; the watch is over the connection's own."""
    async with Watched(lambda event: Identity("acme", "ann", expires_at=1000.0 + left)) as watched:
        reading = await watched.reading()
        watched.wire.put(ANN)
        refused = {"type": "websocket.disconnect", "code": 1008, "reason": "identity_expired"}
        assert await reading == (ANN if left > 0 else refused)


@both
async def test_a_clock_that_was_set_back_is_waited_for(asyncio_only: None, message: Any) -> None:
    async with Watched(message, left=SOON) as watched:
        reading = await watched.reading()
        first = watched.connection._timer
        watched.clock.now -= 500
        watched.clock.looked.clear()
        await asyncio.wait_for(watched.clock.looked.wait(), PLENTY)
        await asyncio.sleep(0)
        second = watched.connection._timer
        assert second is not first
        assert 500 < second.when() - first.when() < 502
        assert (watched.wire.sent, reading.done()) == ([], False)
        watched.expire()
        assert await reading == CUT
    assert second.cancelled()


async def test_a_clock_that_was_set_forward_is_noticed_at_the_next_look(
    asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_WAIT", SOON)
    async with Watched(left=1e6) as watched:
        reading = await watched.reading()
        for _ in range(3):
            watched.clock.looked.clear()
            await asyncio.wait_for(watched.clock.looked.wait(), PLENTY)
        assert watched.wire.sent == []
        watched.clock.now += 1e6
        assert await asyncio.wait_for(reading, PLENTY) == CUT
    assert watched.wire.sent == [CLOSE]


@pytest.mark.parametrize("left", [3599.0, 3601.0, 86400 * 365 * 1000.0, 1e300])
async def test_the_clock_is_looked_at_once_an_hour_at_least(asyncio_only: None, left: float) -> None:
    """Event loops do not take any number of seconds either."""
    before = asyncio.get_running_loop().time()
    async with Watched(left=left) as watched:
        after = asyncio.get_running_loop().time()
        expected = min(left, 3600)
        # uvloop counts in milliseconds.
        assert before + expected - 0.01 <= watched.connection._timer.when() <= after + expected + 0.01


async def test_one_timer_serves_all_reads_of_a_connection(asyncio_only: None) -> None:
    async with Watched() as watched:
        timer = watched.connection._timer
        watched.wire.put(CONNECT, *[ANN] * 10)
        for _ in range(11):
            await watched.connection.receive()
        assert watched.connection._timer is timer
        assert watched.connection._reads == set()


# What it does not touch, and what is left of it.


async def test_nothing_else_is_sent_after_the_close_either(asyncio_only: None) -> None:
    async with Watched() as watched:
        await watched.connection.send_beside({"type": "websocket.send", "text": "before"})
        watched.expire()
        with pytest.raises(ConnectionClosedError):
            await watched.connection.send_beside({"type": "websocket.send", "text": "after"})
    assert watched.wire.sent == [{"type": "websocket.send", "text": "before"}, CLOSE]


async def test_http_is_not_watched(asyncio_only: None) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((receive == exchange.receive, send == exchange.send, current_context().user))
        await hello(scope, receive, send)

    exchange = Exchange([{"type": "http.request"}])
    await ContextMiddleware(app, identity=ann(-1))(http(), exchange.receive, exchange.send)
    assert (exchange.status, seen) == (200, [(True, True, "ann")])


async def test_a_connection_whose_identity_does_not_expire_is_not_wrapped() -> None:
    exchange = Exchange()
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((receive == exchange.receive, send == exchange.send))

    await ContextMiddleware(app, identity=lambda scope: Identity("acme"))(websocket(), exchange.receive, exchange.send)
    assert seen == [(True, True)]


async def test_an_exempt_connection_is_not_watched(asyncio_only: None) -> None:
    exchange = await run(ContextMiddleware(hello, identity=ann(-1), exempt=lambda scope: True), websocket())
    assert [message["type"] for message in exchange.sent] == ["websocket.accept", "websocket.close"]


@pytest.mark.parametrize("expire", [False, True], ids=["before", "expired"])
@both
async def test_timer_and_connection_are_free_after_the_exit(asyncio_only: None, message: Any, expire: bool) -> None:
    handles, refs = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        connection = receive.__self__
        handles.append(connection._timer)
        refs.append(weakref.ref(connection))
        if expire:
            assert await receive() == CUT

    async def serve() -> None:
        await Wire(CONNECT, ANN).run(app, message=message, identity=ann(SOON if expire else PLENTY))

    await serve()
    assert expire or handles[0].cancelled()
    handles.clear()
    await asyncio.sleep(0)
    gc.collect()
    assert refs[0]() is None


@pytest.mark.parametrize("ending", ["raises", "cancelled"])
async def test_the_timer_is_cancelled_however_the_app_ends(asyncio_only: None, ending: str) -> None:
    handles: list[Any] = []
    started = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        handles.append(receive.__self__._timer)
        started.set()
        if ending == "raises":
            raise ValueError("app")
        await receive()

    serving = asyncio.create_task(Wire().run(app, identity=ann(PLENTY)))
    await asyncio.wait_for(started.wait(), PLENTY)
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises((ValueError, asyncio.CancelledError)):
        await serving
    assert handles[0].cancelled()


async def test_on_trio_an_identity_that_expires_is_answered_by_an_error(
    trio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Rather than never closed."""
    app = Seen(lambda: None)
    exchange = await run(ContextMiddleware(app, identity=ann(PLENTY)), websocket(denial=True))
    assert (exchange.status, exchange.problem["code"], app.seen) == (500, "internal_error", [])
    assert "closing a WebSocket when its identity expires needs a running asyncio event loop" in caplog.text


async def test_on_trio_http_and_what_has_expired_already_need_no_timer(trio_only: None) -> None:
    assert (await run(ContextMiddleware(hello, identity=ann(PLENTY)), http())).status == 200
    assert (await run(ContextMiddleware(hello, identity=ann(-1)), websocket(denial=True))).status == 401
