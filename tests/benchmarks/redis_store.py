"""What calls of shared state in Redis cost, beside the same commands sent by other clients, and what states take there.

Run by ``python tests/benchmarks/redis_store.py``. One server is started for it, on the loopback interface, and ended after
it; client and server share the machine, so the figures of one run are to be read beside each other. All clients send
the same commands, with the same scripts, keys and arguments, for the same states, and write and read the values by the
same codec; all give up after 5 seconds. Ours checks the arguments besides, keeps a limit, and tries again what may be.

A number of tasks call one after another, each for a user of its own. All clients take turns in every round, each time in
another order, in several processes; a figure is the median of all turns, and a ratio the median of those of the rounds,
each beside redis-py's pool in the same round. Latencies are those of all turns of a process together. The time of the
server is that which it says it has spent.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from selectors import SelectSelector
from typing import Any

import coredis
import glide
import redis
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis

from asgi_context import SharedState, StateLimits
from asgi_context._codec import decode, decode_all, encode
from asgi_context.redis import RedisStore
from asgi_context.redis._keys import Keys
from asgi_context.redis._scripts import MERGE, NAMES, Script

sys.path.append(str(Path(__file__).parents[1]))
from redis_servers import Server

OURS, POOL = "ours", "redis-py"
TASKS = (1, 50, 200)
OPERATIONS = ("get_field", "update_field", "get of 1 KB", "upsert with TTL")
USERS = [f"user-{number}" for number in range(max(TASKS))]
STATE: dict[str, Any] = {"colour": "green", "visits": 7, "ratio": 0.5, "active": True, "tags": ["a", "b"]}
LARGER: dict[str, Any] = {f"field-{number}": "x" * 90 for number in range(10)}
LIMITS = StateLimits()
DAY = 86_400.0
DELAY = 0.00025  # seconds each way, as between two machines of one data centre

Call = Callable[[int], Awaitable[object]]
"""Does one operation for the user of that number."""


class Ours:
    def __init__(self, store: RedisStore) -> None:
        self.states = [SharedState(store, "acme", user) for user in USERS]

    async def get_field(self, user: int) -> object:
        return await self.states[user].get_field("profile", "colour")

    async def update_field(self, user: int) -> object:
        return await self.states[user].update_field("profile", "colour", "blue")

    async def get(self, user: int) -> object:
        return await self.states[user].get("larger")

    async def upsert(self, user: int) -> object:
        return await self.states[user].upsert("session", STATE, ttl=DAY)


class Others:
    """What a client must do for the same: keys and arguments as `RedisStore` makes them, and the values encoded."""

    keys = Keys("asgi_context")

    def __init__(self, client: Any) -> None:
        self.client = client
        self.hget: Any = client.hget
        self.hgetall: Any = client.hgetall

    async def evalsha(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        raise NotImplementedError

    async def get_field(self, user: int) -> object:
        text = await self.hget(self.keys.state(("acme", USERS[user]), "profile"), "colour")
        return None if text is None else decode("profile", "colour", text)

    async def update_field(self, user: int) -> object:
        return await self.merge(user, "profile", {"colour": encode("profile", "colour", "blue")}, "keep")

    async def get(self, user: int) -> object:
        found = await self.hgetall(self.keys.state(("acme", USERS[user]), "larger"))
        texts = {name.decode(): text for name, text in found.items()}
        texts.pop("", None)
        return decode_all("larger", texts)

    async def upsert(self, user: int) -> object:
        fields = {name: encode("session", name, value) for name, value in STATE.items()}
        return await self.merge(user, "session", fields, int(DAY * 1000))

    async def merge(self, user: int, state: str, fields: dict[str, bytes], ttl: str | int) -> bool:
        base = self.keys.of(("acme", USERS[user]))
        flat = [part for pair in fields.items() for part in pair]
        arguments = ["", state, random.getrandbits(62), ttl, "none", LIMITS.user_states, LIMITS.fields, *flat]
        return bool(await self.evalsha(MERGE, [f"{base}s:{state}", f"{base}states"], arguments))


class RedisPys(Others):
    async def evalsha(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        return await self.client.evalsha(script.digest, len(keys), *keys, *arguments)


class Coredis(Others):
    async def evalsha(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        return await self.client.evalsha(script.digest, keys, arguments)


class Glide(Others):
    def __init__(self, client: Any) -> None:
        super().__init__(client)
        script: Any = glide.Script
        self.scripts = {MERGE: script(MERGE.text)}

    async def evalsha(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        texts: list[str | bytes] = [str(part) if isinstance(part, int) else part for part in arguments]
        return await self.client.invoke_script(self.scripts[script], list(keys), texts)


@asynccontextmanager
async def ours(port: int) -> AsyncIterator[Any]:
    async with RedisStore.from_url(f"redis://127.0.0.1:{port}/0?client_name=ours") as store:
        yield Ours(store)


@asynccontextmanager
async def redis_py(port: int) -> AsyncIterator[Any]:
    pool: Any = ConnectionPool(host="127.0.0.1", port=port, protocol=2, max_connections=1000, client_name="redis-py")
    async with Redis(connection_pool=pool) as client:
        yield RedisPys(client)
    await pool.aclose()


@asynccontextmanager
async def redis_py_blocking(port: int) -> AsyncIterator[Any]:
    pool: Any = BlockingConnectionPool(host="127.0.0.1", port=port, protocol=2, client_name="redis-py-blocking")
    async with Redis(connection_pool=pool) as client:
        yield RedisPys(client)
    await pool.aclose()


@asynccontextmanager
async def with_coredis(port: int) -> AsyncIterator[Any]:
    async with coredis.Redis(host="127.0.0.1", port=port, stream_timeout=5, client_name="coredis") as client:
        yield Coredis(client)


@asynccontextmanager
async def with_glide(port: int) -> AsyncIterator[Any]:
    glide.Logger.set_logger_config(glide.LogLevel.OFF)
    address = glide.NodeAddress("127.0.0.1", port)
    client = await glide.GlideClient.create(
        glide.GlideClientConfiguration([address], request_timeout=5000, client_name="valkey-glide")
    )
    yield Glide(client)
    await client.close()


CLIENTS: dict[str, Any] = {
    POOL: redis_py,
    "redis-py-blocking": redis_py_blocking,
    "coredis": with_coredis,
    "valkey-glide": with_glide,
    OURS: ours,
}
"""By the name that each gives to its connections."""


def operation(keeper: Any, name: str) -> Call:
    calls = (keeper.get_field, keeper.update_field, keeper.get, keeper.upsert)
    call: Call = dict(zip(OPERATIONS, calls, strict=True))[name]
    return call


async def turn(call: Call, tasks: int, count: int) -> tuple[float, float, list[float]]:
    """Give the seconds that a number of calls took, those of this process's CPU, and the latency of each."""
    latencies: list[float] = []

    async def work(user: int) -> None:
        clock, note = time.perf_counter, latencies.append
        for _ in range(count // tasks):
            started = clock()
            await call(user)
            note(clock() - started)

    gc.collect()
    gc.disable()
    cpu, started = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for user in range(tasks):
            group.create_task(work(user))
    spent = time.perf_counter() - started, time.process_time() - cpu
    gc.enable()
    return *spent, latencies


def served(server: Any) -> float:
    spent = server.info("cpu")
    return float(spent["used_cpu_user"] + spent["used_cpu_sys"])


async def measure(port: int, rounds: int, count: int) -> dict[str, Any]:
    """Give, by operation, tasks and client, what each turn took, and the latencies of all together."""
    found: dict[str, Any] = {
        f"{name}, {tasks}": {client: {"us": [], "cpu": [], "server": [], "latencies": []} for client in CLIENTS}
        for name in OPERATIONS
        for tasks in TASKS
    }
    async with AsyncExitStack() as stack:
        server: Any = stack.enter_context(redis.Redis(port=port, protocol=2))
        keepers = {name: await stack.enter_async_context(make(port)) for name, make in CLIENTS.items()}
        for state in keepers[OURS].states:
            await state.upsert("profile", STATE)
            await state.upsert("larger", LARGER)
            await state.upsert("session", STATE, ttl=DAY)
        for keeper in keepers.values():  # so that all have the connections that they will ever have
            for name in OPERATIONS:
                await turn(operation(keeper, name), max(TASKS), 2 * max(TASKS))
        gc.collect()
        gc.freeze()
        for _ in range(rounds):
            order = random.sample(list(keepers), len(keepers))
            for name in OPERATIONS:
                for tasks in TASKS:
                    for client in order:
                        number = max(tasks, count // 5) if tasks == 1 else max(tasks, count // tasks * tasks)
                        before = served(server)
                        spent, cpu, latencies = await turn(operation(keepers[client], name), tasks, number)
                        after = served(server)
                        cell = found[f"{name}, {tasks}"][client]
                        cell["us"].append(spent / number * 1e6)
                        cell["cpu"].append(cpu / number * 1e6)
                        cell["server"].append((after - before) / number * 1e6)
                        cell["latencies"] += latencies
        names = [client["name"] for client in server.client_list()]
    for named in found.values():
        for cell in named.values():
            latencies = sorted(cell.pop("latencies"))
            cell["p50"], cell["p99"] = (latencies[int(len(latencies) * part)] * 1e6 for part in (0.5, 0.99))
    return {"calls": found, "connections": {client: names.count(client) for client in CLIENTS}}


def print_calls(runs: list[dict[str, Any]]) -> None:
    for table, named in runs[0]["calls"].items():
        what, tasks = table.rsplit(", ", 1)
        title = f"{what}, {tasks} task{'s' * (tasks != '1')}"
        print(f"\n{title:28} {'calls/s':>9} {'x redis-py':>11} {'(p10':>6} {'p90)':>6}", end=" ")
        print(f"{'p50 us':>9} {'p99 us':>9} {'x redis-py':>11} {'CPU us':>8} {'server us':>10}")
        for client in named:
            cells = [run["calls"][table][client] for run in runs]
            pools = [run["calls"][table][POOL] for run in runs]
            turns = [
                beside / own
                for cell, pool in zip(cells, pools, strict=True)
                for own, beside in zip(cell["us"], pool["us"], strict=True)
            ]
            cuts = statistics.quantiles(turns, n=10) if len(turns) > 1 else turns * 9
            late = statistics.median(cell["p99"] / pool["p99"] for cell, pool in zip(cells, pools, strict=True))
            us, cpu, server = (
                statistics.median(each for cell in cells for each in cell[key]) for key in ("us", "cpu", "server")
            )
            p50, p99 = (statistics.median(cell[key] for cell in cells) for key in ("p50", "p99"))
            ratio = statistics.median(turns)
            print(f"{client:28} {1e6 / us:9.0f} {ratio:11.2f} {cuts[0]:6.2f} {cuts[-1]:6.2f}", end=" ")
            print(f"{p50:9.0f} {p99:9.0f} {late:11.2f} {cpu:8.1f} {server:10.1f}")
    print("\nconnections, with up to 200 tasks: ", end="")
    print(", ".join(f"{client} {number}" for client, number in runs[0]["connections"].items()))


# Over a network: calls that come when they come, whatever is under way.


def run_exactly(main: Coroutine[Any, Any, None]) -> None:
    """On a loop that does not wait for whole milliseconds, as others do."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(SelectSelector())) as runner:
        runner.run(main)


async def relay(port: int) -> None:
    """Pass on what comes, each way after a delay."""
    loop = asyncio.get_running_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            loop.call_later(DELAY, writer.write, data)
        loop.call_later(DELAY, writer.close)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, to_server), pass_on(server, writer), return_exceptions=True)

    relaying = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(relaying.sockets[0].getsockname()[1], flush=True)
    await relaying.serve_forever()


async def arriving(call: Call, rate: int, count: int) -> list[float]:
    """Give the latencies of calls that come at random times."""
    latencies: list[float] = []

    async def work(user: int) -> None:
        started = time.perf_counter()
        await call(user)
        latencies.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as group:
        due = time.perf_counter()
        for _ in range(count):
            due += random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(work(random.randrange(len(USERS))))
    return latencies


async def distant(port: int, rounds: int, rate: int) -> None:
    found: dict[str, list[float]] = {client: [] for client in CLIENTS}
    trips: list[float] = []
    async with AsyncExitStack() as stack:
        keepers = {name: await stack.enter_async_context(make(port)) for name, make in CLIENTS.items()}
        async with asyncio.TaskGroup() as group:
            for state in keepers[OURS].states:
                group.create_task(state.upsert("profile", STATE))
        for keeper in keepers.values():
            await turn(keeper.get_field, 50, 100)
        for _ in range(rounds):
            for client in random.sample(list(keepers), len(keepers)):
                found[client] += await arriving(keepers[client].get_field, rate, rate // 4)
            trips += (await turn(keepers[OURS].get_field, 1, 50))[2]
    trip = statistics.median(trips) * 1e6
    title = f"get_field, {rate} a second"
    print(f"\n{title:28} {'p50 us':>9} {'p90 us':>9} {'p99 us':>9}  over a network: one alone takes {trip:.0f} us")
    for client, latencies in found.items():
        latencies.sort()
        p50, p90, p99 = (latencies[int(len(latencies) * part)] * 1e6 for part in (0.5, 0.9, 0.99))
        print(f"{client:28} {p50:9.0f} {p90:9.0f} {p99:9.0f}")


# What a call sends, and what the server does for it.


async def count_commands(port: int) -> None:
    async with RedisStore.from_url(f"redis://127.0.0.1:{port}/0") as store:
        state, space = SharedState(store, "acme", "counted"), ("acme", "counted")
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "upsert, a user's first": lambda: state.upsert("profile", STATE),
            "upsert, a new state": lambda: state.upsert("new", STATE),
            "upsert": lambda: state.upsert("profile", STATE),
            "update_field": lambda: state.update_field("profile", "colour", "blue"),
            "update_field with TTL": lambda: state.update_field("profile", "colour", "blue", ttl=DAY / 2),
            "replace": lambda: state.replace("profile", STATE),
            "increment": lambda: state.increment("profile", "visits"),
            "modify": lambda: state.modify("profile", lambda old: {**old, "visits": old["visits"] + 1}),
            "touch": lambda: state.touch("profile", DAY / 2),
            "get_field": lambda: state.get_field("profile", "colour"),
            "get": lambda: state.get("profile"),
            "exists": lambda: state.exists("profile"),
            "ttl": lambda: state.ttl("profile"),
            "list_states": state.list_states,
            "count": lambda: store.count(space, "calls", 1, DAY),
            "acquire": lambda: store.acquire(space, "jobs", "me", 3, DAY),
            "release": lambda: store.release(space, "jobs", "me"),
            "delete_field": lambda: state.delete_field("profile", "colour"),
            "delete": lambda: state.delete("profile"),
            "clear_all_states": state.clear_all_states,
        }
        for _ in range(2):  # so that all scripts are there
            for call in calls.values():
                await call()
        await store.erase("acme")
        print(f"\n{'a call beside no others':28} {'round trips':>11}  commands: what the scripts do")
        with redis.Redis(port=port, protocol=2) as blocking:
            server: Any = blocking
            for name, call in calls.items():
                if name in {"count", "acquire"}:
                    await call()  # the first of them registers the user's counters and leases
                server.config_resetstat()
                before = server.info("stats")["total_reads_processed"]
                await call()
                reads = server.info("stats")["total_reads_processed"] - before - 1
                print(f"{name:28} {reads:11}  {commands(server.info('commandstats'))}")


def commands(stats: dict[str, Any]) -> str:
    done = {name.removeprefix("cmdstat_"): spent["calls"] for name, spent in stats.items()}
    told = {name: f"{name} {number}" if number > 1 else name for name, number in done.items()}
    for name in ("info", "config|resetstat"):
        told.pop(name, None)
    script = told.pop("evalsha", None)
    text = ", ".join(sorted(told.values()))
    return text if script is None else f"{script}: {text}"


# What states take, and what it costs to list some of them.


async def fill(store: RedisStore, states: int, users: int, ttl: float | None) -> None:
    todo = iter(range(states))

    async def work() -> None:
        for number in todo:
            state = SharedState(store, "others", f"user-{number % users:06}")
            await state.upsert(f"state-{number // users}", {"colour": "green", "visits": number}, ttl=ttl)

    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(work())


async def sizes(port: int, states: int) -> None:
    keys = Keys("asgi_context")
    print(f"\n{f'bytes a state, of {states}':34} {'in all':>7} {'state':>7} {'index':>7} {'registry':>9}", end=" ")
    print(f"{'plain hash':>11}")
    with redis.Redis(port=port, protocol=2) as blocking:
        server: Any = blocking
        for own, ttl in ((1, None), (1, DAY), (10, None), (10, DAY)):
            server.flushall()
            async with RedisStore.from_url(f"redis://127.0.0.1:{port}/0") as store:
                await SharedState(store, "acme", "ann").upsert("profile", STATE)
                before = server.info("memory")["used_memory"]
                await fill(store, states, states // own, ttl)
                in_all = server.info("memory")["used_memory"] - before
            some = [("others", f"user-{number:06}") for number in random.sample(range(states // own), 50)]
            of_state = statistics.mean(server.memory_usage(keys.state(space, "state-0"), samples=0) for space in some)
            of_index = statistics.mean(server.memory_usage(f"{keys.of(space)}states", samples=0) for space in some)
            of_registry = server.memory_usage(keys.users("others"), samples=0)
            plain = f"{keys.state(('others', 'plain-00000'), 'state-0')}"
            server.hset(plain, mapping={"colour": '"green"', "visits": states // 2})
            title = f"{own} of each user, {'without' if ttl is None else 'with'} TTL"
            print(f"{title:34} {in_all / states:7.0f} {of_state:7.0f} {of_index / own:7.0f}", end=" ")
            print(f"{of_registry / states:9.0f} {server.memory_usage(plain, samples=0):11}")
            server.delete(plain)
    print("each of two small fields; in all is what the server took more, with its own tables")


async def listing(port: int, rounds: int, states: int) -> None:
    """Beside the states that `sizes` left."""
    base = Keys("asgi_context").of(("acme", "lister"))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(RedisStore.from_url(f"redis://127.0.0.1:{port}/0"))
        client: Any = await stack.enter_async_context(Redis(port=port, protocol=2))
        state = SharedState(store, "acme", "lister")
        for number in range(10):
            await state.upsert(f"state-{number}", STATE)

        async def script() -> object:
            return await client.evalsha(NAMES.digest, 1, f"{base}states", f"{base}s:", "0")

        def scan(**options: int) -> Callable[[], Awaitable[object]]:
            async def call() -> list[Any]:
                return sorted([key async for key in client.scan_iter(match=f"{base}s:*", **options)])

            return call

        ping = "PING by redis-py"
        calls: dict[str, tuple[Callable[[], Awaitable[object]], int]] = {
            ping: (client.ping, 100),
            "exists, ours": (lambda: state.exists("state-1"), 100),
            "list_states, ours": (state.list_states, 100),
            "its script by redis-py": (script, 100),
            "SCAN by redis-py, COUNT 1000": (scan(count=1000), 1),
            "SCAN by redis-py": (scan(), 1),
        }
        assert len(await state.list_states()) == 10
        costs: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, (call, count) in calls.items():
                started = time.perf_counter()
                for _ in range(count):
                    await call()
                costs[name].append((time.perf_counter() - started) / count * 1e6)
    print(f"\n{f'10 states beside {states}':28} {'us':>9} {'x PING':>9} {'(from':>8} {'to)':>8}")
    for name, spent in costs.items():
        ratios = sorted(own / beside for own, beside in zip(spent, costs[ping], strict=True))
        print(f"{name:28} {statistics.median(spent):9.0f} {statistics.median(ratios):9.2f}", end=" ")
        print(f"{ratios[0]:8.2f} {ratios[-1]:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=3, help="how often all is measured anew, each in a process")
    parser.add_argument("--rounds", type=int, default=6, help="turns in a process")
    parser.add_argument("--count", type=int, default=1000, help="calls in a turn; of one task, a fifth")
    parser.add_argument("--states", type=int, default=100_000, help="states of others, whose size is measured too")
    parser.add_argument("--uvloop", action="store_true", help="on the loop of uvloop")
    parser.add_argument("--measure", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--relay", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run: Callable[[Any], Any] = asyncio.run
    if arguments.uvloop:
        import uvloop

        run = uvloop.run
    if arguments.measure:
        print(json.dumps(run(measure(arguments.measure, arguments.rounds, arguments.count))))
        return
    if arguments.relay:
        run_exactly(relay(arguments.relay))
        return
    with contextlib.closing(Server("redis")) as server:
        script = [sys.executable, sys.argv[0]]
        command = [*script, f"--measure={server.port}"]
        command += [f"--rounds={arguments.rounds}", f"--count={arguments.count}", *["--uvloop"] * arguments.uvloop]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(arguments.processes)]
        version = server.run("INFO", "server")["redis_version"]
        print(f"{platform.python_implementation()} {platform.python_version()}, redis-server {version}; ", end="")
        print(f"{arguments.processes} processes, each {arguments.rounds} x {arguments.count} calls")
        print_calls(runs)
        with subprocess.Popen([*script, f"--relay={server.port}"], stdout=subprocess.PIPE, text=True) as relaying:
            try:
                assert relaying.stdout is not None
                run_exactly(distant(int(relaying.stdout.readline()), 4, 2000))
            finally:
                relaying.kill()
        run(count_commands(server.port))
        run(sizes(server.port, arguments.states))
        run(listing(server.port, 5, arguments.states))


if __name__ == "__main__":
    main()
