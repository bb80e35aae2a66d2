"""What comes of a call, as a value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from pydantic import ValidationError
from pydantic_core import to_json

from asgi_context._crashes import log_crash
from asgi_context.errors import PoolFullError, ToolError
from asgi_context.tools._calls import ToolCall

Code: TypeAlias = Literal[
    "tool_not_found",
    "arguments_invalid",
    "not_permitted",
    "rate_limited",
    "too_many_calls",
    "pool_full",
    "tool_timeout",
    "tool_crashed",
    "limits_unavailable",
]
"""Why a call came to nothing; beside these, whatever code a `ToolError` has, ``tool_error`` by default."""

_TEXTS: Final[dict[str, str]] = {
    "not_permitted": "This user may not use this tool.",
    "rate_limited": "There were too many calls within a minute. Try again later.",
    "too_many_calls": "Too many calls are running. Try again when one has ended.",
    "pool_full": "Too many calls are waiting. Try again later.",
    "tool_timeout": "The tool did not end in time.",
    "tool_crashed": "The tool failed.",
    "limits_unavailable": "It cannot be found out now whether the call is within its limits. Try again later.",
}


_OWN_TEXTS: Final = {"union_tag_invalid": "Input tag is none of the expected tags"}
"""Instead of those of pydantic's that repeat what was given."""

_MOST: Final = 100  # errors that are told
_LONGEST: Final = 200  # characters of a place among them


@dataclass(slots=True)
class ToolResult:
    """What came of a call.

    Args:
        tool: name of the tool.
        call_id: id of the call.
        value: what the tool gave.
        code: why it came to nothing; ``None`` where it did not. ``tool_not_found``, ``arguments_invalid``,
            ``not_permitted``, ``rate_limited``, ``too_many_calls``, ``pool_full``, ``tool_timeout``, ``tool_crashed``
            or ``limits_unavailable``, or the code of a `ToolError`.
        text: the same for the model, in words.
        errors: what is wrong with the arguments: where, what kind of error, and in words; of more than 100, the first.
        retry_after: after how many seconds it may be tried again, where that is known.
    """

    tool: str
    call_id: str
    value: Any = None
    code: str | None = None
    text: str = ""
    errors: Sequence[dict[str, str]] = ()
    retry_after: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the tool has given something."""
        return self.code is None

    def for_model(self) -> str:
        """Give what to answer the model that has called the tool.

        Returns:
            A str that the tool gave as it is, anything else as JSON; of a failure its text.

        Raises:
            pydantic_core.PydanticSerializationError: what the tool gave has no JSON form.
        """
        if self.code is not None:
            return self.text
        return self.value if isinstance(self.value, str) else to_json(self.value).decode()


def not_found(tool: str, call_id: str, known: Sequence[str]) -> ToolResult:
    """Make the result for a name that no tool has.

    Args:
        tool: the name.
        call_id: id of the call.
        known: the names that there are.

    Returns:
        The result.
    """
    text = f"There is no tool of that name. There are: {', '.join(known) or 'none'}."
    return ToolResult(tool, call_id, code="tool_not_found", text=text)


def invalid(tool: str, call_id: str, error: ValidationError) -> ToolResult:
    """Make the result for arguments that do not fit.

    Args:
        tool: name of the tool.
        call_id: id of the call.
        error: what pydantic found; what was given is not repeated.

    Returns:
        The result.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    errors = [
        {
            "at": ".".join(map(_place, one["loc"]))[:_LONGEST],
            "type": one["type"],
            "text": _OWN_TEXTS.get(one["type"]) or one["msg"],
        }
        for one in found[:_MOST]
    ]
    lines = [f"{one['at'] or 'arguments'}: {one['text']}" for one in errors]
    if len(found) > _MOST:
        lines.append(f"And {len(found) - _MOST} more.")
    text = "\n".join(["The arguments do not fit.", *lines])
    return ToolResult(tool, call_id, code="arguments_invalid", text=text, errors=errors)


def _place(part: int | str) -> str:
    # May be a name that was given, which nothing is known of.
    if isinstance(part, str):
        part = part[:_LONGEST]  # and again once it is whole
        return part if part.isprintable() else part.encode("unicode_escape").decode()
    return str(part)


class RefusedError(Exception):
    """A call comes to nothing.

    Args:
        code: as in a `ToolResult`.
        retry_after: after how many seconds there may be another, where that is known.
    """

    def __init__(self, code: str, retry_after: float | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.retry_after = retry_after


def failure_of(call: ToolCall, error: BaseException) -> ToolResult:
    """Make the result for what was raised; a crash is logged, and its text stays there.

    Args:
        call: the call.
        error: what was raised.

    Returns:
        The result.
    """
    if isinstance(error, ToolError):
        code, text = getattr(error, "code", None), getattr(error, "text", None)
        if isinstance(code, str) and isinstance(text, str):  # of a subclass they need not be
            return ToolResult(call.tool, call.call_id, None, code, text)
    if isinstance(error, PoolFullError):
        error = RefusedError("pool_full")
    if not isinstance(error, RefusedError):
        log_crash(f"the tool {call.tool!r} failed", error)
        error = RefusedError("tool_crashed")
    return ToolResult(call.tool, call.call_id, None, error.code, _TEXTS[error.code], (), error.retry_after)
