"""Attacks on a trained adapter and on what crosses the wire: one score per example.

Higher scores say "was trained on". An attacker who knows the base model, the settings of the run
and the text in question can compute every score here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from client.audit.bounds import Scores
from client.training.loop import batch_loss
from models.adapted import adapted_model
from models.batches import evaluation_batches, pad_batch
from models.losses import answer_losses, class_losses
from models.tokens import Tokenised
from protocol.adapter import FloatArray, factor_of, l2_norm
from protocol.settings import RunSettings

# (done, in all), counted in examples.
OnProgress = Callable[[int, int], None]

_BATCH_SIZE = 32


@dataclass(frozen=True)
class ObservedRound:
    """One round as a coordinator sees it.

    start: every tensor of the adapter that the round began with. update: what came back, trained
    minus received, of the uploaded factors; of one site, or the mean of a cohort.
    """

    start: Mapping[str, FloatArray]
    update: Mapping[str, FloatArray]


def example_losses(
    run: RunSettings, tensors: Mapping[str, FloatArray], examples: Sequence[Tokenised]
) -> Scores:
    """Each example's own mean loss in nats, (examples,), under an adapter's tensors."""
    adapted = adapted_model(run)
    adapted.load(tensors)
    adapted.network.eval()
    pad_id = int(adapted.base.tokenizer.pad_token_id or 0)
    device = adapted.base.device
    classify = run.task.kind == "classify"
    losses = np.zeros(len(examples), dtype=np.float64)
    with torch.no_grad():
        for positions, batch in evaluation_batches(examples, _BATCH_SIZE):
            inputs, targets = pad_batch(batch, pad_id, device, per_token=not classify)
            if classify:
                found = class_losses(adapted.class_logits(inputs), targets)
            else:
                summed, counts = answer_losses(adapted.token_logits(inputs), targets)
                found = summed / counts.clamp(min=1)
            losses[positions] = found.double().cpu().numpy()
    return losses


def loss_scores(
    run: RunSettings,
    start: Mapping[str, FloatArray],
    end: Mapping[str, FloatArray],
    examples: Sequence[Tokenised],
) -> Scores:
    """How far training lowered each example's loss, in nats: loss under start - loss under end.

    The start takes out how hard an example is by itself, which otherwise hides membership (Watson
    et al. 2022, https://arxiv.org/abs/2111.08440).
    """
    return example_losses(run, start, examples) - example_losses(run, end, examples)


def alignment_scores(
    run: RunSettings,
    rounds: Sequence[ObservedRound],
    examples: Sequence[Tokenised],
    on_progress: OnProgress | None = None,
) -> Scores:
    """How far each round's update points where the example pulls, summed over rounds.

    The score of a round is -<update, g> / (|update| |g|) in -1..1, with g the gradient of the
    example's loss at the round's start over the tensors of the update: training on an example
    moves the adapter against its gradient. Costs one backward pass per example and round.
    White-box attack after Nasr et al. 2019, https://arxiv.org/abs/1812.00910
    """
    total = np.zeros(len(examples), dtype=np.float64)
    in_all = len(rounds) * len(examples)
    for number, observed in enumerate(rounds):
        done = number * len(examples)
        total += _alignments(run, observed, examples, done, in_all, on_progress)
    return total


def _alignments(
    run: RunSettings,
    observed: ObservedRound,
    examples: Sequence[Tokenised],
    done: int,
    in_all: int,
    on_progress: OnProgress | None,
) -> Scores:
    adapted = adapted_model(run)
    adapted.load(observed.start)
    adapted.network.eval()
    adapted.train_only({factor_of(name) for name in observed.update})
    parameters = [adapted.parameters[name] for name in observed.update]
    device = adapted.base.device
    directions = [
        torch.from_numpy(np.array(t, copy=True)).to(device) for t in observed.update.values()
    ]
    update_norm = l2_norm(observed.update)
    alone = replace(run, task=replace(run.task, packing=False))
    found = np.zeros(len(examples), dtype=np.float64)
    for position, example in enumerate(examples):
        gradients = torch.autograd.grad(
            batch_loss(adapted, alone, [example]), parameters, allow_unused=True
        )
        pulled, squares = 0.0, 0.0
        for gradient, direction in zip(gradients, directions, strict=True):
            if gradient is not None:
                pulled -= float((gradient.double() * direction).sum())
                squares += float(gradient.double().square().sum())
        norms = math.sqrt(squares) * update_norm
        # An update or a gradient of zero points nowhere and tells nothing.
        found[position] = pulled / norms if norms > 0.0 else 0.0
        if on_progress:
            on_progress(done + position + 1, in_all)
    return found


def mean_update(updates: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    """The unweighted mean of several sites' updates: all that secure aggregation shows of them.

    updates: at least one; all of the same names and shapes.
    """
    first = updates[0]
    means: dict[str, FloatArray] = {}
    for name in first:
        stacked: NDArray[np.float64] = np.stack([u[name].astype(np.float64) for u in updates])
        means[name] = stacked.mean(axis=0).astype(np.float32)
    return means
