"""report.json: everything a run came to, as plain values under a fixed schema.

Keys of schema 1 keep their meaning for good; new ones may be added beside them. A number that is
not finite is written as null, as JSON has no word for it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol.codec import encode
from protocol.errors import FoedusError
from protocol.peft_folder import WEIGHTS
from server.records import RoundRecord
from simulations.experiment import Experiment
from simulations.report.scores import forgetting_section, score_section
from simulations.settings import SimulationSettings

SCHEMA = 1
ADAPTER = "adapter"

Report = dict[str, Any]

_KEYS = ("schema", "config", "sites", "rounds", "scores", "bytes", "seconds", "adapter")


def build_report(experiment: Experiment) -> Report:
    """The report as values that json.dumps takes.

    Reads the released adapter under the experiment's output_dir for its digest.
    Errors: FoedusError where there is no released adapter.
    """
    records = experiment.result.records
    report: Report = {
        "schema": SCHEMA,
        "config": config_section(experiment.settings),
        "sites": [
            {
                "name": site.name,
                "train_examples": len(site.train),
                "test_examples": len(site.test),
            }
            for site in experiment.sites
        ],
        "rounds": [_round(record) for record in records],
        "scores": score_section(experiment),
        "bytes": _bytes(records),
        "seconds": _seconds(records, experiment.total_seconds),
        "adapter": _adapter(Path(experiment.settings.output_dir)),
    }
    forgetting = forgetting_section(experiment)
    if forgetting:
        report["forgetting"] = forgetting
    if experiment.privacy:
        report["privacy"] = experiment.privacy.to_json()
    finite: Report = _finite(report)
    return finite


def report_bytes(report: Report) -> bytes:
    """The file's content: UTF-8, one final newline, keys in the schema's order."""
    return (json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_report(path: Path) -> Report:
    """A report as it was written.

    Errors: FoedusError naming the file where it is missing, damaged or of another schema.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FoedusError(
            f"Expected a report at {path}, got no such file. Run `foedus simulate "
            f"output_dir={path.parent}` first."
        ) from error
    except ValueError as error:
        raise FoedusError(f"Expected JSON in {path}, got a damaged file: {error}.") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise FoedusError(
            f"Expected schema {SCHEMA} in {path}, got {schema!r}. "
            "Read it with the release of foedus that wrote it."
        )
    missing = [key for key in _KEYS if key not in report]
    if missing:
        raise FoedusError(
            f"Expected the keys {', '.join(_KEYS)} in {path}, got none of {', '.join(missing)}. "
            "Run the experiment again to write the report anew."
        )
    whole: Report = report
    return whole


def config_section(settings: SimulationSettings) -> dict[str, Any]:
    """The settings, nested as in conf/simulate.yaml."""
    simulation = {
        **encode(settings.sites),
        "compare": list(settings.compare),
        "general_text": settings.general_text,
    }
    return {
        **encode(settings.run),
        "data": encode(settings.data),
        "simulation": simulation,
        "engine": encode(settings.engine),
        "audit": encode(settings.audit),
        "output_dir": settings.output_dir,
        "resume": settings.resume,
    }


def _round(record: RoundRecord) -> dict[str, Any]:
    return {
        "round": record.round,
        "seconds": record.seconds,
        "cohort": list(record.cohort),
        "rejected": [dict(rejected) for rejected in record.rejected],
        "metrics": dict(record.metrics),
        "site_metrics": {site: dict(metrics) for site, metrics in record.site_metrics.items()},
        "admitted": list(record.admitted),
        "silent": list(record.silent),
        "aggregated": record.aggregated,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "bytes_evaluation": record.bytes_evaluation,
    }


def _bytes(records: Sequence[RoundRecord]) -> dict[str, int]:
    """Tensor bytes. Per site and round: of the round that sent most, as RoLoRA's rounds differ."""
    up = [record.bytes_up // len(record.admitted) for record in records if record.admitted]
    down = [record.bytes_down // len(record.cohort) for record in records if record.cohort]
    return {
        "up_per_site_round": max(up, default=0),
        "down_per_site_round": max(down, default=0),
        "total": sum(r.bytes_up + r.bytes_down + r.bytes_evaluation for r in records),
    }


def _seconds(records: Sequence[RoundRecord], total: float) -> dict[str, float]:
    """train: summed over sites, so on engines that train sites in parallel it may exceed total;
    overhead: what rounds took beside training and aggregating (messages, evaluation)."""
    train = sum(record.train_seconds for record in records)
    aggregate = sum(record.aggregate_seconds for record in records)
    rounds = sum(record.seconds for record in records)
    return {
        "train": train,
        "aggregate": aggregate,
        "overhead": max(0.0, rounds - train - aggregate),
        "total": total,
    }


def _adapter(output_dir: Path) -> dict[str, str]:
    weights = output_dir / ADAPTER / WEIGHTS
    try:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise FoedusError(
            f"Expected the released adapter at {weights}, got no such file. "
            "The run did not come to its release; its log says why."
        ) from error
    return {"path": ADAPTER, "sha256": digest}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
