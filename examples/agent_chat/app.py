"""A chat with an agent whose tools act as whoever asks: open two windows, of two tenants, and look.

    python examples/agent_chat/app.py                                  prints the address; state is kept in memory
    python examples/agent_chat/app.py --redis redis://localhost:6379   the same in Redis, for any number of processes
    python -m uvicorn --app-dir examples/agent_chat --factory app:make_app

The README beside this file says what to look at. What it needs, in the checkout: pip install
".[examples,fastapi,tools]"; for --redis, also ".[redis]"
"""

import argparse
import os
import secrets
import socket
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn
from agent import TOOLS, Agent, think
from fastapi import FastAPI, HTTPException, WebSocket
from fastapi.staticfiles import StaticFiles
from joserfc import jwt
from joserfc.jwk import OctKey
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from talk import Windows, talk

from asgi_context import ContextMiddleware, MemoryStore, RequestContext, Store, current_context
from asgi_context.jwt import JWTAuth
from asgi_context.tools import ToolLimits, ToolSystem, ToolSystemFactory

PAGE = Path(__file__).parent / "page"
PUBLIC = {"/", "/login", *(f"/{file.name}" for file in PAGE.iterdir())}
MEMBERS = {"acme": {"ann", "bob"}, "globex": {"ann", "eve"}}  # in earnest a table; the two anns are strangers
ISSUER, AUDIENCE = "https://id.chat.example", "https://chat.example"
LIMITS = ToolLimits(at_once=4, per_minute=60)
KEPT = 86_400  # seconds from its beginning, for which a conversation or a board is kept
HEADERS = {
    # By Trusted Types, no script can make HTML of a text, ours included.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Login(BaseModel):
    """Who somebody would like to be."""

    tenant: str
    user: str


def may_act(context: RequestContext, _: Scope) -> bool:
    """Say whether a user is of a tenant: asked with each request, whatever an older token says."""
    return context.user in MEMBERS.get(context.tenant, set())


def make_app(
    store: Store | None = None,
    *,
    origins: Collection[str] | None = None,
    secret: str | None = None,
    agent: Agent = think,
    lifetime: float = 3600,
    limits: ToolLimits = LIMITS,
) -> ASGIApp:
    """Make the app.

    Args:
        store: where state is kept; by default in Redis, if AGENT_CHAT_REDIS has its URL, or else in memory.
        origins: where the page is served; by default as AGENT_CHAT_ORIGINS has it, or else at port 8000 here.
        secret: signs the tokens; by default AGENT_CHAT_SECRET, which several processes must share, or else a new one.
        agent: answers.
        lifetime: how many seconds a token lasts.
        limits: how many calls of tools there may be for each user.

    Returns:
        The app.
    """
    store = store or make_store(os.environ.get("AGENT_CHAT_REDIS"))
    origins = origins or os.environ.get("AGENT_CHAT_ORIGINS", " ".join(origins_of(8000))).split()
    key = OctKey.import_key(secret or os.environ.get("AGENT_CHAT_SECRET") or secrets.token_urlsafe(32))
    # What another process has written is found by looking again.
    poll = None if isinstance(store, MemoryStore) else 1.0
    windows = Windows()
    app = FastAPI(openapi_url=None)  # the pages that show it come from elsewhere

    @app.post("/login")
    async def login(asked: Login) -> dict[str, str]:
        """Issue a token. In earnest an identity provider does, and asks for more than a name."""
        if asked.user not in MEMBERS.get(asked.tenant, set()):
            raise HTTPException(403, "This user does not belong to this tenant.")
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": asked.user, "org_id": asked.tenant}
        return {"token": jwt.encode({"alg": "HS256"}, claims | {"exp": time.time() + lifetime}, key)}

    @app.get("/me")
    async def me() -> dict[str, str | None]:
        """Say who asks. Browsers do not tell pages why a WebSocket was refused; this does."""
        context = current_context()
        return {"tenant": context.tenant, "user": context.user}

    @app.websocket("/chat")
    async def chat(websocket: WebSocket) -> None:
        await talk(websocket, agent, windows, poll)

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    bound = ContextMiddleware(
        app,
        identity=JWTAuth(  # in earnest, jwks_url="https://..." in place of the key
            issuer=ISSUER,
            audience=AUDIENCE,
            key=key.as_dict(),
            algorithms=["HS256"],
            tenant="org_id",
            websocket_protocol="bearer.",
        ),
        websocket_origins=origins,
        exempt=lambda scope: scope["type"] == "http" and scope["path"] in PUBLIC,
        authorize=may_act,
        store=store,
        resources={ToolSystem: ToolSystemFactory(TOOLS, user_limits=limits)},
        pools={"tool": 8},
    )

    async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(event: Message) -> None:
            if event["type"] == "http.response.start":
                MutableHeaders(scope=event).update(HEADERS)
            await send(event)

        await bound(scope, receive, send_with_headers if scope["type"] == "http" else send)

    return with_headers


def make_store(redis: str | None) -> Store:
    """Make the store."""
    if redis is None:
        return MemoryStore(default_ttl=KEPT)
    from asgi_context.redis import RedisStore  # noqa: PLC0415 - another extra

    return RedisStore.from_url(redis, default_ttl=KEPT)


def origins_of(port: int) -> list[str]:
    """Give what browsers call the pages of this machine."""
    return [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one (default: 8000)")
    parser.add_argument("--redis", metavar="URL", help="keep state in Redis or Valkey, such as redis://localhost:6379")
    args = parser.parse_args(argv)
    try:
        listening = socket.create_server(("127.0.0.1", args.port))
    except (OSError, OverflowError) as error:
        parser.error(f"--port {args.port}: {error}")
    with listening, suppress(KeyboardInterrupt):
        # Else events, which are small, wait for each other (RFC 896).
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        origins = origins_of(listening.getsockname()[1])
        app = make_app(make_store(args.redis) if args.redis else None, origins=origins)
        print(f"{origins[0]} - Ctrl-C ends it.", flush=True)
        config = uvicorn.Config(
            app, log_level="warning", ws="websockets-sansio", ws_max_size=65_536, timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
