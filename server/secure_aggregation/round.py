"""One round of secure aggregation over a Flower Grid: deadlines, dropouts, new attempts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from protocol.adapter import FloatArray, Layout, layout_size, unpack
from protocol.consortium.roster import Roster
from protocol.messages import ARRAYS, CONFIG, Request
from protocol.secure_aggregation.task import ring_of, task_digest
from protocol.secure_aggregation.wire import (
    DEADLINE_SHARES,
    SECURE,
    Phase,
    SessionId,
    Terms,
)
from server.exchange import exchange
from server.observer import Observer
from server.receipts.received import Asked, Received, Unrecorded
from server.secure_aggregation.attempt import Attempt, SecureOutcome
from server.secure_aggregation.attempts import AttemptCounter
from server.secure_aggregation.gate import PhaseGate
from server.secure_aggregation.session import FEWEST_SITES, Abandoned, CoordinatorSession

log = logging.getLogger("foedus.server")

# A site clips in float32; see server.admission.
_NORM_TOLERANCE = 1e-5


class SecureRound:
    """One round. uploaded: the layout of an update; received: hears of every reply."""

    def __init__(
        self,
        grid: Grid,
        request: Request,
        uploaded: Layout,
        roster: Roster,
        counter: AttemptCounter,
        observer: Observer,
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
            attempt = Attempt(self, outcome, cohort)
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
        """The records of a masked input's request: its own, and the train request's."""
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
