"""`intaglio probe --sweep` over checkpoints of several widths and depths, with planted channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from PIL import Image

from intaglio.analysis.probe import sweep
from tests.analysis.conftest import Command
from tests.families.sd3 import make_pipeline

# Heads and blocks of each checkpoint, and the channels that are planted before its first block.
SIZES = {"small": (2, 2, []), "wide": (4, 2, [5]), "deep": (2, 4, [3, 9])}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, (heads, blocks, planted) in SIZES.items():
        pipeline = make_pipeline(planted=False)
        config: dict[str, Any] = dict(pipeline.transformer.config)
        width = 16 * heads
        config |= {"num_attention_heads": heads, "num_layers": blocks, "dual_attention_layers": ()}
        pipeline.transformer = SD3Transformer2DModel.from_config(
            config | {"caption_projection_dim": width}
        ).eval()
        with torch.no_grad():
            pipeline.transformer.pos_embed.proj.bias[planted] += 40.0
        pipeline.save_pretrained(folder / name)
    return {name: folder / name for name in SIZES}


def test_a_sweep_says_where_channels_are_massive(
    checkpoints: dict[str, Path], command: Command, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sweep, "OBSERVED", 4)
    out = tmp_path / "report"
    code, said, error = command("--sweep", *checkpoints.values(), "-o", out, "--steps", 4)
    assert code == 0, error
    assert "2 of 3 checkpoints have massive channels" in said
    numbers = json.loads((out / "report.json").read_text("utf-8"))["Width and depth"]
    for one, (name, (heads, blocks, planted)) in zip(
        numbers["checkpoints"], SIZES.items(), strict=True
    ):
        assert Path(one["checkpoint"]).name == name
        assert (one["width"], one["depth"]) == (16 * heads, blocks)
        assert one["massive"] == planted
        assert one["massive_blocks"] == (list(range(blocks)) if planted else [])
        assert one["place"] == pytest.approx((one["block"] + 1) / blocks, abs=1e-3)
        if planted:
            assert one["channel"] in planted
            assert one["ratio"] > 10
            assert one["max_abs"] > 35
        model = SD3Transformer2DModel.from_pretrained(checkpoints[name] / "transformer")
        assert one["parameters"] == sum(p.numel() for p in model.parameters())
    with Image.open(out / "figures" / "sweep.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 1
    before = {path: path.stat().st_mtime_ns for path in out.glob("checkpoints/*.npz")}
    assert len(before) == len(SIZES)
    assert command("--sweep", *checkpoints.values(), "-o", out, "--steps", 4)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("checkpoints/*.npz")} == before


def test_mistakes_with_several_sources_are_named(
    checkpoints: dict[str, Path], command: Command, tmp_path: Path
) -> None:
    one, other, _ = checkpoints.values()
    cases = [
        (("--sweep", one), "name two or more"),
        ((one, other), f"{other} is a second source"),
        (("--sweep", one, other, "--images", 9), "--images does not apply to a sweep"),
    ]
    for args, says in cases:
        code, out, error = command(*args, "-o", tmp_path / "report")
        assert (code, out) == (2, "")
        assert says in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "report").exists()
