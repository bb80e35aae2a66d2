"""The examples of frameworks do what they say: on a real server, by the lines that they print."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate
from served_examples import ENVIRONMENT, EXAMPLES, SECONDS, by_httpx, served
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def opened(line: str, at: str, **headers: str) -> Any:
    """A WebSocket of the server that a line leads to."""
    port = line.rpartition("127.0.0.1:")[2].partition("/")[0]
    return connect(f"ws://127.0.0.1:{port}{at}", additional_headers=headers, proxy=None, open_timeout=SECONDS)


def live(line: str, tenant: str, user: str) -> Any:
    return opened(line, "/live", **{"x-tenant-id": tenant, "x-user-id": user})


def ask(connection: Any, **message: str) -> Any:
    connection.send(json.dumps(message))
    return json.loads(connection.recv(SECONDS))


@pytest.mark.matrix("FastAPI", "fastapi", "starlette")
def test_that_of_fastapi_keeps_profiles_apart_and_its_documentation_is_true() -> None:
    with served("fastapi_app.py", 8) as lines:
        put, look, guests, other, nobody, welcome, _, browser = lines
        assert by_httpx(look) == (200, None)
        assert by_httpx(put) == (200, {"tenant": "acme", "user": "ann"})
        assert by_httpx(look) == (200, {"colour": "green"})
        assert by_httpx(guests) == (200, {"ann": 1})
        assert by_httpx(other) == (200, None)
        status, members = by_httpx(nobody)
        assert (status, members["code"]) == (400, "tenant_missing")
        assert by_httpx(welcome) == (200, "Hello, whoever you are!")
        with live(look, "acme", "ann") as ann, live(look, "globex", "ann") as namesake:
            assert ask(ann) == {"user": "ann", "profile": {"colour": "green"}}
            assert ask(namesake) == {"user": "ann", "profile": None}
        with pytest.raises(InvalidStatus), live(look, "", ""):
            pass
        url = browser.removeprefix("In a browser: ")
        assert httpx.get(url, trust_env=False, timeout=SECONDS).status_code == 200
        _, document = by_httpx(f"curl {url.replace('/docs', '/openapi.json')}")
        validate(document)
        assert document["paths"]["/profile"]["get"]["security"] == [{"x-tenant-id": [], "x-user-id": []}]


@pytest.mark.matrix("Starlette", "starlette")
def test_that_of_starlette_keeps_notes_apart_and_binds_each_message() -> None:
    with served("starlette_app.py", 6) as lines:
        put, look, other, nobody, _, _ = lines
        assert by_httpx(put) == (200, {"tenant": "acme", "user": "ann", "kept": "today"})
        assert by_httpx(look) == (200, {"notes": {"today": "buy milk"}, "of_tenant": {"notes": 1}})
        assert by_httpx(other) == (200, {"notes": None, "of_tenant": None})
        status, members = by_httpx(nobody)
        assert (status, members["code"]) == (400, "tenant_missing")
        with live(look, "globex", "bob") as connection:
            note = {"title": "later", "text": "call"}
            kept = {"tenant": "globex", "kept": "later"}
            assert ask(connection, tenant="globex", user="ann", **note) == {**kept, "user": "ann"}
            assert ask(connection, tenant="globex", user="bob", **note) == {**kept, "user": "bob"}
            with pytest.raises(ConnectionClosed, match="message_mismatch"):
                ask(connection, tenant="acme", user="ann", **note)
        assert by_httpx(other) == (200, {"notes": {"later": "call"}, "of_tenant": None})


@pytest.mark.matrix("Litestar", "litestar")
def test_that_of_litestar_keeps_carts_apart_and_binds_each_message() -> None:
    with served("litestar_app.py", 6) as lines:
        add, look, other, nobody, _, _ = lines
        assert by_httpx(add) == (200, {"tenant": "acme", "user": "ann", "apple": 1})
        assert by_httpx(look) == (200, {"cart": {"apple": 1}, "sold": {"apple": 1}})
        assert by_httpx(other) == (200, {"cart": None, "sold": None})
        status, members = by_httpx(nobody)
        assert (status, members["code"]) == (400, "tenant_missing")
        with live(look, "globex", "bob") as connection:
            assert ask(connection, tenant="globex", user="ann", article="pear") == {"user": "ann", "pear": 1}
            assert ask(connection, tenant="globex", user="bob", article="pear") == {"user": "bob", "pear": 1}
            with pytest.raises(ConnectionClosed, match="message_mismatch"):
                ask(connection, tenant="acme", user="ann", article="pear")
        assert by_httpx(other) == (200, {"cart": {"pear": 1}, "sold": None})


@pytest.mark.matrix("Quart", "quart")
def test_that_of_quart_keeps_boards_apart_over_http_and_websockets() -> None:
    with served("quart_app.py", 4) as lines:
        write, look, look_elsewhere, unnamed = lines
        status, answer = by_httpx(write)
        assert (status, answer["line"], answer["lines"]) == (200, "ann: hello", 1)
        with opened(write, "/live", **{"x-tenant-id": "gateway", "x-user-id": "door"}) as connection:
            for user, lines_of_user in (("ann", 2), ("bob", 1)):
                connection.send(json.dumps({"tenant": "acme", "user": user, "text": "hi"}))
                assert json.loads(connection.recv(SECONDS)) == {"line": f"{user}: hi", "lines": lines_of_user}
            connection.send(json.dumps({"text": "hi", "tenant": 1}))
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(SECONDS)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
        status, boards = by_httpx(look)
        assert (status, boards["own"]) == (200, {"last": "ann: hi", "lines": 2})
        assert by_httpx(look_elsewhere) == (200, {"own": None, "tenant": None})
        status, problem = by_httpx(unnamed)
        assert (status, problem["code"]) == (400, "tenant_missing")


ORDERS = "/orders/live"


def check_django(lines: list[str]) -> None:
    """What the example says, whichever server it runs on."""
    order, look, look_elsewhere, anonymous, unnamed = lines
    cid, other = ({"x-tenant-id": tenant, "x-login": "cid"} for tenant in ("acme", "globex"))
    with opened(order, ORDERS, **cid) as acme, opened(order, ORDERS, **other) as globex:
        assert by_httpx(order) == (200, {"tenant": "acme", "user": "ann", "item": "book", "count": 1})
        assert json.loads(acme.recv(SECONDS)) == {"to": "cid", "by": "ann", "item": "book"}
        assert by_httpx(look) == (200, {"user": "ann", "orders": {"book": 1}})
        assert by_httpx(look_elsewhere) == (200, {"user": "ann", "orders": {}})
        # Had it heard of the order of acme's, that would come first.
        assert by_httpx(order.replace("acme", "globex"))[0] == 200
        assert json.loads(globex.recv(SECONDS)) == {"to": "cid", "by": "ann", "item": "book"}
        with pytest.raises(TimeoutError):
            globex.recv(0)
    assert by_httpx(anonymous) == (401, {"error": "log in first"})
    status, problem = by_httpx(unnamed)
    assert (status, problem["code"]) == (400, "tenant_missing")


@pytest.mark.matrix("Django", "django", "asgiref")
@pytest.mark.matrix("Channels", "channels")
def test_that_of_django_keeps_orders_apart_in_views_and_consumers() -> None:
    with served("django_app.py", 5) as lines:
        check_django(lines)


@pytest.mark.matrix("Channels", "channels", "daphne")
def test_that_of_django_does_so_on_daphne_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "daphne", "--fd", str(listener.fileno()), "django_app:application"]
        process = subprocess.Popen(
            command,
            cwd=EXAMPLES,
            env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), str(EXAMPLES)])},
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
    url = f"http://127.0.0.1:{port}"
    ann = 'curl -H "x-tenant-id: acme" -H "x-login: ann"'
    other = 'curl -H "x-tenant-id: globex" -H "x-login: ann"'
    lines = [f"{ann} {url}/order/book", f"{ann} {url}/orders", f"{other} {url}/orders"]
    lines += [f'curl -H "x-tenant-id: acme" {url}/orders', f"curl {url}/orders"]
    with process:
        try:
            check_django(lines)
            with pytest.raises(InvalidStatus), opened(url + "/", ORDERS):
                pass
        finally:
            process.kill()


@pytest.mark.matrix("MCP", "mcp")
def test_that_of_mcp_keeps_notes_apart() -> None:
    with served("mcp_server.py", 2) as lines:
        ask, unnamed = lines
        _, path, *arguments = ask.split()
        command = [sys.executable, "-W", "error", str(EXAMPLES.parent / path), *arguments]
        asked = subprocess.run(
            command, env=ENVIRONMENT, timeout=SECONDS, check=True, stdout=subprocess.PIPE, encoding="utf-8"
        )
        assert asked.stdout.splitlines() == [
            "ann: {'result': 1}",
            'ann: {"text":"hello"}',
            "bob: {'result': 0}",
            'bob: {"text":"no such note"}',
        ]
        status, problem = by_httpx(unnamed)
        assert (status, problem["code"]) == (400, "tenant_missing")
