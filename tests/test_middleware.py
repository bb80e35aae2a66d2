"""The middleware binds on every connection, restores on every exit, and passes everything else on unchanged."""

import asyncio
import contextvars
import copy
import gc
from types import coroutine as types_coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from driver import Exchange, Seen, hello, http, run, websocket, who

from asgi_context import (
    ContextMiddleware,
    ContextNotBoundError,
    Identity,
    MemoryStore,
    agree,
    bind_context,
    constant,
    current_context,
    current_state,
    first_of,
    from_header,
    from_path,
    from_query,
    identity_from,
)
from asgi_context._context import Binding, Services, current_binding, make_binding
from asgi_context.errors import ContextClosedError
from asgi_context.values import get_from_context, request_context, update_request_context

pytestmark = pytest.mark.anyio

TENANT, USER = from_header("x-tenant-id"), from_header("x-user-id")


def wrap(app: Any, **options: Any) -> ContextMiddleware:
    return ContextMiddleware(app, **({"tenant": TENANT, "user": USER} | options))


@pytest.fixture(params=[http, websocket], ids=["http", "websocket"])
def scope_of(request: pytest.FixtureRequest) -> Any:
    return request.param


# Binding


async def test_the_app_knows_its_tenant_and_user(scope_of: Any) -> None:
    app = Seen(current_context)
    await run(wrap(app), scope_of(*who("acme", "ann")))
    assert [(context.tenant, context.user) for context in app.seen] == [("acme", "ann")]
    assert current_context(None) is None


async def test_without_a_user_extractor_the_user_is_none(scope_of: Any) -> None:
    app = Seen(current_context)
    await run(ContextMiddleware(app, tenant=TENANT), scope_of(*who("acme", "ann")))
    assert (app.seen[0].tenant, app.seen[0].user) == ("acme", None)


async def test_a_whole_identity_brings_its_claims() -> None:
    app = Seen(current_context)
    await run(ContextMiddleware(app, identity=lambda scope: Identity("acme", "ann", {"role": "admin"})), http())
    assert app.seen[0].claims == {"role": "admin"}


async def test_extractors_may_be_coroutine_functions_and_mixed_with_others() -> None:
    async def tenant(scope: Any) -> str | None:
        await anyio.lowlevel.checkpoint()
        return "acme" if scope["path"] == "/acme" else None

    app = Seen(current_context)
    middleware = ContextMiddleware(
        app,
        tenant=agree(first_of(tenant, from_query("tenant")), from_header("x-tenant-id")),
        user=first_of(USER, constant("anonymous")),
        request_id=tenant,
    )
    await run(middleware, http(path="/acme"))
    await run(middleware, http(query_string=b"tenant=globex"))
    await run(middleware, http(*who("acme", "ann"), path="/acme"))
    assert [(c.tenant, c.user) for c in app.seen] == [("acme", "anonymous"), ("globex", "anonymous"), ("acme", "ann")]
    assert app.seen[0].request_id == "acme"
    assert (await run(middleware, http(*who("globex", "ann"), path="/acme"))).problem["code"] == "tenant_mismatch"


async def test_every_connection_has_a_request_id_of_its_own(scope_of: Any) -> None:
    app = Seen(lambda: current_context().request_id)
    middleware = wrap(app)
    for _ in range(2):
        await run(middleware, scope_of(*who()))
    assert len(set(app.seen)) == 2


async def test_a_trusted_request_id_is_taken_and_a_bad_one_replaced() -> None:
    app = Seen(lambda: current_context().request_id)
    middleware = wrap(app, request_id=from_header("x-request-id"))
    await run(middleware, http(*who(), (b"x-request-id", b"given")))
    for bad in (
        [(b"x-request-id", b"a b")],
        [(b"x-request-id", b"a")] * 2,
        [(b"x_request_id", b"a")],
        [(b"x-request-id", b"a" * 129)],
        [],
    ):
        await run(middleware, http(*who(), *bad))
    assert app.seen[0] == "given"
    assert all(len(made) == 32 for made in app.seen[1:])
    assert len(set(app.seen)) == 6


async def test_a_request_id_that_no_header_or_log_line_can_hold_is_replaced() -> None:
    app = Seen(lambda: current_context().request_id)
    middleware = wrap(app, request_id=from_header("x-request-id", valid=len), echo_request_id="x-request-id")
    for bad in (b"a\r\nb", b"\x1b[31m", "é".encode()):
        exchange = await run(middleware, http(*who(), (b"x-request-id", bad)))
        assert exchange.header(b"x-request-id") == [app.seen[-1].encode()]
        assert len(app.seen[-1]) == 32


async def test_state_belongs_to_tenant_and_user_and_values_to_the_request() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert get_from_context("seen") is None
        update_request_context(seen=True)
        state = current_state()
        assert state is current_state()
        await state.update_field("visits", "count", await state.get_field("visits", "count", 0) + 1)
        await send(await state.get("visits"))

    middleware = wrap(app)
    for tenant, user, count in (("acme", "ann", 1), ("acme", "ann", 2), ("acme", "bob", 1), ("globex", "ann", 1)):
        assert (await run(middleware, http(*who(tenant, user)))).sent == [{"count": count}]


async def test_two_middlewares_do_not_share_a_store_unless_it_was_given() -> None:
    app = Seen(current_state)
    store = MemoryStore()
    for middleware in (wrap(app), wrap(app), wrap(app, store=store), wrap(app, store=store)):
        await run(middleware, http(*who()))
    first, second, third, fourth = (state._store for state in app.seen)
    assert first is not second
    assert third is fourth is store


async def test_known_identifiers_are_not_mixed_up_when_there_are_more_than_are_remembered() -> None:
    app = Seen(lambda: (current_context().tenant, current_context().user))
    middleware = wrap(app)
    users = [(f"t{number % 7}", f"u{number}") for number in range(9000)]
    for tenant, user in users + users[:10]:
        await run(middleware, http(*who(tenant, user)))
    assert app.seen == users + users[:10]
    assert len(middleware._recall.__self__) <= 8192


@pytest.mark.parametrize("value", [b"acme" + b" " * 600, b" acme", b"acme\t"])
async def test_what_must_be_trimmed_is_not_remembered(value: bytes) -> None:
    """Only values that are identifiers as they came: so each takes at most 128 bytes."""
    app = Seen(current_context)
    middleware = wrap(app)
    await run(middleware, http((b"x-tenant-id", value), (b"x-user-id", b"ann")))
    assert app.seen[0].tenant == "acme"
    assert list(middleware._recall.__self__) == [b"ann"]


async def test_tenant_and_user_may_be_the_same_header() -> None:
    app = Seen(current_context)
    await run(ContextMiddleware(app, tenant=TENANT, user=TENANT), http(*who("acme", "ann")))
    assert (app.seen[0].tenant, app.seen[0].user) == ("acme", "acme")


async def test_a_rule_that_changes_its_mind_is_obeyed() -> None:
    active = {"acme"}
    middleware = wrap(hello, tenant=from_header("x-tenant-id", valid=lambda tenant: tenant in active))
    assert (await run(middleware, http(*who()))).status == 200
    active.clear()
    assert (await run(middleware, http(*who()))).problem["code"] == "tenant_invalid"


# Nothing is believed that was not said in this connection


async def test_what_the_server_leaves_bound_is_not_believed(scope_of: Any) -> None:
    """Servers run a request in the context of the one before."""
    app = Seen(lambda: current_context(None))
    seen_by_extractor = []

    def tenant(scope: Any) -> str | None:
        seen_by_extractor.append((current_context(None), get_from_context("a")))
        return None

    with bind_context(Identity("other"), store=MemoryStore()) as leaked, request_context(a="leaked"):
        await run(wrap(app, missing="unbound"), scope_of())
        await run(wrap(app, exempt=lambda scope: True), scope_of(*who()))
        await run(ContextMiddleware(app, tenant=tenant, missing="unbound"), scope_of())
        assert current_context() is leaked
    assert app.seen == [None, None, None]
    assert seen_by_extractor == [(None, None)]


async def test_values_from_outside_do_not_reach_an_extractor_that_runs_for_nobody() -> None:
    seen = []

    def tenant(scope: Any) -> None:
        seen.append(get_from_context("a"))

    with request_context(a="outside"):
        await run(ContextMiddleware(hello, tenant=tenant, missing="unbound"), http())
    assert seen == [None]


async def test_a_refused_request_leaves_nothing_of_the_one_before_to_its_answer() -> None:
    def on_reject(rejection: Any, scope: Any) -> Any:
        seen.append(current_context(None))
        return Seen(lambda: seen.append(current_context(None)))

    seen: list[Any] = []
    with bind_context(Identity("other")):
        await run(wrap(hello, on_reject=on_reject), http())
    assert seen == [None, None]


async def test_unbound_means_no_context_no_state_and_no_values() -> None:
    def look() -> None:
        for read in (current_context, current_state, lambda: update_request_context(a=1)):
            with pytest.raises(ContextNotBoundError):
                read()
        assert get_from_context("a") is None

    await run(wrap(Seen(look), missing="unbound"), http())


async def test_in_an_unbound_request_an_identity_can_be_bound_by_hand() -> None:
    """As a login does; the request id and the store carry over."""

    def log_in() -> tuple[str, object]:
        with bind_context(Identity("acme", "ann")) as context:
            return context.request_id, current_state()._store

    app = Seen(log_in)
    middleware = wrap(app, missing="unbound", request_id=from_header("x-request-id"))
    await run(middleware, http((b"x-request-id", b"given")))
    assert app.seen == [("given", middleware._services.store)]


async def test_a_task_that_an_extractor_starts_is_nobodys(asyncio_only: None) -> None:
    """A refresher of keys, say: it copies what is bound while it is started, and lives on."""

    class Refreshed:
        def open(self) -> None:
            tasks.append(asyncio.create_task(refresh()))

        def __call__(self, scope: Any) -> str | None:
            tasks.append(asyncio.create_task(refresh()))
            return "id"

    async def refresh() -> object:
        await ended.wait()
        return current_context(None), current_state(None), get_from_context("a")

    def exempt(scope: Any) -> bool:
        tasks.append(asyncio.create_task(refresh()))
        return False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        update_request_context(a=1)
        seen.append(current_context().tenant)

    ended = asyncio.Event()
    tasks: list[asyncio.Task[object]] = []
    seen: list[str] = []
    for options in (
        {"request_id": Refreshed()},
        {"exempt": exempt},
        {"tenant": first_of(Refreshed(), TENANT)},
        {"user": first_of(Refreshed())},
    ):
        await run(wrap(app, **options), http(*who()))
    ended.set()
    assert len(seen) == 4
    assert len(tasks) == 7
    assert await asyncio.gather(*tasks) == [(None, None, None)] * 7


@pytest.mark.parametrize("spelling", [b"X-Tenant-Id", b"X-TENANT-ID", b"x-Tenant-ID"])
@pytest.mark.parametrize("request_id", [None, from_header("x-request-id")])
async def test_header_names_count_in_whatever_case_the_server_hands_them_over(spelling: bytes, request_id: Any) -> None:
    """ASGI: "should be lowercased, but it is not required"."""
    app = Seen(lambda: current_context().tenant)
    middleware = wrap(app, request_id=request_id)
    user = (b"X-User-Id", b"ann")
    await run(middleware, http(user, (spelling, b"acme")))
    assert app.seen == ["acme"]
    exchange = await run(middleware, http(user, (spelling, b"acme"), (b"x-tenant-id", b"evil")))
    assert exchange.problem["code"] == "tenant_repeated"
    exchange = await run(middleware, http(user, (spelling.replace(b"-", b"_"), b"acme")))
    assert exchange.problem["code"] == "tenant_invalid"
    preflight = http((b"Origin", b"a"), (b"Access-Control-Request-Method", b"b"), method="OPTIONS")
    assert (await run(wrap(hello), preflight)).status == 200


async def test_headers_may_come_as_an_iterator_and_the_app_can_still_read_them() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(list(scope["headers"]))

    scope = http()
    scope["headers"] = iter(who())
    await run(wrap(app), scope)
    assert seen == [who()]


async def test_a_scope_with_a_binding_can_be_copied_deeply() -> None:
    """As debuggers and error reporters do."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        copied.append(copy.deepcopy(scope))

    copied: list[Any] = []
    await run(wrap(app), http(*who()))
    assert copied[0]["path"] == "/"


# Restoring


class LeftError(Exception):
    pass


@pytest.mark.parametrize("how", ["return", "exception", "cancellation", "system exit"])
async def test_on_every_exit_what_was_before_is_bound_again(scope_of: Any, how: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        update_request_context(a=1)
        kept.append(contextvars.copy_context())
        if how == "exception":
            raise LeftError
        if how == "system exit":
            raise SystemExit
        if how == "cancellation":
            cancel.cancel()
            await anyio.sleep(1)

    kept: list[contextvars.Context] = []
    with bind_context(Identity("before")) as before, anyio.CancelScope() as cancel:
        try:
            await run(wrap(app), scope_of(*who()))
        except (LeftError, SystemExit):
            pass
        finally:
            assert current_context() is before
    assert kept[0].run(current_context).tenant == "acme"
    with pytest.raises(ContextClosedError):
        kept[0].run(get_from_context, "a")


async def test_a_coroutine_that_is_closed_elsewhere_revokes_its_binding() -> None:
    """As the garbage collector does with a request whose loop has gone."""

    @types_coroutine
    def pause() -> Any:
        yield

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await pause()

    coroutine = wrap(app)(http(*who()), None, None)  # type: ignore[arg-type]
    entered = contextvars.copy_context()
    entered.run(coroutine.send, None)
    assert entered.run(current_context).tenant == "acme"
    coroutine.close()
    with pytest.raises(ContextClosedError, match="revoked"):
        entered.run(current_context)


async def test_a_task_that_outlives_its_request_keeps_identity_and_state(asyncio_only: None) -> None:
    async def outlive() -> tuple[str, Any]:
        await ended.wait()
        with pytest.raises(ContextClosedError):
            get_from_context("a")
        await current_state().update_field("late", "by", current_context().request_id)
        return current_context().tenant, await current_state().get("late")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(outlive()))

    ended = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []
    middleware = wrap(app)
    await run(middleware, http(*who("acme")))
    await run(middleware, http(*who("globex")))
    ended.set()
    assert [tenant for tenant, _ in await asyncio.gather(*tasks)] == ["acme", "globex"]


async def test_nothing_of_a_request_is_left_to_the_garbage_collector() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_context()
        current_state()
        update_request_context(a=1)

    middleware = wrap(app, echo_request_id="x-request-id")
    await run(middleware, http(*who()))
    gc.collect()
    gc.disable()
    try:
        await run(middleware, http(*who()))
        assert not [
            found for found in gc.get_objects() if type(found) is Binding and found.services is middleware._services
        ]
    finally:
        gc.enable()


# Nesting


async def test_another_middleware_inside_binds_for_itself_and_the_outer_is_restored() -> None:
    async def outside(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_context().tenant)
        await inner(scope, receive, send)
        seen.append(current_context().tenant)

    seen: list[str] = []
    app = Seen(lambda: seen.append(current_context().tenant))
    inner = ContextMiddleware(app, tenant=constant("inner"))
    await run(wrap(outside), http(*who("outer")))
    assert seen == ["outer", "inner", "outer"]


async def test_an_inner_one_that_finds_nobody_does_not_inherit_from_the_outer() -> None:
    app = Seen(lambda: current_context(None))
    inner = ContextMiddleware(app, tenant=from_header("x-other"), missing="unbound")
    await run(wrap(inner), http(*who("outer")))
    assert app.seen == [None]


async def test_the_same_instance_inside_passes_through() -> None:
    calls = []

    def tenant(scope: Any) -> str:
        calls.append(scope)
        return "acme"

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        context = current_context()
        if len(seen) == 0:
            seen.append(context)
            await middleware(scope, receive, send)
            seen.append(current_context())
        else:
            seen.append(context)

    seen: list[Any] = []
    middleware = ContextMiddleware(outside, tenant=tenant)
    await run(middleware, http())
    assert len(calls) == 1
    assert seen[0] is seen[1] is seen[2]


async def test_a_sub_request_with_headers_of_its_own_is_bound_for_itself() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_context().tenant)
        if len(seen) == 1:
            await middleware({**scope, "headers": who("globex")}, receive, send)
            seen.append(current_context().tenant)

    seen: list[str] = []
    middleware = wrap(app)
    await run(middleware, http(*who("acme")))
    assert seen == ["acme", "globex", "acme"]


async def test_a_scope_whose_headers_were_copied_is_still_the_same_request() -> None:
    """Starlette puts a copy of the list into the scope as soon as somebody looks at the headers."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_context())
        if len(seen) == 1:
            scope["headers"] = list(scope["headers"])
            await middleware(scope, receive, send)
            await ContextMiddleware(app, tenant=constant("inner"))(scope, receive, send)

    middleware = wrap(app)
    await run(middleware, http(*who("acme")))
    assert seen[1] is seen[0]
    assert (seen[2].tenant, seen[2].request_id) == ("inner", seen[0].request_id)


@pytest.mark.parametrize("change", [{"path": "/b/x"}, {"query_string": b"t=b"}, {"type": "websocket"}])
async def test_a_sub_request_for_something_else_is_authorized_for_itself(change: Any) -> None:
    """Though its headers are the same: they need not be all that says who asks."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if len(asked) == 1:
            await middleware({**scope, **change}, receive, send)

    def authorize(context: Any, scope: Any) -> bool:
        asked.append(context.tenant)
        return True

    asked: list[str] = []
    tenant = first_of(from_query("t"), from_path("/{tenant}/x"))
    middleware = ContextMiddleware(app, tenant=tenant, authorize=authorize)
    await run(middleware, http(path="/a/x"))
    assert asked == ["a", "a" if "type" in change else "b"]


async def test_what_a_refused_request_has_started_is_not_let_in_by_its_scope(asyncio_only: None) -> None:
    async def authorize(context: Any, scope: Any) -> bool:
        tasks.append(asyncio.create_task(later(dict(scope))))
        return False

    async def later(scope: Any) -> int:
        await ended.wait()
        return (await run(middleware, scope)).status

    tasks: list[asyncio.Task[int]] = []
    ended = asyncio.Event()
    middleware = wrap(hello, authorize=authorize)
    assert (await run(middleware, http(*who()))).status == 403
    ended.set()
    assert await tasks[0] == 403
    tasks[1].cancel()


async def test_what_is_bound_by_hand_in_an_answer_has_the_request_id_that_is_echoed() -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        with bind_context(Identity("audit")) as context:
            seen.append(context.request_id.encode())
        await hello(scope, receive, send)

    seen: list[bytes] = []
    exchange = await run(wrap(hello, on_reject=lambda *_: answer, echo_request_id="x-request-id"), http())
    assert exchange.header(b"x-request-id") == seen


async def test_values_of_one_extractor_are_out_of_reach_for_that_of_another_request() -> None:
    async def tenant(scope: Any) -> str:
        seen.append(get_from_context("secret"))
        if scope["path"] == "/":
            with request_context(secret="of the first"):
                await run(middleware, http(path="/inner"))
                seen.append(get_from_context("secret"))
        return "acme"

    seen: list[Any] = []
    middleware = ContextMiddleware(hello, tenant=tenant)
    await run(middleware, http())
    assert seen == [None, None, "of the first"]


async def test_two_middlewares_tried_one_after_the_other_agree_on_the_request_id() -> None:
    async def cascade(scope: Any, receive: Any, send: Any) -> None:
        for inner in (ContextMiddleware(app, tenant=constant("a")), ContextMiddleware(app, tenant=constant("b"))):
            await inner(scope, receive, send)

    app = Seen(lambda: current_context().request_id)
    await run(wrap(cascade), http(*who()))
    assert len(set(app.seen)) == 1


async def test_an_answer_that_is_wrapped_itself_has_the_request_id_that_is_echoed() -> None:
    app = Seen(lambda: current_context().request_id.encode())
    answer = ContextMiddleware(app, tenant=constant("public"))
    exchange = await run(wrap(hello, on_reject=lambda *_: answer, echo_request_id="x-request-id"), http())
    assert exchange.header(b"x-request-id") == app.seen


async def test_a_sub_request_of_an_exempt_one_is_not_exempt_with_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_context(None))
        if len(seen) == 1:
            await middleware({**scope, "path": "/"}, receive, send)

    seen: list[Any] = []
    middleware = wrap(app, exempt=lambda scope: scope["path"] == "/public")
    await run(middleware, http(*who(), path="/public"))
    assert seen[0] is None
    assert seen[1].tenant == "acme"


async def test_nested_middlewares_agree_on_the_request_id() -> None:
    app = Seen(lambda: current_context().request_id.encode())
    inner = ContextMiddleware(app, tenant=constant("inner"), request_id=constant("other"))
    exchange = await run(wrap(inner, echo_request_id="x-request-id"), http(*who()))
    assert exchange.header(b"x-request-id") == app.seen
    await run(wrap(inner, missing="unbound"), http())
    assert app.seen[1] == b"other", "nobody had asked for an id before"


async def test_a_scope_that_is_passed_a_second_time_is_bound_again() -> None:
    app = Seen(lambda: current_context().tenant)
    middleware = wrap(app)
    scope = http(*who())
    await run(middleware, scope)
    await run(middleware, scope)
    assert app.seen == ["acme", "acme"]


async def test_a_scope_that_is_run_where_its_binding_is_not_bound_is_bound_again() -> None:
    """A mark in the scope is not enough: another thread or task may have another context."""

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_context().tenant)
        if len(seen) == 1:
            with bind_context(Identity("by hand")):
                await middleware(scope, receive, send)

    seen: list[str] = []
    middleware = wrap(outside)
    await run(middleware, http(*who()))
    assert seen == ["acme", "acme"]


# Transparency


@pytest.mark.parametrize("kind", ["lifespan", "future.protocol"])
async def test_other_scopes_pass_unchanged(kind: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append((scope, receive, send, current_context(None)))

    passed: list[Any] = []
    scope = {"type": kind, "asgi": {"version": "3.0"}}
    exchange = Exchange()
    receive, send = exchange.receive, exchange.send
    await wrap(app)(scope, receive, send)
    assert passed == [(scope, receive, send, None)]
    assert scope == {"type": kind, "asgi": {"version": "3.0"}}


async def test_scope_receive_and_send_are_the_servers_own(scope_of: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append((scope, receive, send))

    passed: list[Any] = []
    scope = scope_of(*who())
    before = dict(scope)
    exchange = Exchange()
    receive, send = exchange.receive, exchange.send
    await wrap(app, authorize=lambda context, scope: True, exempt=lambda scope: False)(scope, receive, send)
    assert passed[0][0] is scope, "what the app publishes in the scope is read outside"
    assert passed[0][1:] == (receive, send)
    assert {key: value for key, value in scope.items() if key != "asgi_context"} == before


async def test_the_apps_exceptions_pass_unchanged() -> None:
    error = KeyError("the app's own")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        await run(wrap(app), http(*who()))
    assert caught.value is error
    assert caught.value.__context__ is None


async def test_a_binding_made_in_place_has_all_that_a_made_one_has() -> None:
    def slots(binding: Binding) -> set[str]:
        return {name for name in Binding.__slots__ if hasattr(binding, name)}

    app = Seen(lambda: slots(current_binding()))
    await run(wrap(app), http(*who()))
    assert app.seen == [slots(make_binding(None, Services(), None))] == [set(Binding.__slots__)]


async def test_no_state_of_a_request_is_on_the_middleware() -> None:
    middleware = wrap(Seen(current_context))
    before = {name: value for name, value in vars(middleware).items() if name != "_recall"}
    await run(middleware, http(*who()))
    assert {name: value for name, value in vars(middleware).items() if name != "_recall"} == before


def test_its_repr_names_the_app() -> None:
    assert repr(wrap(hello)) == f"<ContextMiddleware of {hello!r}>"


# exempt, preflights, authorize


async def test_an_exempt_request_runs_unbound_and_asks_no_extractor(scope_of: Any) -> None:
    def explode(scope: Any) -> str:
        raise AssertionError

    app = Seen(lambda: current_context(None))
    middleware = ContextMiddleware(
        app, tenant=explode, request_id=explode, authorize=explode, exempt=lambda scope: scope["path"] == "/health"
    )
    await run(middleware, scope_of(*who(), path="/health"))
    assert app.seen == [None]


PREFLIGHT = [(b"origin", b"https://example.com"), (b"access-control-request-method", b"POST")]


async def test_preflights_are_exempt_whatever_else_they_carry() -> None:
    app = Seen(lambda: current_context(None))
    assert (await run(wrap(app), http(*PREFLIGHT, method="OPTIONS"))).status == 200
    assert (await run(wrap(app), http(*PREFLIGHT, *who(), *who(), method="OPTIONS"))).status == 200
    assert app.seen == [None, None]


@pytest.mark.parametrize(
    "scope",
    [
        http(method="OPTIONS"),
        http(PREFLIGHT[0], method="OPTIONS"),
        http(PREFLIGHT[1], method="OPTIONS"),
        http(*PREFLIGHT, method="POST"),
        websocket(*PREFLIGHT),
    ],
)
async def test_what_only_resembles_a_preflight_is_not_exempt(scope: Any) -> None:
    app = Seen(current_context)
    await run(wrap(app), scope)
    assert app.seen == []


@pytest.mark.parametrize("waits", [False, True])
async def test_authorize_decides_with_the_context_bound(scope_of: Any, waits: bool) -> None:
    def decide(context: Any, scope: Any) -> bool:
        assert context is current_context()
        return bool(context.user == "ann")

    async def decide_later(context: Any, scope: Any) -> bool:
        await anyio.lowlevel.checkpoint()
        return decide(context, scope)

    app = Seen(current_context)
    middleware = wrap(app, authorize=decide_later if waits else decide)
    await run(middleware, scope_of(*who("acme", "ann")))
    assert len(app.seen) == 1
    exchange = await run(middleware, scope_of(*who("acme", "bob")))
    assert len(app.seen) == 1
    assert exchange.sent[0]["type"] == "websocket.close" or exchange.problem["code"] == "tenant_forbidden"
    assert exchange.sent[0].get("status", 403) == 403


class Wrapped:
    def __init__(self, verdict: object) -> None:
        self.verdict = verdict

    def __await__(self) -> Any:
        return self.verdict
        yield


@pytest.mark.parametrize("verdict", [None, 0, "", "no", [], ["admin"], hello, Wrapped("no"), Wrapped(Wrapped(True))])
async def test_authorize_must_say_yes_or_no_and_nothing_else_lets_a_user_in(verdict: object) -> None:
    exchange = await run(wrap(hello, authorize=lambda context, scope: verdict), http(*who()))
    assert exchange.problem["code"] == "internal_error"
    assert (await run(wrap(hello, authorize=lambda context, scope: Wrapped(True)), http(*who()))).status == 200
    assert (await run(wrap(hello, authorize=lambda context, scope: Wrapped(False)), http(*who()))).status == 403


async def test_who_is_not_authorized_is_not_bound_for_the_answer_either() -> None:
    async def authorize(context: Any, scope: Any) -> bool:
        await current_state().update_field("members", "count", 1)
        update_request_context(seen="members")
        kept.append(contextvars.copy_context())
        return False

    def on_reject(rejection: Any, scope: Any) -> None:
        seen.append((current_context(None), current_state(None), get_from_context("seen")))

    kept: list[contextvars.Context] = []
    seen: list[Any] = []
    await run(wrap(hello, authorize=authorize, on_reject=on_reject), http(*who()))
    assert seen == [(None, None, None)]
    for read in (current_context, current_state, lambda: get_from_context("seen")):
        with pytest.raises(ContextClosedError, match="revoked"):
            kept[0].run(read)


async def test_who_leaves_while_authorize_decides_was_never_let_in() -> None:
    async def authorize(context: Any, scope: Any) -> bool:
        kept.append(contextvars.copy_context())
        cancel.cancel()
        await anyio.sleep(1)
        return True

    kept: list[contextvars.Context] = []
    with anyio.CancelScope() as cancel:
        await run(wrap(hello, authorize=authorize), http(*who()))
    with pytest.raises(ContextClosedError, match="refused"):
        kept[0].run(current_context)


async def test_authorize_is_not_asked_about_nobody() -> None:
    def explode(context: Any, scope: Any) -> bool:
        raise AssertionError

    app = Seen(lambda: current_context(None))
    await run(wrap(app, authorize=explode, missing="unbound"), http())
    assert app.seen == [None]


# echo_request_id


async def test_every_answer_carries_the_request_id(scope_of: Any) -> None:
    app = Seen(lambda: current_context().request_id.encode())
    exchange = await run(wrap(app, echo_request_id="X-Request-ID"), scope_of(*who()))
    assert exchange.header(b"x-request-id") == app.seen


async def test_the_apps_own_header_is_replaced_and_its_message_left_alone() -> None:
    message = {
        "type": "http.response.start",
        "status": 200,
        "headers": [[b"X-Request-Id", b"apps"], (b"a", b"b"), (b"x-request-id", b"2")],
    }

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(message)
        await send({"type": "http.response.body", "body": b"ok"})

    middleware = wrap(app, request_id=from_header("x-request-id"), echo_request_id="x-request-id")
    for given in (b"one", b"two"):
        exchange = await run(middleware, http(*who(), (b"x-request-id", given)))
        assert exchange.sent[0]["headers"] == [(b"a", b"b"), (b"x-request-id", given)]
    assert message["headers"] == [[b"X-Request-Id", b"apps"], (b"a", b"b"), (b"x-request-id", b"2")]


async def test_an_answer_may_have_no_headers_or_any_iterable_of_them() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.start", "status": 200, "headers": iter([(b"a", b"b")])})

    middleware = wrap(app, request_id=from_header("x-request-id"), echo_request_id="x-request-id")
    exchange = await run(middleware, http(*who(), (b"x-request-id", b"one")))
    assert [message["headers"] for message in exchange.sent] == [
        [(b"x-request-id", b"one")],
        [(b"a", b"b"), (b"x-request-id", b"one")],
    ]


@pytest.mark.parametrize(
    "scope", [http(), http(*PREFLIGHT, method="OPTIONS"), http(path="/health"), websocket(denial=True)]
)
async def test_refused_and_exempt_requests_carry_a_request_id_too(scope: Any) -> None:
    middleware = wrap(hello, echo_request_id="x-request-id", exempt=lambda scope: scope["path"] == "/health")
    exchange = await run(middleware, scope)
    assert len(exchange.header(b"x-request-id")[0]) == 32


# Options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "give identity=, tenant= or message="),
        ({"user": USER}, TypeError, "user= needs tenant="),
        ({"identity": TENANT, "tenant": TENANT}, TypeError, "identity= is a whole identity"),
        ({"identity": TENANT, "user": TENANT}, TypeError, "identity= is a whole identity"),
        ({"identity": "x-tenant"}, TypeError, "identity must be an extractor, a callable that takes the scope"),
        ({"identity": TENANT}, TypeError, "identity must be an extractor of Identity, and from_header"),
        ({"identity": first_of(TENANT, USER)}, TypeError, "identity must be an extractor of Identity"),
        ({"identity": agree(TENANT, lambda scope: None)}, TypeError, "identity must be an extractor of Identity"),
        ({"tenant": identity_from(tenant=TENANT)}, TypeError, "tenant must be an extractor of str"),
        ({"tenant": TENANT, "user": identity_from(tenant=TENANT)}, TypeError, "user must be an extractor of str"),
        ({"tenant": TENANT, "user": from_header("x_tenant_id")}, ValueError, "differ only in underscores"),
        ({"tenant": TENANT, "missing": ["reject"]}, ValueError, "missing must be"),
        ({"identity": Identity}, TypeError, "identity must be an extractor, not the class Identity"),
        ({"tenant": "x-tenant"}, TypeError, "tenant must be an extractor"),
        ({"tenant": TENANT, "user": 1}, TypeError, "user must be an extractor"),
        ({"tenant": TENANT, "request_id": "x"}, TypeError, "request_id must be"),
        ({"tenant": TENANT, "missing": "ignore"}, ValueError, "missing must be"),
        ({"tenant": TENANT, "exempt": ["/health"]}, TypeError, "exempt must be callable"),
        ({"tenant": TENANT, "authorize": True}, TypeError, "authorize must be callable"),
        ({"tenant": TENANT, "on_reject": 400}, TypeError, "on_reject must be callable"),
        ({"tenant": TENANT, "store": {}}, TypeError, "store must be a Store"),
        ({"tenant": TENANT, "store": MemoryStore}, TypeError, "store must be a Store"),
        ({"tenant": TENANT, "echo_request_id": True}, TypeError, "echo_request_id must be a str"),
        ({"tenant": TENANT, "echo_request_id": "x y"}, ValueError, "echo_request_id must be a token"),
        ({"tenant": TENANT, "unknown": 1}, TypeError, "unknown"),
    ],
)
def test_wrong_options_are_refused_at_construction_by_name(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ContextMiddleware(hello, **options)


def test_the_app_must_be_callable_and_the_only_positional_argument() -> None:
    with pytest.raises(TypeError, match="app must be an ASGI app"):
        ContextMiddleware("main:app", tenant=TENANT)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ContextMiddleware(hello, TENANT)  # type: ignore[misc]


async def coroutine_function(*_: Any) -> bool:
    return True


def generator_function(*_: Any) -> Any:
    yield True


class CoroutineCallable:
    async def __call__(self, *_: Any) -> bool:
        return True


@pytest.mark.parametrize("option", ["exempt", "on_reject"])
@pytest.mark.parametrize("hook", [coroutine_function, CoroutineCallable(), generator_function])
def test_exempt_and_on_reject_must_be_plain_functions(option: str, hook: Any) -> None:
    """A coroutine is true: every request would be exempt."""
    with pytest.raises(TypeError, match=f"{option} must be a plain function"):
        wrap(hello, **{option: hook})
