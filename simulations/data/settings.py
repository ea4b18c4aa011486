"""The settings of a data source: one flat record, of which each source reads the keys it knows.

conf/data/NAME.yaml lists, for each source, exactly those keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.codec import decode, setting

SOURCES = ("synthetic", "edgar", "cuad", "unfair_tos", "contract_nli", "folder")
PREMISES = ("retrieved", "evidence", "document")


@dataclass(frozen=True)
class DataSettings:
    """Which contracts, from where, and which of them are held out."""

    source: str = setting("synthetic", choices=SOURCES, doc="where the contracts come from")
    path: str | None = setting(None, doc="folder of the files; synthetic needs none")
    train_split: str = setting("train", doc="split or splits to train on, joined by , or +")
    test_split: str = setting("dev", doc="split or splits held out, joined by , or +")
    label_field: str = setting("label", doc="the field that is the label")
    min_characters: int = setting(1, minimum=1, doc="shorter texts are dropped")
    include_none: bool = setting(False, doc="cuad: add paragraphs without a clause, label None")
    premise: str = setting(
        "retrieved", choices=PREMISES, doc="contract_nli: which part of the NDA is shown"
    )
    premise_spans: int = setting(
        3, minimum=1, doc="contract_nli: sentences of the NDA in a retrieved premise"
    )
    test_fraction: float = setting(
        0.2, minimum=0.0, maximum=0.9, doc="folder: share of the matters held out"
    )
    excluded_matters: tuple[str, ...] = setting((), doc="folder: matters that are left out")
    firms: int = setting(6, minimum=1, maximum=8, doc="synthetic: number of firms")
    train_per_firm: int = setting(
        150, minimum=1, maximum=5000, doc="synthetic: training clauses of a firm"
    )
    test_per_firm: int = setting(
        70, minimum=0, maximum=5000, doc="synthetic: held-out clauses of a firm"
    )
    seed: int = setting(0, minimum=0, doc="seed of the generator or of the held-out draw")


def decode_data_settings(values: Mapping[str, Any], where: str = "data") -> DataSettings:
    """DataSettings from a configuration, where a split may come as a number or a list.

    On a command line `data.test_split=0` is a number and `data.train_split=[1,2]` a list.
    Errors: SettingsError, as `protocol.codec.decode`.
    """
    readable = dict(values)
    for key in ("train_split", "test_split"):
        if key in readable:
            readable[key] = _split_text(readable[key])
    return decode(DataSettings, readable, where)


def split_names(text: str) -> tuple[str, ...]:
    """The names in `train`, `train,dev` or `1+2+3`, without repeats."""
    names = (name.strip() for name in text.replace("+", ",").split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def _split_text(value: Any) -> Any:
    """A number or a list of names as text; anything else as it is, for the codec to judge."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(str(item) for item in value)
    return value
