"""What follows from a session's relayed keys: its digest, mask graph, thresholds and channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from client.secure_aggregation.memory import SessionState
from protocol.secure_aggregation.graph import holders, neighbours, threshold
from protocol.secure_aggregation.keys import SessionKeys, channel_key
from protocol.secure_aggregation.shares import SharePair, split
from protocol.secure_aggregation.transcript import (
    cohort_digest,
    graph_seed,
    share_box_data,
    survivors_to_sign,
)


class SessionView:
    """A session as one site sees it. members: whose keys were relayed; neighbours: whom it masks
    with; holders: who has shares of its secrets; threshold: signatures that open a sum."""

    def __init__(self, state: SessionState, own_id: str) -> None:
        self._keys = state.keys
        self._context = state.terms.context(state.session)
        self.by_member = {a.member_id: a for a in state.advertisements}
        self.members = tuple(sorted(self.by_member))
        rows = [(a.member_id, a.to_bytes()) for a in state.advertisements]
        self._cohort = cohort_digest(self._context, rows)
        seed = graph_seed(self._context, self._cohort)
        graph = neighbours(self.members, state.terms.degree, seed)
        self._own = own_id
        self.neighbours = graph[own_id]
        self.holders = holders(own_id, graph)
        self.threshold = threshold(len(self.members))

    def channel(self, sender: str, receiver: str) -> bytes:
        """The key of boxes between this site and another, in one direction."""
        peer = receiver if sender == self._own else sender
        return channel_key(
            self._keys.encryption_private,
            self.by_member[peer].encryption_key,
            self._context,
            sender,
            receiver,
        )

    def box_data(self, sender: str, receiver: str) -> bytes:
        """What a box is bound to."""
        return share_box_data(self._context, self._cohort, sender, receiver)

    def survivors_to_sign(self, survivors: Sequence[str]) -> bytes:
        """What is signed in confirm."""
        return survivors_to_sign(self._context, self._cohort, survivors)


def split_secrets(keys: SessionKeys, own_holders: Sequence[str]) -> Mapping[str, SharePair]:
    """One pair of shares for each holder, in their order."""
    needed = threshold(len(own_holders))
    self_mask = split(keys.self_mask_seed, needed, len(own_holders))
    masking = split(keys.masking_seed, needed, len(own_holders))
    return {
        holder: SharePair(*pair)
        for holder, pair in zip(own_holders, zip(self_mask, masking, strict=True), strict=True)
    }
