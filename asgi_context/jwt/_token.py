"""The compact form of a signed token (RFC 7515, section 7.1; RFC 7519), read once and strictly.

Whatever two parsers might read differently is refused before a signature is looked at: padded or otherwise not
canonical base64url, repeated members, anything but UTF-8, numbers that are none.
"""

import json
import re
from binascii import a2b_base64
from math import isfinite
from typing import Any, Final, NamedTuple, NoReturn, cast

from asgi_context.jwt._refused import TokenRefusedError

_SEGMENTS: Final = re.compile(rb"([A-Za-z0-9_\-]+)\.([A-Za-z0-9_\-]+)\.([A-Za-z0-9_\-]+)")
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_LAST: Final = {
    0: frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
    2: frozenset(b"AQgw"),
    3: frozenset(b"AEIMQUYcgkosw048"),
}
"""The characters that a segment of a length (modulo 4) may end in: the bits that stand for nothing are zero."""
_DEEPEST: Final = 16
_LONGEST: Final = 300  # digits: with some more, other parsers would read an integer as infinity
_FORBIDDEN: Final = ("crit", "b64", "zip", "enc", "cty")
"""Header parameters that change what is signed, or say that there is another token inside."""


class Token(NamedTuple):
    """A token, taken apart; nothing in it is proven yet."""

    algorithm: str
    key_id: str | None
    kind: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def read_token(raw: bytes) -> Token:
    """Take a token apart.

    Args:
        raw: its compact form.

    Returns:
        Its parts.

    Raises:
        TokenRefusedError: it is not acceptable, whatever its signature.
    """
    match = _SEGMENTS.fullmatch(raw)
    if match is None:
        raise TokenRefusedError("it is not three segments of base64url")
    header = read_object(_decoded(match[1]), "the header")
    for name in _FORBIDDEN:
        if name in header:
            raise TokenRefusedError(f"its header has the parameter {name}")  # noqa: EM102 - a fixed set
    algorithm = header.get("alg")
    if type(algorithm) is not str:
        raise TokenRefusedError("its header names no algorithm")
    for name in ("typ", "kid"):
        if type(header.get(name, "")) is not str:
            raise TokenRefusedError(f"its {name} is no string")  # noqa: EM102 - one of two
    claims = read_object(_decoded(match[2]), "the payload")
    return Token(algorithm, header.get("kid"), header.get("typ"), claims, raw[: match.end(2)], _decoded(match[3]))


def read_object(raw: bytes, what: str, *, most: int = 256) -> dict[str, Any]:
    """Read a JSON object (RFC 8259) that every parser reads alike.

    Args:
        raw: UTF-8.
        what: what it is, for the error.
        most: how many objects and arrays it may hold.

    Returns:
        Its members.

    Raises:
        TokenRefusedError: it is none, or there are parsers that read it otherwise.
    """
    if raw.count(b"{") + raw.count(b"[") > most:  # or a small token would take much time, and memory
        raise TokenRefusedError(f"{what} holds too much")  # noqa: EM102 - two words of ours
    try:
        members: Any = _STRICT.decode(str(raw, "utf-8"))
        if b"\\u" in raw:  # half of a character may have been escaped
            json.dumps(members, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise TokenRefusedError(f"{what} is not strict JSON") from None  # noqa: EM102 - as above
    if type(members) is not dict:
        raise TokenRefusedError(f"{what} is no JSON object")  # noqa: EM102 - as above
    if raw.count(b"{") + raw.count(b"[") > _DEEPEST and _is_deeper(members, _DEEPEST):
        raise TokenRefusedError(f"{what} is nested too deep")  # noqa: EM102 - as above
    return cast("dict[str, Any]", members)


def _decoded(segment: bytes) -> bytes:
    rest = len(segment) % 4
    if rest == 1 or segment[-1] not in _LAST[rest]:
        raise TokenRefusedError("a segment is not canonical base64url")
    return a2b_base64(segment.translate(_STANDARD) + b"=" * (-rest % 4))


def _is_deeper(tree: Any, levels: int) -> bool:  # noqa: ANN401 - JSON
    kind: Any = type(tree)  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
    if kind is not dict and kind is not list:
        return False
    if not levels:
        return True
    members = tree.values() if kind is dict else tree
    return any(_is_deeper(member, levels - 1) for member in members)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is repeated")
    return members


def _whole(text: str) -> int:
    if len(text) > _LONGEST:
        raise ValueError("a number is beyond IEEE doubles")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError("a number is beyond IEEE doubles")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are no JSON


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_no_constant
)
