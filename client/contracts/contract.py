"""What the readers hand on: contracts, and a named account of everything that was not read.

One `Contract` is one training text: a whole document (`.txt`, `.md`, `.docx`, `.pdf`) or one
record of a `.jsonl` file. Nothing is dropped in silence: what could not be read is an
`Unreadable`, what was left out on purpose is counted in `ReadResult.excluded`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.errors import FoedusError

# Why a readable contract was left out on purpose; the keys of `ReadResult.excluded`.
EXCLUDED_MATTER = "matter excluded"
NO_CONSENT = "no consent"
BROKEN_SIDECAR = "sidecar unreadable"
LINKED_ELSEWHERE = "link to a file of the same folder"


class ContractsError(FoedusError):
    """The folder as a whole cannot be read (a single bad file never raises)."""


class UnreadableDocument(ContractsError):
    """A reader cannot make text of one file. The message never quotes the file's content."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of an instruction example; `role` is system, user, assistant, developer or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Contract:
    """One text of a site, with what is known about it.

    source: unique within a folder unless a record or sidecar says otherwise: `sub/nda.docx`,
        `all.jsonl:12`.
    file: the file it was read from, below the folder that was read; empty if from no file.
    matter: the client engagement it belongs to, the unit of privacy; None where unknown.
    consent: always True for what `read_contracts` returns; others are counted, not returned.
    messages: for instruction records; `text` then joins their contents.
    fields: every other scalar as read, as text (company, contract_type, year, ...).
    """

    text: str
    source: str
    matter: str | None = None
    licence: str | None = None
    consent: bool = True
    label: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    file: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One thing that was not read: a file, a `file:line` or a `file page n`, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class ReadResult:
    """Everything a folder gave. `excluded` maps a reason to a number of contracts (or links)."""

    contracts: tuple[Contract, ...]
    unreadable: tuple[Unreadable, ...]
    excluded: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DocumentText:
    """The text of one document file.

    problems: (place within the file, reason) for each part that gave no text, e.g. a scanned page.
    fields: what the reader itself noticed, e.g. the encoding of an old text file.
    """

    text: str
    problems: tuple[tuple[str, str], ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
