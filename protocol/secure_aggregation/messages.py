"""The messages of secure aggregation: a request and a reply for each of the five phases.

Advertise keys, share secrets, send the masked input, confirm who is in the sum, unmask it. The form
of the records is in wire.py. A reply that is "ok" is signed by the site over its own content and
that of the request it answers, so that a byte altered on the way, in either direction, shows at the
coordinator.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, RecordDict

from protocol.errors import FoedusError, WireError, shown
from protocol.reasons import RejectionReason
from protocol.records import arrays_of
from protocol.secure_aggregation.keys import Advertisement
from protocol.secure_aggregation.shares import BOX_BYTES, SHARE_BYTES
from protocol.secure_aggregation.tables import (
    ID_BYTES,
    MAX_SITES,
    demand,
    expect_ascending,
    pack_ids,
    read_table,
    rows_of,
    table,
    unpack_ids,
)
from protocol.secure_aggregation.wire import (
    KEY_BYTES,
    MASKED,
    SIGNATURE_BYTES,
    Phase,
    SessionId,
    Terms,
    read_reply,
    read_values,
    reply_content,
    request_content,
)

_STYPE = "foedus.packed_ring"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ADVERTISEMENT_BYTES = ID_BYTES + 3 * KEY_BYTES + SIGNATURE_BYTES


def _to_row(advertisement: Advertisement) -> bytes:
    return bytes.fromhex(advertisement.member_id) + advertisement.to_bytes()


def _from_row(row: bytes) -> Advertisement:
    return Advertisement.from_bytes(row[:ID_BYTES].hex(), row[ID_BYTES:])


@dataclass(frozen=True)
class AdvertiseRequest:
    """Make keys for a session under these terms."""

    session: SessionId
    terms: Terms

    def to_content(self) -> RecordDict:
        """The Flower records that carry this request."""
        return request_content(self.session, Phase.ADVERTISE, vars(self.terms))

    @classmethod
    def from_content(cls, content: RecordDict) -> AdvertiseRequest:
        """Parse. Errors: WireError with a RejectionReason."""
        kinds = {"roster_digest": str, "task_digest": str, "bits": int, "num_sites_max": int,
                 "coordinate_bound": float, "weight_cap": int, "degree": int}  # fmt: skip
        session, values = read_values(content, Phase.ADVERTISE, kinds)
        for name in ("roster_digest", "task_digest"):
            demand(_DIGEST.fullmatch(values[name]) is not None, f"{name} of 64 hex digits")
        bound = values["coordinate_bound"]
        demand(math.isfinite(bound) and bound > 0, "a positive coordinate_bound")
        demand(2 <= values["num_sites_max"] <= MAX_SITES, f"num_sites_max of 2..{MAX_SITES}")
        demand(1 <= values["weight_cap"] <= 2**31, "a positive weight_cap")
        demand(0 <= values["degree"] <= MAX_SITES, f"degree of 0..{MAX_SITES}")
        try:
            terms = Terms(**values)
            _ = terms.ring
        except FoedusError as error:
            raise WireError(RejectionReason.MALFORMED, f"Terms: {error}") from error
        return cls(session, terms)


@dataclass(frozen=True)
class AdvertiseReply:
    """The site's keys."""

    session: SessionId
    advertisement: Advertisement

    def to_content(self) -> RecordDict:
        """The Flower records that carry this reply, still without its signature."""
        return reply_content(
            self.session, Phase.ADVERTISE, {"advertisement": _to_row(self.advertisement)}
        )

    @classmethod
    def from_content(cls, content: RecordDict, session: SessionId) -> AdvertiseReply:
        """Parse. Errors: WireError with a RejectionReason."""
        values = read_reply(content, Phase.ADVERTISE, session, {"advertisement": bytes})
        (row,) = rows_of(values["advertisement"], 1, _ADVERTISEMENT_BYTES)
        return cls(session, _from_row(row))


@dataclass(frozen=True)
class ShareRequest:
    """Everyone's keys, in ascending order of member ids."""

    session: SessionId
    advertisements: tuple[Advertisement, ...]

    def to_content(self) -> RecordDict:
        """The Flower records that carry this request."""
        rows = b"".join(_to_row(each) for each in self.advertisements)
        return request_content(self.session, Phase.SHARE, {"advertisements": rows})

    @classmethod
    def from_content(cls, content: RecordDict) -> ShareRequest:
        """Parse; members are distinct and in order. Errors: WireError with a RejectionReason."""
        session, values = read_values(content, Phase.SHARE, {"advertisements": bytes})
        data = values["advertisements"]
        rows = rows_of(data, len(data) // _ADVERTISEMENT_BYTES, _ADVERTISEMENT_BYTES)
        advertisements = tuple(_from_row(row) for row in rows)
        expect_ascending([each.member_id for each in advertisements])
        return cls(session, advertisements)


@dataclass(frozen=True)
class ShareReply:
    """One sealed box for each neighbour: its shares of this site's two secrets."""

    session: SessionId
    boxes: Mapping[str, bytes]

    def to_content(self) -> RecordDict:
        """The Flower records that carry this reply, still without its signature."""
        return reply_content(self.session, Phase.SHARE, table("receivers", "boxes", self.boxes))

    @classmethod
    def from_content(cls, content: RecordDict, session: SessionId) -> ShareReply:
        """Parse. Errors: WireError with a RejectionReason."""
        kinds = {"receivers": bytes, "boxes": bytes}
        values = read_reply(content, Phase.SHARE, session, kinds)
        return cls(session, read_table(values, "receivers", "boxes", BOX_BYTES))


@dataclass(frozen=True)
class MaskedInputRequest:
    """Train and mask. senders: all who shared; boxes: those of this site's neighbours among them.

    Travels beside a request to train, which the terms' task digest binds.
    """

    session: SessionId
    senders: tuple[str, ...]
    boxes: Mapping[str, bytes]

    def to_content(self) -> RecordDict:
        """The record of this request alone; the train request's records go beside it."""
        rows = table("box_senders", "boxes", self.boxes)
        values = {"senders": pack_ids(self.senders), **rows}
        return request_content(self.session, Phase.MASKED_INPUT, values)

    @classmethod
    def from_content(cls, content: RecordDict) -> MaskedInputRequest:
        """Parse this request's own record. Errors: WireError with a RejectionReason."""
        kinds = {"senders": bytes, "box_senders": bytes, "boxes": bytes}
        session, values = read_values(content, Phase.MASKED_INPUT, kinds)
        boxes = read_table(values, "box_senders", "boxes", BOX_BYTES)
        return cls(session, unpack_ids(values["senders"]), boxes)


@dataclass(frozen=True)
class MaskedInputReply:
    """The masked vector, packed to the ring's bits. train_seconds: wall time of the training."""

    session: SessionId
    packed: bytes
    train_seconds: float

    def to_content(self) -> RecordDict:
        """The Flower records that carry this reply, still without its signature."""
        values = {"train_seconds": float(self.train_seconds)}
        content = reply_content(self.session, Phase.MASKED_INPUT, values)
        array = Array("uint8", (len(self.packed),), _STYPE, self.packed)
        content[MASKED] = ArrayRecord({MASKED: array})
        return content

    @classmethod
    def from_content(
        cls, content: RecordDict, session: SessionId, num_bytes: int
    ) -> MaskedInputReply:
        """Parse; the array must hold exactly num_bytes. Errors: WireError, a RejectionReason."""
        kinds = {"train_seconds": float}
        values = read_reply(content, Phase.MASKED_INPUT, session, kinds, also={MASKED})
        seconds = values["train_seconds"]
        demand(math.isfinite(seconds) and seconds >= 0, "train_seconds of 0 or more")
        record = content[MASKED]
        demand(isinstance(record, ArrayRecord) and set(record) == {MASKED}, "one masked array")
        array = arrays_of(content, MASKED)[MASKED]
        if array.stype != _STYPE or array.dtype != "uint8":
            raise WireError(
                RejectionReason.WRONG_DTYPE,
                f"Expected uint8 as {_STYPE}, got {shown(array.dtype)} as {shown(array.stype)}.",
            )
        if len(array.data) != num_bytes or tuple(array.shape) != (num_bytes,):
            raise WireError(
                RejectionReason.WRONG_SHAPE,
                f"Expected {num_bytes} bytes, got {len(array.data)} as {array.shape}.",
            )
        return cls(session, array.data, seconds)


@dataclass(frozen=True)
class ConfirmRequest:
    """Sign the list of those whose masked inputs are in the sum."""

    session: SessionId
    survivors: tuple[str, ...]

    def to_content(self) -> RecordDict:
        """The Flower records that carry this request."""
        return request_content(self.session, Phase.CONFIRM, {"survivors": pack_ids(self.survivors)})

    @classmethod
    def from_content(cls, content: RecordDict) -> ConfirmRequest:
        """Parse. Errors: WireError with a RejectionReason."""
        session, values = read_values(content, Phase.CONFIRM, {"survivors": bytes})
        return cls(session, unpack_ids(values["survivors"]))


@dataclass(frozen=True)
class ConfirmReply:
    """The site's signature of the survivors' list, for the other sites to see."""

    session: SessionId
    confirmation: bytes

    def to_content(self) -> RecordDict:
        """The Flower records that carry this reply, still without its signature."""
        return reply_content(self.session, Phase.CONFIRM, {"confirmation": self.confirmation})

    @classmethod
    def from_content(cls, content: RecordDict, session: SessionId) -> ConfirmReply:
        """Parse. Errors: WireError with a RejectionReason."""
        values = read_reply(content, Phase.CONFIRM, session, {"confirmation": bytes})
        (signature,) = rows_of(values["confirmation"], 1, SIGNATURE_BYTES)
        return cls(session, signature)


@dataclass(frozen=True)
class UnmaskRequest:
    """Who signed the survivors' list, with their signatures (64 bytes each)."""

    session: SessionId
    confirmations: Mapping[str, bytes]

    def to_content(self) -> RecordDict:
        """The Flower records that carry this request."""
        rows = table("signers", "confirmations", self.confirmations)
        return request_content(self.session, Phase.UNMASK, rows)

    @classmethod
    def from_content(cls, content: RecordDict) -> UnmaskRequest:
        """Parse. Errors: WireError with a RejectionReason."""
        kinds = {"signers": bytes, "confirmations": bytes}
        session, values = read_values(content, Phase.UNMASK, kinds)
        return cls(session, read_table(values, "signers", "confirmations", SIGNATURE_BYTES))


@dataclass(frozen=True)
class UnmaskReply:
    """This site's shares: of the self-masks of survivors, of the mask keys of those who dropped."""

    session: SessionId
    self_mask_shares: Mapping[str, bytes]
    mask_key_shares: Mapping[str, bytes]

    def to_content(self) -> RecordDict:
        """The Flower records that carry this reply, still without its signature."""
        values = {
            **table("survivors", "self_mask_shares", self.self_mask_shares),
            **table("dropped", "mask_key_shares", self.mask_key_shares),
        }
        return reply_content(self.session, Phase.UNMASK, values)

    @classmethod
    def from_content(cls, content: RecordDict, session: SessionId) -> UnmaskReply:
        """Parse. Errors: WireError with a RejectionReason."""
        names = ("survivors", "self_mask_shares", "dropped", "mask_key_shares")
        values = read_reply(content, Phase.UNMASK, session, dict.fromkeys(names, bytes))
        self_mask = read_table(values, "survivors", "self_mask_shares", SHARE_BYTES)
        mask_key = read_table(values, "dropped", "mask_key_shares", SHARE_BYTES)
        demand(not set(self_mask) & set(mask_key), "one share of each site, never both")
        return cls(session, self_mask, mask_key)


PhaseReply = AdvertiseReply | ShareReply | MaskedInputReply | ConfirmReply | UnmaskReply


def parse_reply(
    content: RecordDict, phase: Phase, session: SessionId, num_masked_bytes: int
) -> PhaseReply:
    """A signed "ok" reply of a phase, as the coordinator reads it and the site's guard before it.

    num_masked_bytes: of a masked input. Errors: WireError whose code is a RejectionReason.
    """
    if phase is Phase.MASKED_INPUT:
        return MaskedInputReply.from_content(content, session, num_masked_bytes)
    if phase is Phase.ADVERTISE:
        return AdvertiseReply.from_content(content, session)
    if phase is Phase.SHARE:
        return ShareReply.from_content(content, session)
    if phase is Phase.CONFIRM:
        return ConfirmReply.from_content(content, session)
    return UnmaskReply.from_content(content, session)
