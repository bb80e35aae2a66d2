"""What ``import asgi_context`` takes on top of ``import asyncio``, which every app has imported.

Run by ``python tests/benchmarks/imports.py``. Each import is timed in a process of its own, in turns.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys

TIMED = """
import sys, time
import asyncio
started = time.perf_counter_ns()
import {module}
print((time.perf_counter_ns() - started) / 1e6)
"""
MODULES = ("asyncio", "asgi_context", "starlette.applications", "fastapi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=15, help="how often each import is timed")
    arguments = parser.parse_args()
    compiling = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times: dict[str, list[float]] = {module: [] for module in MODULES}
    for turn in range(arguments.processes + 1):
        for module, spent in times.items():
            code = TIMED.format(module=module)
            command = [sys.executable, "-c", code]
            result = subprocess.run(command, capture_output=True, text=True, check=True, env=compiling)
            if turn:  # the first turn compiles, and keeps what it compiled
                spent.append(float(result.stdout))
    print(f"CPython {platform.python_version()}; median of {arguments.processes} processes")
    print(f"{'ms after import asyncio':30} {'median':>8} {'fastest':>8}")
    for module, spent in times.items():
        print(f"{'import ' + module:30} {statistics.median(spent):8.2f} {min(spent):8.2f}")


if __name__ == "__main__":
    main()
