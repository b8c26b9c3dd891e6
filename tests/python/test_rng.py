"""Noise equals torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import intaglio
from intaglio import _core

SHAPES = st.lists(st.integers(0, 9), max_size=4)
SEEDS = st.integers(0, 2**63 - 1)


@settings(deadline=None)
@given(seed=SEEDS, shapes=st.lists(SHAPES, min_size=1, max_size=3))
def test_generator_draws_torchs_numbers(seed: int, shapes: list[list[int]]) -> None:
    ours, theirs = _core.Generator(seed), torch.Generator("cpu").manual_seed(seed)
    for shape in shapes:  # one generator, so each draw continues where the last one ended
        expected = torch.randn(shape, generator=theirs).numpy()
        np.testing.assert_allclose(ours.randn(shape), expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=20)
@given(seeds=st.lists(SEEDS, min_size=2, max_size=3))
def test_seeds_draw_one_image_each(seeds: list[int]) -> None:
    noise = _core.draw_noise([len(seeds), 4, 5], seeds)
    for row, seed in zip(noise, seeds, strict=True):
        np.testing.assert_array_equal(row, _core.Generator(seed).randn([4, 5]))


def test_one_seed_draws_the_batch() -> None:
    np.testing.assert_array_equal(
        _core.draw_noise([3, 4, 5], [9]), _core.Generator(9).randn([3, 4, 5])
    )


def test_another_number_of_seeds_is_refused() -> None:
    with pytest.raises(intaglio.UsageError, match="2 seeds for 3 images"):
        _core.draw_noise([3, 4], [1, 2])
    with pytest.raises(intaglio.UsageError, match="negative"):
        _core.Generator(1).randn([-1])
