"""Carriers: made of a context, and read into one."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from hmac import compare_digest
from typing import Final, cast

from asgi_context._claims import Claims
from asgi_context._context import current_binding, current_context
from asgi_context._identity import Identity, RequestContext, make_context, read_id
from asgi_context._options import check_leeway, seconds
from asgi_context.errors import (
    CarrierAudienceError,
    CarrierContentError,
    CarrierExpiredError,
    CarrierFormatError,
    CarrierSignatureError,
    CarrierTooLargeError,
    CarrierUnsignedError,
    CarrierVersionError,
)
from asgi_context.propagation._content import Content, unpacked
from asgi_context.propagation._keys import CarrierKey, Keys, keys_of

NAME: Final = "asgi-context"
_VERSION: Final = "1"
_LONGEST: Final = 8000  # characters; with its name in a line of 8 KiB, which is what servers take of one header
# Version, key id, content and signature; id and signature are empty where it is not signed.
_FORM: Final = re.compile(r"1\.([A-Za-z0-9_\-]{0,64})\.([A-Za-z0-9_\-]+)\.([A-Za-z0-9_\-]*)")
_OTHER_VERSION: Final = re.compile(r"(?!1\.)[1-9][0-9]{0,3}\.")


class Writer:
    """Makes carriers.

    Args:
        key: the option ``key`` of `to_carrier`, and so on.
        lifetime: its ``lifetime``.
        claims: its ``claims``.
        now: its ``now``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument has a value that it cannot have.
    """

    def __init__(self, key: Keys | None, lifetime: float, claims: Iterable[str], now: Callable[[], float]) -> None:
        self._key: CarrierKey | None = None if key is None else next(iter(keys_of(key).values()))
        self._lifetime = seconds(lifetime, "lifetime")
        self._claims = _names(claims)
        self._now = check_clock(now)

    def write(self, context: Identity | RequestContext | None, audience: str | None) -> str:
        """Make the text of a carrier.

        Args:
            context: see `to_carrier`.
            audience: see `to_carrier`.

        Returns:
            The text.
        """
        identity, request_id = _whose(context)
        now = self._now()
        until = float(now + self._lifetime)
        ends = identity.expires_at
        if ends is not None:
            if not ends > now:  # nor where a clock gives NaN
                raise CarrierExpiredError
            try:
                ends = float(ends)
            except OverflowError:  # an int of some hundred digits
                raise CarrierContentError from None
            until = min(until, ends)
        given = identity.claims
        try:
            claims = Claims({name: given[name] for name in self._claims if name in given})
            content = Content(Identity(identity.tenant, identity.user, claims, ends), request_id, until, audience)
            packed = content.packed()
        except RecursionError:
            raise CarrierContentError from None
        signed = f"{_VERSION}.{'' if self._key is None else self._key.id}.{packed}"
        text = f"{signed}.{'' if self._key is None else self._key.sign(signed)}"
        if len(text) > _LONGEST:
            raise CarrierTooLargeError
        return text


def _whose(context: Identity | RequestContext | None) -> tuple[Identity, str]:
    binding = current_binding()
    if isinstance(context, Identity):
        return context, read_id([] if binding.ids is None or binding.revoked else binding.ids)
    if context is None:
        context = current_context()
    elif not isinstance(context, RequestContext):
        message = f"context must be a RequestContext or an Identity, not {type(context).__qualname__}"
        raise TypeError(message)
    ends = context._expires_at  # noqa: SLF001 - ours
    identity = Identity(context.tenant, context.user, context.claims, ends)
    if ends is not None and binding.connection is not None:
        identity = binding.connection.latest(identity)  # a newer proof may have come for it
    return identity, context.request_id


class Reader:
    """Reads carriers.

    Args:
        key: the option ``key`` of `from_carrier`, and so on; ``None`` for carriers that are not signed.
        audience: its ``audience``.
        leeway: its ``leeway``.
        now: its ``now``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument has a value that it cannot have.
    """

    def __init__(self, key: Keys | None, audience: str | None, leeway: float, now: Callable[[], float]) -> None:
        self._keys = None if key is None else keys_of(key)
        self._audience = check_audience(audience)
        self._leeway = check_leeway(leeway)
        self._now = check_clock(now)

    def read(self, text: str) -> Content:
        """Read the text of a carrier.

        Args:
            text: it, perhaps.

        Returns:
            What it holds.

        Raises:
            CarrierError: it is not acceptable.
        """
        if len(text) > _LONGEST:  # before any work is done on it
            raise CarrierTooLargeError
        match = _FORM.fullmatch(text)
        if match is None:
            if _OTHER_VERSION.match(text):
                raise CarrierVersionError
            raise CarrierFormatError
        key_id, packed, signature = match.groups()
        if self._keys is None:
            if key_id or signature:  # who signs expects that somebody looks
                raise CarrierSignatureError
        elif not key_id or not signature:
            raise CarrierUnsignedError
        else:
            key = self._keys.get(key_id)
            if key is None or not compare_digest(key.sign(text[: match.end(2)]), signature):
                raise CarrierSignatureError
        content = unpacked(packed)
        if content.audience != self._audience:
            raise CarrierAudienceError
        if not content.until > self._now() - self._leeway:  # as above
            raise CarrierExpiredError
        return content


def to_carrier(
    context: Identity | RequestContext | None = None,
    *,
    key: Keys | None = None,
    audience: str | None = None,
    lifetime: float = 300,
    claims: Iterable[str] = (),
    now: Callable[[], float] = time.time,
) -> dict[str, str]:
    """Put a context into plain strings, to cross a process, a queue or an HTTP call.

    Tenant, user and request id travel, and the claims that are named; values, resources and the store do not. Whoever
    sees a carrier can read it, and use it until it expires: it is a bearer token.

    Args:
        context: whose; without one, that of the caller. An `Identity` goes with the request id that is bound here.
        key: what it is signed with: a `CarrierKey`, or several, of which the first signs. Without a key it is not
            signed, and only a reader that says ``trusted=True`` takes it.
        audience: whom it is for; every other reader refuses it.
        lifetime: after how many seconds it expires; sooner, if the identity's proof ends sooner.
        claims: names of the claims that travel. One that the identity does not have is left out.
        now: the time, in seconds since the epoch.

    Returns:
        The carrier: one name, ``asgi-context``, and printable ASCII.

    Raises:
        ContextNotBoundError: no context was given and none is bound here.
        ContextClosedError: no context was given and what is bound here was revoked.
        CarrierContentError: an identifier or a claim cannot be written.
        CarrierTooLargeError: it would have more than 8000 characters.
        CarrierExpiredError: the identity's proof has ended.
        TypeError: an argument is of the wrong type.
        ValueError: an argument has a value that it cannot have.

    Example:
        >>> from asgi_context import Identity
        >>> from asgi_context.propagation import CarrierKey, from_carrier, to_carrier
        >>> key = CarrierKey("2026-11", "at least 32 bytes that nobody can guess")
        >>> carrier = to_carrier(Identity("acme", "ann"), key=key, audience="mailer", lifetime=3600)
        >>> from_carrier(carrier, key=key, audience="mailer").user
        'ann'
    """
    return {NAME: Writer(key, lifetime, claims, now).write(context, check_audience(audience))}


def from_carrier(
    carrier: Mapping[str, str],
    *,
    key: Keys | None = None,
    trusted: bool = False,
    audience: str | None = None,
    leeway: float = 0,
    now: Callable[[], float] = time.time,
) -> RequestContext:
    """Read a carrier.

    Identifiers come as the sender had them: which characters they may hold was decided where they were extracted.

    Args:
        carrier: what `to_carrier` has made, and nothing beside it. Its name may have come in another case.
        key: a `CarrierKey`, or several: it must be signed with one of them. It, or ``trusted``, must be given.
        trusted: ``True`` to believe what is not signed, because nobody else can write where it came from.
        audience: whom it must be for; without it, it must be for nobody in particular.
        leeway: how many seconds after its time it is still taken, for clocks that differ.
        now: the time, in seconds since the epoch.

    Returns:
        The context, for `bind_context`.

    Raises:
        CarrierError: the carrier is not acceptable; its subclasses say why, and `CarrierError.code`.
        TypeError: an argument is of the wrong type, or neither or both of ``key`` and ``trusted`` are given.
        ValueError: an argument has a value that it cannot have.
    """
    if type(trusted) is not bool:
        message = f"trusted must be True, or left out, not {trusted!r}"
        raise TypeError(message)
    if (key is None) is not trusted:
        raise TypeError("from_carrier takes either key=, or trusted=True to believe what is not signed")
    content = Reader(key, audience, leeway, now).read(_only_text(carrier))
    return make_context(content.identity, content.request_id)


def _only_text(carrier: object) -> str:
    # One name alone: of two that differ in their case, either could be meant.
    fields = cast("Mapping[object, object]", carrier)
    if not isinstance(carrier, Mapping):
        raise CarrierFormatError
    try:
        ((name, text),) = fields.items()
    except ValueError:
        raise CarrierFormatError from None
    if type(name) is not str or type(text) is not str or len(name) != len(NAME) or name.lower() != NAME:
        raise CarrierFormatError
    return text


def _names(claims: Iterable[str]) -> tuple[str, ...]:
    several: object = claims
    if isinstance(several, str | bytes) or not isinstance(several, Iterable):
        message = f"claims must be several names, not {several!r}"
        raise TypeError(message)
    names: list[str] = []
    for name in cast("Iterable[object]", several):
        if type(name) is not str:
            message = f"claims: a name must be a str, not {type(name).__qualname__}"
            raise TypeError(message)
        names.append(name)
    return tuple(dict.fromkeys(names))


def check_audience(audience: object) -> str | None:
    """Check the option ``audience``.

    Args:
        audience: what was given.

    Returns:
        The same.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty.
    """
    if audience is not None and type(audience) is not str:
        message = f"audience must be a str, not {type(audience).__qualname__}"
        raise TypeError(message)
    if audience == "":
        raise ValueError("audience must not be empty; leave it out for none")
    return audience


def check_clock(now: Callable[[], float]) -> Callable[[], float]:
    """Check the option ``now``.

    Args:
        now: what was given.

    Returns:
        The same.

    Raises:
        TypeError: it is not callable.
    """
    if not callable(now):
        message = f"now must be callable, not {type(now).__qualname__}"
        raise TypeError(message)
    return now
