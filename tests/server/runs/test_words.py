"""A run's overrides reach its ServerApp as they were given, and no site."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FoedusError, SettingsError
from server.consortium.folder import ConsortiumFolder
from server.runs.folder import RunRecord, RunStatus, run_folder
from server.runs.lifecycle import check_overrides
from server.runs.words import CONSORTIUM_VARIABLE, run_words


@given(st.lists(st.text(max_size=20), max_size=6))
def test_any_words_survive_the_way_through_the_configuration(words: list[str]) -> None:
    assert run_words({"overrides": shlex.join(words)}, {}) == words


@pytest.mark.parametrize(
    "folder", ["plain", "with space", "it's", 'a"b', "comma,{x}=1", "back\\s", "end\\", "\\'"]
)
def test_the_folders_of_a_run_reach_the_settings_whatever_their_names(
    tmp_path: Path, folder: str
) -> None:
    from server.app import compose_plan

    consortium = ConsortiumFolder(tmp_path / folder)
    overrides = ("task.labels=['governing law',fees]",)
    run_folder(consortium.runs, "run-1").create(RunRecord("run-1", overrides, 0.0))
    environment = {CONSORTIUM_VARIABLE: str(tmp_path / folder)}
    words = run_words({"run": "run-1", "resume": True}, environment)
    # Without the files that a plan reads.
    plan = compose_plan([word for word in words if "nodes_file" not in word])
    assert plan.coordinator.output_dir == str(tmp_path / folder / "runs" / "run-1")
    assert plan.coordinator.roster == str(tmp_path / folder / "roster.jsonl")
    assert plan.coordinator.resume
    assert plan.settings.task.labels == ("governing law", "fees")


def test_a_run_that_cannot_be_found_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match=CONSORTIUM_VARIABLE):
        run_words({"run": "run-1"}, {})
    with pytest.raises(FoedusError, match="run-1"):
        run_words({"run": "run-1"}, {CONSORTIUM_VARIABLE: str(tmp_path)})


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.STOPPED, RunStatus.FINISHED])
def test_a_run_that_counts_as_over_does_not_begin_after_all(
    tmp_path: Path, status: RunStatus
) -> None:
    consortium = ConsortiumFolder(tmp_path)
    run_folder(consortium.runs, "late").create(RunRecord("late", (), 0.0, status=status))
    with pytest.raises(FoedusError, match=f"is {status}, so nothing begins"):
        run_words({"run": "late"}, {CONSORTIUM_VARIABLE: str(tmp_path)})


def test_what_the_consortium_gives_is_not_taken_from_the_overrides() -> None:
    check_overrides(["federation.rounds=2", "coordinator.test_set=x.jsonl"])
    with pytest.raises(SettingsError) as caught:
        check_overrides(
            ["coordinator.output_dir=x", "+coordinator.roster=y", "coordinator.resume=true"]
        )
    assert len(caught.value.problems) == 3
