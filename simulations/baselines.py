"""What a federation is measured against: every firm alone, everyone's contracts in one place, and
the simplest text classifier there is.

The first two use the site's own training loop, so budget, schedule and seeds are the same; they
train ordinary LoRA (both factors), which is what a firm alone would do. In a private run a firm
alone is private too, with the same noise and the factors of the run's method only; the
contracts in one place are trained on without noise.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch

from client.trained_update import round_sigma
from client.training.loop import train
from client.training.private import train_private
from models.adapted import adapted_model, initial_state
from models.evaluation import Scores, classification_scores, evaluate, tokenise
from models.examples import ClauseExample, Example
from protocol.adapter import AdapterState
from protocol.initial import derive_seed
from protocol.methods import Factors, trained_factors
from protocol.settings import RunSettings
from strategies.registry import build_strategy

_PARENT_POLL_SECONDS = 2.0
_BOTH_FACTORS: Factors = frozenset({"A", "B", "head"})


@dataclass(frozen=True)
class ArmRequest:
    """One model to train without a federation. `tests`: named sets to score the result on."""

    name: str
    run: RunSettings
    train: tuple[Example, ...]
    tests: tuple[tuple[str, tuple[Example, ...]], ...]


@dataclass(frozen=True)
class ArmResult:
    """Scores on each test set that had examples."""

    name: str
    scores: dict[str, Scores]
    train_seconds: float


def train_alone(request: ArmRequest) -> ArmResult:
    """Train on the request's examples for all rounds' worth of passes, then score."""
    run = request.run
    adapted = adapted_model(run)
    state = initial_state(run)
    if run.privacy.enabled:
        state = build_strategy(run.federation).initial_state(state)
    adapted.load(state.tensors)
    examples = tokenise(run, request.train)
    seconds = 0.0
    for round_ in range(1, run.federation.rounds + 1):
        if run.privacy.enabled:
            factors = trained_factors(run.federation.method, round_)
            private = train_private(adapted, run, examples, factors, round_, round_sigma(run))
            seconds += private.training.train_seconds
        else:
            seed = derive_seed(run.federation.seed, "train", request.name, round_)
            seconds += train(adapted, run, examples, _BOTH_FACTORS, round_, seed).train_seconds
    final = state.replace_tensors(adapted.tensors(_BOTH_FACTORS))
    return ArmResult(request.name, score_all(run, final, request.tests), seconds)


def score_all(
    run: RunSettings,
    state: AdapterState,
    tests: Sequence[tuple[str, Sequence[Example]]],
) -> dict[str, Scores]:
    """Scores of one adapter on every test set that is not empty."""
    scores: dict[str, Scores] = {}
    for name, examples in tests:
        tokenised = tokenise(run, examples)
        if tokenised:
            scores[name] = evaluate(run, state, tokenised)
    return scores


def tfidf_scores(train: Sequence[ClauseExample], test: Sequence[ClauseExample]) -> Scores:
    """TF-IDF (words and word pairs, sublinear) with logistic regression: the honest floor.

    Word pairs and C = 10 are not the library's defaults: on edgar those scored ten points lower
    and would flatter us. No further values were tried.
    """
    # Imported here: a federation without this baseline should not wait for it.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        LogisticRegression(C=10.0, max_iter=2000),
    )
    classifier.fit([e.text for e in train], [e.label for e in train])
    labels = {e.label for e in train} | {e.label for e in test}
    index = {label: position for position, label in enumerate(sorted(labels))}
    predicted = classifier.predict([e.text for e in test])
    targets = np.array([index[e.label] for e in test])
    return classification_scores(targets, np.array([index[p] for p in predicted]), loss=0.0)


class ArmRunner:
    """Trains arms beside the federation, in processes of their own, or inline with none.

    Each process holds its own base model and uses `torch_threads` threads.
    """

    def __init__(self, processes: int, torch_threads: int) -> None:
        self._pool: Executor | None = None
        if processes:
            self._pool = ProcessPoolExecutor(
                processes,
                mp_context=get_context("spawn"),
                initializer=_start_process,
                initargs=(torch_threads,),
            )

    def start(
        self, requests: Sequence[ArmRequest], on_finished: Callable[[ArmResult], None]
    ) -> list[Future[ArmResult]]:
        """Begin; with no processes of its own this trains everything before it returns."""
        futures: list[Future[ArmResult]] = []
        for request in requests:
            if self._pool is None:
                future: Future[ArmResult] = Future()
                future.set_result(train_alone(request))
            else:
                future = self._pool.submit(train_alone, request)
            future.add_done_callback(lambda done: _report(done, on_finished))
            futures.append(future)
        return futures

    def close(self) -> None:
        """End the processes; unfinished arms are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _report(done: Future[ArmResult], on_finished: Callable[[ArmResult], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        on_finished(done.result())


def _start_process(torch_threads: int) -> None:
    torch.set_num_threads(torch_threads)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """A killed parent cannot tell its pool; without this its processes would wait for ever."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os._exit(1)
