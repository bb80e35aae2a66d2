"""Shared state: named hashes ("states") of one tenant and user, or of a whole tenant."""

from asgi_context._state._blocking_state import BlockingState
from asgi_context._state._current import current_state
from asgi_context._state._shared import SharedState

__all__ = ["BlockingState", "SharedState", "current_state"]
