"""Compare the recipes of `intaglio.analysis.features` on the shipped model.

For each recipe the class of real held-out images is predicted from the nearest neighbour and by a
linear probe.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from intaglio.analysis import features
from intaglio.analysis.block_features import RECIPES
from intaglio.analysis.quality.intervals import mean_interval

from . import data, pipeline_folder

RIDGE = 1.0


def nearest(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the class [M] of the training row with the largest cosine similarity."""
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (test, train))
    return labels[(a @ b.T).argmax(1)]


def linear(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the class [M] by ridge regression onto one-hot labels."""
    mean, scale = train.mean(0), train.std(0) + 1e-6
    x = np.c_[(train - mean) / scale, np.ones(len(train))]
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ np.eye(10)[labels])
    return (np.c_[(test - mean) / scale, np.ones(len(test))] @ weights).argmax(1)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.features", description=__doc__)
    p.add_argument("--model", type=Path, default=Path("models/fashion-sd3"))
    p.add_argument("--data", type=Path, default=data.DEFAULT_DATA)
    p.add_argument(
        "--images", type=int, default=1000, help="images to learn from; as many are tested"
    )
    p.add_argument("--block", type=int, default=4)
    p.add_argument("--sigma", type=float, default=0.25)
    p.add_argument("--channels", type=int, nargs="+", default=[104, 109, 143])
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        split = data.load_split(args.data, "t10k", 2 * args.images)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    pixels = (data.to_pixels(split.images) / 2 + 0.5).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    pipeline = pipeline_folder.load(args.model)
    half = args.images
    print("| recipe | nearest neighbour | linear probe |\n|---|---|---|")
    for recipe in RECIPES:
        maps = np.concatenate(
            [
                features(
                    pipeline,
                    part.numpy(),
                    blocks=[args.block],
                    sigma=args.sigma,
                    recipe=recipe,
                    channels=args.channels,
                ).mean((1, 2))
                for part in pixels.split(100)
            ]
        )
        cells = []
        for judge in (nearest, linear):
            found = judge(maps[:half], split.labels[:half], maps[half:])
            right = mean_interval((found == split.labels[half:]).astype(np.float64))
            cells.append(f"{right.measured:.3f} [{right.low:.3f}, {right.high:.3f}]")
        print(f"| {recipe} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
