"""Calling tools by name: what comes of it as a value, where tools run, and what is left when a caller goes."""

import asyncio
import contextvars
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from driver import Exchange, websocket, who
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticSerializationError
from resources import Gate, logged_errors, mount, quiet_loop, settle, soon, spawn, turns
from tool_calls import ANN, LONG, SHORT, Block, Driven, cancel, outlived, serve, until

from asgi_context import (
    Identity,
    MemoryStore,
    Pool,
    bind_context,
    current_context,
    current_resource,
    run_in_executor,
    unbound_context,
)
from asgi_context.errors import (
    BridgeClosedError,
    BridgeLoopError,
    ContextClosedError,
    ContextNotBoundError,
    PoolNotFoundError,
    StoreNotBoundError,
    ToolCallNotBoundError,
    ToolError,
    ToolOwnerError,
    UnsupportedLoopError,
)
from asgi_context.tools import (
    AsyncBaseTool,
    ToolDispatcher,
    ToolLimits,
    ToolRegistry,
    ToolResult,
    ToolSystem,
    ToolSystemFactory,
    current_tool_call,
)
from asgi_context.tools._threads import Job

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)
logged = pytest.fixture(logged_errors)

RAW = "raw\x1b[31m\r\nforged line"


class BoomError(Exception): ...


async def ask(
    tool: Any, /, arguments: Any = None, *, pools: Any = None, store: Any = None, **options: Any
) -> ToolResult:
    """What comes of one call in a request of ann's."""

    async def handle() -> ToolResult:
        registry = ToolRegistry([tool])
        return await ToolDispatcher(registry, **options).dispatch(registry.list()[0], arguments)

    result = await serve(handle, pools=pools, store=store)
    assert isinstance(result, ToolResult)
    return result


def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


async def add_later(a: int, b: int = 1) -> int:
    await asyncio.sleep(0)
    return a + b


class Add(AsyncBaseTool):
    a: int
    b: int = 1

    async def _arun(self) -> int:
        return self.a + self.b


class AddInThread(AsyncBaseTool):
    a: int
    b: int = 1

    def run(self) -> int:
        return self.a + self.b


class Adder:
    def __call__(self, a: int, b: int = 1) -> int:
        return a + b


ADDERS = [add, add_later, Add, AddInThread, Adder, Adder()]


# --- results


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


def adopt(pet: Annotated[Cat | Dog, Field(discriminator="kind")]) -> None: ...


async def test_what_was_given_is_not_repeated_and_forges_no_line(asyncio_only: None) -> None:
    result = await ask(adopt, {"pet": {"kind": "SECRET\x1b[31m\nforged"}})
    assert result.text == "The arguments do not fit.\npet: Input tag is none of the expected tags"
    result = await ask(adopt, {"pet": {"kind": "cat"}, "x\nquery: fine": 1, "y" * 10_000: 2, "größe": 3})
    assert [error["at"] for error in result.errors] == ["x\\nquery: fine", "y" * 200, "größe"]
    assert len(result.text.splitlines()) == 4


class Node(BaseModel):
    kids: dict[str, "Node"] = {}
    value: int = 0


def plant(tree: Node) -> None: ...


async def test_where_something_is_wrong_is_told_in_few_words(asyncio_only: None) -> None:
    tree: Any = {"value": "wrong"}
    for _ in range(50):
        tree = {"kids": {"\x00" * 200: tree}}
    result = await ask(plant, {"tree": tree})
    assert [len(error["at"]) for error in result.errors] == [200]
    assert len(result.text) < 400


async def test_of_very_many_errors_the_first_are_told(asyncio_only: None) -> None:
    result = await ask(adopt, {"pet": {"kind": "cat"}} | {f"x{number}": 1 for number in range(1000)})
    assert len(result.errors) == 100
    assert result.text.splitlines()[-1] == "And 900 more."


PERMITS: list[Any] = [None, lambda *_: True]


@pytest.mark.parametrize("tool", ADDERS)
async def test_a_tool_is_called_with_what_the_model_gave(tool: Any, asyncio_only: None) -> None:
    name = getattr(tool, "__name__", "Adder")
    for arguments in ({"a": 1, "b": 2}, '{"a":1,"b":2}', b'{"a":1,"b":2}', {"a": "1", "b": 2}):
        for permit in PERMITS:
            result = await ask(tool, arguments, permit=permit, correlation_id="c")
            assert result == ToolResult(name, "c.1", 3, None, "", (), None)
            assert result.ok


async def test_without_arguments_there_are_none(asyncio_only: None) -> None:
    def nothing() -> None: ...

    assert (await ask(nothing)).ok
    assert (await ask(nothing, "{}")).ok
    assert (await ask(add)).code == "arguments_invalid"


@dataclass
class Point:
    x: int


class Shape(BaseModel):
    points: list[Point]


async def test_a_model_is_told_a_str_as_it_is_and_anything_else_as_json(asyncio_only: None) -> None:
    told: list[tuple[Any, str]] = [
        ("as it is", "as it is"),
        ("", ""),
        (None, "null"),
        ({"a": [1, 2.5, True]}, '{"a":[1,2.5,true]}'),
        (Shape(points=[Point(1)]), '{"points":[{"x":1}]}'),
        ((1, {"ä"}), '[1,["ä"]]'),
    ]
    for value, text in told:
        result = await ask(lambda_of(value))
        assert result.ok
        assert result.value is value
        assert result.for_model() == text


def lambda_of(value: Any) -> Any:
    def tool() -> Any:
        return value

    return tool


async def test_what_has_no_json_form_says_so_to_who_asks_for_it(asyncio_only: None) -> None:
    result = await ask(lambda_of(object()))
    assert result.ok
    with pytest.raises(PydanticSerializationError):
        result.for_model()


def test_a_model_is_told_of_a_failure_by_its_text() -> None:
    result = ToolResult("t", "1", "something", "no", "It may not.")
    assert not result.ok
    assert result.for_model() == "It may not."


async def test_a_name_that_no_tool_has_is_answered_with_those_that_there_are(
    asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    async def handle() -> list[ToolResult]:
        some, none = ToolDispatcher(ToolRegistry([add, Add]), correlation_id="c"), ToolDispatcher()
        return [await some.dispatch(RAW), await none.dispatch("add", call_id="7")]

    some, none = await serve(handle)
    text = "There is no tool of that name. There are: add, Add."
    assert some == ToolResult(RAW, "c.1", None, "tool_not_found", text)
    assert none == ToolResult("add", "7", None, "tool_not_found", "There is no tool of that name. There are: none.")
    assert logged() == []


class Search(AsyncBaseTool):
    query: str
    limit: int = 5
    tags: list[int] = Field(default_factory=list)

    async def _arun(self) -> str:
        return "found"


@pytest.mark.parametrize("permit", PERMITS)
async def test_all_that_is_wrong_with_arguments_is_listed_and_what_was_given_is_not_repeated(
    permit: Any, asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    arguments = {"limit": "SECRET", "tags": [1, "SECRET"], "other": "SECRET"}
    for given in (arguments, json.dumps(arguments)):
        result = await ask(Search, given, permit=permit)
        assert (result.code, result.value, result.retry_after) == ("arguments_invalid", None, None)
        assert [(one["at"], one["type"]) for one in result.errors] == [
            ("query", "missing"),
            ("limit", "int_parsing"),
            ("tags.1", "int_parsing"),
            ("other", "extra_forbidden"),
        ]
        assert result.for_model().splitlines() == [
            "The arguments do not fit.",
            *[f"{one['at']}: {one['text']}" for one in result.errors],
        ]
        assert "query: Field required" in result.text
        assert "SECRET" not in repr(result)
    assert logged() == []


@pytest.mark.parametrize("tool", ADDERS)
async def test_what_is_no_json_object_does_not_fit(
    tool: Any, asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    for arguments in ("", "{", "[]", "null", "1", b"\xff", '{"a":1}x', "[" * 10_000):
        for permit in PERMITS:
            result = await ask(tool, arguments, permit=permit)
            assert result.code == "arguments_invalid"
            assert len(result.errors) == 1
            assert result.text.startswith("The arguments do not fit.\narguments: ")
    assert logged() == []


async def test_neither_does_what_is_no_mapping(asyncio_only: None) -> None:
    given: list[Any] = [[], 1, object(), {1: 2}]
    for arguments in given:
        for tool in ADDERS:
            for permit in PERMITS:
                assert (await ask(tool, arguments, permit=permit)).code == "arguments_invalid"


# --- failures


async def test_what_a_tool_error_says_goes_to_the_model(asyncio_only: None, logged: Callable[[], list[str]]) -> None:
    class NoSuchOrderError(ToolError): ...

    errors = (ToolError("No such order."), "tool_error"), (NoSuchOrderError("No such order.", code="none"), "none")
    for error, code in errors:
        for way in WAYS:
            result = await failing(way, error)
            assert (result.code, result.text, result.value) == (code, "No such order.", None)
            assert result.for_model() == "No such order."
            assert not result.ok
    assert logged() == []


async def failing(way: str, error: BaseException, **options: Any) -> ToolResult:
    def sync() -> None:
        raise error

    async def later() -> None:
        await asyncio.sleep(0)
        raise error

    async def at_once() -> None:
        raise error

    def then() -> Any:
        return later()

    def refuse(*_: object) -> bool:
        raise error

    async def refuse_later(*_: object) -> bool:
        await asyncio.sleep(0)
        raise error

    def nothing() -> None: ...

    tools: dict[str, Any] = {
        "async": later,
        "async, at once": at_once,
        "sync": sync,
        "sync, then async": then,
        "permit": nothing,
        "permit later": nothing,
    }
    permit = {"permit": refuse, "permit later": refuse_later}.get(way)
    return await ask(tools[way], permit=permit, **options)


WAYS = ["async", "async, at once", "sync", "sync, then async", "permit", "permit later"]


@pytest.mark.parametrize(
    "kind",
    [
        BoomError,
        StopIteration,
        StopAsyncIteration,
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        asyncio.CancelledError,
        TimeoutError,
        MemoryError,
    ],
)
async def test_whatever_else_a_tool_or_permit_raises_is_a_crash_whose_text_goes_to_the_log_alone(
    kind: type[BaseException], asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    for way in WAYS:
        result = await failing(way, kind("SECRET"))
        assert (result.code, result.text) == ("tool_crashed", "The tool failed.")
        assert "SECRET" not in repr(result)
        (line,) = logged()
        assert line.startswith("the tool '")
        assert "' failed: " in line


async def test_groups_of_errors_are_crashes(asyncio_only: None, logged: Callable[[], list[str]]) -> None:
    for way in WAYS:
        group = BaseExceptionGroup("several", [SystemExit(1), asyncio.CancelledError(), ToolError("for nobody")])
        assert (await failing(way, group)).code == "tool_crashed"
        assert len(logged()) == 1


async def test_a_crash_is_logged_with_its_cause_and_traceback_but_nothing_raw(
    asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def look_up(query: str) -> None:
        try:
            raise KeyError(query)
        except KeyError as error:
            raise BoomError(query) from error

    await ask(look_up, {"query": RAW})
    (record,) = [record for record in caplog.records if record.name == "asgi_context"]
    text = caplog.text
    assert record.getMessage() == "the tool 'look_up' failed"
    assert "BoomError: raw\\x1b[31m\\r\\nforged line" in text
    assert "KeyError: 'raw" in text
    assert "raise BoomError(query) from error" in text
    assert RAW not in text
    assert not any(line.startswith("forged line") for line in text.splitlines())
    caplog.clear()


@pytest.mark.parametrize(
    "error",
    [
        ToolError(BoomError("no text")),  # type: ignore[arg-type]
        ToolError("text", code=404),  # type: ignore[arg-type]
        type("BareError", (ToolError,), {"__init__": lambda self: None})(),
    ],
)
async def test_a_tool_error_without_a_text_or_code_is_a_crash(
    error: ToolError, asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    assert (await failing("async", error)).code == "tool_crashed"
    assert len(logged()) == 1


async def test_a_validation_error_that_is_not_about_the_arguments_is_a_crash(
    asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    """Else the model would be told what was wrong elsewhere."""

    def check(*_: object) -> bool:
        Search.model_validate({"SECRET": 1})
        return True

    async def tool() -> None:
        check()

    def in_thread() -> None:
        check()

    for result in (await ask(add, {"a": 1}, permit=check), await ask(tool), await ask(in_thread)):
        assert (result.code, result.text, result.errors) == ("tool_crashed", "The tool failed.", ())
    assert len(logged()) == 3


@pytest.mark.parametrize(
    "kind", [BoomError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration]
)
async def test_a_validator_that_crashes_is_a_crash(
    kind: type[BaseException], asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    class Checked(AsyncBaseTool):
        a: int

        @field_validator("a")
        @classmethod
        def check(cls, value: int) -> int:
            raise kind("SECRET")

        async def _arun(self) -> None: ...

    result = await ask(Checked, {"a": 1})
    assert (result.code, result.text) == ("tool_crashed", "The tool failed.")
    assert len(logged()) == 1


async def test_what_a_validator_says_goes_to_the_model(asyncio_only: None) -> None:
    class Checked(AsyncBaseTool):
        a: int

        @field_validator("a")
        @classmethod
        def check(cls, value: int) -> int:
            raise ValueError("a must be prime")

        async def _arun(self) -> None: ...

    result = await ask(Checked, {"a": 1})
    assert result.errors == [{"at": "a", "type": "value_error", "text": "Value error, a must be prime"}]


async def test_after_a_crash_other_calls_go_on(asyncio_only: None, logged: Callable[[], list[str]]) -> None:
    async def stop() -> None:
        raise SystemExit

    async def handle() -> list[ToolResult]:
        dispatcher = ToolDispatcher(ToolRegistry([stop, add, add_later]))
        calls = [
            dispatcher.dispatch(name, {"a": 1} if name != "stop" else None) for name in ("stop", "add", "add_later")
        ]
        return await asyncio.gather(*calls)

    assert [result.code for result in await serve(handle)] == ["tool_crashed", None, None]
    assert len(logged()) == 1


# --- who may


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("verdict", [True, False])
async def test_permit_says_whether_a_tool_may_be_called(verdict: bool, later: bool, asyncio_only: None) -> None:
    seen: list[Any] = []

    def permit(context: Any, name: str, arguments: Mapping[str, Any]) -> bool:
        seen.append((context, current_context(), name, arguments))
        return verdict

    async def permit_later(context: Any, name: str, arguments: Mapping[str, Any]) -> bool:
        await asyncio.sleep(0)
        return permit(context, name, arguments)

    ran: list[int] = []

    def note(a: int) -> None:
        ran.append(a)

    result = await ask(note, {"a": "1"}, permit=permit_later if later else permit)
    ((context, bound, name, arguments),) = seen
    assert context is bound
    assert (context.tenant, context.user, name, arguments) == ("acme", "ann", "note", {"a": "1"})
    if verdict:
        assert (result.ok, ran) == (True, [1])
    else:
        assert (result.code, result.text, ran) == ("not_permitted", "This user may not use this tool.", [])


async def test_permit_changes_nothing_of_what_fits(asyncio_only: None) -> None:
    class Strict(AsyncBaseTool):
        model_config = ConfigDict(strict=True)

        when: date
        tags: set[str]

        async def _arun(self) -> Any:
            return self.when.year, self.tags

    given = '{"when": "2024-01-01", "tags": ["x"]}'
    for permit in PERMITS:
        assert (await ask(Strict, given, permit=permit)).value == (2024, {"x"})


async def test_permit_reads_arguments_that_are_json(asyncio_only: None) -> None:
    assert (await ask(add, '{"a":1}', permit=lambda context, name, arguments: arguments["a"] == 1)).ok


@pytest.mark.parametrize("later", [False, True])
async def test_whatever_is_no_bool_is_no_permission(
    later: bool, asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    verdicts: list[Any] = [None, 1, 0, "yes", "", [], object()]
    for verdict in verdicts:

        async def permit(*_: object, verdict: Any = verdict) -> Any:
            return verdict

        result = await ask(add, {"a": 1}, permit=permit if later else lambda_of_any(verdict))
        assert (result.code, result.value) == ("tool_crashed", None)
        (line,) = logged()
        assert "permit" in line
        assert "bool" in line


def lambda_of_any(value: Any) -> Any:
    return lambda *_: value


async def test_permit_is_not_asked_of_calls_that_cannot_be(asyncio_only: None) -> None:
    def permit(*_: object) -> bool:
        raise AssertionError

    async def handle() -> list[Any]:
        dispatcher = ToolDispatcher(ToolRegistry([add]), permit=permit)
        return [(await dispatcher.dispatch("other")).code, (await dispatcher.dispatch("add")).code]

    assert await serve(handle) == ["tool_not_found", "arguments_invalid"]


async def test_permit_cannot_change_what_was_validated(asyncio_only: None) -> None:
    def permit(context: Any, name: str, arguments: Any) -> bool:
        arguments["a"] = "not a number"
        arguments["more"].append("not a number")
        return True

    async def total(a: int, more: list[int]) -> int:
        return a + sum(more)

    assert (await ask(total, {"a": 1, "more": [2]}, permit=permit)).value == 3


async def test_no_limit_is_touched_where_permit_says_no(asyncio_only: None) -> None:
    store = MemoryStore()
    options: Any = {"store": store, "user_limits": ToolLimits(per_minute=1)}
    assert (await ask(add, {"a": 1}, permit=lambda *_: False, **options)).code == "not_permitted"
    assert (await ask(add, **options)).code == "arguments_invalid"
    assert (await ask(add, {"a": 1}, **options)).ok
    assert (await ask(add, {"a": 1}, **options)).code == "rate_limited"


# --- where tools run


mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="")


def where() -> tuple[Any, ...]:
    context = current_context()
    call = current_tool_call()
    return context.tenant, context.user, mark.get(), call.tool, call.call_id, call.correlation_id


EXPECTED = ("acme", "ann", "a request's", "c.1", "c")


async def marked(tool: Any, **options: Any) -> Any:
    async def handle() -> Any:
        mark.set("a request's")
        registry = ToolRegistry([tool])
        dispatcher = ToolDispatcher(registry, correlation_id="c", **options)
        result = await dispatcher.dispatch(registry.list()[0])
        assert mark.get() == "a request's"
        with pytest.raises(ToolCallNotBoundError):
            current_tool_call()
        assert result.ok, result
        return result.value

    return await serve(handle, pools={"tool": 1, "slow": 1} if "pool" in options else None)


async def test_an_async_tool_runs_on_the_loop_in_the_task_that_asks(asyncio_only: None) -> None:
    tasks: list[Any] = []

    async def look() -> Any:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        return threading.current_thread() is threading.main_thread(), where()

    class Look(AsyncBaseTool):
        async def _arun(self) -> Any:
            return await look()

    class Looking:
        async def __call__(self) -> Any:
            return await look()

    class LookRun(AsyncBaseTool):
        async def run(self) -> Any:
            return await look()

    for tool in (look, Look, Looking, LookRun):
        at_main, (tenant, user, noted, name, *ids) = await marked(tool)
        assert at_main
        assert (tenant, user, noted, *ids) == EXPECTED
        assert name == tool.__name__
    assert set(tasks) == {asyncio.current_task()}


@pytest.mark.parametrize(
    ("pools", "pool", "thread"),
    [
        ({"tool": 1, "slow": 1}, None, "asgi_context-tool_0"),
        ({"tool": 1, "slow": 1}, "slow", "asgi_context-slow_0"),
        ({"slow": 1}, None, None),
        (None, None, None),
    ],
)
async def test_a_tool_that_blocks_runs_in_a_pool_under_the_callers_context(
    pools: Any, pool: str | None, thread: str | None, asyncio_only: None
) -> None:
    def look() -> Any:
        context, call = current_context(), current_tool_call()
        return threading.current_thread().name, context.tenant, context.user, call.tool, call.call_id

    class Look(AsyncBaseTool):
        def run(self) -> Any:
            return look()

    class Looking:
        def __call__(self) -> Any:
            return look()

    for tool in (look, Look, Looking):
        result = await ask(tool, pools=pools, pool=pool, correlation_id="c")
        name, *rest = result.value
        if thread is None:  # the loop's own
            assert not name.startswith(("asgi_context", threading.main_thread().name))
        else:
            assert name == thread
        assert rest == ["acme", "ann", tool.__name__, "c.1"]


async def test_what_a_tool_sets_stays_with_it_in_a_thread_and_with_its_caller_on_the_loop(asyncio_only: None) -> None:
    def in_thread() -> str:
        before = mark.get()
        mark.set("a tool's")
        return before

    async def on_loop() -> str:
        return in_thread()

    async def handle() -> None:
        mark.set("a request's")
        dispatcher = ToolDispatcher(ToolRegistry([in_thread, on_loop]))
        assert (await dispatcher.dispatch("in_thread")).value == "a request's"
        assert mark.get() == "a request's"
        assert (await dispatcher.dispatch("on_loop")).value == "a request's"
        assert mark.get() == "a tool's"  # as with any coroutine that is awaited

    await serve(handle)


async def test_what_a_plain_function_gives_is_awaited_on_the_loop(asyncio_only: None) -> None:
    async def later() -> Any:
        return threading.current_thread() is threading.main_thread(), asyncio.current_task()

    def tool() -> Any:
        return later()

    assert (await ask(tool)).value == (True, asyncio.current_task())


async def test_a_pool_that_does_not_exist_is_an_error_where_a_dispatcher_is_made_for_somebody(
    asyncio_only: None,
) -> None:
    async def handle() -> None:
        with pytest.raises(PoolNotFoundError, match="there is no pool 'other' here"):
            ToolDispatcher(ToolRegistry([add]), pool="other")

    await serve(handle, pools={"tool": 1})


async def test_of_a_dispatcher_for_all_it_is_a_crash_of_the_call(
    asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    dispatcher = ToolDispatcher(ToolRegistry([add]), pool="other")

    async def handle() -> ToolResult:
        return await dispatcher.dispatch("add", {"a": 1})

    assert (await serve(handle, pools={"tool": 1})).code == "tool_crashed"
    (line,) = logged()
    assert "other" in line


async def test_a_pool_that_is_full_says_so(asyncio_only: None) -> None:
    block = Block()

    async def handle() -> Any:
        dispatcher = ToolDispatcher(ToolRegistry([block]))
        task = spawn(dispatcher.dispatch("Block"))
        await until(block.started.is_set)
        full = await dispatcher.dispatch("Block")
        block.go.set()
        return full, await task

    full, done = await serve(handle, pools={"tool": Pool(1, queue=0)})
    assert (full.code, full.text) == ("pool_full", "Too many calls are waiting. Try again later.")
    assert done.value == "done"


async def test_threads_and_tasks_of_a_tool_find_the_call_too(asyncio_only: None) -> None:
    async def tool() -> Any:
        own = current_tool_call()
        assert await spawn(asyncio.sleep(0, current_tool_call())) is own
        return await run_in_executor(None, current_tool_call) is own

    assert (await ask(tool)).value is True


async def test_a_tool_may_dispatch_others_and_each_finds_its_own_call(asyncio_only: None) -> None:
    async def outer() -> Any:
        before = current_tool_call()
        dispatcher = dispatchers[0]
        first = await dispatcher.dispatch("inner", call_id="x")
        second = await dispatcher.dispatch("in_thread")
        unknown = await dispatcher.dispatch("other")
        assert current_tool_call() is before
        return before.call_id, first.value, second.value, unknown.code

    async def inner() -> Any:
        return current_tool_call().tool, current_tool_call().call_id

    def in_thread() -> Any:
        return current_tool_call().tool, current_tool_call().call_id

    dispatchers: list[ToolDispatcher] = []

    async def handle() -> Any:
        dispatchers.append(ToolDispatcher(ToolRegistry([outer, inner, in_thread]), correlation_id="c"))
        return (await dispatchers[0].dispatch("outer")).value

    assert await serve(handle) == ("c.1", ("inner", "x"), ("in_thread", "c.2"), "tool_not_found")


async def test_many_calls_at_once_find_each_its_own(asyncio_only: None) -> None:
    async def tool() -> str:
        before = current_tool_call().call_id
        await turns(3)
        assert current_tool_call().call_id == before
        return before

    async def handle() -> list[Any]:
        dispatcher = ToolDispatcher(ToolRegistry([tool]))
        results = await asyncio.gather(*(dispatcher.dispatch("tool", call_id=str(n)) for n in range(50)))
        return [(result.value, result.call_id) for result in results]

    assert await serve(handle) == [(str(n), str(n)) for n in range(50)]


# --- time


async def test_an_async_tool_that_takes_too_long_is_cancelled_and_leaves_no_task(asyncio_only: None) -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    for options, timeout in (({"timeout": SHORT}, None), ({}, SHORT)):

        async def handle(options: Any = options, timeout: float | None = timeout) -> ToolResult:
            tasks = asyncio.all_tasks()
            result = await ToolDispatcher(ToolRegistry([wait]), **options).dispatch("wait", timeout=timeout)
            assert asyncio.all_tasks() == tasks
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            return result

        result = await serve(handle)
        assert (result.code, result.text) == ("tool_timeout", "The tool did not end in time.")
        assert result.retry_after is None
    assert ended == ["cleaned up"] * 2


@pytest.mark.parametrize("pools", [None, {"tool": 1}])
async def test_a_job_that_takes_too_long_goes_on_while_its_caller_is_told(
    pools: Any, asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    block = Block()

    async def handle() -> None:
        await outlived(ToolDispatcher(ToolRegistry([block])), block)
        block.go.set()

    await serve(handle, pools=pools)
    assert block.ended.wait(LONG)
    await turns()
    caplog.clear()  # the pool says that a result is lost


async def test_a_job_that_still_waits_when_its_time_is_over_never_runs(
    asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    block, ran = Block(), []

    async def handle() -> Any:
        dispatcher = ToolDispatcher(ToolRegistry([block]))
        dispatcher.registry.register(lambda: ran.append(1), name="note")
        task = spawn(dispatcher.dispatch("Block"))
        await until(block.started.is_set)
        late = await dispatcher.dispatch("note", timeout=SHORT)
        block.go.set()
        return late.code, (await task).value

    assert await serve(handle, pools={"tool": 1}) == ("tool_timeout", "done")
    assert ran == []


async def test_a_timeout_of_the_tool_s_own_is_a_crash(asyncio_only: None, logged: Callable[[], list[str]]) -> None:
    async def own() -> None:
        async with asyncio.timeout(0):
            await asyncio.get_running_loop().create_future()

    assert (await ask(own)).code == "tool_crashed"
    assert len(logged()) == 1


async def test_what_a_tool_gives_after_its_time_is_over_is_still_its_value(asyncio_only: None) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "late"

    assert (await ask(stubborn, timeout=SHORT)).value == "late"


async def test_a_tool_that_crashes_when_its_time_is_over_has_crashed(
    asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    async def brittle() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise BoomError

    assert (await ask(brittle, timeout=SHORT)).code == "tool_crashed"
    assert len(logged()) == 1


async def test_the_caller_s_own_timeout_is_the_caller_s(asyncio_only: None) -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def handle() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SHORT):
                await ToolDispatcher(ToolRegistry([wait])).dispatch("wait")

    await serve(handle)


async def test_a_job_that_was_given_up_and_crashes_is_logged(asyncio_only: None, logged: Any) -> None:
    block = Block()

    def crash() -> None:
        block()
        raise BoomError("LATE")

    async def handle(pools: Any) -> None:
        dispatcher = ToolDispatcher(ToolRegistry())
        dispatcher.registry.register(crash, name="Block")
        await outlived(dispatcher, block)
        block.go.set()

    for pools, said in ((None, "nobody waits for any more"), ({"tool": 1}, "nobody hears of it")):
        block = Block()
        await serve(lambda pools=pools: handle(pools), pools=pools)  # type: ignore[misc]
        assert block.ended.wait(LONG)
        lines: list[str] = []
        await until(lambda lines=lines: lines.extend(logged()) or lines)  # type: ignore[misc]
        (line,) = lines
        assert said in line
        assert "LATE" in line


async def test_a_coroutine_that_comes_of_a_job_that_was_given_up_is_closed(asyncio_only: None) -> None:
    block = Block()

    async def later() -> None: ...

    def begin() -> Any:
        block()
        return later()

    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry())
        dispatcher.registry.register(begin, name="Block")
        await outlived(dispatcher, block)
        block.go.set()

    await serve(handle)
    assert block.ended.wait(LONG)
    await turns()


@pytest.mark.parametrize("pools", [None, {"tool": 1}])
async def test_a_job_that_ends_as_it_is_given_up_is_not_lost(pools: Any, asyncio_only: None, logged: Any) -> None:
    """Its thread is done, and its caller has not heard of it yet."""
    block = Block()

    async def later() -> None: ...

    def crash() -> None:
        block()
        raise BoomError("LATE")

    def begin() -> Any:
        block()
        return later()

    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry())
        for name, tool in (("crash", crash), ("begin", begin)):
            block.started.clear()
            block.go.clear()
            block.ended.clear()
            dispatcher.registry.register(tool, name=name)
            task = spawn(dispatcher.dispatch(name))
            await until(block.started.is_set)
            block.go.set()
            assert block.ended.wait(LONG)
            time.sleep(0.05)  # noqa: ASYNC251 - the loop is to be held up until the thread is done
            await cancel(task)
            await turns()

    await serve(handle, pools=pools)
    lines = [line for line in logged() if "LATE" in line]
    assert len(lines) == 1


async def test_where_a_crash_cannot_be_logged_the_slot_is_given_back(asyncio_only: None) -> None:
    class Spoilt(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise ZeroDivisionError

    store, spoilt = HeldStore(), Spoilt()

    def crash() -> None:
        raise BoomError

    async def handle() -> None:
        log = logging.getLogger("asgi_context")
        log.addFilter(spoilt)
        try:
            with pytest.raises(ZeroDivisionError):
                await ToolDispatcher(ToolRegistry([crash]), **LIMITED).dispatch("crash")
        finally:
            log.removeFilter(spoilt)
        await turns()
        assert await store.is_free()

    await serve(handle, store=store)


@pytest.mark.parametrize("kind", [SystemExit, ValueError])
async def test_a_crash_whose_text_cannot_be_had_is_a_crash(kind: Any, asyncio_only: None, logged: Any) -> None:
    class Mute(Exception):  # noqa: N818 - says nothing
        def __str__(self) -> str:
            raise kind

    def crash() -> None:
        raise Mute

    assert (await ask(crash)).code == "tool_crashed"
    (line,) = logged()
    assert "(its text cannot be had)" in line


# --- callers that go

SPACES = [(("acme", "ann"), "tool_calls"), (("acme", None), "tool_calls_of_all")]
LIMITED: dict[str, Any] = {
    "user_limits": ToolLimits(at_once=1, per_minute=100),
    "tenant_limits": ToolLimits(at_once=1, per_minute=100),
}


class HeldStore(MemoryStore):
    """Holds up the answer to one of its calls."""

    def __init__(self, held: str = "") -> None:
        super().__init__()
        self.held, self.gate = held, Gate()
        self.asked: list[str] = []

    async def acquire(self, *arguments: Any) -> Any:
        return await self._answer("acquire", await super().acquire(*arguments))

    async def count(self, *arguments: Any) -> Any:
        return await self._answer("count", await super().count(*arguments))

    async def release(self, *arguments: Any) -> Any:
        return await self._answer("release", await super().release(*arguments))

    async def _answer(self, call: str, answer: Any) -> Any:
        self.asked.append(call)
        if f"{call} {self.asked.count(call)}" == self.held:
            await self.gate.wait()
        return answer

    async def is_free(self) -> bool:
        for space, name in SPACES:
            if not await MemoryStore.acquire(self, space, name, "another", 1, 60):
                return False
            await MemoryStore.release(self, space, name, "another")
        return True


@pytest.mark.parametrize(
    "held", ["acquire 1", "acquire 2", "count 1", "count 2", "release 1", "release 2", "permit", "tool", "begin"]
)
async def test_whoever_cancels_the_caller_at_any_point_gives_all_slots_back(held: str, asyncio_only: None) -> None:
    store = HeldStore(held)
    gate, began = store.gate, []

    async def permit(*_: object) -> bool:
        if store.held == "permit":
            await gate.wait()
        return True

    async def tool() -> str:
        began.append("tool")
        if store.held == "tool":
            await gate.wait()
        return "done"

    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry([tool]), permit=permit, **LIMITED)
        task = spawn(dispatcher.dispatch("tool"))
        if held != "begin":
            await soon(gate.reached)
            await cancel(task)
        elif not task.done():  # on a loop that begins tasks at once, it is
            await cancel(task)
        await turns()
        assert await store.is_free()
        assert asyncio.all_tasks() <= {asyncio.current_task()} | before
        store.held = ""
        assert (await dispatcher.dispatch("tool")).value == "done"

    before = asyncio.all_tasks()
    await serve(handle, store=store)
    assert began == ["tool"] * (
        1 + (held in {"tool", "release 1", "release 2"} or (held == "begin" and len(began) == 2))
    )


@pytest.mark.parametrize("held", ["acquire 1", "acquire 2", "count 1", "count 2", "permit"])
async def test_the_time_of_a_call_is_also_for_what_comes_before_the_tool(held: str, asyncio_only: None) -> None:
    store = HeldStore(held)

    async def permit(*_: object) -> bool:
        if store.held == "permit":
            await store.gate.wait()
        return True

    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry([add]), permit=permit, timeout=SHORT, **LIMITED)
        result = await dispatcher.dispatch("add", {"a": 1})
        assert (result.code, result.text) == ("tool_timeout", "The tool did not end in time.")
        assert await store.is_free()
        store.held = ""
        assert (await dispatcher.dispatch("add", {"a": 1}, timeout=LONG)).ok

    await serve(handle, store=store)


async def test_a_refused_caller_that_goes_leaves_no_slot_either(asyncio_only: None) -> None:
    store = HeldStore("release 1")

    async def handle() -> None:
        await MemoryStore.acquire(store, *SPACES[1], "another", 1, 60)
        task = spawn(ToolDispatcher(ToolRegistry([add]), **LIMITED).dispatch("add", {"a": 1}))
        await soon(store.gate.reached)
        await cancel(task)
        await turns()
        await MemoryStore.release(store, *SPACES[1], "another")
        assert await store.is_free()

    await serve(handle, store=store)


@pytest.mark.parametrize("pools", [None, {"tool": 1}])
@pytest.mark.parametrize("way", ["cancelled", "late"])
async def test_a_job_that_outlives_its_call_holds_its_slot_until_it_ends(
    way: str, pools: Any, asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    block, store = Block(), HeldStore()

    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry([block, add_later]), **LIMITED)
        if way == "late":
            await outlived(dispatcher, block)
        else:
            task = spawn(dispatcher.dispatch("Block"))
            await until(block.started.is_set)
            await cancel(task)
        await turns()
        assert not await store.is_free()
        assert (await dispatcher.dispatch("add_later", {"a": 1})).code == "too_many_calls"
        block.go.set()
        await until(lambda: store.asked[-2:] == ["release", "release"])
        assert await store.is_free()
        assert (await dispatcher.dispatch("add_later", {"a": 1})).ok

    await serve(handle, store=store, pools=pools)
    assert block.ended.wait(LONG)
    await turns()
    caplog.clear()  # the pool says that a result is lost


async def test_a_job_that_is_given_up_before_it_begins_never_begins_and_frees_its_slot(
    asyncio_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    block, store, ran = Block(), HeldStore(), []

    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry([block]), user_limits=ToolLimits(at_once=2))
        dispatcher.registry.register(lambda: ran.append(1), name="note")
        first = spawn(dispatcher.dispatch("Block"))
        await until(block.started.is_set)
        second = spawn(dispatcher.dispatch("note"))
        await until(lambda: store.asked.count("acquire") == 2)
        await turns()
        await cancel(second)
        await until(lambda: "release" in store.asked)
        block.go.set()
        assert (await first).value == "done"

    await serve(handle, store=store, pools={"tool": 1})
    assert ran == []


async def test_a_caller_without_limits_that_goes_leaves_nothing(asyncio_only: None) -> None:
    gate, ended = Gate(), []

    async def tool() -> None:
        try:
            await gate.wait()
        finally:
            ended.append("tool")

    async def handle() -> None:
        task = spawn(ToolDispatcher(ToolRegistry([tool])).dispatch("tool"))
        await soon(gate.reached)
        await cancel(task)

    await serve(handle)
    assert ended == ["tool"]


@pytest.mark.parametrize("outcome", ["a value", "a crash", "a tool error", "a group"])
async def test_a_tool_that_keeps_a_cancellation_to_itself_does_not_keep_it_from_its_caller(
    outcome: str, asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    gate, store = Gate(), HeldStore()

    async def stubborn() -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            if outcome == "a crash":
                raise BoomError from None
            if outcome == "a tool error":
                raise ToolError("no") from None
            if outcome == "a group":
                raise BaseExceptionGroup("several", [BoomError(), asyncio.CancelledError()]) from None
        return "value"

    async def handle() -> None:
        task = spawn(ToolDispatcher(ToolRegistry([stubborn]), **LIMITED).dispatch("stubborn"))
        await soon(gate.reached)
        await cancel(task)
        await turns()
        assert await store.is_free()

    await serve(handle, store=store)
    assert len(logged()) == (outcome in {"a crash", "a group"})


async def test_a_cancellation_that_the_caller_has_dealt_with_is_no_reason_to_cancel_calls(asyncio_only: None) -> None:
    async def handle() -> ToolResult:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        try:
            return await ToolDispatcher(ToolRegistry([add_later])).dispatch("add_later", {"a": 1})
        finally:
            task.uncancel()

    assert (await serve(handle)).value == 2


async def test_a_caller_that_was_cancelled_before_is_so_in_its_first_wait(asyncio_only: None) -> None:
    async def handle() -> None:
        async def caller() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await ToolDispatcher(ToolRegistry([add_later])).dispatch("add_later", {"a": 1})

        task = spawn(caller())
        await asyncio.wait([task])
        assert task.cancelled()

    await serve(handle)


@pytest.mark.parametrize("where", ["permit", "tool", "acquire 1", "release 1"])
async def test_a_call_that_is_closed_in_the_midst_ends_without_waiting_for_anything(
    where: str, asyncio_only: None
) -> None:
    """As the garbage collector does, in another Context."""
    store, ended = HeldStore(where), []
    gate = store.gate

    async def hold(name: str) -> bool:
        try:
            if where == name:
                await gate.wait()
        except GeneratorExit:
            ended.append("closed")
            raise
        return True

    async def handle() -> None:
        async def tool() -> bool:
            return await hold("tool")

        def permit(*_: object) -> Awaitable[bool]:
            return hold("permit")

        driven = Driven(ToolDispatcher(ToolRegistry([tool]), permit=permit, **LIMITED).dispatch("tool"))
        await driven.until(gate.reached)
        driven.coroutine.close()
        with pytest.raises(ToolCallNotBoundError):
            current_tool_call()

    await serve(handle, store=store)
    assert ended == ["closed"] * (where in {"permit", "tool"})


def test_a_job_may_outlive_its_event_loop() -> None:
    loop = asyncio.new_event_loop()

    def call() -> str:
        assert job.give_up(pytest.fail)
        loop.close()
        return "done"

    async def make() -> Job:
        return Job()

    job = loop.run_until_complete(make())
    assert job._work(call) == "done"


async def test_a_job_that_was_given_up_before_its_thread_has_begun_does_nothing(asyncio_only: None) -> None:
    ran: list[int] = []
    job = Job()
    assert not job.give_up(pytest.fail)
    assert await job.run(lambda: ran.append(1), None) is None
    assert ran == []


# --- whose


async def test_a_bridge_is_for_whom_it_was_made(asyncio_only: None) -> None:
    async def handle(system: ToolSystem) -> None:
        with unbound_context():
            alone = ToolDispatcher(system.registry, bridge=system.bridge)
        assert (await alone.dispatch("add", {"a": 1})).ok
        async with bind_context(Identity("acme", "bob")):
            with pytest.raises(ToolOwnerError):
                ToolDispatcher(system.registry, bridge=system.bridge)
            with pytest.raises(ToolOwnerError):
                await alone.dispatch("add", {"a": 1})

    chat = Chat([add], handle)
    assert [event["type"] for event in await chat.run()] == ["tool_started", "tool_completed"]


async def test_on_another_loop_than_the_connection_s_a_dispatcher_says_what_to_do(asyncio_only: None) -> None:
    async def elsewhere(dispatcher: ToolDispatcher) -> Any:
        with pytest.raises(BridgeLoopError, match=r"asyncio\.to_thread\(dispatcher\.sync\.dispatch"):
            await dispatcher.dispatch("add_later", {"a": 1})
        return await asyncio.to_thread(dispatcher.sync.dispatch, "add_later", {"a": 1})

    async def handle(system: ToolSystem) -> None:
        assert (await asyncio.to_thread(lambda: asyncio.run(elsewhere(system.dispatcher)))).value == 2

    chat = Chat([add_later], handle)
    assert [event["type"] for event in await chat.run()] == ["tool_started", "tool_completed"]


async def test_without_anybody_bound_no_tool_is_called(asyncio_only: None) -> None:
    dispatcher = ToolDispatcher(ToolRegistry([add]))
    with pytest.raises(ContextNotBoundError) as caught:
        await dispatcher.dispatch("add", {"a": 1})
    assert caught.value.wanted == "context"
    with unbound_context(), pytest.raises(ContextNotBoundError):
        await dispatcher.dispatch("add", {"a": 1})


@pytest.mark.parametrize(
    "other", [Identity("acme", "bob"), Identity("globex", "ann"), Identity("acme", None), Identity("globex", None)]
)
async def test_a_dispatcher_that_was_made_for_somebody_is_nobody_else_s(other: Identity, asyncio_only: None) -> None:
    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry([add]))
        with bind_context(other), pytest.raises(ToolOwnerError):
            await dispatcher.dispatch("add", {"a": 1})
        with bind_context(other):
            foreign = ToolDispatcher(ToolRegistry([add]))
            assert (await foreign.dispatch("add", {"a": 1})).ok
        with pytest.raises(ToolOwnerError):
            await foreign.dispatch("add", {"a": 1})
        with bind_context():
            assert (await dispatcher.dispatch("add", {"a": 1})).ok

    await serve(handle)


async def test_a_dispatcher_that_was_made_for_nobody_acts_for_whoever_is_bound(asyncio_only: None) -> None:
    def user() -> str | None:
        return current_context().user

    dispatcher = ToolDispatcher(ToolRegistry([user]))

    async def as_(name: str) -> Any:
        async with bind_context(Identity("acme", name)):
            await asyncio.sleep(0)
            return (await dispatcher.dispatch("user")).value

    assert await asyncio.gather(*(as_(str(n)) for n in range(20))) == [str(n) for n in range(20)]


async def test_what_was_revoked_calls_no_tool(asyncio_only: None) -> None:
    dispatcher = ToolDispatcher(ToolRegistry([add]))
    block = bind_context(ANN)
    context = contextvars.copy_context()
    context.run(block.__enter__)
    block.__exit__(None, None, None)

    async def call() -> None:
        with pytest.raises(ContextClosedError) as caught:
            await dispatcher.dispatch("add", {"a": 1})
        assert (caught.value.wanted, caught.value.why) == ("tools", "revoked")

    await asyncio.get_running_loop().create_task(call(), context=context)


async def test_a_closed_dispatcher_calls_no_more_and_what_has_begun_goes_on(asyncio_only: None) -> None:
    gate = Gate()

    async def wait() -> str:
        await gate.wait()
        return "done"

    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry([wait]))
        task = spawn(dispatcher.dispatch("wait"))
        await soon(gate.reached)
        dispatcher.close()
        with pytest.raises(ContextClosedError) as caught:
            await dispatcher.dispatch("wait")
        assert (caught.value.wanted, caught.value.why) == ("tools", "ended")
        gate.go.set()
        assert (await task).value == "done"

    await serve(handle)


async def test_limits_need_a_store(asyncio_only: None) -> None:
    with bind_context(ANN):
        for option in ("user_limits", "tenant_limits"):
            options: Any = {option: ToolLimits(per_minute=1)}
            with pytest.raises(StoreNotBoundError):
                await ToolDispatcher(ToolRegistry([add]), **options).dispatch("add", {"a": 1})


async def test_without_an_asyncio_loop_it_says_so(trio_only: None) -> None:
    dispatcher = ToolDispatcher(ToolRegistry([add, add_later]))
    with bind_context(ANN):
        for name in ("add", "add_later"):
            with pytest.raises(UnsupportedLoopError, match="ToolDispatcher needs a running asyncio event loop"):
                await dispatcher.dispatch(name, {"a": 1})
        with pytest.raises(ToolCallNotBoundError):
            current_tool_call()


# --- options and ids


async def test_an_existing_registry_is_the_one_that_is_used(asyncio_only: None) -> None:
    async def handle() -> None:
        registry = ToolRegistry()
        dispatcher = ToolDispatcher(registry)
        assert dispatcher.registry is registry
        assert (await dispatcher.dispatch("add", {"a": 1})).code == "tool_not_found"
        registry.register(add)
        assert (await dispatcher.dispatch("add", {"a": 1})).value == 2
        registry.clear()
        assert (await dispatcher.dispatch("add", {"a": 1})).code == "tool_not_found"
        assert ToolDispatcher().registry is not ToolDispatcher().registry

    await serve(handle)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"registry": [add]}, TypeError, "registry must be a ToolRegistry, not list"),
        ({"pool": 8}, TypeError, "pool must be the name of a pool, or None, not int"),
        ({"permit": True}, TypeError, "permit must be callable, not bool"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds, not str"),
        ({"timeout": None}, TypeError, "timeout must be a number of seconds, not NoneType"),
        ({"timeout": True}, TypeError, "timeout must be a number of seconds, not bool"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds"),
        ({"timeout": float("inf")}, ValueError, "timeout must be more than 0 seconds, and finite"),
        ({"timeout": 1e12}, ValueError, "timeout must be more than 0 seconds, and at most"),
        ({"user_limits": 10}, TypeError, "user_limits must be ToolLimits, not int"),
        ({"tenant_limits": {"at_once": 1}}, TypeError, "tenant_limits must be ToolLimits, not dict"),
    ],
)
def test_options_are_checked(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ToolDispatcher(**options)


@pytest.mark.parametrize(
    ("timeout", "error"), [("1", TypeError), (False, TypeError), (0, ValueError), (-1, ValueError), (1e12, ValueError)]
)
async def test_the_timeout_of_a_call_is_checked_before_anything_is_done(
    timeout: Any, error: type[Exception], asyncio_only: None
) -> None:
    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry([add]), user_limits=ToolLimits(per_minute=1))
        with pytest.raises(error, match="timeout"):
            await dispatcher.dispatch("add", {"a": 1}, timeout=timeout)
        assert (await dispatcher.dispatch("add", {"a": 1})).ok

    await serve(handle, store=MemoryStore())


async def test_ids_are_those_of_the_model_or_are_made(asyncio_only: None) -> None:
    async def handle() -> None:
        named, unnamed = ToolDispatcher(ToolRegistry([add]), correlation_id="c"), ToolDispatcher(ToolRegistry([add]))
        assert (await named.dispatch("add", {"a": 1}, call_id="call_7")).call_id == "call_7"
        assert (await named.dispatch("add", {"a": 1}, call_id="")).call_id == ""
        assert [(await named.dispatch(name)).call_id for name in ("add", "other")] == ["c.1", "c.2"]
        assert len(unnamed.correlation_id) == 36
        assert unnamed.correlation_id != ToolDispatcher().correlation_id
        assert (await unnamed.dispatch("add", {"a": 1})).call_id == f"{unnamed.correlation_id}.1"

    await serve(handle)


# --- events


class Chat:
    """A WebSocket on which a function is run, and what the client was sent."""

    def __init__(self, tools: Any, handle: Callable[[ToolSystem], Awaitable[Any]], **options: Any) -> None:
        self.handle, self.accepts = handle, True
        store, pools = options.pop("store", None), options.pop("pools", None)
        factory = ToolSystemFactory(tools, **options)
        self.middleware = mount(self.app, {ToolSystem: factory}, store=store, pools=pools)
        self.exchange = Exchange([{"type": "websocket.connect"}])
        self.id = ""

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if self.accepts:
            await send({"type": "websocket.accept"})
        system = await current_resource(ToolSystem)
        self.id = system.correlation_id
        await self.handle(system)
        await send({"type": "websocket.close", "code": 1000})

    async def run(self) -> list[Any]:
        async with asyncio.timeout(LONG):
            await self.middleware(websocket(*who()), self.exchange.receive, self.exchange.send)
            await self.middleware.close()
        return self.events

    @property
    def events(self) -> list[Any]:
        return [json.loads(message["text"]) for message in self.exchange.sent if message["type"] == "websocket.send"]

    def event(self, kind: str, tool: str, call_id: str = "1", **more: Any) -> dict[str, Any]:
        return {"type": kind, "tool": tool, "call_id": call_id, "correlation_id": self.id, **more}


async def test_a_call_is_told_from_its_beginning_to_its_end(asyncio_only: None) -> None:
    async def count() -> int:
        call = current_tool_call()
        for done in (1, 2):
            assert await call.progress(done=done, of="zwei ü")
        return 3

    def count_in_thread() -> int:
        assert current_tool_call().progress_from_thread(done=1)
        return 3

    async def handle(system: ToolSystem) -> None:
        assert (await system.dispatcher.dispatch("count", call_id="1")).value == 3
        assert (await system.dispatcher.dispatch("count_in_thread")).value == 3

    chat = Chat([count, count_in_thread], handle)
    assert await chat.run() == [
        chat.event("tool_started", "count"),
        chat.event("tool_progress", "count", data={"done": 1, "of": "zwei ü"}),
        chat.event("tool_progress", "count", data={"done": 2, "of": "zwei ü"}),
        chat.event("tool_completed", "count"),
        chat.event("tool_started", "count_in_thread", f"{chat.id}.1"),
        chat.event("tool_progress", "count_in_thread", f"{chat.id}.1", data={"done": 1}),
        chat.event("tool_completed", "count_in_thread", f"{chat.id}.1"),
    ]


async def test_a_call_that_fails_is_told_with_its_code_and_text_and_no_more(
    asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    async def refuse() -> None:
        raise ToolError("No such order.", code="order_not_found")

    async def crash() -> None:
        raise BoomError("SECRET")

    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def handle(system: ToolSystem) -> None:
        for name in ("refuse", "crash", "add", 'other"\\n'):
            await system.dispatcher.dispatch(name, call_id="1")
        await system.dispatcher.dispatch("wait", call_id="1", timeout=SHORT)

    chat = Chat([refuse, crash, wait, add], handle)
    unknown = "There is no tool of that name. There are: refuse, crash, wait, add."
    assert await chat.run() == [
        chat.event("tool_started", "refuse"),
        chat.event("tool_failed", "refuse", code="order_not_found", text="No such order."),
        chat.event("tool_started", "crash"),
        chat.event("tool_failed", "crash", code="tool_crashed", text="The tool failed."),
        chat.event("tool_failed", "add", code="arguments_invalid", text="The arguments do not fit.\na: Field required"),
        chat.event("tool_failed", 'other"\\n', code="tool_not_found", text=unknown),
        chat.event("tool_started", "wait"),
        chat.event("tool_failed", "wait", code="tool_timeout", text="The tool did not end in time."),
    ]
    assert len(logged()) == 1


async def test_after_its_end_nothing_is_told_of_a_call(asyncio_only: None) -> None:
    told: list[bool] = []
    block = Block()

    async def leaves_a_task() -> None:
        call = current_tool_call()

        async def later() -> None:
            await asyncio.sleep(SHORT)
            told.append(await call.progress(n=1))

        tasks.append(spawn(later()))

    def in_thread() -> None:
        call = current_tool_call()
        block()
        told.append(call.progress_from_thread(n=2))

    async def handle(system: ToolSystem) -> None:
        await system.dispatcher.dispatch("leaves_a_task")
        await tasks[0]
        await outlived(system.dispatcher, block, "in_thread")
        block.go.set()
        await until(lambda: len(told) == 2)

    tasks: list[Any] = []
    chat = Chat([leaves_a_task, in_thread], handle)
    kinds = [event["type"] for event in await chat.run()]
    assert kinds == ["tool_started", "tool_completed", "tool_started", "tool_failed"]
    assert told == [False, False]


async def test_a_thread_that_tells_as_its_call_ends_is_not_heard_after_it(asyncio_only: None) -> None:
    told: list[bool] = []
    block, over = Block(), threading.Event()

    def tells() -> None:
        call = current_tool_call()
        block.started.set()
        while not over.is_set():
            told.append(call.progress_from_thread(n=1))
        block.ended.set()

    async def handle(system: ToolSystem) -> None:
        for _ in range(20):
            for event in (over, block.started, block.ended):
                event.clear()
            await outlived(system.dispatcher, block, "tells")
            over.set()
            await until(block.ended.is_set)
            await turns()

    events = [event["type"] for event in await Chat([tells], handle).run()]
    ends = [at for at, kind in enumerate(events) if kind == "tool_failed"]
    assert len(ends) == 20
    assert all(events[at + 1 : at + 2] in ([], ["tool_started"]) for at in ends)
    assert told.count(True) == events.count("tool_progress")


async def test_an_end_that_finds_room_as_its_caller_goes_is_told_once(asyncio_only: None) -> None:
    async def handle(system: ToolSystem) -> None:
        filler = await full(system)
        filler.cancel()
        await turns()
        task = spawn(system.dispatcher.dispatch("other", call_id="1"))
        await turns()
        assert not task.done()
        stalled.gate.go.set()
        while not any(place.done() for place in system.bridge._events._room) and len(system.bridge._events._room):  # type: ignore[union-attr] # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    chat = Chat([add], handle)
    chat.exchange = stalled = Stalled()
    assert [event["type"] for event in await chat.run() if "n" not in event] == ["tool_failed"]


async def test_what_is_refused_has_not_started(asyncio_only: None) -> None:
    async def handle(system: ToolSystem) -> None:
        await system.dispatcher.dispatch("add", {"a": 1}, call_id="1")
        await system.dispatcher.dispatch("add", {"a": 2}, call_id="2")

    chat = Chat(
        [add],
        handle,
        permit=lambda context, name, arguments: arguments["a"] == 2,
        store=MemoryStore(),
        user_limits=ToolLimits(per_minute=1),
    )
    assert [(event["type"], event["call_id"]) for event in await chat.run()] == [
        ("tool_failed", "1"),
        ("tool_started", "2"),
        ("tool_completed", "2"),
    ]


async def test_a_caller_that_goes_ends_the_call_for_the_client_too(asyncio_only: None) -> None:
    gate = Gate()

    async def wait() -> None:
        await gate.wait()

    async def handle(system: ToolSystem) -> None:
        task = spawn(system.dispatcher.dispatch("wait", call_id="1"))
        await soon(gate.reached)
        await cancel(task)

    chat = Chat([wait], handle)
    assert await chat.run() == [
        chat.event("tool_started", "wait"),
        chat.event("tool_failed", "wait", code="cancelled", text=""),
    ]


async def test_a_caller_that_goes_while_slots_are_given_back_ends_the_call_for_the_client(asyncio_only: None) -> None:
    store = HeldStore("release 1")

    async def handle(system: ToolSystem) -> None:
        task = spawn(system.dispatcher.dispatch("add_later", {"a": 1}, call_id="1"))
        await soon(store.gate.reached)
        await cancel(task)
        await turns()
        assert await store.is_free()

    chat = Chat([add_later], handle, store=store, **LIMITED)
    assert [event["type"] for event in await chat.run()] == ["tool_started", "tool_failed"]


class Stalled(Exchange):
    """Its client does not read until it is let go."""

    def __init__(self) -> None:
        super().__init__([{"type": "websocket.connect"}])
        self.gate = Gate()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            await self.gate.wait()
        await super().send(message)


async def test_a_client_that_does_not_read_holds_a_call_up_no_longer_than_its_time(asyncio_only: None) -> None:
    """Else its slot would be another's before the tool has begun."""
    ran: list[int] = []
    store = HeldStore()

    async def note() -> None:
        ran.append(1)

    async def handle(system: ToolSystem) -> None:
        filler = await full(system)
        task = spawn(system.dispatcher.dispatch("note", call_id="1", timeout=SHORT))
        await until(lambda: store.asked.count("release") == 2)
        assert ran == []
        stalled.gate.go.set()
        assert (await task).code == "tool_timeout"
        await filler

    chat = Chat([note], handle, store=store, **LIMITED)
    chat.exchange = stalled = Stalled()
    assert [event["type"] for event in await chat.run() if "n" not in event] == ["tool_failed"]


async def test_where_the_client_goes_that_did_not_read_a_call_still_gives_its_result(asyncio_only: None) -> None:
    gate = Gate()

    async def work() -> str:
        await gate.wait()
        return "done"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        system = await current_resource(ToolSystem)
        task = spawn(system.dispatcher.dispatch("work"))
        await soon(gate.reached)
        filler = await full(system)
        gate.go.set()
        await turns()
        assert not task.done()
        assert (await receive())["type"] == "websocket.disconnect"
        assert (await task).value == "done"
        assert isinstance((await settle(filler))[0], BridgeClosedError)

    stalled = Stalled()
    stalled.to_receive.append({"type": "websocket.disconnect", "code": 1001})
    async with asyncio.timeout(LONG):
        await mount(app, {ToolSystem: ToolSystemFactory([work])})(websocket(*who()), stalled.receive, stalled.send)


async def full(system: ToolSystem) -> Any:
    """Fill the bridge; what was too much is sent by a task."""

    async def fill() -> None:
        assert system.bridge is not None
        for number in range(MANY):
            await system.bridge.send_json({"n": number})

    task = spawn(fill())
    await turns(MANY)
    assert not task.done()
    return task


MANY = 300


async def test_a_client_that_does_not_read_holds_up_no_result_for_long(
    asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_context.tools._dispatcher._ROOM", SHORT)

    async def handle(system: ToolSystem) -> None:
        filler = await full(system)
        assert (await system.dispatcher.dispatch("other", call_id="1")).code == "tool_not_found"
        assert not filler.done()
        stalled.gate.go.set()
        await filler

    chat = Chat([add], handle)
    chat.exchange = stalled = Stalled()
    assert [event["type"] for event in await chat.run() if "n" not in event] == ["tool_failed"]


async def test_a_caller_that_goes_while_a_client_does_not_read_still_leaves_the_end_of_the_call(
    asyncio_only: None,
) -> None:
    systems: list[ToolSystem] = []
    fillers: list[Any] = []

    async def fill() -> None:
        fillers.append(await full(systems[0]))

    async def handle(system: ToolSystem) -> None:
        systems.append(system)
        task = spawn(system.dispatcher.dispatch("fill", call_id="1"))
        await until(lambda: fillers)
        await turns()
        assert not task.done()
        await cancel(task)
        stalled.gate.go.set()
        await fillers[0]

    chat = Chat([fill], handle)
    chat.exchange = stalled = Stalled()
    events = await chat.run()
    assert [event["type"] for event in events if "n" not in event] == ["tool_started", "tool_completed"]
    assert [event["n"] for event in events if "n" in event] == [*range(MANY)]


async def test_a_websocket_that_was_not_accepted_does_not_disturb_a_tool(asyncio_only: None) -> None:
    told: list[bool] = []

    async def tool() -> int:
        told.append(await current_tool_call().progress(a=1))
        return 1

    def in_thread() -> int:
        told.append(current_tool_call().progress_from_thread(a=1))
        return 1

    async def handle(system: ToolSystem) -> None:
        for name in ("tool", "in_thread"):
            assert (await system.dispatcher.dispatch(name)).value == 1

    chat = Chat([tool, in_thread], handle)
    chat.accepts = False
    assert await chat.run() == []
    assert told == [False, False]


@pytest.mark.parametrize("way", ["by the app", "by the client"])
async def test_a_websocket_that_is_closed_while_a_tool_runs_does_not_disturb_it(way: str, asyncio_only: None) -> None:
    told: list[bool] = []
    gate = Gate()

    async def tool() -> str:
        told.append(await current_tool_call().progress(n=1))
        await gate.wait()
        told.append(await current_tool_call().progress(n=2))
        return "done"

    def in_thread() -> str:
        told.append(current_tool_call().progress_from_thread(n=3))
        return "done"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        dispatcher = (await current_resource(ToolSystem)).dispatcher
        task = spawn(dispatcher.dispatch("tool"))
        await soon(gate.reached)
        await turns()  # so that what it has told by now goes out
        if way == "by the app":
            await send({"type": "websocket.close", "code": 1000})
        else:
            assert (await receive())["type"] == "websocket.disconnect"
        gate.go.set()
        assert (await task).value == "done"
        assert (await dispatcher.dispatch("in_thread")).value == "done"

    exchange = Exchange([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1001}])
    async with asyncio.timeout(LONG):
        middleware = mount(app, {ToolSystem: ToolSystemFactory([tool, in_thread])})
        await middleware(websocket(*who()), exchange.receive, exchange.send)
    sent = [json.loads(message["text"])["type"] for message in exchange.sent if message["type"] == "websocket.send"]
    assert sent == ["tool_started", "tool_progress"]
    assert told == [True, False, False]


async def test_without_a_websocket_there_is_nobody_to_tell(asyncio_only: None) -> None:
    async def tool() -> bool:
        return await current_tool_call().progress(a=1)

    def in_thread() -> bool:
        return current_tool_call().progress_from_thread(a=1)

    assert (await ask(tool)).value is False
    assert (await ask(in_thread)).value is False


async def test_progress_without_a_json_form_is_the_tool_s_mistake(
    asyncio_only: None, logged: Callable[[], list[str]]
) -> None:
    async def tool() -> None:
        await current_tool_call().progress(what=object())

    async def handle(system: ToolSystem) -> None:
        assert (await system.dispatcher.dispatch("tool")).code == "tool_crashed"

    chat = Chat([tool], handle)
    assert [event["type"] for event in await chat.run()] == ["tool_started", "tool_failed"]
    assert len(logged()) == 1
