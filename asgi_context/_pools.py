"""Named pools of threads for blocking jobs, shared fairly by tenants.

Each tenant has a lane of its own in a pool. A thread that comes free takes the next job of the tenant that has the
fewest running, in turns among equals: if one tenant has a thousand jobs waiting, another's first is still the next.

Invariants, whenever the lock is free:

- A lane waits (has jobs in it, and stands in ``_turns[lane.running]``) only where no thread is free for it: all are
  busy, or its tenant has ``per_tenant`` running.
- Of ``_alive`` threads, ``_running`` are at a job, and the others wait for one, or were sent home by a ``None`` in the
  inbox and are not counted any more. Threads are started when they are first needed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Final, ParamSpec, TypeVar

from asgi_context._context import current_binding
from asgi_context._crashes import log, log_crash
from asgi_context._executors import check_job, run_job
from asgi_context.errors import (
    PoolClosedError,
    PoolFullError,
    PoolNotFoundError,
    PoolWaitError,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pool:
    """How large a pool of `ContextMiddleware(pools=...) <ContextMiddleware>` is.

    Args:
        threads: how many jobs run at a time.
        per_tenant: how many of one tenant do; without a limit here, as many as there are threads. What bears no tenant
            counts as one tenant.
        queue: how many jobs of one tenant may wait; beyond that, `PoolFullError`.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is too small, or ``per_tenant`` larger than ``threads``.
    """

    threads: int
    per_tenant: int | None = None
    queue: int = 1000

    def __post_init__(self) -> None:
        for option, number, least in (
            ("threads", self.threads, 1),
            ("per_tenant", self.threads if self.per_tenant is None else self.per_tenant, 1),
            ("queue", self.queue, 0),
        ):
            if type(number) is not int:
                message = f"Pool: {option} must be an int, not {type(number).__qualname__}"
                raise TypeError(message)
            if number < least:
                message = f"Pool: {option} must be at least {least}, not {number}"
                raise ValueError(message)
        if self.per_tenant is not None and self.per_tenant > self.threads:
            message = f"Pool: per_tenant={self.per_tenant} is more than threads={self.threads}"
            raise ValueError(message)


class _Lane:
    __slots__ = ("running", "tenant", "waiting")

    def __init__(self, tenant: str | None) -> None:
        self.tenant = tenant
        self.running = 0
        self.waiting: OrderedDict[_Job, None] = OrderedDict()  # ordered, with removal from the middle


class _Mark:
    """What a job's context says of it. Not the job itself, which holds that context: it would be a ring."""

    __slots__ = ("outer", "running", "workers")

    def __init__(self, workers: "Workers", outer: "_Mark | None") -> None:
        self.workers = workers
        self.outer = outer  # that of the job from whose context this one was asked for
        self.running = True  # until it has ended: a task that it leaves behind may ask for the pool again


_inside: Final[ContextVar[_Mark | None]] = ContextVar("asgi_context.pools", default=None)


class _Job:
    __slots__ = ("call", "context", "future", "lane", "loop", "workers")

    lane: _Lane

    def __init__(self, workers: "Workers", call: Callable[[Context], Any]) -> None:
        self.workers = workers
        self.call = call
        self.context = copy_context()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def run(self) -> None:
        if self.future.cancelled():
            return
        mark = _Mark(self.workers, self.context.get(_inside))
        self.context.run(_inside.set, mark)
        result = error = None
        try:
            result = self.call(self.context)
        except BaseException as raised:  # noqa: BLE001 - for its caller; `run_job` has replaced what no caller can take
            error = raised
        mark.running = False
        self.hand_over(self.deliver, result, error)
        del result, error  # the error's traceback holds this frame

    def hand_over(self, callback: Callable[..., None], *args: object) -> None:
        try:  # in its context, so that what is logged there is logged for whom the job was
            self.loop.call_soon_threadsafe(partial(callback, *args), context=self.context)
        except RuntimeError:  # the loop was closed
            self.context.run(callback, *args)

    def deliver(self, result: object, error: BaseException | None) -> None:
        if self.future.done() or self.loop.is_closed():
            self.lose(error)
        elif error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)

    def lose(self, error: BaseException | None) -> None:
        if error is None:
            log.warning("the result of a job of the pool %r is lost: its caller was cancelled", self.workers.name)
        else:
            log_crash(f"a job of the pool {self.workers.name!r} failed after its caller was cancelled", error)


class Workers:
    """The threads of one pool.

    Args:
        name: the name of the pool.
        pool: how large it is.
        close_timeout: how long closing it may take, in seconds.
    """

    def __init__(self, name: str, pool: Pool, close_timeout: float) -> None:
        self.name = name
        self._close_timeout = close_timeout
        self._pool = pool
        self._per_tenant = pool.threads if pool.per_tenant is None else pool.per_tenant
        self._lock = Lock()
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self._lanes: dict[str | None, _Lane] = {}
        # Lanes that wait, by how many of their jobs run.
        self._turns: list[OrderedDict[_Lane, None]] = [OrderedDict() for _ in range(self._per_tenant + 1)]
        self._running = 0
        self._alive = 0
        self._closed = False
        self._on_idle: Callable[[], None] | None = None

    async def run(self, call: Callable[[Context], _T], tenant: str | None) -> _T:
        """Run a job, and wait for it.

        Args:
            call: takes the context to run under.
            tenant: whose job it is.

        Returns:
            What it returns.

        Raises:
            PoolFullError: too many jobs of the tenant wait.
            PoolWaitError: a job of this pool, which still runs, asks for this.
            PoolClosedError: the pool was shut down.
        """
        mark = _inside.get()
        while mark is not None:
            if mark.workers is self and mark.running:
                raise PoolWaitError(self.name)
            mark = mark.outer
        job = _Job(self, call)
        with self._lock:
            self._add(job, tenant)
        try:
            result: _T = await job.future
        except asyncio.CancelledError:
            with self._lock:
                self._forget(job)
            if not job.future.cancelled():  # it was done, and the caller cancelled before it could see that
                job.lose(job.future.exception())
            raise
        finally:
            del job  # an error's traceback holds this frame, and the job's future holds the error
        return result

    def _add(self, job: _Job, tenant: str | None) -> None:
        if self._closed:
            raise PoolClosedError(self.name)
        lane = self._lanes.get(tenant)
        if lane is None:
            lane = _Lane(tenant)
        if self._running < self._pool.threads and lane.running < self._per_tenant:
            if self._alive == self._running:
                name = f"asgi_context-{self.name}_{self._alive}"
                # Daemons: a job that does not end in time must not keep the process from ending.
                Thread(target=self._work, name=name, daemon=True).start()
                self._alive += 1
            lane.running += 1
            self._running += 1
            self._inbox.put(job)
        elif len(lane.waiting) >= self._pool.queue:
            raise PoolFullError(self.name)
        else:
            lane.waiting[job] = None
            self._turns[lane.running][lane] = None
        job.lane = self._lanes[tenant] = lane

    def _forget(self, job: _Job) -> None:
        lane: _Lane = job.lane
        if job in lane.waiting:
            del lane.waiting[job]
            if not lane.waiting:
                del self._turns[lane.running][lane]
                self._forget_lane(lane)

    def _forget_lane(self, lane: _Lane) -> None:
        if not lane.running and not lane.waiting:
            del self._lanes[lane.tenant]

    def _work(self) -> None:
        while (job := self._inbox.get()) is not None:
            while job is not None:
                job.run()
                with self._lock:
                    job = self._next(job.lane)
                    if job is None and self._closed:
                        self._alive -= 1
                        return

    def _next(self, lane: _Lane) -> _Job | None:
        if lane.waiting:
            del self._turns[lane.running][lane]
            self._turns[lane.running - 1][lane] = None
        lane.running -= 1
        self._forget_lane(lane)
        for turn in self._turns[: self._per_tenant]:
            if turn:
                lane, _ = turn.popitem(last=False)
                job, _ = lane.waiting.popitem(last=False)
                lane.running += 1
                if lane.waiting:
                    self._turns[lane.running][lane] = None
                return job
        self._running -= 1
        if not self._running and self._on_idle is not None:
            self._on_idle()
        return None

    def open(self) -> None:
        """Take jobs again."""
        with self._lock:
            self._closed = False

    async def close(self) -> None:
        """Take no more jobs, and wait for those that are there; the loop runs on, and the jobs may use it.

        After ``close_timeout``, jobs that still wait fail with `PoolClosedError`, and jobs that run are left to
        themselves.
        """
        idle: asyncio.Event | None = None
        with self._lock:
            self._closed = True
            if self._running:  # under trio none can
                idle = asyncio.Event()
                self._on_idle = partial(_wake, asyncio.get_running_loop(), idle)
        if idle is not None:
            try:
                await asyncio.wait_for(idle.wait(), self._close_timeout)
            except TimeoutError:
                log.warning("the pool %r is shut down, and %d of its jobs still run", self.name, self._running)
            finally:
                self._on_idle = None
        with self._lock:
            waiting = [job for lane in self._lanes.values() for job in lane.waiting]
            for job in waiting:
                self._forget(job)
            for _ in range(self._alive - self._running):
                self._inbox.put(None)
            self._alive = self._running
        for job in waiting:
            job.hand_over(job.deliver, None, PoolClosedError(self.name))


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


async def run_in_pool(pool: str, func: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a blocking function in a named pool of threads, under the caller's context.

    Pools are named in ``ContextMiddleware(pools=...)``, and are shared fairly by tenants.

    Args:
        pool: name of the pool.
        func: a plain function.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        What ``func`` returns. Where the caller is cancelled, a job that still waits is dropped; one that runs already
        runs to its end, with the context bound, and what comes of it is logged.

    Raises:
        TypeError: ``func`` is a coroutine function or a generator function.
        PoolNotFoundError: there is no pool of that name here.
        PoolFullError: as many jobs of this tenant as may wait for the pool already.
        PoolWaitError: this is called from a job of the same pool, which still runs.
        PoolClosedError: the pool was shut down before the job could run.
        JobError: ``func`` raised what no caller can be handed (StopIteration, SystemExit, KeyboardInterrupt,
            GeneratorExit, CancelledError).
        UnsupportedLoopError: there is no running asyncio event loop.
    """
    check_job(func)
    binding = current_binding()
    workers: Workers | None = binding.services.pools.get(pool)
    if workers is None:
        raise PoolNotFoundError(pool)
    call: Callable[[Context], _T] = partial(run_job, job=func, args=args, kwargs=kwargs)
    return await workers.run(call, binding.tenant)
