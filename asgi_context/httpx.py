"""The context on requests of httpx and httpx2: an event hook that hands it to the hosts that are named, to no other.

Both clients call their request hooks for each request that goes out: those that follow a redirect, for which they copy
the headers of the one before, those of an auth flow, and WebSocket handshakes of httpx2. Neither is imported here: the
hook looks at nothing but the URL and the headers of a request, which are alike in both.
"""

import re
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, MutableMapping
from ipaddress import AddressValueError, IPv6Address
from typing import Any, Final, NamedTuple, Protocol, cast

from asgi_context._context import current_context
from asgi_context.propagation._carrier import NAME, Writer, check_audience
from asgi_context.propagation._keys import Keys

__all__ = ["context_hook"]

_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_\-]{0,61}[a-z0-9_])?"  # RFC 1123, section 2.1, and _ as in names of containers
_ENTRY: Final = re.compile(
    rf"(?:(https?)://)?(?:(\*\.)?({_LABEL}(?:\.{_LABEL})*)|\[([0-9a-f:.]+)\])(?::([0-9]{{1,5}}))?"
)
_BELOW: Final = re.compile(rf"({_LABEL})\.(.+)")
_PORTS: Final = {"http": 80, "https": 443}
_SCHEMES: Final = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}  # a handshake is a request


class URL(Protocol):
    """The URL of a request, as both clients have it: where they connect to."""

    @property
    def raw_scheme(self) -> bytes:
        """In lower case."""
        ...

    @property
    def raw_host(self) -> bytes:
        """In ASCII, a name in lower case, an IPv6 address without its brackets."""
        ...

    @property
    def port(self) -> int | None:
        """``None`` for the scheme's own."""
        ...

    @property
    def netloc(self) -> bytes:
        """Host and port as the header ``Host`` has them."""
        ...


class Request(Protocol):
    """A request, as both clients have it."""

    @property
    def url(self) -> URL:
        """Where it goes."""
        ...

    @property
    def headers(self) -> MutableMapping[str, str]:
        """What goes with it; it gives names in lower case."""
        ...


class Place(NamedTuple):
    """A host, or what is below one, as a client connects to it."""

    scheme: str
    host: str
    port: int


class _Done:
    # The hook has done its work when it is called, and returns this. So it is one for both: an async client awaits what
    # its hooks return, a sync client does not look.
    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_DONE: Final = _Done()


class ContextHook:
    """What `context_hook` returns."""

    def __init__(self, exact: Mapping[Place, str | None], below: Mapping[Place, str | None], writer: Writer) -> None:
        self._exact = exact
        self._below = below
        self._writer = writer

    def __repr__(self) -> str:
        return f"<ContextHook for {len(self._exact) + len(self._below)} hosts>"

    def __call__(self, request: Request) -> _Done:
        """Take the header off a request, and put it on again where it may go.

        Args:
            request: the request.

        Returns:
            What can be awaited, and need not be.

        Raises:
            ContextClosedError: what is bound here was revoked.
            CarrierError: the carrier cannot be made.
        """
        headers = request.headers
        # What is there was copied from a request to another host, or set by hand: perhaps for somebody else. Gateways
        # take one with underscores for the same, and HTTP/2 is sent without white space around names.
        for name in [name for name in headers if name.strip().replace("_", "-") == NAME]:
            del headers[name]
        # Behind one address there may be several hosts, of which this header chooses (RFC 9110, section 7.2): an app
        # that hands a request on hands on what stands there as well.
        is_its_own = headers.get("host", "").lower() == request.url.netloc.decode("ascii").lower()
        found = self._find(request.url) if is_its_own else None
        if found is not None:
            context = current_context(None)
            if context is not None:
                headers[NAME] = self._writer.write(context, found[0])
        return _DONE

    def _find(self, url: URL) -> tuple[str | None] | None:
        scheme = _SCHEMES.get(url.raw_scheme)
        if scheme is None:
            return None
        host = url.raw_host.decode("ascii")
        place = Place(scheme, _address(host) or host, _PORTS[scheme] if url.port is None else url.port)
        if place in self._exact:
            return (self._exact[place],)
        match = _BELOW.fullmatch(place.host)
        if match is None:
            return None
        parent = place._replace(host=match[2])
        return (self._below[parent],) if parent in self._below else None


def context_hook(
    hosts: Collection[str] | Mapping[str, str],
    *,
    key: Keys | None,
    audience: str | None = None,
    lifetime: float = 300,
    claims: Iterable[str] = (),
    now: Callable[[], float] = time.time,
) -> ContextHook:
    """Make a hook that puts the caller's context on requests to some hosts, as `context_headers` does.

    Give it to a client, sync or async, of httpx or httpx2, as its last request hook (one behind it could send the
    request elsewhere): ``Client(event_hooks={"request": [context_hook(...)]})``. From requests to all other hosts the
    header is removed, also where it was set by hand or a redirect has brought it, and from those whose header ``Host``
    is not that of their URL. Where nothing is bound, none is sent.
    What goes over plain http is seen by the client's proxy, if it has one, and by all on the way.

    Args:
        hosts: to which hosts it goes, or a mapping of these to the audience that each is. A host is
            ``"api.example.com"``, which stands for https on port 443; with a scheme, a port or both
            ``"http://localhost:8000"``. ``"*.example.com"`` stands for all names with one label more, as in a
            certificate. Names of other scripts stand in ASCII (``xn--``), IPv6 addresses in brackets.
        key: what it is signed with, as for `to_carrier`. It must be given; ``None`` says that it is not signed.
        audience: whom it is for, where ``hosts`` does not say that.
        lifetime: after how many seconds it expires; sooner, if the identity's proof ends sooner.
        claims: names of the claims that travel. One that the identity does not have is left out.
        now: the time, in seconds since the epoch.

    Returns:
        The hook.

    Raises:
        TypeError: an argument is of the wrong type, or there are two audiences for a host.
        ValueError: an argument has a value that it cannot have.
    """
    if isinstance(hosts, str | bytes) or not isinstance(hosts, Collection):
        message = f"hosts must be several hosts, not {hosts!r}"
        raise TypeError(message)
    if isinstance(hosts, Mapping):
        if audience is not None:
            raise TypeError("hosts says which audience each host is: leave out audience=")
        audiences: Mapping[str, object] = cast("Mapping[str, object]", hosts)
    else:
        audiences = dict.fromkeys(hosts, audience)
    if not audiences:
        raise ValueError("hosts is empty: the context could go nowhere")
    exact: dict[Place, str | None] = {}
    below: dict[Place, str | None] = {}
    for entry, whom in audiences.items():
        place, is_exact = _place(entry)
        among = exact if is_exact else below
        if place in among:
            message = f"hosts: {entry!r} stands there twice, written in two ways"
            raise ValueError(message)
        among[place] = check_audience(whom)
    return ContextHook(exact, below, Writer(key, lifetime, claims, now))


def _place(entry: object) -> tuple[Place, bool]:
    if not isinstance(entry, str):
        message = f"hosts: a host must be a str, not {type(entry).__qualname__}"
        raise TypeError(message)
    # Some other characters become ASCII letters in lower case.
    match = _ENTRY.fullmatch(entry.lower()) if entry.isascii() else None
    if match is not None:
        scheme, star, name, address, digits = match.groups()
        scheme = scheme or "https"
        host = name if address is None else _address(address)
        port = int(digits) if digits else _PORTS[scheme]
        # Not whatever is below a top level, nor below numbers, which are no names.
        if host and 0 < port < 2**16 and (not star or ("." in host and not host[-1].isdigit())):
            return Place(scheme, host, port), not star
    message = (
        "hosts: a host is like 'api.example.com', 'http://localhost:8000', '*.example.com' or '[::1]:8443', in ASCII "
        f"(xn--...), without path, user and final dot, not {entry!r}"
    )
    raise ValueError(message)


def _address(host: str) -> str | None:
    # One address has many spellings.
    try:
        return IPv6Address(host).compressed
    except AddressValueError:
        return None
