"""A leakage audit of a whole federation: canaries at one site, the same run with and without noise.

The audited federation is one of its own, so that the released adapter never reads a canary. Rounds
are those of the run: the sites' own training and update steps, the coordinator's own strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from client.audit.attack import ObservedRound, OnProgress, alignment_scores, loss_scores
from client.audit.bounds import DEFAULT_CONFIDENCE, Scores
from client.audit.canaries import (
    Canary,
    as_examples,
    make_canaries,
    planted_of,
    vocabulary_words,
)
from client.audit.report import AuditResult, RunFindings, run_findings
from client.audit.run import canary_tokens, default_repeats, membership, tokenised_canaries
from client.audit.training import claimed_epsilon, train_as_set, without_privacy
from client.trained_update import clipped_update
from models.adapted import adapted_model, initial_state
from models.evaluation import tokenise
from models.examples import Example
from models.tokens import Tokenised
from protocol.adapter import AdapterState, FloatArray
from protocol.audit_policy import audited_settings_digest
from protocol.errors import FoedusError
from protocol.initial import derive_seed
from protocol.methods import personal_factors, trained_factors
from protocol.settings import RunSettings
from simulations.settings import AuditSettings
from strategies.registry import build_strategy

# A site's training examples and its held-out ones.
SiteExamples = tuple[Sequence[Example], Sequence[Example]]


def audit_federation(
    settings: AuditSettings,
    run: RunSettings,
    sites: Sequence[SiteExamples],
    released: AdapterState,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """The findings as JSON values: see client.audit.report. on_progress hears (done, in all).

    Attacks: "loss" on the adapter at the end; "wire_site" on the canaries' site's updates, which a
    coordinator sees without secure aggregation; "wire_sum" on the mean updates, which are all it
    sees with it. `released` is under the loss attack with real examples.
    Errors: FoedusError where the method keeps factors at sites, or the site does not exist.
    """
    _check(settings, run, sites)
    words = vocabulary_words(adapted_model(run).base.tokenizer)
    kind, labels = run.task.kind, run.task.labels
    canaries = make_canaries(settings.canaries, kind, labels, words, canary_tokens(run))
    repeats = settings.repeats or default_repeats(run)
    runs = [run]
    if run.privacy.enabled and settings.control:
        runs.append(without_privacy(run))
    parts = _Parts(on_progress, total=len(runs) * (run.federation.rounds + 2))
    examples = [train for train, _ in sites]
    found = [
        _Federation(each, examples, settings.site, canaries, repeats).findings(run, parts)
        for each in runs
    ]
    planted = planted_of(canaries)
    result = AuditResult(
        unit=run.privacy.unit,
        repeats=repeats,
        canaries_planted=int(planted.sum()),
        canaries_left_out=int((~planted).sum()),
        delta=run.privacy.delta,
        confidence=DEFAULT_CONFIDENCE,
        settings_digest=audited_settings_digest(run),
        audited=found[0],
        control=found[1] if len(found) > 1 else None,
        adapter_digest=released.digest(),
    )
    members, held_out = (_spread(sites, part, settings.membership_examples) for part in (0, 1))
    if members and held_out:
        tokenised = tokenise(run, members), tokenise(run, held_out)
        result = replace(result, membership=membership(run, released, *tokenised))
    return result.to_json()


class _Parts:
    """Counts finished rounds and attacks of all runs."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0

    def finish_one(self) -> None:
        self._done += 1
        self._on_progress(self._done, self._total)


@dataclass(frozen=True)
class _Federation:
    """One audited federation. examples: of each site; canaries go to the site at `target`."""

    run: RunSettings
    examples: Sequence[Sequence[Example]]
    target: int
    canaries: Sequence[Canary]
    repeats: int

    def findings(self, promised: RunSettings, parts: _Parts) -> RunFindings:
        """Train all rounds and attack. promised: the run whose epsilon is at stake."""
        start, end, of_site, of_mean = self._train(parts)
        canaries = tokenised_canaries(self.run, self.canaries)
        scores: list[tuple[str, Scores]] = [
            ("loss", loss_scores(self.run, start.tensors, end.tensors, canaries))
        ]
        for name, rounds in (("wire_site", of_site), ("wire_sum", of_mean)):
            scores.append((name, alignment_scores(self.run, rounds, canaries)))
            parts.finish_one()
        return run_findings(
            scores,
            planted_of(self.canaries),
            private=self.run.privacy.enabled,
            accountant_epsilon=claimed_epsilon(promised),
            delta=promised.privacy.delta,
            confidence=DEFAULT_CONFIDENCE,
        )

    def _train(
        self, parts: _Parts
    ) -> tuple[AdapterState, AdapterState, list[ObservedRound], list[ObservedRound]]:
        """(first state, last state, the target's updates, the mean updates)."""
        run = self.run
        strategy = build_strategy(run.federation)
        start = state = strategy.initial_state(initial_state(run))
        sites = self._tokenised()
        trainers = [train_as_set(run) for _ in sites]
        of_site: list[ObservedRound] = []
        of_mean: list[ObservedRound] = []
        for round_ in range(1, run.federation.rounds + 1):
            strategy.begin_round(round_, state)
            total: dict[str, FloatArray] = {}
            for index, (examples, trainer) in enumerate(zip(sites, trainers, strict=True)):
                adapted_model(run).load(state.tensors)
                seed = derive_seed(run.federation.seed, "audit", index, round_)
                factors = trained_factors(run.federation.method, round_)
                trainer(adapted_model(run), run, examples, factors, round_, seed)
                update = clipped_update(adapted_model(run), run, state, round_)
                strategy.fold(state.replace_tensors(update), 1.0)
                total = {n: u + total[n] if total else u for n, u in update.items()}
                if index == self.target:
                    of_site.append(ObservedRound(state.tensors, update))
            mean = {name: tensor / np.float32(len(sites)) for name, tensor in total.items()}
            of_mean.append(ObservedRound(state.tensors, mean))
            state = strategy.finish_round()
            parts.finish_one()
        return start, state, of_site, of_mean

    def _tokenised(self) -> list[list[Tokenised]]:
        planted = [canary for canary in self.canaries if canary.planted]
        found: list[list[Tokenised]] = []
        for index, examples in enumerate(self.examples):
            extra = as_examples(planted, self.repeats) if index == self.target else []
            found.append(tokenise(self.run, [*examples, *extra]))
        return found


def _check(settings: AuditSettings, run: RunSettings, sites: Sequence[SiteExamples]) -> None:
    if personal_factors(run.federation.method):
        raise FoedusError(
            f"audit=canaries expects a method whose adapter is whole, got {run.federation.method}, "
            "which keeps factors at the sites. Choose another strategy, or audit=none."
        )
    if settings.site >= len(sites):
        raise FoedusError(
            f"audit.site: expected a site from 0 to {len(sites) - 1}, got {settings.site}."
        )


def _spread(sites: Sequence[SiteExamples], part: int, most: int) -> list[Example]:
    """Up to `most` examples of all sites' training (0) or held-out (1) parts, evenly spread."""
    pooled = [example for site in sites for example in site[part]]
    step = max(1, -(-len(pooled) // most))
    return pooled[::step]
