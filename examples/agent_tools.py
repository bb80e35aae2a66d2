"""Two tenants talk to an agent at once, over WebSockets: whose tools act, and whose state do they keep?

    python examples/agent_tools.py                                   takes a few seconds; state is kept in memory
    python examples/agent_tools.py --redis redis://localhost:6379    the same, kept in Redis

The first half is an app, and shows how tools are written and called. Nothing in it is handed a tenant or a user: each
message says whose it is, and the agent that blocks in a thread, the tools that it calls, and what these call in other
threads, ask the context. The second half are two tenants, of whom each has two users on one connection; what these say
and are told is printed as one timeline. Exit status 1 if anybody's answer was not their own.

What it needs, in the checkout: pip install ".[examples,tools]"; for --redis, also ".[redis]"
"""

import argparse
import asyncio
import json
import re
import socket
import sys
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from pydantic import Field
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from asgi_context import (
    ContextMiddleware,
    MemoryStore,
    Store,
    current_resource,
    current_state,
    json_message,
    run_in_pool,
)
from asgi_context.tools import (
    AsyncBaseTool,
    ToolDispatcher,
    ToolError,
    ToolLimits,
    ToolSystem,
    ToolSystemFactory,
    current_tool_call,
)

# The tools.


class Remember(AsyncBaseTool):
    """Remember the user's favourite colour."""

    colour: str = Field(description="the colour, in one word", max_length=20)

    async def _arun(self) -> str:
        """Run on the event loop of the app."""
        await self.ss.update_field("profile", "colour", self.colour)
        times = await self.ss.increment("profile", "changes")
        return f"{self.colour}, change {times}"


class Recall(AsyncBaseTool):
    """Say what the user's favourite colour is."""

    def run(self) -> str:
        """Run in a thread of the pool of tools."""
        profile = self.get_state("profile")
        if profile is None:
            raise ToolError(UNKNOWN)
        self.update_field("profile", "recalls", profile.get("recalls", 0) + 1)
        return str(profile["colour"])


class Report(AsyncBaseTool):
    """Write a report on what is known of the user."""

    async def _arun(self) -> str:
        """Leave the heavy work to a pool of its own, and tell how far it is."""
        call = current_tool_call()
        await call.progress(step="gathering", of=2)
        size = await run_in_pool("heavy", self._compress)
        await call.progress(step="writing", of=2)
        await self.ss.update_field("reports", "size", size)
        return f"{size} bytes"

    def _compress(self) -> int:
        profile = self.get_state("profile") or {}  # from a thread: it blocks, and is of the same user
        return len(zlib.compress(json.dumps(profile).encode() * 50_000, level=9))


async def visits(of: int = 1) -> int:
    """Count the visits of all users of the tenant."""
    return int(await current_state().tenant_wide.increment("visits", "count", of))


# The app.


def decide(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Choose tools, in place of a model."""
    colour = re.search(r"colour is (\w+)", text)
    wanted: list[tuple[str, dict[str, Any]]] = [("visits", {})]
    if colour:
        wanted.append(("Remember", {"colour": colour[1]}))
    if "report" in text:
        wanted.append(("Report", {}))
    if text.endswith("?"):
        wanted.append(("Recall", {}))
    return wanted


def think(text: str, tools: ToolDispatcher) -> list[str]:
    """Be an agent that blocks, as most are: this runs in a thread of the pool of users."""
    return [tools.sync.dispatch(name, arguments).for_model() for name, arguments in decide(text)]


async def talk(websocket: WebSocket) -> None:
    """Answer messages. Each is bound while it is handled, and has tools of its own."""
    await websocket.accept()
    async for message in websocket.iter_json():
        tools = await current_resource(ToolSystem)
        answer = await run_in_pool("user", think, message["text"], tools.dispatcher)
        await websocket.send_json({"type": "answer", "text": answer})


def make_app(store: Store) -> ASGIApp:
    """Make the app."""
    tools = ToolSystemFactory([Remember, Recall, Report, visits], user_limits=ToolLimits(at_once=4, per_minute=100))
    return ContextMiddleware(
        Starlette(routes=[WebSocketRoute("/", talk)]),
        # To try things out: whoever connects may name any user. In earnest, a token says who it is.
        message=json_message(tenant="tenant_id", user="user_id"),
        store=store,
        resources={ToolSystem: tools},
        pools={"user": 8, "tool": 8, "heavy": 2},  # a job may wait for jobs of the pools that stand after its own
    )


# Two tenants, with two users each, who share a connection.

TEXTS = [
    ("ann", "What is my colour?"),
    ("ann", "My colour is {colour}."),
    ("bob", "What is my colour?"),
    ("ann", "Write a report."),
    ("ann", "What is my colour?"),
]
COLOURS = {"acme": "red", "globex": "green"}
UNKNOWN = "You have not told me any colour yet."


async def be_user(url: str, tenant: str, timeline: list[tuple[float, str, str]]) -> list[str]:
    """Send messages, note all that comes, and give the answers."""
    answers: list[str] = []
    async with connect(url, proxy=None) as websocket:
        for user, text in TEXTS:
            said = text.format(colour=COLOURS[tenant])
            timeline.append((time.perf_counter(), tenant, f"[bold]{user}> {said}[/]"))
            await websocket.send(json.dumps({"tenant_id": tenant, "user_id": user, "text": said}))
            event: dict[str, Any] = {}
            while event.get("type") != "answer":
                event = json.loads(await websocket.recv())
                timeline.append((time.perf_counter(), tenant, describe(event)))
            answers.append(event["text"][-1])
    return answers


def describe(event: dict[str, Any]) -> str:
    """Put an event in a few words."""
    match event["type"]:
        case "answer":
            return f"[green]{' | '.join(event['text'])}[/]"
        case "tool_progress":
            return f"  {event['tool']}: {event['data']['step']}"
        case "tool_failed":
            return f"  {event['tool']} [yellow]{event['code']}[/]"
        case kind:
            return f"  {event['tool']} {kind.removeprefix('tool_')}"


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """Run a server on a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # Else events, which are small, wait for each other (RFC 896): asyncio sees to it for sockets of its own making.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="websockets-sansio"))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield f"ws://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            await task


async def run(store: Store) -> int:
    """Be the users, and print what happened."""
    timeline: list[tuple[float, str, str]] = []
    async with serving(make_app(store)) as url, asyncio.timeout(60):
        answers = await asyncio.gather(*(be_user(url, tenant, timeline) for tenant in COLOURS))
    table = Table("ms", *COLOURS, title="what happened", title_justify="left")
    for moment, tenant, what in sorted(timeline):
        table.add_row(f"{(moment - timeline[0][0]) * 1000:.0f}", *(what if tenant == one else "" for one in COLOURS))
    console = Console()
    console.print(table)
    last = [(asked[-1], other) for asked, other in ((given, given[2]) for given in answers)]
    right = last == [(COLOURS[tenant], UNKNOWN) for tenant in COLOURS]
    console.print(f"what each ann is told last: {[own for own, _ in last]}: {'right' if right else '[red]WRONG[/]'}")
    return 0 if right else 1


def main() -> int:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--redis", metavar="URL", help="keep state in Redis or Valkey, such as redis://localhost:6379")
    url = parser.parse_args().redis
    store: Store = MemoryStore()
    if url is not None:
        from asgi_context.redis import RedisStore  # noqa: PLC0415 - another extra

        store = RedisStore.from_url(url, default_ttl=3600)
    return asyncio.run(run(store))


if __name__ == "__main__":
    sys.exit(main())
