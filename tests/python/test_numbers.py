"""Numbers of NumPy and torch, which are not Python's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import intaglio
from intaglio import _core
from intaglio.diffusers.schedule import make_schedule
from tests.python.conftest import PROMPT

KINDS = [np.float32, np.float16, np.array, torch.tensor]


@pytest.mark.reported("pybind/pybind11#2036", "Blosc/python-blosc2#680")
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_of_any_library_is_a_number(forked: intaglio.Pipeline, kind: Any) -> None:
    """Scales and seeds may be numbers of NumPy or torch, 0-d arrays too, here and in diffusers."""
    drawn = forked.generate(PROMPT, steps=1, cfg_scale=kind(1.5), dg_scale=(kind(0.5), 1))
    expected = forked.generate(PROMPT, steps=1, cfg_scale=1.5, dg_scale=(0.5, 1))
    np.testing.assert_array_equal(drawn.latents, expected.latents)
    schedule = make_schedule(dg_scale=kind(0.5), dg_window=(0, kind(0.5)))
    assert repr(schedule) == repr(_core.Guidance(dg_scale=0.5, dg_window=(0, 0.5)))


@pytest.mark.parametrize("kind", [np.int8, np.uint64, np.array, torch.tensor])
def test_a_whole_number_of_any_library(forked: intaglio.Pipeline, kind: Any) -> None:
    drawn = forked.generate(PROMPT, steps=kind(1), seeds=kind(3))
    expected = forked.generate(PROMPT, steps=1, seeds=3)
    np.testing.assert_array_equal(drawn.latents, expected.latents)
    assert drawn.texts == expected.texts


@pytest.mark.parametrize("scale", [2 + 0j, "2", type(None), ["1"], [], {}])
def test_what_is_no_number_is_refused(forked: intaglio.Pipeline, scale: Any) -> None:
    with pytest.raises(intaglio.UsageError, match="cfg_scale takes S or S0:S1"):
        forked.generate(PROMPT, cfg_scale=scale)
    with pytest.raises(TypeError, match="scales and ma_keep take a number"):
        make_schedule(cfg_scale=scale)
