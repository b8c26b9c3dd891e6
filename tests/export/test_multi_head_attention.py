"""Attention rewritten for ONNX Runtime, against ONNX's reference of the standard one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from intaglio_export.passes.multi_head_attention import DOMAIN, multi_head_attention

HEADS, WIDTH, IMAGE, TEXT = 3, 8, 5, 4
_SHAPE = f"float[2,T,{HEADS},{WIDTH}]"
_SWAP = "Transpose <perm = [0,2,1,3]>"
_SPLIT = f"q1 = {_SWAP}(q) k1 = {_SWAP}(k) v1 = {_SWAP}(v)"


def model_of(body: str, more: str = "") -> ir.Model:
    """q, k and v [2, T, HEADS, WIDTH] to y; `more` inputs are declared behind them."""
    inputs = ", ".join(f"{_SHAPE} {name}" for name in "qkv")
    text = f"""<ir_version: 10, opset_import: ["": 23]>
        g ({inputs}{more}) => (float[2,N,M,O] y) {{ {body} y = Identity(o) }}"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    ShapeInferencePass()(model)
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def compare(model: ir.Model, **more: np.ndarray) -> ir.Model:
    """Rewrite `model`, and see that it still computes the same."""
    generator = np.random.default_rng(0)
    feeds = {
        name: generator.standard_normal((2, IMAGE, HEADS, WIDTH), np.float32) for name in "qkv"
    }
    feeds |= more
    before = ir.serde.serialize_model(model)
    (expected,) = onnx.reference.ReferenceEvaluator(before).run(None, feeds)
    multi_head_attention(model)
    after = ir.serde.serialize_model(model)
    onnx.checker.check_model(after, full_check=True)
    (got,) = ort.InferenceSession(after.SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)
    return model


def test_transposes_around_it_go() -> None:
    model = compare(model_of(f"{_SPLIT} a = Attention(q1, k1, v1) o = {_SWAP}(a)"))
    assert sorted(ops(model)) == ["Identity", "MultiHeadAttention", *["Reshape"] * 4]
    assert model.opset_imports[DOMAIN] == 1


def test_a_scale_is_kept() -> None:
    compare(model_of(f"{_SPLIT} a = Attention <scale = 0.7> (q1, k1, v1) o = {_SWAP}(a)"))


def test_heads_first_inputs_and_outputs_are_transposed() -> None:
    body = f"{_SPLIT} r = Relu(q1) a = Attention(r, k1, v1) o = Relu(a)"
    assert ops(compare(model_of(body))).count("Transpose") == 3  # not k, v


def test_it_goes_through_joined_and_normed_streams() -> None:
    """SD3.5's: norms of queries and keys, then text behind the image."""
    shape = f"float[2,S,{HEADS},{WIDTH}]"
    body = f"""{_SPLIT} t1 = {_SWAP}(t)
        n = RMSNormalization <axis = -1> (q1, w)
        m = RMSNormalization (k1, w)
        q2 = Concat <axis = 2> (n, t1) k2 = Concat <axis = 2> (m, t1)
        v2 = Concat <axis = -2> (v1, t1)
        a = Attention(q2, k2, v2) o = {_SWAP}(a)"""
    generator = np.random.default_rng(1)
    text = generator.standard_normal((2, TEXT, HEADS, WIDTH), np.float32)
    weight = generator.standard_normal(WIDTH).astype(np.float32)
    model = compare(model_of(body, f", {shape} t, float[{WIDTH}] w"), t=text, w=weight)
    assert "Transpose" not in ops(model)
    assert "MultiHeadAttention" in ops(model)


@pytest.mark.parametrize(
    "call",
    ["Attention(q1, k1, v1, b)", "Attention <is_causal = 1> (q1, k1, v1)",
     "Attention <softcap = 2.0> (q1, k1, v1)"],
)  # fmt: skip
def test_what_the_operator_has_no_fast_form_of_is_left(call: str) -> None:
    mask = np.tril(np.ones((IMAGE, IMAGE), np.float32))
    model = model_of(f"{_SPLIT} a = {call} o = {_SWAP}(a)", f", float[{IMAGE},{IMAGE}] b")
    assert "Attention" in ops(compare(model, b=mask))
    assert DOMAIN not in model.opset_imports


@pytest.mark.parametrize("layout", ["forked_bundle", "dual_bundle"])
def test_a_bundle_has_both_graphs(request: pytest.FixtureRequest, layout: str) -> None:
    bundle: Path = request.getfixturevalue(layout)
    manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
    graphs = manifest["transformer"]["graphs"]
    assert "cpu" not in graphs.pop("conditioning")  # has no attention
    for graph in [*graphs.values(), manifest["vae_decoder"], manifest["vae_encoder"]]:
        plain, fused = (
            onnx.load(bundle / graph[which], load_external_data=False) for which in ("path", "cpu")
        )
        attention = [node.op_type for node in plain.graph.node].count("Attention")
        assert attention
        assert not any(node.domain == DOMAIN for node in plain.graph.node)
        made = [node.op_type for node in fused.graph.node]
        assert made.count("MultiHeadAttention") == attention
        assert "Attention" not in made
        assert graph["cpu"] in manifest["files"]
        weights = [
            {entry.value for tensor in model.graph.initializer for entry in tensor.external_data
             if entry.key == "location"}
            for model in (plain, fused)
        ]  # fmt: skip
        assert weights == [{"weights.data"}] * 2
    assert "cpu" not in manifest["prompt"]["encoders"]["text_encoder"]["graph"]
