"""The recipe for taskiq, with a real worker, and with the broker in memory."""

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
from queue_recipes import ANN, BOB, PEOPLE, SECONDS, UNACCEPTABLE, recipe, worker
from taskiq import AsyncTaskiqTask, InMemoryBroker

from asgi_context import Identity, bind_context, current_context
from asgi_context.errors import ContextNotBoundError


class Sender:
    """Sends tasks, and awaits what they return."""

    log: Path  # what the worker says

    def __init__(self) -> None:
        self.jobs = import_module("jobs_taskiq")
        self.probes = import_module("jobs_taskiq_probes")
        self.runner = asyncio.Runner()
        self.run(self.jobs.broker.startup())

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(what, context=copy_context())

    def send(self, person: Identity | None, name: str, *args: Any, labels: dict[str, Any] | None = None) -> Any:
        kicker = getattr(self.probes, name).kicker().with_labels(**labels or {})
        with bind_context(person) if person else nullcontext():
            return self.run(kicker.kiq(*args))

    def whole_result(self, task: Any) -> Any:
        return self.run(task.wait_result(check_interval=0.02, timeout=SECONDS))

    def result(self, task: Any) -> Any:
        found = self.whole_result(task)
        found.raise_for_error()
        return found.return_value

    def ask(self, person: Identity | None, name: str, *args: Any, labels: dict[str, Any] | None = None) -> Any:
        return self.result(self.send(person, name, *args, labels=labels))

    def nobody_is_bound(self) -> None:
        sent = [self.send(None, name) for name in ["who", "who_in_a_thread"] * 4]
        assert [self.result(task) for task in sent] == [None, [None, False]] * 4

    def close(self) -> None:
        self.run(self.jobs.broker.shutdown())
        self.runner.close()


@pytest.fixture(scope="module")
def sender() -> Iterator[Sender]:
    command = ["-m", "taskiq", "worker", "--receiver", "jobs_taskiq:ContextReceiver", "--workers", "1"]
    options = ["--max-threadpool-threads", "2", "jobs_taskiq:broker", "jobs_taskiq_probes"]
    with recipe("jobs_taskiq", "class ContextReceiver"):
        made = Sender()  # before the worker, which does not read what was sent before it has made the stream's group
        with worker(*command, *options, ready="Listening started", bound=True) as made.log:
            yield made
        made.close()


def test_a_task_runs_on_behalf_of_whoever_has_sent_it(sender: Sender) -> None:
    with bind_context(ANN) as context:
        task = sender.run(sender.probes.whose_request.kiq())
    assert sender.result(task) == ["acme", "ann", context.request_id]
    with bind_context(ANN):
        assert sender.result(sender.run(sender.jobs.remind.kiq("lunch"))) == "ann is reminded of lunch"


def test_so_do_plain_functions_in_threads_and_dependencies(sender: Sender) -> None:
    assert sender.ask(ANN, "who_in_a_thread") == ["acme/ann", False]
    assert sender.ask(ANN, "who_depends") == ["acme/ann", "acme/ann"]


def test_plain_functions_in_processes_are_nobodys(sender: Sender) -> None:
    """Least of all the first sender's, for whose task the processes are forked."""
    command = ["-m", "taskiq", "worker", "--receiver", "jobs_taskiq:ContextReceiver", "--workers", "1"]
    options = ["--use-process-pool", "--max-process-pool-processes", "1", "jobs_taskiq_probes:for_processes"]
    sender.run(sender.probes.for_processes.startup())
    with worker(*command, *options, ready="Listening started"):
        for person, who in [(ANN, "acme/ann"), (BOB, "bolt/bob"), (None, None)]:
            assert sender.ask(person, "who_in_a_process") is None
            assert sender.ask(person, "who_beside_processes") == who
    sender.run(sender.probes.for_processes.shutdown())


def test_a_task_that_nobody_has_sent_is_nobodys(sender: Sender) -> None:
    assert sender.ask(ANN, "who") == "acme/ann"
    sender.nobody_is_bound()
    with pytest.raises(ContextNotBoundError):
        sender.ask(None, "must_know")


def test_tasks_of_many_tenants_at_once_each_see_their_own(sender: Sender) -> None:
    chance, sent = random.Random(1), []
    for person in chance.sample(PEOPLE * 5, 40):
        sent.append((f"{person.tenant}/{person.user}", sender.send(person, "whoever", chance.randrange(200))))
        sent.append((None, sender.send(None, "whoever", chance.randrange(200))))
    for whose, task in sent:
        assert sender.result(task) == [whose, whose]


def test_after_a_task_has_failed_or_taken_too_long_nothing_is_bound(sender: Sender) -> None:
    with pytest.raises(ValueError, match="acme/ann"):
        sender.ask(ANN, "fail")
    with pytest.raises(TimeoutError):
        sender.ask(ANN, "wait")
    sender.nobody_is_bound()


@pytest.mark.parametrize("name", ["leave_something", "leave_something_in_a_thread"])
def test_what_a_task_binds_and_forgets_is_gone_with_it(sender: Sender, name: str) -> None:
    assert [sender.ask(ANN, name) for _ in range(3)] == ["left/lea"] * 3
    sender.nobody_is_bound()


@pytest.mark.parametrize(("person", "who"), [(ANN, "acme/ann"), (None, None)])
def test_a_task_that_is_sent_again_keeps_its_sender(sender: Sender, person: Identity | None, who: str | None) -> None:
    assert sender.ask(person, "requeue") == who
    task = sender.send(person, "try_again")
    results = [sender.whole_result(task)]
    redis_servers.until(lambda: results.append(sender.whole_result(task)) or not results[-1].is_err, SECONDS)
    assert results[-1].return_value == [2, who]


def test_a_task_that_is_called_is_a_function_of_whoever_calls_it(sender: Sender) -> None:
    assert sender.ask(ANN, "call_others") == ["acme/ann", "other/olaf", None, "acme/ann"]
    with bind_context(ANN):
        assert sender.run(sender.probes.who()) == "acme/ann"


def test_what_a_task_sends_is_sent_by_whoever_is_bound_there(sender: Sender) -> None:
    ids = sender.ask(ANN, "send_others")
    backend = sender.jobs.broker.result_backend
    tasks = [AsyncTaskiqTask(task_id, backend) for task_id in ids]
    assert [sender.result(task) for task in tasks] == ["acme/ann", None, "other/olaf"]


def test_the_carrier_does_not_come_back_to_be_sent_along(sender: Sender) -> None:
    found = sender.whole_result(sender.send(ANN, "who", labels={"of": "ours"}))
    assert found.labels == {"of": "ours"}
    assert sender.ask(BOB, "who", labels=found.labels) == "bolt/bob"
    kicker = sender.probes.who.kicker()
    for person, who in [(ANN, "acme/ann"), (BOB, "bolt/bob"), (None, None)]:
        with bind_context(person) if person else nullcontext():
            assert sender.result(sender.run(kicker.kiq())) == who
    assert "asgi-context" not in sender.probes.who.labels


# Refused


@pytest.mark.parametrize("what", UNACCEPTABLE)
def test_a_carrier_that_is_not_acceptable_fails_the_task(sender: Sender, what: str) -> None:
    make, error = UNACCEPTABLE[what]
    for name in ["who", "who_in_a_thread", "try_again"]:
        task = sender.send(BOB, name, labels={"asgi-context": make("taskiq")})
        with pytest.raises(error):
            sender.result(task)
        assert f"task '{task.task_id}' is refused: {error()}" in sender.log.read_text("utf-8")
    sender.nobody_is_bound()


# In memory


def test_in_memory_tasks_run_on_behalf_of_their_senders(sender: Sender) -> None:
    broker = InMemoryBroker(await_inplace=True).with_middlewares(sender.jobs.SenderMiddleware())
    broker.receiver = sender.jobs.ContextReceiver(broker, executor=broker.executor, max_async_tasks=1)

    @broker.task
    async def who() -> str | None:
        context = current_context(None)
        return context and context.tenant

    @broker.task
    async def fail() -> None:
        raise ValueError

    async def ask(person: Identity | None) -> list[Any]:
        with bind_context(person) if person else nullcontext():
            await fail.kiq()
            task = await who.kiq()
            found = [(await task.get_result()).return_value, await who()]
        return [*found, await who()]

    assert sender.run(ask(ANN)) == ["acme", "acme", None]
    assert sender.run(ask(None)) == [None, None, None]
    broker.executor.shutdown()
