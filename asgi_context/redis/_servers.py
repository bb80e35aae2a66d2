"""Where a space is kept: lanes to one server, or to each node of a cluster."""

import asyncio
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, TypeAlias, cast

from redis.asyncio import ConnectionPool, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisClusterException, RedisError

from asgi_context.redis._lane import Connection, Lane
from asgi_context.redis._refused import UnsentError

Client: TypeAlias = ConnectionPool | RedisCluster

_BETWEEN: Final = 0.1  # seconds between two looks at where the slots of a cluster are


class OneServer:
    """Lanes to one server, or to the master that Sentinel names.

    Args:
        pool: makes the connections.
        connections: how many.
        timeout: see `Lane`.
        durable: see `Lane`.
    """

    def __init__(self, pool: ConnectionPool, connections: int, timeout: float, durable: int) -> None:
        self._pool = pool
        made = (cast("Any", pool).make_connection() for _ in range(connections))
        self._lanes = [Lane(_alone(connection), timeout, durable) for connection in made]

    ready = True

    def lane(self, key: str) -> Lane:
        """Give the lane for all keys with the same hash tag.

        Args:
            key: one of them, or what they begin with.

        Returns:
            The lane.
        """
        return self._lanes[hash(key.partition("}")[0]) % len(self._lanes)]

    def lanes(self) -> list[Lane]:
        """Give all lanes.

        Returns:
            Those to each server that takes writes.
        """
        return self._lanes

    async def open(self) -> None:
        """Find out where what is kept."""

    def suspect(self) -> None:
        """Begin to find out anew where what is kept, since a server has not answered."""

    async def lost(self) -> None:
        """Find out anew where what is kept, since a server is not there or not in charge."""

    async def moved(self, error: AskError) -> Lane | None:
        """Follow an answer that names another node.

        Args:
            error: the answer.

        Returns:
            The lane to ask in this one case; ``None`` where `lane` knows from now on.
        """
        raise UnsentError from error  # a node of a cluster, and not known to be one

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(lane.close() for lane in self._lanes))


class Cluster:
    """Lanes to the nodes of a cluster; redis-py knows which has which slots (Redis Cluster specification).

    Args:
        client: knows the cluster.
        connections: how many for each node.
        timeout: see `Lane`.
        durable: see `Lane`.
        own: whether nobody else uses the client.
    """

    def __init__(self, client: RedisCluster, connections: int, timeout: float, durable: int, *, own: bool) -> None:
        self._client = client
        self._own = own
        self._connections = connections
        self._timeout = timeout
        self._durable = durable
        self._lanes: dict[str, list[Lane]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._looked = -_BETWEEN
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether it is known where the slots are."""
        return bool(self._client.nodes_manager.slots_cache)

    def lane(self, key: str) -> Lane:
        """Give the lane for all keys with the same hash tag; see `OneServer.lane`."""
        slot = key_slot(key.encode())
        manager: Any = self._client.nodes_manager
        try:
            node = manager.get_node_from_slot(slot)
        except (RedisClusterException, LookupError) as error:
            raise UnsentError from error
        return self._lanes_of(node)[slot % self._connections]

    def lanes(self) -> list[Lane]:
        """Give all lanes; see `OneServer.lanes`."""
        return [lane for node in self._client.get_primaries() for lane in self._lanes_of(node)]

    async def open(self) -> None:
        """Find out where the slots are; all who need it wait for the same look."""
        looking = self._looking or self._begin()
        try:
            await asyncio.shield(looking)
        except asyncio.CancelledError:
            if looking.cancelled() and not cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                raise UnsentError from None  # it was closed meanwhile, and who waits is not what was cancelled
            raise

    def suspect(self) -> None:
        """Begin to find out anew where the slots are; see `OneServer.suspect`."""
        if self._looking is None and asyncio.get_running_loop().time() - self._looked >= _BETWEEN:
            self._begin()

    async def lost(self) -> None:
        """Find out anew where the slots are; see `OneServer.lost`."""
        self.suspect()
        if self._looking is not None:
            with suppress(UnsentError):
                await self.open()

    async def moved(self, error: AskError) -> Lane | None:
        """Follow an answer that names another node; see `OneServer.moved`."""
        manager: Any = self._client.nodes_manager
        if isinstance(error, MovedError):
            try:
                await manager.move_slot(error)
            except LookupError:  # of a slot that nobody had
                await self.open()
            return None
        place = cast("Any", error).host, error.port
        node = manager.get_node(*place)
        if node is None:  # one that has no slots yet, which nobody lists
            node = ClusterNode(*place, **manager.connection_kwargs)
        return self._lanes_of(node)[0]

    async def close(self) -> None:
        """Close all connections."""
        if self._looking is not None:
            self._looking.cancel()
        lanes = [lane for lanes in self._lanes.values() for lane in lanes]
        await asyncio.gather(*(lane.close() for lane in lanes), *self._ending, return_exceptions=True)

    def _lanes_of(self, node: Any) -> list[Lane]:  # noqa: ANN401 - redis-py's ClusterNode
        lanes = self._lanes.get(node.name)
        if lanes is None:
            # Not out of the node's pool, which may be small, and whose connections are its own to end.
            made = (node.connection_class(**node.connection_kwargs) for _ in range(self._connections))
            lanes = self._lanes[node.name] = [Lane(_alone(one), self._timeout, self._durable) for one in made]
        return lanes

    def _begin(self) -> asyncio.Task[None]:
        self._looking = asyncio.get_running_loop().create_task(self._look(), context=Context())
        self._looking.add_done_callback(self._looked_out)
        return self._looking

    def _looked_out(self, task: asyncio.Task[None]) -> None:
        # Not in the task itself, whose body has not even begun where it was cancelled at once.
        self._looking = None
        self._looked = asyncio.get_running_loop().time()
        if not task.cancelled():
            task.exception()  # who waits for it gets it, and nobody may be waiting

    async def _look(self) -> None:
        manager = self._client.nodes_manager
        try:
            if self._own or self.ready:
                await manager.initialize()
            else:  # as the one who made it would: else it would not let itself be closed
                await self._client.initialize()
        except (RedisError, RedisClusterException, OSError) as error:
            raise UnsentError from error.__cause__ or error  # which says what is wrong, such as the password
        for name in self._lanes.keys() - manager.nodes_cache.keys():
            for lane in self._lanes.pop(name):
                ending = asyncio.get_running_loop().create_task(lane.close(), context=Context())
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)


def _alone(connection: Any) -> Connection:  # noqa: ANN401 - of any class of redis-py's
    # The lane has deadlines of its own, and knows what may be tried again.
    connection.socket_timeout = None
    connection.retry = Retry(NoBackoff(), 0)
    return cast("Connection", connection)
