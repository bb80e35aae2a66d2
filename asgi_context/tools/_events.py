"""What waits to be sent over a WebSocket beside what its app sends."""

import asyncio
import json
from collections import deque
from contextlib import suppress
from contextvars import Context
from typing import Final, cast

from asgi_context._connection import Connection
from asgi_context._crashes import log, log_crash
from asgi_context.errors import BridgeClosedError, BridgeNotOpenError

_MOST: Final = 100  # events that wait to be sent

_plain: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_escaped: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode(value: object) -> str:
    """Write an event, or a part of one, as JSON (RFC 8259).

    Args:
        value: what to write.

    Returns:
        The JSON, which has a form in UTF-8.

    Raises:
        TypeError: something in it has no JSON form.
        ValueError: there is a number in it that JSON does not have, or it holds itself.
    """
    text = _plain(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as models write it who were cut off: no server can send it
        return _escaped(value)
    return text


class Events:
    """What waits to be sent over a connection beside what the app sends, in order.

    Args:
        connection: the connection.
        loop: its event loop.
    """

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._queue: deque[str | asyncio.Future[None]] = deque()  # events, and in between turns of the app's
        self._room: dict[asyncio.Future[bool], str] = {}  # events that find no place there, by those who wait for it
        self._busy = False  # an event is being sent, or the app has its turn
        self._writer: asyncio.Task[None] | None = None
        self._called: asyncio.Future[None] = loop.create_future()  # the writer waits for it where there is nothing
        self._over = False

    def __bool__(self) -> bool:
        return self._busy and not self._over

    async def put(self, text: str) -> None:
        """Have an event sent, as soon as those before it are.

        Args:
            text: the event.

        Raises:
            BridgeNotOpenError: the connection was not accepted yet.
            BridgeClosedError: it is closed.
        """
        if self.put_where_room(text):
            return
        place = self._loop.create_future()
        self._room[place] = text
        try:
            if not await place:
                raise BridgeClosedError
        finally:
            self._room.pop(place, None)

    async def put_surely(self, text: str, most: float) -> None:
        """Have an event sent, also where there is no room for it for some time, or the caller is cancelled meanwhile.

        Args:
            text: the event.
            most: how many seconds to wait for room.

        Raises:
            BridgeNotOpenError: the connection was not accepted yet.
            BridgeClosedError: it is closed.
        """
        self._check()
        place = self._loop.create_future()
        self._room[place] = text
        self._let_in()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(most):
                    if not await place:
                        raise BridgeClosedError
        finally:
            if self._room.pop(place, None) is not None:  # neither let in nor at an end
                self._append(text)

    def put_where_room(self, text: str) -> bool:
        """Have an event sent, if it need not wait for room.

        Args:
            text: the event.

        Returns:
            Whether that is so.

        Raises:
            BridgeNotOpenError: the connection was not accepted yet.
            BridgeClosedError: it is closed.
        """
        self._check()
        if len(self._queue) >= _MOST:  # where anybody waits it is full
            return False
        self._append(text)
        return True

    def put_at_once(self, text: str) -> None:
        """Have an event sent, however many wait already.

        Args:
            text: the event.

        Raises:
            BridgeNotOpenError: the connection was not accepted yet.
            BridgeClosedError: it is closed.
        """
        self._check()
        self._append(text)

    async def sent(self) -> None:
        """Wait until what waits by now has been sent, or cannot be; what comes later waits for the caller.

        Else an app whose tools have much to tell would not come to speak.
        """
        turn = self._loop.create_future()
        self._queue.append(turn)
        try:
            await turn
        finally:
            if not turn.done():
                turn.cancel()
            elif not turn.cancelled():
                self._loop.call_soon(self._go_on, context=Context())  # the caller comes first

    def end(self) -> None:
        """Send nothing more."""
        self._over = True
        waiting, self._queue = self._queue, deque()
        room, self._room = self._room, {}
        lost = sum(isinstance(one, str) for one in waiting)
        if lost:
            log.debug("%d events were not sent, since the WebSocket has ended", lost)
        if self._loop.is_closed():
            return
        for one in waiting:
            if not isinstance(one, str) and not one.done():
                one.set_result(None)  # sending tells the app what has become of the connection
        for place in room:
            if not place.done():
                place.set_result(False)
        if self._writer is not None:
            self._writer.cancel()

    def _check(self) -> None:
        if self._over or self._connection.is_over:
            raise BridgeClosedError
        if not self._connection.is_accepted:
            raise BridgeNotOpenError

    def _append(self, text: str) -> None:
        self._queue.append(text)
        if not self._busy:
            self._start()

    def _start(self) -> None:
        self._busy = True
        if self._writer is None:
            # In a Context of its own: it must not hold what is bound for longer than that lasts.
            self._writer = self._loop.create_task(self._write(), context=Context())
            self._writer.add_done_callback(self._written, context=Context())
        elif not self._called.done():  # else it was cancelled, and has not come to it yet
            self._called.set_result(None)

    def _go_on(self) -> None:
        self._busy = False
        if self._queue and not self._over:
            self._start()

    async def _write(self) -> None:
        # One task for as long as the connection lasts: to make one costs more than to wake one.
        while True:
            while self._queue:
                first = self._queue.popleft()
                self._let_in()
                if isinstance(first, str):
                    await self._connection.send_beside({"type": "websocket.send", "text": first})
                elif not first.done():
                    first.set_result(None)
                    break  # busy until the app has begun
            else:
                self._busy = False
            self._called = self._loop.create_future()
            await self._called

    def _let_in(self) -> None:
        while self._room and len(self._queue) < _MOST:
            place = next((one for one in self._room if not one.done()), None)  # who is cancelled leaves by itself
            if place is None:
                break
            self._queue.append(self._room.pop(place))
            place.set_result(True)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writer = None
        if task.cancelled():
            self.end()
            return
        error = cast("BaseException", task.exception())  # it has no other end
        if isinstance(error, OSError):  # the client has gone
            log.debug("a WebSocket has ended while events were sent: %s", type(error).__qualname__)
        else:
            log_crash("sending an event over a WebSocket failed", error)
        self.end()
