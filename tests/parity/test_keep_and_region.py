"""Compare where and when channels are suppressed with diffusers' model in the torch loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusion3Pipeline

import intaglio
from tests.parity.test_runs import (
    SMALL,
    STEPS,
    generate,
    reference,
    relative,
    scheduler,
    suppression,
)

RIGHT = np.zeros((32, 32), np.uint8)
RIGHT[:, 16:] = 255


def test_keep_goes_with_the_timestep(
    sd3_pipeline: StableDiffusion3Pipeline, forked_bundle: Path
) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle)
    theirs = scheduler(sd3_pipeline, "euler")
    theirs.set_timesteps(STEPS)
    keeps = [0.2 + (0.9 - 0.2) * float(t) / 1000 for t in theirs.timesteps]
    how = suppression(pipeline.bundle, lambda step, steps: keeps[step])
    expected = reference(sd3_pipeline, how, "euler", "dg", SMALL)
    options: dict[str, Any] = {"ma_keep": (0.9, 0.2)}
    got = generate(pipeline, "euler", "dg", SMALL, ma_keep_by="timestep", **options)
    assert relative(got.latents, expected) < 1e-4
    by_step = generate(pipeline, "euler", "dg", SMALL, **options)
    assert relative(by_step.latents, expected) > 1e-4


def test_keep_above_1_amplifies(sd3_pipeline: StableDiffusion3Pipeline, bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(bundle)
    expected = reference(sd3_pipeline, suppression(pipeline.bundle, 1.75), "euler", "dg", SMALL)
    got = generate(pipeline, "euler", "dg", SMALL, ma_keep=1.75)
    assert relative(got.latents, expected) < 1e-4
    assert len(got.degraded_steps) == STEPS


@pytest.mark.parametrize("rule", [{}, {"guidance": "apg"}])
def test_a_masked_term_leaves_the_rest_to_cfg(bundle: Path, rule: dict[str, Any]) -> None:
    """One step: outside the mask its prediction is that of CFG alone, to the bit."""
    pipeline = intaglio.Pipeline.open(bundle)
    drawn: dict[str, Any] = {"seeds": [3, 4], "steps": 1, "cfg_scale": 2.5, **rule}
    cfg = pipeline.generate("a dark boot", dg_scale=0.0, **drawn).latents
    masked = {"dg_scale": 1.5, "ma_tokens": RIGHT}
    spread = pipeline.generate("a dark boot", **masked, **drawn).latents
    local = pipeline.generate("a dark boot", dg_region="mask", **masked, **drawn).latents
    half = cfg.shape[-1] // 2
    assert np.any(spread[..., :half] != cfg[..., :half])
    np.testing.assert_array_equal(local[..., :half], cfg[..., :half])
    np.testing.assert_allclose(local[..., half:], spread[..., half:], rtol=1e-4, atol=1e-5)
    assert np.any(local[..., half:] != cfg[..., half:])


def test_a_masked_term_of_packed_latents() -> None:
    from tests import bundles

    pipeline = intaglio.Pipeline.open(bundles.bundle("flux-dedistilled", "forked"), threads=1)
    drawn: dict[str, Any] = {"seeds": 3, "steps": 1, "cfg_scale": 2.5}
    upper = np.ascontiguousarray(RIGHT.T[::-1])
    cfg = pipeline.generate("a dark boot", dg_scale=0.0, **drawn).latents
    masked = {"dg_scale": 1.5, "ma_tokens": upper, "dg_region": "mask"}
    local = pipeline.generate("a dark boot", **masked, **drawn).latents
    half = cfg.shape[1] // 2  # tokens are in row-major order
    assert np.any(local[:, :half] != cfg[:, :half])
    np.testing.assert_array_equal(local[:, half:], cfg[:, half:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dg_region": "mask"}, "acts on the tokens of ma_tokens"),
        ({"dg_region": "some"}, "some is unknown: give all or mask"),
        ({"ma_keep_by": "sigma"}, "sigma is unknown: give step or timestep"),
        ({"ma_keep_by": "timestep", "ma_keep": [0, 0.5, 1]}, "takes ma_keep as a number or two"),
        (
            {"dg_region": "mask", "ma_tokens": RIGHT, "guidance_tag": 1.2},
            "does not fit guidance_tag",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    forked_bundle: Path, options: dict[str, Any], message: str
) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle)
    with pytest.raises(intaglio.UsageError, match=message):
        pipeline.generate("a dark boot", steps=3, dg_scale=1.0, **options)
