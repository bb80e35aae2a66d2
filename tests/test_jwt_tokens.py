"""Which tokens are refused, and that everything else about them is as it was proven."""

import json
import logging
import sys
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import jwt as pyjwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from driver import Seen, http, run, websocket
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import JWKRegistry
from joserfc.jws import JWSRegistry
from jwt_makers import (
    ALGORITHMS,
    AUDIENCE,
    ISSUER,
    NOW,
    SigningKey,
    changed,
    claims,
    compact,
    encode,
    make_key,
    secret_key,
    token,
)

from asgi_context import ContextMiddleware, Identity, RequestRejected, current_context
from asgi_context.jwt import Issuer, JWKSClient, JWTAuth
from asgi_context.jwt import _auth as auth_module
from asgi_context.jwt import _keys as keys_module

KEY = make_key("HS256")
OTHER = make_key("HS256", "other")
HEADER = {"alg": "HS256", "typ": "JWT", "kid": "k"}
BAD = "401 invalid_token"
CHALLENGE = b'Bearer error="invalid_token", error_description="The access token is not acceptable"'


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def auth_of(*keys: Any, **options: Any) -> JWTAuth:
    """What accepts tokens of a key, at ``NOW``."""
    data = [key.jwk if isinstance(key, SigningKey) else key for key in keys or (KEY,)]
    options = {"issuer": ISSUER, "audience": AUDIENCE, "tenant": "org_id", "now": Clock(), **options}
    return JWTAuth(keys=data, **options)


def verify(auth: JWTAuth, text: Any) -> Identity:
    """Verify where the keys are at hand, so that nothing is waited for and no event loop needed."""
    steps = auth.verify(text)
    try:
        steps.send(None)
    except StopIteration as end:
        identity: Identity = end.value
        return identity
    raise AssertionError("it waited")


def answer(auth: JWTAuth, text: Any) -> str:
    """``"acme/ann"``, or status and code of the refusal."""
    try:
        identity = verify(auth, text)
    except RequestRejected as rejected:
        return f"{rejected.status} {rejected.code}"
    return f"{identity.tenant}/{identity.user}"


async def assert_refused(text: str | bytes, *keys: Any, as_: str = BAD, log: Any = None, **options: Any) -> None:
    """Through `JWTAuth.verify` and through the middleware, twice each: a refusal is not remembered as anything else."""
    auth = auth_of(*keys, **options)
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    for form in (text, raw, raw):
        with pytest.raises(RequestRejected) as caught:
            await auth.verify(form)
        assert f"{caught.value.status} {caught.value.code}" == as_
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    app = Seen(current_context)
    for _ in range(2):
        exchange = await run(ContextMiddleware(app, identity=auth), http((b"authorization", b"Bearer " + raw)))
        assert f"{exchange.status} {exchange.problem['code']}" == as_
        assert exchange.header(b"www-authenticate") == (
            [CHALLENGE] if as_ == BAD else exchange.header(b"www-authenticate")
        )
    assert not app.seen
    assert not auth._verified._kept
    if log is not None:
        parts = [part for part in raw.decode("latin-1").split(".") if len(part) > 8]
        assert not any(part in log.text for part in parts)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What signatures were checked of, by keys that are imported from now on."""
    checked: list[bytes] = []
    original = keys_module._verify

    def counted(check: Any, key: Any, signed: bytes, signature: bytes) -> bool:
        checked.append(signed)
        return original(check, key, signed, signature)

    monkeypatch.setattr(keys_module, "_verify", counted)
    return checked


_watchers: list[list[str]] = []


def _audit(event: str, arguments: Any) -> None:
    if _watchers and event in {"open", "socket.connect", "socket.getaddrinfo", "socket.__new__", "subprocess.Popen"}:
        _watchers[-1].append(event)


sys.addaudithook(_audit)  # for good: there is no way to remove one


@pytest.fixture
def touched() -> Iterator[list[str]]:
    """Files that are opened and hosts that are contacted."""
    _watchers.append([])
    yield _watchers[-1]
    _watchers.pop()


def cases(table: Mapping[str, Any]) -> Any:
    """Parameters with names."""
    return [pytest.param(*(value if isinstance(value, tuple) else (value,)), id=name) for name, value in table.items()]


def header_of(**changes: Any) -> bytes:
    return json.dumps(changed(HEADER, **changes)).encode()


def payload_of(**changes: Any) -> bytes:
    return json.dumps(claims(**changes)).encode()


def signed(*, header: bytes = header_of(), payload: bytes = payload_of()) -> str:
    """A token whose signature is good, whatever its parts are."""
    return compact(KEY, header, payload)


GOOD = token(KEY)
HEAD, BODY, TAIL = GOOD.split(".")


# What is accepted, so that the refusals below are for what they say


@pytest.mark.anyio
async def test_a_good_token_is_accepted_through_the_middleware_too() -> None:
    app = Seen(current_context)
    exchange = await run(
        ContextMiddleware(app, identity=auth_of()), http((b"authorization", b"Bearer " + GOOD.encode()))
    )
    assert exchange.status == 200
    assert [(seen.tenant, seen.user) for seen in app.seen] == [("acme", "ann")]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_is_accepted_from_its_own_key(algorithm: str) -> None:
    key = make_key(algorithm)
    for data in (key.jwk, key.jwk | {"alg": algorithm, "use": "sig", "key_ops": ["verify"]}, key.pem or key.secret):
        assert answer(auth_of(data), token(key)) == "acme/ann"


@pytest.mark.parametrize("form", [str, str.encode])
def test_a_token_may_be_str_or_bytes(form: Callable[[str], Any]) -> None:
    assert answer(auth_of(), form(GOOD)) == "acme/ann"


@pytest.mark.parametrize("value", [None, 5, bytearray(GOOD, "ascii"), memoryview(b"a.b.c"), ["a", "b", "c"]])
def test_a_token_of_another_type_is_the_callers_mistake(value: Any) -> None:
    with pytest.raises(TypeError, match="token must be str or bytes"):
        verify(auth_of(), value)


def test_another_key_of_the_same_name_has_not_signed_it() -> None:
    assert answer(auth_of(make_key("HS256", "k2").jwk | {"kid": "k"}), GOOD) == BAD
    for algorithm in ALGORITHMS:
        other = make_key(algorithm, "k2").jwk | {"kid": "k"}
        assert answer(auth_of(other), token(make_key(algorithm))) == BAD


@pytest.mark.anyio
@pytest.mark.parametrize("text", [GOOD[:-4], "x", "a.b.c", token(KEY, exp=NOW), token(OTHER, {"kid": "k"})])
async def test_a_bad_token_is_never_the_same_as_none(text: str) -> None:
    """Neither where unbound requests are let in, nor on a WebSocket."""
    app = Seen(lambda: current_context(None))
    bearer = (b"authorization", b"Bearer " + text.encode())
    for missing in ("reject", "unbound"):
        middleware = ContextMiddleware(app, identity=auth_of(), missing=missing)
        assert (await run(middleware, http(bearer))).status == 401
        denied = await run(middleware, websocket(bearer, denial=True))
        assert (denied.sent[0]["type"], denied.sent[0]["status"]) == ("websocket.http.response.start", 401)
        assert CHALLENGE in denied.header(b"www-authenticate")
        closed = await run(middleware, websocket(bearer))
        assert [message["type"] for message in closed.sent] == ["websocket.close"]
    assert not app.seen
    await run(ContextMiddleware(app, identity=auth_of(), missing="unbound"), http())
    assert app.seen == [None]


# Length


def _of_length(size: int) -> str:
    """A good token of so many bytes, as far as base64url comes in all lengths."""
    missing = size - len(signed(payload=payload_of(pad="")))
    text = signed(payload=payload_of(pad="x" * (missing * 3 // 4)))
    assert len(text) == size
    return text


def test_a_token_of_max_token_bytes_is_accepted_and_one_byte_more_is_not() -> None:
    text = _of_length(8192)
    assert answer(auth_of(), text) == "acme/ann"
    assert answer(auth_of(max_token_bytes=len(text) - 1), text) == BAD
    assert answer(auth_of(max_token_bytes=len(GOOD)), GOOD) == "acme/ann"
    assert answer(auth_of(max_token_bytes=len(GOOD)), GOOD + "A") == BAD


def test_a_token_that_is_too_long_is_not_read_at_all(monkeypatch: pytest.MonkeyPatch, checks: list[bytes]) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(auth_module, "read_token", read.append)
    auth = auth_of()
    for text in ("." * 8193, "a" * 1_000_000, _of_length(8200), "a." * 100_000, f"{HEAD}.{'A' * 9000}.{TAIL}"):
        assert answer(auth, text) == BAD
    assert read == checks == []


@pytest.mark.anyio
async def test_a_token_that_is_too_long_is_refused(log: Any) -> None:
    await assert_refused(_of_length(8196), log=log)


# The compact form


def _unpadded_bits(segment: str) -> str:
    """The same bytes to a lax decoder: the last character has bits that stand for nothing."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(segment) % 4
    return segment[:-1] + alphabet[alphabet.index(segment[-1]) + 1]


def _signed_as_written(head: str, body: str) -> str:
    """Signed over the text itself, so that only its form is wrong."""
    return f"{head}.{body}.{encode(KEY.sign(f'{head}.{body}'.encode()))}"


def _ragged(raw: bytes) -> bytes:
    """JSON with so many spaces that its base64url would need padding."""
    return raw + b" " * (1 + -len(raw) % 3)


def _padded(raw: bytes) -> str:
    text = urlsafe_b64encode(_ragged(raw)).decode()
    assert text.endswith("=")
    return text


RAGGED_HEAD, RAGGED_BODY = encode(_ragged(header_of())), encode(_ragged(payload_of()))
STANDARD = signed(payload=payload_of(mark="~~~???>>>"))  # its base64url has - and _

JWE = encode(b'{"alg": "dir", "enc": "A256GCM"}')

FORMS = {
    "one segment": HEAD,
    "two segments": f"{HEAD}.{BODY}",
    "four segments": f"{GOOD}.{TAIL}",
    "five segments, as a JWE has": f"{HEAD}.{BODY}.{BODY}.{BODY}.{TAIL}",
    "JWE by alg and enc": f"{JWE}..{BODY}.{BODY}.{TAIL}",
    "dots alone": "..",
    "no header": f".{BODY}.{TAIL}",
    "no payload": f"{HEAD}..{TAIL}",
    "no payload, signed so": _signed_as_written(HEAD, ""),
    "no signature": f"{HEAD}.{BODY}.",
    "no signature and no dot": f"{HEAD}.{BODY}",
    "a dot before": f".{GOOD}",
    "a dot after": f"{GOOD}.",
    "a space before": f" {GOOD} x",
    "a space inside": f"{HEAD}. {BODY}.{TAIL}",
    "a line feed inside": f"{HEAD}.{BODY}\n.{TAIL}",
    "a carriage return inside": f"{HEAD}.\r\n{BODY}.{TAIL}",
    "a line feed after, and more": f"{GOOD}\nx",
    "a NUL after": f"{GOOD}\0",
    "two tokens": f"{GOOD}, {GOOD}",
    "two tokens, joined as repeated headers are": f"{GOOD}, Bearer {GOOD}",
    "in quotes": f'"{GOOD}"',
    "header padded": f"{_padded(header_of())}.{BODY}.{TAIL}",
    "header padded, signed so": _signed_as_written(_padded(header_of()), BODY),
    "payload padded, signed so": _signed_as_written(HEAD, _padded(payload_of())),
    "signature padded": f"{HEAD}.{BODY}.{TAIL}=",
    "padding escaped": f"{HEAD}.{BODY}.{TAIL}%3D",
    "spare bits of the header": _signed_as_written(_unpadded_bits(RAGGED_HEAD), BODY),
    "spare bits of the payload": _signed_as_written(HEAD, _unpadded_bits(RAGGED_BODY)),
    "spare bits of the signature": f"{HEAD}.{BODY}.{_unpadded_bits(TAIL)}",
    "a length that no bytes have": f"{HEAD}.{BODY}.{TAIL}AA",
    "a payload of one character": _signed_as_written(HEAD, "A"),
    "a payload of four and one characters": _signed_as_written(HEAD, "AAAAA"),
    "standard base64, not base64url": STANDARD.replace("-", "+").replace("_", "/"),
    "standard base64, signed so": _signed_as_written(
        HEAD, b64encode(payload_of(mark="~~~???>>>")).decode().replace("=", "")
    ),
    "a character outside the alphabet": f"{HEAD}.{BODY[:8]}*{BODY[8:]}.{TAIL}",
    "a letter that is not ASCII": f"{HEAD}.{BODY}é.{TAIL}",
    "digits that are not ASCII": f"{HEAD}.{BODY}\u0661\u0661\u0661\u0661.{TAIL}",
    "half a character": f"{HEAD}.{BODY}\udcff.{TAIL}",
    "a wide dot": GOOD.replace(".", "\uff0e"),
    "JSON-serialised, flattened": json.dumps({"protected": HEAD, "payload": BODY, "signature": TAIL}),
    "JSON-serialised, general": json.dumps({"payload": BODY, "signatures": [{"protected": HEAD, "signature": TAIL}]}),
    "JSON-serialised, in segments": f"{HEAD}.{encode(json.dumps({'payload': BODY}).encode())}.{TAIL}",
    "header and payload exchanged": f"{BODY}.{HEAD}.{TAIL}",
    "signature cut": f"{HEAD}.{BODY}.{TAIL[:-4]}",
    "signature longer": f"{HEAD}.{BODY}.{encode(KEY.sign(f'{HEAD}.{BODY}'.encode()) + b'x')}",
    "payload of another token": f"{HEAD}.{signed(payload=payload_of(sub='eve')).split('.')[1]}.{TAIL}",
    "header of another token": f"{encode(header_of(more=1))}.{BODY}.{TAIL}",
}


WELL_FORMED = {
    *("signature cut", "signature longer", "payload of another token", "header of another token"),
    "JSON-serialised, in segments",
}


@pytest.mark.anyio
@pytest.mark.parametrize("text", cases(FORMS))
async def test_what_is_no_compact_token_in_its_only_spelling_is_refused(text: str, log: Any) -> None:
    await assert_refused(text, log=log)


def test_an_empty_token_is_refused() -> None:
    assert answer(auth_of(), "") == answer(auth_of(), b"") == BAD


def test_the_ragged_forms_are_accepted_where_they_are_canonical() -> None:
    for text in (_signed_as_written(RAGGED_HEAD, RAGGED_BODY), STANDARD):
        assert answer(auth_of(), text) == "acme/ann"
    assert any(character in STANDARD for character in "-_")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "raw", [b"\xff", b"\x00", b"\xef\xbb\xbf" + GOOD.encode(), GOOD.encode("utf-16"), b"\xff" * 100]
)
async def test_bytes_that_are_no_token_are_refused(raw: bytes) -> None:
    await assert_refused(raw)


# Nested, encrypted, or otherwise than signed


@pytest.mark.anyio
@pytest.mark.parametrize("payload", [GOOD.encode(), json.dumps(GOOD).encode(), json.dumps({"jwt": GOOD}).encode()])
@pytest.mark.parametrize("cty", [..., "JWT", "jwt"])
async def test_a_token_inside_a_token_is_refused(payload: bytes, cty: Any) -> None:
    await assert_refused(signed(header=header_of(cty=cty), payload=payload))


EXTENSIONS = {
    "crit": [["exp"], ["b64"], ["kid"], [], "exp", None, {}, 0, False],
    "b64": [True, False, None, "false", 0],
    "zip": ["DEF", "GZIP", None, ""],
    "enc": ["A256GCM", "A128CBC-HS256", None, 1],
    "cty": ["JWT", "jwt", "application/jwt", "json", "", None],
}


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in EXTENSIONS.items() for value in values])
async def test_a_header_that_changes_what_the_rest_means_is_refused(name: str, value: Any, log: Any) -> None:
    await assert_refused(signed(header=header_of(**{name: value})), log=log)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_such_a_header_is_refused_by_an_escaped_name_too(name: str) -> None:
    escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
    assert json.loads(f'"{escaped}"') == name
    assert answer(auth_of(), signed(header=header_of()[:-1] + f', "{escaped}": null}}'.encode())) == BAD


def test_an_unencoded_payload_is_refused() -> None:
    header = encode(header_of(b64=False, crit=["b64"]))
    payload = payload_of().decode()
    mark = encode(KEY.sign(f"{header}.{payload}".encode()))
    assert answer(auth_of(), f"{header}.{payload}.{mark}") == BAD
    assert answer(auth_of(), f"{header}.{encode(payload.encode())}.{mark}") == BAD


# JSON


def _deep(levels: int) -> str:
    """A payload of so many levels, of which it is the first itself."""
    return json.dumps(claims(deep=...))[:-1] + ', "deep": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def _with(members: str) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:-1] + b", " + members.encode("utf-8", "surrogatepass") + b"}"


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "UTF-16 without a BOM": lambda raw: raw.decode().encode("utf-16-le"),
    "UTF-16, big end first": lambda raw: raw.decode().encode("utf-16-be"),
    "UTF-32": lambda raw: raw.decode().encode("utf-32-le"),
    "UTF-8 with a BOM": lambda raw: b"\xef\xbb\xbf" + raw,
    "UTF-7": lambda raw: raw.replace(b'"', b"+ACI-"),
    "invalid UTF-8": lambda raw: raw[:-1] + b', "x": "\xff"}',
    "UTF-8, too long a form": lambda raw: raw[:-1] + b', "x": "\xc0\xaf"}',
    "UTF-8, cut": lambda raw: raw[:-1] + b', "x": "\xe2\x82"}',
    "UTF-8 of a surrogate": _with('"x": "\ud800"'),
    "UTF-8 beyond Unicode": lambda raw: raw[:-1] + b', "x": "\xf4\x90\x80\x80"}',
    "a lone surrogate, escaped": _with('"x": "\\ud800"'),
    "a lone low surrogate, escaped": _with('"x": "\\uDC00"'),
    "surrogates the wrong way round": _with('"x": "\\udc00\\ud800"'),
    "a lone surrogate as a name": _with('"\\udfff": 1'),
    "a lone surrogate deep inside": _with('"x": [{"y": ["\\ud83d"]}]'),
    "a lone surrogate as a name deep inside": _with('"x": [{"\\ud83d": 1}]'),
    "repeated": _with('"x": 1, "x": 2'),
    "repeated, the same value": _with('"x": 1, "x": 1'),
    "repeated by an escape": _with('"x": 1, "\\u0078": 2'),
    "repeated by an escape of half": _with('"\\ud83d\\ude00": 1, "\U0001f600": 2'),
    "repeated deep inside": _with('"x": {"y": [{"z": 1, "z": 2}]}'),
    "repeated and empty": _with('"": 1, "": 2'),
    "NaN": _with('"x": NaN'),
    "Infinity": _with('"x": Infinity'),
    "-Infinity": _with('"x": -Infinity'),
    "NaN deep inside": _with('"x": [[NaN]]'),
    "1e999": _with('"x": 1e999'),
    "-1e999": _with('"x": -1e999'),
    "a number beyond doubles, written out": _with('"x": ' + "9" * 400 + ".0"),
    "5000 digits": _with('"x": ' + "1" * 5000),
    "a number that begins with 0": _with('"x": 01'),
    "a number that begins with +": _with('"x": +1'),
    "a number that ends with a point": _with('"x": 1.'),
    "a number that begins with a point": _with('"x": .5'),
    "a hexadecimal number": _with('"x": 0x10'),
    "digits that are not ASCII": _with('"x": \u0661'),
    "True": _with('"x": True'),
    "undefined": _with('"x": undefined'),
    "single quotes": _with("'x': 1"),
    "a name without quotes": _with("x: 1"),
    "a comma too many": lambda raw: raw[:-1] + b",}",
    "a comment": _with('"x": 1 /* */'),
    "a control character": _with('"x": "\n"'),
    "a NUL": _with('"x": "\0"'),
    "an escape that is none": _with('"x": "\\x41"'),
    "a short escape": _with('"x": "\\u41"'),
    "more after it": lambda raw: raw + b"{}",
    "a letter after it": lambda raw: raw + b"x",
    "a NUL after it": lambda raw: raw + b"\0",
    "a space that is not JSON's": lambda raw: b"\xc2\xa0" + raw,
    "a form feed before it": lambda raw: b"\f" + raw,
    "cut": lambda raw: raw[:-1],
    "in an array": lambda raw: b"[" + raw + b"]",
    "in a string": lambda raw: json.dumps(raw.decode()).encode(),
    "pairs": lambda raw: json.dumps(list(json.loads(raw).items())).encode(),
    "null": lambda raw: b"null",
    "a number": lambda raw: b"1",
    "spaces": lambda raw: b"   ",
    "an empty object": lambda raw: b"{}",
    "17 levels": lambda raw: raw[:-1] + b', "x": ' + b"[" * 16 + b"]" * 16 + b"}",
    "17 levels of objects": lambda raw: raw[:-1] + b', "x": ' + b'{"x":' * 15 + b"{}" + b"}" * 15 + b"}",
    "1000 levels": lambda raw: raw[:-1] + b', "x": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "1000 levels that never end": lambda raw: raw[:-1] + b', "x": ' + b"[" * 1000,
    "1000 levels of objects": lambda raw: raw[:-1] + b', "x": ' + b'{"":' * 1000 + b"1" + b"}" * 1000 + b"}",
}


@pytest.mark.anyio
@pytest.mark.parametrize("part", ["header", "payload"])
@pytest.mark.parametrize("spoil", cases(SPOILED))
async def test_what_is_not_strict_json_is_refused(part: str, spoil: Any, log: Any) -> None:
    raw = spoil(header_of() if part == "header" else payload_of())
    await assert_refused(signed(**{part: raw}), max_token_bytes=100_000, log=log)


@pytest.mark.parametrize("part", ["header", "payload"])
def test_json_too_deep_for_any_stack_is_refused(part: str) -> None:
    raw = (header_of() if part == "header" else payload_of())[:-1] + b', "x": '
    for opening, closing in ((b"[", b"]"), (b'{"":', b"}")):
        deep = raw + opening * 200_000 + b"1" + closing * 200_000 + b"}"
        assert answer(auth_of(max_token_bytes=10_000_000), signed(**{part: deep})) == BAD


@pytest.mark.parametrize("name", ["alg", "kid", "typ"])
def test_a_header_that_is_repeated_is_refused_whichever_value_is_right(name: str) -> None:
    for first, second in ((HEADER[name], "x"), ("x", HEADER[name]), (HEADER[name], HEADER[name])):
        rest = json.dumps(changed(HEADER, **{name: ...}))[1:-1]
        for spelling in (name, f"\\u{ord(name[0]):04X}{name[1:]}"):
            header = f'{{"{name}": "{first}", {rest}, "{spelling}": "{second}"}}'
            assert answer(auth_of(), signed(header=header.encode())) == BAD


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "exp", "org_id"])
def test_a_claim_that_is_repeated_is_refused_whichever_value_is_right(name: str) -> None:
    good = json.dumps(claims()[name])
    for first, second in ((good, '"x"'), ('"x"', good), (good, good)):
        rest = json.dumps(claims(**{name: ...}))[1:-1]
        for spelling in (name, f"\\u{ord(name[0]):04x}{name[1:]}"):
            payload = f'{{"{name}": {first}, {rest}, "{spelling}": {second}}}'
            assert answer(auth_of(), signed(payload=payload.encode())) == BAD


STRICT_ENOUGH = {
    "spaces": b" \t\r\n" + json.dumps(claims(), indent=4).encode() + b"\n",
    "an escaped pair of surrogates": _with('"x": "\\ud83d\\ude00"')(payload_of()),
    "the same in UTF-8": _with('"x": "\U0001f600"')(payload_of()),
    "an escaped name": payload_of().replace(b'"iss"', b'"\\u0069ss"'),
    "the same name in two objects": _with('"x": {"iss": 1, "y": {"iss": 1}}')(payload_of()),
    "names that differ by case": _with('"ISS": 1, "Exp": 2')(payload_of()),
    "names that only look alike": _with('"\u00e9": 1, "e\u0301": 2')(payload_of()),
    "16 levels": _deep(16).encode(),
    "many brackets, side by side": _with(f'"x": [{", ".join(["[]"] * 100)}]')(payload_of()),
    "many brackets in a string": _with('"x": "' + "[{" * 100 + '"')(payload_of()),
    "1e308": _with('"x": 1e308')(payload_of()),
    "1e-999": _with('"x": 1e-999')(payload_of()),
    "an escaped backslash before a u": _with('"x": "\\\\ud800"')(payload_of()),
}


@pytest.mark.parametrize("payload", cases(STRICT_ENOUGH))
def test_what_every_parser_reads_alike_is_accepted(payload: bytes) -> None:
    assert answer(auth_of(), signed(payload=payload)) == "acme/ann"


def test_what_is_refused_for_its_form_costs_no_check_of_a_signature(checks: list[bytes]) -> None:
    auth = auth_of()
    for name, spoil in SPOILED.items():
        assert answer(auth, signed(header=spoil(header_of()))) == BAD
        if name != "an empty object":  # which is a payload, though one that says nothing
            assert answer(auth, signed(payload=spoil(payload_of()))) == BAD
    for name, text in FORMS.items():
        if name not in WELL_FORMED:
            assert answer(auth, text) == BAD
    assert checks == []
    for name in WELL_FORMED:
        assert answer(auth, FORMS[name]) == BAD
    assert len(checks) == len(WELL_FORMED) - 1, "the claims of one say already that it is nothing"


# Algorithms

NONE = ["none", "None", "NONE", "nOnE", "NoNe", " none", "none ", "none\0", "", "null", "n\u043ene"]
NO_ALGORITHM = [None, True, False, 0, 256, 1.5, [], ["HS256"], {}, {"alg": "HS256"}, ["none"], ...]
NO_SPELLING = [
    *("hs256", "Hs256", "HS256 ", " HS256", "HS-256", "SHA256", "HMAC", "HS1", "HS256\0", "HS\u0662\u0665\u0666"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", [*NONE, *NO_ALGORITHM, *NO_SPELLING])
async def test_no_algorithm_or_another_spelling_of_one_is_refused(algorithm: Any) -> None:
    header = header_of(alg=algorithm)
    unsigned = f"{encode(header)}.{BODY}"
    for text in (signed(header=header), f"{unsigned}.", unsigned, f"{unsigned}.{TAIL}", f"{unsigned}.AA"):
        await assert_refused(text)


def test_none_is_refused_by_escapes_too() -> None:
    for header in (rb'{"alg":"n\u006fne","kid":"k"}', rb'{"\u0061lg":"none","kid":"k"}', b'{"alg":"none"}'):
        for text in (signed(header=header), f"{encode(header)}.{BODY}."):
            assert answer(auth_of(), text) == BAD


def test_none_cannot_be_configured() -> None:
    for algorithms in (["none"], ["HS256", "none"], "none", ["None"], [""], [], ["hs256"], ["ES256K"]):
        with pytest.raises(ValueError, match=r"^algorithms must"):
            auth_of(algorithms=algorithms)


def _families(algorithm: str) -> set[str]:
    """The algorithms that the key of one is for."""
    if algorithm[:2] in {"RS", "PS"}:
        return {name for name in ALGORITHMS if name[:2] in {"RS", "PS"}}
    if algorithm[:2] == "HS":
        return {"HS256", "HS384", "HS512"}
    if algorithm in {"EdDSA", "Ed25519"}:
        return {"EdDSA", "Ed25519"}
    return {algorithm} | ({"EdDSA"} if algorithm == "Ed448" else set())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_alg_of_a_token_must_be_that_of_its_key(algorithm: str) -> None:
    """All pairs, whatever the signature: of the key itself, by each of its algorithms, or an HMAC."""
    key = make_key(algorithm)
    declared = auth_of(key.jwk | {"alg": algorithm})
    plain = auth_of(key)
    pem = auth_of(key.pem or key.secret)
    allowed = auth_of(key, algorithms=[algorithm])
    for named in (*ALGORITHMS, "RSA-OAEP", "dir", "HS224", "RS1", "ES256K", "A128KW"):
        for used in _families(algorithm):
            header = json.dumps({"alg": named, "kid": "k"}).encode()
            text = compact(key, header, payload_of(), used)
            alike = used == named or {used, named} <= {"EdDSA", "Ed25519", "Ed448"}
            mine = "acme/ann" if alike and named in _families(algorithm) else BAD
            assert answer(plain, text) == mine
            assert answer(pem, text) == mine
            only = mine if named == algorithm else BAD
            assert answer(declared, text) == only
            assert answer(allowed, text) == only


@pytest.mark.parametrize("curve", ["ES256", "ES384", "ES512"])
def test_an_elliptic_curve_goes_with_one_hash_alone(curve: str) -> None:
    key = make_key(curve)
    for algorithm in ("ES256", "ES384", "ES512"):
        for named in (algorithm, curve):
            text = compact(key, json.dumps({"alg": named, "kid": "k"}).encode(), payload_of(), algorithm)
            assert answer(auth_of(key), text) == ("acme/ann" if algorithm == curve else BAD)


def _certificate(key: SigningKey, encoding: Encoding) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")])
    start = datetime.fromtimestamp(NOW, UTC)
    builder = x509.CertificateBuilder(name, name, key._private.public_key(), 1, start, start + timedelta(days=1))
    return builder.sign(key._private, None if key.algorithm == "EdDSA" else SHA256()).public_bytes(encoding)


def _public_bytes(key: SigningKey) -> list[bytes]:
    """All that somebody could take for a secret who only knows a public key."""
    public = load_pem_public_key(key.pem)
    members = key.jwk
    found = [key.pem, key.pem.strip(), key.pem.replace(b"\n", b"\r\n"), key.pem.replace(b"\n", b"")]
    found += [public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)]
    for jwk in (members, changed(members, kid=...), members | {"alg": key.algorithm}):
        found += [json.dumps(jwk).encode(), json.dumps(jwk, separators=(",", ":"), sort_keys=True).encode()]
    found += [value.encode() for name, value in members.items() if name in "nexy"]
    return [*found, b"", b"\0", b"\0" * 64, sha256(key.pem).digest(), b"".join(key.pem.splitlines()[1:-1])]


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if not name.startswith("HS")])
def test_a_public_key_is_never_a_secret(algorithm: str) -> None:
    """Of an asymmetric key all is public: who could pass it for the secret of an HMAC could sign."""
    key = make_key(algorithm)
    auths = [auth_of(key), auth_of(key.jwk | {"alg": algorithm}), auth_of(key.pem), auth_of(key.pem.decode())]
    for secret in _public_bytes(key):
        for hmac in ("HS256", "HS384", "HS512"):
            for kid in (..., "k"):
                forged = token(secret_key(secret, algorithm=hmac), {"kid": kid})
                lying = token(secret_key(secret, algorithm=hmac), {"alg": algorithm, "kid": kid})
                for auth in auths:
                    assert answer(auth, forged) == answer(auth, lying) == BAD


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_that_is_written_otherwise_is_no_secret_when_it_is_configured(algorithm: str) -> None:
    key = make_key(algorithm)
    public = load_pem_public_key(key.pem)
    for data in (
        public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        _certificate(key, Encoding.DER),
        key.pem.replace(b"\n", b"\\n"),
    ):
        with pytest.raises(ValueError, match="key 0 cannot be used"):
            auth_of(data)
    for data in (b" \n" + key.pem, key.pem.replace(b"\n", b" "), _certificate(key, Encoding.PEM)):
        assert answer(auth_of(data), token(key)) == "acme/ann"
        assert answer(auth_of(data), token(secret_key(data))) == BAD


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_is_no_secret_beside_a_secret_either(algorithm: str) -> None:
    key = make_key(algorithm, "public")
    auth = auth_of(key, KEY)
    for kid in (..., "public", "k", "unknown"):
        for secret in _public_bytes(key):
            assert answer(auth, token(secret_key(secret), {"kid": kid})) == BAD
    assert answer(auth, token(key)) == answer(auth, GOOD) == "acme/ann"
    assert answer(auth, token(key, {"kid": "k"})) == answer(auth, token(KEY, {"kid": "public"})) == BAD


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_signature_that_has_no_form_is_refused(algorithm: str) -> None:
    key = make_key(algorithm)
    auth = auth_of(key)
    whole = token(key)
    text = whole.rpartition(".")[0]
    real = key.sign(text.encode())
    size = len(real)
    assert answer(auth, whole) == "acme/ann"
    for bad in (
        *(b"\0", b"\0" * size, b"\xff" * size, b"\0" * (size // 2) + real[size // 2 :], real[: size // 2]),
        *(real[:-1], real[1:], real + b"\0", b"\0" + real, real + real, real[::-1], real.hex().encode()),
        *(b"\x30\x06\x02\x01\x01\x02\x01\x01", b"\x01" * 5000),
    ):
        assert answer(auth, f"{text}.{encode(bad)}") == BAD


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256", "PS512"])
def test_a_signature_without_the_zero_it_begins_with_is_refused(algorithm: str) -> None:
    # One signature of 256 is such a one. OpenSSL takes it as the number that it is: one token would have two texts.
    key = make_key(algorithm)
    auth = auth_of(key)
    for number in range(20_000):
        text = token(key, jti=str(number)).rpartition(".")[0]
        real = key.sign(text.encode())
        if real[0] == 0:
            break
    assert answer(auth, f"{text}.{encode(real)}") == "acme/ann"
    assert answer(auth, f"{text}.{encode(real[1:])}") == BAD


# Headers that would say where the key is


def _attack(key: SigningKey, **header: Any) -> str:
    return token(key, header)


URLS = ["https://evil.example/jwks.json", "http://127.0.0.1:1/", "file:///etc/passwd", "//evil", "", None, 5, ["x"]]
HINTS = (
    [{name: url} for name in ("jku", "x5u") for url in URLS]
    + [{"jwk": jwk} for jwk in (make_key("RS256", "evil").jwk, OTHER.jwk, {}, None, "x", [OTHER.jwk])]
    + [{"x5c": chain} for chain in (["MIIB"], [], None, "x", [5])]
    + [{"x5t": "x", "x5t#S256": "x"}, {"jku": URLS[0], "jwk": OTHER.jwk, "x5u": URLS[0], "x5c": ["MIIB"]}]
)


@pytest.mark.parametrize("hints", HINTS, ids=lambda hints: "+".join(hints))
def test_where_a_header_says_its_key_is_is_not_looked(hints: Any, touched: list[str]) -> None:
    auth = auth_of()
    assert answer(auth, token(KEY, hints)) == "acme/ann"  # by its own key, and only by that
    assert answer(auth, token(OTHER, {**hints, "kid": "k"})) == BAD
    assert answer(auth, token(OTHER, {**hints, "kid": ...})) == BAD
    assert answer(auth, token(OTHER, hints)) == BAD
    assert touched == []


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA", "HS256"])
def test_a_key_in_the_header_is_not_taken(algorithm: str, touched: list[str]) -> None:
    evil, own = make_key(algorithm, "evil"), make_key(algorithm)
    for kid in ("evil", "k", ...):
        for auth in (auth_of(own), auth_of(changed(own.jwk, kid=...)), auth_of(KEY, own.jwk | {"kid": "own"})):
            assert answer(auth, token(evil, {"jwk": evil.jwk, "kid": kid})) == BAD
            assert answer(auth, token(evil, {"jwk": evil.jwk | {"kid": "k"}, "kid": kid})) == BAD
    assert touched == []


def test_a_certificate_in_the_header_is_not_taken(touched: list[str]) -> None:
    evil = make_key("ES256", "evil")
    chain = [b64encode(_certificate(evil, Encoding.DER)).decode()]
    for kid in ("evil", "k", ...):
        assert answer(auth_of(make_key("ES256")), token(evil, {"x5c": chain, "kid": kid})) == BAD
    assert touched == []


# kid

KIDS = [
    *("../../../../../../dev/null", "/dev/null", "/etc/passwd", "file:///dev/null", "..\\..\\k", "./k", "k/../k"),
    *("' OR '1'='1", "x' UNION SELECT 'AAAA';--", '"; DROP TABLE keys;--', "k; ls", "$(id)", "`id`", "%00", "{0}"),
    *("K", "k ", " k", "k\0", "k\n", "\u212a", "\uff4b", "k" * 5000, "*", "other", ""),
    *("__class__", "get", "None", "null", "0", "C:\\nul"),
]


@pytest.mark.parametrize("kid", KIDS)
def test_a_kid_is_looked_up_and_nothing_else(kid: str, touched: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert answer(auth_of(), token(KEY, {"kid": kid})) == BAD
    for empty in (b"", b"\0", b"AAAA"):  # what such a kid might have a lax server read for a secret
        assert answer(auth_of(), token(secret_key(empty), {"kid": kid})) == BAD
    assert len(kid) < 4 or kid not in caplog.text
    assert touched == []


@pytest.mark.anyio
@pytest.mark.parametrize("kid", [0, 1, 1.5, True, False, [], ["k"], {}, {"k": "k"}, [None]])
async def test_a_kid_that_is_no_string_is_refused(kid: Any) -> None:
    await assert_refused(token(KEY, {"kid": kid}))
    await assert_refused(token(KEY, {"kid": kid}), changed(KEY.jwk, kid=...))


def test_odd_names_are_names_of_keys_like_others() -> None:
    for kid in set(KIDS) - {"", OTHER.kid}:
        assert answer(auth_of(KEY.jwk | {"kid": kid}, OTHER), token(KEY, {"kid": kid})) == "acme/ann"


def test_a_token_without_a_kid_is_for_the_only_key_that_fits() -> None:
    text = token(KEY, {"kid": ...})
    assert answer(auth_of(KEY), text) == "acme/ann"
    assert answer(auth_of(KEY, make_key("RS256", "r"), make_key("ES256", "e")), text) == "acme/ann"
    assert answer(auth_of(KEY, OTHER), text) == BAD  # it could be either: no signature is tried until one fits
    assert answer(auth_of(make_key("RS256", "r")), text) == BAD


def test_a_token_whose_kid_names_one_key_is_not_tried_on_another(checks: list[bytes]) -> None:
    auth = auth_of(KEY, OTHER)
    assert answer(auth, token(KEY, {"kid": "other"})) == BAD
    assert len(checks) == 1
    assert answer(auth, token(KEY, {"kid": "third"})) == BAD
    assert len(checks) == 1


def test_a_key_without_a_name_is_for_any_kid_that_names_no_other() -> None:
    nameless = make_key("HS256", None)
    auth = auth_of(nameless, KEY)
    assert answer(auth, token(nameless, {"kid": "whatever"})) == "acme/ann"
    assert answer(auth, token(nameless, {"kid": "k"})) == BAD
    assert answer(auth, GOOD) == "acme/ann"
    other_kind = auth_of(nameless, make_key("RS256"))
    assert answer(other_kind, token(nameless, {"kid": "k"})) == BAD  # the one of that name is for other algorithms
    assert answer(other_kind, token(nameless, {"kid": ...})) == "acme/ann"


# typ

NO_KIND = [
    *(5, 0, True, [], ["JWT"], {}, "", " ", "JWT ", "J W T", "JWT\0", "+jwt", "at+jwt+jwt", "text/JWT"),
    *("application/", "application/application/JWT", "JWS", "JOSE", "JOSE+JSON"),
    *("id+jwt", "logout+jwt", "dpop+jwt", "secevent+jwt"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("typ", NO_KIND)
async def test_a_typ_outside_the_list_is_refused(typ: Any) -> None:
    await assert_refused(token(KEY, {"typ": typ}))


@pytest.mark.parametrize("typ", [..., "JWT", "jwt", "Jwt", "application/JWT", "Application/jwt", "at+jwt", "AT+JWT"])
def test_access_tokens_and_plain_ones_are_in_the_list(typ: Any) -> None:
    assert answer(auth_of(), token(KEY, {"typ": typ})) == "acme/ann"


@pytest.mark.parametrize(
    ("typ", "expected"),
    [
        *((typ, "acme/ann") for typ in ("at+jwt", "AT+jwt", "application/at+jwt", "APPLICATION/AT+JWT")),
        *((typ, BAD) for typ in (..., "JWT", "id+jwt", "at", "jwt", "", "application/jwt", "at+jwt;v=1", "a", "+")),
    ],
)
def test_the_profile_of_rfc_9068_takes_access_tokens_alone(typ: Any, expected: str) -> None:
    required = ("iss", "exp", "aud", "sub", "client_id", "iat", "jti")
    auth = auth_of(typ=("at+jwt",), required_claims=required)
    extra = {"client_id": "app", "jti": "1"}
    assert answer(auth, token(KEY, {"typ": typ}, **extra)) == expected
    for name in required:
        assert answer(auth, token(KEY, {"typ": typ}, **{**extra, name: ...})) == BAD


def test_a_typ_may_be_demanded_or_forbidden() -> None:
    for typ, kind, expected in (
        (("JWT",), ..., BAD),
        (("JWT",), "JWT", "acme/ann"),
        ((None,), ..., "acme/ann"),
        ((None,), "JWT", BAD),
        (("X+jwt",), "x+JWT", "acme/ann"),
    ):
        assert answer(auth_of(typ=typ), token(KEY, {"typ": kind})) == expected


# Keys


@pytest.mark.parametrize("size", [0, 1, 16, 31])
def test_a_secret_of_less_than_32_bytes_is_refused_when_it_is_configured(size: int) -> None:
    secret = bytes(range(64, 64 + size))
    for data in (secret, secret.decode(), secret_key(secret).jwk):
        with pytest.raises(ValueError, match="less than 32 bytes") as caught:
            auth_of(data)
        assert size < 2 or (secret.decode() not in str(caught.value) and encode(secret) not in str(caught.value))


@pytest.mark.parametrize("size", [32, 47, 48, 63, 64, 65])
def test_a_secret_is_for_hmacs_that_are_no_longer_than_it(size: int) -> None:
    secret = bytes(range(size))
    for data in (secret, secret_key(secret).jwk):
        for algorithm, least in (("HS256", 32), ("HS384", 48), ("HS512", 64)):
            expected = "acme/ann" if size >= least else BAD
            assert answer(auth_of(data), token(secret_key(secret, algorithm=algorithm))) == expected
            if size < least:
                with pytest.raises(ValueError, match="none of the algorithms"):
                    auth_of(data, algorithms=[algorithm])


@pytest.mark.filterwarnings("ignore:Key size should be:joserfc.errors.SecurityWarning")
@pytest.mark.parametrize("bits", [1024, 2040])
def test_an_rsa_key_of_less_than_2048_bits_is_refused_when_it_is_configured(bits: int) -> None:
    key = make_key("RS256", bits=bits)
    for data in (key.jwk, key.pem, key.pem.decode()):
        with pytest.raises(ValueError, match=r"2048 bits|cannot be read"):
            auth_of(data)


@pytest.mark.parametrize("jwk", [KEY.jwk, make_key("RS256").jwk, make_key("ES256").jwk], ids=["oct", "RSA", "EC"])
@pytest.mark.parametrize(
    "members",
    [
        *({"use": use} for use in ("enc", "SIG", "", None, 5, ["sig"])),
        *({"key_ops": ops} for ops in ([], ["sign"], ["encrypt"], ["deriveBits"], "verify", None, {}, ["Verify"])),
        *(
            {"alg": name}
            for name in ("none", "RSA-OAEP", "A256KW", "ECDH-ES", "dir", "", 5, ["HS256"], "hs256", "ES384")
        ),
        {"use": "sig", "key_ops": ["encrypt"]},
        {"use": "enc", "key_ops": ["verify"]},
    ],
    ids=str,
)
def test_a_key_that_is_not_for_verifying_is_refused_when_it_is_configured(jwk: Any, members: Any) -> None:
    with pytest.raises(ValueError, match="key 0 cannot be used"):
        auth_of(jwk | members)


@pytest.mark.parametrize("kty", [..., None, "", "rsa", "OCT", "AKP", 5, [], {}])
def test_a_key_of_another_kind_is_refused_when_it_is_configured(kty: Any) -> None:
    for key in (KEY, make_key("RS256"), make_key("ES256"), make_key("EdDSA")):
        with pytest.raises(ValueError, match="kty is not supported"):
            auth_of(changed(key.jwk, kty=kty))


def test_keys_for_other_ends_than_signatures_are_refused_when_they_are_configured() -> None:
    point = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
    x25519_pem = point.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for data in (
        *({"kty": "OKP", "crv": "X25519", "x": encode(point.public_bytes_raw())}, x25519_pem),
        *({}, [], 5, None, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", KEY.jwk | {"kid": 5}),
        *({"kty": "oct"}, {"kty": "oct", "k": None}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-256"}, {"kty": "OKP"}),
        make_key("ES256").jwk | {"x": encode(b"\x01" * 32)},  # no point of the curve
        make_key("ES256").jwk | {"crv": "secp256k1"},
        changed(make_key("ES256").jwk, y=...),
        make_key("EdDSA").jwk | {"x": "AAAA"},
    ):
        with pytest.raises(ValueError, match="key 0 cannot be used"):
            auth_of(data)


def test_two_keys_of_one_name_are_refused_when_they_are_configured() -> None:
    with pytest.raises(ValueError, match="same kid"):
        auth_of(KEY, make_key("RS256"))


# Times

NO_TIME = [None, True, False, "", "1700000600", str(NOW + 600), "soon", [], [NOW + 600], {}, -1, -0.5, -1e300]
NO_TIME += [2**53, 2**64, 10**30, 10**400, 1e300, 2.0**53, f"{NOW + 600}.0"]


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", NO_TIME, ids=lambda value: str(value)[:20])
async def test_a_time_that_is_none_is_refused(name: str, value: Any) -> None:
    await assert_refused(token(KEY, **{name: value}))
    await assert_refused(token(KEY, **{name: value}), leeway=86_400)


@pytest.mark.anyio
async def test_a_token_that_never_expires_is_refused() -> None:
    await assert_refused(token(KEY, exp=...))
    await assert_refused(token(KEY, exp=..., iat=...))


@pytest.mark.parametrize("leeway", [0, 5, 0.5])
def test_a_token_is_good_until_the_very_moment_of_its_exp_and_its_leeway(leeway: float) -> None:
    for exp in (NOW + 600, NOW + 600.0, NOW + 600.25):
        text = token(KEY, exp=exp)
        clock = Clock()
        for now, expected in (
            (exp + leeway - 600, "acme/ann"),
            (exp + leeway - 0.001, "acme/ann"),
            (exp + leeway, BAD),
            (exp + leeway + 0.001, BAD),
            (exp + leeway + 10**9, BAD),
        ):
            clock.now = now
            assert answer(auth_of(leeway=leeway, now=clock), text) == expected


@pytest.mark.parametrize("name", ["nbf", "iat"])
@pytest.mark.parametrize("leeway", [0, 5, 0.5])
def test_a_token_is_good_from_the_very_moment_of_its_nbf_and_its_iat(name: str, leeway: float) -> None:
    for ahead, expected in (
        (-(10**6), "acme/ann"),
        (leeway, "acme/ann"),
        (leeway + 0.25, BAD),
        (leeway + 1, BAD),
        (10**6, BAD),
    ):
        assert answer(auth_of(leeway=leeway), token(KEY, **{name: NOW + ahead})) == expected


def test_nbf_and_iat_may_be_absent_and_0() -> None:
    for value in (..., 0, 0.0):
        assert answer(auth_of(), token(KEY, nbf=value, iat=value)) == "acme/ann"


def test_exp_of_0_has_passed() -> None:
    assert answer(auth_of(), token(KEY, exp=0)) == answer(auth_of(), token(KEY, exp=0.0)) == BAD


def test_the_last_moment_that_can_be_told_is_an_exp() -> None:
    assert verify(auth_of(), token(KEY, exp=2**53 - 1)).expires_at == 2**53 - 1


# iss and aud

ISSUERS = [
    *(..., None, "", 5, True, [], [ISSUER], {}, {"iss": ISSUER}, ISSUER.upper(), ISSUER.title(), ISSUER[:-1]),
    *(f"{ISSUER}{more}" for more in ("/", ".evil.example", ".", " ", "\0", ":443", "#", "?", "/../")),
    *("http://id.example.com", "https://user@id.example.com", "id.example.com", f" {ISSUER}", ".*"),
    ISSUER.replace("e", "\u0435"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("iss", ISSUERS, ids=str)
async def test_an_issuer_that_is_not_equal_is_refused(iss: Any) -> None:
    await assert_refused(token(KEY, iss=iss))


@pytest.mark.anyio
@pytest.mark.parametrize("iss", ISSUERS, ids=str)
async def test_an_issuer_that_is_none_of_several_is_refused(iss: Any) -> None:
    """With the key of the one and of the other."""
    options: dict[str, Any] = {"audience": AUDIENCE, "tenant": "org_id"}
    issuers = [
        Issuer(ISSUER, key=KEY.jwk, tenants={"acme"}, **options),
        Issuer("https://other.example", key=OTHER.jwk, tenants={"bolt"}, **options),
    ]
    auth = JWTAuth(issuers=issuers, now=Clock())
    assert answer(auth, GOOD) == "acme/ann"
    for key in (KEY, OTHER):
        assert answer(auth, token(key, iss=iss)) == answer(auth, token(key, iss=iss, org_id="bolt")) == BAD


def test_an_issuer_that_is_configured_with_a_slash_needs_the_slash() -> None:
    auth = auth_of(issuer=f"{ISSUER}/")
    assert answer(auth, token(KEY, iss=f"{ISSUER}/")) == "acme/ann"
    assert answer(auth, GOOD) == answer(auth, token(KEY, iss=f"{ISSUER}//")) == BAD


def test_no_issuer_must_be_said() -> None:
    assert answer(auth_of(issuer=None), token(KEY, iss="https://whoever.example")) == "acme/ann"
    with pytest.raises(TypeError):
        JWTAuth(key=KEY.jwk, audience=AUDIENCE, tenant="org_id")  # type: ignore[call-overload]


AUDIENCES = [
    *(..., None, "", 5, True, [], {}, {AUDIENCE: 1}, {"aud": AUDIENCE}, {"0": AUDIENCE}),
    *("API", "Api", "api/", " api", "api ", "ap", "apis", "api,other", "api other", "https://api", "*", ".*", "api\0"),
    *(["other"], [["api"]], ["API"], [None], [""], ["ap", "i"], ["api", 5], ["api", None], ["api", ["api"]]),
    *([{"api": "api"}], [5, "api"], ["api", True]),
]


@pytest.mark.anyio
@pytest.mark.parametrize("aud", AUDIENCES, ids=str)
async def test_an_audience_that_is_not_equal_is_refused(aud: Any) -> None:
    await assert_refused(token(KEY, aud=aud))
    await assert_refused(token(KEY, aud=aud), audience=["api", "second"])


@pytest.mark.parametrize("aud", ["api", ["api"], ["other", "api"], ["api", "api"], ["", "api"]], ids=str)
def test_an_audience_that_holds_ours_is_accepted(aud: Any) -> None:
    assert answer(auth_of(), token(KEY, aud=aud)) == "acme/ann"
    assert answer(auth_of(audience={"second", "api"}), token(KEY, aud=aud)) == "acme/ann"
    assert answer(auth_of(audience=["second"]), token(KEY, aud=aud)) == BAD


def test_no_audience_must_be_said() -> None:
    for aud in (..., "other", []):
        assert answer(auth_of(audience=None), token(KEY, aud=aud)) == "acme/ann"
    with pytest.raises(TypeError):
        JWTAuth(key=KEY.jwk, issuer=ISSUER, tenant="org_id")  # type: ignore[call-overload]


# sub and what is required


@pytest.mark.anyio
@pytest.mark.parametrize("sub", [None, 5, 1.5, True, [], ["ann"], {}, {"id": "ann"}], ids=str)
async def test_a_sub_that_is_no_string_is_refused(sub: Any) -> None:
    await assert_refused(token(KEY, sub=sub))
    await assert_refused(token(KEY, sub=sub, uid="ann"), user="uid")
    await assert_refused(token(KEY, sub=sub), user=None)


@pytest.mark.anyio
async def test_a_claim_that_is_required_must_be_there() -> None:
    options: dict[str, Any] = {"required_claims": ["scope", "iat"]}
    for missing in ({"scope": ...}, {"scope": None}, {"scope": "a", "iat": ...}):
        await assert_refused(token(KEY, **missing), **options)
    for value in ("read", "", 0, False, [], {}):
        assert answer(auth_of(**options), token(KEY, scope=value)) == "acme/ann"
    await assert_refused(GOOD, required_claims="scope")  # one name, not five


# Whom a token stands for

NO_TEXT = [5, 0, 1.5, True, False, [], ["acme"], {}, {"id": "acme"}]
NO_IDENTIFIER = [
    "",
    " ",
    "a b",
    "a/b",
    "../x",
    ".",
    "..",
    "a\n",
    "\u00e9",
    "a" * 129,
    "a,b",
    "a\0",
    "{a}",
    "a:b*",
    "%41",
]


@pytest.mark.anyio
@pytest.mark.parametrize(("role", "claim"), [("tenant", "org_id"), ("user", "uid")])
@pytest.mark.parametrize("path", ["flat", "nested", "callable"])
async def test_a_claim_that_names_nobody_or_nobody_that_can_be_is_refused(role: str, claim: str, path: str) -> None:
    """After the token is proven, with the answers that a header with such a value would get."""
    ways: dict[str, Any] = {
        "flat": claim,
        "nested": ("app", "ids", claim),
        "callable": lambda claims: claims["app"]["ids"].get(claim),
    }
    options: dict[str, Any] = {"user": "uid", role: ways[path]}
    standard = {"uid": "ann", "org_id": "acme"}

    def told(value: Any) -> str:
        members = changed({**standard, claim: value})
        within = {} if path == "flat" else {"app": {"ids": members}}
        return token(KEY, **{**standard, **(within or {claim: value})})

    assert answer(auth_of(**options), told("x")) == ("x/ann" if role == "tenant" else "acme/x")
    for value in (..., None):
        await assert_refused(told(value), as_=f"403 {role}_missing", **options)
    for value in (*NO_TEXT, *NO_IDENTIFIER):
        await assert_refused(told(value), as_=f"400 {role}_invalid", **options)


@pytest.mark.parametrize("inside", [..., None, "x", 5, True, [], [{"id": "acme"}], {}, {"ID": "acme"}, ["id"]], ids=str)
def test_a_way_that_ends_too_soon_names_nobody(inside: Any) -> None:
    auth = auth_of(tenant=("app", "id"))
    assert answer(auth, token(KEY, app={"id": "acme"})) == "acme/ann"
    assert answer(auth, token(KEY, app=inside)) == "403 tenant_missing"
    assert answer(auth, token(KEY, **{"app.id": "acme", "app/id": "acme", "id": "acme"})) == "403 tenant_missing"


def test_a_name_with_dots_or_slashes_is_one_name() -> None:
    name = "https://example.com/org.id"
    assert answer(auth_of(tenant=name), token(KEY, **{name: "acme"})) == "acme/ann"
    assert answer(auth_of(tenant="app.id"), token(KEY, app={"id": "acme"})) == "403 tenant_missing"


def test_a_callable_is_given_the_claims_and_its_answer_is_checked() -> None:
    seen: list[Any] = []

    def first_group(members: Mapping[str, Any]) -> str | None:
        seen.append(dict(members))
        groups = [name for name in members.get("groups", []) if name.startswith("org:")]
        return groups[0] if groups else None

    auth = auth_of(tenant=first_group)
    assert answer(auth, token(KEY, groups=["staff", "org:7"])) == "org:7/ann"
    assert seen == [claims(groups=["staff", "org:7"])]
    assert answer(auth, token(KEY, groups=["staff"])) == "403 tenant_missing"
    assert answer(auth, token(KEY, groups=["org: 7"])) == "400 tenant_invalid"
    assert answer(auth, token(OTHER, {"kid": "k"}, groups=["org:8"])) == BAD
    assert len(seen) == 3  # never with claims that are not proven


def test_a_rule_of_ones_own_says_what_an_identifier_is() -> None:
    auth = auth_of(valid=lambda text: text.isalpha())
    assert answer(auth, token(KEY, org_id="\u00e9t\u00e9")) == "\u00e9t\u00e9/ann"
    assert answer(auth, token(KEY, org_id="a1")) == "400 tenant_invalid"
    assert answer(auth, token(KEY, org_id="")) == "400 tenant_invalid"
    assert answer(auth, token(KEY, sub="a1")) == "400 user_invalid"


def test_a_token_may_be_for_a_whole_tenant() -> None:
    assert answer(auth_of(user=None), GOOD) == answer(auth_of(user=None), token(KEY, sub=...)) == "acme/None"
    assert answer(auth_of(), token(KEY, sub=...)) == "403 user_missing"


def test_a_token_that_is_refused_does_not_say_what_else_is_wrong_with_it() -> None:
    """Who has no proof learns nothing of tenants and users."""
    options: dict[str, Any] = {"tenants": {"acme"}}
    assert answer(auth_of(**options), token(KEY, org_id="bolt")) == "403 tenant_forbidden"
    for org_id in ("bolt", "a b", ...):
        assert answer(auth_of(**options), token(OTHER, {"kid": "k"}, org_id=org_id)) == BAD
        assert answer(auth_of(**options), token(KEY, org_id=org_id, exp=NOW)) == BAD


# What a token proves


def test_the_claims_are_those_of_the_identity_and_nobody_can_change_them() -> None:
    more = {"roles": ["admin", {"of": ["x"]}], "app": {"list": [1, 2.5, None, True]}, "\u00e9": "\U0001f600"}
    identity = verify(auth_of(), token(KEY, **more))
    assert identity.claims == claims(**more)
    assert identity.claims.to_dict() == claims(**more)
    assert identity.claims["roles"] == ("admin", {"of": ["x"]})
    with pytest.raises(TypeError):
        identity.claims["org_id"] = "bolt"  # type: ignore[index]
    with pytest.raises(TypeError):
        identity.claims["app"]["list"] = ()
    with pytest.raises(AttributeError):
        identity.claims["app"]["list"].append(3)
    hash(identity)
    identity.claims.to_dict()["app"]["list"].append(3)
    assert identity.claims.to_dict() == claims(**more)


def test_what_a_callable_does_to_the_claims_later_reaches_nobody() -> None:
    kept: list[Any] = []
    auth = auth_of(tenant=lambda members: kept.append(members) or members["org_id"])
    identity = verify(auth, token(KEY, roles=["reader"]))
    kept[0]["roles"].append("admin")
    kept[0]["org_id"] = "bolt"
    assert identity.claims == claims(roles=["reader"])
    assert verify(auth, token(KEY, roles=["reader"])).claims == claims(roles=["reader"])


@pytest.mark.parametrize("leeway", [0, 5, 0.5])
@pytest.mark.parametrize("exp", [NOW + 600, NOW + 0.25])
def test_the_identity_expires_with_its_token_and_the_leeway(exp: float, leeway: float) -> None:
    auth = auth_of(leeway=leeway)
    assert verify(auth, token(KEY, exp=exp)).expires_at == exp + leeway
    assert verify(auth, token(KEY, exp=exp)).expires_at == exp + leeway  # from the cache too


# The cache of verified tokens


def test_a_token_is_verified_once(checks: list[bytes]) -> None:
    auth = auth_of()
    first = verify(auth, GOOD)
    assert verify(auth, GOOD) is first
    assert verify(auth, GOOD.encode()) is first
    assert len(checks) == 1
    assert verify(auth, token(KEY, jti="2")) != first
    assert len(checks) == 2


def test_the_cache_holds_digests_and_no_tokens() -> None:
    auth = auth_of()
    verify(auth, GOOD)
    assert list(auth._verified._kept) == [sha256(GOOD.encode()).digest()]
    assert TAIL not in repr(auth._verified._kept)


def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago(checks: list[bytes]) -> None:
    auth = auth_of(cache_size=3)
    texts = [token(KEY, jti=str(number)) for number in range(4)]
    for text in texts[:3]:
        verify(auth, text)
    verify(auth, texts[0])
    verify(auth, texts[3])
    assert len(checks) == 4
    for text in (texts[0], texts[2], texts[3]):
        verify(auth, text)
    assert len(checks) == 4
    verify(auth, texts[1])
    assert len(checks) == 5
    for number in range(100):
        verify(auth, token(KEY, jti=f"more {number}"))
        assert len(auth._verified._kept) == 3


@pytest.mark.parametrize("leeway", [0, 5])
def test_a_token_is_refused_when_it_has_expired_though_it_is_remembered(leeway: int) -> None:
    clock = Clock()
    auth = auth_of(now=clock, leeway=leeway)
    text = token(KEY, exp=NOW + 10)
    for clock.now in (NOW, NOW + 9.999 + leeway):
        assert answer(auth, text) == "acme/ann"
    for clock.now in (NOW + 10 + leeway, NOW + 11 + leeway):
        assert answer(auth, text) == BAD
        assert not auth._verified._kept


def test_a_token_is_refused_at_the_hit_though_it_was_used_all_the_time(checks: list[bytes]) -> None:
    clock = Clock()
    auth = auth_of(now=clock)
    text = token(KEY, exp=NOW + 10)
    for second in range(10):
        clock.now = NOW + second
        assert answer(auth, text) == "acme/ann"
    assert len(checks) == 1
    clock.now = NOW + 10
    assert answer(auth, text) == BAD


@pytest.mark.parametrize(
    "spoiled", [f"{HEAD}.{BODY}.{encode(b'x' * 32)}", token(KEY, aud="x"), token(KEY, org_id=...), "x"]
)
def test_a_token_that_was_refused_is_not_remembered(spoiled: str) -> None:
    auth = auth_of()
    answer(auth, spoiled)
    assert not auth._verified._kept


def test_a_token_whose_time_comes_is_accepted_though_it_was_refused_before() -> None:
    clock = Clock()
    auth = auth_of(now=clock)
    text = token(KEY, nbf=NOW + 10)
    assert answer(auth, text) == BAD
    clock.now = NOW + 10
    assert answer(auth, text) == "acme/ann"


def test_a_signature_is_part_of_what_is_remembered() -> None:
    auth = auth_of()
    assert answer(auth, GOOD) == "acme/ann"
    assert answer(auth, f"{HEAD}.{BODY}.{encode(b'x' * 32)}") == BAD
    assert answer(auth, f"{HEAD}.{BODY}.") == BAD
    assert answer(auth, GOOD + "=") == answer(auth, GOOD + "\n") == BAD


def test_what_one_has_verified_another_has_not() -> None:
    first, second = auth_of(), auth_of(audience="other")
    assert answer(first, GOOD) == "acme/ann"
    assert answer(second, GOOD) == BAD


class Published:
    """A key set as an issuer publishes it, and how often it was fetched."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys = keys
        self.fetched = 0
        self.error: Exception | None = None
        self.clock = Clock(0)

    async def fetch(self, url: str) -> bytes:
        self.fetched += 1
        if self.error is not None:
            raise self.error
        return json.dumps({"keys": [key.jwk for key in self.keys]}).encode()

    def auth(self) -> JWTAuth:
        client = JWKSClient(
            "https://id.example.com/jwks", fetch=self.fetch, clock=self.clock, ttl=100, stale=50, cooldown=1
        )
        return JWTAuth(issuer=ISSUER, audience=AUDIENCE, tenant="org_id", jwks=client, now=Clock())


async def verified(auth: JWTAuth, text: str) -> str:
    try:
        identity = await auth.verify(text)
    except RequestRejected as rejected:
        return f"{rejected.status} {rejected.code}"
    return f"{identity.tenant}/{identity.user}"


@pytest.mark.anyio
@pytest.mark.parametrize("first", ["of the key that has gone", "of another key"])
async def test_tokens_of_a_key_that_has_gone_are_forgotten(asyncio_only: None, first: str, checks: list[bytes]) -> None:
    """Whether it is their own use that has the keys fetched again, or another's before."""
    going, staying = make_key("ES256", "going"), make_key("ES256", "staying")
    published = Published(going, staying)
    auth = published.auth()
    old, kept = token(going), token(staying)
    for _ in range(2):
        assert await verified(auth, old) == await verified(auth, kept) == "acme/ann"
    assert (published.fetched, len(checks)) == (1, 2)
    published.keys = (staying,)
    published.clock.now = 100  # so the set must be fetched again
    if first == "of another key":
        assert await verified(auth, kept) == "acme/ann"
        assert published.fetched == 2
    assert await verified(auth, old) == BAD
    assert await verified(auth, kept) == "acme/ann"
    await auth.close()


@pytest.mark.anyio
async def test_tokens_of_a_key_that_has_changed_under_its_name_are_forgotten(asyncio_only: None) -> None:
    old, new = make_key("ES256", "k"), make_key("ES256", "k2")
    published = Published(old)
    auth = published.auth()
    assert await verified(auth, token(old)) == "acme/ann"
    new = SigningKey("ES256", "k", new._private)
    published.keys = (new,)
    published.clock.now = 100
    assert await verified(auth, token(old)) == BAD
    assert await verified(auth, token(new)) == "acme/ann"
    await auth.close()


@pytest.mark.anyio
async def test_tokens_are_remembered_while_keys_are_only_added(asyncio_only: None, checks: list[bytes]) -> None:
    key, more = make_key("ES256", "k"), make_key("ES256", "more")
    published = Published(key)
    auth = published.auth()
    text = token(key)
    assert await verified(auth, text) == "acme/ann"
    published.keys = (key, more)
    published.clock.now = 100
    assert await verified(auth, text) == "acme/ann"
    assert (published.fetched, len(checks)) == (2, 1)
    assert await verified(auth, token(more)) == "acme/ann"
    await auth.close()


@pytest.mark.anyio
async def test_tokens_are_forgotten_when_the_keys_have_become_too_old(asyncio_only: None) -> None:
    key = make_key("ES256", "k")
    published = Published(key)
    auth = published.auth()
    text = token(key)
    assert await verified(auth, text) == "acme/ann"
    published.error = OSError("down")
    published.clock.now = 149
    assert await verified(auth, text) == "acme/ann"
    published.clock.now = 150
    assert await verified(auth, text) == "503 keys_unavailable"
    await auth.close()


# Whatever else is sent

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_KEYS = [make_key(algorithm) for algorithm in ("HS256", "RS256", "ES256", "EdDSA")]
_AUTHS = [auth_of(key) for key in _KEYS]
_TOKENS = [token(key) for key in _KEYS]
_BYTES = st.sampled_from([*b'ABCDwxyz0189-_.=+/ \n\0{}"']) | st.integers(0, 255)


@st.composite
def _mutated(draw: st.DrawFn) -> tuple[int, bytes]:
    which = draw(st.integers(0, len(_TOKENS) - 1))
    raw = bytearray(_TOKENS[which].encode())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        kind = draw(st.sampled_from(["replace", "insert", "delete", "cut", "double", "swap"]))
        if kind == "replace" and at < len(raw):
            raw[at] = draw(_BYTES)
        elif kind == "insert":
            raw.insert(at, draw(_BYTES))
        elif kind == "delete":
            del raw[at : at + draw(st.integers(1, 8))]
        elif kind == "cut":
            del raw[at:]
        elif kind == "double":
            raw[at:at] = raw[at : at + draw(st.integers(1, 40))]
        elif kind == "swap":
            parts = raw.split(b".")
            raw = bytearray(b".".join(draw(st.permutations(parts))))
    return which, bytes(raw)


@settings(max_examples=400)
@given(_mutated())
def test_a_token_that_was_changed_in_any_byte_is_refused(mutated: tuple[int, bytes]) -> None:
    which, raw = mutated
    assume(raw != _TOKENS[which].encode())
    assert answer(_AUTHS[which], raw) == BAD


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.text(st.characters(codec=None), max_size=100))
@example(b"")
@example(b".")
@example("\ud800")
def test_random_bytes_are_refused(raw: bytes | str) -> None:
    for auth in _AUTHS:
        assert answer(auth, raw) == BAD


@settings(max_examples=300)
@given(
    st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=60),
    st.binary(max_size=80),
)
def test_random_segments_are_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    for auth in _AUTHS:
        assert answer(auth, f"{encode(header)}.{encode(payload)}.{encode(signature)}") == BAD
        assert answer(auth, f"{HEAD}.{encode(payload)}.{encode(signature)}") == BAD


@settings(max_examples=200)
@given(st.integers(0, 3), st.binary(max_size=700))
def test_random_signatures_are_refused(which: int, signature: bytes) -> None:
    text = _TOKENS[which].rpartition(".")[0]
    assert answer(_AUTHS[which], f"{text}.{encode(signature)}") == BAD


_NAMES = st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jku", "jwk", "x5c", "zip", "cty", "enc"]) | st.text(
    max_size=4
)
_MEMBERS = st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "org_id", "jti"]) | st.text(max_size=4)
_LIKELY = st.sampled_from([
    "HS256",
    "none",
    "k",
    "JWT",
    ISSUER,
    AUDIENCE,
    [AUDIENCE],
    "ann",
    "acme",
    NOW,
    NOW + 1,
    NOW + 0.5,
    -1,
    2**53,
    "a b",
    ...,
])


@settings(max_examples=400)
@given(st.dictionaries(_NAMES, _JSON | _LIKELY, max_size=3), st.dictionaries(_MEMBERS, _JSON | _LIKELY, max_size=4))
def test_whatever_an_issuer_signs_is_an_identity_or_an_answer(header: Any, members: Any) -> None:
    text = compact(KEY, json.dumps(changed(HEADER, **header)).encode(), json.dumps(claims(**members)).encode())
    expected = claims(**members)
    told = answer(auth_of(), text)
    if "/" in told:
        assert told == f"{expected['org_id']}/{expected['sub']}"
        assert (expected["iss"], type(expected["exp"]) in {int, float}) == (ISSUER, True)
        assert AUDIENCE in expected["aud"]
        assert not {"crit", "b64", "zip", "enc", "cty"} & set(changed(header))
    else:
        assert told in {BAD, "403 tenant_missing", "403 user_missing", "400 tenant_invalid", "400 user_invalid"}


# Beside other libraries

FAR = 10_000_000_000  # seconds; an exp that has not come by any clock


def _pyjwt(key: SigningKey, text: str) -> Any:
    material = key.secret or load_pem_public_key(key.pem)
    return pyjwt.decode(text, material, algorithms=[key.algorithm], audience=AUDIENCE, issuer=ISSUER)


def _joserfc(key: SigningKey, text: str) -> Any:
    registry = JWSRegistry(algorithms=[key.algorithm], strict_check_header=False)
    found = joserfc_jwt.decode(text, JWKRegistry.import_key(key.jwk), registry=registry)
    joserfc_jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": ISSUER},
        aud={"essential": True, "value": AUDIENCE},
        exp={"essential": True},
    ).validate(found.claims)
    return found.claims


def _assert_all_accept(key: SigningKey, text: str) -> None:
    ours = verify(auth_of(key), text).claims
    assert _pyjwt(key, text) == ours == _joserfc(key, text)


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated:joserfc.errors.SecurityWarning")
@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in {"Ed25519", "Ed448"}])
def test_pyjwt_and_joserfc_read_what_is_accepted_alike(algorithm: str) -> None:
    """Of the algorithms that all of them know by these names."""
    key = make_key(algorithm)
    for header, members in (
        ({}, {}),
        ({"typ": "at+jwt"}, {"aud": ["other", AUDIENCE], "nbf": NOW}),
        ({"typ": ..., "kid": "k"}, {"x": {"y": [1, 2.5, None, "\u00e9\U0001f600"]}}),
    ):
        _assert_all_accept(key, token(key, header, exp=FAR, **members))


@pytest.mark.parametrize("payload", cases(STRICT_ENOUGH))
def test_pyjwt_and_joserfc_read_the_same_json(payload: bytes) -> None:
    members = payload.replace(str(NOW + 600).encode(), str(FAR).encode())
    assert members != payload
    _assert_all_accept(KEY, signed(payload=members))


@settings(max_examples=300, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "zip"]), _JSON | _LIKELY, max_size=1),
    st.dictionaries(_MEMBERS.filter(lambda name: name != "jti"), _JSON | _LIKELY, max_size=2),
)
def test_what_is_accepted_pyjwt_and_joserfc_accept_too(header: Any, members: Any) -> None:
    assume(None not in header.values())
    text = token(KEY, header, **{**members, "exp": FAR})
    if "/" in answer(auth_of(), text):
        _assert_all_accept(KEY, text)


_PIECES = st.sampled_from([
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b" ",
        b"\\",
        b"\\u0061",
        b"\\ud800",
        b"0",
        b"1",
        b"9",
        b"-",
        b".",
        b"e9",
    ),
    *(
        b"null",
        b"true",
        b"NaN",
        b"\n",
        b"\0",
        b"\xff",
        b"\xc3\xa9",
        b"\xef\xbb\xbf",
        b"a",
        b'"iss":',
        b'"aud":',
        b'"x":1,',
    ),
])


@settings(max_examples=400)
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 4), _PIECES), min_size=1, max_size=3),
)
def test_json_that_is_accepted_is_read_by_pyjwt_and_joserfc_alike(
    in_header: bool, edits: list[tuple[int, int, bytes]]
) -> None:
    """Header or payload is edited as a text, then signed."""
    parts = [header_of(), payload_of(exp=FAR)]
    raw = bytearray(parts[0 if in_header else 1])
    for start, length, piece in edits:
        raw[start : start + length] = piece
    parts[0 if in_header else 1] = bytes(raw)
    text = compact(KEY, *parts)
    auth = auth_of(now=time.time)  # the clock of the others
    if "/" in answer(auth, text):
        assume(b"null" not in parts[0])
        assert _pyjwt(KEY, text) == verify(auth, text).claims == _joserfc(KEY, text)


@pytest.mark.parametrize("audience", [(), [], set(), frozenset()])
def test_an_audience_of_nobody_is_not_an_audience_of_everybody(audience: Any) -> None:
    with pytest.raises(ValueError, match="audience"):
        auth_of(audience=audience)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_the_text_of_a_jwk_and_a_bare_public_key_are_no_secrets(algorithm: str) -> None:
    """As they stand in an environment variable, or in an issuer's console (the base64 of a key, without its frame)."""
    key = make_key(algorithm)
    der = load_pem_public_key(key.pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for text in (json.dumps(key.jwk), json.dumps({"keys": [key.jwk]}), b64encode(der).decode()):
        with pytest.raises(ValueError, match="key 0 cannot be used"):
            auth_of(text)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["kid", "typ"])
async def test_a_header_that_is_null_is_not_absent(name: str) -> None:
    await assert_refused(token(KEY, {name: None}))
    await assert_refused(token(KEY, {name: None}), changed(KEY.jwk, kid=...))


def test_one_typ_need_not_be_put_into_a_list() -> None:
    auth = auth_of(typ="at+jwt")
    assert answer(auth, token(KEY, {"typ": "at+jwt"})) == "acme/ann"
    assert answer(auth, GOOD) == BAD


def test_a_typ_may_be_configured_with_its_prefix() -> None:
    auth = auth_of(typ=("application/at+jwt",))
    for typ in ("at+jwt", "application/at+jwt"):
        assert answer(auth, token(KEY, {"typ": typ})) == "acme/ann"


def test_a_typ_must_be_allowed() -> None:
    with pytest.raises(ValueError, match="typ"):
        auth_of(typ=())


def test_a_token_that_is_too_long_is_not_even_digested(monkeypatch: pytest.MonkeyPatch) -> None:
    from asgi_context.jwt import _verified

    digested: list[int] = []
    monkeypatch.setattr(_verified, "sha256", lambda raw: digested.append(len(raw)) or sha256(raw))
    assert answer(auth_of(), "a" * 1_000_000) == BAD
    assert digested == []


@pytest.mark.anyio
@pytest.mark.parametrize("remembered", [False, True])
async def test_a_token_that_expires_while_keys_are_fetched_is_refused(asyncio_only: None, remembered: bool) -> None:
    now, monotonic, key = Clock(), Clock(0), make_key("ES256")

    async def fetch(url: str) -> bytes:
        now.now += 4
        monotonic.now += 4
        return json.dumps({"keys": [key.jwk]}).encode()

    client = JWKSClient("https://id.example.com/jwks", fetch=fetch, clock=monotonic, ttl=100)
    auth = JWTAuth(issuer=ISSUER, audience=AUDIENCE, tenant="org_id", jwks=client, now=now)
    text = token(key, exp=NOW + 20)
    if remembered:
        assert await verified(auth, text) == "acme/ann"
    now.now = NOW + 18
    monotonic.now += 200
    assert await verified(auth, text) == BAD


def test_a_leeway_that_no_float_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="leeway"):
        auth_of(leeway=10**400)


def test_a_number_beyond_doubles_is_refused_without_a_point_too() -> None:
    """As 1e999 is: other parsers read Infinity."""
    assert answer(auth_of(), signed(payload=_with('"x": 1' + "0" * 400)(payload_of()))) == BAD


def test_a_jti_that_is_no_string_is_refused() -> None:
    """RFC 7519, section 4.1.7; PyJWT refuses it too."""
    assert answer(auth_of(), token(KEY, jti=5)) == BAD
