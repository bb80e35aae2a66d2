"""Identity, RequestContext and Claims are values: immutable, comparable, hashable, picklable."""

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_context import Claims, Identity, RequestContext

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.fixture(params=[Identity, RequestContext])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_an_identity_has_a_tenant_and_may_have_a_user_claims_and_an_end() -> None:
    plain = Identity("acme")
    assert (plain.tenant, plain.user, plain.claims, plain.expires_at) == ("acme", None, {}, None)
    whole = Identity("acme", "ann", {"role": "admin"}, 1.5)
    assert (whole.tenant, whole.user, whole.claims, whole.expires_at) == ("acme", "ann", {"role": "admin"}, 1.5)


def test_nothing_on_it_can_be_set_or_deleted(kind: Any) -> None:
    value = kind("acme", "ann")
    for name in ("tenant", "user", "claims", "request_id", "anything"):
        with pytest.raises(AttributeError):
            setattr(value, name, "other")
        with pytest.raises(AttributeError):
            delattr(value, name)
    assert not hasattr(value, "__dict__")
    assert (value.tenant, value.user) == ("acme", "ann")


def test_equal_values_compare_and_hash_equal() -> None:
    assert Identity("acme", "ann", {"a": [1]}) == Identity("acme", "ann", {"a": [1]})
    assert hash(Identity("acme", "ann", {"a": [1]})) == hash(Identity("acme", "ann", {"a": [1]}))
    assert RequestContext("acme", "ann", "id") == RequestContext("acme", "ann", "id")
    assert hash(RequestContext("acme", "ann", "id")) == hash(RequestContext("acme", "ann", "id"))


@pytest.mark.parametrize(
    "other",
    [
        Identity("acm", "ann"),
        Identity("acme"),
        Identity("acme", "ann", {"a": 1}),
        Identity("acme", "ann", {}, 1.0),
        "acme",
    ],
)
def test_another_identity_is_not_equal(other: object) -> None:
    assert Identity("acme", "ann") != other


def test_contexts_of_two_requests_are_not_equal() -> None:
    assert RequestContext("acme", "ann") != RequestContext("acme", "ann")
    assert RequestContext("acme", "ann", "1") != "acme"
    assert Identity("acme", "ann") != RequestContext("acme", "ann")


def test_they_can_be_pickled_and_copied(kind: Any) -> None:
    value = kind("acme", "ann", claims={"roles": ["a", {"b": None}]})
    for again in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert again == value
        assert type(again) is kind


def test_the_repr_has_no_claims(kind: Any) -> None:
    value = kind("acme", "ann", claims={"email": "ann@example.com"})
    assert "acme" in repr(value)
    assert "ann" in repr(value)
    assert "email" not in repr(value) + repr(value.claims)
    assert "example" not in repr(value) + repr(value.claims)


def test_the_repr_says_when_an_identity_ends() -> None:
    assert repr(Identity("acme", "ann", expires_at=2)) == "Identity(tenant='acme', user='ann', expires_at=2)"


def test_a_request_id_is_made_when_first_read_and_then_stays() -> None:
    context = RequestContext("acme")
    assert len(context.request_id) == 32
    assert int(context.request_id, 16) >= 0
    assert context.request_id == context.request_id
    assert RequestContext("acme").request_id != context.request_id


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tenant": 1}, TypeError),
        ({"tenant": None}, TypeError),
        ({"tenant": b"acme"}, TypeError),
        ({"tenant": ""}, ValueError),
        ({"tenant": "acme", "user": ""}, ValueError),
        ({"tenant": "acme", "user": 1}, TypeError),
        ({"tenant": "acme", "claims": {"a": object()}}, TypeError),
        ({"tenant": "acme", "claims": {1: "a"}}, TypeError),
        ({"tenant": "acme", "claims": [1]}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(kind: Any, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        kind(**arguments)


@pytest.mark.parametrize(
    ("end", "error"), [("1", TypeError), (True, TypeError), (float("nan"), ValueError), (float("inf"), ValueError)]
)
def test_an_end_must_be_a_finite_number_of_seconds(end: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="expires_at"):
        Identity("acme", expires_at=end)


def test_a_request_id_must_be_a_string_that_is_not_empty() -> None:
    with pytest.raises(TypeError, match="request_id"):
        RequestContext("acme", request_id=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="request_id"):
        RequestContext("acme", request_id="")


@given(st.dictionaries(st.text(), JSON))
def test_claims_are_equal_to_what_they_were_made_of_and_give_it_back(members: dict[str, Any]) -> None:
    claims = Claims(members)
    assert claims == members
    assert claims == Claims(members)
    assert claims.to_dict() == members
    assert dict(claims).keys() == members.keys()
    assert len(claims) == len(members)
    assert pickle.loads(pickle.dumps(claims)) == claims
    hash(claims)


def test_claims_are_frozen_all_the_way_down() -> None:
    source: dict[str, Any] = {"roles": ["a"], "nested": {"list": [{"deep": 1}]}}
    claims = Claims(source)
    source["roles"].append("b")
    source["nested"]["list"][0]["deep"] = 2
    assert claims.to_dict() == {"roles": ["a"], "nested": {"list": [{"deep": 1}]}}
    with pytest.raises(TypeError):
        claims["roles"] = ()  # type: ignore[index]
    with pytest.raises(TypeError):
        claims["nested"]["list"] = ()
    with pytest.raises(AttributeError):
        claims["roles"].append("c")


def test_what_claims_give_back_may_be_changed() -> None:
    claims = Claims({"roles": ["a"]})
    claims.to_dict()["roles"].append("b")
    assert claims.to_dict() == {"roles": ["a"]}


def test_claims_are_not_frozen_twice() -> None:
    claims = Claims({"a": 1})
    assert Identity("acme", claims=claims).claims is claims
    assert Claims({"inner": claims})["inner"] is claims


def test_an_error_about_claims_says_where_and_not_what() -> None:
    with pytest.raises(TypeError, match=r"claims\['a'\]\[1\]") as caught:
        Claims({"a": [1, {"secret-value"}]})
    assert "secret-value" not in str(caught.value)


def test_claims_are_not_equal_to_what_is_no_mapping() -> None:
    assert Claims({}) != ()
