"""What type checkers see of the parameters of FastAPI: checked by mypy and pyright, never run."""

from typing import assert_type

from fastapi import FastAPI, WebSocket
from fastapi.security import APIKeyHeader

from asgi_context import ContextMiddleware, RequestContext, SharedState, constant, from_header
from asgi_context.fastapi import (
    CurrentContext,
    CurrentState,
    OptionalContext,
    document_context,
    get_context,
    get_optional_context,
    get_state,
)

tenant = from_header("x-tenant-id")
app = FastAPI()
app.add_middleware(ContextMiddleware, tenant=tenant)
document_context(app, schemes={tenant: APIKeyHeader(name="x-api-key"), constant("acme"): []})
document_context(FastAPI(), outer=ContextMiddleware(app, tenant=tenant))
document_context(FastAPI(), outer=app)
app.dependency_overrides[get_context] = lambda: RequestContext("acme")


@app.get("/")
async def endpoint(context: CurrentContext, state: CurrentState, optional: OptionalContext) -> None:
    assert_type(context, RequestContext)
    assert_type(state, SharedState)
    assert_type(optional, RequestContext | None)


@app.websocket("/live")
async def live(websocket: WebSocket, context: CurrentContext) -> None:
    assert_type(context.tenant, str)
    await websocket.accept()


async def called() -> None:
    assert_type(await get_context(), RequestContext)
    assert_type(await get_optional_context(), RequestContext | None)
    assert_type(await get_state(), SharedState)
