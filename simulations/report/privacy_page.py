"""The page's section on privacy: what was promised, what it cost each firm, what it leaves open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulations.report.audit_page import AuditPage, audit_page
from simulations.report.privacy_words import shown_delta, shown_epsilon

Report = Mapping[str, Any]

# Above this a factor is a number that nobody can picture.
_LARGEST_FACTOR = 1e6


@dataclass(frozen=True)
class SpendingRow:
    """One firm's ledger after the run, as text and counts."""

    name: str
    epsilon: str
    rounds: int
    unconfirmed: int
    examples: int


@dataclass(frozen=True)
class PrivacyPage:
    """Everything the section shows. facts: (what, value); sites: empty without private training."""

    facts: tuple[tuple[str, str], ...]
    meaning: tuple[str, ...]
    left_open: tuple[str, ...]
    delta: str
    sites: tuple[SpendingRow, ...]
    audit: AuditPage | None


def privacy_page(report: Report) -> PrivacyPage | None:
    """The section; None for a run that has nothing to say of privacy."""
    privacy = report.get("privacy")
    if not privacy:
        return None
    private = privacy["mode"] == "dp"
    return PrivacyPage(
        facts=tuple((_promise(report) if private else _NO_PROMISE) + _exposure(report)),
        meaning=tuple(_meaning(privacy)),
        left_open=tuple(_left_open(privacy)),
        delta=shown_delta(privacy["delta"]),
        sites=_spending(privacy) if private else (),
        audit=audit_page(report),
    )


_NO_PROMISE = [("Differential privacy", "none")]


def _promise(report: Report) -> list[tuple[str, str]]:
    privacy, settings = report["privacy"], report["config"]["privacy"]
    unit, steps = privacy["unit"], settings["steps_per_round"]
    all_steps = steps * report["config"]["federation"]["rounds"]
    clip = f"{privacy['clip_norm']:g}, the L2 norm of one {unit}'s gradient at most"
    if settings["adaptive_clipping"]:
        clip += f"; it follows the {settings['clip_quantile']:g}-quantile of such norms"
    target, delta = privacy["target_epsilon"], shown_delta(privacy["delta"])
    return [
        ("Hidden", f"whether any one {unit} is among a firm's contracts"),
        ("Promised", f"epsilon {target:g} at delta {delta}, for each firm over all planned rounds"),
        ("Spent at most", f"epsilon {shown_epsilon(privacy['epsilon_spent_max'])}"),
        (
            "Noise",
            f"sigma {privacy['sigma']:.4g} times the clip norm, Gaussian, drawn by the firm itself "
            f"({settings['noise']}), in each of {all_steps} steps ({steps} a round)",
        ),
        ("Clip norm", clip),
        (
            "Drawn for a step",
            f"each {unit} with chance {settings['sampling_rate']:g}, independent of all others",
        ),
    ]


def _exposure(report: Report) -> list[tuple[str, str]]:
    """Secure aggregation, and what the coordinator could read."""
    private = report["privacy"]["mode"] == "dp"
    if not report["privacy"]["secure_aggregation"]:
        noised = ", with its noise" if private else ", as it was trained"
        return [
            ("Secure aggregation", "off"),
            ("The coordinator could read", f"each firm's update by itself{noised}"),
        ]
    sizes = [len(r["admitted"]) for r in report["rounds"] if r.get("aggregated") and r["admitted"]]
    fewest = f"; fewest firms in one: {min(sizes)}" if sizes else ""
    return [
        ("Secure aggregation", "on"),
        ("The coordinator could read", f"one sum of updates a round and who was in it{fewest}"),
    ]


def _meaning(privacy: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    if privacy["mode"] == "dp":
        unit, epsilon = privacy["unit"], privacy["target_epsilon"]
        found.append(
            f"Had any one {unit} not been in a firm's data, whatever leaves the firm, and so the "
            f"adapter, would have come out at most e to the {epsilon:g}{_factor(epsilon)} times "
            "more or less likely, but for a chance of "
            f"{shown_delta(privacy['delta'])}. This bounds the worst case, against everyone who "
            "sees updates or adapter; the smaller epsilon, the stronger the promise."
        )
    else:
        found.append(
            "There was no differential privacy: what the adapter keeps of any one contract is not "
            "bounded."
        )
    if privacy["secure_aggregation"]:
        found.append(
            "Secure aggregation hides single updates from the coordinator. It does not change "
            "what is in their sum or in the adapter."
        )
    return found


def _factor(epsilon: float) -> str:
    factor = math.exp(min(epsilon, 700.0))
    if factor > _LARGEST_FACTOR:
        return ""
    return f" (about {factor:.3g})" if factor < 100 else f" (about {factor:,.0f})"


def _left_open(privacy: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    if privacy["mode"] == "dp":
        unit = privacy["unit"]
        units = {"matter": "matters", "example": "examples"}[unit]
        whole = (
            "several matters of one client together"
            if unit == "matter"
            else "a whole contract or matter, which is many examples"
        )
        found += [
            f"Not covered: {whole}; wording that many {units} share; how many {units} a firm has; "
            "that it took part, and when it answered; whoever can read the firm's own machine.",
            "Assumed: the operating system's randomness is good, a firm's noise stays secret, and "
            "rounding of floating-point numbers gives nothing away. docs/privacy.md has the whole "
            "list.",
            "The scores on this page were measured on held-out contracts in the clear. In a "
            "private run of real firms no firm sends any.",
        ]
    if privacy["secure_aggregation"]:
        found.append(
            "A sum of few updates tells much of them together, and a firm that sides with the "
            "coordinator can take its own out of it; docs/secure-aggregation.md says how many may."
        )
    return found


def _spending(privacy: Mapping[str, Any]) -> tuple[SpendingRow, ...]:
    return tuple(
        SpendingRow(
            name=name,
            epsilon=shown_epsilon(site["epsilon_spent"]),
            rounds=site["rounds"],
            unconfirmed=site["unconfirmed"],
            examples=site["examples"],
        )
        for name, site in privacy["per_site"].items()
    )
