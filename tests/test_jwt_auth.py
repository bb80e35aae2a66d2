"""`JWTAuth` in the middleware: whom a token is taken for, where it may stand, and how its absence or fault is answered."""

import logging
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
from driver import Exchange, Header, Seen, hello, http, run, websocket
from jwt_makers import AUDIENCE, ISSUER, NOW, make_key, token

from asgi_context import (
    ContextMiddleware,
    Identity,
    RequestRejected,
    agree,
    current_context,
    first_of,
    from_header,
    identity_from,
)
from asgi_context import _middleware as module
from asgi_context._connection import Connection
from asgi_context.jwt import Issuer, JWKSClient, JWTAuth

pytestmark = pytest.mark.anyio

KEY = make_key("HS256")
OTHER_KEY = make_key("HS256", "other")
OTHER = "https://login.example.org"
INVALID = b'error="invalid_token", error_description="The access token is not acceptable"'
METADATA = "https://api.example.com/.well-known/oauth-protected-resource"


@pytest.fixture(autouse=True)
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """WebSockets are watched by the clock that the tokens are made for."""
    monkeypatch.setattr(module, "Connection", partial(Connection, now=lambda: NOW))


def options(**more: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "audience": AUDIENCE, "key": KEY.jwk, "tenant": "org_id", **more}


def auth(**more: Any) -> JWTAuth:
    return JWTAuth(now=lambda: NOW, **options(**more))


def bearer(text: str | bytes) -> Header:
    return b"authorization", b"Bearer " + (text if isinstance(text, bytes) else text.encode())


class Asked:
    """What came of one request or connection: the context that the app saw, or the answer in its place."""

    def __init__(self, exchange: Exchange, app: Seen, scope: dict[str, Any]) -> None:
        self.exchange = exchange
        self.seen = app.seen
        self.scope = scope

    @property
    def who(self) -> tuple[str, str | None]:
        (context,) = self.seen
        return context.tenant, context.user

    @property
    def answer(self) -> tuple[int, str]:
        """Status and code."""
        assert self.seen == []
        assert self.exchange.problem["status"] == self.exchange.status
        return self.exchange.status, self.exchange.problem["code"]

    @property
    def challenges(self) -> list[bytes]:
        return self.exchange.header(b"www-authenticate")


async def ask(identity: Any, scope: dict[str, Any] | None = None, **more: Any) -> Asked:
    app = Seen(lambda: current_context(None))
    scope = http() if scope is None else scope
    return Asked(await run(ContextMiddleware(app, identity=identity, **more), scope), app, scope)


async def whose(identity: Any, text: str) -> tuple[str, str | None]:
    return (await ask(identity, http(bearer(text)))).who


async def refused(identity: Any, text: str) -> tuple[int, str]:
    return (await ask(identity, http(bearer(text)))).answer


# Options


async def later(claims: Any) -> str:
    return "acme"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"issuer": ""}, ValueError),
        ({"issuer": 5}, TypeError),
        ({"issuer": b"https://id.example.com"}, TypeError),
        ({"issuer": [ISSUER]}, TypeError),
        ({"audience": ""}, ValueError),
        ({"audience": ["api", ""]}, ValueError),
        ({"audience": 5}, TypeError),
        ({"audience": b"api"}, TypeError),
        ({"audience": ["api", 5]}, TypeError),
        ({"audience": [None]}, TypeError),
        ({"audience": {"api": True}}, TypeError),
        ({"audience": iter(["api"])}, TypeError),
        ({"algorithms": []}, ValueError),
        ({"algorithms": ["none"]}, ValueError),
        ({"algorithms": ["HS256", "NONE"]}, ValueError),
        ({"algorithms": ["hs256"]}, ValueError),
        ({"algorithms": ["RSA-OAEP"]}, ValueError),
        ({"algorithms": 5}, TypeError),
        ({"algorithms": [5]}, TypeError),
        ({"tenant": ""}, ValueError),
        ({"tenant": ()}, ValueError),
        ({"tenant": ("app", "")}, ValueError),
        ({"tenant": ("app", 5)}, TypeError),
        ({"user": ""}, ValueError),
        ({"user": ()}, ValueError),
        ({"user": ("app", 5)}, TypeError),
        ({"tenants": 5}, TypeError),
        ({"tenants": [5]}, TypeError),
        ({"tenants": [""]}, ValueError),
        ({"tenants": b"acme"}, TypeError),
        ({"tenants": later}, TypeError),
        ({"user_prefix": ""}, ValueError),
        ({"user_prefix": "a|b"}, ValueError),
        ({"user_prefix": "a b"}, ValueError),
        ({"user_prefix": "a\n"}, ValueError),
        ({"user_prefix": "a" * 33}, ValueError),
        ({"user_prefix": 5}, TypeError),
        ({"required_claims": 5}, TypeError),
        ({"required_claims": [5]}, TypeError),
        ({"required_claims": [""]}, ValueError),
        ({"typ": [5]}, TypeError),
        ({"typ": [""]}, ValueError),
        ({"leeway": -1}, ValueError),
        ({"leeway": float("inf")}, ValueError),
        ({"leeway": float("nan")}, ValueError),
        ({"leeway": "60"}, TypeError),
        ({"leeway": None}, TypeError),
        ({"leeway": True}, TypeError),
        ({"valid": 5}, TypeError),
        ({"valid": later}, TypeError),
        ({"max_token_bytes": 0}, ValueError),
        ({"max_token_bytes": True}, TypeError),
        ({"max_token_bytes": 8192.0}, TypeError),
        ({"max_token_bytes": None}, TypeError),
        ({"cache_size": 0}, ValueError),
        ({"cache_size": -1}, ValueError),
        ({"cache_size": True}, TypeError),
        ({"cache_size": "1"}, TypeError),
        ({"cookie": ""}, ValueError),
        ({"cookie": "a b"}, ValueError),
        ({"cookie": "a=b"}, ValueError),
        ({"cookie": "a;b"}, ValueError),
        ({"cookie": "ä"}, ValueError),
        ({"cookie": 5}, TypeError),
        ({"websocket_protocol": ""}, ValueError),
        ({"websocket_protocol": "bearer,"}, ValueError),
        ({"websocket_protocol": "bearer "}, ValueError),
        ({"websocket_protocol": True}, TypeError),
        ({"websocket_query": ""}, (TypeError, ValueError)),
        ({"websocket_query": 5}, TypeError),
        ({"websocket_query": b"token"}, TypeError),
        ({"resource_metadata": 'https://api"'}, ValueError),
        ({"resource_metadata": "https://api\\"}, ValueError),
        ({"resource_metadata": "https://api\r\nx: y"}, ValueError),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
)
def test_a_wrong_option_is_named_by_the_error(wrong: dict[str, Any], error: Any) -> None:
    (option,) = wrong
    with pytest.raises(error, match=option):
        auth(**wrong)


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"key": KEY.jwk, "keys": [OTHER_KEY.jwk]},
        {"key": KEY.jwk, "jwks": {"keys": [KEY.jwk]}},
        {"jwks": {"keys": [KEY.jwk]}, "jwks_url": "https://id.example.com/jwks.json"},
    ],
    ids=lambda sources: " and ".join(sources) or "none",
)
def test_keys_come_from_exactly_one_place(sources: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="exactly one of jwks_url=, jwks=, key= and keys="):
        JWTAuth(**{**options(), "key": None, **sources})


@pytest.mark.parametrize("left_out", ["issuer", "audience", "tenant"])
def test_issuer_audience_and_tenant_must_be_given(left_out: str) -> None:
    given = options()
    del given[left_out]
    with pytest.raises(TypeError, match=left_out):
        JWTAuth(**given)


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="audiences"):
        auth(audiences=["api"])


@pytest.mark.parametrize(
    "wrong", [{}, {"issuers": None}, {"issuers": [], "issuer": ISSUER}, {"issuers": [], "leeway": 5}]
)
def test_issuers_stand_in_place_of_the_arguments_of_one(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="either issuers=, or the arguments of one Issuer"):
        JWTAuth(**wrong)


@pytest.mark.parametrize(
    ("issuers", "error"),
    [([], ValueError), ([options()], TypeError), ([Issuer], TypeError), ("a", TypeError)],
    ids=repr,
)
def test_issuers_are_issuers_and_at_least_one(issuers: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="issuers"):
        JWTAuth(issuers=issuers)


def test_a_repr_names_issuers_and_holds_no_key() -> None:
    assert repr(auth()) == f"JWTAuth(Issuer({ISSUER!r}))"
    assert repr(JWTAuth(issuers=iter([a_issuer(), b_issuer()]))) == f"JWTAuth(Issuer({ISSUER!r}), Issuer({OTHER!r}))"


# Whom a token is taken for


async def test_a_token_says_tenant_user_and_claims() -> None:
    asked = await ask(auth(), http(bearer(token(KEY, role="admin", app={"plan": "team"}))))
    assert asked.who == ("acme", "ann")
    (context,) = asked.seen
    assert (context.claims["iss"], context.claims["role"], context.claims["app"]["plan"]) == (ISSUER, "admin", "team")


@pytest.mark.parametrize(
    ("path", "claims"),
    [
        ("https://example.com/org", {"https://example.com/org": "acme"}),
        ("app.tenant", {"app.tenant": "acme", "app": {"tenant": "beta"}}),
        (("app", "tenant"), {"app": {"tenant": "acme"}, "app.tenant": "beta"}),
        (["app", "of", "tenant"], {"app": {"of": {"tenant": "acme"}}}),
        (lambda claims: claims["groups"][0], {"groups": ["acme", "beta"]}),
    ],
    ids=["a URL", "a name with a dot", "a path", "a longer path", "a callable"],
)
async def test_the_tenant_is_where_the_path_leads(path: Any, claims: dict[str, Any]) -> None:
    assert await whose(auth(tenant=path), token(KEY, org_id="other", **claims)) == ("acme", "ann")


async def test_the_user_is_where_its_path_leads() -> None:
    text = token(KEY, sub="subject", app={"user": "bob"})
    assert await whose(auth(user=("app", "user")), text) == ("acme", "bob")
    assert await whose(auth(user=lambda claims: claims["sub"].upper()), text) == ("acme", "SUBJECT")


async def test_without_a_user_tokens_stand_for_whole_tenants() -> None:
    assert await whose(auth(user=None), token(KEY)) == ("acme", None)
    assert await whose(auth(user=None), token(KEY, sub=...)) == ("acme", None)


@pytest.mark.parametrize(
    ("claims", "answer"),
    [
        ({"org_id": ...}, (403, "tenant_missing")),
        ({"org_id": None}, (403, "tenant_missing")),
        ({"sub": ...}, (403, "user_missing")),
        ({"org_id": "a b"}, (400, "tenant_invalid")),
        ({"org_id": ""}, (400, "tenant_invalid")),
        ({"org_id": ".."}, (400, "tenant_invalid")),
        ({"org_id": "acme\n"}, (400, "tenant_invalid")),
        ({"org_id": "a" * 129}, (400, "tenant_invalid")),
        ({"org_id": "größe"}, (400, "tenant_invalid")),
        ({"org_id": 5}, (400, "tenant_invalid")),
        ({"org_id": True}, (400, "tenant_invalid")),
        ({"org_id": ["acme"]}, (400, "tenant_invalid")),
        ({"org_id": {"id": "acme"}}, (400, "tenant_invalid")),
        ({"sub": "ann/../bob"}, (400, "user_invalid")),
        ({"sub": ""}, (400, "user_invalid")),
    ],
    ids=repr,
)
async def test_a_proven_token_that_names_nobody_or_somebody_impossible_is_no_invalid_token(
    claims: dict[str, Any], answer: tuple[int, str]
) -> None:
    asked = await ask(auth(), http(bearer(token(KEY, **claims))))
    assert asked.answer == answer
    assert asked.challenges == []


@pytest.mark.parametrize("app", ["tenant", ["tenant"], None, 5], ids=repr)
async def test_a_path_through_what_holds_nothing_ends_in_a_missing_tenant(app: Any) -> None:
    assert await refused(auth(tenant=("app", "tenant")), token(KEY, app=app)) == (403, "tenant_missing")


@pytest.mark.parametrize(
    ("gives", "answer"),
    [(None, (403, "tenant_missing")), (5, (400, "tenant_invalid")), ("a b", (400, "tenant_invalid"))],
)
async def test_what_a_callable_gives_is_checked_as_a_claim_is(gives: Any, answer: tuple[int, str]) -> None:
    assert await refused(auth(tenant=lambda claims: gives), token(KEY)) == answer


async def test_a_rule_of_the_users_own_decides_of_identifiers() -> None:
    two_words = auth(valid=lambda value: value.count(" ") == 1)
    assert await whose(two_words, token(KEY, org_id="acme inc", sub="ann lee")) == ("acme inc", "ann lee")
    assert await refused(two_words, token(KEY, org_id="acme", sub="ann lee")) == (400, "tenant_invalid")
    assert await refused(two_words, token(KEY, org_id="acme inc", sub="ann")) == (400, "user_invalid")


async def test_expires_at_is_exp_and_the_leeway() -> None:
    assert (await auth().verify(token(KEY, exp=NOW + 7))).expires_at == NOW + 7
    assert (await auth(leeway=30).verify(token(KEY, exp=NOW - 29))).expires_at == NOW + 1
    assert (await auth(leeway=0.25).verify(token(KEY, exp=NOW + 1.5))).expires_at == NOW + 1.75


async def test_a_token_may_be_text_or_bytes_where_it_is_verified_by_hand() -> None:
    identity = await auth().verify(token(KEY))
    assert identity == await auth().verify(token(KEY).encode())
    assert (identity.tenant, identity.user) == ("acme", "ann")
    for wrong in (None, 5, bytearray(token(KEY).encode())):
        with pytest.raises(TypeError, match="token must be str or bytes"):
            await auth().verify(wrong)  # type: ignore[arg-type]
    for bad in ("", "a.b.c", "\udc80", "ä", token(KEY) + "\n"):
        with pytest.raises(RequestRejected, match="401 invalid_token"):
            await auth().verify(bad)


# Several issuers


def a_issuer(**more: Any) -> Issuer:
    return Issuer(ISSUER, **{"audience": "a", "key": KEY.jwk, "tenant": "org_id", "tenants": ["acme"], **more})


def b_issuer(**more: Any) -> Issuer:
    return Issuer(OTHER, **{"audience": "b", "key": OTHER_KEY.jwk, "tenant": "org_id", "tenants": ["beta"], **more})


def both(a: Mapping[str, Any] | None = None, b: Mapping[str, Any] | None = None) -> JWTAuth:
    return JWTAuth(issuers=[a_issuer(**(a or {})), b_issuer(**(b or {}))], now=lambda: NOW)


def of_a(**claims: Any) -> str:
    return token(KEY, **{"aud": "a", **claims})


def of_b(key: Any = OTHER_KEY, **claims: Any) -> str:
    return token(key, **{"iss": OTHER, "aud": "b", "org_id": "beta", **claims})


async def test_each_issuer_has_keys_audience_and_tenants_of_its_own() -> None:
    issuers = both()
    assert await whose(issuers, of_a()) == ("acme", "ann")
    assert await whose(issuers, of_b()) == ("beta", "ann")


@pytest.mark.parametrize("kid", ["k", "other", ...], ids=["its kid", "the other's kid", "no kid"])
@pytest.mark.parametrize("key", [KEY, OTHER_KEY], ids=["k", "other"])
async def test_a_token_of_one_issuer_that_is_signed_with_the_others_key_is_refused(key: Any, kid: Any) -> None:
    wrong_issuer = {"iss": OTHER, "org_id": "beta", "aud": "b"} if key is KEY else {"aud": "a"}
    assert await refused(both(), token(key, {"kid": kid}, **wrong_issuer)) == (401, "invalid_token")


async def test_a_kid_of_two_issuers_means_the_key_of_the_one_that_the_token_names() -> None:
    same_kid = both(b={"key": {**OTHER_KEY.jwk, "kid": "k"}})
    assert await whose(same_kid, of_a()) == ("acme", "ann")
    assert await whose(same_kid, token(OTHER_KEY, {"kid": "k"}, iss=OTHER, aud="b", org_id="beta")) == ("beta", "ann")
    assert await refused(same_kid, of_b(KEY)) == (401, "invalid_token")


async def test_the_audience_of_the_other_issuer_will_not_do() -> None:
    assert await refused(both(), of_a(aud="b")) == (401, "invalid_token")
    assert await refused(both(), of_b(aud="a")) == (401, "invalid_token")
    assert await whose(both(), of_b(aud=["a", "b"])) == ("beta", "ann")


async def test_a_tenant_that_the_issuer_may_not_speak_for_is_forbidden() -> None:
    asked = await ask(both(), http(bearer(of_a(org_id="beta"))))
    assert asked.answer == (403, "tenant_forbidden")
    assert asked.challenges == []
    assert await refused(both(), of_b(org_id="acme")) == (403, "tenant_forbidden")
    assert await refused(both(), of_b(org_id="gamma")) == (403, "tenant_forbidden")


async def test_the_only_issuer_may_be_bounded_too() -> None:
    for tenants in (["acme"], "acme", {"acme"}, lambda tenant: tenant == "acme"):
        assert await whose(auth(tenants=tenants), token(KEY)) == ("acme", "ann")
        assert await refused(auth(tenants=tenants), token(KEY, org_id="beta")) == (403, "tenant_forbidden")
    with pytest.raises(ValueError, match="tenants must not be empty"):
        auth(tenants=[])


@pytest.mark.parametrize("verdict", [1, "yes", None, object()], ids=["1", "yes", "None", "object"])
async def test_only_true_lets_a_tenant_be_spoken_for(verdict: Any) -> None:
    assert await refused(auth(tenants=lambda tenant: verdict), token(KEY)) == (403, "tenant_forbidden")


@pytest.mark.parametrize("iss", [..., None, 5, "", ISSUER + "/", ISSUER.upper(), [ISSUER], {"a": ISSUER}], ids=repr)
async def test_an_issuer_that_is_not_configured_is_refused(iss: Any) -> None:
    assert await refused(both(), of_a(iss=iss)) == (401, "invalid_token")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"tenants": ["acme"]}, {"tenants": ["acme", "beta"]}),
        ({"tenants": ["acme"]}, {"tenants": lambda tenant: tenant != "acme"}),
        ({"tenants": lambda tenant: True}, {"tenants": lambda tenant: True}),
        ({"tenants": ["acme"], "user_prefix": "a"}, {"tenants": ["acme"]}),
        ({"tenants": ["acme"], "user_prefix": "a"}, {"tenants": ["acme"], "user_prefix": "a"}),
    ],
    ids=["overlapping", "a callable", "two callables", "one prefix", "the same prefix"],
)
def test_issuers_whose_users_could_meet_are_refused(a: dict[str, Any], b: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="user_prefix= of its own"):
        both(a, b)


def test_the_third_issuer_is_held_against_each_of_the_others() -> None:
    third = Issuer("https://c.example.com", audience="c", key=KEY.jwk, tenant="org_id", tenants=["gamma", "acme"])
    with pytest.raises(ValueError, match=r"id\.example\.com.*c\.example\.com"):
        JWTAuth(issuers=[a_issuer(), b_issuer(), third])


async def test_users_of_issuers_for_the_same_tenant_never_meet() -> None:
    same = both({"tenants": ["acme"], "user_prefix": "a"}, {"tenants": lambda tenant: True, "user_prefix": "b"})
    assert await whose(same, of_a()) == ("acme", "a|ann")
    assert await whose(same, of_b(org_id="acme")) == ("acme", "b|ann")
    # Whatever the users are called: what stands before the first bar is the issuer's.
    assert await whose(same, of_a(sub="b|ann")) == ("acme", "a|b|ann")
    assert await whose(same, of_b(org_id="acme", sub="a|ann")) == ("acme", "b|a|ann")


async def test_a_prefix_counts_to_the_length_of_the_user() -> None:
    assert (await whose(auth(user_prefix="ab"), token(KEY, sub="u" * 125)))[1] == "ab|" + "u" * 125
    assert await refused(auth(user_prefix="ab"), token(KEY, sub="u" * 126)) == (400, "user_invalid")


@pytest.mark.parametrize("unclear", [{"tenants": None}, {"issuer": None}], ids=["without tenants", "without a name"])
def test_several_issuers_must_each_say_who_they_are_and_whom_they_speak_for(unclear: dict[str, Any]) -> None:
    other = {"issuer": OTHER, "audience": "b", "key": OTHER_KEY.jwk, "tenant": "org_id", "tenants": ["beta"], **unclear}
    with pytest.raises(ValueError, match="each needs its issuer= and its tenants="):
        JWTAuth(issuers=[a_issuer(), Issuer(**other)])


def test_an_issuer_stands_once() -> None:
    with pytest.raises(ValueError, match="same issuer="):
        JWTAuth(issuers=[a_issuer(), a_issuer(tenants=["beta"])])


async def test_rules_of_one_issuer_are_not_those_of_the_other() -> None:
    issuers = both({"typ": ("at+jwt",), "leeway": 60}, {"required_claims": ["scope"]})
    assert await whose(issuers, token(KEY, {"typ": "at+jwt"}, aud="a", exp=NOW - 59)) == ("acme", "ann")
    assert await refused(issuers, of_a()) == (401, "invalid_token")
    assert await refused(issuers, of_b()) == (401, "invalid_token")
    assert await refused(issuers, of_b(scope="x", exp=NOW - 59)) == (401, "invalid_token")
    assert await whose(issuers, of_b(scope="x")) == ("beta", "ann")


async def test_a_single_issuer_may_go_unnamed() -> None:
    for iss in (ISSUER, OTHER, ...):
        assert await whose(auth(issuer=None), token(KEY, iss=iss)) == ("acme", "ann")


async def test_an_audience_of_none_takes_tokens_for_anybody_and_only_that() -> None:
    for aud in ("x", ["x", "y"], ...):
        assert await whose(auth(audience=None), token(KEY, aud=aud)) == ("acme", "ann")
        assert await refused(auth(), token(KEY, aud=aud)) == (401, "invalid_token")


# Answers


async def test_no_credential_is_answered_with_a_bare_challenge() -> None:
    asked = await ask(auth())
    assert asked.answer == (401, "identity_missing")
    assert asked.challenges == [b"Bearer"]


async def test_a_bad_token_is_answered_with_a_fixed_text() -> None:
    asked = await ask(auth(), http(bearer("a.b.c")))
    assert asked.answer == (401, "invalid_token")
    assert asked.challenges == [b"Bearer " + INVALID]
    assert asked.exchange.problem["detail"] == "The access token is not acceptable."


async def test_all_bad_tokens_are_answered_alike() -> None:
    """What exactly is wrong would help only those who try."""
    key = make_key("HS256", "unknown")
    bad = [token(OTHER_KEY, {"kid": "k"}), token(key), token(KEY, exp=NOW), token(KEY, aud="x"), token(KEY, iss="x")]
    bad += [token(KEY, exp=...), token(KEY, {"alg": "none"}), "", " ", "a", "é", "a" * 9000]
    answers = {repr((await ask(auth(), http(bearer(text)))).exchange.sent) for text in bad if text.strip()}
    assert len(answers) == 1


async def test_the_metadata_of_the_resource_stand_in_the_challenge() -> None:
    described = auth(resource_metadata=METADATA)
    assert (await ask(described)).challenges == [b'Bearer resource_metadata="%s"' % METADATA.encode()]
    asked = await ask(described, http(bearer("a.b.c")))
    assert asked.answer == (401, "invalid_token")
    assert asked.challenges == [b'Bearer resource_metadata="%s", %s' % (METADATA.encode(), INVALID)]


@pytest.mark.parametrize(
    "headers",
    [
        [bearer(token(KEY)), bearer(token(KEY))],
        [bearer(token(KEY)), bearer(token(KEY, sub="bob"))],
        [bearer(token(KEY)), (b"Authorization", b"Bearer x")],
        [(b"authorization", b"Basic YTpi"), bearer(token(KEY))],
        [(b"authorization", b"Basic YTpi"), (b"authorization", b"Basic YTpi")],
        [(b"authorization", b""), bearer(token(KEY))],
    ],
    ids=["twice", "two", "in another case", "two schemes", "no bearer", "an empty one"],
)
async def test_a_repeated_header_is_a_bad_request(headers: list[Header]) -> None:
    asked = await ask(auth(), http(*headers))
    assert asked.answer == (400, "invalid_request")
    assert asked.challenges == [b'Bearer error="invalid_request"']


@pytest.mark.parametrize(
    "cookies",
    [[b"session=%s"], [b"a=b; session=%s; c=d"], [b"a=b", b"session=%s"], [b"session=", b"session=%s"]],
    ids=repr,
)
async def test_a_header_and_a_cookie_are_a_bad_request_even_where_they_are_the_same(cookies: list[bytes]) -> None:
    text = token(KEY).encode()
    headers = [(b"cookie", line % text if b"%s" in line else line) for line in cookies]
    with_cookie = auth(cookie="session")
    asked = await ask(with_cookie, http(bearer(text), *headers), websocket_origins=[])
    assert asked.answer == (400, "invalid_request")


@pytest.mark.parametrize(
    "line", [b"session=%s; session=%s", b"session=%s; session=x", b"session=; session=%s"], ids=repr
)
async def test_a_repeated_cookie_is_a_bad_request(line: bytes) -> None:
    line = line.replace(b"%s", token(KEY).encode())
    assert (await ask(auth(cookie="session"), http((b"cookie", line)), websocket_origins=[])).answer == (
        400,
        "invalid_request",
    )


async def test_keys_that_cannot_be_had_are_the_servers_fault(asyncio_only: None) -> None:
    async def fetch(url: str) -> bytes:
        raise OSError("down")

    client = JWKSClient("https://id.example.com/jwks.json", fetch=fetch, clock=lambda: 0.0, cooldown=30)
    scope = http(bearer(token(KEY)))
    app = Seen(current_context)
    middleware = ContextMiddleware(app, identity=auth(key=None, jwks=client))
    try:
        exchange = await run(middleware, scope)
    finally:
        await middleware.close()
    assert (exchange.status, exchange.problem["code"]) == (503, "keys_unavailable")
    assert (exchange.header(b"retry-after"), exchange.header(b"www-authenticate")) == ([b"30"], [])


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b"bEaReR"])
@pytest.mark.parametrize("space", [b" ", b"   "])
async def test_the_scheme_is_read_in_any_case(scheme: bytes, space: bytes) -> None:
    asked = await ask(auth(), http((b"authorization", b" " + scheme + space + token(KEY).encode() + b" \t")))
    assert asked.who == ("acme", "ann")


@pytest.mark.parametrize("value", [b"", b"Basic YTpi", b"Bearerx", b"Bearer-x y", b"DPoP a.b.c", b"Token Bearer x"])
async def test_another_scheme_is_no_credential(value: bytes) -> None:
    asked = await ask(auth(), http((b"authorization", value)))
    assert asked.answer == (401, "identity_missing")
    assert asked.challenges == [b"Bearer"]


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer",
        b"Bearer ",
        b"Bearer\ta.b.c",
        b"Bearer\xa0a.b.c",
        b"Bearer a, Bearer b",
        b"Bearer a b",
        b"Bearer \xff\x00",
        b'Bearer "a"',
        b"Bearer  =",
    ],
)
async def test_what_follows_bearer_is_the_token_and_refused_as_such(value: bytes) -> None:
    assert (await ask(auth(), http((b"authorization", value)))).answer == (401, "invalid_token")


class Guarded:
    """Raises what would be raised if a token were looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def look(raw: bytes) -> Any:
            self.looked += 1
            raise AssertionError("parsed")

        self.looked = 0
        monkeypatch.setattr("asgi_context.jwt._auth.read_token", look)


@pytest.mark.parametrize("text", ["a" * 8193, token(KEY) + "a" * 8192, "." * 1_000_000], ids=len)
async def test_an_over_long_token_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    guarded = Guarded(monkeypatch)
    assert await refused(auth(), text) == (401, "invalid_token")
    assert guarded.looked == 0


async def test_the_longest_token_may_be_chosen() -> None:
    text = token(KEY)
    assert await whose(auth(max_token_bytes=len(text)), text) == ("acme", "ann")
    assert await refused(auth(max_token_bytes=len(text) - 1), text) == (401, "invalid_token")


SECRETS = ["ann-the-subject", "acme-the-tenant", "the-claim", "some-kid"]


@pytest.mark.parametrize("denial", [False, True], ids=["close", "denial"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_nothing_of_a_token_is_in_an_answer_or_a_log_line(
    asyncio_only: None, caplog: pytest.LogCaptureFixture, kind: str, denial: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    header = {"kid": "some-kid"}
    claims = {"sub": "ann-the-subject", "org_id": "acme-the-tenant", "claim": "the-claim"}
    good = token(KEY, **claims)
    named = make_key("HS256", "some-kid")
    texts = [
        token(named, **claims),
        token(KEY, header, **claims),
        token(KEY, {"alg": "the-claim"}, **claims),
        token(KEY, {"typ": "the-claim"}, **claims),
        token(KEY, {"crit": ["the-claim"]}, **claims),
        token(KEY, **{**claims, "exp": "the-claim"}),
        token(KEY, **{**claims, "exp": NOW}),
        token(KEY, **{**claims, "nbf": NOW + 1}),
        token(KEY, **{**claims, "aud": "the-claim"}),
        token(KEY, **{**claims, "iss": "the-claim"}),
        token(KEY, **{**claims, "org_id": "the-claim \n"}),
        token(KEY, **{**claims, "org_id": ...}),
        token(KEY, **{**claims, "sub": "the-claim \n"}),
        good[:-1],
        good + "=",
        "the-claim",
        good,
    ]
    places: list[list[Header]] = [[bearer(text)] for text in texts]
    places.append([bearer(good), bearer(good)])
    places.append([bearer(good), (b"cookie", b"session=" + good.encode())])
    identity = auth(cookie="session", tenants=lambda tenant: False)
    make = http if kind == "http" else partial(websocket, denial=denial)
    for headers in places:
        asked = await ask(identity, make(*headers), websocket_origins=[])
        assert asked.seen == []
        sent = repr(asked.exchange.sent)
        texts_of_it = [part for name, value in headers for part in value.decode().split(".") if len(part) > 8]
        assert not [part for part in SECRETS + texts_of_it if part in sent]
    assert "rejected: 401 invalid_token" in caplog.text
    assert "refused a token: it has expired" in caplog.text
    for record in caplog.records:
        line = record.getMessage() + caplog.text
        assert not [part for part in SECRETS if part in line]
        assert good.split(".")[1] not in line
        assert good.split(".")[2] not in line


async def test_the_usual_answer_may_be_replaced_and_keeps_what_it_was() -> None:
    rejections: list[RequestRejected] = []

    def on_reject(rejection: RequestRejected, scope: Any) -> Any:
        rejections.append(rejection)
        return hello

    exchange = await run(ContextMiddleware(hello, identity=auth(), on_reject=on_reject), http(bearer("x")))
    assert exchange.status == 200
    assert [(r.status, r.code, dict(r.headers)[b"www-authenticate"]) for r in rejections] == [
        (401, "invalid_token", b"Bearer " + INVALID)
    ]


async def test_unbound_is_what_has_no_credential_and_not_what_has_a_bad_one() -> None:
    assert (await ask(auth(), missing="unbound")).seen == [None]
    basic = http((b"authorization", b"Basic YTpi"))
    assert (await ask(auth(), basic, missing="unbound")).seen == [None]
    assert (await ask(auth(), http(bearer("x")), missing="unbound")).answer == (401, "invalid_token")
    assert (await ask(auth(), http(bearer("x"), bearer("x")), missing="unbound")).answer == (400, "invalid_request")
    assert (await ask(auth(), http(bearer(token(KEY, org_id=...))), missing="unbound")).answer[0] == 403
    assert (await ask(auth(), http(bearer(token(KEY))), missing="unbound")).who == ("acme", "ann")


# Beside other sources


class ByApiKey:
    """Somebody else's credential, with a challenge of its own."""

    challenge = 'ApiKey realm="things"'

    def __call__(self, scope: Any) -> Identity | None:
        value = dict(scope["headers"]).get(b"x-api-key")
        return None if value is None else Identity("keyed", value.decode())


HEADERS = identity_from(tenant=from_header("x-tenant-id"), user=from_header("x-user-id"))
GLOBEX: list[Header] = [(b"x-tenant-id", b"globex"), (b"x-user-id", b"gus")]


async def test_challenges_of_several_sources_are_joined() -> None:
    either = first_of(auth(resource_metadata=METADATA), ByApiKey())
    asked = await ask(either)
    assert asked.answer == (401, "identity_missing")
    assert asked.challenges == [b'Bearer resource_metadata="%s", ApiKey realm="things"' % METADATA.encode()]


async def test_a_bad_token_is_told_what_else_would_do() -> None:
    asked = await ask(first_of(ByApiKey(), auth()), http(bearer("x")))
    assert asked.answer == (401, "invalid_token")
    assert asked.challenges == [b"Bearer " + INVALID + b', ApiKey realm="things"']


async def test_first_of_takes_the_token_and_falls_through_only_where_there_is_none() -> None:
    either = first_of(auth(), HEADERS)
    assert (await ask(either, http(bearer(token(KEY)), *GLOBEX))).who == ("acme", "ann")
    assert (await ask(either, http(*GLOBEX))).who == ("globex", "gus")
    assert (await ask(either, http((b"authorization", b"Basic YTpi"), *GLOBEX))).who == ("globex", "gus")
    for bad in ("x", token(KEY, exp=NOW), token(OTHER_KEY)):
        assert (await ask(either, http(bearer(bad), *GLOBEX))).answer == (401, "invalid_token")
    assert (await ask(either, http(bearer(token(KEY, org_id=...)), *GLOBEX))).answer == (403, "tenant_missing")
    assert (await ask(either, http(*GLOBEX[:1]))).answer == (400, "user_missing")
    assert (await ask(either)).answer == (401, "identity_missing")


async def test_first_of_two_auths_asks_the_second_only_where_the_first_finds_nothing() -> None:
    two = first_of(auth(cookie="session"), JWTAuth(**options(key=OTHER_KEY.jwk), now=lambda: NOW))
    asked = await ask(two, http(bearer(token(OTHER_KEY))), websocket_origins=[])
    assert asked.answer == (401, "invalid_token")


@pytest.mark.parametrize(
    ("hint", "answer"),
    [
        (b"acme", None),
        (b"beta", (403, "tenant_mismatch")),
        (b"a b", (400, "identifier_invalid")),
    ],
    ids=["the same", "another", "an invalid one"],
)
async def test_a_hint_must_say_the_same_as_the_token(hint: bytes, answer: tuple[int, str] | None) -> None:
    agreed = agree(auth(), from_header("x-tenant-id"))
    asked = await ask(agreed, http(bearer(token(KEY)), (b"x-tenant-id", hint)))
    if answer is None:
        assert asked.who == ("acme", "ann")
    else:
        assert asked.answer == answer


async def test_hints_at_the_user_are_held_against_the_token_too() -> None:
    agreed = agree(auth(), HEADERS)
    assert (await ask(agreed, http(bearer(token(KEY))))).who == ("acme", "ann")
    other = [(b"x-tenant-id", b"acme"), (b"x-user-id", b"bob")]
    assert (await ask(agreed, http(bearer(token(KEY)), *other))).answer == (403, "user_mismatch")


async def test_a_hint_alone_is_no_proof() -> None:
    asked = await ask(agree(auth(), from_header("x-tenant-id")), http((b"x-tenant-id", b"acme")))
    assert asked.answer == (401, "identity_missing")
    assert asked.challenges == [b"Bearer"]


def test_it_gives_whole_identities_and_no_tenants() -> None:
    with pytest.raises(TypeError, match="tenant must be an extractor of str"):
        ContextMiddleware(hello, tenant=auth())
    with pytest.raises(TypeError, match="some parts give strings and some identities"):
        first_of(auth(), from_header("x-tenant-id"))


async def test_it_may_be_called_in_an_extractor_of_the_users_own() -> None:
    inner = auth()

    async def extract(scope: Any) -> Identity | None:
        identity: Identity | None = await inner(scope)
        return None if identity is None else Identity(identity.tenant, f"via-{identity.user}")

    assert (await ask(extract, http(bearer(token(KEY))))).who == ("acme", "via-ann")
    assert (await ask(extract, http(bearer("x")))).answer == (401, "invalid_token")
    assert (await ask(extract)).answer == (400, "identity_missing")  # nothing says that a challenge would do


async def test_authorize_decides_of_what_the_token_has_proven() -> None:
    seen: list[Any] = []

    def authorize(context: Any, scope: Any) -> bool:
        seen.append((context.tenant, context.user, context.claims["scope"]))
        return "write" in context.claims["scope"]

    assert (await ask(auth(), http(bearer(token(KEY, scope="read write"))), authorize=authorize)).who == ("acme", "ann")
    asked = await ask(auth(), http(bearer(token(KEY, scope="read"))), authorize=authorize)
    assert asked.answer == (403, "tenant_forbidden")
    assert seen == [("acme", "ann", "read write"), ("acme", "ann", "read")]


async def test_what_is_exempt_is_not_asked_for_a_token() -> None:
    exempt = partial(ask, auth(), exempt=lambda scope: scope["path"] == "/health")
    assert (await exempt(http(path="/health"))).seen == [None]
    assert (await exempt(http(bearer("x"), path="/health"))).seen == [None]
    assert (await exempt(http(bearer("x"), path="/"))).answer == (401, "invalid_token")
    preflight = http((b"origin", b"https://x"), (b"access-control-request-method", b"GET"), method="OPTIONS")
    assert (await exempt(preflight)).seen == [None]


# Where a WebSocket carries its token

PROTOCOL = b"sec-websocket-protocol"


def offering(*lines: bytes, subprotocols: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A WebSocket that offers subprotocols; ``%s`` stands for a good token."""
    text = token(KEY)
    lines = tuple(line.replace(b"%s", text.encode()) for line in lines)
    if subprotocols is None:  # as servers give them
        subprotocols = [entry.strip() for line in lines for entry in line.decode().split(",") if entry.strip()]
    return websocket(*((PROTOCOL, line) for line in lines), subprotocols=subprotocols, denial=True, **more)


def by_protocol(**more: Any) -> JWTAuth:
    return auth(websocket_protocol="bearer.", **more)


async def test_a_websocket_carries_it_in_the_header_as_a_request_does(asyncio_only: None) -> None:
    assert (await ask(auth(), websocket(bearer(token(KEY))))).who == ("acme", "ann")


@pytest.mark.parametrize(
    ("lines", "kept", "offered"),
    [
        ([b"bearer.%s"], [], []),
        ([b"chat, bearer.%s"], [b"chat"], ["chat"]),
        ([b"bearer.%s,chat"], [b"chat"], ["chat"]),
        ([b"chat,bearer.%s ,\tv2.chat"], [b"chat, v2.chat"], ["chat", "v2.chat"]),
        ([b"chat", b"bearer.%s"], [b"chat"], ["chat"]),
        ([b"chat, a", b"bearer.%s, b"], [b"chat, a", b"b"], ["chat", "a", "b"]),
        ([b" bearer.%s "], [], []),
    ],
    ids=repr,
)
async def test_the_entry_of_the_protocols_that_holds_it_is_taken_out(
    asyncio_only: None, lines: list[bytes], kept: list[bytes], offered: list[str]
) -> None:
    scope = offering(*lines)
    scope["headers"] = [(b"host", b"test"), *scope["headers"], (b"x-last", b"1")]
    asked = await ask(by_protocol(), scope)
    assert asked.who == ("acme", "ann")
    assert asked.scope is scope  # what frameworks write into it is seen outside
    assert scope["headers"] == [(b"host", b"test"), *((PROTOCOL, line) for line in kept), (b"x-last", b"1")]
    assert scope["subprotocols"] == offered
    assert token(KEY) not in repr({**scope, "asgi_context": None})


async def test_the_apps_own_protocol_can_be_selected_and_the_token_is_never(asyncio_only: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})

    middleware = ContextMiddleware(app, identity=by_protocol())
    for line, selected in ((b"bearer.%s, chat", "chat"), (b"bearer.%s", None)):
        exchange = await run(middleware, offering(line))
        assert exchange.sent == [{"type": "websocket.accept", "subprotocol": selected}]


async def test_the_headers_name_may_come_in_any_case(asyncio_only: None) -> None:
    scope = offering(b"bearer.%s, chat")
    scope["headers"] = [(b"Sec-WebSocket-Protocol", scope["headers"][0][1])]
    assert (await ask(by_protocol(), scope)).who == ("acme", "ann")
    assert (scope["headers"], scope["subprotocols"]) == ([(b"Sec-WebSocket-Protocol", b"chat")], ["chat"])


async def test_a_scope_without_the_list_of_subprotocols_is_served_too(asyncio_only: None) -> None:
    scope = offering(b"bearer.%s, chat")
    del scope["subprotocols"]
    assert (await ask(by_protocol(), scope)).who == ("acme", "ann")
    assert token(KEY) not in repr({**scope, "asgi_context": None})


async def test_protocols_without_a_token_are_left_as_they_are(asyncio_only: None) -> None:
    for line in (b"chat", b"bearer, chat", b"x-bearer.y"):
        scope = offering(line)
        headers = scope["headers"]
        asked = await ask(by_protocol(), scope, missing="unbound")
        assert asked.seen == [None]
        assert scope["headers"] is headers
        assert scope["subprotocols"] == [entry.strip() for entry in line.decode().split(",")]


async def test_a_token_in_another_case_is_not_read_and_yet_hidden(asyncio_only: None) -> None:
    scope = offering(b"Bearer.%s, chat")
    asked = await ask(by_protocol(), scope, missing="unbound")
    assert asked.seen == [None]
    assert scope["subprotocols"] == ["chat"]
    assert dict(scope["headers"])[PROTOCOL] == b"chat"


@pytest.mark.parametrize("entry", [b"bearer.", b"bearer.x", b"bearer.a.b.c", b"bearer.bearer.%s"])
async def test_a_bad_token_among_the_protocols_is_refused(asyncio_only: None, entry: bytes) -> None:
    asked = await ask(by_protocol(), offering(b"chat, " + entry))
    assert asked.answer == (401, "invalid_token")
    assert asked.challenges == [b"Bearer " + INVALID]


@pytest.mark.parametrize(
    "lines",
    [[b"bearer.%s, bearer.%s"], [b"bearer.%s", b"bearer.%s"], [b"bearer.%s, bearer."], [b"bearer.x,chat,bearer.%s"]],
)
async def test_two_tokens_among_the_protocols_are_a_bad_request(asyncio_only: None, lines: list[bytes]) -> None:
    assert (await ask(by_protocol(), offering(*lines))).answer == (400, "invalid_request")


async def test_the_protocols_are_not_looked_at_unless_that_is_configured(asyncio_only: None) -> None:
    scope = offering(b"bearer.%s, chat")
    subprotocols = scope["subprotocols"]
    assert (await ask(auth(), scope)).answer == (401, "identity_missing")
    assert scope["subprotocols"] is subprotocols


async def test_a_cookie_may_hold_it_where_the_origins_are_known(asyncio_only: None) -> None:
    text = token(KEY).encode()
    for line in (b"session=" + text, b"a=b;session=" + text + b" ; session2=x", b" session = " + text):
        for scope in (websocket((b"cookie", line)), http((b"Cookie", line))):
            asked = await ask(auth(cookie="session"), scope, websocket_origins=["https://app.example.com"])
            assert asked.who == ("acme", "ann")


@pytest.mark.parametrize("line", [b"Session=%s", b"session2=%s", b"session", b"a=session=%s", b"xsession=%s"])
async def test_other_cookies_are_not_the_one(line: bytes) -> None:
    scope = http((b"cookie", line.replace(b"%s", token(KEY).encode())))
    assert (await ask(auth(cookie="session"), scope, websocket_origins=[])).answer == (401, "identity_missing")


@pytest.mark.parametrize("line", [b"session=", b'session="%s"', b"session=%s,x"])
async def test_a_bad_token_in_the_cookie_is_refused(line: bytes) -> None:
    scope = http((b"cookie", line.replace(b"%s", token(KEY).encode())))
    assert (await ask(auth(cookie="session"), scope, websocket_origins=[])).answer == (401, "invalid_token")


async def test_cookies_are_not_looked_at_unless_that_is_configured() -> None:
    assert (await ask(auth(), http((b"cookie", b"session=" + token(KEY).encode())))).answer == (401, "identity_missing")


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: first_of(ByApiKey(), a), lambda a: agree(a, HEADERS)])
def test_a_cookie_without_origins_is_refused(wrap: Any) -> None:
    source = wrap(auth(cookie="session"))
    with pytest.raises(ValueError, match="websocket_origins"):
        ContextMiddleware(hello, identity=source)
    ContextMiddleware(hello, identity=source, websocket_origins=[])
    ContextMiddleware(hello, identity=wrap(by_protocol(websocket_query="token")))


@pytest.mark.parametrize(
    "query", ["token=%s", "a=b&token=%s&c=", "token=%s#", "%%74oken=%s", "a=%%zz&token=%s", "tokens=x&token=%s"]
)
async def test_the_query_may_hold_it_where_that_is_asked_for(asyncio_only: None, query: str) -> None:
    scope = websocket(query_string=(query % token(KEY)).encode(), denial=True)
    asked = await ask(auth(websocket_query="token"), scope)
    if "#" in query:  # no server passes on a fragment: here it is a part of the value
        assert asked.answer == (401, "invalid_token")
    else:
        assert asked.who == ("acme", "ann")


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        (b"", (401, "identity_missing")),
        (b"Token=%s", (401, "identity_missing")),
        (b"a=token=%s", (401, "identity_missing")),
        (b"x;token=%s", (401, "identity_missing")),
        (b"token=", (401, "invalid_token")),
        (b"token", (401, "invalid_token")),
        (b"token=%%FF", (401, "invalid_token")),
        (b"token=\xff", (401, "invalid_token")),
        (b"token=%s&token=%s", (400, "invalid_request")),
        (b"token=%s&token=", (400, "invalid_request")),
        (b"a" * 20_000 + b"&token=%s", (400, "invalid_request")),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_of_a_query_the_one_parameter_is_read(asyncio_only: None, query: bytes, answer: tuple[int, str]) -> None:
    scope = websocket(query_string=query.replace(b"%s", token(KEY).encode()), denial=True)
    assert (await ask(auth(websocket_query="token"), scope)).answer == answer


@pytest.mark.parametrize("query", [b"a&" * 1001 + b"token=%s", b"to%6ben=%s", b"a=%zz&token=%s", b"token=%s&token2=x"])
async def test_of_a_query_the_parameter_is_read_wherever_it_stands(asyncio_only: None, query: bytes) -> None:
    scope = websocket(query_string=query.replace(b"%s", token(KEY).encode()), denial=True)
    assert (await ask(auth(websocket_query="token"), scope)).who == ("acme", "ann")


async def test_the_query_is_not_looked_at_unless_that_is_configured(asyncio_only: None) -> None:
    scope = websocket(query_string=b"token=" + token(KEY).encode(), denial=True)
    assert (await ask(by_protocol(cookie="token"), scope, websocket_origins=[])).answer == (401, "identity_missing")


async def test_a_request_carries_it_neither_in_the_query_nor_among_protocols() -> None:
    text = token(KEY).encode()
    everywhere = by_protocol(websocket_query="token")
    headers = [(PROTOCOL, b"bearer." + text)]
    scope = http(*headers, query_string=b"token=" + text)
    assert (await ask(everywhere, scope)).answer == (401, "identity_missing")
    assert scope["headers"] == headers
    assert (await ask(everywhere, http(bearer(text), *headers, query_string=b"token=" + text))).who == ("acme", "ann")


@pytest.mark.parametrize("second", ["header", "cookie", "query"])
async def test_two_places_at_once_are_a_bad_request(asyncio_only: None, second: str) -> None:
    text = token(KEY).encode()
    everywhere = by_protocol(cookie="session", websocket_query="token")
    scope = offering(b"chat, bearer.%s", query_string=b"token=" + text if second == "query" else b"")
    scope["headers"] += {"header": [bearer(text)], "cookie": [(b"cookie", b"session=" + text)]}.get(second, [])
    asked = await ask(everywhere, scope, websocket_origins=[])
    assert asked.answer == (400, "invalid_request")
    assert asked.challenges == [b'Bearer error="invalid_request"']


async def test_another_scheme_in_the_header_is_no_second_credential(asyncio_only: None) -> None:
    scope = offering(b"bearer.%s")
    scope["headers"].append((b"authorization", b"Basic YTpi"))
    assert (await ask(by_protocol(), scope)).who == ("acme", "ann")


async def test_a_websocket_without_denial_response_is_closed_before_it_is_accepted(asyncio_only: None) -> None:
    for headers in ([], [bearer("x")], [bearer("x"), bearer("x")]):
        asked = await ask(auth(), websocket(*headers))
        assert (asked.seen, asked.exchange.sent) == ([], [{"type": "websocket.close", "code": 1008, "reason": ""}])
