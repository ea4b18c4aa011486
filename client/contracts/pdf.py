"""PDF files with a text layer. Scanned pages hold none: they are reported, not read."""

from __future__ import annotations

import logging
from pathlib import Path

import pypdf
from pypdf.generic import DictionaryObject

from client.contracts.contract import DocumentText, UnreadableDocument

# pypdf's warnings quote pieces of the file, and a contract's words must not reach a log.
logging.getLogger("pypdf").setLevel(logging.CRITICAL)


def read_pdf(path: Path) -> DocumentText:
    """Text of a `.pdf` file, one blank line between pages. Raises UnreadableDocument.

    A page that fails, or that is only a picture, is named in `problems`; the others are kept.
    """
    with path.open("rb") as stream:
        reader = pypdf.PdfReader(stream)
        # An owner password only forbids printing or copying: such files open with "" as password.
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableDocument("it is encrypted with a password; save it without one")
        if not reader.pages:
            raise UnreadableDocument("expected pages, got a PDF without any")
        texts: list[str] = []
        problems: list[tuple[str, str]] = []
        for number, page in enumerate(reader.pages, start=1):
            try:
                text = page.extract_text().strip()
                if not text and _holds_picture(page):
                    problems.append(
                        (f"page {number}", "it is a picture without a text layer (a scan?)")
                    )
            except Exception as failure:  # pypdf raises whatever a broken page makes it trip over
                problems.append((f"page {number}", f"pypdf failed on it: {type(failure).__name__}"))
                continue
            if text:
                texts.append(text)
    if not texts:
        if problems and all("picture" in reason for _, reason in problems):
            raise UnreadableDocument("it holds only pictures of text (a scan); run OCR on it first")
        raise UnreadableDocument("no page of it gives any text")
    return DocumentText("\n\n".join(texts), tuple(problems))


def _holds_picture(page: pypdf.PageObject) -> bool:
    """Whether the page draws an image or a form, without decoding it."""
    resources = page.get("/Resources", {})
    resources = resources.get_object() if resources else {}
    if not isinstance(resources, DictionaryObject):
        return False
    drawn = resources.get("/XObject")
    return drawn is not None and bool(drawn.get_object())
