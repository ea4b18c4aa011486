"""What a site does with one message of a secure session: check it, answer it, sign the answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from flwr.app import RecordDict

from client.admission import admit_request, admit_session
from client.egress import release_phase
from client.enrolment.trusted_roster import trusted_roster
from client.secure_aggregation.kept_update import KeptUpdate, UpdateStore
from client.secure_aggregation.memory import MemoryStore, RunMemory, forget_stale_sessions
from client.secure_aggregation.session import FEWEST_SITES, SitePart, UnopenedBoxes
from client.secure_aggregation.trainer import ModelTrainer, Trainer
from client.site import Site
from protocol.adapter import Layout, layout_size
from protocol.consortium.identity import load_identity
from protocol.consortium.passphrase import read_passphrase
from protocol.errors import FoedusError, Refusal, WireError, place_of, text_of
from protocol.messages import ARRAYS, CONFIG, Request
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.messages import (
    AdvertiseRequest,
    ConfirmRequest,
    MaskedInputReply,
    MaskedInputRequest,
    PhaseReply,
    ShareRequest,
    UnmaskRequest,
)
from protocol.secure_aggregation.packing import packed_size
from protocol.secure_aggregation.task import ring_of, task_digest
from protocol.secure_aggregation.wire import (
    SECURE,
    Phase,
    SessionId,
    Terms,
    read_header,
    refusal_content,
    signed_statement,
    with_signature,
)

log = logging.getLogger("foedus.client")

_UNKNOWN = (Phase.ADVERTISE, SessionId("0" * 32, 1, 1))


def answer_phase(
    site: Site, content: RecordDict, *, training: bool, trainer: Trainer | None = None
) -> RecordDict:
    """The reply to any message of a session, however broken; never raises on what came in.

    training: the message came as a request to train, as masked inputs do, and they alone. Failures
    travel as reason codes, as in client.rounds.answer. trainer: the site's own, but in tests.
    """
    phase, session = _UNKNOWN
    answers: _Answers | None = None
    try:
        phase, session = read_header(content)
        if training is not (phase is Phase.MASKED_INPUT):
            raise Refusal(RefusalReason.WRONG_PHASE, f"Got {phase} as another type of message.")
        answers = _Answers(site, session, trainer or ModelTrainer(site))
        reply = answers.signed(content, phase)
    except (Refusal, WireError) as error:
        log.warning("Refused a %s request (%s): %s", phase, error.code, text_of(error))
        known = error.code in set(RefusalReason)
        code = error.code if known else RefusalReason.MALFORMED_REQUEST
        blamed = error.senders if isinstance(error, UnopenedBoxes) else ()
        reply = refusal_content(phase, session, code, blamed)
    except FoedusError as error:
        log.error("Failed on a %s request: %s", phase, text_of(error))
        reply = refusal_content(phase, session, RefusalReason.INTERNAL)
    except Exception as error:
        log.error("Failed on a %s request: %s", phase, place_of(error))
        reply = refusal_content(phase, session, RefusalReason.INTERNAL)
    num_masked_bytes = answers.num_masked_bytes if answers else 0
    return release_phase(reply, phase, session, num_masked_bytes, site.receipts, site.ledger.head)


def decline_phase(site: Site, content: RecordDict, refusal: Refusal) -> RecordDict:
    """The reply to a message of a session that is not to be followed, whatever it asks.

    Errors: client.egress.NoReceipt; then nothing may leave.
    """
    try:
        phase, session = read_header(content)
    except WireError:
        phase, session = _UNKNOWN
    log.warning("Refused a %s request (%s): %s", phase, refusal.code, refusal)
    reply = refusal_content(phase, session, refusal.code)
    return release_phase(reply, phase, session, 0, site.receipts, site.ledger.head)


class _Answers:
    """One site's answers in one session. num_masked_bytes: what the agreed layout takes, once a
    masked input was asked for."""

    def __init__(self, site: Site, session: SessionId, trainer: Trainer) -> None:
        self._site = site
        self._part = _part_of(site)
        self._session = session
        self._trainer = trainer
        self._store = MemoryStore(site.state_folder, session.run_id)
        self._updates = UpdateStore(self._store.folder)
        self.num_masked_bytes = 0

    def signed(self, content: RecordDict, phase: Phase) -> RecordDict:
        """The reply with this site's signature over it and its request. Errors: Refusal, WireError,
        FoedusError."""
        answer = self._masked if phase is Phase.MASKED_INPUT else self._stepped
        reply = answer(content, phase).to_content()
        statement = signed_statement(content, reply)
        return with_signature(reply, self._part.identity.sign(statement))

    def _stepped(self, content: RecordDict, phase: Phase) -> PhaseReply:
        """A phase without training. What it changes is on disk before its reply leaves."""
        if set(content) != {SECURE}:
            raise Refusal(RefusalReason.MALFORMED_REQUEST, "Expected one record in this phase.")
        if phase is Phase.ADVERTISE:
            admit_session(self._site, self._session.run_id)
        step = self._step(content, phase)
        with self._store.locked():
            memory, reply = step(self._store.load())
            self._store.save(memory)
        if phase is Phase.ADVERTISE:
            self._updates.forget_all_but(self._session.round)
            forget_stale_sessions(self._site.state_folder, time.time())
        return reply

    def _step(
        self, content: RecordDict, phase: Phase
    ) -> Callable[[RunMemory], tuple[RunMemory, PhaseReply]]:
        part = self._part
        if phase is Phase.ADVERTISE:
            advertise = AdvertiseRequest.from_content(content)
            return lambda memory: part.advertise(memory, advertise)
        if phase is Phase.SHARE:
            share = ShareRequest.from_content(content)
            return lambda memory: part.share(memory, share)
        if phase is Phase.CONFIRM:
            confirm = ConfirmRequest.from_content(content)
            return lambda memory: part.confirm(memory, confirm)
        unmask = UnmaskRequest.from_content(content)
        return lambda memory: part.unmask(memory, unmask)

    def _masked(self, content: RecordDict, phase: Phase) -> MaskedInputReply:
        """Train, or take the update that an earlier attempt of the round has trained; mask it."""
        masked = MaskedInputRequest.from_content(content)
        rest = RecordDict({key: content[key] for key in content if key != SECURE})
        if set(rest) != {ARRAYS, CONFIG}:
            raise Refusal(RefusalReason.MALFORMED_REQUEST, "Expected a train request beside it.")
        request = Request.from_content(rest, "train")
        admit_request(self._site, request)
        uploaded = self._trainer.uploaded(request)
        bits = request.settings.secure_aggregation.bits
        self.num_masked_bytes = packed_size(layout_size(uploaded) + 1, bits)
        with self._store.locked():
            memory, terms = self._part.begin_masking(self._store.load(), masked)
            _check_task(terms, self._session, request, uploaded)
            # Before training: from here on a crash costs this site the attempt, never two inputs.
            self._store.save(memory)
        update = self._update(request, memory.task_digest)
        packed = self._part.masked_input(memory, update.values, update.weight)
        tells_time = self._site.settings.policy.lets_out("train_seconds")
        seconds = update.train_seconds if tells_time else 0.0
        return MaskedInputReply(masked.session, packed, seconds)

    def _update(self, request: Request, digest: str) -> KeptUpdate:
        known = self._updates.load(request.round, digest)
        if known is not None:
            log.info("Round %d: masking the update of an earlier attempt.", request.round)
            return known
        update = self._trainer.train(request)
        with self._store.locked():
            self._updates.save(request.round, digest, update)
        return update


def _check_task(terms: Terms, session: SessionId, request: Request, uploaded: Layout) -> None:
    """Errors: Refusal where the train request is not the one whose digest the sites have signed."""
    same_round = (request.run_id, request.round) == (session.run_id, session.round)
    if not same_round or task_digest(request, uploaded) != terms.task_digest:
        raise Refusal(
            RefusalReason.WRONG_PHASE,
            "Expected the settings and the adapter that the session was opened for, got others.",
        )
    run, secure = request.settings, request.settings.secure_aggregation
    ring = ring_of(run, terms.num_sites_max)
    if not secure.enabled or ring != terms.ring or secure.degree != terms.degree:
        raise Refusal(
            RefusalReason.POLICY, "Expected the session's terms to follow from the run's settings."
        )


def _part_of(site: Site) -> SitePart:
    """Errors: FoedusError where this site has no identity or no roster."""
    if site.identity_file is None or site.roster_file is None:
        raise FoedusError(
            "Expected `identity` and `roster` in site.yaml, as the run aggregates securely, got "
            "none. Make an identity, have it entered in the consortium's roster, and name both."
        )
    trusted = trusted_roster(site.roster_file, site.invitation_file, time.time())
    return SitePart(
        load_identity(site.identity_file, read_passphrase(site.passphrase_file)),
        trusted.roster,
        max(FEWEST_SITES, site.settings.policy.minimum_cohort),
        trusted.digests,
    )
