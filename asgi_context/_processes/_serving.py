"""What runs in a process that is there for jobs.

It takes one after the other, each in an empty ``contextvars.Context`` of its own: a process that was forked off has a
copy of all that its parent had bound, and what one job sets is not for the next. It ends where its parent is gone or
has closed the pipe, though not in the midst of a job.
"""

import os
import pickle
import signal
from contextlib import suppress
from contextvars import Context, copy_context
from socket import socket
from struct import Struct
from types import FrameType
from typing import Any, Final

from asgi_context._executors import run_job
from asgi_context._processes._answers import failed, pickled, said, succeeded, unpickled
from asgi_context._processes._crossing import Crossing, bound
from asgi_context._processes._forks import forks
from asgi_context._processes._line import Line
from asgi_context._processes._stores import Stores
from asgi_context.errors import JobPickleError, ProcessStartError

_LENGTH: Final = Struct("!I")
READY: Final = b""
"""The message with which a process begins, unless it has to say what went wrong."""

SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGTERM})
"""Those that wait until the process has said what it does with them."""


def serve(end: socket, initializer: bytes | None, of_server: bool) -> None:  # noqa: FBT001 - handed over by multiprocessing, by position
    """Run jobs until there will be no more: the main function of a process.

    Args:
        end: its end of the pipe.
        initializer: the pickle of a function and its arguments, to be called first.
        of_server: whether Ctrl-C in a terminal, and the SIGTERM of a service manager, which go to every process of a
            server, are left to the parent, so that it can finish its jobs; else the one interrupts the job, and the
            other ends the process.
    """
    end.settimeout(None)
    end.set_inheritable(False)  # what a job starts must not hold it
    forks.add_end(end)
    server = _Server(Line(end))
    _take_signals(server, of_server=of_server)
    try:
        if server.begins(initializer):
            server.serve()
    except (EOFError, OSError):
        pass
    finally:
        server.stores.close()
        with suppress(OSError):  # a job may have closed it
            end.close()


def _take_signals(server: "_Server", *, of_server: bool) -> None:
    # After a fork there are still those of the parent: its event loop would be told of what is sent to this process.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, server.told_to_end if of_server else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN if of_server else server.interrupted)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class _Server:
    def __init__(self, line: Line) -> None:
        self.stores = Stores()
        self._line = line
        self._busy = False
        self._pid = os.getpid()

    def told_to_end(self, number: int, _frame: FrameType | None) -> None:
        # Not by SIG_IGN, which the programs that a job runs would take over. Nor may its own processes.
        if os.getpid() != self._pid:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def interrupted(self, _number: int, _frame: FrameType | None) -> None:
        if self._busy:
            raise KeyboardInterrupt

    def begins(self, initializer: bytes | None) -> bool:
        """Call the initializer, and say how it went.

        Args:
            initializer: its pickle.

        Returns:
            Whether it went well.
        """
        if initializer is not None:
            try:
                func, args = unpickled(initializer, "job")
                Context().run(func, *args)
            except BaseException as error:  # noqa: BLE001 - whatever it was, it is told to who wanted the process
                reason = f"its initializer failed: {said(error)}"
                self._line.send(*failed(ProcessStartError(reason).with_traceback(error.__traceback__)))
                return False
        self._line.send(READY)
        return True

    def serve(self) -> None:
        """Run jobs until the pipe is closed."""
        while True:
            self._line.wait()
            job = self._line.receive()
            if hasattr(signal, "pthread_sigmask"):
                # It calls the handlers of signals that came before the job. By itself CPython 3.13 calls those of a
                # process that a thread has forked off only where a call is broken off, which may be in the job.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ())
            answer = self._answer(job)
            del job  # what it holds may be large, and the next one may be long in coming
            self._line.send(*answer)
            del answer

    def _answer(self, job: bytes | bytearray) -> list[bytes]:
        try:
            self._busy = True
            return Context().run(self._run, job)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the job's alone
            return failed(error)
        finally:
            self._busy = False

    def _run(self, job: bytes | bytearray) -> list[bytes]:
        view = memoryview(job)
        (length,) = _LENGTH.unpack_from(view)
        begin = _LENGTH.size + length
        crossing = Crossing(*unpickled(view[_LENGTH.size : begin], "job"))
        # Unpickled, run and pickled while it is bound: methods of the user's are called by all three.
        with bound(crossing, self.stores):
            func, args, kwargs = unpickled(view[begin:], "job")
            result: Any = run_job(copy_context(), func, args, kwargs)
            return succeeded(result)


def packed(crossing: Crossing, func: object, args: object, kwargs: object) -> tuple[bytes, ...]:
    """Make the message of a job.

    Args:
        crossing: what crosses with it.
        func: the function.
        args: its arguments.
        kwargs: its keyword arguments.

    Returns:
        The parts of the message.

    Raises:
        JobPickleError: it cannot be pickled.
    """
    try:
        crosses = pickle.dumps(tuple(crossing))
    except Exception as error:
        raise JobPickleError("job", said(error)) from error
    return _LENGTH.pack(len(crosses)), crosses, pickled((func, args, kwargs), "job")
