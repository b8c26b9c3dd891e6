"""The loop on a device that has memory of its own, against the CPU.

ONNX Runtime's build for WebGPU runs on SwiftShader, a Vulkan device in software, so the tests need
no GPU. A provider with its own memory shows what the CPU's cannot: a tensor that is not copied to
the device, or not back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import bundles
from tests.integration.conftest import PROMPT, Command

ROOT = Path(__file__).parents[2]
SWIFTSHADER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")

pytestmark = pytest.mark.exports


def draw(bundle: Path, device: str, library: Path, out: Path) -> dict[str, np.ndarray]:
    """Draw everything of tests/device_runs.py in a process of its own."""
    environment = {**os.environ, "VK_ICD_FILENAMES": str(SWIFTSHADER), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "tests.device_runs", bundle, device, library, out]
    done = subprocess.run(
        [os.fspath(word) for word in line], cwd=ROOT, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as drawn:
        return dict(drawn)


@pytest.mark.parametrize(("family", "layout"), [(bundles.SHIPPED, "forked"), ("sd3", "dual")])
@pytest.mark.reported("microsoft/onnxruntime#5857", "microsoft/onnxruntime#29782")
def test_a_device_with_its_own_memory_draws_what_the_cpu_draws(
    family: str, layout: str, webgpu_build: Path, tmp_path: Path
) -> None:
    """Each run reads the inputs of its own step, also where ONNX Runtime copies bound inputs."""
    bundle = bundles.bundle(family, layout)
    want = draw(bundle, "cpu", webgpu_build, tmp_path / "cpu.npz")
    got = draw(bundle, "webgpu", webgpu_build, tmp_path / "webgpu.npz")
    assert got.keys() == want.keys()
    for name, latents in want.items():
        error = np.linalg.norm(got[name] - latents) / np.linalg.norm(latents)
        assert error < 1e-4, name
        assert error > 0, f"{name}: the CPU drew this"


def test_says_which_nodes_the_cpu_ran(
    command: Command, forked_bundle: Path, webgpu_build: Path
) -> None:
    """WebGPU leaves the arithmetic of shapes to the CPU."""
    line = ["generate", forked_bundle, "--prompt", PROMPT, "--device", "webgpu", "--steps", 1]
    line += ["--onnxruntime", webgpu_build, "--report", "report.json"]
    environment = {**os.environ, "VK_ICD_FILENAMES": str(SWIFTSHADER)}
    done = command(*line, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads((command.folder / "report.json").read_text())
    placements = {found["graph"]: found for found in report["placements"]}
    loop = placements["transformer/forked.onnx"]
    assert loop["nodes"] > 100
    operators = loop["elsewhere"]["CPUExecutionProvider"]
    assert "Shape" in operators
    count = sum(operators.values())
    note = f"device webgpu leaves {count} nodes of transformer/forked.onnx to CPUExecutionProvider"
    assert note in done.stderr


def test_without_a_gpu_it_says_what_is_missing(
    command: Command, forked_bundle: Path, webgpu_build: Path
) -> None:
    line = ["generate", forked_bundle, "--prompt", PROMPT, "--device", "webgpu", "-o", "a.png"]
    line += ["--onnxruntime", webgpu_build]
    environment = {**os.environ, "VK_ICD_FILENAMES": "/nowhere"}
    done = command(*line, env=environment)
    assert done.returncode == 4
    assert "device webgpu does not work here: there is no GPU" in done.stderr
    assert "--device cpu" in done.stderr
    assert not (command.folder / "a.png").exists()
