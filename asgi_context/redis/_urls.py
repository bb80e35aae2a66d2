"""What a URL says of servers."""

import re
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from redis.asyncio import ConnectionPool, RedisCluster, Sentinel, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from asgi_context.redis._servers import Client

_ONE: Final = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
_PORTS: Final = {"cluster": 6379, "sentinel": 26379}
_DECIDED: Final = (
    "decode_responses",
    "encoding",
    "max_connections",
    "protocol",
    "retry",
    "retry_on_error",
    "retry_on_timeout",
    "socket_timeout",
)
_DATABASE: Final = re.compile(r"/?[0-9]*/?")


class _Sentinels(Sentinel):
    """Sentinels, all of which are asked each time.

    redis-py puts the one that answers at the head of its list, and where two look at once, one may fall out of it.
    """

    def __init__(self, hosts: list[tuple[str, int]], **options: Any) -> None:  # noqa: ANN401 - as there
        cast("Any", super()).__init__(hosts, **options)
        self.known: list[Any] = list(cast("Any", self).sentinels)

    async def discover_master(self, service_name: str) -> Any:  # noqa: ANN401 - as there
        self.sentinels = list(self.known)
        return await cast("Any", super()).discover_master(service_name)


class Address:
    """Where the servers are, out of a URL.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://`` as redis-py has them; ``redis+cluster://`` and
            ``rediss+cluster://`` with one or more ``host:port``, between commas; ``redis+sentinel://`` and
            ``rediss+sentinel://`` with the same of Sentinels; its path is the name of the master, perhaps a database.
            ``valkey`` and ``valkeys`` stand for ``redis`` and ``rediss``.

    Raises:
        TypeError: it is no str.
        ValueError: it is none of these, or says what the store itself decides.
    """

    def __init__(self, url: str) -> None:
        if not isinstance(url, str):
            message = f"url must be a str, not {type(url).__qualname__}"
            raise TypeError(message)
        scheme, separator, rest = url.partition("://")
        scheme, _, self._kind = scheme.lower().partition("+")
        if not separator or scheme not in _ONE or (self._kind and (self._kind not in _PORTS or scheme == "unix")):
            # Not repeated: there may be a password in it.
            message = (
                "url must begin with redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, "
                "redis+cluster:// or rediss+cluster://"
            )
            raise ValueError(message)
        self._hosts: list[tuple[str, int]] = []
        self._service = ""
        try:
            self._options = self._read(f"{_ONE[scheme]}://{rest}")
            self._try()
        except (ValueError, TypeError, RedisError, RedisClusterException):
            # Without their texts, which repeat parts of what was given.
            message = "url cannot be read: see RedisStore.from_url for its form, and redis-py for its options"
            raise ValueError(message) from None
        for option in _DECIDED:
            if option in self._options:
                message = f"url must not set {option}, which the store decides by itself"
                raise ValueError(message)

    def _read(self, url: str) -> dict[str, Any]:
        parts = urlsplit(url)
        if self._kind:
            login, at, places = parts.netloc.rpartition("@")
            self._hosts = [_place(place, _PORTS[self._kind]) for place in places.split(",")]
            service, _, database = parts.path.strip("/").partition("/")
            self._service = unquote(service)
            if bool(service) is (self._kind == "cluster"):  # it is the name of a master, and a cluster has none
                raise ValueError
            parts = parts._replace(netloc=f"{login}{at}{places.split(',')[0]}", path=f"/{database}")
        if parts.scheme != "unix" and not _DATABASE.fullmatch(parts.path):
            raise ValueError
        return dict(parse_url(urlunsplit(parts)))

    def _try(self) -> None:
        """Make a client once, so that what redis-py does not take is found now."""
        made: Any = self.client(1.0)
        if isinstance(made, ConnectionPool):
            cast("Any", made).make_connection()

    def client(self, timeout: float) -> Client:
        """Make a client; it connects to nothing yet.

        Args:
            timeout: the deadline of a call, in seconds.

        Returns:
            The client.
        """
        # No retries below: what may be done twice is known here alone. Protocol 2, since under 3 redis-py lets a
        # connection be used again on which an answer is still to come.
        retry = Retry(NoBackoff(), 0)
        options: dict[str, Any] = {**self._options, "protocol": 2, "socket_timeout": None, "retry": retry}
        options.setdefault("socket_connect_timeout", timeout)
        if not self._kind:
            return ConnectionPool(**options)
        options.pop("host", None)
        options.pop("port", None)
        options["ssl"] = options.pop("connection_class", None) is SSLConnection
        # What asks where the masters are must come to an end well before the call does.
        asking = timeout / 4
        login = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        if self._kind == "cluster":
            options["socket_connect_timeout"] = self._options.get("socket_connect_timeout", asking)
            options |= {"socket_timeout": asking, "startup_nodes": [ClusterNode(*host) for host in self._hosts]}
            return RedisCluster(**options)
        options_of_sentinels = {
            **{name: value for name, value in options.items() if name.startswith("ssl")},
            **login,
            "protocol": 2,
            "socket_timeout": asking,
            "socket_connect_timeout": asking,
            "retry": retry,
        }
        sentinel: Any = cast("Any", _Sentinels)(self._hosts, sentinel_kwargs=options_of_sentinels)
        pool: ConnectionPool = sentinel.master_for(self._service, **options).connection_pool
        return pool


async def close(client: Client) -> None:
    """Close a client that was made here.

    Args:
        client: the client.
    """
    if isinstance(client, RedisCluster):
        # Its own method does nothing where the slots were asked for without it.
        await client.nodes_manager.aclose()
        await client.nodes_manager.aclose("startup_nodes")
        return
    await client.aclose()
    if isinstance(client, SentinelConnectionPool):
        for sentinel in cast("Any", client).sentinel_manager.known:
            await sentinel.aclose()


def _place(place: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or port
