"""apply_detail_guidance on FLUX.2 and Chroma, and guiders in the place of CFG."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.callbacks import SD3CFGCutoffCallback
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from PIL import Image

from intaglio.diffusers import DetailGuidance, apply_detail_guidance
from tests.diffusers.conftest import Open
from tests.diffusers.runs import (
    BLOCK,
    CHANNELS,
    LIMIT,
    STEPS,
    blocks,
    counted,
    draw,
    draw_modular,
    expected,
    hooks_left,
    modular,
    relative,
)
from tests.families import FAMILIES, Family, flux2
from tests.parity.diffusers_runs import _arguments, _run, guided_run, native_run

PLACE = {"channels": CHANNELS, "block": BLOCK}
DEV = Family(
    flux2.make_dev, ("encoder_hidden_states",), "guidance_scale", {"max_sequence_length": 40}
)
NEWER = {name: FAMILIES[name] for name in ("flux2-klein", "chroma")} | {"flux2-dev": DEV}


@pytest.mark.parametrize("joined", [False, True], ids=["two streams", "one stream"])
@pytest.mark.parametrize(
    ("name", "cfg"),
    [("flux2-klein", 1.0), ("flux2-klein", 2.5), ("chroma", 2.5), ("flux2-dev", 1.0)],
)
def test_run_equals_a_whole_forward(name: str, cfg: float, joined: bool) -> None:
    """In the first block of two streams, and in the first one that joins them."""
    family, pipe = NEWER[name], NEWER[name].make()
    block = len(pipe.transformer.transformer_blocks) if joined else 0
    tokens = slice(family.call["max_sequence_length"] if joined else 0, None)
    wanted = guided_run(pipe, replace(family, image_tokens=tokens), cfg, 1.5, block, CHANNELS)

    def run() -> torch.Tensor:
        if cfg > 1:
            return native_run(pipe, family, cfg).latents
        with torch.no_grad():
            return _run(pipe, _arguments(pipe, family) | {family.cfg: family.unguided}).latents

    plain = run()
    with apply_detail_guidance(pipe, channels=CHANNELS, block=block, dg_scale=1.5):
        got = run()
    assert relative(got, wanted.latents) < 1e-4
    assert relative(got, plain) > LIMIT
    assert hooks_left(pipe.transformer) == []


def test_reference_pictures_are_refused() -> None:
    pipe = flux2.make_base()
    picture = Image.new("RGB", (32, 32))
    with (
        apply_detail_guidance(pipe, **PLACE),
        pytest.raises(ValueError, match="does not work with reference pictures"),
    ):
        pipe(picture, "a boot", num_inference_steps=1, max_sequence_length=40)


# What the runtime calls them. APG works on the clean data there, and in diffusers' pipelines on the
# raw prediction, so it is compared with its formula below.
GUIDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "cfg": (ClassifierFreeGuidance(2.5, guidance_rescale=0.7), {"guidance_rescale": 0.7}),
    "cfg-zero": (ClassifierFreeZeroStarGuidance(2.5), {"guidance": "cfg-zero"}),
    "tcfg": (TangentialClassifierFreeGuidance(2.5), {"guidance": "tcfg"}),
}


@pytest.mark.parametrize("name", GUIDERS)
@pytest.mark.parametrize("kind", ["classic", "modular"])
def test_a_guider_takes_the_place_of_cfg(name: str, kind: str, runtime: Open) -> None:
    guider, options = GUIDERS[name]
    pipe = FAMILIES["sd3"].make()
    if kind == "classic":
        with apply_detail_guidance(pipe, **PLACE, dg_scale=1.5, cfg=guider):
            got = draw(pipe, "guidance_scale", 4.0)  # which only says that there is a D_0
    else:
        made = modular(pipe, DetailGuidance(**PLACE, dg_scale=1.5, cfg=guider))
        got = draw_modular(made)
    wanted = expected(runtime("sd3"), cfg_scale=2.5, dg_scale=1.5, **options)
    assert relative(got, wanted) < LIMIT
    plain = expected(runtime("sd3"), cfg_scale=2.5, dg_scale=1.5)
    assert relative(plain, wanted) > 5 * LIMIT


def test_a_guiders_memory_begins_anew_in_each_run() -> None:
    pipe = FAMILIES["sd3"].make()
    guider = AdaptiveProjectedGuidance(2.5, adaptive_projected_guidance_momentum=-0.5)
    with apply_detail_guidance(pipe, **PLACE, cfg=guider):
        one, other = (draw(pipe, "guidance_scale", 2.5) for _ in range(2))
    assert torch.equal(one, other)
    with apply_detail_guidance(pipe, **PLACE):
        assert relative(draw(pipe, "guidance_scale", 2.5), one) > LIMIT


@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("kind", [ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance])
def test_a_guider_needs_a_call_with_both_predictions(kind: type, scale: float) -> None:
    pipe = FAMILIES["sd3"].make()
    with (
        apply_detail_guidance(pipe, **PLACE, cfg=kind(2.5)),
        pytest.raises(ValueError, match=f"guidance_scale above 1, not {scale:g}: .* D_0$"),
    ):
        draw(pipe, "guidance_scale", scale)
    assert hooks_left(pipe.transformer) == []
    with apply_detail_guidance(pipe, **PLACE):  # without a guider
        draw(pipe, "guidance_scale", scale)


def test_a_callback_may_turn_the_guider_off() -> None:
    """The first step predicts zero, so it has no DG. The others have no CFG, but DG."""
    pipe = FAMILIES["sd3"].make()
    off = SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    with (
        apply_detail_guidance(pipe, **PLACE, cfg=ClassifierFreeZeroStarGuidance(2.5)),
        counted(pipe.transformer) as rows,
    ):
        draw(
            pipe, "guidance_scale", 2.5, num_images_per_prompt=1, callback_on_step_end=off,
            callback_on_step_end_tensor_inputs=off.tensor_inputs,
        )  # fmt: skip
    early, late = 2 + STEPS - 1, 2 + 2 * (STEPS - 1)
    assert rows == [early] * (BLOCK + 1) + [late] * (len(blocks(pipe.transformer)) - BLOCK - 1)


def test_what_does_not_fit_is_named() -> None:
    pipe = FAMILIES["sd3"].make()
    with pytest.raises(TypeError, match="not SkipLayerGuidance"):
        apply_detail_guidance(
            pipe, **PLACE, cfg=SkipLayerGuidance(2.5, skip_layer_guidance_layers=[1])
        )
    with pytest.raises(TypeError, match="FluxPipeline keeps its own guidance"):
        apply_detail_guidance(
            FAMILIES["flux-dedistilled"].make(), **PLACE, cfg=ClassifierFreeGuidance(2.5)
        )
    with pytest.raises(ValueError, match="leave out cfg_scale"):
        DetailGuidance(**PLACE, cfg_scale=2.0, cfg=ClassifierFreeGuidance(2.5))
    with pytest.raises(ValueError, match="start and stop: leave out cfg_window"):
        DetailGuidance(**PLACE, cfg_window=(0.0, 0.6), cfg=ClassifierFreeGuidance(2.5))
    DetailGuidance(**PLACE, cfg_window=[0, 1], cfg=ClassifierFreeGuidance(2.5))  # all steps
    with pytest.raises(
        TypeError, match="Flux2Pipeline, Flux2KleinPipeline, ChromaPipeline, not Qwen"
    ):
        apply_detail_guidance(FAMILIES["qwen-image"].make(), **PLACE)
