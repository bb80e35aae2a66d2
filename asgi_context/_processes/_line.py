"""Messages over a pipe, each with a mark and its length before it."""

from collections.abc import Callable
from socket import MSG_PEEK, socket
from struct import Struct
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_HEAD: Final = Struct("!8sQ")
_MARK: Final = b"\xffasgi\xfe\0\1"  # no text begins so
_SMALL: Final = 16_384  # bytes that are copied rather than sent apart
_CHUNK: Final = 65_536


def _nothing() -> None:
    pass


class Line:
    """One end of a pipe.

    Args:
        end: the end; where it has a timeout, there is a look at what is behind the other end as often as that.
        look: is called then, and raises where nothing will come any more.
    """

    __slots__ = ("_end", "_look", "_read")

    def __init__(self, end: socket, look: Callable[[], None] = _nothing) -> None:
        self._end = end
        self._look = look
        self._read = bytearray()

    def send(self, *parts: bytes) -> None:
        """Send a message.

        Args:
            parts: of what it is composed.

        Raises:
            OSError: the other end is closed.
        """
        size = sum(map(len, parts))
        parts = (_HEAD.pack(_MARK, size), *parts)
        for part in (b"".join(parts),) if size <= _SMALL else parts:
            left = memoryview(part)
            while left:
                left = left[self._patiently(self._end.send, left) :]

    def wait(self) -> None:
        """Wait until something comes, and leave it unread.

        A process that is killed while it waits may yet be handed what comes before it is gone. Unread, it tells the
        other end that nothing was begun of it.
        """
        if not self._read:
            self._end.recv(1, MSG_PEEK)

    def receive(self) -> bytes | bytearray:
        """Wait for a message.

        Returns:
            The message.

        Raises:
            EOFError: the other end was closed, perhaps in the midst of a message.
            OSError: the same, less orderly; or what has come is no message. What a job has by mistake written into the
                pipe must not pass for its answer, let alone for that of a later one.
        """
        read = self._read
        while len(read) < _HEAD.size:
            read += _some(self._patiently(self._end.recv, _CHUNK))
        mark, size = _HEAD.unpack_from(read)
        if mark != _MARK:
            problem = "what has come is no message"
            raise OSError(problem)
        del read[: _HEAD.size]
        if len(read) >= size:
            message = bytes(read[:size])
            del read[:size]
            return message
        whole = bytearray(size)
        have = len(read)
        whole[:have] = read
        read.clear()
        view = memoryview(whole)
        while have < size:
            have += _some(self._patiently(self._end.recv_into, view[have:]))
        return whole

    def _patiently(self, call: Callable[[Any], _T], given: object) -> _T:
        while True:
            try:
                return call(given)
            except TimeoutError:
                self._look()


def _some(received: _T) -> _T:
    if not received:
        raise EOFError
    return received
