"""Guidance methods, compared with the three-branch loop of tests/parity and with known cases."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from intaglio.analysis.experiments.gallery import _method_key
from intaglio.analysis.guidance.effective_guidance import EffectiveGuidance
from intaglio.analysis.guidance.negatives import Blurred, Skipped, Weaker
from intaglio.torch_reference.guidance import Method, Suppressed, last_rows
from intaglio.torch_reference.model import Model, Step
from intaglio_export.adapters import adapter_for
from intaglio_export.errors import ExportError
from tests.analysis.conftest import PROMPTS, STEPS, make_model
from tests.families import FAMILIES
from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import PLANTED
from tests.parity import three_branch_loop

SUPPRESSED = Suppressed(1, (PLANTED, 3))
CHANGES: dict[str, Any] = {
    "cfg_scale": 2.0,
    "weight": 1.0,
    "negative": SUPPRESSED,
    "window": (0.0, 0.5),
    "cfg_window": (0.0, 0.5),
}
METHODS = {
    "none": (Method(), {}),
    "cfg": (Method(2.5), {"cfg_scale": 2.5}),
    "dg": (Method(1.0, 0.7, SUPPRESSED), {"dg_scale": 0.7}),
    "both": (Method(2.5, 0.7, SUPPRESSED), {"cfg_scale": 2.5, "dg_scale": 0.7}),
    "window": (
        Method(2.5, 0.7, SUPPRESSED, (0.3, 0.9)),
        {"cfg_scale": 2.5, "dg_scale": 0.7, "dg_window": (0.3, 0.9)},
    ),
    "keep": (
        Method(2.5, 0.7, replace(SUPPRESSED, ma_keep=(0.8, 0.2))),
        {
            "cfg_scale": 2.5,
            "dg_scale": 0.7,
            "keep": lambda step, steps: 0.8 + (0.2 - 0.8) * step / (steps - 1),
        },
    ),
}


def test_pictures_are_kept_by_every_field_of_their_method() -> None:
    assert {field.name for field in fields(Method)} == set(CHANGES)
    keys = [json.dumps(_method_key(Method(**{k: v}))) for k, v in CHANGES.items()]
    assert len({json.dumps(_method_key(Method())), *keys}) == len(CHANGES) + 1


@pytest.mark.parametrize("name", METHODS)
def test_runs_equal_the_reference_loop(model: Model, name: str) -> None:
    method, named = METHODS[name]
    how: dict[str, Any] = dict(named)
    keep = how.pop("keep", 0.0)
    conditional, null = model.inputs([0, 1])
    prompts = [three_branch_loop.Prompt(x["text"], x["pooled"]) for x in (conditional, null)]
    expected = three_branch_loop.sample(
        model.adapter.transformer,
        model.adapter.scheduler(STEPS, model.tokens),
        model.noise([0, 1]),
        *prompts,
        steps=STEPS,
        how=three_branch_loop.Suppression.of(1, [PLANTED, 3], 64, keep),
        **how,
    )
    found = model.sample(method.predictor(model), [0, 1], STEPS)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_noise_is_that_of_each_seed_alone(model: Model) -> None:
    both = model.noise([5, 9])
    shape = both.shape[1:]
    for row, seed in zip(both, (5, 9), strict=True):
        expected = torch.randn(1, *shape, generator=torch.Generator("cpu").manual_seed(seed))[0]
        torch.testing.assert_close(row, expected, rtol=0, atol=0)


def step_of(model: Model, seed: int = 0) -> tuple[Step, dict[str, torch.Tensor]]:
    """Return a step in the middle of a run, and its conditional inputs."""
    conditional, _ = model.inputs([0])
    step = Step(model.noise([seed]), torch.tensor(500.0), 1, 4, 0.5)
    return step, conditional | {"latent": step.latents, "timestep": torch.tensor([500.0])}


@torch.no_grad()
def test_a_skipped_block_is_a_model_without_it(model: Model) -> None:
    other = make_model()
    blocks = other.adapter.transformer.transformer_blocks
    del blocks[2]
    step, base = step_of(model)
    _, skipped = Skipped(2).predict(model, step, base)
    torch.testing.assert_close(skipped, other.adapter.run(base), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_blurred_prediction_means_the_blurred_image(model: Model) -> None:
    step, base = step_of(model)
    out, blurred = Blurred(1.5).predict(model, step, base)
    clean, meant = (model.clean(step, prediction) for prediction in (out, blurred))
    expected = ndimage.gaussian_filter(clean[0].numpy(), (0, 1.5, 1.5), mode="reflect")
    np.testing.assert_allclose(meant[0].numpy(), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_model_as_strong_steers_nowhere(model: Model) -> None:
    same = Weaker(model.adapter.transformer, "same")
    guided, plain = (
        model.sample(method.predictor(model), [0], STEPS)
        for method in (Method(2.0, 3.0, same), Method(2.0))
    )
    torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-4)
    assert model.adapter.transformer is not None


@torch.no_grad()
@pytest.mark.parametrize("name", ["flux-dev", "dit", "pixart-sigma", "qwen-image"])
def test_the_weaker_prediction_is_that_of_a_pipeline_with_it(name: str, tmp_path: Path) -> None:
    weaker = FAMILIES[name].make()
    for parameter in weaker.transformer.parameters():
        parameter.mul_(0.9)
    weaker.transformer.save_pretrained(tmp_path)
    pipeline = FAMILIES[name].make()
    family = adapter_for(type(pipeline).__name__)
    assert family is not None
    model = Model(family(pipeline), PROMPTS, MAX_LENGTH)
    conditional, _ = model.inputs([0])
    step = Step(model.noise([0]), torch.tensor(500.0), 1, 4, 0.5)
    base = conditional | {"latent": step.latents, "timestep": torch.tensor([500.0])}
    strong = model.adapter.run(base)
    out, negative = Weaker.open(tmp_path, model.adapter).predict(model, step, base)
    torch.testing.assert_close(negative, family(weaker).run(base))
    torch.testing.assert_close(out, strong)
    assert (out - negative).norm() > 1e-2 * out.norm()


@torch.no_grad()
def test_cfg_is_scaled_as_qwen_images_pipeline_scales_it() -> None:
    pipeline = FAMILIES["qwen-image"].make()
    family = adapter_for(type(pipeline).__name__)
    assert family is not None
    model = Model(family(pipeline), PROMPTS, MAX_LENGTH)
    conditional, null = model.inputs([0])
    step = Step(model.noise([0]), torch.tensor(500.0), 1, 4, 0.5)
    given = {"latent": step.latents, "timestep": torch.tensor([500.0])}
    positive, negative = (model.adapter.run(inputs | given) for inputs in (conditional, null))
    combined = negative + 4.0 * (positive - negative)
    norms = [x.norm(dim=-1, keepdim=True) for x in (positive, combined)]
    found = Method(4.0).predictor(model)(step, conditional, null)
    torch.testing.assert_close(found, combined * (norms[0] / norms[1]), rtol=1e-5, atol=1e-5)
    assert (found - combined).norm() > 1e-3 * combined.norm()


def test_a_weaker_model_has_to_fit(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="weaker model org/name is not a folder"):
        Weaker.open(Path("org/name"), model.adapter)
    with pytest.raises(ExportError, match="cannot be loaded"):
        Weaker.open(tmp_path, model.adapter)
    other = SD3Transformer2DModel(
        num_layers=1, attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16,
        in_channels=4, joint_attention_dim=40, pooled_projection_dim=8,
    )  # fmt: skip
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ExportError, match=r"takes (text|latent) \[.*share latents and prompt"):
        Weaker.open(tmp_path / "other", model.adapter)


@dataclass(frozen=True)
class Null:
    """Uses the unconditional prediction as the negative one, so that all guidance is CFG."""

    def predict(self, model: Model, step: Step, base: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out = model.adapter.run(base)
        return out, out[: len(step.latents)]


@settings(max_examples=8)
@given(cfg_scale=st.floats(1.5, 4.0), weight=st.floats(-2.0, 2.0).filter(bool))
def test_omega_of_guidance_along_cfg_is_the_sum(cfg_scale: float, weight: float) -> None:
    model = make_model()
    method = Method(cfg_scale, weight, Null())
    guidance = EffectiveGuidance(method)
    found = model.sample(method.predictor(model, guidance), [0], 2)
    np.testing.assert_allclose(np.concatenate(guidance.omega), cfg_scale + weight, rtol=1e-5)
    expected = model.sample(Method(cfg_scale + weight).predictor(model), [0], 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_omega_outside_the_window_is_cfgs(model: Model) -> None:
    method = Method(2.0, 1.0, SUPPRESSED, (0.0, 0.4))
    guidance = EffectiveGuidance(method)
    model.sample(method.predictor(model, guidance), [0, 1], STEPS)
    assert len(guidance.omega) == STEPS
    assert len(guidance.negative_norms) == 2
    np.testing.assert_array_equal(guidance.omega[-1], 2.0)


def test_last_rows_leave_what_has_none() -> None:
    inputs = {"latent": torch.zeros(4, 2), "position": torch.zeros(4, 3), "text": torch.ones(4, 1)}
    found = last_rows(inputs, 1)
    assert {role: len(value) for role, value in found.items()} == {
        "latent": 1, "position": 4, "text": 1,
    }  # fmt: skip
