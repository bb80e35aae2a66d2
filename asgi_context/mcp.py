"""MCP Python SDK, servers over streamable HTTP: sessions, and the events they can replay, are their owner's alone.

::

    app = ContextMiddleware(OwnedSessions(server.streamable_http_app()), identity=JWTAuth(...))

The SDK runs each tool, resource and prompt in the context of the HTTP request that asked for it, also in a session that
another request has opened, so `current_context` tells who asks now, in threads as well. It leaves two things open:

- Whoever knows the id of somebody else's session can speak in it, read what is sent over it, and end it, unless the SDK
  has checked a token itself. `OwnedSessions` makes each session that of who opened it.
- What an event store keeps is filed by the numbers of requests, which every client counts from the same start.
  `OwnedEvents` keeps the events of each tenant's user apart.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Final

import anyio
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp_types import JSONRPCMessage

from asgi_context._context import current_context
from asgi_context._identity import RequestContext
from asgi_context._respond import problem
from asgi_context._types import ASGIApp, Message, Receive, Scope, Send
from asgi_context.errors import RequestRejected

__all__ = ["OwnedEvents", "OwnedSessions"]

_ISSUER: Final = "asgi_context"
_NOBODY: Final = "-"


class OwnedSessions:
    """Makes each session that of the tenant's user who opened it: to anybody else, it is not there.

    It goes between `ContextMiddleware` and the SDK's app, and tells the SDK who asks, by the ``scope["user"]`` that the
    SDK sets where it checks tokens itself: ``ContextMiddleware(OwnedSessions(server.streamable_http_app()), ...)``. The
    state of a call in several rounds is bound to them as well. A session that was opened unbound is open to whoever is
    unbound. Where the SDK itself has found out who asks, by its ``token_verifier=``, that stays, and sessions are those
    of the token's client and subject. Where an authentication around it has found nobody, yet somebody is bound, the
    request is refused with 403: what is bound is not to pass for that authentication.

    A stream on which the server may speak at any time, that of a session or of ``subscriptions/listen``, ends when the
    identity expires that asked for it, as a WebSocket does. A call that runs by then is answered, as any request is.
    What a server publishes to ``subscriptions/listen`` reaches all who listen for that URI, of whatever tenant.

    Args:
        app: the ASGI app that the SDK makes, or another that it is mounted in.
        now: the time, in seconds since the epoch.

    Raises:
        TypeError: it cannot be called.
    """

    def __init__(self, app: ASGIApp, *, now: Callable[[], float] = time.time) -> None:
        if not callable(app):
            message = f"app must be an ASGI app, not {type(app).__qualname__}"
            raise TypeError(message)
        self._now = now
        self._app = AuthContextMiddleware(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request.

        Args:
            scope: its scope.
            receive: its receive.
            send: its send.
        """
        app: ASGIApp = self._app
        context = current_context(None) if scope["type"] == "http" else None
        user = scope.get("user")
        if context is not None and not isinstance(user, AuthenticatedUser):
            if user is None or getattr(user, "is_authenticated", False):
                scope["user"] = _user_of(context)
            else:
                app = problem(RequestRejected(403, "user_mismatch"))
        expires_at = None if context is None else context._expires_at  # noqa: SLF001 - ours
        if expires_at is None or not _stands(scope):
            await app(scope, receive, send)
        else:
            await self._until(expires_at, app, scope, receive, send)

    async def _until(self, expires_at: float, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        expired = unfinished = False

        async def receive_until() -> Message:
            nonlocal expired
            with anyio.move_on_after(max(expires_at - self._now(), 0)):
                return await receive()
            expired = True
            return {"type": "http.disconnect"}

        async def send_noting(message: Message) -> None:
            nonlocal unfinished
            unfinished = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        await app(scope, receive_until, send_noting)
        if expired and unfinished:  # the SDK believes that the client has gone: to it, it is an answer that is complete
            await send({"type": "http.response.body"})


def _stands(scope: Scope) -> bool:
    # The SDK refuses what has one of these headers twice, or names another method in its body.
    headers = dict(scope["headers"])
    if scope["method"] == "GET":
        return b"mcp-session-id" in headers
    return headers.get(b"mcp-method") == b"subscriptions/listen"


def _user_of(context: RequestContext) -> AuthenticatedUser:
    claims = {"iss": _ISSUER}
    # Without a text and without scopes: it is no token, and lets nobody do what the SDK asks a scope for.
    return AuthenticatedUser(
        AccessToken(token="", client_id=context.tenant, subject=context.user, scopes=[], claims=claims)
    )


class OwnedEvents(EventStore):
    """Keeps the events of an event store apart by tenant and user, for sessions behind `OwnedSessions`.

    The SDK has one store for all sessions, and files each event under the number of the request that it answers. A
    store that replays what else it has under that number replays what was somebody else's. Here the store is given
    numbers that say whose they are, and an event id of somebody else's is unknown.

    Args:
        store: the event store, whose event ids and stream ids are plain text.

    Raises:
        TypeError: it is none.
    """

    def __init__(self, store: EventStore) -> None:
        if not isinstance(store, EventStore):
            message = f"store must be an EventStore of the MCP SDK, not {type(store).__qualname__}"
            raise TypeError(message)
        self._store = store

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store an event; called by the SDK, in the context of the request that opened the session.

        Args:
            stream_id: the stream that it belongs to.
            message: what it says; ``None`` for one that only begins a stream.

        Returns:
            Its id, which says whose it is.
        """
        owner = _owner()
        return f"{owner}.{await self._store.store_event(f'{owner}.{stream_id}', message)}"

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Replay what came after an event; called by the SDK, in the context of the request that asks for it.

        Args:
            last_event_id: the id of that event.
            send_callback: sends one event.

        Returns:
            The stream that it belongs to; ``None`` where there is no such event, or it is somebody else's.
        """
        owner = _owner()
        given, _, event_id = last_event_id.partition(".")
        if given != owner:
            return None

        async def send(event: EventMessage) -> None:
            if event.event_id is not None:
                event = replace(event, event_id=f"{owner}.{event.event_id}")
            await send_callback(event)

        stream_id = await self._store.replay_events_after(event_id, send)
        return None if stream_id is None else stream_id.removeprefix(f"{owner}.")


def _owner() -> str:
    # A digest, since event ids go to the client, and a store may keep them for long.
    context = current_context(None)
    if context is None:
        return _NOBODY
    return sha256(repr((context.tenant, context.user)).encode()).hexdigest()[:32]
