"""Who asks, as values that nobody can change: `Identity` and `RequestContext`."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from asgi_context._claims import NO_CLAIMS, Claims


class _Frozen:
    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        message = f"{type(self).__name__} is immutable: {name!r} cannot be set"
        raise AttributeError(message)

    def __delattr__(self, name: str) -> NoReturn:
        message = f"{type(self).__name__} is immutable: {name!r} cannot be deleted"
        raise AttributeError(message)


def _identifier(value: object, name: str) -> None:
    if type(value) is not str:
        message = f"{name} must be a str, not {type(value).__qualname__}"
        raise TypeError(message)
    if not value:
        message = f"{name} must not be empty"
        raise ValueError(message)


class _IdentityFields:
    __slots__ = {  # noqa: RUF023 - in the order of reading
        "tenant": "The tenant's identifier.",
        "user": "The user's identifier inside the tenant, or ``None`` for the tenant itself.",
        "claims": "What else the proof says, as `Claims`.",
        "expires_at": "When the proof ends, in seconds since the epoch; ``None`` for never.",
    }


class Identity(_Frozen, _IdentityFields):
    """Who asks, as one unit that came from one proof. Immutable, comparable, hashable, picklable.

    It checks types alone: which characters an identifier may hold is for the extractor that reads it to decide.

    Args:
        tenant: the tenant's identifier, not empty.
        user: the user's identifier inside the tenant, not empty; ``None`` for the tenant itself.
        claims: what else the proof says; JSON.
        expires_at: when the proof ends, in seconds since the epoch; ``None`` for never. `ContextMiddleware` then closes
            a WebSocket with 4401, and opens none any more. A request that has begun goes on, and whether one still
            may begin is for the extractor to say.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an identifier is empty, or ``expires_at`` is not a finite number.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def tenant(self) -> str: ...
        @property
        def user(self) -> str | None: ...
        @property
        def claims(self) -> Claims: ...
        @property
        def expires_at(self) -> float | None: ...

    def __init__(
        self,
        tenant: str,
        user: str | None = None,
        claims: Mapping[str, Any] = NO_CLAIMS,
        expires_at: float | None = None,
    ) -> None:
        _identifier(tenant, "tenant")
        if user is not None:
            _identifier(user, "user")
        if expires_at is not None:
            if isinstance(expires_at, bool) or not isinstance(expires_at, int | float):
                message = f"expires_at must be a number of seconds, not {type(expires_at).__qualname__}"
                raise TypeError(message)
            if not float("-inf") < expires_at < float("inf"):
                message = "expires_at must be finite; leave it out for a proof that does not end"
                raise ValueError(message)
        _set(self, "tenant", tenant)
        _set(self, "user", user)
        _set(self, "claims", claims if type(claims) is Claims else Claims(claims))
        _set(self, "expires_at", expires_at)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        expiry = "" if self.expires_at is None else f", expires_at={self.expires_at!r}"
        return f"Identity(tenant={self.tenant!r}, user={self.user!r}{expiry})"

    def __reduce__(self) -> tuple[type["Identity"], tuple[object, ...]]:
        return Identity, self._key()

    def _key(self) -> tuple[str, str | None, Claims, float | None]:
        return self.tenant, self.user, self.claims, self.expires_at


_set: Final = object.__setattr__


class _ContextFields:
    __slots__ = {  # noqa: RUF023 - in the order of reading
        "tenant": "The tenant's identifier.",
        "user": "The user's identifier inside the tenant, or ``None`` for the tenant itself.",
        "claims": "What else the proof says, as `Claims`.",
        "_ids": "The cell of the request id, see `id_cell`.",
        "_expires_at": "When the proof ends, as in `Identity`: for what goes on from here, and no part of who asks.",
    }


class RequestContext(_Frozen, _ContextFields):
    """On whose behalf the code runs. Immutable, comparable, hashable, picklable.

    Args:
        tenant: the tenant's identifier, not empty.
        user: the user's identifier inside the tenant, not empty; ``None`` for the tenant itself.
        request_id: what ties log lines and traces together; without one, one is made when it is first read.
        claims: what else the identity's proof says; JSON.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an identifier is empty.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def tenant(self) -> str: ...
        @property
        def user(self) -> str | None: ...
        @property
        def claims(self) -> Claims: ...
        @property
        def _ids(self) -> list[str]: ...
        @property
        def _expires_at(self) -> float | None: ...

    def __init__(
        self,
        tenant: str,
        user: str | None = None,
        request_id: str | None = None,
        claims: Mapping[str, Any] = NO_CLAIMS,
    ) -> None:
        _identifier(tenant, "tenant")
        if user is not None:
            _identifier(user, "user")
        _set(self, "tenant", tenant)
        _set(self, "user", user)
        _set(self, "claims", claims if type(claims) is Claims else Claims(claims))
        _set(self, "_ids", id_cell(request_id))
        _set(self, "_expires_at", None)

    @property
    def request_id(self) -> str:
        """The id of the request; the same for all that is bound for it."""
        return read_id(self._ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RequestContext):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"RequestContext(tenant={self.tenant!r}, user={self.user!r}, request_id={self.request_id!r})"

    def __reduce__(self) -> tuple[object, ...]:
        if self._expires_at is None:
            return RequestContext, self._key()
        return make_context, (Identity(self.tenant, self.user, self.claims, self._expires_at), self.request_id)

    def _key(self) -> tuple[str, str | None, str, Claims]:
        return self.tenant, self.user, self.request_id, self.claims


class _IdentityDraft(_IdentityFields):
    """An `Identity` while it is being filled, as `ContextDraft` is."""

    __slots__ = ()

    tenant: str
    user: str | None
    claims: Claims
    expires_at: float | None


def make_identity(tenant: str, user: str | None) -> Identity:
    """Make an identity without claims of identifiers that were checked.

    Args:
        tenant: the tenant's identifier.
        user: the user's, or ``None``.

    Returns:
        The identity.
    """
    draft = _IdentityDraft()
    draft.tenant = tenant
    draft.user = user
    draft.claims = NO_CLAIMS
    draft.expires_at = None
    draft.__class__ = Identity  # type: ignore[assignment]  # the same fields, so the same layout
    return draft  # type: ignore[return-value]


class ContextDraft(_ContextFields):
    """A `RequestContext` while it is being filled: set plainly, then sealed by a change of its class.

    One is made for nearly every request. To go past ``_Frozen.__setattr__`` for four fields would cost more than all
    the rest of making one.
    """

    __slots__ = ()

    tenant: str
    user: str | None
    claims: Claims
    _ids: list[str]
    _expires_at: float | None


def make_context(identity: Identity, request_id: str) -> RequestContext:
    """Make a context that knows when the proof of its identity ends.

    Args:
        identity: who asks.
        request_id: the request's id.

    Returns:
        The context.

    Raises:
        TypeError: the id is no str.
        ValueError: it is empty.
    """
    context = RequestContext(identity.tenant, identity.user, request_id, identity.claims)
    _set(context, "_expires_at", identity.expires_at)
    return context


# A request's id is a cell: a list that is empty until the id is known or first asked for. Context and binding share it,
# so they agree on the id without pointing at each other (a cycle would leave every request to the garbage collector).
# Threads may race to make the id: each appends, which is atomic, and the first entry is the id for all of them.


def id_cell(request_id: str | None) -> list[str]:
    """Make the cell of a request id.

    Args:
        request_id: the id; ``None`` to make one when it is first read.

    Returns:
        The cell.
    """
    if request_id is None:
        return []
    _identifier(request_id, "request_id")
    return [request_id]


def read_id(ids: list[str]) -> str:
    """Read the id in a cell, and make it where there is none yet.

    Args:
        ids: the cell.

    Returns:
        The id; the same for every reader.
    """
    if not ids:
        ids.append(os.urandom(16).hex())
    return ids[0]
