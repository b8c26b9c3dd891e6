"""Compare the rules that combine D_c and D_0 with diffusers' guiders, in whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    MagnitudeAwareGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

import intaglio
from tests.parity import test_runs
from tests.parity.test_runs import (
    MODES,
    NEGATIVE,
    PROMPT,
    SEED,
    WIDE,
    generate,
    reference,
    relative,
    suppression,
)
from tests.parity.three_branch_loop import Rule, Skips

SCALE = MODES["cfg"][0]
# The norm of the tiny model's differences is about 10.
ETA, THRESHOLD, MOMENTUM = 0.25, 4.0, -0.5


def raw(guider: Any) -> Rule:
    """Return what a guider makes of the raw predictions."""

    def rule(
        step: int, x: torch.Tensor, sigma: float, c: torch.Tensor, u: torch.Tensor
    ) -> torch.Tensor:
        guider.set_state(step, test_runs.STEPS, torch.tensor(sigma))
        return guider.forward(c, u).pred

    return rule


def denoised(guider: Any) -> Rule:
    """Return the prediction that means what a guider makes of the clean data."""
    inner = raw(guider)

    def rule(
        step: int, x: torch.Tensor, sigma: float, c: torch.Tensor, u: torch.Tensor
    ) -> torch.Tensor:
        return (x - inner(step, x, sigma, x - sigma * c, x - sigma * u)) / sigma

    return rule


def flat(guider: Any) -> Rule:
    """The same for one that takes its norms over two axes only: MAMBO-G of diffusers 0.42."""
    inner = raw(guider)

    def rule(
        step: int, x: torch.Tensor, sigma: float, c: torch.Tensor, u: torch.Tensor
    ) -> torch.Tensor:
        return inner(step, x, sigma, c.flatten(2), u.flatten(2)).reshape(c.shape)

    return rule


def normalized(limit: float, inner: Rule | None = None) -> Rule:
    """Limit the norm of each image as diffusers' ZImagePipeline does with cfg_normalization."""
    guided = inner or raw(ClassifierFreeGuidance(SCALE))

    def rule(
        step: int, x: torch.Tensor, sigma: float, c: torch.Tensor, u: torch.Tensor
    ) -> torch.Tensor:
        images = []
        for positive, pred in zip(c, guided(step, x, sigma, c, u), strict=True):
            largest = positive.norm() * limit
            images.append(pred * (largest / pred.norm()) if pred.norm() > largest else pred)
        return torch.stack(images)

    return rule


def apg(momentum: float, threshold: float) -> Rule:
    # The paper's D_c + lambda * update is diffusers' original formulation.
    guider = AdaptiveProjectedGuidance(
        SCALE - 1, momentum, threshold, eta=ETA, use_original_formulation=True
    )
    guider.momentum_buffer = MomentumBuffer(momentum) if momentum else None
    return denoised(guider)


def apg_options(momentum: float, threshold: float) -> dict[str, Any]:
    return {
        "guidance": "apg", "guidance_eta": ETA, "guidance_momentum": momentum,
        "guidance_norm_threshold": threshold,
    }  # fmt: skip


RULES: dict[str, tuple[dict[str, Any], Callable[[], Rule]]] = {
    "cfg, rescaled": (
        {"guidance_rescale": 0.7}, lambda: raw(ClassifierFreeGuidance(SCALE, 0.7)),
    ),
    "apg": (apg_options(MOMENTUM, THRESHOLD), lambda: apg(MOMENTUM, THRESHOLD)),
    "apg, no momentum": (apg_options(0, THRESHOLD), lambda: apg(0, THRESHOLD)),
    "apg, no limit": (apg_options(MOMENTUM, 0), lambda: apg(MOMENTUM, 0)),
    "cfg-zero": (
        {"guidance": "cfg-zero"}, lambda: raw(ClassifierFreeZeroStarGuidance(SCALE)),
    ),
    "cfg-zero, two steps": (
        {"guidance": "cfg-zero", "guidance_zero_steps": 2},
        lambda: raw(ClassifierFreeZeroStarGuidance(SCALE, 2)),
    ),
    "cfg-zero, rescaled": (
        {"guidance": "cfg-zero", "guidance_zero_steps": 0, "guidance_rescale": 0.3},
        lambda: raw(ClassifierFreeZeroStarGuidance(SCALE, 0, 0.3)),
    ),
    "cfg, normalized": ({"guidance_normalization": 0.9}, lambda: normalized(0.9)),
    "cfg-zero, normalized": (
        {"guidance": "cfg-zero", "guidance_normalization": 0.5, "guidance_zero_steps": 0},
        lambda: normalized(0.5, raw(ClassifierFreeZeroStarGuidance(SCALE, 0))),
    ),
    "tcfg": ({"guidance": "tcfg"}, lambda: raw(TangentialClassifierFreeGuidance(SCALE))),
    "mambo-g": (
        {"guidance": "mambo-g", "guidance_alpha": 3},
        lambda: flat(MagnitudeAwareGuidance(SCALE, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["cfg", "cfg+dg"])
@pytest.mark.parametrize("name", RULES)
def test_rules_equal_diffusers_guiders(
    sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path, name: str, mode: str
) -> None:
    options, make = RULES[name]
    pipeline = intaglio.Pipeline.open(forked_bundle)
    # Steps whose prediction is zero have no DG.
    window = {"dg_window": (0.4, 1.0)}
    how = suppression(pipeline.bundle)
    expected = reference(sd3_pipeline, how, "euler", mode, WIDE, rule=make(), **window)
    got = generate(pipeline, "euler", mode, WIDE, **options, **window)
    assert relative(got.latents, expected) < 1e-4
    plain = generate(pipeline, "euler", mode, WIDE, **window)
    assert relative(plain.latents, expected) > 1e-2


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "two evaluations a step": ("heun", {}),
    "a memory of the sampler": ("dpmpp-2m", {}),
    "a window": ("euler", {"cfg_window": (0.2, 0.8)}),
    "differences that are reused": ("euler", {"reuse_interval": 2.0}),
}


@pytest.mark.parametrize("how", OTHERS)
def test_apg_with(sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path, how: str) -> None:
    name, others = OTHERS[how]
    options, make = RULES["apg"]
    pipeline = intaglio.Pipeline.open(forked_bundle)
    suppressed = suppression(pipeline.bundle)
    expected = reference(sd3_pipeline, suppressed, name, "cfg+dg", WIDE, rule=make(), **others)
    got = generate(pipeline, name, "cfg+dg", WIDE, **options, **others)
    assert relative(got.latents, expected) < 1e-4


def test_the_momentum_rests_in_steps_that_are_skipped(
    sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_runs, "STEPS", 9)
    options, make = RULES["apg"]
    pipeline = intaglio.Pipeline.open(forked_bundle)
    skips = Skips(2.0, (0.0, 1.0), 1e9)
    how = suppression(pipeline.bundle)
    expected = reference(sd3_pipeline, how, "euler", "cfg+dg", WIDE, rule=make(), skips=skips)
    skipping = {"skip_interval": 2.0, "skip_tolerance": 1e9}
    got = generate(pipeline, "euler", "cfg+dg", WIDE, **options, **skipping)
    assert got.skipped_steps == skips.skipped == [3, 5, 7]
    assert relative(got.latents, expected) < 1e-4


def test_each_image_of_a_batch_has_its_own_sums(forked_bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle)
    options = RULES["apg"][0]
    both = pipeline.generate("a boot", seeds=[1, 2], steps=3, cfg_scale=3.0, **options)
    one = pipeline.generate("a boot", seeds=2, steps=3, cfg_scale=3.0, **options)
    assert relative(both.latents[1:], one.latents) < 1e-5


def test_tag_amplifies_the_step_across_the_latents(
    sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path
) -> None:
    """The paper's update: x + (P + eta (1 - P)) (x' - x), where P projects onto x."""
    eta = 1.5
    pipeline = intaglio.Pipeline.open(forked_bundle)

    def amplified(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        x, change = before.flatten(1).double(), (after - before).flatten(1).double()
        along = (x * change).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True) * x
        return (x + along + eta * (change - along)).reshape(before.shape).float()

    expected = reference(
        sd3_pipeline, suppression(pipeline.bundle), "euler", "cfg+dg", WIDE, moved=amplified
    )
    got = generate(pipeline, "euler", "cfg+dg", WIDE, guidance_tag=eta)
    assert relative(got.latents, expected) < 1e-4
    assert relative(generate(pipeline, "euler", "cfg+dg", WIDE).latents, expected) > 1e-2


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_prev_adds_the_change_of_the_prediction(
    sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path, name: str
) -> None:
    weight = 0.5
    pipeline = intaglio.Pipeline.open(forked_bundle)
    last: list[torch.Tensor] = []

    def changed(guided: torch.Tensor) -> torch.Tensor:
        previous = last[-1] if last else guided
        last.append(guided)
        return guided + weight * (guided - previous)

    expected = reference(
        sd3_pipeline, suppression(pipeline.bundle), name, "cfg+dg", WIDE, corrected=changed
    )
    got = generate(pipeline, name, "cfg+dg", WIDE, guidance_prev=weight)
    assert relative(got.latents, expected) < 1e-4
    assert relative(generate(pipeline, name, "cfg+dg", WIDE).latents, expected) > 1e-2


def test_lists_have_a_value_for_each_step(
    sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path
) -> None:
    scales, weights = [3.0, 1.0, 2.5, 4.0, 1.5], [0.0, 2.0, 1.0, 0.5, 1.5]
    pipeline = intaglio.Pipeline.open(forked_bundle)
    expected = reference(
        sd3_pipeline, suppression(pipeline.bundle), "euler", "cfg+dg", WIDE,
        weights_of=lambda step: {"0": scales[step] - 1.0, "m": weights[step]},
    )  # fmt: skip
    got = pipeline.generate(
        PROMPT, negative_prompt=NEGATIVE, seeds=SEED, batch=WIDE.images, height=WIDE.height,
        width=WIDE.width, steps=len(scales), cfg_scale=scales, dg_scale=weights,
    )  # fmt: skip
    assert relative(got.latents, expected) < 1e-4
    assert got.unconditional_steps == [0, 2, 3, 4]
    assert got.degraded_steps == [1, 2, 3, 4]
