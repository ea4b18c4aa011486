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
        """One line per run and attack; fits into 80 columns."""
        title = (
            f"{self.canaries_planted} canaries planted, {self.canaries_left_out} left out; "
            f"each one {self.unit}, repeated {self.repeats} times"
        )
        table = Table(title=title, caption=self._caption(), box=SIMPLE, padding=(0, 1))
        table.pad_edge, table.collapse_padding = False, True
        table.title_justify = table.caption_justify = "left"
        for heading in _HEADINGS:
            left = heading in _HEADINGS[:2]
            table.add_column(heading, justify="left" if left else "right", overflow="fold")
        for name, run in (("as set", self.audited), ("control", self.control)):
            for found in run.attacks if run else ():
                table.add_row(name, *_cells(found))
        if self.membership:
            table.add_row("released", *_membership_cells(self.membership))
        return table

    def _caption(self) -> str:
        ceiling = max(found.ceiling for found in self.audited.attacks)
        lines = [f"epsilon: what was shown; so many canaries cannot show more than {ceiling:.2f}."]
        if self.audited.accountant_epsilon is not None:
            claimed = f"{self.audited.accountant_epsilon:.2f} at delta {self.delta:g}"
            lines.insert(0, f"The accountant claims epsilon {claimed} for the run as set.")
        lines.append(
            "loss: of the adapter at the end. updates: of this site, as they would be sent."
        )
        if self.control:
            lines.append("control: the same run without privacy, which has to be caught.")
        if self.membership:
            sizes = f"{self.membership.members} trained on, {self.membership.nonmembers} held out"
            lines.append(f"released: the loss attack on the adapter with real examples, {sizes}.")
        return "\n".join(lines)


_HEADINGS = ("run", "attack", "AUC", "TPR at 1% FPR", "chance", "bits", "epsilon", "caught")
_ATTACK_NAMES = {"loss": "loss", "wire_site": "updates", "wire_sum": "mean updates"}


def _cells(found: AttackFindings) -> list[str]:
    return [
        _ATTACK_NAMES.get(found.attack, found.attack),
        f"{found.auc:.3f}",
        _rate(found),
        f"{found.chance:.2f}",
        f"{found.exposure_mean:.1f}",
        f"{found.epsilon_lower_bound:.2f}",
        "yes" if found.caught else "no",
    ]


def _membership_cells(found: MembershipFindings) -> list[str]:
    return ["loss", f"{found.auc:.3f}", _rate(found), f"{found.chance:.2f}", "", "", ""]


def _rate(found: AttackFindings | MembershipFindings) -> str:
    return f"{found.tpr_at_1_fpr:.2f} ({found.tpr_low:.2f}-{found.tpr_high:.2f})"


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
