"""Real servers, in threads or in processes of their own, and a client that speaks to them in bytes."""

import asyncio
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import h11
import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn
import uvloop

App = Callable[..., Awaitable[None]]

PATIENCE = 15.0
"""Seconds after which whatever is waited for counts as hanging."""
LONG_PATIENCE = 60.0
"""The same, of processes that start and of crowds, which on a busy machine take their time."""


class Kind:
    """What servers of a kind are, and can."""

    row: ClassVar[str]
    """Of the matrix."""
    distributions: ClassVar[tuple[str, ...]]
    """What they are made of."""
    http2: ClassVar[bool] = False
    """Whether HTTP/2 is what is spoken with them, by prior knowledge (RFC 9113, section 3.3)."""
    websockets_over_http2: ClassVar[bool] = False
    """Whether so are WebSockets (RFC 8441)."""
    denies_websockets: ClassVar[bool] = True
    """Whether they offer the denial response."""
    streams_requests: ClassVar[bool] = True
    """Whether the app is called before a body has come as a whole."""
    has_lifespan: ClassVar[bool] = True
    warnings: ClassVar[tuple[str, ...]] = ()
    """Filters for those that they give by themselves."""


def parameters(kinds: Iterable[type[Kind]]) -> list[Any]:
    """Kinds as parameters of tests, which are then of their rows of the matrix."""
    return [pytest.param(kind, marks=_marks(kind), id=kind.row.replace(", ", "-")) for kind in kinds]


def named_parameters(kinds: Mapping[str, type[Kind]]) -> list[Any]:
    """The same of their names."""
    return [pytest.param(name, marks=_marks(kind), id=name) for name, kind in kinds.items()]


def _marks(kind: type[Kind]) -> list[pytest.MarkDecorator]:
    warned = [pytest.mark.filterwarnings(each) for each in kind.warnings]
    return [pytest.mark.matrix(kind.row, *kind.distributions), *warned]


class ServerThread(Kind, ABC):
    """A server that runs from `start` to `stop`; both wait for it, by events."""

    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None

    def __init__(self, app: App, *, lifespan: bool = False) -> None:
        self.app = app
        self.lifespan = lifespan
        self.started = False
        self.failure: BaseException | None = None
        self._stopped = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._settled = threading.Event()
        # A daemon, so that a server that hangs fails its test and not the whole run.
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    @abstractmethod
    async def _serve(self) -> None: ...

    @abstractmethod
    def _tell(self) -> None: ...

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self.loop_factory) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - SystemExit is how uvicorn gives up
            self.failure = error
        finally:
            self._listener.close()
            self._settled.set()

    def _announce(self) -> None:
        self.started = True
        self._settled.set()

    def start(self) -> None:
        """Return once it accepts connections, or has given up."""
        self._thread.start()
        assert self._settled.wait(PATIENCE), "the server neither starts nor fails"

    def stop(self) -> None:
        if self.started and not self._stopped:
            self._stopped = True
            self._tell()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server does not stop"
        assert self.failure is None or not self.started


class _AnnouncingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert self.started
        self._announce()


class Uvicorn(ServerThread):
    row = "uvicorn, asyncio, h11, wsproto"
    distributions = ("uvicorn", "h11", "wsproto")
    http = "h11"
    ws = "wsproto"
    grace = 5
    """Seconds that handlers get to end in when the server stops."""

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self.app,
            http=self.http,
            ws=self.ws,
            lifespan="auto" if self.lifespan else "off",  # the default: what is raised does not stop it
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=self.grace,
        )
        self._server = _AnnouncingServer(config, self._announce)
        await self._server.serve(sockets=[self._listener])

    def _tell(self) -> None:
        self._server.should_exit = True


class UvicornHttptools(Uvicorn):
    row = "uvicorn, asyncio, httptools, websockets-sansio"
    distributions = ("uvicorn", "httptools", "websockets")
    http = "httptools"
    ws = "websockets-sansio"


class UvicornUvloop(Uvicorn):
    row = "uvicorn, uvloop, h11, wsproto"
    distributions = ("uvicorn", "uvloop", "h11", "wsproto")
    loop_factory = staticmethod(uvloop.new_event_loop)


class UvicornHttptoolsUvloop(UvicornHttptools):
    row = "uvicorn, uvloop, httptools, websockets-sansio"
    distributions = ("uvicorn", "uvloop", "httptools", "websockets")
    loop_factory = staticmethod(uvloop.new_event_loop)


class UvicornWebsockets(Uvicorn):
    """With its older implementation over websockets, which warns that it will go."""

    row = "uvicorn, asyncio, h11, websockets"
    distributions = ("uvicorn", "h11", "websockets")
    ws = "websockets"

    warnings = (
        "ignore:The `websockets` implementation is deprecated:uvicorn.config.UvicornDeprecationWarning",
        "ignore:websockets.legacy is deprecated:DeprecationWarning",
        "ignore:remove second argument of ws_handler:DeprecationWarning",
    )


class UvicornHttptoolsWebsocketsUvloop(UvicornWebsockets):
    row = "uvicorn, uvloop, httptools, websockets"
    distributions = ("uvicorn", "uvloop", "httptools", "websockets")
    http = "httptools"
    loop_factory = staticmethod(uvloop.new_event_loop)


class _ListeningConfig(hypercorn.config.Config):
    listener: socket.socket

    def create_sockets(self) -> hypercorn.config.Sockets:
        return hypercorn.config.Sockets([], [self.listener], [])


class Hypercorn(ServerThread):
    row = "hypercorn, HTTP/1.1"
    distributions = ("hypercorn", "h11", "wsproto")
    access_log: logging.Logger | None = None

    async def _serve(self) -> None:
        config = _ListeningConfig()
        config.listener = self._listener
        config.accesslog = self.access_log
        config.errorlog = logging.getLogger("hypercorn.error")
        config.graceful_timeout = 5
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()
        # It has no switch for the lifespan, but goes on without it where the app raises.
        app = self.app if self.lifespan else _without_lifespan(self.app)
        await hypercorn.asyncio.serve(app, config, shutdown_trigger=self._until_told, mode="asgi")

    async def _until_told(self) -> None:
        self._announce()  # it begins to wait for its end once it listens
        await self._told.wait()

    def _tell(self) -> None:
        self._loop.call_soon_threadsafe(self._told.set)


class HypercornHTTP2(Hypercorn):
    row = "hypercorn, HTTP/2"
    distributions = ("hypercorn", "h2", "wsproto")
    http2 = websockets_over_http2 = True


def _without_lifespan(app: App) -> App:
    async def called(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await app(scope, receive, send)

    return called


UVICORN_ON_ASYNCIO: dict[str, type[ServerThread]] = {
    "uvicorn-h11": Uvicorn,
    "uvicorn-httptools": UvicornHttptools,
}
UVICORN: dict[str, type[ServerThread]] = {
    **UVICORN_ON_ASYNCIO,
    "uvicorn-h11-uvloop": UvicornUvloop,
    "uvicorn-httptools-uvloop": UvicornHttptoolsUvloop,
}
SERVERS: dict[str, type[ServerThread]] = {**UVICORN, "hypercorn": Hypercorn}


class ServerProcess(Kind):
    """A server that is started by its command, with the app of `server_app`.

    Args:
        log: the file that the app tells of its lifespan in; what the server prints goes next to it.
        redis: the address of a Redis for the app's state; without one it is in memory.
    """

    workers: ClassVar[int] = 1

    def __init__(self, log: Path, redis: str | None = None) -> None:
        self.port = _free_port()
        here = Path(__file__).parent
        paths = [str(here.parents[1]), str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "SERVER_APP_LOG": str(log)}
        if redis is not None:
            environment["SERVER_APP_REDIS"] = redis
        with log.with_suffix(".output").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.command(self.port)],
                cwd=log.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that those which it starts can be ended with it
            )

    def command(self, port: int) -> list[str]:
        """What is said to Python."""
        raise NotImplementedError

    def until_started(self) -> None:
        """Wait until it answers."""
        until = time.monotonic() + LONG_PATIENCE
        while True:
            assert self._process.poll() is None, f"it has ended with {self._process.returncode}"
            assert time.monotonic() < until, "it does not start"
            with suppress(OSError), Wire(self.port) as wire:
                assert wire.ask(request(target=b"/left")).status == 200
                return
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as its supervisor would, and wait until it has."""
        self._process.terminate()
        try:
            self._process.wait(LONG_PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # whatever is left
            self._process.wait(LONG_PATIENCE)


def _free_port() -> int:
    """One that the system gives to nobody who asks for any: what needs a number is not beaten to it."""
    while True:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class UvicornWorkers(ServerProcess):
    row = "uvicorn, 2 workers, Redis"
    distributions = ("uvicorn", "redis")
    workers = 2

    def command(self, port: int) -> list[str]:
        return ["uvicorn", "server_app:app", "--port", str(port), "--workers", str(self.workers)]


class HypercornWorkers(ServerProcess):
    row = "hypercorn, 2 workers, Redis"
    distributions = ("hypercorn", "redis")
    workers = 2

    def command(self, port: int) -> list[str]:
        return ["hypercorn", "server_app:app", "--bind", f"127.0.0.1:{port}", "--workers", str(self.workers)]


class Granian(ServerProcess):
    row = "granian, asyncio, HTTP/1.1"
    distributions = ("granian",)
    options = ("--loop", "asyncio", "--http", "1")

    def command(self, port: int) -> list[str]:
        served = ["--interface", "asgi", "--port", str(port), "--workers", str(self.workers)]
        return ["granian", *served, *self.options, "server_app:app"]


class GranianHTTP2(Granian):
    """It takes WebSockets over HTTP/1.1 alone."""

    row = "granian, uvloop, HTTP/2"
    distributions = ("granian", "uvloop")
    options = ("--loop", "uvloop", "--http", "auto")
    http2 = True


class GranianWorkers(Granian):
    row = "granian, 2 workers, Redis"
    distributions = ("granian", "redis")
    workers = 2


class Daphne(ServerProcess):
    row = "daphne"
    distributions = ("daphne", "twisted", "autobahn")
    denies_websockets = False
    streams_requests = False
    has_lifespan = False

    def command(self, port: int) -> list[str]:
        return ["daphne", "--bind", "127.0.0.1", "--port", str(port), "server_app:app"]


class DaphneProcesses(Daphne):
    """One of two, since it has no workers."""

    row = "daphne, 2 processes, Redis"
    distributions = ("daphne", "redis")


@contextmanager
def serving(kind: type[ServerThread], app: App, *, lifespan: bool = False) -> Iterator[ServerThread]:
    """Run a server for a block, which it enters also where the server would not start."""
    server = kind(app, lifespan=lifespan)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Stage:
    """What a server that several tests share runs: the app of the test, watched from outside.

    Whatever a test does, no call of its app may leave anything bound in the server's own task.
    """

    def __init__(self) -> None:
        self.app: App = _nothing
        self.port = 0
        self.calls = 0
        """How many connections have reached the app since it was put on."""
        self.left: list[dict[str, object]] = []
        self._running = 0
        self._changed = threading.Condition()

    def put_on(self, app: App) -> None:
        self.app = app
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        before = _bound()
        self._loop = asyncio.get_running_loop()
        self._count(1)
        try:
            await self.app(scope, receive, send)
        finally:
            after = _bound()
            if after != before:
                self.left.append(after)
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._changed:
            self._running += change
            self.calls += change > 0
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait until no app runs, and see that none has left anything bound."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._running == 0, PATIENCE), f"{self._running} still running"
        left, self.left, self.app = self.left, [], _nothing
        assert left == []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine on the server's event loop, once an app has run there."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def connect(self) -> "Wire":
        return Wire(self.port)


@contextmanager
def stages() -> Iterator[Callable[[str], Stage]]:
    """Stages on servers of any kind, each started once it is wanted, and ended with the block."""
    running: dict[str, Stage] = {}
    with ExitStack() as stack:

        def start(kind: str) -> Stage:
            if kind not in running:
                running[kind] = stage = Stage()
                server = stack.enter_context(serving(SERVERS[kind], stage))
                assert server.started, server.failure
                stage.port = server.port
            return running[kind]

        yield start


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no test is on")


def _bound() -> dict[str, object]:
    return {
        variable.name: value for variable, value in copy_context().items() if variable.name.startswith("asgi_context")
    }


class Response(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection to a server: bytes in, responses out, in order."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.received = b""
        """All that has come."""
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> bytes:
        data = self.socket.recv(65536)
        self.received += data
        return data

    def response(self) -> Response:
        # One parser per response, since h11 as a client does not pipeline.
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="POST", target="/", headers=[("host", "test"), ("content-length", "0")]))
        parser.send(h11.EndOfMessage())
        if self._rest:
            parser.receive_data(self._rest)
        status, headers, body = 0, [], b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(self.receive())
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, list(event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._rest = parser.trailing_data[0]
                return Response(status, headers, body)
            else:
                assert isinstance(event, h11.InformationalResponse), f"{event!r} in place of a response"

    def ask(self, data: bytes) -> Response:
        self.send(data)
        return self.response()


def request(*headers: bytes, target: bytes = b"/", body: bytes = b"") -> bytes:
    """The bytes of an HTTP/1.1 request; each header as the line that it is to be."""
    length = [b"content-length: %d" % len(body)] if body else []
    lines = [b"%s %s HTTP/1.1" % (b"POST" if body else b"GET", target), b"host: test", *headers, *length]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def handshake(*headers: bytes) -> bytes:
    """The bytes that ask for a WebSocket (RFC 6455, section 1.3)."""
    return request(
        b"upgrade: websocket",
        b"connection: Upgrade",
        b"sec-websocket-version: 13",
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    )
