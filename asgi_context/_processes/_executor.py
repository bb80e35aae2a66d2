"""The executor."""

import multiprocessing
import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import islice
from multiprocessing.context import BaseContext
from threading import Lock, Thread
from typing import Any, Literal, ParamSpec, TypeVar

from asgi_context._executors import check_job
from asgi_context._pool import check_names
from asgi_context._processes._answers import pickled
from asgi_context._processes._fleet import Fleet
from asgi_context._processes._forks import forks
from asgi_context._processes._worker import Setup
from asgi_context.errors import JobPickleError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ContextProcessPoolExecutor(Executor):
    """A pool of processes whose jobs run on behalf of whoever submits them.

    Of what is bound where a job is submitted, these cross with it: tenant, user, claims, expiry and request id; the
    values named here; and the address of the store, which the process opens when the job first uses it. They are bound
    for the job, and nothing is after it. A job may use ``current_state().sync`` where the store is one that several
    processes reach (`RedisStore.from_url`); with a `MemoryStore`, `current_state` raises `StoreNotSharedError`.
    Resources, pools and tool bridges stay behind.

    A process that dies is a `ProcessDiedError` of the job that it ran, and of no other. Processes are started when they
    are first needed. They end with the executor or with this process, after the job that they run. The interpreter
    waits at its end for all jobs; that of Python 3.12 cannot fork any more then, so that a job which needs a new
    process for it, with that start method, gets `ProcessStartError`.

    Args:
        max_workers: how many jobs run at a time; without it, as many as the machine has processors for this process.
        mp_context: how processes are started; without it, ``multiprocessing.get_context("spawn")``. To fork a process
            of several threads, as one with this executor is, is not safe in general.
        initializer: is called in each process before its first job, with nothing bound. If it fails, so does the job
            that the process was started for, by `ProcessStartError`.
        initargs: its arguments.
        max_tasks_per_child: after how many jobs a process is replaced.
        values: which of `asgi_context.values` cross, by name. They must be such as can be pickled.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a number is less than 1.
        JobPickleError: the initializer and its arguments cannot be pickled.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        values: Collection[str] = (),
    ) -> None:
        for option, number in (("max_workers", max_workers), ("max_tasks_per_child", max_tasks_per_child)):
            if number is not None and type(number) is not int:
                message = f"{option} must be an int, not {type(number).__qualname__}"
                raise TypeError(message)
            if number is not None and number < 1:
                message = f"{option} must be at least 1, not {number}"
                raise ValueError(message)
        if mp_context is not None and not isinstance(mp_context, BaseContext):
            message = f"mp_context must be one of multiprocessing.get_context(), not {mp_context!r}"
            raise TypeError(message)
        check_names(values, "values")
        if initializer is not None:
            check_job(initializer, "a process")
        self._max_workers = _processors() if max_workers is None else max_workers
        first = None if initializer is None else pickled((initializer, tuple(initargs)), "job")
        setup = Setup(mp_context or multiprocessing.get_context("spawn"), first, max_tasks_per_child)
        self._fleet = Fleet(setup, values)
        self._shut = False
        self._begin()
        forks.add(self, ContextProcessPoolExecutor._begin)

    def _begin(self) -> None:
        self._lock = Lock()
        # Each waits for one job in a process. The interpreter waits for them when it ends, as it does for jobs.
        self._threads = ThreadPoolExecutor(self._max_workers, "asgi_context-process")

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        """Run a function in a process, on behalf of whoever is bound here.

        Args:
            fn: a plain function, of a module that the process can import.
            *args: its arguments.
            **kwargs: its keyword arguments.

        Returns:
            A ``concurrent.futures.Future`` with what ``fn`` returns or raises: its error has the traceback there as
            ``__cause__``. A `JobError` stands for what no caller can be handed (StopIteration, SystemExit,
            KeyboardInterrupt, GeneratorExit, CancelledError). It fails with `JobPickleError` if the job, its result or
            its error cannot be pickled, with `ProcessDiedError` if the process dies, and with `ProcessStartError` if
            none could be started.

        Raises:
            TypeError: ``fn`` is a coroutine function or a generator function.
            RuntimeError: the executor was shut down.
        """
        check_job(fn, "a process")
        try:
            call = self._fleet.call(fn, args, kwargs)
        except JobPickleError as error:
            future: Future[_T] = Future()
            future.set_exception(error)
            return future
        with self._lock:
            if self._shut:
                message = "cannot schedule new futures after shutdown"
                raise RuntimeError(message)
            return self._threads.submit(call, copy_context())

    def map(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[_T]:
        """Run a function on every item, on behalf of whoever is bound here.

        Args:
            fn: a plain function, of a module that the processes can import.
            *iterables: its arguments, one iterable each.
            timeout: after how many seconds from now the results must be there.
            chunksize: how many items make one job.

        Returns:
            An iterator over the results, in order.

        Raises:
            TypeError: ``fn`` is a coroutine function or a generator function.
            ValueError: ``chunksize`` is less than 1. From the iterator: TimeoutError, and whatever a job raises.
        """
        check_job(fn, "a process")
        if chunksize < 1:
            message = f"chunksize must be at least 1, not {chunksize}"
            raise ValueError(message)
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        return _items(super().map(partial(_run_chunk, fn), chunks, timeout=timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as the base class has it
        """Take no more jobs, and end the processes when those that were taken are done.

        Args:
            wait: whether to wait until then.
            cancel_futures: whether to cancel the jobs that have not begun.
        """
        with self._lock:
            self._shut = True
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._fleet.close(None)
        else:
            with suppress(RuntimeError):  # no thread to be had, as where the interpreter ends, which closes them itself
                Thread(target=_close, args=(self._threads, self._fleet), daemon=True).start()

    def terminate_workers(self) -> None:
        """End the processes at once, by SIGTERM, with the jobs that they run, and shut down; as in Python 3.14."""
        self._end_workers("terminate")

    def kill_workers(self) -> None:
        """End the processes at once, by SIGKILL, with the jobs that they run, and shut down; as in Python 3.14."""
        self._end_workers("kill")

    def _end_workers(self, how: Literal["kill", "terminate"]) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        self._fleet.end(how)


def _close(threads: ThreadPoolExecutor, fleet: Fleet) -> None:
    threads.shutdown()
    fleet.close(0)


def _processors() -> int:
    count = getattr(os, "process_cpu_count", os.cpu_count)  # of Python 3.13
    return count() or 1


def _chunks(items: Iterable[_T], size: int) -> Generator[list[_T], None, None]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _run_chunk(fn: Callable[..., _T], chunk: list[tuple[Any, ...]]) -> list[_T]:
    return [fn(*args) for args in chunk]


def _items(chunks: Iterator[list[_T]]) -> Generator[_T, None, None]:
    for chunk in chunks:
        yield from chunk
