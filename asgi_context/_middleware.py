"""The middleware: find out who asks, bind it, run the app, take it away."""

import logging
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from asgi_context._authorize import Authorize, check_verdict
from asgi_context._blocking import AppLoop
from asgi_context._claims import NO_CLAIMS
from asgi_context._connection import Connection
from asgi_context._context import (
    Binding,
    Services,
    current_binding,
    current_context,
    enter_binding,
    exit_binding,
    make_binding,
)
from asgi_context._extract import NOBODY, Extractor, IdentityFrom, Step, ask, check_extractor, compile_step, parts_of
from asgi_context._headers import Found, HeaderPlan, header_name
from asgi_context._identity import read_id
from asgi_context._lifespan import Lifespan
from asgi_context._memory import MemoryStore
from asgi_context._messages import MessageExtractor, check_message
from asgi_context._options import (
    challenges_of,
    challenging,
    check_hooks,
    check_identity,
    check_missing,
    check_origin,
    hides_of,
    is_preflight,
    origins_of,
    seconds,
    source_of,
    workers_of,
)
from asgi_context._pool import Pool
from asgi_context._resources import Closing, Factory, Resources, check_factories, finish_all
from asgi_context._respond import crashed, echoing, problem, refuse
from asgi_context._types import ASGIApp, Receive, Scope, Send, Store, check_store
from asgi_context.errors import ExtractorTypeError, RequestRejected

Exempt: TypeAlias = Callable[[Scope], bool]
OnReject: TypeAlias = Callable[[RequestRejected, Scope], ASGIApp | None]

_log = logging.getLogger("asgi_context")
_REQUEST: Final = ("type", "path", "query_string", "headers")  # what makes a copied scope the same request
_NOTHING: Final = Services()
_MARK: Final = "asgi_context"  # the scope's key for the binding that was made for it


class ContextMiddleware:
    """Binds, for every HTTP request and WebSocket connection of an ASGI app, on whose behalf it runs.

    Everything that the app calls can then ask `current_context` and `current_state`. On exit, whatever happened, what
    was bound before is bound again. Mount it outside of all that asks, and inside of what `from_scope` reads.
    Extractors run while nothing is bound, ``authorize`` and the app with the context bound.

    Args:
        app: the ASGI app (ASGI specification 3.0) to wrap.
        identity: extractor of an `Identity`. It, ``tenant`` or ``message`` must be given: nothing is believed by
            default.
        tenant: extractor of the tenant; with ``user`` short for ``identity=identity_from(tenant=..., user=...)``.
        user: extractor of the user; without one the user is ``None``.
        request_id: extractor of an id that is trusted. Where it gives none, or an invalid one, an id is made.
        message: extractor of the `Identity` of each WebSocket message, such as `json_message`: takes the
            ``websocket.receive`` event, and may be a coroutine function. It is bound where the app reads the message,
            see `message_context` for apps that handle it elsewhere. With an identity on the connection, a message must
            agree with it, or ``authorize`` allow the change; otherwise the connection is closed with 1008. Without
            ``identity`` and ``tenant``, HTTP requests and connections themselves are unbound.
        missing: what a request without identity gets: ``"reject"`` an answer with 400 (401 where an extractor has a
            ``challenge``), ``"unbound"`` the app with nothing bound. What is invalid is rejected either way.
        exempt: takes the scope and says, by exactly ``True`` or ``False``, whether to run the app with nothing bound,
            without asking any extractor. CORS preflights are exempt by themselves.
        authorize: takes the context and the scope, may be a coroutine function, and says, by exactly ``True`` or
            ``False``, whether this user may act in this tenant; otherwise 403. It is also asked for messages that say
            who asks where the connection does not, or says somebody else.
        store: where shared state is kept; without one, a `MemoryStore` of this middleware's own.
        resources: factories by type, for `current_resource`: each takes the `RequestContext` and returns the object, an
            awaitable of it, or a context manager that gives it; generator functions do as well.
        pools: named pools for `run_in_pool`: a number of threads, or a `Pool`, of threads or of processes. A job may
            wait for jobs of the pools that stand after its own.
        close_timeout: how long closing one resource may take, and at the end of the lifespan one pool, in seconds.
        on_reject: takes the `RequestRejected` and the scope, and returns an ASGI app that gives another answer, in
            terms of HTTP also for a WebSocket, or ``None`` for the usual one.
        echo_request_id: name of the header by which every answer carries the request id, such as ``"x-request-id"``.
        websocket_origins: from which pages browsers may open a WebSocket, such as ``["https://app.example.com"]``; from
            others it is refused with 403. The same-origin policy does not hold for WebSockets, so without this any page
            may open one with the cookies of whoever looks at it.

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
        message: MessageExtractor | None = None,
        missing: Literal["reject", "unbound"] = "reject",
        exempt: Exempt | None = None,
        authorize: Authorize | None = None,
        store: Store | None = None,
        resources: Mapping[type, Factory] | None = None,
        pools: Mapping[str, int | Pool] | None = None,
        close_timeout: float = 10,
        on_reject: OnReject | None = None,
        echo_request_id: str | None = None,
        websocket_origins: Collection[str] | None = None,
    ) -> None:
        if not callable(app):
            message = f"app must be an ASGI app, not {type(app).__qualname__}"
            raise TypeError(message)
        check_missing(missing)
        if store is not None:
            check_store(store)
        check_hooks(plain={"exempt": exempt, "on_reject": on_reject}, either={"authorize": authorize})
        if message is not None:
            check_message(message)
        source = source_of(identity, tenant, user, message)
        close_timeout = seconds(close_timeout, "close_timeout")
        closing = Closing(close_timeout)

        plan = HeaderPlan()
        # Tenant and user out of two headers, as nearly always, are read without a call once they are known.
        self._plain = source.plain_parts(plan) if isinstance(source, IdentityFrom) else None
        self._recall = plan.known.get
        self._identify = NOBODY if source is None else compile_step(source, plan, "identifier")
        self._request_id = None
        if request_id is not None:
            check_extractor(request_id, "request_id", str)
            self._request_id = compile_step(request_id, plan, "identifier")
        self._scan = plan.compile()

        self.app = app
        self._source = source
        self._message = message
        # Whether somebody must know of a connection's messages, or whether it is open, such as who else sends over it.
        given = [part for pair in (resources or {}).items() for part in pair]
        self._watches = message is not None or any(getattr(part, "needs_connection", False) for part in given)
        app_loop = AppLoop()
        self._services = Services(
            store=MemoryStore() if store is None else store,
            pools=workers_of(pools or {}, close_timeout),
            factories=check_factories(resources or {}),
            closing=closing,
            origins=origins_of(websocket_origins, source),
            app_loop=app_loop,
        )
        self._note_loop = app_loop.note
        self._exempt = exempt
        self._authorize = authorize
        self._on_reject = on_reject
        self._echo = None if echo_request_id is None else header_name(echo_request_id, "echo_request_id")
        self._challenges = [] if source is None else challenges_of(source)
        self._absent = None
        if missing == "reject" and source is not None:
            code = "tenant_missing" if tenant is not None else "identity_missing"
            self._absent = 401 if self._challenges else 400, code
        self._hides = hides_of(source)
        self._has_user = self._plain is not None and len(self._plain) > 1
        # Whether no callable of the user's runs before it is known who asks.
        self._alone = self._plain is not None and exempt is None and request_id is None
        # Closed from the end: what is still being closed may need a thread, jobs the pools after theirs, all the store.
        parts = [
            self._services.store,
            *parts_of([source, request_id, message]),
            *reversed(list(self._services.pools.values())),
        ]
        if resources:
            parts.append(closing)
        self._lifespan = Lifespan(parts)

    def __repr__(self) -> str:
        return f"<ContextMiddleware of {self.app!r}>"

    async def open(self) -> None:
        """Open the store and the extractors, where there is something to open.

        The lifespan does it, or else the first request that is not exempt. Closed again, they can be opened again.
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
        if kind != "http" and kind != "websocket":  # noqa: PLR1714 - a tuple would be slower
            await self._pass_on(scope, receive, send)
            return
        headers: Any = scope["headers"]
        if headers.__class__ is not list:  # any iterable will do, and the app must be able to read it once more
            headers = scope["headers"] = list(headers)
        self._note_loop()  # with each request: a test may serve each on a loop of its own
        ids: list[str] = []
        mark: Any = None
        if _MARK in scope:
            mark = scope[_MARK]
            if self._is_same_request(mark, scope):
                # A sub-request of an exempt one is not exempt with it, hence the tenant.
                if mark.services is self._services and mark.tenant is not None:
                    await self.app(scope, receive, send)
                    return
                ids = mark.ids

        # Made in place, since a call would cost as much again.
        binding = Binding()
        binding.tenant = None
        binding.user = None
        binding.claims = NO_CLAIMS
        binding.expires_at = None
        binding.scope = scope
        binding.services = self._services
        binding.ids = ids
        binding.connection = None
        binding.context = None
        binding.state = None
        binding.resources = None
        binding.values = {}
        binding.ended = False
        binding.revoked = None
        scope[_MARK] = binding
        # Servers run a request in the context of the one before: whoever asks from here finds nobody. And as long as
        # callables of the user's run, the binding itself stays out of sight: a task that they start copies what is
        # bound, and would be the client's from the moment that the binding is filled in.
        alone = self._alone and self._lifespan.ready
        token = enter_binding(binding if alone else make_binding(None, _NOTHING, None))
        app = self.app
        connection = error = None
        leftovers: list[Resources] = []
        try:
            try:
                exempt = kind == "http" and scope["method"] == "OPTIONS" and is_preflight(headers)
                if self._exempt is not None and not exempt:
                    exempt = self._exempt(scope)
                    if exempt is not True and exempt is not False:
                        raise ExtractorTypeError("exempt", type(exempt).__qualname__, "bool")  # noqa: TRY301
                if not exempt:
                    if kind == "websocket" and self._services.origins is not None:
                        check_origin(headers, self._services.origins)
                    if not alone and not self._lifespan.ready:
                        await self._lifespan.open()
                    found = self._scan(headers)
                    if self._request_id is not None:
                        await self._take_request_id(self._request_id, ids, scope, found)
                    tenant = user = None
                    if self._plain is not None:
                        tenant = self._recall(found[0]) or self._plain[0](scope, found)
                        if self._has_user:
                            user = self._recall(found[1]) or self._plain[1](scope, found)
                    if tenant is not None and (user is not None or not self._has_user):
                        binding.tenant = tenant
                        binding.user = user
                    else:
                        identity = self._identify.run(scope, found)
                        if self._identify.waits:
                            identity = await identity
                        binding.take(check_identity(identity, self._absent))
                if not alone:
                    enter_binding(binding)
                if self._authorize is not None and binding.tenant is not None:
                    verdict = self._authorize(current_context(), scope)
                    if verdict is not True:
                        await check_verdict(verdict)
                if kind == "websocket" and not exempt and (self._watches or binding.expires_at is not None):
                    connection = Connection(
                        binding, scope, receive, send, message=self._message, authorize=self._authorize
                    )
                    receive, send = connection.receive, connection.send
            except RequestRejected as rejection:
                binding = self._refuse(binding, scope, leftovers)
                app = self._answer(rejection, scope)
            except Exception as crash:  # noqa: BLE001 - whatever a callable of the user's raises: the app must not run
                binding = self._refuse(binding, scope, leftovers)
                app = self._answer(crashed("finding out who asks", crash), scope)
            except BaseException:  # cancelled while `authorize` decides: nobody has said yes
                binding.revoke()
                raise
            if self._hides and kind == "websocket":
                for hide in self._hides:
                    hide(scope)
            if self._echo is not None:
                send = echoing(self._echo, read_id(ids).encode(), send)
            await app(scope, receive, send)
            if connection is not None:
                await connection.flush()
        except BaseException as raised:
            error = raised
            raise
        finally:  # as `Binding.leave`, but for what the app may have left bound: that ends here as well
            binding.ended = True
            binding.scope = None
            if mark is not None:
                scope[_MARK] = mark
            if binding.values:
                binding.values = {}
            try:
                if connection is not None or leftovers:
                    await self._close(connection, leftovers, error)
                elif binding.resources is not None:
                    resources, binding.resources = binding.resources, None
                    await resources.finish(error)
            finally:
                del error  # its traceback holds this frame
                try:
                    exit_binding(token)
                except ValueError:
                    binding.revoke()

    @staticmethod
    async def _close(connection: Connection | None, leftovers: list[Resources], error: BaseException | None) -> None:
        if connection is not None:
            leftovers += connection.end()  # with those of the connection itself
        try:
            await finish_all(leftovers, error)
        finally:
            if connection is not None and not isinstance(sys.exception(), GeneratorExit):  # who is closed must not wait
                await connection.closed()

    def _refuse(self, refused: Binding, scope: Scope, leftovers: list[Resources]) -> Binding:
        # The answer is for nobody. What `authorize` has started for whom it then refused must not go on as that, and
        # what it has made is closed.
        if refused.resources is not None:
            leftovers.append(refused.resources)
            refused.resources = None
        refused.revoke()
        binding = scope[_MARK] = make_binding(None, self._services, refused.ids)
        binding.scope, refused.scope = refused.scope, None
        enter_binding(binding)
        return binding

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan.run(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    @staticmethod
    def _is_same_request(mark: Binding, scope: Scope) -> bool:
        # Not where it has ended, as in a scope that is run again; nor where it is not what is bound, as in another
        # thread; nor for a scope that was copied for a sub-request of its own, with another path or other headers.
        if mark.ended or mark.scope is None or mark is not current_binding():
            return False
        return mark.scope is scope or all(mark.scope.get(key) == scope.get(key) for key in _REQUEST)

    async def _take_request_id(self, step: Step, ids: list[str], scope: Scope, found: Found) -> None:
        if ids:
            return  # by a middleware around this one, which has perhaps told the client
        try:
            given = await ask(step, scope, found)
        except RequestRejected:
            return  # an id is not worth refusing a request for: one is made
        if given is None:
            return
        if type(given) is not str:
            raise ExtractorTypeError("the extractor given as request_id=", type(given).__qualname__, "str or None")
        if given.isascii() and given.isprintable():  # `valid=` may have let through what no header or log line can hold
            ids.append(given)

    def _answer(self, rejection: RequestRejected, scope: Scope) -> ASGIApp:
        if rejection.status == 401:  # noqa: PLR2004 - RFC 9110, section 15.5.2
            rejection = challenging(rejection, self._challenges)
        _log.debug("rejected: %s", rejection)
        answer = None
        if self._on_reject is not None:
            try:
                answer = self._on_reject(rejection, scope)
                if answer is not None and not callable(answer):
                    raise ExtractorTypeError("on_reject", type(answer).__qualname__, "an ASGI app or None")  # noqa: TRY301
            except Exception as error:  # noqa: BLE001 - whatever it raises: the client still gets an answer
                answer, rejection = None, crashed("on_reject", error)
        return partial(refuse, problem(rejection) if answer is None else answer)
