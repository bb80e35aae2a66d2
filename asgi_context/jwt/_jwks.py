"""Key sets that an issuer publishes (RFC 7517, section 5), fetched when they are needed and kept for a while."""

import asyncio
import importlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from functools import partial
from math import ceil
from threading import Lock
from typing import Any, Final, NamedTuple, TypeAlias, cast
from urllib.parse import urlsplit

from asgi_context.errors import RequestRejected, UnsupportedLoopError
from asgi_context.jwt._keys import Check, KeyRing, VerificationKey, check_algorithms, import_key
from asgi_context.jwt._refused import TokenRefusedError, UnknownKeyError
from asgi_context.jwt._token import read_object

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]
"""Takes the URL and gives the body of the answer, or raises."""

_log = logging.getLogger("asgi_context")
_OK: Final = 200
_MOST_MEMBERS: Final = 2000  # objects and arrays in a key set
_AHEAD: Final = 0.8  # of the time to live; then a refresh begins that nobody waits for
_GRACE: Final = 1.0  # seconds, beyond the time that an attempt may take
_LONGEST_PAUSE: Final = 300.0  # seconds, between two attempts that fail


class _Flight(NamedTuple):
    """An attempt, and the loop that it is made on."""

    loop: asyncio.AbstractEventLoop
    task: "asyncio.Task[None]"
    landed: "Future[None]"


class JWKSClient:
    """The keys of an issuer, from its JWKS URL.

    They are fetched once however many ask at the same time, and a client that hangs up does not cancel that. Where the
    issuer cannot be reached, the keys that are there are used for a while longer; without any, requests are answered
    with 503 and ``Retry-After``. Whatever an answer of the issuer holds that must not be there (a shared secret, two
    keys of one name, more than ``max_keys``, repeated members) makes it a failed attempt, which is logged; so does an
    answer without any key that can be used.

    Args:
        url: where the key set is, ``https``.
        fetch: fetches the body, in place of httpx (or httpx2): takes the URL and may raise whatever it likes.
        algorithms: which algorithms are allowed; ``None`` for all that the keys are for.
        ttl: how long a key set is used, in seconds; a new one is fetched ahead of its end.
        stale: how much longer it is used while the issuer cannot be reached, in seconds.
        cooldown: the least time between two attempts, in seconds; doubled with each that fails, up to 5 minutes. A
            token that names an unknown key has the keys fetched, but no more often than this.
        timeout: how long an attempt may take, in seconds.
        max_bytes: the longest body.
        max_keys: the most keys in it.
        allow_http: whether the URL may be ``http``, for tests and for a sidecar on the same machine.
        clock: gives the time in seconds, and never goes back.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the URL is not ``https``, or a number is not positive.
    """

    def __init__(
        self,
        url: str,
        *,
        fetch: Fetch | None = None,
        algorithms: str | Collection[str] | None = None,
        ttl: float = 600,
        stale: float = 3600,
        cooldown: float = 10,
        timeout: float = 5,
        max_bytes: int = 256 * 1024,
        max_keys: int = 100,
        allow_http: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if type(url) is not str:
            message = f"url must be a str, not {type(url).__qualname__}"
            raise TypeError(message)
        parts = urlsplit(url)
        if parts.scheme not in ({"https", "http"} if allow_http else {"https"}) or not parts.hostname or "@" in url:
            raise ValueError("url must be an https URL, without user and password; allow_http=True is for tests")
        for option, hook in (("fetch", fetch), ("clock", clock)):
            if hook is not None and not callable(hook):
                message = f"{option} must be callable, not {type(hook).__qualname__}"
                raise TypeError(message)
        positive = {"ttl": ttl, "cooldown": cooldown, "timeout": timeout, "max_bytes": max_bytes, "max_keys": max_keys}
        for option, value in positive.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                message = f"{option} must be a number, not {type(value).__qualname__}"
                raise TypeError(message)
            if not 0 < value < float("inf"):
                message = f"{option} must be more than 0, and finite, not {value!r}"
                raise ValueError(message)
        if isinstance(stale, bool) or not isinstance(stale, int | float):
            message = f"stale must be a number, not {type(stale).__qualname__}"
            raise TypeError(message)
        if not 0 <= stale < float("inf"):
            message = f"stale must be at least 0, and finite, not {stale!r}"
            raise ValueError(message)
        self.url = url
        self.generation = 0
        """Counts how often a key has gone."""
        self.due = 0.0
        """When the keys should be looked after again, by the clock."""
        self._fetch = fetch
        self._algorithms = check_algorithms(algorithms)
        self._ttl, self._stale, self._cooldown, self._timeout = ttl, stale, cooldown, timeout
        self._max_bytes, self._max_keys = max_bytes, max_keys
        self.clock = clock
        self._http: Any = _http() if fetch is None else None
        self._tls: Any = None
        self._ring: KeyRing | None = None
        self._fetched = 0.0
        self._next = float("-inf")  # the earliest time of the next attempt
        self._failures = 0
        self._flight: _Flight | None = None
        self._lock = Lock()  # of the flight: several event loops may ask at once

    def __repr__(self) -> str:
        return f"JWKSClient({self.url!r})"

    async def open(self) -> None:
        """Begin to fetch the keys, but do not wait: an issuer that is down must not keep the app from starting."""
        self._start(self.clock())

    async def close(self) -> None:
        """End what is being fetched; the keys are kept."""
        loop = _running_loop()
        with self._lock:
            flight, self._flight = self._flight, None
        if flight is None or flight.landed.done():
            return
        if flight.loop is loop:
            flight.task.cancel()
        elif flight.loop.is_running():
            flight.loop.call_soon_threadsafe(flight.task.cancel)
        else:
            return  # it ended with its loop
        await self._wait_for(flight.landed)

    async def find(self, key_id: str | None, algorithm: str) -> Check:
        """Find the key of a token, for `JWTAuth`, which turns what it raises into a refusal.

        Args:
            key_id: how the token calls it; ``None`` where it does not.
            algorithm: the algorithm that the token names.

        Returns:
            How its signature is checked.

        Raises:
            asgi_context.jwt._refused.TokenRefusedError: there is no such key, or it is for other algorithms.
            RequestRejected: the keys cannot be had (503).
        """
        ring = await self.keys()
        try:
            return ring.find(key_id, algorithm)
        except UnknownKeyError:
            if not await self._attempt(self.clock()):
                raise
            return (await self.keys()).find(key_id, algorithm)

    async def keys(self) -> KeyRing:
        """Give the keys, fetched if need be.

        Returns:
            They.

        Raises:
            RequestRejected: they cannot be had (503).
        """
        now = self.clock()
        age = now - self._fetched
        if self._ring is None or age >= self._ttl + self._stale or (age >= self._ttl and not self._failures):
            await self._attempt(now)
            now = self.clock()
        elif now >= self.due:
            self._start(now)
        if self._ring is not None and now >= self._fetched + self._ttl + self._stale:
            self._ring = None
            self.generation += 1
        if self._ring is None:
            wait = max(1, ceil(max(0, self._next - now)))
            raise RequestRejected(503, "keys_unavailable", headers=[("retry-after", str(wait))])
        return self._ring

    async def _attempt(self, now: float) -> bool:
        flight = self._start(now)
        if flight is None:
            return False
        await self._wait_for(flight)
        return True

    async def _wait_for(self, landed: "Future[None]") -> None:
        # Not for the task itself: a client that hangs up would cancel it for all that wait, and they may be on other
        # loops. Not for ever either: its loop may stop, and a fetch of the user's may not let itself be cancelled.
        await asyncio.wait({asyncio.wrap_future(landed)}, timeout=self._timeout + _GRACE)

    def _start(self, now: float) -> "Future[None] | None":
        loop = _running_loop()
        with self._lock:
            flight = self._flight
            if flight is not None and not flight.landed.done():
                if flight.loop.is_running():
                    return flight.landed
                self._next = float("-inf")  # it ended with its loop: nobody has failed
            if now < self._next:
                return None
            self._next = now + self._cooldown
            self.due = min(self._next, self._fetched + self._ttl + self._stale)
            landed: Future[None] = Future()
            # In a Context of its own: it is nobody's, and must not hold what the first who asks has bound.
            nobodys = Context()
            task = loop.create_task(self._refresh(), context=nobodys)
            task.add_done_callback(partial(self._land, landed), context=nobodys)
            self._flight = _Flight(loop, task, landed)
            return landed

    def _land(self, landed: "Future[None]", task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            self._next = float("-inf")  # the app ends: nobody has failed
        landed.set_result(None)

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                body = await (self._fetch or self._get)(self.url)
            ring = self._read(body)
        except (Exception, asyncio.CancelledError) as error:
            if (
                isinstance(error, asyncio.CancelledError)
                and cast("asyncio.Task[None]", asyncio.current_task()).cancelling()
            ):
                raise
            self._failures += 1
            now = self.clock()
            pause = min(self._cooldown * 2 ** min(self._failures - 1, 16), max(_LONGEST_PAUSE, self._cooldown))
            self._next = now + pause
            self.due = min(self._next, self._fetched + self._ttl + self._stale)  # tokens that are known end with them
            reason = error.reason if isinstance(error, TokenRefusedError) else f"{type(error).__name__}"
            _log.warning("the keys of %s could not be fetched: %s", urlsplit(self.url).hostname, reason)
            return
        self._failures = 0
        self._fetched = self.clock()
        self.due = self._fetched + self._ttl * _AHEAD
        if self._ring is not None and not self._ring.materials <= ring.materials:
            self.generation += 1
        self._ring = ring

    async def _get(self, url: str) -> bytes:
        if self._tls is None:
            self._tls = self._http.create_ssl_context()  # once, since reading all certificates takes long
        body = bytearray()
        # A client for each: kept from one fetch to the next, it would have to be closed where there is no lifespan.
        # Without compression: a small answer could become a large one.
        headers = {"accept-encoding": "identity"}
        async with (
            self._http.AsyncClient(timeout=self._timeout, verify=self._tls, follow_redirects=False) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            if answer.status_code != _OK:
                raise TokenRefusedError(f"the answer has the status {answer.status_code}")  # noqa: EM102 - a number
            async for part in answer.aiter_raw():
                body += part
                if len(body) > self._max_bytes:
                    break
        return bytes(body)

    def _read(self, body: bytes) -> KeyRing:
        if len(body) > self._max_bytes:
            raise TokenRefusedError("the answer is too large")
        entries = read_object(body, "the key set", most=_MOST_MEMBERS).get("keys")
        if type(entries) is not list:
            raise TokenRefusedError("the answer is no key set")
        keys: list[Any] = entries  # pyright: ignore[reportUnknownVariableType]
        if len(keys) > self._max_keys:
            raise TokenRefusedError("the answer has too many keys")
        usable: list[VerificationKey] = []
        names: set[str] = set()
        for data in map(_checked, keys):
            name = data.get("kid")
            if name in names:
                raise TokenRefusedError("two keys have the same kid")
            if name is not None:
                names.add(name)
            try:
                usable.append(import_key(data, self._algorithms))
            except ValueError as error:
                # RFC 7517, section 5: what is not understood is ignored; keys for encryption are not for us.
                _log.debug("a key of %s is not used: %s", urlsplit(self.url).hostname, error)
        if not usable:
            raise TokenRefusedError("no key of it can be used")
        return KeyRing(usable)


def _checked(entry: object) -> dict[str, Any]:
    if type(entry) is not dict:
        raise TokenRefusedError("a key is no JSON object")
    data = cast("dict[str, Any]", entry)
    if data.get("kty") == "oct":
        raise TokenRefusedError("a secret stands where everybody can read it")
    if type(data.get("kid", "")) is not str:
        raise TokenRefusedError("a kid is no string")
    return data


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UnsupportedLoopError("fetching the keys of tokens") from None


def _http() -> Any:  # noqa: ANN401 - whichever is installed
    for name in ("httpx", "httpx2"):
        with suppress(ImportError):
            return importlib.import_module(name)
    raise ImportError("fetching keys needs httpx: install asgi-tenant-context[jwt], or give fetch=")
