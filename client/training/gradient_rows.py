"""Per-example gradients of a run's trained factors, by the fast way where it was shown to be right.

Before the first private step both ways are compared on random tokens with random adapter values,
and one optimiser step is taken: training that moves nothing while the budget is spent is the
failure that no exception tells.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from client.training.flat_gradients import FlatGradients, OneByOne, RowsWouldBeWrong
from client.training.loop import example_losses, padded
from models.adapted import AdaptedModel
from models.tokens import Tokenised
from protocol.adapter import factor_of
from protocol.errors import FoedusError
from protocol.methods import Factors
from protocol.settings import RunSettings

log = logging.getLogger("foedus.client")

_CHECKED_EXAMPLES, _CHECKED_TOKENS = 4, 12
# Relative error of a row, by the arithmetic of the base model: bfloat16 keeps 8 bits.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 2e-2}

_checked: weakref.WeakKeyDictionary[AdaptedModel, dict[Factors, bool]] = weakref.WeakKeyDictionary()


class GradientRows:
    """Gradients of each example alone, over the trained factors of one adapted model.

    `parameters`: name -> parameter, in the order of a row's parts.
    Errors: FoedusError where training would not move the model.
    """

    def __init__(self, adapted: AdaptedModel, run: RunSettings, factors: Factors) -> None:
        self._adapted, self._run = adapted, run
        self.parameters: Mapping[str, nn.Parameter] = adapted.train_only(factors)
        flat_is_right = _checked.setdefault(adapted, {})
        if factors not in flat_is_right:
            flat_is_right[factors] = check_training(adapted, run, self.parameters)
        self._flat: FlatGradients | None = None
        if flat_is_right[factors]:
            self._flat = FlatGradients(adapted.network, self.parameters)

    def of(self, batch: Sequence[Tokenised]) -> tuple[Tensor, Tensor]:
        """(gradients (examples, P) float32, losses (examples,)). Memory: examples * P * 4 bytes."""
        inputs, targets = padded(self._adapted, self._run, batch)
        if self._flat is not None:
            return flat_rows(self._flat, self._adapted, self._run, inputs, targets)
        one_by_one = OneByOne(self.parameters)
        return rows_one_by_one(one_by_one, self._adapted, self._run, inputs, targets)


def flat_rows(
    flat: FlatGradients,
    adapted: AdaptedModel,
    run: RunSettings,
    inputs: Mapping[str, Tensor],
    targets: Tensor,
) -> tuple[Tensor, Tensor]:
    """The rows of a padded batch by one forward and backward pass."""
    return flat.rows(len(targets), lambda: example_losses(adapted, run, dict(inputs), targets))


def rows_one_by_one(
    one_by_one: OneByOne,
    adapted: AdaptedModel,
    run: RunSettings,
    inputs: Mapping[str, Tensor],
    targets: Tensor,
) -> tuple[Tensor, Tensor]:
    """The rows of a padded batch by one forward and backward pass for each example."""

    def loss_of(index: int) -> Tensor:
        alone = {name: tensor[index : index + 1] for name, tensor in inputs.items()}
        return example_losses(adapted, run, alone, targets[index : index + 1]).sum()

    return one_by_one.rows(len(targets), loss_of)


def check_training(
    adapted: AdaptedModel, run: RunSettings, parameters: Mapping[str, nn.Parameter]
) -> bool:
    """True where the flat path gives the one-example gradients on random tokens.

    Errors: FoedusError where a gradient or an optimiser step leaves a trained tensor, or the
    model's losses, as they were.
    """
    with _random_values(adapted):
        inputs, targets = padded(adapted, run, _random_examples(adapted, run))
        expected, losses = rows_one_by_one(OneByOne(parameters), adapted, run, inputs, targets)
        _refuse_dead_tensors(expected, parameters)
        _refuse_dead_steps(adapted, run, inputs, targets, parameters, expected, losses)
        try:
            flat = FlatGradients(adapted.network, parameters)
            rows, _ = flat_rows(flat, adapted, run, inputs, targets)
        except RowsWouldBeWrong as error:
            log.warning("Private training takes one example at a time: %s", error)
            return False
        difference = float(((rows - expected).norm(dim=1) / expected.norm(dim=1)).max())
    tolerance = _TOLERANCE.get(adapted.base.dtype, 1e-3)
    if not difference <= tolerance:
        log.warning(
            "Private training takes one example at a time: the fast gradients differ by %.2g.",
            difference,
        )
        return False
    return True


def _refuse_dead_tensors(rows: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    start = 0
    dead: list[str] = []
    for name, parameter in parameters.items():
        part = rows[:, start : start + parameter.numel()]
        start += parameter.numel()
        if not bool(part.any()):
            dead.append(name)
    if dead:
        raise FoedusError(
            f"Expected every trained tensor to take part in the loss, got none of {dead[:3]} "
            f"({len(dead)} in all). Training would spend privacy and learn nothing: attach the "
            "adapter anew, after the model is on its device."
        )


def _refuse_dead_steps(
    adapted: AdaptedModel,
    run: RunSettings,
    inputs: Mapping[str, Tensor],
    targets: Tensor,
    parameters: Mapping[str, nn.Parameter],
    rows: Tensor,
    losses: Tensor,
) -> None:
    optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
    write_gradients(parameters, rows.mean(dim=0))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer.step()
    still = [name for name, parameter in parameters.items() if torch.equal(parameter, before[name])]
    with torch.no_grad():
        after = example_losses(adapted, run, dict(inputs), targets)
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
            parameter.grad = None
    if still or torch.equal(after, losses):
        raise FoedusError(
            "Expected a training step to move the adapter and the model's losses, got "
            f"{len(still)} tensors that stayed and losses that "
            f"{'stayed' if torch.equal(after, losses) else 'moved'}. The adapter in memory is not "
            "the one the model computes with; start the site again."
        )


def write_gradients(parameters: Mapping[str, nn.Parameter], flat: Tensor) -> None:
    """Set every parameter's .grad from its part of flat (P,)."""
    start = 0
    for parameter in parameters.values():
        part = flat[start : start + parameter.numel()]
        parameter.grad = part.reshape(parameter.shape).to(parameter.dtype)
        start += parameter.numel()


@contextmanager
def _random_values(adapted: AdaptedModel) -> Iterator[None]:
    """Random adapter and head inside: a zero B or head would hide a dead gradient."""
    kept = {name: p.detach().clone() for name, p in adapted.parameters.items()}
    was_training = adapted.network.training
    adapted.network.eval()
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for name, parameter in adapted.parameters.items():
                scale = 0.5 if factor_of(name) == "head" else 0.1
                drawn = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_(drawn)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in adapted.parameters.items():
                parameter.copy_(kept[name])
        adapted.network.train(was_training)


def _random_examples(adapted: AdaptedModel, run: RunSettings) -> list[Tokenised]:
    """Random token ids of unequal lengths; nothing of the site's contracts."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = len(adapted.base.tokenizer)
    examples: list[Tokenised] = []
    for index in range(_CHECKED_EXAMPLES):
        length = min(_CHECKED_TOKENS, run.model.max_tokens) - index
        drawn = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        ids = tuple(int(token) for token in drawn)
        if run.task.kind == "classify":
            examples.append(Tokenised(ids, (index % len(run.task.labels),)))
        else:
            examples.append(Tokenised(ids, ids))
    return examples
