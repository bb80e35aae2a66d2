"""The package as a whole: what it imports, what it promises, what its errors are, what its documents say."""

import inspect
import json
import pickle
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from driver import Exchange, websocket
from resources import turns

import asgi_context
from asgi_context import errors

ROOT = Path(__file__).parent.parent


EXTRAS = tuple(
    f"asgi_context.{name}"
    for name in ("_pytest", "expansion", "jwt", "mcp", "otel", "quart", "redis", "sentry", "structlog", "tools")
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
    errors,
    *(
        import_module(f"asgi_context.{name}")
        for name in [
            "values",
            "expansion",
            "httpx",
            "logging",
            "mcp",
            "otel",
            "processes",
            "propagation",
            "quart",
            "sentry",
            "structlog",
            "testing",
        ]
    ),
]


def test_the_names_that_are_promised_are_there() -> None:
    for module in MODULES:
        for name in module.__all__:
            assert getattr(module, name).__doc__, name


def test_the_version_is_that_of_the_distribution() -> None:
    assert asgi_context.__version__ == version("asgi-tenant-context")
    with pytest.raises(AttributeError, match="no attribute 'anything'"):
        _ = asgi_context.anything


def public_callables() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            found[name] = thing
            if inspect.isclass(thing):
                for method, function in vars(thing).items():
                    if not method.startswith("_") and inspect.isfunction(function):
                        found[f"{name}.{method}"] = function
    return {name: thing for name, thing in found.items() if callable(thing)}


PUBLIC = public_callables()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_callable_says_what_its_arguments_are(name: str) -> None:
    thing = PUBLIC[name]
    documentation = inspect.getdoc(thing) or ""
    assert documentation
    if name.startswith(("Store", "Extractor", "MemoryStore.")) or thing in vars(errors).values():
        return  # protocols say it in one sentence; errors are made by the package
    if inspect.isclass(thing) and "__init__" not in vars(thing):
        return  # it takes what its base class takes, and says so
    parameters = [
        parameter.name
        for parameter in inspect.signature(thing).parameters.values()
        if parameter.name not in {"self", "cls"}
    ]
    for parameter in parameters:
        assert re.search(rf"^ +\*{{0,2}}{parameter}: ", documentation, re.MULTILINE), (name, parameter)
    if parameters:
        assert "Args:" in documentation


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


@pytest.mark.anyio
@pytest.mark.usefixtures("asyncio_only")
async def test_the_readme_s_chat_with_tools_answers_its_client() -> None:
    (snippet,) = (block for block in blocks("README.md", "python") if "ToolSystemFactory(" in block)
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
