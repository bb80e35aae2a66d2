"""References in documents: the syntax, where names are looked up, what stays as it is, and what is refused."""

import contextvars
import tracemalloc
import weakref
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import pytest

from asgi_context import Identity, bind_context, unbound_context
from asgi_context.errors import (
    AsgiContextError,
    ContextClosedError,
    ExpansionAmbiguousError,
    ExpansionDocumentError,
    ExpansionError,
    ExpansionForbiddenError,
    ExpansionSyntaxError,
    ExpansionTypeError,
    ExpansionUnsetError,
)
from asgi_context.expansion import Template, expand
from asgi_context.values import request_context, update_request_context

ANN = Identity("acme", "ann")
ENV = {"FOO": "first", "BAR": "", "_X1": "odd"}


class Recorded(Mapping[str, str]):
    """An environment that knows what it was asked for."""

    def __init__(self, **variables: str) -> None:
        self.variables = variables
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> str:
        self.asked.append(name)
        return self.variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)


# The syntax, by the Compose specification. FOO is "first", BAR is empty, NONE is not set.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("nothing", "nothing"),
        ("a } and a { outside", "a } and a { outside"),
        ("${FOO}", "first"),
        ("$FOO", "first"),
        ("$_X1.", "odd."),
        ("$FOO-bar", "first-bar"),
        ("$env:FOO", "odd:FOO"),
        ("This ${FOO} and $FOO}", "This first and first}"),
        ("${BAR}", ""),
        ("${FOO:-d}", "first"),
        ("${FOO-d}", "first"),
        ("${BAR:-d}", "d"),
        ("${BAR-d}", ""),
        ("${NONE:-d}", "d"),
        ("${NONE-d}", "d"),
        ("${NONE:-}", ""),
        ("${NONE-}", ""),
        ("${FOO:?m}", "first"),
        ("${FOO?m}", "first"),
        ("${BAR?m}", ""),
        ("${FOO:+w}", "w"),
        ("${FOO+w}", "w"),
        ("${BAR:+w}", ""),
        ("${BAR+w}", "w"),
        ("${NONE:+w}", ""),
        ("${NONE+w}", ""),
        ("${NONE:-/non:-alphanumeric}", "/non:-alphanumeric"),
        ("${NONE-a?b:+c-d}", "a?b:+c-d"),
        ("${NONE:- spaces are kept }", " spaces are kept "),
        ("${NONE:-two\nlines}", "two\nlines"),
        ("${NONE:-$FOO}", "first"),
        ("${NONE:-${FOO}}", "first"),
        ("${NONE:-${FOO} ${FOO}}", "first first"),
        ("${NONE:-a${BAR:-${NONE-b}c}d}e", "abcde"),
        ("${FOO:+[$FOO]}", "[first]"),
        ("$", "$"),
        ("a $ string", "a $ string"),
        ("^REGEX$", "^REGEX$"),
        ("$}", "$}"),
        ("$1", "$1"),
        ("$ä", "$ä"),
        ("$-$FOO$", "$-first$"),
        ("${NONE:-$}", "$"),
        ("${NONE:-5$ or $1}$", "5$ or $1$"),
        ("$$", "$"),
        ("$$$", "$$"),
        ("$$FOO", "$FOO"),
        ("$${FOO}", "${FOO}"),
        ("$$$FOO", "$first"),
        ("$$$$", "$$"),
        ("${NONE:-$$FOO}", "$FOO"),
        ("${env:FOO}", "first"),
        ("${env:NONE:-d}", "d"),
        ("${env:BAR:+w}", ""),
        ("${env:-d}", "odd"),
        ("${env}", "odd"),
        ("${context:-d}", "d"),
    ],
)
def test_references_are_filled_by_the_compose_specification(text: str, expected: str) -> None:
    assert expand(text, environ={**ENV, "env": "odd"}) == expected


@pytest.mark.parametrize("text", ["${BAR:?m}", "${NONE:?m}", "${NONE?m}", "${NONE}", "$NONE", "${NONE:-$NONE}"])
def test_a_reference_without_a_value_is_an_error(text: str) -> None:
    with pytest.raises(ExpansionUnsetError):
        expand(text, environ=ENV)


@pytest.mark.parametrize(
    ("text", "character", "reason"),
    [
        ("${", 1, "there must be a name"),
        ("${}", 1, "there must be a name"),
        ("${ FOO}", 1, "there must be a name"),
        ("${FOO }", 1, "there must be a name"),
        ("${FOO!}", 1, "there must be a name"),
        ("${FOO:}", 1, "there must be a name"),
        ("${FOO/a/b}", 1, "there must be a name"),
        ("${1A}", 1, "there must be a name"),
        ("${FÖÖ}", 1, "there must be a name"),
        ("${FOO", 1, "there must be a name"),
        ("${${FOO}}", 1, "there must be a name"),
        ("${A${FOO}}", 1, "there must be a name"),
        ("${$FOO}", 1, "there must be a name"),
        ("${env:}", 1, "there must be a name"),
        ("${env:1}", 1, "there must be a name"),
        ("${env:FOO:BAR}", 1, "there must be a name"),
        ("${env:context:FOO}", 1, "there must be a name"),
        ("${file:FOO}", 1, "with env: or with context:"),
        ("${ENV:FOO}", 1, "with env: or with context:"),
        ("${FOO:-", 1, "not closed"),
        ("ab${FOO:-c${BAR", 11, "there must be a name"),
        ("ab${FOO:-c${BAR-}", 3, "not closed"),
        ("${FOO:-{}}", 8, "a { inside"),
        ('${FOO:-{"a": 1}}', 8, "a { inside"),
        ("${FOO:-$${BAR}", 10, "a { inside"),
        ("${tenant}", 1, r"\$\{context:tenant\}"),
        ("$user", 1, r"\$\{context:user\}"),
        ("${NONE:-${request_id}}", 9, r"\$\{context:request_id\}"),
    ],
)
def test_what_is_no_reference_is_an_error_that_tells_its_place(text: str, character: int, reason: str) -> None:
    with pytest.raises(ExpansionSyntaxError, match=reason) as caught:
        expand({"servers": [{"url": text}]}, environ=ENV)
    assert (caught.value.place, caught.value.character) == ("servers[0].url", character)


def test_references_stand_inside_of_each_other_16_deep() -> None:
    assert expand("${NONE:-" * 16 + "x" + "}" * 16, environ={}) == "x"
    with pytest.raises(ExpansionSyntaxError, match="character 129: more than 16"):
        expand("${NONE:-" * 17 + "x" + "}" * 17, environ={})


@pytest.mark.parametrize(
    "hostile",
    [
        "${" * 100_000,
        "${A:-" * 100_000,
        "$" * 99_998 + "${",
        "${A" + "a" * 200_000,
        "${A:-" + "a" * 200_000,
        "${A:" * 100_000,
    ],
    ids=["openings", "defaults", "dollars", "name", "word", "sources"],
)
def test_hostile_texts_are_refused_at_once(hostile: str) -> None:
    with pytest.raises(ExpansionSyntaxError):
        expand(hostile, environ={})


def test_long_texts_are_filled_in_one_pass() -> None:
    assert expand("${A}$$" * 20_000, environ={"A": "a"}) == "a$" * 20_000
    assert expand("${NONE:-" + "$A${NONE-}" * 20_000 + "}", environ={"A": "a"}) == "a" * 20_000
    assert expand("$" * 200_001, environ={}) == "$" * 100_001
    assert expand("$ " * 100_000, environ={}) == "$ " * 100_000
    name = "A" * 100_000
    assert expand(f"${name}${{{name}}}", environ={name: "a"}) == "aa"


# Values are never parsed.


@pytest.mark.parametrize(
    "value",
    ["${SECRET}", "$SECRET", "${env:SECRET}", "$$", "$", "${", "}", "a: b", "- x", "*a", "{}", "null", "1", "\n\x00"],
)
def test_a_value_is_filled_in_as_it_is(value: str) -> None:
    document = {"whole": "${A}", "text": "<${A}>", "word": "${NONE:-${A}}", "list": ["${A:?}", "${NONE-x}"]}
    for of_env in (True, False):
        environ = Recorded(SECRET="s", **({"A": value} if of_env else {}))
        with request_context(**({} if of_env else {"A": value})):
            assert expand(document, environ=environ) == {
                "whole": value,
                "text": f"<{value}>",
                "word": value,
                "list": [value, "x"],
            }
        assert "SECRET" not in environ.asked


def test_only_the_references_that_are_taken_are_looked_up_and_each_name_once() -> None:
    environ = Recorded(A="a", B="b")
    document = ["${A:-$NOT}", "${A}$A${B}", "${NONE+$NOT}", "${A?$NOT}", "${A+$B}", "${NONE-}"]
    assert expand(document, environ=environ, request_names=()) == ["a", "aab", "", "a", "b", ""]
    assert sorted(environ.asked) == ["A", "B", "NONE"]


def test_the_message_of_a_reference_is_the_document_s_as_it_is_written() -> None:
    with pytest.raises(ExpansionUnsetError) as caught:
        expand({"key": "${NONE:?set $$FOO, not ${FOO}}"}, environ=ENV)
    assert str(caught.value) == "key: NONE is not set: set $$FOO, not ${FOO}"
    assert (caught.value.name, caught.value.empty) == ("NONE", False)
    with pytest.raises(ExpansionUnsetError, match=r"^key: BAR is empty: set it, or write a default") as caught:
        expand({"key": "${BAR:?}"}, environ=ENV)
    assert caught.value.empty


# Types.


@pytest.mark.parametrize(
    "value", ["text", "", 8080, 10**5000, 1.5, True, False, None], ids=lambda value: type(value).__name__
)
def test_a_text_that_is_one_reference_becomes_its_value_of_its_type(value: object) -> None:
    with request_context(A=value):
        for text in ("${A}", "$A", "${context:A}", "${A-d}", "${A?}", "${NONE-${A}}", "${A+$A}", "${NONE:-${A-x}}"):
            found = expand({"a": text}, environ={})["a"]
            assert type(found) is type(value), text
            assert found == value


def test_what_the_environment_and_a_word_say_is_text() -> None:
    assert expand(["${PORT}", "${NONE:-80}", "${NONE:-true}"], environ={"PORT": "80"}) == ["80", "80", "true"]


def test_inside_of_a_text_values_are_written_as_yaml_and_json_do() -> None:
    with request_context(i=-80, f=0.5, t=True, n=False, s="s"):
        assert expand("${i} ${f} $t ${n} ${s} ${NONE:-x${i}}", environ={}) == "-80 0.5 true false s x-80"
        assert expand("${i}$$", environ={}) == "-80$"


def test_none_cannot_stand_inside_of_a_text() -> None:
    with request_context(A=None):
        with pytest.raises(ExpansionTypeError, match=r"^key: a value that is None cannot stand inside of a text"):
            expand({"key": "job-${A}"}, environ={})
        assert expand("job-${A:-none}", environ={}) == "job-none"


def test_a_number_that_python_would_not_write_cannot_stand_inside_of_a_text() -> None:
    with (
        request_context(A=10**5000),
        pytest.raises(ExpansionTypeError, match=r"^the document: a value is too large") as e,
    ):
        expand("a${A}", environ={})
    assert e.value.__suppress_context__


def test_empty_are_none_and_the_empty_text_alone() -> None:
    with request_context(zero=0, no=False, none=None, empty=""):
        assert expand(["${zero:-d}", "${no:-d}", "${none:-d}", "${empty:-d}"], environ={}) == [0, False, "d", "d"]
        assert expand(["${zero:+w}", "${none:+w}", "${none+w}", "${none-d}"], environ={}) == ["w", "", "w", None]
        with pytest.raises(ExpansionUnsetError, match="none is empty"):
            expand("${none:?}", environ={})


class Colour(StrEnum):
    RED = "red"


class Number(int):
    """It could hold anything else, and be changed."""


@pytest.mark.parametrize(
    "value", [[], ["a"], {}, {"a": 1}, (), b"", set(), object(), Colour.RED, Number(1), Decimal(1)], ids=repr
)
@pytest.mark.parametrize("text", ["${A}", "a${A}", "${A:-d}", "${A+w}"])
def test_a_value_that_is_no_scalar_is_refused(value: object, text: str) -> None:
    """A list or mapping would change the structure of the document, and what can be changed would be shared."""
    with request_context(A=value), pytest.raises(ExpansionTypeError, match=r"^a\.b: the value of A must be a str") as e:
        expand({"a": {"b": text}}, environ={})
    assert type(value).__name__ in str(e.value)


# Where names are looked up.


def test_values_of_the_request_come_first_and_then_the_environment() -> None:
    with bind_context(ANN, values={"JOB": "j"}):
        assert expand("${JOB}-${FOO}", environ=ENV) == "j-first"
        update_request_context(JOB="k")
        assert expand("${JOB}", environ=ENV) == "k"
    assert expand("${JOB}", environ={"JOB": "e"}) == "e"


def test_a_name_of_both_is_an_error_unless_it_is_listed_as_one_of_the_request() -> None:
    with bind_context(ANN, values={"FOO": "secret value", "HOST": "h"}):
        with pytest.raises(ExpansionAmbiguousError, match=r"^a\[0\]: FOO is both") as caught:
            expand({"a": ["${FOO}"]}, environ=ENV)
        assert (caught.value.place, caught.value.name) == ("a[0]", "FOO")
        assert "secret" not in str(caught.value)
        assert "first" not in str(caught.value)
        assert expand("${FOO}", environ=ENV, request_names={"FOO"}) == "secret value"
        assert expand("${FOO}", environ=ENV, request_names=["HOST"]) == "first"
        assert expand("${FOO}", environ=ENV, env_names=["BAR"]) == "secret value"
        assert expand(["${env:FOO}", "${context:FOO}"], environ=ENV) == ["first", "secret value"]
        assert expand("${HOST:-${FOO}}", environ=ENV) == "h"
    assert expand("${FOO}", environ=ENV, request_names={"FOO"}) == "first"


def test_a_source_that_is_named_is_the_only_one() -> None:
    with bind_context(ANN, values={"JOB": "j"}):
        assert expand(["${env:JOB-none}", "${context:FOO-none}"], environ=ENV) == ["none", "none"]


def test_the_identity_is_that_of_the_bound_context() -> None:
    values = {"tenant": "other", "user": "root", "request_id": "x"}
    with bind_context(ANN, request_id="r1", values=values):
        text = "${context:tenant}/${context:user}/${context:request_id}"
        assert expand(text, environ={"tenant": "env", "user": "env"}) == "acme/ann/r1"
    with bind_context(Identity("acme"), values=values):
        assert expand(["${context:user:-nobody}", "${context:user+w}"], environ={}) == ["nobody", ""]
        with pytest.raises(ExpansionUnsetError, match="user is not set"):
            expand("${context:user}", environ={"user": "env"})
    with request_context(**values):
        assert expand("${context:tenant-none}", environ={}) == "none"


def test_what_has_ended_is_not_replaced_by_a_default() -> None:
    with bind_context(ANN, values={"A": "a"}):
        outliving = contextvars.copy_context()
    with pytest.raises(ContextClosedError):
        outliving.run(expand, "${A:-d}", environ={"A": "env"})
    assert outliving.run(expand, "${context:tenant:-d}${env:A}", environ={"A": "env"}) == "acmeenv"


def test_without_anything_bound_there_is_the_environment() -> None:
    with bind_context(ANN, values={"A": "a"}), unbound_context():
        assert expand("${A-none}", environ={}) == "none"
        assert expand("${A}", environ={"A": "env"}) == "env"


def test_the_environment_is_the_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGI_CONTEXT_TEST", "here")
    assert expand("${ASGI_CONTEXT_TEST}") == "here"


@pytest.mark.parametrize("environ", [5, ["A"], "A", [("A", "a")]])
def test_the_environment_is_a_mapping(environ: Any) -> None:
    for call in (expand, Template("$A").expand):
        with pytest.raises(TypeError, match=f"^environ must be a mapping, not {type(environ).__name__}"):
            call(*["$A"] * (call is expand), environ=environ)


# Lists of names.


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("${OTHER}", "request_names= or env_names="),
        ("${env:OTHER}", "env_names="),
        ("${env:JOB}", "env_names="),
        ("${context:OTHER}", "request_names="),
        ("${context:FOO}", "request_names="),
        ("${context:tenant}", "request_names="),
        ("${FOO:-${OTHER}}", "request_names= or env_names="),
        ("${FOO:-${env:OTHER-x}}", "env_names="),
        ("${FOO:?$OTHER}", "request_names= or env_names="),
        ("${FOO+$OTHER}", "request_names= or env_names="),
    ],
)
def test_what_is_not_listed_is_refused_before_anything_is_looked_up(text: str, option: str) -> None:
    with pytest.raises(ExpansionForbiddenError, match=r"^a: ") as caught:
        Template({"a": text}, request_names=["JOB"], env_names=["FOO"])
    assert (caught.value.place, caught.value.option) == ("a", option)
    assert caught.value.name in text


def test_a_name_that_is_listed_for_one_source_is_never_looked_for_in_the_other() -> None:
    environ = Recorded(JOB="env", FOO="env")
    with bind_context(ANN, values={"FOO": "client's"}):
        template = Template(["${JOB-none}", "${FOO}"], request_names={"JOB"}, env_names={"FOO"})
        assert template.expand(environ=environ) == ["none", "env"]
        assert environ.asked == ["FOO"]
        with bind_context(ANN, values={"JOB": "j", "tenant": "x"}):
            assert template.expand(environ=environ) == ["j", "env"]


def test_a_listed_identity_is_the_identity() -> None:
    with bind_context(ANN, values={"tenant": "x"}):
        assert expand("${context:tenant}", request_names=["tenant"], environ={}) == "acme"


@pytest.mark.parametrize("option", ["request_names", "env_names"])
def test_lists_of_names_are_checked(option: str) -> None:
    options: Any = {option: "NAME"}
    with pytest.raises(TypeError, match=f"^{option} must be a collection of names, not str"):
        expand("", **options)
    for names, kind in ((b"A", "bytes"), (iter(["A"]), "list_iterator"), (1, "int")):
        with pytest.raises(TypeError, match=f"^{option} must be a collection of names, not {kind}"):
            expand("", **{option: names})
    with pytest.raises(TypeError, match=f"^{option} must hold names, not int"):
        expand("", **{option: [1]})
    for name in ("", "A-B", "1A", "A\n", "env:A", "$A", "Ä"):
        with pytest.raises(ValueError, match=f"^{option} holds "):
            expand("", **{option: [name]})


# Documents.


def test_all_but_texts_stays_as_it_is() -> None:
    now = datetime(2026, 11, 22, 1, 2, 3)  # noqa: DTZ001 - as TOML has them
    scalars = [1, 1.5, True, None, b"${A}", date(2026, 11, 22), now, time(1, 2), Decimal("1.5")]
    assert expand(scalars, environ={}) == scalars
    assert [expand(scalar, environ={}) for scalar in scalars] == scalars


def test_keys_stay_as_they_are() -> None:
    document = {"${A}": "${A}", "$$": 1, 2: "$A", None: {("$A",): "x"}}
    assert expand(document, environ={"A": "a"}) == {"${A}": "a", "$$": 1, 2: "a", None: {("$A",): "x"}}


def test_the_order_of_keys_and_members_is_kept() -> None:
    document = {"z": "$A", "a": 1, "m": {"x": "y", "b": ["1", "$A", "3"]}, "c": ("$A", 2)}
    assert list(expand(document, environ={"A": "a"}).items()) == [
        ("z", "a"),
        ("a", 1),
        ("m", {"x": "y", "b": ["1", "a", "3"]}),
        ("c", ("a", 2)),
    ]


def test_mappings_become_dicts_lists_lists_and_tuples_tuples() -> None:
    document = MappingProxyType({"a": Listed(["$A"]), "b": ("x", MappingProxyType({})), "c": ()})
    found = expand(document, environ={"A": "a"})
    assert found == {"a": ["a"], "b": ("x", {}), "c": ()}
    assert [type(found), type(found["a"]), type(found["b"]), type(found["b"][1])] == [dict, list, tuple, dict]


def test_what_comes_out_is_nobody_else_s() -> None:
    document = {"a": {"b": ["x"]}, "c": ["$A"], "t": ({},)}
    template = Template(document)
    first, second = template.expand(environ={"A": "1"}), template.expand(environ={"A": "2"})
    first["a"]["b"].append("y")
    first["c"].append("y")
    first["t"][0]["new"] = 1
    document["a"] = {}
    assert second == {"a": {"b": ["x"]}, "c": ["2"], "t": ({},)}
    assert template.expand(environ={"A": "3"}) == {"a": {"b": ["x"]}, "c": ["3"], "t": ({},)}
    assert document == {"a": {}, "c": ["$A"], "t": ({},)}


def test_what_stands_in_several_places_still_does() -> None:
    shared: list[Any] = [{"url": "$A"}, []]
    environ = Recorded(A="a")
    found = expand({"a": shared, "b": {"c": shared}, "t": (shared,), "d": shared[0]}, environ=environ)
    assert found["a"] is found["b"]["c"] is found["t"][0]
    assert found["d"] is found["a"][0]
    assert found["a"] == [{"url": "a"}, []]
    assert found["a"] is not shared


def test_a_document_that_holds_itself_is_an_error() -> None:
    document: dict[str, Any] = {"a": [{}]}
    document["a"][0]["b"] = document
    with pytest.raises(ExpansionDocumentError, match=r"^a\[0\]\.b: the document holds itself"):
        expand(document)
    document["a"][0]["b"] = document["a"]
    with pytest.raises(ExpansionDocumentError, match=r"^a\[0\]\.b: the document holds itself"):
        expand(document)


def nested(levels: int, inside: Any = "$A") -> Any:
    for _ in range(levels):
        inside = [inside]
    return inside


def test_a_document_is_64_deep_at_most() -> None:
    assert expand(nested(64), environ={"A": "a"}) == nested(64, "a")
    for levels in (65, 100_000):
        with pytest.raises(ExpansionDocumentError, match="nested more than 64 deep") as caught:
            expand(nested(levels))
        assert caught.value.place == "[0]" * 64


def test_what_stands_in_several_places_counts_where_it_is_deepest() -> None:
    shared = nested(32)
    expand([shared, nested(31, shared)], environ={"A": "a"})
    with pytest.raises(ExpansionDocumentError, match="nested more than 64 deep"):
        expand([shared, nested(32, shared)])


def test_a_document_that_would_be_enormous_is_an_error_at_once() -> None:
    document: Any = "$A"
    for _ in range(50):
        document = [document, document, document]
    with pytest.raises(ExpansionDocumentError, match="more than 100000 values"):
        expand(document)
    assert len(expand(["x"] * 99_999, environ={"A": "a"})) == 99_999
    with pytest.raises(ExpansionDocumentError, match=r"^the document: it holds more than 100000 values"):
        expand(["x"] * 100_000)


def test_a_long_text_counts_once_for_every_1000_characters_wherever_it_stands() -> None:
    """Short aliases of one long text would come out as gigabytes of JSON."""
    for long in ("x" * 999_000, b"x" * 999_000, "$A " + "x" * 998_997):
        expand([long] * 99, environ={"A": "a"})
        with pytest.raises(ExpansionDocumentError, match=r"^a: it holds more than 100000 values"):
            expand({"a": [long] * 100})
        shared = {"k": long}
        with pytest.raises(ExpansionDocumentError, match=r"^a: it holds more than 100000 values"):
            expand({"a": [shared] * 100})
    shared = {"k" * 999_000: ""}
    expand([shared] * 99)
    with pytest.raises(ExpansionDocumentError, match=r"^a: it holds more than 100000 values"):
        expand({"a": [shared] * 100})


def test_a_text_that_stands_in_several_places_is_read_and_filled_once() -> None:
    text = "${A}" * 1_000 + "${NONE-}"
    environ = Recorded(A="a")
    found = expand({"a": [text] * 9_000, "b": {"c": text}}, environ=environ)
    assert found["a"][0] == "a" * 1_000
    assert all(member is found["a"][0] for member in [*found["a"], found["b"]["c"]])
    again = [text + "$B", ("x" + text + "$B")[1:]]
    with pytest.raises(ExpansionUnsetError, match=r"^\[0\]: B is not set"):
        expand(again, environ=environ)


def test_the_place_of_a_text_takes_no_room_until_it_is_told() -> None:
    document: Any = [f"$A{number}" for number in range(2_000)]
    for level in range(60):
        document = {f"{level:_>60}": document}
    tracemalloc.start()
    try:
        template = Template(document)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 4_000_000
    with pytest.raises(ExpansionUnsetError) as caught:
        template.expand(environ={"A0": ""})
    assert caught.value.place == ".".join(f"{level:_>60}" for level in range(59, -1, -1)) + "[1]"


class Repeated(Mapping[str, Any]):
    """Has a name twice, as the headers of a request do."""

    def __getitem__(self, name: str) -> Any:
        raise AssertionError

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "a"])

    def __len__(self) -> int:
        return 2

    def items(self) -> Any:
        return [("a", "$A"), ("a", "x")]


def test_a_mapping_that_has_a_key_twice_is_refused() -> None:
    with pytest.raises(ExpansionDocumentError, match=r"^b\.a: the mapping has that key already"):
        expand({"b": Repeated()}, environ={"A": "a"})


class Listed(list[Any]):
    """A list that can be watched."""


class Fresh(Mapping[str, Any]):
    """Makes its members as they are asked for. Were one gone, another could have its id, and be taken for it."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[Listed]] = []

    def __getitem__(self, name: str) -> Any:
        assert all(made() is not None for made in self.made)
        member = Listed([f"${name}"])
        self.made.append(weakref.ref(member))
        return member

    def __iter__(self) -> Iterator[str]:
        return iter("ABC")

    def __len__(self) -> int:
        return 3


def test_members_that_a_mapping_makes_when_asked_are_not_taken_for_each_other() -> None:
    found = expand({"a": Fresh()}, environ={"A": "a", "B": "b", "C": "c"})
    assert found == {"a": {"A": ["a"], "B": ["b"], "C": ["c"]}}


@pytest.mark.parametrize(
    "part", [{"$A"}, frozenset({"a"}), object(), Colour.RED, Number(1), bytearray(b""), range(3)], ids=repr
)
def test_what_no_document_holds_is_refused(part: object) -> None:
    with pytest.raises(ExpansionTypeError, match=r"^a\[1\]: a document holds what") as caught:
        expand({"a": ["x", part]})
    assert str(caught.value).endswith(f"not {type(part).__name__}")


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ("$NONE", "the document"),
        (["x", "$NONE"], "[1]"),
        ({"servers": [{}, {"base-url": "$NONE"}]}, "servers[1].base-url"),
        ({"a": ({"b_2": ["$NONE"]},)}, "a[0].b_2[0]"),
        ({"a b": {"": "$NONE"}}, "['a b']['']"),
        ({"a": {1: {None: {"x": "$NONE"}}}}, "a[1][NoneType].x"),
        ({"k" * 61: "$NONE"}, "['" + "k" * 59 + "...]"),
        ({"a": {"line\nbreak": "$NONE"}}, "a['line\\nbreak']"),
    ],
)
def test_errors_tell_the_place(document: object, place: str) -> None:
    with pytest.raises(ExpansionUnsetError) as caught:
        expand(document, environ={})
    assert caught.value.place == place


def test_no_error_shows_a_value() -> None:
    values = {"BAD": ["s3cret"], "NUMBER": 10**5000, "TWICE": "s3cret", "NONE": None}
    texts = ["${BAD}", "a${NUMBER}", "${TWICE}", "s3${NONE}", "${EMPTY:?why ${TWICE}}", "${context:BAD:-x}"]
    with bind_context(Identity("s3cret", "s3cret"), values=values):
        for text in texts:
            with pytest.raises(ExpansionError) as caught:
                expand(text, environ={"TWICE": "s3cret", "EMPTY": ""})
            error: BaseException | None = caught.value
            while error is not None:
                assert "s3cret" not in f"{error} {error.args} {vars(error)}"
                error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_the_errors_are_one_tree() -> None:
    assert issubclass(ExpansionError, AsgiContextError)
    for error, builtin in (
        (ExpansionDocumentError, ValueError),
        (ExpansionSyntaxError, ValueError),
        (ExpansionForbiddenError, LookupError),
        (ExpansionUnsetError, LookupError),
        (ExpansionAmbiguousError, LookupError),
        (ExpansionTypeError, TypeError),
    ):
        assert issubclass(error, ExpansionError)
        assert issubclass(error, builtin)
