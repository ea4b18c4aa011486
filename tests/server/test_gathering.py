"""A run waits a moment for members on their way back, and no longer than it was told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server.app import run_in_its_folder
from server.gathering import gather
from server.runs.progress import read_events
from simulations.engines.in_process import RUN_ID, InProcessGrid
from tests.little_sites import little_app
from tests.server.gateway.little_coordinator import Firm, found


class LateNodes(InProcessGrid):
    """A grid whose last node comes online after some looks; without `looks` it never does."""

    def __init__(self, num_sites: int, looks: int | None) -> None:
        super().__init__(little_app(), num_sites)
        self._looks_left = looks

    def get_node_ids(self) -> Iterable[int]:
        """See Grid."""
        nodes = sorted(super().get_node_ids())
        if self._looks_left == 0:
            return nodes
        if self._looks_left is not None:
            self._looks_left -= 1
        return nodes[:-1]


def names_of(grid: InProcessGrid) -> dict[int, str]:
    nodes = sorted(InProcessGrid.get_node_ids(grid))
    return dict(zip(nodes, ("Ash", "Birch", "Cedar"), strict=True))


def gathered(
    grid: InProcessGrid, names: dict[int, str], wait_seconds: float
) -> tuple[tuple[str, ...], list[Sequence[str]], float]:
    said: list[Sequence[str]] = []
    began = time.monotonic()
    missing = gather(grid, names, wait_seconds, said.append)
    return missing, said, time.monotonic() - began


def test_where_every_member_is_there_nobody_waits() -> None:
    grid = LateNodes(3, looks=0)
    missing, said, seconds = gathered(grid, names_of(grid), 600.0)
    assert (missing, said) == ((), []) and seconds < 60


def test_it_waits_for_the_last_one_and_says_so_once() -> None:
    grid = LateNodes(3, looks=2)
    missing, said, _ = gathered(grid, names_of(grid), 600.0)
    assert (missing, said) == ((), [("Cedar",)])


def test_a_member_that_does_not_come_is_waited_for_no_longer_than_was_said() -> None:
    grid = LateNodes(3, looks=None)
    missing, said, seconds = gathered(grid, names_of(grid), 0.3)
    assert (missing, said) == (("Cedar",), [("Cedar",)]) and seconds >= 0.3


def test_no_wait_is_a_choice() -> None:
    grid = LateNodes(3, looks=None)
    assert gathered(grid, names_of(grid), 0.0)[:2] == (("Cedar",), [])


def test_a_member_is_there_with_either_of_its_nodes_and_strangers_do_not_count() -> None:
    grid = LateNodes(3, looks=None)
    first, _, last = sorted(names_of(grid))
    assert gathered(grid, {first: "Ash", last: "Ash"}, 0.0)[0] == ()
    assert gathered(grid, {}, 600.0)[0] == ()


def test_a_run_asks_the_late_one_too_and_waits_for_nobody_whose_admission_has_ended(
    tmp_path: Path,
) -> None:
    ash, birch, cedar, ended = (Firm(name) for name in ("Ash", "Birch", "Cedar", "Elm"))
    over = replace(ended.entry(), admitted=1, expires=2)
    entries = [ash.entry(), birch.entry(), cedar.entry(), over]
    folder = found(tmp_path / "oak", entries)
    nodes = {entry.member_id: node for node, entry in enumerate(entries, 1)}
    (tmp_path / "nodes.json").write_text(json.dumps(nodes), encoding="utf-8")
    words = [
        "task.labels=[a,b]", "federation.rounds=1", "federation.evaluate_every=0",
        f"coordinator.output_dir={tmp_path / 'run'}", f"coordinator.roster={folder.roster}",
        f"coordinator.nodes_file={tmp_path / 'nodes.json'}", "coordinator.gather_seconds=600",
    ]  # fmt: skip
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, RUN_ID, 0
    context = Context(RUN_ID, 0, {}, RecordDict(), {"overrides": " ".join(words)})
    run_in_its_folder(LateNodes(3, looks=2), context)
    events = read_events(tmp_path / "run" / "progress.jsonl")
    assert [event.kind for event in events][:3] == ["started", "waiting", "round_started"]
    assert events[1].values["sites"] == ["Cedar"]
    assert events[2].values["cohort_size"] == 3
