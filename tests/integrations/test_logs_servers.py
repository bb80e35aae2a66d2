"""Which lines of real servers, and of handlers for uncaught exceptions, tell on whose behalf they were written.

Granian serves in processes of its own, so it is given `make_app` of this module by name.
"""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from servers import PATIENCE, SERVERS, Hypercorn, ServerThread, Wire, handshake, request, serving
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi_context import ContextMiddleware, from_header
from asgi_context.logging import ContextFilter

ACME, OTHER = b"x-tenant-id: acme", b"x-tenant-id: other"


class Line(NamedTuple):
    logger: str
    path: str
    """Of the request that it is about."""
    tenant: str
    request_id: str


class Lines(logging.Handler):
    """Keeps what lines about requests tell."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.addFilter(ContextFilter(**options))
        self.lines: list[Line] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        found = re.search(r'"(?:\w+) (/[^\s"]*)', record.getMessage())
        path = str(error) if error else found[1] if found else None
        if path is not None:
            tenant, request_id = record.ctx_tenant, record.ctx_request_id  # type: ignore[attr-defined]
            self.lines.append(Line(record.name, path, tenant, request_id))

    def of(self, logger: str, path: str) -> list[str]:
        """The tenants that the lines of a logger tell for a path."""
        return [line.tenant for line in self.lines if line.logger.endswith(logger) and line.path == path]


@contextmanager
def logged(handler: logging.Handler, *names: str) -> Iterator[None]:
    """Give a handler to loggers, for a block."""
    loggers = [logging.getLogger(name) for name in names]
    before = [(log.handlers, log.propagate, log.level) for log in loggers]
    for log in loggers:
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for log, (handlers, propagate, level) in zip(loggers, before, strict=True):
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        return
    if scope["path"].startswith("/crash"):
        raise OSError(scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def make_app() -> Any:
    return ContextMiddleware(app, tenant=from_header("x-tenant-id"), echo_request_id="x-request-id")


class LoggingHypercorn(Hypercorn):
    access_log = logging.getLogger("hypercorn.access")


KINDS: dict[str, type[ServerThread]] = {
    "uvicorn-h11": SERVERS["uvicorn-h11"],
    "uvicorn-httptools": SERVERS["uvicorn-httptools"],
    "hypercorn": LoggingHypercorn,
}
NAMES = ("uvicorn.access", "uvicorn.error", "hypercorn.access", "hypercorn.error")


class Told(NamedTuple):
    lines: Lines
    """As they are told."""
    trusting: Lines
    """As they would be if what is bound where they are written were believed."""
    ids: dict[str, str]
    """What the clients were told, by path."""


@pytest.fixture(scope="module", params=KINDS)
def told(request: pytest.FixtureRequest) -> Told:
    lines, trusting = Lines(), Lines(outside=())

    class Both(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            twin = logging.makeLogRecord(dict(vars(record)))
            lines.handle(record)
            trusting.handle(twin)

    ids: dict[str, str] = {}
    with serving(KINDS[request.param], make_app()) as server, logged(Both(), *NAMES):
        assert server.started, server.failure
        for path, headers, status in (("/one", [ACME], 200), ("/refused", [], 400), ("/crash", [ACME], 500)):
            with Wire(server.port) as wire:
                answer = wire.ask(_request(path, *headers))
                assert answer.status == status
                ids[path] = b"".join(answer.all(b"x-request-id")).decode()
        with Wire(server.port) as wire:  # the second of a connection, sent before the first is answered
            wire.send(_request("/first", ACME) + _request("/crash-after", OTHER))
            assert [wire.response().status, wire.response().status] == [200, 500]
        with Wire(server.port) as wire:
            wire.send(_request("/first", ACME) + _request("/second", OTHER))
            assert [wire.response().status, wire.response().status] == [200, 200]
        with Wire(server.port) as wire:
            wire.send(handshake(ACME).replace(b"GET / ", b"GET /ws "))
            assert wire.receive().startswith(b"HTTP/1.1 101 ")
        server.stop()  # when it has ended it has written all
    return Told(lines, trusting, ids)


def _request(path: str, *headers: bytes) -> bytes:
    return request(*headers, target=path.encode())


def test_an_access_line_tells_who_asked(told: Told) -> None:
    assert told.lines.of(".access", "/one") == ["acme"]
    assert told.lines.of(".access", "/first") == ["acme", "acme"]
    assert told.lines.of(".access", "/second") == ["other"]


def test_the_access_line_of_a_refusal_tells_its_id_alone(told: Told) -> None:
    (line,) = (line for line in told.lines.lines if line.path == "/refused")
    assert (line.tenant, line.request_id) == ("-", told.ids["/refused"])
    (line,) = (line for line in told.lines.lines if line.path == "/one")
    assert line.request_id == told.ids["/one"]


def test_what_a_server_writes_of_an_exception_that_left_the_app_is_nobodys(told: Told) -> None:
    for path in ("/crash", "/crash-after"):
        assert told.lines.of(".access", path) == ["-"], "the server answers it by itself, outside of the middleware"
        assert told.lines.of(".error", path) == ["-"]


def test_the_line_of_a_websocket_tells_who_opened_it_where_it_is_an_access_line(told: Told) -> None:
    (line,) = (line for line in told.lines.lines if line.path == "/ws")
    assert (line.logger, line.tenant) in {("uvicorn.error", "-"), ("hypercorn.access", "acme")}


def test_what_uvicorn_writes_there_would_be_somebody_elses(told: Told, request: pytest.FixtureRequest) -> None:
    """The fact for which it is nobody's: the other tenant's request has failed, in what acme's has left."""
    is_uvicorn = any(line.logger.startswith("uvicorn") for line in told.lines.lines)
    assert told.trusting.of(".error", "/crash-after") == (["acme"] if is_uvicorn else ["-"])


# Granian


@pytest.fixture(scope="module")
def granian_lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What it writes into its access log."""
    folder = tmp_path_factory.mktemp("granian")
    configuration = {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"context": {"()": "asgi_context.logging.ContextFilter"}},
        "formatters": {"access": {"format": "%(message)s tenant=%(ctx_tenant)s"}},
        "handlers": {
            "access": {
                "class": "logging.FileHandler",
                "filename": str(folder / "access.log"),
                "filters": ["context"],
                "formatter": "access",
            },
        },
        "loggers": {
            "_granian": {"handlers": [], "propagate": False},
            "granian.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
        },
    }
    (folder / "logs.json").write_text(json.dumps(configuration), "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    here = Path(__file__)
    paths = [str(here.parents[2]), str(here.parents[1]), str(here.parent), os.environ.get("PYTHONPATH", "")]
    command = ["--interface", "asgi", "--factory", "--host", "127.0.0.1", "--port", str(port)]
    logs = ["--access-log", "--access-log-fmt", "%(path)s", "--log-config", str(folder / "logs.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "granian", *command, *logs, f"{here.stem}:make_app"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, f"granian has ended with {process.returncode}"
            try:
                with Wire(port) as wire:
                    assert wire.ask(_request("/one", ACME)).status == 200
                    assert wire.ask(_request("/one", OTHER)).status == 200
                break
            except OSError:
                assert time.monotonic() < until, "granian does not start"
                time.sleep(0.02)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)
    return (folder / "access.log").read_text("utf-8").splitlines()


def test_granian_writes_its_access_line_once_the_app_has_returned(granian_lines: list[str]) -> None:
    assert granian_lines == ["/one tenant=-", "/one tenant=-"]


# Handlers for uncaught exceptions

own = logging.getLogger("tests.logs.own")


async def fail(request: Request) -> None:
    raise OSError("/crash")


async def apologize(request: Request, error: Exception) -> PlainTextResponse:
    own.error("it failed", exc_info=error)
    return PlainTextResponse("Sorry", 500)


def starlette(*middleware: Middleware) -> Any:
    return Starlette(routes=[Route("/crash", fail)], exception_handlers={500: apologize}, middleware=middleware)


@pytest.mark.parametrize("mounted", ["around", "inside"])
def test_a_handler_for_uncaught_exceptions_tells_it_where_the_middleware_is_around_the_app(mounted: str) -> None:
    """And so does the access line of its answer; what the server writes of the exception, outside, does not."""
    source = from_header("x-tenant-id")
    if mounted == "around":
        app = ContextMiddleware(starlette(), tenant=source)
    else:
        app = starlette(Middleware(ContextMiddleware, tenant=source))
    lines = Lines()
    with serving(SERVERS["uvicorn-h11"], app) as server, logged(lines, *NAMES, own.name):
        with Wire(server.port) as wire:
            assert wire.ask(_request("/crash", ACME)).status == 500
        server.stop()
    expected = "acme" if mounted == "around" else "-"
    assert [(line.logger, line.tenant) for line in lines.lines] == [
        (own.name, expected),
        ("uvicorn.access", expected),
        ("uvicorn.error", "-"),
    ]
