"""Coroutines whose first step was taken already."""

from asyncio import CancelledError, TaskGroup
from collections.abc import Coroutine, Generator
from typing import Any, Final, Generic, TypeVar

_T = TypeVar("_T")


class Rest(Generic[_T]):
    """What is left of a coroutine after its first step. Awaiting it is as if the coroutine were awaited.

    Args:
        waits_for: what the first step gave, for the event loop.
        coroutine: the coroutine.
    """

    __slots__ = ("_coroutine", "_waits_for", "groups")

    def __init__(self, waits_for: object, coroutine: Coroutine[Any, Any, _T]) -> None:
        self._waits_for = waits_for
        self._coroutine = coroutine
        self.groups: list[TaskGroup] = []
        """Task groups inside of it that have cancelled the task while they waited for their tasks to end."""

    def __await__(self) -> Generator[Any, Any, _T]:
        """Take the other steps, as ``yield from`` does (PEP 380); nothing is held for longer than it does."""
        waits_for, self._waits_for = self._waits_for, None
        while True:
            sent = thrown = None
            try:
                sent = yield waits_for
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 - the coroutine's, whatever it is
                thrown = error
                if isinstance(error, CancelledError):
                    self._note_group()
            waits_for = None  # or it, what was raised, and this frame would hold each other
            try:
                waits_for = self._coroutine.send(sent) if thrown is None else self._coroutine.throw(thrown)
            except StopIteration as end:
                given: _T = end.value
                return given
            finally:
                thrown = None  # as above

    def _note_group(self) -> None:
        # One of whose tasks has failed while it waits for all to end. It does so once.
        inside: object = self._coroutine
        while inside is not None:
            frame = getattr(inside, "cr_frame", None)
            if frame is not None and frame.f_code is _LEAVE_GROUP:
                group = frame.f_locals["self"]
                if getattr(group, "_parent_cancel_requested", False) and group not in self.groups:
                    self.groups.append(group)
                return
            inside = getattr(inside, "cr_await", None)


_LEAVE_GROUP: Final = TaskGroup.__aexit__.__code__
