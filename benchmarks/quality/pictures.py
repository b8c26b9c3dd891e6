"""What quantised weights cost in quality: the shipped model in float32 and in every scheme, on the
same seeds. `python -m benchmarks.scale.quantized BUNDLE SCHEME=BUNDLE... -o OUT [--images N]`

Writes OUT.json (class accuracy, Frechet distance, paired differences from float32 with intervals of
95 %, relative errors of final latents) and OUT.png (the same seeds side by side, and differences).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

import intaglio
from intaglio.analysis.quality import intervals, measures
from intaglio.analysis.quality.judge import Judge

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MODEL = Path("models/fashion-sd3")
STEPS = 8
BATCH = 4
SHOWN = 6
RESAMPLES = 300
Floats = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("schemes", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=600)
    args = parser.parse_args()
    bundles = {"float32": args.bundle} | dict(scheme.split("=") for scheme in args.schemes)
    pipelines = {name: intaglio.Pipeline.open(path, threads=1) for name, path in bundles.items()}
    judge = Judge.open(MODEL / "judge")
    images: dict[str, list[Floats]] = {name: [] for name in bundles}
    latents: dict[str, list[Floats]] = {name: [] for name in bundles}
    labels: list[int] = []
    for first in range(0, args.images, BATCH):
        which = (first // BATCH) % len(judge.prompts)
        labels += [int(judge.labels[which])] * BATCH
        for name, pipeline in pipelines.items():
            drawn = pipeline.generate(
                judge.prompts[which], steps=STEPS, seeds=list(range(first, first + BATCH))
            )
            images[name] += [np.asarray(image, np.float32) / 255 for image in drawn.images]
            latents[name].append(np.asarray(drawn.latents))
        if len(labels) % 200 == 0 or len(labels) >= args.images:  # what is there, if interrupted
            rows = _rows(judge, images, latents, np.array(labels))
            args.output.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")
            print(len(labels), json.dumps(rows), flush=True)
        if len(labels) == SHOWN * BATCH:
            _picture(images, args.output.with_suffix(".png"))


def _rows(
    judge: Judge,
    images: dict[str, list[Floats]],
    latents: dict[str, list[Floats]],
    labels: NDArray[np.int64],
) -> dict[str, Any]:
    def frechet(features: intervals.Array) -> float:
        return measures.frechet(measures.moments(features), judge.moments)

    described = {name: judge.describe(np.stack(rows)) for name, rows in images.items()}
    exact, exact_classes = described["float32"]
    rows: dict[str, Any] = {}
    for name, (features, classes) in described.items():
        got, want = np.concatenate(latents[name]), np.concatenate(latents["float32"])
        errors = np.linalg.norm((got - want).reshape(len(got), -1), axis=1)
        errors /= np.linalg.norm(want.reshape(len(want), -1), axis=1)
        row: dict[str, Any] = {
            "images": len(labels),
            "accuracy": float((classes == labels).mean()),
            "frechet": frechet(features),
            "latents_error": {"median": float(np.median(errors)), "largest": float(errors.max())},
        }
        if name != "float32":
            hits, before = (
                (classes == labels).astype(float),
                (exact_classes == labels).astype(float),
            )
            row["accuracy_difference"] = intervals.paired_difference(before, hits).to_json()
            row["frechet_difference"] = intervals.bootstrap_difference(
                frechet, exact, features, RESAMPLES, seed=0
            ).to_json()
        rows[name] = row
    return rows


def _picture(images: dict[str, list[Floats]], path: Path) -> None:
    """One picture of each of `SHOWN` prompts: a row a scheme, its difference from float32 below."""
    exact = images["float32"][::BATCH][:SHOWN]
    rows = [("float32", exact)]
    for name in list(images)[1:]:
        shown = images[name][::BATCH][:SHOWN]
        differences = [np.clip(0.5 + (a - b), 0, 1) for a, b in zip(shown, exact, strict=True)]
        rows += [(name, shown), (f"{name}\n- float32", differences)]
    figure, axes = plt.subplots(len(rows), SHOWN, figsize=(1.2 * SHOWN + 1.2, 1.2 * len(rows)))
    for line, (name, shown) in zip(axes, rows, strict=True):
        for axis, image in zip(line, shown, strict=True):
            axis.imshow(image, vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
