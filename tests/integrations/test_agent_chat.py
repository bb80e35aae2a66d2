"""The example of a chat, as its users see it: in Chromium, over a real server."""

import importlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import redis_servers
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect, sync_playwright
from servers import UvicornHttptools
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from asgi_context import MemoryStore
from asgi_context.errors import StateUnavailableError
from asgi_context.tools import ToolLimits

pytestmark = pytest.mark.matrix("Chromium", "playwright", "fastapi", "uvicorn")

EXAMPLE = Path(__file__).parents[2] / "examples" / "agent_chat"
PATIENCE = 60.0
"""Seconds after which what is waited for counts as never coming."""
REFUSED = r"status of 40[13]|WebSocket connection to .* failed"
"""What Chromium itself writes to the console, where a login or a token is refused."""
GONE = rf"{REFUSED}|ERR_CONNECTION_REFUSED"


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        message = "no chromium is on the path"
        raise redis_servers.MissingServerError(message)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = redis_servers.started(_chromium)
    expect.set_options(timeout=PATIENCE * 1000)
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as one,
    ):
        yield one


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The module `app`, with the others beside it, imported as its server does."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield importlib.import_module("app")
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in ("app", "agent", "talk"):
            sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def no_pauses(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watches."""
    monkeypatch.setattr(sys.modules["agent"].Search, "pause", lambda _: None)


class _Again(UvicornHttptools):
    """Where another server was before."""

    def __init__(self, app: Any, port: int) -> None:
        super().__init__(app, lifespan=True)
        self._listener.close()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = port


class Site:
    """The app on a server, which can go away and come back at the same address."""

    def __init__(self, example: ModuleType, **options: Any) -> None:
        self._make = lambda **others: example.make_app(origins=example.origins_of(self.port), **options | others)
        self._server: UvicornHttptools = UvicornHttptools(None, lifespan=True)  # type: ignore[arg-type]  # has no app yet
        self.port = self._server.port
        self.url = f"http://127.0.0.1:{self.port}/"
        self.app = self._server.app = self._make()
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def come_back(self, **others: Any) -> None:
        """With the same app, and what it keeps; or with another that has other options."""
        self._server = _Again(self._make(**others) if others else self.app, self.port)
        self._server.start()


@pytest.fixture
def make_site(example: ModuleType) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(**options: Any) -> Site:
        sites.append(Site(example, **options))
        return sites[-1]

    yield make
    for site in sites:
        site.stop()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


class Window:
    """A window of a browser, with what its console says; `errors` are those to be expected."""

    def __init__(self, context: BrowserContext, site: Site, errors: str | None) -> None:
        self.errors: list[str] = []
        self._allowed = errors
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self._note(f"{message.type}: {message.text}"))
        self.page.goto(site.url)

    def _note(self, line: str) -> None:
        if self._allowed is None or not re.search(self._allowed, line):
            self.errors.append(line)

    def choose(self, tenant: str, user: str) -> None:
        for name in (tenant, user):
            self.page.get_by_role("radio", name=name).check()
        self.page.get_by_role("button", name="Open the chat").click()

    def enter(self, tenant: str, user: str) -> "Window":
        self.choose(tenant, user)
        expect(self.status).to_have_text("Connected")
        return self

    def say(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.get_by_role("button", name="Send").click()

    def ask(self, text: str) -> Locator:
        """Say something, and wait for the answer."""
        before = self.answers.count()
        self.say(text)
        expect(self.answers).to_have_count(before + 1)
        return self.answers.last

    @property
    def status(self) -> Locator:
        return self.page.locator("#status")

    @property
    def answers(self) -> Locator:
        return self.page.locator(".message.agent")

    @property
    def messages(self) -> Locator:
        return self.page.locator(".message .text")

    @property
    def notes(self) -> Locator:
        return self.page.locator("#notes li .text")


@pytest.fixture
def window(browser: Browser) -> Iterator[Callable[..., Window]]:
    """Windows of one browser: whoever uses it, is somebody else in each."""
    windows: list[Window] = []
    with browser.new_context(reduced_motion="reduce") as context:
        context.set_default_timeout(PATIENCE * 1000)

        def make(site: Site, *, errors: str | None = None) -> Window:
            windows.append(Window(context, site, errors))
            return windows[-1]

        yield make
    assert [one.errors for one in windows] == [[] for _ in windows]


class Gate:
    """What holds up a tool in its thread, step by step."""

    def __init__(self) -> None:
        self._steps = threading.Semaphore(0)
        self.threads: set[str] = set()

    def __call__(self, _: float) -> None:
        self.threads.add(threading.current_thread().name)
        assert self._steps.acquire(timeout=PATIENCE), "nobody has opened the gate"

    def open(self, steps: int = 1000) -> None:
        self._steps.release(steps)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, no_pauses: None) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(sys.modules["agent"].Search, "pause", gate)
    yield gate
    gate.open()


# Who sees what


def test_windows_of_different_tenants_stay_apart(site: Site, window: Callable[..., Window]) -> None:
    """Both users are called ann."""
    acme, globex = window(site).enter("Acme", "Ann"), window(site).enter("Globex", "Ann")
    acme.ask("pin for acme alone")
    acme.ask("search import")
    expect(acme.ask("who am I")).to_contain_text("You are ann, of acme.")
    expect(globex.ask("who am I")).to_contain_text("You are ann, of globex.")
    expect(globex.messages).to_have_text(["who am I", "You are ann, of globex."])
    expect(globex.notes).to_have_count(0)
    expect(globex.page.locator("dd")).to_have_text(["1", "0"])
    expect(acme.page.locator("dd")).to_have_text(["3", "1"])
    globex.ask("pin for globex alone")
    expect(globex.notes).to_have_text(["for globex alone"])
    acme.ask("who am I")
    expect(acme.notes).to_have_text(["for acme alone"])


def test_a_tenant_s_users_share_its_board_live_and_a_user_s_windows_the_conversation(
    site: Site, window: Callable[..., Window]
) -> None:
    ann, bob = window(site).enter("Acme", "Ann"), window(site).enter("Acme", "Bob")
    second = window(site).enter("Acme", "Ann")
    ann.ask("pin Release on Friday")
    expect(bob.notes).to_have_text(["Release on Friday"])
    expect(bob.page.get_by_text("Note 1, by Ann")).to_be_visible()
    expect(bob.page.locator("dd").first).to_have_text("1")
    expect(bob.messages).to_have_count(0)
    bob.ask("unpin 1")
    expect(ann.page.get_by_text("Nothing is pinned yet.")).to_be_visible()
    for one in (ann, second):
        expect(one.messages).to_have_text(["pin Release on Friday", "Pinned as note 1."])


@pytest.fixture
def redis() -> Iterator[redis_servers.Server]:
    with redis_servers.running() as server:
        yield server


def test_what_one_process_writes_reaches_the_windows_of_another(
    redis: redis_servers.Server, make_site: Callable[..., Site], window: Callable[..., Window]
) -> None:
    sites = [make_site(store=redis.store(), secret="s" * 32) for _ in range(2)]
    ann, bob = window(sites[0]).enter("Acme", "Ann"), window(sites[1]).enter("Acme", "Bob")
    globex = window(sites[1]).enter("Globex", "Ann")
    ann.ask("pin to be seen elsewhere")
    expect(bob.notes).to_have_text(["to be seen elsewhere"])
    globex.ask("who am I")
    expect(globex.notes).to_have_count(0)


# Tools


class _Store(MemoryStore):
    """Which can be down."""

    is_down = False

    async def read_field(self, *place: Any) -> bytes | None:
        if self.is_down:
            raise StateUnavailableError("it is down")
        return await super().read_field(*place)


def test_progress_appears_while_a_tool_works_in_its_thread(
    site: Site, window: Callable[..., Window], gate: Gate
) -> None:
    ann, bob = window(site).enter("Acme", "Ann"), window(site).enter("Acme", "Bob")
    ann.say("search import")
    work = ann.page.get_by_label("Search at work")
    expect(work.get_by_role("progressbar")).to_have_js_property("value", 0)
    gate.open(1)
    expect(work.get_by_role("progressbar")).to_have_js_property("value", 20)
    expect(work).to_contain_text("reading ")
    bob.ask("who am I")  # the event loop is free
    expect(bob.page.locator(".work")).to_have_count(0)
    assert len(gate.threads) == 1
    assert next(iter(gate.threads)).startswith("asgi_context-tool"), gate.threads
    gate.open()
    expect(ann.answers).to_contain_text("“import” stands")
    expect(ann.answers).to_contain_text("Search done")
    expect(work).to_have_count(0)
    expect(ann.page.locator("dd").last).to_have_text("1")


def test_an_answer_to_another_window_leaves_a_tool_at_work_shown(
    site: Site, window: Callable[..., Window], gate: Gate
) -> None:
    ann, second = window(site).enter("Acme", "Ann"), window(site).enter("Acme", "Ann")
    ann.say("search import")
    expect(second.messages).to_have_text(["search import"])
    second.ask("who am I")
    expect(ann.answers).to_have_count(1)
    expect(ann.page.get_by_label("Search at work")).to_be_visible()


def test_an_answer_is_finished_also_if_its_window_is_closed_meanwhile(
    site: Site, window: Callable[..., Window], gate: Gate
) -> None:
    closed = window(site).enter("Acme", "Ann")
    closed.say("search import")
    expect(closed.page.get_by_role("progressbar")).to_have_js_property("value", 0)
    closed.page.close()
    opened = window(site).enter("Acme", "Ann")
    expect(opened.messages).to_have_text(["search import"])
    opened.ask("who am I")  # of which the window that is closed is to be told as well
    gate.open()
    expect(opened.answers.last).to_contain_text("“import” stands")


def test_an_answer_is_finished_also_if_the_token_expires_meanwhile(
    make_site: Callable[..., Site], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The tool has begun while it was valid."""
    store, lifetime, has_begun = MemoryStore(), 1, False
    while not has_begun:  # the machine may be busy
        lifetime *= 2
        expiring = make_site(store=store, lifetime=lifetime)
        with suppress(InvalidStatus), _socket(expiring) as websocket, pytest.raises(ConnectionClosed) as closed:
            websocket.send(json.dumps({"id": str(lifetime), "text": "search import"}))
            while True:
                has_begun |= "tool_progress" in websocket.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401
    gate.open()
    expiring.stop()  # once all is done
    with _socket(make_site(store=store)) as websocket:
        assert "“import” stands" in json.loads(websocket.recv(PATIENCE))["conversation"][-1]["text"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("is_down", [False, True])
def test_a_window_that_goes_in_the_middle_leaves_no_crash_behind(
    make_site: Callable[..., Site], gate: Gate, caplog: pytest.LogCaptureFixture, is_down: bool
) -> None:
    """What it had sent before is refused, or its store is down: there is nobody to be told."""
    store = _Store()
    site = make_site(store=store)
    with _socket(site) as websocket:
        websocket.send(json.dumps({"id": "one", "text": "search import"}))
        while "tool_progress" not in websocket.recv(PATIENCE):
            pass
        websocket.send("{}")
        websocket.socket.shutdown(socket.SHUT_RDWR)  # else it is waited for
    with _socket(site) as another:
        another.send(json.dumps({"id": "two", "text": "who am I"}))  # of which the first is to be told as well
        while "You are ann" not in another.recv(PATIENCE):
            pass
    store.is_down = is_down
    gate.open()
    site.stop()  # once all is done
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_tool_that_fails_is_shown_as_an_error(site: Site, window: Callable[..., Window]) -> None:
    ann = window(site).enter("Acme", "Ann")
    answer = ann.ask("unpin 77 then divide 1 by 0 then divide cake by two then divide 6 by 4")
    expect(answer.locator(".call")).to_have_text([
        "Unpin failed: There is no note 77 on the board.",
        "divide failed: The tool failed.",
        re.compile("^divide failed: The arguments do not fit"),
        "divide done",
    ])
    expect(answer.locator(".text")).to_have_text(
        "Unpin did not work.\ndivide did not work.\ndivide did not work.\n6 / 4 = 1.5"
    )
    expect(answer).not_to_contain_text("ZeroDivisionError")


def test_a_limit_that_is_reached_is_told(make_site: Callable[..., Site], window: Callable[..., Window]) -> None:
    site = make_site(limits=ToolLimits(per_minute=1))
    ann = window(site).enter("Acme", "Ann")
    expect(ann.ask("who am I")).to_contain_text("You are ann, of acme.")
    expect(ann.ask("who am I")).to_contain_text("who_am_i failed: There were too many calls within a minute.")


def test_a_board_that_is_full_takes_no_more_and_what_no_rule_knows_gets_help(
    site: Site, window: Callable[..., Window]
) -> None:
    ann = window(site).enter("Acme", "Ann")
    ann.ask(" then ".join(f"pin {number}" for number in range(20)))
    expect(ann.ask("pin one more")).to_contain_text("The board is full")
    expect(ann.notes).to_have_count(20)
    expect(ann.ask("Good morning!")).to_contain_text("I am no model")


def test_another_agent_takes_the_place_of_the_rules(
    make_site: Callable[..., Site], window: Callable[..., Window]
) -> None:
    async def agent(conversation: Any, offered: Any, call: Any) -> str:
        if conversation[-1]["text"] == "break":
            raise ConnectionError("the model is away")
        result = await call("Pin", '{"text": "by a model"}')
        return f"{len(conversation)}, {[tool['name'] for tool in offered]}, {result.for_model()}"

    ann = window(make_site(agent=agent)).enter("Acme", "Ann")
    expect(ann.ask("break")).to_contain_text("Something went wrong with the agent. Please try again.")
    expect(ann.ask("go")).to_contain_text("3, ['Pin', 'Unpin', 'Search', 'divide', 'who_am_i'], Pinned as note 1.")
    expect(ann.notes).to_have_text(["by a model"])


def test_the_oldest_messages_make_room_for_long_answers(make_site: Callable[..., Site]) -> None:
    async def agent(*_: Any) -> str:
        return "long" * 50_000

    with _socket(make_site(agent=agent)) as websocket:
        for number in range(6):
            websocket.send(json.dumps({"id": f"m{number}", "text": "hello"}))
        conversation: list[dict[str, str]] = []
        while [message["id"] for message in conversation][-2:-1] != ["m5"]:
            conversation = json.loads(websocket.recv(PATIENCE)).get("conversation", conversation)
    assert [message["role"] for message in conversation] == ["user", "agent", "user", "agent"]


# Who is let in


def _token(site: Site) -> str:
    answer = httpx.post(f"{site.url}login", json={"tenant": "acme", "user": "ann"}, trust_env=False)
    return str(answer.json()["token"])


@contextmanager
def _socket(site: Site) -> Iterator[ClientConnection]:
    options: Any = {"subprotocols": ["chat", f"bearer.{_token(site)}"], "proxy": None}
    with connect(f"ws://127.0.0.1:{site.port}/chat", **options) as websocket:
        yield websocket


def test_a_user_of_another_tenant_is_refused(site: Site, window: Callable[..., Window]) -> None:
    bob = window(site, errors=REFUSED)
    bob.choose("Globex", "Bob")
    expect(bob.page.get_by_role("alert")).to_have_text("This user does not belong to this tenant.")
    bob.enter("Acme", "Bob")
    expect(bob.page.locator("#who")).to_have_text("Bob at Acme")


def test_a_session_that_expires_asks_to_sign_in_again(
    make_site: Callable[..., Site], window: Callable[..., Window]
) -> None:
    ann = window(make_site(lifetime=1), errors=REFUSED)
    ann.choose("Acme", "Ann")
    expect(ann.page.get_by_role("alert")).to_have_text(
        re.compile(r"Your session has (expired|ended)\. Please sign in again\.")
    )
    expect(ann.page.get_by_role("radio", name="Acme")).to_be_focused()


def test_a_token_of_another_key_asks_to_sign_in_again(site: Site, window: Callable[..., Window]) -> None:
    ann = window(site, errors=GONE).enter("Acme", "Ann")
    ann.page.get_by_label("Message", exact=True).fill("who am I")
    site.stop()
    site.come_back(secret="another secret, long enough for one")
    expect(ann.page.get_by_role("alert")).to_have_text("Your session has ended. Please sign in again.")
    ann.enter("Acme", "Ann")
    expect(ann.page.get_by_label("Message", exact=True)).to_have_value("who am I")  # nothing of theirs is lost


def test_who_leaves_leaves_nothing_to_whoever_comes_next(site: Site, window: Callable[..., Window]) -> None:
    acme, one = window(site).enter("Acme", "Bob"), window(site, errors=REFUSED)
    one.page.get_by_role("button", name="Open the chat").dblclick()  # as Ann of Acme, perhaps twice
    one.ask("pin for acme alone")
    one.page.get_by_label("Message", exact=True).fill("for acme's eyes")
    one.page.get_by_role("button", name="Leave").click()
    assert "acme alone" not in one.page.content()
    one.enter("Globex", "Ann")
    expect(one.page.get_by_label("Message", exact=True)).to_have_value("")
    acme.ask("pin for acme alone as well")
    one.ask("who am I")
    expect(one.messages).to_have_text(["who am I", "You are ann, of globex."])
    expect(one.notes).to_have_count(0)


def test_what_a_connection_is_told_after_leaving_is_not_the_next_one_s(
    site: Site, window: Callable[..., Window]
) -> None:
    one = window(site, errors=GONE).enter("Acme", "Ann")
    held: list[Route] = []
    one.page.route("**/me", lambda route: held.append(route))
    with one.page.expect_request("**/me"):
        site.stop()
    one.page.get_by_role("button", name="Leave").click()
    site.come_back()
    one.enter("Globex", "Ann")
    held[0].fulfill(status=401)
    one.ask("who am I")
    expect(one.status).to_have_text("Connected")


def test_who_is_no_member_any_more_is_not_let_in_again(
    site: Site, example: ModuleType, window: Callable[..., Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = window(site, errors=REFUSED).enter("Acme", "Ann")
    monkeypatch.setitem(example.MEMBERS, "acme", {"bob"})
    ann.page.reload()
    expect(ann.page.get_by_role("alert")).to_have_text("You may not act in this tenant any more. Please sign in again.")


def test_a_page_of_others_opens_no_websocket(site: Site) -> None:
    token = _token(site)
    options: Any = {"subprotocols": ["chat", f"bearer.{token}"], "proxy": None}
    url = f"ws://127.0.0.1:{site.port}/chat"
    with pytest.raises(InvalidStatus, match="403"):
        connect(url, origin="https://evil.example", **options)  # type: ignore[arg-type]
    with connect(url, origin=f"http://localhost:{site.port}", **options) as websocket:  # type: ignore[arg-type]
        assert websocket.subprotocol == "chat"
        websocket.send(b"\x00")
        assert '"state"' in websocket.recv(PATIENCE)
        assert '"refused"' in websocket.recv(PATIENCE)


def test_a_message_that_comes_twice_is_answered_once(site: Site) -> None:
    with _socket(site) as websocket:
        for identifier in ("one", "one", "another"):
            websocket.send(json.dumps({"id": identifier, "text": "hello"}))
        conversation: list[dict[str, str]] = []
        while [message["id"] for message in conversation][-2:-1] != ["another"]:
            conversation = json.loads(websocket.recv(PATIENCE)).get("conversation", conversation)
    assert [message["role"] for message in conversation] == ["user", "agent", "user", "agent"]


def test_nothing_but_the_page_is_there_for_those_who_have_not_signed_in(site: Site) -> None:
    for path in ("me", "chat", "docs", "openapi.json", "app.py", "page/../../app.py", "nothing"):
        answer = httpx.get(site.url + path, trust_env=False)
        assert (answer.status_code, answer.json()["code"]) == (401, "identity_missing")


# Connections


def test_a_server_that_comes_back_finds_its_windows_again(site: Site, window: Callable[..., Window]) -> None:
    ann = window(site, errors=GONE).enter("Acme", "Ann")
    ann.ask("pin before")
    # It comes back by itself, and the button goes: here only the button does it.
    ann.page.evaluate("() => { window.later = window.setTimeout; window.setTimeout = () => 0; }")
    site.stop()
    expect(ann.status).to_have_text("Connection lost. Retrying…")
    expect(ann.page.get_by_role("button", name="Send")).to_be_disabled()
    ann.page.get_by_label("Message", exact=True).fill("who am I")
    ann.page.keyboard.press("Enter")
    expect(ann.page.get_by_label("Message", exact=True)).to_have_value("who am I")
    site.come_back()
    ann.page.get_by_role("button", name="Try now").click()
    expect(ann.page.get_by_label("Message", exact=True)).to_be_focused()
    expect(ann.status).to_have_text("Connected")
    ann.page.get_by_role("button", name="Send").click()
    expect(ann.messages).to_have_text(["pin before", "Pinned as note 1.", "who am I", "You are ann, of acme."])
    expect(ann.notes).to_have_text(["before"])
    ann.page.evaluate("() => { window.setTimeout = window.later; }")
    site.stop()
    expect(ann.status).to_have_text("Connection lost. Retrying…")
    site.come_back()
    expect(ann.status).to_have_text("Connected")  # by itself


def test_what_was_sent_and_lost_is_sent_again_and_answered_once(site: Site, window: Callable[..., Window]) -> None:
    ann = window(site, errors=GONE).enter("Acme", "Ann")
    # Over a line that is dead, which the browser does not know yet.
    ann.page.evaluate(
        "() => { const send = WebSocket.prototype.send;"
        " WebSocket.prototype.send = () => { WebSocket.prototype.send = send; }; }"
    )
    ann.say("pin once")
    expect(ann.page.locator(".unsent")).to_contain_text("sending…")
    site.stop()
    site.come_back()
    expect(ann.answers).to_have_count(1)
    expect(ann.page.locator(".unsent")).to_have_count(0)
    expect(ann.notes).to_have_text(["once"])


def test_a_reload_keeps_who_it_is_and_what_was_said(site: Site, window: Callable[..., Window]) -> None:
    ann = window(site).enter("Acme", "Ann")
    ann.page.get_by_role("button", name="who am I").click()
    expect(ann.messages).to_have_text(["who am I", "You are ann, of acme."])
    expect(ann.page.get_by_role("heading", name="Hello Ann")).to_be_hidden()
    ann.page.reload()
    expect(ann.messages).to_have_text(["who am I", "You are ann, of acme."])
    ann.page.get_by_role("button", name="Leave").click()
    ann.page.reload()
    expect(ann.page.get_by_role("button", name="Open the chat")).to_be_visible()
    assert ann.page.evaluate("sessionStorage.length") == 0


def test_a_store_that_is_down_is_a_connection_lost_until_it_is_back(
    make_site: Callable[..., Site], window: Callable[..., Window]
) -> None:
    store = _Store()
    ann = window(make_site(store=store)).enter("Acme", "Ann")
    store.is_down = True
    ann.say("who am I")
    expect(ann.status).to_have_text("Connection lost. Retrying…")
    store.is_down = False
    expect(ann.status).to_have_text("Connected")
    expect(ann.messages.first).to_have_text("who am I")


def test_a_message_that_is_too_long_is_given_back(site: Site, window: Callable[..., Window]) -> None:
    ann = window(site).enter("Acme", "Ann")
    box = ann.page.get_by_label("Message", exact=True)
    box.evaluate("box => box.removeAttribute('maxlength')")
    ann.say("x" * 2001)
    expect(ann.page.get_by_role("alert")).to_contain_text("This one was not sent.")
    expect(box).to_have_value("x" * 2001)
    expect(ann.page.locator(".message")).to_have_count(0)
    ann.say("who am I")
    expect(ann.page.get_by_role("alert")).to_have_count(0)


# The page


def test_what_is_new_is_followed_and_what_is_old_does_not_shine(site: Site, window: Callable[..., Window]) -> None:
    ann = window(site).enter("Acme", "Ann")
    ann.page.emulate_media(reduced_motion="no-preference")
    ann.page.set_viewport_size({"width": 360, "height": 740})
    ann.ask("long " * 200)
    expect(ann.answers).to_be_in_viewport(ratio=1)
    ann.ask("pin שלום")
    expect(ann.notes).to_have_css("direction", "rtl")
    expect(ann.page.locator("li.new")).to_have_count(1)
    ann.page.reload()
    expect(ann.notes).to_have_count(1)
    expect(ann.page.locator("li.new")).to_have_count(0)


def test_what_others_write_stays_text(site: Site, window: Callable[..., Window]) -> None:
    ann, bob = window(site).enter("Acme", "Ann"), window(site).enter("Acme", "Bob")
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    ann.ask(f"pin {evil}")
    expect(bob.notes).to_have_text([evil])
    expect(ann.messages.first).to_have_text(f"pin {evil}")
    for one in (ann, bob):
        assert one.page.locator("#room main img, aside img, body script").count() == 0
        assert one.page.evaluate("try { document.body.innerHTML = 'x' } catch (error) { error.name }") == "TypeError"
    assert all("TrustedHTML" in line for one in (ann, bob) for line in one.errors)
    ann.errors.clear()
    bob.errors.clear()


def test_every_answer_forbids_what_the_page_does_not_need(site: Site) -> None:
    for path in ("", "chat.js", "me", "nothing"):
        headers = httpx.get(site.url + path, trust_env=False).headers
        rules = headers["content-security-policy"].split("; ")
        assert "default-src 'none'" in rules
        assert "script-src 'self'" in rules
        assert "require-trusted-types-for 'script'" in rules
        assert not re.search(r"unsafe|https?:|\*|data:", headers["content-security-policy"])
        assert headers["x-content-type-options"] == "nosniff"
    page = " ".join(file.read_text("utf-8") for file in (EXAMPLE / "page").iterdir())
    assert set(re.findall(r"https?://[^\s\"')]+", page)) == {"http://www.w3.org/2000/svg"}, (
        "nothing is fetched elsewhere"
    )


def _focused(page: Page) -> str:
    """Where the focus is, which must be seen."""
    return str(
        page.evaluate(
            """() => {
                const element = document.activeElement;
                const shown = element.matches(".choices input") ? element.nextElementSibling : element;
                const { outlineStyle, outlineWidth } = getComputedStyle(shown);
                const name = element.ariaLabel || element.value || element.innerText || element.id;
                return outlineStyle === "solid" && outlineWidth === "3px" ? name.trim() : `not seen: ${name}`;
            }"""
        )
    )


def test_the_keyboard_is_enough(site: Site, window: Callable[..., Window]) -> None:
    one = window(site)
    keyboard = one.page.keyboard
    stops = [_focused(one.page)]
    for key in ("ArrowRight", "Tab", "ArrowRight", "ArrowRight", "Tab"):
        keyboard.press(key)
        stops.append(_focused(one.page))
    assert stops == ["acme", "globex", "ann", "bob", "eve", "Open the chat"]
    keyboard.press("Enter")
    expect(one.status).to_have_text("Connected")
    expect(one.page.get_by_label("Message", exact=True)).to_be_focused()
    keyboard.type("pin one line")
    keyboard.press("Shift+Enter")
    keyboard.type("and another")
    keyboard.press("Enter")
    expect(one.notes).to_have_text(["one line\nand another"])
    stops = []
    for _ in range(3):
        keyboard.press("Shift+Tab")
        stops.append(_focused(one.page).split("\n")[0])
    assert stops == ["Conversation", "Team board 1 note", "Leave"]
    keyboard.press("Enter")
    expect(one.page.get_by_role("radio", name="Globex")).to_be_focused()


AUDIT = r"""() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    // WCAG 2.2, "relative luminance" and "contrast ratio".
    const luminance = (colour) => {
        const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = rgba(getComputedStyle(at).backgroundColor);
            if (colour[3] === 255) return colour;
            if (colour[3] !== 0) throw new Error("a ground that shines through");
        }
        throw new Error("no ground");
    };
    const ratio = (a, b) => {
        const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
        return (high + 0.05) / (low + 0.05);
    };
    const found = [];
    const all = [...document.body.querySelectorAll("*")].filter((element) => element.checkVisibility());
    for (const element of all) {
        const style = getComputedStyle(element);
        const what = `${element.tagName}#${element.id}.${element.className}`;
        const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        const isOff = element.disabled; // WCAG 1.4.3 leaves these out; ours can be read all the same
        if (says || element.matches("textarea")) {
            const contrast = ratio(rgba(style.color), ground(element));
            if (contrast < 4.5) found.push(`${what}: contrast of its text ${contrast.toFixed(2)}`);
        }
        if (element.matches("button:not(:disabled), textarea, .choices span")) {
            const contrast = ratio(rgba(style.borderTopColor), ground(element.parentElement));
            if (contrast < 3) found.push(`${what}: contrast of its edge ${contrast.toFixed(2)}`);
        }
        if (element.matches("button, textarea, summary, .choices span")) {
            const { width, height } = element.getBoundingClientRect();
            if (width < 24 || height < 24) found.push(`${what}: too small`);
        }
        if (element.matches("input, textarea, button, progress, [role=region], [role=log], section, main ~ main")) {
            const name = element.ariaLabel || element.labels?.[0]?.innerText || element.innerText
                || element.labels?.[0]?.textContent || document.getElementById(element.getAttribute("aria-labelledby"));
            if (!name) found.push(`${what}: has no name`);
        }
        if (element.matches("img:not([alt])")) found.push(`${what}: has no alt`);
        if (element.scrollWidth > element.clientWidth + 1 && !["hidden", "clip"].includes(style.overflowX)
            && element.clientWidth > 1 && style.display !== "inline") found.push(`${what}: is too wide`);
        const { left, right } = element.getBoundingClientRect();
        if (left < 0 || right > innerWidth + 0.5) found.push(`${what}: is not within the window`);
        for (const animation of element.getAnimations()) found.push(`${what}: moves, by ${animation.animationName}`);
    }
    const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
    if (new Set(ids).size < ids.length) found.push("an id is there twice");
    const count = (which) => all.filter((element) => element.matches(which)).length;
    if (count("main") !== 1 || count("h1") !== 1) found.push("not one main and one h1");
    if (!document.documentElement.lang) found.push("no language");
    return found;
}"""


def _audit(one: Window) -> None:
    """In all colours and widths."""
    for width in (1280, 360):
        one.page.set_viewport_size({"width": width, "height": 740})
        for scheme in ("light", "dark"):
            one.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            assert (width, scheme, one.page.evaluate(AUDIT)) == (width, scheme, [])


@pytest.mark.parametrize(("tenant", "user"), [("Acme", "Ann"), ("Globex", "Eve")])
def test_all_can_be_read_and_nothing_sticks_out(
    site: Site, window: Callable[..., Window], gate: Gate, tenant: str, user: str
) -> None:
    """Contrast, names, landmarks, widths, in each state that the page can be in; the tenants differ in colour."""
    one = window(site, errors=GONE)
    _audit(one)
    one.choose("Globex", "Bob")
    expect(one.page.get_by_role("alert")).to_be_visible()
    _audit(one)
    one.enter(tenant, user)
    _audit(one)
    one.ask("pin " + "w" * 150)
    one.ask("unpin 77 then who am I then " + "w" * 500)
    one.say("search import")
    expect(one.page.get_by_role("progressbar")).to_have_js_property("value", 0)
    _audit(one)
    gate.open()
    expect(one.answers).to_have_count(3)
    expect(one.notes).to_be_hidden()  # where it is narrow
    one.page.locator("summary").click()
    expect(one.notes).to_be_visible()
    _audit(one)
    for landmark in ("banner", "main", "complementary"):
        expect(one.page.get_by_role(landmark)).to_have_count(1)
    expect(one.page.get_by_role("log")).to_have_count(1)
    site.stop()
    expect(one.status).to_have_text("Connection lost. Retrying…")
    _audit(one)


# Running it


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert found
    return found[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a single process")
def test_it_runs_as_a_script_until_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it is ignored
    try:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(EXAMPLE / "app.py"), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            url = _address(process)
            assert "<title>Agent chat</title>" in httpx.get(url, trust_env=False).text
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=PATIENCE)
            assert (process.returncode, output, errors) == (0, "", "")
        finally:
            watchdog.cancel()
            process.kill()


def test_it_says_that_a_port_is_taken(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as raised:
        example.main(["--port", str(taken.getsockname()[1])])
    assert raised.value.code == 2
    assert "error: --port" in capsys.readouterr().err


def test_what_uvicorn_calls_takes_its_options_from_the_environment(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, make_site: Callable[..., Site]
) -> None:
    monkeypatch.setenv("AGENT_CHAT_SECRET", "a secret that two processes share")
    token = _token(make_site())
    answer = httpx.get(f"{make_site().url}me", headers={"authorization": f"Bearer {token}"}, trust_env=False)
    assert answer.json() == {"tenant": "acme", "user": "ann"}
    monkeypatch.setenv("AGENT_CHAT_REDIS", redis_servers.shared("redis").url)
    assert "RedisStore" in repr(example.make_store(example.os.environ["AGENT_CHAT_REDIS"]))
