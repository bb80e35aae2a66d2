"""Real servers, each in a thread of its own with an event loop of its own, and a client that speaks to them in bytes."""

import asyncio
import json
import logging
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import Any, NamedTuple, Self

import h11
import hypercorn.asyncio
import hypercorn.config
import uvicorn
import uvloop

App = Callable[..., Awaitable[None]]

PATIENCE = 15.0
"""Seconds after which whatever is waited for counts as hanging."""


class ServerThread(ABC):
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
    http = "httptools"
    ws = "websockets-sansio"


class UvicornUvloop(Uvicorn):
    loop_factory = staticmethod(uvloop.new_event_loop)


class UvicornHttptoolsUvloop(UvicornHttptools):
    loop_factory = staticmethod(uvloop.new_event_loop)


class _ListeningConfig(hypercorn.config.Config):
    listener: socket.socket

    def create_sockets(self) -> hypercorn.config.Sockets:
        return hypercorn.config.Sockets([], [self.listener], [])


class Hypercorn(ServerThread):
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
