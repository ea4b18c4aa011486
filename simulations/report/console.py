"""The scores as a table in the terminal, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.report.arms import METRIC_TITLES, arm_rows, metrics_of, shown
from simulations.report.json_report import ADAPTER
from simulations.report.privacy_words import audit_in_short, shown_delta, shown_epsilon
from simulations.report.verdict import verdict
from simulations.report.write import HTML_NAME, JSON_NAME


def print_scores(
    report: Mapping[str, Any], output_dir: Path, console: Console | None = None
) -> None:
    """Tables of arms, of firms and of privacy, the verdict, and the paths of what was written."""
    console = console or Console()
    console.print(score_table(report))
    console.print(site_table(report))
    if "forgetting" in report:
        console.print(forgetting_table(report))
    if "privacy" in report:
        console.print(privacy_table(report["privacy"]))
    for sentence in verdict(report):
        console.print(Text(sentence))
    for title, name in (("report", HTML_NAME), ("numbers", JSON_NAME), ("adapter", ADAPTER)):
        console.print(Text(f"{title:<8}{output_dir / name}"), soft_wrap=True)


def score_table(report: Mapping[str, Any]) -> Table:
    """Arms by metrics, on the pooled test."""
    metrics = metrics_of(report)
    table = _table("All models on the pooled test", "trained", [METRIC_TITLES[m] for m in metrics])
    for row in arm_rows(report):
        numbers = [shown(metric, row.values.get(metric)) for metric in metrics]
        style = "bold" if row.key == "federated" else ""
        table.add_row(Text(row.title), *numbers, style=style)
    return table


def site_table(report: Mapping[str, Any]) -> Table:
    """Firms by models: each firm's own model on both tests, the shared ones on the firm's own."""
    metric, scores = metrics_of(report)[0], report["scores"]
    local = scores.get("local", {})
    columns = {
        "alone, pooled": local.get("per_site", {}),
        "alone": local.get("own_test", {}),
        "federated": scores["federated"].get("per_site", {}),
        "centralised": scores.get("centralised", {}).get("per_site", {}),
    }
    kept = {title: rows for title, rows in columns.items() if rows}
    table = _table(
        f"{METRIC_TITLES[metric].capitalize()} on each firm's own test", "firm", ["examples", *kept]
    )
    for site in report["sites"]:
        name = site["name"]
        numbers = [shown(metric, rows.get(name, {}).get(metric)) for rows in kept.values()]
        table.add_row(Text(name), str(site["train_examples"]), *numbers)
    return table


def forgetting_table(report: Mapping[str, Any]) -> Table:
    """Models by metrics, on general text."""
    metrics = metrics_of(report)
    table = _table("General text (forgetting)", "model", [METRIC_TITLES[m] for m in metrics])
    for arm, values in report["forgetting"].items():
        table.add_row(arm, *[shown(metric, values.get(metric)) for metric in metrics])
    return table


def privacy_table(privacy: Mapping[str, Any]) -> Table:
    """What was promised, spent, hidden from the coordinator and found by the audit."""
    table = _table("Privacy", "what", ["this run"])
    if privacy["mode"] == "dp":
        table.add_row("unit", privacy["unit"])
        table.add_row("epsilon promised", f"{privacy['target_epsilon']:g}")
        table.add_row("epsilon spent, at most", shown_epsilon(privacy["epsilon_spent_max"]))
        table.add_row("delta", shown_delta(privacy["delta"]))
    else:
        table.add_row("differential privacy", "none")
    table.add_row("secure aggregation", "on" if privacy["secure_aggregation"] else "off")
    table.add_row("leakage audit", audit_in_short(privacy["audit"]))
    return table


def _table(title: str, first: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table
