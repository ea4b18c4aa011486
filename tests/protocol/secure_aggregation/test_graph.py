from __future__ import annotations

import itertools
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FoedusError
from protocol.secure_aggregation.graph import (
    COMPLETE_UP_TO,
    EXPOSURE_BOUND,
    LOSS_BOUND,
    Graph,
    choose_degree,
    circle,
    exposure_bound,
    holders,
    loss_bound,
    neighbours,
    resolve_degree,
    threshold,
)


def site_ids(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


def reachable(graph: Graph, start: str, among: set[str]) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        for peer in graph[waiting.pop()]:
            if peer in among and peer not in found:
                found.add(peer)
                waiting.append(peer)
    return found


@given(size=st.integers(2, 130), seed=st.binary(min_size=32, max_size=32), data=st.data())
def test_a_graph_is_symmetric_regular_connected_and_without_loops(
    size: int, seed: bytes, data: st.DataObject
) -> None:
    even = st.integers(1, max(1, (size - 1) // 2)).map(lambda half: 2 * half)
    degree = data.draw(st.one_of(st.just(size - 1), even))
    graph = circle(site_ids(size), degree, seed)
    assert sorted(graph) == site_ids(size)
    for site, peers in graph.items():
        assert len(set(peers)) == len(peers) == min(degree, size - 1)
        assert site not in peers
        assert list(peers) == sorted(peers)
        assert all(site in graph[peer] for peer in peers)
    assert reachable(graph, site_ids(size)[0], set(graph)) == set(graph)


@given(size=st.integers(2, COMPLETE_UP_TO))
def test_few_sites_mask_with_everyone(size: int) -> None:
    graph = neighbours(site_ids(size), 0, bytes(32))
    assert all(len(peers) == size - 1 for peers in graph.values())


@pytest.mark.parametrize("size", [33, 50, 64, 100])
def test_many_sites_mask_with_part_of_the_others(size: int) -> None:
    graph = neighbours(site_ids(size), 0, os.urandom(32))
    assert {len(peers) for peers in graph.values()} == {choose_degree(size)}
    assert choose_degree(size) < 0.8 * size


def test_the_graph_depends_on_seed_and_members_and_not_on_their_order() -> None:
    ids = site_ids(50)
    shuffled = random.Random(1).sample(ids, 50)
    assert neighbours(ids, 0, bytes(32)) == neighbours(shuffled, 0, bytes(32))
    assert neighbours(ids, 0, bytes(32)) != neighbours(ids, 0, b"\1" * 32)


def test_over_seeds_everyone_is_everyones_neighbour_equally_often() -> None:
    ids, times = site_ids(12), 1500
    counts = dict.fromkeys(ids[1:], 0)
    for _ in range(times):
        for peer in circle(ids, 4, os.urandom(32))[ids[0]]:
            counts[peer] += 1
    expected = times * 4 / 11
    assert all(abs(count - expected) < 0.2 * expected for count in counts.values())


@pytest.mark.parametrize(
    ("num_holders", "expected"),
    [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (20, 14), (50, 34)],
)
def test_threshold_is_two_thirds_and_one(num_holders: int, expected: int) -> None:
    assert threshold(num_holders) == expected


@given(num_holders=st.integers(1, 500))
def test_two_quorums_share_more_than_a_third(num_holders: int) -> None:
    common = 2 * threshold(num_holders) - num_holders
    assert common > num_holders / 3
    assert threshold(num_holders) <= num_holders


@pytest.mark.parametrize("size", [33, 40, 50, 64, 100, 200])
def test_the_chosen_degree_is_the_least_within_the_bounds(size: int) -> None:
    degree = choose_degree(size)
    assert exposure_bound(size, degree) <= EXPOSURE_BOUND
    assert loss_bound(size, degree) <= LOSS_BOUND
    smaller = degree - 2
    assert exposure_bound(size, smaller) > EXPOSURE_BOUND or loss_bound(size, smaller) > LOSS_BOUND


def test_bounds_are_chances_that_trials_agree_with() -> None:
    """By drawing: 20 sites, degree 8, 4 drop out: some site left with fewer than 7 of 9 holders."""
    ids, rng, times = site_ids(20), random.Random(0), 800
    lost = 0
    for _ in range(times):
        graph = circle(ids, 8, rng.randbytes(32))
        gone = set(rng.sample(ids, 4))
        left = [len(set(holders(site, graph)) - gone) for site in ids if site not in gone]
        lost += min(left) < threshold(9)
    # The union bound is over what single sites suffer, so it may only lie above.
    assert 0 < lost / times <= loss_bound(20, 8)


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_of_dropouts_separates_survivors_that_can_be_opened(seed: int) -> None:
    """Every set of up to 4 dropouts of 12 sites with 8 neighbours each."""
    rng = random.Random(seed)
    ids = site_ids(12)
    graph = circle(ids, 8, rng.randbytes(32))
    for gone_count in range(1, 5):
        for gone in itertools.combinations(ids, gone_count):
            survivors = set(ids) - set(gone)
            opened = all(
                len(survivors & set(holders(site, graph))) >= threshold(9) for site in survivors
            )
            if opened:
                assert reachable(graph, min(survivors), survivors) == survivors


def test_a_degree_that_would_single_sites_out_is_refused() -> None:
    for size, degree in ((50, 2), (50, choose_degree(50) - 2), (10, 2)):
        with pytest.raises(FoedusError, match="single sites out"):
            neighbours(site_ids(size), degree, bytes(32))


def test_degrees_are_made_even_and_capped_by_the_cohort() -> None:
    least = choose_degree(50)
    assert resolve_degree(50, least) == resolve_degree(50, least - 1) == least
    assert resolve_degree(50, 49) == resolve_degree(50, 1000) == 49
    assert resolve_degree(5, 100) == 4
    assert resolve_degree(5, 0) == 4


def test_holders_are_a_site_and_its_neighbours_in_order() -> None:
    graph = neighbours(site_ids(5), 0, bytes(32))
    assert holders(site_ids(5)[2], graph) == tuple(site_ids(5))
    sparse = circle(site_ids(9), 4, bytes(32))
    for site in sparse:
        assert set(holders(site, sparse)) == {site, *sparse[site]}
        assert list(holders(site, sparse)) == sorted(holders(site, sparse))


def test_sites_that_stand_twice_or_alone_are_refused() -> None:
    with pytest.raises(FoedusError, match="each site once"):
        neighbours(["a", "b", "a"], 0, bytes(32))
    with pytest.raises(FoedusError, match="at least 2 sites"):
        neighbours(["a"], 0, bytes(32))
    with pytest.raises(FoedusError, match="even degree"):
        circle(site_ids(9), 3, bytes(32))
    with pytest.raises(FoedusError, match="at least one holder"):
        threshold(0)
