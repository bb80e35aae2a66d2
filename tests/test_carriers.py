"""Carriers: what crosses, whole and unchanged, and that nothing else is ever taken for one."""

import hmac
import json
import pickle
import sys
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextvars import copy_context
from types import MappingProxyType
from typing import Any

import pytest
from driver import run, websocket
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    ContextNotBoundError,
    Identity,
    MemoryStore,
    RequestContext,
    bind_context,
    current_context,
    json_message,
)
from asgi_context._context import current_binding
from asgi_context.errors import (
    CarrierAudienceError,
    CarrierContentError,
    CarrierError,
    CarrierExpiredError,
    CarrierFormatError,
    CarrierSignatureError,
    CarrierTooLargeError,
    CarrierUnsignedError,
    CarrierVersionError,
)
from asgi_context.propagation import CarrierKey, from_carrier, to_carrier
from asgi_context.values import request_context

NAME = "asgi-context"
NOW = 1_763_900_000.0
SECRET = b"0123456789abcdef0123456789abcdef"
KEY = CarrierKey("2026-11", SECRET)
OLD_KEY = CarrierKey("2026-05", b"another secret of at least 32 bytes")
STRANGER = CarrierKey("2026-11", b"the secret of somebody else, who has the id")
ANN = RequestContext("acme", "ann", "request-1", {"role": "admin", "email": "ann@example.com"})


def now() -> float:
    return NOW


def made(context: Any = ANN, **more: Any) -> dict[str, str]:
    return to_carrier(context, **{"key": KEY, "now": now, **more})


def read(carrier: Any, **more: Any) -> RequestContext:
    return from_carrier(carrier, **{"key": KEY, "now": now, **more})


def content_of(carrier: dict[str, str]) -> dict[str, Any]:
    packed = carrier[NAME].split(".")[2]
    members: dict[str, Any] = json.loads(urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
    return members


def packed(content: Any) -> str:
    text = content if isinstance(content, bytes) else json.dumps(content, separators=(",", ":")).encode()
    return urlsafe_b64encode(text).rstrip(b"=").decode()


def signed(
    content: Any, *, secret: bytes = SECRET, key_id: str = "2026-11", domain: bytes = b"asgi_context carrier\0"
) -> Any:
    """A carrier by the written rule rather than by the code: HMAC-SHA-256 over domain, version, key id and content."""
    text = f"1.{key_id}.{packed(content)}"
    mac = hmac.new(secret, domain + text.encode(), "sha256").digest()
    return {NAME: f"{text}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"}


def unsigned(content: Any) -> dict[str, str]:
    return {NAME: f"1..{packed(content)}."}


CONTENT = {"tenant": "acme", "user": "ann", "request_id": "request-1", "until": NOW + 300}

# What crosses


def test_tenant_user_and_request_id_come_back() -> None:
    context = read(made())
    assert context == RequestContext("acme", "ann", "request-1")
    assert type(context) is RequestContext


def test_without_a_context_it_is_the_caller_s() -> None:
    with bind_context(ANN):
        assert read(to_carrier(key=KEY, now=now)) == RequestContext("acme", "ann", "request-1")
    with pytest.raises(ContextNotBoundError):
        to_carrier(key=KEY)


def test_an_identity_goes_with_the_request_id_that_is_bound() -> None:
    with bind_context(ANN):
        assert read(made(Identity("other"))) == RequestContext("other", None, "request-1")
    first, second = (read(made(Identity("other"))) for _ in range(2))
    assert first.request_id != second.request_id


def test_what_was_revoked_is_not_carried() -> None:
    def job() -> None:
        block = bind_context(ANN)
        block.__enter__()
        copy_context().run(block.__exit__, None, None, None)
        with pytest.raises(ContextClosedError):
            to_carrier(key=KEY)
        assert read(made(Identity("other"))).request_id != "request-1"

    copy_context().run(job)


def test_it_is_plain_strings_that_any_transport_takes() -> None:
    carrier = made(RequestContext("bücher", "\N{GRINNING FACE} \r\n", "1"))
    ((name, text),) = carrier.items()
    assert (type(name), type(text)) == (str, str)
    assert (name + text).isascii()
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert json.loads(json.dumps(carrier)) == carrier


def test_what_is_bound_after_it_is_as_it_was() -> None:
    with bind_context(read(made(claims=["role"]))) as context:
        assert current_context() is context
        assert (context.tenant, context.user, context.request_id) == ("acme", "ann", "request-1")
        assert context.claims == {"role": "admin"}


def test_values_and_store_stay_behind() -> None:
    with bind_context(ANN, store=MemoryStore()), request_context(locale="secret"):
        assert set(content_of(made())) == {"tenant", "user", "request_id", "until"}


def test_claims_travel_only_where_they_are_named() -> None:
    assert read(made()).claims == {}
    assert "email" not in json.dumps(content_of(made(claims=["role"])))
    assert read(made(claims=["role", "role"])).claims == {"role": "admin"}


def test_a_named_claim_that_is_not_there_is_not_made_up() -> None:
    assert read(made(claims=("role", "groups"))).claims == {"role": "admin"}
    assert read(made(RequestContext("acme"), claims=["groups"])).claims == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
IDENTIFIERS = st.text(min_size=1, max_size=200)


@given(
    IDENTIFIERS,
    st.none() | IDENTIFIERS,
    IDENTIFIERS,
    st.dictionaries(st.text(), JSON, max_size=4),
    st.none() | IDENTIFIERS,
)
def test_every_identifier_and_claim_comes_back_as_it_was(
    tenant: str, user: str | None, request_id: str, claims: dict[str, Any], audience: str | None
) -> None:
    context = RequestContext(tenant, user, request_id, claims)
    try:
        carrier = made(context, claims=claims, audience=audience)
    except CarrierTooLargeError:
        assume(False)
    again = read(carrier, audience=audience)
    assert again == context
    assert repr(again.claims.to_dict()) == repr(claims)  # also 1 and 1.0 and True, and the order of the members
    assert to_carrier(again, key=KEY, claims=claims, audience=audience, now=now) == carrier
    plain = to_carrier(context, claims=claims, now=now)
    assert from_carrier(plain, trusted=True, now=now) == context


@pytest.mark.parametrize(
    "context",
    [
        RequestContext("\ud800"),
        RequestContext("acme", "\udfff"),
        RequestContext("acme", request_id="\ud83d\ude00"),
        RequestContext("acme", claims={"a": "\ud800"}),
        RequestContext("acme", claims={"a": [float("nan")]}),
        RequestContext("acme", claims={"a": float("-inf")}),
        RequestContext("acme", claims={"a": 10**5000}),
        Identity("acme", expires_at=10**400),
    ],
)
def test_what_others_could_read_otherwise_is_not_written(context: Any) -> None:
    with pytest.raises(CarrierContentError) as raised:
        made(context, claims=["a"])
    assert raised.value.code == "carrier_content"


def test_claims_nested_deeper_than_python_follows_are_not_written() -> None:
    nested: Any = []
    for _ in range(200):
        nested = [nested]
    identity = Identity("acme", claims={"a": nested})
    assert made(identity, claims=["a"])

    def called_by(frames: int) -> Any:
        return called_by(frames - 1) if frames else made(identity, claims=["a"])

    with pytest.raises(CarrierContentError, match="nested"):
        for frames in range(100, sys.getrecursionlimit(), 100):
            called_by(frames)


def test_more_than_a_header_holds_is_not_written() -> None:
    big = RequestContext("acme", claims={"a": "x" * 5800})
    assert len(made(big, claims=["a"])[NAME]) <= 8000
    with pytest.raises(CarrierTooLargeError, match="8000 characters"):
        made(RequestContext("acme", claims={"a": "x" * 6000}), claims=["a"])


# Signatures


def test_one_or_the_other_must_be_said() -> None:
    with pytest.raises(TypeError, match="either key=, or trusted=True"):
        from_carrier(made())
    with pytest.raises(TypeError, match="either key=, or trusted=True"):
        from_carrier(made(), key=KEY, trusted=True)


def test_what_is_not_signed_is_only_for_who_trusts_it() -> None:
    carrier = made(key=None)
    assert from_carrier(carrier, trusted=True, now=now) == RequestContext("acme", "ann", "request-1")
    with pytest.raises(CarrierUnsignedError):
        read(carrier)


def test_who_trusts_learns_that_a_carrier_is_signed() -> None:
    """Its sender expects that somebody looks at the signature."""
    with pytest.raises(CarrierSignatureError, match="is signed, but not by a key that was given here as key="):
        from_carrier(made(), trusted=True, now=now)


def test_the_signature_is_hmac_sha_256_under_a_domain_of_its_own() -> None:
    assert made() == signed(CONTENT)
    with pytest.raises(CarrierSignatureError):
        read(signed(CONTENT, domain=b""))
    with pytest.raises(CarrierSignatureError):
        read(signed(CONTENT, domain=b"asgi_context other\0"))


def test_another_key_of_the_same_id_is_refused() -> None:
    with pytest.raises(CarrierSignatureError):
        read(made(), key=STRANGER)


def test_keys_are_rotated() -> None:
    both = [KEY, OLD_KEY]
    assert made(key=both) == made(key=KEY)  # the first signs
    for carrier in (made(key=KEY), made(key=OLD_KEY)):  # all verify
        assert read(carrier, key=both).user == "ann"
    with pytest.raises(CarrierSignatureError):
        read(made(key=OLD_KEY), key=KEY)  # until it is withdrawn
    with pytest.raises(CarrierSignatureError):
        read(signed(CONTENT, key_id="2026-05"), key=both)  # signed by one key, in the name of another


def test_a_key_shows_no_secret() -> None:
    assert repr(KEY) == "CarrierKey('2026-11', ...)"
    assert CarrierKey("1", "ä" * 16).sign("a") == CarrierKey("1", ("ä" * 16).encode()).sign("a")
    again = pickle.loads(pickle.dumps(KEY))
    assert (again.id, again.sign("a")) == (KEY.id, KEY.sign("a"))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((1, SECRET), TypeError, "id must be a str, not int"),
        (("", SECRET), ValueError, "id must be 1 to 64"),
        (("a.b", SECRET), ValueError, "id must be 1 to 64"),
        (("a\n", SECRET), ValueError, "id must be 1 to 64"),
        (("a" * 65, SECRET), ValueError, "id must be 1 to 64"),
        (("1", None), TypeError, "secret must be str or bytes, not NoneType"),
        (("1", SECRET[1:]), ValueError, "at least 32 bytes"),
        (("1", "x" * 31), ValueError, "at least 32 bytes"),
    ],
)
def test_a_key_is_checked(arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        CarrierKey(*arguments)
    assert "x" * 31 not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "error", "says"),
    [
        (SECRET, TypeError, "key must be a CarrierKey or several, not bytes"),
        ("secret", TypeError, "not str"),
        (1, TypeError, "not int"),
        ([KEY, "secret"], TypeError, "not str"),
        ([], ValueError, "key is empty"),
        ([KEY, OLD_KEY, STRANGER], ValueError, "two keys have the id '2026-11'"),
    ],
)
def test_keys_are_checked(key: Any, error: type[Exception], says: str) -> None:
    for call in (lambda: made(key=key), lambda: read(made(), key=key)):
        with pytest.raises(error, match=says):
            call()


# Time


def test_a_carrier_expires() -> None:
    carrier = made(lifetime=60)
    assert read(carrier, now=lambda: NOW + 59.9)
    for leeway, moment in ((0, NOW + 60), (10, NOW + 70), (86_400, NOW + 60 + 86_400), (10, NOW + 1e9)):
        with pytest.raises(CarrierExpiredError):
            read(carrier, leeway=leeway, now=lambda moment=moment: moment)
    assert read(carrier, leeway=10, now=lambda: NOW + 69.9)
    with pytest.raises(CarrierExpiredError):
        from_carrier(made(key=None, lifetime=60), trusted=True, now=lambda: NOW + 60)


def test_the_clock_is_the_wall_s() -> None:
    carrier = to_carrier(ANN, key=KEY)
    assert 290 < content_of(carrier)["until"] - time.time() <= 300
    assert from_carrier(carrier, key=KEY)
    with pytest.raises(CarrierExpiredError):
        from_carrier(made(), key=KEY)


def test_a_clock_of_whole_seconds_will_do() -> None:
    assert read(made(now=lambda: int(NOW), lifetime=60), now=lambda: int(NOW))


def test_a_clock_that_is_broken_lets_nothing_through() -> None:
    with pytest.raises(CarrierExpiredError):
        read(made(), now=lambda: float("nan"))
    with pytest.raises(CarrierExpiredError):
        made(Identity("acme", expires_at=NOW), now=lambda: float("nan"))
    with pytest.raises(CarrierError):
        made(now=lambda: float("nan"))


def test_it_never_outlives_the_proof() -> None:
    ends = NOW + 100
    with bind_context(Identity("acme", "ann", expires_at=ends)):
        carriers = [made(None), made(current_context()), made(pickle.loads(pickle.dumps(current_context())))]
    carriers.append(made(Identity("acme", "ann", expires_at=int(ends))))
    for carrier in carriers:
        assert read(carrier, now=lambda: ends - 0.1)
        with pytest.raises(CarrierExpiredError):
            read(carrier, now=lambda: ends)


def test_nor_over_several_hops() -> None:
    """What a service has received, it hands on until the proof ends that stood at the beginning."""
    ends = NOW + 1000
    hop = made(Identity("acme", "ann", expires_at=ends))
    for moment in (NOW + 299, NOW + 590, NOW + 880):
        with bind_context(read(hop, now=lambda moment=moment: moment)), bind_context(current_context()):
            hop = made(None, now=lambda moment=moment: moment)
    assert content_of(hop)["until"] == ends
    with bind_context(read(hop, now=lambda: ends - 1)), pytest.raises(CarrierExpiredError):
        made(None, now=lambda: ends)


def test_of_a_proof_that_has_ended_none_is_made() -> None:
    with pytest.raises(CarrierExpiredError):
        made(Identity("acme", expires_at=NOW))


@pytest.mark.anyio
@pytest.mark.usefixtures("asyncio_only")
async def test_a_renewed_websocket_makes_them_until_its_newer_proof_ends() -> None:
    ends = time.time() + 3600
    untils: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        line = current_binding().connection
        line.renew(Identity("acme", "ann", {"iss": "id"}, ends + 1000), ["iss"])
        late = {"key": KEY, "lifetime": 5000, "now": lambda: ends + 1}
        kept = current_context()
        untils.extend(content_of(to_carrier(context, **late))["until"] for context in (None, kept))
        with bind_context(Identity("acme", "ann", expires_at=ends + 500)):  # another proof
            untils.append(content_of(to_carrier(**late))["until"])
        with bind_context(Identity("acme", "ann", {"role": "guest"}, ends)):  # the same, for less
            assert read(to_carrier(claims=["role"], **late), now=late["now"]).claims == {"role": "guest"}
        with bind_context(Identity("other", expires_at=ends)), pytest.raises(CarrierExpiredError):
            to_carrier(**late)
        await send({"type": "websocket.close"})

    identity = Identity("acme", "ann", {"iss": "id"}, ends)
    await run(ContextMiddleware(app, identity=lambda scope: identity), websocket())
    assert untils == [ends + 1000, ends + 1000, ends + 500]


@pytest.mark.anyio
@pytest.mark.usefixtures("asyncio_only")
async def test_what_was_bound_between_two_renewals_makes_them_until_the_newest_proof_ends() -> None:
    ends = time.time() + 3600
    untils: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        line = current_binding().connection
        await receive()
        line.renew(Identity("acme", "ann", {"iss": "id"}, ends + 1000), ["iss"])
        await receive()
        line.renew(Identity("acme", "ann", {"iss": "id"}, ends + 2000), ["iss"])
        for late in (ends + 1, ends + 1001):
            carrier = to_carrier(key=KEY, lifetime=5000, now=lambda late=late: late)
            untils.append(content_of(carrier)["until"])
        await send({"type": "websocket.close"})

    identity = Identity("acme", "ann", {"iss": "id"}, ends)
    wrapped = ContextMiddleware(app, identity=lambda scope: identity, message=json_message(tenant="tenant_id"))
    message = {"type": "websocket.receive", "text": '{"tenant_id": "acme"}'}
    await run(wrapped, websocket(), [{"type": "websocket.connect"}, message])
    assert untils == [ends + 2000, ends + 2000]


@pytest.mark.anyio
@pytest.mark.usefixtures("asyncio_only")
async def test_a_websocket_of_nobody_lends_no_proof() -> None:
    ends = NOW + 100

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with bind_context(Identity("acme", expires_at=ends)):
            assert current_binding().connection is not None
            assert content_of(made(None))["until"] == ends
        await send({"type": "websocket.close"})

    await run(ContextMiddleware(app, message=lambda event: None), websocket())


# Audiences


def test_it_is_for_its_audience_alone() -> None:
    assert read(made(audience="billing"), audience="billing")
    for carrier, audience in (
        (made(audience="billing"), "search"),
        (made(audience="billing"), "Billing"),
        (made(audience="billing"), None),
        (made(), "billing"),
    ):
        with pytest.raises(CarrierAudienceError):
            read(carrier, audience=audience)


# What is no carrier

TEXT = made()[NAME]


@pytest.mark.parametrize(
    "carrier",
    [
        None,
        TEXT,
        TEXT.encode(),
        [(NAME, TEXT)],
        {},
        {NAME: TEXT.encode()},
        {NAME: None},
        {NAME: [TEXT]},
        {NAME.encode(): TEXT},
        {1: TEXT},
        {"asgi_context": TEXT},
        {"x-asgi-context": TEXT},
        {NAME: TEXT, "tenant": "acme"},
        {NAME: TEXT, "Asgi-Context": TEXT},
        {NAME: TEXT, "ASGI-CONTEXT": made(RequestContext("other"))[NAME]},
        {NAME: ""},
        {NAME: "1"},
        {NAME: "1.."},
        {NAME: "1..."},
        {NAME: f"{TEXT}\n"},
        {NAME: f" {TEXT}"},
        {NAME: f"{TEXT}."},
        {NAME: f"{TEXT}="},
        {NAME: f"{TEXT},{TEXT}"},
        {NAME: f"01{TEXT[1:]}"},
        {NAME: TEXT.replace("1.", "\N{FULLWIDTH DIGIT ONE}.")},
    ],
)
def test_what_is_no_carrier_is_refused(carrier: Any) -> None:
    for call in (lambda: read(carrier), lambda: from_carrier(carrier, trusted=True, now=now)):
        with pytest.raises(CarrierFormatError) as raised:
            call()
        assert raised.value.code == "carrier_malformed"


@pytest.mark.parametrize("names", [[], [NAME, NAME], [NAME, "tenant"]])
def test_what_counts_its_names_otherwise_than_it_gives_them_is_refused(names: list[str]) -> None:
    class Fields(Mapping[str, str]):
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[str]:
            return iter(names)

        def __getitem__(self, name: str) -> str:
            return TEXT

    with pytest.raises(CarrierFormatError):
        read(Fields())


def test_a_transport_may_change_the_case_of_its_name() -> None:
    for name in ("Asgi-Context", "ASGI-CONTEXT"):
        assert read(MappingProxyType({name: TEXT})) == RequestContext("acme", "ann", "request-1")


def test_another_version_is_told_from_what_is_none() -> None:
    for version in ("2", "10", "11", "9999"):
        with pytest.raises(CarrierVersionError):
            read({NAME: f"{version}.what.it.will.look.like"})
    with pytest.raises(CarrierFormatError):
        read({NAME: f"99999{TEXT[1:]}"})


def test_what_is_too_long_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(CarrierTooLargeError):
        read({NAME: "1" * 8001})
    with pytest.raises(CarrierFormatError):
        read({NAME: "1" * 8000})
    with pytest.raises(CarrierFormatError):
        read({"a" * 10**6: TEXT})
    with pytest.raises(CarrierFormatError):
        read(dict.fromkeys(map(str, range(10**5)), TEXT))


STRANGE = {
    "no object": [1],
    "no JSON": b"{",
    "no UTF-8": b'{"tenant":"\xff"}',
    "UTF-16": json.dumps(CONTENT, separators=(",", ":")).encode("utf-16-le"),
    "white space": json.dumps(CONTENT).encode(),
    "another order": dict(reversed(CONTENT.items())),
    "another spelling of a letter": json.dumps(CONTENT, separators=(",", ":")).replace("acme", "\\u0061cme").encode(),
    "another spelling of a number": json.dumps(CONTENT, separators=(",", ":")).replace("300.0", "300.00").encode(),
    "a repeated member": b'{"tenant":"other",' + json.dumps(CONTENT, separators=(",", ":")).encode()[1:],
    "an unknown member": {**CONTENT, "admin": True},
    "an unknown member before": {"admin": True, **CONTENT},
    "no tenant": {name: value for name, value in CONTENT.items() if name != "tenant"},
    "no request id": {name: value for name, value in CONTENT.items() if name != "request_id"},
    "no end": {name: value for name, value in CONTENT.items() if name != "until"},
    "an empty tenant": {**CONTENT, "tenant": ""},
    "a tenant that is null": {**CONTENT, "tenant": None},
    "a tenant that is a number": {**CONTENT, "tenant": 1},
    "a user that is null": {**CONTENT, "user": None},
    "a user that is a list": {**CONTENT, "user": ["ann"]},
    "a request id that is null": {**CONTENT, "request_id": None},
    "a request id that is empty": {**CONTENT, "request_id": ""},
    "an end that is null": {**CONTENT, "until": None},
    "an end that is a string": {**CONTENT, "until": str(NOW + 300)},
    "an end that is true": {**CONTENT, "until": True},
    "an end beyond all clocks": json.dumps(CONTENT, separators=(",", ":")).replace(f"{NOW + 300}", "1e999").encode(),
    "an end that is infinite": json.dumps({**CONTENT, "until": float("inf")}, separators=(",", ":")).encode(),
    "an end of many digits": {**CONTENT, "until": 10**400},
    "a proof's end that is an int": {
        "tenant": "acme",
        "request_id": "1",
        "expires_at": 10**400,
        "until": NOW + 300,
    },
    "claims that are none": {"tenant": "acme", "request_id": "1", "claims": {}, "until": NOW + 300},
    "claims that are a list": {"tenant": "acme", "request_id": "1", "claims": [1], "until": NOW + 300},
    "an audience that is null": {**CONTENT, "audience": None},
    "an audience that is a list": {**CONTENT, "audience": ["billing"]},
    "nested too deep": b'{"tenant":' + b"[" * 4000,
    "claims nested too deep": b'{"tenant":"acme","request_id":"1","claims":{"a":'
    + b"[" * 1500
    + b"]" * 1500
    + b'},"until":1763900300.0}',
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_is_not_written_as_this_package_writes_it_is_refused(what: str) -> None:
    """Also where somebody who has the key has signed it."""
    for call in (
        lambda: read(signed(STRANGE[what])),
        lambda: from_carrier(unsigned(STRANGE[what]), trusted=True, now=now),
    ):
        with pytest.raises(CarrierFormatError):
            call()


def test_of_two_spellings_in_base64_one_is_taken() -> None:
    text = packed({**CONTENT, "tenant": "acme1"})
    assert len(text) % 4
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = text[:-1] + last[last.index(text[-1]) + 1]
    assert urlsafe_b64decode(f"{text}==") == urlsafe_b64decode(f"{other}==")
    with pytest.raises(CarrierFormatError):
        from_carrier({NAME: f"1..{other}."}, trusted=True, now=now)


def test_an_error_tells_nothing_of_the_carrier() -> None:
    for error in CarrierError.__subclasses__():
        assert issubclass(error, ValueError)
        assert str(error()) != str(CarrierError())
        assert error().args == ()
    codes = [error.code for error in (CarrierError, *CarrierError.__subclasses__())]
    assert len(set(codes)) == len(codes) == 9
    for broken in ({NAME: "geheim"}, {"geheim": TEXT}, {NAME: TEXT + "geheim"}):
        with pytest.raises(CarrierError) as raised:
            read(broken)
        assert "geheim" not in str(raised.value)
        assert raised.value.__suppress_context__ or raised.value.__context__ is None


# No mutated carrier is accepted

CARRIERS = [
    made(),
    made(RequestContext("acme"), lifetime=3000),
    made(claims=["role", "email"]),
    made(audience="billing"),
    made(key=OLD_KEY),
    made(Identity("acme", "ann", expires_at=NOW + 1000)),
    made(key=None),
]
GOOD = {carrier[NAME] for carrier in CARRIERS} | {made(RequestContext("other", "bob", "2"))[NAME]}
ALPHABET = "".join(sorted(set("".join(GOOD)) | set("=+/ \n\0é")))


def never_accepted(text: str) -> None:
    """Unless it is one that was made, for this reader."""
    try:
        context = read({NAME: text}, key=[KEY, OLD_KEY])
    except CarrierError:
        return
    assert text in GOOD
    assert (context.tenant, context.user) in {("acme", "ann"), ("acme", None), ("other", "bob")}


@settings(max_examples=500)
@given(st.sampled_from(CARRIERS), st.data())
def test_no_flipped_bit_is_accepted(carrier: dict[str, str], data: st.DataObject) -> None:
    text = carrier[NAME]
    place = data.draw(st.integers(0, len(text) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = text[:place] + chr(ord(text[place]) ^ 1 << bit) + text[place + 1 :]
    with pytest.raises(CarrierError):
        read({NAME: flipped}, key=[KEY, OLD_KEY])


@settings(max_examples=500)
@given(st.sampled_from(CARRIERS), st.sampled_from(CARRIERS), st.lists(st.integers(0, 7), min_size=4, max_size=4))
def test_no_transplanted_part_is_accepted(one: dict[str, str], other: dict[str, str], picks: list[int]) -> None:
    parts = one[NAME].split(".") + other[NAME].split(".")
    never_accepted(".".join(parts[pick] for pick in picks))


@settings(max_examples=500)
@given(st.sampled_from(CARRIERS), st.data())
def test_no_cut_or_added_text_is_accepted(carrier: dict[str, str], data: st.DataObject) -> None:
    text = carrier[NAME]
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    never_accepted(text[:start] + data.draw(st.text(ALPHABET, max_size=8)) + text[end:])


@settings(max_examples=500)
@given(
    st.sampled_from(CARRIERS),
    st.dictionaries(
        st.sampled_from(["tenant", "user", "request_id", "claims", "expires_at", "until", "audience", "admin"]),
        st.sampled_from([None, "acme", "other", "root", NOW + 10**6, True, {}, {"role": "root"}, []]),
        min_size=1,
    ),
    st.sets(st.sampled_from(["user", "audience", "expires_at", "until"])),
)
def test_no_changed_content_is_accepted(carrier: dict[str, str], more: dict[str, Any], without: set[str]) -> None:
    content = {name: value for name, value in {**content_of(carrier), **more}.items() if name not in without}
    version, key_id, _, signature = carrier[NAME].split(".")
    never_accepted(f"{version}.{key_id}.{packed(content)}.{signature}")
    never_accepted(unsigned(content)[NAME])
    never_accepted(signed(content, secret=b"guessed")[NAME])


@given(st.text(max_size=300) | st.from_regex(r"1\.[a-z0-9-]{0,9}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", fullmatch=True))
def test_whatever_comes_is_refused_by_an_error_of_ours(text: str) -> None:
    with pytest.raises(CarrierError):
        read({NAME: text})
    with pytest.raises(CarrierError):
        from_carrier({NAME: text}, trusted=True, now=now)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"context": "acme"}, TypeError, "context must be a RequestContext or an Identity, not str"),
        ({"audience": 1}, TypeError, "audience must be a str, not int"),
        ({"audience": ""}, ValueError, "audience must not be empty"),
        ({"lifetime": "1"}, TypeError, "lifetime must be a number"),
        ({"lifetime": True}, TypeError, "lifetime must be a number"),
        ({"lifetime": 0}, ValueError, "lifetime must be more than 0"),
        ({"lifetime": float("inf")}, ValueError, "finite"),
        ({"lifetime": 10**400}, ValueError, "finite"),
        ({"claims": "role"}, TypeError, "claims must be several names"),
        ({"claims": None}, TypeError, "claims must be several names"),
        ({"claims": [1]}, TypeError, "a name must be a str, not int"),
        ({"now": 1}, TypeError, "now must be callable, not int"),
    ],
)
def test_wrong_arguments_of_who_makes_one_are_refused(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        made(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"trusted": 1}, TypeError, "trusted must be True"),
        ({"trusted": "10.0.0.0/8", "key": None}, TypeError, "trusted must be True"),
        ({"audience": 1}, TypeError, "audience must be a str, not int"),
        ({"audience": ""}, ValueError, "audience must not be empty"),
        ({"leeway": "1"}, TypeError, "leeway must be a number"),
        ({"leeway": True}, TypeError, "leeway must be a number"),
        ({"leeway": False}, TypeError, "leeway must be a number"),
        ({"leeway": -1}, ValueError, "leeway must be 0 to 86400 seconds"),
        ({"leeway": float("nan")}, ValueError, "leeway must be 0 to 86400 seconds"),
        ({"leeway": 86_401}, ValueError, "leeway must be 0 to 86400 seconds"),
        ({"leeway": 10**400}, ValueError, "leeway must be 0 to 86400 seconds"),
        ({"now": None}, TypeError, "now must be callable"),
    ],
)
def test_wrong_arguments_of_who_reads_one_are_refused(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        read(made(), **arguments)
