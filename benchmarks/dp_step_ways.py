"""One optimiser step, taken in several ways on the same model, batch and trained parameters.

Trained are B and the head, as FedSVD and FFA do under privacy. A step is all from token ids to
moved parameters: padding, forward, backward, AdamW; the private ways also bound each example's
gradient and add noise to the sum. Ours draws noise from ChaCha20, Opacus from torch's generator.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn

from client.privacy.clipping import clipped_sum, row_norms
from client.privacy.randomness import PrivateRandomness, gaussian_noise
from client.training.gradient_rows import GradientRows, write_gradients
from client.training.loop import batch_loss, example_losses, padded
from models.adapted import AdaptedModel, adapted_model
from models.tokens import IGNORED, Tokenised
from protocol.errors import FoedusError
from protocol.methods import Factors
from protocol.settings import AdapterSettings, ModelSettings, RunSettings, TaskSettings

PLAIN, OURS, HOOKS, GHOST, FUNCTORCH = "plain", "ours", "hooks", "ghost", "functorch"
OPACUS = (HOOKS, GHOST, FUNCTORCH)
WAYS = (PLAIN, OURS, *OPACUS)
TRAINED: Factors = frozenset({"B", "head"})

SIGMA = 1.0
# AdamW computes the same for any rate; at zero all ways meet the same model in every repetition.
_LEARNING_RATE = 0.0
_LABELS = tuple(f"label {number}" for number in range(55))

# MiniLM: a classifier of 22M parameters; novels: a Llama of 5 layers, hidden 256, vocabulary 4096.
MODELS: Mapping[str, RunSettings] = {
    "minilm": RunSettings(
        TaskSettings("classify", labels=_LABELS),
        ModelSettings("minilm", pooling="mean", max_tokens=256, precision="float32"),
        AdapterSettings(rank=8, targets=("query", "key", "value", "attention.output.dense")),
    ),
    "llama": RunSettings(
        TaskSettings("instruct"),
        ModelSettings("novels", max_tokens=256, precision="float32"),
        AdapterSettings(
            rank=8,
            targets=(
                *("q_proj", "k_proj", "v_proj", "o_proj"),
                *("gate_proj", "up_proj", "down_proj"),
            ),
        ),
    ),
}


@dataclass(frozen=True)
class Work:
    """What a step works on."""

    adapted: AdaptedModel
    run: RunSettings
    rows: GradientRows
    batch: Sequence[Tokenised]
    clip_norm: float

    @property
    def trained(self) -> list[nn.Parameter]:
        """In the order of a row's parts."""
        return list(self.rows.parameters.values())

    @property
    def num_parameters(self) -> int:
        """Trained ones; a row's length P."""
        return sum(p.numel() for p in self.trained)


def work_for(model: str, batch_size: int, tokens: int, clip_norm: float | None = None) -> Work:
    """Load `model` with random adapter values and draw a batch whose longest example has `tokens`.

    clip_norm: where None, the median norm of the batch's gradients: half of them are scaled.
    Errors: FoedusError where the model is not installed.
    """
    run = MODELS[model]
    adapted = adapted_model(run)
    rng = np.random.default_rng(0)
    # A zero B or head would leave gradients of zeros.
    adapted.load(
        {
            name: rng.normal(0, 0.05, shape).astype(np.float32)
            for name, shape in adapted.layout.items()
        }
    )
    adapted.network.train()
    rows = GradientRows(adapted, run, TRAINED)
    batch = random_batch(run, len(adapted.base.tokenizer), batch_size, tokens)
    if clip_norm is None:
        clip_norm = float(row_norms(rows.of(batch)[0]).median())
    return Work(adapted, run, rows, batch, clip_norm)


def random_batch(
    run: RunSettings, vocabulary: int, batch_size: int, tokens: int
) -> list[Tokenised]:
    """Random token ids, from tokens down to about half as many, so that there is padding.

    Causal models learn the last three quarters of each example; the rest is a masked prompt.
    """
    rng = np.random.default_rng(1)
    batch: list[Tokenised] = []
    for index in range(batch_size):
        length = tokens - index * tokens // (2 * batch_size)
        ids = tuple(int(token) for token in rng.integers(5, vocabulary, length))
        if run.task.kind == "classify":
            batch.append(Tokenised(ids, (index % len(run.task.labels),)))
        else:
            prompt = length // 4
            batch.append(Tokenised(ids, (IGNORED,) * prompt + ids[prompt:]))
    return batch


class Way(ABC):
    """A way to take one step. `step` is what is timed; `ready` prepares for it and cleans up.

    sigma: the noise multiplier of the private ways.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.sigma = work, SIGMA
        self.adamw = torch.optim.AdamW(work.trained, lr=_LEARNING_RATE, weight_decay=0.0)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Leaves nothing of this way behind that the next one would pay for."""
        try:
            yield
        finally:
            for parameter in self.work.trained:
                parameter.grad = None

    @abstractmethod
    def step(self) -> None:
        """One optimiser step. It leaves the gradient that AdamW got in the parameters."""

    def gradient(self, sigma: float = SIGMA) -> Tensor:
        """What AdamW gets in one step (P,), with noise of this multiplier."""
        kept, self.sigma = self.sigma, sigma
        try:
            with self.ready():
                self.step()
                return torch.cat([torch.as_tensor(p.grad).reshape(-1) for p in self.work.trained])
        finally:
            self.sigma = kept


class Plain(Way):
    """As client.training.loop takes a step of one micro-batch."""

    def step(self) -> None:
        """The batch's mean loss, gradients clipped as a whole, no noise."""
        work = self.work
        self.adamw.zero_grad(set_to_none=True)
        loss = batch_loss(work.adapted, work.run, work.batch) / len(work.batch)
        loss.backward()
        if not np.isfinite(float(loss.detach())):
            raise FoedusError(f"Expected a finite loss, got {float(loss.detach())}.")
        nn.utils.clip_grad_norm_(work.trained, work.run.training.max_grad_norm)
        self.adamw.step()


class Ours(Way):
    """As client.training.private takes a step of one pack."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._randomness = PrivateRandomness()

    def step(self) -> None:
        """Rows, norms, weighted sum, ChaCha20 noise, AdamW."""
        work = self.work
        rows, losses = work.rows.of(work.batch)
        total = torch.zeros(work.num_parameters, dtype=torch.float64)
        total += clipped_sum(rows, work.clip_norm)[0]
        float(losses.sum())
        noise = gaussian_noise(self._randomness, work.num_parameters, work.run.privacy.noise)
        gradient = (total + self.sigma * work.clip_norm * noise) / len(work.batch)
        write_gradients(work.rows.parameters, gradient.float())
        self.adamw.step()


class Opacus(Way):
    """Opacus' hooks and optimiser by hand, without its PrivacyEngine. kind: one of OPACUS."""

    def __init__(self, kind: str, work: Work) -> None:
        super().__init__(work)
        self._kind = kind
        self._hooks: Any = None
        self._optimizer: Any = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Hooks are on the model inside only, as they would slow the other ways."""
        network, clip_norm = self.work.adapted.network, self.work.clip_norm
        ghost = self._kind == GHOST
        with super().ready(), warnings.catch_warnings():
            # torch warns of the first layer, whose input needs no gradient: as it should be.
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            if ghost:
                self._hooks = GradSampleHooksFastGradientClipping(
                    network, loss_reduction="sum", max_grad_norm=clip_norm
                )
            else:
                self._hooks = GradSampleHooks(
                    network, loss_reduction="sum", force_functorch=self._kind == FUNCTORCH
                )
            try:
                self._optimizer = (DPOptimizerFastGradientClipping if ghost else DPOptimizer)(
                    self.adamw,
                    noise_multiplier=self.sigma,
                    max_grad_norm=clip_norm,
                    expected_batch_size=len(self.work.batch),
                    loss_reduction="mean",
                )
                yield
            finally:
                self._hooks.cleanup()

    def step(self) -> None:
        """Opacus' own clipping, noise and scaling, then AdamW. Ghost clips in the backward pass."""
        work = self.work
        self._optimizer.zero_grad(set_to_none=True)
        inputs, targets = padded(work.adapted, work.run, work.batch)
        losses = example_losses(work.adapted, work.run, inputs, targets)
        if self._kind == GHOST:
            DPTensorFastGradientClipping(self._hooks, self._optimizer, losses, "sum").backward()
        else:
            losses.sum().backward()
        self._optimizer.step()


def way_for(name: str, work: Work) -> Way:
    """The way of that name, one of WAYS, over `work`."""
    if name in OPACUS:
        return Opacus(name, work)
    return Plain(work) if name == PLAIN else Ours(work)


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over that of `expected`."""
    return float((found - expected).norm() / expected.norm())


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
