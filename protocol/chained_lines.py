"""JSON lines that each hold the SHA-256 of the line before: a line that was removed, altered or
inserted shows as soon as another follows it.

The end of the file has nothing after it to show a cut: the newest line must be known elsewhere too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.append_only import AppendOnlyLines
from protocol.errors import FoedusError

GENESIS = "0" * 64


@dataclass(frozen=True)
class Position:
    """Between two lines. offset: in bytes; count: lines before it; previous: hash of the last."""

    offset: int = 0
    count: int = 0
    previous: str = GENESIS


@dataclass(frozen=True)
class ChainedLine:
    """One line's values, "sequence" and "previous" among them. hash: SHA-256 of the line, hex."""

    values: dict[str, Any]
    hash: str
    end: Position


class ChainedLines:
    """Append-only. what: the name of a line in errors, such as "receipt"."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._what = what
        self._lines = AppendOnlyLines(path)

    def append(self, values: Mapping[str, Any]) -> ChainedLine:
        """Write the next line; on disk when it returns.

        Errors: OSError where the disk refuses; FoedusError where the last line is damaged.
        """
        with self._lines.alone():
            last = self._lines.last_line()
            sequence = 0 if last is None else self._sequence_of(last) + 1
            previous = GENESIS if last is None else line_hash(last)
            whole = {**values, "sequence": sequence, "previous": previous}
            line = json.dumps(whole, sort_keys=True).encode()
            self._lines.append([line])
            end = Position(self.path.stat().st_size, sequence + 1, line_hash(line))
        return ChainedLine(whole, line_hash(line), end)

    def verify(self, after: Position | None = None) -> Iterator[ChainedLine]:
        """Every line in order, from the start or after what was verified before. Half a line at the
        end is left out: somebody is writing it, or a crash left it.

        Errors: FoedusError naming the first line that does not fit.
        """
        at = after or Position()
        for line in self._lines.lines(at.offset):
            values = self._values(line, at.count + 1)
            if values.get("previous") != at.previous or values.get("sequence") != at.count:
                raise FoedusError(
                    f"{self.path}, line {at.count + 1} does not follow from the line before: "
                    f"a {self._what} was removed, altered or inserted."
                )
            at = Position(at.offset + len(line) + 1, at.count + 1, line_hash(line))
            yield ChainedLine(values, at.previous, at)

    def no_such_line(self, number: int) -> FoedusError:
        """What to raise about a line that holds something else; number: from 1."""
        return FoedusError(f"{self.path}, line {number} is no {self._what}.")

    def _values(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = json.loads(line)
        except ValueError as error:
            raise self.no_such_line(number) from error
        if not isinstance(values, dict) or not {"sequence", "previous"} <= values.keys():
            raise self.no_such_line(number)
        return values

    def _sequence_of(self, last: bytes) -> int:
        try:
            return int(json.loads(last)["sequence"])
        except (ValueError, TypeError, KeyError) as error:
            raise FoedusError(
                f"Expected a {self._what} as the last line of {self.path}, got something else. "
                "Nothing is written after it: restore the file."
            ) from error


def line_hash(line: bytes) -> str:
    """SHA-256 in hex of a line without its end."""
    return hashlib.sha256(line).hexdigest()
