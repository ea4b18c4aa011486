"""The messages of a round, versioned, as Flower records; unknown keys are refused.

A request carries settings, the adapter's layout in words and its values in one flat array. A reply
carries numbers, one hex digest and a status word from a closed list: there is no field in which a
piece of a document could travel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from protocol.adapter import AdapterState, FloatArray, Layout, layout_digest, unpack
from protocol.codec import decode, encode, flatten, unflatten
from protocol.errors import SettingsError, WireError, shown
from protocol.flat_array import array_record, expect_keys, flat_array
from protocol.plausible_numbers import expect_plausible
from protocol.reasons import RefusalReason, RejectionReason
from protocol.secure_aggregation.wire import MAX_ROUND, is_run_id
from protocol.settings import RunSettings

PROTOCOL_VERSION = 1

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"

TRAIN_METRICS = frozenset({"num_examples", "num_steps", "train_loss", "train_seconds"})
EVALUATE_METRICS = frozenset({"num_examples", "loss", "accuracy", "macro_f1"})
REQUIRED_METRICS = frozenset({"num_examples"})
# Of private training only what the data does not move may leave beside the noised update.
PRIVATE_TRAIN_METRICS = frozenset({"num_steps"})

# Flower's stock loop adds this key to every request; it repeats our own round.
_FLOWER_ROUND = "server-round"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHAPE = re.compile(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){0,3}")

Kind = Literal["train", "evaluate"]

UNKNOWN_RUN = "0" * 32


@dataclass(frozen=True)
class Request:
    """What the coordinator asks of a site in one round.

    `state` holds the downloaded factors only; `settings` is the whole agreed run.
    """

    kind: Kind
    run_id: str
    round: int
    settings: RunSettings
    state: AdapterState

    def to_content(self) -> RecordDict:
        """The Flower records that carry this request."""
        config: dict[str, Any] = {
            "version": PROTOCOL_VERSION,
            "kind": self.kind,
            "run_id": self.run_id,
            "round": self.round,
            "adapter.names": list(self.state.tensors),
            "adapter.shapes": ["x".join(map(str, s)) for s in self.state.layout.values()],
            "adapter.base_digest": self.state.base_digest,
            **flatten(encode(self.settings), "settings."),
        }
        return RecordDict({ARRAYS: array_record(self.state.tensors), CONFIG: ConfigRecord(config)})

    @classmethod
    def from_content(cls, content: RecordDict, kind: Kind) -> Request:
        """Parse what came over the wire.

        Errors: WireError whose code is a RefusalReason: the request is not one we can follow.
        """
        try:
            return _parse_request(content, kind)
        except WireError as error:
            if error.code in set(RefusalReason):
                raise
            raise WireError(RefusalReason.MALFORMED_REQUEST, str(error)) from error
        except (SettingsError, KeyError, TypeError, ValueError) as error:
            raise WireError(RefusalReason.MALFORMED_REQUEST, f"Request: {error}") from error


def named_run(content: RecordDict) -> tuple[str, int]:
    """Run and round that a request names, without reading anything else of it.

    For a reply that refuses what cannot or must not be followed: UNKNOWN_RUN and 0 where there are
    none. Requests of every protocol version name them so.
    """
    config = content.get(CONFIG)
    if not isinstance(config, ConfigRecord):
        return UNKNOWN_RUN, 0
    run_id, round_ = config.get("run_id"), config.get("round")
    if not is_run_id(run_id):
        return UNKNOWN_RUN, 0
    if type(round_) is not int or not 0 <= round_ <= MAX_ROUND:
        return UNKNOWN_RUN, 0
    return run_id, round_


def train_request(run_id: str, round_: int, settings: RunSettings, state: AdapterState) -> Request:
    """Train on the site's own data and send back the update."""
    return Request("train", run_id, round_, settings, state)


def evaluate_request(
    run_id: str, round_: int, settings: RunSettings, state: AdapterState
) -> Request:
    """Evaluate the adapter on the site's held-out data and send back numbers."""
    return Request("evaluate", run_id, round_, settings, state)


@dataclass(frozen=True)
class Reply:
    """What a site sends back. `status` is "ok" or a RefusalReason; no tensors unless it is "ok"."""

    run_id: str
    round: int
    status: str = "ok"
    metrics: Mapping[str, float] = field(default_factory=dict)
    update: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def num_examples(self) -> float:
        """What the weight of the update goes by; 1 where the site may not tell its size."""
        return self.metrics.get("num_examples", 1.0)

    def to_content(self) -> RecordDict:
        """The Flower records that carry this reply."""
        layout = {name: tuple(tensor.shape) for name, tensor in self.update.items()}
        config: dict[str, Any] = {
            "version": PROTOCOL_VERSION,
            "run_id": self.run_id,
            "round": self.round,
            # A plain text, as the other side will read it: both digest what they hold.
            "status": str(self.status),
            "layout_digest": layout_digest(layout),
        }
        records: dict[str, Any] = {
            CONFIG: ConfigRecord(config),
            METRICS: MetricRecord({name: float(v) for name, v in sorted(self.metrics.items())}),
        }
        if self.update:
            records[ARRAYS] = array_record(self.update)
        return RecordDict(records)


@dataclass(frozen=True)
class ExpectedReply:
    """What admission compares a reply with. `layout` is empty for an evaluation; `private`: no
    number that depends on the data without noise is taken."""

    kind: Kind
    run_id: str
    round: int
    layout: Layout
    private: bool = False

    def parse(self, content: RecordDict) -> Reply:
        """Check schema, version, run, round, layout, dtype and length; tensors may still be bad.

        Errors: WireError whose code is a RejectionReason.
        """
        try:
            return self._parse(content)
        except (KeyError, TypeError, ValueError, AttributeError, EOFError, OverflowError) as error:
            raise WireError(RejectionReason.MALFORMED, f"Reply cannot be read: {error}") from error

    def _parse(self, content: RecordDict) -> Reply:
        config = _record(content, CONFIG, ConfigRecord)
        expect_keys(config, {"version", "run_id", "round", "status", "layout_digest"})
        _expect(config["version"], PROTOCOL_VERSION, RejectionReason.WRONG_VERSION, "version")
        _expect(config["run_id"], self.run_id, RejectionReason.WRONG_RUN, "run_id")
        _expect(config["round"], self.round, RejectionReason.WRONG_ROUND, "round")
        status = config["status"]
        if status != "ok":
            known = isinstance(status, str) and status in set(RefusalReason)
            code = RejectionReason.REFUSED_BY_SITE if known else RejectionReason.MALFORMED
            raise WireError(code, str(status) if known else "unknown status")
        metrics = self._metrics(content)
        if not self.layout:
            expect_keys(content, {CONFIG, METRICS})
            return Reply(self.run_id, self.round, "ok", metrics)
        expect_keys(content, {CONFIG, METRICS, ARRAYS})
        expected_digest = layout_digest(self.layout)
        _expect(
            config["layout_digest"], expected_digest, RejectionReason.WRONG_LAYOUT, "layout_digest"
        )
        flat = flat_array(_record(content, ARRAYS, ArrayRecord))
        return Reply(self.run_id, self.round, "ok", metrics, unpack(flat, self.layout))

    def _metrics(self, content: RecordDict) -> dict[str, float]:
        allowed = TRAIN_METRICS if self.kind == "train" else EVALUATE_METRICS
        required = REQUIRED_METRICS
        if self.private:
            allowed, required = PRIVATE_TRAIN_METRICS, frozenset()
        values = dict(_record(content, METRICS, MetricRecord))
        if not set(values) <= allowed or not set(values) >= required:
            raise WireError(
                RejectionReason.MALFORMED,
                f"Expected metrics out of {sorted(allowed)}, got {shown(sorted(values))}.",
            )
        metrics: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, list | bool):
                raise WireError(RejectionReason.MALFORMED, f"Metric {name} is not one number.")
            metrics[name] = float(value)
        expect_plausible(metrics)
        return metrics


def _parse_request(content: RecordDict, kind: Kind) -> Request:
    expect_keys(content, {ARRAYS, CONFIG})
    config = dict(_record(content, CONFIG, ConfigRecord))
    config.pop(_FLOWER_ROUND, None)
    _expect(config.pop("version", None), PROTOCOL_VERSION, RefusalReason.WRONG_VERSION, "version")
    _expect(config.pop("kind", None), kind, RefusalReason.MALFORMED_REQUEST, "kind")
    nested = unflatten(config)
    expect_keys(nested, {"run_id", "round", "adapter", "settings"})
    settings = decode(RunSettings, nested["settings"], "request settings")
    header = nested["adapter"]
    expect_keys(header, {"names", "shapes", "base_digest"})
    run_id, round_ = nested["run_id"], nested["round"]
    if not is_run_id(run_id):
        raise ValueError("run_id is not 32 hex digits.")
    first = 1 if kind == "train" else 0
    if type(round_) is not int or not first <= round_ <= settings.federation.rounds:
        raise ValueError(f"round {round_!r} is not within {first}..{settings.federation.rounds}.")
    if not _DIGEST.fullmatch(header["base_digest"]):
        raise ValueError("adapter.base_digest is not 64 hex digits.")
    layout = _parse_layout(header["names"], header["shapes"])
    flat = flat_array(_record(content, ARRAYS, ArrayRecord))
    state = AdapterState(
        unpack(flat, layout),
        settings.adapter.rank,
        settings.adapter.alpha,
        header["base_digest"],
        settings.federation.method,
    )
    if not np.isfinite(flat).all():
        raise ValueError("the adapter holds NaN or infinity.")
    return Request(kind, run_id, round_, settings, state)


def _parse_layout(names: list[str], shapes: list[str]) -> dict[str, tuple[int, ...]]:
    if len(names) != len(shapes) or len(set(names)) != len(names):
        raise ValueError("adapter.names and adapter.shapes do not pair up one to one.")
    layout: dict[str, tuple[int, ...]] = {}
    for name, shape in zip(names, shapes, strict=True):
        if not _SHAPE.fullmatch(shape):
            raise ValueError(f"adapter.shapes holds {shape[:40]!r}; expected e.g. '8x384'.")
        layout[name] = tuple(int(side) for side in shape.split("x"))
    return layout


def _record(content: RecordDict, key: str, kind: type[Any]) -> Any:
    record = content.get(key)
    if not isinstance(record, kind):
        raise WireError(
            RejectionReason.MALFORMED, f"Expected a {kind.__name__} under '{key}', got none."
        )
    return record


def _expect(value: object, expected: object, code: str, what: str) -> None:
    if type(value) is not type(expected) or value != expected:
        raise WireError(code, f"Expected {what} {expected!r}, got {str(value)[:80]!r}.")
