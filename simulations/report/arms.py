"""A report's scores as rows to show: one row per way of training, best first in meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METRIC_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "perplexity": "perplexity",
    "loss": "loss",
}
METRIC_UNITS = {
    "accuracy": "%",
    "macro_f1": "%",
    "perplexity": "exp of nats per token",
    "loss": "nats per token",
}


@dataclass(frozen=True)
class ArmRow:
    """One way of training. `values`: metric -> number, None where it was not finite."""

    key: str
    title: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Standing:
    """How the federation stands to the sites alone, by one metric on the pooled test."""

    beaten: tuple[str, ...]
    unbeaten: tuple[str, ...]
    best_site: str
    best_value: float


def metrics_of(report: Mapping[str, Any]) -> tuple[str, str]:
    """The two metrics of the report's task, the one that decides first."""
    if report["config"]["task"]["kind"] == "instruct":
        return ("perplexity", "loss")
    return ("accuracy", "macro_f1")


def lower_is_better(metric: str) -> bool:
    """True for losses and perplexities."""
    return metric in ("loss", "perplexity")


def is_better(metric: str, value: float, other: float) -> bool:
    """Whether `value` is strictly better than `other`."""
    return value < other if lower_is_better(metric) else value > other


def arm_rows(report: Mapping[str, Any]) -> list[ArmRow]:
    """Rows for the arms that were run: centralised, federated, local, then floor and base."""
    scores = report["scores"]
    names = metrics_of(report)
    personalised = scores["federated"].get("personalised", False)
    rows = [_row(names, "centralised", "Centralised: everyone's contracts in one place", scores)]
    title = "Federated: mean over each firm's own version" if personalised else "Federated"
    rows.append(_row(names, "federated", title, scores))
    if "local" in scores:
        rows.append(_row(names, "mean", "Each firm alone: mean", scores["local"]))
        standing = standing_of(report)
        if standing is not None:
            best = f"Each firm alone: best ({standing.best_site})"
            rows.append(_row(names, standing.best_site, best, scores["local"]["per_site"], "best"))
    rows.append(_row(names, "tfidf", "Floor: TF-IDF + logistic regression, pooled", scores))
    rows.append(_row(names, "base", "Base model, no adapter", scores))
    return [row for row in rows if row.values]


def standing_of(report: Mapping[str, Any]) -> Standing | None:
    """The federation against every site alone; None where either was not measured."""
    metric = metrics_of(report)[0]
    federated = report["scores"]["federated"].get(metric)
    local = report["scores"].get("local", {}).get("per_site", {})
    values = {site: row[metric] for site, row in local.items() if row.get(metric) is not None}
    if federated is None or not values:
        return None
    sign = 1.0 if lower_is_better(metric) else -1.0
    best = min(values, key=lambda site: sign * values[site])
    beaten = [site for site, value in values.items() if is_better(metric, federated, value)]
    return Standing(
        beaten=tuple(beaten),
        unbeaten=tuple(site for site in values if site not in beaten),
        best_site=best,
        best_value=values[best],
    )


def shown(metric: str, value: float | None) -> str:
    """A number as people read it: 81.2%, 23.4, 3.152; a dash where there is none."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash in print, not a minus sign
    if metric in ("accuracy", "macro_f1"):
        return f"{100 * value:.1f}%"
    if metric == "loss":
        return f"{value:.3f}"
    return f"{value:.4g}" if value >= 1000 else f"{value:.2f}"


def shown_bytes(count: float) -> str:
    """Decimal units: 1 MB = 1 000 000 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} bytes"


def shown_seconds(seconds: float) -> str:
    """Wall time: 0.42 s, 12.3 s, 4 min 05 s."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(math.floor(seconds + 0.5), 60)
    return f"{minutes} min {rest:02d} s"


def _row(
    names: tuple[str, str], key: str, title: str, section: Mapping[str, Any], kind: str = ""
) -> ArmRow:
    found = section.get(key, {})
    return ArmRow(kind or key, title, {name: found[name] for name in names if name in found})
