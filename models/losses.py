"""Losses, one number per example: a batch's loss must not depend on who else is in the batch."""

from __future__ import annotations

from torch import Tensor, nn

from models.tokens import IGNORED


def class_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per example (batch,) from logits (batch, labels) and indices (batch,)."""
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def answer_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of answer-token cross-entropies, number of answer tokens), each (batch,).

    logits (batch, tokens, vocabulary) and targets (batch, tokens) not shifted: the logits at t
    are compared with the target at t + 1. Tokens marked IGNORED count nothing.
    """
    shifted = targets[:, 1:]
    per_token = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), shifted, reduction="none", ignore_index=IGNORED
    )
    return per_token.sum(dim=1), (shifted != IGNORED).sum(dim=1)
