"""Edits of pictures, with OpenAI's own client and with other forms."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from fastapi import Request
from PIL import Image

import intaglio
from intaglio.serve.api import openai as api
from intaglio.serve.api.schemas import EditRequest
from intaglio.serve.api.services import FORMS_AT_ONCE
from intaglio.serve.api.uploads import read_form
from tests.serve.conftest import LONG, PROMPT, Running, serving, wait_until

SIZE = (40, 24)
EDITS = "/v1/images/edits"


def file_of(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(mode: str, size: tuple[int, int] = SIZE) -> Image.Image:
    drawn = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(drawn).convert(mode)


def transparent(size: tuple[int, int] = SIZE) -> Image.Image:
    """Return a mask: its right half is transparent, and a part of the left one nearly so."""
    pixels = np.full((size[1], size[0], 4), 255, np.uint8)
    pixels[:, size[0] // 2 :, 3] = 0
    pixels[: size[1] // 2, : size[0] // 2, 3] = 1
    return Image.fromarray(pixels)


def white(mask: Image.Image) -> np.ndarray:
    return np.where(np.asarray(mask)[..., 3] == 0, 255, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def replicated(forked_bundle: Path) -> Iterator[Running]:
    """The server whose images another process draws."""
    with serving(f"tiny={forked_bundle}", max_batch=2, device="cpu", replicated=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def pixels(answer: Any) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(i.b64_json)))) for i in answer.data]


def test_openais_client_edits_a_picture(client: openai.OpenAI, pipeline: intaglio.Pipeline) -> None:
    picture, mask = noise("RGB"), transparent()
    fields = {
        "seed": 3, "steps": 4, "strength": 0.8, "mask_blur": 2.5, "cfg_scale": [3, 1.5],
        "dg_window": [0, 0.7], "negative_prompt": "12", "guidance": "apg",
        "scheduler": "heun",
    }  # fmt: skip
    answer = client.images.edit(
        model="tiny", prompt=PROMPT, image=file_of(picture), mask=file_of(mask), n=2,
        response_format="b64_json", extra_body=fields,
    )  # fmt: skip
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    options["seeds"] = [options.pop("seed"), 4]
    expected = pipeline.generate(PROMPT, image=picture, mask=white(mask), **options)
    for got, image in zip(pixels(answer), expected.images, strict=True):
        np.testing.assert_array_equal(got, np.asarray(image))
    png = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert png.info["intaglio:inputs"] == "image, mask"
    assert json.loads(png.info["intaglio:options"])["strength"] == 0.8


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "turned", "JPEG", "WEBP"])
def test_pictures_are_read_as_the_library_reads_them(
    client: openai.OpenAI, pipeline: intaglio.Pipeline, mode: str
) -> None:
    """Without a mask all of it is drawn anew; with a size it is scaled as diffusers scales."""
    if mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        content = file_of(noise("RGB", SIZE[::-1]), exif=exif)
    elif mode in {"JPEG", "WEBP"}:
        content = file_of(noise("RGB"), mode)
    elif mode == "I;16":
        content = file_of(Image.fromarray(np.asarray(noise("L"), np.uint16) * 257))
    else:
        content = file_of(noise(mode))
    answer = client.images.edit(
        prompt=PROMPT, image=[content], response_format="b64_json", extra_body={"seed": 1}
    )
    picture = Image.open(io.BytesIO(content))
    if mode != "turned":
        assert picture.size == SIZE
    expected = pipeline.generate(PROMPT, image=picture, seeds=1).images[0]
    np.testing.assert_array_equal(pixels(answer)[0], np.asarray(expected))


def test_pictures_are_scaled_to_the_size(
    client: openai.OpenAI, pipeline: intaglio.Pipeline
) -> None:
    from diffusers.image_processor import VaeImageProcessor

    picture, mask = noise("RGB", (75, 33)), transparent((75, 33))
    answer = client.images.edit(
        prompt=PROMPT, image=file_of(picture), mask=file_of(mask), size="40x24",
        response_format="b64_json", extra_body={"seed": 1},
    )  # fmt: skip
    resize = VaeImageProcessor().resize
    scaled = resize(Image.fromarray(white(mask)), 24, 40)
    expected = pipeline.generate(PROMPT, image=resize(picture, 24, 40), mask=scaled, seeds=1)
    np.testing.assert_array_equal(pixels(answer)[0], np.asarray(expected.images[0]))


@pytest.mark.parametrize(("size", "width", "height"), [("40x24", 40, 24), ("auto", 32, 32)])
def test_the_part_around_the_mask_is_drawn(
    client: openai.OpenAI, pipeline: intaglio.Pipeline, size: Any, width: int, height: int
) -> None:
    """The picture keeps its size, and only the part is drawn in the size given or the default."""
    picture, mask = noise("RGB", (75, 33)), transparent((75, 33))
    answer = client.images.edit(
        prompt=PROMPT, image=file_of(picture), mask=file_of(mask), size=size,
        response_format="b64_json", extra_body={"seed": 1, "mask_padding": 3},
    )  # fmt: skip
    expected = pipeline.generate(
        PROMPT, image=picture, mask=white(mask), mask_padding=3, width=width, height=height,
        seeds=1,
    )  # fmt: skip
    np.testing.assert_array_equal(pixels(answer)[0], np.asarray(expected.images[0]))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"strength": 0.8},
        {"size": "24x40", "strength": 0.8, "mask_blur": 2.5, "mask_padding": 1, "n": 2},
    ],
    ids=["defaults", "strength", "all"],
)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_a_replica_draws_the_same_edit(
    server: Running, replicated: Running, masked: bool, fields: dict[str, Any]
) -> None:
    """A replica is another process, which gets the pictures with the request."""
    if not masked:
        fields = {name: value for name, value in fields.items() if not name.startswith("mask_")}
    files = {"image": PICTURE} | ({"mask": MASK} if masked else {})
    data = {"prompt": PROMPT, "seed": "7", "response_format": "b64_json", **fields}
    drawn = []
    for running in (server, replicated):
        answer = running.client.post(EDITS, files=files, data=data)
        assert answer.status_code == 200, answer.text
        drawn.append(answer.json()["data"])
    assert drawn[0] == drawn[1]


def pierced(side: int = 1) -> Image.Image:
    """Return a mask with a small hole."""
    mask = Image.new("RGBA", SIZE)
    mask.putalpha(255)
    mask.paste((0, 0, 0, 0), (9, 9, 9 + side, 9 + side))
    return mask


def scanned(scans: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated, which decoders accept."""
    content = file_of(noise("RGB"), "JPEG", progressive=True)
    start, count = content.rindex(b"\xff\xda"), content.count(b"\xff\xda")
    assert count > 1
    return content[:-2] + content[start:-2] * (scans - count) + content[-2:]


PICTURE, MASK = file_of(noise("RGB")), file_of(transparent())
OPAQUE = file_of(transparent().convert("RGB"))
CLEAR = file_of(Image.new("RGBA", SIZE, (0, 0, 0, 9)))
TURNED = file_of(transparent(), exif=b"Exif\0\0nothing")
HUGE = file_of(Image.new("1", (5000, 4000)))
Files = dict[str, bytes]
Fields = dict[str, Any]
WRONG: dict[str, tuple[Files, Fields, str, str]] = {
    "no image": ({"mask": MASK}, {}, "image", "image is missing"),
    "no picture": ({"image": b"hello"}, {}, "image", "send a whole PNG, JPEG or WebP file"),
    "cut": ({"image": PICTURE[:200]}, {}, "image", "send a whole PNG"),
    "GIF": ({"image": file_of(noise("L"), "GIF")}, {}, "image", "send a whole PNG"),
    "many pixels": ({"image": HUGE}, {}, "image", "image is 5000x4000 pixels: send up to"),
    "large mask": ({"image": PICTURE, "mask": HUGE}, {}, "mask", "mask is 5000x4000 pixels"),
    "other size": (
        {"image": PICTURE, "mask": file_of(transparent((24, 24)))}, {},
        "mask", "mask is 24x24 pixels but image is 40x24: send both in one size",
    ),
    "no alpha": ({"image": PICTURE, "mask": OPAQUE}, {}, "mask", "no part of mask is transparent"),
    "opaque": ({"image": PICTURE, "mask": CLEAR}, {}, "mask", "no part of mask is transparent"),
    "a pixel": (
        {"image": PICTURE, "mask": file_of(pierced())}, {},
        "mask", "the transparent parts of mask are too small",
    ),
    "blurred away": (
        {"image": PICTURE, "mask": file_of(pierced(6))}, {"mask_blur": "500"},
        "mask", "the transparent parts of mask are too small",
    ),
    "EXIF": ({"image": TURNED}, {}, "image", "image cannot be read"),
    "EXIF of the mask": ({"image": PICTURE, "mask": TURNED}, {}, "mask", "mask cannot be read"),
    "scans": ({"image": scanned(101)}, {}, "image", "image has 101 scans: send a JPEG with 100 or"),
    "nested": ({"image": PICTURE}, {"steps": "[" * 20_000}, "steps", "steps is invalid"),
    "twice": ({"image": PICTURE}, {"steps": ["1", "2"]}, "steps", "steps is given several times"),
    "field and list": (
        {"image": PICTURE}, {"slg_layers": "7", "slg_layers[]": "8"},
        "slg_layers", "slg_layers is given several times",
    ),
    "list and field": (
        {"image": PICTURE}, {"prompt[]": "a", "prompt": "b"}, "prompt", "prompt is given several",
    ),
    "other file": ({"image": PICTURE, "video": MASK}, {}, "video", "video is no file of an edit"),
    "size": ({"image": PICTURE}, {"size": "30000x30000"}, "size", "exceeds the limit: give up to"),
    "file name": ({"mask": MASK}, {"image": "in.png"}, "image", "with -F image=@FILE"),
    "listed name": ({"image": PICTURE}, {"image[]": "b.png"}, "image", "with -F image=@FILE"),
    "mask's name": ({"image": PICTURE}, {"mask": "m.png"}, "mask", "with -F mask=@FILE"),
    "padding": ({"image": PICTURE}, {"mask_padding": "2"}, "mask_padding", "give both"),
    "long part": (
        {"image": file_of(noise("L", (800, 8))), "mask": file_of(Image.new("RGBA", (800, 8)))},
        {"mask_padding": "0", "size": "16x16"},
        "mask_padding", "too long for a drawing of 16x16: give another size",
    ),
    "strength": ({"image": PICTURE}, {"strength": "1.5"}, "strength", "strength must be above 0"),
    "text": ({"image": PICTURE}, {"steps": "many"}, "steps", "steps is invalid"),
    "unknown": ({"image": PICTURE}, {"stepz": "1"}, "stepz", "give steps instead"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "fields", "param", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(
    server: Running, files: Files, fields: Fields, param: str, says: str
) -> None:
    answer = server.client.post(EDITS, files=files, data={"prompt": PROMPT, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_a_jpeg_may_have_many_scans(server: Running) -> None:
    for scans in (20, 100):
        fields = {"prompt": PROMPT, "steps": "1"}
        answer = server.client.post(EDITS, files={"image": scanned(scans)}, data=fields)
        assert answer.status_code == 200, answer.text


def test_two_pictures_and_other_bodies_are_refused(server: Running) -> None:
    files = [("image[]", PICTURE), ("image[]", PICTURE)]
    answer = server.client.post(EDITS, files=files, data={"prompt": PROMPT})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    for body in ({"json": {"prompt": PROMPT}}, {"content": b"", "headers": {}}):
        answer = server.client.post(EDITS, **body)
        assert answer.status_code == 400
        assert "send multipart/form-data" in answer.json()["error"]["message"]
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = server.client.post(EDITS, content=b"--y\r\nno form", headers=headers)
    assert answer.status_code == 400


def test_forms_that_cannot_be_read(server: Running) -> None:
    body = b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n'
    for charset in ("undefined", "punycode", "none"):
        kind = f"multipart/form-data; charset={charset}; boundary=x"
        answer = server.client.post(EDITS, content=body, headers={"content-type": kind})
        assert answer.status_code == 400, answer.text
    before = server.metric("rejections_total", code="invalid_form")
    with socket.create_connection(("127.0.0.1", server.client.base_url.port or 0)) as client:
        head = f"POST {EDITS} HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x"
        client.sendall(f"{head}\r\ncontent-length: 5000\r\n\r\n--x\r\n".encode())
    wait_until(lambda: server.metric("rejections_total", code="invalid_form") > before)


class Dropped(dict[str, list[bytes]]):
    """Files, which weak references can refer to."""


def test_a_waiting_edit_holds_no_files(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a full queue, a form is not even read."""
    held: list[weakref.ref[Dropped]] = []

    async def read(request: Request) -> tuple[EditRequest, dict[str, list[bytes]]]:
        body, files = await read_form(request)
        dropped = Dropped(files)
        held.append(weakref.ref(dropped))
        return body, dropped

    monkeypatch.setattr(api, "read_form", read)
    fields = {"prompt": PROMPT, "steps": "1"}
    with (
        serving(forked_bundle, max_batch=1, limits={"queue": 1, "steps": LONG}) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        with server.full():
            first = pool.submit(server.client.post, EDITS, files={"image": PICTURE}, data=fields)
            wait_until(lambda: sum(server.services.queue.waiting.values()) == 1)
            wait_until(lambda: held[0]() is None)
            answer = httpx2.post(f"{server.url}{EDITS}", files={"image": b"hello"}, timeout=120)
            assert (answer.status_code, len(held)) == (429, 1), answer.text
        assert first.result().status_code == 200


def test_few_forms_are_read_at_once(forked_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a body begins when it is read."""
    reading, most = 0, 0

    async def read(request: Request) -> tuple[EditRequest, dict[str, list[bytes]]]:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        try:
            found = await read_form(request)
            await asyncio.sleep(3)
            return found
        finally:
            reading -= 1

    monkeypatch.setattr(api, "read_form", read)
    picture = file_of(noise("RGB", (400, 400)))
    assert len(picture) > 400_000, "more than is read ahead"

    def post(_: int) -> int:
        fields = {"prompt": PROMPT, "steps": "1", "size": "16x16"}
        url = f"{server.url}{EDITS}"
        return httpx2.post(url, files={"image": picture}, data=fields, timeout=120).status_code

    count = FORMS_AT_ONCE + 3
    with (
        serving(forked_bundle, limits={"body_seconds": 2}) as server,
        ThreadPoolExecutor(count) as pool,
    ):
        assert set(pool.map(post, range(count))) == {200}
    assert most == FORMS_AT_ONCE


def test_large_results_are_limited(forked_bundle: Path) -> None:
    """With padding, images have the size of the upload, however small the drawing is."""
    fields = {"prompt": PROMPT, "steps": "1", "mask_padding": "2", "size": "16x16"}
    with serving(forked_bundle, limits={"upload_pixels": 2 * SIZE[0] * SIZE[1]}) as server:
        for n, status in ((2, 200), (3, 400)):
            data = {**fields, "n": str(n)}
            answer = server.client.post(EDITS, files={"image": PICTURE, "mask": MASK}, data=data)
            assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == "n"


@pytest.fixture(scope="module")
def strict(forked_bundle: Path) -> Iterator[Running]:
    with serving(forked_bundle, limits={"upload_bytes": 9000, "body_bytes": 1000}) as server:
        yield server


def test_only_edits_take_long_bodies(strict: Running) -> None:
    """The limit is checked before the whole body has come."""
    for path, size, status in ((EDITS, 8000, 400), (EDITS, 9000, 413), ("/v1/jobs", 8000, 413)):
        files = {"image": b"x" * size}
        answer = strict.client.post(path, files=files, data={"prompt": PROMPT})
        assert answer.status_code == status, answer.text


def test_a_model_that_takes_no_picture_says_so(tmp_path: Path) -> None:
    from tests.fake_bundle import SIZE as FAKE
    from tests.fake_bundle import make_bundle

    bundle = make_bundle(tmp_path / "b", "class")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest.pop("vae_encoder")
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    fields = {"class_label": "1", "size": f"{2 * FAKE}x{FAKE}"}
    with serving(bundle) as server:
        answer = server.client.post(EDITS, files={"image": PICTURE}, data=fields)
        [model] = server.client.get("/v1/models").json()["data"]
    assert model["intaglio"]["edits"] is False
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "image")
    assert "has no VAE encoder" in error["message"]
