"""Which steps a model may skip: the best schedule of so many evaluations, or within an error.

    python -m intaglio.analysis.skipping MODEL --steps 28 --evaluations 14
    python -m intaglio.analysis.skipping MODEL --steps 28 --budget 1

prints `--skip-steps` and `--skip-tolerance` for `intaglio generate` and writes them into the
model's settings.json, from where export takes them into the bundle for `--skip auto`. As in
ProCache (arXiv 2512.17298), there is a budget, and a few candidates are judged by what they draw.
The figure is the relative L2 error of the final latents, in the median of the images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio.analysis.guidance.dg_settings import method_from_settings
from intaglio.analysis.quality.judge import Judge
from intaglio.analysis.skip_schedules import Schedule, Trajectory, improved, regular
from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model, Step
from intaglio_export.adapters.base import Inputs
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.errors import ExportError
from intaglio_export.options import read_settings
from intaglio_export.sources import open_source

FINALISTS = 3  # schedules that are drawn with, of all that run as many steps
BATCH = 16  # images that are drawn together
FEW_STEPS = 12


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a schedule drew: `latents` [N, ...], the evaluations of each image [N], and the largest
    distance of each from the line, relative to the prediction [N]."""

    latents: torch.Tensor
    evaluations: NDArray[np.int64]
    distances: NDArray[np.float64]

    def errors(self, exact: Drawn) -> NDArray[np.float64]:
        """Return the relative L2 error of the final latents of each image."""
        off = (self.latents - exact.latents).flatten(1).norm(dim=1)
        errors: NDArray[np.float64] = (off / exact.latents.flatten(1).norm(dim=1)).double().numpy()
        return errors


class Skipping:
    """Predicts for `Model.sample`. Each image is skipped or not by itself, as in the runtime."""

    def __init__(
        self, model: Model, method: Method, schedule: Schedule | None, images: int, steps: int
    ) -> None:
        self._predict = method.predictor(model)
        self._weights = (schedule or Schedule(())).weights(method, steps)
        self._tolerance = schedule.tolerance if schedule else np.inf
        self._cached = [list[tuple[float, torch.Tensor]]() for _ in range(images)]
        self._distance = np.zeros(images)  # of the last step that each image ran
        self._skips = np.zeros(images, bool)
        self._was_skipped = np.zeros(images, bool)
        self._step = -1
        self.evaluations = np.zeros(images, np.int64)
        self.distances = np.zeros(images)

    def __call__(self, step: Step, conditional: Inputs, null: Inputs) -> torch.Tensor:
        if step.index != self._step:
            self._begin(step.index)
        timestep = float(step.timestep)
        out = torch.empty_like(step.latents)
        for image in np.flatnonzero(self._skips).tolist():
            out[image] = self._on_line(image, timestep)
        runs = np.flatnonzero(~self._skips)
        if len(runs):
            rows = torch.from_numpy(runs)
            part = Step(step.latents[rows], step.timestep, step.index, step.steps, step.sigma)
            inputs = (_rows(given, rows, len(out)) for given in (conditional, null))
            out[rows] = self._predict(part, *inputs)
        for image in runs.tolist():
            self._keep(image, timestep, out[image])
        self._was_skipped = self._skips.copy()
        return out

    def _begin(self, index: int) -> None:
        self._step = index
        now = self._weights[index]
        before = self._weights[max(index - 1, 0)]
        self._skips = (self._distance <= self._tolerance) & now.skip
        self._distance[~self._skips] = 0.0
        if (now.unconditional, now.degraded) != (before.unconditional, before.degraded):
            for cached in self._cached:
                cached.clear()

    def _on_line(self, image: int, timestep: float) -> torch.Tensor:
        (older_at, older), (newer_at, newer) = self._cached[image]
        return newer + (timestep - newer_at) / (newer_at - older_at) * (newer - older)

    def _keep(self, image: int, timestep: float, prediction: torch.Tensor) -> None:
        self.evaluations[image] += 1
        cached = self._cached[image]
        if len(cached) == 2:
            missed = float((prediction - self._on_line(image, timestep)).norm() / prediction.norm())
            self._distance[image] = max(self._distance[image], missed)
            if self._was_skipped[image]:
                self.distances[image] = max(self.distances[image], missed)
        if cached and cached[-1][0] == timestep:
            cached.pop()
        cached.append((timestep, prediction))
        del cached[:-2]


def _rows(inputs: Inputs, rows: torch.Tensor, images: int) -> Inputs:
    return {
        role: value[rows] if role != "position" and len(value) == images else value
        for role, value in inputs.items()
    }


def draw(
    model: Model, method: Method, seeds: Sequence[int], steps: int, schedule: Schedule | None = None
) -> Drawn:
    """Draw images, all evaluations of which run without a schedule."""
    parts = []
    for first in range(0, len(seeds), BATCH):
        some = seeds[first : first + BATCH]
        predict = Skipping(model, method, schedule, len(some), steps)
        latents = model.sample(predict, some, steps)
        parts.append(Drawn(latents, predict.evaluations, predict.distances))
    return Drawn(
        torch.cat([part.latents for part in parts]),
        np.concatenate([part.evaluations for part in parts]),
        np.concatenate([part.distances for part in parts]),
    )


@dataclass(frozen=True, eq=False)
class Measured:
    """A schedule with what it drew and the errors of its images."""

    schedule: Schedule
    drawn: Drawn
    errors: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The median."""
        return float(np.median(self.errors))

    @property
    def evaluations(self) -> float:
        """The mean over images."""
        return float(self.drawn.evaluations.mean())

    def to_json(self) -> dict[str, Any]:
        """What the settings file says of it beside the schedule."""
        return {
            "images": len(self.errors),
            "evaluations": round(self.evaluations, 2),
            "error": round(self.error, 5),
            "largest_error": round(float(self.errors.max()), 5),
            "largest_distance": round(float(self.drawn.distances.max()), 5),
        }


class Search:
    """Finds the best schedule of a model's own guidance and scheduler."""

    def __init__(self, model: Model, method: Method, steps: int, seeds: Sequence[int]) -> None:
        self.model, self.method, self.steps, self.seeds = model, method, steps, seeds
        self._trajectory = Trajectory.of(model, method, seeds[:BATCH], steps)
        self.choices = regular(method, steps, self._trajectory)
        self._exact = draw(model, method, seeds, steps)

    def measure(self, schedule: Schedule) -> Measured:
        """Draw with a schedule."""
        drawn = draw(self.model, self.method, self.seeds, self.steps, schedule)
        return Measured(schedule, drawn, drawn.errors(self._exact))

    def best(self, evaluations: int) -> Measured | None:
        """Return the best schedule of at most so many evaluations in the mean, with those that the
        tolerance adds; None if there is none."""
        for count in sorted(filter(evaluations.__ge__, self.choices), reverse=True):
            best = [schedule for _, schedule in self.choices[count][:FINALISTS]]
            moved = [improved(one, self.method, self.steps, self._trajectory) for one in best]
            finalists = dict.fromkeys(best + moved)
            measured = [self.measure(schedule) for schedule in finalists]
            within = [one for one in measured if one.evaluations <= evaluations]
            if within:
                return min(within, key=lambda one: one.error)
        return None

    def within(self, budget: float) -> Measured | None:
        """Return the schedule of the fewest evaluations whose error is at most `budget`."""
        counts = list(self.choices)
        low, high, found = 0, len(counts), None
        while low < high:
            middle = (low + high) // 2
            tried = self.best(counts[middle])
            if tried and tried.error <= budget:
                found, high = tried, middle
            else:
                low = middle + 1
        return found


def write_settings(path: Path, steps: int, scheduler: str, found: Measured) -> None:
    """Put a schedule into a settings file, in the place of another one for as many steps of that
    scheduler."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    others = [
        entry
        for entry in settings.get("skipping", [])
        if (entry["steps"], entry["scheduler"]) != (steps, scheduler)
    ]
    schedule = found.schedule
    entry = {
        "steps": steps,
        "scheduler": scheduler,
        "skipped": list(schedule.skipped),
        "tolerance": schedule.tolerance,
        "evidence": found.to_json(),
    }
    settings["skipping"] = sorted(
        [*others, entry], key=lambda entry: (entry["scheduler"], entry["steps"])
    )
    unfinished = path.with_name(f"unfinished-{path.name}")
    unfinished.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def open_model(folder: Path) -> tuple[Model, Method, Path]:
    """Open a diffusers pipeline with its guidance and its settings file.

    Raises:
        ExportError: it cannot be used, or has no settings for Detail Guidance.
    """
    source = open_source(str(folder))
    settings = read_settings(source.settings) if source.settings else None
    method = method_from_settings(settings, source.adapter) if settings else None
    if settings is None or method is None or source.settings is None:
        raise ExportError(
            f"{source.name} has no settings for Detail Guidance: run intaglio probe first."
        )
    beside = folder / "judge"
    prompts = Judge.open(beside).prompts if beside.is_dir() else PROMPTS
    model = Model(source.adapter, prompts, settings.max_sequence_length or 1)
    return model, method, source.settings


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "model", type=Path, help="folder of a diffusers pipeline with a settings.json"
    )
    parser.add_argument("--steps", type=int, required=True, help="denoising steps of a run")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--evaluations", type=int, help="most evaluations, in the mean of the images")
    goal.add_argument("--budget", type=float, help="median error of the final latents in percent")
    parser.add_argument("--seeds", type=int, default=16, help="images to measure with [16]")
    flags = parser.parse_args()
    if flags.steps < 4 or flags.seeds < 1:
        parser.error(
            "--steps has to be at least 4, since three steps run before one is skipped, and --seeds"
            " at least 1"
        )
    return flags


def main() -> None:
    flags = _parse()
    try:
        model, method, path = open_model(flags.model)
    except ExportError as error:
        raise SystemExit(f"intaglio: {error.message}") from error
    search = Search(model, method, flags.steps, range(flags.seeds))
    if flags.budget is not None:
        found = search.within(flags.budget / 100)
        if found is None:
            raise SystemExit(f"intaglio: no schedule has an error of {flags.budget:g} % or less.")
    elif (found := search.best(flags.evaluations)) is None:
        raise SystemExit(
            f"intaglio: no schedule has {flags.evaluations} evaluations or fewer: increase"
            " --evaluations."
        )
    others = range(flags.seeds, 2 * flags.seeds)
    drawn = draw(model, method, others, flags.steps, found.schedule)
    exact = draw(model, method, others, flags.steps)
    confirmed = Measured(found.schedule, drawn, drawn.errors(exact))
    scheduler = type(model.adapter.pipeline.scheduler).__name__
    write_settings(path, flags.steps, scheduler, confirmed)
    print(f"--steps {flags.steps} {found.schedule.flags}")
    for name, one in (("", found), (" on other seeds", confirmed)):
        print(
            f"error of the final latents{name}: {one.error:.2%} in the median,"
            f" {one.errors.max():.1%} at most; {one.evaluations:.1f} evaluations"
        )
    print(f"{path} has the schedule: intaglio export takes it into the bundle for --skip auto")
    if flags.steps <= FEW_STEPS:
        print(
            f"At {flags.steps} steps skipping gains little: as many steps as evaluations are nearly"
            " as good."
        )


if __name__ == "__main__":
    main()
