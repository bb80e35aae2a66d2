"""A lane: one connection, and how the commands of many tasks share it without ever sharing an answer."""

import asyncio
import gc
import random
import re
import time
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import hiredis
import pytest
from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - as redis-py calls it
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from asgi_context.redis import _lane, _queue
from asgi_context.redis._commands import Command, pack
from asgi_context.redis._lane import Lane
from asgi_context.redis._refused import LateError, LostError, UnconfirmedError, UnsentError

pytestmark = pytest.mark.anyio

SOON = 5.0

_WAIT = re.compile(r"\*3\r\n\$4\r\nWAIT\r\n\$\d+\r\n(\d+)\r\n\$\d+\r\n(\d+)\r\n")


class Wire:
    """A connection whose other end is the test.

    A command is text that ends with a newline. Answers are what the test gives with `answer`, or what ``replies`` makes of
    each command that is written, one turn of the loop later.
    """

    def __init__(self) -> None:
        self.replies: Callable[[str], Any] | None = None
        self.log: list[str] = []
        self.writes: list[list[str]] = []
        self.answers: deque[Any] = deque()
        self.changed = asyncio.Event()
        self.may_connect = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_connect.set()
        self.may_send.set()
        self.connect_fails: BaseException | None = None
        self.send_fails: BaseException | None = None
        self._writer: Any = None

    async def connect(self) -> None:
        self.log.append("connect")
        await self.may_connect.wait()
        await asyncio.sleep(0)
        if self.connect_fails is not None:
            raise self.connect_fails
        self._writer = SimpleNamespace(transport=Transport(self))

    async def disconnect(self, nowait: bool = False) -> None:
        assert nowait, "else it would wait for a server that may hang"
        self.log.append("disconnect")
        self.end()

    def end(self) -> None:
        self._writer = None
        self.answers.clear()
        self.changed.set()

    async def send_packed_command(self, command: bytes, check_health: bool = True) -> None:
        assert self._writer is not None
        assert check_health is False, "a check would be a round trip of its own"
        commands = _WAIT.sub(r"WAIT \1 \2\n", command.decode()).split("\n")[:-1]
        self.writes.append([one[:20] for one in commands])
        await self._until(self.may_send.is_set)
        if self.send_fails is not None:
            error, self.send_fails = self.send_fails, None
            raise error
        if self.replies is not None:
            asyncio.get_running_loop().call_soon(self.answer_on, self._writer, *map(self.replies, commands))

    async def read_response(self, *, disable_decoding: bool = False, disconnect_on_error: bool = True) -> Any:
        assert disable_decoding
        assert not disconnect_on_error, "the lane decides what an error means"
        await self._until(lambda: bool(self.answers))
        answer = self.answers.popleft()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def _until(self, there: Callable[[], bool]) -> None:
        connection = self._writer
        while connection is not None and not there():
            self.changed.clear()
            await self.changed.wait()
            connection = connection if connection is self._writer else None
        if connection is None:
            raise ConnectionError("Connection closed by server.")

    def answer(self, *answers: Any) -> None:
        self.answers += answers
        self.changed.set()

    def answer_on(self, connection: Any, *answers: Any) -> None:
        if connection is self._writer:
            self.answer(*answers)

    def send(self) -> None:
        self.may_send.set()
        self.changed.set()

    def lose(self) -> None:
        self.answer(ConnectionError("Connection closed by server."))

    @property
    def sent(self) -> list[str]:
        return [text.rstrip(".") for write in self.writes for text in write]


class Transport:
    """What is aborted."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.closing = False

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            self.wire.log.append("abort")
            self.wire.end()

    def is_closing(self) -> bool:
        return self.closing


def command(text: str, **options: Any) -> Command:
    return Command(f"{text}\n".encode(), **options)


def large(text: str, **options: Any) -> Command:
    return command(text.ljust(_queue.LARGE, "."), **options)


def later(seconds: float = SOON) -> float:
    return asyncio.get_running_loop().time() + seconds


def upper(text: str) -> str | int:
    return 1000 if text.startswith("WAIT ") else text.rstrip(".").upper()


async def turns(many: int = 20) -> None:
    """Let everybody else go on until they wait for something."""
    for _ in range(many):
        await asyncio.sleep(0)


def nothing_left(lane: Lane) -> bool:
    waits = (
        lane._queue._small,
        lane._queue._wholes,
        lane._queue._large,
        lane._sent,
        lane._queue._room,
        lane._unconfirmed,
    )
    return not any(waits) and lane._queue._count == lane._queue._bytes == lane._bytes_sent == lane._wholes_sent == 0


async def until(there: Callable[[], bool]) -> None:
    """Wait for what only time brings."""
    async with asyncio.timeout(SOON):
        while not there():  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.005)


def hasty() -> "Case":
    """One that gives a connection up where nothing comes for a short time."""
    return Case(timeout=0.05)


class Case:
    """A lane over a wire, and who asks."""

    def __init__(self, durable: int = 0, timeout: float = SOON) -> None:
        self.wire = Wire()
        self.lane = Lane(self.wire, timeout, durable)

    def ask(self, what: str | Command, seconds: float = SOON, **options: Any) -> "asyncio.Task[Any]":
        asked = command(what, **options) if isinstance(what, str) else what
        return asyncio.get_running_loop().create_task(self.lane.ask(asked, later(seconds)))

    async def connected(self) -> "Case":
        self.wire.replies = upper
        assert await self.lane.ask(command("hello", reads=True), later()) == "HELLO"
        await turns()
        self.forget()
        return self

    def forget(self) -> None:
        self.wire.replies = None
        self.wire.writes.clear()
        self.wire.log.clear()

    async def taken(self) -> "asyncio.Task[Any]":
        """Send one command, whose answer is "1" and still to come; what is asked now is written by a task."""
        first = self.ask("first", reads=True)
        await turns()
        assert self.wire.writes[-1] == ["first"]
        self.wire.writes.clear()
        return first

    def nothing_left(self) -> bool:
        return nothing_left(self.lane)


@pytest.fixture
async def case(asyncio_only: None) -> AsyncIterator[Case]:
    made = await Case().connected()
    yield made
    await made.lane.close()
    assert made.nothing_left()


@pytest.fixture
async def held(asyncio_only: None) -> AsyncIterator[Case]:
    """Not connected yet, so that nothing is sent before the test lets it."""
    made = Case()
    made.wire.may_connect.clear()
    made.wire.replies = upper
    yield made
    await made.lane.close()
    assert made.nothing_left()


@pytest.fixture
async def durable(asyncio_only: None) -> AsyncIterator[Case]:
    made = await Case(durable=2).connected()
    yield made
    await made.lane.close()
    assert made.nothing_left()


# One command alone.


async def test_a_lone_command_goes_at_once_and_no_task_is_made_for_it(case: Case) -> None:
    asked = case.ask("one")
    others = asyncio.all_tasks()
    await turns()
    assert asyncio.all_tasks() == others
    assert case.wire.writes == [["one"]]
    case.wire.answer("1")
    assert await asked == "1"


async def test_the_connection_is_made_with_the_first_command(asyncio_only: None) -> None:
    case = Case()
    assert case.wire.log == []
    case.wire.replies = upper
    assert await case.lane.ask(command("one"), later()) == "ONE"
    assert case.wire.log == ["disconnect", "connect"]
    assert await case.lane.ask(command("two"), later()) == "TWO"
    assert case.wire.log == ["disconnect", "connect"], "and kept"
    await case.lane.close()


async def test_an_answer_that_is_an_error_is_raised_and_the_connection_kept(case: Case) -> None:
    case.wire.replies = lambda text: NoScriptError("NOSCRIPT No matching script.") if text == "one" else text
    with pytest.raises(NoScriptError):
        await case.lane.ask(command("one"), later())
    assert await case.lane.ask(command("two"), later()) == "two"
    assert case.wire.log == []


async def test_a_connection_that_is_lost_while_nobody_asks_is_made_anew_before_anything_is_sent(case: Case) -> None:
    case.wire.lose()
    await turns()
    assert case.wire.log == ["abort"]
    case.wire.replies = upper
    assert await case.lane.ask(command("one"), later()) == "ONE"
    assert case.wire.log == ["abort", "disconnect", "connect"]
    assert case.wire.writes == [["one"]]


async def test_an_answer_that_nobody_has_asked_for_ends_the_connection_and_reaches_nobody(case: Case) -> None:
    case.wire.answer("of somebody else")
    await turns()
    assert case.wire.log == ["abort"]
    case.wire.replies = upper
    assert [*await asyncio.gather(case.ask("a"), case.ask("b"))] == ["A", "B"]


async def test_who_asks_between_the_loss_of_a_connection_and_what_follows_from_it_is_not_lost(case: Case) -> None:
    first = await case.taken()

    async def ask_again() -> Any:
        await first
        case.wire.replies = upper
        return await case.lane.ask(command("again"), later())

    again = asyncio.get_running_loop().create_task(ask_again())
    await turns()
    case.wire.answer("1")
    case.wire.lose()
    assert await again == "AGAIN"
    assert case.wire.log == ["abort", "disconnect", "connect"]


async def test_nothing_is_written_to_a_transport_that_is_closing(case: Case) -> None:
    case.wire._writer.transport.closing = True
    case.wire.replies = upper
    assert await case.lane.ask(command("one"), later()) == "ONE"
    assert case.wire.log == ["disconnect", "connect"]
    case.wire.replies = None
    first = await case.taken()
    case.wire._writer.transport.closing = True
    behind = case.ask("behind")
    await turns()
    assert case.wire.writes == []
    case.wire.answer("1")
    case.wire.replies = upper
    case.wire.lose()
    assert [*await asyncio.gather(first, behind)] == ["1", "BEHIND"]


async def test_a_lone_command_whose_connection_is_lost_is_lost(case: Case) -> None:
    asked = case.ask("one")
    await turns()
    case.wire.lose()
    with pytest.raises(LostError) as caught:
        await asked
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert case.wire.log == ["abort"]


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), ConnectionError("Error 32"), RuntimeError("the handler is closed")],
    ids=["os", "redis", "uvloop"],
)
async def test_a_lone_command_that_cannot_be_written_is_lost_since_a_part_of_it_may_have_gone(
    case: Case, error: Exception
) -> None:
    case.wire.send_fails = error
    with pytest.raises(LostError) as caught:
        await case.lane.ask(command("one"), later())
    assert caught.value.__cause__ is error
    case.wire.replies = upper
    assert await case.lane.ask(command("two"), later()) == "TWO"


async def test_a_lone_command_without_an_answer_is_late_at_its_deadline_and_the_answer_goes_to_nobody(
    case: Case,
) -> None:
    with pytest.raises(LateError):
        await case.lane.ask(command("one"), later(0.02))
    behind = case.ask("two")
    await turns()
    assert case.wire.writes == [["one"], ["two"]]
    case.wire.answer("for one", "for two")
    assert await behind == "for two"
    assert case.wire.log == [], "and the connection is kept"


async def test_a_lone_command_that_cannot_be_written_in_time_is_late_and_the_connection_given_up(
    asyncio_only: None,
) -> None:
    case = await hasty().connected()
    case.wire.may_send.clear()
    with pytest.raises(LateError):
        await case.lane.ask(command("one"), later(0.05))
    assert case.wire.log[0] == "abort"
    case.wire.send()
    case.wire.replies = upper
    assert await case.lane.ask(command("two"), later()) == "TWO"
    await case.lane.close()


# Many at once.


async def test_commands_of_one_turn_travel_in_one_write(held: Case) -> None:
    asked = [held.ask(text) for text in "abcd"]
    held.wire.may_connect.set()
    assert await asyncio.gather(*asked) == ["A", "B", "C", "D"]
    assert held.wire.writes == [["a", "b", "c", "d"]]


async def test_the_first_of_many_goes_at_once_and_the_others_of_the_same_turn_in_one_write(case: Case) -> None:
    case.wire.replies = upper
    assert await asyncio.gather(*[case.ask(text) for text in "abcd"]) == ["A", "B", "C", "D"]
    assert case.wire.writes == [["a"], ["b", "c", "d"]]


async def test_more_is_sent_while_answers_are_still_to_come(case: Case) -> None:
    asked = [await case.taken()]
    for text in "abc":
        asked += [case.ask(f"{text}{number}") for number in range(3)]
        await turns()
    assert case.wire.writes == [[f"{text}{number}" for number in range(3)] for text in "abc"]
    assert not any(task.done() for task in asked)
    case.wire.answer(*range(10))
    assert await asyncio.gather(*asked) == [*range(10)]
    assert case.wire.log == []


async def test_who_has_got_an_answer_and_asks_again_goes_with_the_others(case: Case) -> None:
    case.wire.replies = upper

    async def work(name: str) -> None:
        for number in range(10):
            assert await case.lane.ask(command(f"{name}{number}"), later()) == f"{name}{number}".upper()

    await asyncio.gather(*(work(name) for name in "abcdefgh"))
    assert sum(map(len, case.wire.writes)) == 80
    assert len(case.wire.writes) <= 30
    assert max(map(len, case.wire.writes)) >= 7


async def test_each_gets_its_own_answer_in_the_order_in_which_they_were_sent(case: Case) -> None:
    asked = [await case.taken(), *(case.ask(text) for text in "abc")]
    await turns()
    assert case.wire.writes == [["a", "b", "c"]]
    for number, answer in enumerate(["1", "for a", "for b", "for c"], 1):
        assert sum(task.done() for task in asked) == number - 1, "nobody waits for the answers of those behind"
        case.wire.answer(answer)
        await turns()
    assert await asyncio.gather(*asked) == ["1", "for a", "for b", "for c"]


@pytest.mark.parametrize(
    "error",
    [ResponseError("ERR"), OutOfMemoryError("OOM"), BusyLoadingError("LOADING"), NoScriptError("NOSCRIPT")],
    ids=lambda error: type(error).__name__,
)
async def test_an_answer_that_is_an_error_fails_its_caller_alone(case: Case, error: Exception) -> None:
    first = await case.taken()
    others = [case.ask(text) for text in "abc"]
    await turns()
    case.wire.answer("1", "for a", error, "for c")
    with pytest.raises(type(error)):
        await others[1]
    assert (await first, await others[0], await others[2]) == ("1", "for a", "for c")
    assert case.wire.log == []


@pytest.mark.parametrize("before", ["OK", ResponseError("NOPERM")], ids=["an answer", "an error"])
async def test_an_answer_before_the_one_that_counts_is_passed_over_whatever_it_says(case: Case, before: Any) -> None:
    asked = [case.ask(command("a").after(b"ASKING\n")), case.ask("b"), case.ask(command("c").after(b"ASKING\n"))]
    await turns()
    assert case.wire.writes == [["ASKING", "a"], ["b", "ASKING", "c"]]
    case.wire.answer(before, "for a", "for b", before, ResponseError("MOVED"))
    assert await asyncio.gather(*asked[:2]) == ["for a", "for b"]
    with pytest.raises(ResponseError, match="MOVED"):
        await asked[2]


def test_a_command_stays_what_it_is_where_another_is_put_before_it() -> None:
    for options in ({"reads": True, "whole": True}, {"again": True}, {}):
        one = command("one", **options)
        two = one.after(b"ASKING\n")
        assert (two.packed, two.extra) == (b"ASKING\none\n", 1)
        assert (two.reads, two.again, two.whole) == (one.reads, one.again, one.whole)


def test_commands_are_packed_as_the_protocol_has_it() -> None:
    assert pack("SET", "k", b"\x00\r\n", 1) == b"*4\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\n\x00\r\n\r\n$1\r\n1\r\n"


async def test_no_more_than_so_many_are_sent_at_a_time_and_it_goes_on_when_half_are_answered(case: Case) -> None:
    asked = [case.ask(str(number)) for number in range(3000)]
    await turns(50)
    assert [len(write) for write in case.wire.writes] == [1, 256, 256, 256, 256]
    case.wire.answer(*range(512))
    await turns(50)
    assert len(case.wire.writes) == 5, "writes are worth making large"
    case.wire.answer(512)
    await turns(50)
    assert [len(write) for write in case.wire.writes[5:]] == [256, 256]
    case.wire.answer(*range(513, 1537))
    case.wire.replies = int
    await turns(50)
    case.wire.answer(*range(1537, 2049 if len(case.wire.writes) == 9 else 1537))
    answers = await asyncio.gather(*asked)
    assert answers == [*range(3000)]


# Cancelled.


async def test_who_is_cancelled_before_sending_is_never_sent(held: Case) -> None:
    asked = [held.ask("a"), held.ask("b", whole=True), held.ask(large("c")), held.ask("d")]
    await turns()
    for task in asked[:3]:
        task.cancel()
    await turns()
    held.wire.may_connect.set()
    assert await asked[3] == "D"
    await turns()
    assert held.wire.writes == [["d"]]
    assert [task.cancelled() for task in asked] == [True, True, True, False]


async def test_where_all_are_cancelled_before_sending_nothing_is_written(held: Case) -> None:
    asked = [held.ask(text) for text in "abc"]
    await turns()
    for task in asked:
        task.cancel()
    held.wire.may_connect.set()
    await turns()
    assert held.wire.writes == []
    assert await held.lane.ask(command("d"), later()) == "D"


@pytest.mark.parametrize("answer", ["of another", ResponseError("ERR of another")], ids=["answer", "error"])
async def test_the_answer_of_one_who_was_cancelled_is_dropped_in_its_turn(case: Case, answer: Any) -> None:
    asked = [await case.taken(), *(case.ask(text) for text in "abc")]
    await turns()
    for gone in (0, 2):
        asked[gone].cancel()
    await turns()
    behind = case.ask("d")
    await turns()
    assert case.wire.writes == [["a", "b", "c"], ["d"]], "and nobody waits for it before sending"
    case.wire.answer(answer, "for a", answer, "for c", "for d")
    assert (await asked[1], await asked[3], await behind) == ("for a", "for c", "for d")
    assert case.wire.log == [], "and the connection is kept"


async def test_an_answer_that_does_not_come_for_one_who_was_cancelled_ends_the_connection(
    asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what waits behind it would wait for as long as TCP has hope."""
    monkeypatch.setattr(_lane, "_MOST_SENT", 1)
    case = await hasty().connected()
    gone = case.ask("gone")
    await turns()
    gone.cancel()
    with pytest.raises(LateError):
        await case.lane.ask(command("behind"), later(0.1))
    case.wire.replies = upper
    assert await case.lane.ask(command("again"), later()) == "AGAIN"
    assert case.wire.sent == ["gone", "again"]
    assert case.wire.log == ["abort", "disconnect", "connect"]
    await case.lane.close()


async def test_where_writing_hangs_and_all_that_was_sent_is_cancelled_the_connection_ends_too(
    asyncio_only: None,
) -> None:
    case = await hasty().connected()
    first = await case.taken()
    case.wire.may_send.clear()
    gone = case.ask("gone")
    await turns()
    assert case.wire.sent == ["gone"]
    gone.cancel()
    first.cancel()
    with pytest.raises(LateError):
        await case.lane.ask(command("behind"), later(0.1))
    case.wire.send()
    case.wire.replies = upper
    assert await case.lane.ask(command("again"), later()) == "AGAIN"
    await case.lane.close()


@pytest.mark.parametrize("lost", [False, True], ids=["in order", "lost meanwhile"])
async def test_who_is_cancelled_while_it_is_being_sent_alone_takes_the_connection_along(case: Case, lost: bool) -> None:
    case.wire.may_send.clear()
    gone = await case.taken()
    if lost:
        case.lane._break(ConnectionError("lost"))
    gone.cancel()
    await turns()
    assert gone.cancelled()
    assert "abort" in case.wire.log, "nobody knows how much of it the server has"
    case.wire.send()
    case.wire.replies = upper
    assert await case.lane.ask(command("a"), later()) == "A"
    gc.collect()  # so that an error that nobody looks at would be told


async def test_a_connection_that_the_client_has_closed_by_itself_is_aborted_all_the_same(case: Case) -> None:
    """Closing sends what is still in the buffers."""

    async def send_packed_command(packed: bytes, check_health: bool = True) -> None:
        case.wire._writer = None
        raise ConnectionError("Error 32 while writing to socket.")

    case.wire.send_packed_command = send_packed_command  # type: ignore[method-assign, assignment]
    with pytest.raises(LostError):
        await case.lane.ask(command("one"), later())
    assert case.wire.log == ["abort"]


async def test_what_a_task_asks_after_its_own_cancellation_is_done_after_what_was_cancelled(case: Case) -> None:
    async def write_and_then_remove() -> Any:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await case.lane.ask(command("write"), later())
        return await case.lane.ask(command("remove"), later())

    task = asyncio.get_running_loop().create_task(write_and_then_remove())
    await until(lambda: len(case.wire.sent) == 2)
    assert case.wire.writes == [["write"], ["remove"]], "on the same connection"
    case.wire.answer("written", "removed")
    assert await task == "removed"
    assert case.wire.log == []


async def test_large_commands_wait_while_enough_bytes_are_sent_without_an_answer(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for replicas, say, answers nothing, and might be sent any amount."""
    monkeypatch.setattr(_lane, "_MOST_BYTES_SENT", 4 * (_queue.LARGE + 1))
    first = await case.taken()
    asked = [case.ask(large(str(number))) for number in range(12)]
    await turns()
    assert case.wire.sent == ["0", "1", "2", "3"]
    case.wire.answer("first", "for 0")
    await turns()
    assert len(case.wire.sent) == 4, "not for one place: half of them first"
    case.wire.answer("for 1")
    await turns()
    assert case.wire.sent[4:] == ["4", "5"]
    case.wire.answer(*(f"for {number}" for number in range(2, 6)))
    await turns()
    assert case.wire.sent[6:] == ["6", "7", "8", "9"]
    case.wire.answer(*(f"for {number}" for number in range(6, 10)))
    await turns()
    case.wire.answer("for 10", "for 11")
    assert await asyncio.gather(first, *asked) == ["first", *(f"for {number}" for number in range(12))]


# Lost.


async def test_a_lost_connection_fails_those_without_answer_and_sends_those_who_wait_on_the_next(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lane, "_MOST_SENT", 4)
    first = await case.taken()
    asked = [case.ask(text) for text in "abc"]
    await turns()
    assert case.wire.writes == [["a", "b", "c"]]
    waits = case.ask("d")
    await turns()
    case.wire.replies = upper
    case.wire.answer("1", "for a")
    case.wire.lose()
    assert (await first, await asked[0]) == ("1", "for a")
    for task in asked[1:]:
        with pytest.raises(LostError) as caught:
            await task
        assert isinstance(caught.value.__cause__, ConnectionError)
    assert await waits == "D"
    assert case.wire.log == ["abort", "disconnect", "connect"]


@pytest.mark.parametrize("error", [ConnectionResetError(), ConnectionError("Error 32"), RuntimeError("closed")])
async def test_a_write_that_fails_loses_all_in_it_and_nobody_behind(
    held: Case, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(_queue, "_MOST_TOGETHER", 2)
    asked = [held.ask(text) for text in "abc"]
    await turns()
    held.wire.send_fails = error
    held.wire.may_connect.set()
    with pytest.raises(LostError) as caught:
        await asked[0]
    assert caught.value.__cause__ is error
    with pytest.raises(LostError):
        await asked[1]
    assert await asked[2] == "C"


@pytest.mark.parametrize("error", [ConnectionError("Error 111"), OSError(113, "No route to host")], ids=["redis", "os"])
async def test_what_could_not_be_sent_is_told_from_what_is_lost(
    held: Case, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "_MOST", 3)
    held.wire.connect_fails = error
    asked = [held.ask("a"), held.ask("b", whole=True), held.ask(large("c")), held.ask("waits for room")]
    held.wire.may_connect.set()
    for task in asked:
        with pytest.raises(UnsentError) as caught:
            await task
        assert caught.value.__cause__ is error
    assert held.wire.writes == []
    held.wire.connect_fails = None
    assert await held.lane.ask(command("d"), later()) == "D"


async def test_who_asks_in_the_turn_in_which_connecting_has_failed_has_a_try_of_its_own(held: Case) -> None:
    held.wire.connect_fails = OSError()
    again: list[asyncio.Task[Any]] = []
    asked = held.ask("a")

    give_up = held.lane._queue.fail

    def give_up_and_ask_again(cause: BaseException | None) -> None:
        give_up(cause)
        held.wire.connect_fails = None
        again.append(held.ask("b"))

    held.lane._queue.fail = give_up_and_ask_again  # type: ignore[method-assign]
    held.wire.may_connect.set()
    with pytest.raises(UnsentError):
        await asked
    assert await again[0] == "B"


@pytest.mark.parametrize("alone", [True, False])
async def test_where_a_server_says_that_it_is_a_replica_the_rest_is_read_and_the_lane_connects_anew(
    case: Case, alone: bool
) -> None:
    asked = case.ask("write")
    others = [] if alone else [case.ask(text) for text in "ab"]
    await turns()
    case.wire.answer(ReadOnlyError("You can't write against a read only replica."))
    with pytest.raises(ReadOnlyError):
        await asked
    case.wire.replies = upper
    behind = case.ask("behind")
    await turns()
    if others:
        assert case.wire.sent == ["write", "a", "b"], "what comes now waits for the next connection"
        assert not behind.done()
    case.wire.answer(*[f"for {text}" for text in "ab"[: len(others)]])
    assert await asyncio.gather(*others) == ["for a", "for b"][: len(others)]
    assert await behind == "BEHIND"
    assert case.wire.log == ["abort", "disconnect", "connect"]


async def test_a_script_that_says_so_is_the_same(case: Case) -> None:
    case.wire.replies = lambda text: ResponseError("Error running script: -READONLY You can't write.")
    with pytest.raises(ResponseError):
        await case.lane.ask(command("script"), later())
    await turns()
    assert case.wire.log == ["abort"]


async def test_where_that_rest_does_not_come_the_lane_does_not_wait_for_it_for_ever(asyncio_only: None) -> None:
    case = await hasty().connected()
    asked, gone = case.ask("write"), case.ask("gone")
    await turns()
    gone.cancel()
    case.wire.answer(ReadOnlyError("You can't write against a read only replica."))
    with pytest.raises(ReadOnlyError):
        await asked
    with pytest.raises(LateError):
        await case.lane.ask(command("behind"), later(0.1))
    case.wire.replies = upper
    assert await case.lane.ask(command("again"), later()) == "AGAIN"
    await case.lane.close()


def demoted() -> ConnectionError:
    """What redis-py makes of it where Sentinel has named the master."""
    try:
        try:
            raise ReadOnlyError("You can't write against a read only replica.")
        except ReadOnlyError:
            raise ConnectionError("The previous master is now a slave")  # noqa: B904 - as there
    except ConnectionError as error:
        return error


async def test_where_redis_py_makes_a_lost_connection_of_it_the_one_who_asked_is_told_that_nothing_was_written(
    case: Case,
) -> None:
    asked = [case.ask(text) for text in "abc"]
    await turns()
    case.wire.answer("for a", demoted())
    assert await asked[0] == "for a"
    with pytest.raises(ReadOnlyError):
        await asked[1]
    with pytest.raises(LostError):
        await asked[2]
    case.wire.replies = upper
    assert await case.lane.ask(command("d"), later()) == "D"
    assert case.wire.log == ["abort", "disconnect", "connect"]


async def test_such_an_answer_that_nobody_has_asked_for_only_ends_the_connection(case: Case) -> None:
    case.wire.answer(demoted())
    await turns()
    assert case.wire.log == ["abort"]


# Deadlines.


async def test_each_that_waits_to_be_sent_fails_at_its_own_deadline_and_is_not_sent_any_more(held: Case) -> None:
    soon, much_later = held.ask("a", 0.02), held.ask("b")
    with pytest.raises(LateError):
        await soon
    assert not much_later.done()
    held.wire.may_connect.set()
    assert await much_later == "B"
    assert held.wire.writes == [["b"]]


async def test_a_deadline_counts_from_when_it_was_given_and_not_from_when_others_wait_until(held: Case) -> None:
    much_later = held.ask("a")
    await turns()
    soon = held.ask("b", 0.02)
    with pytest.raises(LateError):
        await soon
    assert not much_later.done(), "it was no later than that, at least"
    held.wire.may_connect.set()
    assert await much_later == "A"


async def test_a_sent_command_that_is_late_touches_no_other(case: Case) -> None:
    first = await case.taken()
    soon, much_later = case.ask("a", 0.02), case.ask("b")
    with pytest.raises(LateError):
        await soon
    behind = case.ask("c")
    await turns()
    case.wire.answer("1", "for a", "for b", "for c")
    assert [*await asyncio.gather(first, much_later, behind)] == ["1", "for b", "for c"]
    assert case.wire.log == []


async def test_where_nothing_comes_for_as_long_as_may_be_the_connection_is_given_up_with_all_that_was_sent(
    asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lane, "_MOST_SENT", 2)
    case = await hasty().connected()
    soon, much_later = case.ask("a", 0.05), case.ask("b")
    await turns()
    unsent = case.ask("c")
    await turns()
    assert case.wire.sent == ["a", "b"]
    case.wire.replies = upper
    with pytest.raises(LateError):
        await soon
    with pytest.raises(LostError):
        await much_later
    assert await unsent == "C"
    assert case.wire.log == ["abort", "disconnect", "connect"]
    await case.lane.close()


async def test_a_server_that_answers_slowly_is_not_given_up(asyncio_only: None) -> None:
    case = await hasty().connected()
    asked = [case.ask(str(number)) for number in range(8)]
    for number in range(8):
        await asyncio.sleep(0.02)
        case.wire.answer(str(number))
    assert await asyncio.gather(*asked) == [*map(str, range(8))]
    assert case.wire.log == []
    await case.lane.close()


async def test_a_connection_that_is_not_made_in_time_makes_them_late(held: Case) -> None:
    with pytest.raises(LateError):
        await held.lane.ask(command("a"), later(0.02))
    held.wire.may_connect.set()
    assert await held.lane.ask(command("b"), later()) == "B"


async def test_connecting_ends_in_time_too(asyncio_only: None) -> None:
    case = Case(timeout=0.02)
    case.wire.may_connect.clear()
    with pytest.raises(UnsentError) as caught:
        await case.lane.ask(command("a"), later())
    assert isinstance(caught.value.__cause__, TimeoutError)
    case.wire.may_connect.set()
    case.wire.replies = upper
    assert await case.lane.ask(command("b"), later()) == "B"
    await case.lane.close()


async def test_a_deadline_that_is_over_when_it_is_given_is_noticed(case: Case) -> None:
    with pytest.raises(LateError):
        await case.lane.ask(command("a"), later(-1))
    case.wire.answer("for a")
    await turns()
    case.wire.replies = upper
    assert await case.lane.ask(command("b"), later()) == "B"


async def test_the_timer_ends_with_the_last_deadline_there_is(held: Case) -> None:
    asked = [held.ask("a", 0.02), held.ask("b", 0.08)]
    for task in asked:
        with pytest.raises(LateError):
            await task
    assert held.lane._timer is None
    held.wire.may_connect.set()
    await turns()


async def test_the_timer_lasts_until_the_next_deadline_where_all_were_answered_before_it(case: Case) -> None:
    case.wire.replies = upper
    assert await case.lane.ask(command("a"), later(0.02)) == "A"
    await until(lambda: case.lane._timer is None)
    assert await case.lane.ask(command("b"), later(0.02)) == "B"
    assert case.lane._timer is not None
    assert case.wire.log == []


# Large ones, and whole ones.


async def test_large_commands_go_alone_and_in_turns_with_small_ones(held: Case) -> None:
    asked = [held.ask(large(f"large{number}")) for number in range(3)]
    asked += [held.ask(f"small{number}") for number in range(3)]
    await turns()
    held.wire.may_connect.set()
    assert await asyncio.gather(*asked) == ["LARGE0", "LARGE1", "LARGE2", "SMALL0", "SMALL1", "SMALL2"]
    writes = [[text.rstrip(".") for text in write] for write in held.wire.writes]
    small = ["small0", "small1", "small2"]
    assert writes in ([small, ["large0"], ["large1"], ["large2"]], [["large0"], small, ["large1"], ["large2"]])


async def test_a_large_command_goes_even_where_nothing_else_does(case: Case) -> None:
    case.wire.replies = upper
    assert await case.lane.ask(large("large"), later()) == "LARGE"
    assert len(case.wire.writes) == 1


async def test_small_ones_that_keep_coming_do_not_hold_a_large_one_and_large_ones_no_small_one(case: Case) -> None:
    case.wire.replies = upper
    done = asyncio.Event()

    async def keep_asking(make: Callable[[str], Command], name: str) -> None:
        number = 0
        while not done.is_set():
            number += 1
            assert await case.lane.ask(make(f"{name}{number}"), later()) == f"{name}{number}".upper()

    busy = [
        asyncio.get_running_loop().create_task(keep_asking(make, name))
        for make, name in [(command, "a"), (command, "b"), (large, "large"), (large, "large")]
    ]
    await turns(300)
    done.set()
    await asyncio.gather(*busy)
    kinds = "".join("L" if write[0].startswith("large") else "s" for write in case.wire.writes)
    assert len(kinds) > 20
    assert "LLL" not in kinds
    assert "sssss" not in kinds


async def test_a_large_command_with_a_large_answer_counts_once(case: Case) -> None:
    case.wire.replies = lambda text: [b"f", b"v"]
    await asyncio.gather(*(case.lane.ask(large("large", whole=True), later()) for _ in range(3)))
    assert await case.lane.ask(command("one", whole=True), later()) == [b"f", b"v"]
    assert case.lane._wholes_sent == 0


async def test_one_write_is_bounded_in_commands_and_in_bytes(held: Case) -> None:
    asked = [held.ask(f"{number}") for number in range(600)]
    await turns()
    held.wire.may_connect.set()
    assert await asyncio.gather(*asked) == [str(number) for number in range(600)]
    assert [len(write) for write in held.wire.writes] == [256, 256, 88]

    held.wire.lose()
    await turns()
    held.wire.writes.clear()
    asked = [held.ask(f"{number}".ljust(10_000, ".")) for number in range(20)]
    assert await asyncio.gather(*asked) == [str(number) for number in range(20)]
    assert [len(write) for write in held.wire.writes] == [7, 7, 6]


@pytest.mark.parametrize("shape", [lambda value: [b"f", value], lambda value: {b"f": value}], ids=["list", "RESP3"])
async def test_how_many_large_answers_are_to_come_at_a_time_follows_from_how_large_they_were(
    case: Case, shape: Callable[[bytes], Any]
) -> None:
    value = b"x" * 100_000
    to_come: list[int] = []

    async def read_many(many: int, answer: Any) -> list[int]:
        to_come.clear()
        first = await case.taken()
        asked = [case.ask(f"{number}", whole=True) for number in range(many)]
        await turns(50)
        case.wire.answer("1")
        while not all(task.done() for task in asked):
            to_come.append(case.lane._wholes_sent)
            case.wire.answer(answer)
            await turns(3)
        assert [task.result() for task in asked] == [answer] * many
        assert await first == "1"
        return list(to_come)

    await read_many(60, shape(b"1"))
    assert max(await read_many(300, shape(b"1"))) == 128, "however small they were"
    to_come_of_large = await read_many(160, shape(value))
    assert to_come_of_large[0] == 128
    assert max(to_come_of_large[130:]) == 2, "once it is known that they are large"
    await read_many(60, None)
    assert max(await read_many(60, None)) == 60, "when they are small again"


async def test_small_commands_are_not_held_by_the_bound_on_large_answers(case: Case) -> None:
    case.lane._whole_size = 1e6
    asked = [await case.taken()]
    asked += [case.ask(f"whole{number}", whole=True) for number in range(3)] + [case.ask(f"{n}") for n in range(9)]
    await turns()
    assert case.wire.writes == [[*map(str, range(9)), "whole0"]]
    case.wire.answer("1", *range(9))
    await turns()
    assert len(case.wire.writes) == 1
    for number in range(3):
        assert case.wire.sent[9:] == [f"whole{one}" for one in range(number + 1)]
        case.wire.answer([b"f", b"x" * 1_000_000])
        await turns()
    assert all(task.done() for task in asked)


async def test_an_error_says_nothing_about_how_large_answers_are(case: Case) -> None:
    case.lane._whole_size = 1000.0
    case.wire.replies = lambda text: ResponseError("WRONGTYPE")
    with pytest.raises(ResponseError):
        await case.lane.ask(command("a", whole=True), later())
    assert case.lane._whole_size == 1000.0
    assert case.lane._wholes_sent == 0


# Room.


async def test_who_comes_when_too_many_wait_has_to_wait_before_handing_over_and_is_served_in_order(
    held: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "_MOST", 3)
    asked = [held.ask(str(number)) for number in range(10)]
    await turns()
    assert held.lane._queue._count == 3
    held.wire.may_connect.set()
    assert await asyncio.gather(*asked) == [str(number) for number in range(10)]
    assert held.wire.sent == [str(number) for number in range(10)]
    assert max(map(len, held.wire.writes)) == 3


async def test_what_waits_is_bounded_in_bytes_too_and_one_that_is_larger_than_the_bound_still_goes(
    held: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "_MOST_BYTES", 50)
    asked = [held.ask(f"{number}".ljust(19, ".")) for number in range(5)] + [held.ask("huge".ljust(199, "."))]
    asked += [held.ask("last")]
    await turns()
    assert (held.lane._queue._count, held.lane._queue._bytes) == (2, 40)
    held.wire.may_connect.set()
    assert await asyncio.gather(*asked) == ["0", "1", "2", "3", "4", "HUGE", "LAST"]
    assert [[text.rstrip(".") for text in write] for write in held.wire.writes] == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
        ["huge"],
        ["last"],
    ]


async def test_a_small_one_does_not_pass_one_that_waits_for_room(held: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queue, "_MOST_BYTES", 50)
    asked = [held.ask("a".ljust(39, ".")), held.ask("b".ljust(39, ".")), held.ask("c")]
    await turns()
    assert held.lane._queue._count == 1
    held.wire.may_connect.set()
    assert await asyncio.gather(*asked) == ["A", "B", "C"]
    assert held.wire.sent == ["a", "b", "c"]


async def test_room_is_made_while_answers_are_still_to_come(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queue, "_MOST", 2)
    asked = [case.ask(str(number)) for number in range(7)]
    await turns(50)
    case.wire.replies = str
    case.wire.answer(*case.wire.sent)
    assert await asyncio.gather(*asked) == [str(number) for number in range(7)]


async def test_who_waits_for_room_may_be_cancelled_or_late_and_is_not_sent(
    held: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "_MOST", 3)
    asked = [held.ask(text) for text in "abc"]
    cancelled, late, served = held.ask("cancelled"), held.ask("late", 0.02), held.ask("served")
    await turns()
    cancelled.cancel()
    with pytest.raises(LateError):
        await late
    held.wire.may_connect.set()
    assert await asyncio.gather(*asked, served) == ["A", "B", "C", "SERVED"]
    assert cancelled.cancelled()
    assert held.wire.sent == ["a", "b", "c", "served"]


@pytest.mark.parametrize("given", [True, False], ids=["after it was given", "before"])
async def test_room_of_one_who_is_cancelled_in_that_very_turn_is_the_next_ones(
    held: Case, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.setattr(_queue, "_MOST", 1)
    asked = [held.ask(text) for text in ("first", "cancelled", "served")]
    await turns()
    make_room = held.lane._queue._make_room

    def make_room_and_cancel() -> None:
        steps = [make_room, asked[1].cancel]
        for step in steps if given else reversed(steps):
            step()

    held.lane._queue._make_room = make_room_and_cancel  # type: ignore[method-assign]
    held.wire.may_connect.set()
    assert [*await asyncio.gather(asked[0], asked[2])] == ["FIRST", "SERVED"]
    assert asked[1].cancelled()
    assert held.wire.sent == ["first", "served"]


async def test_room_that_cannot_be_had_any_more_is_not_told_to_one_who_was_cancelled(
    held: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "_MOST", 1)
    held.wire.connect_fails = OSError()
    asked = [held.ask(text) for text in ("first", "cancelled", "refused")]
    await turns()
    give_up = held.lane._queue.fail

    def cancel_and_give_up(cause: BaseException | None) -> None:
        asked[1].cancel()
        give_up(cause)

    held.lane._queue.fail = cancel_and_give_up  # type: ignore[method-assign]
    held.wire.may_connect.set()
    await asyncio.wait(asked)
    assert asked[1].cancelled()
    assert [type(asked[number].exception()) for number in (0, 2)] == [UnsentError, UnsentError]


async def test_room_that_was_given_at_the_deadline_is_given_back(held: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queue, "_MOST", 1)
    asked = held.ask("first")
    late = held.ask("late", 0.05)
    await turns()
    make_room = held.lane._queue._make_room

    def make_room_at_the_deadline() -> None:
        time.sleep(0.1)
        make_room()

    held.lane._queue._make_room = make_room_at_the_deadline  # type: ignore[method-assign]
    held.wire.may_connect.set()
    assert await asked == "FIRST"
    answer = (await asyncio.gather(late, return_exceptions=True))[0]
    assert answer == "LATE" or isinstance(answer, LateError)


# Confirmed by replicas.


async def test_writes_are_followed_by_one_question_for_all_of_them_and_return_with_its_answer(durable: Case) -> None:
    asked = [durable.ask(text) for text in "ab"] + [durable.ask("read", reads=True)]
    await turns()
    assert durable.wire.writes == [["a", "b", "read"]]
    durable.wire.answer("for a", "for b", "for read")
    assert await asked[2] == "for read", "a read waits for no replica"
    await turns()
    assert questions(durable) == [["a", "b", "read"], ["WAIT"]]
    assert not asked[0].done()
    durable.wire.answer(2)
    assert await asyncio.gather(*asked[:2]) == ["for a", "for b"]


def questions(case: Case) -> list[list[str]]:
    """What was written; of a WAIT, its name alone."""
    return [["WAIT" if text.startswith("WAIT ") else text for text in write] for write in case.wire.writes]


async def test_a_lone_write_is_confirmed_too(durable: Case) -> None:
    asked = durable.ask("a")
    await turns()
    durable.wire.answer("for a")
    await turns()
    assert questions(durable) == [["a"], ["WAIT"]]
    durable.wire.answer(3)
    assert await asked == "for a"


@pytest.mark.parametrize("answer", ["for a", [[b"register", b"until"]]], ids=["a read", "nothing was done"])
async def test_what_wrote_nothing_is_not_confirmed(durable: Case, answer: Any) -> None:
    asked = durable.ask("a", reads=answer == "for a")
    await turns()
    durable.wire.answer(answer)
    assert await asked == answer
    await turns()
    assert durable.wire.writes == [["a"]]


async def test_other_commands_are_sent_meanwhile_and_those_that_write_are_asked_for_when_the_first_are_confirmed(
    durable: Case,
) -> None:
    asked = [durable.ask("a")]
    await turns()
    durable.wire.answer("for a")
    await turns()
    for text in "bc":
        asked.append(durable.ask(text))
        await turns()
    assert questions(durable) == [["a"], ["WAIT"], ["b"], ["c"]]
    durable.wire.answer(2, "for b")
    assert await asked[0] == "for a"
    await turns()
    assert questions(durable)[4:] == [["WAIT"]]
    durable.wire.answer("for c")
    await turns()
    assert len(durable.wire.writes) == 5, "one question at a time"
    durable.wire.answer(2)
    assert await asked[1] == "for b"
    await turns()
    assert questions(durable)[5:] == [["WAIT"]]
    durable.wire.answer(2)
    assert await asked[2] == "for c"


async def test_replicas_have_until_shortly_before_the_earliest_deadline_of_the_writes(durable: Case) -> None:
    asked = [durable.ask("a", 100), durable.ask("b", 10), durable.ask("read", 1, reads=True)]
    await turns()
    durable.wire.answer("a", "b", "r")
    await turns()
    name, replicas, milliseconds = durable.wire.writes[1][0].split()
    assert (name, replicas) == ("WAIT", "2")
    assert 1000 < int(milliseconds) < 10_000
    durable.wire.answer(2)
    assert await asyncio.gather(*asked) == ["a", "b", "r"]


async def test_a_write_that_is_late_or_cancelled_leaves_the_others_their_time(durable: Case) -> None:
    asked = [durable.ask("a"), durable.ask("late", 0.02), durable.ask("cancelled", 1), durable.ask("d")]
    await turns()
    durable.wire.answer("a")
    await turns()
    durable.wire.answer("late", "cancelled", "d")  # and the question for the first is still to be answered
    with pytest.raises(LateError):
        await asked[1]
    asked[2].cancel()
    durable.wire.replies = upper
    durable.wire.answer(2)
    assert [*await asyncio.gather(asked[0], asked[3])] == ["a", "d"]
    assert 1000 < int(durable.wire.writes[2][0].split()[2]) < SOON * 1000


async def test_where_nobody_waits_for_it_there_is_no_question(durable: Case) -> None:
    asked = durable.ask("a")
    await turns()
    asked.cancel()
    durable.wire.answer("for a")
    await turns()
    assert durable.wire.writes == [["a"]]
    durable.wire.replies = upper
    assert await durable.lane.ask(command("b"), later()) == "B"


async def test_no_write_waits_for_replicas_for_ever(durable: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a WAIT of no milliseconds would."""
    monkeypatch.setattr(_lane, "_LATEST", SOON)
    durable.wire.replies = upper
    assert await durable.lane.ask(command("a"), later(-1)) == "A"
    assert durable.wire.writes == [["a"], ["WAIT 2 1"]]


@pytest.mark.parametrize("replicas", [0, 1])
async def test_too_few_replicas_fail_the_writes_and_say_how_many_there_were(durable: Case, replicas: int) -> None:
    durable.wire.replies = lambda text: replicas if text.startswith("WAIT") else text
    asked = [durable.ask(text, 1) for text in "ab"]
    for task in asked:
        with pytest.raises(UnconfirmedError) as caught:
            await task
        assert caught.value.replicas == replicas
        assert caught.value.__cause__ is None
    assert questions(durable) == [["a", "b"], ["WAIT"]]
    assert durable.wire.log == []


async def test_whose_deadline_is_not_near_has_another_try_where_that_of_another_was(durable: Case) -> None:
    asked = [durable.ask("a", 1), durable.ask("b")]
    await turns()
    durable.wire.answer("for a", "for b")
    await turns()
    durable.wire.answer(1)
    with pytest.raises(UnconfirmedError):
        await asked[0]
    await turns()
    assert [int(write[0].split()[2]) < 1000 for write in durable.wire.writes[1:]] == [True, False]
    durable.wire.answer(2)
    assert await asked[1] == "for b"


async def test_an_error_in_place_of_how_many_there_are_fails_the_writes_with_it(durable: Case) -> None:
    error = ResponseError("WAIT cannot be used with replica instances.")
    durable.wire.replies = lambda text: error if text.startswith("WAIT") else text
    with pytest.raises(UnconfirmedError) as caught:
        await durable.lane.ask(command("a"), later())
    assert (caught.value.replicas, caught.value.__cause__) == (0, error)


async def test_a_write_that_the_server_refuses_fails_at_once_and_alone(durable: Case) -> None:
    asked = [durable.ask(text) for text in "ab"]
    await turns()
    durable.wire.answer(OutOfMemoryError("OOM"), "for b")
    with pytest.raises(OutOfMemoryError):
        await asked[0]
    await turns()
    durable.wire.answer(2)
    assert await asked[1] == "for b"


async def test_where_a_server_turns_out_to_be_a_replica_what_was_to_be_confirmed_is_lost(durable: Case) -> None:
    asked = [durable.ask(text) for text in "abc"]
    await turns()
    durable.wire.answer("for a", ReadOnlyError("You can't write against a read only replica."))
    with pytest.raises(ReadOnlyError):
        await asked[1]
    steps = 0
    write = durable.lane._write

    async def count_and_write() -> None:
        nonlocal steps
        steps += 1
        await write()

    durable.lane._write = count_and_write  # type: ignore[method-assign]
    await turns(100)
    assert durable.wire.writes == [["a", "b", "c"]]
    assert steps < 5, "the loop is not kept busy until the rest comes"
    durable.wire.answer("for c")
    for task in (asked[0], asked[2]):
        with pytest.raises(LostError):
            await task
    assert durable.wire.log[0] == "abort"


async def test_where_the_connection_is_lost_before_the_confirmation_the_writes_are_lost(durable: Case) -> None:
    asked = [durable.ask("a")]
    await turns()
    durable.wire.answer("for a")
    await turns()
    asked.append(durable.ask("b"))
    await turns()
    durable.wire.lose()
    for task in asked:
        with pytest.raises(LostError):
            await task
    durable.wire.replies = upper
    assert await durable.lane.ask(command("c"), later()) == "C"


async def test_another_connection_confirms_nothing_that_it_has_not_written(durable: Case) -> None:
    asked = durable.ask("a")
    await turns()
    durable.wire._writer.transport.closing = True
    durable.wire.answer("for a")
    durable.wire.replies = upper
    with pytest.raises(LostError):
        await asked
    assert durable.wire.writes == [["a"]]


@pytest.mark.parametrize("error", [ConnectionResetError(), RuntimeError("the handler is closed")])
async def test_where_the_question_cannot_be_written_nothing_else_is_written_before_there_is_a_new_connection(
    durable: Case, error: Exception
) -> None:
    asked = durable.ask("a")
    await turns()
    durable.wire.answer("for a")
    durable.wire.send_fails = error
    behind = durable.ask("b")
    durable.wire.replies = upper
    with pytest.raises(LostError) as caught:
        await asked
    assert caught.value.__cause__ is error
    answer = (await asyncio.gather(behind, return_exceptions=True))[0]
    assert answer == "B" or isinstance(answer, LostError)
    assert await durable.lane.ask(command("c"), later()) == "C"


async def test_where_no_confirmation_comes_the_writes_are_late_and_the_connection_is_given_up(
    asyncio_only: None,
) -> None:
    case = await Case(durable=2, timeout=0.05).connected()
    soon, much_later = case.ask("a", 0.02), case.ask("b", 0.1)
    await turns()
    case.wire.answer("for a", "for b")
    for task in (soon, much_later):
        with pytest.raises(LateError):
            await task
    assert case.wire.log == ["abort"]
    await case.lane.close()


async def test_a_write_that_is_cancelled_while_it_is_confirmed_touches_no_other(durable: Case) -> None:
    asked = [durable.ask(text) for text in "ab"]
    await turns()
    durable.wire.answer("for a", "for b")
    await turns()
    asked[0].cancel()
    await turns()
    durable.wire.answer(2)
    assert await asked[1] == "for b"
    assert asked[0].cancelled()
    assert durable.wire.log == []


# The end.


def closing(case: Case) -> "asyncio.Task[None]":
    return asyncio.get_running_loop().create_task(case.lane.close())


async def test_close_waits_for_what_is_under_way_and_for_what_waits_to_be_sent(held: Case) -> None:
    asked = [held.ask("a"), held.ask(large("b")), held.ask("c", whole=True)]
    await turns()
    end = closing(held)
    await turns()
    assert not end.done()
    held.wire.may_connect.set()
    assert await asyncio.gather(*asked) == ["A", "B", "C"]
    await end
    assert held.wire.log == ["disconnect", "connect", "abort", "disconnect"]


async def test_close_waits_for_a_lone_command(case: Case) -> None:
    first = await case.taken()
    end = closing(case)
    await turns()
    assert not end.done()
    case.wire.answer("1")
    await end
    assert await first == "1"


async def test_close_waits_for_confirmations(durable: Case) -> None:
    asked = durable.ask("a")
    await turns()
    durable.wire.answer("for a")
    await turns()
    end = closing(durable)
    await turns()
    assert not end.done()
    durable.wire.answer(2)
    await end
    assert await asked == "for a"


async def test_close_does_not_wait_for_answers_that_nobody_waits_for(case: Case) -> None:
    gone = await case.taken()
    gone.cancel()
    await turns()
    await case.lane.close()
    assert case.wire.log == ["abort", "disconnect"]


async def test_close_waits_for_nobody_longer_than_until_the_deadline(case: Case) -> None:
    late = case.ask("a", 0.02)
    await turns()
    await case.lane.close()
    with pytest.raises(LateError):
        await late


@pytest.mark.parametrize("connected", [True, False], ids=["answers to come", "connecting"])
async def test_close_may_be_cancelled_and_then_leaves_nobody_waiting_and_nothing_open(
    case: Case, held: Case, connected: bool
) -> None:
    chosen = case if connected else held
    asked = [chosen.ask(text) for text in "abc"]
    await turns()
    end = closing(chosen)
    await turns()
    end.cancel()
    held.wire.may_connect.set()
    await turns()
    assert end.cancelled()
    for task in asked:
        with pytest.raises(LostError if connected else UnsentError):
            await task
    assert chosen.wire._writer is None
    assert chosen.nothing_left()
    with pytest.raises(UnsentError):
        await chosen.lane.ask(command("d"), later())


async def test_who_waits_for_room_when_it_is_closed_is_refused(held: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queue, "_MOST", 2)
    asked = [held.ask(str(number)) for number in range(5)]
    await turns()
    end = closing(held)
    await turns()
    held.wire.may_connect.set()
    assert await asyncio.gather(*asked[:2]) == ["0", "1"]
    for task in asked[2:]:
        with pytest.raises(UnsentError):
            await task
    await end
    await turns()
    assert held.wire.sent == ["0", "1"]
    assert held.wire._writer is None
    assert held.nothing_left()


async def test_who_was_given_room_in_the_turn_in_which_it_is_closed_is_refused(
    held: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "_MOST", 2)
    asked = [held.ask(str(number)) for number in range(5)]
    await turns()
    make_room = held.lane._queue._make_room

    def make_room_and_close() -> None:
        held.lane._loop.call_soon(setattr, held.lane, "_closed", True)
        make_room()

    held.lane._queue._make_room = make_room_and_close  # type: ignore[method-assign]
    held.wire.may_connect.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers[:2] == ["0", "1"]
    assert all(isinstance(answer, UnsentError) for answer in answers[2:])
    await held.lane.close()
    await turns()
    assert held.wire.sent == ["0", "1"]
    assert held.wire._writer is None


async def test_what_was_cancelled_before_it_was_sent_opens_no_connection_after_the_end(held: Case) -> None:
    asked = held.ask("a")
    await turns()
    asked.cancel()
    await turns()
    await held.lane.close()
    held.wire.may_connect.set()
    await turns()
    assert held.wire._writer is None
    assert held.wire.log[-1] == "disconnect"


async def test_after_close_nothing_is_sent(case: Case) -> None:
    await case.lane.close()
    with pytest.raises(UnsentError):
        await case.lane.ask(command("a"), later())
    assert case.wire.writes == []
    assert case.wire._writer is None
    await case.lane.close()


async def test_a_lane_that_was_never_used_closes(asyncio_only: None) -> None:
    await Case().lane.close()


async def test_close_leaves_no_timer_and_no_task(asyncio_only: None) -> None:
    before = asyncio.all_tasks()
    case = await Case().connected()
    case.wire.replies = upper
    await asyncio.gather(*(case.lane.ask(command(text), later()) for text in "abc"))
    timer = case.lane._timer
    assert timer is not None
    await case.lane.close()
    assert timer.cancelled()
    assert asyncio.all_tasks() == before


# What must never be.

VARIABLE: ContextVar[object] = ContextVar("VARIABLE")


class Bound:
    """What a request has bound."""


@pytest.mark.parametrize("how", ["connects", "alone", "many", "crash", "timer"])
async def test_nothing_that_a_caller_has_bound_is_held_by_the_lane(asyncio_only: None, how: str) -> None:
    case = Case() if how == "connects" else await Case().connected()
    case.wire.replies = upper

    async def request() -> "weakref.ref[Bound]":
        bound = Bound()
        VARIABLE.set(bound)
        asked = ["a", "b", "c"] if how in {"many", "timer"} else ["a"]
        if how == "crash":
            case.wire.replies = None
            case.lane._loop.call_soon(case.wire.answer, ValueError())
        many = (case.lane.ask(command(text), later(0.02 if how == "timer" else 1000)) for text in asked)
        await asyncio.gather(*many, return_exceptions=how == "crash")
        return weakref.ref(bound)

    asked = asyncio.get_running_loop().create_task(request())
    seen = await asked
    del asked
    await turns()
    case.wire.replies = None
    stays = case.ask("stays")
    await turns()
    gc.collect()
    assert case.lane._timer is not None
    assert not stays.done(), "so the tasks that the request has started still run"
    assert seen() is None
    case.wire.answer("stays")
    await stays
    await case.lane.close()


def outcome(task: "asyncio.Task[Any]") -> Any:
    return "cancelled" if task.cancelled() else task.exception() or task.result()


def stops() -> "dict[str, Callable[[Case, set[asyncio.Task[Any]]], object]]":
    """What may happen to a lane at any moment."""

    def kill(case: Case, tasks: "set[asyncio.Task[Any]]") -> None:
        for task in tasks:
            task.cancel()

    def of_lane(case: Case) -> "set[asyncio.Task[Any]]":
        return {task for task in (case.lane._writer, case.lane._reader) if task is not None}

    def crash_in_writing(case: Case, tasks: "set[asyncio.Task[Any]]") -> None:
        case.wire.send_fails = ValueError("nobody has thought of this")

    def crash_in_connecting(case: Case, tasks: "set[asyncio.Task[Any]]") -> None:
        case.wire.connect_fails = ValueError("nobody has thought of this")
        case.wire.lose()

    return {
        "all tasks": kill,
        "the lane's tasks": lambda case, tasks: kill(case, of_lane(case)),
        "the writer": lambda case, tasks: kill(case, {case.lane._writer} & of_lane(case)),
        "the reader": lambda case, tasks: kill(case, {case.lane._reader} & of_lane(case)),
        "a crash in reading": lambda case, tasks: case.wire.answer(ValueError("nobody has thought of this")),
        "a crash in writing": crash_in_writing,
        "a crash in connecting": crash_in_connecting,
        "a lost connection": lambda case, tasks: case.wire.lose(),
        "abort": lambda case, tasks: case.wire._writer and case.wire._writer.transport.abort(),
        "close": lambda case, tasks: tasks.add(closing(case)),
    }


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "not connected"])
@pytest.mark.parametrize("replicas", [0, 1], ids=["", "durable"])
@pytest.mark.parametrize("how", list(stops()))
async def test_whatever_happens_at_any_moment_nobody_waits_for_ever_or_gets_what_is_not_theirs(
    asyncio_only: None, how: str, replicas: int, connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "_MOST", 6)
    before = asyncio.all_tasks()
    for moment in range(30):
        case = Case(durable=replicas)
        if connected:
            await case.connected()
        case.wire.replies = upper
        asked = {
            text: case.ask(large(text) if number % 4 == 3 else command(text, whole=number % 4 == 1))
            for number, text in enumerate("abcdefghij")
        }
        await turns(moment)
        others = asyncio.all_tasks() - before
        stops()[how](case, others)
        await turns(moment % 7)
        case.wire.send_fails = case.wire.connect_fails = None
        _, left = await asyncio.wait(asked.values(), timeout=SOON - 1)
        assert not left
        for text, task in asked.items():
            got = outcome(task)
            fine = got in {text.upper(), "cancelled"} or isinstance(got, LostError | UnsentError)
            assert fine, (moment, text, got)
        if how != "close":
            behind = {text: case.ask(text) for text in "klm"}
            await asyncio.gather(*behind.values(), return_exceptions=True)
            again = await asyncio.gather(*(case.lane.ask(command(text), later()) for text in "nop"))
            assert again == ["N", "O", "P"]
            for text, task in behind.items():
                got = outcome(task)
                assert got == text.upper() or isinstance(got, LostError | UnsentError)
        await case.lane.close()
        await turns()
        assert case.nothing_left()
        assert case.wire._writer is None
        assert asyncio.all_tasks() == before


# Over a real connection, with everything that may go wrong at once.


class Server:
    """Answers each command with its second part, and now and then does something else."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.did = 0
        self.wrong = True
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        self.writers.add(writer)
        try:
            while received := await reader.read(1 << 16):
                parser.feed(received)
                while (parts := parser.gets()) is not False:
                    self.did += 1
                    if (self.wrong and not await self.go_wrong(writer)) or writer.is_closing():
                        return
                    writer.write(self.answer(*parts))
                await writer.drain()
        except OSError:
            pass
        finally:
            self.writers.discard(writer)
            writer.transport.abort()

    async def go_wrong(self, writer: asyncio.StreamWriter) -> bool:
        draw = self.chance.random()
        if draw < 0.002:
            return False
        if draw < 0.003:
            writer.write(b"+half an answ")  # and then nothing more
            return False
        if draw < 0.004:
            await asyncio.sleep(0.15)
        elif draw < 0.02:
            await asyncio.sleep(0.001)
        return True

    def answer(self, name: bytes, text: bytes = b"", *_: bytes) -> bytes:
        draw = self.chance.random() if self.wrong else 1
        if name == b"WAIT":
            return b":0\r\n" if draw < 0.05 else b":2\r\n"
        if draw < 0.01:
            return b"-ERR of %b\r\n" % text
        if draw < 0.012:
            return b"-READONLY of %b\r\n" % text
        if name == b"WHOLE":
            return b"*2\r\n$1\r\nf\r\n$%d\r\n%b\r\n" % (len(text), text)
        return b"$%d\r\n%b\r\n" % (len(text), text)


class Crowd:
    """Who asks over a lane to such a server, and what becomes of it."""

    def __init__(self, chance: random.Random, server: Server, connection: Connection, replicas: int) -> None:
        self.chance = chance
        self.server = server
        self.connection = connection
        self.lane = Lane(connection, 0.3, replicas)
        self.counts: Counter[str] = Counter()
        self.killed = 0

    async def ask(self, text: bytes, seconds: float) -> str:
        kind = self.chance.choice(["GET", "GET", "WHOLE", "LARGE"])
        text = text.ljust(20_000, b".") if kind == "LARGE" else text
        right = [b"f", text] if kind == "WHOLE" else text
        reads = kind != "LARGE" and self.chance.random() < 0.5
        asked = Command(pack(kind, text), whole=kind == "WHOLE", reads=reads)
        try:
            async with asyncio.timeout(seconds):
                assert await self.lane.ask(asked, later(self.chance.choice([0.05, 1, 1]))) == right
        except TimeoutError:
            return "cancelled"
        except ResponseError as error:
            assert str(error).encode().endswith(text), "the error of another"
            return "error"
        except UnconfirmedError:
            return "unconfirmed"
        except (LateError, LostError, UnsentError) as error:
            return type(error).__name__
        return "right"

    async def work(self, name: int) -> None:
        for number in range(60):
            text = b"%d:%d" % (name, number)
            self.counts[await self.ask(text, self.chance.choice([10, 10, 10, self.chance.random() / 100]))] += 1

    def go_wrong(self, working: "set[asyncio.Task[None]]") -> None:
        tasks = [task for task in (self.lane._writer, self.lane._reader) if task is not None]
        draw = self.chance.random()
        if draw < 0.3 and tasks:
            self.chance.choice(tasks).cancel()
        elif draw < 0.5:
            for writer in list(self.server.writers):
                writer.transport.abort()
        elif draw < 0.6 and self.connection._writer is not None:
            self.connection._writer.transport.abort()
        elif working:
            self.chance.choice(list(working)).cancel()

    async def all_work(self) -> None:
        loop = asyncio.get_running_loop()
        working = {loop.create_task(self.work(name)) for name in range(40)}
        while working:
            done, working = await asyncio.wait(working, timeout=self.chance.random() / 50)
            for task in done:
                if not task.cancelled():
                    task.result()
                elif self.killed < 50:
                    self.killed += 1
                    working.add(loop.create_task(self.work(100 + self.killed)))
            self.go_wrong(working)


@pytest.mark.parametrize("replicas", [0, 2], ids=["", "durable"])
async def test_with_cancellations_resets_and_kills_at_random_nobody_gets_what_is_not_theirs_or_waits_for_ever(
    asyncio_only: None, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "_MOST", 30)
    before = asyncio.all_tasks()
    chance = random.Random(replicas)
    server = Server(chance)
    async with await asyncio.start_server(server.serve, "127.0.0.1") as serving:
        port = serving.sockets[0].getsockname()[1]
        connection = Connection(host="127.0.0.1", port=port, protocol=2, driver_info=None, retry=Retry(NoBackoff(), 0))
        connection.socket_timeout = None
        crowd = Crowd(chance, server, connection, replicas)
        try:
            await crowd.all_work()
            assert {"right", "error", "cancelled", "LostError"} <= crowd.counts.keys()
            assert crowd.killed

            server.wrong = False
            crowd.lane._timeout = 30  # from here on it is no matter of time
            # What was cancelled last has its effect, and nobody connects any more.
            await until(lambda: crowd.lane._writer is None and not crowd.lane._sent and not crowd.lane._queue)
            for writer in list(server.writers):
                writer.transport.abort()
            await until(lambda: not crowd.lane._ready)
            # When all is well, all is well at once.
            again = [b"%d" % number for number in range(100)]
            asked = (crowd.lane.ask(Command(pack("GET", one)), later(30)) for one in again)
            assert await asyncio.gather(*asked) == again
        finally:
            await crowd.lane.close()
        assert nothing_left(crowd.lane)
    await until(lambda: asyncio.all_tasks() == before)
