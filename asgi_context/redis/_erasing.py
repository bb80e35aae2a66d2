"""Removing all that is in a space, or that a tenant has, in steps."""

import asyncio
import secrets
from typing import Final

from asgi_context.redis import _scripts as scripts
from asgi_context.redis._answers import scores_of
from asgi_context.redis._keys import Keys
from asgi_context.redis._link import Link

_PAGE: Final = 100  # users at a time
_REMEMBERED: Final = 60_000  # milliseconds for which writers learn that a space was erased, longer than any call takes
_MOST_TOKENS: Final = 2**50  # a float has it exactly


async def clear(link: Link, index: str, base: str, erased: int | str = "") -> int:
    """Remove what is in an index, at most 1,000 at one moment.

    Args:
        link: asks the servers.
        index: the key of the index.
        base: what the keys of that which is in it begin with.
        erased: where the space is erased, a number below 0 that tells this erasing from others.

    Returns:
        How many there were.

    Raises:
        StateUnavailableError: the servers cannot be asked, or refuse.
    """
    remembered = max(_REMEMBERED, int(2000 * link.timeout))
    how = "named" if link.names_keys else ""
    cleared = 0
    keys: list[str] = []
    while True:
        removed, more, *names = await link.run(scripts.CLEAR, [index, *keys], [base, erased, remembered, how])
        cleared += int(removed)
        if not more:
            return cleared
        erased = ""
        keys = [base + name.decode() for name in names]


async def erase(link: Link, keys: Keys, tenant: str) -> int:
    """Remove everything of a tenant.

    Args:
        link: asks the servers.
        keys: makes the keys.
        tenant: the tenant.

    Returns:
        How many states there were.

    Raises:
        StateUnavailableError: the servers cannot be asked, or refuse.
    """
    users = keys.users(tenant)
    seen: set[bytes] = set()
    erased, reached, most = 0, "-inf", _PAGE
    while True:
        # By score: who registers meanwhile comes later, and is seen again there.
        scores = scores_of(
            await link.do(
                "ZRANGEBYSCORE", users, reached, "+inf", "WITHSCORES", "LIMIT", 0, most, reads=True, whole=True
            )
        )
        todo = [user for user in scores if user not in seen]
        seen.update(todo)
        done = await asyncio.gather(
            *(_erase_user(link, keys, tenant, user, scores[user]) for user in todo), return_exceptions=True
        )
        for result in done:
            if isinstance(result, BaseException):
                raise result
            erased += result
        if len(scores) < most:
            return erased
        last = max(scores.values())
        reached = f"{last:.0f}"
        most = _PAGE + sum(score == last for score in scores.values())  # of those, who are left come again


async def _erase_user(link: Link, keys: Keys, tenant: str, user: bytes, score: float) -> int:
    base = keys.of((tenant, user.decode() or None))
    token = -1 - secrets.randbelow(_MOST_TOKENS)
    erased = await clear(link, f"{base}states", f"{base}s:", token)
    await clear(link, f"{base}limits", base, token)
    # After that, so that nothing is left without its user where this is broken off.
    await link.run(scripts.UNREGISTER, [keys.users(tenant)], [user, f"{score:.0f}"], again=True)
    return erased
