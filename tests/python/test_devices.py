"""Names of devices, and what auto makes of this machine."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

import intaglio
from intaglio import _core
from tests.conftest import onnxruntime_library


def options(device: str) -> _core.BackendOptions:
    return _core.BackendOptions(device=device, onnxruntime_library=onnxruntime_library())


def test_auto_is_the_default() -> None:
    assert _core.BackendOptions().device == "auto"
    assert _core.device_names()[0] == "auto"


@pytest.mark.parametrize("device", _core.device_names())
def test_every_device_runs_or_says_why_not(forked_bundle: Path, device: str) -> None:
    bundle = _core.Bundle.open(forked_bundle)
    said = ""
    try:
        choice = _core.make_backend(options(device), bundle).choice
    except _core.UnavailableError as error:
        said = str(error)
    if said:
        assert device not in {"auto", "cpu"}
        assert device in said
    else:
        assert choice.device == device or device == "auto"
        assert (choice.reason != "") == (device == "auto")


def test_a_pipeline_on_cpu_and_auto(forked_bundle: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = intaglio.Pipeline.open(forked_bundle, device="cpu", threads=1)
    assert pipeline.device == "cpu"
    assert intaglio.Pipeline.open(forked_bundle).device in _core.device_names()[1:]


def test_engines_that_cannot_run_are_warned_of(forked_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(forked_bundle, tmp_path / "bundle")
    engines = bundle / "engines" / "tensorrt-rtx-sm75-float32-0123abcd"
    engines.mkdir(parents=True)
    (engines / "engine.json").write_text("{}")
    with pytest.warns(UserWarning, match="running on .*, since .*tensorrt-rtx") as warned:
        intaglio.Pipeline.open(bundle)
    assert warned[0].filename == __file__


def test_unknown_devices_are_a_wrong_call(forked_bundle: Path) -> None:
    bundle = _core.Bundle.open(forked_bundle)
    for name in ("", "CPU", "gpu", "cuda:0"):
        with pytest.raises(intaglio.UsageError, match="one of auto, cpu, cuda, ort-tensorrt"):
            _core.make_backend(options(name), bundle)
