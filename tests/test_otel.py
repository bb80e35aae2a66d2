"""Traces: whose a span is, and what of it travels."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import httpx
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi_context import ContextMiddleware, RequestContext, bind_context, carry_context, from_header, unbound_context
from asgi_context._context import current_binding
from asgi_context.otel import ContextSpanProcessor, annotate_span, context_baggage

ANN = RequestContext("acme", "ann", "request-1", {"role": "admin"})
NOBODY_IN_PARTICULAR = RequestContext("acme", None, "request-1")
ALL = {"tenant.id": "acme", "enduser.id": "ann", "request.id": "request-1"}


class Traces:
    def __init__(self, **names: Any) -> None:
        self.provider = TracerProvider()
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.provider.add_span_processor(ContextSpanProcessor(**names))
        self.tracer = self.provider.get_tracer("tests")

    @property
    def spans(self) -> dict[str, dict[str, Any]]:
        """The attributes that are ours, by the span's name."""
        return {
            span.name: {name: value for name, value in (span.attributes or {}).items() if name.endswith(".id")}
            for span in self.exporter.get_finished_spans()
        }

    def attributes(self) -> dict[str, Any]:
        with self.tracer.start_as_current_span("work"):
            pass
        return self.spans["work"]


@pytest.fixture
def traces() -> Iterator[Traces]:
    made = Traces()
    yield made
    made.provider.shutdown()


# Spans


def test_a_span_that_is_started_while_bound_says_whose_it_is(traces: Traces) -> None:
    with bind_context(ANN):
        assert traces.attributes() == ALL


def test_claims_are_never_on_it(traces: Traces) -> None:
    with bind_context(ANN), traces.tracer.start_as_current_span("work"):
        pass
    (span,) = traces.exporter.get_finished_spans()
    assert "admin" not in str(span.attributes)


def test_without_a_user_it_has_none(traces: Traces) -> None:
    with bind_context(NOBODY_IN_PARTICULAR):
        assert traces.attributes() == {"tenant.id": "acme", "request.id": "request-1"}


def test_unbound_it_says_nothing(traces: Traces) -> None:
    assert traces.attributes() == {}
    with bind_context(ANN), unbound_context():
        assert traces.attributes() == {}


def test_what_was_revoked_it_does_not_say(traces: Traces) -> None:
    with bind_context(ANN):
        current_binding().revoke()
        assert traces.attributes() == {}


def test_of_a_request_that_has_ended_it_does_not_say(traces: Traces) -> None:
    """A server may run another's there; a task that outlives its request binds for itself."""
    with bind_context(ANN):
        later = copy_context()

    def work() -> None:
        with traces.tracer.start_as_current_span("left"):
            pass
        with bind_context(), traces.tracer.start_as_current_span("bound"):
            pass

    later.run(work)
    assert traces.spans == {"left": {}, "bound": ALL}


def test_in_a_thread_it_is_whose_the_thread_is(traces: Traces) -> None:
    def work(name: str) -> None:
        with traces.tracer.start_as_current_span(name):
            pass

    with bind_context(ANN), ThreadPoolExecutor(1) as pool:
        pool.submit(work, "bare").result()
        pool.submit(carry_context(work), "carried").result()
    assert traces.spans == {"bare": {}, "carried": ALL}


def test_what_cannot_be_encoded_is_left_out(traces: Traces) -> None:
    """It would break the exporter, and the call that baggage goes with."""
    with bind_context(RequestContext("\udc80", "é", "request-1")), context_baggage(tenant="tenant", user="user"):
        assert traces.attributes() == {"enduser.id": "é", "request.id": "request-1"}
        assert sent() == {"baggage": "user=%C3%A9"}


def test_a_span_that_is_not_sampled_takes_no_harm() -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(ContextSpanProcessor())
    with bind_context(ANN), provider.get_tracer("tests").start_as_current_span("work") as span:
        annotate_span()
        annotate_span(span)
    assert not span.is_recording()
    provider.shutdown()


def test_the_attributes_may_have_other_names_or_be_left_out() -> None:
    with bind_context(ANN):
        assert Traces(tenant="org.id", user="user.id", request_id=None).attributes() == {
            "org.id": "acme",
            "user.id": "ann",
        }


def test_each_span_says_whose_it_was_when_it_began(traces: Traces) -> None:
    start = traces.tracer.start_as_current_span
    with bind_context(ANN), start("outer"), bind_context(RequestContext("other", "bob")), start("inner"):
        pass
    assert (traces.spans["outer"]["tenant.id"], traces.spans["inner"]["tenant.id"]) == ("acme", "other")


def test_a_span_that_is_not_recorded_takes_no_harm(traces: Traces) -> None:
    with bind_context(ANN):
        annotate_span()
        annotate_span(trace.INVALID_SPAN)


def test_a_span_that_began_before_can_be_told(traces: Traces) -> None:
    with traces.tracer.start_as_current_span("server") as server, bind_context(ANN):
        annotate_span()
        with traces.tracer.start_as_current_span("other"), bind_context(RequestContext("other", None, "request-2")):
            annotate_span(server, tenant="org.id", user="user.id", request_id=None)
    assert traces.spans["server"] == {**ALL, "org.id": "other"}


def test_a_span_is_told_nothing_where_nothing_is_bound(traces: Traces) -> None:
    with traces.tracer.start_as_current_span("server"):
        annotate_span()
        with bind_context(ANN):
            current_binding().revoke()
            annotate_span()
    assert traces.spans["server"] == {}


# Requests


def instrumented(app: Any, traces: Traces) -> Any:
    return OpenTelemetryMiddleware(app, tracer_provider=traces.provider)


def identified(app: Any) -> Any:
    return ContextMiddleware(
        app,
        tenant=from_header("x-tenant-id"),
        user=from_header("x-user-id"),
        request_id=from_header("x-request-id"),
    )


async def ask(app: Any) -> int:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        headers = {"x-tenant-id": "acme", "x-user-id": "ann", "x-request-id": "request-1"}
        return (await client.get("/", headers=headers)).status_code


def starlette(traces: Traces, *, tells: bool = False) -> Any:
    async def hello(request: Any) -> Any:
        if tells:
            annotate_span()
        with traces.tracer.start_as_current_span("work"):
            return PlainTextResponse("hello")

    return Starlette(routes=[Route("/", hello)])


@pytest.mark.anyio
@pytest.mark.usefixtures("asyncio_only")
class TestRequests:
    async def test_around_the_instrumentation_every_span_says_whose_it_is(self, traces: Traces) -> None:
        assert await ask(identified(instrumented(starlette(traces), traces))) == 200
        assert "work" in traces.spans
        assert len(traces.spans) > 2
        assert all(attributes == ALL for attributes in traces.spans.values())

    async def test_inside_of_it_the_server_s_span_is_older_than_the_identity(self, traces: Traces) -> None:
        assert await ask(instrumented(identified(starlette(traces)), traces)) == 200
        (server,) = (span for span in traces.exporter.get_finished_spans() if span.kind is trace.SpanKind.SERVER)
        assert "tenant.id" not in (server.attributes or {})
        assert traces.spans["work"] == ALL

    async def test_inside_of_it_the_server_s_span_can_be_told(self, traces: Traces) -> None:
        assert await ask(instrumented(identified(starlette(traces, tells=True)), traces)) == 200
        (server,) = (span for span in traces.exporter.get_finished_spans() if span.kind is trace.SpanKind.SERVER)
        assert ALL.items() <= dict(server.attributes or {}).items()


# Baggage


def sent() -> dict[str, str]:
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def test_nothing_of_the_context_travels_by_itself(traces: Traces) -> None:
    with bind_context(ANN), traces.tracer.start_as_current_span("work"):
        assert list(sent()) == ["traceparent"]


def test_what_is_named_travels_inside_the_block_alone() -> None:
    with bind_context(ANN):
        with context_baggage(tenant="tenant.id", user="who"):
            assert sent() == {"baggage": "tenant.id=acme,who=ann"}
        assert sent() == {}


def test_it_survives_the_way(traces: Traces) -> None:
    with bind_context(RequestContext("a b,c=d;é", None)), context_baggage(tenant="tenant.id"):
        carrier = sent()
    assert baggage.get_all(W3CBaggagePropagator().extract(carrier)) == {"tenant.id": "a b,c=d;é"}


@pytest.mark.parametrize("bound", [None, NOBODY_IN_PARTICULAR])
def test_an_entry_that_came_from_outside_does_not_stand_for_who_is_bound(bound: RequestContext | None) -> None:
    carried = baggage.set_baggage("who", "forged", baggage.set_baggage("other", "kept"))
    token = context.attach(carried)
    try:
        with unbound_context() if bound is None else bind_context(bound), context_baggage(user="who"):
            assert sent() == {"baggage": "other=kept"}
        assert baggage.get_baggage("who") == "forged"
    finally:
        context.detach(token)


def test_what_was_revoked_does_not_travel() -> None:
    with bind_context(ANN):
        current_binding().revoke()
        with context_baggage(tenant="tenant.id"):
            assert sent() == {}


def test_the_block_ends_with_an_error_too() -> None:
    with bind_context(ANN):
        with pytest.raises(KeyError), context_baggage(tenant="tenant.id"):
            raise KeyError
        assert sent() == {}


# Options


@pytest.mark.parametrize(
    "call", [ContextSpanProcessor, annotate_span, lambda **names: context_baggage(**names).__enter__()]
)
def test_names_are_checked(call: Any) -> None:
    with pytest.raises(TypeError, match="tenant must be a name, or None, not int"):
        call(tenant=1)
    with pytest.raises(ValueError, match="user must not be empty"):
        call(user="")
    with pytest.raises(ValueError, match="one name for two parts"):
        call(tenant="id", user="id")
    with pytest.raises(ValueError, match="name at least one"):
        call(tenant=None, user=None, request_id=None)
