"""What wrapping an app costs per HTTP request: this middleware beside a hand-written one and its peers.

Run by ``python tests/benchmarks/overhead.py``; how it is measured stands in ``turns.py``. Every request gets a scope of
its own, parsed just before, which every figure includes. The app reads the context where there is one.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware, correlation_id
from asgi_request_id import RequestIdMiddleware, request_id_ctx_var
from starlette.middleware.base import BaseHTTPMiddleware
from starlette_context import context as starlette_context
from starlette_context import plugins
from starlette_context.middleware import RawContextMiddleware
from turns import (
    BARE,
    BY_HAND,
    REQUEST,
    App,
    NoOp,
    Prepare,
    Variants,
    bare,
    measured,
    parse,
    receive,
    respond,
    send,
    table_above,
)

from asgi_context import ContextMiddleware, constant, current_context, first_of, from_header


def reading(read: Callable[[], object]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        read()
        await respond(send)

    return app


by_hand: ContextVar[tuple[str, str]] = ContextVar("by_hand")


class HandWritten:
    """What one writes without a library: a scan of the headers and a ContextVar. It checks nothing."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        tenant = user = None
        for name, value in scope["headers"]:
            if name == b"x-tenant-id":
                tenant = value.decode("latin-1")
            elif name == b"x-user-id":
                user = value.decode("latin-1")
        if tenant is None or user is None:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        token = by_hand.set((tenant, user))
        try:
            await self.app(scope, receive, send)
        finally:
            by_hand.reset(token)


async def pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


def ours(read: Callable[[], object], **options: Any) -> App:
    return ContextMiddleware(reading(read), tenant=from_header("x-tenant-id"), user=from_header("x-user-id"), **options)


def read_by_hand() -> object:
    tenant, user = by_hand.get()
    return tenant, user


def read_tenant() -> object:
    context = current_context()
    return context.tenant, context.user


def read_request_id() -> object:
    context = current_context()
    return context.tenant, context.user, context.request_id


def apps() -> dict[str, tuple[App, bool]]:
    """Name to app, and whether every request comes from another user."""
    trusted_id = from_header("x-request-id")
    all_plugins = (plugins.RequestIdPlugin(), plugins.CorrelationIdPlugin(), plugins.ForwardedForPlugin())
    return {
        BARE: (bare, False),
        "no-op wrapper": (NoOp(bare), False),
        BY_HAND: (HandWritten(reading(read_by_hand)), False),
        "ours": (ours(read_tenant), False),
        "ours, every user new": (ours(read_tenant), True),
        "ours, request id made and read": (ours(read_request_id), False),
        "ours, exempt + authorize + echo": (
            ours(
                read_tenant,
                exempt=lambda scope: scope["path"] == "/health",
                authorize=lambda context, scope: context.tenant != "nobody",
                echo_request_id="x-request-id",
            ),
            False,
        ),
        "ours, request id given + echo": (
            ours(read_request_id, request_id=trusted_id, echo_request_id="x-request-id"),
            False,
        ),
        "ours, headers of a trusted network": (
            ContextMiddleware(
                reading(read_tenant),
                tenant=from_header("x-tenant-id", trusted="203.0.113.0/24"),
                user=from_header("x-user-id", trusted="203.0.113.0/24"),
            ),
            False,
        ),
        "ours, first_of(header, constant)": (
            ContextMiddleware(reading(read_tenant), tenant=first_of(from_header("x-tenant-id"), constant("public"))),
            False,
        ),
        "asgi-request-id": (RequestIdMiddleware(reading(request_id_ctx_var.get)), False),
        "asgi-correlation-id, checks a UUID": (CorrelationIdMiddleware(reading(correlation_id.get)), False),
        "starlette-context Raw, 3 plugins": (
            RawContextMiddleware(reading(lambda: starlette_context.data), plugins=all_plugins),
            False,
        ),
        "BaseHTTPMiddleware, empty": (BaseHTTPMiddleware(bare, dispatch=pass_on), False),
    }


def requests(app: App, *, new_users: bool) -> Prepare:
    def prepare(turn: int, count: int) -> Awaitable[object]:
        batch = [REQUEST % (turn * count + number if new_users else number % 100) for number in range(count)]

        async def work() -> None:
            for raw in batch:
                await app(parse(raw), receive, send)

        return work()

    return prepare


def variants() -> Variants:
    return {"": {name: requests(app, new_users=new_users) for name, (app, new_users) in apps().items()}}


def main() -> None:
    detail = f", {len(parse(REQUEST)['headers'])} headers"
    table_above(measured(variants, __doc__, "requests", detail=detail, count=200), "", "us per request")


if __name__ == "__main__":
    main()
