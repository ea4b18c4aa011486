"""Scores: known numbers, and the same for an example wherever it stands."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from models.adapted import adapted_model, initial_state
from models.evaluation import (
    ClassificationScores,
    LanguageScores,
    classification_scores,
    evaluate,
    macro_f1,
    tokenise,
)
from models.examples import ChatExample, ClauseExample
from protocol.adapter import AdapterState
from protocol.messages import EVALUATE_METRICS
from protocol.settings import AdapterSettings, ModelSettings, RunSettings, TaskSettings
from tests.small_runs import LABELS, clause_records, small_run

RUN = small_run()
CLAUSES = [
    ClauseExample(record["text"], record["label"])
    for site in (1, 2)
    for record in clause_records(site)
]


def random_head(run: RunSettings) -> AdapterState:
    rng = np.random.default_rng(0)
    state = initial_state(run)
    return state.replace_tensors(
        {n: rng.normal(size=t.shape).astype(np.float32) for n, t in state.tensors.items()}
    )


def classify(examples: list[ClauseExample]) -> ClassificationScores:
    scores = evaluate(RUN, random_head(RUN), tokenise(RUN, examples))
    assert isinstance(scores, ClassificationScores)
    return scores


def test_an_untrained_head_scores_the_uniform_loss() -> None:
    scores = evaluate(RUN, initial_state(RUN), tokenise(RUN, CLAUSES))
    assert scores.loss == pytest.approx(math.log(len(LABELS)), rel=1e-6)


def test_predictions_are_in_the_order_of_the_examples() -> None:
    forward = classify(CLAUSES)
    backward = classify(CLAUSES[::-1])
    assert len(set(forward.predictions)) > 1
    assert forward.predictions == backward.predictions[::-1]
    assert forward.loss == pytest.approx(backward.loss, rel=1e-5)
    alone = [classify([clause]).predictions[0] for clause in CLAUSES[:4]]
    assert list(forward.predictions[:4]) == alone


def test_scores_count_what_the_predictions_say() -> None:
    scores = classify(CLAUSES)
    right = [LABELS[p] == c.label for p, c in zip(scores.predictions, CLAUSES, strict=True)]
    assert scores.num_examples == len(CLAUSES)
    assert scores.accuracy == pytest.approx(np.mean(right))


def test_macro_f1_weighs_small_classes_like_large_ones() -> None:
    targets = np.array([0] * 9 + [1])
    scores = classification_scores(targets, np.zeros(10, dtype=np.int64), 0.5)
    assert scores.accuracy == pytest.approx(0.9)
    assert scores.macro_f1 == pytest.approx((18 / 19 + 0) / 2)
    perfect = classification_scores(targets, targets, 0.0)
    assert (perfect.accuracy, perfect.macro_f1) == (1.0, 1.0)


def test_only_agreed_numbers_are_metrics() -> None:
    assert set(classify(CLAUSES).as_metrics()) == EVALUATE_METRICS
    assert set(LanguageScores(1, 5, 0.5).as_metrics()) <= EVALUATE_METRICS


def test_progress_counts_every_example_once() -> None:
    heard: list[int] = []
    evaluate(RUN, initial_state(RUN), tokenise(RUN, CLAUSES * 4), heard.append)
    assert sum(heard) == 4 * len(CLAUSES) and len(heard) > 1


def test_no_examples_is_an_error_and_no_score() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        evaluate(RUN, initial_state(RUN), [])


def test_causal_loss_is_the_mean_over_answer_tokens_as_plain_transformers_says() -> None:
    run = replace(
        RUN,
        task=TaskSettings(kind="instruct"),
        model=ModelSettings(id="novels", precision="float32", max_tokens=64),
        adapter=AdapterSettings(rank=2, targets=("q_proj",)),
    )
    answers = ["Yes.", "The fee is due within ten days of the invoice."]
    chats = [ChatExample((("user", "When?"), ("assistant", answer))) for answer in answers]
    tokenised = tokenise(run, chats)
    scores = evaluate(run, initial_state(run), tokenised)
    assert isinstance(scores, LanguageScores)
    network = adapted_model(run).network
    total, count = 0.0, 0
    for example in tokenised:
        labels = torch.tensor([example.targets])
        answer_tokens = int((labels != -100).sum())
        with torch.no_grad():
            loss = network(input_ids=torch.tensor([example.input_ids]), labels=labels).loss
        total += float(loss) * answer_tokens
        count += answer_tokens
    assert (scores.num_examples, scores.num_tokens) == (2, count)
    assert scores.loss == pytest.approx(total / count, rel=1e-5)
    assert scores.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_a_hopeless_model_has_a_finite_perplexity() -> None:
    assert math.isfinite(LanguageScores(1, 1, 1e9).perplexity)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    targets, predictions = np.array(pairs).T
    theirs = f1_score(targets, predictions, average="macro", zero_division=0)
    assert macro_f1(targets, predictions) == pytest.approx(theirs, abs=1e-12)
