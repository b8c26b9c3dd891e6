"""Measure a pipeline folder: accuracy, Frechet distance, nearest neighbours, massive channels.

Images come from prompts "a dress", "a dark coat", ... with all classes equally often; an
independent classifier (python -m models.training.classifier, run that first) judges them. The
report is written as JSON.
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
from diffusers import StableDiffusion3Pipeline
from tqdm import tqdm

from intaglio.analysis.quality import frechet, moments

from . import classifier, data, flow, folder, sampling, text, vae


@dataclass
class Bench:
    """The parts of a pipeline folder and the real images that its pictures are compared with."""

    pipeline: StableDiffusion3Pipeline
    judge: classifier.Classifier
    judge_accuracy: float
    held: torch.Tensor
    autocast: bool = False

    @classmethod
    def open(cls, model: Path, work: Path, images: Path, autocast: bool = False) -> Bench:
        """Load everything in float32."""
        judge, accuracy = classifier.load(work)
        pipeline = folder.load(model)
        # The same function for equal zero rows, and half the time; a test compares the two.
        pipeline.transformer.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
        held = data.to_pixels(data.load_split(images, "t10k").images)
        features, _ = classifier.describe(judge, held)
        return cls(pipeline, judge, accuracy, features, autocast)

    def prompts(self, captions: list[str]) -> sampling.Prompt:
        """Embed `captions` as the pipeline does, one row for all its zero rows."""
        p = self.pipeline
        words, pooled = text.encode(
            [p.tokenizer, p.tokenizer_2], [p.text_encoder, p.text_encoder_2], captions
        )
        return sampling.Prompt(words[:, : text.MAX_LENGTH + 1], pooled)

    def generate(
        self, labels: torch.Tensor, seed: int, batch: int = 200, **how: Any
    ) -> torch.Tensor:
        """Pixels [n, 1, 32, 32] for `labels` [n]; `how` goes to `sampling.sample`.

        Half of the prompts name only the class and half also a tone. The same seed gives the same
        noise and prompts whatever `how` is, so two settings can be compared image by image.
        """
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(labels), 4, 16, 16, generator=generator)
        tone = (torch.randint(4, (len(labels),), generator=generator) - 1).clamp(min=0)
        captions = [data.caption(c, t) for c, t in zip(labels.tolist(), tone.tolist(), strict=True)]
        latents = []
        for start in range(0, len(labels), batch):
            rows = slice(start, start + batch)
            cond = self.prompts(captions[rows])
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                latents.append(
                    sampling.sample(
                        self.pipeline.transformer,
                        flow.build_scheduler(),
                        noise[rows],
                        cond,
                        self.prompts([""] * len(cond.words)),
                        **how,
                    )
                )
        return vae.decode_latents(self.pipeline.vae, torch.cat(latents))


def balanced_labels(n: int) -> torch.Tensor:
    """[n] int64: the ten classes in turn."""
    return torch.arange(n) % len(data.NAMES)


def quality(bench: Bench, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Share of `pixels` [n, 1, 32, 32] that the judge puts in their class, and Frechet distance."""
    features, predicted = classifier.describe(bench.judge, pixels)
    distance = frechet(moments(features.double().numpy()), moments(bench.held.double().numpy()))
    return {
        "accuracy": (predicted == labels).float().mean().item(),
        "frechet": distance,
        "images": len(pixels),
    }


def nearest(pixels: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """Root mean square pixel distance [n] of each of `pixels` [n, ...] to its nearest neighbour."""
    a, b = pixels.flatten(1), training.flatten(1)
    best = torch.full((len(a),), torch.inf)
    for chunk in b.split(10000):
        best = torch.minimum(best, torch.cdist(a, chunk).min(1).values)
    return best / a.shape[1] ** 0.5


@torch.no_grad()
def activations(bench: Bench, n: int = 40, steps: int = 12, seed: int = 900) -> dict[str, Any]:
    """Massive-channel statistics of the conditional branch, per block and solver step.

    For each block and step: the mean |z| of every channel over tokens and prompts, its ratio to the
    median channel's, and `agreement`, the share of tokens on which the top channel is at least
    twice that token's median channel.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, 4, 16, 16, generator=generator)
    labels = balanced_labels(n)
    cond = bench.prompts([data.caption(c) for c in labels.tolist()])
    transformer = bench.pipeline.transformer
    seen: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda m, a, out: seen.append(out[1].float().abs()))
        for block in transformer.transformer_blocks
    ]
    try:
        sampling.sample(transformer, flow.build_scheduler(), latents, cond, steps=steps)
    finally:
        for handle in handles:
            handle.remove()
    blocks = len(transformer.transformer_blocks)
    cells = []
    for i, z in enumerate(seen):
        mean = z.mean((0, 1))
        ratio = mean / mean.median()
        order = ratio.argsort(descending=True)
        top = z[..., order[0]]
        agreement = (top > 2.0 * z.median(-1).values).float().mean().item()
        cells.append(
            {
                "block": i % blocks,
                "step": i // blocks,
                "sigma": 1.0 - (i // blocks) / steps,
                "channels": order[:8].tolist(),
                "ratios": [round(v, 2) for v in ratio[order[:8]].tolist()],
                "agreement": round(agreement, 3),
                "max_abs": round(z.max().item(), 2),
                "median_abs": round(mean.median().item(), 4),
            }
        )
    mean = torch.stack([z.mean((0, 1)) / z.mean((0, 1)).median() for z in seen])
    mean = mean.view(-1, blocks, mean.shape[-1]).mean(0)
    order = mean.argsort(-1, descending=True)
    return {"steps": steps, "prompts": n, "cells": cells, "channels_by_block": order.tolist()}


def neighbours(images: Path, pixels: torch.Tensor) -> dict[str, float]:
    """Median distance to the training set, of generated `pixels` and of as many held-out images."""
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
    """[n, 1, 32, 32] in [-1, 1] -> one uint8 picture, row by row."""
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
    p.add_argument("--work", type=Path, default=Path("build/training"), help="where the judge is")
    p.add_argument("--data", type=Path, default=data.DEFAULT_DATA)
    p.add_argument("--images", type=int, default=2000, help="images for each guidance scale")
    p.add_argument("--steps", type=int, default=28)
    p.add_argument("--cfg-scales", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    p.add_argument("--seed", type=int, default=700)
    p.add_argument("--bf16", action="store_true", help="autocast to bfloat16: faster")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("-o", "--out", type=Path, default=Path("build/training/evaluation.json"))
    args = p.parse_args(argv)
    if args.images <= classifier.FEATURES:
        p.error(f"--images: a Frechet distance needs more than {classifier.FEATURES}")
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
