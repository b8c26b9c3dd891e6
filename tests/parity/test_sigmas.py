"""Compare schedules and whole runs with diffusers' scheduler objects."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from intaglio import _core
from tests.analytic_bundle import make_bundle

SAMPLERS = {
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
}
STEPS = (1, 2, 3, 5, 10, 28, 50)


def reference(name: str, **config: Any) -> Any:
    """Return diffusers' scheduler with the same parameters."""
    if name == "dpmpp-2m":
        config["flow_shift"] = config.pop("shift", 1.0)
        config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return SAMPLERS[name](**config)


def schedule(name: str, steps: int, image_seq_len: int = 64, **config: Any) -> _core.Schedule:
    config["type"] = _core.scheduler_type(name, "velocity")
    return _core.make_schedule(_core.SchedulerConfig(**config), steps, image_seq_len)


def assert_equal(ours: _core.Schedule, sigmas: torch.Tensor, timesteps: torch.Tensor) -> None:
    np.testing.assert_allclose(ours.sigmas, sigmas.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.alphas, 1 - sigmas.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.timesteps, timesteps.numpy(), rtol=1e-6, atol=0)


@settings(deadline=None)
@given(steps=st.integers(1, 200), shift=st.floats(0.1, 20), name=st.sampled_from(sorted(SAMPLERS)))
def test_static_shift(steps: int, shift: float, name: str) -> None:
    theirs = reference(name, shift=shift)
    theirs.set_timesteps(steps)
    sigmas, timesteps = theirs.sigmas, theirs.timesteps
    if name == "heun":  # diffusers lists values that both evaluations share twice
        timesteps = torch.cat([timesteps[:1], timesteps[1::2]])
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
    assert_equal(schedule(name, steps, shift=shift), sigmas, timesteps)


@settings(deadline=None)
@given(
    steps=st.integers(1, 100),
    image_seq_len=st.integers(16, 16384),
    time_shift_type=st.sampled_from(["exponential", "linear"]),
    shift_terminal=st.sampled_from([None, 0.02, 0.1]),
)
def test_dynamic_shift(
    steps: int, image_seq_len: int, time_shift_type: str, shift_terminal: float | None
) -> None:
    assume(shift_terminal is None or steps > 1)  # diffusers divides zero by zero
    config: dict[str, Any] = {"use_dynamic_shifting": True, "time_shift_type": time_shift_type}
    theirs = reference("euler", **config, shift_terminal=shift_terminal)
    theirs.set_timesteps(steps, mu=calculate_shift(image_seq_len))
    ours = schedule("euler", steps, image_seq_len, **config, shift_terminal=shift_terminal or 0.0)
    assert_equal(ours, theirs.sigmas, theirs.timesteps)


@settings(deadline=None)
@given(steps=st.integers(1, 100), image_seq_len=st.integers(16, 16384))
def test_dynamic_shift_of_dpm_solver(steps: int, image_seq_len: int) -> None:
    theirs = reference("dpmpp-2m", use_dynamic_shifting=True)
    theirs.set_timesteps(steps, mu=calculate_shift(image_seq_len))
    ours = schedule("dpmpp-2m", steps, image_seq_len, use_dynamic_shifting=True)
    assert_equal(ours, theirs.sigmas, theirs.timesteps)


@settings(deadline=None)
@given(steps=st.integers(1, 200), image_seq_len=st.integers(1, 16384))
@example(steps=4, image_seq_len=4300)
@example(steps=4, image_seq_len=4301)
def test_empirical_mu(steps: int, image_seq_len: int) -> None:
    """Compare with the calls of Flux2KleinPipeline and Flux2Pipeline."""
    theirs = reference("euler", use_dynamic_shifting=True)
    mu = compute_empirical_mu(image_seq_len, steps)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    config = {"use_dynamic_shifting": True, "linspace_sigmas": True, "empirical_mu": True}
    ours = schedule("euler", steps, image_seq_len, **config)
    assert_equal(ours, theirs.sigmas, theirs.timesteps)
    theirs = reference("dpmpp-2m", use_dynamic_shifting=True)
    theirs.set_timesteps(steps, mu=mu)
    ours = schedule("dpmpp-2m", steps, image_seq_len, **config)
    assert_equal(ours, theirs.sigmas, theirs.timesteps)


@settings(deadline=None)
@given(
    steps=st.integers(1, 100),
    image_seq_len=st.integers(16, 16384),
    shift=st.sampled_from([1.0, 3.0, 0.7]),
    dynamic=st.booleans(),
    time_shift_type=st.sampled_from(["exponential", "linear"]),
    shift_terminal=st.sampled_from([None, 0.02, 0.1]),
)
def test_sigmas_of_the_pipeline(
    steps: int,
    image_seq_len: int,
    shift: float,
    dynamic: bool,
    time_shift_type: str,
    shift_terminal: float | None,
) -> None:
    """Compare with the calls of FluxPipeline (static and dynamic shift) and QwenImagePipeline."""
    assume(shift_terminal is None or steps > 1)
    config: dict[str, Any] = {
        "shift": shift,
        "use_dynamic_shifting": dynamic,
        "time_shift_type": time_shift_type,
    }
    theirs = reference("euler", **config, shift_terminal=shift_terminal)
    theirs.set_timesteps(
        sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(image_seq_len)
    )
    config |= {"shift_terminal": shift_terminal or 0.0}
    ours = schedule("euler", steps, image_seq_len, **config, linspace_sigmas=True)
    assert_equal(ours, theirs.sigmas, theirs.timesteps)
    for name in ("heun", "dpmpp-2m"):  # which have sigmas of their own
        if name == "dpmpp-2m" and dynamic and time_shift_type == "linear":
            continue
        both = [schedule(name, steps, 64, **config, linspace_sigmas=x) for x in (False, True)]
        assert both[0].sigmas == both[1].sigmas


@settings(deadline=None)
@given(
    steps=st.integers(1, 200),
    spacing=st.sampled_from(["karras", "exponential", "beta"]),
    linspace=st.booleans(),
    dynamic=st.booleans(),
    shift=st.floats(0.3, 12),
    shift_terminal=st.sampled_from([None, 0.02]),
)
@example(steps=1, spacing="beta", linspace=True, dynamic=False, shift=1.0, shift_terminal=None)
def test_spacings(
    steps: int,
    spacing: str,
    linspace: bool,
    dynamic: bool,
    shift: float,
    shift_terminal: float | None,
) -> None:
    """Euler's only. Chroma's pipeline gives its own sigmas, and Stable Diffusion 3's does not."""
    assume(shift_terminal is None or steps > 1)
    config: dict[str, Any] = {"shift": shift, "use_dynamic_shifting": dynamic}
    words = {f"use_{spacing}_sigmas": True, "shift_terminal": shift_terminal}
    theirs = reference("euler", **config, **words)
    mu = calculate_shift(1024) if dynamic else None
    if linspace:
        theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    else:
        theirs.set_timesteps(steps, mu=mu)
    config |= {"linspace_sigmas": linspace, "shift_terminal": shift_terminal or 0.0}
    ours = schedule("euler", steps, 1024, **config, spacing=spacing)
    assert_equal(ours, theirs.sigmas, theirs.timesteps)
    heun = [schedule("heun", steps, 64, **config, spacing=x).sigmas for x in ("", spacing)]
    assert heun[0] == heun[1]
    with pytest.raises(_core.UsageError, match=f"dpmpp-2m has no {spacing} sigmas: use euler"):
        schedule("dpmpp-2m", steps, 64, **config, spacing=spacing)


def test_a_bundle_with_beta_sigmas_runs(tmp_path: Path) -> None:
    scheduler = {"type": "FlowMatchEulerDiscreteScheduler", "use_beta_sigmas": True, "shift": 3.0}
    pipeline = make_bundle(tmp_path / "b", scheduler)
    theirs = reference("euler", use_beta_sigmas=True, shift=3.0)
    theirs.set_timesteps(7)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(1))
    ours = pipeline.generate(class_label=0, latents=x, steps=7).latents
    for timestep in theirs.timesteps:
        x = theirs.step(velocity(x, float(timestep)), timestep, x, return_dict=False)[0]
    assert np.linalg.norm(ours - x.numpy()) <= 1e-5 * np.linalg.norm(x.numpy())


def velocity(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """The model of the bundle."""
    t = torch.tensor(timestep / 1000, dtype=torch.float32)
    return torch.sin(3 * x) + t * x - 0.5 * torch.cos(2 * t)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_whole_runs(shift: float, tmp_path: Path) -> None:
    scheduler = {"type": "FlowMatchEulerDiscreteScheduler", "shift": shift}
    pipeline = make_bundle(tmp_path / "b", scheduler)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(1))
    for name in sorted(SAMPLERS):
        for steps in STEPS:
            theirs = reference(name, shift=shift)
            theirs.set_timesteps(steps)
            x = start.clone()
            for timestep in theirs.timesteps:
                x = theirs.step(velocity(x, float(timestep)), timestep, x, return_dict=False)[0]
            called: list[float] = []
            ours = pipeline.generate(
                class_label=0, latents=start, batch=2, steps=steps, scheduler=name,
                on_step=lambda step, called=called: called.append(step.timestep),
            ).latents  # fmt: skip
            # The callback reports the second of a Heun step's two evaluations.
            last = theirs.timesteps[1::2].tolist() + theirs.timesteps[-1:].tolist()
            expected = last if name == "heun" else theirs.timesteps.tolist()
            np.testing.assert_allclose(called, expected, rtol=1e-6, err_msg=f"{name} {steps}")
            error = np.linalg.norm(ours - x.numpy()) / np.linalg.norm(x.numpy())
            assert error <= 1e-5, (name, steps)
