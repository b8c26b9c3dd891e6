"""The same graph for runtimes that store a narrow type but do not compute in it (ONNX on CPUs).

ONNX Runtime's CPU provider has no kernels for bfloat16, and for float16 it inserts casts that leave
results unrounded. Here every node is given float32 copies of its narrow inputs, and its result is
rounded to the narrow type: the values of a kernel that takes that type and sums in float32.
"""

from __future__ import annotations

import onnx_ir as ir

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_WIDE = ir.DataType.FLOAT


def cast_matmuls_to_float32(model: ir.Model) -> None:
    """Put casts around every node that has float16 or bfloat16 inputs or outputs.

    Precondition: the graph's inputs and outputs are of neither type.
    Postcondition: only Cast nodes have inputs or outputs of these types.
    """
    graph = model.graph
    wide: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Cast" and not node.domain:
            continue
        for place, value in enumerate(node.inputs):
            if value is None or value.dtype not in _NARROW:
                continue
            if value not in wide:
                cast = _cast(value, _WIDE, f"{value.name}_wide")
                wide[value] = cast.outputs[0]
                # Casts of weights come first in the file: ONNX Runtime then runs each when its
                # product is due, and beside their products it would run all before the first.
                graph.insert_before(graph[0] if value.is_initializer() else node, cast)
            node.replace_input_with(place, wide[value])
        for output in node.outputs:
            if output.dtype not in _NARROW:
                continue
            cast = _cast(output, output.dtype, f"{output.name}_narrow")
            ir.convenience.replace_all_uses_with(output, cast.outputs[0])
            cast.replace_input_with(0, output)  # the line above has changed this use too
            output.dtype = _WIDE
            graph.insert_after(node, cast)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype.value)], name=name)
    result = node.outputs[0]
    result.name, result.dtype, result.shape = name, dtype, value.shape
    return node
