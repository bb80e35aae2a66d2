"""Messages over a pipe, each with its length before it."""

from collections.abc import Callable
from socket import socket
from struct import Struct
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_LENGTH: Final = Struct("!Q")
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
        parts = (_LENGTH.pack(size), *parts)
        for part in (b"".join(parts),) if size <= _SMALL else parts:
            left = memoryview(part)
            while left:
                left = left[self._patiently(self._end.send, left) :]

    def receive(self) -> bytes | bytearray:
        """Wait for a message.

        Returns:
            The message.

        Raises:
            EOFError: the other end was closed, perhaps in the midst of a message.
            OSError: the same, less orderly.
        """
        read = self._read
        while len(read) < _LENGTH.size:
            read += _some(self._patiently(self._end.recv, _CHUNK))
        (size,) = _LENGTH.unpack_from(read)
        del read[: _LENGTH.size]
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
