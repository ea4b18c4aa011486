"""Private local training: DP-SGD on the round's factors.

Each step draws units by chance, clips each unit's summed gradient, adds Gaussian noise to the sum
and divides by the expected number of units. An empty draw is a step like any other: its noise is
what hides that nobody was drawn. Source: Abadi et al. 2016, arXiv 1607.00133.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.privacy.clipping import clipped_sum, gradient_sigma, next_clip_norm, sum_by_unit
from client.privacy.randomness import PrivateRandomness, gaussian_noise
from client.privacy.sampling import Unit, draw_units, group_units, packs_of_units
from client.training.gradient_rows import GradientRows, write_gradients
from client.training.loop import TrainingResult, parameter_groups, set_learning_rates
from models.adapted import AdaptedModel
from models.tokens import Tokenised
from protocol.errors import Refusal
from protocol.methods import Factors
from protocol.reasons import RefusalReason
from protocol.settings import PrivacySettings, RunSettings

_SGD_MOMENTUM = 0.9


@dataclass(frozen=True)
class PrivateResult:
    """What one site's private training of one round came to; for the site's own eyes.

    training: its train_loss is the mean over drawn examples, without noise: it must not leave.
    clip_norm: where the clip norm stands after the round.
    """

    training: TrainingResult
    clip_norm: float


def train_private(
    adapted: AdaptedModel,
    run: RunSettings,
    examples: Sequence[Tokenised],
    factors: Factors,
    round_: int,
    sigma: float,
    *,
    clip_norm: float | None = None,
    randomness: PrivateRandomness | None = None,
    on_step: Callable[[int, int], None] | None = None,
    before_batch: Callable[[], None] | None = None,
) -> PrivateResult:
    """Train `factors` of the adapter that `adapted` holds now, in place, for steps_per_round steps.

    sigma: noise multiplier that accounts for everything released. clip_norm: where it stands, the
    settings' where None. randomness: fresh from the operating system unless a test gives one.
    before_batch: as in client.training.loop.train; what it does must not go by what is drawn.
    Errors: Refusal(NO_DATA or NO_MATTERS) without a unit; Refusal(POLICY) where the clip norm's
    count cannot be paid for. Neither depends on what is drawn.
    """
    privacy = run.privacy
    units = _units_among(examples, privacy.unit)
    started = time.monotonic()
    adapted.network.train()
    rows = GradientRows(adapted, run, factors)
    optimizer = _optimizer(rows, run)
    step_of = _PrivateStep(
        rows, privacy, run.training.batch_size, units, sigma, randomness, before_batch
    )
    clip = privacy.clip_norm if clip_norm is None else clip_norm
    losses: list[float] = []
    for step in range(privacy.steps_per_round):
        gradient, loss, clip = step_of.gradient(clip)
        set_learning_rates(optimizer, step, privacy.steps_per_round, round_, run)
        write_gradients(rows.parameters, gradient)
        optimizer.step()
        losses.append(loss)
        if on_step:
            on_step(step + 1, privacy.steps_per_round)
    training = TrainingResult(
        num_examples=sum(len(unit) for unit in units),
        num_steps=privacy.steps_per_round,
        train_loss=_mean_of_drawn(losses),
        train_seconds=time.monotonic() - started,
    )
    return PrivateResult(training, clip)


def _units_among(examples: Sequence[Tokenised], unit: str) -> tuple[Unit, ...]:
    units = group_units(examples, unit)
    if not units:
        raise Refusal(
            RefusalReason.NO_MATTERS if examples else RefusalReason.NO_DATA,
            f"Expected training examples in at least one {unit}, got {len(examples)} examples in "
            "none. Name matters in the contracts' sidecars, or agree on privacy.unit=example.",
        )
    return units


def _mean_of_drawn(losses: Sequence[float]) -> float:
    """A step that drew nobody has no loss."""
    drawn = [loss for loss in losses if math.isfinite(loss)]
    return sum(drawn) / len(drawn) if drawn else math.nan


class _PrivateStep:
    """Gives one step's noised gradient after another, over the same units."""

    def __init__(
        self,
        rows: GradientRows,
        privacy: PrivacySettings,
        batch_size: int,
        units: Sequence[Unit],
        sigma: float,
        randomness: PrivateRandomness | None,
        before_batch: Callable[[], None] | None = None,
    ) -> None:
        self._before_batch = before_batch
        self._rows, self._privacy, self._batch_size = rows, privacy, batch_size
        self._units = units
        self._expected_units = privacy.sampling_rate * len(units)
        self._randomness = randomness or PrivateRandomness()
        self._count_noise_units = privacy.clip_count_noise * self._expected_units
        self._sigma = sigma
        if privacy.adaptive_clipping:
            self._sigma = gradient_sigma(sigma, self._count_noise_units)

    def gradient(self, clip_norm: float) -> tuple[Tensor, float, float]:
        """(noised mean gradient (P,), mean loss of what was drawn or NaN, next clip norm)."""
        privacy = self._privacy
        drawn = draw_units(
            self._units, privacy.sampling_rate, privacy.examples_per_matter, self._randomness
        )
        size = sum(p.numel() for p in self._rows.parameters.values())
        device = next(iter(self._rows.parameters.values())).device
        total = torch.zeros(size, dtype=torch.float64, device=device)
        num_under, loss, num_examples = 0, 0.0, 0
        for pack in packs_of_units(drawn, self._batch_size):
            unit_rows, pack_loss = self._unit_rows(pack)
            part, under = clipped_sum(unit_rows, clip_norm)
            total += part
            num_under += under
            loss += pack_loss
            num_examples += sum(len(unit) for unit in pack)
        noise = gaussian_noise(self._randomness, size, privacy.noise).to(device)
        gradient = (total + self._sigma * clip_norm * noise) / self._expected_units
        if privacy.adaptive_clipping:
            clip_norm = self._next_clip_norm(clip_norm, num_under, len(drawn))
        return gradient.float(), loss / num_examples if num_examples else math.nan, clip_norm

    def _unit_rows(self, pack: Sequence[Unit]) -> tuple[Tensor, float]:
        """(one summed gradient for each unit (units, P), sum of the examples' losses)."""
        flat = [(index, example) for index, unit in enumerate(pack) for example in unit]
        if len(flat) == len(pack):
            rows, losses = self._gradients([example for _, example in flat])
            return rows, float(losses.sum())
        sums: Tensor | None = None
        loss = 0.0
        for start in range(0, len(flat), self._batch_size):
            chunk = flat[start : start + self._batch_size]
            rows, losses = self._gradients([example for _, example in chunk])
            of_unit = torch.tensor([index for index, _ in chunk], device=rows.device)
            part = sum_by_unit(rows, of_unit, len(pack))
            sums = part if sums is None else sums + part
            loss += float(losses.sum())
        assert sums is not None  # a pack holds at least one example
        return sums, loss

    def _gradients(self, batch: Sequence[Tokenised]) -> tuple[Tensor, Tensor]:
        if self._before_batch:
            self._before_batch()
        return self._rows.of(batch)

    def _next_clip_norm(self, clip_norm: float, num_under: int, num_drawn: int) -> float:
        """Counted in steps of one half around zero, so that one unit moves it by one half."""
        noise = float(self._randomness.gaussian(1)) * self._count_noise_units
        counted = num_under - num_drawn / 2 + noise
        share = counted / self._expected_units + 0.5
        return next_clip_norm(
            clip_norm, share, self._privacy.clip_quantile, self._privacy.clip_learning_rate
        )


def _optimizer(rows: GradientRows, run: RunSettings) -> torch.optim.Optimizer:
    privacy = run.privacy
    used = parameter_groups(rows.parameters, privacy.learning_rate, privacy.head_learning_rate)
    decay = run.training.weight_decay
    if privacy.optimizer == "sgd":
        return torch.optim.SGD(used, lr=0.0, momentum=_SGD_MOMENTUM, weight_decay=decay)
    return torch.optim.AdamW(used, lr=0.0, weight_decay=decay)
