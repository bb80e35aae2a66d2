"""For the tests of processes: what runs in them, and how a test keeps in touch with it."""

import asyncio
import contextlib
import contextvars
import faulthandler
import gc
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from asgi_context import bind_context, current_context, current_resource, current_state, run_in_pool
from asgi_context.values import get_from_context, update_request_context

LONG = 30  # seconds: no test takes it, but where something hangs
Address = tuple[str, int]
mark: contextvars.ContextVar[str] = contextvars.ContextVar("process_jobs", default="unset")


class Gate:
    """Where jobs say that they have started, and wait until they are let go."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(LONG)
        self._waiting: list[socket.socket] = []

    @property
    def address(self) -> Address:
        name: Address = self._server.getsockname()
        return name

    def started(self) -> int:
        """Wait for one more, and give the id of its process."""
        waiting, _ = self._server.accept()
        waiting.settimeout(LONG)
        self._waiting.append(waiting)
        return int(waiting.recv(100))

    def go(self) -> None:
        """Let all go that have started."""
        while self._waiting:
            with self._waiting.pop() as waiting, contextlib.suppress(OSError):
                waiting.sendall(b"g")  # a process that was forked off meanwhile has it open too

    def close(self) -> None:
        self.go()
        self._server.close()


def wait_at(gate: Address, result: Any = None, pid: int | None = None) -> Any:
    with socket.create_connection(gate, LONG) as end:
        end.sendall(str(pid or os.getpid()).encode())
        end.recv(1)
    return result


def who() -> Any:
    context = current_context(None)
    return context and (context.tenant, context.user, context.request_id, context.claims.to_dict())


def tenant_at(gate: Address | None = None) -> str | None:
    if gate is not None:
        wait_at(gate)
    context = current_context(None)
    return context and context.tenant


def value(name: str) -> Any:
    return get_from_context(name, "none")


def update(**values: Any) -> None:
    update_request_context(**values)


def take(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def leave_bound(tenant: Any) -> None:
    """What no job should do, and what no later one must see."""
    mark.set("left")
    bind_context(tenant).__enter__()


def marked() -> str:
    return mark.get()


def say(text: object) -> None:
    os.write(1, f"{text}\n".encode())  # in one piece, whoever else writes there


def fail(error: BaseException) -> None:
    raise error


def fail_with(kind: str) -> None:
    error: BaseException = {
        "needy": NeedyError("a", "b"),
        "holding": HoldingError(),
        "group": ExceptionGroup("two", [ValueError(1), KeyError(2)]),
        "silent": SilentError(),
        "syntax": bad_syntax(),
        "refusing": RefusingError(),
        "text": ChangingError(str, "text"),
        "exit": ChangingError(SystemExit, 3),
        "stop": ChangingError(StopIteration, 3),
    }[kind]
    raise error


class PlainError(Exception):
    """To which there can be weak references."""


class NeedyError(Exception):
    """It pickles, and cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class HoldingError(Exception):
    """It does not pickle."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())


def bad_syntax() -> SyntaxError:
    """Its traceback cannot be had, nor its text."""
    error = SyntaxError("syntax")
    error.lineno, error.text = 3, 5  # type: ignore[assignment]
    return error


class RefusingError(Exception):
    """Pickling it ends the process, unless somebody minds."""

    def __reduce__(self) -> Any:
        raise SystemExit(5)


class ChangingError(Exception):
    """It is unpickled as something else."""

    def __init__(self, kind: Any, value: object) -> None:
        super().__init__()
        self.change = kind, (value,)

    def __reduce__(self) -> Any:
        return self.change


class SilentError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ValueError


class Exploding:
    """What unpickling it does is an exception, of any kind."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return fail, (self.error("exploded"),)


class Noting:
    """Notes for whom it is unpickled."""

    def __init__(self) -> None:
        self.seen = tenant_at()

    def __reduce__(self) -> Any:
        return Noting, ()


def seen(noting: Noting) -> str | None:
    return noting.seen


def exploding(error: type[BaseException]) -> Exploding:
    return Exploding(error)


def unpicklable() -> Any:
    return threading.Lock()


def die(status: int) -> None:
    os._exit(status)


def kill(number: int = signal.SIGKILL) -> None:
    faulthandler.disable()
    os.kill(os.getpid(), number)
    time.sleep(LONG)


def _line() -> Any:
    from asgi_context._processes._serving import _Server

    (server,) = (thing for thing in gc.get_objects() if type(thing) is _Server)
    return server._line


def die_answering(size: int) -> None:
    """Die after the beginning of an answer."""
    from asgi_context._processes._line import _MARK

    _line()._end.sendall(_MARK + struct.pack("!Q", size) + b"half")
    kill()


def die_leaving_the_pipe_open(gate: Address) -> None:
    """Die while something else holds the end of the pipe; what that is, the gate is told."""
    pipe = os.dup(_line()._end.fileno())
    holder = subprocess.Popen(["sleep", str(3 * LONG)], pass_fds=[pipe])
    wait_at(gate, pid=holder.pid)
    os._exit(4)


def write_into_the_pipe(data: bytes) -> str:
    """What is written to a file descriptor that one has no more."""
    os.write(_line()._end.fileno(), data)
    return "another's"


def leave_the_pipe_open() -> tuple[int, int]:
    """Leave something behind that holds the end of the pipe."""
    pipe = os.dup(_line()._end.fileno())
    holder = subprocess.Popen(["sleep", str(3 * LONG)], pass_fds=[pipe], stdout=subprocess.DEVNULL)
    return os.getpid(), holder.pid


def close_all_files() -> None:
    os.closerange(3, 1024)


def leave_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(3 * LONG,)).start()


def live_without_the_pipe() -> None:
    _line()._end.close()
    time.sleep(LONG)


def in_a_child_of_its_own() -> list[int]:
    """Whether a process that a job forks off has the end of the pipe too."""
    end, (reads, writes) = _line()._end, os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writes, b"closed" if end.fileno() == -1 else b"open")
        os._exit(0)
    os.waitpid(pid, 0)
    return [os.read(reads, 10) == b"closed", end.fileno() == -1]


def interrupted(gate: Address) -> None:
    try:
        wait_at(gate)
    except KeyboardInterrupt:
        update_request_context(interrupted=True)
        raise


def handlers() -> Any:
    before = signal.set_wakeup_fd(-1)
    return before, signal.getsignal(signal.SIGTERM)


def blocked() -> set[signal.Signals]:
    return {each for each in signal.pthread_sigmask(signal.SIG_BLOCK, []) if isinstance(each, signal.Signals)}


def add(field: str, by: int) -> Any:
    return current_state().sync.increment("counts", field, by)


async def _add(field: str) -> Any:
    with bind_context():
        return await current_state().increment("counts", field)


def add_in_a_loop(field: str) -> Any:
    return asyncio.run(_add(field))


def use_state() -> None:
    current_state()


def no_state() -> Any:
    with bind_context():
        return who()


def use_resource() -> None:
    asyncio.run(current_resource(Gate))  # type: ignore[arg-type]  # a coroutine


def use_pool() -> None:
    asyncio.run(run_in_pool("tool", who))  # type: ignore[arg-type]  # a coroutine


def note_start(folder: Path) -> None:
    (folder / str(os.getpid())).touch()


def fail_to_start(folder: Path) -> None:
    note_start(folder)
    raise LookupError("no licence")


def kill_at_start(folder: Path) -> None:
    note_start(folder)
    kill()


def count_up() -> int:
    _counts.append(0)
    return len(_counts)


_counts: list[int] = []


def hold_output(seconds: float) -> str:
    time.sleep(seconds)  # so that both processes have one
    return "held"


def linger(gate: Address) -> None:
    """Leave something to be done before the process can end."""
    threading.Thread(target=wait_at, args=(gate,), daemon=False).start()
