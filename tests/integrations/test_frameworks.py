"""Mounted in real frameworks, in every way that they offer: all that they call knows on whose behalf it runs."""

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from quart import Quart, websocket
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from who_asks import ANN, BOB, SOURCES, WHOLE, async_dependency, async_yielding, sync_dependency, sync_yielding, whose

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    Identity,
    bind_context,
    current_context,
    current_state,
    from_path,
    from_scope,
)
from asgi_context.values import get_from_context, update_request_context

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would rather have httpx2, and warns where there is httpx alone
    from starlette.testclient import TestClient, WebSocketDenialResponse

of_starlette = pytest.mark.matrix("Starlette", "starlette")
of_fastapi = pytest.mark.matrix("FastAPI", "fastapi", "starlette")
of_quart = pytest.mark.matrix("Quart", "quart")
of_asgiref = pytest.mark.matrix("asgiref", "asgiref")


class Notes:
    """A plain middleware that notes who is bound before and after the app inside ran."""

    def __init__(self, app: Any, notes: list[Any]) -> None:
        self.app = app
        self.notes = notes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.notes.append(whose())
        try:
            await self.app(scope, receive, send)
        finally:
            self.notes.append(whose())


async def get(app: Any, path: str = "/", headers: dict[str, str] = ANN, *, method: str = "GET") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path, headers=headers)


# Starlette


async def answer_async(request: Request) -> JSONResponse:
    return JSONResponse(whose())


def answer_sync(request: Request) -> JSONResponse:
    return JSONResponse(whose())


async def answer_from_threadpool(request: Request) -> JSONResponse:
    return JSONResponse(await run_in_threadpool(whose))


async def answer_by_sync_to_async(request: Request) -> JSONResponse:
    return JSONResponse(await sync_to_async(whose)())


async def async_whose() -> Any:
    return whose()


async def answer_by_async_to_sync(request: Request) -> JSONResponse:
    return JSONResponse(await sync_to_async(lambda: async_to_sync(async_whose)())())


class AnswerOfEndpoint(HTTPEndpoint):
    async def get(self, request: Request) -> JSONResponse:
        return JSONResponse(whose())


ENDPOINTS = [
    answer_async,
    answer_sync,
    answer_from_threadpool,
    AnswerOfEndpoint,
]


class EchoOfWebSocket(WebSocketEndpoint):
    encoding = "text"

    async def on_receive(self, websocket: Any, data: str) -> None:
        await websocket.send_json([data, whose()])


async def listen(websocket: Any) -> None:
    await websocket.accept()
    async for data in websocket.iter_text():
        await websocket.send_json([data, whose()])


def listed(routes: list[Any], **options: Any) -> Any:
    return Starlette(routes=routes, middleware=[Middleware(ContextMiddleware, **SOURCES, **options)])


def added(routes: list[Any], **options: Any) -> Any:
    app = Starlette(routes=routes)
    app.add_middleware(ContextMiddleware, **SOURCES, **options)
    return app


def wrapped(routes: list[Any], **options: Any) -> Any:
    return ContextMiddleware(Starlette(routes=routes), **SOURCES, **options)


every_mount = pytest.mark.parametrize("mount", [listed, added, wrapped])


@of_starlette
@pytest.mark.anyio
@every_mount
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_starlette_endpoints_know_whose_request_it_is(mount: Any, endpoint: Any) -> None:
    app = mount([Route("/", endpoint)])
    assert (await get(app)).json() == WHOLE
    assert (await get(app, headers=BOB)).json() == ["globex", "bob"]


@of_asgiref
@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", [answer_by_sync_to_async, answer_by_async_to_sync])
async def test_asgiref_carries_it_to_threads_and_back(asyncio_only: None, endpoint: Any) -> None:
    assert (await get(wrapped([Route("/", endpoint)]))).json() == WHOLE


@of_asgiref
@pytest.mark.anyio
async def test_a_sync_endpoint_can_run_coroutines_by_asgiref(asyncio_only: None) -> None:
    def endpoint(request: Request) -> JSONResponse:
        return JSONResponse(async_to_sync(async_whose)())

    assert (await get(wrapped([Route("/", endpoint)]))).json() == WHOLE


@of_starlette
@pytest.mark.anyio
@every_mount
async def test_starlette_does_not_see_a_request_without_identity(mount: Any) -> None:
    response = await get(mount([Route("/", answer_async)]), headers={})
    assert (response.status_code, response.json()["code"]) == (400, "tenant_missing")
    assert (await get(mount([Route("/", answer_async)], missing="unbound"), headers={})).json() is None


@of_starlette
@every_mount
@pytest.mark.parametrize("endpoint", [listen, EchoOfWebSocket])
def test_starlette_websockets_know_whose_connection_it_is(mount: Any, endpoint: Any) -> None:
    client = TestClient(mount([WebSocketRoute("/", endpoint)]))
    with client.websocket_connect("/", headers=ANN) as ann, client.websocket_connect("/", headers=BOB) as bob:
        for _ in range(2):
            ann.send_text("hello")
            bob.send_text("hello")
            assert ann.receive_json() == ["hello", WHOLE]
            assert bob.receive_json() == ["hello", ["globex", "bob"]]


@of_starlette
@every_mount
def test_a_websocket_without_identity_is_denied(mount: Any) -> None:
    client = TestClient(mount([WebSocketRoute("/", listen)]))
    with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/"):
        pass
    assert (caught.value.status_code, caught.value.json()["code"]) == (400, "tenant_missing")


@of_starlette
@pytest.mark.anyio
async def test_a_mounted_app_with_a_middleware_of_its_own_binds_for_itself_and_the_outer_is_restored() -> None:
    notes: list[Any] = []
    inside = Starlette(routes=[Route("/{tenant}", answer_async)])
    app = Starlette(
        routes=[
            Mount("/inner", ContextMiddleware(inside, tenant=from_path("/{tenant}"))),
            Route("/outer", answer_async),
        ],
        middleware=[Middleware(ContextMiddleware, **SOURCES), Middleware(Notes, notes=notes)],
    )
    assert (await get(app, "/inner/initech")).json() == ["initech", None]
    assert notes == [WHOLE, WHOLE]
    assert (await get(app, "/outer")).json() == WHOLE


@of_starlette
@pytest.mark.anyio
async def test_the_same_instance_mounted_twice_asks_once_and_passes_through() -> None:
    asked = []

    async def tenant(scope: Any) -> str:
        asked.append(scope["path"])
        return "acme"

    async def endpoint(request: Request) -> JSONResponse:
        return JSONResponse([current_context().request_id, get_from_context("from")])

    def outer(request: Request, call_next: Any) -> Any:
        update_request_context(**{"from": current_context().request_id})
        return call_next(request)

    router = Starlette(middleware=[Middleware(BaseHTTPMiddleware, dispatch=outer)])
    app = ContextMiddleware(router, tenant=tenant)
    router.router.routes += [Mount("/again", app), Route("/", endpoint)]
    request_id, from_outside = (await get(app, "/again/")).json()
    assert request_id == from_outside
    assert asked == ["/again/"]


@of_starlette
@pytest.mark.anyio
async def test_functional_and_base_http_middleware_inside_see_it_before_and_after() -> None:
    notes = []

    async def dispatch(request: Request, call_next: Any) -> Any:
        notes.append(whose())
        response = await call_next(request)
        notes.append(whose())
        return response

    app = Starlette(
        routes=[Route("/", answer_async)],
        middleware=[Middleware(ContextMiddleware, **SOURCES), Middleware(BaseHTTPMiddleware, dispatch=dispatch)],
    )
    assert (await get(app)).json() == WHOLE
    assert notes == [WHOLE, WHOLE]


@of_starlette
@pytest.mark.anyio
@every_mount
async def test_background_tasks_of_starlette_know_whose_they_are_and_have_its_values(mount: Any) -> None:
    notes = []

    def note(*_: Any) -> None:
        notes.append([whose(), get_from_context("colour")])

    async def note_async() -> None:
        note()

    async def endpoint(request: Request) -> JSONResponse:
        update_request_context(colour="green")
        return JSONResponse(whose(), background=BackgroundTask(note if "sync" in request.query_params else note_async))

    app = mount([Route("/", endpoint)])
    await get(app, "/?sync")
    await get(app)
    assert notes == [[WHOLE, "green"]] * 2


async def stream_async() -> AsyncIterator[str]:
    for _ in range(3):
        yield f"{whose()} "


def stream_sync() -> Iterator[str]:
    for _ in range(3):
        yield f"{whose()} "


@of_starlette
@pytest.mark.anyio
@pytest.mark.parametrize("stream", [stream_async, stream_sync])
async def test_a_streamed_answer_knows_whose_it_is_to_its_end(stream: Any) -> None:
    app = wrapped([Route("/", lambda _: StreamingResponse(stream()))])
    assert (await get(app)).text == f"{WHOLE} " * 3


@of_starlette
@pytest.mark.anyio
async def test_a_block_that_a_streamed_generator_holds_across_yields_reaches_nobody_else() -> None:
    """Each step of it runs in a thread, in a Context of its own."""
    notes: list[Any] = []

    def stream() -> Iterator[str]:
        with bind_context(Identity("globex", "bob")):
            yield f"{whose()}"
            yield f"{whose()}"

    def endpoint(request: Request) -> StreamingResponse:
        return StreamingResponse(stream(), background=BackgroundTask(lambda: notes.append(whose())))

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(ContextMiddleware, **SOURCES), Middleware(Notes, notes=notes)],
    )
    response = await get(app)
    assert response.status_code == 200
    assert response.text.endswith(f"{WHOLE}")
    assert notes == [WHOLE, WHOLE, WHOLE]


class OopsError(Exception):
    pass


async def fail(request: Request) -> None:
    raise OopsError


@of_starlette
@pytest.mark.anyio
async def test_exception_handlers_of_starlette_know_whose_request_failed() -> None:
    async def handle(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(whose(), 418)

    app = Starlette(
        routes=[Route("/", fail)],
        exception_handlers={OopsError: handle},
        middleware=[Middleware(ContextMiddleware, **SOURCES)],
    )
    response = await get(app)
    assert (response.status_code, response.json()) == (418, WHOLE)


@of_starlette
@pytest.mark.anyio
async def test_the_last_handler_of_starlette_stands_outside_of_its_middleware() -> None:
    """So what it is to know, it knows when the whole app is wrapped."""
    seen = []

    async def handle(request: Request, error: Exception) -> JSONResponse:
        seen.append(whose())
        return JSONResponse({}, 500)

    def app(*middleware: Middleware) -> Starlette:
        return Starlette(routes=[Route("/", fail)], exception_handlers={Exception: handle}, middleware=middleware)

    with pytest.raises(OopsError):
        await get(app(Middleware(ContextMiddleware, **SOURCES)))
    with pytest.raises(OopsError):
        await get(ContextMiddleware(app(), **SOURCES))
    assert seen == [None, WHOLE]


class Member(SimpleUser):
    tenant_id = "acme"


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: Any) -> Any:
        return (AuthCredentials(), Member(conn.headers["x-login"])) if "x-login" in conn.headers else None


BEHIND = {"tenant": from_scope("user", "tenant_id"), "user": from_scope("user", "username")}


@of_starlette
@pytest.mark.anyio
async def test_behind_an_authentication_middleware_it_takes_the_user_from_the_scope() -> None:
    app = Starlette(
        routes=[Route("/", answer_async)],
        middleware=[Middleware(AuthenticationMiddleware, backend=Backend()), Middleware(ContextMiddleware, **BEHIND)],
    )
    assert (await get(app, headers={"x-login": "ann"})).json() == WHOLE
    response = await get(app, headers={})
    assert (response.status_code, response.json()["code"]) == (400, "tenant_missing")


@of_starlette
@pytest.mark.anyio
async def test_in_front_of_an_authentication_middleware_it_refuses_and_logs_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Starlette(
        routes=[Route("/", answer_async)],
        middleware=[Middleware(ContextMiddleware, **BEHIND), Middleware(AuthenticationMiddleware, backend=Backend())],
    )
    response = await get(app, headers={"x-login": "ann"})
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "user" not in response.json()["detail"]
    (record,) = [record for record in caplog.records if record.name == "asgi_context"]
    assert record.levelno == logging.ERROR
    logged = logging.Formatter().format(record)
    assert "the scope has no 'user'" in logged
    assert "earlier in the `middleware=` list" in logged


@of_starlette
@pytest.mark.anyio
@every_mount
async def test_a_cors_preflight_reaches_the_cors_middleware_inside(mount: Any) -> None:
    inside = CORSMiddleware(Starlette(routes=[Route("/", answer_async)]), allow_origins=["https://app.example.com"])
    app = mount([Mount("/", inside)])
    preflight = {"origin": "https://app.example.com", "access-control-request-method": "GET"}
    response = await get(app, headers=preflight, method="OPTIONS")
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://app.example.com"
    assert (await get(app, headers={"origin": "https://app.example.com"})).status_code == 400
    response = await get(app, headers={**ANN, "origin": "https://app.example.com"})
    assert response.json() == WHOLE
    assert response.headers["access-control-allow-origin"] == "https://app.example.com"


class Source:
    """An extractor that is good while it is open."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def open(self) -> None:
        self.events.append("open")

    async def __call__(self, scope: Any) -> str:
        self.events.append("ask")
        return "acme"

    async def close(self) -> None:
        self.events.append("close")


def lifespan_of(events: list[str]) -> Any:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        assert whose() is None
        events.append("startup")
        yield
        assert whose() is None
        events.append("shutdown")

    return lifespan


every_framework = pytest.mark.parametrize(
    "framework", [pytest.param(Starlette, marks=of_starlette), pytest.param(FastAPI, marks=of_fastapi)]
)


@every_framework
@pytest.mark.parametrize("outside", [True, False], ids=["wrapped", "added"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_sources_are_open_for_as_long_as_the_lifespan(framework: Any, outside: bool, backend: Any) -> None:
    source = Source()
    app = inside = framework(lifespan=lifespan_of(source.events))
    inside.router.routes.append(Route("/", answer_async))
    if outside:
        app = ContextMiddleware(app, tenant=source)
    else:
        app.add_middleware(ContextMiddleware, tenant=source)
    with TestClient(app, backend=backend) as client:
        assert source.events == ["open", "startup"]
        assert [client.get("/").json() for _ in range(2)] == [["acme", None]] * 2
    assert source.events == ["open", "startup", "ask", "ask", "shutdown", "close"]


@every_framework
def test_without_a_lifespan_sources_are_opened_by_the_first_request(framework: Any) -> None:
    source = Source()
    app = framework()
    app.router.routes.append(Route("/", answer_async))
    app.add_middleware(ContextMiddleware, tenant=source)
    client = TestClient(app)
    assert [client.get("/").json() for _ in range(2)] == [["acme", None]] * 2
    assert source.events == ["open", "ask", "ask"]


@of_starlette
@pytest.mark.parametrize("entered", [True, False], ids=["with", "without with"])
def test_what_a_test_has_bound_itself_is_not_taken_for_the_requests(entered: bool) -> None:
    """The TestClient runs the app in a copy of the test's Context."""
    client = TestClient(wrapped([Route("/", answer_async), WebSocketRoute("/ws", listen)], missing="unbound"))

    def ask() -> list[Any]:
        with client.websocket_connect("/ws") as connection:
            connection.send_text("hello")
            return [client.get("/").json(), client.get("/", headers=ANN).json(), connection.receive_json()[1]]

    with bind_context(Identity("globex", "bob")) as context:
        if entered:
            with client:
                assert ask() == [None, WHOLE, None]
        else:
            assert ask() == [None, WHOLE, None]
        assert current_context() is context


# FastAPI


class Sub:
    def __init__(self, inner: Annotated[Any, Depends(sync_yielding)]) -> None:
        self.inner = inner


def class_dependency(sub: Annotated[Sub, Depends()]) -> Any:
    return sub.inner


DEPENDENCIES = [sync_dependency, async_dependency, sync_yielding, async_yielding, class_dependency]


def fastapi(**options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.add_middleware(ContextMiddleware, **SOURCES)
    return app


@of_fastapi
@pytest.mark.anyio
@pytest.mark.parametrize("dependency", DEPENDENCIES)
@pytest.mark.parametrize("wanted", ["async", "sync"])
async def test_fastapi_endpoints_and_dependencies_know_whose_request_it_is(dependency: Any, wanted: str) -> None:
    app = fastapi()
    if wanted == "async":

        @app.get("/")
        async def endpoint(found: Annotated[Any, Depends(dependency)]) -> Any:
            return [found, whose(), await run_in_threadpool(whose)]

    else:

        @app.get("/")
        def endpoint(found: Annotated[Any, Depends(dependency)]) -> Any:
            return [found, whose(), whose()]

    assert (await get(app)).json() == [WHOLE] * 3
    assert (await get(app, headers=BOB)).json() == [["globex", "bob"]] * 3


@of_fastapi
@pytest.mark.anyio
async def test_what_a_sync_dependency_binds_is_lost() -> None:
    """It runs in a thread, in a Context of its own; held across its yield, the block ends in yet another one."""
    app = fastapi()
    notes: list[Any] = []
    app.add_middleware(Notes, notes=notes)

    def bind() -> None:
        bind_context(Identity("globex", "bob")).__enter__()

    def hold() -> Iterator[None]:
        with bind_context(Identity("globex", "bob")):
            yield

    @app.get("/", dependencies=[Depends(bind), Depends(hold)])
    async def endpoint() -> Any:
        return whose()

    response = await get(app)
    assert (response.status_code, response.json()) == (200, WHOLE)
    assert notes == [None, None]


@of_fastapi
@pytest.mark.anyio
@pytest.mark.parametrize("wanted", ["async", "sync"])
async def test_an_async_dependency_can_bind_for_its_endpoint(wanted: str) -> None:
    notes: list[Any] = []
    app = FastAPI()
    app.add_middleware(Notes, notes=notes)
    app.add_middleware(ContextMiddleware, **SOURCES)

    async def hold() -> AsyncIterator[None]:
        with bind_context(Identity("globex", "bob")):
            yield

    async def async_endpoint() -> Any:
        return whose()

    app.get("/", dependencies=[Depends(hold)])(async_endpoint if wanted == "async" else whose)
    assert (await get(app)).json() == ["globex", "bob"]
    assert notes == [WHOLE, WHOLE]


@of_fastapi
@pytest.mark.anyio
async def test_background_tasks_of_fastapi_know_whose_they_are() -> None:
    app = fastapi()
    notes = []

    def note(name: str) -> None:
        notes.append([name, whose(), get_from_context("colour")])

    async def note_async(name: str) -> None:
        note(name)

    @app.get("/")
    async def endpoint(background: BackgroundTasks) -> Any:
        update_request_context(colour="green")
        background.add_task(note, "sync")
        background.add_task(note_async, "async")

    await get(app)
    assert notes == [["sync", WHOLE, "green"], ["async", WHOLE, "green"]]


@of_fastapi
@pytest.mark.anyio
@pytest.mark.parametrize("stream", [stream_async, stream_sync])
async def test_a_streamed_answer_of_fastapi_knows_whose_it_is_to_its_end(stream: Any) -> None:
    app = fastapi()

    @app.get("/")
    def endpoint() -> StreamingResponse:
        return StreamingResponse(stream())

    assert (await get(app)).text == f"{WHOLE} " * 3


@of_fastapi
@pytest.mark.anyio
@pytest.mark.parametrize("error", [OopsError(), HTTPException(400)], ids=["of the app", "of FastAPI"])
async def test_exception_handlers_of_fastapi_know_whose_request_failed(error: Exception) -> None:
    app = fastapi()

    @app.exception_handler(type(error))
    async def handle(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(whose(), 418)

    @app.get("/")
    def endpoint() -> None:
        raise error

    response = await get(app)
    assert (response.status_code, response.json()) == (418, WHOLE)


@of_fastapi
def test_websockets_of_fastapi_know_whose_connection_it_is() -> None:
    app = fastapi()

    @app.websocket("/")
    async def endpoint(websocket: WebSocket, found: Annotated[Any, Depends(sync_dependency)]) -> None:
        await websocket.accept()
        await websocket.send_json([found, whose(), await run_in_threadpool(whose)])

    with TestClient(app).websocket_connect("/", headers=ANN) as connection:
        assert connection.receive_json() == [WHOLE] * 3


# Quart


def quart(**options: Any) -> Quart:
    app = Quart(__name__)
    app.asgi_app = ContextMiddleware(app.asgi_app, **SOURCES, **options)  # type: ignore[method-assign]
    return app


@of_quart
@pytest.mark.anyio
async def test_quart_handlers_know_whose_request_it_is(asyncio_only: None) -> None:
    app = quart()

    @app.get("/async")
    async def in_task() -> Any:
        return whose()

    @app.get("/sync")
    def in_thread() -> Any:
        return whose()

    client = app.test_client()
    for path in ("/async", "/sync"):
        for headers, wanted in ((ANN, WHOLE), (BOB, ["globex", "bob"])):
            assert await (await client.get(path, headers=headers)).get_json() == wanted


@of_quart
@pytest.mark.anyio
async def test_a_refusal_can_be_read_by_quarts_test_client(asyncio_only: None) -> None:
    """That of Quart 0.23 wants keys in a message that the ASGI specification lets one leave out."""
    response = await quart().test_client().get("/")
    assert (response.status_code, (await response.get_json())["code"]) == (400, "tenant_missing")


@of_quart
@pytest.mark.anyio
async def test_quart_websockets_know_whose_connection_it_is(asyncio_only: None) -> None:
    app = quart()

    @app.websocket("/")
    async def listen() -> None:
        while True:
            await websocket.send_json([await websocket.receive(), whose()])

    client = app.test_client()
    async with client.websocket("/", headers=ANN) as ann, client.websocket("/", headers=BOB) as bob:
        for _ in range(2):
            await ann.send("hello")
            await bob.send("hello")
            assert await ann.receive_json() == ["hello", WHOLE]
            assert await bob.receive_json() == ["hello", ["globex", "bob"]]


@of_quart
@pytest.mark.anyio
@pytest.mark.parametrize("in_thread", [True, False], ids=["sync", "async"])
async def test_a_background_task_of_quart_outlives_its_request_and_knows_whose_it_was(
    asyncio_only: None, in_thread: bool
) -> None:
    """The identity and the state it keeps; the request's values are gone with the request."""
    app = quart()
    answered = asyncio.Event()
    notes = []

    def note() -> None:
        notes.append([current_context().tenant, current_context().user, repr(current_state())])
        with pytest.raises(ContextClosedError):
            get_from_context("colour")

    async def note_when_answered() -> None:
        await answered.wait()
        await asyncio.to_thread(note) if in_thread else note()

    @app.get("/")
    async def endpoint() -> Any:
        update_request_context(colour="green")
        app.add_background_task(note_when_answered)
        return whose()

    async with app.test_app() as running:
        await running.test_client().get("/", headers=ANN)
        answered.set()
    assert notes == [[*WHOLE, "SharedState(tenant='acme', user='ann')"]]
