"""Compare runs that skip steps with the torch loop that has the same rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import intaglio
from tests.parity import test_runs
from tests.parity.test_runs import SMALL, WIDE, generate, reference, relative, suppression
from tests.parity.three_branch_loop import Skips

STEPS, NEVER = 9, 1e9  # a tolerance beyond any distance
WINDOWS = {"cfg_window": (0.0, 0.5)}
HOW: dict[str, tuple[Any, tuple[float, float], float, dict[str, Any]]] = {
    "all": (2.0, (0.0, 1.0), NEVER, {}),
    "fewer, then more": ((4.0, 2.0), (0.0, 1.0), NEVER, {}),
    "inside a window": (3.0, (0.3, 0.9), NEVER, {}),
    "with guidance's own window": (2.0, (0.0, 1.0), NEVER, WINDOWS),
    "with a brake": (3.0, (0.0, 1.0), 0.1, {}),
    "with reuse": (2.0, (0.0, 1.0), NEVER, {"reuse_interval": 4.0}),
}


@pytest.fixture(autouse=True)
def more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_runs, "STEPS", STEPS)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("all", "euler"), ("all", "heun"), ("fewer, then more", "dpmpp-2m"),
        ("inside a window", "heun"), ("with guidance's own window", "euler"),
        ("with a brake", "euler"), ("with a brake", "dpmpp-2m"), ("with reuse", "heun"),
    ],
)  # fmt: skip
def test_skipping(
    sd3_pipeline: StableDiffusion3Pipeline, bundle: Path, how: str, name: str
) -> None:
    interval, window, tolerance, others = HOW[how]
    pipeline = intaglio.Pipeline.open(bundle)
    skips = Skips(interval, window, tolerance)
    suppressed = suppression(pipeline.bundle)
    expected = reference(sd3_pipeline, suppressed, name, "cfg+dg", WIDE, skips=skips, **others)
    options = {"skip_interval": interval, "skip_window": window, "skip_tolerance": tolerance}
    got = generate(pipeline, name, "cfg+dg", WIDE, **options, **others)
    assert got.skipped_steps == skips.skipped
    assert skips.skipped
    assert relative(got.latents, expected) < 1e-4
    exact = generate(pipeline, name, "cfg+dg", WIDE, **others)
    assert relative(exact.latents, expected) > 1e-4
    assert got.evaluations == exact.evaluations - len(skips.skipped) * (
        2 if name == "heun" else 1
    ) + (name == "heun" and STEPS - 1 in skips.skipped)


LISTED = [3, 4, 6, 8]


@pytest.mark.parametrize(
    ("name", "tolerance", "others"),
    [("euler", NEVER, WINDOWS), ("heun", NEVER, {}), ("dpmpp-2m", 0.1, {})],
)
def test_listed_steps_are_skipped(
    sd3_pipeline: StableDiffusion3Pipeline,
    bundle: Path,
    name: str,
    tolerance: float,
    others: dict[str, Any],
) -> None:
    """All of them, but for those that a change of the branches or the brake lets run."""
    pipeline = intaglio.Pipeline.open(bundle)
    skips = Skips(1, (0.0, 1.0), tolerance, LISTED)
    suppressed = suppression(pipeline.bundle)
    expected = reference(sd3_pipeline, suppressed, name, "cfg+dg", WIDE, skips=skips, **others)
    options = {"skip_steps": LISTED, "skip_tolerance": tolerance}
    got = generate(pipeline, name, "cfg+dg", WIDE, **options, **others)
    assert got.skipped_steps == skips.skipped
    assert skips.skipped
    assert (skips.skipped == LISTED) == (name == "heun")
    assert relative(got.latents, expected) < 1e-4


def test_a_schedule_that_skips_nothing_is_exact(bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(bundle)
    exact = generate(pipeline, "heun", "cfg+dg", SMALL)
    assert exact.evaluations == 2 * STEPS - 1
    assert exact.skipped_steps == []
    with pytest.warns(UserWarning, match="no step is skipped"):
        late = generate(pipeline, "heun", "cfg+dg", SMALL, skip_interval=2, skip_window=(0.95, 1.0))
    braked = generate(pipeline, "heun", "cfg+dg", SMALL, skip_interval=2, skip_tolerance=1e-9)
    for got in (late, braked):
        np.testing.assert_array_equal(got.latents, exact.latents)
        assert got.forked_rows == exact.forked_rows


def test_skipped_steps_show_themselves(bundle: Path) -> None:
    """A callback sees every step, may change the latents of each, and has their clean images."""
    pipeline = intaglio.Pipeline.open(bundle)
    seen, means = [], []

    def on_step(step: Any) -> None:
        seen.append(step.step)
        means.append(float(step.latents.mean()))
        if step.step == 3:
            assert len(step.preview()) == 1
            step.latents[:] += 1.0

    options = {"skip_interval": 2, "skip_tolerance": NEVER}
    plain = generate(pipeline, "euler", "cfg+dg", SMALL, **options)
    got = generate(pipeline, "euler", "cfg+dg", SMALL, on_step=on_step, **options)
    assert seen == list(range(STEPS))
    assert got.skipped_steps == [3, 5, 7]
    assert abs(got.latents.mean() - plain.latents.mean()) > 0.1
    assert torch.isfinite(torch.from_numpy(np.asarray(got.latents))).all()
    assert 0 < got.largest_distance < 10
