"""`foedus client audit`: from a site's configuration to a table, a report and an exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.cli import app
from client.run_settings import read_run_settings
from protocol.audit_policy import AuditPolicy, audited_settings_digest
from protocol.codec import encode, flatten
from protocol.errors import FoedusError
from protocol.settings import PrivacySettings, RunSettings
from tests.client.released import release
from tests.small_runs import small_run, write_site

RUN = small_run(
    rounds=1, training={"learning_rate": 0.01, "head_learning_rate": 0.05, "local_epochs": 2}
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path, 1)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, words)], env={"COLUMNS": "200"})


def settings_file(folder: Path, settings: RunSettings) -> Path:
    path = folder / "settings.json"
    path.write_text(json.dumps(encode(settings)))
    return path


def test_a_table_shows_every_attack(site: Path, tmp_path: Path) -> None:
    settings = settings_file(tmp_path, RUN)
    result = run("--config", site, "--settings", settings, "--canaries", 24, "--repeats", 1)
    assert result.exit_code == 0, result.stderr
    assert "loss" in result.stdout and "updates" in result.stdout
    assert "no epsilon is promised" in result.stderr


def test_with_an_adapter_the_report_holds_membership_and_what_it_is_of(
    site: Path, tmp_path: Path
) -> None:
    state = release(tmp_path / "adapter", RUN)
    before = sorted(path for path in tmp_path.rglob("*"))
    words = ("--config", site, "--adapter", tmp_path / "adapter", "--canaries", 20, "--json")
    result = run(*words, "--repeats", 1)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["adapter_digest"] == state.digest()
    assert report["settings_digest"] == audited_settings_digest(RUN)
    assert report["membership"]["members"] == 12 and report["membership"]["nonmembers"] == 6
    assert report["canaries_planted"] + report["canaries_left_out"] == 20
    assert AuditPolicy().failures(report, RUN), "twenty canaries without privacy are no release"
    assert sorted(path for path in tmp_path.rglob("*")) == before, "nothing trained may be kept"


def test_either_an_adapter_or_settings_must_be_named(site: Path, tmp_path: Path) -> None:
    result = run("--config", site)
    assert result.exit_code == 2 and "--adapter or --settings" in result.stderr
    (tmp_path / "settings.json").write_text('{"task": {"kind": "classify"}, "colour": 1}')
    result = run("--config", site, "--settings", tmp_path / "settings.json")
    assert result.exit_code == 2
    assert "colour" in result.stderr and "model" in result.stderr
    (tmp_path / "settings.json").write_text("{")
    result = run("--config", site, "--settings", tmp_path / "settings.json")
    assert result.exit_code == 2 and "run settings" in result.stderr


def test_settings_are_read_nested_and_as_server_check_prints_them(tmp_path: Path) -> None:
    nested = encode(RUN)
    for name, values in (("nested", nested), ("flat", flatten(nested))):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(values))
        assert read_run_settings(path) == RUN


@pytest.mark.parametrize("label", ["${oc.env:FOEDUS_PASSPHRASE}", "a ${model.id}", "${novel:x}"])
def test_a_run_settings_file_of_somebody_else_brings_in_nothing_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    monkeypatch.setenv("FOEDUS_PASSPHRASE", "correct horse")
    nested = encode(RUN)
    nested["task"]["labels"] = [label, "other"]
    for values in (nested, flatten(nested)):
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(values))
        with pytest.raises(FoedusError, match=r"got a reference at 'task.labels'") as refused:
            read_run_settings(path)
        assert "horse" not in str(refused.value)


def test_a_run_settings_file_that_is_a_list_is_refused_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps([encode(RUN)]))
    with pytest.raises(FoedusError, match="got a list"):
        read_run_settings(tmp_path / "settings.json")


@pytest.mark.slow
def test_a_private_run_is_told_apart_from_its_control(site: Path, tmp_path: Path) -> None:
    privacy = PrivacySettings(mode="dp", sampling_rate=0.5, steps_per_round=6, target_epsilon=4.0)
    private = small_run(
        training={"learning_rate": 0.01, "head_learning_rate": 0.05, "local_epochs": 2}
    )
    settings = settings_file(
        tmp_path, RunSettings(private.task, private.model, private.adapter, private.training,
                              private.federation, privacy)
    )  # fmt: skip
    result = run("--config", site, "--settings", settings, "--canaries", 40, "--json")
    report = json.loads(result.stdout)
    assert report["private"] is True and report["unit"] == "matter" and report["repeats"] == 8
    assert report["control"]["private"] is False and report["control"]["auc"] > 0.8
    assert report["epsilon_lower_bound"] < report["accountant_epsilon"] <= 4.0
    failures = AuditPolicy(min_canaries=20).failures(report)
    assert result.exit_code == (1 if failures else 0)
    assert all(failure in result.stderr for failure in failures)
