"""What a job in a thread costs: ``run_in_pool`` and ``run_in_executor`` beside ``asyncio.to_thread`` and asgiref's.

Run by ``python tests/benchmarks/pools.py``; how it is measured stands in ``turns.py``. The jobs do nothing, so that all
that is measured is the way there and back. All are run from inside of a request, and with as many threads.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import sync_to_async
from turns import REQUEST, Prepare, Run, Variants, measured, parse, receive, send

from asgi_context import ContextMiddleware, Pool, from_header, run_in_executor, run_in_pool

OURS = "run_in_pool"
THREADS = 8
AT_ONCE = 50

Ask = Callable[[int], Awaitable[int]]


def job(number: int) -> int:
    return number


executor = ThreadPoolExecutor(THREADS)
in_thread: Callable[[int], Any] = sync_to_async(job, thread_sensitive=False)

ASKS: dict[str, Ask] = {
    OURS: lambda number: run_in_pool("jobs", job, number),
    "run_in_executor": lambda number: run_in_executor(None, job, number),
    "asyncio.to_thread": lambda number: asyncio.to_thread(job, number),
    "asgiref, not thread-sensitive": lambda number: in_thread(number),
}


async def one_by_one(ask: Ask, count: int) -> None:
    for number in range(count):
        await ask(number)


async def many_at_once(ask: Ask, count: int) -> None:
    for first in range(0, count, AT_ONCE):
        await asyncio.gather(*[ask(number) for number in range(first, min(first + AT_ONCE, count))])


def jobs(ask: Ask, run: Callable[[Ask, int], Awaitable[None]], counts: list[int]) -> Prepare:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await run(ask, counts.pop())

    headers = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}
    middleware = ContextMiddleware(app, **headers, pools={"jobs": Pool(THREADS)})

    def prepare(turn: int, count: int) -> Awaitable[object]:
        counts.append(count)
        asyncio.get_running_loop().set_default_executor(executor)
        return middleware(parse(REQUEST % turn), receive, send)

    return prepare


def variants() -> Variants:
    return {
        table: {name: jobs(ask, run, []) for name, ask in ASKS.items()}
        for table, run in (("one after the other", one_by_one), (f"{AT_ONCE} at once", many_at_once))
    }


def table_beside(runs: list[Run], table: str) -> None:
    """Print how many jobs a second each does, and how many times those of ``run_in_pool`` that is."""
    print(f"{table:32} {'us per job':>11} {'jobs/s':>9} {'x ours':>8} {'(from':>8} {'to)':>6}")
    costs = [run[table] for run in runs]
    for name in costs[0]:
        ratios = sorted(run[OURS] / run[name] for run in costs)
        cost = statistics.median(run[name] for run in costs)
        print(f"{name:32} {cost:11.2f} {1e6 / cost:9.0f} {statistics.median(ratios):8.2f}", end=" ")
        print(f"{ratios[0]:8.2f} {ratios[-1]:6.2f}")


def main() -> None:
    runs = measured(variants, __doc__, "jobs", detail=f", {THREADS} threads", count=500)
    for table in runs[0]:
        print()
        table_beside(runs, table)


if __name__ == "__main__":
    main()
