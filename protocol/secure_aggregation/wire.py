"""The form that all messages of secure aggregation share: header, typed values, signature.

All of a message lies in one ConfigRecord of numbers, hex digests and byte strings of exact length;
the masked input alone has an array of bytes beside it, and its request that to train. Member ids
travel as 16 bytes each, in ascending order, so that a list has one form only. Unknown keys are
refused. There is no field in which a piece of a document could travel.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeGuard

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from protocol.errors import WireError, shown
from protocol.reasons import RefusalReason, RejectionReason
from protocol.records import arrays_of, config_of
from protocol.secure_aggregation.encoding import encode_fields
from protocol.secure_aggregation.ring import RingParameters
from protocol.secure_aggregation.tables import demand, pack_ids, unpack_ids
from protocol.secure_aggregation.transcript import SessionContext

SECURE_VERSION = 1
SECURE, MASKED = "secure", "masked"

KEY_BYTES, SIGNATURE_BYTES = 32, 64
MAX_ROUND = 2**31 - 1

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_HEADER = {"version": int, "phase": str, "run_id": str, "round": int, "attempt": int}
_SIGNATURE, _BLAMED = "signature", "blamed"


def is_run_id(value: object) -> TypeGuard[str]:
    """Whether it has the form of a run's id, 32 hex digits."""
    return isinstance(value, str) and _RUN_ID.fullmatch(value) is not None


class Phase(StrEnum):
    """The steps of one session, in order."""

    ADVERTISE = "advertise"
    SHARE = "share"
    MASKED_INPUT = "masked_input"
    CONFIRM = "confirm"
    UNMASK = "unmask"


# Shares of the round's deadline: training takes long, the other phases a message each.
DEADLINE_SHARES: Mapping[Phase, float] = {
    Phase.ADVERTISE: 0.1,
    Phase.SHARE: 0.1,
    Phase.MASKED_INPUT: 0.6,
    Phase.CONFIRM: 0.1,
    Phase.UNMASK: 0.1,
}


@dataclass(frozen=True)
class SessionId:
    """One try of one round of one run. run_id: 32 hex digits; round and attempt start at 1."""

    run_id: str
    round: int
    attempt: int


@dataclass(frozen=True)
class Terms:
    """What the coordinator proposes and every site signs.

    task_digest: SHA-256 (hex) of settings, adapter and layout, see task.py. bits, num_sites_max,
    coordinate_bound and weight_cap: of the ring. degree: neighbours in the mask graph, 0 = choose.
    """

    roster_digest: str
    task_digest: str
    bits: int
    num_sites_max: int
    coordinate_bound: float
    weight_cap: int
    degree: int

    @property
    def ring(self) -> RingParameters:
        """How updates become whole numbers. Errors: FoedusError where the bits are too few."""
        return RingParameters(self.bits, self.num_sites_max, self.coordinate_bound, self.weight_cap)

    def context(self, session: SessionId) -> SessionContext:
        """What every key and signature of a session under these terms is bound to."""
        return SessionContext(
            session.run_id,
            session.round,
            session.attempt,
            self.roster_digest,
            self.ring,
            self.task_digest,
            self.degree,
        )


def read_header(content: RecordDict) -> tuple[Phase, SessionId]:
    """Phase and session of any message. Errors: WireError with a RejectionReason."""
    record = content.get(SECURE)
    if not isinstance(record, ConfigRecord):
        raise WireError(RejectionReason.MALFORMED, f"Expected a ConfigRecord under '{SECURE}'.")
    version = record.get("version")
    if type(version) is not int or version != SECURE_VERSION:
        raise WireError(RejectionReason.WRONG_VERSION, f"Expected version {SECURE_VERSION}.")
    for name, kind in _HEADER.items():
        demand(type(record.get(name)) is kind, f"{name} in the header")
    phase, run_id = str(record["phase"]), str(record["run_id"])
    demand(phase in set(Phase), "a known phase")
    demand(is_run_id(run_id), "run_id of 32 hex digits")
    numbers = {name: record[name] for name in ("round", "attempt")}
    session = SessionId(run_id, **numbers)  # type: ignore[arg-type]
    demand(1 <= session.round <= MAX_ROUND, "a round of 1 or more")
    demand(1 <= session.attempt <= MAX_ROUND, "an attempt of 1 or more")
    return Phase(phase), session


class RefusedBySite(WireError):
    """A site's refusal, as the coordinator reads it; the text is the site's reason code.

    blamed: members whose boxes the site could not open.
    """

    def __init__(self, status: str, blamed: tuple[str, ...]) -> None:
        self.blamed = blamed
        super().__init__(RejectionReason.REFUSED_BY_SITE, status)


def refusal_content(
    phase: Phase, session: SessionId, code: str, blamed: Sequence[str] = ()
) -> RecordDict:
    """A site's refusal. code: a RefusalReason; blamed: members whose boxes do not open, in order.

    Nothing else travels, and nothing is signed.
    """
    values: dict[str, Any] = {**_header(session, phase), "status": str(code)}
    if blamed:
        values[_BLAMED] = pack_ids(blamed)
    return RecordDict({SECURE: ConfigRecord(values)})


def signed_statement(request: RecordDict, reply: RecordDict) -> bytes:
    """What a site signs: the digests of the request it answers and of its own reply."""
    return encode_fields("reply", message_digest(request), message_digest(reply))


def with_signature(reply: RecordDict, signature: bytes) -> RecordDict:
    """The reply that may leave."""
    record = config_of(reply, SECURE)
    signed = RecordDict({SECURE: ConfigRecord({**dict(record), _SIGNATURE: signature})})
    if MASKED in reply:
        signed[MASKED] = reply[MASKED]
    return signed


def signature_of(reply: RecordDict) -> bytes:
    """The signature (64 bytes) of a reply that was parsed."""
    signature = config_of(reply, SECURE)[_SIGNATURE]
    return signature if isinstance(signature, bytes) else b""


def message_digest(content: RecordDict) -> bytes:
    """SHA-256 (32 bytes) of a message's own record without its signature, and of a masked array.

    The train request beside a masked input's request is bound by the terms' task digest instead.
    """
    total = hashlib.sha256()
    for name, value in sorted(config_of(content, SECURE).items()):
        if name != _SIGNATURE:
            data = value if isinstance(value, bytes) else repr(value).encode()
            total.update(encode_fields("field", name, type(value).__name__, data))
    if MASKED in content:
        total.update(hashlib.sha256(arrays_of(content, MASKED)[MASKED].data).digest())
    return total.digest()


def content_size(content: RecordDict) -> int:
    """Bytes of a message: names and values of its records, and its arrays."""
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for array in record.values())
            continue
        for name, value in record.items():
            values = value if isinstance(value, list) else [value]
            total += len(name)
            total += sum(len(v) if isinstance(v, str | bytes) else 8 for v in values)
    return total


def _header(session: SessionId, phase: Phase) -> dict[str, Any]:
    return {"version": SECURE_VERSION, "phase": str(phase), **vars(session)}


def request_content(session: SessionId, phase: Phase, values: Mapping[str, Any]) -> RecordDict:
    """The record of a request."""
    return RecordDict({SECURE: ConfigRecord({**_header(session, phase), **values})})


def reply_content(session: SessionId, phase: Phase, values: Mapping[str, Any]) -> RecordDict:
    """The record of an "ok" reply, still without its signature."""
    return request_content(session, phase, {"status": "ok", **values})


def read_values(
    content: RecordDict, phase: Phase, kinds: Mapping[str, type]
) -> tuple[SessionId, dict[str, Any]]:
    """Session and values of a message, all keys known and of the right type. Errors: WireError."""
    found, session = read_header(content)
    if found is not phase:
        raise WireError(RejectionReason.WRONG_PHASE, f"Expected {phase}, got {found}.")
    values = {k: v for k, v in config_of(content, SECURE).items() if k not in _HEADER}
    if set(values) != set(kinds):
        unlike = sorted(set(values) ^ set(kinds))
        raise WireError(RejectionReason.MALFORMED, f"Unknown or missing keys {shown(unlike)}.")
    for name, kind in kinds.items():
        demand(type(values[name]) is kind, f"{name} as {kind.__name__}")
    return session, values


def read_reply(
    content: RecordDict,
    phase: Phase,
    expected: SessionId,
    kinds: Mapping[str, type],
    also: set[str] | None = None,
) -> dict[str, Any]:
    """Values of a signed "ok" reply to `expected`.

    Errors: WireError whose code is a RejectionReason, REFUSED_BY_SITE where it is a refusal.
    """
    found, session = read_header(content)
    _expect_session(found, phase, session, expected)
    record = config_of(content, SECURE)
    status = record.get("status")
    if status != "ok":
        demand(set(content) == {SECURE}, "nothing beside a refusal")
        raise _refusal(dict(record))
    demand(set(content) == {SECURE} | (also or set()), "the records of this phase alone")
    _, values = read_values(content, phase, {**kinds, "status": str, _SIGNATURE: bytes})
    demand(len(values[_SIGNATURE]) == SIGNATURE_BYTES, f"a signature of {SIGNATURE_BYTES} bytes")
    return values


def _refusal(values: dict[str, Any]) -> WireError:
    """What a refusal says. Errors: WireError where it says anything else."""
    status, blamed = values.get("status"), values.pop(_BLAMED, b"")
    known = isinstance(status, str) and status in set(RefusalReason)
    demand(known and set(values) == {*_HEADER, "status"}, "a known status and no more")
    demand(isinstance(blamed, bytes), "blamed members as bytes")
    return RefusedBySite(str(status), unpack_ids(blamed))


def _expect_session(
    found_phase: Phase, phase: Phase, found: SessionId, expected: SessionId
) -> None:
    checks: tuple[tuple[object, object, RejectionReason], ...] = (
        (found.run_id, expected.run_id, RejectionReason.WRONG_RUN),
        (found.round, expected.round, RejectionReason.WRONG_ROUND),
        (found.attempt, expected.attempt, RejectionReason.WRONG_PHASE),
        (found_phase, phase, RejectionReason.WRONG_PHASE),
    )
    for got, wanted, code in checks:
        if got != wanted:
            raise WireError(code, f"Expected {wanted}, got {got}.")
