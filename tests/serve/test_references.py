"""Edits with models that take pictures beside the prompt."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

import intaglio
from tests import bundles
from tests.serve.conftest import PROMPT, Running, serving
from tests.serve.test_edits import EDITS, file_of, noise, transparent

QUICK: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "steps": 2, "cfg_scale": 1.0}


def changed(source: Path, target: Path, **references: Any) -> Path:
    """Return a copy of a bundle whose manifest says something else about references."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "bundle.json").read_text())
    manifest["references"] |= references
    (target / "bundle.json").write_text(json.dumps(manifest))
    return target


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """FLUX.2, and copies that scale references to an area, or to a size as FLUX.1 Kontext does."""
    folder, klein = tmp_path_factory.mktemp("references"), bundles.bundle("flux2-klein")
    return {
        "klein": klein,
        "area": changed(klein, folder / "area", max_area=5000),
        "sizes": changed(klein, folder / "sizes", sizes=[[96, 64], [64, 96]], only=False),
    }


@pytest.fixture(scope="module")
def referring(folders: dict[str, Path]) -> Iterator[Running]:
    with serving(*(f"{name}={path}" for name, path in folders.items())) as running:
        yield running


def edit(server: Running, files: Any, **fields: Any) -> Any:
    return server.client.post(EDITS, files=files, data={**QUICK, **fields})


@pytest.mark.parametrize("size", [None, "32x48"])
@pytest.mark.parametrize("model", ["klein", "area", "sizes"])
def test_a_reference_is_what_it_is_in_the_library(
    referring: Running, folders: dict[str, Path], model: str, size: str | None
) -> None:
    """It has odd sides, and keeps them and their ratio whatever size is drawn."""
    picture = noise("RGB", (101, 77))
    fields: dict[str, Any] = {"size": size} if size else {}
    answer = edit(
        referring, {"image": file_of(picture)}, model=model, response_format="b64_json", **fields
    )
    assert answer.status_code == 200, answer.text
    sides = dict(zip(("width", "height"), map(int, size.split("x")), strict=True)) if size else {}
    pipeline = intaglio.Pipeline.open(folders[model], threads=1, prepack=True)
    expected = pipeline.generate(
        PROMPT, image=picture, seeds=3, steps=2, cfg_scale=1.0, **sides
    ).images[0]
    drawn = decoded(answer)
    assert drawn.size == expected.size
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))


def decoded(answer: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))


def test_several_references_by_openais_client_and_by_a_replica(
    referring: Running, folders: dict[str, Path]
) -> None:
    pictures = [noise("RGB", (101, 77)), noise("RGB", (64, 90))]
    files = [file_of(picture) for picture in pictures]
    client = openai.OpenAI(base_url=f"{referring.url}/v1", api_key="none", max_retries=0)
    answer = client.images.edit(
        model="area", prompt=PROMPT, image=files, response_format="b64_json",
        extra_body={"seed": 3, "steps": 2, "cfg_scale": 1.0},
    )  # fmt: skip
    assert answer.data
    drawn = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    pipeline = intaglio.Pipeline.open(folders["area"], threads=1, prepack=True)
    expected = pipeline.generate(PROMPT, image=pictures, seeds=3, steps=2, cfg_scale=1.0).images[0]
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))
    parts = [("image[]", one) for one in files]
    with serving(f"area={folders['area']}", device="cpu", replicated=True) as replicated:
        other = edit(replicated, parts, model="area", response_format="b64_json")
        single = edit(replicated, parts[:1], model="area", response_format="b64_json")
    assert other.status_code == 200, other.text
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(decoded(other)))
    one = edit(referring, {"image": files[0]}, model="area", response_format="b64_json")
    np.testing.assert_array_equal(np.asarray(decoded(one)), np.asarray(decoded(single)))


def test_more_pictures_than_an_edit_takes_are_refused(
    referring: Running, folders: dict[str, Path]
) -> None:
    five = [("image[]", file_of(noise("RGB", (64, 64)))) for _ in range(5)]
    for files, fields, most in ((five, {"model": "klein"}, 4),
                                (five[:2], {"model": "sizes", "strength": 0.5}, 1)):  # fmt: skip
        answer = edit(referring, files, **fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
        assert f"of which this edit takes {most}" in answer.json()["error"]["message"]
    with serving(folders["klein"], limits={"upload_pixels": 10_000}) as server:
        answer = edit(server, five[:3])
    says = "image is 64x64 pixels, and the files before it have 8192: send up to 10000 in all"
    assert says in answer.json()["error"]["message"]


def test_limits_hold_for_the_size_of_a_reference(folders: dict[str, Path]) -> None:
    """It has the size of the image, and is seen beside it."""
    picture = {"image": file_of(noise("RGB", (101, 77)))}
    with serving(folders["klein"], limits={"total_pixels": 2 * (100 * 76 + 101 * 77)}) as server:
        assert edit(server, picture, n=2).status_code == 200
        answer = edit(server, picture, n=3)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "size")


def test_a_large_picture_counts_as_it_is_scaled(folders: dict[str, Path]) -> None:
    """A photograph is larger than the limit, but its reference has 96x64 pixels."""
    picture = {"image": file_of(noise("RGB", (300, 200)))}
    with serving(folders["sizes"], limits={"total_pixels": 32 * 48 + 96 * 64}) as server:
        assert edit(server, picture, size="32x48").status_code == 200
        answer = edit(server, picture, size="32x64")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "size")


@pytest.mark.parametrize(
    ("files", "fields", "says"),
    [
        ({}, {"strength": 0.5}, "takes pictures as references only"),
        ({"mask": file_of(transparent((101, 77)))}, {}, "takes pictures as references only"),
        ({"image": file_of(noise("RGB", (48, 32)))}, {}, "sides of 64 pixels or more"),
        ({"image": file_of(noise("RGB", (3, 3)))}, {}, "sides of 64 pixels or more"),
    ],
    ids=["strength", "mask", "small", "tiny"],
)
def test_what_is_no_reference_is_refused(
    referring: Running, files: dict[str, bytes], fields: dict[str, Any], says: str
) -> None:
    picture = {"image": file_of(noise("RGB", (101, 77)))}
    answer = edit(referring, picture | files, model="klein", **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "image"
    assert says in error["message"]
    assert "--" not in error["message"]


def test_models_say_how_they_take_pictures(server: Running, referring: Running) -> None:
    found = {
        model["id"]: (model["intaglio"]["edits"], model["intaglio"]["references"])
        for running in (server, referring)
        for model in running.client.get("/v1/models").json()["data"]
    }
    assert found == {"tiny": (True, 0), "klein": (False, 4), "area": (False, 4), "sizes": (True, 4)}
