"""Random walks of requests through everything that binds, which look at every step whether they see their own.

A walk's subclass says how it suspends, and adds the steps that its event loop makes possible. What went wrong is
counted: ``wrong`` for a step that saw anything but its own, ``left_bound`` for a request that left anything behind.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
from driver import http, who

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    ContextNotBoundError,
    Identity,
    MemoryStore,
    bind_context,
    current_context,
    current_state,
    from_header,
    unbound_context,
)
from asgi_context.values import get_from_context, request_context, set_request_context, update_request_context

TENANTS = 200
USERS = 4  # in every tenant, and everywhere of the same names
DEPTH = 2


class AppError(Exception):
    """Raised by the app, or thrown into it."""


@dataclass
class Span:
    """A request or block, which is over at some time."""

    over: bool = False


@dataclass
class Request:
    number: int
    identity: Identity | None
    status: int
    scope: dict[str, Any]
    rng: Random
    doomed: bool
    """May end by an error or a cancellation: before its threads and child tasks have ended, that is."""
    span: Span = field(default_factory=Span)
    served: bool = False
    extracting: bool = False
    """Whether it waits in an extractor: nothing of its own is bound then, that could be seen or revoked."""
    follower: "Request | None" = None
    """The next one of a pipelined connection: its server may start it out of this one's last send."""

    @property
    def request_id(self) -> str:
        return f"request-{self.number}"


def make_request(seed: object, number: int, tenants: int = TENANTS) -> Request:
    """Make a request that depends on nothing but the arguments."""
    rng = Random(f"{seed}/{number}")
    tenant, user = f"tenant-{rng.randrange(tenants)}", f"user-{rng.randrange(USERS)}"
    named = who(tenant, user)
    identity, status, headers = rng.choices(
        [
            (Identity(tenant, user), 200, named),
            (None, 200, []),
            (None, 400, who("bad tenant", user)),
            (None, 400, [*named, named[0]]),
            (None, 400, [*named, (b"x_user_id", b"user-0")]),
            (None, 400, named[:1]),
        ],
        [88, 8, 1, 1, 1, 1],
    )[0]
    mounted = f"mounted-{rng.randrange(tenants)}".encode()
    request_id = f"request-{number}".encode()
    scope = http((b"host", b"test"), (b"x-request-id", request_id), *headers, (b"x-mounted-id", mounted))
    request = Request(number, identity, status, scope, rng, doomed=rng.random() < 0.2)
    scope["test.request"] = request
    return request


@dataclass(frozen=True)
class Own:
    """What a step must see."""

    request: Request
    identity: Identity | None
    spans: tuple[Span, ...]
    """The request or block that binds, and the block of values that is open in it. With either, the values are over."""
    whose: object = None
    block: object = None

    @property
    def over(self) -> bool:
        return any(span.over for span in self.spans)

    def wanted(self) -> tuple[object, ...]:
        """What `see` must return."""
        values = "ended" if self.over else (self.whose, self.block)
        if self.identity is None:
            return None, None, values
        tenant, user = self.identity.tenant, self.identity.user
        return (tenant, user, self.request.request_id), f"SharedState(tenant={tenant!r}, user={user!r})", values


def see() -> tuple[object, ...]:
    """All that can be asked for, as it is here and now: context, state, values. A closed one shows why it is."""
    context, state = attempt(current_context, None), attempt(current_state, None)
    return (
        context if context is None or isinstance(context, str) else (context.tenant, context.user, context.request_id),
        state if state is None or isinstance(state, str) else repr(state),
        attempt(lambda: (get_from_context("whose"), get_from_context("block"))),
    )


NOTHING = (None, None, (None, None))
REVOKED = ("revoked", "revoked", "revoked")


def attempt(ask: Callable[..., Any], *args: object) -> Any:
    try:
        return ask(*args)
    except ContextClosedError as closed:
        return closed.why


def bound() -> dict[str, object]:
    """What is bound in this Context, each to be compared by identity."""
    return {
        variable.name: value for variable, value in copy_context().items() if variable.name.startswith("asgi_context")
    }


Step = Callable[[Own, Random, int], Awaitable[None]]


class Walk(ABC):
    """An app with a middleware around it. Each of its requests does a walk of random steps."""

    def __init__(self, **options: Any) -> None:
        store = self.store = MemoryStore()
        request_id = from_header("x-request-id")
        sources = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id"), **options}
        self.app = ContextMiddleware(self.handle, **sources, request_id=request_id, missing="unbound", store=store)
        self.mounted_app = ContextMiddleware(
            self.handle_mounted, tenant=from_header("x-mounted-id"), request_id=request_id, store=store
        )
        self.wrong: list[object] = []
        self.left_bound: list[object] = []
        self.done: Counter[str] = Counter()
        self.written: dict[Identity, dict[str, str]] = defaultdict(dict)
        self.steps: list[Step] = [
            self.pause,
            self.fail,
            self.bind_another,
            self.bind_the_same,
            self.unbind,
            self.open_values,
            self.update_values,
            self.write_state,
            self.read_state,
            self.mounted,
        ]

    @abstractmethod
    async def rest(self) -> None:
        """Suspend."""

    # The server's side

    async def serve(self, request: Request, send: Any) -> None:
        """Serve one request, and look what it leaves behind in this Context."""
        before, statuses = bound(), []

        async def noting(message: Any) -> None:
            statuses.append(message.get("status", request.status))
            await send(message)

        try:
            await self.app(request.scope, None, noting)
        except AppError as error:
            if error.args != (request.number,):
                self.wrong.append((request.number, "the error of another request", error))
        finally:
            request.span.over = request.served = True
            self.done["requests"] += 1
            if bound() != before:
                self.left_bound.append(request.number)
            if {*statuses} > {request.status}:
                self.wrong.append((request.number, "answers", statuses, request.status))

    async def check_states(self) -> None:
        """Nobody's states hold a trace of anybody else, and nothing that was written is lost."""
        for identity, marks in self.written.items():
            with bind_context(identity, store=self.store):
                assert await current_state().get("seen") == marks
                assert await current_state().list_states() == ["seen"]

    # The app's side

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        request: Request = scope["test.request"]
        self.done["app"] += 1
        if request.status != 200:
            self.wrong.append((request.number, "the app ran for a request that was to be refused"))
        own = Own(request, request.identity, (request.span,))
        self.look(own, "start")
        if request.identity is None:
            with pytest.raises(ContextNotBoundError):
                set_request_context({"whose": request.number})
        else:
            if request.rng.random() < 0.5:
                set_request_context({"whose": request.number})
            else:
                update_request_context(whose=request.number)
            own = replace(own, whose=request.number)
        answers_first = request.rng.random() < 0.5
        if answers_first:
            await self.answer(send)
        await self.walk(own, request.rng, 0)
        if not answers_first:
            await self.answer(send)
        self.look(own, "end")

    async def answer(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def handle_mounted(self, scope: Any, receive: Any, send: Any) -> None:
        request, rng, depth, span = scope["test.mounted"]
        inner = Own(request, Identity(dict(request.scope["headers"])[b"x-mounted-id"].decode()), (span,))
        self.look(inner, "mounted")
        await self.walk(inner, rng, depth)

    async def walk(self, own: Own, rng: Random, depth: int) -> None:
        if depth > DEPTH:
            return
        for _ in range(1 + rng.randrange(5 - 2 * depth)):
            await self.rest()
            if own.over:
                return  # what started this has failed meanwhile
            step = rng.choice(self.steps)
            self.done[step.__name__] += 1
            await step(own, rng, depth)
            self.look(own, step.__name__)

    def look(self, own: Own, where: str) -> tuple[object, ...]:
        seen, wanted = see(), own.wanted()
        if seen != wanted:
            self.wrong.append((own.request.number, where, seen, wanted))
        return seen

    # The steps

    async def pause(self, own: Own, rng: Random, depth: int) -> None:
        await self.rest()

    async def fail(self, own: Own, rng: Random, depth: int) -> None:
        await self.rest()
        if own.request.doomed and rng.random() < 0.2:
            raise AppError(own.request.number)

    async def bind_another(self, own: Own, rng: Random, depth: int) -> None:
        """Bind a tenant that is not this request's, and a user who may be of the same name."""
        identity = Identity(f"tenant-{rng.randrange(TENANTS)}", rng.choice([None, f"user-{rng.randrange(USERS)}"]))
        whose = rng.random()
        block = bind_context(identity, request_id=own.request.request_id, store=self.store, values={"whose": whose})
        await self.inside(block, replace(own, identity=identity, spans=(Span(),), whose=whose, block=None), rng, depth)

    async def bind_the_same(self, own: Own, rng: Random, depth: int) -> None:
        if own.identity is None:
            with pytest.raises(ContextNotBoundError):
                bind_context()
        else:
            await self.inside(bind_context(), replace(own, spans=(Span(),), whose=None, block=None), rng, depth)

    async def unbind(self, own: Own, rng: Random, depth: int) -> None:
        inner = replace(own, identity=None, spans=(Span(),), whose=None, block=None)
        await self.inside(unbound_context(), inner, rng, depth)

    async def open_values(self, own: Own, rng: Random, depth: int) -> None:
        block = rng.random()
        inner = replace(own, block=block, spans=(own.spans[0], Span()))
        await self.inside(request_context(block=block), inner, rng, depth)

    async def inside(self, block: Any, inner: Own, rng: Random, depth: int) -> None:
        try:
            with block:
                self.look(inner, "inside")
                await self.walk(inner, rng, depth + 1)
        finally:
            inner.spans[-1].over = True

    async def update_values(self, own: Own, rng: Random, depth: int) -> None:
        if own.identity is None and len(own.spans) == 1:
            with pytest.raises(ContextNotBoundError):
                update_request_context(other=1)
            return
        name = f"key_{rng.random()}"
        update_request_context(**{name: own.request.number})
        await self.rest()
        if not own.over and get_from_context(name) != own.request.number:
            self.wrong.append((own.request.number, "a value of its own is gone"))

    async def write_state(self, own: Own, rng: Random, depth: int) -> None:
        if own.identity is not None:
            mark = f"{own.identity.tenant}/{own.identity.user}"
            await current_state().update_field("seen", own.request.request_id, mark)
            self.written[own.identity][own.request.request_id] = mark

    async def read_state(self, own: Own, rng: Random, depth: int) -> None:
        if own.identity is not None:
            seen = await current_state().get("seen") or {}
            if seen != self.written.get(own.identity, {}):
                self.wrong.append((own.request.number, "not what was written for this tenant and user", seen))

    async def mounted(self, own: Own, rng: Random, depth: int) -> None:
        """Call a mounted app with a middleware of its own, which binds for itself."""
        span = Span()
        scope = own.request.scope | {"test.mounted": (own.request, rng, depth + 1, span)}
        try:
            await self.mounted_app(scope, None, None)
        finally:
            span.over = True

    # What threads do

    def in_thread(self, own: Own, number: float) -> None:
        """Walk a little, in a thread that was started under the context of a step."""
        identity = Identity("of-a-thread", str(number))
        inner = replace(own, identity=identity, spans=(), whose=None, block=None)
        try:
            self.look_in_thread(own)
            with bind_context(identity, request_id=own.request.request_id, store=self.store):
                self.look(inner, "bound by a thread")
            self.look_in_thread(own)
            with request_context(block=number):
                self.look_in_thread(replace(own, block=number))
        except ContextClosedError:
            if not own.request.doomed:
                raise
        self.look_in_thread(own)

    def look_in_thread(self, own: Own) -> None:
        # A thread runs on when its request was cancelled or has failed; that may just be happening.
        seen, wanted = see(), own.wanted()
        ways = {wanted}
        if own.request.doomed:
            ways |= {(*wanted[:2], values) for values in ("ended", (own.whose, own.block))}
        if seen not in ways:
            self.wrong.append((own.request.number, "in a thread", seen, wanted))

    def in_bare_thread(self) -> None:
        if see() != NOTHING:
            self.wrong.append(("in a bare thread", see()))
