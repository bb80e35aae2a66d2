"""Requests that are stepped by hand, in an order that a seed decides and nothing else: a seed that fails is replayed.

Without an event loop: the middleware needs none. Errors are thrown into requests in mid-flight, and they are closed, in
their own Context and in those of others.
"""

import types
from collections import Counter
from collections.abc import Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import pytest
from driver import http, who
from walks import NOTHING, REVOKED, AppError, Own, Request, Walk, attempt, bound, make_request, see

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    Identity,
    MemoryStore,
    bind_context,
    current_context,
    current_state,
    from_header,
    unbound_context,
)
from asgi_context.values import (
    clear_request_context,
    get_from_context,
    request_context,
    set_request_context,
    update_request_context,
)


@types.coroutine
def suspend() -> Any:
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
    """Steps the requests of some lanes; ``Schedule(seed, lanes, requests).run()`` gives the same trace every time."""

    def __init__(self, seed: int, lanes: int, requests: int) -> None:
        super().__init__(tenant=self.find_tenant, user=self.find_user)
        self.seed = seed
        self.rng = Random(seed)
        self.count = 0
        self.lanes = [Lane(Context(), [self.make_request() for _ in range(requests)]) for _ in range(lanes)]
        self.forks = 2
        self.trace: list[tuple[object, ...]] = []
        self.steps += [self.shelter, self.shelter]

    def make_request(self) -> Request:
        self.count += 1
        return make_request(self.seed, self.count, tenants=3)  # few, so that requests of one tenant meet

    async def rest(self) -> None:
        await suspend()

    async def send(self, message: Any) -> None:
        await suspend()

    async def find_tenant(self, scope: Any) -> Any:
        await self.extract(scope)
        return from_header("x-tenant-id")(scope)

    async def find_user(self, scope: Any) -> Any:
        await self.extract(scope)
        return from_header("x-user-id")(scope)

    async def extract(self, scope: Any) -> None:
        """Wait, so that others run between extracting and binding. Nothing is bound meanwhile."""
        nobody = Own(scope["test.request"], None, ())
        self.look(nobody, "extracting")
        nobody.request.extracting = True  # and so it stays if it is closed here
        try:
            await suspend()
        except AppError:
            nobody.request.status = 500  # the middleware answers when an extractor fails
            nobody.request.extracting = False
            raise
        nobody.request.extracting = False
        self.look(nobody, "extracting")

    async def shelter(self, own: Own, rng: Random, depth: int) -> None:
        """Catch what is thrown into here, and go on."""
        try:
            await self.walk(own, rng, depth + 1)
        except AppError:
            self.done["caught"] += 1

    def look(self, own: Own, where: str) -> tuple[object, ...]:
        seen = super().look(own, where)
        self.trace.append((own.request.number, where, *seen))
        return seen

    def run(self) -> list[tuple[object, ...]]:
        while self.lanes:
            lane = self.rng.choice(self.lanes)
            if lane.coroutine is not None:
                actions = [self.resume, self.throw, self.close, self.close_abroad, self.fork]
                action = self.rng.choices(actions, [100, 6, 1, 1, 1])[0]
            elif lane.waiting:
                action = self.begin
            else:
                self.lanes.remove(lane)
                continue
            self.done[action.__name__] += 1
            action(lane)
            self.trace.append((action.__name__, lane.request.number))
        return self.trace

    def begin(self, lane: Lane) -> None:
        lane.request = lane.waiting.pop(0)
        lane.before = lane.context.run(bound)
        lane.coroutine = self.serve(lane.request, self.send)
        self.resume(lane)

    def resume(self, lane: Lane) -> None:
        try:
            lane.context.run(lane.coroutine.send, None)
        except StopIteration:
            self.end(lane)

    def throw(self, lane: Lane) -> None:
        try:
            lane.context.run(lane.coroutine.throw, AppError(lane.request.number))
        except StopIteration:
            self.end(lane)

    def close(self, lane: Lane) -> None:
        lane.context.run(lane.coroutine.close)
        self.end(lane)

    def end(self, lane: Lane) -> None:
        lane.coroutine = None
        if lane.context.run(bound) != lane.before:
            self.left_bound.append(lane.request.number)

    def close_abroad(self, lane: Lane) -> None:
        """Close it in the Context of another request, or of none, as the garbage collector may."""
        others = [other.context for other in self.lanes if other is not lane and other.coroutine is not None]
        abroad = self.rng.choice([Context(), *others])
        before = abroad.run(bound), abroad.run(see)
        abroad.run(lane.coroutine.close)
        lane.coroutine = None
        if lane.request.number in self.left_bound:
            self.left_bound.remove(lane.request.number)  # its server has looked there, too, and not at home
        if (abroad.run(bound), abroad.run(see)) != before:
            self.wrong.append((lane.request.number, "changed what is bound abroad"))
        seen = lane.context.run(see)
        if lane.request.extracting:
            if seen != NOTHING:
                self.wrong.append((lane.request.number, "bound at home", seen))
        elif (seen, lane.context.run(attempt, bind_context)) != (REVOKED, "revoked"):
            self.wrong.append((lane.request.number, "not revoked at home", seen))

    def fork(self, lane: Lane) -> None:
        """Start another request in a copy of this one's Context, as servers do with pipelined requests."""
        if self.forks:
            self.forks -= 1
            self.lanes.append(Lane(lane.context.copy(), [self.make_request()]))


# Lanes, and requests in each.
SHAPES = {"a Context for each": (6, 1), "one Context for all": (1, 6), "connections": (3, 3)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_every_seeded_schedule_each_step_sees_its_own(shape: tuple[int, int]) -> None:
    done: Counter[str] = Counter()
    for seed in range(400):
        schedule = Schedule(seed, *shape)
        schedule.run()
        assert (seed, schedule.wrong[:3]) == (seed, [])
        assert (seed, schedule.left_bound) == (seed, [])
        done += schedule.done
    assert min(done[action] for action in ("throw", "caught", "close", "close_abroad", "fork")) > 100, done


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_seed_replays_its_schedule_exactly(shape: tuple[int, int]) -> None:
    traces = [Schedule(seed, *shape).run() for seed in range(100)]
    assert traces == [Schedule(seed, *shape).run() for seed in range(100)]
    assert len(set(map(str, traces))) == 100


def started(app: Any, context: Context) -> Coroutine[Any, Any, None]:
    """A request of acme's ann, up to where the app waits."""
    middleware = ContextMiddleware(app, tenant=from_header("x-tenant-id"), user=from_header("x-user-id"))
    coroutine = middleware(http(*who("acme", "ann")), None, None)
    context.run(coroutine.send, None)
    return coroutine


async def waits(scope: Any, receive: Any, send: Any) -> None:
    await suspend()


async def waits_in_blocks(scope: Any, receive: Any, send: Any) -> None:
    with request_context(whose="ann"), bind_context(Identity("globex")), request_context(block=1):
        await suspend()


async def waits_unbound(scope: Any, receive: Any, send: Any) -> None:
    with unbound_context():
        await suspend()


APPS = [waits, waits_in_blocks, waits_unbound]


@pytest.mark.parametrize(
    "ask",
    [
        current_context,
        partial(current_context, None),
        current_state,
        partial(current_state, None),
        bind_context,
        partial(get_from_context, "whose", "default"),
        partial(set_request_context, {}),
        partial(update_request_context, whose="ann"),
        clear_request_context,
        lambda: request_context().__enter__(),
    ],
)
@pytest.mark.parametrize("app", APPS)
def test_a_request_closed_in_another_context_is_revoked_in_its_own(app: Any, ask: Any) -> None:
    """Nothing of it can be read any more, even where there is a default."""
    context = Context()
    started(app, context).close()
    with pytest.raises(ContextClosedError) as caught:
        context.run(ask)
    assert caught.value.why == "revoked"


@pytest.mark.parametrize("app", APPS)
def test_closing_a_request_in_the_context_of_another_leaves_that_one_as_it_is(app: Any) -> None:
    coroutine = started(app, Context())
    with bind_context(Identity("globex", "bob"), values={"whose": "bob"}, store=MemoryStore()):
        before = bound(), see()
        coroutine.close()
        assert (bound(), see()) == before


@pytest.mark.parametrize("app", APPS)
def test_a_request_closed_in_its_own_context_is_taken_away(app: Any) -> None:
    context = Context()
    coroutine = started(app, context)
    assert context.run(bound)
    context.run(coroutine.close)
    assert context.run(see) == NOTHING


def test_the_request_after_a_revoked_one_sees_its_own() -> None:
    context = Context()
    started(waits, context).close()
    coroutine = started(waits, context)
    assert context.run(current_context).user == "ann"
    context.run(coroutine.close)
    assert context.run(see) == REVOKED
