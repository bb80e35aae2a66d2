"""Commands that wait to be sent: whose turn it is, and who must wait before handing over, since there are too many."""

import asyncio
from collections import deque
from typing import Final

from asgi_context.redis._commands import Waiting
from asgi_context.redis._refused import LateError, UnsentError, because

LARGE: Final = 16_384
"""Bytes of a command that goes alone."""

_MOST: Final = 10_000  # commands; who comes after that waits before handing over
_MOST_BYTES: Final = 16_777_216
_MOST_TOGETHER: Final = 256  # commands in one write
_MOST_BYTES_TOGETHER: Final = 65_536


class Queue:
    """Small commands, those with large answers and large commands, which take turns, so that none holds the others."""

    def __init__(self) -> None:
        self._small: deque[Waiting] = deque()
        self._wholes: deque[Waiting] = deque()
        self._large: deque[Waiting] = deque()
        self._large_next = False
        self._count = self._bytes = 0
        self._room: deque[tuple[int, asyncio.Future[None]]] = deque()  # of those who wait before handing over

    def __bool__(self) -> bool:
        return bool(self._count or self._room)

    def put(self, waiting: Waiting, *, has_room: bool = False) -> None:
        """Hand a command over.

        Args:
            waiting: who waits for its answer.
            has_room: whether room was found for it, by `find_room`.
        """
        command = waiting.command
        if not has_room:
            self._count += 1
            self._bytes += command.size
        (self._large if command.size > LARGE else self._wholes if command.whole else self._small).append(waiting)

    def take(self, most_wholes: int) -> list[Waiting]:
        """Take out whose turn it is, without those who have been cancelled or are late.

        Args:
            most_wholes: how many there may be whose answers may be large.

        Returns:
            What goes in one write. It may be nothing.
        """
        if self._large and (self._large_next or not (self._small or self._wholes)):
            self._large_next = False
            taken = self._from(self._large, 1)
        else:
            self._large_next = True
            taken = self._from(self._small, _MOST_TOGETHER) + self._from(self._wholes, min(most_wholes, _MOST_TOGETHER))
        self._make_room()
        return taken

    def fail(self, cause: BaseException | None) -> None:
        """Tell all that nothing can be sent.

        Args:
            cause: why.
        """
        for queue in (self._small, self._wholes, self._large):
            while queue:
                waiting = queue.popleft()
                self._count -= 1
                self._bytes -= waiting.command.size
                waiting.fail(because(UnsentError(), cause))
        while self._room:
            _, given = self._room.popleft()
            if not given.done():
                given.set_exception(because(UnsentError(), cause))

    def all(self) -> list[Waiting]:
        """Give all who have handed over.

        Returns:
            Whoever waits for an answer, or has been cancelled.
        """
        return [*self._small, *self._wholes, *self._large]

    def is_full(self, size: int) -> bool:
        """Say whether one must wait before handing over.

        Args:
            size: the bytes of the command.

        Returns:
            Whether `find_room` must be awaited.
        """
        return bool(self._room) or self._has_none(size)

    async def find_room(self, size: int, expires: float) -> None:
        """Wait until there is room for a command, which must then be put in.

        Args:
            size: its bytes.
            expires: until when, by the clock of the loop.

        Raises:
            LateError: there was none until then.
            UnsentError: nothing can be sent.
        """
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = size, given
        self._room.append(entry)
        try:
            async with asyncio.timeout_at(expires):
                await given
        except BaseException as error:
            if entry in self._room:
                self._room.remove(entry)
            elif given.done() and not given.cancelled() and given.exception() is None:
                self.leave_room(size)
            if isinstance(error, TimeoutError):
                raise LateError from None
            raise

    def leave_room(self, size: int) -> None:
        """Give room back that was found, and is not needed.

        Args:
            size: of how many bytes.
        """
        self._count -= 1
        self._bytes -= size

    def _from(self, queue: deque[Waiting], most: int) -> list[Waiting]:
        taken: list[Waiting] = []
        room = _MOST_BYTES_TOGETHER
        while queue and len(taken) < most and room > 0:
            waiting = queue.popleft()
            size = waiting.command.size
            self._count -= 1
            self._bytes -= size
            if not waiting.answer.done():  # else it was cancelled, or is late
                taken.append(waiting)
                room -= size
        return taken

    def _has_none(self, size: int) -> bool:
        # A command that is larger than all the room there is goes alone.
        return bool(self._count) and (self._count >= _MOST or self._bytes + size > _MOST_BYTES)

    def _make_room(self) -> None:
        while self._room:
            size, given = self._room[0]
            if self._has_none(size):
                return
            self._room.popleft()
            if not given.done():
                self._count += 1
                self._bytes += size
                given.set_result(None)
