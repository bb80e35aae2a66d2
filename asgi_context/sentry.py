"""Sentry: whose an event is.

An event is taken where something happens, so what is bound there says whose it is. Nothing is written to a scope: one
that outlives the request would hand its tags to the next.
"""

from typing import Final

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.scope import add_global_event_processor
from sentry_sdk.types import Event, Hint

from asgi_context._context import current_context
from asgi_context.errors import ContextClosedError

__all__ = ["ContextIntegration"]

_REQUEST_ID: Final = "request_id"


class ContextIntegration(Integration):
    """Puts tenant, user and request id on every event, error or transaction, that is taken while a context is bound.

    ``sentry_sdk.init(integrations=[ContextIntegration()])``. The tenant becomes a tag, the user the event's
    ``user.id``, the request id the tag ``request_id``; what the app has set under these names itself gives way, the
    rest stays. Claims are never sent. It never raises; where nothing is bound, or what was bound is revoked, it sets
    nothing.

    Args:
        tenant: the tag that names the tenant.
        user: whether the user is sent; ``False`` where Sentry must not know.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``tenant`` is empty, or the tag of the request id.
    """

    identifier = "asgi_context"

    def __init__(self, *, tenant: str = "tenant", user: bool = True) -> None:
        if not isinstance(tenant, str):
            message = f"tenant must be the name of a tag, not {type(tenant).__qualname__}"
            raise TypeError(message)
        if tenant in {"", _REQUEST_ID}:
            message = f"tenant must be the name of a tag, and not that of the request id, not {tenant!r}"
            raise ValueError(message)
        if not isinstance(user, bool):
            message = f"user must be True or False, not {type(user).__qualname__}"
            raise TypeError(message)
        self._tenant = tenant
        self._user = user

    @staticmethod
    def setup_once() -> None:
        """Hook it in; called by the SDK."""
        add_global_event_processor(_process)

    def mark(self, event: Event) -> None:
        """Say whose an event is.

        Args:
            event: the event.
        """
        try:
            context = current_context(None)
        except ContextClosedError:  # revoked: whose it was is in doubt, and the event must not be the worse for it
            return
        if context is None:
            return
        event["tags"] = {**(event.get("tags") or {}), self._tenant: context.tenant, _REQUEST_ID: context.request_id}
        if self._user and context.user is not None:
            event["user"] = {**(event.get("user") or {}), "id": context.user}


def _process(event: Event, hint: Hint) -> Event:  # noqa: ARG001 - the SDK's
    # It is hooked in for the whole process, once; the client of this event says whether it wants it.
    integration = sentry_sdk.get_client().get_integration(ContextIntegration)
    if integration is not None:
        integration.mark(event)
    return event
