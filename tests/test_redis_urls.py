"""What a URL says of servers, and what is refused without repeating a password."""

import asyncio
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis_servers
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import (
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis_servers import Server

from asgi_context import KEEP, SharedState
from asgi_context.errors import StateUnavailableError
from asgi_context.redis import RedisStore
from asgi_context.redis._urls import Address

pytestmark = pytest.mark.anyio

SPACE = ("acme", "ann")
SECRET = "sEcr3t"


def pool_of(url: str, timeout: float = 5.0) -> Any:
    made = Address(url).client(timeout)
    assert isinstance(made, ConnectionPool)
    return made


def cluster_of(url: str) -> Any:
    made = Address(url).client(5.0)
    assert isinstance(made, RedisCluster)
    return made


# One server.


@pytest.mark.parametrize("scheme", ["redis", "valkey", "REDIS", "Valkey"])
def test_one_server(scheme: str) -> None:
    made = pool_of(f"{scheme}://ann:{SECRET}@db.example:7000/3")
    assert not isinstance(made, SentinelConnectionPool)
    assert not issubclass(made.connection_class, SSLConnection)
    given = made.connection_kwargs
    assert (given["host"], given["port"], given["db"]) == ("db.example", 7000, 3)
    assert (given["username"], given["password"]) == ("ann", SECRET)


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_one_server_with_tls(scheme: str) -> None:
    made = pool_of(f"{scheme}://db.example:7000/3")
    assert made.connection_class is SSLConnection
    connection = made.make_connection()
    assert (connection.host, connection.port, connection.db) == ("db.example", 7000, 3)


def test_what_a_url_does_not_say_is_as_redis_py_has_it() -> None:
    connection = pool_of("redis://").make_connection()
    assert (connection.host, connection.port, connection.db) == ("localhost", 6379, 0)
    assert connection.username is connection.password is None


def test_a_socket_of_this_machine() -> None:
    made = pool_of(f"unix://:{SECRET}@/run/a%20b.sock?db=3")
    assert made.connection_class is UnixDomainSocketConnection
    given = made.connection_kwargs
    assert (given["path"], given["db"], given["password"]) == ("/run/a b.sock", 3, SECRET)


@pytest.mark.parametrize(
    ("login", "user", "password"),
    [
        (":p%40ss%2F%3A%3F%23%5B%5D@", None, "p@ss/:?#[]"),
        ("b%C3%B6b:%E2%84%80@", "böb", "\u2100"),
        ("ann@", "ann", None),
        ("", None, None),
    ],
)
@pytest.mark.parametrize("form", ["redis://{}h/1", "redis+sentinel://{}h/main/1", "redis+cluster://{}h"])
def test_what_else_would_end_a_login_is_percent_encoded(
    form: str, login: str, user: str | None, password: str | None
) -> None:
    made = Address(form.format(login)).client(5.0)
    given = made.connection_kwargs
    assert (given.get("username"), given.get("password")) == (user, password)


def test_hosts_of_ipv6() -> None:
    given = pool_of("redis://[2001:db8::1]:7000/0").connection_kwargs
    assert (given["host"], given["port"]) == ("2001:db8::1", 7000)
    made = cluster_of("redis+cluster://[2001:db8::1]:7000,[2001:db8::2],db.example")
    assert places(made.startup_nodes) == [("2001:db8::1", 7000), ("2001:db8::2", 6379), ("db.example", 6379)]
    made = pool_of("redis+sentinel://[2001:db8::1]:7000,[2001:db8::2]/main")
    assert places_of_sentinels(made) == [("2001:db8::1", 7000), ("2001:db8::2", 26379)]


def places(nodes: Any) -> list[tuple[str, int]]:
    return [(node.host, node.port) for node in nodes]


def places_of_sentinels(pool: Any) -> list[tuple[str, int]]:
    connections = [sentinel.connection_pool.make_connection() for sentinel in pool.sentinel_manager.sentinels]
    return [(connection.host, connection.port) for connection in connections]


# Sentinel and Cluster.


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_sentinels_and_the_name_of_the_master_and_perhaps_a_database(scheme: str) -> None:
    made = pool_of(f"{scheme}+sentinel://ann:{SECRET}@one,two:7000,three/the%20main/3")
    assert isinstance(made, SentinelConnectionPool)
    assert made.connection_class is SentinelManagedConnection
    assert made.is_master
    assert made.service_name == "the main"
    assert places_of_sentinels(made) == [("one", 26379), ("two", 7000), ("three", 26379)]
    given = made.connection_kwargs
    assert (given["username"], given["password"], given["db"]) == ("ann", SECRET, 3)
    assert pool_of(f"{scheme}+sentinel://one/main").make_connection().db == 0
    assert pool_of(f"{scheme}+sentinel://one/main/").make_connection().db == 0


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_a_master_with_tls(scheme: str) -> None:
    made = pool_of(f"{scheme}+sentinel://one/main?ssl_ca_certs=/etc/ca.pem")
    assert made.connection_class is SentinelManagedSSLConnection
    assert made.make_connection().ca_certs == "/etc/ca.pem"


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_nodes_of_a_cluster(scheme: str) -> None:
    made = cluster_of(f"{scheme}+cluster://ann:{SECRET}@one,two:7000,three")
    assert places(made.startup_nodes) == [("one", 6379), ("two", 7000), ("three", 6379)]
    for node in made.startup_nodes:
        connection = node.acquire_connection()
        assert (connection.username, connection.password) == ("ann", SECRET)
        assert not isinstance(connection, SSLConnection)
    assert places(cluster_of(f"{scheme}+cluster://one:7000/").startup_nodes) == [("one", 7000)]


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_nodes_of_a_cluster_with_tls(scheme: str) -> None:
    made = cluster_of(f"{scheme}+cluster://one,two?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false")
    for node in made.startup_nodes:
        connection = node.acquire_connection()
        assert isinstance(connection, SSLConnection)
        assert connection.ca_certs == "/etc/ca.pem"
        assert connection.check_hostname is False


# Options in the query.


@pytest.mark.parametrize("form", ["rediss://h", "rediss+sentinel://h/main", "rediss+cluster://h"])
def test_options_that_redis_py_knows_are_passed_on(form: str) -> None:
    made: Any = Address(
        f"{form}?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/etc/me.pem&ssl_keyfile=/etc/me.key&client_name=my%20app"
        "&socket_connect_timeout=0.5&socket_keepalive=yes&health_check_interval=7"
    ).client(5.0)
    make: Any = made.startup_nodes[0].acquire_connection if isinstance(made, RedisCluster) else made.make_connection
    connection = make()
    assert connection.ca_certs == "/etc/ca.pem"
    assert (connection.certfile, connection.keyfile) == ("/etc/me.pem", "/etc/me.key")
    assert connection.client_name == "my app"
    assert connection.socket_connect_timeout == 0.5
    assert connection.socket_keepalive is True


def test_a_database_may_stand_in_the_query() -> None:
    assert pool_of("redis://h?db=3").connection_kwargs["db"] == 3
    assert pool_of("redis+sentinel://h/main?db=3").connection_kwargs["db"] == 3


@pytest.mark.parametrize(
    ("form", "connecting"),
    [
        ("redis://h", 4.0),
        ("unix:///run/a.sock", 4.0),
        ("redis+sentinel://h/main", 4.0),
        ("redis+cluster://h", 1.0),
    ],
)
def test_what_the_store_decides_by_itself_is_decided(form: str, connecting: float) -> None:
    made: Any = Address(form).client(4.0)
    given = made.connection_kwargs
    assert given["protocol"] == 2
    assert not given.get("decode_responses")
    assert given["socket_connect_timeout"] == connecting, "within the deadline of a call, if nothing else was said"
    retry = made.retry if isinstance(made, RedisCluster) else given["retry"]
    assert retry.get_retries() == 0, "what may be sent twice is known to the store alone"


@pytest.mark.parametrize("form", ["redis+sentinel://one,two/main", "redis+cluster://one,two"])
def test_who_is_asked_where_the_masters_are_has_a_part_of_the_deadline_only(form: str) -> None:
    made: Any = Address(form).client(4.0)
    if isinstance(made, RedisCluster):
        assert made.connection_kwargs["socket_timeout"] == 1.0
        return
    for sentinel in made.sentinel_manager.sentinels:
        given = sentinel.connection_pool.connection_kwargs
        assert given["socket_timeout"] == given["socket_connect_timeout"] == 1.0


# What is refused.

SCHEMES = [
    f"http://:{SECRET}@h",
    f"redis:/{SECRET}@h",
    SECRET,
    "",
    f"redis+{SECRET}://h",
    f"redis+sentinels://:{SECRET}@h/main",
    f"unix+cluster://:{SECRET}@h",
    f"unix+sentinel://:{SECRET}@h/main",
    f"+cluster://:{SECRET}@h",
    f"://:{SECRET}@h",
    f" redis://:{SECRET}@h",
]


@pytest.mark.parametrize("url", SCHEMES)
def test_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url must begin with redis://, ") as caught:
        RedisStore.from_url(url)
    assert_not_told(caught.value)


UNREADABLE = [
    f"redis://:{SECRET}@h:port/0",
    f"redis://:{SECRET}@h:99999/0",
    f"redis://:{SECRET}@h/abc",
    f"redis://:{SECRET}@h/1/2",
    f"redis://:{SECRET}@h/-1",
    f"redis://:{SECRET}@[::1/0",
    f"redis://:a[{SECRET}]b@h/0",
    f"redis://:{SECRET}\u2100@h/0",
    f"redis://:a/{SECRET}@h/0",
    f"redis://:a?{SECRET}@h:6379/0",
    f"redis://:a#{SECRET}@h:6379/0",
    f"redis://:{SECRET}@h?db=x",
    f"redis://:{SECRET}@h?{SECRET}=1",
    f"redis://:{SECRET}@h?ssl_ca_certs=/etc/ca.pem",
    f"redis+sentinel://:{SECRET}@h",
    f"redis+sentinel://:{SECRET}@h/",
    f"redis+sentinel://:{SECRET}@h/main/abc",
    f"redis+sentinel://:{SECRET}@h/main/1/2",
    f"redis+sentinel://:{SECRET}@/main",
    f"redis+sentinel://:{SECRET}@h:port/main",
    f"redis+sentinel://:{SECRET}@h,,g/main",
    f"redis+sentinel://:a/{SECRET}@h/main",
    f"redis+sentinel://:a[{SECRET}]b@h/main",
    f"redis+sentinel://:{SECRET}@h/main?{SECRET}=1",
    f"redis+sentinel://:{SECRET}@h/main?ssl_ca_certs=/etc/ca.pem",
    f"redis+cluster://:{SECRET}@",
    f"redis+cluster://:{SECRET}@:6379",
    f"redis+cluster://:{SECRET}@h,",
    f"redis+cluster://:{SECRET}@h:1,g:port",
    f"redis+cluster://:{SECRET}@h:99999",
    f"redis+cluster://:{SECRET}@[::1",
    f"redis+cluster://:{SECRET}@h/0",
    f"redis+cluster://:{SECRET}@h/main",
    f"redis+cluster://:a/{SECRET}@h",
    f"redis+cluster://:{SECRET}@h?db=3",
    f"redis+cluster://:{SECRET}@h?{SECRET}=1",
]


@pytest.mark.parametrize("url", UNREADABLE)
def test_what_cannot_be_read_is_refused_when_the_store_is_made(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url cannot be read: see RedisStore\.from_url") as caught:
        RedisStore.from_url(url)
    assert_not_told(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("decode_responses", "true"),
        ("encoding", "latin-1"),
        ("max_connections", "5"),
        ("protocol", "3"),
        ("retry_on_error", "a"),
        ("retry_on_timeout", "true"),
        ("socket_timeout", "5"),
    ],
)
@pytest.mark.parametrize("form", ["redis://:{}@h?", "redis+sentinel://:{}@h/main?", "unix://:{}@/run/a.sock?"])
def test_what_the_store_decides_by_itself_is_refused(form: str, option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^url must not set {option}, which the store decides by itself$") as caught:
        RedisStore.from_url(f"{form.format(SECRET)}{option}={value}")
    assert_not_told(caught.value)


@pytest.mark.parametrize("url", [None, b"redis://h", 1, Path("redis://h")])
def test_a_url_is_a_str(url: Any) -> None:
    with pytest.raises(TypeError, match=rf"^url must be a str, not {type(url).__qualname__}$"):
        RedisStore.from_url(url)


def assert_not_told(error: BaseException) -> None:
    """Nothing of the password is in the error, nor in what a log would show with it."""
    while error.__cause__ is not None:
        error = error.__cause__
    told = str(error) + repr(error) + "".join(traceback.format_exception_only(error))
    assert SECRET not in told
    assert error.__suppress_context__ or error.__context__ is None


def test_a_store_does_not_tell_its_url() -> None:
    store = RedisStore.from_url(f"redis://:{SECRET}@h", prefix="mine")
    assert repr(store) == "<RedisStore mine>"


# Real servers.


async def use(store: RedisStore) -> None:
    """All kinds of answers there are."""
    async with store:
        await store.erase("acme")
        assert await store.merge(SPACE, "s", {"f": b"1", "g": b'"x"'}, KEEP) is True
        assert await store.read(SPACE, "s") == {"f": b"1", "g": b'"x"'}
        assert await store.read(SPACE, "t") is None
        assert await store.read_field(SPACE, "s", "g") == b'"x"'
        assert await store.read_field(SPACE, "s", "h") is None
        fields, version = await store.read_version(SPACE, "s")
        assert fields == {"f": b"1", "g": b'"x"'}
        assert await store.replace_version(SPACE, "s", {"f": b"2"}, version)
        assert await store.increment(SPACE, "s", "f", 1) == 3
        assert await store.increment(SPACE, "s", "f", 0.5) == 3.5
        assert await store.touch(SPACE, "s", 100)
        assert 99 < (await store.remaining(SPACE, "s") or 0) <= 100
        assert await store.names(SPACE) == ["s"]
        assert await store.count(SPACE, "c", 2, 60) == (2, 60.0)
        assert await store.acquire(SPACE, "l", "me", 1, 60)
        assert await store.release(SPACE, "l", "me")
        assert await asyncio.gather(*(store.read_field(SPACE, "s", "f") for _ in range(20))) == [b"3.5"] * 20
        assert await store.erase("acme") == 1


@pytest.mark.parametrize("sliding", [False, True], ids=["", "sliding"])
@pytest.mark.parametrize("kind", ["redis", "valkey", "sentinel", "cluster"])
async def test_a_client_of_the_users_that_speaks_resp3_works(asyncio_only: None, kind: str, sliding: bool) -> None:
    servers = redis_servers.shared(kind)
    client: Any
    if kind == "cluster":
        client = RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", servers.servers[0].port)], protocol=3)
    elif kind == "sentinel":
        sentinel: Any = Sentinel([("127.0.0.1", one.port) for one in servers.sentinels])  # type: ignore[no-untyped-call]
        client = sentinel.master_for("main", protocol=3)
    else:
        client = Redis(port=servers.port, protocol=3)
    options: Any = {"default_ttl": 100, "sliding": True} if sliding else {}
    try:
        await use(RedisStore(client, prefix=f"resp3{kind}", **options))
        assert await client.ping(), "and it is left open"
    finally:
        await client.aclose()
        if kind == "sentinel":
            for one in sentinel.sentinels:
                await one.aclose()


async def test_a_url_of_valkey(asyncio_only: None) -> None:
    server = redis_servers.shared("valkey")
    await use(RedisStore.from_url(f"valkey://127.0.0.1:{server.port}/1", prefix="urls"))


async def test_the_database_of_the_url_is_the_one_that_is_written_to(asyncio_only: None) -> None:
    server = redis_servers.shared("redis")
    async with RedisStore.from_url(f"redis://127.0.0.1:{server.port}/5", prefix="urls5") as store:
        await store.merge(SPACE, "s", {"f": b"1"}, KEEP)
        with server.client() as client:
            assert not client.exists("urls5:{acme:ann}:s:s")
            client.select(5)
            assert client.exists("urls5:{acme:ann}:s:s")
        await store.erase("acme")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with a password, a user who may do what a store does, and a socket in its folder."""
    server = Server(requirepass=SECRET, user=f"ann on >{SECRET}2 ~mine:* +@all -@dangerous", unixsocket="the.sock")
    yield server
    server.close()


async def test_password_and_user_of_the_url(guarded: Server, asyncio_only: None) -> None:
    await use(RedisStore.from_url(guarded.url))
    await use(RedisStore.from_url(f"redis://ann:{SECRET}2@127.0.0.1:{guarded.port}", prefix="mine"))


async def test_a_socket_of_this_machine_works(guarded: Server, asyncio_only: None) -> None:
    await use(RedisStore.from_url(f"unix://:{SECRET}@{guarded.folder}/the.sock?db=1"))


@pytest.mark.parametrize("login", ["", ":wr0ngSEC@", "ann:wr0ngSEC@", "nobody:wr0ngSEC@"])
async def test_a_wrong_login_is_told_without_the_password(guarded: Server, asyncio_only: None, login: str) -> None:
    store = RedisStore.from_url(f"redis://{login}127.0.0.1:{guarded.port}")
    calls: list[Callable[[], Any]] = [
        store.open,
        lambda: store.read(SPACE, "s"),
        lambda: store.merge(SPACE, "s", {"f": b"1"}, KEEP),
    ]
    for call in calls:
        with pytest.raises(StateUnavailableError, match="correct them in the URL of the store") as caught:
            await call()
        assert "wr0ngSEC" not in "".join(traceback.format_exception(caught.value))
    await store.close()


async def test_a_url_of_one_node_of_a_cluster_is_an_error_that_says_so(asyncio_only: None) -> None:
    servers = redis_servers.shared("cluster")
    async with RedisStore.from_url(f"redis://127.0.0.1:{servers.servers[0].port}", prefix="urls") as store:
        with pytest.raises(StateUnavailableError, match=r"redis\+cluster://"):
            for number in range(100):
                await store.read(("acme", str(number)), "s")


async def test_a_url_of_a_cluster_at_a_server_that_is_none_is_an_error(asyncio_only: None) -> None:
    server = redis_servers.shared("redis")
    store = RedisStore.from_url(f"redis+cluster://127.0.0.1:{server.port}", timeout=2)
    with pytest.raises(StateUnavailableError):
        await store.open()
    await store.close()


async def test_a_name_that_the_sentinels_do_not_know_is_an_error(asyncio_only: None) -> None:
    store = RedisStore.from_url(redis_servers.shared("sentinel").url.replace("/main", "/other"), timeout=2)
    with pytest.raises(StateUnavailableError):
        await store.open()
    await store.close()


async def test_nobody_is_there(asyncio_only: None) -> None:
    for form in ("redis://127.0.0.1:{}", "redis+cluster://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/main"):
        store = RedisStore.from_url(form.format(redis_servers.free_port()), timeout=1)
        with pytest.raises(StateUnavailableError, match="see whether the server runs"):
            await store.open()
        await store.close()


async def test_an_ipv6_host(asyncio_only: None) -> None:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = Server(bind="127.0.0.1 ::1")
    try:
        await use(RedisStore.from_url(f"redis://[::1]:{server.port}/0"))
    finally:
        server.close()


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of an authority, and one that it has signed for 127.0.0.1; and another authority."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        try:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no openssl is on the path")

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        usage = ("-addext", "keyUsage=critical,keyCertSign")
        openssl(*new, "-subj", f"/CN={name}", *usage, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    with suppress(subprocess.TimeoutExpired):  # else it has ended by itself
        command = [redis_servers.binary("redis"), "--port", "0", "--tls-port", "0", "--unixsocket", "the.sock"]
        if subprocess.run(command, cwd=folder, capture_output=True, timeout=1, check=False).returncode:
            pytest.skip("this redis-server speaks no TLS")
    openssl(
        *new,
        *("-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"),
        *("-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "here.key", "-out", "here.pem"),
    )
    return folder


class TlsServer(Server):
    def __init__(self, certificates: Path, **options: Any) -> None:
        self.tls_port = redis_servers.free_port()
        files = {"cert_file": "here.pem", "key_file": "here.key", "ca_cert_file": "ca.pem"}
        options |= {f"tls_{name}": certificates / file for name, file in files.items()}
        super().__init__(tls_port=self.tls_port, **options)


@pytest.fixture(scope="module")
def tls(certificates: Path) -> Iterator[TlsServer]:
    server = TlsServer(certificates, tls_auth_clients="optional")
    yield server
    server.close()


async def test_tls_with_the_certificate_of_the_authority(
    certificates: Path, tls: TlsServer, asyncio_only: None
) -> None:
    url = f"rediss://127.0.0.1:{tls.tls_port}/0?ssl_ca_certs={certificates}/ca.pem"
    await use(RedisStore.from_url(url))
    await use(RedisStore.from_url(url.replace("rediss", "valkeys")))


async def test_tls_with_a_certificate_of_ones_own(certificates: Path, asyncio_only: None) -> None:
    server = TlsServer(certificates, tls_auth_clients="yes")
    try:
        url = f"rediss://127.0.0.1:{server.tls_port}/0?ssl_ca_certs={certificates}/ca.pem"
        await use(
            RedisStore.from_url(f"{url}&ssl_certfile={certificates}/here.pem&ssl_keyfile={certificates}/here.key")
        )
        store = RedisStore.from_url(url, timeout=2)
        with pytest.raises(StateUnavailableError):
            await store.open()
        await store.close()
    finally:
        server.close()


@pytest.mark.parametrize("query", ["?ssl_ca_certs={}/other.pem", ""])
async def test_a_server_whose_certificate_is_not_trusted_gets_nothing(
    certificates: Path, tls: TlsServer, asyncio_only: None, query: str
) -> None:
    store = RedisStore.from_url(f"rediss://127.0.0.1:{tls.tls_port}/0{query.format(certificates)}", timeout=2)
    with pytest.raises(StateUnavailableError, match="see whether the server runs, and whether the URL"):
        await store.open()
    await store.close()


async def test_what_is_no_tls_where_tls_is_spoken_and_the_other_way_round(
    certificates: Path, tls: TlsServer, asyncio_only: None
) -> None:
    for url in (
        f"redis://127.0.0.1:{tls.tls_port}",
        f"rediss://127.0.0.1:{tls.port}?ssl_ca_certs={certificates}/ca.pem",
    ):
        store = RedisStore.from_url(url, timeout=2)
        with pytest.raises(StateUnavailableError):
            await store.open()
        await store.close()


async def test_states_go_over_tls(certificates: Path, tls: TlsServer, asyncio_only: None) -> None:
    async with RedisStore.from_url(f"rediss://127.0.0.1:{tls.tls_port}/0?ssl_ca_certs={certificates}/ca.pem") as store:
        state = SharedState(store, "acme", "ann")
        await state.upsert("cart", {"items": ["book"]})
        assert await state.get("cart") == {"items": ["book"]}
        assert await store.erase("acme") == 1
