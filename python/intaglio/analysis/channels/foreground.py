"""The foreground that massive channels alone show: tokens in two clusters (arXiv 2605.13974)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, whiten

from intaglio.analysis.quality.intervals import mean_interval
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure

Mask = NDArray[np.bool_]
SHOWN = 12


def foreground(values: NDArray[np.floating]) -> Mask:
    """Return which cells of `values` [rows, columns, n] are foreground [rows, columns].

    Two clusters are found by k-means, with each of the n values scaled to deviation 1. The
    background is the cluster that has more of the cells at the border.
    """
    rows, columns, n = values.shape
    cells = np.asarray(values, np.float64).reshape(-1, n)
    deviation = cells.std(0)
    if not deviation.any():
        return np.zeros((rows, columns), bool)
    _, labels = kmeans2(whiten(cells[:, deviation > 0]), 2, minit="++", seed=0)
    found: Mask = labels.reshape(rows, columns) == 1
    border = np.ones((rows, columns), bool)
    border[1:-1, 1:-1] = False
    return ~found if found[border].mean() > 0.5 else found


def overlap(one: Mask, other: Mask) -> float:
    """Return how much of the union of two masks both have; 1 for two empty masks."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


def cells_of(images: NDArray[np.floating], grid: tuple[int, int]) -> NDArray[np.floating]:
    """Return the mean colours [N, rows, columns, 3] of images [N, H, W, 3] on the tokens' cells."""
    n, height, width, _ = images.shape
    rows, columns = grid
    cells = images.reshape(n, rows, height // rows, columns, width // columns, 3)
    means: NDArray[np.floating] = cells.mean((2, 4))
    return means


@dataclass(frozen=True)
class Found:
    """What part 3 of the report says about the foreground."""

    claim: str
    figure: Figure
    numbers: dict[str, Any]


def compare(
    massive: NDArray[np.floating],
    random: NDArray[np.floating],
    images: NDArray[np.floating],
    block: int,
    channels: Sequence[int],
) -> Found:
    """Compare the foreground of channels with that of the pictures' colours.

    Args:
        massive: z of `channels` at the last step, [N, rows, columns, n].
        random: the same of as many random channels.
        images: the pictures [N, H, W, 3].
        block: the block that they were taken after.
        channels: the channels of `massive`.
    """
    colours = [foreground(one) for one in cells_of(images, massive.shape[1:3])]
    masks = {
        "channels": [foreground(one) for one in massive],
        "random channels": [foreground(one) for one in random],
    }
    overlaps = {
        name: mean_interval(np.array([overlap(*pair) for pair in zip(found, colours, strict=True)]))
        for name, found in masks.items()
    }
    words = ", ".join(map(str, channels))
    claim = (
        f"Two clusters of tokens by channels {words} alone, at the last step: the foreground"
        f" overlaps with that of the picture's colours by {overlaps['channels']} of their union,"
        f" and by {overlaps['random channels']} for as many random channels ({len(images)}"
        " pictures)."
    )
    rows = {"picture": np.clip(images[:SHOWN], 0, 1)}
    rows |= {name: np.array(found[:SHOWN], np.float32) for name, found in masks.items()}
    figure = Figure(
        "foreground.png",
        plots.gallery(rows | {"colours": np.array(colours[:SHOWN], np.float32)}),
        f"Pictures, and their foreground by k-means of channels {words} after block {block}, of"
        " random channels, and of colours.",
    )
    return Found(claim, figure, {"overlap_with_colours": overlaps})
