"""The benchmark of a round's overhead: both sides do the same work, and the figure is arithmetic on
times that were noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from benchmarks import round_overhead_stock_app as stock_app
from benchmarks.round_overhead import OURS, STOCK, counted, result_of
from benchmarks.round_overhead_ours import rounds_of
from benchmarks.round_overhead_work import (
    NUM_SITES,
    Round,
    lay_out_contracts,
    rounds_between,
    run_overrides,
    run_settings,
)
from client.site import Site
from client.trained_update import trained_update
from models.adapted import adapted_model, initial_state
from protocol.codec import encode
from protocol.messages import train_request
from server.runs.progress import Event
from tests.small_runs import RUN_ID


def test_a_round_lasts_from_the_end_of_the_one_before() -> None:
    rounds = rounds_between([100.0, 110.0, 113.0], [4.0, 1.0])
    assert rounds == [Round(1, 10.0, 4.0), Round(2, 3.0, 1.0)]
    assert [each.overhead_seconds for each in rounds] == [6.0, 2.0]


def test_times_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError):
        rounds_between([100.0, 110.0], [4.0, 1.0])


def test_our_rounds_are_read_from_the_progress_of_the_run() -> None:
    def event(kind: str, second: int, **values: Any) -> Event:
        return Event(kind, f"2030-01-01T00:00:{second:02d}.500+00:00", values)

    events = [
        event("started", 10),
        event("round_started", 12),
        event("round_finished", 20, train_seconds=6.0),
        event("reply", 21),
        event("round_finished", 23, train_seconds=2.0),
        event("finished", 30),
    ]
    # Two sites trained at the same time, and the record has the sum of both.
    assert rounds_of(events, 2) == [Round(1, 10.0, 3.0), Round(2, 3.0, 1.0)]


def of_seconds(*overheads: float) -> list[Round]:
    return [Round(number, 1.0 + s, 1.0) for number, s in enumerate(overheads, start=1)]


def test_the_first_and_the_last_round_of_each_run_do_not_count() -> None:
    runs = [of_seconds(9.0, 1.0, 2.0, 8.0), of_seconds(9.0, 3.0, 8.0)]
    assert [each.overhead_seconds for each in counted(runs)] == [1.0, 2.0, 3.0]


def test_the_figure_is_stocks_median_overhead_over_ours() -> None:
    result = result_of(
        {
            OURS: [of_seconds(50.0, 2.0, 3.0, 50.0), of_seconds(40.0, 1.0, 50.0)],
            STOCK: [of_seconds(90.0, 20.0, 10.0, 0.0), of_seconds(90.0, 30.0, 0.0)],
        }
    )
    assert result.figure == pytest.approx(10.0)
    assert (result.unit, result.goal, result.holds) == ("times", 8.0, True)
    assert "stock 20.00, ours 2.00" in result.what
    ours, stock = result.rows
    assert (ours["side"], ours["rounds"], ours["overhead_seconds"]) == (OURS, 3, 2.0)
    assert (ours["range"], ours["training_seconds"]) == ("1.00 - 3.00", 1.0)
    assert ours["first_round_overhead_seconds"] == 45.0
    assert stock["overhead_seconds"] == 20.0


def test_the_stock_app_trains_what_a_site_of_ours_trains(tmp_path: Path) -> None:
    site_files, labels = lay_out_contracts(tmp_path)
    assert len(site_files) == NUM_SITES
    run = run_settings(run_overrides(2, labels))
    state = initial_state(run)
    tensors = {name: Array(tensor) for name, tensor in state.tensors.items()}
    config = ConfigRecord({"run": json.dumps(encode(run)), "server-round": 1})
    content = RecordDict({"arrays": ArrayRecord(tensors), "config": config})
    message = Message(content, 1, "train")
    context = Context(1, 1, {"site-config": str(site_files[0])}, RecordDict(), {})
    reply: Any = stock_app.client_app(message, context).content
    stock = {name: array.numpy() for name, array in reply["arrays"].items()}

    site, adapted = Site.from_file(site_files[0]), adapted_model(run)
    ours = trained_update(site, adapted, train_request(RUN_ID, 1, run, state), state)
    assert set(stock) == set(ours.update) == set(state.tensors)
    for name, delta in ours.update.items():
        assert np.allclose(stock[name] - state.tensors[name], delta, atol=1e-6), name
    assert reply["metrics"]["num-examples"] == ours.metrics["num_examples"]
    assert reply["metrics"]["train_seconds"] > 0
