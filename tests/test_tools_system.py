"""A tool system of one's own, for each request, connection or message that asks for one, and gone with it."""

import asyncio
import gc
import json
import threading
import uuid
import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
from driver import Exchange, http, run, websocket, who
from pydantic import BaseModel
from resources import LONG, logged_errors, mount, quiet_loop, serve, spawn, turns

from asgi_context import (
    ContextClosedError,
    ContextNotBoundError,
    Identity,
    MemoryStore,
    bind_context,
    current_context,
    current_resource,
    current_state,
    json_message,
    message_context,
)
from asgi_context.errors import ToolDefinitionError, ToolOwnerError, UnsupportedLoopError
from asgi_context.tools import (
    AsyncBaseTool,
    ToolLimits,
    ToolSystem,
    ToolSystemFactory,
    current_tool_call,
)

pytestmark = pytest.mark.anyio
asyncio_only = pytest.fixture(quiet_loop)
logged = pytest.fixture(logged_errors)

CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}
GONE = {"type": "websocket.disconnect", "code": 1001}


class Remember(AsyncBaseTool):
    """Remember a colour."""

    colour: str

    async def _arun(self) -> list[str | None]:
        context = current_context()
        await self.ss.upsert("profile", {"colour": self.colour})
        found = await self.ss.get("profile")
        return [context.tenant, context.user, (found or {})["colour"]]


class RememberInThread(AsyncBaseTool):
    colour: str

    def run(self) -> list[str | None]:
        context = current_context()
        self.upsert_state("profile", {"colour": self.colour})
        found = self.get_state("profile")
        return [context.tenant, context.user, (found or {})["colour"]]


class Counting:
    """A class that is no model: each system has one of its own."""

    def __init__(self) -> None:
        self.calls = 0

    def run(self) -> int:
        self.calls += 1
        return self.calls


async def whoami() -> list[str | None]:
    """Say who asks."""
    return [current_context().tenant, current_context().user]


TOOLS: list[Any] = [Remember, RememberInThread, Counting, whoami]


def system_of(tools: Any = None, **options: Any) -> dict[type, Any]:
    return {ToolSystem: ToolSystemFactory(TOOLS if tools is None else tools, **options)}


class Wire(Exchange):
    """A WebSocket whose client says what it has to say, and goes."""

    def __init__(self, *events: Any) -> None:
        super().__init__([CONNECT, *events, GONE])

    @property
    def texts(self) -> list[Any]:
        return [json.loads(message["text"]) for message in self.sent if message["type"] == "websocket.send"]

    async def run(self, app: Any, *headers: Any, **options: Any) -> None:
        middleware = mount(app, system_of(), **options)
        async with asyncio.timeout(LONG):
            await middleware(websocket(*(headers or who())), self.receive, self.send)


# --- what it is


async def test_a_request_has_one_system_made_when_it_is_first_asked_for(asyncio_only: None) -> None:
    built: list[str] = []

    class Noting:
        def __init__(self) -> None:
            built.append("built")

        def run(self) -> None: ...

    async def handle() -> None:
        assert built == []
        system, other = await asyncio.gather(current_resource(ToolSystem), current_resource(ToolSystem))
        assert system is other is await current_resource(ToolSystem)
        assert built == ["built"]

    resources = system_of([Noting])
    assert built == []
    await serve(handle, resources)

    async def asks_not() -> None: ...

    async def asks_again() -> None:
        await current_resource(ToolSystem)

    await serve(asks_not, resources)
    assert built == ["built"]
    await serve(asks_again, resources)
    assert built == ["built"] * 2


async def test_it_has_registry_dispatcher_tools_and_a_correlation_id(asyncio_only: None) -> None:
    async def handle() -> None:
        system = await current_resource(ToolSystem)
        assert system.registry.list() == ["Remember", "RememberInThread", "Counting", "whoami"]
        assert system.dispatcher.registry is system.registry
        assert system.tools == [system.registry.get(name) for name in system.registry.list()]
        assert system.tools[0] is Remember
        assert isinstance(system.tools[2], Counting)
        assert str(uuid.UUID(system.correlation_id)) == system.correlation_id
        assert system.dispatcher.correlation_id == system.correlation_id
        result = await system.dispatcher.dispatch("whoami")
        assert result.value == ["acme", "ann"]
        assert result.call_id.startswith(system.correlation_id)

    await serve(handle, system_of())


async def test_a_mapping_names_the_tools(asyncio_only: None) -> None:
    async def handle() -> None:
        system = await current_resource(ToolSystem)
        assert system.registry.list() == ["first", "second"]
        assert (await system.dispatcher.dispatch("second")).value == ["acme", "ann"]

    await serve(handle, system_of({"first": whoami, "second": whoami}))


async def test_the_options_are_those_of_the_dispatcher(asyncio_only: None) -> None:
    async def permit(context: Any, name: str, arguments: Any) -> bool:
        return name != "whoami"

    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    def where() -> str:
        return threading.current_thread().name

    async def handle() -> None:
        dispatcher = (await current_resource(ToolSystem)).dispatcher
        assert (await dispatcher.dispatch("whoami")).code == "not_permitted"
        assert (await dispatcher.dispatch("hang")).code == "tool_timeout"
        results = [await dispatcher.dispatch("where") for _ in range(2)]
        assert "mine" in results[0].value
        assert results[1].code == "rate_limited"

    resources = system_of(
        [whoami, hang, where], timeout=1, pool="mine", permit=permit, user_limits=ToolLimits(per_minute=2)
    )
    app = mount_handle(handle, resources, pools={"mine": 1, "tool": 1})
    async with asyncio.timeout(LONG):
        assert (await run(app, http(*who()))).status == 200
        await app.close()


def mount_handle(handle: Callable[[], Any], resources: Any, **options: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handle()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    return mount(app, resources, **options)


async def test_a_tenants_limit_holds_over_the_systems_of_all_its_requests(asyncio_only: None) -> None:
    codes: list[str | None] = []

    async def handle() -> None:
        system = await current_resource(ToolSystem)
        codes.append((await system.dispatcher.dispatch("whoami")).code)

    app = mount_handle(handle, system_of(tenant_limits=ToolLimits(per_minute=3)))
    for user in ("ann", "bob", "cy", "dan", "eve"):
        await run(app, http(*who("acme", user)))
    await run(app, http(*who("globex", "bob")))
    assert codes == [None, None, None, "rate_limited", "rate_limited", None]


# --- for what


async def test_over_http_there_is_no_bridge(asyncio_only: None) -> None:
    async def handle() -> None:
        system = await current_resource(ToolSystem)
        assert system.bridge is None
        assert (await system.dispatcher.dispatch("whoami")).ok

    await serve(handle, system_of())


async def test_a_connection_has_one_system_and_is_told_of_its_calls(asyncio_only: None) -> None:
    wire = Wire({"type": "websocket.receive", "text": "1"}, {"type": "websocket.receive", "text": "2"})
    systems: list[ToolSystem] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        while (await receive())["type"] == "websocket.receive":
            system = await current_resource(ToolSystem)
            systems.append(system)
            result = await system.dispatcher.dispatch("whoami", call_id="call-1")
            assert result.value == ["acme", "ann"]
            await send({"type": "websocket.send", "text": '{"type": "answer"}'})

    await wire.run(app)
    assert systems[0] is systems[1]
    kinds = [text["type"] for text in wire.texts]
    assert kinds == ["tool_started", "tool_completed", "answer"] * 2
    for text in wire.texts:
        if text["type"] != "answer":
            assert (text["tool"], text["call_id"]) == ("whoami", "call-1")
            assert text["correlation_id"] == systems[0].correlation_id


async def test_under_another_name_it_has_a_bridge_as_well(asyncio_only: None) -> None:
    class MyTools: ...

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        system: Any = await current_resource(MyTools)
        await system.dispatcher.dispatch("whoami")

    wire = Wire()
    await mount(app, {MyTools: ToolSystemFactory(TOOLS)})(websocket(*who()), wire.receive, wire.send)
    assert [told["type"] for told in wire.texts] == ["tool_started", "tool_completed"]


def text(tenant: str, user: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": json.dumps({"tenant": tenant, "user": user})}


BY_MESSAGE: dict[str, Any] = {"tenant": None, "user": None, "message": json_message(tenant="tenant", user="user")}


async def test_each_message_has_a_system_of_its_own_that_ends_with_it(asyncio_only: None) -> None:
    wire = Wire(text("acme", "ann"), text("globex", "bob"), text("acme", "ann"))
    systems: list[ToolSystem] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        with pytest.raises(ContextNotBoundError):
            await current_resource(ToolSystem)
        while (await receive())["type"] == "websocket.receive":
            for earlier in systems:
                with pytest.raises((ContextClosedError, ToolOwnerError)):
                    await earlier.dispatcher.dispatch("whoami")
                assert earlier.bridge is not None
                with pytest.raises(ContextClosedError):
                    await earlier.bridge.send_json({"n": 1})
            systems.append(await current_resource(ToolSystem))
            result = await systems[-1].dispatcher.dispatch("whoami")
            assert result.value == [current_context().tenant, current_context().user]
            await turns()

    await wire.run(app, **BY_MESSAGE)
    assert len({id(system) for system in systems}) == 3
    assert len({system.correlation_id for system in systems}) == 3
    assert [told["correlation_id"] for told in wire.texts] == [s.correlation_id for s in systems for _ in range(2)]


async def test_a_block_for_a_message_has_a_system_of_its_own(asyncio_only: None) -> None:
    wire = Wire(text("acme", "ann"), text("globex", "bob"))

    async def handle(event: Any) -> tuple[ToolSystem, Any]:
        async with message_context(event=event):
            system = await current_resource(ToolSystem)
            return system, (await system.dispatcher.dispatch("whoami")).value

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        handled = await asyncio.gather(*[handle(await spawn(receive())) for _ in range(2)])
        assert [value for _, value in handled] == [["acme", "ann"], ["globex", "bob"]]
        assert handled[0][0] is not handled[1][0]
        assert handled[0][0].registry.list() == []

    await wire.run(app, **BY_MESSAGE)


async def test_a_block_for_somebody_else_has_another_system(asyncio_only: None) -> None:
    async def handle() -> None:
        system = await current_resource(ToolSystem)
        for other in (current_context(), Identity("acme", "bob"), Identity("globex", "ann")):
            async with bind_context(other):
                inner = await current_resource(ToolSystem)
                assert inner is not system
                assert inner.registry is not system.registry
                assert (await inner.dispatcher.dispatch("whoami")).value == [other.tenant, other.user]
                with pytest.raises(ToolOwnerError):
                    await spawn_as(Identity("initech", "eve"), inner.dispatcher.dispatch)

    await serve(handle, system_of())


async def spawn_as(identity: Identity, dispatch: Any) -> None:
    async with bind_context(identity):
        await dispatch("whoami")


async def test_hints_are_read_once_for_all_requests(asyncio_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = system_of()

    def again(*_: Any) -> None:
        pytest.fail("hints were read again")

    monkeypatch.setattr("asgi_context.tools._specs.TypeAdapter", again)
    monkeypatch.setattr("asgi_context.tools._specs.get_type_hints", again)
    monkeypatch.setattr(Remember, "model_json_schema", again)

    async def handle() -> None:
        system = await current_resource(ToolSystem)
        assert {schema["name"] for schema in system.registry.schemas()} >= {"Remember", "whoami"}
        assert (await system.dispatcher.dispatch("Remember", {"colour": "red"})).ok

    await serve(handle, factory, store=MemoryStore())


async def test_on_trio_there_is_a_clear_error(trio_only: None) -> None:
    async def handle() -> None:
        with pytest.raises(UnsupportedLoopError, match="needs a running asyncio event loop"):
            await current_resource(ToolSystem)

    assert (await run(mount_handle(handle, system_of()), http(*who()))).status == 200


# --- what is wrong with it


class Unhinted:
    def run(self, colour) -> None: ...  # type: ignore[no-untyped-def]


class NoMethod: ...


class NeitherRun(AsyncBaseTool):
    colour: str


class Unresolved:
    def run(self, colour: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - what is wrong with it


def takes_any_number(*colours: str) -> None: ...


def yields() -> Any:
    yield


class NoSchema(BaseModel):
    call: Callable[[], None]

    def run(self) -> None: ...


@pytest.mark.parametrize(
    "tool", [Unhinted, NoMethod, NeitherRun, Unresolved, takes_any_number, yields, NoSchema, 7, "Remember", None]
)
def test_what_cannot_be_a_tool_is_refused_at_start_up_by_name(tool: Any) -> None:
    name = getattr(tool, "__name__", type(tool).__name__)
    for tools in ([Remember, tool], (one for one in [tool])):
        with pytest.raises(ToolDefinitionError, match=name) as caught:
            ToolSystemFactory(tools)
        assert caught.value.tool == name
    with pytest.raises(ToolDefinitionError):
        ToolSystemFactory({"tool": tool})


def test_what_no_instance_is_bound_to_is_shared_by_nobody() -> None:
    class Counts:
        @classmethod
        def of_class(cls) -> int:
            return 1

        @staticmethod
        def of_none() -> int:
            return 1

    ToolSystemFactory({"a": Counts.of_class, "b": Counts.of_none, "c": partial(Counts.of_class), "d": Counts().of_none})


def test_an_instance_which_all_users_would_share_is_refused_at_start_up() -> None:
    class Counts:
        def run(self) -> int:
            return 1

    counts = Counts()
    given = [counts, counts.run, partial(counts.run), partial(partial(counts.run)), lru_cache(counts.run)]
    for tools in [*([one] for one in given), *({"counts": one} for one in given)]:
        with pytest.raises(ToolDefinitionError, match="Counts is an instance, which all users would share"):
            ToolSystemFactory(tools)
    ToolSystemFactory([Counts])


def test_two_tools_of_one_name_are_refused_at_start_up() -> None:
    with pytest.raises(ValueError, match="there are two tools 'whoami': give a mapping"):
        ToolSystemFactory([whoami, Counting, whoami])


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"permit": 1}, TypeError, "permit"),
        ({"user_limits": 5}, TypeError, "user_limits"),
        ({"tenant_limits": 5}, TypeError, "tenant_limits"),
    ],
)
def test_options_that_cannot_be_are_refused_at_start_up(options: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        ToolSystemFactory(TOOLS, **options)


async def test_a_class_that_cannot_be_built_is_named_by_an_error_and_nothing_is_half_made(asyncio_only: None) -> None:
    fails = True
    built: list[str] = []

    class Before:
        def __init__(self) -> None:
            built.append("before")

        def run(self) -> None: ...

    class Failing:
        def __init__(self) -> None:
            if fails:
                raise KeyError("secret")

        def run(self) -> str:
            return "ran"

    async def handle() -> None:
        nonlocal fails
        with pytest.raises(ToolDefinitionError, match=r"Failing cannot be built: KeyError$") as caught:
            await current_resource(ToolSystem)
        assert isinstance(caught.value.__cause__, KeyError)
        fails = False
        system = await current_resource(ToolSystem)
        assert (await system.dispatcher.dispatch("Failing")).value == "ran"

    await serve(handle, system_of([Before, Failing]))
    assert built == ["before"] * 2


async def test_a_class_whose_constructor_wants_arguments_is_named_by_an_error(asyncio_only: None) -> None:
    class Wanting:
        def __init__(self, client: object) -> None:
            self.client = client

        def run(self) -> None: ...

    async def handle() -> None:
        with pytest.raises(ToolDefinitionError, match="Wanting cannot be built: TypeError"):
            await current_resource(ToolSystem)

    await serve(handle, system_of([Wanting]))


# --- nothing is shared


async def test_a_thousand_users_at_once_share_nothing_and_nothing_of_them_is_left(asyncio_only: None) -> None:
    users = [(f"tenant-{i % 50}", f"user-{i}") for i in range(1000)]
    all_here = asyncio.Barrier(len(users))
    refs: list[weakref.ref[Any]] = []
    ids: list[list[int]] = []
    correlation_ids: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        system = await current_resource(ToolSystem)
        context = current_context()
        parts = [system, system.registry, system.dispatcher, system.bridge, system.registry.get("Counting")]
        ids.append([*map(id, parts), id(system.tools)])
        refs.extend(weakref.ref(part) for part in parts)
        correlation_ids.append(system.correlation_id)
        await all_here.wait()  # from here on all of them are alive at once
        colour = f"colour of {context.user}"
        mine = [context.tenant, context.user]
        results = await asyncio.gather(
            system.dispatcher.dispatch("Remember", {"colour": colour}),
            system.dispatcher.dispatch("whoami"),
            system.dispatcher.dispatch("Counting"),
        )
        assert [result.value for result in results] == [[*mine, colour], mine, 1]
        await all_here.wait()
        assert (await current_state().get("profile")) == {"colour": colour}
        in_thread = await system.dispatcher.dispatch("RememberInThread", {"colour": "of thread"})
        assert in_thread.value == [*mine, "of thread"]
        await all_here.wait()

    async def serve_all() -> None:
        middleware = mount(app, system_of(), pools={"tool": 4})
        wires = [Wire() for _ in users]
        async with asyncio.timeout(5 * LONG):
            await asyncio.gather(
                *(
                    middleware(websocket(*who(*user)), wire.receive, wire.send)
                    for user, wire in zip(users, wires, strict=True)
                )
            )
            await middleware.close()
        for wire, correlation_id in zip(wires, correlation_ids, strict=True):
            assert len(wire.texts) == 8
            assert {told["correlation_id"] for told in wire.texts} == {correlation_id}

    await serve_all()
    assert len({one for of_user in ids for one in of_user}) == 6 * len(users)
    assert len(set(correlation_ids)) == len(users)
    await turns()
    gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []


async def test_what_one_system_registers_no_other_has(asyncio_only: None) -> None:
    seen: list[list[str]] = []

    async def handle() -> None:
        system = await current_resource(ToolSystem)
        seen.append(system.registry.list())
        system.registry.register(whoami, name="mine")
        system.tools.append("mine")

    resources = system_of([Counting])
    for _ in range(2):
        await serve(handle, resources)
    assert seen == [["Counting"], ["Counting"]]


# --- its end


async def test_a_system_ends_with_its_request_and_then_refuses(asyncio_only: None) -> None:
    kept: list[ToolSystem] = []

    async def handle() -> None:
        kept.append(await current_resource(ToolSystem))

    await serve(handle, system_of())
    (system,) = kept
    assert system.tools == []
    assert system.registry.list() == []
    with pytest.raises(ContextNotBoundError):
        await system.dispatcher.dispatch("whoami")
    with (
        bind_context(Identity("acme", "ann")),
        pytest.raises(ContextClosedError, match="the tools bound here ended"),
    ):
        await system.dispatcher.dispatch("whoami")


async def test_a_call_that_has_begun_goes_on_to_its_end(asyncio_only: None) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    calls: list[Any] = []

    async def slow() -> str:
        begun.set()
        await go.wait()
        return current_tool_call().tool

    async def handle() -> None:
        system = await current_resource(ToolSystem)
        calls.append(spawn(system.dispatcher.dispatch("slow")))
        await begun.wait()

    await serve(handle, system_of([slow]))
    go.set()
    result = await calls[0]
    assert result.value == "slow"


async def test_a_call_that_outlives_its_connection_ends_without_a_word(asyncio_only: None) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    calls: list[Any] = []
    wire = Wire()

    async def slow() -> bool:
        begun.set()
        await go.wait()
        return await current_tool_call().progress(n=1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        system = await current_resource(ToolSystem)
        calls.append(spawn(system.dispatcher.dispatch("slow")))
        await begun.wait()

    async with asyncio.timeout(LONG):
        await mount(app, system_of([slow]))(websocket(*who()), wire.receive, wire.send)
    go.set()
    assert (await calls[0]).value is False
    assert [told["type"] for told in wire.texts] == ["tool_started"]
