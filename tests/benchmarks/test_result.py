from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from benchmarks.result import BenchmarkResult, Row, machine_facts

KEYS = {"name", "what", "figure", "unit", "goal", "holds", "rows", "machine"}


def _result(figure: float, better: str = "higher") -> BenchmarkResult:
    rows: tuple[Row, ...] = (
        {"competitor": "ours", "seconds": 1.5},
        {"competitor": "theirs", "seconds": 4.5},
    )
    return BenchmarkResult.measured(
        "speed",
        "how fast",
        figure,
        "times",
        3.0,
        rows,
        better,  # type: ignore[arg-type]
    )


def test_the_file_holds_exactly_the_agreed_keys(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "speed.json"
    _result(3.25).write(path)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert set(read) == KEYS
    assert (read["figure"], read["goal"], read["holds"]) == (3.25, 3.0, True)
    assert read["rows"][1] == {"competitor": "theirs", "seconds": 4.5}


@pytest.mark.parametrize(
    ("figure", "better", "holds"),
    [
        (3.0, "higher", True),
        (2.99, "higher", False),
        (2.99, "lower", True),
        (3.01, "lower", False),
        (float("nan"), "higher", False),
    ],
)
def test_a_goal_holds_from_its_own_value_on(figure: float, better: str, holds: bool) -> None:
    assert _result(figure, better).holds is holds


def test_machine_facts_name_hardware_and_versions_but_nobodys_machine() -> None:
    facts = machine_facts()
    assert isinstance(facts["cores"], int)
    assert facts["torch"] and facts["flwr"] and facts["cpu"]
    text = json.dumps(facts)
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
