"""Settings from mappings: everything wrong is said at once, and nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import decode, encode, flatten, unflatten
from protocol.errors import SettingsError
from protocol.settings import FederationSettings, RunSettings
from tests.small_runs import small_run

KEYS = st.text(alphabet="abcdefgh_", min_size=1, max_size=6)
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
LEAVES = SCALARS | st.lists(st.integers(), max_size=3)


def nested(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings of mappings; a group is never empty, as an empty one has no flat form."""
    inner = LEAVES if depth == 0 else LEAVES | nested(depth - 1)
    return st.dictionaries(KEYS, inner, min_size=1, max_size=3)


@given(nested(3))
def test_unflatten_inverts_flatten(values: dict[str, Any]) -> None:
    assert unflatten(flatten(values)) == values


@given(st.dictionaries(KEYS, LEAVES, max_size=5))
def test_a_flat_mapping_stays_as_it_is_under_its_prefix(values: dict[str, Any]) -> None:
    assert flatten(values, "run.") == {f"run.{key}": value for key, value in values.items()}


def test_every_problem_is_reported_at_once() -> None:
    values = encode(small_run())
    values["federation"] |= {"rounds": 0, "method": "fedavg", "quorum": 1.5, "rouns": 3}
    values["training"] |= {"learning_rate": float("nan"), "warmup_fraction": 1.2}
    values["adapter"] |= {"targets": "query", "rs_lora": 1}
    del values["model"]["id"]
    with pytest.raises(SettingsError) as caught:
        decode(RunSettings, values, "conf/run.yaml")
    text = str(caught.value)
    assert len(caught.value.problems) == 9
    assert "9 problems in conf/run.yaml" in text
    for part in (
        "federation.rouns: unknown setting",
        "federation.rounds: expected at least 1, got 0",
        "federation.method: expected one of fedsvd",
        "federation.quorum: expected a whole number, got 1.5",
        "training.learning_rate: expected a finite number",
        "training.warmup_fraction: expected at most 1.0, got 1.2",
        "adapter.targets: expected a list, got 'query'",
        "adapter.rs_lora: expected true or false, got 1",
        "model.id: missing; expected a text",
    ):
        assert part in text


def test_bounds_of_a_list_name_the_element_that_breaks_them() -> None:
    values = encode(small_run())
    values["task"]["labels"] = ["a", 3]
    with pytest.raises(SettingsError, match=r"task\.labels\[1\]: expected a text, got 3"):
        decode(RunSettings, values, "x")


@pytest.mark.parametrize("value", [5, [1], "text", None])
def test_a_group_that_is_no_mapping_is_named(value: object) -> None:
    values = encode(small_run()) | {"federation": value}
    with pytest.raises(SettingsError, match=r"federation.*expected a mapping"):
        decode(RunSettings, values, "x")


@given(
    st.builds(
        FederationSettings,
        rounds=st.integers(1, 1000),
        cohort_fraction=st.floats(0, 1),
        weighting=st.sampled_from(["uniform", "examples"]),
        seed=st.integers(0, 2**31 - 1),
    )
)
def test_decode_inverts_encode(settings: FederationSettings) -> None:
    assert decode(FederationSettings, encode(settings), "x") == settings


def test_whole_numbers_pass_where_a_number_is_expected_but_never_the_reverse() -> None:
    assert decode(FederationSettings, {"deadline_seconds": 5}, "x").deadline_seconds == 5.0
    with pytest.raises(SettingsError):
        decode(FederationSettings, {"rounds": 5.0}, "x")


@pytest.mark.parametrize(
    "flat", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"a.b": 1, "a.b.c": 2}, {"a.b.c": 2, "a.b": 1}]
)
def test_a_key_that_is_both_value_and_group_is_refused(flat: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="both a value and a group"):
        unflatten(flat)


@pytest.mark.parametrize(
    ("key", "shown"),
    [("spede", "spede"), ("a\nb", r"'a\nb'"), ("x" * 999, "x" * 80), (7, "7"), ("a b", "'a b'")],
)
def test_an_unknown_key_is_named_in_one_line_and_not_at_length(key: Any, shown: str) -> None:
    values = encode(FederationSettings()) | {key: 1}
    with pytest.raises(SettingsError) as caught:
        decode(FederationSettings, values, "x")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{shown}: unknown setting; expected one of ")


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


LARGE: dict[str, Any] = {
    "text": "x" * 10**6,
    "list": [1] * 10**6,
    "number": 10**400,
    "negative number": -(10**400),
    "number of no digits": 16**9999,
    "lists in lists": deep(10**5),
    "mapping": {"a": "b" * 999},
}


@pytest.mark.parametrize("what", LARGE)
@pytest.mark.parametrize("name", ["rounds", "deadline_seconds", "weighting", "server_optimizer"])
def test_a_value_of_any_size_is_a_problem_of_one_short_line(name: str, what: str) -> None:
    with pytest.raises(SettingsError) as caught:
        decode(FederationSettings, {name: LARGE[what]}, "x")
    for problem in caught.value.problems:
        assert problem.startswith(f"{name}: ") and len(problem) < 300 and "\n" not in problem


@pytest.mark.parametrize("what", sorted(LARGE.keys() - {"mapping"}))
def test_a_group_of_any_size_that_is_none_is_a_problem_of_one_short_line(what: str) -> None:
    with pytest.raises(SettingsError) as caught:
        decode(RunSettings, encode(small_run()) | {"federation": LARGE[what]}, "x")
    assert len(str(caught.value)) < 300


def test_of_many_problems_the_first_are_listed_and_the_others_counted() -> None:
    values = encode(FederationSettings()) | {f"x{number}": 1 for number in range(10_000)}
    with pytest.raises(SettingsError) as caught:
        decode(FederationSettings, values, "x")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("10000 problems") and lines[-1] == "  - and 9980 more"
    assert len(lines) == 22
