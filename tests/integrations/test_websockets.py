"""WebSocket messages, expiry, resources and pools in real frameworks, on real servers, with real clients."""

import asyncio
import gc
import json
import queue
import random
import socket
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
import quart
from channels.generic.websocket import AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import URLRouter
from django.conf import settings
from django.urls import path
from fastapi import FastAPI, WebSocket
from litestar import Litestar
from litestar import WebSocket as LitestarWebSocket
from litestar import websocket as litestar_websocket
from litestar.exceptions import WebSocketDisconnect as LitestarDisconnect
from litestar.handlers import websocket_listener, websocket_stream
from servers import (
    PATIENCE,
    SERVERS,
    App,
    ServerThread,
    Stage,
    UvicornHttptoolsUvloop,
    Wire,
    request,
    serving,
    stages,
)
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    ContextNotBoundError,
    Identity,
    bind_context,
    current_context,
    current_resource,
    from_header,
    json_message,
    message_context,
    run_in_pool,
)
from asgi_context.values import get_from_context, update_request_context

NAMES = json_message(tenant="tenant_id", user="user_id", max_bytes=1024)
SOURCES: dict[str, Any] = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}
ANN = {"x-tenant-id": "acme", "x-user-id": "ann"}
SENDERS = [("acme", "ann"), ("globex", "bob"), ("acme", "cid"), ("initech", "ann")]


@pytest.fixture(scope="module")
def running() -> Iterator[Callable[[str], Stage]]:
    if not settings.configured:
        settings.configure()  # all that Channels wants of Django: no database, no channel layer
    with stages() as start:
        yield start


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, running: Callable[[str], Stage]) -> Iterator[Stage]:
    """A server on which the test puts its app. Whatever that does, nothing may stay bound in the server's tasks."""
    stage = running(request.param)
    yield stage
    stage.settle()


class Desk:
    """A resource: it knows for whom it was made."""

    def __init__(self, whose: tuple[str, str | None]) -> None:
        self.whose = whose


class Desks:
    """Makes desks, and counts those that are open. All of it happens on the server's event loop."""

    def __init__(self) -> None:
        self.made = 0
        self.open = 0

    @asynccontextmanager
    async def make(self, context: Any) -> AsyncIterator[Desk]:
        await asyncio.sleep(0)
        self.made += 1
        self.open += 1
        try:
            yield Desk((context.tenant, context.user))
        finally:
            await asyncio.sleep(0)
            self.open -= 1


Mount = Callable[..., Desks]


@pytest.fixture
def mount(server: Stage) -> Iterator[Mount]:
    """Wraps an app and puts it on the server. In the end none of its desks is open, and none of its threads runs."""
    mounted = []

    def wrap(app: App, **options: Any) -> Desks:
        desks = Desks()
        middleware = ContextMiddleware(app, resources={Desk: desks.make}, pools={"tool": 4}, **options)
        mounted.append((middleware, desks))
        server.put_on(middleware)
        return desks

    yield wrap
    server.settle()
    for middleware, desks in mounted:
        server.run(middleware.close())  # waits for closings that the end of an app has left behind
        assert desks.open == 0


@contextmanager
def client(server: Any, at: str = "/", **headers: str) -> Iterator[ClientConnection]:
    with connect(
        f"ws://127.0.0.1:{server.port}{at}",
        proxy=None,
        additional_headers=headers,
        open_timeout=PATIENCE,
        compression=None,
    ) as connection:
        yield connection


def told(connection: ClientConnection, *messages: str | bytes) -> tuple[int, str]:
    """The code and the reason by which the server closes, after these messages or amid them."""
    with pytest.raises(ConnectionClosed) as closed:
        for each in messages:
            connection.send(each)
        while True:
            connection.recv(PATIENCE)
    close = closed.value.rcvd
    assert close is not None, closed.value
    return close.code, close.reason


def message(number: int, sender: tuple[str, str] | None = None) -> str:
    names = {} if sender is None else {"tenant_id": sender[0], "user_id": sender[1]}
    return json.dumps({**names, "n": number})


class Gate:
    """Where an app waits until the test, in another thread, lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = asyncio.Event()

    async def wait(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached.set()
        await self._open.wait()  # without a timeout, since a timer of asyncio's keeps its context even when cancelled

    def open(self) -> None:
        assert self.reached.wait(PATIENCE)
        self._loop.call_soon_threadsafe(self._open.set)


# What the apps do with a message


def whose() -> tuple[str, str | None]:
    context = current_context()
    return context.tenant, context.user


async def whose_soon() -> tuple[str, str | None]:
    await asyncio.sleep(0)
    return whose()


def failure(number: int, error: Any) -> list[Any]:
    return [number, type(error).__name__, getattr(error, "why", None)]


def answer_at_once(number: int) -> list[Any]:
    """The message's number, and for whom it is: one tenant and user."""
    try:
        assert get_from_context("n") is None, "the values of another message"
        update_request_context(n=number)
        return [number, whose()]
    except (ContextNotBoundError, ContextClosedError) as error:
        return failure(number, error)


async def answer(number: int) -> list[Any]:
    """The same, as seen in the handler, in a task, in threads and by a resource."""
    first = answer_at_once(number)
    if len(first) != 2:
        return first
    try:
        views = {
            whose(),
            await asyncio.create_task(whose_soon()),
            (await current_resource(Desk)).whose,
            await asyncio.to_thread(whose),
            await run_in_pool("tool", whose),
            whose(),
        }
    except (ContextNotBoundError, ContextClosedError) as error:
        return failure(number, error)
    assert get_from_context("n") == number
    return [number, *views]


async def respond(connection: Any, number: int) -> None:
    await connection.send_json(await answer(number))


def number_of(text: str) -> int:
    number: int = json.loads(text)["n"]
    return number


def starlette(endpoint: Any) -> Callable[[], App]:
    return lambda: Starlette(routes=[WebSocketRoute("/", endpoint)])


# Apps that handle a message where they read it


async def by_receive(websocket: WebSocket) -> None:
    await websocket.accept()
    while (event := await websocket.receive())["type"] == "websocket.receive":
        await respond(websocket, number_of(event["text"]))


async def by_iter_text(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await respond(websocket, number_of(text))


async def by_iter_json(websocket: WebSocket) -> None:
    await websocket.accept()
    async for data in websocket.iter_json():
        await respond(websocket, data["n"])


class TextEndpoint(WebSocketEndpoint):
    encoding = "text"

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        await respond(websocket, number_of(data))


class JsonEndpoint(WebSocketEndpoint):
    encoding = "json"

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await respond(websocket, data["n"])


def fastapi() -> App:
    app = FastAPI()
    app.websocket("/")(by_iter_json)
    return app


def litestar(handler: Any) -> Callable[[], App]:
    return lambda: Litestar([handler], openapi_config=None, logging_config=None)


@litestar_websocket("/")
async def litestar_handler(socket: LitestarWebSocket) -> None:
    await socket.accept()
    async for data in socket.iter_json():
        await respond(socket, data["n"])


@websocket_listener("/")
async def litestar_listener(data: dict[str, Any]) -> list[Any]:
    return await answer(data["n"])


@websocket_listener("/", sync_to_thread=True)
def litestar_listener_in_thread(data: dict[str, Any]) -> list[Any]:
    return answer_at_once(data["n"])


DIRECT: dict[str, Callable[[], App]] = {
    "starlette-receive": starlette(by_receive),
    "starlette-iter_text": starlette(by_iter_text),
    "starlette-iter_json": starlette(by_iter_json),
    "starlette-endpoint-text": starlette(TextEndpoint),
    "starlette-endpoint-json": starlette(JsonEndpoint),
    "fastapi": fastapi,
    "litestar-handler": litestar(litestar_handler),
    "litestar-listener": litestar(litestar_listener),
    "litestar-listener-in-thread": litestar(litestar_listener_in_thread),
}


# Apps that read in another task than they handle in. What each does with a message comes in, so that the same app is to
# be had without `message_context`.

Handle = Callable[[Any, str], Awaitable[list[Any]]]


async def named(event: Any, text: str) -> list[Any]:
    async with message_context(event=event):
        return await answer(number_of(text))


async def named_by_payload(event: Any, text: str) -> list[Any]:
    async with message_context(payload=text):
        return await answer(number_of(text))


async def unnamed(event: Any, text: str) -> list[Any]:
    number = number_of(text)
    try:
        return [number, *{whose(), await asyncio.create_task(whose_soon()), (await current_resource(Desk)).whose}]
    except (ContextNotBoundError, ContextClosedError) as error:
        return failure(number, error)


def quart_app(handle: Handle) -> App:
    app = quart.Quart(__name__)

    @app.websocket("/")
    async def listen() -> None:
        while True:
            text = await quart.websocket.receive()
            await quart.websocket.send_json(await handle(None, text))

    return app


def channels(consumer: Any) -> App:
    return URLRouter([path("", consumer.as_asgi())])


def channels_text(handle: Handle) -> App:
    class Consumer(AsyncWebsocketConsumer):
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            assert text_data is not None
            await self.send(text_data=json.dumps(await handle(None, text_data)))

    return channels(Consumer)


def channels_json(handle: Handle) -> App:
    class Consumer(AsyncJsonWebsocketConsumer):
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None, **_: Any) -> None:
            self.text = text_data
            await super().receive(text_data, bytes_data)

        async def receive_json(self, content: Any, **_: Any) -> None:
            assert self.text is not None
            await self.send_json(await handle(None, self.text))

    return channels(Consumer)


def channels_sync() -> App:
    """A consumer that handles in a thread, where nothing can be awaited: its messages are named where it dispatches."""

    class Consumer(WebsocketConsumer):
        async def dispatch(self, message: Any) -> None:
            if message["type"] == "websocket.receive":
                async with message_context(event=message):
                    await super().dispatch(message)
            else:
                await super().dispatch(message)

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            assert text_data is not None
            self.send(text_data=json.dumps(answer_at_once(number_of(text_data))))

    return channels(Consumer)


def reader_and_workers(handle: Handle) -> App:
    async def endpoint(websocket: WebSocket) -> None:
        events: asyncio.Queue[Any] = asyncio.Queue()
        workers = 3

        async def read() -> None:
            while (event := await websocket.receive())["type"] == "websocket.receive":
                events.put_nowait(event)
            for _ in range(workers):
                events.put_nowait(None)

        async def work() -> None:
            while (event := await events.get()) is not None:
                await websocket.send_json(await handle(event, event["text"]))

        await websocket.accept()
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            for _ in range(workers):
                group.create_task(work())

    return starlette(endpoint)()


def task_per_message(handle: Handle) -> App:
    async def endpoint(websocket: WebSocket) -> None:
        async def reply(event: Any) -> None:
            await websocket.send_json(await handle(event, event["text"]))

        await websocket.accept()
        async with asyncio.TaskGroup() as group:
            while (event := await websocket.receive())["type"] == "websocket.receive":
                group.create_task(reply(event))

    return starlette(endpoint)()


def task_per_read(handle: Handle) -> App:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        while (event := await asyncio.create_task(websocket.receive()))["type"] == "websocket.receive":
            await websocket.send_json(await handle(event, event["text"]))

    return starlette(endpoint)()


def first_by_itself(handle: Handle) -> App:
    """Many a protocol has a first message of its own: it is read directly, and the rest in tasks."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        event = await websocket.receive()
        while event["type"] == "websocket.receive":
            await websocket.send_json(await handle(event, event["text"]))
            event = await asyncio.create_task(websocket.receive())

    return starlette(endpoint)()


def wait_for(handle: Handle) -> App:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            try:
                text = await asyncio.wait_for(websocket.receive_text(), 0.001)
            except TimeoutError:
                continue
            except WebSocketDisconnect:
                return
            await websocket.send_json(await handle(None, text))

    return starlette(endpoint)()


EXPLICIT: dict[str, Callable[[], App]] = {
    "quart": lambda: quart_app(named_by_payload),
    "channels-text": lambda: channels_text(named_by_payload),
    "channels-json": lambda: channels_json(named_by_payload),
    "channels-sync": channels_sync,
    "reader-and-workers": lambda: reader_and_workers(named),
    "task-per-message": lambda: task_per_message(named),
    "task-per-read": lambda: task_per_read(named),
    "first-by-itself": lambda: first_by_itself(named),
    "wait_for": lambda: wait_for(named_by_payload),
}
APPS = {**DIRECT, **EXPLICIT}
AT_ONCE = {DIRECT["litestar-listener-in-thread"], EXPLICIT["channels-sync"]}
"""Those that handle in a thread, where no desk can be awaited."""
every_app = pytest.mark.parametrize("app", APPS.values(), ids=APPS)


def exchange(connection: ClientConnection, texts: list[str]) -> list[Any]:
    """Send all at once, and return the answers by their numbers."""
    for text in texts:
        connection.send(text)
    return sorted((json.loads(connection.recv(PATIENCE)) for _ in texts), key=lambda answered: answered[0])


# Whose a message is


@every_app
def test_each_message_of_a_connection_is_for_whom_it_names(server: Stage, mount: Mount, app: Any) -> None:
    """Two connections at once, on which everybody sends: all messages are on their way before the first answer."""
    desks = mount(app(), message=NAMES)
    turns = range(3 * len(SENDERS))

    with client(server) as one, client(server) as two:
        senders = {one: [SENDERS[n % 4] for n in turns], two: [SENDERS[(3 * n + 1) % 4] for n in turns]}
        for n in turns:
            for connection in senders:
                connection.send(message(n, senders[connection][n]))
        for connection, expected in senders.items():
            answers = sorted(json.loads(connection.recv(PATIENCE)) for _ in turns)
            assert answers == [[n, list(sender)] for n, sender in enumerate(expected)]

    server.settle()
    assert (desks.made, desks.open) == (0 if app in AT_ONCE else 2 * len(turns), 0)


@every_app
def test_a_message_that_names_nobody_is_for_whom_the_connection_is(server: Stage, mount: Mount, app: Any) -> None:
    mount(app(), message=NAMES, **SOURCES)

    with client(server, **ANN) as connection:
        texts = [message(0), message(1, ("acme", "ann")), json.dumps({"tenant_id": "acme", "n": 2}), message(3)]
        assert exchange(connection, texts) == [[n, ["acme", "ann"]] for n in range(4)]


async def may_work_for_globex(context: Any, scope: Any) -> bool:
    await asyncio.sleep(0)
    return (context.tenant, context.user) in {("acme", "ann"), ("globex", "ann")}


@every_app
def test_a_message_for_another_tenant_is_for_that_one_alone_where_that_is_allowed(
    server: Stage, mount: Mount, app: Any
) -> None:
    mount(app(), message=NAMES, authorize=may_work_for_globex, **SOURCES)

    with client(server, **ANN) as connection:
        senders = [None, ("globex", "ann"), None, ("globex", "ann"), ("acme", "ann"), None]
        answers = exchange(connection, [message(n, sender) for n, sender in enumerate(senders)])
        assert answers == [[n, list(sender or ("acme", "ann"))] for n, sender in enumerate(senders)]
        assert told(connection, message(6, ("initech", "ann"))) == (1008, "message_mismatch")


def ending_starlette(end: Callable[[], None]) -> App:
    async def endpoint(websocket: WebSocket) -> None:
        await by_iter_text(websocket)
        end()

    return starlette(endpoint)()


def ending_endpoint(end: Callable[[], None]) -> App:
    class Endpoint(TextEndpoint):
        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            end()

    return starlette(Endpoint)()


def ending_litestar(end: Callable[[], None]) -> App:
    async def on_disconnect() -> None:
        end()

    @websocket_listener("/", on_disconnect=on_disconnect)
    async def listen(data: dict[str, Any]) -> list[Any]:
        return await answer(data["n"])

    return litestar(listen)()


@pytest.mark.parametrize("app", [ending_starlette, ending_endpoint, ending_litestar])
@pytest.mark.parametrize("connected", [True, False])
def test_what_an_app_does_once_the_client_has_gone_is_not_for_whom_the_last_message_was(
    server: Stage, mount: Mount, app: Any, connected: bool
) -> None:
    notes = []

    def end() -> None:
        context = current_context(None)
        notes.append(None if context is None else (context.tenant, context.user))

    sources = SOURCES if connected else {}
    mount(app(end), message=NAMES, authorize=may_work_for_globex, **sources)

    with client(server, **ANN) as connection:
        senders = [("acme", "ann"), ("globex", "ann")]
        assert exchange(connection, [message(n, senders[n]) for n in range(2)]) == [
            [n, list(senders[n])] for n in range(2)
        ]
    server.settle()
    assert notes == [("acme", "ann") if connected else None]


# Without message_context

OUT_OF_SIGHT: dict[str, Callable[[Handle], App]] = {
    "quart": quart_app,
    "channels-text": channels_text,
    "channels-json": channels_json,
    "reader-and-workers": reader_and_workers,
    "task-per-read": task_per_read,
}


@pytest.mark.parametrize("app", OUT_OF_SIGHT.values(), ids=OUT_OF_SIGHT)
def test_where_another_task_has_read_a_message_it_is_nobodys_without_message_context(
    server: Stage, mount: Mount, app: Any
) -> None:
    mount(app(unnamed), message=NAMES)

    with client(server) as connection:
        answers = exchange(connection, [message(n, SENDERS[n % 4]) for n in range(8)])

    assert answers == [[n, "ContextNotBoundError", None] for n in range(8)]


@pytest.mark.parametrize("app", OUT_OF_SIGHT.values(), ids=OUT_OF_SIGHT)
def test_once_a_message_was_for_somebody_else_what_the_connection_is_for_is_void_without_message_context(
    server: Stage, mount: Mount, app: Any
) -> None:
    mount(app(unnamed), message=NAMES, authorize=may_work_for_globex, **SOURCES)

    with client(server, **ANN) as connection:
        assert exchange(connection, [message(0), message(1, ("acme", "ann"))]) == [
            [n, ["acme", "ann"]] for n in range(2)
        ]
        answers = exchange(connection, [message(2, ("globex", "ann")), message(3), message(4, ("acme", "ann"))])

    assert answers == [[n, "ContextClosedError", "messages"] for n in (2, 3, 4)]


@pytest.mark.parametrize("app", OUT_OF_SIGHT.values(), ids=OUT_OF_SIGHT)
@pytest.mark.parametrize("authorize", [None, may_work_for_globex], ids=["", "authorized"])
def test_after_message_context_it_is_nobodys_again(server: Stage, mount: Mount, app: Any, authorize: Any) -> None:
    async def handle(event: Any, text: str) -> list[Any]:
        return [*await named_by_payload(event, text), *await unnamed(event, text)]

    mount(app(handle), message=NAMES, authorize=authorize)

    with client(server) as connection:
        answers = exchange(connection, [message(n, ("globex", "ann")) for n in range(4)])

    assert answers == [[n, ["globex", "ann"], n, "ContextNotBoundError", None] for n in range(4)]


def test_what_was_bound_for_a_first_message_is_void_once_another_task_reads(server: Stage, mount: Mount) -> None:
    mount(first_by_itself(unnamed), message=NAMES)

    with client(server) as connection:
        assert exchange(connection, [message(0, SENDERS[0])]) == [[0, list(SENDERS[0])]]
        answers = exchange(connection, [message(n, SENDERS[n]) for n in (1, 2, 3)])

    assert answers == [[n, "ContextClosedError", "messages"] for n in (1, 2, 3)]


def test_what_was_bound_for_a_message_is_void_as_soon_as_another_task_reads_on(server: Stage, mount: Mount) -> None:
    """Before there is a next message: what reads ahead is about to hand one to whoever handles this one."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        event = await websocket.receive()
        first = await unnamed(event, event["text"])
        ahead = asyncio.create_task(websocket.receive())
        await asyncio.sleep(0)
        await websocket.send_json([first, await unnamed(event, event["text"])])
        await ahead

    mount(starlette(endpoint)(), message=NAMES)

    with client(server) as connection:
        connection.send(message(0, SENDERS[0]))
        assert json.loads(connection.recv(PATIENCE)) == [[0, list(SENDERS[0])], [0, "ContextClosedError", "messages"]]


def test_where_two_tasks_read_nothing_is_bound_by_itself(server: Stage, mount: Mount) -> None:
    async def endpoint(websocket: WebSocket) -> None:
        answered = asyncio.Event()

        async def read(which: str) -> None:
            while (event := await websocket.receive())["type"] == "websocket.receive":
                await websocket.send_json([which, await unnamed(event, event["text"])])
                answered.set()

        await websocket.accept()
        one = asyncio.create_task(read("one"))
        await answered.wait()
        two = asyncio.create_task(read("two"))
        await asyncio.wait({one, two}, return_when=asyncio.FIRST_COMPLETED)
        one.cancel()
        two.cancel()
        await asyncio.wait({one, two})

    mount(starlette(endpoint)(), message=NAMES)
    seen = {}

    with client(server) as connection:
        for n in range(8):
            connection.send(message(n, SENDERS[n % 4]))
            which, answered = json.loads(connection.recv(PATIENCE))
            seen.setdefault(which, []).append(answered)

    assert seen["one"].pop(0) == [0, list(SENDERS[0])]
    for answers in (seen["one"], seen["two"]):
        assert {tuple(answered[1:]) for answered in answers} == {("ContextNotBoundError", None)}


def test_a_read_by_wait_for_binds_from_python_3_12_on_and_is_nobodys_before(server: Stage, mount: Mount) -> None:
    """There it runs the read in a task of its own."""
    mount(wait_for(unnamed), message=NAMES)
    sent = [(n, SENDERS[n % 4]) for n in range(8)]

    with client(server) as connection:
        answers = exchange(connection, [message(n, sender) for n, sender in sent])

    if sys.version_info >= (3, 12):
        assert answers == [[n, list(sender)] for n, sender in sent]
    else:
        assert answers == [[n, "ContextNotBoundError", None] for n, _ in sent]


def test_a_task_that_handles_a_message_keeps_its_identity_and_loses_its_values_to_the_next_read(
    server: Stage, mount: Mount
) -> None:
    count = 8

    async def endpoint(websocket: WebSocket) -> None:
        all_read = asyncio.Event()

        async def reply(number: int) -> None:
            await all_read.wait()
            with pytest.raises(ContextClosedError):
                get_from_context("n")
            with pytest.raises(ContextClosedError):
                await current_resource(Desk)
            await websocket.send_json([number, whose(), await asyncio.to_thread(whose)])

        await websocket.accept()
        async with asyncio.TaskGroup() as group:
            async for data in websocket.iter_json():
                update_request_context(n=data["n"])
                group.create_task(reply(data["n"]))
                if data["n"] == count:  # the last, which is nobody's answer
                    all_read.set()
                    break
            assert (await websocket.receive())["type"] == "websocket.disconnect"

    mount(starlette(endpoint)(), message=NAMES)
    with client(server) as connection:
        connection.send(message(0, SENDERS[0]))
        for n in range(1, count):
            connection.send(message(n, SENDERS[n % 4]))
        connection.send(message(count, SENDERS[0]))
        answers = sorted(json.loads(connection.recv(PATIENCE)) for _ in range(count + 1))

    assert answers == [[n, list(SENDERS[n % 4]), list(SENDERS[n % 4])] for n in range(count + 1)]


# Reads that are cancelled


class Slow:
    """An extractor that has begun to look at a message, and ends once it may."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()

    async def __call__(self, event: Any) -> Identity | None:
        self.begun.set()
        await asyncio.wait_for(self.gate.wait(), PATIENCE)
        return NAMES(event)


async def by_wait_for(websocket: WebSocket) -> str:
    return await asyncio.wait_for(websocket.receive_text(), 0.01)


async def by_timeout(websocket: WebSocket) -> str:
    async with asyncio.timeout(0.01):
        return await websocket.receive_text()


async def by_fail_after(websocket: WebSocket) -> str:
    with anyio.fail_after(0.01):
        return await websocket.receive_text()


@pytest.mark.parametrize("read", [by_wait_for, by_timeout, by_fail_after])
def test_no_message_is_lost_to_reads_that_are_cancelled_while_it_is_examined(
    server: Stage, mount: Mount, read: Any
) -> None:
    slow = Slow()

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        cancelled = 0
        while True:
            try:
                text = await read(websocket)
            except TimeoutError:
                cancelled += slow.begun.is_set()
                if cancelled == 3:
                    slow.gate.set()
                continue
            except WebSocketDisconnect:
                return
            await websocket.send_json([cancelled >= 3, *await named_by_payload(None, text)])

    mount(starlette(endpoint)(), message=slow)
    with client(server) as connection:
        for n in range(4):
            connection.send(message(n, SENDERS[n]))
        answers = [json.loads(connection.recv(PATIENCE)) for _ in range(4)]

    assert answers == [[True, n, list(SENDERS[n])] for n in range(4)]


# Many at once


async def direct_or_in_tasks(websocket: WebSocket) -> None:
    """Every second connection handles where it reads, the others each message in a task of its own."""
    await websocket.accept()
    async with asyncio.TaskGroup() as group:
        in_tasks = websocket.query_params["way"] == "tasks"

        async def reply(text: str) -> None:
            number = number_of(text)
            if get_from_context("n") is not None:
                await websocket.send_json([number, "the values of another message"])
                return
            update_request_context(n=number)
            before = whose()
            for _ in range(number % 3):
                await asyncio.sleep(0)
            await websocket.send_json([number, before, whose(), get_from_context("n")])

        async def reply_in_task(text: str) -> None:
            async with message_context(payload=text):
                await reply(text)

        async for text in websocket.iter_text():
            if in_tasks:
                group.create_task(reply_in_task(text))
            else:
                await reply(text)


def test_ten_thousand_messages_of_200_tenants_on_100_connections_are_all_for_whom_they_name() -> None:
    tenants, connections, each = 200, 100, 100
    rng = random.Random(20)
    meeting = asyncio.Barrier(connections)

    async def talk(port: int, connection: int) -> list[Any]:
        way = "tasks" if connection % 2 else "direct"
        names = [rng.randrange(tenants) for _ in range(each)]
        expected = [[n, *[[f"tenant-{name}", f"user-{connection}-{n}"]] * 2, n] for n, name in enumerate(names)]
        async with connect_async(
            f"ws://127.0.0.1:{port}/?way={way}", proxy=None, compression=None, open_timeout=PATIENCE
        ) as websocket:
            await meeting.wait()  # all are open
            for n, name in enumerate(names):
                await websocket.send(message(n, (f"tenant-{name}", f"user-{connection}-{n}")))
            answers = [json.loads(await websocket.recv()) for _ in range(each)]
        return [pair for pair in zip(sorted(answers), expected, strict=True) if pair[0] != pair[1]]

    async def talk_all(port: int) -> list[list[Any]]:
        async with asyncio.timeout(4 * PATIENCE):
            return await asyncio.gather(*(talk(port, connection) for connection in range(connections)))

    stage = Stage()
    stage.put_on(ContextMiddleware(starlette(direct_or_in_tasks)(), message=NAMES))
    with serving(UvicornHttptoolsUvloop, stage) as server:
        wrong = asyncio.run(talk_all(server.port))
        stage.settle()

    assert [pair for pairs in wrong for pair in pairs] == []
    assert len(wrong) * each == 10_000


# Messages that are refused, and identities that expire: what the app sees


async def note_end(websocket: WebSocket, notes: Any, read: Any = WebSocket.receive_text) -> None:
    """Read until there is a disconnect, and then try to send."""
    await websocket.accept()
    try:
        while True:
            notes.put(await read(websocket))
    except WebSocketDisconnect as disconnect:
        notes.put((disconnect.code, disconnect.reason))
    with pytest.raises((WebSocketDisconnect, OSError)):
        await websocket.send_text("more")
    notes.put("end")


async def read_patiently(websocket: WebSocket) -> str:
    return await asyncio.wait_for(websocket.receive_text(), PATIENCE)


async def read_in_scope(websocket: WebSocket) -> str:
    with anyio.fail_after(PATIENCE):
        return await websocket.receive_text()


async def read_in_task(websocket: WebSocket) -> str:
    return await asyncio.create_task(websocket.receive_text())


def noting_starlette(notes: Any, read: Any = WebSocket.receive_text) -> App:
    async def endpoint(websocket: WebSocket) -> None:
        await note_end(websocket, notes, read)

    return starlette(endpoint)()


def noting_fastapi(notes: Any) -> App:
    app = FastAPI()

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await note_end(websocket, notes)

    return app


def noting_litestar(notes: Any) -> App:
    @litestar_websocket("/")
    async def handler(socket: LitestarWebSocket) -> None:
        await socket.accept()
        with pytest.raises(LitestarDisconnect) as disconnect:
            while True:
                notes.put(await socket.receive_text())
        notes.put((disconnect.value.code, None))
        notes.put("end")

    return litestar(handler)()


def noting_litestar_listener(notes: Any) -> App:
    @websocket_listener("/", on_disconnect=lambda: notes.put("end"))
    async def listen(data: str) -> None:
        notes.put(data)

    return litestar(listen)()


def noting_quart(notes: Any) -> App:
    app = quart.Quart(__name__)

    @app.websocket("/")
    async def listen() -> None:
        await quart.websocket.accept()
        try:
            while True:
                notes.put(await quart.websocket.receive())
        except asyncio.CancelledError:
            notes.put("cancelled")
            raise
        finally:
            notes.put("end")

    return app


def noting_channels(notes: Any) -> App:
    class Consumer(AsyncWebsocketConsumer):
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            notes.put(text_data)

        async def disconnect(self, code: int) -> None:
            notes.put((code, None))
            notes.put("end")

    return channels(Consumer)


NOTING: dict[str, tuple[Callable[[Any], App], Callable[[int, str], list[Any]]]] = {
    "starlette": (noting_starlette, lambda code, reason: [(code, reason)]),
    "fastapi": (noting_fastapi, lambda code, reason: [(code, reason)]),
    "litestar": (noting_litestar, lambda code, reason: [(code, None)]),
    "litestar-listener": (noting_litestar_listener, lambda code, reason: []),
    "quart": (noting_quart, lambda code, reason: ["cancelled"]),
    "channels": (noting_channels, lambda code, reason: [(code, None)]),
    "wait_for": (lambda notes: noting_starlette(notes, read_patiently), lambda code, reason: [(code, reason)]),
    "anyio": (lambda notes: noting_starlette(notes, read_in_scope), lambda code, reason: [(code, reason)]),
    "task": (lambda notes: noting_starlette(notes, read_in_task), lambda code, reason: [(code, reason)]),
}


def noted(notes: Any) -> list[Any]:
    found = []
    while (note := notes.get(timeout=PATIENCE)) != "end":
        found.append(note)
    return found


GOOD = message(0, ("acme", "ann"))
BAD: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("{", "message_invalid"),
    "empty": ("", "message_invalid"),
    "no object": ("[]", "message_invalid"),
    "nested without end": ("[" * 1000, "message_invalid"),
    "repeated member": ('{"tenant_id": "globex", "tenant_id": "acme", "user_id": "ann"}', "message_invalid"),
    "NaN": ('{"tenant_id": "acme", "user_id": "ann", "n": NaN}', "message_invalid"),
    "no UTF-8": (b'{"tenant_id": "acme", "user_id": "\xff"}', "message_invalid"),
    "too long": ('{"tenant_id": "acme", "user_id": "ann", "x": "' + "x" * 1024 + '"}', "message_too_large"),
    "too long in bytes": (
        '{"tenant_id": "acme", "user_id": "ann", "x": "' + "\u20ac" * 342 + '"}',
        "message_too_large",
    ),
    "no tenant": ('{"user_id": "ann"}', "tenant_missing"),
    "no user": ('{"tenant_id": "acme"}', "user_missing"),
    "a tenant that is no string": ('{"tenant_id": 1, "user_id": "ann"}', "tenant_invalid"),
    "a tenant that is no identifier": ('{"tenant_id": "a b", "user_id": "ann"}', "tenant_invalid"),
    "a user that is no identifier": ('{"tenant_id": "acme", "user_id": ""}', "user_invalid"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_closes_with_1008_and_its_code_and_never_reaches_the_app(
    server: Stage, mount: Mount, name: str
) -> None:
    bad, code = BAD[name]
    notes: queue.Queue[Any] = queue.Queue()
    mount(noting_starlette(notes), message=NAMES)

    with client(server) as connection:
        assert told(connection, GOOD, bad, GOOD) == (1008, code)
    assert noted(notes) == [GOOD, (1008, code)]


@pytest.mark.parametrize("name", NOTING)
def test_every_framework_sees_a_disconnect_after_a_bad_message(server: Stage, mount: Mount, name: str) -> None:
    app, expected = NOTING[name]
    notes: queue.Queue[Any] = queue.Queue()
    mount(app(notes), message=NAMES)

    with client(server) as connection:
        assert told(connection, GOOD, "{", GOOD) == (1008, "message_invalid")
    assert [note for note in noted(notes) if note != GOOD] == expected(1008, "message_invalid")


MISMATCHED = {
    "another tenant": message(1, ("globex", "ann")),
    "another user": message(1, ("acme", "bob")),
    "another tenant without a user": '{"tenant_id": "globex"}',
    "another user without a tenant": '{"user_id": "bob"}',
}


@pytest.mark.parametrize("name", MISMATCHED)
def test_a_message_that_contradicts_its_connection_closes_with_1008(server: Stage, mount: Mount, name: str) -> None:
    notes: queue.Queue[Any] = queue.Queue()
    mount(noting_starlette(notes), message=NAMES, **SOURCES)

    with client(server, **ANN) as connection:
        assert told(connection, MISMATCHED[name]) == (1008, "message_mismatch")
    assert noted(notes) == [(1008, "message_mismatch")]


def test_a_message_of_whom_authorize_does_not_let_in_closes_with_1008(server: Stage, mount: Mount) -> None:
    notes: queue.Queue[Any] = queue.Queue()
    mount(noting_starlette(notes), message=NAMES, authorize=may_work_for_globex)

    with client(server) as connection:
        assert told(connection, GOOD, message(1, ("initech", "ann"))) == (1008, "tenant_forbidden")
    assert noted(notes) == [GOOD, (1008, "tenant_forbidden")]


def test_an_extractor_that_crashes_closes_with_1011_and_is_logged(
    server: Stage, mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    notes: queue.Queue[Any] = queue.Queue()

    async def extract(event: Any) -> Identity:
        raise ArithmeticError("of the app")

    mount(noting_starlette(notes), message=extract)

    with client(server) as connection:
        assert told(connection, GOOD) == (1011, "internal_error")
    assert noted(notes) == [(1011, "internal_error")]
    server.settle()
    assert [record.getMessage() for record in caplog.records if record.name == "asgi_context"]


# Expiry

LIFETIME = 0.5
"""Seconds that an identity lasts from the moment it is extracted: long enough for the app to accept."""


def soon_over(scope: Any) -> Identity:
    return Identity("acme", "ann", expires_at=time.time() + LIFETIME)


def noting_sender(notes: Any) -> App:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        with pytest.raises(WebSocketDisconnect):
            while True:
                await websocket.send_text("tick")
                await asyncio.sleep(0.01)
        event = await websocket.receive()
        notes.put((event["code"], event["reason"]))
        notes.put("end")

    return starlette(endpoint)()


def noting_quart_sender(notes: Any) -> App:
    app = quart.Quart(__name__)

    @app.websocket("/")
    async def send() -> None:
        try:
            while True:
                await quart.websocket.send("tick")
                await asyncio.sleep(0.01)
        finally:
            notes.put("end")

    return app


def noting_litestar_sender(notes: Any) -> App:
    """It watches for a disconnect in a task of its own."""

    @websocket_stream("/")
    async def stream() -> AsyncGenerator[str, None]:
        while True:
            yield "tick"
            await asyncio.sleep(0.01)

    app = litestar(stream)()

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        finally:
            notes.put("end")

    return noting


def noting_occupied(notes: Any, gate: Gate) -> App:
    """An app that neither reads nor sends when the identity expires."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await gate.wait()
        with pytest.raises(WebSocketDisconnect) as disconnect:
            await websocket.receive_text()
        notes.put((disconnect.value.code, disconnect.value.reason))
        notes.put("end")

    return starlette(endpoint)()


@pytest.mark.parametrize("options", [{}, {"message": NAMES}], ids=["connection", "messages"])
def test_when_an_identity_expires_the_client_sees_4401_and_every_app_a_disconnect(
    server: Stage, mount: Mount, options: dict[str, Any]
) -> None:
    """All at once, since it takes its time: apps that wait for a message, that only send, or do neither."""
    notes: dict[str, queue.Queue[Any]] = {}
    apps: dict[str, App] = {}
    expected: dict[str, list[Any]] = {}
    gate = Gate()

    def add(name: str, make: Callable[..., App], ends: list[Any], *arguments: Any) -> None:
        notes[name] = queue.Queue()
        apps[f"/{name}"] = make(notes[name], *arguments)
        expected[name] = ends

    for name, (make, ends) in NOTING.items():
        add(name, make, ends(4401, "identity_expired"))
    add("sender", noting_sender, [(4401, "identity_expired")])
    add("quart-sender", noting_quart_sender, [])
    add("litestar-sender", noting_litestar_sender, [])
    add("occupied", noting_occupied, [(4401, "identity_expired")], gate)

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        await apps[scope["path"]]({**scope, "path": "/"}, receive, send)

    mount(dispatch, identity=soon_over, **options)
    with ExitStack() as stack:
        connections = {name: stack.enter_context(client(server, f"/{name}")) for name in notes}
        assert {name: told(connection) for name, connection in connections.items()} == dict.fromkeys(
            notes, (4401, "identity_expired")
        )
        gate.open()
        assert {name: noted(queue) for name, queue in notes.items()} == expected


def test_messages_are_handled_until_the_identity_expires(server: Stage, mount: Mount) -> None:
    mount(starlette(by_iter_text)(), identity=soon_over, message=NAMES)
    answered = 0

    with client(server) as connection, pytest.raises(ConnectionClosed) as closed:
        while True:
            connection.send(message(answered))
            assert json.loads(connection.recv(PATIENCE)) == [answered, ["acme", "ann"]]
            answered += 1

    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "identity_expired")
    assert answered


def test_an_identity_that_has_expired_gets_no_connection(server: Stage, mount: Mount) -> None:
    mount(noting_starlette(None), identity=lambda scope: Identity("acme", expires_at=time.time() - 1))

    with pytest.raises(InvalidStatus) as refused, client(server):
        pass

    response = refused.value.response
    assert (response.status_code, json.loads(response.body)["code"]) == (401, "identity_expired")


# Clients that leave while a resource is made or closed


class Vault:
    """Makes one resource, and stops where a client is to leave."""

    def __init__(self, stop_at: str) -> None:
        self.stop_at = stop_at
        self.gate = Gate()
        self.cancelled = threading.Event()
        """Whoever uses it was cancelled."""
        self.closed = threading.Event()
        self.open = 0
        self.desk: Callable[[], Any] = lambda: None

    @asynccontextmanager
    async def make(self, context: Any) -> AsyncIterator[Desk]:
        self.open += 1
        try:
            if self.stop_at == "made":
                await self.gate.wait()
            desk = Desk((context.tenant, context.user))
            self.desk = weakref.ref(desk)
            yield desk
        finally:
            if self.stop_at == "closed":
                await self.gate.wait()
            await asyncio.sleep(0)
            self.open -= 1
            self.closed.set()

    async def use(self) -> None:
        """Use it in a block of its own, at whose end it is closed."""
        try:
            async with bind_context():
                await current_resource(Desk)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def streaming_by_starlette(vault: Vault) -> App:
    async def stream() -> AsyncIterator[bytes]:
        yield b"begun"
        await vault.use()

    return Starlette(routes=[Route("/", lambda _: StreamingResponse(stream()))])


def answering_by_starlette(vault: Vault) -> App:
    async def endpoint(_: Any) -> JSONResponse:
        await current_resource(Desk)
        return JSONResponse(None)

    return Starlette(routes=[Route("/", endpoint)])


def answering_by_quart(vault: Vault) -> App:
    app = quart.Quart(__name__)

    @app.get("/")
    async def endpoint() -> str:
        await vault.use()
        return "done"

    return app


def messages_of_quart(vault: Vault) -> App:
    app = quart.Quart(__name__)

    @app.websocket("/")
    async def listen() -> None:
        while True:
            text = await quart.websocket.receive()
            try:
                async with message_context(payload=text):
                    await current_resource(Desk)
            except asyncio.CancelledError:
                vault.cancelled.set()
                raise

    return app


def messages_of_channels(vault: Vault) -> App:
    class Consumer(AsyncWebsocketConsumer):
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            async with message_context(payload=text_data):
                await current_resource(Desk)

    return channels(Consumer)


def messages_of_starlette(vault: Vault) -> App:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        async for _ in websocket.iter_text():
            await current_resource(Desk)

    return starlette(endpoint)()


def messages_in_an_anyio_task_group(vault: Vault) -> App:
    """A task handles, and is cancelled once the client has gone."""

    async def endpoint(websocket: WebSocket) -> None:
        async def handle(text: str) -> None:
            try:
                async with message_context(payload=text):
                    await current_resource(Desk)
            except asyncio.CancelledError:
                vault.cancelled.set()
                raise

        await websocket.accept()
        async with anyio.create_task_group() as group:
            async for text in websocket.iter_text():
                group.start_soon(handle, text)
            group.cancel_scope.cancel()

    return starlette(endpoint)()


HTTP = {
    "starlette": (answering_by_starlette, False),
    "starlette-stream": (streaming_by_starlette, True),
    "quart": (answering_by_quart, True),
}
MESSAGES = {
    "starlette": (messages_of_starlette, False),
    "anyio": (messages_in_an_anyio_task_group, True),
    "quart": (messages_of_quart, True),
    "channels": (messages_of_channels, False),
}


@pytest.fixture(params=["made", "closed"])
def vault(request: pytest.FixtureRequest) -> Vault:
    return Vault(request.param)


def assert_nothing_left(server: Stage, vault: Vault, middleware: ContextMiddleware, *, cancels: bool) -> None:
    """The client has gone, and the resource is still being made or closed."""
    if cancels:
        assert vault.cancelled.wait(PATIENCE)
    vault.gate.open()
    assert vault.closed.wait(PATIENCE)
    server.settle()
    assert vault.cancelled.is_set() == cancels
    assert vault.open == 0
    server.run(middleware.close())  # which would wait for what is left
    if vault.desk() is not None:  # it is in a ring, perhaps
        gc.collect()
    assert vault.desk() is None


@every_app
def test_clients_that_are_gone_amid_their_messages_leave_nothing_open(server: Stage, mount: Mount, app: Any) -> None:
    desks = mount(app(), message=NAMES)

    for answers in (0, 1, 3):
        with client(server) as connection:
            for n in range(4):
                connection.send(message(n, SENDERS[n]))
            for _ in range(answers):
                connection.recv(PATIENCE)
            connection.socket.shutdown(socket.SHUT_RDWR)

    server.settle()
    assert desks.made > 0 or app in AT_ONCE


@pytest.mark.parametrize("name", HTTP)
def test_a_client_that_leaves_while_a_resource_of_its_request_is_made_or_closed_leaves_nothing(
    server: Stage, vault: Vault, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, cancels = HTTP[name]
    middleware = ContextMiddleware(app(vault), resources={Desk: vault.make}, **SOURCES)
    server.put_on(middleware)

    with server.connect() as wire:
        wire.send(request(b"x-tenant-id: acme", b"x-user-id: ann"))
        assert vault.gate.reached.wait(PATIENCE)

    assert_nothing_left(server, vault, middleware, cancels=cancels)
    assert [record for record in caplog.records if record.name == "asgi_context"] == []


@pytest.mark.parametrize("abruptly", [False, True], ids=["by a close", "abruptly"])
@pytest.mark.parametrize("name", MESSAGES)
def test_a_client_that_leaves_while_a_resource_of_its_message_is_made_or_closed_leaves_nothing(
    server: Stage, vault: Vault, name: str, abruptly: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app, cancels = MESSAGES[name]
    middleware = ContextMiddleware(app(vault), message=NAMES, resources={Desk: vault.make})
    server.put_on(middleware)

    with client(server) as connection:
        connection.send(GOOD)
        assert vault.gate.reached.wait(PATIENCE)
        if abruptly:
            connection.socket.shutdown(socket.SHUT_RDWR)

    assert_nothing_left(server, vault, middleware, cancels=cancels)
    assert [record for record in caplog.records if record.name == "asgi_context"] == []


@pytest.mark.parametrize("kind", SERVERS.values(), ids=SERVERS)
def test_a_server_that_ends_lets_resources_be_closed(kind: type[ServerThread]) -> None:
    stopping = threading.Event()
    closed = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        stopping.set()

    @asynccontextmanager
    async def make(context: Any) -> AsyncIterator[Desk]:
        yield Desk((context.tenant, context.user))
        await asyncio.to_thread(stopping.wait, PATIENCE)
        await asyncio.to_thread(int)
        closed.append(whose())

    async def endpoint(_: Any) -> JSONResponse:
        with bind_context():  # which does not wait for what waits
            await current_resource(Desk)
        return JSONResponse("done")

    app = Starlette(routes=[Route("/", endpoint)], lifespan=lifespan)
    with serving(kind, ContextMiddleware(app, resources={Desk: make}, **SOURCES), lifespan=True) as server:
        assert server.started, server.failure
        with Wire(server.port) as wire:
            assert wire.ask(request(b"x-tenant-id: acme", b"x-user-id: ann")).json() == "done"
        assert closed == []
        server.stop()

        assert closed == [("acme", "ann")]


# Blocking tools


def tools_of_starlette(tool: Callable[[], Any]) -> App:
    async def use(_: Any) -> JSONResponse:
        return JSONResponse(await run_in_pool("tool", tool))

    async def health(_: Any) -> JSONResponse:
        return JSONResponse("up")

    return Starlette(routes=[Route("/tool", use), Route("/health", health)])


def tools_of_fastapi(tool: Callable[[], Any]) -> App:
    app = FastAPI()

    @app.get("/tool")
    async def use() -> Any:
        return await run_in_pool("tool", tool)

    @app.get("/health")
    async def health() -> str:
        return "up"

    return app


def tools_of_quart(tool: Callable[[], Any]) -> App:
    app = quart.Quart(__name__)

    @app.get("/tool")
    async def use() -> Any:
        return quart.jsonify(await run_in_pool("tool", tool))

    @app.get("/health")
    async def health() -> Any:
        return quart.jsonify("up")

    return app


TOOLS = {"starlette": tools_of_starlette, "fastapi": tools_of_fastapi, "quart": tools_of_quart}


@pytest.mark.parametrize("name", TOOLS)
def test_blocking_tools_run_side_by_side_in_their_pool_for_whom_they_were_asked(server: Stage, name: str) -> None:
    """And the event loop goes on meanwhile."""
    count = 8
    meeting = threading.Barrier(count + 1)

    def tool() -> Any:
        meeting.wait(PATIENCE)
        return [*whose(), threading.current_thread().name.startswith("asgi_context-tool_")]

    middleware = ContextMiddleware(TOOLS[name](tool), pools={"tool": count}, missing="unbound", **SOURCES)
    server.put_on(middleware)
    with ExitStack() as stack:
        wires = [stack.enter_context(server.connect()) for _ in range(count)]
        for number, wire in enumerate(wires):
            wire.send(request(b"x-tenant-id: tenant-%d" % number, b"x-user-id: ann", target=b"/tool"))
        with server.connect() as other:
            assert other.ask(request(target=b"/health")).json() == "up"
        meeting.wait(PATIENCE)
        answers = [wire.response().json() for wire in wires]

    assert answers == [[f"tenant-{number}", "ann", True] for number in range(count)]
    server.settle()
    server.run(middleware.close())


def shutting_down_starlette(start: Any, stopping: threading.Event) -> App:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        stopping.set()

    async def endpoint(_: Any) -> JSONResponse:
        start()
        return JSONResponse("started")

    return Starlette(routes=[Route("/", endpoint)], lifespan=lifespan)


def shutting_down_fastapi(start: Any, stopping: threading.Event) -> App:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        stopping.set()

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def endpoint() -> str:
        start()
        return "started"

    return app


def shutting_down_quart(start: Any, stopping: threading.Event) -> App:
    app = quart.Quart(__name__)

    @app.after_serving
    async def stop() -> None:
        stopping.set()

    @app.get("/")
    async def endpoint() -> Any:
        start()
        return quart.jsonify("started")

    return app


SHUTTING_DOWN = {
    "starlette": shutting_down_starlette,
    "fastapi": shutting_down_fastapi,
    "quart": shutting_down_quart,
}


@pytest.mark.parametrize("name", SHUTTING_DOWN)
@pytest.mark.parametrize("kind", SERVERS.values(), ids=SERVERS)
def test_a_server_that_ends_lets_a_job_finish_that_needs_its_event_loop(kind: type[ServerThread], name: str) -> None:
    stopping = threading.Event()
    tasks = []
    results = []

    async def pool_is_closing() -> None:
        while not middleware._services.pools["tool"]._closed:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)

    def job(loop: asyncio.AbstractEventLoop) -> list[Any]:
        assert stopping.wait(PATIENCE)
        asyncio.run_coroutine_threadsafe(pool_is_closing(), loop).result(PATIENCE)
        return [asyncio.run_coroutine_threadsafe(whose_soon(), loop).result(PATIENCE) for _ in range(3)]

    async def work() -> None:
        results.append(await run_in_pool("tool", job, asyncio.get_running_loop()))

    app = SHUTTING_DOWN[name](lambda: tasks.append(asyncio.create_task(work())), stopping)
    middleware = ContextMiddleware(app, pools={"tool": 1}, **SOURCES)
    stage = Stage()
    stage.put_on(middleware)
    with serving(kind, stage, lifespan=True) as server:
        assert server.started, server.failure
        with Wire(server.port) as wire:
            assert wire.ask(request(b"x-tenant-id: acme", b"x-user-id: ann")).json() == "started"
        server.stop()

        assert results == [[("acme", "ann")] * 3]
    stage.settle()
