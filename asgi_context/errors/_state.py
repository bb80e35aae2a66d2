"""What can be wrong with shared state."""

from typing import Literal

from asgi_context.errors._root import AsgiContextError


class StateError(AsgiContextError):
    """The root of what shared state can raise."""


class StateSerializationError(StateError, TypeError):
    """A value cannot be kept so that it comes back equal and of the same type.

    Args:
        state: name of the state.
        path: the field, with the way to the value inside it, such as ``"cart['items'][2]"``.
        reason: what is wrong with the value, without the value.
    """

    def __init__(self, state: str, path: str, reason: str) -> None:
        super().__init__(state, path, reason)
        self.state = state
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"state {self.state!r}, {self.path}: {self.reason}"


class StateDecodeError(StateError, ValueError):
    """What is stored cannot be read here.

    Args:
        state: name of the state.
        path: the field, such as ``"field 'cart'"``.
        reason: what is wrong with it, in words.
    """

    def __init__(self, state: str, path: str, reason: str) -> None:
        super().__init__(state, path, reason)
        self.state = state
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"state {self.state!r}, {self.path} cannot be read: {self.reason}"


class StateNumberError(StateError, ValueError):
    """A field cannot be incremented.

    Args:
        state: name of the state.
        field: name of the field.
        why: ``"type"``: it holds something other than an int or a float; ``"overflow"``: the result would be beyond a
            signed 64-bit integer, or no finite IEEE double.
    """

    def __init__(self, state: str, field: str, why: Literal["type", "overflow"]) -> None:
        super().__init__(state, field, why)
        self.state = state
        self.field = field
        self.why = why

    def __str__(self) -> str:
        if self.why == "type":
            return f"state {self.state!r}, field {self.field!r} holds no int or float, so it cannot be incremented"
        return (
            f"state {self.state!r}, field {self.field!r} would go beyond a signed 64-bit integer or a finite double; "
            "it was left as it is"
        )


class StateConflictError(StateError, RuntimeError):
    """A state was changed by others each time that `SharedState.modify` was about to write it.

    Args:
        state: name of the state.
        attempts: how often it was tried.
    """

    def __init__(self, state: str, attempts: int) -> None:
        super().__init__(state, attempts)
        self.state = state
        self.attempts = attempts

    def __str__(self) -> str:
        return (
            f"state {self.state!r} was changed by others in each of {self.attempts} attempts to modify it; nothing was "
            "written. Try again later, or use increment or update_field, which need no attempts"
        )


class StateLimitError(StateError, RuntimeError):
    """A write was refused by the store's `StateLimits`; nothing was written, and nobody else's states were touched.

    Args:
        limit: name of the limit.
        most: its value.
    """

    def __init__(self, limit: str, most: int) -> None:
        super().__init__(limit, most)
        self.limit = limit
        self.most = most

    def __str__(self) -> str:
        return f"the write would go beyond {self.limit}={self.most} of the store's StateLimits; nothing was written"


class StateUnavailableError(StateError, ConnectionError):
    """The store could not be reached, or did not answer in time. Whether a write took place is not known.

    Args:
        reason: what happened, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the store is not available: {self.reason}"


class StateNotConfirmedError(StateUnavailableError):
    """A write was done, and not as many replicas as was asked for (``durable``) have said in time that they have it.

    Args:
        replicas: how many have.
        durable: how many were asked for.
    """

    def __init__(self, replicas: int, durable: int) -> None:
        AsgiContextError.__init__(self, replicas, durable)
        self.replicas = replicas
        self.durable = durable
        self.reason = (
            f"the write was done, but {replicas} of the {durable} replicas that durable asks for have confirmed it in "
            "time; it may be lost with the server. See whether the replicas run"
        )


class StateBlockingError(StateError, RuntimeError):
    """``SharedState.sync`` was used on the thread of a running event loop, which it would block."""

    def __str__(self) -> str:
        return (
            "SharedState.sync would block the event loop that runs in this thread: await the method of SharedState "
            "itself, or call this in a thread, such as by run_in_pool"
        )
