"""The conversation of one window with the agent.

A conversation is state of its user, the board is state of the tenant: every window shows both as they are, so one that
was away has missed nothing.
"""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

from agent import Agent, Message
from pydantic import BaseModel, StringConstraints, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_context import current_context, current_resource, current_state
from asgi_context.errors import StateUnavailableError
from asgi_context.tools import ToolResult, ToolSystem

MOST_MESSAGES = 50
MOST_CHARACTERS = 500_000  # of its JSON, so that it is always within what a store takes: see `StateLimits`

log = logging.getLogger("agent_chat")


class Asked(BaseModel):
    """What a window sends; the id is its own, so that it may send again what was perhaps lost."""

    id: Annotated[str, StringConstraints(pattern=r"^[\w-]{1,64}$")]
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]


class Windows:
    """The windows that are open in this process."""

    def __init__(self) -> None:
        self._of: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def one(self) -> Iterator[asyncio.Event]:
        """Have a window for as long as the block runs."""
        windows, changed = self._of[current_context().tenant], asyncio.Event()
        windows.add(changed)
        try:
            yield changed
        finally:
            windows.remove(changed)

    def wake(self) -> None:
        """Have those of the tenant look again, and no others."""
        for changed in self._of[current_context().tenant]:
            changed.set()


async def unless_gone(sending: Awaitable[None]) -> None:
    """Send, if the window is there: an answer is finished also if nobody waits for it any more."""
    with suppress(WebSocketDisconnect, RuntimeError):  # as Starlette says it the first time, and from then on
        await sending


async def watch(websocket: WebSocket, changed: asyncio.Event, poll: float | None) -> None:
    """Tell a window what there is, and what is new from then on."""
    state = current_state()
    shown: dict[str, Any] = {}
    while True:
        changed.clear()  # first, so that what changes meanwhile is looked at again
        seen = {
            "conversation": await state.get_field("conversation", "messages", []),
            "notes": await state.tenant_wide.get_field("board", "notes", []),
            "counts": await state.tenant_wide.get("counts") or {},
        }
        if news := {part: value for part, value in seen.items() if part not in shown or shown[part] != value}:
            await unless_gone(websocket.send_json({"type": "state"} | news))
        shown = seen
        with suppress(TimeoutError):
            async with asyncio.timeout(poll):
                await changed.wait()


async def remember(**message: Any) -> list[Message]:  # noqa: ANN401 - JSON
    """Put a message into the conversation; nothing comes back where it is there already."""
    message["at"] = datetime.now(UTC).isoformat(timespec="seconds")
    is_new = False

    def add(conversation: dict[str, Any]) -> dict[str, Any]:
        nonlocal is_new
        before = conversation.get("messages", [])
        is_new = all(one["id"] != message["id"] for one in before)
        after = [*before, message][-MOST_MESSAGES:] if is_new else before
        while len(json.dumps(after)) > MOST_CHARACTERS:
            del after[0]
        return {"messages": after}

    conversation = await current_state().modify("conversation", add)  # of the user: there may be other windows
    return conversation["messages"] if is_new else []


async def answer(asked: Asked, agent: Agent, windows: Windows) -> None:
    """Have the agent answer a message."""
    conversation = await remember(id=asked.id, role="user", text=asked.text)
    if not conversation:
        return
    await current_state().tenant_wide.increment("counts", "messages")
    windows.wake()
    tools = await current_resource(ToolSystem)
    calls: list[dict[str, str | None]] = []

    async def call(name: str, arguments: Mapping[str, Any]) -> ToolResult:
        result = await tools.dispatcher.dispatch(name, arguments)  # how far it is, goes to the window that has asked
        calls.append({"tool": name, "code": result.code, "text": result.text})
        windows.wake()
        return result

    try:
        text = await agent(conversation, tools.registry.schemas(), call)
    except Exception:  # whatever a model's client raises
        log.exception("the agent failed")
        text = "Something went wrong with the agent. Please try again."
    await remember(id=str(uuid4()), role="agent", text=text, calls=calls)
    windows.wake()


async def talk(websocket: WebSocket, agent: Agent, windows: Windows, poll: float | None) -> None:
    """Serve a window until it is closed.

    Args:
        websocket: the connection, whose handshake has said whose it is.
        agent: answers.
        windows: all windows of this process.
        poll: after how many seconds to look for what other processes have written; ``None`` where there are none.
    """
    await websocket.accept(subprotocol="chat" if "chat" in websocket.scope["subprotocols"] else None)
    try:
        with windows.one() as changed:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch(websocket, changed, poll))
                while (event := await websocket.receive())["type"] == "websocket.receive":
                    try:
                        asked = Asked.model_validate_json(event.get("text") or "")
                    except ValidationError:
                        text = "A message has 1 to 2,000 characters. This one was not sent."
                        await unless_gone(websocket.send_json({"type": "refused", "text": text}))
                    else:
                        await answer(asked, agent, windows)
                watching.cancel()
    except* StateUnavailableError:
        await unless_gone(websocket.close(1013))  # try again later: the page does
