"""The ledger: each unit pays for what touched it, over rounds, runs and restarts."""

from __future__ import annotations

import math
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.contracts import Contract
from client.examples.build import build_examples
from client.privacy import ledger as ledger_module
from client.privacy.accounting import Cost, epsilon_spent, noise_multiplier
from client.privacy.composition import Budget
from client.privacy.units import data_units, matter_digest
from models.examples import ClauseExample
from protocol.errors import FoedusError, Refusal
from protocol.reasons import RefusalReason
from tests.client.ledgers import (
    COST,
    DELTA,
    budget_for,
    clauses,
    entry,
    epsilon_of,
    first_version_ledger,
    ledger_with,
    open_ledger,
    units_of,
)

UNLIMITED = Budget("matter", math.inf, DELTA)


NAMES = {matter_digest(n).hex(): n for n in ("alpha", "beta", "gamma", "delta", "epsilon")}


def spent_by_matter(folder: Path, budget: Budget = UNLIMITED) -> dict[str, float]:
    found: dict[str, float] = {}
    for data_set in open_ledger(folder).account(budget):
        for matter in data_set.matters:
            name = NAMES.get(matter.digest, matter.digest)
            assert found.setdefault(name, matter.epsilon_spent) == matter.epsilon_spent
    return found


def test_rounds_pass_until_the_budget_is_spent_and_not_one_more(tmp_path: Path) -> None:
    ledger, budget = open_ledger(tmp_path), budget_for(3)
    for round_ in (1, 2, 3):
        reservation = ledger.reserve(entry(round_), units_of("alpha", "beta"), budget)
        assert reservation.epsilon == epsilon_of(round_)
        ledger.confirm(reservation)
    with pytest.raises(Refusal) as refused:
        ledger.reserve(entry(4), units_of("alpha", "beta"), budget)
    assert refused.value.code == RefusalReason.BUDGET_SPENT
    assert f"{epsilon_of(3):.3f} to {epsilon_of(4):.3f}" in str(refused.value)
    assert ledger.verify() == 3


def test_a_budget_that_is_met_exactly_is_enough_and_a_hair_less_is_not(tmp_path: Path) -> None:
    exact = Budget("matter", epsilon_of(1), DELTA)
    less = Budget("matter", math.nextafter(epsilon_of(1), 0), DELTA)
    with pytest.raises(Refusal):
        open_ledger(tmp_path).reserve(entry(), units_of("alpha"), less)
    assert open_ledger(tmp_path).verify() == 0
    open_ledger(tmp_path).reserve(entry(), units_of("alpha"), exact)


def test_a_run_whose_target_is_the_budget_fits_to_its_last_round(tmp_path: Path) -> None:
    ledger, rounds = open_ledger(tmp_path), 6
    cost = Cost(1.0, noise_multiplier(3.0, DELTA, 1.0, 4 * rounds), 4)
    for round_ in range(1, rounds + 1):
        ledger.reserve(entry(round_, cost=cost), units_of("alpha"), Budget("matter", 3.0, DELTA))
    assert 2.9 < spent_by_matter(tmp_path)["alpha"] <= 3.0


def test_what_was_spent_outlives_a_restart(tmp_path: Path) -> None:
    ledger_with(tmp_path, 2)
    with pytest.raises(Refusal, match="budget is"):
        open_ledger(tmp_path).reserve(entry(3), units_of("alpha", "beta"), budget_for(2))
    assert spent_by_matter(tmp_path) == {"alpha": epsilon_of(2), "beta": epsilon_of(2)}


def test_a_reserved_round_counts_although_it_was_never_confirmed(tmp_path: Path) -> None:
    open_ledger(tmp_path).reserve(entry(), units_of("alpha"))
    (data_set,) = open_ledger(tmp_path).account(UNLIMITED)
    assert (data_set.rounds, data_set.unconfirmed) == (1, 1)
    assert data_set.epsilon_spent == epsilon_of(1)
    with pytest.raises(Refusal):
        open_ledger(tmp_path).reserve(entry(2), units_of("alpha"), budget_for(1))


def test_the_same_round_asked_for_twice_is_charged_twice(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first, second = (ledger.reserve(entry(1), units_of("alpha")) for _ in range(2))
    assert first.sequence != second.sequence
    assert spent_by_matter(tmp_path) == {"alpha": epsilon_of(2)}


def test_other_data_has_its_whole_budget(tmp_path: Path) -> None:
    ledger_with(tmp_path, 2, units_of("alpha"))
    ledger = open_ledger(tmp_path)
    assert ledger.reserve(entry(), units_of("beta"), budget_for(1)).epsilon == epsilon_of(1)
    assert spent_by_matter(tmp_path) == {"alpha": epsilon_of(2), "beta": epsilon_of(1)}


def test_overlapping_data_sets_are_composed_for_what_they_share(tmp_path: Path) -> None:
    ledger_with(tmp_path, 1, units_of("alpha", "beta"))
    ledger_with(tmp_path, 1, units_of("beta", "gamma"))
    ledger_with(tmp_path, 1, units_of("delta"))
    expected = {"alpha": 1, "beta": 2, "gamma": 1, "delta": 1}
    assert spent_by_matter(tmp_path) == {m: epsilon_of(n) for m, n in expected.items()}
    ledger = open_ledger(tmp_path)
    with pytest.raises(Refusal):
        ledger.reserve(entry(), units_of("gamma", "beta"), budget_for(2))
    ledger.reserve(entry(), units_of("gamma", "alpha"), budget_for(2))


def test_a_matter_that_grew_keeps_what_it_spent(tmp_path: Path) -> None:
    ledger_with(tmp_path, 2, data_units(clauses("alpha", each=1), "matter"))
    with pytest.raises(Refusal):
        open_ledger(tmp_path).reserve(
            entry(), data_units(clauses("alpha", each=9), "matter"), budget_for(2)
        )


def test_a_matter_under_a_new_name_keeps_what_it_spent(tmp_path: Path) -> None:
    ledger_with(tmp_path, 2, units_of("alpha"))
    renamed = [ClauseExample(c.text, c.label, "ALPHA-2") for c in clauses("alpha")]
    with pytest.raises(Refusal):
        open_ledger(tmp_path).reserve(entry(), data_units(renamed, "matter"), budget_for(2))


WORDS = "In clause {} the parties agree, for the term of this agreement, on what follows here."
LABELLED = [Contract(WORDS.format(n), f"c:{n}", "alpha", label="payment") for n in range(3)]


@pytest.mark.parametrize("unit", ["matter", "example"])
@pytest.mark.parametrize("changed", ["task", "label", "spacing"])
def test_the_same_words_keep_what_they_spent_in_another_task_and_under_another_label(
    tmp_path: Path, unit: str, changed: str
) -> None:
    before = build_examples(LABELLED, "classify", 0.0).train
    open_ledger(tmp_path).reserve(entry(unit=unit), data_units(before, unit))
    others = [replace(contract, matter="ALPHA-2") for contract in LABELLED]
    if changed == "label":
        others = [replace(contract, label="term") for contract in others]
    if changed == "spacing":
        others = [replace(contract, text=contract.text.replace(" ", "\n")) for contract in others]
    after = build_examples(others, "instruct" if changed == "task" else "classify", 0.0).train
    with pytest.raises(Refusal) as refused:
        open_ledger(tmp_path).reserve(
            entry(2, unit=unit), data_units(after, unit), budget_for(1, unit)
        )
    assert refused.value.code == RefusalReason.BUDGET_SPENT


@pytest.mark.parametrize("unit", ["matter", "example"])
def test_what_a_ledger_of_the_first_version_holds_counts_against_everything(
    tmp_path: Path, unit: str
) -> None:
    """Its digests hold label or prompt: whose they are can no longer be told."""
    first_version_ledger(tmp_path, unit)
    anything = units_of("never seen", unit=unit)
    with pytest.raises(Refusal) as refused:
        open_ledger(tmp_path).reserve(entry(2, unit=unit), anything, budget_for(1, unit))
    assert refused.value.code == RefusalReason.BUDGET_SPENT
    ledger = open_ledger(tmp_path)
    ledger.confirm(ledger.reserve(entry(2, unit=unit), anything, budget_for(2, unit)))
    old, new = ledger.account(budget_for(9, unit))
    assert old.epsilon_spent == new.epsilon_spent == epsilon_of(2)
    assert ledger.verify() == 2
    with closing(sqlite3.connect(ledger.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_matter_that_shares_boilerplate_does_not_pay_for_the_other(tmp_path: Path) -> None:
    ledger_with(tmp_path, 2, units_of("alpha"))
    shared = ClauseExample("clause 0 of alpha", "payment", "beta")
    beta = data_units([*clauses("beta"), shared], "matter")
    assert open_ledger(tmp_path).reserve(entry(), beta, budget_for(1)).epsilon == epsilon_of(1)


def test_a_larger_budget_later_is_honoured_and_a_smaller_one_too(tmp_path: Path) -> None:
    ledger_with(tmp_path, 2)
    ledger, units = open_ledger(tmp_path), units_of("alpha", "beta")
    ledger.reserve(entry(3), units, budget_for(3))
    for budget in (budget_for(3), budget_for(1)):
        with pytest.raises(Refusal):
            ledger.reserve(entry(4), units, budget)
    (account,) = ledger.account(budget_for(1))
    assert account.epsilon_left == 0.0


def test_a_refused_round_leaves_no_trace_in_the_ledger(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 1)
    head = ledger.head()
    with pytest.raises(Refusal):
        ledger.reserve(entry(2), units_of("alpha", "never seen"), budget_for(1))
    assert ledger.head() == head
    assert set(spent_by_matter(tmp_path)) == {"alpha", "beta"}


def test_rounds_by_example_bound_nothing_for_a_budget_by_matter(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    by_example = units_of("alpha", unit="example")
    with pytest.raises(Refusal, match=r"privacy\.unit=matter") as refused:
        ledger.reserve(entry(unit="example"), by_example, budget_for(1))
    assert refused.value.code == RefusalReason.POLICY
    ledger.reserve(entry(unit="example"), by_example)
    with pytest.raises(Refusal, match="bound nothing for a matter") as refused:
        ledger.reserve(entry(), units_of("alpha"), budget_for(9))
    assert refused.value.code == RefusalReason.BUDGET_SPENT
    ledger.reserve(entry(), units_of("beta"), budget_for(1))
    assert spent_by_matter(tmp_path) == {"alpha": math.inf, "beta": epsilon_of(1)}


def test_rounds_by_matter_count_for_each_example_as_for_half_the_sigma(tmp_path: Path) -> None:
    ledger_with(tmp_path, 1, units_of("alpha"))
    ledger = open_ledger(tmp_path)
    examples = data_units([*clauses("alpha"), ClauseExample("new", "x", "alpha")], "example")
    expected = epsilon_spent([COST, Cost(1.0, COST.sigma / 2, COST.steps)], DELTA)
    budget = Budget("example", 1000.0, DELTA)
    assert ledger.reserve(entry(unit="example"), examples, budget).epsilon == expected
    new = data_units([ClauseExample("new", "x", "alpha")], "example")
    assert ledger.reserve(entry(unit="example"), new, budget).epsilon == epsilon_of(2)


def test_a_round_without_noise_is_recorded_and_spends_everything(tmp_path: Path) -> None:
    ledger, plain = open_ledger(tmp_path), Cost(1.0, 0.0, 0)
    ledger.reserve(entry(unit="none", cost=plain), units_of("alpha", unit="none"))
    for unit in ("matter", "example"):
        with pytest.raises(Refusal, match="bound nothing") as refused:
            ledger.reserve(entry(unit=unit), units_of("alpha", unit=unit), budget_for(9, unit))
        assert refused.value.code == RefusalReason.BUDGET_SPENT
        with pytest.raises(Refusal, match=r"privacy\.mode=dp"):
            ledger.reserve(
                entry(unit="none", cost=plain), units_of("new", unit="none"), budget_for(9, unit)
            )
        ledger.reserve(entry(unit=unit), units_of("new", unit=unit), Budget(unit, 1000, DELTA))


def test_data_without_matters_cannot_be_charged_by_matter(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        open_ledger(tmp_path).reserve(entry(), units_of(None))
    assert refused.value.code == RefusalReason.NO_MATTERS
    with pytest.raises(Refusal) as refused:
        open_ledger(tmp_path).reserve(entry(unit="example"), data_units([], "example"))
    assert refused.value.code == RefusalReason.NO_DATA
    with pytest.raises(FoedusError, match="units by example"):
        open_ledger(tmp_path).reserve(entry(), units_of("alpha", unit="example"))
    assert not (tmp_path / "privacy.sqlite3").exists()


def test_the_account_says_what_is_left_for_data_sets_and_matters(tmp_path: Path) -> None:
    ledger_with(tmp_path, 1, units_of("alpha", "beta"))
    noisier = Cost(1.0, 30.0, 4)
    open_ledger(tmp_path).reserve(entry(2, cost=noisier), units_of("alpha", "beta"))
    (account,) = open_ledger(tmp_path).account(budget_for(3))
    assert (account.rounds, account.unconfirmed, account.units) == (2, 1, ("matter",))
    assert (account.sigma_min, account.sigma_max) == (COST.sigma, 30.0)
    assert account.num_examples == 6
    assert account.epsilon_spent == epsilon_spent([COST, noisier], DELTA)
    assert account.epsilon_left == epsilon_of(3) - account.epsilon_spent
    assert {(m.digest, m.num_examples, m.rounds) for m in account.matters} == {
        (matter_digest(name).hex(), 3, 2) for name in ("alpha", "beta")
    }


def test_the_clock_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(1999, 1, 1, tzinfo=UTC)

    ledger_with(tmp_path, 2)
    monkeypatch.setattr(ledger_module, "datetime", Backwards)
    monkeypatch.setattr("client.receipts.datetime", Backwards)
    ledger = ledger_with(tmp_path, 1)
    assert ledger.verify() == 3
    assert ledger.head().startswith("3:")
    with pytest.raises(Refusal):
        ledger.reserve(entry(4), units_of("alpha"), budget_for(3))


def test_the_head_is_in_the_receipts_before_training_can_start(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    assert ledger.head() == ""
    reservation = ledger.reserve(entry(5), units_of("alpha"))
    receipts = list(ledger._receipts.verify())
    assert [(r.kind, r.round, r.status, r.num_bytes) for r in receipts] == [
        ("ledger", 5, "reserved", 0)
    ]
    assert receipts[0].ledger == reservation.head == ledger.head()
    assert reservation.head == f"1:{receipts[0].digest}"


def test_only_the_owner_may_read_the_ledger(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 1)
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    ledger.path.chmod(0o644)
    ledger.reserve(entry(2), units_of("alpha"))
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    assert b"clause 0 of alpha" not in ledger.path.read_bytes()


MATTERS = st.sets(st.sampled_from(["alpha", "beta", "gamma"]), min_size=1)


@settings(max_examples=10, deadline=None)
@given(st.lists(MATTERS, min_size=2, max_size=5))
def test_what_a_matter_spent_never_falls(
    tmp_path_factory: pytest.TempPathFactory, data_sets: list[set[str]]
) -> None:
    folder = tmp_path_factory.mktemp("state")
    histories: list[dict[str, float]] = []
    for round_, matters in enumerate(data_sets, 1):
        open_ledger(folder).reserve(entry(round_), units_of(*sorted(matters)))
        histories.append(spent_by_matter(folder))
    for before, after in pairwise(histories):
        assert all(after[matter] >= epsilon for matter, epsilon in before.items())
    for matter, epsilon in histories[-1].items():
        touched = sum(matter in matters for matters in data_sets)
        assert epsilon == epsilon_of(touched)
