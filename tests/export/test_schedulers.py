"""Which schedulers a bundle may name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from intaglio_export import exporter
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from intaglio_export.schedulers import check_scheduler, scheduler_entry
from tests.families.sd3 import make_pipeline

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        FlowMatchHeunDiscreteScheduler(shift=2.0),
        DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0),
    ],
)
def test_those_of_the_runtime_are_written_verbatim(scheduler: Any) -> None:
    check_scheduler(scheduler)
    entry = scheduler_entry(scheduler)
    json.dumps(entry, allow_nan=False)
    assert entry.pop("type") == type(scheduler).__name__
    assert entry.items() <= dict(scheduler.config).items()
    left_out = {key for key in scheduler.config if key not in entry and not key.startswith("_")}
    assert left_out <= {"lambda_min_clipped"}


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (EulerDiscreteScheduler(), "scheduler EulerDiscreteScheduler"),
        (FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True), "use_karras_sigmas"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
        (DPMSolverMultistepScheduler(), "use_flow_sigmas"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True), "prediction_type"),
        *(
            (DPMSolverMultistepScheduler(**FLOW | {key: value}), key)
            for key, value in {
                "algorithm_type": "sde-dpmsolver++",
                "solver_order": 3,
                "solver_type": "heun",
                "thresholding": True,
                "use_lu_lambdas": True,
                "euler_at_final": True,
                "lower_order_final": False,
                "final_sigmas_type": "sigma_min",
            }.items()
        ),
    ],
)
def test_others_are_refused_by_name(scheduler: Any, says: str) -> None:
    with pytest.raises(ExportError, match=f" {says}\\b") as caught:
        check_scheduler(scheduler)
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_one_is_refused_before_the_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_exponential_sigmas=True)
    pipeline.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(exporter, "observe", None)
    with pytest.raises(ExportError, match="use_exponential_sigmas"):
        export_bundle(ExportRequest(tmp_path / "model", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
