"""One round of secure aggregation over a Flower Grid: phases, deadlines, dropouts, new attempts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from protocol.adapter import FloatArray, Layout, layout_size, unpack
from protocol.consortium.roster import Roster
from protocol.errors import WireError
from protocol.messages import ARRAYS, CONFIG, Request
from protocol.reasons import RejectionReason
from protocol.secure_aggregation.messages import (
    AdvertiseReply,
    ConfirmReply,
    MaskedInputReply,
    PhaseReply,
    ShareReply,
    UnmaskReply,
)
from protocol.secure_aggregation.task import ring_of, task_digest
from protocol.secure_aggregation.wire import (
    DEADLINE_SHARES,
    SECURE,
    Phase,
    RefusedBySite,
    SessionId,
    Terms,
    content_size,
)
from server.admission import SetAside
from server.exchange import exchange
from server.receipts.received import Asked, Received, Unrecorded
from server.secure_aggregation.attempts import AttemptCounter
from server.secure_aggregation.gate import PhaseGate
from server.secure_aggregation.session import FEWEST_SITES, Abandoned, CoordinatorSession

log = logging.getLogger("foedus.server")

# A site clips in float32; see server.admission.
_NORM_TOLERANCE = 1e-5


class RoundObserver(Protocol):
    """Hears of a round as it goes on; see server.coordinator.Observer."""

    def phase_started(self, round_: int, attempt: int, phase: str, num_sites: int) -> None:
        """A phase asks so many sites."""

    def reply_handled(self, round_: int, node_id: int, kind: str, admitted: bool) -> None:
        """One masked input was admitted or set aside."""


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


class SecureRound:
    """One round. uploaded: the layout of an update; received: hears of every reply."""

    def __init__(
        self,
        grid: Grid,
        request: Request,
        uploaded: Layout,
        roster: Roster,
        counter: AttemptCounter,
        observer: RoundObserver,
        received: Received | None = None,
    ) -> None:
        self._grid = grid
        self._request = request
        self._settings = request.settings
        self._uploaded = uploaded
        self._roster = roster
        self._counter = counter
        self._observer = observer
        self._received = received or Unrecorded()
        self._train_content = request.to_content()
        self._task_digest = task_digest(request, uploaded)

    def run(self, cohort: list[int]) -> SecureOutcome:
        """Ask the cohort; after an abandoned attempt those who answered in it, under new keys.

        Each attempt has the round's whole deadline, though sites that have trained do not train
        again. Errors: FoedusError where the ring is too small for the cohort.
        """
        outcome = SecureOutcome(tuple(sorted(cohort)))
        for _ in range(self._settings.secure_aggregation.attempts):
            if len(cohort) < max(FEWEST_SITES, self._settings.federation.quorum):
                log.warning(
                    "Round %d: %d sites are too few for secure aggregation.",
                    self._request.round, len(cohort),
                )  # fmt: skip
                break
            outcome.attempts += 1
            attempt = _Attempt(self, outcome, cohort)
            try:
                attempt.run()
                break
            except Abandoned as error:
                log.warning(
                    "Round %d: attempt %d is given up, nothing was revealed by it: %s",
                    self._request.round, outcome.attempts, error,
                )  # fmt: skip
            cohort = [node for node in cohort if node not in attempt.unfit()]
        return outcome

    def new_session(self, num_sites: int) -> CoordinatorSession:
        """A session under a number that none has had before."""
        run, request = self._settings, self._request
        attempt = self._counter.next(request.run_id, request.round)
        ring = ring_of(run, num_sites)
        terms = Terms(
            self._roster.digest,
            self._task_digest,
            ring.bits,
            ring.num_sites_max,
            ring.coordinate_bound,
            ring.weight_cap,
            run.secure_aggregation.degree,
        )
        return CoordinatorSession(
            SessionId(request.run_id, request.round, attempt),
            terms,
            self._roster,
            layout_size(self._uploaded),
            run.federation.quorum,
        )

    def ask(
        self,
        session: CoordinatorSession,
        phase: Phase,
        requests: Mapping[int, RecordDict],
        on_reply: Callable[[int, Message], None],
    ) -> tuple[int, ...]:
        """Send a phase's requests and hand over the replies; returns who stayed silent."""
        name = session.session
        self._observer.phase_started(name.round, name.attempt, phase.value, len(requests))
        deadline = DEADLINE_SHARES[phase] * self._settings.federation.deadline_seconds
        kind = MessageType.TRAIN if phase is Phase.MASKED_INPUT else MessageType.QUERY
        group = str(session.session.round)
        messages = [
            Message(content, node, kind, group_id=group, ttl=deadline)
            for node, content in requests.items()
        ]
        reply_bytes = session.num_masked_bytes if phase is Phase.MASKED_INPUT else 0
        return exchange(self._grid, messages, deadline, on_reply, reply_bytes).silent

    def beside_training(self, content: RecordDict) -> RecordDict:
        """The records of a masked input's request: its own, and the TrainRequest's."""
        train = self._train_content
        return RecordDict({SECURE: content[SECURE], ARRAYS: train[ARRAYS], CONFIG: train[CONFIG]})

    def gate(
        self,
        session: CoordinatorSession,
        phase: Phase,
        requests: Mapping[int, RecordDict],
        member_of: Mapping[int, str],
    ) -> PhaseGate:
        """The admission of one phase."""
        return PhaseGate(
            session.session, phase, requests, self._roster, member_of, session.num_masked_bytes
        )

    def record(self, phase: Phase, node: int, message: Message, reason: str) -> None:
        """Keep that a reply came. reason: why it was set aside. Errors: FoedusError."""
        asked = Asked(self._request.run_id, self._request.round, "train", phase)
        self._received.reply_came(asked, node, message, reason)

    def hear_masked_input(self, node: int, admitted: bool) -> None:
        """Tell whoever watches the run."""
        self._observer.reply_handled(self._request.round, node, "train", admitted)

    def checked_mean(
        self, session: CoordinatorSession, mean: FloatArray, weight: int
    ) -> dict[str, FloatArray]:
        """The mean as tensors. Errors: Abandoned where it is longer than any mean of clipped
        updates: then a site of the round has sent nonsense."""
        federation = self._settings.federation
        per_coordinate = session.terms.ring.resolution * len(session.survivors) / weight
        rounding = per_coordinate * float(np.sqrt(mean.size))
        bound = federation.update_norm_bound * (1 + _NORM_TOLERANCE) + rounding
        norm = float(np.linalg.norm(mean.astype(np.float64)))
        if not norm <= bound:
            raise Abandoned(f"Expected a mean update of norm at most {bound:.6g}, got {norm:.6g}.")
        return unpack(mean, self._uploaded)


class _Attempt:
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
