"""What a job in another process costs: `ContextProcessPoolExecutor` beside the bare ``ProcessPoolExecutor``.

Run by ``python tests/benchmarks/processes.py``; how it is measured stands in ``turns.py``. The jobs do nothing, so that
all that is measured is the way there and back. Both have as many processes, which are spawned, and are asked from inside
of a bound block; ours takes tenant, user, request id and a value along, and the bare one nothing.
"""

import asyncio
import multiprocessing
import statistics
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor, wait

from turns import Prepare, Run, Variants, measured

from asgi_context import Identity, bind_context
from asgi_context.processes import ContextProcessPoolExecutor

OURS = "ContextProcessPoolExecutor"
PROCESSES = 2
AT_ONCE = 50
VALUES = {"locale": "de"}


def job(number: int) -> int:
    return number


def one_by_one(executor: Executor, count: int) -> None:
    for number in range(count):
        executor.submit(job, number).result()


def many_at_once(executor: Executor, count: int) -> None:
    for first in range(0, count, AT_ONCE):
        wait([executor.submit(job, number) for number in range(first, min(first + AT_ONCE, count))])


async def bound(run: Callable[[], None]) -> None:
    with bind_context(Identity("acme", "ann"), values=VALUES):
        await asyncio.sleep(0)
        run()


def jobs(executor: Executor, run: Callable[[Executor, int], None]) -> Prepare:
    def prepare(turn: int, count: int) -> Awaitable[object]:
        return bound(lambda: run(executor, count))

    return prepare


def variants() -> Variants:
    executors: dict[str, Executor] = {
        OURS: ContextProcessPoolExecutor(PROCESSES, values=tuple(VALUES)),
        "ProcessPoolExecutor": ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")),
    }
    return {
        table: {name: jobs(executor, run) for name, executor in executors.items()}
        for table, run in (("one after the other", one_by_one), (f"{AT_ONCE} at once", many_at_once))
    }


def table_beside(runs: list[Run], table: str) -> None:
    """Print how many jobs a second each does, and how many times those of the bare pool ours are."""
    print(f"{table:32} {'us per job':>11} {'jobs/s':>9} {'x ours':>8} {'(from':>8} {'to)':>6}")
    costs = [run[table] for run in runs]
    for name in costs[0]:
        ratios = sorted(run[name] / run[OURS] for run in costs)
        cost = statistics.median(run[name] for run in costs)
        print(f"{name:32} {cost:11.2f} {1e6 / cost:9.0f} {statistics.median(ratios):8.2f}", end=" ")
        print(f"{ratios[0]:8.2f} {ratios[-1]:6.2f}")


def main() -> None:
    runs = measured(variants, __doc__, "jobs", detail=f", {PROCESSES} processes", rounds=20, count=500)
    for table in runs[0]:
        print()
        table_beside(runs, table)


if __name__ == "__main__":
    main()
