"""Which past rounds count against which units, and what they come to together.

Each unit pays for the rounds that could touch it, so new data starts with a whole budget. Units
with the same past are computed once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from client.privacy.accounting import Cost, epsilon_spent
from client.privacy.ledger_rows import CONFIRMED, LedgerContent, LedgerRow
from client.privacy.units import NO_MATTER, first_dataset_digest

# One step without noise: no epsilon is large enough.
_UNBOUNDED = Cost(1.0, 0.0, 1)


@dataclass(frozen=True)
class Budget:
    """What a unit may spend in all. epsilon: at this delta; infinite where there is no limit."""

    unit: str
    epsilon: float
    delta: float


@dataclass(frozen=True)
class MatterAccount:
    """One matter of a data set; by example, its worst example. digest: client.privacy.units'
    matter_digest in hex; "" for examples of no matter."""

    digest: str
    num_examples: int
    rounds: int
    epsilon_spent: float
    epsilon_left: float


@dataclass(frozen=True)
class DataSetAccount:
    """One data set. rounds and sigma: of the rounds that used exactly it.

    epsilon_spent: of its worst unit over all rounds, those of overlapping data sets included.
    """

    digest: str
    units: tuple[str, ...]
    num_examples: int
    rounds: int
    unconfirmed: int
    sigma_min: float
    sigma_max: float
    epsilon_spent: float
    epsilon_left: float
    matters: tuple[MatterAccount, ...]


def charge(row_unit: str, cost: Cost, budget_unit: str) -> Cost:
    """What a round counts for one unit of the budget.

    A round by matter bounds what a whole matter may change, present or not. One example changed
    within a matter can turn its clipped sum around, by 2C, so an example is charged as for half
    the sigma. A round by example bounds nothing for a matter of many, and one without noise nothing
    at all.
    """
    if row_unit == budget_unit:
        return cost
    if row_unit == "matter" and budget_unit == "example":
        return Cost(cost.sampling_rate, cost.sigma / 2, cost.steps)
    return _UNBOUNDED


def worst_epsilon(
    ledger: LedgerContent, data_set: bytes, budget: Budget, extra: Iterable[Cost] = ()
) -> float:
    """Epsilon of the unit of `data_set` that spent most, with `extra` charged to every unit.

    Errors: FoedusError where no bound can be computed.
    """
    costs = _costs_by_data_set(ledger, budget.unit)
    # Data without a single matter, where matters count, might have been touched by anything.
    pasts = set(_pasts(ledger, data_set, budget.unit).values()) or {frozenset(costs)}
    # Less of the same rounds costs less.
    largest = [past for past in pasts if not any(past < other for other in pasts)]
    return max(_epsilon(past, costs, budget.delta, extra) for past in largest)


def accounts(ledger: LedgerContent, budget: Budget) -> tuple[DataSetAccount, ...]:
    """What was spent and is left, the data sets in the order of their first round."""
    rows: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in ledger.rows:
        rows[row.data_set].append(row)
    return tuple(_account(ledger, digest, of_it, budget) for digest, of_it in rows.items())


def _account(
    ledger: LedgerContent, digest: str, rows: list[LedgerRow], budget: Budget
) -> DataSetAccount:
    content = ledger.data_sets[digest]
    spent = worst_epsilon(ledger, content, budget)
    return DataSetAccount(
        digest=digest,
        units=tuple(sorted({row.unit for row in rows})),
        num_examples=len(content) // 64,
        rounds=len(rows),
        unconfirmed=sum(row.state != CONFIRMED for row in rows),
        sigma_min=min(row.sigma for row in rows),
        sigma_max=max(row.sigma for row in rows),
        epsilon_spent=spent,
        epsilon_left=_left(budget, spent),
        matters=tuple(_matter_accounts(ledger, content, budget)),
    )


def _matter_accounts(
    ledger: LedgerContent, content: bytes, budget: Budget
) -> Iterator[MatterAccount]:
    pasts = _pasts(ledger, content, budget.unit)
    costs = _costs_by_data_set(ledger, budget.unit)
    for matter, examples in _examples_by_matter(content).items():
        if budget.unit == "matter" and matter == NO_MATTER:
            continue
        units = [matter] if budget.unit == "matter" else examples
        of_units = {pasts[unit] for unit in units}
        spent = max(_epsilon(past, costs, budget.delta, ()) for past in of_units)
        touched = frozenset[str]().union(*of_units)
        yield MatterAccount(
            "" if matter == NO_MATTER else matter.hex(),
            len(examples),
            sum(len(costs[data_set]) for data_set in touched),
            spent,
            _left(budget, spent),
        )


def _pasts(ledger: LedgerContent, content: bytes, unit: str) -> dict[bytes, frozenset[str]]:
    """For each unit of a data set, the data sets of past rounds that touched it.

    Between the ledger's first version and today's no example can be recognised, and so no renamed
    matter: there every round counts against every unit.
    """
    touched: dict[bytes, set[str]] = defaultdict(set)
    matters = _examples_by_matter(content)
    examples = frozenset(example for of_matter in matters.values() for example in of_matter)
    units = examples if unit == "example" else frozenset(matters) - {NO_MATTER}
    is_first = first_dataset_digest(content) in ledger.data_sets
    for digest in {row.data_set for row in ledger.rows}:
        past_content = ledger.data_sets[digest]
        if (first_dataset_digest(past_content) == digest) is not is_first:
            for one in units:
                touched[one].add(digest)
            continue
        past = _examples_by_matter(past_content)
        past_examples = examples.intersection(*[[e for of_m in past.values() for e in of_m]])
        if unit == "example":
            of_past: Iterable[bytes] = past_examples
        else:
            of_past = [
                m for m in units if m in past or _mostly_in(frozenset(matters[m]), past_examples)
            ]
        for one in of_past:
            touched[one].add(digest)
    return {one: frozenset(touched[one]) for one in units}


def _mostly_in(examples: frozenset[bytes], others: frozenset[bytes]) -> bool:
    """Whether half a matter or more was used before: renaming a matter does not renew its budget.

    Less may be boilerplate that many matters share.
    """
    return 2 * len(examples & others) >= len(examples)


@lru_cache(maxsize=32)
def _examples_by_matter(content: bytes) -> Mapping[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = defaultdict(list)
    for start in range(0, len(content), 64):
        found[content[start + 32 : start + 64]].append(content[start : start + 32])
    return MappingProxyType(dict(found))


def _costs_by_data_set(ledger: LedgerContent, budget_unit: str) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = defaultdict(list)
    for row in ledger.rows:
        costs[row.data_set].append(charge(row.unit, row.cost, budget_unit))
    return costs


def _epsilon(
    past: frozenset[str], costs: Mapping[str, list[Cost]], delta: float, extra: Iterable[Cost]
) -> float:
    together = [cost for data_set in past for cost in costs[data_set]]
    return epsilon_spent([*together, *extra], delta)


def _left(budget: Budget, spent: float) -> float:
    return math.inf if math.isinf(budget.epsilon) else max(0.0, budget.epsilon - spent)
