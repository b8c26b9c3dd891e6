"""validate() lists by field what generate() refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import intaglio
from tests.python.conftest import PROMPT

WHITE, DOT = np.full((32, 32), 255, np.uint8), np.zeros((32, 32), np.uint8)
LONG = np.full((8, 600), 255, np.uint8)
DOT[7, 8] = 255  # between the pixels that the cells of the latents take
WRONG: list[tuple[dict[str, Any], list[str], str]] = [
    ({"height": 31}, ["height"], "height 31 does not fit"),
    ({"height": 0, "width": 1 << 20}, ["height", "width"], "give a multiple of 4 from 4 to"),
    ({"steps": 0}, ["steps"], "give 1 or more"),
    ({"seeds": []}, ["seeds"], "seeds is empty"),
    ({"seeds": [1, 2], "batch": 3}, ["seeds"], "batch asks for 3: leave batch out"),
    ({"dg_window": (0.7, 0.2)}, ["dg_window"], "dg_window 0.7:0.2 holds no part of the run"),
    (
        {"cfg_scale": float("nan"), "ma_keep": -1.5},
        ["cfg_scale", "ma_keep"],
        "cfg_scale must be a finite number",
    ),
    ({"cfg_scale": (-0.5, 2)}, ["cfg_scale"], "cfg_scale -0.5 is below 0: give 1, which turns CFG"),
    ({"reuse_interval": (2, 3)}, ["reuse_interval"], "reuse_interval 2:3 grows"),
    ({"ma_channels": [64]}, ["ma_channels"], "ma_channels 64 is not a channel"),
    ({"scheduler": "magic"}, ["scheduler"], "use one of euler, heun, dpmpp-2m"),
    ({"vae_tile": 3}, ["vae_tile"], "vae_tile must be a multiple of"),
    ({"class_label": 1}, ["class_label"], "class_label does not fit"),
    ({"prompt": "a \ud800 bag"}, ["prompt"], "UTF-8"),
    ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, ["latents"], "shape"),
    ({"ma_tokens": np.zeros((2, 2), np.uint8)}, ["ma_tokens"], "picture for ma_tokens is smaller"),
    ({"mask_blur": 2}, ["mask_blur"], "mask_blur says how mask is blurred: give mask too"),
    ({"image": WHITE, "mask": WHITE, "mask_blur": -1}, ["mask_blur"], "must be from 0 to 1000"),
    ({"mask_padding": 2}, ["mask_padding"], "mask_padding cuts image around mask: give both"),
    ({"image": WHITE, "mask": WHITE, "mask_padding": -1}, ["mask_padding"], "0 pixels or more"),
    (
        {"image": LONG, "mask": LONG, "mask_padding": 2, "height": 32, "width": 32},
        ["mask_padding"],
        "the part around mask is 600x8 pixels, too long for a drawing of 32x32: give another width",
    ),
    ({"image": WHITE, "mask": WHITE * 0, "mask_padding": 2}, ["mask"], "mask is white nowhere"),
    ({"image": WHITE, "mask": WHITE[:16], "mask_padding": 2}, ["mask"], "mask is 32x16 pixels"),
    (
        {"image": WHITE, "mask": WHITE, "mask_padding": 2, "ma_tokens": WHITE[:16]},
        ["ma_tokens"],
        "is cut as image is, but it is 32x16 pixels and image is 32x32: make both of one size",
    ),
    ({"mask": WHITE}, ["mask"], "mask says which part of image is drawn anew: give image too"),
    ({"image": WHITE, "mask": WHITE[:16]}, ["mask"], "mask is 32x16 pixels but image is 32x32"),
    ({"image": WHITE, "mask": WHITE // 2}, ["mask"], "mask is white nowhere"),
    ({"image": WHITE, "mask": DOT}, ["mask"], "paint a part of it white, of 2x2 pixels or more"),
]


@pytest.mark.parametrize(("options", "fields", "says"), WRONG, ids=lambda x: str(x)[:40])
def test_every_problem_is_listed_and_the_first_is_raised(
    forked: intaglio.Pipeline, options: dict[str, Any], fields: list[str], says: str
) -> None:
    problems = intaglio.validate(forked.bundle, **{"prompt": PROMPT, **options})
    assert [problem.field for problem in problems] == fields
    assert any(says in problem.message for problem in problems)
    with pytest.raises(intaglio.Error) as raised:
        forked.generate(**{"prompt": PROMPT, **options})
    assert str(raised.value) == problems[0].message


def test_nothing_is_wrong_with_what_runs(forked: intaglio.Pipeline) -> None:
    options = {"prompt": PROMPT, "height": 24, "width": 40, "seeds": [1, 2], "scheduler": "heun"}
    assert intaglio.validate(forked.bundle, **options) == []
    assert intaglio.validate(forked.bundle, prompt=PROMPT) == []


def test_a_value_of_another_type_is_raised(forked: intaglio.Pipeline) -> None:
    with pytest.raises(intaglio.UsageError, match="steps takes N"):
        intaglio.validate(forked.bundle, prompt=PROMPT, steps="many")
    with pytest.raises(intaglio.UsageError, match="no option guider"):
        intaglio.validate(forked.bundle, prompt=PROMPT, guider=3)


def test_a_bundle_checks_a_size(forked: intaglio.Pipeline) -> None:
    bundle = forked.bundle
    assert bundle.size_multiple == bundle.latent.vae_scale_factor * bundle.patch_size
    assert bundle.check_size(bundle.latent.max_height, bundle.latent.max_width) == []
    problems = bundle.check_size(bundle.size_multiple + 1, bundle.latent.max_width + 1)
    assert [problem.field for problem in problems] == ["height", "width"]
    assert "give a multiple of" in problems[0].message
