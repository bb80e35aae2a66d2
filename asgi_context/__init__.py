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

Nothing here needs more than the standard library. Beside it are `asgi_context.errors`, `asgi_context.values`,
`asgi_context.processes`, `asgi_context.propagation`, `asgi_context.logging` and `asgi_context.testing`; and, each with
an extra of its name, `asgi_context.expansion`, `asgi_context.httpx`, `asgi_context.jwt`, `asgi_context.otel`,
`asgi_context.redis`, `asgi_context.sentry`, `asgi_context.structlog` and `asgi_context.tools`.
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
