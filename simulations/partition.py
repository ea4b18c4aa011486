"""Which contracts lie at which site: by a real field, or by a controlled skew.

Pure functions of the contracts, the settings and the seed. Every contract is used at most once.
Site names are safe as folder names on every system and differ even where letter case is ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from client.contracts import Contract
from protocol.codec import setting
from protocol.errors import FoedusError
from simulations.site_names import numbered_names, site_names


class PartitionError(FoedusError):
    """The contracts cannot be dealt out as the settings ask."""


@dataclass(frozen=True)
class SitesSettings:
    """How contracts become sites."""

    sites_by: str = setting(
        "given", doc="given (field site), dirichlet, quantity, iid, or a field such as company"
    )
    num_sites: int = setting(
        6, minimum=1, doc="sites to form; `given` forms one per value of the field site"
    )
    train_examples_per_site: int = setting(200, minimum=1, doc="cap per site")
    test_examples_per_site: int = setting(200, minimum=0, doc="cap per site")
    dirichlet_alpha: float = setting(
        0.3, minimum=1e-3, doc="dirichlet: small = each site has few labels, large = all alike"
    )
    quantity_exponent: float = setting(
        1.0, minimum=0.0, maximum=10.0, doc="quantity: site k has a share ~ k^-exponent; 0 = equal"
    )
    matters_per_site: int = setting(
        0, minimum=0, doc="matters a site trains on at most, drawn; 0 = all, also those without"
    )
    min_examples_per_site: int = setting(10, minimum=1, doc="training examples a site needs")
    seed: int = setting(0, minimum=0, doc="seed of every draw")


@dataclass(frozen=True)
class SitePartition:
    """One site: its name and what lies there. `test` may be empty (say, companies split apart)."""

    name: str
    train: tuple[Contract, ...]
    test: tuple[Contract, ...]


def partition(
    train: Sequence[Contract], test: Sequence[Contract], settings: SitesSettings
) -> list[SitePartition]:
    """The sites of a simulation. Raises PartitionError, naming the setting to change."""
    deal = {"dirichlet": by_dirichlet, "quantity": by_quantity, "iid": by_iid}
    parts = deal.get(settings.sites_by, by_field)(train, test, settings)
    if not settings.matters_per_site:
        return parts
    rng = np.random.default_rng([settings.seed, settings.matters_per_site])
    return [replace(p, train=_of_few_matters(p, settings.matters_per_site, rng)) for p in parts]


def _of_few_matters(
    part: SitePartition, most: int, rng: np.random.Generator
) -> tuple[Contract, ...]:
    matters = sorted({c.matter for c in part.train if c.matter is not None})
    if not matters:
        raise PartitionError(
            f"matters_per_site={most} expects contracts with matters, got none at {part.name}. "
            "Leave it at 0."
        )
    kept = {matters[index] for index in rng.permutation(len(matters))[:most]}
    return tuple(contract for contract in part.train if contract.matter in kept)


def by_field(
    train: Sequence[Contract], test: Sequence[Contract], settings: SitesSettings
) -> list[SitePartition]:
    """The groups of a field with most training contracts, largest first.

    A group that exceeds a cap gives a seeded draw of its contracts. Contracts without the field go
    nowhere. `given`: the groups of the field `site`, all of them, in the order of their names.
    """
    given = settings.sites_by == "given"
    field_name = "site" if given else settings.sites_by
    groups = _groups(train, field_name)
    if not groups:
        raise PartitionError(_missing_field(train, field_name, settings))
    sizes = {value: len(indices) for value, indices in groups.items()}
    ranked = sorted(groups, key=lambda value: (-sizes[value], value))
    fit = [value for value in ranked if sizes[value] >= settings.min_examples_per_site]
    wanted = len(groups) if given else settings.num_sites
    if len(fit) < wanted:
        small = _listing({value: sizes[value] for value in ranked[len(fit) :]})
        raise PartitionError(
            f"Expected {wanted} sites of at least {settings.min_examples_per_site} training "
            f"examples (min_examples_per_site) by the field {field_name!r}, got {len(fit)} of "
            f"{len(groups)} groups; too small: {small}. Lower min_examples_per_site"
            f"{'' if given else ' or num_sites'}."
        )
    chosen = sorted(fit) if given else fit[:wanted]
    rng = np.random.default_rng(settings.seed)
    test_groups = _groups(test, field_name)
    names = site_names(chosen)
    return [
        SitePartition(
            name,
            _drawn(train, groups[value], settings.train_examples_per_site, rng),
            _drawn(test, test_groups.get(value, []), settings.test_examples_per_site, rng),
        )
        for name, value in zip(names, chosen, strict=True)
    ]


def by_iid(
    train: Sequence[Contract], test: Sequence[Contract], settings: SitesSettings
) -> list[SitePartition]:
    """Equal shares of a shuffled corpus: the control without any skew."""
    size = _equal_size(len(train), settings)
    test_size = min(settings.test_examples_per_site, len(test) // settings.num_sites)
    rng = np.random.default_rng(settings.seed)
    return _dealt(train, test, [size] * settings.num_sites, [test_size] * settings.num_sites, rng)


def by_quantity(
    train: Sequence[Contract], test: Sequence[Contract], settings: SitesSettings
) -> list[SitePartition]:
    """Site k (from 1) holds a share ~ k^-quantity_exponent; labels are dealt at random.

    The largest site holds train_examples_per_site, or less where the corpus is too small; the
    smallest at least min_examples_per_site. Test parts are of equal size.
    """
    ranks = np.arange(1, settings.num_sites + 1, dtype=np.float64)
    shares = ranks**-settings.quantity_exponent
    largest = min(float(settings.train_examples_per_site), len(train) / float(shares.sum()))
    sizes = [int(largest * share) for share in shares]
    if sizes[-1] < settings.min_examples_per_site:
        raise PartitionError(
            f"Expected at least {settings.min_examples_per_site} training examples "
            f"(min_examples_per_site) at the smallest of {settings.num_sites} sites, got "
            f"{sizes[-1]} from {len(train)} contracts. Lower num_sites, quantity_exponent or "
            "min_examples_per_site."
        )
    test_size = min(settings.test_examples_per_site, len(test) // settings.num_sites)
    rng = np.random.default_rng(settings.seed)
    return _dealt(train, test, sizes, [test_size] * settings.num_sites, rng)


def by_dirichlet(
    train: Sequence[Contract], test: Sequence[Contract], settings: SitesSettings
) -> list[SitePartition]:
    """Sites of equal size whose label mixes are drawn from Dirichlet(alpha * L * p).

    p: the label frequencies of `train` over its L labels. alpha -> 0: one label a site; alpha
    large: every site has p. Drawn without replacement, a contract a site in turn, so that no site
    is left with what the others did not want. A site's test part follows the same mix.
    Hsu, Qi and Brown 2019, https://arxiv.org/abs/1909.06335 (there: alpha * p).
    """
    size = _equal_size(len(train), settings)
    test_size = min(settings.test_examples_per_site, len(test) // settings.num_sites)
    rng = np.random.default_rng(settings.seed)
    counts = Counter(contract.label or "" for contract in train)
    labels = sorted(counts)
    prior = np.array([counts[label] for label in labels], dtype=np.float64) / len(train)
    concentration = settings.dirichlet_alpha * len(labels) * prior
    mixes = rng.dirichlet(concentration, size=settings.num_sites)
    train_parts = _draw_by_mix(train, labels, mixes, size, rng)
    test_parts = _draw_by_mix(test, labels, mixes, test_size, rng)
    return [
        SitePartition(name, _pick(train, mine), _pick(test, mine_test))
        for name, mine, mine_test in zip(
            numbered_names(settings.num_sites), train_parts, test_parts, strict=True
        )
    ]


def _draw_by_mix(
    contracts: Sequence[Contract],
    labels: Sequence[str],
    mixes: NDArray[np.float64],
    size: int,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Indices for each site; mixes: (sites, labels), rows sum to 1.

    A label that has run out gives its odds to the others. Labels outside `labels` are not drawn.
    """
    known = {label: number for number, label in enumerate(labels)}
    stock: list[list[int]] = [[] for _ in labels]
    for index in rng.permutation(len(contracts)):
        number = known.get(contracts[index].label or "")
        if number is not None:
            stock[number].append(int(index))
    parts: list[list[int]] = [[] for _ in mixes]
    for _ in range(size):
        for part, mix in zip(parts, mixes, strict=True):
            available = np.array([bool(pile) for pile in stock])
            if not available.any():
                return parts
            odds = np.where(available, mix, 0.0)
            # A skewed mix may leave all its odds on labels that have run out.
            odds = odds if odds.sum() > 1e-12 else available.astype(np.float64)
            part.append(stock[rng.choice(len(labels), p=odds / odds.sum())].pop())
    return parts


def _groups(contracts: Sequence[Contract], field_name: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, contract in enumerate(contracts):
        value = contract.fields.get(field_name)
        if value is None and field_name in ("matter", "label", "licence"):
            value = getattr(contract, field_name)
        if value:
            groups.setdefault(value, []).append(index)
    return groups


def _drawn(
    contracts: Sequence[Contract], indices: Sequence[int], cap: int, rng: np.random.Generator
) -> tuple[Contract, ...]:
    return _pick(contracts, (indices[place] for place in rng.permutation(len(indices))[:cap]))


def _pick(contracts: Sequence[Contract], indices: Iterable[int]) -> tuple[Contract, ...]:
    """The contracts in the order of the corpus, so that a run does not hang on a draw's order."""
    return tuple(contracts[index] for index in sorted(indices))


def _dealt(
    train: Sequence[Contract],
    test: Sequence[Contract],
    sizes: Sequence[int],
    test_sizes: Sequence[int],
    rng: np.random.Generator,
) -> list[SitePartition]:
    """Consecutive pieces of two shuffles."""
    order, test_order = rng.permutation(len(train)), rng.permutation(len(test))
    ends, test_ends = np.cumsum(sizes), np.cumsum(test_sizes)
    return [
        SitePartition(
            name,
            _pick(train, order[ends[k] - sizes[k] : ends[k]]),
            _pick(test, test_order[test_ends[k] - test_sizes[k] : test_ends[k]]),
        )
        for k, name in enumerate(numbered_names(len(sizes)))
    ]


def _equal_size(available: int, settings: SitesSettings) -> int:
    size = min(settings.train_examples_per_site, available // settings.num_sites)
    if size < settings.min_examples_per_site:
        raise PartitionError(
            f"Expected at least {settings.min_examples_per_site} training examples "
            f"(min_examples_per_site) at each of {settings.num_sites} sites, got {size} from "
            f"{available} contracts (train_examples_per_site={settings.train_examples_per_site}). "
            "Lower num_sites or min_examples_per_site."
        )
    return size


def _missing_field(contracts: Sequence[Contract], field_name: str, settings: SitesSettings) -> str:
    values: dict[str, set[str]] = {}
    for contract in contracts:
        for name, value in contract.fields.items():
            values.setdefault(name, set()).add(value)
    present = _listing({name: len(found) for name, found in values.items()})
    return (
        f"Expected contracts with the field {field_name!r} (sites_by={settings.sites_by}), got "
        f"none among {len(contracts)}. Fields there, with their number of values: {present}. "
        "Or use dirichlet, quantity or iid."
    )


def _listing(numbers: dict[str, int]) -> str:
    shown = [f"{name} ({number})" for name, number in sorted(numbers.items())]
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return (", ".join(shown[:12]) or "none") + more
