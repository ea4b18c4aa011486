"""The table in docs/reliability.md: one row for each scenario, with what was measured.

`python -m tests.faults.page` writes it from the outcomes that the last run of the harness left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from protocol.files import write_atomically
from tests.faults.scene import Outcome, Scenario
from tests.faults.table import SCENARIOS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
OUTCOMES = ROOT / "outputs" / "faults"
BEGIN, END = "<!-- the harness writes from here -->", "<!-- to here -->"
_HEADINGS = ("scenario", "fault", "when", "what must hold", "sites in each round", "seconds")


def keep(outcome: Outcome) -> None:
    """Leave an outcome for the page."""
    text = json.dumps(asdict(outcome), indent=2) + "\n"
    write_atomically(OUTCOMES / f"{outcome.name}.json", text.encode())


def forget(scenario: Scenario) -> None:
    """Before it runs again: an old outcome must not stand for one that fails now."""
    (OUTCOMES / f"{scenario.name}.json").unlink(missing_ok=True)


def kept(scenario: Scenario) -> Outcome | None:
    """The outcome of the last run of a scenario; None where it did not pass."""
    path = OUTCOMES / f"{scenario.name}.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    lists = {key: tuple(values[key]) for key in ("admitted", "attempts")}
    return Outcome(**{**values, **lists})


def table(outcomes: Sequence[tuple[Scenario, Outcome | None]]) -> str:
    """Markdown, one row each; a scenario without an outcome says so."""
    lines = [_row(_HEADINGS), _row(["---"] * len(_HEADINGS))]
    return "\n".join([*lines, *(_row(_cells(s, o)) for s, o in outcomes)])


def with_table(page: str, rows: str) -> str:
    """The page with these rows between its marks, all else as it was."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{rows}\n{END}{after}"


def names_in(page: str) -> list[str]:
    """The scenarios that the page's table has, in order."""
    rows = page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    return [row.split("|")[1].strip().strip("`") for row in rows]


def _cells(scenario: Scenario, outcome: Outcome | None) -> Iterator[str]:
    yield f"`{scenario.name}`"
    yield scenario.fault
    yield scenario.when
    yield scenario.holds
    if outcome is None:
        yield from ("not measured", "-")
        return
    resumed = f"; resumed {outcome.starts - 1} times" if outcome.starts > 1 else ""
    yield " ".join(map(str, outcome.admitted)) + resumed
    yield "-" if outcome.recovery_seconds is None else f"{outcome.recovery_seconds:.0f}"


def _row(cells: Sequence[str] | Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Write the page; 1 where a scenario has no outcome."""
    pairs = [(scenario, kept(scenario)) for scenario in SCENARIOS]
    page = PAGE.read_text(encoding="utf-8")
    write_atomically(PAGE, with_table(page, table(pairs)).encode())
    missing = [scenario.name for scenario, outcome in pairs if outcome is None]
    if missing:
        print(f"No outcome of {', '.join(missing)}: run `make faults`.", file=sys.stderr)
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
