"""Compute low-precision nodes in float32, for runtimes that only store these types.

ONNX Runtime's CPU provider has no kernels for bfloat16, and for float16 it inserts casts that leave
results unrounded. This pass gives every node float32 copies of its low-precision inputs and rounds
its result, which gives the values of a low-precision kernel that sums in float32.
"""

from __future__ import annotations

import onnx_ir as ir

_LOW_PRECISION = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLOAT32 = ir.DataType.FLOAT
# These compute nothing. A Gather would need a float32 copy of a whole table of embeddings.
_EXACT = ("Cast", "Gather")


def cast_matmuls_to_float32(model: ir.Model) -> None:
    """Put casts around every node that has float16 or bfloat16 inputs or outputs.

    Precondition: the graph's inputs and outputs are of neither type.
    Postcondition: only Cast and Gather nodes have inputs or outputs of these types.
    """
    graph = model.graph
    in_float32: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type in _EXACT and not node.domain:
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in _LOW_PRECISION:
                continue
            if value not in in_float32:
                cast = _cast(value, _FLOAT32, f"{value.name}_wide")
                in_float32[value] = cast.outputs[0]
                # Casts of weights come first in the file. ONNX Runtime then runs each cast just
                # before its matmul. Next to their matmuls, it would run all casts at the start.
                graph.insert_before(graph[0] if value.is_initializer() else node, cast)
            node.replace_input_with(index, in_float32[value])
        for output in node.outputs:
            if output.dtype not in _LOW_PRECISION:
                continue
            cast = _cast(output, output.dtype, f"{output.name}_low_precision")
            ir.convenience.replace_all_uses_with(output, cast.outputs[0])
            cast.replace_input_with(0, output)  # the line above has replaced this use too
            output.dtype = _FLOAT32
            graph.insert_after(node, cast)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype.value)], name=name)
    result = node.outputs[0]
    result.name, result.dtype, result.shape = name, dtype, value.shape
    return node
