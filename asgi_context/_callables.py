"""What can be told of a callable before it is called."""

from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import cast


def runs_later(func: object) -> str | None:
    """Say whether a call would only make something that runs later, and perhaps elsewhere.

    Args:
        func: a function, a method, a partial or an object with ``__call__``.

    Returns:
        What kind of function it is, or ``None`` if a call runs it.
    """
    while isinstance(func, partial):
        func = cast("partial[object]", func).func
    if isinstance(func, type):
        return None  # its __call__ is that of its instances
    for candidate in (func, getattr(func, "__call__", None)):  # noqa: B004 - the method itself is looked at
        if iscoroutinefunction(candidate):
            return "a coroutine function"
        if isgeneratorfunction(candidate) or isasyncgenfunction(candidate):
            return "a generator function"
    return None
