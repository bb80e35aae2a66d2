"""Jobs in other processes, on behalf of whoever asks for them."""

from asgi_context._processes._executor import ContextProcessPoolExecutor
from asgi_context._processes._fleet import Fleet
from asgi_context._processes._worker import Setup

__all__ = ["ContextProcessPoolExecutor", "Fleet", "Setup"]
