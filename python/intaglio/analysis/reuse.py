"""How often D_0 and D_m have to be run: the cheapest reuse of their differences within a budget.

    python -m intaglio.analysis.reuse MODEL --steps 28 --budget 3

prints `--reuse-interval` and `--reuse-window` for `intaglio generate`. The guidance term is
lambda (D_c - D_0) + w (D_c - D_m); its error is that of all evaluations of a run together, relative
L2. Which steps run a branch is the runtime's own rule, `step_weights`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio import _core
from intaglio.analysis.judge import Judge
from intaglio.analysis.methods import Method, Suppressed, stack
from intaglio.analysis.sampler import Model, Step
from intaglio.analysis.setting import method_of
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.errors import ExportError
from intaglio_export.options import read_settings
from intaglio_export.sources import open_source

Matrix = NDArray[np.float64]

# From the first to the last step; longer ones are far from any budget worth having.
INTERVALS = ((2, 2), (3, 2), (3, 3), (4, 2), (4, 3), (4, 4))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The terms of E evaluations of a run, summed over its images.

    `steps` [E] says which step each is of, `timesteps` [E] where. `products` [2E, 2E] are inner
    products of lambda (D_c - D_0) of all evaluations, and of w (D_c - D_m) after them.
    """

    steps: list[int]
    timesteps: list[float]
    products: Matrix
    latents: torch.Tensor

    def error(self, weights: Sequence[_core.StepWeights]) -> float:
        """Of the guidance term over the run, relative L2, with branches run as `weights` say."""
        count = len(self.steps)
        whole = np.hstack([np.eye(count), np.eye(count)])
        missed = whole - np.hstack(extrapolation(weights, self.steps, self.timesteps))
        missed_square, square = (((a @ self.products) * a).sum() for a in (missed, whole))
        return float(np.sqrt(max(missed_square, 0.0) / square))


@dataclass(frozen=True)
class Reuse:
    """What `intaglio generate` is told, the error of the guidance term that was measured of it, and
    what a step costs, 1 being CFG without DG."""

    interval: tuple[int, int]
    window: tuple[float, float]
    error: float
    cost: float

    @property
    def flags(self) -> str:
        """For the command line."""
        first, last = self.interval
        interval = str(first) if first == last else f"{first}:{last}"
        start, end = self.window
        return f"--reuse-interval {interval} --reuse-window {start:g}:{end:g}"


def extrapolation(
    weights: Sequence[_core.StepWeights], steps: Sequence[int], timesteps: Sequence[float]
) -> tuple[Matrix, Matrix]:
    """[E, E] of D_0 and of D_m: what each evaluation takes of the differences of all."""
    return (
        _extrapolation(
            [(weights[s].unconditional, weights[s].reuse_unconditional) for s in steps], timesteps
        ),
        _extrapolation(
            [(weights[s].degraded, weights[s].reuse_degraded) for s in steps], timesteps
        ),
    )


def _extrapolation(branch: Sequence[tuple[bool, bool]], timesteps: Sequence[float]) -> Matrix:
    taken = np.zeros((len(branch), len(branch)))
    runs: list[int] = []  # since the branch last had no weight
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
    """Draw with all branches run in every evaluation, but guided as with `weights` if given."""
    at, when, kept = [], [], [[], []]  # type: list[int], list[float], list[list[torch.Tensor]]
    assert method.negative is not None

    def predict(step: Step, conditional: dict[str, torch.Tensor], null: dict[str, torch.Tensor]):  # type: ignore[no-untyped-def]
        n = len(step.latents)
        base = stack([null, conditional]) | {
            "latent": torch.cat([step.latents] * 2),
            "timestep": step.timestep.expand(2 * n),
        }
        out, degraded = method.negative.predict(model, step, base)  # type: ignore[union-attr]
        d_0, d_c = out.float().chunk(2)
        at.append(step.index)
        when.append(float(step.timestep))
        kept[0].append((method.scale_at(step) - 1.0) * (d_c - d_0))
        kept[1].append((method.weight if method.steers(step) else 0.0) * (d_c - degraded.float()))
        if weights is None:
            return d_c + kept[0][-1] + kept[1][-1]
        for terms, taken in zip(kept, extrapolation(weights, at, when), strict=True):
            for share, term in zip(taken[-1], terms, strict=True):
                if share:
                    d_c = d_c + float(share) * term
        return d_c

    latents = model.sample(predict, seeds, steps)
    flat = torch.stack(kept[0] + kept[1]).flatten(1).double()
    return Trajectory(at, when, (flat @ flat.T).numpy(), latents)


def guidance(method: Method, **reuse: object) -> _core.Guidance:
    """`method` as the runtime has it."""
    return _core.Guidance(
        cfg_scale=_core.Ramp(method.cfg_scale),
        cfg_window=_core.Window(*method.cfg_window),
        dg_scale=_core.Ramp(method.weight),
        dg_window=_core.Window(*method.window),
        **reuse,  # type: ignore[arg-type]
    )


def cost(model: Model, method: Method, weights: Sequence[_core.StepWeights]) -> float:
    """Rows times blocks of layout forked, 1 being those of CFG without DG."""
    assert isinstance(method.negative, Suppressed)
    after = (model.blocks - 1 - method.negative.block) / model.blocks
    rows = [1 + w.runs_unconditional for w in weights]
    degraded = [after * w.runs_degraded for w in weights]
    return float(np.mean(rows) + np.mean(degraded)) / 2


def choices(model: Model, method: Method, trajectory: Trajectory) -> list[Reuse]:
    """Every interval and window of whole steps, cheapest first."""
    steps = trajectory.steps[-1] + 1
    found = []
    for first, last in combinations(range(steps + 1), 2):
        # Between steps, so that no rounding moves one.
        window = (
            max(0.0, round((first - 0.5) / steps, 4)),
            min(1.0, round((last - 0.5) / steps, 4)),
        )
        window = (window[0], 1.0 if last == steps else window[1])
        for interval in INTERVALS:
            told = guidance(method, reuse_interval=interval, reuse_window=window)
            weights = _core.step_weights(told, steps)
            if any(w.reuse_unconditional or w.reuse_degraded for w in weights):
                error = trajectory.error(weights)
                found.append(Reuse(interval, window, error, cost(model, method, weights)))
    return sorted(found, key=lambda reuse: (reuse.cost, reuse.error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "model", type=Path, help="folder of a diffusers pipeline, settings.json in it"
    )
    parser.add_argument("--steps", type=int, required=True, help="of the runs that it is for")
    parser.add_argument("--budget", type=float, default=3.0, help="error in percent [3]")
    parser.add_argument("--seeds", type=int, default=16, help="images that it is measured on [16]")
    flags = parser.parse_args()
    if flags.steps < 2 or flags.seeds < 1:
        parser.error(
            "--steps takes 2 or more, since there is nothing to reuse in the first, and"
            " --seeds 1 or more"
        )
    try:
        source = open_source(str(flags.model))
        settings = read_settings(source.settings) if source.settings else None
        method = method_of(settings, source.adapter) if settings else None
        if settings is None or method is None:
            raise ExportError(f"{source.name} has no settings of Detail Guidance: probe it first.")
        beside = flags.model / "judge"
        prompts = Judge.open(beside).prompts if beside.is_dir() else PROMPTS
        model = Model(source.adapter, prompts, settings.max_sequence_length or 1)
    except ExportError as error:
        parser.exit(int(error.exit_code), f"intaglio: {error.message}\n")
    found = choices(model, method, run(model, method, range(flags.seeds), flags.steps))
    within = [reuse for reuse in found if 100 * reuse.error <= flags.budget]
    if not within:
        least = min((reuse.error for reuse in found), default=None)
        why = "no branch could be reused" if least is None else f"the least error is {least:.1%}"
        parser.exit(1, f"No reuse keeps to {flags.budget:g} %: {why}.\n")
    best = within[0]
    weights = _core.step_weights(
        guidance(method, reuse_interval=best.interval, reuse_window=best.window), flags.steps
    )
    others = range(flags.seeds, 2 * flags.seeds)  # and along the trajectory that reuse takes
    along = run(model, method, others, flags.steps, weights).error(weights)
    print(f"--steps {flags.steps} {best.flags}")
    print(f"guidance term {best.error:.1%} off, {along:.1%} on other seeds; {best.cost:.3f} of CFG")
    if free := [reuse for reuse in found if reuse.cost <= 1.0]:
        print(f"least error at CFG's cost or less: {min(reuse.error for reuse in free):.1%}")


if __name__ == "__main__":
    main()
