"""Schedules and samplers with a denoiser in Python, against diffusers' own schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import intaglio
from intaglio import _core

Array = np.ndarray[Any, Any]
EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"
SAMPLERS: dict[str, Callable[..., Array]] = {
    EULER: _core.sample_euler,
    HEUN: _core.sample_heun,
    DPM: _core.sample_dpmpp_2m,
}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
PARAMETERS: dict[str, dict[str, Any]] = {EULER: {"shift": 3.0}, HEUN: {"shift": 3.0}, DPM: FLOW}
STEPS = 7


def velocity(x: Array, sigma: float) -> Array:
    """Some model: smooth, not linear."""
    return (np.sin(2 * x) + 0.3 * sigma * x).astype(np.float32)


def theirs(type_: str, x: Array) -> Array:
    """diffusers' loop with the same model."""
    scheduler = getattr(diffusers, type_)(**PARAMETERS[type_])
    scheduler.set_timesteps(STEPS)
    sample = torch.from_numpy(x.copy())
    for t in scheduler.timesteps:
        sigma = float(t) / 1000
        model = torch.from_numpy(velocity(sample.numpy(), sigma))
        sample = scheduler.step(model, t, sample).prev_sample
    return sample.numpy()


def schedule(type_: str) -> _core.Schedule:
    return _core.make_schedule(_core.SchedulerConfig(type=type_, shift=3.0), STEPS)


@pytest.mark.parametrize("type_", SAMPLERS)
def test_a_run_equals_diffusers(type_: str) -> None:
    x = _core.Generator(1).randn([2, 3, 5])
    got = SAMPLERS[type_](
        lambda x, point: x - np.float32(point.sigma) * velocity(x, point.timestep / 1000),
        x,
        schedule(type_),
    )
    assert got.shape == x.shape
    np.testing.assert_allclose(got, theirs(type_, x), rtol=0, atol=2e-5)


def test_dynamic_shift_is_diffusers() -> None:
    config = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    scheduler.set_timesteps(9, mu=mu)
    got = _core.make_schedule(_core.SchedulerConfig(**config), 9, 1024)
    np.testing.assert_allclose(got.sigmas, scheduler.sigmas.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.timesteps, scheduler.timesteps.numpy(), rtol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_the_given_noise_is_left_alone_and_kept_arrays_stay(sampler: Any) -> None:
    noise = _core.Generator(2).randn([4])
    before = noise.copy()
    kept: list[Array] = []
    seen: list[Array] = []

    def on_step(point: _core.StepPoint, x: Array) -> None:
        kept.append(x)
        seen.append(x.copy())

    result = sampler(lambda x, point: x * np.float32(0.5), noise, schedule(EULER), on_step)
    np.testing.assert_array_equal(noise, before)
    assert len(kept) == STEPS
    np.testing.assert_array_equal(kept, seen)
    np.testing.assert_array_equal(kept[-1], result)
    assert len({x.tobytes() for x in kept}) == STEPS


def test_returning_false_stops() -> None:
    points: list[int] = []

    def on_step(point: _core.StepPoint, x: Array) -> bool:
        points.append(point.step)
        return point.step < 2

    _core.sample_euler(lambda x, point: x, np.ones(3, np.float32), schedule(EULER), on_step)
    assert points == [0, 1, 2]


def test_what_python_raises_comes_through() -> None:
    def denoise(x: Array, point: _core.StepPoint) -> Array:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        _core.sample_euler(denoise, np.ones(3, np.float32), schedule(EULER))


def test_wrong_results_of_a_denoiser_are_named() -> None:
    x = np.ones(3, np.float32)
    with pytest.raises(intaglio.UsageError, match=r"\[2\] for \[3\]"):
        _core.sample_euler(lambda x, point: x[:2].copy(), x, schedule(EULER))
    with pytest.raises(intaglio.InputError, match="float32"):
        _core.sample_euler(lambda x, point: x.astype(np.float64), x, schedule(EULER))
    with pytest.raises(intaglio.UsageError, match="one sigma more"):
        _core.Schedule([1.0, 0.0], [1000.0, 500.0])
    with pytest.raises(intaglio.UsageError, match="as many alphas"):
        _core.Schedule([1.0, 0.0], [1000.0], [0.0])


def test_a_schedule_without_alphas_is_of_flow_matching() -> None:
    assert _core.Schedule([0.75, 0.25, 0.0], [750.0, 250.0]).alphas == [0.25, 0.75, 1.0]


def test_ddim_with_a_schedule_of_ones_own() -> None:
    """Against diffusers' with "leading" timesteps, whose steps end where the next ones begin."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(5)
    products = [*scheduler.alphas_cumprod[scheduler.timesteps].tolist(), 1.0]
    own = _core.Schedule(
        [(1 - p) ** 0.5 for p in products], scheduler.timesteps.tolist(), [p**0.5 for p in products]
    )
    x = _core.Generator(3).randn([2, 6])
    expected = torch.from_numpy(x.copy())
    for t in scheduler.timesteps:
        model = torch.from_numpy(velocity(expected.numpy(), float(t) / 1000))
        expected = scheduler.step(model, t, expected).prev_sample
    got = _core.sample_ddim(
        lambda x, point: _core.to_denoised("epsilon", x, point, velocity(x, point.timestep / 1000)),
        x,
        own,
    )
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_denoised() -> None:
    seen: list[_core.StepPoint] = []

    def denoise(x: Array, point: _core.StepPoint) -> Array:
        seen.append(point)
        return x

    x = np.array([2.0, -1.0], np.float32)
    _core.sample_ddim(denoise, x, _core.Schedule([0.5, 0.0], [10.0], [0.25, 1.0]))
    assert (seen[0].sigma, seen[0].alpha) == (0.5, 0.25)
    output = np.array([1.0, 3.0], np.float32)
    for prediction_type, expected in {"velocity": [1.5, -2.5], "epsilon": [6.0, -10.0]}.items():
        got = _core.to_denoised(prediction_type, x, seen[0], output)
        np.testing.assert_array_equal(got, np.array(expected, np.float32))
    with pytest.raises(intaglio.UsageError, match="use velocity or epsilon"):
        _core.to_denoised("v_prediction", x, seen[0], output)
    with pytest.raises(intaglio.UsageError, match=r"\[1\] for \[2\]"):
        _core.to_denoised("velocity", x, seen[0], output[:1].copy())


def test_names() -> None:
    names = ["euler", "heun", "dpmpp-2m"]
    assert [_core.scheduler_type(name, "velocity") for name in names] == list(SAMPLERS)
    assert _core.scheduler_type("ddim", "epsilon") == "DDIMScheduler"
    assert _core.scheduler_type("dpmpp-2m", "epsilon") == DPM
    with pytest.raises(intaglio.UsageError, match=r"unknown .* use one of euler, heun, dpmpp-2m$"):
        _core.scheduler_type("plms", "velocity")
    with pytest.raises(intaglio.UsageError, match=r"predicts velocity: .* euler, heun, dpmpp-2m$"):
        _core.scheduler_type("ddim", "velocity")
    with pytest.raises(intaglio.UsageError, match=r"predicts epsilon: use one of dpmpp-2m, ddim$"):
        _core.scheduler_type("euler", "epsilon")
    with pytest.raises(intaglio.UsageError, match='unknown prediction type "sample"'):
        _core.scheduler_type("euler", "sample")
    with pytest.raises(intaglio.UsageError, match="shfit"):
        _core.SchedulerConfig(shfit=3.0)
    with pytest.raises(intaglio.UsageError, match="steps do not exist"):
        schedule(EULER).last(STEPS + 1)
    assert schedule(EULER).last(2).sigmas == schedule(EULER).sigmas[-3:]
