"""Privacy in a few words, for the verdict and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shown_epsilon(value: float | None) -> str:
    """Three decimals, so that a promise slightly broken does not look kept."""
    return "without bound" if value is None else f"{value:.3f}"


def shown_delta(delta: float) -> str:
    """As in settings: 1e-05."""
    return f"{delta:g}"


def shown_share(share: float | None) -> str:
    """A rate in 0..1 as a percentage."""
    return "–" if share is None else f"{100 * share:.1f}%"  # noqa: RUF001 - a dash in print


def privacy_verdict(privacy: Mapping[str, Any]) -> list[str]:
    """Sentences on the promise, and on the audit where there was one."""
    seen = (
        "The coordinator saw sums of updates only."
        if privacy["secure_aggregation"]
        else "The coordinator saw each firm's update by itself."
    )
    sentences = [f"{_promise(privacy)} {seen}"]
    if privacy["audit"]:
        sentences.append(audit_verdict(privacy["audit"]))
    return sentences


def _promise(privacy: Mapping[str, Any]) -> str:
    if privacy["mode"] != "dp":
        return "No differential privacy: what the adapter keeps of a contract is not bounded."
    spent, target = privacy["epsilon_spent_max"], privacy["target_epsilon"]
    promised = f"{target:g} promised for each {privacy['unit']}"
    at_delta = f"at delta {shown_delta(privacy['delta'])}"
    if spent is None or spent > target:
        return (
            f"The privacy promise was not kept: a firm spent epsilon {shown_epsilon(spent)} "
            f"against {promised}, {at_delta}; a round trained anew costs again."
        )
    return f"No firm spent more than epsilon {shown_epsilon(spent)} of {promised}, {at_delta}."


def audit_verdict(audit: Mapping[str, Any]) -> str:
    """One sentence: were planted canaries found, and would they have been without privacy."""
    accountant = audit["accountant_epsilon"]
    if accountant is not None and audit["epsilon_lower_bound"] > accountant:
        return (
            f"The leakage audit proved epsilon {audit['epsilon_lower_bound']:.2f}, more than the "
            f"accountant's {accountant:.2f}: the promise does not hold. Do not release."
        )
    if audit["caught"]:
        found = shown_share(audit["tpr_at_1_fpr"])
        return f"The leakage audit caught this run: {found} of canaries found at 1% false alarms."
    control = audit["control"]
    if not control:
        return "The leakage audit did not catch this run, but had no control that it should catch."
    if not control["caught"]:
        return "The leakage audit caught neither this run nor its control, so it shows nothing."
    return "The leakage audit did not catch this run, and did catch the same run without privacy."


def audit_in_short(audit: Mapping[str, Any]) -> str:
    """For a table: what was caught, by figures."""
    if not audit:
        return "none"
    control = audit["control"]
    runs = [("this run", audit)] + ([("control", control)] if control else [])
    return ", ".join(f"{name} {'caught' if run['caught'] else 'not caught'}" for name, run in runs)
