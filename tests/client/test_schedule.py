"""The learning rate over a federation: warm-up in each round, one cosine over all."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from client.training.schedule import learning_rate_factor

FRACTIONS = st.floats(0, 1)


@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.data(),
    FRACTIONS,
    st.floats(0.01, 1, exclude_min=True),
)
def test_the_factor_is_never_zero_and_never_above_one(
    steps: int, rounds: int, data: st.DataObject, warmup: float, final: float
) -> None:
    step = data.draw(st.integers(0, steps - 1))
    round_ = data.draw(st.integers(1, rounds))
    factor = learning_rate_factor(step, steps, round_, rounds, warmup, final)
    assert 0 < factor <= 1


def test_a_round_warms_up_linearly_and_the_next_one_again() -> None:
    for round_ in (1, 3):
        factors = [learning_rate_factor(s, 10, round_, 4, 0.4, 1.0) for s in range(10)]
        assert factors == [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1]


def test_without_warm_up_the_first_step_is_a_full_one() -> None:
    assert learning_rate_factor(0, 10, 1, 4, 0.0, 0.1) == 1.0


def test_a_half_cosine_falls_over_all_rounds_to_its_end() -> None:
    factors = [learning_rate_factor(s, 10, r, 4, 0.0, 0.1) for r in range(1, 5) for s in range(10)]
    assert factors == sorted(factors, reverse=True)
    assert factors[20] == 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2))
    assert 0.1 < factors[-1] < 0.11


def test_the_cosine_goes_on_where_the_last_round_left_it() -> None:
    last = learning_rate_factor(9, 10, 2, 4, 0.0, 0.0)
    first = learning_rate_factor(0, 10, 3, 4, 0.0, 0.0)
    step = learning_rate_factor(8, 10, 2, 4, 0.0, 0.0) - last
    assert math.isclose(last - first, step, rel_tol=0.05)
