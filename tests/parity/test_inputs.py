"""Test inputs that only some DiT families have, in runs against diffusers' loop around NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from PIL import Image

import intaglio
from tests.fake_bundle import (
    CHANNELS,
    CLASSES,
    FACTOR,
    GUIDANCE,
    MAX_LENGTH,
    POOLED_WIDTH,
    SIZE,
    TEXT_WIDTH,
    Array,
    make_bundle,
    predict,
)
from tests.families.parts import make_clip_tokenizer

STEPS, CFG, DG = 3, 2.0, 0.5  # the bundle's defaults
ROWS, COLUMNS = SIZE // FACTOR, 2 * SIZE // FACTOR


def noise(images: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((images, CHANNELS, ROWS, COLUMNS), generator=generator)


def packed(latents: torch.Tensor) -> torch.Tensor:
    return FluxPipeline._pack_latents(latents, *latents.shape)


def run(
    latents: torch.Tensor,
    conditional: dict[str, Any],
    unconditional: dict[str, Any],
    skip: int = 0,
    steps: int = STEPS,
) -> Array:
    """Run D_c + (CFG - 1)(D_c - D_0) + DG (D_c - D_m) in diffusers' loop, without `skip` steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(skip)
    for timestep in scheduler.timesteps[skip:]:
        x, t = latents.numpy(), float(timestep)
        c, m = (predict(x, t, keep, conditional) for keep in (1, 0))
        d = c + (CFG - 1) * (c - predict(x, t, 1, unconditional)) + DG * (c - m)
        latents = scheduler.step(torch.from_numpy(d), timestep, latents, return_dict=False)[0]
    return latents.numpy()


def close(got: Array, expected: Array) -> None:
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def random(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def embeddings(tokens: int, pooled: bool = True, mask: bool = False) -> dict[str, Array]:
    """Return arguments of PromptEmbeddings."""
    found: dict[str, Array] = {}
    for i, prefix in enumerate(("", "negative_")):
        found[f"{prefix}prompt_embeds"] = random(1, tokens, TEXT_WIDTH, seed=i)
        if pooled:
            found[f"{prefix}pooled_prompt_embeds"] = random(1, POOLED_WIDTH, seed=i + 2)
        if mask:
            marks = (np.arange(tokens) < tokens - i)[None]
            found[f"{prefix}prompt_attention_mask"] = marks.astype(np.float32)
    return found


def by_role(given: dict[str, Array], prefix: str, **more: Any) -> dict[str, Any]:
    names = {
        "text": "prompt_embeds", "text_mask": "prompt_attention_mask",
        "pooled": "pooled_prompt_embeds",
    }  # fmt: skip
    found = {r: given[prefix + n][0] for r, n in names.items() if prefix + n in given}
    return found | more


@pytest.fixture(params=[False, True])
def make(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Write bundles with one graph for everything, or with a part that runs before the loop."""
    return partial(make_bundle, hoisted=request.param)


def test_classes(make: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make(tmp_path / "b", "class", fixed_size=True)
    got = intaglio.Pipeline.open(bundle).generate(class_label=7, batch=2)
    close(got.latents, run(noise(2), {"class": 7}, {"class": CLASSES["null"]}))
    assert got.forked_rows == STEPS * 2 * 3


def test_a_run_has_more_timesteps_than_are_conditioned_at_once(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    """The runtime conditions 64 rows at a time, so these 140 rows take three parts, and the last
    part overlaps the one before it.
    """
    steps, given = 70, embeddings(4)
    pipeline = intaglio.Pipeline.open(make(tmp_path / "b", "text", "pooled"))
    got = pipeline.generate(prompt_embeds=intaglio.PromptEmbeds(**given), steps=steps)
    expected = run(noise(), by_role(given, ""), by_role(given, "negative_"), steps=steps)
    close(got.latents, expected)


@pytest.mark.parametrize("guidance", [None, 1.25])
def test_packed_latents_positions_and_distilled_guidance(
    make: Callable[..., Path], tmp_path: Path, guidance: float | None
) -> None:
    """Test the inputs of FLUX."""
    roles = ("text", "pooled", "guidance", "position")
    pipeline = intaglio.Pipeline.open(make(tmp_path / "b", *roles, packed=True))
    given = embeddings(7)
    result = pipeline.generate(
        prompt_embeds=intaglio.PromptEmbeds(**given), distilled_guidance=guidance, batch=2, seeds=3
    )
    shared = {
        "guidance": GUIDANCE if guidance is None else guidance,
        "position": FluxPipeline._prepare_latent_image_ids(
            1, ROWS // 2, COLUMNS // 2, "cpu", torch.float32
        ).numpy(),
    }
    prompts = [by_role(given, prefix, **shared) for prefix in ("", "negative_")]
    expected = run(packed(noise(2, 3)), *prompts)
    close(result.latents, expected)

    # Given latents are packed too, but the decoder takes unpacked ones.
    again = pipeline.generate(
        prompt_embeds=intaglio.PromptEmbeds(**given), distilled_guidance=guidance,
        latents=packed(noise(2, 3)).numpy().copy(),
    )  # fmt: skip
    close(again.latents, expected)
    unpacked = FluxPipeline._unpack_latents(
        torch.from_numpy(result.latents), SIZE, 2 * SIZE, FACTOR
    ).numpy()
    rgb = (unpacked / 2.0 + 0.25)[:, :3].repeat(2, 2).repeat(2, 3)
    pixels = np.round((rgb / 2 + 0.5).clip(0, 1) * 255).transpose(0, 2, 3, 1)
    for image, one in zip(result.images, pixels, strict=True):
        assert np.abs(np.asarray(image).astype(float) - one).max() <= 1


def test_previews_of_packed_latents(tmp_path: Path) -> None:
    """After the last step the estimate of the clean image is the image."""
    bundle = make_bundle(tmp_path / "b", "text", "position", packed=True)
    embeds = intaglio.PromptEmbeds(**embeddings(3, pooled=False))
    seen: list[Image.Image] = []
    result = intaglio.Pipeline.open(bundle).generate(
        prompt_embeds=embeds, on_step=lambda step: seen.extend(step.preview())
    )
    assert len(seen) == STEPS
    assert seen[-1].size == (2 * SIZE, SIZE)
    np.testing.assert_array_equal(np.asarray(seen[-1]), np.asarray(result.images[0]))


@pytest.mark.parametrize("is_packed", [False, True])
def test_each_image_from_a_picture_has_its_own_noise(
    make: Callable[..., Path], tmp_path: Path, is_packed: bool
) -> None:
    bundle = make(tmp_path / "b", "text", packed=is_packed)
    given = embeddings(4, pooled=False)
    pixels = np.random.default_rng(5).integers(0, 256, (SIZE, 2 * SIZE, 3), np.uint8)
    got = intaglio.Pipeline.open(bundle).generate(
        prompt_embeds=intaglio.PromptEmbeds(**given), seeds=[4, 9], image=pixels, strength=0.7
    )
    skip = int(STEPS - STEPS * 0.7)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(skip)
    rgb = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    mean = torch.nn.functional.avg_pool2d(rgb, 2)
    clean = (torch.cat([mean, mean[:, :1]], 1) - 0.25) * 2.0
    for i, seed in enumerate((4, 9)):
        start = scheduler.scale_noise(clean, scheduler.timesteps[skip : skip + 1], noise(1, seed))
        start = packed(start) if is_packed else start
        expected = run(start, by_role(given, ""), by_role(given, "negative_"), skip)
        close(got.latents[i : i + 1], expected)


def test_text_masks_by_the_tokenizer(
    make: Callable[..., Path], tmp_path: Path, forked_bundle: Path
) -> None:
    """The encoder and the transformer get transformers' attention mask."""
    tables = forked_bundle / "tokenizer" / "tables.json"
    bundle = make(tmp_path / "b", "text", "text_mask", tokenizer=tables)
    tokenizer = make_clip_tokenizer("<|endoftext|>")
    prompts = []
    for text in ("the dark boot", "a co"):
        tokens = tokenizer(text, padding="max_length", max_length=MAX_LENGTH, truncation=True)
        mask = np.array(tokens.attention_mask, np.float32)
        ids = np.array(tokens.input_ids, np.float32)
        assert 2 < mask.sum() < MAX_LENGTH
        text_rows = np.repeat((ids * mask / 1000)[:, None], TEXT_WIDTH, 1)
        prompts.append({"text": text_rows, "text_mask": mask})
    pipeline = intaglio.Pipeline.open(bundle)
    got = pipeline.generate("the dark boot", negative_prompt="a co")
    close(got.latents, run(noise(), *prompts))
    embeds = pipeline.embed("the dark boot", "a co")
    np.testing.assert_array_equal(embeds.prompt_attention_mask[0], prompts[0]["text_mask"])
    np.testing.assert_allclose(embeds.negative_prompt_embeds[0], prompts[1]["text"], atol=1e-7)
    assert embeds.pooled_prompt_embeds is None
    np.testing.assert_array_equal(pipeline.generate(prompt_embeds=embeds).latents, got.latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_embeddings_that_safetensors_wrote(tmp_path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    bundle = make_bundle(tmp_path / "b", "text", "text_mask", "pooled")
    given = {k: torch.from_numpy(v).to(dtype) for k, v in embeddings(5, mask=True).items()}
    stored = {k: v.long() if "mask" in k else v for k, v in given.items()}
    save_file(stored, tmp_path / "e.safetensors", metadata={"who": "diffusers"})
    got = intaglio.Pipeline.open(bundle).generate(prompt_embeds=tmp_path / "e.safetensors")
    read = {k: v.float().numpy() for k, v in given.items()}
    close(got.latents, run(noise(), by_role(read, ""), by_role(read, "negative_")))


def test_graph_for_the_processor(tmp_path: Path) -> None:
    """The CPU runs graph.cpu; the other graph may contain operators that ONNX Runtime lacks."""
    import hashlib
    import json

    bundle = make_bundle(tmp_path / "b", "class")
    expected = intaglio.Pipeline.open(bundle).generate(class_label=1).latents
    manifest = json.loads((bundle / "bundle.json").read_text())
    graph = manifest["transformer"]["graphs"]["forked"]
    (bundle / graph["path"]).rename(bundle / "transformer" / "cpu.onnx")
    (bundle / graph["path"]).write_bytes(b"other")
    graph["cpu"] = "transformer/cpu.onnx"
    manifest["files"]["transformer/cpu.onnx"] = manifest["files"][graph["path"]]
    digest = hashlib.sha256(b"other").hexdigest()
    manifest["files"][graph["path"]] = {"bytes": 5, "sha256": digest}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    got = intaglio.Pipeline.open(bundle).generate(class_label=1).latents
    np.testing.assert_array_equal(got, expected)
