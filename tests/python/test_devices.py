"""Names of devices, and what auto makes of this machine."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

import intaglio
from intaglio import _core
from tests import bundles
from tests.conftest import onnxruntime_library


def options(device: str) -> _core.BackendOptions:
    return _core.BackendOptions(device=device, onnxruntime_library=onnxruntime_library())


@pytest.fixture(scope="module")
def shipped() -> Path:
    """The shipped model's bundle."""
    return bundles.bundle(bundles.SHIPPED)


def test_auto_is_the_default() -> None:
    assert _core.BackendOptions().device == "auto"
    assert _core.device_names()[0] == "auto"


@pytest.mark.parametrize("device", _core.device_names())
def test_every_device_runs_or_says_why_not(forked_bundle: Path, device: str) -> None:
    bundle = _core.Bundle.open(forked_bundle)
    said = ""
    asked = options(device)
    asked.precision = "float16" if device.endswith("npu") else "float32"
    try:
        choice = _core.make_backend(asked, bundle).choice
    except _core.UnavailableError as error:
        said = str(error)
    if said:
        assert device not in {"auto", "cpu"}
        assert device in said
    else:
        assert choice.device.startswith(device) or device == "auto"
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
    names = "^there is no device .*: device is one of " + ", ".join(_core.device_names())
    for name, says in {
        "": names,
        "CPU": names,
        "gpu": r"\(did you mean openvino:gpu\?\)",
        "npu": r"\(did you mean openvino:npu\?\)",
        "webgpus": r"\(did you mean webgpu\?\)",
        "ort-tensorrt": "it is called tensorrt now",
        "cpu:1": "there is only one cpu",
        "openvino:0": "openvino:cpu, openvino:gpu and openvino:npu",
        "cuda:": "by its number, as in cuda:0",
        "tensorrt-rtx:first": "by its number, as in tensorrt-rtx:0",
        "webgpu:1": "WebGPU chooses the GPU itself: use device webgpu",
    }.items():
        with pytest.raises(intaglio.UsageError, match=says):
            _core.make_backend(options(name), bundle)


@pytest.mark.parametrize("threads", [-1, len(os.sched_getaffinity(0)) + 1, 999])
def test_there_are_no_more_threads_than_processors(forked_bundle: Path, threads: int) -> None:
    with pytest.raises(intaglio.UsageError, match=f"^threads {threads}: give a number from 1 to"):
        intaglio.Pipeline.open(forked_bundle, device="cpu", threads=threads)


def test_precisions(forked_bundle: Path) -> None:
    """A precision other than the graph's is never taken silently, and never ignored."""
    bundle = _core.Bundle.open(forked_bundle)
    for device, precision, says in [
        ("cpu", "bf16", "device cpu, .* use an OpenVINO device"),
        *((device, "bf16", f"device {device}, .* export the model with --dtype")
          for device in ("auto", "cuda", "webgpu")),
        ("openvino", "int8", "float32, bfloat16 or float16"),
        ("openvino:gpu", "bf16", "computes in float32 or float16"),
    ]:  # fmt: skip
        asked = options(device)
        asked.precision = precision
        with pytest.raises(intaglio.UsageError, match=says):
            _core.make_backend(asked, bundle)


def test_a_plugin_that_is_not_installed(forked_bundle: Path) -> None:
    bundle = _core.Bundle.open(forked_bundle)
    says = (
        r"^device tensorrt-rtx does not work here: .*plugin.* is not installed"
        r"(; pip install 'intaglio\[tensorrt-rtx\]', or|, and this machine has no NVIDIA GPU;)"
        r" use device cpu$"
    )
    with pytest.raises(intaglio.UnavailableError, match=says):
        _core.make_backend(options("tensorrt-rtx"), bundle)


def test_devices_are_listed() -> None:
    statuses = {status.device: status for status in _core.list_devices(options("auto"))}
    names = {re.sub(r":[0-9]+$", "", device) for device in statuses}
    assert names == {*_core.device_names()} - {"auto"}
    for status in statuses.values():
        assert status.runtime.startswith(f"ONNX Runtime {version('onnxruntime')}")
        assert status.works == (status.reason == "")
        assert status.works or not status.card
        assert not status.works or not status.remedy
        if not status.works and not status.device.startswith("openvino"):
            ways = ("install", "lspci", "this machine has no")
            assert any(way in status.remedy for way in ways)
    assert statuses["cpu"].works
    assert statuses["cpu"].memory_bytes == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("library", "says"),
    [
        ("none.so", "none.so: No such file or directory; give the path"),
        ("text.so", "text.so is not a plugin that Intaglio knows: give one of .*_webgpu.so"),
    ],
)
def test_libraries_that_are_no_plugin(
    forked_bundle: Path, tmp_path: Path, library: str, says: str
) -> None:
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(intaglio.UsageError, match=says):
        intaglio.Pipeline.open(forked_bundle, provider_library=tmp_path / library)


def resident(bundle: Path, prepack: bool) -> dict[str, int]:
    """Bytes that a process which has drawn with the shipped model holds, RssAnon and RssFile."""
    program = rf"""
import pathlib, re, intaglio
pipeline = intaglio.Pipeline.open({str(bundle)!r}, device="cpu", threads=1, prepack={prepack})
pipeline.generate("a dress", steps=1)
status = pathlib.Path("/proc/self/status").read_text()
print(*re.findall(r"Rss(?:Anon|File):\s*([0-9]+) kB", status))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    anonymous, file = (int(word) * 1024 for word in done.stdout.split())
    return {"RssAnon": anonymous, "RssFile": file}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what memory is")
def test_prepacked_weights_take_the_place_of_mapped_ones(shipped: Path) -> None:
    graph = onnx.load(shipped / "transformer/forked.cpu.onnx", load_external_data=False).graph
    sizes = {tensor.name: 4 * math.prod(tensor.dims) for tensor in graph.initializer}
    matrices = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    packed = sum(sizes.get(name, 0) for name in matrices)
    assert packed > 16e6, "too little to tell"
    mapped, own = resident(shipped, prepack=False), resident(shipped, prepack=True)
    assert 0.8 * packed < own["RssAnon"] - mapped["RssAnon"] < 1.2 * packed
    assert 0.8 * packed < mapped["RssFile"] - own["RssFile"] < 1.2 * packed


def test_prepacked_weights_draw_the_same(shipped: Path) -> None:
    mapped, packed = (
        intaglio.Pipeline.open(shipped, device="cpu", prepack=prepack) for prepack in (False, True)
    )
    assert "prepacked" in packed.backend
    assert "prepacked" not in mapped.backend
    latents = packed.generate("a dress", dg_scale=1.0, steps=2).latents
    expected = mapped.generate("a dress", dg_scale=1.0, steps=2).latents
    np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-4)


def test_narrow_weights_are_not_packed() -> None:
    """They are cast in each step, so there is nothing to pack, and no message about it."""
    pipeline = intaglio.Pipeline.open(bundles.bundle(dtype="bfloat16"), device="cpu", prepack=True)
    assert "prepacked" not in pipeline.backend
