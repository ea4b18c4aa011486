"""What the scores say, in words: good news and bad news alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulations.report.arms import (
    METRIC_TITLES,
    Standing,
    is_better,
    lower_is_better,
    metrics_of,
    shown,
    standing_of,
)
from simulations.report.privacy_words import privacy_verdict

_MOST_NAMES = 5


def verdict(report: Mapping[str, Any]) -> list[str]:
    """Sentences, the most important first. Differences are between the numbers in the report."""
    privacy = report.get("privacy")
    return _on_scores(report) + (privacy_verdict(privacy) if privacy else [])


def _on_scores(report: Mapping[str, Any]) -> list[str]:
    metric = metrics_of(report)[0]
    scores = report["scores"]
    federated = scores["federated"].get(metric)
    if federated is None:
        return ["There is no federated score to judge by: nothing was held out, or it diverged."]
    sentences = [
        _against_base(metric, federated, scores),
        _against_centralised(metric, federated, scores),
        *_against_local(metric, federated, report),
        _against_floor(metric, federated, scores),
        _forgetting(report),
        _failed_rounds(report),
    ]
    if scores["federated"].get("personalised"):
        sentences.append(
            "Part of the adapter stays at each firm, so there is no single federated model: "
            "the federated score is the mean over the firms' own versions."
        )
    return [sentence for sentence in sentences if sentence]


def _against_base(metric: str, federated: float, scores: Mapping[str, Any]) -> str:
    base = scores.get("base", {}).get(metric)
    if base is None:
        return ""
    word = "fell" if federated < base else "did not fall"
    return (
        f"Perplexity on held-out contracts {word}: {shown(metric, base)} before, "
        f"{shown(metric, federated)} after the federation."
    )


def _against_centralised(metric: str, federated: float, scores: Mapping[str, Any]) -> str:
    centralised = scores.get("centralised", {}).get(metric)
    if not centralised:
        return ""
    pair = f"{shown(metric, federated)} against {shown(metric, centralised)}"
    if lower_is_better(metric):
        change = 100 * (federated / centralised - 1)
        word = "above" if change > 0 else "below"
        return f"Federated perplexity is {abs(change):.1f}% {word} centralised ({pair})."
    return (
        f"Federated reaches {100 * federated / centralised:.1f}% of centralised {metric} ({pair})."
    )


def _against_local(metric: str, federated: float, report: Mapping[str, Any]) -> list[str]:
    standing = standing_of(report)
    if standing is None:
        return []
    best = f"the best of them, {standing.best_site}"
    to_best = _difference(metric, federated, standing.best_value)
    if not standing.unbeaten:
        first = f"It beats every firm alone, {best}, by {to_best}."
    else:
        count = len(standing.beaten) + len(standing.unbeaten)
        relation = f"by {to_best}" if federated != standing.best_value else "by nothing: a tie"
        first = (
            f"It does not beat every firm alone: {len(standing.beaten)} of {count} are beaten, "
            f"not {_listed(standing)}; {best}, leads {relation}."
        )
    mean = report["scores"]["local"]["mean"].get(metric)
    if mean is None:
        return [first]
    side = "better" if is_better(metric, federated, mean) else "no better"
    gap = f" by {_difference(metric, federated, mean)}" if side == "better" else ""
    return [
        first,
        f"It is {side} than the mean firm alone{gap} "
        f"({shown(metric, federated)} against {shown(metric, mean)}).",
    ]


def _against_floor(metric: str, federated: float, scores: Mapping[str, Any]) -> str:
    floor = scores.get("tfidf", {}).get(metric)
    if floor is None:
        return ""
    if not is_better(metric, federated, floor):
        return (
            f"TF-IDF with logistic regression on everyone's contracts does as well or better "
            f"({shown(metric, floor)}): the federated model adds nothing here."
        )
    gap = _difference(metric, federated, floor)
    return f"It is {gap} above the TF-IDF floor ({shown(metric, floor)})."


def _forgetting(report: Mapping[str, Any]) -> str:
    forgetting = report.get("forgetting", {})
    before = forgetting.get("base", {}).get("perplexity")
    after = forgetting.get("federated", {}).get("perplexity")
    if not before or after is None:
        return ""
    change = 100 * (after / before - 1)
    word = "rose" if change > 0 else "fell"
    return (
        f"On general text perplexity {word} by {abs(change):.1f}% "
        f"({shown('perplexity', before)} to {shown('perplexity', after)}): "
        + ("that much was forgotten." if change > 0 else "nothing was forgotten.")
    )


def _failed_rounds(report: Mapping[str, Any]) -> str:
    failed = [str(r["round"]) for r in report["rounds"] if not r.get("aggregated", True)]
    if not failed:
        return ""
    word = "round" if len(failed) == 1 else "rounds"
    return f"Too few good replies in {word} {', '.join(failed)}: the adapter stayed as it was."


def _difference(metric: str, value: float, other: float) -> str:
    gap = abs(value - other)
    if metric in ("accuracy", "macro_f1"):
        return f"{100 * gap:.1f} points"
    return f"{gap:.2f} in {METRIC_TITLES[metric]}"


def _listed(standing: Standing) -> str:
    names = standing.unbeaten
    rest = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + rest
