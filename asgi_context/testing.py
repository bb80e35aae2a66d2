"""For tests: a binding that ends with its test, and a check that nothing is left bound.

The pytest plugin is made of these. It comes with the package, and does nothing unless it is used: the fixture
``bound_context`` with its marker, the fixture ``no_context_left``, the option ``asgi_context_guard``.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import wraps
from types import TracebackType
from typing import Any, Final

from asgi_context._claims import NO_CLAIMS
from asgi_context._context import Binding, bind_context, enter_binding, exit_binding
from asgi_context._identity import RequestContext
from asgi_context._types import Store
from asgi_context.errors import ContextLeftError

__all__ = ["TestBinding", "no_context_left"]

_NAMES: Final = "asgi_context"  # with which those of the package's variables begin


class TestBinding:
    """A context that is bound for one test, for ``with``: what outlives the test can no longer read it.

    Args:
        tenant: the tenant's identifier.
        user: the user's; ``None`` for the tenant itself.
        claims: what else the identity's proof says; JSON.
        request_id: the request's id; without one, one is made.
        values: what `asgi_context.values` gives out.
        store: where shared state is kept.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an identifier is empty.
    """

    __test__ = False  # a class of that name would be taken for tests

    def __init__(
        self,
        tenant: str = "test-tenant",
        user: str | None = "test-user",
        *,
        claims: Mapping[str, Any] = NO_CLAIMS,
        request_id: str | None = None,
        values: Mapping[str, Any] | None = None,
        store: Store | None = None,
    ) -> None:
        identity = RequestContext(tenant, user, request_id, claims)
        self._block = bind_context(identity, values=values, store=store)
        self._binding = self._block._binding  # noqa: SLF001 - ours

    def __enter__(self) -> RequestContext:
        return self._block.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        try:
            self._block.__exit__(kind, error, traceback)
        finally:
            # A runner of async tests that was started meanwhile keeps a copy of the Context, and runs the next test
            # in it.
            self._binding.revoke()

    def carried(self, test: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Bind it in the task of an async test as well, which may have been started before it was bound.

        Args:
            test: the test.

        Returns:
            The test, to be called while this is entered.
        """

        @wraps(test)
        async def bound(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the test takes and returns
            __tracebackhide__ = True
            token = enter_binding(self._binding)
            try:
                return await test(*args, **kwargs)
            finally:
                exit_binding(token)

        return bound


@contextmanager
def no_context_left() -> Generator[None, None, None]:
    """Check that a block leaves nothing bound in this thread or task: no context, no values, nothing of this package.

    What is left is taken away, so that it does no harm to the next test.

    Yields:
        Nothing.

    Raises:
        ContextLeftError: the block has ended without an error, and left something bound.
    """
    __tracebackhide__ = True
    before = _bound()
    try:
        yield
    except BaseException:
        _restore(before)
        raise
    if left := _restore(before):
        raise _error(left)


def guarded(test: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Check an async test, in its own task, as `no_context_left` does.

    Args:
        test: the test.

    Returns:
        The test, checked.
    """

    @wraps(test)
    async def checked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the test takes and returns
        __tracebackhide__ = True
        with no_context_left():
            return await test(*args, **kwargs)

    return checked


class FixtureWatch:
    """What the fixtures of a test have bound, each by its name, from before the first until after the last."""

    def __init__(self) -> None:
        self._before = _bound()
        self._made: list[tuple[Any, str | None]] = [(value, None) for value in self._before.values()]

    def note(self, fixture: str, *, stays: bool) -> None:
        """Note what is bound once a fixture was set up, or has ended.

        Args:
            fixture: its name.
            stays: whether what it has bound may stay so after the test.
        """
        for value in _bound().values():
            if not any(value is made for made, _ in self._made):
                self._made.append((value, None if stays else fixture))

    def end(self) -> ContextLeftError | None:
        """Take away what is left bound that was not before, and need not be.

        Returns:
            The error that says so; ``None`` where nothing is.
        """
        nothing = Context()
        left: dict[str, Any] = {}
        fixtures: list[str] = []
        for variable, value in _bound().items():
            default = nothing.run(variable.get)
            fixture = next((name for made, name in self._made if made is value), None)
            if value is not default and fixture is not None:
                left[variable.name] = value
                fixtures.append(fixture)
                variable.set(self._before.get(variable, default))
        return _error(left, fixtures[0]) if left else None


def _error(left: Mapping[str, Any], fixture: str | None = None) -> ContextLeftError:
    binding = left.get(_NAMES)
    tenant, user = (binding.tenant, binding.user) if isinstance(binding, Binding) else (None, None)
    return ContextLeftError(sorted(left), tenant, user, fixture)


def _bound() -> dict[ContextVar[Any], Any]:
    return {variable: value for variable, value in copy_context().items() if variable.name.partition(".")[0] == _NAMES}


def _restore(before: Mapping[ContextVar[Any], Any]) -> dict[str, Any]:
    # A variable that nobody has set in a Context cannot be made so again; its default is the same to all readers.
    nothing = Context()
    left: dict[str, Any] = {}
    for variable, value in _bound().items():
        was = before[variable] if variable in before else nothing.run(variable.get)
        if value is not was:
            left[variable.name] = value
            variable.set(was)
    return left
