"""A WebSocket connection whose messages say who asks, or whose identity expires.

Where the app's ``receive`` is called, the identity of the message that it returns is bound, over what is bound there.
That holds in whatever the caller goes on to do with the message: for an app that reads in one task and handles in
another it would be bound where nobody asks, and what stays bound elsewhere would be that of an older message. Hence:

- The task that reads the first message is the reader. As soon as another task calls ``receive``, nothing is bound by
  itself any more, and what was bound for the latest message is revoked.
- A message's binding ends at the reader's next ``receive``; in between, what the connection itself has bound is bound.
- Each message is examined as it is read, whoever reads it: a bad one never reaches the app.
- Once a message has changed whose it is, what the connection itself has bound is revoked: a task that handles messages
  without `message_context` would find it there.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from asgi_context._authorize import Authorize, check_verdict
from asgi_context._connection._line import Line
from asgi_context._context import (
    Binding,
    current_binding,
    current_context,
    enter_binding,
    make_binding,
)
from asgi_context._crashes import log, log_crash
from asgi_context._identity import Identity
from asgi_context._messages import JsonMessage, MessageExtractor, read_message
from asgi_context._resources import Resources
from asgi_context._types import Message, Receive, Scope, Send
from asgi_context.errors import (
    RequestRejected,
    ResourceCloseError,
)

_SEVERAL: Final = object()
_POLICY: Final = 1008  # RFC 6455, section 7.4.1
_CRASHED: Final = 1011


class Connection(Line):
    """One WebSocket connection, as the app sees it.

    Args:
        binding: what is bound for the connection itself.
        scope: its scope.
        receive: the server's receive.
        send: the server's send.
        message: extractor of the identity of a message; ``None`` where messages do not say who asks.
        authorize: decides of the identities of messages.
        now: the time, in seconds since the epoch.

    Raises:
        RequestRejected: the identity has expired.
        UnsupportedLoopError: the identity expires, and there is no running asyncio event loop.
    """

    def __init__(
        self,
        binding: Binding,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        message: MessageExtractor | None,
        authorize: Authorize | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._scope = scope
        self._extractor = message
        self._json = message if isinstance(message, JsonMessage) else None
        self._authorize = authorize
        self._ids = binding.ids
        self._rest: Binding | None = binding  # what is bound between two messages
        self._bound: Binding | None = None  # for the latest message
        self._before: Binding | None = None  # over which that was bound
        self._reader: object = None
        self._reads_pending = 0  # of all tasks
        self._unread: deque[Message] = deque()
        self._leftovers: list[Resources] = []
        super().__init__(binding, receive, send, now)

    @property
    def has_messages(self) -> bool:
        """Whether its messages say who asks."""
        return self._extractor is not None

    @property
    def _receive_unwatched(self) -> Receive:
        return super()._receive_unwatched if self._extractor is None else self._receive_bound

    async def _receive_bound(self) -> Message:  # noqa: C901, PLR0911, PLR0912, PLR0915 - in one frame, since every message passes it
        try:
            task: object = asyncio.current_task()
        except RuntimeError:  # no event loop of asyncio: under trio that module is loaded already
            task = sys.modules["trio"].lowlevel.current_task()
        if self._reader is task:
            bound = self._bound
            if bound is not None:
                before, self._bound, self._before = self._before, None, None
                if before is None or before.ended or before.revoked:
                    before = self._rest or self._between()
                enter_binding(before)
                bound.ended = True
                if bound.values:
                    bound.values = {}
                if bound.resources is not None:
                    resources, bound.resources = bound.resources, None
                    await resources.finish(None)
        elif self._reader is not None:
            self._stop_binding()
        if self._closed is not None:
            return self._disconnect()
        before = current_binding()  # of the connection, or of what binds around the app, or of a block
        self._reads_pending += 1
        try:
            event = self._unread.popleft() if self._unread else await self._receive()
        finally:
            self._reads_pending -= 1
        if self._closed is not None:  # meanwhile, by `message_context` say
            return self._disconnect()
        kind = event["type"]
        if kind != "websocket.receive":
            if kind == "websocket.disconnect":
                self._end()
            return event
        try:
            if self._json is not None and self._authorize is None:  # as mostly, and nothing to wait for
                binding = self._read(self._json, event)
            else:
                binding = await self._examine(event)
        except RequestRejected as rejection:
            enter_binding(before)
            await self._refuse(rejection)
            return self._disconnect()
        except Exception as error:  # noqa: BLE001 - whatever a callable of the user's raises: the app must not go on
            enter_binding(before)
            await self._crash(error)
            return self._disconnect()
        except BaseException:  # the read was cancelled: the message is still to be read
            self._unread.appendleft(event)
            raise
        if self._closed is not None:  # meanwhile, by the expiry say
            _discard(binding, None)
            return self._disconnect()
        if self._reader is None:
            self._reader = _SEVERAL if self._reads_pending else task
        if self._reader is task:
            self._bound, self._before = binding, before
            enter_binding(binding)
        else:
            self._stop_binding()
            _discard(binding, None)
        return event

    def _between(self) -> Binding:
        self._rest = self._make(self._own)
        return self._rest

    def _make(self, identity: Identity | None) -> Binding:
        binding = make_binding(identity, self._services, self._ids)
        binding.connection = self
        return binding

    def _stop_binding(self) -> None:
        self._reader = _SEVERAL
        bound, self._bound = self._bound, None
        if bound is not None:
            self._revoke(bound)

    def _revoke(self, binding: Binding) -> None:
        # Whoever uses its resources is in the midst of it: they are closed with the connection.
        self._leave_over(binding)
        binding.revoke("messages")

    def _leave_over(self, binding: Binding) -> None:
        resources, binding.resources = binding.resources, None
        if resources is not None:
            self._leftovers.append(resources)

    def _read(self, extractor: JsonMessage, event: Message) -> Binding:
        own = self._own
        tenant, user = extractor.read(event)
        if own is None:
            extractor.check_whole(tenant, user)
        elif (tenant is None or tenant == own.tenant) and (user is None or user == own.user):
            return self._make(own)
        elif self._authorize is None or not extractor.is_whole(tenant, user):
            raise RequestRejected(403, "message_mismatch")  # never the tenant of one proof and the user of another
        binding = self._make(None)
        binding.tenant = tenant
        binding.user = user
        return binding

    async def _examine(self, event: Message) -> Binding:
        own = self._own
        if self._json is not None:
            binding = self._read(self._json, event)
        else:
            identity = await self._extract(cast("MessageExtractor", self._extractor), event)
            if identity is not None and identity.expires_at is not None and identity.expires_at <= self._now():
                raise RequestRejected(401, "identity_expired")
            if identity is None or (own is not None and _only_names(identity, own)):
                identity = own
            binding = self._make(identity)
        changed = own is not None and (binding.tenant != own.tenant or binding.user != own.user)
        if changed and self._authorize is None:
            raise RequestRejected(403, "message_mismatch")
        if self._authorize is not None and binding.tenant is not None and (changed or own is None):
            await self._ask(self._authorize, binding, changed=changed)
        if changed and self._rest is not None:
            self._revoke(self._rest)
            self._rest = None
        return binding

    async def _extract(self, extractor: MessageExtractor, event: Message) -> Identity | None:
        before = current_binding()
        enter_binding(make_binding(None, self._services, None))  # a task that it starts must not be anybody's
        try:
            return await read_message(extractor, event)
        finally:
            enter_binding(before)

    async def _ask(self, authorize: Authorize, binding: Binding, *, changed: bool) -> None:
        before = current_binding()
        enter_binding(binding)
        try:
            verdict = authorize(current_context(), self._scope)
            if verdict is not True:
                await check_verdict(verdict)
        except BaseException as error:
            binding.revoke()
            _discard(binding, error)
            if changed and isinstance(error, RequestRejected):
                raise RequestRejected(403, "message_mismatch") from None
            raise
        finally:
            enter_binding(before)

    async def identify(self, event: Message) -> Binding:
        """Examine a message for `message_context`.

        Args:
            event: a ``websocket.receive`` event.

        Returns:
            A binding for it, not yet entered.

        Raises:
            RequestRejected: it was refused, and the connection closed.
        """
        try:
            return await self._examine(event)
        except RequestRejected as rejection:
            await self._refuse(rejection)
            raise
        except Exception:
            await self._close(_CRASHED, "internal_error")
            raise

    async def _refuse(self, rejection: RequestRejected) -> None:
        log.debug("rejected a message: %s", rejection)
        await self._close(_POLICY, rejection.code)

    async def _crash(self, error: Exception) -> None:
        log_crash("examining a WebSocket message failed", error)
        await self._close(_CRASHED, "internal_error")

    def end(self) -> "list[Resources]":
        """End what was bound for messages, and the watch over the expiry.

        Returns:
            What is to be closed.
        """
        self._stop()
        self._reader = _SEVERAL  # a task that outlives the connection and still reads gets nothing bound
        for binding in (self._bound, self._rest):
            if binding is not None:
                binding.ended = True
                binding.values = {}
                self._leave_over(binding)
        self._bound = self._before = self._rest = None  # they point back to the connection
        leftovers, self._leftovers = self._leftovers, []
        return leftovers


def _only_names(identity: Identity, own: Identity) -> bool:
    # What says no more than whose it is agrees with the connection's identity, which has a proof behind it.
    if identity.tenant != own.tenant or identity.user not in {None, own.user}:
        return False
    return identity.user != own.user or not (identity.claims or identity.expires_at is not None)


def _discard(binding: Binding, error: BaseException | None) -> None:
    binding.ended = True
    resources, binding.resources = binding.resources, None
    if resources is not None:  # made by `authorize`
        try:
            resources.leave(error)
        except ResourceCloseError as failed:  # raised here it would take the message with it
            log_crash("closing what authorize had made failed", failed)
