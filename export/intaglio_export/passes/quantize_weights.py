"""Store the weights of matmuls in 8 or 4 bits, while everything between the matmuls stays float32.

The weights of massive channels stay float32 too, like the outliers of LLM.int8 (arXiv 2208.07339).
A matmul that reads the hidden states, directly or through a LayerNorm, becomes a quantised matmul
of the other channels plus a small float32 matmul. Otherwise an error in a massive channel's weights
would be multiplied by its large activation, and with one scale for a whole tensor a massive channel
would leave few steps to the other channels.

`int8` and `int4` quantise weights only, in blocks of `BLOCK` input channels, with MatMulNBits of
com.microsoft. `int8-dynamic` also quantises activations at run time, with one scale per tensor, in
standard operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)

WEIGHT_BITS = {"int8": 8, "int4": 4, "int8-dynamic": 8}
BLOCK = 32
# Smaller weights are not quantised, because they would save nothing.
SMALLEST = 2048


def quantize_weights(model: ir.Model, scheme: str, massive: Sequence[int] = ()) -> None:
    """Quantise the MatMuls with constant weights [K, N] of `SMALLEST` elements or more.

    `scheme` is a key of `WEIGHT_BITS`; `massive` lists channels of the hidden states. Matmuls over
    conditioning vectors (Gemm: time, pooled prompt, AdaLN) are not changed.

    Precondition: weights are float32 and are the right operand of MatMul.
    Postcondition: the only such MatMuls left are those of massive channels.
    """
    made = _Maker(model.graph)
    streams = _streams(model.graph)
    for node in [node for node in model.graph if _is_quantizable(node)]:
        x, weight = node.inputs
        assert x is not None
        assert weight is not None
        assert weight.const_value is not None
        values = np.asarray(weight.const_value.numpy())
        reads = len(values) > max(massive, default=0) and _reads_stream(x, streams)
        split = list(massive) if reads else []
        rest = values.copy()
        rest[split] = 0.0
        if scheme == "int8-dynamic":
            result = made.dynamic(node, made.without(x, split, node) if split else x, rest)
        else:
            result = made.weight_only(node, x, rest, WEIGHT_BITS[scheme])
            model.opset_imports["com.microsoft"] = 1
        if split:
            exact = made.node(
                node,
                "MatMul",
                made.picked(x, split, node),
                made.weight(node, "massive", values[split]),
            )
            result = made.node(node, "Add", result, exact)
        _replace(node, result)
        if not weight.uses():
            del model.graph.initializers[weight.name or ""]


def _is_quantizable(node: ir.Node) -> bool:
    if node.op_type != "MatMul" or node.domain:
        return False
    weight = node.inputs[1]
    return (
        weight is not None
        and weight.is_initializer()
        and weight.dtype == ir.DataType.FLOAT
        and weight.shape is not None
        and len(weight.shape) == 2
        and weight.const_value is not None
        and weight.const_value.size >= SMALLEST
    )


def _streams(graph: ir.Graph) -> set[ir.Value]:
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


def _reads_stream(x: ir.Value, streams: set[ir.Value]) -> bool:
    """Return whether `x` is a residual stream or a modulated LayerNorm of one."""
    node = x.producer()
    if x in streams:
        return True
    if node is None:
        return False
    if node.op_type in ("Add", "Mul"):
        return any(_reads_stream(v, streams) for v in node.inputs if v is not None)
    return node.op_type == "LayerNormalization"


def _replace(node: ir.Node, result: ir.Value) -> None:
    """Replace the output of `node` by `result`."""
    old = node.outputs[0]
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    result.type, result.shape = old.type, old.shape
    graph.remove(node, safe=True)


class _Maker:
    """Adds nodes and weights to a graph. Nodes that several matmuls share are added once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._shared: dict[tuple[str, ir.Value], ir.Node] = {}

    def node(
        self, before: ir.Node, op_type: str, *inputs: ir.Value, domain: str = "", **given: int
    ) -> ir.Value:
        """Insert a node in front of `before` and return its output."""
        return self._add(before, op_type, inputs, domain, 1, given).outputs[0]

    def _add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        domain: str,
        outputs: int,
        given: dict[str, int],
    ) -> ir.Node:
        attributes = [ir.AttrInt64(name, value) for name, value in given.items()]
        node = ir.Node(domain, op_type, inputs, attributes, num_outputs=outputs)
        self._graph.insert_before(before, node)  # this names the node and its outputs
        return node

    def weight(self, of: ir.Node, role: str, values: NDArray[np.generic]) -> ir.Value:
        """Return an initializer with `values`, added once."""
        name = f"{of.inputs[1].name}_{role}" if of.inputs[1] is not None else role
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.ascontiguousarray(values), name=name)
            value = ir.Value(
                name=name,
                shape=ir.Shape(values.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def without(self, x: ir.Value, channels: Sequence[int], before: ir.Node) -> ir.Value:
        """Return `x` with `channels` set to zero."""
        if ("without", x) not in self._shared:
            assert before.inputs[1] is not None
            assert before.inputs[1].const_value is not None
            kept = np.ones(before.inputs[1].const_value.numpy().shape[0], np.float32)
            kept[list(channels)] = 0.0
            mask = self.weight(before, "kept", kept)
            self._shared["without", x] = self._add(before, "Mul", (x, mask), "", 1, {})
        return self._shared["without", x].outputs[0]

    def picked(self, x: ir.Value, channels: Sequence[int], before: ir.Node) -> ir.Value:
        """Return `channels` of `x`."""
        if ("picked", x) not in self._shared:
            index = self.weight(before, "channels", np.array(channels, np.int64))
            self._shared["picked", x] = self._add(before, "Gather", (x, index), "", 1, {"axis": -1})
        return self._shared["picked", x].outputs[0]

    def weight_only(
        self, of: ir.Node, x: ir.Value, values: NDArray[np.float32], bits: int
    ) -> ir.Value:
        """Return `x` times `values`, stored with `bits` per weight and a scale per block."""
        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=bits)
        packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(values)
        rows, columns = values.shape
        return self.node(
            of,
            "MatMulNBits",
            x,
            self.weight(of, f"int{bits}", packed),
            self.weight(of, "scale", scales),
            domain="com.microsoft",
            K=rows,
            N=columns,
            bits=bits,
            block_size=BLOCK,
        )

    def dynamic(self, of: ir.Node, x: ir.Value, values: NDArray[np.float32]) -> ir.Value:
        """Return `x` in uint8 times `values` in int8, with a scale per column.

        ONNX Runtime fuses these nodes into one.
        """
        scale = np.maximum(np.abs(values).max(axis=0), np.finfo(np.float32).tiny) / 127
        rounded = np.rint(values / scale).astype(np.int8)
        if ("dynamic", x) not in self._shared:
            self._shared["dynamic", x] = self._add(of, "DynamicQuantizeLinear", (x,), "", 3, {})
        quantized, x_scale, x_zero = self._shared["dynamic", x].outputs
        zero = self.weight(of, "zero", np.zeros_like(scale, np.int8))
        product = self.node(
            of, "MatMulInteger", quantized, self.weight(of, "int8", rounded), x_zero, zero
        )
        product = self.node(of, "Cast", product, to=ir.DataType.FLOAT.value)
        both = self.node(of, "Mul", x_scale, self.weight(of, "scale", scale.astype(np.float32)))
        return self.node(of, "Mul", product, both)
