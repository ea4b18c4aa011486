"""What both sides write down of a reply: the site before it leaves, the coordinator once it came.

Each computes this from the content that it holds itself. Where the facts are equal, the reply
arrived as it was sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from protocol.errors import WireError
from protocol.flat_array import FLAT
from protocol.messages import ARRAYS, CONFIG, METRICS, Kind
from protocol.reasons import RefusalReason, RejectionReason
from protocol.records import config_of
from protocol.secure_aggregation.wire import (
    MASKED,
    MAX_ROUND,
    SECURE,
    Phase,
    content_size,
    is_run_id,
    message_digest,
)


@dataclass(frozen=True)
class ReplyFacts:
    """kind: "train", "evaluate" or "secure.PHASE". run_id, round and status: as the reply itself
    says. digest: SHA-256 of its content, hex; num_bytes: of its tensors and numbers."""

    kind: str
    run_id: str
    round: int
    status: str
    digest: str
    num_bytes: int


def phase_kind(phase: Phase) -> str:
    """The kind of a reply in a phase of secure aggregation."""
    return f"secure.{phase}"


KINDS = ("train", "evaluate", *(phase_kind(phase) for phase in Phase))


def reply_facts(content: RecordDict, kind: Kind) -> ReplyFacts:
    """Facts of a reply of either form; kind: what was asked, where it is not one of a phase.

    The digest covers every value of the agreed records, but for a phase's signature. Errors:
    WireError MALFORMED where these records are missing, or say what no site of ours would.
    """
    if SECURE in content:
        return _facts_of_phase(content)
    total, num_bytes = hashlib.sha256(), 0
    for key, form in ((CONFIG, ConfigRecord), (METRICS, MetricRecord)):
        record = content.get(key)
        if not isinstance(record, form):
            raise _malformed(f"a {form.__name__} under '{key}'")
        for name, value in sorted(record.items()):
            total.update(f"{key}.{name}={_as_it_arrives(value)!r}\n".encode())
            num_bytes += 8
    if ARRAYS in content:
        data = _array(content, ARRAYS, FLAT)
        total.update(data)
        num_bytes += len(data)
    return _facts(kind, config_of(content, CONFIG), total.hexdigest(), num_bytes)


def _facts_of_phase(content: RecordDict) -> ReplyFacts:
    header = content[SECURE]
    if not isinstance(header, ConfigRecord) or header.get("phase") not in set(Phase):
        raise _malformed(f"a known phase under '{SECURE}'")
    if MASKED in content:
        _array(content, MASKED, MASKED)
    kind = phase_kind(Phase(str(header["phase"])))
    return _facts(kind, header, message_digest(content).hex(), content_size(content))


def _facts(kind: str, header: Mapping[str, Any], digest: str, num_bytes: int) -> ReplyFacts:
    run_id, round_, status = (header.get(name) for name in ("run_id", "round", "status"))
    if not is_run_id(run_id):
        raise _malformed("a run_id of 32 hex digits")
    if type(round_) is not int or not 0 <= round_ <= MAX_ROUND:
        raise _malformed("a round")
    if not isinstance(status, str) or status not in {"ok", *RefusalReason}:
        raise _malformed("a known status")
    return ReplyFacts(kind, run_id, round_, status, digest, num_bytes)


def _as_it_arrives(value: Any) -> Any:
    """A word of an enumeration or a number of NumPy's is plain at the other end of the wire."""
    if isinstance(value, str):
        return str(value)
    return float(value) if isinstance(value, float) else value


def _array(content: RecordDict, key: str, name: str) -> bytes:
    record = content[key]
    if not isinstance(record, ArrayRecord) or name not in record:
        raise _malformed(f"an array '{name}' under '{key}'")
    return record[name].data


def _malformed(what: str) -> WireError:
    return WireError(RejectionReason.MALFORMED, f"Expected {what} in a reply.")
