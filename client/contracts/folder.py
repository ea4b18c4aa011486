"""Reads the contracts of a folder, whatever state the files are in.

Guarantee: a bad file never raises; everything that was not read is in `unreadable` by name or in
`excluded` by count. No consent and excluded matters: nothing of such a contract is returned.
Not covered: hidden files and Word's lock files (`~$...`) are passed over without a word.
Order: by path, then by line, so two runs over the same folder give the same contracts.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from client.contracts.contract import (
    BROKEN_SIDECAR,
    EXCLUDED_MATTER,
    LINKED_ELSEWHERE,
    NO_CONSENT,
    Contract,
    ContractsError,
    DocumentText,
    ReadResult,
    Unreadable,
    UnreadableDocument,
)
from client.contracts.docx import read_docx
from client.contracts.jsonl import read_jsonl
from client.contracts.pdf import read_pdf
from client.contracts.sidecar import (
    FOLDER_SIDECAR,
    SIDECAR_SUFFIX,
    Sidecar,
    SidecarError,
    read_sidecar,
)
from client.contracts.text import read_text

_DOCUMENT_READERS: dict[str, Callable[[Path], DocumentText]] = {
    ".txt": read_text,
    ".md": read_text,
    ".docx": read_docx,
    ".pdf": read_pdf,
}
_RECORD_SUFFIXES = (".jsonl", ".jsonl.gz")
SUPPORTED = (*_DOCUMENT_READERS, *_RECORD_SUFFIXES)


def read_contracts(
    folder: Path,
    *,
    excluded_matters: Collection[str] = (),
    on_file: Callable[[Path], None] | None = None,
) -> ReadResult:
    """Every contract below `folder`.

    excluded_matters: matters to leave out, compared without case and outer blanks.
    on_file: called with each file just before it is read, for a progress bar.
    Raises ContractsError only where the folder itself cannot be listed.
    """
    if not folder.is_dir():
        raise ContractsError(
            f"Expected a folder of contracts, got {folder}, which is "
            f"{'a file' if folder.exists() else 'not there'}. Name a folder that holds "
            f"{', '.join(SUPPORTED)} files."
        )
    reading = _Reading(folder.resolve(), _folded(excluded_matters), on_file)
    reading.read_below(reading.root, Sidecar(), broken=None)
    return reading.result()


def read_contract_file(path: Path) -> ReadResult:
    """The contract or contracts of one file, with the sidecars beside it, as `read_contracts`."""
    if not path.is_file():
        raise ContractsError(f"Expected a file, got {path}, which is not there or not a file.")
    reading = _Reading(path.resolve().parent, frozenset(), None)
    reading.read_file_with_sidecars(path.resolve())
    return reading.result()


def _folded(matters: Collection[str]) -> frozenset[str]:
    return frozenset(matter.strip().casefold() for matter in matters)


@dataclass
class _Reading:
    """One pass over a folder; what it has found so far."""

    root: Path
    excluded_matters: frozenset[str]
    on_file: Callable[[Path], None] | None
    contracts: list[Contract] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)

    def result(self) -> ReadResult:
        return ReadResult(tuple(self.contracts), tuple(self.unreadable), dict(self.excluded))

    def name_of(self, path: Path) -> str:
        """The path below the root, with `/`; bytes that are no UTF-8 shown as escapes."""
        relative = path.relative_to(self.root).as_posix()
        return os.fsencode(relative).decode("utf-8", "backslashreplace")

    def report(self, path: Path, reason: str) -> None:
        self.unreadable.append(Unreadable(self.name_of(path), reason))

    def read_below(self, folder: Path, inherited: Sidecar, broken: str | None) -> None:
        """Reads a folder and those in it. `broken`: why a sidecar of a folder above is."""
        try:
            entries = sorted(path for path in folder.iterdir() if not _is_hidden(path))
        except OSError as failure:
            self.report(folder, f"the folder cannot be listed: {failure.strerror}")
            return
        sidecars = _Sidecars.among(entries)
        if folder_sidecar := sidecars.for_folder():
            inherited, broken = self.lay_over([folder_sidecar], inherited, broken)
        for path in entries:
            if path.name.endswith(SIDECAR_SUFFIX):
                continue
            own = sidecars.for_entry(path)
            try:
                mode = path.lstat().st_mode
            except OSError as failure:
                self.report(path, f"it cannot be opened: {failure.strerror}")
                continue
            if stat.S_ISLNK(mode):
                self.pass_over_link(path)
            elif stat.S_ISDIR(mode):
                self.read_below(path, *self.lay_over(own, inherited, broken))
            else:
                self.read_file(path, *self.lay_over(own, inherited, broken), own=bool(own))
        for path in sidecars.unmatched():
            self.report(
                path,
                "a sidecar that belongs to nothing here: no file or folder bears its "
                "name, so whatever it says is said of no contract",
            )

    def read_file_with_sidecars(self, path: Path) -> None:
        """Reads one file on its own, with the sidecars of its own folder."""
        sidecars = _Sidecars.among(sorted(path.parent.iterdir()))
        own = sidecars.for_entry(path)
        wider = sidecars.for_folder()
        layers = ([wider] if wider else []) + own
        self.read_file(path, *self.lay_over(layers, Sidecar(), None), own=bool(own))

    def lay_over(
        self, layers: list[Path], inherited: Sidecar, broken: str | None
    ) -> tuple[Sidecar, str | None]:
        """What holds once the sidecars `layers`, widest first, are laid over `inherited`."""
        for path in layers:
            try:
                inherited = read_sidecar(path).over(inherited)
            except SidecarError as failure:
                broken = broken or f"its sidecar {self.name_of(path)} is broken: {failure}"
        return inherited, broken

    def pass_over_link(self, path: Path) -> None:
        """No link is followed: one inside the folder is read where it points to, anyway."""
        # Path.resolve raises on a loop of links; realpath does not.
        target = Path(os.path.realpath(path))
        if os.path.exists(target) and target.is_relative_to(self.root):
            self.excluded[LINKED_ELSEWHERE] += 1
        else:
            self.report(
                path,
                "a link that leads out of the folder or nowhere is not followed; "
                "copy the file here if it belongs to the site",
            )

    def read_file(self, path: Path, sidecar: Sidecar, broken: str | None, *, own: bool) -> None:
        """Reads one file. `own`: whether the sidecar speaks of this very file."""
        if self.on_file is not None:
            self.on_file(path)
        if broken is not None:
            self.excluded[BROKEN_SIDECAR] += 1
            self.report(
                path,
                f"{broken}. Without it the consent of this file is not known, so it was left out",
            )
            return
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise UnreadableDocument("expected a file, got a pipe, socket or device")
            if path.name.lower().endswith(_RECORD_SUFFIXES):
                for item in read_jsonl(path, self.name_of(path), sidecar):
                    self.take(item)
            else:
                self.take_document(path, sidecar, own=own)
        except UnreadableDocument as failure:
            self.report(path, str(failure))
        except OSError as failure:
            self.report(path, f"it cannot be opened: {failure.strerror or type(failure).__name__}")
        except Exception as failure:
            # Parsers raise anything on a broken file, and one file must not stop the others. Only
            # the name of the error is told: its message may quote the document.
            self.report(path, f"its parser gave up on it: {type(failure).__name__}")

    def take_document(self, path: Path, sidecar: Sidecar, *, own: bool) -> None:
        reader = _DOCUMENT_READERS.get(path.suffix.lower())
        if reader is None:
            raise UnreadableDocument(
                f"expected one of {', '.join(SUPPORTED)}, got {path.suffix or 'no extension'}"
            )
        name = self.name_of(path)
        if self.turned_away(sidecar.matter, sidecar.consent is not False):
            return
        document = reader(path)
        for place, reason in document.problems:
            self.unreadable.append(Unreadable(f"{name} {place}", reason))
        if not document.text.strip():
            raise UnreadableDocument("it holds no text")
        source = name
        if sidecar.source:
            source = sidecar.source if own else f"{sidecar.source}/{name}"
        self.contracts.append(
            Contract(
                text=document.text,
                source=source,
                matter=sidecar.matter,
                licence=sidecar.licence,
                label=sidecar.label,
                fields={**document.fields, **sidecar.fields},
                file=name,
            )
        )

    def take(self, item: Contract | Unreadable) -> None:
        if isinstance(item, Unreadable):
            self.unreadable.append(item)
        elif not self.turned_away(item.matter, item.consent):
            self.contracts.append(item)

    def turned_away(self, matter: str | None, consent: bool) -> bool:
        """Whether a contract is left out on purpose; counts it if so."""
        if not consent:
            self.excluded[NO_CONSENT] += 1
            return True
        if matter is not None and matter.strip().casefold() in self.excluded_matters:
            self.excluded[EXCLUDED_MATTER] += 1
            return True
        return False


class _Sidecars:
    """The sidecars of one folder, and which of its entries each speaks of."""

    def __init__(self, by_name: dict[str, Path], entries: list[Path]) -> None:
        self._by_name = by_name
        named = {name for entry in entries for name in _sidecar_names(entry)}
        self._unmatched = [
            path for name, path in by_name.items() if name != FOLDER_SIDECAR and name not in named
        ]

    @classmethod
    def among(cls, entries: list[Path]) -> _Sidecars:
        sidecars = {path.name: path for path in entries if path.name.endswith(SIDECAR_SUFFIX)}
        return cls(sidecars, [path for path in entries if path.name not in sidecars])

    def for_folder(self) -> Path | None:
        return self._by_name.get(FOLDER_SIDECAR)

    def for_entry(self, entry: Path) -> list[Path]:
        """Widest first: `nda.meta.json` may speak of nda.docx and nda.pdf, the long name of one."""
        return [self._by_name[name] for name in _sidecar_names(entry) if name in self._by_name]

    def unmatched(self) -> Iterator[Path]:
        yield from self._unmatched


def _sidecar_names(entry: Path) -> list[str]:
    """The names a sidecar of this file or folder may have, widest first."""
    stem = entry.name
    for suffix in SUPPORTED:
        stem = stem.removesuffix(suffix) if stem.lower().endswith(suffix) else stem
    names = [stem + SIDECAR_SUFFIX, entry.name + SIDECAR_SUFFIX]
    return [name for name in dict.fromkeys(names) if name != FOLDER_SIDECAR]


def _is_hidden(path: Path) -> bool:
    return path.name.startswith((".", "~$"))
