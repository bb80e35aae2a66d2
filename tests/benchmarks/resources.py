"""What resources cost per HTTP request: this middleware's beside the containers of svcs and dishka.

Run by ``python tests/benchmarks/resources.py``; how it is measured stands in ``turns.py``. Every request asks for all,
and then for all once more. svcs and dishka run as their own integrations for Starlette run them, without Starlette around
it. Ours finds out who asks as well, by two headers, and takes care that two who ask at once are given the same object,
which neither of the others does.
"""

import statistics
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import svcs
from dishka import Provider, Scope, make_async_container
from dishka.integrations.starlette import ContainerMiddleware
from svcs.starlette import SVCSMiddleware
from turns import BARE, REQUEST, App, Prepare, Run, Variants, bare, measured, parse, receive, respond, send

from asgi_context import ContextMiddleware, RequestContext, current_resource, from_header

OURS = "ours"


class Resource:
    __slots__ = ()


KINDS: list[type] = [type(f"Resource{number}", (Resource,), {"__slots__": ()}) for number in range(6)]


# The same factories for all, but for the argument that ours get.


def makes(kind: type) -> dict[str, Callable[..., Any]]:
    def plain() -> Any:
        return kind()

    def plain_of(context: RequestContext) -> Any:
        return kind()

    async def waiting() -> Any:
        return kind()

    async def waiting_of(context: RequestContext) -> Any:
        return kind()

    def entered() -> Iterator[Any]:
        yield kind()

    def entered_of(context: RequestContext) -> Iterator[Any]:
        yield kind()

    async def entered_waiting() -> Any:
        yield kind()

    async def entered_waiting_of(context: RequestContext) -> Any:
        yield kind()

    # As dishka wants them annotated: by what they give.
    plain.__annotations__ = waiting.__annotations__ = {"return": kind}
    entered.__annotations__ = {"return": Iterable[kind]}
    entered_waiting.__annotations__ = {"return": AsyncIterable[kind]}
    return {
        "sync": plain,
        "sync of": plain_of,
        "async": waiting,
        "async of": waiting_of,
        "sync with exit": entered,
        "sync with exit of": entered_of,
        "async with exit": entered_waiting,
        "async with exit of": entered_waiting_of,
    }


def asking_ours(kinds: list[type]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for kind in kinds:
            await current_resource(kind)
        for kind in kinds:
            await current_resource(kind)
        await respond(send)

    return app


def asking_svcs(kinds: list[type]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        container = scope["state"]["svcs_container"]
        for kind in kinds:
            await container.aget(kind)
        for kind in kinds:
            await container.aget(kind)
        await respond(send)

    return app


def asking_dishka(kinds: list[type]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        container = scope["state"]["dishka_container"]
        for kind in kinds:
            await container.get(kind)
        for kind in kinds:
            await container.get(kind)
        await respond(send)

    return app


def ours(factories: dict[type, str]) -> tuple[App, dict[str, Any]]:
    resources = {kind: makes(kind)[f"{how} of"] for kind, how in factories.items()}
    app = asking_ours(list(factories))
    headers = {"tenant": from_header("x-tenant-id"), "user": from_header("x-user-id")}
    return ContextMiddleware(app, **headers, resources=resources), {}


def with_svcs(factories: dict[type, str]) -> tuple[App, dict[str, Any]]:
    registry = svcs.Registry()
    for kind, how in factories.items():
        registry.register_factory(kind, makes(kind)[how])
    return SVCSMiddleware(asking_svcs(list(factories))), {"state": {"svcs_registry": registry}}


def with_dishka(factories: dict[type, str]) -> tuple[App, dict[str, Any]]:
    provider = Provider(scope=Scope.REQUEST)
    for kind, how in factories.items():
        provider.provide(makes(kind)[how])
    around = SimpleNamespace(state=SimpleNamespace(dishka_container=make_async_container(provider)))
    return ContainerMiddleware(asking_dishka(list(factories))), {"app": around, "state": {}}


def requests(app: App, entries: dict[str, Any]) -> Prepare:
    def prepare(turn: int, count: int) -> Awaitable[object]:
        batch = [REQUEST % (number % 100) for number in range(count)]

        async def work() -> None:
            state = entries.get("state", {})
            for raw in batch:
                await app(parse(raw) | entries | {"state": state.copy()}, receive, send)

        return work()

    return prepare


def variants() -> Variants:
    made = {
        "five sync, one async": {kind: "sync" if number < 5 else "async" for number, kind in enumerate(KINDS)},
        "five sync": dict.fromkeys(KINDS[:5], "sync"),
        "one async": dict.fromkeys(KINDS[:1], "async"),
        "five sync with exit": dict.fromkeys(KINDS[:5], "sync with exit"),
        "one async with exit": dict.fromkeys(KINDS[:1], "async with exit"),
        "none, the middleware alone": {},
    }
    return {
        table: {
            BARE: requests(bare, {}),
            OURS: requests(*ours(factories)),
            "svcs": requests(*with_svcs(factories)),
            "dishka": requests(*with_dishka(factories)),
        }
        for table, factories in made.items()
    }


def table_beside(runs: list[Run], table: str) -> None:
    """Print what each costs above the bare app, as a multiple of what ours does."""
    print(f"{'us per request: ' + table:44} {'cost':>8} {'above bare':>11} {'x ours':>8} {'(from':>8} {'to)':>6}")
    costs = [run[table] for run in runs]
    for name in costs[0]:
        above = [run[name] - run[BARE] for run in costs]
        ratios = sorted(cost / (run[OURS] - run[BARE]) for cost, run in zip(above, costs, strict=True))
        cost = statistics.median(run[name] for run in costs)
        print(f"{name:44} {cost:8.2f} {statistics.median(above):11.2f} {statistics.median(ratios):8.2f}", end=" ")
        print(f"{ratios[0]:8.2f} {ratios[-1]:6.2f}")


def main() -> None:
    runs = measured(variants, __doc__, "requests", count=200)
    for table in runs[0]:
        print()
        table_beside(runs, table)


if __name__ == "__main__":
    main()
