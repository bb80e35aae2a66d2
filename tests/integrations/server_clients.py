"""Real clients of any kind of server: httpx, and for WebSockets websockets or, over HTTP/2, h2 with the frames of wsproto."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, Protocol, Self

import h2.config
import h2.connection
import h2.events
import httpx
from servers import LONG_PATIENCE, Kind
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

CROWD, TENANTS = 200, 50
STREAMS = 50
"""That are open at once on one connection over HTTP/2, at most; servers allow for 100 or more."""


class Address(Protocol):
    """A server that runs."""

    port: int


def client(kind: type[Kind], server: Address) -> httpx.AsyncClient:
    """A client that speaks what the server is for: HTTP/2 on one connection, or HTTP/1.1 on as many as it takes."""
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}",
        http1=not kind.http2,
        http2=kind.http2,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        timeout=LONG_PATIENCE,
        trust_env=False,
        verify=False,
    )


class DeniedError(Exception):
    """A WebSocket was not opened.

    Args:
        status: of the answer.
        content_type: of its body.
        body: of the answer.
    """

    def __init__(self, status: int, content_type: str | None, body: bytes) -> None:
        super().__init__(status, content_type, body)
        self.status = status
        self.content_type = content_type
        self.body = body


class WebSocket(Protocol):
    """The client's end of one that is open."""

    async def say(self, text: str) -> None: ...

    async def hear(self) -> str: ...

    def abandon(self) -> None:
        """Be gone without a word."""


class _Upgraded:
    """Over HTTP/1.1."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def say(self, text: str) -> None:
        await self._connection.send(text)

    async def hear(self) -> str:
        return str(await self._connection.recv())

    def abandon(self) -> None:
        self._connection.transport.abort()


class _Answer(NamedTuple):
    status: int
    content_type: str | None


class _Stream:
    """Over HTTP/2."""

    def __init__(self, carrier: "Carrier", number: int) -> None:
        self._carrier = carrier
        self._number = number
        self._frames = Connection(ConnectionType.CLIENT)
        self._texts: asyncio.Queue[str] = asyncio.Queue()
        self._parts: list[str] = []
        self.answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self.body = b""
        """Of an answer that is no WebSocket."""
        self.ended = asyncio.Event()

    def feed(self, data: bytes) -> None:
        if self.answer.result().status != 200:
            self.body += data
            return
        self._frames.receive_data(data)
        for event in self._frames.events():
            if isinstance(event, TextMessage):
                self._parts.append(event.data)
                if event.message_finished:
                    self._texts.put_nowait("".join(self._parts))
                    self._parts.clear()

    async def say(self, text: str) -> None:
        self._carrier.send(self._number, self._frames.send(TextMessage(data=text)))

    async def hear(self) -> str:
        return await self._texts.get()

    def abandon(self) -> None:
        self._carrier.reset(self._number)


class Carrier:
    """A connection over HTTP/2 that carries WebSockets (RFC 8441)."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._streams: dict[int, _Stream] = {}
        self._allowed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._h2.initiate_connection()
        self._flush()
        self._reading = asyncio.create_task(self._read())
        await self._allowed.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._writer.transport.abort()
        if not self._reading.cancelled():
            self._reading.result()

    async def open(self, path: str, headers: dict[str, str]) -> WebSocket:
        """Open one.

        Raises:
            DeniedError: It was refused.
        """
        number = self._h2.get_next_available_stream_id()
        stream = self._streams[number] = _Stream(self, number)
        pseudo = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
        }
        self._h2.send_headers(number, list({**pseudo, "sec-websocket-version": "13", **headers}.items()))
        self._flush()
        status, content_type = await stream.answer
        if status != 200:
            await stream.ended.wait()
            raise DeniedError(status, content_type, stream.body)
        return stream

    def send(self, number: int, data: bytes) -> None:
        """Send on a stream what is less than its window."""
        self._h2.send_data(number, data)
        self._flush()

    def reset(self, number: int) -> None:
        """End a stream at once."""
        self._h2.reset_stream(number)
        self._flush()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())

    async def _read(self) -> None:
        while data := await self._reader.read(65536):
            for event in self._h2.receive_data(data):
                self._handle(event)
            self._flush()

    def _handle(self, event: Any) -> None:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            assert self._h2.remote_settings.enable_connect_protocol == 1
            self._allowed.set()
        elif isinstance(event, h2.events.ResponseReceived):
            headers = dict(event.headers)
            answer = _Answer(int(headers[":status"]), headers.get("content-type"))
            self._streams[event.stream_id].answer.set_result(answer)
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._streams[event.stream_id].feed(event.data)
        elif isinstance(event, h2.events.StreamEnded):
            self._streams[event.stream_id].ended.set()


@asynccontextmanager
async def websockets(kind: type[Kind], server: Address) -> AsyncIterator[Any]:
    """A function that opens WebSockets by their path and headers, for as long as the block lasts."""
    if kind.websockets_over_http2:
        async with Carrier(server.port) as carrier:
            yield carrier.open
        return
    opened: list[ClientConnection] = []

    async def open_one(path: str, headers: dict[str, str]) -> WebSocket:
        try:
            connection = await connect(
                f"ws://127.0.0.1:{server.port}{path}",
                additional_headers=headers,
                compression=None,
                open_timeout=LONG_PATIENCE,
                ping_interval=None,
                proxy=None,
            )
        except InvalidStatus as denied:
            answer = denied.response
            raise DeniedError(answer.status_code, answer.headers.get("content-type"), answer.body or b"") from None
        opened.append(connection)
        return _Upgraded(connection)

    try:
        yield open_one
    finally:
        await asyncio.gather(*(connection.close() for connection in opened))


# Crowds


class Member(NamedTuple):
    """One of a crowd."""

    number: int

    @property
    def tenant(self) -> str:
        return f"tenant-{self.number % TENANTS}"

    @property
    def user(self) -> str:
        return f"user-{self.number}"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-tenant-id": self.tenant, "x-user-id": self.user}


class Told(NamedTuple):
    """What one of a crowd has been told, with what it had said."""

    member: Member
    said: str
    answer: dict[str, Any]


async def crowd_of_requests(
    kind: type[Kind], server: Address, crowd: str, *, turn: int = 0, meeting: bool = False
) -> list[Told]:
    """Send the requests of a crowd at once.

    Args:
        kind: of the server.
        server: that is asked.
        crowd: its name.
        turn: of this crowd, where it comes more than once.
        meeting: whether each is answered only once all have come.
    """
    options = {"crowd": crowd} | ({"of": str(CROWD)} if meeting else {})

    async def ask(member: Member, http: httpx.AsyncClient) -> Told:
        said = f"{member.number}/{turn}"
        answer = await http.get("/http", params={**options, "number": said}, headers=member.headers)
        assert answer.status_code == 200, answer
        assert answer.http_version == ("HTTP/2" if kind.http2 else "HTTP/1.1")
        return Told(member, said, answer.json())

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(kind, server)) for _ in range(CROWD // STREAMS)]
        return await asyncio.gather(*(ask(Member(number), clients[number // STREAMS]) for number in range(CROWD)))


async def crowd_of_websockets(
    kind: type[Kind], server: Address, crowd: str, *, turns: Iterable[int] = (0,), meeting: bool = False
) -> list[Told]:
    """Open the WebSockets of a crowd, and once all are open say something on each, at once.

    Args:
        kind: of the server.
        server: that is asked.
        crowd: its name.
        turns: for each of which something is said.
        meeting: whether each is answered only once all have said something.
    """
    path = f"/websocket?crowd={crowd}" + (f"&of={CROWD}" if meeting else "")
    opening = asyncio.Semaphore(20)  # daphne gives up on a handshake that takes longer than 5 seconds
    all_open = asyncio.Barrier(CROWD)

    async def talk(member: Member, open_websocket: Any) -> list[Told]:
        async with opening:
            websocket = await open_websocket(path, member.headers)
        await all_open.wait()
        told = []
        for turn in turns:
            said = f"{member.number}/{turn}"
            await websocket.say(said)
            told.append(Told(member, said, json.loads(await websocket.hear())))
        return told

    async with AsyncExitStack() as stack:
        openers = [await stack.enter_async_context(websockets(kind, server)) for _ in range(CROWD // STREAMS)]
        told = await asyncio.gather(*(talk(Member(number), openers[number // STREAMS]) for number in range(CROWD)))
    return [each for all_of_one in told for each in all_of_one]


def assert_each_was_told_of_itself(all_told: list[Told]) -> None:
    """See that in handler, task, thread and pool it was who had asked, and in the state what that one had written.

    A tenant's visits count each of its own once, and nobody else's.
    """
    wrong, visits, ids = [], defaultdict(list), defaultdict(set)
    for told in all_told:
        member, said, answer = told
        mine = [member.tenant, member.user, answer["whose"][0][2]]
        if answer["whose"] != [mine] * 4 or answer["numbers"] != [said] * 3:
            wrong.append(told)
        visits[member.tenant].append(answer["visit"])
        ids[mine[2]].add(member)
    assert wrong == []
    assert {len(members) for members in ids.values()} == {1}
    for visited in visits.values():
        assert sorted(visited) == list(range(1, len(visited) + 1))
    assert len(visits) == TENANTS
