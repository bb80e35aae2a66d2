"""Shared state in Redis or Valkey: `RedisStore`, a store for ``ContextMiddleware(store=...)``.

Needs the extra ``redis``: redis-py makes the connections, speaks the protocol, and knows Sentinel and Cluster.
"""

from asgi_context.redis._store import RedisStore

__all__ = ["RedisStore"]
