"""The benchmark of many sites: its SuperNodes speak the real Fleet API, and its figure is the share
of replies that were admitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.many_sites import Load, Workload, loaded, result_of
from benchmarks.many_sites_nodes import answer_of
from benchmarks.processes import Processes, marked_processes
from protocol.adapter import subset_layout
from protocol.errors import FoedusError
from protocol.messages import ExpectedReply, evaluate_request, train_request
from protocol.methods import uploaded_factors
from tests.little_sites import little_run, little_state
from tests.small_runs import RUN_ID


def load(admitted: tuple[int, ...], errors: tuple[str, ...] = ()) -> Load:
    return Load(
        sites=10,
        admitted=admitted,
        round_seconds=(9.0, 2.0, 4.0, 7.0),
        upload_bytes=300_000,
        request_seconds=tuple(0.001 * k for k in range(1, 101)),
        errors=errors,
        cpu_seconds={"gateway": 5.0, "server_app": 2.5},
        wall_seconds=25.0,
    )


def test_the_figure_is_the_share_of_replies_that_were_admitted() -> None:
    result = result_of(load((10, 10, 10, 10)))
    assert (result.figure, result.goal, result.unit, result.holds) == (1.0, 1.0, "share", True)
    lacking = result_of(load((10, 9, 10, 10)))
    assert lacking.figure == pytest.approx(0.975) and not lacking.holds
    # The first and the last round are no ordinary ones.
    assert "10 simulated sites" in result.what and "a round takes 3.0 s" in result.what
    assert "300 kB" in result.what


def test_the_last_row_tells_requests_errors_and_processor_time() -> None:
    *rounds, total = result_of(load((10,) * 4, ("PullObject: 500",) * 2 + ("GetRun: 401",))).rows
    assert [row["seconds"] for row in rounds] == [9.0, 2.0, 4.0, 7.0]
    assert total["admitted"] == 40 and total["requests"] == 100
    assert total["request_ms"] == pytest.approx(50.5)
    assert total["request_ms_95"] == pytest.approx(95.95)
    assert total["errors"] == "2 x PullObject: 500; 1 x GetRun: 401"
    assert (total["gateway_cpu_seconds"], total["server_app_cpu_seconds"]) == (5.0, 2.5)
    assert result_of(load((10,) * 4)).rows[-1]["errors"] == "none"


def test_a_simulated_site_answers_as_admission_expects() -> None:
    run = little_run("fedsvd")
    state = little_state(run)
    content = answer_of(7, train_request(RUN_ID, 1, run, state).to_content(), "train")
    layout = subset_layout(state.layout, uploaded_factors("fedsvd", 1))
    reply = ExpectedReply("train", RUN_ID, 1, layout).parse(content)
    assert all(np.isfinite(t).all() and t.any() for t in reply.update.values())
    other = answer_of(8, train_request(RUN_ID, 1, run, state).to_content(), "train")
    assert other != content
    evaluation = answer_of(7, evaluate_request(RUN_ID, 1, run, state).to_content(), "evaluate")
    assert ExpectedReply("evaluate", RUN_ID, 1, {}).parse(evaluation).num_examples == 10


def test_processes_end_with_all_that_they_started(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("parent", "sh", "-c", "setsid sleep 600 & echo $! > child; sleep 600")
        processes.wait_for("the child", (tmp_path / "child").exists, 30.0)
        mark = processes.mark
        assert len(marked_processes(mark)) >= 2
    assert marked_processes(mark) == []


def test_a_process_that_ends_early_is_told_with_its_log(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("broken", "sh", "-c", "echo no such key; exit 3")
        with pytest.raises(FoedusError, match=r"broken ended(.|\n)*no such key"):
            processes.wait_for("readiness", lambda: False, 30.0)
        with pytest.raises(FoedusError, match=r"failing to end well(.|\n)*too bad"):
            processes.run("failing", "sh", "-c", "echo too bad; exit 1")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_simulated_sites_complete_rounds_at_a_real_coordinator(tmp_path: Path) -> None:
    told = loaded(tmp_path, Workload(sites=3, rounds=2, processes=2))
    assert told.admitted == (3, 3)
    assert len(told.round_seconds) == 2 and all(s > 0 for s in told.round_seconds)
    assert told.errors == ()
    # Each site pulls and pushes several objects in each round.
    assert len(told.request_seconds) > 3 * 2 * 8
    assert told.cpu_seconds["gateway"] > 0 and told.upload_bytes > 1000
