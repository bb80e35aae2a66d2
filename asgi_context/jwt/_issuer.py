"""Who issues tokens, and for whom."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, TypeAlias, cast

from asgi_context._callables import runs_later
from asgi_context._extract import Valid, check_rule, checked
from asgi_context._options import check_leeway
from asgi_context.errors import RequestRejected
from asgi_context.jwt._jwks import JWKSClient
from asgi_context.jwt._keys import Check, KeyData, KeyRing, VerificationKey, check_algorithms, import_key
from asgi_context.jwt._rules import KINDS, Rules, kinds_of

ClaimPath: TypeAlias = str | tuple[str, ...] | Callable[[Mapping[str, Any]], str | None]
"""The name of a claim, the way to one inside others, or a callable that takes the claims."""

_PREFIX: Final = re.compile(r"[A-Za-z0-9._\-]{1,32}")
_SEPARATOR: Final = "|"


class Issuer:
    """An issuer: its keys, whom its tokens are for, and which tenants it may speak for.

    Args:
        issuer: the claim ``iss`` (RFC 7519, section 4.1.1), compared as it is; ``None`` to accept any, which is for
            keys that only one has.
        audience: what the claim ``aud`` must be or hold; several of which one will do. ``None`` to accept tokens that
            were made for anybody, which is for issuers that have no other.
        jwks_url: where its keys are published; see `JWKSClient` for what that does.
        jwks: its keys: a JWK set (RFC 7517, section 5), or a `JWKSClient`.
        key: its key: a JWK, a PEM, or the secret of an HMAC.
        keys: several of these.
        algorithms: which algorithms its tokens may have; without it, all that its keys are for.
        tenant: the claim that names the tenant: its name, the way to it (``("app", "tenant")``), or a callable that
            takes the claims and returns a str or ``None``.
        user: the claim that names the user, likewise; ``None`` for tokens of whole tenants.
        tenants: which tenants it may speak for: their identifiers, or a callable that takes one and says so, asked
            with each request; ``None`` for all, where it is the only issuer.
        user_prefix: put before each user, with a ``|``. Issuers that may speak for the same tenants need one each, so
            that their users never meet.
        required_claims: claims that must be there.
        typ: which ``typ`` a token may have, in any case, with or without ``application/``; ``None`` stands for none.
            ``("at+jwt",)`` is the profile of RFC 9068.
        leeway: how far its clock may be off, in seconds.
        valid: another rule for tenants and users than the package's own, see `Extractor`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument has a value that it cannot have, or arguments do not go together.
    """

    def __init__(
        self,
        issuer: str | None,
        *,
        audience: str | Collection[str] | None,
        jwks_url: str | None = None,
        jwks: Mapping[str, Any] | JWKSClient | None = None,
        key: KeyData | None = None,
        keys: Iterable[KeyData] | None = None,
        algorithms: Collection[str] | None = None,
        tenant: ClaimPath,
        user: ClaimPath | None = "sub",
        tenants: Collection[str] | Callable[[str], bool] | None = None,
        user_prefix: str | None = None,
        required_claims: Collection[str] | None = None,
        typ: str | Collection[str | None] = KINDS,
        leeway: float = 0,
        valid: Valid | None = None,
    ) -> None:
        if issuer is not None:
            text_of(issuer, "issuer")
        allowed = check_algorithms(algorithms)
        if allowed is not None and isinstance(jwks, JWKSClient):
            raise TypeError("give algorithms= to the JWKSClient, which imports the keys")
        check_leeway(leeway)
        if user_prefix is not None and _PREFIX.fullmatch(text_of(user_prefix, "user_prefix")) is None:
            message = f"user_prefix must be 1 to 32 letters, digits, '.', '_' and '-', not {user_prefix!r}"
            raise ValueError(message)
        if user_prefix is not None and user is None:
            raise ValueError("user_prefix= is for issuers whose tokens name users")
        check_rule(valid, "valid=")
        self.issuer = issuer
        self.tenants: frozenset[str] | None = None
        self._may: Callable[[str], bool] | None = None
        self._asks = False  # what may change its mind, for each request
        if callable(tenants):
            check_rule(tenants, "tenants")
            self._may, self._asks = tenants, True
        elif tenants is not None:
            self.tenants = frozenset(texts_of(tenants, "tenants"))
            self._may = self.tenants.__contains__
        self.user_prefix = user_prefix
        if sum(source is not None for source in (jwks_url, jwks, key, keys)) != 1:
            message = "give exactly one of jwks_url=, jwks=, key= and keys="
            raise TypeError(message)
        if jwks_url is not None:
            jwks = JWKSClient(jwks_url, algorithms=allowed)
        self.client = jwks if isinstance(jwks, JWKSClient) else None
        self._ring = None if isinstance(jwks, JWKSClient) else _ring_of(jwks, key, keys, allowed)
        self.rules = Rules(
            issuer,
            frozenset() if audience is None else frozenset(texts_of(audience, "audience")),
            kinds_of(typ),
            () if required_claims is None else tuple(texts_of(required_claims, "required_claims")),
            leeway,
        )
        self._tenant = _reader(tenant, "tenant")
        self._user = None if user is None else _reader(user, "user")
        self._valid = valid

    def __repr__(self) -> str:
        return f"Issuer({self.issuer!r})"

    @property
    def is_bounded(self) -> bool:
        """Whether it is said which tenants it may speak for."""
        return self._may is not None

    def may_meet(self, other: "Issuer") -> bool:
        """Say whether a user of one could be taken for a user of the other.

        Args:
            other: another issuer.

        Returns:
            Whether it could happen.
        """
        if self.tenants is not None and other.tenants is not None and self.tenants.isdisjoint(other.tenants):
            return False
        if self._user is None or other._user is None:  # noqa: SLF001 - of the same class
            return self._user is other._user  # noqa: SLF001 - as above
        return None in {self.user_prefix, other.user_prefix} or self.user_prefix == other.user_prefix

    async def find(self, key_id: str | None, algorithm: str) -> Check:
        """Find the key of a token; see `JWKSClient.find`."""
        if self.client is not None:
            return await self.client.find(key_id, algorithm)
        return cast("KeyRing", self._ring).find(key_id, algorithm)

    def whom(self, claims: Mapping[str, Any]) -> tuple[str, str | None]:
        """Say whom a token stands for.

        Args:
            claims: its claims, which are proven.

        Returns:
            Tenant and user.

        Raises:
            RequestRejected: it names no tenant or no user (403), one that cannot be (400), or a tenant that the issuer
                must not speak for (403).
        """
        tenant = self._read(self._tenant, claims, "tenant")
        if self._may is not None and self._may(tenant) is not True:
            raise RequestRejected(403, "tenant_forbidden")
        if self._user is None:
            return tenant, None
        user = self._read(self._user, claims, "user")
        if self.user_prefix is not None:
            user = checked(f"{self.user_prefix}{_SEPARATOR}{user}", self._valid, "user")
        return tenant, user

    def check_again(self, tenant: str) -> None:
        """Check the tenant of a token that was verified before, which may have been withdrawn since.

        Args:
            tenant: the tenant.

        Raises:
            RequestRejected: the issuer must not speak for it any more (403).
        """
        if self._asks and self._may is not None and self._may(tenant) is not True:
            raise RequestRejected(403, "tenant_forbidden")

    def _read(self, read: "Callable[[Mapping[str, Any]], object]", claims: Mapping[str, Any], role: str) -> str:
        value = read(claims)
        if value is None:
            raise RequestRejected(403, f"{role}_missing")
        if type(value) is not str:
            raise RequestRejected(400, f"{role}_invalid")
        return checked(value, self._valid, role)


def _reader(path: ClaimPath, option: str) -> "Callable[[Mapping[str, Any]], object]":
    if callable(path):
        kind = runs_later(path)
        if kind is not None:
            message = f"{option} must be a plain function, not {kind}"
            raise TypeError(message)
        return path
    given: object = path
    if not isinstance(given, str | tuple | list):
        message = f"{option} must be the name of a claim, the way to one, or callable, not {type(given).__qualname__}"
        raise TypeError(message)
    steps = (path,) if type(path) is str else tuple(path)
    for step in steps:
        text_of(step, option)
    if not steps:
        message = f"{option} must name a claim"
        raise ValueError(message)

    def read(claims: Mapping[str, Any]) -> object:
        value: Any = claims
        for step in steps:
            kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
            if kind is not dict:
                return None
            value = value.get(step)
        return value

    return read


def _ring_of(
    jwks: object, key: KeyData | None, keys: Iterable[KeyData] | None, algorithms: frozenset[str] | None
) -> KeyRing:
    given: list[Any] = []
    if jwks is not None:
        entries = cast("Mapping[str, Any]", jwks).get("keys") if isinstance(jwks, Mapping) else None
        if not isinstance(entries, list):
            raise ValueError('jwks must be a JWK set, {"keys": [...]}, or a JWKSClient')
        given += entries
    if key is not None:
        given.append(key)
    if keys is not None:
        if isinstance(keys, str | bytes | Mapping) or not isinstance(keys, Iterable):
            raise TypeError("keys must be several keys; key= is for one")
        given += keys
    if not given:
        raise ValueError("keys is empty: no token could be accepted")
    imported: list[VerificationKey] = []
    for number, data in enumerate(given):
        try:
            imported.append(import_key(data, algorithms))
        except ValueError as error:
            message = f"key {number} cannot be used: {error}"
            raise ValueError(message) from None
    return KeyRing(imported)


def texts_of(values: object, option: str) -> list[str]:
    if isinstance(values, str):
        values = [values]
    if not isinstance(values, Collection) or isinstance(values, bytes | Mapping):
        message = f"{option} must be a str or several of them"
        raise TypeError(message)
    if not values:
        message = f"{option} must not be empty"
        raise ValueError(message)
    return [text_of(value, option) for value in cast("Collection[object]", values)]


def text_of(value: object, option: str) -> str:
    """Check a text.

    Args:
        value: what was given.
        option: what to call it in an error.

    Returns:
        The text.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty.
    """
    if type(value) is not str:
        message = f"{option} must be a str, not {type(value).__qualname__}"
        raise TypeError(message)
    if not value:
        message = f"{option} must not be empty"
        raise ValueError(message)
    return value
