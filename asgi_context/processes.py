"""Jobs in other processes that run on behalf of whoever submits them: `ContextProcessPoolExecutor`."""

from asgi_context._processes import ContextProcessPoolExecutor

__all__ = ["ContextProcessPoolExecutor"]
