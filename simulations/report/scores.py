"""The scores of every arm as plain numbers: the sections `scores` and `forgetting`.

All means over sites are plain means, one site one vote. A mean perplexity is exp(mean loss), so
that perplexity = exp(loss) holds wherever both are given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from models.evaluation import LanguageScores, Scores
from protocol.methods import personal_factors
from simulations.experiment import CENTRALISED, GENERAL, POOLED, Experiment

Numbers = dict[str, float]

_LARGEST_EXPONENT = 700.0


def score_section(experiment: Experiment) -> dict[str, Any]:
    """Scores by arm, on the pooled test unless a key says otherwise. Arms not run are left out.

    Classification: accuracy and macro_f1 in 0..1. Causal: loss in nats per token, perplexity.
    """
    section: dict[str, Any] = {}
    if CENTRALISED in experiment.arms:
        scores = experiment.arms[CENTRALISED].scores
        section["centralised"] = {
            **_one(scores, POOLED),
            "per_site": _by_site(experiment, scores, "{}"),
        }
    section["federated"] = _federated(experiment)
    local = _local_scores(experiment)
    if local:
        section["local"] = _local(local)
    if experiment.tfidf is not None:
        section["tfidf"] = _numbers(experiment.tfidf)
    if POOLED in experiment.base:
        section["base"] = _numbers(experiment.base[POOLED])
    return section


def forgetting_section(experiment: Experiment) -> dict[str, Numbers]:
    """Scores on general text before and after: empty unless general text was measured."""
    section: dict[str, Numbers] = {}
    if GENERAL in experiment.base:
        section["base"] = _numbers(experiment.base[GENERAL])
    if _personalised(experiment):
        federated = _mean(_by_site(experiment, experiment.federated, f"{{}}@{GENERAL}").values())
    else:
        federated = _one(experiment.federated, GENERAL)
    if federated:
        section["federated"] = federated
    arms = experiment.arms
    if CENTRALISED in arms and GENERAL in arms[CENTRALISED].scores:
        section["centralised"] = _numbers(arms[CENTRALISED].scores[GENERAL])
    local = [s[GENERAL] for s in _local_scores(experiment).values() if GENERAL in s]
    if local:
        section["local"] = _mean(_numbers(scores) for scores in local)
    return section


def _personalised(experiment: Experiment) -> bool:
    return bool(personal_factors(experiment.settings.run.federation.method))


def _federated(experiment: Experiment) -> dict[str, Any]:
    """Where factors stay at sites there is no one federated model: the mean over sites' own."""
    scores = experiment.federated
    per_site = _by_site(experiment, scores, "{}")
    if not _personalised(experiment):
        return {**_one(scores, POOLED), "per_site": per_site}
    pooled = _by_site(experiment, scores, f"{{}}@{POOLED}")
    return {
        **_mean(pooled.values()),
        "personalised": True,
        "per_site": per_site,
        "pooled_per_site": pooled,
    }


def _local_scores(experiment: Experiment) -> dict[str, Mapping[str, Scores]]:
    arms = experiment.arms
    names = [site.name for site in experiment.sites if f"local:{site.name}" in arms]
    return {name: arms[f"local:{name}"].scores for name in names}


def _local(local: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    pooled = {name: _numbers(s[POOLED]) for name, s in local.items() if POOLED in s}
    own = {name: _numbers(s[name]) for name, s in local.items() if name in s}
    return {"mean": _mean(pooled.values()), "per_site": pooled, "own_test": own}


def _by_site(
    experiment: Experiment, scores: Mapping[str, Scores], pattern: str
) -> dict[str, Numbers]:
    """site -> numbers, of those test sets named `pattern` with the site in the braces."""
    names = {site.name: pattern.replace("{}", site.name) for site in experiment.sites}
    return {site: _numbers(scores[name]) for site, name in names.items() if name in scores}


def _one(scores: Mapping[str, Scores], test: str) -> Numbers:
    return _numbers(scores[test]) if test in scores else {}


def _numbers(scores: Scores) -> Numbers:
    if isinstance(scores, LanguageScores):
        return {"loss": scores.loss, "perplexity": scores.perplexity}
    return {"accuracy": scores.accuracy, "macro_f1": scores.macro_f1}


def _mean(each: Iterable[Numbers]) -> Numbers:
    rows = list(each)
    if not rows:
        return {}
    means = {name: fmean(row[name] for row in rows) for name in rows[0]}
    if "perplexity" in means:
        means["perplexity"] = math.exp(min(means["loss"], _LARGEST_EXPONENT))
    return means
