"""An API of two tenants whose users come with signed tokens: who is let in, who is refused, and why?

    python examples/jwt_api.py            takes a few seconds; exit status 1 if any answer is not the right one
    python examples/jwt_api.py --serve    leaves the server running afterwards, with curl lines to try

The first part is an app: wrapped once, with a `JWTAuth` that says who issues tokens and for whom. The second part
stands for the two issuers, and for those who would like to be one. The third part sends what they made, over HTTP and
over WebSockets, and compares every answer. A client is told a code and a fixed text; what was wrong with a token in
particular stands in the server's log alone.

What it needs, in the checkout: pip install ".[examples]"
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import logging
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType

import httpx
import uvicorn
from joserfc import jws
from joserfc.jwk import ECKey
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from asgi_context import ContextMiddleware, RequestRejected, current_context
from asgi_context.jwt import Issuer, JWTAuth

API = "https://api.example.com"
PAGE = "https://app.example.com"
ACME, GLOBEX = "https://id.acme.example", "https://id.globex.example"
KEYS = {name: ECKey.generate_key("P-256", {"kid": f"{name}#1"}) for name in (ACME, GLOBEX)}

# The app.


def who_asks() -> str:
    """Ask the context, as any function of the app can."""
    context = current_context()
    return f"{context.tenant}/{context.user}"


async def get_me(_: Request) -> JSONResponse:
    """Tell a client who it is."""
    return JSONResponse({"who": who_asks()})


async def live(websocket: WebSocket) -> None:
    """Answer for as long as the token lasts, or the newer one that a message brings."""
    await websocket.accept(subprotocol="chat" if "chat" in websocket.scope["subprotocols"] else None)
    async for message in websocket.iter_json():
        try:
            if "token" in message:
                await auth.renew(message["token"])
            await websocket.send_json({"who": who_asks()})
        except RequestRejected as rejection:
            await websocket.send_json({"code": rejection.code})


def issuer(name: str, tenant: str) -> Issuer:
    """Say whom to believe about a tenant."""
    return Issuer(
        name,
        jwks={"keys": [KEYS[name].as_dict(private=False)]},  # in earnest: jwks_url="https://..."
        audience=API,
        tenant="org_id",
        tenants=[tenant],  # of this tenant alone
    )


# Each tenant has an issuer of its own. A user "ann" of one is nobody that the other knows.
auth = JWTAuth(issuers=[issuer(ACME, "acme"), issuer(GLOBEX, "globex")], websocket_protocol="bearer.")
app = ContextMiddleware(
    Starlette(routes=[Route("/me", get_me), WebSocketRoute("/live", live)]),
    identity=auth,
    websocket_origins=[PAGE],  # pages of others may not open a WebSocket
)

# The issuers, and those who would like to be one.


def issue(
    name: str = ACME,
    *,
    key: ECKey | None = None,
    header: Mapping[str, str] | None = None,
    payload: str | None = None,
    **changes: object,
) -> str:
    """Sign a token: a good one, but for what is changed; what is changed to None is left out."""
    now = int(time.time())
    tenant = "acme" if name == ACME else "globex"
    claims = {"iss": name, "aud": API, "sub": "ann", "org_id": tenant, "iat": now, "exp": now + 3600} | changes
    text = payload or json.dumps({claim: value for claim, value in claims.items() if value is not None})
    return jws.serialize_compact({"alg": "ES256", "kid": KEYS[name].kid, **(header or {})}, text, key or KEYS[name])


def segment(part: object) -> str:
    """Encode what a segment of a token holds."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged() -> dict[str, str]:
    """Make tokens that a client could make without anybody's key."""
    good = issue()
    header, payload, signature = good.split(".")
    anothers = issue(sub="bob").split(".")[1]
    # Whoever lets the token choose the algorithm takes the public key, which everybody has, for a shared secret.
    signed = f"{segment({'alg': 'HS256', 'kid': KEYS[ACME].kid})}.{payload}"
    by_public_key = hmac.digest(KEYS[ACME].as_pem(private=False), signed.encode(), hashlib.sha256)
    return {
        "signed with a key of one's own": issue(key=ECKey.generate_key("P-256")),
        "signed by nobody (alg none)": f"{segment({'alg': 'none'})}.{payload}.",
        "signed with the public key (alg HS256)": f"{signed}.{segment(by_public_key)}",
        "bob's claims under ann's signature": f"{header}.{anothers}.{signature}",
        "too long": good + "A" * 10_000,
        "no token at all": "hello",
    }


# The clients.


@dataclass
class Attempt:
    """What was tried, what must come of it, and what came of it."""

    name: str
    expected: str
    answer: str = ""
    why: str = ""


class Log(logging.Handler):
    """Keeps why tokens were refused, which is logged at the level DEBUG."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        said, _, reason = record.getMessage().partition(": ")
        if said == "refused a token":
            self.reasons.append(reason)


@contextmanager
def listening() -> Iterator[Log]:
    """Hear what the middleware logs."""
    log, logger = Log(), logging.getLogger("asgi_context")
    level = logger.level
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)


def bearer(token: str) -> dict[str, str]:
    """Make the header that carries a token."""
    return {"authorization": f"Bearer {token}"}


class Clients:
    """Try everything, one after the other."""

    def __init__(self, url: str, http: httpx.AsyncClient, stack: AsyncExitStack, log: Log) -> None:
        self.url = url.replace("http:", "ws:") + "/live"
        self.http = http
        self.stack = stack
        self.log = log
        self.attempts: list[Attempt] = []

    async def get(self, name: str, expected: str, *tokens: str) -> None:
        """Send a request."""
        answer = await self.http.get("/me", headers=[pair for token in tokens for pair in bearer(token).items()])
        members = answer.json()
        self._note(name, expected, f"{answer.status_code} {members.get('who') or members.get('code')}", members)

    async def open(
        self,
        name: str,
        expected: str,
        token: str | None = None,
        *,
        query: str = "",
        origin: str | None = None,
        protocols: Sequence[str] = (),
    ) -> ClientConnection | None:
        """Open a WebSocket, and ask who it is for."""
        opening = connect(
            self.url + query,
            additional_headers=None if token is None else bearer(token),
            origin=None if origin is None else Origin(origin),
            subprotocols=[Subprotocol(protocol) for protocol in protocols] or None,
            proxy=None,
            open_timeout=None,
        )
        try:
            websocket = await self.stack.enter_async_context(opening)
        except InvalidStatus as refused:
            members = json.loads(refused.response.body or b"{}")
            self._note(name, expected, f"{refused.response.status_code} {members.get('code')}", members)
            return None
        await self.ask(name, expected, websocket)
        return websocket

    async def ask(self, name: str, expected: str, websocket: ClientConnection | None, **message: str) -> None:
        """Send a message, and wait for what comes."""
        answer = "no connection"
        if websocket is not None:
            with suppress(ConnectionClosed):
                await websocket.send(json.dumps(message))
                answer = " ".join(json.loads(await websocket.recv()).values())
            if websocket.close_code is not None:
                answer = f"{websocket.close_code} {websocket.close_reason}"
        self._note(name, expected, answer)

    async def outlast(self, name: str, expected: str, websocket: ClientConnection | None) -> None:
        """Wait until the server closes a WebSocket."""
        if websocket is not None:
            await websocket.wait_closed()
        await self.ask(name, expected, websocket)

    def _note(self, name: str, expected: str, answer: str, members: Mapping[str, str] = MappingProxyType({})) -> None:
        reasons, self.log.reasons = self.log.reasons, []
        why = "; ".join(f"log: {reason}" for reason in reasons) or members.get("detail", "")
        self.attempts.append(Attempt(name, expected, answer, why))


async def run(url: str, seconds: float, log: Log) -> list[Attempt]:
    """Try everything."""
    async with (
        asyncio.timeout(seconds),
        # No proxy out of the environment, here and above: it would not reach the loopback of this machine.
        httpx.AsyncClient(base_url=url, timeout=seconds, trust_env=False) as http,
        AsyncExitStack() as stack,
    ):
        clients = Clients(url, http, stack, log)
        await over_http(clients)
        await over_websockets(clients)
    return clients.attempts


async def over_http(clients: Clients) -> None:
    """Send requests."""
    now, get, invalid = time.time(), clients.get, "401 invalid_token"
    await get("ann of acme", "200 acme/ann", issue())
    await get("another ann, of globex", "200 globex/ann", issue(GLOBEX))
    await get("nobody", "401 identity_missing")
    for name, token in forged().items():
        await get(name, invalid, token)
    await get("expired", invalid, issue(exp=now - 1))
    await get("never expires", invalid, issue(exp=None))
    await get("for tomorrow", invalid, issue(nbf=now + 86_400))
    await get("for another API", invalid, issue(aud="https://shop.example.com"))
    await get("of another issuer", invalid, issue(iss="https://id.example.net"))
    await get("made for something else (typ)", invalid, issue(header={"typ": "logout+jwt"}))
    await get("acme's issuer speaks for globex", "403 tenant_forbidden", issue(org_id="globex"))
    await get("names no tenant", "403 tenant_missing", issue(org_id=None))
    await get("names no good tenant", "400 tenant_invalid", issue(org_id="../globex"))
    twice = issue(payload='{"org_id": "acme", "org_id": "globex"}')
    await get("names two tenants", invalid, twice)
    await get("two tokens", "400 invalid_request", issue(), issue(GLOBEX))


async def over_websockets(clients: Clients) -> None:
    """Open WebSockets."""
    soon = time.time() + 3
    short = issue(exp=soon)
    renewed = await clients.open("WebSocket, of a token of 3 seconds", "acme/ann", short)
    await clients.ask("... renewed by a token of acme's bob", "user_mismatch", renewed, token=issue(sub="bob"))
    await clients.ask("... renewed by a newer token of ann's", "acme/ann", renewed, token=issue())
    forgotten = await clients.open("another, of a token of 3 seconds", "acme/ann", short)

    # Browsers set no headers, but these two: a page gives its token as a subprotocol.
    browser = ["chat", f"bearer.{issue(GLOBEX)}"]
    evil = "https://evil.example"
    await clients.open("WebSocket, from a page of ours", "globex/ann", origin=PAGE, protocols=browser)
    await clients.open("... from a page of others", "403 origin_forbidden", origin=evil, protocols=browser)
    await clients.open("... with the token in the URL", "401 identity_missing", query=f"?access_token={issue()}")
    await clients.open("... of a token that has expired", "401 invalid_token", issue(exp=soon - 60))

    await clients.outlast("3 seconds later: not renewed", "4401 identity_expired", forgotten)
    await clients.ask("3 seconds later: renewed", "acme/ann", renewed)


def table_of(attempts: list[Attempt]) -> Table:
    """Lay out what came of everything."""
    table = Table()
    for name in ("token", "answer", "why"):
        table.add_column(name, overflow="fold")
    for attempt in attempts:
        table.add_row(attempt.name, attempt.answer, attempt.why)
    return table


@contextmanager
def serving(application: ASGIApp, port: int) -> Iterator[str]:
    """Serve an app for as long as the block runs, and give its URL."""
    config = uvicorn.Config(application, ws="websockets-sansio", log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    # uvicorn says this of every WebSocket that is answered by HTTP, as its own extension has it.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "completing handshake" not in record.msg)
    with socket.create_server(("127.0.0.1", port)) as listener:  # bound here, so that nobody else can take a free port
        # In a thread it has an event loop of its own, as in earnest, and leaves Ctrl-C to us.
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def wait_for_ctrl_c(url: str) -> None:
    """Say what to try in the meantime."""
    tokens = issue(), issue(GLOBEX), issue(org_id="globex"), issue(key=ECKey.generate_key("P-256"))
    one, other, foreign, own = (shlex.join(["curl", "-i", "-H", f"authorization: Bearer {token}"]) for token in tokens)
    with suppress(KeyboardInterrupt):
        print("\nGood for an hour:\n")
        print(f"{one} {url}/me\n{other} {url}/me")
        print("\nOf no token, of acme's issuer for globex, and of a key of one's own:\n")
        print(f"curl -i {url}/me\n{foreign} {url}/me\n{own} {url}/me")
        print("\nCtrl-C ends the server.", flush=True)
        while True:
            time.sleep(1)


def main(argv: Sequence[str] | None = None, application: ASGIApp = app) -> int:
    """Run it all, and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=60, help="seconds after which to give up (default: 60)")
    parser.add_argument("--serve", action="store_true", help="after the run, go on serving until Ctrl-C")
    parser.add_argument("--port", type=int, default=0, help="where to serve on 127.0.0.1 (default: a free port)")
    args = parser.parse_args(argv)
    try:
        with serving(application, args.port) as url:
            with listening() as log:
                attempts = asyncio.run(run(url, args.timeout, log))
            Console().print(table_of(attempts))
            wrong = [attempt for attempt in attempts if attempt.answer != attempt.expected]
            for attempt in wrong:
                print(f"{attempt.name}: expected {attempt.expected}, got {attempt.answer}", file=sys.stderr)
            if args.serve:
                wait_for_ctrl_c(url)
    except TimeoutError:
        print(f"not done after {args.timeout:g} seconds, gave up", file=sys.stderr)
        return 1
    except (OSError, OverflowError) as error:  # the port is taken, or is none
        parser.error(f"--port {args.port}: {error}")
    except KeyboardInterrupt:
        return 130
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
