"""Carriers as a header of HTTP requests: sent, and read by the middleware."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from asgi_context._extract import Step, Valid, check_rule, checked
from asgi_context._extract._step import BuiltIn, Sent
from asgi_context._extract._trust import Trust, Trusted
from asgi_context._headers import REPEATED, Found, HeaderPlan
from asgi_context._identity import Identity, RequestContext
from asgi_context._types import Scope
from asgi_context.errors import CarrierError, RequestRejected
from asgi_context.propagation._carrier import NAME, Reader, to_carrier
from asgi_context.propagation._content import Content
from asgi_context.propagation._keys import Keys

_log = logging.getLogger("asgi_context")
_CHALLENGE: Final = "AsgiContext"


def context_headers(
    context: Identity | RequestContext | None = None,
    *,
    key: Keys | None,
    audience: str | None = None,
    lifetime: float = 300,
    claims: Iterable[str] = (),
    now: Callable[[], float] = time.time,
) -> dict[str, str]:
    """Put a context into a header of a request, for a service that reads it by `from_carrier_header`.

    Whoever gets the request can act as its user until the carrier expires: send it to your own services alone, over
    TLS, and follow no redirect with it. `asgi_context.httpx` sees to that for httpx.

    Args:
        context: whose; without one, that of the caller.
        key: what it is signed with, as for `to_carrier`. It must be given; ``None`` says that it is not signed.
        audience: which service it is for; every other refuses it.
        lifetime: after how many seconds it expires; sooner, if the identity's proof ends sooner.
        claims: names of the claims that travel. One that the identity does not have is left out.
        now: the time, in seconds since the epoch.

    Returns:
        The header: ``asgi-context``.

    Raises:
        ContextNotBoundError: no context was given and none is bound here.
        ContextClosedError: no context was given and what is bound here was revoked.
        CarrierError: it cannot be made, see `to_carrier`.
        TypeError: an argument is of the wrong type.
        ValueError: an argument has a value that it cannot have.
    """
    return to_carrier(context, key=key, audience=audience, lifetime=lifetime, claims=claims, now=now)


class CarrierHeader(BuiltIn):
    """What `from_carrier_header` returns: an extractor of `Identity`."""

    gives = Identity
    challenge = _CHALLENGE
    ways = ((Sent("header", NAME),),)

    def __init__(self, reader: Reader, trusted: Trusted | None, valid: Valid | None) -> None:
        check_rule(valid, "from_carrier_header: valid=")
        self._reader = reader
        self._trust = None if trusted is None else Trust(trusted, "from_carrier_header")
        self._valid = valid
        self.request_id: BuiltIn = _RequestId(self)
        """An extractor of the request id that the carrier holds, for ``ContextMiddleware(request_id=...)``."""

    def __repr__(self) -> str:
        return "from_carrier_header(...)"

    def compile(self, plan: HeaderPlan, role: str) -> Step:  # noqa: ARG002 - it gives identities
        """See `BuiltIn`."""
        read, valid = self.reading(plan), self._valid

        def run(scope: Scope, found: Found) -> Identity | None:
            content = read(scope, found)
            if content is None:
                return None
            identity = content.identity
            checked(identity.tenant, valid, "tenant")
            if identity.user is not None:
                checked(identity.user, valid, "user")
            return identity

        return Step(run, waits=False)

    def reading(self, plan: HeaderPlan) -> Callable[[Scope, Found], Content | None]:
        """Make what reads the header.

        Args:
            plan: where the headers are claimed.

        Returns:
            A function that gives what the carrier holds, or ``None`` where there is none, or raises `RequestRejected`.
        """
        slot = plan.slot(NAME.encode())
        trust = None if self._trust is None else self._trust.compile(plan)
        reader = self._reader

        def read(scope: Scope, found: Found) -> Content | None:
            raw = found[slot]
            if raw is None:
                return None
            if trust is not None and not trust(scope, found):
                raise RequestRejected(403, "carrier_untrusted")
            if raw is REPEATED:
                raise RequestRejected(400, "carrier_repeated")
            if isinstance(raw, bytes):
                try:
                    return reader.read(raw.strip(b" \t").decode("latin-1"))
                except CarrierError as error:
                    _log.debug("refused a carrier: %s", error.code)
            raise RequestRejected(401, "carrier_invalid", headers=[("www-authenticate", _CHALLENGE)])

        return read


class _RequestId(BuiltIn):
    gives = str

    def __init__(self, header: CarrierHeader) -> None:
        self._header = header

    def __repr__(self) -> str:
        return f"{self._header!r}.request_id"

    def compile(self, plan: HeaderPlan, role: str) -> Step:
        read = self._header.reading(plan)

        def run(scope: Scope, found: Found) -> str | None:
            content = read(scope, found)
            return None if content is None else checked(content.request_id, None, role)

        return Step(run, waits=False)


def from_carrier_header(
    *,
    key: Keys | None = None,
    trusted: Trusted | None = None,
    audience: str | None = None,
    leeway: float = 0,
    valid: Valid | None = None,
    now: Callable[[], float] = time.time,
) -> CarrierHeader:
    """Read the header that `context_headers` makes, as ``identity=`` of the middleware.

    Without the header there is no identity. One that is not acceptable is refused with 401, a repeated one with 400;
    the log says why at the level DEBUG. The identity's ``expires_at`` is that of the proof which the sender had: the
    carrier must be valid when the request comes, a WebSocket may then last longer than it.

    Args:
        key: a `CarrierKey`, or several: the carrier must be signed with one of them. Without it, it must not be signed.
        trusted: networks (``"10.0.0.0/8"``) of the peers, or a `SharedSecret`, or several of these, of which one must
            do, as for `from_header`; from anybody else it is refused with 403. It, or ``key``, or both must be given.
        audience: whom the carrier must be for; without it, it must be for nobody in particular.
        leeway: how many seconds after its time it is still taken, for clocks that differ.
        valid: takes tenant and user, and says whether it is good; without it, the package's rule for identifiers.
        now: the time, in seconds since the epoch.

    Returns:
        An extractor of the `Identity`. Its attribute ``request_id`` is an extractor of the request id.

    Raises:
        TypeError: an argument is of the wrong type, or neither ``key`` nor ``trusted`` is given.
        ValueError: an argument has a value that it cannot have.
    """
    if key is None and trusted is None:
        raise TypeError("from_carrier_header takes key=, or trusted= to believe what is not signed from these peers")
    return CarrierHeader(Reader(key, audience, leeway, now), trusted, valid)
