"""Runs on a GPU against the same runs on the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import intaglio
from tests.conftest import GPU_DEVICES, open_on

pytestmark = pytest.mark.gpu
OPTIONS = {"steps": 4, "cfg_scale": 2.0, "dg_scale": 1.0}


@pytest.fixture(scope="module", params=GPU_DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def pipeline(device: str, forked_bundle: Path) -> intaglio.Pipeline:
    return open_on(device, forked_bundle)


def draw(pipeline: intaglio.Pipeline, **options: object) -> np.ndarray:
    return np.asarray(pipeline.generate("a boot", **{**OPTIONS, "seeds": [3], **options}).latents)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("scheduler", ["euler", "heun", "dpmpp-2m"])
def test_every_sampler_equals_the_processors(
    pipeline: intaglio.Pipeline, forked_bundle: Path, scheduler: str
) -> None:
    cpu = intaglio.Pipeline.open(forked_bundle, device="cpu")
    assert relative(draw(pipeline, scheduler=scheduler), draw(cpu, scheduler=scheduler)) < 1e-4


def test_forked_equals_dual(device: str, pipeline: intaglio.Pipeline, dual_bundle: Path) -> None:
    """To 1e-4 and not 1e-5: a GPU may choose other kernels for the same product in each graph."""
    assert relative(draw(pipeline), draw(open_on(device, dual_bundle))) < 1e-4


def test_threads_share_a_pipeline(pipeline: intaglio.Pipeline) -> None:
    alone = [draw(pipeline, seeds=[seed]) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: draw(pipeline, seeds=[seed]), range(4)))
    for one, other in zip(alone, together, strict=True):
        assert relative(other, one) < 1e-6


def test_batches_and_windows(pipeline: intaglio.Pipeline, forked_bundle: Path) -> None:
    """Steps of one run with other branches and a ramp of keep: graphs of several shapes."""
    options = {"seeds": [1, 2], "dg_window": (0.25, 0.75), "ma_keep": (0.5, 0.0)}
    cpu = intaglio.Pipeline.open(forked_bundle, device="cpu")
    assert relative(draw(pipeline, **options), draw(cpu, **options)) < 1e-4


def test_a_callback_sees_and_changes_latents(pipeline: intaglio.Pipeline) -> None:
    seen = []

    def on_step(step: intaglio.Step) -> None:
        seen.append(np.array(step.latents))
        if step.step == 1:
            np.asarray(step.latents)[...] = 0
        assert len(step.preview()) == 1

    changed = draw(pipeline, on_step=on_step)
    assert len(seen) == OPTIONS["steps"]
    assert relative(changed, draw(pipeline)) > 1e-3
