"""Features of images from the blocks of a DiT, for correspondence and probing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio_export.adapters import adapter_for
from intaglio_export.adapters.base import Adapter, Inputs
from intaglio_export.adapters.observing import observing
from intaglio_export.adapters.packing import pack
from intaglio_export.calibration.calibrate import encode, fixed_inputs
from intaglio_export.calibration.massive import CONDITIONS, measure
from intaglio_export.support.quiet import quiet

Floats = NDArray[np.float32]

RECIPES = ("raw", "discarded", "normalised", "modulated", "mrep")
_MODULATED = ("modulated", "mrep")


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
    max_sequence_length: int | None = None,
    seed: int = 0,
    noises: int = 1,
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
            channels. "normalised" is "discarded" with each token scaled to length 1, so that blocks
            of different magnitude can be joined. "modulated" is AdaLN's output in the block, with
            the modulation of the timestep alone, for a stream whose massive channels were set to
            zero before the LayerNorm (DiTF, arXiv 2505.18584). "mrep" joins "modulated" and the
            maps of the massive channels, each with mean 0 and deviation 1 over the image (after
            MREP, arXiv 2607.02968).
        channels: the channels to discard; None discards those that are massive on these images, in
            the stream that enters the block for "modulated" and "mrep", else in the one after it.
        prompt: the prompt that the model gets.
        max_sequence_length: the tokens of the prompt, as in settings for `intaglio export`; None
            stands for the pipeline's default.
        seed: the seed of the noise; image i has seed + i.
        noises: the features are averaged over so many noises (DiTF takes 8).

    Returns:
        [N, rows, columns, len(blocks) * C] float32; "mrep" adds the massive channels of each block.

    Raises:
        ValueError: an argument is invalid; the message says which.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"images of shape {images.shape} are invalid: pass [N, H, W, 3] from 0 to 1."
        )
    adapter = _adapter(pipeline, blocks, recipe, channels)
    if noises < 1:
        raise ValueError(f"noises {noises} is invalid: pass 1 or more.")
    seeds = [seed + noise * len(images) for noise in range(noises)]
    length = max_sequence_length or adapter.defaults().max_sequence_length or 1
    with quiet():
        text = encode(adapter, [prompt], length)
    runs = [_inputs(adapter, images, sigma, text, first) for first in seeds]
    point = "before" if recipe in _MODULATED else "after"
    streams = [_streams(adapter, inputs, blocks, point) for inputs in runs]
    gone = {
        block: massive_channels(np.concatenate([stream[block] for stream in streams]))
        if channels is None
        else list(channels)
        for block in blocks
    }
    found = [
        _follow(recipe, adapter, inputs, stream, gone)
        for inputs, stream in zip(runs, streams, strict=True)
    ]
    maps = [np.mean([one[block] for one in found], axis=0, dtype=np.float32) for block in blocks]
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


def _inputs(
    adapter: Adapter, images: NDArray[np.floating], sigma: float, text: Inputs, seed: int
) -> Inputs:
    """Return the transformer's inputs for noised images; `text` has one row."""
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
    text = {role: value.expand(n, *value.shape[1:]) for role, value in text.items()}
    fixed = fixed_inputs(adapter, n, grid)
    return text | fixed | {"latent": latent, "timestep": torch.full((n,), timestep)}


def _streams(
    adapter: Adapter, inputs: Inputs, blocks: Sequence[int], point: str
) -> dict[int, Floats]:
    """Return the image stream [N, T, C] before or after each block."""
    found: dict[int, Floats] = {}

    def record(_: str, block: int, tensor: torch.Tensor) -> None:
        if block in blocks:
            found[block] = tensor.float().numpy().copy()

    with observing(adapter, record, {point}):
        adapter.run(inputs)
    return found


class _RecordedError(Exception):
    """What a nested call of a block was made for has been recorded."""


def _modulate(
    adapter: Adapter, inputs: Inputs, entering: Mapping[int, Floats]
) -> dict[int, Floats]:
    """Return AdaLN's output [N, T, C] of each block for other image streams than the run's.

    The modulation is that of the timestep alone: what a pooled prompt adds to it is left out.
    """
    found: dict[int, Floats] = {}

    def record(_: str, block: int, tensor: torch.Tensor) -> None:
        if block in entering and block not in found:
            found[block] = tensor.float().numpy().copy()
            raise _RecordedError

    def call_nested(block: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        named = "hidden_states" in kwargs
        _, others = adapter.split(block, kwargs["hidden_states"] if named else args[0])
        stream = torch.from_numpy(entering[numbers[block]])
        streams = adapter.join(block, stream, others)
        try:
            if named:
                block.forward(*args, **kwargs | {"hidden_states": streams})
            else:
                block.forward(streams, *args[1:], **kwargs)
        except _RecordedError:
            pass

    numbers = {block: k for k, block in enumerate(adapter.blocks()) if k in entering}
    embedder = getattr(adapter.transformer, "time_text_embed", None)
    pooled = getattr(embedder, "text_embedder", None)
    with ExitStack() as stack:
        stack.enter_context(observing(adapter, record, {"modulated"}))
        for block in numbers:
            handle = block.register_forward_pre_hook(call_nested, with_kwargs=True)
            stack.callback(handle.remove)
        if pooled is not None:
            handle = pooled.register_forward_hook(lambda m, args, out: torch.zeros_like(out))
            stack.callback(handle.remove)
        adapter.run(inputs)
    return found


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


def _follow(
    recipe: str,
    adapter: Adapter,
    inputs: Inputs,
    streams: Mapping[int, Floats],
    gone: Mapping[int, Sequence[int]],
) -> dict[int, Floats]:
    """Apply the recipe to the streams of one run; `gone` are the channels to discard by block."""
    if recipe == "raw":
        return dict(streams)
    kept = {block: stream.copy() for block, stream in streams.items()}
    for block, stream in kept.items():
        stream[..., gone[block]] = 0.0
        if recipe == "normalised":
            stream /= np.linalg.norm(stream, axis=-1, keepdims=True).clip(1e-6)
    if recipe not in _MODULATED:
        return kept
    modulated = _modulate(adapter, inputs, kept)
    if recipe == "modulated":
        return modulated
    return {
        block: np.concatenate(
            [modulated[block], _spatially_normalised(stream[..., gone[block]])], -1
        )
        for block, stream in streams.items()
    }


def _spatially_normalised(maps: Floats) -> Floats:
    """Give each map of [N, T, C] mean 0 and standard deviation 1 over its tokens."""
    centred = maps - maps.mean(1, keepdims=True)
    normalised: Floats = centred / centred.std(1, keepdims=True).clip(1e-6)
    return normalised
