"""The coordinator's side of one session: values in, values out, and one ring vector in memory.

The phases are closed one after the other: `close_…` fixes who goes on, and raises Abandoned where
too few are left. Until `open_sum` the coordinator holds nothing but the sum of masked inputs, which
without the shares of t sites is as random as its masks. Every input is checked before it counts;
nothing that a site sends can raise anything but WireError out of a `take_…`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import SystemRandom

import numpy as np
from numpy.typing import NDArray

from protocol.consortium.identity import verify
from protocol.consortium.roster import Roster
from protocol.errors import FoedusError, WireError
from protocol.reasons import RejectionReason
from protocol.secure_aggregation.graph import holders, neighbours, threshold
from protocol.secure_aggregation.keys import (
    Advertisement,
    exchange,
    masking_private_key,
    opens_masking_key,
    opens_self_mask,
    pairwise_mask_seed,
    self_mask_key,
)
from protocol.secure_aggregation.masks import add_masks_into, pairwise_sign
from protocol.secure_aggregation.messages import (
    AdvertiseReply,
    AdvertiseRequest,
    ConfirmReply,
    ConfirmRequest,
    MaskedInputReply,
    MaskedInputRequest,
    ShareReply,
    ShareRequest,
    UnmaskReply,
    UnmaskRequest,
)
from protocol.secure_aggregation.packing import packed_size
from protocol.secure_aggregation.ring import add_packed_into, decode_sum
from protocol.secure_aggregation.shares import combine
from protocol.secure_aggregation.transcript import cohort_digest, graph_seed, survivors_to_sign
from protocol.secure_aggregation.wire import SessionId, Terms

FEWEST_SITES = 2
# Random choices of t shares tried where a site's reconstructed secret is not what it advertised. Of
# the shares of all holders, one wrong one is left out of a choice with a chance of 1/3, two of 1/9.
_TRIES = 200
_PROBE = bytes(range(32))


class Abandoned(FoedusError):
    """Too few sites are left in a session: nothing of it may be opened. The text says where."""


class CoordinatorSession:
    """One session. num_values: coordinates of an update, without the weight.

    fewest: sites in a sum at least, whatever the threshold. liars: members that told wrong shares.
    """

    def __init__(
        self,
        session: SessionId,
        terms: Terms,
        roster: Roster,
        num_values: int,
        fewest: int = FEWEST_SITES,
    ) -> None:
        self.session = session
        self.terms = terms
        self._roster = roster
        self._context = terms.context(session)
        self._num_values = num_values
        self._fewest = max(FEWEST_SITES, fewest)
        self._advertised: dict[str, Advertisement] = {}
        self._boxes: dict[str, Mapping[str, bytes]] = {}
        self._total: NDArray[np.uint32] | None = None
        self._masked: set[str] = set()
        self._confirmations: dict[str, bytes] = {}
        self._shares: dict[str, UnmaskReply] = {}
        self.members: tuple[str, ...] = ()
        self.senders: tuple[str, ...] = ()
        self.survivors: tuple[str, ...] = ()
        self.liars: set[str] = set()

    # --- Advertise ---

    def advertise_request(self) -> AdvertiseRequest:
        """The same for every site."""
        return AdvertiseRequest(self.session, self.terms)

    def take_advertisement(self, reply: AdvertiseReply) -> str:
        """The member id of whoever advertised. Errors: WireError."""
        advertisement = reply.advertisement
        if advertisement.member_id in self._advertised:
            raise WireError(RejectionReason.DUPLICATE, "This member has advertised already.")
        advertisement.verify(self._context, self._roster)
        for key in (advertisement.encryption_key, advertisement.masking_key):
            # Whatever the private key, this refuses a point that no site could agree on keys with.
            exchange(_PROBE, key)
        self._advertised[advertisement.member_id] = advertisement
        return advertisement.member_id

    def close_advertising(self) -> None:
        """Fix the members, the graph and the thresholds. Errors: Abandoned."""
        self._expect_enough(len(self._advertised), self._fewest, "advertised keys")
        self.members = tuple(sorted(self._advertised))
        rows = [(m, a.to_bytes()) for m, a in self._advertised.items()]
        self._cohort = cohort_digest(self._context, rows)
        seed = graph_seed(self._context, self._cohort)
        try:
            self._graph = neighbours(self.members, self.terms.degree, seed)
        except FoedusError as error:
            raise Abandoned(f"The sites cannot be joined in a mask graph: {error}") from error
        self.threshold = threshold(len(self.members))

    # --- Share ---

    def share_request(self) -> ShareRequest:
        """The same for every member."""
        return ShareRequest(self.session, tuple(self._advertised[m] for m in self.members))

    def take_boxes(self, member: str, reply: ShareReply) -> None:
        """Keep a member's sealed boxes to relay them. Errors: WireError."""
        if set(reply.boxes) != set(self._graph[member]):
            raise WireError(RejectionReason.MALFORMED, "Expected one box for each neighbour.")
        self._boxes[member] = reply.boxes

    def close_sharing(self) -> None:
        """Fix who masks. Errors: Abandoned."""
        self._expect_enough(len(self._boxes), max(self._fewest, self.threshold), "shared secrets")
        self.senders = tuple(sorted(self._boxes))

    # --- Masked input ---

    @property
    def num_masked_bytes(self) -> int:
        """Exact size of a masked input."""
        return packed_size(self._num_values + 1, self.terms.bits)

    def masked_input_request(self, member: str) -> MaskedInputRequest:
        """Each member's own: the boxes that are meant for it."""
        sending = set(self.senders).intersection(self._graph[member])
        boxes = {sender: self._boxes[sender][member] for sender in sending}
        return MaskedInputRequest(self.session, self.senders, boxes)

    def take_masked_input(self, member: str, reply: MaskedInputReply) -> None:
        """Add it to the sum; the input itself is not kept. Errors: WireError."""
        if self._total is None:
            self._total = np.zeros(self._num_values + 1, dtype=np.uint32)
        packed = np.frombuffer(reply.packed, dtype=np.uint8)
        add_packed_into(self._total, packed, self.terms.ring)
        self._masked.add(member)

    def close_masking(self) -> None:
        """Fix the survivors, whose inputs are in the sum. Errors: Abandoned."""
        needed = max(self._fewest, self.threshold)
        self._expect_enough(len(self._masked), needed, "sent a masked input")
        self.survivors = tuple(sorted(self._masked))
        for sender in self.senders:
            own_holders = holders(sender, self._graph)
            left = len(self._masked.intersection(own_holders))
            self._expect_enough(left, threshold(len(own_holders)), "can open a site's secret")

    # --- Confirm ---

    def confirm_request(self) -> ConfirmRequest:
        """The same for every survivor."""
        return ConfirmRequest(self.session, self.survivors)

    def take_confirmation(self, member: str, reply: ConfirmReply) -> None:
        """Keep a survivor's signature to show it to the others. Errors: WireError."""
        statement = survivors_to_sign(self._context, self._cohort, self.survivors)
        if not verify(self._roster.member(member).public_key, statement, reply.confirmation):
            raise WireError(RejectionReason.BAD_SIGNATURE, "Not a signature of the list asked for.")
        self._confirmations[member] = reply.confirmation

    def close_confirming(self) -> None:
        """Errors: Abandoned."""
        self._expect_enough(len(self._confirmations), self.threshold, "confirmed the survivors")

    @property
    def confirmed(self) -> tuple[str, ...]:
        """Who signed the survivors' list."""
        return tuple(sorted(self._confirmations))

    # --- Unmask ---

    def unmask_request(self) -> UnmaskRequest:
        """The same for every site that confirmed."""
        return UnmaskRequest(self.session, dict(self._confirmations))

    def take_shares(self, member: str, reply: UnmaskReply) -> None:
        """Keep a member's shares of each site that it holds one of. Errors: WireError."""
        held = set(holders(member, self._graph)).intersection(self.senders)
        survived = set(self.survivors)
        if (
            set(reply.self_mask_shares) != held & survived
            or set(reply.mask_key_shares) != held - survived
        ):
            raise WireError(RejectionReason.MALFORMED, "Expected a share of each site it holds.")
        self._shares[member] = reply

    def open_sum(self) -> tuple[NDArray[np.float64], int]:
        """(weighted mean (n,), sum of weights) over the survivors. Call it once.

        Errors: Abandoned where shares are missing or wrong, or the sum is no sum of valid inputs.
        """
        if self._total is None or not self._masked:
            raise Abandoned("Expected masked inputs, got none.")
        masks: list[tuple[bytes, int]] = []
        for survivor in self.survivors:
            seed = self._secret(survivor, dropped=False)
            masks.append((self_mask_key(seed, self._context, survivor), -1))
        for dropped in sorted(set(self.senders) - set(self.survivors)):
            masks += self._masks_towards(dropped)
        add_masks_into(self._total, masks, self.terms.bits)
        try:
            return decode_sum(self._total, self.terms.ring, len(self.survivors))
        except FoedusError as error:
            raise Abandoned(f"The sum cannot be read: {error}") from error

    def _masks_towards(self, dropped: str) -> list[tuple[bytes, int]]:
        """What takes off the masks that survivors share with a site that dropped out."""
        private = masking_private_key(self._secret(dropped, dropped=True), self._context, dropped)
        peers = sorted(set(self._graph[dropped]).intersection(self.survivors))
        return [
            (
                pairwise_mask_seed(
                    private, self._advertised[peer].masking_key, self._context, dropped, peer
                ),
                pairwise_sign(dropped, peer),
            )
            for peer in peers
        ]

    def _secret(self, member: str, *, dropped: bool) -> bytes:
        """A site's seed from its holders' shares, checked against what the site advertised."""
        shares: dict[str, bytes] = {}
        own_holders = holders(member, self._graph)
        for holder in own_holders:
            if holder in self._shares and holder not in self.liars:
                reply = self._shares[holder]
                kind = reply.mask_key_shares if dropped else reply.self_mask_shares
                shares[holder] = kind[member]
        needed = threshold(len(own_holders))
        self._expect_enough(len(shares), needed, "sent a right share of one site's secret")
        secret = _Secret(shares, own_holders, needed)
        opens = opens_masking_key if dropped else opens_self_mask
        found = secret.find(lambda seed: opens(seed, self._context, self._advertised[member]))
        if found is None:
            raise Abandoned(
                "Expected shares that open what a site advertised, got wrong ones: a site of this "
                "round does not follow the protocol."
            )
        seed, liars = found
        self.liars |= liars
        return seed

    @staticmethod
    def _expect_enough(num_sites: int, needed: int, what: str) -> None:
        if num_sites < needed:
            raise Abandoned(f"Expected {needed} sites that {what}, got {num_sites}.")


class _Secret:
    """Shares of one secret by holder, some of which may be wrong."""

    def __init__(
        self, shares: Mapping[str, bytes], own_holders: Sequence[str], needed: int
    ) -> None:
        self._shares = shares
        self._index = {holder: index for index, holder in enumerate(own_holders, start=1)}
        self._needed = needed

    def find(self, is_right: Callable[[bytes], bool]) -> tuple[bytes, set[str]] | None:
        """(the secret, whose shares were wrong), or None where no choice of shares gives it."""
        chosen = sorted(self._shares)[: self._needed]
        first = self._combined(chosen)
        if is_right(first):
            return first, set()
        draw = SystemRandom()
        for _ in range(_TRIES):
            chosen = draw.sample(sorted(self._shares), self._needed)
            seed = self._combined(chosen)
            if is_right(seed):
                left = set(self._shares) - set(chosen)
                liars = {h for h in left if self._combined([*chosen[1:], h]) != seed}
                return seed, liars
        return None

    def _combined(self, chosen: Sequence[str]) -> bytes:
        return combine({self._index[h]: self._shares[h] for h in chosen}, self._needed)
