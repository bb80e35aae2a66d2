"""What came of a job, on its way back from the process that it ran in.

A result is pickled. So is an error, with its traceback as text before it: where the error does not pickle, or cannot be
unpickled, that text is what its caller gets to see.
"""

import pickle
import traceback
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from struct import Struct
from typing import Any, Final, Literal

from asgi_context._executors import fit
from asgi_context.errors import JobPickleError, JobTracebackError

_Parts = list[bytes]
_RESULT: Final = b"r"
_LENGTH: Final = Struct("!I")


def pickled(thing: object, what: Literal["job", "result", "error"]) -> bytes:
    """Pickle, as `multiprocessing` does, to whose pickler libraries add what they need between processes.

    Args:
        thing: anything.
        what: what it is, for the error.

    Returns:
        The pickle.

    Raises:
        JobPickleError: it cannot be pickled.
    """
    # Not by `ForkingPickler.dumps`, whose view of a buffer CPython 3.12 and 3.13 cannot always collect.
    buffer = BytesIO()
    try:
        ForkingPickler(buffer).dump(thing)
    except Exception as error:
        raise JobPickleError(what, said(error)) from error
    return buffer.getvalue()


def unpickled(data: bytes | bytearray | memoryview, what: Literal["job", "result", "error"]) -> Any:  # noqa: ANN401 - anything
    """Unpickle.

    Args:
        data: the pickle.
        what: what it is, for the error.

    Returns:
        What was pickled.

    Raises:
        JobPickleError: it cannot be unpickled.
    """
    try:
        return pickle.loads(data)  # noqa: S301 - it comes from a process of this one's, or from that which started it
    except BaseException as error:  # whatever code of the user's raises there, SystemExit too
        raise JobPickleError(what, said(error)) from error


def said(error: BaseException) -> str:
    """Give an error in one line.

    Args:
        error: the error.

    Returns:
        Its type and its text.
    """
    try:
        return "".join(traceback.format_exception_only(error)).strip()  # which stands a text that cannot be had
    except BaseException:  # noqa: BLE001 - but not all that a class may do
        return type(error).__qualname__


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - as above
        return f"{''.join(traceback.format_tb(error.__traceback__))}{said(error)}\n"


def succeeded(result: object) -> _Parts:
    """Make the message of a result.

    Args:
        result: the result.

    Returns:
        The parts of the message.

    Raises:
        JobPickleError: it cannot be pickled.
    """
    return [_RESULT, pickled(result, "result")]


def failed(error: BaseException) -> _Parts:
    """Make the message of an error.

    Args:
        error: the error.

    Returns:
        The parts of the message.
    """
    text = _traceback_of(error).encode("utf-8", "backslashreplace")
    try:
        body = pickled(fit(error), "error")
    except JobPickleError as why:
        body = pickled(why, "error")
    except BaseException as why:  # noqa: BLE001 - whatever its methods raise, it is told to the caller
        body = pickled(JobPickleError("error", said(why)), "error")
    return [b"e", _LENGTH.pack(len(text)), text, body]


def outcome(message: bytes | bytearray) -> Any:  # noqa: ANN401 - what the job returned
    """Read the message of a job.

    Args:
        message: the message.

    Returns:
        The job's result.

    Raises:
        BaseException: the job's error.
        JobPickleError: either cannot be unpickled.
    """
    view = memoryview(message)
    if bytes(view[:1]) == _RESULT:
        return unpickled(view[1:], "result")
    (length,) = _LENGTH.unpack_from(view, 1)
    begin = 1 + _LENGTH.size
    text = str(view[begin : begin + length], "utf-8")
    try:
        error = unpickled(view[begin + length :], "error")
    except JobPickleError as why:
        error = why
    # How an error pickles is for its class to say: it may come out as something else.
    if isinstance(error, BaseException):
        error = fit(error)
    else:
        error = JobPickleError("error", f"it was unpickled as {type(error).__qualname__}")
    try:
        raise error from JobTracebackError(text)
    finally:
        del error  # its traceback holds this frame
