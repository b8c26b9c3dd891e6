"""Compare the loop that other tests rely on with diffusers' own pipeline and schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Pipeline,
)

from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import PLANTED
from tests.parity.three_branch_loop import Prompt, Suppression, branches, sample, suppress


def embed(pipeline: StableDiffusion3Pipeline, prompts: list[str]) -> list[Prompt]:
    """Return the conditional and the empty prompt as the pipeline itself encodes them."""
    with torch.no_grad():
        words, null_words, pooled, null_pooled = pipeline.encode_prompt(
            prompts, None, None, max_sequence_length=MAX_LENGTH
        )
    return [Prompt(words, pooled), Prompt(null_words, null_pooled)]


def noise(n: int) -> torch.Tensor:
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_loop_is_diffusers_own_for_plain_cfg(
    sd3_pipeline: StableDiffusion3Pipeline, guidance: float
) -> None:
    prompts = ["a dress", "a light sandal"]
    theirs = sd3_pipeline(
        prompts,
        latents=noise(2),
        height=32,
        width=32,
        num_inference_steps=6,
        guidance_scale=guidance,
        max_sequence_length=MAX_LENGTH,
        output_type="latent",
    ).images
    cond, null = embed(sd3_pipeline, prompts)
    ours = sample(
        sd3_pipeline.transformer,
        sd3_pipeline.scheduler,
        noise(2),
        cond,
        null,
        steps=6,
        cfg_scale=guidance,
    )
    assert relative(ours, theirs) <= 1e-4
    assert relative(noise(2), theirs) > 0.1


def test_detail_guidance(sd3_pipeline: StableDiffusion3Pipeline) -> None:
    cond, null = embed(sd3_pipeline, ["a dress", "a bag"])
    how = Suppression.of(1, [3, PLANTED], 64)

    def run(**options: object) -> torch.Tensor:
        options = {"how": how, "cfg_scale": 2.0, "steps": 4} | options
        return sample(
            sd3_pipeline.transformer,
            FlowMatchEulerDiscreteScheduler(shift=1.0),
            noise(2),
            cond,
            null,
            **options,
        )

    plain = run(dg_scale=0.0)
    assert relative(run(dg_scale=1.0), plain) > 1e-4
    kept = Suppression.of(1, [3, PLANTED], 64, keep=lambda step, steps: torch.ones(2, 64))
    assert relative(run(dg_scale=1.0, how=kept), plain) < 1e-6
    assert relative(run(dg_scale=1.0, dg_window=(0.9, 1.0)), plain) == 0.0
    late = run(dg_scale=1.0, dg_window=(0.75, 1.0))
    assert 0.0 < relative(late, plain) < relative(run(dg_scale=1.0), plain)
    with pytest.raises(ValueError, match="dg_scale"):
        run(dg_scale=1.0, how=None)


def test_branches_are_what_each_is_alone(sd3_pipeline: StableDiffusion3Pipeline) -> None:
    cond, null = embed(sd3_pipeline, ["a dress"])
    how = Suppression.of(0, [PLANTED], 64)
    t = torch.tensor(500.0)
    out = branches(sd3_pipeline.transformer, noise(1), t, cond, null, how)
    alone = {
        "0": branches(sd3_pipeline.transformer, noise(1), t, null)["c"],
        "c": branches(sd3_pipeline.transformer, noise(1), t, cond)["c"],
    }
    for name, value in alone.items():
        torch.testing.assert_close(out[name], value, rtol=1e-4, atol=1e-5)
    assert relative(out["m"], out["c"]) > 1e-4


def test_suppress_leaves_the_rest_alone() -> None:
    hidden = torch.randn(2, 5, 8)
    mask, ref = torch.zeros(8), torch.full((8,), 9.0)
    mask[3] = 1.0
    keep = torch.tensor([[0.0, 0.25, 1.0, 1.0, 1.0]]).expand(2, -1)
    out = suppress(hidden, mask, ref, keep)
    changed = (out != hidden).nonzero()
    assert {(t, c) for _, t, c in changed.tolist()} == {(0, 3), (1, 3)}
    assert (out[:, 0, 3] == 9.0).all()
    torch.testing.assert_close(out[:, 1, 3], 0.25 * hidden[:, 1, 3] + 0.75 * 9.0)


@pytest.mark.parametrize("name", ["heun", "dpm"])
def test_other_schedulers_converge_to_the_same(
    sd3_pipeline: StableDiffusion3Pipeline, name: str
) -> None:
    cond, null = embed(sd3_pipeline, ["a dress"])
    made = {
        "heun": FlowMatchHeunDiscreteScheduler(shift=1.0),
        "dpm": DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0
        ),
    }[name]
    steps: list[int] = []
    result = sample(
        sd3_pipeline.transformer,
        made,
        noise(1),
        cond,
        null,
        steps=24,
        cfg_scale=2.0,
        on_step=lambda evaluation, latents: steps.append(evaluation),
    )
    euler = sample(
        sd3_pipeline.transformer,
        FlowMatchEulerDiscreteScheduler(shift=1.0),
        noise(1),
        cond,
        null,
        steps=48,
        cfg_scale=2.0,
    )
    assert len(steps) == (47 if name == "heun" else 24)
    assert relative(result, euler) < 0.1
