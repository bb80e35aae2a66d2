"""Tasks that tell on whose behalf they run. For the worker, and for the test that sends them."""

import json
import threading
import time
from typing import Any

from celery import Task, group
from jobs_celery import app
from queue_probes import bind_at_start, bound, leave

from asgi_context import Identity, bind_context, current_context, unbound_context

app.conf.update(worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
bind_at_start()


def by_its_request() -> list[str]:
    context = current_context()
    return [context.tenant, context.user or "", context.request_id]


@app.task
def who() -> str | None:
    return bound()


@app.task
def whose_request() -> list[str]:
    return by_its_request()


@app.task
def whoever(seconds: float) -> list[str | None]:
    before = bound()
    time.sleep(seconds)
    return [before, bound()]


@app.task
def must_know() -> str:
    return current_context().tenant


@app.task
def fail() -> None:
    raise ValueError(bound())


@app.task(bind=True, max_retries=3)
def try_again(self: Any, before: list[Any] | None = None) -> list[Any]:
    seen = [*(before or []), bound()]
    if self.request.retries < 2:
        with bind_context(Identity("other", "olaf")):
            raise self.retry(args=[seen], countdown=0)
    return seen


@app.task(autoretry_for=(ValueError,), default_retry_delay=0, max_retries=2)
def try_by_itself() -> str | None:
    if try_by_itself.request.retries < 2:
        raise ValueError
    return bound()


@app.task
def leave_something() -> str | None:
    return leave(Identity("left", "lea"))


@app.task(soft_time_limit=0.5)
def too_slow() -> None:
    threading.Event().wait(120)


@app.task(time_limit=0.5)
def far_too_slow() -> None:
    threading.Event().wait(120)


@app.task
def begin() -> None:
    app.backend.client.rpush("begun", json.dumps(bound()))
    threading.Event().wait(120)


@app.task
def call_others() -> list[str | None]:
    with bind_context(Identity("other", "olaf")):
        inside = who()
    with unbound_context():
        nobody = who()
    return [who(), inside, nobody, bound()]


@app.task
def call_itself(again: bool = True) -> list[str | None]:
    if not again:
        return [bound()]
    with bind_context(Identity("other", "olaf")):
        return [*call_itself(again=False), who.apply().result]


@app.task
def send_others() -> list[str]:
    with unbound_context():
        nobody = who.delay()
    with bind_context(Identity("other", "olaf")):
        other = who.delay()
    return [who.delay().id, nobody.id, other.id]


@app.task(bind=True)
def give_way(self: Any) -> None:
    raise self.replace(collect.si("replaced"))


@app.task(bind=True)
def give_way_to_several(self: Any) -> None:
    raise self.replace(group(collect.s(), collect.s()))


@app.task(bind=True)
def add_another(self: Any) -> str | None:
    self.add_to_chord(collect.si("added"))
    return bound()


@app.task
def collect(*before: Any) -> list[Any]:
    """Add whoever is bound to the end of what came before."""
    return [*before, bound()]


@app.task
def gather(before: list[Any]) -> list[Any]:
    return [*before, bound()]


@app.task(base=Task)
def plain(*before: Any) -> list[Any]:
    """A task of somebody's who knows nothing of carriers."""
    return [*before, "plain", bound()]


@app.task
def note(task_id: str, name: str) -> str | None:
    app.backend.client.rpush(name, json.dumps(bound()))
    return bound()


@app.task
def note_error(request: Any, error: Exception, traceback: Any, name: str = "called") -> None:
    app.backend.client.rpush(name, json.dumps([bound(), "asgi-context" in request.headers]))


@app.task
def with_headers() -> dict[str, Any]:
    return {name: value for name, value in with_headers.request.headers.items() if name != "asgi-context"}
