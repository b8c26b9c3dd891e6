"""Images are Pillow's on the Python side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

import intaglio
from intaglio import _core

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def test_tensor_to_images_and_back_is_diffusers() -> None:
    tensor = np.random.default_rng(1).uniform(-1.2, 1.2, (2, 3, 4, 6)).astype(np.float32)
    images = _core.to_images(tensor)
    import torch

    expected = VaeImageProcessor().postprocess(torch.from_numpy(tensor), output_type="pil")
    for ours, theirs in zip(images, expected, strict=True):
        assert ours.mode == "RGB"
        assert ours.size == (6, 4)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    back = _core.from_image(images[0])
    np.testing.assert_allclose(back[0], np.clip(tensor[0], -1, 1), rtol=0, atol=1 / 255 + 1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_is_taken_as_pillow_converts_it(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(PIXELS).convert(mode)
    _core.write_png(tmp_path / "x.png", picture)
    with Image.open(tmp_path / "x.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(picture.convert("RGB")))


def alpha(mode: str) -> Image.Image:
    """Colours that fade out."""
    picture = Image.fromarray(PIXELS).convert(mode)
    levels = np.linspace(0, 255, PIXELS[..., 0].size, dtype=np.uint8).reshape(PIXELS.shape[:2])
    picture.putalpha(Image.fromarray(levels))
    return picture


def key() -> Image.Image:
    """One palette entry is transparent."""
    picture = Image.fromarray(PIXELS).quantize(8)
    picture.info["transparency"] = 3
    return picture


SIXTEEN = (np.arange(35, dtype=np.uint16) * 1872).reshape(5, 7)


@pytest.mark.parametrize(
    "picture",
    [
        alpha("RGB"),
        alpha("L"),
        key(),
        Image.fromarray(SIXTEEN),
        Image.fromarray(SIXTEEN.astype(np.int32)),
    ],
    ids=["RGBA", "LA", "P", "I;16", "I"],
)
def test_transparency_and_depth_mean_what_they_mean_in_a_file(
    picture: Image.Image, tmp_path: Path
) -> None:
    in_a_file = picture.convert("I;16") if picture.mode == "I" else picture
    in_a_file.save(tmp_path / "theirs.png")
    expected = np.asarray(_core.read_png(tmp_path / "theirs.png"))
    _core.write_png(tmp_path / "ours.png", picture)
    np.testing.assert_array_equal(np.asarray(_core.read_png(tmp_path / "ours.png")), expected)
    if picture.mode.startswith("I"):
        scaled = np.round(SIXTEEN / 65535 * 255)[..., None]
        assert np.abs(expected - scaled).max() <= 1
    else:
        clear = np.asarray(picture.convert("RGBA"))[..., 3] == 0
        assert clear.any()
        assert (expected[clear] == 0).all()


def exif(orientation: int, endian: str = "<") -> Image.Exif:
    made = Image.Exif()
    made.endian = endian
    made[0x010E] = "an entry that comes before the orientation"
    made[0x0112] = orientation
    return made


@pytest.mark.reported("mflux-community/mflux#495", "AUTOMATIC1111/stable-diffusion-webui#292")
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 0, 9])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_pictures_are_turned_as_their_exif_says(
    orientation: int, endian: str, tmp_path: Path
) -> None:
    """A photo whose EXIF says how to turn it is drawn from as viewers show it, be it a file that
    the command reads or an image of Pillow."""
    sensor, path = Image.fromarray(PIXELS), tmp_path / "photo.png"
    for picture in (sensor, alpha("RGB"), Image.fromarray(SIXTEEN)):
        picture.save(path, exif=exif(orientation, endian))
        with Image.open(path) as photo:
            shown = ImageOps.exif_transpose(photo)
            shown.save(tmp_path / "shown.png")
            expected = np.asarray(_core.read_png(tmp_path / "shown.png"))
            np.testing.assert_array_equal(np.asarray(_core.read_png(path)), expected)
            _core.write_png(tmp_path / "ours.png", photo)
        written = np.asarray(_core.read_png(tmp_path / "ours.png"))
        np.testing.assert_array_equal(written, expected)
    assert expected.shape[:2] == ((7, 5) if orientation in range(5, 9) else (5, 7))


def test_exif_that_is_cut_or_wrong_turns_nothing(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.png", exif(6).tobytes().removeprefix(b"Exif\0\0")
    for content in (whole[:7], whole[:10], whole[:30], b"II*\0\xff\xff\xff\xff", b"?" * 40):
        Image.fromarray(PIXELS).save(path, exif=b"Exif\0\0" + content)
        assert np.asarray(_core.read_png(path)).shape == PIXELS.shape


def test_arrays_are_pictures_too(tmp_path: Path) -> None:
    _core.write_png(tmp_path / "x.png", PIXELS)
    np.testing.assert_array_equal(np.asarray(_core.read_png(tmp_path / "x.png")), PIXELS)
    gray = np.ascontiguousarray(PIXELS[..., 0])
    _core.write_png(tmp_path / "x.png", gray)
    np.testing.assert_array_equal(
        np.asarray(_core.read_png(tmp_path / "x.png")), np.repeat(gray[..., None], 3, -1)
    )


def test_text_chunks_are_read_by_pillow(tmp_path: Path) -> None:
    text = [("Description", "un café 漢字"), ("empty", "")]
    _core.write_png(tmp_path / "x.png", Image.fromarray(PIXELS), text)
    with Image.open(tmp_path / "x.png") as written:
        written.load()
        assert dict(written.text) == dict(text)


def test_bad_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(intaglio.InputError, match=r"x\.png"):
        _core.read_png(tmp_path / "x.png")
    with pytest.raises(intaglio.InputError, match=r"\[N, 3, H, W\]"):
        _core.to_images(np.zeros((3, 4, 4), np.float32))
    with pytest.raises(intaglio.InputError, match="float32"):
        _core.to_images(np.zeros((1, 3, 4, 4), np.uint8))
