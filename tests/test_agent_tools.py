"""The example of tools, run as its reader runs it."""

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import redis_servers

_PATH = Path(__file__).parent.parent / "examples" / "agent_tools.py"
_UNWANTED = {"force_color", "tty_compatible", "tty_interactive", "http_proxy", "https_proxy", "all_proxy"}
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name.lower() not in _UNWANTED} | {
    "COLUMNS": "120",
    "PYTHONUTF8": "1",
    "PYTHONWARNINGS": "error",
}


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(_PATH), *options]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=_ENVIRONMENT, timeout=60, check=False)


@pytest.fixture(scope="module", params=["memory", "redis"])
def output(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        result = _run()
    else:
        server = redis_servers.Server()
        with closing(server), closing(server.client()) as client:
            result = _run("--redis", server.url)
            assert client.hget("asgi_context:{acme:ann}:s:profile", "colour") == b'"red"'
            assert client.hget("asgi_context:{globex:ann}:s:profile", "colour") == b'"green"'
            assert client.hget("asgi_context:{globex:ann}:s:profile", "recalls") == b"1"
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def _timeline(output: str, tenant: int) -> list[str]:
    """What one user saw, in order."""
    rows = [line.split("│")[1:-1] for line in output.splitlines() if line.startswith("│")]
    return [row[1 + tenant].strip() for row in rows if row[1 + tenant].strip()]


@pytest.mark.parametrize(("tenant", "colour"), [(0, "red"), (1, "green")])
def test_each_user_sees_their_own_calls_from_beginning_to_end(output: str, tenant: int, colour: str) -> None:
    seen = _timeline(output, tenant)
    said = [line for line in seen if re.match(r"\w+>", line)]
    assert said == [
        "ann> What is my colour?",
        f"ann> My colour is {colour}.",
        "bob> What is my colour?",
        "ann> Write a report.",
        "ann> What is my colour?",
    ]
    assert "Recall tool_error" in seen
    assert "1 | You have not told me any colour yet." in seen
    assert f"2 | {colour}, change 1" in seen
    report = ["Report started", "Report: gathering", "Report: writing", "Report completed"]
    assert [line for line in seen if line.startswith("Report")] == report
    assert "3 | You have not told me any colour yet." in seen, "bob has not, though ann has, over the same connection"
    assert seen[-1] == f"5 | {colour}"


def test_it_says_whether_the_answers_were_right(output: str) -> None:
    assert "what each ann is told last: ['red', 'green']: right" in output


def test_both_go_on_at_the_same_time(output: str) -> None:
    rows = [line.split("│")[1:-1] for line in output.splitlines() if re.match(r"│ \d", line)]
    whose = "".join("a" if row[1].strip() else "b" for row in rows)
    assert "aba" in re.sub(r"(.)\1+", r"\1", whose)


def test_it_fails_where_an_answer_is_not_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "agent_tools.py"
    text = _PATH.read_text(encoding="utf-8")
    one = 'return str(profile["colour"])'
    assert text.count(one) == 1
    broken.write_text(text.replace(one, 'return "blue"'), encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "_PATH", broken)
    result = _run()
    assert result.returncode == 1
    assert "WRONG" in result.stdout
