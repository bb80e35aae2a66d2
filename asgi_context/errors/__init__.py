"""Every error that this package raises, as one tree.

::

    AsgiContextError
    ├── ContextNotBoundError (LookupError)      nothing is bound here
    │   ├── StoreNotBoundError                  an identity is bound, but no store
    │   ├── MessagesNotBoundError               no WebSocket is bound whose messages say who asks
    │   └── ConnectionNotBoundError             no WebSocket is bound whose identity expires
    ├── ContextClosedError (RuntimeError)       what was bound here has ended
    ├── ConnectionClosedError (OSError)         the middleware has closed this WebSocket
    ├── RequestRejected                         raised by an extractor to refuse a request
    ├── ExtractorError (RuntimeError)           an extractor or another hook did what it must not
    │   ├── ExtractorTypeError (TypeError)      it returned what it must not return
    │   └── ScopeKeyMissingError (LookupError)  the scope lacks a key that an outer middleware sets
    ├── JobError (RuntimeError)                 a job ended in a way that no caller can be handed
    ├── PoolError (RuntimeError)
    │   ├── PoolNotFoundError (LookupError)     there is no pool of that name here
    │   ├── PoolFullError                       too many jobs of this tenant wait already
    │   ├── PoolWaitError                       a job would wait for its own pool, or for one before it
    │   └── PoolClosedError                     the pool was shut down
    ├── ResourceError (RuntimeError)
    │   ├── ResourceNotFoundError (LookupError) there is no factory for that type here
    │   ├── ResourceLoopError                   those here were made on another event loop
    │   ├── ResourceCycleError                  a resource would wait for itself
    │   └── ResourceTimeoutError (TimeoutError) closing a resource took too long
    ├── ResourceCloseError (ExceptionGroup)     closing resources failed
    ├── UnsupportedLoopError (RuntimeError)     this needs a running asyncio event loop
    └── StateError
        ├── StateSerializationError (TypeError) a value cannot be kept exactly
        ├── StateDecodeError (ValueError)       what is stored cannot be read here
        ├── StateNumberError (ValueError)       a field cannot be incremented
        ├── StateConflictError (RuntimeError)   others changed it each time that it was to be modified
        ├── StateLimitError (RuntimeError)      the store's limits refuse a write
        ├── StateUnavailableError (ConnectionError) the store is down, or slow
        └── StateBlockingError (RuntimeError)   .sync on the thread of a running event loop

Wrong arguments are plain ``TypeError`` and ``ValueError``.
"""

from asgi_context.errors._binding import (
    ConnectionNotBoundError,
    ContextClosedError,
    ContextNotBoundError,
    MessagesNotBoundError,
    StoreNotBoundError,
    UnsupportedLoopError,
)
from asgi_context.errors._requests import (
    ConnectionClosedError,
    ExtractorError,
    ExtractorTypeError,
    RequestRejected,
    ScopeKeyMissingError,
)
from asgi_context.errors._root import (
    AsgiContextError,
)
from asgi_context.errors._state import (
    StateBlockingError,
    StateConflictError,
    StateDecodeError,
    StateError,
    StateLimitError,
    StateNumberError,
    StateSerializationError,
    StateUnavailableError,
)
from asgi_context.errors._work import (
    JobError,
    PoolClosedError,
    PoolError,
    PoolFullError,
    PoolNotFoundError,
    PoolWaitError,
    ResourceCloseError,
    ResourceCycleError,
    ResourceError,
    ResourceLoopError,
    ResourceNotFoundError,
    ResourceTimeoutError,
)

__all__ = [
    "AsgiContextError",
    "ConnectionClosedError",
    "ConnectionNotBoundError",
    "ContextClosedError",
    "ContextNotBoundError",
    "ExtractorError",
    "ExtractorTypeError",
    "JobError",
    "MessagesNotBoundError",
    "PoolClosedError",
    "PoolError",
    "PoolFullError",
    "PoolNotFoundError",
    "PoolWaitError",
    "RequestRejected",
    "ResourceCloseError",
    "ResourceCycleError",
    "ResourceError",
    "ResourceLoopError",
    "ResourceNotFoundError",
    "ResourceTimeoutError",
    "ScopeKeyMissingError",
    "StateBlockingError",
    "StateConflictError",
    "StateDecodeError",
    "StateError",
    "StateLimitError",
    "StateNumberError",
    "StateSerializationError",
    "StateUnavailableError",
    "StoreNotBoundError",
    "UnsupportedLoopError",
]

for _name in __all__:
    globals()[_name].__module__ = __name__  # where users find them, also in tracebacks and pickles
