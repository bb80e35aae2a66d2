"""What filling the references of a document costs, beside OmegaConf and expandvars.

Run by ``python tests/benchmarks/expansion.py``; how it is measured stands in ``turns.py``. The document is that of an
agent: 50 scalars, 20 of which hold a reference, half of them of the request and half of the environment, five with a
default. OmegaConf resolves its own syntax, by a resolver for each of the two sources. expandvars fills texts: once by
text, before YAML is parsed (where a value may change the structure), and once each scalar of a parsed document. Ours
looks names up in what is bound; the others are handed a dictionary.
"""

import os
import statistics
from collections.abc import Awaitable, Callable
from typing import Any

import yaml
from expandvars import expand as expandvars
from omegaconf import OmegaConf
from turns import Prepare, Run, Variants, measured

from asgi_context import Identity, bind_context
from asgi_context.expansion import Template, expand, load_yaml

OURS = "asgi_context"
REQUEST = {f"JOB_{number}": f"job-{number}" for number in range(10)}
ENVIRON = {f"SERVICE_{number}": f"https://{number}.example.com" for number in range(10)}
ALL = {**ENVIRON, **REQUEST}
PLAIN = 6  # scalars without a reference, in each of 5 groups


def document(of_values: str, of_env: str, default: str) -> dict[str, Any]:
    """Make the document, with references written as these patterns say."""
    groups: dict[str, Any] = {}
    for group in range(5):
        first, second = 2 * group, 2 * group + 1
        groups[f"group_{group}"] = {
            **{f"plain_{number}": f"text {number}" if number % 2 else number for number in range(PLAIN)},
            "namespace": of_values.format(f"JOB_{first}"),
            "label": "job " + of_values.format(f"JOB_{second}") + " of the agent",
            "endpoints": [{"url": of_env.format(f"SERVICE_{first}") + "/v1"}],
            "fallback": default.format(f"SERVICE_{second}"),
        }
    return groups


DOCUMENT = document("${{{}}}", "${{{}}}", "${{{}:-https://example.com}}")
OMEGA = document("${{ctx:{}}}", "${{oc.env:{}}}", "${{oc.env:{},'https://example.com'}}")
TEXT, OMEGA_TEXT = yaml.safe_dump(DOCUMENT), yaml.safe_dump(OMEGA)


def by_scalar(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: by_scalar(member) for key, member in value.items()}
    if isinstance(value, list):
        return [by_scalar(member) for member in value]
    return expandvars(value, environ=ALL, nounset=True) if isinstance(value, str) else value


def of_request(name: str) -> str:
    return REQUEST[name]


def resolved(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=True)


def repeated(call: Callable[[], object]) -> Prepare:
    def prepare(turn: int, count: int) -> Awaitable[object]:
        async def work() -> None:
            with bind_context(Identity("acme", "ann"), values=REQUEST):
                for _ in range(count):
                    call()

        return work()

    return prepare


def variants() -> Variants:
    os.environ.update(ENVIRON)
    OmegaConf.register_resolver("ctx", of_request)
    template, parsed, config = Template(DOCUMENT), yaml.load(TEXT, yaml.CSafeLoader), OmegaConf.create(OMEGA)
    expected = template_expected()
    calls: dict[str, dict[str, Callable[[], object]]] = {
        "parse YAML and expand": {
            OURS: lambda: load_yaml(TEXT),
            "expandvars, then yaml.CSafeLoader": lambda: yaml.load(
                expandvars(TEXT, environ=ALL, nounset=True), yaml.CSafeLoader
            ),
            "yaml.CSafeLoader, expandvars": lambda: by_scalar(yaml.load(TEXT, yaml.CSafeLoader)),
            "OmegaConf": lambda: resolved(OmegaConf.create(OMEGA_TEXT)),
            "yaml.CSafeLoader alone": lambda: yaml.load(TEXT, yaml.CSafeLoader),
        },
        "expand": {
            OURS: template.expand,
            "asgi_context, without a template": lambda: expand(DOCUMENT),
            "expandvars, each scalar": lambda: by_scalar(parsed),
            "OmegaConf": lambda: resolved(config),
        },
    }
    with bind_context(Identity("acme", "ann"), values=REQUEST):
        for named in calls.values():
            for name, call in named.items():
                if name != "yaml.CSafeLoader alone" and call() != expected:
                    message = f"{name} makes another document"
                    raise SystemExit(message)
    return {table: {name: repeated(call) for name, call in named.items()} for table, named in calls.items()}


def template_expected() -> dict[str, Any]:
    made = document("{}", "{}", "{}")
    for number, group in enumerate(made.values()):
        group["namespace"] = f"job-{2 * number}"
        group["label"] = f"job job-{2 * number + 1} of the agent"
        group["endpoints"] = [{"url": f"https://{2 * number}.example.com/v1"}]
        group["fallback"] = f"https://{2 * number + 1}.example.com"
    return made


def table_beside(runs: list[Run], table: str) -> None:
    print(f"{table:36} {'us':>9} {'ours is x':>10} {'(from':>8} {'to)':>7}")
    costs = [run[table] for run in runs]
    for name in costs[0]:
        ratios = sorted(run[name] / run[OURS] for run in costs)
        print(f"{name:36} {statistics.median(run[name] for run in costs):9.1f}", end=" ")
        print(f"{statistics.median(ratios):10.2f} {ratios[0]:8.2f} {ratios[-1]:7.2f}")


def main() -> None:
    runs = measured(variants, __doc__, "documents", rounds=10, count=20)
    for table in runs[0]:
        print()
        table_beside(runs, table)


if __name__ == "__main__":
    main()
