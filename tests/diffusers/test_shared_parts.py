"""apply_detail_guidance on one of several pipelines of the same parts, and parts that change."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from threading import Thread
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image
from PIL import Image

from intaglio.diffusers import DetailGuidance, apply_detail_guidance
from tests.diffusers.conftest import Open
from tests.diffusers.runs import (
    BLOCK,
    CHANNELS,
    HEIGHT,
    LIMIT,
    MODES,
    NEGATIVE,
    PROMPT,
    WIDTH,
    blocks,
    common,
    draw,
    draw_modular,
    expected,
    hooks_left,
    modular,
    relative,
)
from tests.families import FAMILIES

PLACE: dict[str, Any] = {"channels": CHANNELS, "block": BLOCK, "dg_scale": 1.5}


def draw_from_image(pipe: Any, family_cfg: str, cfg_scale: float) -> torch.Tensor:
    """Return the final latents of an image-to-image pipeline."""
    pipe.set_progress_bar_config(disable=True)
    picture = Image.radial_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
    latents: torch.Tensor = pipe(
        PROMPT,
        image=picture,
        strength=1.0,
        negative_prompt=NEGATIVE,
        output_type="latent",
        **common() | {family_cfg: cfg_scale},
    ).images
    return latents


@pytest.mark.reported("huggingface/diffusers#7241")
@pytest.mark.parametrize("family", ["sd3", "flux-dedistilled"])
def test_other_pipelines_of_the_same_parts_are_left_alone(family: str) -> None:
    """Pipelines that from_pipe makes before or after the guidance run without it."""
    pipe, cfg = FAMILIES[family].make(), FAMILIES[family].cfg
    before = AutoPipelineForImage2Image.from_pipe(pipe)
    plain_image, plain = draw_from_image(before, cfg, 2.5), draw(pipe, cfg, 2.5)
    with apply_detail_guidance(pipe, **PLACE):
        guided = draw(pipe, cfg, 2.5)
        for own in (1.0, 2.5):  # the number of rows of the guided pipeline's last call
            draw(pipe, cfg, own)
            for other in (before, AutoPipelineForImage2Image.from_pipe(pipe)):
                assert torch.equal(draw_from_image(other, cfg, 2.5), plain_image)
            second = AutoPipelineForText2Image.from_pipe(before)
            assert type(second).__name__ == type(pipe).__name__
            assert torch.equal(draw(second, cfg, 2.5), plain)
            assert torch.equal(draw(pipe, cfg, 2.5), guided)
    assert relative(guided, plain) > 5 * LIMIT


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("family", ["sd3", "flux-dedistilled"])
def test_pipelines_that_run_between_two_steps_are_left_alone(family: str, threaded: bool) -> None:
    """A pipeline of the same parts may run in another thread, or in the guided one's callback."""
    pipe, cfg = FAMILIES[family].make(), FAMILIES[family].cfg
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other = AutoPipelineForImage2Image.from_pipe(pipe, scheduler=scheduler)
    plain = draw_from_image(other, cfg, 2.5)
    seen = []

    def run() -> None:
        seen.append(draw_from_image(other, cfg, 2.5))

    def meanwhile(*args: Any) -> Any:
        if threaded:
            thread = Thread(target=run)
            thread.start()
            thread.join()
        else:
            run()
        return args[-1]

    with apply_detail_guidance(pipe, **PLACE):
        guided = draw(pipe, cfg, 2.5)
        assert torch.equal(draw(pipe, cfg, 2.5, callback_on_step_end=meanwhile), guided)
    assert len(seen) > 1
    assert all(torch.equal(latents, plain) for latents in seen)


def test_a_transformer_serves_one_guided_run_at_a_time() -> None:
    pipe = FAMILIES["sd3"].make()
    second = AutoPipelineForText2Image.from_pipe(pipe, scheduler=deepcopy(pipe.scheduler))

    def nested(*args: Any) -> None:
        draw(second, "guidance_scale", 2.5)

    with apply_detail_guidance(pipe, **PLACE), apply_detail_guidance(second, **PLACE):
        with pytest.raises(ValueError, match="in use by another run with Detail Guidance"):
            draw(pipe, "guidance_scale", 2.5, callback_on_step_end=nested)
        draw(second, "guidance_scale", 2.5)
    assert hooks_left(pipe.transformer) == []


@pytest.mark.parametrize("family", ["sd3", "flux-dedistilled"])
def test_an_exchanged_transformer_gets_the_guidance(family: str, runtime: Open) -> None:
    """The guidance belongs to the pipeline, so it applies to the transformer that runs."""
    pipe, cfg = FAMILIES[family].make(), FAMILIES[family].cfg
    first = pipe.transformer
    with apply_detail_guidance(pipe, **PLACE):
        pipe.transformer = deepcopy(first)
        for parameter in first.parameters():
            parameter.data.zero_()
        got = draw(pipe, cfg, 2.5)
        assert relative(got, expected(runtime(family), **MODES["cfg+dg"])) < LIMIT
        pipe.transformer = FAMILIES["dit"].make().transformer
        with pytest.raises(TypeError, match="does not support DiTTransformer2DModel"):
            draw(pipe, cfg, 2.5)


def test_diffusers_finds_a_guided_pipeline_by_its_own_name(tmp_path: Path) -> None:
    pipe = FAMILIES["sd3"].make()
    with apply_detail_guidance(pipe, **PLACE):
        pipe.save_pretrained(tmp_path)
        assert isinstance(pipe, diffusers.StableDiffusion3Pipeline)
    assert type(pipe) is diffusers.StableDiffusion3Pipeline
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"


def compiled(transformer: Any, how: str) -> Any:
    if how == "wrapped":
        return torch.compile(transformer, backend="eager")
    if how == "in place":
        transformer.compile(backend="eager")
    else:
        for block in blocks(transformer):
            block.compile(backend="eager")
    return transformer


@pytest.mark.reported("huggingface/diffusers#10932", "pytorch/pytorch#170110")
@pytest.mark.parametrize("how", ["wrapped", "in place", "blocks in place"])
def test_compiled_transformers_are_refused(how: str) -> None:
    """A transformer that is compiled before or after the guidance is applied is refused."""
    pipe = FAMILIES["sd3"].make()
    applied = apply_detail_guidance(pipe, **PLACE)
    made = modular(pipe, DetailGuidance(**PLACE))
    pipe.transformer = compiled(pipe.transformer, how)
    made.update_components(transformer=pipe.transformer)
    with pytest.raises(ValueError, match="does not work with a compiled transformer"):
        draw(pipe, "guidance_scale", 2.5)
    applied.remove()
    with pytest.raises(ValueError, match="does not work with a compiled transformer"):
        apply_detail_guidance(pipe, **PLACE)
    with pytest.raises(ValueError, match="does not work with a compiled transformer"):
        draw_modular(made)
