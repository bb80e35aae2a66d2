"""From whom a header is believed."""

import hmac
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from asgi_context._headers import Found, HeaderPlan, header_name
from asgi_context._types import Scope

Network: TypeAlias = IPv4Network | IPv6Network
_SECRET: Final = re.compile(rb"[\x21-\x7e]{16,}")  # 128 bits are past guessing; servers trim or refuse the rest
_LONGEST_ADDRESS: Final = 64  # characters; an IPv6 address with a zone fits, and the cache keeps no more than that


class SharedSecret:
    """A header by which a gateway proves that a request came through it.

    Args:
        header: name of the header.
        secret: what it must hold, at least 16 characters of printable ASCII without spaces.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the name is no header name, or the secret cannot be one.
    """

    __slots__ = {"header": "Name of the header, as bytes in lower case.", "_secret": "What it must hold."}  # noqa: RUF023 - in the order of reading

    def __init__(self, header: str, secret: str | bytes) -> None:
        self.header = header_name(header, "SharedSecret: header")
        if not isinstance(secret, str | bytes):
            message = f"SharedSecret: secret must be str or bytes, not {type(secret).__qualname__}"
            raise TypeError(message)
        self._secret = secret.encode() if isinstance(secret, str) else secret
        if _SECRET.fullmatch(self._secret) is None:
            message = "SharedSecret: secret must have at least 16 characters of printable ASCII, and no space"
            raise ValueError(message)

    def __repr__(self) -> str:
        return f"SharedSecret({self.header.decode()!r}, ...)"

    def matches(self, value: object) -> bool:
        """Compare in constant time.

        Args:
            value: what the header slot holds.

        Returns:
            Whether it is the secret.
        """
        return isinstance(value, bytes) and hmac.compare_digest(value, self._secret)


Trusted: TypeAlias = str | Network | SharedSecret | Iterable[str | Network | SharedSecret]


class Trust:
    """``trusted=`` of a header extractor: a peer needs one of what stands in it.

    Args:
        trusted: networks and secrets.
        extractor: whose option it is, for errors.

    Raises:
        TypeError: something is neither a network nor a secret.
        ValueError: there is nothing in it, or no network of that form.
    """

    def __init__(self, trusted: Trusted, extractor: str = "from_header") -> None:
        if not isinstance(trusted, str | Network | SharedSecret | Iterable):
            message = f"{extractor}: trusted= takes networks and SharedSecrets, not {trusted!r}"
            raise TypeError(message)
        entries = [trusted] if isinstance(trusted, str | Network | SharedSecret) else list(trusted)
        if not entries:
            message = f"{extractor}: trusted= is empty, so that nobody could be believed"
            raise ValueError(message)
        self._secrets = [entry for entry in entries if isinstance(entry, SharedSecret)]
        self._networks = [_network(entry, extractor) for entry in entries if not isinstance(entry, SharedSecret)]

    def compile(self, plan: HeaderPlan) -> Callable[[Scope, Found], bool]:
        """Make the test of a peer.

        Args:
            plan: where the secrets' headers are claimed.

        Returns:
            A function that says whether the peer of a scope is trusted.
        """
        secrets = [(plan.slot(secret.header), secret) for secret in self._secrets]
        networks = self._networks

        @lru_cache(maxsize=1024)
        def inside(host: str) -> bool:
            try:
                address = ip_address(host)
            except ValueError:
                return False
            if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
                address = address.ipv4_mapped  # what a dual-stack socket shows of an IPv4 peer
            return any(address in network for network in networks)

        def trust(scope: Scope, found: Found) -> bool:
            for slot, secret in secrets:
                if secret.matches(found[slot]):
                    return True
            host = (scope.get("client") or (None,))[0]  # no client on a unix socket
            return bool(networks) and isinstance(host, str) and len(host) <= _LONGEST_ADDRESS and inside(host)

        return trust


def _network(entry: object, extractor: str) -> Network:
    if not isinstance(entry, str | IPv4Network | IPv6Network):
        message = f"{extractor}: trusted= takes networks and SharedSecrets, not {type(entry).__qualname__}"
        raise TypeError(message)
    try:
        network = ip_network(entry)
    except ValueError as error:
        message = f"{extractor}: trusted= holds no network: {error}"
        raise ValueError(message) from None
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None else ip_network(f"{mapped}/{network.prefixlen - 96}")  # as peers are compared
