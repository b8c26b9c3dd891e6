"""The short form of `make quality`: one of its runs, with the bounds that are promised."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality.__main__ import COLUMNS, measure, section
from tests import bundles

PROMISED = {"D_c - D_m": 0.08, "D_c - D_0": 0.08, "guided D": 0.03}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    output = tmp_path_factory.mktemp("docs")
    precisions = {
        "float32": bundles.bundle(bundles.SHIPPED),
        "int8-dynamic": bundles.bundle(bundles.SHIPPED, quantize="int8-dynamic"),
    }
    result = measure(precisions, output, images=8, seeds=1, steps=8)
    assert json.loads((output / "performance/quality.json").read_text("utf-8")) == result
    page = section(result)
    assert all(f"performance/quality-{name}.png" in page for name in precisions)
    return output, result["precisions"]


@pytest.mark.parametrize("of", PROMISED)
def test_differences_of_branches_are_within_the_bounds(
    measured: tuple[Path, dict[str, dict[str, float]]], of: str
) -> None:
    errors = measured[1]["int8-dynamic"]["errors"]
    assert errors.keys() == set(COLUMNS)
    assert 0.001 < errors[of]["mean"] <= PROMISED[of]


def test_the_strip_shows_what_differs(
    measured: tuple[Path, dict[str, dict[str, float]]],
) -> None:
    """Pictures above, differences around grey below."""
    folder = measured[0] / "performance"
    exact, found = (
        np.asarray(Image.open(folder / f"quality-{name}.png"), np.int32)
        for name in ("float32", "int8-dynamic")
    )
    above, below = np.split(found, 2)
    wanted = np.clip(np.rint(127.5 + above - exact), 0, 255)
    assert np.abs(below - wanted).max() <= 1
    assert (above != exact).any()
