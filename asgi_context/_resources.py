"""Resources: objects made for one binding on first use, by factories registered at start-up, and closed with it.

Invariants:

- What a factory makes belongs to the binding that it was made under, and to no other.
- A factory that waits runs in a task of its own, and so survives that the first caller is cancelled. An asynchronous
  context manager is entered and left in that one task, as cancel scopes and task groups inside of it demand; a plain
  one is entered and left in one Context.
- Closing that waits runs in a task of its own, under the binding that it closes for, and so survives that the request
  is cancelled.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from inspect import isasyncgenfunction, isgeneratorfunction
from types import TracebackType
from typing import Any, Final, TypeAlias, TypeVar, cast

from asgi_context._context import Binding, current_binding, current_context, enter_binding
from asgi_context._crashes import log, log_crash
from asgi_context._identity import RequestContext
from asgi_context.errors import (
    ContextClosedError,
    ContextNotBoundError,
    JobError,
    ResourceCloseError,
    ResourceCycleError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    UnsupportedLoopError,
)

_T = TypeVar("_T")

Factory: TypeAlias = Callable[[RequestContext], Any]
"""Makes a resource: a plain or coroutine function, or a (async) generator function that yields it once.

A context manager that it returns is entered, and what that gives is the resource.
"""


def check_factories(resources: Mapping[type, Factory]) -> dict[type, Factory]:
    """Check the option ``resources``.

    Args:
        resources: factories by type.

    Returns:
        The same, with generator functions as context managers.

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
        if isgeneratorfunction(factory):
            factories[kind] = contextmanager(factory)
        elif isasyncgenfunction(factory):
            factories[kind] = asynccontextmanager(factory)
        else:
            factories[kind] = factory
    return factories


# By their types, as the language itself looks these methods up; isinstance with the abstract classes takes longer.


def _is_awaitable(made: object) -> bool:
    return hasattr(type(made), "__await__")


def _is_async_manager(made: object) -> bool:
    return hasattr(type(made), "__aenter__")


def _is_manager(made: object) -> bool:
    return hasattr(type(made), "__enter__")


class _Flight:
    """A resource that is made, and perhaps kept, in a task of its own."""

    __slots__ = ("_asking", "_closing", "_failure", "_kind", "_ready", "_waits_for", "task")

    task: "asyncio.Task[None]"

    def __init__(self, kind: type) -> None:
        loop = asyncio.get_running_loop()
        self._kind = kind
        self._ready: asyncio.Future[Any] = loop.create_future()
        self._closing: asyncio.Future[BaseException | None] = loop.create_future()
        self._failure: BaseException | None = None
        self._asking = 0
        self._waits_for: list[_Flight] = []

    def _needs(self, other: "_Flight") -> bool:
        return self is other or any(flight._needs(other) for flight in self._waits_for)  # noqa: SLF001 - of its kind

    async def wait(self) -> Any:  # noqa: ANN401 - the resource
        maker = _maker.get()
        if maker is not None and self._needs(maker):
            raise ResourceCycleError(self._kind.__qualname__)
        self._asking += 1
        if maker is not None:
            maker._waits_for.append(self)  # noqa: SLF001 - of its kind
        try:
            # Of a caller that is cancelled the others, and whoever asks next, must not notice anything.
            return await asyncio.shield(self._ready)
        finally:
            self._asking -= 1
            if maker is not None:
                maker._waits_for.remove(self)  # noqa: SLF001 - of its kind

    async def run(self, made: Any, resources: "Resources") -> None:  # noqa: ANN401 - an awaitable, or a context manager
        entered = False
        try:
            if _is_awaitable(made):
                made = await made
            entered = _is_async_manager(made)
            value = await made.__aenter__() if entered else resources.enter(self._kind, made)
        except BaseException as error:  # noqa: BLE001 - handed to those who asked
            self._fail(error)
            return
        finally:
            del resources.flights[self._kind]
        resources.made[self._kind] = value
        if not self._ready.done():  # else by the end of the request, for which it was too late
            self._ready.set_result(value)
        if entered:
            resources.closers.append((self._kind, self))
            await self._keep(made)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):  # at the end of the request, or of the loop
            error = ContextClosedError("resource", "ended")
        elif not self._asking:
            log_crash(f"making {self._kind.__qualname__} failed after its caller was cancelled", error)
        self._ready.set_exception(error)
        self._ready.exception()  # or asyncio would complain where nobody asks any more

    async def _keep(self, manager: Any) -> None:  # noqa: ANN401 - an asynchronous context manager
        error: BaseException | None
        try:
            error = await self._closing
        except asyncio.CancelledError as cancelled:  # by a task group inside of it, or at the end of the loop
            error = cancelled
        try:
            await manager.__aexit__(*_info(error))
        except BaseException as failure:  # noqa: BLE001 - kept for whoever closes it
            if failure is not error:
                self._failure = failure

    async def close(self, error: BaseException | None, time_limit: float) -> None:
        if not self._closing.done():
            self._closing.set_result(error)
        await asyncio.wait({self.task}, timeout=time_limit)
        if not self.task.done():
            self.task.cancel()
            raise ResourceTimeoutError(self._kind.__qualname__)
        if self._failure is not None:
            raise self._failure


_maker: Final[ContextVar[_Flight | None]] = ContextVar("asgi_context.resources", default=None)


class _Entered:
    """A plain context manager that was entered, with the Context in which it was."""

    __slots__ = ("_context", "_manager")

    def __init__(self, manager: Any, context: Context) -> None:  # noqa: ANN401 - a context manager
        self._manager = manager
        self._context = context

    def close(self, error: BaseException | None) -> None:
        try:
            self._context.run(partial(self._manager.__exit__, *_info(error)))
        except BaseException as failure:
            if failure is not error:
                raise


def _info(
    error: BaseException | None,
) -> tuple[type[BaseException] | None, BaseException | None, TracebackType | None]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


class Closing:
    """The closings under way in a middleware, as a part of it whose own closing waits for them.

    Args:
        time_limit: how long closing one resource may take, in seconds.
    """

    def __init__(self, time_limit: float) -> None:
        self.time_limit = time_limit
        self.tasks: set[asyncio.Task[_Failures]] = set()

    async def close(self) -> None:
        """Wait for what is under way; it has its time limits."""
        while self.tasks:
            await asyncio.wait(set(self.tasks))


_Failures: TypeAlias = "list[tuple[type, BaseException]]"


class Resources:
    """What was made for one binding.

    Args:
        closing: where its closing is noted.
    """

    __slots__ = ("_closing", "closers", "flights", "made")

    def __init__(self, closing: Closing) -> None:
        self._closing = closing
        self.made: dict[type, Any] = {}
        self.flights: dict[type, _Flight] = {}  # of those that are not made yet
        self.closers: list[tuple[type, _Flight | _Entered]] = []  # in the order in which they were made

    def enter(self, kind: type, made: Any) -> Any:  # noqa: ANN401 - the resource
        """Enter what a factory returned, if it is a plain context manager.

        Args:
            kind: what the factory makes.
            made: what it returned.

        Returns:
            The resource.
        """
        if not _is_manager(made):
            return made
        context = copy_context()
        value = context.run(made.__enter__)
        self.closers.append((kind, _Entered(made, context)))
        return value

    def launch(self, kind: type, made: Any) -> _Flight:  # noqa: ANN401 - an awaitable, or a context manager
        """Let what a factory returned become the resource, in a task of its own.

        Args:
            kind: what the factory makes.
            made: what it returned.

        Returns:
            What to wait for.
        """
        flight = self.flights[kind] = _Flight(kind)
        context = copy_context()
        context.run(_maker.set, flight)
        flight.task = asyncio.get_running_loop().create_task(flight.run(made, self), context=context)
        return flight

    def leave(self, binding: Binding, error: BaseException | None) -> None:
        """Close all, without waiting for what waits.

        Args:
            binding: what it was made for.
            error: with what that has ended, for the context managers.

        Raises:
            ResourceCloseError: something failed at once, and there is no error that it would hide.
        """
        failures: _Failures = []
        task = self._close(binding, error, failures)
        if task is not None:
            task.add_done_callback(_log_all)
        _report(failures, error)

    async def finish(self, binding: Binding, error: BaseException | None) -> None:
        """Close all, and wait for it.

        Args:
            binding: what it was made for.
            error: with what that has ended, for the context managers.

        Raises:
            ResourceCloseError: something failed, and there is no error that it would hide.
        """
        failures: _Failures = []
        task = self._close(binding, error, failures)
        if task is not None:
            if isinstance(error, GeneratorExit):  # who is closed must not wait for anything
                task.add_done_callback(_log_all)
                return
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                task.add_done_callback(_log_all)  # it goes on by itself
                raise
            failures += task.result()
        _report(failures, error)

    def _close(
        self, binding: Binding, error: BaseException | None, failures: _Failures
    ) -> "asyncio.Task[_Failures] | None":
        while self.closers and not self.flights:
            kind, closer = self.closers[-1]
            if isinstance(closer, _Flight):
                break
            # At once: there is nothing that could wait, or be cancelled.
            self.closers.pop()
            try:
                closer.close(error)
            except BaseException as failure:  # noqa: BLE001 - told once all are closed
                failures.append((kind, failure))
        if not (self.closers or self.flights):
            self.made.clear()
            return None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a request that is dropped after its loop has ended
            kinds = ", ".join(kind.__qualname__ for kind in [*self.flights, *(kind for kind, _ in self.closers)])
            log.error("resources were left open, since their event loop does not run any more: %s", kinds)
            return None
        context = copy_context()
        context.run(enter_binding, binding)
        task = loop.create_task(self._close_all(error), context=context)
        self._closing.tasks.add(task)
        task.add_done_callback(self._closing.tasks.discard)
        return task

    async def _close_all(self, error: BaseException | None) -> _Failures:
        failures: _Failures = []
        # Each of these has begun to run: its task was made before this one.
        pending = [(kind, flight.task) for kind, flight in self.flights.items()]
        for _, task in pending:
            task.cancel()
        if pending:
            await asyncio.wait([task for _, task in pending], timeout=self._closing.time_limit)
            failures += [(kind, ResourceTimeoutError(kind.__qualname__)) for kind, task in pending if not task.done()]
        while self.closers:
            kind, closer = self.closers.pop()
            try:
                if isinstance(closer, _Flight):
                    await closer.close(error, self._closing.time_limit)
                else:
                    closer.close(error)
            except BaseException as failure:  # noqa: BLE001 - told once all are closed
                failures.append((kind, failure))
        self.made.clear()
        return failures


Leftover: TypeAlias = tuple[Binding, Resources]
"""What was made for a binding, and is to be closed."""


async def finish_all(leftovers: list[Leftover], error: BaseException | None) -> None:
    """Close what was made for several bindings, one after the other, and wait for it.

    Args:
        leftovers: what is to be closed, in order; the list is used up.
        error: with what they have ended.

    Raises:
        ResourceCloseError: something failed, and there is no error that it would hide.
    """
    failures: list[Exception] = []
    try:
        while leftovers:
            binding, resources = leftovers.pop(0)
            try:
                await resources.finish(binding, error)
            except ResourceCloseError as group:
                failures += group.exceptions
    except asyncio.CancelledError as cancelled:
        for binding, resources in leftovers:
            resources.leave(binding, cancelled)
        raise
    if failures:
        raise ResourceCloseError(failures)


def _report(failures: _Failures, error: BaseException | None) -> None:
    if not failures:
        return
    if error is None:
        raise ResourceCloseError([_presentable(failure) for _, failure in failures])
    _log(failures)


def _presentable(failure: BaseException) -> Exception:
    if isinstance(failure, Exception):
        return failure
    error = JobError(type(failure).__qualname__)
    error.__cause__ = failure
    return error


def _log(failures: _Failures) -> None:
    for kind, failure in failures:
        log_crash(f"closing {kind.__qualname__} failed", failure)


def _log_all(task: "asyncio.Task[_Failures]") -> None:
    _log(task.result())


async def current_resource(kind: type[_T], /) -> _T:
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
        ResourceCycleError: this is asked by a factory for what waits for it.
        UnsupportedLoopError: there is no running asyncio event loop. What the factory raises comes as it is, to all who
            asked; the next to ask has it tried again.
    """
    binding = current_binding()
    resources: Resources | None = binding.resources
    if resources is not None:
        try:
            return cast("_T", resources.made[kind])
        except KeyError:
            pass
    binding.check("resource")
    if binding.ended:
        raise ContextClosedError("resource", "ended")
    if binding.tenant is None:
        raise ContextNotBoundError("resource")
    factory = binding.services.factories.get(kind)
    if factory is None:
        raise ResourceNotFoundError(kind.__qualname__)
    if resources is None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UnsupportedLoopError("current_resource") from None
        resources = binding.resources = Resources(binding.services.closing)
    flight = resources.flights.get(kind)
    if flight is None:
        made = factory(current_context())
        if not (_is_awaitable(made) or _is_async_manager(made)):
            value: _T = resources.enter(kind, made)
            resources.made[kind] = value
            return value
        flight = resources.launch(kind, made)
    return cast("_T", await flight.wait())
