"""Identities out of bearer tokens."""

import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, overload

from asgi_context._connection import Connection
from asgi_context._context import current_binding
from asgi_context._extract import Valid
from asgi_context._extract._step import BuiltIn, Sent, Step
from asgi_context._headers import Found, HeaderPlan, header_name
from asgi_context._identity import Identity
from asgi_context._types import Scope
from asgi_context.errors import ConnectionNotBoundError, RequestRejected
from asgi_context.jwt._credentials import Credentials
from asgi_context.jwt._issuer import ClaimPath, Issuer, text_of
from asgi_context.jwt._jwks import JWKSClient
from asgi_context.jwt._keys import KeyData
from asgi_context.jwt._refused import TokenRefusedError
from asgi_context.jwt._token import Token, read_token
from asgi_context.jwt._verified import Verified, VerifiedTokens

_log = logging.getLogger("asgi_context")
_INVALID: Final = 'error="invalid_token", error_description="The access token is not acceptable"'


class JWTAuth(BuiltIn):
    """Makes identities of bearer tokens: signed JSON Web Tokens (RFC 7519), as ``identity=`` of the middleware.

    The token is taken from ``Authorization`` (RFC 6750, section 2.1), and from elsewhere where that is configured; two
    are refused. It is accepted only if every parser reads it alike, if its key and its algorithm belong together, and
    if its claims are as the issuer's must be: ``exp`` is there and not over, ``nbf`` and ``iat`` are not ahead, ``iss``
    and ``aud`` are equal to what is configured. The claims become those of the identity, and ``exp`` (with the leeway)
    its ``expires_at``, which closes a WebSocket.

    One issuer is given by the arguments of `Issuer`, several by ``issuers``.

    Args:
        issuers: the issuers, in place of the arguments of `Issuer`.
        max_token_bytes: the longest token; a longer one is refused before it is read.
        cookie: name of a cookie that may hold the token. Browsers send cookies from foreign pages too, so the
            middleware then needs ``websocket_origins``; for plain requests, set it with ``SameSite``.
        websocket_protocol: what stands before the token in an entry of ``Sec-WebSocket-Protocol``, such as
            ``"bearer."``. The app does not see that entry, so it cannot select it.
        websocket_query: name of the parameter that may hold the token in the URL of a WebSocket. URLs stand in logs.
            Of these three, a line with more than 8192 bytes beside the token is refused.
        resource_metadata: URL of the metadata of this resource (RFC 9728), for the challenge.
        cache_size: how many verified tokens are remembered, by their digests.
        now: the time, in seconds since the epoch.
        **issuer: the arguments of `Issuer`, where there is one.

    Raises:
        TypeError: an argument is of the wrong type, or arguments do not go together.
        ValueError: an argument has a value that it cannot have.
    """

    gives = Identity

    @overload
    def __init__(
        self,
        *,
        issuers: Iterable[Issuer],
        max_token_bytes: int = 8192,
        cookie: str | None = None,
        websocket_protocol: str | None = None,
        websocket_query: str | None = None,
        resource_metadata: str | None = None,
        cache_size: int = 10_000,
        now: Callable[[], float] = time.time,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        issuer: str | None,
        audience: str | Collection[str] | None,
        tenant: ClaimPath,
        user: ClaimPath | None = "sub",
        jwks_url: str | None = None,
        jwks: Mapping[str, Any] | JWKSClient | None = None,
        key: KeyData | None = None,
        keys: Iterable[KeyData] | None = None,
        algorithms: Collection[str] | None = None,
        tenants: Collection[str] | Callable[[str], bool] | None = None,
        user_prefix: str | None = None,
        required_claims: Collection[str] | None = None,
        typ: str | Collection[str | None] = ...,
        leeway: float = 0,
        valid: Valid | None = None,
        max_token_bytes: int = 8192,
        cookie: str | None = None,
        websocket_protocol: str | None = None,
        websocket_query: str | None = None,
        resource_metadata: str | None = None,
        cache_size: int = 10_000,
        now: Callable[[], float] = time.time,
    ) -> None: ...
    def __init__(
        self,
        *,
        issuers: Iterable[Issuer] | None = None,
        max_token_bytes: int = 8192,
        cookie: str | None = None,
        websocket_protocol: str | None = None,
        websocket_query: str | None = None,
        resource_metadata: str | None = None,
        cache_size: int = 10_000,
        now: Callable[[], float] = time.time,
        **issuer: Any,
    ) -> None:
        if (issuers is None) is (not issuer):
            message = "JWTAuth takes either issuers=, or the arguments of one Issuer"
            raise TypeError(message)
        if issuers is not None and (isinstance(issuers, Issuer) or not isinstance(issuers, Iterable)):
            message = f"issuers must be several Issuers, not {type(issuers).__qualname__}"
            raise TypeError(message)
        self._issuers = [Issuer(**issuer)] if issuers is None else list(issuers)
        _check_issuers(self._issuers)
        for option, number in (("max_token_bytes", max_token_bytes), ("cache_size", cache_size)):
            if type(number) is not int:
                message = f"{option} must be an int, not {type(number).__qualname__}"
                raise TypeError(message)
            if number < 1:
                message = f"{option} must be at least 1, not {number}"
                raise ValueError(message)
        for option, name in (("cookie", cookie), ("websocket_protocol", websocket_protocol)):
            if name is not None:
                header_name(name, option, lower=False)  # both are tokens, as names of headers are
        if websocket_query is not None:
            text_of(websocket_query, "websocket_query")
        if not callable(now):
            message = f"now must be callable, not {type(now).__qualname__}"
            raise TypeError(message)
        token = (Sent("bearer", "JWT"),)
        self.ways = (token,) if cookie is None else (token, (Sent("cookie", cookie),))
        self.needs_origins = cookie is not None
        """Whether the middleware must know the origins of WebSockets."""
        self.challenge = (
            "Bearer" if resource_metadata is None else f'Bearer resource_metadata="{_url(resource_metadata)}"'
        )
        joint = " " if resource_metadata is None else ", "
        self._refused_headers = (("www-authenticate", f"{self.challenge}{joint}{_INVALID}"),)
        self._credentials = Credentials(cookie, websocket_protocol, websocket_query, max_token_bytes)
        self._by_name = {issuer.issuer: issuer for issuer in self._issuers}
        self._only = self._issuers[0] if len(self._issuers) == 1 else None
        self._most = max_token_bytes
        self._verified = VerifiedTokens(cache_size)
        self._now = now

    def __repr__(self) -> str:
        return f"JWTAuth({', '.join(map(repr, self._issuers))})"

    def hide(self, scope: Scope) -> None:
        """Take what may be a token out of the subprotocols of a WebSocket; the middleware does, before the app runs.

        Args:
            scope: the connection's scope.
        """
        self._credentials.hide(scope)

    async def open(self) -> None:
        """Begin to fetch keys."""
        for client in self._clients():
            await client.open()

    async def close(self) -> None:
        """End what is being fetched."""
        for client in self._clients():
            await client.close()

    def _clients(self) -> list[JWKSClient]:
        return list({id(issuer.client): issuer.client for issuer in self._issuers if issuer.client}.values())

    def compile(self, plan: HeaderPlan, role: str) -> Step:  # noqa: ARG002 - it gives identities
        """Make the step of the middleware by which it is asked; the middleware does, when it is made.

        Args:
            plan: where it claims the headers that it reads.
            role: what a string would identify; it gives identities.

        Returns:
            The step.
        """
        slot = plan.slot(b"authorization")
        find = self._credentials.find

        async def run(scope: Scope, found: Found) -> Identity | None:
            token = find(scope, found[slot])
            return None if token is None else await self._identify(token)

        return Step(run, waits=True)

    async def verify(self, token: str | bytes) -> Identity:
        """Verify a token that came by another way.

        Args:
            token: its compact form.

        Returns:
            What it proves.

        Raises:
            RequestRejected: it is not acceptable, or its keys cannot be had.
            TypeError: it is neither str nor bytes.
        """
        if isinstance(token, str):
            token = token.encode("utf-8", "surrogatepass")
        elif not isinstance(token, bytes):
            message = f"token must be str or bytes, not {type(token).__qualname__}"
            raise TypeError(message)
        return await self._identify(token)

    async def renew(self, token: str | bytes) -> None:
        """Let the WebSocket of this task go on until a newer token expires.

        What is bound stays as it is. Of several middlewares around the app, it is the innermost's connection.

        Args:
            token: a token of the same issuer for the same subject, tenant and user. One that expires sooner changes
                nothing.

        Raises:
            RequestRejected: the token is not acceptable, or stands for somebody else (403).
            ConnectionNotBoundError: this is not a WebSocket whose identity expires.
        """
        connection: Connection | None = current_binding().connection
        identity = await self.verify(token)
        if connection is None:
            raise ConnectionNotBoundError
        connection.renew(identity, ("iss", "sub"))

    async def _identify(self, token: bytes) -> Identity:
        if len(token) > self._most:
            raise self._refusal("it is too long")
        now = self._now()
        digest, known = self._verified.find(token, now)
        if known is not None:
            known.issuer.check_again(known.identity.tenant)
            client = known.issuer.client
            if client is None or client.clock() < client.due:
                return known.identity
            await client.keys()  # they are to be looked after now and then, also where all tokens are known
            if client.generation == known.generation and known.expires_at > self._now():
                return known.identity
        try:
            verified = await self._verify(token)
        except TokenRefusedError as refused:
            raise self._refusal(refused.reason) from None
        self._verified.keep(digest, verified)
        return verified.identity

    async def _verify(self, raw: bytes) -> Verified:
        token = read_token(raw)
        issuer = self._only or self._issuer_of(token)
        # First what costs nothing: no key is fetched, and no signature checked, for what would be refused in any case.
        expires_at = issuer.rules.check(token.kind, token.claims, self._now())
        check = await issuer.find(token.key_id, token.algorithm)
        generation = 0 if issuer.client is None else issuer.client.generation
        if not check(token.signed, token.signature):
            raise TokenRefusedError("its signature is not that of its key")
        if expires_at <= self._now():
            raise TokenRefusedError("it has expired meanwhile")
        tenant, user = issuer.whom(token.claims)
        return Verified(Identity(tenant, user, token.claims, expires_at), expires_at, issuer, generation)

    def _refusal(self, reason: str) -> RequestRejected:
        _log.debug("refused a token: %s", reason)
        return RequestRejected(401, "invalid_token", headers=self._refused_headers)

    def _issuer_of(self, token: Token) -> Issuer:
        name = token.claims.get("iss")
        issuer = self._by_name.get(name) if type(name) is str else None
        if issuer is None:
            raise TokenRefusedError("it is of another issuer")
        return issuer


def _check_issuers(issuers: list[Issuer]) -> None:
    for issuer in issuers:
        if not isinstance(issuer, Issuer):
            message = f"issuers must be Issuers, not {type(issuer).__qualname__}"
            raise TypeError(message)
    if not issuers:
        raise ValueError("issuers is empty: no token could be accepted")
    if len(issuers) == 1:
        return
    if any(issuer.issuer is None or not issuer.is_bounded for issuer in issuers):
        raise ValueError("with several issuers, each needs its issuer= and its tenants=")
    if len({issuer.issuer for issuer in issuers}) < len(issuers):
        raise ValueError("two issuers have the same issuer=")
    for index, issuer in enumerate(issuers):
        for other in issuers[:index]:
            if issuer.may_meet(other):
                message = (
                    f"{other!r} and {issuer!r} may speak for the same tenants: give each a user_prefix= of its own"
                )
                raise ValueError(message)


_URL: Final = re.compile(r"https?://[!#-\[\]-~]+")  # RFC 3986: printable ASCII; no quote and no backslash


def _url(value: object) -> str:
    if not isinstance(value, str) or _URL.fullmatch(value) is None:
        message = f"resource_metadata must be a URL, not {value!r}"
        raise ValueError(message)
    return value
