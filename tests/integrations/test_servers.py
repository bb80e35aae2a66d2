"""What only a real server shows: contexts that leak from request to request, bytes as they come, clients that leave."""

import asyncio
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

import httpx
import pytest
from servers import (
    PATIENCE,
    SERVERS,
    UVICORN,
    UVICORN_ON_ASYNCIO,
    App,
    Response,
    Stage,
    Uvicorn,
    Wire,
    handshake,
    named_parameters,
    request,
    serving,
    stages,
)
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from asgi_context import ContextMiddleware, current_context, from_header, run_in_executor

ACME = b"x-tenant-id: acme"
BETA = b"x-tenant-id: beta"
HIGH_WATER = 64 * 1024
"""Bytes above which uvicorn stops reading a body until the app asks for it; that is one way in which contexts leak."""


@pytest.fixture(scope="module")
def running() -> Iterator[Callable[[str], Stage]]:
    """Servers of any kind, each started once: to stop uvicorn takes it a fifth of a second."""
    with stages() as start:
        yield start


@pytest.fixture(params=named_parameters(SERVERS))
def server(request: pytest.FixtureRequest, running: Callable[[str], Stage]) -> Iterator[Stage]:
    """A server on which the test puts its app. Whatever that does, nothing may stay bound in the server's tasks."""
    stage = running(request.param)
    yield stage
    stage.settle()


def tenant() -> str | None:
    context = current_context(None)
    return None if context is None else context.tenant


async def body_of(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def answer(send: Any, data: object, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    body = json.dumps(data).encode()
    length = b"content-length", str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def tenant_soon() -> str | None:
    await asyncio.sleep(0)
    return tenant()


async def whoami(scope: Any, receive: Any, send: Any) -> None:
    """Answer which tenants were seen: before and after the body was read, in a task and in a thread."""
    before = tenant()
    await body_of(receive)
    await answer(
        send, [before, tenant(), await asyncio.create_task(tenant_soon()), await run_in_executor(None, tenant)]
    )


def seen(response: Response) -> str | None:
    assert response.status == 200, response
    [tenant] = set(response.json())
    return tenant


def wrapped(app: App = whoami, **options: Any) -> ContextMiddleware:
    return ContextMiddleware(app, tenant=from_header("x-tenant-id"), **options)


# One connection, several requests


def test_a_pipelined_request_without_identity_sees_nothing_of_the_one_before(server: Stage) -> None:
    server.put_on(wrapped(missing="unbound"))

    with server.connect() as wire:
        wire.send(request(ACME) + request() + request(BETA) + request())

        assert [seen(wire.response()) for _ in range(4)] == ["acme", None, "beta", None]


def test_a_pipelined_request_without_identity_is_refused(server: Stage) -> None:
    server.put_on(wrapped())

    with server.connect() as wire:
        wire.send(request(ACME) + request() + request(BETA))
        first, second, third = wire.response(), wire.response(), wire.response()

    assert (seen(first), seen(third)) == ("acme", "beta")
    assert (second.status, second.json()["code"]) == (400, "tenant_missing")


def test_a_pipelined_request_to_an_exempt_path_sees_nothing_of_the_one_before(server: Stage) -> None:
    server.put_on(wrapped(exempt=lambda scope: scope["path"] == "/health"))

    with server.connect() as wire:
        wire.send(request(ACME) + request(target=b"/health") + request(ACME, target=b"/health") + request(BETA))

        assert [seen(wire.response()) for _ in range(4)] == ["acme", None, None, "beta"]


def test_an_extractor_and_an_answer_of_on_reject_see_nothing_of_the_request_before(server: Stage) -> None:
    bound_while_asked = []

    def header(scope: Any) -> str | None:
        bound_while_asked.append(tenant())
        return dict(scope["headers"]).get(b"x-tenant-id", b"").decode() or None

    server.put_on(ContextMiddleware(whoami, tenant=header, on_reject=lambda rejection, scope: whoami))

    with server.connect() as wire:
        wire.send(request(ACME) + request() + request(BETA))

        assert [seen(wire.response()) for _ in range(3)] == ["acme", None, "beta"]
    assert bound_while_asked == [None] * 3


@pytest.mark.parametrize("size", [HIGH_WATER + 1, 1_000_000], ids=["just over 64 KiB", "1 MB"])
def test_a_request_after_a_large_body_sees_nothing_of_the_one_before(server: Stage, size: int) -> None:
    server.put_on(wrapped(missing="unbound"))

    with server.connect() as wire:
        answers = [wire.ask(data) for data in (request(ACME, body=b"a" * size), request(), request(BETA), request())]

    assert [seen(response) for response in answers] == ["acme", None, "beta", None]


def test_a_request_without_identity_after_a_large_body_is_refused(server: Stage) -> None:
    server.put_on(wrapped())

    with server.connect() as wire:
        assert seen(wire.ask(request(ACME, body=b"a" * 1_000_000))) == "acme"
        second = wire.ask(request())

    assert (second.status, second.json()["code"]) == (400, "tenant_missing")


# What the tests above would not show if servers did not leak


naive_tenant: ContextVar[str | None] = ContextVar("naive_tenant", default=None)


async def naive_whoami(scope: Any, receive: Any, send: Any) -> None:
    await body_of(receive)
    await answer(send, [naive_tenant.get()])


async def setting_and_resetting(scope: Any, receive: Any, send: Any) -> None:
    header = dict(scope["headers"]).get(b"x-tenant-id")
    if header is None:
        await naive_whoami(scope, receive, send)
        return
    token = naive_tenant.set(header.decode())
    try:
        await naive_whoami(scope, receive, send)
    finally:
        naive_tenant.reset(token)


async def setting_alone(scope: Any, receive: Any, send: Any) -> None:
    header = dict(scope["headers"]).get(b"x-tenant-id")
    if header is not None:
        naive_tenant.set(header.decode())
    await naive_whoami(scope, receive, send)


@pytest.mark.parametrize("naive", [setting_and_resetting, setting_alone])
@pytest.mark.parametrize("server", UVICORN, indirect=True)
def test_a_middleware_that_trusts_what_it_inherits_hands_the_tenant_to_a_pipelined_request(
    server: Stage, naive: App
) -> None:
    server.put_on(naive)

    with server.connect() as wire:
        wire.send(request(ACME) + request())

        assert [seen(wire.response()) for _ in range(2)] == ["acme", "acme"]


@pytest.mark.parametrize("naive", [setting_and_resetting, setting_alone])
@pytest.mark.parametrize("server", UVICORN_ON_ASYNCIO, indirect=True)
def test_a_middleware_that_trusts_what_it_inherits_hands_the_tenant_on_after_a_large_body(
    server: Stage, naive: App
) -> None:
    """By python/cpython#140947: once that is fixed in a Python that this runs on, it can go."""
    server.put_on(naive)

    with server.connect() as wire:
        answers = [wire.ask(request(ACME, body=b"a" * 1_000_000)), wire.ask(request())]

    assert [seen(response) for response in answers] == ["acme", "acme"]


# Ends that are not returns


def streaming(notes: "queue.Queue[tuple[str, str | None]]") -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def stream() -> None:
            try:
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
                    await asyncio.sleep(0)  # a server that drops what it cannot send gives nobody else a turn
            finally:
                notes.put(("stream", tenant()))

        await body_of(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        task = asyncio.create_task(stream())
        try:
            message = await receive()
            notes.put((message["type"], tenant()))
        finally:
            task.cancel()
            await asyncio.wait([task])
            notes.put(("app", tenant()))

    return app


def streaming_by_starlette(notes: "queue.Queue[tuple[str, str | None]]") -> App:
    async def stream() -> Any:
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0)
        finally:
            notes.put(("stream", tenant()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await StreamingResponse(stream())(scope, receive, send)
        finally:
            notes.put(("app", tenant()))

    return app


def noted(notes: "queue.Queue[tuple[str, str | None]]", last: str) -> dict[str, str | None]:
    found = {}
    while last not in found:
        name, found[name] = notes.get(timeout=PATIENCE)
    return found


@pytest.mark.parametrize("stream", [streaming, streaming_by_starlette])
def test_a_client_that_leaves_amid_a_stream(server: Stage, stream: Callable[..., App]) -> None:
    notes: queue.Queue[tuple[str, str | None]] = queue.Queue()
    app = stream(notes)

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        await (app if scope["path"] == "/stream" else whoami)(scope, receive, send)

    server.put_on(wrapped(dispatch))

    with server.connect() as wire:
        wire.send(request(ACME, target=b"/stream"))
        while b"xxx" not in wire.received:
            assert wire.receive()
        with server.connect() as other:
            assert seen(other.ask(request(BETA))) == "beta"

    found = noted(notes, "app")
    assert found.pop("http.disconnect", "acme") == "acme"
    assert found == {"stream": "acme", "app": "acme"}
    server.settle()  # nothing stays bound

    server.put_on(wrapped())
    with server.connect() as wire:
        assert seen(wire.ask(request(BETA))) == "beta"


async def cancelled() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def cancelled_while_a_child_runs() -> None:
    child = asyncio.create_task(asyncio.Event().wait())
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    try:
        await child
    finally:
        assert child.cancelled()


async def crashed() -> None:
    raise ArithmeticError


@pytest.mark.parametrize("end", [cancelled, cancelled_while_a_child_runs, crashed])
def test_a_handler_that_is_cancelled_or_crashes(server: Stage, end: Callable[[], Any]) -> None:
    notes: queue.Queue[tuple[str, str | None]] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        try:
            await end()
        finally:
            notes.put(("app", tenant()))

    server.put_on(wrapped(app))
    with server.connect() as wire:
        assert wire.ask(request(ACME)).status == 500  # by the server: the middleware has let it pass
    assert noted(notes, "app") == {"app": "acme"}
    server.settle()  # nothing stays bound

    server.put_on(wrapped(missing="unbound"))
    with server.connect() as wire:
        wire.send(request() + request(BETA))
        assert [seen(wire.response()) for _ in range(2)] == [None, "beta"]


def test_a_client_that_leaves_while_the_app_waits_for_it(server: Stage) -> None:
    notes: queue.Queue[tuple[str, str | None]] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        notes.put(("waiting", tenant()))
        message = await receive()
        notes.put((message["type"], tenant()))
        await cancelled()

    server.put_on(wrapped(app))
    with server.connect() as wire:
        wire.send(request(ACME))
        noted(notes, "waiting")

    assert noted(notes, "http.disconnect") == {"http.disconnect": "acme"}
    server.settle()  # nothing stays bound

    server.put_on(wrapped())
    with server.connect() as wire:
        assert seen(wire.ask(request(BETA))) == "beta"


@pytest.mark.parametrize("kind", UVICORN.values(), ids=UVICORN)
def test_a_handler_that_the_server_cancels_since_it_stops(kind: type[Uvicorn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "grace", 0)
    notes: queue.Queue[tuple[str, str | None]] = queue.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        notes.put(("waiting", tenant()))
        try:
            await asyncio.Event().wait()
        finally:
            notes.put(("app", tenant()))

    stage = Stage()
    stage.put_on(wrapped(app))
    with serving(kind, stage) as server, Wire(server.port) as wire:
        wire.send(request(ACME))
        noted(notes, "waiting")
        server.stop()

        assert noted(notes, "app") == {"app": "acme"}
    stage.settle()  # nothing stays bound


# Opening and closing


class Directory:
    """An extractor that works only while it is open, and opens only once its gate is."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.gate = asyncio.Event()
        self._open = False

    async def open(self) -> None:
        self.log.append("opening")
        await asyncio.wait_for(self.gate.wait(), PATIENCE)
        self._open = True
        self.log.append("open")

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._open = False
        self.log.append("closed")

    async def __call__(self, scope: Any) -> str | None:
        assert self._open
        return dict(scope["headers"]).get(b"x-tenant-id", b"").decode() or None


class UnavailableError(Exception):
    pass


class Unopenable:
    def __call__(self, scope: Any) -> str | None:
        raise AssertionError("asked before it was open")

    async def open(self) -> None:
        raise UnavailableError


def logging_lifespan(log: list[str]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await whoami(scope, receive, send)
            return
        assert (await receive())["type"] == "lifespan.startup"
        log.append("startup")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        log.append("shutdown")
        await send({"type": "lifespan.shutdown.complete"})

    return app


def test_without_a_lifespan_the_first_requests_open_once_for_all_of_them(server: Stage) -> None:
    log: list[str] = []
    directory = Directory(log)
    middleware = ContextMiddleware(whoami, tenant=directory)
    arrived = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 20:
            directory.gate.set()
        await middleware(scope, receive, send)

    server.put_on(app)
    with ExitStack() as stack:
        wires = [stack.enter_context(server.connect()) for _ in range(20)]
        for number, wire in enumerate(wires):
            wire.send(request(b"x-tenant-id: tenant-%d" % number))

        assert [seen(wire.response()) for wire in wires] == [f"tenant-{number}" for number in range(20)]
    assert log == ["opening", "open"]


@pytest.mark.parametrize("kind", SERVERS.values(), ids=SERVERS)
def test_with_a_lifespan_it_is_open_before_the_app_has_started_and_until_it_has_stopped(kind: Any) -> None:
    log: list[str] = []
    directory = Directory(log)
    directory.gate.set()
    stage = Stage()
    stage.put_on(ContextMiddleware(logging_lifespan(log), tenant=directory))

    with serving(kind, stage, lifespan=True) as server:
        assert server.started, server.failure
        assert log == ["opening", "open", "startup"]
        with Wire(server.port) as wire:
            assert seen(wire.ask(request(ACME))) == "acme"
            assert seen(wire.ask(request(BETA))) == "beta"
    assert log == ["opening", "open", "startup", "shutdown", "closed"]
    stage.settle()  # nothing stays bound


@pytest.mark.parametrize("framework", [False, True], ids=["raw", "starlette"])
@pytest.mark.parametrize("kind", SERVERS.values(), ids=SERVERS)
def test_a_server_does_not_start_where_something_cannot_be_opened(
    kind: Any, framework: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    app = Starlette() if framework else logging_lifespan(log)

    with serving(kind, ContextMiddleware(app, tenant=Unopenable()), lifespan=True) as server:
        assert not server.started
        assert server.failure is not None
        with pytest.raises(ConnectionRefusedError):
            Wire(server.port)
    assert log == []
    assert "UnavailableError" in caplog.text


# WebSockets


def websocket(server: Stage, **headers: str) -> ClientConnection:
    address = "127.0.0.1", server.port
    return connect(
        f"ws://127.0.0.1:{server.port}/",
        sock=socket.create_connection(address, PATIENCE),  # made here, so that no proxy of the environment is asked
        additional_headers={name.replace("_", "-"): value for name, value in headers.items()},
        open_timeout=PATIENCE,
    )


def refusal(server: Stage, **headers: str) -> Any:
    with pytest.raises(InvalidStatus) as refused, websocket(server, **headers):
        pass
    return refused.value.response


async def conversation(scope: Any, receive: Any, send: Any) -> None:
    """Answer each message by who was seen in the handler, a task, a thread and a pool."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        views = [
            current_context(),
            await asyncio.create_task(context_soon()),
            await asyncio.to_thread(current_context),
            await run_in_executor(None, current_context),
        ]
        said = [[view.tenant, view.user, view.request_id] for view in views]
        await send({"type": "websocket.send", "text": json.dumps([message["text"], *said])})


async def context_soon() -> Any:
    await asyncio.sleep(0)
    return current_context()


def test_a_websocket_sees_nothing_of_the_request_that_its_connection_served_before(server: Stage) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await whoami(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": f"<{tenant()}>"})
        await receive()

    server.put_on(wrapped(app, missing="unbound"))

    with server.connect() as wire:
        assert seen(wire.ask(request(ACME, body=b"a" * 1_000_000))) == "acme"
        wire.send(handshake())
        while b">" not in wire.received:
            assert wire.receive()
        assert wire.received.endswith(b"<None>")


def test_on_reject_answers_a_websocket_in_terms_of_http(server: Stage) -> None:
    answers = {"tenant_missing": PlainTextResponse("whose?", 418, {"x-hint": "name a tenant"})}
    server.put_on(wrapped(unreachable, on_reject=lambda rejection, scope: answers[rejection.code]))

    response = refusal(server)

    assert (response.status_code, response.body) == (418, b"whose?")
    assert response.headers.get_all("x-hint") == ["name a tenant"]


async def unreachable(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the app was called")


def without_denial(app: App) -> App:
    """As on daphne, which has no such extension."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        del scope["extensions"]["websocket.http.response"]
        await app(scope, receive, send)

    return called


@pytest.mark.parametrize("reject", [None, lambda rejection, scope: PlainTextResponse("whose?", 418)])
def test_a_websocket_is_refused_by_403_where_the_server_offers_no_answer(server: Stage, reject: Any) -> None:
    server.put_on(without_denial(wrapped(unreachable, on_reject=reject)))

    response = refusal(server)

    assert (response.status_code, response.body) == (403, b"")


def test_a_refused_websocket_leaves_nothing_for_the_next(server: Stage) -> None:
    server.put_on(wrapped(conversation))

    assert refusal(server, x_tenant_id="not good").status_code == 400
    with websocket(server, x_tenant_id="beta") as client:
        client.send("hello")
        assert {view[0] for view in json.loads(client.recv(PATIENCE))[1:]} == {"beta"}


# Bytes as they come. Each bad value holds "evil", which no answer may.


NAME = b"x-tenant-id: "
BAD: dict[str, tuple[list[bytes], str]] = {
    "missing": ([], "tenant_missing"),
    "empty": ([b"x-tenant-id:"], "tenant_invalid"),
    "blank": ([b"x-tenant-id: \t "], "tenant_invalid"),
    "repeated": ([ACME, NAME + b"evil"], "tenant_repeated"),
    "repeated in another case": ([ACME, b"X-Tenant-ID: evil"], "tenant_repeated"),
    "repeated with the same value": ([ACME, ACME], "tenant_repeated"),
    "joined by a comma": ([NAME + b"acme, evil"], "tenant_invalid"),
    "129 characters": ([NAME + b"evil" + b"a" * 125], "tenant_invalid"),
    "only dots": ([NAME + b".."], "tenant_invalid"),
    "markup": ([NAME + b"<b>evil</b>"], "tenant_invalid"),
    "inner space": ([NAME + b"acme evil"], "tenant_invalid"),
    "latin-1": ([NAME + b"evil\xe9"], "tenant_invalid"),
    "UTF-8": ([NAME + "evilé".encode()], "tenant_invalid"),
    "UTF-8 digits": ([NAME + "evil\u0661".encode()], "tenant_invalid"),
    "no UTF-8": ([NAME + b"evil\xff\xfe"], "tenant_invalid"),
    "no-break spaces around": ([NAME + b"\xa0evil\xa0"], "tenant_invalid"),
    "no-break spaces around, in UTF-8": ([NAME + b"\xc2\xa0evil\xc2\xa0"], "tenant_invalid"),
    "next line after": ([NAME + b"evil\x85"], "tenant_invalid"),
    "underscores beside": ([ACME, b"x_tenant_id: evil"], "tenant_repeated"),
    "underscores before": ([b"x_tenant_id: evil", ACME], "tenant_repeated"),
    "underscores alone": ([b"x_tenant_id: evil"], "tenant_invalid"),
    "one underscore alone": ([b"X-Tenant_Id: evil"], "tenant_invalid"),
}
# What some servers refuse themselves.
BAD_HTTP: dict[str, tuple[list[bytes], str]] = {
    "SOH": ([NAME + b"evil\x01"], "tenant_invalid"),
    "escape": ([NAME + b"\x1b[31mevil"], "tenant_invalid"),
    "DEL": ([NAME + b"evil\x7f"], "tenant_invalid"),
    "VT before": ([NAME + b"\x0bevil"], "tenant_invalid"),
    "FF after": ([NAME + b"evil\x0c"], "tenant_invalid"),
    "NUL": ([NAME + b"evil\x00"], "tenant_invalid"),
    "bare CR": ([NAME + b"acme\revil"], "tenant_invalid"),
    "bare LF": ([NAME + b"acme\nx-tenant-id: evil"], "tenant_repeated"),
    "folded": ([NAME + b"acme\r\n evil"], "tenant_invalid"),
    "space before the colon": ([b"x-tenant-id : evil"], "tenant_invalid"),
}


def assert_refused(server: Stage, data: bytes, code: str) -> None:
    with server.connect() as wire:
        response = wire.ask(data)

        assert response.status == 400
        assert b"evil" not in wire.received
        assert b"acme" not in wire.received
    if server.calls:
        assert response.all(b"content-type") == [b"application/problem+json"]
        assert response.json()["code"] == code


@pytest.mark.parametrize("make", [request, handshake], ids=["http", "websocket"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_tenant_is_refused_by_a_fixed_text(server: Stage, name: str, make: Callable[..., bytes]) -> None:
    lines, code = BAD[name]
    server.put_on(wrapped(unreachable))

    assert_refused(server, make(*lines), code)
    assert server.calls == 1


@pytest.mark.parametrize("make", [request, handshake], ids=["http", "websocket"])
@pytest.mark.parametrize("name", BAD_HTTP)
def test_what_is_no_header_is_refused_by_the_server_or_by_a_fixed_text(
    server: Stage, name: str, make: Callable[..., bytes]
) -> None:
    lines, code = BAD_HTTP[name]
    server.put_on(wrapped(unreachable))

    assert_refused(server, make(*lines), code)


@pytest.mark.parametrize("name", [name for name in BAD if name != "missing"])
def test_what_is_bad_is_refused_also_where_what_is_missing_is_not(server: Stage, name: str) -> None:
    lines, code = BAD[name]
    server.put_on(wrapped(unreachable, missing="unbound"))

    assert_refused(server, request(*lines), code)
    assert server.calls == 1


def test_space_and_tab_around_a_tenant_are_no_part_of_it(server: Stage) -> None:
    server.put_on(wrapped())

    with server.connect() as wire:
        assert seen(wire.ask(request(b"X-TENANT-ID:\t acme \t"))) == "acme"
        assert seen(wire.ask(request(b"x-tenant-id:" + b"a" * 128))) == "a" * 128


# Many at once


def test_ten_tenants_at_once_on_kept_connections_never_meet(server: Stage) -> None:
    """Twenty connections with a request under way at any time, two of each tenant; half of them pipelined."""
    connections, rounds = 20, 10
    meeting = asyncio.Barrier(connections)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before = tenant()
        if before is not None:  # all others are in the midst of theirs
            await asyncio.wait_for(meeting.wait(), PATIENCE)
        body = await body_of(receive)
        views = {before, tenant(), await asyncio.create_task(tenant_soon()), await run_in_executor(None, tenant)}
        await answer(send, [list(views), body[:8].decode()])

    def tenant_of(connection: int, turn: int) -> str:
        return f"tenant-{(connection + turn) % 10}"

    def requests_of(connection: int) -> Iterator[bytes]:
        for turn in range(rounds):
            name = tenant_of(connection, turn).encode()
            yield request(NAME + name, body=name + b"x" * (HIGH_WATER + 1000 * connection))
            yield request()

    def talk(connection: int) -> list[Any]:
        data = list(requests_of(connection))
        with server.connect() as wire:
            if connection % 2:
                return [wire.ask(each).json() for each in data]
            wire.send(b"".join(data))
            return [wire.response().json() for _ in data]

    server.put_on(wrapped(app, missing="unbound"))
    with ThreadPoolExecutor(connections) as pool:
        answers = list(pool.map(talk, range(connections)))

    expected = [
        [
            entry
            for turn in range(rounds)
            for entry in ([[tenant_of(connection, turn)], tenant_of(connection, turn)], [[None], ""])
        ]
        for connection in range(connections)
    ]
    wrong = [pair for got, want in zip(answers, expected, strict=True) for pair in zip(got, want, strict=True)]
    assert [(got, want) for got, want in wrong if got != want] == []


def test_requests_of_an_ordinary_client(server: Stage) -> None:
    server.put_on(wrapped(missing="unbound"))

    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=PATIENCE) as client:
        for name in ("acme", None, "beta", None, "acme"):
            headers = {} if name is None else {"X-Tenant-ID": name}
            response = client.post("/", headers=headers, content=b"x" * 200_000)
            assert (response.status_code, set(response.json())) == (200, {name})


# The request id in the answer


async def request_id_twice(scope: Any, receive: Any, send: Any) -> None:
    """An app that has set the header by itself, twice."""
    await body_of(receive)
    context = current_context(None)
    doubled = (b"X-Request-Id", b"mine"), (b"x-request-id", b"mine")
    await answer(send, None if context is None else context.request_id, doubled)


def test_an_answer_carries_the_request_id_once(server: Stage) -> None:
    server.put_on(wrapped(request_id_twice, echo_request_id="X-Request-ID", missing="unbound"))

    with server.connect() as wire:
        wire.send(request(ACME) + request() + request(ACME))
        first, unbound, second = wire.response(), wire.response(), wire.response()

    assert first.all(b"x-request-id") == [first.json().encode()]
    assert second.all(b"x-request-id") == [second.json().encode()]
    [unbound_id] = unbound.all(b"x-request-id")
    ids = {first.json().encode(), second.json().encode(), unbound_id}
    assert len(ids) == 3
    assert all(len(each) == 32 for each in ids)


def test_a_refusal_carries_the_request_id_once(server: Stage) -> None:
    server.put_on(wrapped(unreachable, echo_request_id="x-request-id"))

    with server.connect() as wire:
        first, second = wire.ask(request()), wire.ask(request(NAME + b"not good"))

    assert (first.status, second.status) == (400, 400)
    [first_id], [second_id] = first.all(b"x-request-id"), second.all(b"x-request-id")
    assert first_id != second_id


def test_a_trusted_request_id_comes_back_and_a_bad_one_does_not(server: Stage) -> None:
    server.put_on(wrapped(request_id_twice, request_id=from_header("x-request-id"), echo_request_id="x-request-id"))

    with server.connect() as wire:
        good = wire.ask(request(ACME, b"x-request-id: abc-123"))
        bad = [
            wire.ask(request(ACME, *lines))
            for lines in (
                [b"x-request-id: evil\xe9"],
                [b"x-request-id: evil, evil"],
                [b"x-request-id: evil", b"x-request-id: evil"],
            )
        ]

        assert b"evil" not in wire.received
    assert (good.json(), good.all(b"x-request-id")) == ("abc-123", [b"abc-123"])
    assert [each.all(b"x-request-id") for each in bad] == [[each.json().encode()] for each in bad]


def test_a_websocket_handshake_carries_the_request_id_once(server: Stage) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"X-Request-Id", b"mine"), (b"x-other", b"kept")]
        await send({"type": "websocket.accept", "headers": headers})
        await send({"type": "websocket.send", "text": current_context().request_id})
        await receive()

    server.put_on(wrapped(app, echo_request_id="x-request-id"))

    with websocket(server, x_tenant_id="acme") as client:
        assert client.response is not None
        assert client.response.status_code == 101
        assert client.response.headers.get_all("x-request-id") == [client.recv(PATIENCE)]
        assert client.response.headers.get_all("x-other") == ["kept"]


def test_a_refused_websocket_handshake_carries_the_request_id_once(server: Stage) -> None:
    server.put_on(wrapped(unreachable, echo_request_id="x-request-id"))

    ids = [refusal(server).headers.get_all("x-request-id") for _ in range(2)]

    assert [len(each) for each in ids] == [1, 1]
    assert ids[0] != ids[1]


# After the answer


@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "sync"])
def test_background_work_sees_the_identity_after_the_answer_has_gone_out(server: Stage, in_thread: bool) -> None:
    notes: queue.Queue[tuple[str, str | None]] = queue.Queue()
    answered = threading.Event()

    def work() -> None:
        assert answered.wait(PATIENCE)
        notes.put(("work", tenant()))

    async def work_async() -> None:
        assert await asyncio.to_thread(answered.wait, PATIENCE)
        notes.put(("work", tenant()))

    async def job(request: Any) -> Any:
        return PlainTextResponse(str(tenant()), background=BackgroundTask(work if in_thread else work_async))

    async def other(request: Any) -> Any:
        return PlainTextResponse(str(tenant()))

    app = Starlette(routes=[Route("/job", job), Route("/other", other)])
    server.put_on(wrapped(app))

    with server.connect() as wire, server.connect() as second:
        assert wire.ask(request(ACME, target=b"/job")).body == b"acme"
        assert second.ask(request(BETA, target=b"/other")).body == b"beta"
        assert notes.empty()
        answered.set()
        assert noted(notes, "work") == {"work": "acme"}


@pytest.mark.parametrize("server", UVICORN, indirect=True)
def test_background_work_keeps_its_identity_while_the_connection_serves_another(server: Stage) -> None:
    """uvicorn takes the next request of a connection while the background work of the one before still runs."""
    notes: queue.Queue[tuple[str, str | None]] = queue.Queue()
    answered = threading.Event()

    async def work() -> None:
        assert await asyncio.to_thread(answered.wait, PATIENCE)
        notes.put(("work", tenant()))

    async def job(request: Any) -> Any:
        return PlainTextResponse(str(tenant()), background=BackgroundTask(work))

    async def other(request: Any) -> Any:
        return PlainTextResponse(str(tenant()))

    server.put_on(wrapped(Starlette(routes=[Route("/job", job), Route("/other", other)]), missing="unbound"))

    with server.connect() as wire:
        wire.send(request(ACME, target=b"/job") + request(target=b"/other") + request(BETA, target=b"/other"))
        assert [wire.response().body for _ in range(3)] == [b"acme", b"None", b"beta"]
        answered.set()
        assert noted(notes, "work") == {"work": "acme"}
