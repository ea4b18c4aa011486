"""One attempt at a round of secure aggregation: its phases, one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message, RecordDict

from protocol.adapter import FloatArray
from protocol.errors import WireError
from protocol.reasons import RejectionReason
from protocol.secure_aggregation.messages import (
    AdvertiseReply,
    ConfirmReply,
    MaskedInputReply,
    PhaseReply,
    ShareReply,
    UnmaskReply,
)
from protocol.secure_aggregation.wire import Phase, RefusedBySite, content_size
from server.admission import SetAside

if TYPE_CHECKING:
    from server.secure_aggregation.round import SecureRound

log = logging.getLogger("foedus.server")


@dataclass
class SecureOutcome:
    """What a round came to. Node ids throughout, over all its attempts.

    mean: of the survivors' updates, or None where no sum could be opened; survivors are then none.
    server_seconds: spent on checking replies, adding inputs and taking masks off.
    """

    asked: tuple[int, ...]
    survivors: tuple[int, ...] = ()
    silent: set[int] = field(default_factory=set)
    set_aside: list[SetAside] = field(default_factory=list)
    train_seconds: dict[int, float] = field(default_factory=dict)
    mean: Mapping[str, FloatArray] | None = None
    total_weight: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    attempts: int = 0
    server_seconds: float = 0.0


class Attempt:
    """One session with one cohort."""

    def __init__(self, round_: SecureRound, outcome: SecureOutcome, cohort: list[int]) -> None:
        self._round = round_
        self._outcome = outcome
        self._cohort = cohort
        self._session = round_.new_session(len(cohort))
        self._member_of: dict[int, str] = {}
        self._failed: set[int] = set()
        self._blamed_by: dict[str, set[int]] = {}

    def run(self) -> None:
        """All phases; fills the outcome. Errors: Abandoned."""
        session = self._session
        self._advertise()
        session.close_advertising()
        share = session.share_request().to_content()
        self._phase(Phase.SHARE, dict.fromkeys(self._nodes(session.members), share))
        session.close_sharing()
        masked = {
            node: self._round.beside_training(
                session.masked_input_request(self._member_of[node]).to_content()
            )
            for node in self._nodes(session.senders)
        }
        self._phase(Phase.MASKED_INPUT, masked)
        session.close_masking()
        confirm = session.confirm_request().to_content()
        self._phase(Phase.CONFIRM, dict.fromkeys(self._nodes(session.survivors), confirm))
        session.close_confirming()
        unmask = session.unmask_request().to_content()
        self._phase(Phase.UNMASK, dict.fromkeys(self._nodes(session.confirmed), unmask))
        began = time.monotonic()
        try:
            mean, weight = session.open_sum()
        finally:
            self._outcome.server_seconds += time.monotonic() - began
            wrong = WireError(RejectionReason.BAD_SIGNATURE, "A share that opens nothing.")
            for node in self._nodes(tuple(session.liars)):
                self._set_aside(node, Phase.UNMASK, wrong)
        tensors = self._round.checked_mean(session, mean.astype(np.float32), weight)
        self._outcome.mean, self._outcome.total_weight = tensors, weight
        self._outcome.survivors = tuple(self._nodes(session.survivors))

    def unfit(self) -> set[int]:
        """Nodes that another attempt does without: those that were silent or set aside.

        Where two or more could not open the boxes of the same site, that site goes and they stay;
        the word of one alone is not enough against another.
        """
        blamed = {member: by for member, by in self._blamed_by.items() if len(by) > 1}
        excused = set().union(*blamed.values()) if blamed else set()
        return (self._failed - excused) | set(self._nodes(tuple(blamed)))

    def _advertise(self) -> None:
        content = self._session.advertise_request().to_content()
        self._phase(Phase.ADVERTISE, dict.fromkeys(self._cohort, content))

    def _nodes(self, members: tuple[str, ...]) -> list[int]:
        return sorted(node for node, member in self._member_of.items() if member in members)

    def _phase(self, phase: Phase, requests: Mapping[int, RecordDict]) -> None:
        gate = self._round.gate(self._session, phase, requests, self._member_of)
        outcome = self._outcome
        outcome.bytes_down += sum(content_size(content) for content in requests.values())
        answered: set[int] = set()

        def on_reply(node: int, message: Message) -> None:
            began = time.monotonic()
            reason = ""
            try:
                gate.admit(node, message, self._take)
                answered.add(node)
                outcome.bytes_up += content_size(message.content)
            except WireError as error:
                reason = error.code
                self._set_aside(node, phase, error)
                for member in error.blamed if isinstance(error, RefusedBySite) else ():
                    self._blamed_by.setdefault(member, set()).add(node)
            outcome.server_seconds += time.monotonic() - began
            self._round.record(phase, node, message, reason)
            if phase is Phase.MASKED_INPUT:
                self._round.hear_masked_input(node, node in answered)

        silent = self._round.ask(self._session, phase, requests, on_reply)
        outcome.silent.update(silent)
        self._failed.update(set(requests) - answered)

    def _take(self, node: int, reply: PhaseReply) -> None:
        """Hand a checked reply to the session. Errors: WireError."""
        session = self._session
        if isinstance(reply, AdvertiseReply):
            self._member_of[node] = session.take_advertisement(reply)
        elif isinstance(reply, ShareReply):
            session.take_boxes(self._member_of[node], reply)
        elif isinstance(reply, MaskedInputReply):
            session.take_masked_input(self._member_of[node], reply)
            self._outcome.train_seconds[node] = reply.train_seconds
        elif isinstance(reply, ConfirmReply):
            session.take_confirmation(self._member_of[node], reply)
        elif isinstance(reply, UnmaskReply):
            session.take_shares(self._member_of[node], reply)

    def _set_aside(self, node: int, phase: Phase, error: WireError) -> None:
        reason = RejectionReason(error.code)
        refused = reason is RejectionReason.REFUSED_BY_SITE
        detail = f"{phase}: {error}" if refused else str(phase)
        self._outcome.set_aside.append(SetAside(node, reason, detail))
        log.warning("Set aside the %s reply of node %d (%s): %s", phase, node, reason, error)
