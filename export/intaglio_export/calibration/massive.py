"""What a massive channel is, in one place, on NumPy arrays.

A massive channel is one whose mean |z| is at least `RATIO` times the median channel's on `TOKENS`
of the image tokens, for `CONDITIONS` of the prompts, timesteps and seeds. Detection is by ratio:
|z| itself is about 150 in SD3 and 40 in SD3.5 and FLUX (arXiv 2510.11538).
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
    """One prompt at one timestep from one seed: of each channel [C], float32.

    `ratio`: mean |z| over the median channel's. `agreement`: the share of tokens on which |z| is at
    least `RATIO` times the median channel's mean. `massive`: whether both are as they have to be.
    """

    ratio: Floats
    agreement: Floats
    massive: NDArray[np.bool_]


def measure(size: Floats) -> Condition:
    """The condition of |z| `size` [T, C]."""
    mean = size.mean(0)
    median = max(float(np.median(mean)), 1e-6)  # a dead stream has no massive channel
    agreement = (size >= RATIO * median).mean(0, dtype=np.float32)
    massive = (mean >= RATIO * median) & (agreement >= TOKENS)
    return Condition(mean / median, agreement, massive)


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Over all conditions, for each block [L] and channel [C].

    `ratio` is mean |z| over the median channel's, averaged over conditions; `agreement` the share
    of conditions in which the channel is massive. `max_abs` [L] is the largest |z| of a block.
    """

    ratio: Floats
    agreement: Floats
    conditions: int
    max_abs: Floats

    def massive(self, block: int) -> list[int]:
        """Massive channels after block `block`, the largest first."""
        return [c for c in self.largest(block) if self.is_massive(block, c)]

    def is_massive(self, block: int, channel: int) -> bool:
        """Whether `channel` meets the definition after block `block`."""
        return bool(self.agreement[block, channel] >= CONDITIONS)

    def largest(self, block: int) -> list[int]:
        """All channels after block `block` by falling ratio."""
        order: list[int] = np.argsort(-self.ratio[block], kind="stable").tolist()
        return order

    def blocks_with_massive(self) -> list[int]:
        """Blocks after which some channel is massive."""
        return [k for k in range(len(self.ratio)) if self.massive(k)]


class Sums:
    """Running sums over conditions; memory is that of two [L, C] tables whatever is observed."""

    def __init__(self, blocks: int, channels: int) -> None:
        self.ratio = np.zeros((blocks, channels))
        self.hits = np.zeros((blocks, channels))
        self.conditions = np.zeros(blocks)
        self.max_abs = np.zeros(blocks)

    def add(self, block: int, rows: Sequence[Floats] | Floats) -> None:
        """Count each of `rows`, |z| [T, C] after block `block`, as one condition."""
        for size in rows:
            condition = measure(size)
            self.max_abs[block] = np.fmax(self.max_abs[block], size.max())
            self.ratio[block] += condition.ratio
            self.hits[block] += condition.massive
            self.conditions[block] += 1

    def result(self) -> ChannelStatistics:
        """The averages."""
        count = self.conditions[:, None]
        return ChannelStatistics(
            self.ratio / count, self.hits / count, int(self.conditions.min()), self.max_abs
        )
