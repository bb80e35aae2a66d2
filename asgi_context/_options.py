"""What `ContextMiddleware` is given, checked and made ready."""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final, Literal, cast

from asgi_context._callables import runs_later
from asgi_context._extract import Extractor, check_extractor, identity_from, parts_of
from asgi_context._identity import Identity
from asgi_context._pool import Pool
from asgi_context._pools import Workers
from asgi_context._types import Scope
from asgi_context.errors import ExtractorTypeError, RequestRejected

if TYPE_CHECKING:
    from asgi_context._processes import Fleet


def check_hooks(*, plain: Mapping[str, object], either: Mapping[str, object]) -> None:
    """Check the options that are callables.

    Args:
        plain: those that must say at once, by name; ``None`` where one is not given.
        either: those that may also be coroutine functions.

    Raises:
        TypeError: one is not what it must be.
    """
    for option, hook in {**plain, **either}.items():
        if hook is not None and not callable(hook):
            message = f"{option} must be callable, not {type(hook).__qualname__}"
            raise TypeError(message)
    for option, hook in plain.items():
        kind = runs_later(hook)
        if kind is not None:
            message = f"{option} must be a plain function, not {kind}"
            raise TypeError(message)


def check_missing(missing: Literal["reject", "unbound"]) -> None:
    """Check the option ``missing``.

    Args:
        missing: what was given.

    Raises:
        ValueError: it is none of the two.
    """
    if missing not in ("reject", "unbound"):
        message = f"missing must be 'reject' or 'unbound', not {missing!r}"
        raise ValueError(message)


def seconds(value: float, option: str) -> float:
    """Check a time limit.

    Args:
        value: what was given.
        option: what to call it in an error.

    Returns:
        The same.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive and finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"{option} must be a number of seconds, not {type(value).__qualname__}"
        raise TypeError(message)
    if not 0 < value <= sys.float_info.max:  # an int may be beyond what can be added to a time
        message = f"{option} must be more than 0 seconds, and finite, not {value!r}"
        raise ValueError(message)
    return value


_LONGEST_LEEWAY: Final = 86_400  # seconds; no two clocks differ by more, and nothing is to be good for ever


def check_leeway(leeway: float) -> float:
    """Check the option ``leeway``.

    Args:
        leeway: what was given.

    Returns:
        The same.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, or longer than a day.
    """
    if isinstance(leeway, bool) or not isinstance(leeway, int | float):
        message = f"leeway must be a number of seconds, not {type(leeway).__qualname__}"
        raise TypeError(message)
    if not 0 <= leeway <= _LONGEST_LEEWAY:
        message = f"leeway must be 0 to {_LONGEST_LEEWAY} seconds"
        raise ValueError(message)
    return leeway


def workers_of(pools: Mapping[str, int | Pool], close_timeout: float) -> dict[str, Workers]:
    """Make the pools of the option ``pools``.

    Args:
        pools: how large they are, by name.
        close_timeout: how long closing one may take, in seconds.

    Returns:
        The pools by name.

    Raises:
        TypeError: a name is no str, or a size neither an int nor a `Pool`.
        ValueError: a name is empty, or a size too small.
    """
    workers: dict[str, Workers] = {}
    for name, size in pools.items():
        if type(name) is not str:
            message = f"pools: a name must be a str that is not empty, not {name!r}"
            raise TypeError(message)
        if not name:
            message = "pools: a name must be a str that is not empty, not ''"
            raise ValueError(message)
        pool = size if isinstance(size, Pool) else Pool(size)
        workers[name] = Workers(name, pool, close_timeout, tuple(workers.values()), _fleet_of(pool))
    return workers


def _fleet_of(pool: Pool) -> "Fleet | None":
    if pool.kind == "thread":
        return None
    from multiprocessing import get_context  # noqa: PLC0415 - most apps have no such pool

    from asgi_context._processes import Fleet, Setup  # noqa: PLC0415 - as above

    return Fleet(Setup(get_context(pool.start_method), of_server=True), pool.values)


def source_of(
    identity: Extractor | None, tenant: Extractor | None, user: Extractor | None, message: object
) -> Extractor | None:
    """Make one extractor of the options that say who asks.

    Args:
        identity: the option ``identity``.
        tenant: the option ``tenant``.
        user: the option ``user``.
        message: the option ``message``.

    Returns:
        An extractor of identities; ``None`` where only messages say who asks.

    Raises:
        TypeError: none is given, or they do not go together.
    """
    if identity is not None and (tenant is not None or user is not None):
        raise TypeError("identity= is a whole identity: give either it, or tenant= and user=")
    if identity is not None:
        check_extractor(identity, "identity", Identity)
        return identity
    if tenant is None:
        if user is not None:
            raise TypeError("user= needs tenant= beside it")
        if message is None:
            raise TypeError("give identity=, tenant= or message=: nothing says who asks")
        return None
    return identity_from(tenant=tenant, user=user)


def origins_of(origins: Collection[str] | None, source: Extractor | None) -> frozenset[bytes] | None:
    """Make the origins of the option ``websocket_origins`` ready.

    Args:
        origins: what was given.
        source: the extractor of identities.

    Returns:
        The values that ``Origin`` may have; ``None`` for any.

    Raises:
        TypeError: it is no collection of str.
        ValueError: one is no origin, or there are none although an extractor needs them.
    """
    if origins is None:
        for part in parts_of([] if source is None else [source]):
            if getattr(part, "needs_origins", False):
                message = f"{part!r} reads a cookie, which browsers send from any page: give websocket_origins="
                raise ValueError(message)
        return None
    if isinstance(origins, str | bytes) or not isinstance(origins, Collection):
        message = f"websocket_origins must be a collection of origins, not {origins!r}"
        raise TypeError(message)
    for origin in origins:
        if type(origin) is not str or not _is_origin(origin):
            message = (
                f"websocket_origins: an origin is like 'https://app.example.com', as browsers write it, not {origin!r}"
            )
            raise ValueError(message)
    return frozenset(origin.encode() for origin in origins)


def check_origin(headers: Iterable[tuple[bytes, bytes]], origins: frozenset[bytes]) -> None:
    """Check from which page a WebSocket is opened.

    Args:
        headers: its headers.
        origins: the values that ``Origin`` may have (RFC 6454, section 6.2). A request without it is from no browser.

    Raises:
        RequestRejected: it comes from elsewhere, or it is not clear from where (403).
    """
    given = [value for name, value in headers if name.lower() == b"origin"]
    if len(given) > 1 or (given and given[0] not in origins):
        raise RequestRejected(403, "origin_forbidden")


_ORIGIN: Final = re.compile(
    r"([a-z][a-z0-9+.\-]*)://(\[[0-9a-f:.]+\]|[a-z0-9\-]+(?:\.[a-z0-9\-]+)*)(?::([1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


def _is_origin(text: str) -> bool:
    # As browsers write it (WHATWG HTML, "serialization of an origin"): what they never write would let nobody in.
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return False
    scheme, _, port = match.groups()
    return port is None or (int(port) < 2**16 and port != _DEFAULT_PORTS.get(scheme))


def is_preflight(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Say whether an ``OPTIONS`` request is a CORS preflight.

    Args:
        headers: its headers.

    Returns:
        Whether it is.
    """
    # Fetch standard, "CORS-preflight request": sent by the browser itself, without what would say who asks.
    names = {name.lower() for name, _ in headers}
    return b"origin" in names and b"access-control-request-method" in names


def hides_of(source: Extractor | None) -> list[Callable[[Scope], None]]:
    """Collect what takes credentials out of a WebSocket's scope, which is done also where nobody has asked for them.

    Args:
        source: the extractor of identities.

    Returns:
        The methods ``hide`` of all that it is composed of.
    """
    found: list[object] = [getattr(part, "hide", None) for part in parts_of([] if source is None else [source])]
    return [cast("Callable[[Scope], None]", hide) for hide in found if callable(hide)]


def challenges_of(source: Extractor) -> list[bytes]:
    """Collect how clients are told to say who they are (RFC 9110, section 11.6.1).

    Args:
        source: an extractor.

    Returns:
        The attribute ``challenge`` of all that it is composed of.

    Raises:
        ValueError: one cannot stand in a header.
    """
    found = [getattr(part, "challenge", None) for part in parts_of([source])]
    headers = [(_CHALLENGE, challenge) for challenge in found if isinstance(challenge, str)]
    return [value for _, value in RequestRejected(401, "identity_missing", headers=headers).headers]  # checks them


def check_identity(identity: object, absent: tuple[int, str] | None) -> Identity | None:
    """Take what the extractor of identities gave.

    Args:
        identity: what that is.
        absent: status and code of the refusal where it is ``None``; ``None`` where that is no reason for one.

    Returns:
        The identity.

    Raises:
        RequestRejected: there is none.
        ExtractorTypeError: it is none.
    """
    if identity is None:
        if absent is not None:
            raise RequestRejected(*absent)
        return None
    if type(identity) is not Identity:
        raise ExtractorTypeError("the extractor given as identity=", type(identity).__qualname__, "Identity or None")
    return identity


def challenging(rejection: RequestRejected, challenges: list[bytes]) -> RequestRejected:
    """Have a 401 say what would be accepted.

    Args:
        rejection: the rejection.
        challenges: one for each source.

    Returns:
        A rejection with all of them.
    """
    # RFC 9110, section 11.6.1: a 401 lists what would be accepted, one challenge for each source that has not said.
    given = [value for name, value in rejection.headers if name == _CHALLENGE]
    schemes = {value.split(b" ")[0].lower() for value in given}
    missing = [value for value in dict.fromkeys(challenges) if value.split(b" ")[0].lower() not in schemes]
    if not missing and len(given) < 2:  # noqa: PLR2004 - nothing to join
        return rejection
    others = [pair for pair in rejection.headers if pair[0] != _CHALLENGE]
    # In one line: there is a server that stops at a second one of that name, where a WebSocket is refused.
    joined = b", ".join([*given, *missing])
    return RequestRejected(rejection.status, rejection.code, headers=[*others, (_CHALLENGE, joined)])


_CHALLENGE: Final = b"www-authenticate"
