"""Answers that the middleware gives in place of the app, and the request id that it adds to those of the app."""

import json
from collections.abc import Iterable
from typing import Any

from asgi_context._crashes import log_crash
from asgi_context._types import ASGIApp, Message, Receive, Scope, Send
from asgi_context.errors import RequestRejected


def problem(rejection: RequestRejected) -> ASGIApp:
    """Answer by ``application/problem+json`` (RFC 9457).

    Args:
        rejection: what to answer.

    Returns:
        An ASGI app that sends the answer. Nothing in it comes from the client.
    """
    members = {
        "type": "about:blank",
        "title": rejection.title,
        "status": rejection.status,
        "code": rejection.code,
        "detail": rejection.detail,
    }
    body = json.dumps(members).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        *rejection.headers,
    ]

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": rejection.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return answer


async def refuse(answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an answer that speaks HTTP, on a WebSocket too.

    There it becomes the denial response where the server offers that (ASGI specification, "WebSocket Denial Response"),
    else a close before accept, which reaches the client as HTTP 403: ``http.response.start`` would be a crash.

    Args:
        answer: ASGI app that gives the answer.
        scope: the connection's scope.
        receive: the connection's receive.
        send: the connection's send.
    """
    if scope["type"] == "http":
        await answer(scope, receive, send)
        return
    offered = "websocket.http.response" in (scope.get("extensions") or {})
    connected = False

    async def receive_connect() -> Message:
        nonlocal connected
        connected = True
        return await receive()

    async def send_denial(message: Message) -> None:
        kind: str = message["type"].removeprefix("websocket.")
        if not kind.startswith("http.response."):
            await send(message)
            return
        if not connected:  # it must be read before it is answered
            await receive_connect()
        if offered:
            await send({**message, "type": f"websocket.{kind}"})
        elif kind == "http.response.start":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})  # RFC 6455, 7.4.1: policy violation

    await answer(scope, receive_connect, send_denial)


def echoing(name: bytes, value: bytes, send: Send) -> Send:
    """Wrap a send so that every answer carries the request id.

    Args:
        name: the header's name, lower case.
        value: the request id.
        send: the send to wrap.

    Returns:
        A send that puts the header in place of all of that name.
    """

    # A coroutine function, as servers' are: asgiref looks, and complains of others.
    async def send_with_id(message: Message) -> Any:  # noqa: ANN401 - whatever the server's gives
        if message["type"] in _STARTS:
            headers: Iterable[Any] = message.get("headers") or ()
            # A new list in a new message: an app may send the same one for every request.
            kept = [pair for pair in headers if pair[0].lower() != name]
            kept.append((name, value))
            message = {**message, "headers": kept}
        return await send(message)

    return send_with_id


_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


def crashed(what: str, error: Exception) -> RequestRejected:
    """Log a crash, and say how the request is answered.

    Args:
        what: what crashed.
        error: the crash.

    Returns:
        The rejection: 500, without details.
    """
    log_crash(f"{what} failed", error)
    return RequestRejected(500, "internal_error")
