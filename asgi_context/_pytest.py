"""The pytest plugin, which pytest finds by its entry point. It does nothing until a test or an option asks for it."""

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from inspect import iscoroutinefunction
from traceback import walk_tb
from typing import Any, NoReturn
from unittest import TestCase

import pytest

from asgi_context import MemoryStore, RequestContext, Store
from asgi_context.errors import ContextLeftError
from asgi_context.testing import FixtureWatch, TestBinding, guarded
from asgi_context.testing import no_context_left as nothing_left

_OPTION = "asgi_context_guard"
_binding: pytest.StashKey[TestBinding] = pytest.StashKey()
_watch: pytest.StashKey[FixtureWatch | None] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the option; called by pytest.

    Args:
        parser: where.
    """
    parser.addini(_OPTION, "fail each test that leaves something of asgi_context bound", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; called by pytest.

    Args:
        config: where.
    """
    config.addinivalue_line(
        "markers",
        'bound_context(tenant="test-tenant", user="test-user", *, claims, request_id, values, store): '
        "bind this context of asgi_context for the test.",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the marker do without the fixture's name; called by pytest.

    Args:
        item: the test.
    """
    if not isinstance(item, pytest.Function) or item.get_closest_marker("bound_context") is None:
        return
    if "bound_context" not in item.fixturenames:
        item.fixturenames.append("bound_context")


@pytest.fixture
def context_store() -> Store:
    """Where the shared state of `bound_context` is kept: a new `MemoryStore` for each test. Override it for another."""
    return MemoryStore()


@pytest.fixture
def bound_context(request: pytest.FixtureRequest) -> Iterator[RequestContext]:
    """Bind a context for the test, sync or async, and for what is set up after it; gives the `RequestContext`.

    ``@pytest.mark.bound_context("acme", "ann", claims=..., request_id=..., values=..., store=...)`` says which.
    """
    marker = request.node.get_closest_marker("bound_context")
    args, kwargs = ((), {}) if marker is None else (marker.args, dict(marker.kwargs))
    if "store" not in kwargs:
        kwargs["store"] = request.getfixturevalue("context_store")
    binding = TestBinding(*args, **kwargs)
    request.node.stash[_binding] = binding
    with binding as context:
        yield context


@pytest.fixture
def no_context_left() -> None:
    """Fail the test if it, or a fixture of its own, leaves something of asgi_context bound.

    For all tests, set ``asgi_context_guard`` instead.
    """


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Begin to watch the fixtures of a test; called by pytest.

    Args:
        item: the test.

    Yields:
        To set it up.
    """
    item.config.stash[_watch] = FixtureWatch() if _guards(item) else None
    yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Watch a fixture; called by pytest.

    Args:
        fixturedef: the fixture.
        request: for what it is set up.

    Yields:
        To set it up.

    Returns:
        What pytest's own hook has returned.
    """
    try:
        return (yield)
    finally:
        _note(fixturedef, request)


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """Watch a fixture; called by pytest once it has ended.

    Args:
        fixturedef: the fixture.
        request: for what it was set up.
    """
    _note(fixturedef, request)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Check what the fixtures of a test have left; called by pytest.

    Args:
        item: the test.

    Yields:
        To end them.
    """
    __tracebackhide__ = True
    watch = item.config.stash.get(_watch, None)
    try:
        yield
    finally:
        item.config.stash[_watch] = None
        error = None if watch is None else watch.end()
    if error is not None:
        _tell(error)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Bind and check inside the task of an async test; called by pytest.

    Args:
        item: the test.

    Yields:
        To run it.

    Returns:
        What pytest's own hook has returned.
    """
    __tracebackhide__ = True
    if not isinstance(item, pytest.Function):
        return (yield)
    binding = item.stash.get(_binding, None)
    guards = _guards(item)
    if binding is None and not guards:
        return (yield)
    try:
        with pytest.MonkeyPatch.context() as patch, nothing_left() if guards else nullcontext():
            owner, name = _runs(item)
            test = getattr(owner, name)
            if iscoroutinefunction(test):
                # The fixtures of a test and the test itself need not see one Context: pytest-asyncio hands over a copy,
                # and the task that anyio runs tests in may be older than what was bound since.
                inner = guarded(test) if guards else test
                patch.setattr(owner, name, inner if binding is None else binding.carried(inner))
            return (yield)
    except ContextLeftError as error:
        frames = (frame for frame, _ in walk_tb(error.__traceback__))
        if any(frame.f_code.co_filename == str(item.path) for frame in frames):
            raise  # by a check of the test's own, which knows its place
        _tell(error)


def _tell(error: ContextLeftError) -> NoReturn:
    # Where it was found is the machinery of whoever runs the test: pages of source, and no help.
    raise error.with_traceback(None)


def _note(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    watch = request.config.stash.get(_watch, None)
    if watch is not None:
        # What one of a class, a module or a session has bound, or uncovers by its end, is for more tests than this.
        watch.note(fixturedef.argname, stays=fixturedef.scope != "function")


def _guards(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    return "no_context_left" in item.fixturenames or bool(item.config.getini(_OPTION))


def _runs(item: pytest.Function) -> tuple[Any, str]:
    # Where that stands which is run in a task, where it is async.
    test: Any = item.obj
    if getattr(test, "is_hypothesis_test", False):
        return test.hypothesis, "inner_test"
    if isinstance(item.instance, TestCase):
        return item.instance, item.name
    return item, "obj"
