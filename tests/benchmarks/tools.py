"""What calling a tool costs: this package's dispatcher beside those of agent frameworks.

Run by ``python tests/benchmarks/tools.py``. The tool adds two numbers; each framework calls it by name with arguments in a
dict or as JSON text, whichever it takes when a model has asked, without a model and without a network. All turns are
interleaved, in an order that changes; a figure is the median of all turns, and a difference that to the bare call. What
the frameworks do for it differs: ours keeps limits per user and sends two events over a WebSocket where the row says so,
the others do neither. A framework that is not installed is named and left out (extra ``benchmark-tools``).
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, TypeAlias

from asgi_context import ContextMiddleware, current_resource, from_header, run_in_pool
from asgi_context.tools import AsyncBaseTool, ToolDispatcher, ToolLimits, ToolSystem, ToolSystemFactory

Call: TypeAlias = Callable[[], Awaitable[Any]]

ARGUMENTS = {"a": 1, "b": 2}
TEXT = json.dumps(ARGUMENTS)
LIMITS = ToolLimits(at_once=1000, per_minute=10**9)
BARE = {"async": "await add(1, 2)", "sync": "run_in_executor"}


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def add_sync(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Add(AsyncBaseTool):
    """Add two numbers."""

    a: int
    b: int

    async def _arun(self) -> int:
        return self.a + self.b


class AddSync(AsyncBaseTool):
    """Add two numbers."""

    a: int
    b: int

    def run(self) -> int:
        return self.a + self.b


def with_pydantic_ai(function: Any) -> Call:
    from pydantic_ai import RunContext, RunUsage
    from pydantic_ai.messages import ToolCallPart
    from pydantic_ai.models.test import TestModel
    from pydantic_ai.tool_manager import ToolManager
    from pydantic_ai.toolsets import FunctionToolset

    context = RunContext(deps=None, model=TestModel(), usage=RunUsage(), run_step=1)
    manager: Any = None
    part = ToolCallPart(function.__name__, ARGUMENTS, tool_call_id="c1")

    async def call() -> Any:
        nonlocal manager
        if manager is None:
            manager = await ToolManager(FunctionToolset([function])).for_run_step(context)
        return await manager.handle_call(part)

    return call


def with_openai_agents(function: Any) -> Call:
    from agents import RunContextWrapper, function_tool
    from agents.tool import invoke_function_tool
    from agents.tool_context import ToolContext
    from openai.types.responses import ResponseFunctionToolCall

    tool = function_tool(function)
    asked = ResponseFunctionToolCall(arguments=TEXT, call_id="c1", name=function.__name__, type="function_call")
    run: Any = RunContextWrapper(context=None)

    def call() -> Awaitable[Any]:
        context = ToolContext.from_agent_context(run, "c1", tool_call=asked)
        return invoke_function_tool(function_tool=tool, context=context, arguments=TEXT)

    return call


def with_langchain(function: Any) -> Call:
    from langchain_core.tools import StructuredTool

    how = {"coroutine" if asyncio.iscoroutinefunction(function) else "func": function}
    tool = StructuredTool.from_function(**how)
    asked = {"type": "tool_call", "name": function.__name__, "args": ARGUMENTS, "id": "c1"}
    return lambda: tool.ainvoke(asked)


def with_mcp(function: Any) -> Call:
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("benchmark", log_level="ERROR")
    server.add_tool(function)
    return lambda: server.call_tool(function.__name__, ARGUMENTS)


RIVALS = {
    "pydantic-ai-slim": with_pydantic_ai,
    "openai-agents": with_openai_agents,
    "langchain-core": with_langchain,
    "mcp": with_mcp,
}


def rivals() -> dict[tuple[str, str], Call]:
    found: dict[tuple[str, str], Call] = {}
    for name, make in RIVALS.items():
        try:
            for how, function in (("async", add), ("sync", add_sync)):
                found[how, f"{name} {version(name)}"] = make(function)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def ours(system: ToolSystem) -> dict[tuple[str, str], Call]:
    registry, bridge = system.registry, system.bridge
    plain = ToolDispatcher(registry)
    limited = ToolDispatcher(registry, user_limits=LIMITS)
    telling = ToolDispatcher(registry, bridge=bridge)
    whole = ToolDispatcher(registry, bridge=bridge, user_limits=LIMITS)
    return {
        ("async", "ours, a function"): lambda: plain.dispatch("add", ARGUMENTS),
        ("async", "ours, JSON text"): lambda: plain.dispatch("add", TEXT),
        ("async", "ours, with limits"): lambda: limited.dispatch("add", ARGUMENTS),
        ("async", "ours, with events"): lambda: telling.dispatch("add", ARGUMENTS),
        ("async", "ours, limits and events"): lambda: whole.dispatch("add", ARGUMENTS),
        ("async", "ours, a class, all of it"): lambda: whole.dispatch("Add", ARGUMENTS),
        ("sync", "run_in_pool"): lambda: run_in_pool("tool", add_sync, 1, 2),
        ("sync", "ours, a function"): lambda: plain.dispatch("add_sync", ARGUMENTS),
        ("sync", "ours, limits and events"): lambda: whole.dispatch("add_sync", ARGUMENTS),
        ("sync", "ours, a class, all of it"): lambda: whole.dispatch("AddSync", ARGUMENTS),
    }


def bare() -> dict[tuple[str, str], Call]:
    pool = ThreadPoolExecutor(4)
    loop = asyncio.get_running_loop()
    return {
        ("async", BARE["async"]): lambda: add(1, 2),
        ("sync", BARE["sync"]): lambda: loop.run_in_executor(pool, add_sync, 1, 2),
        ("sync", "to_thread"): lambda: asyncio.to_thread(add_sync, 1, 2),
    }


async def measure(calls: dict[tuple[str, str], Call], rounds: int, count: int) -> dict[tuple[str, str], list[float]]:
    """Give microseconds per call of each turn."""
    figures: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    order = list(calls)
    for number in range(rounds + 1):
        random.shuffle(order)
        for key in order:
            call = calls[key]
            began = time.perf_counter()
            for _ in range(count):
                await call()
            if number:  # the first is to warm up
                figures[key].append((time.perf_counter() - began) / count * 1e6)
            await asyncio.sleep(0)
    return figures


def show(figures: dict[tuple[str, str], list[float]]) -> None:
    for how, label in BARE.items():
        base = statistics.median(figures[how, label])
        ours_whole = statistics.median(figures[how, "ours, limits and events"])
        print(f"\n{how + ' tool':<34} {'us':>8} {'(p10':>8} {'p90)':>8} {'above bare':>11} {'x ours':>8}")
        for (kind, name), values in figures.items():
            if kind == how:
                middle = statistics.median(values)
                tenths = statistics.quantiles(values, n=10)
                print(
                    f"{name:<34} {middle:8.2f} {tenths[0]:8.2f} {tenths[-1]:8.2f} {middle - base:11.2f}"
                    f" {middle / ours_whole:8.2f}"
                )
    print("\nx ours: beside ours with limits and events")


async def main(rounds: int, count: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        system = await current_resource(ToolSystem)
        show(await measure({**bare(), **ours(system), **rivals()}, rounds, count))

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(_: Any) -> None:
        pass

    factory = ToolSystemFactory([add, add_sync, Add, AddSync])
    headers = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}
    middleware = ContextMiddleware(app, **headers, resources={ToolSystem: factory}, pools={"tool": 4})
    scope = {"type": "websocket", "path": "/", "query_string": b"", "extensions": {}}
    await middleware(scope | {"headers": [(b"x-tenant-id", b"acme"), (b"x-user-id", b"ann")]}, receive, send)
    await middleware.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=500, help="calls in a turn")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.count))
