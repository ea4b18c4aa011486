"""What a private run cost each simulated site, read from the ledgers that the sites keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.privacy.composition import Budget
from client.site import Site
from client.trained_update import round_sigma
from simulations.settings import SimulationSettings
from simulations.workspace import site_file


@dataclass(frozen=True)
class SiteSpending:
    """One site's ledger after the run. epsilon_spent: of its worst unit, at the run's delta."""

    epsilon_spent: float
    rounds: int
    unconfirmed: int
    examples: int


@dataclass(frozen=True)
class PrivacyOutcome:
    """The privacy of a run. sigma and clip_norm: of every noisy step; 0 where there is none.

    audit: the findings of a leakage audit, or empty.
    """

    mode: str
    unit: str
    delta: float
    target_epsilon: float
    sigma: float
    clip_norm: float
    secure_aggregation: bool
    per_site: dict[str, SiteSpending]
    audit: dict[str, Any] = field(default_factory=dict)

    @property
    def epsilon_spent_max(self) -> float:
        """Of the site that spent most."""
        return max((site.epsilon_spent for site in self.per_site.values()), default=math.nan)

    def to_json(self) -> dict[str, Any]:
        """The section "privacy" of report.json."""
        return {
            "mode": self.mode,
            "unit": self.unit,
            "delta": self.delta,
            "target_epsilon": self.target_epsilon,
            "epsilon_spent_max": self.epsilon_spent_max,
            "per_site": {name: vars(spent) for name, spent in self.per_site.items()},
            "sigma": self.sigma,
            "clip_norm": self.clip_norm,
            "secure_aggregation": self.secure_aggregation,
            "audit": self.audit,
        }


def privacy_outcome(
    settings: SimulationSettings, sites: Sequence[str], audit: dict[str, Any] | None = None
) -> PrivacyOutcome | None:
    """The outcome of a run that has something to say of privacy; else None.

    Errors: Refusal where a site's ledger is broken.
    """
    run = settings.run
    if not (run.privacy.enabled or run.secure_aggregation.enabled or audit):
        return None
    private = run.privacy.enabled
    output_dir = Path(settings.output_dir)
    return PrivacyOutcome(
        mode=run.privacy.mode,
        unit=run.privacy.unit if private else "none",
        delta=run.privacy.delta,
        target_epsilon=run.privacy.target_epsilon if private else math.inf,
        sigma=round_sigma(run) if private else 0.0,
        clip_norm=run.privacy.clip_norm if private else 0.0,
        secure_aggregation=run.secure_aggregation.enabled,
        per_site={
            name: _spending(site_file(output_dir, index, name), run.privacy.unit, run.privacy.delta)
            for index, name in enumerate(sites)
        },
        audit=audit or {},
    )


def _spending(path: Path, unit: str, delta: float) -> SiteSpending:
    accounts = Site.from_file(path).ledger.account(Budget(unit, math.inf, delta))
    return SiteSpending(
        epsilon_spent=max((account.epsilon_spent for account in accounts), default=0.0),
        rounds=sum(account.rounds for account in accounts),
        unconfirmed=sum(account.unconfirmed for account in accounts),
        examples=max((account.num_examples for account in accounts), default=0),
    )
