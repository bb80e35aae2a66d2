"""Consumers of Channels, on real servers: whose a message of the channel layer is, and whose a message of the client."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer
from channels.db import database_sync_to_async
from channels.generic.http import AsyncHttpConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from channels.middleware import BaseMiddleware
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter
from channels.testing import ApplicationCommunicator
from django.conf import settings
from django.test import override_settings
from django.urls import path
from servers import Stage, request, stages
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from who_asks import SOURCES, whose

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    Identity,
    MemoryStore,
    bind_context,
    current_context,
    current_state,
    from_scope,
    json_message,
    message_context,
    unbound_context,
)
from asgi_context.propagation import CarrierKey, from_carrier, to_carrier

pytestmark = pytest.mark.matrix("Channels", "channels", "daphne")

PATIENCE = 60.0
"""Seconds after which whatever is waited for counts as hanging."""
NAMES = json_message(tenant="tenant", user="user")
KEY = CarrierKey("test", "at least 32 bytes that nobody can guess")


@pytest.fixture(scope="module", autouse=True)
def layer() -> Iterator[None]:
    if not settings.configured:
        settings.configure()
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}):
        yield


@pytest.fixture(scope="module")
def running() -> Iterator[Callable[[str], Stage]]:
    with stages() as start:
        yield start


@pytest.fixture(params=["uvicorn-httptools", "hypercorn"])
def server(request: pytest.FixtureRequest, running: Callable[[str], Stage]) -> Iterator[Stage]:
    stage = running(request.param)
    yield stage
    stage.settle()


def app_of(consumer: Any, **options: Any) -> Any:
    app = ProtocolTypeRouter({"websocket": URLRouter([path("", consumer.as_asgi())])})
    return ContextMiddleware(app, **(options or SOURCES))


@contextmanager
def client(port: int, tenant: str | None = None, user: str | None = None, **more: str) -> Iterator[ClientConnection]:
    names = {"x-tenant-id": tenant, "x-user-id": user, **more}
    headers = {name: value for name, value in names.items() if value is not None}
    url = f"ws://127.0.0.1:{port}/"
    options: dict[str, Any] = {"open_timeout": PATIENCE, "proxy": None, "compression": None}
    with connect(url, additional_headers=headers, **options) as connection:
        yield connection


def asked(connection: ClientConnection, **message: Any) -> Any:
    connection.send(json.dumps(message))
    return json.loads(connection.recv(PATIENCE))


class AsyncGroup(AsyncJsonWebsocketConsumer):
    """Whatever anybody sends goes to the group, and each of it answers whose it is."""

    groups = ("everybody",)

    async def connect(self) -> None:
        self.opened_by = whose()
        await self.accept()

    async def receive_json(self, content: Any, **_: Any) -> None:
        await self.channel_layer.group_send("everybody", {"type": "said.something", "by": whose()})

    async def said_something(self, event: Any) -> None:
        in_thread = await database_sync_to_async(whose, thread_sensitive=False)()
        in_task = await asyncio.create_task(asyncio.to_thread(whose))
        assert whose() == in_thread == in_task == self.opened_by
        await self.send_json([event["by"], whose()])


class SyncGroup(JsonWebsocketConsumer):
    """The same in threads."""

    groups = ("everybody",)

    def connect(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.opened_by = whose()
        self.accept()

    def receive_json(self, content: Any, **_: Any) -> None:
        sent = async_to_sync(self.channel_layer.group_send)
        sent("everybody", {"type": "said.something", "by": whose()})

    def said_something(self, event: Any) -> None:
        async def soon() -> Any:
            return whose()

        assert whose() == async_to_sync(soon)() == self.opened_by
        current_state().sync.increment("heard", "n")
        self.send_json([event["by"], whose()])


@pytest.mark.parametrize("consumer", [AsyncGroup, SyncGroup])
def test_a_message_of_a_group_is_for_whom_the_connection_is_that_gets_it(server: Stage, consumer: Any) -> None:
    """Whoever has sent it, and in whose context: the channel layer carries none."""
    server.put_on(app_of(consumer))
    senders = [("acme", "ann"), ("globex", "bob"), ("acme", "cid")]
    with ExitStack() as stack:
        connections = [stack.enter_context(client(server.port, *sender)) for sender in senders]
        for sender, connection in zip(senders, connections, strict=True):
            connection.send("{}")
            heard = [json.loads(each.recv(PATIENCE)) for each in connections]
            assert heard == [[list(sender), list(each)] for each in senders]


class NamedGroup(AsyncWebsocketConsumer):
    """Each message of the client says whose it is; those of the group come in between."""

    groups = ("everybody",)

    async def connect(self) -> None:
        self.own = current_context(None)
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        assert text_data is not None
        async with message_context(payload=text_data):
            event = {"type": "said.something", "by": whose(), "carrier": to_carrier(key=KEY, audience="group")}
            await self.channel_layer.group_send("everybody", event)

    async def said_something(self, event: Any) -> None:
        try:
            plainly: Any = whose()
        except ContextClosedError as error:
            plainly = error.why
        with bind_context(from_carrier(event["carrier"], key=KEY, audience="group")):
            by_carrier = whose()
        with unbound_context() if self.own is None else bind_context(self.own):
            as_connected = whose()
        await self.send(text_data=json.dumps([event["by"], plainly, by_carrier, as_connected]))


@pytest.mark.parametrize("own", [("gateway", "door"), ()], ids=["of somebody", "of nobody"])
def test_a_message_of_a_group_is_never_for_whom_the_last_message_of_the_client_was(
    server: Stage, own: tuple[str, ...]
) -> None:
    """On a connection of somebody it is nobody's that can be told, once a message was for somebody else.

    Whom it is for goes with it, as a carrier, or the consumer keeps for whom it was opened.
    """
    options: dict[str, Any] = {**SOURCES, "authorize": lambda context, scope: True} if own else {}
    server.put_on(app_of(NamedGroup, message=NAMES, **options))
    with client(server.port, *own) as one, client(server.port, *own) as two:
        for tenant, user in (("acme", "ann"), ("globex", "bob"), ("acme", "ann")):
            sender = [tenant, user]
            assert asked(one, tenant=tenant, user=user) == [
                sender,
                "messages" if own else None,
                sender,
                list(own) or None,
            ]
            # The other connection has had no message of somebody else's.
            assert json.loads(two.recv(PATIENCE)) == [sender, list(own) or None, sender, list(own) or None]


# Who asks, out of the scope


class Login(BaseMiddleware):
    """As Channels' own authentication: it knows the user before the consumer is made."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        headers = dict(scope["headers"])
        name = headers.get(b"x-login")
        user = None if name is None else Member(name.decode(), "acme")
        return await super().__call__({**scope, "user": user}, receive, send)


class Member:
    def __init__(self, username: str, tenant_id: str) -> None:
        self.username = username
        self.tenant_id = tenant_id


class Telling(WebsocketConsumer):
    def connect(self) -> None:
        self.accept()
        self.send(text_data=json.dumps([self.scope["user"].username, whose()]))


def test_behind_an_authentication_it_takes_the_user_from_the_scope(server: Stage) -> None:
    routes = URLRouter([path("", Telling.as_asgi())])
    bound = ContextMiddleware(routes, tenant=from_scope("user", "tenant_id"), user=from_scope("user", "username"))
    server.put_on(ProtocolTypeRouter({"websocket": Login(bound)}))
    with client(server.port, **{"x-login": "ann"}) as connection:
        assert json.loads(connection.recv(PATIENCE)) == ["ann", ["acme", "ann"]]
    with pytest.raises(InvalidStatus) as refused, client(server.port):
        pass
    assert refused.value.response.status_code in {400, 403}


# Other kinds of consumers


class Answering(AsyncHttpConsumer):
    async def handle(self, body: bytes) -> None:
        await self.send_response(200, json.dumps(whose()).encode())


def test_a_consumer_of_http_requests_knows_whose_they_are(server: Stage) -> None:
    app = ProtocolTypeRouter({"http": URLRouter([path("", Answering.as_asgi())])})
    server.put_on(ContextMiddleware(app, **SOURCES))
    with server.connect() as wire:
        answer = wire.ask(request(b"x-tenant-id: acme", b"x-user-id: ann"))
    assert (answer.status, answer.json()) == (200, ["acme", "ann"])


@pytest.mark.anyio
async def test_a_worker_is_nobodys_and_takes_whose_job_it_is_from_a_carrier(asyncio_only: None) -> None:
    """It is started by no connection: scopes of the type ``channel`` pass the middleware unchanged."""

    store = MemoryStore()

    class Worker(AsyncConsumer):
        async def work(self, event: Any) -> None:
            with bind_context(from_carrier(event["carrier"], key=KEY, audience="worker"), store=store):
                await self.send({"type": "done", "whose": whose()})
            await self.send({"type": "done", "whose": whose()})

    app = ContextMiddleware(ProtocolTypeRouter({"channel": ChannelNameRouter({"jobs": Worker.as_asgi()})}), **SOURCES)
    with bind_context(Identity("acme", "ann")):
        carrier = to_carrier(key=KEY, audience="worker")
    worker = ApplicationCommunicator(app, {"type": "channel", "channel": "jobs"})
    await worker.send_input({"type": "work", "carrier": carrier})
    assert [(await worker.receive_output(PATIENCE))["whose"] for _ in range(2)] == [["acme", "ann"], None]
    worker.stop()
