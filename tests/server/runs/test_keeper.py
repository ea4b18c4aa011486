"""The keeper over runs that need nobody to answer; see test_run_lifecycle for those that do."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.runs.folder import RunFolder, RunRecord, RunStatus
from server.runs.keeper import Keeper
from tests.server.runs.little_consortium import found


def test_a_problem_that_lasts_is_logged_once_and_again_when_it_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = found(tmp_path / "oak")
    run: RunFolder = runs.run("odd")
    run.create(RunRecord("odd", (), 0.0, status=RunStatus.FINISHED))
    record = run.path / "run.json"
    good = record.read_text()
    keeper = Keeper(runs.folder, runs.settings)

    def told() -> list[str]:
        return [entry.message for entry in caplog.records if "Run odd" in entry.message]

    for _ in range(3):
        record.write_text("{")
        keeper.step()
        keeper.step()
        record.write_text(good)
        keeper.step()
    assert len(told()) == 3 and "restore run.json" in told()[0]
