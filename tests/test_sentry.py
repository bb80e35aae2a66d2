"""Sentry: whose an event is."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import sentry_sdk
from sentry_sdk.integrations.asgi import SentryAsgiMiddleware
from sentry_sdk.transport import Transport
from starlette.applications import Starlette
from starlette.routing import Route

from asgi_context import ContextMiddleware, RequestContext, bind_context, from_header, unbound_context
from asgi_context._context import current_binding
from asgi_context.sentry import ContextIntegration, _process

ANN = RequestContext("acme", "ann", "request-1", {"role": "admin"})


class Collecting(Transport):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        for item in envelope.items:
            event = item.get_event() or item.get_transaction_event()
            if event is not None:
                self.events.append(event)

    def whose(self) -> list[tuple[Any, Any, Any]]:
        return [
            (tags.get("tenant"), (event.get("user") or {}).get("id"), tags.get("request_id"))
            for event in self.events
            for tags in [event.get("tags") or {}]
        ]


def client_of(collecting: Collecting, *integrations: Any) -> sentry_sdk.Client:
    return sentry_sdk.Client(
        dsn="https://key@sentry.invalid/1",
        transport=collecting,
        integrations=list(integrations),
        default_integrations=False,  # they patch what other tests use
        auto_enabling_integrations=False,
        traces_sample_rate=1.0,
    )


@pytest.fixture
def sent(request: pytest.FixtureRequest) -> Iterator[Collecting]:
    collecting = Collecting()
    scope = sentry_sdk.get_global_scope()
    before = scope.client
    scope.set_client(client_of(collecting, getattr(request, "param", ContextIntegration())))
    with sentry_sdk.isolation_scope():
        yield collecting
    scope.set_client(before)


def test_an_event_says_whose_it_is(sent: Collecting) -> None:
    with bind_context(ANN):
        sentry_sdk.capture_message("hello")
    assert sent.whose() == [("acme", "ann", "request-1")]
    assert "admin" not in str(sent.events)


def test_unbound_it_says_nothing(sent: Collecting) -> None:
    sentry_sdk.capture_message("hello")
    with bind_context(ANN), unbound_context():
        sentry_sdk.capture_message("hello")
    assert sent.whose() == [(None, None, None)] * 2


def test_what_was_revoked_it_does_not_say(sent: Collecting) -> None:
    with bind_context(ANN):
        current_binding().revoke()
        sentry_sdk.capture_message("hello")
        event: Any = {}
        ContextIntegration().mark(event)  # the SDK would have kept quiet about an error
    assert (sent.whose(), event) == ([(None, None, None)], {})


def test_of_the_next_request_it_says_nothing_either(sent: Collecting) -> None:
    for user in ("ann", "bob"):
        with bind_context(RequestContext("acme", user, "request")):
            sentry_sdk.capture_message("hello")
    sentry_sdk.capture_message("hello")
    assert sent.whose() == [("acme", "ann", "request"), ("acme", "bob", "request"), (None, None, None)]


def test_what_the_app_has_set_besides_stays(sent: Collecting) -> None:
    sentry_sdk.set_user({"id": "somebody", "email": "ann@example.com"})
    sentry_sdk.set_tags({"tenant": "other", "page": "start"})
    with bind_context(ANN):
        sentry_sdk.capture_message("hello")
    (event,) = sent.events
    assert event["user"] == {"id": "ann", "email": "ann@example.com"}
    assert event["tags"] == {"tenant": "acme", "page": "start", "request_id": "request-1"}


def test_without_a_user_that_of_the_app_stays(sent: Collecting) -> None:
    sentry_sdk.set_user({"id": "cron"})
    with bind_context(RequestContext("acme", None, "request-1")):
        sentry_sdk.capture_message("hello")
    assert sent.whose() == [("acme", "cron", "request-1")]


@pytest.mark.parametrize("sent", [ContextIntegration(tenant="org", user=False)], indirect=True)
def test_the_tag_may_have_another_name_and_the_user_be_left_out(sent: Collecting) -> None:
    with bind_context(ANN):
        sentry_sdk.capture_message("hello")
    (event,) = sent.events
    assert event["tags"] == {"org": "acme", "request_id": "request-1"}
    assert "user" not in event


def test_a_client_without_the_integration_gets_nothing(sent: Collecting) -> None:
    other = Collecting()
    with sentry_sdk.isolation_scope() as scope:
        scope.set_client(client_of(other))
        with bind_context(ANN):
            sentry_sdk.capture_message("hello")
            event: Any = {}
            assert _process(event, {}) == {}
    assert (other.whose(), sent.events) == ([(None, None, None)], [])


async def broken(request: Any) -> Any:
    raise LookupError


def identified(app: Any) -> Any:
    return ContextMiddleware(
        app, tenant=from_header("x-tenant-id"), user=from_header("x-user-id"), request_id=from_header("x-request-id")
    )


async def ask(app: Any, user: str, *, raises: bool = False) -> int:
    transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        headers = {"x-tenant-id": "acme", "x-user-id": user, "x-request-id": f"request-of-{user}"}
        return (await client.get("/", headers=headers)).status_code


@pytest.mark.anyio
@pytest.mark.usefixtures("asyncio_only")
async def test_around_sentry_errors_and_transactions_say_whose_they_are(sent: Collecting) -> None:
    app = identified(SentryAsgiMiddleware(Starlette(routes=[Route("/", broken)])))
    for user in ("ann", "bob"):
        assert await ask(app, user) == 500
    assert [event.get("type") for event in sent.events] == [None, "transaction"] * 2
    assert sent.whose() == [("acme", user, f"request-of-{user}") for user in ("ann", "ann", "bob", "bob")]


# Outside of the middleware, where a server may have left an earlier request's


def left(app: Any) -> BaseException:
    """The error of a request of another tenant, once it has come out of `ContextMiddleware`."""
    try:
        asyncio.run(ask(app, "bob", raises=True))
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("it fails")


async def fails(scope: Any, receive: Any, send: Any) -> NoReturn:
    raise LookupError


def test_an_error_that_has_left_the_middleware_is_nobodys(sent: Collecting) -> None:
    error = left(identified(fails))
    with bind_context(ANN):
        sentry_sdk.capture_exception(error)
    assert sent.whose() == [(None, None, None)]


def _instead(error: BaseException) -> NoReturn:
    raise KeyError from error


def _besides(error: BaseException) -> NoReturn:
    try:
        raise error
    except LookupError:
        raise KeyError  # noqa: B904 - as happens


def _among(error: BaseException) -> NoReturn:
    raise BaseExceptionGroup("group", [KeyError(), error])


@pytest.mark.parametrize("raised", [_instead, _besides, _among])
def test_so_is_one_that_was_raised_for_it(sent: Collecting, raised: Any) -> None:
    error = left(identified(fails))
    with bind_context(ANN):
        try:
            raised(error)
        except BaseException as other:  # noqa: BLE001 - what was asked for
            sentry_sdk.capture_exception(other)
    assert sent.whose() == [(None, None, None)]


def test_an_error_inside_is_whose_it_was_bound_for_also_in_a_ring(sent: Collecting) -> None:
    """As a `raise ... from` of what it has itself led to would make it."""
    first, second = KeyError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    with bind_context(ANN):
        try:
            raise first
        except KeyError:
            sentry_sdk.capture_exception()
    assert sent.whose() == [("acme", "ann", "request-1")]


@pytest.mark.parametrize("name", ["asyncio", "uvicorn.error", "daphne.server"])
def test_what_servers_and_asyncio_log_is_nobodys(sent: Collecting, name: str) -> None:
    with bind_context(ANN):
        for logger in (name, "shop"):
            sentry_sdk.capture_event({"message": "hello", "level": "error", "logger": logger})
    assert sent.whose() == [(None, None, None), ("acme", "ann", "request-1")]


_PROGRAM = """
import asyncio, sys
sys.path.insert(0, {tests!r})
import httpx, sentry_sdk
from test_sentry import Collecting, ask, broken, identified
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.middleware import Middleware
from asgi_context import ContextMiddleware, from_header
from asgi_context.sentry import ContextIntegration

sent = Collecting()
sentry_sdk.init("https://key@sentry.invalid/1", transport=sent, integrations=[ContextIntegration()])
app = {app}
for user in ("ann", "bob"):
    assert asyncio.run(ask(app, user)) == 500
print(sent.whose())
"""


INSIDE = """Starlette(routes=[Route("/", broken)], middleware=[Middleware(
    ContextMiddleware,
    tenant=from_header("x-tenant-id"),
    user=from_header("x-user-id"),
    request_id=from_header("x-request-id"),
)])"""


@pytest.mark.parametrize(
    ("app", "whose"),
    [
        (
            'identified(Starlette(routes=[Route("/", broken)]))',
            [("acme", user, f"request-of-{user}") for user in ("ann", "bob")],
        ),
        # An error that nobody has handled is taken outside of the middleware then: nobody's, rather than somebody else's.
        (INSIDE, [(None, None, None)] * 2),
    ],
    ids=["around", "inside"],
)
def test_with_sentry_s_own_integration_of_starlette(app: str, whose: Any) -> None:
    program = _PROGRAM.format(tests=str(Path(__file__).parent), app=app)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(whose)


def test_options_are_checked() -> None:
    with pytest.raises(TypeError, match="tenant must be the name of a tag, not int"):
        ContextIntegration(tenant=1)  # type: ignore[arg-type]
    for name in ("", "request_id"):
        with pytest.raises(ValueError, match="not that of the request id"):
            ContextIntegration(tenant=name)
    with pytest.raises(TypeError, match="user must be True or False, not str"):
        ContextIntegration(user="ann")  # type: ignore[arg-type]
