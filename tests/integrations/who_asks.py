"""Who asks in the tests of frameworks, and what the functions of an app must find."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgi_context import current_context, current_state, from_header
from asgi_context.values import get_from_context

SOURCES: dict[str, Any] = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}
ANN = {"x-tenant-id": "acme", "x-user-id": "ann"}
BOB = {"x-tenant-id": "globex", "x-user-id": "bob"}
WHOLE, OTHER = ["acme", "ann"], ["globex", "bob"]


def whose() -> list[str | None] | None:
    """What the middleware bound, which context, state and values must agree on."""
    context = current_context(None)
    if context is None:
        return None
    assert repr(current_state()) == f"SharedState(tenant={context.tenant!r}, user={context.user!r})"
    assert get_from_context("left by somebody") is None
    return [context.tenant, context.user]


async def whose_soon() -> list[str | None] | None:
    """The same, of a task."""
    await asyncio.sleep(0)
    return whose()


# Dependencies, as frameworks inject them


def sync_dependency() -> Any:
    return whose()


async def async_dependency() -> Any:
    return whose()


def sync_yielding() -> Iterator[Any]:
    found = whose()
    yield found
    assert whose() == found


async def async_yielding() -> AsyncIterator[Any]:
    found = whose()
    yield found
    assert whose() == found
