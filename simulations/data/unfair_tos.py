"""Sentences of terms of service, marked where they may be unfair to consumers (CLAUDETTE, English).

label_field `unfair`: fair or unfair, every sentence. label_field `kind`: which of nine kinds, only
sentences with exactly one. The split is the source's fold of companies: splits are fold numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.contracts import Contract
from simulations.data.corpus import Corpus, DataError
from simulations.data.records import (
    SplitReading,
    scalar_fields,
    source_files,
    source_folder,
    text_of,
)
from simulations.data.settings import DataSettings

LICENCE = "CC BY 4.0"


def unfair_tos_corpus(settings: DataSettings) -> Corpus:
    """Fields: company, fold, doc. Matter: the company, whose terms are one document."""
    if settings.label_field not in ("unfair", "kind"):
        raise DataError(
            "Expected data.label_field to be unfair or kind for data=unfair_tos, "
            f"got {settings.label_field!r}."
        )
    folder = source_folder(settings, "the unfair_tos folder (en.jsonl.gz)")
    reading = SplitReading(settings, split_field="fold")

    def to_contract(record: Mapping[str, Any]) -> Contract | None:
        label = _label(record, settings.label_field)
        if label is None:
            return None
        company = text_of(record, "company")
        return Contract(
            text=text_of(record),
            source=text_of(record, "id"),
            matter=company,
            licence=LICENCE,
            label=label,
            fields={**scalar_fields(record, "company", "fold"), "doc": company},
        )

    for path in source_files(folder, ["en"]):
        reading.read(path, to_contract)
    return reading.corpus()


def _label(record: Mapping[str, Any], label_field: str) -> str | None:
    if label_field == "unfair":
        return "unfair" if int(record["unfair"]) else "fair"
    kinds = record["labels"]
    return str(kinds[0]) if len(kinds) == 1 else None
