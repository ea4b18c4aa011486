"""Batches: every example once, and no example's result hangs on who is beside it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.adapted import AdaptedModel, adapted_model
from models.batches import (
    MAX_EVALUATION_TOKENS,
    bucketed_batches,
    evaluation_batches,
    pack_batch,
    packed_sequences,
    pad_batch,
)
from models.losses import answer_losses, class_losses
from models.tokens import IGNORED, Tokenised
from protocol.settings import AdapterSettings, ModelSettings, TaskSettings
from tests.small_runs import small_run

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=80)


def examples_of(lengths: list[int]) -> list[Tokenised]:
    """Examples of these lengths, no two alike."""
    return [Tokenised((n, *range(1, length)), (n,)) for n, length in enumerate(lengths)]


def chats(count: int, seed: int = 0) -> list[Tokenised]:
    """Random conversations of unequal length whose second half is the answer."""
    rng = np.random.default_rng(seed)
    found = []
    for length in rng.integers(4, 20, size=count):
        ids = tuple(int(i) for i in rng.integers(10, 4000, size=length))
        half = int(length) // 2
        found.append(Tokenised(ids, (IGNORED,) * half + ids[half:]))
    return found


@pytest.fixture(scope="module")
def novels() -> AdaptedModel:
    """The shipped causal model with a random adapter, in float32."""
    run = replace(
        small_run(),
        task=TaskSettings(kind="instruct"),
        model=ModelSettings(id="novels", precision="float32", max_tokens=64),
        adapter=AdapterSettings(rank=2, alpha=4.0, targets=("q_proj", "down_proj")),
    )
    adapted = adapted_model(run)
    rng = np.random.default_rng(0)
    adapted.load(
        {n: (0.05 * rng.normal(size=s)).astype(np.float32) for n, s in adapted.layout.items()}
    )
    adapted.network.eval()
    return adapted


@given(LENGTHS, st.integers(1, 9), st.integers(0, 99))
def test_bucketed_batches_hold_every_example_once(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    examples = examples_of(lengths)
    batches = bucketed_batches(examples, batch_size, np.random.default_rng(seed))
    assert Counter(e for batch in batches for e in batch) == Counter(examples)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert len(batches) == -(-len(examples) // batch_size) or len(examples) > 16 * batch_size


def test_batches_hold_examples_of_like_length_in_a_random_order() -> None:
    examples = examples_of([int(n) for n in np.random.default_rng(0).integers(1, 200, size=64)])
    batches = bucketed_batches(examples, 4, np.random.default_rng(1))
    widths = [max(e.num_tokens for e in b) - min(e.num_tokens for e in b) for b in batches]
    assert max(widths) < 40
    first = [min(e.num_tokens for e in b) for b in batches]
    assert first != sorted(first)
    again = bucketed_batches(examples, 4, np.random.default_rng(1))
    assert again == batches
    assert bucketed_batches(examples, 4, np.random.default_rng(2)) != batches


@given(LENGTHS, st.integers(40, 100))
def test_packs_hold_every_example_once_and_never_too_many_tokens(
    lengths: list[int], max_tokens: int
) -> None:
    examples = examples_of(lengths)
    packs = packed_sequences(examples, max_tokens)
    assert Counter(e for pack in packs for e in pack) == Counter(examples)
    assert all(sum(e.num_tokens for e in pack) <= max_tokens for pack in packs)
    # First fit: at most one pack is half empty.
    assert sum(sum(e.num_tokens for e in pack) * 2 <= max_tokens for pack in packs) <= 1


@given(LENGTHS, st.integers(1, 9))
def test_evaluation_batches_tell_where_each_example_belongs(
    lengths: list[int], batch_size: int
) -> None:
    examples = examples_of(lengths)
    seen: dict[int, Tokenised] = {}
    for positions, batch in evaluation_batches(examples, batch_size):
        seen |= dict(zip(positions, batch, strict=True))
    assert [seen[i] for i in range(len(examples))] == examples


def test_evaluation_batches_of_long_examples_have_fewer_of_them() -> None:
    long = MAX_EVALUATION_TOKENS // 4
    examples = examples_of([long] * 6 + [5 * long])
    batches = [positions for positions, _ in evaluation_batches(examples, 64)]
    assert batches == [[0, 1, 2, 3], [4, 5], [6]]


@given(LENGTHS)
def test_padding_is_masked_and_never_a_target(lengths: list[int]) -> None:
    examples = [replace(e, targets=e.input_ids) for e in examples_of(lengths)]
    inputs, targets = pad_batch(examples, 7, CPU, per_token=True)
    assert inputs["input_ids"].shape == (len(lengths), max(lengths)) == targets.shape
    for row, example in enumerate(examples):
        n = example.num_tokens
        assert tuple(inputs["input_ids"][row, :n].tolist()) == example.input_ids
        assert inputs["attention_mask"][row].tolist() == [1] * n + [0] * (max(lengths) - n)
        assert (inputs["input_ids"][row, n:] == 7).all() and (targets[row, n:] == IGNORED).all()
        assert tuple(targets[row, :n].tolist()) == example.targets


def test_a_class_is_one_target_for_each_example() -> None:
    examples = [Tokenised((1, 2, 3), (4,)), Tokenised((1,), (0,))]
    _, targets = pad_batch(examples, 0, CPU, per_token=False)
    assert targets.tolist() == [4, 0]


def test_packed_logits_are_those_of_each_conversation_alone(novels: AdaptedModel) -> None:
    examples = chats(5)
    inputs, _ = pack_batch(examples, CPU)
    with torch.no_grad():
        packed = novels.token_logits(inputs)[0]
        start = 0
        for example in examples:
            end = start + example.num_tokens
            alone = novels.token_logits({"input_ids": torch.tensor([example.input_ids])})[0]
            torch.testing.assert_close(packed[start:end], alone, rtol=0, atol=1e-4)
            start = end
    assert start == packed.shape[0]


def test_packed_logits_are_right_while_training_too(novels: AdaptedModel) -> None:
    examples = chats(3, seed=2)
    novels.network.train()
    inputs, _ = pack_batch(examples, CPU)
    packed = novels.token_logits(inputs)[0].detach()
    novels.network.eval()
    with torch.no_grad():
        last = novels.token_logits({"input_ids": torch.tensor([examples[2].input_ids])})[0]
    torch.testing.assert_close(packed[-examples[2].num_tokens :], last, rtol=0, atol=1e-4)


def test_packed_and_padded_batches_give_the_same_answer_loss(novels: AdaptedModel) -> None:
    examples = chats(6, seed=3)
    with torch.no_grad():
        inputs, targets = pack_batch(examples, CPU)
        packed, packed_count = answer_losses(novels.token_logits(inputs), targets)
        inputs, targets = pad_batch(examples, 0, CPU, per_token=True)
        padded, counts = answer_losses(novels.token_logits(inputs), targets)
    assert int(packed_count.sum()) == int(counts.sum())
    torch.testing.assert_close(packed.sum(), padded.sum(), rtol=1e-5, atol=1e-4)


def test_no_conversation_is_asked_to_predict_the_next_one_s_first_token() -> None:
    whole = [Tokenised((5, 6, 7), (5, 6, 7)), Tokenised((8, 9), (8, 9))]
    inputs, targets = pack_batch(whole, CPU)
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert targets.tolist() == [[IGNORED, 6, 7, IGNORED, 9]]


def test_answer_losses_compare_each_logit_with_the_next_token() -> None:
    logits = torch.log(
        torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]], [[0.3, 0.7], [0.6, 0.4], [0.5, 0.5]]])
    )
    targets = torch.tensor([[IGNORED, 1, 0], [IGNORED, IGNORED, 1]])
    losses, counts = answer_losses(logits, targets)
    torch.testing.assert_close(losses, -torch.log(torch.tensor([0.9 * 0.8, 0.4])))
    assert counts.tolist() == [2, 1]


def test_class_losses_are_one_number_for_each_example() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
    losses = class_losses(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(losses, -torch.log(torch.tensor([0.8, 0.5])))
