"""What can be a tool, what a model is told of it, and how its arguments are checked."""

import asyncio
import dataclasses
import datetime as dt
import enum
import functools
import inspect
import json
import math
import operator
import re
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, Optional, TypeVar

import pytest
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    ValidationError,
    field_validator,
)
from pydantic.json_schema import SkipJsonSchema

from asgi_context.errors import ToolDefinitionError, ToolNotFoundError
from asgi_context.tools import AsyncBaseTool, ToolRegistry

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(BaseModel):
    """How large it is."""

    width: int
    height: int = 1


@dataclasses.dataclass
class Place:
    x: int
    y: int = 0


def only(tool: Any) -> dict[str, Any]:
    """What a model is told of one tool."""
    [schema] = ToolRegistry([tool]).schemas()
    return schema


def parameters(tool: Any) -> dict[str, Any]:
    found: dict[str, Any] = only(tool)["parameters"]
    assert found["type"] == "object"
    return found


def properties(tool: Any) -> dict[str, Any]:
    found: dict[str, Any] = parameters(tool)["properties"]
    return found


def call(tool: Any, arguments: Any) -> Any:
    """Call a tool as a dispatcher does."""
    registry = ToolRegistry([tool])
    entry = registry.find(registry.list()[0])
    assert entry is not None
    made: Any = entry.prepare(arguments)()
    if entry.waits:
        return asyncio.run(made)
    return made


def wrong(tool: Any, arguments: Any) -> list[tuple[tuple[int | str, ...], str]]:
    """Where arguments are wrong, and how."""
    with pytest.raises(ValidationError) as caught:
        call(tool, arguments)
    return [(error["loc"], error["type"]) for error in caught.value.errors()]


# What can be a tool.


def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


async def add_later(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


class Add(AsyncBaseTool):
    """Add two numbers."""

    a: int
    b: int = 2

    async def _arun(self) -> int:
        return self.a + self.b


class AddInThread(AsyncBaseTool):
    """Add two numbers."""

    a: int
    b: int = 2

    def run(self) -> int:
        return self.a + self.b


class AddOnLoop(AsyncBaseTool):
    """Add two numbers."""

    a: int
    b: int = 2

    async def run(self) -> int:
        return self.a + self.b


class AddModel(BaseModel):
    """Add two numbers."""

    model_config = ConfigDict(extra="forbid")

    a: int
    b: int = 2

    def run(self) -> int:
        return self.a + self.b


class AddModelLater(BaseModel):
    """Add two numbers."""

    model_config = ConfigDict(extra="forbid")

    a: int
    b: int = 2

    async def arun(self) -> int:
        return self.a + self.b


class Plain:
    """Add two numbers."""

    def run(self, a: int, b: int = 2) -> int:
        return a + b


class PlainLater:
    """Add two numbers."""

    async def arun(self, a: int, b: int = 2) -> int:
        return a + b


class Callee:
    """Add two numbers."""

    def __call__(self, a: int, b: int = 2) -> int:
        return a + b


class Static:
    """Add two numbers."""

    @staticmethod
    def run(a: int, b: int = 2) -> int:
        return a + b


class Namespace:
    def add(self, a: int, b: int = 2) -> int:
        """Add two numbers."""
        return a + b

    @classmethod
    def of_class(cls, a: int, b: int = 2) -> int:
        """Add two numbers."""
        return a + b


def doing_nothing(func: Any) -> Any:
    def wrapper(self: Any, a: int, b: int = 2) -> Any:
        return func(self, a, b)

    return wrapper


class Wrapped:
    """Add two numbers."""

    @doing_nothing
    def run(self, a: int, b: int = 2) -> int:
        return a + b


@functools.lru_cache
def cached(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


TOOLS = {
    "a function": (add, "add"),
    "a coroutine function": (add_later, "add_later"),
    "a tool that waits": (Add, "Add"),
    "a tool that blocks": (AddInThread, "AddInThread"),
    "a tool whose run waits": (AddOnLoop, "AddOnLoop"),
    "another model": (AddModel, "AddModel"),
    "another model that waits": (AddModelLater, "AddModelLater"),
    "a class": (Plain, "Plain"),
    "a class that waits": (PlainLater, "PlainLater"),
    "a class of callables": (Callee, "Callee"),
    "a class with a static method": (Static, "Static"),
    "a class whose method is wrapped": (Wrapped, "Wrapped"),
    "an object": (Plain(), "Plain"),
    "an object that waits": (PlainLater(), "PlainLater"),
    "a callable": (Callee(), "Callee"),
    "an object with a static method": (Static(), "Static"),
    "a method": (Namespace().add, "add"),
    "a class method": (Namespace.of_class, "of_class"),
    "a partial": (functools.partial(add), "add"),
    "a partial of a partial": (functools.partial(functools.partial(add_later)), "add_later"),
    "a partial of a callable": (functools.partial(Callee()), "partial"),
    "a cached function": (cached, "cached"),
}


@pytest.mark.parametrize(("tool", "name"), TOOLS.values(), ids=TOOLS)
def test_whatever_it_is_a_model_is_told_the_same_and_it_is_called_the_same(tool: Any, name: str) -> None:
    registry = ToolRegistry([tool])
    assert registry.list() == [name]
    told = only(tool)
    told["parameters"].pop("additionalProperties")
    assert told == {
        "name": name,
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"title": "A", "type": "integer"},
                "b": {"title": "B", "type": "integer", "default": 2},
            },
            "required": ["a"],
        },
    }
    assert call(tool, {"a": 1}) == 3
    assert call(tool, {"a": "1", "b": 4}) == 5
    assert call(tool, MappingProxyType({"a": 1})) == 3
    assert call(tool, '{"a": 1, "b": 4}') == 5
    assert call(tool, b'{"a": 1}') == 3
    assert wrong(tool, {"b": "x", "c": 1}) == [
        (("a",), "missing"),
        (("b",), "int_parsing"),
        (("c",), "extra_forbidden"),
    ]
    assert wrong(tool, '{"b": "x"}') == [(("a",), "missing"), (("b",), "int_parsing")]
    assert wrong(tool, '{"a": 1') == [((), "json_invalid")]
    for arguments in ("[1]", "1", "null", "", [1], 1):
        [(where, _)] = wrong(tool, arguments)
        assert where == ()


@pytest.mark.parametrize(
    ("tool", "waits"),
    [
        (add, False),
        (add_later, True),
        (functools.partial(add_later, 1), True),
        (Add, True),
        (AddInThread, False),
        (AddOnLoop, True),
        (AddModel, False),
        (AddModelLater, True),
        (Plain, False),
        (PlainLater, True),
        (PlainLater(), True),
        (PlainLater().arun, True),
    ],
)
def test_what_does_not_wait_is_for_a_thread(tool: Any, waits: bool) -> None:
    registry = ToolRegistry([tool])
    entry = registry.find(registry.list()[0])
    assert entry is not None
    assert entry.waits is waits


def test_of_several_methods_it_is_the_call_then_arun_then_run() -> None:
    class All:
        def __call__(self) -> str:
            return "__call__"

        async def arun(self) -> str:
            return "arun"

        def run(self) -> str:
            return "run"

    class Two(BaseModel):
        async def arun(self) -> str:
            return "arun"

        def run(self) -> str:
            return "run"

    class Both(AsyncBaseTool):
        async def _arun(self) -> str:
            return "_arun"

        def run(self) -> str:
            return "run"

    assert [call(tool, {}) for tool in (All, All(), Two, Both)] == ["__call__", "__call__", "arun", "_arun"]


def test_arguments_of_a_function_may_be_called_as_they_like() -> None:
    """A model could have no such fields."""

    def odd(_private: int, self: int, cls: int, func: int, schema: int, json: int, model_config: int) -> list[int]:
        return [_private, self, cls, func, schema, json, model_config]

    names = ["_private", "self", "cls", "func", "schema", "json", "model_config"]
    assert list(properties(odd)) == names
    assert call(odd, {name: number for number, name in enumerate(names)}) == list(range(7))


def test_what_a_partial_has_by_name_is_a_default_and_what_it_has_by_position_is_gone() -> None:
    assert properties(functools.partial(add, 1)) == {"b": {"title": "B", "type": "integer", "default": 2}}
    assert call(functools.partial(add, 1), {}) == 3
    by_name = functools.partial(add, b=5)
    assert parameters(by_name)["required"] == ["a"]
    assert properties(by_name)["b"]["default"] == 5
    assert call(by_name, {"a": 1}) == 6


# What can be none.


def generator(a: int) -> Any:
    yield a


async def async_generator(a: int) -> Any:
    yield a


class RunsNothing(AsyncBaseTool):
    def run(self) -> Any:
        yield


class WaitsForNothing(AsyncBaseTool):
    async def _arun(self) -> Any:
        yield


class ModelThatRunsNothing(BaseModel):
    def run(self) -> Any:
        yield


class DoesNothing(AsyncBaseTool):
    pass


class IsNoTool(BaseModel):
    run: int = 5


class Abstract(ABC):
    @abstractmethod
    def run(self, a: int) -> int: ...


class AbstractModel(BaseModel, ABC):
    @abstractmethod
    def run(self) -> int: ...

    @abstractmethod
    def arun(self) -> int: ...


class OfClass:
    @classmethod
    def run(cls, a: int) -> int:
        return a


class Meta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class OfMeta(metaclass=Meta):
    pass


class Whole(RootModel[list[int]]):
    def run(self) -> int:
        return sum(self.root)


class Unfinished(AsyncBaseTool):
    later: "Later"  # type: ignore[name-defined]  # noqa: F821 - nowhere

    async def _arun(self) -> None: ...


class Unknown:
    pass


class OfUnknown(AsyncBaseTool):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    unknown: Unknown

    async def _arun(self) -> None: ...


class Twice(AsyncBaseTool):
    a: int = Field(alias="same")
    b: int = Field(alias="same")

    async def _arun(self) -> None: ...


def unhinted(a, b: int):  # type: ignore[no-untyped-def]
    return a, b


def unresolved(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - nowhere


def no_type(a: 5) -> None: ...  # type: ignore[valid-type]


def unknown(a: Unknown) -> None: ...


def defaulted(a: Unknown = Unknown()) -> None: ...  # noqa: B008 - never changed


def function(a: Callable[[], int]) -> None: ...


def pattern(a: Annotated[str, Field(pattern="(")]) -> None: ...


def same(a: Annotated[int, Field(alias="same")], b: Annotated[int, Field(alias="same")]) -> None: ...


def by_default(a: int = Field(description="which")) -> None: ...


class PlainArun(AsyncBaseTool):
    def _arun(self) -> str:  # type: ignore[override]
        return "never"


def positional(a: int, /) -> None: ...


def starred(*numbers: int) -> None: ...


def named(**numbers: int) -> None: ...


CALL = "has none of the methods __call__, arun, run"
GENERATOR = "is a generator function, of which nothing would run"
NO_SCHEMA = "has an argument that no JSON schema can be made for"
NEITHER = "defines neither `async def _arun(self)` nor `run(self)`"
NO_SIGNATURE = "has no signature that can be read"


@pytest.mark.parametrize(
    ("tool", "name", "reason"),
    [
        (None, "NoneType", f"{CALL}, and is no function"),
        (5, "int", f"{CALL}, and is no function"),
        ("add", "str", f"{CALL}, and is no function"),
        (int, "int", f"{CALL}, and is no function"),
        (object, "object", f"{CALL}, and is no function"),
        (type, "type", f"{CALL}, and is no function"),
        (Namespace, "Namespace", f"{CALL}, and is no function"),
        (Namespace(), "Namespace", f"{CALL}, and is no function"),
        (OfClass, "OfClass", f"{CALL}, and is no function"),
        (OfMeta, "OfMeta", f"{CALL}, and is no function"),
        (operator.itemgetter(1), "itemgetter", f"{CALL}, and is no function"),
        (IsNoTool, "IsNoTool", CALL),
        (IsNoTool(), "IsNoTool", CALL),
        (AsyncBaseTool, "AsyncBaseTool", NEITHER),
        (DoesNothing, "DoesNothing", NEITHER),
        (DoesNothing(), "DoesNothing", NEITHER),
        (Abstract, "Abstract", "is abstract: it does not define run"),
        (AbstractModel, "AbstractModel", "is abstract: it does not define arun, run"),
        (Whole, "Whole", "takes no arguments by name"),
        (Unfinished, "Unfinished", NO_SCHEMA),
        (OfUnknown, "OfUnknown", NO_SCHEMA),
        (Twice, "Twice", NO_SCHEMA),
        (generator, "generator", GENERATOR),
        (async_generator, "async_generator", GENERATOR),
        (RunsNothing, "RunsNothing", GENERATOR),
        (WaitsForNothing, "WaitsForNothing", GENERATOR),
        (ModelThatRunsNothing, "ModelThatRunsNothing", GENERATOR),
        (PlainArun, "PlainArun", "must define `async def _arun(self)`, or `def run(self)`"),
        (unhinted, "unhinted", "has no hint that says what a is"),
        (lambda a: a, "<lambda>", "has no hint that says what a is"),
        (unresolved, "unresolved", "has a hint that cannot be resolved: NameError"),
        (no_type, "no_type", NO_SCHEMA),
        (unknown, "unknown", NO_SCHEMA),
        (defaulted, "defaulted", NO_SCHEMA),
        (function, "function", NO_SCHEMA),
        (pattern, "pattern", NO_SCHEMA),
        (same, "same", NO_SCHEMA),
        (by_default, "by_default", "must say what a is by Annotated[..., Field(...)], not by a default"),
        (positional, "positional", "takes arguments which can only be given by position (a)"),
        (starred, "starred", "takes arguments of any number (numbers)"),
        (named, "named", "takes arguments of any name (numbers)"),
        (len, "len", "takes arguments which can only be given by position (obj)"),
        (getattr, "getattr", NO_SIGNATURE),
        (functools.partial(dict), "dict", NO_SIGNATURE),
        (vars(Namespace)["of_class"], "of_class", NO_SIGNATURE),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_cannot_be_a_tool_is_an_error_that_names_it_and_says_why(tool: Any, name: str, reason: str) -> None:
    registry = ToolRegistry()
    with pytest.raises(ToolDefinitionError) as caught:
        registry.register(tool, name="other")
    assert str(caught.value) == f"the tool {name} {reason}"
    assert (caught.value.tool, caught.value.reason) == (name, reason)
    assert isinstance(caught.value, TypeError)
    assert registry.list() == []
    with pytest.raises(ToolDefinitionError):
        ToolRegistry([add, tool])


def test_what_pydantic_says_of_it_is_the_cause() -> None:
    with pytest.raises(ToolDefinitionError) as caught:
        ToolRegistry([unknown])
    assert "Unable to generate pydantic-core schema" in str(caught.value.__cause__)
    with pytest.raises(ToolDefinitionError) as caught:
        ToolRegistry([Unfinished])
    assert "`Unfinished` is not fully defined" in str(caught.value.__cause__)


# What a model is told.


def test_descriptions_are_docstrings_of_its_own() -> None:
    class Described:
        """Of the class.

        And more
            of it.
        """

        def run(self) -> None:
            """Of the method."""

    class ByMethod:
        def run(self) -> None:
            """Of the method."""

    class Model(AsyncBaseTool):
        """Of the class.

        And more
            of it.
        """

        async def _arun(self) -> None:
            """Of the method."""

    class Undescribed(AsyncBaseTool):
        async def _arun(self) -> None: ...

    whole = "Of the class.\n\nAnd more\n    of it."
    for tool, description in [
        (Described, whole),
        (Described(), whole),
        (ByMethod, "Of the method."),
        (ByMethod(), "Of the method."),
        (Model, whole),
        (Model(), whole),
        (Undescribed, ""),
        (lambda: None, ""),
    ]:
        assert only(tool)["description"] == description


def test_what_python_itself_writes_into_docstrings_is_not_told() -> None:
    class OfMany(Generic[T]):
        def run(self) -> None: ...

    class Dict(dict[str, int]):
        def run(self) -> None: ...

    @dataclasses.dataclass
    class Data:
        def run(self) -> None: ...

    @dataclasses.dataclass
    class DescribedData:
        """What it is."""

        def run(self) -> None: ...

    assert [only(tool)["description"] for tool in (OfMany, Dict, Data, DescribedData)] == ["", "", "", "What it is."]


def everything(  # noqa: PLR0913, PLR0917 - one of each
    colour: Colour,
    size: Size,
    place: Place,
    kind: Literal["a", "b"],
    day: dt.date,
    perhaps: Optional[int],  # noqa: UP045 - as many write it
    note: Annotated[str, Field(description="what to note", max_length=3)],
    tags: set[str],
    of: dict[str, list[int]],
    default_colour: Colour = Colour.BLUE,
    default_size: Size = Size(width=1),  # noqa: B008 - never changed
    default_place: Place = Place(1),  # noqa: B008 - never changed
    default_kind: Literal["a", "b"] = "b",
    default_day: dt.date = dt.date(2026, 1, 2),
    default_none: int | None = None,
    default_note: Annotated[str, Field(description="what else")] = "",
    default_tags: frozenset[str] = frozenset({"t"}),
) -> dict[str, Any]:
    return locals()


class Everything(AsyncBaseTool):
    colour: Colour
    size: Size
    place: Place
    kind: Literal["a", "b"]
    day: dt.date
    perhaps: Optional[int]  # noqa: UP045 - as many write it
    note: str = Field(description="what to note", max_length=3)
    tags: set[str]
    of: dict[str, list[int]]
    default_colour: Colour = Colour.BLUE
    default_size: Size = Size(width=1)
    default_place: Place = Place(1)
    default_kind: Literal["a", "b"] = "b"
    default_day: dt.date = dt.date(2026, 1, 2)
    default_none: int | None = None
    default_note: str = Field("", description="what else")
    default_tags: frozenset[str] = frozenset({"t"})

    async def _arun(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}


GIVEN = {
    "colour": "red",
    "size": {"width": 3},
    "place": {"x": 5},
    "kind": "a",
    "day": "2026-02-03",
    "perhaps": None,
    "note": "n",
    "tags": ["a", "b"],
    "of": {"x": ["1", 2]},
}

READ = {
    "colour": Colour.RED,
    "size": Size(width=3),
    "place": Place(5),
    "kind": "a",
    "day": dt.date(2026, 2, 3),
    "perhaps": None,
    "note": "n",
    "tags": {"a", "b"},
    "of": {"x": [1, 2]},
}


@pytest.mark.parametrize("tool", [everything, Everything])
def test_the_schema_tells_types_descriptions_limits_and_defaults(tool: Any) -> None:
    schema = parameters(tool)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["additionalProperties"] is False
    assert "title" not in schema
    assert schema["required"] == list(GIVEN)
    assert schema["$defs"]["Colour"] == {"enum": ["red", "blue"], "title": "Colour", "type": "string"}
    assert schema["$defs"]["Size"]["description"] == "How large it is."
    assert schema["$defs"]["Size"]["required"] == ["width"]
    assert schema["$defs"]["Place"]["required"] == ["x"]
    found = schema["properties"]
    assert found["colour"] == {"$ref": "#/$defs/Colour"}
    assert found["kind"] == {"enum": ["a", "b"], "title": "Kind", "type": "string"}
    assert found["day"] == {"format": "date", "title": "Day", "type": "string"}
    assert found["perhaps"] == {"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "Perhaps"}
    assert found["note"] == {"description": "what to note", "maxLength": 3, "title": "Note", "type": "string"}
    assert found["default_note"]["description"] == "what else"
    assert {name: told["default"] for name, told in found.items() if "default" in told} == {
        "default_colour": "blue",
        "default_size": {"width": 1, "height": 1},
        "default_place": {"x": 1, "y": 0},
        "default_kind": "b",
        "default_day": "2026-01-02",
        "default_none": None,
        "default_note": "",
        "default_tags": ["t"],
    }


@pytest.mark.parametrize("given", [GIVEN, json.dumps(GIVEN), json.dumps(GIVEN).encode()], ids=["dict", "str", "bytes"])
@pytest.mark.parametrize("tool", [everything, Everything])
def test_arguments_are_read_into_the_types_of_the_hints(tool: Any, given: Any) -> None:
    read = call(tool, given)
    assert {name: value for name, value in read.items() if name in GIVEN} == READ
    assert read["default_size"] == Size(width=1)
    assert read["default_colour"] is Colour.BLUE


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("tool", [everything, Everything])
def test_all_that_is_wrong_is_listed_and_the_tool_is_not_called(tool: Any, as_json: bool) -> None:
    given: Any = {
        **GIVEN,
        "colour": "green",
        "size": {"height": "x"},
        "kind": "c",
        "note": "long",
        "of": {"x": ["y"]},
        "default_none": "z",
        "unknown": 1,
    }
    del given["day"]
    found = wrong(tool, json.dumps(given) if as_json else given)
    assert sorted(found) == [
        (("colour",), "enum"),
        (("day",), "missing"),
        (("default_none",), "int_parsing"),
        (("kind",), "literal_error"),
        (("note",), "string_too_long"),
        (("of", "x", 0), "int_parsing"),
        (("size", "height"), "int_parsing"),
        (("size", "width"), "missing"),
        (("unknown",), "extra_forbidden"),
    ]


def test_a_default_that_has_no_json_form_is_not_told() -> None:
    nothing: Any = object()

    def search(words: str, limit: int = nothing) -> Any:
        return words, limit

    assert properties(search)["limit"] == {"title": "Limit", "type": "integer"}
    assert parameters(search)["required"] == ["words"]
    assert call(search, {"words": "x"}) == ("x", nothing)


def test_a_default_of_an_annotation_is_one_too() -> None:
    def search(limit: Annotated[int, Field(default=3)]) -> int:
        return limit

    assert properties(search)["limit"]["default"] == 3
    assert "required" not in parameters(search)
    assert call(search, {}) == 3


def test_an_argument_that_is_kept_from_the_model_is_not_told() -> None:
    def search(words: str, limit: SkipJsonSchema[int] = 3) -> Any:
        return words, limit

    assert list(properties(search)) == ["words"]
    assert call(search, {"words": "x"}) == ("x", 3)


def test_an_alias_is_what_the_model_is_told_and_gives() -> None:
    def search(words: Annotated[str, Field(alias="q")], limit: Annotated[int, Field(alias="max")] = 3) -> Any:
        return words, limit

    class Search(AsyncBaseTool):
        words: str = Field(alias="q")
        limit: int = Field(default=3, validation_alias="max")

        async def _arun(self) -> Any:
            return self.words, self.limit

    for tool in (search, Search):
        assert list(properties(tool)) == ["q", "max"]
        assert properties(tool)["max"]["default"] == 3
        assert call(tool, {"q": "x"}) == ("x", 3)
        assert call(tool, {"q": "x", "max": 5}) == ("x", 5)
        assert wrong(tool, {"words": "x"}) == [(("q",), "missing"), (("words",), "extra_forbidden")]


class Tree(AsyncBaseTool):
    """Count what is below."""

    below: list["Tree"] = Field(default_factory=list)

    async def _arun(self) -> int:
        return sum([await tree._arun() for tree in self.below], 1)


def test_a_tool_that_holds_others_of_its_kind_is_told_as_an_object_too() -> None:
    told = only(Tree)
    assert told["description"] == "Count what is below."
    assert told["parameters"]["properties"]["below"]["items"] == {"$ref": "#/$defs/Tree"}
    assert told["parameters"]["$defs"]["Tree"]["type"] == "object"
    assert call(Tree, {"below": [{}, {"below": [{}]}]}) == 4


def test_a_tool_without_arguments_has_a_schema_all_the_same() -> None:
    class Ping(AsyncBaseTool):
        async def _arun(self) -> str:
            return "pong"

    def ping() -> str:
        return "pong"

    for tool in (Ping, ping):
        assert parameters(tool) == {"type": "object", "properties": {}, "additionalProperties": False}
        assert call(tool, {}) == "pong"
        assert wrong(tool, {"a": 1}) == [(("a",), "extra_forbidden")]


def of_later(size: "LaterSize") -> int:
    return size.width


class LaterSize(Size):
    pass


def test_hints_may_be_text_and_may_name_what_is_defined_later() -> None:
    assert call(of_later, {"size": {"width": 4}}) == 4


def test_whoever_changes_what_is_told_changes_it_for_nobody_else() -> None:
    """Makers of models want schemas of their own dialect."""
    for tool in (Add, add, Plain):
        registry = ToolRegistry([tool])
        before = json.dumps(registry.schemas())
        registry.schemas()[0]["parameters"]["properties"].clear()
        registry.schemas()[0]["parameters"]["strict"] = True
        assert json.dumps(registry.schemas()) == before


# Instances.


class Search(AsyncBaseTool):
    """Search."""

    words: str
    limit: int = 3
    key: str = "none"

    _count: list[int] = PrivateAttr(default_factory=list)

    async def _arun(self) -> tuple[str, int, str]:
        self._count.append(self.limit)
        return self.words, self.limit, self.key


def test_what_an_instance_has_need_not_be_given() -> None:
    tool = Search(words="x", key="secret")
    assert parameters(tool).get("required") is None
    assert call(tool, {}) == ("x", 3, "secret")
    assert call(tool, {"words": "y", "limit": "5"}) == ("y", 5, "secret")
    assert call(tool, '{"limit": 5}') == ("x", 5, "secret")
    assert wrong(tool, {"limit": "many", "other": 1}) == [(("limit",), "int_parsing"), (("other",), "extra_forbidden")]
    for arguments in ("[1]", "{", [1], 1):
        [(where, _)] = wrong(tool, arguments)
        assert where == ()
    assert (tool.words, tool.limit, tool.key) == ("x", 3, "secret")


def test_what_an_instance_has_is_not_told() -> None:
    tool = Search(words="x", key="secret")
    assert "secret" not in json.dumps(only(tool))
    assert "default" not in properties(tool)["key"], "what the class says of it does not hold here"
    assert properties(tool)["limit"]["default"] == 3
    assert properties(Search)["key"]["default"] == "none", "nor does what the instance has hold for others"


def test_what_an_instance_lacks_must_be_given() -> None:
    tool = Search.model_construct(limit=5)
    assert parameters(tool)["required"] == ["words"]
    assert call(tool, {"words": "y"}) == ("y", 5, "none")
    assert wrong(tool, {}) == [(("words",), "missing")]


def test_an_instance_keeps_its_private_attributes_and_calls_have_fields_of_their_own() -> None:
    tool = Search(words="x")
    registry = ToolRegistry([tool])
    entry = registry.find("Search")
    assert entry is not None
    first, second = entry.prepare({"limit": 1}), entry.prepare({"limit": 2})
    assert asyncio.run(first()) == ("x", 1, "none")
    assert asyncio.run(second()) == ("x", 2, "none")
    assert tool._count == [1, 2]
    assert tool.limit == 3


def test_an_instance_may_be_frozen() -> None:
    class Frozen(AsyncBaseTool):
        model_config = ConfigDict(frozen=True)

        words: str
        limit: int = 3

        async def _arun(self) -> tuple[str, int]:
            return self.words, self.limit

    assert call(Frozen(words="x"), {"limit": 5}) == ("x", 5)


def test_what_an_instance_has_goes_through_its_validators_once() -> None:
    class Stamped(AsyncBaseTool):
        words: str
        more: str = "more"

        @field_validator("words", "more")
        @classmethod
        def stamp(cls, value: str) -> str:
            return f"<{value}>"

        async def _arun(self) -> tuple[str, str]:
            return self.words, self.more

    assert call(Stamped(words="x"), {}) == ("<x>", "more")
    assert call(Stamped(words="x"), {"more": "y"}) == ("<x>", "<y>")
    assert call(Stamped(words="x"), {"words": "z"}) == ("<z>", "more")


def test_fields_of_an_instance_may_have_aliases_of_every_kind() -> None:
    class Aliased(AsyncBaseTool):
        one: int = Field(alias="ONE")
        two: int = Field(validation_alias="TWO")
        three: int = Field(validation_alias=AliasChoices("THREE", "DREI"))
        four: int = 4

        async def _arun(self) -> list[int]:
            return [self.one, self.two, self.three, self.four]

    given: dict[str, Any] = {"ONE": 1, "TWO": 2, "THREE": 3}
    tool = Aliased(**given)
    assert "required" not in parameters(tool)
    assert call(tool, {}) == [1, 2, 3, 4]
    assert call(tool, {"ONE": 5, "TWO": 6, "THREE": 7, "four": 8}) == [5, 6, 7, 8]


# Calls.


def test_each_call_of_a_class_has_an_instance_of_its_own() -> None:
    entry = ToolRegistry([Search]).find("Search")
    assert entry is not None
    one, two = entry.prepare({"words": "x"}), entry.prepare({"words": "x"})
    assert one.__self__ is not two.__self__  # type: ignore[attr-defined]
    assert one.__self__._count is not two.__self__._count  # type: ignore[attr-defined]


def test_an_init_of_its_own_is_run() -> None:
    class Made(AsyncBaseTool):
        words: str
        _made: str = ""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self._made = f"made of {self.words}"

        async def _arun(self) -> str:
            return self._made

    assert call(Made, {"words": "x"}) == "made of x"
    assert call(Made, '{"words": "x"}') == "made of x"


def test_each_registry_has_an_instance_of_its_own_of_a_class_that_is_no_model() -> None:
    class Counter:
        def __init__(self) -> None:
            self.number = 0

        def run(self) -> int:
            self.number += 1
            return self.number

    one, two = ToolRegistry([Counter]), ToolRegistry([Counter])
    for registry, expected in [(one, 1), (one, 2), (two, 1)]:
        entry = registry.find("Counter")
        assert entry is not None
        assert entry.prepare({})() == expected
    assert isinstance(one.get("Counter"), Counter)
    assert (one.get("Counter").number, two.get("Counter").number) == (2, 1)


def test_what_a_tool_returns_is_handed_on_as_it_is() -> None:
    made = object()

    def give() -> object:
        return made

    assert call(give, {}) is made


def test_what_a_tool_raises_is_handed_on_as_it_is() -> None:
    error = KeyError("x")

    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        call(fail, {})
    assert caught.value is error


# Classes that cannot be built.


def test_a_class_that_cannot_be_built_is_an_error_that_names_it_and_leaves_nothing() -> None:
    class NeedsMore:
        def __init__(self, more: int) -> None: ...

        def run(self) -> None: ...

    class Broken:
        def __init__(self) -> None:
            raise OSError("password=hunter2")

        def run(self) -> None: ...

    for tool, kind in [(NeedsMore, "TypeError"), (Broken, "OSError")]:
        registry = ToolRegistry([add])
        with pytest.raises(ToolDefinitionError) as caught:
            registry.register(tool)
        reason = f"{re.escape(tool.__qualname__)} cannot be built: {kind}"
        assert re.fullmatch(f"the tool {reason}", str(caught.value))
        assert type(caught.value.__cause__).__name__ == kind
        assert registry.list() == ["add"]


# A registry.


def test_a_registry_has_its_tools_in_their_order() -> None:
    registry = ToolRegistry()
    assert (len(registry), registry.list(), list(registry.schemas()), repr(registry)) == (0, [], [], "<ToolRegistry >")
    plain, search = Plain(), Search(words="x")
    for tool in (Add, plain, add, search):
        registry.register(tool)
    assert len(registry) == 4
    assert registry.list() == ["Add", "Plain", "add", "Search"]
    assert [schema["name"] for schema in registry.schemas()] == registry.list()
    assert repr(registry) == "<ToolRegistry Add, Plain, add, Search>"
    assert registry.has("Add")
    assert not registry.has("Sub")
    assert registry.find("Sub") is None
    assert [registry.get(name) for name in registry.list()] == [Add, plain, add, search]
    assert registry.get("Plain") is plain
    assert registry.get("Search") is search


def test_tools_may_come_out_of_any_iterable() -> None:
    assert ToolRegistry(tool for tool in (Add, add)).list() == ["Add", "add"]


def test_what_there_is_none_of_is_an_error_that_says_what_there_is() -> None:
    registry = ToolRegistry([Add, add])
    with pytest.raises(ToolNotFoundError) as caught:
        registry.get("Sub")
    assert str(caught.value) == "there is no tool of that name; there are: Add, add"
    assert caught.value.known == ("Add", "add")
    assert isinstance(caught.value, LookupError)
    with pytest.raises(ToolNotFoundError, match="there is no tool of that name; there are: none"):
        ToolRegistry().get("Sub")


def test_cleared_a_registry_is_empty_and_can_be_filled_again() -> None:
    registry = ToolRegistry([Add, add])
    registry.clear()
    assert (len(registry), registry.list(), registry.has("Add"), registry.schemas()) == (0, [], False, [])
    registry.register(Add)
    assert registry.list() == ["Add"]


def test_two_of_one_name_are_an_error_and_the_first_stays() -> None:
    class Add:
        def run(self) -> None: ...

    ours = globals()["Add"]
    registry = ToolRegistry([ours])
    with pytest.raises(ValueError, match=re.escape("there is a tool 'Add' already: give another name")):
        registry.register(Add)
    assert registry.get("Add") is ours
    with pytest.raises(ValueError, match="there is a tool 'add' already"):
        ToolRegistry([add, functools.partial(add, 1)])


def test_a_name_may_be_given_and_one_tool_may_have_several() -> None:
    registry = ToolRegistry([Add])
    registry.register(Add, name="sum")
    registry.register(Search(words="cats"), name="search_cats")
    registry.register(Search(words="dogs"), name="search_dogs")
    registry.register(lambda: 1, name='one "1"')
    assert registry.list() == ["Add", "sum", "search_cats", "search_dogs", 'one "1"']
    assert [schema["name"] for schema in registry.schemas()] == registry.list()
    for words in ("cats", "dogs"):
        entry = registry.find(f"search_{words}")
        assert entry is not None
        assert asyncio.run(entry.prepare({})()) == (words, 3, "none")


def test_registries_have_nothing_of_each_other() -> None:
    one, two = ToolRegistry([Add]), ToolRegistry([Add])
    one.register(add)
    assert two.list() == ["Add"]
    two.clear()
    assert one.list() == ["Add", "add"]
    assert one.find("Add") is not None


def test_many_threads_may_read_the_same_tool_at_once() -> None:
    found: list[Any] = []
    barrier = threading.Barrier(8)

    def read(number: int) -> None:
        barrier.wait(20)
        found.append(call(everything, {**GIVEN, "note": str(number)})["note"])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == [str(number) for number in range(8)]


def test_ids_that_a_model_made_up_are_refused_by_their_type() -> None:
    def look_up(key: uuid.UUID, share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0) -> Any:
        return key, share

    key = uuid.uuid4()
    assert call(look_up, {"key": str(key)}) == (key, 1.0)
    assert wrong(look_up, {"key": "first", "share": math.nan}) == [
        (("key",), "uuid_parsing"),
        (("share",), "finite_number"),
    ]


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        (5, TypeError, "a tool's name must be a str, not int"),
        (b"add", TypeError, "a tool's name must be a str, not bytes"),
        ("", ValueError, "a tool's name must not be empty"),
    ],
)
def test_a_name_is_a_str_that_is_not_empty(name: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ToolRegistry().register(Add, name=name)


def test_a_default_that_can_be_changed_is_each_call_s_own() -> None:
    def collect(x: list[int] = [], more: dict[str, int] = {}) -> Any:  # noqa: B006 - as it may be written
        x.append(1)
        more["a"] = len(more)
        return x, more

    entry = ToolRegistry([collect]).find("collect")
    assert entry is not None
    for given in ({}, "{}", {"x": []}):
        assert entry.prepare(given)() == ([1], {"a": 0})
    assert collect.__defaults__ == ([], {})


def test_a_default_that_cannot_be_copied_is_an_error_at_start_up() -> None:
    def locked(locks: list[Any] = [threading.Lock()]) -> None: ...  # noqa: B006, B008 - as it may be written

    with pytest.raises(ToolDefinitionError, match="locked has a default that can be changed, and not be copied"):
        ToolRegistry([locked])


def test_a_decorator_that_says_what_it_takes_is_taken_at_its_word() -> None:
    def inner(place: int) -> None: ...

    @functools.wraps(inner)
    def outer(**given: Any) -> Any:
        return given

    told: Any = outer
    told.__signature__ = inspect.Signature([
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=str) for name in ("town", "place")
    ])
    properties = only(outer)["parameters"]["properties"]
    assert {name: one["type"] for name, one in properties.items()} == {"town": "string", "place": "string"}
    entry = ToolRegistry([outer]).find("inner")
    assert entry is not None
    assert entry.prepare({"town": "a", "place": "b"})() == {"town": "a", "place": "b"}


def test_what_a_function_returns_need_not_be_known() -> None:
    def find(a: "int") -> "Unknown":  # type: ignore[name-defined]
        ...

    assert only(find)["parameters"]["properties"] == {"a": {"title": "A", "type": "integer"}}
