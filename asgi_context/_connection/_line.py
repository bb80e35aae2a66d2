"""A WebSocket connection that this package watches, or to which others than the app send."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, Protocol, cast

from asgi_context._blocking import AppLoop
from asgi_context._context import Binding
from asgi_context._crashes import log, log_crash
from asgi_context._identity import Identity
from asgi_context._types import Message, Receive, Send
from asgi_context.errors import ConnectionClosedError, ConnectionNotBoundError, RequestRejected, UnsupportedLoopError

_EXPIRED: Final = 4401  # RFC 6455, section 7.4.2: for private use; after HTTP's 401
_LONGEST_WAIT: Final = 3600.0  # seconds; then the clock on the wall is looked at again, which may have been set
_ENDS: Final = frozenset({"websocket.close", "websocket.http.response.start"})


class Outbox(Protocol):
    """What others than the app send, and what the app sends waits for."""

    def __bool__(self) -> bool:
        """Say whether something waits to be sent."""
        ...

    async def sent(self) -> None:
        """Wait until what waits by now has been sent, or cannot be; what comes later waits for the caller."""
        ...

    def end(self) -> None:
        """Send nothing more."""
        ...


class Line:
    """One WebSocket connection, as the app sees it.

    Args:
        binding: what is bound for the connection itself.
        receive: the server's receive.
        send: the server's send.
        now: the time, in seconds since the epoch.

    Raises:
        RequestRejected: the identity has expired.
        UnsupportedLoopError: the identity expires, and there is no running asyncio event loop.
    """

    def __init__(self, binding: Binding, receive: Receive, send: Send, now: Callable[[], float] = time.time) -> None:
        self._receive = receive
        self._send = send
        self._now = now
        self._services = binding.services
        self._own: Identity | None = None
        self._ends = [binding.expires_at]  # of each proof that it had: what was bound meanwhile has the end of then
        if binding.tenant is not None:
            self._own = Identity(binding.tenant, binding.user, binding.claims, binding.expires_at)
        self._accepted = False
        self._over = False  # the app or the client has ended it
        self._closed: tuple[int, str] | None = None  # by this package, with a code and a reason
        self._closing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the timer
        self._reads: set[asyncio.Timeout] = set()
        self.outbox: Outbox | None = None
        """What others than the app send over it, where somebody does."""
        self.app_loop = AppLoop()
        """The event loop that it belongs to."""
        self.app_loop.note()
        if binding.expires_at is not None:
            if binding.expires_at <= now():
                raise RequestRejected(401, "identity_expired")
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                raise UnsupportedLoopError("closing a WebSocket when its identity expires") from None
            self._watch(binding.expires_at)
        binding.connection = self  # last, since one that is refused above must not be found

    @property
    def is_accepted(self) -> bool:
        """Whether the app has accepted it."""
        return self._accepted

    @property
    def is_over(self) -> bool:
        """Whether the app, the client or this package has ended it."""
        return self._over or self._closed is not None

    def renew(self, identity: Identity, same: Iterable[str]) -> None:
        """Let it go on until another proof of the same expires; what is bound stays as it is.

        Args:
            identity: what the other proof says.
            same: names of claims that must be there and the same, besides tenant and user.

        Raises:
            RequestRejected: it stands for somebody else.
            ConnectionNotBoundError: the connection's identity does not expire.
            ConnectionClosedError: it was closed by this package.
        """
        own = self._own
        if own is None or own.expires_at is None or identity.expires_at is None:
            raise ConnectionNotBoundError
        if self._closed is not None:
            raise ConnectionClosedError(*self._closed)
        if identity.tenant != own.tenant:
            raise RequestRejected(403, "tenant_mismatch")
        if identity.user != own.user or any(
            own.claims.get(n) is None or own.claims[n] != identity.claims.get(n) for n in same
        ):
            raise RequestRejected(403, "user_mismatch")
        if identity.expires_at > own.expires_at:
            self._ends.append(identity.expires_at)
            self._own = Identity(own.tenant, own.user, own.claims, identity.expires_at)
            loop = cast("asyncio.AbstractEventLoop", self._loop)
            if asyncio.get_running_loop() is loop:
                self._extend()
            else:  # in a thread that has a loop of its own
                loop.call_soon_threadsafe(self._extend)

    def latest(self, identity: Identity) -> Identity:
        """Say until when a proof lasts that this connection may have been renewed by.

        Args:
            identity: what is bound.

        Returns:
            The same, with the newest end where it is by the proof that the connection began with, or by one that has
            renewed it.
        """
        own = self._own
        if own is None or (own.tenant, own.user) != (identity.tenant, identity.user):
            return identity
        if identity.expires_at not in self._ends:
            return identity
        return Identity(identity.tenant, identity.user, identity.claims, own.expires_at)

    def _extend(self) -> None:
        if self._over or self._closed is not None or self._timer is None:
            return
        self._timer.cancel()
        self._watch(cast("float", cast("Identity", self._own).expires_at))

    @property
    def receive(self) -> Receive:
        """The receive for the app."""
        return self._receive_unwatched if self._timer is None else self._receive_watched

    @property
    def _receive_unwatched(self) -> Receive:
        return self._receive_plain

    # A coroutine function, as servers' are: asgiref looks, and complains of others.
    async def send(self, message: Message) -> Any:  # noqa: ANN401 - whatever the server's gives
        """Send, unless this package has closed the connection.

        Args:
            message: an ASGI message.

        Returns:
            What the server's send returns.

        Raises:
            ConnectionClosedError: the connection was closed by this package.
        """
        if self.outbox:
            await self.outbox.sent()  # in the order in which it was asked for
        if self._closed is not None:
            raise ConnectionClosedError(*self._closed)
        kind = message["type"]
        if kind in _ENDS:
            self._end()
        result: Any = await cast("Any", self._send)(message)
        if kind == "websocket.accept":
            self._accepted = True
        return result

    async def send_beside(self, message: Message) -> None:
        """Send what is not the app's.

        Args:
            message: an ASGI message.

        Raises:
            ConnectionClosedError: the connection was closed by this package.
        """
        if self._closed is not None:
            raise ConnectionClosedError(*self._closed)
        await self._send(message)

    async def _receive_plain(self) -> Message:
        if self._closed is not None:
            return self._disconnect()
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            self._end()
        return event

    async def _receive_watched(self) -> Message:
        timeout = asyncio.timeout(None)  # until the timer sets it: one timer for the connection, not one for each read
        self._reads.add(timeout)
        try:
            async with timeout:
                return await self._receive_unwatched()
        except TimeoutError:
            if self._closed is None:
                raise
            return self._disconnect()
        finally:
            self._reads.discard(timeout)

    async def _close(self, code: int, reason: str) -> None:
        closing = self._start_closing(code, reason)
        if closing is None:
            return
        try:
            # In a task of its own: a read that is cancelled now must not keep the client from hearing of it.
            self._closing = self._note(asyncio.get_running_loop().create_task(closing))
        except RuntimeError:
            await closing
        else:
            await self.closed()

    def _note(self, task: "asyncio.Task[None]") -> "asyncio.Task[None]":
        self._services.closing.note_late(task)  # which keeps it, should the connection be gone before it has ended
        return task

    def _start_closing(self, code: int, reason: str) -> Coroutine[Any, Any, None] | None:
        if self._closed is not None:
            return None
        self._closed = code, reason
        self._end_outbox()
        return None if self._over else self._send_close(code, reason)

    async def _send_close(self, code: int, reason: str) -> None:
        try:
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except OSError as error:
            log.debug("the client has gone before it could be told of %d: %s", code, type(error).__qualname__)
        except Exception as error:  # noqa: BLE001 - the server's; the connection is over in any case
            log_crash("closing a WebSocket failed", error)

    def _disconnect(self) -> Message:
        code, reason = cast("tuple[int, str]", self._closed)
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    def _watch(self, expires_at: float) -> None:
        loop, left = asyncio.get_running_loop(), expires_at - self._now()
        if left > 0:
            # In a Context of its own, or what is bound would live as long as the timer.
            self._timer = loop.call_later(min(left, _LONGEST_WAIT), self._watch, expires_at, context=Context())
            return
        if self._over:
            return
        closing = self._start_closing(_EXPIRED, "identity_expired")
        if closing is not None:
            self._closing = self._note(loop.create_task(closing))
        for timeout in self._reads:
            timeout.reschedule(loop.time())

    async def flush(self) -> None:
        """Wait until what others send has gone out; a client that does not read can hold that up."""
        if self.outbox:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._services.closing.time_limit):
                    await self.outbox.sent()

    def _stop(self) -> None:
        self._end()
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self._over = True
        self._end_outbox()

    def _end_outbox(self) -> None:
        outbox, self.outbox = self.outbox, None  # it points back to the connection
        if outbox is not None:
            outbox.end()

    async def closed(self) -> None:
        """Wait until a close by this package has gone out; a client that does not read can hold that up."""
        if self._closing is not None:
            await asyncio.wait({self._closing}, timeout=self._services.closing.time_limit)
