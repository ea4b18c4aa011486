"""Local training: it learns, changes what the round may change, and repeats bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.training.loop import TrainingResult, batch_loss, train
from models.adapted import adapted_model
from models.batches import pack_batch
from models.losses import answer_losses
from models.tokens import IGNORED, Tokenised
from protocol.adapter import FloatArray, factor_of
from protocol.errors import Refusal
from protocol.methods import METHODS, Factors, trained_factors
from protocol.reasons import RefusalReason
from protocol.settings import AdapterSettings, ModelSettings, RunSettings, TaskSettings
from tests.small_runs import open_site, small_run, start_state, with_training

ALL: Factors = frozenset({"A", "B", "head"})
RUN = small_run(training={"learning_rate": 0.01, "head_learning_rate": 0.05})


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenised]:
    """Twelve clauses of three labels."""
    return open_site(tmp_path_factory.mktemp("site")).tokenised(RUN, "train")


def trained(
    run: RunSettings,
    examples: list[Tokenised],
    *,
    factors: Factors = ALL,
    round_: int = 1,
    seed: int = 0,
) -> tuple[TrainingResult, dict[str, FloatArray]]:
    """Train from the run's start; the result and all tensors after it."""
    adapted = adapted_model(run)
    adapted.load(start_state(run).tensors)
    result = train(adapted, run, examples, factors, round_, seed)
    return result, adapted.tensors(ALL)


def loss_of(run: RunSettings, tensors: dict[str, FloatArray], examples: list[Tokenised]) -> float:
    adapted = adapted_model(run)
    adapted.load(tensors)
    adapted.network.eval()
    with torch.no_grad():
        return float(batch_loss(adapted, run, examples)) / len(examples)


def test_one_round_lowers_the_loss(examples: list[Tokenised]) -> None:
    before = loss_of(RUN, dict(start_state(RUN).tensors), examples)
    result, after = trained(RUN, examples)
    assert before == pytest.approx(math.log(3), rel=1e-5)
    assert loss_of(RUN, after, examples) < 0.8 * before
    assert (result.num_examples, result.num_steps) == (12, 3)
    assert 0 < result.train_loss < 1.1 * before and result.train_seconds > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("round_", [1, 2])
def test_only_what_the_method_trains_in_this_round_changes(
    examples: list[Tokenised], method: str, round_: int
) -> None:
    run = replace(RUN, federation=replace(RUN.federation, method=method))
    start = start_state(run)
    # With B = 0 no gradient reaches A, so B must start elsewhere for A to be seen to move.
    lifted = {n: t + np.float32(0.02) * (factor_of(n) == "B") for n, t in start.tensors.items()}
    adapted = adapted_model(run)
    adapted.load(lifted)
    train(adapted, run, examples, trained_factors(method, round_), round_, 0)
    after = adapted.tensors(ALL)
    changed = {factor_of(n) for n in after if (after[n] != lifted[n]).any()}
    unchanged = {factor_of(n) for n in after if (after[n] == lifted[n]).all()}
    assert changed == trained_factors(method, round_)
    assert unchanged == ALL - changed


def test_nothing_of_the_base_model_changes(examples: list[Tokenised]) -> None:
    adapted = adapted_model(RUN)
    live = {id(p) for p in adapted.parameters.values()}
    before = {n: p.clone() for n, p in adapted.network.named_parameters() if id(p) not in live}
    trained(RUN, examples)
    assert len(before) > 100
    for name, parameter in adapted.network.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]), name


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    examples: list[Tokenised],
) -> None:
    run = with_training(RUN, local_epochs=2)
    _, first = trained(run, examples, seed=5)
    torch.rand(7)  # Other draws of the process do not matter.
    _, again = trained(run, examples, seed=5)
    _, other = trained(run, examples, seed=6)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_training_leaves_the_process_s_random_state_alone(examples: list[Tokenised]) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    trained(RUN, examples)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def gradients(run: RunSettings, examples: list[Tokenised]) -> dict[str, FloatArray]:
    """The gradients of one optimiser step from an adapter in which no factor is zero.

    Gradients, as AdamW's first steps turn rounding errors of small ones into whole steps.
    """
    rng = np.random.default_rng(0)
    adapted = adapted_model(run)
    adapted.load(
        {n: (0.1 * rng.normal(size=s)).astype(np.float32) for n, s in adapted.layout.items()}
    )
    still = with_training(run, learning_rate=0.0, head_learning_rate=0.0)
    assert train(adapted, still, examples, ALL, 1, 0).num_steps == 1
    found = {}
    for name, parameter in adapted.parameters.items():
        assert parameter.grad is not None
        found[name] = parameter.grad.numpy().copy()
    return found


@pytest.mark.parametrize("batch_size", [3, 4, 5])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_accumulated_small_batches_give_the_gradient_of_one_large_batch(
    examples: list[Tokenised], batch_size: int, max_grad_norm: float
) -> None:
    large = with_training(RUN, batch_size=12, max_grad_norm=max_grad_norm)
    small = with_training(large, batch_size=batch_size, gradient_accumulation=4)
    expected, got = gradients(large, examples), gradients(small, examples)
    largest = max(float(np.abs(g).max()) for g in expected.values())
    assert largest > 1e-3
    for name, gradient in expected.items():
        np.testing.assert_allclose(got[name], gradient, rtol=0, atol=1e-5 * max(1.0, largest))
    total = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in expected.values()))
    assert total == pytest.approx(0.5, rel=1e-3) if max_grad_norm else total > 0.5


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 3),
        ({"local_epochs": 2}, 6),
        ({"batch_size": 5}, 3),
        ({"gradient_accumulation": 2}, 2),
        ({"max_steps": 2}, 2),
        ({"max_steps": 99}, 3),
    ],
)
def test_the_number_of_steps_is_what_the_settings_say(
    examples: list[Tokenised], changes: dict[str, int], steps: int
) -> None:
    heard: list[tuple[int, int]] = []
    adapted = adapted_model(RUN)
    run = with_training(RUN, **changes)
    result = train(adapted, run, examples, ALL, 1, 0, lambda d, p: heard.append((d, p)))
    assert result.num_steps == steps
    assert heard == [(done, steps) for done in range(1, steps + 1)]


def test_a_learning_rate_of_zero_changes_nothing(examples: list[Tokenised]) -> None:
    run = with_training(RUN, learning_rate=0.0, head_learning_rate=0.0)
    _, after = trained(run, examples)
    start = start_state(run).tensors
    assert all(np.array_equal(after[name], start[name]) for name in start)


def test_the_head_has_a_learning_rate_of_its_own(examples: list[Tokenised]) -> None:
    _, after = trained(with_training(RUN, learning_rate=0.0), examples)
    start = start_state(RUN).tensors
    changed = {factor_of(name) for name in after if (after[name] != start[name]).any()}
    assert changed == {"head"}


def test_a_diverged_training_is_refused(examples: list[Tokenised]) -> None:
    run = with_training(
        RUN, learning_rate=1e25, head_learning_rate=1e25, local_epochs=4, max_grad_norm=0.0
    )
    with pytest.raises(Refusal, match="finite training loss") as caught:
        trained(run, examples)
    assert caught.value.code == RefusalReason.TRAINING_DIVERGED


def test_no_examples_are_refused() -> None:
    with pytest.raises(Refusal) as caught:
        train(adapted_model(RUN), RUN, [], ALL, 1, 0)
    assert caught.value.code == RefusalReason.NO_DATA


@pytest.fixture(scope="module")
def causal_run() -> RunSettings:
    return replace(
        RUN,
        task=TaskSettings(kind="instruct", packing=True),
        model=ModelSettings(id="novels", precision="float32", max_tokens=48),
        adapter=AdapterSettings(rank=2, alpha=4.0, targets=("q_proj", "v_proj"), last_layers=1),
    )


def conversations(count: int) -> list[Tokenised]:
    rng = np.random.default_rng(0)
    found = []
    for length in rng.integers(6, 20, size=count):
        ids = tuple(int(i) for i in rng.integers(10, 60, size=length))
        found.append(Tokenised(ids, (IGNORED,) * 3 + ids[3:]))
    return found


def test_packed_conversations_are_learned_from(causal_run: RunSettings) -> None:
    chats = conversations(12)
    run = with_training(causal_run, local_epochs=3, learning_rate=0.02)
    padded = replace(run, task=replace(run.task, packing=False))
    before = loss_of(padded, dict(start_state(run).tensors), chats)
    result, after = trained(run, chats)
    assert result.num_examples == 12
    assert loss_of(padded, after, chats) < 0.9 * before


def test_a_pack_s_loss_is_the_mean_over_its_answer_tokens(causal_run: RunSettings) -> None:
    chats = conversations(3)
    adapted = adapted_model(causal_run)
    adapted.load(start_state(causal_run).tensors)
    adapted.network.eval()
    with torch.no_grad():
        inputs, targets = pack_batch(chats, adapted.base.device)
        losses, counts = answer_losses(adapted.token_logits(inputs), targets)
        expected = float(losses.sum() / counts.sum())
        assert float(batch_loss(adapted, causal_run, chats)) / 3 == pytest.approx(expected)


def test_gradient_checkpointing_changes_no_gradient_that_matters(
    causal_run: RunSettings,
) -> None:
    chats = conversations(6)
    plain = with_training(causal_run, batch_size=3)
    plain = replace(plain, task=replace(plain.task, packing=False))
    _, expected = trained(plain, chats)
    _, got = trained(replace(plain, model=replace(plain.model, gradient_checkpointing=True)), chats)
    for name, tensor in expected.items():
        np.testing.assert_allclose(got[name], tensor, rtol=0, atol=1e-5)
