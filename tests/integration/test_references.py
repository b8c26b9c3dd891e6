"""The flag --image of a model that takes references, and of one that takes none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

import intaglio
from tests import bundles
from tests.integration.conftest import PROMPT, Command, check

FLAGS = ["--prompt", PROMPT, "--steps", 2, "--cfg-scale", 1, "--dg-scale", 1]
SIZES = [(66, 81), (101, 70)]


def write_pictures(folder: Path) -> list[Image.Image]:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (height, width, 3), np.uint8) for width, height in SIZES]
    images = [Image.fromarray(pixels) for pixels in pictures]
    for name, image in zip("ab", images, strict=True):
        image.save(folder / f"{name}.png")
    return images


def test_each_image_is_a_reference(entry_point: Command) -> None:
    bundle = bundles.bundle("flux2-klein")
    images = write_pictures(entry_point.folder)
    done = entry_point(
        "generate", *FLAGS, "--image", "a.png", "--image", "b.png", bundle,
        "--latents-out", "a.npy", "-o", "out.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pipeline = intaglio.Pipeline.open(bundle)
    expected = pipeline.generate(PROMPT, image=images, steps=2, cfg_scale=1.0, dg_scale=1.0)
    latents = np.load(entry_point.folder / "a.npy")
    assert np.abs(latents - expected.latents).max() < 1e-4
    with Image.open(entry_point.folder / "out.png") as out:
        assert out.size == (64, 80)
        assert out.text["intaglio:inputs"] == "references"
    shown = json.loads(entry_point("inspect", bundle, "--json").stdout)["references"]
    assert shown == {
        "most": 4, "only": True, "max_area": 1024**2, "min_side": 64, "max_aspect": 8,
    }  # fmt: skip


def test_two_images_for_a_model_without_references(
    entry_point: Command, forked_bundle: Path
) -> None:
    write_pictures(entry_point.folder)
    flags = [*FLAGS, "--image", "a.png", "--image", "b.png", "-o", "out.png"]
    check(entry_point, 2, "takes no references and starts from one", "generate", forked_bundle,
          *flags)  # fmt: skip
