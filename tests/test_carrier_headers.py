"""The context as a header of a request: `context_headers` on one side, `from_carrier_header` in the middleware of the other."""

import logging
from typing import Any

import pytest
from driver import Header, Seen, hello, http, run, websocket

from asgi_context import (
    ContextMiddleware,
    ContextNotBoundError,
    Identity,
    RequestContext,
    RequestRejected,
    SharedSecret,
    agree,
    bind_context,
    current_context,
    first_of,
    from_header,
    identity_from,
)
from asgi_context.propagation import CarrierKey, context_headers, from_carrier_header, to_carrier

NOW = 1_763_900_000.0
KEY = CarrierKey("2026-11", b"0123456789abcdef0123456789abcdef")
STRANGER = CarrierKey("2026-11", b"the secret of somebody else, who has the id")
ANN = RequestContext("acme", "ann", "request-1", {"role": "admin"})
LINE = b"asgi-context"


def now() -> float:
    return NOW


def sent(context: Any = ANN, **more: Any) -> Header:
    ((name, value),) = context_headers(context, **{"key": KEY, "now": now, **more}).items()
    return name.encode(), value.encode()


def reading(**more: Any) -> Any:
    return from_carrier_header(**{"key": KEY, "now": now, **more})


async def asked(scope: dict[str, Any], **options: Any) -> Any:
    """What the app saw, or the rejection's status, code and challenges."""
    app = Seen(lambda: current_context(None))
    exchange = await run(ContextMiddleware(app, **options), scope)
    if app.seen:
        return app.seen[0]
    return exchange.status, exchange.problem["code"], exchange.header(b"www-authenticate")


INVALID = (401, "carrier_invalid", [b"AsgiContext"])


def test_the_header_is_the_carrier() -> None:
    assert context_headers(ANN, key=KEY, audience="billing", lifetime=60, claims=["role"], now=now) == to_carrier(
        ANN, key=KEY, audience="billing", lifetime=60, claims=["role"], now=now
    )
    with bind_context(ANN):
        assert context_headers(key=KEY, now=now) == {n.decode(): v.decode() for n, v in [sent()]}
    with pytest.raises(ContextNotBoundError):
        context_headers(key=KEY)


def test_it_is_signed_unless_that_is_said() -> None:
    with pytest.raises(TypeError, match="key"):
        context_headers(ANN)  # type: ignore[call-arg]
    assert context_headers(ANN, key=None)


def test_whom_to_believe_must_be_said() -> None:
    with pytest.raises(TypeError, match="takes key=, or trusted="):
        from_carrier_header()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"trusted": True}, TypeError, "from_carrier_header: trusted= takes networks"),
        ({"trusted": []}, ValueError, "from_carrier_header: trusted= is empty"),
        ({"trusted": "10.0.0.0/33"}, ValueError, "from_carrier_header: trusted= holds no network"),
        ({"trusted": [1]}, TypeError, "from_carrier_header: trusted= takes networks"),
        ({"key": b"secret"}, TypeError, "key must be a CarrierKey"),
        ({"audience": ""}, ValueError, "audience must not be empty"),
        ({"leeway": -1}, ValueError, "leeway"),
        ({"valid": 1}, TypeError, "from_carrier_header: valid="),
        ({"now": 1}, TypeError, "now must be callable"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        reading(**arguments)


def test_a_repr_holds_no_key() -> None:
    carried = reading()
    assert repr(carried) == "from_carrier_header(...)"
    assert repr(carried.request_id) == "from_carrier_header(...).request_id"


@pytest.mark.anyio
async def test_a_service_knows_whom_the_other_has_asked_for() -> None:
    context = await asked(http(sent(claims=["role"], audience="billing")), identity=reading(audience="billing"))
    assert (context.tenant, context.user, context.claims) == ("acme", "ann", {"role": "admin"})
    assert context.request_id != "request-1"  # nobody has said that it may be taken over


@pytest.mark.anyio
async def test_the_request_id_is_taken_over_where_that_is_said() -> None:
    carried = reading()
    options = {"identity": carried, "request_id": carried.request_id}
    assert await asked(http(sent()), **options) == RequestContext("acme", "ann", "request-1")
    assert await asked(http(sent(key=STRANGER)), **options) == INVALID

    both = {"tenant": from_header("x-tenant-id"), "request_id": carried.request_id}
    tenant = (b"x-tenant-id", b"acme")
    assert (await asked(http(sent(), tenant), **both)).request_id == "request-1"
    for lines in ([], [sent(key=STRANGER)], [sent(RequestContext("acme", request_id="a b"))]):
        context = await asked(http(tenant, *lines), **both)
        assert len(context.request_id) == 32  # of its own, since an id is not worth refusing a request for


@pytest.mark.anyio
async def test_without_the_header_there_is_no_identity() -> None:
    assert await asked(http(), identity=reading()) == (401, "identity_missing", [b"AsgiContext"])
    assert await asked(http(), identity=reading(), missing="unbound") is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    "line",
    [
        sent(key=STRANGER),
        sent(key=None),
        sent(lifetime=1, now=lambda: NOW - 1),
        sent(audience="billing"),
        (LINE, b""),
        (LINE, sent()[1] + b"A"),
        (LINE, sent()[1] + b"\xa0"),
        (LINE, b"\xff" * 20),
        (LINE, b"1" * 9000),
        (LINE, sent()[1] + b", " + sent()[1]),
        (b"asgi_context", sent()[1]),
    ],
)
async def test_one_that_is_not_acceptable_is_refused(line: Header, caplog: pytest.LogCaptureFixture) -> None:
    for missing in ("reject", "unbound"):
        assert await asked(http(line), identity=reading(), missing=missing) == INVALID
    assert await asked(websocket(line, denial=True), identity=reading()) == INVALID


@pytest.mark.anyio
async def test_the_log_says_why_and_holds_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asgi_context")
    await asked(http(sent(key=STRANGER)), identity=reading())
    assert "refused a carrier: carrier_signature" in caplog.text
    assert sent(key=STRANGER)[1].decode() not in caplog.text


@pytest.mark.anyio
async def test_a_repeated_one_is_refused() -> None:
    for lines in ([sent(), sent()], [sent(), (b"asgi_context", sent()[1])], [sent(), (b"Asgi-Context", b"")]):
        assert await asked(http(*lines), identity=reading()) == (400, "carrier_repeated", [])


@pytest.mark.anyio
async def test_white_space_around_it_is_trimmed_and_its_name_is_of_any_case() -> None:
    assert (await asked(http((b"ASGI-Context", b" \t" + sent()[1] + b" ")), identity=reading())).user == "ann"


@pytest.mark.anyio
async def test_what_is_not_signed_is_believed_from_named_peers_alone() -> None:
    secret = SharedSecret("x-mesh", "0123456789abcdef")
    believing = reading(key=None, trusted=["10.0.0.0/8", secret])
    plain = sent(key=None)
    assert (await asked(http(plain, client=("10.1.2.3", 1)), identity=believing)).user == "ann"
    assert (await asked(http(plain, (b"x-mesh", b"0123456789abcdef")), identity=believing)).user == "ann"
    assert await asked(http(plain), identity=believing) == (403, "carrier_untrusted", [])
    assert await asked(http(sent(), client=("10.1.2.3", 1)), identity=believing) == INVALID  # nobody looks who signed
    assert await asked(http(), identity=believing, missing="unbound") is None


@pytest.mark.anyio
async def test_a_signed_one_may_also_have_to_come_from_named_peers() -> None:
    both = reading(trusted="10.0.0.0/8")
    assert (await asked(http(sent(), client=("10.1.2.3", 1)), identity=both)).user == "ann"
    assert await asked(http(sent()), identity=both) == (403, "carrier_untrusted", [])
    assert await asked(http(sent(key=None), client=("10.1.2.3", 1)), identity=both) == INVALID


@pytest.mark.anyio
async def test_identifiers_are_as_everywhere_unless_a_rule_says_otherwise() -> None:
    strange = [RequestContext("a b"), RequestContext("acme", "a b")]
    codes = [await asked(http(sent(context)), identity=reading()) for context in strange]
    assert codes == [(400, "tenant_invalid", []), (400, "user_invalid", [])]
    for context in strange:
        assert (await asked(http(sent(context)), identity=reading(valid=lambda value: True))).user == context.user
    assert await asked(http(sent()), identity=reading(valid=lambda value: value != "ann")) == (400, "user_invalid", [])
    assert (await asked(http(sent(RequestContext("acme"))), identity=reading())).user is None


@pytest.mark.anyio
async def test_it_goes_with_other_extractors() -> None:
    direct = identity_from(tenant=from_header("x-tenant-id"))
    tenant = (b"x-tenant-id", b"other")
    either = first_of(reading(), direct)
    assert (await asked(http(tenant), identity=either)).tenant == "other"
    assert (await asked(http(tenant, sent()), identity=either)).tenant == "acme"
    assert await asked(http(tenant, sent(key=STRANGER)), identity=either) == INVALID
    held = agree(reading(), from_header("x-tenant-id"))
    assert await asked(http(tenant, sent()), identity=held) == (403, "tenant_mismatch", [])


def test_by_itself_it_is_an_extractor_as_well() -> None:
    carried = reading()
    assert carried(http(sent())) == Identity("acme", "ann")
    assert carried.request_id(http(sent())) == "request-1"
    assert carried.request_id(http()) is None
    with pytest.raises(RequestRejected, match="401 carrier_invalid"):
        carried(http(sent(key=STRANGER)))


@pytest.mark.anyio
@pytest.mark.usefixtures("asyncio_only")
async def test_an_identity_ends_with_its_proof_and_not_with_the_carrier() -> None:
    """A WebSocket that a carrier has opened is closed when what the sender had ends."""
    carried = reading(leeway=60)
    assert carried(http(sent())).expires_at is None
    ends = NOW + 1000
    assert carried(http(sent(Identity("acme", expires_at=ends)))).expires_at == ends
    line = sent(Identity("acme", expires_at=NOW + 1))
    assert await asked(websocket(line, denial=True), identity=carried) == (401, "identity_expired", [b"AsgiContext"])
    assert (await run(ContextMiddleware(hello, identity=carried), http(line))).status == 200
