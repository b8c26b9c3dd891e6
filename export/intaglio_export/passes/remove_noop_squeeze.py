"""Remove Squeeze nodes that do nothing.

torch's `squeeze(1)` changes nothing if the axis is not 1. For a dynamic axis (PixArt's tokens) the
exporter writes a Squeeze without that condition, which fails in every runtime.
"""

from __future__ import annotations

import onnx_ir as ir


def remove_noop_squeeze(model: ir.Model) -> None:
    """Replace the output of such a node by its input.

    Precondition: values have the shapes that torch saw.
    Postcondition: no Squeeze has an output of its input's rank.
    """
    for node in list(model.graph):
        if node.op_type != "Squeeze" or node.domain:
            continue
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        if source.shape is None or result.shape is None or len(source.shape) != len(result.shape):
            continue
        assert not result.is_graph_output(), f"{result.name} is an output"
        ir.convenience.replace_all_uses_with(result, source)
        model.graph.remove(node, safe=True)
