"""Word files: paragraphs and tables in the order of the document.

python-docx opens the package; the walk over its XML is ours, because `Paragraph.text` skips runs
inside tracked insertions and content controls, which are where negotiated wording sits. Tracked
changes are read as if accepted. Headers, footers, footnotes and comments are left out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docx

from client.contracts.contract import DocumentText, UnreadableDocument

# A .docx is a zip: a few kilobytes can unpack to gigabytes.
MAX_UNPACKED_BYTES = 512 * 1024 * 1024

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_OLE_HEADER = bytes.fromhex("d0cf11e0a1b11ae1")
# mc:Fallback repeats a text box for old readers; deleted and moved-away wording is not agreed.
_SKIPPED = {
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
    f"{_W}del",
    f"{_W}moveFrom",
}
_BREAKS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}


def read_docx(path: Path) -> DocumentText:
    """Text of a `.docx` file; one blank line between paragraphs, cells of a row joined by ` | `."""
    _check_package(path)
    document = docx.Document(str(path))
    blocks = (block.strip() for block in _blocks(document.element.body))
    return DocumentText("\n\n".join(block for block in blocks if block))


def _check_package(path: Path) -> None:
    """Raises UnreadableDocument unless the file is a zip of a size that can be unpacked."""
    with path.open("rb") as stream:
        header = stream.read(len(_OLE_HEADER))
    if header == _OLE_HEADER:
        raise UnreadableDocument(
            "it is password-protected, or an old .doc under a .docx name; save it as an "
            "unprotected .docx"
        )
    if not zipfile.is_zipfile(path):
        raise UnreadableDocument("expected a .docx (a zip package), got something else")
    with zipfile.ZipFile(path) as package:
        unpacked_bytes = sum(member.file_size for member in package.infolist())
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise UnreadableDocument(
            f"expected a .docx of at most {MAX_UNPACKED_BYTES} bytes unpacked, got {unpacked_bytes}"
        )


# lxml elements are untyped, hence Any below.
def _blocks(container: Any) -> Iterator[str]:
    """Text of each paragraph and each table row below `container`, in document order."""
    for element in container:
        if element.tag == f"{_W}p":
            yield "".join(_pieces(element))
        elif element.tag == f"{_W}tbl":
            yield from _rows(element)
        elif element.tag not in _SKIPPED and isinstance(element.tag, str):
            # Content controls, custom XML and tracked insertions wrap whole paragraphs.
            yield from _blocks(element)


def _rows(table: Any) -> Iterator[str]:
    """One line a table row. A merged cell is one element in the XML, so it appears once."""
    for row in _descend(table, "tr"):
        cells = (" ".join(" ".join(_blocks(cell)).split()) for cell in _descend(row, "tc"))
        yield " | ".join(cell for cell in cells if cell)


def _descend(element: Any, name: str) -> Iterator[Any]:
    """The nearest `w:name` elements below `element`, through content controls, in order."""
    for child in element:
        if child.tag == f"{_W}{name}":
            yield child
        elif child.tag not in _SKIPPED and child.tag != f"{_W}tbl":
            yield from _descend(child, name)


def _pieces(element: Any) -> Iterator[str]:
    """The visible text of a paragraph, piece by piece."""
    for child in element:
        if child.tag == f"{_W}t":
            yield child.text or ""
        elif child.tag in _BREAKS and element.tag != f"{_W}tabs":
            yield _BREAKS[child.tag]
        elif child.tag == f"{_W}txbxContent":
            yield "\n" + "\n".join(_blocks(child)) + "\n"
        elif child.tag not in _SKIPPED:
            yield from _pieces(child)
