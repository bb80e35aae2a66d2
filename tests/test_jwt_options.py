"""What `JWTAuth`, `Issuer` and `JWKSClient` are given, where it is wrong; and what hardly ever happens."""

import asyncio
from typing import Any

import pytest
from joserfc.jwk import OctKey
from jwt_makers import AUDIENCE, ISSUER, NOW, make_key, token

from asgi_context.errors import RequestRejected
from asgi_context.jwt import Issuer, JWKSClient, JWTAuth
from asgi_context.jwt._keys import _verify, import_key

KEY = make_key("HS256")
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
