"""Intervals, compared with scipy, published values and simulations."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from intaglio.analysis.quality import intervals, measures

quick = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def as_tuple(interval: intervals.Interval) -> tuple[float, float, float]:
    return interval.measured, interval.low, interval.high


@quick
@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_mean_interval_is_scipys(values: list[float]) -> None:
    if np.ptp(values) < 1e-3:
        values[0] += 1.0
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    measured = as_tuple(intervals.mean_interval(np.array(values)))
    np.testing.assert_allclose(
        measured, [np.mean(values), expected.low, expected.high], rtol=1e-6, atol=1e-9
    )


def test_paired_difference_is_scipys_second_minus_first() -> None:
    a = draw(0).normal(size=40)
    b = a + draw(1).normal(0.5, 0.1, size=40)
    expected = stats.ttest_rel(b, a).confidence_interval()
    interval = intervals.paired_difference(a, b)
    np.testing.assert_allclose(
        as_tuple(interval), [(b - a).mean(), expected.low, expected.high], rtol=1e-9
    )
    assert interval.to_json() == {
        "measured": interval.measured,
        "low": interval.low,
        "high": interval.high,
    }


@quick
@given(seed=seeds)
def test_an_interval_of_pairs_is_of_pairs(seed: int) -> None:
    a, b = draw(seed).normal(size=(2, 20))
    order = draw(seed).permutation(20)
    there, back = intervals.paired_difference(a, b), intervals.paired_difference(b, a)
    np.testing.assert_allclose(as_tuple(back), (-there.measured, -there.high, -there.low))
    together = intervals.paired_difference(a[order], b[order])
    np.testing.assert_allclose(as_tuple(together), as_tuple(there))


def test_bootstrap_is_scipys_basic_one() -> None:
    a = draw(0).exponential(size=25)
    b = a * 1.5 + draw(1).normal(0.0, 0.1, size=25)

    def difference(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> object:
        return np.var(y, axis=axis) - np.var(x, axis=axis)

    expected = stats.bootstrap(
        (a, b), difference, paired=True, method="basic", n_resamples=4000, rng=draw(2)
    ).confidence_interval
    interval = intervals.bootstrap_difference(lambda x: float(np.var(x)), a, b, 4000, seed=3)
    assert interval.measured == pytest.approx(np.var(b) - np.var(a))
    width = expected.high - expected.low
    np.testing.assert_allclose(
        [interval.low, interval.high], [expected.low, expected.high], atol=0.05 * width
    )


def test_bootstrap_draws_pairs_and_its_seed_is_its_all() -> None:
    features = draw(0).normal(size=(50, 3))
    run = partial(intervals.bootstrap_difference, lambda x: float(x.mean()), features)
    # What all pairs share cancels in every resample; with separate resamples it would not.
    np.testing.assert_allclose(as_tuple(run(features + 0.25, 50, 0)), 0.25, rtol=1e-9)
    noisy = features + draw(1).normal(size=features.shape)
    assert run(noisy, 50, 7) == run(noisy, 50, 7)
    assert run(noisy, 50, 7) != run(noisy, 50, 8)


def test_bootstrap_of_a_frechet_distance_covers_the_truth_that_is_biased_upwards() -> None:
    target = measures.Moments(np.zeros(16), np.eye(16))
    # The distance of a is 0 and that of b is 16 x 0.5^2; a is wider, so its bias is larger.
    covered = 0
    for seed in range(12):
        a = draw(seed).normal(size=(150, 16))
        interval = intervals.bootstrap_difference(
            lambda x: measures.frechet(measures.moments(x), target), a, 0.5 * a, 60, seed
        )
        covered += interval.low <= 16 * 0.5**2 <= interval.high
    # At 95 %, fewer than 9 of 12 happens once in 400 runs; percentile intervals cover none.
    assert covered >= 9


def test_a_share_is_wilsons() -> None:
    """By Brown, Cai and DasGupta (2001), n hits of n give a lower bound of n / (n + z^2)."""
    z = stats.norm.ppf(0.975)
    found = intervals.share_interval(np.ones(64))
    np.testing.assert_allclose(as_tuple(found), (1, 64 / (64 + z**2), 1))
    half = intervals.share_interval(np.repeat([0.0, 1.0], 50))
    middle = z * np.sqrt(100 * 0.25 + z**2 / 4) / (100 + z**2)
    np.testing.assert_allclose(as_tuple(half), (0.5, 0.5 - middle, 0.5 + middle))


@quick
@given(seed=seeds, n=st.integers(2, 80), share=st.floats(0, 1))
def test_shares_stay_within_their_range(seed: int, n: int, share: float) -> None:
    a, b = (draw(seed).random((2, n)) < share).astype(float)
    one, gap = intervals.share_interval(a), intervals.paired_share_difference(a, b)
    assert 0 <= one.low <= one.measured <= one.high <= 1
    assert -1 <= gap.low <= gap.measured <= gap.high <= 1
    assert gap.measured == pytest.approx(b.mean() - a.mean())
    assert gap.low < gap.high


def test_a_difference_of_paired_shares_covers_the_truth() -> None:
    """For pairs that rarely differ, Student's t is too narrow."""
    covered = 0
    for seed in range(200):
        kinds = draw(seed).choice(3, size=120, p=[0.95, 0.04, 0.01])
        a, b = (kinds == 2).astype(float), (kinds == 1).astype(float)
        gap = intervals.paired_share_difference(a, b)
        covered += gap.low <= 0.03 <= gap.high
    # At 95 %, fewer than 180 of 200 happens once in 300 runs.
    assert covered >= 180
