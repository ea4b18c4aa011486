"""report.html: whole in itself, safe with any name, and true to the numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from models.evaluation import Scores
from simulations.experiment import Experiment
from simulations.report.html_report import render_html
from simulations.report.json_report import build_report
from simulations.report.plots import all_plots
from simulations.report.verdict import verdict
from tests.simulations.experiments import (
    causal_experiment,
    clause_experiment,
    clause_scores,
    language_scores,
)
from tests.simulations.pages import Page as _Page

_HOSTILE = "<script>alert(1)</script>"


def _page(experiment: Experiment) -> str:
    return render_html(build_report(experiment))


@pytest.mark.parametrize("make", [clause_experiment, causal_experiment])
def test_the_page_loads_nothing_from_anywhere(tmp_path: Path, make: object) -> None:
    assert callable(make)
    raw = _page(make(tmp_path))
    page = _Page(raw)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert all(v.startswith("#") for v in page.values("href", "xlink:href", "src", "srcset"))
    assert "http://" not in raw
    assert "https://" not in raw
    assert "@import" not in raw
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", raw))


def test_ids_are_unique_and_every_reference_has_a_target(tmp_path: Path) -> None:
    raw = _page(clause_experiment(tmp_path))
    page = _Page(raw)
    ids = page.values("id")
    targets = set(re.findall(r"url\(#([^)]*)\)", raw)) | {
        v[1:] for v in page.values("href", "xlink:href")
    }
    assert len(ids) == len(set(ids))
    assert targets
    assert targets <= set(ids)


def test_the_page_shows_every_number_and_every_name(tmp_path: Path) -> None:
    text = _Page(_page(clause_experiment(tmp_path))).text
    for shown in ("80.0%", "79.0%", "85.0%", "55.0%", "60.0%", "70.0%", "75.0%", "78.0%"):
        assert shown in text
    for name in ("ashford", "birch", "FedSVD", "minilm", "norm_over_bound", "federation.rounds"):
        assert name in text


def test_every_figure_tells_its_numbers_in_words_and_names_units(tmp_path: Path) -> None:
    report = build_report(clause_experiment(tmp_path))
    plots = {plot.name: plot for plot in all_plots(report)}
    assert list(plots) == ["curve", "pooled", "sites", "bytes", "seconds"]
    assert "80.0% at round 2" in plots["curve"].alt
    assert "ashford alone 60.0%" in plots["pooled"].alt
    assert "birch: federated 78.0%, local 65.0%, centralised 80.0%" in plots["sites"].alt
    assert "accuracy (%)" in plots["curve"].svg
    assert "adapter tensors (kB)" in plots["bytes"].svg
    assert "time (seconds)" in plots["seconds"].svg
    labels = _Page(render_html(report)).values("aria-label")
    assert all(any(plot.alt in label for label in labels) for plot in plots.values())


def test_a_hostile_site_name_stays_text(tmp_path: Path) -> None:
    experiment = clause_experiment(tmp_path, sites=(_HOSTILE, '"><img src=x onerror="$a_1$'))
    page = _Page(_page(experiment))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "onerror" not in [name for name, _ in page.attributes]
    assert _HOSTILE in page.text


def test_equal_reports_give_equal_pages(tmp_path: Path) -> None:
    report = build_report(clause_experiment(tmp_path))
    assert render_html(report) == render_html(report)


def test_the_verdict_says_what_share_of_centralised_is_reached_and_who_is_beaten(
    tmp_path: Path,
) -> None:
    words = " ".join(verdict(build_report(clause_experiment(tmp_path))))
    assert "reaches 94.1% of centralised accuracy (80.0% against 85.0%)" in words
    assert "beats every firm alone, the best of them, ashford, by 20.0 points" in words
    assert "10.0 points above the TF-IDF floor (70.0%)" in words


def test_the_verdict_is_honest_where_a_firm_alone_does_better(tmp_path: Path) -> None:
    federated: dict[str, Scores] = {"pooled": clause_scores(0.52, 0.5)}
    words = " ".join(verdict(build_report(clause_experiment(tmp_path, federated=federated))))
    assert "does not beat every firm alone: 1 of 2 are beaten, not ashford" in words
    assert "leads by 8.0 points" in words
    assert "no better than the mean firm alone" in words
    assert "does as well or better (70.0%)" in words


def test_the_verdict_names_rounds_that_failed_their_quorum(tmp_path: Path) -> None:
    experiment = clause_experiment(tmp_path)
    first, second = experiment.result.records
    result = replace(experiment.result, records=(first, replace(second, aggregated=False)))
    words = " ".join(verdict(build_report(replace(experiment, result=result))))
    assert "Too few good replies in round 2" in words


def test_a_causal_page_shows_perplexity_and_forgetting(tmp_path: Path) -> None:
    report = build_report(causal_experiment(tmp_path))
    text = _Page(render_html(report)).text
    assert "Forgetting" in text
    for shown in ("20.09", "7.39", "6.69", "12.18", "15.64"):
        assert shown in text
    words = " ".join(verdict(report))
    assert "Perplexity on held-out contracts fell: 20.09 before, 7.39 after" in words
    assert "10.5% above centralised" in words
    assert "On general text perplexity rose by 28.4% (12.18 to 15.64)" in words
    curve = next(plot for plot in all_plots(report) if plot.name == "curve")
    assert "perplexity 20.09 at round 0, 7.39 at round 2" in curve.alt


def test_a_personalised_page_says_so_and_draws_the_sites_own_tests(tmp_path: Path) -> None:
    federated: dict[str, Scores] = {
        "ashford": clause_scores(0.92, 0.9),
        "ashford@pooled": clause_scores(0.7, 0.6),
        "birch": clause_scores(0.94, 0.91),
        "birch@pooled": clause_scores(0.8, 0.8),
    }
    experiment = clause_experiment(tmp_path, method="fedsa", federated=federated)
    report = build_report(experiment)
    assert "no single federated model" in " ".join(verdict(report))
    curve = all_plots(report)[0]
    assert "own held-out contracts" in curve.caption
    assert "69.0% at round 1, 81.0% at round 2" in curve.alt
    assert "mean over each firm's own version" in _Page(render_html(report)).text


@pytest.mark.parametrize("compare", [(), ("centralised",), ("local",)])
def test_a_page_is_made_whichever_arms_were_run(tmp_path: Path, compare: tuple[str, ...]) -> None:
    text = _Page(_page(clause_experiment(tmp_path, compare=compare))).text
    assert "80.0%" in text
    assert ("85.0%" in text) == ("centralised" in compare)


def test_a_page_is_made_even_where_the_federation_diverged(tmp_path: Path) -> None:
    experiment = causal_experiment(tmp_path)
    diverged: dict[str, Scores] = {
        name: language_scores(float("nan")) for name in experiment.federated
    }
    report = build_report(replace(experiment, federated=diverged))
    assert "no federated score" in _Page(render_html(report)).text
