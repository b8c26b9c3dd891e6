"""OpenAI's own client, unmodified, against the server."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

import intaglio
from tests.serve.conftest import PROMPT, Running, fetch, serving

# Fields of a request, and the same as keywords of generate() where they differ.
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"seed": 3}, {"seeds": 3}),
    ({"seed": 3, "steps": 3, "cfg_scale": 1, "dg_scale": 0}, {}),
    (
        {
            "seed": 2**63 - 1, "steps": 5, "cfg_scale": [3, 1.5], "cfg_window": [0, 0.7],
            "dg_scale": [0.25, 1], "dg_window": [0.2, 1], "ma_keep": [1, 0],
            "negative_prompt": "light",
        },
        {},
    ),
    ({"seed": 3, "steps": 3, "cfg_scale": [5, 3, 2], "guidance": "apg", "guidance_eta": 0.5}, {}),
    ({"seed": 3, "steps": 3, "slg_layers": [1], "slg_scale": 2.5, "slg_window": [0, 0.8]}, {}),
    ({"seed": 3, "steps": 3, "scheduler": "dpmpp-2m-sde"}, {}),
    (
        {"seed": 3, "steps": 3, "transport_from": "light", "ma_keep": 0.2, "dg_window": [0, 0.5]},
        {},
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize(("fields", "keywords"), SETTINGS)
def test_the_image_is_the_one_of_generate(
    client: openai.OpenAI,
    pipeline: intaglio.Pipeline,
    fields: dict[str, Any],
    keywords: dict[str, Any],
) -> None:
    keywords = keywords or {"seeds": fields["seed"]} | {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
        if name != "seed"
    }
    expected = pipeline.generate(PROMPT, **keywords, width=40, height=24).images[0]
    answer = client.images.generate(
        model="tiny", prompt=PROMPT, size="40x24", response_format="b64_json", extra_body=fields
    )
    assert answer.data
    assert answer.data[0].b64_json
    drawn = pixels(base64.b64decode(answer.data[0].b64_json))
    np.testing.assert_array_equal(drawn, np.asarray(expected))


def test_several_images_have_consecutive_seeds(
    client: openai.OpenAI, pipeline: intaglio.Pipeline
) -> None:
    answer = client.images.generate(
        model="tiny", prompt=PROMPT, n=2, response_format="url", extra_body={"seed": 7}
    )
    expected = pipeline.generate(PROMPT, seeds=[7, 8]).images
    assert answer.data
    for given, image in zip(answer.data, expected, strict=True):
        assert given.url
        fetched = fetch(given.url)
        assert fetched.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(pixels(fetched.content), np.asarray(image))


def test_the_png_has_its_options(client: openai.OpenAI) -> None:
    answer = client.images.generate(model="tiny", prompt=PROMPT, response_format="b64_json")
    assert answer.data
    assert answer.data[0].b64_json
    image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert image.info["Description"] == PROMPT
    assert '"seeds":[' in image.info["intaglio:options"]


@pytest.mark.reported(
    "AUTOMATIC1111/stable-diffusion-webui#8468",
    "AUTOMATIC1111/stable-diffusion-webui#5806",
    "vladmandic/sdnext#1438",
)
@pytest.mark.parametrize("form", ["url", "b64_json"])
def test_without_metadata_the_png_has_pixels_only(forked_bundle: Path, form: str) -> None:
    """With `metadata = false` a PNG has no text inside, so neither prompt nor options."""
    with serving(forked_bundle, metadata=False) as server:
        body = {"prompt": PROMPT, "steps": 1, "response_format": form}
        (drawn,) = server.client.post("/v1/images/generations", json=body).json()["data"]
        png = fetch(drawn["url"]).content if form == "url" else base64.b64decode(drawn["b64_json"])
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.info == {}
    assert b"dark" not in png


def test_without_a_seed_images_differ(client: openai.OpenAI) -> None:
    drawn = [
        client.images.generate(model="tiny", prompt=PROMPT, response_format="b64_json").data
        for _ in range(2)
    ]
    assert drawn[0] != drawn[1]


def test_models_are_listed_with_their_defaults(
    client: openai.OpenAI, pipeline: intaglio.Pipeline
) -> None:
    (model,) = client.models.list().data
    details = model.model_dump()["intaglio"]
    defaults = pipeline.bundle.defaults
    assert model.id == "tiny"
    assert details["size"] == {"height": defaults.height, "width": defaults.width}
    assert details["defaults"]["steps"] == defaults.steps
    assert details["defaults"]["cfg_scale"] == defaults.guidance.cfg_scale.first
    assert details["prompt"] is True
    assert details["edits"] is True
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="give one of tiny"):
        client.models.retrieve("gpt-image-1")


WITHOUT_EFFECT: list[dict[str, Any]] = [
    {"user": "somebody"},
    {"quality": "auto"},
    {"quality": "standard"},
    {"background": "auto"},
    {"background": "opaque"},
    {"moderation": "low"},
    {"output_format": "png"},
    {"output_compression": 100},
    {"stream": False},
    {"partial_images": 0},
    {"size": "auto"},
    dict.fromkeys(("user", "quality", "background", "moderation", "output_format", "stream")),
    dict.fromkeys(("n", "size", "style", "response_format", "partial_images", "seed", "model")),
]


@pytest.mark.reported(
    "langchain-ai/langchain-community#106",
    "langchain-ai/langchain-community#177",
    "obot-platform/obot#2995",
    "n3d1117/chatgpt-telegram-bot#695",
    "vllm-project/vllm-omni#1101",
)
@pytest.mark.parametrize("fields", WITHOUT_EFFECT, ids=str)
def test_fields_without_effect_are_taken(
    client: openai.OpenAI, pipeline: intaglio.Pipeline, fields: dict[str, Any]
) -> None:
    """Fields of OpenAI's API that change nothing are taken, and the image is the same."""
    body = {"seed": 3, "response_format": "b64_json"} | fields
    answer = client.images.generate(prompt=PROMPT, extra_body=body)
    assert answer.data
    if fields.get("seed", 3) is None:
        assert answer.data[0].url
        return
    assert answer.data[0].b64_json
    expected = pipeline.generate(PROMPT, seeds=3).images[0]
    np.testing.assert_array_equal(
        pixels(base64.b64decode(answer.data[0].b64_json)), np.asarray(expected)
    )


def test_seed_minus_one_is_random(client: openai.OpenAI) -> None:
    body = {"seed": -1, "steps": 1, "response_format": "b64_json"}
    drawn = [client.images.generate(prompt=PROMPT, extra_body=body).data for _ in range(2)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"style": "vivid"},
        {"user": 1},
        {"prompts": None},
    ],
    ids=str,
)
def test_unknown_fields_are_refused_by_name(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(openai.BadRequestError, match=f"no field '{name}'") as refused:
        client.images.generate(prompt=PROMPT, extra_body=fields)
    assert refused.value.param == name


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"quality": "hd"}, '"auto" or "standard"'),
        ({"background": "transparent"}, '"auto" or "opaque"'),
        ({"output_format": "webp"}, '"png"'),
        ({"output_compression": 50}, "100"),
        ({"stream": True}, "false"),
        ({"partial_images": 2}, "0"),
        ({"moderation": "strict"}, '"auto" or "low"'),
    ],
    ids=str,
)
def test_values_that_would_change_the_image_are_refused_with_those_that_are_taken(
    client: openai.OpenAI, fields: dict[str, Any], values: str
) -> None:
    (name,) = fields
    says = f"{name} cannot be chosen here: leave it out, or give {values}"
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        client.images.generate(prompt=PROMPT, extra_body=fields)
    assert (refused.value.param, refused.value.code) == (name, "invalid_value")


@pytest.mark.filterwarnings("ignore:deprecated")
@pytest.mark.reported("mudler/LocalAI#921", "BerriAI/litellm#6277")
def test_variations_are_refused_in_one_sentence(client: openai.OpenAI) -> None:
    """OpenAI's client says that this server draws from a prompt."""
    picture = ("a.png", bytes(200_000), "image/png")  # more than a request for an image may have
    with pytest.raises(openai.NotFoundError, match="does not draw variations of im") as refused:
        client.images.create_variation(image=picture)
    assert refused.value.code == "not_supported"


def test_errors_become_exceptions_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="tiny", prompt=PROMPT, style="vivid")
    assert refused.value.param == "style"
    assert refused.value.code == "unknown_field"
    with pytest.raises(openai.NotFoundError, match="tiny") as unknown:
        client.images.generate(model="dall-e-3", prompt=PROMPT)
    assert unknown.value.param == "model"
    with pytest.raises(openai.NotFoundError, match=r"no model 'tinny' \(did you mean tiny\?\)"):
        client.images.generate(model="tinny", prompt=PROMPT)
