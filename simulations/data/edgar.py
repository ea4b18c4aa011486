"""Provisions of contracts filed with the SEC, labelled by their drafters' own headings.

label_field `topic` (55 coarse topics) or `label` (99 LEDGAR labels); provisions without one are
dropped. The heading is the label's origin and is not part of the text. The files differ in licence.
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

LICENCES = {"contraxsuite": "CC BY-SA 4.0", "markupmna": "MIT", "cuad": "CC BY 4.0"}
LABEL_FIELDS = ("topic", "label")


def edgar_corpus(settings: DataSettings) -> Corpus:
    """Fields: company, contract_type, year, doc. Matter: the document."""
    if settings.label_field not in LABEL_FIELDS:
        raise DataError(
            f"Expected data.label_field to be {' or '.join(LABEL_FIELDS)} for data=edgar, "
            f"got {settings.label_field!r}."
        )
    folder = source_folder(
        settings, "the edgar_provisions folder (contraxsuite, markupmna, cuad .jsonl.gz)"
    )
    present = [name for name in LICENCES if list(folder.glob(f"{name}.jsonl*"))]
    reading = SplitReading(settings)
    # A folder with some of the three files is a choice; one with none of them is a mistake.
    for path in source_files(folder, present or LICENCES):
        licence = LICENCES[path.name.split(".")[0]]

        def to_contract(record: Mapping[str, Any], licence: str = licence) -> Contract | None:
            label = record[settings.label_field]
            if label is None:
                return None
            return Contract(
                text=text_of(record),
                source=text_of(record, "id"),
                matter=text_of(record, "doc"),
                licence=licence,
                label=str(label),
                fields=scalar_fields(record, "company", "contract_type", "year", "doc"),
            )

        reading.read(path, to_contract)
    return reading.corpus()
