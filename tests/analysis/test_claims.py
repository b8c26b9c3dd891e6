"""The sentences of the report, for numbers whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from intaglio.analysis.channels import causes
from intaglio.analysis.experiments import baselines, comparison, effects, failures, search
from intaglio.analysis.experiments.gallery import Pictures
from intaglio.analysis.guidance.effective_guidance import EffectiveGuidance
from intaglio.analysis.guidance.negatives import Blurred
from intaglio.analysis.quality import intervals, measures
from intaglio.analysis.quality.intervals import Interval
from intaglio.torch_reference.guidance import Method, Suppressed
from intaglio.torch_reference.model import Model, Step
from intaglio_export.calibration.massive import ChannelStatistics

N = 60


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def pictures(**shifts: float) -> Pictures:
    """N pictures that vary much more than `shifts`, in the same way each time, all of class 1."""
    names = (*measures.DETAIL, "saturation", "clipped")
    values: dict[str, Any] = {
        name: draw(i).normal(10, 3, N) + shifts.get(name, 0.0) for i, name in enumerate(names)
    }
    values["lab"] = draw(20).normal(size=(N, 3))
    values["features"] = draw(21).normal(size=(N, 2)) * (1 + shifts.get("features", 0.0))
    values["class"], values["prompt"] = np.ones(N, int), np.arange(N) % 2
    return Pictures(values, np.zeros((N, 8, 8, 3), np.uint8))


def judge() -> Any:
    reference = draw(30).normal(size=(400, 2))
    return SimpleNamespace(
        labels=np.array([1, 0]), moments=measures.moments(reference), neighbours=reference
    )


def test_verdicts() -> None:
    less = lambda value: value < 0  # noqa: E731
    for low, high, says in ((-2, -1, "better"), (1, 2, "worse"), (-1, 1, "not distinguishable")):
        assert comparison.verdict(Interval((low + high) / 2, low, high), less).startswith(says)


def test_arms_are_compared_seed_by_seed() -> None:
    gaps = comparison.against(pictures(), pictures(clipped=0.1, features=2.0), judge())
    assert gaps["clipped"].low == pytest.approx(0.1)  # its spread cancels
    assert gaps["clipped"].high == pytest.approx(0.1)
    assert gaps["frechet"].low > 0
    assert gaps["precision"].high < 0
    assert gaps["accuracy"].low < 0 == gaps["accuracy"].measured < gaps["accuracy"].high
    measured = comparison.measured(pictures(), judge())
    assert measured["accuracy"] == 0.5
    assert 0.5 < measured["precision"] <= 1


def test_failures_are_found_by_pairs() -> None:
    """An increase that is small against the spread of pictures is measurable on the same seeds."""
    setting = Method(2.0, 1.0, Suppressed(1, (3,)))
    drawn = {w: pictures(clipped=0.01 * w) for w in (0.0, 0.5, 8.0)}
    curves = {w: failures._measures(drawn[0.0], p) for w, p in drawn.items()}
    curves[1.0] = curves[0.5]
    gaps = {
        name: {w: intervals.paired_difference(drawn[0.0][name], drawn[w][name]) for w in (0.5, 8.0)}
        for name in ("high_frequency_energy", "clipped")
    }
    sharp, clipping, *_ = failures._claims(curves, gaps, setting)
    assert "no w is measurable" in sharp
    assert "measurably higher from w 0.5 on" in clipping


@pytest.mark.parametrize(
    ("same", "says"), [(1.0, "agree on"), (0.5, "agree in part"), (0.0, "do not agree")]
)
def test_gates_agree_where_numbers_do(same: float, says: str) -> None:
    z = draw(0).random((4, 1, 200))
    alpha = same * z + (1 - same) * draw(1).random(z.shape)
    values = {"gate.mean_abs": alpha, "after.mean_abs": z, "after.ratio": z}
    assert f"|z| {says}" in causes._gate_sentence(causes.gates(values))  # type: ignore[arg-type]


@pytest.mark.parametrize(("slope", "says"), [(1.0, "grows: the same"), (-1.0, "falls: it differs")])
def test_the_papers_are_agreed_with_or_not(slope: float, says: str) -> None:
    sizes = 5 + slope * np.linspace(0, 1, 6)[None, :, None] * np.ones((2, 1, 8))
    variance = {"prompt vector (pooled)": np.array([0.4])}
    said = causes._papers_sentence({"after.mean_abs": sizes}, 1, [3], variance)  # type: ignore[arg-type]
    assert says in said
    assert "at most 40% of the variance: it differs" in said


def test_an_effect_is_local_against_what_pictures_have_in_their_middle() -> None:
    """The middle of these pictures changes more with every intervention."""
    base = pictures()
    shape = np.full((N, 8, 8, 3), 4, np.uint8)
    shape[:, 2:6, 2:6] = 40
    everywhere = replace(base, images=shape)
    found = effects._locality(base, everywhere, everywhere, (4, 4))
    assert found["middle"] == pytest.approx(100)
    assert "not local" in effects._locality_sentence(found)
    inside = shape.copy()
    inside[:, :2], inside[:, 6:], inside[:, :, :2], inside[:, :, 6:] = 1, 1, 1, 1
    found = effects._locality(base, replace(base, images=inside), everywhere, (4, 4))
    assert "mostly local" in effects._locality_sentence(found)


def test_a_blur_is_as_long_as_what_it_takes_from_the_clean_image(model: Model) -> None:
    """This holds for any amount of noise, although the prediction is divided by it."""
    conditional, null = model.inputs([0, 1])
    latents = model.noise([0, 1])
    for sigma in (0.5, 1e-3):
        method = Method(2.0, baselines.NEGLIGIBLE, Blurred(1.0))
        guidance = EffectiveGuidance(method)
        step = Step(latents, torch.tensor(500.0), 0, 1, sigma)
        with torch.no_grad():
            prediction = Method().predictor(model)(step, conditional, null)
            method.predictor(model, guidance)(step, conditional, null)
        clean = (latents - sigma * prediction).numpy()
        detail = clean - ndimage.gaussian_filter(clean, (0, 0, 1, 1), mode="reflect")
        expected = np.linalg.norm(detail.reshape(2, -1), axis=1)
        np.testing.assert_allclose(guidance.negative_norms[0], expected, rtol=1e-3)


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
@pytest.mark.parametrize("block", [0, 2])
def test_cost_is_that_of_the_rows_that_run(model: Model, cfg_scale: float, block: int) -> None:
    rows: list[int] = []

    def count(module: object, args: object, output: tuple[torch.Tensor, ...]) -> None:
        if (
            output[1].shape[1] == model.tokens
        ):  # skips the precomputed conditioning, which has no image tokens
            rows.append(len(output[1]))

    handles = [module.register_forward_hook(count) for module in model.adapter.blocks()]
    try:
        counts = []
        for weight in (0.0, 1.0):
            rows.clear()
            model.sample(
                Method(cfg_scale, weight, Suppressed(block, (3,))).predictor(model), [0], 1
            )
            counts.append(sum(rows))
    finally:
        for handle in handles:
            handle.remove()
    found = search.cost(Method(cfg_scale, 1.0, Suppressed(block, (3,))), model.blocks)
    assert found == pytest.approx(counts[1] / counts[0])


def test_candidates_are_massive_channels_or_the_largest() -> None:
    ratio = np.ones((6, 32))
    ratio[:, 7], ratio[:, 9] = 50, 4
    agreement = np.zeros_like(ratio)
    agreement[2:4, 7] = 1.0
    found = search.candidates(ChannelStatistics(ratio, agreement, 10, ratio.max(1)), 2.0)
    channels = {m.negative.block: m.negative.channels for m in found}  # type: ignore[union-attr]
    assert len(found) == len(channels) * len(search.WEIGHTS)
    assert all(channels[k] == ((7,) if k in (2, 3) else (7, 9)) for k in channels)


def test_only_a_whole_interval_recommends() -> None:
    for high, says in ((-0.1, True), (0.1, False)):
        evidence = {"cfg_dg_minus_cfg": {"frechet": Interval(-1, -2, high)}}
        assert search.recommended(evidence) is says
