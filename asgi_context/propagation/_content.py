"""What a carrier holds, written so that there is one way to write it.

A carrier is read only if writing again what was read gives the same text. So there is nothing in it that a reader could
have passed over or taken otherwise: no unknown or repeated member, no number that is none, no other spelling.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Final, NamedTuple, cast

from asgi_context._claims import NO_CLAIMS
from asgi_context._identity import Identity, id_cell
from asgi_context.errors import CarrierContentError, CarrierFormatError

_JSON: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Content(NamedTuple):
    """What a carrier holds."""

    identity: Identity
    request_id: str
    until: float
    """When the carrier expires, in seconds since the epoch."""
    audience: str | None

    def packed(self) -> str:
        """Write it.

        Returns:
            JSON as base64url without padding (RFC 4648, section 5).

        Raises:
            CarrierContentError: there is something in it that JSON has no place for.
            RecursionError: its claims are nested too deep.
        """
        identity = self.identity
        members: dict[str, Any] = {"tenant": identity.tenant}
        if identity.user is not None:
            members["user"] = identity.user
        members["request_id"] = self.request_id
        if identity.claims:
            members["claims"] = identity.claims.to_dict()
        if identity.expires_at is not None:
            members["expires_at"] = identity.expires_at
        members["until"] = self.until
        if self.audience is not None:
            members["audience"] = self.audience
        try:
            return urlsafe_b64encode(_JSON.encode(members).encode()).rstrip(b"=").decode()
        except ValueError:
            raise CarrierContentError from None


def unpacked(text: str) -> Content:
    """Read what `Content.packed` has written.

    Args:
        text: it, perhaps.

    Returns:
        What it holds.

    Raises:
        CarrierFormatError: it is not as it would be written.
    """
    try:
        members = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        content = _content(**members)
        if content.packed() == text:
            return content
    except (
        TypeError,
        ValueError,
        RecursionError,
    ):  # also CarrierContentError, for what JSON should not have let through
        pass
    raise CarrierFormatError from None


def _content(
    *,
    tenant: Any,  # noqa: ANN401 - whatever JSON holds there, and so on
    request_id: Any,  # noqa: ANN401
    until: Any,  # noqa: ANN401
    user: Any = None,  # noqa: ANN401
    claims: Any = NO_CLAIMS,  # noqa: ANN401
    expires_at: Any = None,  # noqa: ANN401
    audience: Any = None,  # noqa: ANN401
) -> Content:
    for moment in (until, 0.0 if expires_at is None else expires_at):
        if type(moment) is not float:  # an int may be beyond what a clock can be compared with
            raise TypeError
    if audience is not None and type(audience) is not str:
        raise TypeError
    id_cell(request_id)  # checks it
    if request_id is None:
        raise TypeError
    return Content(Identity(tenant, user, claims, expires_at), cast("str", request_id), until, audience)
