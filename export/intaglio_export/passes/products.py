"""The matrix products of a transformer over tokens, and what quantising passes share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# Smaller weights are not quantised, because they would save nothing.
SMALLEST = 2048
NORMS = ("LayerNormalization", "RMSNormalization")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def is_quantizable(node: ir.Node) -> bool:
    """Return whether `node` multiplies by a constant matrix of `SMALLEST` elements or more."""
    if node.op_type != "MatMul" or node.domain:
        return False
    weight = node.inputs[1]
    return (
        weight is not None
        and weight.is_initializer()
        and weight.dtype in FLOATS
        and weight.shape is not None
        and len(weight.shape) == 2
        and weight.const_value is not None
        and weight.const_value.size >= SMALLEST
    )


def streams_of(graph: ir.Graph) -> set[ir.Value]:
    """Return the residual streams, which end in a LayerNormalization, and all their summands."""
    found: set[ir.Value] = set()
    waiting = [node.inputs[0] for node in graph if node.op_type == "LayerNormalization"]
    while waiting:
        value = waiting.pop()
        if value is None or value in found:
            continue
        found.add(value)
        node = value.producer()
        if node is not None and node.op_type == "Add":
            waiting += node.inputs
    return found


def reads_stream(x: ir.Value, streams: set[ir.Value]) -> bool:
    """Return whether `x` is a residual stream or a modulated norm of one."""
    node = x.producer()
    if x in streams:
        return True
    if node is None:
        return False
    if node.op_type in ("Add", "Mul"):
        return any(reads_stream(v, streams) for v in node.inputs if v is not None)
    return node.op_type in NORMS


def replace(node: ir.Node, result: ir.Value) -> None:
    """Replace the output of `node` by `result`."""
    old = node.outputs[0]
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    result.type, result.shape = old.type, old.shape
    graph.remove(node, safe=True)


class Maker:
    """Adds nodes and weights to a graph. Nodes that several matmuls share are added once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.shared: dict[tuple[str, ir.Value], ir.Node] = {}

    def node(
        self, before: ir.Node, op_type: str, *inputs: ir.Value, domain: str = "", **given: int
    ) -> ir.Value:
        """Insert a node in front of `before` and return its output."""
        return self.add(before, op_type, inputs, domain, 1, given).outputs[0]

    def add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        domain: str,
        outputs: int,
        given: dict[str, int],
    ) -> ir.Node:
        """Insert a node in front of `before`."""
        attributes = [ir.AttrInt64(name, value) for name, value in given.items()]
        node = ir.Node(domain, op_type, inputs, attributes, num_outputs=outputs)
        self.graph.insert_before(before, node)  # this names the node and its outputs
        return node

    def weight(self, of: ir.Node, role: str, values: NDArray[np.generic]) -> ir.Value:
        """Return an initializer with `values`, added once."""
        name = f"{of.inputs[1].name}_{role}" if of.inputs[1] is not None else role
        return self.register(name, ir.tensor(np.asarray(values, order="C"), name=name))

    def register(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Return the initializer `name`, which is `tensor` if it is new."""
        if name not in self.graph.initializers:
            tensor.name = name
            value = ir.Value(
                name=name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> ir.Value:
        """Return an initializer that nodes share."""
        name = f"shared_{name}"
        return self.register(name, ir.tensor(np.asarray(value), name=name))

    def picked(self, x: ir.Value, channels: Sequence[int], before: ir.Node) -> ir.Value:
        """Return `channels` of `x`."""
        if ("picked", x) not in self.shared:
            index = self.weight(before, "channels", np.array(channels, np.int64))
            self.shared["picked", x] = self.add(before, "Gather", (x, index), "", 1, {"axis": -1})
        return self.shared["picked", x].outputs[0]


class Anchors:
    """The rows that rows are quantised as differences from, before the fork and after it.

    The graph takes them as its input `anchor`, if it has one.
    """

    def __init__(self, model: ir.Model, made: Maker) -> None:
        inputs = {value.name: value for value in model.graph.inputs}
        self._before = inputs.get("anchor")
        if self._before is None:
            return
        branch = inputs["branch"]
        self._after = made.node(model.graph[0], "Gather", self._before, branch, axis=0)
        self._forked = {branch}
        for node in model.graph:
            if not self._forked.isdisjoint(value for value in node.inputs if value is not None):
                self._forked.update(node.outputs)

    @property
    def given(self) -> bool:
        """Whether the graph takes them."""
        return self._before is not None

    def of(self, x: ir.Value | None) -> ir.Value | None:
        """Return the anchors of the rows of `x`, or None if it is not [rows, tokens, channels]."""
        shape = None if x is None else x.shape
        if self._before is None or shape is None or len(shape) != 3 or isinstance(shape[0], int):
            return None
        return self._after if x in self._forked else self._before
