"""The figure of a leakage audit: how many planted canaries each attack finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from simulations.report.plots import COLOURS, Plot
from simulations.report.privacy_words import shown_share
from simulations.report.svg import page_style, to_svg

_WIDTH_INCHES = 7.6
_COLOURS = (COLOURS["federated"], COLOURS["best"])
_SHORT_TITLES = {"loss": "adapter's loss", "wire_site": "one firm's updates", "wire_sum": "sums"}

Runs = Sequence[tuple[str, Mapping[str, Any]]]


def audit_plot(runs: Runs, titles: Mapping[str, str]) -> Plot:
    """Bars by attack and run; runs: (title, findings), the audited one first."""
    attacks = list(runs[0][1]["attacks"])
    with page_style():
        svg = _bars(runs, attacks)
    return Plot(
        "audit",
        "Canaries found",
        "Planted canaries that each attack finds while it calls 1% of the others planted, with "
        "95% intervals. Dashed: what a blind attack finds.",
        "; ".join(_in_words(runs, name, titles.get(name, name)) for name in attacks),
        svg,
    )


def _bars(runs: Runs, attacks: Sequence[str]) -> str:
    figure = Figure(figsize=(_WIDTH_INCHES, 1.2 + 0.62 * len(attacks)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(runs)
    for offset, (title, results) in enumerate(runs):
        found = [results["attacks"][name] for name in attacks]
        shares = [100 * each["tpr_at_1_fpr"] for each in found]
        below = [share - 100 * each["tpr_low"] for share, each in zip(shares, found, strict=True)]
        above = [100 * each["tpr_high"] - share for share, each in zip(shares, found, strict=True)]
        drawn = axes.barh(
            [position + (offset + 0.5) * height - 0.4 for position in range(len(attacks))],
            shares,
            height=0.92 * height,
            color=_COLOURS[offset],
            label=title,
            xerr=[[max(0.0, v) for v in below], [max(0.0, v) for v in above]],
            error_kw={"ecolor": COLOURS["base"], "lw": 1.2, "capsize": 2},
        )
        axes.bar_label(drawn, [f"{share:.1f}%" for share in shares], padding=3, fontsize=9)
    chance = 100 * max(each["chance"] for each in runs[0][1]["attacks"].values())
    axes.axvline(chance, color=COLOURS["base"], linestyle=(0, (4, 3)), lw=1.4)
    axes.set_yticks(range(len(attacks)), [_SHORT_TITLES.get(name, name) for name in attacks])
    axes.set(xlabel="canaries found at 1% false alarms (%)", xlim=(0, 112))
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(axis="x")
    figure.legend(loc="outside lower center", ncols=len(runs))
    return to_svg(figure, "audit")


def _in_words(runs: Runs, name: str, title: str) -> str:
    shares = [f"{run} {shown_share(r['attacks'][name]['tpr_at_1_fpr'])}" for run, r in runs]
    return f"{title}: {', '.join(shares)}"
