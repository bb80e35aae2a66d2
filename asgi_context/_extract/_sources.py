"""Extractors that read one identifier from one place of the scope."""

import re
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import parse_qsl
from uuid import UUID

from asgi_context._extract._identifiers import IDENTIFIER, RAW_IDENTIFIER, Valid, check_rule, checked, decoded
from asgi_context._extract._step import IN_THE_URL, BuiltIn, Sent, Step
from asgi_context._extract._trust import Trust, Trusted
from asgi_context._headers import Found, HeaderPlan, Oddity, header_name
from asgi_context._types import Scope
from asgi_context.errors import ExtractorTypeError, RequestRejected, ScopeKeyMissingError

_DNS_LABEL: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")  # RFC 1123, section 2.1
_MOST_PARAMETERS: Final = 1000
_MOST_KNOWN: Final = 8192  # of at most 128 bytes each


class _Source(BuiltIn):
    """An extractor that reads one identifier; its subclasses say where."""

    gives = str

    def __init__(self, name: str, argument: object, valid: Valid | None) -> None:
        check_rule(valid, f"{name}: valid=")
        self._repr = f"{name}({argument!r})"
        self._valid = valid

    def __repr__(self) -> str:
        return self._repr


class FromHeader(_Source):
    """What `from_header` returns."""

    def __init__(self, name: str, trusted: Trusted | None, valid: Valid | None) -> None:
        super().__init__("from_header", name, valid)
        self._name = header_name(name, "from_header: name")
        self._trust = None if trusted is None else Trust(trusted)
        if trusted is None:  # else whoever is trusted sets it, and what that one asks for is not known here
            self.ways = ((Sent("header", self._name.decode()),),)

    @property
    def plain(self) -> bool:
        """Whether it depends on the header's value alone; a rule of the user's may look at a list of tenants."""
        return self._trust is None and self._valid is None

    def compile(self, plan: HeaderPlan, role: str) -> Step:
        slot, valid, known = plan.slot(self._name), self._valid, plan.known
        trust = None if self._trust is None else self._trust.compile(plan)

        def run(scope: Scope, found: Found) -> str | None:
            raw = found[slot]
            if raw is None:
                return None
            if trust is not None and not trust(scope, found):
                raise RequestRejected(403, f"{role}_untrusted")
            if valid is not None or type(raw) is not bytes:
                return checked(_header_text(raw, role), valid, role)
            value = known.get(raw)
            if value is None:
                if RAW_IDENTIFIER.fullmatch(raw) is None:
                    return checked(_header_text(raw, role), valid, role)  # good once it is trimmed, or not at all
                if len(known) >= _MOST_KNOWN:
                    known.clear()  # each is checked once more; to keep an order of use would cost every hit
                value = known[raw] = raw.decode()
            return value

        return Step(run, waits=False)


def _header_text(raw: bytes | Oddity, role: str) -> str:
    if isinstance(raw, Oddity):
        raise RequestRejected(400, f"{role}_{raw.reason}")
    return decoded(raw.strip(b" \t"), role)  # optional white space by RFC 9110, section 5.6.3; nothing else is trimmed


def from_header(name: str, *, trusted: Trusted | None = None, valid: Valid | None = None) -> BuiltIn:
    """Read a header.

    A header is a claim that any client can make: use it behind a gateway that sets it, and name the gateway in
    ``trusted``. A repeated header, and one whose name differs only in ``_`` for ``-``, is refused.

    Args:
        name: name of the header, in any case.
        trusted: networks (``"10.0.0.0/8"``) of the peers, or a `SharedSecret`, or several of these, of which one must
            do; from anybody else the header is refused with 403. The peer is ``scope["client"]``: where the server
            rewrites that from X-Forwarded-For, as uvicorn does for a peer on 127.0.0.1, it is the end user.
        valid: takes the value and says whether it is good; without it, the package's rule for identifiers.

    Returns:
        An extractor of the header's value, trimmed of space and tab.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``name`` is no header name, or ``trusted`` holds no network of that form, or nothing.
    """
    return FromHeader(name, trusted, valid)


class _FromQuery(_Source):
    def __init__(self, name: str, valid: Valid | None) -> None:
        super().__init__("from_query", name, valid)
        self._name = _text(name, "from_query: name")
        self.ways = ((Sent("query", name),),)

    def compile(self, plan: HeaderPlan, role: str) -> Step:  # noqa: ARG002 - it reads no header
        name = self._name.encode().decode("latin-1")

        def run(scope: Scope, _found: Found) -> str | None:
            raw: bytes = scope.get("query_string", b"")
            if not raw:
                return None
            try:
                # By latin-1, which keeps every byte as it is: the parameters of others need not be UTF-8.
                pairs = parse_qsl(
                    raw.decode("latin-1"),
                    keep_blank_values=True,
                    encoding="latin-1",
                    max_num_fields=_MOST_PARAMETERS,
                )
            except ValueError:  # too many
                raise RequestRejected(400, f"{role}_invalid") from None
            return _only([value.encode("latin-1") for found, value in pairs if found == name], self._valid, role)

        return Step(run, waits=False)


def from_query(name: str, *, valid: Valid | None = None) -> BuiltIn:
    """Read a parameter of the query string (WHATWG URL, "application/x-www-form-urlencoded").

    A query string ends up in access logs and histories: for WebSockets of browsers, which cannot set headers, rather
    than for anything secret.

    Args:
        name: name of the parameter.
        valid: takes the value and says whether it is good; without it, the package's rule for identifiers.

    Returns:
        An extractor of the parameter's value, decoded. A repeated parameter is refused.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``name`` is empty.
    """
    return _FromQuery(name, valid)


class _FromCookie(_Source):
    def __init__(self, name: str, valid: Valid | None) -> None:
        super().__init__("from_cookie", name, valid)
        self._name = header_name(name, "from_cookie: name", lower=False)
        self.ways = ((Sent("cookie", name),),)

    def compile(self, plan: HeaderPlan, role: str) -> Step:  # noqa: ARG002 - no header of its own
        def run(scope: Scope, _found: Found) -> str | None:
            values: list[bytes] = []
            for header, line in scope["headers"]:
                # In a pass of its own: of this header there may be several (RFC 9113, section 8.2.3).
                if header.lower() == b"cookie":
                    for pair in line.split(b";"):
                        name, equals, value = pair.partition(b"=")
                        if equals and name.strip(b" \t") == self._name:
                            values.append(_unquoted(value.strip(b" \t")))
            return _only(values, self._valid, role)

        return Step(run, waits=False)


def _unquoted(value: bytes) -> bytes:
    # RFC 6265, section 4.1.1: cookie-value may stand in double quotes.
    return value[1:-1] if len(value) > 1 and value[:1] == value[-1:] == b'"' else value


def from_cookie(name: str, *, valid: Valid | None = None) -> BuiltIn:
    """Read a cookie (RFC 6265).

    Browsers send cookies along from foreign pages too: on its own, a cookie does not prove that the user meant it.

    Args:
        name: name of the cookie; case matters.
        valid: takes the value and says whether it is good; without it, the package's rule for identifiers.

    Returns:
        An extractor of the cookie's value. A repeated cookie is refused.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``name`` is no cookie name.
    """
    return _FromCookie(name, valid)


def _only(values: list[bytes], valid: Valid | None, role: str) -> str | None:
    if len(values) > 1:
        raise RequestRejected(400, f"{role}_repeated")
    return checked(decoded(values[0], role), valid, role) if values else None


class _FromPath(_Source):
    ways = IN_THE_URL

    def __init__(self, template: str, valid: Valid | None) -> None:
        super().__init__("from_path", template, valid)
        segments = _text(template, "from_path: template").split("/")
        places = [index for index, segment in enumerate(segments) if _PLACE.fullmatch(segment)]
        literal = [segment for index, segment in enumerate(segments) if index not in places]
        if segments[0] or len(places) != 1 or any(not s or set(s) & set("{}*") for s in literal[1:]):
            message = f'from_path: template must be like "/tenants/{{tenant}}", with one placeholder, not {template!r}'
            raise ValueError(message)
        self._place = places[0]
        self._before = segments[: self._place]
        self._after = segments[self._place + 1 :]

    def compile(self, plan: HeaderPlan, role: str) -> Step:  # noqa: ARG002 - no header of its own
        before, place, after = self._before, self._place, self._after
        length = place + 1 + len(after)

        def run(scope: Scope, _found: Found) -> str | None:
            path: str = scope["path"]
            root: str = scope.get("root_path", "")
            if root and path.startswith(root.rstrip("/") + "/"):
                path = path[len(root.rstrip("/")) :]
            segments = path.split("/", length)
            if len(segments) < length or segments[:place] != before or segments[place + 1 : length] != after:
                return None
            return checked(segments[place], self._valid, role)

        return Step(run, waits=False)


_PLACE: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


def from_path(template: str, *, valid: Valid | None = None) -> BuiltIn:
    """Read a segment of the path.

    Args:
        template: the beginning of the path with one placeholder, such as ``"/tenants/{tenant}"`` or
            ``"/t/{tenant}/api"``. It is matched segment by segment, behind the ``root_path`` of a mounted app.
        valid: takes the value and says whether it is good; without it, the package's rule for identifiers.

    Returns:
        An extractor of the segment, decoded as the server decodes paths; absent where the path is another.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``template`` is of another form.

    Example:
        >>> from asgi_context import from_path
        >>> from_path("/t/{tenant}")({"path": "/t/acme/orders", "headers": []})
        'acme'
    """
    return _FromPath(template, valid)


class _FromSubdomain(_Source):
    ways = IN_THE_URL

    def __init__(self, base: str, valid: Valid | None) -> None:
        super().__init__("from_subdomain", base, valid)
        name = _text(base, "from_subdomain: base").lower().removesuffix(".")
        if not all(_DNS_LABEL.fullmatch(label) for label in name.split(".")):
            message = f"from_subdomain: base must be a host name such as 'example.com', not {base!r}"
            raise ValueError(message)
        self._suffix = "." + name

    def compile(self, plan: HeaderPlan, role: str) -> Step:
        slot = plan.slot(b"host")
        suffix, valid = self._suffix, self._valid

        def run(_scope: Scope, found: Found) -> str | None:
            raw = found[slot]
            if raw is None:
                return None
            # In lower case as bytes: as text, some other characters would become ASCII letters.
            lower = raw.lower() if isinstance(raw, bytes) else raw
            host, colon, port = _header_text(lower, role).partition(":")
            host = host.removesuffix(".")
            if not host.endswith(suffix):
                return None
            if colon and port.strip("0123456789"):  # what RFC 3986, section 3.2.3, does not allow may hide a host
                raise RequestRejected(400, f"{role}_invalid")
            label = host.removesuffix(suffix)
            if valid is None and not _DNS_LABEL.fullmatch(label):
                raise RequestRejected(400, f"{role}_invalid")
            return checked(label, valid, role)

        return Step(run, waits=False)


def from_subdomain(base: str, *, valid: Valid | None = None) -> BuiltIn:
    """Read the label below a domain from the Host header: ``acme`` of ``acme.example.com``.

    Args:
        base: the domain, such as ``"example.com"``.
        valid: takes the label and says whether it is good; without it, one DNS label (RFC 1123, section 2.1).

    Returns:
        An extractor of the label, in lower case; absent where the host is not below the domain. More than one label,
        and a repeated Host header, are refused.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``base`` is no host name.
    """
    return _FromSubdomain(base, valid)


class _FromScope(_Source):
    def __init__(self, key: str, steps: tuple[str, ...], valid: Valid | None) -> None:
        super().__init__("from_scope", ".".join(map(str, (key, *steps))), valid)
        self._key = _text(key, "from_scope: key")
        if "." in key and not steps:
            message = f"from_scope: write the way as arguments of their own: from_scope{tuple(key.split('.'))!r}"
            raise ValueError(message)
        self._steps = tuple(_text(step, "from_scope: path") for step in steps)

    def compile(self, plan: HeaderPlan, role: str) -> Step:  # noqa: ARG002 - no header of its own
        def run(scope: Scope, _found: Found) -> str | None:
            if self._key not in scope:
                raise ScopeKeyMissingError(self._key)
            value: Any = scope[self._key]
            for step in self._steps:
                if isinstance(value, Mapping):
                    value = cast("Mapping[str, Any]", value).get(step)
                else:
                    value = getattr(cast("object", value), step, None)
            if value is None:
                return None
            if isinstance(value, UUID) or (isinstance(value, int) and not isinstance(value, bool)):
                value = str(value)  # how databases number users and tenants
            if not isinstance(value, str):
                raise ExtractorTypeError(repr(self), type(value).__qualname__, "str, int, UUID or None")
            return checked(str.__str__(value), self._valid, role)

        return Step(run, waits=False)


def from_scope(key: str, *path: str, valid: Valid | None = None) -> BuiltIn:
    """Read what another middleware has put into the scope: ``from_scope("user", "tenant_id")``.

    Args:
        key: the scope's key. Where it is missing the middleware order is wrong, which is an error and not an absence.
        *path: the way from there, through mappings by key and through other objects by attribute.
        valid: takes the value and says whether it is good; without it, the package's rule for identifiers.

    Returns:
        An extractor of the str, int or UUID found there; absent where the way ends early or in ``None``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a name is empty.
    """
    return _FromScope(key, path, valid)


class _Constant(_Source):
    ways = IN_THE_URL

    def __init__(self, value: str) -> None:
        super().__init__("constant", value, None)
        if not IDENTIFIER.fullmatch(_text(value, "constant: value")):
            message = f"constant: value is not a good identifier: {value!r}"
            raise ValueError(message)
        self._value = value

    def compile(self, plan: HeaderPlan, role: str) -> Step:  # noqa: ARG002 - always good
        value = self._value

        def run(_scope: Scope, _found: Found) -> str:
            return value

        return Step(run, waits=False)


def constant(value: str) -> BuiltIn:
    """Give always the same identifier, as the last part of `first_of` or for apps with one tenant.

    Args:
        value: the identifier.

    Returns:
        An extractor of it.

    Raises:
        TypeError: ``value`` is no str.
        ValueError: it is no good identifier.
    """
    return _Constant(value)


def _text(value: object, option: str) -> str:
    if not isinstance(value, str):
        message = f"{option} must be a str, not {type(value).__qualname__}"
        raise TypeError(message)
    if not value:
        message = f"{option} must not be empty"
        raise ValueError(message)
    return value
