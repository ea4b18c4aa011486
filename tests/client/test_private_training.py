"""Private training: what one unit can move, what the noise is, and what a step is when nobody is
drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.privacy.randomness import PrivateRandomness
from client.privacy.sampling import group_units
from client.training.gradient_rows import GradientRows
from client.training.private import _PrivateStep, train_private
from models.adapted import adapted_model
from models.tokens import Tokenised
from protocol.adapter import FloatArray, l2_norm
from protocol.errors import Refusal
from protocol.methods import Factors
from protocol.reasons import RefusalReason
from protocol.settings import PrivacySettings, RunSettings
from tests.small_runs import open_site, small_run, start_state

ONLY_B: Factors = frozenset({"B", "head"})
KEY = bytes(range(32))


def private_run(**privacy: Any) -> RunSettings:
    """Every unit in every step unless said otherwise, plain SGD steps."""
    settings = {
        "mode": "dp",
        "unit": "example",
        "sampling_rate": 1.0,
        "steps_per_round": 1,
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "head_learning_rate": 1.0,
        **privacy,
    }
    return replace(small_run(), privacy=PrivacySettings(**settings))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenised]:
    """Twelve clauses of four matters."""
    return open_site(tmp_path_factory.mktemp("site")).tokenised(small_run(), "train")


def step_of(run: RunSettings, examples: list[Tokenised], key: bytes = KEY) -> _PrivateStep:
    adapted = adapted_model(run)
    adapted.load(start_state(run).tensors)
    rows = GradientRows(adapted, run, ONLY_B)
    adapted.network.eval()
    units = group_units(examples, run.privacy.unit)
    return _PrivateStep(rows, run.privacy, 4, units, 0.0, PrivateRandomness(key))


def gradient(run: RunSettings, examples: list[Tokenised], clip: float, units: int) -> Tensor:
    """The summed clipped gradient without noise."""
    return step_of(run, examples).gradient(clip)[0].double() * units


def update_of(
    run: RunSettings, examples: list[Tokenised], sigma: float, key: bytes | None = KEY
) -> dict[str, FloatArray]:
    adapted = adapted_model(run)
    state = start_state(run)
    adapted.load(state.tensors)
    randomness = None if key is None else PrivateRandomness(key)
    train_private(adapted, run, examples, ONLY_B, 1, sigma, randomness=randomness)
    trained = adapted.tensors(ONLY_B)
    return {name: tensor - state.tensors[name] for name, tensor in trained.items()}


def other_words(example: Tokenised, seed: int) -> Tokenised:
    rng = np.random.default_rng(seed)
    ids = tuple(int(i) for i in rng.integers(1000, 20000, size=example.num_tokens))
    return replace(example, input_ids=ids, targets=((example.targets[0] + 1) % 3,))


def test_changing_every_example_of_one_matter_moves_the_sum_by_at_most_two_clip_norms(
    examples: list[Tokenised],
) -> None:
    run = private_run(unit="matter")
    matters = sorted({str(e.matter) for e in examples})
    clip = 0.02
    before = gradient(run, examples, clip, len(matters))
    for matter in matters:
        changed = [other_words(e, i) if e.matter == matter else e for i, e in enumerate(examples)]
        after = gradient(run, changed, clip, len(matters))
        moved = float((after - before).norm())
        assert 1e-4 < moved <= 2 * clip * (1 + 1e-4)


def test_leaving_one_matter_out_moves_the_sum_by_at_most_one_clip_norm(
    examples: list[Tokenised],
) -> None:
    run = private_run(unit="matter")
    matters = sorted({str(e.matter) for e in examples})
    whole = gradient(run, examples, 0.02, len(matters))
    without = [e for e in examples if e.matter != matters[0]]
    left = gradient(run, without, 0.02, len(matters) - 1)
    assert float((whole - left).norm()) <= 0.02 * (1 + 1e-4)


def test_a_matter_of_three_hundred_clauses_weighs_no_more_than_one_of_three(
    examples: list[Tokenised],
) -> None:
    run = private_run(unit="matter", examples_per_matter=400)
    large = [replace(examples[i % 3], matter="large") for i in range(300)]
    small = [e for e in examples if e.matter != examples[0].matter]
    others = len({e.matter for e in small})
    both = gradient(run, [*large, *small], 0.02, others + 1)
    alone = gradient(run, small, 0.02, others)
    assert float((both - alone).norm()) <= 0.02 * (1 + 1e-4)


def test_how_many_examples_fit_into_memory_changes_nothing(examples: list[Tokenised]) -> None:
    """Micro-batches are an arrangement: a step is one clipped sum over everything drawn."""
    for unit in ("example", "matter"):
        run = private_run(unit=unit)
        step = step_of(run, examples)
        step._batch_size = 1
        one_at_a_time = step.gradient(0.5)[0]
        step = step_of(run, examples)
        step._batch_size = 64
        torch.testing.assert_close(step.gradient(0.5)[0], one_at_a_time, rtol=1e-4, atol=1e-6)


def test_the_sum_is_divided_by_the_expected_number_of_units_not_by_the_drawn(
    examples: list[Tokenised],
) -> None:
    """Dividing by what was drawn would make every unit's share depend on the others' draw."""
    whole = gradient(private_run(), examples, 1e-3, 12)
    half = step_of(private_run(sampling_rate=0.5), examples)
    draws = torch.stack([half.gradient(1e-3)[0].double() for _ in range(40)])
    # Drawn at half the rate, divided by half the number: on average the whole's mean.
    mean = whole / 12
    assert float((draws.mean(dim=0) - mean).norm() / mean.norm()) < 0.4
    along = draws @ mean / mean.norm() ** 2
    assert float(along.mean()) == pytest.approx(1.0, abs=0.2) and float(along.std()) > 0.05


def test_the_noise_on_a_step_is_sigma_times_clip_over_the_expected_units(
    examples: list[Tokenised],
) -> None:
    run = private_run(sampling_rate=0.25, clip_norm=0.7)
    update = update_of(run, examples, sigma=400.0)
    flat = np.concatenate([tensor.reshape(-1) for tensor in update.values()])
    # The final-fraction cosine starts at 1, so the first step's rate is the peak.
    assert flat.std() == pytest.approx(400.0 * 0.7 / (0.25 * 12), rel=0.05)


def test_a_step_in_which_nobody_is_drawn_is_noise_of_the_same_size(
    examples: list[Tokenised],
) -> None:
    run = private_run(sampling_rate=1e-5)
    step = step_of(run, examples)
    step._sigma = 1.0
    gradient, loss, _ = step.gradient(1.0)
    assert np.isnan(loss)
    assert float(gradient.std()) == pytest.approx(1 / (1e-5 * 12), rel=0.1)


def test_two_runs_never_draw_the_same_noise(examples: list[Tokenised]) -> None:
    run = private_run()
    first, second = (update_of(run, examples, sigma=1.0, key=None) for _ in range(2))
    difference = {name: first[name] - second[name] for name in first}
    assert l2_norm(difference) > 0.5 * l2_norm(first)


def test_without_noise_and_clipping_private_training_learns(examples: list[Tokenised]) -> None:
    run = private_run(clip_norm=100.0, steps_per_round=8, optimizer="adam", learning_rate=0.02)
    run = replace(run, privacy=replace(run.privacy, head_learning_rate=0.1))
    adapted = adapted_model(run)
    adapted.load(start_state(run).tensors)
    torch.manual_seed(0)
    first = train_private(adapted, run, examples, ONLY_B, 1, 1e-6).training
    later = train_private(adapted, run, examples, ONLY_B, 1, 1e-6).training
    assert later.train_loss < 0.8 * first.train_loss
    assert (first.num_examples, first.num_steps) == (12, 8)


@pytest.mark.parametrize("start", [1e-4, 1e4])
def test_the_adaptive_clip_norm_finds_the_gradients_size(
    examples: list[Tokenised], start: float
) -> None:
    """Twelve units are few and their count is noised, so within a factor of three."""
    settings = {"steps_per_round": 60, "clip_learning_rate": 0.5, "clip_count_noise": 0.05}
    run = private_run(adaptive_clipping=True, learning_rate=0.0, **settings)
    run = replace(run, privacy=replace(run.privacy, head_learning_rate=0.0))
    adapted = adapted_model(run)
    adapted.load(start_state(run).tensors)
    rows, _ = GradientRows(adapted, run, ONLY_B).of(examples)
    median = float(rows.norm(dim=1).median())
    torch.manual_seed(0)  # The base model's dropout; noise and draws come from the key.
    result = train_private(
        adapted,
        run,
        examples,
        ONLY_B,
        1,
        sigma=0.5,
        clip_norm=start,
        randomness=PrivateRandomness(KEY),
    )
    assert median / 3 < result.clip_norm < 3 * median


def test_examples_without_a_matter_take_no_part_by_matter(examples: list[Tokenised]) -> None:
    run = private_run(unit="matter")
    orphans = [replace(e, matter=None) for e in examples]
    with pytest.raises(Refusal) as caught:
        train_private(adapted_model(run), run, orphans, ONLY_B, 1, 1.0)
    assert caught.value.code == RefusalReason.NO_MATTERS
    assert "privacy.unit=example" in str(caught.value)


def test_a_head_from_label_names_knows_something_and_has_read_nothing(tmp_path: Path) -> None:
    from models.evaluation import evaluate

    run = private_run()
    assert run.head_from_labels
    held_out = open_site(tmp_path).tokenised(run, "held_out")
    scores = evaluate(run, start_state(run), held_out)
    assert scores.as_metrics()["accuracy"] > 0.6  # three labels; a zero head gives a third
