"""The middleware: find out who asks, bind it, run the app, take it away."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Final, Literal, TypeAlias

from asgi_context._claims import NO_CLAIMS
from asgi_context._context import Binding, current_binding, current_context, enter_binding, exit_binding
from asgi_context._extract import (
    Extractor,
    IdentityFrom,
    Step,
    ask,
    check_extractor,
    compile_step,
    identity_from,
    parts_of,
)
from asgi_context._headers import Found, HeaderPlan, header_name
from asgi_context._identity import Identity, RequestContext, read_id
from asgi_context._lifespan import Lifespan
from asgi_context._memory import MemoryStore
from asgi_context._respond import crashed, echoing, problem, refuse
from asgi_context._types import ASGIApp, Receive, Scope, Send, Store
from asgi_context.errors import ExtractorTypeError, RequestRejected

Exempt: TypeAlias = Callable[[Scope], object]
Authorize: TypeAlias = Callable[[RequestContext, Scope], object | Awaitable[object]]
OnReject: TypeAlias = Callable[[RequestRejected, Scope], ASGIApp | None]

_log = logging.getLogger("asgi_context")
_MARK: Final = "asgi_context"  # the scope's key for the binding that was made for it


class ContextMiddleware:
    """Binds, for every HTTP request and WebSocket connection of an ASGI app, on whose behalf it runs.

    Everything that the app calls can then ask `current_context` and `current_state`. On exit, whatever happened, what
    was bound before is bound again. Mount it outside of all that asks, and inside of what `from_scope` reads.
    Extractors run while nothing is bound, ``authorize`` and the app with the context bound.

    Args:
        app: the ASGI app (ASGI specification 3.0) to wrap.
        identity: extractor of an `Identity`. It, or ``tenant``, must be given: nothing is believed by default.
        tenant: extractor of the tenant; with ``user`` short for ``identity=identity_from(tenant=..., user=...)``.
        user: extractor of the user; without one the user is ``None``.
        request_id: extractor of an id that is trusted. Where it gives none, or an invalid one, an id is made.
        missing: what a request without identity gets: ``"reject"`` an answer with 400 (401 where an extractor has a
            ``challenge``), ``"unbound"`` the app with nothing bound. What is invalid is rejected either way.
        exempt: takes the scope and says whether to run the app with nothing bound, without asking any extractor. CORS
            preflights are exempt by themselves.
        authorize: takes the context and the scope, may be a coroutine function, and says whether this user may act in
            this tenant; otherwise 403.
        store: where shared state is kept; without one, a `MemoryStore` of this middleware's own.
        on_reject: takes the `RequestRejected` and the scope, and returns an ASGI app that gives another answer, in
            terms of HTTP also for a WebSocket, or ``None`` for the usual one.
        echo_request_id: name of the header by which every answer carries the request id, such as ``"x-request-id"``.

    Raises:
        TypeError: an option is of the wrong type, or options do not go together.
        ValueError: an option has a value that it cannot have.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        identity: Extractor | None = None,
        tenant: Extractor | None = None,
        user: Extractor | None = None,
        request_id: Extractor | None = None,
        missing: Literal["reject", "unbound"] = "reject",
        exempt: Exempt | None = None,
        authorize: Authorize | None = None,
        store: Store | None = None,
        on_reject: OnReject | None = None,
        echo_request_id: str | None = None,
    ) -> None:
        if not callable(app):
            message = f"app must be an ASGI app, not {type(app).__qualname__}"
            raise TypeError(message)
        if missing not in {"reject", "unbound"}:
            message = f"missing must be 'reject' or 'unbound', not {missing!r}"
            raise ValueError(message)
        if store is not None and (isinstance(store, type) or not isinstance(store, Store)):
            message = f"store must be a Store such as MemoryStore(), not {store!r}"
            raise TypeError(message)
        for option, hook in (("exempt", exempt), ("authorize", authorize), ("on_reject", on_reject)):
            if hook is not None and not callable(hook):
                message = f"{option} must be callable, not {type(hook).__qualname__}"
                raise TypeError(message)
        for option, hook in (("exempt", exempt), ("on_reject", on_reject)):
            if iscoroutinefunction(hook) or iscoroutinefunction(getattr(hook, "__call__", None)):  # noqa: B004
                message = f"{option} must be a plain function: a coroutine would count as true"
                raise TypeError(message)

        source = _source(identity, tenant, user)
        plan = HeaderPlan()
        # Tenant and user out of two headers, as nearly always, are read without a call once they are known.
        self._plain = source.plain_parts(plan) if isinstance(source, IdentityFrom) else None
        self._recall = plan.known.get
        self._identify = compile_step(source, plan, "identifier")
        self._request_id = None
        if request_id is not None:
            check_extractor(request_id, "request_id")
            self._request_id = compile_step(request_id, plan, "identifier")
        self._scan = plan.compile()

        self.app = app
        self._store: Store = MemoryStore() if store is None else store
        self._exempt = exempt
        self._authorize = authorize
        self._on_reject = on_reject
        self._echo = None if echo_request_id is None else header_name(echo_request_id, "echo_request_id")
        self._challenges = _challenges(source)
        self._absent = None
        if missing == "reject":
            code = "tenant_missing" if tenant is not None else "identity_missing"
            self._absent = 401 if self._challenges else 400, code
        self._lifespan = Lifespan([self._store, *parts_of([source, request_id])])

    def __repr__(self) -> str:
        return f"<ContextMiddleware of {self.app!r}>"

    async def open(self) -> None:
        """Open the store and the extractors, where there is something to open.

        The lifespan does it, or else the first request. Closed again, they can be opened again.
        """
        await self._lifespan.open()

    async def close(self) -> None:
        """Close the store and the extractors, for apps whose server or mount sends no lifespan."""
        await self._lifespan.close()

    # In one frame, since every call from here costs every request.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901, PLR0912, PLR0915
        """Handle one connection.

        Args:
            scope: its scope.
            receive: its receive.
            send: its send.
        """
        kind = scope["type"]
        if kind == "http":
            bare = scope["method"] == "OPTIONS" and _is_preflight(scope)
        elif kind == "websocket":
            bare = False
        else:
            await self._pass_on(scope, receive, send)
            return
        if _MARK in scope and self._is_inside(scope[_MARK]):
            await self.app(scope, receive, send)
            return

        # Bound from here, to nothing: servers run a request in the context of the one before, and neither an extractor
        # nor an answer of on_reject may see whose that was. Made in place, since a call would cost as much again.
        binding = Binding()
        binding.tenant = None
        binding.user = None
        binding.claims = NO_CLAIMS
        binding.expires_at = None
        binding.store = self._store
        binding.ids = []
        binding.owner = self
        binding.context = None
        binding.state = None
        binding.values = {}
        binding.ended = False
        binding.revoked = False
        scope[_MARK] = binding
        token = enter_binding(binding)
        try:
            app = self.app
            try:
                if not self._lifespan.ready:
                    await self._lifespan.open()
                if not bare and (self._exempt is None or not self._is_exempt(self._exempt, scope)):
                    found = self._scan(scope["headers"])
                    if self._request_id is not None:
                        await self._take_request_id(self._request_id, binding, scope, found)
                    tenant = user = None
                    if self._plain is not None:
                        tenant = self._recall(found[0]) or self._plain[0](scope, found)
                        user = self._recall(found[1]) or self._plain[1](scope, found)
                    if tenant is not None and user is not None:
                        binding.tenant = tenant
                        binding.user = user
                    else:
                        identity = self._identify.run(scope, found)
                        if self._identify.waits:
                            identity = await identity
                        binding.take(self._checked(identity))
                    if self._authorize is not None and binding.tenant is not None:
                        verdict = self._authorize(current_context(), scope)
                        if verdict is not True:
                            await self._check_verdict(verdict)
            except RequestRejected as rejection:
                app = self._answer(rejection, binding, scope)
            except Exception as error:  # noqa: BLE001 - whatever a callable of the user's raises: the app must not run
                app = self._answer(crashed("finding out who asks", error), binding, scope)
            if self._echo is not None:
                send = echoing(self._echo, read_id(binding.ids).encode(), send)
            await app(scope, receive, send)
        finally:  # `binding.leave(token)`, in place
            binding.ended = True
            if binding.values:
                binding.values = {}
            try:
                exit_binding(token)
            except ValueError:
                binding.revoke()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan.run(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_inside(self, mark: Binding) -> bool:
        # Not if it has ended, since a scope may be run again; nor where it is not what is bound, as in another thread.
        return mark.owner is self and not mark.ended and mark is current_binding()

    @staticmethod
    def _is_exempt(exempt: Exempt, scope: Scope) -> bool:
        verdict = exempt(scope)
        if verdict and isawaitable(verdict):
            raise ExtractorTypeError("exempt", type(verdict).__qualname__, "bool, not something to be awaited")
        return bool(verdict)

    async def _take_request_id(self, step: Step, binding: Binding, scope: Scope, found: Found) -> None:
        try:
            given = await ask(step, scope, found)
        except RequestRejected:
            return  # an id is not worth refusing a request for: one is made
        if given is None:
            return
        if type(given) is not str:
            raise ExtractorTypeError("the extractor given as request_id=", type(given).__qualname__, "str or None")
        if given.isascii() and given.isprintable():  # `valid=` may have let through what no header or log line can hold
            binding.ids.append(given)

    def _checked(self, identity: object) -> Identity | None:
        if identity is None:
            if self._absent is not None:
                raise RequestRejected(*self._absent)
            return None
        if type(identity) is not Identity:
            raise ExtractorTypeError(
                "the extractor given as identity=", type(identity).__qualname__, "Identity or None"
            )
        return identity

    async def _check_verdict(self, verdict: object) -> None:
        if isawaitable(verdict):
            verdict = await verdict
        if not verdict:
            raise RequestRejected(403, "tenant_forbidden")

    def _answer(self, rejection: RequestRejected, binding: Binding, scope: Scope) -> ASGIApp:
        binding.take(None)  # `authorize` may have refused what was bound already
        if rejection.status == 401:  # noqa: PLR2004 - RFC 9110, section 15.5.2
            rejection = _challenging(rejection, self._challenges)
        _log.debug("rejected: %s", rejection)
        answer = None
        if self._on_reject is not None:
            try:
                answer = self._on_reject(rejection, scope)
            except Exception as error:  # noqa: BLE001 - whatever it raises: the client still gets an answer
                rejection = crashed("on_reject", error)
        return partial(refuse, problem(rejection) if answer is None else answer)


def _source(identity: Extractor | None, tenant: Extractor | None, user: Extractor | None) -> Extractor:
    if identity is not None and (tenant is not None or user is not None):
        message = "identity= is a whole identity: give either it, or tenant= and user="
        raise TypeError(message)
    if identity is not None:
        check_extractor(identity, "identity")
        return identity
    if tenant is None:
        message = (
            "give identity= or tenant=: nothing says who asks" if user is None else "user= needs tenant= beside it"
        )
        raise TypeError(message)
    return identity_from(tenant=tenant, user=user)


def _is_preflight(scope: Scope) -> bool:
    # Fetch standard, "CORS-preflight request": sent by the browser itself, without what would say who asks.
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


def _challenges(source: Extractor) -> list[bytes]:
    found = [getattr(part, "challenge", None) for part in parts_of([source])]
    return [challenge.encode("latin-1") for challenge in found if isinstance(challenge, str)]


def _challenging(rejection: RequestRejected, challenges: list[bytes]) -> RequestRejected:
    # RFC 9110, section 11.6.1: a 401 lists what would be accepted, one challenge for each source that has not said.
    schemes = {value.split(b" ")[0].lower() for name, value in rejection.headers if name == _CHALLENGE}
    missing = [(_CHALLENGE, value) for value in challenges if value.split(b" ")[0].lower() not in schemes]
    return RequestRejected(rejection.status, rejection.code, headers=[*rejection.headers, *missing])


_CHALLENGE: Final = b"www-authenticate"
