"""The passphrase that private keys are encrypted with at rest, where a firm wants one.

It comes from a file or the environment, never from the command line, where others could read it.
"""

from __future__ import annotations

import os
from pathlib import Path

from protocol.errors import FoedusError

VARIABLE = "FOEDUS_PASSPHRASE"
# For service managers, which hand secrets over as files.
FILE_VARIABLE = "FOEDUS_PASSPHRASE_FILE"


def read_passphrase(file: Path | None = None) -> bytes | None:
    """The first line of `file`, else of the file that FOEDUS_PASSPHRASE_FILE names, else the
    variable FOEDUS_PASSPHRASE, else None: no passphrase.

    Errors: FoedusError where the file is missing or its first line empty.
    """
    if file is None and (named := os.environ.get(FILE_VARIABLE)):
        file = Path(named)
    if file is None:
        return os.environ.get(VARIABLE, "").encode() or None
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise FoedusError(f"Expected a passphrase in {file}: {error.strerror}.") from error
    if not lines or not lines[0]:
        raise FoedusError(f"Expected a passphrase in the first line of {file}, got an empty one.")
    return lines[0]
