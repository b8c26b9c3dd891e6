"""The channel finder, on models with a channel planted and without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from intaglio_export.adapters import SD3Adapter
from intaglio_export.calibration.calibrate import STEPS, calibrate
from intaglio_export.calibration.massive import CONDITIONS, RATIO, TOKENS, ChannelStatistics
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.calibration.selection import choose_block, choose_channels, disagreement
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.options import parse_channels
from intaglio_export.sources import open_source
from tests.families.parts import MAX_LENGTH

PLANTED = 5
LEVEL = 40.0


@pytest.fixture
def adapter(sd3_folder: Path) -> SD3Adapter:
    adapter = open_source(sd3_folder).adapter
    assert isinstance(adapter, SD3Adapter)
    return adapter


def plant(adapter: SD3Adapter, level: float) -> None:
    """Set the mean of one channel of the image stream, from the first block on."""
    with torch.no_grad():
        bias = adapter.pipeline.transformer.pos_embed.proj.bias
        bias.zero_()
        bias[PLANTED] = level


def test_a_planted_channel_is_found(adapter: SD3Adapter) -> None:
    plant(adapter, LEVEL)
    statistics = calibrate(adapter, MAX_LENGTH)
    assert statistics.conditions == len(PROMPTS) * STEPS
    assert statistics.massive(1) == [PLANTED]
    chosen = choose_channels(parse_channels("auto"), 1, statistics)
    assert (chosen.channels, chosen.massive, chosen.found_by) == ([PLANTED], True, "auto")
    assert chosen.ratio[0] > RATIO


def test_without_a_planted_channel_auto_stops_and_says_what_to_do(adapter: SD3Adapter) -> None:
    plant(adapter, 0.0)
    statistics = calibrate(adapter, MAX_LENGTH)
    assert statistics.blocks_with_massive() == []
    with pytest.raises(ExportError, match="top:K") as caught:
        choose_channels(parse_channels("auto"), 1, statistics)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    for channel in statistics.largest(1)[:4]:
        assert f"{channel} ({statistics.ratio[1, channel]:.1f})" in caught.value.message
    chosen = choose_channels(parse_channels("top:3"), 1, statistics)
    assert (len(chosen.channels), chosen.massive) == (3, False)
    assert chosen.ratio == sorted(chosen.ratio, reverse=True)


def test_a_damaged_model_is_named(adapter: SD3Adapter) -> None:
    plant(adapter, float("nan"))
    with pytest.raises(ExportError, match="block 0 is not finite"):
        calibrate(adapter, MAX_LENGTH)


def test_thresholds_stand_at_their_values() -> None:
    assert (RATIO, TOKENS, CONDITIONS) == (10.0, 0.9, 0.8)


STATISTICS = ChannelStatistics(
    ratio=np.array([[1.0, 2.0, 3.0], [1.0, 20.0, 15.0]]),
    agreement=np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.79]]),
    conditions=10,
    max_abs=np.array([3.0, 20.0]),
)


def test_agreement_decides_and_not_the_ratio_alone() -> None:
    assert STATISTICS.massive(1) == [1]
    assert STATISTICS.largest(1) == [1, 2, 0]


@pytest.mark.parametrize(
    ("channels", "says"), [("3", "channels are 0 to 2"), ("top:4", "has 3 channels")]
)
def test_channels_out_of_range(channels: str, says: str) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        choose_channels(parse_channels(channels), 1, STATISTICS)
    assert caught.value.exit_code == ExitCode.USAGE


def test_auto_at_a_block_without_names_the_blocks_with() -> None:
    with pytest.raises(ExportError, match="--block 1"):
        choose_channels(parse_channels("auto"), 0, STATISTICS)


def test_a_recipe_that_disagrees_is_said() -> None:
    wrong = choose_channels(parse_channels("2"), 1, STATISTICS)
    (remark,) = disagreement("some-model", wrong, STATISTICS)
    for part in ("some-model", "channels 1", "2: 15.0", "--channels auto"):
        assert part in remark
    assert (
        disagreement("some-model", choose_channels(parse_channels("1"), 1, STATISTICS), STATISTICS)
        == []
    )
    assert "no channel met" in disagreement("some-model", replace(wrong, block=0), STATISTICS)[0]


def test_ref_must_fit_the_channels() -> None:
    with pytest.raises(ExportError, match="for 1 channels"):
        choose_channels(parse_channels("1"), 1, STATISTICS, [0.0, 1.0])


def test_blocks() -> None:
    assert choose_block(None, 8) == 4
    assert choose_block(0, 8) == 0
    for wrong in (-1, 8):
        with pytest.raises(ExportError, match="blocks are 0 to 7"):
            choose_block(wrong, 8)
