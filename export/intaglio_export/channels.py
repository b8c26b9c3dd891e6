"""Finds massive channels: statistics of the image stream after every block, kept as sums.

A massive channel is one whose mean |z| is at least `RATIO` times the median channel's on `TOKENS`
of the image tokens, for `CONDITIONS` of the prompts, timesteps and seeds. Detection is by ratio:
|z| itself is about 150 in SD3 and 40 in SD3.5 and FLUX (arXiv 2510.11538).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter
from intaglio_export.errors import ExportError
from intaglio_export.quiet import quiet

RATIO = 10.0
TOKENS = 0.9
CONDITIONS = 0.8

PROMPTS = (
    "a photograph of a red bicycle leaning on a stone wall",
    "a portrait of an old man with a beard",
    "",
    "an aerial view of a coast in winter, detailed",
)
STEPS = 5
# Tokens per image beyond which statistics gain nothing but time.
MAX_SIDE_TOKENS = 24


@dataclass(frozen=True)
class ChannelStatistics:
    """Over all conditions, for each block [L] and channel [C].

    `ratio` is mean |z| over the median channel's, averaged over conditions; `agreement` the share
    of conditions in which the channel is massive.
    """

    ratio: torch.Tensor
    agreement: torch.Tensor
    conditions: int

    def massive(self, block: int) -> list[int]:
        """Massive channels after block `block`, the largest first."""
        return [c for c in self.largest(block) if self.is_massive(block, c)]

    def is_massive(self, block: int, channel: int) -> bool:
        """Whether `channel` meets the definition after block `block`."""
        return bool(self.agreement[block, channel] >= CONDITIONS)

    def largest(self, block: int) -> list[int]:
        """All channels after block `block` by falling ratio."""
        order: list[int] = self.ratio[block].argsort(descending=True).tolist()
        return order

    def blocks_with_massive(self) -> list[int]:
        """Blocks after which some channel is massive."""
        return [k for k in range(len(self.ratio)) if self.massive(k)]


class _Sums:
    """Running sums over conditions; memory is that of two [L, C] tables whatever is observed."""

    def __init__(self, blocks: int, channels: int) -> None:
        self.ratio = torch.zeros(blocks, channels, dtype=torch.float64)
        self.hits = torch.zeros(blocks, channels, dtype=torch.float64)
        self.conditions = torch.zeros(blocks, dtype=torch.float64)

    def add(self, block: int, hidden: torch.Tensor) -> None:
        """Count each row of `hidden` [B, T, C] as one condition."""
        for row in hidden:
            size = row.abs().float()
            mean = size.mean(0)
            median = mean.median().clamp_min(1e-6)  # a dead stream has no massive channel
            limit = RATIO * median
            on_tokens = (size >= limit).float().mean(0)
            self.ratio[block] += mean / median
            self.hits[block] += (mean >= limit) & (on_tokens >= TOKENS)
            self.conditions[block] += 1

    def result(self) -> ChannelStatistics:
        """The averages."""
        count = self.conditions.unsqueeze(-1)
        return ChannelStatistics(
            (self.ratio / count).float(), (self.hits / count).float(), int(self.conditions.min())
        )


@torch.no_grad()
def observe(
    adapter: Adapter,
    max_sequence_length: int,
    progress: Callable[[float], None] = lambda share: None,
    seed: int = 0,
) -> ChannelStatistics:
    """Statistics of every block along short sampling runs of the real model.

    Each prompt starts from its own noise and takes `STEPS` steps of the pipeline's own scheduler,
    so timesteps from pure noise to nearly none are seen. `progress` is told the share done.

    Raises:
        ExportError: an activation is NaN or infinite.
    """
    latent = _noise(adapter, seed)
    scheduler = adapter.scheduler(STEPS, latent)
    with quiet():  # prompts longer than the tokenizer's limit are cut, which does not matter here
        conditions = adapter.encode_prompts(list(PROMPTS), max_sequence_length)
    sums = _Sums(len(adapter.blocks()), adapter.channels)
    with _watching(adapter, sums):
        for step, timestep in enumerate(scheduler.timesteps):
            inputs = conditions | {
                "latent": latent,
                "timestep": timestep.float().expand(len(PROMPTS)),
            }
            prediction = adapter.predict(inputs)
            latent = scheduler.step(prediction, timestep, latent, return_dict=False)[0]
            progress((step + 1) / len(scheduler.timesteps))
    statistics = sums.result()
    if not statistics.ratio.isfinite().all():
        block = int((~statistics.ratio.isfinite()).any(dim=1).nonzero()[0])
        raise ExportError(
            f"The transformer's hidden state after block {block} is not finite on a test prompt;"
            " the weights are damaged or need a wider type than they were made in."
        )
    return statistics


def _noise(adapter: Adapter, seed: int) -> torch.Tensor:
    layout, defaults = adapter.latent(), adapter.defaults()
    limit = MAX_SIDE_TOKENS * adapter.patch_size
    pixels = (defaults.height, defaults.width)
    sides = [min(side // layout.vae_scale_factor, limit) for side in pixels]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PROMPTS), layout.channels, *sides, generator=generator)


@contextmanager
def _watching(adapter: Adapter, sums: _Sums) -> Iterator[None]:
    def watch(block: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            sums.add(block, adapter.split(output)[0])

        return hook

    handles = [b.register_forward_hook(watch(k)) for k, b in enumerate(adapter.blocks())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
