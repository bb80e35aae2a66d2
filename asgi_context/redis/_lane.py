"""One connection, and the commands that go over it.

Whoever asks hands a command over; a task of the lane writes, another reads. Commands of one tick of the loop go in one
write, and more are sent while answers are still to come; a lone command is written at once. Answers come in the order
of the commands, so what was sent waits in a line, and an answer can only ever reach the head of it:

- who is cancelled before the command was sent is passed over, and it is never sent;
- who is cancelled later keeps a place in the line, and the answer is dropped when it comes;
- where an answer fails to come, or anything else ends the reading or the writing, the connection is aborted with all
  that it might still bring, and what was not sent whole is never done.

Commands of one task are done in the order in which it asked. Between tasks, small commands, those with large answers
and large commands take turns, so that none holds the others for long.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from contextvars import Context
from math import inf
from typing import Any, Final, Protocol, cast

from redis.exceptions import ReadOnlyError, RedisError

from asgi_context.redis._commands import Answer, Command, Confirmation, Waiting, pack, told
from asgi_context.redis._queue import LARGE, Queue
from asgi_context.redis._refused import ANSWERS, LateError, LostError, UnconfirmedError, UnsentError, because, code_of

_MOST_SENT: Final = 1024  # commands whose answers are to come
_MOST_BYTES_SENT: Final = 4_194_304  # of these commands
_MOST_BYTES_BACK: Final = 262_144  # of large answers, as they are expected, to come at a time
_MOST_WHOLES: Final = 128  # commands with large answers, however small they were so far
_WORTH_ASKING: Final = 0.3  # of the timeout, for replicas to be asked again about a write that has as much time left
_LATEST: Final = 0.02  # seconds that a deadline may be noticed late


class Connection(Protocol):
    """What is used of redis-py's connections."""

    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool = ...) -> None: ...  # noqa: FBT001 - as there
    async def send_packed_command(self, command: bytes, check_health: bool = ...) -> None: ...  # noqa: FBT001 - as there
    async def read_response(self, *, disable_decoding: bool = ..., disconnect_on_error: bool = ...) -> Any: ...  # noqa: ANN401 - what the server says


class Lane:
    """Sends commands over one connection.

    Args:
        connection: the connection, which nobody else uses. It is connected when it is first needed, and again where it
            was lost.
        timeout: how long connecting may take, in seconds.
        durable: how many replicas must say that they have a write before it is answered.
    """

    def __init__(self, connection: Connection, timeout: float, durable: int) -> None:
        self._connection = connection
        self._timeout = timeout
        self._durable = durable
        self._loop = asyncio.get_running_loop()
        self._ready = False  # whether there is a connection, and somebody reads from it
        self._transport: Any = None  # of the last one, even where redis-py has closed it
        self._closed = False
        self._queue = Queue()
        self._sent: deque[Waiting] = deque()
        self._bytes_sent = 0
        self._unconfirmed: list[tuple[Waiting, Answer]] = []
        self._confirming = False
        self._wholes_sent = 0
        self._whole_size = 16_384.0  # bytes that a large answer has, by and large
        self._heard = 0.0  # when there was an answer, or a first one to be waited for
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, command: Command, expires: float) -> Answer:
        """Send a command, and give its answer.

        Args:
            command: the command.
            expires: until when, by the clock of the loop.

        Returns:
            The answer, as the protocol has it.

        Raises:
            UnsentError: the command was not sent, or the lane is closed.
            LostError: it was sent, and no answer came.
            LateError: no answer came in time.
            UnconfirmedError: it was done, and too few replicas have said that they have it.
            RedisError: the server's answer is an error.
        """
        if self._closed:
            raise UnsentError
        waiting = Waiting(command, expires, self._loop.create_future())
        if self._usable() and not (self._sent or self._queue or self._durable or command.size > LARGE):
            self._watch(expires)
            await self._send_at_once(waiting)
        else:
            full = self._queue.is_full(command.size)
            if full:
                await self._find_room(command.size, expires)
            self._queue.put(waiting, has_room=full)
            self._watch(expires)
            self._work()
        return await waiting.answer

    async def close(self) -> None:
        """Wait for what is under way, and close the connection. What comes later is refused."""
        self._closed = True
        try:
            under_way = [waiting.answer for waiting in self._all() if not waiting.answer.done()]
            if under_way:
                await asyncio.wait(under_way)  # until their deadlines at the latest
        finally:
            reader = self._reader
            self._queue.fail(None)  # what was cancelled, and who waits for room
            self._break(None)
            if self._timer is not None:
                self._timer.cancel()
            ending = [task for task in (reader, self._writer) if task is not None]
            for task in ending:
                task.cancel()
            if ending:
                await asyncio.wait(ending)
            await self._connection.disconnect(nowait=True)

    def _all(self) -> list[Waiting]:
        return [*self._in_flight(), *self._queue.all()]

    def _in_flight(self) -> list[Waiting]:
        asked = [pair for waiting in self._sent if isinstance(waiting, Confirmation) for pair in waiting.writes]
        return [*self._sent, *(waiting for waiting, _ in [*asked, *self._unconfirmed])]

    async def _find_room(self, size: int, expires: float) -> None:
        try:
            await self._queue.find_room(size, expires)
        except BaseException:
            self._work()  # room that was given and not taken is another's
            raise
        if self._closed:
            self._queue.leave_room(size)
            raise UnsentError

    # Writing.

    async def _send_at_once(self, waiting: Waiting) -> None:
        try:
            await self._send([waiting])
        except BaseException:
            if not waiting.answer.cancel():
                waiting.answer.exception()  # nobody is there to be told
            self._break(None)
            raise

    def _work(self) -> None:
        if self._writer is None:
            self._writer = self._loop.create_task(self._write(), context=Context())
            self._writer.add_done_callback(self._written, context=Context())

    async def _write(self) -> None:
        await asyncio.sleep(0)  # whoever else asks in this tick goes with it
        while self._queue or (self._unconfirmed and not self._confirming):
            if not self._usable():
                if self._sent:
                    return  # until what still comes has been read
                if not await self._connect():
                    return
            if self._unconfirmed and not self._confirming:
                await self._send_confirmation()
                continue  # for the connection may have been lost meanwhile
            batch = self._take()
            if batch:
                await self._send(batch)
            elif self._sent:
                return  # more when there are fewer answers to come
            else:
                await asyncio.sleep(0)  # who was given room has not handed over yet, or was cancelled

    def _written(self, task: asyncio.Task[None]) -> None:
        # Not in the task itself, whose body has not even begun where it was cancelled at once.
        self._writer = None
        if task.cancelled() or task.exception() is not None:
            cause = None if task.cancelled() else task.exception()
            self._queue.fail(cause)
            self._break(cause)
        elif (self._unconfirmed and not self._confirming and self._usable()) or (self._queue and not self._sent):
            self._work()

    def _usable(self) -> bool:
        # What is written to a transport that is closing is lost, and from Python 3.12 on spoils the next one that has
        # the same file descriptor (CPython's issue 136234).
        return self._ready and not (self._transport is not None and self._transport.is_closing())

    async def _connect(self) -> bool:
        if self._unconfirmed:
            self._break(None)  # another connection would confirm what it has not written
        if self._reader is not None:
            self._break(None)
        try:
            async with asyncio.timeout(self._timeout):
                await self._connection.disconnect(nowait=True)
                await self._connection.connect()
        except (RedisError, OSError) as error:  # TimeoutError too
            self._abort()
            self._queue.fail(error)
            return False
        self._ready = True
        self._transport = _transport_of(self._connection)
        self._reader = self._loop.create_task(self._read(), context=Context())
        self._reader.add_done_callback(self._read_out, context=Context())
        return True

    async def _send(self, batch: list[Waiting]) -> None:
        if not self._sent:
            self._heard = self._loop.time()
        self._sent.extend(batch)
        packed: list[bytes] = []
        for waiting in batch:
            command = waiting.command
            packed.append(command.packed)
            self._bytes_sent += command.size
            self._wholes_sent += command.whole
        try:
            await self._connection.send_packed_command(b"".join(packed), check_health=False)
        except Exception as error:  # noqa: BLE001 - uvloop's RuntimeError, too, where it is closed already
            self._break(error)

    async def _send_confirmation(self) -> None:
        # One at a time, since the server does nothing else on this connection until it has answered.
        # Whose write is late already leaves the others no time.
        writes = [pair for pair in self._unconfirmed if not pair[0].answer.done()]
        self._unconfirmed.clear()
        if not writes:
            return
        self._confirming = True
        # It is answered before their deadlines, so that it can be said how many replicas have them.
        left = max(1, int((min(waiting.expires for waiting, _ in writes) - self._loop.time()) * 400))
        wait = Command(pack("WAIT", self._durable, left))
        await self._send([Confirmation(wait, writes, self._loop.create_future())])

    def _take(self) -> list[Waiting]:
        if len(self._sent) >= _MOST_SENT or self._bytes_sent >= _MOST_BYTES_SENT:
            return []
        expected = max(1, min(_MOST_WHOLES, int(_MOST_BYTES_BACK / self._whole_size)))
        return self._queue.take(expected - self._wholes_sent)

    # Reading.

    async def _read(self) -> None:
        try:
            await self._read_answers()
        finally:
            # Who is called before `_read_out` must not send any more.
            self._ready = self._ready and self._reader is not asyncio.current_task()

    async def _read_answers(self) -> None:
        connection = self._connection
        while True:
            failed = False
            try:
                answer = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
            except ANSWERS as error:
                answer, failed = error, True
            if not self._sent:
                return  # nobody has asked for it
            self._heard = self._loop.time()
            self._give(self._sent[0], answer, failed=failed)
            if not self._sent and not self._ready:
                return  # it was only to be read out
            if (
                self._queue
                and self._writer is None
                and len(self._sent) <= _MOST_SENT // 2
                and self._bytes_sent <= _MOST_BYTES_SENT // 2
            ):
                self._work()

    def _give(self, waiting: Waiting, answer: Answer, *, failed: bool) -> None:
        if waiting.extra:
            waiting.extra -= 1  # whatever it says, the answer to the command itself comes too
            return
        command = waiting.command
        if command.whole and not failed:  # up at once, and down by and by
            size = _size_of(answer)
            self._whole_size = max(size, self._whole_size + (size - self._whole_size) / 8)
        self._sent.popleft()
        self._bytes_sent -= command.size
        self._wholes_sent -= command.whole
        if isinstance(waiting, Confirmation):
            self._confirm(waiting.writes, answer, failed=failed)
        elif failed:
            if code_of(answer) == "READONLY":
                self._ready = False  # a master that is none any more: connected again, there may be another
            waiting.fail(answer)
        elif self._durable and not command.reads and told(answer) is None:
            self._unconfirmed.append((waiting, answer))
            if not self._confirming:
                self._work()
        else:
            waiting.end(answer)

    def _confirm(self, writes: list[tuple[Waiting, Answer]], replicas: Answer, *, failed: bool) -> None:
        self._confirming = False
        for waiting, answer in writes:
            if not failed and replicas >= self._durable:
                waiting.end(answer)
            elif not failed and waiting.expires - self._loop.time() > _WORTH_ASKING * self._timeout:
                self._unconfirmed.append((waiting, answer))  # it was another's deadline that is near
            else:
                why = replicas if failed else None
                waiting.fail(because(UnconfirmedError(0 if failed else replicas), why))
        if self._unconfirmed:
            self._work()

    def _read_out(self, task: asyncio.Task[None]) -> None:
        if self._reader is task:
            cause = None if task.cancelled() else task.exception()
            if cause is not None and isinstance(cause.__context__, ReadOnlyError) and self._sent:
                self._sent.popleft().fail(cause.__context__)  # so redis-py says it where Sentinel names the master
            self._break(cause)
        elif not task.cancelled():
            task.exception()  # of a connection that was given up already

    # What goes wrong.

    def _break(self, cause: BaseException | None) -> None:
        """End the connection, and with it whatever it might still bring."""
        self._ready = False
        self._abort()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
        lost = self._in_flight()
        self._sent.clear()
        self._unconfirmed.clear()
        self._confirming = False
        self._bytes_sent = self._wholes_sent = 0
        for waiting in lost:
            waiting.fail(because(LostError(), cause))
        if self._queue:
            self._work()

    def _abort(self) -> None:
        # redis-py would close it, which sends what is still in the buffers: a write that has failed would be done after
        # one that came later, on the next connection.
        transport = _transport_of(self._connection) or self._transport
        if transport is not None:
            transport.abort()

    def _watch(self, expires: float) -> None:
        if self._timer is not None:
            if expires + _LATEST >= self._timer.when():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(expires + _LATEST, self._sweep, context=Context())

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = [waiting for waiting in self._all() if waiting.expires <= now and not waiting.answer.done()]
        for waiting in late:
            waiting.fail(LateError())
        if self._sent and now - self._heard >= self._timeout:
            self._break(None)  # nothing comes at all, so that nothing will
        next_one = min((waiting.expires for waiting in self._all() if not waiting.answer.done()), default=inf)
        if next_one < inf:
            self._watch(next_one)


def _transport_of(connection: Connection) -> Any:  # noqa: ANN401 - of asyncio or uvloop
    return getattr(getattr(connection, "_writer", None), "transport", None)


def _size_of(answer: Answer) -> int:
    parts: Iterable[bytes] = cast("dict[bytes, bytes]", answer).values() if isinstance(answer, dict) else answer or ()
    return sum(map(len, parts))
