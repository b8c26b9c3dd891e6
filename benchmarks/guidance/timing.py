"""Times of the denoising loop beside that of the model's own setting of CFG+DG.

Rounds alternate the methods, because a machine drifts between them, and each time is divided by
that of the own setting in the same round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import intaglio
from benchmarks.guidance.comparison import Bench
from benchmarks.guidance.methods import Setting

TIMED = 4  # images of a run
PROMPT = "a dress"


def torch_ratios(bench: Bench, settings: dict[str, Setting], rounds: int) -> dict[str, float]:
    """Return the ratios of processor time in one thread of the torch model."""
    torch.set_num_threads(1)
    noise = bench.model.noise(range(TIMED))

    def seconds(setting: Setting) -> float:
        predict = setting.method.predictor(bench.model)
        start = time.process_time()
        bench.model.denoise(predict, noise, range(TIMED), bench.equal_steps(setting))
        return time.process_time() - start

    return _ratios(seconds, bench.own_setting(), settings, rounds)


def runtime_ratios(
    bench: Bench, settings: dict[str, Setting], bundle: Path, rounds: int
) -> dict[str, float]:
    """Return the ratios of the runtime in one thread, of the methods that it has."""
    pipeline = intaglio.Pipeline.open(bundle, device="cpu", threads=1)
    embeds = pipeline.embed(PROMPT, "")

    def seconds(setting: Setting) -> float:
        assert setting.runtime is not None
        drawn = pipeline.generate(
            prompt_embeds=embeds,
            batch=TIMED,
            steps=bench.equal_steps(setting),
            **setting.runtime,
        )
        return drawn.timings.denoise

    ours = {name: setting for name, setting in settings.items() if setting.runtime is not None}
    return _ratios(seconds, bench.own_setting(), ours, rounds)


def _ratios(
    seconds: Callable[[Setting], float], own: Setting, settings: dict[str, Setting], rounds: int
) -> dict[str, float]:
    ratios: dict[str, list[float]] = {name: [] for name in settings}
    seconds(own)  # warms up
    for _ in range(rounds):
        unit = seconds(own)
        for name, setting in settings.items():
            ratios[name].append(seconds(setting) / unit)
    return {name: statistics.median(of) for name, of in ratios.items()}
