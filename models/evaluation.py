"""How good an adapter is on held-out examples, the same for site, coordinator and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.adapted import AdaptedModel, adapted_model
from models.batches import MAX_EVALUATION_TOKENS, evaluation_batches, pad_batch
from models.examples import ChatExample, ClauseExample, Example
from models.losses import answer_losses, class_losses
from models.tokens import Tokenised, tokenise_chats, tokenise_clauses
from protocol.adapter import AdapterState
from protocol.settings import RunSettings

_BATCH_SIZE = 64
_CHAT_BATCH_SIZE = 16


@dataclass(frozen=True)
class ClassificationScores:
    """loss in nats per example; accuracy and macro_f1 in 0..1; predictions are class indices."""

    num_examples: int
    loss: float
    accuracy: float
    macro_f1: float
    predictions: tuple[int, ...]

    def as_metrics(self) -> dict[str, float]:
        """The numbers that may leave a site."""
        return {
            "num_examples": float(self.num_examples),
            "loss": self.loss,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
        }


@dataclass(frozen=True)
class LanguageScores:
    """loss in nats per answer token, over all answer tokens."""

    num_examples: int
    num_tokens: int
    loss: float

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    def as_metrics(self) -> dict[str, float]:
        """The numbers that may leave a site."""
        return {"num_examples": float(self.num_examples), "loss": self.loss}


Scores = ClassificationScores | LanguageScores


def tokenise(run: RunSettings, examples: Sequence[Example]) -> list[Tokenised]:
    """Token ids of examples under the run's model. Other parameters and errors: models.tokens."""
    tokenizer = adapted_model(run).base.tokenizer
    if run.task.kind == "classify":
        clauses = [e for e in examples if isinstance(e, ClauseExample)]
        return tokenise_clauses(tokenizer, clauses, run.task.labels, run.model.max_tokens)
    chats = [e for e in examples if isinstance(e, ChatExample)]
    return tokenise_chats(tokenizer, chats, run.model.max_tokens)


def evaluate(
    run: RunSettings,
    state: AdapterState,
    examples: Sequence[Tokenised],
    on_batch: Callable[[int], None] | None = None,
    max_batch_tokens: int = MAX_EVALUATION_TOKENS,
) -> Scores:
    """Scores of `state` on tokenised examples; on_batch hears how many examples were done.

    max_batch_tokens: at once, padding included, unless a single example has more.
    Errors: ValueError on no examples, as then there is no score.
    """
    if not examples:
        raise ValueError("Expected at least one example to evaluate on, got none.")
    adapted = adapted_model(run)
    adapted.load(state.tensors)
    adapted.network.eval()
    with torch.no_grad():
        if run.task.kind == "classify":
            return _classification(adapted, examples, on_batch, max_batch_tokens)
        return _language(adapted, examples, on_batch, max_batch_tokens)


def _classification(
    adapted: AdaptedModel,
    examples: Sequence[Tokenised],
    on_batch: Callable[[int], None] | None,
    max_batch_tokens: int,
) -> ClassificationScores:
    predictions = np.zeros(len(examples), dtype=np.int64)
    targets = np.array([example.targets[0] for example in examples])
    total_loss = 0.0
    pad_id = int(adapted.base.tokenizer.pad_token_id or 0)
    for positions, batch in evaluation_batches(examples, _BATCH_SIZE, max_batch_tokens):
        inputs, wanted = pad_batch(batch, pad_id, adapted.base.device, per_token=False)
        logits = adapted.class_logits(inputs)
        total_loss += float(class_losses(logits, wanted).sum())
        predictions[positions] = logits.argmax(dim=-1).cpu().numpy()
        if on_batch:
            on_batch(len(batch))
    return classification_scores(targets, predictions, total_loss / len(examples))


def classification_scores(
    targets: np.ndarray, predictions: np.ndarray, loss: float
) -> ClassificationScores:
    """Accuracy and macro-F1 (over the classes seen in targets or predictions) of indices (n,)."""
    return ClassificationScores(
        num_examples=len(targets),
        loss=loss,
        accuracy=float((targets == predictions).mean()),
        macro_f1=macro_f1(targets, predictions),
        predictions=tuple(int(p) for p in predictions),
    )


def macro_f1(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 over the classes seen in targets or predictions, from class indices (n,) each.

    As scikit-learn's f1_score(average="macro", zero_division=0), which costs half a second of
    imports at every start of a site.
    """
    classes = np.union1d(targets, predictions)
    hits = np.array([np.sum((targets == c) & (predictions == c)) for c in classes])
    sizes = np.array([np.sum(targets == c) + np.sum(predictions == c) for c in classes])
    return float(np.mean(2 * hits / sizes))


def _language(
    adapted: AdaptedModel,
    examples: Sequence[Tokenised],
    on_batch: Callable[[int], None] | None,
    max_batch_tokens: int,
) -> LanguageScores:
    total_loss, num_tokens = 0.0, 0
    pad_id = int(adapted.base.tokenizer.pad_token_id or 0)
    for _, batch in evaluation_batches(examples, _CHAT_BATCH_SIZE, max_batch_tokens):
        inputs, targets = pad_batch(batch, pad_id, adapted.base.device, per_token=True)
        losses, counts = answer_losses(adapted.token_logits(inputs), targets)
        total_loss += float(losses.sum())
        num_tokens += int(counts.sum())
        if on_batch:
            on_batch(len(batch))
    return LanguageScores(len(examples), num_tokens, total_loss / max(num_tokens, 1))
