"""Drives an ASGI app without a server."""

import json
from collections.abc import Iterable
from typing import Any

Header = tuple[bytes, bytes]


def http(*headers: Header, method: str = "GET", path: str = "/", **more: Any) -> dict[str, Any]:
    """A scope of one HTTP request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": ("203.0.113.7", 50000),
        "server": ("127.0.0.1", 8000),
        **more,
    }


def websocket(*headers: Header, path: str = "/", denial: bool = False, **more: Any) -> dict[str, Any]:
    """A scope of one WebSocket connection; ``denial`` says whether the server offers the denial response."""
    scope = {**http(*headers, path=path), "type": "websocket", "scheme": "ws", "subprotocols": [], **more}
    del scope["method"]
    if denial:
        scope["extensions"] = {"websocket.http.response": {}}
    return scope


def who(tenant: str = "acme", user: str = "ann") -> list[Header]:
    """The headers of a tenant's user."""
    return [(b"x-tenant-id", tenant.encode()), (b"x-user-id", user.encode())]


class Exchange:
    """What went over one connection."""

    def __init__(self, received: Iterable[dict[str, Any]] = ()) -> None:
        self.to_receive = list(received)
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        if self.to_receive:
            return self.to_receive.pop(0)
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def problem(self) -> dict[str, Any]:
        assert (b"content-type", b"application/problem+json") in self.sent[0]["headers"]
        problem: dict[str, Any] = json.loads(self.body)
        return problem

    def header(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.sent[0].get("headers", ()) if found == name]


async def run(app: Any, scope: dict[str, Any], received: Iterable[dict[str, Any]] | None = None) -> Exchange:
    """Run an app on a scope to its end."""
    if received is None:
        received = [{"type": "websocket.connect"}] if scope["type"] == "websocket" else [{"type": "http.request"}]
    exchange = Exchange(received)
    await app(scope, exchange.receive, exchange.send)
    return exchange


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """An app that says hello over HTTP, or accepts a WebSocket and closes it."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


class Seen:
    """An app that notes what a function returns while it runs."""

    def __init__(self, look: Any) -> None:
        self.look = look
        self.seen: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(self.look())
        await hello(scope, receive, send)
