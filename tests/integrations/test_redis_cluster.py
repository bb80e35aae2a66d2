"""A cluster whose slots are moved, and whose nodes come and go, while the store is used."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar

import pytest
import redis
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.crc import key_slot
from redis_servers import ClusterOfServers, Server, until

from asgi_context import KEEP, SharedState
from asgi_context.errors import StateUnavailableError
from asgi_context.redis import RedisStore
from asgi_context.redis._lane import Lane

pytestmark = pytest.mark.anyio

ONE = {"f": b"1"}
SOON = 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterOfServers]:
    servers = ClusterOfServers(replicas=0)
    yield servers
    servers.close()


@pytest.fixture(autouse=True)
def empty(cluster: ClusterOfServers) -> Iterator[None]:
    for server in cluster.masters():
        server.run("FLUSHALL")
        server.run("CONFIG", "RESETSTAT")
    yield
    for move in list(Move.under_way):  # of a test that has failed: others are not to fail with it
        move.take().end()


@pytest.fixture
async def store(cluster: ClusterOfServers, asyncio_only: None) -> AsyncIterator[RedisStore]:
    made = cluster.store(timeout=10)
    yield made
    await made.close()


def slot_of(tenant: str, user: str | None) -> int:
    return key_slot((tenant if user is None else f"{tenant}:{user}").encode())


def owner_of(cluster: ClusterOfServers, slot: int) -> Server:
    return next(server for server in cluster.masters() if slot in slots_of(server))


def slots_of(server: Server) -> set[int]:
    """The slots that a node takes to be its own."""
    found: set[int] = set()
    for first, last, (_, port, *_), *_ in raw(server, "CLUSTER", "SLOTS"):
        if port == server.port:
            found.update(range(first, last + 1))
    return found


def raw(server: Server, *command: Any) -> Any:
    """An answer as the protocol has it."""
    with server.client() as client:
        client.response_callbacks.clear()
        return client.execute_command(*command)


class Move:
    """A slot on its way from one node to another, by hand."""

    under_way: ClassVar[set["Move"]] = set()

    def __init__(self, cluster: ClusterOfServers, slot: int, to: Server | None = None) -> None:
        self.cluster = cluster
        self.slot = slot
        self.source = owner_of(cluster, slot)
        self.to = to or next(server for server in cluster.masters() if server is not self.source)
        self.ids = {server: raw(server, "CLUSTER", "MYID").decode() for server in (self.source, self.to)}

    def begin(self) -> "Move":
        self.under_way.add(self)
        self.to.run("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self.ids[self.source])
        self.source.run("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.ids[self.to])
        return self

    def keys(self) -> list[bytes]:
        found: list[bytes] = raw(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, 100_000)
        return found

    def take(self, *keys: bytes | str) -> "Move":
        """Move these keys, or all."""
        moving = keys or self.keys()
        if moving:
            self.source.run("MIGRATE", "127.0.0.1", self.to.port, "", 0, 5000, "KEYS", *moving)
        return self

    def end(self) -> None:
        until(self.ended)
        self.under_way.discard(self)

    def ended(self) -> bool:
        """Tell the nodes whose slot it is from now on, until all say so: what they tell each other may be older."""
        those = [server for server in (self.to, *self.cluster.masters()) if self.owner(server) != self.to.port]
        for server in those:
            try:
                server.run("CLUSTER", "SETSLOT", self.slot, "NODE", self.ids[self.to])
            except redis.ResponseError as error:
                if "only with masters" not in str(error):  # as one is no more whose last slot has gone
                    raise
        return not those

    def owner(self, server: Server) -> int | None:
        """The port of the node whose slot it is, as a node sees it."""
        for first, last, (_, port, *_), *_ in raw(server, "CLUSTER", "SLOTS"):
            if first <= self.slot <= last:
                found: int = port
                return found
        return None

    def whole(self) -> None:
        self.begin().take().end()


def calls(server: Server, name: str) -> int:
    with server.client() as client:
        found: int = client.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"]
        return found


def key(tenant: str, user: str, rest: str) -> str:
    return f"asgi_context:{{{tenant}:{user}}}:{rest}"


# Spread.


async def test_users_are_spread_over_the_nodes_and_each_is_whole_on_one(
    cluster: ClusterOfServers, store: RedisStore
) -> None:
    users = [f"user{number}" for number in range(300)]
    states = [SharedState(store, "acme", user) for user in users]
    await asyncio.gather(*(state.upsert("s", {"is": user}) for state, user in zip(states, users, strict=True)))
    await asyncio.gather(*(state.increment("t", "n") for state in states))
    assert await asyncio.gather(*(state.get_field("s", "is") for state in states)) == users
    assert [sorted(await state.list_states()) for state in states] == [["s", "t"]] * 300
    counts = [
        Counter(name.rpartition("}")[2] for name in map(bytes.decode, server.run("KEYS", "*")))
        for server in cluster.masters()
    ]
    for count in counts:
        assert count[":s:s"] == count[":s:t"] == count[":states"] > 30
    assert sum(count[":users"] for count in counts) == 1
    assert await store.erase("acme") == 600
    left = [(server, name) for server in cluster.masters() for name in server.run("KEYS", "*")]
    assert all(raw(server, "ZRANGE", name, 0, -1) == [b"\xff"] for server, name in left)
    assert all(0 < server.run("TTL", name) <= 60 for server, name in left)


async def test_the_commands_of_one_turn_go_in_one_write_for_each_node(
    cluster: ClusterOfServers, asyncio_only: None
) -> None:
    async with cluster.store(connections=1) as store:
        users = [f"user{number}" for number in range(300)]
        await asyncio.gather(*(store.read(("acme", user), "s") for user in users))

        def reads() -> list[int]:
            return [server.run("INFO", "stats")["total_reads_processed"] for server in cluster.masters()]

        before = reads()
        await asyncio.gather(*(store.read(("acme", user), "s") for user in users))
        for then, now in zip(before, reads(), strict=True):
            assert now - then < 20, "300 commands"


async def test_where_the_slots_are_is_asked_once_whoever_needs_it(
    cluster: ClusterOfServers, asyncio_only: None
) -> None:
    store = cluster.store()
    await asyncio.gather(*(store.read(("acme", f"user{number}"), "s") for number in range(100)))
    assert sum(calls(server, "cluster|slots") + calls(server, "cluster") for server in cluster.masters()) == 1
    await store.close()


# Slots that are moved.


async def test_a_slot_that_was_moved_is_found_again(cluster: ClusterOfServers, store: RedisStore) -> None:
    await store.merge(("acme", "ann"), "s", ONE, KEEP)
    move = Move(cluster, slot_of("acme", "ann"))
    await asyncio.to_thread(move.whole)
    assert await store.read(("acme", "ann"), "s") == ONE
    assert await store.increment(("acme", "ann"), "s", "n", 1) == 1
    assert set(move.to.run("KEYS", "*ann}*")) == {b"asgi_context:{acme:ann}:s:s", b"asgi_context:{acme:ann}:states"}
    source = calls(move.source, "evalsha")
    assert await store.increment(("acme", "ann"), "s", "n", 1) == 2
    assert calls(move.source, "evalsha") == source, "and is not looked for where it was"


async def test_a_slot_that_is_being_moved_is_asked_for_where_its_keys_are(
    cluster: ClusterOfServers, store: RedisStore
) -> None:
    await store.merge(("acme", "ann"), "s", ONE, KEEP)
    move = Move(cluster, slot_of("acme", "ann")).begin()
    assert await store.read(("acme", "ann"), "s") == ONE, "still here"
    assert await store.increment(("acme", "ann"), "s", "n", 1) == 1
    move.take()
    for _ in range(3):
        assert await store.read(("acme", "ann"), "s") == {"f": b"1", "n": b"1"}, "there already"
    assert await store.increment(("acme", "ann"), "s", "n", 1) == 2
    assert await store.names(("acme", "ann")) == ["s"]
    assert calls(move.to, "asking") >= 5
    assert move.keys() == []
    move.end()
    assert await store.increment(("acme", "ann"), "s", "n", 1) == 3


async def test_a_new_user_in_a_slot_that_is_being_moved_is_waited_for(
    cluster: ClusterOfServers, store: RedisStore
) -> None:
    """A script needs two keys, which are nowhere yet: the node where the slot goes says TRYAGAIN until it is there."""
    await store.open()
    move = Move(cluster, slot_of("acme", "new")).begin()
    writing = asyncio.ensure_future(store.merge(("acme", "new"), "s", ONE, KEEP))
    await asyncio.sleep(0.5)
    assert not writing.done()
    assert await store.read(("acme", "new"), "s") is None
    move.end()
    assert await writing is True
    assert await store.read(("acme", "new"), "s") == ONE


async def test_a_slot_that_is_half_moved_is_waited_for(cluster: ClusterOfServers, store: RedisStore) -> None:
    """A script needs two keys, and neither node has both: TRYAGAIN, which Redis 6 says only where the slot goes."""
    await store.merge(("acme", "ann"), "s", ONE, KEEP)
    move = Move(cluster, slot_of("acme", "ann")).begin()
    move.take(key("acme", "ann", "s:s"))
    refusals = redis.exceptions.TryAgainError, redis.exceptions.AskError
    with pytest.raises(refusals), move.source.client() as client:
        client.eval("return 1", 2, key("acme", "ann", "s:s"), key("acme", "ann", "states"))
    writing = [asyncio.ensure_future(store.increment(("acme", "ann"), "s", "n", 1)) for _ in range(20)]
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in writing)
    await asyncio.to_thread(lambda: move.take().end())
    assert sorted(await asyncio.gather(*writing)) == list(range(1, 21))


async def test_a_slot_that_stays_half_moved_is_an_error_within_the_deadline(
    cluster: ClusterOfServers, asyncio_only: None
) -> None:
    async with cluster.store(timeout=1) as store:
        await store.merge(("acme", "ann"), "s", ONE, KEEP)
        move = Move(cluster, slot_of("acme", "ann")).begin()
        move.take(key("acme", "ann", "s:s"))
        with pytest.raises(StateUnavailableError, match="the slot is being moved to another node"):
            await store.increment(("acme", "ann"), "s", "n", 1)
        move.take().end()
        assert await store.increment(("acme", "ann"), "s", "n", 1) == 1


STATES = ["a", "b", "c"]


@pytest.mark.parametrize("gone", ["s:a", "states", "limits", "c:tries"])
@pytest.mark.parametrize("what", ["names", "clear", "erase"])
async def test_what_goes_by_an_index_finds_all_of_it_while_its_slot_is_half_moved(
    cluster: ClusterOfServers, store: RedisStore, what: str, gone: str
) -> None:
    """A script that is not told of a key takes it to be absent where the other node has it already."""
    ann = "acme", "ann"
    for name in STATES:
        await store.merge(ann, name, ONE, KEEP)
    await store.count(ann, "tries", 1, 60)
    move = Move(cluster, slot_of(*ann)).begin().take(key(*ann, gone))
    asking = asyncio.ensure_future(store.erase("acme") if what == "erase" else getattr(store, what)(ann))
    await asyncio.sleep(0.5)
    assert asking.done() is (what != "erase" and gone in {"limits", "c:tries"}), "else it is waited for"
    move.take().end()
    found = await asking
    assert (sorted(found) if what == "names" else found) == (STATES if what == "names" else 3)
    assert sorted(await store.names(ann)) == (STATES if what == "names" else [])
    left = {name.decode().rpartition("}:")[2] for name in move.to.run("KEYS", "*ann}*")}
    assert (
        left
        == {
            "names": {"s:a", "s:b", "s:c", "states", "limits", "c:tries"},
            "clear": {"states", "limits", "c:tries"},
            "erase": {"states", "limits"},
        }[what]
    )
    for index in left & {"states", "limits"} if what == "erase" else ():
        assert raw(move.to, "ZRANGE", key(*ann, index), 0, -1) == [b"\xff"], "for a minute"


async def test_many_states_are_listed_and_cleared_on_a_cluster(cluster: ClusterOfServers, store: RedisStore) -> None:
    ann = "acme", "ann"
    names = [f"state {number}" for number in range(2500)]
    await asyncio.gather(*(store.merge(ann, name, ONE, KEEP) for name in names))
    assert sorted(await store.names(ann)) == sorted(names)
    with owner_of(cluster, slot_of(*ann)).client() as client:
        client.delete(key(*ann, "s:state 7"))  # as the server itself may, when it is full
    assert len(await store.names(ann)) == 2499
    assert await store.clear(ann) == 2499
    assert await store.names(ann) == []
    assert await store.clear(ann) == 0


async def test_listing_comes_to_an_end_however_many_states_are_made_meanwhile(
    cluster: ClusterOfServers, store: RedisStore
) -> None:
    ann = "acme", "ann"
    before = {f"before {number}" for number in range(2000)}
    await asyncio.gather(*(store.merge(ann, name, ONE, KEEP) for name in before))
    made = 0
    done = False

    async def make() -> None:
        nonlocal made
        while not done:
            made += 1
            await store.merge(ann, f"new {made}", ONE, KEEP)

    making = [asyncio.ensure_future(make()) for _ in range(10)]
    while made <= 50:
        assert before <= set(await store.names(ann))
    done = True
    await asyncio.gather(*making)


async def test_listing_is_of_one_moment_on_a_cluster_too(cluster: ClusterOfServers, store: RedisStore) -> None:
    """One of two is always there: who lists must never see none."""
    ann = "acme", "ann"
    await store.merge(ann, "0", ONE, KEEP)
    listing = [asyncio.ensure_future(store.names(ann)) for _ in range(20)]
    for number in range(300):
        await store.merge(ann, str(number + 1), ONE, KEEP)
        await store.remove(ann, str(number))
        for place, task in enumerate(listing):
            if task.done():
                assert 1 <= len(await task) <= 2
                listing[place] = asyncio.ensure_future(store.names(ann))
    await asyncio.gather(*listing)


async def test_nobody_notices_slots_that_are_moved_to_and_fro(cluster: ClusterOfServers, store: RedisStore) -> None:
    users = [f"user{number}" for number in range(30)]
    done = asyncio.Event()
    written: Counter[str] = Counter()

    async def work(user: str) -> None:
        state = SharedState(store, "acme", user)
        while not done.is_set():
            written[user] += 1
            assert await state.increment("s", "n") == written[user]
            assert await state.get("s") == {"n": written[user]}
            assert await state.upsert("other", {"n": written[user]}) is (written[user] == 1)

    working = [asyncio.ensure_future(work(user)) for user in users]
    for _ in range(3):
        for user in users[:8]:
            await asyncio.to_thread(Move(cluster, slot_of("acme", user)).whole)
    done.set()
    await asyncio.gather(*working)
    assert min(written.values()) > 3
    for user in users:
        assert await store.read(("acme", user), "s") == {"n": b"%d" % written[user]}
    assert await store.erase("acme") == 60


async def test_of_many_that_go_together_only_those_that_have_moved_go_another_way(
    cluster: ClusterOfServers, asyncio_only: None
) -> None:
    async with cluster.store(connections=1) as store:
        users = [f"user{number}" for number in range(60)]
        for user in users:
            await store.merge(("acme", user), "s", {"is": user.encode()}, KEEP)
        moving = [Move(cluster, slot_of("acme", user)) for user in users[:10]]
        for number, move in enumerate(moving):
            move.begin().take()
            if number % 2:
                move.end()
        for _ in range(3):
            found = await asyncio.gather(*(store.read_field(("acme", user), "s", "is") for user in users))
            assert found == [user.encode() for user in users]
        for move in moving:
            move.end()
        found = await asyncio.gather(*(store.read_field(("acme", user), "s", "is") for user in users))
        assert found == [user.encode() for user in users]


async def test_a_script_that_the_other_node_does_not_have_is_sent_there(
    cluster: ClusterOfServers, store: RedisStore
) -> None:
    await store.increment(("acme", "ann"), "s", "n", 1)
    move = Move(cluster, slot_of("acme", "ann")).begin().take()
    move.to.run("SCRIPT", "FLUSH")
    assert await store.increment(("acme", "ann"), "s", "n", 1) == 2
    assert await store.increment(("acme", "ann"), "s", "n", 1) == 3
    assert calls(move.to, "eval") == 1
    move.end()


async def test_where_asking_is_forbidden_everybody_else_still_gets_their_own_answer(
    cluster: ClusterOfServers, asyncio_only: None
) -> None:
    users = [f"user{number}" for number in range(60)]
    for server in cluster.masters():
        server.run("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "-asking")
    url = cluster.url.replace("://", "://narrow:pw@")
    moves = []
    async with cluster.store() as writer, RedisStore.from_url(url, connections=1, timeout=0.5) as store:
        for user in users:
            await writer.merge(("acme", user), "s", {"is": user.encode()}, KEEP)
        moves = [Move(cluster, slot_of("acme", user)).begin().take() for user in users[:6]]
        try:
            for _ in range(3):
                found = await asyncio.gather(
                    *(store.read_field(("acme", user), "s", "is") for user in users), return_exceptions=True
                )
                assert [type(answer) for answer in found[:6]] == [StateUnavailableError] * 6
                assert found[6:] == [user.encode() for user in users[6:]]
        finally:
            for move in moves:
                move.end()


# Nodes that come and go.


@asynccontextmanager
async def another_node(cluster: ClusterOfServers) -> AsyncIterator[Server]:
    """A node without slots; afterwards another gets its slots, it ends, and is forgotten."""
    node = await asyncio.to_thread(Server, cluster_enabled="yes", cluster_node_timeout=2000)
    others = list(cluster.servers)
    node_id = raw(node, "CLUSTER", "MYID")

    def all_known_to(server: Server) -> bool:
        lines = raw(server, "CLUSTER", "NODES").splitlines()
        return sum(b"handshake" not in line and b"fail" not in line for line in lines) == len(others) + 1

    def join() -> None:
        node.run("CLUSTER", "MEET", "127.0.0.1", others[0].port)
        for server in (node, *others):
            until(partial(all_known_to, server))
        until(lambda: raw(node, "CLUSTER", "INFO").startswith(b"cluster_state:ok"))

    def leave() -> None:
        for slot in slots_of(node):
            Move(cluster, slot, others[0]).whole()
        cluster.servers.remove(node)
        node.close()
        for server in others:
            server.run("CLUSTER", "FORGET", node_id)

    cluster.servers.append(node)
    try:
        await asyncio.to_thread(join)
        yield node
    finally:
        await asyncio.to_thread(leave)


async def test_a_node_that_is_added_is_used_from_its_first_slot_on(
    cluster: ClusterOfServers, store: RedisStore
) -> None:
    await store.merge(("acme", "ann"), "s", ONE, KEEP)
    async with another_node(cluster) as node:
        move = Move(cluster, slot_of("acme", "ann"), node).begin().take()
        assert await store.read(("acme", "ann"), "s") == ONE, "of a node that has no slot yet"
        assert await store.increment(("acme", "ann"), "s", "n", 1) == 1
        move.end()
        assert await store.increment(("acme", "ann"), "s", "n", 1) == 2
        assert calls(node, "hincrby") == 2
    assert await store.increment(("acme", "ann"), "s", "n", 1) == 3


async def test_a_node_that_is_added_and_named_by_another_is_used(cluster: ClusterOfServers, store: RedisStore) -> None:
    await store.merge(("acme", "ann"), "s", ONE, KEEP)
    async with another_node(cluster) as node:
        await asyncio.to_thread(Move(cluster, slot_of("acme", "ann"), node).whole)
        assert await store.increment(("acme", "ann"), "s", "n", 1) == 1
        assert calls(node, "hincrby") == 1


async def test_of_a_node_that_has_left_nothing_is_kept(cluster: ClusterOfServers, asyncio_only: None) -> None:
    async with cluster.store(connections=1, timeout=5) as store:
        servers: Any = store._links[asyncio.get_running_loop()]._servers
        async with another_node(cluster) as node:
            await store.merge(("acme", "ann"), "s", ONE, KEEP)
            await asyncio.to_thread(Move(cluster, slot_of("acme", "ann"), node).whole)
            assert await store.read(("acme", "ann"), "s") == ONE
            assert f"127.0.0.1:{node.port}" in servers._lanes
        for _ in range(20):  # one of these is lost with the node, and a look at where the slots are follows
            with suppress(StateUnavailableError):
                await store.read(("acme", "ann"), "s")
            for server in cluster.masters():
                server.run("CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.11)
            if f"127.0.0.1:{node.port}" not in servers._lanes:
                break
        assert f"127.0.0.1:{node.port}" not in servers._lanes
        assert await store.read(("acme", "ann"), "s") == ONE


async def test_a_node_that_was_started_again_is_used_again(cluster: ClusterOfServers, store: RedisStore) -> None:
    for number in range(30):
        await store.merge(("acme", str(number)), "s", ONE, KEEP)
    server = owner_of(cluster, slot_of("acme", "0"))
    server.kill()
    with pytest.raises(StateUnavailableError, match=r"see whether the server runs|does not serve all its slots"):
        await store.read(("acme", "0"), "s")
    server.start()

    def ok() -> bool:
        return all(raw(one, "CLUSTER", "INFO").startswith(b"cluster_state:ok") for one in cluster.masters())

    await asyncio.to_thread(until, ok)
    for number in range(30):
        found = await store.read(("acme", str(number)), "s")
        assert found == (None if slot_of("acme", str(number)) in slots_of(server) else ONE)


# Finding out where the slots are.


async def test_of_the_nodes_in_the_url_one_must_answer(cluster: ClusterOfServers, asyncio_only: None) -> None:
    url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.servers[1].port},127.0.0.1:2"
    async with RedisStore.from_url(url) as store:
        for number in range(20):
            assert await store.read(("acme", str(number)), "s") is None


async def test_closing_while_it_is_found_out_ends_those_who_wait(cluster: ClusterOfServers, asyncio_only: None) -> None:
    store = cluster.store(timeout=20)
    for server in cluster.servers:
        server.pause()
    try:
        waiting = [asyncio.ensure_future(store.read(("acme", "ann"), "s")) for _ in range(3)]
        cancelled = asyncio.ensure_future(store.read(("acme", "ann"), "s"))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        await store.close()
        for task in waiting:
            with pytest.raises(StateUnavailableError, match="the store was closed meanwhile"):
                await asyncio.wait_for(task, SOON)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    finally:
        for server in cluster.servers:
            server.resume()


async def test_who_cannot_wait_for_it_is_late_and_who_can_is_served(
    cluster: ClusterOfServers, asyncio_only: None
) -> None:
    store = cluster.store(timeout=0.3)
    for server in cluster.servers:
        server.pause()
    try:
        with pytest.raises(StateUnavailableError):
            await store.read(("acme", "ann"), "s")
    finally:
        for server in cluster.servers:
            server.resume()
    assert await store.read(("acme", "ann"), "s") is None
    await store.close()


async def test_a_look_that_hangs_ends_with_the_deadline_of_the_call(
    cluster: ClusterOfServers, asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster.store(timeout=0.5) as store:
        await store.merge(("acme", "ann"), "s", ONE, KEEP)
        move = Move(cluster, slot_of("acme", "ann"))
        await asyncio.to_thread(move.whole)
        with monkeypatch.context() as patched:
            patched.setattr(NodesManager, "move_slot", lambda manager, error: asyncio.Event().wait())
            with pytest.raises(StateUnavailableError):
                await store.read(("acme", "ann"), "s")
        assert await store.read(("acme", "ann"), "s") == ONE


async def test_a_slot_that_is_moved_while_it_is_looked_for_is_found(
    cluster: ClusterOfServers, asyncio_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a look may find that no node has it, just before the node that had it names another."""
    async with cluster.store() as store:
        await store.merge(("acme", "ann"), "s", ONE, KEEP)
        slot = slot_of("acme", "ann")
        await asyncio.to_thread(Move(cluster, slot).whole)
        manager: Any = store._links[asyncio.get_running_loop()]._servers._client.nodes_manager  # type: ignore[union-attr]
        ask = Lane.ask

        async def look_meanwhile(lane: Any, *arguments: Any) -> Any:
            monkeypatch.undo()
            asked = asyncio.ensure_future(ask(lane, *arguments))
            del manager.slots_cache[slot]
            return await asked

        monkeypatch.setattr(Lane, "ask", look_meanwhile)
        assert await store.read(("acme", "ann"), "s") == ONE


async def test_a_slot_that_no_node_serves_is_an_error(cluster: ClusterOfServers, asyncio_only: None) -> None:
    slot = slot_of("acme", "ann")
    owner = owner_of(cluster, slot)
    for server in cluster.servers:
        server.run("CONFIG", "SET", "cluster-require-full-coverage", "no")
    client: Any = RedisCluster(
        startup_nodes=[ClusterNode("127.0.0.1", cluster.servers[0].port)], require_full_coverage=False
    )
    try:
        for server in cluster.servers:
            server.run("CLUSTER", "DELSLOTS", slot)
        store = RedisStore(client)
        with pytest.raises(StateUnavailableError):
            await store.read(("acme", "ann"), "s")
        other = next(user for user in map(str, range(100)) if slot_of("acme", user) != slot)
        assert await store.read(("acme", other), "s") is None
        await store.close()
    finally:
        await client.aclose()
        owner.run("CLUSTER", "ADDSLOTS", slot)
        owner.run("CLUSTER", "BUMPEPOCH")
        for server in cluster.servers:
            server.run("CONFIG", "SET", "cluster-require-full-coverage", "yes")

            def covered(server: Server = server) -> bool:
                return b"cluster_slots_ok:16384" in raw(server, "CLUSTER", "INFO").split()

            await asyncio.to_thread(until, covered)
