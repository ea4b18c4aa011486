"""The coordinator learns the sum, whoever drops out when, and learns nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.secure_aggregation.session import SitePart
from protocol.adapter import FloatArray
from protocol.secure_aggregation.graph import threshold
from protocol.secure_aggregation.keys import SessionKeys
from protocol.secure_aggregation.masks import RingArray, add_masks_into
from protocol.secure_aggregation.wire import Phase
from server.secure_aggregation.session import Abandoned
from tests.secure_sessions import (
    BOUND,
    IDENTITIES,
    ROSTER,
    PureSite,
    Session,
    make_coordinator,
    make_sites,
    terms_for,
)

PHASES = tuple(Phase)
NEVER = len(PHASES)
NUM_VALUES = 3


def inputs_of(num_sites: int, num_values: int = NUM_VALUES, seed: int = 0) -> list[FloatArray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-BOUND, BOUND, num_values).astype(np.float32) for _ in range(num_sites)]


def expected_survivors(pattern: Sequence[int]) -> tuple[list[int], Phase | None]:
    """(indices in the sum, the phase in which too few are left), by the rules alone."""
    left = [i for i, phase in enumerate(pattern) if phase > 0]
    if len(left) < 2:
        return [], Phase.ADVERTISE
    needed = threshold(len(left))
    in_sum: list[int] = []
    for number, phase in enumerate(PHASES[1:], start=1):
        left = [i for i in left if pattern[i] > number]
        if len(left) < needed:
            return [], phase
        if phase is Phase.MASKED_INPUT:
            in_sum = left
    return in_sum, None


def patterns() -> list[tuple[int, ...]]:
    """For each site the phase in which it drops out: all patterns of 2 to 4 sites, and of 5 sites
    all but those that differ in the order of the sites alone."""
    choices = range(NEVER + 1)
    found = [p for n in (2, 3, 4) for p in itertools.product(choices, repeat=n)]
    return found + list(itertools.combinations_with_replacement(choices, 5))


def test_the_sum_is_the_survivors_sum_or_the_session_ends_with_nothing_opened() -> None:
    opened = abandoned = 0
    for pattern in patterns():
        num_sites = len(pattern)
        values, weights = inputs_of(num_sites), [3 * i + 1 for i in range(num_sites)]
        sites = make_sites(values, weights)
        coordinator = make_coordinator(num_sites, NUM_VALUES, weight_cap=20)
        drops = {
            phase: [i for i, p in enumerate(pattern) if p == number]
            for number, phase in enumerate(PHASES)
        }
        session = Session(coordinator, sites, drops)
        in_sum, failing = expected_survivors(pattern)
        if failing is None:
            mean, weight = session.run()
            total = sum(weights[i] for i in in_sum)
            plain = sum(weights[i] * values[i].astype(np.float64) for i in in_sum) / total
            resolution = coordinator.terms.ring.resolution
            assert weight == total
            np.testing.assert_allclose(mean, plain, atol=len(in_sum) * resolution / total)
            opened += 1
        else:
            with pytest.raises(Abandoned):
                session.run()
            if failing is not Phase.UNMASK:
                assert not any(hasattr(reply, "self_mask_shares") for reply in session.view)
            abandoned += 1
    assert opened > 40 and abandoned > 1000


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_extreme_inputs_of_all_sites_do_not_wrap_around(bits: int) -> None:
    for sign in (1.0, -1.0):
        values = [np.full(5, sign * BOUND, np.float32)] * 4
        coordinator = make_coordinator(4, 5, bits=bits, weight_cap=7)
        mean, weight = Session(coordinator, make_sites(values, [7] * 4)).run()
        resolution = coordinator.terms.ring.resolution
        np.testing.assert_allclose(mean, sign * BOUND, atol=4 * resolution / weight)


@given(
    num_sites=st.integers(2, 8),
    num_values=st.integers(1, 70),
    bits=st.sampled_from([16, 20, 24, 32]),
    seed=st.integers(0, 1000),
)
def test_any_size_and_any_number_of_sites_gives_the_plain_mean(
    num_sites: int, num_values: int, bits: int, seed: int
) -> None:
    values = inputs_of(num_sites, num_values, seed)
    coordinator = make_coordinator(num_sites, num_values, bits=bits)
    mean, weight = Session(coordinator, make_sites(values)).run()
    assert weight == num_sites
    resolution = coordinator.terms.ring.resolution
    np.testing.assert_allclose(mean, np.mean(values, axis=0, dtype=np.float64), atol=resolution)


def test_a_sparse_graph_recovers_dropouts_too() -> None:
    values = inputs_of(20)
    coordinator = make_coordinator(20, NUM_VALUES, degree=14)
    drops = {Phase.MASKED_INPUT: [2, 11], Phase.UNMASK: [5]}
    session = Session(coordinator, make_sites(values), drops)
    mean, weight = session.run()
    assert weight == 18
    assert all(len(reply.boxes) == 14 for reply in session.view if hasattr(reply, "boxes"))
    left = [v for i, v in enumerate(values) if i not in (2, 11)]
    plain = np.mean(left, axis=0, dtype=np.float64)
    np.testing.assert_allclose(mean, plain, atol=coordinator.terms.ring.resolution)


def test_a_graph_too_thin_for_the_cohort_ends_the_session_before_anything_is_shared() -> None:
    session = Session(make_coordinator(20, NUM_VALUES, degree=4), make_sites(inputs_of(20)))
    with pytest.raises(Abandoned, match="neighbours"):
        session.advertise()


@pytest.mark.parametrize(
    ("num_sites", "liars", "traced"), [(5, {0}, {0}), (5, {4}, set()), (20, {0, 7}, {0, 7})]
)
def test_wrong_shares_do_not_stop_the_others_and_are_traced_where_they_were_used(
    num_sites: int, liars: set[int], traced: set[int]
) -> None:
    """Numbers are places in the order of member ids; the first t shares are used first."""
    values = inputs_of(num_sites)
    coordinator = make_coordinator(num_sites, NUM_VALUES)
    session = Session(coordinator, make_sites(values))
    for phase in (session.advertise, session.share, session.mask, session.confirm):
        phase()
    request = coordinator.unmask_request()
    in_order = sorted(session.sites, key=lambda site: site.member_id)
    for place, site in enumerate(in_order):
        reply = site.unmask(request)
        if place in liars:
            wrong = {m: bytes(16) for m in reply.self_mask_shares}
            reply = replace(reply, self_mask_shares=wrong)
        coordinator.take_shares(site.member_id, reply)
    mean, _ = coordinator.open_sum()
    np.testing.assert_allclose(mean, np.mean(values, axis=0, dtype=np.float64), atol=1e-6)
    assert coordinator.liars == {in_order[place].member_id for place in traced}


def test_where_too_many_shares_are_wrong_nothing_is_opened() -> None:
    coordinator = make_coordinator(4, NUM_VALUES)
    session = Session(coordinator, make_sites(inputs_of(4)))
    for phase in (session.advertise, session.share, session.mask, session.confirm):
        phase()
    request = coordinator.unmask_request()
    for index, site in enumerate(session.sites):
        reply = site.unmask(request)
        if index < 2:
            reply = replace(reply, self_mask_shares={m: bytes(16) for m in reply.self_mask_shares})
        coordinator.take_shares(site.member_id, reply)
    with pytest.raises(Abandoned, match="does not follow the protocol"):
        coordinator.open_sum()


# --- The whole view ---


class Randomness:
    """Bytes that repeat from one world to the next."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(99)

    def __call__(self, count: int) -> bytes:
        return self._rng.bytes(count)


def whole_view(
    monkeypatch: pytest.MonkeyPatch,
    inputs: Sequence[FloatArray],
    shift: RingArray | None,
    drops: dict[Phase, list[int]],
) -> list[Any]:
    """All that the coordinator receives. shift: what the mask of the first two sites is lower by.

    Everything random repeats; half a unit rounds to the nearest number.
    """
    randomness = Randomness()
    monkeypatch.setattr("protocol.secure_aggregation.shares.os.urandom", randomness)
    monkeypatch.setattr("Crypto.Protocol.SecretSharing.rng", randomness)
    pair_seeds: dict[bytes, int] = {}

    def add_masks(total: RingArray, masks: Sequence[tuple[bytes, int]], bits: int) -> None:
        add_masks_into(total, masks, bits)
        for seed, sign in masks[1:]:
            pair_seeds[seed] = pair_seeds.get(seed, 0) + 1
            if shift is not None and seed == swapped[0]:
                total -= np.uint32(sign) * shift if sign > 0 else np.uint32(0)
                total += shift if sign < 0 else np.uint32(0)

    swapped: list[bytes] = [b""]
    sites = [
        PureSite(
            SitePart(
                IDENTITIES[i],
                ROSTER,
                make_keys=lambda: SessionKeys(randomness(32), randomness(16), randomness(16)),
                rounding=lambda count: b"\x00\x00\x00\x80" * (count // 4),
                add_masks=add_masks,
            ),
            values,
        )
        for i, values in enumerate(inputs)
    ]
    session = Session(make_coordinator(len(inputs), NUM_VALUES), sites, drops)
    session.advertise()
    session.share()
    swapped[0] = shared_seed(sites[0], sites[1])
    session.mask()
    session.confirm()
    session.unmask()
    mean, weight = session.coordinator.open_sum()
    return [*session.view, mean.tolist(), weight]


def shared_seed(one: PureSite, other: PureSite) -> bytes:
    from protocol.secure_aggregation.keys import pairwise_mask_seed

    mine, theirs = one.memory.current, other.memory.current
    assert mine is not None and theirs is not None
    context = mine.terms.context(mine.session)
    public = theirs.keys.advertise(context, other.part.identity).masking_key
    private = mine.keys.masking_private(context, one.member_id)
    return pairwise_mask_seed(private, public, context, one.member_id, other.member_id)


@pytest.mark.parametrize("drops", [{}, {Phase.MASKED_INPUT: [4]}, {Phase.CONFIRM: [1]}], ids=str)
def test_the_coordinator_s_whole_view_is_the_same_for_all_inputs_of_one_sum(
    monkeypatch: pytest.MonkeyPatch, drops: dict[Phase, list[int]]
) -> None:
    """A world where one site has d more and another d less, and the mask between them is d lower,
    looks the same byte for byte; masks being uniform, both worlds are equally likely."""
    resolution = terms_for(5).ring.resolution
    rng = np.random.default_rng(1)
    whole = [rng.integers(-1000, 1000, NUM_VALUES) for _ in range(5)]
    d = rng.integers(1, 1000, NUM_VALUES)

    def inputs(numbers: Sequence[Any]) -> list[FloatArray]:
        # float64, so that each input is exactly a number of the ring.
        return [np.asarray(n * resolution) for n in numbers]

    first = IDENTITIES[0].member_id < IDENTITIES[1].member_id
    shift = np.append(d if first else -d, 0).astype(np.int64).astype(np.uint32)
    moved = [whole[0] + d, whole[1] - d, *whole[2:]]
    one = whole_view(monkeypatch, inputs(whole), None, drops)
    same = whole_view(monkeypatch, inputs(moved), shift, drops)
    assert one == same
    # The control: without the swap of masks, or with another sum, the view is another.
    assert whole_view(monkeypatch, inputs(moved), None, drops) != one
    other_sum = [whole[0] + d, *whole[1:]]
    assert whole_view(monkeypatch, inputs(other_sum), shift, drops) != one
