"""Real clients of any kind of server: httpx, and for WebSockets websockets or, over HTTP/2, h2 with the frames of wsproto."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
