"""The op's kernel in ONNX Runtime against its function body, torch, and in whole runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from intaglio_export.networks import suppress
from tests.conftest import onnxruntime_library

PACKAGE = Path(sysconfig.get_path("platlib")) / "intaglio"
KERNEL = PACKAGE / "lib" / "libintaglio_ops.so"
GOLDEN = Path(__file__).parents[1] / "data" / "ma_suppress"
OPSET = 23
Arrays = dict[str, np.ndarray[Any, Any]]


INPUTS = (*suppress.INPUTS, suppress.SOURCE)


def one_node_model(version: int = 2) -> onnx.ModelProto:
    """The op alone, with its function; every size is dynamic."""
    names = INPUTS if version == 2 else suppress.INPUTS
    shapes = {
        "hidden": "BTC",
        "mask": "C",
        "ref": "C",
        "branch": "F",
        "keep": "FT",
        "source": "FT",
        "output": "FTC",
    }
    values = {
        name: helper.make_tensor_value_info(
            name,
            onnx.TensorProto.INT64 if name in ("branch", "source") else onnx.TensorProto.FLOAT,
            list(axes),
        )
        for name, axes in shapes.items()
    }
    node = helper.make_node(suppress.NAME, names, ["output"], domain=suppress.DOMAIN)
    graph = helper.make_graph([node], "op", [values[n] for n in names], [values["output"]])
    imports = [
        helper.make_opsetid("", OPSET),
        helper.make_opsetid(suppress.DOMAIN, version),
    ]
    functions = [suppress.function_proto(OPSET, with_source=version == 2)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def open_session(
    model: bytes | str, kernel: bool, profile: Path | None = None, threads: int = 1
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if kernel:
        options.register_custom_ops_library(str(KERNEL))
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@cache
def one_node_session(kernel: bool, threads: int = 1, version: int = 2) -> ort.InferenceSession:
    return open_session(one_node_model(version).SerializeToString(), kernel, threads=threads)


@cache
def reference() -> ReferenceEvaluator:
    return ReferenceEvaluator(one_node_model())


def run_torch(inputs: Arrays) -> np.ndarray[Any, Any]:
    return suppress.ma_suppress(**{k: torch.from_numpy(v) for k, v in inputs.items()}).numpy()


def assert_same_bits(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> None:
    """Equal bits; which of its payloads a computed NaN has is open."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype == np.float32
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert same.all(), (got[~same], want[~same])


def positive_zeros(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """ONNX Runtime's own Where turns -0.0 into 0.0 (cpp/ops/SPEC.md)."""
    return np.where(values == 0, np.float32(0), values)


@st.composite
def op_inputs(draw: st.DrawFn) -> Arrays:
    """Any sizes, from one token to several tasks of the kernel; odd values anywhere."""
    size = st.integers(1, 5)
    rows, outputs = draw(size), draw(size)
    tokens = draw(st.one_of(st.integers(1, 9), st.integers(60, 200)))
    channels = draw(st.integers(1, 35))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hidden = random.normal(size=(rows, tokens, channels)) * 100
    for odd in draw(st.sets(st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 1e-45]))):
        hidden[random.random(hidden.shape) < 0.05] = odd
    ref = random.normal(size=channels)
    ref[random.random(channels) < 0.1] = draw(st.sampled_from([0.0, np.inf, np.nan]))
    keep = random.random((outputs, tokens))
    keep[random.random(keep.shape) < 0.3] = 1.0
    keep[random.random(keep.shape) < 0.3] = 0.0
    keep[random.random(keep.shape) < 0.1] = 1.5
    source = random.integers(rows * tokens + 1, size=keep.shape)
    source[random.random(keep.shape) < 0.5] = 0
    inputs = {"hidden": hidden, "mask": random.random(channels) < 0.4, "ref": ref, "keep": keep}
    return {k: v.astype(np.float32) for k, v in inputs.items()} | {
        "branch": random.integers(rows, size=outputs),
        "source": source,
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # inf * 0 in numpy
@settings(max_examples=150, deadline=None)
@given(op_inputs())
def test_all_implementations_agree_bit_for_bit(inputs: Arrays) -> None:
    want = run_torch(inputs)
    assert_same_bits(one_node_session(kernel=True).run(None, inputs)[0], want)
    assert_same_bits(one_node_session(kernel=True, threads=2).run(None, inputs)[0], want)
    assert_same_bits(reference().run(None, inputs)[0], want)
    body = one_node_session(kernel=False).run(None, inputs)[0]
    assert_same_bits(positive_zeros(body), positive_zeros(want))
    del inputs["source"]
    older = one_node_session(kernel=True, version=1).run(None, inputs)[0]
    assert_same_bits(older, run_torch(inputs))


def test_golden_tensors() -> None:
    golden = {name: np.load(GOLDEN / f"{name}.npy") for name in (*INPUTS, "output")}
    want = golden.pop("output")
    assert_same_bits(one_node_session(kernel=True).run(None, golden)[0], want)
    body = one_node_session(kernel=False).run(None, golden)[0]
    assert_same_bits(positive_zeros(body), positive_zeros(want))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("branch", np.array([0, 2]), r"branch\[1\] is 2, but hidden has 2 rows"),
        ("branch", np.array([-1, 0]), r"branch\[0\] is -1, but hidden has 2 rows"),
        ("mask", np.zeros(4, np.float32), r"mask is \[4\], which does not fit"),
        ("ref", np.zeros(2, np.float32), r"ref is \[2\], which does not fit"),
        ("keep", np.zeros((2, 5), np.float32), r"keep is \[2, 5\], which does not fit"),
        ("keep", np.zeros((1, 4), np.float32), r"keep is \[1, 4\], which does not fit"),
        ("source", np.zeros((2, 5), int), r"source is \[2, 5\], which does not fit"),
        ("source", np.full((2, 4), 9), r"source has the value 9, but hidden has 8 tokens"),
        ("source", np.full((2, 4), -1), r"source has the value -1, but hidden has 8 tokens"),
    ],
)
def test_kernel_refuses_what_does_not_fit(
    name: str, value: np.ndarray[Any, Any], message: str
) -> None:
    model = one_node_model()
    for tensor in model.graph.input:  # equal names of axes would make ONNX Runtime warn first
        for axis in tensor.type.tensor_type.shape.dim:
            axis.ClearField("dim_param")
    inputs: Arrays = {
        "hidden": np.ones((2, 4, 3), np.float32),
        "mask": np.ones(3, np.float32),
        "ref": np.ones(3, np.float32),
        "branch": np.array([0, 1]),
        "keep": np.ones((2, 4), np.float32),
        "source": np.full((2, 4), 8),
    }
    session = open_session(model.SerializeToString(), kernel=True)
    session.run(None, inputs)
    with pytest.raises(Exception, match=message):
        session.run(None, inputs | {name: value})


def random_feeds(session: ort.InferenceSession) -> Arrays:
    """Inputs of a transformer graph: two rows that fork to three, 6 x 4 patches."""
    random = np.random.default_rng(3)
    sizes = {"base_rows": 2, "rows": 3, "tokens": 24, "text_length": 7}
    sizes |= {"latent_height": 12, "latent_width": 8}
    forked = any(tensor.name == "branch" for tensor in session.get_inputs())
    sizes["rows"] = 3 if forked else 2
    feeds: Arrays = {}
    for tensor in session.get_inputs():
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        feeds[tensor.name] = random.normal(size=shape).astype(np.float32)
    feeds["mask"] = (feeds["mask"] > 0.5).astype(np.float32)
    feeds["keep"] = np.tile(np.linspace(0, 1, 24, dtype=np.float32), (sizes["rows"], 1))
    if forked:
        feeds["branch"] = np.array([0, 1, 1])
        feeds["keep"][:2] = 1
        feeds["source"] = np.zeros((3, 24), int)
        feeds["source"][2, ::2] = 1 + np.arange(24)[::2]
    return feeds


def operators_run(session: ort.InferenceSession) -> list[str]:
    events = json.loads(Path(session.end_profiling()).read_text())
    return [e["args"]["op_name"] for e in events if "op_name" in e.get("args", {})]


@pytest.mark.parametrize("graph", ["forked", "degraded"])
def test_exported_graph_runs_the_kernel_and_gives_the_same(
    graph: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    layout = "dual_bundle" if graph == "degraded" else "forked_bundle"
    path = str(request.getfixturevalue(layout) / "transformer" / f"{graph}.onnx")
    outputs, operators = [], []
    for kernel in (True, False):
        session = open_session(path, kernel, profile=tmp_path / "profile")
        outputs.append(session.run(None, random_feeds(session))[0])
        operators.append(operators_run(session))
    assert operators[0].count(suppress.NAME) == 1
    assert suppress.NAME not in operators[1]
    assert_same_bits(outputs[0], outputs[1])


def generate(package: Path, bundle: Path, output: Path) -> dict[str, Any]:
    """A run of the command that lies in `package`; its report."""
    command = [package / "bin" / "intaglio", "generate", bundle, "--prompt", "the dark boot"]
    command += ["--steps", "3", "--cfg-scale", "2", "--dg-scale", "1", "-o", f"{output}.png"]
    command += ["--latents-out", f"{output}.npy", "--report", f"{output}.json"]
    command += ["--onnxruntime", onnxruntime_library()]
    subprocess.run(command, check=True, capture_output=True)
    report: dict[str, Any] = json.loads(Path(f"{output}.json").read_text())
    return report


def test_whole_runs_with_and_without_the_library_are_equal(bundle: Path, tmp_path: Path) -> None:
    package = tmp_path / "intaglio"
    for folder in ("bin", "lib"):
        shutil.copytree(PACKAGE / folder, package / folder)
    with_kernel = generate(package, bundle, tmp_path / "with")
    (package / "lib" / KERNEL.name).unlink()
    without = generate(package, bundle, tmp_path / "without")
    assert with_kernel["backend"] == without["backend"] + ", fused MASuppress"
    assert_same_bits(np.load(tmp_path / "with.npy"), np.load(tmp_path / "without.npy"))
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "without.png").read_bytes()


def test_a_damaged_library_is_named(forked_bundle: Path, tmp_path: Path) -> None:
    package = tmp_path / "intaglio"
    for folder in ("bin", "lib"):
        shutil.copytree(PACKAGE / folder, package / folder)
    (package / "lib" / KERNEL.name).write_bytes(b"not a library")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        generate(package, forked_bundle, tmp_path / "out")
    assert KERNEL.name.encode() in failed.value.stderr
    assert not (tmp_path / "out.png").exists()
