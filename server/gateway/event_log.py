"""The coordinator's log: JSON lines with fixed keys in state/gateway.log, and words on stderr.

No line holds anything of a request's content: paths are those that are offered or "other", names
are firms' and node ids.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from server.gateway.observing import Served

ROTATE_BYTES = 16 << 20
ROTATIONS = 5

log = logging.getLogger("foedus.gateway")


class JsonLines(logging.Formatter):
    """time, level, logger, event, text; and for requests what Served holds."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        event = getattr(record, "event", {"event": "message"})
        values = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname,
            "logger": record.name,
            "text": text,
            **event,
        }
        return json.dumps(values)


def keep_output(path: Path) -> TextIO:
    """Send what this process and Flower's processes below it print to a file.

    Returns the stderr there was, for the log and for errors: nothing else is mixed into it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > ROTATE_BYTES:
        path.replace(path.with_suffix(".log.1"))
    shown = os.fdopen(os.dup(2), "w", buffering=1)
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stderr = shown
    return shown


def configure_logging(path: Path, log_format: str, stderr: TextIO) -> None:
    """Everything at INFO to the file; on stderr the same as JSON, or in words without requests
    that went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = RotatingFileHandler(path, maxBytes=ROTATE_BYTES, backupCount=ROTATIONS)
    kept.setFormatter(JsonLines())
    shown = logging.StreamHandler(stderr)
    if log_format == "json":
        shown.setFormatter(JsonLines())
    else:
        shown.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        shown.addFilter(lambda record: getattr(record, "shown", True))
    root = logging.getLogger()
    root.handlers = [kept, shown]
    root.setLevel(logging.INFO)
    for chatty in ("alembic", "httpx", "httpcore", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Its warnings are about what strangers send, one line for each request.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # Flower's own logger has a handler of its own, which would write everything twice.
    flower = logging.getLogger("flwr")
    flower.handlers = []
    flower.propagate = True
    flower.setLevel(logging.INFO)


def log_served(served: Served, left_out: int = 0) -> None:
    """A line for a request; refused ones are warnings. left_out: lines like it that were not
    written."""
    event = {"event": "request", **asdict(served), "left_out": left_out}
    del event["text"]
    level = logging.WARNING if served.is_refused else logging.INFO
    log.log(
        level,
        "%s",
        served.text or f"{served.method} {served.path} {served.status}",
        extra={"event": event, "shown": level > logging.INFO},
    )


def log_connection_refused(address: str, reason: str, left_out: int) -> None:
    """A line for it and for `left_out` like it before."""
    event = {
        "event": "connection_refused",
        "address": address,
        "reason": reason,
        "left_out": left_out,
    }
    log.warning("Connection refused: %s.", reason, extra={"event": event})
