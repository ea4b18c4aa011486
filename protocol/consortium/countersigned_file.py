"""One member's receipts with both signatures, in the order they were made, at either side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from protocol.append_only import AppendOnlyLines
from protocol.consortium.countersignature import CountersignedReceipt
from protocol.errors import FoedusError

_SUFFIX = ".jsonl"


class CountersignedFile:
    """FOLDER/MEMBER_ID.jsonl; grows only. Each line proves itself by its signatures."""

    def __init__(self, folder: Path, member_id: str) -> None:
        self.path = folder / f"{member_id}{_SUFFIX}"
        self._lines = AppendOnlyLines(self.path)

    @classmethod
    def all_in(cls, folder: Path) -> dict[str, CountersignedFile]:
        """The files of a folder by member id."""
        names = sorted(path.stem for path in folder.glob(f"*{_SUFFIX}"))
        return {member_id: cls(folder, member_id) for member_id in names}

    def read(self) -> list[CountersignedReceipt]:
        """All of them; their signatures are not checked.

        Errors: FoedusError naming the first line that is none.
        """
        receipts = []
        for number, line in enumerate(self._lines.lines(), 1):
            where = f"{self.path}, line {number}"
            try:
                values = json.loads(line)
            except ValueError as error:
                raise FoedusError(f"{where} is no receipt: restore the file.") from error
            receipts.append(CountersignedReceipt.from_values(values, where))
        return receipts

    def append(self, receipts: Sequence[CountersignedReceipt]) -> None:
        """Add these; on disk when it returns. Errors: OSError."""
        if receipts:
            lines = [json.dumps(one.to_values(), sort_keys=True).encode() for one in receipts]
            with self._lines.alone():
                self._lines.append(lines)
