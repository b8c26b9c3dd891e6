"""What generate() returns and what its options do."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

import intaglio
from tests.python.conftest import PROMPT


def test_what_comes_back(pipeline: intaglio.Pipeline) -> None:
    result = pipeline.generate(PROMPT, seeds=[1, 2])
    assert [image.size for image in result.images] == [(32, 32)] * 2
    assert {image.mode for image in result.images} == {"RGB"}
    assert result.latents.shape == (2, 4, 16, 16)
    assert result.latents.dtype == np.float32
    assert len(result.step_seconds) == pipeline.bundle.defaults.steps
    t = result.timings
    assert min(t.text, t.denoise, t.vae) >= 0
    assert t.total >= t.text + t.denoise + t.vae
    assert 0 < t.network < t.denoise
    images, steps = 2, 4
    shared = pipeline.bundle.layout == "forked"  # blocks 0..m run once for D_c and D_m
    assert result.base_rows == images * (2 if shared else 3) * steps
    assert result.forked_rows == images * 3 * steps


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_the_loop_allocates_nothing_and_copies_as_much_in_every_step(
    pipeline: intaglio.Pipeline, cfg_scale: float
) -> None:
    manifest = json.loads((Path(pipeline.bundle.folder) / "bundle.json").read_text("utf-8"))
    _, width = manifest["transformer"]["graphs"]["conditioning"]["outputs"][0]["axes"]
    for steps in (1, 5):
        run = pipeline.generate(PROMPT, steps=steps, batch=2, cfg_scale=cfg_scale)
        # The loop copies the modulations of each row, and the latents of D_c to the rows of D_0.
        rows, latents = (4, 1) if cfg_scale != 1.0 else (2, 0)
        assert run.loop.allocations == 0
        assert run.loop.copies == steps * (rows + latents)
        copied = rows * 4 * width + latents * run.latents.nbytes
        assert run.loop.copied_bytes == steps * copied


def test_seeds_and_batches_agree_with_single_images(pipeline: intaglio.Pipeline) -> None:
    both = pipeline.generate(PROMPT, seeds=[3, 4]).latents
    for seed, latents in zip([3, 4], both, strict=True):
        alone = pipeline.generate(PROMPT, seeds=seed).latents[0]
        np.testing.assert_allclose(latents, alone, rtol=0, atol=1e-4)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator("cpu").manual_seed(5))
    np.testing.assert_allclose(
        pipeline.generate(PROMPT, seeds=5, batch=2).latents,
        pipeline.generate(PROMPT, latents=noise, batch=2).latents,
        rtol=0,
        atol=1e-3,
    )


def test_given_latents_are_read_and_left_alone(pipeline: intaglio.Pipeline) -> None:
    noise = torch.randn(1, 4, 16, 16)
    before = noise.clone()
    first = pipeline.generate(PROMPT, latents=noise).latents
    assert torch.equal(noise, before)
    np.testing.assert_array_equal(first, pipeline.generate(PROMPT, latents=noise.numpy()).latents)
    assert not np.allclose(first, pipeline.generate(PROMPT, latents=-noise).latents, atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a coat"},
        {"negative_prompt": "coat"},
        {"steps": 3},
        {"seeds": 1},
        {"cfg_scale": 3.0},
        {"cfg_scale": (1.0, 3.0)},
        {"cfg_window": (0.0, 0.5)},
        {"dg_scale": 0.0},
        {"dg_window": (0.5, 1.0)},
        {"ma_keep": 0.5},
        {"ma_channels": [1, 2]},
        {"ma_channels": 5},
        {"scheduler": "heun"},
        {"ma_tokens": np.eye(16, dtype=np.uint8) * 255},
    ],
    ids=str,
)
def test_every_option_reaches_the_run(
    pipeline: intaglio.Pipeline, options: dict[str, object]
) -> None:
    plain = pipeline.generate(PROMPT).latents
    changed = pipeline.generate(**{"prompt": PROMPT, **options}).latents  # type: ignore[arg-type]
    assert not np.array_equal(plain, changed)


def test_token_masks(pipeline: intaglio.Pipeline) -> None:
    """A white picture is the same as no mask, and a black one the same as no Detail Guidance."""
    plain = pipeline.generate(PROMPT).latents
    white, black = Image.new("L", (8, 8), 255), Image.new("1", (8, 8), 0)
    np.testing.assert_array_equal(pipeline.generate(PROMPT, ma_tokens=white).latents, plain)
    np.testing.assert_allclose(
        pipeline.generate(PROMPT, ma_tokens=black).latents,
        pipeline.generate(PROMPT, dg_scale=0).latents,
        rtol=0,
        atol=1e-4,
    )


def test_image_to_image(pipeline: intaglio.Pipeline) -> None:
    picture = pipeline.generate(PROMPT).images[0]
    result = pipeline.generate(PROMPT, image=picture, strength=0.5)
    assert len(result.step_seconds) == 2
    same = pipeline.generate(PROMPT, image=np.asarray(picture), strength=0.5)
    np.testing.assert_array_equal(result.latents, same.latents)


def test_inpainting(pipeline: intaglio.Pipeline) -> None:
    """The latents outside the mask are the picture's, and Detail Guidance acts inside."""
    picture = pipeline.generate(PROMPT, seeds=3).images[0]
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 4:28] = 255
    drawn = pipeline.generate(PROMPT, image=picture, mask=mask, strength=1.0)
    elsewhere = pipeline.generate("a coat", image=picture, mask=mask, strength=0.8, seeds=9)
    cells = mask[::2, ::2] == 255
    np.testing.assert_array_equal(drawn.latents[..., ~cells], elsewhere.latents[..., ~cells])
    assert (drawn.latents[..., cells] != elsewhere.latents[..., cells]).all()
    assert dict(drawn.texts[0])["intaglio:inputs"] == "image, mask"

    limited = pipeline.generate(PROMPT, image=picture, mask=mask, ma_tokens=mask, strength=1.0)
    np.testing.assert_array_equal(limited.latents, drawn.latents)
    white = np.full_like(mask, 255)
    spread = pipeline.generate(PROMPT, image=picture, mask=mask, ma_tokens=white, strength=1.0)
    assert not np.array_equal(spread.latents, drawn.latents)
    whole = pipeline.generate(PROMPT, image=picture, mask=white, strength=1.0)
    np.testing.assert_array_equal(
        whole.latents, pipeline.generate(PROMPT, image=picture, strength=1.0).latents
    )


def test_the_part_around_a_mask_is_drawn_as_a_picture_of_its_own(
    pipeline: intaglio.Pipeline,
) -> None:
    """With Detail Guidance in the mask, previews of the whole, and metadata."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8)
    mask = np.zeros(noise.shape[:2], np.uint8)
    mask[20:28, 11:27] = 255
    part = np.s_[16:32, 7:31]
    options: dict[str, Any] = {"strength": 1.0, "seeds": [1, 2], "dg_scale": 2.0}
    alone = pipeline.generate(PROMPT, image=noise[part], mask=mask[part], **options)
    seen: list[Image.Image] = []
    got = pipeline.generate(
        PROMPT, image=noise, mask=mask, mask_padding=4, width=24, height=16, **options,
        on_step=lambda step: seen.extend(step.preview()),
    )  # fmt: skip
    np.testing.assert_array_equal(got.latents, alone.latents)
    for drawn, image in zip(alone.images, got.images, strict=True):
        expected = noise.copy()
        expected[part][mask[part] > 0] = np.asarray(drawn)[mask[part] > 0]
        np.testing.assert_array_equal(np.asarray(image), expected)
    np.testing.assert_array_equal(np.asarray(seen[-1]), np.asarray(got.images[-1]))
    assert json.loads(dict(got.texts[0])["intaglio:options"])["mask_padding"] == 4


def test_the_tokens_of_detail_guidance_are_cut_as_the_mask_is(pipeline: intaglio.Pipeline) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8)
    mask = np.zeros(noise.shape[:2], np.uint8)
    mask[20:28, 11:27] = 255
    tokens = np.zeros_like(mask)
    tokens[:, 15:] = 255
    part = np.s_[16:32, 7:31]
    options: dict[str, Any] = {"strength": 1.0, "dg_scale": 2.0}
    expected = pipeline.generate(
        PROMPT, image=noise[part], mask=mask[part], ma_tokens=tokens[part], **options
    )
    options |= {"image": noise, "mask": mask, "mask_padding": 4, "width": 24, "height": 16}
    got = pipeline.generate(PROMPT, ma_tokens=tokens, **options)
    np.testing.assert_array_equal(got.latents, expected.latents)


@pytest.mark.parametrize("radius", [0.3, 1, 2.5, 4, 12])
def test_the_mask_is_blurred_as_pillow_blurs(pipeline: intaglio.Pipeline, radius: float) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (32, 32), np.uint8)
    pixels[4:24, 10:30] |= 128
    mask, picture = Image.fromarray(pixels), Image.new("RGB", (32, 32), (90, 140, 20))
    blurred = VaeImageProcessor.blur(mask, radius)
    options = {"image": picture, "ma_tokens": Image.new("L", (32, 32), 255)}
    got = pipeline.generate(PROMPT, mask=mask, mask_blur=radius, **options)
    expected = pipeline.generate(PROMPT, mask=blurred, **options)
    np.testing.assert_array_equal(got.latents, expected.latents)
    sharp = pipeline.generate(PROMPT, mask=mask, **options)
    assert not np.array_equal(got.latents, sharp.latents)


def test_previews_show_the_picture_outside_the_mask(pipeline: intaglio.Pipeline) -> None:
    picture, mask = Image.new("RGB", (32, 32), (200, 30, 90)), np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    seen: list[Image.Image] = []
    result = pipeline.generate(
        PROMPT, image=picture, mask=mask, on_step=lambda step: seen.extend(step.preview())
    )
    np.testing.assert_array_equal(np.asarray(seen[-1]), np.asarray(result.images[0]))
    kept = [np.asarray(image, int)[:, :8] for image in seen]
    assert max(np.abs(kept[0] - other).max() for other in kept) <= 2


def test_sizes(pipeline: intaglio.Pipeline) -> None:
    result = pipeline.generate(PROMPT, height=24, width=40)
    assert result.images[0].size == (40, 24)
    assert result.latents.shape == (1, 4, 12, 20)


def test_numbers_of_numpy_are_numbers(forked: intaglio.Pipeline) -> None:
    numpy = forked.generate(
        PROMPT,
        steps=np.int64(2),  # type: ignore[arg-type]
        seeds=np.arange(2),  # type: ignore[arg-type]
        cfg_scale=np.float32(2.0),  # type: ignore[arg-type]
    )
    plain = forked.generate(PROMPT, steps=2, seeds=[0, 1], cfg_scale=2)
    np.testing.assert_array_equal(numpy.latents, plain.latents)


def test_save_writes_what_draws_it_again(forked: intaglio.Pipeline, tmp_path: Path) -> None:
    result = forked.generate(PROMPT, seeds=[1, 2], cfg_scale=(1, 3))
    paths = result.save(tmp_path / "boot.png")
    assert paths == [tmp_path / "boot-0.png", tmp_path / "boot-1.png"]
    with Image.open(paths[1]) as written:
        written.load()
        np.testing.assert_array_equal(np.asarray(written), np.asarray(result.images[1]))
        options = json.loads(written.text["intaglio:options"])
    again = forked.generate(**options)
    np.testing.assert_array_equal(again.latents, result.latents)
    assert forked.generate(PROMPT).save(tmp_path / "one.png") == [tmp_path / "one.png"]
    with pytest.raises(intaglio.InputError, match="missing"):
        result.save(tmp_path / "missing" / "boot.png")


@pytest.mark.reported(
    "Comfy-Org/ComfyUI#75", "invoke-ai/InvokeAI#734", "AUTOMATIC1111/stable-diffusion-webui#3611"
)
def test_metadata_is_that_of_the_run(forked: intaglio.Pipeline) -> None:
    """What a PNG says is what the run used, although the caller's list of seeds changed since."""
    run = {"prompt": PROMPT, "steps": 2}
    batch, seeds, asked = intaglio.Batch(forked), [1], {}
    for seed in (1, 2, 3):
        seeds[0] = seed
        asked[batch.add(**run, seeds=seeds)] = seed
    seeds[0] = 4
    drawn = {}
    while len(batch):
        drawn |= {step.id: step.finish() for step in batch.step() if step.done}
    alone = forked.generate(**run, seeds=seeds, on_step=lambda _: seeds.__setitem__(0, 99))
    for generation, seed in [*((drawn[i], seed) for i, seed in asked.items()), (alone, 4)]:
        (text,) = generation.texts
        assert json.loads(text["intaglio:options"])["seeds"] == [seed]
        again = forked.generate(**json.loads(text["intaglio:options"]))
        np.testing.assert_allclose(generation.latents, again.latents, rtol=0, atol=1e-4)


def test_notebooks(forked: intaglio.Pipeline) -> None:
    assert "tiny-sd3" in repr(forked)
    assert "after block 1" in repr(forked)
    assert "ONNX Runtime" in forked.backend
    result = forked.generate(PROMPT, batch=3)
    assert "3 of 32x32" in repr(result)
    with Image.open(io.BytesIO(result._repr_png_())) as row:
        assert row.size == (96, 32)


def test_bundle_attributes(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    opened = intaglio.Bundle.open(bundle)
    for name in ("name", "family", "source", "license", "layout", "dtype", "prediction_type"):
        assert getattr(opened, name) == manifest[name]
    assert opened.folder == bundle
    assert opened.blocks == manifest["transformer"]["blocks"]
    found = manifest["massive_activations"]
    assert opened.massive_activations.channels == found["channels"]
    assert opened.massive_activations.block == found["block"]
    assert set(opened.transformer_graphs) == set(manifest["transformer"]["graphs"])
    assert opened.file_bytes == {name: f["bytes"] for name, f in manifest["files"].items()}
    assert opened.scheduler.shift == manifest["scheduler"]["shift"]
    assert {t.role for graph in opened.transformer_graphs.values() for t in graph.inputs} >= {
        "latent",
        "keep",
    }
