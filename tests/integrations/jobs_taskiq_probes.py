"""Tasks that tell on whose behalf they run. For the worker, and for the test that sends them."""

import asyncio
import threading
from typing import Annotated, Any

from jobs_taskiq import SenderMiddleware, backend, broker, url
from queue_probes import bind_at_start, bound, leave
from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends
from taskiq_redis import RedisStreamBroker

from asgi_context import Identity, bind_context, current_context, unbound_context

broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=3))
for_processes = RedisStreamBroker(url, queue_name="for processes").with_result_backend(backend)
"""Of a worker that runs plain functions in processes."""
for_processes.add_middlewares(SenderMiddleware())
bind_at_start()


async def dependency() -> str | None:
    return bound()


@broker.task
async def who() -> str | None:
    return bound()


@broker.task
def who_in_a_thread() -> list[Any]:
    return [bound(), threading.current_thread() is threading.main_thread()]


@for_processes.task
def who_in_a_process() -> str | None:
    return bound()


@for_processes.task
async def who_beside_processes() -> str | None:
    return bound()


@broker.task
async def who_depends(found: Annotated[Any, TaskiqDepends(dependency)]) -> list[str | None]:
    return [found, bound()]


@broker.task
async def whose_request() -> list[Any]:
    context = current_context()
    return [context.tenant, context.user, context.request_id]


@broker.task
async def whoever(turns: int) -> list[str | None]:
    before = bound()
    for _ in range(turns):
        await asyncio.sleep(0)
    return [before, bound()]


@broker.task
async def must_know() -> str:
    return current_context().tenant


@broker.task
async def fail() -> None:
    raise ValueError(bound())


@broker.task(retry_on_error=True)
async def try_again(context: Annotated[Context, TaskiqDepends()]) -> list[Any]:
    tried = int(context.message.labels.get("_retries", 0))
    if tried < 2:
        leave(Identity("other", "olaf"))
        raise ValueError
    return [tried, bound()]


@broker.task
async def requeue(context: Annotated[Context, TaskiqDepends()]) -> str | None:
    if "X-Taskiq-requeue" not in context.message.labels:
        await context.requeue()
    return bound()


@broker.task
async def leave_something() -> str | None:
    return leave(Identity("left", "lea"))


@broker.task
def leave_something_in_a_thread() -> str | None:
    return leave(Identity("left", "lea"))


@broker.task(timeout=0.2)
async def wait() -> None:
    await asyncio.Event().wait()


@broker.task
async def call_others() -> list[Any]:
    with bind_context(Identity("other", "olaf")):
        inside = await who()
    with unbound_context():
        nobody = await who()
    return [await who(), inside, nobody, bound()]


@broker.task
async def send_others() -> list[str]:
    sent = [await who.kiq()]
    with unbound_context():
        sent.append(await who.kiq())
    with bind_context(Identity("other", "olaf")):
        sent.append(await who.kiq())
    return [one.task_id for one in sent]
