"""The pictures, captions and backgrounds of the emoji model, against Pillow and NumPy."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageOps

from models.training.data import DataError
from models.training.emoji import autoencoder, captions, compose, packages, pictures
from models.training.emoji.examples import Examples
from models.training.emoji.pictures import Emoji, Pictures

APPLE = Emoji("red apple", "food and drink", "fruit", "", "glossy 3d")


def tarball(folder: Path, package: packages.Package, files: dict[str, bytes]) -> None:
    """Write the tarball of a package as npm packs it."""
    with tarfile.open(folder / package.file, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def square(
    colour: str = "#ff0000", box: tuple[int, int, int, int] = (8, 16, 39, 55)
) -> Image.Image:
    """A transparent image with a rectangle; `box` includes its right and lower end."""
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).rectangle(box, colour)
    return image


def made(*images: Image.Image, names: tuple[str, ...] = ()) -> Pictures:
    emoji = [replace(APPLE, name=name) for name in names or ("red apple",) * len(images)]
    return Pictures(np.stack([np.asarray(image) for image in images]), emoji)


def test_icons_are_rendered_with_their_code_points_and_flips(tmp_path: Path) -> None:
    icons = {
        "width": 32,
        "height": 32,
        "icons": {"left": {"body": '<path fill="#f00" d="M4 8h16v20h-16z"/>'}},
        "aliases": {"right": {"parent": "left", "hFlip": True}},
    }
    characters = {"1f448-fe0f": "left", "1f449": "right"}
    files = {"icons.json": icons, "chars.json": characters}
    encoded = {name: json.dumps(content).encode() for name, content in files.items()}
    tarball(tmp_path, packages.NOTO, encoded)
    found = dict(pictures.read_icons(packages.NOTO, tmp_path))
    expected = square()
    assert found.keys() == {"1f448", "1f449"}
    assert ImageChops.difference(found["1f448"], expected).getbbox() is None
    assert ImageChops.difference(found["1f449"], ImageOps.mirror(expected)).getbbox() is None


def test_images_are_reduced_with_their_transparency(tmp_path: Path) -> None:
    large = square().resize((256, 256), Image.Resampling.NEAREST)
    file = io.BytesIO()
    large.save(file, "WEBP", lossless=True, exact=True)
    tarball(tmp_path, packages.FLUENT_3D, {"assets/2764-fe0f.webp": file.getvalue(), "a.md": b""})
    ((key, image),) = pictures.read_images(packages.FLUENT_3D, tmp_path)
    assert (key, image.size) == ("2764", (64, 64))
    inner = (12, 20, 36, 52)
    assert set(image.crop(inner).get_flattened_data()) == {(255, 0, 0, 255)}
    assert image.getpixel((60, 5))[3] == 0


def test_another_tarball_is_refused_and_removed(tmp_path: Path) -> None:
    package = replace(packages.NOTO, sha256=hashlib.sha256(b"good").hexdigest())
    path = tmp_path / package.file
    path.write_bytes(b"good")
    packages.verify(path, package)
    path.write_bytes(b"bad")
    with pytest.raises(DataError, match=r"noto-1\.2\.9\.tgz has the SHA-256"):
        packages.verify(path, package)
    assert not path.exists()


def test_missing_npm_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm, which downloads the emoji sets, is not installed"):
        packages.download(tmp_path)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert packages.default_cache() == Path("/elsewhere/intaglio/emoji")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert packages.default_cache() == Path.home() / ".cache/intaglio/emoji"


def test_attribution_names_every_package_and_licence() -> None:
    page = packages.attribution()
    for package in packages.PACKAGES:
        assert f"{package.name} {package.version} | {package.author} | {package.license}" in page
        assert package.license in {"MIT", "Apache-2.0"}


def test_composition_is_pillows() -> None:
    soft = square("#ff800080")
    data = made(soft)
    mint = list(compose.BACKGROUNDS).index("mint")
    variants = compose.Variants(
        np.array([[0, mint]]), np.array([[False, True]]), np.array([[[0, 0], [2, -3]]])
    )
    ours = compose.compose(data, variants, np.array([0, 0]), np.array([0, 1]))
    moved = ImageChops.offset(ImageOps.mirror(soft), -3, 2)
    for pixels, image, colour in ((ours[0], soft, "white"), (ours[1], moved, "mint")):
        page = Image.new("RGBA", (64, 64), (*compose.BACKGROUNDS[colour], 255))
        theirs = np.asarray(Image.alpha_composite(page, image).convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_allclose((pixels + 1.0) * 127.5, theirs, atol=1.01)


def test_variants_lose_no_pixel_and_contrast_with_the_picture() -> None:
    names = tuple(f"thing {i}" for i in range(12))
    reds = [square("#c82828", (2, 1, 63, 60)) for _ in names]
    data = made(*reds, names=names)
    planned = compose.plan(data)
    red = list(compose.BACKGROUNDS).index("red")
    assert (planned.background[:, :2] == compose.WHITE).all()
    assert (planned.background[:, 2:] != compose.WHITE).all()
    assert red not in planned.background
    assert planned.flip.any()
    assert planned.shift.any()
    rows, which = np.repeat(np.arange(12), 6), np.tile(np.arange(6), 12)
    opaque = np.asarray(reds[0])[..., 3].sum() // 255
    drawn = compose.compose(data, planned, rows, which)
    colour = np.array([200, 40, 40], np.float32) / 127.5 - 1.0
    seen = (np.abs(drawn - colour[:, None, None]) < 0.02).all(1).sum((1, 2))
    assert (seen == opaque).all()


def test_names_with_a_side_are_not_mirrored() -> None:
    animal = replace(APPLE, name="fox", group="animals and nature", kind="mammals")
    assert compose.may_flip(animal)
    assert not compose.may_flip(replace(animal, name="fox facing right"))
    assert not compose.may_flip(replace(animal, group="symbols", kind="arrows"))


def test_css_colours_have_their_names() -> None:
    same = ("black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink")
    other = {"saddlebrown": "brown", "tan": "beige", "navy": "blue", "gold": "yellow"}
    other |= {"silver": "gray", "crimson": "red", "hotpink": "pink", "ivory": "white"}
    expected = dict(zip(same, same, strict=True)) | other
    found = {
        css: captions.colour_name(*(channel / 255 for channel in ImageColor.getrgb(css)))
        for css in expected
    }
    assert found == expected


def test_captions_name_what_is_there() -> None:
    named = captions.colours(np.asarray(square()))
    assert named == ("red",)
    rng = random.Random(0)
    navy = list(compose.BACKGROUNDS).index("navy")
    drawn = {captions.draw(APPLE, named, navy, rng) for _ in range(300)}
    assert all(caption.endswith("navy background") for caption in drawn)
    assert "a red apple, glossy 3d, navy background" in drawn
    assert "red fruit, glossy 3d, navy background" in drawn
    plain = {captions.draw(APPLE, ("green",), compose.WHITE, rng) for _ in range(300)}
    assert "a red apple in green, glossy 3d" in plain
    assert not any("navy" in caption for caption in plain)


def test_held_out_names_and_pairs_are_not_trained() -> None:
    emoji = [
        replace(APPLE, name=f"thing {i}", style=style)
        for i in range(500)
        for style in pictures.STYLES
    ]
    data = Pictures(np.zeros((len(emoji), 1, 1, 4), np.uint8), emoji)
    names = {split: {e.name for e in data.of(split).emoji} for split in ("train", "name", "pair")}
    assert not names["name"] & (names["train"] | names["pair"])
    assert names["pair"] & names["train"]
    assert 0.02 < len(names["name"]) / 500 < 0.06
    assert 0.02 < len(data.of("pair").emoji) / 1500 < 0.06
    assert sum(len(data.of(split).emoji) for split in names) == 1500


def test_skin_tones_share_the_weight_of_a_name() -> None:
    data = made(*[square()] * 4, names=("hand", "hand", "hand", "fox"))
    examples = Examples.of(data)
    rows, _ = examples.choose(4000, torch.Generator().manual_seed(0))
    assert abs((rows == 3).mean() - 0.5) < 0.03


def test_edge_loss_is_the_mean_step_error_of_three_scales() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 2, 3, 16, 16), dtype=np.float32)
    ours = autoencoder.edge_loss(torch.from_numpy(first), torch.from_numpy(second)).item()
    theirs = []
    for scale in (1, 2, 4):
        error = (first - second).reshape(2, 3, 16 // scale, scale, 16 // scale, scale).mean((3, 5))
        theirs += [np.abs(np.diff(error, axis=axis)).mean() for axis in (2, 3)]
    assert ours == pytest.approx(np.mean(theirs), rel=1e-5)
