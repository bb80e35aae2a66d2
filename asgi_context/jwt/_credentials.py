"""Where a request carries its token (RFC 6750, section 2), and that it carries one alone."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import parse_qsl

from asgi_context._headers import Slot
from asgi_context._types import Scope
from asgi_context.errors import RequestRejected

_PROTOCOL: Final = b"sec-websocket-protocol"
_MOST_PARAMETERS: Final = 1000


class Credentials:
    """Finds the token of a request.

    Args:
        cookie: name of a cookie that may hold it.
        websocket_protocol: what stands before it in an entry of ``Sec-WebSocket-Protocol``.
        websocket_query: name of the parameter that may hold it in the URL of a WebSocket.
    """

    def __init__(self, cookie: str | None, websocket_protocol: str | None, websocket_query: str | None) -> None:
        self._cookie = None if cookie is None else cookie.encode()
        self._protocol = None if websocket_protocol is None else websocket_protocol.encode()
        self._query = websocket_query
        self.header_alone = cookie is None and websocket_protocol is None and websocket_query is None
        """Whether there is nowhere else to look."""

    def find(self, scope: Scope, authorization: Slot) -> bytes | None:
        """Find it.

        Args:
            scope: the connection's scope. An entry of the subprotocols that holds a token is taken out of it.
            authorization: what the pass over the headers found of ``Authorization``.

        Returns:
            The token, or ``None``.

        Raises:
            RequestRejected: there is more than one (400).
        """
        found = [] if authorization is None else _of_header(authorization)
        if not self.header_alone:
            if self._cookie is not None:
                found += _of_cookies(scope, self._cookie)
            if scope["type"] == "websocket":
                if self._protocol is not None:
                    found += _of_protocols(scope, self._protocol)
                    self.hide(scope)
                if self._query is not None:
                    found += _of_query(scope, self._query)
        if len(found) > 1:
            raise RequestRejected(400, "invalid_request", headers=[_TWICE])
        return found[0] if found else None

    def hide(self, scope: Scope) -> None:
        """Take what may be a token out of the subprotocols that a WebSocket offers.

        What the app does not see it cannot select: what is selected is sent back.

        Args:
            scope: the connection's scope.
        """
        if self._protocol is None or scope["type"] != "websocket":
            return
        prefix, text = self._protocol, self._protocol.decode()
        if any(entry.startswith(prefix) for entry in _entries(scope)):
            scope["headers"] = list(_without(scope["headers"], prefix))
        offered: Any = scope.get("subprotocols") or ()
        if any(entry.startswith(text) for entry in offered):
            scope["subprotocols"] = [entry for entry in offered if not entry.startswith(text)]


_TWICE: Final = ("www-authenticate", 'Bearer error="invalid_request"')
_BEARER: Final = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +(.*)", re.DOTALL)


def _of_header(value: Slot) -> list[bytes]:
    if type(value) is not bytes:  # repeated, or beside one that a gateway may take for it
        raise RequestRejected(400, "invalid_request", headers=[_TWICE])
    match = _BEARER.fullmatch(value.strip(b" \t"))
    return [] if match is None else [match[1]]  # another scheme is no token, and perhaps another extractor's


def _of_cookies(scope: Scope, wanted: bytes) -> list[bytes]:
    found: list[bytes] = []
    for header, line in scope["headers"]:
        if header.lower() == b"cookie":
            for pair in line.split(b";"):
                name, equals, value = pair.partition(b"=")
                if equals and name.strip(b" \t") == wanted:
                    found.append(value.strip(b" \t"))
    return found


def _of_protocols(scope: Scope, prefix: bytes) -> list[bytes]:
    # From both places: some servers leave the header out, others have the entries of one line alone in the list.
    listed = [entry.encode("latin-1", "replace") for entry in scope.get("subprotocols") or ()]
    found = [entry.removeprefix(prefix) for entry in _entries(scope) if entry.startswith(prefix)]
    more = [entry.removeprefix(prefix) for entry in listed if entry.startswith(prefix)]
    return found + [token for token in more if token not in found]


def _entries(scope: Scope) -> list[bytes]:
    lines = [line for header, line in scope["headers"] if header.lower() == _PROTOCOL]
    return [entry.strip(b" \t") for line in lines for entry in line.split(b",")]


def _without(headers: Iterable[tuple[bytes, bytes]], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    for header, line in headers:
        if header.lower() != _PROTOCOL:
            yield header, line
            continue
        kept = [entry for entry in (entry.strip(b" \t") for entry in line.split(b",")) if not entry.startswith(prefix)]
        if kept:
            yield header, b", ".join(kept)


def _of_query(scope: Scope, wanted: str) -> list[bytes]:
    raw: bytes = scope.get("query_string", b"")
    try:
        pairs = parse_qsl(
            raw.decode("latin-1"), keep_blank_values=True, encoding="latin-1", max_num_fields=_MOST_PARAMETERS
        )
    except ValueError:  # too many
        raise RequestRejected(400, "invalid_request", headers=[_TWICE]) from None
    return [value.encode("latin-1") for name, value in pairs if name == wanted]
