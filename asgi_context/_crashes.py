"""Crashes in the log: with their traceback, and without a client's raw bytes."""

import logging
from typing import Final, cast

from asgi_context.errors import AsgiContextError

log: Final = logging.getLogger("asgi_context")


def log_crash(what: str, error: BaseException) -> None:
    """Log a crash.

    Args:
        what: what happened, in words of our own.
        error: the crash. Its text can hold a client's bytes, so an error of this package's stands for it in the log,
            with its traceback, and its text escaped.
    """
    log.error(what, exc_info=_escaped(error, 0, [_MOST_SHOWN]))


def _escaped(error: BaseException, depth: int, left: list[int]) -> Exception:
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    try:
        text = str(error).encode("unicode_escape").decode()[:_LONGEST_TEXT]
    except BaseException:  # noqa: BLE001 - an error whose own text fails must not hide that it happened
        text = "(its text cannot be had)"
    shown: Exception = AsgiContextError(f"{name}: {text}")
    left[0] -= 1
    if depth < _DEEPEST and left[0] > 0:
        if isinstance(error, BaseExceptionGroup):
            inside = cast("BaseExceptionGroup[BaseException]", error).exceptions[:_DEEPEST]
            shown = ExceptionGroup(f"{name}: {text}", [_escaped(each, depth + 1, left) for each in inside])
        if error.__cause__ is not None:
            shown.__cause__ = _escaped(error.__cause__, depth + 1, left)
        elif error.__context__ is not None:
            shown.__context__ = _escaped(error.__context__, depth + 1, left)
    shown.__suppress_context__ = error.__suppress_context__
    return shown.with_traceback(error.__traceback__)


_LONGEST_TEXT = 500  # characters
_DEEPEST = 5  # a chain can be long, and can be a ring
_MOST_SHOWN = 30  # groups of groups branch
