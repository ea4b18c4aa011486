"""A user's own contracts: one sub-folder per site.

The held-out part is drawn by matter (by source where no matter is known), from a hash, so adding
contracts never moves another matter between training and test, and no matter is in both.
"""

from __future__ import annotations

import dataclasses
import hashlib

from client.contracts import Contract, read_contracts
from simulations.data.corpus import Corpus, DataError
from simulations.data.records import source_folder
from simulations.data.settings import DataSettings


def folder_corpus(settings: DataSettings) -> Corpus:
    """Fields: as read, plus `site`, for contracts that lie in a sub-folder.

    Contracts without a label are kept, for instruction tuning.
    label_field: `label`, or the name of another field that holds the label.
    """
    root = source_folder(
        settings, "a folder with one sub-folder of .txt, .md, .docx, .pdf or .jsonl files per site"
    )
    whole = read_contracts(root, excluded_matters=settings.excluded_matters)
    parts: dict[bool, list[Contract]] = {False: [], True: []}
    for contract in whole.contracts:
        if len(contract.text) >= settings.min_characters:
            described = _described(contract, settings.label_field)
            parts[is_held_out(contract, settings)].append(described)
    for held_out, wanted in ((False, True), (True, settings.test_fraction > 0)):
        if wanted and not parts[held_out]:
            raise DataError(
                f"Expected contracts to {'hold out' if held_out else 'train on'} in "
                f"data.path={settings.path}, got none: {len(whole.contracts)} contracts read, "
                f"{len(whole.unreadable)} unreadable, {sum(whole.excluded.values())} excluded, "
                f"data.test_fraction={settings.test_fraction} drawn by matter."
            )
    return Corpus(
        "folder", tuple(parts[False]), tuple(parts[True]), whole.unreadable, whole.excluded
    )


def _described(contract: Contract, label_field: str) -> Contract:
    """The contract with its site, and with its label if another field holds that."""
    site, within_site, _ = contract.file.partition("/")
    fields = {**contract.fields, "site": site} if within_site else contract.fields
    label = contract.label if label_field == "label" else contract.fields.get(label_field)
    return dataclasses.replace(contract, fields=fields, label=label)


def is_held_out(contract: Contract, settings: DataSettings) -> bool:
    """Whether the contract's matter falls into the held-out share, whatever else is in the folder.

    The hash is of seed and matter, not of the site: two firms on one matter keep it on one side.
    """
    unit = f"matter:{contract.matter}" if contract.matter else f"source:{contract.source}"
    digest = hashlib.sha256(f"{settings.seed}:{unit}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < settings.test_fraction * 2**64
