"""What an identifier may look like."""

import re
from collections.abc import Callable
from inspect import isawaitable
from typing import Final, TypeAlias

from asgi_context._callables import runs_later
from asgi_context.errors import ExtractorTypeError, RequestRejected

Valid: TypeAlias = Callable[[str], object]
"""Takes an identifier and says, by truth, whether it is good."""

# 1 to 128 characters that need no escape in a path, a key or a log line; not only dots, which mean folders to many.
# For `fullmatch` alone: `match` with `$` would take a trailing newline.
_RULE: Final = r"(?!\.+\Z)[A-Za-z0-9._\-~@:|+=]{1,128}"
IDENTIFIER: Final = re.compile(_RULE)
RAW_IDENTIFIER: Final = re.compile(_RULE.encode())


def checked(value: str, valid: Valid | None, role: str) -> str:
    """Pass a good identifier through.

    Args:
        value: the identifier.
        valid: another rule than the package's own.
        role: what it identifies, for the code of the rejection: ``tenant``, ``user`` or ``identifier``.

    Returns:
        The identifier.

    Raises:
        RequestRejected: it is not good.
        ExtractorTypeError: the rule returned something to be awaited.
    """
    verdict = IDENTIFIER.fullmatch(value) if valid is None else value and valid(value)
    if not verdict:
        raise RequestRejected(400, f"{role}_invalid")
    if valid is not None and isawaitable(verdict):  # it would be true, whatever it is going to say
        raise ExtractorTypeError(f"valid={valid!r}", type(verdict).__qualname__, "bool")  # noqa: EM102 - data
    return value


def check_rule(valid: object, option: str) -> None:
    """Check what stands where a rule for identifiers must.

    Args:
        valid: what was given.
        option: what to call it in an error.

    Raises:
        TypeError: it is not callable, or a call would not say anything yet.
    """
    if valid is not None and (not callable(valid) or runs_later(valid)):
        message = f"{option} must be callable and say at once whether a string is good, not {valid!r}"
        raise TypeError(message)


def decoded(raw: bytes, role: str) -> str:
    """Turn the bytes of an identifier into text.

    Args:
        raw: UTF-8.
        role: what it identifies, for the code of the rejection.

    Returns:
        The text.

    Raises:
        RequestRejected: it is not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RequestRejected(400, f"{role}_invalid") from None
