"""Measure emoji-sd3 on prompts that it was trained on and on held-out ones, and its channels.

Pictures of each split are drawn on white with CFG and without Detail Guidance, and the judge (train
it first) names them. Real pictures of the same prompts are measured beside them. --work gets
evaluation.json and a sheet of each split.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio.analysis.quality import intervals, measures
from intaglio.analysis.quality.judge import Judge
from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model
from intaglio_export.errors import ExportError
from intaglio_export.sources import open_source
from models.training import data, evaluate, flow, text

from . import judge as judging
from . import packages, pictures, watch
from .examples import MAX_LENGTH, Examples
from .pictures import Emoji

SPLITS = {"trained": "train", "held-out pairs": "pair", "held-out names": "name"}
SHEET = 48  # pictures of each split that are kept to look at
RESAMPLES = 200
Json = dict[str, Any]
Pixels = NDArray[np.float32]


def draw(adapter: Any, prompts: list[str], method: Method, steps: int) -> Pixels:
    """Return one picture [n, 64, 64, 3] from 0 to 1 for each prompt, from fixed seeds."""
    model = Model(adapter, prompts, text.MAX_SEQUENCE_LENGTH)
    model.shorten(MAX_LENGTH + 1)
    parts = []
    for start in range(0, len(prompts), 40):
        seeds = range(start, min(start + 40, len(prompts)))
        parts.append(model.images(model.sample(method.predictor(model), seeds, steps)))
    return np.clip(np.concatenate(parts), 0.0, 1.0)


def named(judge: Judge, images: Pixels, emoji: list[Emoji], kinds: dict[str, str]) -> Json:
    """Return the shares of pictures whose name and kind the judge finds right, with intervals.

    A held-out name is none of the judge's classes, so only its kind can be right.
    """
    _, found = judge.describe(images)
    names = [judge.classes[i] for i in found]
    known = [i for i, one in enumerate(emoji) if one.name in kinds]
    right = np.array([names[i] == emoji[i].name for i in known], np.float64)
    kind = np.array([kinds[n] == e.kind for n, e in zip(names, emoji, strict=True)], np.float64)
    row: Json = {"images": len(images), "kind": intervals.share_interval(kind).to_json()}
    if len(known) > 1:
        row["name"] = intervals.share_interval(right).to_json()
    return row


def frechet_gap(judge: Judge, drawn: Pixels, real: Pixels) -> Json:
    """Return how much farther than real pictures of the same prompts drawn ones are from the
    held-out pictures, by the Fréchet distance, with its interval.

    Both sets have the same size, and neither is a part of the held-out pictures.
    """

    def distance(features: NDArray[np.float32]) -> float:
        return measures.frechet(measures.moments(features), judge.moments)

    a, b = (judge.describe(images)[0] for images in (real, drawn))
    return intervals.bootstrap_difference(distance, a, b, RESAMPLES, seed=0).to_json()


def split_rows(args: argparse.Namespace, adapter: Any, judge: Judge) -> Json:
    """Return the measures of drawn and real pictures of each split."""
    every = pictures.load(args.work)
    kinds = {one.name: one.kind for one in every.of("train").emoji}
    train = Examples.of(every.of("train"))
    # A copy may be of either variant on white, the second of which is shifted or mirrored.
    trained = torch.cat([judging.on_white(train, variant) for variant in (0, 1)])
    rows: Json = {}
    for title, split in SPLITS.items():
        examples = Examples.of(every.of(split))
        chosen = judging.once(examples.pictures.emoji)[: args.images]
        emoji = [examples.pictures.emoji[i] for i in chosen]
        prompts = [judging.prompt(one) for one in emoji]
        drawn = draw(adapter, prompts, Method(args.cfg_scale), args.steps)
        real = judging.on_white(examples)[chosen]
        as_pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1
        shown = {"drawn": drawn, "real": ((real + 1) / 2).permute(0, 2, 3, 1).numpy()}
        rows[title] = {}
        for source, pixels in (("drawn", as_pixels), ("real", real)):
            row = named(judge, shown[source], emoji, kinds)
            if source == "drawn" or split != "train":
                near = evaluate.nearest(pixels, trained)
                row["nearest"] = {"median": near.median().item(), "5 %": near.quantile(0.05).item()}
            rows[title][source] = row
        if split == "train":
            rows[title]["drawn"]["frechet"] = frechet_gap(judge, shown["drawn"], shown["real"])
        images = watch.to_images(as_pixels[:SHEET])
        watch.labelled(images, prompts[:SHEET], args.work / "sheets" / f"{split}.png", 12)
    return rows


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m models.training.emoji.evaluate", description=__doc__
    )
    p.add_argument("--model", type=Path, default=Path("models/emoji-sd3"))
    p.add_argument("--work", type=Path, default=packages.default_cache())
    p.add_argument("--images", type=int, default=400, help="pictures of each split, at most")
    p.add_argument("--steps", type=int, default=28)
    p.add_argument("--cfg-scale", type=float, default=4.0)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        judge = Judge.open(args.model / "judge")
        adapter = open_source(args.model).adapter
        adapter.transformer.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
        with torch.autocast("cpu", torch.bfloat16):
            rows = split_rows(args, adapter, judge)
    except (data.DataError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    report = {"steps": args.steps, "cfg_scale": args.cfg_scale, "splits": rows}
    (args.work / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    for title, row in rows.items():
        print(f"{title}: {json.dumps(row)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
