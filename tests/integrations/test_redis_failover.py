"""A master is lost under writers, behind Sentinel and in a cluster: what is lost with it, and what is not."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis_servers
from redis_servers import ClusterOfServers, Sentinels, Server
from redis_writers import ROOMY, Reader, Writer, all_answered, at_work, compared, on_one_loop, patiently

from asgi_context import SharedState

log = logging.getLogger(__name__)
FAILOVER = 20.0  # seconds; some 3 behind Sentinel and 4 in a cluster, on a machine that has nothing else to do


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterOfServers]:
    # Without full coverage the other nodes go on, and do not say that one is gone.
    with contextlib.closing(
        redis_servers.started(lambda: ClusterOfServers(cluster_require_full_coverage="no"))
    ) as servers:
        yield servers


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with contextlib.closing(redis_servers.started(Sentinels)) as servers:
        yield servers


async def lose_master(
    servers: Sentinels | ClusterOfServers,
    lose: Callable[[Server], Any],
    bring_back: Callable[[Server], Any],
    **options: Any,
) -> None:
    """Take a master away under writers, of which half want each write on a replica: the only one that there is."""
    async with (
        servers.store(prefix=f"{lose.__name__}-plain", limits=ROOMY, **options) as plain,
        servers.store(prefix=f"{lose.__name__}-durable", limits=ROOMY, durable=1, **options) as durable,
    ):
        by_chance, for_sure = ([Writer(store, number) for number in range(25)] for store in (plain, durable))
        readers = [Reader(plain, number) for number in range(10)]
        for writer in for_sure:  # a replica that has only just come is not asked yet
            await patiently(writer.begin)
        async with at_work(*by_chance, *for_sure, *readers):
            await all_answered(*by_chance, *for_sure, *readers, more=40)
            old = (await asyncio.to_thread(servers.masters))[0]
            await asyncio.to_thread(lose, old)
            seconds = await all_answered(*by_chance, *readers, seconds=FAILOVER)
            # What was the replica has none itself, so that nothing is confirmed until the old master is one.
            await asyncio.to_thread(bring_back, old)
            await all_answered(*for_sure)
        counts, durable_counts = await compared(*by_chance), await compared(*for_sure)
    log.info("after %.1f seconds: %s; durable: %s", seconds, dict(counts), dict(durable_counts))
    assert counts["raised"] > 0
    assert durable_counts["raised"] > 0
    assert sum(reader.wrong for reader in readers) == 0
    assert (counts["wrong"], counts["twice"]) == (0, 0)
    assert (durable_counts["wrong"], durable_counts["twice"], durable_counts["lost"]) == (0, 0, 0)


@on_one_loop
async def test_behind_sentinel_a_master_is_killed(sentinels: Sentinels) -> None:
    def bring_back(old: Server) -> None:
        old.start()
        old.run("REPLICAOF", "127.0.0.1", sentinels.master().port)  # as Sentinel does after some 10 seconds

    await lose_master(sentinels, Server.kill, bring_back)


@on_one_loop
async def test_behind_sentinel_a_master_stands_still(sentinels: Sentinels) -> None:
    def bring_back(old: Server) -> None:
        old.resume()
        old.run("REPLICAOF", "127.0.0.1", sentinels.master().port)

    await lose_master(sentinels, Server.pause, bring_back, timeout=1)


@on_one_loop
async def test_in_a_cluster_a_master_is_killed(cluster: ClusterOfServers) -> None:
    await lose_master(cluster, Server.kill, Server.start)


@on_one_loop
async def test_in_a_cluster_a_master_stands_still(cluster: ClusterOfServers) -> None:
    await lose_master(cluster, Server.pause, Server.resume, timeout=1)


@on_one_loop
async def test_a_sentinel_that_was_away_is_asked_again_when_the_others_are_gone(sentinels: Sentinels) -> None:
    first, *others = sentinels.sentinels
    first.kill()
    store = sentinels.store(connections=8)
    states = [SharedState(store, "acme", f"user-{number}") for number in range(50)]
    try:
        # All connections are made at once, each by asking the Sentinels in turn.
        await asyncio.gather(*(state.upsert("cart", {"a": 1}) for state in states))
        await asyncio.to_thread(first.start)
        for other in others:
            await asyncio.to_thread(other.kill)
        await asyncio.to_thread(sentinels.servers[0].run, "CLIENT", "KILL", "TYPE", "normal")
        for state in states:
            assert await patiently(lambda state=state: state.get("cart"), FAILOVER) == {"a": 1}
    finally:
        await store.close()
