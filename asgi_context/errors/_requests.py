"""What can be wrong with a request, or with what examines it."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from asgi_context.errors._root import AsgiContextError

_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
FIELD_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2: token
FIELD_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, 5.5: no CR, LF or NUL

_OWN_FIELDS: Final = frozenset({b"content-length", b"content-type", b"transfer-encoding"})

# What a client is told. Fixed texts, so that nothing that a client sent can come back in an answer.
_TEXTS: Final = {
    "carrier_invalid": "What was handed on of who asks is not acceptable.",
    "carrier_repeated": "What was handed on of who asks was given more than once.",
    "carrier_untrusted": "What was handed on of who asks came from a peer that may not hand it on.",
    "identifier_invalid": "An identifier in this request is not acceptable.",
    "identifier_mismatch": "Two sources in this request disagree on an identifier.",
    "identifier_repeated": "An identifier was given more than once.",
    "identifier_untrusted": "An identifier was given by a peer that may not give it.",
    "identity_expired": "What says who asks has expired.",
    "identity_missing": "This request does not say who it is for.",
    "internal_error": "The request could not be examined.",
    "invalid_request": "This request carries more than one access token, or one where none may stand.",
    "invalid_token": "The access token is not acceptable.",
    "keys_unavailable": "The keys that access tokens are checked with cannot be had just now.",
    "message_invalid": "A message is not acceptable.",
    "message_mismatch": "A message and its connection disagree on who asks.",
    "message_too_large": "A message is too large.",
    "origin_forbidden": "A page of this origin may not open this WebSocket.",
    "tenant_forbidden": "This user may not act in this tenant.",
    "tenant_invalid": "The tenant identifier is not acceptable.",
    "tenant_mismatch": "Two sources in this request disagree on the tenant.",
    "tenant_missing": "This request does not name a tenant.",
    "tenant_repeated": "The tenant was given more than once.",
    "tenant_untrusted": "The tenant was given by a peer that may not give it.",
    "user_invalid": "The user identifier is not acceptable.",
    "user_mismatch": "Two sources in this request disagree on the user.",
    "user_missing": "This request names a tenant, but no user.",
    "user_repeated": "The user was given more than once.",
    "user_untrusted": "The user was given by a peer that may not give it.",
}


class RequestRejected(AsgiContextError):  # noqa: N818 - an answer that is given, not a fault that happened
    """Raised by an extractor to refuse the request. The app is not called.

    The client is told the status, the code and a fixed text that belongs to the code, as
    ``application/problem+json`` (RFC 9457); on a WebSocket by the denial response or a close before accept. For a
    message of a WebSocket, the connection is closed with 1008 and the code as the reason, and `message_context` raises
    this.

    Args:
        status: HTTP status, 400 to 599.
        code: ``snake_case`` word that a client can tell apart, at most 64 characters.
        headers: pairs of name and value that the answer carries besides its own, such as ``WWW-Authenticate``.

    Raises:
        TypeError: status or code is of the wrong type.
        ValueError: status, code or a header is not acceptable.
    """

    def __init__(self, status: int, code: str, *, headers: Iterable[tuple[str | bytes, str | bytes]] = ()) -> None:
        if type(status) is not int or type(code) is not str:
            message = f"RequestRejected takes an int and a str, not {type(status).__name__} and {type(code).__name__}"
            raise TypeError(message)
        if not 400 <= status <= 599:  # noqa: PLR2004 - RFC 9110, 15.5 and 15.6
            message = f"status must be 400 to 599, not {status}"
            raise ValueError(message)
        if _CODE.fullmatch(code) is None:
            message = "code must be snake_case: a letter, then letters, digits and _, at most 64 in all, lower case"
            raise ValueError(message)
        super().__init__(status, code)
        self.status = status
        self.code = code
        self.headers = tuple((_field(name, FIELD_NAME).lower(), _field(value, FIELD_VALUE)) for name, value in headers)

        for name, _ in self.headers:
            if name in _OWN_FIELDS:
                message = f"{name.decode()} belongs to the answer itself: give another answer by on_reject"
                raise ValueError(message)

    def __str__(self) -> str:
        return f"{self.status} {self.code}"

    @property
    def title(self) -> str:
        """The reason phrase of the status (RFC 9110, section 15)."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:  # a status that no RFC has named
            return "Refused"

    @property
    def detail(self) -> str:
        """The fixed text for the client that belongs to the code; for a code of the user's own, the title."""
        return _TEXTS.get(self.code, self.title)


def _field(part: str | bytes, pattern: re.Pattern[bytes]) -> bytes:
    encoded = part.encode() if isinstance(part, str) else part
    if isinstance(part, str) and not part.isascii():
        encoded = b"\0"  # there is no one way to put it into bytes
    if pattern.fullmatch(encoded) is None:
        message = "a header name or value holds a character that RFC 9110, section 5, does not allow there"
        raise ValueError(message)
    return encoded


class ExtractorError(AsgiContextError, RuntimeError):
    """An extractor, ``exempt``, ``authorize`` or ``on_reject`` did what it must not; the request gets a 500."""


class ExtractorTypeError(ExtractorError, TypeError):
    """A callable returned something that it must not return.

    Args:
        call: what was called, such as ``"the extractor tenant_of"``.
        returned: name of the type that came back.
        expected: what should have come back, in words.
    """

    def __init__(self, call: str, returned: str, expected: str) -> None:
        super().__init__(call, returned, expected)
        self.call = call
        self.returned = returned
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.call} returned {self.returned}; it must return {self.expected}"


class ScopeKeyMissingError(ExtractorError, LookupError):
    """``from_scope`` looked for a key that no middleware outside this one has set.

    Args:
        key: the key of the ASGI scope.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return (
            f"the scope has no {self.key!r}: the middleware that sets it must run before ContextMiddleware, so mount "
            "it outside (in Starlette, earlier in the `middleware=` list, or added later by add_middleware)"
        )


class ConnectionClosedError(AsgiContextError, OSError):
    """The middleware has closed this WebSocket, so nothing more can be sent on it.

    An ``OSError``, as ASGI has it for a send after the end (ASGI specification, "Disconnected Client").

    Args:
        code: the close code (RFC 6455, section 7.4): 4401 where the identity has expired, 1008 for a message that was
            refused, 1011 where examining one crashed.
        reason: the reason that the client was given.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"this WebSocket was closed by ContextMiddleware, with code {self.code} ({self.reason})"
