"""OpenTelemetry: whose a span is, and baggage for those parts of the context that are named.

Attributes go to whoever stores the traces. Baggage leaves the process with every outgoing call that is instrumented, to
whatever host that goes: nothing is put there unless it is named.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from opentelemetry import baggage
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.trace import Span as AnySpan
from opentelemetry.trace import get_current_span

from asgi_context._context import current_binding, current_context
from asgi_context._identity import RequestContext
from asgi_context.errors import ContextClosedError

__all__ = ["ContextSpanProcessor", "annotate_span", "context_baggage"]

_TENANT: Final = "tenant.id"  # the semantic conventions have no tenants
_USER: Final = "enduser.id"  # as the registry of their attributes has it
_REQUEST_ID: Final = "request.id"


class ContextSpanProcessor(SpanProcessor):
    """Says whose it is on every span that is started while a context is bound.

    Give it to the provider, before or after its exporters: ``provider.add_span_processor(ContextSpanProcessor())``. It
    sends nothing itself, sets nothing where nothing is bound or what was bound is revoked, and never raises. A server's
    span that was started outside of `ContextMiddleware` is older than the identity: see `annotate_span`.

    Nor does it set anything once the request has ended, since a server may run the next request of a connection in what
    this one has left. A task that outlives its request takes ``with bind_context():`` for its spans.

    Args:
        tenant: the attribute that names the tenant; ``None`` for none.
        user: the attribute that names the user, where there is one; ``None`` for none.
        request_id: the attribute that has the request id; ``None`` for none.

    Raises:
        TypeError: a name is no str.
        ValueError: a name is empty, stands there twice, or there is none.
    """

    def __init__(
        self, *, tenant: str | None = _TENANT, user: str | None = _USER, request_id: str | None = _REQUEST_ID
    ) -> None:
        self._names = _named(tenant=tenant, user=user, request_id=request_id)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's
        """Set the attributes; called by the SDK.

        Args:
            span: the span that was started.
            parent_context: where it was started; whose it is stands in what runs.
        """
        context = None if current_binding().ended else _bound()
        if context is not None:
            span.set_attributes(_parts(context, self._names))


def annotate_span(
    span: AnySpan | None = None,
    /,
    *,
    tenant: str | None = _TENANT,
    user: str | None = _USER,
    request_id: str | None = _REQUEST_ID,
) -> None:
    """Say whose a span is that was started before anything was bound, as a server's is outside of `ContextMiddleware`.

    It sets nothing where nothing is bound, or what was bound is revoked.

    Args:
        span: the span; without one, the current one.
        tenant: the attribute that names the tenant; ``None`` for none.
        user: the attribute that names the user, where there is one; ``None`` for none.
        request_id: the attribute that has the request id; ``None`` for none.

    Raises:
        TypeError: a name is no str.
        ValueError: a name is empty, stands there twice, or there is none.
    """
    names = _named(tenant=tenant, user=user, request_id=request_id)
    context = _bound()
    if context is not None:
        (get_current_span() if span is None else span).set_attributes(_parts(context, names))


@contextmanager
def context_baggage(
    *, tenant: str | None = None, user: str | None = None, request_id: str | None = None
) -> Generator[None, None, None]:
    """Open a block in which parts of the context are baggage: those that are named, under these names.

    Baggage goes with every outgoing call that is instrumented, to other companies' hosts as well, unsigned: a service
    that gets it must not take it for an identity. That is what `asgi_context.propagation` is for. An entry of such a
    name that came from outside does not hold inside: it is what is bound here, or not there at all.

    Args:
        tenant: under which name the tenant goes; ``None`` for not at all.
        user: under which name the user goes, where there is one; ``None`` for not at all.
        request_id: under which name the request id goes; ``None`` for not at all.

    Yields:
        Nothing.

    Raises:
        TypeError: a name is no str.
        ValueError: a name is empty, stands there twice, or there is none.
    """
    names = _named(tenant=tenant, user=user, request_id=request_id)
    context = _bound()
    parts = {} if context is None else _parts(context, names)
    carried = get_current()
    for name in names.values():
        part = parts.get(name)
        carried = baggage.remove_baggage(name, carried) if part is None else baggage.set_baggage(name, part, carried)
    token = attach(carried)
    try:
        yield
    finally:
        detach(token)


def _named(**names: str | None) -> dict[str, str]:
    given = {part: name for part, name in names.items() if name is not None}
    for part, name in given.items():
        if not isinstance(name, str):
            message = f"{part} must be a name, or None, not {type(name).__qualname__}"
            raise TypeError(message)
        if not name:
            message = f"{part} must not be empty; None leaves it out"
            raise ValueError(message)
    if not given:
        raise ValueError("name at least one of tenant=, user=, request_id=")
    if len(set(given.values())) < len(given):
        message = f"one name for two parts: {given!r}"
        raise ValueError(message)
    return given


def _bound() -> RequestContext | None:
    try:
        return current_context(None)
    except ContextClosedError:  # revoked: whose it was is in doubt, and a trace is no place to say so
        return None


def _parts(context: RequestContext, names: dict[str, str]) -> dict[str, str]:
    given: dict[str, str | None] = {name: getattr(context, part) for part, name in names.items()}
    return {name: value for name, value in given.items() if value is not None and _is_text(value)}


def _is_text(value: str) -> bool:
    # A half of a surrogate pair, which only a `valid=` of the user's lets in, has no encoding: it would be an error of
    # the exporter's, and in baggage one of the call that it goes with.
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
