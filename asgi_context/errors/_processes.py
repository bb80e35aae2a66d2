"""What can be wrong with jobs in other processes."""

import signal
from typing import Literal

from asgi_context.errors._root import AsgiContextError
from asgi_context.errors._state import StateError


class ProcessError(AsgiContextError, RuntimeError):
    """The root of what can be wrong with a job in another process, and of what it cannot be given."""


class ProcessStartError(ProcessError):
    """The process that a job was to run in could not be started, or its initializer failed.

    Args:
        reason: what happened, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the process for the job could not be started: {self.reason}"


class ProcessDiedError(ProcessError):
    """The process of a job has died. The other jobs go on, and the next one gets a new process.

    Args:
        exitcode: how it ended: its exit status, or less than 0 the number of the signal that ended it; ``None`` where
            that cannot be told.
        when: whether it was ``"starting"``, so that the job did not begin, or ``"running"`` the job, which may have
            had any part of its effect.
    """

    def __init__(self, exitcode: int | None, when: Literal["starting", "running"]) -> None:
        super().__init__(exitcode, when)
        self.exitcode = exitcode
        self.when = when

    def __str__(self) -> str:
        if self.when == "running":
            return f"the process died while it ran the job ({_told(self.exitcode)})"
        return (
            f"the process died while it was starting ({_told(self.exitcode)}), and the job did not begin; its stderr "
            'says why. A script that starts processes does so inside of `if __name__ == "__main__":`, since each of '
            "them imports it"
        )


def _told(exitcode: int | None) -> str:
    if exitcode is None:
        return "it is not known how"
    if exitcode >= 0:
        return f"exit status {exitcode}"
    try:
        return f"signal {signal.Signals(-exitcode).name}"
    except ValueError:  # one without a name, such as those for real time
        return f"signal {-exitcode}"


class JobPickleError(ProcessError, TypeError):
    """A job, its result or its error does not cross into another process: it cannot be pickled there or unpickled here.

    Args:
        what: ``"job"`` (the function and its arguments, and the values that go with it), ``"result"`` or ``"error"``.
        reason: what pickle says.
    """

    def __init__(self, what: Literal["job", "result", "error"], reason: str) -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        text = f"the {self.what} does not cross between processes: {self.reason}"
        if self.what == "job":
            text += ". Give a function of a module that the other process can import, and arguments that can be pickled"
        return text


class JobTracebackError(ProcessError):
    """The traceback of a job in another process: the ``__cause__`` of the error that the job raised there.

    Args:
        text: the traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class ProcessContextError(ProcessError, LookupError):
    """What a job in another process has asked for stays in the process that it comes from.

    Args:
        wanted: what that is, such as ``"resources"``.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__(wanted)
        self.wanted = wanted

    def __str__(self) -> str:
        return (
            f"{self.wanted} of a request do not cross into another process: use them before or after the job, and hand "
            "what the job needs to it as arguments"
        )


class StoreNotSharedError(StateError, RuntimeError):
    """A store cannot be used in another process than the one that it was made in.

    Args:
        store: name of its type.
        reason: why not.
    """

    def __init__(self, store: str, reason: str) -> None:
        super().__init__(store, reason)
        self.store = store
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the {self.store} does not cross into another process: {self.reason}. Hand what the job needs to it as "
            "arguments, or keep states where several processes reach them, such as in RedisStore.from_url(...)"
        )
