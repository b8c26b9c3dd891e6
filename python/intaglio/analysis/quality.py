"""Measures of pictures and of sets of features, and intervals that say how sure they are.

Pictures are [N, H, W, 3] float32, RGB from 0 to 1 and not clamped. Luma is that of Rec. 709.
Beyond their borders pictures go on as their mirror image: no border counts as an edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, linalg, ndimage, special, stats
from scipy.spatial.distance import cdist

Array = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

LUMA = (0.2126, 0.7152, 0.0722)
# Power that no picture of eight bits has: below it there is nothing but rounding.
NO_POWER = 1e-12
# Distances held at a time, 32 MiB of them.
DISTANCES = 2**22


class TooFewSamples(ValueError):  # noqa: N818
    """Too few for what was asked; the message says how many there are and how many it takes."""


@dataclass(frozen=True)
class Interval:
    """A measured value and its interval of 95 %."""

    measured: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.measured:.3g} [{self.low:.3g}, {self.high:.3g}]"


class Moments(NamedTuple):
    """Mean [F] and covariance [F, F] of a set of features."""

    mean: Doubles
    covariance: Doubles


# Detail of each picture.


def luma(images: Array) -> Doubles:
    """[N, H, W]"""
    grey: Doubles = np.asarray(images, np.float64) @ np.array(LUMA)
    return grey


def _spectrum(images: Array) -> tuple[Doubles, Doubles]:
    """Power of the luma [N, H, W] without its mean, and radial frequencies [H, W] in 1/pixel.

    By the cosine transform, which is the spectrum of the mirrored picture, so needs no window.
    """
    power = fft.dctn(luma(images), axes=(1, 2), norm="ortho") ** 2
    power[:, 0, 0] = 0.0
    rows, columns = (np.arange(size) / (2 * size) for size in power.shape[1:])
    return power, np.hypot(rows[:, None], columns)


def high_frequency_energy(images: Array) -> Doubles:
    """Share [N] of the power above 0.25 cycles per pixel; 0 of a flat picture."""
    power, frequency = _spectrum(images)
    high = power[:, frequency > 0.25].sum(1)
    share: Doubles = high / power.sum((1, 2)).clip(NO_POWER)
    return share


def spectrum_slope(images: Array) -> Doubles:
    """Slope [N] of log power against log frequency; 0 of a flat picture or white noise.

    The line is the least squares one through the mean power of rings of width 1/S, at 1/S, 2/S, ...
    0.5 cycles per pixel, where S is the shorter side. Photographs are near -2.
    """
    power, frequency = _spectrum(images)
    side = min(power.shape[1:])
    ring = np.rint(frequency * side).astype(int)
    rings = np.arange(1, side // 2 + 1)
    means = np.stack([power[:, ring == r].mean(1) for r in rings], axis=1)
    slope: Doubles = np.polyfit(np.log(rings / side), np.log(means.clip(NO_POWER)).T, 1)[0]
    return slope


def gradient_energy(images: Array) -> Doubles:
    """Mean squared gradient of the luma [N] by forward differences, per pixel."""
    # Central differences would not see the finest checkerboard.
    grey = luma(images)
    energy: Doubles = sum(np.square(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2))
    return energy


def laplacian_variance(images: Array) -> Doubles:
    """Variance [N] of the luma's Laplacian of five points."""
    laplacians = [ndimage.laplace(grey, mode="reflect") for grey in luma(images)]
    return np.array([laplacian.var() for laplacian in laplacians])


DETAIL = {
    "high_frequency_energy": high_frequency_energy,
    "spectrum_slope": spectrum_slope,
    "gradient_energy": gradient_energy,
    "laplacian_variance": laplacian_variance,
}


def detail(images: Array) -> dict[str, Doubles]:
    """Every measure of detail by name. All of them reward noise: `blur` is the control."""
    return {name: measure(images) for name, measure in DETAIL.items()}


def blur(images: Array, sigma: float) -> Array:
    """`images` through a Gaussian of `sigma` pixels."""
    blurred: Array = ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="reflect")
    return blurred


# What pictures show.


CELLS = 8  # along a side of a picture of large shapes


def low_pass(images: Array) -> Doubles:
    """Luma averaged over a grid of cells, [N, CELLS, CELLS]."""
    rows = [part.mean(1) for part in np.array_split(luma(images), CELLS, axis=1)]
    columns = [part.mean(2) for part in np.array_split(np.stack(rows, 1), CELLS, axis=2)]
    return np.stack(columns, 2)


def low_pass_similarity(a: Array, b: Array) -> Doubles:
    """Pearson correlation [N] of each pair of what `low_pass` gives: whether the large shapes are
    the same. 0 where one is flat."""
    x, y = (np.asarray(cells, np.float64).reshape(len(cells), -1) for cells in (a, b))
    x, y = (rows - rows.mean(1, keepdims=True) for rows in (x, y))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    correlation: Doubles = (x * y).sum(1) / norms.clip(NO_POWER)
    return correlation


def mean_lab(images: Array) -> Doubles:
    """Mean colour [N, 3] in CIELAB under D65 of sRGB (IEC 61966-2-1), which is clamped as a screen
    clamps it. The distance of two is delta E of 1976."""
    rgb = np.clip(np.asarray(images, np.float64), 0.0, 1.0)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], LUMA, [0.0193, 0.1192, 0.9505]])
    xyz = linear @ (to_xyz / to_xyz.sum(1, keepdims=True)).T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
    return np.asarray(lab.mean((1, 2)), np.float64)


def color_drift(a: Array, b: Array) -> Doubles:
    """Distance [N] of each pair of mean colours, as `mean_lab` has them."""
    return np.asarray(np.linalg.norm(a - b, axis=1), np.float64)


def saturation(images: Array) -> Doubles:
    """Mean [N] of the largest minus the smallest channel of each pixel, clamped; 0 of a grey."""
    chroma = np.ptp(np.clip(images, 0.0, 1.0), axis=3)
    return np.asarray(chroma.mean((1, 2)), np.float64)


def clipped(images: Array) -> Doubles:
    """Share [N] of pixels with a channel that is outside 0 to 1 by more than half a step of eight
    bits: what rounds into the range is not lost."""
    half = 0.5 / 255
    outside = ((images < -half) | (images > 1.0 + half)).any(3)
    return np.asarray(outside.mean((1, 2)), np.float64)


# Sets of features [N, F].


def moments(features: Array) -> Moments:
    """The moments of `features` [N, F].

    Raises:
        TooFewSamples: there are no more rows than features, so the covariance is singular.
    """
    rows, width = features.shape
    if rows <= width:
        raise TooFewSamples(
            f"There are {rows} samples of {width} features; their covariance needs {width + 1}."
        )
    features = np.asarray(features, np.float64)
    return Moments(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet(a: Moments, b: Moments) -> float:
    """Frechet distance of two Gaussians (arXiv 1706.08500). Few samples make it too large."""
    (mean_a, covariance_a), (mean_b, covariance_b) = a, b
    # The trace of the root of a product is the sum of the roots of its eigenvalues.
    values = linalg.eigvals(covariance_a @ covariance_b)
    root = np.sqrt(np.maximum(values.real, 0.0)).sum()
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    return float(((mean_a - mean_b) ** 2).sum() + traces - 2.0 * root)


def precision_recall(real: Array, fake: Array, k: int = 3) -> tuple[Doubles, Doubles]:
    """Improved precision and recall (arXiv 1904.06991) of `fake` [M, F] against `real` [N, F].

    Precision is the mean of the first [M]: 1 where a row of `fake` lies within the distance of some
    real row to its k-th neighbour among the real. Recall is that of the second [N], with the sets
    exchanged. Memory does not grow with M x N.

    Raises:
        TooFewSamples: a set has no k neighbours for each row.
    """
    for rows in (len(real), len(fake)):
        if rows <= k:
            raise TooFewSamples(f"There are {rows} samples; {k} neighbours each need {k + 1}.")
    return _covered(fake, real, k), _covered(real, fake, k)


def _covered(points: Array, centres: Array, k: int) -> Doubles:
    # Each row's nearest is itself, so its k-th neighbour has index k.
    radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distances(centres, centres)])
    inside = [(d <= radii).any(1) for d in _distances(points, centres)]
    return np.concatenate(inside).astype(np.float64)


def _distances(a: Array, b: Array) -> Iterator[Doubles]:
    """Distances of a few rows of `a` after another to all of `b`."""
    rows = max(1, DISTANCES // len(b))
    for start in range(0, len(a), rows):
        yield cdist(a[start : start + rows], b)


# Intervals of 95 %.


def mean_interval(values: Array) -> Interval:
    """The mean of `values` [N], by Student's t.

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
    """The mean of b - a, [N] each, whose rows are pairs.

    Raises:
        ValueError: the rows are not as many.
        TooFewSamples: there are fewer than two pairs.
    """
    _need_pairs(a, b)
    return mean_interval(np.asarray(b, np.float64) - np.asarray(a, np.float64))


def share_interval(hits: Array) -> Interval:
    """The share of ones among `hits` [N] of 0 and 1, by Wilson's score: it stays within 0 to 1.

    Raises:
        TooFewSamples: there are fewer than two.
    """
    _need_two(hits)
    ones = int(np.asarray(hits).sum())
    found = stats.binomtest(ones, len(hits)).proportion_ci(0.95, method="wilson")
    return Interval(ones / len(hits), float(found.low), float(found.high))


def paired_share_difference(a: Array, b: Array) -> Interval:
    """The share of ones in b minus that in a, [N] each, whose rows are pairs.

    Adjusted Wald interval of Bonett and Price (2012), which does not vanish where few pairs differ.

    Raises:
        ValueError: the rows are not as many.
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
    """statistic(b) - statistic(a), [N, ...] each, by resampling pairs of rows.

    Both sides are resampled with the same rows, so what a pair has in common cancels. This is the
    basic bootstrap (Davison and Hinkley 1997, 5.2.1): a Frechet distance of resamples is as biased
    against the measured one as that is against the truth, and percentiles would count both.

    Raises:
        ValueError: the rows are not as many.
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
