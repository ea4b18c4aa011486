"""Overrides come out of Flower's run configuration as they went in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import SettingsError
from server.consortium.folder import ConsortiumFolder
from server.consortium.settings import ConsortiumSettings
from server.runs.folder import RunFolder
from server.runs.lifecycle import Runs, check_overrides
from server.runs.words import joined, split


@given(st.lists(st.text(max_size=20), max_size=6))
def test_any_words_survive_the_way(words: list[str]) -> None:
    assert split(joined(words)) == words


@pytest.mark.parametrize(
    "folder", ["plain", "with space", "it's", 'a"b', "comma,{x}=1", "back\\s", "end\\", "\\'"]
)
def test_the_folders_of_a_run_reach_the_settings_whatever_their_names(
    tmp_path: Path, folder: str
) -> None:
    from server.app import compose_plan

    consortium = ConsortiumFolder(tmp_path / folder)
    runs = Runs(consortium, ConsortiumSettings("Oak", "localhost:9443"))
    run = RunFolder(consortium.runs / "run-1")
    words = runs.words(run, ["task.labels=['governing law',fees]"], resume=True)
    # Without the files that a plan reads.
    kept = [word for word in split(joined(words)) if "nodes_file" not in word]
    plan = compose_plan(kept)
    assert plan.coordinator.output_dir == str(tmp_path / folder / "runs" / "run-1")
    assert plan.coordinator.roster == str(tmp_path / folder / "roster.jsonl")
    assert plan.coordinator.resume
    assert plan.settings.task.labels == ("governing law", "fees")


def test_what_the_consortium_gives_is_not_taken_from_the_overrides() -> None:
    check_overrides(["federation.rounds=2", "coordinator.test_set=x.jsonl"])
    with pytest.raises(SettingsError) as caught:
        check_overrides(
            ["coordinator.output_dir=x", "+coordinator.roster=y", "coordinator.resume=true"]
        )
    assert len(caught.value.problems) == 3
