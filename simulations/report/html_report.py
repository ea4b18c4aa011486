"""report.html: one file to read and pass on, with nothing to load from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from protocol.codec import flatten
from protocol.methods import METHODS
from simulations.report.arms import (
    METRIC_TITLES,
    arm_rows,
    metrics_of,
    shown,
    shown_bytes,
    shown_seconds,
)
from simulations.report.plots import all_plots
from simulations.report.privacy_page import privacy_page
from simulations.report.verdict import verdict

_TEMPLATE = "page.html.jinja"
_TASKS = {"classify": "clause classification", "instruct": "answers on contracts"}


def render_html(report: Mapping[str, Any]) -> str:
    """The whole page. Equal reports give equal pages."""
    config = report["config"]
    scores = report["scores"]
    names = metrics_of(report)
    method = config["federation"]["method"]
    return _template().render(
        task=_TASKS.get(config["task"]["kind"], config["task"]["kind"]),
        model=config["model"]["id"],
        method=METHODS[method].title if method in METHODS else method,
        source=config["data"]["source"],
        rounds=report["rounds"],
        verdict=verdict(report),
        metrics=names,
        metric_titles=METRIC_TITLES,
        arms=arm_rows(report),
        federated=scores["federated"].get(names[0]),
        centralised=scores.get("centralised", {}).get(names[0]),
        sites=_site_rows(report, names[0]),
        forgetting=_forgetting_rows(report),
        private=report.get("privacy", {}).get("mode") == "dp",
        privacy=privacy_page(report),
        # The plots are our own SVG; every name inside was escaped when it was drawn.
        plots=[(plot, Markup(plot.svg)) for plot in all_plots(report)],
        rejected=[(r["round"], reply) for r in report["rounds"] for reply in r["rejected"]],
        silent=[(r["round"], ", ".join(r["silent"])) for r in report["rounds"] if r.get("silent")],
        seconds=report["seconds"],
        traffic=report["bytes"],
        adapter=report["adapter"],
        settings=[(key, _setting(value)) for key, value in flatten(config).items()],
    )


def _site_rows(report: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    scores = report["scores"]
    local = scores.get("local", {})

    def at(rows: Mapping[str, Any], site: str) -> float | None:
        value: float | None = rows.get(site, {}).get(metric)
        return value

    return [
        {
            "name": site["name"],
            "train_examples": site["train_examples"],
            "test_examples": site["test_examples"],
            "pooled_local": at(local.get("per_site", {}), site["name"]),
            "own_local": at(local.get("own_test", {}), site["name"]),
            "own_federated": at(scores["federated"].get("per_site", {}), site["name"]),
            "own_centralised": at(scores.get("centralised", {}).get("per_site", {}), site["name"]),
        }
        for site in report["sites"]
    ]


def _forgetting_rows(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float | None]]]:
    titles = {
        "base": "Base model, no adapter",
        "federated": "Federated",
        "centralised": "Centralised",
        "local": "Each firm alone: mean",
    }
    section = report.get("forgetting", {})
    return [(title, section[key]) for key, title in titles.items() if key in section]


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "none"
    return "empty" if value == "" else str(value)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("simulations.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value, metric: shown(metric, value)
    environment.filters["amount"] = shown_bytes
    environment.filters["duration"] = shown_seconds
    return environment.get_template(_TEMPLATE)
