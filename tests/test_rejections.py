"""Bad or missing identity is answered before the app runs, by fixed texts, on HTTP and WebSocket."""

import logging
import pickle
import re
from typing import Any

import pytest
from driver import Exchange, Seen, hello, http, run, websocket, who

from asgi_context import ContextMiddleware, Identity, RequestRejected, agree, constant, first_of, from_header
from asgi_context.errors._requests import _TEXTS

pytestmark = pytest.mark.anyio

TENANT, USER = from_header("x-tenant-id"), from_header("x-user-id")
ANN = (b"x-user-id", b"ann")


def wrap(app: Any, **options: Any) -> ContextMiddleware:
    return ContextMiddleware(app, **({"tenant": TENANT, "user": USER} | options))


def refusing(status: int = 418, code: str = "teapot", **more: Any) -> Any:
    def extractor(scope: Any) -> Any:
        raise RequestRejected(status, code, **more)

    return extractor


BAD = {
    "missing": ([ANN], "tenant_missing"),
    "empty": ([ANN, (b"x-tenant-id", b"")], "tenant_invalid"),
    "blank": ([ANN, (b"x-tenant-id", b" \t")], "tenant_invalid"),
    "repeated": ([ANN, (b"x-tenant-id", b"acme"), (b"x-tenant-id", b"acme")], "tenant_repeated"),
    "over-long": ([ANN, (b"x-tenant-id", b"a" * 129)], "tenant_invalid"),
    "non-ASCII": ([ANN, (b"x-tenant-id", b"caf\xe9")], "tenant_invalid"),
    "UTF-8": ([ANN, (b"x-tenant-id", "café".encode())], "tenant_invalid"),
    "control character": ([ANN, (b"x-tenant-id", b"ac\x00me")], "tenant_invalid"),
    "trailing newline": ([ANN, (b"x-tenant-id", b"acme\n")], "tenant_invalid"),
    "comma-joined": ([ANN, (b"x-tenant-id", b"acme, globex")], "tenant_invalid"),
    "only dots": ([ANN, (b"x-tenant-id", b"..")], "tenant_invalid"),
    "twin": ([ANN, (b"x_tenant_id", b"acme")], "tenant_invalid"),
    "twin beside": ([ANN, (b"x-tenant-id", b"acme"), (b"x_tenant_id", b"acme")], "tenant_repeated"),
    "no user": ([(b"x-tenant-id", b"acme")], "user_missing"),
    "bad user": ([(b"x-tenant-id", b"acme"), (b"x-user-id", b"a/b")], "user_invalid"),
    "two users": ([*who(), ANN], "user_repeated"),
}


@pytest.mark.parametrize(("headers", "code"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("denial", [None, True, False], ids=["http", "denial response", "close"])
async def test_bad_input_is_refused_and_the_app_is_not_called(headers: Any, code: str, denial: bool | None) -> None:
    app = Seen(lambda: None)
    exchange = await run(wrap(app), http(*headers) if denial is None else websocket(*headers, denial=denial))
    assert app.seen == []
    if denial is False:
        assert exchange.sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]
        return
    prefix = "http.response" if denial is None else "websocket.http.response"
    assert [message["type"] for message in exchange.sent] == [f"{prefix}.start", f"{prefix}.body"]
    assert exchange.status == exchange.problem["status"] == 400
    assert exchange.problem["code"] == code
    assert exchange.problem["detail"] == _TEXTS[code]
    assert exchange.header(b"content-length") == [str(len(exchange.body)).encode()]


@pytest.mark.parametrize("headers", [headers for name, (headers, _) in BAD.items() if name != "missing"])
async def test_what_is_invalid_is_refused_also_where_missing_is_allowed(headers: Any) -> None:
    app = Seen(lambda: None)
    assert (await run(wrap(app, missing="unbound"), http(*headers))).status == 400
    assert app.seen == []


@pytest.mark.parametrize("user", [(b"x-user-id", b"a/b"), (b"x_user_id", b"a")])
async def test_an_invalid_user_is_refused_also_without_a_tenant(user: Any) -> None:
    assert (await run(wrap(hello, missing="unbound"), http(user))).problem["code"] == "user_invalid"


async def test_sources_that_disagree_are_a_403() -> None:
    middleware = ContextMiddleware(hello, tenant=agree(constant("acme"), TENANT))
    exchange = await run(middleware, http((b"x-tenant-id", b"globex")))
    assert (exchange.status, exchange.problem["code"]) == (403, "tenant_mismatch")


async def test_without_any_identity_the_code_names_what_was_looked_for() -> None:
    assert (await run(ContextMiddleware(hello, tenant=TENANT), http())).problem["code"] == "tenant_missing"
    exchange = await run(ContextMiddleware(hello, identity=lambda scope: None), http())
    assert (exchange.status, exchange.problem["code"]) == (400, "identity_missing")


async def test_an_extractor_that_refuses_decides_status_code_and_headers() -> None:
    middleware = ContextMiddleware(hello, identity=refusing(headers=[("Retry-After", "5")]))
    exchange = await run(middleware, http())
    assert (exchange.status, exchange.problem["code"]) == (418, "teapot")
    assert exchange.header(b"retry-after") == [b"5"]
    assert exchange.problem["detail"] == exchange.problem["title"] == "I'm a Teapot"


@pytest.mark.parametrize("identifiers", [("a b", None), ("acme", "a b"), ("acme", "..")])
async def test_an_identity_of_the_users_own_making_is_checked_like_any_other(identifiers: Any) -> None:
    exchange = await run(ContextMiddleware(hello, identity=lambda scope: Identity(*identifiers)), http())
    assert exchange.problem["code"] == ("user_invalid" if identifiers[1] else "tenant_invalid")


async def test_an_extractor_of_the_users_own_can_bring_its_own_rule() -> None:
    def identity(scope: Any) -> Identity:
        return Identity("two words", "ann b")

    identity.valid = str.isprintable  # type: ignore[attr-defined]
    assert (await run(ContextMiddleware(hello, identity=identity), http())).status == 200


# Nothing of the client comes back

CANARY = b"canary-<script>-\xff\x1b[31m"


@pytest.mark.parametrize("denial", [None, True])
async def test_a_clients_bytes_are_neither_answered_nor_logged(
    denial: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    def crash(scope: Any) -> str:
        raise ValueError(scope["headers"][0][1].decode("latin-1") + "\nINFO forged line")

    caplog.set_level(logging.DEBUG)
    for middleware in (wrap(hello), wrap(hello, tenant=crash), wrap(hello, request_id=crash)):
        headers = [(b"x-tenant-id", CANARY), ANN]
        exchange = await run(middleware, http(*headers) if denial is None else websocket(*headers, denial=True))
        assert b"canary" not in exchange.body
        assert "canary" not in str(exchange.sent[0])
    logged = caplog.text
    assert "\x1b" not in logged
    assert "\xff" not in logged
    assert "\nINFO forged line" not in logged
    assert "rejected: 400 tenant_invalid" in logged


# Crashes


def crash(*_: Any) -> Any:
    raise KeyError("secret detail")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"tenant": crash}, "KeyError"),
        ({"user": crash}, "KeyError"),
        ({"request_id": crash}, "KeyError"),
        ({"exempt": crash}, "KeyError"),
        ({"authorize": crash}, "KeyError"),
        (
            {"tenant": lambda scope: 42},
            "the extractor <function <lambda>.*returned int; it must return str, Identity or None",
        ),
        ({"authorize": lambda context, scope: "yes"}, "authorize returned str; it must return bool"),
        (
            {"tenant": from_header("x-tenant-id", valid=lambda value: Awaitable())},
            "returned Awaitable; it must return bool",
        ),
        ({"tenant": lambda scope: Identity("acme")}, "given as tenant= returned Identity; it must return str or None"),
        ({"user": lambda scope: Identity("acme")}, "given as user= returned Identity; it must return str or None"),
        ({"request_id": lambda scope: Identity("acme")}, "given as request_id= returned Identity"),
        ({"tenant": None, "user": None, "identity": lambda scope: "a"}, "given as identity= returned str; it must"),
        ({"exempt": lambda scope: Awaitable()}, "exempt returned Awaitable; it must return bool"),
        ({"exempt": lambda scope: None}, "exempt returned NoneType; it must return bool"),
    ],
)
async def test_what_crashes_is_a_500_without_details_and_a_traceback_in_the_log(
    options: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Seen(lambda: None)
    exchange = await run(wrap(app, **options), http(*who()))
    assert app.seen == []
    assert (exchange.status, exchange.problem["code"]) == (500, "internal_error")
    assert b"secret" not in exchange.body
    [record] = caplog.records
    assert record.name == "asgi_context"
    assert record.levelno == logging.ERROR
    assert "Traceback" in caplog.text
    assert re.search(what, caplog.text)


class Awaitable:
    def __await__(self) -> Any:
        yield


async def test_the_log_shows_the_whole_chain_of_a_crash(caplog: pytest.LogCaptureFixture) -> None:
    def caused(scope: Any) -> str:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise ValueError("second")  # noqa: B904 - an implicit context
        except ValueError as error:
            raise OSError("third") from error

    def ring(scope: Any) -> str:
        error = ValueError("itself")
        other = KeyError("other")
        error.__cause__, other.__cause__ = other, error
        raise error

    await run(wrap(hello, tenant=caused), http())
    text = caplog.text
    assert text.index("builtins.KeyError: 'first'") < text.index("ValueError: second") < text.index("OSError: third")
    await run(wrap(hello, tenant=ring), http())
    assert "itself" in caplog.text


async def test_the_log_shows_what_is_inside_a_group_of_errors(caplog: pytest.LogCaptureFixture) -> None:
    def grouped(scope: Any) -> str:
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("\x1bdeep")]), ValueError("second")])

    def endless(scope: Any) -> str:
        group: Exception = KeyError("bottom")
        for _ in range(10):
            group = ExceptionGroup("level", [group])
        raise group

    exchange = await run(wrap(hello, tenant=grouped), http())
    assert exchange.problem["code"] == "internal_error"
    assert "deep" in caplog.text
    assert "second" in caplog.text
    assert "\x1b" not in caplog.text

    def branching(scope: Any) -> str:
        raise branch(5)

    def branch(depth: int) -> Exception:
        return ExceptionGroup("branch", [branch(depth - 1) for _ in range(5)]) if depth else KeyError("leaf")

    caplog.clear()
    await run(wrap(hello, tenant=branching), http())
    assert caplog.text.count("builtins.ExceptionGroup: branch") < 100
    await run(wrap(hello, tenant=endless), http())
    assert "level" in caplog.text
    assert "bottom" not in caplog.text


@pytest.mark.parametrize("text", [lambda self: 1 / 0, lambda self: None], ids=["raises", "no string"])
async def test_an_error_whose_own_text_fails_is_logged_all_the_same(
    text: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken = type("BrokenError", (Exception,), {"__str__": text})

    def extractor(scope: Any) -> str:
        raise broken

    assert (await run(wrap(hello, tenant=extractor), http())).status == 500
    assert "BrokenError: (its text cannot be had)" in caplog.text


async def test_malformed_headers_of_an_options_request_are_a_500_like_any_other() -> None:
    scope = http(method="OPTIONS")
    scope["headers"] = [(b"origin",)]
    assert (await run(wrap(hello), scope)).status == 500


async def test_an_error_without_context_is_shown_without(caplog: pytest.LogCaptureFixture) -> None:
    def quiet(scope: Any) -> str:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise ValueError("shown") from None

    await run(wrap(hello, tenant=quiet), http())
    assert "shown" in caplog.text
    assert "hidden" not in caplog.text


# Challenges


class Bearer:
    challenge = 'Bearer realm="api"'

    def __call__(self, scope: Any) -> None:
        return None


class Basic:
    challenge = "Basic"

    def __call__(self, scope: Any) -> None:
        return None


async def test_a_source_with_a_challenge_makes_missing_a_401() -> None:
    exchange = await run(ContextMiddleware(hello, identity=Bearer()), http())
    assert (exchange.status, exchange.problem["code"]) == (401, "identity_missing")
    assert exchange.header(b"www-authenticate") == [b'Bearer realm="api"']


async def test_the_challenges_of_several_sources_are_joined() -> None:
    exchange = await run(ContextMiddleware(hello, identity=first_of(Bearer(), Basic())), http())
    assert exchange.header(b"www-authenticate") == [b'Bearer realm="api", Basic']


async def test_a_source_that_has_challenged_is_not_spoken_for_again() -> None:
    bad = refusing(401, "token_invalid", headers=[("WWW-Authenticate", 'bearer error="invalid_token"')])
    exchange = await run(ContextMiddleware(hello, identity=first_of(Bearer(), Basic(), bad)), http())
    assert exchange.header(b"www-authenticate") == [b'bearer error="invalid_token", Basic']
    assert exchange.problem["detail"] == "Unauthorized"


async def test_a_rejection_that_says_all_itself_reaches_on_reject_as_it_was_raised() -> None:
    class ExpiredError(RequestRejected):
        pass

    def identity(scope: Any) -> None:
        raise ExpiredError(401, "token_expired")

    seen: list[Any] = []
    on_reject = lambda rejection, scope: seen.append(rejection)  # noqa: E731
    await run(ContextMiddleware(hello, identity=identity, on_reject=on_reject), http())
    assert type(seen[0]) is ExpiredError


def test_a_challenge_that_no_header_can_hold_is_refused_at_construction() -> None:
    bearer = Bearer()
    bearer.challenge = "Bearer\r\nx: y"
    with pytest.raises(ValueError, match="RFC 9110"):
        ContextMiddleware(hello, identity=bearer)


# on_reject


async def plain(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"no", "more_body": True})
    await send({"type": "http.response.body", "body": b"pe"})


async def test_on_reject_gives_another_answer_or_leaves_it() -> None:
    def on_reject(rejection: RequestRejected, scope: Any) -> Any:
        seen.append((rejection.status, rejection.code, scope["path"]))
        return plain if scope["path"] == "/plain" else None

    seen: list[Any] = []
    middleware = wrap(hello, on_reject=on_reject)
    exchange = await run(middleware, http(path="/plain"))
    assert (exchange.status, exchange.body) == (404, b"nope")
    assert (await run(middleware, http())).problem["code"] == "tenant_missing"
    assert (await run(middleware, http(*who()))).status == 200
    assert seen == [(400, "tenant_missing", "/plain"), (400, "tenant_missing", "/")]


async def test_an_answer_in_terms_of_http_works_on_a_websocket() -> None:
    middleware = wrap(hello, on_reject=lambda rejection, scope: plain)
    exchange = await run(middleware, websocket(denial=True))
    assert [message["type"] for message in exchange.sent] == ["websocket.http.response.start"] + [
        "websocket.http.response.body"
    ] * 2
    assert (exchange.status, exchange.body) == (404, b"nope")
    exchange = await run(middleware, websocket())
    assert exchange.sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]


async def test_an_answer_in_terms_of_websockets_passes_as_it_is() -> None:
    async def accept_and_close(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4401})

    async def denial(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"nope"})

    exchange = await run(wrap(hello, on_reject=lambda *_: accept_and_close), websocket())
    assert [message["type"] for message in exchange.sent] == ["websocket.accept", "websocket.close"]
    exchange = await run(wrap(hello, on_reject=lambda *_: denial), websocket(denial=True))
    assert (exchange.status, exchange.body) == (404, b"nope")


async def test_the_connect_is_read_before_it_is_answered() -> None:
    exchange = Exchange([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1006}])
    await wrap(hello)(websocket(), exchange.receive, exchange.send)
    assert exchange.to_receive == [{"type": "websocket.disconnect", "code": 1006}]


async def test_extensions_may_be_none() -> None:
    exchange = await run(wrap(hello), websocket(extensions=None))
    assert exchange.sent[0]["type"] == "websocket.close"


async def test_an_on_reject_that_crashes_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    exchange = await run(wrap(hello, on_reject=crash), http())
    assert exchange.problem["code"] == "internal_error"
    assert "on_reject failed" in caplog.text
    exchange = await run(wrap(hello, on_reject=lambda rejection, scope: {"status": 400}), http())
    assert exchange.problem["code"] == "internal_error"
    assert "on_reject returned dict; it must return an ASGI app or None" in caplog.text


# RequestRejected


def test_a_rejection_keeps_its_data_and_says_them() -> None:
    rejection = RequestRejected(403, "tenant_forbidden", headers=[("X-A", "b"), (b"c", b"d")])
    assert (rejection.status, rejection.code, rejection.headers) == (
        403,
        "tenant_forbidden",
        ((b"x-a", b"b"), (b"c", b"d")),
    )
    assert str(rejection) == "403 tenant_forbidden"
    assert (rejection.title, rejection.detail) == ("Forbidden", "This user may not act in this tenant.")
    again = pickle.loads(pickle.dumps(rejection))
    assert (again.status, again.code, again.headers) == (rejection.status, rejection.code, rejection.headers)


def test_a_status_without_a_name_and_a_code_without_a_text_have_a_text_all_the_same() -> None:
    rejection = RequestRejected(499, "gone_away")
    assert (rejection.title, rejection.detail) == ("Refused", "Refused")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((200, "ok"), ValueError),
        ((399, "ok"), ValueError),
        ((600, "ok"), ValueError),
        ((True, "ok"), TypeError),
        (("400", "ok"), TypeError),
        ((400, b"ok"), TypeError),
        ((400, "Bad Request"), ValueError),
        ((400, "9lives"), ValueError),
        ((400, "a\n"), ValueError),
        ((400, "a" * 65), ValueError),
        ((400, ""), ValueError),
    ],
)
def test_a_rejection_must_make_sense(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        RequestRejected(*arguments)


@pytest.mark.parametrize(
    "header",
    [("a b", "c"), ("", "c"), ("a", "b\r\nset-cookie: x"), ("a", "€"), ("é", "b"), (b"a", b"\x00"), ("a:", "b")],
)
def test_a_rejection_cannot_split_the_answer(header: Any) -> None:
    with pytest.raises(ValueError, match="RFC 9110"):
        RequestRejected(400, "bad", headers=[header])


@pytest.mark.parametrize("name", ["Content-Length", b"content-type", "transfer-encoding"])
def test_a_rejection_does_not_bring_what_the_answer_has_itself(name: Any) -> None:
    with pytest.raises(ValueError, match="on_reject"):
        RequestRejected(400, "bad", headers=[(name, "1")])


def test_every_text_is_one_plain_sentence() -> None:
    for code, text in _TEXTS.items():
        RequestRejected(400, code)
        assert text.isascii()
        assert text.endswith(".")
