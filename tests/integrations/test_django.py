"""Django's ASGI handler inside of the middleware: views, middleware and streams of both kinds know whose request it is."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished, request_started
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import sync_and_async_middleware
from servers import SERVERS, UvicornHttptools, serving
from who_asks import ANN, BOB, SOURCES, WHOLE, whose, whose_soon

from asgi_context import (
    ContextMiddleware,
    Identity,
    bind_context,
    current_state,
    run_in_pool,
)
from asgi_context.values import get_from_context, update_request_context

pytestmark = pytest.mark.matrix("Django", "django", "asgiref")


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


# The views


async def async_view(request: HttpRequest) -> JsonResponse:
    views = [
        whose(),
        await asyncio.create_task(whose_soon()),
        await asyncio.to_thread(whose),
        await sync_to_async(whose)(),
        await sync_to_async(whose, thread_sensitive=False)(),
        await sync_to_async(lambda: async_to_sync(whose_soon)())(),
        await run_in_pool("tool", whose),
    ]
    return JsonResponse(views, safe=False)


def sync_view(request: HttpRequest) -> JsonResponse:
    assert not in_main_thread()
    current_state().sync.increment("visits", "n")
    return JsonResponse([whose(), async_to_sync(whose_soon)()], safe=False)


class OopsError(Exception):
    pass


async def failing_async(request: HttpRequest) -> HttpResponse:
    raise OopsError


def failing_sync(request: HttpRequest) -> HttpResponse:
    raise OopsError


def on_500(request: HttpRequest) -> HttpResponse:
    return JsonResponse(whose(), safe=False, status=500)


async def streaming_async(request: HttpRequest) -> StreamingHttpResponse:
    update_request_context(colour="green")

    async def parts() -> AsyncIterator[str]:
        for _ in range(3):
            await asyncio.sleep(0)
            yield f"{whose()}{get_from_context('colour')} "

    return StreamingHttpResponse(parts())


def streaming_sync(request: HttpRequest) -> StreamingHttpResponse:
    update_request_context(colour="green")

    def parts() -> Iterator[str]:
        for _ in range(3):
            yield f"{whose()}{get_from_context('colour')} "

    return StreamingHttpResponse(parts())


URLS: Any = ModuleType("urls_of_test_django")
URLS.urlpatterns = [
    path("async", async_view),
    path("sync", sync_view),
    path("failing/async", failing_async),
    path("failing/sync", failing_sync),
    path("streaming/async", streaming_async),
    path("streaming/sync", streaming_sync),
]
URLS.handler500 = on_500

# Django's middleware

NOTES: list[Any] = []


def sync_middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        assert not in_main_thread()
        NOTES.append(["before", whose()])
        response = get_response(request)
        NOTES.append(["after", whose()])
        return response

    return middleware


def async_middleware(get_response: Callable[[HttpRequest], Any]) -> Any:
    async def middleware(request: HttpRequest) -> HttpResponse:
        NOTES.append(["before", whose()])
        response: HttpResponse = await get_response(request)
        NOTES.append(["after", whose()])
        return response

    return middleware


async_middleware.async_capable = True  # type: ignore[attr-defined]
async_middleware.sync_capable = False  # type: ignore[attr-defined]


class FailureMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse:
        return JsonResponse([whose(), type(error).__name__], safe=False, status=418)


@sync_and_async_middleware
def binding_middleware(get_response: Callable[[HttpRequest], Any]) -> Any:
    """Binds the user whom a middleware before it has found out, as Django's own authentication does."""

    def identity(request: HttpRequest) -> Identity:
        return Identity(request.headers["x-tenant-id"], request.headers["x-login"])

    if iscoroutinefunction(get_response):

        async def async_binding(request: HttpRequest) -> HttpResponse:
            async with bind_context(identity(request)):
                response: HttpResponse = await get_response(request)
                return response

        return async_binding

    def sync_binding(request: HttpRequest) -> HttpResponse:
        with bind_context(identity(request)):
            response: HttpResponse = get_response(request)
            return response

    return sync_binding


@pytest.fixture
def mount() -> Iterator[Callable[..., Any]]:
    """Makes Django's app anew, with the middleware of Django's that are given."""
    sys.modules[URLS.__name__] = URLS
    if not settings.configured:
        settings.configure()
    with ExitStack() as stack:

        def make(*middleware: Any, **options: Any) -> Any:
            names = [f"{each.__module__}.{each.__qualname__}" for each in middleware]
            overrides = {"ROOT_URLCONF": URLS.__name__, "MIDDLEWARE": names, "ALLOWED_HOSTS": ["*"]}
            # Django would set up the logging of the whole process.
            stack.enter_context(override_settings(**overrides, LOGGING_CONFIG=None))
            return ContextMiddleware(get_asgi_application(), pools={"tool": 2}, **{**SOURCES, **options})

        NOTES.clear()
        yield make
    del sys.modules[URLS.__name__]


async def get(app: Any, at: str, headers: dict[str, str] = ANN) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(at, headers=headers)


MIDDLEWARE: dict[str, list[Any]] = {
    "without middleware": [],
    "sync middleware": [sync_middleware],
    "async middleware": [async_middleware],
    "both": [sync_middleware, async_middleware, sync_middleware],
}


@pytest.mark.anyio
@pytest.mark.parametrize("middleware", MIDDLEWARE)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_views_and_middleware_of_both_kinds_know_whose_request_it_is(
    asyncio_only: None, mount: Any, kind: str, middleware: str
) -> None:
    between = MIDDLEWARE[middleware]
    app = mount(*between)
    for headers, wanted in ((ANN, WHOLE), (BOB, ["globex", "bob"])):
        answer = (await get(app, f"/{kind}", headers)).json()
        assert answer == [wanted] * len(answer)
        assert [["before", wanted]] * len(between) + [["after", wanted]] * len(between) == NOTES
        NOTES.clear()
    await app.close()


@pytest.mark.anyio
async def test_a_request_without_identity_does_not_reach_django(asyncio_only: None, mount: Any) -> None:
    answer = await get(mount(sync_middleware), "/sync", {})
    assert (answer.status_code, answer.json()["code"], NOTES) == (400, "tenant_missing", [])
    assert (await get(mount(sync_middleware, missing="unbound"), "/nowhere", {})).status_code == 404
    assert NOTES == [["before", None], ["after", None]]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("middleware", MIDDLEWARE)
async def test_a_streamed_answer_knows_whose_it_is_to_its_end(
    asyncio_only: None, mount: Any, kind: str, middleware: str
) -> None:
    if kind == "sync":  # Django warns, since it has to read such a stream to its end before it sends any
        with pytest.warns(Warning, match="must consume synchronous iterators"):
            answer = await get(mount(*MIDDLEWARE[middleware]), "/streaming/sync")
    else:
        answer = await get(mount(*MIDDLEWARE[middleware]), "/streaming/async")
    assert answer.text == f"{WHOLE}green " * 3


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_handlers_of_exceptions_know_whose_request_failed(asyncio_only: None, mount: Any, kind: str) -> None:
    answer = await get(mount(FailureMiddleware), f"/failing/{kind}")
    assert (answer.status_code, answer.json()) == (418, [WHOLE, "OopsError"])


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_the_handler_of_all_that_is_uncaught_knows_it_too(asyncio_only: None, mount: Any, kind: str) -> None:
    answer = await get(mount(sync_middleware), f"/failing/{kind}")
    assert (answer.status_code, answer.json()) == (500, WHOLE)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("before", MIDDLEWARE)
async def test_a_middleware_of_djangos_can_bind_whom_another_has_found_out(
    asyncio_only: None, mount: Any, kind: str, before: str
) -> None:
    """What stands outside of it, and what is streamed after it, is for whom the request is from outside."""
    app = mount(*MIDDLEWARE[before], binding_middleware, user=None)
    headers = {"x-tenant-id": "acme", "x-login": "ann"}
    answer = (await get(app, f"/{kind}", headers)).json()
    assert answer == [WHOLE] * len(answer)
    assert [note[1] for note in NOTES] == [["acme", None]] * 2 * len(MIDDLEWARE[before])
    answer = await get(app, "/streaming/async", headers)
    assert answer.text == "['acme', None]None " * 3, "the values of the block have ended with it"
    await app.close()


@pytest.mark.anyio
async def test_receivers_of_signals_know_whose_request_it_is(asyncio_only: None, mount: Any) -> None:
    def started(**_: Any) -> None:
        NOTES.append(["started", whose()])

    async def finished(**_: Any) -> None:
        NOTES.append(["finished", whose()])

    request_started.connect(started)
    request_finished.connect(finished)
    try:
        await get(mount(), "/sync")
    finally:
        request_started.disconnect(started)
        request_finished.disconnect(finished)
    assert NOTES == [["started", WHOLE], ["finished", WHOLE]]


@pytest.mark.parametrize("kind", ["uvicorn-httptools", "hypercorn"])
def test_on_a_server_many_at_once_stay_apart(mount: Any, kind: str) -> None:
    senders = [(f"t{n % 5}", f"u{n}") for n in range(40)]

    async def main(port: int) -> list[Any]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            answers = await asyncio.gather(
                *(
                    client.get(f"/{('sync', 'async')[n % 2]}", headers={"x-tenant-id": tenant, "x-user-id": user})
                    for n, (tenant, user) in enumerate(senders)
                )
            )
            return [answer.json() for answer in answers]

    with serving(SERVERS.get(kind, UvicornHttptools), mount(sync_middleware)) as server:
        assert server.started, server.failure
        answers = asyncio.run(main(server.port))
    assert [{tuple(whom) for whom in answer} for answer in answers] == [{sender} for sender in senders]
