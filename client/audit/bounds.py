"""What scores of members and non-members prove: plain functions on arrays.

A score is higher the likelier its canary was planted. Ties always count against the attacker, so
that a degenerate attack (all scores equal) proves nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Scores = NDArray[np.float64]
Flags = NDArray[np.bool_]

DEFAULT_CONFIDENCE = 0.95
# Shares of the canaries that are guessed, fixed before any score is seen. Weak attacks are surest
# of few canaries, strong ones prove most with many; not all, as fair coins seldom plant half.
GUESSED_FRACTIONS = (0.1, 0.25, 0.5, 0.8)
# Beyond this no epsilon means anything, and exp(-epsilon) is lost next to 1.
_LARGEST_EPSILON = 30.0
_BISECTIONS = 35


@dataclass(frozen=True)
class OperatingPoint:
    """An attack at one threshold: rates in 0..1.

    tpr, low, high: true positive rate and its Clopper-Pearson interval. fpr: false positive rate
    that was attained, at most the one asked for. chance: what a blind attack would expect here.
    """

    tpr: float
    low: float
    high: float
    fpr: float
    chance: float


@dataclass(frozen=True)
class EpsilonBound:
    """Epsilon is at least `epsilon` with the confidence asked for; `ceiling` is the most that as
    many canaries could have shown. right of guesses: the guesses that the bound rests on."""

    epsilon: float
    ceiling: float
    guesses: int
    right: int


def exposure(scores: Scores, references: Scores) -> Scores:
    """Exposure in bits of each score (n,) against canaries never trained on (m,).

    log2 |R| - log2 rank, where R is the m references and the canary itself, and rank 1 is the
    highest score; a tie ranks behind. From 0 to log2(m + 1); a blind attack averages about
    log2(e) = 1.44 bits. Carlini et al. 2019, https://arxiv.org/abs/1802.08232
    """
    _check_finite(scores, references)
    ordered = np.sort(references)
    at_least_as_high = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return np.asarray(math.log2(len(ordered) + 1) - np.log2(at_least_as_high + 1.0))


def auc(member_scores: Scores, nonmember_scores: Scores) -> float:
    """Chance that a random member scores above a random non-member; ties count one half.

    Errors: ValueError where one side is empty.
    """
    _check_finite(member_scores, nonmember_scores)
    _check_both_sides(member_scores, nonmember_scores)
    ordered = np.sort(nonmember_scores)
    below = np.searchsorted(ordered, member_scores, side="left")
    not_above = np.searchsorted(ordered, member_scores, side="right")
    return float(np.mean(below + not_above) / (2.0 * len(ordered)))


def tpr_at_fpr(
    member_scores: Scores,
    nonmember_scores: Scores,
    fpr: float = 0.01,
    confidence: float = DEFAULT_CONFIDENCE,
) -> OperatingPoint:
    """True positive rate at a false positive rate of `fpr` at most.

    With n non-members, floor(n * fpr) of them may be called members: below 1 / fpr of them that
    is none, and the rate attained is 0. The threshold is the highest score of those not to be
    called members, and only scores above it count. A blind attack then expects
    (floor(n * fpr) + 1) / (n + 1), which for small n is far more than `fpr`: that is `chance`.
    Errors: ValueError where one side is empty.
    """
    _check_finite(member_scores, nonmember_scores)
    _check_both_sides(member_scores, nonmember_scores)
    num_nonmembers = len(nonmember_scores)
    # The small term keeps 0.01 * 100 from becoming 0.99...
    allowed = min(math.floor(num_nonmembers * fpr + 1e-9), num_nonmembers - 1)
    threshold = np.sort(nonmember_scores)[::-1][allowed]
    hits = int(np.sum(member_scores > threshold))
    low, high = clopper_pearson(hits, len(member_scores), confidence)
    return OperatingPoint(
        tpr=hits / len(member_scores),
        low=low,
        high=high,
        fpr=float(np.mean(nonmember_scores > threshold)),
        chance=max(fpr, (allowed + 1) / (num_nonmembers + 1)),
    )


def clopper_pearson(
    hits: int, trials: int, confidence: float = DEFAULT_CONFIDENCE
) -> tuple[float, float]:
    """The exact two-sided interval of a binomial rate; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.ppf(1.0 - tail, hits + 1, trials - hits))
    return low, high


def one_run_epsilon(
    scores: Scores,
    planted: Flags,
    delta: float,
    confidence: float = DEFAULT_CONFIDENCE,
    guessed_fractions: Sequence[float] = GUESSED_FRACTIONS,
) -> EpsilonBound:
    """A lower bound on epsilon from one training run over m canaries.

    scores, planted: (m,); each canary was planted by a fair coin of its own. For each share in
    guessed_fractions, the highest scores are guessed "in", the lowest "out", half each, and the
    rest is not guessed. Every epsilon for which that many right guesses would be too unlikely
    under (epsilon, delta) is ruled out. The shares divide the permitted error among them
    (Bonferroni), so the best may be reported; they must not be chosen after seeing the scores.
    Steinke, Nasr, Jagielski 2023, https://arxiv.org/abs/2305.08846
    """
    _check_finite(scores)
    if scores.shape != planted.shape or not guessed_fractions:
        raise ValueError(
            f"Expected one flag for each score and a guessed fraction, got {scores.shape} scores, "
            f"{planted.shape} flags and {len(guessed_fractions)} fractions."
        )
    error = (1.0 - confidence) / len(guessed_fractions)
    # Stable: canaries that score alike are told apart by their place, which no coin has touched.
    order = np.argsort(-scores, kind="stable")
    num_canaries = len(scores)
    best = EpsilonBound(0.0, 0.0, 0, 0)
    ceiling = 0.0
    for fraction in guessed_fractions:
        guesses = min(num_canaries, max(1, round(fraction * num_canaries))) if num_canaries else 0
        num_in = (guesses + 1) // 2
        called_in, called_out = order[:num_in], order[num_canaries - (guesses - num_in) :]
        right = int(planted[called_in].sum()) + int((~planted[called_out]).sum())
        found = largest_ruled_out(num_canaries, guesses, right, delta, error)
        ceiling = max(ceiling, largest_ruled_out(num_canaries, guesses, guesses, delta, error))
        if found > best.epsilon or best.guesses == 0:
            best = EpsilonBound(found, 0.0, guesses, right)
    return EpsilonBound(best.epsilon, ceiling, best.guesses, best.right)


def epsilon_ceiling(guesses: int, confidence: float = DEFAULT_CONFIDENCE) -> float:
    """The bound that `guesses` guesses give when all are right, at delta 0 and without choosing
    among fractions: no audit of that size can show more.

    >>> [round(epsilon_ceiling(guesses), 2) for guesses in (20, 100, 1000)]
    [1.82, 3.49, 5.81]
    """
    if guesses < 1:
        return 0.0
    # q ** guesses = 1 - confidence, with q = e^epsilon / (1 + e^epsilon).
    log_q = math.log1p(-confidence) / guesses
    return max(0.0, log_q - math.log(-math.expm1(log_q)))


@functools.lru_cache(maxsize=4096)
def largest_ruled_out(
    num_canaries: int, guesses: int, right: int, delta: float, error: float
) -> float:
    """The largest epsilon for which `right` of `guesses` has a p-value of at most `error`.

    0 where nothing is ruled out. What is returned is itself ruled out: rounding is downwards.
    """
    if guesses == 0 or p_value(num_canaries, guesses, right, 0.0, delta) > error:
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if p_value(num_canaries, guesses, right, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low


def p_value(num_canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Most probability that (epsilon, delta) leaves for `right` or more right guesses.

    With W ~ Binomial(guesses, e^epsilon / (1 + e^epsilon)):
    P[W >= right] + 2 m delta * max over i >= 1 of P[right - i <= W < right] / i
    (Steinke et al. 2023, Theorem 5.2 for guesses of full confidence; m all canaries, also those
    not guessed). The second term is exact here, not dropped: with m delta as small as 2e-3 it
    still moves the bound of a perfect attack.
    """
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(right - 1, guesses, accuracy))
    if delta == 0.0 or right == 0:
        return min(1.0, tail)
    below = stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy)
    steepest = float(np.max(np.cumsum(below) / np.arange(1, right + 1)))
    return min(1.0, tail + 2.0 * num_canaries * delta * steepest)


def _check_finite(*groups: Scores) -> None:
    for scores in groups:
        if not np.all(np.isfinite(scores)):
            raise ValueError("Expected finite scores, got NaN or infinity among them.")


def _check_both_sides(members: Scores, nonmembers: Scores) -> None:
    if len(members) == 0 or len(nonmembers) == 0:
        raise ValueError(
            f"Expected members and non-members, got {len(members)} and {len(nonmembers)}."
        )
