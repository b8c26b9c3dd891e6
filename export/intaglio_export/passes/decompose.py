"""Write a graph in the operators that compiling providers know.

A provider such as OpenVINO compiles a graph whole if it takes each node. A node that it does not
take runs on the CPU, and cuts the rest into pieces.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedOpsetsPass, ShapeInferencePass
from onnx_ir.tape import Tape

from intaglio_export.support.quiet import quiet


def decompose(model: ir.Model) -> None:
    """Inline the functions, and replace the operators and types that OpenVINO refuses.

    The operators are Attention, both norms below, CastLike, and Mod of numbers without an axis. The
    types are bfloat16, and float64, in which some families compute the angles of positions. These
    reach a few hundred, so float32 has them to 1e-5.

    Precondition: values have the types and shapes that torch saw; each Attention has heads as an
        axis and one output, and is not causal.
    Postcondition: the graph has standard operators and types that OpenVINO takes, and computes the
        same.
    """
    with quiet():
        InlinePass()(model)
        RemoveUnusedOpsetsPass()(model)
        ShapeInferencePass()(model)  # the values of a function have no types
    _to_float32(model.graph)
    for node in list(model.graph):
        write = _WRITERS.get(node.op_type)
        if write is not None and not node.domain:
            _replace(model.graph, node, write)


def _to_float32(graph: ir.Graph) -> None:
    """Give every float64 and bfloat16 value the type float32. Weights are cast at load."""
    refused = (ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
    single = ir.DataType.FLOAT
    for weight in list(graph.initializers.values()):
        assert weight.const_value is not None
        if weight.const_value.dtype in refused and weight.uses():
            cast = ir.Node("", "Cast", [weight], [ir.AttrInt64("to", single)])
            cast.name = cast.outputs[0].name = f"{weight.name}_float32"
            cast.outputs[0].shape, cast.outputs[0].dtype = weight.shape, single
            ir.convenience.replace_all_uses_with(weight, cast.outputs[0])
            cast.replace_input_with(0, weight)  # the line above has replaced this use too
            graph.insert_before(graph[0], cast)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() in refused:
            node.attributes["to"] = ir.AttrInt64("to", single)
        for output in node.outputs:
            if output.dtype in refused:
                output.dtype = single


def _replace(graph: ir.Graph, node: ir.Node, write: Callable[..., ir.Value | None]) -> None:
    """Replace `node` by the nodes that `write` returns the result of; None keeps it."""
    tape = Tape()
    result = write(graph, tape, node)
    if result is None:
        return
    output = node.outputs[0]
    result.shape, result.type = output.shape, output.type
    for number, made in enumerate(tape.nodes):
        made.name = f"{node.name}_part_{number}"
        made.outputs[0].name = f"{output.name}_part_{number}"
    result.name, output.name = output.name, f"{output.name}_before"
    graph.insert_before(node, list(tape.nodes))
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _attention(graph: ir.Graph, tape: Tape, node: ir.Node) -> ir.Value:
    """Return softmax(scale * Q K^T + mask) V of queries, keys and values [B, heads, T, width]."""
    query, key, value, *masks = _inputs(node)
    assert len(node.outputs) == 1
    assert not any(node.attributes[name].value for name in set(node.attributes) - {"scale"})
    dtype, width = _dtype(query), _shape(query)[3]
    assert isinstance(width, int)
    scale = node.attributes.get_float("scale", width**-0.5)
    scores = tape.op("MatMul", [query, tape.op("Transpose", [key], {"perm": (0, 1, 3, 2)})])
    scores = tape.op("Mul", [scores, _constant(graph, scale, dtype)])
    for mask in masks:
        added = mask
        if mask.dtype == ir.DataType.BOOL:
            lowest = float(np.finfo(dtype.numpy()).min)
            values = [_constant(graph, number, dtype) for number in (0.0, lowest)]
            added = tape.op("Where", [mask, *values])
        scores = tape.op("Add", [scores, added])
    return tape.op("MatMul", [tape.op("Softmax", [scores], {"axis": -1}), value])


def _cast_like(_: ir.Graph, tape: Tape, node: ir.Node) -> ir.Value:
    value, target = _inputs(node)
    return tape.op("Cast", [value], {"to": _dtype(target)})


def _mod(graph: ir.Graph, tape: Tape, node: ir.Node) -> ir.Value | None:
    """Return the Mod of numbers as that of vectors of one number."""
    shape = node.outputs[0].shape
    if shape is None or len(shape):
        return None
    axis = _constant(graph, [0], ir.DataType.INT64)
    vectors = [tape.op("Unsqueeze", [value, axis]) for value in _inputs(node)]
    return tape.op("Squeeze", [tape.op("Mod", vectors, dict(node.attributes)), axis])


def _rms_normalization(graph: ir.Graph, tape: Tape, node: ir.Node) -> ir.Value:
    """Return x / sqrt(mean(x^2) + epsilon) * scale, with the norm in float32."""
    value, scale = _inputs(node)
    dtype, rank, single = _dtype(value), len(_shape(value)), ir.DataType.FLOAT
    wide = value if dtype == single else tape.op("Cast", [value], {"to": single})
    first = node.attributes.get_int("axis", -1) % rank
    axes = _constant(graph, list(range(first - rank, 0)), ir.DataType.INT64)
    mean = tape.op("ReduceMean", [tape.op("Mul", [wide, wide]), axes], {"keepdims": 1})
    epsilon = _constant(graph, node.attributes.get_float("epsilon", 1e-5), single)
    norm = tape.op("Div", [wide, tape.op("Sqrt", [tape.op("Add", [mean, epsilon])])])
    if dtype != single:
        norm = tape.op("Cast", [norm], {"to": dtype})
    return tape.op("Mul", [norm, scale])


def _group_normalization(graph: ir.Graph, tape: Tape, node: ir.Node) -> ir.Value:
    """Return the norm of [N, C, H, W] as InstanceNormalization of [N, groups, ...]."""
    value, *weights = _inputs(node)
    groups = node.attributes["num_groups"].as_int()
    integer = ir.DataType.INT64
    grouped = tape.op("Reshape", [value, _constant(graph, [0, groups, -1], integer)])
    one, zero = (_constant(graph, [number] * groups, _dtype(value)) for number in (1.0, 0.0))
    epsilon = {"epsilon": node.attributes.get_float("epsilon", 1e-5)}
    norm = tape.op("InstanceNormalization", [grouped, one, zero], epsilon)
    norm = tape.op("Reshape", [norm, tape.op("Shape", [value])])
    inner = _constant(graph, list(range(1, len(_shape(value)) - 1)), integer)
    scale, bias = (tape.op("Unsqueeze", [weight, inner]) for weight in weights)
    return tape.op("Add", [tape.op("Mul", [norm, scale]), bias])


_WRITERS = {
    "GroupNormalization": _group_normalization,
    "RMSNormalization": _rms_normalization,
    "Attention": _attention,
    "CastLike": _cast_like,
    "Mod": _mod,
}


def _inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype


def _shape(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    return value.shape


def _constant(
    graph: ir.Graph, number: float | list[int] | list[float], dtype: ir.DataType
) -> ir.Value:
    """Return a constant that all nodes of the graph share."""
    name = f"constant_{dtype.name.lower()}_{number}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(number, dtype.numpy()), name=name)
        kind, shape = ir.TensorType(dtype), ir.Shape(tensor.shape.numpy())
        graph.register_initializer(ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
    return graph.initializers[name]
