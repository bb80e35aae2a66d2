"""What one event loop has of a store."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import RedisCluster
from redis.exceptions import AskError, NoScriptError, TryAgainError

from asgi_context.errors import StateNotConfirmedError
from asgi_context.redis._commands import Answer, Command, pack
from asgi_context.redis._lane import Lane
from asgi_context.redis._refused import (
    ANSWERS,
    PASSING,
    LateError,
    LostError,
    UnconfirmedError,
    UnsentError,
    code_of,
    unavailable,
)
from asgi_context.redis._scripts import Script
from asgi_context.redis._servers import Client, Cluster, OneServer
from asgi_context.redis._urls import close

_PAUSES: Final = (0.0, 0.05, 0.2)  # seconds before a command is sent again, some of it at random


_ASKING: Final = pack("ASKING")


class Link:
    """Asks the servers of a store, on one event loop.

    What cannot change the result is tried again: what was not sent, what the server has not done, and reads.

    Args:
        client: redis-py's.
        own: whether it is closed with the link.
        connections: how many, to each server.
        timeout: the deadline of a call, in seconds.
        durable: how many replicas must have a write.
    """

    def __init__(self, client: Client, *, own: bool, connections: int, timeout: float, durable: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._own = own
        self.timeout = timeout
        self._durable = durable
        self._closed = False
        self._servers: OneServer | Cluster
        self.names_keys = isinstance(client, RedisCluster)
        """Whether scripts must be told of all their keys."""
        if isinstance(client, RedisCluster):
            self._servers = Cluster(client, connections, timeout, durable, own=own)
        else:
            self._servers = OneServer(client, connections, timeout, durable)

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Any],
        *,
        reads: bool = False,
        again: bool = False,
        whole: bool = False,
        expires: float | None = None,
    ) -> Answer:
        """Run a script.

        Args:
            script: the script.
            keys: its keys, all with the same hash tag.
            arguments: its arguments.
            reads: see `Command`.
            again: see `Command`.
            whole: see `Command`.
            expires: see `ask`.

        Returns:
            Its answer.

        Raises:
            StateUnavailableError: the servers cannot be asked, or refuse.
        """
        parts = len(keys), *keys, *arguments
        expires = self.expires() if expires is None else expires
        command = Command(pack("EVALSHA", script.digest, *parts), reads=reads, again=again, whole=whole)
        try:
            return await self.ask(keys[0], command, expires)
        except NoScriptError:  # a server that was restarted, or is new
            command = Command(pack("EVAL", script.text, *parts), reads=reads, again=again, whole=whole)
            return await self.ask(keys[0], command, expires)

    async def do(
        self, name: str, key: str, *rest: str | bytes | int, reads: bool = False, whole: bool = False
    ) -> Answer:
        """Run one command.

        Args:
            name: its name.
            key: its key.
            rest: its other arguments.
            reads: see `Command`.
            whole: see `Command`.

        Returns:
            Its answer.

        Raises:
            StateUnavailableError: the servers cannot be asked, or refuse.
        """
        return await self.ask(key, Command(pack(name, key, *rest), reads=reads, whole=whole), self.expires())

    async def ping(self) -> None:
        """Connect to all servers, and have an answer of each.

        Raises:
            StateUnavailableError: a server cannot be asked, or refuses.
        """
        ping, expires = Command(pack("PING"), reads=True), self.expires()
        await self.ask("", ping, expires)
        for lane in self._servers.lanes():
            try:
                await lane.ask(ping, expires)
                if self._durable:
                    await self._may_wait(lane, expires)
            except (*ANSWERS, LostError, UnsentError, LateError) as error:
                raise self._unavailable(error) from error.__cause__

    async def _may_wait(self, lane: Lane, expires: float) -> None:
        try:
            await lane.ask(Command(pack("WAIT", 0, 0), reads=True), expires)
        except ANSWERS as error:
            if code_of(error) == "NOPERM":
                raise
            # Of a node that has become a replica, say: writes find the new master.

    def expires(self) -> float:
        """Say until when a call that begins now may take.

        Returns:
            When, by the clock of the loop.
        """
        return self._loop.time() + self.timeout

    def halfway(self, expires: float) -> float:
        """Say until when a part of a call may take, so that as much time is left for the rest.

        Args:
            expires: until when the call may take, by the clock of the loop.

        Returns:
            When, by the same clock.
        """
        return (self._loop.time() + expires) / 2

    async def ask(self, key: str, command: Command, expires: float) -> Answer:
        """Send a command, and give its answer.

        Args:
            key: whose hash tag says where to.
            command: the command.
            expires: until when, by the clock of the loop.

        Returns:
            The answer.

        Raises:
            StateUnavailableError: the servers cannot be asked, or refuse.
            NoScriptError: the server does not have that script.
        """
        lane = None
        tries = 0
        while True:
            if self._closed:
                raise self._unavailable(UnsentError())
            try:
                if not self._servers.ready:
                    async with asyncio.timeout_at(expires):
                        await self._servers.open()
                if lane is None:
                    return await self._servers.lane(key).ask(command, expires)
                return await lane.ask(command.after(_ASKING), expires)
            except NoScriptError:
                raise
            except UnconfirmedError as error:
                raise StateNotConfirmedError(error.replicas, self._durable) from error.__cause__
            except (*ANSWERS, LostError, UnsentError, LateError, TimeoutError) as error:
                failure = error
            if not isinstance(failure, ANSWERS):
                self._servers.suspect()
            moving = isinstance(failure, AskError | TryAgainError)  # MOVED too: while slots move, as often as need be
            if (tries >= len(_PAUSES) and not moving) or not _may_be_sent_again(failure, command):
                raise self._unavailable(failure) from failure.__cause__
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            lane = await self._look(failure, pause * random.uniform(0.5, 1), expires)  # noqa: S311 - no secret
            tries += 1

    async def close(self) -> None:
        """Wait for what is under way, and close all connections."""
        self._closed = True
        await self._servers.close()
        if self._own:
            await close(self._client)

    async def _look(self, failure: Exception, pause: float, expires: float) -> Lane | None:
        if self._loop.time() + pause >= expires:
            raise self._unavailable(failure) from failure.__cause__
        try:
            async with asyncio.timeout_at(expires):
                if not isinstance(failure, AskError):
                    await asyncio.sleep(pause)
                    await self._servers.lost()
                    return None
                await asyncio.sleep(pause / 10)  # two nodes may send it to and fro for a while
                return await self._servers.moved(failure)
        except TimeoutError:
            raise self._unavailable(failure) from failure.__cause__
        except UnsentError as error:
            raise self._unavailable(error) from error.__cause__

    def _unavailable(self, error: Exception) -> Exception:
        return unavailable(LateError() if isinstance(error, TimeoutError) else error, self.timeout, closed=self._closed)


def _may_be_sent_again(error: Exception, command: Command) -> bool:
    if isinstance(error, ANSWERS):
        return isinstance(error, AskError) or code_of(error) in PASSING
    if isinstance(error, UnsentError):
        code = "" if error.__cause__ is None else code_of(error.__cause__)
        return not code or code in PASSING  # else what is wrong is not the connection, such as the password
    return isinstance(error, LostError) and command.again
