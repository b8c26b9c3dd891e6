"""`intaglio features`, compared with the features that torch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image

from intaglio.analysis import features
from tests import bundles
from tests.python.test_command import command

SIZES = {"sd3": (40, 32), "dit": (32, 32)}  # height and width


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_picture(tmp_path_factory.mktemp("picture") / "noise.png", SIZES["sd3"])


def save_picture(path: Path, size: tuple[int, int]) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(
    ("family", "layout"), [("sd3", "forked"), ("sd3", "dual"), ("dit", "forked")]
)
def test_features_are_those_of_torch(
    family: str, layout: str, sigma: float, tmp_path: Path
) -> None:
    bundle = bundles.bundle(family=family, layout=layout, observe=True)
    picture = save_picture(tmp_path / "noise.png", SIZES[family])
    out = tmp_path / "features.npy"
    args = ["--image", picture, "--block", 2, "--sigma", sigma, "-o", out, "--device", "cpu"]
    run = command("features", str(bundle), *map(str, args))
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{out}\n", "")
    absent = ("text_encoder_3", "tokenizer_3") if family == "sd3" else ()
    pipeline = DiffusionPipeline.from_pretrained(bundles.source(family), **dict.fromkeys(absent))
    image = np.asarray(Image.open(picture), np.float32)[None] / 255
    how = {"blocks": [2], "sigma": sigma, "max_sequence_length": bundles.MAX_LENGTH}
    expected = features(pipeline, image, **how, recipe="raw")
    found = np.load(out)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"--block": "4"}, "--block 4 does not exist"),
        ({"--block": "-1"}, "--block -1 does not exist"),
        ({"--sigma": "1.5"}, "--sigma is a share of noise: give a number from 0 to 1"),
        ({"--sigma": "nan"}, "--sigma"),
        ({"--output": "features.txt"}, "features.txt: features are written for NumPy"),
    ],
)
def test_mistakes_are_named(
    flags: dict[str, str], says: str, picture: Path, tmp_path: Path
) -> None:
    bundle = bundles.bundle(observe=True)
    refuse(bundle, picture, tmp_path, flags, says)


def test_other_bundles_are_refused(forked_bundle: Path, picture: Path, tmp_path: Path) -> None:
    refuse(forked_bundle, picture, tmp_path, {}, "export it again with --observe")


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    odd = save_picture(tmp_path / "odd.png", (33, 32))
    says = "odd.png has 32x33 pixels: scale it to sides that are multiples of 4"
    refuse(bundles.bundle(observe=True), odd, tmp_path, {}, says)


def refuse(bundle: Path, picture: Path, folder: Path, flags: dict[str, str], says: str) -> None:
    given = {"--image": str(picture), "--block": "1", "--output": "features.npy"} | flags
    given["--output"] = str(folder / given["--output"])
    before = set(folder.iterdir())
    words = [word for flag, value in given.items() for word in (flag, value)]
    run = command("features", str(bundle), *words)
    assert run.returncode == 2, run.stderr
    assert says in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not run.stdout
    assert set(folder.iterdir()) == before
