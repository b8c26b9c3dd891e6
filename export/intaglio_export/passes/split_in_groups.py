"""Divide Split nodes with many outputs into several.

WebGPU guarantees eight storage buffers to a shader, and ONNX Runtime's Split uses one for the
input and one for each output. A node with more fails when it runs.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

MOST_OUTPUTS = 7


def split_in_groups(model: ir.Model) -> None:
    """Let every Split of static sizes have at most `MOST_OUTPUTS` outputs.

    Postcondition: a wide Split is a tree of Splits, whose leaves have the outputs of before.
    """
    for node in list(model.graph):
        if node.op_type != "Split" or node.domain or len(node.outputs) <= MOST_OUTPUTS:
            continue
        axis = node.attributes.get_int("axis", 0)
        sizes = [_size(output, axis) for output in node.outputs]
        if all(size is not None for size in sizes):
            _divide(model.graph, node, axis, [size for size in sizes if size is not None])


def _size(output: ir.Value, axis: int) -> int | None:
    """Return the static size of an axis, or None."""
    size = None if output.shape is None else output.shape[axis]
    return size if isinstance(size, int) else None


def _divide(graph: ir.Graph, node: ir.Node, axis: int, sizes: list[int]) -> None:
    """Replace `node` by one Split into groups and one Split for each group."""
    source, outputs = node.inputs[0], list(node.outputs)
    assert source is not None

    def split(value: ir.Value, pieces: list[int]) -> list[ir.Value]:
        # With up to MOST_OUTPUTS pieces each group is one of them; else the groups are split again.
        if len(pieces) == 1:
            return [value]
        step = math.ceil(len(pieces) / MOST_OUTPUTS)
        groups = [pieces[i : i + step] for i in range(0, len(pieces), step)]
        parts = _split_node(graph, node, value, axis, [sum(group) for group in groups])
        return [
            leaf for part, group in zip(parts, groups, strict=True) for leaf in split(part, group)
        ]

    leaves = split(source, sizes)
    for old, new in zip(outputs, leaves, strict=True):
        new.name, old.name = old.name, f"{old.name}_before"
        new.shape, new.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _split_node(
    graph: ir.Graph, old: ir.Node, value: ir.Value, axis: int, sizes: list[int]
) -> list[ir.Value]:
    """Insert a Split of `value` before the node `old`, and return the parts."""
    name = f"{value.name}_groups"
    tensor = ir.tensor(np.array(sizes, np.int64), name=f"{name}_sizes")
    lengths = ir.Value(
        name=tensor.name,
        shape=ir.Shape([len(sizes)]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=tensor,
    )
    graph.register_initializer(lengths)
    split = ir.Node(
        "", "Split", [value, lengths], [ir.AttrInt64("axis", axis)],
        num_outputs=len(sizes), name=name,
    )  # fmt: skip
    for index, part in enumerate(split.outputs):
        part.name, part.type = f"{name}_{index}", value.type
    graph.insert_before(old, split)
    return list(split.outputs)
