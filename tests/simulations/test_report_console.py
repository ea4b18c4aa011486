"""What a terminal shows during and after a run."""

from __future__ import annotations

import io
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from server.records import RoundRecord
from simulations.baselines import ArmResult
from simulations.experiment import Experiment
from simulations.progress import ExperimentProgress
from simulations.report.console import print_scores
from simulations.report.json_report import build_report
from tests.simulations.experiments import (
    causal_experiment,
    clause_experiment,
    clause_scores,
    language_scores,
    records,
)


def _printed(experiment: Experiment, output_dir: Path) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_scores(build_report(experiment), output_dir, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_arms_firms_and_where_the_files_are(tmp_path: Path) -> None:
    text = _printed(clause_experiment(tmp_path), tmp_path)
    for shown in ("accuracy", "macro-F1", "80.0%", "85.0%", "55.0%", "70.0%", "ashford", "birch"):
        assert shown in text
    for name in ("report.json", "report.html", "adapter"):
        assert str(tmp_path / name) in text


def test_a_causal_table_shows_perplexity_and_general_text(tmp_path: Path) -> None:
    text = _printed(causal_experiment(tmp_path), tmp_path)
    for shown in ("perplexity", "loss", "7.39", "20.09", "General text", "15.64"):
        assert shown in text


def test_a_site_name_is_never_read_as_markup(tmp_path: Path) -> None:
    assert "[red]x[/nope]" in _printed(
        clause_experiment(tmp_path, sites=("[red]x[/nope]", "birch")), tmp_path
    )


@pytest.fixture
def plain() -> Console:
    return Console(file=io.StringIO(), width=200)


def _run(progress: ExperimentProgress, rounds: tuple[RoundRecord, ...]) -> None:
    progress.arms_planned(2)
    for record in rounds:
        progress.observer.round_started(record.round, len(rounds), len(record.cohort))
        for kind in ("train", "evaluate"):
            for node in (1, 2, 3):
                progress.observer.reply_handled(record.round, node, kind, node != 2)
        progress.observer.round_finished(record)
    arms = [
        ArmResult("local:[b]", {"pooled": clause_scores(0.6, 0.5)}, 2.0),
        ArmResult("centralised", {"pooled": language_scores(2.0)}, 4.0),
    ]
    for arm in arms:
        thread = Thread(target=progress.arm_finished, args=(arm,))
        thread.start()
        thread.join()


def test_without_a_terminal_each_round_and_each_arm_is_one_plain_line(plain: Console) -> None:
    with ExperimentProgress(plain) as progress:
        _run(progress, records(("ashford", "birch")))
    assert isinstance(plain.file, io.StringIO)
    assert plain.file.getvalue().splitlines() == [
        "round 1/2: 2 of 2 sites, 10.0 s, accuracy 70.0%",
        "round 2/2: 1 of 2 sites, 1 set aside, 10.0 s, accuracy 80.0%",
        "arm 1/2 local:[b]: accuracy 60.0% (2.0 s training)",
        "arm 2/2 centralised: perplexity 7.39 (4.0 s training)",
    ]


def test_in_a_terminal_bars_show_round_and_last_accuracy() -> None:
    console = Console(
        file=io.StringIO(), width=120, force_terminal=True, color_system=None, _environ={}
    )
    with ExperimentProgress(console) as progress:
        _run(progress, records(("ashford", "birch")))
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().split("rounds")[-1]
    assert "2/2" in last
    assert "accuracy 80.0%" in last
    assert "centralised: perplexity 7.39" in last


def test_progress_ends_cleanly_when_the_run_fails(plain: Console) -> None:
    with pytest.raises(ValueError, match="broken"), ExperimentProgress(plain):
        raise ValueError("broken")
