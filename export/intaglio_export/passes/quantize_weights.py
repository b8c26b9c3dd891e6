"""Store the weights of matmuls in 8 or 4 bits, while everything between the matmuls stays float32.

The weights of massive channels stay float32 too, like the outliers of LLM.int8 (arXiv 2208.07339).
A matmul that reads the hidden states, directly or through a LayerNorm, becomes a quantised matmul
of the other channels plus a small float32 matmul. Otherwise an error in a massive channel's weights
would be multiplied by its large activation, and with one scale for a whole tensor a massive channel
would leave few steps to the other channels.

`int8` and `int4` quantise weights only, in blocks of `BLOCK` input channels, with MatMulNBits of
com.microsoft. `int8-dynamic` also quantises activations at run time, with a scale per token, where
rows of branches are read. Rows of D_0 and D_m are quantised as differences from that of D_c, which
the input `anchor` names for each row before the fork (`delta_coding.py`). Other products, such as
that of the prompt's projection, are those of `int8`.

A text encoder's table of embeddings has 8 bits per value in every scheme: its errors enter all
layers, and 4 bits would save little more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)

from intaglio_export.networks.suppress import DOMAIN
from intaglio_export.passes.delta_coding import DEQUANTIZE, QUANTIZE, ZERO, add_functions
from intaglio_export.passes.products import (
    Anchors,
    Maker,
    is_quantizable,
    reads_stream,
    replace,
    streams_of,
)

WEIGHT_BITS = {"int8": 8, "int4": 4, "int8-dynamic": 8}
BLOCK = 32
TABLE_ROWS = 4096  # of a table of embeddings, quantised at a time


def quantize_weights(model: ir.Model, scheme: str, massive: Sequence[int] = ()) -> None:
    """Quantise the MatMuls with constant weights [K, N] of `products.SMALLEST` elements or more.

    `scheme` is a key of `WEIGHT_BITS`; `massive` lists channels of the hidden states. Matmuls over
    conditioning vectors (Gemm: time, pooled prompt, AdaLN) are not changed.

    Precondition: weights are float32 and are the right operand of MatMul.
    Postcondition: the only such MatMuls left are those of massive channels.
    """
    made = _Maker(model.graph)
    streams = streams_of(model.graph)
    anchors = Anchors(model, made)
    if anchors.given:
        add_functions(model)
    # Both are known of the graph as it was, and not of what takes the place of its products.
    found = [
        (node, anchors.of(x), reads_stream(x, streams))
        for node in model.graph
        if is_quantizable(node) and (x := node.inputs[0]) is not None
    ]
    for node, anchor, reads in found:
        x, weight = node.inputs
        assert x is not None
        assert weight is not None
        assert weight.const_value is not None
        tensor = weight.const_value
        split = list(massive) if reads and _rows(tensor) > max(massive, default=0) else []
        added = _bias(node) if anchor is not None else None
        if anchor is not None:
            bias = added[1] if added else None
            rest = np.array(tensor.numpy())
            rest[split] = 0.0
            result = made.dynamic(node, x, rest, bias, anchor, split)
        else:
            result = made.weight_only(node, x, _Blocks(tensor, split, WEIGHT_BITS[scheme]))
            model.opset_imports["com.microsoft"] = 1
        if split:
            exact = made.node(
                node,
                "MatMul",
                made.picked(x, split, node),
                made.weight(node, "massive", np.asarray(tensor.numpy())[split]),
            )
            result = made.node(node, "Add", result, exact)
        if added:
            replace(added[0], result)
            model.graph.remove(node, safe=True)
        else:
            replace(node, result)
        if not weight.uses():
            del model.graph.initializers[weight.name or ""]


def quantize_embedding(model: ir.Model) -> None:
    """Store the table [V, D], from which token ids pick rows, in 8 bits and blocks of D."""
    made = _Maker(model.graph)
    for node in list(model.graph):
        table = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
        index = node.inputs[1] if table is not None else None
        if table is None or index is None or not table.is_initializer() or not _is_token_ids(index):
            continue
        assert table.const_value is not None
        result = made.picked_rows(node, index, _Blocks(table.const_value, [], 8, rows=True))
        model.opset_imports["com.microsoft"] = 1
        node.outputs[0].dtype = ir.DataType.FLOAT  # a cast of it does nothing now
        replace(node, result)
        if not table.uses():
            del model.graph.initializers[table.name or ""]


def _is_token_ids(value: ir.Value | None) -> bool:
    """Return whether `value` is the input `token_ids`, perhaps in another shape or type."""
    node = None if value is None else value.producer()
    if node is None:
        return value is not None and value.is_graph_input() and value.name == "token_ids"
    return node.op_type in ("Reshape", "Cast") and _is_token_ids(node.inputs[0])


def _rows(tensor: ir.TensorProtocol) -> int:
    return int(tensor.shape.numpy()[0])


def _bias(product: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the Add that follows `product`, and its bias [N], if nothing else reads `product`."""
    output = product.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add":
        return None
    bias = uses[0].node.inputs[1 - uses[0].idx]
    if bias is None or not bias.is_initializer() or bias.shape is None or len(bias.shape) != 1:
        return None
    return uses[0].node, bias


class _Blocks:
    """A weight in integers of `bits` with a scale for each block of `BLOCK` input channels.

    It is quantised when it is written, so that memory holds one weight at a time.
    """

    def __init__(
        self, tensor: ir.TensorProtocol, exact: Sequence[int], bits: int, *, rows: bool = False
    ) -> None:
        """`tensor` is [inputs, outputs], but [outputs, inputs] with `rows`, as a table is.

        The inputs `exact` become zeros.
        """
        self._tensor, self._exact, self._rows = tensor, list(exact), rows
        self.bits = bits
        sizes = [int(size) for size in tensor.shape.numpy()]
        self.inputs, self.outputs = reversed(sizes) if rows else sizes
        self._made: dict[str, NDArray[np.generic]] = {}

    def tensors(self) -> dict[str, ir.LazyTensor]:
        """Return the integers and the scales, by the end of their names."""
        blocks = -(-self.inputs // BLOCK)
        sizes = [self.inputs] if self._rows else [blocks, BLOCK * self.bits // 8]
        shapes = {
            f"int{self.bits}": (self.outputs, *sizes),
            "scale": (self.outputs, blocks),
        }
        types = (ir.DataType.UINT8, ir.DataType.FLOAT)
        return {
            part: ir.LazyTensor(
                partial(self._part, part), dtype=dtype, shape=ir.Shape(shapes[part])
            )
            for part, dtype in zip(shapes, types, strict=True)
        }

    def _part(self, part: str) -> ir.TensorProtocol:
        """Return one of the two, and keep the other until it is asked for too."""
        if part not in self._made:
            self._made = dict(zip(self.tensors(), self._quantized(), strict=True))
        return ir.tensor(np.ascontiguousarray(self._made.pop(part)))

    def _quantized(self) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=self.bits)
        quantizer = DefaultWeightOnlyQuantizer(config)
        values = self._tensor.numpy()
        if not self._rows:
            values = np.array(values, np.float32)
            values[self._exact] = 0.0
            packed, scales, _ = quantizer.qbits_block_quant(values)
            return packed, scales
        made = []  # in parts, because a float32 copy of a table may take gigabytes
        for first in range(0, self.outputs, TABLE_ROWS):
            part = np.ascontiguousarray(values[first : first + TABLE_ROWS].T, np.float32)
            packed, scales, _ = quantizer.qbits_block_quant(part)
            made.append((packed.reshape(len(packed), -1)[:, : self.inputs], scales))
        integers, scales = (np.concatenate(parts) for parts in zip(*made, strict=True))
        return integers, scales


class _Maker(Maker):
    """Makes products of integers."""

    def weight_only(self, of: ir.Node, x: ir.Value, blocks: _Blocks) -> ir.Value:
        """Return `x` times a weight that is stored in blocks."""
        return self.node(
            of,
            "MatMulNBits",
            x,
            *self._parts(of, of.inputs[1], blocks),
            domain="com.microsoft",
            K=blocks.inputs,
            N=blocks.outputs,
            bits=blocks.bits,
            block_size=BLOCK,
        )

    def picked_rows(self, of: ir.Node, index: ir.Value, blocks: _Blocks) -> ir.Value:
        """Return rows of a table that is stored in blocks of its rows."""
        integers, scales = self._parts(of, of.inputs[0], blocks)
        return self.node(
            of,
            "GatherBlockQuantized",
            integers,
            index,
            scales,
            domain="com.microsoft",
            gather_axis=0,
            quantize_axis=1,
            bits=blocks.bits,
            block_size=BLOCK,
        )

    def _parts(self, of: ir.Node, weight: ir.Value | None, blocks: _Blocks) -> list[ir.Value]:
        """Return the initializers of the integers and the scales of `weight`."""
        assert weight is not None
        return [
            self.register(f"{weight.name}_{role}", tensor)
            for role, tensor in blocks.tensors().items()
        ]

    def dynamic(
        self,
        of: ir.Node,
        x: ir.Value,
        values: NDArray[np.float32],
        bias: ir.Value | None,
        anchor: ir.Value,
        exact: Sequence[int],
    ) -> ir.Value:
        """Return `x` in uint8, without the channels `exact`, times `values` in int8, plus `bias`.

        `x` has a scale per token, and `values` one per column. Rows of `x` that `anchor` gives
        another row are differences from that row.
        """
        scale = np.maximum(np.abs(values).max(axis=0), np.finfo(np.float32).tiny) / 127
        rounded = np.rint(values / scale).astype(np.int8)
        if ("dynamic", x) not in self.shared:
            kept = np.ones(len(values), np.float32)
            kept[list(exact)] = 0.0
            read = (x, anchor, self.weight(of, "kept", kept))
            self.shared["dynamic", x] = self.add(of, QUANTIZE, read, DOMAIN, 2, {})
        quantized, x_scale = self.shared["dynamic", x].outputs
        zero = self.weight(of, "zero", np.array(ZERO, np.uint8))
        product = self.node(of, "MatMulInteger", quantized, self.weight(of, "int8", rounded), zero)
        columns = self.weight(of, "scale", scale.astype(np.float32))
        if bias is None:
            bias = self.weight(of, "bias", np.zeros_like(scale, np.float32))
        inputs = (product, x_scale, columns, bias, anchor)
        return self.node(of, DEQUANTIZE, *inputs, domain=DOMAIN)
