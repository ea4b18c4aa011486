"""The release gate: an adapter whose audit fails stays in its checkpoints, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from protocol.audit_policy import AuditPolicy, audited_settings_digest
from protocol.codec import decode
from protocol.errors import FoedusError, SettingsError
from server.app import (
    CoordinatorSettings,
    Plan,
    checkpoint_folder,
    compose_plan,
    compose_settings,
    release_finished,
    run_plan,
)
from server.checkpoint import CheckpointStore
from server.cli import app as command_line
from server.coordinator import RunResult
from server.observer import LogObserver
from server.records import RoundRecord
from server.release import MODEL_CARD, release, verify_release
from server.release_gate import ReleaseGate
from simulations.engines.in_process import InProcessGrid
from tests.little_sites import little_app
from tests.small_runs import RUN_ID, small_run, start_state

RUN = small_run(rounds=1)
STATE = start_state(RUN)
AGGREGATED = RoundRecord(1, 1.0, ("Ash",), ("Ash",), (), (), True, 0, 0, 0, 0.0, 0.0)
RESULT = RunResult(RUN_ID, STATE, (AGGREGATED,))
GOOD: dict[str, Any] = {
    "kind": "foedus-leakage-audit",
    "schema": 1,
    "settings_digest": audited_settings_digest(RUN),
    "adapter_digest": STATE.digest(),
    "private": True,
    "canaries_planted": 101,
    "canaries_left_out": 99,
    "tpr_at_1_fpr": 0.03,
    "epsilon_lower_bound": 0.4,
    "ceiling": 3.1,
    "accountant_epsilon": 8.0,
    "caught": False,
    "control": {"caught": True},
    "membership": {"tpr_at_1_fpr": 0.02, "auc": 0.51},
}
# Words for conf/coordinate.yaml that train next to nothing.
WORDS = [
    "task.labels=[notice,payment]",
    "federation.rounds=1",
    "model.max_tokens=16",
    "adapter.rank=2",
    "adapter.last_layers=1",
]


def audit_file(folder: Path, **changes: Any) -> str:
    path = folder / "audit.json"
    path.write_text(json.dumps({**GOOD, **changes}), encoding="utf-8")
    return str(path)


def gate(folder: Path, policy: AuditPolicy | None = None, **changes: Any) -> ReleaseGate:
    return ReleaseGate(audit_file(folder, **changes), policy or AuditPolicy())


def test_an_adapter_whose_audit_passes_is_released_with_the_audit_s_figures(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "adapter"
    audit = release(folder, RESULT, RUN, gate(tmp_path))["audit"]
    assert verify_release(folder)["audit"] == audit
    assert (audit["tpr_at_1_fpr"], audit["epsilon_lower_bound"], audit["ceiling"]) == (
        0.03,
        0.4,
        3.1,
    )
    assert audit["control_caught"] is True and audit["caught"] is False
    assert audit["membership"] == {"tpr_at_1_fpr": 0.02, "auc": 0.51}
    assert audit["policy"]["min_canaries"] == 100 and len(audit["sha256"]) == 64
    card = (folder / MODEL_CARD).read_text()
    assert "passed: 3.0% of planted canaries" in card and "proven epsilon 0.40" in card


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tpr_at_1_fpr": 0.5}, "canaries found at 1% FPR"),
        ({"epsilon_lower_bound": 9.0}, "proven epsilon"),
        ({"control": {"caught": False}}, "was not caught"),
        ({"control": None}, "was not caught"),
        ({"private": False}, "not private"),
        ({"canaries_planted": 10, "canaries_left_out": 10}, "100 canaries or more, got 20"),
        ({"membership": {"tpr_at_1_fpr": 0.9}}, "real examples"),
        ({"settings_digest": audited_settings_digest(small_run(rounds=2))}, "other settings"),
        ({"adapter_digest": "0" * 64}, "another adapter"),
        ({"schema": 2}, "schema 1"),
    ],
)
def test_an_adapter_that_fails_one_limit_is_not_written(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(FoedusError, match=told):
        release(tmp_path / "adapter", RESULT, RUN, gate(tmp_path, **changes))
    assert not (tmp_path / "adapter").exists()


def test_every_failure_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FoedusError) as caught:
        release(tmp_path / "adapter", RESULT, RUN, gate(tmp_path, tpr_at_1_fpr=0.5, private=False))
    told = str(caught.value)
    assert "canaries found" in told and "not private" in told and told.count("\n  - ") == 2


def test_the_consortium_s_own_limits_decide(tmp_path: Path) -> None:
    strict = AuditPolicy(max_tpr_at_1_fpr=0.02)
    with pytest.raises(FoedusError, match=r"at most 0\.02, got 0\.03"):
        gate(tmp_path, strict).check(STATE, RUN)
    assert gate(tmp_path, AuditPolicy(max_tpr_at_1_fpr=0.03)).check(STATE, RUN)


def test_an_audit_that_is_required_or_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match="requires a leakage audit"):
        ReleaseGate(required=True).check(STATE, RUN)
    with pytest.raises(FoedusError, match="leakage audit in JSON"):
        ReleaseGate(str(tmp_path / "none.json")).check(STATE, RUN)
    assert ReleaseGate().check(STATE, RUN) is None


def test_an_audit_without_membership_may_be_of_the_settings_alone(tmp_path: Path) -> None:
    assert gate(tmp_path, membership=None, adapter_digest="").check(STATE, RUN)


def test_nothing_but_numbers_of_a_report_gets_into_the_manifest(tmp_path: Path) -> None:
    strange: dict[str, Any] = {"ceiling": float("inf"), "auc": "| evil |", "note": "<script>"}
    audit = gate(tmp_path, **strange).check(STATE, RUN)
    assert audit is not None and not {"ceiling", "auc", "note"} & set(audit)


@dataclass(frozen=True)
class RefusedRun:
    """A finished run whose release was refused for want of an audit."""

    folder: Path
    settings_digest: str


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[RefusedRun]:
    folder = tmp_path / "run"
    settings = compose_settings(WORDS)
    coordinator = CoordinatorSettings(str(folder), require_audit=True)
    plan = Plan(settings, coordinator, LogObserver())
    with pytest.raises(FoedusError, match="requires a leakage audit"):
        run_plan(InProcessGrid(little_app(), 1), plan)
    yield RefusedRun(folder, audited_settings_digest(settings))


def test_a_refused_run_keeps_its_rounds_and_is_released_once_its_audit_passes(
    refused: RefusedRun,
) -> None:
    folder = refused.folder
    assert (folder / "history.json").is_file() and list(checkpoint_folder(folder).iterdir())
    assert not (folder / "adapter").exists()
    audit = audit_file(folder, settings_digest=refused.settings_digest, membership=None)
    with pytest.raises(FoedusError, match="requires a leakage audit"):
        release_finished(folder, WORDS)  # Though these words do not require one.
    manifest = release_finished(folder, WORDS, audit)
    kept = CheckpointStore(checkpoint_folder(folder), compose_settings(WORDS)).load_newest()
    assert kept is not None and manifest["adapter_digest"] == kept.state.digest()
    assert verify_release(folder / "adapter") == manifest


def test_a_run_with_other_settings_or_rounds_to_go_is_not_released_late(
    refused: RefusedRun,
) -> None:
    for words, told in (
        ([*WORDS, "federation.seed=9"], "other settings"),
        (WORDS, "expected at most 0.1, got 0.5"),
    ):
        audit = audit_file(
            refused.folder, settings_digest=refused.settings_digest, tpr_at_1_fpr=0.5
        )
        with pytest.raises(FoedusError, match=told):
            release_finished(refused.folder, words, audit)
    with pytest.raises(FoedusError, match="got 0 of 1 rounds"):
        release_finished(refused.folder / "elsewhere", WORDS)
    settings = compose_settings([*WORDS, "federation.rounds=3"])
    store = CheckpointStore(checkpoint_folder(refused.folder / "unfinished"), settings)
    done = CheckpointStore(checkpoint_folder(refused.folder), compose_settings(WORDS)).load_newest()
    assert done is not None
    store.save(replace(done, round=2))
    with pytest.raises(FoedusError, match="got 2 of 3 rounds"):
        release_finished(refused.folder / "unfinished", [*WORDS, "federation.rounds=3"])


def test_the_command_releases_late_and_says_why_not(refused: RefusedRun) -> None:
    folder = refused.folder
    digest = refused.settings_digest
    bad = audit_file(folder, settings_digest=digest, membership=None, private=False)
    command = ["release", str(folder), *WORDS, "--audit", bad]
    result = CliRunner().invoke(command_line, command)
    assert result.exit_code == 2 and "not private" in result.stderr
    audit_file(folder, settings_digest=digest, membership=None)
    result = CliRunner().invoke(command_line, [*command, "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == verify_release(folder / "adapter")


def test_the_gate_is_configured_where_the_coordinator_is() -> None:
    words = [
        *WORDS,
        "coordinator.audit_report=audit.json",
        "coordinator.audit_policy.min_canaries=400",
    ]
    built = compose_plan(words).coordinator.release_gate
    assert built == ReleaseGate("audit.json", AuditPolicy(min_canaries=400))
    assert compose_plan(WORDS).coordinator == CoordinatorSettings("outputs/run")
    with pytest.raises(SettingsError, match=r"audit_policy\.max_tpr_at_1_fpr"):
        decode(
            CoordinatorSettings, {"output_dir": "x", "audit_policy": {"max_tpr_at_1_fpr": 7}}, ""
        )
