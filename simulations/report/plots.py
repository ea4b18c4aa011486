"""The report's figures, each with a caption and its numbers in words.

The series' colours are those of Okabe and Ito, which stay apart for colour-blind readers; every
bar has its number beside it and every line its own dashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations.report.arms import METRIC_TITLES, METRIC_UNITS, arm_rows, metrics_of, shown
from simulations.report.curves import federated_curve, reference_levels
from simulations.report.svg import page_style, to_svg

COLOURS = {
    "centralised": "#009e73",
    "federated": "#0072b2",
    "local": "#e69f00",
    "mean": "#e69f00",
    "best": "#d55e00",
    "tfidf": "#cc79a7",
    "base": "#8a8f98",
}
_DASHES = {
    "centralised": (0, (6, 2)),
    "mean": (0, (1, 1.5)),
    "best": (0, (4, 1.5, 1, 1.5)),
    "tfidf": (0, (2, 3)),
}
_SHORT_TITLES = {
    "centralised": "centralised",
    "federated": "federated",
    "tfidf": "TF-IDF floor",
    "base": "base model",
}
_WIDTH_INCHES = 7.6
_MOST_SITES = 40


@dataclass(frozen=True)
class Plot:
    """One figure: `svg` is an <svg> element, `caption` what to see, `alt` the numbers in words."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str


def all_plots(report: Mapping[str, Any]) -> list[Plot]:
    """Every figure for which the report has numbers."""
    with page_style():
        plots = [
            _learning_curve(report),
            _pooled_bars(report),
            _own_test_bars(report),
            _bytes_per_round(report),
            _seconds_split(report),
        ]
    return [plot for plot in plots if plot is not None]


def _learning_curve(report: Mapping[str, Any]) -> Plot | None:
    names = [name for name in metrics_of(report) if name != "loss"]
    curves = {name: federated_curve(report, name) for name in names}
    if not any(curves.values()):
        return None
    figure = Figure(figsize=(_WIDTH_INCHES, 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        scale = 100.0 if METRIC_UNITS[name] == "%" else 1.0
        rounds = [round_ for round_, _ in curves[name]]
        values = [scale * value for _, value in curves[name]]
        axes.plot(rounds, values, color=COLOURS["federated"], marker="o", lw=2, label="federated")
        for key, title, level in reference_levels(report, name):
            axes.axhline(
                scale * level, color=COLOURS[key], linestyle=_DASHES[key], lw=1.6, label=title
            )
        axes.set(xlabel="round", ylabel=f"{METRIC_TITLES[name]} ({METRIC_UNITS[name]})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    personalised = report["scores"]["federated"].get("personalised", False)
    where = "each firm's own held-out contracts" if personalised else "the pooled test"
    return Plot(
        "curve",
        "Learning curve",
        f"The federated model after each round, on {where}. Lines: what it is compared with.",
        "; ".join(f"{METRIC_TITLES[name]} {_ends(name, curves[name])}" for name in names),
        to_svg(figure, "curve"),
    )


def _ends(metric: str, curve: Sequence[tuple[int, float]]) -> str:
    if not curve:
        return "was not measured"
    (first, start), (last, end) = curve[0], curve[-1]
    return f"{shown(metric, start)} at round {first}, {shown(metric, end)} at round {last}"


def _pooled_bars(report: Mapping[str, Any]) -> Plot | None:
    metric = metrics_of(report)[0]
    local = report["scores"].get("local", {}).get("per_site", {})
    rows = [
        (_SHORT_TITLES[row.key], row.key, row.values.get(metric))
        for row in arm_rows(report)
        if row.key in _SHORT_TITLES
    ]
    sites = list(local)[:_MOST_SITES]
    rows += [(f"{site} alone", "local", local[site].get(metric)) for site in sites]
    bars = [(title, key, value) for title, key, value in rows if value is not None]
    if not bars:
        return None
    figure = Figure(figsize=(_WIDTH_INCHES, 0.9 + 0.27 * len(bars)), layout="constrained")
    axes = figure.subplots()
    scale = 100.0 if METRIC_UNITS[metric] == "%" else 1.0
    drawn = axes.barh(
        range(len(bars)),
        [scale * value for _, _, value in bars],
        color=[COLOURS[key] for _, key, _ in bars],
        height=0.72,
    )
    axes.set_yticks(range(len(bars)), [_short(title) for title, _, _ in bars])
    axes.bar_label(drawn, [shown(metric, value) for _, _, value in bars], padding=3, fontsize=9)
    _finish_bars(axes, metric)
    return Plot(
        "pooled",
        "On everyone's contracts",
        "Every model on the same pooled test: the held-out contracts of all firms together."
        + _cut(local),
        "; ".join(f"{title} {shown(metric, value)}" for title, _, value in bars),
        to_svg(figure, "pooled"),
    )


def _own_test_bars(report: Mapping[str, Any]) -> Plot | None:
    metric, scores = metrics_of(report)[0], report["scores"]
    arms = {
        "federated": scores["federated"].get("per_site", {}),
        "local": scores.get("local", {}).get("own_test", {}),
        "centralised": scores.get("centralised", {}).get("per_site", {}),
    }
    arms = {key: rows for key, rows in arms.items() if rows}
    tested = [site["name"] for site in report["sites"] if site["name"] in arms.get("federated", {})]
    sites = tested[:_MOST_SITES]
    if not sites:
        return None
    scale = 100.0 if METRIC_UNITS[metric] == "%" else 1.0
    figure = Figure(
        figsize=(_WIDTH_INCHES, 1.2 + 0.19 * len(sites) * (len(arms) + 0.8)), layout="constrained"
    )
    axes = figure.subplots()
    height = 0.8 / len(arms)
    for offset, (key, rows) in enumerate(arms.items()):
        values = [rows.get(site, {}).get(metric) for site in sites]
        drawn = axes.barh(
            [position + (offset + 0.5) * height - 0.4 for position in range(len(sites))],
            [0.0 if value is None else scale * value for value in values],
            height=0.92 * height,
            color=COLOURS[key],
            label="firm alone" if key == "local" else key,
        )
        axes.bar_label(drawn, [shown(metric, value) for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(sites)), [_short(site) for site in sites])
    _finish_bars(axes, metric)
    figure.legend(loc="outside lower center", ncols=3)
    return Plot(
        "sites",
        "At each firm",
        "Every model on the firm's own held-out contracts alone." + _cut(tested),
        "; ".join(
            f"{site}: "
            + ", ".join(
                f"{key} {shown(metric, rows.get(site, {}).get(metric))}"
                for key, rows in arms.items()
            )
            for site in sites
        ),
        to_svg(figure, "sites"),
    )


def _bytes_per_round(report: Mapping[str, Any]) -> Plot | None:
    rounds = [r for r in report["rounds"] if "bytes_up" in r and "bytes_down" in r]
    if not rounds:
        return None
    largest = max(r["bytes_up"] + r["bytes_down"] for r in rounds)
    unit, size = ("MB", 1e6) if largest >= 1e6 else ("kB", 1e3)
    numbers = [r["round"] for r in rounds]
    down = [r["bytes_down"] / size for r in rounds]
    up = [r["bytes_up"] / size for r in rounds]
    figure = Figure(figsize=(_WIDTH_INCHES, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.bar(numbers, down, width=0.7, color=COLOURS["federated"], label="to the sites")
    axes.bar(numbers, up, width=0.7, bottom=down, color=COLOURS["local"], label="from the sites")
    axes.set(xlabel="round", ylabel=f"adapter tensors ({unit})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return Plot(
        "bytes",
        "Bytes per round",
        f"Adapter tensors sent for training, all sites together (1 {unit} = {size:,.0f} bytes).",
        f"about {down[-1]:.2f} {unit} to the sites and {up[-1]:.2f} {unit} from them in the "
        "last round",
        to_svg(figure, "bytes"),
    )


def _seconds_split(report: Mapping[str, Any]) -> Plot:
    seconds = report["seconds"]
    in_rounds = sum(r["seconds"] for r in report["rounds"])
    bars = [
        ("training, summed over sites", seconds["train"]),
        ("aggregating", seconds["aggregate"]),
        ("messages and evaluation", seconds["overhead"]),
        ("all else: baselines, loading", max(0.0, seconds["total"] - in_rounds)),
    ]
    figure = Figure(figsize=(_WIDTH_INCHES, 1.9), layout="constrained")
    axes = figure.subplots()
    colours = [COLOURS[key] for key in ("federated", "best", "local", "base")]
    drawn = axes.barh([title for title, _ in bars], [s for _, s in bars], color=colours, height=0.7)
    axes.bar_label(drawn, [f"{s:.2f} s" if s < 10 else f"{s:.0f} s" for _, s in bars], padding=3)
    axes.set_xlabel("time (seconds)")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="x")
    return Plot(
        "seconds",
        "Where the time went",
        "Sites that train side by side add up to more than the wall clock shows.",
        "; ".join(f"{title} {s:.2f} s" for title, s in bars),
        to_svg(figure, "seconds"),
    )


def _finish_bars(axes: Axes, metric: str) -> None:
    axes.set_xlabel(f"{METRIC_TITLES[metric]} ({METRIC_UNITS[metric]})")
    axes.invert_yaxis()
    if METRIC_UNITS[metric] == "%":
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 20))
    else:
        axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:33] + "…"


def _cut(sites: Mapping[str, Any] | Sequence[str]) -> str:
    if len(sites) <= _MOST_SITES:
        return ""
    return f" Shown: the first {_MOST_SITES} firms of {len(sites)}; the table has them all."
