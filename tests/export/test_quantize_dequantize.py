"""Q/DQ for engines: which products, the rounding, the errors in the manifest, and engines."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

import intaglio
from intaglio_export.bundle.verify import BUDGET, DIFFERENCE_BUDGET, open_session
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.exporter import export_bundle
from intaglio_export.options import QDQ, ExportRequest
from intaglio_export.passes.products import SMALLEST
from intaglio_export.passes.quantize_dequantize import quantize_dequantize
from intaglio_export.passes.simulate_fp4 import simulate_fp4
from tests import bundles
from tests.export.engines import ENTRY_POINT, RTX, Run, assert_whole, build, read, without_engines
from tests.families import FAMILIES
from tests.families.sd3 import PLANTED

# The layers of diffusers' transformers whose products are quantised.
QUANTIZED = re.compile(
    r"(to_q|to_k|to_v|to_gate|add_[qkv]_proj|net\.0\.proj|ff\.gate|ff\.up|proj_mlp|to_qkv_mlp_proj"
    r"|linear_in|w1|w3)$"
)
# PixArt's cross-attention reads the projected prompt, which has no norm.
READS_NO_NORM = re.compile(r"attn2\.to_[kv]$")


@pytest.fixture(scope="module", params=QDQ)
def quantized(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, bundles.bundle(quantize=request.param)


def graph_of(bundle: Path, name: str = "forked") -> onnx.ModelProto:
    return onnx.load(bundle / "transformer" / f"{name}.onnx")


def with_anchor(bundle: Path, folder: Path) -> ir.Model:
    """The graph of a bundle without quantisation, as the exporter passes it to the pass."""
    shutil.copytree(bundle / "transformer", folder)  # the cache's files are hard links
    made = ir.load(folder / "forked.onnx")
    shape, dtype = ir.Shape(["base_rows"]), ir.TensorType(ir.DataType.INT64)
    made.graph.inputs.append(ir.Value(name="anchor", shape=shape, type=dtype))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_products_of_blocks_that_do_not_write_the_stream(family: str, tmp_path: Path) -> None:
    """By the names of diffusers' layers, whose weights are found in the graph by their values."""
    made = with_anchor(bundles.bundle(family), tmp_path / "graph")
    quantize_dequantize(made, "int8-qdq")
    held = {n: v.const_value.numpy() for n, v in made.graph.initializers.items() if v.const_value}
    matrices = [
        (values.astype(np.float32) / 128 * held[name.replace("_quantized", "_scale")]).T
        for name, values in held.items()
        if name.endswith("_quantized")
    ]
    layers = FAMILIES[family].make().transformer.state_dict()
    weights = {
        name.removesuffix(".weight"): weight.numpy()
        for name, weight in layers.items()
        if weight.ndim == 2 and weight.numel() >= SMALLEST
    }
    found = [name for matrix in matrices for name, w in weights.items() if near(matrix, w)]
    # Layers of diffusers' last block whose result nothing reads are not in the graph, nor those of
    # Krea 2's fusion of the prompt.
    expected = {
        name
        for name in weights
        if QUANTIZED.search(name)
        and not (family == "pixart-sigma" and READS_NO_NORM.search(name))
        and not name.startswith("text_fusion.")
    }
    assert len(found) == len(matrices)
    assert set(found) <= expected
    assert len(expected - set(found)) <= 3, sorted(expected - set(found))


def near(matrix: np.ndarray, weight: np.ndarray) -> bool:
    steps = np.abs(weight).max(axis=-1, keepdims=True) / 127
    return matrix.shape == weight.shape and bool((np.abs(matrix - weight) <= 0.51 * steps).all())


def product(weight: np.ndarray, dtype: str) -> ir.Model:
    """A product of a norm, and one whose result is added to the stream."""
    k, n = weight.shape
    name = "float" if dtype == "float32" else dtype
    number = {"float32": 1, "float16": 10, "bfloat16": 16}[dtype]
    text = f"""<ir_version: 10, opset_import: ["": 23]>
        g (float[r, t, {k}] x, int64[r] anchor, int64[f] branch) => (float[r, t, {n}] y)
        <float[r, t, {k}] h, {name}[r, t, {k}] h_low, {name}[r, t, {n}] y_low>
        {{ h = LayerNormalization<axis = -1>(x, one)
           h_low = Cast<to = {number}>(h)
           y_low = MatMul(h_low, w)
           y_wide = Cast<to = 1>(y_low)
           y = Relu(y_wide) }}"""
    if dtype == "float32":
        text = text.replace("h_low = Cast<to = 1>(h)", "").replace("h_low, w", "h, w")
        text = text.replace("y_wide = Cast<to = 1>(y_low)", "").replace("y_wide", "y_low")
    made = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    stored = weight.astype(ir.DataType(number).numpy())
    for name, values in {"w": stored, "one": np.ones(k, np.float32)}.items():
        register(made, name, values)
    return made


def register(made: ir.Model, name: str, values: np.ndarray) -> None:
    """Give a name that nodes read its values."""
    tensor = ir.tensor(values, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(values.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    for node in made.graph:
        for index, used in enumerate(node.inputs):
            if used is not None and used.name == name:
                node.replace_input_with(index, value)
    made.graph.register_initializer(value)


def rounded(x: np.ndarray, scheme: str) -> np.ndarray:
    """Numbers up to 1, rounded; blocks of FP4 are along the last axis."""
    if scheme == "fp4":
        blocks = x.reshape(*x.shape[:-1], -1, 16)
        largest = np.abs(blocks).max(-1, keepdims=True) * 448
        scales = largest.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) / (448 * 6)
        return ((blocks / scales).astype(ml_dtypes.float4_e2m1fn) * scales).reshape(x.shape)
    if scheme == "fp8":
        return (x * 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) / 448
    return np.rint(x * 127) / 127


@pytest.mark.parametrize("scheme", QDQ)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_rounding_is_that_of_numpy(scheme: str, dtype: str, tmp_path: Path) -> None:
    """D_c's row rounded by itself, D_m's as its difference, and a massive channel not at all."""
    draw = np.random.default_rng(2)
    weight = 0.02 * draw.standard_normal((64, 48)).astype(np.float32)
    x = draw.standard_normal((1, 20, 64)).astype(np.float32)
    x[..., PLANTED] += 400.0
    x = np.concatenate([x, x + 0.05 * draw.standard_normal(x.shape).astype(np.float32)])
    made = product(weight, dtype)
    weight = np.array(made.graph.initializers["w"].const_value.numpy(), np.float32)  # type: ignore[union-attr]
    quantize_dequantize(made, scheme, [PLANTED])
    kept = np.array([c != PLANTED for c in range(64)])
    h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    others = np.where(kept[:, None], weight, 0)
    columns = np.abs(others).max(0)
    parts = []
    for rows in (h[0] * kept, (h[1] - h[0]) * kept):
        largest = np.abs(rows).max(-1, keepdims=True)
        inside = rounded(rows / largest, scheme) @ rounded((others / columns).T, scheme).T
        parts.append(inside * largest * columns)
    exact = h[..., ~kept] @ weight[~kept]
    want = np.maximum(np.stack([parts[0], parts[0] + parts[1]]) + exact, 0)
    ir.save(made, tmp_path / "g.onnx")
    onnx.checker.check_model(tmp_path / "g.onnx", full_check=True)
    if scheme == "fp4":
        made = ir.load(tmp_path / "g.onnx")
        simulate_fp4(made)
        ir.save(made, tmp_path / "g.onnx")
    feeds = {"x": x, "anchor": np.zeros(2, np.int64), "branch": np.zeros(0, np.int64)}
    if dtype == "bfloat16":  # ONNX Runtime's CPU provider has no such product
        got = ReferenceEvaluator(str(tmp_path / "g.onnx")).run(None, feeds)[0]
    else:
        got = open_session(tmp_path / "g.onnx").run(None, feeds)[0]
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    # A number that lies between two of the type's may be rounded to the other one.
    assert error < (2e-2 if scheme == "fp4" else 4e-3 if dtype == "bfloat16" else 2e-3)
    plain = np.maximum(h @ weight, 0)
    assert np.linalg.norm(want - plain) > 2 * np.linalg.norm(got - want)
    sizes = [np.linalg.norm((y - exact)[want > 0]) for y in (got, want)]
    assert sizes[0] == pytest.approx(sizes[1], rel=5e-3 if scheme == "fp4" else 1e-3)


def test_a_product_of_a_product_after_the_fork(tmp_path: Path) -> None:
    """Its rows are those of the branches, although what it reads is replaced before it is."""
    text = """<ir_version: 10, opset_import: ["": 23]>
        g (float[r, t, 64] x, int64[r] anchor, int64[f] branch) => (float[f, t, 64] y)
        <float[r, t, 64] h, float[f, t, 64] forked, float[f, t, 64] a, float[f, t, 64] b>
        { h = LayerNormalization<axis = -1>(x, one)
          forked = Gather<axis = 0>(h, branch)
          a = MatMul(forked, w)
          b = MatMul(a, w)
          y = Relu(b) }"""
    made = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    draw = np.random.default_rng(3)
    weight = 0.1 * draw.standard_normal((64, 64)).astype(np.float32)
    for name, values in {"w": weight, "one": np.ones(64, np.float32)}.items():
        register(made, name, values)
    quantize_dequantize(made, "int8-qdq")
    assert sum(node.op_type == "MatMul" for node in made.graph) == 2
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph) == 2
    ir.save(made, tmp_path / "g.onnx")
    x = draw.standard_normal((2, 20, 64)).astype(np.float32)
    feeds = {"x": x, "anchor": np.array([1, 1]), "branch": np.array([0, 1, 1])}
    got = open_session(tmp_path / "g.onnx").run(None, feeds)[0]
    h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    want = np.maximum(h[feeds["branch"]] @ weight @ weight, 0)
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)


def test_the_errors_on_own_runs_are_within_the_budget(quantized: tuple[str, Path]) -> None:
    scheme, bundle = quantized
    said = read(bundle / "bundle.json")["transformer"]["quantized"]
    assert said["scheme"] == scheme
    assert 1e-4 < said["error"] < BUDGET
    assert all(1e-4 < e < DIFFERENCE_BUDGET for e in said["difference_errors"].values())


@pytest.mark.exports
def test_what_exceeds_the_budget_is_not_written(tmp_path: Path) -> None:
    """FP4 leaves too little of the shipped model's guidance."""
    output = tmp_path / "out"
    request = ExportRequest(bundles.MODEL, output, quantize="fp4", text_encoders="none")
    with pytest.raises(ExportError) as caught:
        export_bundle(request)
    said = re.fullmatch(
        r"--quantize fp4 changes this model too much: on its own runs the forward is off by up to"
        r" ([\d.]+)%, D_c - D_0 by ([\d.]+)% and D_c - D_m by ([\d.]+)%, where 15% of the forward"
        r" and 25% of each difference are allowed; export with --quantize fp8, --quantize int8-qdq"
        r" or without --quantize\.",
        caught.value.message,
    )
    assert said, caught.value.message
    assert all(
        float(number) > limit for number, limit in zip(said.groups(), (15, 25, 25), strict=True)
    )
    assert not output.exists()


def test_devices_without_kernels(quantized: tuple[str, Path], tmp_path: Path) -> None:
    scheme, bundle = quantized
    for device in ("webgpu", "openvino", *(("cpu", "auto") if scheme == "fp4" else ())):
        picture = tmp_path / f"{device}.png"
        done = subprocess.run(
            [ENTRY_POINT, "generate", bundle, "--prompt", "a", "--device", device, "-o", picture],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == ExitCode.UNAVAILABLE
        assert f"has no kernels for the {scheme} weights of the bundle: use --device" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not picture.exists()
    if scheme != "fp4":
        assert intaglio.Pipeline.open(bundle).backend.startswith("ONNX Runtime")


@pytest.mark.exports
def test_one_engine_for_two_targets(quantized: tuple[str, Path], tmp_path: Path) -> None:
    """With all weights as they are: the builder has not made float32 of them."""
    scheme, made = quantized
    bundle = without_engines(made, tmp_path / "bundle")
    build(bundle, **({"arch": "sm120"} if scheme == "fp4" else {}))
    (folder,) = bundle.glob("engines/*/")
    entry = assert_whole(bundle, folder)["transformer/forked.onnx"]
    plan = (folder / entry["plan"]).read_bytes()
    weights = [t for t in graph_of(bundle).graph.initializer if t.name.endswith("_quantized")]
    assert {t.data_type for t in weights} == {STORED[scheme]}
    assert entry["ma_suppress"]["fused"]
    if scheme != "fp4":  # whose weights the builder reorders
        assert sum(t.raw_data in plan for t in weights) > len(weights) / 5


STORED = {
    "fp8": onnx.TensorProto.FLOAT8E4M3FN,
    "int8-qdq": onnx.TensorProto.INT8,
    "fp4": onnx.TensorProto.FLOAT4E2M1,
}
TARGETS: dict[str, tuple[str, str]] = {
    "fp8": ("sm86,sm120", "sm86 has no fp8 products"),
    "int8-qdq": ("sm75", "sm75 has no int8-qdq products"),
    "fp4": ("sm89", "sm89 has no fp4 products"),
}


def test_a_target_without_the_type(quantized: tuple[str, Path], run_build: Run) -> None:
    scheme, bundle = quantized
    arch, says = TARGETS[scheme]
    code, out, err = run_build(bundle, *RTX, "--arch", arch)
    assert (code, out) == (ExitCode.USAGE, "")
    assert says in err
    assert err.count("\n") == 1


def test_the_default_targets_have_the_type(quantized: tuple[str, Path], run_build: Run) -> None:
    scheme, bundle = quantized
    code, out, _ = run_build(bundle, *RTX, "--dry-run")
    assert code == 0
    assert ("sm86" in out) == (scheme == "int8-qdq")
    assert ("sm89" in out) == (scheme != "fp4")
    assert "sm120" in out
