"""Values of states as JSON text that a person can read, exact: what cannot come back equal is refused."""

from asgi_context._codec._reading import decode, decode_all
from asgi_context._codec._registry import register_state_type
from asgi_context._codec._writing import encode

__all__ = ["decode", "decode_all", "encode", "register_state_type"]
