"""What a leakage audit must show before an adapter is released: read by sites and coordinator.

The report is JSON, written by `foedus client audit --json` or by a simulation (client.audit.report
says what each figure means). Whatever is missing or no number fails the check.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.codec import encode, setting
from protocol.errors import FoedusError
from protocol.settings import RunSettings

AUDIT_SCHEMA = 1
AUDIT_KIND = "foedus-leakage-audit"
# Where a base model lies on one machine says nothing about the run.
_LOCAL_MODEL_KEYS = ("id", "revision", "quantisation")
# Against few held-out examples a blind attack scores high by luck: with 20 it passes 0.1 in one
# case of eight, and five times its average in one of two hundred.
_BLIND_MARGIN = 5.0


@dataclass(frozen=True)
class AuditPolicy:
    """The consortium's limits on what an audit may have found."""

    max_tpr_at_1_fpr: float = setting(
        0.1, minimum=0.0, maximum=1.0, doc="share of planted canaries found at 1% false alarms"
    )
    max_epsilon_lower_bound: float = setting(
        0.0, minimum=0.0, doc="proven leak at most; 0 = the accountant's epsilon"
    )
    max_membership_tpr_at_1_fpr: float = setting(
        0.1, minimum=0.0, maximum=1.0, doc="the same share of real examples, where measured"
    )
    min_canaries: int = setting(100, minimum=20, doc="a smaller audit shows too little")
    require_control_caught: bool = setting(
        True, doc="a run without privacy must be found out by the same attacks"
    )
    require_private: bool = setting(True, doc="the audited run must have been private")

    def failures(
        self,
        report: Mapping[str, Any],
        run: RunSettings | None = None,
        adapter_digest: str = "",
    ) -> list[str]:
        """Every reason not to release, one sentence each; none where the audit passes.

        run, adapter_digest: of what is to be released, to refuse the audit of anything else.
        """
        if report.get("kind") != AUDIT_KIND or report.get("schema") != AUDIT_SCHEMA:
            return [
                f"Expected a leakage audit of schema {AUDIT_SCHEMA}, got "
                f"{report.get('kind')!r}, {report.get('schema')!r}. Audit with this release."
            ]
        found: list[str] = []
        if run is not None and report.get("settings_digest") != audited_settings_digest(run):
            found.append("The audit is of a run with other settings. Audit this run's settings.")
        if self.require_private and report.get("private") is not True:
            found.append("The audited run was not private. Set privacy.mode=dp and audit again.")
        found += self._size(report)
        found += _above(report, "tpr_at_1_fpr", self.max_tpr_at_1_fpr, "canaries found at 1% FPR")
        found += self._epsilon(report)
        found += self._control(report)
        found += self._membership(report, adapter_digest)
        return found

    def _size(self, report: Mapping[str, Any]) -> list[str]:
        counts = [_number(report, key) for key in ("canaries_planted", "canaries_left_out")]
        total = sum(count for count in counts if count is not None)
        if None in counts or total < self.min_canaries:
            return [f"Expected {self.min_canaries} canaries or more, got {total:g}."]
        return []

    def _epsilon(self, report: Mapping[str, Any]) -> list[str]:
        limit: float | None = self.max_epsilon_lower_bound
        accountant = _number(report, "accountant_epsilon")
        found: list[str] = []
        if not limit:
            limit = accountant
        if limit is None:
            if not self.require_private and report.get("private") is False:
                return []  # Nobody promised an epsilon that could be broken.
            return ["Expected the accountant's epsilon in the audit, got none."]
        found += _above(report, "epsilon_lower_bound", limit, "proven epsilon")
        if accountant is not None and limit > accountant:
            promised = "proven epsilon against the accountant's"
            found += _above(report, "epsilon_lower_bound", accountant, promised)
        return found

    def _control(self, report: Mapping[str, Any]) -> list[str]:
        if not self.require_control_caught:
            return []
        if report.get("private") is False and report.get("caught") is True:
            return []  # It is its own control.
        control = report.get("control")
        if isinstance(control, Mapping) and control.get("caught") is True:
            return []
        return [
            "The same run without privacy was not caught, so these attacks prove nothing. Use more "
            "canaries, or more repeats of each."
        ]

    def _membership(self, report: Mapping[str, Any], adapter_digest: str) -> list[str]:
        section = report.get("membership")
        if section is None:
            return []
        if not isinstance(section, Mapping):
            return ["Expected the membership section as a mapping."]
        if adapter_digest and report.get("adapter_digest") != adapter_digest:
            return [
                "The membership attack was on another adapter. Attack the one to be released, or "
                "audit the run's settings alone."
            ]
        what = "real examples found at 1% FPR"
        blind = _BLIND_MARGIN * (_number(section, "chance") or 0.0)
        limit = max(self.max_membership_tpr_at_1_fpr, blind)
        return _above(section, "tpr_at_1_fpr", limit, what)


def _number(report: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or None for whatever else is there."""
    value = report.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _above(report: Mapping[str, Any], key: str, limit: float, what: str) -> list[str]:
    value = _number(report, key)
    if value is None:
        return [f"Expected a number of {what} under {key}, got none."]
    return [f"{what}: expected at most {limit:g}, got {value:g}."] if value > limit else []


def audited_settings_digest(run: RunSettings) -> str:
    """SHA-256 over all settings of a run, but where its base model lies on this machine."""
    values = encode(run)
    values["model"] = {k: v for k, v in values["model"].items() if k not in _LOCAL_MODEL_KEYS}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_audit(path: Path) -> dict[str, Any]:
    """An audit's report from its file.

    Errors: FoedusError where there is no file or no JSON object in it.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FoedusError(
            f"Expected a leakage audit in JSON at {path}, got {type(error).__name__}. Write one "
            "with `foedus client audit --json`."
        ) from error
    if not isinstance(report, dict):
        raise FoedusError(f"Expected a leakage audit at {path}, got JSON of another shape.")
    return report
