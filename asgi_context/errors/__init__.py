"""Every error that this package raises, as one tree.

::

    AsgiContextError
    ├── ContextNotBoundError (LookupError)      nothing is bound here
    │   ├── StoreNotBoundError                  an identity is bound, but no store
    │   ├── MessagesNotBoundError               no WebSocket is bound whose messages say who asks
    │   └── ConnectionNotBoundError             no WebSocket is bound whose identity expires
    ├── ContextClosedError (RuntimeError)       what was bound here has ended
    ├── ContextLeftError (AssertionError)       a test has left something bound
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
    ├── ProcessError (RuntimeError)
    │   ├── ProcessStartError                   the process for a job could not be started
    │   ├── ProcessDiedError                    the process of a job has died
    │   ├── JobPickleError (TypeError)          a job, its result or its error cannot be pickled
    │   ├── JobTracebackError                   the traceback of a job there, as the cause of its error
    │   └── ProcessContextError (LookupError)   what was asked for stays in the process that the job comes from
    ├── ResourceError (RuntimeError)
    │   ├── ResourceNotFoundError (LookupError) there is no factory for that type here
    │   ├── ResourceLoopError                   those here were made on another event loop
    │   ├── ResourceCycleError                  a resource would wait for itself
    │   └── ResourceTimeoutError (TimeoutError) closing a resource took too long
    ├── ResourceCloseError (ExceptionGroup)     closing resources failed
    ├── UnsupportedLoopError (RuntimeError)     this needs a running asyncio event loop
    ├── ToolError                               raised by a tool: its text is for the model
    ├── ToolDefinitionError (TypeError)         a tool cannot be used as one, or not be built
    ├── ToolNotFoundError (LookupError)         the registry has no tool of that name
    ├── ToolCallNotBoundError (LookupError)     no tool is being called here
    ├── ToolBlockingError (RuntimeError)        a blocking call on the thread of a running event loop
    ├── ToolOwnerError (RuntimeError)           a dispatcher was used on behalf of somebody else
    ├── ToolRunError (RuntimeError)             the event loop that a tool was to run on did not run it
    │   └── ToolTimeoutError (TimeoutError)     it did not end in time
    ├── CarrierError (ValueError)               a carrier is refused, or cannot be made
    │   ├── CarrierContentError                 what it was to carry cannot be written
    │   ├── CarrierTooLargeError                it is longer than any may be
    │   ├── CarrierFormatError                  it is none
    │   ├── CarrierVersionError                 it is of a version that is not known here
    │   ├── CarrierUnsignedError                it is not signed
    │   ├── CarrierSignatureError               its signature is not that of a key which is known here
    │   ├── CarrierExpiredError                 it has expired
    │   └── CarrierAudienceError                it is for another audience
    ├── BridgeError
    │   ├── BridgeLoopError (RuntimeError)      the bridge belongs to another event loop
    │   ├── BridgeNotBoundError (LookupError)   no WebSocket is bound to which a bridge could lead
    │   ├── BridgeNotOpenError (RuntimeError)   the WebSocket was not accepted yet
    │   └── BridgeClosedError (OSError)         the WebSocket is closed
    ├── ExpansionError
    │   ├── ExpansionDocumentError (ValueError) a document cannot be expanded, whatever its references say
    │   ├── ExpansionSyntaxError (ValueError)   a text of it is not by the syntax of references
    │   ├── ExpansionForbiddenError (LookupError) a reference names what the caller has not listed
    │   ├── ExpansionUnsetError (LookupError)   there is no value for a reference
    │   ├── ExpansionAmbiguousError (LookupError) a name is of the request and of the environment
    │   └── ExpansionTypeError (TypeError)      a value, or a part of the document, cannot stand where it does
    └── StateError
        ├── StateSerializationError (TypeError) a value cannot be kept exactly
        ├── StateDecodeError (ValueError)       what is stored cannot be read here
        ├── StateNumberError (ValueError)       a field cannot be incremented
        ├── StateConflictError (RuntimeError)   others changed it each time that it was to be modified
        ├── StateLimitError (RuntimeError)      the store's limits refuse a write
        ├── StateUnavailableError (ConnectionError) the store is down, or slow
        │   └── StateNotConfirmedError          a write was done, but too few replicas have confirmed it
        ├── StoreNotSharedError (RuntimeError)  the store cannot be used in another process
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
from asgi_context.errors._carriers import (
    CarrierAudienceError,
    CarrierContentError,
    CarrierError,
    CarrierExpiredError,
    CarrierFormatError,
    CarrierSignatureError,
    CarrierTooLargeError,
    CarrierUnsignedError,
    CarrierVersionError,
)
from asgi_context.errors._expansion import (
    ExpansionAmbiguousError,
    ExpansionDocumentError,
    ExpansionError,
    ExpansionForbiddenError,
    ExpansionSyntaxError,
    ExpansionTypeError,
    ExpansionUnsetError,
)
from asgi_context.errors._processes import (
    JobPickleError,
    JobTracebackError,
    ProcessContextError,
    ProcessDiedError,
    ProcessError,
    ProcessStartError,
    StoreNotSharedError,
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
    StateNotConfirmedError,
    StateNumberError,
    StateSerializationError,
    StateUnavailableError,
)
from asgi_context.errors._testing import ContextLeftError
from asgi_context.errors._tools import (
    BridgeClosedError,
    BridgeError,
    BridgeLoopError,
    BridgeNotBoundError,
    BridgeNotOpenError,
    ToolBlockingError,
    ToolCallNotBoundError,
    ToolDefinitionError,
    ToolError,
    ToolNotFoundError,
    ToolOwnerError,
    ToolRunError,
    ToolTimeoutError,
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
    "BridgeClosedError",
    "BridgeError",
    "BridgeLoopError",
    "BridgeNotBoundError",
    "BridgeNotOpenError",
    "CarrierAudienceError",
    "CarrierContentError",
    "CarrierError",
    "CarrierExpiredError",
    "CarrierFormatError",
    "CarrierSignatureError",
    "CarrierTooLargeError",
    "CarrierUnsignedError",
    "CarrierVersionError",
    "ConnectionClosedError",
    "ConnectionNotBoundError",
    "ContextClosedError",
    "ContextLeftError",
    "ContextNotBoundError",
    "ExpansionAmbiguousError",
    "ExpansionDocumentError",
    "ExpansionError",
    "ExpansionForbiddenError",
    "ExpansionSyntaxError",
    "ExpansionTypeError",
    "ExpansionUnsetError",
    "ExtractorError",
    "ExtractorTypeError",
    "JobError",
    "JobPickleError",
    "JobTracebackError",
    "MessagesNotBoundError",
    "PoolClosedError",
    "PoolError",
    "PoolFullError",
    "PoolNotFoundError",
    "PoolWaitError",
    "ProcessContextError",
    "ProcessDiedError",
    "ProcessError",
    "ProcessStartError",
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
    "StateNotConfirmedError",
    "StateNumberError",
    "StateSerializationError",
    "StateUnavailableError",
    "StoreNotBoundError",
    "StoreNotSharedError",
    "ToolBlockingError",
    "ToolCallNotBoundError",
    "ToolDefinitionError",
    "ToolError",
    "ToolNotFoundError",
    "ToolOwnerError",
    "ToolRunError",
    "ToolTimeoutError",
    "UnsupportedLoopError",
]

for _name in __all__:
    globals()[_name].__module__ = __name__  # where users find them, also in tracebacks and pickles
