"""Integer weights: against torch's, against diffusers' runs, and with a massive channel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import intaglio
from intaglio_export.bundle.verify import QUANTIZED_TOLERANCE, open_session
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.exporter import export_bundle
from intaglio_export.options import QUANTIZE, ExportRequest
from intaglio_export.passes.quantize_weights import BLOCK, quantize_weights
from tests import bundles
from tests.families import FAMILIES
from tests.families.sd3 import PLANTED


@pytest.fixture(scope="module", params=QUANTIZE)
def quantized(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """The tiny SD3, whose channel PLANTED is massive, quantised by a scheme."""
    return request.param, bundles.bundle(quantize=request.param)


def manifest(bundle: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle / "bundle.json").read_text("utf-8"))
    return data


def test_the_manifest_says_scheme_channels_and_error(quantized: tuple[str, Path]) -> None:
    scheme, bundle = quantized
    said = manifest(bundle)["transformer"]["quantized"]
    assert (said["scheme"], said["exact_channels"]) == (scheme, [PLANTED])
    assert 1e-5 < said["error"] < QUANTIZED_TOLERANCE[scheme]


def test_only_products_are_quantized(quantized: tuple[str, Path]) -> None:
    """Every Gemm is AdaLN's or a conditioning vector's, ahead of the loop."""
    _, bundle = quantized
    ahead, graph = (
        ir.load(bundle / "transformer" / f"{name}.onnx").graph
        for name in ("conditioning", "forked")
    )
    gemms = [node.inputs[1] for node in ahead if node.op_type == "Gemm"]
    assert gemms
    assert all(weight is not None and weight.dtype == ir.DataType.FLOAT for weight in gemms)
    exact = [v for n, v in graph.initializers.items() if n.endswith("_massive")]
    assert exact
    assert all(v.dtype == ir.DataType.FLOAT for v in exact)


def model(weight: np.ndarray, channels: int) -> ir.Model:
    """A product of a LayerNorm, as a block's first."""
    k, n = weight.shape
    text = f"""<ir_version: 10, opset_import: ["": 23]>
        g (float[1, t, {k}] x) => (float[1, t, {n}] y)
        {{ h = LayerNormalization<axis = -1>(x, one)
           y = MatMul(h, w) }}"""
    made = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for name, values in {"w": weight, "one": np.ones(channels, np.float32)}.items():
        value = next(
            v for node in made.graph for v in node.inputs if v is not None and v.name == name
        )
        value.const_value = ir.tensor(values, name=name)
        value.shape, value.dtype = ir.Shape(values.shape), ir.DataType.FLOAT
        made.graph.register_initializer(value)
    return made


def run(made: ir.Model, x: np.ndarray, folder: Path) -> np.ndarray:
    ir.save(made, folder / "g.onnx")
    result: np.ndarray = open_session(folder / "g.onnx").run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_weights_are_within_half_a_step(scheme: str) -> None:
    """Within a whole one at the end of n bits: they hold one level more below zero than above."""
    weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    made = model(weight, 64)
    quantize_weights(made, scheme)
    held = {n: v.const_value.numpy() for n, v in made.graph.initializers.items() if v.const_value}
    if scheme == "int8-dynamic":
        integers, step, last = held["w_int8"].astype(np.float32), held["w_scale"], 128
        largest = np.abs(weight).max(0) / 127
    else:
        last = 127 if scheme == "int8" else 7
        packed = held[f"w_int{8 if scheme == 'int8' else 4}"].reshape(48, -1)
        if scheme == "int4":
            packed = np.stack([packed & 15, packed >> 4], -1).reshape(48, -1)
        integers = packed.T.astype(np.float32) - (last + 1)
        step = held["w_scale"].reshape(48, -1).repeat(BLOCK, 1).T
        largest = np.abs(weight.reshape(-1, BLOCK, 48)).max(1).repeat(BLOCK, 0) / (last + 1)
    np.testing.assert_allclose(np.abs(step), largest, rtol=1e-5)
    allowed = np.where(integers == last, 1.0, 0.5) * np.abs(step)
    assert (np.abs(integers * step - weight) <= allowed * 1.001).all()


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_a_massive_channel_in_float32_saves_the_others(scheme: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    weight = draw.standard_normal((64, 48)).astype(np.float32)
    x = draw.standard_normal((1, 20, 64)).astype(np.float32)
    x[..., PLANTED] += 400.0
    exact = run(model(weight, 64), x, tmp_path)
    errors = {}
    for name, massive in (("with", [PLANTED]), ("without", [])):
        made = model(weight, 64)
        quantize_weights(made, scheme, massive)
        errors[name] = np.linalg.norm(run(made, x, tmp_path) - exact)
    assert errors["with"] < 0.5 * errors["without"]


@pytest.mark.exports
def test_a_stream_that_is_read_without_a_norm(tmp_path: Path) -> None:
    """As by the queries of PixArt's cross-attention."""
    output = tmp_path / "bundle"
    folder = tmp_path / "pixart"
    FAMILIES["pixart-sigma"].make().save_pretrained(folder)
    request = ExportRequest(
        folder, output, quantize="int8-dynamic", channels=str(PLANTED), block=0,
        text_encoders="none",
    )  # fmt: skip
    export_bundle(request)
    assert manifest(output)["transformer"]["quantized"]["exact_channels"] == [PLANTED]
    names = ir.load(output / "transformer" / "forked.onnx").graph.initializers
    blocks = manifest(output)["transformer"]["blocks"]
    # Of a block: q, k and v of self-attention, q of cross-attention, the first of the two layers.
    # And the output's projection.
    assert sum(name.endswith("_massive") for name in names) == 5 * blocks + 1


def test_whole_runs_are_near_the_float32_bundle_s(
    quantized: tuple[str, Path], forked_bundle: Path
) -> None:
    """Which is diffusers' (tests/parity). Errors of steps add up, to less than their sum."""
    latents = []
    for bundle in (forked_bundle, quantized[1]):
        pipeline = intaglio.Pipeline.open(bundle, device="cpu", threads=1)
        latents.append(np.asarray(pipeline.generate("a dark boot", seeds=3).latents))
    error = np.linalg.norm(latents[1] - latents[0]) / np.linalg.norm(latents[0])
    recorded = manifest(quantized[1])["transformer"]["quantized"]["error"]
    assert 0 < error < 4 * recorded


@pytest.mark.parametrize(
    ("scheme", "dtype", "says"),
    [
        ("int3", "float32", "--quantize int3: expected int8 or int4 or int8-dynamic"),
        ("int8", "float16", "leave out --quantize or --dtype float16"),
    ],
)
def test_bad_input(sd3_folder: Path, tmp_path: Path, scheme: str, dtype: str, says: str) -> None:
    request = ExportRequest(sd3_folder, tmp_path / "out", dtype=dtype, quantize=scheme)
    with pytest.raises(ExportError, match=says) as caught:
        export_bundle(request)
    assert caught.value.exit_code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


def test_requests_run_together_only_where_rows_know_nothing_of_each_other(
    quantized: tuple[str, Path],
) -> None:
    scheme, bundle = quantized
    batch = intaglio.Batch(intaglio.Pipeline.open(bundle, device="cpu", threads=1))
    first = batch.add(prompt="a dark boot")
    if scheme != "int8-dynamic":
        assert batch.accepts(prompt="a bag")
        return
    assert not batch.accepts(prompt="a bag")
    with pytest.raises(intaglio.UsageError, match="one request at a time"):
        batch.add(prompt="a bag")
    batch.remove(first)
    assert batch.accepts(prompt="a bag")
