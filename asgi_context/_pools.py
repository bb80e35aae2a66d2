"""Named pools for blocking jobs, of threads or of threads that each wait for a process, shared fairly by tenants.

Each tenant has a lane of its own in a pool. A thread that comes free takes the next job of the tenant that has the
fewest running, in turns among equals: if one tenant has a thousand jobs waiting, another's first is still the next.

Invariants, whenever the lock is free:

- A lane waits (has jobs in it, and stands in ``_turns[lane.running]``) only where no thread is free for it: all are
  busy and no more may be, or can be, had; or its tenant has ``per_tenant`` running.
- Of ``_alive`` threads, ``_running`` are at a job, and the others wait for one, or were sent home by a ``None`` in the
  inbox and are not counted any more. Threads are started when they are first needed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeAlias, TypeVar

from asgi_context._context import current_binding
from asgi_context._crashes import log, log_crash
from asgi_context._executors import check_job, run_job
from asgi_context._pool import Pool
from asgi_context.errors import (
    PoolClosedError,
    PoolFullError,
    PoolNotFoundError,
    PoolWaitError,
    UnsupportedLoopError,
)

if TYPE_CHECKING:
    from asgi_context._processes import Fleet

_P = ParamSpec("_P")
_T = TypeVar("_T")


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


def _innermost(mark: _Mark | None) -> _Mark | None:
    # Past those that have ended, or a job that is asked for by what the one before left behind, and so on, would have a
    # chain of all before it.
    while mark is not None and not mark.running:
        mark = mark.outer
    return mark


class _Job:
    __slots__ = ("call", "context", "dropped", "future", "lane", "loop", "workers")

    lane: _Lane

    def __init__(self, workers: "Workers", call: Callable[[Context], Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.workers = workers
        self.call = call
        self.context = copy_context()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.dropped = False

    def run(self) -> "_Outcome | None":
        if self.dropped or self.future.cancelled():
            return None
        mark = _Mark(self.workers, _innermost(self.context.get(_inside)))
        self.context.run(_inside.set, mark)
        call, context = self.call, self.context
        del self  # the traceback of an error holds this frame, and the job's future is going to hold the error
        try:
            return call(context), None
        except BaseException as error:  # noqa: BLE001 - for its caller; `run_job` has replaced what no caller can take
            return None, error
        finally:
            mark.running = False

    def hand_over(self, outcome: "_Outcome") -> bool:
        try:  # in its context, so that what is logged there is logged for whom the job was
            self.loop.call_soon_threadsafe(self.deliver, *outcome, context=self.context)
        except RuntimeError:  # the loop was closed
            return False
        return True

    def deliver(self, result: object, error: BaseException | None) -> None:
        if self.dropped or self.future.done():
            self.lose(error, "its caller was cancelled")
        elif error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)

    def lose(self, error: BaseException | None, why: str) -> None:
        if error is None:
            log.warning("the result of a job of the pool %r is lost: %s", self.workers.name, why)
        else:
            log_crash(f"a job of the pool {self.workers.name!r} failed, and nobody hears of it: {why}", error)


_Outcome: TypeAlias = tuple[object, BaseException | None]


class _Everybody:
    """In an inbox: all threads are to leave."""


def _work(inbox: "SimpleQueue[_Job | type[_Everybody] | None]") -> None:
    # A thread that waits holds nothing but its inbox, so that a pool that nobody has any more can go.
    while True:
        job = inbox.get()
        if job is None:
            return
        if isinstance(job, type):
            inbox.put(job)
            return
        while job is not None:
            job, leaves = job.workers.work(job)
            if leaves:
                return


class Workers:
    """The threads of one pool.

    Args:
        name: the name of the pool.
        pool: how large it is.
        close_timeout: how long closing it may take, in seconds.
        earlier: the pools that stand before it. Its jobs may not wait for these: as all wait in one direction, no two
            pools can wait for each other.
        fleet: the processes that its threads wait for, where it is a pool of these.
    """

    def __init__(
        self,
        name: str,
        pool: Pool,
        close_timeout: float,
        earlier: "tuple[Workers, ...]" = (),
        fleet: "Fleet | None" = None,
    ) -> None:
        self.name = name
        self.earlier = earlier
        self._close_timeout = close_timeout
        self._pool = pool
        self.fleet = fleet
        self._per_tenant = pool.threads if pool.per_tenant is None else pool.per_tenant
        self._lock = Lock()
        self._inbox: SimpleQueue[_Job | type[_Everybody] | None] = SimpleQueue()
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
            PoolWaitError: a job of this pool or of a later one, which still runs, asks for this.
            PoolClosedError: the pool was shut down.
        """
        mark = _innermost(_inside.get())
        while mark is not None:
            if mark.workers is self or self in mark.workers.earlier:
                raise PoolWaitError(self.name, mark.workers.name)
            mark = _innermost(mark.outer)
        try:
            job = _Job(self, call)
        except RuntimeError:
            raise UnsupportedLoopError("run_in_pool") from None
        with self._lock:
            self._add(job, tenant)
        try:
            result: _T = await job.future
        except asyncio.CancelledError:
            with self._lock:
                self._forget(job)
            if not job.future.cancelled():  # it was done, and the caller cancelled before it could see that
                job.lose(job.future.exception(), "its caller was cancelled")
            raise
        except GeneratorExit:
            job.dropped = True  # no lock here: it may be the garbage collector who closes this
            raise
        finally:
            del job  # the traceback of an error holds this frame, and the job's future holds the error
        return result

    def __del__(self) -> None:
        self._inbox.put(_Everybody)

    def _add(self, job: _Job, tenant: str | None) -> None:
        if self._closed:
            raise PoolClosedError(self.name)
        lane = self._lanes.get(tenant)
        if lane is None:
            lane = _Lane(tenant)
        # What waits goes first, also where it waits only because no further thread was to be had.
        room = self._running < self._pool.threads and lane.running < self._per_tenant and not lane.waiting
        if room and self._has_thread():
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

    def _has_thread(self) -> bool:
        if self._alive > self._running:
            return True
        # Daemons: a job that does not end in time must not keep the process from ending.
        thread = Thread(target=_work, args=(self._inbox,), name=f"asgi_context-{self.name}_{self._alive}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the machine has no more
            if not self._alive:
                raise
            return False
        self._alive += 1
        return True

    def work(self, job: _Job) -> tuple[_Job | None, bool]:
        """Run a job, in one of the threads.

        Args:
            job: the job.

        Returns:
            The next one, if there is one; and whether the thread is to leave.
        """
        outcome = job.run()
        # A caller that has its result finds the thread free; and who waits for the last thread finds all results
        # handed over. The job itself goes outside of the lock: what it holds may have finalizers.
        with self._lock:
            handed_over = outcome is None or job.hand_over(outcome)
            following = self._next(job.lane)
            leaves = following is None and self._closed
            self._alive -= leaves
        if outcome is not None and not handed_over:
            with suppress(Exception):  # of whoever handles the log, which must not cost a thread
                job.context.run(job.lose, outcome[1], "its event loop has ended")
        del job, outcome  # an error's traceback leads to this frame too, by way of the one that it began in
        return following, leaves

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
        if self.fleet is not None:
            self.fleet.open()

    async def close(self) -> None:
        """Take no more jobs, and wait for those that are there; the loop runs on, and the jobs may use it.

        After ``close_timeout``, jobs that still wait fail with `PoolClosedError`, and jobs that run are left to
        themselves; in a process, until this one ends.
        """
        idle: asyncio.Event | None = None
        deadline = monotonic() + self._close_timeout
        with self._lock:
            self._closed = True
            if self._running:  # under trio none can
                idle = asyncio.Event()
                self._on_idle = partial(_wake, asyncio.get_running_loop(), idle)
        try:
            if idle is not None:
                await asyncio.wait_for(idle.wait(), self._close_timeout)
        except TimeoutError:
            log.warning("the pool %r is shut down, and %d of its jobs still run", self.name, self._running)
        finally:
            self._send_home()
            if self.fleet is not None:
                self.fleet.close(0)
        if self.fleet is not None and self.fleet.ends():
            await asyncio.to_thread(self.fleet.close, max(0.0, deadline - monotonic()))

    def _send_home(self) -> None:
        with self._lock:
            self._on_idle = None
            waiting = [job for lane in self._lanes.values() for job in lane.waiting] if self._closed else []
            for job in waiting:
                self._forget(job)
            for _ in range(self._alive - self._running):
                self._inbox.put(None)
            self._alive = self._running
        for job in waiting:
            if not job.hand_over((None, PoolClosedError(self.name))):
                job.context.run(job.lose, PoolClosedError(self.name), "its event loop has ended")


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop was closed, so nobody waits
        loop.call_soon_threadsafe(event.set)


async def run_in_pool(pool: str, func: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a blocking function in a named pool, under the caller's context.

    Pools are named in ``ContextMiddleware(pools=...)``, and are shared fairly by tenants. In one of processes, what
    crosses of the context is what `ContextProcessPoolExecutor` says.

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
        PoolWaitError: this is called from a job, which still runs, of the same pool or of one that stands after it in
            ``pools=``.
        PoolClosedError: the pool was shut down before the job could run.
        JobError: ``func`` raised what no caller can be handed (StopIteration, SystemExit, KeyboardInterrupt,
            GeneratorExit, CancelledError).
        UnsupportedLoopError: there is no running asyncio event loop.
        ProcessError: the pool is one of processes, and the job cannot cross, or its process did not start or died.
    """
    check_job(func)
    binding = current_binding()
    workers: Workers | None = binding.services.pools.get(pool)
    if workers is None:
        raise PoolNotFoundError(pool)
    call: Callable[[Context], _T] = partial(run_job, job=func, args=args, kwargs=kwargs)
    if workers.fleet is not None:
        call = workers.fleet.call(func, args, kwargs)
    return await workers.run(call, binding.tenant)
