"""The names of keys: an injective encoding of tenant, user and state, all of one user's in one slot of a cluster.

A key is ``prefix:{tenant:user}:kind:name``, or ``prefix:{tenant}:kind:name`` for the whole tenant. What stands between
the braces is the hash tag (Redis Cluster specification, "Hash tags"); it is percent-encoded, so that neither ``:`` nor
braces in an identifier can end it. The name comes last and raw: whatever is in it, nothing follows.
"""

import re
from typing import Final
from urllib.parse import quote

from asgi_context._types import Space

_PLAIN: Final = re.compile(r"[A-Za-z0-9._~@|+=\-]+")
_PREFIX: Final = re.compile(r"[A-Za-z0-9._~@|+=:\-]+")


class Keys:
    """Makes keys.

    Args:
        prefix: what all of them begin with.

    Raises:
        TypeError: it is no str.
        ValueError: it has other characters than ASCII letters, digits and ``. _ - ~ @ : | + =``.
    """

    __slots__ = ("_prefix",)

    def __init__(self, prefix: str) -> None:
        if not isinstance(prefix, str):
            message = f"prefix must be a str, not {type(prefix).__qualname__}"
            raise TypeError(message)
        if not _PREFIX.fullmatch(prefix):
            message = f"prefix must be ASCII letters, digits and . _ - ~ @ : | + =, not {prefix!r}"
            raise ValueError(message)
        self._prefix = prefix

    def __repr__(self) -> str:
        return self._prefix

    def of(self, space: Space) -> str:
        """Give what the keys of a space begin with.

        Args:
            space: the space.

        Returns:
            Prefix and hash tag.
        """
        tenant, user = space
        if not _PLAIN.fullmatch(tenant):
            tenant = _quoted(tenant)
        if user is None:
            return f"{self._prefix}:{{{tenant}}}:"
        if not _PLAIN.fullmatch(user):
            user = _quoted(user)
        return f"{self._prefix}:{{{tenant}:{user}}}:"

    def state(self, space: Space, state: str) -> str:
        """Give the key of a state: a hash, with the version of the state in the field without a name.

        Args:
            space: whose it is.
            state: its name.

        Returns:
            The key.
        """
        return f"{self.of(space)}s:{state}"

    def users(self, tenant: str) -> str:
        """Give the key of those who may have something in a tenant: a sorted set, scored by until when.

        Args:
            tenant: the tenant.

        Returns:
            The key.
        """
        return f"{self.of((tenant, None))}users"


def _quoted(identifier: str) -> str:
    return quote(identifier, safe="@|+=")
