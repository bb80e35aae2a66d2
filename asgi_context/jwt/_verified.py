"""Tokens that were verified a moment ago."""

from collections import OrderedDict
from hashlib import sha256
from typing import NamedTuple

from asgi_context._identity import Identity
from asgi_context.jwt._issuer import Issuer


class Verified(NamedTuple):
    """What a token has proven."""

    identity: Identity
    expires_at: float
    issuer: Issuer
    generation: int
    """Of the issuer's keys, when it was verified."""


class VerifiedTokens:
    """Remembers what tokens have proven, by their SHA-256: a token itself is never kept.

    Args:
        most: how many; the one that was used longest ago is forgotten first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, Verified] = OrderedDict()

    def find(self, token: bytes, now: float) -> tuple[bytes, Verified | None]:
        """Look a token up.

        Args:
            token: the token.
            now: the time, in seconds since the epoch.

        Returns:
            Its digest, and what it has proven.
        """
        digest = sha256(token).digest()
        found = self._kept.get(digest)
        if found is None:
            return digest, None
        if found.expires_at <= now or (
            found.issuer.client is not None and found.issuer.client.generation != found.generation
        ):
            self._kept.pop(digest, None)
            return digest, None
        try:  # with suppress() it would take a fifth of a microsecond more
            self._kept.move_to_end(digest)
        except KeyError:  # another thread has forgotten it meanwhile
            return digest, None
        return digest, found

    def keep(self, digest: bytes, verified: Verified) -> None:
        """Remember a token.

        Args:
            digest: its SHA-256.
            verified: what it has proven.
        """
        self._kept[digest] = verified
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
