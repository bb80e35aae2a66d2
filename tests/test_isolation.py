"""Each request sees its own and nobody else's, at size and under seeded schedules, and leaves nothing bound.

All of these are random walks through everything that binds. At every step a walk looks at all that can be asked for
here, and at the end of every request its server looks whether what was bound before is bound again.
"""

import asyncio
import types
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

import anyio
import anyio.abc
import pytest
import trio

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    ContextNotBoundError,
    ContextThreadPoolExecutor,
    Identity,
    MemoryStore,
    bind_context,
    current_context,
    current_state,
    from_header,
    run_in_executor,
    unbound_context,
)
from asgi_context.values import get_from_context, request_context, set_request_context, update_request_context

TENANTS = 200
USERS = 4  # in every tenant, and of the same names


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
    headers: list[tuple[bytes, bytes]]
    status: int
    doomed: bool
    """May end by an error or a cancellation, so before its threads and child tasks have."""
    rng: Random
    span: Span = field(default_factory=Span)
    follower: "Request | None" = None
    """The next of a pipelined connection: a server may start it out of this one's last send."""
    served: bool = False

    @property
    def request_id(self) -> str:
        return f"request-{self.number}"

    @property
    def scope(self) -> dict[str, Any]:
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": self.headers}
        return scope | {"test.request": self}


def make_request(seed: object, number: int, tenants: int = TENANTS) -> Request:
    rng = Random(f"{seed}/{number}")
    tenant, user = f"tenant-{rng.randrange(tenants)}", f"user-{rng.randrange(USERS)}"
    named = [(b"x-tenant-id", tenant.encode()), (b"x-user-id", user.encode())]
    identity, status, headers = rng.choices(
        [
            (Identity(tenant, user), 200, named),
            (None, 200, []),
            (None, 400, [(b"x-tenant-id", b"bad tenant"), named[1]]),
            (None, 400, [*named, named[0]]),
            (None, 400, [*named, (b"x_user_id", b"user-0")]),
            (None, 400, named[:1]),
        ],
        [88, 8, 1, 1, 1, 1],
    )[0]
    inner = f"mounted-{rng.randrange(tenants)}".encode()
    headers = [(b"host", b"test"), (b"x-request-id", f"request-{number}".encode()), *headers, (b"x-inner-id", inner)]
    return Request(number, identity, headers, status, rng.random() < 0.2, rng)


@dataclass(frozen=True)
class Own:
    """What a step must see."""

    request: Request
    identity: Identity | None
    spans: tuple[Span, ...]
    """The request or block that binds, and the block of values opened in it: when one is over, its values are gone."""
    whose: object = None
    block: object = None

    @property
    def over(self) -> bool:
        return any(span.over for span in self.spans)

    def wanted(self) -> tuple[object, ...]:
        values = "ended" if self.over else (self.whose, self.block)
        if self.identity is None:
            return None, None, values
        tenant, user = self.identity.tenant, self.identity.user
        return (tenant, user, self.request.request_id), f"SharedState(tenant={tenant!r}, user={user!r})", values


def see() -> tuple[object, ...]:
    """All that can be asked for, as it is here and now."""
    context, state = attempt(current_context, None), attempt(current_state, None)
    if context is not None and not isinstance(context, str):
        context = context.tenant, context.user, context.request_id
    if state is not None and not isinstance(state, str):
        state = repr(state)
    return context, state, attempt(lambda: (get_from_context("whose"), get_from_context("block")))


def attempt(ask: Callable[..., Any], *args: object) -> Any:
    try:
        return ask(*args)
    except ContextClosedError as closed:
        return closed.why


def bound() -> dict[str, object]:
    """What is bound in this Context, by identity."""
    return {variable.name: value for variable, value in copy_context().items() if variable.name.startswith("asgi_context")}


class Walk(ABC):
    """An app whose requests walk at random through everything that binds, and a middleware around it."""

    def __init__(self, **options: Any) -> None:
        self.store = MemoryStore()
        headers = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}
        self.app = ContextMiddleware(
            self.handle,
            request_id=from_header("x-request-id"),
            missing="unbound",
            store=self.store,
            **(headers | options),
        )
        self.mounted_app = ContextMiddleware(
            self.handle_mounted,
            tenant=from_header("x-inner-id"),
            request_id=from_header("x-request-id"),
            store=self.store,
        )
        self.wrong: list[object] = []
        self.left_bound: list[object] = []
        self.done: Counter[str] = Counter()
        self.written: dict[Identity, dict[str, str]] = defaultdict(dict)
        self.steps: list[Callable[[Own, Random, int], Awaitable[None]]] = [
            self.pause,
            self.pause,
            self.raise_error,
            self.bind_another,
            self.bind_the_same,
            self.open_values,
            self.update_values,
            self.unbind,
            self.write_state,
            self.read_state,
            self.mounted,
        ]

    @abstractmethod
    async def rest(self) -> None:
        """Suspend once."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        request = scope["test.request"]
        self.done["app"] += 1
        if request.status != 200:
            self.wrong.append((request.number, "the app ran for a request that must be refused"))
        own = Own(request, request.identity, (request.span,))
        self.look(own, "start")
        if request.identity is None:
            with pytest.raises(ContextNotBoundError):
                set_request_context({"whose": request.number})
        else:
            set_request_context({"whose": request.number})
            own = replace(own, whose=request.number)
        answer_first = request.rng.random() < 0.5
        if answer_first:
            await self.answer(send)
        await self.walk(own, request.rng, 0, scope=scope)
        if not answer_first:
            await self.answer(send)
        self.look(own, "end")

    async def answer(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def walk(self, own: Own, rng: Random, depth: int, *, scope: Any = None) -> None:
        for _ in range(rng.randrange(7 - 2 * depth)):
            if own.over:
                return  # what started this has failed meanwhile
            step = rng.choice(self.steps)
            self.done[step.__name__] += 1
            if step == self.mounted and scope is not None:
                await self.mounted(own, rng, depth, scope=scope)
            else:
                await step(own, rng, depth)
            self.look(own, step.__name__)

    def look(self, own: Own, where: str) -> tuple[object, ...]:
        seen, wanted = see(), own.wanted()
        if seen != wanted:
            self.wrong.append((own.request.number, where, seen, wanted))
        return seen

    async def pause(self, own: Own, rng: Random, depth: int) -> None:
        await self.rest()

    async def raise_error(self, own: Own, rng: Random, depth: int) -> None:
        await self.rest()
        if own.request.doomed and rng.random() < 0.2:
            raise AppError(own.request.number)

    async def bind_another(self, own: Own, rng: Random, depth: int) -> None:
        # Of a tenant that is not this request's, and of users that are those of everybody.
        identity = Identity(f"tenant-{rng.randrange(TENANTS)}", rng.choice([None, *(f"user-{n}" for n in range(USERS))]))
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
                if depth < 2:
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
                self.wrong.append((own.request.number, "states that somebody else wrote"))

    async def mounted(self, own: Own, rng: Random, depth: int, *, scope: Any = None) -> None:
        """A mounted app with a middleware of its own, which binds for itself."""
        if scope is None or depth:
            return
        inner_rng, span = Random(rng.random()), Span()
        try:
            await self.mounted_app(scope | {"test.mounted": (inner_rng, span)}, None, None)
        finally:
            span.over = True

    async def handle_mounted(self, scope: Any, receive: Any, send: Any) -> None:
        request, (rng, span) = scope["test.request"], scope["test.mounted"]
        inner = Own(request, Identity(dict(request.headers)[b"x-inner-id"].decode()), (span,))
        self.look(inner, "mounted")
        await self.walk(inner, rng, 1)

    def in_thread(self, own: Own, number: float) -> None:
        """What a thread does that was started under the context of a step."""
        try:
            self.look_in_thread(own)
            with bind_context(Identity("of-thread", str(number)), request_id=own.request.request_id, store=self.store):
                self.look(replace(own, identity=Identity("of-thread", str(number)), spans=(), whose=None, block=None), "")
            self.look_in_thread(own)
            with request_context(block=number):
                self.look_in_thread(replace(own, block=number))
        except ContextClosedError:
            if not own.request.doomed:
                raise
        self.look_in_thread(own)

    def look_in_thread(self, own: Own) -> None:
        # What was cancelled or failed may be over, or not yet, while a thread of its runs on.
        seen = see()
        wanted = [own.wanted()]
        if own.request.doomed:
            wanted += [(*wanted[0][:2], values) for values in ("ended", (own.whose, own.block))]
        if seen not in wanted:
            self.wrong.append((own.request.number, "in a thread", seen, wanted))

    def in_bare_thread(self) -> None:
        if see() != (None, None, (None, None)):
            self.wrong.append(("in a bare thread", see()))

    async def serve(self, request: Request, send: Any) -> None:
        """Serve one request as a server does, and look what it leaves behind."""
        before = bound()
        sent = []

        async def noting(message: Any) -> None:
            sent.append(message)
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
            if any(message.get("status", request.status) != request.status for message in sent):
                self.wrong.append((request.number, "the answer of another request", sent))

    async def check_states(self) -> None:
        """Nobody's states hold a trace of anybody else, and nothing that was written is lost."""
        for identity, marks in self.written.items():
            with bind_context(identity, store=self.store):
                assert await current_state().get("seen") == marks
                assert await current_state().list_states() == ["seen"]


class AsyncioWalk(Walk):
    """Walks through threads, child tasks, and tasks that outlive their request as well, and is cancelled."""

    def __init__(self, plain: Executor, carrying: ContextThreadPoolExecutor) -> None:
        super().__init__()
        self.plain = plain
        self.carrying = carrying
        self.tasks: set[asyncio.Future[Any]] = set()
        self.crashed: list[BaseException] = []
        self.in_flight = self.most_in_flight = 0
        self.strikes: dict[int, tuple[asyncio.Task[Any], list[asyncio.Handle]]] = {}
        self.gone: dict[int, asyncio.Event] = {}
        self.steps += [
            self.default_executor,
            self.plain_pool,
            self.carrying_pool,
            self.bare_submit,
            self.child,
            self.children,
            self.outlive,
            self.cancel,
        ]

    async def rest(self) -> None:
        await asyncio.sleep(0)

    def watch(self, future: "asyncio.Future[Any]") -> "asyncio.Future[Any]":
        self.tasks.add(future)
        future.add_done_callback(self.finished)
        return future

    def finished(self, future: "asyncio.Future[Any]") -> None:
        self.tasks.discard(future)
        if not future.cancelled() and not isinstance(error := future.exception(), AppError | None):
            self.crashed.append(error)

    def start(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Future[None]":
        return self.watch(asyncio.get_running_loop().create_task(coroutine))

    async def default_executor(self, own: Own, rng: Random, depth: int) -> None:
        await self.job(run_in_executor(None, self.in_thread, own, number=rng.random()))

    async def plain_pool(self, own: Own, rng: Random, depth: int) -> None:
        await self.job(run_in_executor(self.plain, self.in_thread, own, number=rng.random()))

    async def carrying_pool(self, own: Own, rng: Random, depth: int) -> None:
        await self.job(asyncio.wrap_future(self.carrying.submit(self.in_thread, own, number=rng.random())))

    async def bare_submit(self, own: Own, rng: Random, depth: int) -> None:
        await self.job(asyncio.wrap_future(self.plain.submit(self.in_bare_thread)))

    async def job(self, future: Any) -> None:
        await asyncio.shield(self.watch(future))  # the job of a cancelled request runs on

    async def child(self, own: Own, rng: Random, depth: int) -> None:
        if depth < 2:
            await self.start(self.walk(own, Random(rng.random()), depth + 1))

    async def children(self, own: Own, rng: Random, depth: int) -> None:
        if depth < 2:
            await asyncio.gather(*(self.start(self.walk(own, Random(rng.random()), depth + 1)) for _ in range(2)))

    async def outlive(self, own: Own, rng: Random, depth: int) -> None:
        self.start(self.outliving(own))

    async def outliving(self, own: Own) -> None:
        # Started inside a block, it outlives that; in any case it outlives the request.
        await self.gone[own.request.number].wait()
        if not own.over:
            self.wrong.append((own.request.number, "a block of a request that is gone is open"))
        if self.look(own, "outliving")[2] != "ended":
            self.wrong.append((own.request.number, "values of a request that is gone"))
        if own.identity is not None:
            with bind_context(values={"whose": "a task of its own"}):
                self.look(replace(own, spans=(), whose="a task of its own", block=None), "bound again")
        self.look(own, "outliving")
        self.done["outlived"] += 1

    async def cancel(self, own: Own, rng: Random, depth: int) -> None:
        await self.rest()
        if own.request.doomed and not own.request.span.over:
            task, handles = self.strikes[own.request.number]
            handles.append(asyncio.get_running_loop().call_soon(task.cancel))

    async def exchange(self, request: Request) -> None:
        task = asyncio.current_task()
        handles: list[asyncio.Handle] = []
        self.strikes[request.number] = task, handles
        self.gone[request.number] = asyncio.Event()

        async def send(message: Any) -> None:
            await self.rest()
            if message["type"] == "http.response.body" and request.follower is not None:
                # As uvicorn and daphne do with pipelined requests: in a copy of the Context of the one before.
                follower, request.follower = request.follower, None
                self.start(self.exchange(follower))

        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.serve(request, send)
        except asyncio.CancelledError:
            if not handles:
                raise
            self.done["cancelled"] += 1
        finally:
            self.in_flight -= 1
            self.gone[request.number].set()
            del self.strikes[request.number]
            for handle in handles:
                handle.cancel()
            while task.cancelling():
                task.uncancel()  # as a timeout does: the connection goes on in the same task, and so in the same Context

    async def connection(self, requests: list[Request]) -> None:
        for request in requests:
            await self.exchange(request)
            if request.follower is not None:
                await self.exchange(request.follower)

    async def run(self, connections: Iterable[list[Request]], slots: int) -> None:
        queue = iter(connections)

        async def slot() -> None:
            for requests in queue:
                await self.start(self.connection(requests))

        await asyncio.gather(*(slot() for _ in range(slots)))
        while self.tasks:
            await asyncio.wait(self.tasks)
            await self.rest()  # for the callbacks


def connections_of(requests: Iterable[Request], rng: Random) -> Iterable[list[Request]]:
    """Share requests out to connections; some are pipelined."""
    kept_alive: list[Request] = []
    for request in requests:
        if kept_alive and rng.random() < 0.2 and kept_alive[-1].follower is None:
            kept_alive[-1].follower = request
        else:
            kept_alive.append(request)
        if rng.random() < 0.3:
            yield kept_alive
            kept_alive = []
    yield kept_alive


@pytest.mark.anyio
async def test_ten_thousand_requests_of_200_tenants_see_their_own_and_leave_nothing_bound(asyncio_only):
    seed, count = 20261121, 10_000
    loop = asyncio.get_running_loop()
    debug = loop.get_debug()
    loop.set_debug(False)  # it would keep a traceback of each of some 50,000 tasks
    requests = [make_request(seed, number) for number in range(count)]
    try:
        with ThreadPoolExecutor(4) as plain, ContextThreadPoolExecutor(4) as carrying:
            walk = AsyncioWalk(plain, carrying)
            await walk.run(connections_of(requests, Random(seed)), slots=600)
    finally:
        loop.set_debug(debug)
    assert Counter(map(repr, walk.crashed)).most_common(5) == []
    assert (len(walk.wrong), walk.wrong[:5]) == (0, [])
    assert (len(walk.left_bound), walk.left_bound[:5]) == (0, [])
    await walk.check_states()
    # That all of it has happened, and at once.
    assert walk.done["requests"] == count
    assert all(request.served for request in requests)
    assert len({request.identity.tenant for request in requests if request.identity}) == TENANTS
    assert walk.most_in_flight >= 500
    assert {step.__name__ for step in walk.steps} <= walk.done.keys()
    assert walk.done["app"] == count - sum(request.status == 400 for request in requests)
    assert walk.done["cancelled"] > 100
    assert walk.done["outlived"] > 1_000


class LoopWalk(Walk):
    """The same on any event loop: child tasks in a task group, which under trio is a nursery, and threads."""

    def __init__(self, server: anyio.abc.TaskGroup, to_thread: Callable[..., Awaitable[None]]) -> None:
        super().__init__()
        self.server = server
        self.to_thread = to_thread
        self.scopes: dict[int, anyio.CancelScope] = {}
        self.gone: dict[int, anyio.Event] = {}
        self.steps += [self.thread, self.children, self.outlive, self.cancel]

    async def rest(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def thread(self, own: Own, rng: Random, depth: int) -> None:
        await self.to_thread(self.in_thread, own, rng.random())

    async def children(self, own: Own, rng: Random, depth: int) -> None:
        if depth < 2:
            errors: list[AppError] = []
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(self.child, own, Random(rng.random()), depth + 1, errors)
            for error in errors:
                raise error

    async def child(self, own: Own, rng: Random, depth: int, errors: list[AppError]) -> None:
        try:
            await self.walk(own, rng, depth)
        except AppError as error:
            errors.append(error)

    async def outlive(self, own: Own, rng: Random, depth: int) -> None:
        self.server.start_soon(self.outliving, own)

    async def outliving(self, own: Own) -> None:
        await self.gone[own.request.number].wait()
        if self.look(own, "outliving")[2] != "ended":
            self.wrong.append((own.request.number, "values of a request that is gone"))
        self.done["outlived"] += 1

    async def cancel(self, own: Own, rng: Random, depth: int) -> None:
        if own.request.doomed:
            self.server.start_soon(self.strike, self.scopes[own.request.number])
        await self.rest()

    async def strike(self, scope: anyio.CancelScope) -> None:
        scope.cancel()

    async def connection(self, requests: list[Request]) -> None:
        for request in requests:
            self.gone[request.number] = anyio.Event()
            with anyio.CancelScope() as scope:
                self.scopes[request.number] = scope
                await self.serve(request, self.send)
            self.done["cancelled"] += scope.cancelled_caught
            self.gone[request.number].set()

    async def send(self, message: Any) -> None:
        await self.rest()


@pytest.mark.anyio
async def test_a_thousand_requests_see_their_own_on_every_event_loop(anyio_backend_name):
    to_thread = trio.to_thread.run_sync if anyio_backend_name == "trio" else asyncio.to_thread
    requests = [make_request("loops", number) for number in range(1_000)]
    async with anyio.create_task_group() as server:
        walk = LoopWalk(server, to_thread)
        for start in range(0, len(requests), 4):
            server.start_soon(walk.connection, requests[start : start + 4])
    assert (len(walk.wrong), walk.wrong[:5]) == (0, [])
    assert (len(walk.left_bound), walk.left_bound[:5]) == (0, [])
    await walk.check_states()
    assert all(request.served for request in requests)
    assert {step.__name__ for step in walk.steps} <= walk.done.keys()
    assert walk.done["cancelled"] > 10
    assert walk.done["outlived"] > 100


@types.coroutine
def suspend():
    yield


@dataclass
class Lane:
    """A connection: requests one after the other in one Context."""

    context: Context
    waiting: list[Request]
    request: Request | None = None
    coroutine: Coroutine[Any, Any, None] | None = None
    before: dict[str, object] = field(default_factory=dict)


class Schedule(Walk):
    """Steps the requests of some lanes by hand, in an order that the seed decides and nothing else.

    The same seed gives the same trace: a seed that failed is replayed by ``Schedule(seed, ...).run()``.
    """

    def __init__(self, seed: int, lanes: int, requests: int) -> None:
        super().__init__(tenant=self.find_tenant, user=self.find_user)
        self.rng = Random(seed)
        # Three tenants for all, so that their requests meet.
        numbered = iter([make_request(seed, number, tenants=3) for number in range(lanes * requests)])
        self.lanes = [Lane(Context(), [next(numbered) for _ in range(requests)]) for _ in range(lanes)]
        self.numbers = iter(range(1_000, 1_000_000))
        self.seed = seed
        self.forks = 2
        self.trace: list[tuple[object, ...]] = []
        self.steps.append(self.shelter)

    async def rest(self) -> None:
        await suspend()

    async def find_tenant(self, scope: Any) -> Any:
        """An extractor that waits, so that others run between extracting and binding. Nothing is bound meanwhile."""
        await self.extract(scope)
        return from_header("x-tenant-id")(scope)

    async def find_user(self, scope: Any) -> Any:
        await self.extract(scope)
        return from_header("x-user-id")(scope)

    async def extract(self, scope: Any) -> None:
        nobody = Own(scope["test.request"], None, ())
        self.look(nobody, "extracting")
        try:
            await suspend()
        except AppError:
            nobody.request.status = 500  # as that of any extractor that fails
            raise
        finally:
            if not scope["test.request"].abroad: self.look(nobody, "extracting")

    async def shelter(self, own: Own, rng: Random, depth: int) -> None:
        """Errors thrown into here are caught here, and the request goes on."""
        if depth < 2:
            try:
                await self.walk(own, rng, depth + 1)
            except AppError:
                self.done["caught"] += 1

    def look(self, own: Own, where: str) -> tuple[object, ...]:
        seen = super().look(own, where)
        self.trace.append((own.request.number, where, *seen))
        return seen

    async def send(self, message: Any) -> None:
        await suspend()

    def run(self) -> list[tuple[object, ...]]:
        while self.lanes:
            lane = self.rng.choice(self.lanes)
            if lane.coroutine is None:
                if not lane.waiting:
                    self.lanes.remove(lane)
                    continue
                self.begin(lane)
            action = self.rng.choices(
                [self.resume, self.throw, self.close, self.close_abroad, self.fork], [100, 2, 1, 1, 1]
            )[0]
            self.trace.append((lane.request.number, action.__name__))
            self.done[action.__name__] += 1
            action(lane)
        return self.trace

    def begin(self, lane: Lane) -> None:
        lane.request = lane.waiting.pop(0)
        lane.before = lane.context.run(bound)
        lane.coroutine = self.serve(lane.request, self.send)
        self.resume(lane)

    def end(self, lane: Lane) -> None:
        lane.coroutine = None
        if lane.context.run(bound) != lane.before:
            self.left_bound.append(lane.request.number)

    def resume(self, lane: Lane) -> None:
        try:
            lane.context.run(lane.coroutine.send, None)
        except StopIteration:
            self.end(lane)

    def throw(self, lane: Lane) -> None:
        # An extractor that fails is answered; the app's error passes; a shelter catches it.
        try:
            lane.context.run(lane.coroutine.throw, AppError(lane.request.number))
        except StopIteration:
            self.end(lane)

    def close(self, lane: Lane) -> None:
        lane.context.run(lane.coroutine.close)
        self.end(lane)

    def close_abroad(self, lane: Lane) -> None:
        """End a request in another Context than its own, as the garbage collector may: it stays set in its own."""
        others = [other.context for other in self.lanes if other is not lane]
        abroad = self.rng.choice([Context(), *others])
        seen_abroad = abroad.run(see)
        # Its server looks in the wrong Context, too, and finds there nothing that has changed.
        abroad.run(lane.coroutine.close)
        lane.coroutine = None
        if abroad.run(see) != seen_abroad:
            self.left_bound.append((lane.request.number, "abroad"))
        lane.context.run(self.look_revoked, lane.request)

    def look_revoked(self, request: Request) -> None:
        seen = see()
        self.trace.append((request.number, "revoked", *seen))
        if seen != ("revoked", "revoked", "revoked") or attempt(bind_context) != "revoked":
            self.wrong.append((request.number, "not revoked", seen))

    def fork(self, lane: Lane) -> None:
        """Start a request inside another one's context, as servers do with pipelined requests."""
        if self.forks:
            self.forks -= 1
            request = make_request(self.seed, next(self.numbers), tenants=3)
            self.lanes.append(Lane(lane.context.copy(), [request]))


SHAPES = {"one request in each Context": (6, 1), "all requests in one Context": (1, 6), "connections": (3, 3)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_every_seeded_schedule_each_step_sees_its_own(shape):
    done: Counter[str] = Counter()
    for seed in range(300):
        schedule = Schedule(seed, *shape)
        schedule.run()
        assert (seed, schedule.wrong[:3]) == (seed, [])
        assert (seed, schedule.left_bound) == (seed, [])
        done += schedule.done
    assert min(done[action] for action in ("throw", "caught", "close", "close_abroad", "fork")) > 50, done


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_seeded_schedule_replays_exactly(shape):
    traces = [Schedule(seed, *shape).run() for seed in range(100)]
    assert traces == [Schedule(seed, *shape).run() for seed in range(100)]
    assert len({str(trace) for trace in traces}) == 100


def started(app: Any, context: Context) -> Coroutine[Any, Any, None]:
    """A request of alice's, up to the first time that the app waits."""
    middleware = ContextMiddleware(app, tenant=from_header("x-tenant-id"), user=from_header("x-user-id"))
    headers = [(b"x-tenant-id", b"acme"), (b"x-user-id", b"alice")]
    coroutine = middleware({"type": "http", "method": "GET", "path": "/", "headers": headers}, None, None)
    context.run(coroutine.send, None)
    return coroutine


async def wait(scope: Any, receive: Any, send: Any) -> None:
    await suspend()


async def wait_in_blocks(scope: Any, receive: Any, send: Any) -> None:
    with request_context(whose="alice"), bind_context(Identity("globex")), request_context(block=1):
        await suspend()


async def wait_unbound(scope: Any, receive: Any, send: Any) -> None:
    with unbound_context():
        await suspend()


ASKED = {
    "current_context()": current_context,
    "current_context(default)": partial(current_context, None),
    "current_state()": current_state,
    "current_state(default)": partial(current_state, None),
    "get_from_context": partial(get_from_context, "whose", "default"),
    "update_request_context": partial(update_request_context, whose="alice"),
    "request_context": request_context().__class__ and (lambda: request_context().__enter__()),
    "bind_context()": bind_context,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("app", [wait, wait_in_blocks, wait_unbound])
def test_a_request_that_is_closed_in_another_context_is_revoked_in_its_own(app, ask):
    context = Context()
    coroutine = started(app, context)
    coroutine.close()
    with pytest.raises(ContextClosedError) as caught:
        context.run(ask)
    assert caught.value.why == "revoked"


@pytest.mark.parametrize("app", [wait, wait_in_blocks, wait_unbound])
def test_closing_a_request_in_the_context_of_another_one_does_not_touch_that_one(app):
    context = Context()
    coroutine = started(app, Context())
    with bind_context(Identity("globex", "bob"), values={"whose": "bob"}, store=MemoryStore()):
        before = bound(), see()
        coroutine.close()
        assert (bound(), see()) == before
    assert context.run(see) == (None, None, (None, None))


@pytest.mark.parametrize("app", [wait, wait_in_blocks, wait_unbound])
def test_a_request_that_is_closed_in_its_own_context_is_taken_away(app):
    context = Context()
    coroutine = started(app, context)
    context.run(coroutine.close)
    assert context.run(see) == (None, None, (None, None))


def test_the_next_request_after_a_revoked_one_sees_its_own():
    context = Context()
    started(wait, context).close()
    coroutine = started(wait, context)
    assert context.run(see)[0][:2] == ("acme", "alice")
    context.run(coroutine.close)
    assert context.run(see) == ("revoked", "revoked", "revoked")
