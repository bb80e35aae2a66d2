"""Every error that this package raises, as one tree.

::

    AsgiContextError
    ├── ContextNotBoundError (LookupError)      nothing is bound here
    │   └── StoreNotBoundError                  an identity is bound, but no store
    ├── ContextClosedError (RuntimeError)       what was bound here has ended
    ├── RequestRejected                         raised by an extractor to refuse a request
    ├── ExtractorError (RuntimeError)           an extractor or another hook crashed
    │   ├── ExtractorTypeError (TypeError)      it returned what it must not return
    │   └── ScopeKeyMissingError (LookupError)  the scope lacks a key that an outer middleware sets
    ├── JobError (RuntimeError)                 a job ended in a way that no caller can be handed
    ├── UnsupportedLoopError (RuntimeError)     this needs a running asyncio event loop
    └── StateError
        └── StateSerializationError (TypeError) a value cannot be kept exactly

Wrong arguments are plain ``TypeError`` and ``ValueError``.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, Literal

__all__ = [
    "AsgiContextError",
    "ContextClosedError",
    "ContextNotBoundError",
    "ExtractorError",
    "ExtractorTypeError",
    "JobError",
    "RequestRejected",
    "ScopeKeyMissingError",
    "StateError",
    "StateSerializationError",
    "StoreNotBoundError",
    "UnsupportedLoopError",
]

_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
FIELD_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2: token
FIELD_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, 5.5: no CR, LF or NUL

_OWN_FIELDS: Final = frozenset({b"content-length", b"content-type", b"transfer-encoding"})

# What a client is told. Fixed texts, so that nothing that a client sent can come back in an answer.
_TEXTS: Final = {
    "identifier_invalid": "An identifier in this request is not acceptable.",
    "identifier_mismatch": "Two sources in this request disagree on an identifier.",
    "identifier_repeated": "An identifier was given more than once.",
    "identifier_untrusted": "An identifier was given by a peer that may not give it.",
    "identity_missing": "This request does not say who it is for.",
    "internal_error": "The request could not be examined.",
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


class AsgiContextError(Exception):
    """The root of the tree. An error's ``args`` are the data that it was given, so that it can be pickled."""


class ContextNotBoundError(AsgiContextError, LookupError):
    """Nothing is bound here, and no default was given.

    Args:
        wanted: what was asked for, such as ``"context"``.
    """

    def __init__(self, wanted: str = "context") -> None:
        super().__init__(wanted)
        self.wanted = wanted

    def __str__(self) -> str:
        return (
            f"no {self.wanted} is bound here. In an app: wrap it in ContextMiddleware, and see whether this request "
            "was exempt or came without an identity. In a worker, script or test: "
            '`with bind_context(Identity("tenant", "user")):`. In a thread: start it by run_in_executor, '
            "carry_context or ContextThreadPoolExecutor, since a bare submit() or Thread() carries no context"
        )


class StoreNotBoundError(ContextNotBoundError):
    """An identity is bound here, but no store that could hold its state."""

    def __init__(self, wanted: str = "store") -> None:
        super().__init__(wanted)

    def __str__(self) -> str:
        return "an identity is bound here, but no store. Give one: `bind_context(identity, store=MemoryStore())`"


class ContextClosedError(AsgiContextError, RuntimeError):
    """What was bound here has ended: a later reader could get somebody else's.

    Args:
        wanted: what was asked for, such as ``"values"``.
        why: ``"ended"`` with its request or block, or ``"revoked"``: its block was left in another
            ``contextvars.Context`` than it was entered in or out of order, or its request was refused.
    """

    def __init__(self, wanted: str, why: Literal["ended", "revoked"]) -> None:
        super().__init__(wanted, why)
        self.wanted = wanted
        self.why = why

    def __str__(self) -> str:
        if self.why == "revoked":
            return (
                f"the {self.wanted} bound here was revoked: its block was left in another contextvars.Context than it "
                "was entered in, or out of order, as happens to a generator that yields inside the block (bind around "
                "the whole use, never across a yield); or its request was refused"
            )
        return (
            f"the {self.wanted} bound here ended with the request or block that made it. Read what a longer-lived "
            "task needs before the end, or give that task a binding of its own: `with bind_context():`"
        )


class RequestRejected(AsgiContextError):  # noqa: N818 - an answer that is given, not a fault that happened
    """Raised by an extractor to refuse the request. The app is not called.

    The client is told the status, the code and a fixed text that belongs to the code, as
    ``application/problem+json`` (RFC 9457); on a WebSocket by the denial response or a close before accept.

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
    """An extractor, ``exempt``, ``authorize`` or ``on_reject`` failed; the request is answered with a 500.

    The log gets this error with the crash's traceback in place of the crash itself: the text of somebody's exception
    can hold a client's bytes, and they stand here escaped.
    """


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


class JobError(AsgiContextError, RuntimeError):
    """A job ended by an exception that must not reach its caller as it is; that one is the ``__cause__``.

    StopIteration would hang a waiting coroutine on Python 3.11 and 3.12, SystemExit and KeyboardInterrupt would stop
    the event loop, CancelledError would look as if the caller had been cancelled.

    Args:
        kind: name of the exception's type.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    def __str__(self) -> str:
        return f"the job raised {self.kind}, which cannot be handed to its caller: raise an ordinary exception there"


class UnsupportedLoopError(AsgiContextError, RuntimeError):
    """The call needs a running asyncio event loop.

    Args:
        call: name of what was called.
    """

    def __init__(self, call: str) -> None:
        super().__init__(call)
        self.call = call

    def __str__(self) -> str:
        return (
            f"{self.call} needs a running asyncio event loop: call it from a coroutine under asyncio or uvloop. On "
            "trio, use trio.to_thread.run_sync, which carries the context by itself"
        )


class StateError(AsgiContextError):
    """The root of what shared state can raise."""


class StateSerializationError(StateError, TypeError):
    """A value cannot be kept so that it comes back equal and of the same type.

    Args:
        state: name of the state.
        path: the field, with the way to the value inside it, such as ``"cart['items'][2]"``.
        reason: what is wrong with the value, without the value.
    """

    def __init__(self, state: str, path: str, reason: str) -> None:
        super().__init__(state, path, reason)
        self.state = state
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"state {self.state!r}, {self.path}: {self.reason}"
