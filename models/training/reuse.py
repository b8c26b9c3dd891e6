"""Measure what delta reuse does to the shipped model's pictures and times.

    python -m models.training.reuse BUNDLE -o build/reuse --picture docs/performance/reuse.png

docs/performance-reuse.md has the results. The schedules take turns on the same seeds, so that they
can be compared pair by pair. Pictures are kept in the folder: the same command continues where it
was stopped, and commands with other values of `--first` share the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import intaglio
from intaglio.analysis.quality.intervals import bootstrap_difference, paired_difference
from intaglio.analysis.quality.judge import Judge
from intaglio.analysis.quality.measures import frechet, moments, precision_recall

STEPS, BATCH = 28, 8
MODEL = Path("models/fashion-sd3")
# `python -m intaglio.analysis.reuse models/fashion-sd3 --steps 28` prints the schedule of the 3 %
# budget; the other one makes CFG+DG as cheap as CFG.
SCHEDULES: dict[str, dict[str, Any]] = {
    "CFG": {"dg_scale": 0.0},
    "exact": {},
    "budget 3 %": {"reuse_interval": 2, "reuse_window": (0.375, 0.8393)},
    "cost of CFG": {"reuse_interval": 3, "reuse_window": (0.3036, 0.9107)},
}


def draw(pipeline: intaglio.Pipeline, judge: Judge, first: int, folder: Path) -> None:
    """Draw `BATCH` seeds from `first` on with each schedule, and keep what was measured."""
    path = folder / f"{first}.npz"
    if path.exists():
        return
    values: dict[str, Any] = {}
    index = first // BATCH % len(judge.prompts)
    for name, options in SCHEDULES.items():
        began = time.perf_counter()
        got = pipeline.generate(
            judge.prompts[index], seeds=range(first, first + BATCH), steps=STEPS, **options
        )
        pixels = np.stack([np.asarray(image) for image in got.images])
        features, classes = judge.describe(pixels / np.float32(255))
        values |= {
            f"{name}/features": features,
            f"{name}/right": classes == judge.labels[index],
            f"{name}/latents": got.latents,
            f"{name}/images": pixels,
            f"{name}/rows": np.array([got.base_rows, got.forked_rows]),
            f"{name}/seconds": np.array(got.timings.denoise),
        }
        print(first, name, f"{time.perf_counter() - began:.1f} s", flush=True)
    unfinished = folder / f"unfinished-{first}.npz"
    np.savez(unfinished, **values)
    unfinished.rename(path)


def summary(folder: Path, judge: Judge) -> dict[str, Any]:
    """Return each schedule's measures, and its differences from the exact run with intervals."""
    parts = [dict(np.load(path)) for path in sorted(folder.glob("[0-9]*.npz"))]
    out: dict[str, Any] = {"images": len(parts) * BATCH, "steps": STEPS, "batch": BATCH}

    def joined(name: str, value: str) -> Any:
        return np.concatenate([np.atleast_1d(part[f"{name}/{value}"]) for part in parts])

    def distance(features: Any) -> float:
        return frechet(moments(features), judge.moments)

    exact = joined("exact", "features")
    for name in SCHEDULES:
        features = joined(name, "features")
        precision, recall = precision_recall(judge.neighbours, features)
        ratios = joined(name, "seconds") / joined("CFG", "seconds")
        latents, target = (joined(n, "latents").reshape(len(features), -1) for n in (name, "exact"))
        off = np.linalg.norm(latents - target, axis=1) / np.linalg.norm(target, axis=1)
        row = {
            "frechet": distance(features),
            "precision": precision,
            "recall": recall,
            "accuracy": float(joined(name, "right").mean()),
            "rows": (parts[0][f"{name}/rows"] / (BATCH * STEPS)).tolist(),
            "ratio_to_cfg": np.quantile(ratios, (0.5, 0.25, 0.75)).tolist(),
            "latents_off": float(np.median(off)),
        }
        if name != "exact":
            right = (joined(n, "right").astype(float) for n in ("exact", name))
            row["frechet_minus_exact"] = bootstrap_difference(
                distance, exact, features, resamples=400, seed=0
            ).to_json()
            row["accuracy_minus_exact"] = paired_difference(*right).to_json()
        out[name] = row
    return out


def picture(folder: Path, path: Path) -> None:
    """Draw eight seeds: exact, with each schedule, and five times their difference."""
    import matplotlib.pyplot as plt

    parts = [dict(np.load(file)) for file in sorted(folder.glob("[0-9]*.npz"))[:8]]
    images = {name: np.concatenate([p[f"{name}/images"][:1] for p in parts]) for name in SCHEDULES}
    exact = images["exact"].astype(float)
    shown = {"CFG": images["CFG"], "CFG+DG, exact": images["exact"]}
    for name in ("budget 3 %", "cost of CFG"):
        shown[f"reuse, {name}"] = images[name]
        apart = 128 + 5 * (images[name].astype(float) - exact)
        shown[f"5 times what {name} changes"] = apart.clip(0, 255).astype(np.uint8)
    figure, axes = plt.subplots(len(shown), len(exact), figsize=(9, 7))
    for row, (name, pictures) in zip(axes, shown.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for axis, one in zip(row, pictures, strict=True):
            axis.imshow(one, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--first", type=int, default=8000, help="first seed, a multiple of 8")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--picture", type=Path)
    flags = parser.parse_args()
    flags.output.mkdir(parents=True, exist_ok=True)
    judge = Judge.open(MODEL / "judge")
    pipeline = intaglio.Pipeline.open(flags.bundle, device="cpu", threads=1)
    for first in range(flags.first, flags.first + flags.images, BATCH):
        draw(pipeline, judge, first, flags.output)
    report = summary(flags.output, judge)
    (flags.output / "reuse.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    if flags.picture:
        picture(flags.output, flags.picture)


if __name__ == "__main__":
    main()
