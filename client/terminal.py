"""How the commands of `foedus client` show things: bars on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

# A bar that flashes up for a second says nothing.
_BAR_AFTER_SECONDS = 2.0


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr once the work has taken a few seconds; only in a terminal.

    Gives a function that hears (done, in all); until it is called, the bar shows no end.
    """
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(what, total=None)
    timer = threading.Timer(_BAR_AFTER_SECONDS, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


def print_table(
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
    numbers: Collection[str] = (),
    title: str = "",
) -> None:
    """A table on stdout. numbers: the headings of columns that are set to the right."""
    table = Table(title=Text(printable_line(title)) if title else None, box=SIMPLE, padding=(0, 1))
    table.title_justify = "left"
    for heading in headings:
        # Folded, not cut: half a label or digest is none.
        side: Literal["left", "right"] = "right" if heading in numbers else "left"
        table.add_column(heading, justify=side, overflow="fold")
    for line in lines:
        # Text, because a contract may hold what rich takes for its own markup.
        table.add_row(*(Text(printable_line(cell)) for cell in line))
    Console().print(table)


def opening(text: str) -> str:
    """The first words of a text on one line: as much as leaves 55 columns for other cells."""
    width = min(60, max(20, Console().width - 55))
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"


def printable_line(text: str) -> str:
    """Text without what could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def print_json(value: object) -> None:
    """JSON on stdout, in ASCII, so that no terminal or pipe can trip over it."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
