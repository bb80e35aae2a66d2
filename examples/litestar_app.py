"""Litestar for several tenants: the middleware around the app, the context and the state as dependencies.

    python examples/litestar_app.py    serves it on 127.0.0.1, and prints curl lines to try; Ctrl-C ends it

Every user has a cart, which nobody else can reach; a tenant's users share a count of what was sold, which is kept after
the answer. Each message of a WebSocket names its user, of the same tenant, and is handled for that one. Who names no
tenant is refused before the app is called.

In ``Litestar(middleware=[DefineMiddleware(ContextMiddleware, ...)])``, Litestar makes one for each handler, each with
pools and a default store of its own, and hands it no lifespan: so it is better mounted around.

What it needs, in the checkout: pip install ".[examples]"
"""

import socket
import sys
from contextlib import suppress
from typing import Any

import uvicorn
from litestar import Litestar, Response, get, post, websocket_listener
from litestar.background_tasks import BackgroundTask
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath

from asgi_context import (
    ContextMiddleware,
    MemoryStore,
    RequestContext,
    SharedState,
    current_context,
    current_state,
    from_header,
    json_message,
)


async def provide_context() -> RequestContext:
    """Give the context to handlers that name it as a parameter; as a coroutine function, it needs no thread."""
    return current_context()


async def provide_state() -> SharedState:
    """Give the state likewise."""
    return current_state()


async def count_sale(article: str) -> None:
    """Run after the answer, still on behalf of whoever was answered."""
    await current_state().tenant_wide.increment("sold", article)


@post("/cart/{article:str}", status_code=200)
async def add(
    article: FromPath[str], context: NamedDependency[RequestContext], cart: NamedDependency[SharedState]
) -> Response[dict[str, Any]]:
    """Put an article into the cart of whoever asks."""
    number = await cart.increment("cart", article)
    answer = {"tenant": context.tenant, "user": context.user, article: number}
    return Response(answer, background=BackgroundTask(count_sale, article))


@get("/cart", sync_to_thread=True)
def look(cart: NamedDependency[SharedState]) -> dict[str, Any]:
    """Read the cart and the tenant's sales, in a thread."""
    return {"cart": cart.sync.get("cart"), "sold": cart.sync.tenant_wide.get("sold")}


@websocket_listener("/live")
async def live(data: dict[str, str]) -> dict[str, Any]:
    """Put what a message names into the cart of whom it names: asked for here, and not before the first message."""
    number = await current_state().increment("cart", data["article"])
    return {"user": current_context().user, data["article"]: number}


tenant = from_header("x-tenant-id")
app = ContextMiddleware(
    Litestar(  # type: ignore[arg-type]  # which says what keys a scope has, where any are taken here
        [add, look, live],
        dependencies={"context": Provide(provide_context), "cart": Provide(provide_state)},
    ),
    # To try things out. Anybody can send any header: in earnest, have a gateway set them, or check a token.
    tenant=tenant,
    user=from_header("x-user-id"),
    message=json_message(tenant="tenant", user="user"),
    # A message may name another user than its connection, but of no other tenant: it is asked with the identity that
    # the message names, and the scope is the connection's.
    authorize=lambda context, scope: tenant(scope) == context.tenant,
    store=MemoryStore(),
)


def main(port: int = 0) -> None:
    """Serve it; without a port, on a free one."""
    config = uvicorn.Config(app, ws="websockets-sansio", log_level="warning", timeout_graceful_shutdown=2)
    with socket.create_server(("127.0.0.1", port)) as listener, suppress(KeyboardInterrupt):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ann, other = (f'curl -i -H "x-tenant-id: {tenant}" -H "x-user-id: ann"' for tenant in ("acme", "globex"))
        print(f"{ann} -X POST {url}/cart/apple\n{ann} {url}/cart\n{other} {url}/cart\ncurl -i {url}/cart")
        print("\nCtrl-C ends it.", flush=True)
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
