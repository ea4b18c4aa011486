"""What an audit found: figures, their JSON and their table.

The report holds counts and rates only; no text of a contract or canary. They are figures about a
firm's data all the same, and outside its privacy budget: the site decides who reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from client.audit.bounds import (
    DEFAULT_CONFIDENCE,
    Flags,
    OperatingPoint,
    Scores,
    auc,
    exposure,
    one_run_epsilon,
    tpr_at_fpr,
)
from protocol.audit_policy import AUDIT_KIND, AUDIT_SCHEMA, AuditPolicy
from protocol.errors import FoedusError

# An attack catches a run when it finds this many times the canaries a blind one would.
_CAUGHT_TIMES_CHANCE = 10.0


@dataclass(frozen=True)
class AttackFindings:
    """How well one attack told planted canaries from those left out.

    Rates in 0..1, exposures in bits over planted canaries, epsilon as in bounds.one_run_epsilon.
    """

    attack: str
    auc: float
    tpr_at_1_fpr: float
    tpr_low: float
    tpr_high: float
    fpr: float
    chance: float
    exposure_mean: float
    exposure_max: float
    epsilon_lower_bound: float
    ceiling: float
    guesses: int
    right: int
    caught: bool


@dataclass(frozen=True)
class RunFindings:
    """One training run under every attack. accountant_epsilon: None without privacy."""

    private: bool
    accountant_epsilon: float | None
    attacks: tuple[AttackFindings, ...]

    @property
    def caught(self) -> bool:
        """True where some attack finds planted canaries ten times as often as a blind one."""
        return any(found.caught for found in self.attacks)

    def to_json(self) -> dict[str, Any]:
        """The worst over all attacks, and each attack by name."""
        return {
            "private": self.private,
            "accountant_epsilon": self.accountant_epsilon,
            "caught": self.caught,
            "exposure_mean": max(found.exposure_mean for found in self.attacks),
            "exposure_max": max(found.exposure_max for found in self.attacks),
            "auc": max(found.auc for found in self.attacks),
            "tpr_at_1_fpr": max(found.tpr_at_1_fpr for found in self.attacks),
            "epsilon_lower_bound": max(found.epsilon_lower_bound for found in self.attacks),
            "ceiling": max(found.ceiling for found in self.attacks),
            "attacks": {found.attack: asdict(found) for found in self.attacks},
        }


@dataclass(frozen=True)
class MembershipFindings:
    """The loss attack on real examples: those trained on against those held out.

    Members and non-members are different matters, so part of what is found may be that the
    matters differ; canaries are free of that.
    """

    members: int
    nonmembers: int
    auc: float
    tpr_at_1_fpr: float
    tpr_low: float
    tpr_high: float
    fpr: float
    chance: float


@dataclass(frozen=True)
class AuditResult:
    """An audit: the run as set, its control without privacy, and membership of real examples.

    unit: whose presence a canary stands for, "matter" or "example". settings_digest: see
    protocol.audit_policy. adapter_digest: of the adapter under membership, or empty.
    """

    unit: str
    repeats: int
    canaries_planted: int
    canaries_left_out: int
    delta: float
    confidence: float
    settings_digest: str
    audited: RunFindings
    control: RunFindings | None = None
    membership: MembershipFindings | None = None
    adapter_digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """What a release gate reads; the audited run's figures stand at the top."""
        return {
            "kind": AUDIT_KIND,
            "schema": AUDIT_SCHEMA,
            "unit": self.unit,
            "repeats": self.repeats,
            "canaries_planted": self.canaries_planted,
            "canaries_left_out": self.canaries_left_out,
            "delta": self.delta,
            "confidence": self.confidence,
            "settings_digest": self.settings_digest,
            "adapter_digest": self.adapter_digest,
            **self.audited.to_json(),
            "control": self.control.to_json() if self.control else None,
            "membership": asdict(self.membership) if self.membership else None,
        }

    def passes(self, policy: AuditPolicy) -> list[str]:
        """What stands against a release under `policy`; empty where it passes."""
        return policy.failures(self.to_json())

    def table(self) -> Table:
        """One line per run and attack, for a terminal."""
        title = (
            f"{self.canaries_planted} canaries planted, {self.canaries_left_out} left out; "
            f"one canary = one {self.unit} of {self.repeats}"
        )
        table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1))
        for heading in _HEADINGS:
            table.add_column(heading, justify="left" if heading in _HEADINGS[:2] else "right")
        for name, run in (("as set", self.audited), ("control, no privacy", self.control)):
            for found in run.attacks if run else ():
                table.add_row(*_cells(name, run, found))
        if self.membership:
            table.add_row(*_membership_cells(self.membership))
        return table


_HEADINGS = (
    "run", "attack", "AUC", "TPR at 1% FPR", "chance", "exposure", "epsilon over", "of at most",
    "accountant", "caught",
)  # fmt: skip
_ATTACK_NAMES = {
    "loss": "loss of the end adapter",
    "wire_site": "one site's updates",
    "wire_sum": "mean of a cohort's updates",
}


def _cells(name: str, run: RunFindings | None, found: AttackFindings) -> list[str]:
    accountant = run.accountant_epsilon if run else None
    return [
        name,
        _ATTACK_NAMES.get(found.attack, found.attack),
        f"{found.auc:.3f}",
        f"{found.tpr_at_1_fpr:.3f} ({found.tpr_low:.3f}-{found.tpr_high:.3f})",
        f"{found.chance:.3f}",
        f"{found.exposure_mean:.2f}",
        f"{found.epsilon_lower_bound:.2f}",
        f"{found.ceiling:.2f}",
        "" if accountant is None else f"{accountant:.2f}",
        "yes" if found.caught else "no",
    ]


def _membership_cells(found: MembershipFindings) -> list[str]:
    rates = f"{found.tpr_at_1_fpr:.3f} ({found.tpr_low:.3f}-{found.tpr_high:.3f})"
    sizes = f"{found.members} trained on, {found.nonmembers} held out"
    return ["released adapter", sizes, f"{found.auc:.3f}", rates, f"{found.chance:.3f}", *[""] * 5]


def attack_findings(
    attack: str,
    scores: Scores,
    planted: Flags,
    delta: float,
    confidence: float = DEFAULT_CONFIDENCE,
) -> AttackFindings:
    """Every figure of one attack from its scores and the coins, (canaries,) each.

    confidence: of the epsilon bound; where the best of k attacks is reported, 1 - 0.05 / k.
    Errors: FoedusError where the coins planted all canaries or none.
    """
    members, nonmembers = scores[planted], scores[~planted]
    if not len(members) or not len(nonmembers):
        raise FoedusError(
            f"Expected canaries planted and left out, got {len(members)} and {len(nonmembers)}. "
            "Make canaries anew."
        )
    point = tpr_at_fpr(members, nonmembers)
    bits = exposure(members, nonmembers)
    bound = one_run_epsilon(scores, planted, delta, confidence)
    return AttackFindings(
        attack=attack,
        auc=auc(members, nonmembers),
        tpr_at_1_fpr=point.tpr,
        tpr_low=point.low,
        tpr_high=point.high,
        fpr=point.fpr,
        chance=point.chance,
        exposure_mean=float(bits.mean()),
        exposure_max=float(bits.max()),
        epsilon_lower_bound=bound.epsilon,
        ceiling=bound.ceiling,
        guesses=bound.guesses,
        right=bound.right,
        caught=is_caught(point),
    )


def is_caught(point: OperatingPoint) -> bool:
    """True at ten times the rate that a blind attack expects with as many non-members."""
    return point.tpr >= _CAUGHT_TIMES_CHANCE * point.chance


def membership_findings(member_scores: Scores, nonmember_scores: Scores) -> MembershipFindings:
    """Figures of the loss attack on real examples; scores (members,) and (non-members,)."""
    point = tpr_at_fpr(member_scores, nonmember_scores)
    return MembershipFindings(
        members=len(member_scores),
        nonmembers=len(nonmember_scores),
        auc=auc(member_scores, nonmember_scores),
        tpr_at_1_fpr=point.tpr,
        tpr_low=point.low,
        tpr_high=point.high,
        fpr=point.fpr,
        chance=point.chance,
    )


def run_findings(
    scores: Sequence[tuple[str, Scores]],
    planted: Flags,
    *,
    private: bool,
    accountant_epsilon: float | None,
    delta: float,
    confidence: float = DEFAULT_CONFIDENCE,
) -> RunFindings:
    """Findings of several attacks on one run, with epsilon bounds that hold all together."""
    each = 1.0 - (1.0 - confidence) / max(1, len(scores))
    attacks = tuple(attack_findings(name, s, planted, delta, each) for name, s in scores)
    return RunFindings(private, accountant_epsilon if private else None, attacks)
