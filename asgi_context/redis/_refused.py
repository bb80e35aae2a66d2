"""What goes wrong with a server, in errors of this package's tree.

The server's own texts are not quoted: some repeat what was sent.
"""

import re
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from asgi_context.errors import StateUnavailableError

_CODES: Final[dict[type[Exception], str]] = {
    AuthenticationError: "NOAUTH",
    AuthorizationError: "NOPERM",
    BusyLoadingError: "LOADING",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    NoPermissionError: "NOPERM",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    TryAgainError: "TRYAGAIN",
    AskError: "MOVED",  # and MovedError
}
_CODE: Final = re.compile(
    r"(?:^|: -?)(?!ERR )([A-Z]{3,})(?= )"
)  # of a script, Redis 6 gives it in the midst of its text

_REASONS: Final = {
    "NOAUTH": "the server refuses the user name or the password: correct them in the URL of the store",
    "WRONGPASS": "the server refuses the user name or the password: correct them in the URL of the store",
    "NOPERM": (
        "the server's ACL does not let this user do it: allow it the keys of the store's prefix, and the commands "
        "that examples/redis.md lists"
    ),
    "OOM": (
        "the server is out of memory (maxmemory) and refused the write; nothing was written. Raise maxmemory, or "
        "delete states"
    ),
    "READONLY": (
        "the server is a replica, which cannot be written to; nothing was written. Give the address of the master, or "
        "a URL of Sentinel or Cluster, which know it"
    ),
    "MISCONF": (
        "the server cannot save to its disk and refused the write; nothing was written. See the server's log, and make "
        "room on its disk"
    ),
    "NOREPLICAS": "too few replicas are connected to the server (min-replicas-to-write); nothing was written",
    "LOADING": "the server is loading its data; try again in a moment",
    "MASTERDOWN": "the replica has lost its master; try again in a moment",
    "CLUSTERDOWN": "the cluster does not serve all its slots; try again in a moment",
    "TRYAGAIN": "the slot is being moved to another node; try again in a moment",
    "BUSY": "a script blocks the server; see SCRIPT KILL of Redis",
    "WRONGTYPE": "another program has put something under one of the store's keys: give the store its own prefix",
    "MOVED": "the server is a node of a cluster: use a URL of redis+cluster://, or a RedisCluster",
    "NOPROTO": "the server does not speak the protocol that was asked for",
}
ANSWERS: Final = (ResponseError, BusyLoadingError, AuthenticationError, AuthorizationError)
"""What redis-py makes of an answer that is an error; the connection is in order, and nothing was done."""

PASSING: Final = frozenset({"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY"})
"""Codes of answers that mean that nothing was done, and that it may be otherwise soon."""


class UnsentError(Exception):
    """A command was not sent."""


class LostError(Exception):
    """A command was sent, and no answer came: whether it was done is not known."""


class LateError(Exception):
    """No answer came in time: whether the command was done is not known."""


class UnconfirmedError(Exception):
    """A command was done, and too few replicas have said that they have it.

    Args:
        replicas: how many have.
    """

    def __init__(self, replicas: int) -> None:
        super().__init__(replicas)
        self.replicas = replicas


def code_of(error: BaseException) -> str:
    """Find out what kind of answer an error is.

    Args:
        error: what redis-py has made of it.

    Returns:
        The code that Redis gives the answer; ``""`` where it has none.
    """
    if "unauthenticated" in str(error):  # so Redis 7.0 answers a command of many parts, where others say NOAUTH
        return "NOAUTH"
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    found = _CODE.search(str(error))
    return found[1] if found else ""


def unavailable(error: BaseException, timeout: float, *, closed: bool = False) -> StateUnavailableError:
    """Make the error that users see.

    Args:
        error: what happened.
        timeout: the deadline of a call, in seconds.
        closed: whether the store was closed meanwhile.

    Returns:
        An error that says what to do.
    """
    if closed:
        return StateUnavailableError("the store was closed meanwhile")
    if isinstance(error, LateError):
        return StateUnavailableError(f"no answer within {timeout:g} seconds")
    if isinstance(error, LostError):
        return StateUnavailableError("the connection was lost before the answer came")
    if isinstance(error, AskError):
        return StateUnavailableError(_REASONS["TRYAGAIN"])
    cause = error.__cause__ if isinstance(error, UnsentError) and error.__cause__ is not None else error
    reason = _REASONS.get(code_of(cause)) if isinstance(cause, RedisError) else None
    if reason is None and isinstance(error, UnsentError):
        reason = "no connection can be made: see whether the server runs, and whether the URL of the store is right"
    return StateUnavailableError(reason or f"the server refused the command ({code_of(cause) or 'ERR'})")


def because(error: Exception, cause: BaseException | None) -> Exception:
    """Give an error its cause.

    Args:
        error: the error.
        cause: its cause, if there is one.

    Returns:
        The error.
    """
    error.__cause__ = cause
    return error
