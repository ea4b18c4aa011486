"""The audit's arithmetic: published figures, cases by hand, bounds that hold as often as said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from client.audit.bounds import (
    EpsilonBound,
    auc,
    clopper_pearson,
    epsilon_ceiling,
    exposure,
    largest_ruled_out,
    one_run_epsilon,
    p_value,
    tpr_at_fpr,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(("guesses", "ceiling"), [(20, 1.82), (100, 3.49), (1000, 5.81)])
def test_all_right_guesses_reach_the_published_ceiling(guesses: int, ceiling: float) -> None:
    assert epsilon_ceiling(guesses) == pytest.approx(ceiling, abs=0.005)
    all_right = largest_ruled_out(guesses, guesses, guesses, delta=0.0, error=0.05)
    assert all_right == pytest.approx(epsilon_ceiling(guesses), abs=1e-8)


def test_too_few_guesses_can_show_nothing() -> None:
    assert [epsilon_ceiling(guesses) for guesses in (0, 1, 4)] == [0.0, 0.0, 0.0]
    assert epsilon_ceiling(5) > 0.0


@pytest.mark.parametrize(
    ("num_canaries", "guesses", "right", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_bounds_are_those_printed_in_the_paper(
    num_canaries: int, guesses: int, right: int, delta: float, published: float
) -> None:
    """Steinke et al. 2023, appendix D and section 7, at 95%; the second is cut, not rounded."""
    found = largest_ruled_out(num_canaries, guesses, right, delta, error=0.05)
    assert found == pytest.approx(published, abs=1e-3)


def test_the_p_value_is_the_theorem_s_term_by_term() -> None:
    m, r, v, epsilon, delta = 50, 12, 9, 0.7, 1e-3
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    steepest = max(sum(mass[v - i : v]) / i for i in range(1, v + 1))
    expected = sum(mass[v:]) + 2 * m * delta * steepest
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(expected, rel=1e-9)


def test_delta_is_never_dropped_even_where_it_is_small() -> None:
    without = largest_ruled_out(200, 200, 200, delta=0.0, error=0.05)
    with_delta = largest_ruled_out(200, 200, 200, delta=1e-5, error=0.05)
    assert without - 0.1 < with_delta < without - 0.001
    assert largest_ruled_out(200, 200, 200, delta=1e-2, error=0.05) < 1.0


@given(
    guesses=st.integers(1, 60),
    abstained=st.integers(0, 60),
    epsilon=st.floats(0.0, 6.0),
    delta=st.sampled_from([0.0, 1e-6, 1e-3]),
    data=st.data(),
)
def test_more_right_guesses_are_never_likelier(
    guesses: int, abstained: int, epsilon: float, delta: float, data: st.DataObject
) -> None:
    m = guesses + abstained
    right = data.draw(st.integers(1, guesses))
    fewer = p_value(m, guesses, right - 1, epsilon, delta)
    assert 0.0 <= p_value(m, guesses, right, epsilon, 0.0) <= fewer + 1e-12
    ruled_out = largest_ruled_out(m, guesses, right, delta, error=0.05)
    assert ruled_out <= epsilon_ceiling(guesses) + 1e-9
    if ruled_out:
        assert p_value(m, guesses, right, ruled_out, delta) <= 0.05


def test_exposure_by_hand() -> None:
    references = array(1.0, 2.0, 3.0)  # with the canary itself, four candidates
    found = exposure(array(9.0, 2.5, 0.0), references)
    np.testing.assert_allclose(found, [2.0, 1.0, 0.0])


def test_a_tied_canary_is_ranked_behind_its_equals() -> None:
    np.testing.assert_allclose(exposure(array(1.0), array(1.0, 1.0, 1.0)), [0.0])


def test_auc_by_hand() -> None:
    assert auc(array(3.0, 1.0), array(2.0, 0.0)) == 0.75
    assert auc(array(1.0, 1.0), array(1.0, 1.0, 1.0)) == 0.5
    assert auc(array(2.0), array(1.0)) == 1.0


def test_tpr_counts_only_what_lies_above_all_but_the_permitted_non_members() -> None:
    nonmembers = np.arange(200.0)  # two of them may be called members at 1%
    point = tpr_at_fpr(array(500.0, 198.5, 197.0, 197.5, 0.0), nonmembers)
    assert (point.tpr, point.fpr) == (0.6, 0.01)
    assert point.chance == pytest.approx(3 / 201)


def test_below_a_hundred_non_members_none_may_be_called_a_member() -> None:
    point = tpr_at_fpr(array(99.0, 98.5, 97.0, 100.0), np.arange(99.0) + 0.5)
    assert (point.tpr, point.fpr) == (0.5, 0.0)
    assert point.chance == pytest.approx(1 / 100)


def test_ties_with_non_members_count_against_the_attack() -> None:
    nonmembers = np.concatenate([np.zeros(195), np.ones(5)])
    point = tpr_at_fpr(array(1.0, 1.0, 1.0), nonmembers)
    assert (point.tpr, point.fpr) == (0.0, 0.0)
    blind = tpr_at_fpr(np.zeros(50), np.zeros(200))
    assert (blind.tpr, blind.fpr) == (0.0, 0.0)


@pytest.mark.parametrize("num_nonmembers", [10, 60, 150, 400])
def test_chance_is_what_a_blind_attack_gets_on_average(num_nonmembers: int) -> None:
    rng = np.random.default_rng(3)
    points = [tpr_at_fpr(rng.normal(size=80), rng.normal(size=num_nonmembers)) for _ in range(600)]
    assert all(point.fpr <= 0.01 for point in points)
    mean = float(np.mean([point.tpr for point in points]))
    assert mean == pytest.approx(points[0].chance, rel=0.2)


def test_clopper_pearson_by_hand() -> None:
    low, high = clopper_pearson(0, 10)
    assert low == 0.0 and high == pytest.approx(1 - 0.025**0.1)
    low, high = clopper_pearson(10, 10)
    assert low == pytest.approx(0.025**0.1) and high == 1.0
    low, high = clopper_pearson(5, 10)
    assert low == pytest.approx(0.1871, abs=1e-4) and high == pytest.approx(0.8129, abs=1e-4)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def coins(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 2, size=count).astype(bool)


def test_perfect_separation_reaches_the_ceiling() -> None:
    planted = coins(np.random.default_rng(0), 200)
    found = one_run_epsilon(planted.astype(np.float64), planted, delta=1e-5)
    assert found.epsilon == found.ceiling > 0.85 * epsilon_ceiling(200)
    assert (found.guesses, found.right) == (160, 160)
    balanced = np.arange(1000) % 2 == 0
    found = one_run_epsilon(balanced.astype(np.float64), balanced, 0.0, guessed_fractions=(1.0,))
    assert found == EpsilonBound(found.ceiling, found.ceiling, 1000, 1000)
    assert found.ceiling == pytest.approx(epsilon_ceiling(1000), abs=1e-8)


def test_scores_that_tell_nothing_prove_nothing() -> None:
    rng = np.random.default_rng(1)
    bounds = [
        one_run_epsilon(rng.normal(size=200), coins(rng, 200), delta=1e-5).epsilon
        for _ in range(300)
    ]
    assert np.mean(np.array(bounds) > 0.0) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean(bounds) < 0.02
    assert one_run_epsilon(np.zeros(200), coins(rng, 200), 1e-5).epsilon < 0.5


def test_scores_the_wrong_way_round_prove_nothing() -> None:
    planted = coins(np.random.default_rng(2), 400)
    assert one_run_epsilon(-planted.astype(np.float64), planted, delta=1e-5).epsilon == 0.0


def gaussian_stddev(epsilon: float, delta: float) -> float:
    """The noise that makes one number of sensitivity 1 exactly (epsilon, delta)-private.

    Balle and Wang 2018, Theorem 8.
    """
    low, high = 1e-2, 1e3
    for _ in range(100):
        stddev = math.sqrt(low * high)
        over = stats.norm.cdf(0.5 / stddev - epsilon * stddev)
        over -= math.exp(epsilon) * stats.norm.cdf(-0.5 / stddev - epsilon * stddev)
        low, high = (stddev, high) if over > delta else (low, stddev)
    return high


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 6.0])
def test_a_gaussian_mechanism_is_never_bounded_above_its_epsilon(epsilon: float) -> None:
    delta = 1e-5
    stddev = gaussian_stddev(epsilon, delta)
    rng = np.random.default_rng(7)
    bounds = []
    for _ in range(150):
        planted = coins(rng, 500)
        scores = planted + stddev * rng.normal(size=500)
        bounds.append(one_run_epsilon(scores, planted, delta).epsilon)
    assert max(bounds) < epsilon
    if epsilon > 1.0:
        assert np.mean(bounds) > 0.1, "a bound of nothing would hold as well"


def test_the_bound_is_as_tight_as_its_confidence_on_randomised_response() -> None:
    """The mechanism on which the theorem is an equality: wrong in 5% of audits, not in fewer."""
    epsilon, rng, repetitions, m = 1.0, np.random.default_rng(11), 1500, 300
    truthful = math.exp(epsilon) / (1 + math.exp(epsilon))
    wrong = 0
    for _ in range(repetitions):
        planted = coins(rng, m)
        answers = np.where(rng.random(m) < truthful, planted, ~planted)
        right = int((answers == planted).sum())
        wrong += largest_ruled_out(m, m, right, 0.0, 0.05) > epsilon
    spread = 3 * math.sqrt(0.05 * 0.95 / repetitions)
    assert 0.02 < wrong / repetitions <= 0.05 + spread


def test_choosing_the_best_fraction_does_not_break_the_confidence() -> None:
    epsilon, rng, repetitions, m = 1.0, np.random.default_rng(12), 600, 200
    truthful = math.exp(epsilon) / (1 + math.exp(epsilon))
    wrong = 0
    for _ in range(repetitions):
        planted = coins(rng, m)
        answers = np.where(rng.random(m) < truthful, planted, ~planted)
        scores = answers + 0.01 * rng.random(m)
        wrong += one_run_epsilon(scores, planted, 0.0).epsilon > epsilon
    assert wrong / repetitions <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        one_run_epsilon(array(1.0, bad), np.array([True, False]), 0.0)
    with pytest.raises(ValueError, match="finite"):
        tpr_at_fpr(array(bad), array(0.0))


def test_one_side_alone_has_no_rates() -> None:
    with pytest.raises(ValueError, match="members and non-members"):
        auc(array(), array(1.0))
    with pytest.raises(ValueError, match="members and non-members"):
        tpr_at_fpr(array(1.0), array())
