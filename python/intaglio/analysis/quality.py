"""Measures of pictures and of sets of features, each with what says how sure they are.

Pictures are float32 [N, H, W, 3], RGB from 0 to 1, not clipped. Detail is that of Rec. 709 luma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage, stats
from scipy.spatial.distance import cdist

Array = NDArray[np.floating]
LUMA = np.array([0.2126, 0.7152, 0.0722])
# Cycles per pixel from which on detail is high in frequency: half of what pixels can show.
HIGH = 0.25


class TooFewSamples(ValueError):  # noqa: N818, the field's words
    """There are too few samples for what was asked; the message says how many there have to be."""


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


# Detail of pictures, [N] each.


def luma(images: Array) -> NDArray[np.float64]:
    """[N, H, W]"""
    grey: NDArray[np.float64] = np.asarray(images, np.float64) @ LUMA
    return grey


def _power(images: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Power [N, F] of each spatial frequency, and its distance from zero [F], cycles per pixel.

    The mean is taken off, and a Hann window laid over, whose edges meet: without it the borders'
    jump would count as detail.
    """
    grey = luma(images)
    grey = grey - grey.mean((1, 2), keepdims=True)
    height, width = grey.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    power = np.abs(np.fft.rfft2(grey * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    return power.reshape(len(power), -1), radius.ravel()


def high_frequency_energy(images: Array) -> NDArray[np.float64]:
    """Share of the spectrum's power at or above `HIGH` cycles per pixel."""
    power, radius = _power(images)
    shares: NDArray[np.float64] = power[:, radius >= HIGH].sum(1) / power.sum(1).clip(1e-12)
    return shares


def spectrum_slope(images: Array) -> NDArray[np.float64]:
    """Slope of log power against log frequency, over rings one step of the shorter side wide.

    About -2 in photographs; the nearer to 0, the more detail, or noise.
    """
    power, radius = _power(images)
    side = min(images.shape[1:3])
    ring = np.rint(radius * side).astype(int)
    rings = np.arange(1, side // 2 + 1)
    means = np.stack([power[:, ring == r].mean(1) for r in rings], axis=1)
    x = np.log(rings / side)
    y = np.log(means.clip(1e-12))
    slope: NDArray[np.float64] = (y - y.mean(1, keepdims=True)) @ (x - x.mean()) / x.var() / len(x)
    return slope


def gradient_energy(images: Array) -> NDArray[np.float64]:
    """Mean squared length of the luma's gradient, by central differences."""
    down, right = np.gradient(luma(images), axis=(1, 2))
    energy: NDArray[np.float64] = (down**2 + right**2).mean((1, 2))
    return energy


def laplacian_variance(images: Array) -> NDArray[np.float64]:
    """Variance of the luma's Laplacian (five points, borders reflected)."""
    return np.array([ndimage.laplace(grey, mode="reflect").var() for grey in luma(images)])


DETAIL = {
    "high_frequency_energy": high_frequency_energy,
    "spectrum_slope": spectrum_slope,
    "gradient_energy": gradient_energy,
    "laplacian_variance": laplacian_variance,
}


def detail(images: Array) -> dict[str, NDArray[np.float64]]:
    """All measures of detail, by name. They reward noise too, so compare with `blur`."""
    return {name: measure(images) for name, measure in DETAIL.items()}


def blur(images: Array, radius: float) -> Array:
    """Gaussian of standard deviation `radius` pixels."""
    blurred: Array = ndimage.gaussian_filter(images, (0, radius, radius, 0), mode="reflect")
    return blurred


# What pictures show, [N] each.


CELLS = 8  # along a side of a picture that shows its large shapes only


def low_pass(images: Array) -> NDArray[np.float64]:
    """Luma averaged over a grid of cells, [N, CELLS, CELLS]."""
    rows = [part.mean(1) for part in np.array_split(luma(images), CELLS, axis=1)]
    columns = [part.mean(2) for part in np.array_split(np.stack(rows, 1), CELLS, axis=2)]
    return np.stack(columns, 2)


def low_pass_similarity(a: Array, b: Array) -> NDArray[np.float64]:
    """Correlation of each pair of `low_pass` pictures: whether the large shapes are the same."""
    x, y = (np.asarray(cells, np.float64).reshape(len(cells), -1) for cells in (a, b))
    x, y = (rows - rows.mean(1, keepdims=True) for rows in (x, y))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    similarity: NDArray[np.float64] = (x * y).sum(1) / norms.clip(1e-12)
    return similarity


def mean_lab(images: Array) -> NDArray[np.float64]:
    """Mean colour of sRGB pictures in CIELAB (D65), [N, 3]; a distance is delta E of 1976."""
    rgb = np.clip(np.asarray(images, np.float64).mean((1, 2)), 0.0, 1.0)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def saturation(images: Array) -> NDArray[np.float64]:
    """Mean difference of the strongest and the weakest of red, green and blue."""
    return np.asarray(np.ptp(np.clip(images, 0, 1), axis=3).mean((1, 2)), np.float64)


def clipped(images: Array) -> NDArray[np.float64]:
    """Share of pixels that a picture cannot show, some channel of theirs being outside 0 to 1.

    By more than half a step of eight bits: what rounds into the range is not lost.
    """
    outside = (images < -0.5 / 255) | (images > 1 + 0.5 / 255)
    return np.asarray(outside.any(3).mean((1, 2)), np.float64)


# Sets of features [N, F].


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean [F] and covariance [F, F] of features."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def moments(features: Array) -> Moments:
    """The moments of `features` [N, F].

    Raises:
        TooFewSamples: there are fewer than two.
    """
    if len(features) < 2:
        raise TooFewSamples(f"A covariance needs at least 2 samples, not {len(features)}.")
    features = np.asarray(features, np.float64)
    return Moments(features.mean(0), np.cov(features, rowvar=False))


def frechet(a: Moments, b: Moments) -> float:
    """Fréchet distance of two Gaussians (arXiv 1706.08500). Of few samples it comes out large."""
    # The trace of the root of a product is the sum of the roots of its eigenvalues.
    values = linalg.eigvals(a.covariance @ b.covariance)
    root = np.sqrt(np.maximum(values.real, 0.0)).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(((a.mean - b.mean) ** 2).sum() + traces - 2.0 * root)


def precision_recall(real: Array, generated: Array, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991): the share of `generated` [N, F] inside the
    real images' neighbourhoods, of radius the `k`-th neighbour's distance, and the other way round.

    Raises:
        TooFewSamples: a set has not more than `k`.
    """
    if min(len(real), len(generated)) <= k:
        raise TooFewSamples(f"Precision and recall need more than {k} samples of each set.")

    def covered(points: Array, centres: Array) -> float:
        # The nearest of all is the centre itself.
        radius = np.concatenate(
            [np.partition(cdist(part, centres), k)[:, k] for part in _parts(centres)]
        )
        inside = [(cdist(part, centres) <= radius).any(1) for part in _parts(points)]
        return float(np.concatenate(inside).mean())

    return covered(generated, real), covered(real, generated)


def _parts(features: Array) -> list[Array]:
    """At most 1000 rows each, which bounds the memory of their distances."""
    return np.array_split(features, max(1, -(-len(features) // 1000)))


# Intervals of 95 %.


def mean_interval(values: Array) -> Interval:
    """Of the mean of `values` [N], by Student's t.

    Raises:
        TooFewSamples: there are fewer than two values.
    """
    if len(values) < 2:
        raise TooFewSamples(f"An interval needs at least 2 samples, not {len(values)}.")
    mean = float(np.mean(values))
    error = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return Interval(mean, mean - error, mean + error)


def bootstrap_difference(
    statistic: Callable[[Array], float], a: Array, b: Array, resamples: int = 200, seed: int = 0
) -> Interval:
    """Of statistic(b) - statistic(a), where rows i of both are a pair and are drawn together.

    Raises:
        TooFewSamples: there are fewer than two pairs.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} rows are not pairs.")
    if len(a) < 2:
        raise TooFewSamples(f"An interval needs at least 2 samples, not {len(a)}.")
    generator = np.random.default_rng(seed)
    measured = statistic(b) - statistic(a)
    draws = np.empty(resamples)
    for i in range(resamples):
        rows = generator.integers(len(a), size=len(a))
        draws[i] = statistic(b[rows]) - statistic(a[rows])
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(measured), float(low), float(high))
