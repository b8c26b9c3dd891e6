"""Requests to models that draw by class, in one size only, or without text encoders."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

import intaglio
from tests.fake_bundle import make_bundle
from tests.serve.conftest import PROMPT, Running, serving


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of three small models."""
    folder = tmp_path_factory.mktemp("models")
    bundles = {
        "classes": make_bundle(folder / "classes", "class"),
        "fixed": make_bundle(folder / "fixed", "class", fixed_size=True),
        "embeddings": make_bundle(folder / "embeddings", "text"),
    }
    with serving(*(f"{name}={bundle}" for name, bundle in bundles.items())) as running:
        yield running


def draw(server: Running, **fields: Any) -> Any:
    return server.client.post("/v1/images/generations", json=fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "classes"}, "class_label"),
        ({"model": "classes", "class_label": 10}, "class_label"),
        ({"model": "classes", "class_label": -1}, "class_label"),
        ({"model": "classes", "class_label": 2**31}, "class_label"),
        ({"model": "classes", "class_label": 3, "prompt": PROMPT}, "prompt"),
        ({"model": "classes", "class_label": 3, "negative_prompt": "light"}, "negative_prompt"),
        ({"model": "fixed", "class_label": 3, "size": "16x32"}, "size"),
        ({"model": "fixed", "class_label": 3, "size": "16x12"}, "size"),
        ({"model": "embeddings", "prompt": PROMPT}, "model"),
    ],
)
def test_a_request_that_the_model_cannot_draw_is_rejected(
    models: Running, fields: dict[str, Any], param: str
) -> None:
    answer = draw(models, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert param in error["message"]
    assert "--" not in error["message"], "a message that names flags"


@pytest.mark.parametrize("model", ["classes", "fixed"])
def test_a_class_is_drawn(models: Running, model: str) -> None:
    """An empty prompt beside the class is accepted, since OpenAI's client always sends a prompt."""
    fields = {"model": model, "class_label": 3, "prompt": "", "seed": 5, "steps": 2}
    job = models.client.post("/v1/jobs", json=fields).json()
    assert models.events(job["id"])[-1][0] == "done"
    shown = models.job(job["id"])
    assert shown["request"]["class_label"] == 3
    assert "prompt" not in shown["request"]
    image = models.client.get(shown["images"][0]).content
    bundle = models.services.models.get(model).bundle.folder
    pipeline = intaglio.Pipeline.open(bundle, threads=1, prepack=True)
    expected = pipeline.generate(class_label=3, seeds=5, steps=2).images[0]
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(image))), np.asarray(expected))
