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
from asgi_context.errors import ProcessStartError

_T = TypeVar("_T")
_GRACE: Final = 2.0  # seconds for what is idle to flush its output and close its stores, where this process ends
_ENDED: Final = "all processes were ended meanwhile"


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
        self._ended = False

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
                if fresh or self._ended:
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
            if fresh and self._ended:
                raise ProcessStartError(_ENDED)
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
        """End all processes at once, whatever they run, and start no more.

        Args:
            how: by which method of `multiprocessing.Process`.
        """
        with self._lock:
            self._ended = True
            workers, ending = [*self._idle, *self._busy], list(self._ending)
        for worker in workers:
            worker.end(how)
        for process in ending:
            getattr(process, how)()

    def finish(self) -> None:
        """End the processes where this one ends.

        An executor's jobs are done by then; its processes may take their time, as they have it where it is shut down.
        Those of a server had theirs when it closed its pools, and as daemon threads would, must not keep this process
        from ending: neither by a job, by those that wait for it, nor by a thread that a job has left behind.
        """
        self.close(0)
        if not self._setup.of_server:
            return
        with self._lock:
            self._ended = True
            busy = list(self._busy)
        for worker in busy:
            worker.end("kill")
        self.close(_GRACE)
        self.end("kill")


_fleets: Final[WeakSet[Fleet]] = WeakSet()


def _end_all() -> None:
    for fleet in list(_fleets):
        fleet.finish()


# The last to be registered is the first to be called: `multiprocessing`, which is imported above, waits for all
# processes when its turn comes.
atexit.register(_end_all)
