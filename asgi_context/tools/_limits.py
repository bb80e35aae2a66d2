"""How often, and how many at a time: limits that hold over requests and processes, in the store."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final, TypeAlias, cast
from uuid import uuid4

from asgi_context._context import Binding
from asgi_context._crashes import log, log_crash
from asgi_context._types import Space, Store
from asgi_context.errors import StateUnavailableError
from asgi_context.tools._results import RefusedError

_MINUTE: Final = 60.0
_AGAIN: Final = 1.0  # seconds until what a store could not be told is told again
_OF_USER: Final = "tool_calls"  # the name of the counter, and of the leases
_OF_TENANT: Final = "tool_calls_of_all"  # where the user is None, both are in one space


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """How many calls of tools there may be.

    They are counted in the store, so with `RedisStore` they hold over all processes.

    Args:
        at_once: how many may run at a time; ``None`` for any number.
        per_minute: how many may begin within a minute, which begins with the first; ``None`` for any number.

    Raises:
        TypeError: one is no int.
        ValueError: one is less than 1.
    """

    at_once: int | None = None
    per_minute: int | None = None

    def __post_init__(self) -> None:
        for name in ("at_once", "per_minute"):
            value = getattr(self, name)
            if value is None:
                continue
            if type(value) is not int:
                message = f"{name} must be an int or None, not {type(value).__qualname__}"
                raise TypeError(message)
            if value < 1:
                message = f"{name} must be at least 1, not {value}"
                raise ValueError(message)


Limit: TypeAlias = tuple[Space, str, int | None, int | None]
"""In which space, under which name, how many at once and how many a minute."""


def limits_of(user: ToolLimits | None, tenant: ToolLimits | None) -> Callable[[Binding], list[Limit]]:
    """Say what limits there are for whoever is bound.

    Args:
        user: those of each user.
        tenant: those of each tenant.

    Returns:
        Takes a binding, and gives its limits.

    Raises:
        TypeError: one is no `ToolLimits`.
    """
    for option, given in (("user_limits", user), ("tenant_limits", tenant)):
        if given is not None and not isinstance(given, ToolLimits):
            message = f"{option} must be ToolLimits, not {type(given).__qualname__}"
            raise TypeError(message)

    def of(binding: Binding) -> list[Limit]:
        name = cast("str", binding.tenant)
        limits: list[Limit] = []
        if user is not None:
            limits.append(((name, binding.user), _OF_USER, user.at_once, user.per_minute))
        if tenant is not None:
            limits.append(((name, None), _OF_TENANT, tenant.at_once, tenant.per_minute))
        return limits

    return of


class _Process:
    """Numbers the calls of this process."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.id = str(uuid4())
        self.numbers = count(1)


_process: Final = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.begin)


class Slots:
    """What one call holds of its limits.

    Args:
        store: where they are kept.
        limits: what limits there are.
        lasts: after how many seconds what is neither kept nor given back is free again.
    """

    __slots__ = ("_held", "_holder", "_lasts", "_limits", "_store")

    def __init__(self, store: Store, limits: list[Limit], lasts: float) -> None:
        self._store = store
        # Nobody else's: a second call of the same holder would only renew what the first has.
        self._holder = f"{_process.id}.{next(_process.numbers)}"
        self._limits = limits
        self._lasts = lasts
        self._held: list[Limit] = []

    async def take(self) -> None:
        """Take what a call needs.

        Raises:
            RefusedError: there is none to be had, or the store cannot say.
        """
        store = self._store
        counted: list[Limit] = []
        try:
            for limit in self._limits:
                space, name, at_once, _ = limit
                if at_once is not None:
                    self._held.append(limit)  # first, since it may be taken although no answer comes
                    if not await store.acquire(space, name, self._holder, at_once, self._lasts):
                        self._held.pop()
                        raise RefusedError("too_many_calls")  # noqa: TRY301 - one way out for all
            for limit in self._limits:
                space, name, _, per_minute = limit
                if per_minute is not None:
                    number, left = await store.count(space, name, 1, _MINUTE)
                    if number > per_minute:
                        raise RefusedError("rate_limited", left)  # noqa: TRY301 - as above
                    counted.append(limit)
        except StateUnavailableError as error:
            log_crash("the limits of tools cannot be kept", error)
            await self._give_back(counted)
            raise RefusedError("limits_unavailable") from None
        except Exception:  # refused, or whatever a store raises
            await self._give_back(counted)
            raise

    async def keep(self, ended: asyncio.Event) -> None:
        """Hold it for a job that nobody waits for any more.

        Args:
            ended: tells that the job has ended; then it is given back.
        """
        while not ended.is_set():
            told = True
            for space, name, at_once, _ in self._held:
                try:
                    if not await self._store.acquire(space, name, self._holder, cast("int", at_once), self._lasts):
                        log.warning("a call of a tool still runs whose place is another's already")
                except Exception as error:  # noqa: BLE001 - whatever a store raises: there is another time
                    log_crash("that a call of a tool still runs cannot be told", error)
                    told = False
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lasts / 2 if told else min(_AGAIN, self._lasts / 10)):
                    await ended.wait()
        await self.release()

    async def _give_back(self, counted: list[Limit]) -> None:
        # A call that is refused has not begun.
        await self.release()
        for space, name, _, _ in counted:
            try:
                number, _ = await self._store.count(space, name, -1, _MINUTE)
                if number < 0:  # another minute has begun
                    await self._store.count(space, name, 1, _MINUTE)
            except Exception as error:  # noqa: BLE001 - whatever a store raises
                log_crash("that a call of a tool was refused cannot be told; it counts as begun", error)

    async def release(self) -> None:
        """Give back what is held. Where the store cannot be told, it is free again after a while."""
        while self._held:
            space, name, _, _ = self._held[-1]
            try:
                await self._store.release(space, name, self._holder)
            except Exception as error:  # noqa: BLE001 - whatever a store raises: the call has ended
                log_crash("that a call of a tool has ended cannot be told; it counts for some time as running", error)
            self._held.pop()  # not before, or it would be kept if this is cancelled
