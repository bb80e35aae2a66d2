"""Jobs that tell on whose behalf they run, and their worker."""

import asyncio
from typing import Any, ClassVar

import jobs_arq
from arq import Retry, cron, func
from jobs_arq import enqueue, for_sender
from queue_probes import bind_at_start, bound, leave

from asgi_context import Identity, bind_context, current_context, unbound_context

bind_at_start()


async def who(ctx: Any) -> str | None:
    return bound()


async def whose_request(ctx: Any) -> list[Any]:
    context = current_context()
    return [context.tenant, context.user, context.request_id]


async def whoever(ctx: Any, turns: int) -> list[str | None]:
    before = bound()
    for _ in range(turns):
        await asyncio.sleep(0)
    return [before, bound()]


async def must_know(ctx: Any) -> str:
    return current_context().tenant


async def fail(ctx: Any) -> None:
    raise ValueError(bound())


async def try_again(ctx: Any) -> list[Any]:
    if ctx["job_try"] < 3:
        raise Retry
    return [ctx["job_try"], bound()]


async def leave_something(ctx: Any) -> str | None:
    return leave(Identity("left", "lea"))


async def wait(ctx: Any) -> None:
    await ctx["redis"].rpush("begun", str(bound()))
    await asyncio.Event().wait()


async def wait_silently(ctx: Any) -> None:
    await asyncio.Event().wait()


async def call_others(ctx: Any) -> list[str | None]:
    with bind_context(Identity("other", "olaf")):
        inside = await who(ctx)
    with unbound_context():
        nobody = await who(ctx)
    return [await who(ctx), inside, nobody, bound()]


async def send_others(ctx: Any) -> list[str]:
    jobs = [await enqueue(ctx["redis"], "who")]
    with unbound_context():
        jobs.append(await enqueue(ctx["redis"], "who"))
    with bind_context(Identity("other", "olaf")):
        jobs.append(await enqueue(ctx["redis"], "who"))
    return [job.job_id for job in jobs if job]


async def by_the_clock(ctx: Any) -> None:
    await ctx["redis"].rpush("by the clock", str(bound()))


class WorkerSettings:
    redis_settings = jobs_arq.WorkerSettings.redis_settings  # arq looks at a class's own attributes alone
    functions: ClassVar = [
        *jobs_arq.WorkerSettings.functions,
        *map(
            for_sender,
            [who, whose_request, whoever, must_know, fail, try_again, leave_something, wait, call_others, send_others],
        ),
    ]
    functions += [func(for_sender(wait_silently), name="wait_too_long", timeout=0.2)]
    cron_jobs: ClassVar = [cron(for_sender(by_the_clock), run_at_startup=True, second=0)]
    poll_delay = 0.02
    allow_abort_jobs = True
