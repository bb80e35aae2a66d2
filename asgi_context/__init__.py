"""Wrap any ASGI app once, and all that it calls knows on whose behalf it runs, and holds that tenant's shared state.

::

    app = ContextMiddleware(app, tenant=from_header("x-tenant-id"), user=from_header("x-user-id"), store=MemoryStore())

    async def handler(...):
        context = current_context()  # .tenant .user .request_id .claims
        await current_state().update_field("profile", "colour", "green")

What is not a request says itself on whose behalf it runs:

    >>> from asgi_context import Identity, bind_context, current_context
    >>> with bind_context(Identity("acme", "ann")):
    ...     current_context().tenant
    'acme'

Nothing here needs more than the standard library, nor do

==========================  ==========================================================
`asgi_context.errors`       all that this package raises, as one tree
`asgi_context.values`       values that the functions of one request share
`asgi_context.processes`    jobs in other processes
`asgi_context.propagation`  the context across processes, queues and HTTP calls
`asgi_context.logging`      whose each log line is
`asgi_context.testing`      contexts in tests, and a check that none is left
==========================  ==========================================================

These need an extra of their name:

==========================  ==========================================================
`asgi_context.jwt`          identities out of signed tokens
`asgi_context.redis`        states in Redis or Valkey
`asgi_context.tools`        tools of agents
`asgi_context.expansion`    configuration whose ``${NAME}`` are filled for each request
`asgi_context.fastapi`      context and state as parameters of FastAPI, told in OpenAPI
`asgi_context.quart`        an extension of Quart
`asgi_context.mcp`          sessions of MCP servers that are their owner's alone
`asgi_context.httpx`        the context on requests of httpx and httpx2
`asgi_context.structlog`    whose each event of structlog is
`asgi_context.otel`         whose each span of OpenTelemetry is
`asgi_context.sentry`       whose each event of Sentry is
==========================  ==========================================================
"""

from asgi_context._claims import Claims
from asgi_context._codec import register_state_type
from asgi_context._context import bind_context, current_context, unbound_context
from asgi_context._executors import ContextThreadPoolExecutor, carry_context, run_in_executor
from asgi_context._extract import (
    Extractor,
    SharedSecret,
    agree,
    constant,
    first_of,
    from_cookie,
    from_header,
    from_path,
    from_query,
    from_scope,
    from_subdomain,
    identity_from,
)
from asgi_context._identity import Identity, RequestContext
from asgi_context._limits import StateLimits
from asgi_context._memory import MemoryStore
from asgi_context._message_context import message_context
from asgi_context._messages import json_message
from asgi_context._middleware import ContextMiddleware
from asgi_context._pool import Pool
from asgi_context._pools import run_in_pool
from asgi_context._resources import current_resource
from asgi_context._state import SharedState, current_state
from asgi_context._types import KEEP, Store
from asgi_context.errors import ContextClosedError, ContextNotBoundError, RequestRejected

__all__ = [
    "KEEP",
    "Claims",
    "ContextClosedError",
    "ContextMiddleware",
    "ContextNotBoundError",
    "ContextThreadPoolExecutor",
    "Extractor",
    "Identity",
    "MemoryStore",
    "Pool",
    "RequestContext",
    "RequestRejected",
    "SharedSecret",
    "SharedState",
    "StateLimits",
    "Store",
    "agree",
    "bind_context",
    "carry_context",
    "constant",
    "current_context",
    "current_resource",
    "current_state",
    "first_of",
    "from_cookie",
    "from_header",
    "from_path",
    "from_query",
    "from_scope",
    "from_subdomain",
    "identity_from",
    "json_message",
    "message_context",
    "register_state_type",
    "run_in_executor",
    "run_in_pool",
    "unbound_context",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # looked up when asked for: reading a distribution's metadata costs an import its time
        from importlib.metadata import version  # noqa: PLC0415

        return version("asgi-tenant-context")
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
