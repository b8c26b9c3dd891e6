"""Measure how well features find the same place in a moved picture.

    python -m models.training.correspondence --images 400

Each held-out picture is moved by whole tokens, and half of them are mirrored, so that the right
place of every token is known. A token is found if the most similar token of the moved picture is at
most a tenth of the side away from that place (PCK at 0.1). The second model is the shipped one with
a massive channel, which is planted in the stream that enters the block and differs between tokens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio.analysis import features
from intaglio.analysis.block_features import RECIPES
from intaglio.analysis.quality.intervals import mean_interval

from . import data, pipeline_folder

Floats = NDArray[np.floating[Any]]
PLANTED, SIZE, SPREAD = 30, 100.0, 20.0  # the channel, its mean and deviation over tokens
NEAR = 0.1  # of the side
DRAWN = 0.1  # a token brighter than this shows a part of the garment
PIXELS = 4  # of a token's side
FARTHEST = 2  # tokens along each axis


def move(image: Floats, mirrored: bool, rows: int, columns: int) -> Floats:
    """Return the image [H, W, 3] mirrored, then moved; what comes in is black."""
    image = image[:, ::-1] if mirrored else image
    moved = np.zeros_like(image)
    height, width = image.shape[:2]
    to_r, to_c = max(rows, 0), max(columns, 0)
    from_r, from_c = max(-rows, 0), max(-columns, 0)
    h, w = height - abs(rows), width - abs(columns)
    moved[to_r : to_r + h, to_c : to_c + w] = image[from_r : from_r + h, from_c : from_c + w]
    return moved


def found(source: Floats, moved: Floats, image: Floats, warp: tuple[bool, int, int]) -> float:
    """Return the share of the garment's tokens that are found; maps are [rows, columns, C]."""
    mirrored, down, right = warp
    side = len(source)
    tokens = image.mean(-1).reshape(side, PIXELS, side, PIXELS).mean((1, 3))
    a, b = (f.reshape(-1, f.shape[-1]) for f in (source, moved))
    a, b = (f / np.linalg.norm(f, axis=1, keepdims=True).clip(1e-9) for f in (a, b))
    best = (a @ b.T).argmax(1).reshape(side, side)
    hits = []
    for r, c in np.argwhere(tokens > DRAWN):
        row, column = r + down, (side - 1 - c if mirrored else c) + right
        if 0 <= row < side and 0 <= column < side:
            at = divmod(int(best[r, c]), side)
            hits.append(np.hypot(at[0] - row, at[1] - column) <= NEAR * side)
    return float(np.mean(hits)) if hits else np.nan


def plant(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Make channel PLANTED of a block's image stream massive."""
    stream = kwargs["hidden_states"].clone()
    stream[..., PLANTED] += SIZE + SPREAD * torch.randn(stream.shape[:2])
    return args, kwargs | {"hidden_states": stream}


def measure(pipeline: Any, images: Floats, block: int, sigma: float, noises: int) -> None:
    """Print a row for each recipe."""
    random = np.random.default_rng(0)
    shifts = random.integers(-FARTHEST, FARTHEST + 1, (len(images), 2))
    warps = [(i % 2 == 1, int(r), int(c)) for i, (r, c) in enumerate(shifts)]
    moved = np.stack(
        [
            move(image, mirrored, r * PIXELS, c * PIXELS)
            for image, (mirrored, r, c) in zip(images, warps, strict=True)
        ]
    )
    how: dict[str, Any] = {"blocks": [block], "sigma": sigma, "noises": noises}
    for recipe in RECIPES:
        a = features(pipeline, images, **how, recipe=recipe)
        b = features(pipeline, moved, **how, recipe=recipe, seed=10**6)
        shares = np.array([found(*one) for one in zip(a, b, images, warps, strict=True)])
        pck = mean_interval(shares[~np.isnan(shares)])
        print(f"| {recipe} | {pck.measured:.3f} [{pck.low:.3f}, {pck.high:.3f}] |", flush=True)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m models.training.correspondence", description=__doc__.split("\n")[0]
    )
    p.add_argument("--model", type=Path, default=Path("models/fashion-sd3"))
    p.add_argument("--data", type=Path, default=data.DEFAULT_DATA)
    p.add_argument("--images", type=int, default=400)
    p.add_argument("--block", type=int, default=4)
    p.add_argument("--sigma", type=float, default=0.25)
    p.add_argument("--noises", type=int, default=8)
    args = p.parse_args(argv)
    try:
        split = data.load_split(args.data, "t10k", args.images)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    pixels = (data.to_pixels(split.images) / 2 + 0.5).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    pipeline = pipeline_folder.load(args.model)
    torch.manual_seed(0)  # of what is planted
    for planted in (False, True):
        if planted:
            block = pipeline.transformer.transformer_blocks[args.block]
            block.register_forward_pre_hook(plant, with_kwargs=True)
        print(f"| {'planted' if planted else 'shipped'} | PCK at {NEAR} |\n|---|---|")
        measure(pipeline, pixels.numpy(), args.block, args.sigma, args.noises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
