"""The example, run as its reader runs it; and broken on purpose, since a check that never fails checks nothing."""

import asyncio
import contextlib
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
from collections import Counter
from collections.abc import Iterator
from contextvars import Context, copy_context
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from asgi_context import MemoryStore, SharedState, current_context

_PATH = Path(__file__).parent.parent / "examples" / "quickstart.py"
_COMMAND = [sys.executable, str(_PATH)]
# By these, whoever runs the tests may pretend to `rich` that there is a terminal, or send curl to a proxy.
_UNWANTED = {"force_color", "tty_compatible", "tty_interactive", "http_proxy", "https_proxy", "all_proxy"}
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name.lower() not in _UNWANTED} | {
    "COLUMNS": "60",
    "PYTHONUTF8": "1",
    "PYTHONWARNINGS": "error",
}
_SMALL = ["--tenants", "3", "--users", "4", "--requests", "3", "--messages", "2"]
_SECONDS = 60  # that a process may take before it counts as hanging


def _run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = _ENVIRONMENT | variables
    return subprocess.run(
        [*_COMMAND, *options], capture_output=True, encoding="utf-8", env=environment, timeout=_SECONDS, check=False
    )


def _numbers(output: str) -> dict[str, list[int]]:
    """Read the table: requests, messages, states and wrong by tenant."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return {tenant: [int(number) for number in numbers] for tenant, *numbers in rows}


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("COLUMNS", "60")
    for name in _UNWANTED:
        monkeypatch.delenv(name.upper(), raising=False)
    specification = importlib.util.spec_from_file_location("quickstart", _PATH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_everybody_gets_their_own() -> None:
    done = _run(*_SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert _numbers(done.stdout) == {
        "tenant-1": [12, 8, 8, 0],
        "tenant-2": [12, 8, 8, 0],
        "tenant-3": [12, 8, 8, 0],
        "all": [36, 24, 24, 0],
    }


def test_prints_the_table_alone_where_stdout_is_no_terminal() -> None:
    done = _run(*_SMALL)
    assert all(line[0] in "┏┃┡│├└" for line in done.stdout.strip().splitlines())


def test_shows_a_bar_where_stdout_is_a_terminal() -> None:
    done = _run(*_SMALL, FORCE_COLOR="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "answers checked" in done.stdout
    assert "100%" in done.stdout


def test_five_tenants_of_twenty_users_by_default() -> None:
    done = _run()
    assert (done.returncode, done.stderr) == (0, "")
    assert _numbers(done.stdout) == {f"tenant-{n}": [100, 100, 40, 0] for n in range(1, 6)} | {
        "all": [500, 500, 200, 0]
    }


def test_a_connection_carries_messages_of_several_tenants_and_users(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_note, seen = quickstart.save_note, dict[str, list[tuple[str, str | None]]]()

    async def save_and_tell(title: str, text: str) -> Any:
        context = current_context()
        if title.startswith("websocket-"):
            seen.setdefault(context.request_id, []).append((context.tenant, context.user))
        return await save_note(title, text)

    monkeypatch.setattr(quickstart, "save_note", save_and_tell)
    monkeypatch.setattr(quickstart.random, "choice", lambda gateways: gateways[0])
    assert quickstart.main(_SMALL) == 0
    (messages,) = seen.values()
    assert Counter(messages) == {(f"tenant-{t}", f"user-{u}"): 2 for t in range(1, 4) for u in range(1, 5)}


def test_the_tool_runs_in_the_pool_for_whoever_asked(quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up, seen = quickstart.look_up, list[tuple[str, str]]()

    def look_up_and_tell() -> str:
        seen.append((threading.current_thread().name.rpartition("_")[0], who := look_up()))
        return who

    monkeypatch.setattr(quickstart, "look_up", look_up_and_tell)
    assert quickstart.main(_SMALL) == 0
    assert Counter(seen) == {("asgi_context-tool", f"tenant-{t}/user-{u}"): 5 for t in range(1, 4) for u in range(1, 5)}


def test_nobody_but_the_gateway_speaks_for_others(quickstart: ModuleType) -> None:
    note = {"title": "greeting", "text": "hello"}

    def open_as(tenant: str) -> Any:
        headers = {"x-tenant-id": tenant, "x-user-id": "user-1"}
        return connect(url.replace("http:", "ws:") + "/live", additional_headers=headers, proxy=None)

    with quickstart.serving(quickstart.app, 0) as url:
        with pytest.raises(InvalidStatus) as refused, open_as("tenant-1"):
            pass
        assert json.loads(refused.value.response.body)["code"] == "tenant_forbidden"
        with open_as("gateway") as websocket:
            for who in ({"tenant": "tenant-1", "user": "user-1"}, {"tenant": "tenant-2", "user": "user-2"}):
                websocket.send(json.dumps(who | note))
                assert json.loads(websocket.recv(_SECONDS))["handler"] == f"{who['tenant']}/{who['user']}"


def _one_in_ten_is_tenant_1(app: Any) -> Any:
    count = 0

    async def broken(scope, receive, send):
        nonlocal count
        other = scope["type"] == "http" and (b"x-tenant-id", b"tenant-1") not in scope["headers"]
        count += other
        if other and count % 10 == 0:
            headers = [(name, b"tenant-1" if name == b"x-tenant-id" else value) for name, value in scope["headers"]]
            scope = {**scope, "headers": headers}
        await app(scope, receive, send)

    return broken


def _messages_of_user_2_are_for_user_1(app: Any) -> Any:
    async def broken(scope, receive, send):
        async def receive_broken():
            event = await receive()
            if event["type"] == "websocket.receive":
                event["text"] = event["text"].replace('"user": "user-2"', '"user": "user-1"')
            return event

        await app(scope, receive_broken, send)

    return broken


def _one_request_id_for_all(app: Any) -> Any:
    async def broken(scope, receive, send):
        async def send_broken(message):
            headers = [(name, b"1" if name == b"x-request-id" else value) for name, value in message.get("headers", [])]
            await send({**message, "headers": headers} if headers else message)

        await app(scope, receive, send_broken)

    return broken


def _no_websockets(app: Any) -> Any:
    async def broken(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await app(scope, receive, send)

    return broken


def _no_sense(app: Any) -> Any:
    async def broken(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"what?"})
        else:
            await app(scope, receive, send)

    return broken


@pytest.mark.parametrize(
    "broken",
    [
        _one_in_ten_is_tenant_1,
        _messages_of_user_2_are_for_user_1,
        _one_request_id_for_all,
        _no_websockets,
        _no_sense,
    ],
)
def test_notices_a_broken_app(quickstart: ModuleType, capsys: pytest.CaptureFixture[str], broken: Any) -> None:
    assert quickstart.main(_SMALL, broken(quickstart.app)) == 1
    output, errors = capsys.readouterr()
    assert _numbers(output)["all"][-1] > 0
    assert "expected" in errors


def test_notices_messages_that_are_handled_for_whom_the_first_one_named(
    quickstart: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_note, first = quickstart.save_note, dict[str, Context]()

    async def save_as_the_first(title: str, text: str) -> Any:
        if not title.startswith("websocket-"):
            return await save_note(title, text)
        context = first.setdefault(current_context().request_id, copy_context())  # the id is the connection's
        return await asyncio.create_task(save_note(title, text), context=context)

    monkeypatch.setattr(quickstart, "save_note", save_as_the_first)
    assert quickstart.main(_SMALL) == 1
    assert _numbers(capsys.readouterr().out)["all"][-1] > 0  # there are fewer connections than users


def test_notices_a_thread_of_somebody_else(
    quickstart: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "look_up", lambda: "tenant-1/user-1")
    assert quickstart.main(_SMALL) == 1
    assert _numbers(capsys.readouterr().out) == {
        "tenant-1": [12, 8, 8, 15],  # all but the five answers to user-1
        "tenant-2": [12, 8, 8, 20],
        "tenant-3": [12, 8, 8, 20],
        "all": [36, 24, 24, 55],
    }


def test_notices_a_task_of_somebody_else(
    quickstart: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def follow_up() -> str:
        return "tenant-1/user-1"

    monkeypatch.setattr(quickstart, "follow_up", follow_up)
    assert quickstart.main(_SMALL) == 1
    assert _numbers(capsys.readouterr().out)["all"] == [36, 24, 24, 55]


def test_notices_states_that_tenants_share(
    quickstart: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    monkeypatch.setattr(quickstart, "current_state", lambda: SharedState(store, "all", current_context().user))
    assert quickstart.main(_SMALL) == 1
    assert _numbers(capsys.readouterr().out)["all"][-1] > 0


def test_notices_states_that_are_left_over(quickstart: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main(_SMALL) == 0
    assert quickstart.main(["--tenants", "1", "--users", "1", "--requests", "1", "--messages", "1"]) == 1
    assert _numbers(capsys.readouterr().out)["all"] == [1, 1, 2, 1]


def test_gives_up_when_it_takes_too_long() -> None:
    # Connections that are cancelled while they are made may be left to the garbage collector, by anyio and others.
    done = _run("--users", "1000", "--timeout", "0.5", PYTHONWARNINGS="")
    assert done.returncode == 1
    assert "not done after 0.5 seconds, gave up" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout.strip()


@pytest.mark.parametrize("option", ["--tenants", "--users", "--requests", "--messages"])
def test_refuses_sizes_of_nothing(quickstart: ModuleType, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as raised:
        quickstart.main([option, "0"])
    assert raised.value.code == 2
    assert "at least one" in capsys.readouterr().err


def test_says_that_a_port_is_taken(quickstart: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as raised:
        port = taken.getsockname()[1]
        quickstart.main(["--port", str(port)])
    assert raised.value.code == 2
    assert f"error: --port {port}: " in capsys.readouterr().err


def _by_httpx(line: str) -> tuple[int, Any]:
    command, include, *rest = shlex.split(line)
    assert (command, include) == ("curl", "-i")
    url, headers, data = rest.pop(), {}, None
    for option, value in zip(rest[::2], rest[1::2], strict=True):
        if option == "-d":
            data = value
        else:
            assert option == "-H"
            name, headers[name] = value.split(": ")
    answer = httpx.request("GET" if data is None else "POST", url, headers=headers, content=data, trust_env=False)
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


@contextlib.contextmanager
def _served(*options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run the example with ``--serve``; give the process and what it printed until it waits."""
    # Where pytest runs in a shell's background, Ctrl-C is ignored, which processes inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*_COMMAND, *_SMALL, "--serve", *options],
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
            yield process, lines
        finally:
            watchdog.cancel()
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a single process")
@pytest.mark.parametrize(
    "ask",
    [
        _by_httpx,
        pytest.param(_by_curl, marks=pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")),
    ],
)
def test_serves_what_its_curl_lines_ask_for_until_ctrl_c(ask: Any) -> None:
    with _served() as (process, lines):
        assert _numbers("\n".join(lines))["all"] == [36, 24, 24, 0]
        curl_lines = [line for line in lines if line.startswith("curl ")]
        assert all("http://127.0.0.1:" in line for line in curl_lines)
        write, look, look_elsewhere, unnamed = curl_lines

        status, answer = ask(write)
        assert (status, answer["handler"], answer["note"]) == (200, "tenant-1/user-1", "hello")
        status, states = ask(look)
        assert (status, states["profile"], states["notes"]["greeting"]) == (200, {"name": "tenant-1/user-1"}, "hello")
        status, states = ask(look_elsewhere)
        assert (status, states["profile"]) == (200, {"name": "tenant-2/user-1"})
        assert "greeting" not in states["notes"]
        status, problem = ask(unnamed)
        assert (status, problem["code"]) == (400, "tenant_missing")

        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=_SECONDS)
        assert (process.returncode, output, errors) == (0, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a single process")
def test_serves_where_it_is_told_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with _served("--port", str(port)) as (process, lines):
        assert any(line.endswith(f" http://127.0.0.1:{port}/states") for line in lines)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=_SECONDS)
        assert process.returncode == 0
