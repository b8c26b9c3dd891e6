"""OpenVINO on the CPU, against ONNX Runtime's own CPU provider.

OpenVINO's plugin takes Intel's processors only (microsoft/onnxruntime#31981). The provider inside
onnxruntime-openvino runs on all, so the tests use that build.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intaglio
from tests import bundles
from tests.conftest import onnxruntime_library
from tests.families import FAMILIES
from tests.integration.conftest import PROMPT, Command, check
from tests.library_runs import Placements
from tests.parity.diffusers_runs import CLASS

ROOT = Path(__file__).parents[2]
MODELS = (*FAMILIES, bundles.SHIPPED)
GUIDED = {"steps": 2, "cfg_scale": 3.0, "dg_scale": 1.5}
# Largest relative L2 error of the final latents. bfloat16 has 8 bits and guidance multiplies its
# error, which was up to 0.16; the bound only tells it from another picture.
LIMITS = {"float32": 1e-5, "bfloat16": 0.25}

pytestmark = pytest.mark.exports


@dataclass(frozen=True)
class Drawn:
    latents: dict[str, np.ndarray]
    placements: dict[str, Placements]


def condition(model: str) -> dict[str, Any]:
    """Return what the model draws: a prompt or a class."""
    family = FAMILIES.get(model)
    if family is not None and family.by_class:
        return {"class_label": CLASS}
    return {"prompt": PROMPT}


def run(
    name: str, bundle: Path, device: str = "openvino", precision: str = "float32", **options: Any
) -> dict[str, Any]:
    asked = {"device": device, "precision": precision, "options": GUIDED | options}
    return {"name": name, "bundle": str(bundle), **asked}


def draw(runs: list[dict[str, Any]], library: Path, out: Path) -> Drawn:
    """Draw in another process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.library_runs", str(library), str(out)], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, input=json.dumps(runs), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as latents:
        return Drawn(dict(latents), json.loads(done.stdout))


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.fixture(scope="module")
def conditions() -> dict[str, dict[str, Any]]:
    return {model: condition(model) for model in MODELS}


@pytest.fixture(scope="module")
def drawn(
    conditions: dict[str, dict[str, Any]],
    openvino_build: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Drawn:
    """Draw every model in both types, and one of them in the ways that the tests below compare."""
    runs = [
        run(f"{model} {precision}", bundles.bundle(model), precision=precision, **conditions[model])
        for model in MODELS
        for precision in LIMITS
    ]
    sd3 = bundles.bundle("sd3")
    runs += [
        run("on the cpu", sd3, device="cpu", prompt=PROMPT),
        run("again", sd3, prompt=PROMPT),
        run("in a batch", sd3, prompt=PROMPT, batch=3),
    ]
    return draw(runs, openvino_build, tmp_path_factory.mktemp("drawn") / "latents.npz")


@pytest.fixture(scope="module")
def on_the_cpu(conditions: dict[str, dict[str, Any]]) -> Callable[[str], np.ndarray]:
    """The CPU's latents of a model, which its tests share."""

    @cache
    def latents(model: str) -> np.ndarray:
        pipeline = intaglio.Pipeline.open(bundles.bundle(model), device="cpu", threads=1)
        return np.asarray(pipeline.generate(**conditions[model], **GUIDED).latents)

    return latents


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("model", MODELS)
def test_draws_what_the_cpu_draws(
    model: str,
    precision: str,
    drawn: Drawn,
    on_the_cpu: Callable[[str], np.ndarray],
    record_property: pytest.RecordProperty,
) -> None:
    found = error(drawn.latents[f"{model} {precision}"], on_the_cpu(model))
    record_property("error", found)
    print(f"{model}, {precision}: relative error {found:.1e}")
    assert 0 < found < LIMITS[precision]


@pytest.mark.parametrize("model", MODELS)
def test_each_graph_is_one_partition(model: str, drawn: Drawn) -> None:
    graphs = drawn.placements[f"{model} float32"]
    assert {name.partition("/")[0] for name in graphs} >= {"transformer", "vae_decoder"}
    for graph, placement in graphs.items():
        assert graph.endswith(".decomposed.onnx")
        assert placement == {"nodes": 1, "elsewhere": {}}, graph


def test_two_devices_in_one_process(drawn: Drawn) -> None:
    """The process draws on the CPU's provider too, and that one takes its own graphs."""
    assert 0 < error(drawn.latents["on the cpu"], drawn.latents["sd3 float32"]) < 1e-5
    assert drawn.placements["on the cpu"] == {}


def test_one_seed_gives_equal_bits_in_two_runs_and_processes(
    drawn: Drawn, openvino_build: Path, tmp_path: Path
) -> None:
    want = drawn.latents["sd3 float32"]
    np.testing.assert_array_equal(drawn.latents["again"], want)
    bundle = bundles.bundle("sd3")
    other = draw([run("other", bundle, prompt=PROMPT)], openvino_build, tmp_path / "other.npz")
    np.testing.assert_array_equal(other.latents["other"], want)


def test_one_seed_in_a_batch_differs_by_rounding_only(drawn: Drawn) -> None:
    assert error(drawn.latents["in a batch"][:1], drawn.latents["sd3 float32"]) < 1e-5


def test_names_the_nodes_that_fall_out(
    command: Command, openvino_build: Path, conditions: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Bundles of older versions lack the form. OpenVINO refuses RMSNormalization in this graph."""
    bundle = shutil.copytree(bundles.bundle("qwen-image"), tmp_path / "bundle")
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["transformer"]["graphs"]["conditioning"]["decomposed"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    line = ["--prompt", conditions["qwen-image"]["prompt"], "--steps", 2]
    line += ["--device", "openvino", "--onnxruntime", openvino_build, "--report", "report.json"]
    done = command("generate", bundle, *line)
    assert done.returncode == 0, done.stderr
    report = json.loads((command.folder / "report.json").read_text())
    elsewhere = {found["graph"]: found["elsewhere"] for found in report["placements"]}
    assert elsewhere.pop("transformer/conditioning.onnx")["CPUExecutionProvider"]
    assert not any(elsewhere.values())
    [note] = done.stderr.splitlines()
    assert note.startswith("intaglio: note: device openvino:cpu leaves ")
    assert " of transformer/conditioning.onnx to CPUExecutionProvider: " in note
    assert note.endswith(" (harmless, but it may take longer)")


def test_a_device_that_openvino_does_not_find(
    command: Command, forked_bundle: Path, openvino_build: Path
) -> None:
    line = ["generate", forked_bundle, "--prompt", PROMPT, "--device", "openvino:npu"]
    line += ["--precision", "float16", "--onnxruntime", openvino_build]
    said = check(command, 4, "device openvino:npu does not work here: ", *line)
    assert "--device cpu" in said


PLUGIN = "libonnxruntime_providers_openvino_plugin.so"
PACKAGE = "onnxruntime_ep_openvino"


def test_without_the_plugin(command: Command, forked_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime's own package has no OpenVINO inside. The plugin is looked for beside it."""
    library = shutil.copy(onnxruntime_library(), tmp_path)
    line = ["generate", forked_bundle, "--prompt", PROMPT, "--device", "openvino"]
    line += ["--onnxruntime", library]
    said = check(command, 4, "device openvino:cpu does not work here: ", *line)
    assert f"its plugin ({PACKAGE}) is not installed; " in said
    assert "pip install 'intaglio[openvino]'" in said


def test_a_plugin_that_does_not_fit(command: Command, forked_bundle: Path, tmp_path: Path) -> None:
    """A plugin of an interface before ONNX Runtime's stable one is a library without its entry."""
    built = command.program.parent / "libintaglio.so.0"
    library = Path(shutil.copy(built, tmp_path))
    words = ["g++", "-shared", "-x", "c++", "/dev/null", "-o", str(tmp_path / PLUGIN)]
    subprocess.run(words, check=True)
    line = ["generate", forked_bundle, "--prompt", PROMPT, "--device", "openvino"]
    environment = {**os.environ, "LD_PRELOAD": str(library)}  # the plugin is looked for beside it
    said = check(command, 4, "its plugin cannot be loaded (", *line, env=environment)
    assert "pip install --upgrade 'intaglio[openvino]' onnxruntime" in said
    assert "--device cpu" in said


def test_the_plugin_itself(forked_bundle: Path) -> None:
    """Where the plugin finds no device, the message says what else runs OpenVINO."""
    pytest.importorskip("onnxruntime_ep_openvino")
    said = ""
    try:
        device = intaglio.Pipeline.open(forked_bundle, device="openvino", threads=1)
    except intaglio.UnavailableError as why:
        said = str(why)
    if said:
        for words in (
            "takes processors of Intel only",
            "onnxruntime-openvino",
            "with onnxruntime,",
            "cpu",
        ):
            assert words in said
        pytest.skip(f"needs a processor that the plugin lists: {said}")
    cpu = intaglio.Pipeline.open(forked_bundle, device="cpu", threads=1)
    got, want = (x.generate(prompt=PROMPT, **GUIDED).latents for x in (device, cpu))
    assert 0 < error(np.asarray(got), np.asarray(want)) < LIMITS["float32"]
    assert all((x.nodes, x.elsewhere) == (1, {}) for x in device.placements)
