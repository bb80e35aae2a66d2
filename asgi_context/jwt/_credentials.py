"""Where a request carries its token (RFC 6750, section 2), and that it carries one alone."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from asgi_context._headers import Slot
from asgi_context._types import Scope
from asgi_context.errors import RequestRejected

_PROTOCOL: Final = b"sec-websocket-protocol"
_MARK: Final = "asgi_context"  # the scope's key for what the middleware has bound
_BESIDE: Final = 8192  # bytes of a line, beside the token; with many more, taking it apart would take too long


class Credentials:
    """Finds the token of a request.

    Args:
        cookie: name of a cookie that may hold it.
        websocket_protocol: what stands before it in an entry of ``Sec-WebSocket-Protocol``.
        websocket_query: name of the parameter that may hold it in the URL of a WebSocket.
        max_token_bytes: the longest token.
    """

    def __init__(
        self, cookie: str | None, websocket_protocol: str | None, websocket_query: str | None, max_token_bytes: int
    ) -> None:
        self._cookie = None if cookie is None else cookie.encode()
        self._protocol = None if websocket_protocol is None else websocket_protocol.encode()
        self._query = None if websocket_query is None else websocket_query.encode()
        self._most = max_token_bytes + _BESIDE
        self._header_alone = cookie is None and websocket_protocol is None and websocket_query is None

    def find(self, scope: Scope, authorization: Slot) -> bytes | None:
        """Find it.

        Args:
            scope: the connection's scope. An entry of the subprotocols that holds a token is taken out of it.
            authorization: what the pass over the headers found of ``Authorization``.

        Returns:
            The token, or ``None``.

        Raises:
            RequestRejected: there is more than one, or too much to look for one in (400).
            RuntimeError: it stands in a cookie of a WebSocket, and nobody looks from which page that is opened.
        """
        found = [] if authorization is None else _of_header(authorization)
        if not self._header_alone:
            is_websocket = scope["type"] == "websocket"
            if self._cookie is not None:
                cookies = self._of_cookies(scope, self._cookie)
                if cookies and is_websocket:
                    _check_page(scope)
                found += cookies
            if is_websocket and self._protocol is not None:
                found += self._of_protocols(scope, self._protocol)
                self.hide(scope)
            if is_websocket and self._query is not None:
                found += self._of_query(scope, self._query)
        if len(found) > 1:
            raise _refusal()
        return found[0] if found else None

    def hide(self, scope: Scope) -> None:
        """Take what may be a token out of the subprotocols that a WebSocket offers.

        What the app does not see it cannot select: what is selected is sent back.

        Args:
            scope: the connection's scope.
        """
        if self._protocol is None or scope["type"] != "websocket":
            return
        # In any case of letters, also those in which it is not read.
        prefix, text = self._protocol.lower(), self._protocol.decode().lower()
        if any(header.lower() == _PROTOCOL and prefix in line.lower() for header, line in scope["headers"]):
            headers = list(_without(scope["headers"], prefix))
            if headers != scope["headers"]:
                scope["headers"] = headers
        offered: Any = scope.get("subprotocols") or ()
        if any(entry.lower().startswith(text) for entry in offered):
            scope["subprotocols"] = [entry for entry in offered if not entry.lower().startswith(text)]

    def _of_cookies(self, scope: Scope, wanted: bytes) -> list[bytes]:
        found: list[bytes] = []
        for line in self._lines(scope, b"cookie"):
            for pair in line.split(b";"):
                name, equals, value = pair.partition(b"=")
                if equals and name.strip(b" \t") == wanted:
                    found.append(value.strip(b" \t"))
        return found

    def _of_protocols(self, scope: Scope, prefix: bytes) -> list[bytes]:
        # From both places: some servers leave the header out, others have the entries of one line alone in the list.
        entries = [entry.strip(b" \t") for line in self._lines(scope, _PROTOCOL) for entry in line.split(b",")]
        listed: Any = scope.get("subprotocols") or ()
        if sum(map(len, listed)) > self._most:
            raise _refusal()
        more = [entry.encode("latin-1", "replace") for entry in listed]
        both = [[e.removeprefix(prefix) for e in place if e.startswith(prefix)] for place in (entries, more)]
        fewer, found = sorted(both, key=len)
        return found + [token for token in fewer if token not in found]

    def _of_query(self, scope: Scope, wanted: bytes) -> list[bytes]:
        raw: bytes = scope.get("query_string", b"")
        if len(raw) > self._most:
            raise _refusal()
        found: list[bytes] = []
        for pair in raw.split(b"&"):  # WHATWG URL, "application/x-www-form-urlencoded"
            name, _, value = pair.partition(b"=")
            if _plain(name) == wanted:
                found.append(_plain(value))
        return found

    def _lines(self, scope: Scope, name: bytes) -> list[bytes]:
        lines = [line for header, line in scope["headers"] if header.lower() == name]
        if sum(map(len, lines)) > self._most:
            raise _refusal()
        return lines


_SCHEME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2: token


def _refusal() -> RequestRejected:
    return RequestRejected(400, "invalid_request", headers=[("www-authenticate", 'Bearer error="invalid_request"')])


def _of_header(value: Slot) -> list[bytes]:
    if type(value) is not bytes:  # repeated, or beside one that a gateway may take for it
        raise _refusal()
    value = value.strip(b" \t")
    scheme = _SCHEME.match(value)
    if scheme is None or scheme[0].lower() != b"bearer":
        return []  # another scheme is no token, and perhaps another extractor's
    return [value[scheme.end() :].lstrip(b" ")]  # also where no token follows: that is a bad one


def _check_page(scope: Scope) -> None:
    # Asked here of the middleware: an extractor of the user's around this one hides from it that there is a cookie.
    origins = getattr(getattr(scope.get(_MARK), "services", None), "origins", None)
    if origins is None:
        raise RuntimeError("a token in a cookie was sent with a WebSocket: give ContextMiddleware websocket_origins=")


def _without(headers: Iterable[tuple[bytes, bytes]], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    for header, line in headers:
        if header.lower() != _PROTOCOL:
            yield header, line
            continue
        entries = [entry.strip(b" \t") for entry in line.split(b",")]
        kept = [entry for entry in entries if not entry.lower().startswith(prefix)]
        if len(kept) == len(entries):
            yield header, line
        elif kept:
            yield header, b", ".join(kept)


def _plain(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" ")) if b"%" in text or b"+" in text else text
