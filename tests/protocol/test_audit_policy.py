"""The release gate over an audit: closed for whatever is missing, wrong or of another run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.audit_policy import AuditPolicy, audited_settings_digest, read_audit
from protocol.codec import decode
from protocol.errors import FoedusError, SettingsError
from tests.small_runs import small_run, with_federation

RUN = small_run()
GOOD: dict[str, Any] = {
    "kind": "foedus-leakage-audit",
    "schema": 1,
    "settings_digest": audited_settings_digest(RUN),
    "private": True,
    "canaries_planted": 101,
    "canaries_left_out": 99,
    "tpr_at_1_fpr": 0.03,
    "epsilon_lower_bound": 0.4,
    "accountant_epsilon": 8.0,
    "caught": False,
    "control": {"caught": True},
    "membership": {"tpr_at_1_fpr": 0.02},
}


def failures(changes: dict[str, Any], **policy: Any) -> list[str]:
    return AuditPolicy(**policy).failures({**GOOD, **changes}, RUN)


def test_a_good_audit_passes() -> None:
    assert failures({}) == []
    assert failures({"membership": None}) == []
    assert failures({"epsilon_lower_bound": 0, "tpr_at_1_fpr": 0}) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tpr_at_1_fpr": 0.11}, "canaries found at 1% FPR: expected at most 0.1, got 0.11"),
        ({"epsilon_lower_bound": 8.1}, "proven epsilon: expected at most 8, got 8.1"),
        ({"membership": {"tpr_at_1_fpr": 0.5}}, "real examples"),
        ({"control": {"caught": False}}, "without privacy was not caught"),
        ({"control": None}, "without privacy was not caught"),
        ({"canaries_planted": 40, "canaries_left_out": 40}, "100 canaries or more, got 80"),
        ({"private": False}, "not private"),
        ({"settings_digest": "0" * 64}, "other settings"),
        ({"schema": 2}, "schema 1"),
        ({"kind": "weather"}, "leakage audit"),
    ],
)
def test_each_limit_is_held(changes: dict[str, Any], told: str) -> None:
    found = failures(changes)
    assert len(found) == 1 and told in found[0]


@pytest.mark.parametrize("key", sorted(set(GOOD) - {"caught", "membership"}))
def test_whatever_is_missing_closes_the_gate(key: str) -> None:
    report = {name: value for name, value in GOOD.items() if name != key}
    assert AuditPolicy().failures(report, RUN)


@pytest.mark.parametrize("bad", [None, "0.0", True, float("nan"), float("inf"), [0.0], {}])
@pytest.mark.parametrize(
    "key", ["tpr_at_1_fpr", "epsilon_lower_bound", "accountant_epsilon", "canaries_left_out"]
)
def test_what_is_no_number_closes_the_gate(key: str, bad: object) -> None:
    assert failures({key: bad})


def test_the_proven_leak_may_be_held_below_the_accountant_s_but_never_above_it() -> None:
    assert failures({"epsilon_lower_bound": 0.4}, max_epsilon_lower_bound=0.3)
    assert failures({"epsilon_lower_bound": 8.5}, max_epsilon_lower_bound=9.0)
    assert not failures({"epsilon_lower_bound": 7.5}, max_epsilon_lower_bound=9.0)


def test_few_held_out_examples_are_given_the_luck_of_a_blind_attack_and_no_more() -> None:
    assert failures({"membership": {"tpr_at_1_fpr": 0.2, "chance": 1 / 21}}) == []
    assert failures({"membership": {"tpr_at_1_fpr": 0.25, "chance": 1 / 21}})
    assert failures({"membership": {"tpr_at_1_fpr": 0.2, "chance": 0.01}})
    assert failures({"membership": {"tpr_at_1_fpr": 0.2, "chance": "high"}})


def test_a_run_without_privacy_passes_only_where_the_consortium_says_so() -> None:
    plain = {"private": False, "accountant_epsilon": None, "control": None, "caught": True}
    assert failures(plain)
    lenient = {"require_private": False, "max_tpr_at_1_fpr": 1.0}
    assert failures(plain, **lenient) == []
    assert failures({**plain, "caught": False}, **lenient)
    assert failures({**plain, "epsilon_lower_bound": 3.0}, **lenient, max_epsilon_lower_bound=2.0)


def test_the_digest_is_of_all_settings_but_where_the_base_model_lies() -> None:
    elsewhere = replace(RUN, model=replace(RUN.model, id="/models/minilm", revision="abc"))
    assert audited_settings_digest(elsewhere) == audited_settings_digest(RUN)
    other = with_federation(RUN, rounds=RUN.federation.rounds + 1)
    assert audited_settings_digest(other) != audited_settings_digest(RUN)
    louder = replace(RUN, privacy=replace(RUN.privacy, mode="dp"))
    assert audited_settings_digest(louder) != audited_settings_digest(RUN)


def test_a_policy_comes_from_settings_and_wrong_ones_are_named() -> None:
    assert decode(AuditPolicy, {"min_canaries": 50}, "test").min_canaries == 50
    with pytest.raises(SettingsError, match="max_tpr_at_1_fpr"):
        decode(AuditPolicy, {"max_tpr_at_1_fpr": 2.0}, "test")


def test_reading_a_report_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(GOOD))
    assert AuditPolicy().failures(read_audit(path), RUN) == []
    for text in ("[1]", "{", "\xff"):
        path.write_text(text)
        with pytest.raises(FoedusError, match="leakage audit"):
            read_audit(path)
    with pytest.raises(FoedusError, match="leakage audit"):
        read_audit(tmp_path / "none.json")
