"""The examples that serve, run as their readers run them."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

SECONDS = 60
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


@contextmanager
def served(name: str, lines: int) -> Iterator[list[str]]:
    """Run an example until the block ends, by Ctrl-C; gives the lines that it prints, of which there are so many."""
    # Where pytest runs in a shell's background, Ctrl-C is ignored, which processes inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(EXAMPLES / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=ENVIRONMENT,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        watchdog = threading.Timer(SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            yield [process.stdout.readline().rstrip("\n") for _ in range(lines)]
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=SECONDS)
            ended = (process.returncode, output, errors)
            assert ended == (0, "", ""), ended
        finally:
            watchdog.cancel()
            process.kill()


def by_httpx(line: str) -> tuple[int, Any]:
    """Do what a line of curl says; the status, and what was answered."""
    command, *rest = shlex.split(line)
    assert command == "curl"
    url, headers, data = rest.pop(), {}, None
    for option, value in zip(rest[::2], rest[1::2], strict=True):
        if option == "-d":
            data = value
        else:
            assert option == "-H"
            key, headers[key] = value.split(": ")
    answer = httpx.request("GET" if data is None else "POST", url, headers=headers, content=data, trust_env=False)
    return answer.status_code, answer.json()
