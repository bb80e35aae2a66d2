"""Tasks that keep writing and reading while servers fail, and note what became of each call."""

import asyncio
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeVar

from asgi_context import SharedState, StateLimits
from asgi_context.errors import StateUnavailableError

T = TypeVar("T")

ROOMY = StateLimits(fields=10_000_000)
"""Of stores that writers write one field after another to."""
APART = 10**9
"""Between the numbers of two writers."""
PATIENCE = 30.0
"""Seconds after which whatever is waited for counts as hanging."""


async def patiently(ask: Callable[[], Awaitable[T]], seconds: float = PATIENCE) -> T:
    """Ask again and again until the store is there."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await ask()
            except StateUnavailableError:
                await asyncio.sleep(0.02)


async def ask(server: Any, *command: Any) -> Any:
    """Run one command, by another way than the store's."""
    return await asyncio.to_thread(server.run, *command)


def on_one_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Have a test that takes long run on one kind of event loop only."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        with asyncio.Runner() as runner:
            runner.run(test(*arguments, **named))

    return run


class Worker:
    """Asks the store again and again. Every error but `StateUnavailableError` ends it, and the test with it."""

    def __init__(self, store: Any, user: str) -> None:
        self.user = user
        self.state = SharedState(store, "acme", user)
        self.answered = 0
        self.errors: list[StateUnavailableError] = []
        self.longest = 0.0
        self.turned = asyncio.Event()

    async def begin(self) -> None:
        raise NotImplementedError

    async def work(self) -> None:
        raise NotImplementedError

    async def answer(self, call: Awaitable[T]) -> tuple[bool, T | None]:
        """Wait for a call, and say whether it was answered."""
        begun = time.monotonic()
        try:
            answer = await call
        except StateUnavailableError as error:
            self.errors.append(error)
            return False, None
        else:
            self.answered += 1
            return True, answer
        finally:
            self.longest = max(self.longest, time.monotonic() - begun)
            self.turned.set()


class Writer(Worker):
    """Writes one numbered field after another into a state of its own, and counts them in another state."""

    def __init__(self, store: Any, number: int) -> None:
        super().__init__(store, f"writer-{number}")
        self.number = self.wrong = 0
        self.acknowledged: set[int] = set()
        self.raised: set[int] = set()
        self.counted = self.uncounted = 0
        self.base = number * APART

    async def begin(self) -> None:
        await self.state.update_field("counts", "writes", self.base)

    async def work(self) -> None:
        self.number += 1
        done, made = await self.answer(self.state.update_field("log", str(self.number), self.value(self.number)))
        (self.acknowledged if done else self.raised).add(self.number)
        self.wrong += done and made and self.number != min(self.acknowledged)
        done, total = await self.answer(self.state.increment("counts", "writes"))
        self.counted += done
        self.uncounted += not done
        if total is not None:  # less where a failover has lost some
            self.wrong += not self.base < total <= self.base + self.counted + self.uncounted

    def value(self, number: int) -> str:
        return f"{self.user} wrote {number}"

    async def compare(self) -> Counter[str]:
        """Compare what the store has of it with what it was told, as soon as the store answers."""
        log = await patiently(lambda: self.state.get("log")) or {}
        count = await patiently(lambda: self.state.get_field("counts", "writes", self.base)) - self.base
        there = {int(number) for number in log}
        return Counter(
            acknowledged=len(self.acknowledged) + self.counted,
            raised=len(self.raised) + self.uncounted,
            lost=len(self.acknowledged - there) + max(0, self.counted - count),
            wrong=self.wrong
            + sum(log[str(number)] != self.value(number) for number in there)
            + len(there - self.acknowledged - self.raised)
            + len(set(range(1, self.number + 1)) ^ (self.acknowledged | self.raised)),
            twice=max(0, count - self.counted - self.uncounted),
        )


class PonderingWriter(Writer):
    """Takes its time before it writes, so that writers do not go in step."""

    def __init__(self, store: Any, number: int) -> None:
        super().__init__(store, number)
        self.random = Random(number)

    async def work(self) -> None:
        await asyncio.sleep(self.random.uniform(0, 0.5))
        await super().work()


class Reader(Worker):
    """Reads values that only it has, another one each time."""

    def __init__(self, store: Any, number: int) -> None:
        super().__init__(store, f"reader-{number}")
        self.turn = self.wrong = 0

    async def begin(self) -> None:
        await self.state.upsert("own", {f"field-{field}": f"field-{field} of {self.user}" for field in range(7)})

    async def work(self) -> None:
        self.turn += 1
        field = f"field-{self.turn % 7}"
        done, found = await self.answer(self.ask(field))
        self.wrong += done and found != f"{field} of {self.user}"

    async def ask(self, field: str) -> Any:
        return await self.state.get_field("own", field)


class HastyReader(Reader):
    """Breaks off what takes long."""

    async def ask(self, field: str) -> Any:
        try:
            return await asyncio.wait_for(super().ask(field), 0.2)
        except TimeoutError:
            message = "it was broken off here"
            raise StateUnavailableError(message) from None


@asynccontextmanager
async def at_work(*workers: Worker) -> AsyncIterator[None]:
    """Let them work inside the block; what they are at when it ends is waited for."""
    stopping = asyncio.Event()

    async def go_on(worker: Worker) -> None:
        while not stopping.is_set():
            await worker.work()

    for worker in workers:
        await worker.begin()
    async with asyncio.TaskGroup() as tasks:
        for worker in workers:
            tasks.create_task(go_on(worker))
        try:
            yield
        finally:
            stopping.set()


async def all_have(has: Callable[[Worker], int], most: int, *workers: Worker, seconds: float = PATIENCE) -> float:
    """Wait until each has so many more of something than it has now; say how many seconds that took."""
    begun = time.monotonic()
    enough = {worker: has(worker) + most for worker in workers}
    async with asyncio.timeout(seconds):
        for worker in workers:
            while has(worker) < enough[worker]:
                worker.turned.clear()
                await worker.turned.wait()
    return time.monotonic() - begun


async def all_answered(*workers: Worker, more: int = 4, seconds: float = PATIENCE) -> float:
    """Wait until each has had so many more answers; 4 are those to both calls of a turn that has not yet begun."""
    return await all_have(lambda worker: worker.answered, more, *workers, seconds=seconds)


async def all_refused(*workers: Worker, more: int = 1, seconds: float = PATIENCE) -> float:
    """Wait until each has had so many more errors."""
    return await all_have(lambda worker: len(worker.errors), more, *workers, seconds=seconds)


async def compared(*writers: Writer) -> Counter[str]:
    """The counts of all of them together."""
    return sum(await asyncio.gather(*(writer.compare() for writer in writers)), Counter())
