"""What can be told of a callable before it is called."""

from functools import partial
from inspect import (
    CO_ASYNC_GENERATOR,
    CO_COROUTINE,
    CO_GENERATOR,
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
)
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Final, cast

_LATER: Final = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR


def runs_later(func: object) -> str | None:
    """Say whether a call would only make something that runs later, and perhaps elsewhere.

    Args:
        func: a function, a method, a partial or an object with ``__call__``.

    Returns:
        What kind of function it is, or ``None`` if a call runs it.
    """
    while isinstance(func, partial):
        func = cast("partial[object]", func).func
    # The usual ones at once, since every job in a thread is asked. A mark (`inspect.markcoroutinefunction`) would stand
    # among the attributes of a function, which nearly all have none of.
    plain: object = func.__func__ if isinstance(func, MethodType) else func
    if type(plain) is FunctionType and not plain.__code__.co_flags & _LATER and not plain.__dict__:
        return None
    if type(plain) is BuiltinFunctionType:
        return None
    if isinstance(func, type):
        return None  # its __call__ is that of its instances
    for candidate in (func, getattr(func, "__call__", None)):  # noqa: B004 - the method itself is looked at
        if iscoroutinefunction(candidate):
            return "a coroutine function"
        if isgeneratorfunction(candidate) or isasyncgenfunction(candidate):
            return "a generator function"
    return None
