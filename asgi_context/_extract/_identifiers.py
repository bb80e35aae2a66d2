"""What an identifier may look like."""

import re
from collections.abc import Callable
from typing import Final, TypeAlias

from asgi_context.errors import RequestRejected

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
    """
    if IDENTIFIER.fullmatch(value) if valid is None else value and valid(value):
        return value
    raise RequestRejected(400, f"{role}_invalid")


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
