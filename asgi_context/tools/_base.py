"""Tools that are classes: fields are what the model gives, and a method does it."""

from collections.abc import Mapping
from concurrent.futures import CancelledError
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

from asgi_context._blocking import BlockedError, loop_runs_here, run_on_loop
from asgi_context._context import current_binding
from asgi_context._options import seconds
from asgi_context._state import SharedState, current_state
from asgi_context._types import KEEP, Ttl
from asgi_context.errors import ToolBlockingError, ToolDefinitionError, ToolRunError, ToolTimeoutError
from asgi_context.tools._threads import pool_here, run_in_thread


class AsyncBaseTool(BaseModel):
    """A tool as a class: its fields are the arguments, its docstring tells the model what it does.

    Subclasses write ``async def _arun(self)``, which runs on the app's event loop, or override ``run(self)``, which
    runs in a thread. Either way `ss` is the shared state of whoever is bound. The docstring, and what fields have as
    ``Field(description=...)``, go into the schema that the model sees. It also works beside the ``BaseTool`` of Agency
    Swarm, in either order.

    ``run_timeout``, a class attribute, is after how many seconds `run` cancels ``_arun``.
    """

    model_config = ConfigDict(extra="forbid")

    run_timeout: ClassVar[float] = 60.0

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401 - as pydantic has it
        super().__init_subclass__(**kwargs)
        # What comes first need not be what is meant: an abstract `run`, as Agency Swarm's, or one of before `_arun`.
        name, run = _own(cls)
        if name == "run":
            cls.run = run  # type: ignore[method-assign]
        elif "run" not in vars(cls):
            cls.run = AsyncBaseTool.run  # type: ignore[method-assign]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401 - as pydantic has it
        """Refuse a field that would hide, or be hidden by, what a tool itself has."""
        super().__pydantic_init_subclass__(**kwargs)
        taken = sorted(_OWN & cls.model_fields.keys())
        if taken:
            raise ToolDefinitionError(cls.__qualname__, f"has a field {taken[0]!r}, which is a name of its base class")
        seconds(cls.run_timeout, f"run_timeout of {cls.__qualname__}")

    @property
    def ss(self) -> SharedState:
        """The shared state of whoever is bound; see `current_state`."""
        return current_state()

    async def _arun(self) -> Any:  # noqa: ANN401 - what the tool gives
        """Do it, on the app's event loop."""
        raise ToolDefinitionError(type(self).__qualname__, "defines neither `async def _arun(self)` nor `run(self)`")

    async def arun(self) -> Any:  # noqa: ANN401 - what the tool gives
        """Do it, from a coroutine: ``_arun`` as it is, an overridden ``run`` in a thread.

        Returns:
            What it gives.
        """
        if own_method(type(self)) != "run":
            return await self._arun()
        run: Any = type(self).run
        if iscoroutinefunction(run):
            return await run(self)
        given = await run_in_thread(self.run, pool_here(None))
        return await given if isawaitable(given) else given

    def run(self) -> Any:  # noqa: ANN401 - what the tool gives
        """Do it, from a thread: run ``_arun`` on the app's event loop, under the caller's context, and wait for it.

        Returns:
            What it gives.

        Raises:
            ToolBlockingError: an event loop runs in this thread; await `arun` there.
            ToolTimeoutError: it did not end within ``run_timeout``, and was cancelled.
            ToolRunError: the event loop has ended; or ``_arun`` raised what would stop the loop that waits for this
                thread (SystemExit, KeyboardInterrupt).
        """
        name = type(self).__qualname__
        if loop_runs_here():
            raise ToolBlockingError("run()", "await tool.arun()")
        try:
            return run_on_loop(partial(_run_fit, self), self.run_timeout, current_binding().services.app_loop)
        except BlockedError as error:
            raise (ToolTimeoutError if error.late else ToolRunError)(name, error.reason) from None

    def get_state(self, key: str) -> dict[str, Any] | None:
        """Give all fields of a state, from a thread; see `SharedState.get`."""
        return self.ss.sync.get(key)

    def upsert_state(self, key: str, data: Mapping[str, Any], *, ttl: Ttl = KEEP) -> bool:
        """Set fields of a state, from a thread; see `SharedState.upsert`."""
        return self.ss.sync.upsert(key, data, ttl=ttl)

    def get_field(self, key: str, field: str, default: Any = None) -> Any:  # noqa: ANN401 - as there
        """Give one field of a state, from a thread; see `SharedState.get_field`."""
        return self.ss.sync.get_field(key, field, default)

    def update_field(self, key: str, field: str, value: Any, *, ttl: Ttl = KEEP) -> bool:  # noqa: ANN401 - as there
        """Set one field of a state, from a thread; see `SharedState.update_field`."""
        return self.ss.sync.update_field(key, field, value, ttl=ttl)

    def delete_field(self, key: str, field: str) -> int:
        """Remove a field of a state, from a thread; see `SharedState.delete_field`."""
        return self.ss.sync.delete_field(key, field)

    def delete_state(self, key: str) -> int:
        """Remove a state, from a thread; see `SharedState.delete`."""
        return self.ss.sync.delete(key)

    def state_exists(self, key: str) -> bool:
        """Say whether there is such a state, from a thread; see `SharedState.exists`."""
        return self.ss.sync.exists(key)

    def list_states(self) -> list[str]:
        """Give the names of the states, from a thread; see `SharedState.list_states`."""
        return self.ss.sync.list_states()

    def clear_all_states(self) -> int:
        """Remove all states, from a thread; see `SharedState.clear_all_states`."""
        return self.ss.sync.clear_all_states()


def own_method(kind: type[AsyncBaseTool]) -> Literal["_arun", "run"] | None:
    """Say how a tool does what it does.

    Args:
        kind: its class.

    Returns:
        Which of the two it defines; where one class does and a later one does otherwise, what the later one says.
    """
    return _own(kind)[0]


def _own(kind: type[AsyncBaseTool]) -> tuple[Literal["_arun", "run"] | None, Any]:
    for each in kind.__mro__:
        own = vars(each)
        if each is AsyncBaseTool:
            continue
        if "_arun" in own:
            return "_arun", own["_arun"]
        run = own.get("run")
        if run is None or run is AsyncBaseTool.run:
            continue
        if not getattr(run, "__isabstractmethod__", False):
            return "run", run
        if issubclass(each, AsyncBaseTool):  # which leaves it to those after it
            break
    return None, None


_OWN: Final = frozenset(name for name in vars(AsyncBaseTool) if not name.startswith("_"))


async def _run_fit(tool: AsyncBaseTool) -> Any:  # noqa: ANN401 - what the tool gives
    # A thread hands these on to whoever awaits it, where they would stop the loop or pass for its cancellation.
    try:
        return await tool._arun()  # noqa: SLF001 - ours
    except (SystemExit, KeyboardInterrupt, CancelledError) as error:
        raise ToolRunError(type(tool).__qualname__, f"it raised {type(error).__qualname__}") from error
