"""The page's part on a leakage audit: every attack's figures, and what they do and do not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulations.report.audit_plot import audit_plot
from simulations.report.plots import Plot
from simulations.report.privacy_words import audit_verdict, shown_share

AS_SET, CONTROL = "as set", "control: without privacy"
_ATTACKS = {
    "loss": "loss under an adapter of the released kind",
    "wire_site": "one firm's updates, as seen without secure aggregation",
    "wire_sum": "sums of all firms' updates, as seen with it",
}


@dataclass(frozen=True)
class AttackRow:
    """One attack, as text; real examples prove no epsilon, as nobody tossed coins for them."""

    attack: str
    auc: str
    found: str
    interval: str
    chance: str
    epsilon: str
    ceiling: str
    caught: str


@dataclass(frozen=True)
class AuditPage:
    """Everything the page shows of an audit. groups: (what was attacked, one row per attack)."""

    caption: str
    groups: tuple[tuple[str, tuple[AttackRow, ...]], ...]
    meaning: tuple[str, ...]
    plot: Plot


def audit_page(report: Mapping[str, Any]) -> AuditPage | None:
    """The audit's part of the section on privacy; None where there was no audit."""
    audit = report["privacy"]["audit"]
    if not audit:
        return None
    runs = audited_runs(audit)
    groups = [(_group_title(run, results), _rows(results)) for run, results in runs]
    return AuditPage(
        caption=_caption(report),
        groups=tuple(groups + _membership(audit["membership"])),
        meaning=tuple(_meaning(audit)),
        plot=audit_plot(runs, _ATTACKS),
    )


def audited_runs(audit: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(title, findings) of the audited run and, where there is one, its control."""
    control = audit["control"]
    return [(AS_SET, audit), *([(CONTROL, control)] if control else [])]


def _caption(report: Mapping[str, Any]) -> str:
    audit = report["privacy"]["audit"]
    each = f"one {audit['unit']}"
    if audit["repeats"] != 1:
        each += f" of {audit['repeats']} examples"
    return (
        f"{audit['canaries_planted']} random canaries, each {each}, were planted at one firm of a "
        f"federation of their own and {audit['canaries_left_out']} were left out; each attack has "
        "to tell which. The released adapter never read one."
    )


def _group_title(run: str, results: Mapping[str, Any]) -> str:
    accountant = results["accountant_epsilon"]
    if accountant is None:
        return f"{run}; no epsilon is promised"
    return f"{run}; the accountant's epsilon is {accountant:.2f}"


def _rows(results: Mapping[str, Any]) -> tuple[AttackRow, ...]:
    return tuple(
        _row(_ATTACKS.get(name, name), found) for name, found in results["attacks"].items()
    )


def _row(attack: str, found: Mapping[str, Any]) -> AttackRow:
    proves = "epsilon_lower_bound" in found
    return AttackRow(
        attack=attack,
        auc=f"{found['auc']:.3f}",
        found=shown_share(found["tpr_at_1_fpr"]),
        interval=f"{shown_share(found['tpr_low'])} to {shown_share(found['tpr_high'])}",
        chance=shown_share(found["chance"]),
        epsilon=f"{found['epsilon_lower_bound']:.2f}" if proves else "",
        ceiling=f"{found['ceiling']:.2f}" if proves else "",
        caught=("caught" if found["caught"] else "not caught") if proves else "",
    )


def _membership(found: Mapping[str, Any] | None) -> list[tuple[str, tuple[AttackRow, ...]]]:
    """The group of the released adapter; none where it was not attacked."""
    if not found:
        return []
    title = (
        f"the released adapter, by real examples: {found['members']} trained on, "
        f"{found['nonmembers']} held out, which differ in other ways too"
    )
    return [(title, (_row("loss", found),))]


def _meaning(audit: Mapping[str, Any]) -> list[str]:
    proven, ceiling = audit["epsilon_lower_bound"], audit["ceiling"]
    accountant = audit["accountant_epsilon"]
    confidence = f"{100 * audit['confidence']:g}% confidence over all attacks together"
    sentences = [audit_verdict(audit)]
    if accountant is None:
        sentences.append(
            f"Nothing was promised here; epsilon is {proven:.2f} or more, with {confidence}. So "
            f"many canaries cannot show more than {ceiling:.2f}."
        )
    else:
        sentences.append(
            f"Proven: epsilon is {proven:.2f} or more, with {confidence}; the accountant says at "
            f"most {accountant:.2f}, and so many canaries cannot show more than {ceiling:.2f}."
        )
        if ceiling <= accountant:
            sentences.append(
                f"As {ceiling:.2f} is no more than {accountant:.2f}, this audit could not have "
                "found the promise broken; only more canaries can."
            )
    sentences.append(
        "Caught means: some attack finds ten times as many planted canaries at 1% false alarms as "
        "a blind one. An audit that catches nothing is no proof: it shows what these attacks find "
        "at one firm, and another attack may find more."
    )
    return sentences
