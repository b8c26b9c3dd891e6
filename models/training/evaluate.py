"""Measure a pipeline folder: accuracy, Fréchet distance, nearest neighbours, massive channels.

Prompts are "a dress", "a dark coat" and so on, with every class equally often. An independent
classifier judges the images; train it first with `python -m models.training.classifier`. The report
is written as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from intaglio.analysis.quality.measures import frechet, moments
from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model, Step
from intaglio_export.adapters import SD3Adapter
from intaglio_export.adapters.base import Inputs
from intaglio_export.adapters.observing import observing

from . import classifier, data, flow, pipeline_folder, text, vae

# Prompts: every class alone, dark and light.
CAPTIONS = [data.caption(label, tone) for tone in range(3) for label in range(len(data.NAMES))]


@dataclass
class Bench:
    """A model to measure, the judge, and the judge's features of held-out real images."""

    model: Model
    judge: classifier.Classifier
    judge_accuracy: float
    held: torch.Tensor
    autocast: bool = False

    @classmethod
    def open(cls, folder: Path, work: Path, images: Path, autocast: bool = False) -> Bench:
        """Load everything in float32; `autocast` runs the transformer in bfloat16."""
        judge, accuracy = classifier.load(work)
        pipeline = pipeline_folder.load(folder)
        # One zero row stands for all of a prompt's, which takes half the time.
        pipeline.transformer.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
        model = Model(SD3Adapter(pipeline), CAPTIONS, text.MAX_SEQUENCE_LENGTH)
        model.shorten(text.MAX_LENGTH + 1)
        held = data.to_pixels(data.load_split(images, "t10k").images)
        features, _ = classifier.describe(judge, held)
        return cls(model, judge, accuracy, features, autocast)

    def generate(
        self, labels: torch.Tensor, seed: int, steps: int, cfg_scale: float, batch: int = 200
    ) -> torch.Tensor:
        """Draw pixels [n, 1, 32, 32] for `labels` [n].

        Half of the prompts name only the class and half also a tone. The same seed gives the same
        noise and prompts for every guidance scale, so scales can be compared image by image.
        """
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(labels), 4, 16, 16, generator=generator)
        tone = (torch.randint(4, (len(labels),), generator=generator) - 1).clamp(min=0)
        prompts = (tone * len(data.NAMES) + labels).tolist()
        predict = Method(cfg_scale).predictor(self.model)
        latents = []
        for start in range(0, len(labels), batch):
            rows = slice(start, start + batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                latents.append(self.model.denoise(predict, noise[rows], prompts[rows], steps))
        return vae.decode_latents(self.model.adapter.pipeline.vae, torch.cat(latents))


def balanced_labels(n: int) -> torch.Tensor:
    """Return [n] int64 labels that go through the ten classes in turn."""
    return torch.arange(n) % len(data.NAMES)


def quality(bench: Bench, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return the accuracy of `pixels` [n, 1, 32, 32] by the judge, and their Fréchet distance."""
    features, predicted = classifier.describe(bench.judge, pixels)
    distance = frechet(moments(features.double().numpy()), moments(bench.held.double().numpy()))
    return {
        "accuracy": (predicted == labels).float().mean().item(),
        "frechet": distance,
        "images": len(pixels),
    }


def nearest(pixels: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """Return the RMS distance [n] of each of `pixels` [n, ...] to its nearest training image."""
    a, b = pixels.flatten(1), training.flatten(1)
    best = torch.full((len(a),), torch.inf)
    for chunk in b.split(10000):
        best = torch.minimum(best, torch.cdist(a, chunk).min(1).values)
    return best / a.shape[1] ** 0.5


def activations(bench: Bench, n: int = 40, steps: int = 12, seed: int = 900) -> dict[str, Any]:
    """Measure massive-channel statistics of the conditional branch, per block and solver step.

    A cell has the largest channels by mean |z| over tokens and prompts, their ratios to the median
    channel, and `agreement`, the share of tokens on which the top channel is more than twice that
    token's median channel.
    """
    model = bench.model
    noise = torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    prompts = balanced_labels(n).tolist()  # without a tone
    cells, ratios = [], []

    def predict(step: Step, conditional: Inputs, null: Inputs) -> torch.Tensor:
        def record(point: str, block: int, hidden_states: torch.Tensor) -> None:
            size = hidden_states.float().abs()
            mean = size.mean((0, 1))
            ratios.append(mean / mean.median())
            cells.append(_position(block, step) | _cell(size, ratios[-1]))

        with observing(model.adapter, record, ["after"]):
            return unguided(step, conditional, null)

    unguided = Method().predictor(model)
    model.denoise(predict, noise, prompts, steps)
    mean = torch.stack(ratios)
    mean = mean.view(-1, model.blocks, mean.shape[-1]).mean(0)
    order = mean.argsort(-1, descending=True)
    return {"steps": steps, "prompts": n, "cells": cells, "channels_by_block": order.tolist()}


def _position(block: int, step: Step) -> dict[str, Any]:
    return {"block": block, "step": step.index, "sigma": 1.0 - step.index / step.steps}


def _cell(size: torch.Tensor, ratio: torch.Tensor) -> dict[str, Any]:
    """Return the figures of one block at one step, from |z| [n, T, C] and each channel's ratio."""
    order = ratio.argsort(descending=True)
    top = size[..., order[0]]
    agreement = (top > 2.0 * size.median(-1).values).float().mean().item()
    return {
        "channels": order[:8].tolist(),
        "ratios": [round(v, 2) for v in ratio[order[:8]].tolist()],
        "agreement": round(agreement, 3),
        "max_abs": round(size.max().item(), 2),
        "median_abs": round(size.mean((0, 1)).median().item(), 4),
    }


def neighbours(images: Path, pixels: torch.Tensor) -> dict[str, float]:
    """Return distances to the training set of generated `pixels` and of as many held-out images."""
    training = data.to_pixels(data.load_split(images, "train").images)
    held = data.to_pixels(data.load_split(images, "t10k", len(pixels)).images)
    ours, theirs = nearest(pixels, training), nearest(held, training)
    return {
        "generated_median": ours.median().item(),
        "held_out_median": theirs.median().item(),
        "generated_5_percent": ours.quantile(0.05).item(),
        "held_out_5_percent": theirs.quantile(0.05).item(),
        "images": len(pixels),
    }


def grid(pixels: torch.Tensor, columns: int) -> np.ndarray:
    """Arrange pixels [n, 1, 32, 32] in [-1, 1] as one uint8 picture, row by row."""
    rows = len(pixels) // columns
    tiles = pixels[: rows * columns].view(rows, columns, 32, 32).permute(0, 2, 1, 3)
    return ((tiles.reshape(rows * 32, columns * 32) + 1) * 127.5).round().byte().numpy()


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m models.training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", type=Path, default=Path("models/fashion-sd3"), help="pipeline folder")
    p.add_argument("--work", type=Path, default=Path("build/training"), help="folder of the judge")
    p.add_argument("--data", type=Path, default=data.DEFAULT_DATA)
    p.add_argument("--images", type=int, default=2000, help="images for each guidance scale")
    p.add_argument("--steps", type=int, default=28)
    p.add_argument("--cfg-scales", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    p.add_argument("--seed", type=int, default=700)
    p.add_argument("--bf16", action="store_true", help="autocast to bfloat16, which is faster")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("-o", "--out", type=Path, default=Path("build/training/evaluation.json"))
    args = p.parse_args(argv)
    if args.images <= classifier.FEATURES:
        p.error(f"--images: a Fréchet distance needs more than {classifier.FEATURES} images")
    torch.set_num_threads(args.threads)
    try:
        bench = Bench.open(args.model, args.work, args.data, args.bf16)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    labels = balanced_labels(args.images)
    report: dict[str, Any] = {"judge_accuracy": bench.judge_accuracy, "steps": args.steps}
    for scale in tqdm(args.cfg_scales, "guidance scales"):
        start = time.monotonic()
        pixels = bench.generate(labels, args.seed, steps=args.steps, cfg_scale=scale)
        row = quality(bench, pixels, labels) | {"seconds": time.monotonic() - start}
        row["neighbours"] = neighbours(args.data, pixels[:1000])
        report[f"cfg_scale {scale:g}"] = row
        print(f"cfg_scale {scale:g}: {row}")
        import matplotlib.image

        matplotlib.image.imsave(
            args.out.with_name(f"{args.out.stem}-cfg{scale:g}.png"),
            grid(pixels[:100], 10),
            cmap="gray",
        )
    report["activations"] = activations(bench)
    args.out.write_text(json.dumps(report, indent=1))
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
