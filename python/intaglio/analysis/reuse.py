"""How often D_0 and D_m have to be run: the cheapest reuse of their differences within a budget.

    python -m intaglio.analysis.reuse MODEL --steps 28 --budget 3

prints `--reuse-interval` and `--reuse-window` for `intaglio generate`. The guidance term is
lambda (D_c - D_0) + w (D_c - D_m); its error is the relative L2 error over all evaluations of a
run. The runtime's own `step_weights` decides which steps run a branch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio import _core
from intaglio.analysis.guidance.dg_settings import method_from_settings
from intaglio.analysis.quality.judge import Judge
from intaglio.torch_reference.guidance import Method, Suppressed, run_branches, term
from intaglio.torch_reference.model import Model, Step
from intaglio_export.adapters.base import Inputs
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.errors import ExportError
from intaglio_export.options import read_settings
from intaglio_export.sources import open_source

Matrix = NDArray[np.float64]

# Intervals at the first and the last step; longer ones exceed every useful budget.
INTERVALS = ((2, 2), (3, 2), (3, 3), (4, 2), (4, 3), (4, 4))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The guidance terms of the E evaluations of a run.

    `steps` [E] and `timesteps` [E] say when each was taken. `products` [2E, 2E] are the inner
    products of lambda (D_c - D_0) of all evaluations followed by w (D_c - D_m) of all evaluations,
    summed over images.
    """

    steps: list[int]
    timesteps: list[float]
    products: Matrix
    latents: torch.Tensor

    def error(self, weights: Sequence[_core.StepWeights]) -> float:
        """Return the relative L2 error of the guidance term with branches run as `weights` say."""
        count = len(self.steps)
        whole = np.hstack([np.eye(count), np.eye(count)])
        missed = whole - np.hstack(extrapolation(weights, self.steps, self.timesteps))
        missed_square, square = (((a @ self.products) * a).sum() for a in (missed, whole))
        return float(np.sqrt(max(missed_square, 0.0) / square))


@dataclass(frozen=True)
class Reuse:
    """A schedule for `intaglio generate`, the error of its guidance term, and the cost of a step.

    CFG without DG costs 1.
    """

    interval: tuple[int, int]
    window: tuple[float, float]
    error: float
    cost: float

    @property
    def flags(self) -> str:
        """The schedule as options of the command line."""
        first, last = self.interval
        interval = str(first) if first == last else f"{first}:{last}"
        start, end = self.window
        return f"--reuse-interval {interval} --reuse-window {start:g}:{end:g}"


def extrapolation(
    weights: Sequence[_core.StepWeights], steps: Sequence[int], timesteps: Sequence[float]
) -> tuple[Matrix, Matrix]:
    """Return the `line` of D_0's and of D_m's differences."""
    return (
        line(
            [(weights[s].unconditional, weights[s].reuse_unconditional) for s in steps], timesteps
        ),
        line([(weights[s].degraded, weights[s].reuse_degraded) for s in steps], timesteps),
    )


def line(branch: Sequence[tuple[bool, bool]], timesteps: Sequence[float]) -> Matrix:
    """Return a matrix [E, E] whose rows say how a value of each evaluation is combined from those
    of all, where `branch` says whether it has weight and whether it is extrapolated."""
    taken = np.zeros((len(branch), len(branch)))
    runs: list[int] = []  # evaluations that ran the branch since it last had no weight
    for e, (has_weight, reused) in enumerate(branch):
        if not has_weight:
            runs.clear()
            continue
        if not reused:
            runs.append(e)
        newer, older = runs[-1], runs[max(len(runs) - 2, 0)]
        apart = timesteps[newer] - timesteps[older]
        slope = (timesteps[e] - timesteps[newer]) / apart if apart else 0.0
        taken[e, newer] += 1.0 + slope
        taken[e, older] -= slope
    return taken


def run(
    model: Model,
    method: Method,
    seeds: Sequence[int],
    steps: int,
    weights: Sequence[_core.StepWeights] | None = None,
) -> Trajectory:
    """Draw images and run all branches in every evaluation.

    Guidance is exact, or reuses terms as `weights` say.

    Raises:
        ExportError: the family scales the result of CFG, so that guidance is no sum of terms.
    """
    if model.adapter.cfg_rescale:
        raise ExportError(
            f"{model.adapter.family} scales the result of CFG, and the error of reuse is not known"
            " for that: skip steps instead (python -m intaglio.analysis.skipping)."
        )
    indices: list[int] = []
    timesteps: list[float] = []
    terms: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []  # of D_0 and of D_m

    def predict(step: Step, conditional: Inputs, null: Inputs) -> torch.Tensor:
        found = run_branches(model, step, conditional, null, method.negative)
        assert found.unconditional is not None
        assert found.negative is not None
        guided = found.conditional
        indices.append(step.index)
        timesteps.append(float(step.timestep))
        terms[0].append(term(method.scale_at(step) - 1.0, guided, found.unconditional))
        terms[1].append(term(method.weight_at(step), guided, found.negative))
        if weights is None:
            return guided + terms[0][-1] + terms[1][-1]
        taken = extrapolation(weights, indices, timesteps)
        for matrix, values in zip(taken, terms, strict=True):
            for share, value in zip(matrix[-1], values, strict=True):
                if share:
                    guided = guided + float(share) * value
        return guided

    latents = model.sample(predict, seeds, steps)
    flat = torch.stack(terms[0] + terms[1]).flatten(1).double()
    return Trajectory(indices, timesteps, (flat @ flat.T).numpy(), latents)


def guidance(method: Method, **faster: object) -> _core.Guidance:
    """Return `method` as the runtime's guidance, with reuse or skipping."""
    assert isinstance(method.negative, Suppressed)
    return _core.Guidance(
        cfg_scale=_core.Ramp(method.cfg_scale),
        cfg_window=_core.Window(*method.cfg_window),
        dg_scale=_core.Ramp(method.weight),
        dg_window=_core.Window(*method.window),
        ma_keep=_core.Ramp(*method.negative.ma_keep),
        **faster,  # type: ignore[arg-type]
    )


def cost(model: Model, method: Method, weights: Sequence[_core.StepWeights]) -> float:
    """Return the rows times blocks that layout forked runs, where CFG without DG costs 1."""
    assert isinstance(method.negative, Suppressed)
    after = (model.blocks - 1 - method.negative.block) / model.blocks
    rows = [1 + w.runs_unconditional for w in weights]
    degraded = [after * w.runs_degraded for w in weights]
    return float(np.mean(rows) + np.mean(degraded)) / 2


def windows(steps: int) -> Iterator[tuple[float, float]]:
    """Yield all windows of whole steps. Their edges lie between steps, so that rounding moves
    none."""
    for first, last in combinations(range(steps + 1), 2):
        start = max(0.0, round((first - 0.5) / steps, 4))
        yield start, 1.0 if last == steps else round((last - 0.5) / steps, 4)


def choices(model: Model, method: Method, trajectory: Trajectory) -> list[Reuse]:
    """Return all schedules of `INTERVALS` and windows of whole steps, the cheapest first."""
    steps = trajectory.steps[-1] + 1
    found = []
    for window in windows(steps):
        for interval in INTERVALS:
            schedule = guidance(method, reuse_interval=interval, reuse_window=window)
            weights = _core.step_weights(schedule, steps)
            if any(w.reuse_unconditional or w.reuse_degraded for w in weights):
                error = trajectory.error(weights)
                found.append(Reuse(interval, window, error, cost(model, method, weights)))
    return sorted(found, key=lambda reuse: (reuse.cost, reuse.error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "model", type=Path, help="folder of a diffusers pipeline with a settings.json"
    )
    parser.add_argument("--steps", type=int, required=True, help="denoising steps of a run")
    parser.add_argument(
        "--budget", type=float, default=3.0, help="error of the guidance term in percent [3]"
    )
    parser.add_argument("--seeds", type=int, default=16, help="images to measure with [16]")
    flags = parser.parse_args()
    if flags.steps < 2 or flags.seeds < 1:
        parser.error(
            "--steps has to be at least 2, since the first step has nothing to reuse, and --seeds"
            " at least 1"
        )
    try:
        source = open_source(str(flags.model))
        settings = read_settings(source.settings) if source.settings else None
        method = method_from_settings(settings, source.adapter) if settings else None
        if settings is None or method is None:
            raise ExportError(
                f"{source.name} has no settings for Detail Guidance: run intaglio probe first."
            )
        beside = flags.model / "judge"
        prompts = Judge.open(beside).prompts if beside.is_dir() else PROMPTS
        model = Model(source.adapter, prompts, settings.max_sequence_length or 1)
        found = choices(model, method, run(model, method, range(flags.seeds), flags.steps))
    except ExportError as error:
        parser.exit(int(error.exit_code), f"intaglio: {error.message}\n")
    within = [reuse for reuse in found if 100 * reuse.error <= flags.budget]
    if not within:
        least = min((reuse.error for reuse in found), default=None)
        reason = (
            "no branch could be reused" if least is None else f"the smallest error is {least:.1%}"
        )
        parser.exit(1, f"No schedule has an error below {flags.budget:g} %: {reason}.\n")
    best = within[0]
    weights = _core.step_weights(
        guidance(method, reuse_interval=best.interval, reuse_window=best.window), flags.steps
    )
    others = range(flags.seeds, 2 * flags.seeds)  # measured along the run with reuse
    along = run(model, method, others, flags.steps, weights).error(weights)
    print(f"--steps {flags.steps} {best.flags}")
    print(
        f"error of the guidance term {best.error:.1%}, on other seeds {along:.1%}; cost"
        f" {best.cost:.3f} times CFG"
    )
    if free := [reuse for reuse in found if reuse.cost <= 1.0]:
        print(f"smallest error at CFG's cost or less: {min(reuse.error for reuse in free):.1%}")


if __name__ == "__main__":
    main()
