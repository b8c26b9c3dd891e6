"""Test the form for compiling providers: it computes what onnx says that the operators compute."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from intaglio_export.networks import suppress
from intaglio_export.passes.add_op_function import add_op_function
from intaglio_export.passes.decompose import decompose

FLOAT, INT64, BOOL, DOUBLE = (
    TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE,
)  # fmt: skip
HEADS = {name: (2, 3, length, 8) for name, length in {"q": 4, "k": 6, "v": 6}.items()}
Inputs = dict[str, np.ndarray]


def normal(**shapes: tuple[int, ...]) -> Inputs:
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(x).astype("f") for name, x in shapes.items()}


def model_of(inputs: Inputs, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Return a model of the nodes, the last of which makes y, with the axes of the first input."""
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in inputs.items()
    ]
    first = next(iter(inputs.values()))
    kind = helper.np_dtype_to_tensor_dtype(first.dtype)
    result = helper.make_tensor_value_info("y", kind, [None] * first.ndim)
    graph = helper.make_graph(nodes, "graph", values, [result])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(suppress.DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def decomposed(model: onnx.ModelProto) -> onnx.ModelProto:
    rewritten = ir.from_proto(model)
    decompose(rewritten)
    proto = ir.to_proto(rewritten)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def node(op: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, ["y"], name=op, **attributes)


MASK = np.arange(6) < np.array([[4], [6]])[:, None, None]
CASES = {
    "attention": (normal(**HEADS), node("Attention", "q", "k", "v")),
    "scaled": (normal(**HEADS), node("Attention", "q", "k", "v", scale=0.7)),
    "bool mask": ({**normal(**HEADS), "m": MASK}, node("Attention", "q", "k", "v", "m")),
    "float mask": (normal(**HEADS, m=(2, 1, 4, 6)), node("Attention", "q", "k", "v", "m")),
    "rms": (normal(x=(2, 5, 8), w=(8,)), node("RMSNormalization", "x", "w", epsilon=1e-3)),
    "group": (
        normal(x=(2, 6, 3, 5), w=(6,), b=(6,)),
        node("GroupNormalization", "x", "w", "b", num_groups=3, epsilon=1e-3),
    ),
    "mod": ({"x": np.array(-7), "n": np.array(3)}, node("Mod", "x", "n")),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_of_onnx(case: str) -> None:
    inputs, written = CASES[case]
    model = model_of(inputs, [written])
    rewritten = decomposed(model)
    (want,) = ReferenceEvaluator(model).run(None, inputs)
    (got,) = ReferenceEvaluator(rewritten).run(None, inputs)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    if case != "mod":
        assert written.op_type not in {x.op_type for x in rewritten.graph.node}


def test_numbers_have_an_axis_in_mod() -> None:
    """OpenVINO's provider refuses a Mod of tensors without an axis."""
    inputs, written = CASES["mod"]
    inferred = onnx.shape_inference.infer_shapes(decomposed(model_of(inputs, [written])))
    mod = next(x for x in inferred.graph.node if x.op_type == "Mod")
    shapes = {x.name: x.type.tensor_type.shape.dim for x in inferred.graph.value_info}
    assert [len(shapes[name]) for name in mod.output] == [1]


def test_the_function_is_written_out() -> None:
    inputs = normal(hidden=(1, 4, 6), mask=(6,), ref=(6,), keep=(2, 4))
    inputs["branch"] = np.zeros(2, np.int64)
    inputs["keep"] = np.clip(inputs["keep"], 0, 1)
    call = helper.make_node(
        suppress.NAME, list(suppress.INPUTS), ["y"], domain=suppress.DOMAIN, name="op"
    )
    with_function = ir.from_proto(model_of(inputs, [call]))
    add_op_function(with_function)
    model = ir.to_proto(with_function)
    rewritten = decomposed(model)
    assert not rewritten.functions
    assert {x.domain for x in rewritten.opset_import} == {""}
    assert "CastLike" not in {x.op_type for x in rewritten.graph.node}
    want = ReferenceEvaluator(model).run(None, inputs)[0]
    np.testing.assert_array_equal(ReferenceEvaluator(rewritten).run(None, inputs)[0], want)


def test_float64_and_bfloat16_become_float32() -> None:
    """Angles of positions are float64 in some families, and weights may be bfloat16."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=DOUBLE),
        helper.make_node("Mul", ["wide", "frequency"], ["angle"]),
        helper.make_node("Cos", ["angle"], ["cosine"]),
        helper.make_node("Cast", ["cosine"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Mul", ["narrow", "weight"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=FLOAT),
    ]
    model = model_of({"x": np.arange(300, dtype="f")}, nodes)
    frequency, weight = np.array([0.123456789]), np.array([1.5], "f")
    model.graph.initializer.extend(
        [
            helper.make_tensor("frequency", DOUBLE, [1], frequency),
            helper.make_tensor("weight", TensorProto.BFLOAT16, [1], weight),
        ]
    )
    rewritten = decomposed(onnx.shape_inference.infer_shapes(model))
    refused = {DOUBLE, TensorProto.BFLOAT16}
    inferred = onnx.shape_inference.infer_shapes(rewritten).graph
    assert not refused & {x.type.tensor_type.elem_type for x in inferred.value_info} - {
        x.data_type for x in inferred.initializer
    }
    x = np.arange(300, dtype="f")
    got = ReferenceEvaluator(rewritten).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, np.cos(x * frequency) * weight, atol=1e-4)
