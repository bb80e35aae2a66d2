"""Threads that run under the caller's context, by ``copy_context().run``.

Every job, and every item of a ``map``, gets a copy of its own: one Context cannot be entered twice at a time, and what
a job sets is gone with it, so that no later job on the same worker can see it.
"""

import asyncio
import concurrent.futures
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial, wraps
from typing import Any, Final, ParamSpec, TypeVar

from asgi_context._callables import runs_later
from asgi_context.errors import JobError, UnsupportedLoopError

_P = ParamSpec("_P")
_T = TypeVar("_T")


def run_job(context: Context, job: Callable[..., _T], args: Iterable[Any], kwargs: dict[str, Any]) -> _T:
    """Run a job under a context that nobody else has entered.

    Args:
        context: the context.
        job: a plain function.
        args: its arguments.
        kwargs: its keyword arguments.

    Returns:
        What it returns.

    Raises:
        JobError: it raised what no caller can be handed.
    """
    try:
        return context.run(job, *args, **kwargs)
    except _UNFIT as error:
        raise fit(error) from error


def fit(error: BaseException) -> BaseException:
    """Stand something else in for an error that no caller can be handed.

    Args:
        error: what a job has raised.

    Returns:
        The same, or a `JobError`.
    """
    return JobError(type(error).__qualname__) if isinstance(error, _UNFIT) else error


# StopIteration hangs the awaiting side (CPython 3.11, 3.12), SystemExit and KeyboardInterrupt stop the event loop, and
# either CancelledError passes for a cancellation of the caller.
_UNFIT: Final = (
    StopIteration,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
)


def check_job(job: object, place: str = "a thread") -> None:
    """Check what is to run in a thread or in a process.

    Args:
        job: what was given.
        place: where it is to run.

    Raises:
        TypeError: it is not callable, or a call would only make what runs later.
    """
    if not callable(job):
        message = f"the job must be callable, not {type(job).__qualname__}"
        raise TypeError(message)
    kind = runs_later(job)
    if kind is not None:
        message = f"{job!r} is {kind}: {place} would only make what then runs elsewhere, without the context"
        raise TypeError(message)


def carry_context(func: Callable[_P, _T], /) -> Callable[_P, _T]:
    """Wrap a function so that it runs, wherever it is called, under the context of this moment.

    For threads, callbacks and executors that others start. Each call gets a fresh copy of that context, so the wrapped
    function may be called often and at once, and calls do not see what other calls set.

    Args:
        func: a plain function.

    Returns:
        The wrapped function, of the same signature.

    Raises:
        TypeError: ``func`` is a coroutine function or a generator function. From a call: JobError, if ``func`` raised
            what no caller can be handed (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError).

    Example:
        >>> from threading import Thread
        >>> from asgi_context import Identity, bind_context, carry_context, current_context
        >>> def job():
        ...     print(current_context().user)
        >>> with bind_context(Identity("acme", "ann")):
        ...     thread = Thread(target=carry_context(job))
        >>> thread.start()
        ann
        >>> thread.join()
    """
    check_job(func)
    context = copy_context()

    @wraps(func)
    def carried(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return run_job(context.copy(), func, args, kwargs)

    return carried


def run_in_executor(
    executor: Executor | None, func: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
) -> Awaitable[_T]:
    """Run a blocking function in a thread, under the caller's context, or in a process on behalf of the same.

    Args:
        executor: a thread pool, or ``None`` for the running loop's default executor; or a `ContextProcessPoolExecutor`,
            into whose processes what it says crosses.
        func: a plain function.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        An ``asyncio.Future`` to be awaited, with what ``func`` returns or raises.

    Raises:
        TypeError: ``func`` is a coroutine function or a generator function, or the executor is one of processes that
            takes nothing along.
        UnsupportedLoopError: there is no running asyncio event loop. From the future: JobError, if ``func`` raised what
            no caller can be handed (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError).
    """
    if executor is not None and not isinstance(executor, Executor):
        message = (
            f"the first argument must be an executor, or None for the default one, not {type(executor).__qualname__}"
        )
        raise TypeError(message)
    check_job(func)
    processes = sys.modules.get("concurrent.futures.process")
    if processes is not None and isinstance(executor, processes.ProcessPoolExecutor):
        message = (
            "a context does not cross into another process: use asgi_context.processes.ContextProcessPoolExecutor, or "
            "hand what the job needs to it as arguments"
        )
        raise TypeError(message)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UnsupportedLoopError("run_in_executor") from None
    ours = sys.modules.get("asgi_context._processes")
    if ours is not None and isinstance(executor, ours.ContextProcessPoolExecutor):
        job: Future[_T] = ours.ContextProcessPoolExecutor.submit(executor, func, *args, **kwargs)
        return asyncio.wrap_future(job, loop=loop)
    return loop.run_in_executor(executor, partial(run_job, copy_context(), func, args, kwargs))


class ContextThreadPoolExecutor(ThreadPoolExecutor):
    """A thread pool whose jobs run under the context of whoever submits them.

    As the default executor of a loop (``loop.set_default_executor(...)``) it makes the ``run_in_executor(None, func)``
    of other libraries carry the context as well. It takes the arguments of ``ThreadPoolExecutor``.
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        """Run a function in a worker thread, under a copy of the caller's context.

        Args:
            fn: a plain function.
            *args: its arguments.
            **kwargs: its keyword arguments.

        Returns:
            A ``concurrent.futures.Future`` with what ``fn`` returns or raises; a `JobError` in place of what no caller
            can be handed (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError).

        Raises:
            TypeError: ``fn`` is a coroutine function or a generator function.
            RuntimeError: the pool was shut down.
        """
        check_job(fn)
        return super().submit(run_job, copy_context(), fn, args, kwargs)

    def map(self, fn: Callable[..., _T], *iterables: Iterable[Any], **options: Any) -> Iterator[_T]:  # noqa: ANN401
        """Run a function on every item, each under a copy of the context of this moment.

        Args:
            fn: a plain function.
            *iterables: its arguments, one iterable each.
            **options: those of ``Executor.map``, such as ``timeout`` in seconds.

        Returns:
            An iterator over the results, in order.

        Raises:
            TypeError: ``fn`` is a coroutine function or a generator function.
        """
        # Carried from here, since Python 3.14 with ``buffersize=`` submits later, from wherever the results are read.
        return super().map(carry_context(fn), *iterables, **options)
