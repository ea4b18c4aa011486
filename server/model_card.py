"""The README.md of a released adapter: what it is, how it came about, what it does not promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.base import public_name
from protocol.methods import METHODS, personal_factors
from protocol.settings import RunSettings
from server.coordinator import RunResult


def model_card(
    result: RunResult, settings: RunSettings, audit: Mapping[str, Any] | None = None
) -> str:
    """The README.md of a released adapter, in the Hub's format.

    audit: the figures that a release gate let pass; None where it asked for none.
    """
    federation, adapter = settings.federation, settings.adapter
    traits = METHODS[federation.method]
    base = public_name(settings.model)
    sizes = [len(record.admitted) for record in result.records]
    last = result.records[-1].metrics if result.records else {}
    scores = "".join(
        f"| {name} | {value:.4f} |\n" for name, value in sorted(last.items()) if "num_" not in name
    )
    return f"""---
base_model: {base}
library_name: peft
tags: [foedus, federated-learning, lora, legal]
---
# A federated LoRA adapter

Trained by several firms on contracts that never left them; only bounded adapter updates did.

| | |
|---|---|
| base model | `{base}`, digest `{result.state.base_digest}` |
| task | {settings.task.kind}{_labels_line(settings)} |
| method | {traits.title} ({traits.source}), rank {adapter.rank}, alpha {adapter.alpha:g} |
| rounds | {len(sizes)}, of which {sum(r.aggregated for r in result.records)} were aggregated |
| sites per round | {min(sizes, default=0)} to {max(sizes, default=0)} |
| privacy | {_privacy_cell(settings)} |
| secure aggregation | {_secure_cell(settings, result)} |
| leakage audit | {_audit_cell(audit)} |

## Scores of the last round

| score | value |
|---|---|
{scores}
`sites_*` are means over the sites' own held-out contracts; `central_*` were measured by the
coordinator on a public test set.

## Use

`foedus client predict --adapter DIR FILE…`, or plain transformers and peft: see docs/predict.md of
foedus.
{_personal_note(settings)}
## Limits

{_repeats_line(settings)} It is no legal advice.
Gradients and updates can reveal training text to whoever sees them singly.
"""


def _labels_line(settings: RunSettings) -> str:
    return f", {len(settings.task.labels)} labels" if settings.task.labels else ""


def _personal_note(settings: RunSettings) -> str:
    kept = personal_factors(settings.federation.method)
    if not kept:
        return ""
    return (
        f"\nFactor {', '.join(sorted(kept))} stayed at the sites and is zero here: outside a site "
        "that took part, this folder is the base model with the shared head.\n"
    )


def _privacy_cell(settings: RunSettings) -> str:
    privacy = settings.privacy
    if not privacy.enabled:
        return "no differential privacy"
    return (
        f"differential privacy at each site: unit {privacy.unit}, epsilon "
        f"{privacy.target_epsilon:g} at delta {privacy.delta:g} over all planned rounds; each site "
        "adds its own noise, and what was spent stands in its own ledger (a round that it trained "
        "anew costs again). Assumptions: docs/privacy.md of foedus"
    )


def _secure_cell(settings: RunSettings, result: RunResult) -> str:
    if not settings.secure_aggregation.enabled:
        return "off: the coordinator saw each site's update in the clear"
    sizes = [len(record.admitted) for record in result.records if record.aggregated]
    fewest = f", the smallest over {min(sizes)} sites" if sizes else ""
    return f"on: the coordinator saw sums of updates only{fewest}"


def _audit_cell(audit: Mapping[str, Any] | None) -> str:
    if audit is None:
        return "none was asked for"
    return (
        f"passed: {100 * audit['tpr_at_1_fpr']:.1f}% of planted canaries found at 1% false alarms; "
        f"{_proven(audit)}. No proof that nothing leaks: a better attack may find more"
    )


def _proven(audit: Mapping[str, Any]) -> str:
    proven = f"proven epsilon {audit['epsilon_lower_bound']:.2f}"
    if "ceiling" in audit:
        proven += f", where so many canaries could have shown {audit['ceiling']:.2f} at most"
    return proven


def _repeats_line(settings: RunSettings) -> str:
    if not settings.privacy.enabled:
        return "The adapter was trained on contracts and can repeat phrases from them."
    return (
        "The adapter was trained on contracts. Its noise bounds what it can tell of one "
        f"{settings.privacy.unit}; phrases that many of them share it can repeat."
    )
