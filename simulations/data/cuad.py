"""CUAD: spans of commercial contracts, labelled by experts.

One label a span: spans that carry several are dropped, and so are the four categories that name the
contract rather than a clause. `include_none` adds paragraphs that touch no labelled span.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.contracts import Contract
from simulations.data.corpus import Corpus
from simulations.data.records import (
    SplitReading,
    scalar_fields,
    source_files,
    source_folder,
    text_of,
)
from simulations.data.settings import DataSettings

LICENCE = "CC BY 4.0"
FRONT_MATTER = frozenset({"Document Name", "Parties", "Agreement Date", "Effective Date"})


def cuad_corpus(settings: DataSettings) -> Corpus:
    """Fields: company, contract_type, year, doc. Matter: the contract."""
    folder = source_folder(settings, "the cuad folder (clauses.jsonl.gz)")
    names = ["clauses", "none_paragraphs"] if settings.include_none else ["clauses"]
    reading = SplitReading(settings)
    for path in source_files(folder, names):
        reading.read(path, _to_contract)
    return reading.corpus()


def _to_contract(record: Mapping[str, Any]) -> Contract | None:
    label = text_of(record, "label")
    if label in FRONT_MATTER or len(record.get("labels_same_span", [label])) != 1:
        return None
    return Contract(
        text=text_of(record),
        source=text_of(record, "id"),
        matter=text_of(record, "doc"),
        licence=LICENCE,
        label=label,
        fields=scalar_fields(record, "company", "contract_type", "year", "doc"),
    )
