"""Compare runs that reuse differences over steps with the torch loop that has the same rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusion3Pipeline

import intaglio
from tests.parity.test_runs import STEPS, WIDE, generate, reference, relative, suppression

REUSE: dict[str, dict[str, Any]] = {
    "all": {"reuse_interval": 2.0},
    "fewer, then more": {"reuse_interval": (3.0, 1.0)},
    "inside a window": {"reuse_interval": 3.0, "reuse_window": (0.25, 0.9)},
    "with guidance's own windows": {
        "reuse_interval": 2.0, "cfg_window": (0.0, 0.6), "dg_window": (0.2, 1.0)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m"])
@pytest.mark.parametrize("how", REUSE)
def test_reuse(sd3_pipeline: StableDiffusion3Pipeline, bundle: Path, how: str, name: str) -> None:
    pipeline = intaglio.Pipeline.open(bundle)
    suppressed, reuse = suppression(pipeline.bundle), REUSE[how]
    expected = reference(sd3_pipeline, suppressed, name, "cfg+dg", WIDE, **reuse)
    got = generate(pipeline, name, "cfg+dg", WIDE, **reuse)
    assert relative(got.latents, expected) < 1e-4
    windows = {key: value for key, value in reuse.items() if "reuse" not in key}
    exact = generate(pipeline, name, "cfg+dg", WIDE, **windows)
    assert relative(exact.latents, expected) > 1e-4
    assert got.forked_rows < exact.forked_rows


def test_reuse_of_every_step_is_exact(bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(bundle)
    exact = generate(pipeline, "heun", "cfg+dg", WIDE)
    for reuse in ({"reuse_interval": 1}, {"reuse_interval": 4, "reuse_window": (0.9, 1.0)}):
        got = generate(pipeline, "heun", "cfg+dg", WIDE, **reuse)
        np.testing.assert_array_equal(got.latents, exact.latents)
        assert got.forked_rows == exact.forked_rows
        assert got.degraded_steps == got.unconditional_steps == list(range(STEPS))


def test_reuse_runs_fewer_rows(bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(bundle)
    got = generate(pipeline, "euler", "cfg+dg", WIDE, reuse_interval=2, dg_window=(0.2, 1.0))
    assert got.unconditional_steps == [0, 2, 4]
    assert got.degraded_steps == [1, 3]
    assert got.forked_rows == WIDE.images * (STEPS + 3 + 2)
    dual = pipeline.bundle.layout == "dual"
    assert got.base_rows == WIDE.images * (STEPS + 3 + (2 if dual else 0))
    # Heun evaluates twice in every step but the last; both evaluations run the same branches.
    heun = generate(pipeline, "heun", "cfg+dg", WIDE, reuse_interval=2)
    assert heun.degraded_steps == [0, 2, 4]
    assert heun.forked_rows == WIDE.images * (3 * (2 + 2 + 1) + 2 + 2)
