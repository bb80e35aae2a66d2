"""What `JWTAuth`, `Issuer` and `JWKSClient` are given, where it is wrong; and what hardly ever happens."""

import asyncio
import json
import threading
from base64 import b64encode, urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from joserfc.jwk import OctKey
from jwt_makers import AUDIENCE, ISSUER, NOW, make_key, token

from asgi_context.errors import RequestRejected
from asgi_context.jwt import Issuer, JWKSClient, JWTAuth
from asgi_context.jwt._keys import _verify, import_key
from asgi_context.jwt._refused import TokenRefusedError

KEY = make_key("HS256")
RSA = make_key("RS256", "rsa")
URL = "https://id.example.com/jwks.json"


def issuer(**more: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "audience": AUDIENCE, "key": KEY.jwk, "tenant": "org_id", **more}


async def nothing(url: str) -> bytes:
    raise OSError


async def later(claims: Any) -> str:
    return "acme"


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"issuers": 5}, TypeError, "issuers must be several Issuers"),
        ({"issuers": Issuer(**issuer())}, TypeError, "issuers must be several Issuers"),
        (issuer(now=5), TypeError, "now must be callable"),
        (issuer(tenant=5), TypeError, "tenant must be the name of a claim"),
        (issuer(tenant=later), TypeError, "tenant must be a plain function"),
        (issuer(user=()), ValueError, "user must name a claim"),
        (issuer(typ=5), TypeError, "typ must be a str or several"),
        (issuer(typ=[5]), TypeError, "typ must be a str or several"),
        (issuer(typ=[]), ValueError, "typ must not be empty"),
        (issuer(algorithms=5), TypeError, "algorithms must be a str or several"),
        (issuer(algorithms=[]), ValueError, "algorithms must be of"),
        (issuer(key=None, keys=KEY.jwk), TypeError, "keys must be several keys"),
        (issuer(key=None, keys=5), TypeError, "keys must be several keys"),
        (issuer(key=None, keys=[]), ValueError, "keys is empty"),
        (issuer(key=None, jwks={}), ValueError, "jwks must be a JWK set"),
        (issuer(key=None, jwks=5), ValueError, "jwks must be a JWK set"),
        (issuer(websocket_query=""), ValueError, "websocket_query must not be empty"),
        (issuer(resource_metadata="ä"), ValueError, "resource_metadata must be a URL"),
        (issuer(resource_metadata="http://x y"), ValueError, "resource_metadata must be a URL"),
        (
            issuer(key=None, jwks=JWKSClient(URL, fetch=nothing), algorithms=["RS256"]),
            TypeError,
            "give algorithms= to the JWKSClient",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_is_given_is_checked(options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        JWTAuth(**options)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"fetch": 5}, TypeError, "fetch must be callable"),
        ({"clock": 5}, TypeError, "clock must be callable"),
        ({"stale": "1"}, TypeError, "stale must be a number"),
        ({"stale": True}, TypeError, "stale must be a number"),
        ({"stale": -1}, ValueError, "stale must be at least 0"),
        ({"algorithms": ["nope"]}, ValueError, "algorithms must be of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_client_is_given_is_checked(options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        JWKSClient(URL, **options)


def test_a_password_in_a_url_is_refused_and_not_told() -> None:
    with pytest.raises(ValueError, match="without user and password") as caught:
        JWKSClient("https://user:hunter2@id.example.com/jwks.json")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["A" * 42 + "=", "QUJD" + "!" * 60, "A" * 42])
def test_a_secret_that_is_shorter_than_its_text_says_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read|less than 32 bytes"):
        import_key({"kty": "oct", "k": text}, None)


def test_a_key_set_may_be_given_as_it_is() -> None:
    auth = JWTAuth(now=lambda: NOW, **issuer(key=None, jwks={"keys": [KEY.jwk]}))
    assert asyncio.run(auth.verify(token(KEY))).tenant == "acme"


def test_a_signature_that_the_library_chokes_on_is_no_signature() -> None:
    def choke(signed: bytes, signature: bytes, key: Any) -> bool:
        raise ValueError

    assert _verify(choke, OctKey.generate_key(), b"", b"") is False


def test_a_token_that_another_thread_forgets_meanwhile_is_verified_once_more() -> None:
    auth = JWTAuth(now=lambda: NOW, **issuer())
    text = token(KEY)
    first = asyncio.run(auth.verify(text))
    kept: Any = auth._verified._kept

    class Forgetful(type(kept)):  # type: ignore[misc]
        def move_to_end(self, key: bytes) -> None:
            self.clear()
            super().move_to_end(key)

    auth._verified._kept = Forgetful(kept)
    again = asyncio.run(auth.verify(text))
    assert again == first
    assert again is not first


def test_a_fetch_that_ended_with_its_loop_is_no_failed_attempt() -> None:
    asked: list[str] = []

    async def fetch(url: str) -> bytes:
        asked.append(url)
        await asyncio.Event().wait()
        raise AssertionError

    client = JWKSClient(URL, fetch=fetch)
    loop = asyncio.new_event_loop()  # which does not cancel what it leaves, as asyncio.run does
    loop.run_until_complete(client.open())
    loop.run_until_complete(asyncio.sleep(0))

    async def again() -> None:
        await client.open()
        await asyncio.sleep(0)
        await client.close()

    asyncio.run(again())
    assert asked == [URL, URL]
    loop.run_until_complete(client.open())
    asyncio.run(client.close())  # which has nothing to wait for
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_closing_or_asking_twice_on_one_loop_starts_nothing_anew() -> None:
    asked: list[str] = []

    async def fetch(url: str) -> bytes:
        asked.append(url)
        raise OSError

    async def main() -> None:
        client = JWKSClient(URL, fetch=fetch)
        for _ in range(2):
            with pytest.raises(RequestRejected):
                await client.keys()
        await client.close()
        await client.close()

    asyncio.run(main())
    assert asked == [URL]


# Several event loops at once, and closing.


def test_loops_in_several_threads_share_one_fetch_and_its_pauses() -> None:
    asked: list[str] = []
    begun, go = threading.Event(), threading.Event()

    async def fetch(url: str) -> bytes:
        asked.append(url)
        begun.set()
        await asyncio.to_thread(go.wait, 30)
        return json.dumps({"keys": [RSA.jwk]}).encode()

    client = JWKSClient(URL, fetch=fetch)

    async def find() -> str:
        try:
            await client.find("unknown", "RS256")
        except TokenRefusedError as refused:
            return refused.reason
        return "found"

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(asyncio.run, find())
        assert begun.wait(30)
        more = [pool.submit(asyncio.run, find()) for _ in range(3)]
        while client._flight is not None and sum(not job.done() for job in more) < 3:
            pass
        go.set()
        assert {job.result(30) for job in (first, *more)} == {"its key is not known"}
    assert asked == [URL]


def test_closing_on_another_loop_ends_the_fetch_on_its_own() -> None:
    ended = threading.Event()

    async def fetch(url: str) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async def main() -> None:
        client = JWKSClient(URL, fetch=fetch)
        await client.open()
        await asyncio.sleep(0)
        await asyncio.to_thread(lambda: asyncio.run(client.close()))
        assert ended.is_set()

    asyncio.run(main())


def test_opened_closed_and_opened_again_at_once_it_fetches() -> None:
    asked: list[str] = []

    async def fetch(url: str) -> bytes:
        asked.append(url)
        return json.dumps({"keys": [RSA.jwk]}).encode()

    async def main() -> None:
        client = JWKSClient(URL, fetch=fetch)
        await client.open()
        await client.close()
        await client.open()
        await client.keys()

    asyncio.run(main())
    assert asked == [URL]


# What would cost too much.


@pytest.mark.parametrize(
    "lines",
    [
        [(b"cookie", b"=;" * 20_000)],
        [(b"cookie", b"a=b; " * 2000)] * 2,
        [(b"sec-websocket-protocol", b"," * 60_000)],
    ],
    ids=["a cookie", "cookies", "protocols"],
)
def test_lines_that_are_too_long_to_look_for_a_token_in_are_refused(lines: Any) -> None:
    auth = JWTAuth(now=lambda: NOW, cookie="c", websocket_protocol="bearer.", **issuer())
    with pytest.raises(RequestRejected, match="400 invalid_request"):
        asyncio.run(auth({"type": "websocket", "headers": lines, "subprotocols": [], "query_string": b""}))


def test_a_list_of_protocols_that_is_too_long_is_refused() -> None:
    auth = JWTAuth(now=lambda: NOW, websocket_protocol="bearer.", **issuer())
    with pytest.raises(RequestRejected, match="400 invalid_request"):
        asyncio.run(auth({"type": "websocket", "headers": [], "subprotocols": ["x"] * 20_000, "query_string": b""}))


def test_a_token_that_holds_much_is_not_read() -> None:
    with pytest.raises(RequestRejected, match="401 invalid_token"):
        asyncio.run(JWTAuth(now=lambda: NOW, **issuer()).verify(token(KEY, c=[{}] * 300)))
    assert asyncio.run(JWTAuth(now=lambda: NOW, **issuer()).verify(token(KEY, c=[{}] * 200))).tenant == "acme"


def test_what_the_claims_say_already_costs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def fetch(url: str) -> bytes:
        asked.append(url)
        raise OSError

    auth = JWTAuth(now=lambda: NOW, **issuer(key=None, jwks=JWKSClient(URL, fetch=fetch)))
    for claims in ({"iss": "https://other.example"}, {"aud": "other"}, {"exp": NOW - 1}, {"nbf": NOW + 9}):
        with pytest.raises(RequestRejected, match="401 invalid_token"):
            asyncio.run(auth.verify(token(RSA, **claims)))
    assert asked == []


@pytest.mark.parametrize("changes", [{"e": "/" * 400}, {"n": "_" * 2800}], ids=["exponent", "modulus"])
def test_a_key_that_would_take_long_to_check_with_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"at most 8192|cannot be read"):
        import_key({**RSA.jwk, **changes}, None)


def test_a_large_exponent_is_refused() -> None:
    exponent = urlsafe_b64encode((2**33 + 1).to_bytes(5, "big")).rstrip(b"=").decode()
    with pytest.raises(ValueError, match="exponent of 32 at most"):
        import_key({**RSA.jwk, "e": exponent}, None)


# Whose it is.


def test_tenants_are_asked_for_with_each_request_where_that_may_change() -> None:
    known = {"acme"}
    auth = JWTAuth(now=lambda: NOW, **issuer(tenants=lambda tenant: tenant in known))
    text = token(KEY)
    assert asyncio.run(auth.verify(text)).tenant == "acme"
    known.clear()
    with pytest.raises(RequestRejected, match="403 tenant_forbidden"):
        asyncio.run(auth.verify(text))


def test_issuers_for_whole_tenants_must_be_for_other_tenants() -> None:
    def named(name: str, **more: Any) -> Issuer:
        options = {**issuer(tenants=["acme"]), **more}
        del options["issuer"]
        return Issuer(name, **options)

    with pytest.raises(ValueError, match="may speak for the same tenants"):
        JWTAuth(issuers=[named("a", user=None), named("b", user=None)])
    JWTAuth(issuers=[named("a", user=None), named("b", user=None, tenants=["beta"])])
    JWTAuth(issuers=[named("a", user=None), named("b")])
    with pytest.raises(ValueError, match="user_prefix= is for issuers whose tokens name users"):
        named("a", user=None, user_prefix="a")


def test_a_token_in_a_cookie_of_a_websocket_needs_origins_whatever_is_around_the_extractor() -> None:
    auth = JWTAuth(now=lambda: NOW, cookie="session", **issuer())
    scope = {"type": "websocket", "headers": [(b"cookie", b"session=" + token(KEY).encode())]}
    with pytest.raises(RuntimeError, match="websocket_origins="):
        asyncio.run(auth(scope))


def test_a_certificate_is_no_secret() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "id.example.com")])
    private = ec.generate_private_key(ec.SECP256R1())
    begins = datetime(2020, 1, 1, tzinfo=UTC)
    certificate = (
        x509
        .CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    text = b64encode(certificate.public_bytes(Encoding.DER)).decode()
    with pytest.raises(ValueError, match="no secret"):
        import_key(text, None)
