"""What can be wrong with shared state."""

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
