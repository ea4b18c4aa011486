"""The phrasings behind the synthetic contracts, read from the text files in `phrases/`.

Form of those files, one phrase a line:
    ## name of a clause type
    near: types it is easily confused with
    about: a noun phrase by which other clauses refer to it
    - a body of the clause
    + a sentence that may follow it
`{A}` is the side that provides, `{B}` the side that pays, `[x|y|z]` a choice of words; the other
names in braces are listed in `simulations.data.synthetic`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files

_CHOICE = re.compile(r"\[([^\]]+)\]")


@dataclass
class ClauseType:
    """One label, and how it can be worded."""

    name: str
    near: tuple[str, ...] = ()
    about: str = ""
    bodies: list[str] = field(default_factory=list)
    tails: list[str] = field(default_factory=list)


@functools.cache
def clause_types() -> tuple[ClauseType, ...]:
    """All clause types, in the order of the files."""
    folder = files("simulations.data").joinpath("phrases")
    texts = sorted(folder.iterdir(), key=lambda entry: entry.name)
    lines = [
        line
        for text in texts
        if text.name.endswith(".txt")
        for line in text.read_text(encoding="utf-8").split("\n")
    ]
    return tuple(_parse(lines))


def _parse(lines: Iterable[str]) -> list[ClauseType]:
    types: list[ClauseType] = []
    for line in lines:
        mark, _, rest = line.partition(" ")
        if mark == "##":
            types.append(ClauseType(rest))
        elif mark == "near:":
            types[-1].near = tuple(name.strip() for name in rest.split(","))
        elif mark == "about:":
            types[-1].about = rest
        elif mark == "-":
            types[-1].bodies.append(rest)
        elif mark == "+":
            types[-1].tails.append(rest)
    return types


def choices(phrase: str) -> list[list[str]]:
    """The alternatives of each `[x|y|z]` in a phrase, from left to right."""
    return [found.split("|") for found in _CHOICE.findall(phrase)]


def with_choices(phrase: str, chosen: Iterable[str]) -> str:
    """The phrase with each `[x|y|z]` replaced by the word chosen for it."""
    remaining = iter(chosen)
    return _CHOICE.sub(lambda _: next(remaining), phrase)
