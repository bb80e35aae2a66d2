"""Sentry: whose an event is.

An event is taken where something happens, so what is bound there says whose it is. Nothing is written to a scope: one
that outlives the request would hand its tags to the next. Outside of `ContextMiddleware` what is bound may have been
left by an earlier request of the same connection, so an error that has come out of it is nobody's there.
"""

from typing import Final, cast

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.scope import add_global_event_processor
from sentry_sdk.types import Event, Hint

from asgi_context._context import current_context
from asgi_context._describe import OUTSIDE
from asgi_context._middleware import ContextMiddleware
from asgi_context.errors import ContextClosedError

__all__ = ["ContextIntegration"]

_REQUEST_ID: Final = "request_id"
_BELOW: Final = tuple(f"{name}." for name in OUTSIDE)
_CALL: Final = ContextMiddleware.__call__.__code__


class ContextIntegration(Integration):
    """Puts tenant, user and request id on every event, error or transaction, that is taken while a context is bound.

    ``sentry_sdk.init(integrations=[ContextIntegration()])``. The tenant becomes a tag, the user the event's
    ``user.id``, the request id the tag ``request_id``; what the app has set under these names itself gives way, the
    rest stays. Claims are never sent. It never raises; where nothing is bound, or what was bound is revoked, it sets
    nothing, nor on an error that has left a `ContextMiddleware`, or is told by the logger of a server or of asyncio.

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
        """Say whose an event is, as what is bound here has it.

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


def _process(event: Event, hint: Hint) -> Event:
    # It is hooked in for the whole process, once; the client of this event says whether it wants it.
    integration = sentry_sdk.get_client().get_integration(ContextIntegration)
    if integration is not None and not _is_outside(event, hint):
        integration.mark(event)
    return event


def _is_outside(event: Event, hint: Hint) -> bool:
    logger = event.get("logger")
    if isinstance(logger, str) and (logger in OUTSIDE or logger.startswith(_BELOW)):
        return True
    return _has_left((hint.get("exc_info") or (None, None))[1])


def _has_left(error: BaseException | None) -> bool:
    # With all that has led to it, since whoever caught it outside may have raised another.
    waiting, seen = [error], set[int]()
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code is _CALL:
                return True
            traceback = traceback.tb_next
        waiting += [error.__cause__, error.__context__]
        if isinstance(error, BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[BaseException]", error).exceptions
    return False
