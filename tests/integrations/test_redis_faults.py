"""What goes wrong with one server, and what users of the store see of it."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis_servers import master_and_replica, running
from redis_writers import (
    PATIENCE,
    ROOMY,
    HastyReader,
    PonderingWriter,
    Reader,
    Writer,
    all_answered,
    all_refused,
    ask,
    at_work,
    compared,
    on_one_loop,
    patiently,
)

from asgi_context import SharedState
from asgi_context.errors import StateNotConfirmedError, StateUnavailableError
from asgi_context.redis import RedisStore

log = logging.getLogger(__name__)


def waited() -> float:
    """How many seconds this thread could have run so far while the machine ran something else; 0 where none says so."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0


async def heartbeat(seconds: float) -> list[float]:
    """The seconds between the beats of a heart that should beat every 5 ms, from the shortest to the longest.

    Without those for which the machine had other work to do: they say nothing of what this process keeps its loop with.
    """
    loop = asyncio.get_running_loop()
    gaps: list[float] = []
    begun = last = loop.time()
    before = waited()
    while last < begun + seconds:
        await asyncio.sleep(0.005)
        now, machine = loop.time(), waited()
        gaps.append(now - last - (machine - before))
        last, before = now, machine
    return sorted(gaps)


@on_one_loop
async def test_every_acknowledged_write_is_there_after_a_kill_and_every_other_has_raised() -> None:
    """With an append-only file that is synchronised before each answer."""
    with running(appendonly="yes", appendfsync="always") as server:
        async with server.store(limits=ROOMY) as store:
            writers = [Writer(store, number) for number in range(50)]
            async with at_work(*writers):
                await all_answered(*writers, more=40)
                await asyncio.to_thread(server.kill)
                await all_refused(*writers)
                await asyncio.to_thread(server.start)
                await all_answered(*writers)
            # What is compared was on the disk, and not only in the memory of the server that went on.
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            counts = await compared(*writers)
    log.info("%s", dict(counts))
    assert counts["acknowledged"] >= 50 * 44
    assert counts["raised"] >= 50
    assert (counts["lost"], counts["wrong"], counts["twice"]) == (0, 0, 0)


@on_one_loop
async def test_while_a_server_stands_still_calls_end_in_time_and_the_loop_goes_on() -> None:
    """Those of many tasks together, and those of a task that is alone with its connection."""
    with running() as server:
        async with (
            server.store(timeout=1, limits=ROOMY) as store,
            server.store(timeout=1, prefix="lone") as lone,
            server.store(timeout=1, prefix="hasty") as hasty,
        ):
            writers = [Writer(store, number) for number in range(40)]
            readers = [Reader(store, 1), Reader(store, 2), Reader(lone, 3), HastyReader(hasty, 4)]
            workers = [*writers, *readers]
            async with at_work(*workers):
                await all_answered(*workers)
                with server.paused():
                    gaps = await heartbeat(5)
                    fewest = min(len(worker.errors) for worker in workers)
                await all_answered(*workers, more=50)
            counts = await compared(*writers)
    p99 = gaps[len(gaps) * 99 // 100]
    longest = max(worker.longest for worker in workers)
    log.info("heartbeat p99 %.1f ms, longest call %.2f s, %s", p99 * 1000, longest, dict(counts))
    assert fewest >= 3  # calls of each that ended with an error while the server stood still
    assert longest < 2.5
    assert len(gaps) > 300
    assert p99 < 0.05
    assert sum(reader.wrong for reader in readers) == 0
    assert (counts["lost"], counts["wrong"], counts["twice"]) == (0, 0, 0)


@on_one_loop
async def test_a_write_that_was_given_up_does_not_come_after_later_ones() -> None:
    """So many bytes that some are still here when it is given up."""
    with running() as server:
        async with server.store(timeout=0.5) as store:
            state = SharedState(store, "acme", "ann")
            await state.upsert("form", {"who": "first"})
            with server.paused():
                with pytest.raises(StateUnavailableError):
                    await state.replace("form", {f"field-{number}": "x" * 900_000 for number in range(30)})
                with pytest.raises(StateUnavailableError):
                    await state.get("form")
            assert not await patiently(lambda: state.replace("form", {"who": "second"}))
            # What the server got of the other one is at an end when it has closed that connection.
            async with asyncio.timeout(PATIENCE):
                while (await ask(server, "CLIENT", "LIST", "TYPE", "normal")).count(b"\n") > 3:
                    assert await state.get_field("form", "who") == "second"
            assert await state.get("form") == {"who": "second"}


class Slow:
    """A way to a server that takes some seconds back."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seconds = 0.0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        there, to = await asyncio.open_connection("127.0.0.1", self.port)

        async def bring() -> None:
            while data := await there.read(65536):
                loop.call_later(self.seconds, writer.write, data)

        with contextlib.closing(writer), contextlib.closing(to):
            bringing = loop.create_task(bring())
            while data := await reader.read(65536):
                to.write(data)
            bringing.cancel()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@on_one_loop
async def test_a_call_that_takes_several_answers_has_one_deadline_and_is_late_alone() -> None:
    """The first write of a user takes several, all the more where the server does not know the scripts yet."""
    with running() as server:
        slow = Slow(server.port)
        async with slow.open() as url, RedisStore.from_url(url, timeout=1, connections=1) as store:
            writer, reader = Writer(store, 1), Reader(store, 1)
            async with at_work(writer, reader):
                await all_answered(writer, reader)
                slow.seconds = 0.4
                await ask(server, "SCRIPT", "FLUSH")
                async with asyncio.timeout(1.9):
                    with pytest.raises(StateUnavailableError, match="no answer within 1 seconds"):
                        await SharedState(store, "acme", "ann").upsert("cart", {"a": 1})
                await all_answered(writer, reader)
    assert writer.errors == reader.errors == []


@pytest.mark.anyio
class TestScriptsAreFlushed:
    async def test_in_the_midst_of_writes_and_none_fails(self, asyncio_only: None) -> None:
        with running() as server:
            async with server.store(limits=ROOMY) as store:
                writers = [Writer(store, number) for number in range(50)]
                async with at_work(*writers):
                    for _ in range(30):
                        await ask(server, "SCRIPT", "FLUSH")
                        await all_answered(*writers)
                counts = await compared(*writers)
        log.info("%s", dict(counts))
        assert (counts["raised"], counts["lost"], counts["wrong"], counts["twice"]) == (0, 0, 0, 0)

    async def test_before_any_method_and_none_fails(self, asyncio_only: None) -> None:
        space = "acme", "ann"
        with running() as server:
            async with server.store(default_ttl=60, sliding=True) as store:
                calls: list[tuple[Callable[[], Awaitable[Any]], Any]] = [
                    (lambda: store.merge(space, "cart", {"a": b"1"}, None), True),
                    (lambda: store.replace(space, "cart", {"a": b"1", "b": b"2"}, None), False),
                    (lambda: store.increment(space, "cart", "a", 2), 3),
                    (lambda: store.read(space, "cart"), {"a": b"3", "b": b"2"}),
                    (lambda: store.read_field(space, "cart", "a"), b"3"),
                    (lambda: store.replace_version(space, "cart", {"a": b"4"}, b"no such version"), False),
                    (lambda: store.touch(space, "cart", 30), True),
                    (lambda: store.names(space), ["cart"]),
                    (lambda: store.remove_field(space, "cart", "b"), 1),
                    (lambda: store.remove(space, "cart"), 1),
                    (lambda: store.acquire(space, "lease", "me", 1, 30), True),
                    (lambda: store.release(space, "lease", "me"), True),
                    (lambda: store.count(space, "counter", 5, 1000), (5, 1000)),
                    (lambda: store.merge(space, "cart", {"a": b"1"}, None), True),
                    (lambda: store.clear(space), 1),
                    (lambda: store.merge(space, "cart", {"a": b"1"}, None), True),
                    (lambda: store.erase("acme"), 1),
                ]
                for number, (call, answer) in enumerate(calls):
                    await ask(server, "SCRIPT", "FLUSH")
                    assert await call() == answer, number


@pytest.mark.anyio
async def test_where_all_connections_are_cut_reads_do_not_fail_and_no_write_is_done_twice(asyncio_only: None) -> None:
    with running() as server, socket.create_connection(("127.0.0.1", server.port)) as cutter:
        async with server.store(limits=ROOMY) as store:
            writers = [Writer(store, number) for number in range(30)]
            readers = [Reader(store, number) for number in range(20)]
            async with at_work(*writers, *readers):
                for _ in range(30):
                    await all_answered(*writers, *readers)
                    with server.paused():
                        # So that it does what it has been sent, and cuts the connections before it answers.
                        await asyncio.sleep(0.005)
                        cutter.sendall(b"CLIENT KILL TYPE normal\r\n")
                    await asyncio.to_thread(cutter.recv, 100)
                await all_answered(*writers, *readers)
            counts = await compared(*writers)
    log.info("%s", dict(counts))
    assert sum(len(reader.errors) + reader.wrong for reader in readers) == 0
    assert (counts["lost"], counts["wrong"], counts["twice"]) == (0, 0, 0)
    assert counts["raised"] > 0


class TestReplicasAreLost:
    @on_one_loop
    async def test_and_a_write_that_must_be_durable_is_done_but_says_so(self) -> None:
        with master_and_replica() as (master, replica):
            async with (
                master.store(durable=1, timeout=1) as store,
                master.store(prefix="two", durable=2, timeout=1) as two,
            ):
                state = SharedState(store, "acme", "ann")
                await state.upsert("cart", {"a": 1})
                with pytest.raises(StateNotConfirmedError) as caught:
                    await SharedState(two, "acme", "ann").upsert("cart", {"a": 1})
                assert (caught.value.replicas, caught.value.durable) == (1, 2)
                replica.kill()
                with pytest.raises(StateNotConfirmedError) as caught:
                    await state.upsert("cart", {"a": 2})
                assert (caught.value.replicas, caught.value.durable) == (0, 1)
                assert await state.get("cart") == {"a": 2}
                await asyncio.to_thread(replica.start)
                await patiently(lambda: state.upsert("cart", {"a": 3}))
                assert await state.get("cart") == {"a": 3}

    @on_one_loop
    async def test_and_each_of_many_writers_is_told_so_while_readers_go_on(self) -> None:
        with master_and_replica() as (master, replica):
            async with master.store(durable=1, timeout=1, limits=ROOMY) as store:
                writers = [PonderingWriter(store, number) for number in range(20)]
                readers = [Reader(store, number) for number in range(5)]
                async with at_work(*writers, *readers):
                    await all_answered(*writers)
                    await asyncio.to_thread(replica.kill)
                    await all_refused(*writers, more=2)
                    await all_answered(*readers)
                    await asyncio.to_thread(replica.start)
                    await all_answered(*writers)
                counts = await compared(*writers)
        log.info("%s", dict(counts))
        assert sum(len(reader.errors) + reader.wrong for reader in readers) == 0
        assert (counts["lost"], counts["wrong"], counts["twice"]) == (0, 0, 0)
        errors = [error for writer in writers for error in writer.errors]
        told = [error for error in errors if isinstance(error, StateNotConfirmedError)]
        assert len(errors) >= 40
        assert len(told) > len(errors) * 3 / 4  # on a busy machine, some hear in time only that it is late
        assert {(error.replicas, error.durable) for error in told} == {(0, 1)}
