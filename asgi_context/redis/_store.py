"""The store itself."""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil, inf
from typing import Any, Final, Self, Unpack

from redis.asyncio import Redis, RedisCluster

from asgi_context._limits import StateLimits, check_ttl
from asgi_context._types import KEEP, Space, Ttl
from asgi_context.errors import (
    StateLimitError,
    StateNotConfirmedError,
    StateNumberError,
    StateUnavailableError,
    StoreNotSharedError,
    UnsupportedLoopError,
)
from asgi_context.redis import _scripts as scripts
from asgi_context.redis._answers import fields_of, flat
from asgi_context.redis._commands import Answer, told
from asgi_context.redis._erasing import clear, erase
from asgi_context.redis._keys import Keys
from asgi_context.redis._link import Link
from asgi_context.redis._options import StoreOptions, check_count, checked_client, checked_limits
from asgi_context.redis._scripts import Script
from asgi_context.redis._urls import Address

_GRACE: Final = 1.0  # seconds that a blocking call waits longer than the call itself may take
_FOREVER: Final = "none"
_KEPT: Final = "keep"
_MARGIN: Final = 3_600_000  # milliseconds that a registration may last longer than it must
_MOST_REGISTRATIONS: Final = 10
_GONE: Final = -2  # PTTL of what is not there


class RedisStore:
    """Keeps states in Redis or Valkey: on one server, behind Sentinel, or on a cluster.

    For one event loop at a time it holds a few connections, over which the commands of all tasks go together. It is
    opened with the app's lifespan, or on first use, and connects again by itself. Use it from threads and scripts by
    `SharedState.sync`.

    Args:
        client: of redis-py, asyncio, which must not decode answers. The store makes connections of its own by it, so
            that it may be used elsewhere too, on one event loop only; whoever made it closes it. See `from_url` for
            clients that the store makes.
        prefix: what the store's keys begin with: ASCII letters, digits and ``. _ - ~ @ : | + =``.
        default_ttl: time to live of new states, in seconds; ``None`` for no limit.
        sliding: whether a state that lives for as long as is the default starts anew when it is read. It is written for
            that at most once in half of its time.
        limits: how much may be held; ``states`` and ``total_bytes`` are for the server to limit (``maxmemory``).
        timeout: after how many seconds a call gives up.
        connections: how many, to each server. All calls for one tenant's user take the same one.
        durable: how many replicas must have a write before it returns (Redis, ``WAIT``). It makes losing a write in a
            failover unlikely, not impossible: a replica that has not got it may still become master.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot be.
    """

    def __init__(
        self,
        client: Redis | RedisCluster | Address,
        *,
        prefix: str = "asgi_context",
        default_ttl: float | None = None,
        sliding: bool = False,
        limits: StateLimits | None = None,
        timeout: float = 5.0,
        connections: int = 2,
        durable: int = 0,
    ) -> None:
        self._keys = Keys(prefix)
        if default_ttl is not None:
            check_ttl(default_ttl, "default_ttl")
        if not isinstance(sliding, bool):
            message = f"sliding must be a bool, not {type(sliding).__qualname__}"
            raise TypeError(message)
        if sliding and default_ttl is None:
            message = "sliding needs default_ttl, the time to live that starts anew"
            raise ValueError(message)
        check_ttl(timeout, "timeout")
        check_count(connections, "connections", 1)
        check_count(durable, "durable", 0)
        self._limits = checked_limits(limits)
        self._default = _FOREVER if default_ttl is None else _milliseconds(default_ttl)
        self._slides = sliding
        self._timeout = timeout
        self._connections = connections
        self._durable = durable
        self._client = client if isinstance(client, Address) else checked_client(client)
        self._made: StoreOptions = {
            "prefix": prefix,
            "default_ttl": default_ttl,
            "sliding": sliding,
            "limits": limits,
            "timeout": timeout,
            "connections": connections,
            "durable": durable,
        }
        self._links: dict[asyncio.AbstractEventLoop, Link] = {}

    @classmethod
    def from_url(cls, url: str, **options: Unpack[StoreOptions]) -> Self:
        """Make a store by the URL of its servers.

        Args:
            url: ``redis://user:password@host:6379/0``; ``rediss://`` for TLS; ``unix:///path``;
                ``redis+sentinel://host:26379,host:26379/master`` and ``redis+cluster://host:6379,host:6379``, also with
                ``rediss``. ``valkey`` and ``valkeys`` stand for ``redis`` and ``rediss``. Options that redis-py knows
                can stand in the query, such as ``?ssl_ca_certs=``.
            **options: those of `RedisStore`.

        Returns:
            The store. It connects when it is opened or first used, on each event loop by itself.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: an argument cannot be.
        """
        return cls(Address(url), **options)

    def __repr__(self) -> str:
        return f"<RedisStore {self._keys!r}>"

    def __reduce__(self) -> tuple[Callable[..., "RedisStore"], tuple[Any, ...]]:
        if not isinstance(self._client, Address):
            reason = "it was made with a client, whose connections are this process's own; make it by from_url"
            raise StoreNotSharedError(type(self).__qualname__, reason)
        return partial(type(self), **self._made), (self._client,)

    @property
    def deadline(self) -> float:
        """After how many seconds blocking calls give up: after the call itself does."""
        return self._timeout + _GRACE

    async def open(self) -> None:
        """Connect, so that what is wrong with the servers or the URL shows when the app starts.

        Raises:
            StateUnavailableError: no server answers, or it refuses.
        """
        await self._link().ping()

    async def close(self) -> None:
        """Wait for what is under way on this event loop, and close its connections. It can be used again after that."""
        link = self._links.pop(_running_loop(), None)
        if link is not None:
            await link.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def merge(self, space: Space, state: str, fields: Mapping[str, bytes], ttl: Ttl, /) -> bool:
        """Set fields of a state; see `Store`."""
        self._limits.check_values(fields)
        return bool(await self._write(scripts.MERGE, space, state, _lasting(ttl), self._limits.fields, *flat(fields)))

    async def replace(self, space: Space, state: str, fields: Mapping[str, bytes], ttl: Ttl, /) -> bool:
        """Set the fields of a state and remove all others; see `Store`."""
        self._check_fields(fields)
        return bool(await self._write(scripts.REPLACE, space, state, _lasting(ttl), *flat(fields)))

    async def read(self, space: Space, state: str, /) -> Mapping[str, bytes] | None:
        """Give all fields of a state; see `Store`."""
        if self._slides:
            fields = fields_of(await self._read_sliding(space, state))
        else:
            key = self._keys.state(space, state)
            fields = fields_of(await self._link().do("HGETALL", key, reads=True, whole=True))
        fields.pop("", None)
        return fields or None

    async def read_field(self, space: Space, state: str, field: str, /) -> bytes | None:
        """Give one field of a state; see `Store`."""
        if self._slides:
            sliding: bytes | None = await self._read_sliding(space, state, field)
            return sliding
        key = self._keys.state(space, state)
        found: bytes | None = await self._link().do("HGET", key, field, reads=True)
        return found

    async def read_version(self, space: Space, state: str, /) -> tuple[Mapping[str, bytes] | None, bytes]:
        """Give all fields of a state and its version; see `Store`."""
        key = self._keys.state(space, state)
        fields = fields_of(await self._link().do("HGETALL", key, reads=True, whole=True))
        version = fields.pop("", b"").removesuffix(b"s")
        return fields or None, version

    async def replace_version(self, space: Space, state: str, fields: Mapping[str, bytes], version: bytes, /) -> bool:
        """Set the fields of a state if it still has that version; see `Store`."""
        self._check_fields(fields)
        try:
            await self._write(scripts.REPLACE_VERSION, space, state, _KEPT, version, *flat(fields))
        except _ToldError:
            return False
        return True

    async def increment(self, space: Space, state: str, field: str, by: float, /) -> float:
        """Add to a number; see `Store`."""
        text = repr(by)
        try:
            total: bytes = await self._write(scripts.INCREMENT, space, state, _KEPT, self._limits.fields, field, text)
        except _ToldError as error:
            raise StateNumberError(state, field, "type" if error.what[1] == "type" else "overflow") from None
        return float(total) if b"." in total or b"e" in total else int(total)

    async def remove_field(self, space: Space, state: str, field: str, /) -> int:
        """Remove a field of a state; see `Store`."""
        return int(await self._run(scripts.REMOVE_FIELD, space, state, field, _version()))

    async def remove(self, space: Space, state: str, /) -> int:
        """Remove a state; see `Store`."""
        return int(await self._run(scripts.REMOVE, space, state))

    async def exists(self, space: Space, state: str, /) -> bool:
        """Say whether there is such a state; see `Store`."""
        key = self._keys.state(space, state)
        return bool(await self._link().do("EXISTS", key, reads=True))

    async def names(self, space: Space, /) -> list[str]:
        """Give the names of the space's states; see `Store`."""
        base = self._keys.of(space)
        index, states = f"{base}states", f"{base}s:"
        link = self._link()
        expires = link.expires()
        how = "ask" if link.names_keys else ""
        keys: list[str] = [index]
        while True:
            names: list[Any] = await link.run(
                scripts.NAMES, keys, [states, how], reads=True, whole=True, expires=expires
            )
            if told(names) is None:
                return [name.decode() for name in names]
            keys, how = [index, *(states + name.decode() for name in names[1:])], "told"

    async def clear(self, space: Space, /) -> int:
        """Remove all states of the space, at most 1,000 at one moment; see `Store`."""
        base = self._keys.of(space)
        return await clear(self._link(), f"{base}states", f"{base}s:")

    async def touch(self, space: Space, state: str, ttl: float | None, /) -> bool:
        """Set the time to live of a state; see `Store`."""
        return bool(await self._registered(space, scripts.TOUCH, "states", f"s:{state}", [state, _lasting(ttl)]))

    async def remaining(self, space: Space, state: str, /) -> float | None:
        """Give the seconds that a state has to live; see `Store`."""
        key = self._keys.state(space, state)
        left = await self._link().do("PTTL", key, reads=True)
        if left == _GONE:
            return None
        return inf if left < 0 else left / 1000

    async def erase(self, tenant: str, /) -> int:
        """Remove everything of a tenant, in steps of at most 1,000 states; see `Store`.

        What was there before is gone. Who writes meanwhile registers anew, and may leave something; for a minute there
        remain indexes, otherwise empty, that see to it. Where a failover has lost writes, it may have lost
        registrations: what such a user has is not found (``durable`` makes that unlikely).
        """
        return await erase(self._link(), self._keys, tenant)

    async def count(self, space: Space, counter: str, by: int, window: float, /) -> tuple[int, float]:
        """Add to a counter; see `Store`."""
        check_ttl(window, "window")
        name = f"c:{counter}"
        total, left = await self._registered(space, scripts.COUNT, "limits", name, [name, by, _milliseconds(window)])
        return int(total), left / 1000

    async def acquire(self, space: Space, lease: str, holder: str, most: int, ttl: float, /) -> bool:
        """Take, or renew, one of a number of leases; see `Store`."""
        check_ttl(ttl, "ttl")
        name = f"l:{lease}"
        arguments = name, holder, most, _milliseconds(ttl)
        return bool(await self._registered(space, scripts.ACQUIRE, "limits", name, arguments))

    async def release(self, space: Space, lease: str, holder: str, /) -> bool:
        """Give a lease back; see `Store`."""
        base = self._keys.of(space)
        name = f"l:{lease}"
        return bool(await self._link().run(scripts.RELEASE, [base + name, f"{base}limits"], [name, holder]))

    def _link(self) -> Link:
        loop = _running_loop()
        link = self._links.get(loop)
        if link is None:
            for other in [other for other in list(self._links) if other.is_closed()]:
                self._links.pop(other, None)  # it was ended without a close, and its connections with it
            own = isinstance(self._client, Address)
            if not own and self._links:
                message = "the client that the store was made with belongs to another event loop: use from_url"
                raise StateUnavailableError(message)
            client = self._client.client(self._timeout) if isinstance(self._client, Address) else self._client
            # No other thread makes one for this loop, so that nothing must be locked, and a fork finds nothing locked.
            link = self._links[loop] = Link(
                client, own=own, connections=self._connections, timeout=self._timeout, durable=self._durable
            )
        return link

    def _check_fields(self, fields: Mapping[str, bytes]) -> None:
        self._limits.check_values(fields)
        if len(fields) > self._limits.fields:
            raise StateLimitError("fields", self._limits.fields)

    async def _run(self, script: Script, space: Space, state: str, *arguments: str | bytes | int) -> Answer:
        base = self._keys.of(space)
        return await self._link().run(script, [f"{base}s:{state}", f"{base}states"], [state, *arguments])

    async def _write(
        self, script: Script, space: Space, state: str, ttl: str | int, *arguments: str | bytes | int
    ) -> Answer:
        arguments = state, _version(), ttl, self._default, self._limits.user_states, *arguments
        return await self._registered(space, script, "states", f"s:{state}", arguments)

    async def _read_sliding(self, space: Space, state: str, *field: str) -> Answer:
        arguments = state, self._default, *field
        return await self._registered(
            space, scripts.READ_SLIDING, "states", f"s:{state}", arguments, reads=True, whole=not field
        )

    async def _registered(
        self,
        space: Space,
        script: Script,
        index: str,
        name: str,
        arguments: Sequence[str | bytes | int],
        *,
        reads: bool = False,
        whole: bool = False,
    ) -> Answer:
        base = self._keys.of(space)
        keys = [base + name, base + index]
        link = self._link()
        expires = link.expires()
        registered = ""
        for _ in range(_MOST_REGISTRATIONS):
            answer = await link.run(script, keys, [registered, *arguments], reads=reads, whole=whole, expires=expires)
            what = told(answer)
            if what is None:
                return answer
            if what[0] == "limit":
                raise StateLimitError(what[1], getattr(self._limits, what[1]))
            if what[0] != "register":
                raise _ToldError(what)
            # Before it is written, so that nothing is ever there that erase would not find. What was erased since then
            # is seen by the script, which asks to register again.
            registered = what[1]
            tenant, user = space
            who = [user or "", registered.partition(" ")[0], 1 + secrets.randbelow(_MARGIN)]
            until = link.halfway(expires) if reads else expires  # a read must still be done without it
            try:
                await link.run(scripts.REGISTER, [self._keys.users(tenant)], who, again=True, expires=until)
            except StateNotConfirmedError:
                pass  # the write itself will say so
            except StateUnavailableError:
                if not reads:
                    raise
                registered = "-"  # then it is read without beginning a new life
        message = "the tenant is being erased again and again; try again later"
        raise StateUnavailableError(message)


class _ToldError(Exception):
    """A script has done nothing, and says why."""

    def __init__(self, what: tuple[str, str]) -> None:
        super().__init__(*what)
        self.what = what


def _version() -> int:
    return secrets.randbits(62)  # of no generator that an app could seed


def _milliseconds(seconds: float) -> int:
    return ceil(seconds * 1000)


def _lasting(ttl: Ttl) -> str | int:
    if ttl is KEEP:
        return _KEPT
    return _FOREVER if ttl is None else _milliseconds(ttl)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UnsupportedLoopError("RedisStore") from None
