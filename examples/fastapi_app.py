"""FastAPI for several tenants: the context as a parameter, and a documentation that says what clients must send.

    python examples/fastapi_app.py    serves it on 127.0.0.1, and prints curl lines to try; Ctrl-C ends it

Every user has a profile, which nobody else can reach, and a WebSocket that tells it; a tenant's users share a guest
book, which is signed after the answer. Who names no tenant is refused before the app is called. ``/`` and ``/docs`` are
for everybody, and "Authorize" there asks for the two headers.

What it needs, in the checkout: pip install ".[examples]"
"""

import socket
import sys
from contextlib import suppress

import uvicorn
from fastapi import BackgroundTasks, FastAPI, WebSocket
from pydantic import BaseModel

from asgi_context import ContextMiddleware, MemoryStore, current_context, current_state, from_header
from asgi_context.fastapi import CurrentContext, CurrentState, OptionalContext, document_context

OPEN = {"/docs", "/openapi.json", "/"}  # for everybody: what is exempt runs with nothing bound


class Profile(BaseModel):
    """What a user says of himself."""

    colour: str


app = FastAPI(title="Tenants")
app.add_middleware(
    ContextMiddleware,
    # To try things out. Anybody can send any header: in earnest, have a gateway set them, or check a token.
    tenant=from_header("x-tenant-id"),
    user=from_header("x-user-id"),
    exempt=lambda scope: scope["path"] in OPEN,
    store=MemoryStore(),
)
document_context(app)


async def sign_guest_book() -> None:
    """Run after the answer, still on behalf of whoever was answered: nothing was handed over."""
    user = current_context().user or ""
    await current_state().tenant_wide.increment("guests", user)


@app.get("/")
async def welcome(context: OptionalContext) -> str:
    """Greet anybody."""
    return "Hello, whoever you are!" if context is None else f"Hello, {context.user}!"


@app.put("/profile")
async def put_profile(
    profile: Profile, context: CurrentContext, state: CurrentState, background: BackgroundTasks
) -> dict[str, str | None]:
    """Keep a profile of whoever asks."""
    await state.replace("profile", profile.model_dump())
    background.add_task(sign_guest_book)
    return {"tenant": context.tenant, "user": context.user}


@app.get("/profile")
def get_profile(state: CurrentState) -> Profile | None:
    """Read it, in a thread."""
    found = state.sync.get("profile")
    return None if found is None else Profile.model_validate(found)


@app.get("/guests")
async def get_guests(state: CurrentState) -> dict[str, int]:
    """Tell which users of the tenant have written, and how often."""
    return await state.tenant_wide.get("guests") or {}


@app.websocket("/live")
async def live(websocket: WebSocket, context: CurrentContext, state: CurrentState) -> None:
    """Tell the profile each time that a message comes."""
    await websocket.accept()
    async for _ in websocket.iter_text():
        await websocket.send_json({"user": context.user, "profile": await state.get("profile")})


def main(port: int = 0) -> None:
    """Serve it; without a port, on a free one."""
    config = uvicorn.Config(app, ws="websockets-sansio", log_level="warning", timeout_graceful_shutdown=2)
    with socket.create_server(("127.0.0.1", port)) as listener, suppress(KeyboardInterrupt):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ann, other = (f'curl -i -H "x-tenant-id: {tenant}" -H "x-user-id: ann"' for tenant in ("acme", "globex"))
        print(f"""{ann} -X PUT -H "content-type: application/json" -d '{{"colour": "green"}}' {url}/profile""")
        print(f"{ann} {url}/profile\n{ann} {url}/guests\n{other} {url}/profile\ncurl -i {url}/profile\ncurl -i {url}/")
        print(f"\nIn a browser: {url}/docs", flush=True)
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
