"""Features of images from the blocks of a DiT, for correspondence and probing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio_export.adapters import adapter_for
from intaglio_export.adapters.base import Adapter
from intaglio_export.adapters.observing import observing
from intaglio_export.adapters.packing import pack
from intaglio_export.calibration.calibrate import encode, fixed_inputs
from intaglio_export.calibration.massive import CONDITIONS, measure
from intaglio_export.support.quiet import quiet

Floats = NDArray[np.float32]

RECIPES = ("raw", "discarded", "modulated", "normalised")


@torch.no_grad()
def features(
    pipeline: Any,
    images: NDArray[np.floating],
    *,
    blocks: Sequence[int],
    sigma: float = 0.25,
    recipe: str = "modulated",
    channels: Sequence[int] | None = None,
    prompt: str = "",
    seed: int = 0,
) -> NDArray[np.float32]:
    """Return spatial maps of what `blocks` compute for noised images.

    A few massive channels dominate every distance between raw tokens, so every recipe except "raw"
    sets them to zero.

    Args:
        pipeline: a diffusers pipeline of a family that `intaglio export` knows.
        images: [N, H, W, 3] from 0 to 1; sides are multiples of a token's pixels.
        blocks: the blocks; their maps are concatenated along the channels.
        sigma: the share of noise that is added, from 0 to 1.
        recipe: "raw" is the image stream after the block. "discarded" is the stream without massive
            channels. "modulated" is AdaLN's output in the block without massive channels, which
            depends on the timestep (DiTF, arXiv 2505.18584). "normalised" is "discarded" with each
            token scaled to length 1, so that blocks of different magnitude can be joined.
        channels: the channels to discard; None discards those that are massive in the stream after
            the block on these images.
        prompt: the prompt that the model gets.
        seed: the seed of the noise; image i has seed + i.

    Returns:
        [N, rows, columns, len(blocks) * C] float32.

    Raises:
        ValueError: an argument is invalid; the message says which.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"images of shape {images.shape} are invalid: pass [N, H, W, 3] from 0 to 1."
        )
    adapter = _adapter(pipeline, blocks, recipe, channels)
    found = _run(adapter, images, sigma, prompt, seed, blocks, recipe)
    maps = [_without_massive(*found[block], recipe, channels) for block in blocks]
    rows, columns = _grid(adapter, images)
    return np.concatenate(maps, axis=-1).reshape(len(images), rows, columns, -1)


def massive_channels(hidden_states: NDArray[np.floating]) -> list[int]:
    """Return the channels that are massive in rows [N, T, C] of one block."""
    found = np.mean([measure(np.abs(row)).massive for row in hidden_states], axis=0)
    return np.flatnonzero(found >= CONDITIONS).tolist()


def _adapter(
    pipeline: Any, blocks: Sequence[int], recipe: str, channels: Sequence[int] | None
) -> Adapter:
    family = adapter_for(type(pipeline).__name__)
    if family is None:
        raise ValueError(
            f"{type(pipeline).__name__} belongs to no family that intaglio export knows."
        )
    adapter = family(pipeline)
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    dtypes = {parameter.dtype for part in parts for parameter in part.parameters()}
    if dtypes != {torch.float32}:
        raise ValueError("Features are float32: load the pipeline with dtype=torch.float32.")
    if recipe not in RECIPES:
        raise ValueError(f"There is no recipe {recipe}; the recipes are {', '.join(RECIPES)}.")
    count = len(adapter.blocks())
    if not blocks or any(not 0 <= block < count for block in blocks):
        raise ValueError(f"blocks {list(blocks)} are invalid: pass some of 0 to {count - 1}.")
    if channels and any(not 0 <= channel < adapter.channels for channel in channels):
        raise ValueError(
            f"channels {list(channels)} are invalid: pass some of 0 to {adapter.channels - 1}."
        )
    return adapter


def _grid(adapter: Adapter, images: NDArray[np.floating]) -> tuple[int, int]:
    unit = adapter.size_multiple
    height, width = images.shape[1:3]
    if height % unit or width % unit:
        raise ValueError(
            f"Images of {height} x {width} are invalid: sides have to be multiples of {unit}."
        )
    return height // unit, width // unit


def _run(
    adapter: Adapter,
    images: NDArray[np.floating],
    sigma: float,
    prompt: str,
    seed: int,
    blocks: Sequence[int],
    recipe: str,
) -> dict[int, tuple[Floats, Floats]]:
    """Return for each block what it computes at the recipe's point, and the image stream after it.

    Both are [N, T, C].
    """
    n = len(images)
    pixels = torch.from_numpy(np.asarray(images, np.float32)).permute(0, 3, 1, 2) * 2 - 1
    layout = adapter.latent()
    clean = (adapter.encode(pixels) - layout.shift_factor) * layout.scaling_factor
    noise = torch.stack(
        [
            torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed + i))
            for i in range(n)
        ]
    )
    grid = _grid(adapter, images)
    timestep, alpha, sigma = _level(adapter, sigma, grid[0] * grid[1])
    latent = alpha * clean + sigma * noise
    latent = pack(latent, adapter.patch_size) if layout.packed else latent
    with quiet():
        length = adapter.defaults().max_sequence_length or 1
        text = encode(adapter, [prompt], length)
    text = {role: value.expand(n, *value.shape[1:]) for role, value in text.items()}
    observed: dict[tuple[str, int], Floats] = {}

    def record(point: str, block: int, tensor: torch.Tensor) -> None:
        if block in blocks:
            observed[point, block] = tensor.float().numpy().copy()

    point = "modulated" if recipe == "modulated" else "after"
    with observing(adapter, record, {point, "after"}):
        adapter.run(
            text
            | fixed_inputs(adapter, n, grid)
            | {"latent": latent, "timestep": torch.full((n,), timestep)}
        )
    return {block: (observed[point, block], observed["after", block]) for block in blocks}


def _level(adapter: Adapter, sigma: float, tokens: int) -> tuple[float, float, float]:
    """Return the scheduler's timestep nearest to `sigma`, and its shares of image and noise."""
    if not 0.0 <= sigma <= 1.0:
        raise ValueError(f"sigma {sigma} is invalid: it is a share of noise, from 0 to 1.")
    scheduler = adapter.scheduler(100, tokens)
    if hasattr(scheduler, "alphas_cumprod"):  # variance preserving
        kept = scheduler.alphas_cumprod
        index = int(((1 - kept).sqrt() - sigma).abs().argmin())
        return float(index), float(kept[index] ** 0.5), float((1 - kept[index]) ** 0.5)
    sigmas = scheduler.sigmas[: len(scheduler.timesteps)]
    index = int((sigmas - sigma).abs().argmin())
    return float(scheduler.timesteps[index]), 1 - float(sigmas[index]), float(sigmas[index])


def _without_massive(
    hidden_states: Floats, stream: Floats, recipe: str, channels: Sequence[int] | None
) -> Floats:
    """Apply the recipe to what a block computes; `stream` decides which channels are massive."""
    if recipe == "raw":
        return hidden_states
    # AdaLN scales the stream, so its output would not show which channels are massive.
    gone = massive_channels(stream) if channels is None else list(channels)
    kept = hidden_states.copy()
    kept[..., gone] = 0.0
    if recipe == "normalised":
        kept /= np.linalg.norm(kept, axis=-1, keepdims=True).clip(1e-6)
    return kept
