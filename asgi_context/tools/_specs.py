"""What can be used as a tool: what the model is told of it, and how it is called.

It is found out once, from the hints; each request then has entries of its own that point there.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, NotRequired, TypeAlias, TypeVar, cast, get_type_hints

from pydantic import BaseModel, TypeAdapter, with_config
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict  # of `typing` from Python 3.12 on, which pydantic insists on

from asgi_context._callables import runs_later
from asgi_context.errors import ToolDefinitionError
from asgi_context.tools._base import AsyncBaseTool, own_method
from asgi_context.tools._events import encode

Arguments: TypeAlias = Mapping[str, Any] | str | bytes
"""By name; or the JSON text of an object, as models write it."""

Call: TypeAlias = Callable[[], Any]

_T = TypeVar("_T")

_METHODS: Final = ("__call__", "arun", "run")
"""What of an object is called, the first that there is."""

_SEVERAL: Final = {
    inspect.Parameter.POSITIONAL_ONLY: "which can only be given by position",
    inspect.Parameter.VAR_POSITIONAL: "of any number",
    inspect.Parameter.VAR_KEYWORD: "of any name",
}


class Spec(ABC):
    """One tool, as its class or function has it.

    Args:
        name: its name.
        description: what the model is told of it.
        parameters: the JSON schema of its arguments (JSON Schema 2020-12).
        waits: whether calling it gives a coroutine.
    """

    def __init__(self, name: str, description: str, parameters: dict[str, Any], *, waits: bool) -> None:
        self.name = name
        self.json_name = encode(name)
        self.description = description
        self.parameters = parameters
        self.waits = waits

    @abstractmethod
    def entry(self) -> "Entry":
        """Make what one registry has of it.

        Returns:
            An entry, of which no other registry has anything.
        """

    def schema(self) -> dict[str, Any]:
        """Give what a model is told.

        Returns:
            Its name, description and parameters. Whoever adapts them to a model changes nobody else's.
        """
        return {"name": self.name, "description": self.description, "parameters": deepcopy(self.parameters)}


class Entry:
    """A tool in a registry.

    Args:
        spec: what it is.
        tool: what was registered: a class, an instance or a function.
        prepare: checks arguments, and gives what calls the tool with them. It raises pydantic's ``ValidationError``.
    """

    __slots__ = ("prepare", "spec", "tool", "waits")

    def __init__(self, spec: Spec, tool: object, prepare: Callable[[Arguments], Call]) -> None:
        self.spec = spec
        self.tool = tool
        self.prepare = prepare
        self.waits = spec.waits


class _ModelSpec(Spec):
    """A pydantic model, of which each call makes an instance; perhaps after the pattern of one."""

    def __init__(self, tool: "type[BaseModel] | BaseModel", name: str | None) -> None:
        model = tool if isinstance(tool, type) else type(tool)
        self.tool = tool
        self._model = model
        self._method, waits = _method_of(model)
        schema = _told(model.__qualname__, lambda: _object(model.model_json_schema()))
        if "properties" not in schema:
            raise ToolDefinitionError(model.__qualname__, "takes no arguments by name")
        self._keys = _told(model.__qualname__, lambda: _keys(schema, _object(model.model_json_schema(by_alias=False))))
        given: dict[str, Any] = {}
        if not isinstance(tool, type):
            given = {self._keys.get(n, n): getattr(tool, n) for n in tool.model_fields_set & model.model_fields.keys()}
            for key in given.keys() & schema["properties"].keys():  # nor what it is: it may be a secret
                schema["properties"][key].pop("default", None)
            required = [n for n in schema.pop("required", []) if n not in given]
            if required:
                schema["required"] = required
        self._given = given
        schema.pop("title", None)
        description = schema.pop("description", "")
        super().__init__(name or model.__name__, description, schema, waits=waits)

    def entry(self) -> Entry:
        return Entry(self, self.tool, self._prepare)

    def _prepare(self, arguments: Arguments) -> Call:
        if isinstance(self.tool, type):
            validator = self._model.__pydantic_validator__
            if isinstance(arguments, str | bytes):
                made = validator.validate_json(arguments)
            else:
                made = validator.validate_python(arguments)
            return cast("Call", getattr(made, self._method))
        arguments = named(arguments)
        made = self._model.model_validate({**self._given, **arguments})
        # What the instance has went through the validators when it was made, and need not stand them twice.
        kept = self._given.keys() - arguments.keys()
        fields = {n: getattr(made, n) for n in self._model.model_fields if self._keys.get(n, n) not in kept}
        return cast("Call", getattr(self.tool.model_copy(update=fields), self._method))


_OBJECT: Final[TypeAdapter[dict[str, Any]]] = TypeAdapter(dict[str, Any])


class _FunctionSpec(Spec):
    """A function, or a method of an object that is no model."""

    def __init__(
        self,
        tool: Any,  # noqa: ANN401 - any callable
        function: Callable[..., Any],
        owner: str,
        name: str | None,
        method: str = "",
    ) -> None:
        self.tool = tool
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError) as error:  # of many that are written in C
            raise ToolDefinitionError(owner, "has no signature that can be read") from error
        if isinstance(tool, type) and not isinstance(inspect.getattr_static(tool, method), staticmethod):
            parameters = parameters[1:]  # self
        arguments = _arguments_of(function, parameters, owner)
        adapter: TypeAdapter[Any] = _told(owner, lambda: TypeAdapter(arguments))
        schema: dict[str, Any] = _told(owner, adapter.json_schema)
        schema.pop("title", None)
        keys = _told(owner, lambda: _keys(schema, adapter.json_schema(by_alias=False)))
        for parameter in parameters:
            if parameter.default is not parameter.empty and parameter.name in keys:
                _note_default(schema["properties"][keys[parameter.name]], parameter.default)
        waits = _waits(owner, function)
        # Which the function would share with all its callers.
        own = [p for p in parameters if isinstance(p.default, list | dict | set | bytearray)]
        self._own: dict[str, Any] = {p.name: _copied(owner, p.default) for p in own}
        self._validator = adapter.validator
        self._function = function
        self._method = method
        description = _own_doc(tool if isinstance(tool, type) else type(tool)) if method else ""
        super().__init__(name or owner, description or inspect.getdoc(_inner(function)) or "", schema, waits=waits)

    def entry(self) -> Entry:
        tool, function = self.tool, self._function
        if isinstance(tool, type):
            try:
                tool = tool()
            except Exception as error:
                raise ToolDefinitionError(tool.__qualname__, f"cannot be built: {type(error).__qualname__}") from error
            function = getattr(tool, self._method)
        return Entry(self, tool, partial(self._prepare, function))

    def _prepare(self, function: Callable[..., Any], arguments: Arguments) -> Call:
        validator = self._validator
        if isinstance(arguments, str | bytes):
            given = validator.validate_json(arguments)
        else:
            given = validator.validate_python(arguments)
        for name, default in self._own.items():
            if name not in given:
                given[name] = deepcopy(default)
        return partial(function, **given)


def named(arguments: Arguments) -> Mapping[str, Any]:
    """Read arguments, which may be JSON text.

    Args:
        arguments: the arguments.

    Returns:
        The same, by name.

    Raises:
        pydantic.ValidationError: they are no JSON object.
    """
    if isinstance(arguments, str | bytes):
        return _OBJECT.validate_json(arguments)
    return _OBJECT.validate_python(arguments)


def spec_of(tool: Any, name: str | None = None) -> Spec:  # noqa: ANN401 - whatever was given
    """Find out how a tool is to be used.

    Args:
        tool: a class, an instance or a function.
        name: what to call it; by default, what the class or the function is called.

    Returns:
        What it is.

    Raises:
        ToolDefinitionError: it cannot be used as a tool.
        TypeError: the name is no str.
        ValueError: the name is empty.
    """
    if name is not None and type(name) is not str:
        message = f"a tool's name must be a str, not {type(name).__qualname__}"
        raise TypeError(message)
    if name is not None and not name:
        raise ValueError("a tool's name must not be empty")
    kind: type[Any] = tool if isinstance(tool, type) else type(tool)
    if inspect.isabstract(kind):
        lacking = ", ".join(sorted(kind.__abstractmethods__))
        raise ToolDefinitionError(kind.__qualname__, f"is abstract: it does not define {lacking}")
    if issubclass(kind, BaseModel):
        return _ModelSpec(tool, name)
    given: Any = tool
    if inspect.isroutine(given) or isinstance(given, partial):
        return _FunctionSpec(tool, tool, getattr(_inner(tool), "__name__", "partial"), name)
    for method in _METHODS:
        # Of a class: what its instances have. `type` itself has a `__call__`, which is not meant.
        if inspect.isfunction(getattr(kind, method, None)):
            return _FunctionSpec(tool, getattr(tool, method), kind.__name__, name, method)
    raise ToolDefinitionError(kind.__qualname__, f"has none of the methods {', '.join(_METHODS)}, and is no function")


def _method_of(model: type[Any]) -> tuple[str, bool]:
    if issubclass(model, AsyncBaseTool):
        own = own_method(model)
        if own is None:
            raise ToolDefinitionError(model.__qualname__, "defines neither `async def _arun(self)` nor `run(self)`")
        waits = _waits(model.__qualname__, getattr(model, own))
        if own == "_arun" and not waits:
            raise ToolDefinitionError(model.__qualname__, "must define `async def _arun(self)`, or `def run(self)`")
        return own, waits
    for method in _METHODS:
        found = getattr(model, method, None)
        if inspect.isfunction(found):
            return method, _waits(model.__qualname__, found)
    raise ToolDefinitionError(model.__qualname__, f"has none of the methods {', '.join(_METHODS)}")


def _waits(owner: str, function: Callable[..., Any]) -> bool:
    later = runs_later(function)
    if later == "a generator function":
        raise ToolDefinitionError(owner, "is a generator function, of which nothing would run")
    return later is not None


def _inner(function: Any) -> Any:  # noqa: ANN401 - any callable
    while isinstance(function, partial):
        function = function.func
    return function


def _own_doc(kind: type[Any]) -> str:
    # Not that of a base class, such as `Generic`; nor what `dataclass` writes where there is none.
    doc = kind.__doc__ or ""
    return "" if doc.startswith(f"{kind.__name__}(") else inspect.cleandoc(doc)


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    # Of a model that holds others of its own kind it is only a reference, which models are not told of by their makers.
    reference = schema.get("$ref")
    return schema if reference is None else {**schema["$defs"][reference.rpartition("/")[2]], "$defs": schema["$defs"]}


def _keys(schema: dict[str, Any], by_name: dict[str, Any]) -> dict[str, str]:
    # What each argument is called in the schema, where it may have an alias.
    return dict(zip(by_name["properties"], schema["properties"], strict=True))


def _arguments_of(function: Callable[..., Any], parameters: list[inspect.Parameter], owner: str) -> Any:  # noqa: ANN401 - a TypedDict
    inner = _inner(function)
    if not inspect.isroutine(inner):
        inner = inner.__call__
    inner = inspect.unwrap(inner, stop=lambda one: hasattr(one, "__signature__"))  # as it is for the parameters
    given = {one.name: one.annotation for one in parameters if one.annotation is not one.empty}
    read = SimpleNamespace(
        __annotations__=given,
        __globals__=getattr(inner, "__globals__", {}),
        __type_params__=getattr(inner, "__type_params__", ()),
    )
    try:
        hints = get_type_hints(read, include_extras=True)
    except Exception as error:
        raise ToolDefinitionError(owner, f"has a hint that cannot be resolved: {type(error).__qualname__}") from error
    fields: dict[str, Any] = {}
    for parameter in parameters:
        name = parameter.name
        if parameter.kind in _SEVERAL:
            raise ToolDefinitionError(owner, f"takes arguments {_SEVERAL[parameter.kind]} ({name})")
        if isinstance(parameter.default, FieldInfo):
            raise ToolDefinitionError(owner, f"must say what {name} is by Annotated[..., Field(...)], not by a default")
        if name not in hints:
            raise ToolDefinitionError(owner, f"has no hint that says what {name} is")
        fields[name] = hints[name] if parameter.default is parameter.empty else NotRequired[hints[name]]
    return with_config({"extra": "forbid"})(TypedDict(owner, fields))  # type: ignore[operator]


def _told(owner: str, make: Callable[[], _T]) -> _T:
    try:
        return make()
    except Exception as error:  # whatever a hint, or what it is annotated with, raises
        raise ToolDefinitionError(owner, "has an argument that no JSON schema can be made for") from error


def _copied(owner: str, default: _T) -> _T:
    try:
        return deepcopy(default)
    except Exception as error:
        raise ToolDefinitionError(owner, "has a default that can be changed, and not be copied") from error


def _note_default(schema: dict[str, Any], default: object) -> None:
    try:
        schema["default"] = to_jsonable_python(default)
    except Exception:  # noqa: BLE001 - of whatever type it is: then the model is not told of it
        schema.pop("default", None)
