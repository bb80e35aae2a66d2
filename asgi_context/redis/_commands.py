"""Commands, those who wait for their answers, and what scripts answer."""

import asyncio
from math import inf
from typing import Any, Final, TypeAlias, cast

import hiredis

Answer: TypeAlias = Any
"""What a server says, as the protocol has it: bytes, ints, lists of them, ``None``."""

_pack: Final[Any] = cast("Any", hiredis).pack_command  # whose hint is of a tuple of one


def pack(*parts: str | bytes | float) -> bytes:
    """Write a command as the protocol has it.

    Args:
        parts: its name and its arguments.

    Returns:
        What is sent.
    """
    return cast("bytes", _pack(parts))


class Command:
    """A command, in bytes.

    Args:
        packed: what is sent.
        reads: whether nothing need be confirmed by replicas.
        again: whether it may be sent again where no answer came, since that cannot change the result.
        whole: whether its answer may be large.
        extra: how many answers come before the one that counts.
    """

    __slots__ = ("again", "extra", "packed", "reads", "size", "whole")

    def __init__(
        self, packed: bytes, *, reads: bool = False, again: bool = False, whole: bool = False, extra: int = 0
    ) -> None:
        self.packed = packed
        self.size = len(packed)
        self.reads = reads
        self.again = again or reads
        self.whole = whole
        self.extra = extra

    def after(self, packed: bytes) -> "Command":
        """Make the same command, with another before it whose answer does not count.

        Args:
            packed: the other.

        Returns:
            Both, as one.
        """
        return Command(packed + self.packed, reads=self.reads, again=self.again, whole=self.whole, extra=1)


class Waiting:
    """Who waits for the answer to a command.

    Args:
        command: the command.
        expires: until when, by the clock of the loop.
        answer: becomes the answer.
    """

    __slots__ = ("answer", "command", "expires", "extra")

    def __init__(self, command: Command, expires: float, answer: asyncio.Future[Answer]) -> None:
        self.command = command
        self.expires = expires
        self.answer = answer
        self.extra = command.extra

    def end(self, answer: Answer) -> None:
        """Give the answer, unless nobody waits for it any more.

        Args:
            answer: the answer.
        """
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Raise an error there, unless nobody waits any more.

        Args:
            error: the error.
        """
        if not self.answer.done():
            self.answer.set_exception(error)


class Confirmation(Waiting):
    """The place of a WAIT among those who wait, and the writes that it is for, with their answers.

    Args:
        command: the WAIT.
        writes: the writes.
        answer: is cancelled, since nobody waits for it by itself.
    """

    __slots__ = ("writes",)

    def __init__(self, command: Command, writes: list[tuple[Waiting, Answer]], answer: asyncio.Future[Answer]) -> None:
        super().__init__(command, inf, answer)
        answer.cancel()
        self.writes = writes


def told(answer: Answer) -> tuple[str, str] | None:
    """Read what a script says where it has done nothing: a list in a list, which no other answer is.

    Args:
        answer: its answer.

    Returns:
        A word for what is the matter, and another; ``None`` where the answer is what was asked for.
    """
    parts = cast("list[object]", answer) if type(answer) is list else []
    if not parts or type(parts[0]) is not list:
        return None
    kind, what = cast("list[bytes]", parts[0])
    return kind.decode(), what.decode()
