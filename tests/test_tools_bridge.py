"""Events reach the WebSocket that asked, and no other: in order, not without end, and never silently after its end."""

import asyncio
import gc
import json
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from random import Random
from types import MappingProxyType
from typing import Any, cast

import pytest
from driver import hello, http, run, websocket, who
from resources import BOB, LONG, A, logged_errors, mount, plainly, quiet_loop, settle, soon, spawn, turns

from asgi_context import (
    ContextClosedError,
    ContextNotBoundError,
    Identity,
    RequestContext,
    bind_context,
    current_context,
    current_resource,
    json_message,
    message_context,
    run_in_pool,
    unbound_context,
)
from asgi_context.errors import (
    BridgeClosedError,
    BridgeError,
    BridgeLoopError,
    BridgeNotBoundError,
    BridgeNotOpenError,
    ConnectionClosedError,
    ToolBlockingError,
    ToolTimeoutError,
    UnsupportedLoopError,
)
from asgi_context.tools import WebSocketBridge

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)
logged = pytest.fixture(logged_errors)

CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close", "code": 1000}
GONE = {"type": "websocket.disconnect", "code": 1001}
JSON = json_message(tenant="tenant", user="user")
SOON = 0.02  # seconds; how long it really takes does not matter
MOST = 100
"""How many events may wait, beside the one that is being sent."""


def said(text: str) -> dict[str, Any]:
    """What the app itself sends."""
    return {"type": "websocket.send", "text": json.dumps(text)}


class Wire:
    """A server's side. It notes what it is given in that order; the client can leave off reading, and be gone."""

    def __init__(self, *events: Any) -> None:
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.put(CONNECT, *events)
        self.given: list[Any] = []
        self.error: Exception | None = None
        self.fails_on = "websocket.send"
        self.reads = asyncio.Event()
        self.reads.set()
        self.held = asyncio.Event()
        """Somebody waits for the client to read."""

    def put(self, *events: Any) -> None:
        for event in events:
            self.events.put_nowait(event)

    async def receive(self) -> Any:
        return await self.events.get()

    async def send(self, message: Any) -> None:
        self.given.append(message)
        if not self.reads.is_set():
            self.held.set()
        await self.reads.wait()
        if self.error is not None and message["type"] == self.fails_on:
            raise self.error

    @property
    def texts(self) -> list[Any]:
        return [json.loads(message["text"]) for message in self.given if message["type"] == "websocket.send"]

    @property
    def kinds(self) -> list[str]:
        return [message["type"].removeprefix("websocket.") for message in self.given]

    async def run(self, app: Any, *headers: Any, resources: Any = None, **options: Any) -> None:
        resources = {WebSocketBridge: WebSocketBridge} if resources is None else resources
        middleware = mount(app, resources, **options)
        async with asyncio.timeout(LONG):
            await middleware(websocket(*(headers or who()), denial=True), self.receive, self.send)

    async def chat(self, handle: Callable[[Any, Any, Any], Awaitable[object]], *headers: Any, **options: Any) -> None:
        """Accept the connection, and hand over its bridge, ``receive`` and ``send``."""
        await self.run(accepted(handle), *headers, **options)


def accepted(handle: Callable[[Any, Any, Any], Awaitable[object]]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == CONNECT
        await send(ACCEPT)
        await handle(await current_resource(WebSocketBridge), receive, send)

    return app


async def fill(wire: Wire, bridge: WebSocketBridge) -> None:
    """One event that is being sent, and as many as may wait."""
    wire.reads.clear()
    for number in range(1 + MOST):
        await bridge.send_json({"n": number})
    await soon(wire.held)


async def waited_for_room(bridge: WebSocketBridge) -> None:
    """A thread has come so far."""
    while not bridge._events._room:  # noqa: ASYNC110 - it sets no event
        await asyncio.sleep(0.001)


def numbers(wire: Wire) -> list[int]:
    return [text["n"] for text in wire.texts]


# --- to whom


async def test_fifty_connections_at_once_get_their_own_events_alone(asyncio_only: None) -> None:
    wires = [Wire() for _ in range(50)]
    all_open = asyncio.Barrier(len(wires))

    async def tell(bridge: WebSocketBridge, source: str) -> None:
        for number in range(20):
            await bridge.send_json({"user": current_context().user, "source": source, "n": number})
            await asyncio.sleep(0)

    def tell_from_thread(bridge: WebSocketBridge) -> None:
        for number in range(5):
            bridge.sync.send_json({"user": current_context().user, "source": "thread", "n": number})

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await all_open.wait()
        bridges.append(bridge)
        await asyncio.gather(tell(bridge, "a"), tell(bridge, "b"), run_in_pool("tool", tell_from_thread, bridge))

    bridges: list[WebSocketBridge] = []
    app = mount(accepted(handle), {WebSocketBridge: WebSocketBridge}, pools={"tool": 4})
    async with asyncio.timeout(LONG):
        await asyncio.gather(
            *(app(websocket(*who("acme", f"user-{i}")), wire.receive, wire.send) for i, wire in enumerate(wires))
        )
        await app.close()
    assert len({id(bridge) for bridge in bridges}) == 50
    for i, wire in enumerate(wires):
        assert {text["user"] for text in wire.texts} == {f"user-{i}"}
        for source, most in {"a": 20, "b": 20, "thread": 5}.items():
            assert [text["n"] for text in wire.texts if text["source"] == source] == list(range(most))


async def test_one_request_has_one_bridge_and_several_bridges_of_a_connection_one_order(asyncio_only: None) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        assert await current_resource(WebSocketBridge) is bridge
        other = WebSocketBridge()
        wire.reads.clear()
        for number in range(0, 10, 2):
            await bridge.send_json({"n": number})
            await other.send_json({"n": number + 1})
        wire.reads.set()

    await wire.chat(handle)
    assert numbers(wire) == list(range(10))


async def test_a_block_for_the_same_user_has_a_bridge_of_its_own(asyncio_only: None) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        async with bind_context(current_context()):
            inner = await current_resource(WebSocketBridge)
            assert inner is not bridge
            await inner.send_json({"n": 1})
        with pytest.raises(ContextClosedError):
            await inner.send_json({"n": 2})
        await bridge.send_json({"n": 3})

    await wire.chat(handle)
    assert numbers(wire) == [1, 3]


@pytest.mark.parametrize("whose", [BOB, Identity("acme", "bob"), Identity("acme", None), Identity("globex", "ann")])
async def test_a_block_for_somebody_else_does_not_lead_to_this_client(whose: Identity, asyncio_only: None) -> None:
    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        async with bind_context(whose):
            with pytest.raises(BridgeNotBoundError):
                await current_resource(WebSocketBridge)
            async with bind_context(Identity("acme", "ann")):  # nor back
                with pytest.raises(BridgeNotBoundError):
                    await current_resource(WebSocketBridge)

    await Wire().chat(handle)


@pytest.mark.parametrize("headers", [[], [(b"x-tenant-id", b"acme")]], ids=["nobody", "a tenant"])
async def test_on_a_connection_that_is_no_users_a_block_for_one_leads_to_its_client(
    headers: Any, asyncio_only: None
) -> None:
    wire = Wire()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        async with bind_context(Identity("acme", "ann")):
            bridge = await current_resource(WebSocketBridge)
            await bridge.send_json({"n": 1})

    middleware = mount(app, {WebSocketBridge: WebSocketBridge}, missing="unbound", user=None)
    async with asyncio.timeout(LONG):
        await middleware(websocket(*headers), wire.receive, wire.send)
    assert numbers(wire) == [1]


async def test_where_nobody_is_bound_there_is_no_bridge(asyncio_only: None) -> None:
    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        with unbound_context():
            with pytest.raises(BridgeNotBoundError, match="no WebSocket connection is bound here"):
                WebSocketBridge()
            with pytest.raises(ContextNotBoundError):
                await current_resource(WebSocketBridge)

    await Wire().chat(handle)
    with pytest.raises(BridgeNotBoundError):
        WebSocketBridge()
    with bind_context(BOB), pytest.raises(BridgeNotBoundError):
        WebSocketBridge()


async def test_http_has_no_bridge(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(BridgeNotBoundError, match="make it in the handling of one"):
            await current_resource(WebSocketBridge)
        await hello(scope, receive, send)

    assert (await run(mount(app, {WebSocketBridge: WebSocketBridge}), http(*who()))).status == 200


def impatient(context: RequestContext) -> WebSocketBridge:
    return WebSocketBridge(context, timeout=5)


@pytest.mark.parametrize("factory", [WebSocketBridge, partial(WebSocketBridge, timeout=5), impatient])
async def test_a_factory_of_any_kind_under_its_name_has_connections_kept_ready(
    asyncio_only: None, factory: Any
) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await bridge.send_json({"n": 1})

    await wire.chat(handle, resources={WebSocketBridge: factory})
    assert numbers(wire) == [1]


@pytest.mark.parametrize("resources", [None, {A: A}])
async def test_where_nobody_has_said_that_there_are_bridges_connections_are_passed_on_as_they_are(
    asyncio_only: None, resources: Any
) -> None:
    wire = Wire()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (receive, send) == (wire.receive, wire.send)
        with pytest.raises(BridgeNotBoundError, match="with ContextMiddleware"):
            WebSocketBridge()

    await mount(app, resources)(websocket(*who()), wire.receive, wire.send)


async def test_nothing_is_left_of_a_bridge_after_its_connection(asyncio_only: None) -> None:
    refs: list[weakref.ref[Any]] = []

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await bridge.send_json({"n": 1})
        refs.extend(weakref.ref(part) for part in (bridge, bridge._events, receive.__self__))

    async def serve() -> None:
        await Wire().chat(handle)

    await serve()
    await turns()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


async def test_events_are_sent_with_nothing_bound(asyncio_only: None) -> None:
    class Bound(Wire):
        async def send(self, message: Any) -> None:
            bound.append(current_context(None))
            await super().send(message)

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        bound.clear()
        await bridge.send_json({"n": 1})
        await turns()

    bound: list[Any] = []
    await Bound().chat(handle)
    assert bound == [None]


# --- in order


@pytest.mark.parametrize("tasks", [1, 2, 30])
async def test_events_come_in_the_order_in_which_they_were_sent_whoever_waits_for_room(
    asyncio_only: None, tasks: int
) -> None:
    class Slow(Wire):
        async def send(self, message: Any) -> None:
            await super().send(message)
            await asyncio.sleep(0)

    wire, order = Slow(), count()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        async def tell() -> None:
            for _ in range(600 // tasks):
                await bridge.send_json({"n": next(order)})

        await asyncio.gather(*(tell() for _ in range(tasks)))

    await wire.chat(handle)
    assert numbers(wire) == list(range(600))


async def test_what_the_app_sends_comes_after_the_events_before_it_and_before_those_after_it(
    asyncio_only: None,
) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        wire.reads.clear()
        await bridge.send_json({"n": 1})
        await bridge.send_json({"n": 2})
        first = spawn(send(said("three")))
        await turns()
        await bridge.send_json({"n": 4})
        second, third = spawn(send(said("five"))), spawn(send(said("six")))
        await turns()
        await bridge.send_json({"n": 7})
        wire.reads.set()
        assert await settle(first, second, third) == [None] * 3

    await wire.chat(handle)
    assert wire.texts == [{"n": 1}, {"n": 2}, "three", {"n": 4}, "five", "six", {"n": 7}]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_sent_by_whomever_comes_in_that_order(asyncio_only: None, seed: int) -> None:
    random, wire = Random(seed), Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        sending: list[asyncio.Task[None]] = []
        for number in range(300):
            if random.random() < 0.7:
                sending.append(spawn(bridge.send_json({"n": number})))
            else:
                sending.append(spawn(send({"type": "websocket.send", "text": json.dumps({"n": number})})))
            (wire.reads.set if random.random() < 0.3 else wire.reads.clear)()
            await turns(random.randrange(4))
        wire.reads.set()
        assert await settle(*sending) == [None] * 300

    await wire.chat(handle)
    assert numbers(wire) == list(range(300))


async def test_who_has_very_much_to_tell_does_not_keep_the_app_from_speaking_or_closing(asyncio_only: None) -> None:
    class Slow(Wire):
        async def send(self, message: Any) -> None:
            await super().send(message)
            await asyncio.sleep(0)

    wire = Slow()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        async def tell() -> None:
            while True:
                await bridge.send_json({"n": 1})

        telling = [spawn(tell()) for _ in range(3)]
        await turns()
        await send(said("stop"))
        await send(CLOSE)
        assert [type(end) for end in await settle(*telling)] == [BridgeClosedError] * 3

    await wire.chat(handle)
    assert "stop" in wire.texts
    assert wire.given[-1] == CLOSE


async def test_who_gives_up_speaking_holds_up_nobody(asyncio_only: None) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        wire.reads.clear()
        await bridge.send_json({"n": 1})
        speaking = spawn(send(said("given up")))
        await turns()
        await bridge.send_json({"n": 2})
        speaking.cancel()
        await settle(speaking)
        await turns()
        assert wire.texts == [{"n": 1}]
        wire.reads.set()
        await send(said("three"))

    await wire.chat(handle)
    assert wire.texts == [{"n": 1}, {"n": 2}, "three"]


async def test_who_gives_up_speaking_in_the_moment_of_the_turn_holds_up_nobody(asyncio_only: None) -> None:
    speaking: list[asyncio.Task[None]] = []

    class Sly(Wire):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == "websocket.send":
                while speaking:
                    asyncio.get_running_loop().call_soon(speaking.pop().cancel)

    wire = Sly()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        wire.reads.clear()
        await bridge.send_json({"n": 1})
        speaking.append(spawn(send(said("given up"))))
        (given_up,) = speaking
        await turns()
        await bridge.send_json({"n": 2})
        wire.reads.set()
        await settle(given_up)
        assert given_up.cancelled()
        await bridge.send_json({"n": 3})

    await wire.chat(handle)
    assert wire.texts == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_who_is_closed_while_waiting_to_speak_holds_up_nobody(asyncio_only: None) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        wire.reads.clear()
        await bridge.send_json({"n": 1})
        speaking: Any = send(said("given up"))
        speaking.send(None)
        speaking.close()
        await bridge.send_json({"n": 2})
        wire.reads.set()

    await wire.chat(handle)
    assert numbers(wire) == [1, 2]


async def test_after_the_turn_of_the_app_what_came_meanwhile_goes_on_and_new_events_do_not_overtake(
    asyncio_only: None,
) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        wire.reads.clear()
        await bridge.send_json({"n": 1})
        speaking = spawn(send(said("two")))
        await turns()
        await bridge.send_json({"n": 3})
        wire.reads.set()
        while "two" not in wire.texts:
            await bridge.send_json({"n": 4})
            await asyncio.sleep(0)
        await speaking

    await wire.chat(handle)
    assert wire.texts[:3] == [{"n": 1}, "two", {"n": 3}]
    assert set(numbers_after(wire, 3)) <= {4}


def numbers_after(wire: Wire, start: int) -> list[int]:
    return [text["n"] for text in wire.texts[start:]]


# --- before and after


async def test_before_the_app_has_accepted_sending_an_event_is_an_error(asyncio_only: None) -> None:
    wire = Wire()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bridge = await current_resource(WebSocketBridge)
        with pytest.raises(BridgeNotOpenError, match="after the app has accepted it"):
            await bridge.send_json({"n": 1})
        await receive()
        wire.reads.clear()
        accepting = spawn(send(ACCEPT))
        await soon(wire.held)
        with pytest.raises(BridgeNotOpenError):
            bridge.put_at_once("{}")
        wire.reads.set()
        await accepting
        await bridge.send_json({"n": 2})

    await wire.run(app)
    assert numbers(wire) == [2]


async def test_a_server_that_fails_to_accept_has_not_accepted(asyncio_only: None) -> None:
    wire = Wire()
    wire.error, wire.fails_on = OSError("gone"), "websocket.accept"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(OSError, match="gone"):
            await send(ACCEPT)
        with pytest.raises(BridgeNotOpenError):
            await (await current_resource(WebSocketBridge)).send_json({"n": 1})

    await wire.run(app)


async def end_by_the_app(wire: Wire, receive: Any, send: Any) -> None:
    await send(CLOSE)


async def end_by_the_client(wire: Wire, receive: Any, send: Any) -> None:
    wire.put(GONE)
    assert await receive() == GONE


async def end_by_a_bad_message(wire: Wire, receive: Any, send: Any) -> None:
    wire.put({"type": "websocket.receive", "text": '{"tenant": "globex", "user": "bob"}'})
    assert (await receive())["code"] == 1008
    with pytest.raises(ConnectionClosedError):
        await send(said("too late"))


async def end_by_expiry(wire: Wire, receive: Any, send: Any) -> None:
    assert (await receive())["code"] == 4401


def expiring() -> dict[str, Any]:
    def identity(scope: Any) -> Identity:
        return Identity("acme", "ann", {}, time.time() + SOON)

    return {"tenant": None, "user": None, "identity": identity}


ENDS: dict[str, Any] = {
    "app": (end_by_the_app, dict),
    "client": (end_by_the_client, dict),
    "client, with messages": (end_by_the_client, lambda: {"message": JSON}),
    "bad message": (end_by_a_bad_message, lambda: {"message": JSON}),
    "expiry": (end_by_expiry, expiring),
}


@pytest.mark.parametrize("end", list(ENDS))
async def test_after_the_end_of_the_connection_sending_an_event_is_an_error(asyncio_only: None, end: str) -> None:
    wire, (bring_about, options) = Wire(), ENDS[end]

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        bridge = WebSocketBridge()  # of the connection, if there are messages
        await bridge.send_json({"n": 1})
        await turns()
        await bring_about(wire, receive, send)
        for made in (bridge, WebSocketBridge()):
            with pytest.raises(OSError, match="the WebSocket is closed") as caught:
                await made.send_json({"n": 2})
            assert isinstance(caught.value, BridgeClosedError)
            with pytest.raises(BridgeClosedError):
                made.put_at_once("{}")
            with pytest.raises(BridgeClosedError):
                await asyncio.to_thread(made.sync.send_json, {"n": 2})

    await wire.chat(handle, **options())
    assert numbers(wire) == [1]


async def test_a_bridge_first_asked_for_after_the_end_is_closed(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        with pytest.raises(BridgeClosedError):
            await (await current_resource(WebSocketBridge)).send_json({"n": 1})
        await send({"type": "websocket.http.response.body"})

    wire = Wire()
    await wire.run(app)
    assert wire.kinds == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("end", ["client", "client, with messages", "bad message", "expiry"])
async def test_at_the_end_of_the_connection_who_waits_for_room_or_to_speak_is_told_at_once(
    asyncio_only: None, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the server may never come back from what it is sending."""
    caplog.set_level(logging.DEBUG, "asgi_context")

    class Stuck(Wire):
        async def send(self, message: Any) -> None:
            if message["type"] == "websocket.close":
                self.given.append(message)
            else:
                await super().send(message)

    wire, (bring_about, options) = Stuck(), ENDS[end]

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        bridge = WebSocketBridge()
        closed = end not in {"client", "client, with messages"}

        await fill(wire, bridge)
        waiting = [spawn(bridge.send_json({"n": 1000})) for _ in range(3)]
        speaking = spawn(send(said("hello")))
        await turns()
        assert not any(task.done() for task in [*waiting, speaking])
        if end == "bad message":
            wire.put({"type": "websocket.receive", "text": "{"})
            assert (await receive())["code"] == 1008
        else:
            await bring_about(wire, receive, send)
        assert [type(found) for found in await settle(*waiting)] == [BridgeClosedError] * 3
        wire.reads.set()
        (found,) = await settle(speaking)
        assert isinstance(found, ConnectionClosedError) is closed

    await wire.chat(handle, **options())
    assert wire.texts[0] == {"n": 0}
    assert "100 events were not sent, since the WebSocket has ended" in caplog.text


async def test_nothing_is_sent_after_a_close_that_comes_while_the_app_waits_for_its_turn(asyncio_only: None) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        bridge = WebSocketBridge()
        wire.reads.clear()
        await bridge.send_json({"n": 1})
        await soon(wire.held)
        speaking = spawn(send(said("too late")))
        await turns()
        wire.put({"type": "websocket.receive", "text": "{"})
        reading = spawn(receive())
        await turns()
        wire.reads.set()
        (error, event) = await settle(speaking, reading)
        assert isinstance(error, ConnectionClosedError)
        assert event["code"] == 1008

    await wire.chat(handle, message=JSON)
    assert wire.kinds == ["accept", "send", "close"]


# --- not without end


async def test_a_hundred_events_wait_for_a_client_that_does_not_read_and_then_who_sends_them(
    asyncio_only: None,
) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        waiting = [spawn(bridge.send_json({"n": 1 + MOST + number})) for number in range(50)]
        await turns()
        assert not any(task.done() for task in waiting)
        assert numbers(wire) == [0]
        wire.reads.set()
        assert await settle(*waiting) == [None] * 50

    await wire.chat(handle)
    assert numbers(wire) == list(range(1 + MOST + 50))


async def test_where_all_tasks_of_the_loop_are_cancelled_what_is_sent_then_is_lost_and_later_an_error(
    asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As a server does that stops."""
    caplog.set_level(logging.DEBUG, "asgi_context")
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await bridge.send_json({"n": 0})
        await turns()
        before = asyncio.all_tasks() - {asyncio.current_task()}
        (writer,) = (task for task in before if "Events._write" in repr(task))
        writer.cancel()
        await bridge.send_json({"n": 1})
        await turns()
        with pytest.raises(BridgeClosedError):
            await bridge.send_json({"n": 2})

    await wire.chat(handle)
    assert numbers(wire) == [0]
    assert "1 events were not sent, since the WebSocket has ended" in caplog.text


async def test_what_is_sent_at_once_needs_no_room(asyncio_only: None) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        bridge.put_at_once('{"n": 101}')
        wire.reads.set()

    await wire.chat(handle)
    assert numbers(wire) == list(range(2 + MOST))


async def test_who_is_cancelled_while_waiting_for_room_sends_nothing_and_the_others_move_up(
    asyncio_only: None,
) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        waiting = [spawn(bridge.send_json({"n": 1000 + number})) for number in range(4)]
        await turns()
        waiting[0].cancel()
        await settle(waiting[0])
        assert len(bridge._events._room) == 3
        waiting[2].cancel()
        wire.reads.set()  # in the same turn of the loop
        await settle(*waiting)
        assert [task.cancelled() for task in waiting] == [True, False, True, False]

    await wire.chat(handle)
    assert numbers(wire)[-2:] == [1001, 1003]


@pytest.mark.parametrize("when", ["just before", "just after"])
async def test_who_is_cancelled_in_the_moment_that_there_is_room_takes_nobodys(asyncio_only: None, when: str) -> None:
    doomed: list[asyncio.Task[None]] = []

    class Sly(Wire):
        async def send(self, message: Any) -> None:
            await super().send(message)
            while doomed:
                cancel = doomed.pop().cancel
                if when == "just before":
                    cancel()
                else:
                    asyncio.get_running_loop().call_soon(cancel)

    wire = Sly()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        waiting = [spawn(bridge.send_json({"n": 1000 + number})) for number in range(3)]
        await turns()
        doomed.append(waiting[0])
        wire.reads.set()
        await settle(*waiting)
        assert [task.cancelled() for task in waiting] == [True, False, False]

    await wire.chat(handle)
    assert numbers(wire)[-2:] == [1001, 1002]
    assert (1000 in numbers(wire)) is (when == "just after")


async def test_an_end_while_those_who_wait_are_being_cancelled_wakes_the_others(asyncio_only: None) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        waiting = [spawn(bridge.send_json({"n": 1000})) for _ in range(2)]
        speaking = [spawn(send(said("hello"))) for _ in range(2)]
        await turns()
        wire.put(GONE)
        waiting[0].cancel()
        speaking[0].cancel()
        assert await receive() == GONE
        wire.reads.set()
        await settle(*waiting, *speaking)
        assert waiting[0].cancelled()
        assert isinstance(waiting[1].exception(), BridgeClosedError)
        assert speaking[0].cancelled()
        assert speaking[1].exception() is None

    await wire.chat(handle)


# --- what the server does


@pytest.mark.parametrize(("error", "complaint"), [(OSError("gone"), []), (ValueError("boom"), ["boom"])])
async def test_a_server_that_cannot_send_ends_the_bridge_but_not_the_app(
    asyncio_only: None, logged: Any, error: Exception, complaint: list[str]
) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        waiting = spawn(bridge.send_json({"n": 1000}))
        speaking = spawn(send({"type": "websocket.other"}))
        await turns()
        wire.error = error
        wire.reads.set()
        (found, result) = await settle(waiting, speaking)
        assert isinstance(found, BridgeClosedError)
        assert result is None
        with pytest.raises(BridgeClosedError):
            await bridge.send_json({"n": 1001})
        with pytest.raises(BridgeClosedError):
            await WebSocketBridge().send_json({"n": 1002})
        await send(CLOSE)

    await wire.chat(handle)
    assert wire.kinds == ["accept", "send", "other", "close"]
    errors = logged()
    assert len(errors) == len(complaint)
    for text, expected in zip(errors, complaint, strict=True):
        assert "sending an event over a WebSocket failed" in text
        assert expected in text


async def test_a_writer_that_somebody_cancels_ends_the_bridge(asyncio_only: None) -> None:
    """As ``asyncio.run`` does at its end, with all tasks."""
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        before = asyncio.all_tasks()
        await fill(wire, bridge)
        speaking = spawn(send(CLOSE))
        await turns()
        for task in asyncio.all_tasks() - before - {speaking}:
            task.cancel()
        wire.reads.set()
        await speaking
        with pytest.raises(BridgeClosedError):
            await bridge.send_json({"n": 1000})

    await wire.chat(handle)
    assert wire.kinds == ["accept", "send", "close"]


# --- the end of the app


async def test_nothing_is_lost_when_the_app_returns_right_after_sending(asyncio_only: None) -> None:
    class Slow(Wire):
        async def send(self, message: Any) -> None:
            await asyncio.sleep(0)
            await super().send(message)

    wire = Slow()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        for number in range(250):
            await bridge.send_json({"n": number})

    await wire.chat(handle)
    assert numbers(wire) == list(range(250))


async def test_a_client_that_does_not_read_holds_up_the_end_for_as_long_as_closing_may_take(
    asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asgi_context")
    wire = Wire()
    waiting: list[asyncio.Task[None]] = []

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        waiting.append(spawn(bridge.send_json({"n": 1000})))
        await turns()

    await wire.chat(handle, close_timeout=SOON)
    assert numbers(wire) == [0]
    assert "100 events were not sent" in caplog.text
    (end,) = await settle(*waiting)
    assert isinstance(end, BridgeClosedError)


@pytest.mark.parametrize("how", ["raises", "cancelled"])
async def test_an_app_that_fails_waits_for_no_client(asyncio_only: None, how: str) -> None:
    wire = Wire()
    log: list[str] = []
    filled = asyncio.Event()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await current_resource(A)
        await fill(wire, bridge)
        filled.set()
        if how == "raises":
            raise ValueError("app")
        await receive()

    serving = spawn(wire.chat(handle, resources={WebSocketBridge: WebSocketBridge, A: plainly(log)}))
    await soon(filled)
    if how == "cancelled":
        serving.cancel()
    (end,) = await settle(serving)
    assert isinstance(end, ValueError if how == "raises" else asyncio.CancelledError)
    assert log == ["open A", "close A"]


async def test_who_is_cancelled_while_the_last_events_go_out_leaves_nothing_behind(asyncio_only: None) -> None:
    wire = Wire()
    log: list[str] = []
    returned = asyncio.Event()
    lines: list[Any] = []

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        lines.append(receive.__self__)
        await current_resource(A)
        wire.reads.clear()
        await bridge.send_json({"n": 1})
        returned.set()

    serving = spawn(wire.chat(handle, resources={WebSocketBridge: WebSocketBridge, A: plainly(log)}))
    await soon(returned)
    await turns()
    assert log == ["open A"]
    serving.cancel()
    assert [type(end) for end in await settle(serving)] == [asyncio.CancelledError]
    assert log == ["open A", "close A"]
    assert lines[0].is_over


@pytest.mark.parametrize("pending", [False, True])
def test_a_connection_whose_loop_has_gone_is_ended_all_the_same(pending: bool) -> None:
    log: list[str] = []

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await current_resource(A)
        if pending:
            await fill(wire, bridge)
        filled.set()
        await loop.create_future()

    loop = asyncio.new_event_loop()
    wire, filled = Wire(), asyncio.Event()
    resources = {WebSocketBridge: WebSocketBridge, A: plainly(log)}
    serving: Any = mount(accepted(handle), resources)(websocket(*who()), wire.receive, wire.send)
    task = loop.create_task(serving)
    loop.run_until_complete(filled.wait())
    for left in {task, *asyncio.all_tasks(loop)}:
        left._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    serving.close()
    assert log == ["open A", "close A"]


async def test_after_the_end_of_the_request_a_bridge_is_void(asyncio_only: None) -> None:
    kept: list[WebSocketBridge] = []

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        kept.append(bridge)

    await Wire().chat(handle)
    with pytest.raises(ContextClosedError, match="the bridge bound here ended"):
        await kept[0].send_json({"n": 1})
    with pytest.raises(ContextClosedError):
        kept[0].put_at_once("{}")
    with pytest.raises(ContextClosedError):
        await asyncio.to_thread(kept[0].sync.send_json, {"n": 1})


# --- from threads


async def test_a_thread_of_a_pool_sends_in_the_order_in_which_it_does(asyncio_only: None) -> None:
    wire = Wire()

    def tell(bridge: WebSocketBridge) -> None:
        for number in range(200):
            bridge.sync.send_json({"n": number})

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await asyncio.to_thread(tell, bridge)

    await wire.chat(handle)
    assert numbers(wire) == list(range(200))


async def test_what_a_thread_sends_is_dropped_where_nobody_wants_it_any_more_when_its_turn_comes(
    asyncio_only: None,
) -> None:
    """As the progress of a call that has ended on the loop since."""
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        with pytest.raises(BridgeClosedError):
            await asyncio.to_thread(bridge.send_json_blocking, {"n": 1}, lambda: False)
        await asyncio.to_thread(bridge.send_json_blocking, {"n": 2}, lambda: True)

    await wire.chat(handle)
    assert numbers(wire) == [2]


async def test_on_the_thread_of_the_loop_blocking_is_an_error_at_once(asyncio_only: None) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        with pytest.raises(ToolBlockingError, match=r"write `await bridge.send_json\(event\)`"):
            bridge.sync.send_json({"n": 1})

    await wire.chat(handle)
    assert wire.texts == []


async def test_a_thread_with_a_loop_of_its_own_is_told_how(asyncio_only: None) -> None:
    wire = Wire()
    errors: list[Any] = []

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()

        async def elsewhere() -> None:
            for call in (lambda: bridge.sync.send_json({"n": 1}), WebSocketBridge):
                with pytest.raises((ToolBlockingError, BridgeLoopError)) as caught:
                    call()
                errors.append(caught.type)
            with pytest.raises(BridgeLoopError, match=r"asyncio\.to_thread"):
                await bridge.send_json({"n": 2})
            await asyncio.to_thread(bridge.sync.send_json, {"n": 2})
            with pytest.raises(BridgeLoopError):
                bridge.put_at_once("{}")
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(bridge.send_json({"n": 3}), loop))

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))

    await wire.chat(handle)
    assert errors == [ToolBlockingError, BridgeLoopError]
    assert numbers(wire) == [2, 3]


async def test_a_thread_waits_for_room_for_no_longer_than_its_timeout_and_then_nothing_is_sent(
    asyncio_only: None,
) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        with pytest.raises(ToolTimeoutError, match=r"bridge\.sync\.send_json.*within 0\.02 seconds") as caught:
            await asyncio.to_thread(bridge.sync.send_json, {"n": 1000})
        assert isinstance(caught.value, TimeoutError)
        await turns()
        wire.reads.set()

    await wire.chat(handle, resources={WebSocketBridge: partial(WebSocketBridge, timeout=SOON)})
    assert numbers(wire) == list(range(1 + MOST))


async def test_a_thread_that_waits_for_room_gets_it_once_the_client_reads(asyncio_only: None) -> None:
    wire = Wire()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        telling = spawn(asyncio.to_thread(bridge.sync.send_json, {"n": 1 + MOST}))
        await waited_for_room(bridge)
        wire.reads.set()
        await telling

    await wire.chat(handle)
    assert numbers(wire) == list(range(2 + MOST))


@pytest.mark.parametrize("how", ["client", "task"])
async def test_a_thread_that_waits_for_room_is_told_of_the_end(asyncio_only: None, how: str) -> None:
    wire = Wire(GONE)

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await fill(wire, bridge)
        before = asyncio.all_tasks()
        telling = spawn(asyncio.to_thread(bridge.sync.send_json, {"n": 1000}))
        await waited_for_room(bridge)
        if how == "client":
            await receive()
        else:  # as at the end of the loop
            for task in asyncio.all_tasks() - before - {telling}:
                task.cancel()
        (end,) = await settle(telling)
        assert isinstance(end, BridgeClosedError)
        wire.reads.set()

    await wire.chat(handle)


async def test_a_thread_gets_the_same_errors(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        bridge = await current_resource(WebSocketBridge)
        with pytest.raises(BridgeNotOpenError):
            await asyncio.to_thread(bridge.sync.send_json, {"n": 1})
        with pytest.raises(TypeError):
            await asyncio.to_thread(bridge.sync.send_json, {"n": {1}})
        with pytest.raises(TypeError):
            await asyncio.to_thread(bridge.sync.send_json, cast("Any", [1]))

    await Wire().run(app)


def test_where_the_loop_does_not_run_a_thread_is_told_that_it_is_over() -> None:
    kept: list[WebSocketBridge] = []

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        kept.append(bridge)
        made.set()
        await receive()

    async def begin() -> "asyncio.Task[None]":
        serving = asyncio.get_running_loop().create_task(wire.chat(handle))
        await soon(made)
        return serving

    wire, made = Wire(), asyncio.Event()
    with asyncio.Runner() as runner:
        serving = runner.run(begin())
        with pytest.raises(BridgeClosedError):
            kept[0].sync.send_json({"n": 1})
        wire.put(GONE)
        runner.run(asyncio.wait_for(serving, LONG))
    assert wire.texts == []


@pytest.mark.parametrize(
    ("timeout", "error"), [("1", TypeError), (True, TypeError), (0, ValueError), (float("inf"), ValueError)]
)
async def test_a_timeout_that_cannot_be_is_refused(asyncio_only: None, timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout must be"):
        WebSocketBridge(timeout=timeout)


# --- what


def ring() -> dict[str, Any]:
    members: dict[str, Any] = {}
    members["self"] = members
    return members


CANNOT_BE: dict[str, tuple[Any, type[Exception]]] = {
    "a set": ({"a": {1}}, TypeError),
    "bytes": ({"a": b"x"}, TypeError),
    "an object": ({"a": object()}, TypeError),
    "a tuple as key": ({("a", "b"): 1}, TypeError),
    "a mapping inside": ({"a": MappingProxyType({})}, TypeError),
    "not a number": ({"a": float("nan")}, ValueError),
    "infinity": ({"a": float("inf")}, ValueError),
    "itself": (ring(), ValueError),
    "a list": ([1], TypeError),
    "a text": ("text", TypeError),
    "nothing": (None, TypeError),
}


@pytest.mark.parametrize("name", list(CANNOT_BE))
async def test_what_has_no_form_in_json_is_refused_and_the_connection_goes_on(asyncio_only: None, name: str) -> None:
    wire, (event, error) = Wire(), CANNOT_BE[name]

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        with pytest.raises(error):
            await bridge.send_json(event)
        await bridge.send_json({"n": 1})

    await wire.chat(handle)
    assert wire.texts == [{"n": 1}]


async def test_events_are_json_objects_in_text_messages(asyncio_only: None) -> None:
    wire = Wire()
    members: dict[str, Any] = {
        "text": "Grüße, \N{SNOWMAN} \U0001f600",
        "list": [1, 2.5, None, True],
        "nested": {"a": {}},
    }

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await bridge.send_json(members)
        await bridge.send_json(MappingProxyType({"a": 1}))

    await wire.chat(handle)
    assert wire.texts == [members, {"a": 1}]
    assert wire.given[1] == {
        "type": "websocket.send",
        "text": '{"text":"Grüße, \N{SNOWMAN} \U0001f600","list":[1,2.5,null,true],"nested":{"a":{}}}',
    }


async def test_half_a_surrogate_pair_is_written_so_that_a_server_can_send_it(asyncio_only: None) -> None:
    """RFC 8259, section 8.2: as models write it that are cut off within an emoji."""

    class Encoding(Wire):
        async def send(self, message: Any) -> None:
            message.get("text", "").encode()
            await super().send(message)

    wire = Encoding()

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        await bridge.send_json({"text": "é\ud83d"})
        await bridge.send_json({"text": "whole"})

    await wire.chat(handle)
    assert wire.texts == [{"text": "é\ud83d"}, {"text": "whole"}]


async def test_what_becomes_of_an_event_after_it_was_sent_does_not_show(asyncio_only: None) -> None:
    wire, event = Wire(), {"n": 1}

    async def handle(bridge: WebSocketBridge, receive: Any, send: Any) -> None:
        wire.reads.clear()
        await bridge.send_json(event)
        await bridge.send_json(event)
        event["n"] = 2
        wire.reads.set()

    await wire.chat(handle)
    assert numbers(wire) == [1, 1]


# --- for one message


def text(tenant: str, user: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": json.dumps({"tenant": tenant, "user": user})}


BY_MESSAGE: dict[str, Any] = {"tenant": None, "user": None, "message": JSON}


async def test_a_bridge_made_for_a_message_ends_with_it(asyncio_only: None) -> None:
    wire = Wire(text("acme", "ann"), text("globex", "bob"), GONE)
    bridges: list[WebSocketBridge] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        with pytest.raises(ContextNotBoundError):
            await current_resource(WebSocketBridge)
        while (await receive())["type"] == "websocket.receive":
            for earlier in bridges:
                with pytest.raises(ContextClosedError, match="ended with the request, message or block"):
                    await earlier.send_json({"n": 1})
                with pytest.raises(ContextClosedError):
                    await asyncio.to_thread(earlier.sync.send_json, {"n": 1})
            bridges.append(await current_resource(WebSocketBridge))
            await bridges[-1].send_json({"user": current_context().user})
            await turns()

    await wire.run(app, **BY_MESSAGE)
    assert wire.texts == [{"user": "ann"}, {"user": "bob"}]
    assert bridges[0] is not bridges[1]


async def test_what_was_sent_for_a_message_goes_out_though_the_next_has_come(asyncio_only: None) -> None:
    wire = Wire(text("acme", "ann"), text("globex", "bob"), GONE)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await receive()
        wire.reads.clear()
        for number in range(3):
            await (await current_resource(WebSocketBridge)).send_json({"n": number})
        await receive()
        wire.reads.set()

    await wire.run(app, **BY_MESSAGE)
    assert numbers(wire) == [0, 1, 2]


async def test_a_bridge_made_in_a_block_for_a_message_ends_with_the_block(asyncio_only: None) -> None:
    wire = Wire(text("acme", "ann"), text("globex", "bob"))

    async def handle(event: Any) -> WebSocketBridge:
        async with message_context(event=event):
            bridge = await current_resource(WebSocketBridge)
            await bridge.send_json({"user": current_context().user})
            return bridge

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        handling: list[asyncio.Task[WebSocketBridge]] = []
        for _ in range(2):
            event = await spawn(receive())
            handling.append(spawn(handle(event)))
        for bridge in await asyncio.gather(*handling):
            with pytest.raises(ContextClosedError):
                await bridge.send_json({"n": 1})

    await wire.run(app, **BY_MESSAGE)
    assert wire.texts == [{"user": "ann"}, {"user": "bob"}]


async def test_where_it_can_no_longer_be_told_whose_message_it_is_the_bridge_is_void(asyncio_only: None) -> None:
    wire = Wire(text("acme", "ann"), GONE)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await receive()
        bridge = await current_resource(WebSocketBridge)
        await spawn(receive())
        with pytest.raises(ContextClosedError, match="several tasks read this WebSocket"):
            await bridge.send_json({"n": 1})

    await wire.run(app, **BY_MESSAGE)
    assert wire.texts == []


# --- on trio


async def test_on_trio_there_is_a_clear_error(trio_only: None) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(UnsupportedLoopError, match="needs a running asyncio event loop"):
            await current_resource(WebSocketBridge)
        with pytest.raises(UnsupportedLoopError, match="WebSocketBridge needs a running asyncio event loop"):
            WebSocketBridge()
        seen.append("seen")
        await hello(scope, receive, send)

    exchange = await run(mount(app, {WebSocketBridge: WebSocketBridge}), websocket(*who()))
    assert seen == ["seen"]
    assert [message["type"] for message in exchange.sent] == ["websocket.accept", "websocket.close"]


def test_what_a_bridge_raises_has_one_root() -> None:
    for kind in (BridgeClosedError, BridgeLoopError, BridgeNotBoundError, BridgeNotOpenError):
        assert issubclass(kind, BridgeError)
