"""Give RMSNormalization an input of the type of its scale.

The fusion takes the Cast before a norm into the operator, which then gets a float16 input and a
float32 scale. onnx's checker refuses that.
"""

from __future__ import annotations

import onnx_ir as ir


def norms_of_one_type(model: ir.Model) -> None:
    """Cast the input of each RMSNormalization whose scale has another type."""
    graph = model.graph
    for node in list(graph):
        if node.op_type != "RMSNormalization":
            continue
        value, scale = node.inputs[:2]
        assert value is not None
        assert scale is not None
        if scale.dtype is None or value.dtype in (None, scale.dtype):
            continue
        cast = ir.Node(
            "", "Cast", [value], [ir.AttrInt64("to", scale.dtype)], name=f"{node.name}_cast"
        )
        out = cast.outputs[0]
        out.name, out.dtype, out.shape = cast.name, scale.dtype, value.shape
        graph.insert_before(node, cast)
        node.replace_input_with(0, out)
