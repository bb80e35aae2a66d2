r"""On whose behalf each log line was written: `ContextFilter` for the standard library, `context_fields` for all else.

Identifiers stand in a log as they are where they are made of ASCII letters, digits and ``. _ - ~ @ : | + =``; every
other character is escaped (``\x0a``, ``\u2028``, ``\U0001f600``), and what is longer than 128 characters is cut
(``\...``). So none can end its line or field, or tell a terminal what to do.
"""

import logging
from collections.abc import Collection, Iterable
from typing import Final, cast

from asgi_context._describe import FIELDS, NOBODY, OUTSIDE, describe

__all__ = ["ContextFilter", "context_fields"]

_ACCESS: Final = "uvicorn.access"


class ContextFilter(logging.Filter):
    """Sets ``ctx_tenant``, ``ctx_user`` and ``ctx_request_id`` on log records; lets every record pass.

    Put it on handlers: a filter of a logger is not asked for the records of the loggers below it. It must be asked
    where the record is made, so with a ``QueueHandler`` put it on that, not on the handlers of the ``QueueListener``.
    What a record has already, by ``extra=`` or from a filter before, stays; and it never raises.

    Lines that are written outside of the middleware are nobody's. But uvicorn and daphne may write theirs in what an
    earlier request of the connection has left, and asyncio some of its own wherever garbage is collected. So records
    of the loggers in ``outside`` are nobody's, and those of ``uvicorn.access`` too where the request that is bound has
    ended.

    Args:
        unbound: what stands where nothing is bound, and for the user of a context without one: a text, which no
            identifier is then shown like; or ``None``, for formatters that write JSON.
        outside: names of loggers that write outside of requests; they stand for those below them as well.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``unbound`` has a backslash or a character that cannot be printed.
    """

    def __init__(self, *, unbound: str | None = "-", outside: Collection[str] = OUTSIDE) -> None:
        super().__init__()
        self._unbound = _checked(unbound)
        self._outside = _names(outside)
        self._below = tuple(f"{name}." for name in self._outside)

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell on whose behalf it was logged.

        Args:
            record: the record.

        Returns:
            ``True``.
        """
        name = _name_of(record)
        if name in self._outside or name.startswith(self._below):
            told = NOBODY
        else:
            # uvicorn writes it in the call of `send`, inside of the middleware, but for the 500 with which it answers
            # by itself after an exception.
            told = describe(running=name == _ACCESS, taken=self._unbound)
        for field, text in zip(FIELDS, told, strict=True):
            _add(record, field, self._unbound if text is None else text)
        return True


def _name_of(record: logging.LogRecord) -> str:
    try:
        name: object = record.name
    except Exception:  # noqa: BLE001 - as in `_add`
        return ""
    return name if isinstance(name, str) else ""  # `makeLogRecord` may make one without


def _add(record: logging.LogRecord, field: str, text: str | None) -> None:
    try:
        if not hasattr(record, field):
            setattr(record, field, text)
    except Exception:  # noqa: BLE001, S110 - a record of the user's own making; logging must not stop what it tells of
        pass


def context_fields(*, unbound: str | None = "-") -> dict[str, str | None]:
    """Tell on whose behalf this code runs, for logging libraries that take fields from a callable. It never raises.

    Args:
        unbound: what stands where nothing is bound, and for the user of a context without one, as in `ContextFilter`.

    Returns:
        ``ctx_tenant``, ``ctx_user`` and ``ctx_request_id``, escaped.
    """
    told = describe(taken=unbound)
    return {field: unbound if text is None else text for field, text in zip(FIELDS, told, strict=True)}


def _checked(unbound: object) -> str | None:
    if unbound is None:
        return None
    if not isinstance(unbound, str):
        message = f"unbound must be a str or None, not {type(unbound).__qualname__}"
        raise TypeError(message)
    if not unbound.isprintable() or "\\" in unbound:
        message = f"unbound must be printable and without backslashes, by which values are escaped, not {unbound!r}"
        raise ValueError(message)
    return unbound


def _names(outside: object) -> frozenset[str]:
    if isinstance(outside, str) or not isinstance(outside, Collection):
        message = f"outside must be several names of loggers, not {outside!r}"
        raise TypeError(message)
    names = list(cast("Iterable[object]", outside))
    for name in names:
        if not isinstance(name, str):
            message = f"outside: a name of a logger must be a str, not {type(name).__qualname__}"
            raise TypeError(message)
    return frozenset(cast("list[str]", names))
