"""What holds for every document and every value: checked against two interpreters of references that are not ours."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asgi_context import Identity, bind_context
from asgi_context.errors import ExpansionError, ExpansionSyntaxError
from asgi_context.expansion import Template, _yaml, expand, load_yaml
from asgi_context.values import request_context

NAMES = ("A", "B", "NONE")
SECRET = "canary-of-the-environment"
HOSTILE = st.one_of(
    st.sampled_from([
        "${SECRET}",
        "$SECRET",
        "${env:SECRET}",
        "${NONE:-${env:SECRET}}",
        "}${env:SECRET}",
        "$",
        "${",
        "x: y",
        "\n- {a: 1}",
        "*x",
        "!!python/name:os.system",
        '"',
        "null",
    ]),
    st.text(max_size=8),
    st.text("${}:-SECRTnv[]&*!\n\"' ", max_size=16),
)
VALUES = st.one_of(HOSTILE, st.integers(), st.booleans(), st.floats(allow_nan=False), st.none())


# An interpreter in the plainest words: one character after the other, one call for each reference.


class RefusedError(Exception): ...


def plain(text: str, values: Mapping[str, str]) -> str:
    rest = list(text)
    result = words(rest, values, inside=False)()
    assert not rest
    return result


def words(rest: list[str], values: Mapping[str, str], *, inside: bool) -> Callable[[], str]:
    """Reads to the end, or to the closing brace; what is not taken is read, but not looked up."""
    made: list[Callable[[], str]] = []
    while rest and not (inside and rest[0] == "}"):
        character = rest.pop(0)
        if character == "{" and inside:
            raise RefusedError
        if character != "$":
            made.append(lambda character=character: character)
        elif rest[:1] == ["$"]:
            made.append(lambda: "$")
            rest.pop(0)
        elif rest[:1] == ["{"]:
            rest.pop(0)
            made.append(braced(rest, values))
        elif rest and (rest[0] == "_" or (rest[0].isascii() and rest[0].isalpha())):
            made.append(looked_up(name(rest), values))
        else:
            made.append(lambda: "$")
    return lambda: "".join(part() for part in made)


def name(rest: list[str]) -> str:
    read = ""
    while rest and (rest[0] == "_" or (rest[0].isascii() and (rest[0].isalpha() or (read and rest[0].isdigit())))):
        read += rest.pop(0)
    if not read:
        raise RefusedError
    return read


def looked_up(name: str, values: Mapping[str, str]) -> Callable[[], str]:
    def look_up() -> str:
        if name not in values:
            raise RefusedError
        return values[name]

    return look_up


def braced(rest: list[str], values: Mapping[str, str]) -> Callable[[], str]:
    named = name(rest)
    if rest[:1] == ["}"]:
        rest.pop(0)
        return looked_up(named, values)
    colon = rest[:1] == [":"]
    if colon:
        rest.pop(0)
    operator = rest.pop(0) if rest else ""
    if operator not in {"-", "?", "+"}:
        raise RefusedError
    word = words(rest, values, inside=True)
    if not rest:
        raise RefusedError
    rest.pop(0)

    def choose() -> str:
        is_set = named in values and not (colon and not values[named])
        if operator == "+":
            return word() if is_set else ""
        if is_set:
            return values[named]
        if operator == "?":
            raise RefusedError
        return word()

    return choose


@settings(max_examples=600)
@given(st.text("${}:-?+AB1 ", max_size=24), st.dictionaries(st.sampled_from("AB"), st.sampled_from(["", "a", "${B}"])))
@example("${A:-${B-$A}}$$}", {"A": "", "B": "b"})
@example("${A:+{}", {})
def test_any_text_is_what_a_plain_interpreter_makes_of_it(text: str, values: dict[str, str]) -> None:
    try:
        expected = plain(text, values)
    except RefusedError:
        with pytest.raises(ExpansionError):
            expand(text, environ=values)
    else:
        assert expand(text, environ=values) == expected


# Texts made together with what they must become.


Made = tuple[str, Callable[[Mapping[str, str]], str | None]]
"""A text, and what it is for some values; ``None`` where it has none."""


def literal(text: str) -> Made:
    return text.replace("$", "$$"), lambda _: text


def reference(name: str, operator: str, colon: str, word: Made) -> Made:
    def meaning(values: Mapping[str, str]) -> str | None:
        found = values.get(name)
        if colon and found == "":
            found = None
        if operator == "-":
            return word[1](values) if found is None else found
        if operator == "+":
            return "" if found is None else word[1](values)
        return found

    return f"${{{name}{colon}{operator}{word[0]}}}" if operator else f"${{{name}}}", meaning


def joined(parts: list[Made]) -> Made:
    def meaning(values: Mapping[str, str]) -> str | None:
        found = [part[1](values) for part in parts]
        return None if None in found else "".join(part or "" for part in found)

    return "".join(part[0] for part in parts), meaning


LITERALS = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=6).map(literal)
TEXTS: st.SearchStrategy[Made] = st.recursive(
    LITERALS,
    lambda inside: st.lists(
        st.one_of(
            LITERALS,
            st.builds(
                reference,
                st.sampled_from(NAMES),
                st.sampled_from(["-", "?", "+"]),
                st.sampled_from(["", ":"]),
                inside,
            ),
            st.builds(reference, st.sampled_from(NAMES), st.just(""), st.just(""), LITERALS),
        ),
        max_size=3,
    ).map(joined),
    max_leaves=12,
)


@settings(max_examples=300)
@given(TEXTS, st.dictionaries(st.sampled_from(NAMES[:2]), HOSTILE))
def test_a_text_means_what_it_was_made_to_mean(made: Made, values: dict[str, str]) -> None:
    text, meaning = made
    expected = meaning(values)
    for of_request, of_env in ((values, {}), ({}, values)):
        with request_context(**of_request):
            if expected is None:
                with pytest.raises(ExpansionError):
                    expand(text, environ=of_env)
            else:
                assert expand(text, environ=of_env) == expected


# Documents.


class Watched(Mapping[str, str]):
    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self.variables[name]

    def __iter__(self) -> Iterator[str]:
        raise AssertionError  # nothing may look at all of it

    def __len__(self) -> int:
        raise AssertionError


LEAVES = st.sampled_from([
    "${A}",
    "$B",
    "<${A}>",
    "${NONE:-$A}",
    "${B:+w}",
    "${context:A:-x}",
    "${context:tenant}",
    "${env:HOST}:80",
    "text",
    "$$A",
    7,
    None,
])
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(KEYS, inside, max_size=3),
    max_leaves=12,
)
WRITTEN = {True: "true", False: "false"}


def written(value: object) -> str:
    return WRITTEN[value] if isinstance(value, bool) else str(value)


def filled(document: Any, a: Any, b: Any) -> Any:
    """What each leaf must be, whatever the values are."""
    if isinstance(document, dict):
        return {key: filled(member, a, b) for key, member in document.items()}
    if isinstance(document, list):
        return [filled(member, a, b) for member in document]
    leaves = {
        "${A}": a,
        "$B": b,
        "<${A}>": f"<{written(a)}>",
        "${NONE:-$A}": a,
        "${B:+w}": "" if b is None or b == "" else "w",
        "${context:A:-x}": "x" if a == "" else a,
        "${context:tenant}": "acme",
        "${env:HOST}:80": "h:80",
        "$$A": "$A",
    }
    return leaves.get(document, document)


def identical(left: Any, right: Any) -> bool:
    """Equal, and of the same types: ``1 == True``."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(identical(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(identical, left, right))
    return bool(left == right)


@settings(max_examples=300)
@given(DOCUMENTS, VALUES.filter(lambda value: value is not None), VALUES, st.dictionaries(st.text(max_size=6), HOSTILE))
@example({"a": ["${A}", {"b": "$B"}]}, "${env:SECRET}", "}: [", {"tenant": "other", "HOST": "evil", "NONE2": "x"})
def test_no_value_changes_the_structure_or_reaches_another_variable(
    document: Any, a: Any, b: Any, others: dict[str, str]
) -> None:
    """Nor is it expanded again: what comes out is what went in, at the places that name it, and nowhere else."""
    others.pop("NONE", None)
    environ = Watched({"SECRET": SECRET, "HOST": "h"})
    before = json.dumps(document)
    template = Template(document)
    from_yaml = Template.from_yaml(yaml.safe_dump(document, sort_keys=False))
    with bind_context(Identity("acme", "ann"), values={**others, "A": a, "B": b}):
        found, again, read = [made.expand(environ=environ) for made in (template, template, from_yaml)]
    expected = filled(document, a, b)
    assert identical(found, expected)
    assert identical(again, expected)
    assert identical(read, expected)
    assert environ.asked <= {"HOST", "A", "B", "NONE"}
    assert SECRET not in repr(found)
    assert json.dumps(document) == before


@settings(max_examples=200)
@given(st.dictionaries(st.text("ABHOST_", max_size=6), VALUES), st.lists(st.sampled_from(["A", "B"]), max_size=2))
def test_values_whose_names_are_not_listed_change_nothing(values: dict[str, Any], listed: list[str]) -> None:
    """A client that chooses the names of values reaches no other than those that were listed."""
    document = ["${HOST}", "${HOST:-x}", "${env:HOST}", "${OAUTH-none}", "${context:tenant}"]
    template = Template(document, request_names=[*listed, "tenant"], env_names=["HOST", "OAUTH"])
    with bind_context(Identity("acme"), values=values):
        assert template.expand(environ={"HOST": "h"}) == ["h", "h", "h", "none", "acme"]


# Whatever comes: a result or an error of ours.


@given(st.text())
@example("${" * 1000)
def test_any_text_gives_a_result_or_an_error_of_ours(text: str) -> None:
    try:
        found = expand(text, environ={})
    except ExpansionSyntaxError as error:
        assert 1 <= error.character <= len(text)
    except ExpansionError:
        pass
    else:
        assert found == text.replace("$$", "$") or "-" in text or "+" in text


YAML = st.one_of(
    st.text("ab:- \n?,[]{}&*!|>'\"#%@`<=~.01$\t", max_size=40),
    st.text(max_size=20),
    st.lists(
        st.sampled_from([
            "a",
            ": ",
            "\n",
            "- ",
            "  ",
            "&x ",
            "*x",
            "<<",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "!!int ",
            "1",
            "---",
        ]),
        max_size=16,
    ).map("".join),
)


@pytest.mark.parametrize("loader", [yaml.CSafeLoader, yaml.SafeLoader])
@settings(max_examples=300)
@given(text=YAML)
def test_any_yaml_gives_a_result_or_an_error_of_ours(loader: Any, text: str) -> None:
    """And where there is a result, the safe loader gives the same."""
    ours = _yaml._LOADER
    _yaml._LOADER = loader  # type: ignore[misc]  # no fixture: Hypothesis calls this many times
    try:
        found = load_yaml(text.replace("$", "_"), environ={})
    except ExpansionError as error:
        assert re.match(r"(the document|line \d+, column \d+|\S.*): ", str(error))
    else:
        with suppress(yaml.YAMLError):  # it gives up on "="
            assert repr(found) == repr(yaml.load(text.replace("$", "_"), Loader=loader))
    finally:
        _yaml._LOADER = ours  # type: ignore[misc]
