"""For tests of apps: what is bound for a test ends with it, and nothing is left behind."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from contextvars import copy_context
from functools import wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from asgi_context import (
    ContextClosedError,
    Identity,
    MemoryStore,
    bind_context,
    current_context,
    current_state,
    unbound_context,
)
from asgi_context.errors import ContextLeftError
from asgi_context.testing import TestBinding, guarded, no_context_left
from asgi_context.values import get_from_context, request_context

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def configured(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        """
        [pytest]
        addopts = -p asgi_context._pytest -p no:cacheprovider --strict-markers
        filterwarnings = error
        asyncio_mode = strict
        asyncio_default_fixture_loop_scope = function
        """
    )


def passes(pytester: pytest.Pytester, source: str, *options: str, **outcomes: int) -> pytest.RunResult:
    """Whether the tests of a module end as they must."""
    pytester.makepyfile(IMPORTS + source)
    # What is taken away where nothing was bound leaves the variables set, to nothing: not in the context of this run.
    result = copy_context().run(pytester.runpytest_inprocess, *options)
    result.assert_outcomes(**outcomes)
    return result


IMPORTS = """
import asyncio, contextvars, pytest
from asgi_context import *
from asgi_context.values import get_from_context
from contextlib import ExitStack

"""

# A binding for a test


def test_it_binds_what_it_is_given() -> None:
    with TestBinding("acme", "ann", claims={"a": 1}, request_id="1", values={"b": 2}, store=MemoryStore()) as context:
        assert current_context() == context
        assert (context.tenant, context.user, context.request_id, context.claims["a"]) == ("acme", "ann", "1", 1)
        assert get_from_context("b") == 2
        assert current_state() is not None
    assert current_context(None) is None


def test_without_anything_it_is_somebody() -> None:
    with TestBinding() as context:
        assert (context.tenant, context.user) == ("test-tenant", "test-user")


def test_what_has_kept_its_context_cannot_read_it_after_the_test() -> None:
    with TestBinding("acme", "ann"):
        kept = copy_context()
    with pytest.raises(ContextClosedError):
        kept.run(current_context)


def test_an_async_test_is_bound_whatever_context_it_runs_in() -> None:
    async def who() -> Any:
        return current_context(None)

    binding = TestBinding("acme", "ann")
    elsewhere = copy_context()
    with binding as context:
        assert elsewhere.run(asyncio.run, binding.carried(who)()) == context
    assert elsewhere.run(current_context, None) is None


# The check


def apart(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test in a context of its own, where the variables may stay set, to nothing."""

    @wraps(test)
    def run() -> None:
        copy_context().run(test)

    return run


def test_what_leaves_nothing_passes() -> None:
    with bind_context(Identity("acme")), no_context_left():
        with bind_context(Identity("other")), request_context(a=1):
            pass
        with unbound_context():
            pass


@apart
def test_who_is_left_bound_is_named_and_taken_away() -> None:
    block = bind_context(Identity("acme", "ann"))
    with pytest.raises(ContextLeftError, match="the tenant 'acme' and the user 'ann'") as raised, no_context_left():
        block.__enter__()
    assert (raised.value.left, raised.value.tenant, raised.value.user) == (("asgi_context",), "acme", "ann")
    assert current_context(None) is None


@apart
def test_values_that_are_left_are_named_too() -> None:
    left = request_context(a=1)
    with (
        pytest.raises(ContextLeftError, match=r"left bound at the end: asgi_context\.values\. ") as raised,
        no_context_left(),
    ):
        left.__enter__()
    assert raised.value.tenant is None
    assert get_from_context("a") is None


@apart
def test_what_was_bound_before_is_bound_again() -> None:
    with bind_context(Identity("acme")) as context:
        with pytest.raises(ContextLeftError, match="'other'"), no_context_left():
            bind_context(Identity("other")).__enter__()
        assert current_context() == context


@apart
def test_an_error_is_not_replaced_but_nothing_stays() -> None:
    with pytest.raises(KeyError), no_context_left():
        bind_context(Identity("acme")).__enter__()
        raise KeyError
    assert current_context(None) is None


def test_an_async_test_is_checked_in_its_task() -> None:
    async def leaves() -> None:
        bind_context(Identity("acme")).__enter__()

    with pytest.raises(ContextLeftError):
        asyncio.run(guarded(leaves)())


# The plugin

KINDS = {
    "sync": "def",
    "asyncio": "@pytest.mark.asyncio\nasync def",
    "anyio": "@pytest.mark.anyio\nasync def",
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """How a test begins: by pytest itself, by pytest-asyncio, by anyio on asyncio and on trio."""
    return KINDS[request.param]


def times(kind: str) -> int:
    return 2 if "anyio" in kind else 1


def test_the_fixture_binds(pytester: pytest.Pytester, kind: str) -> None:
    source = f"""
{kind} test_somebody(bound_context):
    assert current_context() == bound_context
    assert (bound_context.tenant, bound_context.user) == ("test-tenant", "test-user")
    assert current_state() is not None
{kind} test_nobody():
    assert current_context(None) is None
"""
    passes(pytester, source, passed=2 * times(kind))


def test_the_marker_says_who(pytester: pytest.Pytester, kind: str) -> None:
    source = f"""
@pytest.mark.bound_context("acme", "ann", claims={{"role": "admin"}}, request_id="1", values={{"a": 1}})
{kind} test_named(bound_context):
    assert (bound_context.tenant, bound_context.user, bound_context.request_id) == ("acme", "ann", "1")
    assert current_context().claims["role"] == "admin"
    assert get_from_context("a") == 1
@pytest.mark.bound_context("acme", None)
{kind} test_without_the_fixture_s_name():
    assert (current_context().tenant, current_context().user) == ("acme", None)
"""
    passes(pytester, source, passed=2 * times(kind))


def test_the_closest_marker_counts(pytester: pytest.Pytester) -> None:
    source = """
@pytest.mark.bound_context("acme")
class TestClass:
    def test_of_the_class(self):
        assert current_context().tenant == "acme"
    @pytest.mark.bound_context("other")
    def test_of_its_own(self):
        assert current_context().tenant == "other"
"""
    passes(pytester, source, passed=2)


def test_a_marker_that_says_nonsense_is_an_error(pytester: pytest.Pytester) -> None:
    source = """
@pytest.mark.bound_context(tenant_id="acme")
def test_misspelt(): ...
"""
    result = passes(pytester, source, errors=1)
    result.stdout.fnmatch_lines(["*unexpected keyword argument 'tenant_id'*"])


def test_tests_do_not_share_state_unless_the_store_is_theirs(pytester: pytest.Pytester) -> None:
    source = """
STORE = MemoryStore()
@pytest.mark.parametrize("n", [1, 2])
def test_apart(bound_context, n):
    assert current_state().sync.increment("a", "n") == 1
@pytest.mark.bound_context(store=STORE)
@pytest.mark.parametrize("n", [1, 2])
def test_together(n):
    assert current_state().sync.increment("a", "n") == n
class TestOverridden:
    @pytest.fixture
    def context_store(self):
        return STORE
    def test_theirs(self, bound_context):
        assert current_state().sync.get_field("a", "n") == 2
"""
    passes(pytester, source, passed=5)


def test_fixtures_that_ask_for_it_are_bound(pytester: pytest.Pytester, kind: str) -> None:
    is_async = "async" in kind
    fixture = "@pytest.fixture\ndef" if not is_async else "@pytest_asyncio.fixture\nasync def"
    if "anyio" in kind:
        fixture = "@pytest.fixture\nasync def"
    source = f"""
import pytest_asyncio
{fixture} cart(bound_context):
    return current_context().user
@pytest.mark.bound_context("acme", "ann")
{kind} test_bound(cart):
    assert (cart, current_context().user) == ("ann", "ann")
"""
    passes(pytester, source, passed=times(kind))


def test_a_runner_that_is_older_than_the_binding_does_no_harm(pytester: pytest.Pytester) -> None:
    """anyio runs tests and fixtures in one task, which may outlive a test, and keeps what was bound as it began."""
    source = """
pytestmark = pytest.mark.anyio
@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"
@pytest.fixture(scope="module")
async def server():
    yield
@pytest.mark.bound_context("acme", "ann")
async def test_begins_bound(bound_context, request):
    assert current_context() == bound_context
@pytest.mark.bound_context("acme", "ann")
async def test_starts_the_runner(server, bound_context):
    assert current_context() == bound_context
@pytest.mark.bound_context("other", "bob")
async def test_is_somebody_else(server, bound_context):
    assert current_context() == bound_context
async def test_is_nobody(server):
    assert current_context(None) is None
"""
    passes(pytester, source, passed=4)


def test_nobody_s_identity_goes_on_in_a_runner_that_was_started_while_bound(pytester: pytest.Pytester) -> None:
    source = """
pytestmark = pytest.mark.anyio
@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"
@pytest.fixture(scope="module")
async def server():
    yield
@pytest.mark.bound_context("acme", "ann")
async def test_starts_the_runner_while_bound(bound_context, request):
    pass
@pytest.fixture
def late(bound_context, request):
    request.getfixturevalue("server")
async def test_late(late):
    assert current_context().tenant == "test-tenant"
async def test_after(server):
    with pytest.raises(ContextClosedError):
        current_context(None)
"""
    passes(pytester, source, passed=3)


LEAVES = """
    stack = ExitStack()
    stack.enter_context(bind_context(Identity("acme", "ann")))
    contextvars.ContextVar("kept").set(stack)
"""


def test_the_guard_fails_tests_that_leave_something(pytester: pytest.Pytester, kind: str) -> None:
    source = f"""
{kind} test_leaves(no_context_left):
{LEAVES}
{kind} test_does_not(no_context_left):
    with bind_context(Identity("acme")):
        pass
{kind} test_finds_nothing():
    assert current_context(None) is None
"""
    result = passes(pytester, source, failed=times(kind), passed=2 * times(kind))
    result.stdout.fnmatch_lines(["*ContextLeftError: left bound at the end: asgi_context, for the tenant 'acme'*"])


def test_the_guard_says_it_without_the_machinery_of_runners(pytester: pytest.Pytester, kind: str) -> None:
    source = f"""
{kind} test_leaves(no_context_left):
{LEAVES}
"""
    result = passes(pytester, source, failed=times(kind))
    for machinery in ("contextlib.py", "get_runner", "run_until_complete", "hookimpl"):
        result.stdout.no_fnmatch_line(f"*{machinery}*")


def test_a_check_of_the_test_s_own_keeps_its_place(pytester: pytest.Pytester) -> None:
    source = f"""
from asgi_context.testing import no_context_left as nothing_left
def test_leaves(no_context_left):
    with nothing_left():
{LEAVES.replace("    ", "        ")}
"""
    result = passes(pytester, source, failed=1)
    result.stdout.fnmatch_lines([">*with nothing_left():"])


def test_the_guard_goes_with_a_test_that_is_bound(pytester: pytest.Pytester, kind: str) -> None:
    source = f"""
{kind} test_leaves(no_context_left, bound_context):
{LEAVES}
{kind} test_does_not(no_context_left, bound_context): ...
"""
    passes(pytester, source, failed=times(kind), passed=times(kind))


def test_the_option_guards_all_tests(pytester: pytest.Pytester, kind: str) -> None:
    source = f"""
{kind} test_leaves():
{LEAVES}
{kind} test_does_not(): ...
"""
    passes(pytester, source, "-o", "asgi_context_guard=true", failed=times(kind), passed=times(kind))


def test_the_guard_finds_what_a_fixture_leaves(pytester: pytest.Pytester) -> None:
    source = f"""
@pytest.fixture
def at_its_start():
{LEAVES}
@pytest.fixture
def at_its_end():
    yield
{LEAVES}
@pytest.fixture
def and_fails():
{LEAVES}
    raise KeyError("mine")
def test_start(at_its_start): ...
def test_end(at_its_end): ...
def test_failure(and_fails): ...
class TestMethods:
    def setup_method(self):
{LEAVES.replace("    ", "        ")}
    def test_method(self): ...
def test_finds_nothing():
    assert current_context(None) is None
"""
    result = passes(pytester, source, "-o", "asgi_context_guard=true", passed=4, errors=5)
    for name in ("at_its_start", "at_its_end", "and_fails", "*setup_method*"):
        result.stdout.fnmatch_lines([f"*left bound at the end, by the fixture '{name}': asgi_context, for the tenant*"])
    result.stdout.fnmatch_lines(["*KeyError: 'mine'*"])


def test_what_a_fixture_leaves_as_it_fails_to_end_is_taken_away(pytester: pytest.Pytester) -> None:
    source = f"""
from asgi_context.values import request_context
@pytest.fixture
def fails():
    yield
{LEAVES}
    raise KeyError("mine")
@pytest.fixture
def leaves_both():
{LEAVES}
    stack.enter_context(request_context(a=1))
def test_fails(fails): ...
def test_leaves(leaves_both): ...
def test_finds_nothing():
    assert current_context(None) is None
    assert get_from_context("a") is None
"""
    result = passes(pytester, source, "-o", "asgi_context_guard=true", passed=3, errors=2)
    result.stdout.fnmatch_lines(["*KeyError: 'mine'*"])
    result.stdout.fnmatch_lines(["*by the fixture 'leaves_both': asgi_context, asgi_context.values, for the tenant*"])


def test_what_broader_fixtures_bind_is_nothing_left(pytester: pytest.Pytester) -> None:
    source = """
@pytest.fixture(scope="session")
def outer():
    with bind_context(Identity("outer")):
        yield
@pytest.fixture(scope="class")
def inner(outer):
    with bind_context(Identity("inner")):
        yield
@pytest.fixture
def cart(request):
    request.getfixturevalue("inner")
    with bind_context(Identity("cart")):
        yield
class TestInner:
    def test_first(self, cart):
        assert current_context().tenant == "cart"
    def test_last(self, inner):
        assert current_context().tenant == "inner"
def test_outer(outer):
    assert current_context().tenant == "outer"
"""
    passes(pytester, source, "-o", "asgi_context_guard=true", passed=3)


def test_nothing_is_said_of_fixtures_unless_it_is_asked_for(pytester: pytest.Pytester) -> None:
    source = f"""
@pytest.fixture
def leaves():
{LEAVES}
def test_asks(leaves, no_context_left): ...
def test_does_not(leaves): ...
"""
    passes(pytester, source, passed=2, errors=1)


@pytest.mark.parametrize("mark", ["asyncio", "anyio"])
def test_an_async_test_of_hypothesis_is_bound_and_checked(pytester: pytest.Pytester, mark: str) -> None:
    source = f"""
from hypothesis import given, settings, strategies
def some(test):
    return pytest.mark.{mark}(settings(max_examples=2, database=None)(given(n=strategies.integers())(test)))
@pytest.mark.bound_context("acme", "ann")
@some
async def test_bound(n):
    assert current_context().user == "ann"
@some
async def test_leaves(n):
{LEAVES}
@some
async def test_does_not(n): ...
"""
    n = times(mark)
    passes(pytester, source, "-o", "asgi_context_guard=true", passed=2 * n, failed=n)


def test_subtests_are_checked_with_their_test(pytester: pytest.Pytester) -> None:
    source = f"""
def test_leaves(subtests, no_context_left):
    with subtests.test("first"):
{LEAVES.replace("    ", "        ")}
    with subtests.test("second"):
        pass
"""
    result = passes(pytester, source, failed=1)
    result.stdout.fnmatch_lines(["*ContextLeftError*for the tenant 'acme'*"])


def test_a_test_that_fails_by_itself_says_why(pytester: pytest.Pytester) -> None:
    source = f"""
def test_fails(no_context_left):
{LEAVES}
    raise KeyError("mine")
def test_next(no_context_left):
    assert current_context(None) is None
"""
    result = passes(pytester, source, failed=1, passed=1)
    result.stdout.fnmatch_lines(["*KeyError: 'mine'*"])


def test_tests_that_are_no_functions_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makefile(".txt", test_document=">>> 1 + 1\n2\n")
    pytester.runpytest_inprocess("-o", "asgi_context_guard=true").assert_outcomes(passed=1)


def test_with_the_entry_point_it_is_one_plugin(pytester: pytest.Pytester) -> None:
    """Its name is that of the module, so that it is not registered twice where it is named on the command line."""
    points = [point for point in entry_points(group="pytest11") if point.value == "asgi_context._pytest"]
    assert all(point.name == point.value for point in points)


def test_the_option_goes_with_unittest(pytester: pytest.Pytester) -> None:
    source = """
import unittest
class Test(unittest.TestCase):
    def test_leaves(self):
        bind_context(Identity("acme")).__enter__()
    def test_does_not(self):
        pass
"""
    passes(pytester, source, "-o", "asgi_context_guard=true", failed=1, passed=1)


def test_async_tests_of_unittest_are_bound_and_checked(pytester: pytest.Pytester) -> None:
    source = f"""
import unittest
@pytest.mark.bound_context("acme", "ann")
class TestBound(unittest.IsolatedAsyncioTestCase):
    async def test_bound(self):
        self.assertEqual(current_context().user, "ann")
class TestUnbound(unittest.IsolatedAsyncioTestCase):
    async def test_leaves(self):
{LEAVES.replace("    ", "        ")}
    async def test_does_not(self):
        self.assertIsNone(current_context(None))
"""
    passes(pytester, source, "-o", "asgi_context_guard=true", failed=1, passed=2)


def test_clients_run_apps_for_whom_the_request_names(pytester: pytest.Pytester) -> None:
    source = """
import httpx, httpx2
from starlette.testclient import TestClient
async def who(scope, receive, send):
    context = current_context(None)
    body = b"nobody" if context is None else context.user.encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
APP = ContextMiddleware(who, tenant=from_header("x-tenant-id"), user=from_header("x-user-id"))
BOB = {"x-tenant-id": "acme", "x-user-id": "bob"}
pytestmark = [pytest.mark.bound_context("acme", "ann"), pytest.mark.usefixtures("no_context_left")]
@pytest.mark.anyio
@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_async(library):
    for app, user in ((APP, "bob"), (who, "ann")):  # without the middleware, the app sees the test's own
        async with library.AsyncClient(transport=library.ASGITransport(app), base_url="http://app") as client:
            assert (await client.get("/", headers=BOB)).text == user
        assert current_context().user == "ann"
def test_sync():
    for app, user in ((APP, "bob"), (who, "ann")):
        assert TestClient(app).get("/", headers=BOB).text == user
        assert current_context().user == "ann"
"""
    passes(pytester, source, passed=5)


def test_a_run_that_does_not_use_it_imports_no_integration(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]")
    pytester.makepyfile(
        "import sys\ndef test_it(): assert not {'asgi_context.' + name for name in ('jwt', 'otel', 'redis', 'sentry', 'tools')} & set(sys.modules)"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "asgi_context._pytest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=pytester.path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guide_s_tests_pass(pytester: pytest.Pytester) -> None:
    guide = (Path(__file__).parent.parent / "examples" / "README.md").read_text("utf-8")
    (snippet,) = (block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "no_context_left" in block)
    passes(pytester, snippet, passed=3)
