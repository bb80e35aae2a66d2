"""The agent of the chat: its tools, and rules in the place of a model.

Nothing here is handed a tenant or a user. Tools ask the context, on the event loop as in threads.
"""

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from sysconfig import get_path
from typing import Any, ClassVar, TypeAlias

from pydantic import Field

from asgi_context import current_context
from asgi_context.tools import AsyncBaseTool, ToolError, ToolResult, current_tool_call

Message: TypeAlias = dict[str, Any]
CallTool: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[ToolResult]]
Agent: TypeAlias = Callable[[Sequence[Message], Sequence[Mapping[str, Any]], CallTool], Awaitable[str]]
"""Takes the conversation, what a model is told of the tools, and what calls one; gives the answer."""

MOST_NOTES = 20

# The tools.


class Pin(AsyncBaseTool):
    """Pin a note to the team's board."""

    text: str = Field(description="the note", min_length=1, max_length=200)

    async def _arun(self) -> str:
        """Run on the event loop of the app."""
        user = current_context().user

        def add(board: dict[str, Any]) -> dict[str, Any]:
            notes, number = board.get("notes", []), board.get("last", 0) + 1
            if len(notes) >= MOST_NOTES:
                message = f"The board is full: it holds {MOST_NOTES} notes. Unpin one first."
                raise ToolError(message)
            return {"notes": [*notes, {"number": number, "text": self.text, "by": user}], "last": number}

        board = await self.ss.tenant_wide.modify("board", add)  # again, where a colleague was quicker
        return f"Pinned as note {board['last']}."


class Unpin(AsyncBaseTool):
    """Take a note off the team's board."""

    number: int = Field(description="the number of the note")

    async def _arun(self) -> str:
        """Run on the event loop of the app."""

        def remove(board: dict[str, Any]) -> dict[str, Any]:
            notes = [note for note in board.get("notes", []) if note["number"] != self.number]
            if len(notes) == len(board.get("notes", [])):
                message = f"There is no note {self.number} on the board."
                raise ToolError(message)
            return board | {"notes": notes}

        await self.ss.tenant_wide.modify("board", remove)
        return f"Took note {self.number} off the board."


class Search(AsyncBaseTool):
    """Count a word in the modules of Python's standard library."""

    word: str = Field(description="the word", pattern=r"^\w{2,40}$")

    step: ClassVar[int] = 20  # files between two events
    pause: ClassVar[Callable[[float], object]] = time.sleep  # so that there is something to watch

    def run(self) -> str:
        """Run in a thread of the pool of tools, since it reads files."""
        call = current_tool_call()
        files = sorted(Path(get_path("stdlib")).glob("[a-z]*.py"))
        found: Counter[str] = Counter()
        for done in range(0, len(files), self.step):
            call.progress_from_thread(done=done, of=len(files), step=f"reading {files[done].name}")
            for file in files[done : done + self.step]:
                text = file.read_text("utf-8", "replace")
                found[file.stem] = len(re.findall(rf"\b{self.word}\b", text))
            type(self).pause(0.2)
        self.ss.tenant_wide.sync.increment("counts", "searches")  # of the same tenant, from the thread
        most = ", ".join(f"{name} ({times})" for name, times in found.most_common(3) if times)
        return f"“{self.word}” stands {found.total()} times in {len(files)} modules. Most in: {most or 'none'}."


def divide(dividend: float, divisor: float) -> str:
    """Divide two numbers. By zero it crashes: the log tells why, and the user is told that it did."""
    return f"{dividend:g} / {divisor:g} = {dividend / divisor:g}"


async def who_am_i() -> str:
    """Say on whose behalf the tools act."""
    context = current_context()
    return f"You are {context.user}, of {context.tenant}."


TOOLS = [Pin, Unpin, Search, divide, who_am_i]

# In place of a model.

RULES = {
    r"pin (?P<text>.+)": "Pin",
    r"unpin (?P<number>\S+)": "Unpin",
    r"(?:search|count)(?: for)? (?P<word>\S+)": "Search",
    r"divide (?P<dividend>\S+) by (?P<divisor>\S+)": "divide",
    r"who am i\??": "who_am_i",
}
HELP = """I am no model: I follow rules, and know these words.
pin <note> · unpin <number> · search <word> · divide <number> by <number> · who am I
Put “then” between several."""


async def think(
    conversation: Sequence[Message],
    offered: Sequence[Mapping[str, Any]],
    call: CallTool,
) -> str:
    """Choose tools by the words of the last message, and put together what they give.

    A model takes the place of this function: give it the conversation and ``offered``, which are JSON schemas; for each
    tool that it asks for, ``await call(name, arguments)``, with the arguments as the model wrote them; hand it what
    ``for_model()`` gives, until it answers in words.

    Args:
        conversation: all messages; the last one is to be answered.
        offered: name, description and parameters of each tool.
        call: calls one of them.

    Returns:
        The answer.
    """
    names = {tool["name"] for tool in offered}
    answers = []
    for part in re.split(r"\bthen\b", conversation[-1]["text"], flags=re.IGNORECASE):
        for words, name in RULES.items():
            asked = re.fullmatch(words, part.strip(" ,.;"), re.IGNORECASE | re.DOTALL)
            if asked and name in names:
                result = await call(name, asked.groupdict())
                answers.append(result.for_model() if result.ok else f"{name} did not work.")
                break
    return "\n".join(answers) or HELP
