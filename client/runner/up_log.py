"""Where a site's processes write what happens: state/up.log, and the terminal for what counts."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from client.terminal import printable_line

UP_LOG = "up.log"
_MAX_BYTES, _NUM_KEPT = 5 * 2**20, 5
# What a child quotes of the coordinator's must not push all else out of the file.
_LONGEST_LINE = 10_000
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Flower separates its messages by lines without a text.
_ONLY_LEVEL = re.compile(r"[A-Z]+ *:")


class UpLog:
    """A rotated text file with times in UTC, one line an event: `TIME PROCESS LEVEL: TEXT`.

    Lines of the supervisor and of the runner are shown on stderr too; the SuperNode's are not.
    """

    def __init__(self, state_folder: Path) -> None:
        state_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = _OwnersFile(
            state_folder / UP_LOG, maxBytes=_MAX_BYTES, backupCount=_NUM_KEPT, encoding="utf-8"
        )
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        self._file = logging.Logger("up")
        self._file.addHandler(handler)
        # What other parts of foedus log in this process they show themselves.
        logging.getLogger("foedus").addHandler(_Forward(self._write))

    def say(self, text: str, level: str = "INFO") -> None:
        """An event of the supervisor's."""
        self._write("up", f"{level}: {text}", shown=True)

    def heard(self, process: str, line: str, shown: bool) -> str:
        """A line that a child wrote; returned without colours and what else steers terminals, cut
        to 10,000 characters."""
        text = printable_line(_COLOURS.sub("", line[:_LONGEST_LINE])).strip()
        if text and not _ONLY_LEVEL.fullmatch(text):
            self._write(process, text, shown)
        return text

    def _write(self, process: str, text: str, shown: bool) -> None:
        self._file.info("%s %s", process, text)
        if shown:
            # A terminal that has gone must not stop whoever writes, nor a child behind a full pipe.
            with suppress(OSError, ValueError):
                print(f"{time.strftime('%H:%M:%S')} {process} {text}", file=sys.stderr, flush=True)


class _OwnersFile(RotatingFileHandler):
    """Readable by its owner alone: it tells names of files, and losses."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        os.fchmod(stream.fileno(), 0o600)
        return stream


class _Forward(logging.Handler):
    def __init__(self, write: Callable[[str, str, bool], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write("up", f"{record.levelname}: {printable_line(record.getMessage())}", False)
