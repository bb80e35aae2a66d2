"""Between real services: each client of httpx and httpx2 asks a real server, which redirects it to others."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest
from servers import Uvicorn, serving

from asgi_context import ContextMiddleware, Identity, bind_context, current_context
from asgi_context.httpx import context_hook
from asgi_context.propagation import CarrierKey, context_headers, from_carrier_header

KEY = CarrierKey("1", b"0123456789abcdef0123456789abcdef")
ANN = Identity("acme", "ann", {"role": "admin"})


class Service:
    """An app that answers with the headers that it got and with whom it runs for, or redirects."""

    def __init__(self) -> None:
        self.targets: dict[str, str] = {}
        carried = from_carrier_header(key=KEY, audience="billing")
        self.app = ContextMiddleware(self.answer, identity=carried, request_id=carried.request_id, missing="unbound")

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": json.dumps(self.told(scope))})
            await send({"type": "websocket.close"})
            return
        target = self.targets.get(scope["path"])
        headers = [] if target is None else [(b"location", target.encode())]
        await send({"type": "http.response.start", "status": 200 if target is None else 307, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(self.told(scope)).encode()})

    @staticmethod
    def told(scope: Any) -> dict[str, Any]:
        context = current_context(None)
        return {
            "who": None if context is None else [context.tenant, context.user, context.claims.to_dict()],
            "request_id": None if context is None else context.request_id,
            "headers": sum(name == b"asgi-context" for name, _ in scope["headers"]),
        }


@pytest.fixture(scope="module")
def services() -> Iterator[tuple[Service, str, str]]:
    """One service under two names, of which only the first is to be told anything."""
    service = Service()
    with serving(Uvicorn, service.app) as server:
        yield service, f"http://127.0.0.1:{server.port}", f"http://localhost:{server.port}"


def by_sync(library: Any, url: str, hook: Any, **options: Any) -> Any:
    with library.Client(event_hooks={"request": [hook]}, follow_redirects=True, trust_env=False) as client:
        return client.get(url, **options)


def by_async(library: Any, url: str, hook: Any, **options: Any) -> Any:
    async def ask() -> Any:
        async with library.AsyncClient(
            event_hooks={"request": [hook]}, follow_redirects=True, trust_env=False
        ) as client:
            return await client.get(url, **options)

    return asyncio.run(ask())


CLIENTS = {
    f"{library.__name__}-{ask.__name__}": (library, ask) for library in (httpx, httpx2) for ask in (by_sync, by_async)
}


@pytest.fixture(params=CLIENTS)
def get(request: pytest.FixtureRequest) -> Callable[..., Any]:
    library, ask = CLIENTS[request.param]
    return lambda *args, **options: ask(library, *args, **options)


def test_who_asks_here_asks_there(get: Any, services: Any) -> None:
    _, named, _ = services
    hook = context_hook([named], key=KEY, audience="billing", claims=["role"])
    with bind_context(ANN) as context:
        told = get(named, hook).json()
    assert told == {"who": ["acme", "ann", {"role": "admin"}], "request_id": context.request_id, "headers": 1}
    assert get(named, hook).json() == {"who": None, "request_id": None, "headers": 0}


def test_no_redirect_takes_it_to_another_host(get: Any, services: Any) -> None:
    service, named, other = services
    service.targets = {"/away": f"{other}/", "/back": f"{named}/", "/there": f"{other}/back"}
    hook = context_hook({named: "billing"}, key=KEY)
    with bind_context(ANN):
        away = get(f"{named}/away", hook, headers={"Asgi-Context": "by hand"})
        back = get(f"{named}/there", hook)
    assert [step.json()["headers"] for step in (*away.history, away)] == [1, 0]
    assert [step.json()["headers"] for step in (*back.history, back)] == [1, 0, 1]
    assert away.json()["who"] is None
    assert back.json()["who"] == ["acme", "ann", {}]


def test_a_header_by_hand_is_understood(services: Any) -> None:
    _, named, _ = services
    with bind_context(ANN):
        headers = context_headers(key=KEY, audience="billing")
    assert httpx.get(named, headers=headers, trust_env=False).json()["who"] == ["acme", "ann", {}]
    refused = httpx.get(named, headers=headers | {"asgi_context": "x"}, trust_env=False)
    assert (refused.status_code, refused.json()["code"]) == (400, "carrier_repeated")
    wrong = httpx.get(named, headers=context_headers(ANN, key=KEY, audience="search"), trust_env=False)
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "AsgiContext")


def test_a_websocket_of_httpx2_says_who_asks(services: Any) -> None:
    _, named, other = services
    hook = context_hook([named], key=KEY, audience="billing")
    with bind_context(ANN), httpx2.Client(event_hooks={"request": [hook]}, trust_env=False) as client:
        told = []
        for url in (named, other):
            with client.websocket(url.replace("http:", "ws:")) as websocket:
                told.append(json.loads(websocket.receive_text())["who"])
    assert told == [["acme", "ann", {}], None]
