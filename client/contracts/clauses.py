"""Splits a whole contract into the clauses a classifier can label.

A clause begins at a numbered section, at a heading, or at a new paragraph; list items that only
continue a sentence stay with it. Rules over lines, no model: it works on text from Word (a blank
line between paragraphs), from PDF (hard-wrapped lines) and from text files (a paragraph a line).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause; `text == contract_text[start:end]`, offsets in characters."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Line:
    """One line without its outer blanks; `after_gap`: a blank line or the start is above it."""

    text: str
    start: int
    end: int
    after_gap: bool


# "1.", "12.3.1", "1)", "Section 4", "ARTICLE IX", "Clause 7.2", "§ 3", "Schedule B", "# Title"
_SECTION = re.compile(
    r"(?:\d{1,3}(?:\.\d{1,3})+\.?|\d{1,3}[.)]|[IVXLC]{1,6}\.)\s+\S"
    r"|(?:section|article|clause|schedule|exhibit|annex|appendix)\s+(?:\d|[IVXLC]+\b|[A-Z]\b)"
    r"|§\s*\d|#{1,6}\s",
    re.IGNORECASE,
)
# "(a)", "(iv)", "b)", a hyphen or dash, a bullet
_ITEM = re.compile(
    r"(?:\(?(?:[a-z]{1,2}|[ivx]{1,5}|\d{1,2})\)|[-*\u2013\u2022\u25aa])\s+", re.IGNORECASE
)
_HEADING_CHARACTERS = 90
# A line this long was not wrapped by a PDF or a mail program: it is a paragraph of its own.
_UNWRAPPED_CHARACTERS = 160
_SMALL_WORDS = {"a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "of", "on", "or"}
_SMALL_WORDS |= {"the", "to", "under", "with"}


def split_clauses(text: str) -> list[Clause]:
    """The clauses of a contract in order.

    Guarantee: clauses do not overlap, none is empty, and every character that is not white space
    is in exactly one of them. A heading is part of the clause below it, unless that is numbered.
    """
    lines = _lines(text)
    width = _usual_width(lines)
    starts = [
        index
        for index, line in enumerate(lines)
        if index == 0 or _begins_clause(lines[index - 1], line, width)
    ]
    spans = [
        (lines[first].start, lines[last - 1].end) for first, last in pairwise([*starts, len(lines)])
    ]
    return [Clause(text[start:end], start, end) for start, end in _with_headings(text, spans)]


def _lines(text: str) -> list[_Line]:
    """The lines that hold anything. Form feeds and other Unicode line ends count as line ends."""
    lines: list[_Line] = []
    position = 0
    after_gap = True
    for raw in text.splitlines(keepends=True):
        stripped = raw.strip()
        if stripped:
            start = position + raw.index(stripped)
            lines.append(_Line(stripped, start, start + len(stripped), after_gap))
        after_gap = not stripped
        position += len(raw)
    return lines


def _usual_width(lines: list[_Line]) -> int:
    """The width, in characters, that nine lines in ten stay within: where wrapped text wraps."""
    widths = sorted(len(line.text) for line in lines)
    return widths[int(0.9 * (len(widths) - 1))] if widths else 0


def _begins_clause(above: _Line, line: _Line, width: int) -> bool:
    """Whether `line` begins a clause, given the line above it."""
    if _SECTION.match(line.text):
        # "... as set out in\nSection 4 of this Agreement" is a wrapped reference, not a section.
        return line.after_gap or _ends_sentence(above) or is_heading(above.text)
    item = _ITEM.match(line.text)
    if item:
        rest = line.text[item.end() :]
        return not above.text.endswith((":", ";", ",", "and", "or")) and not rest[:1].islower()
    if is_heading(line.text) and (line.after_gap or _ends_sentence(above)):
        return True
    if line.after_gap:
        # A page break inside a sentence leaves a gap too.
        return not (line.text[:1].islower() and not _ends_sentence(above))
    if not _ends_sentence(above) or line.text[:1].islower():
        return False
    return len(above.text) > _UNWRAPPED_CHARACTERS or len(above.text) < 0.75 * width


def _ends_sentence(line: _Line) -> bool:
    return line.text.rstrip("\"'\u201d\u2019)]*_").endswith((".", ";", ":", "!", "?"))


def is_heading(line: str) -> bool:
    """Whether a line reads as a heading: short, no full stop, its words capitalised."""
    if line.startswith("#"):
        return True
    numbered = _SECTION.match(line) is not None
    words = re.findall(r"[^\W\d_]+", line)
    if not words or len(line) > _HEADING_CHARACTERS or line.endswith((";", ",", ":")):
        return False
    if line.endswith(".") and not (numbered and len(words) <= 6):
        return False
    large = [word for word in words if word.lower() not in _SMALL_WORDS]
    return bool(large) and all(word[:1].isupper() for word in large)


def _with_headings(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans with each heading joined to the clause below it.

    A heading stays on its own above another heading, and above a clause with a number of its own:
    it speaks of the whole section then, not of its first clause.
    """
    joined: list[tuple[int, int]] = []
    heading: tuple[int, int] | None = None
    for start, end in spans:
        whole = text[start:end]
        if heading is not None and (is_heading(whole) or _SECTION.match(whole)):
            joined.append(heading)
            heading = None
        if is_heading(whole):
            heading = (start, end)
        else:
            joined.append((heading[0] if heading is not None else start, end))
            heading = None
    return [*joined, heading] if heading is not None else joined
