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
DENIED = "ERROR:    ASGI callable returned without completing handshake.\n"
"""What uvicorn says of each WebSocket that is answered by HTTP, as its own extension has it."""
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
            ended = (process.returncode, output, errors.replace(DENIED, ""))
            assert ended == (0, "", ""), ended
        finally:
            watchdog.cancel()
            process.kill()


def by_httpx(line: str) -> tuple[int, Any]:
    """Do what a line of curl says; the status, and what was answered."""
    command, *rest = shlex.split(line)
    assert command == "curl"
    url, headers, data, method = rest.pop(), dict[str, str](), None, "GET"
    words = iter(word for word in rest if word != "-i")
    for option in words:
        value = next(words)
        if option == "-d":
            data, method = value, "POST" if method == "GET" else method
        elif option == "-X":
            method = value
        else:
            assert option == "-H"
            key, headers[key] = value.split(": ")
    answer = httpx.request(method, url, headers=headers, content=data, trust_env=False, timeout=SECONDS)
    return answer.status_code, answer.json()
