"""A corpus: what a source hands to the partition, the baselines and the central evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from client.contracts import Contract, Unreadable
from protocol.errors import FoedusError


class DataError(FoedusError):
    """A data source cannot give what the settings ask for."""


@dataclass(frozen=True)
class Corpus:
    """Training and test contracts of one source, in a fixed order.

    No matter has contracts in both parts, in any source that knows matters.
    unreadable, excluded: what was not read, as in `client.contracts.ReadResult`.
    """

    name: str
    train: tuple[Contract, ...]
    test: tuple[Contract, ...]
    unreadable: tuple[Unreadable, ...] = ()
    excluded: Mapping[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that occur in training, sorted: what a classifier can learn."""
        return tuple(sorted({contract.label for contract in self.train if contract.label}))
