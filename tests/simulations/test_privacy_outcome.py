"""A simulated federation in private: what each firm paid, who else is private, and the audit of it
all, through the command that people run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.evaluation import ClassificationScores
from protocol.errors import FoedusError
from server.release import verify_release
from simulations.baselines import ArmResult
from simulations.cli import main
from simulations.experiment import Experiment
from simulations.privacy import privacy_outcome
from simulations.report.json_report import build_report, read_report
from simulations.settings import with_labels
from tests.small_simulations import SMALL, experiment

PRIVATE = (
    "privacy=dp",
    "privacy.unit=example",
    "privacy.steps_per_round=2",
    "federation.rounds=2",
    "engine.torch_threads=1",
)
KEYS = {
    "unit", "delta", "target_epsilon", "epsilon_spent_max", "per_site", "sigma", "clip_norm",
    "audit",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A simulation sets torch's threads; sums come out alike in other tests only without that."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return private_with_arms(tmp_path_factory.mktemp("private"))


def private_with_arms(folder: Path) -> Experiment:
    compare = "simulation.compare=[centralised,local]"
    return experiment(
        folder, *PRIVATE, "privacy.target_epsilon=4", compare, "engine.torch_threads=1"
    )


def test_the_report_of_a_private_run_has_the_agreed_section(private: Experiment) -> None:
    section = build_report(private)["privacy"]
    assert set(section) >= KEYS
    assert (section["unit"], section["delta"], section["target_epsilon"]) == ("example", 1e-5, 4.0)
    assert section["sigma"] > 0 and section["clip_norm"] == 1.0
    assert section["secure_aggregation"] is False and section["audit"] == {}


def test_every_firm_s_ledger_tells_what_it_spent_of_the_promise(private: Experiment) -> None:
    section = build_report(private)["privacy"]
    assert list(section["per_site"]) == [site.name for site in private.sites]
    for spent in section["per_site"].values():
        assert 3.9 < spent["epsilon_spent"] <= 4.0
        assert (spent["rounds"], spent["unconfirmed"], spent["examples"]) == (2, 0, 24)
    most = max(site["epsilon_spent"] for site in section["per_site"].values())
    assert section["epsilon_spent_max"] == most


def losses(arm: ArmResult) -> list[float]:
    found = [scores for scores in arm.scores.values() if isinstance(scores, ClassificationScores)]
    assert found
    return [scores.loss for scores in found]


@pytest.mark.slow
def test_firms_alone_are_as_private_as_the_federation_and_centralised_is_not(
    private: Experiment, tmp_path: Path
) -> None:
    """The noise is the operating system's: equal seeds give other numbers where there is any."""
    again = private_with_arms(tmp_path)
    assert losses(again.arms["centralised"]) == losses(private.arms["centralised"])
    local = [name for name in private.arms if name.startswith("local:")]
    assert len(local) == 2
    for name in local:
        assert losses(again.arms[name]) != losses(private.arms[name])
    assert again.result.state.digest() != private.result.state.digest()


def test_a_ledger_that_was_tampered_with_gives_no_outcome(private: Experiment) -> None:
    folder = Path(private.settings.output_dir)
    (ledger,) = (folder / "sites").glob("000-*/state/privacy.sqlite3")
    whole = ledger.read_bytes()
    try:
        ledger.unlink()
        with pytest.raises(FoedusError):
            privacy_outcome(private.settings, [site.name for site in private.sites])
    finally:
        ledger.write_bytes(whole)


def test_a_run_without_privacy_masks_or_audit_has_no_outcome(private: Experiment) -> None:
    run = private.settings.run
    clear = replace(run, privacy=replace(run.privacy, mode="none"))
    settings = with_labels(replace(private.settings, run=clear), run.task.labels)
    assert privacy_outcome(settings, []) is None
    audited = privacy_outcome(settings, [], {"kind": "an audit"})
    assert audited is not None and audited.target_epsilon == float("inf")


@pytest.mark.slow
def test_an_audit_catches_the_control_and_not_the_private_run(tmp_path: Path) -> None:
    words = (*PRIVATE, "privacy.target_epsilon=1", "audit=canaries", "audit.canaries=40")
    section = build_report(experiment(tmp_path, *words))["privacy"]
    audit: dict[str, Any] = section["audit"]
    assert audit["private"] is True and audit["control"]["private"] is False
    assert audit["control"]["caught"] is True
    assert 0.9 < audit["accountant_epsilon"] <= 1.0
    assert audit["epsilon_lower_bound"] <= audit["accountant_epsilon"]
    assert audit["auc"] < audit["control"]["auc"]
    assert set(audit["attacks"]) == {"loss", "wire_site", "wire_sum"}
    assert audit["adapter_digest"] == verify_release(tmp_path / "adapter")["adapter_digest"]
    assert audit["membership"]["members"] == 48


@pytest.mark.slow
def test_the_whole_command_with_noise_and_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["foedus"])
    words = "privacy=dp privacy.unit=example privacy.target_epsilon=8 secure_aggregation=on"
    main(
        [
            *SMALL,
            *words.split(),
            "data.firms=3",
            "engine.torch_threads=1",
            "federation.rounds=2",
            f"output_dir={tmp_path}",
        ]
    )
    report = read_report(tmp_path / "report.json")
    section = report["privacy"]
    assert set(section) >= KEYS and section["secure_aggregation"] is True
    assert section["target_epsilon"] == 8.0 and 7.9 < section["epsilon_spent_max"] <= 8.0
    assert len(section["per_site"]) == 3
    assert all(r["aggregated"] and len(r["admitted"]) == 3 for r in report["rounds"])
    manifest = verify_release(tmp_path / "adapter")
    assert manifest["privacy"]["target_epsilon"] == 8.0
    assert manifest["secure_aggregation"]["enabled"] is True
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="privacy"' in page and "fewest firms in one: 3" in page
    shown = capsys.readouterr().out
    assert "epsilon spent, at most" in shown and "saw sums of updates only" in shown


def test_a_simulation_of_fewer_sites_than_a_round_needs_says_so_at_once(tmp_path: Path) -> None:
    """It would wait an hour for sites that cannot come."""
    with pytest.raises(FoedusError, match=r"federation\.min_cohort.*got 2"):
        experiment(tmp_path, "secure_aggregation=on")
