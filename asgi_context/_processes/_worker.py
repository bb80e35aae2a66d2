"""A process for jobs, as its parent has it."""

import signal
import sys
from collections.abc import Generator, Iterable
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from socket import socket
from threading import Thread
from typing import Any, Final, Literal

from asgi_context._processes._answers import outcome, said
from asgi_context._processes._forks import forks
from asgi_context._processes._line import Line
from asgi_context._processes._serving import READY, SIGNALS, serve
from asgi_context.errors import ProcessDiedError, ProcessStartError

_LOOK: Final = 1.0  # seconds after which one looks whether the process lives, where its end does not close its pipe
_PATIENCE: Final = 20  # times a tenth of a second until what has closed its pipe must have ended
# There a pipe says whether the other end was closed with something unread (net/unix/af_unix.c, unix_release_sock).
_TELLS_UNREAD: Final = sys.platform == "linux"
_NO_FORKSERVER: Final = (
    "the fork server is that of the process from which this one was forked off. Start processes there by spawn, or "
    "fork before the first of them is started"
)


class NotBegunError(Exception):
    """The process was gone before it had read the job."""


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """How processes are made.

    Args:
        context: of `multiprocessing`, by which they are started.
        initializer: the pickle of what each calls first.
        most_jobs: how many jobs each runs.
        of_server: whether they are of a server: what signals go to all of its processes are left to this one (see
            `serve`), and none of them keeps this one from ending.
        look: how often to look whether one lives that says nothing, in seconds.
    """

    context: BaseContext
    initializer: bytes | None = None
    most_jobs: int | None = None
    of_server: bool = False
    look: float = _LOOK


class Worker:
    """One process, which runs one job at a time. Used by one thread at a time, but for `end`.

    Args:
        setup: how it is made.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._end: socket | None = None
        self._line: Line
        self._doom: Literal["kill", "terminate"] | None = None
        self._jobs = 0
        self.process: BaseProcess | None = None

    @property
    def worn(self) -> bool:
        """Whether it has run as many jobs as it may."""
        return self._jobs == self._setup.most_jobs

    def start(self) -> None:
        """Start the process, and wait until it is ready.

        Raises:
            ProcessStartError: it could not be started, or its initializer failed.
            ProcessDiedError: it died.
        """
        try:
            if self._setup.context.get_start_method() == "fork":
                self._launch_apart()
            else:
                self._launch()
        except ChildProcessError as error:
            raise ProcessStartError(_NO_FORKSERVER) from error
        except Exception as error:
            raise ProcessStartError(said(error)) from error
        if self._doom is not None:
            self.end(self._doom)
        try:
            message = self._line.receive()
        except (EOFError, OSError):
            raise ProcessDiedError(self._exitcode(), "starting") from None
        if message != READY:
            outcome(message)

    def _launch_apart(self) -> None:
        # In a thread of its own: one of a ThreadPoolExecutor, forked off, would wait for itself at its end.
        failed: list[Exception] = []

        def launch() -> None:
            try:
                self._launch()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told to whose job this is for
                failed.append(error)

        thread = Thread(target=launch, daemon=True)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    def _launch(self) -> None:
        setup = self._setup
        self._end, others = forks.pair()
        self._end.settimeout(setup.look)
        self._line = Line(self._end, self._look)
        make: Any = setup.context  # whose subclasses have it
        with closing(others):
            process: BaseProcess = make.Process(target=serve, args=(others, setup.initializer, setup.of_server))
            if setup.context.get_start_method() == "forkserver":
                # It is everybody's: what is blocked in it would be so in the processes of others too, for good.
                forkserver.ensure_running()
            with _signals_waiting(), forks.keeping(others):
                process.start()
        self.process = process

    def ask(self, job: Iterable[bytes]) -> bytes | bytearray:
        """Have a job run.

        Args:
            job: the parts of its message.

        Returns:
            The message of what came of it.

        Raises:
            NotBegunError: the process was gone before it had read the job.
            ProcessDiedError: it died.
        """
        self._jobs += 1
        try:
            self._line.send(*job)
        except (EOFError, OSError):
            raise NotBegunError from None
        try:
            return self._line.receive()
        except ConnectionResetError:
            if _TELLS_UNREAD:
                raise NotBegunError from None
            raise self.died() from None
        except (EOFError, OSError):
            raise self.died() from None

    def died(self) -> ProcessDiedError:
        """Say how it died.

        Returns:
            The error for its job.
        """
        return ProcessDiedError(self._exitcode(), "running")

    def end(self, how: Literal["kill", "terminate"]) -> None:
        """End it, in whatever it is; from any thread.

        Args:
            how: by which method of `multiprocessing.Process`.
        """
        self._doom = how
        if self.process is not None:
            getattr(self.process, how)()

    def close(self) -> None:
        """Let it end by itself."""
        if self._end is not None:
            self._end.close()

    def _look(self) -> None:
        if self.process is not None and self.process.exitcode is not None:
            raise EOFError  # what it has started holds its pipe

    def _exitcode(self) -> int | None:
        process = self.process
        if process is None:
            return None
        for _ in range(_PATIENCE):
            process.join(0.1)
            if process.exitcode is not None:
                return process.exitcode
        process.kill()  # it lives on without its pipe, or somebody else has waited for it
        return None


@contextmanager
def _signals_waiting() -> Generator[None, None, None]:
    # Ctrl-C goes to every process of a terminal, also to one that has not come far enough to take it. What is blocked
    # here is blocked in what is started here, until `serve` unblocks it.
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which unblocks them, where it must be started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
