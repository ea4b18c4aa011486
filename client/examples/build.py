"""Contracts -> training and held-out examples, with a count of what could not be used.

The split is by matter where matters are known, else by source: clauses of one engagement repeat
each other, so a split inside a matter would measure memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from client.contracts import Contract
from client.examples.instruct import chat_examples
from models.examples import ClauseExample, Example


@dataclass(frozen=True)
class SiteExamples:
    """`unused`: contracts that gave no example for this task, by reason."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    unused: dict[str, int]


def build_examples(
    contracts: Sequence[Contract], kind: str, held_out_fraction: float
) -> SiteExamples:
    """Examples for a task ("classify" or "instruct").

    held_out_fraction in 0..1: the share of matters (or sources) kept from training.
    """
    train: list[Example] = []
    held_out: list[Example] = []
    unused: dict[str, int] = {}
    for contract in contracts:
        examples = _examples_of(contract, kind)
        if not examples:
            reason = "no label" if kind == "classify" else "too short to learn from"
            unused[reason] = unused.get(reason, 0) + 1
        kept_back = is_held_out(contract.matter or contract.source, held_out_fraction)
        (held_out if kept_back else train).extend(examples)
    return SiteExamples(tuple(train), tuple(held_out), unused)


def is_held_out(group: str, fraction: float) -> bool:
    """The same groups at every start, without a stored list: by the hash of the group's name."""
    drawn = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    return drawn < fraction


def _examples_of(contract: Contract, kind: str) -> Sequence[Example]:
    if kind == "instruct":
        return chat_examples(contract)
    if contract.label is None:
        return ()
    return (ClauseExample(contract.text, contract.label, contract.matter),)
