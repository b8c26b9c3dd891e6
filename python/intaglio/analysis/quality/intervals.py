"""Intervals of 95 % for means, shares and differences of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.floating[Any]]


class TooFewSamples(ValueError):  # noqa: N818
    """There are too few samples; the message says how many there are and how many are needed."""


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95 % interval."""

    measured: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.measured:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_interval(values: Array) -> Interval:
    """Return the mean of `values` [N] with an interval by Student's t.

    Raises:
        TooFewSamples: there are fewer than two.
    """
    _need_two(values)
    values = np.asarray(values, np.float64)
    n = len(values)
    mean = float(values.mean())
    error = float(special.stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - error, mean + error)


def paired_difference(a: Array, b: Array) -> Interval:
    """Return the mean of b - a for arrays [N] whose rows are pairs.

    Raises:
        ValueError: the arrays differ in length.
        TooFewSamples: there are fewer than two pairs.
    """
    _need_pairs(a, b)
    return mean_interval(np.asarray(b, np.float64) - np.asarray(a, np.float64))


def share_interval(hits: Array) -> Interval:
    """Return the share of ones among `hits` [N] of 0 and 1.

    Wilson's score interval stays within 0 to 1.

    Raises:
        TooFewSamples: there are fewer than two.
    """
    _need_two(hits)
    ones = int(np.asarray(hits).sum())
    found = stats.binomtest(ones, len(hits)).proportion_ci(0.95, method="wilson")
    return Interval(ones / len(hits), float(found.low), float(found.high))


def paired_share_difference(a: Array, b: Array) -> Interval:
    """Return the share of ones in b minus that in a, for arrays [N] whose rows are pairs.

    The adjusted Wald interval of Bonett and Price (2012) stays wide where few pairs differ.

    Raises:
        ValueError: the arrays differ in length.
        TooFewSamples: there are fewer than two pairs.
    """
    _need_pairs(a, b)
    _need_two(a)
    n = len(a)
    change = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    gained, lost = ((int((change == sign).sum()) + 1) / (n + 2) for sign in (1, -1))
    middle = gained - lost
    error = special.ndtri(0.975) * np.sqrt((gained + lost - middle**2) / (n + 2))
    measured = change.mean()
    low, high = max(-1.0, middle - error), min(1.0, middle + error)
    return Interval(float(measured), float(min(low, measured)), float(max(high, measured)))


def bootstrap_difference(
    statistic: Callable[[Array], float], a: Array, b: Array, resamples: int, seed: int
) -> Interval:
    """Return statistic(b) - statistic(a) for arrays [N, ...], by resampling pairs of rows.

    Both sides are resampled with the same rows, so what a pair has in common cancels. This is the
    basic bootstrap (Davison and Hinkley 1997, 5.2.1). The Fréchet distance of a resample is biased
    against the measured one as much as that is against the truth, and percentiles would contain
    both biases.

    Raises:
        ValueError: the arrays differ in length.
        TooFewSamples: there are fewer than two pairs.
    """
    _need_pairs(a, b)
    _need_two(a)
    draw = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for i in range(resamples):
        rows = draw.integers(len(a), size=len(a))
        differences[i] = statistic(b[rows]) - statistic(a[rows])
    measured = statistic(b) - statistic(a)
    low, high = 2 * measured - np.quantile(differences, (0.975, 0.025))
    return Interval(float(measured), float(low), float(high))


def _need_two(values: Array) -> None:
    if len(values) < 2:
        raise TooFewSamples(f"There are too few samples, {len(values)}; an interval needs 2.")


def _need_pairs(a: Array, b: Array) -> None:
    if len(a) != len(b):
        raise ValueError(f"There are {len(a)} and {len(b)} samples, which are not pairs.")
