"""Compare runs with a mask with diffusers' pipeline and schedulers, on Stable Diffusion 3.

`family.py` compares each family with its own pipeline.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

import intaglio
from tests.families.parts import MAX_LENGTH
from tests.parity import test_runs
from tests.parity.diffusers_runs import a_mask, inpaint
from tests.parity.test_runs import (
    ADD_NOISE,
    NEGATIVE,
    PROMPT,
    SEED,
    Size,
    embed,
    generate,
    noise,
    relative,
    scheduler,
    suppression,
    with_noise,
)
from tests.parity.three_branch_loop import Skips, sample

ODD = Size(2, 28, 44)  # 7 by 11 tokens
GIVEN = {"height": ODD.height, "width": ODD.width}
STEPS, NEVER = 7, 1e9


@pytest.fixture(autouse=True)
def more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_runs, "STEPS", STEPS)


def picture() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (ODD.height, ODD.width, 3), np.uint8)
    return Image.fromarray(pixels)


# With 0.9 all steps run. With 1 StableDiffusion3InpaintPipeline starts from noise alone, also where
# the first sigma is a little less.
@pytest.mark.parametrize("strength", [0.9, 0.55])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m"])
def test_inpainting_equals_diffusers(
    sd3_pipeline: StableDiffusion3Pipeline,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    strength: float,
) -> None:
    """A batch of two images, with CFG of the pipeline's own."""
    theirs = scheduler(sd3_pipeline, name)
    if name == "dpmpp-2m":  # which has the same arithmetic under another name
        theirs.scale_noise = lambda sample, timestep, noise: theirs.add_noise(
            sample, noise, timestep
        )
    monkeypatch.setattr(sd3_pipeline, "scheduler", theirs)
    mask = a_mask(ODD.height, ODD.width)
    expected = inpaint(
        sd3_pipeline, "StableDiffusion3InpaintPipeline", prompt=PROMPT, negative_prompt=NEGATIVE,
        image=picture(), mask_image=Image.fromarray(mask), height=ODD.height, width=ODD.width,
        strength=strength, num_inference_steps=STEPS, guidance_scale=2.5,
        num_images_per_prompt=2, generator=torch.Generator("cpu").manual_seed(SEED),
        max_sequence_length=MAX_LENGTH,
    )  # fmt: skip
    pipeline = intaglio.Pipeline.open(bundle)
    options: dict[str, Any] = {"image": picture(), "strength": strength}
    got = generate(pipeline, name, "cfg", ODD, mask=mask, **options)
    assert relative(got.latents, expected) < 1e-4
    assert relative(generate(pipeline, name, "cfg", ODD, **options).latents, expected) > 1e-2


@pytest.mark.parametrize(
    ("size", "mask", "padding", "blur", "drawn"),
    [
        ((61, 47), (20, 9, 37, 22), 3, 0, GIVEN),
        ((131, 150), (100, 120, 131, 150), 16, 2.5, GIVEN),  # at a corner
        ((64, 40), (30, 2, 34, 8), 0, 0, GIVEN),
        # Its part is too tall for the drawing, and extended.
        ((30, 90), (5, 10, 20, 80), 4, 1.0, GIVEN),
        ((90, 26), (3, 8, 85, 16), 2, 0, GIVEN),  # and too wide
        ((64, 40), (30, 2, 44, 18), 4, 0, {"height": None, "width": None}),
    ],
)
def test_a_part_around_the_mask_equals_diffusers(
    sd3_pipeline: StableDiffusion3Pipeline,
    forked_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    mask: tuple[int, int, int, int],
    padding: int,
    blur: float,
    drawn: dict[str, Any],
) -> None:
    """Pictures of two images, whose sizes are not those of the drawing."""
    monkeypatch.setattr(sd3_pipeline, "scheduler", scheduler(sd3_pipeline, "euler"))
    vae, decode = sd3_pipeline.vae, sd3_pipeline.vae.decode
    # This pipeline, other than StableDiffusion3Pipeline, leaves out the shift.
    shift = vae.config.shift_factor
    monkeypatch.setattr(vae, "decode", lambda latents, **kwargs: decode(latents + shift, **kwargs))
    whole = picture().resize(size, Image.Resampling.BICUBIC)
    white = Image.new("L", size)
    white.paste(255, mask)
    expected = inpaint(
        sd3_pipeline, "StableDiffusion3InpaintPipeline", "pil", prompt=PROMPT,
        negative_prompt=NEGATIVE, image=whole, mask_image=VaeImageProcessor.blur(white, blur),
        **drawn, padding_mask_crop=padding, strength=0.9,
        num_inference_steps=STEPS, guidance_scale=2.5, num_images_per_prompt=2,
        generator=torch.Generator("cpu").manual_seed(SEED), max_sequence_length=MAX_LENGTH,
    )  # fmt: skip
    got = generate(
        intaglio.Pipeline.open(forked_bundle), "euler", "cfg", replace(ODD, **drawn),
        image=whole, mask=white, mask_padding=padding, mask_blur=blur, strength=0.9,
    )  # fmt: skip
    assert len(got.images) == 2
    for ours, theirs in zip(got.images, expected, strict=True):
        away = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
        assert away.max() <= 1
        assert (np.asarray(ours) != np.asarray(whole)).any()
        kept = np.asarray(VaeImageProcessor.blur(white, blur)) == 0
        np.testing.assert_array_equal(np.asarray(ours)[kept], np.asarray(whole)[kept])


@pytest.mark.parametrize("strength", [0.9, 0.55])
@pytest.mark.parametrize("name", ["dpmpp-2m-sde", "lcm", "unipc"])
def test_inpainting_by_samplers_with_noise_or_a_corrector(
    sd3_pipeline: StableDiffusion3Pipeline,
    forked_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    strength: float,
) -> None:
    """What is kept has the initial noise in every step, whatever the sampler draws after it."""
    theirs = scheduler(sd3_pipeline, name)
    if not hasattr(theirs, "scale_noise"):
        theirs.scale_noise = lambda sample, timestep, noise: theirs.add_noise(
            sample, noise, timestep
        )
    if name in ADD_NOISE:
        theirs = with_noise(theirs, noise(2, ODD.height, ODD.width).shape)
    monkeypatch.setattr(sd3_pipeline, "scheduler", theirs)
    mask = a_mask(ODD.height, ODD.width)
    expected = inpaint(
        sd3_pipeline, "StableDiffusion3InpaintPipeline", prompt=PROMPT, negative_prompt=NEGATIVE,
        image=picture(), mask_image=Image.fromarray(mask), height=ODD.height, width=ODD.width,
        strength=strength, num_inference_steps=STEPS, guidance_scale=2.5,
        num_images_per_prompt=2, generator=torch.Generator("cpu").manual_seed(SEED),
        max_sequence_length=MAX_LENGTH,
    )  # fmt: skip
    pipeline = intaglio.Pipeline.open(forked_bundle)
    options: dict[str, Any] = {"image": picture(), "strength": strength}
    got = generate(pipeline, name, "cfg", ODD, mask=mask, **options)
    assert relative(got.latents, expected) < 1e-4
    assert relative(generate(pipeline, name, "cfg", ODD, **options).latents, expected) > 1e-2


@pytest.mark.parametrize(
    ("name", "skips", "others"),
    [
        ("euler", True, {}),
        ("heun", True, {"reuse_interval": 2.0}),
        ("dpmpp-2m", True, {"cfg_window": (0.0, 0.5)}),
        ("heun", False, {"reuse_interval": 3.0}),
    ],
)
def test_steps_that_do_not_run_everything_are_blended_too(
    sd3_pipeline: StableDiffusion3Pipeline,
    bundle: Path,
    name: str,
    skips: bool,
    others: dict[str, Any],
) -> None:
    """Skipped steps and reused branches with CFG and DG."""
    pipeline = intaglio.Pipeline.open(bundle)
    mask = a_mask(ODD.height, ODD.width)
    drawn = torch.from_numpy((mask[::2, ::2] > 127).astype(np.float32))
    vae, theirs, start = sd3_pipeline.vae, scheduler(sd3_pipeline, name), noise(2, 28, 44)
    pixels = torch.from_numpy(np.asarray(picture(), np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        mean = vae.encode(pixels / 127.5 - 1).latent_dist.mean
    clean = (mean - vae.config.shift_factor) * vae.config.scaling_factor

    def blend(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        sigma = theirs.sigmas[theirs.step_index]
        return drawn * after + (1 - drawn) * (sigma * start + (1 - sigma) * clean)

    how = Skips(2.0, (0.0, 1.0), NEVER) if skips else None
    theirs.set_timesteps(STEPS)
    first = theirs.sigmas[0] * start + (1 - theirs.sigmas[0]) * clean
    expected = sample(
        sd3_pipeline.transformer, theirs, first, embed(sd3_pipeline, PROMPT, 2),
        embed(sd3_pipeline, NEGATIVE, 2), steps=STEPS, cfg_scale=2.5, dg_scale=1.5,
        how=suppression(pipeline.bundle), skips=how, moved=blend, **others,
    )  # fmt: skip
    if skips:
        others = others | {"skip_interval": 2.0, "skip_tolerance": NEVER}
    got = generate(
        pipeline, name, "cfg+dg", ODD, image=picture(), mask=mask, strength=1.0,
        ma_tokens=np.full_like(mask, 255), **others,
    )  # fmt: skip
    assert got.skipped_steps == (how.skipped if how else [])
    assert bool(got.skipped_steps) == skips
    assert relative(got.latents, expected) < 1e-4
