"""The dependencies of FastAPI, and what its OpenAPI says of them."""

import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response, Security, WebSocket
from fastapi.security import APIKeyHeader, HTTPBearer, OAuth2PasswordBearer, OpenIdConnect
from jwt_makers import AUDIENCE, ISSUER, NOW, make_key, token
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount
from who_asks import ANN, BOB, SOURCES

from asgi_context import (
    ContextMiddleware,
    ContextNotBoundError,
    Identity,
    MemoryStore,
    RequestContext,
    SharedState,
    agree,
    constant,
    current_context,
    current_state,
    first_of,
    from_cookie,
    from_header,
    from_path,
    from_query,
    from_scope,
    from_subdomain,
    identity_from,
    json_message,
)
from asgi_context.fastapi import (
    CurrentContext,
    CurrentState,
    OptionalContext,
    document_context,
    get_context,
    get_optional_context,
    get_state,
)
from asgi_context.jwt import JWTAuth
from asgi_context.propagation import CarrierKey, from_carrier_header

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would rather have httpx2, and warns where there is httpx alone
    from starlette.testclient import TestClient

pytestmark = pytest.mark.matrix("FastAPI", "fastapi", "starlette")


def bound_app(**options: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(ContextMiddleware, **(options or SOURCES))
    return app


async def get(app: Any, path: str = "/", headers: dict[str, str] = ANN) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path, headers=headers)


# The parameters


def told(context: RequestContext, state: SharedState) -> list[Any]:
    return [context.tenant, context.user, context.request_id == current_context().request_id, repr(state)]


def expected(tenant: str, user: str) -> list[Any]:
    return [tenant, user, True, f"SharedState(tenant={tenant!r}, user={user!r})"]


async def in_task(context: CurrentContext, state: CurrentState) -> list[Any]:
    assert state is current_state()
    return told(context, state)


def in_thread(context: CurrentContext, state: CurrentState) -> list[Any]:
    return told(context, state)


def of_dependencies(found: Annotated[list[Any], Depends(in_task)]) -> list[Any]:
    return found


class Repository:
    """A dependency of the app's own, that is made for whoever asks."""

    def __init__(self, context: CurrentContext, state: CurrentState) -> None:
        self.found = told(context, state)


async def of_class(repository: Annotated[Repository, Depends()]) -> list[Any]:
    return repository.found


@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", [in_task, in_thread, of_dependencies, of_class])
async def test_endpoints_and_dependencies_take_the_context_and_the_state_as_parameters(endpoint: Any) -> None:
    app = bound_app()
    app.get("/")(endpoint)
    assert (await get(app)).json() == expected("acme", "ann")
    assert (await get(app, headers=BOB)).json() == expected("globex", "bob")


def test_websocket_endpoints_do_as_well() -> None:
    app = bound_app()

    @app.websocket("/")
    async def endpoint(websocket: WebSocket, context: CurrentContext, state: CurrentState) -> None:
        await websocket.accept()
        await websocket.send_json(told(context, state))

    client = TestClient(app)
    with client.websocket_connect("/", headers=ANN) as ann, client.websocket_connect("/", headers=BOB) as bob:
        assert (ann.receive_json(), bob.receive_json()) == (expected("acme", "ann"), expected("globex", "bob"))


@pytest.mark.anyio
async def test_whose_a_message_is_no_parameter_tells() -> None:
    """They are asked before the first message."""
    app = bound_app(**SOURCES, message=json_message(tenant="t", user="u"), authorize=lambda context, scope: True)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket, context: CurrentContext) -> None:
        await websocket.accept()
        await websocket.receive_json()
        await websocket.send_json([context.user, current_context().user])

    with TestClient(app).websocket_connect("/", headers=ANN) as connection:
        connection.send_json({"t": "acme", "u": "bob"})
        assert connection.receive_json() == ["ann", "bob"]


@pytest.mark.anyio
async def test_the_parameters_cost_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []

    async def refuse(func: Any, *_: Any, **__: Any) -> None:
        started.append(func)
        raise AssertionError("a thread was wanted")

    monkeypatch.setattr("anyio.to_thread.run_sync", refuse)
    app = bound_app()

    @app.get("/")
    async def endpoint(context: CurrentContext, state: CurrentState, optional: OptionalContext) -> bool:
        return context is optional

    assert (await get(app)).json() is True
    assert started == []

    @app.get("/sync")
    def control() -> None: ...

    with pytest.raises(AssertionError):
        await get(app, "/sync")
    assert len(started) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_tests_put_others_in_their_place(asynchronous: bool) -> None:
    """No middleware, no headers: an endpoint is tested by itself."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(context: CurrentContext, state: CurrentState, optional: OptionalContext) -> list[Any]:
        await state.update_field("profile", "colour", "green")
        return [context.tenant, optional and optional.tenant, await state.get("profile")]

    context, state = RequestContext("acme", "ann"), SharedState(MemoryStore(), "acme", "ann")

    async def provide_context() -> RequestContext:
        return context

    app.dependency_overrides = {
        get_context: provide_context if asynchronous else lambda: context,
        get_optional_context: lambda: None,
        get_state: lambda: state,
    }
    assert (await get(app, headers={})).json() == ["acme", None, {"colour": "green"}]
    app.dependency_overrides.clear()
    with pytest.raises(ContextNotBoundError):
        await get(app, headers={})


UNBOUND: dict[str, dict[str, Any] | None] = {
    "exempt": {**SOURCES, "exempt": lambda scope: True},
    "without identity": {**SOURCES, "missing": "unbound"},
    "without middleware": None,
}


@pytest.mark.anyio
@pytest.mark.parametrize("case", UNBOUND)
async def test_where_nobody_is_bound_the_parameters_raise_and_say_what_to_do(case: str) -> None:
    options = UNBOUND[case]
    app = FastAPI() if options is None else bound_app(**options)

    @app.get("/context")
    def with_context(context: CurrentContext) -> None: ...
    @app.get("/state")
    def with_state(state: CurrentState) -> None: ...
    @app.get("/optional")
    def with_optional(context: OptionalContext) -> bool:
        return context is None

    for path in ("/context", "/state"):
        with pytest.raises(ContextNotBoundError, match=r"is bound here\. In an app: wrap it in Context") as c:
            await get(app, path, headers={})
        assert c.value.wanted == path[1:]
    assert (await get(app, "/optional", headers={})).json() is True


@pytest.mark.anyio
async def test_an_app_can_give_another_answer_where_nobody_is_bound() -> None:
    app = bound_app(**SOURCES, missing="unbound")

    @app.exception_handler(ContextNotBoundError)
    async def handle(request: Request, error: ContextNotBoundError) -> Response:
        return JSONResponse({"detail": "Who are you?"}, 401)

    app.get("/")(in_task)
    assert (await get(app, headers={})).status_code == 401
    assert (await get(app)).json() == expected("acme", "ann")


# OpenAPI


def document_of(app: FastAPI) -> dict[str, Any]:
    """What a client is told, served as it would get it, and looked at by somebody who does not know FastAPI."""
    response = TestClient(app).get("/openapi.json")
    document: dict[str, Any] = app.openapi()
    if response.status_code == 200:  # where it is exempt
        assert response.json() == document
    validate(document, cls=OpenAPIV31SpecValidator)
    named = {name for entry in operations(document) for way in entry.get("security", []) for name in way}
    assert named <= set(document.get("components", {}).get("securitySchemes", {}))
    assert app.openapi() == document
    return document


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in [*document["paths"].values(), *document.get("webhooks", {}).values()]:
        yield from item.values()


def security(app: FastAPI, path: str = "/", method: str = "get") -> list[dict[str, Any]] | None:
    """In which ways this can be asked for; each with its schemes themselves in place of their names."""
    document = document_of(app)
    listed = document["paths"][path][method].get("security")
    schemes = document.get("components", {}).get("securitySchemes", {})
    return None if listed is None else [{name: schemes[name] for name in way} for way in listed]


def documented(schemes: Any = None, *, endpoint: Any = in_task, path: str = "/", **options: Any) -> FastAPI:
    app = bound_app(**options)
    app.get(path)(endpoint)
    document_context(app, schemes=schemes)
    return app


def key(place: str, name: str) -> dict[str, str]:
    return {"type": "apiKey", "in": place, "name": name}


TENANT, USER = key("header", "x-tenant-id"), key("header", "x-user-id")
BEARER = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
SIGNING = make_key("ES256")


def jwt_auth(**options: Any) -> JWTAuth:
    keys = {"keys": [SIGNING.jwk]}
    return JWTAuth(issuer=ISSUER, audience=AUDIENCE, tenant="org_id", jwks=keys, now=lambda: NOW, **options)


header, query, cookie = from_header("X-Tenant"), from_query("tenant"), from_cookie("tenant")
NEEDS: dict[str, tuple[dict[str, Any], list[dict[str, Any]] | None]] = {
    "headers": (SOURCES, [{"x-tenant-id": TENANT, "x-user-id": USER}]),
    "a header": ({"tenant": header}, [{"x-tenant": key("header", "x-tenant")}]),
    "one header for both": ({"tenant": header, "user": header}, [{"x-tenant": key("header", "x-tenant")}]),
    "a parameter": ({"tenant": query}, [{"tenant": key("query", "tenant")}]),
    "a cookie": ({"tenant": cookie}, [{"tenant": key("cookie", "tenant")}]),
    "the path": ({"tenant": from_path("/{tenant}")}, None),
    "the host": ({"tenant": from_subdomain("test")}, None),
    "always the same": ({"tenant": constant("acme")}, None),
    "the path, and a header": (
        {"tenant": from_path("/{tenant}"), "user": SOURCES["user"]},
        [{"x-user-id": USER}],
    ),
    "a token": ({"identity": jwt_auth()}, [{"JWT": BEARER}]),
    "a token, also in a cookie": (
        {"identity": jwt_auth(cookie="session"), "websocket_origins": ["https://app.example.com"]},
        [{"JWT": BEARER}, {"session": key("cookie", "session")}],
    ),
    "what another service hands on": (
        {"identity": from_carrier_header(key=CarrierKey("main", "0123456789abcdef0123456789abcdef"))},
        [{"asgi-context": key("header", "asgi-context")}],
    ),
    "the first of two": (
        {"identity": first_of(jwt_auth(), identity_from(**SOURCES))},
        [{"JWT": BEARER}, {"x-tenant-id": TENANT, "x-user-id": USER}],
    ),
    "the first of two places for each": (
        {"tenant": first_of(header, query), "user": first_of(from_header("x-user-id"), from_cookie("user"))},
        [
            {"x-tenant": key("header", "x-tenant"), "x-user-id": USER},
            {"x-tenant": key("header", "x-tenant"), "user": key("cookie", "user")},
            {"tenant": key("query", "tenant"), "x-user-id": USER},
            {"tenant": key("query", "tenant"), "user": key("cookie", "user")},
        ],
    ),
    "a default": (
        {"tenant": first_of(header, constant("public"))},
        [{"x-tenant": key("header", "x-tenant")}, {}],
    ),
    "a proof, and a hint that may be left out": (
        {"identity": agree(jwt_auth(), from_header("x-tenant-id"))},
        [{"JWT": BEARER}],
    ),
    "one thing in two ways": (
        {"tenant": first_of(header, agree(header, query))},
        [{"x-tenant": key("header", "x-tenant")}],
    ),
    "messages alone": ({"message": json_message(tenant="tenant_id")}, None),
    "a header where it may be left out": (
        {"tenant": header, "missing": "unbound"},
        [{"x-tenant": key("header", "x-tenant")}],
    ),
}


@pytest.mark.parametrize("case", NEEDS)
def test_openapi_says_what_a_client_must_send(case: str) -> None:
    options, needed = NEEDS[case]
    assert security(documented(**options)) == needed


TOKEN = token(SIGNING, org_id="acme", sub="ann")
VALUES = {"tenant": "acme", "x-tenant": "acme", "x-tenant-id": "acme", "session": TOKEN}
OBEYED = [
    "headers",
    "a header",
    "one header for both",
    "a parameter",
    "a cookie",
    "a token",
    "a token, also in a cookie",
    "the first of two",
    "the first of two places for each",
    "a default",
    "a proof, and a hint that may be left out",
]


def send(app: FastAPI, schemes: list[dict[str, Any]]) -> int:
    """Ask as a client does that has read the document."""
    sent: dict[str, dict[str, str]] = {"header": {}, "query": {}, "cookie": {}}
    for scheme in schemes:
        if scheme["type"] == "http":
            sent["header"]["authorization"] = f"{scheme['scheme']} {TOKEN}"
        else:
            sent[scheme["in"]][scheme["name"]] = VALUES.get(scheme["name"], "ann")
    client = TestClient(app, cookies=sent["cookie"], raise_server_exceptions=False)
    return client.get("/", headers=sent["header"], params=sent["query"]).status_code


@pytest.mark.parametrize("case", OBEYED)
def test_who_sends_all_that_it_says_is_let_in_and_who_leaves_out_any_of_it_is_not(case: str) -> None:
    app = documented(**NEEDS[case][0])
    ways = security(app)
    assert ways
    for way in ways:
        assert send(app, list(way.values())) == 200
        for name in way:
            left = [scheme for other, scheme in way.items() if other != name]
            enough = any(all(scheme in left for scheme in other.values()) for other in ways)
            assert (send(app, left) == 200) is enough


def test_endpoints_that_take_neither_say_nothing() -> None:
    app = documented(**SOURCES, exempt=lambda scope: scope["path"] == "/optional")

    @app.get("/plain")
    async def plain() -> None: ...
    @app.get("/optional")
    async def optional(context: OptionalContext) -> None: ...
    @app.get("/both")
    async def both(context: OptionalContext, state: CurrentState) -> None: ...
    @app.get("/told", dependencies=[Depends(get_context)])
    async def asks_itself() -> None: ...
    @app.websocket("/live")
    async def live(websocket: WebSocket, context: CurrentContext) -> None: ...

    needed = {"x-tenant-id": TENANT, "x-user-id": USER}
    paths = ("/", "/plain", "/optional", "/both", "/told")
    assert [security(app, path) for path in paths] == [[needed], None, [needed, {}], [needed], [needed]]
    assert set(document_of(app)["paths"]) == set(paths)
    assert set(document_of(app)["paths"]["/plain"]["get"]["responses"]) == {"200"}


def test_what_is_optional_is_not_where_nobody_gets_there_without_it() -> None:
    needed = {"x-tenant-id": TENANT, "x-user-id": USER}

    async def optional(context: OptionalContext) -> None: ...

    app = documented(**SOURCES, endpoint=optional)
    assert (security(app), TestClient(app).get("/").status_code) == ([needed], 400)
    app = documented(**SOURCES, endpoint=optional, missing="unbound")
    assert (security(app), TestClient(app).get("/").status_code) == ([needed, {}], 200)
    app = bound_app(**SOURCES, missing="unbound")
    app.get("/")(optional)
    document_context(app, outer=(outer := ContextMiddleware(app, **SOURCES)))
    assert (security(app), TestClient(outer).get("/").status_code) == ([needed], 400)


def test_a_document_without_such_endpoints_is_left_as_it_is() -> None:
    app = documented(**SOURCES, endpoint=lambda: None)
    plain = FastAPI()
    plain.get("/")(app.routes[-1].endpoint)  # type: ignore[attr-defined]
    assert document_of(app) == document_of(plain)


def test_routers_webhooks_and_callbacks_are_looked_through() -> None:
    inner, outer, callbacks = APIRouter(prefix="/inner"), APIRouter(dependencies=[Depends(get_state)]), APIRouter()

    @callbacks.post("{$request.query.url}", dependencies=[Depends(get_context)])
    def done() -> None: ...
    @inner.get("/{item}", callbacks=callbacks.routes)
    def nested(item: str) -> None: ...

    outer.include_router(inner, prefix="/deep")
    app = bound_app()
    app.include_router(outer, prefix="/v1")

    @app.webhooks.post("happened", dependencies=[Depends(get_context)])
    def happened() -> None: ...

    document_context(app)
    assert security(app, "/v1/deep/inner/{item}") == [{"x-tenant-id": TENANT, "x-user-id": USER}]
    document = document_of(app)
    needed = [{"x-tenant-id": [], "x-user-id": []}]
    assert document["webhooks"]["happened"]["post"]["security"] == needed
    (callback,) = document["paths"]["/v1/deep/inner/{item}"]["get"]["callbacks"]["done"].values()
    assert callback["post"]["security"] == needed


def test_schemes_of_the_apps_own_are_needed_beside_ours() -> None:
    """FastAPI lists them as alternatives to each other."""
    app = bound_app()

    @app.get("/")
    async def endpoint(
        context: CurrentContext,
        bearer: Annotated[Any, Depends(HTTPBearer())],
        password: Annotated[Any, Depends(OAuth2PasswordBearer("/token"))],
    ) -> None: ...

    document_context(app)
    ways = security(app)
    assert ways is not None
    assert [list(way) for way in ways] == [
        ["x-tenant-id", "x-user-id", "HTTPBearer"],
        ["x-tenant-id", "x-user-id", "OAuth2PasswordBearer"],
    ]


def test_scopes_stand_at_the_schemes() -> None:
    proof = OpenIdConnect(openIdConnectUrl="https://id.example.com/.well-known/openid-configuration")
    auth = jwt_auth()

    async def user(context: CurrentContext) -> None: ...
    async def endpoint(user: Annotated[None, Security(user, scopes=["read"])]) -> None: ...

    app = documented({auth: proof}, identity=auth, endpoint=endpoint)
    assert document_of(app)["paths"]["/"]["get"]["security"] == [{"OpenIdConnect": ["read"]}]


def test_names_that_are_taken_or_cannot_be_are_replaced() -> None:
    async def endpoint(
        context: CurrentContext, own: Annotated[Any, Depends(APIKeyHeader(name="tenant", scheme_name="tenant"))]
    ) -> None: ...

    app = documented(tenant=query, user=from_cookie("tenant"), endpoint=endpoint)
    assert security(app) == [
        {
            "tenant": key("header", "tenant"),
            "tenant-2": key("query", "tenant"),
            "tenant-3": key("cookie", "tenant"),
        }
    ]
    app = documented(tenant=from_query("tenant id/ä"), user=from_header("x!user"))
    assert security(app) == [{"tenant_id__": key("query", "tenant id/ä"), "x_user": key("header", "x!user")}]


def by_function(scope: Any) -> str:
    return "acme"


class ByTable(dict[str, str]):
    """An extractor that cannot be hashed."""

    def __call__(self, scope: Any) -> str:
        return self["tenant"]


def test_what_an_extractor_cannot_tell_the_app_says() -> None:
    api_key, session = APIKeyHeader(name="x-api-key"), from_scope("session", "tenant")
    expected = key("header", "x-api-key")
    assert security(documented({by_function: api_key}, tenant=by_function)) == [{"APIKeyHeader": expected}]
    app = documented({by_function: [api_key, HTTPBearer()], session: []}, tenant=by_function, user=session)
    assert security(app) == [{"APIKeyHeader": expected, "HTTPBearer": {"type": "http", "scheme": "bearer"}}]
    app = documented({session: api_key}, tenant=first_of(header, session))
    assert security(app) == [{"x-tenant": key("header", "x-tenant")}, {"APIKeyHeader": expected}]


def test_and_may_say_otherwise_where_it_can() -> None:
    """Such as where a gateway sets the header, or Swagger UI is to fetch tokens itself."""
    assert security(documented({header: ()}, tenant=header, user=from_header("x-user-id"))) == [{"x-user-id": USER}]
    nothing = documented({header: []}, tenant=header)
    assert security(nothing) is None
    assert "securitySchemes" not in document_of(nothing)["components"]
    password = OAuth2PasswordBearer("/token")
    auth = jwt_auth()
    ways = security(documented({auth: password}, identity=auth))
    assert ways is not None
    assert ways[0]["OAuth2PasswordBearer"]["type"] == "oauth2"


UNTOLD = [by_function, from_scope("user", "tenant"), ByTable(tenant="acme"), from_header("x-tenant", trusted="::/0")]


@pytest.mark.parametrize("extractor", UNTOLD, ids=repr)
def test_where_nobody_says_it_an_error_tells_how(extractor: Any) -> None:
    with pytest.raises(ValueError, match=r"it cannot be told what a client must send for .*schemes=\{that extractor: "):
        documented(tenant=extractor)


def test_what_cannot_be_is_refused() -> None:
    app = bound_app()
    with pytest.raises(
        ValueError, match=r"from_header\('x-tenant-id'\) is none of the extractors of ContextMiddleware"
    ):
        document_context(app, schemes={from_header("x-tenant-id"): []})  # equal, perhaps, but not the same
    with pytest.raises(TypeError, match=r"a scheme is one of fastapi.security, such as .*, not <class "):
        document_context(app, schemes={SOURCES["tenant"]: [APIKeyHeader]})  # type: ignore[list-item]
    with pytest.raises(TypeError, match="takes the FastAPI app, and what stands around it as outer=, not <Context"):
        document_context(ContextMiddleware(app, **SOURCES))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"app.add_middleware\(ContextMiddleware, ...\) first"):
        document_context(FastAPI())


def test_a_middleware_outside_of_the_app_is_named() -> None:
    app = FastAPI()
    app.get("/")(in_task)
    outer = ContextMiddleware(app, **SOURCES)
    document_context(app, outer=outer)
    assert security(app) == [{"x-tenant-id": TENANT, "x-user-id": USER}]


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
def test_so_is_an_app_that_this_one_is_mounted_in(framework: Any) -> None:
    class Own(ContextMiddleware):
        pass

    app = FastAPI()
    app.get("/")(in_task)
    outer = framework(routes=[Mount("/sub", app)])
    outer.add_middleware(Own, **SOURCES)
    outer.add_middleware(lambda app: app)
    document_context(app, outer=outer)
    assert security(app) == [{"x-tenant-id": TENANT, "x-user-id": USER}]
    assert TestClient(outer).get("/sub/openapi.json", headers=ANN).json()["servers"] == [{"url": "/sub"}]


def by_a_middleware_of_its_own(app: FastAPI, outer: dict[str, Any]) -> Any:
    app.add_middleware(ContextMiddleware, **outer)


def by_one_around_the_app(app: FastAPI, outer: dict[str, Any]) -> Any:
    return ContextMiddleware(app, **outer)


def by_the_app_that_it_is_mounted_in(app: FastAPI, outer: dict[str, Any]) -> Any:
    parent = FastAPI(routes=[Mount("/sub", app)])
    parent.add_middleware(ContextMiddleware, **outer)
    return parent


def by_one_around_that(app: FastAPI, outer: dict[str, Any]) -> Any:
    return ContextMiddleware(FastAPI(routes=[Mount("/sub", app)]), **outer)


@pytest.mark.parametrize(
    "wrap",
    [by_a_middleware_of_its_own, by_one_around_the_app, by_the_app_that_it_is_mounted_in, by_one_around_that],
)
def test_of_several_middlewares_all_must_be_satisfied(wrap: Any) -> None:
    app = bound_app(identity=jwt_auth())
    app.get("/")(in_task)
    document_context(app, outer=wrap(app, SOURCES))
    assert security(app) == [{"x-tenant-id": TENANT, "x-user-id": USER, "JWT": BEARER}]


def test_also_of_those_that_stand_around_each_other() -> None:
    app = FastAPI()
    app.get("/")(in_task)
    parent = by_the_app_that_it_is_mounted_in(app, {"tenant": query})
    document_context(app, outer=ContextMiddleware(ContextMiddleware(parent, identity=jwt_auth()), **SOURCES))
    ways = security(app)
    assert ways == [{"x-tenant-id": TENANT, "x-user-id": USER, "JWT": BEARER, "tenant": key("query", "tenant")}]


def test_of_one_that_has_its_options_by_itself_they_are_found_too() -> None:
    class Own(ContextMiddleware):
        def __init__(self, app: Any) -> None:
            super().__init__(app, **SOURCES)

    app = FastAPI()
    app.get("/")(in_task)
    app.add_middleware(Own)
    document_context(app)
    assert security(app) == [{"x-tenant-id": TENANT, "x-user-id": USER}]


def refusals(app: FastAPI) -> Any:
    return document_of(app)["paths"]["/"]["get"]["responses"].get("4XX")


def test_refusals_are_described_as_they_are() -> None:
    app = documented(**SOURCES)
    name = "ContextRefused"
    assert refusals(app) == {"$ref": f"#/components/responses/{name}"}
    (media_type, content), *others = document_of(app)["components"]["responses"][name]["content"].items()
    assert others == []
    response = TestClient(app).get("/")
    assert response.headers["content-type"] == media_type
    schema, members = content["schema"], response.json()
    assert sorted(schema["properties"]) == sorted(schema["required"]) == sorted(members)
    for member, value in members.items():
        assert {"string": str, "integer": int}[schema["properties"][member]["type"]] is type(value)
    assert schema["properties"]["type"]["const"] == members["type"]


def test_but_not_where_the_app_answers_otherwise() -> None:
    app = documented(**SOURCES, on_reject=lambda rejection, scope: None)
    assert refusals(app) is None
    assert "responses" not in document_of(app)["components"]
    app = bound_app()
    app.get("/", responses={"4XX": {"description": "Mine."}})(in_task)
    document_context(app)
    assert refusals(app) == {"description": "Mine."}


def test_who_changes_one_document_changes_no_other() -> None:
    one, other = documented(**SOURCES), documented(**SOURCES)
    one.openapi()["components"]["responses"]["ContextRefused"]["content"].clear()
    assert document_of(other)["components"]["responses"]["ContextRefused"]["content"]


def test_without_the_call_the_document_says_what_is_to_be_called() -> None:
    app = bound_app()
    app.get("/")(in_task)
    ((scheme,),) = [list(way.values()) for way in security(app) or []]
    assert "document_context(app)" in scheme["description"]


def test_the_pages_of_the_documentation_are_there_where_they_are_exempt() -> None:
    pages = {"/docs", "/openapi.json"}
    app = documented(**SOURCES, exempt=lambda scope: scope["path"] in pages)
    client = TestClient(app)
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 200
    assert client.get("/").status_code == 400
    assert security(app) == [{"x-tenant-id": TENANT, "x-user-id": USER}]


def test_identity_is_the_same_that_the_middleware_has_bound() -> None:
    app = bound_app(identity=lambda scope: Identity("acme", "ann", {"role": "admin"}))

    @app.get("/")
    async def endpoint(context: CurrentContext) -> Any:
        return context.claims.to_dict()

    assert TestClient(app).get("/").json() == {"role": "admin"}
