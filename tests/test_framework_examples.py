"""The examples of frameworks, each run as its reader runs it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

_EXAMPLES = Path(__file__).parent.parent / "examples"
_UNWANTED = {"http_proxy", "https_proxy", "all_proxy"}
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name.lower() not in _UNWANTED} | {
    "PYTHONUTF8": "1",
    "PYTHONWARNINGS": "error",
}
# uvicorn says this of every WebSocket that is answered by HTTP, as its own extension has it.
_DENIED = "ERROR:    ASGI callable returned without completing handshake.\n"
_SECONDS = 60  # that anything may take before it counts as hanging


class Example:
    """One that runs, and the curl lines that it has printed."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(_EXAMPLES / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=_ENVIRONMENT,
        )
        assert self.process.stdout is not None
        self.lines = list(iter(lambda: self.process.stdout.readline().strip(), ""))  # type: ignore[union-attr]
        (self.url,) = {url for line in self.lines for url in re.findall(r"http://127\.0\.0\.1:\d+", line)}
        self.http = httpx.Client(trust_env=False, timeout=_SECONDS)

    def curl(self, line: str) -> Any:
        """Do what a line says, and give status and body of the answer."""
        words = shlex.split(line)
        assert words[:2] == ["curl", "-i"]
        method, content, headers = "GET", None, dict[str, str]()
        rest = iter(words[2:-1])
        for option in rest:
            value = next(rest)
            if option == "-H":
                name, _, text = value.partition(": ")
                headers[name] = text
            elif option == "-X":
                method = value
            else:
                assert option == "-d"
                content = value
        response = self.http.request(method, words[-1], headers=headers, content=content)
        return response.status_code, response.json()

    def open(self, tenant: str, user: str) -> ClientConnection:
        headers = {"x-tenant-id": tenant, "x-user-id": user}
        url = self.url.replace("http:", "ws:") + "/live"
        return connect(url, additional_headers=headers, proxy=None, open_timeout=_SECONDS)

    def ask(self, connection: ClientConnection, **message: str) -> Any:
        connection.send(json.dumps(message))
        return json.loads(connection.recv(_SECONDS))

    def end(self) -> None:
        """By Ctrl-C, and look whether it has complained of anything."""
        self.http.close()
        self.process.send_signal(signal.SIGINT)
        _, complaints = self.process.communicate(timeout=_SECONDS)
        assert (self.process.returncode, complaints.replace(_DENIED, "")) == (0, "")


def run(name: str) -> Iterator[Example]:
    example = Example(name)
    try:
        yield example
        example.end()
    finally:
        example.process.kill()
        example.process.communicate()


def test_fastapi() -> None:
    for example in run("fastapi_app.py"):
        put, look, guests, other, nobody, welcome = example.lines
        assert example.curl(look) == (200, None)
        assert example.curl(put) == (200, {"tenant": "acme", "user": "ann"})
        assert example.curl(look) == (200, {"colour": "green"})
        assert example.curl(guests) == (200, {"ann": 1})
        assert example.curl(other) == (200, None)
        status, members = example.curl(nobody)
        assert (status, members["code"]) == (400, "tenant_missing")
        assert example.curl(welcome) == (200, "Hello, whoever you are!")
        with example.open("acme", "ann") as ann, example.open("globex", "ann") as namesake:
            assert example.ask(ann) == {"user": "ann", "profile": {"colour": "green"}}
            assert example.ask(namesake) == {"user": "ann", "profile": None}
        with pytest.raises(InvalidStatus), example.open("", ""):
            pass
        assert example.http.get(f"{example.url}/docs").status_code == 200
        document = example.http.get(f"{example.url}/openapi.json").json()
        validate(document)
        assert document["paths"]["/profile"]["get"]["security"] == [{"x-tenant-id": [], "x-user-id": []}]


def test_starlette() -> None:
    for example in run("starlette_app.py"):
        put, look, other, nobody = example.lines
        assert example.curl(put) == (200, {"tenant": "acme", "user": "ann", "kept": "today"})
        assert example.curl(look) == (200, {"notes": {"today": "buy milk"}, "of_tenant": {"notes": 1}})
        assert example.curl(other) == (200, {"notes": None, "of_tenant": None})
        status, members = example.curl(nobody)
        assert (status, members["code"]) == (400, "tenant_missing")
        with example.open("globex", "bob") as connection:
            note = {"title": "later", "text": "call"}
            kept = {"tenant": "globex", "kept": "later"}
            assert example.ask(connection, tenant="globex", user="ann", **note) == {**kept, "user": "ann"}
            assert example.ask(connection, tenant="globex", user="bob", **note) == {**kept, "user": "bob"}
            with pytest.raises(ConnectionClosed, match="message_mismatch"):
                example.ask(connection, tenant="acme", user="ann", **note)
        assert example.curl(other) == (200, {"notes": {"later": "call"}, "of_tenant": None})


def test_litestar() -> None:
    for example in run("litestar_app.py"):
        add, look, other, nobody = example.lines
        assert example.curl(add) == (200, {"tenant": "acme", "user": "ann", "apple": 1})
        assert example.curl(look) == (200, {"cart": {"apple": 1}, "sold": {"apple": 1}})
        assert example.curl(other) == (200, {"cart": None, "sold": None})
        status, members = example.curl(nobody)
        assert (status, members["code"]) == (400, "tenant_missing")
        with example.open("globex", "bob") as connection:
            assert example.ask(connection, tenant="globex", user="ann", article="pear") == {"user": "ann", "pear": 1}
            assert example.ask(connection, tenant="globex", user="bob", article="pear") == {"user": "bob", "pear": 1}
            with pytest.raises(ConnectionClosed, match="message_mismatch"):
                example.ask(connection, tenant="acme", user="ann", article="pear")
        assert example.curl(other) == (200, {"cart": {"pear": 1}, "sold": None})
