"""A site's side of a session: from what it remembers and a request, to new memory and a reply.

Nothing here reads or writes files or messages. Every rule that keeps an update hidden from a
coordinator that does not follow the protocol is in this module:

- keys are taken from roster members alone, each signed for this very session, and a site answers
  under a roster, terms and a task (settings, adapter, layout) that all sites of a session share;
- at least `minimum_cohort` sites, and never fewer than two, are in a sum;
- every phase is answered once, in order, and no attempt or round is gone back to;
- of one site either the share of the self-mask or that of the masking key is told, never both, and
  only for a list that t = floor(2n/3) + 1 of the n sites of the session have signed. Two lists
  would need more than n/3 sites to sign twice;
- in one round a site helps to open the sum of one list of survivors only, whatever the attempt:
  the difference of two sums of the same updates could be one site's update.

What it does not cover: more than n/3 colluding sites; a coordinator that asks for nearly the same
updates again, in another round or run and of another cohort, and compares the sums: against that
only privacy.mode=dp helps. A hostile site can spoil a sum, and nobody can tell which site it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from client.secure_aggregation.memory import RunMemory, SessionState, Stage
from client.secure_aggregation.view import SessionView, split_secrets
from protocol.adapter import FloatArray
from protocol.consortium.identity import Identity, verify
from protocol.consortium.roster import Roster
from protocol.errors import Refusal, WireError
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.graph import threshold
from protocol.secure_aggregation.keys import SessionKeys, pairwise_mask_seed
from protocol.secure_aggregation.masks import RingArray, add_masks_into, pairwise_sign
from protocol.secure_aggregation.messages import (
    AdvertiseReply,
    AdvertiseRequest,
    ConfirmReply,
    ConfirmRequest,
    MaskedInputRequest,
    ShareReply,
    ShareRequest,
    UnmaskReply,
    UnmaskRequest,
)
from protocol.secure_aggregation.ring import RandomBytes, encode_input, pack_bits
from protocol.secure_aggregation.shares import (
    SharePair,
    decrypt_shares,
    encrypt_shares,
)
from protocol.secure_aggregation.wire import SessionId, Terms

FEWEST_SITES = 2


class UnopenedBoxes(Refusal):
    """Some neighbours' shares are not what they should be. senders: their member ids, which the
    coordinator is told, so that it can try again without who sends such boxes to many."""

    def __init__(self, senders: tuple[str, ...]) -> None:
        self.senders = senders
        super().__init__(
            RefusalReason.BAD_SIGNATURE,
            f"Expected boxes sealed for this site and session, got {len(senders)} others.",
        )


@dataclass(frozen=True)
class SitePart:
    """What a site brings to every session. minimum_cohort: of its policy. roster_digests: rosters
    that a session may be held under beside `roster`, which alone says whose keys count.

    make_keys, rounding and add_masks: where secrets, the coins of stochastic rounding and masks
    come from; never set but in tests.
    """

    identity: Identity
    roster: Roster
    minimum_cohort: int = FEWEST_SITES
    roster_digests: frozenset[str] = frozenset()
    make_keys: Callable[[], SessionKeys] = SessionKeys.generate
    rounding: RandomBytes | None = None
    add_masks: Callable[[RingArray, Sequence[tuple[bytes, int]], int], None] = add_masks_into

    def advertise(
        self, memory: RunMemory, request: AdvertiseRequest
    ) -> tuple[RunMemory, AdvertiseReply]:
        """Make new keys and sign them. An unfinished session is forgotten with its secrets.

        Errors: Refusal where the round or attempt is not a newer one, the round trains on something
        else than before, or the roster is another.
        """
        session, terms = request.session, request.terms
        self._expect_own_roster(terms)
        again = session.round == memory.round
        newer = session.attempt > memory.attempt if again else session.round > memory.round
        if not newer:
            raise Refusal(
                RefusalReason.WRONG_PHASE,
                f"Expected a session after round {memory.round}, attempt {memory.attempt}, got "
                f"round {session.round}, attempt {session.attempt}.",
            )
        if again and terms.task_digest != memory.task_digest:
            raise Refusal(
                RefusalReason.WRONG_PHASE,
                f"Expected another attempt at round {session.round} to train on the same adapter "
                "and settings as the first, got others.",
            )
        state = SessionState(session, terms, self.make_keys())
        advertisement = state.keys.advertise(terms.context(session), self.identity)
        revealed = memory.revealed if again else ()
        memory = RunMemory(session.round, session.attempt, terms.task_digest, revealed, state)
        return memory, AdvertiseReply(session, advertisement)

    def share(self, memory: RunMemory, request: ShareRequest) -> tuple[RunMemory, ShareReply]:
        """Check whose keys were relayed, and split this site's two secrets among its holders.

        Errors: Refusal; WireError where a key is not a member's own.
        """
        state = _at_stage(memory, request.session, Stage.ADVERTISED)
        self._check_advertisements(state, request)
        state = replace(state, stage=Stage.SHARED, advertisements=request.advertisements)
        view = SessionView(state, self.identity.member_id)
        pairs = split_secrets(state.keys, view.holders)
        own = self.identity.member_id
        boxes = {
            receiver: encrypt_shares(
                view.channel(own, receiver), pair, view.box_data(own, receiver)
            )
            for receiver, pair in pairs.items()
            if receiver != own
        }
        state = replace(state, received={own: pairs[own]})
        return replace(memory, current=state), ShareReply(request.session, boxes)

    def begin_masking(
        self, memory: RunMemory, request: MaskedInputRequest
    ) -> tuple[RunMemory, Terms]:
        """Check who shared and open the boxes. Save the result before anything is trained: from
        here on this session masks once and never again. The terms are those of the session.

        Errors: Refusal; UnopenedBoxes where a box does not open.
        """
        state = _at_stage(memory, request.session, Stage.SHARED)
        view = SessionView(state, self.identity.member_id)
        self._check_list(view, request.senders, view.members, "sites that shared their secrets")
        _expect_the_list_of_before(memory, request.senders)
        expected = set(view.neighbours) & set(request.senders)
        if set(request.boxes) != expected:
            raise Refusal(
                RefusalReason.MALFORMED_REQUEST,
                f"Expected the boxes of {len(expected)} neighbours, got {len(request.boxes)}.",
            )
        if len(expected) + 1 < threshold(len(view.holders)):
            raise Refusal(
                RefusalReason.COHORT_TOO_SMALL,
                f"Expected {threshold(len(view.holders)) - 1} of this site's neighbours to be "
                f"left, got {len(expected)}.",
            )
        received = {**state.received, **self._opened(view, request.boxes)}
        state = replace(state, stage=Stage.MASKED, senders=request.senders, received=received)
        return replace(memory, current=state), state.terms

    def masked_input(self, memory: RunMemory, values: FloatArray, weight: int) -> bytes:
        """The packed, masked vector of `values` (n,) and `weight`; call once after begin_masking.

        Errors: FoedusError where a value is over the terms' bound or the weight over the cap.
        """
        state = memory.current
        if state is None or state.stage is not Stage.MASKED:
            raise Refusal(RefusalReason.WRONG_PHASE, "Expected a session that is to mask.")
        own, context = self.identity.member_id, state.terms.context(state.session)
        view = SessionView(state, own)
        private = state.keys.masking_private(context, own)
        peers = [p for p in view.neighbours if p in set(state.senders)]
        masks = [(state.keys.self_mask_key(context, own), 1)] + [
            (
                pairwise_mask_seed(private, view.by_member[p].masking_key, context, own, p),
                pairwise_sign(own, p),
            )
            for p in peers
        ]
        total = encode_input(values, weight, state.terms.ring, self.rounding)
        self.add_masks(total, masks, state.terms.bits)
        return pack_bits(total, state.terms.bits).tobytes()

    def confirm(self, memory: RunMemory, request: ConfirmRequest) -> tuple[RunMemory, ConfirmReply]:
        """Sign the list of survivors; one list a session. Errors: Refusal."""
        state = _at_stage(memory, request.session, Stage.MASKED)
        view = SessionView(state, self.identity.member_id)
        self._check_list(view, request.survivors, state.senders, "survivors")
        _expect_the_list_of_before(memory, request.survivors)
        state = replace(state, stage=Stage.CONFIRMED, survivors=request.survivors)
        signature = self.identity.sign(view.survivors_to_sign(request.survivors))
        return replace(memory, current=state), ConfirmReply(request.session, signature)

    def unmask(self, memory: RunMemory, request: UnmaskRequest) -> tuple[RunMemory, UnmaskReply]:
        """Hand out one share of each site that shared, and forget the session.

        Errors: Refusal unless t sites of the list have signed the list this site has signed.
        """
        state = _at_stage(memory, request.session, Stage.CONFIRMED)
        view = SessionView(state, self.identity.member_id)
        statement = view.survivors_to_sign(state.survivors)
        for signer, signature in request.confirmations.items():
            known = signer in state.survivors
            key = self.roster.member(signer).public_key if known else b""
            if not known or not verify(key, statement, signature):
                raise Refusal(
                    RefusalReason.BAD_SIGNATURE,
                    "Expected signatures by survivors, of the list this site has signed.",
                )
        if len(request.confirmations) < view.threshold:
            raise Refusal(
                RefusalReason.COHORT_TOO_SMALL,
                f"Expected {view.threshold} signatures of the survivors' list, got "
                f"{len(request.confirmations)}.",
            )
        survived = set(state.survivors)
        received = state.received
        reply = UnmaskReply(
            request.session,
            {m: pair.self_mask for m, pair in received.items() if m in survived},
            {m: pair.masking_key for m, pair in received.items() if m not in survived},
        )
        return replace(memory, revealed=state.survivors, current=None), reply

    def _opened(self, view: SessionView, boxes: Mapping[str, bytes]) -> dict[str, SharePair]:
        own = self.identity.member_id
        opened: dict[str, SharePair] = {}
        for sender, box in boxes.items():
            try:
                key = view.channel(sender, own)
                opened[sender] = decrypt_shares(key, box, view.box_data(sender, own))
            except WireError:
                continue
        if unopened := tuple(sorted(set(boxes) - set(opened))):
            raise UnopenedBoxes(unopened)
        return opened

    def _expect_own_roster(self, terms: Terms) -> None:
        if terms.roster_digest not in self.roster_digests | {self.roster.digest}:
            raise Refusal(
                RefusalReason.UNKNOWN_MEMBER,
                f"Expected the roster {self.roster.digest[:12]}…, the coordinator has "
                f"{terms.roster_digest[:12]}…. Both must hold the same file, or this site a newer "
                "version of it.",
            )
        self.roster.member(self.identity.member_id)

    def _check_advertisements(self, state: SessionState, request: ShareRequest) -> None:
        context = state.terms.context(state.session)
        for advertisement in request.advertisements:
            advertisement.verify(context, self.roster)
        if state.keys.advertise(context, self.identity) not in request.advertisements:
            raise Refusal(
                RefusalReason.BAD_SIGNATURE, "Expected this site's own keys among those relayed."
            )
        num_sites = len(request.advertisements)
        self._expect_enough(num_sites, self._fewest)
        if num_sites > state.terms.num_sites_max:
            raise Refusal(
                RefusalReason.MALFORMED_REQUEST,
                f"Expected at most the {state.terms.num_sites_max} sites of the terms, got "
                f"{num_sites}.",
            )

    def _check_list(
        self, view: SessionView, members: Sequence[str], known: Sequence[str], what: str
    ) -> None:
        strangers = set(members) - set(known)
        if strangers or self.identity.member_id not in members:
            raise Refusal(
                RefusalReason.UNKNOWN_MEMBER,
                f"Expected {what} out of the {len(known)} known, this site among them; got "
                f"{len(strangers)} others.",
            )
        self._expect_enough(len(members), max(self._fewest, view.threshold))

    @property
    def _fewest(self) -> int:
        return max(FEWEST_SITES, self.minimum_cohort)

    @staticmethod
    def _expect_enough(num_sites: int, fewest: int) -> None:
        if num_sites < fewest:
            raise Refusal(
                RefusalReason.COHORT_TOO_SMALL,
                f"Expected {fewest} sites at least, got {num_sites}.",
            )


def _expect_the_list_of_before(memory: RunMemory, members: Sequence[str]) -> None:
    if memory.revealed and memory.revealed != tuple(members):
        raise Refusal(
            RefusalReason.WRONG_PHASE,
            "This site has helped to open the sum of another list of sites in this round: two sums "
            "of the same updates could be subtracted from each other.",
        )


def _at_stage(memory: RunMemory, session: SessionId, stage: Stage) -> SessionState:
    """The current session. Errors: Refusal where the request is of another, or out of turn."""
    state = memory.current
    if state is None or state.session != session or state.stage is not stage:
        now = "no open session" if state is None else f"attempt {state.session}, {state.stage}"
        raise Refusal(
            RefusalReason.WRONG_PHASE,
            f"Got a request of {session} for a session that is {stage}; this site has {now}.",
        )
    return state
