"""`JWTAuth.renew`: a WebSocket that goes on until a newer token expires. Time is told by a clock that is set by hand."""

import asyncio
import json
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

import pytest
from driver import http, run, websocket
from jwt_makers import AUDIENCE, ISSUER, NOW, make_key, token

from asgi_context import (
    ContextMiddleware,
    Identity,
    RequestRejected,
    bind_context,
    current_context,
    first_of,
    json_message,
    message_context,
    unbound_context,
)
from asgi_context import _middleware as module
from asgi_context._connection import Connection
from asgi_context.errors import ConnectionClosedError, ConnectionNotBoundError, ContextNotBoundError
from asgi_context.jwt import Issuer, JWKSClient, JWTAuth

pytestmark = pytest.mark.anyio

KEY = make_key("HS256")
CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}
GONE = {"type": "websocket.disconnect", "code": 1001}
CLOSE = {"type": "websocket.close", "code": 4401, "reason": "identity_expired"}
CUT = {"type": "websocket.disconnect", "code": 4401, "reason": "identity_expired"}
END = NOW + 600
"""When the token expires that connections are opened with."""
LATER = NOW + 1200
JSON = json_message(tenant="tenant", user="user")
PLENTY = 60  # seconds until a test that waits in vain gives up


class Timer:
    def __init__(self, due: float, run: Callable[[], None], context: Context | None) -> None:
        self.due = due
        self.run = run
        self.context = context
        self.over = False

    def cancel(self) -> None:
        self.over = True


class Clock:
    """The clock on the wall, and the timers of connections, which go off only when it is set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = float(NOW)
        self.timers: list[Timer] = []
        self._call_later = loop.call_later

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        if getattr(callback, "__name__", "") != "_watch":
            return self._call_later(delay, callback, *args, context=context)
        timer = Timer(self.now + delay, partial(callback, *args), context)
        self.timers.append(timer)
        return timer

    @property
    def pending(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.over]

    def go_to(self, moment: float) -> None:
        """Let time pass; what is due meanwhile goes off at its own time."""
        while due := [timer for timer in self.pending if timer.due <= moment]:
            timer = min(due, key=lambda timer: timer.due)
            self.now = timer.due
            timer.over = True
            assert timer.context is not None
            timer.context.run(timer.run)
        self.now = moment


@pytest.fixture
async def clock(asyncio_only: None, monkeypatch: pytest.MonkeyPatch) -> Clock:
    loop = asyncio.get_running_loop()
    clock = Clock(loop)
    monkeypatch.setattr(loop, "call_later", clock.call_later)
    monkeypatch.setattr(module, "Connection", partial(Connection, now=clock))
    return clock


class Line:
    """A WebSocket as the server has it."""

    def __init__(self, *events: Any) -> None:
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.put(CONNECT, *events)
        self.sent: list[Any] = []
        self.bound: list[Any] = []
        """What was bound at each send."""
        self.closed = asyncio.Event()
        self.answered = asyncio.Semaphore(0)
        """Released by each text that is sent."""

    def put(self, *events: Any) -> None:
        for event in events:
            self.events.put_nowait(event)

    async def receive(self) -> Any:
        return await self.events.get()

    async def send(self, message: Any) -> None:
        self.bound.append(current_context(None))
        self.sent.append(message)
        if message["type"] == "websocket.close":
            self.closed.set()
        if message["type"] == "websocket.send":
            self.answered.release()

    async def run(self, app: Any, identity: Any, text: str | None = None, **options: Any) -> list[Any]:
        """Run an app on it, opened with a token of ann's, and return what was sent."""
        text = token(KEY) if text is None else text
        headers = [(b"authorization", b"Bearer " + text.encode())] if text else []
        middleware = ContextMiddleware(app, identity=identity, **options)
        async with asyncio.timeout(PLENTY):
            await middleware(websocket(*headers, denial=True), self.receive, self.send)
        return self.sent


def auth(clock: Clock, **more: Any) -> JWTAuth:
    given = {"issuer": ISSUER, "audience": AUDIENCE, "key": KEY.jwk, "tenant": "org_id", **more}
    return JWTAuth(now=clock, **given)


async def ends_at(clock: Clock, line: Line, receive: Any, moment: float) -> None:
    """See that a connection goes on until a moment, and is closed then."""
    reading = asyncio.ensure_future(receive())
    for _ in range(3):
        await asyncio.sleep(0)
    clock.go_to(moment - 0.001)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not reading.done()
    assert line.sent == [ACCEPT]
    clock.go_to(moment)
    assert await reading == CUT
    assert await receive() == CUT
    await line.closed.wait()
    assert line.sent == [ACCEPT, CLOSE]


# The end


@pytest.mark.parametrize("leeway", [0, 30, 0.5])
async def test_a_connection_is_closed_when_its_token_is_accepted_no_longer(clock: Clock, leeway: float) -> None:
    """At ``exp`` and the leeway: as long as a new request would be let in."""
    line, bearer = Line(), auth(clock, leeway=leeway)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await ends_at(clock, line, receive, END + leeway)
        with pytest.raises(RequestRejected, match="401 invalid_token"):
            await bearer.verify(token(KEY))

    await line.run(app, bearer)


async def test_a_token_that_expires_while_the_connection_is_opened_is_refused(clock: Clock) -> None:
    line = Line()
    bearer = auth(clock)

    async def authorize(context: Any, scope: Any) -> bool:
        clock.go_to(END)
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app runs")

    (start, _) = await line.run(app, bearer, authorize=authorize)
    assert start["type"] == "websocket.http.response.start"
    assert start["status"] == 401
    assert (b"www-authenticate", b"Bearer") in start["headers"]


async def test_a_cached_token_closes_the_connection_at_the_same_time(clock: Clock) -> None:
    bearer = auth(clock)
    await bearer.verify(token(KEY))
    clock.go_to(NOW + 300)
    line = Line()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await ends_at(clock, line, receive, END)

    await line.run(app, bearer)


# Renewal


@pytest.mark.parametrize("options", [{}, {"message": JSON}], ids=["plain", "with messages"])
@pytest.mark.parametrize("as_bytes", [False, True], ids=["str", "bytes"])
async def test_a_newer_token_lets_the_connection_go_on_until_that_expires(
    clock: Clock, options: dict[str, Any], as_bytes: bool
) -> None:
    line, bearer = Line(), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        text = token(KEY, exp=LATER)
        assert await bearer.renew(text.encode() if as_bytes else text) is None
        await ends_at(clock, line, receive, LATER)

    await line.run(app, bearer, **options)
    assert line.bound[1] is None  # the close is nobody's
    assert clock.pending == []


async def test_the_leeway_counts_for_the_newer_token_too(clock: Clock) -> None:
    line, bearer = Line(), auth(clock, leeway=30)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        clock.go_to(END + 29)
        await bearer.renew(token(KEY, exp=LATER))
        await ends_at(clock, line, receive, LATER + 30)

    await line.run(app, bearer)


async def test_it_may_be_renewed_again_and_again_and_for_days(clock: Clock) -> None:
    line, bearer = Line(), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        for day in range(1, 5):
            await bearer.renew(token(KEY, exp=NOW + day * 86400))
            assert len(clock.pending) == 1
            clock.go_to(NOW + day * 86400 - 1)
        await bearer.renew(token(KEY, exp=NOW + 400_000))
        await ends_at(clock, line, receive, NOW + 400_000)

    await line.run(app, bearer)


async def test_the_very_token_of_the_connection_changes_nothing(clock: Clock) -> None:
    line, bearer = Line(), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await bearer.renew(token(KEY))
        await ends_at(clock, line, receive, END)

    await line.run(app, bearer)


async def test_a_read_that_waits_goes_on_waiting(clock: Clock) -> None:
    line, bearer = Line(), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        reading = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        await bearer.renew(token(KEY, exp=LATER))
        clock.go_to(END + 1)
        await asyncio.sleep(0)
        assert not reading.done()
        line.put({"type": "websocket.receive", "text": "hello"})
        assert (await reading)["text"] == "hello"
        await ends_at(clock, line, receive, LATER)

    await line.run(app, bearer)


async def test_what_is_bound_stays_as_it_was(clock: Clock) -> None:
    line, bearer = Line(GONE), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        before = current_context()
        await bearer.renew(token(KEY, exp=LATER, role="owner", iat=NOW - 1))
        assert current_context() == before
        assert current_context().request_id == before.request_id
        assert "role" not in current_context().claims
        assert current_context().claims["exp"] == END

    await line.run(app, bearer)


async def test_each_connection_is_renewed_by_itself(clock: Clock) -> None:
    bearer = auth(clock)
    one, two = Line(), Line()
    first, second = asyncio.Event(), asyncio.Event()

    async def renewed(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await bearer.renew(token(KEY, exp=LATER))
        first.set()
        await second.wait()
        await ends_at(clock, one, receive, LATER)

    async def left_alone(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await first.wait()
        await ends_at(clock, two, receive, END)
        assert one.sent == [ACCEPT]
        second.set()

    await asyncio.gather(one.run(renewed, bearer), two.run(left_alone, bearer))


# Refused


async def refused_and_goes_on(clock: Clock, bearer: JWTAuth, opened: str, newer: str, error: str) -> None:
    line = Line()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        for _ in range(2):
            with pytest.raises(RequestRejected, match=f"^{error}$"):
                await bearer.renew(newer)
        assert current_context().tenant == "acme"
        await ends_at(clock, line, receive, END)

    await line.run(app, bearer, opened)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"org_id": "beta"}, "403 tenant_mismatch"),
        ({"org_id": "Acme"}, "403 tenant_mismatch"),
        ({"sub": "bob"}, "403 user_mismatch"),
        ({"org_id": "beta", "sub": "bob"}, "403 tenant_mismatch"),
        ({"org_id": ...}, "403 tenant_missing"),
        ({"sub": ...}, "403 user_missing"),
        ({"org_id": "a b"}, "400 tenant_invalid"),
    ],
    ids=repr,
)
async def test_a_token_for_somebody_else_is_refused_and_the_connection_goes_on(
    clock: Clock, changes: dict[str, Any], error: str
) -> None:
    await refused_and_goes_on(clock, auth(clock), token(KEY), token(KEY, exp=LATER, **changes), error)


@pytest.mark.parametrize("changes", [{"sub": "another"}, {"sub": ...}, {"uid": "bob"}], ids=repr)
async def test_the_subject_must_be_the_same_also_where_another_claim_is_the_user(
    clock: Clock, changes: dict[str, Any]
) -> None:
    bearer = auth(clock, user="uid")
    opened, newer = token(KEY, uid="ann"), token(KEY, **{"exp": LATER, "uid": "ann", **changes})
    await refused_and_goes_on(clock, bearer, opened, newer, "403 user_mismatch")


@pytest.mark.parametrize("iss", ["https://other.example.com", ..., ISSUER + "/"], ids=repr)
async def test_the_issuer_must_be_the_same_also_where_any_is_accepted(clock: Clock, iss: Any) -> None:
    newer = token(KEY, exp=LATER, iss=iss)
    await refused_and_goes_on(clock, auth(clock, issuer=None), token(KEY), newer, "403 user_mismatch")


@pytest.mark.parametrize("left_out", [{"sub": ...}, {"iss": ...}], ids=repr)
async def test_what_names_no_subject_or_no_issuer_cannot_be_renewed_even_by_its_like(
    clock: Clock, left_out: dict[str, Any]
) -> None:
    bearer = auth(clock, issuer=None, user=None)
    newer = token(KEY, exp=LATER, **left_out)
    await refused_and_goes_on(clock, bearer, token(KEY, **left_out), newer, "403 user_mismatch")


async def test_a_token_for_a_whole_tenant_renews_only_for_its_own_subject(clock: Clock) -> None:
    bearer = auth(clock, user=None)
    await refused_and_goes_on(clock, bearer, token(KEY), token(KEY, exp=LATER, sub="bob"), "403 user_mismatch")


async def test_another_issuer_for_the_same_tenant_is_refused(clock: Clock) -> None:
    other = make_key("HS256", "other")
    common: dict[str, Any] = {"audience": AUDIENCE, "tenant": "org_id", "tenants": ["acme"]}
    bearer = JWTAuth(
        issuers=[
            Issuer(ISSUER, key=KEY.jwk, user_prefix="a", **common),
            Issuer("https://other.example.com", key=other.jwk, user_prefix="b", **common),
        ],
        now=clock,
    )
    newer = token(other, exp=LATER, iss="https://other.example.com")
    await refused_and_goes_on(clock, bearer, token(KEY), newer, "403 user_mismatch")
    line = Line()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await bearer.renew(token(KEY, exp=LATER + 600))

    clock.now = NOW
    await line.run(app, bearer)


@pytest.mark.parametrize(
    "newer",
    [
        token(KEY, exp=NOW),
        token(KEY, exp=NOW - 1),
        token(KEY, exp=...),
        token(KEY, exp=LATER, nbf=NOW + 1),
        token(KEY, exp=LATER, aud="other"),
        token(KEY, exp=LATER, iss="https://other.example.com"),
        token(make_key("HS256", "unknown"), exp=LATER),
        token(KEY, {"alg": "none"}, exp=LATER),
        token(KEY, exp=LATER) + "a" * 9000,
        "",
        "no token",
        "\udc80",
    ],
    ids=[
        *("expires now", "expired", "without end", "not yet", "audience", "issuer", "key", "alg"),
        *("too long", "empty", "words", "a half character"),
    ],
)
async def test_a_token_that_is_not_acceptable_is_refused_and_the_connection_goes_on(clock: Clock, newer: str) -> None:
    await refused_and_goes_on(clock, auth(clock), token(KEY), newer, "401 invalid_token")


async def test_what_is_no_token_at_all_is_a_type_error(clock: Clock) -> None:
    line, bearer = Line(), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        for wrong in (None, 5, {"token": token(KEY)}):
            with pytest.raises(TypeError, match="token must be str or bytes"):
                await bearer.renew(wrong)  # type: ignore[arg-type]
        await ends_at(clock, line, receive, END)

    await line.run(app, bearer)


async def test_keys_that_cannot_be_had_leave_the_connection_as_it_was(clock: Clock) -> None:
    async def fetch(url: str) -> bytes:
        raise OSError("down")

    down = auth(clock, key=None, jwks=JWKSClient("https://id.example.com/jwks.json", fetch=fetch, clock=lambda: 0.0))
    line = Line()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        with pytest.raises(RequestRejected, match="503 keys_unavailable"):
            await down.renew(token(KEY, exp=LATER))
        await ends_at(clock, line, receive, END)

    await line.run(app, auth(clock))
    await down.close()


async def test_an_identity_of_another_source_is_not_renewed_by_a_token(clock: Clock) -> None:
    """It has no subject of an issuer, even where tenant and user are called the same."""
    bearer = auth(clock)
    line = Line()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        with pytest.raises(RequestRejected, match="403 user_mismatch"):
            await bearer.renew(token(KEY, exp=LATER))
        await ends_at(clock, line, receive, END)

    await line.run(app, first_of(bearer, lambda scope: Identity("acme", "ann", expires_at=END)), text="")


# Where there is nothing to renew


async def not_bound(bearer: JWTAuth) -> None:
    with pytest.raises(ConnectionNotBoundError, match="no WebSocket connection is bound here") as caught:
        await bearer.renew(token(KEY, exp=LATER))
    assert isinstance(caught.value, ContextNotBoundError)


async def test_outside_of_a_connection_there_is_nothing_to_renew(clock: Clock) -> None:
    await not_bound(auth(clock))


async def test_a_request_cannot_be_renewed(clock: Clock) -> None:
    bearer = auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert current_context().user == "ann"
        await not_bound(bearer)

    await run(ContextMiddleware(app, identity=bearer), http((b"authorization", b"Bearer " + token(KEY).encode())))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {"missing": "unbound"}),
        ("", {"missing": "unbound", "message": JSON}),
        (None, {"exempt": lambda scope: True}),
    ],
    ids=["unbound", "unbound with messages", "exempt"],
)
async def test_a_connection_without_identity_cannot_be_renewed(
    clock: Clock, text: str | None, options: dict[str, Any]
) -> None:
    bearer = auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert current_context(None) is None
        await not_bound(bearer)

    await Line().run(app, bearer, text, **options)


@pytest.mark.parametrize("options", [{}, {"message": JSON}], ids=["plain", "with messages"])
async def test_an_identity_that_does_not_expire_cannot_be_renewed(clock: Clock, options: dict[str, Any]) -> None:
    bearer = auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await not_bound(bearer)

    identity = Identity("acme", "ann", {"iss": ISSUER, "sub": "ann"})
    await Line().run(app, lambda scope: identity, **options)
    assert clock.timers == []


async def test_in_an_unbound_block_there_is_no_connection(clock: Clock) -> None:
    line, bearer = Line(), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        with unbound_context():
            await not_bound(bearer)
        await ends_at(clock, line, receive, END)

    await line.run(app, bearer)


# After the end


async def test_what_was_closed_cannot_be_renewed(clock: Clock) -> None:
    line, bearer = Line(), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        clock.go_to(END)
        with pytest.raises(ConnectionClosedError) as caught:
            await bearer.renew(token(KEY, exp=LATER))
        assert (caught.value.code, caught.value.reason) == (4401, "identity_expired")
        assert await receive() == CUT
        with pytest.raises(ConnectionClosedError):
            await bearer.renew(token(KEY, exp=LATER))

    assert await line.run(app, bearer) == [ACCEPT, CLOSE]
    assert clock.pending == []


async def test_what_is_closed_while_the_keys_are_fetched_cannot_be_renewed(clock: Clock) -> None:
    asked, go = asyncio.Event(), asyncio.Event()
    key = make_key("ES256")

    async def fetch(url: str) -> bytes:
        asked.set()
        await go.wait()
        return json.dumps({"keys": [key.jwk]}).encode()

    client = JWKSClient("https://id.example.com/jwks.json", fetch=fetch, clock=lambda: 0.0)
    bearer = auth(clock, key=None, jwks=client)
    line = Line()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        renewing = asyncio.create_task(bearer.renew(token(key, exp=LATER)))
        await asked.wait()
        clock.go_to(END)
        go.set()
        with pytest.raises(ConnectionClosedError):
            await renewing
        assert await receive() == CUT

    assert await line.run(app, auth(clock, key=key.jwk), token(key)) == [ACCEPT, CLOSE]
    assert clock.pending == []
    await client.close()


@pytest.mark.parametrize("ending", ["the app closes", "the client goes"])
async def test_what_is_over_is_neither_watched_nor_closed_again(clock: Clock, ending: str) -> None:
    line, bearer = Line(), auth(clock)
    own_close = {"type": "websocket.close", "code": 1000}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        if ending == "the app closes":
            await send(own_close)
        else:
            line.put(GONE)
            assert await receive() is GONE
        await bearer.renew(token(KEY, exp=LATER))
        clock.go_to(LATER + 1)

    sent = await line.run(app, bearer)
    assert sent == ([ACCEPT, own_close] if ending == "the app closes" else [ACCEPT])


async def test_a_task_that_outlives_the_connection_starts_no_watch(clock: Clock) -> None:
    bearer = auth(clock)
    over = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def straggle() -> None:
        await over.wait()
        await bearer.renew(token(KEY, exp=LATER))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        tasks.append(asyncio.create_task(straggle()))

    line = Line()
    await line.run(app, bearer)
    over.set()
    await tasks[0]
    assert clock.pending == []
    clock.go_to(LATER + 1)
    assert line.sent == []


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
async def test_the_timer_of_a_renewed_connection_ends_with_it(clock: Clock, raises: bool) -> None:
    bearer = auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await bearer.renew(token(KEY, exp=LATER))
        assert [timer.due for timer in clock.pending] == [LATER]
        if raises:
            raise ArithmeticError

    if raises:
        with pytest.raises(ArithmeticError):
            await Line().run(app, bearer)
    else:
        await Line().run(app, bearer)
    assert clock.pending == []


# From wherever the app is


async def in_a_task(renew: Any) -> None:
    await asyncio.create_task(renew())


async def in_a_task_group(renew: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(renew())


async def in_a_task_of_a_task(renew: Any) -> None:
    await asyncio.create_task(in_a_task(renew))


async def in_a_thread(renew: Any) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(renew(), loop).result(PLENTY))


async def in_a_loop_of_a_thread(renew: Any) -> None:
    """The timer is that of the connection's loop, whichever loop has verified the token."""
    await asyncio.to_thread(lambda: asyncio.run(renew()))


async def in_a_block(renew: Any) -> None:
    with bind_context():
        await renew()


async def in_a_block_of_somebody_else(renew: Any) -> None:
    """The connection stays that of ann, whoever is bound in the block."""
    with bind_context(Identity("beta", "bob")):
        await renew()


@pytest.mark.parametrize(
    "somewhere",
    [
        in_a_task,
        in_a_task_group,
        in_a_task_of_a_task,
        in_a_thread,
        in_a_loop_of_a_thread,
        in_a_block,
        in_a_block_of_somebody_else,
    ],
    ids=lambda somewhere: somewhere.__name__,
)
@pytest.mark.parametrize("options", [{}, {"message": JSON}], ids=["plain", "with messages"])
async def test_it_is_renewed_from_wherever_the_app_has_it(clock: Clock, somewhere: Any, options: Any) -> None:
    line, bearer = Line(), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await somewhere(lambda: bearer.renew(token(KEY, exp=LATER)))
        await ends_at(clock, line, receive, LATER)

    await line.run(app, bearer, **options)


async def test_a_task_that_was_started_before_a_renewal_may_renew_again(clock: Clock) -> None:
    line, bearer = Line(), auth(clock)
    go = asyncio.Event()

    async def child() -> None:
        await go.wait()
        await bearer.renew(token(KEY, exp=LATER + 600))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        task = asyncio.create_task(child())
        await bearer.renew(token(KEY, exp=LATER))
        go.set()
        await task
        await ends_at(clock, line, receive, LATER + 600)

    await line.run(app, bearer)


# With messages that say who asks


def message(tenant: str | None = None, user: str | None = None) -> dict[str, Any]:
    names = {"tenant": tenant, "user": user} if tenant else {}
    return {"type": "websocket.receive", "text": str(names).replace("'", '"')}


async def test_while_a_message_is_handled_the_connection_is_renewed(clock: Clock) -> None:
    line, bearer = Line(message("acme", "ann"), message()), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        for end in (LATER, LATER + 600):
            await receive()
            assert current_context().user == "ann"
            await bearer.renew(token(KEY, exp=end))
            assert current_context().claims["exp"] == END
        line.put(message())
        await receive()
        assert (current_context().tenant, current_context().user) == ("acme", "ann")
        await ends_at(clock, line, receive, LATER + 600)

    await line.run(app, bearer, message=JSON)


async def test_in_message_context_the_connection_is_renewed(clock: Clock) -> None:
    line, bearer = Line(message("acme", "ann")), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        event = await asyncio.create_task(receive())
        async with message_context(event=event):
            await bearer.renew(token(KEY, exp=LATER))
        await ends_at(clock, line, receive, LATER)

    await line.run(app, bearer, message=JSON)


async def test_a_message_for_another_tenant_renews_the_connection_for_its_own_alone(clock: Clock) -> None:
    line, bearer = Line(message("beta", "ann")), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await receive()
        assert current_context().tenant == "beta"
        with pytest.raises(RequestRejected, match="403 tenant_mismatch"):
            await bearer.renew(token(KEY, exp=LATER + 600, org_id="beta"))
        await bearer.renew(token(KEY, exp=LATER))
        assert current_context().tenant == "beta"
        await ends_at(clock, line, receive, LATER)

    await line.run(app, bearer, message=JSON, authorize=lambda context, scope: True)


async def test_where_messages_alone_say_who_asks_there_is_nothing_to_renew(clock: Clock) -> None:
    bearer = auth(clock)
    line = Line(message("acme", "ann"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        assert current_context().user == "ann"
        await not_bound(bearer)

    async with asyncio.timeout(PLENTY):
        await ContextMiddleware(app, message=JSON)(websocket(), line.receive, line.send)


async def test_a_token_in_a_message_may_renew_the_connection(clock: Clock) -> None:
    """As clients do that cannot set headers later on."""
    line, bearer = Line(), auth(clock)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        while (event := await receive())["type"] == "websocket.receive":
            try:
                await bearer.renew(event["text"])
            except RequestRejected as rejection:
                await send({"type": "websocket.send", "text": rejection.code})
            else:
                await send({"type": "websocket.send", "text": "renewed"})
        assert event == CUT

    serving = asyncio.create_task(line.run(app, bearer))
    for text in (token(KEY, exp=LATER), token(KEY, exp=LATER + 9, sub="bob"), "x"):
        line.put({"type": "websocket.receive", "text": text})
    async with asyncio.timeout(PLENTY):
        for _ in range(3):
            await line.answered.acquire()
    clock.go_to(LATER - 1)
    assert not serving.done()
    clock.go_to(LATER)
    sent = await serving
    assert [event.get("text") for event in sent] == [None, "renewed", "user_mismatch", "invalid_token", None]
    assert sent[-1] == CLOSE
