"""The definition of a massive channel, on NumPy arrays.

In a massive channel the mean |z| is at least `RATIO` times the median channel's mean, and |z| is
that large on a share `TOKENS` of the image tokens. Both hold for a share `CONDITIONS` of all
combinations of prompt, timestep and seed. The definition uses a ratio because |z| itself differs:
it is about 150 in SD3 and 40 in SD3.5 and FLUX (arXiv 2510.11538).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATIO = 10.0
TOKENS = 0.9
CONDITIONS = 0.8

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Condition:
    """One prompt at one timestep from one seed, with an array [C] over all channels for each value.

    `ratio` is the mean |z| divided by the median channel's mean. `agreement` is the share of tokens
    on which |z| is at least `RATIO` times the median channel's mean. `massive` says whether both
    are large enough.
    """

    ratio: Floats
    agreement: Floats
    massive: NDArray[np.bool_]


def measure(size: Floats) -> Condition:
    """Return the condition for `size`, which is |z| [T, C]."""
    mean = size.mean(0)
    median = max(float(np.median(mean)), 1e-6)  # if all values are zero, no channel is massive
    agreement = (size >= RATIO * median).mean(0, dtype=np.float32)
    massive = (mean >= RATIO * median) & (agreement >= TOKENS)
    return Condition(mean / median, agreement, massive)


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Statistics over all conditions, for each block [L] and channel [C].

    `ratio` is the mean |z| divided by the median channel's mean, averaged over conditions.
    `agreement` is the share of conditions in which the channel is massive. `max_abs` [L] is the
    largest |z| of each block.
    """

    ratio: Floats
    agreement: Floats
    conditions: int
    max_abs: Floats

    def massive(self, block: int) -> list[int]:
        """Return the massive channels after block `block`, the largest first."""
        return [c for c in self.largest(block) if self.is_massive(block, c)]

    def is_massive(self, block: int, channel: int) -> bool:
        """Return whether `channel` is massive after block `block`."""
        return bool(self.agreement[block, channel] >= CONDITIONS)

    def largest(self, block: int) -> list[int]:
        """Return all channels after block `block` in descending order of their ratio."""
        order: list[int] = np.argsort(-self.ratio[block], kind="stable").tolist()
        return order

    def blocks_with_massive(self) -> list[int]:
        """Return the blocks after which some channel is massive."""
        return [k for k in range(len(self.ratio)) if self.massive(k)]


class Sums:
    """Running sums over conditions, which need two [L, C] tables for any number of conditions."""

    def __init__(self, blocks: int, channels: int) -> None:
        self.ratio = np.zeros((blocks, channels))
        self.hits = np.zeros((blocks, channels))
        self.conditions = np.zeros(blocks)
        self.max_abs = np.zeros(blocks)

    def add(self, block: int, rows: Sequence[Floats] | Floats) -> None:
        """Count each of `rows`, which is |z| [T, C] after block `block`, as one condition."""
        for size in rows:
            condition = measure(size)
            self.max_abs[block] = np.fmax(self.max_abs[block], size.max())
            self.ratio[block] += condition.ratio
            self.hits[block] += condition.massive
            self.conditions[block] += 1

    def result(self) -> ChannelStatistics:
        """Return the averages."""
        count = self.conditions[:, None]
        return ChannelStatistics(
            self.ratio / count, self.hits / count, int(self.conditions.min()), self.max_abs
        )
