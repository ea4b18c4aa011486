"""What a firm demands of every run before its contracts are used, whatever the coordinator asks."""

from __future__ import annotations

from dataclasses import dataclass

from client.privacy.composition import Budget
from protocol.codec import setting
from protocol.errors import Refusal
from protocol.reasons import RefusalReason
from protocol.settings import PrivacySettings, RunSettings


@dataclass(frozen=True)
class PolicySettings:
    """The part of a site.yaml that says no. It can only make a run stricter, never laxer."""

    minimum_cohort: int = setting(
        0, minimum=0, doc="sites whose updates are summed at least; 0 = no demand of its own"
    )
    require_secure_aggregation: bool = setting(
        False, doc="refuse to send an update that the coordinator could read"
    )
    minimum_privacy: str = setting(
        "none", choices=("none", "example", "matter"), doc="unit that a run's noise hides at least"
    )
    budget_epsilon: float = setting(
        0.0, minimum=0.0, doc="what each unit may spend over all runs; 0 = no budget"
    )
    budget_unit: str = setting(
        "matter", choices=("matter", "example"), doc="whom the budget speaks of"
    )
    budget_delta: float = setting(
        1e-5, minimum=1e-12, maximum=1e-2, doc="delta at which the budget's epsilon is counted"
    )

    @property
    def budget(self) -> Budget | None:
        """The budget of each unit, where the firm has set one."""
        if self.budget_epsilon == 0:
            return None
        return Budget(self.budget_unit, self.budget_epsilon, self.budget_delta)


def check_aggregation_policy(policy: PolicySettings, run: RunSettings) -> None:
    """Errors: Refusal(POLICY) where the site demands secure aggregation and the run has none."""
    demanded = policy.require_secure_aggregation or policy.minimum_cohort > 1
    if demanded and not run.secure_aggregation.enabled:
        raise Refusal(
            RefusalReason.POLICY,
            "This site's policy (require_secure_aggregation, minimum_cohort) lets no single "
            "update be read, and the run has secure_aggregation.enabled=false. Run with "
            "secure_aggregation=on, or change the policy in site.yaml.",
        )


def check_privacy_policy(policy: PolicySettings, privacy: PrivacySettings) -> None:
    """Errors: Refusal(POLICY) where the run's noise hides less than this site demands."""
    strength = ("none", "example", "matter")
    offered = privacy.unit if privacy.enabled else "none"
    budget_unit = policy.budget_unit if policy.budget else "none"
    demanded = max(policy.minimum_privacy, budget_unit, key=strength.index)
    if strength.index(offered) < strength.index(demanded):
        got = f"privacy.unit={offered}" if privacy.enabled else "privacy.mode=none"
        raise Refusal(
            RefusalReason.POLICY,
            f"This site's policy (minimum_privacy={policy.minimum_privacy}, "
            f"budget_epsilon={policy.budget_epsilon:g} by {policy.budget_unit}) demands noise that "
            f"hides a whole {demanded}, and the run has {got}. Run with privacy.mode=dp "
            f"privacy.unit={demanded}, or change the policy in site.yaml.",
        )
    if policy.budget and privacy.delta > policy.budget_delta:
        raise Refusal(
            RefusalReason.POLICY,
            f"This site's policy allows a delta of {policy.budget_delta:g} at most (budget_delta), "
            f"and the run has privacy.delta={privacy.delta:g}. Run with a smaller one.",
        )
