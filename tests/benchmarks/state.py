"""What a call of shared state costs, beside what else keeps values in memory, and what a blocking call costs.

Run by ``python tests/benchmarks/state.py``; how it is measured stands in ``turns.py``. Everything keeps the same state
of 5 small fields for 100 users. ``SharedState`` and the first of the dicts keep each field as text; the others keep the
state as one value, which they must read and write whole for one field (nobody else may write meanwhile, which ours
takes care of). The caches of aiocache and cashews keep the objects themselves: nothing is encoded, and what they hand
out is what they hold. The blocking calls are made in a thread, over the loop that is measured.
"""

import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable
from typing import Any

from aiocache import SimpleMemoryCache
from asgiref.sync import async_to_sync, sync_to_async
from cashews import Cache
from litestar.stores.memory import MemoryStore as LitestarStore
from turns import Prepare, Run, Variants, measured

from asgi_context import Identity, MemoryStore, SharedState, Store, bind_context, current_state
from asgi_context._codec import decode, encode

OURS = "SharedState"
SYNC = "SharedState.sync"
USERS = [f"user-{number}" for number in range(100)]
STATE: dict[str, Any] = {"colour": "green", "visits": 7, "ratio": 0.5, "active": True, "tags": ["a", "b"]}

Keeper = Any
"""Has the four operations as coroutine functions of the user's number."""


class Ours:
    def __init__(self) -> None:
        store = MemoryStore()
        self.states = [SharedState(store, "acme", user) for user in USERS]

    async def get_field(self, user: int) -> object:
        return await self.states[user].get_field("profile", "colour")

    async def update_field(self, user: int) -> object:
        return await self.states[user].update_field("profile", "colour", "blue")

    async def get(self, user: int) -> object:
        return await self.states[user].get("profile")

    async def upsert(self, user: int) -> object:
        return await self.states[user].upsert("profile", STATE)


class EncodedDict:
    """Not safe from several threads, without limits, times to live and versions; it checks nothing."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str], dict[str, bytes]] = {}

    async def get_field(self, user: int) -> object:
        found = self.kept.get(("acme", USERS[user], "profile"))
        return None if found is None else decode("profile", "colour", found["colour"])

    async def update_field(self, user: int) -> object:
        text = encode("profile", "colour", "blue")
        self.kept.setdefault(("acme", USERS[user], "profile"), {})["colour"] = text
        return False

    async def get(self, user: int) -> object:
        found = self.kept.get(("acme", USERS[user], "profile"))
        return None if found is None else {name: decode("profile", name, text) for name, text in found.items()}

    async def upsert(self, user: int) -> object:
        fields = {name: encode("profile", name, value) for name, value in STATE.items()}
        self.kept.setdefault(("acme", USERS[user], "profile"), {}).update(fields)
        return False


class Whole:
    """What keeps a state as one value: a field of it is read and written with all others."""

    async def read(self, key: str) -> Any:
        raise NotImplementedError

    async def write(self, key: str, data: Any) -> None:
        raise NotImplementedError

    async def get_field(self, user: int) -> object:
        return (await self.read(f"acme:{USERS[user]}:profile"))["colour"]

    async def update_field(self, user: int) -> object:
        key = f"acme:{USERS[user]}:profile"
        data = await self.read(key)
        await self.write(key, {**data, "colour": "blue"})
        return False

    async def get(self, user: int) -> object:
        return await self.read(f"acme:{USERS[user]}:profile")

    async def upsert(self, user: int) -> object:
        key = f"acme:{USERS[user]}:profile"
        data = await self.read(key) or {}
        await self.write(key, {**data, **STATE})
        return False


class JSONDict(Whole):
    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    async def read(self, key: str) -> Any:
        text = self.kept.get(key)
        return None if text is None else json.loads(text)

    async def write(self, key: str, data: Any) -> None:
        self.kept[key] = json.dumps(data)


class Litestars(Whole):
    def __init__(self) -> None:
        self.store = LitestarStore()

    async def read(self, key: str) -> Any:
        text = await self.store.get(key)
        return None if text is None else decode("profile", "", text)

    async def write(self, key: str, data: Any) -> None:
        await self.store.set(key, encode("profile", "", data))


class AIOCaches(Whole):
    def __init__(self) -> None:
        self.cache = SimpleMemoryCache()
        self.read = self.cache.get
        self.write = self.cache.set


class Cashews(Whole):
    def __init__(self) -> None:
        self.cache = Cache()
        self.cache.setup("mem://")
        self.read = self.cache.get
        self.write = self.cache.set


KEEPERS: dict[str, Callable[[], Keeper]] = {
    OURS: Ours,
    "dict of encoded fields": EncodedDict,
    "dict of json.dumps, whole": JSONDict,
    "Litestar's MemoryStore, whole": Litestars,
    "aiocache, whole, not encoded": AIOCaches,
    "cashews, whole, not encoded": Cashews,
}
OPERATIONS = ("get_field", "update_field", "get", "upsert")


def operations(keeper: Keeper, operation: str) -> Prepare:
    def prepare(turn: int, count: int) -> Awaitable[object]:
        call = getattr(keeper, operation)

        async def work() -> None:
            for number in range(count):
                await call(number % 100)

        return work() if turn else filled(keeper, work())

    return prepare


async def filled(keeper: Keeper, work: Awaitable[object]) -> None:
    for user in range(len(USERS)):
        await keeper.upsert(user)
    await work


# Blocking calls: the same question, over the same loop.


async def ask(self: Any, method: str, args: tuple[Any, ...]) -> Any:
    await asyncio.sleep(0)
    return await getattr(self.memory, method)(*args)


def asking(method: str) -> Callable[..., Any]:
    async def waiting(self: Any, *args: Any) -> Any:
        return await ask(self, method, args)

    return waiting


Waiting: Any = type("Waiting", (), {name: asking(name) for name in dir(Store) if name[0] != "_"})
"""A store that waits one turn of the loop, and then asks a `MemoryStore`."""


def by_sync(state: SharedState, loop: asyncio.AbstractEventLoop) -> Callable[[], object]:
    return lambda: state.sync.get_field("profile", "colour")


def threadsafe(state: SharedState, loop: asyncio.AbstractEventLoop) -> Callable[[], object]:
    return lambda: asyncio.run_coroutine_threadsafe(state.get_field("profile", "colour"), loop).result(30)


def by_asgiref(state: SharedState, loop: asyncio.AbstractEventLoop) -> Callable[[], object]:
    get_field = async_to_sync(state.get_field)
    return lambda: get_field("profile", "colour")


HOPS = {SYNC: by_sync, "run_coroutine_threadsafe": threadsafe, "asgiref's async_to_sync": by_asgiref}


def hops(hop: Callable[[SharedState, asyncio.AbstractEventLoop], Callable[[], object]]) -> Prepare:
    store = Waiting()
    store.memory = MemoryStore()

    def prepare(turn: int, count: int) -> Awaitable[object]:
        loop = asyncio.get_running_loop()
        with bind_context(Identity("acme", "ann"), store=store):
            state = current_state()

        def work() -> None:
            call = hop(state, loop)
            for _ in range(count // 10):
                call()

        # By asgiref for all, since its own way back to the loop needs its way there; it carries the context, as ours.
        return sync_to_async(work, thread_sensitive=False)()

    return prepare


def in_memory() -> Prepare:
    state = SharedState(MemoryStore(), "acme", "ann")

    def prepare(turn: int, count: int) -> Awaitable[object]:
        def work() -> None:
            for _ in range(count):
                state.sync.get_field("profile", "colour")

        return sync_to_async(work, thread_sensitive=False)()

    return prepare


HOP = "blocking calls over the loop (a tenth of the count)"
AT_ONCE = "blocking calls in memory"


def variants() -> Variants:
    made = {
        operation: {name: operations(make(), operation) for name, make in KEEPERS.items()} for operation in OPERATIONS
    }
    return {**made, HOP: {name: hops(hop) for name, hop in HOPS.items()}, AT_ONCE: {SYNC: in_memory()}}


def table_beside(runs: list[Run], table: str, ours: str, scale: int = 1) -> None:
    """Print how many calls a second each does, and how many times what ours does that is."""
    print(f"{table:52} {'us':>8} {'calls/s':>9} {'ours is x':>10} {'(from':>8} {'to)':>6}")
    costs = [run[table] for run in runs]
    for name in costs[0]:
        ratios = sorted(run[name] / run[ours] for run in costs)
        cost = statistics.median(run[name] for run in costs) * scale
        print(f"{name:52} {cost:8.2f} {1e6 / cost:9.0f} {statistics.median(ratios):10.2f}", end=" ")
        print(f"{ratios[0]:8.2f} {ratios[-1]:6.2f}")


def main() -> None:
    runs = measured(variants, __doc__, "calls", rounds=20, count=500)
    for table in runs[0]:
        print()
        if table in OPERATIONS:
            table_beside(runs, table, OURS)
        else:
            table_beside(runs, table, SYNC, 10 if table == HOP else 1)


if __name__ == "__main__":
    main()
