"""A planted foreground is found by its channels, and none is found where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from intaglio.analysis.channels.foreground import cells_of, compare, foreground, overlap

ROWS, COLUMNS = 8, 10


def planted() -> np.ndarray:
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[2:6, 3:8] = True
    mask[5:7, 1:3] = True
    return mask


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", range(5))
def test_a_planted_foreground_is_found(seed: int, sign: int) -> None:
    draw = np.random.default_rng(seed)
    mask = planted()
    values = draw.normal(size=(ROWS, COLUMNS, 2)) + sign * 10 * mask[..., None]
    np.testing.assert_array_equal(foreground(values * [1, 100]), mask)


def test_equal_cells_have_no_foreground() -> None:
    assert not foreground(np.zeros((ROWS, COLUMNS, 2))).any()
    assert not foreground(np.full((ROWS, COLUMNS, 2), 3.0)).any()


def test_overlap_is_that_of_the_union() -> None:
    mask = planted()
    assert overlap(mask, mask) == 1
    assert overlap(mask, ~mask) == 0
    half = mask & (np.arange(COLUMNS) < 5)
    assert overlap(mask, half) == pytest.approx(half.sum() / mask.sum())
    assert overlap(mask & False, mask & False) == 1


def test_channels_are_compared_with_colours_and_random_channels() -> None:
    draw = np.random.default_rng(0)
    mask = np.broadcast_to(planted()[..., None], (6, ROWS, COLUMNS, 1))
    images = np.kron(mask, np.ones((1, 2, 2, 3))) * 0.8
    np.testing.assert_allclose(cells_of(images, (ROWS, COLUMNS)), mask * np.full(3, 0.8))
    massive = 50.0 * mask + draw.normal(size=mask.shape)
    found = compare(massive, draw.normal(size=mask.shape), images, 3, [7])
    overlaps = found.numbers["overlap_with_colours"]
    assert overlaps["channels"].measured == 1
    assert overlaps["random channels"].high < 0.6
    assert "channels 7" in found.claim
