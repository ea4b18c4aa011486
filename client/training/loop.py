"""Plain local training: AdamW on the round's factors, warm-up and cosine, clipped gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.training.schedule import learning_rate_factor
from models.adapted import AdaptedModel
from models.batches import Batch, bucketed_batches, pack_batch, packed_sequences, pad_batch
from models.losses import answer_losses, class_losses
from models.tokens import Tokenised
from protocol.adapter import factor_of
from protocol.errors import Refusal
from protocol.methods import Factors
from protocol.reasons import RefusalReason
from protocol.settings import RunSettings, TrainingSettings


@dataclass(frozen=True)
class TrainingResult:
    """What one site's training of one round came to. train_loss: mean of the last pass, in nats."""

    num_examples: int
    num_steps: int
    train_loss: float
    train_seconds: float


def train(
    adapted: AdaptedModel,
    run: RunSettings,
    examples: Sequence[Tokenised],
    factors: Factors,
    round_: int,
    seed: int,
    on_step: Callable[[int, int], None] | None = None,
    before_batch: Callable[[], None] | None = None,
) -> TrainingResult:
    """Train `factors` of the adapter that `adapted` holds now, in place.

    seed: fixes batch order and adapter dropout. on_step hears (steps done, steps planned).
    before_batch is called before every pass through the network, of which a step has
    gradient_accumulation; it may raise, to end the training.
    Errors: Refusal(TRAINING_DIVERGED) at the first loss that is not finite; Refusal(NO_DATA).
    """
    if not examples:
        raise Refusal(RefusalReason.NO_DATA, "Expected training examples, got none.")
    started = time.monotonic()
    training = run.training
    rng = np.random.default_rng(seed)
    adapted.network.train()
    optimizer = _optimizer(adapted, training, factors)
    planned = _plan(examples, run, rng)
    num_steps = _num_steps(len(planned), training)
    last_losses: list[float] = []
    with torch.random.fork_rng(devices=_cuda_devices(adapted)):
        torch.manual_seed(seed)
        for step in range(num_steps):
            first = step * training.gradient_accumulation
            batches = planned[first : first + training.gradient_accumulation]
            set_learning_rates(optimizer, step, num_steps, round_, run)
            last_losses.append(_step(adapted, run, optimizer, batches, before_batch))
            if on_step:
                on_step(step + 1, num_steps)
    steps_per_pass = max(1, num_steps // training.local_epochs)
    return TrainingResult(
        num_examples=len(examples),
        num_steps=num_steps,
        train_loss=float(np.mean(last_losses[-steps_per_pass:])),
        train_seconds=time.monotonic() - started,
    )


def _plan(
    examples: Sequence[Tokenised], run: RunSettings, rng: np.random.Generator
) -> list[list[Tokenised]]:
    """Every batch of the round, in order: all passes, each shuffled anew."""
    planned: list[list[Tokenised]] = []
    for _ in range(run.training.local_epochs):
        if run.task.packing:
            packs = packed_sequences(examples, run.model.max_tokens)
            planned.extend(packs[i] for i in rng.permutation(len(packs)))
        else:
            planned.extend(bucketed_batches(examples, run.training.batch_size, rng))
    return planned


def _num_steps(num_batches: int, training: TrainingSettings) -> int:
    steps = math.ceil(num_batches / training.gradient_accumulation)
    return min(steps, training.max_steps) if training.max_steps else steps


def _optimizer(
    adapted: AdaptedModel, training: TrainingSettings, factors: Factors
) -> torch.optim.AdamW:
    groups = parameter_groups(
        adapted.train_only(factors), training.learning_rate, training.head_learning_rate
    )
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=training.weight_decay)


def parameter_groups(
    trained: Mapping[str, nn.Parameter], peak: float, head_peak: float
) -> list[dict[str, Any]]:
    """An optimiser's groups of LoRA factors and head, each with the peak of its learning rate."""
    head = [p for name, p in trained.items() if factor_of(name) == "head"]
    lora = [p for name, p in trained.items() if factor_of(name) != "head"]
    groups = [{"params": lora, "peak": peak}, {"params": head, "peak": head_peak}]
    return [group for group in groups if group["params"]]


def set_learning_rates(
    optimizer: torch.optim.Optimizer, step: int, num_steps: int, round_: int, run: RunSettings
) -> None:
    """The schedule's rate for one step (from 0) of num_steps in a round, in every group."""
    factor = learning_rate_factor(
        step,
        num_steps,
        round_,
        run.federation.rounds,
        run.training.warmup_fraction,
        run.training.final_learning_rate_fraction,
    )
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _step(
    adapted: AdaptedModel,
    run: RunSettings,
    optimizer: torch.optim.AdamW,
    batches: Sequence[Sequence[Tokenised]],
    before_batch: Callable[[], None] | None = None,
) -> float:
    """One optimiser step over its micro-batches; returns the mean loss per example."""
    num_examples = sum(len(batch) for batch in batches)
    total = 0.0
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        if before_batch:
            before_batch()
        loss = batch_loss(adapted, run, batch) / num_examples
        loss.backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise Refusal(
            RefusalReason.TRAINING_DIVERGED,
            f"Expected a finite training loss, got {total}. Lower training.learning_rate.",
        )
    if run.training.max_grad_norm:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, run.training.max_grad_norm)
    optimizer.step()
    return total


def batch_loss(adapted: AdaptedModel, run: RunSettings, batch: Sequence[Tokenised]) -> Tensor:
    """Sum over the batch's examples of each example's own mean loss (a scalar).

    Packed sequences: the mean over all answer tokens of the batch, times its examples.
    """
    if run.task.packing:
        inputs, targets = pack_batch(batch, adapted.base.device)
        losses, counts = answer_losses(adapted.token_logits(inputs), targets)
        return losses.sum() / counts.sum() * len(batch)
    inputs, targets = padded(adapted, run, batch)
    return example_losses(adapted, run, inputs, targets).sum()


def padded(
    adapted: AdaptedModel, run: RunSettings, batch: Sequence[Tokenised]
) -> tuple[Batch, Tensor]:
    """(inputs, targets) of a batch on the model's device."""
    pad_id = int(adapted.base.tokenizer.pad_token_id or 0)
    per_token = run.task.kind != "classify"
    return pad_batch(batch, pad_id, adapted.base.device, per_token=per_token)


def example_losses(
    adapted: AdaptedModel, run: RunSettings, inputs: Batch, targets: Tensor
) -> Tensor:
    """Each example's own mean loss (batch,): what one example does to it no other can change."""
    if run.task.kind == "classify":
        return class_losses(adapted.class_logits(inputs), targets)
    losses, counts = answer_losses(adapted.token_logits(inputs), targets)
    return losses / counts.clamp(min=1)


def _cuda_devices(adapted: AdaptedModel) -> list[torch.device]:
    return [adapted.base.device] if adapted.base.device.type == "cuda" else []
