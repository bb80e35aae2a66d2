"""From which pages a WebSocket may be opened: by the header ``Origin``, which browsers set and pages cannot."""

from typing import Any

import pytest
from driver import Header, Seen, hello, http, run, websocket, who

from asgi_context import ContextMiddleware, Identity, current_context, from_header

pytestmark = pytest.mark.anyio

PAGE = "https://app.example.com"


def origin(value: bytes, name: bytes = b"origin") -> Header:
    return name, value


def middleware(app: Any, *origins: str, **more: Any) -> ContextMiddleware:
    return ContextMiddleware(
        app,
        tenant=from_header("x-tenant-id"),
        user=from_header("x-user-id"),
        websocket_origins=list(origins) or [PAGE],
        **more,
    )


async def is_let_in(scope: dict[str, Any], *origins: str, **more: Any) -> bool:
    """Whether the app runs; if it does not, the answer must be that of the origin."""
    app = Seen(lambda: current_context(None))
    exchange = await run(middleware(app, *origins, **more), scope)
    if app.seen:
        return True
    assert (exchange.status, exchange.problem["code"]) == (403, "origin_forbidden")
    assert exchange.header(b"www-authenticate") == []
    assert exchange.problem["detail"] == "A page of this origin may not open this WebSocket."
    return False


def opened(*headers: Header) -> dict[str, Any]:
    return websocket(*who(), *headers, denial=True)


@pytest.mark.parametrize(
    "value",
    [
        "https://app.example.com",
        "http://localhost:3000",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "https://xn--bcher-kva.example",
        "chrome-extension://abcdefghijklmnop",
        "app://local",
    ],
)
async def test_a_page_of_an_origin_that_is_named_may_open_one(value: str) -> None:
    assert await is_let_in(opened(origin(value.encode())), value)
    assert await is_let_in(opened(origin(value.encode())), PAGE, value)
    assert not await is_let_in(opened(origin(value.encode())), "https://other.example.com")


@pytest.mark.parametrize(
    "value",
    [
        b"http://app.example.com",
        b"https://app.example.com:8443",
        b"https://app.example.com:443",
        b"https://app.example.com/",
        b"https://app.example.com/path",
        b"https://app.example.com.",
        b"https://APP.example.com",
        b"HTTPS://app.example.com",
        b"https://example.com",
        b"https://evil.app.example.com",
        b"https://app.example.com.evil.net",
        b"https://app.example.com@evil.net",
        b"https://evil.net?https://app.example.com",
        b"https://app.example.com https://evil.net",
        b"https://app.example.com, https://evil.net",
        b" https://app.example.com",
        b"https://app.example.com\t",
        b"https://app.example.com\x00",
        b"https://app.example.com\xff",
        b"//app.example.com",
        b"app.example.com",
        b"null",
        b"NULL",
        b"*",
        b"",
    ],
    ids=repr,
)
async def test_what_is_not_exactly_that_origin_is_forbidden(value: bytes) -> None:
    assert not await is_let_in(opened(origin(value)))


async def test_no_origin_is_no_browser() -> None:
    assert await is_let_in(opened())


@pytest.mark.parametrize("second", [PAGE.encode(), b"https://evil.net", b"null", b""], ids=repr)
@pytest.mark.parametrize("name", [b"origin", b"Origin"])
async def test_a_repeated_origin_is_forbidden_also_where_one_is_good(name: bytes, second: bytes) -> None:
    good, other = origin(PAGE.encode()), origin(second, name)
    assert not await is_let_in(opened(good, other))
    assert not await is_let_in(opened(other, good))


@pytest.mark.parametrize("name", [b"Origin", b"ORIGIN", b"origin"])
async def test_the_headers_name_is_read_in_any_case(name: bytes) -> None:
    assert await is_let_in(opened(origin(PAGE.encode(), name)))
    assert not await is_let_in(opened(origin(b"https://evil.net", name)))


@pytest.mark.parametrize("name", [b"x-origin", b"origin-x", b"sec-websocket-origin", b"referer"])
async def test_other_headers_are_no_origins(name: bytes) -> None:
    assert await is_let_in(opened(origin(b"https://evil.net", name)))
    assert not await is_let_in(opened(origin(PAGE.encode(), name), origin(b"https://evil.net")))


async def test_where_no_origins_are_given_all_may() -> None:
    app = Seen(lambda: current_context(None))
    for value in (b"https://evil.net", b"null"):
        await run(ContextMiddleware(app, tenant=from_header("x-tenant-id")), opened(origin(value)))
    assert len(app.seen) == 2


async def test_an_empty_collection_keeps_all_browsers_out() -> None:
    app = Seen(lambda: current_context(None))
    closed = ContextMiddleware(app, tenant=from_header("x-tenant-id"), websocket_origins=[])
    assert (await run(closed, opened(origin(PAGE.encode())))).status == 403
    assert app.seen == []
    await run(closed, opened())
    assert len(app.seen) == 1


async def test_http_is_not_asked_where_it_comes_from() -> None:
    assert await is_let_in(http(*who(), origin(b"https://evil.net")))
    assert await is_let_in(http(*who(), origin(b"null"), origin(b"null")))


async def test_what_is_exempt_is_open_to_all_pages_with_nobody_bound() -> None:
    app = Seen(lambda: current_context(None))
    exempt = middleware(app, exempt=lambda scope: scope["path"] == "/public")
    scope = websocket(*who(), origin(b"https://evil.net"), path="/public")
    await run(exempt, scope)
    assert app.seen == [None]
    assert (await run(exempt, opened(origin(b"https://evil.net")))).status == 403


@pytest.mark.parametrize("missing", ["reject", "unbound"])
async def test_the_origin_is_looked_at_before_anybody_is_asked(missing: Any) -> None:
    asked: list[Any] = []

    def extract(scope: Any) -> Identity | None:
        asked.append(scope)
        return None

    app = Seen(lambda: None)
    guarded = ContextMiddleware(
        app, identity=extract, missing=missing, websocket_origins=[PAGE], authorize=lambda context, scope: True
    )
    exchange = await run(guarded, websocket(origin(b"https://evil.net"), denial=True))
    assert (exchange.status, asked, app.seen) == (403, [], [])


async def test_a_connection_without_identity_must_come_from_there_too() -> None:
    assert not await is_let_in(websocket(origin(b"null"), denial=True), missing="unbound")
    assert await is_let_in(websocket(origin(PAGE.encode()), denial=True), missing="unbound")


async def test_without_denial_response_it_is_closed_before_it_is_accepted() -> None:
    exchange = await run(middleware(hello), websocket(*who(), origin(b"null")))
    assert exchange.sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]


async def test_nothing_of_an_origin_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    exchange = await run(middleware(hello), opened(origin(b"https://evil.net\r\nx: y")))
    assert exchange.status == 403
    assert "evil" not in repr(exchange.sent) + caplog.text
    assert "rejected: 403 origin_forbidden" in caplog.text


async def test_another_answer_may_be_given() -> None:
    codes: list[str] = []

    def on_reject(rejection: Any, scope: Any) -> None:
        codes.append(rejection.code)

    await run(middleware(hello, on_reject=on_reject), opened(origin(b"null")))
    assert codes == ["origin_forbidden"]


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset], ids=lambda kind: kind.__name__)
async def test_any_collection_will_do(kind: Any) -> None:
    app = Seen(lambda: None)
    middleware = ContextMiddleware(app, tenant=from_header("x-tenant-id"), websocket_origins=kind([PAGE]))
    await run(middleware, opened(origin(PAGE.encode())))
    assert app.seen == [None]


async def test_a_list_that_changes_later_changes_nothing() -> None:
    origins = [PAGE]
    app = Seen(lambda: None)
    middleware = ContextMiddleware(app, tenant=from_header("x-tenant-id"), websocket_origins=origins)
    origins.append("https://evil.net")
    assert (await run(middleware, opened(origin(b"https://evil.net")))).status == 403


@pytest.mark.parametrize(
    "wrong",
    [
        "null",
        "*",
        "",
        "https://",
        "https://*.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com?x",
        "https://app.example.com:",
        "https://app.example.com:port",
        "https://app.example.com:123456",
        "https://user@app.example.com",
        "https://App.example.com",
        "HTTPS://app.example.com",
        " https://app.example.com",
        "https://app.example.com\n",
        "https://bücher.example",
        "app.example.com",
        "//app.example.com",
        b"https://app.example.com",
        None,
        5,
    ],
    ids=repr,
)
def test_what_is_no_origin_cannot_be_given(wrong: Any) -> None:
    """No browser would ever send it, so it would keep everybody out, or be believed to mean more than it does."""
    with pytest.raises(ValueError, match="websocket_origins: an origin is like"):
        ContextMiddleware(hello, tenant=from_header("x-tenant-id"), websocket_origins=[PAGE, wrong])


@pytest.mark.parametrize("wrong", [PAGE, PAGE.encode(), 5, True, iter([PAGE])], ids=lambda wrong: type(wrong).__name__)
def test_origins_are_a_collection(wrong: Any) -> None:
    with pytest.raises(TypeError, match="websocket_origins must be a collection of origins"):
        ContextMiddleware(hello, tenant=from_header("x-tenant-id"), websocket_origins=wrong)
