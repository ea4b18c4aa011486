"""Randomness, sampling and clipping: the parts of DP-SGD that need no model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from client.privacy.clipping import (
    clipped_sum,
    gradient_sigma,
    next_clip_norm,
    row_norms,
    sum_by_unit,
)
from client.privacy.randomness import PrivateRandomness, gaussian_noise
from client.privacy.sampling import draw_units, group_units, packs_of_units
from models.tokens import Tokenised
from protocol.errors import Refusal

KEY = bytes(range(32))


def example(tokens: int = 4, matter: str | None = None) -> Tokenised:
    return Tokenised(tuple(range(tokens)), (0,), matter)


@pytest.mark.parametrize("kind", ["chacha20", "chacha20_x4"])
def test_noise_is_standard_normal(kind: str) -> None:
    drawn = gaussian_noise(PrivateRandomness(KEY), 200_001, kind).numpy()
    assert drawn.shape == (200_001,) and drawn.dtype == np.float64
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    assert stats.kstest(drawn, "norm").pvalue > 0.001
    assert abs(drawn).max() > 4  # tails are there


def test_uniform_draws_fill_the_interval_and_never_give_zero() -> None:
    drawn = PrivateRandomness(KEY).uniform(100_000)
    assert drawn.min() > 0 and drawn.max() <= 1
    assert stats.kstest(drawn, "uniform").pvalue > 0.001


def test_no_public_seed_reproduces_the_noise() -> None:
    """dp.md: torch.manual_seed(s) gave Opacus's sample and noise again."""
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(PrivateRandomness().gaussian(8))
    assert not torch.equal(draws[0], draws[1])


def test_one_stream_never_repeats_itself() -> None:
    randomness = PrivateRandomness(KEY)
    words = np.concatenate([randomness.uniform(1000) for _ in range(20)])
    assert len(np.unique(words)) == len(words)


def test_every_unit_is_drawn_with_the_rate_alone_of_all_others() -> None:
    """Poisson: the number drawn is binomial, not fixed; pairs are uncorrelated."""
    units = group_units([example() for _ in range(50)], "example")
    randomness = PrivateRandomness(KEY)
    index = {id(unit): position for position, unit in enumerate(units)}
    taken = np.zeros((2000, 50))
    for row in taken:
        for unit in draw_units(units, 0.2, 1, randomness):
            row[index[id(unit)]] = 1
    sizes = taken.sum(axis=1)
    assert abs(sizes.mean() - 10) < 0.3
    assert abs(sizes.var() - 50 * 0.2 * 0.8) < 0.8
    assert abs(np.corrcoef(taken[:, 0], taken[:, 1])[0, 1]) < 0.1
    assert (taken.mean(axis=0) > 0.15).all() and (taken.mean(axis=0) < 0.25).all()


def test_a_rate_of_one_draws_every_unit_and_a_tiny_one_may_draw_none() -> None:
    units = group_units([example() for _ in range(30)], "example")
    assert len(draw_units(units, 1.0, 1, PrivateRandomness(KEY))) == 30
    assert any(not draw_units(units, 0.01, 1, PrivateRandomness()) for _ in range(50))


def test_by_matter_a_unit_is_all_of_a_matter_and_at_most_so_many_are_drawn_of_it() -> None:
    examples = [example(matter=f"m{i % 3}") for i in range(30)] + [example(matter=None)]
    units = group_units(examples, "matter")
    assert [len(unit) for unit in units] == [10, 10, 10]
    drawn = draw_units(units, 1.0, 4, PrivateRandomness(KEY))
    assert [len(unit) for unit in drawn] == [4, 4, 4]
    for unit, whole in zip(drawn, units, strict=True):
        assert {id(e) for e in unit} <= {id(e) for e in whole} and len({id(e) for e in unit}) == 4


@given(
    st.lists(st.integers(1, 9), max_size=30),
    st.integers(1, 8),
)
def test_packs_hold_every_unit_once_and_whole(sizes: list[int], batch_size: int) -> None:
    units = [tuple(example(1 + (i * j) % 7) for j in range(n)) for i, n in enumerate(sizes)]
    packs = list(packs_of_units(units, batch_size))
    packed = [id(unit) for pack in packs for unit in pack]
    assert sorted(packed) == sorted(id(unit) for unit in units)
    for pack in packs:
        assert len(pack) == 1 or sum(len(unit) for unit in pack) <= batch_size


def test_norms_of_millions_of_entries_are_right_to_six_digits() -> None:
    """dp.md: one float32 norm over 4 million entries errs by 9e-5."""
    rows = torch.full((2, 4_000_000), 0.1)
    rows[1, 0] = 500.0
    exact = [
        math.sqrt(4e6 * np.float32(0.1).astype(np.float64) ** 2),
        math.sqrt(500.0**2 + (4e6 - 1) * np.float32(0.1).astype(np.float64) ** 2),
    ]
    np.testing.assert_allclose(row_norms(rows).numpy(), exact, rtol=1e-6)


@given(st.integers(1, 12), st.integers(1, 40), st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_one_unit_more_or_less_moves_the_clipped_sum_by_at_most_the_clip_norm(
    units: int, size: int, clip: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((units, size), generator=generator) * 10 ** torch.randn(
        (units, 1), generator=generator
    )
    whole, under = clipped_sum(rows, clip)
    without, _ = clipped_sum(rows[1:], clip)
    assert float((whole - without).norm()) <= clip * (1 + 1e-4)
    assert under == int((row_norms(rows) <= clip).sum())


def test_rows_under_the_clip_norm_are_left_alone() -> None:
    rows = torch.tensor([[0.3, 0.4], [3.0, 4.0]])
    total, under = clipped_sum(rows, 1.0)
    np.testing.assert_allclose(total.numpy(), [0.3 + 0.6, 0.4 + 0.8], rtol=1e-5)
    assert under == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_unit_whose_gradient_is_not_finite_counts_as_zero_and_stops_nothing(
    bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal would tell the coordinator, without noise, that such a unit was drawn."""
    with caplog.at_level("WARNING", "foedus.client"):
        total, _ = clipped_sum(torch.tensor([[0.3, 0.4], [1.0, bad]]), 1.0)
    np.testing.assert_allclose(total.numpy(), [0.3, 0.4], rtol=1e-5)
    assert "1 units" in caplog.text


def test_a_matter_of_three_hundred_clauses_counts_once() -> None:
    rows = torch.randn((301, 6), generator=torch.Generator().manual_seed(0))
    of_unit = torch.tensor([0] * 300 + [1])
    summed = sum_by_unit(rows, of_unit, 2)
    torch.testing.assert_close(summed[0], rows[:300].sum(dim=0))
    total, _ = clipped_sum(summed, 0.5)
    alone, _ = clipped_sum(summed[1:], 0.5)
    assert float((total - alone).norm()) <= 0.5 * (1 + 1e-5)


def test_gradient_and_count_together_cost_what_sigma_says() -> None:
    """Two Gaussian releases add up as 1/sigma^2."""
    sigma, count_noise = 1.1, 4.0
    split = gradient_sigma(sigma, count_noise)
    assert split > sigma
    assert 1 / split**2 + 1 / (2 * count_noise) ** 2 == pytest.approx(1 / sigma**2)
    with pytest.raises(Refusal, match="clip_count_noise"):
        gradient_sigma(1.0, 0.4)


def test_the_clip_norm_settles_at_the_quantile() -> None:
    norms = np.random.default_rng(0).lognormal(0.0, 1.0, size=4000)
    clip = 50.0
    for _ in range(200):
        clip = next_clip_norm(clip, float((norms <= clip).mean()), 0.3, 0.2)
    assert clip == pytest.approx(np.quantile(norms, 0.3), rel=0.05)
