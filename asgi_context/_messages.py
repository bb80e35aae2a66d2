"""Extractors of identities from WebSocket messages."""

import json
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Final, NoReturn, TypeAlias, cast

from asgi_context._callables import runs_later
from asgi_context._extract import IDENTIFIER, Valid, check_rule, checked
from asgi_context._identity import Identity, make_identity
from asgi_context._types import Message
from asgi_context.errors import ExtractorTypeError, RequestRejected

_ABSENT: Final = object()

MessageExtractor: TypeAlias = Callable[[Message], Identity | Awaitable[Identity | None] | None]
"""Reads who asks out of a ``websocket.receive`` event (ASGI specification, "Receive - receive event").

It may be a coroutine function. ``None`` means that the message does not say; to refuse it, it raises `RequestRejected`.
"""


class JsonMessage:
    """What `json_message` returns."""

    def __init__(self, tenant: str, user: str | None, max_bytes: int, valid: Valid | None) -> None:
        for option, name in (("tenant", tenant), ("user", user)):
            if not (isinstance(name, str) and name) and (option == "tenant" or name is not None):
                message = f"json_message: {option} must be the name of a member, not {name!r}"
                raise TypeError(message)
        if type(max_bytes) is not int:
            message = f"json_message: max_bytes must be an int, not {type(max_bytes).__qualname__}"
            raise TypeError(message)
        if max_bytes < 1:
            message = f"json_message: max_bytes must be at least 1, not {max_bytes}"
            raise ValueError(message)
        check_rule(valid, "json_message: valid=")
        self._tenant = tenant
        self._user = user
        self._max_bytes = max_bytes
        self._valid = valid

    def __repr__(self) -> str:
        user = "" if self._user is None else f", user={self._user!r}"
        return f"json_message(tenant={self._tenant!r}{user})"

    def __call__(self, event: Message, /) -> Identity | None:
        """Extract by itself, as a part of an extractor of the user's own.

        Args:
            event: a ``websocket.receive`` event.

        Returns:
            The identity; ``None`` where the message names nobody.

        Raises:
            RequestRejected: the message is not acceptable, or names half an identity.
        """
        tenant, user = self.read(event)
        if tenant is None and user is None:
            return None
        return make_identity(self.check_whole(tenant, user), user)

    def read(self, event: Message) -> tuple[str | None, str | None]:
        """Read what a message names, which may be half an identity.

        Args:
            event: a ``websocket.receive`` event.

        Returns:
            The tenant and the user.

        Raises:
            RequestRejected: the message is not acceptable.
        """
        members = self._members(event)
        tenant: Any = members.get(self._tenant, _ABSENT)
        if tenant is _ABSENT:
            tenant = None
        elif type(tenant) is not str or self._valid is not None or IDENTIFIER.fullmatch(tenant) is None:
            tenant = self._identifier(tenant, "tenant")
        user: Any = _ABSENT if self._user is None else members.get(self._user, _ABSENT)
        if user is _ABSENT:
            user = None
        elif type(user) is not str or self._valid is not None or IDENTIFIER.fullmatch(user) is None:
            user = self._identifier(user, "user")
        return tenant, user

    def is_whole(self, tenant: str | None, user: str | None) -> bool:
        """Say whether a message names all that it must.

        Args:
            tenant: the tenant that it names.
            user: the user that it names.

        Returns:
            Whether it does.
        """
        return tenant is not None and (user is not None or self._user is None)

    def check_whole(self, tenant: str | None, user: str | None) -> str:
        """Refuse what is half an identity, or nothing.

        Args:
            tenant: the tenant that a message names.
            user: the user that it names.

        Returns:
            The tenant.

        Raises:
            RequestRejected: the tenant is missing, or the configured user is.
        """
        if tenant is None:
            raise RequestRejected(400, "tenant_missing")
        if user is None and self._user is not None:
            raise RequestRejected(400, "user_missing")
        return tenant

    def _members(self, event: Message) -> dict[str, Any]:
        text: Any = event.get("text")
        raw: Any = event.get("bytes")
        if (text is None) is (raw is None):  # of both, the app might read the other
            raise RequestRejected(400, "message_invalid")
        try:
            if text is None:
                if len(raw) > self._max_bytes:
                    raise RequestRejected(413, "message_too_large")
                text = str(raw, "utf-8")
            elif len(text) > self._max_bytes // 4 and len(text.encode()) > self._max_bytes:  # at most 4 bytes each
                raise RequestRejected(413, "message_too_large")
            members = _parse(text)
        except (ValueError, RecursionError):  # no UTF-8, no JSON, or nested without end
            raise RequestRejected(400, "message_invalid") from None
        if type(members) is not dict:
            raise RequestRejected(400, "message_invalid")
        return cast("dict[str, Any]", members)

    def _identifier(self, value: object, role: str) -> str:
        if type(value) is not str:
            raise RequestRejected(400, f"{role}_invalid")
        return checked(value, self._valid, role)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 8259, section 4: which of two members of one name counts is up to each parser, so the app's may see another.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is repeated")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are no JSON


_STRICT: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _parse(text: str) -> Any:  # noqa: ANN401 - JSON
    # As JSONDecoder.decode, without its two regular expressions for white space, which most messages have none of.
    if text[:1] == "{":
        members, end = _STRICT.raw_decode(text)
        if end == len(text) or not text[end:].strip(" \t\n\r"):
            return members
    return _STRICT.decode(text)


def json_message(
    *, tenant: str, user: str | None = None, max_bytes: int = 65536, valid: Valid | None = None
) -> JsonMessage:
    """Read who asks from the members of a JSON object, in each WebSocket message.

    A message must be one JSON object (RFC 8259), as text or as bytes of UTF-8, without repeated members, ``NaN`` or
    ``Infinity``: a parser of the app's might read them as something else. It is refused if it does not name what is
    configured here, unless the connection has an identity: that is then kept, and what the message does name must agree
    with it.

    Args:
        tenant: name of the member that holds the tenant.
        user: name of the member that holds the user; without one, the user is ``None``.
        max_bytes: the longest message, in bytes of UTF-8.
        valid: another rule for identifiers than the package's own, see `Extractor`.

    Returns:
        An extractor for ``ContextMiddleware(message=...)``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``max_bytes`` is too small.
    """
    return JsonMessage(tenant, user, max_bytes, valid)


def check_message(extractor: object) -> None:
    """Check the option ``message``.

    Args:
        extractor: what was given.

    Raises:
        TypeError: it is no extractor of messages.
    """
    if not callable(extractor) or isinstance(extractor, type) or runs_later(extractor) == "a generator function":
        message = f"message must be a callable that takes a websocket.receive event, not {extractor!r}"
        raise TypeError(message)
    if extractor is json_message:
        raise TypeError("message must be an extractor, which json_message makes: call it, json_message(tenant=...)")


async def read_message(extractor: MessageExtractor, event: Message) -> Identity | None:
    """Ask an extractor of the user's.

    Args:
        extractor: the extractor.
        event: a ``websocket.receive`` event.

    Returns:
        Who asks; ``None`` where the message does not say.

    Raises:
        RequestRejected: the message is not acceptable.
        ExtractorTypeError: it returned something else.
    """
    identity = extractor(event)
    if isawaitable(identity):
        identity = await identity
    if identity is None:
        return None
    if type(identity) is not Identity:
        raise ExtractorTypeError("the extractor given as message=", type(identity).__qualname__, "Identity or None")
    valid: Valid | None = getattr(extractor, "valid", None)
    checked(identity.tenant, valid, "tenant")
    if identity.user is not None:
        checked(identity.user, valid, "user")
    return identity
