"""What type checkers see of the public names: checked by mypy and pyright, never run."""

import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, assert_type

import httpx
import httpx2
import structlog

from asgi_context import (
    ContextMiddleware,
    ContextThreadPoolExecutor,
    Identity,
    MemoryStore,
    Pool,
    RequestContext,
    SharedState,
    Store,
    bind_context,
    carry_context,
    constant,
    current_context,
    current_resource,
    current_state,
    from_header,
    json_message,
    message_context,
    run_in_executor,
    run_in_pool,
)
from asgi_context._types import ASGIApp
from asgi_context.expansion import Template, expand, load_yaml
from asgi_context.httpx import context_hook
from asgi_context.logging import ContextFilter, context_fields
from asgi_context.propagation import CarrierKey, context_headers, from_carrier, from_carrier_header, to_carrier
from asgi_context.structlog import add_context

KEY = CarrierKey("1", b"0123456789abcdef0123456789abcdef")


def job(number: int, *, text: str = "") -> bytes:
    return text.encode() * number


async def tenant(scope: object) -> str | None: ...


class Session: ...


@asynccontextmanager
async def make_session(context: RequestContext) -> AsyncGenerator[Session, None]:
    yield Session()


async def use(app: ASGIApp, pool: ContextThreadPoolExecutor) -> None:
    assert_type(current_context(), RequestContext)
    assert_type(current_context(None), RequestContext | None)
    assert_type(current_state(), SharedState)
    assert_type(current_state(0), SharedState | int)
    assert_type(await current_state().increment("cart", "items"), int | float)
    assert_type(current_state().sync.upsert("cart", {"items": 1}, ttl=60), bool)
    assert_type(current_state().tenant_wide.sync.get("cart"), dict[str, Any] | None)
    await current_state().upsert("cart", {}, ttl="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(to_carrier(key=KEY, audience="billing", claims=["role"]), dict[str, str])
    assert_type(from_carrier(to_carrier(), trusted=True), RequestContext)
    assert_type(context_headers(key=[KEY]), dict[str, str])
    context_headers()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sender = from_carrier_header(key=KEY)
    ContextMiddleware(app, identity=sender, request_id=sender.request_id)
    hook = context_hook(["api.example.com"], key=KEY)
    hook = context_hook({"api.example.com": "api"}, key=None)
    hook(httpx.Request("GET", "https://api.example.com"))
    hook(httpx2.Request("GET", "https://api.example.com"))
    httpx.Client(event_hooks={"request": [hook]})
    httpx2.AsyncClient(event_hooks={"request": [hook]})

    logging.NullHandler().addFilter(ContextFilter(unbound=None, outside=["asyncio"]))
    assert_type(context_fields(), dict[str, str | None])
    structlog.configure(processors=[add_context, structlog.processors.JSONRenderer()])

    with bind_context(Identity("acme")) as context:
        assert_type(context, RequestContext)
        context.tenant = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    async with bind_context() as inherited:
        assert_type(inherited.user, str | None)

    assert_type(run_in_executor(None, job, 1, text="a"), Awaitable[bytes])
    assert_type(await run_in_executor(None, job, 1), bytes)
    assert_type(pool.submit(job, 1).result(), bytes)
    carried = carry_context(job)
    assert_type(carried(1, text="a"), bytes)
    run_in_executor(None, job, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]

    assert_type(await run_in_pool("tool", job, 1, text="a"), bytes)
    await run_in_pool("tool", job, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await current_resource(Session), Session)
    async with message_context(payload="") as of_message:
        assert_type(of_message, RequestContext | None)

    store: Store = MemoryStore()
    wrapped: ASGIApp = ContextMiddleware(app, tenant=tenant, user=from_header("x"), store=store)
    wrapped = ContextMiddleware(app, identity=lambda scope: Identity("acme"), authorize=lambda c, s: c.tenant == "a")
    wrapped = ContextMiddleware(app, tenant=constant("a"), missing="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wrapped = ContextMiddleware(app, tenant=tenant, exempt=lambda scope: None)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    wrapped = ContextMiddleware(app, message=json_message(tenant="tenant_id"), resources={Session: make_session})
    wrapped = ContextMiddleware(app, message=lambda event: None, pools={"user": 8, "tool": Pool(32, per_tenant=8)})
    wrapped = ContextMiddleware(app, message=lambda event: "acme")  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    await wrapped({"type": "http"}, receive, send)


async def receive() -> dict[str, object]:
    return {}


async def send(message: object) -> None: ...


def configure(path: Path) -> None:
    with path.open("rb") as stream:
        assert_type(load_yaml(stream, request_names={"A"}, env_names=("B",), max_bytes=1024), Any)
    assert_type(Template.from_yaml("a: $A"), Template)
    assert_type(expand({"a": ["$A"]}, environ={"A": "a"}), Any)
    load_yaml(path)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    expand("", environ={"A": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
