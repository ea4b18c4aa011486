"""What the coordinator remembers of each round: plain numbers, for checkpoints and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class RoundRecord:
    """One round. Bytes are of tensors alone, over all sites asked or admitted, those sent out for
    evaluation apart; in secure rounds they are of whole messages, all phases and attempts. Seconds
    are wall time. `rejected` holds {"site", "reason", "detail"}; `metrics` the means over sites.
    secure_attempts: sessions of secure aggregation; 0 = none."""

    round: int
    seconds: float
    cohort: tuple[str, ...]
    admitted: tuple[str, ...]
    silent: tuple[str, ...]
    rejected: tuple[dict[str, str], ...]
    aggregated: bool
    bytes_up: int
    bytes_down: int
    bytes_evaluation: int
    train_seconds: float
    aggregate_seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    site_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    secure_attempts: int = 0

    def to_json(self) -> dict[str, Any]:
        """Ready for json.dumps; inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RoundRecord:
        """Rebuild a record. Errors: TypeError where keys differ from this version's."""
        listed = {"cohort", "admitted", "silent", "rejected"}
        arguments: dict[str, Any] = {
            key: tuple(value) if key in listed else value for key, value in values.items()
        }
        return cls(**arguments)


def scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that tell how good the adapter is: of the public test set, or of the sites."""
    for prefix in ("central_", "sites_"):
        found = {k: v for k, v in metrics.items() if k.startswith(prefix) and "num_" not in k}
        if found:
            return dict(sorted(found.items()))
    return {}
