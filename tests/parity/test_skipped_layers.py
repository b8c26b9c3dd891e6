"""Compare skip-layer guidance with diffusers' own, in whole runs."""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LayerSkipConfig
from diffusers.guiders import SkipLayerGuidance
from diffusers.hooks import HookRegistry
from diffusers.hooks.layer_skip import _apply_layer_skip_hook

import intaglio
from tests import bundles
from tests.families import FAMILIES
from tests.parity.diffusers_runs import (
    HEIGHT,
    IMAGES,
    NEGATIVE,
    PROMPT,
    SEED,
    STEPS,
    _arguments,
    _conditioning,
    _run,
)

SCALE, CFG = 2.0, 3.0


def relative(got: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.linalg.norm(got - expected.numpy()) / np.linalg.norm(expected.numpy()))


def generate(name: str, layout: str, **options: Any) -> intaglio.Generation:
    pipeline = intaglio.Pipeline.open(bundles.bundle(name, layout), threads=1)
    size = {"height": HEIGHT, "width": FAMILIES[name].width}
    return pipeline.generate(
        PROMPT, seeds=SEED, batch=IMAGES, steps=STEPS, slg_scale=SCALE, **size, **options
    )


@pytest.mark.parametrize(
    ("name", "layout", "layers"),
    [("sd3", "forked", [0, 2]), ("sd3", "dual", [1]), ("sd3.5", "forked", [1, 3])],
)
def test_sd3_equals_diffusers_pipeline(name: str, layout: str, layers: list[int]) -> None:
    """Blocks before and after the fork, with and without a second attention, and the last one."""
    family = FAMILIES[name]
    pipeline = family.make()
    skipping = {
        "skip_guidance_layers": layers,
        "skip_layer_guidance_scale": SCALE,
        # diffusers skips where start < i / N < stop
        "skip_layer_guidance_start": 0.5 / STEPS,
        "skip_layer_guidance_stop": 1 - 0.5 / STEPS,
    }
    arguments = _arguments(pipeline, family) | {family.cfg: CFG, "negative_prompt": NEGATIVE}
    expected = _run(pipeline, arguments | skipping).latents
    options = {"negative_prompt": NEGATIVE, "cfg_scale": CFG}
    window = (1 / STEPS, 1.0)
    got = generate(name, layout, slg_layers=layers, slg_window=window, **options)
    assert relative(got.latents, expected) < 1e-4
    assert got.degraded_steps == list(range(1, STEPS))
    other = generate(name, layout, slg_layers=[layers[0]], slg_window=(0.0, 1.0), **options)
    assert relative(other.latents, expected) > 1e-3


def test_flux_equals_diffusers_guider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two streams and of one; FLUX's pipeline itself has no skip-layer guidance."""
    family = FAMILIES["flux-dedistilled"]
    pipeline = family.make()
    configs = [
        LayerSkipConfig([1], fqn="transformer_blocks"),
        LayerSkipConfig([0], fqn="single_transformer_blocks"),
    ]
    guider = SkipLayerGuidance(CFG, SCALE, 0.0, 1.0, skip_layer_config=configs)
    transformer = pipeline.transformer
    forward = transformer.forward
    negative: dict[str, Any] = {}

    def guided(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        def predict(**changes: Any) -> torch.Tensor:
            call = signature(forward).bind(*args, **kwargs, return_dict=False)
            call.arguments.update(changes)
            made: torch.Tensor = forward(*call.args, **call.kwargs)[0]
            return made

        conditional, unconditional = predict(), predict(**negative)
        for index, config in enumerate(configs):
            _apply_layer_skip_hook(transformer, config, name=f"skip {index}")
        skipping = predict()
        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        for index in range(len(configs)):
            registry.remove_hook(f"skip {index}", recurse=True)
        guider.set_state(1, STEPS, kwargs["timestep"])  # a step inside its window
        return (guider.forward(conditional, unconditional, skipping).pred,)

    negative = _conditioning(pipeline, family)
    monkeypatch.setattr(transformer, "forward", guided)
    arguments = _arguments(pipeline, family) | {family.cfg: family.unguided}
    expected = _run(pipeline, arguments).latents
    options = {"negative_prompt": NEGATIVE, "cfg_scale": CFG, "slg_window": (0.0, 1.0)}
    got = generate("flux-dedistilled", "forked", slg_layers=[1, 2], **options)
    assert relative(got.latents, expected) < 1e-4


def drawn(share: float, blocks: int, step: int) -> list[int]:
    """Return the blocks of the smallest of the Mersenne Twister's first words, by NumPy's."""
    bits = np.random.MT19937()
    bits._legacy_seeding(step)
    order = np.argsort(bits.random_raw(blocks))
    return sorted(int(block) for block in order[: max(1, round(share * blocks))])


@pytest.mark.parametrize("layout", ["forked", "dual"])
def test_s2_guidance_equals_the_papers_formula(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is diffusers' pipeline and its transformer's own skip_layers."""
    weight, share, steps = 0.75, 0.4, 6
    family = FAMILIES["sd3"]
    pipeline = family.make()
    forward = pipeline.transformer.forward
    blocks = len(pipeline.transformer.transformer_blocks)
    choices = [drawn(share, blocks, step) for step in range(steps)]
    assert {len(choice) for choice in choices} == {2}
    assert len({str(choice) for choice in choices}) > 2
    left = list(choices)

    def guided(return_dict: bool = True, **kwargs: Any) -> Any:
        made = forward(**kwargs, return_dict=False)[0]
        rows = slice(len(made) // 2, None)  # the pipeline runs D_0 and D_c together
        conditional = {
            name: value[rows] if isinstance(value, torch.Tensor) else value
            for name, value in kwargs.items()
        }
        skipping = forward(**conditional, skip_layers=left.pop(0), return_dict=False)[0]
        return (made + weight * (made[rows] - skipping).repeat(2, 1, 1, 1),)

    monkeypatch.setattr(pipeline.transformer, "forward", guided)
    arguments = _arguments(pipeline, family) | {
        family.cfg: CFG, "negative_prompt": NEGATIVE, "num_inference_steps": steps
    }  # fmt: skip
    with torch.no_grad():
        expected = _run(pipeline, arguments).latents
    assert not left
    runtime = intaglio.Pipeline.open(bundles.bundle("sd3", layout), threads=1)
    options: dict[str, Any] = {
        "negative_prompt": NEGATIVE, "seeds": SEED, "batch": IMAGES, "steps": steps,
        "height": HEIGHT, "width": family.width, "cfg_scale": CFG,
    }  # fmt: skip
    got = runtime.generate(PROMPT, slg_share=share, slg_scale=weight, **options)
    assert relative(got.latents, expected) < 1e-4
    assert got.degraded_steps == list(range(steps))
    fixed = runtime.generate(
        PROMPT, slg_layers=choices[0], slg_scale=weight, slg_window=(0.0, 1.0), **options
    )
    assert relative(fixed.latents, expected) > 1e-3


def test_s2_guidance_is_that_of_one_image_in_a_batch() -> None:
    pipeline = intaglio.Pipeline.open(bundles.bundle("sd3", "forked"), threads=1)
    options: dict[str, Any] = {"steps": 4, "slg_share": 0.25, "slg_scale": 2.0}
    both = pipeline.generate(PROMPT, seeds=[1, 2], **options).latents
    alone = pipeline.generate(PROMPT, seeds=2, **options).latents
    assert relative(both[1:], torch.from_numpy(alone)) < 1e-5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"slg_share": 0.0}, "slg_share must be above 0"),
        ({"slg_share": 1.5}, "slg_share must be above 0"),
        ({"slg_share": 0.1, "slg_layers": [1]}, "slg_share draws the blocks"),
        ({"slg_share": 0.1, "dg_scale": 1.0}, "slg_share and dg_scale each make D_m"),
        ({"slg_share": 0.1, "ma_keep": 0.5}, "ma_keep is for DG, and slg_share"),
    ],
)
def test_what_does_not_go_with_s2_guidance(options: dict[str, Any], says: str) -> None:
    pipeline = intaglio.Pipeline.open(bundles.bundle("sd3", "forked"), threads=1)
    with pytest.raises(intaglio.UsageError, match=says):
        pipeline.generate(PROMPT, **options)


def test_requests_that_skip_layers_share_a_batch() -> None:
    pipeline = intaglio.Pipeline.open(bundles.bundle("sd3", "forked"), threads=1)
    base: dict[str, Any] = {"prompt": PROMPT, "steps": 3, "cfg_scale": CFG}
    requests = [
        base | {"seeds": 1, "slg_layers": [1], "slg_window": (0.0, 1.0)},
        base | {"seeds": 2, "slg_layers": [0, 3], "slg_window": (0.3, 1.0)},
    ]
    batch = intaglio.Batch(pipeline, 2)
    places = [batch.add(**request) for request in requests]
    with pytest.raises(intaglio.UsageError, match="slg_layers or slg_share is given to some"):
        batch.add(**base)
    done = {step.id: step for _ in range(3) for step in batch.step()}
    for place, request in zip(places, requests, strict=True):
        alone = pipeline.generate(**request).latents
        assert relative(done[place].finish().latents, torch.from_numpy(alone)) < 1e-5
