"""WebSocket connections whose messages say who asks, whose identity expires, or to which others than the app send."""

from asgi_context._connection._bound import Connection

__all__ = ["Connection"]
