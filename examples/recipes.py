"""Who asks, by what usual sources of identities say: one function for each, to copy from.

Each wraps an app. What stands in capitals is an example's: put in your own. The names of claims, the URLs and the other
particulars are those of the sources' own documents; the tests run each with tokens, headers and tables as these make
them.

What it needs, in the checkout: pip install ".[examples]"
"""

import hashlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.authentication import AuthenticationBackend
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.types import ASGIApp, Scope

from asgi_context import (
    ContextMiddleware,
    Identity,
    RequestContext,
    RequestRejected,
    SharedSecret,
    from_header,
    from_path,
    from_scope,
)
from asgi_context.jwt import Issuer, JWKSClient, JWTAuth

API = "https://api.example.com"

# Issuers of tokens.


AUTH0 = "https://example.eu.auth0.com/"  # with the slash: it is compared as it is


def auth0(app: ASGIApp) -> ContextMiddleware:
    """Take access tokens of Auth0, whose Organizations are the tenants.

    A login without an organization gives a token without ``org_id``, which is refused with 403 ``tenant_missing``.
    """
    auth = JWTAuth(
        jwks_url=f"{AUTH0}.well-known/jwks.json",
        issuer=AUTH0,
        audience=API,
        algorithms=["RS256"],
        tenant="org_id",
    )
    return ContextMiddleware(app, identity=auth)


ENTRA = "https://login.microsoftonline.com"
ENTRA_CLIENT = "6731de76-14a6-49ae-97bc-6eba6914391e"
ENTRA_TENANTS = ["8eaef023-2b34-4da1-9baa-8bc8c9d6a490", "fa15d692-e9c7-4460-a743-29f29522229e"]


def entra(app: ASGIApp) -> ContextMiddleware:
    """Take access tokens (v2.0) of Microsoft Entra, for an app of several organizations.

    Their tenants share keys, and the issuer's name holds the tenant: there is one `Issuer` for each that has signed up.
    Never accept any issuer here: everybody can have a tenant. Users are told apart by ``oid``, since ``sub`` is another
    in each app.
    """
    keys = JWKSClient(f"{ENTRA}/common/discovery/v2.0/keys", algorithms=frozenset({"RS256"}))
    issuers = [
        Issuer(
            f"{ENTRA}/{tenant}/v2.0",
            jwks=keys,  # one client, so that they are fetched once
            audience=ENTRA_CLIENT,
            tenant="tid",
            tenants=[tenant],
            user="oid",
        )
        for tenant in ENTRA_TENANTS
    ]
    return ContextMiddleware(app, identity=JWTAuth(issuers=issuers))


KEYCLOAK = "https://sso.example.com/realms"
KEYCLOAK_REALMS = {"staff": ["acme", "globex"], "partners": ["initech"]}


def keycloak(app: ASGIApp) -> ContextMiddleware:
    """Take access tokens of realms of Keycloak, each of which may speak for tenants of its own.

    The tenant is a claim of a mapper named ``customer.tenant``, which Keycloak nests; ``aud`` needs an audience mapper.
    Who lacks the role ``api`` in the realm is refused.
    """
    issuers = [
        Issuer(
            f"{KEYCLOAK}/{realm}",
            jwks_url=f"{KEYCLOAK}/{realm}/protocol/openid-connect/certs",
            audience=API,
            algorithms=["RS256"],
            tenant=("customer", "tenant"),
            tenants=tenants,
            required_claims=["realm_access"],
        )
        for realm, tenants in KEYCLOAK_REALMS.items()
    ]

    def has_role(context: RequestContext, _: Scope) -> bool:
        access = context.claims["realm_access"]
        roles = access.get("roles") if isinstance(access, Mapping) else None
        return isinstance(roles, tuple) and "api" in roles  # in a str it would be found as a part

    return ContextMiddleware(app, identity=JWTAuth(issuers=issuers), authorize=has_role)


COGNITO_POOL = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_example"
COGNITO_CLIENTS = {"1example23456789"}


def cognito(app: ASGIApp) -> ContextMiddleware:
    """Take access tokens of a user pool of Amazon Cognito, where a group ``tenant-...`` names the tenant.

    They have no ``aud``: what they were made for is the ``client_id``. An ID token has an ``aud``, and is refused.
    """

    def tenant(claims: Mapping[str, Any]) -> str | None:
        client, given = claims["client_id"], claims.get("cognito:groups")
        if claims["token_use"] != "access" or not (isinstance(client, str) and client in COGNITO_CLIENTS):  # noqa: S105 - no secret
            raise RequestRejected(401, "invalid_token", headers=[("www-authenticate", 'Bearer error="invalid_token"')])
        groups = [group for group in given if isinstance(group, str)] if isinstance(given, list) else []
        groups = [group for group in groups if group.startswith("tenant-")]
        # Whoever is in several would have to say in which they act: none of them is taken for granted.
        return groups[0].removeprefix("tenant-") if len(groups) == 1 else None

    auth = JWTAuth(
        jwks_url=f"{COGNITO_POOL}/.well-known/jwks.json",
        issuer=COGNITO_POOL,
        audience=None,
        algorithms=["RS256"],
        required_claims=["token_use", "client_id"],
        tenant=tenant,
    )
    return ContextMiddleware(app, identity=auth)


# Other proofs.

Find = Callable[[bytes], Awaitable[tuple[str, str] | None]]
"""Takes the SHA-256 of a key, and gives its tenant and user; the table has no use for the keys themselves."""


class APIKeys:
    """Extractor of identities by the header ``x-api-key``.

    Args:
        find: looks a key up.
        most: how many are remembered.
        seconds: for how long, which is how long a key that was withdrawn may still work.
        clock: gives the time in seconds.
    """

    challenge = "ApiKey"  # so that a request without one is answered with 401

    def __init__(
        self, find: Find, *, most: int = 10_000, seconds: float = 60, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find = find
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._key = from_header("x-api-key")
        self._known: dict[bytes, tuple[float, Identity]] = {}

    async def __call__(self, scope: Scope) -> Identity | None:
        """Say whose key it is."""
        key = self._key(scope)
        if key is None:
            return None
        digest = hashlib.sha256(key.encode()).digest()
        until, identity = self._known.get(digest, (0.0, None))
        if identity is None or until <= self._clock():
            row = await self._find(digest)
            self._known.pop(digest, None)
            if row is None:  # not remembered: whoever guesses would push out those that are known
                raise RequestRejected(401, "api_key_invalid")
            identity = Identity(*row)
            self._known[digest] = self._clock() + self._seconds, identity
            if len(self._known) > self._most:
                del self._known[next(iter(self._known))]  # the one that was looked up longest ago
        return identity


def api_keys(app: ASGIApp, find: Find) -> ContextMiddleware:
    """Take API keys out of a table."""
    return ContextMiddleware(app, identity=APIKeys(find))


PROXY_SECRET = os.environ.get("PROXY_SECRET") or secrets.token_hex()  # where there is none, nobody is believed


def client_certificates(app: ASGIApp) -> ContextMiddleware:
    """Take certificates of clients, which a proxy has checked.

    The proxy ends TLS, asks for a certificate, and sets these headers whatever the client has sent. With HAProxy::

        bind :443 ssl crt /etc/haproxy/site.pem ca-file /etc/haproxy/clients.pem verify required
        http-request set-header x-client-o %[ssl_c_s_dn(O)]
        http-request set-header x-client-cn %[ssl_c_s_dn(CN)]
        http-request set-header x-proxy-secret "${PROXY_SECRET}"

    From anybody else, the headers are refused with 403. Instead of the secret, ``trusted=`` takes the proxy's network.
    """
    proxy = SharedSecret("x-proxy-secret", PROXY_SECRET)
    return ContextMiddleware(
        app,
        tenant=from_header("x-client-o", trusted=proxy),
        user=from_header("x-client-cn", trusted=proxy),
    )


def starlette_authentication(backend: AuthenticationBackend) -> list[Middleware]:
    """Take the user of Starlette's AuthenticationMiddleware; gives the list for ``Starlette(middleware=...)``.

    The user's class has the attributes ``tenant_id`` and ``id``; Starlette's own UnauthenticatedUser has neither, and
    is nobody here.
    """
    return [
        Middleware(AuthenticationMiddleware, backend=backend),  # outside, since it sets what the other reads
        Middleware(
            ContextMiddleware,
            tenant=from_scope("user", "tenant_id"),
            user=from_scope("user", "id"),
            missing="unbound",  # pages for everybody: `current_context(None)` is None there
        ),
    ]


# Who is a member of what.


class ChosenTenant:
    """Extractor of identities: the token says who the user is, and the path in which tenant they want to act.

    That proves no membership: it is for ``authorize=`` to say who may act where.

    Args:
        auth: verifies the tokens; the tenant that it gives is not used, so ``auth.renew`` has nothing to compare with:
            a WebSocket that outlasts its token connects once more.
        template: where the tenant stands in the path.
    """

    def __init__(self, auth: JWTAuth, template: str) -> None:
        self._auth = auth
        self._path = from_path(template)
        # What the middleware looks for: what a 401 says, and what is to be done at the app's start and end.
        self.challenge, self.open, self.close, self.hide = auth.challenge, auth.open, auth.close, auth.hide

    async def __call__(self, scope: Scope) -> Identity | None:
        """Put both together."""
        proof = await self._auth(scope)
        if proof is None:
            return None
        tenant = self._path(scope)
        if tenant is None:
            raise RequestRejected(404, "tenant_missing")
        return Identity(tenant, proof.user, proof.claims, proof.expires_at)


Members = Callable[[str, str | None], Awaitable[bool]]
"""Takes tenant and user, and says whether one is a member of the other."""


ISSUER = "https://id.example.com"


def membership(app: ASGIApp, is_member: Members) -> ContextMiddleware:
    """Take tokens that name a user alone, who may be a member of several tenants, by a table of members."""
    auth = JWTAuth(
        jwks_url=f"{ISSUER}/jwks.json",
        issuer=ISSUER,
        audience=API,
        tenant=lambda _: "none",  # `ChosenTenant` puts another in its place
    )

    async def may_act(context: RequestContext, _: Scope) -> bool:
        return await is_member(context.tenant, context.user)

    return ContextMiddleware(app, identity=ChosenTenant(auth, "/t/{tenant}"), authorize=may_act)
