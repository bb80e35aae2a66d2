"""A resource is made once, whoever asks, fails or is cancelled meanwhile, and by factories that ask for others."""

import asyncio
import contextvars
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import anyio
import pytest
from resources import (
    LONG,
    A,
    B,
    BoomError,
    C,
    D,
    Gate,
    logged_errors,
    plainly,
    quiet_loop,
    serve,
    settle,
    soon,
    spawn,
    turns,
    waiting,
)

from asgi_context import ContextClosedError, RequestContext, current_resource
from asgi_context.errors import JobError, ResourceCloseError, ResourceCycleError

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)
logged = pytest.fixture(logged_errors)


# --- made once


async def test_many_tasks_at_once_get_one_object(asyncio_only: None) -> None:
    made: list[A] = []

    async def factory(context: RequestContext) -> A:
        for _ in range(5):
            await asyncio.sleep(0)
        made.append(A(context))
        return made[-1]

    async def handle() -> None:
        assert set(await settle(*(spawn(current_resource(A)) for _ in range(50)))) == set(made)

    await serve(handle, {A: factory})
    assert len(made) == 1


async def test_a_cancelled_first_caller_takes_nothing_from_the_others_nor_from_who_asks_later(
    asyncio_only: None,
) -> None:
    started, go, calls = asyncio.Event(), asyncio.Event(), []

    async def factory(context: RequestContext) -> A:
        calls.append(context)
        started.set()
        await go.wait()
        return A(context)

    async def handle() -> None:
        first, second = spawn(current_resource(A)), spawn(current_resource(A))
        await soon(started)
        first.cancel()
        assert isinstance((await settle(first))[0], asyncio.CancelledError)
        go.set()
        made = await second
        assert await current_resource(A) is made

    await serve(handle, {A: factory})
    assert len(calls) == 1


async def test_when_all_callers_were_cancelled_it_is_still_made_for_the_next(asyncio_only: None) -> None:
    started, go, calls = asyncio.Event(), asyncio.Event(), []

    async def factory(context: RequestContext) -> A:
        calls.append(context)
        started.set()
        await go.wait()
        return A(context)

    async def handle() -> None:
        callers = [spawn(current_resource(A)) for _ in range(3)]
        await soon(started)
        for caller in callers:
            caller.cancel()
        await settle(*callers)
        next_one = spawn(current_resource(A))
        await turns()
        go.set()
        assert await next_one is await current_resource(A)

    await serve(handle, {A: factory})
    assert len(calls) == 1


@pytest.mark.parametrize("where", ["at once", "later", "entering", "entering later", "plain entering later"])
async def test_a_failure_reaches_all_who_asked_and_the_next_tries_again(where: str, asyncio_only: None) -> None:
    error, calls = ValueError("no"), []

    def fail_first() -> None:
        calls.append(where)
        if len(calls) == 1:
            raise error

    def at_once(context: RequestContext) -> A:
        fail_first()
        return A(context)

    async def later(context: RequestContext) -> A:
        await turns(3)
        fail_first()
        return A(context)

    @contextmanager
    def entering(context: RequestContext) -> Iterator[A]:
        fail_first()
        yield A(context)

    @asynccontextmanager
    async def entering_later(context: RequestContext) -> AsyncIterator[A]:
        await turns(3)
        fail_first()
        yield A(context)

    async def plain_entering_later(context: RequestContext) -> Any:
        await turns(3)
        return entering(context)

    factory: Any = {
        "at once": at_once,
        "later": later,
        "entering": entering,
        "entering later": entering_later,
        "plain entering later": plain_entering_later,
    }[where]

    async def handle() -> None:
        if "later" in where:
            assert await settle(*(spawn(current_resource(A)) for _ in range(3))) == [error] * 3
        else:
            with pytest.raises(ValueError, match="no"):
                await current_resource(A)
        assert await current_resource(A) is await current_resource(A)

    await serve(handle, {A: factory})
    assert len(calls) == 2


async def test_a_failure_after_all_callers_were_cancelled_is_logged(asyncio_only: None, logged: Any) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def factory(context: RequestContext) -> A:
        started.set()
        await go.wait()
        raise ValueError("too late\n")

    async def handle() -> None:
        caller = spawn(current_resource(A))
        await soon(started)
        caller.cancel()
        await settle(caller)
        go.set()
        await turns()

    await serve(handle, {A: factory})
    assert logged() == ["making A failed after its caller was cancelled: builtins.ValueError: too late\\n"]


# --- factories that ask for other resources


def asking(*kinds: type, made: type = A) -> Any:
    async def factory(context: RequestContext) -> Any:
        await asyncio.sleep(0)
        for kind in kinds:
            await current_resource(kind)
        return made(context)

    return factory


async def test_factories_ask_for_other_resources_and_are_closed_before_them(asyncio_only: None) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def needing(context: RequestContext) -> AsyncIterator[A]:
        await current_resource(B)
        async with waiting(log, A)(context) as made:
            yield made

    async def needing_too(context: RequestContext) -> Any:
        await current_resource(C)
        return plainly(log, B)(context)

    async def handle() -> None:
        await current_resource(A)

    await serve(handle, {A: needing, B: needing_too, C: waiting(log, C)})
    assert log == ["open C", "open B", "open A", "close A", "close B", "close C"]


@pytest.mark.parametrize(
    "resources",
    [
        {A: asking(A)},
        {A: asking(B), B: asking(A)},
        {A: asking(B), B: asking(C), C: asking(A)},
        {A: asking(D, B), B: asking(C), C: asking(D, A), D: asking(made=D)},
    ],
    ids=["direct", "over two", "over three", "beside another"],
)
async def test_a_cycle_is_an_error(resources: Any, asyncio_only: None) -> None:
    async def handle() -> None:
        for _ in range(2):
            with pytest.raises(ResourceCycleError, match="waits for itself"):
                await current_resource(A)

    await serve(handle, resources)


async def test_a_cycle_that_two_tasks_enter_at_once_is_an_error_for_both(asyncio_only: None) -> None:
    async def handle() -> None:
        errors = await settle(spawn(current_resource(A)), spawn(current_resource(B)))
        assert [type(error) for error in errors] == [ResourceCycleError] * 2

    await serve(handle, {A: asking(B), B: asking(A)})


async def test_a_cycle_by_way_of_a_task_of_the_factory_is_an_error(asyncio_only: None) -> None:
    async def factory(context: RequestContext) -> A:
        await spawn(current_resource(B))
        return A(context)

    async def handle() -> None:
        with pytest.raises(ResourceCycleError):
            await current_resource(A)

    await serve(handle, {A: factory, B: asking(A)})


async def test_a_factory_that_catches_the_cycle_can_go_on(asyncio_only: None) -> None:
    async def factory(context: RequestContext) -> A:
        with pytest.raises(ResourceCycleError):
            await current_resource(A)
        return A(context)

    async def handle() -> None:
        assert await current_resource(A) is await current_resource(A)

    await serve(handle, {A: factory})


async def test_a_diamond_is_no_cycle_and_its_foot_is_made_once(asyncio_only: None) -> None:
    made: list[str] = []

    async def foot(context: RequestContext) -> D:
        await turns(5)
        made.append("D")
        return D(context)

    async def top(context: RequestContext) -> A:
        await asyncio.gather(current_resource(B), current_resource(C), current_resource(D), current_resource(D))
        return A(context)

    async def handle() -> None:
        kinds: list[type] = [D, C, B, A]
        made = await settle(*(spawn(current_resource(kind)) for kind in kinds))
        assert [type(one) for one in made] == kinds

    resources: Any = {A: top, B: asking(D, made=B), C: asking(D, made=C), D: foot}
    await serve(handle, resources)
    assert made == ["D"]


async def test_a_wait_that_was_given_up_is_no_part_of_a_cycle(asyncio_only: None) -> None:
    """A asks for B and gives up; B may then ask for A."""
    given_up, started = asyncio.Event(), asyncio.Event()

    async def a(context: RequestContext) -> A:
        waits = spawn(current_resource(B))
        await started.wait()
        waits.cancel()
        await settle(waits)
        given_up.set()
        await turns()  # still being made when B asks for it
        return A(context)

    async def b(context: RequestContext) -> B:
        started.set()
        await given_up.wait()
        await current_resource(A)
        return B(context)

    async def handle() -> None:
        await current_resource(A)
        assert type(await current_resource(B)) is B

    await serve(handle, {A: a, B: b})


# --- entered and left in one task, and in one Context


MARK: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="unset")


async def test_variables_set_on_entering_can_be_reset_on_leaving_and_stay_inside(asyncio_only: None) -> None:
    log: list[str] = []

    @contextmanager
    def plain(context: RequestContext) -> Iterator[A]:
        token = MARK.set("plain")
        yield A()
        log.append(MARK.get())
        MARK.reset(token)

    @asynccontextmanager
    async def later(context: RequestContext) -> AsyncIterator[B]:
        token = MARK.set("later")
        yield B()
        await asyncio.sleep(0)
        log.append(MARK.get())
        MARK.reset(token)

    async def plain_later(context: RequestContext) -> Any:
        return plain(context)

    async def handle() -> None:
        for kind in (A, B, C):
            await current_resource(kind)
        assert MARK.get() == "unset"

    await serve(handle, {A: plain, B: later, C: plain_later})
    assert log == ["plain", "later", "plain"]


async def test_task_groups_cancel_scopes_and_timeouts_can_be_held_open(asyncio_only: None) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def group(context: RequestContext) -> AsyncIterator[A]:
        ticked = anyio.Event()

        async def tick() -> None:
            try:
                ticked.set()
                await anyio.sleep_forever()
            finally:
                log.append("ticker ended")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            await ticked.wait()
            yield A()
            tasks.cancel_scope.cancel()
        log.append("group left")

    @asynccontextmanager
    async def scope(context: RequestContext) -> AsyncIterator[B]:
        with anyio.CancelScope() as inside:
            yield B()
            inside.cancel()
            await anyio.sleep_forever()
        log.append("scope left")

    @asynccontextmanager
    async def timeout(context: RequestContext) -> AsyncIterator[C]:
        async with asyncio.timeout(LONG), asyncio.TaskGroup() as tasks:
            yield C()
            await tasks.create_task(asyncio.sleep(0))
        log.append("timeout left")

    async def handle() -> None:
        for kind in (A, B, C):
            await spawn(current_resource(kind))
        await turns()

    await serve(handle, {A: group, B: scope, C: timeout})
    assert log == ["timeout left", "scope left", "ticker ended", "group left"]


async def test_a_group_inside_that_fails_meanwhile_is_told_on_closing(asyncio_only: None) -> None:
    failed = asyncio.Event()

    @asynccontextmanager
    async def group(context: RequestContext) -> AsyncIterator[A]:
        async def fail() -> None:
            raise OSError("inside")

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
                yield A()
        finally:
            failed.set()

    async def handle() -> None:
        await current_resource(A)
        await soon(failed)
        await turns()

    with pytest.raises(ResourceCloseError) as caught:
        await serve(handle, {A: group})
    assert [str(error) for error in caught.value.exceptions[0].exceptions] == ["inside"]  # type: ignore[attr-defined]


async def test_a_timeout_inside_that_expires_meanwhile_is_told_on_closing(asyncio_only: None) -> None:
    expired = asyncio.Event()

    @asynccontextmanager
    async def limited(context: RequestContext) -> AsyncIterator[A]:
        try:
            async with asyncio.timeout(0):
                yield A()
        finally:
            expired.set()

    async def handle() -> None:
        await current_resource(A)
        await soon(expired)
        await turns()

    with pytest.raises(ResourceCloseError) as caught:
        await serve(handle, {A: limited})
    assert [type(error) for error in caught.value.exceptions] == [TimeoutError]


# --- failures that cannot be handed on, and callers that have gone


FAILURES: dict[str, BaseException] = {
    "StopIteration": StopIteration(),
    "CancelledError": asyncio.CancelledError(),
    "KeyboardInterrupt": KeyboardInterrupt(),
}


def failing_once(failure: BaseException, way: str) -> Any:
    calls: list[RequestContext] = []

    class Entered:
        def __init__(self, context: RequestContext) -> None:
            self.context = context

        def __enter__(self) -> A:
            calls.append(self.context)
            if len(calls) == 1:
                raise failure
            return A(self.context)

        def __exit__(self, *info: object) -> None: ...

    async def making(context: RequestContext) -> A:
        await turns(3)
        return Entered(context).__enter__()

    async def entering(context: RequestContext) -> Entered:
        await turns(3)
        return Entered(context)

    return {"making": making, "entering": entering}[way]


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("StopIteration", "entering"),  # a coroutine that raises it raises a RuntimeError, says the language
        ("CancelledError", "entering"),
        ("CancelledError", "making"),
        ("KeyboardInterrupt", "entering"),
        ("KeyboardInterrupt", "making"),
    ],
)
async def test_what_cannot_be_raised_in_who_asks_is_a_job_error_for_all(
    kind: str, way: str, asyncio_only: None
) -> None:
    async def handle() -> None:
        errors = await settle(*(spawn(current_resource(A)) for _ in range(3)))
        for error in errors:
            assert isinstance(error, JobError)
            assert error.kind == kind
            assert error.__cause__ is FAILURES[kind]
        assert type(await current_resource(A)) is A

    await serve(handle, {A: failing_once(FAILURES[kind], way)})


async def test_a_factory_that_fails_before_it_first_waits_fails_its_caller_alone(
    asyncio_only: None, logged: Any
) -> None:
    """With eager tasks it has failed before its caller waits for it; that one hears of it all the same."""

    async def factory(context: RequestContext) -> A:
        raise ValueError("at once")

    async def handle() -> None:
        for _ in range(2):
            with pytest.raises(ValueError, match="at once"):
                await current_resource(A)
        for error in await settle(*(spawn(current_resource(A)) for _ in range(3))):
            assert isinstance(error, ValueError)

    await serve(handle, {A: factory})
    assert logged() == []


async def test_a_caller_whose_coroutine_is_closed_leaves_nothing_unheard_but_in_the_log(
    asyncio_only: None, logged: Any
) -> None:
    gate = Gate()

    async def factory(context: RequestContext) -> A:
        await gate.wait()
        raise ValueError("no")

    async def handle() -> None:
        caller = current_resource(A)
        caller.send(None)
        await soon(gate.reached)
        caller.close()
        gate.go.set()
        await turns()

    await serve(handle, {A: factory})
    assert logged() == ["making A failed after its caller was cancelled: builtins.ValueError: no"]


async def test_of_several_callers_one_that_goes_on_waiting_hears_of_the_failure_and_the_log_does_not(
    asyncio_only: None, logged: Any
) -> None:
    gate = Gate()

    async def factory(context: RequestContext) -> A:
        await gate.wait()
        raise ValueError("no")

    async def handle() -> None:
        first, second = spawn(current_resource(A)), spawn(current_resource(A))
        await soon(gate.reached)
        await turns()
        first.cancel()
        gate.go.set()
        cancelled, failed = await settle(first, second)
        assert isinstance(cancelled, asyncio.CancelledError)
        assert isinstance(failed, ValueError)

    await serve(handle, {A: factory})
    assert logged() == []


def made_by(way: str) -> Any:
    async def coroutine(context: RequestContext) -> A:
        await asyncio.sleep(0)
        return A(context)

    def future(context: RequestContext) -> Any:
        return asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def manager(context: RequestContext) -> AsyncIterator[A]:
        await asyncio.sleep(0)
        yield A(context)

    return {"a coroutine": coroutine, "a future": future, "a manager": manager}[way]


@pytest.mark.parametrize("made", ["a coroutine", "a future", "a manager"])
async def test_making_that_is_cancelled_before_its_first_step_tells_all_who_asked(
    made: str, asyncio_only: None
) -> None:
    """As at the end of the loop, which cancels every task. A coroutine that nobody awaits would be a warning."""

    async def handle() -> None:
        before = asyncio.all_tasks()
        callers = [spawn(current_resource(A)) for _ in range(2)]
        if asyncio.all_tasks() == before | set(callers):  # unless tasks are eager
            await asyncio.sleep(0)
        (making,) = asyncio.all_tasks() - before - set(callers)
        making.cancel()
        for error in await settle(*callers):
            assert isinstance(error, ContextClosedError)
            assert (error.wanted, error.why) == ("resource", "ended")

    await serve(handle, {A: made_by(made)})


async def test_asking_takes_no_longer_the_more_ways_lead_to_what_is_waited_for(asyncio_only: None) -> None:
    """Twenty layers of two, each of which waits for both below it: a million ways, and forty resources."""
    layers = [[type(f"Layer{depth}{side}", (), {}) for side in "ab"] for depth in range(20)]
    gate, asked, steps = Gate(), [], 0

    async def foot(context: RequestContext) -> Any:
        await gate.wait()
        return object()

    def above(below: list[type]) -> Any:
        async def factory(context: RequestContext) -> Any:
            asked.append(below)
            await asyncio.gather(*(current_resource(kind) for kind in below))
            return object()

        return factory

    resources: Any = {
        kind: above(layers[depth - 1]) if depth else foot for depth in range(20) for kind in layers[depth]
    }

    def count(frame: FrameType, *_: object) -> None:
        nonlocal steps
        steps += "asgi_context" in frame.f_code.co_filename
        assert steps < 200_000

    async def handle() -> None:
        callers = []
        for layer in layers:  # from the foot, so that each that asks finds all below it waiting
            callers += [spawn(current_resource(kind)) for kind in layer]
            await turns(5)
        gate.go.set()
        assert [type(one) for one in await settle(*callers)] == [object] * 40

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        await serve(handle, resources)
    finally:
        sys.setprofile(before)
    assert len(asked) == 38


# --- generator functions that do not keep to their part


def generating(way: str, log: list[str]) -> Any:
    """A generator function, plain or asynchronous, and what goes wrong with it."""

    def twice(context: RequestContext) -> Iterator[A]:
        try:
            yield A()
            yield A()
        finally:
            log.append("ended")

    def twice_after_the_error(context: RequestContext) -> Iterator[A]:
        try:
            yield A()
        except BoomError:
            yield A()
        finally:
            log.append("ended")

    def swallowing(context: RequestContext) -> Iterator[A]:
        try:
            yield A()
        except BoomError:
            log.append("ended")

    def replacing(context: RequestContext) -> Iterator[A]:
        try:
            yield A()
        except BoomError:
            log.append("ended")
            raise OSError("another") from None

    def failing(context: RequestContext) -> Iterator[A]:
        yield A()
        log.append("ended")
        raise OSError("at the end")

    return locals()[way]


def asynchronous(generate: Any) -> Any:
    async def factory(context: RequestContext) -> AsyncIterator[A]:
        generator = generate(context)
        made = next(generator)
        while True:
            try:
                yield made
            except GeneratorExit:
                generator.close()
                raise
            except BaseException as error:  # noqa: BLE001 - as it comes
                try:
                    made = generator.throw(error)
                except StopIteration:
                    return
            else:
                try:
                    made = next(generator)
                except StopIteration:
                    return

    return factory


@pytest.mark.parametrize("later", [False, True], ids=["plain", "asynchronous"])
@pytest.mark.parametrize(
    ("way", "boom", "text"),
    [
        ("twice", False, "yielded twice|didn't stop"),
        ("failing", False, "at the end"),
        ("twice_after_the_error", True, "builtins.RuntimeError: generator didn't stop after (a)?throw"),
        ("swallowing", True, None),
        ("replacing", True, "builtins.OSError: another"),
    ],
)
async def test_a_generator_function_that_goes_wrong_is_told_and_ended(
    way: str, boom: bool, text: str | None, later: bool, asyncio_only: None, logged: Any
) -> None:
    log: list[str] = []
    error = BoomError("boom")
    factory = generating(way, log)

    async def handle() -> None:
        await current_resource(A)
        await current_resource(B)
        if boom:
            raise error

    with pytest.raises((BoomError, ResourceCloseError)) as caught:
        await serve(handle, {B: plainly(log, B), A: asynchronous(factory) if later else factory})
    assert log == ["open B", "close B", "ended"]
    if boom:
        assert caught.value is error
        logs = logged()
        assert len(logs) == (text is not None)
        for line in logs:
            assert re.match(f"closing A failed: {text}", line)
    else:
        assert isinstance(caught.value, ResourceCloseError)
        (failure,) = caught.value.exceptions
        assert re.search(text or "", str(failure))


@pytest.mark.parametrize("later", [False, True], ids=["plain", "asynchronous"])
async def test_a_generator_function_that_does_not_yield_is_an_error_each_time(later: bool, asyncio_only: None) -> None:
    calls: list[str] = []

    def empty(context: RequestContext) -> Iterator[A]:
        calls.append("A")
        yield from ()

    async def empty_later(context: RequestContext) -> AsyncIterator[A]:
        calls.append("A")
        for made in ():
            yield made

    async def handle() -> None:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"did not yield|didn't yield"):
                await current_resource(A)

    await serve(handle, {A: empty_later if later else empty})
    assert calls == ["A", "A"]
