"""The site's own record of everything that left it: hash-chained JSON lines.

Each line holds the SHA-256 of the line before, so a line that was removed, altered or inserted
shows as soon as another follows it. The end of the file has nothing after it to show a cut: keep
the newest line elsewhere to detect that. Lines name digests and sizes only, never text.

A line of kind "ledger" is a round's entry in the privacy ledger, which stays here; see
client/privacy/ledger.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from protocol.errors import FoedusError

GENESIS = "0" * 64


@dataclass(frozen=True)
class Receipt:
    """One thing that left. digest: SHA-256 of its bytes; num_bytes: of tensors and numbers.

    ledger: newest row of the privacy ledger then, "sequence:hash"; empty where there is none.
    """

    sequence: int
    time: str
    kind: str
    run_id: str
    round: int
    status: str
    digest: str
    num_bytes: int
    previous: str
    ledger: str = ""


class ReceiptLog:
    """Append-only; writers take turns. Every append is on disk before the reply may leave."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self,
        *,
        kind: str,
        run_id: str,
        round_: int,
        status: str,
        digest: str,
        num_bytes: int,
        ledger: str = "",
    ) -> Receipt:
        """Write the next receipt. Errors: OSError where the disk refuses: then nothing leaves."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            last = self._last_line()
            receipt = Receipt(
                sequence=0 if last is None else int(json.loads(last)["sequence"]) + 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                kind=kind,
                run_id=run_id,
                round=round_,
                status=status,
                digest=digest,
                num_bytes=num_bytes,
                previous=GENESIS if last is None else _line_hash(last),
                ledger=ledger,
            )
            with self.path.open("ab") as stream:
                stream.write(json.dumps(asdict(receipt), sort_keys=True).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        return receipt

    def ledger_heads(self) -> frozenset[str]:
        """Every row of the privacy ledger that a receipt vouches for.

        A half-written last line (crash) is cut off first: it was not promised to anyone yet.
        Errors: FoedusError as `verify`.
        """
        if not self.path.exists():
            return frozenset()
        with self._alone():
            self._last_line()
            return frozenset(receipt.ledger for receipt in self.verify() if receipt.ledger)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other processes and threads from writing meanwhile."""
        with self.path.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def verify(self) -> Iterator[Receipt]:
        """Every receipt in order, checking the chain.

        Errors: FoedusError naming the first line that does not follow from the one before.
        """
        if not self.path.exists():
            return
        previous = GENESIS
        for number, line in enumerate(self.path.read_bytes().splitlines()):
            try:
                receipt = Receipt(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise FoedusError(f"{self.path}, line {number + 1} is no receipt.") from error
            if receipt.previous != previous or receipt.sequence != number:
                raise FoedusError(
                    f"{self.path}, line {number + 1} does not follow from the line before: "
                    "a receipt was removed, altered or inserted."
                )
            previous = _line_hash(line)
            yield receipt

    def _last_line(self) -> bytes | None:
        """The last line, read from the file's end; a half-written line (crash) is cut off first."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return None
        with self.path.open("rb+") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 8192))
            tail = stream.read()
            if not tail.endswith(b"\n"):
                whole, _, _half = tail.rpartition(b"\n")
                stream.truncate(size - len(tail) + (len(whole) + 1 if whole else 0))
                tail = whole
        lines = tail.splitlines()
        return lines[-1] if lines else None


def _line_hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
