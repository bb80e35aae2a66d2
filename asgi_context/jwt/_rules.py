"""What the claims of a token must say (RFC 7519, section 4.1; RFC 8725)."""

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple, cast

from asgi_context.jwt._refused import TokenRefusedError

_PREFIX: Final = "application/"
KINDS: Final = (None, "JWT", "at+jwt")


class Rules(NamedTuple):
    """What the claims of an issuer's tokens must say."""

    issuer: str | None
    audiences: frozenset[str]
    kinds: frozenset[str | None]
    """The values of ``typ`` that are allowed, lower case, without ``application/``; ``None`` for its absence."""
    required: tuple[str, ...]
    leeway: float

    def check(self, kind: str | None, claims: Mapping[str, Any], now: float) -> float:
        """Check a token.

        Args:
            kind: its ``typ``.
            claims: its claims.
            now: the time, in seconds since the epoch.

        Returns:
            When it expires, in seconds since the epoch, with the leeway.

        Raises:
            TokenRefusedError: something is not as it must be.
        """
        if (None if kind is None else _kind_of(kind)) not in self.kinds:
            raise TokenRefusedError("its typ is not allowed")
        if self.issuer is not None and claims.get("iss") != self.issuer:
            raise TokenRefusedError("it is of another issuer")
        if self.audiences and not self._is_for_us(claims.get("aud")):
            raise TokenRefusedError("it is for another audience")
        for name in ("sub", "iss", "jti"):
            if type(claims.get(name, "")) is not str:
                raise TokenRefusedError(f"its {name} is no string")  # noqa: EM102 - one of three
        if any(claims.get(name) is None for name in self.required):
            raise TokenRefusedError("it lacks a claim that is required")
        return self._lasts_until(claims, now)

    def _lasts_until(self, claims: Mapping[str, Any], now: float) -> float:
        expires_at = _moment(claims, "exp")
        if expires_at is None:
            raise TokenRefusedError("it has no exp")
        if expires_at + self.leeway <= now:
            raise TokenRefusedError("it has expired")
        for name in ("nbf", "iat"):
            moment = _moment(claims, name)
            if moment is not None and moment - self.leeway > now:
                raise TokenRefusedError(f"its {name} is in the future")  # noqa: EM102 - one of the two
        return expires_at + self.leeway

    def _is_for_us(self, audience: object) -> bool:
        if type(audience) is str:
            return audience in self.audiences
        if type(audience) is not list:
            return False
        named: list[object] = audience  # pyright: ignore[reportUnknownVariableType]
        return all(type(name) is str for name in named) and not self.audiences.isdisjoint(named)


def kinds_of(given: str | Collection[str | None]) -> frozenset[str | None]:
    """Make the values of ``typ`` ready.

    Args:
        given: one, or several; ``None`` stands for none.

    Returns:
        They, as `Rules` has them.

    Raises:
        TypeError: one is no str.
        ValueError: there are none, or one is empty.
    """
    several: object = [given] if isinstance(given, str) else given
    if not isinstance(several, Collection) or isinstance(several, bytes | Mapping):
        message = f"typ must be a str or several of them, not {type(given).__qualname__}"
        raise TypeError(message)
    kinds: set[str | None] = set()
    for kind in cast("Collection[object]", several):
        if kind is not None and type(kind) is not str:
            message = f"typ must be a str or several of them, not {type(kind).__qualname__}"
            raise TypeError(message)
        kinds.add(None if kind is None else _kind_of(kind))
    if not kinds or "" in kinds:
        raise ValueError("typ must not be empty")
    return frozenset(kinds)


def _kind_of(text: str) -> str:
    return text.lower().removeprefix(_PREFIX)  # RFC 7515, section 4.1.9


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # RFC 7519, section 2: NumericDate. More than this many seconds no clock shows, and a float could not hold.
    if (type(value) is not int and type(value) is not float) or not 0 <= value < _LAST:
        raise TokenRefusedError(f"its {name} is no time")  # noqa: EM102 - one of three
    return value


_LAST: Final = 2**53
