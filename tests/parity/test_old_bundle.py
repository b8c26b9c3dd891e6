"""A bundle that version 0.1.0 wrote still draws what version 0.1.0 drew from it.

`tests/data/bundle-0.1.0` is an SD3 of two blocks of 16 channels with the encoders and the VAE of
tests/families/parts.py, and `tests/data/bundle-0.1.0-latents` has its latents in each of `MODES`.
Both were made by version 0.1.0 and are never made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intaglio

DATA = Path(__file__).parents[1] / "data"
BUNDLE = DATA / "bundle-0.1.0"
# The machine that drew them gives the same bits. Kernels of other processors add in another order.
LIMIT = 1e-6

MODES: dict[str, dict[str, Any]] = {
    "baseline": {"cfg_scale": 1.0, "dg_scale": 0.0},
    "cfg": {"cfg_scale": 4.0, "dg_scale": 0.0},
    "dg": {"cfg_scale": 1.0, "dg_scale": 1.5},
    "cfg+dg": {"cfg_scale": 4.0, "dg_scale": 1.5},
    "windows": {
        "cfg_scale": 4.0,
        "dg_scale": 1.5,
        "cfg_window": (0.0, 0.6),
        "dg_window": (0.2, 0.8),
        "ma_keep": (0.8, 0.2),
    },
}


def files() -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in BUNDLE.rglob("*"))


@pytest.mark.parametrize("mode", MODES)
def test_latents_are_those_of_0_1_0(mode: str) -> None:
    before = files()
    pipeline = intaglio.Pipeline.open(BUNDLE, device="cpu", threads=1)
    got = pipeline.generate(
        "the dark boot", negative_prompt="a shoe", seeds=[5, 11], steps=5, **MODES[mode]
    )
    expected = np.load(DATA / "bundle-0.1.0-latents" / f"{mode}.npy")
    assert np.linalg.norm(got.latents - expected) < LIMIT * np.linalg.norm(expected)
    assert files() == before


def test_each_mode_has_its_own() -> None:
    """The modes differ, so the test above would notice a run in a wrong mode."""
    latents = [np.load(DATA / "bundle-0.1.0-latents" / f"{mode}.npy") for mode in MODES]
    for i, one in enumerate(latents):
        for other in latents[i + 1 :]:
            assert np.linalg.norm(one - other) > 1e-2 * np.linalg.norm(one)
