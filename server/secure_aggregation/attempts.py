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
    """The last attempt, in one small file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def next(self, run_id: str, round_: int) -> int:
        """The next number (from 1), on disk before it is used. Errors: FoedusError, OSError."""
        last = self._read()
        again = last.get("run_id") == run_id and last.get("round") == round_
        attempt = int(last["attempt"]) + 1 if again else 1
        text = json.dumps({"run_id": run_id, "round": round_, "attempt": attempt})
        write_atomically(self._path, text.encode())
        return attempt

    def _read(self) -> dict[str, str | int]:
        if not self._path.exists():
            return {}
        try:
            values: dict[str, str | int] = json.loads(self._path.read_text(encoding="utf-8"))
            int(values["attempt"])
            return values
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FoedusError(
                f"Expected the number of the last attempt in {self._path}, got a damaged file. "
                "Remove it: if the round that was cut off is then refused by its sites, the run "
                "goes on with the next one."
            ) from error
