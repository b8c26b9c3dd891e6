"""Schedules as Python makes them, against diffusers' own schedulers."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest

import intaglio
from intaglio import _core

EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"
STEPS = 7


def schedule(type_: str) -> _core.Schedule:
    return _core.make_schedule(_core.SchedulerConfig(type=type_, shift=3.0), STEPS)


def test_dynamic_shift_is_diffusers() -> None:
    config = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    scheduler.set_timesteps(9, mu=mu)
    got = _core.make_schedule(_core.SchedulerConfig(**config), 9, 1024)
    np.testing.assert_allclose(got.sigmas, scheduler.sigmas.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.timesteps, scheduler.timesteps.numpy(), rtol=1e-6)


def test_lengths_that_do_not_fit_are_named() -> None:
    with pytest.raises(intaglio.UsageError, match="one sigma more"):
        _core.Schedule([1.0, 0.0], [1000.0, 500.0])
    with pytest.raises(intaglio.UsageError, match="as many alphas"):
        _core.Schedule([1.0, 0.0], [1000.0], [0.0])


def test_a_schedule_without_alphas_is_of_flow_matching() -> None:
    assert _core.Schedule([0.75, 0.25, 0.0], [750.0, 250.0]).alphas == [0.25, 0.75, 1.0]


def test_names() -> None:
    names = ["euler", "heun", "dpmpp-2m"]
    assert [_core.scheduler_type(name, "velocity") for name in names] == [EULER, HEUN, DPM]
    assert _core.scheduler_type("ddim", "epsilon") == "DDIMScheduler"
    assert _core.scheduler_type("dpmpp-2m", "epsilon") == DPM
    assert _core.scheduler_type("dpmpp-2m-sde", "velocity") == DPM
    flow = "euler, heun, dpmpp-2m, dpmpp-2m-sde, unipc, euler-ancestral, lcm$"
    with pytest.raises(intaglio.UsageError, match=f"unknown .* use one of {flow}"):
        _core.scheduler_type("plms", "velocity")
    with pytest.raises(intaglio.UsageError, match=f"predicts velocity: .* {flow}"):
        _core.scheduler_type("ddim", "velocity")
    noise = "dpmpp-2m, dpmpp-2m-sde, unipc, ddim$"
    with pytest.raises(intaglio.UsageError, match=f"predicts epsilon: use one of {noise}"):
        _core.scheduler_type("euler", "epsilon")
    with pytest.raises(intaglio.UsageError, match='unknown prediction type "sample"'):
        _core.scheduler_type("euler", "sample")
    with pytest.raises(intaglio.UsageError, match="shfit"):
        _core.SchedulerConfig(shfit=3.0)
    with pytest.raises(intaglio.UsageError, match="steps do not exist"):
        schedule(EULER).last(STEPS + 1)
    assert schedule(EULER).last(2).sigmas == schedule(EULER).sigmas[-3:]
