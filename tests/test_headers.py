"""The one pass over the headers finds what a slow and simple reading finds."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_context._headers import REPEATED, TWIN, HeaderPlan

NAMES = [
    b"x-tenant-id",
    b"x_tenant_id",
    b"x-tenant_id",
    b"x_tenant-id",
    b"x-user-id",
    b"x-user_id",
    b"x-request-id",
    b"X-Tenant-Id",
    b"X_TENANT_ID",
]
OTHERS = [b"host", b"accept", b"x-tenant-i", b"x-tenant-idd", b"x-zzz", b"x-trace-id", b"a", b"", b"zz", b"x-user-ie"]


def compiled(*names: bytes) -> Any:
    plan = HeaderPlan()
    assert [plan.slot(name) for name in names] == list(range(len(names)))
    return plan.compile()


def slowly(names: list[bytes], headers: list[tuple[bytes, bytes]]) -> tuple[object, ...]:
    found: list[object] = []
    for wanted in names:
        same = [value for name, value in headers if name.lower() == wanted]
        folded = [
            name
            for name, _ in headers
            if name.lower() != wanted and name.lower().replace(b"_", b"-") == wanted.replace(b"_", b"-")
        ]
        if len(same) + len(folded) > 1:
            found.append(REPEATED)
        elif folded:
            found.append(TWIN)
        else:
            found.append(same[0] if same else None)
    return tuple(found)


@given(
    st.sampled_from([
        [b"x-tenant-id"],
        [b"x-tenant-id", b"x-user-id"],
        [b"host", b"x-user-id"],
        [b"x_user_id", b"accept"],
    ])
    | st.just([b"x-tenant-id", b"x-user-id", b"x-request-id"])
    | st.just([b"host", b"x-tenant-id", b"a", b"zz"]),
    st.lists(st.tuples(st.sampled_from(NAMES + OTHERS), st.binary(max_size=3)), max_size=12),
)
def test_one_pass_finds_what_a_slow_reading_finds(names: list[bytes], headers: list[tuple[bytes, bytes]]) -> None:
    assert compiled(*names)(headers) == slowly(names, headers)


def test_a_header_that_two_extractors_read_has_one_slot() -> None:
    plan = HeaderPlan()
    assert (plan.slot(b"a"), plan.slot(b"b"), plan.slot(b"a")) == (0, 1, 0)


def test_without_names_nothing_is_found() -> None:
    assert compiled()([(b"host", b"a")]) == ()


@pytest.mark.parametrize("names", [(b"x-a", b"x-b"), (b"x-a", b"x-b", b"x-c")])
def test_pairs_may_be_lists(names: tuple[bytes, ...]) -> None:
    """The ASGI specification says "iterable of two-item iterables"."""
    assert compiled(*names)([[b"x-b", b"1"]])[1] == b"1"


def test_an_oddity_says_in_its_repr_what_it_is() -> None:
    assert repr(REPEATED) == "<repeated>"
