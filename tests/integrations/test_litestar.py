"""Litestar, mounted in both ways: all that it calls knows on whose behalf it runs."""

import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from litestar import Litestar, Request, Response, WebSocket, get, websocket, websocket_listener
from litestar.background_tasks import BackgroundTask, BackgroundTasks
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.response import Stream
from who_asks import (
    ANN,
    BOB,
    OTHER,
    SOURCES,
    WHOLE,
    async_dependency,
    async_yielding,
    sync_dependency,
    sync_yielding,
    whose,
)

from asgi_context import (
    ContextMiddleware,
    Identity,
    MemoryStore,
    bind_context,
    current_context,
    current_state,
    json_message,
)
from asgi_context.values import get_from_context, update_request_context

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would rather have httpx2, and warns where there is httpx alone
    from starlette.testclient import TestClient, WebSocketDenialResponse

pytestmark = pytest.mark.matrix("Litestar", "litestar")


def litestar(handlers: list[Any], **options: Any) -> Any:
    return Litestar(handlers, openapi_config=None, logging_config=None, **options)


def listed(handlers: list[Any], options: Any = SOURCES, **rest: Any) -> Any:
    return litestar(handlers, middleware=[DefineMiddleware(ContextMiddleware, **options)], **rest)


def wrapped(handlers: list[Any], options: Any = SOURCES, **rest: Any) -> Any:
    return ContextMiddleware(litestar(handlers, **rest), **options)


every_mount = pytest.mark.parametrize("mount", [listed, wrapped])


@get("/")
async def in_task() -> Any:
    return whose()


@get("/", sync_to_thread=True)
def in_thread() -> Any:
    return whose()


@get("/", sync_to_thread=False)
def on_the_loop() -> Any:
    return whose()


@every_mount
@pytest.mark.parametrize("handler", [in_task, in_thread, on_the_loop], ids=["async", "thread", "sync"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_handlers_know_whose_request_it_is(mount: Any, handler: Any, backend: Any) -> None:
    client = TestClient(mount([handler]), backend=backend)
    assert [client.get("/", headers=headers).json() for headers in (ANN, BOB, ANN)] == [WHOLE, OTHER, WHOLE]


DEPENDENCIES = {
    "thread": Provide(sync_dependency, sync_to_thread=True),
    "sync": Provide(sync_dependency, sync_to_thread=False),
    "async": Provide(async_dependency),
    "yielding": Provide(sync_yielding),
    "async yielding": Provide(async_yielding),
}


@every_mount
@pytest.mark.parametrize("kind", DEPENDENCIES)
@pytest.mark.parametrize("threaded", [True, False])
def test_dependencies_know_it(mount: Any, kind: str, threaded: bool) -> None:
    @get("/", sync_to_thread=threaded)
    def handler(found: NamedDependency[Any]) -> Any:
        return [found, whose()]

    client = TestClient(mount([handler], dependencies={"found": DEPENDENCIES[kind]}))
    assert client.get("/", headers=ANN).json() == [WHOLE, WHOLE]
    assert client.get("/", headers=BOB).json() == [OTHER, OTHER]


@every_mount
def test_background_tasks_know_whose_they_are_and_have_the_requests_values(mount: Any) -> None:
    notes: list[Any] = []

    def note(name: str) -> None:
        notes.append([name, whose(), get_from_context("colour")])

    async def note_async(name: str) -> None:
        note(name)

    @get("/")
    async def one() -> Response[None]:
        update_request_context(colour="green")
        return Response(None, background=BackgroundTask(note_async, "one"))

    @get("/two")
    async def two() -> Response[None]:
        update_request_context(colour="red")
        return Response(None, background=BackgroundTasks([BackgroundTask(note, "a"), BackgroundTask(note_async, "b")]))

    client = TestClient(mount([one, two]))
    client.get("/", headers=ANN)
    client.get("/two", headers=BOB)
    assert notes == [["one", WHOLE, "green"], ["a", OTHER, "red"], ["b", OTHER, "red"]]


async def stream_async() -> AsyncIterator[str]:
    for _ in range(3):
        yield f"{whose()} "


def stream_sync() -> Iterator[str]:
    for _ in range(3):
        yield f"{whose()} "


@every_mount
@pytest.mark.parametrize("stream", [stream_async, stream_sync])
def test_a_streamed_answer_knows_whose_it_is_to_its_end(mount: Any, stream: Any) -> None:
    @get("/")
    async def handler() -> Stream:
        return Stream(stream())

    assert TestClient(mount([handler])).get("/", headers=ANN).text == f"{WHOLE} " * 3


class OopsError(Exception):
    pass


@every_mount
@pytest.mark.parametrize("error", [OopsError(), HTTPException(status_code=409)], ids=["of the app", "of Litestar"])
def test_exception_handlers_know_whose_request_failed(mount: Any, error: Exception) -> None:
    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        return Response(whose(), status_code=418)

    @get("/")
    async def handler() -> None:
        raise error

    client = TestClient(mount([handler], exception_handlers={type(error): handle}))
    response = client.get("/", headers=ANN)
    assert (response.status_code, response.json()) == (418, WHOLE)


@pytest.mark.parametrize(("mount", "known"), [(listed, None), (wrapped, WHOLE)])
def test_what_no_handler_is_found_for_is_known_around_the_app_alone(mount: Any, known: Any) -> None:
    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        return Response(whose(), status_code=404)

    client = TestClient(mount([in_task], exception_handlers={404: handle}))
    assert client.get("/nowhere", headers=ANN).json() == known


@every_mount
def test_nobody_without_an_identity_reaches_the_app(mount: Any) -> None:
    called: list[str] = []

    @get("/")
    async def handler() -> None:
        called.append("handler")

    @websocket("/live")
    async def live(socket: WebSocket[Any, Any, Any]) -> None:
        called.append("live")

    async def provide() -> None:
        called.append("dependency")

    client = TestClient(mount([handler, live], dependencies={"found": Provide(provide)}))
    response = client.get("/")
    assert (response.status_code, response.json()["code"]) == (400, "tenant_missing")
    assert response.headers["content-type"] == "application/problem+json"
    with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/live"):
        pass
    assert (caught.value.status_code, caught.value.json()["code"]) == (400, "tenant_missing")
    assert called == []


# WebSockets


@websocket("/")
async def live(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    async for data in socket.iter_json():
        await socket.send_json([data["n"], whose()])


@websocket_listener("/")
async def listener(data: dict[str, Any]) -> list[Any]:
    return [data["n"], whose()]


@websocket_listener("/", sync_to_thread=True)
def listener_in_thread(data: dict[str, Any]) -> list[Any]:
    return [data["n"], whose()]


every_websocket = pytest.mark.parametrize("handler", [live, listener, listener_in_thread], ids=repr)


@every_mount
@every_websocket
def test_websockets_know_whose_connection_it_is(mount: Any, handler: Any) -> None:
    client = TestClient(mount([handler]))
    with client.websocket_connect("/", headers=ANN) as ann, client.websocket_connect("/", headers=BOB) as bob:
        for n in range(2):
            ann.send_json({"n": n})
            bob.send_json({"n": n})
            assert (ann.receive_json(), bob.receive_json()) == ([n, WHOLE], [n, OTHER])


@every_mount
@every_websocket
@pytest.mark.parametrize("connected", [True, False])
def test_each_message_is_for_whom_it_names(mount: Any, handler: Any, connected: bool) -> None:
    options = {"message": json_message(tenant="t", user="u"), "authorize": lambda context, scope: True}
    client = TestClient(mount([handler], {**(SOURCES if connected else {}), **options}))
    with client.websocket_connect("/", headers=ANN if connected else {}) as connection:
        for n, (tenant, user) in enumerate([WHOLE, OTHER, WHOLE]):
            connection.send_json({"t": tenant, "u": user, "n": n})
            assert connection.receive_json() == [n, [tenant, user]]


# The lifespan


class Source:
    """An extractor that is good while it is open."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    async def open(self) -> None:
        self.events.append("open")

    def __call__(self, scope: Any) -> str:
        self.events.append("ask")
        return "acme"

    async def close(self) -> None:
        self.events.append("close")


def lifespan_of(events: list[str]) -> Callable[[Any], Any]:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        assert whose() is None
        events.append("startup")
        yield
        assert whose() is None
        events.append("shutdown")

    return lifespan


def test_around_the_app_sources_are_open_for_as_long_as_the_lifespan() -> None:
    events: list[str] = []
    app = wrapped([in_task], {"tenant": Source(events)}, lifespan=[lifespan_of(events)])
    with TestClient(app) as client:
        assert [client.get("/").json() for _ in range(2)] == [["acme", None]] * 2
    assert events == ["open", "startup", "ask", "ask", "shutdown", "close"]


def test_in_its_list_no_lifespan_comes_and_the_first_request_opens_them() -> None:
    events: list[str] = []
    app = listed([in_task], {"tenant": Source(events)}, lifespan=[lifespan_of(events)])
    with TestClient(app) as client:
        assert [client.get("/").json() for _ in range(2)] == [["acme", None]] * 2
    assert events == ["startup", "open", "ask", "ask", "shutdown"]


@pytest.mark.parametrize(
    ("mount", "options", "found"),
    [(wrapped, {}, {"n": 1}), (listed, {"store": MemoryStore()}, {"n": 1}), (listed, {}, None)],
    ids=["around", "in the list, with a store", "in the list"],
)
def test_in_its_list_each_handler_has_a_store_of_its_own_unless_one_is_given(
    mount: Any, options: Any, found: Any
) -> None:
    """Litestar makes the middlewares of its list once for each handler."""

    @get("/write")
    async def write() -> None:
        await current_state().increment("counts", "n")

    @get("/read")
    async def read() -> Any:
        return await current_state().get("counts")

    client = TestClient(mount([write, read], {**SOURCES, **options}))
    client.get("/write", headers=ANN)
    assert client.get("/read", headers=ANN).json() == found
    assert client.get("/read", headers=BOB).json() is None


@every_mount
def test_what_a_test_has_bound_itself_is_not_taken_for_the_requests(mount: Any) -> None:
    client = TestClient(mount([in_task], {**SOURCES, "missing": "unbound"}))
    with bind_context(Identity("globex", "bob")) as context:
        assert [client.get("/").json(), client.get("/", headers=ANN).json()] == [None, WHOLE]
        assert current_context() is context
