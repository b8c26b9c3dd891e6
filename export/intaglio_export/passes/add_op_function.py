"""Add the function body of `ai.intaglio::MASuppress` to a model."""

from __future__ import annotations

import onnx_ir as ir

from intaglio_export.networks import suppress


def add_op_function(model: ir.Model) -> None:
    """Add the op's model-local function and its opset import.

    Precondition: the graph holds exactly one node of the op, and no function of that name.
    Postcondition: the node resolves to the function, whose body uses the model's own opset.
    """
    key = (suppress.DOMAIN, suppress.NAME, "")
    nodes = [n for n in model.graph if (n.domain, n.op_type) == key[:2]]
    assert len(nodes) == 1, f"expected one {suppress.NAME} node, found {len(nodes)}"
    assert key not in model.functions
    with_source = len(nodes[0].inputs) > len(suppress.INPUTS)
    proto = suppress.function_proto(model.opset_imports[""], with_source)
    model.functions[key] = ir.serde.deserialize_function(proto)
    model.opset_imports[suppress.DOMAIN] = suppress.VERSION
    nodes[0].version = None  # the import holds it, and a version on the node would not be saved
