"""Starlette for several tenants: the middleware in its list, and nothing that is handed from function to function.

    python examples/starlette_app.py    serves it on 127.0.0.1, and prints curl lines to try; Ctrl-C ends it

Every user has notes, which nobody else can reach; a tenant's users share a count of them, which is kept after the
answer. A WebSocket carries messages of several users of a tenant, each of which is bound as it is read. Who names no
tenant is refused before the app is called.

What it needs, in the checkout: pip install ".[examples]"
"""

import socket
import sys
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_context import ContextMiddleware, MemoryStore, current_context, current_state, from_header, json_message


async def count_note() -> None:
    """Run after the answer, still on behalf of whoever was answered."""
    await current_state().tenant_wide.increment("counts", "notes")


async def keep(title: str, text: str) -> dict[str, str | None]:
    """Keep a note of whoever asks, be it a request or a message."""
    await current_state().update_field("notes", title, text)
    context = current_context()
    return {"tenant": context.tenant, "user": context.user, "kept": title}


async def put_note(request: Request) -> JSONResponse:
    """Keep what was sent."""
    kept = await keep(request.path_params["title"], (await request.body()).decode())
    return JSONResponse(kept, background=BackgroundTask(count_note))


def get_notes(_: Request) -> JSONResponse:
    """Read all of them, in a thread."""
    state = current_state().sync
    return JSONResponse({"notes": state.get("notes"), "of_tenant": state.tenant_wide.get("counts")})


async def live(websocket: WebSocket) -> None:
    """Keep a note for each message, of the user that it names."""
    await websocket.accept()
    async for message in websocket.iter_json():
        await websocket.send_json(await keep(message["title"], message["text"]))


tenant = from_header("x-tenant-id")
app = Starlette(
    routes=[
        Route("/notes", get_notes),
        Route("/notes/{title}", put_note, methods=["PUT"]),
        WebSocketRoute("/live", live),
    ],
    middleware=[
        Middleware(
            ContextMiddleware,
            # To try things out. Anybody can send any header: in earnest, have a gateway set them, or check a token.
            tenant=tenant,
            user=from_header("x-user-id"),
            message=json_message(tenant="tenant", user="user"),
            # A message may name another user than its connection, but of no other tenant: it is asked with the
            # identity that the message names, and the scope is the connection's.
            authorize=lambda context, scope: tenant(scope) == context.tenant,
            store=MemoryStore(),
        )
    ],
)


def main(port: int = 0) -> None:
    """Serve it; without a port, on a free one."""
    config = uvicorn.Config(app, ws="websockets-sansio", log_level="warning", timeout_graceful_shutdown=2)
    with socket.create_server(("127.0.0.1", port)) as listener, suppress(KeyboardInterrupt):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ann, other = (f'curl -i -H "x-tenant-id: {tenant}" -H "x-user-id: ann"' for tenant in ("acme", "globex"))
        print(
            f'{ann} -X PUT -d "buy milk" {url}/notes/today\n{ann} {url}/notes\n{other} {url}/notes\ncurl -i {url}/notes'
        )
        print("\nCtrl-C ends it.", flush=True)
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
