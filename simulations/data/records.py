"""Reads the labelled files of a source, with its splits checked.

A missing folder, file or split is a mistake in the settings and raises; a broken line is one
Unreadable of the corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.contracts import Contract, Record, Unreadable, read_records
from simulations.data.corpus import Corpus, DataError
from simulations.data.settings import DataSettings, split_names

# A record of the file as a contract, or None where it takes no part.
ToContract = Callable[[Mapping[str, Any]], Contract | None]


def source_folder(settings: DataSettings, expected: str) -> Path:
    """The folder `data.path` names. Raises DataError, which says what to put there.

    expected: the files that belong there, in words.
    """
    hint = f"Set data.path to {expected}."
    if not settings.path:
        raise DataError(f"data={settings.source} needs data.path, which is not set. {hint}")
    folder = Path(settings.path).expanduser()
    if not folder.is_dir():
        state = "a file" if folder.exists() else "not there"
        raise DataError(f"Expected a folder at data.path={settings.path}, which is {state}. {hint}")
    return folder


def source_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """`names` within the folder, each as `.jsonl.gz` or `.jsonl`. Raises DataError if one lacks."""
    found = []
    for name in names:
        candidates = [folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl"]
        present = [path for path in candidates if path.is_file()]
        if not present:
            raise DataError(
                f"Expected {name}.jsonl.gz or {name}.jsonl in data.path={folder}, got neither. "
                "Point data.path to the folder that holds it."
            )
        found.append(present[0])
    return found


@dataclass
class SplitReading:
    """Sorts the records of a source into the training and the test part."""

    settings: DataSettings
    split_field: str = "split"
    train: list[Contract] = field(default_factory=list)
    test: list[Contract] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._train_names = split_names(self.settings.train_split)
        self._test_names = split_names(self.settings.test_split)
        both = set(self._train_names) & set(self._test_names)
        if both:
            raise DataError(
                f"Expected data.train_split and data.test_split apart, got {sorted(both)} in both. "
                "Held-out contracts must not be trained on."
            )
        if not self._train_names:
            raise DataError("Expected a split name in data.train_split, got none.")

    def read(self, path: Path, to_contract: ToContract) -> None:
        """Adds the records of one file."""
        for record in read_records(path, path.name):
            if isinstance(record, Unreadable):
                self.unreadable.append(record)
                continue
            place = f"{path.name}:{record.line}"
            try:
                self._add(record, to_contract)
            except KeyError as missing:
                self.unreadable.append(Unreadable(place, f"expected the key {missing}, got none"))
            except (TypeError, ValueError):
                self.unreadable.append(Unreadable(place, "a value of it has another type"))

    def _add(self, record: Record, to_contract: ToContract) -> None:
        split = str(record.content[self.split_field])
        self.seen[split] += 1
        if split in self._train_names or split in self._test_names:
            contract = to_contract(record.content)
            if contract is not None and len(contract.text) >= self.settings.min_characters:
                (self.train if split in self._train_names else self.test).append(contract)

    def corpus(self) -> Corpus:
        """What was read. Raises DataError where a part that was asked for came out empty."""
        for setting, names, part in (
            ("train_split", self._train_names, self.train),
            ("test_split", self._test_names, self.test),
        ):
            if names and not part:
                present = ", ".join(f"{name} ({n})" for name, n in sorted(self.seen.items()))
                raise DataError(
                    f"Expected records with {self.split_field} {', '.join(names)} "
                    f"(data.{setting}) in data.path={self.settings.path}, got none that can be "
                    f"used. Splits there: {present or 'none'}."
                )
        return Corpus(
            self.settings.source, tuple(self.train), tuple(self.test), tuple(self.unreadable)
        )


def text_of(record: Mapping[str, Any], key: str = "text") -> str:
    """A key that must hold text. Raises KeyError or TypeError."""
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(key)
    return value


def scalar_fields(record: Mapping[str, Any], *names: str) -> dict[str, str]:
    """The named keys as text; those that are absent or null are left out."""
    return {name: str(record[name]) for name in names if record.get(name) is not None}
