"""One gradient for each example, written straight into one (examples, parameters) buffer.

Autograd would sum a layer's weight gradient over the batch; for LoRA, keeping the examples apart
costs the same arithmetic. So each trained Linear gets an autograd function whose backward pass
writes the batched product of output gradient and input into the buffer and returns no weight
gradient. Everything that would make the rows wrong raises, before a gradient is used:

- a trained parameter that is not weight or bias of a plain Linear (DoRA, LoRA on embeddings,
  peft's target_parameters),
- a Linear used twice in one forward pass, or not at all,
- an input whose first dimension is not the number of examples (tokens flattened into the batch,
  packed sequences).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from protocol.errors import FoedusError

Losses = Callable[[], Tensor]


class RowsWouldBeWrong(FoedusError):
    """The flat path cannot give one true gradient for each example; use the one-example loop."""


@dataclass(frozen=True)
class _Slot:
    """Where a trained Linear's gradients lie within a row; a length of 0 where none is trained."""

    name: str
    module: nn.Linear
    weight_start: int
    weight_size: int
    bias_start: int
    bias_size: int


class FlatGradients:
    """Per-example gradients of `trained` (name -> parameter), in the order of its items.

    Errors: RowsWouldBeWrong where a parameter is not one the flat path covers.
    """

    def __init__(self, network: nn.Module, trained: Mapping[str, nn.Parameter]) -> None:
        _refuse_dora(network)
        self._starts: dict[str, int] = {}
        self.num_parameters = 0
        for name, parameter in trained.items():
            self._starts[name] = self.num_parameters
            self.num_parameters += parameter.numel()
        self._device = next(iter(trained.values())).device
        self._slots = list(_slots(network, trained, self._starts))
        self._rows: Tensor | None = None
        self._written: set[str] = set()

    def rows(self, num_examples: int, losses: Losses) -> tuple[Tensor, Tensor]:
        """(gradients (num_examples, P) float32, losses (num_examples,)).

        losses: computes one loss for each example, (num_examples,), each from its own row of the
        inputs alone. Errors: RowsWouldBeWrong, see above.
        """
        self._rows = torch.empty(
            (num_examples, self.num_parameters), dtype=torch.float32, device=self._device
        )
        self._written = set()
        try:
            with self._capturing():
                values = losses()
                if values.shape != (num_examples,):
                    raise RowsWouldBeWrong(
                        f"Expected {num_examples} losses, one for each example, got a tensor of "
                        f"shape {tuple(values.shape)}."
                    )
                values.sum().backward()
            unused = sorted({slot.name for slot in self._slots} - self._written)
            if unused:
                raise RowsWouldBeWrong(f"Trained layers took no part in the loss: {unused[:3]}.")
            return self._rows, values.detach()
        finally:
            self._rows = None

    def write(self, slot: _Slot, inputs: Tensor, output_gradient: Tensor) -> None:
        """Called from the backward pass of one layer."""
        if self._rows is None or slot.name in self._written:
            raise RowsWouldBeWrong(f"The layer {slot.name} is used twice in one forward pass.")
        self._written.add(slot.name)
        if slot.weight_size:
            part = self._rows[:, slot.weight_start : slot.weight_start + slot.weight_size]
            shape = (output_gradient.shape[-1], inputs.shape[-1])
            part.unflatten(1, shape).copy_(_outer_sums(inputs, output_gradient))
        if slot.bias_size:
            summed = output_gradient.reshape(len(self._rows), -1, slot.bias_size).sum(dim=1)
            self._rows[:, slot.bias_start : slot.bias_start + slot.bias_size].copy_(summed)

    def check_examples(self, slot: _Slot, inputs: Tensor) -> None:
        """Called from the forward pass of one layer: the first dimension must be the examples."""
        expected = None if self._rows is None else len(self._rows)
        if inputs.dim() not in (2, 3) or len(inputs) != expected:
            raise RowsWouldBeWrong(
                f"Expected the input of {slot.name} to have one row for each of {expected} "
                f"examples, got shape {tuple(inputs.shape)}."
            )

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """Each slot's module computes through `_CaptureLinear` inside; as before outside."""
        for slot in self._slots:
            slot.module.forward = _captured(self, slot)  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            for slot in self._slots:
                del slot.module.forward


class OneByOne:
    """The same rows by one forward and backward pass for each example: right for any model."""

    def __init__(self, trained: Mapping[str, nn.Parameter]) -> None:
        self._trained = trained
        self.num_parameters = sum(p.numel() for p in trained.values())

    def rows(self, num_examples: int, losses: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
        """As FlatGradients.rows; `losses(i)` gives example i's loss alone, a scalar."""
        device = next(iter(self._trained.values())).device
        rows = torch.zeros((num_examples, self.num_parameters), device=device)
        values = torch.zeros(num_examples, device=device)
        for index in range(num_examples):
            loss = losses(index)
            gradients = torch.autograd.grad(
                loss, list(self._trained.values()), allow_unused=True, materialize_grads=True
            )
            rows[index] = torch.cat([g.reshape(-1).float() for g in gradients])
            values[index] = loss.detach()
        return rows, values


class _CaptureLinear(torch.autograd.Function):
    """F.linear whose backward pass hands input and output gradient to the buffer."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, sink: Any) -> Tensor:
        kind = inputs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        cast_inputs, cast_weight = inputs.to(dtype), weight.to(dtype)
        ctx.save_for_backward(cast_inputs, cast_weight)
        ctx.sink, ctx.input_dtype = sink, inputs.dtype
        return nn.functional.linear(
            cast_inputs, cast_weight, None if bias is None else bias.to(dtype)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        inputs, weight = ctx.saved_tensors
        ctx.sink(inputs, output_gradient)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return torch.matmul(output_gradient, weight).to(ctx.input_dtype), None, None, None


def _captured(gradients: FlatGradients, slot: _Slot) -> Callable[[Tensor], Tensor]:
    def sink(inputs: Tensor, output_gradient: Tensor) -> None:
        gradients.write(slot, inputs, output_gradient)

    def forward(inputs: Tensor) -> Tensor:
        gradients.check_examples(slot, inputs)
        module = slot.module
        output: Tensor = _CaptureLinear.apply(inputs, module.weight, module.bias, sink)  # type: ignore[no-untyped-call]
        return output

    return forward


def _outer_sums(inputs: Tensor, output_gradient: Tensor) -> Tensor:
    """(B, d_out, d_in): sum over tokens of the outer products, for each example alone."""
    if inputs.dim() == 2:
        return output_gradient.unsqueeze(2) * inputs.unsqueeze(1)
    return torch.bmm(output_gradient.transpose(1, 2), inputs.to(output_gradient.dtype))


def _slots(
    network: nn.Module, trained: Mapping[str, nn.Parameter], starts: Mapping[str, int]
) -> Iterator[_Slot]:
    names = {id(parameter): name for name, parameter in trained.items()}
    covered: set[str] = set()
    for path, module in network.named_modules():
        own = {
            which: names.get(id(parameter))
            for which, parameter in module.named_parameters(recurse=False)
            if id(parameter) in names
        }
        if not own:
            continue
        if type(module) is not nn.Linear or not set(own) <= {"weight", "bias"}:
            raise RowsWouldBeWrong(
                f"Expected trained parameters in plain Linear layers, got {path} of type "
                f"{type(module).__name__}."
            )
        weight, bias = own.get("weight"), own.get("bias")
        covered |= {name for name in (weight, bias) if name is not None}
        yield _Slot(
            path,
            module,
            starts[weight] if weight else 0,
            module.weight.numel() if weight else 0,
            starts[bias] if bias else 0,
            module.bias.numel() if bias else 0,
        )
    missing = sorted(set(trained) - covered)
    if missing:
        raise RowsWouldBeWrong(
            f"Trained parameters belong to no layer of the model: {missing[:3]}."
        )


def _refuse_dora(network: nn.Module) -> None:
    """DoRA reads lora_B outside its forward pass, so its rows would miss a part."""
    for path, module in network.named_modules():
        magnitudes: Any = getattr(module, "lora_magnitude_vector", None)
        if magnitudes:
            raise RowsWouldBeWrong(f"Expected plain LoRA, got DoRA at {path}.")
