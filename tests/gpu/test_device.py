"""What a GPU adds to a run: shared engines, profiles, memory, and the loop on the device."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import intaglio
from tests.conftest import GPU_DEVICES, open_on

pytestmark = pytest.mark.gpu
OURS = ("tensorrt-rtx", "tensorrt")
OPTIONS = {"steps": 4, "cfg_scale": 2.0, "dg_scale": 1.0}


@pytest.fixture(scope="module", params=GPU_DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def pipeline(device: str, forked_bundle: Path) -> intaglio.Pipeline:
    return open_on(device, forked_bundle)


@pytest.fixture
def gpu_memory() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("counting GPU memory needs a CUDA build of torch")


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
    """To 1e-4 and not 1e-5: two engines may choose other kernels for the same product."""
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


@pytest.mark.parametrize("ours", OURS)
def test_a_request_outside_the_profile_says_the_range(ours: str, forked_bundle: Path) -> None:
    pipeline = open_on(ours, forked_bundle)
    with pytest.raises(intaglio.UnavailableError, match=r"--profile"):
        draw(pipeline, seeds=list(range(9)))
    assert np.isfinite(draw(pipeline)).all()  # and the next request is alive


@pytest.mark.parametrize("ours", OURS)
def test_an_engine_of_another_version_is_refused(
    ours: str, forked_bundle: Path, tmp_path: Path
) -> None:
    open_on(ours, forked_bundle)
    copy = shutil.copytree(forked_bundle, tmp_path / "copy")
    for path in copy.glob(f"engines/{ours}-*/engine.json"):
        engine = json.loads(path.read_text())
        path.write_text(json.dumps({**engine, "version": "0.0.1"}))
    with pytest.raises(intaglio.UnavailableError, match=r"0\.0\.1"):
        draw(intaglio.Pipeline.open(copy, device=ours))


@pytest.mark.parametrize("ours", OURS)
def test_two_pipelines_share_an_engines_weights(
    ours: str, tmp_path: Path, gpu_memory: None
) -> None:
    """The shipped model's, since a driver gives memory by the megabyte."""
    import torch

    shipped = Path(__file__).parents[2] / "build" / "bundles" / "fashion-sd3"
    bundle = shutil.copytree(shipped, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    first = open_on(ours, bundle)
    draw(first)
    free = torch.cuda.mem_get_info()[0]
    second = intaglio.Pipeline.open(bundle, device=ours)
    draw(second)
    weights = (bundle / "transformer" / "weights.data").stat().st_size
    assert free - torch.cuda.mem_get_info()[0] < weights / 2
