"""The formats and the metadata of saved images, as Pillow and other tools read them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

import intaglio
from intaglio import _core
from tests.python.conftest import PROMPT

OPTIONS: dict[str, Any] = {
    "negative_prompt": "dark, blurry", "seeds": [5, 6], "cfg_scale": 3, "steps": 2, "height": 24,
}  # fmt: skip


def settings(parameters: str) -> dict[str, str]:
    """Return the last line of AUTOMATIC1111's text, split as its web UI splits it."""
    pattern = r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)'
    return dict(re.findall(pattern, parameters.splitlines()[-1]))


@pytest.mark.reported("Teriks/dgenerate#39", "kohya-ss/musubi-tuner#1012", "replicate/cog-sdxl#25")
def test_other_tools_find_the_settings(forked: intaglio.Pipeline, tmp_path: Path) -> None:
    """The PNG has the text "parameters" that AUTOMATIC1111's web UI writes and other tools read."""
    written = forked.generate("a naïve boot", **OPTIONS).save(tmp_path / "boot.png")
    for path, seed in zip(written, ("5", "6"), strict=True):
        with Image.open(path) as image:
            text = image.info["parameters"]
        assert text.startswith("a naïve boot\nNegative prompt: dark, blurry\nSteps: 2, ")
        found = settings(text)
        expected = {
            "Steps": "2", "Sampler": "Euler", "CFG scale": "3", "Seed": seed, "Size": "32x24",
            "Model": forked.bundle.name, "Version": f"Intaglio {intaglio.__version__}",
        }  # fmt: skip
        assert expected.items() <= found.items()
    ramp = forked.generate("x", cfg_scale=(1, 2.5), batch=2, scheduler="heun").texts[1]
    found = settings(ramp["parameters"])
    assert found["CFG scale"] == "1:2.5"
    assert found["Sampler"] == "Heun"
    assert (found["Seed"], found["Batch size"], found["Batch pos"]) == ("0", "2", "1")
    assert "parameters" not in forked.generate(prompt_embeds=forked.embed("x", "")).texts[0]


@pytest.mark.reported(
    "AUTOMATIC1111/stable-diffusion-webui#8468",
    "AUTOMATIC1111/stable-diffusion-webui#5806",
    "vladmandic/sdnext#1438",
)
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_metadata_can_be_left_out(forked: intaglio.Pipeline, tmp_path: Path, ending: str) -> None:
    """A file that is saved without metadata holds neither the prompt nor any other text."""
    drawn = forked.generate("secret boot", steps=1)
    (path,) = drawn.save(tmp_path / f"boot.{ending}", metadata=False)
    with Image.open(path) as image:
        image.load()
        assert not getattr(image, "text", {})
        assert not image.getexif()
    content = path.read_bytes()
    for encoding in ("utf-8", "utf-16-be"):
        assert "secret".encode(encoding) not in content
    (path,) = drawn.save(tmp_path / f"with.{ending}")
    assert b"secret" in path.read_bytes()


@pytest.mark.parametrize("name", ["boot.jpg", "boot.JPEG", "boot.webp"])
def test_the_ending_decides_on_the_format(
    forked: intaglio.Pipeline, tmp_path: Path, name: str
) -> None:
    drawn = forked.generate("a naïve boot", **OPTIONS)
    for index, path in enumerate(drawn.save(tmp_path / name)):
        with Image.open(path) as image:
            assert image.format == ("WEBP" if name.endswith("webp") else "JPEG")
            pixels, exif = np.asarray(image.convert("RGB")), image.getexif()
            buffer = io.BytesIO()
            drawn.images[index].save(buffer, image.format, quality=95)
        with Image.open(buffer) as expected:
            np.testing.assert_array_equal(pixels, np.asarray(expected.convert("RGB")))
        details = exif.get_ifd(ExifTags.IFD.Exif)
        assert exif[ExifTags.Base.ImageDescription].encode("latin-1").decode() == "a naïve boot"
        assert exif[ExifTags.Base.Software] == f"Intaglio {intaglio.__version__}"
        comment = details[ExifTags.Base.UserComment]
        assert comment.startswith(b"UNICODE\0")
        assert comment[8:].decode("utf-16-be") == drawn.texts[index]["parameters"]
        texts = json.loads(details[ExifTags.Base.MakerNote])
        assert texts == drawn.texts[index]
    again = forked.generate(**json.loads(texts["intaglio:options"]))
    np.testing.assert_array_equal(again.latents, drawn.latents)


def test_a_jpeg_without_room_for_the_options_says_so(
    forked: intaglio.Pipeline, tmp_path: Path
) -> None:
    drawn = forked.generate(prompt_embeds=forked.embed("x", ""), steps=1)
    drawn.texts[0]["Description"] = "x" * 70_000
    with pytest.warns(UserWarning, match=r"boot\.jpg has no room for the options") as warned:
        (path,) = drawn.save(tmp_path / "boot.jpg")
    assert warned[0].filename == __file__
    with Image.open(path) as image:
        assert not image.getexif()


@pytest.mark.parametrize("name", ["boot.gif", "boot.tiff", "boot.PNG.txt"])
def test_other_endings_are_refused(forked: intaglio.Pipeline, tmp_path: Path, name: str) -> None:
    drawn = forked.generate(PROMPT, steps=1)
    with pytest.raises(intaglio.UsageError, match=r"end the name in \.png, \.jpg or \.webp"):
        drawn.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_zero_byte_does_not_end_the_description(
    forked: intaglio.Pipeline, tmp_path: Path
) -> None:
    drawn = forked.generate("a dress\0, hidden", steps=1)
    drawn.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == "a dress\ufffd, hidden"
        assert image.info["parameters"].startswith("a dress\ufffd, hidden\n")
        options = json.loads(image.info["intaglio:options"])
    assert options["prompt"] == "a dress\0, hidden"
    with pytest.raises(intaglio.InputError, match=r"text key of .*b\.png holds a zero byte"):
        _core.write_png(tmp_path / "b.png", drawn.images[0], [("key", "a\0b")])
