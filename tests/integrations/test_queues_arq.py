"""The recipe for arq, with a real worker."""

import asyncio
import random
from collections.abc import Coroutine, Iterator
from contextlib import nullcontext
from contextvars import copy_context
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import redis_servers
from arq import create_pool
from arq.jobs import Job, ResultNotFound
from queue_recipes import ANN, BOB, PEOPLE, SECONDS, UNACCEPTABLE, carrier, recipe, worker

from asgi_context import Identity, bind_context
from asgi_context.errors import ContextNotBoundError


class Sender:
    """Sends jobs, and awaits what they return.

    Args:
        broker: where they go.
        log: what the worker says.
    """

    def __init__(self, broker: redis_servers.Server, log: Path) -> None:
        self.broker = broker
        self.log = log
        self.jobs = import_module("jobs_arq")
        self.probes = import_module("jobs_arq_probes")
        self.runner = asyncio.Runner()
        self.redis = self.run(create_pool(self.jobs.WorkerSettings.redis_settings))

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(what, context=copy_context())

    def send(self, person: Identity | None, name: str, *args: Any, **options: Any) -> Any:
        with bind_context(person) if person else nullcontext():
            return self.run(self.jobs.enqueue(self.redis, name, *args, **options))

    def result(self, job: Any) -> Any:
        try:
            return self.run(job.result(SECONDS, poll_delay=0.02))
        except ResultNotFound:  # arq looks for a result, then for the job, which may have ended in between
            return self.run(job.result(SECONDS, poll_delay=0.02))

    def ask(self, person: Identity | None, name: str, *args: Any, **options: Any) -> Any:
        return self.result(self.send(person, name, *args, **options))

    def nobody_is_bound(self) -> None:
        assert {self.result(job) for job in [self.send(None, "who") for _ in range(4)]} == {None}

    def close(self) -> None:
        self.run(self.redis.aclose())
        self.runner.close()


@pytest.fixture(scope="module")
def sender() -> Iterator[Sender]:
    with (
        recipe("jobs_arq", "class WorkerSettings") as broker,
        worker("-m", "arq", "jobs_arq_probes.WorkerSettings", ready="Starting worker", bound=True) as log,
    ):
        made = Sender(broker, log)
        yield made
        made.close()


def said(sender: Sender, key: str) -> Any:
    return redis_servers.until(lambda: sender.broker.run("LPOP", key), SECONDS)


def test_a_job_runs_on_behalf_of_whoever_has_sent_it(sender: Sender) -> None:
    with bind_context(ANN) as context:
        job = sender.run(sender.jobs.enqueue(sender.redis, "whose_request"))
    assert sender.result(job) == ["acme", "ann", context.request_id]
    assert sender.ask(ANN, "remind", "lunch") == "ann is reminded of lunch"
    assert sender.ask(ANN, "remind", what="lunch") == "ann is reminded of lunch"


def test_a_job_that_nobody_has_sent_is_nobodys(sender: Sender) -> None:
    assert sender.ask(ANN, "who") == "acme/ann"
    sender.nobody_is_bound()
    with pytest.raises(ContextNotBoundError):
        sender.ask(None, "must_know")
    assert said(sender, "by the clock") == b"None"


def test_jobs_of_many_tenants_at_once_each_see_their_own(sender: Sender) -> None:
    chance, sent = random.Random(1), []
    for person in chance.sample(PEOPLE * 5, 40):
        sent.append((f"{person.tenant}/{person.user}", sender.send(person, "whoever", chance.randrange(200))))
        sent.append((None, sender.send(None, "whoever", chance.randrange(200))))
    for whose, job in sent:
        assert sender.result(job) == [whose, whose]


def test_after_a_job_has_failed_nothing_is_bound(sender: Sender) -> None:
    with pytest.raises(ValueError, match="acme/ann"):
        sender.ask(ANN, "fail")
    sender.nobody_is_bound()


def test_what_a_job_binds_and_forgets_is_gone_with_it(sender: Sender) -> None:
    assert sender.ask(ANN, "leave_something") == "left/lea"
    sender.nobody_is_bound()


def test_a_retry_has_the_sender_of_the_first_try(sender: Sender) -> None:
    assert sender.ask(ANN, "try_again") == [3, "acme/ann"]
    assert sender.ask(None, "try_again") == [3, None]


def test_a_job_that_is_aborted_or_takes_too_long_leaves_nothing_bound(sender: Sender) -> None:
    with pytest.raises(TimeoutError):
        sender.ask(ANN, "wait_too_long")
    job = sender.send(BOB, "wait")
    assert said(sender, "begun") == b"bolt/bob"
    sender.run(job.abort(timeout=SECONDS, poll_delay=0.02))
    with pytest.raises(asyncio.CancelledError):
        sender.result(job)
    sender.nobody_is_bound()


def test_a_job_that_is_called_is_a_function_of_whoever_calls_it(sender: Sender) -> None:
    assert sender.ask(ANN, "call_others") == ["acme/ann", "other/olaf", None, "acme/ann"]
    with bind_context(ANN):
        assert sender.run(sender.probes.who({})) == "acme/ann"


def test_what_a_job_sends_is_sent_by_whoever_is_bound_there(sender: Sender) -> None:
    ids = sender.ask(ANN, "send_others")
    assert [sender.result(Job(job_id, sender.redis)) for job_id in ids] == ["acme/ann", None, "other/olaf"]


def test_the_log_does_not_tell_the_signature(sender: Sender) -> None:
    text = carrier("arq", ANN)
    assert sender.ask(BOB, "who", **{"asgi-context": text}) == "acme/ann"
    _, signature = text.rsplit(".", 1)
    log = sender.log.read_text("utf-8")
    assert text[:40] in log, "arq logs how jobs are called"
    assert signature[:8] not in log


# Refused


@pytest.mark.parametrize("what", UNACCEPTABLE)
def test_a_carrier_that_is_not_acceptable_fails_the_job(sender: Sender, what: str) -> None:
    make, error = UNACCEPTABLE[what]
    with pytest.raises(error):
        sender.ask(None, "who", **{"asgi-context": make("arq")})
    sender.nobody_is_bound()
