"""Extractors that read one identifier from the headers."""

import re
from typing import Final

from asgi_context._extract._identifiers import RAW_IDENTIFIER, Valid, checked, decoded
from asgi_context._extract._source import Source, only_one, text_of
from asgi_context._extract._step import IN_THE_URL, BuiltIn, Sent, Step
from asgi_context._extract._trust import Trust, Trusted
from asgi_context._headers import Found, HeaderPlan, Oddity, header_name
from asgi_context._types import Scope
from asgi_context.errors import RequestRejected

_DNS_LABEL: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")  # RFC 1123, section 2.1
_MOST_KNOWN: Final = 8192  # of at most 128 bytes each


class FromHeader(Source):
    """What `from_header` returns."""

    def __init__(self, name: str, trusted: Trusted | None, valid: Valid | None) -> None:
        super().__init__("from_header", name, valid)
        self._name = header_name(name, "from_header: name")
        self._trust = None if trusted is None else Trust(trusted)
        if trusted is None:  # else whoever is trusted sets it, and what that one asks for is not known here
            self.ways = ((Sent("header", self._name.decode()),),)

    @property
    def plain(self) -> bool:
        """Whether it depends on the header's value alone; a rule of the user's may look at a list of tenants."""
        return self._trust is None and self._valid is None

    def compile(self, plan: HeaderPlan, role: str) -> Step:
        slot, valid, known = plan.slot(self._name), self._valid, plan.known
        trust = None if self._trust is None else self._trust.compile(plan)

        def run(scope: Scope, found: Found) -> str | None:
            raw = found[slot]
            if raw is None:
                return None
            if trust is not None and not trust(scope, found):
                raise RequestRejected(403, f"{role}_untrusted")
            if valid is not None or type(raw) is not bytes:
                return checked(_header_text(raw, role), valid, role)
            value = known.get(raw)
            if value is None:
                if RAW_IDENTIFIER.fullmatch(raw) is None:
                    return checked(_header_text(raw, role), valid, role)  # good once it is trimmed, or not at all
                if len(known) >= _MOST_KNOWN:
                    known.clear()  # each is checked once more; to keep an order of use would cost every hit
                value = known[raw] = raw.decode()
            return value

        return Step(run, waits=False)


def _header_text(raw: bytes | Oddity, role: str) -> str:
    if isinstance(raw, Oddity):
        raise RequestRejected(400, f"{role}_{raw.reason}")
    return decoded(raw.strip(b" \t"), role)  # optional white space by RFC 9110, section 5.6.3; nothing else is trimmed


def from_header(name: str, *, trusted: Trusted | None = None, valid: Valid | None = None) -> BuiltIn:
    """Read a header.

    A header is a claim that any client can make: use it behind a gateway that sets it, and name the gateway in
    ``trusted``. A repeated header, and one whose name differs only in ``_`` for ``-``, is refused.

    Args:
        name: name of the header, in any case.
        trusted: networks (``"10.0.0.0/8"``) of the peers, or a `SharedSecret`, or several of these, of which one must
            do; from anybody else the header is refused with 403. The peer is ``scope["client"]``: where the server
            rewrites that from X-Forwarded-For, as uvicorn does for a peer on 127.0.0.1, it is the end user.
        valid: takes the value and says whether it is good; without it, the package's rule for identifiers.

    Returns:
        An extractor of the header's value, trimmed of space and tab.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``name`` is no header name, or ``trusted`` holds no network of that form, or nothing.
    """
    return FromHeader(name, trusted, valid)


class _FromCookie(Source):
    def __init__(self, name: str, valid: Valid | None) -> None:
        super().__init__("from_cookie", name, valid)
        self._name = header_name(name, "from_cookie: name", lower=False)
        self.ways = ((Sent("cookie", name),),)

    def compile(self, plan: HeaderPlan, role: str) -> Step:  # noqa: ARG002 - no header of its own
        def run(scope: Scope, _found: Found) -> str | None:
            values: list[bytes] = []
            for header, line in scope["headers"]:
                # In a pass of its own: of this header there may be several (RFC 9113, section 8.2.3).
                if header.lower() == b"cookie":
                    for pair in line.split(b";"):
                        name, equals, value = pair.partition(b"=")
                        if equals and name.strip(b" \t") == self._name:
                            values.append(_unquoted(value.strip(b" \t")))
            return only_one(values, self._valid, role)

        return Step(run, waits=False)


def _unquoted(value: bytes) -> bytes:
    # RFC 6265, section 4.1.1: cookie-value may stand in double quotes.
    return value[1:-1] if len(value) > 1 and value[:1] == value[-1:] == b'"' else value


def from_cookie(name: str, *, valid: Valid | None = None) -> BuiltIn:
    """Read a cookie (RFC 6265).

    Browsers send cookies along from foreign pages too: on its own, a cookie does not prove that the user meant it.

    Args:
        name: name of the cookie; case matters.
        valid: takes the value and says whether it is good; without it, the package's rule for identifiers.

    Returns:
        An extractor of the cookie's value. A repeated cookie is refused.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``name`` is no cookie name.
    """
    return _FromCookie(name, valid)


class _FromSubdomain(Source):
    ways = IN_THE_URL

    def __init__(self, base: str, valid: Valid | None) -> None:
        super().__init__("from_subdomain", base, valid)
        name = text_of(base, "from_subdomain: base").lower().removesuffix(".")
        if not all(_DNS_LABEL.fullmatch(label) for label in name.split(".")):
            message = f"from_subdomain: base must be a host name such as 'example.com', not {base!r}"
            raise ValueError(message)
        self._suffix = "." + name

    def compile(self, plan: HeaderPlan, role: str) -> Step:
        slot = plan.slot(b"host")
        suffix, valid = self._suffix, self._valid

        def run(_scope: Scope, found: Found) -> str | None:
            raw = found[slot]
            if raw is None:
                return None
            # In lower case as bytes: as text, some other characters would become ASCII letters.
            lower = raw.lower() if isinstance(raw, bytes) else raw
            host, colon, port = _header_text(lower, role).partition(":")
            host = host.removesuffix(".")
            if not host.endswith(suffix):
                return None
            if colon and port.strip("0123456789"):  # what RFC 3986, section 3.2.3, does not allow may hide a host
                raise RequestRejected(400, f"{role}_invalid")
            label = host.removesuffix(suffix)
            if valid is None and not _DNS_LABEL.fullmatch(label):
                raise RequestRejected(400, f"{role}_invalid")
            return checked(label, valid, role)

        return Step(run, waits=False)


def from_subdomain(base: str, *, valid: Valid | None = None) -> BuiltIn:
    """Read the label below a domain from the Host header: ``acme`` of ``acme.example.com``.

    Args:
        base: the domain, such as ``"example.com"``.
        valid: takes the label and says whether it is good; without it, one DNS label (RFC 1123, section 2.1).

    Returns:
        An extractor of the label, in lower case; absent where the host is not below the domain. More than one label,
        and a repeated Host header, are refused.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``base`` is no host name.
    """
    return _FromSubdomain(base, valid)
