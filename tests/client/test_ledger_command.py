"""`foedus client ledger`: spent and left, and an exit status that tells of a broken ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.cli import app
from client.privacy.accounting import Cost
from client.privacy.units import matter_digest
from tests.client.ledgers import entry, epsilon_of, ledger_with, tamper, units_of


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A site with a budget and no rounds yet."""
    path = tmp_path / "site.yaml"
    record = {"text": "Rent falls due monthly.", "label": "rent", "matter": "alpha"}
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "clauses.jsonl").write_text(json.dumps(record) + "\n")
    path.write_text(
        "name: north\ncontracts: contracts\nstate: state\npolicy:\n"
        f"  budget_epsilon: {epsilon_of(4)!r}\n"
    )
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["ledger", *map(str, words)], env={"COLUMNS": "160"})


def run_json(config: Path) -> Any:
    result = run("--config", config, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_spent_and_left_are_shown_for_data_sets_and_matters(config: Path) -> None:
    units = units_of("alpha", "beta")
    ledger = ledger_with(config.parent / "state", 2, units)
    ledger.reserve(entry(3), units)
    result = run("--config", config)
    assert result.exit_code == 0, result.stderr
    spent, left = f"{epsilon_of(3):.3f}", f"{epsilon_of(4) - epsilon_of(3):.3f}"
    gone = matter_digest("beta").hex()[:12]  # no contract tells this matter's name any more
    for name in (units.digest[:12], "alpha", gone):
        (line,) = [line for line in result.stdout.splitlines() if line.strip().startswith(name)]
        assert spent in line and left in line and " 3 " in line
    assert "delta 1e-05" in result.stdout
    assert "whether or not they were confirmed: 1 never were" in result.stdout


def test_json_has_every_figure_and_null_where_there_is_no_bound(config: Path) -> None:
    state = config.parent / "state"
    ledger = ledger_with(state, 2, units_of("alpha"))
    plain = entry(unit="none", cost=Cost(1.0, 0.0, 0))
    ledger.reserve(plain, units_of("beta", unit="none"))
    found = run_json(config)
    assert found["budget"] == {"unit": "matter", "epsilon": epsilon_of(4), "delta": 1e-5}
    assert found["head"] == ledger.head()
    first, second = found["data_sets"]
    assert (first["rounds"], first["epsilon_spent"]) == (2, epsilon_of(2))
    assert [m["digest"] for m in first["matters"]] == [matter_digest("alpha").hex()]
    assert (second["epsilon_spent"], second["epsilon_left"]) == (None, 0.0)
    assert "no bound" in run("--config", config).stdout


def test_without_a_budget_what_was_spent_is_shown_all_the_same(config: Path) -> None:
    config.write_text("name: north\ncontracts: contracts\nstate: state\n")
    ledger_with(config.parent / "state", 1)
    assert "no budget is set" in run("--config", config).stdout
    found = run_json(config)
    assert found["budget"]["epsilon"] is None
    assert found["data_sets"][0]["epsilon_spent"] == epsilon_of(1)
    assert found["data_sets"][0]["epsilon_left"] is None


def test_nothing_trained_is_said_so_and_leaves_no_file(config: Path) -> None:
    result = run("--config", config, "--verify")
    assert result.exit_code == 0
    assert "Nothing was trained" in result.stderr
    assert run_json(config)["data_sets"] == []
    assert not (config.parent / "state" / "privacy.sqlite3").exists()


@pytest.mark.parametrize("damage", ["edited", "deleted", "receipts gone"])
def test_verify_finds_a_broken_ledger_and_ends_with_status_1(config: Path, damage: str) -> None:
    ledger = ledger_with(config.parent / "state", 2)
    whole = run("--config", config, "--verify")
    assert whole.exit_code == 0
    assert "The ledger of 2 rounds is whole" in whole.stderr
    if damage == "edited":
        tamper(ledger, "UPDATE rounds SET sigma = 99.0 WHERE sequence = 1")
    elif damage == "deleted":
        ledger.path.unlink()
    else:
        (config.parent / "state" / "receipts.jsonl").unlink()
    result = run("--config", config, "--verify")
    assert result.exit_code == 1
    assert "foedus client ledger: Expected" in result.stderr and result.stdout == ""


def test_a_broken_ledger_shows_no_figures(config: Path) -> None:
    tamper(ledger_with(config.parent / "state", 2), "DELETE FROM rounds WHERE sequence = 2")
    result = run("--config", config)
    assert result.exit_code == 2
    assert "Never delete" in result.stderr and result.stdout == ""
