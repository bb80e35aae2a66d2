"""Many users of many tenants at once, against a real server: does everybody get their own, and nobody else's?

    python examples/quickstart.py            takes a few seconds; exit status 1 if anything was wrong
    python examples/quickstart.py --serve    leaves the server running afterwards, with curl lines to try

The first half is an app, and shows how the library is used: wrap the app once, then ask from anywhere below; nothing in
it is handed a tenant or a user. The second half are the app's users, who send HTTP requests of their own and share the
WebSockets of a gateway. In every tenant they have the same names and write states of the same names, so that whatever
is mixed up shows.

What it needs, in the checkout: pip install ".[examples]"
"""

import argparse
import asyncio
import json
import logging
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect

from asgi_context import (
    ContextMiddleware,
    MemoryStore,
    current_context,
    current_state,
    from_header,
    json_message,
    run_in_pool,
)

# The app. Its random pauses stand for real work, and let requests overtake each other.


def who_asks() -> str:
    """Ask the context, which is the same in a handler, in its tasks and in its threads."""
    context = current_context()
    return f"{context.tenant}/{context.user}"


def look_up() -> str:
    """Block, as a tool or a database driver would: this runs in a thread of a pool."""
    time.sleep(random.uniform(0, 0.005))
    return who_asks()


async def follow_up() -> str:
    """Run in a task of its own."""
    await asyncio.sleep(random.uniform(0, 0.01))
    return who_asks()


async def save_note(title: str, text: str) -> dict[str, Any]:
    """Write to the states of whoever asks, and tell what was seen on the way."""
    state = current_state()  # of this user in this tenant: there is no name by which to reach anybody else's
    await state.upsert("profile", {"name": who_asks()})
    await state.update_field("notes", title, text)
    in_task, in_thread = await asyncio.gather(follow_up(), run_in_pool("tool", look_up))
    return {
        "handler": who_asks(),
        "task": in_task,
        "thread": in_thread,
        "profile": await state.get("profile"),
        "note": await state.get_field("notes", title),
        "request_id": current_context().request_id,
    }


async def post_note(request: Request) -> JSONResponse:
    """Save one note."""
    return JSONResponse(await save_note(request.path_params["title"], (await request.body()).decode()))


async def get_states(_: Request) -> JSONResponse:
    """Give all that whoever asks has written."""
    state = current_state()
    return JSONResponse({name: await state.get(name) for name in await state.list_states()})


async def live_notes(websocket: WebSocket) -> None:
    """Save notes for as long as the connection lasts, each for the user that its message names."""
    await websocket.accept()
    async for note in websocket.iter_json():
        await websocket.send_json(await save_note(note["title"], note["text"]))


header_tenant = from_header("x-tenant-id")
app = ContextMiddleware(
    Starlette(
        routes=[
            Route("/notes/{title}", post_note, methods=["POST"]),
            Route("/states", get_states),
            WebSocketRoute("/live", live_notes),
        ]
    ),
    # To try things out. Anybody can send any header: in earnest, have a gateway set them, or check a token.
    tenant=header_tenant,
    user=from_header("x-user-id"),
    # Each message names its user, which may be any user of any tenant: so nobody but the gateway opens a WebSocket.
    message=json_message(tenant="tenant", user="user"),
    authorize=lambda _, scope: scope["type"] == "http" or header_tenant(scope) == "gateway",
    store=MemoryStore(),
    pools={"tool": 8},
    echo_request_id="x-request-id",
)

# Its users.


@dataclass
class Row:
    """What the users of one tenant have counted."""

    tenant: str
    requests: int = 0
    messages: int = 0
    states: int = 0
    wrong: int = 0
    why: str = ""  # an example of what was wrong

    def compare(self, answer: object, expected: object) -> None:
        """Compare all of an answer: one field of somebody else's is as wrong as all of them."""
        if answer != expected:
            self.wrong += 1
            self.why = f"expected {expected}, got {answer}"

    def numbers(self) -> tuple[int, ...]:
        """Give the columns of the table."""
        return self.requests, self.messages, self.states, self.wrong


@dataclass
class Gateway:
    """A WebSocket that carries messages of many users, of all tenants."""

    url: str
    stack: AsyncExitStack  # that closes it
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    websocket: ClientConnection | None = None

    async def ask(self, **message: str) -> tuple[object, object]:
        """Send a message, and give its answer and the connection's request id."""
        async with self.turn:
            if self.websocket is None:
                headers = {"x-tenant-id": "gateway", "x-user-id": "quickstart"}
                opening = connect(self.url, additional_headers=headers, proxy=None, open_timeout=None)
                self.websocket = await self.stack.enter_async_context(opening)
            await self.websocket.send(json.dumps(message))
            answer = json.loads(await self.websocket.recv())
            return answer, self.websocket.response and self.websocket.response.headers["x-request-id"]


async def live(
    row: Row,
    user: str,
    http: httpx.AsyncClient,
    gateways: Sequence[Gateway],
    args: argparse.Namespace,
    done: Callable[[], None],
) -> None:
    """Be one user: send everything at once, and know what every answer must be."""
    me = f"{row.tenant}/{user}"
    headers = {"x-tenant-id": row.tenant, "x-user-id": user}
    profile, notes = {"name": me}, dict[str, str]()

    def write(title: str) -> str:
        return notes.setdefault(title, f"{me} wrote {title}")

    def check(answer: object, title: str, request_id: object) -> None:
        seen = {"handler": me, "task": me, "thread": me, "request_id": request_id}
        row.compare(answer, {**seen, "profile": profile, "note": notes[title]})
        done()

    async def post(number: int) -> None:
        title = f"http-{number}"
        answer = await http.post(f"/notes/{title}", content=write(title), headers=headers)
        check(answer.json(), title, answer.headers["x-request-id"])
        row.requests += 1

    async def talk(number: int) -> None:
        title = f"websocket-{number}"
        note = {"title": title, "text": write(title)}
        answer, request_id = await random.choice(gateways).ask(tenant=row.tenant, user=user, **note)
        check(answer, title, request_id)
        row.messages += 1

    async def look_back() -> None:
        states = (await http.get("/states", headers=headers)).json()
        row.compare(states, {"profile": profile, "notes": notes})
        row.states += len(states)

    sent = [*map(post, range(args.requests)), *map(talk, range(args.messages))]
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    outcomes += await asyncio.gather(look_back(), return_exceptions=True)
    for error in filter(None, outcomes):  # no answer, or no sense in it
        row.compare(repr(error), f"an answer for {me}")


async def run(url: str, args: argparse.Namespace, done: Callable[[], None]) -> list[Row]:
    """Be all users of all tenants."""
    rows = [Row(f"tenant-{number + 1}") for number in range(args.tenants)]
    # Connections are few, so that each serves many users. Users take turns, since httpx goes through all requests that
    # wait for a connection whenever one has ended.
    turns, limits = asyncio.Semaphore(100), httpx.Limits(max_connections=10)

    async def take_turn(row: Row, user: str) -> None:
        async with turns:
            await live(row, user, http, gateways, args, done)

    async with (
        asyncio.timeout(args.timeout),
        # No proxy out of the environment, here and above: it would not reach the loopback of this machine.
        httpx.AsyncClient(base_url=url, limits=limits, timeout=args.timeout, trust_env=False) as http,
        AsyncExitStack() as stack,
        asyncio.TaskGroup() as group,
    ):
        gateways = [Gateway(url.replace("http:", "ws:") + "/live", stack) for _ in range(10)]
        users = [group.create_task(take_turn(row, f"user-{n + 1}")) for row in rows for n in range(args.users)]
        try:
            await asyncio.wait(users)
        except asyncio.CancelledError:
            # Ctrl-C, or it is late: the server would log a traceback for each user who now hangs up halfway.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            raise
    return rows


def table_of(rows: list[Row]) -> Table:
    """Lay out what was counted."""
    table = Table()
    for name in ("tenant", "requests", "messages", "states", "wrong"):
        table.add_column(name, justify="left" if name == "tenant" else "right", overflow="fold")
    for row in rows:
        table.add_row(row.tenant, *map(str, row.numbers()), end_section=row is rows[-1])
    table.add_row("all", *(str(sum(column)) for column in zip(*map(Row.numbers, rows), strict=True)))
    return table


@contextmanager
def serving(application: ASGIApp, port: int) -> Iterator[str]:
    """Serve an app for as long as the block runs, and give its URL."""
    config = uvicorn.Config(application, ws="websockets-sansio", log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", port)) as listener:  # bound here, so that nobody else can take a free port
        # In a thread it has an event loop of its own, as in earnest, and leaves Ctrl-C to us.
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def wait_for_ctrl_c(url: str) -> None:
    """Say what to try in the meantime."""
    one, other = (f'curl -i -H "x-tenant-id: tenant-{number}" -H "x-user-id: user-1"' for number in (1, 2))
    with suppress(KeyboardInterrupt):
        print("\nThe same user name is somebody else in every tenant:\n")
        print(f'{one} -d "hello" {url}/notes/greeting\n{one} {url}/states\n{other} {url}/states')
        print(f'\nWho names no tenant is refused:\n\ncurl -i -H "x-user-id: user-1" {url}/states')
        print("\nCtrl-C ends the server.", flush=True)
        while True:
            time.sleep(1)


def main(argv: Sequence[str] | None = None, application: ASGIApp = app) -> int:
    """Run it all, and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--users", type=int, default=20, help="how many in each tenant (default: 20)")
    parser.add_argument("--requests", type=int, default=5, help="how many HTTP requests of each user (default: 5)")
    parser.add_argument("--messages", type=int, default=5, help="how many WebSocket messages of each user (default: 5)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds after which to give up (default: 60)")
    parser.add_argument("--serve", action="store_true", help="after the run, go on serving until Ctrl-C")
    parser.add_argument("--port", type=int, default=0, help="where to serve on 127.0.0.1 (default: a free port)")
    args = parser.parse_args(argv)
    if min(args.tenants, args.users, args.requests, args.messages) < 1:
        parser.error("there must be at least one of everything")
    expected = (args.users * args.requests, args.users * args.messages, args.users * 2, 0)

    console = Console()
    try:
        with serving(application, args.port) as url:
            with Progress(console=console, disable=not console.is_terminal) as progress:
                bar = progress.add_task("answers checked", total=args.tenants * sum(expected[:2]))
                rows = asyncio.run(run(url, args, lambda: progress.advance(bar)))
            console.print(table_of(rows))
            for why in filter(None, (row.why for row in rows)):
                print(why, file=sys.stderr)
            if args.serve:
                wait_for_ctrl_c(url)
    except TimeoutError:
        print(f"not done after {args.timeout:g} seconds, gave up", file=sys.stderr)
        return 1
    except (OSError, OverflowError) as error:  # the port is taken, or is none
        parser.error(f"--port {args.port}: {error}")
    except KeyboardInterrupt:
        return 130
    return 0 if all(row.numbers() == expected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
