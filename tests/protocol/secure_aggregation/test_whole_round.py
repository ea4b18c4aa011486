"""The pieces together, without sessions or messages: what comes out is the survivors' mean."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest

from protocol.consortium.identity import Identity, verify
from protocol.consortium.roster import Member, Roster
from protocol.secure_aggregation.graph import Graph, circle, holders, threshold
from protocol.secure_aggregation.keys import (
    Advertisement,
    SessionKeys,
    channel_key,
    masking_private_key,
    opens_masking_key,
    opens_self_mask,
    pairwise_mask_seed,
    self_mask_key,
)
from protocol.secure_aggregation.masks import RingArray, add_masks_into, pairwise_sign
from protocol.secure_aggregation.ring import (
    RingParameters,
    Values,
    add_into,
    decode_sum,
    encode_input,
    pack_bits,
    unpack_bits,
)
from protocol.secure_aggregation.shares import (
    SharePair,
    combine,
    decrypt_shares,
    encrypt_shares,
    split,
)
from protocol.secure_aggregation.transcript import (
    SessionContext,
    cohort_digest,
    graph_seed,
    share_box_data,
    survivors_to_sign,
)
from tests.protocol.secure_aggregation.contexts import CONTEXT


@dataclass
class Site:
    """One site's secrets, and what it was told."""

    identity: Identity
    keys: SessionKeys
    held: dict[str, SharePair]

    @property
    def id(self) -> str:
        return self.identity.member_id


@dataclass
class Round:
    """What every site and the coordinator know after the keys were advertised."""

    context: SessionContext
    sites: dict[str, Site]
    advertised: dict[str, Advertisement]
    cohort: bytes
    graph: Graph


def start_round(num_sites: int, degree: int, bits: int) -> Round:
    sites = [Site(Identity.generate(), SessionKeys.generate(), {}) for _ in range(num_sites)]
    members = tuple(Member(f"Firm {i}", s.identity.public_key) for i, s in enumerate(sites))
    roster = Roster("Consortium", 1, members)
    ring = RingParameters.choose(bits, num_sites, 1.0, 7)
    context = replace(CONTEXT, roster_digest=roster.digest, ring=ring, degree=degree)
    advertised = {site.id: site.keys.advertise(context, site.identity) for site in sites}
    for advertisement in advertised.values():
        advertisement.verify(context, roster)
    cohort = cohort_digest(context, [(i, a.to_bytes()) for i, a in advertised.items()])
    graph = circle(sorted(advertised), degree, graph_seed(context, cohort))
    return Round(context, {site.id: site for site in sites}, advertised, cohort, graph)


def share_secrets(round_: Round) -> None:
    for sender in round_.sites.values():
        keepers = holders(sender.id, round_.graph)
        t = threshold(len(keepers))
        self_shares = split(sender.keys.self_mask_seed, t, len(keepers))
        key_shares = split(sender.keys.masking_seed, t, len(keepers))
        for keeper, one, other in zip(keepers, self_shares, key_shares, strict=True):
            receiver = round_.sites[keeper]
            pair = SharePair(one, other)
            if keeper != sender.id:
                pair = send(round_, sender, receiver, pair)
            receiver.held[sender.id] = pair


def send(round_: Round, sender: Site, receiver: Site, pair: SharePair) -> SharePair:
    context, ends = round_.context, (sender.id, receiver.id)
    data = share_box_data(context, round_.cohort, *ends)
    at_sender = channel_key(
        sender.keys.encryption_private,
        round_.advertised[receiver.id].encryption_key,
        context,
        *ends,
    )
    at_receiver = channel_key(
        receiver.keys.encryption_private,
        round_.advertised[sender.id].encryption_key,
        context,
        *ends,
    )
    return decrypt_shares(at_receiver, encrypt_shares(at_sender, pair, data), data)


def masked_input(round_: Round, site: Site, values: Values, weight: int) -> RingArray:
    context = round_.context
    total = encode_input(values, weight, context.ring)
    own = site.keys.masking_private(context, site.id)
    masks = [(site.keys.self_mask_key(context, site.id), 1)]
    for peer in round_.graph[site.id]:
        public = round_.advertised[peer].masking_key
        seed = pairwise_mask_seed(own, public, context, site.id, peer)
        masks.append((seed, pairwise_sign(site.id, peer)))
    add_masks_into(total, masks, context.ring.bits)
    return total


def open_masks(round_: Round, survivors: list[str]) -> list[tuple[bytes, int]]:
    """What the coordinator has to add to the sum, from one share of each survivor per site."""
    context, graph = round_.context, round_.graph
    masks = []
    for site_id in round_.sites:
        keepers = holders(site_id, graph)
        answering = {
            place: round_.sites[keeper].held[site_id]
            for place, keeper in enumerate(keepers, start=1)
            if keeper in survivors
        }
        t = threshold(len(keepers))
        if site_id in survivors:
            seed = combine({place: pair.self_mask for place, pair in answering.items()}, t)
            assert opens_self_mask(seed, context, round_.advertised[site_id])
            masks.append((self_mask_key(seed, context, site_id), -1))
            continue
        seed = combine({place: pair.masking_key for place, pair in answering.items()}, t)
        assert opens_masking_key(seed, context, round_.advertised[site_id])
        private = masking_private_key(seed, context, site_id)
        for peer in set(graph[site_id]) & set(survivors):
            public = round_.advertised[peer].masking_key
            shared = pairwise_mask_seed(private, public, context, site_id, peer)
            masks.append((shared, pairwise_sign(site_id, peer)))
    return masks


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
@pytest.mark.parametrize(
    ("num_sites", "degree", "num_dropped"),
    [(2, 1, 0), (3, 2, 0), (5, 4, 0), (5, 4, 1), (8, 7, 2), (12, 8, 0), (12, 8, 1)],
)
def test_the_coordinator_ends_up_with_the_survivors_weighted_mean(
    bits: int, num_sites: int, degree: int, num_dropped: int
) -> None:
    rng = np.random.default_rng(num_sites)
    round_ = start_round(num_sites, degree, bits)
    share_secrets(round_)
    survivors = random.Random(bits).sample(sorted(round_.sites), num_sites - num_dropped)
    ring = round_.context.ring
    updates = {site_id: rng.uniform(-1, 1, 11) for site_id in survivors}
    weights = {site_id: int(rng.integers(1, 8)) for site_id in survivors}
    total = np.zeros(12, dtype=np.uint32)
    for site_id in survivors:
        masked = masked_input(round_, round_.sites[site_id], updates[site_id], weights[site_id])
        packed = pack_bits(masked, bits)
        add_into(total, unpack_bits(packed, 12, bits), ring)
    add_masks_into(total, open_masks(round_, survivors), bits)
    mean, weight = decode_sum(total, ring, len(survivors))
    assert weight == sum(weights.values())
    expected = sum(weights[i] * updates[i] for i in survivors) / weight
    assert np.all(np.abs(mean - expected) <= len(survivors) * ring.resolution / weight + 1e-12)


def test_a_masked_input_alone_tells_nothing_of_the_update() -> None:
    """The same update twice, under other secrets, agrees in no more numbers than chance has it."""
    values = np.zeros(5000)
    one, other = (
        masked_input(start, next(iter(start.sites.values())), values, 1)
        for start in (start_round(3, 2, 16), start_round(3, 2, 16))
    )
    assert np.count_nonzero(one == other) < 10
    assert abs(one.mean() / 2**16 - 0.5) < 0.03


def test_a_survivor_list_signed_for_one_cohort_is_void_for_another() -> None:
    round_ = start_round(3, 2, 32)
    site = next(iter(round_.sites.values()))
    survivors = sorted(round_.sites)
    signed = survivors_to_sign(round_.context, round_.cohort, survivors)
    signature = site.identity.sign(signed)
    key = site.identity.public_key
    assert verify(key, signed, signature)
    for other in (
        survivors_to_sign(round_.context, os.urandom(32), survivors),
        survivors_to_sign(round_.context, round_.cohort, survivors[:2]),
        survivors_to_sign(replace(round_.context, attempt=2), round_.cohort, survivors),
    ):
        assert not verify(key, other, signature)
