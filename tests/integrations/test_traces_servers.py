"""Traces and errors on a real server, which runs a request in what the one before it on the connection has left.

So it does when it got the second before it had answered the first. Whose the second is shows where what traces it, or
takes its errors, is mounted inside of `ContextMiddleware`; mounted around it, it is nobody's, and never the first's.
"""

from collections.abc import Callable
from typing import Any

import pytest
import sentry_sdk
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.integrations.asgi import SentryAsgiMiddleware
from sentry_sdk.transport import Transport
from servers import SERVERS, Wire, request, serving

from asgi_context import ContextMiddleware, from_header
from asgi_context.otel import ContextSpanProcessor
from asgi_context.sentry import ContextIntegration

KINDS = ["uvicorn-h11", "uvicorn-httptools"]
MOUNTS = ["around", "inside"]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/crash":
        raise LookupError
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def serve_two(kind: str, mounted: str, instrumented: Callable[[Any], Any], *, second: bytes, status: int) -> None:
    """Serve a request of acme's, and one of another tenant's that has come with it."""

    def identified(app: Any) -> Any:
        return ContextMiddleware(app, tenant=from_header("x-tenant-id"))

    whole = identified(instrumented(app)) if mounted == "around" else instrumented(identified(app))
    with serving(SERVERS[kind], whole) as server:
        assert server.started, server.failure
        with Wire(server.port) as wire:
            wire.send(request(b"x-tenant-id: acme", target=b"/first") + request(b"x-tenant-id: other", target=second))
            assert [wire.response().status, wire.response().status] == [200, status]
        server.stop()


@pytest.mark.parametrize("mounted", MOUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_span_of_the_server_s_is_never_of_the_request_before(kind: str, mounted: str) -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(ContextSpanProcessor())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    try:
        serve_two(
            kind,
            mounted,
            lambda app: OpenTelemetryMiddleware(app, tracer_provider=provider),
            second=b"/second",
            status=200,
        )
        whose = {span.name: (span.attributes or {}).get("tenant.id") for span in exporter.get_finished_spans()}
    finally:
        provider.shutdown()
    assert (whose["GET /first"], whose["GET /second"]) == (("acme", "other") if mounted == "around" else (None, None))
    assert (whose["GET /first http send"], whose["GET /second http send"]) == ("acme", "other")


class Collecting(Transport):
    def __init__(self) -> None:
        super().__init__()
        self.tenants: list[str | None] = []
        """Of errors."""

    def capture_envelope(self, envelope: Any) -> None:
        event = envelope.get_event()
        if event is not None:
            self.tenants.append((event.get("tags") or {}).get("tenant"))


@pytest.mark.parametrize("mounted", MOUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_never_of_the_request_before(kind: str, mounted: str) -> None:
    collecting, scope = Collecting(), sentry_sdk.get_global_scope()
    before = scope.client
    scope.set_client(
        sentry_sdk.Client(
            dsn="https://key@sentry.invalid/1",
            transport=collecting,
            integrations=[ContextIntegration()],
            default_integrations=False,  # they patch what other tests use
            auto_enabling_integrations=False,
        )
    )
    try:
        serve_two(kind, mounted, SentryAsgiMiddleware, second=b"/crash", status=500)
    finally:
        scope.set_client(before)
    assert collecting.tenants == ["other" if mounted == "around" else None]
