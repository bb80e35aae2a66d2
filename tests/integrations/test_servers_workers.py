"""Servers whose worker processes share one Redis: what their tenants count adds up, and none sees another."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
import redis_servers
from server_clients import (
    CROWD,
    TENANTS,
    Told,
    assert_each_was_told_of_itself,
    crowd_of_requests,
    crowd_of_websockets,
)
from servers import (
    LONG_PATIENCE,
    DaphneProcesses,
    GranianWorkers,
    HypercornWorkers,
    ServerProcess,
    UvicornWorkers,
    parameters,
)

PROCESSES = 2


class Ran(NamedTuple):
    """What was seen of workers, from their start to their end."""

    kind: type[ServerProcess]
    told: list[Told]
    lifespans: dict[int, list[str]]
    """What each process has noted, in order."""


@pytest.fixture(scope="module")
def redis() -> Iterator[redis_servers.Server]:
    with redis_servers.running() as server:
        yield server


@pytest.fixture(scope="module", params=parameters([UvicornWorkers, HypercornWorkers, GranianWorkers, DaphneProcesses]))
def ran(request: pytest.FixtureRequest, redis: redis_servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    kind: type[ServerProcess] = request.param
    log = tmp_path_factory.mktemp("workers") / "log"
    with ExitStack() as stack:
        servers = []
        for _ in range(PROCESSES // kind.workers):
            servers.append(kind(log, redis.url))
            stack.callback(servers[-1].stop)
        for server in servers:
            server.until_started()
        told = asyncio.run(crowds(kind, servers))
    lifespans = defaultdict(list)
    for line in log.read_text("utf-8").splitlines():
        process, noted = line.split()
        lifespans[int(process)].append(noted)
    return Ran(kind, told, lifespans)


async def crowds(kind: type[ServerProcess], servers: list[ServerProcess]) -> list[Told]:
    """Send a crowd of requests and one of WebSockets, and then more requests until each process has answered some.

    Which of its workers gets a connection is the system's choice.
    """
    name = kind.row.partition(",")[0]
    told: list[Told] = []
    async with asyncio.timeout(4 * LONG_PATIENCE):
        for server in servers:
            told += await crowd_of_websockets(kind, server, name, turns=[len(told) // CROWD])
        while not told[CROWD * len(servers) :] or len({each.answer["process"] for each in told}) < PROCESSES:
            for server in servers:
                told += await crowd_of_requests(kind, server, name, turn=len(told) // CROWD)
    return told


def test_every_visit_to_workers_counts_once_and_everybody_is_told_of_itself(ran: Ran) -> None:
    assert_each_was_told_of_itself(ran.told)
    assert len(ran.told) >= 2 * CROWD
    assert max(told.answer["visit"] for told in ran.told) == len(ran.told) // TENANTS


def test_each_worker_opens_its_sources_once_and_closes_them_once(ran: Ran) -> None:
    """But on daphne, which has no lifespan: there the first request opens them, and nothing tells when to close."""
    noted = ["opened", "startup", "shutdown", "closed"] if ran.kind.has_lifespan else ["opened"]

    assert ran.lifespans == dict.fromkeys({told.answer["process"] for told in ran.told}, noted)
    assert len(ran.lifespans) == PROCESSES
