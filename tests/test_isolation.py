"""At size, each request sees its own and nobody else's, and leaves nothing bound: the walks of walks.py in crowds."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from random import Random
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import trio
from walks import TENANTS, AppError, Own, Request, Walk, make_request

from asgi_context import ContextThreadPoolExecutor, bind_context, run_in_executor


class AsyncioWalk(Walk):
    """Walks through threads, child tasks, and tasks that outlive their request as well, and is cancelled."""

    def __init__(self, plain: Executor, carrying: ContextThreadPoolExecutor) -> None:
        super().__init__()
        self.plain = plain
        self.carrying = carrying
        self.running: set[asyncio.Future[Any]] = set()
        self.crashed: list[BaseException] = []
        self.in_flight = self.most_in_flight = 0
        self.gone: dict[int, asyncio.Event] = {}
        self.strikes: dict[int, tuple[asyncio.Task[Any], list[asyncio.Handle]]] = {}
        self.steps += [
            self.default_executor,
            self.plain_pool,
            self.carrying_pool,
            self.bare_submit,
            self.child,
            self.children,
            self.outlive,
            self.cancel,
        ]

    async def rest(self) -> None:
        await asyncio.sleep(0)

    async def default_executor(self, own: Own, rng: Random, depth: int) -> None:
        await self.job(run_in_executor(None, self.in_thread, own, number=rng.random()))

    async def plain_pool(self, own: Own, rng: Random, depth: int) -> None:
        await self.job(run_in_executor(self.plain, self.in_thread, own, number=rng.random()))

    async def carrying_pool(self, own: Own, rng: Random, depth: int) -> None:
        await self.job(asyncio.wrap_future(self.carrying.submit(self.in_thread, own, number=rng.random())))

    async def bare_submit(self, own: Own, rng: Random, depth: int) -> None:
        await self.job(asyncio.wrap_future(self.plain.submit(self.in_bare_thread)))

    async def job(self, future: Any) -> None:
        await asyncio.shield(self.watch(future))  # the job of a cancelled request runs on: its end is waited for too

    async def child(self, own: Own, rng: Random, depth: int) -> None:
        await self.start(self.walk(own, Random(rng.random()), depth + 1))

    async def children(self, own: Own, rng: Random, depth: int) -> None:
        await asyncio.gather(*(self.start(self.walk(own, Random(rng.random()), depth + 1)) for _ in range(2)))

    async def outlive(self, own: Own, rng: Random, depth: int) -> None:
        self.start(self.outliving(own))

    async def outliving(self, own: Own) -> None:
        """Wait for the end of the request; what was started inside a block waits for the end of that as well."""
        await self.gone[own.request.number].wait()
        if self.look(own, "outliving")[2] != "ended":
            self.wrong.append((own.request.number, "values of a request that is gone"))
        if own.identity is not None:
            again = replace(own, spans=(), whose="a task of its own", block=None)
            with bind_context(values={"whose": again.whose}):
                self.look(again, "bound again")
        self.look(own, "outliving")
        self.done["outlived"] += 1

    async def cancel(self, own: Own, rng: Random, depth: int) -> None:
        """Have the request cancelled from outside, wherever it is by then."""
        if own.request.doomed:
            task, handles = self.strikes[own.request.number]
            handles.append(asyncio.get_running_loop().call_soon(task.cancel))
        await self.rest()

    async def exchange(self, request: Request) -> None:
        task = asyncio.current_task()
        handles: list[asyncio.Handle] = []
        self.strikes[request.number] = task, handles
        self.gone[request.number] = asyncio.Event()

        async def send(message: Any) -> None:
            await self.rest()
            if message["type"] == "http.response.body" and request.follower is not None:
                # As uvicorn and daphne do with pipelined requests: in a copy of the Context of the one before.
                follower, request.follower = request.follower, None
                self.start(self.exchange(follower))

        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.serve(request, send)
        except asyncio.CancelledError:
            if not handles:
                raise
            self.done["cancelled"] += 1
        finally:
            self.in_flight -= 1
            self.gone[request.number].set()
            for handle in handles:
                handle.cancel()
            while task.cancelling():
                task.uncancel()  # as a timeout does: the connection goes on in this task, and so in this Context

    async def connection(self, requests: list[Request]) -> None:
        for request in requests:
            await self.exchange(request)
            if request.follower is not None:
                await self.exchange(request.follower)

    async def run(self, connections: Iterable[list[Request]], slots: int) -> None:
        waiting = iter(connections)

        async def slot() -> None:
            for requests in waiting:
                await self.start(self.connection(requests))

        await asyncio.gather(*(slot() for _ in range(slots)))
        while self.running:
            await asyncio.wait(self.running)
            await self.rest()  # for the callbacks

    def start(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Future[None]":
        return self.watch(asyncio.get_running_loop().create_task(coroutine))

    def watch(self, future: "asyncio.Future[Any]") -> "asyncio.Future[Any]":
        self.running.add(future)
        future.add_done_callback(self.finished)
        return future

    def finished(self, future: "asyncio.Future[Any]") -> None:
        self.running.discard(future)
        if not future.cancelled() and not isinstance(error := future.exception(), AppError | None):
            self.crashed.append(error)


def connections_of(requests: Iterable[Request], rng: Random) -> Iterable[list[Request]]:
    """Share requests out to connections, of which each has one task and so one Context; some are pipelined."""
    kept_alive: list[Request] = []
    for request in requests:
        if kept_alive and kept_alive[-1].follower is None and rng.random() < 0.2:
            kept_alive[-1].follower = request
        else:
            kept_alive.append(request)
        if rng.random() < 0.3:
            yield kept_alive
            kept_alive = []
    yield kept_alive


@pytest.mark.anyio
async def test_ten_thousand_requests_of_200_tenants_see_their_own_and_leave_nothing_bound(asyncio_only: None) -> None:
    seed, count = 20261121, 10_000
    requests = [make_request(seed, number) for number in range(count)]
    with ThreadPoolExecutor(4) as plain, ContextThreadPoolExecutor(4) as carrying:
        walk = AsyncioWalk(plain, carrying)
        await walk.run(connections_of(requests, Random(seed)), slots=600)
    assert Counter(map(repr, walk.crashed)) == {}
    assert (len(walk.wrong), walk.wrong[:5]) == (0, [])
    assert (len(walk.left_bound), walk.left_bound[:5]) == (0, [])
    await walk.check_states()
    # All of it has happened, and much of it at once.
    assert walk.done["requests"] == count
    assert all(request.served for request in requests)
    assert len({request.identity.tenant for request in requests if request.identity}) == TENANTS
    assert walk.done["app"] == count - sum(request.status == 400 for request in requests) < count
    assert walk.most_in_flight >= 500
    assert min(walk.done[step.__name__] for step in walk.steps) > 1_000, walk.done
    assert walk.done["outlived"] > 1_000
    assert walk.done["cancelled"] > 200


class LoopWalk(Walk):
    """Walks on any event loop: through child tasks in a task group, which under trio is a nursery, and threads."""

    def __init__(self, server: anyio.abc.TaskGroup, to_thread: Callable[..., Awaitable[None]]) -> None:
        super().__init__()
        self.server = server
        self.to_thread = to_thread
        self.gone: dict[int, anyio.Event] = {}
        self.scopes: dict[int, anyio.CancelScope] = {}
        self.steps += [self.thread, self.children, self.outlive, self.cancel]

    async def rest(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def thread(self, own: Own, rng: Random, depth: int) -> None:
        await self.to_thread(self.in_thread, own, rng.random())

    async def children(self, own: Own, rng: Random, depth: int) -> None:
        errors: list[AppError] = []
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(self.child, own, Random(rng.random()), depth + 1, errors)
        for error in errors:
            raise error

    async def child(self, own: Own, rng: Random, depth: int, errors: list[AppError]) -> None:
        try:
            await self.walk(own, rng, depth)
        except AppError as error:
            errors.append(error)

    async def outlive(self, own: Own, rng: Random, depth: int) -> None:
        self.server.start_soon(self.outliving, own)

    async def outliving(self, own: Own) -> None:
        await self.gone[own.request.number].wait()
        if self.look(own, "outliving")[2] != "ended":
            self.wrong.append((own.request.number, "values of a request that is gone"))
        self.done["outlived"] += 1

    async def cancel(self, own: Own, rng: Random, depth: int) -> None:
        if own.request.doomed:
            self.server.start_soon(self.strike, self.scopes[own.request.number])
        await self.rest()

    async def strike(self, scope: anyio.CancelScope) -> None:
        scope.cancel()

    async def connection(self, requests: list[Request]) -> None:
        for request in requests:
            self.gone[request.number] = anyio.Event()
            with anyio.CancelScope() as scope:
                self.scopes[request.number] = scope
                await self.serve(request, self.send)
            self.done["cancelled"] += scope.cancelled_caught
            self.gone[request.number].set()

    async def send(self, message: Any) -> None:
        await self.rest()


@pytest.mark.anyio
async def test_a_thousand_requests_see_their_own_on_every_event_loop(anyio_backend_name: str) -> None:
    to_thread = trio.to_thread.run_sync if anyio_backend_name == "trio" else asyncio.to_thread
    requests = [make_request("loops", number) for number in range(1_000)]
    async with anyio.create_task_group() as server:
        walk = LoopWalk(server, to_thread)
        for start in range(0, len(requests), 4):
            server.start_soon(walk.connection, requests[start : start + 4])
    assert (len(walk.wrong), walk.wrong[:5]) == (0, [])
    assert (len(walk.left_bound), walk.left_bound[:5]) == (0, [])
    await walk.check_states()
    assert all(request.served for request in requests)
    assert min(walk.done[step.__name__] for step in walk.steps) > 100, walk.done
    assert walk.done["outlived"] > 100
    assert walk.done["cancelled"] > 20
