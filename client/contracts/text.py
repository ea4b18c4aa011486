"""Plain text and Markdown files: find the encoding, refuse what is not text.

UTF-8 first, then UTF-16 or UTF-32 if a byte order mark says so, then Windows-1252, which old
contracts are often saved in. The last is a guess that could turn accents into other characters,
so a text read that way carries the field `encoding`, for a person to see.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from client.contracts.contract import DocumentText, UnreadableDocument

MAX_TEXT_BYTES = 64 * 1024 * 1024

# UTF-32's little-endian mark begins with UTF-16's, so it has to be tried first.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Control characters that no word processor writes into a text file; tab, line feed, carriage
# return, form feed (page break), vertical tab and DOS end-of-file are let through.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0e-\x19\x1b-\x1f]")


def read_text(path: Path) -> DocumentText:
    """Text of a `.txt` or `.md` file, line ends as `\\n`. Raises UnreadableDocument."""
    size_bytes = path.stat().st_size
    if size_bytes > MAX_TEXT_BYTES:
        raise UnreadableDocument(
            f"expected at most {MAX_TEXT_BYTES} bytes in one text file, got {size_bytes}; split it"
        )
    text, encoding = decode_text(path.read_bytes())
    fields = {"encoding": encoding} if encoding == "windows-1252" else {}
    return DocumentText(text, fields=fields)


def decode_text(raw: bytes) -> tuple[str, str]:
    """(text, encoding) of the bytes of a text file. Raises UnreadableDocument for other bytes."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            try:
                return _checked(raw[len(mark) :].decode(encoding)), encoding
            except UnicodeDecodeError:
                raise UnreadableDocument(
                    f"its byte order mark promises {encoding}, but the bytes are not that; "
                    "save it again as UTF-8"
                ) from None
    try:
        return _checked(raw.decode("utf-8")), "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        return _checked(raw.decode("windows-1252")), "windows-1252"
    except UnicodeDecodeError:
        raise UnreadableDocument(
            "expected text as UTF-8, UTF-16 with a byte order mark or Windows-1252, got other "
            "bytes; save it again as UTF-8"
        ) from None


def _checked(text: str) -> str:
    """`text` with plain line ends; raises where control characters show a binary file."""
    if _CONTROL_CHARACTERS.search(text):
        raise UnreadableDocument("expected text, got a binary file under a text file's name")
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\x1a")
