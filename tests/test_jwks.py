"""The keys of an issuer are fetched once, used for a while, and whoever asks is never at the mercy of what is fetched.

No network: what fetches is a fake, and so is the clock.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from itertools import count
from typing import Any

import anyio
import pytest
from driver import Exchange, Seen, hello, http, run
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt_makers import AUDIENCE, ISSUER, NOW, make_key, token
from resources import LONG, settle, soon, spawn, turns

from asgi_context import ContextMiddleware, Identity, RequestRejected, bind_context, current_context
from asgi_context.errors import UnsupportedLoopError
from asgi_context.jwt import Issuer, JWKSClient, JWTAuth

pytestmark = pytest.mark.anyio

URL = "https://id.example.com/jwks.json"
A, B, C = (make_key("ES256", kid) for kid in ("a", "b", "c"))
TTL, STALE, COOLDOWN = 600, 3600, 10  # seconds; what holds unless said otherwise
LATE = NOW + 1_000_000  # when the tokens expire: not while a test runs
MARK = "tell-nobody"  # part of what must not be found in a log

_numbers = count()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What was logged as a warning or worse; nothing of a body, an error's text or a token is, whatever the level."""
    caplog.set_level(logging.DEBUG)
    yield lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name == "asgi_context" and record.levelno >= logging.WARNING
    ]
    assert MARK not in caplog.text
    for key in (A, B, C):
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
    return json.dumps({"keys": [key if isinstance(key, dict) else key.jwk for key in keys]}).encode()


class Source:
    """Stands for the issuer's web server."""

    def __init__(self, *keys: Any) -> None:
        self.body: Any = key_set(*keys)
        self.error: BaseException | None = None
        self.fetches = 0
        self.cancelled = 0
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.look: Callable[[], object] = lambda: None
        self.seen: list[object] = []

    async def __call__(self, url: str) -> Any:
        assert url == URL
        self.fetches += 1
        self.begun.set()
        self.seen.append(self.look())
        try:
            if not self.go.is_set():
                await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.body


class World:
    """An issuer, a client of its keys, and what asks for them; all by one clock."""

    def __init__(self, *keys: Any, **options: Any) -> None:
        self.clock = Clock()
        self.source = Source(*keys)
        self.client = JWKSClient(URL, **{"fetch": self.source, "clock": self.clock, **options})
        self.auth = JWTAuth(issuer=ISSUER, audience=AUDIENCE, jwks=self.client, tenant="org_id", now=self.clock)
        self.app = ContextMiddleware(hello, identity=self.auth)

    async def verify(self, text: str) -> Identity:
        async with asyncio.timeout(LONG):
            return await self.auth.verify(text)

    async def accepts(self, key: Any, **header: Any) -> bool:
        """Whether a token that nobody has seen before is accepted."""
        try:
            identity = await self.verify(new(key, **header))
        except RequestRejected as rejection:
            assert (rejection.status, rejection.code) == (401, "invalid_token")
            return False
        assert (identity.tenant, identity.user) == ("acme", "ann")
        return True

    async def waits(self) -> int:
        """How many seconds whoever asks is told to wait: there are no keys."""
        with pytest.raises(RequestRejected) as refused:
            await self.verify(new(A))
        return after(refused.value)

    async def landed(self) -> None:
        """The fetch that is under way, if there is one, has ended."""
        flight = self.client._flight and self.client._flight.task
        if flight is not None:
            async with asyncio.timeout(LONG):
                await asyncio.wait({flight})


def after(rejection: RequestRejected) -> int:
    assert (rejection.status, rejection.code) == (503, "keys_unavailable")
    [(name, value)] = rejection.headers
    assert name == b"retry-after"
    return int(value)


def new(key: Any, **header: Any) -> str:
    """A token that no other test has made."""
    return token(key, header, exp=LATE, jti=str(next(_numbers)))


def bearer(text: str) -> dict[str, Any]:
    return http((b"authorization", b"Bearer " + text.encode()))


async def fetched(*keys: Any, first: Any = None, **options: Any) -> World:
    """A world whose keys are there, and were fetched so long ago that they may be fetched again."""
    world = World(*keys, **options)
    assert await world.accepts(first or keys[0])
    assert world.source.fetches == 1
    world.clock.go(options.get("cooldown", COOLDOWN))
    return world


async def test_a_hundred_that_ask_at_once_wait_for_one_fetch(asyncio_only: None) -> None:
    world = World(A)
    world.source.go.clear()
    askers = [spawn(world.accepts(A)) for _ in range(100)]
    await soon(world.source.begun)
    await turns()
    assert not any(asker.done() for asker in askers)
    world.source.go.set()
    assert await settle(*askers) == [True] * 100
    assert world.source.fetches == 1


@pytest.mark.parametrize("leaving", [slice(0, 1), slice(1, None, 2), slice(None)], ids=["first", "every other", "all"])
async def test_an_asker_that_is_cancelled_cancels_neither_the_fetch_nor_the_others(
    leaving: slice, asyncio_only: None
) -> None:
    world = World(A)
    world.source.go.clear()
    askers = [spawn(world.accepts(A)) for _ in range(10)]
    await soon(world.source.begun)
    await turns()
    gone = askers[leaving]
    for asker in gone:
        asker.cancel()
    await settle(*gone)
    assert all(asker.cancelled() for asker in gone)
    world.source.go.set()
    assert await settle(*(asker for asker in askers if asker not in gone)) == [True] * (10 - len(gone))
    await world.landed()
    assert await world.accepts(A)
    assert (world.source.fetches, world.source.cancelled) == (1, 0)


async def test_a_client_that_hangs_up_leaves_the_fetch_to_the_next_request(asyncio_only: None) -> None:
    """The first request opens the middleware as well, where there is no lifespan; it is one fetch all the same."""
    world = World(A)
    world.source.go.clear()
    first = spawn(run(world.app, bearer(new(A))))
    await soon(world.source.begun)
    await turns()
    first.cancel()
    await settle(first)
    second = spawn(run(world.app, bearer(new(A))))
    await turns()
    world.source.go.set()
    [exchange] = await settle(second)
    assert exchange.status == 200
    assert (world.source.fetches, world.source.cancelled) == (1, 0)


async def test_keys_are_used_for_ten_minutes(asyncio_only: None) -> None:
    world = World(A)
    for _ in range(10):
        assert await world.accepts(A)
        world.clock.go(TTL / 20)
    assert world.source.fetches == 1


async def test_keys_are_refreshed_ahead_and_nobody_waits_for_that(asyncio_only: None) -> None:
    world = await fetched(A)
    world.clock.go(TTL - COOLDOWN - 1)
    world.source.go.clear()
    assert [await world.accepts(A) for _ in range(10)] == [True] * 10
    await turns()
    assert world.source.fetches == 2
    world.source.go.set()
    await world.landed()
    for _ in range(4):  # which now are good for ten minutes more
        world.clock.go(TTL / 10)
        assert await world.accepts(A)
    assert world.source.fetches == 2


async def test_keys_that_nobody_has_asked_for_in_ten_minutes_are_waited_for(asyncio_only: None) -> None:
    world = await fetched(A)
    world.source.body = key_set(B)
    world.clock.go(TTL - COOLDOWN)
    assert not await world.accepts(A)
    assert await world.accepts(B)
    assert world.source.fetches == 2


async def test_how_long_keys_are_used_can_be_said(asyncio_only: None) -> None:
    world = await fetched(A, ttl=60, cooldown=1)
    world.clock.go(20)
    assert await world.accepts(A)
    assert world.source.fetches == 1
    world.source.body = key_set(B)
    world.clock.go(39)
    assert not await world.accepts(A)
    assert world.source.fetches == 2


@pytest.mark.parametrize("idle", [True, False], ids=["after nobody asked", "while they are asked for"])
async def test_stale_keys_are_used_for_an_hour_and_no_longer(
    idle: bool, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    world = await fetched(A)
    fetched_at = world.clock.now - COOLDOWN
    world.source.error = OSError(MARK)
    while not idle and world.clock.now < fetched_at + TTL + STALE - 60:
        assert await world.accepts(A)
        await world.landed()
        world.clock.go(30)
    world.clock.now = fetched_at + TTL + STALE - 0.5
    assert await world.accepts(A)
    await world.landed()
    world.clock.now = fetched_at + TTL + STALE
    assert await world.waits() >= 1
    assert world.source.fetches > 1
    assert set(log()) == {"the keys of id.example.com could not be fetched: OSError"}


async def test_without_stale_keys_go_when_their_time_is_over(asyncio_only: None) -> None:
    world = await fetched(A, stale=0)
    world.source.error = OSError()
    world.clock.go(TTL - COOLDOWN - 1)
    assert await world.accepts(A)
    await world.landed()
    world.clock.go(1)
    assert await world.waits() >= 1


async def test_while_stale_keys_are_used_nobody_waits_for_an_attempt(asyncio_only: None) -> None:
    world = await fetched(A)
    world.source.error = OSError()
    world.clock.go(TTL)
    assert await world.accepts(A)  # this one did
    world.clock.go(100)
    world.source.go.clear()
    assert [await world.accepts(A) for _ in range(10)] == [True] * 10
    await turns()
    assert world.source.fetches == 3
    world.source.go.set()
    await world.landed()


async def test_the_first_refresh_that_works_again_ends_an_outage(asyncio_only: None) -> None:
    world = await fetched(A)
    world.source.error = OSError()
    world.clock.go(TTL)
    assert await world.accepts(A)
    world.source.error, world.source.body = None, key_set(B)
    world.clock.go(COOLDOWN)
    world.source.go.clear()
    assert await world.accepts(A)  # and begins the refresh
    world.source.go.set()
    await world.landed()
    assert not await world.accepts(A)
    assert await world.accepts(B)


async def test_a_refresh_that_fails_forgets_no_verified_token(asyncio_only: None) -> None:
    world = await fetched(A)
    text = new(A)
    identity = await world.verify(text)
    world.source.error = OSError()
    world.clock.go(TTL)
    assert await world.verify(text) is identity
    assert world.source.fetches == 2


async def test_down_and_nothing_cached_is_503_and_says_when_to_come_again(
    asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    world = World(A)
    world.source.error = OSError(MARK)
    exchange = await run(world.app, bearer(new(A)))
    assert exchange.status == 503
    assert exchange.problem["code"] == "keys_unavailable"
    [wait] = exchange.header(b"retry-after")
    assert exchange.header(b"www-authenticate") == []
    assert log() == ["the keys of id.example.com could not be fetched: OSError"]
    world.source.error = None
    world.clock.go(int(wait))
    assert (await run(world.app, bearer(new(A)))).status == 200


async def test_no_app_runs_while_there_are_no_keys(asyncio_only: None) -> None:
    world = World(A)
    world.source.error = OSError()
    seen = Seen(lambda: None)
    await run(ContextMiddleware(seen, identity=world.auth), bearer(new(A)))
    assert seen.seen == []


async def test_a_request_without_a_token_needs_no_keys(asyncio_only: None) -> None:
    world = World(A)
    world.source.error = OSError()
    assert (await run(world.app, http())).status == 401


async def times_of_attempts(world: World, seconds: int, ask: Callable[[], Any]) -> list[float]:
    """Ask once a second; after how many seconds was something fetched?"""
    begin, times = world.clock.now, []
    for _ in range(seconds):
        before = world.source.fetches
        await ask()
        await world.landed()
        assert world.source.fetches - before in {0, 1}
        if world.source.fetches > before:
            times.append(world.clock.now - begin)
        world.clock.go(1)
    return times


async def test_the_pause_between_attempts_doubles_up_to_five_minutes(asyncio_only: None) -> None:
    world = World(A)
    world.source.error = OSError()
    assert await times_of_attempts(world, 1300, world.waits) == [0, 10, 30, 70, 150, 310, 610, 910, 1210]


async def test_retry_after_is_true(asyncio_only: None) -> None:
    """Whoever comes again then has the keys fetched, and nobody who comes a second earlier."""
    world = World(A)
    world.source.error = OSError()
    for number in range(1, 9):
        wait = await world.waits()
        assert world.source.fetches == number
        world.clock.go(0.5)
        assert await world.waits() == wait  # which is not told too short by rounding
        world.clock.go(wait - 1.5)
        assert await world.waits() == 1
        assert world.source.fetches == number
        world.clock.go(1)


async def test_a_cooldown_above_five_minutes_is_kept_to(asyncio_only: None) -> None:
    world = World(A, cooldown=400)
    world.source.error = OSError()
    assert await times_of_attempts(world, 1000, world.waits) == [0, 400, 800]


async def test_the_pause_begins_when_an_attempt_has_ended(asyncio_only: None) -> None:
    world = World(A)
    world.source.error = OSError()
    world.source.look = lambda: world.clock.go(4)  # so long it takes
    assert await world.waits() == COOLDOWN
    world.clock.go(COOLDOWN - 0.1)
    await world.waits()
    assert world.source.fetches == 1
    world.clock.go(0.1)
    await world.waits()
    assert world.source.fetches == 2


async def test_a_success_ends_the_back_off(asyncio_only: None) -> None:
    world = World(A)
    world.source.error = OSError()
    await times_of_attempts(world, 200, world.waits)
    world.clock.go(1000)
    world.source.error = None
    assert await world.accepts(A)
    world.clock.go(TTL + STALE)
    world.source.error = OSError()
    assert await times_of_attempts(world, 100, world.waits) == [0, 10, 30, 70]


async def test_attempts_for_unknown_keys_are_counted_like_any_other(asyncio_only: None) -> None:
    world = await fetched(A)
    world.source.error = OSError()

    async def ask() -> None:
        assert not await world.accepts(B)
        assert await world.accepts(A)

    assert await times_of_attempts(world, 400, ask) == [0, 10, 30, 70, 150, 310]


async def test_an_unknown_key_has_the_keys_fetched_once_per_cooldown(asyncio_only: None) -> None:
    world = await fetched(A)
    assert not await world.accepts(B)
    assert world.source.fetches == 2
    for _ in range(20):
        assert not await world.accepts(B)
    world.clock.go(COOLDOWN - 0.1)
    assert not await world.accepts(B)
    assert world.source.fetches == 2
    world.clock.go(0.1)
    assert not await world.accepts(B)
    assert world.source.fetches == 3


async def test_a_flood_of_unknown_keys_has_the_keys_fetched_once_per_cooldown(asyncio_only: None) -> None:
    world = await fetched(A)
    begin = world.source.fetches
    for round_ in range(1, 4):
        world.source.go.clear()
        flood = [spawn(world.accepts(A, kid=f"{round_}-{number}")) for number in range(200)]
        await turns()
        assert await world.accepts(A), "whose key is known waits for none of them"
        world.source.go.set()
        assert await settle(*flood) == [False] * 200
        for number in range(50):
            assert not await world.accepts(A, kid=f"{round_}-{number}-late")
            world.clock.go(COOLDOWN / 100)
        assert world.source.fetches == begin + round_
        world.clock.go(COOLDOWN / 2)


async def test_the_cooldown_can_be_said(asyncio_only: None) -> None:
    world = await fetched(A, cooldown=60)
    assert await times_of_attempts(world, 150, lambda: world.accepts(B)) == [0, 60, 120]


async def test_a_fetch_for_an_unknown_key_is_a_refresh_too(asyncio_only: None) -> None:
    world = await fetched(A)
    world.clock.go(TTL / 2)
    assert not await world.accepts(B)
    world.clock.go(TTL / 2)
    assert await world.accepts(A)
    await turns()
    assert world.source.fetches == 2


@pytest.mark.parametrize(
    "header", [{"kid": ...}, {"kid": "a", "alg": "RS256"}, {"kid": 1}], ids=["no kid", "other alg", "no string"]
)
async def test_no_other_fault_of_a_token_has_the_keys_fetched(header: dict[str, Any], asyncio_only: None) -> None:
    world = await fetched(A, B)
    assert not await world.accepts(C, **header)
    assert world.source.fetches == 1


async def test_a_forged_signature_has_no_keys_fetched(asyncio_only: None) -> None:
    world = await fetched(A)
    assert not await world.accepts(B, kid="a")
    assert world.source.fetches == 1


@pytest.mark.parametrize("named", [None, "a", "https://id.example.com/other.json"])
async def test_urls_in_a_token_are_never_followed(named: str | None, asyncio_only: None) -> None:
    """`Source` would fail at any other address than the one that is configured."""
    world = await fetched(A)
    other = "https://evil.example.com/jwks.json"
    header = {"jku": other, "x5u": other, "jwk": B.jwk, "x5c": [MARK], "kid": ... if named is None else named}
    assert not await world.accepts(B, **header)
    assert world.client._failures == 0


async def test_tokens_of_a_foreign_issuer_have_no_keys_fetched(asyncio_only: None) -> None:
    clock, sources = Clock(), [Source(A), Source(B)]
    clients = [JWKSClient(URL, fetch=source, clock=clock) for source in sources]
    issuers = [
        Issuer(f"{ISSUER}/{number}", audience=AUDIENCE, jwks=client, tenant="org_id", tenants=[f"t{number}"])
        for number, client in enumerate(clients)
    ]
    auth = JWTAuth(issuers=issuers, now=clock)
    with pytest.raises(RequestRejected, match="invalid_token"):
        await auth.verify(token(A, iss="https://evil.example.com"))
    assert [source.fetches for source in sources] == [0, 0]
    assert (await auth.verify(token(A, iss=f"{ISSUER}/0", org_id="t0"))).tenant == "t0"
    assert [source.fetches for source in sources] == [1, 0]


async def test_a_new_key_is_accepted_from_its_first_token_on(asyncio_only: None) -> None:
    world = await fetched(A)
    world.source.body = key_set(A, B)
    assert await world.accepts(B)
    assert await world.accepts(A)
    assert world.source.fetches == 2


async def test_all_that_come_with_a_new_key_at_once_are_accepted(asyncio_only: None) -> None:
    world = await fetched(A)
    world.source.body = key_set(B)
    world.source.go.clear()
    askers = [spawn(world.accepts(B)) for _ in range(20)]
    await turns()
    world.source.go.set()
    assert await settle(*askers) == [True] * 20
    assert world.source.fetches == 2


async def test_a_key_that_was_taken_out_is_refused_after_the_refresh(asyncio_only: None) -> None:
    world = await fetched(A, B)
    world.source.body = key_set(B)
    world.clock.go(TTL - COOLDOWN - 1)
    world.source.go.clear()
    assert await world.accepts(A)  # and begins it
    world.source.go.set()
    await world.landed()
    assert not await world.accepts(A)
    assert await world.accepts(B)


GONE = {
    "taken out": [B],
    "another of its name": [B, B.jwk | {"kid": "a"}],
    "renamed": [B, A.jwk | {"kid": "c"}],
    "for encryption now": [B, A.jwk | {"use": "enc"}],
    "not to verify now": [B, A.jwk | {"key_ops": ["sign"]}],
    "for another algorithm now": [B, A.jwk | {"alg": "ES384"}],
}


@pytest.mark.parametrize("left", [pytest.param(keys, id=name) for name, keys in GONE.items()])
async def test_verified_tokens_are_forgotten_when_a_key_goes(left: list[Any], asyncio_only: None) -> None:
    world = await fetched(A)
    text = new(A)
    await world.verify(text)
    world.source.body = key_set(*left)
    assert await world.accepts(B)
    with pytest.raises(RequestRejected, match="invalid_token"):
        await world.verify(text)


async def test_verified_tokens_are_kept_when_keys_are_added(asyncio_only: None) -> None:
    world = await fetched(A)
    text = new(A)
    identity = await world.verify(text)
    world.source.body = key_set(C, B, A)
    assert await world.accepts(B)
    assert world.source.fetches == 2
    assert await world.verify(text) is identity


async def test_a_token_of_a_key_that_stays_is_verified_anew_when_another_goes(asyncio_only: None) -> None:
    world = await fetched(A, B)
    text = new(B)
    identity = await world.verify(text)
    world.source.body = key_set(B, C)
    assert await world.accepts(C)
    again = await world.verify(text)
    assert again == identity
    assert again is not identity
    assert await world.verify(text) is again


async def test_verified_tokens_are_forgotten_when_their_key_is_for_another_algorithm(asyncio_only: None) -> None:
    rsa = make_key("RS256", "r")
    world = await fetched(rsa.jwk | {"alg": "RS256"}, first=rsa)
    text = new(rsa)
    await world.verify(text)
    world.source.body = key_set(rsa.jwk | {"alg": "RS512"}, B)
    assert await world.accepts(B)
    with pytest.raises(RequestRejected, match="invalid_token"):
        await world.verify(text)


async def test_keys_are_looked_after_also_when_only_cached_tokens_come_in(asyncio_only: None) -> None:
    world = await fetched(A)
    text = new(A)
    await world.verify(text)
    world.source.body = key_set(B)
    world.clock.go(TTL - COOLDOWN - 1)
    world.source.go.clear()
    await world.verify(text)  # does not wait
    await turns()
    assert world.source.fetches == 2
    world.source.go.set()
    await world.landed()
    with pytest.raises(RequestRejected, match="invalid_token"):
        await world.verify(text)


async def test_a_cached_token_waits_for_keys_whose_time_is_over(asyncio_only: None) -> None:
    world = await fetched(A)
    text = new(A)
    await world.verify(text)
    world.source.body = key_set(B)
    world.clock.go(TTL)
    with pytest.raises(RequestRejected, match="invalid_token"):
        await world.verify(text)
    assert world.source.fetches == 2


async def test_a_cached_token_is_refused_when_stale_keys_have_gone(asyncio_only: None) -> None:
    world = await fetched(A)
    text = new(A)
    await world.verify(text)
    world.source.error = OSError()
    world.clock.go(TTL + STALE)
    with pytest.raises(RequestRejected) as refused:
        await world.verify(text)
    assert after(refused.value) >= 1


async def test_cached_tokens_go_with_the_keys_that_another_token_has_found_gone(asyncio_only: None) -> None:
    world = await fetched(A)
    text = new(A)
    await world.verify(text)
    world.source.error = OSError()
    world.clock.go(TTL + STALE)
    await world.waits()
    with pytest.raises(RequestRejected) as refused:
        await world.verify(text)
    assert after(refused.value) == COOLDOWN


async def test_a_token_that_brought_its_key_is_forgotten_with_it(asyncio_only: None) -> None:
    world = await fetched(A)
    text = new(B)
    world.source.body = key_set(B)
    await world.verify(text)
    world.clock.go(COOLDOWN)
    world.source.body = key_set(C)
    assert await world.accepts(C)
    with pytest.raises(RequestRejected, match="invalid_token"):
        await world.verify(text)


def padded(body: bytes, size: int) -> bytes:
    return body + b" " * (size - len(body))


def many(number: int) -> bytes:
    return key_set(B, *({"kty": "EC", "kid": str(n)} for n in range(number - 1)))


SECRET = {"kty": "oct", "kid": "s", "k": f"{MARK}{'A' * 64}"}
BAD: dict[str, Any] = {
    "a secret": key_set(SECRET),
    "a secret beside a key": key_set(B, SECRET),
    "a secret for encryption": key_set(B, SECRET | {"use": "enc"}),
    "a kid twice": key_set(B, C.jwk | {"kid": "b"}),
    "the same key twice": key_set(B, B),
    "a kid twice, once not for signatures": key_set(B, C.jwk | {"kid": "b", "use": "enc"}),
    "a kid twice, once not understood": key_set(B, {"kty": MARK, "kid": "b"}),
    "a kid that is a number": key_set(B, C.jwk | {"kid": 1}),
    "a kid that is a list": key_set(B, C.jwk | {"kid": [MARK]}),
    "keys twice": b'{"keys": [], ' + key_set(B)[1:],
    "a member of a key twice": key_set(B).replace(b'"kid"', b'"kid": "tell-nobody", "kid"'),
    "a member twice, once escaped": key_set(B).replace(b'"kid"', b'"\\u006bid": "tell-nobody", "kid"'),
    "half of a character": key_set(B.jwk | {"note": "\ud800"}),
    "101 keys": many(101),
    "256 KiB and a byte": padded(key_set(B), 256 * 1024 + 1),
    "nothing": b"",
    "a page": b"<!doctype html><title>tell-nobody</title>",
    "JSON that ends too early": key_set(B)[:-1],
    "JSON and more": key_set(B) + b"{}",
    "UTF-16": key_set(B).decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + key_set(B),
    "no UTF-8": key_set(B)[:-1] + b', "note": "\xff"}',
    "NaN": key_set(B)[:-1] + b', "note": NaN}',
    "nested deep": b'{"keys":' + b"[" * 50 + b"]" * 50 + b"}",
    "nested too deep to read": b'{"keys":' + b"[" * 100_000,
    "null": b"null",
    "a string": b'"tell-nobody"',
    "a list": b"[" + json.dumps(B.jwk).encode() + b"]",
    "a key by itself": json.dumps(B.jwk).encode(),
    "keys of null": b'{"keys": null}',
    "keys by name": json.dumps({"keys": {"b": B.jwk}}).encode(),
    "keys of a string": b'{"keys": "tell-nobody"}',
    "a key of null": json.dumps({"keys": [B.jwk, None]}).encode(),
    "a key of a list": json.dumps({"keys": [B.jwk, [MARK]]}).encode(),
    "a key of a string": json.dumps({"keys": [B.jwk, MARK]}).encode(),
    "no key": b'{"keys": []}',
    "no key that can be used": key_set(B.jwk | {"use": "enc"}, {"kty": MARK}),
    # What only a fetch of the user's own can give.
    "str": key_set(B).decode(),
    "what was in the JSON": {"keys": [B.jwk]},
    "None": None,
}
bad = pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in BAD.items()])


@bad
async def test_an_answer_that_must_not_be_is_a_failed_attempt(
    body: Any, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    world = await fetched(A)
    world.source.body = body
    assert not await world.accepts(B)
    assert world.source.fetches == 2
    assert await world.accepts(A), "the old keys stay in use"
    [warning] = log()
    assert warning.startswith("the keys of id.example.com could not be fetched: ")
    world.clock.go(COOLDOWN - 0.1)
    assert not await world.accepts(B)
    assert world.source.fetches == 2
    world.clock.go(0.1)
    world.source.body = key_set(B)
    assert await world.accepts(B)


@bad
async def test_where_nothing_is_cached_it_is_503(body: Any, asyncio_only: None, log: Callable[[], list[str]]) -> None:
    world = World()
    world.source.body = body
    assert await world.waits() == COOLDOWN
    assert world.source.fetches == len(log()) == 1


ERRORS = [
    OSError(MARK),
    TimeoutError(MARK),
    ValueError(MARK),
    RecursionError(MARK),
    ExceptionGroup(MARK, [OSError(MARK)]),
    RequestRejected(401, "invalid_token"),
    UnicodeDecodeError("utf-8", MARK.encode(), 0, 1, MARK),
    StopAsyncIteration(MARK),
    asyncio.CancelledError(MARK),
]


@pytest.mark.parametrize("error", [pytest.param(error, id=type(error).__name__) for error in ERRORS])
async def test_whatever_a_fetch_raises_is_a_failed_attempt(
    error: BaseException, asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    world = World(A)
    world.source.error = error
    assert await world.waits() == COOLDOWN
    world.clock.go(COOLDOWN)
    world.source.error = None
    assert await world.accepts(A)


async def test_a_fetch_that_takes_too_long_is_a_failed_attempt(
    asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    world = World(A, timeout=0.01)
    world.source.go.clear()
    assert await world.waits() == COOLDOWN
    assert world.source.cancelled == 1
    assert log() == ["the keys of id.example.com could not be fetched: TimeoutError"]


async def test_an_attempt_may_take_five_seconds(asyncio_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(A)
    limits, timeout = [], asyncio.timeout

    def noting(seconds: float) -> asyncio.Timeout:
        limits.append(seconds)
        return timeout(seconds)

    monkeypatch.setattr(asyncio, "timeout", noting)
    await world.client.keys()
    assert limits == [5]


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (many(100), {}),
        (padded(key_set(B), 256 * 1024), {}),
        (many(101), {"max_keys": 101}),
        (padded(key_set(B), 256 * 1024 + 1), {"max_bytes": 256 * 1024 + 1}),
        (bytearray(key_set(B)), {}),
        (key_set(B)[:-1] + b', "issuer": "more than keys"}', {}),
    ],
    ids=["100 keys", "256 KiB", "as many as said", "as large as said", "bytearray", "more members"],
)
async def test_an_answer_up_to_the_limits_is_taken(body: Any, options: dict[str, Any], asyncio_only: None) -> None:
    world = World(**options)
    world.source.body = body
    assert await world.accepts(B)


@pytest.mark.parametrize(("body", "options"), [(many(3), {"max_keys": 2}), (key_set(B), {"max_bytes": 50})])
async def test_limits_can_be_set_lower(body: bytes, options: dict[str, Any], asyncio_only: None) -> None:
    world = World(**options)
    world.source.body = body
    assert await world.waits()


STRANGE: dict[str, dict[str, Any]] = {
    "kty unknown": {"kty": "AKP"},
    "kty of another type": {"kty": ["EC"]},
    "without kty": B.jwk | {"kty": None},
    "curve unknown": B.jwk | {"crv": "P-1"},
    "curve of another family": B.jwk | {"crv": "Ed25519"},
    "curve not for signatures": {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
    "curve that JWS has no algorithm for": B.jwk | {"crv": "secp256k1"},
    "point not on the curve": B.jwk | {"x": A.jwk["x"]},
    "without y": {name: value for name, value in B.jwk.items() if name != "y"},
    "number for x": B.jwk | {"x": 1},
    "no base64url": B.jwk | {"x": "\u00e9"},
    "for encryption": B.jwk | {"use": "enc"},
    "use of another type": B.jwk | {"use": ["sig"]},
    "operations without verify": B.jwk | {"key_ops": ["sign", "encrypt"]},
    "operations of another type": B.jwk | {"key_ops": "verify"},
    "algorithm of another family": B.jwk | {"alg": "RS256"},
    "algorithm of a secret": B.jwk | {"alg": "HS256"},
    "algorithm none": B.jwk | {"alg": "none"},
    "algorithm of another type": B.jwk | {"alg": ["ES256"]},
    "RSA of 1024 bits": make_key("RS256", "small", bits=1024).jwk,
    "RSA without exponent": {"kty": "RSA", "n": "AQAB"},
}


@pytest.mark.filterwarnings("ignore:Key size should be")  # joserfc's, for the small one
@pytest.mark.parametrize("other", [pytest.param(key, id=name) for name, key in STRANGE.items()])
async def test_a_key_that_is_not_understood_or_not_for_signatures_is_ignored(
    other: dict[str, Any], asyncio_only: None, log: Callable[[], list[str]]
) -> None:
    world = World(other | {"kid": "b"}, A)
    assert await world.accepts(A)
    assert not await world.accepts(B)
    assert log() == []


async def test_members_of_a_key_that_say_nothing_of_verifying_do_not_matter(asyncio_only: None) -> None:
    world = World(A.jwk | {"x5c": [MARK], "x5t": 1, "nbf": [], "use": "sig", "key_ops": ["verify", "sign"]})
    assert await world.accepts(A)


async def test_a_key_without_a_name_is_for_any(asyncio_only: None) -> None:
    nameless = make_key("ES256", None)
    world = await fetched(A, nameless)
    assert await world.accepts(nameless, kid="whatever")
    assert world.source.fetches == 1


odd = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just([]) | st.just(["verify"]) | st.just({})
odd |= st.sampled_from(["EC", "RSA", "OKP", "P-256", "P-521", "Ed25519", "Ed448", "AQAB", "ES256", "RS256", "sig"])
members = st.sampled_from(["kty", "crv", "x", "y", "n", "e", "d", "use", "key_ops", "alg", "x5c", "k"])


@given(st.dictionaries(members, odd), st.booleans())
@settings(max_examples=100)
def test_no_key_takes_another_one_with_it(changes: dict[str, Any], based: bool) -> None:
    """But for a secret, which nobody may know."""
    strange = (B.jwk if based else {}) | changes | {"kid": "strange"}
    client = JWKSClient(URL)
    if strange.get("kty") == "oct":
        return
    ring = client._read(key_set(strange, A))
    assert ring.find("a", "ES256") is not None


@given(st.binary(max_size=200) | st.recursive(odd, lambda inner: st.lists(inner) | st.dictionaries(members, inner)))
@settings(max_examples=100)
def test_no_answer_has_more_effect_than_none(answer: Any) -> None:
    if not isinstance(answer, bytes):
        answer = json.dumps({"keys": answer}).encode()

    async def ask() -> None:
        world = World()
        world.source.body = answer
        with pytest.raises(RequestRejected) as refused:
            await world.client.find("a", "ES256")
        assert after(refused.value) == COOLDOWN

    asyncio.run(ask())


async def test_the_client_takes_keys_for_the_algorithms_that_are_allowed(asyncio_only: None) -> None:
    rsa = make_key("RS256", "r")
    world = World(A, rsa, algorithms=frozenset({"RS256"}))
    assert await world.accepts(rsa)
    assert not await world.accepts(A)
    assert not await world.accepts(rsa, alg="RS512")


async def test_where_no_key_is_for_them_it_is_a_failed_attempt(asyncio_only: None) -> None:
    world = World(A, algorithms=frozenset({"RS256"}))
    assert await world.waits() == COOLDOWN


@pytest.mark.parametrize(("algorithms", "accepted"), [(None, True), (["ES256"], True), (["RS256", "ES384"], False)])
async def test_jwks_url_is_short_for_a_client_with_the_issuers_algorithms(
    algorithms: Any, accepted: bool, asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(A, make_key("ES384", "other"))
    monkeypatch.setattr(JWKSClient, "_get", lambda self, url: source(url))
    auth = JWTAuth(issuer=ISSUER, audience=AUDIENCE, jwks_url=URL, algorithms=algorithms, tenant="org_id")
    if accepted:
        assert (await auth.verify(token(A, exp=2**40))).tenant == "acme"
    else:
        with pytest.raises(RequestRejected, match="invalid_token"):
            await auth.verify(token(A, exp=2**40))
    await auth.close()


async def test_open_begins_to_fetch_but_does_not_wait(asyncio_only: None) -> None:
    world = World(A)
    world.source.go.clear()
    await world.client.open()
    await soon(world.source.begun)
    asker = spawn(world.accepts(A))
    await turns()
    assert not asker.done()
    world.source.go.set()
    assert await settle(asker) == [True]
    assert world.source.fetches == 1


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "down"])
async def test_an_app_starts_and_stops_though_the_issuer_does_not_answer(hangs: bool, asyncio_only: None) -> None:
    world = World(A)
    world.source.error = OSError()
    if hangs:
        world.source.go.clear()
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for step in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{step}"
            await turns()
            told.append(step)
            await send({"type": f"lifespan.{step}.complete"})

    exchange = Exchange([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    async with asyncio.timeout(LONG):
        await ContextMiddleware(app, identity=world.auth)({"type": "lifespan"}, exchange.receive, exchange.send)
    assert [message["type"] for message in exchange.sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert told == ["startup", "shutdown"]
    assert (world.source.fetches, world.source.cancelled) == (1, int(hangs))


async def test_close_ends_the_fetch_and_lets_go_who_waits(asyncio_only: None) -> None:
    world = World(A)
    world.source.go.clear()
    askers = [spawn(world.auth.verify(new(A))) for _ in range(3)]
    await soon(world.source.begun)
    await turns()
    await world.client.close()
    assert world.source.cancelled == 1
    for refused in await settle(*askers):
        assert after(refused) >= 1


async def test_the_keys_are_kept_when_it_is_closed_and_opened_again(asyncio_only: None) -> None:
    world = await fetched(A)
    await world.client.close()
    world.source.error = OSError()
    await world.client.open()
    await world.landed()
    assert await world.accepts(A)
    assert world.source.fetches == 2


async def test_open_fetches_nothing_anew_within_the_cooldown(asyncio_only: None) -> None:
    world = World(A)
    for _ in range(3):
        await world.client.open()
        await world.landed()
        await world.client.close()
    assert world.source.fetches == 1


async def test_close_may_be_called_at_any_time(asyncio_only: None) -> None:
    world = World(A)
    await world.client.close()
    await world.client.open()
    await world.landed()
    await world.client.close()
    await world.client.close()
    assert await world.accepts(A)


async def test_a_client_that_two_issuers_share_is_opened_once(asyncio_only: None) -> None:
    world = World(A)
    issuers = [
        Issuer(f"{ISSUER}/{name}", audience=None, jwks=world.client, tenant="org_id", tenants=[name])
        for name in ("acme", "globex")
    ]
    auth = JWTAuth(issuers=issuers, now=world.clock)
    await auth.open()
    for name in ("acme", "globex"):
        identity = await auth.verify(token(A, iss=f"{ISSUER}/{name}", org_id=name))
        assert identity.tenant == name
    await auth.close()
    assert world.source.fetches == 1


def test_event_loops_one_after_another_share_the_keys() -> None:
    world = World(A)
    for _ in range(3):
        assert asyncio.run(world.accepts(A))
    assert world.source.fetches == 1
    world.source.body = key_set(B)
    world.clock.go(COOLDOWN)
    assert asyncio.run(world.accepts(B))
    assert world.source.fetches == 2


@pytest.mark.parametrize("closed", [True, False])
def test_a_fetch_that_ended_with_its_loop_is_not_waited_for(closed: bool) -> None:
    world = World(A)
    world.source.go.clear()

    async def begin() -> None:
        await world.client.open()
        await soon(world.source.begun)

    asyncio.run(begin())  # which cancels what is left
    assert world.source.cancelled == 1
    world.source = world.client._fetch = Source(A)
    world.clock.go(COOLDOWN)

    async def go_on() -> bool:
        if closed:
            await world.client.close()
        return await world.accepts(A)

    assert asyncio.run(go_on())
    assert world.source.fetches == 1


@pytest.mark.parametrize("call", ["open", "keys", "find", "verify"])
def test_on_trio_it_is_said_what_is_missing(call: str) -> None:
    world = World(A)
    calls = {
        "open": world.client.open,
        "keys": world.client.keys,
        "find": lambda: world.client.find("a", "ES256"),
        "verify": lambda: world.auth.verify(new(A)),
    }
    with pytest.raises(UnsupportedLoopError, match="fetching the keys of tokens needs a running asyncio event loop"):
        anyio.run(calls[call], backend="trio")
    assert world.source.fetches == 0


def test_on_trio_a_request_is_answered_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    world = World(A)
    exchange = anyio.run(run, world.app, bearer(new(A)), backend="trio")
    assert exchange.status == 500
    assert "fetching the keys of tokens needs a running asyncio event loop" in caplog.text
    assert "eyJ" not in caplog.text


def test_on_trio_an_app_with_a_lifespan_does_not_start(caplog: pytest.LogCaptureFixture) -> None:
    world = World(A)
    exchange = Exchange([{"type": "lifespan.startup"}])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def start() -> None:
        with pytest.raises(UnsupportedLoopError):
            await ContextMiddleware(app, identity=world.auth)({"type": "lifespan"}, exchange.receive, exchange.send)

    anyio.run(start, backend="trio")
    assert [message["type"] for message in exchange.sent] == ["lifespan.startup.failed"]
    assert "needs a running asyncio event loop" in caplog.text


_anything: ContextVar[str] = ContextVar("anything")


@pytest.mark.parametrize("when", ["first", "unknown key", "ahead", "cached token", "open"])
async def test_nothing_is_bound_where_the_fetch_runs(when: str, asyncio_only: None) -> None:
    """It is for all who wait, so it must not be the first one's, whose values it would hold as well."""
    world = World(A) if when in {"first", "open"} else await fetched(A)
    text = new(A)
    if when == "cached token":
        await world.verify(text)
    if when in {"ahead", "cached token"}:
        world.clock.go(TTL - COOLDOWN - 1)
    world.source.look = lambda: (current_context(None), _anything.get(None), len(copy_context()))
    before = world.source.fetches
    _anything.set("ann's")
    with bind_context(Identity("acme", "ann")) as context:
        if when == "open":
            await world.client.open()
        elif when == "cached token":
            await world.verify(text)
        else:
            await world.accepts(B if when == "unknown key" else A)
        await world.landed()
        assert current_context() is context
        assert _anything.get() == "ann's"
    assert world.source.fetches == before + 1
    assert world.source.seen[-1] == (None, None, 0)


async def test_nothing_is_bound_where_a_request_has_the_keys_fetched(asyncio_only: None) -> None:
    world = World(A)
    world.source.look = lambda: (current_context(None), len(copy_context()))
    outer = ContextMiddleware(world.app, identity=lambda scope: Identity("outer", "eve"))
    assert (await run(outer, bearer(new(A)))).status == 200
    assert world.source.seen == [(None, 0)]


WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "url", {"url": b"https://id.example.com"}),
    (TypeError, "url", {"url": None}),
    (ValueError, "url", {"url": ""}),
    (ValueError, "url", {"url": "http://id.example.com/jwks.json"}),
    (ValueError, "url", {"url": "ftp://id.example.com/jwks.json", "allow_http": True}),
    (ValueError, "url", {"url": "file:///etc/jwks.json", "allow_http": True}),
    (ValueError, "url", {"url": "id.example.com/jwks.json"}),
    (ValueError, "url", {"url": "https:///jwks.json"}),
    *[(TypeError, name, {name: "9"}) for name in ("ttl", "cooldown", "timeout", "max_bytes", "max_keys")],
    *[(TypeError, name, {name: True}) for name in ("ttl", "cooldown", "timeout", "max_bytes", "max_keys")],
    *[(TypeError, name, {name: None}) for name in ("ttl", "cooldown", "timeout", "max_bytes", "max_keys")],
    *[(ValueError, name, {name: 0}) for name in ("ttl", "cooldown", "timeout", "max_bytes", "max_keys")],
    *[(ValueError, name, {name: float("inf")}) for name in ("ttl", "stale", "cooldown", "timeout")],
    *[(ValueError, name, {name: float("nan")}) for name in ("ttl", "stale", "cooldown", "timeout")],
    *[(ValueError, name, {name: -1}) for name in ("ttl", "stale", "cooldown", "timeout", "max_bytes", "max_keys")],
]


@pytest.mark.parametrize(("kind", "named", "options"), WRONG)
def test_options_are_checked(kind: type[Exception], named: str, options: dict[str, Any]) -> None:
    with pytest.raises(kind, match=rf"^{named}\b"):
        JWKSClient(options.pop("url", URL), **options)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/jwks.json", "https://id.example.com/jwks.json"])
def test_http_is_taken_where_it_is_allowed(url: str) -> None:
    assert repr(JWKSClient(url, allow_http=True)) == f"JWKSClient({url!r})"


@pytest.mark.parametrize("make", [JWTAuth, Issuer])
def test_jwks_url_must_be_https(make: Any) -> None:
    with pytest.raises(ValueError, match="url must be an https URL"):
        make(issuer=ISSUER, audience=AUDIENCE, tenant="org_id", jwks_url="http://id.example.com/jwks.json")
