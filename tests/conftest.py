"""Event loops as parameters, the guard that no test leaves anything bound, and the matrix of what this was tried on."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from inspect import iscoroutinefunction
from typing import Any

import pytest
import redis_servers
from hypothesis import settings

from asgi_context import current_context

pytest_plugins = ["matrix"]

settings.register_profile("asgi_context", deadline=None)  # no test asserts a time
settings.load_profile("asgi_context")


class _DebugLoop(asyncio.SelectorEventLoop):
    """In debug mode, but for what tasks, futures and handles ask: where each was made, in all depth, is never looked at.

    To find that out would take most of a run's time.
    """

    def get_debug(self) -> bool:
        return False


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # Python 3.12
    return loop


_ASYNCIO: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio-debug": ("asyncio", {"debug": True, "loop_factory": _DebugLoop}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
}
if sys.version_info >= (3, 12):
    _ASYNCIO["asyncio-eager"] = ("asyncio", {"loop_factory": _eager_loop})

BACKENDS = {**_ASYNCIO, "trio": ("trio", {})}
"""What async tests run on, unless they take the fixture ``asyncio_only`` or ``trio_only``."""
LOOPS = ("none", "asyncio-debug", "uvloop", "asyncio-eager", "trio")
"""All that there are, on one Python or another."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that runs a part of the tests."""
    parser.addoption(
        "--on",
        metavar="LOOP,...",
        help=f"run the tests that are on one of these event loops: {', '.join(LOOPS)}",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "anyio_backend" in metafunc.fixturenames:
        backends = BACKENDS
        if "asyncio_only" in metafunc.fixturenames:
            backends = _ASYNCIO
        elif "trio_only" in metafunc.fixturenames:
            backends = {"trio": BACKENDS["trio"]}
        metafunc.parametrize(
            "anyio_backend", list(backends.values()), ids=list(backends), indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """In place of anyio's own, which knows one list for all tests."""
    return request.param


@pytest.fixture
def asyncio_only() -> None:
    """Mark a test that uses asyncio itself."""


@pytest.fixture
def trio_only() -> None:
    """Mark a test of what trio's users see."""


def _bound() -> dict[str, object]:
    return {
        variable.name: value for variable, value in copy_context().items() if variable.name.startswith("asgi_context")
    }


@pytest.fixture(autouse=True)
def nothing_left_bound_outside() -> Iterator[None]:
    before = _bound()
    yield
    assert _bound() == before
    assert current_context(None) is None


@pytest.fixture
async def nothing_left_bound() -> AsyncIterator[None]:
    """Runs in the task of the test itself, which is where a leak would show."""
    before = _bound()
    yield
    assert _bound() == before
    assert current_context(None) is None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what ``--on`` does not name, and what a parameter's attribute ``only_on`` does not.

    Not every server must be tried on every loop.
    """
    chosen = {name for name in (config.getoption("on") or "").split(",") if name}
    if not chosen <= {*LOOPS}:
        message = f"--on takes {', '.join(LOOPS)}"
        raise pytest.UsageError(message)
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        values = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        loop = next((name for name, kind in BACKENDS.items() if values.get("anyio_backend") == kind), "none")
        classes: list[type] = [value for value in values.values() if type(value) is type]  # others are hostile, some
        only: list[list[str]] = [kind.only_on for kind in classes if hasattr(kind, "only_on")]  # type: ignore[attr-defined]
        wanted = (not chosen or loop in chosen) and (loop == "none" or all(loop in names for names in only))
        (kept if wanted else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


_frozen_for: Any = None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Take what is there before a module's tests, pytest's own above all, out of the collections that they ask for.

    There are thousands of these, and with tens of thousands of tests in memory they would take longer than the tests.
    """
    global _frozen_for  # noqa: PLW0603 - the run's own
    if isinstance(item, pytest.Function) and item.module is not _frozen_for:
        _frozen_for = item.module
        gc.collect()
        gc.freeze()


def pytest_sessionfinish() -> None:
    redis_servers.close_shared()


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("anyio") and isinstance(item, pytest.Function) and iscoroutinefunction(item.obj):
        item.fixturenames.append("nothing_left_bound")
