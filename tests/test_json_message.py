"""json_message by itself: which messages it reads, whom they name, and what it refuses."""

import json
from typing import Any

import pytest
from driver import run, websocket
from hypothesis import example, given
from hypothesis import strategies as st

from asgi_context import ContextMiddleware, Identity, RequestRejected, current_context, json_message
from asgi_context.errors import ExtractorTypeError

BOTH = json_message(tenant="tenant", user="user")
TENANT = json_message(tenant="tenant")
ACME = json_message(tenant="tenant", valid=lambda name: name == "acme")
ANN = '{"tenant": "acme", "user": "ann"}'
WAYS = {
    "text": lambda text: {"text": text},
    "bytes": lambda text: {"bytes": text.encode()},
    "bytearray": lambda text: {"bytes": bytearray(text.encode())},
    "memoryview": lambda text: {"bytes": memoryview(text.encode())},
    "bytes beside an empty text": lambda text: {"bytes": text.encode(), "text": None},
    "text beside empty bytes": lambda text: {"bytes": None, "text": text},
}


def event(payload: Any) -> dict[str, Any]:
    return {"type": "websocket.receive", "text" if isinstance(payload, str) else "bytes": payload}


def refusal(extractor: Any, payload: Any) -> tuple[int, str] | None:
    try:
        extractor(payload if isinstance(payload, dict) else event(payload))
    except RequestRejected as rejection:
        # Nothing of the message hangs on the error, which is logged.
        assert (rejection.__cause__, rejection.__suppress_context__ or rejection.__context__ is None) == (None, True)
        return rejection.status, rejection.code
    return None


INVALID = (400, "message_invalid")
TOO_LARGE = (413, "message_too_large")


# What is accepted, against the standard library's parser.


def repeats(text: str) -> bool:
    """Whether any object in it has two members of one name."""
    found = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found |= len({name for name, _ in pairs}) < len(pairs)

    json.loads(text, object_pairs_hook=look)
    return found


def expected(text: str) -> tuple[int, str] | None:
    """Which refusal `ACME` owes a text, by what json.loads makes of it."""

    def constant(name: str) -> None:
        raise ValueError(name)

    try:
        members = json.loads(text, parse_constant=constant)
    except ValueError:
        return INVALID
    if repeats(text) or not isinstance(members, dict):
        return INVALID
    if "tenant" in members and members["tenant"] != "acme":
        return 400, "tenant_invalid"
    return None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["acme", "a\nb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["tenant", "a", "b", "", "ténant", "Tenant"])


@st.composite
def objects(draw: st.DrawFn) -> str:
    """Objects as text, with members that may be repeated, and names that may be escaped."""
    members = []
    for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=4)):
        written = "".join(f"\\u{ord(letter):04x}" if draw(st.booleans()) else letter for letter in name)
        members.append(f'"{written}"{draw(st.sampled_from([":", " : "]))}{json.dumps(value)}')
    return draw(st.sampled_from(["", " ", "\n\t"])) + "{" + ",".join(members) + "}" + draw(st.sampled_from(["", "\r "]))


TEXTS = (
    objects()
    | VALUES.map(json.dumps)
    | st.text(st.sampled_from('{}[]":,\\u0041tenacm1.eE+- \n'), max_size=20)
    | st.text()
)


@given(text=TEXTS)
@example(text='{"tenant": "acme"} {}')
@example(text='{"tenant": "acme"}\0')
@example(text='{"tenant": "acme",}')
@example(text="{'tenant': 'acme'}")
@example(text='{"tenant": "acme" /* */}')
@example(text='{"tenant": "ac\nme"}')
@example(text='{"a": 01}')
@example(text='{"a": -Infinity}')
@example(text='{"a": 1e999}')
@example(text='{"a": "\\ud800"}')
@example(text='\N{NO-BREAK SPACE}{"tenant": "acme"}')
@example(text='{"tenant": "acme"}\N{NO-BREAK SPACE}')
@example(text='{"tenant": "acme"}\v')
def test_it_accepts_what_the_standard_library_reads_alike_everywhere(text: str) -> None:
    assert refusal(ACME, text) == expected(text)
    assert refusal(ACME, text.encode()) == expected(text)


@given(text=TEXTS)
def test_text_and_its_bytes_are_read_alike(text: str) -> None:
    for extractor in (BOTH, TENANT):
        outcomes = []
        for way in WAYS.values():
            try:
                outcomes.append(extractor({"type": "websocket.receive", **way(text)}))
            except RequestRejected as rejection:
                outcomes.append(rejection.code)
        assert len(set(outcomes)) == 1


@given(raw=st.binary(max_size=60) | TEXTS.map(lambda text: text.encode("utf-16")))
def test_bytes_that_are_not_utf_8_are_refused_and_nothing_else_is_raised(raw: bytes) -> None:
    try:
        raw.decode()
    except UnicodeDecodeError:
        assert refusal(TENANT, raw) == INVALID
    else:
        assert refusal(TENANT, raw) == refusal(TENANT, raw.decode())


# Whom it names.


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_names_tenant_and_user(way: Any) -> None:
    assert BOTH({"type": "websocket.receive", **way(ANN)}) == Identity("acme", "ann")
    assert TENANT({"type": "websocket.receive", **way(ANN)}) == Identity("acme")


def test_other_members_do_not_matter() -> None:
    text = '{"text": "hello", "deep": {"tenant": "globex", "user": {"user": 1}}, "user": "ann", "tenant": "acme"}'
    assert BOTH(event(text)) == Identity("acme", "ann")


def test_names_are_told_apart_by_case_and_never_trimmed() -> None:
    assert TENANT(event('{"Tenant": "acme", "tenant ": "acme", "TENANT": 1}')) is None


def test_a_name_may_be_escaped() -> None:
    assert TENANT(event('{"\\u0074en\\u0061nt": "\\u0061cme"}')) == Identity("acme")


@pytest.mark.parametrize("extractor", [BOTH, TENANT])
def test_a_message_that_names_nobody_gives_none(extractor: Any) -> None:
    assert extractor(event("{}")) is None
    assert extractor(event('{"text": "hello"}')) is None


def test_half_an_identity_is_refused() -> None:
    assert refusal(BOTH, '{"user": "ann"}') == (400, "tenant_missing")
    assert refusal(BOTH, '{"tenant": "acme"}') == (400, "user_missing")


VALUELESS = ["null", "1", "true", "[]", '["acme"]', "{}", '{"tenant": "acme"}', '""', '".."', '"a b"', '"a/b"']
VALUELESS += ['"acme\\n"', '" acme"', '"caf\\u00e9"', '"\\ud800"', '"\\u0000"', f'"{"a" * 129}"', '"\\u0661"']


@pytest.mark.parametrize("value", VALUELESS)
def test_an_identifier_that_is_present_must_be_good(value: str) -> None:
    """``null`` is present: it is not the same as a name that is absent."""
    assert refusal(BOTH, f'{{"tenant": {value}, "user": "ann"}}') == (400, "tenant_invalid")
    assert refusal(BOTH, f'{{"tenant": "acme", "user": {value}}}') == (400, "user_invalid")
    assert refusal(BOTH, f'{{"user": {value}}}') == (400, "user_invalid")


def test_the_longest_identifier_is_taken() -> None:
    assert TENANT(event(json.dumps({"tenant": "a" * 128}))) == Identity("a" * 128)


# What it refuses.

REFUSED = {
    "nothing": "",
    "blank": " \n",
    "no JSON": "hello",
    "half": ANN[:-1],
    "two": ANN + ANN,
    "a list": f"[{ANN}]",
    "a string": json.dumps(ANN),
    "a number": "1",
    "null": "null",
    "true": "true",
    "NaN": '{"tenant": "acme", "user": "ann", "x": NaN}',
    "Infinity, deep": '{"tenant": "acme", "user": "ann", "x": [{"y": Infinity}]}',
    "-Infinity": '{"tenant": "acme", "user": "ann", "x": -Infinity}',
    "a comment": '{"tenant": "acme", "user": "ann" // x\n}',
    "a trailing comma": '{"tenant": "acme", "user": "ann",}',
    "single quotes": "{'tenant': 'acme', 'user': 'ann'}",
    "a control character in a string": '{"tenant": "acme", "user": "ann", "x": "\t"}',
    "an escape that is none": '{"tenant": "acme", "user": "ann", "x": "\\x41"}',
    "repeated": '{"tenant": "acme", "user": "ann", "tenant": "globex"}',
    "repeated alike": '{"tenant": "acme", "tenant": "acme", "user": "ann"}',
    "repeated, escaped differently": '{"tenant": "acme", "user": "ann", "\\u0074enant": "globex"}',
    "repeated, escaped both": '{"\\u0074enant": "acme", "user": "ann", "t\\u0065nant": "globex"}',
    "repeated, another member": '{"tenant": "acme", "user": "ann", "x": 1, "x": 1}',
    "repeated, empty name": '{"tenant": "acme", "user": "ann", "": 1, "": 2}',
    "repeated, deep": '{"tenant": "acme", "user": "ann", "x": [[{"y": {"z": 1, "z": 2}}]]}',
    "a BOM": "\N{ZERO WIDTH NO-BREAK SPACE}" + ANN,
    "a number of many digits": f'{{"tenant": "acme", "user": "ann", "x": {"9" * 5000}}}',
    "nested lists without end": '{"tenant": "acme", "user": "ann", "x": ' + "[" * 60000,
    "nested objects without end": '{"tenant": "acme", "user": "ann", "x": ' + '{"x":' * 12000,
    "nested too deep, and closed": '{"tenant": "acme", "user": "ann", "x": ' + "[" * 30000 + "]" * 30000 + "}",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_parsers_could_read_differently_or_not_at_all_is_refused(text: str) -> None:
    assert refusal(BOTH, text) == INVALID
    assert refusal(BOTH, text.encode()) == INVALID


@pytest.mark.parametrize(
    "raw",
    [
        ANN.encode("utf-16"),
        ANN.encode("utf-16-le"),
        ANN.encode("utf-32-be"),
        ANN.encode("utf-8-sig"),
        ANN.replace("ann", "café").encode("latin-1"),
        b'{"tenant": "acme", "user": "ann", "x": "\xed\xa0\x80"}',
        b'{"tenant": "acme", "user": "ann", "x": "\xc0\xaf"}',
    ],
    ids=["UTF-16", "UTF-16LE", "UTF-32BE", "BOM", "Latin-1", "a surrogate", "over-long"],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_must_be_utf_8_without_a_bom(raw: bytes, kind: Any) -> None:
    """json.loads would guess UTF-16 and UTF-32, and skip a BOM."""
    assert refusal(BOTH, kind(raw)) == INVALID


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"text": None},
        {"bytes": None},
        {"text": None, "bytes": None},
        {"text": ANN, "bytes": ANN.encode()},
        {"text": ANN, "bytes": b""},
        {"text": "", "bytes": ANN.encode()},
    ],
    ids=str,
)
def test_a_message_is_either_text_or_bytes(parts: Any) -> None:
    """Of both, the app might read the other."""
    assert refusal(BOTH, {"type": "websocket.receive", **parts}) == INVALID


def test_moderate_nesting_and_large_numbers_are_read() -> None:
    deep = "[" * 200 + "]" * 200
    assert BOTH(event(f'{{"tenant": "acme", "user": "ann", "x": {deep}, "y": {"9" * 4000}, "z": 1e400}}'))


# How long a message may be.


def padded(size: int, filler: str = "x") -> str:
    """A message of so many bytes of UTF-8."""
    head, tail = '{"tenant": "acme", "pad": "', '"}'
    left = size - len(head) - len(tail)
    width = len(filler.encode())
    text = head + filler * (left // width) + "x" * (left % width) + tail
    assert len(text.encode()) == size
    return text


@pytest.mark.parametrize("filler", ["x", "é", "€", "😀"], ids=["1 byte", "2 bytes", "3 bytes", "4 bytes"])
@pytest.mark.parametrize("limit", [100, 101, 102, 103, 400])
def test_the_limit_counts_bytes_of_utf_8_in_text_and_bytes_alike(limit: int, filler: str) -> None:
    extractor = json_message(tenant="tenant", max_bytes=limit)
    for size in range(limit - 5, limit + 6):
        owed = None if size <= limit else TOO_LARGE
        text = padded(size, filler)
        assert refusal(extractor, text) == owed
        for kind in (bytes, bytearray, memoryview):
            assert refusal(extractor, kind(text.encode())) == owed


def test_the_limit_is_65536_bytes_unless_said_otherwise() -> None:
    assert refusal(TENANT, padded(65536)) is None
    assert refusal(TENANT, padded(65537)) == TOO_LARGE
    assert refusal(json_message(tenant="tenant", max_bytes=1), "{}") == TOO_LARGE
    assert refusal(json_message(tenant="tenant", max_bytes=2), "{}") is None


@pytest.mark.parametrize("payload", ["[" * 65537, b"\xff" * 65537], ids=["no JSON", "no UTF-8"])
def test_a_message_that_is_too_long_is_not_looked_into(payload: Any) -> None:
    assert refusal(TENANT, payload) == TOO_LARGE


def test_text_that_cannot_be_utf_8_is_refused_where_its_length_counts() -> None:
    assert refusal(TENANT, json.dumps({"x": "y" * 70000})[:-2] + '\ud800"}') == INVALID


@given(name=st.text(st.characters(codec="utf-8"), min_size=1), tenant=st.from_regex(r"[a-z0-9]{1,128}", fullmatch=True))
def test_any_name_of_a_member_can_be_configured(name: str, tenant: str) -> None:
    assert json_message(tenant=name)(event(json.dumps({name: tenant}))) == Identity(tenant)
    assert json_message(tenant=name)(event(json.dumps({name: tenant}, ensure_ascii=False))) == Identity(tenant)


# Another rule for identifiers.


def test_valid_decides_in_place_of_the_rule() -> None:
    extractor = json_message(tenant="tenant", user="user", valid=lambda name: name in {"ac/me", "änn"})
    assert extractor(event('{"tenant": "ac/me", "user": "änn"}')) == Identity("ac/me", "änn")
    assert refusal(extractor, '{"tenant": "acme", "user": "änn"}') == (400, "tenant_invalid")
    assert refusal(extractor, '{"tenant": "ac/me", "user": "ann"}') == (400, "user_invalid")


def test_valid_never_sees_what_is_empty_or_no_string() -> None:
    asked = []
    extractor = json_message(tenant="tenant", valid=asked.append)
    for value in ('""', "1", "null", '["acme"]'):
        assert refusal(extractor, f'{{"tenant": {value}}}') == (400, "tenant_invalid")
    assert asked == []


def test_a_rule_that_says_later_is_an_error() -> None:
    """What is to be awaited is true, whatever it is going to say."""

    class Later:
        def __await__(self) -> Any: ...

    with pytest.raises(ExtractorTypeError):
        json_message(tenant="tenant", valid=lambda name: Later())(event('{"tenant": "acme"}'))


# Its options.


@pytest.mark.parametrize("name", ["", None, 1, b"tenant", ("tenant",), True])
def test_a_tenant_must_be_named(name: Any) -> None:
    with pytest.raises(TypeError, match="json_message: tenant must be the name of a member"):
        json_message(tenant=name)


@pytest.mark.parametrize("name", ["", 1, b"user", ("user",), False])
def test_a_user_is_named_or_left_out(name: Any) -> None:
    with pytest.raises(TypeError, match="json_message: user must be the name of a member"):
        json_message(tenant="tenant", user=name)


@pytest.mark.parametrize("size", ["65536", 65536.0, None, True])
def test_max_bytes_must_be_an_int(size: Any) -> None:
    with pytest.raises(TypeError, match="json_message: max_bytes must be an int, not"):
        json_message(tenant="tenant", max_bytes=size)


@pytest.mark.parametrize("size", [0, -1])
def test_max_bytes_must_be_positive(size: int) -> None:
    with pytest.raises(ValueError, match=f"json_message: max_bytes must be at least 1, not {size}"):
        json_message(tenant="tenant", max_bytes=size)


async def later(name: str) -> bool:
    raise NotImplementedError


@pytest.mark.parametrize("rule", ["[a-z]+", True, later])
def test_valid_must_be_a_rule_that_says_at_once(rule: Any) -> None:
    with pytest.raises(TypeError, match="json_message: valid= must be callable"):
        json_message(tenant="tenant", valid=rule)


def test_options_are_named() -> None:
    with pytest.raises(TypeError):
        json_message("tenant", "user")  # type: ignore[misc]


def test_its_repr_shows_what_it_reads() -> None:
    assert repr(TENANT) == "json_message(tenant='tenant')"
    assert repr(BOTH) == "json_message(tenant='tenant', user='user')"


# Inside of an extractor of the user's own.


@pytest.mark.anyio
@pytest.mark.parametrize("later", [False, True], ids=["plain", "async"])
async def test_an_extractor_of_the_users_own_can_ask_it(later: bool) -> None:
    """It adds what the message alone does not prove; whom the message names is left to json_message."""

    def extract(event: Any) -> Identity | None:
        identity = BOTH(event)
        return identity and Identity(identity.tenant, identity.user, {"via": "message"})

    async def extract_later(event: Any) -> Identity | None:
        return extract(event)

    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        while (await receive())["type"] == "websocket.receive":
            context = current_context(None)
            seen.append(context and (context.tenant, context.user, context.claims.to_dict()))

    middleware = ContextMiddleware(app, message=extract_later if later else extract)
    bad = '{"tenant": "acme"}'
    exchange = await run(middleware, websocket(), [{"type": "websocket.connect"}, event(ANN), event("{}"), event(bad)])
    assert seen == [("acme", "ann", {"via": "message"}), None]
    assert exchange.sent == [{"type": "websocket.close", "code": 1008, "reason": "user_missing"}]
