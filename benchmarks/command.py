"""The command line that every benchmark has: python -m benchmarks.NAME --json OUT [--quick]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.result import BenchmarkResult, Cell

# Benchmarks tell what they do through this, one line at a time.
Say = Callable[[str], None]
Benchmark = Callable[[bool, Say], BenchmarkResult]


def say(line: str) -> None:
    """A line of progress; standard output stays free for the tables."""
    print(line, file=sys.stderr, flush=True)


def benchmark_command(run: Benchmark, argv: Sequence[str] | None = None) -> BenchmarkResult:
    """Run one benchmark from the command line: write its JSON, print its rows."""
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--json", type=Path, metavar="OUT", help="file for the result")
    parser.add_argument("--quick", action="store_true", help="smaller and once; a smoke test")
    arguments = parser.parse_args(argv)
    result = run(arguments.quick, say)
    if arguments.json is not None:
        result.write(arguments.json)
    console = table_console()
    console.print(rows_table(result))
    console.print(summary_table([result]))
    return result


def table_console() -> Console:
    """Standard output, wide enough for a table also where it goes to a file."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def rows_table(result: BenchmarkResult) -> Table:
    """The rows behind a figure. Columns are the rows' keys, in the order of the first row."""
    table = Table(title=f"{result.name}: {result.what}", title_justify="left")
    columns = list(dict.fromkeys(key for row in result.rows for key in row))
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in result.rows:
        table.add_row(*(_shown(row.get(column)) for column in columns))
    return table


def summary_table(results: Sequence[BenchmarkResult]) -> Table:
    """One line for each benchmark: figure, goal, and whether it holds on this machine."""
    table = Table(title="Benchmarks", title_justify="left")
    for column in ("benchmark", "what", "figure", "goal", "unit", "holds"):
        table.add_column(column)
    for r in results:
        holds = "yes" if r.holds else "no"
        table.add_row(r.name, r.what, _shown(r.figure), _shown(r.goal), r.unit, holds)
    return table


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"
    return str(cell)
