"""What type checkers see of the public names: checked by mypy and pyright, never run."""

from collections.abc import Awaitable
from typing import assert_type

from asgi_context import (
    ContextMiddleware,
    ContextThreadPoolExecutor,
    Identity,
    MemoryStore,
    RequestContext,
    SharedState,
    Store,
    bind_context,
    carry_context,
    constant,
    current_context,
    current_state,
    from_header,
    run_in_executor,
)
from asgi_context._types import ASGIApp


def job(number: int, *, text: str = "") -> bytes:
    return text.encode() * number


async def tenant(scope: object) -> str | None: ...


async def use(app: ASGIApp, pool: ContextThreadPoolExecutor) -> None:
    assert_type(current_context(), RequestContext)
    assert_type(current_context(None), RequestContext | None)
    assert_type(current_state(), SharedState)
    assert_type(current_state(0), SharedState | int)
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

    store: Store = MemoryStore()
    wrapped: ASGIApp = ContextMiddleware(app, tenant=tenant, user=from_header("x"), store=store)
    wrapped = ContextMiddleware(app, identity=lambda scope: Identity("acme"), authorize=lambda c, s: c.tenant == "a")
    wrapped = ContextMiddleware(app, tenant=constant("a"), missing="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wrapped = ContextMiddleware(app, tenant=tenant, exempt=lambda scope: None)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    await wrapped({"type": "http"}, receive, send)


async def receive() -> dict[str, object]:
    return {}


async def send(message: object) -> None: ...
