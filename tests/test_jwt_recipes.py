"""The recipes of ``examples/recipes.py``, each with what its source of identities really sends."""

import asyncio
import importlib.util
import json
import time
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from driver import Exchange, Header, Seen, http, run, websocket
from jwt_makers import SigningKey, claims, compact, make_key, token
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asgi_context import RequestRejected, current_context
from asgi_context.jwt import JWKSClient

pytestmark = pytest.mark.anyio

_PATH = Path(__file__).parent.parent / "examples" / "recipes.py"


@pytest.fixture(scope="module")
def recipes() -> ModuleType:
    specification = importlib.util.spec_from_file_location("recipes", _PATH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Web:
    """The issuers' key sets, by URL, and which were fetched."""

    def __init__(self) -> None:
        self.sets: dict[str, list[dict[str, Any]]] = {}
        self.fetched: list[str] = []
        self.asked = asyncio.Event()

    def publish(self, url: str, *keys: SigningKey, **more: Any) -> None:
        self.sets[url] = [key.jwk | {"use": "sig"} | more for key in keys]

    async def get(self, url: str) -> bytes:
        self.fetched.append(url)
        self.asked.set()
        return json.dumps({"keys": self.sets[url]}).encode()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web()
    monkeypatch.setattr(JWKSClient, "_get", lambda self, url: web.get(url))
    return web


class Client:
    """Sends requests to a wrapped app, which says who asks."""

    def __init__(self, wrap: Any) -> None:
        self.app = Seen(self.who)
        self.middleware = wrap(self.app)

    @staticmethod
    def who() -> tuple[str, str | None]:
        context = current_context()
        return context.tenant, context.user

    async def get(self, *headers: Header, path: str = "/") -> Any:
        """Who the app saw, or the status and code of the refusal."""
        return self.outcome(await run(self.middleware, http(*headers, path=path)))

    def outcome(self, exchange: Exchange) -> Any:
        seen, self.app.seen = self.app.seen, []
        if seen:
            assert exchange.status == 200
            return seen[0]
        assert exchange.problem["status"] == exchange.status
        return exchange.status, exchange.problem["code"]

    async def send(self, signed: str, **more: Any) -> Any:
        return await self.get(bearer(signed), **more)


def bearer(signed: str) -> Header:
    return b"authorization", f"Bearer {signed}".encode()


def fresh(key: SigningKey, header: Any = None, **changes: Any) -> str:
    """A token of now: the recipes go by the clock on the wall."""
    now = int(time.time())
    return token(key, header, **{"iat": now, "exp": now + 3600, **changes})


INVALID = (401, "invalid_token")


# Issuers of tokens.


async def test_auth0_the_organization_is_the_tenant(asyncio_only: None, recipes: ModuleType, web: Web) -> None:
    key = make_key("RS256", "auth0")
    web.publish("https://example.eu.auth0.com/.well-known/jwks.json", key, alg="RS256", x5t="x", x5c=["MIIC"])
    client = Client(recipes.auth0)
    sent = {
        "iss": "https://example.eu.auth0.com/",
        "sub": "auth0|5f7c8ec7c33c6c004bbafe82",
        "aud": ["https://api.example.com", "https://example.eu.auth0.com/userinfo"],
        "azp": "my_client_id",
        "scope": "openid profile",
        "org_id": "org_9ybsU1dN2dKfDkBi",
    }
    assert await client.send(fresh(key, **sent)) == ("org_9ybsU1dN2dKfDkBi", "auth0|5f7c8ec7c33c6c004bbafe82")
    assert await client.send(fresh(key, {"typ": "at+jwt"}, **sent)) == ("org_9ybsU1dN2dKfDkBi", sent["sub"])
    assert await client.send(fresh(key, **sent | {"sub": "client@clients"})) == (sent["org_id"], "client@clients")
    assert await client.send(fresh(key, **sent | {"org_id": ...})) == (403, "tenant_missing")
    assert await client.send(fresh(key, **sent | {"aud": "my_client_id"})) == INVALID  # an ID token
    assert await client.send(fresh(key, **sent | {"iss": "https://example.eu.auth0.com"})) == INVALID
    assert web.fetched == ["https://example.eu.auth0.com/.well-known/jwks.json"]


async def test_entra_an_issuer_per_tenant_with_keys_in_common(
    asyncio_only: None, recipes: ModuleType, web: Web
) -> None:
    key, url = make_key("RS256", "entra"), "https://login.microsoftonline.com/common/discovery/v2.0/keys"
    web.publish(url, key, issuer="https://login.microsoftonline.com/{tenantid}/v2.0")
    client = Client(recipes.entra)
    acme, globex = recipes.ENTRA_TENANTS

    def of(tenant: str, **changes: Any) -> str:
        iss = f"https://login.microsoftonline.com/{tenant}/v2.0"
        sent = {"iss": iss, "aud": recipes.ENTRA_CLIENT, "tid": tenant, "oid": "00000000-0000-0000-66f3-3332eca7ea81"}
        return fresh(key, **sent | {"sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ", "ver": "2.0"} | changes)

    oid = "00000000-0000-0000-66f3-3332eca7ea81"
    assert await client.send(of(acme)) == (acme, oid)
    assert await client.send(of(globex)) == (globex, oid)  # a guest there: another user of another tenant
    stranger = "9122040d-6c67-4c5b-b112-36a304b66dad"  # anybody can have a tenant, and its tokens have the same keys
    assert await client.send(of(stranger)) == INVALID
    assert await client.send(of(acme, tid=globex)) == (403, "tenant_forbidden")
    assert await client.send(of(acme, iss=f"https://login.microsoftonline.com/{stranger}/v2.0")) == INVALID
    assert await client.send(of(acme, iss=f"https://sts.windows.net/{acme}/", ver="1.0")) == INVALID
    assert await client.send(of(acme, aud="another app")) == INVALID
    payload = json.dumps(claims(iat=0, exp=2**40, iss=f"{recipes.ENTRA}/{acme}/v2.0", aud=recipes.ENTRA_CLIENT))
    assert await client.send(compact(key, b'{"alg":"PS256","kid":"entra"}', payload.encode(), "PS256")) == INVALID
    assert web.fetched == [url]


async def test_keycloak_an_issuer_per_realm_and_nested_claims(
    asyncio_only: None, recipes: ModuleType, web: Web
) -> None:
    keys = {realm: make_key("RS256", realm) for realm in recipes.KEYCLOAK_REALMS}
    for realm, key in keys.items():
        url = f"https://sso.example.com/realms/{realm}/protocol/openid-connect/certs"
        web.publish(url, key, alg="RS256")
        # Beside it, as Keycloak has it, one for encryption.
        web.sets[url].append(make_key("RS256", "encrypting").jwk | {"use": "enc", "alg": "RSA-OAEP"})
    client = Client(recipes.keycloak)

    def of(realm: str, tenant: Any, **changes: Any) -> str:
        sent = {
            "iss": f"https://sso.example.com/realms/{realm}",
            "aud": ["https://api.example.com", "account"],
            "sub": "f3b5f1a0-4e8a-4a4f-9e1c-6f5a4f1f2a3b",
            "typ": "Bearer",
            "azp": "web",
            "customer": {"tenant": tenant},
            "realm_access": {"roles": ["offline_access", "api"]},
        }
        return fresh(keys[realm], **sent | changes)

    user = "f3b5f1a0-4e8a-4a4f-9e1c-6f5a4f1f2a3b"
    assert await client.send(of("staff", "acme")) == ("acme", user)
    assert await client.send(of("staff", "globex")) == ("globex", user)
    assert await client.send(of("partners", "initech")) == ("initech", user)
    assert await client.send(of("partners", "acme")) == (403, "tenant_forbidden")
    assert await client.send(of("partners", "acme", iss="https://sso.example.com/realms/staff")) == INVALID
    assert await client.send(of("staff", "acme", customer={})) == (403, "tenant_missing")
    assert await client.send(of("staff", "acme", customer="acme")) == (403, "tenant_missing")
    assert await client.send(of("staff", ["acme"])) == (400, "tenant_invalid")
    assert await client.send(of("staff", "acme", aud="account")) == INVALID
    assert await client.send(of("staff", "acme", realm_access=...)) == INVALID
    for access in ({}, {"roles": []}, {"roles": ["apis"]}):
        assert await client.send(of("staff", "acme", realm_access=access)) == (403, "tenant_forbidden")
    assert len(web.fetched) == 2
    for odd in (
        "api",
        [],
        ["api"],
        {},
        {"roles": 5},
        {"roles": None},
        {"roles": "api therapist"},
        {"roles": {"api": 1}},
    ):
        assert await client.send(of("staff", "acme", realm_access=odd)) == (403, "tenant_forbidden")


async def test_cognito_the_tenant_is_a_group_and_the_client_stands_for_the_audience(
    asyncio_only: None, recipes: ModuleType, web: Web
) -> None:
    key = make_key("RS256", "cognito")
    web.publish(f"{recipes.COGNITO_POOL}/.well-known/jwks.json", key, alg="RS256")
    client = Client(recipes.cognito)

    def of(*groups: str, **changes: Any) -> str:
        sent = {
            "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_example",
            "aud": ...,
            "org_id": ...,
            "sub": "aaaaaaaa-bbbb-cccc-dddd-example",
            "client_id": "1example23456789",
            "token_use": "access",
            "cognito:groups": [*groups],
            "username": "ann",
        }
        return fresh(key, {"typ": ...}, **sent | changes)

    assert await client.send(of("admins", "tenant-acme")) == ("acme", "aaaaaaaa-bbbb-cccc-dddd-example")
    assert await client.send(of("admins")) == (403, "tenant_missing")
    assert await client.send(of("tenant-acme", "tenant-globex")) == (403, "tenant_missing")
    assert await client.send(of("tenant-acme", **{"cognito:groups": ...})) == (403, "tenant_missing")
    assert await client.send(of("tenant-")) == (400, "tenant_invalid")
    assert await client.send(of("tenant-acme", client_id="another app")) == INVALID
    assert await client.send(of("tenant-acme", client_id=...)) == INVALID
    identity_token = of("tenant-acme", token_use="id", aud="1example23456789", client_id=...)
    assert await client.send(identity_token) == INVALID
    assert await client.send(of("tenant-acme", token_use="id")) == INVALID
    for odd in (5, None, [1], "tenant-acme", {"tenant-acme": 1}):  # an answer in any case, whatever the pool may send
        assert await client.send(of(**{"cognito:groups": odd})) == (403, "tenant_missing")
    assert await client.send(of("tenant-acme", client_id=["1example23456789"])) == INVALID
    exchange = await run(client.middleware, http(bearer(of("tenant-acme", client_id="another app"))))
    assert exchange.header(b"www-authenticate") == [b'Bearer error="invalid_token"']


# Other proofs.


class Table:
    """Tenants and users by the digest of their key, and how often it was asked."""

    def __init__(self) -> None:
        self.rows = {sha256(f"key-{n}".encode()).digest(): ("acme", f"user-{n}") for n in range(10)}
        self.asked = 0

    async def find(self, digest: bytes) -> tuple[str, str] | None:
        self.asked += 1
        return self.rows.get(digest)


def api_key(key: str) -> Header:
    return b"x-api-key", key.encode()


async def test_api_keys_out_of_a_table(recipes: ModuleType) -> None:
    table = Table()
    client = Client(lambda app: recipes.api_keys(app, table.find))
    assert await client.get(api_key("key-1")) == ("acme", "user-1")
    assert await client.get(api_key("key-1")) == ("acme", "user-1")
    assert table.asked == 1
    assert await client.get(api_key("key-10")) == (401, "api_key_invalid")
    assert await client.get(api_key("key-1"), api_key("key-2")) == (400, "identifier_repeated")
    assert await client.get() == (401, "identity_missing")
    exchange = await run(client.middleware, http())
    assert exchange.header(b"www-authenticate") == [b"ApiKey"]


async def test_api_keys_are_remembered_for_a_while_and_no_more_than_so_many(recipes: ModuleType) -> None:
    table, now = Table(), [0.0]
    keys = recipes.APIKeys(table.find, most=3, seconds=60, clock=lambda: now[0])

    async def ask(number: int) -> bool:
        """Whether the table was asked."""
        before = table.asked
        identity = await keys(http(api_key(f"key-{number}")))
        assert identity.user == f"user-{number}"
        return table.asked > before

    assert [await ask(number) for number in (0, 1, 2, 0, 1, 2)] == [True] * 3 + [False] * 3
    assert await ask(3)
    assert len(keys._known) == 3
    assert [await ask(number) for number in (1, 2, 3, 0)] == [False] * 3 + [True]
    now[0] = 59.9
    assert not await ask(3)
    now[0] = 60.0
    del table.rows[sha256(b"key-3").digest()]  # withdrawn
    with pytest.raises(RequestRejected, match="api_key_invalid"):
        await ask(3)
    assert len(keys._known) == 2


async def test_api_keys_that_are_guessed_push_nobody_out(recipes: ModuleType) -> None:
    table = Table()
    client = Client(lambda app: recipes.api_keys(app, table.find))
    assert await client.get(api_key("key-1")) == ("acme", "user-1")
    for number in range(100):
        assert await client.get(api_key(f"guess-{number}")) == (401, "api_key_invalid")
    table.asked = 0
    assert await client.get(api_key("key-1")) == ("acme", "user-1")
    assert table.asked == 0


async def test_client_certificates_are_the_proxys_to_tell(recipes: ModuleType) -> None:
    client = Client(recipes.client_certificates)
    subject = [(b"x-client-o", b"acme"), (b"x-client-cn", b"robot-7.acme.example")]
    proxy = b"x-proxy-secret", recipes.PROXY_SECRET.encode()
    assert await client.get(*subject, proxy) == ("acme", "robot-7.acme.example")
    assert await client.get(*subject) == (403, "tenant_untrusted")
    assert await client.get(subject[1]) == (403, "user_untrusted")
    assert await client.get(*subject, (b"x-proxy-secret", b"0" * 64)) == (403, "tenant_untrusted")
    assert await client.get(*subject, subject[0], proxy) == (400, "tenant_repeated")
    assert await client.get(subject[0], proxy) == (400, "user_missing")
    assert await client.get((b"x-client-o", b""), subject[1], proxy) == (400, "tenant_invalid")  # no certificate
    assert await client.get(proxy) == (400, "tenant_missing")


class User(BaseUser):
    """As an app's own."""

    def __init__(self, tenant_id: int, id: int) -> None:  # noqa: A002 - as ORMs call it
        self.tenant_id = tenant_id
        self.id = id

    @property
    def is_authenticated(self) -> bool:
        return True


class Sessions(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> Any:
        session = conn.cookies.get("session")
        return None if session is None else (AuthCredentials(["authenticated"]), User(*map(int, session.split("-"))))


async def test_starlettes_authentication_tells_the_user(recipes: ModuleType) -> None:
    async def home(request: Request) -> JSONResponse:
        context = current_context(None)
        return JSONResponse(None if context is None else [context.tenant, context.user])

    app = Starlette(routes=[Route("/", home)], middleware=recipes.starlette_authentication(Sessions()))
    for headers, expected in (([(b"cookie", b"session=7-42")], ["7", "42"]), ([], None)):
        exchange = await run(app, http(*headers))
        assert (exchange.status, json.loads(exchange.body)) == (200, expected)


# Who is a member of what.


class Members:
    def __init__(self) -> None:
        self.rows = {("acme", "ann"), ("globex", "ann"), ("globex", "bob")}

    async def has(self, tenant: str, user: str | None) -> bool:
        return (tenant, user) in self.rows


async def test_membership_is_for_authorize_to_say(asyncio_only: None, recipes: ModuleType, web: Web) -> None:
    members = Members()
    key = make_key("ES256", "id")
    web.publish("https://id.example.com/jwks.json", key)
    client = Client(lambda app: recipes.membership(app, members.has))
    ann, bob = (fresh(key, org_id=..., aud="https://api.example.com", sub=user) for user in ("ann", "bob"))
    assert await client.send(ann, path="/t/acme/notes") == ("acme", "ann")
    assert await client.send(ann, path="/t/globex") == ("globex", "ann")
    assert await client.send(bob, path="/t/globex") == ("globex", "bob")
    assert await client.send(bob, path="/t/acme") == (403, "tenant_forbidden")
    assert await client.send(ann, path="/t/none") == (403, "tenant_forbidden")
    assert await client.send(ann, path="/elsewhere") == (404, "tenant_missing")
    assert await client.send(ann, path="/t/..") == (400, "identifier_invalid")
    assert await client.send(ann[:-4] + "AAAA", path="/t/acme") == INVALID
    members.rows.remove(("acme", "ann"))  # at once, whatever the token says and however long it lasts
    assert await client.send(ann, path="/t/acme") == (403, "tenant_forbidden")
    exchange = await run(client.middleware, http(path="/t/acme"))
    assert exchange.header(b"www-authenticate") == [b"Bearer"]


async def test_a_chosen_tenant_ends_with_the_token_and_is_opened_with_the_app(
    asyncio_only: None, recipes: ModuleType, web: Web
) -> None:
    key = make_key("ES256", "id")
    web.publish("https://id.example.com/jwks.json", key)
    middleware = recipes.membership(Seen(lambda: None), Members().has)
    await middleware.open()
    await asyncio.wait_for(web.asked.wait(), 60)
    expires_at = int(time.time()) + 3600
    signed = fresh(key, org_id=..., aud="https://api.example.com", exp=expires_at)
    scope = websocket(bearer(signed), path="/t/acme")
    assert web.fetched == ["https://id.example.com/jwks.json"]
    auth = recipes.JWTAuth(key=key.pem, issuer=None, audience=None, tenant=lambda _: "none")
    identity = await recipes.ChosenTenant(auth, "/t/{tenant}")(scope)
    assert (identity.tenant, identity.user, identity.expires_at) == ("acme", "ann", expires_at)
    await middleware.close()
