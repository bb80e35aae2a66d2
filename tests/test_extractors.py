"""Each extractor: what it reads, what counts as absent, what it refuses."""

import asyncio
import functools
import ipaddress
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from driver import http, websocket
from hypothesis import given
from hypothesis import strategies as st

from asgi_context import (
    Identity,
    RequestRejected,
    SharedSecret,
    agree,
    constant,
    first_of,
    from_cookie,
    from_header,
    from_path,
    from_query,
    from_scope,
    from_subdomain,
    identity_from,
)
from asgi_context._extract._step import composed
from asgi_context.errors import ExtractorTypeError, ScopeKeyMissingError

ALLOWED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-~@:|+="


def rejected(extractor: Any, scope: Any) -> str:
    with pytest.raises(RequestRejected) as caught:
        extractor(scope)
    return f"{caught.value.status} {caught.value.code}"


# Identifiers


@given(st.text(ALLOWED, min_size=1, max_size=128).filter(lambda text: text.strip(".")))
def test_an_identifier_of_1_to_128_allowed_characters_is_good(identifier: str) -> None:
    assert from_header("x-id")(http((b"x-id", identifier.encode()))) == identifier


@given(st.text(ALLOWED, max_size=64), st.characters(exclude_characters=ALLOWED), st.text(ALLOWED, max_size=63))
def test_one_other_character_makes_it_invalid(before: str, other: str, after: str) -> None:
    scope = http((b"x-id", (before + other + after).encode("utf-8", "surrogatepass")))
    if other in " \t" and not (before and after):
        scope = http((b"x-id", f"a{other}b".encode()))  # at the ends they would be trimmed
    assert rejected(from_header("x-id"), scope) == "400 identifier_invalid"


@pytest.mark.parametrize(
    "value", ["", " ", ".", "..", "." * 128, "a" * 129, "a\n", "a\r\n", "\na", "a b", "a,b", "a/b", "é", "a\x00"]
)
def test_bad_identifiers_are_refused_wherever_they_come_from(value: str) -> None:
    assert rejected(from_header("x-id"), http((b"x-id", value.encode()))) == "400 identifier_invalid"
    assert rejected(from_scope("id"), http(id=value)) == "400 identifier_invalid"
    with pytest.raises(ValueError, match="constant"):
        constant(value)


def test_the_longest_identifier_has_128_characters() -> None:
    assert from_scope("id")(http(id="a" * 128)) == "a" * 128


def test_a_rule_of_the_users_own_decides_instead() -> None:
    spaces = from_header("x-id", valid=lambda value: value.isprintable())
    assert spaces(http((b"x-id", b" two words "))) == "two words"
    assert spaces(http((b"x-id", "größe".encode()))) == "größe"
    assert rejected(spaces, http((b"x-id", b"a\x00b"))) == "400 identifier_invalid"
    assert rejected(spaces, http((b"x-id", b""))) == "400 identifier_invalid"
    assert rejected(spaces, http((b"x-id", b"\xff"))) == "400 identifier_invalid"


@pytest.mark.parametrize(
    "make",
    [
        lambda valid: from_header("x", valid=valid),
        lambda valid: from_query("x", valid=valid),
        lambda valid: from_cookie("x", valid=valid),
        lambda valid: from_path("/{x}", valid=valid),
        lambda valid: from_subdomain("x.org", valid=valid),
        lambda valid: from_scope("x", valid=valid),
    ],
)
def test_a_rule_must_be_a_plain_callable(make: Any) -> None:
    async def later(value: str) -> bool:
        return False

    def generated(value: str) -> Any:
        yield False

    for wrong in ("[a-z]+", later, generated, True):
        with pytest.raises(TypeError, match="valid= must be callable and say at once"):
            make(wrong)


def test_the_rule_of_an_extractor_of_the_users_own_must_be_callable_too() -> None:
    def tenant(scope: Any) -> str:
        return "acme"

    tenant.valid = True  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="the attribute valid of"):
        first_of(tenant)(http())


# Headers


def test_a_header_is_read_whatever_case_its_name_was_given_in() -> None:
    assert from_header("X-Tenant-ID")(http((b"host", b"a"), (b"x-tenant-id", b"acme"))) == "acme"
    assert from_header("X-Tenant-ID")(websocket((b"x-tenant-id", b"acme"))) == "acme"
    assert from_header("x-tenant-id")(http((b"x-tenant-idd", b"acme"))) is None


def test_space_and_tab_around_the_value_are_trimmed_and_nothing_else_is() -> None:
    assert from_header("x")(http((b"x", b" \t acme\t "))) == "acme"
    for other in (b"\xa0", b"\x0b", b"\x0c", b"\x85", b"\x1c", b"\n", b"\r"):
        assert rejected(from_header("x"), http((b"x", other + b"acme"))) == "400 identifier_invalid"
        assert rejected(from_header("x"), http((b"x", b"acme" + other))) == "400 identifier_invalid"


def test_a_repeated_header_is_refused_even_if_both_say_the_same() -> None:
    assert rejected(from_header("x"), http((b"x", b"a"), (b"x", b"a"))) == "400 identifier_repeated"
    assert rejected(from_header("x"), http((b"x", b"a"), (b"x", b""))) == "400 identifier_repeated"


@pytest.mark.parametrize("twin", [b"x_tenant_id", b"x_tenant-id", b"x-tenant_id"])
def test_a_twin_that_differs_in_underscores_is_refused_alone_and_beside(twin: bytes) -> None:
    tenant = from_header("x-tenant-id")
    assert rejected(tenant, http((twin, b"acme"))) == "400 identifier_invalid"
    assert rejected(tenant, http((twin, b"acme"), (b"x-tenant-id", b"acme"))) == "400 identifier_repeated"
    assert rejected(tenant, http((b"x-tenant-id", b"acme"), (twin, b"acme"))) == "400 identifier_repeated"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", ValueError),
        ("x y", ValueError),
        ("x:", ValueError),
        ("é", ValueError),
        ("\ud800", ValueError),
        (b"x", TypeError),
    ],
)
def test_the_name_must_be_that_of_a_header(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="from_header: name"):
        from_header(name)


# trusted=


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "192.0.2.7"])
def test_a_peer_in_a_trusted_network_is_believed(peer: str) -> None:
    tenant = from_header("x", trusted=["10.0.0.0/8", "fd00::/8", ipaddress.ip_network("192.0.2.7")])
    assert tenant(http((b"x", b"acme"), client=(peer, 1))) == "acme"
    assert tenant(http((b"x", b"acme"), client=(peer, "1"))) == "acme"  # granian's port is a str


@pytest.mark.parametrize(
    "network", ["::ffff:10.0.0.0/104", ipaddress.ip_network("::ffff:10.0.0.0/104"), ipaddress.ip_network("10.0.0.0/8")]
)
def test_a_mapped_network_is_the_one_that_it_maps(network: Any) -> None:
    tenant = from_header("x", trusted=network)
    for peer in ("10.1.2.3", "::ffff:10.1.2.3"):
        assert tenant(http((b"x", b"acme"), client=(peer, 1))) == "acme"
    assert rejected(tenant, http((b"x", b"acme"), client=("11.1.2.3", 1))) == "403 identifier_untrusted"


ODD_PEERS = [None, (), (None, 1), (b"\x0a\x01\x01\x01", 1)]


@pytest.mark.parametrize("client", [("11.1.2.3", 1), ("::1", 1), ("unix", 1), ("", 1), ("1" * 100, 1), *ODD_PEERS])
def test_from_any_other_peer_the_header_is_refused(client: Any) -> None:
    tenant = from_header("x", trusted="10.0.0.0/8")
    assert rejected(tenant, http((b"x", b"acme"), client=client)) == "403 identifier_untrusted"
    assert rejected(tenant, http((b"x", b"acme"), (b"x", b"acme"), client=client)) == "403 identifier_untrusted"
    assert tenant(http(client=client)) is None, "without the header there is nothing to distrust"


def test_a_scope_without_a_client_is_not_trusted() -> None:
    scope = http((b"x", b"acme"))
    del scope["client"]
    assert rejected(from_header("x", trusted="10.0.0.0/8"), scope) == "403 identifier_untrusted"


SECRET = "0123456789abcdef"


def test_a_peer_that_knows_the_secret_is_believed_even_on_a_unix_socket() -> None:
    tenant = from_header("x", trusted=SharedSecret("X-Gateway", SECRET))
    assert tenant(http((b"x", b"acme"), (b"x-gateway", SECRET.encode()), client=None)) == "acme"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-gateway", b"")],
        [(b"x-gateway", SECRET[:-1].encode())],
        [(b"x-gateway", SECRET.encode() + b" ")],
        [(b"x-gateway", SECRET.encode())] * 2,
        [(b"x_gateway", SECRET.encode())],
    ],
)
def test_a_peer_that_does_not_know_the_secret_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    tenant = from_header("x", trusted=SharedSecret("x-gateway", SECRET))
    assert rejected(tenant, http((b"x", b"acme"), *headers)) == "403 identifier_untrusted"


def test_one_of_several_secrets_and_networks_is_enough() -> None:
    """So a secret can be changed while gateways run."""
    tenant = from_header("x", trusted=[SharedSecret("g", "a" * 16), SharedSecret("g", b"b" * 16), "10.0.0.0/8"])
    assert tenant(http((b"x", b"acme"), (b"g", b"a" * 16))) == "acme"
    assert tenant(http((b"x", b"acme"), (b"g", b"b" * 16))) == "acme"
    assert tenant(http((b"x", b"acme"), client=("10.0.0.1", 1))) == "acme"
    assert rejected(tenant, http((b"x", b"acme"), (b"g", b"c" * 16))) == "403 identifier_untrusted"


@pytest.mark.parametrize(
    ("trusted", "error"),
    [
        ([], ValueError),
        ("10.0.0.1/8", ValueError),
        ("gateway", ValueError),
        ([1], TypeError),
        ([None], TypeError),
        (5, TypeError),
        (True, TypeError),
    ],
)
def test_what_is_trusted_must_make_sense(trusted: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="trusted="):
        from_header("x", trusted=trusted)


def test_a_secret_must_be_long_enough_and_is_not_shown() -> None:
    for wrong in ("short", " " * 16, SECRET + " ", "0123456789\nabcdef", "ä" * 16, b"\x00" * 16):
        with pytest.raises(ValueError, match="16 characters of printable ASCII"):
            SharedSecret("x", wrong)
    with pytest.raises(TypeError, match="str or bytes"):
        SharedSecret("x", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="header"):
        SharedSecret("x y", SECRET)
    assert repr(SharedSecret("x", SECRET)) == "SharedSecret('x', ...)"


# Query, cookie, path, subdomain


def test_a_query_parameter_is_read_decoded() -> None:
    tenant = from_query("tenant")
    assert tenant(http(query_string=b"a=1&tenant=ac%6De&b=2")) == "acme"
    assert tenant(http(query_string=b"a=1")) is None
    assert tenant(http(query_string=b"")) is None
    assert tenant(http(query_string=b"others=%ff\xff&tenant=acme")) == "acme"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (b"tenant=", "invalid"),
        (b"tenant", "invalid"),
        (b"tenant=a+b", "invalid"),
        (b"tenant=a%00", "invalid"),
        (b"tenant=%ff", "invalid"),
        (b"tenant=\xff", "invalid"),
        (b"&".join([b"a=1"] * 1001), "invalid"),
        (b"tenant=a&tenant=a", "repeated"),
        (b"tenant=a&%74enant=a", "repeated"),
    ],
)
def test_bad_query_parameters_are_refused(query: bytes, code: str) -> None:
    assert rejected(from_query("tenant"), http(query_string=query)) == f"400 identifier_{code}"


def test_a_query_parameter_may_have_any_name() -> None:
    assert from_query("größe")(http(query_string=b"gr%C3%B6%C3%9Fe=acme")) == "acme"


def test_a_cookie_is_read_from_all_cookie_headers() -> None:
    tenant = from_cookie("tenant")
    assert tenant(http((b"host", b"a"), (b"cookie", b"a=1; tenant=acme;b=2"))) == "acme"
    assert tenant(http((b"cookie", b"a=1"), (b"cookie", b"tenant=acme"))) == "acme"
    assert tenant(http((b"Cookie", b"tenant=acme"))) == "acme"
    assert tenant(http((b"cookie", b'tenant="acme"'))) == "acme"
    assert tenant(http((b"cookie", b"Tenant=acme; tenant; xtenant=acme"))) is None
    assert tenant(http()) is None


@pytest.mark.parametrize(
    ("cookie", "code"),
    [
        (b"tenant=", "invalid"),
        (b"tenant=\xff", "invalid"),
        (b"tenant=a b", "invalid"),
        (b'tenant="', "invalid"),
        (b"tenant=a; tenant=b", "repeated"),
    ],
)
def test_bad_cookies_are_refused(cookie: bytes, code: str) -> None:
    assert rejected(from_cookie("tenant"), http((b"cookie", cookie))) == f"400 identifier_{code}"


def test_the_name_of_a_cookie_must_be_a_token() -> None:
    with pytest.raises(ValueError, match="from_cookie: name"):
        from_cookie("a=b")


@pytest.mark.parametrize(
    ("template", "path", "root", "tenant"),
    [
        ("/tenants/{tenant}", "/tenants/acme", "", "acme"),
        ("/tenants/{tenant}", "/tenants/acme/orders/1", "", "acme"),
        ("/t/{tenant}/api", "/t/acme/api", "", "acme"),
        ("/t/{tenant}/api", "/t/acme/api/x", "", "acme"),
        ("/t/{tenant}/api", "/t/acme/apix", "", None),
        ("/t/{tenant}/api", "/t/acme", "", None),
        ("/{tenant}", "/acme", "", "acme"),
        ("/tenants/{tenant}", "/other/acme", "", None),
        ("/tenants/{tenant}", "/", "", None),
        ("/tenants/{tenant}", "/tenants", "", None),
        ("/tenants/{tenant}", "/api/tenants/acme", "/api", "acme"),
        ("/tenants/{tenant}", "/api/tenants/acme", "/api/", "acme"),
        ("/tenants/{tenant}", "/tenants/acme", "/api", "acme"),
        ("/{tenant}", "/apix/acme", "/api", "apix"),
    ],
)
def test_a_path_is_matched_segment_by_segment(template: str, path: str, root: str, tenant: str | None) -> None:
    assert from_path(template)(http(path=path, root_path=root)) == tenant


@pytest.mark.parametrize("path", ["/tenants/", "/tenants//orders", "/tenants/..", "/tenants/a b"])
def test_a_bad_segment_is_refused(path: str) -> None:
    assert rejected(from_path("/tenants/{tenant}"), http(path=path)) == "400 identifier_invalid"


@pytest.mark.parametrize(
    "template", ["tenants/{t}", "/tenants", "/{a}/{b}", "/t-{a}", "/{a", "/{}", "/{a}/", "//{a}", "/{1}", "/{a}/*"]
)
def test_a_template_has_one_placeholder(template: str) -> None:
    with pytest.raises(ValueError, match="from_path: template"):
        from_path(template)


@pytest.mark.parametrize(
    "host",
    [
        b"acme.example.com",
        b"ACME.Example.COM",
        b"acme.example.com:8000",
        b"acme.example.com:",
        b"acme.example.com.",
        b" acme.example.com",
    ],
)
def test_a_subdomain_is_one_label_in_lower_case(host: bytes) -> None:
    assert from_subdomain("Example.com")(http((b"host", host))) == "acme"


@pytest.mark.parametrize(
    "host",
    [
        b"example.com",
        b"example.com:80",
        b"acme.example.org",
        b"acmeexample.com",
        b"127.0.0.1",
        b"[::1]:80",
        b"",
    ],
)
def test_a_host_that_is_not_below_the_domain_names_no_tenant(host: bytes) -> None:
    assert from_subdomain("example.com")(http((b"host", host))) is None
    assert from_subdomain("example.com")(http()) is None


@pytest.mark.parametrize(
    "host",
    [
        b"a.b.example.com",
        b".example.com",
        b"-a.example.com",
        b"a-.example.com",
        b"a_b.example.com",
        b"a" * 64 + b".example.com",
        b"\xff.example.com",
        b"acme.example.com:80@evil",
        b"acme.example.com:x",
        "\u212aing.example.com".encode(),  # a character that becomes a k in lower case
    ],
)
def test_what_is_no_single_label_is_refused(host: bytes) -> None:
    assert rejected(from_subdomain("example.com"), http((b"host", host))) == "400 identifier_invalid"


def test_a_repeated_host_is_refused() -> None:
    host = (b"host", b"acme.example.com")
    assert rejected(from_subdomain("example.com"), http(host, host)) == "400 identifier_repeated"


def test_a_rule_of_the_users_own_may_allow_more_labels() -> None:
    tenant = from_subdomain("example.com", valid=lambda label: label.count(".") == 1)
    assert tenant(http((b"host", b"a.b.example.com"))) == "a.b"


@pytest.mark.parametrize("base", ["", "exam ple.com", ".com", "a..b", "-a.com"])
def test_the_base_must_be_a_host_name(base: str) -> None:
    with pytest.raises(ValueError, match="from_subdomain: base"):
        from_subdomain(base)


# The scope, constants


@pytest.mark.parametrize(
    ("value", "path", "found"),
    [
        ("acme", (), "acme"),
        ({"tenant": "acme"}, ("tenant",), "acme"),
        (SimpleNamespace(tenant_id="acme"), ("tenant_id",), "acme"),
        ({"user": SimpleNamespace(org={"id": 42})}, ("user", "org", "id"), "42"),
        (SimpleNamespace(id=UUID(int=1)), ("id",), str(UUID(int=1))),
        ({"tenant": None}, ("tenant",), None),
        ({}, ("tenant",), None),
        (SimpleNamespace(), ("tenant", "id"), None),
        (None, ("tenant",), None),
    ],
)
def test_the_scope_is_dug_through_by_key_and_attribute(value: object, path: tuple[str, ...], found: str | None) -> None:
    assert from_scope("place", *path)(http(place=value)) == found


def test_a_subclass_of_str_becomes_a_plain_str() -> None:
    class Shown(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "somebody else"

    found = from_scope("id")(http(id=Shown("acme")))
    assert found == "acme"
    assert type(found) is str


@pytest.mark.parametrize("value", [True, 1.5, b"acme", ["acme"], object()])
def test_what_is_no_identifier_in_the_scope_is_a_mistake_of_the_app(value: object) -> None:
    with pytest.raises(ExtractorTypeError, match=r"from_scope\('place'\) returned .*; it must return str, int, UUID"):
        from_scope("place")(http(place=value))


def test_a_missing_key_is_an_error_that_names_the_middleware_order() -> None:
    with pytest.raises(ScopeKeyMissingError, match=r"no 'user': the middleware that sets it must run before"):
        from_scope("user", "tenant_id")(http())


def test_a_way_through_the_scope_is_written_as_arguments() -> None:
    with pytest.raises(ValueError, match=r"from_scope\('user', 'tenant'\)"):
        from_scope("user.tenant")


def test_a_constant_is_always_there() -> None:
    assert constant("acme")(http()) == "acme"


@pytest.mark.parametrize("make", [from_query, from_cookie, from_path, from_subdomain, from_scope, constant])
def test_arguments_must_be_strings(make: Any) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        make(1)
    with pytest.raises((TypeError, ValueError)):
        make("")


# Compositions


def test_an_identity_is_made_of_a_tenant_and_a_user() -> None:
    both = identity_from(tenant=from_header("t"), user=from_header("u"))
    assert both(http((b"t", b"acme"), (b"u", b"ann"))) == Identity("acme", "ann")
    assert both(http()) is None
    assert both(http((b"u", b"ann"))) is None
    assert identity_from(tenant=from_header("t"))(http((b"t", b"acme"))) == Identity("acme")


def test_half_an_identity_is_refused() -> None:
    both = identity_from(tenant=from_header("t"), user=from_header("u"))
    assert rejected(both, http((b"t", b"acme"))) == "400 user_missing"


def test_a_rejection_says_which_half_it_is_about() -> None:
    both = identity_from(tenant=from_header("t"), user=from_query("u"))
    assert rejected(both, http((b"t", b"a b"), query_string=b"u=ann")) == "400 tenant_invalid"
    assert rejected(both, http((b"t", b"acme"), (b"t", b"acme"))) == "400 tenant_repeated"
    assert rejected(both, http((b"t", b"acme"), query_string=b"u=a/b")) == "400 user_invalid"
    assert rejected(both, http(query_string=b"u=a&u=b")) == "400 user_repeated"
    untrusted = identity_from(tenant=from_header("t", trusted="10.0.0.0/8"))
    assert rejected(untrusted, http((b"t", b"acme"))) == "403 tenant_untrusted"


def test_the_first_that_is_present_is_taken() -> None:
    tenant = first_of(from_header("a"), from_query("b"), constant("default"))
    assert tenant(http((b"a", b"one"), query_string=b"b=two")) == "one"
    assert tenant(http(query_string=b"b=two")) == "two"
    assert tenant(http()) == "default"
    assert first_of(from_header("a"))(http()) is None


def test_what_is_present_but_invalid_never_falls_through() -> None:
    tenant = first_of(from_header("a"), constant("default"))
    for value in (b"", b"a b"):
        assert rejected(tenant, http((b"a", value))) == "400 identifier_invalid"
    assert rejected(tenant, http((b"a", b"x"), (b"a", b"x"))) == "400 identifier_repeated"


def test_the_first_of_whole_identities_is_taken_whole() -> None:
    either = first_of(
        identity_from(tenant=from_header("t"), user=from_header("u")), identity_from(tenant=constant("public"))
    )
    assert either(http((b"t", b"acme"), (b"u", b"ann"))) == Identity("acme", "ann")
    assert either(http((b"u", b"ann"))) == Identity("public")
    assert rejected(either, http((b"t", b"acme"))) == "400 user_missing"


def test_hints_that_are_present_must_agree_with_the_proof() -> None:
    tenant = agree(from_header("proof"), from_header("hint"), from_query("hint"))
    assert tenant(http((b"proof", b"acme"))) == "acme"
    assert tenant(http((b"proof", b"acme"), (b"hint", b"acme"), query_string=b"hint=acme")) == "acme"
    assert rejected(tenant, http((b"proof", b"acme"), (b"hint", b"globex"))) == "403 identifier_mismatch"
    assert rejected(tenant, http((b"proof", b"acme"), query_string=b"hint=globex")) == "403 identifier_mismatch"
    assert rejected(tenant, http((b"proof", b"acme"), (b"hint", b"a b"))) == "400 identifier_invalid"
    assert tenant(http((b"hint", b"acme"))) is None, "a hint alone proves nothing"
    assert rejected(tenant, http((b"hint", b"a b"))) == "400 identifier_invalid"
    for role in ("tenant", "user"):
        named = identity_from(**{"tenant": constant("acme"), role: tenant})
        assert rejected(named, http((b"proof", b"acme"), (b"hint", b"globex"))) == f"403 {role}_mismatch"


def test_identities_agree_in_their_tenants_and_in_users_where_both_have_one() -> None:
    proof = Identity("acme", "ann", {"role": "admin"})
    hints: dict[str, Any] = {}
    whole = agree(lambda scope: proof, lambda scope: hints["is"])

    def result() -> Any:
        coroutine = whole(http())
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value
        except RequestRejected as rejection:
            return f"{rejection.status} {rejection.code}"

    for hint in (None, Identity("acme"), Identity("acme", "ann"), "acme"):
        hints["is"] = hint
        assert result() is proof
    for hint, code in (
        (Identity("globex", "ann"), "tenant_mismatch"),
        ("globex", "tenant_mismatch"),
        (Identity("acme", "bob"), "user_mismatch"),
    ):
        hints["is"] = hint
        assert result() == f"403 {code}"
    proof = Identity("acme")
    hints["is"] = Identity("acme", "bob")
    assert result() is proof


def test_a_string_cannot_be_held_against_a_whole_identity() -> None:
    with pytest.raises(TypeError, match="cannot be held against whole identities"):
        agree(constant("acme"), identity_from(tenant=constant("acme")))
    with pytest.raises(ExtractorTypeError, match="hint"):
        agree(constant("acme"), lambda scope: Identity("acme"))(http()).send(None)


@pytest.mark.parametrize("compose", [first_of, agree])
def test_compositions_need_parts(compose: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        compose()
    with pytest.raises(TypeError, match="callable"):
        compose(from_header("x"), "x-tenant-id")
    with pytest.raises(TypeError, match="the class"):
        compose(from_header("x"), Identity)


def test_parts_give_strings_or_identities_but_not_both() -> None:
    with pytest.raises(TypeError, match="some parts give strings and some identities"):
        first_of(from_header("x"), identity_from(tenant=constant("acme")))


@pytest.mark.parametrize("wrong", [from_header, constant, first_of])
def test_an_extractor_that_was_not_called_is_no_extractor(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"call it, {wrong.__name__}"):
        identity_from(tenant=wrong)


def test_a_function_of_the_users_own_may_look_like_one_of_ours() -> None:
    @functools.wraps(from_header)
    def wrapped(scope: Any) -> str:
        return "acme"

    made: dict[str, Any] = {"__builtins__": {}}
    exec("def tenant(scope): return 'acme'", made)
    for tenant in (wrapped, made["tenant"]):
        with pytest.raises(StopIteration):
            identity_from(tenant=tenant)(http()).send(None)


def test_a_generator_function_is_no_extractor() -> None:
    async def tenant(scope: Any) -> Any:
        yield "acme"

    with pytest.raises(TypeError, match="tenant must be an extractor"):
        identity_from(tenant=tenant)


def test_a_proof_needs_a_hint() -> None:
    with pytest.raises(ValueError, match="at least one hint"):
        agree(from_header("x"))


@pytest.mark.parametrize(
    ("extractor", "shown"),
    [
        (from_header("X-A"), "from_header('X-A')"),
        (from_scope("user", "id"), "from_scope('user.id')"),
        (first_of(from_query("a"), constant("b")), "first_of(from_query('a'), constant('b'))"),
        (identity_from(tenant=from_path("/{t}")), "identity_from(from_path('/{t}'))"),
        (agree(from_cookie("a"), from_subdomain("b.c")), "agree(from_cookie('a'), from_subdomain('b.c'))"),
    ],
)
def test_the_repr_shows_how_it_was_made(extractor: object, shown: str) -> None:
    assert repr(extractor) == shown


def test_an_extractor_can_be_called_inside_one_of_the_users_own() -> None:
    header = from_header("x-tenant")

    def tenant(scope: Any) -> str | None:
        value = header(scope)
        return None if value is None else f"eu-{value}"

    identity = identity_from(tenant=tenant)
    with pytest.raises(StopIteration) as done:
        identity(http((b"x-tenant", b"acme"))).send(None)
    assert done.value.value == Identity("eu-acme")
    with pytest.raises(RequestRejected, match="tenant_repeated"):
        identity(http((b"x-tenant", b"acme"), (b"x-tenant", b"acme"))).send(None)


def test_a_composition_that_waits_although_no_part_does_is_a_bug_that_shows() -> None:
    async def run(scope: Any, found: Any) -> str:
        await asyncio.sleep(0)
        return "never"

    with pytest.raises(RuntimeError, match="waited for something"):
        composed(run, []).run({}, ())
