"""The option ``authorize``: what it is, and what it may say."""

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TypeAlias

from asgi_context._identity import RequestContext
from asgi_context._types import Scope
from asgi_context.errors import ExtractorTypeError, RequestRejected

Authorize: TypeAlias = Callable[[RequestContext, Scope], bool | Awaitable[bool]]
"""Takes who asks and the scope, and says whether this user may act in this tenant."""


async def check_verdict(verdict: object) -> None:
    """Take what ``authorize`` said, if that was not simply yes.

    Args:
        verdict: what it returned.

    Raises:
        RequestRejected: it says no.
        ExtractorTypeError: it says neither yes nor no.
    """
    if isawaitable(verdict):
        verdict = await verdict
    if type(verdict) is not bool:  # much that is meant as a no would count as true
        raise ExtractorTypeError("authorize", type(verdict).__qualname__, "bool")
    if not verdict:
        raise RequestRejected(403, "tenant_forbidden")
