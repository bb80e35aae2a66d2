"""What a store is given, and whether that can be."""

from typing import TypedDict

from redis.asyncio import Redis, RedisCluster

from asgi_context._limits import StateLimits
from asgi_context.redis._servers import Client


class StoreOptions(TypedDict, total=False):
    """The options of `RedisStore`."""

    prefix: str
    default_ttl: float | None
    sliding: bool
    limits: StateLimits | None
    timeout: float
    connections: int
    durable: int


def checked_client(client: Redis | RedisCluster) -> Client:
    """Check a client that the user has made.

    Args:
        client: what was given.

    Returns:
        What the store uses of it.

    Raises:
        TypeError: it is no client of redis-py, asyncio.
        ValueError: it decodes answers.
    """
    if not isinstance(client, Redis | RedisCluster):
        message = f"client must be a Redis or RedisCluster of redis.asyncio, not {type(client).__qualname__}"
        raise TypeError(message)
    if client.get_encoder().decode_responses:
        message = "client must not decode answers: make it without decode_responses=True"
        raise ValueError(message)
    return client if isinstance(client, RedisCluster) else client.connection_pool


def checked_limits(limits: StateLimits | None) -> StateLimits:
    """Check the option ``limits``.

    Args:
        limits: what was given.

    Returns:
        The same, or the default.

    Raises:
        TypeError: it is no `StateLimits`.
        ValueError: there are limits in it that are the server's to keep.
    """
    if limits is None:
        return StateLimits()
    if not isinstance(limits, StateLimits):
        message = f"limits must be StateLimits, not {type(limits).__qualname__}"
        raise TypeError(message)
    if limits.states is not None or limits.total_bytes is not None:
        message = (
            "the limits states and total_bytes are for the server to keep: set maxmemory and maxmemory-policy there"
        )
        raise ValueError(message)
    return limits


def check_count(count: int, option: str, least: int) -> None:
    """Check an option that is a number.

    Args:
        count: what was given.
        option: its name.
        least: the least that it can be.

    Raises:
        TypeError: it is no int.
        ValueError: it is less.
    """
    if type(count) is not int:
        message = f"{option} must be an int, not {type(count).__qualname__}"
        raise TypeError(message)
    if count < least:
        message = f"{option} must be at least {least}, not {count}"
        raise ValueError(message)
