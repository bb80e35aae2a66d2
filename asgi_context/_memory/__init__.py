"""States in this process's memory.

Space by space, so that what belongs to one tenant and user is found without looking at anybody else's. What has a time
to live also stands in a bucket, by the second of its end, and each call takes a few that are over out of the oldest
bucket: memory comes back without a task of its own, no call pays for many, and what is removed before its end leaves
nothing behind.
"""

from asgi_context._memory._store import MemoryStore

__all__ = ["MemoryStore"]
