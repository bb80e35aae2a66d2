"""What wrapping an app costs per HTTP request: this middleware beside a hand-written one and its peers.

Run by ``python tests/benchmarks/overhead.py``. All variants are measured in one run, in turns, so that what else the
machine does falls on all of them, and in several processes, since one process can be a tenth faster than the next at the
same code. A figure is the median over the processes of the best turn in each. Every request gets a scope of its own,
parsed just before, which every figure includes. The app reads the context where there is one.
"""

import argparse
import asyncio
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware, correlation_id
from asgi_request_id import RequestIdMiddleware, request_id_ctx_var
from starlette.middleware.base import BaseHTTPMiddleware
from starlette_context import context as starlette_context
from starlette_context import plugins
from starlette_context.middleware import RawContextMiddleware

from asgi_context import ContextMiddleware, constant, current_context, first_of, from_header

App = Callable[..., Awaitable[None]]

BARE = "bare app"
BY_HAND = "hand-written, checks nothing"

REQUEST = b"""\
host: api.example.com
user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0
accept: application/json
accept-language: en-GB,en;q=0.5
accept-encoding: gzip, deflate, br
content-type: application/json
x-tenant-id: acme
x-user-id: user-%07d
x-request-id: 0f0e0d0c0b0a09080706050403020100
x-forwarded-for: 203.0.113.7
x-forwarded-proto: https
connection: keep-alive""".replace(b"\n", b"\r\n")


async def respond(send: Any) -> None:
    # Made anew, as apps do: some of the peers add to the list of headers that they are handed.
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def bare(scope: Any, receive: Any, send: Any) -> None:
    await respond(send)


def reading(read: Callable[[], object]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        read()
        await respond(send)

    return app


class NoOp:
    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


by_hand: ContextVar[tuple[str, str]] = ContextVar("by_hand")


class HandWritten:
    """What one writes without a library: a scan of the headers and a ContextVar. It checks nothing."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        tenant = user = None
        for name, value in scope["headers"]:
            if name == b"x-tenant-id":
                tenant = value.decode("latin-1")
            elif name == b"x-user-id":
                user = value.decode("latin-1")
        if tenant is None or user is None:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        token = by_hand.set((tenant, user))
        try:
            await self.app(scope, receive, send)
        finally:
            by_hand.reset(token)


async def pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


def ours(read: Callable[[], object], **options: Any) -> App:
    return ContextMiddleware(reading(read), tenant=from_header("x-tenant-id"), user=from_header("x-user-id"), **options)


def read_by_hand() -> object:
    tenant, user = by_hand.get()
    return tenant, user


def read_tenant() -> object:
    context = current_context()
    return context.tenant, context.user


def read_request_id() -> object:
    context = current_context()
    return context.tenant, context.user, context.request_id


def variants() -> dict[str, tuple[App, bool]]:
    """Name to app, and whether every request comes from another user."""
    trusted_id = from_header("x-request-id")
    all_plugins = (plugins.RequestIdPlugin(), plugins.CorrelationIdPlugin(), plugins.ForwardedForPlugin())
    return {
        BARE: (bare, False),
        "no-op wrapper": (NoOp(bare), False),
        BY_HAND: (HandWritten(reading(read_by_hand)), False),
        "ours": (ours(read_tenant), False),
        "ours, every user new": (ours(read_tenant), True),
        "ours, request id made and read": (ours(read_request_id), False),
        "ours, exempt + authorize + echo": (
            ours(
                read_tenant,
                exempt=lambda scope: scope["path"] == "/health",
                authorize=lambda context, scope: context.tenant != "nobody",
                echo_request_id="x-request-id",
            ),
            False,
        ),
        "ours, request id given + echo": (
            ours(read_request_id, request_id=trusted_id, echo_request_id="x-request-id"),
            False,
        ),
        "ours, headers of a trusted network": (
            ContextMiddleware(
                reading(read_tenant),
                tenant=from_header("x-tenant-id", trusted="203.0.113.0/24"),
                user=from_header("x-user-id", trusted="203.0.113.0/24"),
            ),
            False,
        ),
        "ours, first_of(header, constant)": (
            ContextMiddleware(reading(read_tenant), tenant=first_of(from_header("x-tenant-id"), constant("public"))),
            False,
        ),
        "asgi-request-id": (RequestIdMiddleware(reading(request_id_ctx_var.get)), False),
        "asgi-correlation-id, checks a UUID": (CorrelationIdMiddleware(reading(correlation_id.get)), False),
        "starlette-context Raw, 3 plugins": (
            RawContextMiddleware(reading(lambda: starlette_context.data), plugins=all_plugins),
            False,
        ),
        "BaseHTTPMiddleware, empty": (BaseHTTPMiddleware(bare, dispatch=pass_on), False),
    }


def parse(raw: bytes) -> dict[str, Any]:
    """Make a scope as a server does: header bytes of its own, fresh in the processor's caches."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/items",
        "raw_path": b"/items",
        "query_string": b"",
        "root_path": "",
        "headers": [(name, value) for name, _, value in [line.partition(b": ") for line in raw.split(b"\r\n")]],
        "client": ("203.0.113.7", 50000),
        "server": ("127.0.0.1", 8000),
    }


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Any) -> None:
    pass


async def measure(rounds: int, count: int) -> dict[str, float]:
    best: dict[str, float] = {}
    apps = variants()
    for turn in range(rounds + 1):
        for name, (app, new_users) in apps.items():
            batch = [REQUEST % (turn * count + number if new_users else number % 100) for number in range(count)]
            gc.collect()
            gc.disable()
            started = time.perf_counter_ns()
            for raw in batch:
                await app(parse(raw), receive, send)
            spent = (time.perf_counter_ns() - started) / count / 1000
            gc.enable()
            if turn:  # the first turn warms up
                best[name] = min(spent, best.get(name, spent))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=9, help="how often all is measured anew, each in a process")
    parser.add_argument("--rounds", type=int, default=40, help="turns in a process; the best counts")
    parser.add_argument("--count", type=int, default=200, help="requests of a variant in a turn")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = [f"--rounds={arguments.rounds}", f"--count={arguments.count}"]
    if arguments.measure:
        print(json.dumps(asyncio.run(measure(arguments.rounds, arguments.count))))
        return
    command = [sys.executable, __file__, "--measure", *sizes]
    runs = [json.loads(subprocess.check_output(command)) for _ in range(arguments.processes)]
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {len(parse(REQUEST)['headers'])} headers; ",
        end="",
    )
    print(
        f"median of {arguments.processes} processes, each the best of {arguments.rounds} x {arguments.count} requests"
    )
    print(f"{'us per request':36} {'cost':>8} {'above bare':>11} {'x hand-written':>15} {'(from':>8} {'to)':>6}")
    for name in runs[0]:
        above = [run[name] - run[BARE] for run in runs]
        ratios = sorted(cost / (run[BY_HAND] - run[BARE]) for cost, run in zip(above, runs, strict=True))
        cost = statistics.median(run[name] for run in runs)
        print(f"{name:36} {cost:8.2f} {statistics.median(above):11.2f} {statistics.median(ratios):15.2f}", end=" ")
        print(f"{ratios[0]:8.2f} {ratios[-1]:6.2f}")


if __name__ == "__main__":
    main()
