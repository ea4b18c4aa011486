"""The attacks: losses and gradients as the model has them, and planted examples on top."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.audit.attack import (
    ObservedRound,
    alignment_scores,
    example_losses,
    loss_scores,
    mean_update,
)
from client.audit.bounds import auc
from client.training.loop import batch_loss, train
from client.update import difference
from models.adapted import adapted_model
from models.tokens import IGNORED, Tokenised
from protocol.adapter import FloatArray, l2_norm
from protocol.methods import trained_factors
from protocol.settings import AdapterSettings, ModelSettings, RunSettings, TaskSettings
from tests.small_runs import LABELS, small_run, start_state

RUN = small_run(
    training={"learning_rate": 0.01, "head_learning_rate": 0.05, "local_epochs": 4, "batch_size": 4}
)
CAUSAL = replace(
    RUN,
    task=TaskSettings(kind="instruct"),
    model=ModelSettings(id="novels", precision="float32", max_tokens=48),
    adapter=AdapterSettings(rank=2, alpha=4.0, targets=("q_proj", "v_proj"), last_layers=1),
)


def random_clauses(count: int, seed: int = 0) -> list[Tokenised]:
    """Random tokens with random labels: nothing to learn but by heart."""
    rng = np.random.default_rng(seed)
    return [
        Tokenised(
            (101, *(int(i) for i in rng.integers(2000, 20000, size=rng.integers(6, 13))), 102),
            (int(rng.integers(len(LABELS))),),
        )
        for _ in range(count)
    ]


def random_chats(count: int) -> list[Tokenised]:
    rng = np.random.default_rng(1)
    found = []
    for length in rng.integers(8, 20, size=count):
        ids = tuple(int(i) for i in rng.integers(300, 4000, size=length))
        found.append(Tokenised(ids, (IGNORED,) * 4 + ids[4:]))
    return found


def moved(run: RunSettings, seed: int) -> dict[str, FloatArray]:
    """An adapter in which no tensor is zero."""
    rng = np.random.default_rng(seed)
    layout = adapted_model(run).layout
    return {n: (0.1 * rng.normal(size=shape)).astype(np.float32) for n, shape in layout.items()}


@pytest.mark.parametrize(
    ("run", "examples"),
    [(RUN, random_clauses(9)), (CAUSAL, random_chats(9))],
    ids=["classify", "instruct"],
)
def test_losses_are_each_example_s_own_whoever_shares_the_batch(
    run: RunSettings, examples: list[Tokenised]
) -> None:
    tensors = moved(run, 0)
    found = example_losses(run, tensors, examples)
    adapted = adapted_model(run)
    with torch.no_grad():
        alone = [float(batch_loss(adapted, run, [example])) for example in examples]
    np.testing.assert_allclose(found, alone, rtol=1e-4)
    assert np.ptp(found) > 0.01
    calibrated = loss_scores(run, moved(run, 1), tensors, examples)
    np.testing.assert_allclose(calibrated, example_losses(run, moved(run, 1), examples) - found)


def one_round(run: RunSettings, members: list[Tokenised], seed: int = 0) -> ObservedRound:
    """What a site that trains on `members` alone sends in round 1."""
    start = start_state(run).tensors
    factors = trained_factors(run.federation.method, 1)
    adapted = adapted_model(run)
    adapted.load(start)
    train(adapted, run, members, factors, 1, seed)
    return ObservedRound(start, difference(adapted.tensors(factors), start))


def test_an_update_of_one_gradient_step_on_an_example_aligns_with_it_fully() -> None:
    run, examples = RUN, random_clauses(3)
    tensors = moved(run, 2)
    adapted = adapted_model(run)
    adapted.load(tensors)
    trained = adapted.train_only(trained_factors(run.federation.method, 1))
    adapted.network.eval()
    batch_loss(adapted, run, [examples[0]]).backward()
    step = {}
    for name, parameter in trained.items():
        assert parameter.grad is not None
        step[name] = (-0.3 * parameter.grad).numpy().copy()
    found = alignment_scores(run, [ObservedRound(tensors, step)], examples)
    assert found[0] == pytest.approx(1.0, abs=1e-5)
    assert (np.abs(found[1:]) < 0.999).all()
    backwards = {name: -tensor for name, tensor in step.items()}
    opposed = alignment_scores(run, [ObservedRound(tensors, backwards)], examples)
    np.testing.assert_allclose(opposed, -found, atol=1e-6)
    twice = alignment_scores(run, [ObservedRound(tensors, step)] * 2, examples)
    np.testing.assert_allclose(twice, 2 * found, atol=1e-6)


def test_an_update_of_nothing_tells_nothing() -> None:
    tensors = moved(RUN, 3)
    nothing = {n: np.zeros_like(t) for n, t in tensors.items() if "lora_B" in n}
    heard: list[tuple[int, int]] = []
    found = alignment_scores(
        RUN, [ObservedRound(tensors, nothing)], random_clauses(2), lambda *p: heard.append(p)
    )
    assert found.tolist() == [0.0, 0.0]
    assert heard == [(1, 2), (2, 2)]


def test_a_mean_update_is_the_mean_and_hides_a_site_among_others() -> None:
    candidates = random_clauses(48)
    members = candidates[:24]
    seen = one_round(RUN, members)
    others = [one_round(RUN, random_clauses(24, seed), seed) for seed in (21, 22, 23)]
    mean = mean_update([seen.update, *(other.update for other in others)])
    name = next(iter(mean))
    expected = np.mean([seen.update[name], *(o.update[name] for o in others)], axis=0)
    np.testing.assert_allclose(mean[name], expected, atol=1e-7)
    assert 0 < l2_norm(mean) < max(l2_norm(seen.update), *(l2_norm(o.update) for o in others))

    def told_apart(observed: ObservedRound) -> float:
        scores = alignment_scores(RUN, [observed], candidates)
        return auc(scores[: len(members)], scores[len(members) :])

    alone, in_the_mean = told_apart(seen), told_apart(ObservedRound(seen.start, mean))
    assert alone > 0.8
    assert 0.4 < in_the_mean < alone


def test_trained_examples_score_above_others_by_loss() -> None:
    candidates = random_clauses(60)
    seen = one_round(RUN, candidates[:30])
    end = {n: t + seen.update[n] if n in seen.update else t for n, t in seen.start.items()}
    scores = loss_scores(RUN, seen.start, end, candidates)
    assert auc(scores[:30], scores[30:]) > 0.85
    untouched = loss_scores(RUN, seen.start, seen.start, candidates)
    assert untouched.tolist() == [0.0] * 60
    assert math.isfinite(float(np.sum(scores)))
