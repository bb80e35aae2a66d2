"""Documents of YAML: what is read as PyYAML's safe loader does, and what is refused because it has two readings."""

import io
import os
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from asgi_context import Identity, bind_context
from asgi_context.errors import ExpansionDocumentError, ExpansionForbiddenError, ExpansionTypeError, ExpansionUnsetError
from asgi_context.expansion import Template, _yaml, load_yaml

LOADERS = {"libyaml": yaml.CSafeLoader, "pure": yaml.SafeLoader}


@pytest.fixture(autouse=True, params=LOADERS)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With libyaml, and as where PyYAML was built without it."""
    monkeypatch.setattr(_yaml, "_LOADER", LOADERS[request.param])


def test_references_are_filled_after_the_document_was_read() -> None:
    text = """\
memory:
  type: MessageStoreMemory
  namespace: ${JOB_ID}  # of the request
model: {name: "${MODEL:-small}", "key": "${env:API_KEY}"}
tenant: ${context:tenant}
limits: [1, 2.5, "${MAX}", on]
$literal: $$5
"""
    values = {"JOB_ID": "1\n  type: Other  # ${API_KEY}", "MAX": 7}
    with bind_context(Identity("acme", "ann"), values=values):
        assert load_yaml(text, environ={"API_KEY": "k: [v]"}) == {
            "memory": {"type": "MessageStoreMemory", "namespace": "1\n  type: Other  # ${API_KEY}"},
            "model": {"name": "small", "key": "k: [v]"},
            "tenant": "acme",
            "limits": [1, 2.5, 7, True],
            "$literal": "$5",
        }


def test_a_template_is_read_once_and_expanded_for_each_request() -> None:
    template = Template.from_yaml("a: $A\nb: [1]\n", request_names=["A"], env_names=())
    for value in ("x", 2):
        with bind_context(Identity("acme"), values={"A": value}):
            assert template.expand() == {"a": value, "b": [1]}
    with pytest.raises(ExpansionForbiddenError):
        Template.from_yaml("a: $A\n", request_names=(), env_names=())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "---\n",
        "~",
        "text",
        "'a ''b'' c'",
        '"\\u00e9\\n"',
        "|\n two\n lines\n",
        ">-\n folded\n lines\n",
        "[1, 0x1f, 0o7, 017, 1_000, 1:30, -5, +5, 0b11]",
        "[1.5, .inf, -.inf, 1e+3, 1e3, 1:30.5]",
        "[yes, No, true, FALSE, on, off, y, n]",
        "[null, Null, ~, '']",
        "{a: , b: [ ], c: { }}",
        "[2026-11-22, 2026-11-22T01:02:03Z, 2026-11-22 01:02:03.5]",
        "!!binary aGVsbG8=",
        "!!str 5",
        "! 5",
        "!!int '5'",
        "!!map {a: !!seq [1]}",
        "1: a\nnull: b\n2026-11-22: c\n'1': d\n",
        "a: &x [1, {b: 2}]\nc: *x\nd: {e: *x}\n",
        "&a a: *a\n",
        "base: &b {x: 1, y: 2}\nd: {<<: *b, y: 3}\n",
        "m: &m {x: 1}\nn: &n {x: 2, y: 2}\no: {<<: [*m, *n], z: 3}\np: {'<<': 4}\n",
        "m: {<<: {a: 1}, b: 2}\nn: {c: 1, <<: {}}\n",
        "%YAML 1.1\n---\na: 1\n...\n",
        "\ufeffa: 1\n",
        "- - - a\n    - b\n- ? c\n  : d\n",
    ],
)
def test_it_reads_what_the_safe_loader_reads(text: str) -> None:
    expected: Any = yaml.safe_load(text)
    assert load_yaml(text, environ={}) == expected
    assert load_yaml(text.encode(), environ={}) == expected
    assert repr(load_yaml(text, environ={})) == repr(expected)


def test_an_equals_sign_and_two_less_thans_are_text_where_they_are_no_key_to_merge() -> None:
    """The safe loader gives up on both."""
    assert load_yaml("op: =\nops: [<<, =, '<<']\n&k <<: {a: 1}\nb: *k\n") == {
        "op": "=",
        "ops": ["<<", "=", "<<"],
        "a": 1,
        "b": "<<",
    }
    assert load_yaml("=") == "="
    assert load_yaml("<<") == "<<"


def test_dates_and_binary_stay_as_they_are() -> None:
    text = "- 2026-11-22\n- 2026-11-22T01:02:03Z\n- !!binary JHtBfQ==\n"
    moment = datetime(2026, 11, 22, 1, 2, 3, tzinfo=timezone.utc)  # noqa: UP017 - as PyYAML makes it
    assert load_yaml(text, environ={}) == [date(2026, 11, 22), moment, b"${A}"]


def test_it_reads_text_bytes_and_files(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: é${A}\n", "utf-8")
    with path.open(encoding="utf-8") as text, path.open("rb") as raw:
        for stream in (text, raw, io.StringIO("a: é${A}"), io.BytesIO("\ufeffa: é${A}".encode()), "a: é${A}"):
            assert load_yaml(stream, environ={"A": "a"}) == {"a": "éa"}
    bad: Any
    for bad, kind in ((io.StringIO, "type"), ([], "list"), (path, "PosixPath"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"^a stream of YAML is text, bytes or an open file, not {kind}"):
            load_yaml(bad)

    class Odd:
        def read(self, size: int) -> Any:
            return [size]

    bad = Odd()
    with pytest.raises(TypeError, match=r"^a stream of YAML gives text or bytes, not list"):
        load_yaml(bad)


def test_it_reads_no_more_than_max_bytes() -> None:
    text = "é" * 5
    for stream in (text, text.encode(), io.StringIO(text), io.BytesIO(text.encode())):
        assert load_yaml(stream, max_bytes=10) == text
    endless = io.StringIO("é" * 1000)
    for stream in (text, text.encode(), endless, io.BytesIO(text.encode() * 1000)):
        with pytest.raises(ExpansionDocumentError, match=r"^the document: it is larger than max_bytes=9"):
            load_yaml(stream, max_bytes=9)
    assert endless.tell() == 10
    assert load_yaml("a" * 262_144) == "a" * 262_144
    with pytest.raises(ExpansionDocumentError, match="larger than max_bytes=262144"):
        load_yaml("a" * 262_145)


class Slow:
    """A pipe, or a socket: what has come is given, before the end."""

    def __init__(self, *chunks: str | bytes) -> None:
        self.chunks = list(chunks)

    def read(self, size: int) -> str | bytes:
        if not self.chunks:
            return b""
        chunk = self.chunks.pop(0)
        if len(chunk) > size:
            self.chunks.insert(0, chunk[size:])
        return chunk[:size]


def test_a_file_is_read_to_its_end_however_little_it_gives_at_a_time() -> None:
    stream: Any
    for stream in (Slow(b"a: ", b"1\nb: \xc3", b"\xa9\n"), Slow("a: ", "1\nb: ", "é\n")):
        assert load_yaml(stream, max_bytes=11) == {"a": 1, "b": "é"}
    for stream in (Slow(*[b"a" * 4] * 1000), Slow(*["é"] * 1000)):
        with pytest.raises(ExpansionDocumentError, match=r"^the document: it is larger than max_bytes=9"):
            load_yaml(stream, max_bytes=9)
        assert len(stream.chunks) > 990


def test_a_file_that_has_nothing_yet_is_not_taken_to_have_ended() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        with (
            io.FileIO(reading) as stream,
            pytest.raises(TypeError, match=r"^a stream of YAML gives text or bytes, not NoneType"),
        ):
            load_yaml(stream)
    finally:
        os.close(writing)


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a: 1\n")

    class Watched(io.FileIO):
        """Writes more as soon as the first was read."""

        def read(self, size: int | None = -1) -> Any:
            nonlocal writing
            found = super().read(size)
            if writing >= 0:
                os.write(writing, b"b: 2\n")
                os.close(writing)
                writing = -1
            return found

    with Watched(reading) as stream:
        assert load_yaml(stream) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("size", "error", "reason"),
    [
        (None, TypeError, "must be an int, not NoneType"),
        ("9", TypeError, "must be an int, not str"),
        (True, TypeError, "must be an int, not bool"),
        (9.5, TypeError, "must be an int, not float"),
        (0, ValueError, "must be at least 1, not 0"),
        (-1, ValueError, "must be at least 1, not -1"),
    ],
)
def test_max_bytes_is_checked(size: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=f"^max_bytes {reason}"):
        load_yaml("a: 1", max_bytes=size)


@pytest.mark.parametrize("stream", [b"\xff", "\ud800", b"a: \xc3", "a: é".encode("utf-16")])
def test_what_is_not_utf_8_is_refused(stream: str | bytes) -> None:
    with pytest.raises(ExpansionDocumentError, match=r"^the document: it is not UTF-8"):
        load_yaml(stream)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: \xe9\n")
    with path.open(encoding="utf-8") as stream, pytest.raises(ExpansionDocumentError, match="not UTF-8"):
        load_yaml(stream)


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("a: 1\nb: 2\n'a': 3\n", "line 3, column 1", "the mapping has that key already"),
        ("{1: a, true: b}", "line 1, column 8", "the mapping has that key already"),
        ("{<<: {}, <<: {}}", "line 1, column 10", "the mapping has that key already"),
        ("- &x [{y: *x}]", "line 1, column 11", "the document holds itself"),
        ("a: &x {<<: *x}", "line 1, column 12", "the document holds itself"),
        ("[*x, &x 1]", "line 1, column 2", "an alias to what was not named before"),
        ("[&x 1, &x 2]", "line 1, column 8", "the document has that anchor already"),
        ("[&x 1, &x []]", "line 1, column 8", "the document has that anchor already"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1", "a second document begins: give one at a time"),
        ("[a]: 1", "line 1, column 1", "a key must be a scalar"),
        ("- &x {}\n- *x : 1", "line 2, column 3", "a key must be a scalar"),
        ("{<<: {1: a}, true: b}", "line 1, column 1", "keys that are equal, but not the same, are merged"),
        ("{1.0: b, <<: {1: a}}", "line 1, column 1", "keys that are equal, but not the same, are merged"),
        ("{<<: [{0: a}, {false: a}]}", "line 1, column 6", "keys that are equal, but not the same, are merged"),
        ("{<<: 1}", "line 1, column 6", "<< takes a mapping, or a list of mappings"),
        ("{<<: [{}, 1]}", "line 1, column 6", "<< takes a mapping, or a list of mappings"),
        ("a: !thing 1", "line 1, column 4", "a tag that is none of a safe document's"),
        ("!!python/name:os.system ''", "line 1, column 1", "a tag that is none of a safe document's"),
        (
            "!!python/object/apply:os.system [id]",
            "line 1, column 1",
            "a tag that makes a mapping or list anything else",
        ),
        ("!!set {a, b}", "line 1, column 1", "a tag that makes a mapping or list anything else"),
        ("!!omap [{a: 1}]", "line 1, column 1", "a tag that makes a mapping or list anything else"),
        ("!!seq {a: 1}", "line 1, column 1", "a tag that makes a mapping or list anything else"),
        ("!!seq a", "line 1, column 1", "a tag that is none of a safe document's"),
        ("!!int a", "line 1, column 1", "it is no int"),
        ("!!int ''", "line 1, column 1", "it is no int"),
        ("!!float a", "line 1, column 1", "it is no float"),
        ("!!bool a", "line 1, column 1", "it is no bool"),
        ("!!timestamp a", "line 1, column 1", "it is no timestamp"),
        ("!!binary a", "line 1, column 1", "it is no binary"),
        ("a: 2026-13-01", "line 1, column 4", "it is no timestamp"),
        ("a: " + "1" * 401, "line 1, column 4", "a scalar that is no text has more than 400 characters"),
        ("a: 1" + ":59" * 50_000, "line 1, column 4", "a scalar that is no text has more than 400 characters"),
        ("[" * 65, "line 1, column 65", "it is nested more than 64 deep"),
        ("[" * 20_000, "line 1, column 65", "it is nested more than 64 deep"),
        ("- " * 65, "line 1, column 129", "it is nested more than 64 deep"),
    ],
    ids=lambda text: text[:16],
)
def test_what_could_be_read_in_two_ways_or_not_at_all_is_refused(text: str, place: str, reason: str) -> None:
    with pytest.raises(ExpansionDocumentError) as caught:
        load_yaml(text)
    assert (caught.value.place, caught.value.reason) == (place, reason)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("text", ["a: [", "[${A}]", "a: b: c", "\tx: 1", "%YAML 9.1\n---\n", "'", "a: ${A:?no: colon}"])
def test_what_is_not_yaml_is_refused(text: str) -> None:
    with pytest.raises(ExpansionDocumentError, match=r"^line \d, column \d+: it is not YAML: ") as caught:
        load_yaml(text)
    assert caught.value.__suppress_context__  # PyYAML's error shows a part of the document


def test_a_character_that_yaml_does_not_allow_is_refused() -> None:
    with pytest.raises(ExpansionDocumentError, match="a character that YAML does not allow") as caught:
        load_yaml("a: \x00")
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("text", ['a: "\\ud800"', '"\\udc00": a', '["\\ud83d\\ude00"]'])
def test_an_escape_that_is_no_character_is_refused(text: str) -> None:
    """Without libyaml, PyYAML makes a text of it that nothing can encode."""
    with pytest.raises(ExpansionDocumentError, match=r"^line 1, column \d+: "):
        load_yaml(text)


def test_long_text_and_long_binary_are_no_numbers() -> None:
    text = "a" * 1000
    assert load_yaml(f"[{text}, !!binary {'AAAA' * 200}, !!str {'1' * 1000}, '{'1' * 1000}']") == [
        text,
        bytes(600),
        "1" * 1000,
        "1" * 1000,
    ]


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "\n".join(lines)


def test_a_billion_laughs_are_refused() -> None:
    found = load_yaml(laughs(4))
    assert found["a3"][0] is found["a3"][8] is found["a2"]
    with pytest.raises(ExpansionDocumentError, match=r": it holds more than 100000 values$"):
        load_yaml(laughs(40))


def test_mappings_that_merge_each_other_again_and_again_are_no_more_than_they_say() -> None:
    text = "a0: &a0 {x: 1}\n" + "".join(
        f"a{level}: &a{level} {{<<: [*a{level - 1}, *a{level - 1}, *a{level - 1}]}}\n" for level in range(1, 60)
    )
    assert load_yaml(text)["a59"] == {"x": 1}


def test_merging_too_much_is_refused() -> None:
    members = ", ".join(f"k{number}: 1" for number in range(4_999))
    text = f"a: &a {{{members}}}\nb: {{<<: [{', '.join(['*a'] * 20)}]}}\n"
    assert len(load_yaml(text)["b"]) == 4_999
    with pytest.raises(ExpansionDocumentError, match=r"^line 2, column .*: more than 100000 mappings and members"):
        load_yaml(text.replace("[*a,", "[*a, *a,"))


def test_merging_too_many_mappings_is_refused_also_where_they_are_empty() -> None:
    text = f"- &a [{'{}, ' * 1000}]\n" + "- <<: *a\n" * 100
    assert len(load_yaml(text)) == 101
    with pytest.raises(ExpansionDocumentError, match=r"^line 102, column .*: more than 100000 mappings and members"):
        load_yaml(text + "- <<: *a\n")


def test_errors_of_references_tell_where_they_stand_in_the_document() -> None:
    with pytest.raises(ExpansionUnsetError, match=r"^servers\[1\]\.url: HOST is not set: say which"):
        load_yaml("servers:\n- {}\n- url: https://${HOST:?say which}/\n", environ={})
    with (
        bind_context(Identity("acme"), values={"A": [1]}),
        pytest.raises(ExpansionTypeError, match=r"^a: the value of A must be"),
    ):
        load_yaml("a: $A")
