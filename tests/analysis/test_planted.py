"""Planted channels are found exactly, and the report says so if there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from intaglio.analysis.channels.detection import detection_section
from intaglio.analysis.channels.model_recorder import record_model
from tests.analysis.conftest import STEPS, make_model
from tests.families.sd3 import BLOCKS

SEEDS = range(10)


def found(model: object, path: Path) -> tuple[list[list[int]], str]:
    """Return the massive channels after each block, and the report's first sentence."""
    statistics = record_model(model, range(4), STEPS, path)  # type: ignore[arg-type]
    channels = statistics.channels()
    return [channels.massive(k) for k in range(BLOCKS)], detection_section(statistics).claims[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_channels_are_found_exactly(seed: int, tmp_path: Path) -> None:
    """One to three channels of either sign are planted before the first block."""
    draw = np.random.default_rng(seed)
    planted = draw.choice(64, draw.integers(1, 4), replace=False)
    model = make_model(planted=False, seed=seed)
    with torch.no_grad():
        bias = model.adapter.transformer.pos_embed.proj.bias
        bias[torch.from_numpy(planted)] = torch.tensor(
            draw.choice([-1, 1], len(planted)) * draw.uniform(30, 60, len(planted))
        ).float()
    massive, sentence = found(model, tmp_path / "statistics.npz")
    assert [sorted(channels) for channels in massive] == [sorted(planted.tolist())] * BLOCKS
    assert f": {', '.join(map(str, sorted(planted)))} after blocks 0-{BLOCKS - 1}." in sentence


@pytest.mark.parametrize("seed", SEEDS)
def test_without_planted_channels_there_are_none(seed: int, tmp_path: Path) -> None:
    massive, sentence = found(make_model(planted=False, seed=seed), tmp_path / "statistics.npz")
    assert massive == [[]] * BLOCKS
    assert "Massive channels of the image stream: none" in sentence
