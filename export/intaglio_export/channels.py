"""Finds massive channels: statistics of the image stream after every block, kept as sums.

A massive channel is one whose mean |z| is at least `RATIO` times the median channel's on `TOKENS`
of the image tokens, for `CONDITIONS` of the prompts, timesteps and seeds. Detection is by ratio:
|z| itself is about 150 in SD3 and 40 in SD3.5 and FLUX (arXiv 2510.11538).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter, Inputs
from intaglio_export.errors import ExportError
from intaglio_export.packing import pack, positions
from intaglio_export.precision import Products
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
# Tokens along a side beyond which statistics gain nothing but time.
MAX_SIDE_TOKENS = 24
# Images of large models are smaller, down to `MIN_SIDE_TOKENS`, so that their tokens times the
# model's parameters stay below this: a quarter of a billion parameters still get the full side.
MAX_TOKEN_PARAMETERS = 1.44e11
MIN_SIDE_TOKENS = 8


@dataclass(frozen=True)
class ChannelStatistics:
    """Over all conditions, for each block [L] and channel [C].

    `ratio` is mean |z| over the median channel's, averaged over conditions; `agreement` the share
    of conditions in which the channel is massive. `max_abs` [L] is the largest |z| of a block.
    """

    ratio: torch.Tensor
    agreement: torch.Tensor
    conditions: int
    max_abs: torch.Tensor

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
        self.max_abs = torch.zeros(blocks)
        self.block = -1  # last seen

    def add(self, block: int, hidden: torch.Tensor) -> None:
        """Count each row of `hidden` [B, T, C] as one condition."""
        self.block = block
        self.max_abs[block] = max(self.max_abs[block], hidden.abs().max().float())
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
            (self.ratio / count).float(),
            (self.hits / count).float(),
            int(self.conditions.min()),
            self.max_abs,
        )

    def place(self) -> str:
        """Where the forward pass stands, for people."""
        blocks = len(self.max_abs)
        return f"block {self.block + 1}" if self.block + 1 < blocks else "what follows the blocks"


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

    The cost is bounded by the size of the images, never by their number: up to 24 x 24 tokens, and
    fewer from a quarter of a billion parameters on, down to 8 x 8 at 2 billion; sizes that a model
    fixes stay. SD3-medium takes about three minutes on two cores.

    Raises:
        ExportError: an activation is NaN or infinite.
    """
    latent, constants = _start(adapter, seed)
    scheduler = adapter.scheduler(STEPS, len(constants["position"]))
    # Prompts longer than the tokenizer's limit are cut, which does not matter here.
    with quiet(), Products(adapter.dtype, lambda: "a text encoder"):
        constants |= adapter.encode_prompts(list(PROMPTS), max_sequence_length)
    roles = {spec.role for spec in adapter.inputs()}
    constants = {role: value for role, value in constants.items() if role in roles}
    sums = _Sums(len(adapter.blocks()), adapter.channels)
    with _watching(adapter, sums):
        for step, timestep in enumerate(scheduler.timesteps):
            inputs = constants | {
                "latent": latent,
                "timestep": timestep.float().expand(len(PROMPTS)),
            }
            sums.block = -1
            prediction = adapter.run(inputs, sums.place)
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


def _start(adapter: Adapter, seed: int) -> tuple[torch.Tensor, Inputs]:
    """Noise in the transformer's layout, and the inputs that depend on its size only."""
    layout, defaults = adapter.latent(), adapter.defaults()
    patch = adapter.patch_size
    unit = layout.vae_scale_factor * patch
    limit = math.inf if layout.fixed_size else _side_tokens(adapter.transformer)
    rows, columns = (int(min(side // unit, limit)) for side in (defaults.height, defaults.width))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(
        len(PROMPTS), layout.channels, rows * patch, columns * patch, generator=generator
    )
    if layout.packed:
        noise = pack(noise, patch)
    guidance = torch.full((len(PROMPTS),), defaults.distilled_guidance or 1.0)
    return noise, {"position": positions(rows, columns), "guidance": guidance}


def _side_tokens(transformer: nn.Module) -> int:
    """Tokens along a side of a calibration image."""
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    side = math.isqrt(int(MAX_TOKEN_PARAMETERS / parameters))
    return max(MIN_SIDE_TOKENS, min(MAX_SIDE_TOKENS, side))


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
