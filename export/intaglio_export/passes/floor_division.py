"""Make divisions of sizes round down, as Python does.

torch's exporter writes a size `a // b` as an integer Div, which rounds towards zero in ONNX, and
its symbolic algebra turns `(n - h) // 2` into terms like `-h // 2`, which is off by one for odd h.
"""

from __future__ import annotations

import onnx_ir as ir


def floor_division(model: ir.Model) -> None:
    """Replace `Div(a, b)` on scalar int64 by `Div(a - Mod(a, b), b)`.

    Precondition: scalar int64 divisions stand for Python's `//` on sizes.
    Postcondition: each returns the floor of the quotient for any signs.
    """
    graph = model.graph
    for node in list(graph):
        out = node.outputs[0]
        is_size = out.dtype == ir.DataType.INT64 and out.shape is not None and len(out.shape) == 0
        if node.domain or node.op_type != "Div" or not is_size:
            continue
        dividend, divisor = node.inputs
        rest = ir.Node("", "Mod", [dividend, divisor], name=f"{node.name}_rest")
        whole = ir.Node("", "Sub", [dividend, rest.outputs[0]], name=f"{node.name}_whole")
        for added in (rest, whole):
            added.outputs[0].name = added.name
            added.outputs[0].dtype = ir.DataType.INT64
            added.outputs[0].shape = ir.Shape(())
        graph.insert_before(node, [rest, whole])
        node.replace_input_with(0, whole.outputs[0])
