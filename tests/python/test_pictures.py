"""Pictures in the forms in which programs hold them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

import intaglio
from intaglio import _core
from tests.python.conftest import PROMPT

PIXELS = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.mark.reported("JuliaIO/PNGFiles.jl#48", "imageio/imageio#366")
@pytest.mark.parametrize("gamma", [0.45455, 1.0, 2.2])
def test_a_gamma_changes_no_colours(tmp_path: Path, gamma: float) -> None:
    """A PNG with a gAMA chunk has the colours that Pillow, and so diffusers, reads from it."""
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    content = path.read_bytes()
    chunk = b"gAMA" + struct.pack(">I", round(gamma * 100_000))
    chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    before = content.index(b"IDAT") - 4
    path.write_bytes(content[:before] + chunk + content[before:])
    with Image.open(path) as opened:
        assert opened.info["gamma"] == pytest.approx(gamma)
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(_core.read_png(path)), expected)


@pytest.mark.reported("1adrianb/face-alignment#259")
def test_a_picture_may_have_any_order_in_memory(forked: intaglio.Pipeline) -> None:
    """A view with the channels in reverse, as OpenCV's pictures are turned to RGB, is taken."""
    view = PIXELS[..., ::-1]
    assert not view.flags.c_contiguous
    drawn = forked.generate(PROMPT, steps=2, image=view).latents
    expected = forked.generate(PROMPT, steps=2, image=Image.fromarray(view)).latents
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (PIXELS / 255, r"not float64 \[32, 32, 3\]$"),
        (PIXELS.astype(np.uint16), "not uint16"),
        (np.dstack([PIXELS, PIXELS])[..., :4], r"not uint8 \[32, 32, 4\]$"),
        ("picture.png", "not str$"),
        (PIXELS.tolist(), "not list$"),
        (torch.from_numpy(PIXELS).permute(2, 0, 1), r"not uint8 \[3, 32, 32\]$"),
    ],
    ids=["float", "deep", "alpha", "path", "list", "torch"],
)
def test_what_is_no_picture_is_named(forked: intaglio.Pipeline, picture: object, says: str) -> None:
    with pytest.raises(intaglio.InputError, match="a PIL image or a uint8 array") as raised:
        forked.generate(PROMPT, image=picture)  # type: ignore[arg-type]
    assert raised.match(says)


def test_pictures_are_scaled_as_diffusers_scales_them(forked: intaglio.Pipeline) -> None:
    """A picture and its mask get the size that is given, or whole cells of their own size."""
    picture = Image.fromarray(PIXELS).resize((43, 29), Image.Resampling.BICUBIC)
    mask = Image.new("RGB", picture.size)
    mask.paste("white", (0, 0, 20, 29))
    unit = forked.bundle.latent.vae_scale_factor * forked.bundle.patch_size
    in_cells = (43 // unit * unit, 29 // unit * unit)
    for size, (width, height), noted in (
        ({"width": 40, "height": 24}, (40, 24), 0),
        ({"width": 64, "height": 24}, (64, 24), 1),
        ({"width": 64}, (64, round(64 * 29 / 43 / unit) * unit), 0),
        ({"height": 64}, (round(64 * 43 / 29 / unit) * unit, 64), 0),
        ({}, in_cells, 0),
    ):
        options: dict[str, Any] = {"steps": 2, "dg_scale": 0.0}
        drawn = forked.generate(PROMPT, image=picture, mask=mask, mask_blur=2.0, **size, **options)
        assert drawn.images[0].size == (width, height)
        assert sum("stretched" in note for note in drawn.notes) == noted
        processor = VaeImageProcessor()
        blurred = processor.blur(mask, 2)
        scaled = [processor.resize(one, height, width) for one in (picture, blurred)]
        expected = forked.generate(PROMPT, image=scaled[0], mask=scaled[1], **options)
        np.testing.assert_array_equal(drawn.latents, expected.latents)


def test_channels_change_in_the_scaled_mask(forked: intaglio.Pipeline) -> None:
    picture = Image.fromarray(PIXELS).resize((43, 29), Image.Resampling.BICUBIC)
    mask = Image.new("RGB", picture.size)
    mask.paste("white", (0, 0, 20, 29))
    scaled = [VaeImageProcessor().resize(one, 24, 40) for one in (picture, mask)]
    drawn = forked.generate(PROMPT, steps=2, image=picture, mask=mask, width=40, height=24)
    expected = forked.generate(PROMPT, steps=2, image=scaled[0], mask=scaled[1])
    np.testing.assert_array_equal(drawn.latents, expected.latents)


def test_a_mask_with_transparent_parts_is_refused(forked: intaglio.Pipeline) -> None:
    mask = Image.new("RGBA", (32, 32), "white")
    drawn = forked.generate(PROMPT, steps=2, image=PIXELS, mask=mask)
    assert drawn.images[0].size == (32, 32)
    mask.putpixel((3, 5), (255, 255, 255, 254))
    for padding in (None, 4):
        with pytest.raises(intaglio.InputError, match="mask has transparent parts"):
            forked.generate(PROMPT, steps=2, image=PIXELS, mask=mask, mask_padding=padding)
    with pytest.raises(intaglio.InputError, match="ma_tokens has transparent parts"):
        forked.generate(PROMPT, steps=2, ma_tokens=mask)
