"""Whether an adapter may be released: the consortium's policy over a leakage audit of its run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol.adapter import AdapterState
from protocol.audit_policy import AuditPolicy, read_audit
from protocol.codec import encode
from protocol.errors import FoedusError
from protocol.settings import RunSettings

# What a manifest repeats of an audit; all are numbers or flags.
_FIGURES = (
    "private",
    "caught",
    "canaries_planted",
    "canaries_left_out",
    "auc",
    "tpr_at_1_fpr",
    "epsilon_lower_bound",
    "ceiling",
    "accountant_epsilon",
    "delta",
    "confidence",
)


@dataclass(frozen=True)
class ReleaseGate:
    """What must be shown before a release. audit_report: a file, or empty where there is none.

    An audit that is given must pass, whether it is required or not.
    """

    audit_report: str = ""
    policy: AuditPolicy = field(default_factory=AuditPolicy)
    required: bool = False

    def check(self, state: AdapterState, settings: RunSettings) -> dict[str, Any] | None:
        """The audit's figures for the manifest; None where no audit is given or required.

        Errors: FoedusError with every reason not to release `state`, the outcome of a run under
        `settings`.
        """
        if not self.audit_report:
            if self.required:
                raise _refusal(["The consortium requires a leakage audit, and none was given."])
            return None
        path = Path(self.audit_report)
        report = read_audit(path)
        failures = self.policy.failures(report, settings, state.digest())
        if failures:
            raise _refusal(failures)
        return {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            **_numbers(report, _FIGURES),
            "control_caught": _section(report, "control").get("caught") is True,
            "membership": _numbers(_section(report, "membership"), ("auc", "tpr_at_1_fpr")),
            "policy": encode(self.policy),
        }


def _refusal(failures: list[str]) -> FoedusError:
    lines = "".join(f"\n  - {failure}" for failure in failures)
    return FoedusError(
        f"The adapter is not released:{lines}\nThe rounds are kept: once an audit of this run "
        "passes, release with `foedus server release OUTPUT_DIR --audit FILE`."
    )


def _section(report: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = report.get(key)
    return section if isinstance(section, Mapping) else {}


def _numbers(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, float]:
    """Those that are finite numbers or flags: other parts of a report are nobody's word."""
    found = {key: values.get(key) for key in keys}
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
