"""The recipe for Celery, with real workers: one of processes, one of threads, and eager tasks of the caller's own."""

import json
import random
from collections.abc import Iterator
from contextlib import nullcontext
from contextvars import copy_context
from importlib import import_module
from typing import Any

import pytest
import redis_servers
from celery import chain, chord, group, uuid
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from queue_recipes import ANN, BOB, PEOPLE, SECONDS, UNACCEPTABLE, carrier, recipe, transplanted, worker

from asgi_context import bind_context, current_context
from asgi_context.errors import CarrierSignatureError, ContextClosedError, ContextNotBoundError

POOLS = {"processes": "prefork", "threads": "threads"}


@pytest.fixture(scope="module")
def broker() -> Iterator[redis_servers.Server]:
    with recipe("jobs_celery", "class ContextCelery") as server:
        yield server


@pytest.fixture(scope="module")
def tasks(broker: redis_servers.Server) -> Any:
    return import_module("jobs_celery_probes")


def celery(pool: str, **options: Any) -> Any:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO", "--concurrency=2"]
    return worker(
        "-m", "celery", "--app=jobs_celery_probes", "worker", f"--pool={pool}", *quiet, ready=" ready.", **options
    )


@pytest.fixture(scope="module", params=POOLS)
def run(request: pytest.FixtureRequest, tasks: Any) -> Iterator[Any]:
    """The tasks, as a worker of that kind runs them."""
    with celery(POOLS[request.param]):
        yield tasks


def result(sent: Any) -> Any:
    return sent.get(timeout=SECONDS)


def said(broker: redis_servers.Server, key: str) -> Any:
    """What a task has noted under that name."""
    text = redis_servers.until(lambda: broker.run("LPOP", key), SECONDS)
    return json.loads(text)


def nobody_is_bound(run: Any) -> None:
    """Ask each process or thread of the worker, most likely."""
    assert {result(sent) for sent in [run.who.delay() for _ in range(6)]} == {None}


# On whose behalf


def test_a_task_runs_on_behalf_of_whoever_has_sent_it(run: Any) -> None:
    with bind_context(ANN) as context:
        assert result(run.whose_request.delay()) == ["acme", "ann", context.request_id]
        assert result(run.app.send_task("jobs_celery_probes.who")) == "acme/ann"
        assert result(run.app.tasks["jobs_celery.remind"].delay("lunch")) == "ann is reminded of lunch"


def test_a_task_that_nobody_has_sent_is_nobodys(run: Any) -> None:
    with bind_context(ANN):
        assert result(run.who.delay()) == "acme/ann"
    nobody_is_bound(run)
    with pytest.raises(ContextNotBoundError):
        result(run.must_know.delay())


def test_tasks_of_many_tenants_at_once_each_see_their_own(run: Any) -> None:
    chance, sent = random.Random(1), []
    for person in chance.sample(PEOPLE * 5, 40):
        with bind_context(person):
            sent.append((f"{person.tenant}/{person.user}", run.whoever.delay(chance.random() / 100)))
        sent.append((None, run.who.delay()))
    for whose, task in sent:
        assert result(task) == ([whose, whose] if whose else None)


def test_after_a_task_has_failed_nothing_is_bound(run: Any) -> None:
    with bind_context(ANN):
        failing = [run.fail.delay() for _ in range(4)]
    for sent in failing:
        with pytest.raises(ValueError, match="acme/ann"):
            result(sent)
    nobody_is_bound(run)


def test_what_a_task_binds_and_forgets_is_gone_with_it(run: Any) -> None:
    with bind_context(ANN):
        assert [result(sent) for sent in [run.leave_something.delay() for _ in range(4)]] == ["left/lea"] * 4
    nobody_is_bound(run)


def test_a_retry_has_the_carrier_of_the_first_try(run: Any) -> None:
    with bind_context(ANN):
        sent = [run.try_again.delay(), run.try_by_itself.delay()]
    assert [result(one) for one in sent] == [["acme/ann"] * 3, "acme/ann"]
    assert result(run.try_again.delay()) == [None] * 3
    nobody_is_bound(run)


@pytest.mark.parametrize("run", ["processes"], indirect=True)  # threads cannot be interrupted
@pytest.mark.parametrize(("name", "error"), [("too_slow", SoftTimeLimitExceeded), ("far_too_slow", TimeLimitExceeded)])
def test_a_task_that_takes_too_long_leaves_nothing_bound(
    run: Any, broker: redis_servers.Server, name: str, error: type[Exception]
) -> None:
    with bind_context(ANN):
        sent = getattr(run, name).apply_async(link_error=run.note.s(name))
    with pytest.raises(error):
        result(sent)
    assert said(broker, name) == "acme/ann"  # sent by the worker's main process, where a process was killed
    nobody_is_bound(run)


def test_a_task_that_is_revoked_leaves_nothing_bound(run: Any) -> None:
    task_id = uuid()
    assert run.app.control.revoke(task_id, reply=True, timeout=SECONDS, limit=1)  # so that the worker knows already
    with bind_context(ANN):
        sent = run.who.apply_async(task_id=task_id)
    with pytest.raises(TaskRevokedError):
        result(sent)
    nobody_is_bound(run)


def test_a_task_that_is_called_is_a_function_of_whoever_calls_it(run: Any) -> None:
    with bind_context(ANN):
        assert result(run.call_others.delay()) == ["acme/ann", "other/olaf", None, "acme/ann"]
        assert result(run.call_itself.delay()) == ["other/olaf", "other/olaf"]
        assert run.who() == "acme/ann"
    assert run.who() is None


def test_what_a_task_sends_is_sent_by_whoever_is_bound_there(run: Any) -> None:
    with bind_context(ANN):
        ids = result(run.send_others.delay())
    assert [result(run.app.AsyncResult(task_id)) for task_id in ids] == ["acme/ann", None, "other/olaf"]


@pytest.mark.parametrize("run", ["processes"], indirect=True)
def test_a_task_that_is_terminated_leaves_nothing_bound(run: Any, broker: redis_servers.Server) -> None:
    with bind_context(ANN):
        sent = run.begin.delay()
    assert said(broker, "begun") == "acme/ann"
    sent.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result(sent)
    nobody_is_bound(run)


# A canvas has one sender


def test_all_of_a_chain_a_group_and_a_chord_have_the_sender_of_the_whole(run: Any) -> None:
    with bind_context(ANN):
        canvases = [
            chain(run.collect.s(), run.gather.s(), run.gather.s()),
            group(run.who.s(), run.who.s()),
            chord([run.who.s(), run.who.s()], run.gather.s()),
            chain(group(run.who.s(), run.who.s()), run.gather.s(), run.gather.s()),
            chain(run.collect.si(), chord([run.collect.s(), run.collect.s()], chain(run.gather.s(), run.gather.s()))),
            chain(run.collect.si(), group(run.collect.s(), run.collect.s())),
            chord(group(run.collect.si(), chain(run.collect.si(), run.gather.s())), run.gather.s()),
            run.give_way.s(),
            run.who.chunks([()] * 3, 2).group(),
        ]
        sent = [canvas.apply_async() for canvas in canvases]
    ann = "acme/ann"
    assert [result(one) for one in sent] == [
        [ann, ann, ann],
        [ann, ann],
        [ann, ann, ann],
        [ann, ann, ann, ann],
        [[[ann], ann], [[ann], ann], ann, ann],
        [[[ann], ann], [[ann], ann]],
        [[ann], [ann, ann], ann],
        ["replaced", ann],
        [[ann, ann], [ann]],
    ]
    assert result(chain(run.collect.s(), run.gather.s()).delay()) == [None, None]


def test_callbacks_and_errbacks_have_the_sender_of_the_task(run: Any, broker: redis_servers.Server) -> None:
    with bind_context(ANN):
        run.who.apply_async(link=[run.note.s("one"), run.note.s("two")])
        linked = chain(run.collect.s(), run.note.s("chain"))
        linked.link(run.note.s("link of the chain"))
        run.who.apply_async(link=linked)
        run.fail.apply_async(link_error=[run.note.s("error")])
        chain(run.fail.s(), run.collect.si()).on_error(run.note.s("chain error")).delay()
        chord([run.fail.si(), run.who.si()], run.gather.s().on_error(run.note.s("chord error"))).delay()
    for name in ["one", "two", "chain", "link of the chain", "error", "chain error", "chord error"]:
        assert said(broker, name) == "acme/ann", name


def test_an_errback_that_is_called_finds_the_carrier_in_the_request(run: Any, broker: redis_servers.Server) -> None:
    with bind_context(ANN):
        run.fail.apply_async(link_error=run.note_error.s())
    assert said(broker, "called") == [None, True]


def test_a_task_without_carriers_can_stand_in_a_canvas(run: Any) -> None:
    with bind_context(ANN):
        sent = chain(run.collect.s(), run.plain.s(), run.gather.s()).delay()
    assert result(sent) == [["acme/ann"], "plain", None, "acme/ann"]


def test_a_callback_may_be_a_plain_dictionary(run: Any, broker: redis_servers.Server) -> None:
    """Written by hand, with no more in it than Celery asks for."""
    callback = {"task": run.note.name, "args": ["by hand"], "kwargs": {}, "options": {}}
    with bind_context(ANN):
        run.who.apply_async(link=callback)
    assert said(broker, "by hand") == "acme/ann"


def test_a_task_that_makes_way_for_several_has_given_them_its_sender(run: Any) -> None:
    with bind_context(ANN):
        sent = [
            chain(run.give_way_to_several.si(), run.gather.s()).delay(),
            chord([run.give_way_to_several.si(), run.who.si()], run.gather.s()).delay(),
            chord([run.add_another.si(), run.who.si()], run.gather.s()).delay(),
        ]
    ann = "acme/ann"
    assert result(sent[0]) == [[ann], [ann], ann]
    assert result(sent[1]) == [[[ann], [ann]], ann, ann]
    assert sorted(result(sent[2]), key=str) == sorted([ann, ann, ["added", ann], ann], key=str)


def test_a_signature_may_be_sent_again_by_others(run: Any, broker: redis_servers.Server) -> None:
    one = run.who.s()
    several = chain(run.collect.s(), chord([run.collect.s(), run.collect.s()], run.gather.s()))
    linked = run.who.s().set(link=[run.note.s("again")], headers={"of": "ours"})
    before = json.dumps([one, several, linked])
    for person, who in [(ANN, "acme/ann"), (BOB, "bolt/bob"), (None, None)]:
        with bind_context(person) if person else nullcontext():
            sent = [one.delay(), several.clone().delay(), linked.delay()]
        assert [result(part) for part in sent] == [who, [[[who], who], [[who], who], who], who]
        assert said(broker, "again") == who
    assert json.dumps([one, several, linked]) == before


def test_headers_of_the_senders_own_go_along(run: Any) -> None:
    with bind_context(ANN):
        sent = chain(run.who.si(), run.with_headers.si().set(headers={"of": "ours"})).delay()
        assert result(sent) == {"of": "ours"}
        assert result(run.with_headers.apply_async(headers={"of": "ours"})) == {"of": "ours"}


# Refused


@pytest.mark.parametrize("what", UNACCEPTABLE)
def test_a_carrier_that_is_not_acceptable_fails_the_task(run: Any, what: str) -> None:
    make, error = UNACCEPTABLE[what]
    with bind_context(BOB):
        sent = [task.apply_async(headers={"asgi-context": make("celery")}) for task in (run.who, run.try_by_itself)]
    for one in sent:
        with pytest.raises(error):
            result(one)
    nobody_is_bound(run)


def test_a_header_that_pretends_that_the_task_runs_already_changes_nothing(run: Any) -> None:
    bad = {"asgi-context": transplanted("celery"), "started": True, "called_directly": False}
    with pytest.raises(CarrierSignatureError):
        result(run.who.apply_async(headers=bad))


def test_nothing_is_sent_on_behalf_of_what_was_revoked(tasks: Any, broker: redis_servers.Server) -> None:
    def send() -> None:
        outer, inner = bind_context(ANN), bind_context(BOB)
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)  # out of order
        inner.__exit__(None, None, None)
        tasks.who.delay()

    with pytest.raises(ContextClosedError):
        copy_context().run(send)
    assert broker.run("LLEN", "celery") == 0


def test_a_worker_that_somebody_has_started_runs_nobodys_tasks_for_nobody(tasks: Any) -> None:
    with celery("solo", bound=True):
        assert result(tasks.who.delay()) is None
        with bind_context(ANN):
            assert result(tasks.who.delay()) == "acme/ann"
            assert result(chain(tasks.collect.s(), tasks.gather.s()).delay()) == ["acme/ann", "acme/ann"]
        with pytest.raises(CarrierSignatureError):
            result(tasks.who.apply_async(headers={"asgi-context": transplanted("celery")}))
        assert result(tasks.who.delay()) is None


# Eager


@pytest.fixture
def eager(tasks: Any) -> Iterator[Any]:
    tasks.app.conf.task_always_eager = True
    yield tasks
    tasks.app.conf.task_always_eager = False


def test_an_eager_task_runs_on_behalf_of_the_caller(eager: Any) -> None:
    for person, who in [(ANN, "acme/ann"), (None, None)]:
        with bind_context(person) if person else nullcontext():
            assert eager.who.delay().get() == who
            assert chain(eager.collect.s(), eager.gather.s()).delay().get() == [who, who]
            assert eager.try_again.delay().get() == [who] * 3
            assert eager.call_itself.delay().get() == ["other/olaf", "other/olaf"]
            with pytest.raises(ValueError, match=str(who)):
                eager.fail.delay().get()
            assert eager.leave_something.delay().get() == "left/lea"
            bound = current_context(None)
            assert (bound and bound.tenant) == (person and person.tenant)


def test_an_eager_task_with_a_carrier_runs_on_behalf_of_its_sender(tasks: Any) -> None:
    with bind_context(ANN):
        assert tasks.who.apply(headers={"asgi-context": carrier("celery", BOB)}).get() == "bolt/bob"
        with pytest.raises(CarrierSignatureError):
            tasks.who.apply(headers={"asgi-context": transplanted("celery")}).get()
