"""Calls that are broken off at any moment: what they were answered reaches nobody else, and nobody waits for ever."""

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, NamedTuple

import pytest
import redis_servers
import uvloop
from redis_servers import Server

from asgi_context import SharedState
from asgi_context.errors import StateUnavailableError

log = logging.getLogger(__name__)

USERS = 12
MANY, FEW = 50, 3
"""How many ask at once: with few, one is often alone with a connection, and its commands go without others."""
FIELDS = 10
LARGE = 20_000  # characters of a value that goes alone
APART = 10**9  # between the numbers of two users


class Call(NamedTuple):
    """A call, and whether an answer to it is right."""

    coroutine: Any
    is_right: Callable[[Any], bool]


class Worker:
    """Calls that are broken off at random. Every value names the user, the state and the field it is of."""

    def __init__(self, states: list[SharedState], number: int) -> None:
        self.random = Random(number)
        self.states = states
        self.name = f"worker-{number}"
        self.mine = states[number % len(states)]
        self.possible: set[str | None] = {None}
        self.turn = 0
        self.counts: Counter[str] = Counter()
        self.wrong: list[tuple[Any, Any]] = []
        self.kinds = [self.read, self.write, self.read_all, self.add, self.write_mine, self.read_mine, self.list]
        self.kinds += [self.read_large, self.write_large]
        self.weights = [35, 20, 10, 10, 10, 10, 2, 1.5, 1.5]

    def pick(self) -> tuple[int, SharedState, str]:
        user = self.random.randrange(USERS)
        return user, self.states[user], f"field-{self.random.randrange(FIELDS)}"

    def read(self) -> Call:
        user, state, field = self.pick()
        return Call(state.get_field("form", field), lambda text: text.startswith(f"{user} form {field} "))

    def write(self) -> Call:
        user, state, field = self.pick()
        value = f"{user} form {field} {self.name} {self.turn}"
        return Call(state.update_field("form", field, value), lambda made: made is False)

    def read_all(self) -> Call:
        user, state, _ = self.pick()
        return Call(
            state.get("form"),
            lambda form: (
                len(form) == FIELDS and all(text.startswith(f"{user} form {name} ") for name, text in form.items())
            ),
        )

    def add(self) -> Call:
        user, state, _ = self.pick()
        return Call(state.increment("number", "own"), lambda number: number // APART == user)

    def write_mine(self) -> Call:
        value = f"{self.name} {self.turn}"
        self.possible.add(value)

        def is_right(made: bool) -> bool:
            self.possible = {value}
            return made is False

        return Call(self.mine.update_field("workers", self.name, value), is_right)

    def read_mine(self) -> Call:
        """The last that was acknowledged, or one that was broken off after that."""

        def is_right(value: str | None) -> bool:
            possible, self.possible = self.possible, {value}
            return value in possible

        return Call(self.mine.get_field("workers", self.name), is_right)

    def list(self) -> Call:
        _, state, _ = self.pick()
        return Call(state.list_states(), lambda names: names == ["form", "large", "number", "workers"])

    def write_large(self) -> Call:
        user, state, _ = self.pick()
        value = f"{user} large field {self.turn} " + "x" * LARGE
        return Call(state.update_field("large", "field", value), lambda made: made is False)

    def read_large(self) -> Call:
        user, state, _ = self.pick()
        return Call(state.get_field("large", "field"), lambda text: text.startswith(f"{user} large field "))

    async def work(self) -> None:
        self.turn += 1
        call = self.random.choices(self.kinds, self.weights)[0]()
        how = self.random.random()
        try:
            if how < 0.3:
                answer = await call.coroutine
            elif how < 0.5:
                answer = await asyncio.wait_for(call.coroutine, self.random.uniform(0, 0.004))
            else:
                answer = await self.broken_off(call.coroutine)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # it was not the call alone that was cancelled
            self.counts["cancelled"] += 1
        except TimeoutError:
            self.counts["timed out"] += 1
        except StateUnavailableError:
            self.counts["unavailable"] += 1
        else:
            self.counts["answered"] += 1
            if not call.is_right(answer):
                self.wrong.append((call.coroutine.__qualname__, answer))

    async def broken_off(self, coroutine: Any) -> Any:
        """Cancel a call after some turns of the loop, or after some time, and perhaps again before it has ended."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(coroutine)
        if self.random.random() < 0.3:
            timer = loop.call_later(self.random.uniform(0, 0.004), task.cancel)
            try:
                return await task
            finally:
                timer.cancel()
        for _ in range(self.random.randrange(10)):
            await asyncio.sleep(0)
        task.cancel()
        if self.random.random() < 0.2:
            await asyncio.sleep(0)
            task.cancel()
        return await task


async def fill(states: list[SharedState]) -> None:
    for user, state in enumerate(states):
        await state.upsert("form", {f"field-{field}": f"{user} form field-{field} first" for field in range(FIELDS)})
        await state.upsert("large", {"field": f"{user} large field first " + "x" * LARGE})
        await state.upsert("number", {"own": user * APART})
        await state.replace("workers", {"nobody": "first"})


async def shake(
    servers: Any, calls: int, *, many: int = MANY, cut: Callable[[], Awaitable[Any]] | None = None, **options: Any
) -> Counter[str]:
    """Have workers ask at once, and say how their calls ended; ``cut`` is called again and again meanwhile."""
    async with servers.store(prefix="cancellation", timeout=20, **options) as store:
        states = [SharedState(store, "acme", f"user-{number}") for number in range(USERS)]
        await fill(states)
        workers = [Worker(states, number) for number in range(many)]

        async def go_on(worker: Worker) -> None:
            for turn in range(calls // many):
                await worker.work()
                if cut is not None and worker is workers[0] and turn % 20 == 0:
                    await cut()

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(go_on(worker))
        for call in [call for worker in workers for call in (worker.read_mine(), worker.read_all())]:
            assert call.is_right(await call.coroutine)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    counts = sum((worker.counts for worker in workers), Counter[str]())
    log.info("%s", dict(counts))
    assert [wrong for worker in workers for wrong in worker.wrong] == []
    assert counts.total() == calls
    assert counts["timed out"] > 0
    for outcome in ("answered", "cancelled"):
        assert counts[outcome] > calls // 10
    return counts


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # Python 3.12
    return loop


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
if sys.version_info >= (3, 12):
    LOOPS["asyncio-eager"] = eager_loop


@pytest.mark.parametrize("loop", LOOPS)
def test_of_100_000_calls_none_gets_the_answer_of_another(loop: str) -> None:
    """Not in debug mode, in which that takes ten times as long."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        together = runner.run(shake(redis_servers.shared("redis"), 70_000))
        alone = runner.run(shake(redis_servers.shared("redis"), 30_000, many=FEW))
    assert together["unavailable"] == alone["unavailable"] == 0


@pytest.mark.parametrize("kind", ["sentinel", "cluster", "valkey"])
def test_nor_on_other_servers(kind: str) -> None:
    counts = asyncio.run(shake(redis_servers.shared(kind), 20_000))
    assert counts["unavailable"] == 0


def test_nor_where_a_replica_confirms_each_write() -> None:
    with (
        contextlib.closing(redis_servers.started(Server)) as master,
        contextlib.closing(Server(replicaof=f"127.0.0.1 {master.port}")),
    ):
        redis_servers.until(lambda: master.confirmed() == 1)
        counts = asyncio.run(shake(master, 20_000, durable=1))
    assert counts["unavailable"] == 0


def test_nor_where_connections_are_cut_meanwhile() -> None:
    with contextlib.closing(redis_servers.started(Server)) as server:
        counts = asyncio.run(
            shake(server, 50_000, cut=lambda: asyncio.to_thread(server.run, "CLIENT", "KILL", "TYPE", "normal"))
        )
    assert counts["unavailable"] > 0
