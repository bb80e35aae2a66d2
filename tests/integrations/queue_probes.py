"""What the jobs of all workers tell of."""

import os
from typing import Any

from asgi_context import Identity, bind_context, current_context

BOUND_AT_START = "BOUND_AT_START"
"""The variable by which a worker is asked to start with somebody bound, whom its jobs must never find."""

kept: list[Any] = []


def bound() -> str | None:
    context = current_context(None)
    return context and f"{context.tenant}/{context.user}"


def leave(identity: Identity) -> str | None:
    """What must not be written: enter a block and never leave it."""
    block = bind_context(identity)
    block.__enter__()
    kept.append(block)
    return bound()


def bind_at_start() -> None:
    if BOUND_AT_START in os.environ:
        leave(Identity("start", "sam"))
