"""On whose behalf each event was logged: a processor for structlog."""

from structlog.typing import EventDict, WrappedLogger

from asgi_context._describe import FIELDS, describe

__all__ = ["add_context"]


def add_context(_logger: WrappedLogger, _method: str, event_dict: EventDict, /) -> EventDict:
    r"""Add ``ctx_tenant``, ``ctx_user`` and ``ctx_request_id`` to an event: a processor, to stand before the renderer.

    What is not bound is left out, and what the event has already stays. Values are escaped as by
    `asgi_context.logging.ContextFilter`. It never raises.

    Args:
        _logger: ignored.
        _method: ignored.
        event_dict: the event.

    Returns:
        The event.
    """
    for field, text in zip(FIELDS, describe(), strict=True):
        if text is not None:
            event_dict.setdefault(field, text)
    return event_dict
