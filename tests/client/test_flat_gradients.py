"""Per-example gradients: the fast path equals one example at a time, or says that it cannot."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from opacus import GradSampleModule
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from client.training import gradient_rows
from client.training.flat_gradients import FlatGradients, OneByOne, RowsWouldBeWrong
from client.training.gradient_rows import (
    GradientRows,
    check_training,
    flat_rows,
    rows_one_by_one,
    write_gradients,
)
from client.training.loop import example_losses, padded
from models.adapted import AdaptedModel, adapted_model
from models.tokens import IGNORED, Tokenised
from protocol.errors import FoedusError
from protocol.methods import Factors
from protocol.settings import AdapterSettings, ModelSettings, RunSettings, TaskSettings
from tests.small_runs import small_run

BOTH: Factors = frozenset({"A", "B", "head"})
ONLY_B: Factors = frozenset({"B", "head"})
CLASSIFY = small_run()
CAUSAL = RunSettings(
    TaskSettings("instruct"),
    ModelSettings("novels", max_tokens=24, precision="float32"),
    AdapterSettings(rank=2, alpha=4.0, targets=("q_proj", "up_proj", "down_proj")),
)


def examples_of(run: RunSettings, count: int = 5) -> list[Tokenised]:
    """Unequal lengths, so that there is padding; for causal runs a prompt that is masked."""
    generator = torch.Generator().manual_seed(3)
    found: list[Tokenised] = []
    for index in range(count):
        ids = tuple(torch.randint(300, 4000, (6 + 3 * index,), generator=generator).tolist())
        if run.task.kind == "classify":
            found.append(Tokenised(ids, (index % 3,)))
        else:
            masked = 2 + index
            found.append(Tokenised(ids, (IGNORED,) * masked + ids[masked:]))
    return found


@pytest.fixture(params=[CLASSIFY, CAUSAL], ids=["classify", "causal"])
def run(request: pytest.FixtureRequest) -> RunSettings:
    found: RunSettings = request.param
    return found


def with_random_values(run: RunSettings) -> AdaptedModel:
    adapted = adapted_model(run)
    adapted.network.eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters.values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapted


def both_ways(adapted: AdaptedModel, run: RunSettings, factors: Factors) -> tuple[Tensor, Tensor]:
    trained = adapted.train_only(factors)
    inputs, targets = padded(adapted, run, examples_of(run))
    flat = FlatGradients(adapted.network, trained)
    fast, fast_losses = flat_rows(flat, adapted, run, inputs, targets)
    slow, losses = rows_one_by_one(OneByOne(trained), adapted, run, inputs, targets)
    torch.testing.assert_close(fast_losses, losses, rtol=1e-5, atol=1e-6)
    return fast, slow


@pytest.mark.parametrize("factors", [ONLY_B, BOTH, frozenset({"A", "head"})])
def test_rows_equal_the_gradients_of_each_example_alone(run: RunSettings, factors: Factors) -> None:
    fast, slow = both_ways(with_random_values(run), run, factors)
    assert slow.norm(dim=1).min() > 0.01
    worst = ((fast - slow).norm(dim=1) / slow.norm(dim=1)).max()
    assert float(worst) < 1e-5


def test_rows_add_up_to_what_autograd_gives_for_the_whole_batch(run: RunSettings) -> None:
    adapted = with_random_values(run)
    fast, _ = both_ways(adapted, run, BOTH)
    trained = adapted.train_only(BOTH)
    inputs, targets = padded(adapted, run, examples_of(run))
    example_losses(adapted, run, inputs, targets).sum().backward()
    plain = torch.cat([torch.as_tensor(p.grad).reshape(-1) for p in trained.values()])
    torch.testing.assert_close(fast.sum(dim=0), plain, rtol=1e-3, atol=1e-5)


def test_an_example_s_row_does_not_depend_on_who_is_in_its_batch(run: RunSettings) -> None:
    """dp.md: a mean over all tokens of a batch moved the clipped sum by 1.57 C."""
    adapted = with_random_values(run)
    rows = GradientRows(adapted, run, BOTH)
    adapted.network.eval()
    examples = examples_of(run)
    together, _ = rows.of(examples)
    alone, _ = rows.of(examples[1:2])
    assert float((together[1] - alone[0]).norm() / alone[0].norm()) < 1e-4


def test_rows_equal_those_of_opacus() -> None:
    """The oracle: Opacus's hooks on the same model and batch."""
    adapted = with_random_values(CLASSIFY)
    fast, _ = both_ways(adapted, CLASSIFY, ONLY_B)
    trained = adapted.train_only(ONLY_B)
    inputs, targets = padded(adapted, CLASSIFY, examples_of(CLASSIFY))
    hooked = GradSampleModule(adapted.network, loss_reduction="sum", strict=False)
    try:
        # Opacus looks at layers in training mode only; the base model's dropout must stay off.
        for module in adapted.network.modules():
            if type(module) is nn.Linear:
                module.training = True
        example_losses(adapted, CLASSIFY, inputs, targets).sum().backward()
        samples = [torch.as_tensor(p.grad_sample).flatten(1) for p in trained.values()]  # type: ignore[attr-defined]
    finally:
        hooked.remove_hooks()
        for parameter in trained.values():
            parameter.grad = None
            del parameter.grad_sample  # type: ignore[attr-defined]
    oracle = torch.cat(samples, dim=1)
    assert float(((fast - oracle).norm(dim=1) / oracle.norm(dim=1)).max()) < 1e-5


def test_gradient_checkpointing_gives_the_same_rows() -> None:
    run = replace(CAUSAL, model=replace(CAUSAL.model, gradient_checkpointing=True))
    adapted = with_random_values(run)
    adapted.network.train()
    fast, slow = both_ways(adapted, run, BOTH)
    assert float(((fast - slow).norm(dim=1) / slow.norm(dim=1)).max()) < 1e-5


def test_the_model_computes_as_before_once_the_rows_are_taken() -> None:
    adapted = with_random_values(CLASSIFY)
    inputs, _ = padded(adapted, CLASSIFY, examples_of(CLASSIFY))
    before = adapted.class_logits(inputs)
    both_ways(adapted, CLASSIFY, BOTH)
    assert torch.equal(adapted.class_logits(inputs), before)
    assert not any("forward" in vars(m) for m in adapted.network.modules() if type(m) is nn.Linear)


class Twice(nn.Module):
    """One Linear used in two places, as tied layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x))).sum(dim=(1, 2))  # type: ignore[no-any-return]


class Flattened(nn.Module):
    """Batch and time flattened before a Linear: the token would become the unit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).reshape(len(x), -1).sum(dim=1)  # type: ignore[no-any-return]


class Unused(nn.Module):
    """A trained layer that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).sum(dim=(1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "words"),
    [(Twice(), "twice"), (Flattened(), "one row for each"), (Unused(), "took no part")],
)
def test_what_would_give_wrong_rows_is_refused(module: nn.Module, words: str) -> None:
    flat = FlatGradients(module, dict(module.named_parameters()))
    x = torch.randn((3, 5, 4), generator=torch.Generator().manual_seed(0))
    with pytest.raises(RowsWouldBeWrong, match=words):
        flat.rows(3, lambda: module(x))


def test_a_loss_that_is_not_one_number_an_example_is_refused() -> None:
    layer = nn.Linear(4, 2)
    flat = FlatGradients(layer, dict(layer.named_parameters()))
    with pytest.raises(RowsWouldBeWrong, match="one for each example"):
        flat.rows(3, lambda: layer(torch.zeros(3, 4)).mean())


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaForCausalLM]:
    torch.manual_seed(0)
    yield LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "DoRA|plain Linear"),
        ({"target_modules": ["embed_tokens"]}, "plain Linear"),
        ({"target_parameters": ["mlp.up_proj.weight"]}, "."),
    ],
    ids=["dora", "embeddings", "target_parameters"],
)
def test_adapters_whose_rows_would_be_wrong_are_refused(
    llama: LlamaForCausalLM, options: dict[str, Any], words: str
) -> None:
    model = get_peft_model(llama, LoraConfig(r=2, task_type="CAUSAL_LM", **options))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ids = torch.arange(12).reshape(2, 6)

    def losses() -> Tensor:
        squares: Tensor = model(input_ids=ids).logits.float().square()
        return squares.mean(dim=(1, 2))

    try:
        with pytest.raises(RowsWouldBeWrong, match=words):
            FlatGradients(model, trained).rows(2, losses)
    finally:
        model.unload()


def test_where_the_fast_path_refuses_one_example_at_a_time_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> Any:
        raise RowsWouldBeWrong("DoRA")

    adapted = with_random_values(CLASSIFY)
    expected, _ = GradientRows(adapted, CLASSIFY, BOTH).of(examples_of(CLASSIFY))
    monkeypatch.setattr(gradient_rows, "FlatGradients", refuse)
    monkeypatch.setattr(gradient_rows, "_checked", {})
    with caplog.at_level(logging.WARNING, "foedus.client"):
        got, _ = GradientRows(adapted, CLASSIFY, BOTH).of(examples_of(CLASSIFY))
    assert "one example at a time" in caplog.text
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_training_that_would_move_nothing_is_refused_before_privacy_is_spent() -> None:
    """Opacus issue 820: useless adapters were trained while epsilon accrued. Here the tensors in
    hand are copies of those the model computes with."""
    adapted = with_random_values(CLASSIFY)
    stale = {
        name: nn.Parameter(p.detach().clone()) for name, p in adapted.train_only(ONLY_B).items()
    }
    with pytest.raises(FoedusError, match="take part in the loss"):
        check_training(adapted, CLASSIFY, stale)


def test_the_check_leaves_every_value_as_it_was() -> None:
    adapted = with_random_values(CLASSIFY)
    before = adapted.tensors(BOTH)
    assert check_training(adapted, CLASSIFY, adapted.train_only(BOTH))
    after = adapted.tensors(BOTH)
    assert all((before[name] == after[name]).all() for name in before)
    assert all(p.grad is None for p in adapted.parameters.values())


def test_gradients_are_written_where_they_belong() -> None:
    first, second = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))
    write_gradients({"a": first, "b": second}, torch.arange(10.0))
    assert torch.equal(torch.as_tensor(first.grad), torch.arange(6.0).reshape(2, 3))
    assert torch.equal(torch.as_tensor(second.grad), torch.arange(6.0, 10.0))
