"""What the benchmarks have in common: how variants are measured, and how requests reach them.

All variants are measured in one run, in turns, so that what else the machine does falls on all of them, and in several
processes, since one process can be a tenth faster than the next at the same code. A figure is the median over the
processes of the best turn in each.
"""

import argparse
import asyncio
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

App = Callable[..., Awaitable[None]]

Prepare = Callable[[int, int], Awaitable[object]]
"""Takes the number of a turn and how much to do, and gives what is then awaited against the clock."""

Variants = dict[str, dict[str, Prepare]]
"""By table and name."""

Run = dict[str, dict[str, float]]
"""Microseconds of each in one process."""

BARE = "bare app"
BY_HAND = "hand-written, checks nothing"

REQUEST = b"""\
host: api.example.com
user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0
accept: application/json
accept-language: en-GB,en;q=0.5
accept-encoding: gzip, deflate, br
content-type: application/json
x-tenant-id: acme
x-user-id: user-%07d
x-request-id: 0f0e0d0c0b0a09080706050403020100
x-forwarded-for: 203.0.113.7
x-forwarded-proto: https
connection: keep-alive""".replace(b"\n", b"\r\n")


def parse(raw: bytes) -> dict[str, Any]:
    """Make a scope as a server does: header bytes of its own, fresh in the processor's caches."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/items",
        "raw_path": b"/items",
        "query_string": b"",
        "root_path": "",
        "headers": [(name, value) for name, _, value in [line.partition(b": ") for line in raw.split(b"\r\n")]],
        "client": ("203.0.113.7", 50000),
        "server": ("127.0.0.1", 8000),
    }


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Any) -> None:
    pass


async def respond(send: Any) -> None:
    # Made anew, as apps do: some of the peers add to the list of headers that they are handed.
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def bare(scope: Any, receive: Any, send: Any) -> None:
    await respond(send)


class NoOp:
    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def _measure(variants: Variants, rounds: int, count: int) -> Run:
    best: Run = {table: {} for table in variants}
    for turn in range(rounds + 1):
        for table, named in variants.items():
            for name, prepare in named.items():
                work = prepare(turn, count)
                gc.collect()
                gc.disable()
                started = time.perf_counter_ns()
                await work
                spent = (time.perf_counter_ns() - started) / count / 1000
                gc.enable()
                if turn:  # the first turn warms up
                    best[table][name] = min(spent, best[table].get(name, spent))
    return best


def measured(
    variants: Callable[[], Variants], about: str | None, unit: str, *, detail: str = "", rounds: int = 40, count: int
) -> list[Run]:
    """Measure as the command line says, print the headline, and give the runs."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0] if about else None)
    parser.add_argument("--processes", type=int, default=9, help="how often all is measured anew, each in a process")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns in a process; the best counts")
    parser.add_argument("--count", type=int, default=count, help=f"{unit} of a variant in a turn")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(asyncio.run(_measure(variants(), arguments.rounds, arguments.count))))
        sys.exit()
    sizes = [f"--rounds={arguments.rounds}", f"--count={arguments.count}"]
    command = [sys.executable, sys.argv[0], "--measure", *sizes]
    runs = [json.loads(subprocess.check_output(command)) for _ in range(arguments.processes)]
    print(f"{platform.python_implementation()} {platform.python_version()}{detail}; ", end="")
    print(f"median of {arguments.processes} processes, each the best of {arguments.rounds} x {arguments.count} {unit}")
    return runs


def table_above(runs: list[Run], table: str, title: str) -> None:
    """Print what each costs above the bare app, as a multiple of what the hand-written one does."""
    print(f"{title:36} {'cost':>8} {'above bare':>11} {'x hand-written':>15} {'(from':>8} {'to)':>6}")
    costs = [run[table] for run in runs]
    for name in costs[0]:
        above = [run[name] - run[BARE] for run in costs]
        ratios = sorted(cost / (run[BY_HAND] - run[BARE]) for cost, run in zip(above, costs, strict=True))
        cost = statistics.median(run[name] for run in costs)
        print(f"{name:36} {cost:8.2f} {statistics.median(above):11.2f} {statistics.median(ratios):15.2f}", end=" ")
        print(f"{ratios[0]:8.2f} {ratios[-1]:6.2f}")
