"""Drop metadata of the exporter, such as source paths of the machine that exported."""

from __future__ import annotations

import onnx_ir as ir


def strip_metadata(model: ir.Model) -> None:
    """Remove metadata properties and doc strings from the graph, its nodes and values.

    Precondition: none.
    Postcondition: the model's bytes depend only on the network, not on where it was exported.
    """
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
