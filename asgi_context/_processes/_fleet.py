"""The processes of one executor or pool.

Whoever calls what `Fleet.call` makes has a process for the time of a job: one that is idle, or else a new one. So there
are never more of them than threads that do.
"""

import atexit
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import Context
from multiprocessing.process import BaseProcess
from threading import Lock
from time import monotonic
from typing import Any, Final, Literal, TypeVar
from weakref import WeakSet

from asgi_context._processes._answers import outcome
from asgi_context._processes._crossing import Crossings
from asgi_context._processes._forks import forks
from asgi_context._processes._serving import packed
from asgi_context._processes._worker import NotBegunError, Setup, Worker

_T = TypeVar("_T")


class Fleet:
    """Processes for jobs.

    Args:
        setup: how they are made.
        values: which of `asgi_context.values` cross, by name.
    """

    def __init__(self, setup: Setup, values: Collection[str]) -> None:
        self._idle: list[Worker] = []
        self._setup = setup
        self._crossings = Crossings(values)
        self._begin()
        forks.add(self, Fleet._begin)
        _fleets.add(self)

    def _begin(self) -> None:
        self._lock = Lock()
        self._idle = []
        self._busy: set[Worker] = set()
        self._ending: list[BaseProcess] = []
        self._closed = False

    def __del__(self) -> None:
        for worker in self._idle:
            worker.close()

    def call(self, func: Callable[..., _T], args: Iterable[Any], kwargs: Mapping[str, Any]) -> Callable[[Context], _T]:
        """Make a job: a function with its arguments, and with what is bound here.

        Args:
            func: the function.
            args: its arguments.
            kwargs: its keyword arguments.

        Returns:
            What runs it, from any thread, and waits for it. It takes the context under which what comes of it is
            unpickled, and returns what the job returns. It raises what the job raises; ProcessStartError where there is
            no process to be had for it, ProcessDiedError where its process dies, and JobPickleError where what comes of
            it cannot be pickled there or unpickled here.

        Raises:
            JobPickleError: it cannot be pickled.
        """
        job = packed(self._crossings.take(), func, args, kwargs)
        return lambda context: context.run(self._run, job)

    def _run(self, job: Iterable[bytes]) -> Any:  # noqa: ANN401 - what the job returns
        while True:
            worker, fresh = self._take()
            try:
                if fresh:
                    worker.start()
                message = worker.ask(job)
            except NotBegunError:
                self._lose(worker)
                if fresh:
                    raise worker.died() from None
                continue  # it died while it was idle, which is no job's error
            except BaseException:
                self._lose(worker)
                raise
            self._give_back(worker)
            return outcome(message)

    def _take(self) -> tuple[Worker, bool]:
        with self._lock:
            fresh = not self._idle
            worker = Worker(self._setup) if fresh else self._idle.pop()
            self._busy.add(worker)
        return worker, fresh

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
            if self._closed or worker.worn:
                self._dismiss(worker)
            else:
                self._idle.append(worker)

    def _lose(self, worker: Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
            self._dismiss(worker)

    def _dismiss(self, worker: Worker) -> None:
        worker.close()
        self._ending = [process for process in self._ending if process.exitcode is None]
        if worker.process is not None:
            self._ending.append(worker.process)

    def open(self) -> None:
        """Keep processes again from now on."""
        with self._lock:
            self._closed = False

    def close(self, timeout: float | None) -> None:
        """Let processes end, those that run a job after that.

        Args:
            timeout: how long to wait for those that run none, in seconds; ``None`` for as long as it takes.
        """
        with self._lock:
            self._closed = True
            while self._idle:
                self._dismiss(self._idle.pop())
            ending = list(self._ending)
        deadline = None if timeout is None else monotonic() + timeout
        for process in ending:
            process.join(None if deadline is None else max(0.0, deadline - monotonic()))

    def ends(self) -> bool:
        """Say whether there are processes that were let go, and may not have ended yet.

        Returns:
            Whether there are.
        """
        with self._lock:
            self._ending = [process for process in self._ending if process.exitcode is None]
            return bool(self._ending)

    def end(self, how: Literal["kill", "terminate"]) -> None:
        """End all processes at once, whatever they run.

        Args:
            how: by which method of `multiprocessing.Process`.
        """
        with self._lock:
            workers = [*self._idle, *self._busy]
        for worker in workers:
            worker.end(how)


_fleets: Final[WeakSet[Fleet]] = WeakSet()


def _end_all() -> None:
    # An executor's jobs are done by now. Those of a pool were given their time when it was closed, and as daemon
    # threads would, must not keep this process from ending.
    for fleet in list(_fleets):
        fleet.close(0)
        fleet.end("kill")


# The last to be registered is the first to be called: `multiprocessing`, which is imported above, waits for all
# processes when its turn comes.
atexit.register(_end_all)
