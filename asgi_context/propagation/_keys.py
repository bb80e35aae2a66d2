"""The keys that carriers are signed with."""

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from typing import Final, TypeAlias, cast

_ID: Final = re.compile(r"[A-Za-z0-9_\-]{1,64}")  # no dot, which parts what is signed
_SHORTEST: Final = 32  # bytes: the length of the hash (RFC 2104, section 3)
# What is signed with the same secret for another purpose is no carrier, and the other way round.
_DOMAIN: Final = b"asgi_context carrier\0"


class CarrierKey:
    """A key to sign carriers with, and to verify them: HMAC-SHA-256 (RFC 2104).

    Args:
        id: its name, which the carrier shows: 1 to 64 ASCII letters, digits, ``-`` and ``_``.
        secret: at least 32 bytes that nobody can guess, such as ``secrets.token_bytes(32)``; a str is taken as UTF-8.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the id is of another form, or the secret is too short.
    """

    __slots__ = {"id": "Its name, which the carrier shows.", "_secret": "What signs."}  # noqa: RUF023 - in the order of reading

    def __init__(self, id: str, secret: str | bytes) -> None:  # noqa: A002 - what it is called on both sides
        if not isinstance(id, str):
            message = f"CarrierKey: id must be a str, not {type(id).__qualname__}"
            raise TypeError(message)
        if _ID.fullmatch(id) is None:
            message = f"CarrierKey: id must be 1 to 64 ASCII letters, digits, - and _, not {id!r}"
            raise ValueError(message)
        if not isinstance(secret, str | bytes):
            message = f"CarrierKey: secret must be str or bytes, not {type(secret).__qualname__}"
            raise TypeError(message)
        encoded = secret.encode() if isinstance(secret, str) else secret
        if len(encoded) < _SHORTEST:
            message = f"CarrierKey: secret must have at least {_SHORTEST} bytes: secrets.token_bytes({_SHORTEST})"
            raise ValueError(message)
        self.id = id
        self._secret = encoded

    def __repr__(self) -> str:
        return f"CarrierKey({self.id!r}, ...)"

    def sign(self, text: str) -> str:
        """Sign the text of a carrier.

        Args:
            text: ASCII.

        Returns:
            The signature, as base64url without padding.
        """
        mac = hmac.digest(self._secret, _DOMAIN + text.encode("ascii"), "sha256")
        return urlsafe_b64encode(mac).rstrip(b"=").decode()


Keys: TypeAlias = CarrierKey | Iterable[CarrierKey]
"""One key, or several: the first signs, all verify."""


def keys_of(given: Keys) -> dict[str, CarrierKey]:
    """Check the option ``key``.

    Args:
        given: one key, or several.

    Returns:
        The keys by their ids, in the order given.

    Raises:
        TypeError: something is no key.
        ValueError: there is none, or two have the same id.
    """
    if isinstance(given, CarrierKey):
        return {given.id: given}
    several: object = given
    if isinstance(several, str | bytes) or not isinstance(several, Iterable):
        message = f"key must be a CarrierKey or several, not {type(several).__qualname__}"
        raise TypeError(message)
    keys: dict[str, CarrierKey] = {}
    for key in cast("Iterable[object]", several):
        if not isinstance(key, CarrierKey):
            message = f"key must be a CarrierKey or several, not {type(key).__qualname__}"
            raise TypeError(message)
        if key.id in keys:
            message = f"key: two keys have the id {key.id!r}: give each secret an id of its own"
            raise ValueError(message)
        keys[key.id] = key
    if not keys:
        raise ValueError("key is empty: with no key, nothing can be signed or believed")
    return keys
