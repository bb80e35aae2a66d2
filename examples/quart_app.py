"""A Quart app whose requests, background tasks and WebSocket messages each know on whose behalf they run.

    python examples/quart_app.py             serves on 127.0.0.1 and prints what to try

Everybody writes on a board of their own; the tenant's board is what all its users have written. Only the gateway opens
WebSockets: each of their messages says who writes.

What it needs, in the checkout: pip install ".[quart]" uvicorn websockets
"""

import argparse
import json
import socket
from contextlib import suppress
from typing import Any

import uvicorn
from quart import Quart, request, websocket

from asgi_context import (
    MemoryStore,
    RequestRejected,
    bind_context,
    current_context,
    current_state,
    from_header,
    json_message,
    message_context,
    run_in_pool,
)
from asgi_context.quart import QuartContext
from asgi_context.values import get_from_context, set_request_context

context = QuartContext(
    # To try things out. Anybody can send any header: in earnest, have a gateway set them, or check a token.
    tenant=from_header("x-tenant-id"),
    user=from_header("x-user-id"),
    message=json_message(tenant="tenant", user="user"),
    authorize=lambda _, scope: scope["type"] == "http" or from_header("x-tenant-id")(scope) == "gateway",
    store=MemoryStore(),
    pools={"tool": 4},
)


def proofread(text: str) -> str:
    """Block, as a tool would: this runs in a thread of a pool."""
    return f"{current_context().user}: {text.strip()}"


async def write(text: str) -> dict[str, Any]:
    """Write for whoever asks; nothing here is handed a tenant or a user."""
    line = await run_in_pool("tool", proofread, text)
    lines = await current_state().increment("board", "lines")
    await current_state().update_field("board", "last", line)
    return {"line": line, "lines": lines}


async def tell_tenant(line: str) -> None:
    """Outlive the request, as its background task: whose it was stays known, and values are the block's own."""
    async with bind_context(values={"line": line}):
        board = current_state().tenant_wide
        await board.modify("board", lambda old: {"lines": [*old.get("lines", []), get_from_context("line")]})


def create_app() -> Quart:
    """Make the app, and wrap it: everything that it calls is bound from here on."""
    app = Quart(__name__)
    context.init_app(app)

    @app.before_request
    async def note_language() -> None:
        set_request_context({"language": request.headers.get("accept-language", "en")})

    @app.post("/board")
    async def post_line() -> dict[str, Any]:
        answer = await write((await request.body).decode())
        app.add_background_task(tell_tenant, answer["line"])
        return {**answer, "language": get_from_context("language")}

    @app.get("/board")
    async def get_board() -> dict[str, Any]:
        state = current_state()
        return {"own": await state.get("board"), "tenant": await state.tenant_wide.get("board")}

    @app.websocket("/live")
    async def live() -> None:
        while True:
            data = await websocket.receive()
            try:
                async with message_context(payload=data):
                    await websocket.send_json(await write(json.loads(data)["text"]))
            except RequestRejected:  # the middleware has closed the connection with 1008
                return

    return app


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="where to serve on 127.0.0.1 (default: a free port)")
    with socket.create_server(("127.0.0.1", parser.parse_args().port)) as listener, suppress(KeyboardInterrupt):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/board"
        ann = 'curl -H "x-tenant-id: acme" -H "x-user-id: ann"'
        print(f'{ann} -d "hello" {url}\n{ann} {url}')
        print(f'curl -H "x-tenant-id: globex" -H "x-user-id: ann" {url}\ncurl {url}', flush=True)
        config = uvicorn.Config(create_app(), log_level="warning", ws="websockets-sansio")
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
