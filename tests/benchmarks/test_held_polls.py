"""The benchmark of held questions measures what it says."""

from __future__ import annotations

import pytest

from benchmarks.held_polls import NAME, run


@pytest.mark.slow
def test_messages_reach_held_nodes_and_are_timed() -> None:
    result = run(True, lambda line: None)
    (row,) = result.rows
    assert result.name == NAME
    assert row["messages"] == 10 and row["nodes held"] == 10
    assert 0.0 < result.figure < 60_000.0
    share = row["coordinator's share of a core"]
    assert isinstance(share, float) and 0.0 < share < 16.0
