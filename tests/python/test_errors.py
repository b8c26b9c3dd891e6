"""Every mistake raises a typed exception with the message that the command prints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import intaglio
from tests.fake_bundle import TEXT_WIDTH, make_bundle
from tests.python.conftest import PROMPT

CODES = {
    intaglio.Error: 3,
    intaglio.UsageError: 2,
    intaglio.InputError: 3,
    intaglio.UnavailableError: 4,
    intaglio.OutOfMemoryError: 5,
    intaglio.Interrupted: 130,
}


@pytest.mark.parametrize(("error", "code"), CODES.items())
def test_exit_codes_are_the_commands(error: type[intaglio.Error], code: int) -> None:
    assert error.exit_code == code
    assert issubclass(error, intaglio.Error)
    assert error.__module__ == "intaglio"
    assert error.__doc__


def test_second_bases_are_what_people_already_catch() -> None:
    assert issubclass(intaglio.UsageError, ValueError)
    assert issubclass(intaglio.InputError, ValueError)
    assert issubclass(intaglio.UnavailableError, RuntimeError)
    assert issubclass(intaglio.OutOfMemoryError, MemoryError)
    assert not issubclass(intaglio.Interrupted, KeyboardInterrupt)


NAN = np.full((1, 4, 16, 16), np.nan, np.float32)
USAGE: dict[str, tuple[dict[str, Any], str]] = {
    "prompt None": ({"prompt": None}, "^prompt is missing"),
    "steps 0": ({"steps": 0}, "steps"),
    "steps text": ({"steps": "many"}, "steps takes N"),
    "steps fraction": ({"steps": 2.5}, "steps takes N"),
    "batch 0": ({"batch": 0}, "batch"),
    "seeds empty": ({"seeds": []}, "seeds"),
    "seed negative": ({"seeds": -1}, r"not -1: give a number from 0 .* random\.getrandbits"),
    "seeds and batch": ({"seeds": [1, 2], "batch": 3}, "batch"),
    "height odd": ({"height": 31}, "height 31"),
    "width huge": ({"width": 1 << 20}, "width"),
    "window backwards": ({"cfg_window": (0.5, 0.1)}, "window"),
    "window of three": ({"dg_window": (0, 0.5, 1)}, "dg_window takes A:B"),
    "scale text": ({"cfg_scale": "strong"}, "cfg_scale takes S"),
    "scale NaN": ({"dg_scale": float("nan")}, "finite|number"),
    "keep": ({"ma_keep": -1.5}, "keep"),
    "channel": ({"ma_channels": [64]}, "^ma_channels 64"),
    "scheduler": ({"scheduler": "magic"}, "euler, heun"),
    "tile": ({"vae_tile": 3}, "^vae_tile"),
    "strength": ({"image": Image.new("RGB", (32, 32)), "strength": 0.0}, "strength"),
}
INPUT: dict[str, tuple[dict[str, Any], str]] = {
    "latents shape": ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, "shape"),
    "latents dtype": ({"latents": np.zeros((1, 4, 16, 16))}, "float32"),
    "latents NaN": ({"latents": NAN}, "NaN"),
    "latents list": ({"latents": [0.0]}, "float32"),
    "image floats": ({"image": np.zeros((32, 32, 3), np.float32)}, "picture"),
    "image four channels": ({"image": np.zeros((32, 32, 4), np.uint8)}, "picture"),
    "prompt surrogate": ({"prompt": "a \ud800 bag"}, "UTF-8"),
    "negative prompt surrogate": ({"negative_prompt": "\udcff"}, "UTF-8"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(forked: intaglio.Pipeline, name: str) -> None:
    options, sentence = USAGE[name]
    with pytest.raises(intaglio.UsageError, match=sentence):
        forked.generate(**{"prompt": PROMPT, **options})


@pytest.mark.reported(
    "cumulo-autumn/StreamDiffusion#40",
    "openvinotoolkit/openvino.genai#2195",
    "huggingface/diffusers#1742",
)
@pytest.mark.parametrize("option", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    "value", [["a dress", "a boot"], ("a dress",), b"a dress", 123, {"a dress": 1}, open]
)
def test_only_a_text_is_a_prompt(forked: intaglio.Pipeline, option: str, value: object) -> None:
    """A list of prompts, bytes or a number is refused, and never drawn as the text of it."""
    options: dict[str, Any] = {"prompt": PROMPT, option: value}
    says = f"^{option} takes TEXT .*, not {re.escape(repr(value))}"
    if isinstance(value, list | tuple):
        says += r": call generate\(\) once for each text, or add each to a Batch"
    for call in (
        lambda: forked.generate(**options),
        lambda: intaglio.Batch(forked).add(**options),
        lambda: intaglio.Batch(forked).accepts(**options),
        lambda: intaglio.validate(forked.bundle, **options),
    ):
        with pytest.raises(intaglio.UsageError, match=says + "$"):
            call()
    texts = {"prompt": PROMPT, option: np.str_("a dress")}
    forked.generate(**texts, steps=1)


@pytest.mark.parametrize("name", INPUT)
def test_input(forked: intaglio.Pipeline, name: str) -> None:
    options, sentence = INPUT[name]
    with pytest.raises(intaglio.InputError, match=sentence):
        forked.generate(**{"prompt": PROMPT, **options})


def test_an_unknown_keyword_is_pythons_own_error(forked: intaglio.Pipeline) -> None:
    with pytest.raises(TypeError, match="guider"):
        forked.generate(PROMPT, guider=3)  # type: ignore[call-arg]
    with pytest.raises(intaglio.UsageError, match="guider"):
        forked._core.generate(prompt=PROMPT, guider=3)


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(intaglio.InputError, match="nowhere"):
        intaglio.Pipeline.open(tmp_path / "nowhere")


def test_an_unknown_device(forked_bundle: Path) -> None:
    with pytest.raises(intaglio.UsageError, match=r'no device "abacus".*auto, cpu, openvino'):
        intaglio.Pipeline.open(forked_bundle, device="abacus")


def test_bytes_that_are_no_text_do_not_break_the_message(tmp_path: Path) -> None:
    import os

    with pytest.raises(intaglio.InputError, match=r"\\xff"):
        intaglio.Bundle.open(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))


def test_embeddings_of_z_image(tmp_path: Path) -> None:
    """Its graph counts the ones of the mask, and has a table with the positions of tokens."""
    folder = make_bundle(tmp_path / "fake", "text", "text_mask")
    file = folder / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"family": "z-image"}))
    pipeline = intaglio.Pipeline.open(folder)

    longest = pipeline.bundle.prompt.max_sequence_length

    def draw(*marks: float) -> intaglio.Generation:
        embeds = intaglio.PromptEmbeddings(
            np.zeros((1, len(marks), TEXT_WIDTH), np.float32),
            prompt_attention_mask=np.array([marks], np.float32),
        )
        return pipeline.generate(prompt_embeds=embeds, steps=1, cfg_scale=1.0)

    assert draw(1, 1, 1, 0).images
    for marks in ((0, 1, 1, 1), (1, 1, 0, 1)):
        with pytest.raises(intaglio.InputError, match="padding before a token: put all tokens"):
            draw(*marks)
    assert draw(*[1] * longest).images
    with pytest.raises(
        intaglio.InputError,
        match=rf"{longest + 1} tokens where .* up to {longest}: make them shorter",
    ):
        draw(*[1] * (longest + 1))
