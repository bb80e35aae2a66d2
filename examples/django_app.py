"""Django with Channels, wrapped once: views, middleware and consumers of both kinds know on whose behalf they run.

    python examples/django_app.py            serves on 127.0.0.1 and prints what to try

The tenant is known from outside. `request.user` is found out by Django's own middleware, inside, where
`ContextMiddleware` cannot see it yet: so a middleware after that one binds the user, for the views and whatever they
call. It is bound no more when a streamed answer is read: what that needs is to be asked for in the view. With Channels,
whose authentication can stand outside of `ContextMiddleware`, `user=from_scope("user", "username")` does it.

What it needs, in the checkout: pip install . "django>=5.2" "channels>=4.2" uvicorn websockets
"""

import argparse
import socket
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import uvicorn
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from asgi_context import ContextMiddleware, Identity, MemoryStore, bind_context, current_context, current_state
from asgi_context import from_header as header

Respond = Callable[[HttpRequest], HttpResponse]


def login(get_response: Respond) -> Respond:
    """Stand in for Django's AuthenticationMiddleware, which needs a database: it sets `request.user`."""

    def middleware(request: HttpRequest) -> HttpResponse:
        name = request.headers.get("x-login")
        request.user = SimpleNamespace(username=name, is_authenticated=name is not None)
        return get_response(request)

    return middleware


def bind_user(get_response: Respond) -> Respond:
    """Bind `request.user`, in the tenant that is known from outside; to be listed after what sets it."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if not request.user.is_authenticated:
            return JsonResponse({"error": "log in first"}, status=401)
        with bind_context(Identity(current_context().tenant, request.user.username)):
            return get_response(request)

    return middleware


def group_of(tenant: str) -> str:
    """Name the tenant's group: of what an identifier may hold, Channels takes only some."""
    return sha256(tenant.encode()).hexdigest()


async def order(_: HttpRequest, item: str) -> JsonResponse:
    """Take an order, in an async view, and tell all of the tenant's that listen."""
    context = current_context()
    count = await current_state().increment("orders", item)
    await get_channel_layer().group_send(
        group_of(context.tenant), {"type": "ordered", "by": context.user, "item": item}
    )
    return JsonResponse({"tenant": context.tenant, "user": context.user, "item": item, "count": count})


def orders(_: HttpRequest) -> JsonResponse:
    """Tell what whoever asks has ordered, in a sync view, which runs in a thread."""
    return JsonResponse({"user": current_context().user, "orders": current_state().sync.get("orders") or {}})


class Orders(AsyncJsonWebsocketConsumer):
    """Tells whoever has connected what others of the tenant order."""

    async def connect(self) -> None:
        """Join the group of the tenant."""
        self.groups = [group_of(current_context().tenant)]
        await self.channel_layer.group_add(self.groups[0], self.channel_name)
        await self.accept()

    async def ordered(self, event: dict[str, Any]) -> None:
        """Pass on what came over the channel layer, which carries no context: this runs for whom the connection is."""
        await self.send_json({"to": current_context().user, "by": event["by"], "item": event["item"]})


urlpatterns = [path("order/<item>", order), path("orders", orders)]
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    MIDDLEWARE=[f"{__name__}.login", f"{__name__}.bind_user"],
    ROOT_URLCONF=__name__,
)
store = MemoryStore()
application = ProtocolTypeRouter({
    # To try things out. Anybody can send any header: in earnest, have a gateway set them, or check a token.
    "http": ContextMiddleware(get_asgi_application(), tenant=header("x-tenant-id"), store=store),
    "websocket": ContextMiddleware(
        URLRouter([path("orders/live", Orders.as_asgi())]),
        tenant=header("x-tenant-id"),
        user=header("x-login"),
        store=store,
    ),
})


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="where to serve on 127.0.0.1 (default: a free port)")
    with socket.create_server(("127.0.0.1", parser.parse_args().port)) as listener, suppress(KeyboardInterrupt):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ann = 'curl -H "x-tenant-id: acme" -H "x-login: ann"'
        print(f"{ann} {url}/order/book\n{ann} {url}/orders")
        print(f'curl -H "x-tenant-id: globex" -H "x-login: ann" {url}/orders')
        print(f'curl -H "x-tenant-id: acme" {url}/orders\ncurl {url}/orders', flush=True)
        # Neither Django's handler nor Channels' routers know the lifespan.
        config = uvicorn.Config(application, log_level="warning", lifespan="off", ws="websockets-sansio")
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
