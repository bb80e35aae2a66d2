"""The extension for Quart, and all of Quart that runs code of an app's: whose request it is, is known there."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from quart import (
    Quart,
    Response,
    copy_current_websocket_context,
    render_template_string,
    stream_with_context,
    websocket,
)
from quart.utils import run_sync
from werkzeug.exceptions import NotFound
from who_asks import ANN, BOB, SOURCES, WHOLE, whose

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    Identity,
    MemoryStore,
    bind_context,
    current_context,
    current_resource,
    current_state,
    json_message,
    message_context,
    run_in_executor,
)
from asgi_context.quart import QuartContext
from asgi_context.values import get_from_context, update_request_context

pytestmark = [pytest.mark.matrix("Quart", "quart"), pytest.mark.anyio]


@pytest.fixture
def app(asyncio_only: None) -> Quart:
    return wrapped()


def wrapped(**options: Any) -> Quart:
    app = Quart(__name__)
    QuartContext(app, **SOURCES, **options)
    return app


# The extension


async def test_one_extension_wraps_apps_that_are_made_later_and_they_share_its_store(asyncio_only: None) -> None:
    context = QuartContext(**SOURCES, store=MemoryStore())

    def create_app() -> Quart:
        app = Quart(__name__)
        context.init_app(app)

        @app.get("/")
        async def count() -> Any:
            return [*(whose() or []), await current_state().increment("visits", "n")]

        return app

    answers = []
    for headers in (ANN, ANN, BOB):
        answer = await create_app().test_client().get("/", headers=headers)
        answers.append(await answer.get_json())
    assert answers == [["acme", "ann", 1], ["acme", "ann", 2], ["globex", "bob", 1]]


async def test_the_middleware_is_to_be_had_from_the_app(app: Quart) -> None:
    assert type(app.extensions["asgi_context"]) is ContextMiddleware
    assert app.extensions["asgi_context"] is app.asgi_app


async def test_an_app_is_wrapped_once(app: Quart) -> None:
    with pytest.raises(RuntimeError, match="has its QuartContext already"):
        QuartContext(app, **SOURCES)


async def test_what_cannot_be_is_told_where_it_stands(asyncio_only: None) -> None:
    with pytest.raises(TypeError, match="nothing says who asks"):
        QuartContext()
    with pytest.raises(TypeError, match="colour"):
        QuartContext(**SOURCES, colour="green")
    with pytest.raises(TypeError, match="app must be a Quart app, not function"):
        QuartContext(whose, **SOURCES)  # type: ignore[arg-type]


async def test_serving_itself_is_nobodys_and_sources_are_open_for_as_long(asyncio_only: None) -> None:
    events: list[Any] = []

    class Tenant:
        async def open(self) -> None:
            events.append("open")

        async def __call__(self, scope: Any) -> str:
            return "acme"

        async def close(self) -> None:
            events.append("close")

    app = Quart(__name__)
    QuartContext(app, tenant=Tenant())

    @app.while_serving
    async def serve() -> AsyncIterator[None]:
        events.append(["before", whose()])
        yield
        events.append(["after", whose()])

    @app.get("/")
    async def index() -> Any:
        return whose()

    async with app.test_app() as running:
        answer = await running.test_client().get("/")
        assert await answer.get_json() == ["acme", None]
    assert events == ["open", ["before", None], ["after", None], "close"]


# Requests


async def test_every_hook_of_a_request_knows_whose_it_is_also_in_threads(app: Quart) -> None:
    notes = []

    def note(name: str) -> None:
        notes.append((name, whose(), get_from_context("colour")))

    @app.before_request
    async def before() -> None:
        update_request_context(colour="green")
        note("before")

    @app.before_request
    def before_in_thread() -> None:
        assert threading.current_thread() is not threading.main_thread()
        note("before in thread")

    @app.after_request
    async def after(response: Response) -> Response:
        note("after")
        return response

    @app.teardown_request
    async def teardown(error: BaseException | None) -> None:
        note("teardown")

    @app.context_processor
    async def process() -> dict[str, Any]:
        note("template")
        return {}

    @app.get("/")
    async def index() -> Any:
        await run_sync(note)("run_sync")
        await run_in_executor(None, note, "run_in_executor")
        await asyncio.create_task(asyncio.to_thread(note, "task"))
        await render_template_string("of which there is nothing to tell")
        return whose()

    answer = await app.test_client().get("/", headers=ANN)
    assert await answer.get_json() == WHOLE
    names = ["before", "before in thread", "run_sync", "run_in_executor", "task", "template", "after", "teardown"]
    assert notes == [(name, WHOLE, "green") for name in names]


async def test_handlers_of_errors_know_whose_request_failed(app: Quart) -> None:
    class OopsError(Exception):
        pass

    @app.get("/")
    async def fail() -> Any:
        raise OopsError

    @app.errorhandler(OopsError)
    async def on_error(error: OopsError) -> Any:
        return [*(whose() or []), "failed"], 418

    @app.errorhandler(NotFound)
    def on_missing(error: NotFound) -> Any:
        return [*(whose() or []), "missing"], 404

    client = app.test_client()
    assert await (await client.get("/", headers=ANN)).get_json() == [*WHOLE, "failed"]
    assert await (await client.get("/nowhere", headers=BOB)).get_json() == ["globex", "bob", "missing"]


async def test_the_handler_of_all_that_is_uncaught_knows_it_too(app: Quart) -> None:
    @app.get("/")
    async def fail() -> Any:
        raise ZeroDivisionError

    @app.errorhandler(500)
    async def on_error(error: Any) -> Any:
        return whose(), 500

    answer = await app.test_client().get("/", headers=ANN)
    assert (answer.status_code, await answer.get_json()) == (500, WHOLE)


@pytest.mark.parametrize("in_thread", [True, False], ids=["sync", "async"])
async def test_a_streamed_answer_knows_whose_it_is_to_its_end(app: Quart, in_thread: bool) -> None:
    @app.get("/")
    async def index() -> Any:
        update_request_context(colour="green")

        @stream_with_context
        async def stream() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0)
                yield f"{whose()}{get_from_context('colour')} ".encode()

        def stream_in_thread() -> Any:
            for _ in range(3):
                yield f"{whose()}{get_from_context('colour')} ".encode()

        return stream_in_thread() if in_thread else stream()

    answer = await app.test_client().get("/", headers=ANN)
    assert await answer.get_data(as_text=True) == f"{WHOLE}green " * 3


async def test_many_at_once_stay_apart(app: Quart) -> None:
    @app.get("/")
    async def index() -> Any:
        await asyncio.sleep(0)
        return [whose(), await run_sync(whose)()]

    client = app.test_client()
    senders = [(f"t{n % 5}", f"u{n}") for n in range(40)]
    answers = await asyncio.gather(*(client.get("/", headers={"x-tenant-id": t, "x-user-id": u}) for t, u in senders))
    assert [await answer.get_json() for answer in answers] == [[list(sender)] * 2 for sender in senders]


class Desk:
    def __init__(self, context: Any) -> None:
        self.whose = [context.tenant, context.user]


async def test_a_background_task_has_values_and_resources_of_its_own_in_a_block(asyncio_only: None) -> None:
    """What the request had ends with it; whose it was does not, in a task and in a thread."""
    app = wrapped(resources={Desk: Desk})
    answered = asyncio.Event()
    notes: list[Any] = []

    async def later() -> None:
        await answered.wait()
        with pytest.raises(ContextClosedError):
            get_from_context("colour")
        with pytest.raises(ContextClosedError):
            await current_resource(Desk)
        async with bind_context():
            update_request_context(colour="blue")
            notes.append([whose(), get_from_context("colour"), (await current_resource(Desk)).whose])

    def in_thread() -> None:
        with bind_context():
            update_request_context(colour="red")
            notes.append([whose(), get_from_context("colour"), threading.current_thread() is threading.main_thread()])

    @app.get("/")
    async def index() -> Any:
        update_request_context(colour="green")
        app.add_background_task(in_thread)
        app.add_background_task(later)
        return whose()

    async with app.test_app() as running:
        await running.test_client().get("/", headers=ANN)
        answered.set()
    assert sorted(notes, key=lambda note: str(note[1])) == [[WHOLE, "blue", WHOLE], [WHOLE, "red", False]]


# WebSockets


async def test_a_websocket_is_for_whom_its_connection_is_in_tasks_that_quart_copies_it_for(app: Quart) -> None:
    @app.before_websocket
    async def before() -> None:
        update_request_context(before=whose())

    @app.websocket("/")
    async def listen() -> None:
        @copy_current_websocket_context
        async def send() -> None:
            await websocket.send_json([whose(), get_from_context("before"), await run_sync(whose)()])

        await websocket.receive()
        await asyncio.create_task(send())

    client = app.test_client()
    async with client.websocket("/", headers=ANN) as ann, client.websocket("/", headers=BOB) as bob:
        await bob.send("hello")
        await ann.send("hello")
        assert await ann.receive_json() == [WHOLE] * 3
        assert await bob.receive_json() == [["globex", "bob"]] * 3


async def test_each_message_is_for_whom_it_names_in_the_loop_of_a_websocket(asyncio_only: None) -> None:
    """Outside of the block it is nobody's, since Quart reads in a task of its own; two tasks can send and receive."""
    app = Quart(__name__)
    QuartContext(app, message=json_message(tenant="tenant", user="user"))

    @app.websocket("/")
    async def listen() -> None:
        while True:
            data = await websocket.receive()
            async with message_context(payload=data):
                await websocket.send_json([whose(), await run_sync(whose)()])
            await websocket.send_json(whose())

    async with app.test_client().websocket("/") as connection:
        for tenant, user in (("acme", "ann"), ("globex", "bob"), ("acme", "ann")):
            await connection.send_json({"tenant": tenant, "user": user})
            assert await connection.receive_json() == [[tenant, user]] * 2
            assert await connection.receive_json() is None


async def test_the_client_of_a_test_is_whom_its_headers_name_whoever_the_test_is(app: Quart) -> None:
    @app.get("/")
    async def index() -> Any:
        return whose()

    with bind_context(Identity("initech", "test")):
        answer = await app.test_client().get("/", headers=ANN)
        assert await answer.get_json() == WHOLE
        assert current_context().tenant == "initech"
