"""The benchmark of the coordinator's memory: every competitor aggregates for real, and the figure
is the growth that was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Message, RecordDict

from benchmarks.coordinator_memory import growth_in_updates, result_of
from benchmarks.coordinator_memory_grid import (
    AdapterSize,
    ReadyGrid,
    made_by_child,
    stock_answer,
    update_of,
)
from benchmarks.coordinator_memory_round import (
    COMPETITORS,
    FEDIT,
    FEDSVD,
    SECURE,
    STOCK,
    Peak,
    grown_in_round,
    measure,
)
from benchmarks.peak_memory import can_measure, peak_growth
from protocol.adapter import layout_size
from protocol.errors import FoedusError

MEASURES = pytest.mark.skipif(not can_measure(), reason="the kernel keeps no peak to be reset")
TINY = AdapterSize(modules=2, rank=4, width=16)
MIB = 2**20


@MEASURES
def test_the_peak_is_of_the_work_alone_and_counts_what_it_has_freed() -> None:
    kept = np.ones(64 * MIB, dtype=np.uint8)
    grown = peak_growth(lambda: np.ones(32 * MIB, dtype=np.uint8).sum())
    # The kernel counts in batches, and other threads of this process may touch pages too.
    assert 28 * MIB <= grown < 56 * MIB
    assert kept.size == 64 * MIB


def test_what_a_child_makes_arrives_whole_and_costs_the_parent_nothing_else() -> None:
    parent = os.getpid()
    parts = made_by_child(lambda: [str(os.getpid()).encode(), b"", b"\0" * 100_000])
    assert int(parts[0]) != parent
    assert parts[1:] == [b"", b"\0" * 100_000]


def test_a_child_that_fails_is_told() -> None:
    def fail() -> list[bytes]:
        raise ValueError("no reply")

    with pytest.raises(FoedusError, match="failed"):
        made_by_child(fail)


def test_all_replies_asked_for_are_ready_at_once_and_given_once() -> None:
    grid = ReadyGrid(stock_answer(TINY), 3)
    ids = list(grid.push_messages([Message(RecordDict(), node, "train") for node in (1, 2, 3)]))
    first = list(grid.pull_messages(ids[:2]))
    assert [reply.metadata.src_node_id for reply in first] == [1, 2]
    assert [reply.metadata.src_node_id for reply in grid.pull_messages(ids)] == [3]
    flat = np.concatenate(
        [array.numpy().ravel() for array in first[1].content["arrays"].values()]  # type: ignore[union-attr]
    )
    assert np.array_equal(flat, update_of(2, TINY.layout))
    assert all(isinstance(array, Array) for array in first[0].content["arrays"].values())


@MEASURES
@pytest.mark.parametrize("competitor", COMPETITORS)
def test_every_competitor_aggregates_a_round(competitor: str) -> None:
    grown, update = grown_in_round(competitor, 3, TINY)
    whole = 4 * layout_size(TINY.layout)
    assert update == (whole if competitor in (STOCK, FEDIT) else whole // 2)
    assert grown >= 0


def peaks(name: str, at_4: int, at_32: int, update: int = 10) -> list[Peak]:
    between = Peak(name, 8, max(at_4, at_32) + 5, update)
    return [Peak(name, 32, at_32, update), between, Peak(name, 4, at_4, update)]


def test_growth_is_from_the_fewest_replies_to_the_most_in_updates() -> None:
    assert growth_in_updates(peaks("any", 100, 380)) == pytest.approx(28.0)
    assert growth_in_updates(peaks("any", 100, 95)) == pytest.approx(-0.5)


def test_the_figure_is_the_largest_growth_of_ours_beside_stock() -> None:
    ours = [*peaks(FEDIT, 100, 102), *peaks(FEDSVD, 100, 108), *peaks(SECURE, 100, 100)]
    result = result_of([*peaks(STOCK, 100, 380), *ours], 40_000_000)
    assert result.figure == pytest.approx(0.8)
    assert (result.unit, result.goal, result.holds) == ("updates", 1.0, True)
    assert "from 4 to 32" in result.what and "40.0 million" in result.what
    assert "stock Flower 28.0" in result.what
    assert [row["growth_in_updates"] for row in result.rows] == [28.0, 0.2, 0.8, 0.0]
    worse = result_of([*peaks(STOCK, 0, 0), *peaks(FEDSVD, 100, 111)], 1)
    assert worse.figure == pytest.approx(1.1) and not worse.holds


@MEASURES
def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(FoedusError, match="unknown coordinator"):
        measure("unknown coordinator", 2, TINY)


@MEASURES
@pytest.mark.slow
def test_a_quick_run_finds_stock_growing_and_ours_not(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.coordinator_memory", "--quick", "--json", str(out)],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )
    read = json.loads(out.read_text(encoding="utf-8"))
    assert set(read) == {"name", "what", "figure", "unit", "goal", "holds", "rows", "machine"}
    growth = {row["coordinator"]: row["growth_in_updates"] for row in read["rows"]}
    assert list(growth) == list(COMPETITORS)
    # Four replies more: stock keeps each of them.
    assert growth[STOCK] > 3.5
    assert read["figure"] == max(growth[name] for name in COMPETITORS if name != STOCK)
    assert read["figure"] < 0.5 and read["holds"]
