"""Asking for a resource."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import Any, Final, TypeVar

from asgi_context._context import current_binding, current_context
from asgi_context._resources._factories import Yielding
from asgi_context._resources._holder import Resources
from asgi_context.errors import (
    ContextClosedError,
    ContextNotBoundError,
    ResourceLoopError,
    ResourceNotFoundError,
    UnsupportedLoopError,
)

_T = TypeVar("_T")
_MISSING: Final = object()


async def current_resource(kind: type[_T], /) -> _T:  # noqa: C901, PLR0912 - in one frame, as the hot path of its users
    """Give the one object of a type that belongs to this request, message or block, and make it on first use.

    Its factory stands in ``ContextMiddleware(resources=...)``. However many tasks ask at once, it is made once, and
    still made if the first of them is cancelled. It is closed at the end of what it belongs to, in reverse order.

    Args:
        kind: the type.

    Returns:
        The object.

    Raises:
        ContextNotBoundError: nothing is bound here.
        ContextClosedError: what was bound here has ended or was revoked.
        ResourceNotFoundError: there is no factory for the type here.
        ResourceLoopError: those of this request, message or block were made on another event loop.
        ResourceCycleError: this is asked by a factory for what waits for it.
        UnsupportedLoopError: there is no running asyncio event loop. What the factory raises comes as it is, to all who
            asked; the next to ask has it tried again.
    """
    binding = current_binding()
    resources: Resources | None = binding.resources
    value: Any
    if resources is not None:
        value = resources.made.get(kind, _MISSING)
        if value is not _MISSING and asyncio.get_running_loop() is resources.loop:
            return value  # type: ignore[no-any-return]  # of that type, says who registered its factory
    if binding.revoked:
        binding.check("resource")
    if binding.ended:
        raise ContextClosedError("resource", "ended")
    if binding.tenant is None:
        raise ContextNotBoundError("resource")
    services = binding.services
    factory = services.factories.get(kind)
    if factory is None:
        raise ResourceNotFoundError(kind.__qualname__)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UnsupportedLoopError("current_resource") from None
    if resources is None:
        resources = binding.resources = Resources(services.closing, loop)
    elif resources.loop is not loop:
        raise ResourceLoopError(kind.__qualname__)
    flight = resources.flights.get(kind) if resources.flights else None
    if flight is not None:
        return await flight.wait(joins=True)  # type: ignore[no-any-return]  # as above
    value = factory(binding.context or current_context())
    given: type[object] = type(value)  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
    if services.closing.plain.get(kind) is not given:  # else it is looked at once more only if it is of another type
        if given is Yielding:
            maker, value = value, value.enter()
            resources.closers.append((kind, maker))
        elif issubclass(given, Generator | AsyncGenerator):
            message = f"the factory of {kind.__qualname__} returned a generator: register the generator function itself"
            raise TypeError(message)
        elif hasattr(given, "__await__") or hasattr(given, "__aenter__"):
            return await resources.launch(kind, value).wait(joins=False)  # type: ignore[no-any-return]  # as above
        elif hasattr(given, "__enter__"):
            value = resources.enter(kind, value)
        else:
            services.closing.plain[kind] = given
    resources.made[kind] = value
    return value  # type: ignore[no-any-return]  # as above
