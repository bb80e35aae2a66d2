"""What the server does in one step: scripts in Lua 5.1 (Redis, "Scripting with Lua"), for Redis from 6.2 and Valkey.

A state is a hash; its field without a name holds its version, another with each change, and after that an ``s`` where
the state lives for as long as is the default. Beside the states of a space there is an index of them, and beside its
counters and leases another: sorted sets, scored by when each is over, in milliseconds. The member without a name says
until when the space is registered with its tenant, as it must be before anything is written, since what is not
registered is not found when the tenant is erased. A script that finds it is not writes nothing, and answers
``{{'register', 'until erased'}}``. The member that is a byte that no name has, 255, says by a number below 0 which
erasing was the last.

While a cluster moves a slot, a script finds only those of its keys where it runs that it was told of; others look as if
they were not there. So on a cluster all of them are named.

The server refuses writes for want of memory only before a script's first one, so that none is left half done.
"""

from asgi_context.redis._scripts._limits import ACQUIRE, COUNT, RELEASE
from asgi_context.redis._scripts._script import Script
from asgi_context.redis._scripts._spaces import CLEAR, NAMES, REGISTER, UNREGISTER
from asgi_context.redis._scripts._states import (
    INCREMENT,
    MERGE,
    READ_SLIDING,
    REMOVE,
    REMOVE_FIELD,
    REPLACE,
    REPLACE_VERSION,
    TOUCH,
)

__all__ = [
    "ACQUIRE",
    "CLEAR",
    "COUNT",
    "INCREMENT",
    "MERGE",
    "NAMES",
    "READ_SLIDING",
    "REGISTER",
    "RELEASE",
    "REMOVE",
    "REMOVE_FIELD",
    "REPLACE",
    "REPLACE_VERSION",
    "TOUCH",
    "UNREGISTER",
    "Script",
]
