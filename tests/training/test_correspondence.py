"""The known places of tokens in a moved picture."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.correspondence import PIXELS, found, move

SIDE = 8


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -1), (-2, 2), (1, 0)])
def test_a_token_that_keeps_its_feature_is_found(mirrored: bool, down: int, right: int) -> None:
    random = np.random.default_rng(0)
    image = np.repeat(np.repeat(random.uniform(0.2, 1, (SIDE, SIDE, 3)), PIXELS, 0), PIXELS, 1)
    moved = move(image, mirrored, down * PIXELS, right * PIXELS)
    flipped = np.fliplr(image) if mirrored else image
    rolled = np.roll(flipped, (down * PIXELS, right * PIXELS), (0, 1))
    inside = moved.any(-1)
    np.testing.assert_array_equal(moved[inside], rolled[inside])
    assert inside.sum() == (SIDE - abs(down)) * (SIDE - abs(right)) * PIXELS**2
    features, after = (x[::PIXELS, ::PIXELS] for x in (image, moved))
    assert found(features, after, image, (mirrored, down, right)) == 1.0
    assert found(features, after, image, (not mirrored, down, right)) < 0.3
