"""Tokens on real servers: what they hand over of a credential, and what a client is really told.

Granian serves in processes of its own, so it is given `make_app` of this module by name.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jwt_makers
import pytest
from jwt_makers import AUDIENCE, ISSUER, make_key
from servers import PATIENCE, SERVERS, Response, Wire, handshake, request, serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from asgi_context import ContextMiddleware, RequestRejected, current_context, first_of
from asgi_context.jwt import JWKSClient, JWTAuth

KEY = make_key("HS256")
PAGE = "https://app.example.com"
METADATA = "https://api.example.com/.well-known/oauth-protected-resource"
BARE = b'Bearer resource_metadata="%s"' % METADATA.encode()
INVALID = BARE + b', error="invalid_token", error_description="The access token is not acceptable"'
SOON = 1.5  # seconds: enough to open a connection in; how long it really takes does not matter

# The app


async def fetch_nothing(url: str) -> bytes:
    raise OSError("down")


class ByApiKey:
    challenge = 'ApiKey realm="things"'

    def __call__(self, scope: Any) -> None:
        return None


def make_app() -> Any:
    common: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE, "tenant": "org_id", "tenants": ["acme"]}
    bearer = JWTAuth(
        key=KEY.jwk,
        cookie="session",
        websocket_protocol="bearer.",
        websocket_query="token",
        resource_metadata=METADATA,
        **common,
    )
    down = JWTAuth(jwks=JWKSClient("https://id.example.com/jwks.json", fetch=fetch_nothing), **common)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await KINDS[scope["type"]](bearer, scope, receive, send)

    apps = {
        "/": ContextMiddleware(inner, identity=bearer, websocket_origins=[PAGE]),
        "/down": ContextMiddleware(inner, identity=down),
        "/several": ContextMiddleware(inner, identity=first_of(bearer, ByApiKey()), websocket_origins=[PAGE]),
    }

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await apps[scope.get("path", "/")](scope, receive, send)

    return app


def seen(scope: Any) -> dict[str, Any]:
    """What the app sees of the client and of what it has sent."""
    context = current_context()
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"sec-websocket-protocol"]
    return {
        "who": [context.tenant, context.user],
        "subprotocols": list(scope.get("subprotocols", ())),
        "protocols": lines,
    }


async def answer(bearer: JWTAuth, scope: Any, receive: Any, send: Any) -> None:
    body = json.dumps(seen(scope)).encode()
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


async def converse(bearer: JWTAuth, scope: Any, receive: Any, send: Any) -> None:
    """Select a subprotocol, say what was seen, then renew by whatever text comes."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    await send({"type": "websocket.send", "text": json.dumps(seen(scope))})
    while (event := await receive())["type"] == "websocket.receive":
        said = "renewed"
        try:
            await bearer.renew(event["text"])
        except RequestRejected as rejection:
            said = str(rejection)
        await send({"type": "websocket.send", "text": said})


async def live(bearer: JWTAuth, scope: Any, receive: Any, send: Any) -> None:
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


KINDS = {"http": answer, "websocket": converse, "lifespan": live}


# The servers


@contextmanager
def granian() -> Iterator[int]:
    """Granian in a process of its own, on a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    here = Path(__file__)
    paths = [str(here.parents[2]), str(here.parents[1]), str(here.parent), os.environ.get("PYTHONPATH", "")]
    command = ["--interface", "asgi", "--factory", "--host", "127.0.0.1", "--port", str(port), "--no-log"]
    process = subprocess.Popen(
        [sys.executable, "-m", "granian", *command, f"{here.stem}:make_app"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, f"granian has ended with {process.returncode}"
            try:
                with Wire(port) as wire:
                    assert wire.ask(request()).status == 401
                break
            except OSError:
                assert time.monotonic() < until, "granian does not start"
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)


KINDS_OF_SERVERS = ["uvicorn-h11", "uvicorn-httptools", "hypercorn", "granian"]


@pytest.fixture(scope="module")
def running() -> Iterator[Callable[[str], int]]:
    ports: dict[str, int] = {}
    with ExitStack() as stack:

        def start(kind: str) -> int:
            if kind not in ports:
                if kind == "granian":
                    ports[kind] = stack.enter_context(granian())
                else:
                    server = stack.enter_context(serving(SERVERS[kind], make_app()))
                    assert server.started, server.failure
                    ports[kind] = server.port
            return ports[kind]

        yield start


@pytest.fixture(params=KINDS_OF_SERVERS)
def port(request: pytest.FixtureRequest, running: Callable[[str], int]) -> int:
    return running(request.param)


# The client


def token(left: float = 600, **claims: Any) -> str:
    """A token that is good for so many seconds more, by the clock on the wall."""
    return jwt_makers.token(KEY, exp=time.time() + left, **claims)


def bearer(text: str) -> bytes:
    return b"authorization: Bearer " + text.encode()


def ask(port: int, *headers: bytes, path: bytes = b"/") -> Response:
    with Wire(port) as wire:
        return wire.ask(request(*headers, target=path))


def ask_for_websocket(port: int, *headers: bytes, path: bytes = b"/") -> Response:
    """The answer to a handshake that is refused."""
    with Wire(port) as wire:
        return wire.ask(handshake(*headers).replace(b"GET / ", b"GET %s " % path))


def refusal(response: Response) -> tuple[int, str, list[bytes]]:
    assert response.all(b"content-type") == [b"application/problem+json"]
    problem = response.json()
    assert problem["status"] == response.status
    return response.status, problem["code"], response.all(b"www-authenticate")


def opened(port: int, text: str | None = None, path: str = "/", **options: Any) -> ClientConnection:
    headers = {} if text is None else {"authorization": f"Bearer {text}"}
    options = {"additional_headers": headers, "open_timeout": PATIENCE, "close_timeout": PATIENCE, **options}
    return connect(f"ws://127.0.0.1:{port}{path}", proxy=None, **options)


def told(connection: ClientConnection) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(connection.recv(PATIENCE))
    return said


def renewed(connection: ClientConnection, text: str) -> str:
    connection.send(text)
    return str(connection.recv(PATIENCE))


# HTTP


def test_a_good_token_is_let_in(port: int) -> None:
    response = ask(port, bearer(token()))
    assert (response.status, response.json()["who"]) == (200, ["acme", "ann"])
    response = ask(port, b"cookie: a=b; session=" + token(sub="bob").encode())
    assert (response.status, response.json()["who"]) == (200, ["acme", "bob"])


CASES: dict[str, tuple[Callable[[], list[bytes]], tuple[int, str, list[bytes]]]] = {
    "no credential": (list, (401, "identity_missing", [BARE])),
    "another scheme": (lambda: [b"authorization: Basic YTpi"], (401, "identity_missing", [BARE])),
    "no token": (lambda: [b"authorization: Bearer x"], (401, "invalid_token", [INVALID])),
    "expired": (lambda: [bearer(token(-1))], (401, "invalid_token", [INVALID])),
    "over-long": (lambda: [bearer("a" * 9000)], (401, "invalid_token", [INVALID])),
    "beyond ASCII": (lambda: [b"authorization: Bearer \xe9\xff"], (401, "invalid_token", [INVALID])),
    "two headers": (
        lambda: [bearer(token()), b"Authorization: Bearer x"],
        (400, "invalid_request", [b'Bearer error="invalid_request"']),
    ),
    "header and cookie": (
        lambda: [bearer(token()), b"cookie: session=" + token().encode()],
        (400, "invalid_request", [b'Bearer error="invalid_request"']),
    ),
    "a tenant of others": (lambda: [bearer(token(org_id="beta"))], (403, "tenant_forbidden", [])),
    "no tenant": (lambda: [bearer(token(org_id=...))], (403, "tenant_missing", [])),
    "an impossible tenant": (lambda: [bearer(token(org_id="a b"))], (400, "tenant_invalid", [])),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused_is_answered_over_the_wire(port: int, case: str) -> None:
    headers, expected = CASES[case]
    assert refusal(ask(port, *headers())) == expected


# Over-long lines do not get as far as the app everywhere: websockets, under uvicorn, takes none above 8192 bytes.
@pytest.mark.parametrize("case", [case for case in CASES if case != "over-long"])
def test_what_is_refused_is_answered_before_a_websocket_is_accepted(port: int, case: str) -> None:
    """By the denial response, which all of these servers offer: a client is told the same as over HTTP."""
    headers, expected = CASES[case]
    assert refusal(ask_for_websocket(port, *headers())) == expected


@pytest.mark.parametrize("asked", [ask, ask_for_websocket], ids=["http", "websocket"])
def test_keys_that_cannot_be_had_are_the_servers_fault(port: int, asked: Any) -> None:
    response = asked(port, bearer(token()), path=b"/down")
    assert refusal(response) == (503, "keys_unavailable", [])
    (wait,) = response.all(b"retry-after")
    assert 1 <= int(wait) <= 10


def is_told_of_both(response: Response) -> bool:
    status, code, challenges = refusal(response)
    assert (status, code) == (401, "identity_missing")
    return b", ".join(challenges) == BARE + b', ApiKey realm="things"'


def test_challenges_of_several_sources_reach_the_client(port: int) -> None:
    assert is_told_of_both(ask(port, path=b"/several"))


def test_challenges_of_several_sources_reach_the_client_of_a_websocket(port: int) -> None:
    assert is_told_of_both(ask_for_websocket(port, path=b"/several"))


def test_nothing_of_a_token_comes_back(port: int) -> None:
    text = token(-1)
    for wire_request in (request(bearer(text)), handshake(bearer(text))):
        with Wire(port) as wire:
            assert wire.ask(wire_request).status == 401
            assert not [part for part in text.split(".") if part.encode() in wire.received]


# WebSockets


def test_a_websocket_is_accepted_by_the_header(port: int) -> None:
    with opened(port, token()) as connection:
        assert told(connection) == {"who": ["acme", "ann"], "subprotocols": [], "protocols": []}
        assert connection.subprotocol is None


def test_a_websocket_is_accepted_by_a_parameter_of_the_query(port: int) -> None:
    with opened(port, path=f"/?token={token(sub='bob')}") as connection:
        assert told(connection)["who"] == ["acme", "bob"]
    assert refusal(ask(port, path=b"/?token=" + token().encode())) == (401, "identity_missing", [BARE])


def test_a_websocket_is_accepted_by_a_cookie_from_the_apps_own_pages_alone(port: int) -> None:
    cookie = "session=" + token()
    for origin in (PAGE, None):
        with opened(port, additional_headers={"cookie": cookie}, origin=origin) as connection:
            assert told(connection)["who"] == ["acme", "ann"]
    line = b"cookie: " + cookie.encode()
    forbidden = (403, "origin_forbidden", [])
    for other in (b"https://evil.net", b"null", b"", PAGE.encode() + b"/", PAGE.upper().encode()):
        assert refusal(ask_for_websocket(port, line, b"origin: " + other)) == forbidden
    twice = b"origin: " + PAGE.encode()
    assert ask_for_websocket(port, line, twice, twice).status in {400, 403}  # websockets, under uvicorn: 400
    assert ask(port, line, b"origin: https://evil.net").status == 200  # HTTP has CORS and SameSite


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_a_websocket_is_accepted_by_a_protocol_that_is_never_selected(port: int, first: bool) -> None:
    text = token()
    offered = ["chat", "v2.chat"]
    offered.insert(0 if first else 2, f"bearer.{text}")
    with opened(port, subprotocols=offered) as connection:
        saw = told(connection)
        assert saw["who"] == ["acme", "ann"]
        assert saw["subprotocols"] == ["chat", "v2.chat"]
        # uvicorn on wsproto hands the header over nowhere but in the list.
        assert ", ".join(saw["protocols"]) in {"chat, v2.chat", ""}
        assert connection.subprotocol == "chat"
        assert text not in repr(list(connection.response.headers.raw_items()))  # type: ignore[union-attr]


def test_where_the_token_is_the_only_protocol_none_is_selected(port: int) -> None:
    with opened(port, subprotocols=[f"bearer.{token()}"]) as connection:
        assert told(connection) == {"who": ["acme", "ann"], "subprotocols": [], "protocols": []}
        assert connection.subprotocol is None


def test_the_protocols_may_come_in_several_lines_and_with_any_space(port: int) -> None:
    text = token().encode()
    lines = [b"sec-websocket-protocol: chat ,\tbearer." + text + b"\t, v2.chat", b"Sec-WebSocket-Protocol: more"]
    with Wire(port) as wire:
        wire.send(handshake(*lines))
        while b'"protocols"' not in wire.received:
            assert wire.receive(), wire.received
        assert wire.received.startswith(b"HTTP/1.1 101 ")
        assert b'"who": ["acme", "ann"]' in wire.received
        assert text not in wire.received
        assert b"bearer." not in wire.received


def test_protocols_with_a_bad_token_or_two_are_refused(port: int) -> None:
    line = b"sec-websocket-protocol: chat, bearer."
    assert refusal(ask_for_websocket(port, line + token(-1).encode())) == (401, "invalid_token", [INVALID])
    twice = (400, "invalid_request", [b'Bearer error="invalid_request"'])
    text = token().encode()
    assert refusal(ask_for_websocket(port, line + text + b", bearer." + text)) == twice
    assert refusal(ask_for_websocket(port, line + text, b"sec-websocket-protocol: bearer." + text)) == twice
    assert refusal(ask_for_websocket(port, line + text, bearer(token()))) == twice


def closed(connection: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as caught:
        connection.recv(PATIENCE)
    close = caught.value.rcvd
    assert close is not None
    return close.code, close.reason


def test_a_connection_ends_with_its_token_unless_that_is_renewed(port: int) -> None:
    text = token(SOON)
    with opened(port, text) as one, opened(port, text) as two:
        assert told(one)["who"] == told(two)["who"] == ["acme", "ann"]
        for wrong, why in (
            (token(sub="bob"), "403 user_mismatch"),
            (token(org_id="beta"), "403 tenant_forbidden"),
            (token(-1), "401 invalid_token"),
            ("no token", "401 invalid_token"),
        ):
            assert renewed(two, wrong) == why
        assert renewed(one, token()) == "renewed"

        assert closed(two) == (4401, "identity_expired")
        assert refusal(ask_for_websocket(port, bearer(text)))[:2] == (401, "invalid_token")
        # One has outlived the token that it was opened with: the other shows that its time is up.
        assert renewed(one, token()) == "renewed"
