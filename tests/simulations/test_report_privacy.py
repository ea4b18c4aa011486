"""What a reader is told of privacy: on the page, in the verdict, the terminal and the JSON."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simulations.experiment import Experiment
from simulations.report.console import print_scores
from simulations.report.html_report import render_html
from simulations.report.json_report import build_report, report_bytes
from simulations.report.privacy_page import privacy_page
from simulations.report.verdict import verdict
from tests.simulations.experiments import (
    audit_of,
    clause_experiment,
    clear_outcome,
    private_experiment,
)
from tests.simulations.pages import Page


def text_of(experiment: Experiment) -> str:
    return " ".join(Page(render_html(build_report(experiment))).text.split())


def words_of(experiment: Experiment) -> str:
    return " ".join(verdict(build_report(experiment)))


def printed(experiment: Experiment, output_dir: Path) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_scores(build_report(experiment), output_dir, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_without_any_of_it_has_no_word_of_privacy(tmp_path: Path) -> None:
    experiment = clause_experiment(tmp_path)
    report = build_report(experiment)
    assert "privacy" not in report and privacy_page(report) is None
    assert 'id="privacy"' not in render_html(report)
    assert "rivacy" not in words_of(experiment)
    assert "Privacy" not in printed(experiment, tmp_path)


def test_the_section_has_the_agreed_keys(tmp_path: Path) -> None:
    section = build_report(private_experiment(tmp_path))["privacy"]
    agreed = {"unit", "delta", "target_epsilon", "epsilon_spent_max", "per_site", "sigma"}
    assert agreed | {"clip_norm", "audit"} <= set(section)
    assert section["epsilon_spent_max"] == 7.9
    assert section["per_site"]["birch"]["epsilon_spent"] == 4.1
    assert section["audit"] == {}


def test_no_promise_is_written_as_null_and_not_as_infinity(tmp_path: Path) -> None:
    report = build_report(private_experiment(tmp_path, **clear_outcome(secure_aggregation=True)))
    section = json.loads(report_bytes(report))["privacy"]
    assert section["target_epsilon"] is None and section["epsilon_spent_max"] is None
    assert section["per_site"]["ashford"]["epsilon_spent"] is None


def test_the_page_says_what_was_promised_spent_and_left_open(tmp_path: Path) -> None:
    text = text_of(private_experiment(tmp_path))
    for told in (
        "whether any one example is among a firm's contracts",
        "epsilon 8 at delta 1e-05, for each firm over all planned rounds",
        "sigma 0.91 times the clip norm",
        "in each of 8 steps (4 a round)",
        "each example with chance 0.25",
        "about 2,981",
        "each firm's update by itself, with its noise",
        "Not covered: a whole contract or matter, which is many examples",
        "Assumed: the operating system's randomness is good",
        "A firm alone was trained as privately as in the federation",
    ):
        assert told in text
    assert "same passes with the same seeds" not in text
    assert re.search(r"ashford ?7\.900 ?2 ?0 ?6 ?birch ?4\.100 ?1 ?1 ?8", text)


def test_by_matter_the_page_speaks_of_matters(tmp_path: Path) -> None:
    text = text_of(private_experiment(tmp_path, unit="matter"))
    assert "whether any one matter is among" in text
    assert "several matters of one client together" in text


def test_secure_aggregation_is_told_apart_from_noise(tmp_path: Path) -> None:
    outcome = clear_outcome(secure_aggregation=True)
    text = text_of(private_experiment(tmp_path, **outcome))
    assert "one sum of updates a round and who was in it; fewest firms in one: 1" in text
    assert "There was no differential privacy" in text and "not bounded" in text
    assert "Spent at each firm" not in text
    assert "A sum of few updates tells much of them" in text


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ({}, "No firm spent more than epsilon 7.900 of 8 promised for each example"),
        ({"target_epsilon": 7.5}, "promise was not kept: a firm spent epsilon 7.900 against 7.5"),
        ({"per_site": {}}, "promise was not kept"),
        (clear_outcome(), "No differential privacy"),
        ({"secure_aggregation": True}, "saw sums of updates only"),
        ({"secure_aggregation": False}, "saw each firm's update by itself"),
    ],
)
def test_the_verdict_tells_good_and_bad_news_of_the_promise(
    tmp_path: Path, outcome: dict[str, Any], told: str
) -> None:
    assert told in words_of(private_experiment(tmp_path, **outcome))


@pytest.mark.parametrize(
    ("audit", "told"),
    [
        (audit_of(0.0), "did not catch this run, and did catch the same run without privacy"),
        (audit_of(0.6), "caught this run: 63."),
        (audit_of(0.0, control=None), "had no control"),
        (audit_of(0.0, control=0.0), "it shows nothing"),
        (audit_of(1.0, epsilon=0.5), "the promise does not hold. Do not release."),
    ],
)
def test_the_verdict_tells_what_the_audit_is_worth(
    tmp_path: Path, audit: dict[str, Any], told: str
) -> None:
    assert told in words_of(private_experiment(tmp_path, audit=audit))


def test_the_page_shows_every_attack_on_run_and_control(tmp_path: Path) -> None:
    audit = audit_of(0.0)
    report = build_report(private_experiment(tmp_path, audit=audit))
    page = privacy_page(report)
    assert page is not None and page.audit is not None
    titles = [title for title, _ in page.audit.groups]
    assert titles[0] == "as set; the accountant's epsilon is 8.00"
    assert titles[1] == "control: without privacy; no epsilon is promised"
    assert titles[2].endswith("50 trained on, 40 held out, which differ in other ways too")
    assert [len(rows) for _, rows in page.audit.groups] == [3, 3, 1]
    text = Page(render_html(report)).text
    for run in (audit, audit["control"]):
        for found in run["attacks"].values():
            assert f"{found['auc']:.3f}" in text
            assert f"{100 * found['tpr_low']:.1f}% to {100 * found['tpr_high']:.1f}%" in text
            assert f"{found['epsilon_lower_bound']:.2f}" in text
    for told in ("one firm's updates, as seen without", "sums of all firms' updates, as seen with"):
        assert told in text
    assert f"{audit['membership']['auc']:.3f}" in text


def test_an_audit_too_small_to_break_the_promise_says_so(tmp_path: Path) -> None:
    small = text_of(private_experiment(tmp_path, audit=audit_of(0.0, epsilon=8.0)))
    assert "could not have found the promise broken" in small
    enough = text_of(private_experiment(tmp_path, audit=audit_of(0.0, epsilon=1.0)))
    assert "could not have found" not in enough and "is no proof" in enough


def test_an_audit_without_a_promise_is_shown_as_its_own_control(tmp_path: Path) -> None:
    audit = audit_of(0.9, control=None, private=False)
    text = text_of(private_experiment(tmp_path, **clear_outcome(audit=audit)))
    assert "Nothing was promised here" in text and "control: without privacy" not in text


def test_the_figure_tells_its_numbers_in_words_and_loads_nothing(tmp_path: Path) -> None:
    raw = render_html(build_report(private_experiment(tmp_path, audit=audit_of(0.0))))
    page = Page(raw)
    (label,) = [v for v in page.values("aria-label") if v.startswith("Canaries found")]
    assert "adapter of the released kind: as set 1.7%, control: without privacy 100.0%" in label
    assert "http:" not in raw and "https:" not in raw and "script" not in page.tags
    ids = page.values("id")
    assert len(ids) == len(set(ids)) and "privacy" in ids


def test_a_hostile_site_name_stays_text_in_the_table_of_spending(tmp_path: Path) -> None:
    spent = private_experiment(tmp_path).privacy
    assert spent is not None
    hostile = "<img src=x onerror=y>"
    sites = {hostile: spent.per_site["birch"]}
    page = Page(render_html(build_report(private_experiment(tmp_path, per_site=sites))))
    assert "img" not in page.tags and hostile in page.text


def test_the_terminal_shows_promise_spending_and_audit(tmp_path: Path) -> None:
    experiment = private_experiment(tmp_path, secure_aggregation=True, audit=audit_of(0.0))
    text = printed(experiment, tmp_path)
    for line in (
        r"unit .* example",
        r"epsilon promised .* 8 ",
        r"epsilon spent, at most .* 7\.900",
        r"delta .* 1e-05",
        r"secure aggregation .* on",
        r"leakage audit .* this run not caught, control caught",
    ):
        assert re.search(line, text)


def test_the_terminal_of_a_run_without_noise_promises_nothing(tmp_path: Path) -> None:
    text = printed(private_experiment(tmp_path, **clear_outcome()), tmp_path)
    assert re.search(r"differential privacy .* none", text) and "epsilon" not in text
