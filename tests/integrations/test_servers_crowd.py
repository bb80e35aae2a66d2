"""Crowds on servers of every kind: hundreds of clients of many tenants at once, and each is told of itself alone.

All that is seen goes over the wire, so that it is the same for a server in this process and in another.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from functools import wraps
from itertools import count
from typing import Any, NamedTuple

import httpx
import pytest
import server_app
from server_clients import (
    CROWD,
    Address,
    DeniedError,
    Member,
    assert_each_was_told_of_itself,
    client,
    crowd_of_requests,
    crowd_of_websockets,
    websockets,
)
from servers import (
    LONG_PATIENCE,
    SERVERS,
    Daphne,
    Granian,
    GranianHTTP2,
    HypercornHTTP2,
    Kind,
    ServerProcess,
    ServerThread,
    UvicornHttptoolsWebsocketsUvloop,
    UvicornWebsockets,
    Wire,
    parameters,
    request,
    serving,
)

KINDS: list[type[Kind]] = [
    *SERVERS.values(),
    UvicornWebsockets,
    UvicornHttptoolsWebsocketsUvloop,
    HypercornHTTP2,
    Granian,
    GranianHTTP2,
    Daphne,
]
_numbers = count()


class Running(NamedTuple):
    """A server, and of what kind it is."""

    kind: type[Kind]
    server: Address


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[type[Kind]], Address]]:
    """Servers of any kind, each started once."""
    running: dict[type[Kind], Address] = {}
    with ExitStack() as stack:

        def start(kind: type[Kind]) -> Address:
            if kind not in running and issubclass(kind, ServerThread):
                server = stack.enter_context(serving(kind, server_app.make(), lifespan=True))
                assert server.started, server.failure
                running[kind] = server
            elif kind not in running:
                assert issubclass(kind, ServerProcess)
                process = kind(tmp_path_factory.mktemp("server") / "log")
                stack.callback(process.stop)
                process.until_started()
                running[kind] = process
            return running[kind]

        yield start


@pytest.fixture(params=parameters(KINDS))
def running(request: pytest.FixtureRequest, started: Callable[[type[Kind]], Address]) -> Iterator[Running]:
    """A server. Whatever a test does with it, nothing may stay bound in the server's tasks."""
    running = Running(request.param, started(request.param))
    yield running
    url = f"http://127.0.0.1:{running.server.port}/left"
    assert httpx.get(url, trust_env=False, verify=False, timeout=LONG_PATIENCE).json() == []


def async_test(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a client on an event loop of its own, for as long as something may take at most."""

    @wraps(test)
    def run(running: Running) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(2 * LONG_PATIENCE):
                await test(running)

        asyncio.run(bounded())

    return run


ANN = {"x-tenant-id": "acme", "x-user-id": "ann"}
BOB = {"x-tenant-id": "beta", "x-user-id": "bob"}


def a_name() -> str:
    return f"name-{next(_numbers)}"


# Crowds


@async_test
async def test_200_requests_at_once_from_50_tenants_never_meet(running: Running) -> None:
    told = await crowd_of_requests(*running, a_name(), meeting=True)

    assert len(told) == CROWD
    assert_each_was_told_of_itself(told)


@async_test
async def test_200_websockets_at_once_of_50_tenants_never_meet(running: Running) -> None:
    told = await crowd_of_websockets(*running, a_name(), turns=(0, 1), meeting=True)

    assert len(told) == 2 * CROWD
    assert_each_was_told_of_itself(told)


# Streams


@async_test
async def test_streamed_answers_go_on_side_by_side_each_for_whom_it_began(running: Running) -> None:
    gate, streams, parts = a_name(), 20, 20
    begun = asyncio.Barrier(streams + 1)

    async def read(member: Member, http: httpx.AsyncClient) -> tuple[Member, list[Any]]:
        options = {"gate": gate, "parts": parts}
        async with http.stream("GET", "/stream", params=options, headers=member.headers) as answer:
            lines = answer.aiter_lines()
            first = await anext(lines)
            await begun.wait()  # the others have no more than that either
            return member, [json.loads(line) for line in (first, *[line async for line in lines])]

    async with client(*running) as http, asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(Member(number), http)) for number in range(streams)]
        await begun.wait()
        assert (await http.get("/open", params={"gate": gate}, headers=ANN)).json()[:2] == ["acme", "ann"]

    for member, told in (task.result() for task in tasks):
        assert [line[0] for line in told] == list(range(parts))
        assert [line[1] for line in told] == [[member.tenant, member.user, told[0][1][2]]] * parts


@async_test
async def test_streamed_requests_are_read_side_by_side_each_for_whom_it_is(running: Running) -> None:
    gate, streams, parts = a_name(), 20, 20
    begun = asyncio.Event()

    async def body(member: Member) -> AsyncIterator[bytes]:
        yield b"x" * 1000
        if running.kind.streams_requests:
            await begun.wait()  # the app has read the first part, of each
        for _ in range(parts - 1):
            yield b"x" * 1000
            await asyncio.sleep(0)

    async def send(member: Member, http: httpx.AsyncClient) -> tuple[Member, Any]:
        options = {"gate": f"{gate}-{member.number}"}
        answer = await http.post("/read", params=options, headers=member.headers, content=body(member))
        return member, answer.json()

    async with client(*running) as http, asyncio.TaskGroup() as group:
        members = [Member(number) for number in range(streams)]
        tasks = [group.create_task(send(member, http)) for member in members]
        for member in members:
            told = await http.get("/ended", params={"gate": f"{gate}-{member.number}"}, headers=BOB)
            assert told.json()["whose"][:2] == ["beta", "bob"]
        begun.set()

    for member, told in (task.result() for task in tasks):
        assert told["size"] == parts * 1000
        assert told["whose"] == [[member.tenant, member.user, told["whose"][0][2]]] * len(told["whose"])


# Clients that leave


async def assert_ended(running: Running, gate: str, *how: str) -> None:
    """Something that was Ann's has ended, and was hers to its end; to Bob, who asks, it is nothing."""
    async with client(*running) as http:
        told = (await http.get("/ended", params={"gate": gate}, headers=BOB)).json()
    assert told["ended"][0] in how
    assert told["ended"][1][:2] == ["acme", "ann"]
    assert told["whose"][:2] == ["beta", "bob"]


@async_test
async def test_a_client_that_leaves_amid_a_stream(running: Running) -> None:
    gate = a_name()

    async with client(*running) as http, http.stream("GET", "/endless", params={"gate": gate}, headers=ANN) as answer:
        assert answer.status_code == 200
        assert await anext(answer.aiter_raw())

    await assert_ended(running, gate, "stream")


@async_test
async def test_a_client_that_leaves_while_the_app_waits_for_that(running: Running) -> None:
    gate = a_name()

    async with client(*running) as http, http.stream("GET", "/waiting", params={"gate": gate}, headers=ANN) as answer:
        assert await anext(answer.aiter_raw()) == b"begun"

    await assert_ended(running, gate, "wait")


@async_test
async def test_a_websocket_whose_client_is_gone_without_a_word(running: Running) -> None:
    gate = a_name()

    async with websockets(*running) as open_websocket:
        websocket = await open_websocket(f"/websocket?crowd={gate}&gate={gate}", ANN)
        await websocket.say("1")
        assert json.loads(await websocket.hear())["numbers"] == ["1"] * 3
        websocket.abandon()

        await assert_ended(running, gate, "websocket.disconnect")


# Refusals

REFUSED = {
    "type": "about:blank",
    "title": "Bad Request",
    "status": 400,
    "code": "tenant_missing",
    "detail": "This request does not name a tenant.",
}


@async_test
async def test_a_request_without_identity_is_refused(running: Running) -> None:
    async with client(*running) as http:
        answer = await http.get("/open", params={"gate": "none"})

    assert answer.status_code == 400
    assert answer.headers.get_list("content-type") == ["application/problem+json"]
    assert answer.json() == REFUSED


@async_test
async def test_a_pipelined_request_without_identity_is_not_taken_for_the_one_before(running: Running) -> None:
    """Some servers, daphne among them, run it in what the one before has left."""
    target = f"/open?gate={a_name()}".encode()
    with Wire(running.server.port) as wire:
        wire.send(request(b"x-tenant-id: acme", b"x-user-id: ann", target=target) + request(target=target))
        first, second = wire.response(), wire.response()

    assert first.json()[:2] == ["acme", "ann"]
    assert (second.status, second.json()) == (400, REFUSED)


@async_test
async def test_a_websocket_without_identity_is_refused_in_terms_of_http_where_the_server_can(running: Running) -> None:
    async with websockets(*running) as open_websocket:
        with pytest.raises(DeniedError) as denied:
            await open_websocket("/websocket?crowd=none", {})

    if running.kind.denies_websockets:
        assert (denied.value.status, denied.value.content_type) == (400, "application/problem+json")
        assert json.loads(denied.value.body) == REFUSED
    else:
        assert denied.value.status == 403
