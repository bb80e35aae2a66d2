"""What can be wrong with what is bound."""

from typing import Literal

from asgi_context.errors._root import AsgiContextError


class ContextNotBoundError(AsgiContextError, LookupError):
    """Nothing is bound here, and no default was given.

    Args:
        wanted: what was asked for, such as ``"context"``.
    """

    def __init__(self, wanted: str = "context") -> None:
        super().__init__(wanted)
        self.wanted = wanted

    def __str__(self) -> str:
        return (
            f"no {self.wanted} is bound here. In an app: wrap it in ContextMiddleware, and see whether this request "
            "was exempt or came without an identity. In a worker, script or test: "
            '`with bind_context(Identity("tenant", "user")):`. In a thread: start it by run_in_executor, '
            "carry_context or ContextThreadPoolExecutor, since a bare submit() or Thread() carries no context. For a "
            "WebSocket message that another task has read: `async with message_context(event=...)`, or payload="
        )


class StoreNotBoundError(ContextNotBoundError):
    """An identity is bound here, but no store that could hold its state.

    Args:
        wanted: what was asked for.
    """

    def __init__(self, wanted: str = "store") -> None:
        super().__init__(wanted)

    def __str__(self) -> str:
        return "an identity is bound here, but no store. Give one: `bind_context(identity, store=MemoryStore())`"


class MessagesNotBoundError(ContextNotBoundError):
    """No WebSocket connection is bound here whose messages say who asks.

    Args:
        wanted: what was asked for.
    """

    def __init__(self, wanted: str = "messages") -> None:
        super().__init__(wanted)

    def __str__(self) -> str:
        return (
            "no WebSocket connection is bound here whose messages say who asks: give ContextMiddleware(message=...), "
            "and call message_context in what the connection's app calls or starts"
        )


class ConnectionNotBoundError(ContextNotBoundError):
    """No WebSocket connection is bound here whose identity expires.

    Args:
        wanted: what was asked for.
    """

    def __init__(self, wanted: str = "connection") -> None:
        super().__init__(wanted)

    def __str__(self) -> str:
        return (
            "no WebSocket connection is bound here whose identity expires: it is renewed in what the connection's app "
            "calls or starts"
        )


class ContextClosedError(AsgiContextError, RuntimeError):
    """What was bound here has ended: a later reader could get somebody else's.

    Args:
        wanted: what was asked for, such as ``"values"``.
        why: ``"ended"`` with its request, message or block; ``"revoked"``: its block was left in another
            ``contextvars.Context`` than it was entered in or out of order, or its request was refused; or
            ``"messages"``: it can no longer be told for which message of a WebSocket this code runs.
    """

    def __init__(self, wanted: str, why: Literal["ended", "revoked", "messages"]) -> None:
        super().__init__(wanted, why)
        self.wanted = wanted
        self.why = why

    def __str__(self) -> str:
        if self.why == "revoked":
            return (
                f"the {self.wanted} bound here was revoked: its block was left in another contextvars.Context than it "
                "was entered in, or out of order, as happens to a generator that yields inside the block (bind around "
                "the whole use, never across a yield); or its request was refused"
            )
        if self.why == "messages":
            return (
                f"it can no longer be told which message the {self.wanted} bound here is for: several tasks read this "
                "WebSocket, or a message has changed whose it is. Handle each message in "
                "`async with message_context(event=...)` or `(payload=...)`, and what runs beside them in a "
                "`with bind_context(...)` or `with unbound_context()` that is entered before the first message"
            )
        return (
            f"the {self.wanted} bound here ended with the request, message or block that made it. Read what a "
            "longer-lived "
            "task needs before the end, or give that task a binding of its own: `with bind_context():`"
        )


class UnsupportedLoopError(AsgiContextError, RuntimeError):
    """The call needs a running asyncio event loop.

    Args:
        call: name of what was called.
    """

    def __init__(self, call: str) -> None:
        super().__init__(call)
        self.call = call

    def __str__(self) -> str:
        text = f"{self.call} needs a running asyncio event loop, that of asyncio or of uvloop"
        if self.call in {"run_in_executor", "run_in_pool"}:
            text += ": on trio, use trio.to_thread.run_sync, which carries the context by itself"
        if self.call == "RedisStore":
            text += ": on trio use MemoryStore, in threads SharedState.sync"
        return text
