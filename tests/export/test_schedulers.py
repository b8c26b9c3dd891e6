"""Which schedulers a bundle may name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from intaglio_export import exporter
from intaglio_export.adapters import FluxAdapter, SD3Adapter
from intaglio_export.adapters.schedulers import check_scheduler, scheduler_entry
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from tests.families.sd3 import make_pipeline

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    ("scheduler", "prediction_type"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1), "velocity"),
        (
            FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
            "velocity",
        ),
        (FlowMatchEulerDiscreteScheduler(shift=3.0, use_beta_sigmas=True), "velocity"),
        (FlowMatchHeunDiscreteScheduler(shift=2.0), "velocity"),
        (DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0), "velocity"),
        (DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"), "velocity"),
        (UniPCMultistepScheduler(**FLOW, flow_shift=3.0), "velocity"),
        (FlowMatchLCMScheduler(shift=3.0), "velocity"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "velocity"),
        (UniPCMultistepScheduler(), "epsilon"),
        (DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), "epsilon"),
        (DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1), "epsilon"),
        (DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2"), "epsilon"),
        (
            DPMSolverMultistepScheduler.from_config(DDIMScheduler(clip_sample=True).config),
            "epsilon",
        ),
    ],
)
def test_those_of_the_runtime_are_written_verbatim(scheduler: Any, prediction_type: str) -> None:
    check_scheduler(scheduler, prediction_type)
    entry = scheduler_entry(scheduler, 1.16)
    json.dumps(entry, allow_nan=False)
    assert entry.pop("type") == type(scheduler).__name__
    assert entry.items() <= dict(scheduler.config).items()
    left_out = {key for key in scheduler.config if key not in entry and not key.startswith("_")}
    assert left_out <= {"lambda_min_clipped", "timestep_spacing"}


def test_a_spacing_is_written_where_it_was_given() -> None:
    """`from_config` of another class hands on just that."""
    given = DDIMScheduler(timestep_spacing="leading")
    assert scheduler_entry(given, 1.15)["timestep_spacing"] == "leading"
    for own in (DDIMScheduler(), DPMSolverMultistepScheduler()):
        assert "timestep_spacing" not in scheduler_entry(own, 1.15)


def test_the_shift_that_the_pipeline_falls_back_to_is_written() -> None:
    """StableDiffusion3Pipeline's is not that of the others, which the runtime has."""
    dynamic = DPMSolverMultistepScheduler(**FLOW, use_dynamic_shifting=True)
    assert scheduler_entry(dynamic, SD3Adapter.max_shift)["max_shift"] == 1.16
    assert scheduler_entry(dynamic, FluxAdapter.max_shift)["max_shift"] == 1.15
    assert "max_shift" not in scheduler_entry(DPMSolverMultistepScheduler(**FLOW), 1.16)
    said = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9)
    assert scheduler_entry(said, 1.16)["max_shift"] == 0.9


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (EulerDiscreteScheduler(), "scheduler EulerDiscreteScheduler"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (FlowMatchLCMScheduler(scale_factors=[0.5, 1.0]), "scale_factors"),
        (DPMSolverMultistepScheduler(), "use_flow_sigmas"),
        (UniPCMultistepScheduler(**FLOW, solver_type="bh1"), "solver_type"),
        (UniPCMultistepScheduler(**FLOW, disable_corrector=[0]), "disable_corrector"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True), "prediction_type"),
        *(
            (DPMSolverMultistepScheduler(**FLOW | {key: value}), key)
            for key, value in {
                "solver_order": 3,
                "solver_type": "heun",
                "use_karras_sigmas": True,
                "use_beta_sigmas": True,
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
        check_scheduler(scheduler, "velocity")
    assert caught.value.exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (EulerDiscreteScheduler(), "EulerDiscreteScheduler for a model that predicts epsilon"),
        (FlowMatchEulerDiscreteScheduler(), "DDIMScheduler, DPMSolverMultistepScheduler"),
        (DDIMScheduler(), "clip_sample"),
        (DDIMScheduler(clip_sample=False, thresholding=True), "thresholding"),
        (DDIMScheduler(clip_sample=False, trained_betas=[0.1, 0.2]), "trained_betas"),
        (DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
        (DDIMScheduler(clip_sample=False, prediction_type="v_prediction"), "prediction_type"),
        (DPMSolverMultistepScheduler(**FLOW), "use_flow_sigmas"),
        *(
            (DPMSolverMultistepScheduler(**{key: value}), key)
            for key, value in {
                "prediction_type": "sample",
                "solver_order": 3,
                "use_karras_sigmas": True,
                "final_sigmas_type": "sigma_min",
                "lambda_min_clipped": -5.1,
                "variance_type": "learned_range",
                "rescale_betas_zero_snr": True,
            }.items()
        ),
    ],
)
def test_others_of_epsilon_models_are_refused_by_name(scheduler: Any, says: str) -> None:
    with pytest.raises(ExportError, match=f" {says}\\b"):
        check_scheduler(scheduler, "epsilon")


def test_a_class_of_epsilon_models_does_not_sample_velocity() -> None:
    with pytest.raises(ExportError, match="DDIMScheduler for a model that predicts velocity"):
        check_scheduler(DDIMScheduler(clip_sample=False), "velocity")


def test_one_is_refused_before_the_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipeline.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(exporter, "calibrate", None)
    with pytest.raises(ExportError, match="invert_sigmas"):
        export_bundle(ExportRequest(tmp_path / "model", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
