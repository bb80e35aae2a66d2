"""Calling tools from threads, as an agent does that blocks."""

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from resources import quiet_loop
from tool_calls import ANN, LONG, SHORT, serve, until

from asgi_context import Identity, MemoryStore, bind_context, current_context, run_in_executor, run_in_pool
from asgi_context.errors import (
    ContextNotBoundError,
    ToolBlockingError,
    ToolOwnerError,
    ToolRunError,
    ToolTimeoutError,
)
from asgi_context.tools import AsyncBaseTool, ToolDispatcher, ToolLimits, ToolRegistry, ToolResult, current_tool_call

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)

where: list[tuple[str, str]] = []


async def later(text: str) -> str:
    """Run on the loop."""
    where.append(("later", threading.current_thread().name))
    await asyncio.sleep(0)
    return f"{text} of {current_context().user}"


def at_once(text: str) -> str:
    """Run in a thread."""
    where.append(("at once", threading.current_thread().name))
    return f"{text} of {current_context().user}"


class Remember(AsyncBaseTool):
    """Remember something."""

    text: str

    async def _arun(self) -> str:
        await self.ss.update_field("s", "text", self.text)
        return str(await self.ss.get_field("s", "text"))


@pytest.mark.parametrize("pools", [None, {"user": 2, "tool": 2}])
async def test_an_agent_that_blocks_calls_tools_for_whoever_asked(
    pools: dict[str, Any] | None, asyncio_only: None
) -> None:
    where.clear()

    def think(dispatcher: ToolDispatcher) -> list[ToolResult]:
        return [
            dispatcher.sync.dispatch("later", {"text": "a"}),
            dispatcher.sync.dispatch("at_once", '{"text": "b"}', call_id="mine"),
            dispatcher.sync.dispatch("Remember", {"text": "c"}, timeout=LONG),
            dispatcher.sync.dispatch("Remember", {"text": 5}),
            dispatcher.sync.dispatch("nothing"),
        ]

    async def handle() -> list[ToolResult]:
        dispatcher = ToolDispatcher(ToolRegistry([later, at_once, Remember]))
        if pools is None:
            return await run_in_executor(None, think, dispatcher)
        return await run_in_pool("user", think, dispatcher)

    results = await serve(handle, pools=pools, store=MemoryStore())
    assert [result.value for result in results] == ["a of ann", "b of ann", "c", None, None]
    assert [result.code for result in results] == [None, None, None, "arguments_invalid", "tool_not_found"]
    assert results[1].call_id == "mine"
    here = threading.current_thread().name
    assert where[0] == ("later", here)
    assert where[1][1] != here


async def test_on_a_loops_own_thread_it_says_what_to_write(asyncio_only: None) -> None:
    async def handle() -> None:
        with pytest.raises(ToolBlockingError, match=r"write `await dispatcher\.dispatch\(name, arguments\)`"):
            ToolDispatcher(ToolRegistry([later])).sync.dispatch("later", {"text": "a"})

    await serve(handle)


async def test_a_tool_that_takes_too_long_is_a_result_there_too(asyncio_only: None) -> None:
    async def hang() -> None:
        await asyncio.sleep(LONG)

    async def handle() -> ToolResult:
        dispatcher = ToolDispatcher(ToolRegistry([hang]), timeout=SHORT)
        result: ToolResult = await run_in_executor(None, dispatcher.sync.dispatch, "hang")
        return result

    assert (await serve(handle)).code == "tool_timeout"


async def test_where_nothing_comes_of_it_for_some_seconds_more_it_raises(
    asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the store hangs that is to be told that the call has ended."""
    monkeypatch.setattr("asgi_context.tools._dispatcher._GRACE", 0.05)
    ended: list[str] = []

    class Hangs(MemoryStore):
        async def release(self, *arguments: Any) -> bool:
            if ended:
                return await super().release(*arguments)
            try:
                await asyncio.sleep(LONG)
            finally:
                ended.append("release")
            return True

    async def handle() -> None:
        dispatcher = ToolDispatcher(ToolRegistry([later]), user_limits=ToolLimits(at_once=9), timeout=0.05)
        with pytest.raises(ToolTimeoutError, match="the tool later did not run to its end: it did not answer within"):
            await run_in_executor(None, dispatcher.sync.dispatch, "later", {"text": "a"})
        await until(lambda: ended)

    await serve(handle, store=Hangs())


def test_where_the_loop_ends_meanwhile_it_raises() -> None:
    asked, raised = threading.Event(), list[BaseException]()

    async def hang() -> None:
        asked.set()
        await asyncio.sleep(LONG)

    def think(dispatcher: ToolDispatcher) -> None:
        try:
            dispatcher.sync.dispatch("hang")
        except ToolRunError as error:
            raised.append(error)

    async def main() -> threading.Thread:
        with bind_context(ANN, store=MemoryStore()):
            context = contextvars.copy_context()
            thread = threading.Thread(target=context.run, args=(think, ToolDispatcher(ToolRegistry([hang]))))
            thread.start()
            await asyncio.to_thread(asked.wait, LONG)
        return thread

    asyncio.run(main()).join(LONG)
    assert [type(error) for error in raised] == [ToolRunError]


async def test_in_a_script_without_a_loop_it_runs_on_one_of_its_own(asyncio_only: None) -> None:
    def script() -> ToolResult:
        with bind_context(ANN, store=MemoryStore()):
            return ToolDispatcher(ToolRegistry([Remember])).sync.dispatch("Remember", {"text": "a"})

    assert (await asyncio.to_thread(script)).value == "a"


async def test_what_dispatch_raises_comes_as_it_is(asyncio_only: None) -> None:
    dispatcher = ToolDispatcher(ToolRegistry([later]))
    with pytest.raises(ContextNotBoundError):
        await asyncio.to_thread(dispatcher.sync.dispatch, "later", {"text": "a"})

    async def handle() -> None:
        own = ToolDispatcher(ToolRegistry([later]))
        with bind_context(Identity("acme", "bob")), pytest.raises(ToolOwnerError):
            await run_in_executor(None, own.sync.dispatch, "later", {"text": "a"})
        with pytest.raises(ValueError, match="timeout must be more than 0"):
            await run_in_executor(None, lambda: own.sync.dispatch("later", {"text": "a"}, timeout=0))

    await serve(handle)


async def test_a_tool_may_call_others_from_its_thread(asyncio_only: None) -> None:
    ids: list[str] = []

    def outer() -> str:
        ids.append(current_tool_call().call_id)
        inner = held[0].sync.dispatch("later", {"text": "a"}, call_id="inner")
        ids.append(current_tool_call().call_id)
        return str(inner.value)

    held: list[ToolDispatcher] = []

    async def handle() -> ToolResult:
        held.append(ToolDispatcher(ToolRegistry([outer, later])))
        return await held[0].dispatch("outer", {}, call_id="outer")

    result = await serve(handle, store=MemoryStore())
    assert result.value == "a of ann"
    assert ids == ["outer", "outer"]
