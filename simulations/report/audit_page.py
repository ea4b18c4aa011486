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
    """One attack on one run, as text."""

    run: str
    attack: str
    auc: str
    found: str
    interval: str
    chance: str
    epsilon: str
    ceiling: str
    accountant: str
    caught: str


@dataclass(frozen=True)
class AuditPage:
    """Everything the page shows of an audit. membership: of real examples, empty if unmeasured."""

    caption: str
    rows: tuple[AttackRow, ...]
    membership: str
    meaning: tuple[str, ...]
    plot: Plot


def audit_page(report: Mapping[str, Any]) -> AuditPage | None:
    """The audit's part of the section on privacy; None where there was no audit."""
    audit = report["privacy"]["audit"]
    if not audit:
        return None
    runs = audited_runs(audit)
    return AuditPage(
        caption=_caption(report),
        rows=tuple(
            _row(run, name, found, results["accountant_epsilon"])
            for run, results in runs
            for name, found in results["attacks"].items()
        ),
        membership=_membership(audit["membership"]),
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


def _row(run: str, name: str, found: Mapping[str, Any], accountant: float | None) -> AttackRow:
    return AttackRow(
        run=run,
        attack=_ATTACKS.get(name, name),
        auc=f"{found['auc']:.3f}",
        found=shown_share(found["tpr_at_1_fpr"]),
        interval=f"{shown_share(found['tpr_low'])} to {shown_share(found['tpr_high'])}",
        chance=shown_share(found["chance"]),
        epsilon=f"{found['epsilon_lower_bound']:.2f}",
        ceiling=f"{found['ceiling']:.2f}",
        accountant="none" if accountant is None else f"{accountant:.2f}",
        caught="caught" if found["caught"] else "not caught",
    )


def _membership(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    return (
        f"The released adapter itself, with real examples ({found['members']} trained on, "
        f"{found['nonmembers']} held out): AUC {found['auc']:.3f}; "
        f"{shown_share(found['tpr_at_1_fpr'])} of those trained on found at 1% false alarms "
        f"({shown_share(found['tpr_low'])} to {shown_share(found['tpr_high'])}; a blind attack: "
        f"{shown_share(found['chance'])}). Part of it may be that the two groups differ."
    )


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
