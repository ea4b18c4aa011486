"""The benchmark of a private step: what it compares is alike, what it tells is what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.dp_step import (
    CellTimes,
    Seconds,
    Workload,
    full_run_minutes,
    memory_net_of_rows,
    result_of,
    time_cell,
    warm_up,
)
from benchmarks.dp_step_memory import PeakMemory, measure
from benchmarks.dp_step_ways import (
    FUNCTORCH,
    GHOST,
    HOOKS,
    MODELS,
    OPACUS,
    OURS,
    PLAIN,
    SIGMA,
    WAYS,
    Way,
    Work,
    one_thread,
    random_batch,
    relative_distance,
    way_for,
    work_for,
)
from benchmarks.peak_memory import can_measure
from client.training.loop import _step
from client.training.private import _PrivateStep
from models.tokens import IGNORED
from protocol.errors import FoedusError
from protocol.settings import PrivacySettings


@pytest.fixture(scope="module", params=list(MODELS))
def work(request: pytest.FixtureRequest) -> Iterator[Work]:
    with one_thread():
        yield work_for(request.param, 4, 16)


def written(work: Work) -> Tensor:
    return torch.cat([torch.as_tensor(p.grad).reshape(-1) for p in work.trained])


def test_every_private_way_gives_the_same_clipped_sum(work: Work) -> None:
    ways = {name: way_for(name, work) for name in WAYS}
    assert warm_up(ways) == {}
    # Some gradients are scaled and some are not, so that clipping is compared as well.
    norms = work.rows.of(work.batch)[0].norm(dim=1)
    assert norms.min() < work.clip_norm < norms.max()


def test_our_step_is_the_step_of_private_training(work: Work) -> None:
    privacy = PrivacySettings(mode="dp", unit="example", sampling_rate=1.0)
    units = [(example,) for example in work.batch]
    step = _PrivateStep(work.rows, privacy, len(units), units, 0.0, None)
    expected, _, _ = step.gradient(work.clip_norm)
    got = way_for(OURS, work).gradient(sigma=0.0)
    assert relative_distance(got, expected) < 1e-5


def test_the_plain_step_is_the_step_of_plain_training(work: Work) -> None:
    got = way_for(PLAIN, work).gradient()
    optimizer = torch.optim.AdamW(work.trained, lr=0.0)
    _step(work.adapted, work.run, optimizer, [work.batch])
    assert relative_distance(got, written(work)) < 1e-6
    optimizer.zero_grad()


@pytest.mark.parametrize("name", [OURS, *OPACUS])
def test_every_private_way_pays_for_noise_of_the_same_size(work: Work, name: str) -> None:
    way = way_for(name, work)
    noise = way.gradient() - way.gradient(sigma=0.0)
    expected = SIGMA * work.clip_norm / len(work.batch)
    assert float(noise.std()) == pytest.approx(expected, rel=0.02)
    assert not torch.equal(way.gradient(), way.gradient())


@pytest.mark.parametrize("name", WAYS)
def test_a_way_leaves_nothing_that_the_next_would_pay_for(work: Work, name: str) -> None:
    before = [p.detach().clone() for p in work.trained]
    way = way_for(name, work)
    with way.ready():
        way.step()
    assert all(torch.equal(a, b) for a, b in zip(before, work.trained, strict=True))
    for parameter in work.trained:
        assert parameter.grad is None
        assert getattr(parameter, "grad_sample", None) is None
    for module in work.adapted.network.modules():
        assert not module._forward_hooks and not module._backward_hooks
        assert not hasattr(module, "activations") or not module.activations


class Failing(Way):
    """A way of a library that cannot do this model."""

    def step(self) -> None:
        raise NotImplementedError("tied weights")


class Wrong(Way):
    """A way that clips nothing."""

    def step(self) -> None:
        for parameter in self.work.trained:
            parameter.grad = torch.ones_like(parameter)


def test_a_way_that_fails_is_told_with_its_reason(work: Work) -> None:
    ways = {name: way_for(name, work) for name in WAYS}
    failures = warm_up({**ways, GHOST: Failing(work), FUNCTORCH: Wrong(work)})
    assert failures[GHOST] == "NotImplementedError: tied weights"
    assert "clipped sum" in failures[FUNCTORCH]
    assert HOOKS not in failures


def test_nothing_is_timed_where_hooks_and_ours_give_different_sums(work: Work) -> None:
    ways = {name: way_for(name, work) for name in WAYS}
    with pytest.raises(FoedusError, match="same clipped sum"):
        warm_up({**ways, HOOKS: Wrong(work)})


@pytest.mark.parametrize("model", MODELS)
@given(batch_size=st.integers(1, 40), tokens=st.integers(8, 256))
def test_batches_are_padded_and_of_the_length_asked_for(
    model: str, batch_size: int, tokens: int
) -> None:
    run = MODELS[model]
    batch = random_batch(run, 1000, batch_size, tokens)
    lengths = [example.num_tokens for example in batch]
    assert len(batch) == batch_size
    assert max(lengths) == lengths[0] == tokens
    assert min(lengths) >= tokens // 2
    assert batch == random_batch(run, 1000, batch_size, tokens)
    for example in batch:
        assert all(0 <= token < 1000 for token in example.input_ids)
        if run.task.kind == "instruct":
            learned = [target for target in example.targets if target != IGNORED]
            assert 0.7 <= len(learned) / example.num_tokens <= 1.0
            assert example.targets[0] == IGNORED


def test_a_cell_times_every_way_equally_often() -> None:
    said: list[str] = []
    with one_thread():
        cell = time_cell("llama", 2, 16, 3, said.append)
    assert said == ["  llama, 2 x 16 tokens"]
    assert {name: len(steps) for name, steps in cell.steps.items()} == dict.fromkeys(WAYS, 3)
    assert all(s.cpu > 0 and s.wall > 0 for steps in cell.steps.values() for s in steps)


def cell(ours: list[float], plain: list[float], **others: list[float]) -> CellTimes:
    # By the wall clock everything takes twice as long, and ours another half on top.
    steps = {
        PLAIN: [Seconds(t, 2 * t) for t in plain],
        OURS: [Seconds(t, 3 * t) for t in ours],
    }
    steps |= {way: [Seconds(t, 2 * t) for t in times] for way, times in others.items()}
    return CellTimes("minilm", 8, 128, steps, {"ghost": "NotImplementedError: tied"})


def test_the_figure_is_the_median_over_cells_of_each_cells_median_ratio() -> None:
    cells = [
        cell([1.0, 2.2, 3.0], [1.0, 2.0, 2.0]),  # 1.0, 1.1, 1.5
        cell([1.2, 1.2, 9.0], [1.0, 1.0, 1.0]),  # 1.2, 1.2, 9.0
        cell([0.9, 0.9, 0.9], [1.0, 1.0, 1.0], hooks=[1.5, 1.4, 1.6]),
    ]
    result = result_of(cells, [])
    assert result.figure == pytest.approx(1.1)
    assert (result.unit, result.goal, result.holds) == ("times", 1.1, result.figure <= 1.1)
    assert result_of(cells[2:], []).holds
    assert not result_of(cells[1:2], []).holds
    assert "1.65" in result.what  # on the wall
    rows = result.rows
    assert rows[0]["ours"] == pytest.approx(1.1)
    assert rows[0]["ours_range"] == "1.00 - 1.50"
    assert (rows[2]["hooks"], rows[2]["hooks_range"]) == (1.5, "1.40 - 1.60")
    assert rows[0]["failed"] == "ghost: NotImplementedError: tied"
    assert "ghost" not in rows[0]


def test_memory_is_judged_without_the_rows_and_told_with_them() -> None:
    memory = PeakMemory("llama", 32, 256, 50 * 2**20, {PLAIN: 400 * 2**20, OURS: 460 * 2**20})
    assert memory_net_of_rows(memory) == pytest.approx(410 / 400)
    result = result_of([cell([1.0], [1.0])], [memory])
    row = result.rows[-1]
    assert (row["plain"], row["ours"], row["rows_mib"]) == (400, 1.15, 50)
    assert "1.02 (goal 1.05: held)" in result.what
    more = PeakMemory("llama", 32, 256, 0, memory.peak_bytes)
    assert "1.15 (goal 1.05: missed)" in result_of([cell([1.0], [1.0])], [memory, more]).what


def test_the_estimate_of_a_full_run_counts_tokens_repetitions_and_ways() -> None:
    quick = cell([60.0], [60.0], hooks=[60.0])
    full = Workload((8, 16), (128,), repetitions=7)
    # Three ways, eight steps of each, and the clip norm; three times the tokens of the quick cell.
    assert full_run_minutes([quick], full) == pytest.approx((3 * 8 + 1) * 3)


@pytest.mark.slow
@pytest.mark.skipif(not can_measure(), reason="the kernel keeps no peak that can be reset")
def test_peak_memory_grows_with_the_batch_and_names_the_rows() -> None:
    small, large = (measure("llama", size, 64, (PLAIN, OURS)) for size in (2, 16))
    with one_thread():
        assert small.rows_bytes == 2 * 4 * work_for("llama", 2, 16).num_parameters
    assert large.rows_bytes == 8 * small.rows_bytes
    assert all(large.peak_bytes[way] > 2 * small.peak_bytes[way] > 0 for way in (PLAIN, OURS))


@pytest.mark.skipif(not can_measure(), reason="the kernel keeps no peak that can be reset")
def test_a_process_that_cannot_measure_says_why() -> None:
    with pytest.raises(FoedusError, match="unknown-model"):
        measure("unknown-model", 2, 16, (PLAIN,))


@pytest.mark.slow
def test_a_quick_run_measures_both_models_and_writes_the_agreed_file(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.dp_step", "--quick", "--json", str(out)],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )
    read = json.loads(out.read_text(encoding="utf-8"))
    assert set(read) == {"name", "what", "figure", "unit", "goal", "holds", "rows", "machine"}
    assert (read["name"], read["unit"], read["goal"]) == ("dp_step", "times", 1.1)
    assert read["holds"] == (read["figure"] <= 1.1)
    times = [row for row in read["rows"] if row["unit"] == "CPU s"]
    assert [row["model"] for row in times] == list(MODELS)
    for row in times:
        assert "failed" not in row
        assert all(0.5 < row[way] < 5 for way in WAYS[1:])
