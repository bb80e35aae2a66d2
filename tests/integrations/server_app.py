"""The app that servers of every kind run: all that a test sees of it goes over the wire.

Servers in threads are given what `make` returns; those in processes import `app`, which takes from the environment what it
cannot be handed.
"""

import asyncio
import faulthandler
import json
import os
from collections import defaultdict
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from asgi_context import ContextMiddleware, Store, current_context, current_state, from_header, run_in_executor
from asgi_context.redis import RedisStore

PATIENCE = 60.0
"""Seconds after which whatever is waited for counts as hanging."""
LONGEST = 600.0
"""Seconds that a process may serve for."""


class Tenants:
    """A source of tenants which notes that it was opened and closed, and works only in between.

    Args:
        log: a file that gets a line for each; all processes write into the same.
    """

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._header = from_header("x-tenant-id")
        self._open = False

    def note(self, what: str) -> None:
        """Append a line; one that is as short as this is never mixed with another's."""
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{os.getpid()} {what}\n")

    async def open(self) -> None:
        await asyncio.sleep(0)
        self._open = True
        self.note("opened")

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._open = False
        self.note("closed")

    def __call__(self, scope: Any) -> Any:
        assert self._open
        return self._header(scope)


class Connection:
    """One request or WebSocket: the app's side of it."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.receive = receive
        self.send = send
        self.options = dict(parse_qsl(scope["query_string"].decode()))

    async def start(self, status: int = 200) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": []})

    async def part(self, body: bytes, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, data: object) -> None:
        await self.start()
        await self.part(json.dumps(data).encode(), more=False)


def whose() -> list[str | None]:
    context = current_context()
    return [context.tenant, context.user, context.request_id]


async def whose_soon() -> list[str | None]:
    await asyncio.sleep(0)
    return whose()


class App:
    """What runs inside of the middleware.

    Its connections meet, by the names that their clients give: at a gate, which one client opens for others, and in crowds,
    which go on once all that were expected are there.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._crowds: dict[str, asyncio.Barrier] = {}
        self._ended: dict[str, list[Any]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        else:
            await getattr(self, scope["path"].strip("/"))(Connection(scope, receive, send))

    async def live(self, receive: Any, send: Any) -> None:
        """The lifespan, in which nobody is bound."""
        for event in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{event}"
            assert current_context(None) is None
            self._note(event)
            await send({"type": f"lifespan.{event}.complete"})

    async def meet(self, options: dict[str, str], number: str) -> dict[str, Any]:
        """Write into the state, wait until all others have, and tell what there is then."""
        crowd = options["crowd"]
        state = current_state()
        await state.update_field(crowd, "number", number)
        visit = await state.tenant_wide.increment(crowd, "visits")
        if "of" in options:
            barrier = self._crowds.setdefault(
                f"{crowd} {number.partition('/')[2]}", asyncio.Barrier(int(options["of"]))
            )
            await asyncio.wait_for(barrier.wait(), PATIENCE)
        return {
            "visit": visit,
            "process": os.getpid(),
            "numbers": [
                number,
                await state.get_field(crowd, "number"),
                await asyncio.to_thread(lambda: current_state().sync.get_field(crowd, "number")),
            ],
            "whose": [
                whose(),
                await asyncio.create_task(whose_soon()),
                await asyncio.to_thread(whose),
                await run_in_executor(None, whose),
            ],
        }

    async def http(self, connection: Connection) -> None:
        """One request of a crowd."""
        await connection.answer(await self.meet(connection.options, connection.options["number"]))

    async def websocket(self, connection: Connection) -> None:
        """One of a crowd; each message has a number."""
        assert (await connection.receive())["type"] == "websocket.connect"
        await connection.send({"type": "websocket.accept"})
        while (message := await connection.receive())["type"] == "websocket.receive":
            met = await self.meet(connection.options, message["text"])
            await connection.send({"type": "websocket.send", "text": json.dumps(met)})
        self.end(connection, message["type"])

    async def stream(self, connection: Connection) -> None:
        """Answer in parts, the second of which waits for its gate."""
        await connection.start()
        for number in range(int(connection.options["parts"])):
            await connection.part(json.dumps([number, whose()]).encode() + b"\n")
            if number == 0:
                await self.gate(connection.options["gate"])
            await asyncio.sleep(0)
        await connection.part(b"", more=False)

    async def read(self, connection: Connection) -> None:
        """Read a body in parts, the first of which opens a gate; tell whose it was after each."""
        body, seen = b"", [whose()]
        while True:
            message = await connection.receive()
            assert message["type"] == "http.request"
            seen.append(whose())
            body += message.get("body", b"")
            if body:
                self._gates[connection.options["gate"]].set()
            if not message.get("more_body"):
                break
        await connection.answer({"size": len(body), "whose": seen})

    async def endless(self, connection: Connection) -> None:
        """Stream until the client has gone, at a pace that leaves it time to go."""
        gone = asyncio.create_task(self.until_gone(connection))
        await connection.start()
        try:
            while not gone.done():
                await connection.part(b"x" * 100)
                await asyncio.sleep(0.005)
        finally:
            gone.cancel()
            await asyncio.wait([gone])
            self.end(connection, "stream")

    async def waiting(self, connection: Connection) -> None:
        """Begin to answer, and wait until the client has gone."""
        await connection.start()
        await connection.part(b"begun")
        try:
            await self.until_gone(connection)
        finally:
            self.end(connection, "wait")

    async def until_gone(self, connection: Connection) -> None:
        while (await connection.receive())["type"] != "http.disconnect":
            pass

    def end(self, connection: Connection, how: str) -> None:
        if "gate" in connection.options:
            self._ended[connection.options["gate"]] = [how, whose()]
            self._gates[connection.options["gate"]].set()

    async def open(self, connection: Connection) -> None:
        """Open a gate, for others."""
        self._gates[connection.options["gate"]].set()
        await connection.answer(whose())

    async def ended(self, connection: Connection) -> None:
        """Tell how what has opened a gate has ended, once it has."""
        await self.gate(connection.options["gate"])
        await connection.answer({"ended": self._ended.get(connection.options["gate"]), "whose": whose()})

    async def gate(self, name: str) -> None:
        await asyncio.wait_for(self._gates[name].wait(), PATIENCE)


class Watched:
    """An app, watched from outside: whatever it does, nothing may stay bound in the server's own task."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._left: list[list[str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/left":
            await asyncio.wait_for(self._idle.wait(), PATIENCE)
            await Connection(scope, receive, send).answer(self._left)
            return
        if scope["type"] != "lifespan":
            self._running += 1
            self._idle.clear()
        before = bound()
        try:
            await self._app(scope, receive, send)
        finally:
            if bound() != before:
                self._left.append(sorted(bound()))
            if scope["type"] != "lifespan":
                self._running -= 1
                if not self._running:
                    self._idle.set()


def bound() -> dict[str, object]:
    """What of this package's is in the context."""
    return {
        variable.name: value for variable, value in copy_context().items() if variable.name.startswith("asgi_context")
    }


def make(log: Path | None = None, store: Store | None = None) -> Watched:
    """The app.

    Args:
        log: a file that tells when sources were opened and closed.
        store: of the shared state; by default it is in memory.
    """
    tenants = Tenants(log)
    middleware = ContextMiddleware(App(tenants.note), tenant=tenants, user=from_header("x-user-id"), store=store)
    return Watched(middleware)


if "SERVER_APP_LOG" in os.environ:
    faulthandler.dump_traceback_later(LONGEST, exit=True)  # whatever becomes of those who have started it
    _url = os.environ.get("SERVER_APP_REDIS")
    app = make(Path(os.environ["SERVER_APP_LOG"]), RedisStore.from_url(_url) if _url else None)
