"""Numbers over rounds: the federated curve and the levels it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from simulations.report.arms import standing_of

Report = Mapping[str, Any]

_LARGEST_EXPONENT = 700.0


def federated_curve(report: Report, metric: str) -> list[tuple[int, float]]:
    """(round, value) wherever it was measured, on the pooled test.

    Where factors stay at sites, on each site's own test instead: the coordinator's part alone is
    no model that anyone uses. A causal run starts from the base model as round 0.
    """
    prefix = "sites" if _personalised(report) else "central"
    curve: list[tuple[int, float]] = []
    base = report["scores"].get("base", {}).get(metric)
    if base is not None and not _personalised(report):
        curve.append((0, base))
    for round_ in report["rounds"]:
        value = measured(round_["metrics"], prefix, metric)
        if value is not None:
            curve.append((round_["round"], value))
    return curve


def measured(metrics: Mapping[str, float | None], prefix: str, metric: str) -> float | None:
    """A round's metric by who measured it; a perplexity also where only its loss is given."""
    value = metrics.get(f"{prefix}_{metric}")
    if value is None and metric == "perplexity":
        loss = metrics.get(f"{prefix}_loss")
        return None if loss is None else math.exp(min(loss, _LARGEST_EXPONENT))
    return value


def reference_levels(report: Report, metric: str) -> list[tuple[str, str, float]]:
    """(arm, title, value) of the arms that a curve is compared with, on the curve's own test."""
    scores = report["scores"]
    local = scores.get("local", {})
    if _personalised(report):
        levels = [
            ("centralised", "centralised", _own_mean(report, "centralised", "per_site", metric)),
            ("mean", "firms alone: mean", _own_mean(report, "local", "own_test", metric)),
        ]
    else:
        standing = standing_of(report)
        best = local.get("per_site", {}).get(standing.best_site, {}) if standing else {}
        levels = [
            ("centralised", "centralised", scores.get("centralised", {}).get(metric)),
            ("mean", "firms alone: mean", local.get("mean", {}).get(metric)),
            ("best", "firms alone: best", best.get(metric)),
            ("tfidf", "TF-IDF floor", scores.get("tfidf", {}).get(metric)),
        ]
    return [(key, title, value) for key, title, value in levels if value is not None]


def _personalised(report: Report) -> bool:
    return bool(report["scores"]["federated"].get("personalised", False))


def _own_mean(report: Report, arm: str, tests: str, metric: str) -> float | None:
    """The mean over sites' own tests, weighted by test examples as the sites' round metrics are."""
    rows = report["scores"].get(arm, {}).get(tests, {})
    source = "loss" if metric == "perplexity" else metric
    measured_at = [
        (site["test_examples"], rows[site["name"]][source])
        for site in report["sites"]
        if rows.get(site["name"], {}).get(source) is not None
    ]
    total = sum(count for count, _ in measured_at)
    if not total:
        return None
    mean = math.fsum(count * value for count, value in measured_at) / total
    return math.exp(min(mean, _LARGEST_EXPONENT)) if metric == "perplexity" else mean
