"""Compare noise with torch's own CPU generator."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from intaglio import _core

TOLERANCE = 1e-5
SEEDS = st.integers(0, 2**64 - 1)


def torch_generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@settings(deadline=None)
@given(seed=SEEDS, sizes=st.lists(st.integers(1, 70), min_size=1, max_size=12))
@example(seed=0, sizes=list(range(1, 41)))
@example(seed=2**64 - 1, sizes=[1, 16, 1, 17, 3, 256, 1, 1000])
@example(seed=2**32 + 7, sizes=[15, 15, 4 * 16 * 16 * 3])
def test_successive_draws(seed: int, sizes: list[int]) -> None:
    ours, theirs = _core.Generator(seed), torch_generator(seed)
    for size in sizes:
        expected = torch.randn(size, generator=theirs).numpy()
        np.testing.assert_allclose(ours.randn([size]), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (3, 4, 16, 16), (2, 16, 9, 7), (5, 3)])
def test_one_seed_draws_the_batch(shape: tuple[int, ...]) -> None:
    expected = torch.randn(shape, generator=torch_generator(11)).numpy()
    noise = _core.draw_noise(shape, [11])
    assert noise.shape == shape
    assert noise.dtype == np.float32
    np.testing.assert_allclose(noise, expected, rtol=0, atol=TOLERANCE)


def test_a_seed_for_each_image() -> None:
    seeds = [3, 2**40, 3]
    rows = [torch.randn(1, 4, 8, 8, generator=torch_generator(seed)) for seed in seeds]
    noise = _core.draw_noise((3, 4, 8, 8), seeds)
    np.testing.assert_allclose(noise, torch.cat(rows).numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(noise[0], noise[2])


def test_seeds_must_match_images() -> None:
    with pytest.raises(_core.UsageError, match="2 seeds for 3 images"):
        _core.draw_noise((3, 4, 8, 8), [1, 2])
