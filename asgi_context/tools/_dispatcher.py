"""Calling tools by name, on behalf of whoever is bound."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context
from inspect import isawaitable
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from uuid import uuid4

from pydantic import ValidationError

from asgi_context._blocking import BlockedError, loop_runs_here, run_on_loop
from asgi_context._context import Binding, current_binding, current_context
from asgi_context._identity import RequestContext
from asgi_context._limits import check_ttl
from asgi_context._options import check_hooks, seconds
from asgi_context.errors import (
    ContextClosedError,
    ContextNotBoundError,
    ExtractorTypeError,
    PoolNotFoundError,
    StoreNotBoundError,
    ToolBlockingError,
    ToolOwnerError,
    ToolRunError,
    ToolTimeoutError,
    UnsupportedLoopError,
)
from asgi_context.tools._bridge import WebSocketBridge, tell, tell_at_once, told
from asgi_context.tools._calls import ToolCall, enter_call, exit_call
from asgi_context.tools._events import encode
from asgi_context.tools._limits import Limit, Slots, ToolLimits, limits_of
from asgi_context.tools._registry import ToolRegistry
from asgi_context.tools._results import RefusedError, ToolResult, failure_of, invalid, not_found
from asgi_context.tools._specs import Arguments, Entry, named
from asgi_context.tools._steps import Rest
from asgi_context.tools._threads import Job

if TYPE_CHECKING:
    from types import TracebackType

Permit: TypeAlias = Callable[[RequestContext, str, Mapping[str, Any]], bool | Awaitable[bool]]

_GRACE: Final = 5.0  # seconds that a call may take beyond its timeout until its place is another's
_GROUPS_TAKE_BACK: Final = sys.version_info >= (3, 13)  # that they have cancelled the task that waits for theirs
_ROOM: Final = 2.5  # seconds that its end waits for a client that does not read


class ToolDispatcher:
    """Calls tools by name, as an agent's model asks for it, and gives results and errors as values.

    Coroutine functions run on the event loop, in the task that asks; all others in a pool of threads. What they call
    finds the context of whoever asks bound.

    Args:
        registry: the tools; without one, an empty one.
        bridge: where events of the calls go: ``tool_started``, ``tool_progress``, ``tool_completed`` and
            ``tool_failed``, each with ``tool``, ``call_id`` and ``correlation_id``.
        timeout: after how many seconds a call is cancelled. A job that runs in a thread cannot be: its caller is told
            so, it goes on to its end, and counts as running until then.
        pool: in which of the middleware's pools tools that block run; ``None`` for the one that is called ``tool``, or
            else for the default executor of the event loop.
        permit: takes the context, the name of the tool and the arguments as the model gave them, may be a coroutine
            function, and says, by exactly ``True`` or ``False``, whether the tool may be called.
        user_limits: how many calls there may be for one user.
        tenant_limits: how many there may be for all users of a tenant.
        correlation_id: goes with all events; without one, one is made.

    Raises:
        PoolNotFoundError: there is no such pool for whoever is bound here.
        ToolOwnerError: the bridge was made for somebody else than is bound here.
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot be.
    """

    def __init__(
        self,
        registry: ToolRegistry | None = None,
        *,
        bridge: WebSocketBridge | None = None,
        timeout: float = 60.0,
        pool: str | None = None,
        permit: Permit | None = None,
        user_limits: ToolLimits | None = None,
        tenant_limits: ToolLimits | None = None,
        correlation_id: str | None = None,
    ) -> None:
        if registry is not None and not isinstance(registry, ToolRegistry):
            message = f"registry must be a ToolRegistry, not {type(registry).__qualname__}"
            raise TypeError(message)
        if pool is not None and type(pool) is not str:
            message = f"pool must be the name of a pool, or None, not {type(pool).__qualname__}"
            raise TypeError(message)
        check_hooks(plain={}, either={"permit": permit})
        self.registry = ToolRegistry() if registry is None else registry
        self.correlation_id = str(uuid4()) if correlation_id is None else correlation_id
        self._bridge = bridge
        self._timeout = _time(timeout)
        self._pool = pool
        self._permit = permit
        self._limits_of = (
            None if user_limits is None and tenant_limits is None else limits_of(user_limits, tenant_limits)
        )
        self._numbers = count(1)
        self._json_id = encode(self.correlation_id)
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        # Where nobody is bound, it is for all, and acts for whoever is bound where it is used.
        binding = current_binding()
        bound = None if binding.tenant is None else (binding.tenant, binding.user)
        self._owner = bound if bridge is None or bridge.owner is None else bridge.owner
        if bound is not None and bound != self._owner:
            raise ToolOwnerError
        if pool is not None and bound is not None and pool not in binding.services.pools:
            raise PoolNotFoundError(pool)

    async def dispatch(
        self,
        name: str,
        arguments: Arguments | None = None,
        *,
        call_id: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of the tool, whose result says so
    ) -> ToolResult:
        """Call a tool.

        Args:
            name: its name.
            arguments: by name; or the JSON text of an object, as models write it.
            call_id: the id that the model has given the call, for results and events; without one, one is made.
            timeout: another timeout than the dispatcher's, in seconds.

        Returns:
            What came of it. Nothing that the tool raises gets out, but for the cancellation of the caller.

        Raises:
            ContextNotBoundError: nothing is bound here.
            ContextClosedError: what is bound here was revoked, or the tool system that this is a part of has ended.
            StoreNotBoundError: there are limits, and no store is bound in which to count.
            ToolOwnerError: the dispatcher was made for somebody else than is bound here.
            UnsupportedLoopError: there is no running asyncio event loop.
            BridgeLoopError: events go to a connection that belongs to another event loop.
            TypeError: ``timeout`` is no number.
            ValueError: ``timeout`` is not positive, or longer than any store can keep.
        """
        binding = current_binding()
        binding.check("tools")
        if binding.tenant is None:
            raise ContextNotBoundError
        if self._owner is not None and self._owner != (binding.tenant, binding.user):
            raise ToolOwnerError
        if self._closed:
            raise ContextClosedError("tools", "ended")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise UnsupportedLoopError("ToolDispatcher") from None
        if self._bridge is not None:
            self._bridge.check_loop(loop)
        limit = self._timeout if timeout is None else _time(timeout)
        entry = self.registry.find(name)
        call = self._call(name, call_id, entry)
        if entry is None:
            result = not_found(name, call.call_id, self.registry.list())
        else:
            result = await self._run(binding, call, entry, {} if arguments is None else arguments, limit)
        if self._bridge is not None and not told(self._bridge, event := call.ended(result.code, result.text)):
            await tell(self._bridge, event, _ROOM)  # whatever the client does, there is a result
        return result

    @property
    def sync(self) -> "BlockingDispatcher":
        """The same for threads, such as that of an agent that blocks."""
        return BlockingDispatcher(self)

    def dispatch_blocking(
        self, name: str, arguments: Arguments | None, call_id: str | None, timeout: float | None
    ) -> ToolResult:
        """Call a tool from a thread, as `sync` does; see `ToolDispatcher.dispatch`."""
        if loop_runs_here():
            raise ToolBlockingError("sync.dispatch()", "await dispatcher.dispatch(name, arguments)")
        limit = self._timeout if timeout is None else _time(timeout)
        known = current_binding().services.app_loop

        async def call() -> ToolResult:
            return await self.dispatch(name, arguments, call_id=call_id, timeout=limit)

        try:
            return run_on_loop(call, limit + _GRACE, known)
        except BlockedError as error:
            raise (ToolTimeoutError if error.late else ToolRunError)(name, error.reason) from None

    def close(self) -> None:
        """Call no more tools. Calls that have begun go on."""
        self._closed = True

    def _call(self, name: str, call_id: str | None, entry: Entry | None) -> ToolCall:
        if call_id is None:
            number = next(self._numbers)
            call = ToolCall(name, f"{self.correlation_id}.{number}", self.correlation_id, self._bridge)
            json_id = f'{self._json_id[:-1]}.{number}"'
        else:
            call = ToolCall(name, call_id, self.correlation_id, self._bridge)
            json_id = "" if self._bridge is None else encode(call_id)
        if self._bridge is not None:
            json_name = encode(name) if entry is None else entry.spec.json_name
            call.json_ids = f'"tool":{json_name},"call_id":{json_id},"correlation_id":{self._json_id}'
        return call

    async def _run(
        self, binding: Binding, call: ToolCall, entry: Entry, arguments: Arguments, limit: float
    ) -> ToolResult:
        deadline = asyncio.get_running_loop().time() + limit
        task = asyncio.current_task()
        cancelled = 0 if task is None else task.cancelling()
        job = None if entry.waits else Job()
        slots = None if self._limits_of is None else self._slots(binding, self._limits_of, limit)
        work = self._work(call, entry, arguments, slots, job)
        timer = rest = None
        try:
            try:
                rest = Rest(work.send(None), work)
            except StopIteration as end:  # it did not wait for anything, so that nothing could have cut it off
                result: ToolResult = end.value
            else:
                async with asyncio.timeout(None) as timer:
                    # In no Context of anybody's, which the loop would hold for as long as the time is.
                    Context().run(timer.reschedule, deadline)
                    result = await rest
        except BaseException as error:  # some would stop the loop, which is everybody's
            if _is_closed(error):  # then it must not wait, and the slots end by themselves
                raise
            if _is_cancelled(error):
                self._let_go(call, slots, job)
                task = timer = rest = None  # or the task, its error and this frame would hold each other
                raise
            late = timer is not None and timer.expired() and isinstance(error, TimeoutError)
            try:
                result = failure_of(call, RefusedError("tool_timeout") if late else error)
            except BaseException:  # of whoever handles what is logged
                self._let_go(call, slots, job)
                raise
        if task is not None and _was_cancelled(task, cancelled, rest):  # which the tool has kept to itself
            self._let_go(call, slots, job)
            await asyncio.sleep(0)  # one that is still to come, or comes again, arrives as what it is
            raise asyncio.CancelledError
        if not self._goes_on(slots, job) and slots is not None:
            try:
                await slots.release()
            except asyncio.CancelledError:
                self._let_go(call, slots, None)
                raise
        return result

    def _slots(self, binding: Binding, limits_of: Callable[[Binding], list[Limit]], limit: float) -> Slots:
        store = binding.services.store
        if store is None:
            raise StoreNotBoundError
        return Slots(store, limits_of(binding), limit + _GRACE)

    async def _work(
        self, call: ToolCall, entry: Entry, arguments: Arguments, slots: Slots | None, job: Job | None
    ) -> ToolResult:
        # All that the time of a call is for.
        try:
            ready = entry.prepare(arguments)
            given = None if self._permit is None else named(arguments)
        except ValidationError as error:
            return invalid(call.tool, call.call_id, error)
        if self._permit is not None and given is not None:
            await _check(self._permit(current_context(), call.tool, given))
        if slots is not None:
            await slots.take()
        token = enter_call(call)
        try:
            if self._bridge is not None and not told(self._bridge, event := call.started()):
                await tell(self._bridge, event)  # which a client that does not read holds up
            value = await (ready() if job is None else job.run(ready, self._pool))
        finally:
            exit_call(token)
        return ToolResult(call.tool, call.call_id, value)

    def _let_go(self, call: ToolCall, slots: Slots | None, job: Job | None) -> None:
        # Whoever is cancelled must not wait for anything.
        if self._bridge is not None:
            tell_at_once(self._bridge, call.ended("cancelled", ""))
        if not self._goes_on(slots, job) and slots is not None:
            self._later(slots.release())

    def _goes_on(self, slots: Slots | None, job: Job | None) -> bool:
        if job is None:
            return False
        ended = asyncio.Event()
        if not job.give_up(ended.set):
            return False
        if slots is not None:
            self._later(slots.keep(ended))
        return True

    def _later(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class BlockingDispatcher:
    """A `ToolDispatcher` for threads.

    Args:
        dispatcher: the dispatcher.
    """

    __slots__ = ("_dispatcher",)

    def __init__(self, dispatcher: ToolDispatcher) -> None:
        self._dispatcher = dispatcher

    def dispatch(
        self,
        name: str,
        arguments: Arguments | None = None,
        *,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> ToolResult:
        """Call a tool, on the app's event loop, and wait for what comes of it; see `ToolDispatcher.dispatch`.

        Args:
            name: its name.
            arguments: by name, or as JSON text.
            call_id: the id that the model has given the call.
            timeout: another timeout than the dispatcher's, in seconds.

        Returns:
            What came of it.

        Raises:
            ToolBlockingError: an event loop runs in this thread.
            ToolTimeoutError: no result came for some seconds after the timeout, as where the client does not read.
            ToolRunError: the event loop has ended.
        """
        return self._dispatcher.dispatch_blocking(name, arguments, call_id, timeout)


def _time(value: float) -> float:
    limit = seconds(value, "timeout")
    check_ttl(limit + _GRACE, "timeout")
    return limit


async def _check(verdict: object) -> None:
    if isawaitable(verdict):
        verdict = await verdict
    if type(verdict) is not bool:  # much that is meant as a no would count as true
        raise ExtractorTypeError("permit", type(verdict).__qualname__, "bool")
    if not verdict:
        raise RefusedError("not_permitted")


def _is_cancelled(error: BaseException) -> bool:
    # By whoever cancels the caller, that is; else the tool itself has raised it.
    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _was_cancelled(task: asyncio.Task[Any], before: int, rest: Rest[ToolResult] | None) -> bool:
    if rest is not None:
        by_groups = 0 if _GROUPS_TAKE_BACK else len(rest.groups)
        for _ in range(min(by_groups, task.cancelling() - before)):
            task.uncancel()
        rest.groups.clear()  # they hold the task
    return task.cancelling() > before


def _is_closed(error: BaseException) -> bool:
    # By whoever closes the coroutine: that closes what it awaits first, and then raises a new one in it. One that the
    # tool itself has raised comes through the tool's frames.
    return isinstance(error, GeneratorExit) and cast("TracebackType", error.__traceback__).tb_next is None
