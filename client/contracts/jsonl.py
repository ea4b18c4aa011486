"""JSON lines, plain or gzip: one record a line, read as a stream.

A line that is broken is named as `file:line` and skipped; the lines around it are kept. A gzip
file that breaks off gives what came before the break.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from client.contracts.contract import ChatMessage, Contract, Unreadable
from client.contracts.sidecar import (
    Sidecar,
    is_scalar,
    joint_consent,
    json_type,
    parse_json,
    scalar_text,
)

MAX_LINE_BYTES = 16 * 1024 * 1024
# A wrong file can be broken on every line; past this many, the rest is reported as a count.
MAX_REPORTED_LINES = 1000

_ROLES = ("system", "developer", "user", "assistant", "tool")
_OWN_KEYS = {"text", "messages", "label", "matter", "source", "id", "licence", "license", "consent"}


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of a file; `line` counts from 1."""

    line: int
    content: Mapping[str, Any]


class RecordError(Exception):
    """A line or record that is no contract; the message never quotes its values."""


_Item = TypeVar("_Item", Record, Contract)


def read_records(path: Path, name: str) -> Iterator[Record | Unreadable]:
    """Every object of a `.jsonl` or `.jsonl.gz`, as they stand, and every fault as an Unreadable.

    name: how reports call the file. Raises OSError where the file cannot be opened.
    """
    return _bound_faults(_records(path, name), name)


def read_jsonl(path: Path, name: str, sidecar: Sidecar) -> Iterator[Contract | Unreadable]:
    """The contracts of a `.jsonl` or `.jsonl.gz` file; `sidecar` gives what records leave unsaid.

    Contracts without consent come out with `consent=False`: the caller counts and drops them.
    """

    def contracts() -> Iterator[Contract | Unreadable]:
        for record in _records(path, name):
            if isinstance(record, Unreadable):
                yield record
                continue
            place = f"{name}:{record.line}"
            try:
                yield contract_from_record(record.content, name, record.line, sidecar)
            except RecordError as failure:
                yield Unreadable(place, str(failure))

    return _bound_faults(contracts(), name)


def _bound_faults(items: Iterator[_Item | Unreadable], name: str) -> Iterator[_Item | Unreadable]:
    """The same items, with the faults past MAX_REPORTED_LINES told as one number."""
    faults = 0
    for item in items:
        faults += isinstance(item, Unreadable)
        if not isinstance(item, Unreadable) or faults <= MAX_REPORTED_LINES:
            yield item
    if faults > MAX_REPORTED_LINES:
        yield Unreadable(name, f"{faults - MAX_REPORTED_LINES} more lines of it are broken")


def _records(path: Path, name: str) -> Iterator[Record | Unreadable]:
    line = 0
    silent = True
    try:
        for line, (raw, whole) in enumerate(_lines(path), start=1):
            if line == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                yield Unreadable(name, "expected UTF-8, got UTF-16; save it again as UTF-8")
                return
            try:
                record = _parse_line(raw, whole, line)
            except RecordError as failure:
                silent = False
                yield Unreadable(f"{name}:{line}", str(failure))
                continue
            if record is not None:
                silent = False
                yield record
    except (EOFError, gzip.BadGzipFile, zlib.error) as failure:
        yield Unreadable(
            f"{name}:{line + 1}",
            f"the gzip data breaks off or is damaged here ({type(failure).__name__}); "
            f"lines read before that: {line}",
        )
        return
    if silent:
        yield Unreadable(name, "it holds no record")


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """(line, whether it is whole) for each line; what exceeds the bound is read past, not held."""
    with contextlib.ExitStack() as open_files:
        stream: BinaryIO | gzip.GzipFile = open_files.enter_context(path.open("rb"))
        if path.suffix.lower() == ".gz":
            stream = open_files.enter_context(gzip.GzipFile(fileobj=stream))
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            whole = len(raw) <= MAX_LINE_BYTES or raw.endswith(b"\n")
            rest = raw
            while not whole and rest and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_LINE_BYTES)
            yield raw, whole


def contract_from_record(
    record: Mapping[str, Any], name: str, line: int, sidecar: Sidecar
) -> Contract:
    """One record as a contract. Raises RecordError.

    record: `text` or `messages`; optionally `label`, `matter`, `source` (or `id`), `licence` (or
        `license`), `consent`. Other scalars become fields; lists and objects are left out.
    name, line: where it stands, `name:line` being the source of a record that names none.
    """
    messages = _messages(record.get("messages"))
    text = record.get("text")
    if text is None and messages:
        text = "\n\n".join(message.content for message in messages)
    if not isinstance(text, str) or not text.strip():
        got = "empty text" if isinstance(text, str) else json_type(text)
        raise RecordError(f"expected text in 'text' (or a list of 'messages'), got {got}")
    consent = record.get("consent", True)
    if not isinstance(consent, bool):
        # null, "no" or 0 may all mean refusal, so none of them is taken for consent.
        raise RecordError(f"'consent' must be true or false, got {json_type(consent)}")
    named = {key: _scalar(record, key) for key in _OWN_KEYS - {"text", "messages", "consent"}}
    own_fields = {
        key: scalar
        for key, value in record.items()
        if key not in _OWN_KEYS and (scalar := scalar_text(value)) is not None
    }
    contract = Contract(
        text=text,
        source=named["source"] or named["id"] or _default_source(f"{name}:{line}", sidecar),
        matter=named["matter"] or sidecar.matter,
        licence=named["licence"] or named["license"] or sidecar.licence,
        consent=joint_consent(sidecar.consent, consent) is not False,
        label=named["label"] or sidecar.label,
        messages=messages,
        fields={**sidecar.fields, **own_fields},
        file=name,
    )
    _refuse_lone_surrogates(contract)
    return contract


def _parse_line(raw: bytes, whole: bool, line: int) -> Record | None:
    """The record on a line; None where the line is blank. Raises RecordError."""
    if not whole:
        raise RecordError(f"expected at most {MAX_LINE_BYTES} bytes on a line, got more")
    try:
        text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError:
        raise RecordError("expected UTF-8, got other bytes") from None
    if not text.strip():
        return None
    try:
        content = parse_json(text)
    except ValueError as failure:
        raise RecordError(f"not valid JSON: {failure}") from None
    if not isinstance(content, dict):
        raise RecordError(f"expected an object, got {json_type(content)}")
    return Record(line, content)


def _messages(value: object) -> tuple[ChatMessage, ...]:
    """The turns of an OpenAI-style chat record. Raises RecordError."""
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise RecordError(f"'messages' must be a list of turns, got {json_type(value)}")
    turns = []
    for number, turn in enumerate(value, start=1):
        role = turn.get("role") if isinstance(turn, dict) else None
        content = turn.get("content") if isinstance(turn, dict) else None
        if role not in _ROLES:
            raise RecordError(
                f"turn {number} of 'messages' must have a role of {', '.join(_ROLES)}"
            )
        if not isinstance(content, str):
            raise RecordError(
                f"turn {number} of 'messages' must have text as 'content', got {json_type(content)}"
            )
        turns.append(ChatMessage(role, content))
    return tuple(turns)


def _scalar(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    if value is not None and not is_scalar(value):
        raise RecordError(f"{key!r} must be a single value, got {json_type(value)}")
    return scalar_text(value)


def _default_source(place: str, sidecar: Sidecar) -> str:
    return f"{sidecar.source}/{place}" if sidecar.source else place


def _refuse_lone_surrogates(contract: Contract) -> None:
    """JSON can escape half a character; tokenisers and UTF-8 files cannot hold it."""
    named = (contract.source, contract.matter, contract.licence, contract.label)
    turns = (message.content for message in contract.messages)
    values = (contract.text, *named, *turns, *contract.fields, *contract.fields.values())
    for value in values:
        try:
            (value or "").encode("utf-8")
        except UnicodeEncodeError:
            raise RecordError("it holds half a character (a lone \\u surrogate)") from None
