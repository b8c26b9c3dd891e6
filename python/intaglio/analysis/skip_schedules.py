"""Schedules of skipped steps, and the error that each should have, from one recorded run.

The runtime's own `step_weights` decides which steps are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio import _core
from intaglio.analysis.reuse import INTERVALS, guidance, line, windows
from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model, Step

DENSE = 3  # steps that run before one may be skipped


@dataclass(frozen=True)
class Schedule:
    """A schedule for `intaglio generate`: the steps that are skipped, counted from 0."""

    skipped: tuple[int, ...]
    tolerance: float = _core.Guidance().skip_tolerance

    def weights(self, method: Method, steps: int) -> list[_core.StepWeights]:
        """Return the weights of all steps; those of a skipped one say `skip`."""
        return _core.step_weights(guidance(method, skip_steps=self.skipped), steps)

    @property
    def flags(self) -> str:
        """The schedule as options of the command line."""
        return (
            f"--skip-steps {','.join(map(str, self.skipped))} --skip-tolerance {self.tolerance:g}"
        )


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The guided predictions of the E evaluations of a run: the step, timestep and noise-to-signal
    ratio of each, and the inner products [E, E] of their predictions, summed over images."""

    steps: list[int]
    timesteps: list[float]
    ratios: list[float]
    products: NDArray[np.float64]

    @staticmethod
    def of(model: Model, method: Method, seeds: Sequence[int], steps: int) -> Trajectory:
        """Record an exact run."""
        seen: list[tuple[Step, torch.Tensor]] = []
        model.sample(
            method.predictor(model), seeds, steps, lambda step, d: seen.append((step, d.flatten()))
        )
        flat = torch.stack([d for _, d in seen]).double()
        velocity = model.adapter.prediction_type == "velocity"
        return Trajectory(
            [step.index for step, _ in seen],
            [float(step.timestep) for step, _ in seen],
            [s.sigma if velocity else s.sigma / (1 - s.sigma**2) ** 0.5 for s, _ in seen],
            (flat @ flat.T).numpy(),
        )

    def evaluations(self, weights: Sequence[_core.StepWeights]) -> int:
        """Return how many evaluations run, without those that the brake adds."""
        return sum(not weights[step].skip for step in self.steps)

    def error(self, weights: Sequence[_core.StepWeights]) -> float:
        """Return how far the run ends from the exact one, were the predictions of the steps that
        run the same. The unit is the same for all schedules of a run."""
        return self.error_of([weights[step].skip for step in self.steps], self.timesteps)

    def error_of(self, skips: Sequence[bool], times: Sequence[float]) -> float:
        """Return the same for evaluations that are skipped, by a line over `times`."""
        missed = np.eye(len(skips)) - line([(True, skip) for skip in skips], times)
        moved = np.diff([*self.ratios, 0.0]) @ missed
        return float(np.sqrt(max(float(moved @ self.products @ moved), 0.0)))


def regular(
    method: Method, steps: int, trajectory: Trajectory
) -> dict[int, list[tuple[float, Schedule]]]:
    """Return the schedules of `INTERVALS` and windows by their number of evaluations without the
    brake, each with its estimated error, the best first."""
    found: dict[int, dict[Schedule, float]] = {}
    for window in windows(steps):
        for interval in INTERVALS:
            asked = guidance(method, skip_interval=interval, skip_window=window)
            weights = _core.step_weights(asked, steps)
            schedule = Schedule(tuple(step for step, now in enumerate(weights) if now.skip))
            same = found.setdefault(trajectory.evaluations(weights), {})
            if schedule.skipped and schedule not in same:
                same[schedule] = trajectory.error(weights)
    return {
        count: sorted(((error, s) for s, error in same.items()), key=lambda choice: choice[0])
        for count, same in sorted(found.items())
        if same
    }


def improved(schedule: Schedule, method: Method, steps: int, trajectory: Trajectory) -> Schedule:
    """Move one skip at a time to the step that lowers the estimated error most, while one does and
    as many evaluations run. Heun's last step has only one."""
    evaluations = trajectory.evaluations(schedule.weights(method, steps))

    def estimate(schedule: Schedule) -> float:
        weights = schedule.weights(method, steps)
        if not all(weights[step].skip for step in schedule.skipped):
            return np.inf  # a step where a branch comes or goes runs
        if trajectory.evaluations(weights) != evaluations:
            return np.inf
        return trajectory.error(weights)

    best, error = schedule, estimate(schedule)
    while True:
        moved = [
            Schedule(tuple(sorted({*best.skipped} - {old} | {new})))
            for old in best.skipped
            for new in range(DENSE, steps)
            if new not in best.skipped
        ]
        lower, nearest = min(
            ((estimate(one), one) for one in moved),
            key=lambda choice: choice[0],
            default=(error, best),
        )
        if lower >= error:
            return best
        best, error = nearest, lower
