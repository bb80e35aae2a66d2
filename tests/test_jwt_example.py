"""The example of tokens, run as its reader runs it; and broken on purpose, since a check that never fails checks nothing."""

import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from asgi_context import ContextMiddleware, constant
from asgi_context.jwt import JWTAuth

_PATH = Path(__file__).parent.parent / "examples" / "jwt_api.py"
_COMMAND = [sys.executable, str(_PATH)]
# By these, whoever runs the tests may pretend to `rich` that there is a terminal, or send curl to a proxy.
_UNWANTED = {"force_color", "tty_compatible", "tty_interactive", "http_proxy", "https_proxy", "all_proxy"}
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name.lower() not in _UNWANTED} | {
    "COLUMNS": "200",
    "PYTHONUTF8": "1",
    "PYTHONWARNINGS": "error",
}
_SECONDS = 60  # that a process may take before it counts as hanging
_INVALID = "401 invalid_token"
_ANSWERS = {
    "ann of acme": ("200 acme/ann", ""),
    "another ann, of globex": ("200 globex/ann", ""),
    "nobody": ("401 identity_missing", "This request does not say who it is for."),
    "signed with a key of one's own": (_INVALID, "log: its signature is not that of its key"),
    "signed by nobody (alg none)": (_INVALID, "log: it is not three segments of base64url"),
    "signed with the public key (alg HS256)": (_INVALID, "log: its alg is not that of its key"),
    "bob's claims under ann's signature": (_INVALID, "log: its signature is not that of its key"),
    "too long": (_INVALID, "log: it is too long"),
    "no token at all": (_INVALID, "log: it is not three segments of base64url"),
    "expired": (_INVALID, "log: it has expired"),
    "never expires": (_INVALID, "log: it has no exp"),
    "for tomorrow": (_INVALID, "log: its nbf is in the future"),
    "for another API": (_INVALID, "log: it is for another audience"),
    "of another issuer": (_INVALID, "log: it is of another issuer"),
    "made for something else (typ)": (_INVALID, "log: its typ is not allowed"),
    "acme's issuer speaks for globex": ("403 tenant_forbidden", "This user may not act in this tenant."),
    "names no tenant": ("403 tenant_missing", "This request does not name a tenant."),
    "names no good tenant": ("400 tenant_invalid", "The tenant identifier is not acceptable."),
    "names two tenants": (_INVALID, "log: the payload is not strict JSON"),
    "two tokens": (
        "400 invalid_request",
        "This request carries more than one access token, or one where none may stand.",
    ),
    "WebSocket, of a token of 3 seconds": ("acme/ann", ""),
    "... renewed by a token of acme's bob": ("user_mismatch", ""),
    "... renewed by a newer token of ann's": ("acme/ann", ""),
    "another, of a token of 3 seconds": ("acme/ann", ""),
    "WebSocket, from a page of ours": ("globex/ann", ""),
    "... from a page of others": ("403 origin_forbidden", "A page of this origin may not open this WebSocket."),
    "... with the token in the URL": ("401 identity_missing", "This request does not say who it is for."),
    "... of a token that has expired": (_INVALID, "log: it has expired"),
    "3 seconds later: not renewed": ("4401 identity_expired", ""),
    "3 seconds later: renewed": ("acme/ann", ""),
}


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *options], capture_output=True, encoding="utf-8", env=_ENVIRONMENT, timeout=_SECONDS, check=False
    )


def _answers(output: str) -> dict[str, tuple[str, str]]:
    """Read the table: answer and reason by what was tried."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return {name: (answer, why) for name, answer, why in rows}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("COLUMNS", "200")
    for name in _UNWANTED:
        monkeypatch.delenv(name.upper(), raising=False)
    specification = importlib.util.spec_from_file_location("jwt_api", _PATH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_shows_who_is_let_in_who_is_refused_and_why() -> None:
    done = _run()
    assert (done.returncode, done.stderr) == (0, "")
    assert _answers(done.stdout) == _ANSWERS


def test_no_token_stands_in_the_log(example: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    issue, issued = example.issue, list[str]()

    def issue_and_tell(*args: Any, **options: Any) -> str:
        issued.append(issue(*args, **options))
        return issued[-1]

    example.issue = issue_and_tell
    caplog.set_level("DEBUG")
    assert example.main([]) == 0
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name == "asgi_context")
    assert logged.count("refused a token: ") == 14
    assert len(issued) > 20
    for token in issued:
        for segment in token.split("."):
            assert segment not in logged


def test_the_app_selects_its_own_subprotocol_and_never_sees_the_token(example: ModuleType) -> None:
    token, app, seen = example.issue(), example.app.app, list[str]()

    async def looking(scope: Any, receive: Any, send: Any) -> None:
        seen.append(repr(scope))
        await app(scope, receive, send)

    example.app.app = looking
    with example.serving(example.app, 0) as url:
        live = url.replace("http:", "ws:") + "/live"
        protocols: Any = [f"bearer.{token}", "chat"]
        with connect(live, origin=example.PAGE, subprotocols=protocols, proxy=None) as websocket:
            assert websocket.subprotocol == "chat"
            websocket.send("{}")
            assert json.loads(websocket.recv(_SECONDS)) == {"who": "acme/ann"}
    (scope,) = (scope for scope in seen if "/live" in scope)
    assert "chat" in scope
    assert token not in scope


def _believes_anybody(app: ContextMiddleware) -> Any:
    return ContextMiddleware(app.app, tenant=constant("acme"), user=constant("ann"))


def _checks_signatures_alone(app: ContextMiddleware) -> Any:
    auth = _auth(app)
    for issuer in auth._issuers:
        issuer.rules = issuer.rules._replace(audiences=frozenset())
    return app


def _believes_any_issuer_of_any_tenant(app: ContextMiddleware) -> Any:
    auth = _auth(app)
    for issuer in auth._issuers:
        issuer._may = None
    return app


class _Everybodys(frozenset[bytes]):
    def __contains__(self, origin: object) -> bool:
        return True


def _lets_any_page_in(app: ContextMiddleware) -> Any:
    app._services = app._services._replace(origins=_Everybodys())
    return app


def _auth(app: ContextMiddleware) -> JWTAuth:
    (auth,) = (part for part in app._lifespan._parts if isinstance(part, JWTAuth))
    return auth


@pytest.mark.parametrize(
    ("broken", "wrong"),
    [
        (_believes_anybody, "nobody: expected 401 identity_missing, got 200 acme/ann"),
        (_checks_signatures_alone, "for another API: expected 401 invalid_token, got 200 acme/ann"),
        (
            _believes_any_issuer_of_any_tenant,
            "acme's issuer speaks for globex: expected 403 tenant_forbidden, got 200 globex/ann",
        ),
        (_lets_any_page_in, "... from a page of others: expected 403 origin_forbidden, got globex/ann"),
    ],
)
def test_notices_a_broken_app(
    example: ModuleType, capsys: pytest.CaptureFixture[str], broken: Any, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example.Clients, "outlast", example.Clients.ask)  # it would wait for what never comes
    assert example.main([], broken(example.app)) == 1
    assert wrong in capsys.readouterr().err.splitlines()


def test_gives_up_when_it_takes_too_long() -> None:
    done = _run("--timeout", "0.5")
    assert done.returncode == 1
    assert "not done after 0.5 seconds, gave up" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout.strip()


def test_says_that_a_port_is_taken(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as raised:
        port = taken.getsockname()[1]
        example.main(["--port", str(port)])
    assert raised.value.code == 2
    assert f"error: --port {port}: " in capsys.readouterr().err


def _by_httpx(line: str) -> tuple[int, Any]:
    command, include, *rest = shlex.split(line)
    assert (command, include) == ("curl", "-i")
    url, headers = rest.pop(), {}
    for option, value in zip(rest[::2], rest[1::2], strict=True):
        assert option == "-H"
        name, headers[name] = value.split(": ")
    answer = httpx.get(url, headers=headers, trust_env=False)
    return answer.status_code, answer.json()


def _by_curl(line: str) -> tuple[int, Any]:
    done = subprocess.run(
        shlex.split(line),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        env=_ENVIRONMENT,
        timeout=_SECONDS,
        check=True,
    )
    head, body = done.stdout.split("\n\n", 1)
    return int(head.split()[1]), json.loads(body)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a single process")
def test_serves_what_its_curl_lines_ask_for_until_ctrl_c() -> None:
    # Where pytest runs in a shell's background, Ctrl-C is ignored, which processes inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*_COMMAND, "--serve"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=_ENVIRONMENT,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        watchdog = threading.Timer(_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith("Ctrl-C"):
                    break
            for ask in [_by_httpx, *([_by_curl] if shutil.which("curl") else [])]:
                one, other, nobody, foreign, own = [ask(line) for line in lines if line.startswith("curl ")]
                assert one == (200, {"who": "acme/ann"})
                assert other == (200, {"who": "globex/ann"})
                assert [(status, answer["code"]) for status, answer in (nobody, foreign, own)] == [
                    (401, "identity_missing"),
                    (403, "tenant_forbidden"),
                    (401, "invalid_token"),
                ]
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=_SECONDS)
            assert (process.returncode, output, errors) == (0, "", "")
        finally:
            watchdog.cancel()
            process.kill()
