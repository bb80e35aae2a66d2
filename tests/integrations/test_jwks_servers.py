"""Keys by real HTTP, from an issuer's web server on this machine, which behaves as well or as badly as a test says."""

import asyncio
import gzip
import json
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from driver import Exchange, hello, http, run
from jwt_makers import AUDIENCE, ISSUER, NOW, make_key, token
from resources import settle, spawn
from servers import PATIENCE, Uvicorn, Wire, request, serving

from asgi_context import ContextMiddleware, RequestRejected, current_context
from asgi_context.jwt import JWKSClient, JWTAuth

pytestmark = pytest.mark.anyio

A, B = (make_key("ES256", kid) for kid in ("a", "b"))
TTL, STALE, COOLDOWN = 600, 3600, 10  # seconds; what holds unless said otherwise
BRIEF = 0.1  # seconds until an attempt is given up; how long that really takes does not matter
MARK = "tell-nobody"  # part of what must not be found in a log
_numbers = count()

Writer = asyncio.StreamWriter
Answer = Callable[[Writer], Awaitable[None]]


@pytest.fixture(autouse=True)
def nobody_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine's must not be asked for its own addresses."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which client is installed."""
    name: str = request.param
    pytest.importorskip(name)
    for other in {"httpx", "httpx2"} - {name}:
        monkeypatch.setitem(sys.modules, other, None)
    return name


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Why attempts have failed; nothing of a body or of a token is logged, whatever the level, by whomever."""
    caplog.set_level(logging.DEBUG)
    before = "the keys of 127.0.0.1 could not be fetched: "
    yield lambda: [r.getMessage().removeprefix(before) for r in caplog.records if r.getMessage().startswith(before)]
    assert MARK not in caplog.text
    for key in (A, B):
        assert key.jwk["x"] not in caplog.text
    assert "eyJ" not in caplog.text  # what tokens begin with


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += seconds


def key_set(*keys: Any) -> bytes:
    return json.dumps({"keys": [key.jwk for key in keys], "note": MARK}).encode()


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> Answer:
    async def write(writer: Writer) -> None:
        lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), b"connection: close", *headers]
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        await writer.drain()

    return write


class Site:
    """The issuer's web server; the test says how it answers."""

    def __init__(self, *keys: Any, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer(key_set(*keys))
        self.asked: list[bytes] = []
        """The head of each request."""
        self.left = asyncio.Event()
        """A client has gone before it had its answer."""
        self.port = 0
        self.until_left: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
        """Waits until the client of the latest request has gone."""
        self._tls = tls
        self._handlers: set[Any] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for handler in list(self._handlers):
            handler.cancel()
        await settle(*self._handlers)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/jwks.json"

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self._handlers.add(asyncio.current_task())
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            self.until_left = reader.read
            await self.answer(writer)
        except (EOFError, OSError, RuntimeError):  # the last is uvloop's
            self.left.set()
        except asyncio.CancelledError:  # the server stops
            pass
        finally:
            self._handlers.discard(asyncio.current_task())
            writer.close()


class Api:
    """An app behind a middleware that takes the tokens of the site, by a clock that the test sets."""

    def __init__(self, site: Site, **options: Any) -> None:
        self.clock = Clock()
        options = {"allow_http": True, "clock": self.clock, **options}
        self.client = JWKSClient(site.url, **options)
        self.app = ContextMiddleware(
            hello,
            identity=JWTAuth(issuer=ISSUER, audience=AUDIENCE, jwks=self.client, tenant="org_id", now=self.clock),
        )

    async def ask(self, text: str) -> Exchange:
        async with asyncio.timeout(PATIENCE):
            return await run(self.app, http((b"authorization", b"Bearer " + text.encode())))

    async def status(self, key: Any, **header: Any) -> int:
        """What is answered to a token that nobody has seen before."""
        return (await self.ask(new(key, **header))).status

    async def wait(self) -> int:
        """How many seconds a client is told to wait: there are no keys."""
        exchange = await self.ask(new(A))
        assert (exchange.status, exchange.problem["code"]) == (503, "keys_unavailable")
        [value] = exchange.header(b"retry-after")
        return int(value)

    async def landed(self) -> None:
        """The fetch that is under way, if there is one, has ended."""
        flight = self.client._flight and self.client._flight.task
        if flight is not None:
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait({flight})


@asynccontextmanager
async def api(site: Site, **options: Any) -> AsyncIterator[Api]:
    made = Api(site, **options)
    try:
        yield made
    finally:
        await made.app.close()


def new(key: Any, **header: Any) -> str:
    return token(key, header, exp=NOW + 1_000_000, jti=str(next(_numbers)))


async def test_keys_come_by_the_client_that_is_installed(
    library: str, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    async with Site(A) as site, api(site) as world:
        assert await world.status(A) == 200
        assert await world.status(B) == 401
        [head] = site.asked
        assert head.startswith(b"GET /jwks.json HTTP/1.1\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        assert fields[b"user-agent"].startswith(f"python-{library}/".encode())
        assert fields[b"accept-encoding"] == b"identity"
        assert not {b"authorization", b"cookie"} & set(fields), "nothing of who asked goes there"
        assert log() == []


def test_without_any_client_there_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the first token, and not in a log."""
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ImportError, match=r"install asgi-tenant-context\[jwt\], or give fetch="):
        JWKSClient("https://id.example.com/jwks.json")


async def test_a_fetch_of_ones_own_needs_no_client(asyncio_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.setitem(sys.modules, "httpx2", None)

    async def fetch(url: str) -> bytes:
        return key_set(A)

    async with Site() as site, api(site, fetch=fetch) as world:
        assert await world.status(A) == 200


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"303 See Other", b"307 Temporary", b"308 Permanent"])
async def test_redirects_are_not_followed(
    status: bytes, library: str, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    async with Site(A) as site, api(site) as world:
        site.answer = answer(key_set(A), b"location: /elsewhere", status=status)
        assert await world.wait() == COOLDOWN
        assert len(site.asked) == 1
        assert log() == [f"the answer has the status {status.split()[0].decode()}"]


@pytest.mark.parametrize("status", [b"201 Created", b"206 Part", b"401 Who", b"404 Where", b"429 Slow", b"500 Oh"])
async def test_no_other_status_than_200_brings_keys(
    status: bytes, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    async with Site() as site, api(site) as world:
        site.answer = answer(key_set(A), status=status)
        assert await world.wait() == COOLDOWN
        site.answer = answer(key_set(A))
        world.clock.go(COOLDOWN)
        assert await world.status(A) == 200
        assert log() == [f"the answer has the status {status.split()[0].decode()}"]


async def test_a_server_that_does_not_answer_is_given_up(
    library: str, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    async with Site() as site, api(site, timeout=BRIEF) as world:
        never = asyncio.Event()
        site.answer = lambda writer: never.wait()
        assert await world.wait() == COOLDOWN
        assert len(log()) == 1


async def test_a_server_that_answers_bit_by_bit_is_given_up(
    library: str, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    """Each bit comes in time; it is the whole that does not."""

    async def drip(writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(BRIEF / 20)

    async with Site() as site, api(site, timeout=BRIEF) as world:
        site.answer = drip
        assert await world.wait() == COOLDOWN
        assert log() == ["TimeoutError"]


@pytest.mark.parametrize("limit", [256 * 1024, 1000])
async def test_a_body_without_an_end_is_cut(
    limit: int, library: str, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    async def flow(writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    async with Site() as site, api(site, max_bytes=limit) as world:
        site.answer = flow
        assert await world.wait() == COOLDOWN
        assert log() == ["the answer is too large"]
        async with asyncio.timeout(PATIENCE):
            await site.left.wait()


async def test_a_body_that_says_how_long_it_is_is_cut_as_well(
    library: str, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    async with Site() as site, api(site, max_bytes=1000) as world:
        site.answer = answer(key_set(A) + b" " * 1000)
        assert await world.wait() == COOLDOWN
        assert log() == ["the answer is too large"]


@pytest.mark.parametrize("size", [1, 10_000_000], ids=["small", "bomb"])
async def test_a_compressed_body_is_not_unpacked(
    size: int, library: str, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    packed = gzip.compress(key_set(A) + b" " * size)
    assert len(packed) < 256 * 1024
    async with Site() as site, api(site) as world:
        site.answer = answer(packed, b"content-encoding: gzip")
        assert await world.wait() == COOLDOWN
        assert log() == ["the key set is not strict JSON"]


BROKEN = {
    "nothing": b"",
    "no HTTP": b"tell-nobody\r\n\r\n",
    "head without an end": b"HTTP/1.1 200 OK\r\ncontent-type: ",
    "body that ends too early": b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + key_set(A),
    "chunk that ends too early": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfff\r\n" + key_set(A),
    "no JSON": b"HTTP/1.1 200 OK\r\n\r\n<title>tell-nobody</title>",
}


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in BROKEN.items()])
async def test_an_answer_that_breaks_off_is_a_failed_attempt(
    raw: bytes, library: str, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    async def write(writer: Writer) -> None:
        writer.write(raw)
        await writer.drain()

    async with Site(A) as site, api(site) as world:
        assert await world.status(A) == 200
        site.answer = write
        world.clock.go(COOLDOWN)
        assert await world.status(B) == 401
        assert await world.status(A) == 200
        assert len(log()) == 1


async def test_a_port_that_nobody_listens_at_is_a_failed_attempt(
    library: str, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    async with Site(A) as site, api(site) as world:
        await site.stop()
        assert await world.wait() == COOLDOWN
        assert log() == ["ConnectError"]
        await site.start()
        world.clock.go(COOLDOWN)
        assert await world.status(A) == 200


async def test_http_is_refused_unless_it_is_allowed(asyncio_only: None) -> None:
    async with Site(A) as site:
        with pytest.raises(ValueError, match="allow_http=True"):
            JWKSClient(site.url)
        with pytest.raises(ValueError, match="allow_http=True"):
            JWTAuth(issuer=ISSUER, audience=AUDIENCE, jwks_url=site.url, tenant="org_id")
        assert site.asked == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a key and a certificate for this machine, which nobody has reason to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    moment = datetime.now(UTC)
    made = (
        x509
        .CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(moment - timedelta(days=1))
        .not_valid_after(moment + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize("trusted", [False, True])
def test_an_issuer_must_prove_who_it_is(
    trusted: bool, certificate: Path, monkeypatch: pytest.MonkeyPatch, log: Callable[[], list[str]]
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)

    async def ask() -> None:
        # A loop of its own, since the server's complains of the handshake that the client has broken off.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        async with Site(A, tls=tls) as site:
            assert site.url.startswith("https://")
            auth = JWTAuth(issuer=ISSUER, audience=AUDIENCE, jwks_url=site.url, tenant="org_id", now=Clock())
            if trusted:
                assert (await auth.verify(new(A))).tenant == "acme"
            else:
                with pytest.raises(RequestRejected, match="keys_unavailable"):
                    await auth.verify(new(A))
                assert site.asked == []
                assert log() == ["ConnectError"]
            await auth.close()

    asyncio.run(ask())


async def test_closing_cancels_what_is_fetched(library: str, asyncio_only: None) -> None:
    async with Site() as site, api(site) as world:
        never = asyncio.Event()
        asked = asyncio.Event()

        async def hang(writer: Writer) -> None:
            asked.set()
            await never.wait()

        site.answer = hang
        asker = spawn(world.wait())
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
        assert not asker.done()
        await world.app.close()
        [wait] = await settle(asker)
        assert wait >= 1
        site.answer = answer(key_set(A))
        world.clock.go(COOLDOWN)
        assert await world.status(A) == 200


async def test_no_connection_is_kept_from_one_fetch_to_the_next(library: str, asyncio_only: None) -> None:
    """Where there is no lifespan, nobody would close it."""
    let_go = asyncio.Event()

    async def keep(writer: Writer) -> None:
        body = key_set(A)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await site.until_left()
        let_go.set()

    async with Site() as site, api(site) as world:
        site.answer = keep
        assert await world.status(A) == 200
        async with asyncio.timeout(PATIENCE):
            await let_go.wait()
        await world.app.close()
        world.clock.go(TTL)
        assert await world.status(A) == 200
        assert len(site.asked) == 2


@pytest.mark.parametrize("closed", [True, False])
def test_one_client_serves_event_loops_one_after_another(closed: bool, library: str) -> None:
    made: list[Any] = []

    async def life(key: Any, other: Any) -> None:
        async with Site(key) as site:
            if not made:
                made.append(Api(site))
            [world] = made
            world.client.url = site.url  # which is on another port each time
            assert await world.status(key) == 200
            assert await world.status(other) == 401
            if closed:
                await world.app.close()
            world.clock.go(COOLDOWN)

    asyncio.run(life(A, B))
    asyncio.run(life(B, A))
    asyncio.run(life(A, B))


async def test_rotation(library: str, asyncio_only: None) -> None:
    async with Site(A) as site, api(site) as world:
        cached = new(A)
        assert (await world.ask(cached)).status == 200
        world.clock.go(COOLDOWN)
        site.answer = answer(key_set(A, B))
        assert await world.status(B) == 200, "the new key is taken at its first token"
        assert (await world.ask(cached)).status == 200
        site.answer = answer(key_set(B))
        assert await world.status(A) == 200, "nobody has told yet"
        world.clock.go(TTL - 1)
        assert (await world.ask(cached)).status == 200  # and begins a refresh
        await world.landed()
        refused = await world.ask(cached)
        assert (refused.status, refused.problem["code"]) == (401, "invalid_token")
        assert await world.status(A) == 401
        assert await world.status(B) == 200
        # The tokens of A that came after that have asked once more.
        assert len(site.asked) == 3


async def test_outage(library: str, asyncio_only: None, log: Callable[[], list[str]]) -> None:
    async with Site(A) as site, api(site) as world:
        assert await world.status(A) == 200
        await site.stop()
        begin = world.clock.now
        while world.clock.now < begin + TTL + STALE - 300:
            assert await world.status(A) == 200
            await world.landed()
            world.clock.go(100)
        assert len(log()) < 20, "in an hour"
        world.clock.now = begin + TTL + STALE - 0.5
        assert await world.status(A) == 200
        await world.landed()
        world.clock.go(0.5)
        wait = await world.wait()
        world.clock.go(wait - 1)
        attempts = len(log())
        assert await world.wait() == 1
        assert len(log()) == attempts
        await site.start()
        world.clock.go(1)
        assert await world.status(A) == 200
        assert len(site.asked) == 2


async def test_flood(library: str, asyncio_only: None, log: Callable[[], list[str]]) -> None:
    async with Site(A) as site, api(site) as world:
        assert await asyncio.gather(*(world.status(A) for _ in range(100))) == [200] * 100
        assert len(site.asked) == 1
        for round_ in range(2, 4):
            world.clock.go(COOLDOWN)
            flood = [spawn(world.status(A, kid=f"{round_}-{number}")) for number in range(200)]
            assert await world.status(A) == 200
            assert await settle(*flood) == [401] * 200
            assert await world.status(B) == 401
            assert len(site.asked) == round_
        await site.stop()
        world.clock.go(COOLDOWN)
        flood = [spawn(world.status(A, kid=f"down-{number}")) for number in range(200)]
        assert await settle(*flood) == [401] * 200
        assert await world.status(A) == 200
        assert log() == ["ConnectError"]


class Publisher:
    """The issuer as an app, for a server in a thread of its own."""

    def __init__(self, *keys: Any) -> None:
        self.keys = keys
        self.asked = 0
        self.down = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        status = 500 if self.down else 200
        # Without a lifespan nobody closes the client, which would keep its connection.
        await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": key_set(*self.keys)})


@pytest.mark.parametrize("lifespan", [True, False], ids=["lifespan", "no lifespan"])
def test_from_server_to_server(lifespan: bool, log: Callable[[], list[str]]) -> None:
    """An issuer and an API, both behind real servers, and a client that speaks to the API in bytes."""
    issuer, clock, seen = Publisher(A), Clock(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{step}"
                await send({"type": f"lifespan.{step}.complete"})
            return
        seen.append(current_context().tenant)
        await hello(scope, receive, send)

    with serving(Uvicorn, issuer) as publishing:
        url = f"http://127.0.0.1:{publishing.port}/jwks.json"
        client = JWKSClient(url, allow_http=True, clock=clock)
        auth = JWTAuth(issuer=ISSUER, audience=AUDIENCE, jwks=client, tenant="org_id", now=clock)
        with serving(Uvicorn, ContextMiddleware(app, identity=auth), lifespan=lifespan) as api_server:
            assert api_server.started, api_server.failure

            def ask(text: str) -> tuple[int, list[bytes]]:
                with Wire(api_server.port) as wire:
                    response = wire.ask(request(b"authorization: Bearer " + text.encode()))
                return response.status, response.all(b"retry-after")

            assert ask(new(A)) == (200, [])
            assert ask(new(B)) == (401, [])
            assert issuer.asked == 1
            clock.go(COOLDOWN)
            issuer.keys = (B,)
            assert ask(new(B)) == (200, [])
            assert ask(new(A)) == (401, [])
            assert issuer.asked == 2
            issuer.down = True
            clock.go(TTL + STALE)
            assert ask(new(B)) == (503, [b"10"])
            issuer.down = False
            clock.go(10)
            assert ask(new(B)) == (200, [])
            assert issuer.asked == 4
    assert seen == ["acme"] * 3
    assert log() == ["the answer has the status 500"]
