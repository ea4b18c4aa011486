"""Dealing contracts out to sites."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.contracts import Contract
from simulations.partition import PartitionError, SitePartition, SitesSettings, partition
from simulations.site_names import numbered_names, site_names


def contracts(count: int, part: str = "train", firms: int = 5, labels: int = 4) -> list[Contract]:
    """Firm k holds a share ~ k + 1; labels go round."""
    holders = [firm for firm in range(firms) for _ in range(firm + 1)]
    return [
        Contract(
            text=f"{part} {n}",
            source=f"{part}-{n}",
            label=f"label{n % labels}",
            fields={"company": f"Firm {holders[n % len(holders)]}"},
        )
        for n in range(count)
    ]


def used(sites: Sequence[SitePartition]) -> list[str]:
    return [contract.source for site in sites for contract in site.train + site.test]


def test_sites_by_field_are_the_largest_groups_with_their_own_test_contracts() -> None:
    sites = partition(
        contracts(300),
        contracts(150, "test"),
        SitesSettings("company", num_sites=3, train_examples_per_site=70),
    )
    assert [site.name for site in sites] == ["firm-4", "firm-3", "firm-2"]
    assert [len(site.train) for site in sites] == [70, 70, 60]
    assert [len(site.test) for site in sites] == [50, 40, 30]
    for site in sites:
        companies = {contract.fields["company"] for contract in site.train + site.test}
        assert companies == {f"Firm {site.name[-1]}"}


def test_a_site_may_have_no_test_contracts() -> None:
    sites = partition(contracts(300), [], SitesSettings("company", num_sites=2))
    assert [len(site.test) for site in sites] == [0, 0]


def test_given_sites_are_all_of_them_in_the_order_of_their_names() -> None:
    train = [
        dataclasses.replace(contract, fields={"site": contract.fields["company"]})
        for contract in contracts(300)
    ]
    sites = partition(train, [], SitesSettings("given", num_sites=2))
    assert [site.name for site in sites] == [f"firm-{n}" for n in range(5)]
    with pytest.raises(PartitionError, match=r"Firm 0 \(20\)"):
        partition(train, [], SitesSettings("given", min_examples_per_site=30))


def test_too_few_groups_is_an_error_that_says_which_are_too_small() -> None:
    with pytest.raises(PartitionError, match=r"4 sites.*got 3 of 5.*Firm 0 \(20\), Firm 1 \(40\)"):
        partition(contracts(300), [], SitesSettings("company", 4, min_examples_per_site=50))


def test_an_unknown_field_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(PartitionError, match=r"'compny'.*company \(5\)"):
        partition(contracts(300), [], SitesSettings("compny"))


@pytest.mark.parametrize("sites_by", ["iid", "dirichlet", "quantity"])
def test_too_few_contracts_is_an_error_that_names_the_settings(sites_by: str) -> None:
    with pytest.raises(PartitionError, match=r"num_sites.*min_examples_per_site"):
        partition(contracts(30), [], SitesSettings(sites_by, 6, min_examples_per_site=20))


def test_dirichlet_skew_falls_with_alpha() -> None:
    train, test = contracts(1200), contracts(600, "test")

    def mean_share_of_commonest_label(alpha: float) -> float:
        sites = partition(
            train, test, SitesSettings("dirichlet", 5, 100, 50, dirichlet_alpha=alpha)
        )
        assert {len(site.train) for site in sites} == {100}
        shares = [
            Counter(contract.label for contract in site.train).most_common(1)[0][1] / 100
            for site in sites
        ]
        return float(np.mean(shares))

    skewed, mild = mean_share_of_commonest_label(0.05), mean_share_of_commonest_label(100.0)
    assert skewed > 0.7 and mild < 0.4


def test_a_site_of_a_dirichlet_partition_is_tested_on_its_own_mix() -> None:
    sites = partition(
        contracts(4000), contracts(2000, "test"), SitesSettings("dirichlet", 4, 300, 200)
    )
    for site in sites:
        train = Counter(contract.label for contract in site.train)
        test = Counter(contract.label for contract in site.test)
        for label in train | test:
            assert abs(train[label] / 300 - test[label] / 200) < 0.15


def test_quantity_skew_follows_the_power_law() -> None:
    sites = partition(
        contracts(1000),
        contracts(100, "test"),
        SitesSettings("quantity", 5, train_examples_per_site=120, quantity_exponent=1.0),
    )
    assert [len(site.train) for site in sites] == [120, 60, 40, 30, 24]
    assert {len(site.test) for site in sites} == {20}


@settings(max_examples=80, deadline=None)
@given(
    sites_by=st.sampled_from(["company", "dirichlet", "quantity", "iid"]),
    num_sites=st.integers(1, 5),
    train_count=st.integers(0, 200),
    test_count=st.integers(0, 60),
    train_cap=st.integers(1, 60),
    test_cap=st.integers(0, 20),
    alpha=st.floats(0.001, 50.0),
    seed=st.integers(0, 5),
)
def test_every_contract_is_used_at_most_once_within_caps_and_repeatably(
    sites_by: str,
    num_sites: int,
    train_count: int,
    test_count: int,
    train_cap: int,
    test_cap: int,
    alpha: float,
    seed: int,
) -> None:
    train, test = contracts(train_count), contracts(test_count, "test")
    chosen = SitesSettings(
        sites_by,
        num_sites,
        train_cap,
        test_cap,
        dirichlet_alpha=alpha,
        min_examples_per_site=1,
        seed=seed,
    )
    try:
        sites = partition(train, test, chosen)
    except PartitionError:
        assert train_count < 80 or train_cap < num_sites
        return
    assert len(sites) == num_sites
    sources = used(sites)
    assert len(set(sources)) == len(sources)
    for site in sites:
        assert 1 <= len(site.train) <= train_cap and len(site.test) <= test_cap
        assert all(contract.source.startswith("train") for contract in site.train)
        assert all(contract.source.startswith("test") for contract in site.test)
    assert partition(train, test, chosen) == sites


@pytest.mark.parametrize("sites_by", ["company", "dirichlet", "quantity", "iid"])
def test_the_seed_changes_the_draw(sites_by: str) -> None:
    first, second = (
        partition(contracts(600), [], SitesSettings(sites_by, 3, 40, seed=seed)) for seed in (0, 1)
    )
    assert used(first) != used(second)


def test_names_that_read_alike_are_told_apart() -> None:
    values = ["A & B", "a b", "a-b-2", "Ä/B", "../..", "日本", "CON", "x" * 99, "x" * 98]
    names = site_names(values)
    assert names[:4] == ["a-b", "a-b-2", "a-b-2-2", "a-b-3"]
    assert names[4:7] == ["site", "site-2", "site-con"]


@given(st.lists(st.text(max_size=60), unique=True, max_size=30))
def test_names_are_safe_and_different(values: list[str]) -> None:
    names = site_names(values)
    assert len({name.casefold() for name in names}) == len(values)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]{0,59}", name) for name in names)


def test_numbered_names_sort_by_number() -> None:
    names = numbered_names(120)
    assert names[0] == "site-001" and sorted(names) == names


@pytest.mark.parametrize("sites_by", ["company", "iid"])
def test_a_site_keeps_whole_matters_and_no_more_than_asked(sites_by: str) -> None:
    train = [
        dataclasses.replace(contract, matter=f"matter {n % 12}" if n % 13 else None)
        for n, contract in enumerate(contracts(300))
    ]
    whole = partition(train, [], SitesSettings(sites_by, num_sites=3))
    few = partition(train, [], SitesSettings(sites_by, num_sites=3, matters_per_site=4))
    for part, all_of_it in zip(few, whole, strict=True):
        matters = {contract.matter for contract in part.train}
        assert len(matters) == 4 and None not in matters
        assert list(part.train) == [c for c in all_of_it.train if c.matter in matters]
    again = partition(train, [], SitesSettings(sites_by, num_sites=3, matters_per_site=4))
    assert few == again
    with pytest.raises(PartitionError, match="matters_per_site=4"):
        partition(contracts(300), [], SitesSettings(sites_by, num_sites=3, matters_per_site=4))
