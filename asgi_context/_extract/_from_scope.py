"""Extractors that read one identifier from what the scope holds beside the headers."""

import re
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import parse_qsl
from uuid import UUID

from asgi_context._extract._identifiers import IDENTIFIER, Valid, checked
from asgi_context._extract._source import Source, only_one, text_of
from asgi_context._extract._step import IN_THE_URL, BuiltIn, Sent, Step
from asgi_context._headers import Found, HeaderPlan
from asgi_context._types import Scope
from asgi_context.errors import ExtractorTypeError, RequestRejected, ScopeKeyMissingError

_MOST_PARAMETERS: Final = 1000


class _FromQuery(Source):
    def __init__(self, name: str, valid: Valid | None) -> None:
        super().__init__("from_query", name, valid)
        self._name = text_of(name, "from_query: name")
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
            return only_one([value.encode("latin-1") for found, value in pairs if found == name], self._valid, role)

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


class _FromPath(Source):
    ways = IN_THE_URL

    def __init__(self, template: str, valid: Valid | None) -> None:
        super().__init__("from_path", template, valid)
        segments = text_of(template, "from_path: template").split("/")
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


class _FromScope(Source):
    def __init__(self, key: str, steps: tuple[str, ...], valid: Valid | None) -> None:
        super().__init__("from_scope", ".".join(map(str, (key, *steps))), valid)
        self._key = text_of(key, "from_scope: key")
        if "." in key and not steps:
            message = f"from_scope: write the way as arguments of their own: from_scope{tuple(key.split('.'))!r}"
            raise ValueError(message)
        self._steps = tuple(text_of(step, "from_scope: path") for step in steps)

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


class _Constant(Source):
    ways = IN_THE_URL

    def __init__(self, value: str) -> None:
        super().__init__("constant", value, None)
        if not IDENTIFIER.fullmatch(text_of(value, "constant: value")):
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
