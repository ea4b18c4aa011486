"""Whom a round's privacy cost is charged to: the matters and examples it could touch.

Digests alone identify them, so that the ledger recognises the same data in any later run and holds
no text, not even the name of a matter.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from models.examples import ClauseExample, Example
from protocol.errors import FoedusError

Unit = Literal["matter", "example"]
UNITS: tuple[Unit, ...] = ("matter", "example")

NO_MATTER = bytes(32)


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """One example, as digests of 32 bytes; matter: NO_MATTER where none is known."""

    example: bytes
    matter: bytes

    def __bytes__(self) -> bytes:
        return self.example + self.matter


@dataclass(frozen=True)
class DataUnits:
    """All that a round could touch. unit: what is sampled, clipped and hidden as one, or "none".

    num_left_out: examples without a matter, which training by matter must leave out.
    """

    unit: str
    records: tuple[Record, ...]
    num_left_out: int = 0

    @cached_property
    def content(self) -> bytes:
        """All records in a fixed order, 64 bytes each."""
        return b"".join(bytes(record) for record in sorted(self.records))

    @cached_property
    def digest(self) -> str:
        """What identifies the data set: its content's digest, hex."""
        return dataset_digest(self.content)

    @property
    def num_units(self) -> int:
        """Matters where the unit is the matter, else examples."""
        if self.unit == "matter":
            return len({record.matter for record in self.records})
        return len(self.records)


def data_units(examples: Sequence[Example], unit: str) -> DataUnits:
    """The units of a site's training examples. unit: "matter", "example", or "none" (no noise).

    Equal examples are told apart by how often they occurred before, so each is a record of its own.
    Errors: FoedusError for another unit.
    """
    if unit not in (*UNITS, "none"):
        raise FoedusError(f"Expected unit matter, example or none, got {unit!r}.")
    contents: list[tuple[bytes, bytes]] = []
    for example in examples:
        if example.matter is not None:
            matter = matter_digest(example.matter)
            contents.append((_content_digest(example), matter))
        elif unit != "matter":
            contents.append((_content_digest(example), NO_MATTER))
    seen: Counter[bytes] = Counter()
    records: list[Record] = []
    # Sorted, so that the order in which files were read changes nothing.
    for content, matter in sorted(contents):
        seen[content] += 1
        records.append(Record(_digest("example", content.hex(), seen[content]), matter))
    return DataUnits(unit, tuple(records), len(examples) - len(contents))


def matter_digest(name: str) -> bytes:
    """What stands for a matter; two spellings are two matters, as they are in training."""
    return _digest("matter", name)


def dataset_digest(content: bytes) -> str:
    """SHA-256 of a data set's content, hex."""
    return hashlib.sha256(b"foedus data set 2\n" + content).hexdigest()


def first_dataset_digest(content: bytes) -> str:
    """The same for a data set of the ledger's version 1, whose examples were digested with label
    or prompt: they cannot be recognised among those of today."""
    return hashlib.sha256(b"foedus data set 1\n" + content).hexdigest()


def _content_digest(example: Example) -> bytes:
    """Of the contract's own words alone: what a run makes of them, the label, the request and the
    matter, is not theirs, and the same words with another of it are the same example."""
    if isinstance(example, ClauseExample):
        text = example.text
    else:
        text = example.contract_text or " ".join(content for _, content in example.messages)
    return _digest("text", " ".join(text.split()))


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(json.dumps(["foedus unit 1", *parts]).encode()).digest()
