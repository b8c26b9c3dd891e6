"""Compare UniPC and the samplers that add noise with diffusers' classes, in whole runs.

The noise is that of `scheduler.step(..., generator=generator)`, where the generator is the one that
drew the initial latents.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LTXEulerAncestralRFScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

import intaglio
from intaglio import _core
from intaglio_export.adapters.schedulers import scheduler_entry
from tests.analytic_bundle import SIZE, encoded, make_bundle
from tests.parity.test_epsilon import epsilon
from tests.parity.test_sigmas import velocity

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
EULER = FlowMatchEulerDiscreteScheduler


def ancestral(shift: float) -> Any:
    return LTXEulerAncestralRFScheduler.from_config(EULER(shift=shift).config)


FLOW_SAMPLERS: dict[str, Callable[[float], Any]] = {
    "dpmpp-2m-sde": lambda shift: DPMSolverMultistepScheduler(flow_shift=shift, **FLOW, **SDE),
    "unipc": lambda shift: UniPCMultistepScheduler(flow_shift=shift, **FLOW),
    "lcm": lambda shift: FlowMatchLCMScheduler(shift=shift),
    "euler-ancestral": ancestral,
}
NOISY = sorted(set(FLOW_SAMPLERS) - {"unipc"})


def relative(got: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.linalg.norm(got - expected.numpy()) / np.linalg.norm(expected.numpy()))


def step(
    scheduler: Any, model: torch.Tensor, timestep: Any, x: torch.Tensor, generator: Any
) -> torch.Tensor:
    words = {} if isinstance(scheduler, UniPCMultistepScheduler) else {"generator": generator}
    made: torch.Tensor = scheduler.step(model, timestep, x, return_dict=False, **words)[0]
    return made


def flow_run(scheduler: Any, x: torch.Tensor, generator: Any, begin: int = 0) -> torch.Tensor:
    if begin:
        scheduler.set_begin_index(begin)
    for timestep in scheduler.timesteps[begin : len(scheduler.sigmas) - 1]:
        x = step(scheduler, velocity(x, float(timestep)), timestep, x, generator)
    return x


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> intaglio.Pipeline:
    folder = tmp_path_factory.mktemp("flow") / "b"
    return make_bundle(folder, {"type": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 28, 50])
@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_flow_models(flow: intaglio.Pipeline, name: str, steps: int) -> None:
    """One seed draws the whole batch."""
    generator = torch.Generator("cpu").manual_seed(7)
    start = torch.randn(2, 4, 8, 8, generator=generator)
    scheduler = FLOW_SAMPLERS[name](3.0)
    scheduler.set_timesteps(steps)
    expected = flow_run(scheduler, start, generator)
    got = flow.generate(class_label=0, seeds=7, batch=2, steps=steps, scheduler=name)
    assert relative(got.latents, expected) < 1e-4
    given = flow.generate(
        class_label=0, latents=start, seeds=7, batch=2, steps=steps, scheduler=name
    )
    assert relative(given.latents, expected) < 1e-4


@pytest.mark.parametrize("name", NOISY)
def test_each_image_has_the_noise_of_its_seed(flow: intaglio.Pipeline, name: str) -> None:
    both = flow.generate(class_label=0, seeds=[3, 4], steps=4, scheduler=name).latents
    batch = intaglio.Batch(flow, 2)
    places = [batch.add(class_label=0, seeds=seed, steps=4, scheduler=name) for seed in (3, 4)]
    done = {made.id: made for _ in range(4) for made in batch.step()}
    for image, seed in enumerate((3, 4)):
        alone = flow.generate(class_label=0, seeds=seed, steps=4, scheduler=name).latents[0]
        np.testing.assert_array_equal(both[image], alone)
        np.testing.assert_array_equal(done[places[image]].finish().latents[0], alone)
    assert np.abs(both[0] - both[1]).max() > 0.1


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_image_to_image(flow: intaglio.Pipeline, name: str) -> None:
    steps, begin = 8, 3
    picture = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    generator = torch.Generator("cpu").manual_seed(2)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    scheduler = FLOW_SAMPLERS[name](3.0)
    scheduler.set_timesteps(steps)
    sigma = scheduler.sigmas[begin]
    x = sigma * noise + (1 - sigma) * torch.from_numpy(encoded(picture))
    expected = flow_run(scheduler, x, generator, begin)
    got = flow.generate(
        class_label=0, image=picture, strength=(steps - begin) / steps, seeds=2, steps=steps,
        scheduler=name,
    )  # fmt: skip
    assert relative(got.latents, expected) < 1e-4


EPSILON = {
    "dpmpp-2m-sde": (DPMSolverMultistepScheduler, SDE),
    "unipc": (UniPCMultistepScheduler, {}),
}


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25])
@pytest.mark.parametrize("name", EPSILON)
def test_epsilon_models(name: str, steps: int, tmp_path: Path) -> None:
    own = DDIMScheduler(clip_sample=False)
    kind, words = EPSILON[name]
    theirs = kind.from_config(own.config, **words)
    theirs.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(1)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    products = theirs.alphas_cumprod
    for timestep in theirs.timesteps:
        x = step(theirs, epsilon(x, float(timestep), products), timestep, x, generator)
    pipeline = make_bundle(
        tmp_path / "b", scheduler_entry(own, 1.15), products.numpy().astype(np.float32)
    )
    got = pipeline.generate(class_label=0, seeds=1, steps=steps, scheduler=name)
    assert relative(got.latents, x) < 1e-4


@pytest.mark.parametrize(
    "scheduler",
    [
        EULER(shift=3.0, stochastic_sampling=True),
        FlowMatchLCMScheduler(shift=2.0, use_karras_sigmas=True),
        DPMSolverMultistepScheduler(**FLOW, **SDE, flow_shift=2.0),
        UniPCMultistepScheduler(**FLOW, flow_shift=2.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_the_bundles_own_scheduler(scheduler: Any, tmp_path: Path) -> None:
    """The class and its parameters, as export writes them."""
    pipeline = make_bundle(tmp_path / "b", scheduler_entry(scheduler, 1.15))
    generator = torch.Generator("cpu").manual_seed(7)
    start = torch.randn(1, 4, 8, 8, generator=generator)
    scheduler.set_timesteps(6)
    expected = flow_run(scheduler, start, generator)
    assert relative(pipeline.generate(class_label=0, seeds=7, steps=6).latents, expected) < 1e-4


@pytest.mark.parametrize("steps", [1, 4, 28, 100])
@pytest.mark.parametrize("terminal", [0.0, 0.02])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_sigmas_of_unipc(steps: int, terminal: float, kind: str) -> None:
    """Its dynamic shift, also by the steps as FLUX.2's pipelines do."""
    config = {"use_dynamic_shifting": True, "time_shift_type": kind}
    theirs = UniPCMultistepScheduler(**FLOW, **config, shift_terminal=terminal or None)
    ours = _core.SchedulerConfig(
        type="UniPCMultistepScheduler", shift_terminal=terminal, empirical_mu=True, **config
    )
    if terminal and steps == 1:
        with pytest.raises(intaglio.UsageError, match="shift_terminal"):
            _core.make_schedule(ours, steps, 1024)
        return
    theirs.set_timesteps(steps, mu=compute_empirical_mu(1024, steps))
    made = _core.make_schedule(ours, steps, 1024)
    np.testing.assert_allclose(made.sigmas, theirs.sigmas.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(made.timesteps, theirs.timesteps.numpy())


@pytest.mark.parametrize(
    "options",
    [{"skip_interval": 2}, {"skip_steps": [3]}, {"guidance_prev": 0.5}],
    ids=lambda options: next(iter(options)),
)
def test_predictions_of_other_noise_are_refused(
    flow: intaglio.Pipeline, options: dict[str, Any]
) -> None:
    (name,) = options
    with pytest.raises(intaglio.UsageError, match=f"{name} does not fit a scheduler that adds"):
        flow.generate(class_label=0, steps=6, scheduler="lcm", **options)
    flow.generate(class_label=0, steps=6, scheduler="unipc", **options)
