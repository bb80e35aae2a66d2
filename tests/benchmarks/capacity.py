"""What a `MemoryStore` holds: 1,000,000 states over 10,000 tenants, the time of each operation on the way, and bytes.

Run by ``python tests/benchmarks/capacity.py``. Each size is filled in a process of its own, so that none has the memory
of another, and each operation is timed in several turns on random states that are there, of which the best is printed:
what else the machine does only adds. Bytes are the growth of the resident set, over the states.
"""

import argparse
import asyncio
import ctypes
import gc
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from asgi_context import KEEP, MemoryStore, StateLimits

SIZES = (1_000, 10_000, 100_000, 1_000_000)
TENANTS = 10_000
USERS = 10  # of each tenant
FIELDS = {"colour": b'"green"', "visits": b"1"}
TURNS = 15
CALLS = 1000  # in each turn

Call = Callable[[tuple[str, str], str], Awaitable[Any]]


def resident() -> int:
    """Bytes of this process that are in memory (Linux: proc(5), statm)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Have the C library hand free memory to the system: else it is counted as if it were used."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def place(number: int) -> tuple[tuple[str, str], str]:
    tenant = number % TENANTS
    rest = number // TENANTS
    return (f"tenant{tenant}", f"user{rest % USERS}"), f"state{rest // USERS}"


def calls(store: MemoryStore) -> dict[str, Call]:
    return {
        "read": lambda space, name: store.read(space, name),
        "read_field": lambda space, name: store.read_field(space, name, "colour"),
        "exists": lambda space, name: store.exists(space, name),
        "merge one field": lambda space, name: store.merge(space, name, {"colour": b'"blue"'}, KEEP),
        "replace": lambda space, name: store.replace(space, name, FIELDS, KEEP),
        "increment": lambda space, name: store.increment(space, name, "visits", 1),
        "touch": lambda space, name: store.touch(space, name, 3600),
        "names": lambda space, name: store.names(space),
        "make and remove": lambda space, name: make_and_remove(store, space),
        "count": lambda space, name: store.count(space, "calls", 1, 60),
    }


async def make_and_remove(store: MemoryStore, space: tuple[str, str]) -> None:
    await store.merge(space, "new", FIELDS, 3600)
    await store.remove(space, "new")


async def time_calls(call: Call, size: int) -> float:
    best = float("inf")
    seeded = random.Random(size)
    for _ in range(TURNS):
        places = [place(seeded.randrange(size)) for _ in range(CALLS)]
        for space, name in places:  # of all sizes alike, what is timed was touched just before
            await call(space, name)
        begun = time.perf_counter()
        for space, name in places:
            await call(space, name)
        best = min(best, time.perf_counter() - begun)
    return best / CALLS


async def fill(size: int) -> dict[str, Any]:
    store = MemoryStore(limits=StateLimits(states=2 * size, total_bytes=10**12))
    gc.disable()  # a full collection looks at all that is kept, whichever call it falls into
    give_back()
    empty = resident()
    begun = time.perf_counter()
    for number in range(size):
        space, name = place(number)
        await store.merge(space, name, FIELDS, 3600 if number % 2 else None)
    filled = time.perf_counter() - begun
    give_back()
    result: dict[str, Any] = {"bytes": (resident() - empty) / size, "fill": filled / size, "full": resident() - empty}
    result["times"] = {name: await time_calls(call, size) for name, call in calls(store).items()}
    tenants = {place(number)[0][0] for number in range(size)}
    begun = time.perf_counter()
    result["erased"] = sum([await store.erase(tenant) for tenant in tenants])
    result["erase"] = (time.perf_counter() - begun) / size
    del tenants
    give_back()
    result["left"] = resident() - empty
    result["repr"] = repr(store)
    return result


async def one_space(size: int) -> dict[str, float]:
    """All states of one user: what the end of many in one place costs each."""
    now = 0.0
    store = MemoryStore(limits=StateLimits(user_states=10**9), clock=lambda: now)
    figures: dict[str, float] = {}
    for _ in range(2):
        for number in range(size):
            await store.merge(("acme", "ann"), str(number), FIELDS, 10)
        begun = time.perf_counter()
        if figures:
            now = 1000.0
            while repr(store) != "<MemoryStore: 0 states of 0 tenants>":
                await store.exists(("other", None), "s")
            figures["taken out when they are over"] = (time.perf_counter() - begun) / size
        else:
            await store.erase("acme")
            figures["erase"] = (time.perf_counter() - begun) / size
    return figures


def in_process(kind: str, size: int) -> Any:
    done = subprocess.run([sys.executable, __file__, "--worker", kind, str(size)], check=True, capture_output=True)
    return json.loads(done.stdout)


def row(name: str, cells: list[str]) -> str:
    return f"| {name:<34} |" + "".join(f" {cell:>12} |" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, size = options.worker
        print(json.dumps(asyncio.run((fill if kind == "fill" else one_space)(int(size)))))
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs; up to {TENANTS:,} tenants; two fields each")
    results = [in_process("fill", size) for size in SIZES]
    print(row("microseconds per call, of states", [f"{size:,}" for size in SIZES]))
    print(row("---", ["---"] * len(SIZES)))
    for name in results[0]["times"]:
        print(row(name, [f"{result['times'][name] * 1e6:.2f}" for result in results]))
    print(row("make the first time", [f"{result['fill'] * 1e6:.2f}" for result in results]))
    print(row("erase all, per state", [f"{result['erase'] * 1e6:.2f}" for result in results]))
    print(row("bytes per state", [f"{result['bytes']:.0f}" for result in results]))
    print(row("MiB when full", [f"{result['full'] / 2**20:.1f}" for result in results]))
    print(row("MiB after erase", [f"{result['left'] / 2**20:.1f}" for result in results]))
    print(f"erased: {[result['erased'] for result in results]}; {results[-1]['repr']}")
    sizes = (1_000, 10_000, 40_000, 80_000)
    spaces = [in_process("one", size) for size in sizes]
    print()
    print(row("all of one user, us per state", [f"{size:,}" for size in sizes]))
    print(row("---", ["---"] * len(sizes)))
    for name in spaces[0]:
        print(row(name, [f"{space[name] * 1e6:.2f}" for space in spaces]))


if __name__ == "__main__":
    main()
