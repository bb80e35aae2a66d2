"""What is bound: found everywhere inside the block, gone after it, never somebody else's."""

import asyncio
import contextvars
import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from asgi_context import (
    ContextClosedError,
    ContextNotBoundError,
    Identity,
    MemoryStore,
    RequestContext,
    bind_context,
    current_context,
    current_state,
    unbound_context,
)
from asgi_context.errors import StoreNotBoundError
from asgi_context.values import get_from_context, update_request_context

ANN = Identity("acme", "ann", {"role": "admin"})


def test_unbound_it_raises_a_lookup_error_that_says_what_to_do() -> None:
    with pytest.raises(LookupError, match="ContextMiddleware") as caught:
        current_context()
    assert isinstance(caught.value, ContextNotBoundError)
    assert "bind_context" in str(caught.value)
    with pytest.raises(ContextNotBoundError, match="no state is bound"):
        current_state()


def test_unbound_it_returns_the_default_that_was_given() -> None:
    assert current_context(None) is None
    assert current_context("nobody") == "nobody"
    assert current_state(None) is None


def test_inside_the_block_the_context_is_bound_and_after_it_no_more() -> None:
    with bind_context(ANN) as context:
        assert context is current_context()
        assert (context.tenant, context.user, context.claims) == ("acme", "ann", {"role": "admin"})
        assert current_context(None) is context
    assert current_context(None) is None


def test_an_exception_passes_and_the_block_ends() -> None:
    with pytest.raises(KeyError), bind_context(ANN):
        raise KeyError
    assert current_context(None) is None


@pytest.mark.anyio
async def test_the_block_works_with_async_with_too() -> None:
    async with bind_context(ANN) as context:
        assert current_context() is context
        async with unbound_context():
            assert current_context(None) is None
        assert current_context() is context
    assert current_context(None) is None


def test_blocks_nest_and_restore_what_was_outside() -> None:
    with bind_context(ANN) as outer:
        with bind_context(Identity("globex")) as inner:
            assert current_context() is inner
            assert (inner.tenant, inner.user, inner.claims) == ("globex", None, {})
        assert current_context() is outer


def test_an_identity_is_inherited_whole_or_given_whole() -> None:
    with bind_context(ANN):
        with bind_context() as inherited:
            assert (inherited.tenant, inherited.user, inherited.claims) == ("acme", "ann", {"role": "admin"})
        with bind_context(Identity("globex")) as given:
            assert (given.tenant, given.user, given.claims) == ("globex", None, {})


def test_without_an_identity_to_inherit_it_raises() -> None:
    with pytest.raises(ContextNotBoundError, match="no identity"):
        bind_context()
    with bind_context(ANN), unbound_context(), pytest.raises(ContextNotBoundError):
        bind_context()


def test_the_request_id_carries_over_even_if_nobody_has_read_it_yet() -> None:
    with bind_context(ANN) as outer, bind_context(Identity("globex")) as inner:
        assert inner.request_id == outer.request_id
    with bind_context(ANN, request_id="one") as outer, bind_context(request_id="two") as inner:
        assert (outer.request_id, inner.request_id) == ("one", "two")


def test_blocks_that_are_not_nested_have_request_ids_of_their_own() -> None:
    with bind_context(ANN) as first:
        pass
    with bind_context(ANN) as second:
        assert first.request_id != second.request_id
    with bind_context(ANN) as outer, unbound_context(), bind_context(ANN) as inner:
        assert outer.request_id != inner.request_id


def test_a_context_can_be_bound_again_and_brings_its_request_id() -> None:
    context = RequestContext("acme", "ann", claims={"role": "admin"})
    with bind_context(ANN, request_id="outer"), bind_context(context) as bound:
        assert bound == context
    with bind_context(context, request_id="other") as bound:
        assert bound.request_id == "other"


def test_the_store_carries_over_or_is_given() -> None:
    first, second = MemoryStore(), MemoryStore()
    with bind_context(ANN, store=first):
        state = current_state()
        with bind_context(Identity("globex")):
            assert current_state()._store is first
        with bind_context(store=second):
            assert current_state()._store is second
        assert current_state() is state


def test_an_identity_without_a_store_has_no_state() -> None:
    with bind_context(ANN):
        with pytest.raises(StoreNotBoundError, match="store=MemoryStore"):
            current_state()
        assert current_state(None) is None


def test_values_never_carry_over() -> None:
    with bind_context(ANN, values={"a": 1}):
        assert get_from_context("a") == 1
        with bind_context(values={"b": 2}):
            assert get_from_context("a") is None
            assert get_from_context("b") == 2
        assert get_from_context("b") is None


def test_values_given_are_copied() -> None:
    given = {"a": 1}
    with bind_context(ANN, values=given):
        update_request_context(a=2)
    assert given == {"a": 1}


def test_a_store_must_be_one() -> None:
    for wrong in (5, MemoryStore):
        with pytest.raises(TypeError, match="store must be a Store"):
            bind_context(ANN, store=wrong)  # type: ignore[arg-type]


def test_values_must_be_a_mapping() -> None:
    with pytest.raises(TypeError, match="values must be a mapping"):
        bind_context(ANN, values=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["acme", 1, ("acme", "ann"), Identity])
def test_only_an_identity_or_a_context_can_be_bound(wrong: Any) -> None:
    with pytest.raises(TypeError, match="Identity or a RequestContext"):
        bind_context(wrong)


def test_a_block_can_be_entered_once() -> None:
    block = bind_context(ANN)
    with block, pytest.raises(RuntimeError, match="entered once"):
        block.__enter__()
    with pytest.raises(RuntimeError, match="entered once"):
        block.__enter__()
    with pytest.raises(RuntimeError, match="without having been entered"):
        block.__exit__(None, None, None)


def test_after_the_end_the_identity_stays_readable_where_the_binding_lives_on() -> None:
    """In a task or thread that outlives its request; the values have gone with the request."""
    with bind_context(ANN, store=MemoryStore(), values={"a": 1}):
        outliving = contextvars.copy_context()
    assert outliving.run(current_context).tenant == "acme"
    assert outliving.run(current_state) is outliving.run(current_state)
    with pytest.raises(ContextClosedError, match="ended") as caught:
        outliving.run(get_from_context, "a", "default")
    assert caught.value.why == "ended"


def test_after_the_end_a_task_can_bind_itself_anew() -> None:
    with bind_context(ANN):
        outliving = contextvars.copy_context()

    def rebind() -> None:
        with bind_context(values={"a": 1}) as context:
            assert context.tenant == "acme"
            assert get_from_context("a") == 1

    outliving.run(rebind)


def yielding_inside(identity: Identity) -> Iterator[None]:
    with bind_context(identity, store=MemoryStore()):
        yield


def test_a_block_left_in_another_context_is_revoked_where_it_was_entered() -> None:
    generator = yielding_inside(ANN)
    entered = contextvars.copy_context()
    entered.run(next, generator)
    assert entered.run(current_context).tenant == "acme"
    entered.run(current_state)

    left = contextvars.copy_context()
    with pytest.raises(StopIteration):
        left.run(next, generator)

    assert left.run(current_context, None) is None
    for read in (current_context, current_state, lambda *_: get_from_context("a"), lambda *_: bind_context()):
        for default in ((), (None,)):
            with pytest.raises(ContextClosedError, match="revoked") as caught:
                entered.run(read, *default)
            assert caught.value.why == "revoked"


def test_a_block_left_in_a_copy_of_its_context_is_revoked_in_both() -> None:
    """As the second half of a generator that a framework runs in another thread."""
    generator = yielding_inside(ANN)
    entered = contextvars.copy_context()
    entered.run(next, generator)
    copied = entered.copy()
    copied.run(generator.close)  # type: ignore[attr-defined]
    for where in (entered, copied):
        with pytest.raises(ContextClosedError, match="revoked"):
            where.run(current_context)


def test_blocks_left_out_of_order_leave_nobody_bound_who_has_ended() -> None:
    """Two generators that each hold a block, the first of which ends first."""
    first, second = yielding_inside(ANN), yielding_inside(Identity("globex"))

    def interleave() -> None:
        next(first)
        next(second)
        first.close()  # type: ignore[attr-defined]
        assert current_context().tenant == "globex", "a block that is open is not disturbed"
        second.close()  # type: ignore[attr-defined]
        with pytest.raises(ContextClosedError, match="revoked"):
            current_context()
        with bind_context(Identity("initech")) as inner:
            assert current_context() is inner

    contextvars.copy_context().run(interleave)


def test_a_generator_that_ends_inside_another_block_does_not_disturb_it() -> None:
    def interleave() -> None:
        with bind_context(Identity("outer")):
            generator = yielding_inside(Identity("bob"))
            next(generator)
            with bind_context(ANN) as inner:
                generator.close()  # type: ignore[attr-defined]
                assert current_context() is inner
            with pytest.raises(ContextClosedError, match="revoked"):
                current_context()

    contextvars.copy_context().run(interleave)


def test_where_a_binding_was_revoked_another_can_be_entered() -> None:
    store = MemoryStore()
    block = bind_context(ANN, store=store, request_id="ann's")
    entered = contextvars.copy_context()
    entered.run(block.__enter__)
    block.__exit__(None, None, None)

    def rebind() -> None:
        with bind_context(Identity("globex")) as context:
            assert context.tenant == "globex"
            assert context.request_id != "ann's"
            assert current_state()._store is store
        with pytest.raises(ContextClosedError):
            current_context()

    entered.run(rebind)


@pytest.mark.parametrize(
    ("read", "module", "makes"),
    [(current_context, "_context", "ContextDraft"), (current_state, "_state._current", "make_state")],
    ids=["context", "state"],
)
def test_a_first_read_that_races_with_a_revocation_loses(
    monkeypatch: pytest.MonkeyPatch, read: Any, module: str, makes: str
) -> None:
    """A first read keeps what it made: it must not put back what the revocation has taken away."""
    block = bind_context(ANN, store=MemoryStore())
    entered = contextvars.copy_context()
    entered.run(block.enter)
    make = getattr(sys.modules[f"asgi_context.{module}"], makes)

    def revoked_meanwhile(*arguments: object) -> object:
        contextvars.Context().run(block.__exit__, None, None, None)
        return make(*arguments)

    monkeypatch.setattr(f"asgi_context.{module}.{makes}", revoked_meanwhile)
    for _ in range(2):
        with pytest.raises(ContextClosedError, match="revoked"):
            entered.run(read)
        monkeypatch.undo()


def test_what_a_binding_held_is_free_once_it_has_ended() -> None:
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    with bind_context(ANN, values={"held": held}):
        outliving = contextvars.copy_context()
    del held
    assert gone() is None, "a context that lives on must not pin the values"
    del outliving


def test_a_binding_is_free_without_the_garbage_collector() -> None:
    """A cycle in every request would leave all of them to the collector."""
    gc.collect()
    gc.disable()
    try:
        with bind_context(ANN, store=MemoryStore()) as context:
            current_state()
        store = weakref.ref(bind_context(ANN, store=MemoryStore())._binding.services.store)  # type: ignore[arg-type]
        assert store() is None
        assert context.request_id
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.anyio
async def test_a_long_lived_task_started_inside_can_be_unbound(asyncio_only: None) -> None:
    started = asyncio.Event()

    async def poll() -> object:
        async with unbound_context():
            started.set()
            return current_context(None)

    with bind_context(ANN):
        task = asyncio.create_task(poll())
        await started.wait()
        assert current_context().tenant == "acme"
    assert await task is None


@pytest.mark.anyio
async def test_a_child_task_sees_the_context_and_cannot_change_its_parents(asyncio_only: None) -> None:
    async def child() -> str:
        seen = current_context().tenant
        with bind_context(Identity("globex")):
            await asyncio.sleep(0)
            seen += current_context().tenant
        return seen

    with bind_context(ANN):
        assert await asyncio.gather(child(), child()) == ["acmeglobex"] * 2
        assert current_context().tenant == "acme"
