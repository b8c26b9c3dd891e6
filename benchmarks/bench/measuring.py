"""Interleaved runs, and what is said of their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.bench.runtimes import OURS, Runtime
from benchmarks.bench.workload import Array, Sample, Workload

TOLERANCE = 1e-3  # relative L2 of final latents
_REST = 0.05  # seconds for threads of the runtime before to go to sleep


class DisagreementError(Exception):
    """Two runtimes do not draw the same picture."""


def relative(got: Array, expected: Array) -> float:
    """L2 of the difference over that of `expected`."""
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def interleave(
    runs: Mapping[str, tuple[Runtime, Workload]], rounds: int
) -> dict[str, list[Sample]]:
    """Samples of each run, one a round, after a round of one step that warms up."""
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for turn in range(-1, rounds):
        for name, (runtime, workload) in runs.items():
            time.sleep(_REST)
            if turn < 0:
                runtime(workload.with_(steps=1))
            else:
                samples[name].append(runtime(workload))
    return samples


def check_same(
    samples: Mapping[str, list[Sample]], reference: str, missing: dict[str, str] | None = None
) -> dict[str, float]:
    """Each run's relative L2 from the reference's final latents.

    Runs of peers that draw something else are left out where `missing` takes the reason.

    Raises:
        DisagreementError: one is above TOLERANCE, or not finite.
    """
    expected = samples[reference][-1].latents
    errors = {name: relative(of[-1].latents, expected) for name, of in samples.items()}
    for name, error in errors.items():
        if error <= TOLERANCE:
            continue
        why = f"{name} differs from {reference} by {error:.1e}"
        if missing is None or name in OURS:
            raise DisagreementError(why)
        missing[name] = why
    return {name: error for name, error in errors.items() if error <= TOLERANCE}


def spread(values: list[float]) -> dict[str, Any]:
    """Median, extremes, and all of them."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "rounds": [float(f"{value:.6g}") for value in values],
    }


def seconds(samples: list[Sample]) -> list[float]:
    """Of each round."""
    return [sample.seconds for sample in samples]


def ratio(samples: list[Sample], to: list[Sample]) -> dict[str, Any]:
    """Times beside those of `to` in the same round, since a machine drifts between rounds."""
    pairs = zip(seconds(samples), seconds(to), strict=True)
    return spread([mine / theirs for mine, theirs in pairs])
