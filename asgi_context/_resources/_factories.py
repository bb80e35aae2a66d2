"""Factories, and what they return that is closed at once, without waiting for anything."""

from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context, copy_context
from functools import partial
from inspect import isasyncgenfunction, isgeneratorfunction
from typing import Any, Final, TypeAlias

from asgi_context._identity import RequestContext

_MISSING: Final = object()

Factory: TypeAlias = Callable[[RequestContext], Any]
"""Makes a resource: a plain or coroutine function, or a (async) generator function that yields it once.

A context manager that it returns is entered, and what that gives is the resource.
"""


def check_factories(resources: Mapping[type, Factory]) -> dict[type, Factory]:
    """Check the option ``resources``.

    Args:
        resources: factories by type.

    Returns:
        The same, ready to be called.

    Raises:
        TypeError: a key is no class, or a factory not callable.
    """
    factories: dict[type, Factory] = {}
    for kind, factory in resources.items():
        if not isinstance(kind, type):
            message = f"resources: a key must be a class, not {kind!r}"
            raise TypeError(message)
        if not callable(factory):
            message = f"resources: the factory of {kind.__qualname__} must be callable, not {factory!r}"
            raise TypeError(message)
        # An instance counts by the method that a call of it runs; a class makes instances, whatever that method is.
        inner: Any = factory
        while isinstance(inner, partial):
            inner = inner.func
        called = inner if isinstance(inner, type) else getattr(inner, "__call__", inner)  # noqa: B004 - as above
        if isgeneratorfunction(factory) or isgeneratorfunction(called):
            factories[kind] = partial(Yielding, factory)
        elif isasyncgenfunction(factory) or isasyncgenfunction(called):
            factories[kind] = asynccontextmanager(factory)
        else:
            factories[kind] = factory
    return factories


def has(made: object, method: str) -> bool:
    """Say whether an object's type has a method, which is where the language itself looks for those in question.

    Args:
        made: the object.
        method: name of the method.

    Returns:
        Whether it has.
    """
    return hasattr(type(made), method)


class Yielding:
    """What `contextlib.contextmanager` makes of a generator function, in a Context of its own, and in half the time."""

    __slots__ = ("_context", "_generator")

    def __init__(self, factory: Factory, context: RequestContext) -> None:
        self._generator = factory(context)
        self._context = copy_context()

    def enter(self) -> Any:  # noqa: ANN401 - the resource
        value = self._context.run(next, self._generator, _MISSING)
        if value is _MISSING:
            raise RuntimeError("the factory did not yield")
        return value

    def close(self, error: BaseException | None) -> None:
        if error is None and self._context.run(next, self._generator, _MISSING) is _MISSING:
            return
        # All else is contextlib's business: an error is thrown in, and yielding a second time is one.
        manager = contextmanager(lambda: self._generator)()
        if error is None:
            self._context.run(self._generator.close)
            raise RuntimeError("the factory yielded twice")
        Entered(manager, self._context).close(error)


class Entered:
    """A plain context manager that was entered, with the Context in which it was."""

    __slots__ = ("_context", "_manager")

    def __init__(self, manager: Any, context: Context) -> None:  # noqa: ANN401 - a context manager
        self._manager = manager
        self._context = context

    def close(self, error: BaseException | None) -> None:
        kind, traceback = (None, None) if error is None else (type(error), error.__traceback__)
        try:
            self._context.run(self._manager.__exit__, kind, error, traceback)
        except BaseException as failure:
            if failure is not error:
                raise
