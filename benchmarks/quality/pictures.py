"""Pictures and final latents in low precision beside those of float32, on the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import intaglio
from intaglio.analysis.quality import intervals, measures
from intaglio.analysis.quality.judge import Judge

BATCH = 4
SHOWN = 6  # pictures of a strip, each of another prompt
ENLARGED = 3
RESAMPLES = 300
Floats = NDArray[np.float32]


class Drawn:
    """The pictures [N, H, W, 3] from 0 to 1 and final latents [N, C, h, w] of one bundle."""

    def __init__(self, bundle: Path) -> None:
        self._pipeline = intaglio.Pipeline.open(bundle, device="cpu", threads=1)
        self.pictures: list[Floats] = []
        self._latents: list[Floats] = []

    def draw(self, prompt: str, seeds: list[int], steps: int) -> None:
        """Add the pictures of `prompt` with the guidance of the manifest."""
        drawn = self._pipeline.generate(prompt, steps=steps, seeds=seeds)
        self.pictures += [np.asarray(image, np.float32) / 255 for image in drawn.images]
        self._latents += list(np.asarray(drawn.latents))

    def latent_errors(self, exact: Drawn) -> Floats:
        """Return the relative L2 error [N] of final latents."""
        pairs = zip(self._latents, exact._latents, strict=True)
        errors = [np.linalg.norm(got - want) / np.linalg.norm(want) for got, want in pairs]
        return np.array(errors, np.float32)


def draw_all(
    bundles: Mapping[str, Path], judge: Judge, images: int, steps: int
) -> tuple[dict[str, Drawn], NDArray[np.int64]]:
    """Draw `images` of the judge's prompts with each bundle; also return the classes asked for."""
    drawn = {name: Drawn(path) for name, path in bundles.items()}
    labels: list[int] = []
    for first in range(0, images, BATCH):
        which = (first // BATCH) % len(judge.prompts)
        seeds = list(range(first, min(first + BATCH, images)))
        labels += [int(judge.labels[which])] * len(seeds)
        for of in drawn.values():
            of.draw(judge.prompts[which], seeds, steps)
        print(f"{len(labels)} of {images} images", flush=True)
    return drawn, np.array(labels)


def judged(
    judge: Judge, drawn: Mapping[str, Drawn], labels: NDArray[np.int64], exact: str
) -> dict[str, dict[str, Any]]:
    """Return class accuracy and Frechet distance of each, and intervals of the paired difference
    from `exact`; nothing for images that are too few for a covariance of the judge's features."""
    if len(labels) <= judge.reference.shape[1]:
        return {name: {} for name in drawn}

    def frechet(features: intervals.Array) -> float:
        return measures.frechet(measures.moments(features), judge.moments)

    described = {name: judge.describe(np.stack(of.pictures)) for name, of in drawn.items()}
    features, classes = described[exact]
    rows: dict[str, dict[str, Any]] = {}
    for name, (own, found) in described.items():
        rows[name] = {"accuracy": float((found == labels).mean()), "frechet": frechet(own)}
        if name == exact:
            continue
        before, after = ((of == labels).astype(float) for of in (classes, found))
        rows[name]["accuracy_difference"] = intervals.paired_difference(before, after).to_json()
        rows[name]["frechet_difference"] = intervals.bootstrap_difference(
            frechet, features, own, RESAMPLES, seed=0
        ).to_json()
    return rows


def save_strip(of: Drawn, exact: Drawn, path: Path) -> None:
    """Save one picture of each of `SHOWN` prompts, and below it what differs, around grey."""
    shown, expected = (np.stack(d.pictures[::BATCH][:SHOWN]) for d in (of, exact))
    rows = [shown] if of is exact else [shown, np.clip(0.5 + shown - expected, 0, 1)]
    strip = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    image = Image.fromarray(np.rint(strip * 255).astype(np.uint8))
    size = (image.width * ENLARGED, image.height * ENLARGED)
    image.resize(size, Image.Resampling.NEAREST).save(path, optimize=True)
