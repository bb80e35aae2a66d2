"""What must be opened is open before the first request and closed after the last, with a lifespan or without."""

import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from driver import Exchange, Seen, hello, http, run, who

from asgi_context import ContextMiddleware, MemoryStore, agree, first_of, from_header, identity_from

pytestmark = pytest.mark.anyio

TENANT = from_header("x-tenant-id")


class Part:
    """An extractor that notes when it is opened, asked and closed."""

    def __init__(self, log: list[str], name: str = "part", *, waits: bool = True, fails: str = "") -> None:
        self.log, self.name, self.waits, self.fails = log, name, waits, fails

    def __call__(self, scope: Any) -> str:
        self.log.append(f"ask {self.name}")
        return "acme"

    def open(self) -> Any:
        return self._do("open")

    def close(self) -> Any:
        return self._do("close")

    def _do(self, what: str) -> Any:
        async def later() -> None:
            await anyio.lowlevel.checkpoint()
            now()

        def now() -> None:
            self.log.append(f"{what} {self.name}")
            if self.fails == what:
                raise OSError(f"{self.name} fails to {what}")

        return later() if self.waits else now()


class Store(MemoryStore):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    async def open(self) -> None:
        self.log.append("open store")

    async def close(self) -> None:
        self.log.append("close store")


def lifespan_app(log: list[str]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await hello(scope, receive, send)
            return
        while True:
            message = await receive()
            log.append(f"app {message['type'].removeprefix('lifespan.')}")
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    return app


LIFESPAN = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]


async def run_lifespan(app: Any) -> list[str]:
    exchange = await run(app, {"type": "lifespan", "asgi": {"version": "3.0"}}, LIFESPAN)
    return [message["type"].removeprefix("lifespan.") for message in exchange.sent]


@pytest.mark.parametrize("waits", [True, False])
async def test_with_a_lifespan_parts_open_before_the_app_starts_and_close_after_it_has_stopped(waits: bool) -> None:
    log: list[str] = []
    part = Part(log, waits=waits)
    middleware = ContextMiddleware(lifespan_app(log), tenant=part, store=Store(log))
    assert await run_lifespan(middleware) == ["startup.complete", "shutdown.complete"]
    assert log == ["open store", "open part", "app startup", "app shutdown", "close part", "close store"]


async def test_parts_of_compositions_are_opened_once_each() -> None:
    log: list[str] = []
    shared, other, given = Part(log, "shared"), Part(log, "other"), Part(log, "id")
    identity = first_of(identity_from(tenant=agree(shared, other), user=first_of(shared)), shared)
    await run_lifespan(ContextMiddleware(lifespan_app([]), identity=identity, request_id=given))
    assert log == ["open shared", "open other", "open id", "close id", "close other", "close shared"]


async def test_they_are_closed_before_the_server_hears_of_the_end() -> None:
    """A server may exit at once."""
    log: list[str] = []
    exchange = Exchange(LIFESPAN)

    async def send(message: Any) -> None:
        log.append(f"server {message['type'].removeprefix('lifespan.')}")

    await ContextMiddleware(lifespan_app([]), tenant=Part(log))({"type": "lifespan"}, exchange.receive, send)
    assert log == ["open part", "server startup.complete", "close part", "server shutdown.complete"]


async def test_a_part_may_have_only_one_of_the_two() -> None:
    class OnlyOpens:
        opened = False
        close = None

        def __call__(self, scope: Any) -> str:
            return "acme"

        def open(self) -> None:
            self.opened = True

    part = OnlyOpens()
    await run_lifespan(ContextMiddleware(lifespan_app([]), tenant=part))
    assert part.opened


async def test_without_a_lifespan_the_first_requests_open_them_once() -> None:
    log: list[str] = []
    app = Seen(lambda: None)
    middleware = ContextMiddleware(app, tenant=Part(log))
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(run, middleware, http())
    assert len(app.seen) == 20
    assert log == ["open part"] + ["ask part"] * 20
    await middleware.close()
    await middleware.close()
    assert log.count("close part") == 1


async def test_they_can_be_opened_by_hand_and_again_after_closing() -> None:
    log: list[str] = []
    middleware = ContextMiddleware(hello, tenant=Part(log))
    for _ in range(2):
        await middleware.open()
        await middleware.open()
        await middleware.close()
    await run(middleware, http())
    assert log == ["open part", "close part"] * 2 + ["open part", "ask part"]


async def test_a_first_request_that_cannot_open_is_a_500_and_the_next_tries_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log: list[str] = []
    first, second = Part(log, "first"), Part(log, "second", fails="open")
    app = Seen(lambda: None)
    middleware = ContextMiddleware(app, tenant=first_of(first, second))
    assert (await run(middleware, http())).problem["code"] == "internal_error"
    assert log == ["open first", "open second", "close first"], "what was opened before is closed again"
    assert "second fails to open" in caplog.text
    second.fails = ""
    assert (await run(middleware, http())).status == 200


async def test_a_request_that_is_cancelled_while_opening_leaves_it_to_the_next() -> None:
    log: list[str] = []

    class Slow(Part):
        async def open(self) -> None:
            log.append("open")
            if len(log) == 1:
                cancel.cancel()
                await anyio.sleep(1)

    middleware = ContextMiddleware(hello, tenant=Slow(log))
    with anyio.CancelScope() as cancel:
        await run(middleware, http())
    assert (await run(middleware, http())).status == 200
    assert log == ["open", "open", "ask part"]


async def test_a_lifespan_that_cannot_open_fails_and_the_app_does_not_start(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    middleware = ContextMiddleware(lifespan_app(log), tenant=Part(log, fails="open"))
    exchange = Exchange(LIFESPAN)
    with pytest.raises(OSError, match="fails to open"):
        await middleware({"type": "lifespan"}, exchange.receive, exchange.send)
    [message] = exchange.sent
    assert message["type"] == "lifespan.startup.failed"
    assert "part fails" not in message["message"]
    assert log == ["open part"]
    assert "part fails to open" in caplog.text


async def test_an_app_that_turns_the_failure_into_a_message_does_not_send_it_twice() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except OSError:
            await send({"type": "lifespan.startup.failed", "message": "of the app"})

    exchange = Exchange(LIFESPAN)
    await ContextMiddleware(app, tenant=Part([], fails="open"))({"type": "lifespan"}, exchange.receive, exchange.send)
    assert [message["type"] for message in exchange.sent] == ["lifespan.startup.failed"]


async def test_an_app_that_knows_no_lifespan_is_served_all_the_same() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError("no lifespan")
        await hello(scope, receive, send)

    log: list[str] = []
    middleware = ContextMiddleware(app, tenant=Part(log))
    with pytest.raises(NotImplementedError):
        await run_lifespan(middleware)
    assert (await run(middleware, http())).status == 200
    assert log == ["open part", "ask part"]


async def test_an_app_that_dies_after_its_start_leaves_nothing_open() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise KeyError("died")

    log: list[str] = []
    with pytest.raises(KeyError):
        await run_lifespan(ContextMiddleware(app, tenant=Part(log)))
    assert log == ["open part", "close part"]


async def test_all_are_closed_even_if_one_fails_to() -> None:
    log: list[str] = []
    first, second = Part(log, "first"), Part(log, "second", fails="close")
    middleware = ContextMiddleware(hello, tenant=first_of(first, second))
    await middleware.open()
    with pytest.raises(OSError, match="second"):
        await middleware.close()
    assert log == ["open first", "open second", "close second", "close first"]


async def test_a_lifespan_that_cannot_close_tells_the_server_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    part = Part([], fails="close")
    assert await run_lifespan(ContextMiddleware(lifespan_app([]), tenant=part)) == [
        "startup.complete",
        "shutdown.failed",
    ]
    assert "part fails to close" in caplog.text

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "of the app"})

    assert await run_lifespan(ContextMiddleware(fails, tenant=part)) == ["startup.failed"]


async def test_exempt_requests_are_served_while_nothing_can_be_opened() -> None:
    middleware = ContextMiddleware(
        hello, tenant=Part([], fails="open"), exempt=lambda scope: scope["path"] == "/health"
    )
    assert (await run(middleware, http(path="/health"))).status == 200
    assert (await run(middleware, http())).status == 500


async def test_closing_and_opening_at_once_take_turns() -> None:
    log: list[str] = []
    middleware = ContextMiddleware(hello, tenant=Part(log))
    await middleware.open()
    async with anyio.create_task_group() as tasks:
        for call in (middleware.close, middleware.open, middleware.open, middleware.close, middleware.open):
            tasks.start_soon(call)
    await middleware.close()
    assert log == ["open part", "close part"] * (len(log) // 2)


def test_each_event_loop_in_turn_can_open_and_close() -> None:
    log: list[str] = []
    middleware = ContextMiddleware(hello, tenant=Part(log))
    for _ in range(2):
        for backend in ("asyncio", "trio"):
            anyio.run(middleware.open, backend=backend)
            anyio.run(middleware.close, backend=backend)
    assert log == ["open part", "close part"] * 4


async def test_where_there_is_nothing_to_open_the_lifespan_passes_untouched() -> None:
    middleware = ContextMiddleware(lifespan_app([]), tenant=TENANT)
    assert await run_lifespan(middleware) == ["startup.complete", "shutdown.complete"]
    await middleware.open()
    await middleware.close()
    assert (await run(middleware, http(*who()))).status == 200


def test_log_records_go_to_one_logger() -> None:
    assert logging.getLogger("asgi_context").handlers == []
