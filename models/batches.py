"""Batches: examples of like length together, padded to the longest; or packed into sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from models.tokens import IGNORED, Tokenised

# Sorting within this many batches keeps neighbours alike in length while batches stay mixed.
_BATCHES_PER_BUCKET = 16
# Padding included, of a batch without gradients: a run chooses how long its examples are, and the
# memory is the site's.
MAX_EVALUATION_TOKENS = 16_384

Batch = dict[str, Tensor]


def bucketed_batches(
    examples: Sequence[Tokenised], batch_size: int, rng: np.random.Generator
) -> list[list[Tokenised]]:
    """A random order in which each batch holds examples of like length; every example once."""
    order = rng.permutation(len(examples))
    batches: list[list[Tokenised]] = []
    span = batch_size * _BATCHES_PER_BUCKET
    for start in range(0, len(order), span):
        bucket = sorted(order[start : start + span], key=lambda i: examples[i].num_tokens)
        for first in range(0, len(bucket), batch_size):
            batches.append([examples[i] for i in bucket[first : first + batch_size]])
    return [batches[i] for i in rng.permutation(len(batches))]


def packed_sequences(examples: Sequence[Tokenised], max_tokens: int) -> list[list[Tokenised]]:
    """First-fit packing: lists of examples that fit into one sequence of max_tokens."""
    packs: list[list[Tokenised]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda e: -e.num_tokens):
        slot = next((i for i, left in enumerate(room) if left >= example.num_tokens), None)
        if slot is None:
            packs.append([example])
            room.append(max_tokens - example.num_tokens)
        else:
            packs[slot].append(example)
            room[slot] -= example.num_tokens
    return packs


def pad_batch(
    examples: Sequence[Tokenised], pad_id: int, device: torch.device, *, per_token: bool
) -> tuple[Batch, Tensor]:
    """(inputs, targets): ids and mask (batch, tokens); targets (batch, tokens) where `per_token`,
    else the class index (batch,)."""
    longest = max(example.num_tokens for example in examples)
    ids = torch.full((len(examples), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    targets = torch.full((len(examples), longest), IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        ids[row, : example.num_tokens] = torch.tensor(example.input_ids)
        mask[row, : example.num_tokens] = 1
        targets[row, : len(example.targets)] = torch.tensor(example.targets)
    if not per_token:
        targets = targets[:, 0]
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    return inputs, targets.to(device)


def pack_batch(examples: Sequence[Tokenised], device: torch.device) -> tuple[Batch, Tensor]:
    """One sequence (1, tokens) of several examples that do not see each other.

    Positions start anew at each example; without a mask, transformers reads the boundaries off
    them. The first token of each example is never a target: nothing before it predicts it.
    """
    ids = [token for example in examples for token in example.input_ids]
    positions = [position for example in examples for position in range(example.num_tokens)]
    targets = [t for example in examples for t in (IGNORED, *example.targets[1:])]
    inputs = {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
    }
    return inputs, torch.tensor([targets], device=device)


def evaluation_batches(
    examples: Sequence[Tokenised], batch_size: int, max_tokens: int = MAX_EVALUATION_TOKENS
) -> Iterator[tuple[list[int], list[Tokenised]]]:
    """(positions, examples) in order of length: least padding, nothing random.

    A batch has at most `batch_size` examples, and `max_tokens` padded tokens unless a single
    example has more.
    """
    order = sorted(range(len(examples)), key=lambda i: examples[i].num_tokens)
    chosen: list[int] = []
    for position in order:
        padded = (len(chosen) + 1) * examples[position].num_tokens
        if chosen and (len(chosen) == batch_size or padded > max_tokens):
            yield chosen, [examples[i] for i in chosen]
            chosen = []
        chosen.append(position)
    if chosen:
        yield chosen, [examples[i] for i in chosen]
