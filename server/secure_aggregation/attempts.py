"""Numbers of a round's attempts that no earlier attempt has had, across crashes and resumes.

Sites answer an attempt once. A coordinator that was killed in the middle of a round and goes on
must therefore not use the same number again.
"""

from __future__ import annotations

import json
from pathlib import Path

from protocol.errors import FoedusError
from protocol.files import write_atomically


class AttemptCounter:
    """The last attempt at each round of one run, in one small file: a run whose newest checkpoints
    are lost goes back to rounds that it was past."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def next(self, run_id: str, round_: int) -> int:
        """The next number (from 1), on disk before it is used. Errors: FoedusError, OSError."""
        last = self._read(run_id)
        attempt = last.get(str(round_), 0) + 1
        text = json.dumps({"run_id": run_id, "attempts": {**last, str(round_): attempt}})
        write_atomically(self._path, text.encode())
        return attempt

    def _read(self, run_id: str) -> dict[str, int]:
        """Round -> last attempt; empty where the file is of another run."""
        if not self._path.exists():
            return {}
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            attempts = {str(round_): int(last) for round_, last in values["attempts"].items()}
            return attempts if values["run_id"] == run_id else {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FoedusError(
                f"Expected the numbers of the last attempts in {self._path}, got a damaged file. "
                "Remove it: if the round that was cut off is then refused by its sites, the run "
                "goes on with the next one."
            ) from error
