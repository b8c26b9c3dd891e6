"""Krea 2: the base model, and in defaults and schedule the distilled one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Krea2Pipeline
from diffusers.pipelines.krea2.pipeline_krea2 import calculate_shift
from PIL import Image

import intaglio
from intaglio_export.adapters.krea2 import Krea2Adapter
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from tests import bundles
from tests.families import FAMILIES, krea2
from tests.parity.diffusers_runs import HEIGHT, NEGATIVE, PROMPT, STEPS, STRENGTH
from tests.parity.family import (
    ENGINES,
    LIMITS,
    Export,
    FamilyParity,
    assert_prompts_share_a_batch,
    relative,
)

LENGTH = 16
SHIFTS = ("base_shift", "max_shift")


class TestKrea2(FamilyParity):
    name = "krea2"
    test_inpainting = None  # diffusers has no such pipeline

    def test_image_to_image(
        self, bundle: Export, condition: dict[str, Any], size: dict[str, int]
    ) -> None:
        """diffusers' pipeline from latents and sigmas that its other families would begin with."""
        noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, size["width"], 3), np.uint8)
        expected = run_from(self.family.make(), Image.fromarray(noise), seed=3, **size)
        got = bundle("forked", "float32").generate(
            **condition, **size, image=Image.fromarray(noise), strength=STRENGTH, seeds=3,
            steps=STEPS, cfg_scale=1.0, dg_scale=0.0,
        )  # fmt: skip
        assert relative(got.latents, expected) < LIMITS["float32"]

    @pytest.mark.exports
    @pytest.mark.parametrize(("layout", "dtype"), ENGINES)
    def test_engines(self, layout: str, dtype: str, tmp_path: Path) -> None:
        super().test_engines(layout, dtype, tmp_path)

    def test_prompts_of_different_lengths(self, size: dict[str, int]) -> None:
        assert_prompts_share_a_batch(self.name, bundles.bundle(self.name), size)


@torch.no_grad()
def run_from(pipeline: Krea2Pipeline, image: Image.Image, seed: int, **size: int) -> torch.Tensor:
    """Draw PROMPT from the mean of the VAE's posterior, over which lies noise of STRENGTH."""
    pipeline.set_progress_bar_config(disable=True)
    config, scheduler = pipeline.vae.config, pipeline.scheduler
    pixels = pipeline.image_processor.preprocess(image).unsqueeze(2)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    clean = (pipeline.vae.encode(pixels).latent_dist.mode().squeeze(2) - mean) / std
    tokens = clean[0, 0].numel() // pipeline.patch_size**2
    sigmas = np.linspace(1.0, 1 / STEPS, STEPS)[int(STEPS - STEPS * STRENGTH) :]
    scheduler.set_timesteps(
        sigmas=sigmas, mu=calculate_shift(tokens, 256, 6400, *(scheduler.config[k] for k in SHIFTS))
    )
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    begun = scheduler.scale_noise(clean, scheduler.timesteps[:1], noise)
    packed: torch.Tensor = pipeline(
        PROMPT, **size, guidance_scale=0.0, max_sequence_length=LENGTH, output_type="latent",
        num_inference_steps=len(sigmas), sigmas=sigmas,
        latents=pipeline._pack_latents(begun, *clean.shape),
    ).images  # fmt: skip
    return packed


def test_embeddings_are_the_pipelines() -> None:
    """The pipeline pads before the end of its template, and the runtime after it."""
    pipeline = FAMILIES["krea2"].make()
    opened = intaglio.Pipeline.open(bundles.bundle("krea2"))
    for text in (PROMPT, "", " two  spaces\n", "<|im_end|>\n{}", "boot " * 40):
        with torch.no_grad():
            wanted, mask = pipeline.encode_prompt(text, max_sequence_length=LENGTH)
        got = opened.embed(text)
        used = int(mask.sum())
        assert got.prompt_attention_mask.sum() == used
        assert got.prompt_attention_mask[:, :used].all()
        assert relative(got.prompt_embeds[:, :used], wanted[mask].flatten(1)[None]) < 1e-5
    assert "reads (16)" in opened.embed("boot " * 40).notes[0]


@torch.no_grad()
def test_the_mask_of_a_prompt_reaches_its_fusion() -> None:
    """Padding that is not zeros changes nothing."""
    adapter = Krea2Adapter(FAMILIES["krea2"].make())
    inputs = adapter.encode_prompts([NEGATIVE], LENGTH)
    mask = inputs["text_mask"]
    used = int(mask.sum())
    assert used < LENGTH
    noisy = inputs["text"] + 10 * torch.randn(inputs["text"].shape) * (1 - mask)[..., None]
    projected = adapter.project(inputs["text"], mask)[:, :used]
    torch.testing.assert_close(adapter.project(noisy, mask)[:, :used], projected)
    unmasked = adapter.project(noisy, torch.ones_like(mask))[:, :used]
    assert (unmasked - projected).norm() > 1e-2 * projected.norm()


@pytest.mark.exports
def test_the_distilled_model_draws_as_its_pipeline_does(tmp_path: Path) -> None:
    """Its shift is the same for all sizes, and its defaults are the distilled ones."""
    pipeline = krea2.make_pipeline(distilled=True)
    pipeline.save_pretrained(source := tmp_path / "source")
    (source / "settings.json").write_text(json.dumps({"max_sequence_length": LENGTH}))
    export_bundle(ExportRequest(source, tmp_path / "bundle", block=1, channels="7"))
    opened = intaglio.Pipeline.open(tmp_path / "bundle")
    defaults = json.loads((tmp_path / "bundle" / "bundle.json").read_text("utf-8"))["defaults"]
    assert (defaults["steps"], defaults["cfg_scale"]) == (8, 1.0)
    pipeline.set_progress_bar_config(disable=True)
    for width in (48, 80):
        size = {"height": HEIGHT, "width": width}
        expected = pipeline(
            PROMPT, **size, num_inference_steps=3, guidance_scale=0.0, output_type="latent",
            max_sequence_length=LENGTH, generator=torch.Generator().manual_seed(1),
        ).images  # fmt: skip
        got = opened.generate(PROMPT, **size, steps=3, seeds=1, dg_scale=0.0)
        assert relative(got.latents, expected) < 1e-4
