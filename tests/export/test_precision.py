"""LowPrecisionMatmuls in float16 and bfloat16 inside a float32 stream, and what would overflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from intaglio_export.adapters import FluxAdapter, SD3Adapter
from intaglio_export.calibration.calibrate import calibrate
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.precision import DTYPES, LowPrecisionMatmuls, store_weights_in
from tests.bundles import bundle
from tests.families import flux, sd3
from tests.families.parts import MAX_LENGTH

NARROW = [torch.float16, torch.bfloat16]
TYPES = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16}


def adapter(dtype: torch.dtype, planted: float = 40.0) -> SD3Adapter:
    """The tiny SD3 in a precision, its planted channel at about `planted`."""
    pipeline = sd3.make_pipeline()
    with torch.no_grad():
        pipeline.transformer.pos_embed.proj.bias[sd3.PLANTED] = planted
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        store_weights_in(getattr(pipeline, name), dtype)
    return SD3Adapter(pipeline, dtype)


@pytest.mark.parametrize("dtype", NARROW)
@torch.no_grad()
def test_a_matmul_is_that_of_torch_on_low_precision_tensors(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 8), torch.randn(2, 5, 32)
    store_weights_in(layer, dtype)
    assert (layer.weight.dtype, layer.bias.dtype) == (dtype, torch.float32)
    with LowPrecisionMatmuls(dtype):
        got = layer(x)
    assert got.dtype == torch.float32
    expected = nn.functional.linear(x.to(dtype), layer.weight).float() + layer.bias
    torch.testing.assert_close(got, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", NARROW)
@torch.no_grad()
def test_conditioning_vectors_keep_float32(dtype: torch.dtype) -> None:
    """Time embeddings and modulation have no axis of tokens."""
    layer, x = nn.Linear(32, 8), torch.randn(2, 32)
    store_weights_in(layer, dtype)
    with LowPrecisionMatmuls(dtype):
        got = layer(x)
    expected = nn.functional.linear(x, layer.weight.float(), layer.bias)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", NARROW)
def test_the_stream_does_not_overflow_where_its_channels_would(dtype: torch.dtype) -> None:
    """|z| beyond float16's end is in the residual stream only, and is recorded."""
    statistics = calibrate(adapter(dtype, planted=100_000.0), MAX_LENGTH)
    assert statistics.massive(1)[0] == sd3.PLANTED
    assert (statistics.max_abs > 65504).all()


@pytest.mark.parametrize("block", [0, 2])
def test_a_block_whose_inside_overflows_is_named(block: int) -> None:
    broken = adapter(torch.float16)
    with torch.no_grad():
        broken.transformer.transformer_blocks[block].ff.net[0].proj.weight.fill_(60000.0)
    with pytest.raises(ExportError, match=rf"block {block} .*65504.*--dtype bf16") as caught:
        calibrate(broken, MAX_LENGTH)
    assert caught.value.exit_code == ExitCode.BAD_INPUT


@torch.no_grad()
def test_what_transformers_keeps_in_float32_is_kept() -> None:
    """T5's wo: its results leave float16 in the published weights."""
    pipeline = sd3.make_sd35()
    loud = pipeline.text_encoder_3.encoder.block[0].layer[1].DenseReluDense.wo.weight
    loud.fill_(60000.0)
    store_weights_in(pipeline.text_encoder_3, torch.float16)
    assert loud.dtype == torch.float32
    with LowPrecisionMatmuls(torch.float16):
        out = pipeline.text_encoder_3(torch.tensor([[5, 6, 1]])).last_hidden_state
    assert out.isfinite().all()


def test_a_single_stream_block_is_counted_on() -> None:
    pipeline = flux.make_dev()
    with torch.no_grad():
        pipeline.transformer.single_transformer_blocks[1].proj_mlp.weight.fill_(60000.0)
    store_weights_in(pipeline.transformer, torch.float16)
    with pytest.raises(ExportError, match="block 3 "):
        calibrate(FluxAdapter(pipeline, torch.float16), MAX_LENGTH)


# The graph with the op, in the bundles that tests/parity/family.py has.
GRAPHS = {"float16": ("dual", "degraded"), "bfloat16": ("forked", "forked")}


@pytest.fixture(scope="module", params=GRAPHS)
def low_precision_bundle(request: pytest.FixtureRequest) -> tuple[Path, torch.dtype, str]:
    """The tiny SD3 in a low precision, and which graph has the op."""
    layout, graph = GRAPHS[request.param]
    return bundle(layout=layout, dtype=request.param), DTYPES[request.param], graph


def inferred(path: Path) -> dict[str, int]:
    """Element types of all values of a graph, by ONNX's own shape inference."""
    model = onnx.load(str(path), load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def test_matmuls_are_low_precision_and_the_rest_is_not(
    low_precision_bundle: tuple[Path, torch.dtype, str],
) -> None:
    folder, dtype, loop = low_precision_bundle
    seen: dict[str, dict[str, set[int]]] = {loop: {}, "conditioning": {}}
    for name, by_op in seen.items():
        path = folder / "transformer" / f"{name}.onnx"
        types = inferred(path)
        for node in onnx.load(str(path), load_external_data=False).graph.node:
            by_op.setdefault(node.op_type, set()).add(types[node.input[0]])
    looped, conditioning = seen[loop], seen["conditioning"]
    assert looped["MatMul"] == looped["Attention"] == {TYPES[dtype]}
    assert conditioning["MatMul"] == {TYPES[dtype]}  # the prompt's projection
    # Gates, norms, the residual stream and the op; modulation.
    for op in ("Mul", "Add", "LayerNormalization", "MASuppress"):
        assert looped[op] - {onnx.TensorProto.INT64} == {onnx.TensorProto.FLOAT}, op
    assert conditioning["Gemm"] == {onnx.TensorProto.FLOAT}


def test_the_graph_for_cpus_computes_in_float32(
    low_precision_bundle: tuple[Path, torch.dtype, str],
) -> None:
    folder, dtype, loop = low_precision_bundle
    manifest: dict[str, Any] = json.loads((folder / "bundle.json").read_text("utf-8"))
    graph = manifest["transformer"]["graphs"][loop]
    types = inferred(folder / graph["cpu"])
    for node in onnx.load(str(folder / graph["cpu"]), load_external_data=False).graph.node:
        if node.op_type != "Cast":
            assert TYPES[dtype] not in {types.get(name) for name in node.input}


def test_weights_are_low_precision_in_the_file(
    low_precision_bundle: tuple[Path, torch.dtype, str], forked_bundle: Path
) -> None:
    size = (low_precision_bundle[0] / "transformer" / "weights.data").stat().st_size
    assert size < 0.7 * (forked_bundle / "transformer" / "weights.data").stat().st_size


def test_max_abs_is_recorded(forked_bundle: Path, sd3_pipeline: Any) -> None:
    manifest = json.loads((forked_bundle / "bundle.json").read_text("utf-8"))
    statistics = calibrate(SD3Adapter(sd3_pipeline), MAX_LENGTH)
    recorded = torch.tensor(manifest["transformer"]["max_abs"], dtype=torch.float64)
    torch.testing.assert_close(recorded, torch.from_numpy(statistics.max_abs), rtol=1e-3, atol=1e-3)
