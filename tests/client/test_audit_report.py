"""The report: every figure from scores and coins, and what a release gate reads of it."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from client.audit.bounds import Scores, tpr_at_fpr
from client.audit.report import (
    AuditResult,
    attack_findings,
    is_caught,
    membership_findings,
    run_findings,
)
from protocol.audit_policy import AuditPolicy
from protocol.errors import FoedusError

PLANTED = np.random.default_rng(0).integers(0, 2, size=240).astype(bool)
CERTAIN: Scores = PLANTED + 0.01 * np.random.default_rng(1).random(240)
BLIND: Scores = np.random.default_rng(3).random(240)


def result(scores: Scores, *, private: bool = True, epsilon: float = 8.0) -> AuditResult:
    audited = run_findings(
        [("loss", scores), ("wire_site", BLIND)],
        PLANTED, private=private, accountant_epsilon=epsilon, delta=1e-5,
    )  # fmt: skip
    control = run_findings(
        [("loss", CERTAIN), ("wire_site", CERTAIN)],
        PLANTED, private=False, accountant_epsilon=None, delta=1e-5,
    )  # fmt: skip
    planted = int(PLANTED.sum())
    return AuditResult(
        "matter", 8, planted, 240 - planted, 1e-5, 0.95, "d" * 64, audited,
        control if private else None,
    )  # fmt: skip


def test_a_certain_attack_is_caught_at_the_ceiling_and_a_blind_one_is_not() -> None:
    certain = attack_findings("loss", CERTAIN, PLANTED, delta=1e-5)
    assert certain.caught and certain.auc == certain.tpr_at_1_fpr == 1.0
    assert certain.epsilon_lower_bound == certain.ceiling > 3.0
    assert certain.exposure_max == pytest.approx(math.log2((~PLANTED).sum() + 1))
    assert certain.exposure_mean == pytest.approx(certain.exposure_max)
    blind = attack_findings("loss", BLIND, PLANTED, delta=1e-5)
    assert not blind.caught and 0.4 < blind.auc < 0.6
    assert blind.tpr_at_1_fpr < 0.1 and blind.epsilon_lower_bound < 0.5
    assert 0.9 < blind.exposure_mean < 2.0


def test_caught_means_ten_times_what_a_blind_attack_expects_with_so_many_canaries() -> None:
    nonmembers = np.arange(30.0)
    some = np.where(np.arange(30) < 9, 99.0, -1.0)
    assert tpr_at_fpr(some, nonmembers).tpr == 0.3  # thirty times 1%, but nine times 1 in 31
    assert not is_caught(tpr_at_fpr(some, nonmembers))
    assert is_caught(tpr_at_fpr(np.where(np.arange(30) < 10, 99.0, -1.0), nonmembers))


def test_several_attacks_share_the_permitted_error() -> None:
    one = run_findings(
        [("loss", CERTAIN)], PLANTED, private=False, accountant_epsilon=None, delta=0.0
    )
    two = run_findings(
        [("loss", CERTAIN)] * 2, PLANTED, private=False, accountant_epsilon=None, delta=0.0
    )
    assert two.attacks[0].epsilon_lower_bound < one.attacks[0].epsilon_lower_bound


def test_the_json_holds_the_worst_of_all_attacks_at_the_top() -> None:
    report = json.loads(json.dumps(result(CERTAIN).to_json(), allow_nan=False))
    assert report["attacks"]["loss"]["tpr_at_1_fpr"] == report["tpr_at_1_fpr"] == 1.0
    assert report["attacks"]["wire_site"]["tpr_at_1_fpr"] < 0.1
    assert report["epsilon_lower_bound"] == report["attacks"]["loss"]["epsilon_lower_bound"]
    assert report["caught"] is True and report["control"]["caught"] is True
    assert report["accountant_epsilon"] == 8.0 and report["control"]["accountant_epsilon"] is None
    assert report["membership"] is None
    assert report["canaries_planted"] + report["canaries_left_out"] == 240


def test_a_run_that_hides_its_canaries_passes_and_one_that_shows_them_does_not() -> None:
    policy = AuditPolicy()
    assert result(BLIND).passes(policy) == []
    failures = result(CERTAIN, epsilon=1.0).passes(policy)
    assert any("canaries found" in failure for failure in failures)
    assert any("proven epsilon" in failure and "at most 1," in failure for failure in failures)


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_prints_every_run_and_the_membership_attack(width: int) -> None:
    members = membership_findings(CERTAIN[PLANTED], CERTAIN[~PLANTED])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(replace(result(BLIND), membership=members).table())
    lines = console.export_text().splitlines()
    starts = ("as set ", "control ", "released ")
    rows = [line.split() for line in lines if line.strip().startswith(starts)]
    assert [row[0] for row in rows] == ["as", "as", "control", "control", "released"]
    assert [row[-1] for row in rows[:4]] == ["no", "no", "yes", "yes"]
    assert "1.00 (0.97-1.00)" in " ".join(rows[2])
    text = "\n".join(lines)
    assert "epsilon 8.00 at delta 1e-05" in text and "held out" in text and "…" not in text


@pytest.mark.parametrize("planted", [np.zeros(40, dtype=bool), np.ones(40, dtype=bool)])
def test_coins_that_all_fell_alike_are_refused(planted: np.ndarray) -> None:
    with pytest.raises(FoedusError, match="planted and left out"):
        attack_findings("loss", np.zeros(40), planted, 0.0)
