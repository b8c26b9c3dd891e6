"""Measure what skipping steps does to the shipped model, beside diffusers' caches.

    python -m models.training.skipping BUNDLE -o build/skipping

docs/performance.md has the results. Errors are those of the final latents, relative to the
exact run of the same seed and as many steps. diffusers' hooks run on the torch model with their
best settings for as many evaluations, which other seeds chose. What was measured is kept in the
folder, and the same command continues there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import intaglio
from intaglio.analysis.quality.intervals import bootstrap_difference
from intaglio.analysis.quality.judge import Judge
from intaglio.analysis.quality.measures import frechet, moments
from intaglio.analysis.skip_schedules import Trajectory
from intaglio.analysis.skipping import BATCH, open_model
from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model
from models.training.skipping_peers import (
    CHOOSING,
    Values,
    magcache,
    magcache_settings,
    procache,
    procache_settings,
    sample,
    taylorseer,
    taylorseer_settings,
)  # fmt: skip

MODEL = Path("models/fashion-sd3")
MEMBERS = 8  # of a batch of the runtime


def draw(
    pipeline: intaglio.Pipeline, judge: Judge, seeds: Sequence[int], options: dict[str, Any]
) -> Values:
    """Draw with the runtime, where each image is a request of its own."""
    batch, waiting = intaglio.Batch(pipeline, MEMBERS), list(seeds)
    drawn: dict[int, intaglio.Generation] = {}
    seed_of: dict[int, int] = {}
    while waiting or len(batch):
        while waiting and batch.images < MEMBERS:
            seed = waiting.pop(0)
            prompt = judge.prompts[seed % len(judge.prompts)]
            seed_of[batch.add(prompt=prompt, seeds=seed, **options)] = seed
        for step in batch.step():
            if step.done:
                drawn[seed_of[step.id]] = step.finish()
    results = [drawn[seed] for seed in seeds]
    pixels = np.concatenate([np.stack([np.asarray(i) for i in r.images]) for r in results])
    return {
        "latents": np.concatenate([np.asarray(r.latents) for r in results]),
        "evaluations": np.array([r.evaluations for r in results]),
        "distances": np.array([r.largest_distance for r in results]),
        "features": judge.describe(pixels / np.float32(255))[0],
    }


# Lists that `intaglio.analysis.skipping` found, by steps and the evaluations asked of it.
OURS: dict[tuple[int, int], dict[str, Any]] = {
    (28, 14): {"skip_steps": [4, 6, 8, 10, 12, 13, 15, 16, 18, 19, 21, 22, 24, 26, 27]},
    (28, 20): {"skip_steps": [9, 12, 14, 16, 18, 20, 23, 27]},
    (50, 23): {
        "skip_steps": [
            4, 6, 8, 10, 12, 13, 15, 16, 18, 19, 21, 22, 24, 25, 27, 28, 30, 31, 33, 34, 35, 37, 38,
            40, 41, 43, 45, 49,
        ]
    },
}  # fmt: skip
COMPARED = 28  # steps of the others' runs
TRIED = 3  # settings of each that are drawn with, of those that should be best


def others(model: Model, method: Method, steps: int, evaluations: int) -> dict[str, Any]:
    """Return the functions that draw with the others, and the settings to choose from."""
    trajectory = Trajectory.of(model, method, CHOOSING, steps)
    return {
        "TaylorSeer, lite (diffusers)": (
            taylorseer, islice(taylorseer_settings(trajectory, steps, evaluations), TRIED)
        ),
        "ProCache's schedule, the same line": (
            procache, islice(procache_settings(trajectory, steps, evaluations), TRIED)
        ),
        "MagCache (diffusers)": (magcache, magcache_settings(model, method, steps, evaluations)),
    }  # fmt: skip


def errors(drawn: Values, exact: Values) -> NDArray[Any]:
    """Return the relative error of each image's latents."""
    off, whole = (
        v.reshape(len(v), -1) for v in (drawn["latents"] - exact["latents"], exact["latents"])
    )
    result: NDArray[Any] = np.linalg.norm(off, axis=1) / np.linalg.norm(whole, axis=1)
    return result


class Store:
    """What was measured, by name, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, make: Any, *arguments: Any) -> Values:
        """Return the values of that name, made only once."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            unfinished = self.folder / f"unfinished-{name}.npz"
            np.savez(unfinished, **make(*arguments))
            unfinished.replace(path)
            print(name, flush=True)
        return dict(np.load(path))


def measure_ours(
    store: Store, pipeline: intaglio.Pipeline, judge: Judge, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Measure the runtime's schedules."""

    def distance(features: Any) -> float:
        return frechet(moments(features), judge.moments)

    rows = []
    for (steps, _), how in OURS.items():
        plain = {"steps": steps}
        exact = store.get(f"exact-{steps}", draw, pipeline, judge, seeds, plain)
        name = f"ours-{steps}-{'-'.join(map(str, how['skip_steps']))}"
        drawn = store.get(name, draw, pipeline, judge, seeds, plain | how)
        gap = bootstrap_difference(
            distance, exact["features"], drawn["features"], resamples=400, seed=0
        )
        row = summary("Intaglio", steps, how, errors(drawn, exact)) | {
            "evaluations": float(drawn["evaluations"].mean()),
            "largest_distance": float(drawn["distances"].max()),
            "frechet_minus_exact": gap.to_json(),
        }
        rows.append(row)
    return rows


def draw_exactly(model: Model, method: Method, seeds: Sequence[int], steps: int) -> Values:
    """Draw with the torch model."""
    parts = [seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)]
    predict = method.predictor(model)
    return {"latents": np.concatenate([sample(model, predict, part, steps) for part in parts])}


def draw_best(
    run: Any, settings: Any, choosing: Values, model: Model, method: Method,
    seeds: Sequence[int], steps: int,
) -> Values:  # fmt: skip
    """Draw with the best of `settings`, which is among the values."""
    tried = [
        (float(np.median(errors(run(model, method, CHOOSING, steps, how), choosing))), how)
        for how in settings
    ]
    how = min(tried, key=lambda one: one[0])[1]
    shown = {key: value for key, value in how.items() if key != "mag_ratios"}
    return run(model, method, seeds, steps, how) | {"settings": np.array(json.dumps(shown))}


def measure_others(store: Store, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Measure the others at as many evaluations."""
    model, method, _ = open_model(MODEL)
    rows = []
    for steps, evaluations in (asked for asked in OURS if asked[0] == COMPARED):
        choosing = store.get(f"choosing-{steps}", draw_exactly, model, method, CHOOSING, steps)
        target = store.get(f"torch-{steps}", draw_exactly, model, method, seeds, steps)
        for name, (run, settings) in others(model, method, steps, evaluations).items():
            tag = f"{run.__name__}-{steps}-{evaluations}"
            drawn = store.get(tag, draw_best, run, settings, choosing, model, method, seeds, steps)
            how = json.loads(str(drawn["settings"]))
            row = summary(name, steps, how, errors(drawn, target))
            rows.append(row | {"evaluations": evaluations})
    return rows


def summary(name: str, steps: int, options: dict[str, Any], off: NDArray[Any]) -> dict[str, Any]:
    """Return one row of the report."""
    return {
        "name": name,
        "steps": steps,
        "options": options,
        "images": len(off),
        "error": float(np.median(off)),
        "largest_error": float(off.max()),
        "off_95": float(np.quantile(off, 0.95)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--alone", action="store_true", help="leave out the others' caches")
    flags = parser.parse_args()
    store, judge = Store(flags.output), Judge.open(MODEL / "judge")
    seeds = range(8000, 8000 + flags.images)
    pipeline = intaglio.Pipeline.open(flags.bundle, device="cpu", threads=1)
    rows = measure_ours(store, pipeline, judge, seeds)
    rows += [] if flags.alone else measure_others(store, seeds)
    rows.sort(key=lambda row: (row["steps"], row["evaluations"]))
    path = flags.output / "skipping.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("| steps | evaluations | | error, median | 95 % | largest |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['steps']} | {row['evaluations']:.1f} | {row['name']} | {row['error']:.2%} |"
            f" {row['off_95']:.1%} | {row['largest_error']:.1%} |"
        )


if __name__ == "__main__":
    main()
