from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulation_run import RunRecord
from benchmarks.simulation_speed import (
    IN_PROCESS,
    IN_PROCESS_FLOAT32,
    RAY,
    STOCK,
    STOCK_KEPT,
    STOCK_TUNED,
    Timed,
    Workload,
    result_of,
)

WORKLOAD = Workload(firms=6, rounds=3)


def _timed(seconds: float, round_seconds: float) -> Timed:
    ends = [seconds + round_seconds * number for number in range(3)]
    return Timed(seconds, RunRecord(ends, updates=18, accuracy=0.5))


def test_the_figure_is_the_better_engine_over_the_tutorial_app() -> None:
    runs = {
        IN_PROCESS: [_timed(20.0, 5.0), _timed(22.0, 5.0)],
        STOCK: [_timed(60.0, 15.0), _timed(66.0, 15.0)],
        RAY: [_timed(30.0, 3.0), _timed(33.0, 3.0)],
    }
    result = result_of(runs, {}, WORKLOAD)
    assert result.figure == 3.0
    assert IN_PROCESS in result.what
    by_name = {row["competitor"]: row for row in result.rows}
    assert by_name[RAY]["times_stock"] == 2.0
    assert by_name[RAY]["steady_times_stock"] == 5.0
    assert by_name[STOCK]["steady_updates_per_minute"] == 24.0


def test_the_share_of_bfloat16_is_told_apart_from_the_rest() -> None:
    headline = {
        IN_PROCESS: [_timed(20.0, 5.0)],
        STOCK: [_timed(60.0, 15.0)],
        RAY: [_timed(40.0, 5.0)],
    }
    variants = {
        IN_PROCESS_FLOAT32: [_timed(40.0, 10.0)],
        STOCK: [_timed(60.0, 15.0)],
        STOCK_KEPT: [_timed(50.0, 12.0)],
        STOCK_TUNED: [_timed(30.0, 8.0)],
    }
    result = result_of(headline, variants, WORKLOAD)
    assert "float32 on both sides, in process: 1.50" in result.what
    assert "bfloat16 alone: 2.00 times" in result.what
    names = [row["competitor"] for row in result.rows]
    assert names == [IN_PROCESS, STOCK, RAY, IN_PROCESS_FLOAT32, STOCK_KEPT, STOCK_TUNED]
    assert result.rows[-1]["times_stock"] == 2.0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_quick_run_measures_every_side_and_writes_the_agreed_file(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.simulation_speed", "--quick", "--json", str(out)],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )
    read = json.loads(out.read_text(encoding="utf-8"))
    assert set(read) == {"name", "what", "figure", "unit", "goal", "holds", "rows", "machine"}
    assert (read["name"], read["unit"], read["goal"]) == ("simulation_speed", "times", 3.0)
    assert [row["competitor"] for row in read["rows"]] == [IN_PROCESS, STOCK, RAY]
    assert all(row["updates_per_minute"] > 0 for row in read["rows"])
    assert read["holds"] is (read["figure"] >= read["goal"])
