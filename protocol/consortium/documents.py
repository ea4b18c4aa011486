"""Reading the consortium's public JSON documents strictly, with everything wrong told at once.

A document is first decoded into a form of texts and whole numbers, and the form into a thing whose
signatures are then checked. Nothing that was not signed is let pass on the way: an unknown key, a
key that stands twice or another spelling of the same bytes is refused.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TypeVar

from protocol.codec import decode
from protocol.errors import FoedusError, SettingsError

T = TypeVar("T")

SCHEMA = 1
MAX_DOCUMENT_BYTES = 1 << 20
# The last second of the year 9999: a later one has no day that `day_of` could show.
LATEST_SECONDS = 253_402_300_799


def read_document(path: Path, what: str) -> str:
    """The file's text. Errors: FoedusError where there is none, or more than 1 MiB of it."""
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise FoedusError(f"Expected {what} of at most 1 MiB at {path}, got a larger file.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FoedusError(f"Expected {what} at {path}, got {type(error).__name__}.") from error


def parse_form(cls: type[T], text: str, where: str) -> T:
    """Decode a JSON object as the dataclass `cls`.

    Errors: SettingsError with every unknown, missing, doubled or ill-typed key.
    """
    try:
        values = json.loads(text, object_pairs_hook=_without_doubles)
        # JSON can spell half characters, which no encoding has and nobody could sign.
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise SettingsError(where, [f"Expected JSON: {error}."]) from error
    return decode(cls, values, where)


def from_hex(text: str, num_bytes: int, what: str, problems: list[str]) -> bytes:
    """The bytes; where `text` is not their one spelling a problem is added and b"" returned."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != num_bytes or value.hex() != text:
        problems.append(f"{what}: expected {2 * num_bytes} hex digits, got {text[:80]!r}.")
        return b""
    return value


def day_of(seconds: int) -> str:
    """A time in Unix seconds, LATEST_SECONDS at most, as its day, UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values
