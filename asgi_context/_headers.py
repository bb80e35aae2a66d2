"""One pass over the raw headers of a request, for all that is looked for in it.

Work is on bytes, as servers hand them over: several servers let control characters, bytes above 0x7f, repeated headers
and ``x_tenant_id`` beside ``x-tenant-id`` through (RFC 9110, section 5; ASGI specification, "HTTP Connection Scope").
"""

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from asgi_context.errors._requests import FIELD_NAME


class Oddity:
    """What a header slot holds in place of a value that must not be used.

    Args:
        reason: how a rejection calls it.
    """

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"<{self.reason}>"


REPEATED: Final = Oddity("repeated")
TWIN: Final = Oddity("invalid")

Slot: TypeAlias = bytes | Oddity | None
Found: TypeAlias = tuple[Slot, ...]
"""What one pass found: a value, an oddity or nothing for each slot."""

Scan: TypeAlias = Callable[[Iterable[tuple[bytes, bytes]]], Found]


class HeaderPlan:
    """Which headers extractors look for.

    Extractors claim slots when they are compiled; afterwards one `compile` gives the pass over the headers.
    """

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.known: dict[Slot, str] = {}
        """Raw values that were found to be good identifiers, with their text; bounded by who remembers them."""

    def slot(self, name: bytes) -> int:
        """Claim the slot of a header.

        Args:
            name: its name, lower case.

        Returns:
            The index of its value in what the pass finds.

        Raises:
            ValueError: a header that differs only in underscores is looked for already.
        """
        if name in self.names:
            return self.names.index(name)
        if any(_folded(name) == _folded(other) for other in self.names):
            message = f"two headers are looked for that differ only in underscores: one of them is {name.decode()!r}"
            raise ValueError(message)
        self.names.append(name)
        return len(self.names) - 1

    def compile(self) -> Scan:
        """Make the pass.

        Returns:
            A function from a header list to what was found. A name that comes twice is `REPEATED`. A name that differs
            only in ``_`` for ``-`` is a `TWIN`: CGI-like gateways fold the two into one, so either could be meant.
        """
        if len(self.names) in {1, 2}:
            return _scan_for_two(self.names[0], self.names[-1])
        return _scan_for_many(self.names)


# Both passes skip most headers by their length, which is that of neither name. It costs less than hashing each for a
# look-up, and holds in whatever case a server hands names over: "should be lowercased, but it is not required".


def _scan_for_many(names: list[bytes]) -> Scan:
    slots = {name: index for index, name in enumerate(names)}
    folded = {_folded(name): index for name, index in slots.items()}
    lengths = frozenset(map(len, names))
    nothing: list[Slot] = [None] * len(names)

    def scan(headers: Iterable[tuple[bytes, bytes]]) -> Found:
        found = nothing[:]
        for name, value in headers:
            if len(name) in lengths:
                slot = slots.get(name)
                if slot is None:
                    slot = folded.get(_folded(name))
                    if slot is None:
                        continue
                    found[slot] = _of_other_spelling(name, names[slot], value) if found[slot] is None else REPEATED
                else:
                    found[slot] = value if found[slot] is None else REPEATED
        return tuple(found)

    return scan


def _scan_for_two(first: bytes, second: bytes) -> Scan:
    # A tenant and a user, nearly always. Slots that are local variables take 0.2 microseconds off a request, a fifth of
    # what a middleware costs that is written by hand.
    alone = first == second
    first_length, second_length = len(first), len(second)
    first_folded, second_folded = _folded(first), _folded(second)

    def scan(headers: Iterable[tuple[bytes, bytes]]) -> Found:
        a: Slot = None
        b: Slot = None
        for name, value in headers:
            length = len(name)
            if length == first_length or length == second_length:  # noqa: PLR1714, SIM109 - a tuple would be slower
                if name == first:
                    a = value if a is None else REPEATED
                elif name == second:
                    b = value if b is None else REPEATED
                elif _folded(name) == first_folded:
                    a = _of_other_spelling(name, first, value) if a is None else REPEATED
                elif _folded(name) == second_folded:
                    b = _of_other_spelling(name, second, value) if b is None else REPEATED
        return (a,) if alone else (a, b)

    return scan


def _folded(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def _of_other_spelling(name: bytes, wanted: bytes, value: bytes) -> "bytes | Oddity":
    # The same name in another case is the same header (RFC 9110, section 5.1); with other underscores it is a twin.
    return value if name.lower() == wanted else TWIN


def header_name(name: object, option: str, *, lower: bool = True) -> bytes:
    """Check the name of a header, or of a cookie, which is a token as well.

    Args:
        name: the name.
        option: what to call it in an error.
        lower: whether case does not matter.

    Returns:
        The name as bytes.

    Raises:
        TypeError: it is no str.
        ValueError: it is no token (RFC 9110, section 5.6.2).
    """
    if not isinstance(name, str):
        message = f"{option} must be a str, not {type(name).__qualname__}"
        raise TypeError(message)
    encoded = name.encode("ascii", "replace").replace(b"?", b" ")  # neither is in any token
    if FIELD_NAME.fullmatch(encoded) is None:
        message = f"{option} must be a token (RFC 9110, section 5.6.2), not {name!r}"
        raise ValueError(message)
    return encoded.lower() if lower else encoded
