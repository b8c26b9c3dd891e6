"""Windows, ramps and the combination, against NumPy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import intaglio
from intaglio import _core
from tests.fake_bundle import CHANNELS, CLASSES, make_bundle, predict
from tests.parity.three_branch_loop import Deltas


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> intaglio.Pipeline:
    """A bundle whose transformer is a formula."""
    return intaglio.Pipeline.open(make_bundle(tmp_path_factory.mktemp("fake") / "b", "class"))


WEIGHTS = st.floats(-8, 8, width=32)
CFG_SCALES = st.floats(0, 8, width=32)
INTERVALS = st.lists(st.floats(1, 9), min_size=2, max_size=2).map(lambda ends: sorted(ends)[::-1])
WINDOWS = st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True).map(
    lambda ends: (min(ends) / 40, max(ends) / 40)
)


@given(cfg_scale=st.one_of(st.just(1.0), CFG_SCALES), dg_scale=st.one_of(st.just(0.0), WEIGHTS))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_step_is_the_papers_formula(
    model: intaglio.Pipeline, cfg_scale: float, dg_scale: float
) -> None:
    """One step of Euler, from sigma 1 to 0, lands on x - D."""
    x = np.random.default_rng(3).standard_normal((2, CHANNELS, 8, 16)).astype(np.float32)
    got = model.generate(
        class_label=4, latents=x, batch=2, steps=1, cfg_scale=cfg_scale, dg_scale=dg_scale
    )
    c, u, m = (
        predict(x, 1000.0, keep, {"class": label})
        for keep, label in ((1, 4), (1, CLASSES["null"]), (0, 4))
    )
    lambda_ = np.float32(cfg_scale - 1)
    expected = x - (c + lambda_ * (c - u) + np.float32(dg_scale) * (c - m))
    np.testing.assert_allclose(got.latents, expected, rtol=2e-5, atol=1e-4)
    assert got.unconditional_steps == ([0] if lambda_ else [])
    assert got.degraded_steps == ([0] if dg_scale else [])


@given(start=st.integers(0, 100), end=st.integers(0, 100), steps=st.integers(1, 60))
def test_window(start: int, end: int, steps: int) -> None:
    """Boundaries at whole percents fall on steps, although binary fractions do not hold them."""
    window = _core.Window(start / 100, end / 100)
    inside = [i for i in range(steps) if window.contains(i, steps)]
    assert inside == [i for i in range(steps) if start * steps <= 100 * i < end * steps]


@given(first=WEIGHTS, last=WEIGHTS, steps=st.integers(2, 60))
def test_ramp_reaches_both_ends(first: float, last: float, steps: int) -> None:
    ramp = _core.Ramp(first, last)
    expected = np.linspace(first, last, steps)
    got = [ramp.at(i, steps) for i in range(steps)]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_numbers_and_pairs_convert() -> None:
    guidance = _core.Guidance(cfg_scale=3, dg_scale=(0, 1.5), cfg_window=(0.25, 0.75))
    assert repr(guidance) == (
        "Guidance(cfg_scale=Ramp(3), cfg_window=Window(0.25, 0.75), dg_scale=Ramp(0, 1.5),"
        " dg_window=Window(0, 1), ma_keep=Ramp(0), reuse_interval=Ramp(1),"
        " reuse_window=Window(0, 1), skip_interval=Ramp(1), skip_window=Window(0, 1),"
        " skip_steps=[], skip_tolerance=0.2)"
    )
    weights = [_core.weights_at(guidance, i, 4) for i in range(4)]
    assert [w.lambda_ for w in weights] == [0, 2, 2, 0]
    assert [w.unconditional for w in weights] == [False, True, True, False]
    np.testing.assert_allclose([w.w for w in weights], [0, 0.5, 1, 1.5])
    assert [w.degraded for w in weights] == [False, True, True, True]


def test_a_branch_that_gets_its_weight_is_run() -> None:
    # w is 0 in the middle, where D_m does not run, so the differences before it are too old.
    guidance = _core.Guidance(dg_scale=(-1, 1), reuse_interval=3)
    weights = _core.step_weights(guidance, 5)
    assert [w.degraded for w in weights] == [True, True, False, True, True]
    assert [w.reuse_degraded for w in weights] == [False, True, False, False, True]


@given(interval=INTERVALS, reuse=WINDOWS, dg=WINDOWS, steps=st.integers(1, 60))
def test_reuse_keeps_to_its_interval(
    interval: list[float], reuse: tuple[float, float], dg: tuple[float, float], steps: int
) -> None:
    first, last = interval
    guidance = _core.Guidance(
        cfg_scale=2, dg_scale=1, dg_window=dg, reuse_interval=(first, last), reuse_window=reuse
    )
    weights = _core.step_weights(guidance, steps)
    expected = [_core.weights_at(guidance, i, steps) for i in range(steps)]
    assert [(w.lambda_, w.w) for w in weights] == [(w.lambda_, w.w) for w in expected]
    with_weight = [i for i, w in enumerate(weights) if w.degraded]
    runs = [i for i in with_weight if not weights[i].reuse_degraded]
    assert not any(w.reuse_degraded for w in weights if not w.degraded)
    assert runs[:1] == with_weight[:1]
    inside = [i for i in range(steps) if guidance.reuse_window.contains(i, steps)]
    assert set(with_weight) - set(inside) <= set(runs)
    gaps = [b - a for a, b in pairwise(runs) if a in inside and b in inside]
    assert gaps == sorted(gaps, reverse=True)
    assert max(gaps, default=1) <= first + 1e-9  # the tolerance for computed bounds
    # The reference loop decides the same.
    for branch, windowed in (("0", range(steps)), ("m", with_weight)):
        deltas = Deltas((first, last), reuse)
        for i in windowed:
            reused = weights[i].reuse_degraded if branch == "m" else weights[i].reuse_unconditional
            assert deltas.due(branch, i, steps) is not reused
            if not reused:
                deltas.ran(branch, i, 0.0, torch.zeros(1))


BAD: list[dict[str, Any]] = [
    {"cfg_window": (0.5, 0.5)},
    {"dg_window": (-0.1, 1)},
    {"ma_keep": (0, -2)},
    {"dg_scale": float("inf")},
    {"reuse_interval": 0},
    {"reuse_interval": (2, 3)},
    {"reuse_interval": float("inf")},
    {"reuse_interval": float("nan")},
    {"reuse_interval": 2, "reuse_window": (0.5, 0.5)},
]


@pytest.mark.parametrize("values", BAD, ids=str)
def test_check_guidance(values: dict[str, Any]) -> None:
    _core.check_guidance(_core.Guidance())
    with pytest.raises(intaglio.UsageError):
        _core.check_guidance(_core.Guidance(**values))
