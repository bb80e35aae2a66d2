"""The hook of httpx and httpx2: the context goes to the hosts that are named, and whatever happens to no other."""

import asyncio
from collections.abc import Callable, Generator
from contextvars import copy_context
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_context import ContextClosedError, Identity, RequestContext, bind_context, current_context
from asgi_context.errors import CarrierError
from asgi_context.httpx import context_hook
from asgi_context.propagation import CarrierKey, from_carrier

NAME = "asgi-context"
NOW = 1_763_900_000.0
KEY = CarrierKey("2026-11", b"0123456789abcdef0123456789abcdef")
ANN = RequestContext("acme", "ann", "request-1", {"role": "admin"})
API = "https://api.example.com"
FORGED = "1..by-hand."


def hook(hosts: Any = (API,), **more: Any) -> Any:
    return context_hook(hosts, **{"key": KEY, "now": lambda: NOW, **more})


def read(text: str, audience: str | None = None) -> RequestContext:
    return from_carrier({NAME: text}, key=KEY, audience=audience, now=lambda: NOW)


class Network:
    """Every host there is: it notes which request comes with which headers, and redirects where it is told."""

    def __init__(self, redirects: dict[str, str] | None = None) -> None:
        self.redirects = redirects or {}
        self.seen: list[tuple[str, list[str]]] = []

    def answer(self, library: Any, request: Any) -> Any:
        self.seen.append((str(request.url), request.headers.get_list(NAME)))
        target = self.redirects.get(str(request.url))
        return library.Response(200) if target is None else library.Response(307, headers={"location": target})

    @property
    def hosts_told(self) -> list[tuple[str, str | None]]:
        """Where a request went, and the user that it named, if any."""
        return [(url, read(lines[0]).user if lines else None) for url, lines in self.seen]


def by_sync_client(library: Any, network: Network, send: Callable[[Any], Any], **options: Any) -> None:
    transport = library.MockTransport(lambda request: network.answer(library, request))
    with library.Client(transport=transport, trust_env=False, **options) as client:
        send(client)


def by_async_client(library: Any, network: Network, send: Callable[[Any], Any], **options: Any) -> None:
    async def ask() -> None:
        async with library.AsyncClient(
            transport=library.MockTransport(lambda request: network.answer(library, request)),
            trust_env=False,
            **options,
        ) as client:
            await send(client)

    asyncio.run(ask())


CLIENTS = {
    f"{library.__name__}-{kind}": (library, run)
    for library in (httpx, httpx2)
    for kind, run in (("sync", by_sync_client), ("async", by_async_client))
}


@pytest.fixture(params=CLIENTS)
def ask(request: pytest.FixtureRequest) -> Any:
    """Sends by each kind of client, with the hook, and tells what came where."""
    library, run = CLIENTS[request.param]

    def asked(send: Any, hook: Any, redirects: dict[str, str] | None = None, **options: Any) -> Network:
        network = Network(redirects)
        run(library, network, send, event_hooks={"request": [hook]}, **options)
        return network

    asked.library = library  # type: ignore[attr-defined]
    return asked


def test_a_request_to_a_named_host_says_who_asks(ask: Any) -> None:
    with bind_context(ANN):
        network = ask(lambda client: client.get(f"{API}/a"), hook(audience="api", claims=["role"]))
    ((_, (text,)),) = network.seen
    context = read(text, "api")
    assert context == ANN


def test_to_any_other_host_nothing_goes(ask: Any) -> None:
    with bind_context(ANN):
        network = ask(lambda client: client.get("https://example.org"), hook())
    assert network.hosts_told == [("https://example.org", None)]


def test_where_nobody_is_bound_nothing_goes(ask: Any) -> None:
    assert ask(lambda client: client.get(API), hook()).hosts_told == [(API, None)]


def test_each_request_is_signed_by_itself_for_whoever_asks_then(ask: Any) -> None:
    told: list[Any] = []
    for user in ("ann", "bob"):
        with bind_context(Identity("acme", user)):
            told += ask(lambda client: client.get(API), HOOK).hosts_told
    assert told == [(API, "ann"), (API, "bob")]


HOOK = hook()


def test_one_set_by_hand_is_taken_off(ask: Any) -> None:
    for headers in (
        {NAME: FORGED},
        {"Asgi-Context": FORGED},
        {"asgi_context": FORGED},
        [(b"asgi-context", b"1"), (b"ASGI_CONTEXT", b"2"), (b"Asgi-Context", b"3"), (b"x-other", b"\xe9")],
    ):

        def send(client: Any, url: str, headers: Any = headers) -> Any:
            return client.send(client.build_request("GET", url, headers=headers))

        with bind_context(ANN):
            assert ask(lambda client: send(client, API), hook()).hosts_told == [(API, "ann")]
            assert ask(lambda client: send(client, "https://example.org"), hook()).seen == [("https://example.org", [])]
        assert ask(lambda client: send(client, API), hook()).seen == [(API, [])]
    with bind_context(ANN):
        for url in (API, "https://example.org"):
            network = ask(lambda client, url=url: client.get(url), hook(), headers={NAME: FORGED})
            assert FORGED not in network.seen[0][1]


def test_a_name_with_underscores_is_taken_off() -> None:
    request = httpx.Request("GET", "https://example.org", headers={"Asgi_Context": FORGED, "asgi-context_": "x"})
    hook()(request)
    assert list(request.headers) == ["host", "asgi-context_"]


def test_a_name_with_white_space_around_it_is_taken_off() -> None:
    """HTTP/2 sends it without."""
    request = httpx.Request("GET", "https://example.org", headers=[(b"asgi-context ", b"1"), (b"\tAsgi_Context", b"2")])
    hook()(request)
    assert list(request.headers) == ["host"]


OTHER_HOSTS = {
    "another host": [("Host", "example.org")],
    "another port": [("Host", "api.example.com:8443")],
    "two": [("Host", "api.example.com"), ("host", "example.org")],
    "none": [("Host", "")],
}


@pytest.mark.parametrize("which", OTHER_HOSTS)
def test_a_host_that_the_named_one_only_leads_to_gets_nothing(ask: Any, which: str) -> None:
    """Several hosts may be behind one address; the header says which of them is asked."""
    start = f"{API}/start"
    with bind_context(ANN):
        network = ask(
            lambda client: client.get(start, headers=[*OTHER_HOSTS[which], (NAME, FORGED)]),
            hook(),
            {start: f"{API}/end"},
            follow_redirects=True,
        )
    assert network.seen == [(start, []), (f"{API}/end", [])]


def test_its_own_host_may_be_named_by_hand(ask: Any) -> None:
    with bind_context(ANN):
        network = ask(lambda client: client.get(f"{API}:443", headers={"Host": "API.example.com"}), hook())
        assert network.hosts_told == [(API, "ann")]
        request = httpx.Request("GET", API)
        del request.headers["host"]
        hook()(request)
    assert NAME not in request.headers


REDIRECTS = {
    "to another host": "https://example.org/",
    "to a host that begins alike": "https://api.example.com.evil.org/",
    "to a host that ends alike": "https://evil-api.example.com/",
    "to one below": "https://evil.api.example.com/",
    "to one above": "https://example.com/",
    "to plain text": "http://api.example.com/",
    "to plain text on the same port": "http://api.example.com:443/",
    "to another port": "https://api.example.com:8443/",
    "with the name as its user": "https://api.example.com@example.org/",
    "with the name as its user and password": "https://api.example.com:443@example.org/",
    "with the name behind a number sign": "https://example.org#@api.example.com/",
    "without a scheme": "//example.org/",
    "with a final dot": "https://api.example.com./",
    "to an address": "https://127.0.0.1/",
}


@pytest.mark.parametrize("where", REDIRECTS)
def test_a_redirect_does_not_take_it_elsewhere(ask: Any, where: str) -> None:
    start = f"{API}/start"
    with bind_context(ANN):
        network = ask(
            lambda client: client.get(start, headers={"asgi_context": FORGED}),
            hook(),
            {start: REDIRECTS[where]},
            follow_redirects=True,
        )
    (first, (text,)), (_, lines) = network.seen
    assert (first, read(text).user) == (start, "ann")
    assert lines == []


def test_after_a_detour_it_is_there_again(ask: Any) -> None:
    first, between, last = f"{API}/start", "https://example.org/", f"{API}/end"
    with bind_context(ANN):
        network = ask(lambda client: client.get(first), hook(), {first: between, between: last}, follow_redirects=True)
    assert network.hosts_told == [(first, "ann"), (between, None), (last, "ann")]


def test_a_redirect_that_is_followed_by_hand_is_another_request(ask: Any) -> None:
    start = f"{API}/start"
    followed: list[Any] = []

    def send(client: Any) -> Any:
        if isinstance(client, ask.library.Client):
            return client.send(client.get(start).next_request)

        async def both() -> None:
            await client.send((await client.get(start)).next_request)

        return both()

    with bind_context(ANN):
        network = ask(send, hook(), {start: "https://example.org/"})
    followed += network.hosts_told
    assert followed == [(start, "ann"), ("https://example.org/", None)]


def test_each_host_gets_one_for_itself(ask: Any) -> None:
    start, end = "https://billing.example.com/", "https://search.example.com/"
    hosts = {"billing.example.com": "billing", "search.example.com": "search"}
    with bind_context(ANN):
        network = ask(lambda client: client.get(start), hook(hosts), {start: end}, follow_redirects=True)
    for (_, (text,)), audience in zip(network.seen, ("billing", "search"), strict=True):
        assert read(text, audience).user == "ann"


def test_what_an_auth_flow_asks_elsewhere_goes_without(ask: Any) -> None:
    class Auth(ask.library.Auth):  # type: ignore[misc, name-defined]
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            yield ask.library.Request("POST", "https://login.example.org/token", headers=request.headers)
            yield request
            yield request  # as where the first answer was 401

    with bind_context(ANN):
        network = ask(lambda client: client.get(API, auth=Auth(), headers={NAME: FORGED}), hook())
    assert network.hosts_told == [("https://login.example.org/token", None), (API, "ann"), (API, "ann")]
    assert [len(lines) for _, lines in network.seen] == [0, 1, 1]


def test_a_request_that_is_sent_again_is_signed_again() -> None:
    clock = [NOW]
    request = httpx.Request("GET", API)
    again = context_hook([API], key=KEY, now=lambda: clock[0])
    with bind_context(ANN):
        again(request)
        clock[0] += 200
        again(request)
    assert from_carrier({NAME: request.headers[NAME]}, key=KEY, now=lambda: NOW + 499)


def test_what_was_revoked_stops_the_request_and_goes_nowhere(ask: Any) -> None:
    def job() -> None:
        block = bind_context(ANN)
        block.__enter__()
        copy_context().run(block.__exit__, None, None, None)
        with pytest.raises(ContextClosedError):
            ask(lambda client: client.get(API), hook())
        assert ask(lambda client: client.get("https://example.org"), hook()).seen == [("https://example.org", [])]

    copy_context().run(job)


def test_what_cannot_be_carried_stops_the_request(ask: Any) -> None:
    with bind_context(Identity("acme", expires_at=NOW)), pytest.raises(CarrierError):
        ask(lambda client: client.get(API), hook())


def test_concurrent_requests_of_one_client_are_each_their_own_caller_s() -> None:
    seen: dict[str, str | None] = {}

    async def main() -> None:
        def answer(request: Any) -> Any:
            seen[request.url.path[1:]] = read(request.headers[NAME]).user
            return httpx2.Response(200)

        async with httpx2.AsyncClient(
            transport=httpx2.MockTransport(answer), event_hooks={"request": [hook()]}
        ) as client:

            async def one(user: str) -> None:
                with bind_context(Identity("acme", user)):
                    await asyncio.sleep(0)
                    await client.get(f"{API}/{user}")

            await asyncio.gather(*map(one, USERS))

    asyncio.run(main())
    assert seen == {user: user for user in USERS}


USERS = [f"user-{number}" for number in range(20)]

# Which host a URL leads to


def goes(hosts: Any, url: str) -> bool:
    """Whether the context goes there; both libraries must agree."""
    verdicts: set[bool] = set()
    with bind_context(ANN):
        for library in (httpx, httpx2):
            request = library.Request("GET", url)
            hook(hosts)(request)
            verdicts.add(NAME in request.headers)
    (verdict,) = verdicts
    return verdict


@pytest.mark.parametrize(
    ("entry", "same", "others"),
    [
        (
            "api.example.com",
            ["https://api.example.com", "HTTPS://API.Example.COM:443/x?y#z", "https://example.org\\@api.example.com"],
            [
                "http://api.example.com",
                "https://api.example.com:80",
                "https://api.example.com:0",
                "https://example.com",
            ],
        ),
        (
            "HTTPS://API.example.com:443",
            ["https://api.example.com"],
            [
                "https://api.example.com.",
                "https://api%2eexample.com",
                "https://api.example.co",
                "ftp://api.example.com",
            ],
        ),
        (
            "http://localhost:8000",
            ["http://localhost:8000", "ws://localhost:8000"],
            ["https://localhost:8000", "http://localhost", "http://127.0.0.1:8000", "http://[::1]:8000"],
        ),
        ("http://localhost", ["http://localhost:80"], ["http://localhost:8000", "https://localhost"]),
        ("db:7", ["https://db:7"], ["https://db", "https://d:7", "https://db:77"]),
        ("api.example.com:8443", ["https://api.example.com:8443", "wss://api.example.com:8443"], [API]),
        ("https://my_service", ["https://my_service/"], ["https://my-service/"]),
        (
            "127.0.0.1",
            ["https://127.0.0.1"],
            ["https://127.1", "https://2130706433", "https://[::ffff:127.0.0.1]", "https://127.0.0.1.example.org"],
        ),
        (
            "[::1]:8443",
            ["https://[::1]:8443", "https://[0:0:0:0:0:0:0:1]:8443", "https://[::0.0.0.1]:8443"],
            ["https://[::2]:8443", "https://[::1]", "http://[::1]:8443"],
        ),
        (
            "http://[2001:DB8:0::1]",
            ["http://[2001:db8::1]", "http://[2001:DB8::1]"],
            ["http://[2001:db8::1%25eth0]", "http://[2001:db8::]"],
        ),
        (
            "xn--bcher-kva.example",
            ["https://b\xfccher.example", "https://B\xdcCHER.example", "https://XN--BCHER-KVA.example"],
            ["https://bucher.example"],
        ),
        ("fass.example", ["https://fass.example"], ["https://fa\xdf.example"]),
        (
            "*.example.com",
            ["https://api.example.com", "https://a_b.example.com:443", "https://xn--bcher-kva.example.com"],
            [
                "https://example.com",
                "https://a.b.example.com",
                "https://.example.com",
                "https://evilexample.com",
                "https://api.example.com.evil.org",
                "http://api.example.com",
                "https://a%20b.example.com",
                "https://api.example.com:8443",
            ],
        ),
        ("http://*.internal.example:8000", ["http://a.internal.example:8000"], ["http://a.internal.example"]),
    ],
)
def test_a_host_is_where_the_client_connects_to(entry: str, same: list[str], others: list[str]) -> None:
    assert [url for url in same if not goes([entry], url)] == []
    assert [url for url in others if goes([entry], url)] == []


def test_a_host_by_name_goes_before_all_below() -> None:
    hosts = {"*.example.com": "all", "api.example.com": "api"}
    request = httpx.Request("GET", API)
    with bind_context(ANN):
        hook(hosts)(request)
    assert read(request.headers[NAME], "api")


@given(
    st.from_regex(
        r"https?://[a-z.@:\\/#?%\[\]A-Z0-9-]{0,12}(api\.example\.com)?[a-z.@:\\/#?%\[\]-]{0,12}", fullmatch=True
    )
)
def test_no_url_that_leads_elsewhere_gets_it(url: str) -> None:
    for library in (httpx, httpx2):
        try:
            request = library.Request("GET", url)
        except (httpx.InvalidURL, httpx2.InvalidURL):
            continue
        with bind_context(ANN):
            hook()(request)
        place = (request.url.raw_scheme, request.url.raw_host, request.url.port)
        assert (NAME in request.headers) is (place == (b"https", b"api.example.com", None))


# Arguments


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.com",
        "*.0.0.1",
        "a.*.example.com",
        "**.example.com",
        "https://",
        "ftp://example.com",
        "ws://example.com",
        "//example.com",
        "https://example.com/",
        "https://example.com/path",
        "https://user@example.com",
        "example.com.",
        ".example.com",
        "exa mple.com",
        "-a.example.com",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:443x",
        "example.com\n",
        "::1",
        "[::1",
        "[::1::]",
        "[127.0.0.1]",
        "*.[::1]",
        "b\xfccher.example",
        "\N{KELVIN SIGN}.example.com",
    ],
)
def test_what_names_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="hosts: a host is like"):
        hook([entry])


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"hosts": API}, TypeError, "hosts must be several hosts"),
        ({"hosts": 1}, TypeError, "hosts must be several hosts"),
        ({"hosts": []}, ValueError, "hosts is empty"),
        ({"hosts": [1]}, TypeError, "a host must be a str, not int"),
        ({"hosts": [API, "api.example.com:443"]}, ValueError, "stands there twice"),
        ({"hosts": ["*.example.com", "https://*.example.com"]}, ValueError, "stands there twice"),
        ({"hosts": {API: "api"}, "audience": "api"}, TypeError, "leave out audience="),
        ({"hosts": {API: 1}}, TypeError, "audience must be a str"),
        ({"audience": ""}, ValueError, "audience must not be empty"),
        ({"key": b"secret"}, TypeError, "key must be a CarrierKey"),
        ({"lifetime": 0}, ValueError, "lifetime"),
        ({"claims": "role"}, TypeError, "claims"),
        ({"now": 1}, TypeError, "now must be callable"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        hook(**arguments)


def test_it_is_signed_unless_that_is_said() -> None:
    with pytest.raises(TypeError, match="key"):
        context_hook([API])  # type: ignore[call-arg]
    request = httpx.Request("GET", API)
    with bind_context(ANN):
        hook(key=None)(request)
    assert from_carrier({NAME: request.headers[NAME]}, trusted=True, now=lambda: NOW) == RequestContext(
        "acme", "ann", "request-1"
    )


def test_a_repr_names_no_host_and_no_key() -> None:
    assert repr(hook({API: "api", "*.example.com": "all"})) == "<ContextHook for 2 hosts>"
    assert current_context(None) is None
