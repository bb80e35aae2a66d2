"""Servers of the MCP Python SDK over streamable HTTP, on a real server, with its real client and with plain requests."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import httpx
import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http import EventMessage, EventStore
from mcp_types import InputRequiredResult, ProgressNotificationParams
from pydantic import BaseModel
from servers import ServerThread, UvicornHttptoolsUvloop, serving
from starlette.authentication import SimpleUser

from asgi_context import (
    ContextClosedError,
    ContextMiddleware,
    Identity,
    bind_context,
    current_context,
    current_state,
    from_header,
    from_scope,
)
from asgi_context.mcp import OwnedEvents, OwnedSessions
from asgi_context.values import get_from_context, update_request_context

pytestmark = pytest.mark.matrix("MCP", "mcp")

PATIENCE = 60.0
"""Seconds after which whatever is waited for counts as hanging."""
ANN = {"x-tenant-id": "acme", "x-user-id": "ann"}
BOB = {"x-tenant-id": "acme", "x-user-id": "bob"}
OTHER_ANN = {"x-tenant-id": "globex", "x-user-id": "ann"}
SOURCES: dict[str, Any] = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}
VERSION = "2025-11-25"
"""The latest version of the protocol that has sessions."""
HELLO = {
    "protocolVersion": VERSION,
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "test", "version": "1"},
}


def whose() -> str:
    context = current_context(None)
    if context is None:
        return "nobody"
    assert repr(current_state()) == f"SharedState(tenant={context.tenant!r}, user={context.user!r})"
    return f"{context.tenant}/{context.user}"


def named(headers: dict[str, str]) -> str:
    return "/".join(headers.values()) or "nobody"


class Gate:
    """Where a tool waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.left = threading.Event()
        self.notes: list[str] = []
        self._open = asyncio.Event()

    async def wait(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached.set()
        await self._open.wait()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)


def make_server(gate: Gate | None = None, **options: Any) -> MCPServer:
    server = MCPServer("test", **options)

    @server.tool()
    async def on_loop() -> str:
        update_request_context(n=1)
        return whose()

    @server.tool()
    def in_thread() -> str:
        assert threading.current_thread().name == "AnyIO worker thread"
        assert get_from_context("n") is None, "the values of another request"
        return whose()

    @server.tool()
    async def in_task_after_progress(context: Context) -> str:
        await context.report_progress(1, 2, whose())

        async def soon() -> str:
            await asyncio.sleep(0)
            return whose()

        return await asyncio.create_task(soon())

    @server.tool()
    async def known_to_the_sdk() -> str:
        token = get_access_token()
        return "nobody" if token is None else f"{token.client_id}/{token.subject}"

    @server.tool()
    async def outlive() -> str:
        assert gate is not None
        update_request_context(n=1)
        await gate.wait()
        gate.notes.append(whose())
        try:
            get_from_context("n")
        except ContextClosedError as error:
            gate.notes.append(error.why)
        with bind_context():
            update_request_context(n=2)
            gate.notes.append(whose())
        gate.left.set()
        return whose()

    @server.tool()
    async def in_rounds(context: Context) -> str | InputRequiredResult:
        state = context.request_state
        return InputRequiredResult(request_state=whose()) if state is None else f"{state}'s, for {whose()}"

    class Number(BaseModel):
        n: int

    @server.tool()
    async def asking(context: Context) -> str:
        before = whose()
        await context.elicit("Which?", Number)
        return f"{before}, {whose()}"

    server.resource("me://resource")(whose)

    @server.resource("me://template/{name}")
    async def template(name: str) -> str:
        return whose()

    server.prompt()(whose)
    return server


HOW: dict[str, dict[str, Any]] = {"sse": {}, "json": {"json_response": True}, "stateless": {"stateless_http": True}}
OWNED: dict[str, Callable[[Any], Any]] = {"bare": lambda app: app, "owned": OwnedSessions}


def url_of(server: ServerThread) -> str:
    return f"http://127.0.0.1:{server.port}/mcp"


@pytest.fixture(scope="module")
def served() -> Iterator[Callable[[str, str], str]]:
    """Gives the URL of a server, each of which is started once it is wanted."""
    with ExitStack() as stack:
        urls: dict[tuple[str, str], str] = {}

        def start(how: str, owned: str) -> str:
            if (how, owned) not in urls:
                app = OWNED[owned](make_server().streamable_http_app(**HOW[how]))
                wrapped = ContextMiddleware(app, missing="unbound", **SOURCES)
                running = stack.enter_context(serving(UvicornHttptoolsUvloop, wrapped, lifespan=True))
                assert running.started, running.failure
                urls[how, owned] = url_of(running)
            return urls[how, owned]

        yield start


def text_of(result: Any) -> str:
    assert not result.is_error, result
    text: str = result.content[0].text
    return text


async def everything(client: Client) -> set[str]:
    """What all that a server offers says whose call it is."""
    told = []

    async def on_progress(progress: float, total: float | None, text: str | None) -> None:
        told.append(text)

    told += [text_of(await client.call_tool(name, {})) for name in ("on_loop", "in_thread")]
    told.append(text_of(await client.call_tool("in_task_after_progress", {}, progress_callback=on_progress)))
    uris = ("me://resource", "me://template/x")
    told += [(await client.read_resource(uri, cache_mode="bypass")).contents[0].text for uri in uris]
    told.append((await client.get_prompt("whose", {})).messages[0].content.text)
    return set(told)


def with_client(url: str, use: Any, *, mode: Any = "legacy", **headers: str) -> Any:
    """Use a client of the SDK, on a session that is opened by whom the headers name."""

    async def main() -> Any:
        async with (
            httpx2.AsyncClient(headers=headers, timeout=PATIENCE, trust_env=False) as http,
            Client(streamable_http_client(url, http_client=http), mode=mode) as client,
        ):
            return await use(http, client)

    return asyncio.run(main())


@pytest.mark.parametrize("mode", ["legacy", "auto"], ids=["handshake", "envelope"])
@pytest.mark.parametrize("how", HOW)
def test_a_session_does_not_freeze_its_first_identity(served: Any, how: str, mode: str) -> None:
    """What a request asks for runs on behalf of whom that request names."""

    async def use(http: httpx2.AsyncClient, client: Client) -> list[set[str]]:
        told = []
        for headers in (ANN, BOB, OTHER_ANN, ANN):
            http.headers.update(headers)
            told.append(await everything(client))
        return told

    told = with_client(served(how, "bare"), use, mode=mode, **ANN)
    assert told == [{named(headers)} for headers in (ANN, BOB, OTHER_ANN, ANN)]


def test_sessions_of_many_tenants_at_once_stay_apart(served: Any) -> None:
    url = served("sse", "owned")
    senders = [(f"tenant-{n}", user) for n in range(3) for user in ("ann", "bob")]

    async def one(tenant: str, user: str) -> set[str]:
        headers = {"x-tenant-id": tenant, "x-user-id": user}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=PATIENCE, trust_env=False) as http,
            Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
        ):
            told = await asyncio.gather(*(everything(client) for _ in range(2)))
            return set().union(*told)

    async def main() -> list[set[str]]:
        return await asyncio.gather(*(one(*sender) for sender in senders))

    assert asyncio.run(main()) == [{"/".join(sender)} for sender in senders]


# Plain requests


class Session:
    """A session, and whoever else comes with its id."""

    def __init__(self, http: httpx.Client, url: str, headers: dict[str, str]) -> None:
        self.http = http
        self.url = url
        self.headers = headers
        self.id: str | None = None
        response = self.post("initialize", HELLO)
        assert response.status_code == 200, response.text
        self.id = response.headers["mcp-session-id"]
        assert self.post("notifications/initialized", number=None).status_code == 202

    def headers_of(self, headers: dict[str, str] | None, more: dict[str, str]) -> dict[str, str]:
        session = {} if self.id is None else {"mcp-session-id": self.id, "mcp-protocol-version": VERSION}
        own = self.headers if headers is None else headers
        return {"accept": "application/json, text/event-stream", **session, **own, **more}

    def post(self, method: str, params: Any = None, *, number: int | None = 1, by: Any = None) -> httpx.Response:
        content = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        if number is not None:
            content["id"] = number
        return self.http.post(self.url, json=content, headers=self.headers_of(by, {}))

    def tool(self, name: str, **options: Any) -> str:
        response = self.post("tools/call", {"name": name, "arguments": {}}, **options)
        assert response.status_code == 200, response.text
        text: str = events_of(response.text)[-1][1]["result"]["content"][0]["text"]
        return text

    def get(self, *, by: Any = None, **more: str) -> Any:
        return self.http.stream("GET", self.url, headers=self.headers_of(by, more))

    def end(self, *, by: Any = None) -> int:
        return self.http.delete(self.url, headers=self.headers_of(by, {})).status_code


def modern(session: Session, method: str, params: dict[str, Any], *, by: Any = None) -> dict[str, Any]:
    """A request by the protocol that has no sessions."""
    version = "2026-07-28"
    about = {"protocolVersion": version, "clientCapabilities": {}, "clientInfo": HELLO["clientInfo"]}
    meta = {f"io.modelcontextprotocol/{name}": value for name, value in about.items()}
    content = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    routing = {"mcp-method": method, **({"mcp-name": params["name"]} if "name" in params else {})}
    return {"json": content, "headers": {**session.headers_of(by, routing), "mcp-protocol-version": version}}


Visit = Callable[[str, dict[str, str]], Session]


@pytest.fixture
def visit() -> Iterator[Visit]:
    """Opens sessions, and closes their connections."""
    with ExitStack() as stack:
        yield lambda url, headers: Session(
            stack.enter_context(httpx.Client(timeout=PATIENCE, trust_env=False)), url, headers
        )


def events_of(text: str) -> list[tuple[str | None, Any]]:
    """The events of a stream that say something: id and message."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if fields.get("data"):
            found.append((fields.get("id"), json.loads(fields["data"])))
    return found


STRANGERS = {"another user": BOB, "the same user of another tenant": OTHER_ANN, "nobody": {}}


@pytest.mark.parametrize("how", ["sse", "json"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_session_is_not_there_for_anybody_but_who_opened_it(
    served: Any, visit: Visit, how: str, stranger: str
) -> None:
    by = STRANGERS[stranger]
    session = visit(served(how, "owned"), ANN)
    answers = [
        session.post("tools/call", {"name": "on_loop", "arguments": {}}, by=by),
        session.post("notifications/cancelled", {"requestId": 1}, number=None, by=by),
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert {answer.json()["error"]["message"] for answer in answers} == {"Session not found"}
    with session.get(by=by) as stream:
        assert stream.status_code == 404
    assert session.end(by=by) == 404
    with session.get() as stream:
        assert stream.status_code == 200
    assert events_of(session.post("ping").text) or how == "json"
    assert session.end() == 200
    assert session.post("ping").status_code == 404


def test_without_owned_sessions_whoever_knows_its_id_can_end_it(served: Any, visit: Visit) -> None:
    """That is why they are there."""
    assert visit(served("sse", "bare"), ANN).end(by=OTHER_ANN) == 200


def test_a_session_that_nobody_has_opened_is_nobodys_alone(served: Any, visit: Visit) -> None:
    session = visit(served("sse", "owned"), {})
    assert session.tool("known_to_the_sdk") == "nobody"
    assert session.post("ping", by=ANN).status_code == 404
    assert session.end() == 200


def test_the_sdk_knows_who_asks_too(served: Any, visit: Visit) -> None:
    assert visit(served("sse", "owned"), ANN).tool("known_to_the_sdk") == named(ANN)
    assert visit(served("sse", "bare"), ANN).tool("known_to_the_sdk") == "nobody"


def test_a_user_of_another_authentication_is_known_to_the_sdk_as_whom_is_bound(visit: Visit) -> None:
    app = OwnedSessions(make_server().streamable_http_app())

    async def authenticating(scope: Any, receive: Any, send: Any) -> None:
        scope["user"] = SimpleUser("ann")
        await bound(scope, receive, send)

    bound = ContextMiddleware(app, tenant=from_header("x-tenant-id"), user=from_scope("user", "username"))
    with serving(UvicornHttptoolsUvloop, authenticating, lifespan=True) as server:
        session = visit(url_of(server), {"x-tenant-id": "acme"})
        assert session.tool("known_to_the_sdk") == "acme/ann"
        assert session.post("ping", by={"x-tenant-id": "globex"}).status_code == 404


@pytest.mark.parametrize("outside", [True, False], ids=["outside of it", "inside of it"])
def test_whom_the_sdk_has_found_by_itself_stays(visit: Visit, outside: bool) -> None:
    class Verifier:
        async def verify_token(self, token: str) -> AccessToken | None:
            return AccessToken(token=token, client_id="app", subject=token, scopes=[])

    auth = AuthSettings(issuer_url="https://id.example.com", resource_server_url=None)
    app: Any = make_server(auth=auth, token_verifier=Verifier()).streamable_http_app()
    if outside:
        app = OwnedSessions(app)
    else:
        app.add_middleware(OwnedSessions)
        app.user_middleware.append(app.user_middleware.pop(0))
    with serving(UvicornHttptoolsUvloop, ContextMiddleware(app, **SOURCES), lifespan=True) as server:
        session = visit(url_of(server), {**ANN, "authorization": "Bearer ann"})
        assert session.tool("known_to_the_sdk") == "app/ann"
        assert session.tool("on_loop") == named(ANN)
        assert session.post("ping", by={**ANN, "authorization": "Bearer bob"}).status_code == 404
        refused = session.post("ping", by=ANN)
        assert refused.status_code == (401 if outside else 403), "a bound identity does not stand in for a token"
        session.id = None
        assert session.post("initialize", HELLO, by=ANN).status_code == refused.status_code


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_call_in_several_rounds_is_gone_on_with_by_whom_it_was_begun(
    served: Any, visit: Visit, stranger: str
) -> None:
    def round_of(session: Session, state: str | None, by: dict[str, str]) -> Any:
        params = {"name": "in_rounds", "arguments": {}} | ({} if state is None else {"requestState": state})
        return session.http.post(session.url, **modern(session, "tools/call", params, by=by)).json()

    for owned in (False, True):
        session = visit(served("json", "owned" if owned else "bare"), ANN)
        state = round_of(session, None, ANN)["result"]["requestState"]
        assert ("error" in round_of(session, state, STRANGERS[stranger])) is owned
        assert round_of(session, state, ANN)["result"]["content"][0]["text"] == "acme/ann's, for acme/ann"


def test_what_the_client_answers_to_a_tool_changes_nothing_in_it(served: Any, visit: Visit) -> None:
    """Also where it is let in: whoever answers, the tool is of whom has called it."""
    session = visit(served("sse", "bare"), ANN)
    content = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "asking", "arguments": {}}}
    with session.http.stream("POST", session.url, json=content, headers=session.headers_of(None, {})) as stream:
        asked, answered = "", False
        for line in stream.iter_lines():
            asked += line + "\n"
            if events_of(asked) and not answered:
                answered = True
                result = {"action": "accept", "content": {"n": 1}}
                answer = {"jsonrpc": "2.0", "id": events_of(asked)[0][1]["id"], "result": result}
                response = session.http.post(session.url, json=answer, headers=session.headers_of(OTHER_ANN, {}))
                assert response.status_code == 202
    assert texts_of(events_of(asked)[-1:]) == ["acme/ann, acme/ann"]


def test_a_notification_is_handled_for_whom_it_is_from(visit: Visit) -> None:
    heard: SimpleQueue[str] = SimpleQueue()

    async def hear(_context: Any, _params: Any) -> None:
        heard.put(whose())

    mcp: Server[Any] = Server("test")
    mcp.add_notification_handler("notifications/progress", ProgressNotificationParams, hear)
    app = ContextMiddleware(mcp.streamable_http_app(), **SOURCES)
    with serving(UvicornHttptoolsUvloop, app, lifespan=True) as server:
        session = visit(url_of(server), ANN)
        for by in (OTHER_ANN, ANN):
            params = {"progressToken": 1, "progress": 1}
            assert session.post("notifications/progress", params, number=None, by=by).status_code == 202
            assert heard.get(timeout=PATIENCE) == named(by)


def test_a_tool_that_outlives_its_request_keeps_whose_it_was(visit: Visit) -> None:
    """Identity and state it keeps; the values have ended with the request, and a block of its own has new ones."""
    gate = Gate()
    app = ContextMiddleware(OwnedSessions(make_server(gate).streamable_http_app()), **SOURCES)
    ended = threading.Event()

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        if (b"x-watched", b"1") in scope.get("headers", ()):
            ended.set()

    with serving(UvicornHttptoolsUvloop, watched, lifespan=True) as server:
        session = visit(url_of(server), ANN)
        content = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "outlive", "arguments": {}}}
        headers = session.headers_of(None, {"x-watched": "1"})
        with session.http.stream("POST", session.url, json=content, headers=headers) as response:
            assert response.status_code == 200
            assert gate.reached.wait(PATIENCE)
        assert ended.wait(PATIENCE)
        assert session.tool("on_loop", number=8) == named(ANN)
        gate.open()
        assert gate.left.wait(PATIENCE)
    assert gate.notes == [named(ANN), "ended", named(ANN)]


# Streams that stand


def listen_on_a_session(session: Session) -> Any:
    return session.get()


def listen_to_subscriptions(session: Session) -> Any:
    request = modern(session, "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    return session.http.stream("POST", session.url, **request)


@pytest.mark.parametrize("listen", [listen_on_a_session, listen_to_subscriptions])
def test_a_stream_that_stands_ends_when_the_identity_expires(visit: Visit, listen: Any) -> None:
    """Its client sees the end of an answer, and has to come with a new proof. The session is there still."""
    expires_at, time = 1000.0, 0.0
    sdk = make_server().streamable_http_app()

    async def until_it_stands(scope: Any, receive: Any, send: Any) -> None:
        stands, asked = asyncio.Event(), False

        async def receive_later() -> Any:
            nonlocal asked
            if asked:  # for the client's end: what it has sent is there
                await stands.wait()
            message = await receive()
            asked = message["type"] == "http.request" and not message.get("more_body", False)
            return message

        async def send_noting(message: Any) -> None:
            nonlocal time
            await send(message)
            if b"x-stands" in dict(scope.get("headers", ())):
                time = expires_at
            stands.set()

        await sdk(scope, receive_later, send_noting)

    identity = Identity("acme", "ann", expires_at=expires_at)
    app = ContextMiddleware(OwnedSessions(until_it_stands, now=lambda: time), identity=lambda _: identity)
    with serving(UvicornHttptoolsUvloop, app, lifespan=True) as server:
        session = visit(url_of(server), {})
        session.headers = {"x-stands": "1"}
        with listen(session) as stream:
            assert stream.status_code == 200
            assert stream.headers["content-type"].startswith("text/event-stream")
            stream.read()
        session.headers = {}
        assert session.tool("on_loop") == named(ANN)


def test_one_that_ends_before_ends_as_ever(visit: Visit) -> None:
    app = OwnedSessions(make_server().streamable_http_app(), now=lambda: 0)
    identity = Identity("acme", "ann", expires_at=1000.0)
    with serving(UvicornHttptoolsUvloop, ContextMiddleware(app, identity=lambda _: identity), lifespan=True) as server:
        session, other = visit(url_of(server), {}), visit(url_of(server), {})
        with listen_on_a_session(session) as stream:
            assert other.http.delete(session.url, headers=session.headers_of(None, {})).status_code == 200
            stream.read()


# Streams that are taken up again


class Events(EventStore):
    """A store like that of the SDK's examples: what follows an event on its stream is what was stored there since."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self.stored.append((stream_id, message))
        return str(len(self.stored) - 1)

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        if not last_event_id.isdecimal() or int(last_event_id) >= len(self.stored):
            return None
        stream_id = self.stored[int(last_event_id)][0]
        for number, (stream, message) in enumerate(self.stored):
            if number > int(last_event_id) and stream == stream_id and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream_id


def replayed(session: Session, event_id: str, wanted: int, **options: Any) -> list[Any]:
    """What a client gets that takes up its stream again: as many events as are wanted, or all that come."""
    with session.get(**{"last-event-id": event_id}, **options) as stream:
        assert stream.status_code == 200
        text = ""
        for line in stream.iter_lines():
            text += line + "\n"
            if len(events_of(text)) >= wanted > 0:
                break
        return events_of(text)


def texts_of(events: list[Any]) -> list[str]:
    return [message["result"]["content"][0]["text"] for _, message in events]


@pytest.mark.parametrize("owned", [False, True], ids=["bare", "owned"])
def test_what_is_replayed_is_ones_own(visit: Visit, owned: bool) -> None:
    """Bare, the store files an answer to somebody else's request of the same number in the same stream."""
    events: Any = Events()
    store = OwnedEvents(events) if owned else events
    app = OwnedSessions(make_server().streamable_http_app(event_store=store))
    with serving(UvicornHttptoolsUvloop, ContextMiddleware(app, **SOURCES), lifespan=True) as server:
        ann, other = visit(url_of(server), ANN), visit(url_of(server), OTHER_ANN)
        call = {"name": "on_loop", "arguments": {}}
        first = first_id(ann.post("tools/call", call, number=5).text)
        theirs = first_id(other.post("tools/call", call, number=5).text)
        wanted = [named(ANN)] if owned else [named(ANN), named(OTHER_ANN)]
        got = replayed(ann, first, len(wanted))
        assert texts_of(got) == wanted
        if owned:
            assert texts_of(replayed(other, theirs, 1)) == [named(OTHER_ANN)]
            assert replayed(ann, theirs, 0) == []
            assert replayed(ann, "no such event", 0) == []
            assert replayed(ann, f"{first.partition('.')[0]}.none", 0) == []
            assert got[0][0].partition(".")[0] == first.partition(".")[0], "which cannot be gone on from"


def first_id(text: str) -> str:
    """The id with which a stream begins, by an event that says nothing else."""
    return text.partition("id: ")[2].splitlines()[0]


@pytest.mark.anyio
async def test_events_of_nobody_are_kept_apart_too(asyncio_only: None) -> None:
    events = Events()
    store = OwnedEvents(events)
    event_id = await store.store_event("1", None)
    with bind_context(Identity("acme", "ann")):
        own = await store.store_event("1", None)
        assert await store.replay_events_after(event_id, lambda _: None) is None
        assert await store.replay_events_after(own, lambda _: None) == "1"
    assert await store.replay_events_after(event_id, lambda _: None) == "1"
    assert len({stream for stream, _ in events.stored}) == 2


@pytest.mark.anyio
async def test_an_event_without_an_id_is_replayed_without_one(asyncio_only: None) -> None:
    class Plain(Events):
        async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
            await send_callback(EventMessage(self.stored[0][1], None))
            return None

    sent: list[Any] = []

    async def send(event: EventMessage) -> None:
        sent.append(event.event_id)

    store = OwnedEvents(Plain())
    assert await store.replay_events_after(await store.store_event("1", None), send) is None
    assert sent == [None]


def test_only_what_fits_is_taken() -> None:
    with pytest.raises(TypeError, match="app must be an ASGI app, not str"):
        OwnedSessions("app")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="store must be an EventStore of the MCP SDK, not dict"):
        OwnedEvents({})  # type: ignore[arg-type]
