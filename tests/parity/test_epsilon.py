"""Compare schedules and runs of epsilon models with diffusers' variance preserving schedulers."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import intaglio
from intaglio import _core
from intaglio_export.adapters.schedulers import scheduler_entry
from tests.analytic_bundle import SIZE, encoded, make_bundle

CLASSES = {"ddim": DDIMScheduler, "dpmpp-2m": DPMSolverMultistepScheduler}

# The keys of a configuration file that both classes read. For a missing key, each class has its
# own default.
COMMON = st.fixed_dictionaries(
    {},
    optional={
        "num_train_timesteps": st.sampled_from([1000, 400]),
        "beta_start": st.floats(1e-6, 1e-2),
        "beta_end": st.floats(1e-3, 5e-2),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
        "steps_offset": st.integers(0, 3),
    },
)
ALPHA_TO_ONE = st.sampled_from([{}, {"set_alpha_to_one": True}, {"set_alpha_to_one": False}])


def make(name: str, common: dict[str, Any], alpha_to_one: dict[str, Any]) -> Any:
    """Return a scheduler as from_pretrained makes it from such a file."""
    if name == "ddim":
        return DDIMScheduler(clip_sample=False, **common, **alpha_to_one)
    return DPMSolverMultistepScheduler(**common)


def schedule(own: Any, name: str, steps: int) -> _core.Schedule:
    """Return our schedule by `name`, for a bundle whose own scheduler is `own`."""
    config = _core.SchedulerConfig(prediction_type="epsilon")
    for key, value in scheduler_entry(own, 1.15).items():
        if hasattr(config, key) and key != "prediction_type":
            setattr(config, key, value)
    config.type = _core.scheduler_type(name, "epsilon")
    return _core.make_schedule(config, steps)


def usable(theirs: Any, steps: int) -> bool:
    """Return whether diffusers' timesteps are distinct and inside the table (-1 is its end)."""
    timesteps = theirs.timesteps.numpy()
    return bool(
        len(timesteps) == steps
        and (np.diff(timesteps) < 0).all()
        and timesteps[-1] >= 0
        and timesteps[0] < theirs.config.num_train_timesteps
    )


@settings(deadline=None, max_examples=300)
@given(
    steps=st.integers(1, 200),
    name=st.sampled_from(sorted(CLASSES)),
    common=COMMON,
    alpha_to_one=ALPHA_TO_ONE,
)
def test_schedules(
    steps: int, name: str, common: dict[str, Any], alpha_to_one: dict[str, Any]
) -> None:
    theirs = make(name, common, alpha_to_one)
    theirs.set_timesteps(steps)
    assume(usable(theirs, steps))
    ours = schedule(theirs, name, steps)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
    if name == "ddim":
        back = theirs.config.num_train_timesteps // steps
        ends = [theirs.alphas_cumprod[t - back] for t in theirs.timesteps if t >= back]
        ends += [theirs.final_alpha_cumprod] * (steps - len(ends))
        after = torch.stack(ends)
        np.testing.assert_allclose(ours.end_alphas, after.numpy() ** 0.5, rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.end_sigmas, (1 - after.numpy()) ** 0.5, rtol=0, atol=1e-6)
        products = torch.cat([theirs.alphas_cumprod[theirs.timesteps], after[-1:]])
        alphas, sigmas = products**0.5, (1 - products) ** 0.5
    else:
        alphas, sigmas = theirs._sigma_to_alpha_sigma_t(theirs.sigmas)
    np.testing.assert_allclose(ours.sigmas, sigmas.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.alphas, alphas.numpy(), rtol=0, atol=1e-6)


def epsilon(x: torch.Tensor, timestep: float, products: torch.Tensor) -> torch.Tensor:
    """The model of the bundle, a curved function of x and the noise level."""
    product = products[int(timestep)]
    return (1 - product) ** 0.5 * x + 0.3 * product**0.5 * torch.sin(2 * x + timestep / 300)


def distance(own: Any, name: str, steps: int, begin: int = 0, masked: bool = False) -> float | None:
    """Return the relative L2 between a run by `name` and one of the class from `from_config`.

    Both start from a picture, noised as far as the step `begin`; a mask keeps a part of it, as in
    StableDiffusionInpaintPipeline. The unit is what rounding may do:
    the first prediction is divided by the first alpha, and the first step multiplies it by the
    second. torch's float32 square root differs between machines in the last place, so no more can
    be asked for.
    """
    theirs = CLASSES[name].from_config(
        own.config, **{"clip_sample": False} if name == "ddim" else {}
    )
    theirs.set_timesteps(steps)
    if not usable(theirs, steps):
        return None
    products = theirs.alphas_cumprod
    picture = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(1))
    timesteps = theirs.timesteps[begin:]
    clean, mask = torch.from_numpy(encoded(picture)), np.zeros((SIZE, SIZE), np.uint8)
    mask[3:12, 5:] = 255
    drawn = torch.from_numpy(mask[::2, ::2] / np.float32(255)) if masked else torch.ones(8, 8)
    x = theirs.add_noise(clean, noise, timesteps[:1])
    for i, timestep in enumerate(timesteps):
        model = epsilon(x, float(timestep), products)
        x = theirs.step(model, timestep, x, return_dict=False)[0]
        after = timesteps[i + 1 : i + 2]
        kept = theirs.add_noise(clean, noise, after) if len(after) else clean
        x = torch.where(drawn == 1, x, kept)

    with TemporaryDirectory() as folder:
        pipeline = make_bundle(
            Path(folder) / "b", scheduler_entry(own, 1.15), products.numpy().astype(np.float32)
        )
        got = pipeline.generate(
            class_label=0, image=picture, strength=(steps - begin - 0.5) / steps, seeds=1,
            steps=steps, scheduler=name, mask=mask if masked else None,
        )  # fmt: skip
    assert len(got.step_seconds) == steps - begin
    ours = schedule(own, name, steps).last(steps - begin)
    unit = max(1e-5, 1e-6 * ours.alphas[1] / ours.alphas[0])
    return float(np.linalg.norm(got.latents - x.numpy()) / np.linalg.norm(x.numpy())) / unit


@settings(deadline=None, max_examples=300)
@given(
    steps=st.integers(1, 60),
    own=st.sampled_from(sorted(CLASSES)),
    name=st.sampled_from(sorted(CLASSES)),
    common=COMMON,
    alpha_to_one=ALPHA_TO_ONE,
    left_out=st.floats(0, 0.99),
)
def test_whole_runs(
    steps: int,
    own: str,
    name: str,
    common: dict[str, Any],
    alpha_to_one: dict[str, Any],
    left_out: float,
) -> None:
    """Compare whole runs. Image-to-image leaves out the first `left_out` of the steps."""
    error = distance(make(own, common, alpha_to_one), name, steps, int(steps * left_out))
    assume(error is not None)
    assert error <= 1.0


DIT = DDIMScheduler(clip_sample=False)  # facebook/DiT-XL-2-256; it says no timestep_spacing
PIXART = DPMSolverMultistepScheduler(timestep_spacing="linspace", steps_offset=0)  # PixArt-Sigma


@pytest.mark.parametrize("own", [DIT, PIXART], ids=["dit", "pixart"])
@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 14, 15, 20, 25, 50, 60, 250])
@pytest.mark.parametrize("masked", [False, True])
def test_real_configurations(own: Any, name: str, steps: int, masked: bool) -> None:
    error = distance(own, name, steps, masked=masked)
    assert error is not None
    assert error <= 1.0


def test_what_a_configuration_does_not_say_is_the_class_s_own() -> None:
    """DiT's DPM-Solver++ uses the timesteps of DPMSolverMultistepScheduler, not those of DDIM."""
    dpm, ddim = schedule(DIT, "dpmpp-2m", 10), schedule(DIT, "ddim", 10)
    assert (dpm.timesteps[0], ddim.timesteps[0]) == (999, 900)
    said = DDIMScheduler(clip_sample=False, timestep_spacing="leading")
    assert schedule(said, "dpmpp-2m", 10).timesteps[0] == 900


def test_a_step_that_ends_elsewhere_than_the_next_begins() -> None:
    """Such steps occur, so the comparisons above show that DDIM follows diffusers in them."""
    ours = schedule(PIXART, "ddim", 20)
    assert max(abs(np.subtract(ours.end_sigmas, ours.sigmas[1:]))) > 1e-3
    tail = ours.last(3)
    assert (tail.end_sigmas, tail.end_alphas) == (ours.end_sigmas[-3:], ours.end_alphas[-3:])
    assert (tail.sigmas, tail.alphas) == (ours.sigmas[-4:], ours.alphas[-4:])


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_more_steps_than_timesteps(name: str) -> None:
    with pytest.raises(intaglio.UsageError, match=r"steps 1001.*give fewer"):
        schedule(DIT, name, 1001)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("beta_schedule", "sigmoid", "unknown beta_schedule"),
        ("timestep_spacing", "uniform", "unknown timestep_spacing"),
        ("beta_start", 0.0, "between 0 and 1"),
        ("beta_end", 1.0, "between 0 and 1"),
        ("beta_start", -1.0, "between 0 and 1"),
        ("steps_offset", -1, "steps_offset"),
        ("steps_offset", 1000, "steps_offset"),
        ("steps_offset", 900, "give fewer"),
        ("num_train_timesteps", 2**30, "num_train_timesteps"),
    ],
)
def test_what_makes_no_sense_is_refused(field: str, value: Any, says: str) -> None:
    config = _core.SchedulerConfig(
        type="DDIMScheduler", prediction_type="epsilon", **{field: value}
    )
    with pytest.raises(intaglio.UsageError, match=says):
        _core.make_schedule(config, 4)
