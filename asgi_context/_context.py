"""What is bound: one ContextVar through which every call finds its binding.

Invariants:

- The variable always holds a `Binding`; ``UNBOUND`` stands for "nothing" and is never entered, left or written to.
- A `Binding` is made for one request or one block and never reused. It is small on purpose: a ``call_later`` or a task
  that outlives the request pins all that its Context holds, so what is large hangs on the binding and goes at its end.
- A binding ends once. After a normal end its identity and store stay readable, the rest does not. It is revoked, so
  that nothing on it can be read any more, if it could not be taken out of the Context that it was set in, if blocks
  were left out of order, or if the request was refused after all.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, TypeVar, overload

from asgi_context._blocking import AppLoop, app_loop
from asgi_context._claims import NO_CLAIMS, Claims
from asgi_context._identity import ContextDraft, Identity, RequestContext, id_cell
from asgi_context._types import Scope, Store, check_store
from asgi_context.errors import ContextClosedError, ContextNotBoundError

if TYPE_CHECKING:
    from types import TracebackType

_T = TypeVar("_T")


class Required:
    """The type of ``REQUIRED``, which stands for "no default was given"."""

    def __repr__(self) -> str:
        return "..."  # in signatures, as `help` shows them


REQUIRED: Final = Required()


class Services(NamedTuple):
    """What a middleware offers to all that it binds for."""

    store: Store | None = None
    pools: Mapping[str, Any] = MappingProxyType({})
    factories: Mapping[type, Callable[[RequestContext], Any]] = MappingProxyType({})
    closing: Any = None
    """Where the closing of resources is noted."""
    origins: frozenset[bytes] | None = None
    """From which pages a WebSocket may be opened; ``None`` where nobody has said."""
    app_loop: AppLoop | None = None
    """Where the event loop is noted that blocking calls run on."""


class Binding:
    """The handle in the ContextVar: whose request it is, and what lives as long as the request."""

    __slots__ = (
        "claims",
        "connection",
        "context",
        "ended",
        "expires_at",
        "ids",
        "resources",
        "revoked",
        "scope",
        "services",
        "state",
        "tenant",
        "user",
        "values",
    )

    is_guest: ClassVar[bool] = False
    """Whether it is for somebody else than those to whom its connection leads."""
    tenant: str | None
    """Who asks, as an identity taken apart, since most requests need no more; ``None`` for nobody."""
    user: str | None
    claims: Claims
    expires_at: float | None
    services: "Services"
    ids: list[str] | None
    """The cell of the request id; ``None`` where it stands for nobody in particular."""
    scope: Scope | None
    """The scope that it was made for, as long as it lasts."""
    connection: Any
    """The WebSocket connection, where its messages say who asks."""
    context: RequestContext | None
    state: Any
    """The `SharedState`, once it was asked for."""
    resources: Any
    """What `current_resource` has made, once it was asked for; ``None`` again once that is to be closed."""
    values: dict[str, Any]
    """Made with the binding: making it at the first write would take a lock, and this takes 15 nanoseconds."""
    ended: bool
    revoked: Literal["revoked", "messages"] | None
    """Why it is void, as `ContextClosedError` tells it."""

    def take(self, identity: Identity | None) -> None:
        """Say who asks.

        Args:
            identity: who; ``None`` for nobody.
        """
        if identity is None:
            self.tenant = self.user = self.expires_at = None
            self.claims = NO_CLAIMS
        else:
            self.tenant = identity.tenant
            self.user = identity.user
            self.claims = identity.claims
            self.expires_at = identity.expires_at

    def leave(self, token: Token["Binding"]) -> None:
        """End the binding, and restore what was bound before.

        Args:
            token: what setting it gave.
        """
        self.ended = True
        if self.values:
            self.values = {}
        if _current.get() is not self:
            # Another Context than it was set in, or another block was entered since and is still open: what is bound
            # here belongs to that block, and what was set before may be found again by whoever resets to it.
            self.revoke()
            return
        try:
            _current.reset(token)
        except ValueError:  # a copy of the Context that it was set in
            self.revoke()

    def revoke(self, why: Literal["revoked", "messages"] = "revoked") -> None:
        """Make it void for whoever still finds it.

        Args:
            why: as `ContextClosedError` tells it.
        """
        self.revoked = why
        self.context = self.state = None
        if self.values:
            self.values = {}

    def __deepcopy__(self, _memo: object) -> "Binding":
        return self  # a handle: a copy of a scope that holds it is still a copy of the same request

    def check(self, wanted: str) -> None:
        """Refuse to be read once revoked.

        Args:
            wanted: what is being read.

        Raises:
            ContextClosedError: the binding was revoked.
        """
        if self.revoked:
            raise ContextClosedError(wanted, self.revoked)


class Guest(Binding):
    """The binding of a block for somebody else, inside of what is bound to a connection."""

    __slots__ = ()

    is_guest: ClassVar[bool] = True


def make_binding(identity: Identity | None, services: Services, ids: list[str] | None) -> Binding:
    """Make a binding. The middleware does it in place, where a call would cost as much again.

    Args:
        identity: who asks; ``None`` for nobody.
        services: what is on offer.
        ids: the cell of the request id; ``None`` where it stands for nobody in particular.

    Returns:
        The binding, not yet entered.
    """
    binding = Binding()
    binding.services = services
    binding.ids = ids
    binding.scope = binding.connection = binding.context = None
    binding.take(identity)
    binding.state = binding.resources = None
    binding.values = {}
    binding.ended = False
    binding.revoked = None
    return binding


UNBOUND: Final = make_binding(None, Services(), None)

_current: Final[ContextVar[Binding]] = ContextVar("asgi_context", default=UNBOUND)

current_binding: Final = _current.get
enter_binding: Final = _current.set
exit_binding: Final = _current.reset


@overload
def current_context() -> RequestContext: ...
@overload
def current_context(default: _T, /) -> RequestContext | _T: ...
def current_context(default: object = REQUIRED, /) -> object:
    """Say on whose behalf this code runs.

    Works in whatever the request calls: functions, tasks, and threads that were given its context. After the request
    has ended normally, tasks that it started can still ask.

    Args:
        default: what to return where nothing is bound, instead of raising.

    Returns:
        The bound `RequestContext`, or the default.

    Raises:
        ContextNotBoundError: nothing is bound here, and there is no default.
        ContextClosedError: what is bound here was revoked, whatever the default.
    """
    binding = _current.get()
    context = binding.context
    if context is not None:
        return context
    tenant = binding.tenant
    if tenant is None:
        binding.check("context")
        if default is REQUIRED:
            raise ContextNotBoundError
        return default
    draft = ContextDraft()
    draft.tenant = tenant
    draft.user = binding.user
    draft.claims = binding.claims
    draft._ids = binding.ids  # type: ignore[assignment]  # noqa: SLF001 - whoever is bound has a cell; ours to fill
    draft._expires_at = binding.expires_at  # noqa: SLF001 - as above
    draft.__class__ = RequestContext  # type: ignore[assignment]  # the same fields, so the same layout
    made: RequestContext = draft  # type: ignore[assignment]
    binding.context = made
    if binding.revoked:  # asked after the store above, or a thread could put back what a revocation took away
        binding.context = None
        binding.check("context")
    return made


class Block:
    """A block that binds: what `bind_context` and `unbound_context` return, for ``with`` and ``async with``."""

    __slots__ = ("_binding", "_token")

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._token: Token[Binding] | None = None

    def enter(self) -> None:
        """Bind.

        Raises:
            RuntimeError: it was entered before.
        """
        if self._token is not None or self._binding.ended:
            message = "a binding block can be entered once: call bind_context() or unbound_context() for each `with`"
            raise RuntimeError(message)
        self._token = _current.set(self._binding)

    def _leave(self) -> Any:  # noqa: ANN401 - the resources that are to be closed
        if self._token is None:
            message = "this binding block was left without having been entered"
            raise RuntimeError(message)
        token, self._token = self._token, None
        resources, self._binding.resources = self._binding.resources, None
        self._binding.leave(token)
        return resources

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: "TracebackType | None", /
    ) -> None:
        resources = self._leave()
        if resources is not None:
            resources.leave(error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: "TracebackType | None", /
    ) -> None:
        resources = self._leave()
        if resources is not None:
            await resources.finish(error)


class BoundBlock(Block):
    """A block in which a context is bound."""

    __slots__ = ()

    def __enter__(self) -> RequestContext:
        self.enter()
        return current_context()

    async def __aenter__(self) -> RequestContext:
        return self.__enter__()


class UnboundBlock(Block):
    """A block in which nothing is bound."""

    __slots__ = ()

    def __enter__(self) -> None:
        self.enter()

    async def __aenter__(self) -> None:
        self.enter()


def bind_context(
    identity: Identity | RequestContext | None = None,
    /,
    *,
    request_id: str | None = None,
    values: Mapping[str, Any] | None = None,
    store: Store | None = None,
) -> BoundBlock:
    """Bind a context for a block, in workers, scripts, tests and tasks that outlive their request.

    The identity is given whole or inherited whole. Of what is bound outside, only the request id and the store carry
    over; values never do. Do not yield inside the block: a generator may be ended in another Context, and the binding
    is then revoked.

    Args:
        identity: who it is for; without one, the identity that is bound here.
        request_id: another request id; a `RequestContext` brings its own.
        values: what `asgi_context.values` gives out inside.
        store: where the block's shared state is kept.

    Returns:
        A context manager, for ``with`` and ``async with``, that can be entered once and gives the `RequestContext`.

    Raises:
        TypeError: an argument is of the wrong type.
        ContextNotBoundError: no identity was given and none is bound here.
        ContextClosedError: no identity was given and what is bound here was revoked.
    """
    if store is not None:
        check_store(store)
    if values is not None and not isinstance(values, Mapping):
        message = f"values must be a mapping, not {type(values).__qualname__}"
        raise TypeError(message)
    outer = _current.get()
    ids: list[str] | None = None
    whole: Identity | None
    if identity is None:
        outer.check("identity")
        if outer.tenant is None:
            raise ContextNotBoundError("identity")
        whole = Identity(outer.tenant, outer.user, outer.claims, outer.expires_at)
    elif isinstance(identity, Identity):
        whole = identity
    elif isinstance(identity, RequestContext):
        whole = Identity(identity.tenant, identity.user, identity.claims, identity._expires_at)  # noqa: SLF001 - ours
        ids = identity._ids  # noqa: SLF001 - the cell, so that an id which nobody has asked for yet is the same in both
    else:
        message = f"bind_context takes an Identity or a RequestContext, not {type(identity).__qualname__}"
        raise TypeError(message)
    if request_id is not None:
        ids = id_cell(request_id)
    elif ids is None:
        ids = [] if outer.ids is None or outer.revoked else outer.ids
    services = _services_with(store, outer.services)
    binding = make_binding(whole, services, ids)
    _share_connection(outer, binding)
    if values is not None:
        binding.values = dict(values)
    return BoundBlock(binding)


def _share_connection(outer: Binding, inner: Binding) -> None:
    inner.connection = outer.connection
    same = outer.tenant is None or (outer.tenant == inner.tenant and outer.user in {None, inner.user})
    if outer.is_guest or not same:
        inner.__class__ = Guest


def _services_with(store: Store | None, outer: Services) -> Services:
    loop = app_loop(outer.app_loop)
    if store is None:
        if loop is outer.app_loop:
            return outer
        store = outer.store
    return outer._replace(store=store, app_loop=loop)


def unbound_context() -> UnboundBlock:
    """Bind nothing for a block, for long-lived tasks that are started inside a request but not on its behalf.

    Returns:
        A context manager, for ``with`` and ``async with``, that can be entered once.
    """
    return UnboundBlock(make_binding(None, _current.get().services, None))
