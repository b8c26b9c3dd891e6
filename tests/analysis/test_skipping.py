"""The search for a schedule, compared with the reference loop's rule and with whole runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler

from intaglio import _core
from intaglio.analysis import reuse, skipping
from intaglio.torch_reference.guidance import Method, Suppressed
from intaglio.torch_reference.model import Model, Step
from intaglio_export.options import read_settings
from tests.analysis.conftest import make_model
from tests.parity.three_branch_loop import Skips

METHOD = Method(2.0, 1.5, Suppressed(1, (3, 40)), (0.2, 1.0))
STEPS, SEEDS = 12, range(3)


def test_a_ramp_of_ma_keep_leaves_branches_out() -> None:
    """Where it is 1, D_m equals D_c and does not run."""
    suppressed = Suppressed(1, (3, 40), (1.0, 0.0))
    weights = _core.step_weights(reuse.guidance(Method(2.0, 1.5, suppressed)), 4)
    assert [w.degraded for w in weights] == [False, True, True, True]


@pytest.mark.parametrize("braked", [False, True])
def test_each_image_is_skipped_by_itself(model: Model, braked: bool) -> None:
    tolerance = 1e9
    asked = reuse.guidance(METHOD, skip_interval=(3, 2), skip_window=(0.2, 1.0))
    skipped = tuple(i for i, how in enumerate(_core.step_weights(asked, STEPS)) if how.skip)
    got = skipping.draw(model, METHOD, SEEDS, STEPS, skipping.Schedule(skipped, tolerance))
    fewest = int(got.evaluations.max())
    if braked:
        tolerance = float(got.distances.mean())
        got = skipping.draw(model, METHOD, SEEDS, STEPS, skipping.Schedule(skipped, tolerance))
    guided = METHOD.predictor(model)
    for i, seed in enumerate(SEEDS):
        skips = Skips((3, 2), (0.2, 1.0), tolerance)

        def predict(step: Step, conditional: object, null: object, skips: Skips = skips) -> object:
            if not skips.due(step.index, STEPS, [True, METHOD.weight_at(step) != 0.0]):
                return skips.at(float(step.timestep))
            prediction = guided(step, conditional, null)  # type: ignore[arg-type]
            skips.computed(float(step.timestep), prediction)
            return prediction

        alone = model.sample(predict, [seed], STEPS)  # type: ignore[arg-type]
        torch.testing.assert_close(got.latents[i], alone[0], rtol=1e-3, atol=1e-4)
        assert got.evaluations[i] == STEPS - len(skips.skipped)
    assert fewest < STEPS
    assert (got.evaluations.max() > fewest) == braked


def test_an_exact_run_is_the_methods(model: Model) -> None:
    exact = skipping.draw(model, METHOD, SEEDS, STEPS)
    torch.testing.assert_close(exact.latents, model.sample(METHOD.predictor(model), SEEDS, STEPS))
    assert (exact.evaluations == STEPS).all()
    np.testing.assert_array_equal(exact.errors(exact), 0.0)


def test_the_estimate_is_the_end_of_a_run_of_euler(model: Model) -> None:
    """With the predictions of the exact run, Euler's steps are summed one by one."""
    seen: list[tuple[float, float, torch.Tensor]] = []
    model.sample(
        METHOD.predictor(model), SEEDS, STEPS,
        lambda step, d: seen.append((float(step.timestep), step.sigma, d.double())),
    )  # fmt: skip
    trajectory = skipping.Trajectory.of(model, METHOD, SEEDS, STEPS)
    weights = skipping.Schedule((6, 7, 9, 10)).weights(METHOD, STEPS)
    assert [i for i, w in enumerate(weights) if w.skip] == [6, 7, 9, 10]
    runs: list[tuple[float, torch.Tensor]] = []
    off = torch.zeros_like(seen[0][2])
    for i, (timestep, sigma, d) in enumerate(seen):
        taken = d
        if weights[i].skip:
            (t0, d0), (t1, d1) = runs[-2:]
            taken = d0 + (timestep - t0) / (t1 - t0) * (d1 - d0)
        else:
            runs.append((timestep, d))
        end = seen[i + 1][1] if i + 1 < STEPS else 0.0
        off += (end - sigma) * (taken - d)
    assert trajectory.error(weights) == pytest.approx(float(off.norm()), rel=1e-6)


def test_the_best_of_so_many_evaluations(model: Model) -> None:
    search = skipping.Search(model, METHOD, STEPS, SEEDS)
    evaluations = 8
    assert all(
        sum(not w.skip for w in schedule.weights(METHOD, STEPS)) == evaluations
        for _, schedule in search.choices[evaluations]
    )
    best = search.best(evaluations)
    assert best is not None
    assert best.evaluations <= evaluations
    assert search.best(3) is None
    worst = search.measure(search.choices[evaluations][-1][1])
    assert 0.0 < best.error < worst.error
    _, regular = search.choices[evaluations][0]
    moved = skipping.improved(regular, METHOD, STEPS, search._trajectory)
    lower, before = (
        search._trajectory.error(schedule.weights(METHOD, STEPS)) for schedule in (moved, regular)
    )
    assert len(moved.skipped) == len(regular.skipped)
    assert lower < before
    assert search.within(best.error * 1.001) is not None
    assert search.within(0.0) is None


def test_a_step_of_heun_has_two_evaluations() -> None:
    model = make_model()
    model.adapter.pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    search = skipping.Search(model, METHOD, STEPS, range(2))
    assert max(search.choices) > STEPS
    best = search.best(16)
    assert best is not None
    assert 3 < best.evaluations <= 16
    ((count, choices), *_) = search.choices.items()
    _, schedule = choices[0]
    moved = skipping.improved(schedule, METHOD, STEPS, search._trajectory)
    for one in (schedule, moved):
        assert search.measure(replace(one, tolerance=1e9)).evaluations == count


def test_no_schedule_has_so_few_evaluations(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skipping, "open_model", lambda _: (model, METHOD, tmp_path / "none"))
    arguments = ["skipping", str(tmp_path), "--steps", "12", "--evaluations", "3", "--seeds", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="no schedule has 3 evaluations or fewer: increase"):
        skipping.main()


def test_a_schedule_goes_into_the_settings(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "settings.json"
    others = [
        {"steps": 12, "scheduler": "A", "skipped": [3, 5], "tolerance": 0.1},
        {"steps": 20, "scheduler": "A", "skipped": [3, 5], "tolerance": 0.1},
    ]
    path.write_text(json.dumps({"cfg_scale": 3.0, "skipping": others}))
    monkeypatch.setattr(skipping, "open_model", lambda _: (model, METHOD, path))
    arguments = ["skipping", str(tmp_path), "--steps", "12", "--evaluations", "9", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    skipping.main()
    out = capsys.readouterr().out
    flags = re.search(r"--skip-steps (\S+) --skip-tolerance (\S+)", out)
    assert flags
    assert "gains little" in out
    settings = read_settings(path)
    assert settings.cfg_scale == 3.0
    assert settings.skipping is not None
    found = settings.skipping[-1]
    assert found["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert found["skipped"] == [int(step) for step in flags[1].split(",")]
    drew = re.search(r"latents: .* (\S+) evaluations", out)
    assert drew
    assert 3 < float(drew[1]) <= 9
    assert settings.skipping[:2] == others
    skipping.main()  # again, in its place
    again = read_settings(path).skipping
    assert again is not None
    assert len(again) == 3
