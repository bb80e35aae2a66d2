"""The package as a whole: what it imports, what it promises, what its errors are, what its documents say."""

import ast
import doctest
import inspect
import json
import pickle
import pkgutil
import pydoc
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_origin

import pytest
from driver import Exchange, websocket
from matrix import FRAMEWORKS, SERVERS
from resources import turns

import asgi_context
from asgi_context import errors

ROOT = Path(__file__).parent.parent


EXTRAS = tuple(
    f"asgi_context.{name}"
    for name in (
        *("_pytest", "expansion", "fastapi", "jwt", "mcp", "otel", "quart", "redis", "sentry", "structlog", "tools"),
    )
)


def test_it_imports_nothing_outside_the_standard_library() -> None:
    """But for the modules of the extras, which are imported by nobody else."""
    modules = [
        module.name
        for module in pkgutil.walk_packages(asgi_context.__path__, "asgi_context.")
        if not module.name.startswith(EXTRAS)
    ]
    code = f"""
import sys
before = set(sys.modules)
for name in {["asgi_context", *modules]!r}:
    __import__(name)
roots = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(roots - set(sys.stdlib_module_names) - {{"asgi_context", "__mp_main__"}}))
"""  # which is the name under which multiprocessing finds the main module
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


MODULES: list[Any] = [
    asgi_context,
    *(
        import_module(f"asgi_context.{module.name}")
        for module in pkgutil.iter_modules(asgi_context.__path__)
        if not module.name.startswith("_")
    ),
]


def test_the_version_is_that_of_the_distribution() -> None:
    assert asgi_context.__version__ == version("asgi-tenant-context")
    with pytest.raises(AttributeError, match="no attribute 'anything'"):
        _ = asgi_context.anything


# Docstrings: what `help()` shows of all that has no underscore

NAMED = {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES for name in module.__all__}
CLASSES = {name: thing for name, thing in NAMED.items() if inspect.isclass(thing)}
MEMBERS = {
    f"{name}.{member}": getattr(thing, "__func__", thing)
    for name, kind in CLASSES.items()
    for member, thing in vars(kind).items()
    if not member.startswith("_")
}
PROPERTIES = {name: thing for name, thing in MEMBERS.items() if isinstance(thing, property)}
FUNCTIONS = {name: thing for name, thing in (NAMED | MEMBERS).items() if inspect.isfunction(thing)}
DOCUMENTED = {module.__name__: module for module in MODULES} | NAMED | FUNCTIONS | PROPERTIES


def sections(thing: Any) -> dict[str, str]:
    """A docstring in Google form, by its headings; what stands before the first has none."""
    headings = r"^(Args|Returns|Yields|Raises|Example):$"
    parts = re.split(headings, inspect.getdoc(thing) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(thing: Any, heading: str) -> list[str]:
    return re.findall(r"^    (\*{0,2}[\w.]+): \S", sections(thing).get(heading, ""), re.MULTILINE)


def parameters_of(thing: Any) -> list[str]:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(thing).parameters.values()
    return [stars.get(each.kind, "") + each.name for each in parameters if each.name not in {"self", "cls"}]


def told_elsewhere(thing: Any) -> str | None:
    """Where a method says that the same is told: ``see `Store`.`` at the end of its sentence."""
    said = re.search(r"; see `([\w.]+)`\.$", sections(thing)[""].partition("\n\n")[0].strip())
    return said and said[1]


def public(name: str, beside: str) -> Any:
    """What a docstring calls by that name: of the package, of the class that it stands in, or of Python."""
    first, _, rest = name.partition(".")
    for place in (beside, beside.rpartition(".")[0]):
        found = getattr(DOCUMENTED.get(place), first, None)
        if found is not None and not rest:
            return found
    for known, thing in NAMED.items():
        if known.rpartition(".")[2] == first:
            return getattr(thing, rest, None) if rest else thing
    return DOCUMENTED.get(name) or pydoc.locate(name)


def told_in_source(name: str) -> str:
    """What stands below an alias, which has no docstring of its own."""
    module, _, alias = name.rpartition(".")
    body = ast.parse(inspect.getsource(import_module(module))).body
    after = {statement.target.id: following for statement, following in pairwise(body) if is_alias(statement)}
    told = after.get(alias)
    return ast.literal_eval(told.value) if isinstance(told, ast.Expr) else ""


def is_alias(statement: Any) -> bool:
    return isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)


def test_every_public_name_says_in_a_sentence_what_it_is() -> None:
    def wrong(name: str, thing: Any) -> bool:
        text = told_in_source(name) if get_origin(thing) is Annotated else inspect.getdoc(thing) or ""
        sentence = text.partition("\n\n")[0]
        ours = type(thing).__module__.startswith("asgi_context")
        of_its_own = inspect.isroutine(thing) or text != inspect.getdoc(type(thing)) or ours
        return not (of_its_own and re.fullmatch(r"[A-Z`][^\n]{10,}[.:]", sentence))

    assert [name for name, thing in DOCUMENTED.items() if wrong(name, thing)] == []


def test_the_package_names_its_modules() -> None:
    assert {module.__name__ for module in MODULES[1:]} == set(
        re.findall(r"`(asgi_context\.\w+)`", inspect.getdoc(asgi_context) or "")
    )


def test_what_docstrings_refer_to_is_there() -> None:
    missing = []
    for name, thing in DOCUMENTED.items():
        text = re.sub(r"``.*?``", "", inspect.getdoc(thing) or "", flags=re.DOTALL)
        referred = re.findall(r"`([\w.]+)`", text)
        missing += [(name, other) for other in referred if public(other, name) is None]
        raised = [(other, public(other, name)) for other in entries(thing, "Raises")]
        missing += [
            (name, other) for other, error in raised if not (inspect.isclass(error) and issubclass(error, Exception))
        ]
    assert missing == []


def test_every_function_says_what_it_takes_and_what_it_gives() -> None:
    wrong = []
    for name, function in FUNCTIONS.items():
        if told_elsewhere(function):
            continue
        gives = inspect.signature(function).return_annotation not in {None, "None", NoReturn}
        said = sections(function)
        if entries(function, "Args") != parameters_of(function) or gives != bool({"Returns", "Yields"} & said.keys()):
            wrong.append(name)
    assert wrong == []


def test_every_class_says_what_it_is_made_of() -> None:
    made = {
        name: kind
        for name, kind in CLASSES.items()
        if "__init__" in vars(kind) and not getattr(kind, "_is_protocol", False)
    }  # others take what their base class takes
    assert [name for name, kind in made.items() if entries(kind, "Args") != parameters_of(kind)] == []


def test_attributes_are_told_by_their_class_or_by_themselves() -> None:
    untold = [
        f"{name}.{member}"
        for name, kind in CLASSES.items()
        for member, thing in inspect.getmembers_static(kind, inspect.ismemberdescriptor)
        if not member.startswith("_") and not inspect.getdoc(thing) and member not in entries(kind, "Args")
    ]
    assert untold == []


def test_examples_in_docstrings_run() -> None:
    runner = doctest.DocTestRunner()
    for name, thing in DOCUMENTED.items():
        for example in doctest.DocTestFinder(recurse=False).find(thing, name, globs={}):
            runner.run(example)
    results = runner.summarize(verbose=False)
    assert results.failed == 0
    assert results.attempted > 30  # else they are no longer found


def test_a_default_that_stands_for_none_is_shown_as_such() -> None:
    assert str(inspect.signature(asgi_context.current_context)).startswith("(default: object = ..., /)")


# Errors

ERRORS = {
    "AsgiContextError": errors.AsgiContextError("x"),
    "BridgeClosedError": errors.BridgeClosedError(),
    "BridgeError": errors.BridgeError("x"),
    "BridgeLoopError": errors.BridgeLoopError(),
    "BridgeNotBoundError": errors.BridgeNotBoundError(),
    "BridgeNotOpenError": errors.BridgeNotOpenError(),
    "CarrierAudienceError": errors.CarrierAudienceError(),
    "CarrierContentError": errors.CarrierContentError(),
    "CarrierError": errors.CarrierError(),
    "CarrierExpiredError": errors.CarrierExpiredError(),
    "CarrierFormatError": errors.CarrierFormatError(),
    "CarrierSignatureError": errors.CarrierSignatureError(),
    "CarrierTooLargeError": errors.CarrierTooLargeError(),
    "CarrierUnsignedError": errors.CarrierUnsignedError(),
    "CarrierVersionError": errors.CarrierVersionError(),
    "ConnectionClosedError": errors.ConnectionClosedError(4401, "identity_expired"),
    "ContextClosedError": errors.ContextClosedError("values", "ended"),
    "ContextLeftError": errors.ContextLeftError(["asgi_context"], "acme", "ann"),
    "ContextNotBoundError": errors.ContextNotBoundError("context"),
    "ExpansionAmbiguousError": errors.ExpansionAmbiguousError("server.url", "HOST"),
    "ExpansionDocumentError": errors.ExpansionDocumentError("line 3, column 5", "reason"),
    "ExpansionError": errors.ExpansionError("x"),
    "ExpansionForbiddenError": errors.ExpansionForbiddenError("server.url", "HOST", "env_names="),
    "ExpansionSyntaxError": errors.ExpansionSyntaxError("server.url", 3, "reason"),
    "ExpansionTypeError": errors.ExpansionTypeError("server.url", "reason"),
    "ExpansionUnsetError": errors.ExpansionUnsetError("server.url", "HOST", empty=True, message="set it"),
    "ExtractorError": errors.ExtractorError("x"),
    "ExtractorTypeError": errors.ExtractorTypeError("call", "int", "str"),
    "JobError": errors.JobError("StopIteration"),
    "JobPickleError": errors.JobPickleError("job", "reason"),
    "JobTracebackError": errors.JobTracebackError("Traceback (most recent call last):"),
    "MessagesNotBoundError": errors.MessagesNotBoundError(),
    "PoolClosedError": errors.PoolClosedError("tool"),
    "PoolError": errors.PoolError("tool"),
    "PoolFullError": errors.PoolFullError("tool"),
    "PoolNotFoundError": errors.PoolNotFoundError("tool"),
    "PoolWaitError": errors.PoolWaitError("tool", "tool"),
    "ProcessContextError": errors.ProcessContextError("resources"),
    "ProcessDiedError": errors.ProcessDiedError(-9, "running"),
    "ProcessError": errors.ProcessError("x"),
    "ProcessStartError": errors.ProcessStartError("reason"),
    "ConnectionNotBoundError": errors.ConnectionNotBoundError(),
    "RequestRejected": errors.RequestRejected(400, "bad", headers=[("a", "b")]),
    "ResourceCloseError": errors.ResourceCloseError([errors.ResourceTimeoutError("Session")]),
    "ResourceCycleError": errors.ResourceCycleError("Session"),
    "ResourceError": errors.ResourceError("Session"),
    "ResourceLoopError": errors.ResourceLoopError("Session"),
    "ResourceNotFoundError": errors.ResourceNotFoundError("Session"),
    "ResourceTimeoutError": errors.ResourceTimeoutError("Session"),
    "ScopeKeyMissingError": errors.ScopeKeyMissingError("user"),
    "StateBlockingError": errors.StateBlockingError(),
    "StateConflictError": errors.StateConflictError("cart", 100),
    "StateDecodeError": errors.StateDecodeError("cart", "field 'items'", "reason"),
    "StateError": errors.StateError("x"),
    "StateLimitError": errors.StateLimitError("states", 5),
    "StateNumberError": errors.StateNumberError("cart", "items", "type"),
    "StateSerializationError": errors.StateSerializationError("s", "f", "reason"),
    "StateNotConfirmedError": errors.StateNotConfirmedError(0, 1),
    "StateUnavailableError": errors.StateUnavailableError("reason"),
    "StoreNotBoundError": errors.StoreNotBoundError(),
    "StoreNotSharedError": errors.StoreNotSharedError("MemoryStore", "reason"),
    "ToolBlockingError": errors.ToolBlockingError("run()", "await tool.arun()"),
    "ToolCallNotBoundError": errors.ToolCallNotBoundError(),
    "ToolDefinitionError": errors.ToolDefinitionError("Remember", "has no hint"),
    "ToolError": errors.ToolError("There is no such order.", code="order_missing"),
    "ToolNotFoundError": errors.ToolNotFoundError(("Remember",)),
    "ToolOwnerError": errors.ToolOwnerError(),
    "ToolRunError": errors.ToolRunError("Remember", "reason"),
    "ToolTimeoutError": errors.ToolTimeoutError("Remember", "reason"),
    "UnsupportedLoopError": errors.UnsupportedLoopError("call"),
}


def test_all_errors_stand_in_one_tree_that_the_docstring_draws() -> None:
    classes = {
        name: thing for name, thing in vars(errors).items() if inspect.isclass(thing) and issubclass(thing, Exception)
    }
    assert sorted(classes) == sorted(errors.__all__) == sorted(ERRORS)
    assert all(issubclass(thing, errors.AsgiContextError) for thing in classes.values())
    drawn = re.findall(r"^    ([│├└─ ]*)(\w+)", errors.__doc__ or "", re.MULTILINE)
    assert sorted(name for _, name in drawn) == sorted(classes)
    line: list[str] = []
    for rails, name in drawn:
        depth = len(rails) // 4
        line[depth:] = [name]
        parent = line[depth - 1] if depth else "Exception"
        assert classes[name].__mro__[1].__name__ == parent, name


@pytest.mark.parametrize("name", ERRORS)
def test_errors_survive_being_pickled(name: str) -> None:
    error = ERRORS[name]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_errors_are_also_what_python_would_raise() -> None:
    assert issubclass(errors.ContextNotBoundError, LookupError)
    assert issubclass(errors.ScopeKeyMissingError, LookupError)
    assert issubclass(errors.StateSerializationError, TypeError)
    assert issubclass(errors.ExtractorTypeError, TypeError)
    for error in (errors.ContextClosedError, errors.JobError, errors.UnsupportedLoopError):
        assert issubclass(error, RuntimeError)


# Documents


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)


DOCUMENTS = ["README.md", *(f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.md")))]


@pytest.mark.parametrize(
    ("document", "number"),
    [(document, number) for document in DOCUMENTS for number in range(len(blocks(document, "python")))],
)
def test_the_snippets_of_the_documents_run(
    document: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARRIER_SECRET", "not a secret, but long enough for one")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(blocks(document, "python")[number], "utf-8")
    result = subprocess.run(
        [sys.executable, "-W", "error", str(snippet)], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_the_links_of_the_documents_lead_somewhere(document: str) -> None:
    here = ROOT / document
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", here.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        there = here.parent / path if path else here
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def table(document: str, heading: str) -> dict[str, str]:
    """The rows of a table below a heading, by their first cells, without links."""
    below = (ROOT / document).read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", below, re.MULTILINE)
    return {re.sub(r"\[(.*)\]\(.*\)", r"\1", first): rest for first, rest in rows}


def test_the_readme_has_every_framework_and_server_that_is_tested() -> None:
    frameworks = {name.partition(" ")[0] for name in table("README.md", "Frameworks")}
    assert frameworks - {"Framework", "---", "any"} == set(FRAMEWORKS)
    servers = table("README.md", "Servers")
    assert servers.keys() - {"Server", "---"} == {row.partition(",")[0] for row in SERVERS}
    for row in SERVERS:
        name, *variant = row.removesuffix(", Redis").split(", ")
        variants = re.sub(r" \(.*?\)", "", servers[name].partition(" | ")[0])
        assert set(variant) <= set(re.split("[;,] ", variants)), row


def test_the_guide_lists_every_example() -> None:
    guide = (ROOT / "examples" / "README.md").read_text("utf-8").partition("\n## Examples\n")[2]
    examples = {path.name for path in (ROOT / "examples").iterdir() if not path.name.startswith(("_", "README"))}
    assert examples <= {link.partition("/")[0] for link in re.findall(r"\]\(([^)]+)\)", guide)}


@pytest.mark.anyio
@pytest.mark.usefixtures("asyncio_only")
async def test_the_guide_s_chat_with_tools_answers_its_client() -> None:
    (snippet,) = (block for block in blocks("examples/README.md", "python") if "ToolSystemFactory(" in block)
    made: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(snippet, "snippet", "exec", dont_inherit=True), made)
    text = '{"tenant_id": "acme", "user_id": "ann"}'
    exchange = Exchange([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": text}])

    async def receive() -> dict[str, Any]:
        if not exchange.to_receive:
            await turns()  # the client goes when it has its answer
            return {"type": "websocket.disconnect", "code": 1000}
        return await exchange.receive()

    await made["app"](websocket(), receive, exchange.send)
    told = [json.loads(message["text"]) for message in exchange.sent if message["type"] == "websocket.send"]
    assert [event["type"] for event in told] == ["tool_started", "tool_completed", "answer"]
    assert told[-1]["text"] == "I will remember green."


def test_the_readmes_commands_are_one_line_each() -> None:
    commands = [block.strip() for block in blocks("README.md", "sh")]
    for command in commands[:2]:
        assert "\n" not in command
        assert command.startswith("python3 -m venv .venv && ")


def test_the_readme_warns_of_the_package_of_the_same_import_name() -> None:
    assert "asgi-context" in (ROOT / "README.md").read_text("utf-8")


def test_the_changelog_has_the_version_and_the_newest_first() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert versions[0] in {"Unreleased", asgi_context.__version__}
    assert asgi_context.__version__ in versions
