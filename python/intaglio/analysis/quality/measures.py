"""Measures of pictures and of sets of features.

Pictures are [N, H, W, 3] float32, RGB from 0 to 1 and not clamped. Luma is that of Rec. 709.
Pictures are mirrored at their borders, so that no border counts as an edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, linalg, ndimage
from scipy.spatial.distance import cdist

from intaglio.analysis.quality.intervals import Array, TooFewSamples

Doubles = NDArray[np.float64]

LUMA = (0.2126, 0.7152, 0.0722)
# Less power than any 8-bit picture has; anything below is rounding.
NO_POWER = 1e-12
# How many distances are in memory at a time (32 MiB).
DISTANCES = 2**22


class Moments(NamedTuple):
    """Mean [F] and covariance [F, F] of a set of features."""

    mean: Doubles
    covariance: Doubles


# Detail of each picture.


def luma(images: Array) -> Doubles:
    """Return the luma [N, H, W]."""
    grey: Doubles = np.asarray(images, np.float64) @ np.array(LUMA)
    return grey


def _spectrum(images: Array) -> tuple[Doubles, Doubles]:
    """Return the power of the luma [N, H, W] without its mean, and radial frequencies [H, W] in
    1/pixel.

    The cosine transform is the spectrum of the mirrored picture, so it needs no window.
    """
    power = fft.dctn(luma(images), axes=(1, 2), norm="ortho") ** 2
    power[:, 0, 0] = 0.0
    rows, columns = (np.arange(size) / (2 * size) for size in power.shape[1:])
    return power, np.hypot(rows[:, None], columns)


def high_frequency_energy(images: Array) -> Doubles:
    """Return the share [N] of the power above 0.25 cycles per pixel; 0 for a flat picture."""
    power, frequency = _spectrum(images)
    high = power[:, frequency > 0.25].sum(1)
    share: Doubles = high / power.sum((1, 2)).clip(NO_POWER)
    return share


def spectrum_slope(images: Array) -> Doubles:
    """Return the slope [N] of log power against log frequency; 0 for a flat picture or white noise.

    The slope is a least-squares fit to the mean power of rings of width 1/S, at 1/S, 2/S, ... 0.5
    cycles per pixel, where S is the shorter side. Photographs are near -2.
    """
    power, frequency = _spectrum(images)
    side = min(power.shape[1:])
    ring = np.rint(frequency * side).astype(int)
    rings = np.arange(1, side // 2 + 1)
    means = np.stack([power[:, ring == r].mean(1) for r in rings], axis=1)
    slope: Doubles = np.polyfit(np.log(rings / side), np.log(means.clip(NO_POWER)).T, 1)[0]
    return slope


def gradient_energy(images: Array) -> Doubles:
    """Return the mean squared gradient of the luma [N] by forward differences, per pixel."""
    # Central differences would miss a checkerboard of single pixels.
    grey = luma(images)
    energy: Doubles = sum(np.square(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2))
    return energy


def laplacian_variance(images: Array) -> Doubles:
    """Return the variance [N] of the luma's five-point Laplacian."""
    laplacians = [ndimage.laplace(grey, mode="reflect") for grey in luma(images)]
    return np.array([laplacian.var() for laplacian in laplacians])


DETAIL = {
    "high_frequency_energy": high_frequency_energy,
    "spectrum_slope": spectrum_slope,
    "gradient_energy": gradient_energy,
    "laplacian_variance": laplacian_variance,
}


def detail(images: Array) -> dict[str, Doubles]:
    """Return every measure of detail by name. All of them reward noise; `blur` is the control."""
    return {name: measure(images) for name, measure in DETAIL.items()}


def blur(images: Array, sigma: float) -> Array:
    """Blur `images` with a Gaussian of `sigma` pixels."""
    blurred: Array = ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="reflect")
    return blurred


# What pictures show.


CELLS = 8  # along each side of the grid that large shapes are compared on


def low_pass(images: Array) -> Doubles:
    """Return the luma averaged over a grid of cells, [N, CELLS, CELLS]."""
    rows = [part.mean(1) for part in np.array_split(luma(images), CELLS, axis=1)]
    columns = [part.mean(2) for part in np.array_split(np.stack(rows, 1), CELLS, axis=2)]
    return np.stack(columns, 2)


def low_pass_similarity(a: Array, b: Array) -> Doubles:
    """Return the Pearson correlation [N] of two results of `low_pass`, pair by pair.

    It says whether the large shapes are the same, and is 0 where a picture is flat.
    """
    x, y = (np.asarray(cells, np.float64).reshape(len(cells), -1) for cells in (a, b))
    x, y = (rows - rows.mean(1, keepdims=True) for rows in (x, y))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    correlation: Doubles = (x * y).sum(1) / norms.clip(NO_POWER)
    return correlation


def mean_lab(images: Array) -> Doubles:
    """Return the mean colour [N, 3] in CIELAB (D65) of sRGB pictures (IEC 61966-2-1).

    Values are clamped as a screen clamps them. The distance of two colours is delta E of 1976.
    """
    rgb = np.clip(np.asarray(images, np.float64), 0.0, 1.0)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], LUMA, [0.0193, 0.1192, 0.9505]])
    xyz = linear @ (to_xyz / to_xyz.sum(1, keepdims=True)).T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
    return np.asarray(lab.mean((1, 2)), np.float64)


def color_drift(a: Array, b: Array) -> Doubles:
    """Return the distance [N] of each pair of mean colours, as `mean_lab` returns them."""
    return np.asarray(np.linalg.norm(a - b, axis=1), np.float64)


def saturation(images: Array) -> Doubles:
    """Return the mean [N] of each pixel's largest minus smallest clamped channel; 0 for grey."""
    chroma = np.ptp(np.clip(images, 0.0, 1.0), axis=3)
    return np.asarray(chroma.mean((1, 2)), np.float64)


def clipped(images: Array) -> Doubles:
    """Return the share [N] of pixels that lose a channel to clipping.

    A channel is lost if it is outside 0 to 1 by more than half an 8-bit step; anything nearer
    rounds into the range.
    """
    half = 0.5 / 255
    outside = ((images < -half) | (images > 1.0 + half)).any(3)
    return np.asarray(outside.mean((1, 2)), np.float64)


# Sets of features [N, F].


def moments(features: Array) -> Moments:
    """Return the moments of `features` [N, F].

    Raises:
        TooFewSamples: there are not more rows than features, so the covariance is singular.
    """
    rows, width = features.shape
    if rows <= width:
        raise TooFewSamples(
            f"There are {rows} samples of {width} features; their covariance needs {width + 1}."
        )
    features = np.asarray(features, np.float64)
    return Moments(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet(a: Moments, b: Moments) -> float:
    """Return the Fréchet distance of two Gaussians (arXiv 1706.08500); few samples increase it."""
    (mean_a, covariance_a), (mean_b, covariance_b) = a, b
    # The trace of the product's square root is the sum of the square roots of its eigenvalues.
    values = linalg.eigvals(covariance_a @ covariance_b)
    root = np.sqrt(np.maximum(values.real, 0.0)).sum()
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    return float(((mean_a - mean_b) ** 2).sum() + traces - 2.0 * root)


def precision_recall(real: Array, fake: Array, k: int = 3) -> tuple[Doubles, Doubles]:
    """Return improved precision and recall (arXiv 1904.06991) of `fake` [M, F] and `real` [N, F].

    Precision is the mean of the first array [M]. An entry is 1 if some real row is at least as near
    to the row of `fake` as to its own k-th real neighbour. Recall is the mean of the second array
    [N], which is the same with the sets exchanged. Memory does not grow with M x N.

    Raises:
        TooFewSamples: a set has too few rows for k neighbours each.
    """
    for rows in (len(real), len(fake)):
        if rows <= k:
            raise TooFewSamples(f"There are {rows} samples; {k} neighbours each need {k + 1}.")
    return _covered(fake, real, k), _covered(real, fake, k)


def _covered(points: Array, centres: Array, k: int) -> Doubles:
    # Each row's nearest row is itself, so its k-th neighbour has index k.
    radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distances(centres, centres)])
    inside = [(d <= radii).any(1) for d in _distances(points, centres)]
    return np.concatenate(inside).astype(np.float64)


def _distances(a: Array, b: Array) -> Iterator[Doubles]:
    """Yield the distances of all rows of `a` to all of `b`, a few rows of `a` at a time."""
    rows = max(1, DISTANCES // len(b))
    for start in range(0, len(a), rows):
        yield cdist(a[start : start + rows], b)
