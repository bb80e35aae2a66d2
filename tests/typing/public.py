"""What type checkers see of the public names: checked by mypy and pyright, never run."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, assert_type

import httpx
import httpx2
import sentry_sdk
import structlog
from opentelemetry.sdk.trace import TracerProvider

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
from asgi_context.jwt import Issuer, JWTAuth
from asgi_context.logging import ContextFilter, context_fields
from asgi_context.otel import ContextSpanProcessor, annotate_span, context_baggage
from asgi_context.processes import ContextProcessPoolExecutor
from asgi_context.propagation import CarrierKey, context_headers, from_carrier, from_carrier_header, to_carrier
from asgi_context.redis import RedisStore
from asgi_context.sentry import ContextIntegration
from asgi_context.structlog import add_context
from asgi_context.testing import TestBinding, no_context_left
from asgi_context.tools import AsyncBaseTool, ToolLimits, ToolResult, ToolSystem, ToolSystemFactory, current_tool_call
from asgi_context.values import get_from_context, request_context, set_request_context, update_request_context

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


def trace(provider: TracerProvider) -> None:
    provider.add_span_processor(ContextSpanProcessor(tenant="tenant.id", user=None))
    ContextSpanProcessor(tenant=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with provider.get_tracer("orders").start_as_current_span("pay") as span:
        assert_type(annotate_span(span, request_id=None), None)
        annotate_span("span")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with context_baggage(tenant="tenant.id") as nothing:
        assert_type(nothing, None)
    sentry_sdk.init(integrations=[ContextIntegration(tenant="tenant", user=False)])
    ContextIntegration(user="ann")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def bind_in_a_test(store: MemoryStore) -> None:
    with TestBinding("acme", user=None, claims={"role": "admin"}, store=store) as context:
        assert_type(context, RequestContext)
    with no_context_left() as nothing:
        assert_type(nothing, None)
    TestBinding(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def share() -> None:
    set_request_context({"plan": "walk"})
    update_request_context(plan="run")
    with request_context(plan="fly"):
        assert_type(get_from_context("plan"), Any)
    set_request_context(["plan"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def prove(app: ASGIApp) -> None:
    auth = JWTAuth(jwks_url="https://id.example.com/keys", issuer="https://id.example.com", audience="a", tenant="org")
    ContextMiddleware(app, identity=auth, store=RedisStore.from_url("redis://localhost", durable=1))
    assert_type(await auth.verify("token"), Identity)
    assert_type(await auth.renew("token"), None)
    JWTAuth(issuers=[Issuer(None, audience=None, key="secret", tenant=lambda claims: str(claims["org"]))])
    JWTAuth()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    RedisStore.from_url("redis://localhost", durable="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Remember(AsyncBaseTool):
    colour: str

    async def _arun(self) -> str:
        assert_type(self.ss, SharedState)
        assert_type(await current_tool_call().progress(percent=50), bool)
        return self.colour


async def use_tools(app: ASGIApp) -> None:
    def permit(context: RequestContext, name: str, arguments: Mapping[str, Any]) -> bool:
        return bool(context.tenant and name and arguments)

    factory = ToolSystemFactory([Remember], permit=permit, user_limits=ToolLimits(at_once=5))
    ContextMiddleware(app, tenant=constant("a"), resources={ToolSystem: factory})
    tools = await current_resource(ToolSystem)
    assert_type(tools, ToolSystem)
    assert_type(await tools.dispatcher.dispatch("Remember", {"colour": "green"}), ToolResult)
    assert_type(tools.dispatcher.sync.dispatch("Remember", "{}"), ToolResult)
    assert_type(Remember(colour="green").get_state("profile"), dict[str, Any] | None)


def cross(number: int) -> None:
    with ContextProcessPoolExecutor(2, values=["locale"]) as executor:
        assert_type(executor.submit(job, number, text="a").result(), bytes)
        executor.submit(job, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
