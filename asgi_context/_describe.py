"""What a log line may tell of who asks: as text that cannot be taken for anything else of the line."""

import re
from typing import Final, TypeAlias

from asgi_context._context import current_binding
from asgi_context._identity import read_id

# The alphabet of identifiers. What lies outside of it has come in by a `valid=` of the user's, or from a worker's own
# `bind_context`, and could end the line or the field, or tell a terminal what to do.
_PLAIN: Final = re.compile(r"[A-Za-z0-9._\-~@:|+=]{1,128}")
_OTHER: Final = re.compile(r"[^A-Za-z0-9._\-~@:|+=]")
_LONGEST: Final = 128  # characters: a header may be as long as a server lets it, and each line repeats it
_CUT: Final = r"\..."  # no escape looks like it

FIELDS: Final = ("ctx_tenant", "ctx_user", "ctx_request_id")
"""What the fields are called, in every kind of log."""

OUTSIDE: Final = ("asyncio", "daphne", "uvicorn.error")
"""Loggers whose records are written in what an earlier request has left, or wherever garbage is collected."""

Described: TypeAlias = tuple[str | None, str | None, str | None]
"""Tenant, user and request id, escaped; each ``None`` where there is nothing to tell."""

NOBODY: Final[Described] = (None, None, None)


def describe(*, running: bool = False, taken: str | None = None) -> Described:
    """Tell who asks here. It never raises.

    Of a request without identity, the id alone is told. Of what was revoked nothing is: it may be somebody else's.

    Args:
        running: whether to tell nothing of a request, message or block that has ended.
        taken: what stands for nobody, so that nobody's identifier is shown like it.

    Returns:
        Who asks.
    """
    binding = current_binding()
    if binding.revoked or (running and binding.ended):
        return NOBODY
    tenant, user, ids = binding.tenant, binding.user, binding.ids
    try:
        return (
            None if tenant is None else escaped(tenant, taken),
            None if user is None else escaped(user, taken),
            None if ids is None else escaped(read_id(ids), taken),
        )
    except Exception:  # noqa: BLE001 - no randomness to make the id of, no memory, no stack: the line is still written
        return NOBODY


def escaped(text: str, taken: str | None = None) -> str:
    r"""Escape what is not of the alphabet of identifiers.

    Args:
        text: any text.
        taken: what stands for something else, so that this text must not look like it.

    Returns:
        A text that is the same for no two texts of up to 128 characters: ``\x0a``, ``\u2028`` and ``\U0001f600`` stand
        for characters, as in Python, and ``\...`` for the rest of what is longer.
    """
    if text == taken:
        return "".join(map(_escape, text))
    if _PLAIN.fullmatch(text):
        return text
    return _OTHER.sub(lambda found: _escape(found[0]), text[:_LONGEST]) + (_CUT if len(text) > _LONGEST else "")


def _escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:  # noqa: PLR2004 - what two digits can say
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - what four can
