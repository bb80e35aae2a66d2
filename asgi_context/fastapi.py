"""FastAPI: the context and the state as parameters of endpoints, and in OpenAPI what a client must send for them.

::

    open_to_all = {"/docs", "/openapi.json"}
    app = FastAPI()
    app.add_middleware(ContextMiddleware, identity=JWTAuth(...), exempt=lambda scope: scope["path"] in open_to_all)
    document_context(app)

    @app.get("/me")
    async def get_me(context: CurrentContext, state: CurrentState): ...

===================  ====================================  ======================
parameter            what it is given                      its dependency
===================  ====================================  ======================
`CurrentContext`     the context: tenant, user and so on   `get_context`
`OptionalContext`    the context, or ``None``              `get_optional_context`
`CurrentState`       the shared state of whoever asks      `get_state`
===================  ====================================  ======================

They cost no thread. In WebSocket endpoints they are those of the connection; who sent a message, `current_context`
tells. Tests replace the dependencies in ``app.dependency_overrides``.

Where nothing is bound, as on exempt paths, `CurrentContext` and `CurrentState` raise `ContextNotBoundError`: a 500
whose traceback says what to do, unless the app has an exception handler for it. `OptionalContext` is ``None`` there.

The pages of the documentation (``/docs``, ``/openapi.json``) are requests like any other: let them be exempt, or nobody
without an identity sees them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from itertools import product
from typing import Annotated, Any, Final, TypeAlias, cast

from fastapi import Depends, FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.models import HTTPBase
from fastapi.security import APIKeyCookie, APIKeyHeader, APIKeyQuery, HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.applications import Starlette

from asgi_context._context import current_context
from asgi_context._extract import Extractor
from asgi_context._extract._step import BuiltIn, Sent
from asgi_context._identity import RequestContext
from asgi_context._middleware import ContextMiddleware
from asgi_context._state import SharedState, current_state

__all__ = [
    "CurrentContext",
    "CurrentState",
    "OptionalContext",
    "document_context",
    "get_context",
    "get_optional_context",
    "get_state",
]


class _Dependency(SecurityBase):
    # FastAPI lists a dependency of this class as a security scheme of each endpoint that takes it, however deep below
    # and in whatever router. What the scheme is, no dependency can know: `document_context` puts it in place of this.
    def __init__(self, scheme_name: str) -> None:
        self.scheme_name = scheme_name
        self.model = HTTPBase(
            scheme="asgi-context", description="What ContextMiddleware asks for: document_context(app) puts it here."
        )


# Coroutine functions, all of them, since FastAPI runs the others in threads.


class _Context(_Dependency):
    """The dependency behind `CurrentContext`, and its key in ``app.dependency_overrides``."""

    async def __call__(self) -> RequestContext:
        """Give the context that is bound.

        Returns:
            The context.

        Raises:
            ContextNotBoundError: nothing is bound, as where the request is exempt. The client gets a 500.
        """
        return current_context()


class _OptionalContext(_Dependency):
    """The dependency behind `OptionalContext`, and its key in ``app.dependency_overrides``."""

    async def __call__(self) -> RequestContext | None:
        """Give the context that is bound.

        Returns:
            The context, or ``None`` where nothing is bound.
        """
        return current_context(None)


class _State(_Dependency):
    """The dependency behind `CurrentState`, and its key in ``app.dependency_overrides``."""

    async def __call__(self) -> SharedState:
        """Give the shared state of whoever is bound.

        Returns:
            The state.

        Raises:
            ContextNotBoundError: nothing is bound, as where the request is exempt. The client gets a 500.
        """
        return current_state()


_REQUIRED: Final = "asgi_context"
_OPTIONAL: Final = "asgi_context.optional"
_OURS: Final = frozenset({_REQUIRED, _OPTIONAL})

get_context: Final = _Context(_REQUIRED)
get_optional_context: Final = _OptionalContext(_OPTIONAL)
get_state: Final = _State(_REQUIRED)

CurrentContext: TypeAlias = Annotated[RequestContext, Depends(get_context)]
"""The context, as a parameter of an endpoint, of HTTP or WebSocket, or of a dependency.

Of a WebSocket, it is that of the connection: who sent a message, `current_context` tells.
"""
OptionalContext: TypeAlias = Annotated[RequestContext | None, Depends(get_optional_context)]
"""The context, or ``None`` where nothing is bound: for exempt paths, and with ``missing="unbound"``."""
CurrentState: TypeAlias = Annotated[SharedState, Depends(get_state)]
"""The shared state of the bound tenant and user, as a parameter."""


_Way: TypeAlias = tuple[SecurityBase, ...]
_REFUSAL: Final = "ContextRefused"
_PROBLEM: Final[dict[str, Any]] = {
    "description": "Whom this request is for is not said, not acceptable, or not allowed.",
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "properties": {
                    "type": {"type": "string", "const": "about:blank"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "code": {"type": "string", "examples": ["tenant_missing"]},
                    "detail": {"type": "string"},
                },
                "required": ["type", "title", "status", "code", "detail"],
            }
        }
    },
}


def document_context(
    app: FastAPI,
    *,
    outer: ContextMiddleware | Starlette | None = None,
    schemes: Mapping[Any, SecurityBase | Iterable[SecurityBase]] | None = None,
) -> None:
    """Have the app's OpenAPI say what clients must send to the endpoints that take the context or the state.

    That is read from the extractors that `ContextMiddleware` was given: headers, parameters and cookies as API keys,
    tokens of `JWTAuth` as a bearer scheme; what stands in the URL anyway, nothing. Tenant and user are needed together,
    of `first_of` any, of `agree` the proof. So "Authorize" in Swagger UI works, and with it "Try it out". Refusals are
    described as well, unless there is an ``on_reject``. An endpoint or a router whose functions call `current_context`
    themselves is documented by ``dependencies=[Depends(get_context)]``.

    Call it once, after ``app.add_middleware(ContextMiddleware, ...)``.

    Args:
        app: the app.
        outer: what stands around the app and has the middleware, or another: the `ContextMiddleware` that wraps it, or
            the app that it is mounted in.
        schemes: for extractors that cannot tell, such as functions, `from_scope`, and headers with ``trusted=``, and in
            place of what others tell: a security scheme of FastAPI for each, or several that are needed together; none
            where there is nothing to send, as where a gateway sets a header.

    Raises:
        TypeError: ``app`` is no FastAPI app, or something stands in ``schemes`` that is no security scheme.
        ValueError: there is no `ContextMiddleware`, an extractor cannot tell what it needs, or ``schemes`` names one
            that is not there.
    """
    if not isinstance(app, FastAPI):
        message = f"document_context takes the FastAPI app, and what stands around it as outer=, not {app!r}"
        raise TypeError(message)
    mounted = list(_mounted(app, outer))
    if not mounted:
        message = "app.add_middleware(ContextMiddleware, ...) first, or say by outer= what the app is wrapped by"
        raise ValueError(message)
    told = _Told(schemes or {})
    ways = _together(told.ways(each._source) for each in mounted if each._source is not None)  # noqa: SLF001 - ours
    told.check()
    # Whoever sends none of it gets to an endpoint only where none of them refuses that, or there are exempt paths.
    strict = any(each._absent is not None and each._exempt is None for each in mounted)  # noqa: SLF001 - ours
    refuses = all(each._on_reject is None for each in mounted)  # noqa: SLF001 - ours
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _put_in(document, ways, strict=strict, refuses=refuses)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI's manual names


def _mounted(app: FastAPI, outer: ContextMiddleware | Starlette | None) -> Iterator[ContextMiddleware]:
    """Find the middlewares that requests pass, or others like them."""
    around: object = outer
    while isinstance(around, ContextMiddleware):
        yield around
        around = around.app
    for each in (around, None if around is app else app):
        for middleware in cast("list[Any]", each.user_middleware) if isinstance(each, Starlette) else []:
            if isinstance(middleware.cls, type) and issubclass(middleware.cls, ContextMiddleware):
                # Starlette makes its own later; which options a subclass has by itself, only one that is made tells.
                yield middleware.cls(app, *middleware.args, **middleware.kwargs)


class _Told:
    """What was said of extractors, by them or by the user."""

    def __init__(self, schemes: Mapping[Any, SecurityBase | Iterable[SecurityBase]]) -> None:
        # By identity: an extractor of the user's may be equal to another, and need not be hashable.
        self._given: dict[int, _Way] = {}
        self._unused: dict[int, object] = {}
        for extractor, value in schemes.items():
            together = (value,) if isinstance(value, SecurityBase) else tuple(value)
            for scheme in together:
                if not isinstance(scheme, SecurityBase):
                    message = f"schemes: a scheme is one of fastapi.security, such as APIKeyHeader(...), not {scheme!r}"
                    raise TypeError(message)
            self._given[id(extractor)] = together
            self._unused[id(extractor)] = extractor

    def check(self) -> None:
        """Refuse schemes that nobody has asked for."""
        for extractor in self._unused.values():
            message = f"schemes: {extractor!r} is none of the extractors of ContextMiddleware: give the same object"
            raise ValueError(message)

    def ways(self, extractor: Extractor) -> list[_Way]:
        """Say in which ways a client can give what an extractor reads."""
        if id(extractor) in self._given:
            self._unused.pop(id(extractor), None)
            return [self._given[id(extractor)]]
        if isinstance(extractor, BuiltIn):
            if extractor.ways is not None:
                return [tuple(map(_scheme, way)) for way in extractor.ways]
            if extractor.needs == "any":
                return [way for part in extractor.parts for way in self.ways(part)]
            if extractor.needs is not None:
                needed = extractor.parts if extractor.needs == "all" else extractor.parts[:1]
                return _together(map(self.ways, needed))
        message = (
            f"it cannot be told what a client must send for {extractor!r}: say so by "
            "schemes={that extractor: APIKeyHeader(name=...)}, or [] where it is nothing"
        )
        raise ValueError(message)


def _together(parts: Iterable[list[_Way]]) -> list[_Way]:
    return [tuple(scheme for way in ways for scheme in way) for ways in product(*parts)]


_API_KEYS: Final = {"header": APIKeyHeader, "query": APIKeyQuery, "cookie": APIKeyCookie}


def _scheme(sent: Sent) -> SecurityBase:
    if sent.place == "bearer":
        return HTTPBearer(bearerFormat=sent.name, scheme_name=sent.name)
    return _API_KEYS[sent.place](name=sent.name, scheme_name=sent.name)


def _put_in(document: dict[str, Any], ways: list[_Way], *, strict: bool, refuses: bool) -> None:
    """Put what is needed in place of what FastAPI has listed for the dependencies; a second time, there is nothing."""
    components = document.get("components", {})
    schemes: dict[str, Any] = components.get("securitySchemes", {})
    if not _OURS & schemes.keys():
        return
    for name in _OURS:
        schemes.pop(name, None)
    needed = [[_define(scheme, schemes) for scheme in way] for way in ways]
    if not schemes:
        del components["securitySchemes"]
    if refuses:
        components.setdefault("responses", {})[_REFUSAL] = deepcopy(_PROBLEM)
    for operation in _operations(document):
        operation["security"] = _security(operation["security"], needed, strict=strict)
        if operation["security"] == [{}]:
            del operation["security"]
        if refuses:
            operation["responses"].setdefault("4XX", {"$ref": f"#/components/responses/{_REFUSAL}"})


_Requirement: TypeAlias = dict[str, list[str]]


def _security(listed: list[_Requirement], needed: list[list[str]], *, strict: bool) -> list[_Requirement]:
    """Say what is needed where this was listed. Each entry is an alternative (OpenAPI 3.1, section 4.8.30)."""
    own = [requirement for requirement in listed if not _is_ours(requirement)]
    scopes = {name: scopes for requirement in listed for name, scopes in requirement.items() if name in _OURS}
    security: list[_Requirement] = []
    for way in needed if strict or _REQUIRED in scopes else [*filter(None, needed), []]:
        # FastAPI lists all dependencies as alternatives. Whatever the others are, ours is needed with any of them.
        for other in own or [{}]:
            requirement = {name: scopes.get(_REQUIRED, scopes.get(_OPTIONAL, [])) for name in way} | other
            if requirement not in security:
                security.append(requirement)
    return security


def _operations(node: object) -> Iterator[dict[str, Any]]:
    """Find what takes one of the dependencies: under paths and webhooks, and in their callbacks."""
    if isinstance(node, list):
        for item in cast("list[object]", node):
            yield from _operations(item)
    elif isinstance(node, dict):
        members = cast("dict[str, Any]", node)
        listed = members.get("security")
        if isinstance(listed, list) and any(map(_is_ours, cast("list[object]", listed))):
            yield members
        for member in list(members.values()):
            yield from _operations(member)


def _is_ours(requirement: object) -> bool:
    return isinstance(requirement, dict) and bool(_OURS & cast("dict[str, object]", requirement).keys())


def _define(scheme: SecurityBase, schemes: dict[str, Any]) -> str:
    definition = jsonable_encoder(scheme.model, by_alias=True, exclude_none=True)
    base = name = re.sub(r"[^A-Za-z0-9._-]", "_", scheme.scheme_name)  # OpenAPI 3.1, section 4.8.7: keys of components
    number = 1
    while schemes.setdefault(name, definition) != definition:  # of the app's own, or another place of that name
        number += 1
        name = f"{base}-{number}"
    return name
