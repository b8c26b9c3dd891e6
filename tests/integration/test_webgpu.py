"""The loop on a device that has memory of its own, against the CPU.

ONNX Runtime's build for WebGPU runs on SwiftShader, a Vulkan device in software, so the tests need
no GPU. A provider with its own memory shows what the CPU's cannot: a tensor that is not copied to
the device, or not back.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import intaglio
from intaglio import _core
from tests import bundles
from tests.integration.conftest import PROMPT, Command
from tests.vulkan.draw import DRAWN

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


@pytest.mark.parametrize("layout", ["forked", "dual"])
@pytest.mark.reported("microsoft/onnxruntime#5857", "microsoft/onnxruntime#29782")
def test_a_device_with_its_own_memory_draws_what_the_cpu_draws(
    layout: str, webgpu_build: Path, tmp_path: Path
) -> None:
    """Each run reads the inputs of its own step, also where ONNX Runtime copies bound inputs."""
    bundle = bundles.bundle("sd3", layout)
    want = draw(bundle, "cpu", webgpu_build, tmp_path / "cpu.npz")
    got = draw(bundle, "webgpu", webgpu_build, tmp_path / "webgpu.npz")
    assert got.keys() == want.keys()
    for name, latents in want.items():
        error = np.linalg.norm(got[name] - latents) / np.linalg.norm(latents)
        assert error < 1e-4, name
        assert error > 0, f"{name}: the CPU drew this"


@pytest.fixture
def counting(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose copies and buffers are counted, in copies.log and
    buffers.log."""
    vulkan, layer = ROOT / "tests" / "vulkan", tmp_path / "libcount_copies.so"
    compiler = ["g++", "-std=c++20", "-shared", "-fPIC", vulkan / "count_copies.cpp", "-o", layer]
    subprocess.run(compiler, check=True)
    shutil.copy(vulkan / "count_copies.json", tmp_path)
    return {
        **os.environ,
        "VK_ICD_FILENAMES": str(SWIFTSHADER),
        "VK_LAYER_PATH": str(tmp_path),
        "VK_INSTANCE_LAYERS": "VK_LAYER_INTAGLIO_count_copies",
        "COPIES_LOG": str(tmp_path / "copies.log"),
        "BUFFERS_LOG": str(tmp_path / "buffers.log"),
    }


def most_bytes(counting: dict[str, str]) -> int:
    """The most that the device's buffers held at once."""
    return int(Path(counting["BUFFERS_LOG"]).read_text().split()[-1])


@pytest.mark.parametrize("in_turn", [False, True], ids=["together", "in-turn"])
def test_steps_copy_no_latents_between_host_and_device(
    in_turn: bool, webgpu_build: Path, counting: dict[str, str], tmp_path: Path
) -> None:
    """Between two steps only the numbers that shaders take cross, which are a few bytes each.

    The shipped model draws what it draws on the CPU, in buffers of the size that is planned.
    """
    bundle, drawn = bundles.bundle(bundles.SHIPPED), tmp_path / "latents.npy"
    log = tmp_path / "copies.log"
    opened = _core.Bundle.open(bundle)
    plan = _core.plan_memory(opened, DRAWN, device="webgpu")
    line = [sys.executable, "-m", "tests.vulkan.draw", bundle, webgpu_build, log, drawn]
    if in_turn:
        limit = str(plan.peak - 1)
        plan = _core.plan_memory(opened, DRAWN, device="webgpu", max_memory=limit)
        line.append(limit)
    assert plan.in_turn == in_turn
    done = subprocess.run(line, cwd=ROOT, env=counting, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert most_bytes(counting) <= plan.peak <= 1.2 * most_bytes(counting)
    got = np.load(drawn)
    want = intaglio.Pipeline.open(bundle, device="cpu", threads=1).generate(**DRAWN).latents
    assert 0 < np.linalg.norm(got - np.asarray(want)) < 1e-4 * np.linalg.norm(want)
    before, *steps = re.split(r"step \d\n", log.read_text())
    assert len(steps) == 3
    assert max(map(int, before.split())) > got.nbytes  # the layer sees the weights and the noise
    copies = [int(size) for step in steps[:-1] for size in step.split()]
    assert copies
    assert max(copies) < got.nbytes, Counter(copies)


def test_references_are_seen_and_may_be_absent(command: Command, webgpu_build: Path) -> None:
    """Without a picture the graph's inputs for references have no rows."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(command.folder / "reference.png")
    line = ["generate", bundles.bundle("flux2-klein"), "--prompt", PROMPT, "--height", 32]
    line += ["--width", 48, "--steps", 1, "--cfg-scale", 3, "--dg-scale", 1, "--seed", 1]
    environment = {**os.environ, "VK_ICD_FILENAMES": str(SWIFTSHADER)}
    devices = {"cpu": [], "webgpu": ["--onnxruntime", webgpu_build]}
    found = {}
    for number, pictures in enumerate(([], ["--image", "reference.png"])):
        for device, library in devices.items():
            out = ["--device", device, *library, "--latents-out", f"{device}{number}.npy"]
            done = command(*line, *pictures, *out, env=environment)
            assert done.returncode == 0, done.stderr
            found[device, number] = np.load(command.folder / f"{device}{number}.npy")
    for number in (0, 1):
        wanted = found["cpu", number]
        error = np.linalg.norm(found["webgpu", number] - wanted)
        assert 0 < error < 1e-4 * np.linalg.norm(wanted)
    assert np.linalg.norm(found["cpu", 0] - found["cpu", 1]) > 0.1 * np.linalg.norm(found["cpu", 0])


def test_an_encoder_that_does_not_fit_runs_on_the_cpu(
    command: Command, forked_bundle: Path, webgpu_build: Path
) -> None:
    """The transformer stays on the device, and the latents are those of the CPU."""
    bundle = command.folder / "bundle"
    shutil.copytree(forked_bundle, bundle)
    enlarge(bundle, "text_encoder_2/weights.data", 20_000_000)
    sizes = {"steps": 2, "cfg_scale": 3.0, "dg_scale": 1.0}
    environment = {**os.environ, "VK_ICD_FILENAMES": str(SWIFTSHADER)}
    opened = _core.Bundle.open(bundle)
    parts = _core.plan_memory(opened, sizes, device="webgpu").phases
    others = [part for part in parts if part.part != "text_encoder_2"]
    limit = max(p.weights for p in others) + sum(p.activations for p in others)
    plan = _core.plan_memory(opened, sizes, device="webgpu", max_memory=str(limit))
    assert [p.part for p in plan.phases if p.on_cpu] == ["text_encoder_2"]
    line = ["generate", bundle, "--prompt", PROMPT, "--onnxruntime", webgpu_build]
    for name, value in sizes.items():
        line += [f"--{name.replace('_', '-')}", value]
    drawn, reports = {}, {}
    for device, limits in {"cpu": [], "webgpu": ["--max-memory", limit]}.items():
        outputs = ["--latents-out", f"{device}.npy", "--report", f"{device}.json"]
        done = command(*line, "--device", device, *limits, *outputs, env=environment)
        assert done.returncode == 0, done.stderr
        drawn[device] = np.load(command.folder / f"{device}.npy")
        reports[device] = json.loads((command.folder / f"{device}.json").read_text())
    error = np.linalg.norm(drawn["webgpu"] - drawn["cpu"])
    assert 0 < error < 1e-4 * np.linalg.norm(drawn["cpu"])
    graphs = {placed["graph"].partition("/")[0] for placed in reports["webgpu"]["placements"]}
    assert graphs == {"text_encoder", "transformer", "vae_decoder"}


def enlarge(bundle: Path, file: str, size: int) -> None:
    """Add bytes that nothing reads to a file of a bundle."""
    (bundle / file).unlink()  # a hard link
    data = (bundles.bundle() / file).read_bytes().ljust(size, b"\0")
    (bundle / file).write_bytes(data)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][file] = {"bytes": size, "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "bundle.json").unlink()
    (bundle / "bundle.json").write_text(json.dumps(manifest))


# The plugin lists a device without a GPU only then.
SOFTWARE = {"VK_ICD_FILENAMES": str(SWIFTSHADER), "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}


def test_the_plugin_draws_the_same_beside_the_common_build(
    entry_point: Command, forked_bundle: Path
) -> None:
    """The plugin is found in its package, beside a build of ONNX Runtime without WebGPU."""
    environment = {**os.environ, **SOFTWARE}
    devices = json.loads(entry_point("devices", "--json", env=environment).stdout)
    webgpu = next(device for device in devices if device["device"] == "webgpu")
    assert webgpu["works"]
    assert webgpu["runtime"].endswith(
        f", WebGpuExecutionProvider {version('onnxruntime-ep-webgpu')}"
    )
    for device in ("cpu", "webgpu"):
        line = ["generate", forked_bundle, "--prompt", PROMPT, "--steps", 2, "--dg-scale", 1]
        line += ["--device", device, "--latents-out", f"{device}.npy", "-o", f"{device}.png"]
        done = entry_point(*line, "--report", f"{device}.json", env=environment)
        assert done.returncode == 0, done.stderr
    report = json.loads((entry_point.folder / "webgpu.json").read_text())
    assert (report["device"], report["precision"]) == ("webgpu", "float32")
    got, want = (np.load(entry_point.folder / f"{device}.npy") for device in ("webgpu", "cpu"))
    assert 0 < np.linalg.norm(got - want) < 1e-4 * np.linalg.norm(want)


def test_a_deployed_folder_takes_the_plugin_along(
    entry_point: Command, forked_bundle: Path
) -> None:
    (spec,) = importlib.util.find_spec("onnxruntime_ep_webgpu").submodule_search_locations or ()
    plugin = Path(spec) / "libonnxruntime_providers_webgpu.so"
    line = ["deploy", "folder", forked_bundle, "-o", "out", "--provider-library", plugin]
    assert entry_point(*line).returncode == 0
    out = entry_point.folder / "out"
    assert f"`lib/onnxruntime_ep_webgpu/{plugin.name}`" in (out / "README.md").read_text()
    assert "see its vendor" not in (out / "README.md").read_text()
    bare = {"PATH": "/usr/bin:/bin", **SOFTWARE}
    done = subprocess.run(
        [out / "smoke_test.sh", "--device", "webgpu"], env=bare, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("smoke test passed")


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
    graph = "transformer/forked.decomposed.onnx"
    loop = placements[graph]
    assert loop["nodes"] > 100
    operators = loop["elsewhere"]["CPUExecutionProvider"]
    assert "Shape" in operators
    assert not {"Attention", "MatMul", "Softmax"} & set(operators)
    count = sum(operators.values())
    note = f"device webgpu leaves {count} nodes of {graph} to CPUExecutionProvider"
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
