"""Compare whole runs with diffusers' models and schedulers in the three-branch torch loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    LTXEulerAncestralRFScheduler,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)

import intaglio
from intaglio_export.adapters.schedulers import scheduler_entry
from tests.families.parts import MAX_LENGTH
from tests.parity.three_branch_loop import Prompt, Suppression, branches, sample

PROMPT, NEGATIVE = "the dark boot and THE rest", "a shoe"
SEED, STEPS = 5, 5
SCHEDULERS = {
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "dpmpp-2m-sde": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler-ancestral": LTXEulerAncestralRFScheduler,
    "lcm": FlowMatchLCMScheduler,
}
ADD_NOISE = {"dpmpp-2m-sde", "euler-ancestral", "lcm"}
MODES = {"baseline": (1.0, 0.0), "cfg": (2.5, 0.0), "dg": (1.0, 1.5), "cfg+dg": (2.5, 1.5)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def embed(pipeline: StableDiffusion3Pipeline, text: str, rows: int = 1) -> Prompt:
    """Return the result of diffusers' encode_prompt, repeated for `rows` images."""
    with torch.no_grad():
        words, _, pooled, _ = pipeline.encode_prompt(
            text, text, text, do_classifier_free_guidance=False, max_sequence_length=MAX_LENGTH
        )
    return Prompt(words.repeat(rows, 1, 1), pooled.repeat(rows, 1))


def noise(images: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(SEED)
    return torch.randn((images, 4, height // 2, width // 2), generator=generator)


def scheduler(pipeline: StableDiffusion3Pipeline, name: str) -> Any:
    """Return a new scheduler of diffusers with the pipeline's parameters."""
    config = pipeline.scheduler.config
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    flow["flow_shift"] = config.shift
    if name == "dpmpp-2m-sde":
        flow["algorithm_type"] = "sde-dpmsolver++"
    multistep = name in {"dpmpp-2m", "dpmpp-2m-sde", "unipc"}
    return SCHEDULERS[name].from_config(config, **flow if multistep else {})


def with_noise(scheduler: Any, shape: torch.Size) -> Any:
    """Let the scheduler go on with the generator that drew the initial latents."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    torch.randn(shape, generator=generator)
    scheduler.step = partial(scheduler.step, generator=generator)
    return scheduler


def suppression(bundle: intaglio.Bundle, keep: Any = 0.0) -> Suppression:
    found = bundle.massive_activations
    return Suppression.of(found.block, found.channels, bundle.channels, keep)


def relative(got: np.ndarray, expected: torch.Tensor | np.ndarray) -> float:
    expected = np.asarray(expected)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@dataclass(frozen=True)
class Size:
    images: int
    height: int
    width: int


SMALL, WIDE = Size(1, 32, 32), Size(3, 32, 48)


def reference(
    pipeline: StableDiffusion3Pipeline,
    how: Suppression,
    name: str,
    mode: str,
    size: Size,
    **kwargs: Any,
) -> torch.Tensor:
    cfg, dg = MODES[mode]
    latents, used = noise(size.images, size.height, size.width), scheduler(pipeline, name)
    return sample(
        pipeline.transformer,
        with_noise(used, latents.shape) if name in ADD_NOISE else used,
        latents,
        embed(pipeline, PROMPT, size.images),
        embed(pipeline, NEGATIVE, size.images),
        steps=STEPS,
        cfg_scale=cfg,
        dg_scale=dg,
        how=how,
        **kwargs,
    )


def generate(
    pipeline: intaglio.Pipeline, name: str, mode: str, size: Size, **kwargs: Any
) -> intaglio.Generation:
    cfg, dg = MODES[mode]
    return pipeline.generate(
        PROMPT,
        negative_prompt=NEGATIVE,
        seeds=SEED,
        batch=size.images,
        height=size.height,
        width=size.width,
        steps=STEPS,
        cfg_scale=cfg,
        dg_scale=dg,
        scheduler=name,
        **kwargs,
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [SMALL, WIDE], ids=["1x32x32", "3x32x48"])
@pytest.mark.parametrize("mode", MODES)
def test_runs_equal_diffusers(
    sd3_pipeline: StableDiffusion3Pipeline, bundle: Path, mode: str, size: Size, threads: int
) -> None:
    pipeline = intaglio.Pipeline.open(bundle, threads=threads)
    expected = reference(sd3_pipeline, suppression(pipeline.bundle), "euler", mode, size)
    got = generate(pipeline, "euler", mode, size)
    assert relative(got.latents, expected) < 1e-4
    with torch.no_grad():
        config = sd3_pipeline.vae.config
        decoded = sd3_pipeline.vae.decode(expected / config.scaling_factor + config.shift_factor)
    images = sd3_pipeline.image_processor.postprocess(decoded.sample, output_type="pil")
    for ours, theirs in zip(got.images, images, strict=True):
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"euler"}))
def test_other_schedulers_equal_diffusers(
    sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path, name: str
) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle)
    expected = reference(sd3_pipeline, suppression(pipeline.bundle), name, "cfg+dg", WIDE)
    assert relative(generate(pipeline, name, "cfg+dg", WIDE).latents, expected) < 1e-4


EPSILON = {"ddim": DDIMScheduler, "dpmpp-2m": DPMSolverMultistepScheduler}


@pytest.fixture(scope="module")
def epsilon_bundle(forked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the same network that claims to predict epsilon, with DiT's scheduler."""
    path = tmp_path_factory.mktemp("epsilon") / "bundle"
    shutil.copytree(forked_bundle, path)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["prediction_type"] = "epsilon"
    manifest["scheduler"] = scheduler_entry(DDIMScheduler(clip_sample=False), 1.15)
    (path / "bundle.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize("name", EPSILON)
def test_epsilon_models_equal_diffusers(
    sd3_pipeline: StableDiffusion3Pipeline, epsilon_bundle: Path, name: str
) -> None:
    pipeline = intaglio.Pipeline.open(epsilon_bundle)
    cfg, dg = MODES["cfg+dg"]
    expected = sample(
        sd3_pipeline.transformer,
        EPSILON[name].from_config(DDIMScheduler(clip_sample=False).config),
        noise(3, 32, 48),
        embed(sd3_pipeline, PROMPT, 3),
        embed(sd3_pipeline, NEGATIVE, 3),
        steps=STEPS,
        cfg_scale=cfg,
        dg_scale=dg,
        how=suppression(pipeline.bundle),
    )
    got = generate(pipeline, name, "cfg+dg", WIDE)
    assert relative(got.latents, expected) < 1e-4


@pytest.mark.parametrize("name", EPSILON)
def test_image_to_image_of_epsilon_models(
    sd3_pipeline: StableDiffusion3Pipeline, epsilon_bundle: Path, name: str
) -> None:
    """Compare with diffusers' add_noise and its steps from there."""
    pipeline = intaglio.Pipeline.open(epsilon_bundle)
    picture = pipeline.generate(PROMPT, seeds=1, steps=2).images[0]
    vae, prompt = sd3_pipeline.vae, embed(sd3_pipeline, PROMPT)
    scheduler = EPSILON[name].from_config(DDIMScheduler(clip_sample=False).config)
    scheduler.set_timesteps(8)
    with torch.no_grad():
        mean = vae.encode(sd3_pipeline.image_processor.preprocess(picture)).latent_dist.mean
        clean = (mean - vae.config.shift_factor) * vae.config.scaling_factor
        x = scheduler.add_noise(clean, noise(1, 32, 32), scheduler.timesteps[4:5])
        for timestep in scheduler.timesteps[4:]:
            model = branches(sd3_pipeline.transformer, x, timestep, prompt)["c"]
            x = scheduler.step(model, timestep, x, return_dict=False)[0]
    got = pipeline.generate(
        PROMPT, image=picture, strength=0.5, steps=8, cfg_scale=1.0, dg_scale=0.0, seeds=SEED,
        scheduler=name,
    )  # fmt: skip
    assert relative(got.latents, x) < 1e-4


def test_schedulers_that_do_not_fit_are_named(forked_bundle: Path, epsilon_bundle: Path) -> None:
    for path, name, fitting in (
        (forked_bundle, "ddim", "euler, heun, dpmpp-2m, .* lcm"),
        (epsilon_bundle, "euler", "dpmpp-2m, dpmpp-2m-sde, unipc, ddim"),
        (epsilon_bundle, "heun", "dpmpp-2m, dpmpp-2m-sde, unipc, ddim"),
    ):
        with pytest.raises(intaglio.UsageError, match=f'"{name}" does not fit .* {fitting}$'):
            generate(intaglio.Pipeline.open(path), name, "baseline", SMALL)


def test_every_mode_and_scheduler_gives_something_else(forked_bundle: Path) -> None:
    """All results differ, so the comparisons above would notice a wrong mode or scheduler."""
    pipeline = intaglio.Pipeline.open(forked_bundle)
    latents = [generate(pipeline, "euler", mode, SMALL).latents for mode in MODES]
    latents += [
        generate(pipeline, name, "cfg+dg", SMALL).latents for name in SCHEDULERS if name != "euler"
    ]
    for i, one in enumerate(latents):
        for other in latents[i + 1 :]:
            assert relative(one, other) > 1e-3


def test_windows_and_keep_schedule(sd3_pipeline: StableDiffusion3Pipeline, bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(bundle)
    how = suppression(pipeline.bundle, lambda step, steps: 0.8 - 0.6 * step / (steps - 1))
    windows = {"cfg_window": (0.0, 0.6), "dg_window": (0.2, 0.8)}
    expected = reference(sd3_pipeline, how, "euler", "cfg+dg", SMALL, **windows)
    got = generate(pipeline, "euler", "cfg+dg", SMALL, ma_keep=(0.8, 0.2), **windows)
    assert relative(got.latents, expected) < 1e-4
    # Steps 0, 1, 2 of 5 have CFG and steps 1, 2, 3 have DG.
    assert got.forked_rows == 2 + 3 + 3 + 2 + 1


def test_token_mask(sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle)
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, 16:] = 255  # the right half is suppressed
    tokens = torch.ones(8, 8)
    tokens[:, 4:] = 0.0
    how = suppression(pipeline.bundle, tokens.flatten()[None])
    expected = reference(sd3_pipeline, how, "euler", "dg", SMALL)
    got = generate(pipeline, "euler", "dg", SMALL, ma_tokens=picture)
    assert relative(got.latents, expected) < 1e-4
    assert relative(generate(pipeline, "euler", "dg", SMALL).latents, expected) > 1e-3


def test_other_channels_without_a_new_export(
    sd3_pipeline: StableDiffusion3Pipeline, bundle: Path
) -> None:
    pipeline = intaglio.Pipeline.open(bundle)
    block = pipeline.bundle.massive_activations.block
    how = Suppression.of(block, [1, 40, 63], pipeline.bundle.channels)
    expected = reference(sd3_pipeline, how, "euler", "dg", SMALL)
    got = generate(pipeline, "euler", "dg", SMALL, ma_channels=[1, 40, 63])
    assert relative(got.latents, expected) < 1e-4


def test_forked_equals_dual(forked_bundle: Path, dual_bundle: Path) -> None:
    one, other = (intaglio.Pipeline.open(b) for b in (forked_bundle, dual_bundle))
    for size in (SMALL, WIDE):
        forked = generate(one, "euler", "cfg+dg", size).latents
        assert relative(generate(other, "euler", "cfg+dg", size).latents, forked) < 1e-5


def test_a_batch_equals_its_images(forked_bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle)
    together = pipeline.generate(PROMPT, seeds=[3, 4, 5], steps=STEPS, dg_scale=1.0)
    for i, seed in enumerate((3, 4, 5)):
        alone = pipeline.generate(PROMPT, seeds=seed, steps=STEPS, dg_scale=1.0)
        assert relative(together.latents[i], alone.latents[0]) < 1e-5


def test_each_branch(sd3_pipeline: StableDiffusion3Pipeline, bundle: Path) -> None:
    """Run one Euler step, x + (0 - 1) * D, from which the prediction D of each branch follows."""
    pipeline = intaglio.Pipeline.open(bundle)
    x = noise(2, 32, 32)
    cond, null = embed(sd3_pipeline, PROMPT, 2), embed(sd3_pipeline, NEGATIVE, 2)
    how = suppression(pipeline.bundle)
    with torch.no_grad():
        expected = branches(sd3_pipeline.transformer, x, torch.tensor(1000.0), cond, null, how)
    scales = {"c": (1.0, 0.0), "0": (0.0, 0.0), "m": (1.0, -1.0)}
    for branch, (cfg, dg) in scales.items():
        got = pipeline.generate(
            PROMPT, negative_prompt=NEGATIVE, latents=x, steps=1, cfg_scale=cfg, dg_scale=dg
        )
        assert relative(x.numpy() - got.latents, expected[branch]) < 1e-5, branch


@pytest.mark.parametrize(("strength", "steps"), [(0.5, 8), (0.6, 7), (0.3, 4), (1.0, 3)])
def test_image_to_image(
    sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path, strength: float, steps: int
) -> None:
    """Compare with diffusers' own loop, started from the mean of the encoder's posterior."""
    from diffusers import StableDiffusion3Img2ImgPipeline

    pipeline = intaglio.Pipeline.open(forked_bundle)
    picture = pipeline.generate(PROMPT, seeds=1, steps=2).images[0]
    theirs = StableDiffusion3Img2ImgPipeline(**sd3_pipeline.components)
    pixels = theirs.image_processor.preprocess(picture)
    with torch.no_grad():
        mean = theirs.vae.encode(pixels).latent_dist.mean
    config = theirs.vae.config
    clean = (mean - config.shift_factor) * config.scaling_factor
    ran: list[int] = []

    def count(_pipeline: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        ran.append(step)
        return {}

    expected = theirs(
        PROMPT,
        image=clean,  # latents are taken as they are
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(SEED),
        max_sequence_length=MAX_LENGTH,
        output_type="latent",
        callback_on_step_end=count,
        callback_on_step_end_tensor_inputs=[],
    ).images
    got = pipeline.generate(
        PROMPT, image=picture, strength=strength, steps=steps, cfg_scale=2.0, dg_scale=0.0,
        seeds=SEED,
    )  # fmt: skip
    assert len(got.step_seconds) == len(ran)
    assert relative(got.latents, expected) < 1e-4


def test_tiled_decoding(sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle)
    got = pipeline.generate(PROMPT, steps=1, height=64, width=80, vae_tile=32)
    vae = sd3_pipeline.vae
    latents = torch.from_numpy(got.latents) / vae.config.scaling_factor + vae.config.shift_factor
    vae.enable_tiling()
    try:
        vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 16
        with torch.no_grad():
            decoded = vae.decode(latents).sample
    finally:
        vae.disable_tiling()
    expected = sd3_pipeline.image_processor.postprocess(decoded, output_type="np")[0]
    assert np.abs(np.asarray(got.images[0]) / 255.0 - expected).max() < 2.0 / 255.0


def test_plain_cfg_equals_the_diffusers_pipeline(
    sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path
) -> None:
    expected = sd3_pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=32,
        width=48,
        num_inference_steps=STEPS,
        guidance_scale=2.5,
        num_images_per_prompt=3,
        generator=torch.Generator("cpu").manual_seed(SEED),
        max_sequence_length=MAX_LENGTH,
        output_type="latent",
    ).images
    pipeline = intaglio.Pipeline.open(forked_bundle)
    assert relative(generate(pipeline, "euler", "cfg", WIDE).latents, expected) < 1e-4
