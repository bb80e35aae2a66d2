"""What each WebSocket message is bound to: whose it is, for its handling, and never for another's."""

import asyncio
import gc
import json
import logging
import sys
import weakref
from collections import Counter
from contextlib import suppress
from inspect import iscoroutinefunction
from random import Random
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from driver import Exchange, hello, http, run, websocket, who

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    ContextNotBoundError,
    Identity,
    RequestRejected,
    bind_context,
    current_context,
    current_resource,
    current_state,
    from_header,
    json_message,
    message_context,
    unbound_context,
)
from asgi_context._context import current_binding
from asgi_context.errors import ConnectionClosedError, MessagesNotBoundError
from asgi_context.values import get_from_context, update_request_context

pytestmark = pytest.mark.anyio

CONNECT = {"type": "websocket.connect"}
GONE = {"type": "websocket.disconnect", "code": 1001}
JSON = json_message(tenant="tenant", user="user")
PLENTY = 60  # seconds until a test that waits in vain gives up


def msg(tenant: Any = None, user: Any = None, **more: Any) -> dict[str, Any]:
    members = {"tenant": tenant, "user": user, **more}
    named = {name: value for name, value in members.items() if value is not None}
    return {"type": "websocket.receive", "text": json.dumps(named)}


ANN, BOB, CY = msg("acme", "ann"), msg("globex", "bob"), msg("initech", "cy")


def closing(code: int, reason: str) -> dict[str, Any]:
    return {"type": "websocket.close", "code": code, "reason": reason}


def cut(code: int, reason: str) -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


def see() -> Any:
    """Who asks here, or why that cannot be said."""
    try:
        context = current_context(None)
    except ContextClosedError as error:
        return error.why
    return context and (context.tenant, context.user)


def of(event: Any) -> Any:
    """Whom a message of this file names."""
    members = json.loads(event["text"])
    return (members["tenant"], members.get("user")) if "tenant" in members else None


class Wire:
    """A server's side: receive waits until there is something, and a read that is cancelled takes nothing."""

    def __init__(self, *events: Any) -> None:
        self.events = list(events)
        self.sent: list[Any] = []
        self.news = anyio.Event()

    def put(self, *events: Any) -> None:
        self.events.extend(events)
        self.news.set()

    async def receive(self) -> Any:
        while not self.events:
            if self.news.is_set():
                self.news = anyio.Event()
            await self.news.wait()
        return self.events.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self, app: Any, scope: Any = None, **options: Any) -> list[Any]:
        """Run an app behind a middleware whose messages are read by `JSON`, and give what was sent."""
        middleware = ContextMiddleware(app, **{"message": JSON, **options})
        with anyio.fail_after(PLENTY):
            await middleware(websocket() if scope is None else scope, self.receive, self.send)
        return self.sent


HEADERS = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}


def as_(tenant: str = "acme", user: str | None = "ann", **more: Any) -> Any:
    """An identity for the connection."""
    return lambda scope: Identity(tenant, user, **more)


async def reader(receive: Any, seen: list[Any]) -> Any:
    """Read directly, noting what is seen, until something else than a message comes; give that."""
    while (event := await receive())["type"] == "websocket.receive":
        seen.append((of(event), see()))
        await checkpoint()
        assert seen[-1][1] == see()
    return event


def direct(seen: list[Any], ends: list[Any] | None = None) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == CONNECT
        seen.append(see())
        await send({"type": "websocket.accept"})
        end = await reader(receive, seen)
        seen.append(see())
        if ends is not None:
            ends.append(end)

    return app


# A direct loop.


async def test_each_message_is_bound_to_whom_it_names() -> None:
    seen: list[Any] = []
    await Wire(CONNECT, ANN, BOB, ANN, msg("acme", "zoe"), GONE).run(direct(seen))
    acme, globex = ("acme", "ann"), ("globex", "bob")
    zoe = ("acme", "zoe")
    assert seen == [None, (acme, acme), (globex, globex), (acme, acme), (zoe, zoe), None]


async def test_between_two_messages_nobody_is_bound_where_the_connection_says_nobody() -> None:
    between: list[Any] = []
    wire = Wire(CONNECT, ANN, GONE)

    async def receive() -> Any:
        between.append(see())  # in the app's own task
        return await wire.receive()

    seen: list[Any] = []
    await ContextMiddleware(direct(seen), message=JSON)(websocket(), receive, wire.send)
    assert between == [None, None, None]


async def test_between_two_messages_the_connections_own_identity_is_bound() -> None:
    between: list[Any] = []
    wire = Wire(CONNECT, ANN, BOB, msg("acme"), GONE)

    async def receive() -> Any:
        between.append(see())
        return await wire.receive()

    seen: list[Any] = []
    middleware = ContextMiddleware(direct(seen), message=JSON, identity=as_(), authorize=lambda context, scope: True)
    await middleware(websocket(), receive, wire.send)
    assert between == [("acme", "ann")] * 5
    acme = ("acme", "ann")
    assert seen == [acme, (acme, acme), (("globex", "bob"), ("globex", "bob")), (("acme", None), acme), acme]


async def test_a_read_that_is_cancelled_leaves_the_message_before_ended() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        with anyio.move_on_after(0):
            await receive()
        seen.append(see())
        wire.put(BOB)
        await receive()
        seen.append(see())

    wire = Wire(CONNECT, ANN)
    await wire.run(app)
    assert seen == [None, ("globex", "bob")]


async def test_what_a_message_starts_keeps_its_identity() -> None:
    seen: list[Any] = []

    async def handle(event: Any) -> None:
        for _ in range(5):
            seen.append((of(event), see()))
            await checkpoint()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        async with anyio.create_task_group() as group:
            while (event := await receive())["type"] == "websocket.receive":
                group.start_soon(handle, event)

    await Wire(CONNECT, ANN, BOB, CY, GONE).run(app)
    assert len(seen) == 15
    assert [saw for named, saw in seen] == [named for named, saw in seen]


async def test_the_identity_of_the_last_message_stays_readable_in_what_outlives_the_connection(
    asyncio_only: None,
) -> None:
    tasks, over = [], asyncio.Event()

    async def handle() -> Any:
        await over.wait()
        with pytest.raises(ContextClosedError, match="ended with the request, message or block"):
            get_from_context("x")
        return see(), current_state() is not None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        tasks.append(asyncio.create_task(handle()))
        await asyncio.sleep(0)

    await Wire(CONNECT, ANN).run(app)
    over.set()
    assert await tasks[0] == (("acme", "ann"), True)


async def test_what_a_message_sets_is_gone_at_the_next() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(3):
            await receive()
            seen.append(get_from_context("said"))
            update_request_context(said=see())

    await Wire(CONNECT, ANN, ANN, BOB).run(app)
    assert seen == [None, None, None]


async def test_the_values_of_the_connection_are_there_between_messages_and_not_in_them() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        update_request_context(said="connection")
        await receive()
        await receive()
        seen.append(get_from_context("said"))
        with anyio.move_on_after(0):
            await receive()
        seen.append(get_from_context("said"))

    await Wire(CONNECT, ANN).run(app, identity=as_())
    assert seen == [None, "connection"]


async def test_values_of_a_message_that_has_ended_raise_in_what_it_started() -> None:
    caught: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        update_request_context(said="ann")
        started, ended = anyio.Event(), anyio.Event()

        async def handle() -> None:
            assert get_from_context("said") == "ann"
            started.set()
            await ended.wait()
            with pytest.raises(ContextClosedError) as error:
                get_from_context("said")
            caught.append((error.value.why, see()))

        async with anyio.create_task_group() as group:
            group.start_soon(handle)
            await started.wait()
            await receive()
            ended.set()

    await Wire(CONNECT, ANN, BOB).run(app)
    assert caught == [("ended", ("acme", "ann"))]


async def test_a_resource_is_made_for_each_message_and_closed_at_the_next(asyncio_only: None) -> None:
    log: list[Any] = []

    class Session:
        pass

    async def make(context: Any) -> Any:
        log.append(("open", context.user))
        yield Session()
        log.append(("close", see()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(2):
            await receive()
            assert await current_resource(Session) is await current_resource(Session)
            log.append("handled")

    await Wire(CONNECT, ANN, BOB).run(app, resources={Session: make})
    ann, bob = ("acme", "ann"), ("globex", "bob")
    assert log == [("open", "ann"), "handled", ("close", ann), ("open", "bob"), "handled", ("close", bob)]


async def test_resources_that_are_in_use_when_a_second_task_reads_are_closed_with_the_connection(
    asyncio_only: None,
) -> None:
    log: list[Any] = []

    class Session:
        pass

    def make(context: Any) -> Any:
        yield Session()
        log.append("closed")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        await current_resource(Session)
        await asyncio.create_task(receive())
        log.append(see())

    await Wire(CONNECT, ANN, BOB).run(app, resources={Session: make})
    assert log == ["messages", "closed"]


async def test_request_id_and_store_are_the_connections() -> None:
    ids, states = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for event in [await receive(), await receive(), BOB]:
            async with message_context(event=event) as context:
                ids.append(context.request_id)
                await current_state().update_field("box", "who", context.user)
            ids.append(current_context().request_id)
            states.append(await current_state().get("box"))

    await Wire(CONNECT, ANN, BOB).run(app, identity=None, request_id=lambda scope: "r-1")
    assert set(ids) == {"r-1"}
    assert states == [None, {"who": "bob"}, {"who": "bob"}]  # the first was ann's


async def test_one_id_is_made_for_all_of_a_connection() -> None:
    ids = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(3):
            await receive()
            ids.add(current_context().request_id)

    await Wire(CONNECT, ANN, BOB, CY).run(app)
    await Wire(CONNECT, ANN, BOB, CY).run(app)
    assert len(ids) == 2


@pytest.mark.parametrize("identity", [None, as_()], ids=["nobody", "ann"])
async def test_the_echoed_request_id_is_the_one_in_each_message(identity: Any) -> None:
    ids = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        ids.add(current_context().request_id.encode())

    sent = await Wire(CONNECT, ANN).run(app, identity=identity, echo_request_id="x-request-id")
    assert [(b"x-request-id", found) for found in ids] == sent[0]["headers"]


async def test_a_message_without_identity_is_nobodys_where_the_connection_is_and_never_the_one_befores() -> None:
    seen: list[Any] = []
    extract = {"ann": Identity("acme", "ann"), "-": None}
    events = [{"type": "websocket.receive", "text": text} for text in ("ann", "-", "ann", "-")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in events:
            await receive()
            seen.append(see())
            with suppress(ContextNotBoundError):
                update_request_context(x=1)
                seen.append("has values")

    await Wire(CONNECT, *events).run(app, message=lambda event: extract[event["text"]])
    assert seen == [("acme", "ann"), "has values", None, ("acme", "ann"), "has values", None]


async def test_what_the_client_sends_as_bytes_is_read_as_well() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        seen.append(see())

    await Wire(CONNECT, {"type": "websocket.receive", "bytes": ANN["text"].encode()}).run(app)
    assert seen == [("acme", "ann")]


async def test_events_reach_the_app_as_the_very_objects_that_came() -> None:
    events = [CONNECT, msg("acme", "ann", x=[1]), GONE]
    wire = Wire(*events)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert [await receive() is event for event in events] == [True] * 3

    await wire.run(app)


async def test_types_of_events_that_nobody_knows_pass_unread() -> None:
    odd = {"type": "websocket.odd", "text": "x"}
    wire = Wire(CONNECT, ANN, odd, BOB)
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([(await receive(), see()) for _ in range(4)])

    assert await wire.run(app) == []
    assert seen == [(CONNECT, None), (ANN, ("acme", "ann")), (odd, None), (BOB, ("globex", "bob"))]


async def test_send_is_a_coroutine_function_as_servers_are() -> None:
    """asgiref complains of others."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert iscoroutinefunction(send)
        assert iscoroutinefunction(receive)

    await Wire().run(app)


async def test_after_the_connection_nothing_is_bound_where_it_ran() -> None:
    wire = Wire(CONNECT, ANN)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        assert see() == ("acme", "ann")

    with bind_context(Identity("outside")):
        await wire.run(app)
        assert see() == ("outside", None)


@pytest.mark.parametrize("error", [ValueError("app"), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_an_app_that_raises_in_a_message_leaves_nothing_bound(error: BaseException) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        raise error

    with pytest.raises(type(error)) as caught:
        await ContextMiddleware(app, message=JSON)(websocket(), Wire(CONNECT, ANN).receive, None)
    assert caught.value is error
    assert see() is None


async def test_a_connection_that_is_cancelled_in_a_message_leaves_nothing_bound() -> None:
    started = anyio.Event()
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            seen.append(see())

    async def serve() -> None:
        with scope:
            await Wire(CONNECT, ANN).run(app)
        seen.append(see())

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        await started.wait()
        scope.cancel()
    assert seen == [("acme", "ann"), None]


# What does not bind by itself.


async def test_http_beside_it_is_unbound_where_only_messages_say_who() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((see(), receive == exchange.receive, send == exchange.send))
        with pytest.raises(MessagesNotBoundError, match=r"give ContextMiddleware\(message=\.\.\.\)"):
            async with message_context(event=ANN):
                pass
        await hello(scope, receive, send)

    exchange = Exchange([{"type": "http.request"}])
    await ContextMiddleware(app, message=JSON)(http(*who()), exchange.receive, exchange.send)
    assert (seen, exchange.status) == ([(None, True, True)], 200)


async def test_http_beside_it_is_bound_by_the_connections_extractors() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(see())
        await hello(scope, receive, send)

    middleware = ContextMiddleware(app, message=JSON, **HEADERS)
    assert (await run(middleware, http(*who()))).status == 200
    assert (await run(middleware, http())).problem["code"] == "tenant_missing"
    assert seen == [("acme", "ann")]


async def test_a_connection_that_must_say_who_is_refused_before_any_message() -> None:
    sent = await Wire(CONNECT, ANN).run(direct([]), **HEADERS)
    assert sent == [closing(1008, "")]


async def test_an_exempt_connection_is_not_wrapped() -> None:
    seen: list[Any] = []
    wire = Wire(CONNECT, {"type": "websocket.receive", "text": "no JSON"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((receive == wire.receive, send == wire.send))
        await receive()
        await receive()
        seen.append(see())
        with pytest.raises(MessagesNotBoundError):
            async with message_context(event=ANN):
                pass

    assert await wire.run(app, exempt=lambda scope: True) == []
    assert seen == [(True, True), None]


async def test_a_connection_may_be_unbound_until_a_message_says_who() -> None:
    for headers, first in (([], None), (who("globex", "bob"), ("globex", "bob"))):
        seen: list[Any] = []
        scope = websocket(*headers)
        await Wire(CONNECT, BOB, GONE).run(direct(seen), scope, missing="unbound", **HEADERS)
        assert seen == [first, (("globex", "bob"),) * 2, first]


@pytest.mark.parametrize("headers", [[(b"x-tenant-id", b"acme")], [*who("a/b")]], ids=["half", "invalid"])
async def test_a_bad_connection_is_refused_although_it_may_be_unbound(headers: Any) -> None:
    assert await Wire(CONNECT).run(hello, websocket(*headers), missing="unbound", **HEADERS) == [closing(1008, "")]


# Agreement of a message with its connection.


def ident(tenant: str, user: str | None = None, **more: Any) -> Any:
    """An extractor of the user's own."""
    return lambda event: Identity(tenant, user, **more)


def claims() -> Any:
    return current_context().claims.to_dict()


PROOF = {"role": "admin"}
C = Identity("acme", "ann", PROOF)
TENANTS = Identity("acme", None, PROOF)
YES, NO = (lambda context, scope: True), (lambda context, scope: False)
MISMATCH, FORBIDDEN = closing(1008, "message_mismatch"), closing(1008, "tenant_forbidden")
SAME = ("acme", "ann", PROOF)

# Of the connection's identity, the message, and what authorize says to other identities: what is bound, or the close.
AGREEMENT: dict[str, tuple[Identity | None, Any, Any, Any]] = {
    # A connection with tenant and user.
    "both the same": (C, msg("acme", "ann"), None, SAME),
    "both the same, authorize is not asked": (C, msg("acme", "ann"), NO, SAME),
    "the tenant, the same": (C, msg("acme"), NO, SAME),
    "the user, the same": (C, msg(None, "ann"), NO, SAME),
    "nobody": (C, msg(), NO, SAME),
    "another user": (C, msg("acme", "bob"), None, MISMATCH),
    "another user, allowed": (C, msg("acme", "bob"), YES, ("acme", "bob", {})),
    "another user, forbidden": (C, msg("acme", "bob"), NO, MISMATCH),
    "another tenant": (C, msg("globex", "ann"), None, MISMATCH),
    "another tenant, allowed": (C, msg("globex", "ann"), YES, ("globex", "ann", {})),
    "another tenant, forbidden": (C, msg("globex", "ann"), NO, MISMATCH),
    "half, another tenant": (C, msg("globex"), YES, MISMATCH),
    "half, another user": (C, msg(None, "bob"), YES, MISMATCH),
    "an invalid tenant": (C, msg("a/b", "ann"), YES, closing(1008, "tenant_invalid")),
    "an invalid user": (C, msg("acme", ""), YES, closing(1008, "user_invalid")),
    "own: nobody": (C, lambda event: None, NO, SAME),
    "own: the same": (C, ident("acme", "ann"), NO, SAME),
    "own: the tenant": (C, ident("acme"), NO, SAME),
    "own: the tenant, with claims": (C, ident("acme", claims={"x": 1}), NO, SAME),
    "own: the same, with claims": (C, ident("acme", "ann", claims={"x": 1}), NO, ("acme", "ann", {"x": 1})),
    "own: the same, with an expiry": (C, ident("acme", "ann", expires_at=9e9), NO, ("acme", "ann", {})),
    "own: another user": (C, ident("acme", "bob"), None, MISMATCH),
    "own: another user, allowed": (C, ident("acme", "bob", claims={"x": 1}), YES, ("acme", "bob", {"x": 1})),
    "own: another tenant": (C, ident("globex"), None, MISMATCH),
    "own: another tenant, allowed": (C, ident("globex"), YES, ("globex", None, {})),
    "own: another tenant, forbidden": (C, ident("globex"), NO, MISMATCH),
    "own: an invalid tenant": (C, ident("a/b"), YES, closing(1008, "tenant_invalid")),
    "own: an invalid user": (C, ident("acme", "a/b"), YES, closing(1008, "user_invalid")),
    # A connection with a tenant alone.
    "tenant's: the same": (TENANTS, msg("acme"), NO, ("acme", None, PROOF)),
    "tenant's: nobody": (TENANTS, msg(), NO, ("acme", None, PROOF)),
    "tenant's: a user": (TENANTS, msg("acme", "ann"), None, MISMATCH),
    "tenant's: a user, allowed": (TENANTS, msg("acme", "ann"), YES, ("acme", "ann", {})),
    "tenant's: a user alone": (TENANTS, msg(None, "ann"), YES, MISMATCH),
    "tenant's: own, the same": (TENANTS, ident("acme"), NO, ("acme", None, PROOF)),
    "tenant's: own, with claims": (TENANTS, ident("acme", claims={"x": 1}), NO, ("acme", None, {"x": 1})),
    "tenant's: own, a user": (TENANTS, ident("acme", "ann"), None, MISMATCH),
    # A connection that says nobody.
    "nobody's: both": (None, msg("acme", "ann"), None, ("acme", "ann", {})),
    "nobody's: both, allowed": (None, msg("acme", "ann"), YES, ("acme", "ann", {})),
    "nobody's: both, forbidden": (None, msg("acme", "ann"), NO, FORBIDDEN),
    "nobody's: the tenant": (None, msg("acme"), YES, closing(1008, "user_missing")),
    "nobody's: the user": (None, msg(None, "ann"), YES, closing(1008, "tenant_missing")),
    "nobody's: nobody": (None, msg(), YES, closing(1008, "tenant_missing")),
    "nobody's: own, nobody": (None, lambda event: None, NO, None),
    "nobody's: own": (None, ident("acme", claims={"x": 1}), None, ("acme", None, {"x": 1})),
    "nobody's: own, forbidden": (None, ident("acme"), NO, FORBIDDEN),
    "nobody's: own, invalid": (None, ident("a/b"), YES, closing(1008, "tenant_invalid")),
}


@pytest.mark.parametrize(("own", "message", "verdict", "owed"), AGREEMENT.values(), ids=AGREEMENT)
@pytest.mark.parametrize("explicit", [False, True], ids=["read", "message_context"])
async def test_a_message_agrees_with_its_connection_or_is_allowed_or_closes_it(
    own: Any, message: Any, verdict: Any, owed: Any, explicit: bool
) -> None:
    asked, seen, ends = [], [], []

    def authorize(context: Any, scope: Any) -> Any:
        if len(asked) < (own is not None):  # the connection itself
            asked.append(None)
            return True
        asked.append(((context.tenant, context.user), see(), scope["type"]))
        return verdict(context, scope)

    def look() -> None:
        seen.append(see() and (*see(), claims()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if not explicit:
            got = await receive()
            if got["type"] == "websocket.disconnect":
                ends.append(got)
            else:
                look()
            return
        try:
            async with message_context(event=event) as context:
                assert context is current_context(None)
                look()
        except RequestRejected as rejection:
            ends.append(cut(1008, rejection.code))
            assert await receive() == ends[-1]

    event = ANN if callable(message) else message
    options = {"message": message} if callable(message) else {}
    if own is not None:
        options["identity"] = lambda scope: own
    if verdict is not None:
        options["authorize"] = authorize
    wire = Wire(CONNECT, event)
    sent = await wire.run(app, **options)
    if isinstance(owed, dict):
        assert (seen, sent, ends) == ([], [owed], [cut(1008, owed["reason"])])
    else:
        assert (seen, sent, ends) == ([owed], [], [])
    for context, bound, kind in asked[own is not None :]:
        assert (context, kind) == (bound, "websocket")  # asked about whom it finds bound


@pytest.mark.parametrize("explicit", [False, True], ids=["read", "message_context"])
async def test_authorize_is_asked_for_each_message_of_somebody_else(explicit: bool) -> None:
    asked: list[Any] = []

    async def authorize(context: Any, scope: Any) -> bool:
        await checkpoint()
        asked.append(see())
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if not explicit:
            await reader(receive, [])
            return
        for event in (ANN, BOB, BOB, ANN):
            async with message_context(event=event):
                pass

    ann, bob = ("acme", "ann"), ("globex", "bob")
    await Wire(CONNECT, ANN, BOB, BOB, ANN, GONE).run(app, authorize=authorize)
    assert asked == [ann, bob, bob, ann]
    asked.clear()
    await Wire(CONNECT, ANN, BOB, BOB, ANN, GONE).run(app, authorize=authorize, identity=as_())
    assert asked == [ann, bob, bob]


@pytest.mark.parametrize("own", [None, as_()], ids=["nobody", "ann"])
async def test_what_authorize_starts_for_whom_it_then_refuses_is_revoked(asyncio_only: None, own: Any) -> None:
    tasks, over = [], asyncio.Event()

    async def later() -> Any:
        await over.wait()
        return see()

    def authorize(context: Any, scope: Any) -> bool:
        tasks.append(asyncio.create_task(later()))
        return context.tenant == "acme"

    await Wire(CONNECT, BOB).run(direct([]), authorize=authorize, identity=own)
    over.set()
    assert await tasks[-1] == "revoked"


async def test_what_authorize_makes_for_whom_it_then_refuses_is_closed(asyncio_only: None) -> None:
    log: list[Any] = []

    class Session:
        pass

    def make(context: Any) -> Any:
        log.append(("open", context.user))
        with pytest.raises(RequestRejected):
            yield Session()
        log.append("close")

    async def authorize(context: Any, scope: Any) -> bool:
        await current_resource(Session)
        return False

    sent = await Wire(CONNECT, BOB).run(direct([]), authorize=authorize, resources={Session: make})
    assert (log, sent[1:]) == ([("open", "bob"), "close"], [FORBIDDEN])


@pytest.mark.parametrize("refuse", [False, True], ids=["read by a second task", "refused"])
async def test_what_authorize_makes_and_cannot_be_closed_is_logged_and_the_message_not_lost(
    asyncio_only: None, refuse: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Session:
        pass

    def make(context: Any) -> Any:
        try:
            yield Session()
        finally:
            raise ValueError("closing")

    asked: list[Any] = []

    async def authorize(context: Any, scope: Any) -> bool:
        asked.append(context)
        if len(asked) > 1:
            await current_resource(Session)
        return not refuse or len(asked) == 1

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        assert await asyncio.create_task(receive()) == (cut(1008, "tenant_forbidden") if refuse else BOB)

    await Wire(CONNECT, ANN, BOB).run(app, authorize=authorize, resources={Session: make})
    assert "builtins.ValueError: closing" in caplog.text


@pytest.mark.parametrize("own", [None, as_()], ids=["nobody", "ann"])
@pytest.mark.parametrize("verdict", [1, "yes", None], ids=repr)
async def test_authorize_says_yes_by_true_alone(own: Any, verdict: Any, caplog: pytest.LogCaptureFixture) -> None:
    ends: list[Any] = []
    asked: list[Any] = []

    def authorize(context: Any, scope: Any) -> Any:
        asked.append(context)
        return True if own and len(asked) == 1 else verdict

    sent = await Wire(CONNECT, BOB).run(direct([], ends), authorize=authorize, identity=own)
    assert sent[1:] == [closing(1011, "internal_error")]
    assert ends == [cut(1011, "internal_error")]
    assert "examining a WebSocket message failed" in caplog.text


@pytest.mark.parametrize("extract", [JSON, lambda event: Identity(*of(event))], ids=["json_message", "own"])
async def test_once_a_message_has_changed_whose_it_is_what_the_connection_has_bound_is_revoked(
    asyncio_only: None, extract: Any
) -> None:
    """A task that handles messages without message_context would find it there."""
    seen: list[Any] = []

    async def worker(jobs: Any) -> None:
        while (event := await jobs.get()) is not None:
            try:
                seen.append((of(event), see(), get_from_context("x")))
            except ContextClosedError as error:
                seen.append((of(event), see(), error.why))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        jobs: asyncio.Queue[Any] = asyncio.Queue()
        working = asyncio.create_task(worker(jobs))
        update_request_context(x=1)
        await receive()
        for _ in range(3):
            jobs.put_nowait(await receive())
            await asyncio.sleep(0)
        jobs.put_nowait(None)
        await working
        with anyio.move_on_after(0):
            await receive()
        seen.append((see(), get_from_context("x")))  # the reader's own, made anew

    await Wire(CONNECT, ANN, BOB, ANN).run(app, message=extract, identity=as_(), authorize=YES)
    ann, bob = ("acme", "ann"), ("globex", "bob")
    assert seen == [(ann, ann, 1), (bob, "messages", "messages"), (ann, "messages", "messages"), (ann, None)]


async def test_what_the_reader_starts_between_messages_is_revoked_by_each_change(asyncio_only: None) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked, tasks = asyncio.Event(), []

        async def look() -> None:
            await asked.wait()
            seen.append(see())

        await receive()
        for _ in range(2):
            wire.put(BOB)
            await receive()
            with anyio.move_on_after(0):
                await receive()
            tasks.append(asyncio.create_task(look()))
            await asyncio.sleep(0)
        wire.put(BOB)
        await receive()
        asked.set()
        await asyncio.wait(tasks)

    wire = Wire(CONNECT)
    await wire.run(app, identity=as_(), authorize=YES)
    assert seen == ["messages", "messages"]


async def test_resources_of_a_connection_that_is_revoked_are_closed_at_its_end(asyncio_only: None) -> None:
    log: list[Any] = []

    class Session:
        pass

    async def make(context: Any) -> Any:
        yield Session()
        log.append(("close", context.user))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current_resource(Session)
        await receive()
        await receive()
        await current_resource(Session)
        log.append("handled")

    await Wire(CONNECT, BOB).run(app, identity=as_(), authorize=YES, resources={Session: make})
    assert log[0] == "handled"
    assert sorted(log[1:]) == [("close", "ann"), ("close", "bob")]


# Refusals, crashes, and what is left after a close.


async def refused(raised: Any) -> Any:
    def extract(event: Any) -> Any:
        raise raised

    ends: list[Any] = []
    sent = await Wire(CONNECT, ANN, BOB).run(direct([], ends), message=extract)
    assert sent[0]["type"] == "websocket.accept"
    return sent[1:], ends


async def test_an_extractor_refuses_with_a_code_of_its_own() -> None:
    sent, ends = await refused(RequestRejected(418, "teapot"))
    assert (sent, ends) == ([closing(1008, "teapot")], [cut(1008, "teapot")])


async def test_a_crash_closes_and_is_logged_with_the_clients_bytes_escaped(caplog: pytest.LogCaptureFixture) -> None:
    sent, ends = await refused(ValueError("hello\n\x1b[31mroot"))
    assert (sent, ends) == ([closing(1011, "internal_error")], [cut(1011, "internal_error")])
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("asgi_context", logging.ERROR)
    assert "hello\\n\\x1b[31mroot" in caplog.text
    assert "\x1b" not in caplog.text


async def test_a_refusal_is_logged_for_debugging_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asgi_context")
    await refused(RequestRejected(418, "teapot"))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.DEBUG, "rejected a message: 418 teapot")
    ]


@pytest.mark.parametrize("returned", ["acme", ("acme", "ann"), True, object()], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("later", [False, True], ids=["plain", "async"])
async def test_an_extractor_must_return_an_identity_or_none(
    returned: Any, later: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def extract_later(event: Any) -> Any:
        return returned

    sent = await Wire(CONNECT, ANN).run(direct([]), message=extract_later if later else lambda event: returned)
    assert sent[1:] == [closing(1011, "internal_error")]
    assert f"the extractor given as message= returned {type(returned).__qualname__}" in caplog.text


async def test_an_extractor_may_bring_a_rule_for_identifiers() -> None:
    class Extractor:
        valid = staticmethod(lambda name: "/" in name)

        def __call__(self, event: Any) -> Identity:
            return Identity(*of(event))

    seen: list[Any] = []
    sent = await Wire(CONNECT, msg("a/b", "c/d"), ANN).run(direct(seen), message=Extractor())
    assert seen[1] == (("a/b", "c/d"),) * 2
    assert sent[1:] == [closing(1008, "tenant_invalid")]


async def test_after_a_close_receive_is_a_disconnect_and_send_is_an_os_error() -> None:
    """As the ASGI specification has it for a connection that is over; nothing more is read from the server."""
    wire = Wire(CONNECT, msg("acme"), ANN)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(3):
            assert await receive() == cut(1008, "user_missing")
            assert see() is None
        for kind in ("websocket.send", "websocket.accept", "websocket.close"):
            with pytest.raises(OSError, match="closed by ContextMiddleware, with code 1008") as caught:
                await send({"type": kind})
            assert isinstance(caught.value, ConnectionClosedError)
            assert (caught.value.code, caught.value.reason) == (1008, "user_missing")

    assert await wire.run(app) == [closing(1008, "user_missing")]
    assert wire.events == [ANN]


@pytest.mark.parametrize("ending", ["websocket.close", "websocket.http.response.start"])
async def test_a_connection_that_the_app_has_ended_is_not_closed_again(ending: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": ending})
        assert await receive() == cut(1008, "message_invalid")

    wire = Wire(CONNECT, {"type": "websocket.receive", "text": "?"})
    assert await wire.run(app) == [{"type": ending}]


async def test_a_client_that_has_gone_is_not_told() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == GONE
        with pytest.raises(RequestRejected):
            async with message_context(payload="?"):
                pass

    assert await Wire(CONNECT, GONE).run(app) == []


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("no")], ids=repr)
async def test_a_close_that_cannot_be_sent_is_over_all_the_same(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asgi_context")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == cut(1008, "tenant_missing")

    async def send(message: Any) -> None:
        raise error

    await ContextMiddleware(app, message=JSON)(websocket(), Wire(CONNECT, msg()).receive, send)
    level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
    assert caplog.records[-1].levelno == level
    text = (
        "the client has gone before it could be told of 1008"
        if level == logging.DEBUG
        else "closing a WebSocket failed"
    )
    assert text in caplog.text


async def test_a_read_that_is_cancelled_while_the_close_goes_out_does_not_stop_it(asyncio_only: None) -> None:
    sending, go = asyncio.Event(), asyncio.Event()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sending.set()
        await go.wait()
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        reading = asyncio.create_task(receive())
        await sending.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await receive() == cut(1008, "tenant_missing")
        asyncio.get_running_loop().call_soon(go.set)

    await ContextMiddleware(app, message=JSON)(websocket(), Wire(CONNECT, msg()).receive, send)
    assert sent == [closing(1008, "tenant_missing")]  # which the middleware has waited for


async def test_two_refusals_at_once_close_once() -> None:
    async def extract(event: Any) -> None:
        await checkpoint()
        raise RequestRejected(400, "message_invalid")

    ends: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def read() -> None:
            ends.append(await receive())

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            group.start_soon(read)

    assert await Wire(CONNECT, ANN, BOB).run(app, message=extract) == [closing(1008, "message_invalid")]
    assert ends == [cut(1008, "message_invalid")] * 2


# Which task reads.


async def in_task(read: Any) -> Any:
    """Call in a task of its own, on whatever event loop."""
    result: list[Any] = []

    async def call() -> None:
        result.append(await read())
        result.append(see())

    async with anyio.create_task_group() as group:
        group.start_soon(call)
    return tuple(result)


async def test_connect_in_one_task_and_all_messages_in_another_is_one_reader() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        async with anyio.create_task_group() as group:
            group.start_soon(reader, receive, seen)
        seen.append(see())

    await Wire(CONNECT, ANN, BOB, GONE).run(app)
    assert seen == [(("acme", "ann"),) * 2, (("globex", "bob"),) * 2, None]


async def test_a_second_task_that_reads_ends_automatic_binding_for_good() -> None:
    """Also for the first reader, and also for the message that it is handling."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        seen.append(see())
        seen.append(await in_task(receive))
        seen.append(see())
        await receive()
        seen.append(see())
        for ask in (current_context, current_state, lambda: get_from_context("x", "default"), bind_context):
            with pytest.raises(
                ContextClosedError, match="Handle each message in `async with message_context"
            ) as caught:
                ask()
            assert caught.value.why == "messages"
        async with message_context(event=CY):
            seen.append(see())
        seen.append(see())

    await Wire(CONNECT, ANN, BOB, CY).run(app)
    assert seen == [("acme", "ann"), (BOB, "messages"), "messages", "messages", ("initech", "cy"), "messages"]


async def test_a_second_task_counts_when_it_calls_and_not_when_something_comes() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            seen.append(see())
            group.cancel_scope.cancel()

    await Wire(CONNECT, ANN).run(app)
    assert seen == ["messages"]


async def test_two_tasks_that_wait_for_the_first_message_are_two_readers() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def read() -> None:
            seen.append((await receive(), see()))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            wire.put(ANN)
            await anyio.wait_all_tasks_blocked()
            wire.put(BOB)

    wire = Wire(CONNECT)
    await wire.run(app)
    assert seen == [(ANN, None), (BOB, None)]


async def test_with_a_connection_identity_a_second_task_leaves_that_one_readable_where_messages_agree() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        seen.extend([await in_task(receive) for _ in range(3)])
        seen.append(see())

    await Wire(CONNECT, ANN, msg("acme"), msg()).run(app, identity=as_())
    ann = ("acme", "ann")
    assert seen == [(ANN, ann), (msg("acme"), ann), (msg(), ann), ann]


async def test_every_message_is_examined_whoever_reads_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        assert await in_task(receive) == (BOB, "messages")
        assert (await in_task(receive))[0] == cut(1008, "message_invalid")

    bad = {"type": "websocket.receive", "text": '{"tenant": "acme", "tenant": "globex", "user": "bob"}'}
    assert await Wire(CONNECT, ANN, BOB, bad).run(app) == [closing(1008, "message_invalid")]


async def test_a_message_whose_read_failed_settles_no_reader() -> None:
    """Only an event that reached a task does."""
    gate = anyio.Event()

    async def extract(event: Any) -> Identity:
        await gate.wait()
        return Identity(*of(event))

    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with anyio.move_on_after(0):
            await in_task(receive)
        gate.set()
        await reader(receive, seen)

    await Wire(CONNECT, ANN, BOB, GONE).run(app, message=extract)
    assert seen == [(("acme", "ann"),) * 2, (("globex", "bob"),) * 2]


async def test_what_authorize_made_for_a_message_that_a_second_task_reads_is_closed(asyncio_only: None) -> None:
    log: list[Any] = []

    class Session:
        pass

    def make(context: Any) -> Any:
        log.append(("open", context.user))
        yield Session()
        log.append(("close", context.user))

    async def authorize(context: Any, scope: Any) -> bool:
        await current_resource(Session)
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.create_task(receive())
        log.append("second")
        await receive()
        log.append(await in_task(receive))

    await Wire(CONNECT, ANN, BOB, GONE).run(app, authorize=authorize, resources={Session: make})
    assert log[:4] == [("open", "ann"), "second", ("open", "bob"), ("close", "bob")]
    assert log[-1] == ("close", "ann")


async def test_wait_for_hands_out_the_identity_or_none_and_never_anothers(asyncio_only: None) -> None:
    """On Python 3.11 it reads in a task of its own, so nothing is bound; from 3.12 on it is a direct read."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(3):
            event = await asyncio.wait_for(receive(), PLENTY)
            seen.append((of(event), see()))
            async with message_context(event=event):
                assert see() == of(event)

    await Wire(CONNECT, ANN, BOB, CY).run(app)
    own = sys.version_info >= (3, 12)
    assert seen == [(named, named if own else None) for named in map(of, (ANN, BOB, CY))]


async def test_the_first_message_read_directly_and_the_rest_by_task(asyncio_only: None) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        event = await receive()
        seen.append((of(event), see()))
        for _ in range(3):
            event = await asyncio.create_task(receive())
            seen.append((of(event), see()))
            async with message_context(event=event):
                seen.append((of(event), see()))

    await Wire(CONNECT, ANN, BOB, ANN, CY).run(app)
    ann, bob, cy = map(of, (ANN, BOB, CY))
    assert seen == [
        (ann, ann),
        (bob, "messages"),
        (bob, bob),
        (ann, "messages"),
        (ann, ann),
        (cy, "messages"),
        (cy, cy),
    ]


@pytest.mark.parametrize("when", ["before the first message", "during it"])
@pytest.mark.parametrize("own", [None, as_()], ids=["nobody", "ann"])
@pytest.mark.parametrize("explicit", [False, True], ids=["bare", "message_context"])
async def test_a_reader_task_a_queue_and_workers(asyncio_only: None, when: str, own: Any, explicit: bool) -> None:
    """Without message_context, workers find what the connection says, nobody, or an error."""
    seen: list[Any] = []
    events = [msg(f"t{number}", f"u{number}") for number in range(20)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        jobs: asyncio.Queue[Any] = asyncio.Queue()

        async def read() -> None:
            while (event := await receive())["type"] == "websocket.receive":
                jobs.put_nowait(event)
            for _ in range(3):
                jobs.put_nowait(None)

        async def work() -> None:
            while (event := await jobs.get()) is not None:
                if explicit:
                    async with message_context(event=event):
                        await asyncio.sleep(0)
                        seen.append((of(event), see()))
                else:
                    seen.append((of(event), see()))
                await asyncio.sleep(0)

        await receive()
        if when == "during it":
            jobs.put_nowait(await receive())
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            for _ in range(3):
                group.create_task(work())

    await Wire(CONNECT, *events, GONE).run(app, identity=own, authorize=YES)
    assert len(seen) == 20
    if explicit:
        assert [saw for named, saw in seen] == [named for named, saw in seen]
    else:
        assert {saw for _, saw in seen} <= {None, "messages"}


async def test_a_task_for_each_message_binds_it_explicitly() -> None:
    seen: list[Any] = []

    async def handle(event: Any) -> None:
        async with message_context(payload=event["text"]) as context:
            for _ in range(3):
                await checkpoint()
                seen.append((of(event), see(), (context.tenant, context.user)))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        async with anyio.create_task_group() as group:
            while (event := (await in_task(receive))[0])["type"] == "websocket.receive":
                group.start_soon(handle, event)

    await Wire(CONNECT, *[msg(f"t{number}", "u") for number in range(30)], GONE).run(app)
    assert len(seen) == 90
    assert all(named == saw == got for named, saw, got in seen)


# Reads that are cancelled.


@pytest.mark.parametrize("slow", ["extractor", "authorize"])
async def test_a_read_that_is_cancelled_while_its_message_is_examined_loses_nothing(slow: str) -> None:
    asked: list[Any] = []
    open_ = False

    async def wait(event: Any) -> None:
        asked.append(event)
        if not open_:
            await anyio.sleep_forever()

    async def extract(event: Any) -> Identity:
        if slow == "extractor":
            await wait(event)
        return Identity(*of(event))

    async def authorize(context: Any, scope: Any) -> bool:
        if slow == "authorize":
            await wait(context)
        return True

    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal open_
        await receive()
        for _ in range(3):
            with anyio.CancelScope() as cancelling:
                async with anyio.create_task_group() as group:
                    group.start_soon(receive)
                    await anyio.wait_all_tasks_blocked()
                    cancelling.cancel()
            assert see() is None
        open_ = True
        await reader(receive, seen)

    await Wire(CONNECT, ANN, BOB, GONE).run(app, message=extract, authorize=authorize)
    assert seen == [(("acme", "ann"),) * 2, (("globex", "bob"),) * 2]
    assert len(asked) == 5


async def test_what_authorize_starts_for_a_read_that_is_cancelled_is_revoked(asyncio_only: None) -> None:
    """Nobody has said yes."""
    tasks, over = [], asyncio.Event()

    async def later() -> Any:
        await over.wait()
        return see()

    async def authorize(context: Any, scope: Any) -> bool:
        tasks.append(asyncio.create_task(later()))
        await asyncio.sleep(0 if len(tasks) > 1 else PLENTY)
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        reading = asyncio.create_task(receive())
        await anyio.wait_all_tasks_blocked()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await receive()
        over.set()
        assert [await task for task in tasks] == ["revoked", ("acme", "ann")]

    await Wire(CONNECT, ANN).run(app, authorize=authorize)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_a_read_that_is_ended_from_outside_keeps_its_message(error: BaseException) -> None:
    errors = [error]

    def extract(event: Any) -> Identity:
        if errors:
            raise errors.pop()
        return Identity(*of(event))

    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(type(error)):
            await receive()
        await reader(receive, seen)

    assert await Wire(CONNECT, ANN, GONE).run(app, message=extract) == []
    assert seen == [(("acme", "ann"),) * 2]


async def test_reads_that_time_out_again_and_again_lose_no_message(asyncio_only: None) -> None:
    """With timeouts at every turn of the loop, against an extractor that takes several."""

    async def extract(event: Any) -> Identity:
        for _ in range(json.loads(event["text"])["turns"]):
            await asyncio.sleep(0)
        return Identity(*of(event))

    got: list[Any] = []
    events = [msg(f"t{number}", "u", turns=number % 3) for number in range(60)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        turns = 0
        while len(got) < len(events):
            turns += 1
            reading = asyncio.create_task(receive())
            for _ in range(turns % 9):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                got.append(reading.result())

    await Wire(CONNECT, *events).run(app, message=extract)
    assert got == events


# message_context.


async def test_message_context_takes_the_event_or_its_payload() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for given in ({"event": ANN}, {"payload": ANN["text"]}, {"payload": ANN["text"].encode()}):
            async with message_context(**given) as context:
                seen.append((context.tenant, context.user))
                assert current_context() is context
            seen.append(see())

    await Wire().run(app)
    assert seen == [("acme", "ann"), None] * 3


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({}, TypeError, "takes either event= or payload="),
        ({"event": ANN, "payload": "{}"}, TypeError, "takes either event= or payload="),
        ({"payload": 1}, TypeError, "payload must be the str or bytes that came, not int"),
        ({"payload": bytearray(b"{}")}, TypeError, "payload must be the str or bytes that came, not bytearray"),
        ({"event": "{}"}, TypeError, "event must be an ASGI event, not str"),
        ({"event": CONNECT}, ValueError, r"event must be a websocket\.receive event"),
        ({"event": {}}, ValueError, r"event must be a websocket\.receive event"),
    ],
)
def test_message_context_checks_what_it_is_given(given: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        message_context(**given)


async def test_outside_of_a_connection_there_is_no_message_to_bind() -> None:
    for outside in (unbound_context, lambda: bind_context(Identity("acme"))):
        with outside(), pytest.raises(MessagesNotBoundError) as caught:
            async with message_context(event=ANN):
                pass
        assert isinstance(caught.value, LookupError)
        assert caught.value.wanted == "messages"


async def test_without_message_a_connection_has_no_messages_to_bind() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(MessagesNotBoundError):
            async with message_context(event=ANN):
                pass

    await Wire().run(app, message=None, identity=as_())


async def test_what_is_started_on_nobodys_behalf_has_no_connection_either() -> None:
    """It may be a worker of several: a message of one must not be taken for that of another."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with unbound_context(), pytest.raises(MessagesNotBoundError):
            async with message_context(event=BOB):
                pass

    await Wire().run(app)


async def test_message_context_works_inside_of_other_blocks() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with bind_context(Identity("worker")):
            before = see()
            async with message_context(event=BOB):
                seen.append(see())
                async with message_context(event=CY):
                    seen.append(see())
                seen.append(see())
            assert see() == before

    await Wire().run(app)
    bob, cy = ("globex", "bob"), ("initech", "cy")
    assert seen == [bob, cy, bob]


async def test_a_message_that_names_nobody_is_bound_to_nobody_in_a_block_too() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with message_context(event=BOB) as context:
            assert context is None
            assert see() is None

    await Wire().run(app, message=lambda event: None)


async def test_a_block_is_entered_once() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        block = message_context(event=ANN)
        async with block:
            with pytest.raises(RuntimeError, match="a message_context block can be entered once"):
                await block.__aenter__()
        with pytest.raises(RuntimeError, match="can be entered once"):
            await block.__aenter__()
        with pytest.raises(RuntimeError, match="left without having been entered"):
            await block.__aexit__(None, None, None)
        assert see() is None

    await Wire().run(app)


async def test_a_block_that_was_refused_is_not_entered() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        block = message_context(payload="?")
        with pytest.raises(RequestRejected):
            await block.__aenter__()
        with pytest.raises(RuntimeError, match="left without having been entered"):
            await block.__aexit__(None, None, None)
        assert see() is None

    assert await Wire().run(app) == [closing(1008, "message_invalid")]


async def test_a_crash_of_the_extractor_in_a_block_closes_and_reaches_the_app() -> None:
    def extract(event: Any) -> Any:
        raise ZeroDivisionError

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            async with message_context(event=ANN):
                pass
        assert await receive() == cut(1011, "internal_error")

    assert await Wire().run(app, message=extract) == [closing(1011, "internal_error")]


async def test_a_block_has_values_of_its_own_which_end_with_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        update_request_context(x="connection")
        left = anyio.Event()

        async def later() -> None:
            await left.wait()
            assert see() == ("acme", "ann")
            with pytest.raises(ContextClosedError):
                get_from_context("x")

        async with anyio.create_task_group() as group:
            async with message_context(event=ANN):
                assert get_from_context("x") is None
                update_request_context(x="message")
                group.start_soon(later)
                await anyio.wait_all_tasks_blocked()
            assert get_from_context("x") == "connection"
            left.set()

    await Wire().run(app, identity=as_())


async def test_a_block_has_resources_of_its_own_which_end_with_it(asyncio_only: None) -> None:
    log: list[Any] = []

    class Session:
        pass

    async def make(context: Any) -> Any:
        yield context.user
        log.append(("close", context.user))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with message_context(event=ANN):
            log.append(await current_resource(Session))
        async with message_context(event=BOB):
            log.append(await current_resource(Session))

    await Wire().run(app, resources={Session: make})
    assert log == ["ann", ("close", "ann"), "bob", ("close", "bob")]


async def test_an_error_leaves_the_block_as_it_is() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ValueError, match="app"):
            async with message_context(event=ANN):
                raise ValueError("app")
        assert see() is None

    await Wire().run(app)


async def test_a_block_can_be_entered_after_the_connection_has_ended(asyncio_only: None) -> None:
    """By what still handles a message that came before. A bad one is refused, and there is nobody to tell."""
    tasks, over = [], asyncio.Event()

    async def handle() -> Any:
        await over.wait()
        with pytest.raises(RequestRejected):
            async with message_context(payload="?"):
                pass
        async with message_context(event=ANN):
            return see()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        tasks.append(asyncio.create_task(handle()))

    wire = Wire(CONNECT)
    await wire.run(app)
    over.set()
    assert await tasks[0] == ("acme", "ann")
    assert wire.sent == []


# Nested middlewares.


async def test_two_middlewares_with_messages_each_examine_and_the_inner_one_binds() -> None:
    seen: list[Any] = []

    def swap(event: Any) -> Identity:
        seen.append("inner")
        return Identity("inner", of(event)[1])

    def outer(event: Any) -> Identity:
        seen.append("outer")
        return Identity(*of(event))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(2):
            await receive()
            seen.append(see())
            seen.append(current_context().request_id)
        async with message_context(event=CY):
            seen.append(see())

    inner = ContextMiddleware(app, message=swap)
    await Wire(CONNECT, ANN, BOB).run(inner, message=outer, request_id=lambda scope: "r-1")
    assert seen == [
        "outer",
        "inner",
        ("inner", "ann"),
        "r-1",
        "outer",
        "inner",
        ("inner", "bob"),
        "r-1",
        "inner",
        ("inner", "cy"),
    ]


@pytest.mark.parametrize("bad", ["outer", "inner"])
async def test_either_of_two_middlewares_refuses_once(bad: str) -> None:
    def refuse(event: Any) -> Any:
        raise RequestRejected(400, bad)

    options = {"outer": JSON, "inner": JSON, bad: refuse}
    ends: list[Any] = []
    inner = ContextMiddleware(direct([], ends), message=options["inner"])
    sent = await Wire(CONNECT, ANN).run(inner, message=options["outer"])
    assert sent[1:] == [closing(1008, bad)]
    assert ends == [cut(1008, bad)]


async def test_two_middlewares_both_notice_a_second_reader() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        seen.append(see())
        seen.append(await in_task(receive))
        seen.append(see())

    await Wire(CONNECT, ANN, BOB).run(ContextMiddleware(app, message=JSON))
    assert seen == [("acme", "ann"), (BOB, "messages"), "messages"]


async def test_the_same_instance_inside_passes_the_connection_through() -> None:
    seen: list[Any] = []
    asked: list[Any] = []

    def extract(event: Any) -> Identity:
        asked.append(event)
        return Identity(*of(event))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if "again" not in scope:
            await middleware({**scope, "again": True}, receive, send)
            return
        await direct(seen)(scope, receive, send)

    middleware = ContextMiddleware(app, message=extract, identity=as_())
    wire = Wire(CONNECT, ANN, GONE)
    await middleware(websocket(), wire.receive, wire.send)
    ann = ("acme", "ann")
    assert (seen, asked) == ([ann, (ann, ann), ann], [ANN])


# Which extractors can be given.


class Made:
    def __call__(self, event: Any) -> None: ...


def generator(event: Any) -> Any:
    yield


@pytest.mark.parametrize("extractor", ["tenant", 1, Made, generator, Identity], ids=repr)
def test_an_extractor_must_be_callable_with_an_event(extractor: Any) -> None:
    with pytest.raises(TypeError, match=r"message must be a callable that takes a websocket\.receive event"):
        ContextMiddleware(hello, message=extractor)


def test_json_message_must_be_called() -> None:
    with pytest.raises(TypeError, match="which json_message makes: call it"):
        ContextMiddleware(hello, message=json_message)  # type: ignore[arg-type]


def test_messages_are_enough_to_say_who_asks() -> None:
    ContextMiddleware(hello, message=Made())
    with pytest.raises(TypeError, match="give identity=, tenant= or message=: nothing says who asks"):
        ContextMiddleware(hello)


async def test_an_extractor_is_opened_and_closed_with_the_lifespan() -> None:
    log: list[str] = []

    class Extractor:
        async def open(self) -> None:
            log.append("open")

        async def close(self) -> None:
            log.append("close")

        def __call__(self, event: Any) -> Identity:
            return Identity(*of(event))

    middleware = ContextMiddleware(direct([]), message=Extractor())
    wire = Wire(CONNECT, ANN, GONE)
    await middleware(websocket(), wire.receive, wire.send)
    await middleware.close()
    assert log == ["open", "close"]


# Nothing is left, and nothing is mixed up.


async def test_a_connection_is_free_after_its_exit() -> None:
    refs: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        refs.append(weakref.ref(current_binding().connection))

    async def serve() -> None:
        await Wire(CONNECT, ANN).run(app)

    await serve()
    gc.collect()
    assert [ref() for ref in refs] == [None]


async def test_ten_thousand_messages_of_200_tenants_on_100_connections() -> None:
    seen: Counter[Any] = Counter()

    def check(event: Any) -> None:
        seen["right" if see() == of(event) else "wrong"] += 1

    async def handle(event: Any) -> None:
        async with message_context(event=event):
            check(event)
            await checkpoint()
            check(event)

    async def directly(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        while (event := await receive())["type"] == "websocket.receive":
            check(event)
            await checkpoint()
            check(event)

    async def by_tasks(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        async with anyio.create_task_group() as group:
            while (event := await receive())["type"] == "websocket.receive":
                group.start_soon(handle, event)
                await checkpoint()

    apps = [ContextMiddleware(app, message=JSON) for app in (directly, by_tasks)]
    async with anyio.create_task_group() as group:
        for number in range(100):
            rng = Random(number)
            events = [msg(f"t{rng.randrange(200)}", f"u{number}") for _ in range(100)]
            wire = Wire(CONNECT, *events, GONE)
            group.start_soon(apps[number % 2], websocket(), wire.receive, wire.send)
    assert seen == {"right": 20000}


# Seeded schedules.


class Talk:
    """A connection whose app reads and handles in ways that a seed draws, with cancellations.

    Every handling notes whom its message names and what it sees. ``Talk(seed).run()`` is the same every time.
    """

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.done: Counter[str] = Counter()
        self.wrong: list[Any] = []
        self.got: list[str] = []
        self.own = self.rng.choice([None, None, as_("t0", "u0")])
        self.messages = [self.message(number) for number in range(self.rng.randrange(4, 14))]
        self.wire = Wire(CONNECT)

    def message(self, number: int) -> Any:
        tenant = f"t{self.rng.randrange(3)}"
        return msg(tenant, "u" + tenant[1:], number=number, turns=self.rng.choice([0, 0, 1, 2, 5]))

    async def rest(self) -> None:
        for _ in range(self.rng.choice([0, 0, 1, 1, 2, 4])):
            await asyncio.sleep(0)

    async def extract(self, event: Any) -> Identity:
        for _ in range(json.loads(event["text"])["turns"]):
            await asyncio.sleep(0)
        return Identity(*of(event))

    async def authorize(self, context: Any, scope: Any) -> bool:
        await self.rest()
        return True

    async def handle(self, event: Any, way: str, *, explicit: bool) -> None:
        await self.rest()
        if explicit or self.rng.random() < 0.2:
            async with message_context(event=event):
                await self.rest()
                self.look(event, way, exact=True)
            return
        self.look(event, way)
        await self.rest()
        self.look(event, way)

    def look(self, event: Any, way: str, *, exact: bool = False) -> None:
        saw, named = see(), of(event)
        self.done[f"{way}: {'own' if saw == named else 'error'}"] += 1
        if saw != named and (exact or saw not in {None, "messages"}):
            self.wrong.append((way, named, saw))

    def take(self, event: Any) -> bool:
        if event["type"] != "websocket.receive":
            return False
        self.got.append(event["text"])
        return True

    async def read(self, receive: Any, how: str) -> Any:
        """Read one event, by a call that may be cancelled and then tried again."""
        while True:
            if how == "direct" and self.rng.random() < 0.7:
                return await receive()
            try:
                if how == "direct":
                    async with asyncio.timeout(self.rng.choice([0, 0.0001, PLENTY])):
                        return await receive()
                if how == "wait_for":
                    return await asyncio.wait_for(receive(), self.rng.choice([0.0001, PLENTY]))
            except TimeoutError:
                self.done["timed out"] += 1
                continue
            reading = asyncio.create_task(receive())
            if self.rng.random() < 0.5:
                await self.rest()
                reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                return reading.result()
            self.done["cancelled"] += 1

    async def loop(self, receive: Any, group: asyncio.TaskGroup, *, spawn: bool = True) -> None:
        """Read and handle, changing over to another way of reading now and then."""
        hows = [self.rng.choice(["direct", "direct", "direct", "wait_for", "task"]) for _ in range(3)]
        while True:
            how = self.rng.choice(hows)
            event = await self.read(receive, how)
            if not self.take(event):
                return
            if spawn and self.rng.random() < 0.3:
                # What a message starts is its own as long as it was read here; else it binds for itself.
                group.create_task(self.handle(event, f"{how}, task", explicit=False))
            else:
                await self.handle(event, how, explicit=False)

    async def queue(self, receive: Any, group: asyncio.TaskGroup) -> None:
        """A reader task and workers, which start before or during the first message."""
        jobs: asyncio.Queue[Any] = asyncio.Queue()
        explicit = self.rng.random() < 0.5

        async def read() -> None:
            while self.take(event := await receive()):
                jobs.put_nowait(event)
                await self.rest()
            for _ in range(2):
                jobs.put_nowait(None)

        async def work() -> None:
            while (event := await jobs.get()) is not None:
                await self.handle(event, "worker", explicit=explicit)

        before = self.rng.random() < 0.5
        workers = [work(), work()]
        if before:
            for worker in workers:
                group.create_task(worker)
        else:
            event = await receive()
            if self.take(event):
                jobs.put_nowait(event)
        group.create_task(read())
        if not before:
            for worker in workers:
                group.create_task(worker)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == CONNECT
        async with asyncio.TaskGroup() as group:
            pattern = self.rng.choice(["loop", "queue", "two loops", "child"])
            self.done[pattern] += 1
            if pattern == "queue":
                await self.queue(receive, group)
            elif pattern == "loop":
                await self.loop(receive, group)
            elif pattern == "child":
                group.create_task(self.loop(receive, group))
            else:
                group.create_task(self.loop(receive, group, spawn=False))
                await self.rest()
                await self.loop(receive, group, spawn=False)

    async def feed(self) -> None:
        for event in self.messages:
            await self.rest()
            self.wire.put(event)
        for _ in range(40):
            self.wire.put(GONE)

    async def run(self) -> None:
        feeding = asyncio.create_task(self.feed())
        extract = self.rng.choice([JSON, self.extract, self.extract])
        authorize = self.rng.choice([None, self.authorize]) if self.own is None else self.authorize
        await self.wire.run(self.app, message=extract, identity=self.own, authorize=authorize)
        await feeding
        assert see() is None


async def test_in_every_seeded_schedule_a_message_sees_its_own_identity_or_an_error(asyncio_only: None) -> None:
    done: Counter[str] = Counter()
    for seed in range(400):
        talk = Talk(seed)
        await talk.run()
        assert (seed, talk.wrong) == (seed, [])
        # A cancelled read has lost none, and none came twice.
        assert (seed, sorted(talk.got)) == (seed, sorted(event["text"] for event in talk.messages))
        done += talk.done
    assert min(done[name] for name in ("loop", "queue", "two loops", "child", "cancelled", "timed out")) > 40, done
    assert min(done[f"{how}: own"] for how in ("direct", "direct, task", "task", "worker")) > 40, done
    assert min(done[f"{how}: error"] for how in ("direct", "task", "worker")) > 40, done


# What is bound around


async def test_between_two_messages_is_bound_what_was_bound_where_they_are_read() -> None:
    """A block around the loop, or a middleware inside, and not what this middleware has bound."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with bind_context(Identity("service", "job")):
            await reader(receive, seen)
            seen.append(see())

    await Wire(CONNECT, ANN, BOB, GONE).run(app)
    acme, globex = ("acme", "ann"), ("globex", "bob")
    assert seen == [(acme, acme), (globex, globex), ("service", "job")]

    seen.clear()
    inner = ContextMiddleware(direct(seen), identity=lambda scope: Identity("inner", "x"))
    await Wire(CONNECT, ANN, GONE).run(inner)
    assert (seen[0], seen[-1]) == (("inner", "x"), ("inner", "x"))

    seen.clear()
    inner = ContextMiddleware(direct(seen), message=lambda event: None)
    await Wire(CONNECT, ANN, GONE).run(inner, identity=as_("outer"), authorize=lambda context, scope: True)
    assert seen[-1] is None


@pytest.mark.parametrize("crashes", [False, True])
async def test_a_refused_message_leaves_bound_what_was_bound_before(crashes: bool) -> None:
    """Of the middleware around, it may be the message that this one refuses."""
    seen: list[Any] = []

    def extract(event: Any) -> Any:
        raise ValueError if crashes else RequestRejected(400, "bad_message")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        seen.append(((await receive())["type"], see()))

    await Wire(CONNECT, ANN).run(ContextMiddleware(app, message=extract))
    assert seen[0][0] == "websocket.disconnect"
    assert seen[0][1] is None  # although the read of the one around has bound it by then

    seen.clear()
    await Wire(CONNECT, ANN).run(app, message=extract, identity=as_("own"))
    assert seen == [("websocket.disconnect", ("own", "ann"))]


async def test_an_extractor_runs_with_nobody_bound() -> None:
    """A task that it starts would stay somebody's."""
    seen: list[Any] = []

    async def extract(event: Any) -> Identity:
        seen.append(see())
        return Identity(*of(event))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await reader(receive, [])
        async with message_context(event=ANN):
            pass

    allow = {"authorize": lambda context, scope: True}
    await Wire(CONNECT, ANN, BOB, GONE).run(app, message=extract, identity=as_("own"), **allow)
    assert seen == [None] * 3


async def test_an_identity_that_has_expired_is_refused() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == cut(1008, "identity_expired")

    extract = lambda event: Identity("acme", "ann", expires_at=1.0)  # noqa: E731
    assert await Wire(CONNECT, ANN).run(app, message=extract) == [closing(1008, "identity_expired")]


# Closed meanwhile


async def test_a_read_that_waits_as_the_connection_is_closed_gets_no_message() -> None:
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def read() -> None:
            got.append(await receive())

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RequestRejected):
                async with message_context(payload="bad"):
                    pass
            wire.put(ANN)

    wire = Wire(CONNECT)
    assert await wire.run(app) == [closing(1008, "message_invalid")]
    assert got == [cut(1008, "message_invalid")]


async def test_a_message_that_is_examined_as_the_connection_is_closed_does_not_reach_the_app() -> None:
    got: list[Any] = []
    gate, asked = anyio.Event(), anyio.Event()

    async def extract(event: Any) -> Identity:
        if event is ANN:
            asked.set()
            await gate.wait()
            return Identity("acme", "ann")
        raise RequestRejected(400, "bad_message")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def read() -> None:
            got.append((await receive(), see()))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await asked.wait()
            with pytest.raises(RequestRejected):
                async with message_context(event=BOB):
                    pass
            gate.set()

    await Wire(CONNECT, ANN).run(app, message=extract)
    assert got == [(cut(1008, "bad_message"), None)]


async def test_a_connection_that_was_refused_as_expired_has_no_messages(asyncio_only: None) -> None:
    """What `authorize` has started by then must not examine any, nor close what was answered already."""
    raised: list[BaseException] = []
    tasks: list[Any] = []
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        try:
            async with message_context(payload="bad"):
                pass
        except (MessagesNotBoundError, ContextClosedError) as error:
            raised.append(error)

    def authorize(context: Any, scope: Any) -> bool:
        tasks.append(asyncio.get_running_loop().create_task(later()))
        return True

    sent = await Wire(CONNECT).run(hello, identity=as_(expires_at=1.0), authorize=authorize)
    go.set()
    await tasks[0]
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert [type(error) for error in raised] == [MessagesNotBoundError]


@pytest.mark.parametrize("late", [GONE, ANN], ids=["the server's disconnect", "a message"])
async def test_a_connection_that_was_closed_meanwhile_is_cut_whatever_comes_then(late: Any) -> None:
    """And what comes is not examined any more."""
    asked: list[Any] = []
    got: list[Any] = []

    def extract(event: Any) -> Any:
        asked.append(event)
        raise RequestRejected(400, "bad_message")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def read() -> None:
            got.append(await receive())

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RequestRejected):
                async with message_context(event=BOB):
                    pass
            wire.put(late)

    wire = Wire(CONNECT)
    await wire.run(app, message=extract)
    assert (got, asked) == ([cut(1008, "bad_message")], [BOB])


async def test_what_authorize_made_for_a_message_is_closed_if_the_connection_is_meanwhile(asyncio_only: None) -> None:
    log: list[Any] = []
    gate, asked = asyncio.Event(), asyncio.Event()

    class Session:
        pass

    def make(context: Any) -> Any:
        yield Session()
        log.append("closed")

    async def authorize(context: Any, scope: Any) -> bool:
        await current_resource(Session)
        asked.set()
        await gate.wait()
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        reading = asyncio.create_task(receive())
        await asked.wait()
        with pytest.raises(RequestRejected):
            async with message_context(payload="?"):
                pass
        gate.set()
        log.append(await reading)

    await Wire(CONNECT, ANN).run(app, authorize=authorize, resources={Session: make})
    assert log == ["closed", cut(1008, "message_invalid")]


# Readers and blocks that come and go


async def test_a_task_whose_message_is_examined_longer_than_that_of_another_is_a_second_reader() -> None:
    gate, asked = anyio.Event(), anyio.Event()
    seen: list[Any] = []

    async def extract(event: Any) -> Identity:
        if event is ANN:
            asked.set()
            await gate.wait()
        return Identity(*of(event))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def read() -> None:
            seen.append((of(await receive()), see()))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await asked.wait()
            seen.append((of(await receive()), see()))
            gate.set()
        seen.append(see())

    await Wire(CONNECT, ANN, BOB).run(app, message=extract)
    assert seen == [(("globex", "bob"),) * 2, (("acme", "ann"), None), "messages"]


async def test_a_block_that_has_ended_around_a_reader_is_not_what_is_bound_between_messages() -> None:
    """But the connection's own binding; which a change still revokes, in the task that began with it."""
    between: list[Any] = []
    seen: list[Any] = []
    left, read_one = anyio.Event(), anyio.Event()
    wire = Wire(CONNECT, ANN, ANN, BOB, GONE)

    async def receive() -> Any:
        between.append(see())
        return await wire.receive()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def read() -> None:
            await receive()
            read_one.set()
            await left.wait()
            await reader(receive, seen)

        async with anyio.create_task_group() as group:
            with bind_context(Identity("service", "job")):
                group.start_soon(read)
                await read_one.wait()
            left.set()
        seen.append(see())

    middleware = ContextMiddleware(app, message=JSON, identity=as_(), authorize=YES)
    await middleware(websocket(), receive, wire.send)
    acme, globex = ("acme", "ann"), ("globex", "bob")
    assert between == [acme, ("service", "job"), acme, acme, acme]
    assert seen == [(acme, acme), (globex, globex), "messages"]


async def test_a_task_that_outlives_the_connection_and_goes_on_reading_gets_nothing_bound(asyncio_only: None) -> None:
    tasks, over = [], asyncio.Event()
    wire = Wire(CONNECT, ANN)

    async def read(receive: Any) -> Any:
        await receive()
        first = see()
        await over.wait()
        await receive()
        return first, see()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        tasks.append(asyncio.create_task(read(receive)))
        await anyio.wait_all_tasks_blocked()

    await wire.run(app)
    wire.put(BOB)
    over.set()
    first, then = await tasks[0]
    assert (first, then) == (("acme", "ann"), ("acme", "ann"))  # what it started with, and not bob's


class Large:
    """What a weak reference can be made to."""


async def test_values_are_let_go_with_their_message_whatever_still_holds_its_context(asyncio_only: None) -> None:
    refs, tasks, over = [], [], asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(2):
            await receive()
            large = Large()
            refs.append(weakref.ref(large))
            update_request_context(large=large)
            del large
            tasks.append(asyncio.create_task(over.wait()))
            await asyncio.sleep(0)
            gc.collect()
            assert [ref() is None for ref in refs] == [True] * (len(refs) - 1) + [False]

    await Wire(CONNECT, ANN, BOB).run(app)
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    over.set()
    await asyncio.wait(tasks)


async def test_values_of_a_message_that_a_second_task_has_read_are_over_with_what_authorize_started(
    asyncio_only: None,
) -> None:
    tasks, over = [], asyncio.Event()

    async def later() -> str:
        await over.wait()
        with pytest.raises(ContextClosedError) as caught:
            get_from_context("x")
        return caught.value.why

    def authorize(context: Any, scope: Any) -> bool:
        tasks.append(asyncio.create_task(later()))
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        await asyncio.create_task(receive())
        over.set()
        assert [await task for task in tasks] == ["messages", "ended"]

    await Wire(CONNECT, ANN, BOB).run(app, authorize=authorize)


async def test_messages_of_reads_that_are_cancelled_from_the_last_on_keep_their_order(asyncio_only: None) -> None:
    gate = asyncio.Event()

    async def extract(event: Any) -> Identity:
        await gate.wait()
        return Identity(*of(event))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(2):
            readings = [asyncio.create_task(receive()) for _ in range(3)]
            await anyio.wait_all_tasks_blocked()
            for reading in reversed(readings):
                reading.cancel()
                await asyncio.wait([reading])
        gate.set()
        assert [await receive() for _ in range(3)] == [ANN, BOB, CY]

    await Wire(CONNECT, ANN, BOB, CY).run(app, message=extract)


async def test_the_resources_of_a_block_are_told_with_what_it_has_ended(asyncio_only: None) -> None:
    told: list[Any] = []

    class Session:
        pass

    async def make(context: Any) -> Any:
        try:
            yield Session()
        except ValueError as error:
            told.append(error)
            raise

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ValueError, match="app"):
            async with message_context(event=ANN):
                await current_resource(Session)
                raise ValueError("app")

    await Wire().run(app, resources={Session: make})
    assert [str(error) for error in told] == ["app"]


async def test_a_close_that_hangs_is_not_waited_for_longer_than_the_close_timeout(asyncio_only: None) -> None:
    go, sent = asyncio.Event(), asyncio.Event()

    async def send(message: Any) -> None:
        await go.wait()
        sent.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == cut(1008, "message_invalid")

    wire = Wire(CONNECT, {"type": "websocket.receive", "text": "?"})
    middleware = ContextMiddleware(app, message=JSON, close_timeout=0.01)
    with anyio.fail_after(PLENTY):
        await middleware(websocket(), wire.receive, send)
        gc.collect()
        go.set()
        await sent.wait()  # it has gone on by itself, and was not collected


async def test_a_close_that_goes_on_by_itself_is_waited_for_at_the_end_of_the_lifespan(asyncio_only: None) -> None:
    go, sending, sent = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def send(message: Any) -> None:
        sending.set()
        await go.wait()
        sent.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    wire = Wire(CONNECT, {"type": "websocket.receive", "text": "?"})
    middleware = ContextMiddleware(app, message=JSON, resources={Large: lambda context: Large()}, close_timeout=PLENTY)
    serving = asyncio.create_task(middleware(websocket(), wire.receive, send))
    await sending.wait()
    while not serving.done():  # at the read, and at the exit of the connection
        serving.cancel()
        await asyncio.wait([serving], timeout=0.01)
    closing_down = asyncio.create_task(middleware.close())
    await anyio.wait_all_tasks_blocked()
    assert not closing_down.done()
    go.set()
    await closing_down
    assert sent.is_set()
