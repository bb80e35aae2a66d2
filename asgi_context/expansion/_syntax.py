"""References in a text, by the Compose specification ("Interpolation"): read once, from left to right, never back.

What is nested is kept on a list, not on the stack, and no deeper than `_DEEPEST`, so that a text takes time in
proportion to its length, whatever it holds.
"""

import re
from typing import Final, Literal, NamedTuple, TypeAlias, cast

from asgi_context.errors import ExpansionSyntaxError
from asgi_context.expansion._names import IDENTITY, NAME, Names, Where
from asgi_context.expansion._places import Place, tell

Operator: TypeAlias = Literal["", "-", "?", "+"]

_DEEPEST: Final = 16
"""References inside of each other. What evaluates them calls itself once for each."""

_HEAD: Final = re.compile(
    rf"\$(?:(?P<dollar>\$)|(?P<bare>{NAME})"
    rf"|\{{(?:(?P<source>{NAME}):)?(?P<name>{NAME})(?:(?P<colon>:?)(?P<operator>[-?+])|(?=\}})))"
)
_OUTSIDE: Final = re.compile(r"\$(?=[$\{A-Za-z_])")
_INSIDE: Final = re.compile(r"\$(?=[$\{A-Za-z_])|[{}]")
"""What means something there. Any other dollar sign is one, by the specification."""

_NO_HEAD: Final = {
    "$": "after ${ there must be a name, and then }, :-, -, :?, ?, :+ or +; write $$ for a dollar sign",
    "{": "a { inside of a reference: it would end at the first }, which need not be the one that is meant",
}
"""Why no reference begins there."""


class Reference(NamedTuple):
    """One reference."""

    name: str
    source: str | None
    where: Where
    operator: Operator
    or_empty: bool
    """Whether an empty value counts as none: the operator has a colon."""
    word: tuple["Part", ...]
    """What stands after ``-`` or ``+``."""
    message: str
    """What stands after ``?``, as it is written: what it refers to is a value, and no error shows one."""


Part: TypeAlias = str | Reference


class _Opened(NamedTuple):
    """A reference whose end was not read yet."""

    head: re.Match[str]
    where: Where
    before: list[Part]


def parse(text: str, place: Place, names: Names) -> tuple[Part, ...]:
    """Read the references in a text.

    Args:
        text: the text.
        place: where it stands, for errors.
        names: what it may refer to.

    Returns:
        Its parts, in order: texts, which are not empty, and references.

    Raises:
        ExpansionSyntaxError: it is not by the syntax.
        ExpansionForbiddenError: it refers to a name that it may not.
    """
    parts: list[Part] = []
    opened: list[_Opened] = []
    position = 0
    while found := (_INSIDE if opened else _OUTSIDE).search(text, position):
        start = found.start()
        if start > position:
            parts.append(text[position:start])
        position = start + 1
        if found[0] == "}":
            last = opened.pop()
            last.before.append(_closed(last, tuple(parts), text[last.head.end() : start]))
            parts = last.before
            continue
        head = _HEAD.match(text, start)
        if head is None:
            raise ExpansionSyntaxError(tell(place), start + 1, _NO_HEAD[found[0]])
        position = head.end()
        if head["dollar"]:
            parts.append("$")
            continue
        name = head["bare"] or head["name"]
        where = names.where(_source(head, name, place), name, place)
        if head["bare"]:
            parts.append(Reference(name, None, where, "", or_empty=False, word=(), message=""))
            continue
        if len(opened) == _DEEPEST:
            raise ExpansionSyntaxError(
                tell(place), start + 1, f"more than {_DEEPEST} references stand inside of each other"
            )
        opened.append(_Opened(head, where, parts))
        parts = []
    if opened:
        raise ExpansionSyntaxError(tell(place), opened[-1].head.start() + 1, "a reference is not closed by }")
    if position < len(text):
        parts.append(text[position:])
    return tuple(parts)


def _source(head: re.Match[str], name: str, place: Place) -> str | None:
    source = head["source"]
    if source not in {None, "env", "context"}:
        reason = "a reference begins with a name, with env: or with context:"
        raise ExpansionSyntaxError(tell(place), head.start() + 1, reason)
    if source is None and name in IDENTITY:
        # A value of that name may be a client's: whoever means the identity must not be given it.
        reason = f"{name} alone does not say whose: write ${{context:{name}}} for that of the bound context"
        raise ExpansionSyntaxError(tell(place), head.start() + 1, reason)
    return source


def _closed(opened: _Opened, word: tuple[Part, ...], message: str) -> Reference:
    head = opened.head
    operator = cast("Operator", head["operator"] or "")
    if operator == "?":
        word = ()
    else:
        message = ""
    return Reference(head["name"], head["source"], opened.where, operator, bool(head["colon"]), word, message)
