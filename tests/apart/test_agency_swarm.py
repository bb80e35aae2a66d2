"""Tools that are Agency Swarm's and ours, called as an agent of Agency Swarm's calls them.

Not among the other tests: that package pins much of what they need. ``bash .ci/run agency-swarm`` makes an environment.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from agency_swarm import Agent
from agency_swarm.tools import BaseTool, ToolFactory
from agents import RunContextWrapper
from agents.tool import invoke_function_tool
from agents.tool_context import ToolContext
from openai.types.responses import ResponseFunctionToolCall
from pydantic import Field

from asgi_context import ContextMiddleware, Identity, MemoryStore, SharedState, bind_context, from_header
from asgi_context.errors import ContextNotBoundError, ToolBlockingError
from asgi_context.tools import AsyncBaseTool, ToolDispatcher, ToolRegistry

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


seen: list[tuple[str, str]] = []


class OursFirst(AsyncBaseTool, BaseTool):
    """Remember the user's favourite colour."""

    colour: str = Field(description="in one word")

    async def _arun(self) -> str:
        seen.append(("loop", threading.current_thread().name))
        await asyncio.sleep(0)
        await self.ss.update_field("profile", "colour", self.colour)
        return f"{self.colour} for {self.ss!r}"


class TheirsFirst(BaseTool, AsyncBaseTool):
    """Remember the user's favourite colour."""

    colour: str = Field(description="in one word")

    async def _arun(self) -> str:
        await self.ss.update_field("profile", "colour", self.colour)
        return f"{self.colour} for {self.ss!r}"


class InAThread(AsyncBaseTool, BaseTool):
    """Remember the user's favourite colour."""

    colour: str = Field(description="in one word")

    def run(self) -> str:
        seen.append(("thread", threading.current_thread().name))
        self.update_field("profile", "colour", self.colour)
        return f"{self.colour} for {self.ss!r}"


KINDS = [OursFirst, TheirsFirst, InAThread]


def called_by_an_agent(kind: type[BaseTool]) -> Callable[[str], Awaitable[Any]]:
    tool = ToolFactory.adapt_base_tool(kind)

    async def call(colour: str) -> Any:
        text = json.dumps({"colour": colour})
        asked = ResponseFunctionToolCall(arguments=text, call_id="c1", name=tool.name, type="function_call")
        context = ToolContext.from_agent_context(RunContextWrapper(context=None), "c1", tool_call=asked)
        return await invoke_function_tool(function_tool=tool, context=context, arguments=text)

    return call


@pytest.mark.parametrize("kind", KINDS)
async def test_it_acts_for_whoever_is_bound(kind: type[BaseTool]) -> None:
    store, call = MemoryStore(), called_by_an_agent(kind)

    async def be(user: str) -> str:
        with bind_context(Identity("acme", user), store=store):
            return str(await call(f"colour of {user}"))

    users = [f"user{number}" for number in range(20)]
    answers = await asyncio.gather(*map(be, users))
    for user, answer in zip(users, answers, strict=True):
        assert answer == f"colour of {user} for {SharedState(store, 'acme', user)!r}"
        assert await SharedState(store, "acme", user).get("profile") == {"colour": f"colour of {user}"}


@pytest.mark.parametrize("kind", KINDS)
async def test_it_acts_for_whoever_a_request_is_from(kind: type[BaseTool]) -> None:
    store, call = MemoryStore(), called_by_an_agent(kind)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answers.append(await call("green"))

    async def unused(*_: Any) -> Any:
        raise AssertionError

    answers: list[Any] = []
    middleware = ContextMiddleware(app, tenant=from_header("t"), user=from_header("u"), store=store)
    headers = [(b"t", b"acme"), (b"u", b"ann")]
    await middleware({"type": "http", "method": "GET", "path": "/", "headers": headers}, unused, unused)
    assert answers == [f"green for {SharedState(store, 'acme', 'ann')!r}"]


async def test_coroutines_run_on_the_apps_event_loop_and_all_else_in_a_thread() -> None:
    seen.clear()
    with bind_context(Identity("acme", "ann"), store=MemoryStore()):
        await called_by_an_agent(OursFirst)("green")
        await called_by_an_agent(InAThread)("green")
    here = threading.current_thread().name
    assert seen[0] == ("loop", here)
    assert seen[1][0] == "thread"
    assert seen[1][1] != here


@pytest.mark.parametrize("kind", KINDS)
async def test_an_agent_takes_it_and_the_model_is_told_of_its_fields_alone(kind: type[BaseTool]) -> None:
    agent = Agent(name="one", instructions="none", tools=[kind])
    (tool,) = agent.tools
    assert tool.name == kind.__name__
    assert tool.description == "Remember the user's favourite colour."
    assert list(tool.params_json_schema["properties"]) == ["colour"]


@pytest.mark.parametrize("kind", [OursFirst, TheirsFirst])
async def test_on_the_loops_own_thread_it_says_what_to_write(kind: Any) -> None:
    with bind_context(Identity("acme", "ann"), store=MemoryStore()):
        with pytest.raises(ToolBlockingError, match=r"await tool\.arun\(\)"):
            kind(colour="green").run()
        assert "green" in await kind(colour="green").arun()


@pytest.mark.parametrize("kind", KINDS)
async def test_unbound_it_raises(kind: Any) -> None:
    with pytest.raises(ContextNotBoundError):
        await kind(colour="green").arun()


@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_a_tool_of_our_dispatcher_too(kind: Any) -> None:
    with bind_context(Identity("acme", "ann"), store=MemoryStore()):
        result = await ToolDispatcher(ToolRegistry([kind])).dispatch(kind.__name__, {"colour": "green"})
        assert result.ok, result.text
        assert "green" in result.value
