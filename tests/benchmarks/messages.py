"""What binding an identity costs per WebSocket message: this middleware beside a hand-written one.

Run by ``python tests/benchmarks/messages.py``; how it is measured stands in ``turns.py``. A turn is one connection, whose
app receives its messages, reads for each who asks, and answers it; the connection itself is a part of every figure. The
hand-written middleware parses the same JSON, and checks nothing.
"""

import json
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

from turns import BARE, BY_HAND, REQUEST, App, NoOp, Prepare, Variants, measured, parse, send, table_above

from asgi_context import ContextMiddleware, current_context, from_header, json_message

USUAL = b"""\
{"type":"chat.message","id":"0f0e0d0c0b0a0908","tenant_id":"acme","user_id":"user-%07d","channel":"general",\
"text":"Shall we meet at half past ten?"}"""

# As a tool reports what it found: objects in a list, and members in other places than the identity's.
LARGE = json.dumps(
    {
        "type": "tool.result",
        "id": "0f0e0d0c0b0a0908",
        "tenant_id": "acme",
        "user_id": "USER",
        "found": [
            {
                "id": number,
                "url": f"https://docs.example.com/handbook/chapter-{number}",
                "title": f"Chapter {number} of the handbook, on what was agreed",
                "score": 0.25 + number / 100,
                "read": None,
            }
            for number in range(11)
        ],
        "text": "As the chapters say, the offer holds until the end of the month. " * 7,
    },
    separators=(",", ":"),
).encode()
LARGE = LARGE.replace(b"%", b"%%").replace(b"USER", b"user-%07d")


def answering(read: Callable[[], object]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] == "websocket.receive":
            read()
            await send({"type": "websocket.send", "text": "ok"})

    return app


by_hand: ContextVar[tuple[str, str]] = ContextVar("by_hand")


class HandWritten:
    """What one writes without a library. It checks nothing, and what it binds holds for whatever comes after."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def receive_bound() -> Any:
            event = await receive()
            if event["type"] == "websocket.receive":
                message = json.loads(event["text"])
                by_hand.set((message["tenant_id"], message["user_id"]))
            return event

        await self.app(scope, receive_bound, send)


def read_nothing() -> object:
    return None


def read_by_hand() -> object:
    tenant, user = by_hand.get()
    return tenant, user


def read_context() -> object:
    context = current_context()
    return context.tenant, context.user


def ours(**options: Any) -> App:
    message = json_message(tenant="tenant_id", user="user_id")
    return ContextMiddleware(answering(read_context), message=message, **options)


def arriving(batch: list[bytes]) -> Callable[[], Awaitable[Any]]:
    left: Iterator[bytes] = iter(batch)

    async def receive() -> Any:
        for raw in left:
            return {"type": "websocket.receive", "text": raw.decode()}  # text of its own, as from a server
        return {"type": "websocket.disconnect", "code": 1000}

    return receive


def messages(app: App, template: bytes, user: Callable[[int, int], int]) -> Prepare:
    def prepare(turn: int, count: int) -> Awaitable[object]:
        # Each an object of its own.
        batch = [template % user(turn * count, number) for number in range(count)]
        return app({**parse(REQUEST % user(turn * count, 0)), "type": "websocket"}, arriving(batch), send)

    return prepare


def hundred(first: int, number: int) -> int:
    return number % 100


def new(first: int, number: int) -> int:
    return first + number


def one(first: int, number: int) -> int:
    return first


def variants_of(template: bytes) -> dict[str, Prepare]:
    headers = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}
    return {
        BARE: messages(answering(read_nothing), template, hundred),
        "no-op wrapper": messages(NoOp(answering(read_nothing)), template, hundred),
        BY_HAND: messages(HandWritten(answering(read_by_hand)), template, hundred),
        "ours": messages(ours(), template, hundred),
        "ours, every user new": messages(ours(), template, new),
        "ours + authorize": messages(
            ours(authorize=lambda context, scope: context.tenant != "nobody"), template, hundred
        ),
        "ours, the connection has an identity": messages(ours(**headers), template, one),
    }


def variants() -> Variants:
    return {f"us per message of {len(template % 0)} bytes": variants_of(template) for template in (USUAL, LARGE)}


def main() -> None:
    runs = measured(variants, __doc__, "messages", count=500)
    for table in runs[0]:
        print()
        table_above(runs, table, table)


if __name__ == "__main__":
    main()
