"""The measured error of reuse, compared with extrapolating the differences one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intaglio import _core
from intaglio.analysis import reuse
from intaglio.torch_reference.guidance import Method, Suppressed
from intaglio.torch_reference.model import Model
from intaglio_export.errors import ExportError
from tests.analysis.conftest import make_model
from tests.parity.three_branch_loop import Deltas

METHOD = Method(2.0, 1.5, Suppressed(1, (3, 40)), (0.2, 1.0))
STEPS, SEEDS = 8, range(3)


def weights(**how: object) -> list[_core.StepWeights]:
    return _core.step_weights(reuse.guidance(METHOD, **how), STEPS)


def test_the_exact_run_is_the_methods(model: Model) -> None:
    exact = reuse.run(model, METHOD, SEEDS, STEPS)
    expected = model.sample(METHOD.predictor(model), SEEDS, STEPS)
    torch.testing.assert_close(exact.latents, expected, rtol=1e-4, atol=1e-5)
    every_step = weights()
    assert exact.error(every_step) == 0.0
    same = reuse.run(model, METHOD, SEEDS, STEPS, every_step)
    torch.testing.assert_close(same.latents, expected, rtol=1e-4, atol=1e-5)


def test_a_scaled_result_of_cfg_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    monkeypatch.setattr(model.adapter, "cfg_rescale", "token", raising=True)
    with pytest.raises(ExportError, match=r"scales the result of CFG, .*: skip steps instead"):
        reuse.run(model, METHOD, SEEDS, STEPS)


@pytest.mark.parametrize("interval", [(2, 2), (3, 2)])
def test_errors_are_of_the_reference_loops_extrapolation(
    interval: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random terms are extrapolated by `Deltas` and by the matrix of products."""
    terms = torch.randn(2, STEPS, 5, generator=torch.Generator().manual_seed(0)).double()
    timesteps = [1000.0 / (1 + i) for i in range(STEPS)]
    missed, square = 0.0, 0.0
    loops = {name: Deltas(interval, (0.2, 0.9)) for name in ("0", "m")}
    for step in range(STEPS):
        guided, whole = torch.zeros(5).double(), torch.zeros(5).double()
        for name, term in zip(loops, terms[:, step], strict=True):
            if name == "m" and step / STEPS < 0.2:  # outside the method's window
                term = torch.zeros(5).double()
            elif loops[name].due(name, step, STEPS):
                loops[name].ran(name, step, timesteps[step], term)
            whole += term
            if loops[name].runs[name]:
                guided += loops[name].at(name, timesteps[step])
        missed += float((guided - whole).square().sum())
        square += float(whole.square().sum())
    terms[1, : int(np.ceil(0.2 * STEPS))] = 0.0
    flat = terms.flatten(0, 1)
    steps = list(range(STEPS))
    trajectory = reuse.Trajectory(steps, timesteps, (flat @ flat.T).numpy(), terms)
    schedule = weights(reuse_interval=interval, reuse_window=(0.2, 0.9))
    assert trajectory.error(schedule) == pytest.approx((missed / square) ** 0.5, rel=1e-6)


def test_choices_cost_what_they_run_and_keep_their_error(model: Model) -> None:
    trajectory = reuse.run(model, METHOD, SEEDS, STEPS)
    found = reuse.choices(model, METHOD, trajectory)
    assert [c.cost for c in found] == sorted(c.cost for c in found)
    chosen = next(c for c in found if c.error < 0.2)
    schedule = weights(reuse_interval=chosen.interval, reuse_window=chosen.window)
    assert trajectory.error(schedule) == pytest.approx(chosen.error)
    blocks = model.blocks
    rows = STEPS + sum(w.unconditional and not w.reuse_unconditional for w in schedule)
    late = sum(w.degraded and not w.reuse_degraded for w in schedule)
    assert chosen.cost == pytest.approx((rows + late * (blocks - 2) / blocks) / (2 * STEPS))
    reused = reuse.run(model, METHOD, SEEDS, STEPS, schedule)
    assert 0.0 < reused.error(schedule) < 1.0
    off = (reused.latents - trajectory.latents).norm() / trajectory.latents.norm()
    assert 0.0 < float(off) < 0.2
