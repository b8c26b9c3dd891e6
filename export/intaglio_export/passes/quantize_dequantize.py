"""Put QuantizeLinear and DequantizeLinear around matrix products, for engines of TensorRT-RTX.

Only standard operators are used, so that the graph also runs on the CPU, with the same rounding;
but for FP4, which ONNX Runtime does not know (`simulate_fp4.py`). Quantised are products
of the transformer's blocks. Kept as they are:

- products whose result is added to the residual stream, such as the second of an MLP, because their
  error stays in the stream;
- embedders, which read no norm, and the last projection, which nothing follows;
- products of conditioning vectors (AdaLN), and attention.

Rows of D_0 and D_m are quantised as their differences from the row of D_c, as in
`delta_coding.py`: W x_m = W x_c + W (x_m - x_c). Each token is divided by a factor that its largest
magnitude gives before it is quantised and multiplied by it after the product, and so is each column
of weights. So the scales of QuantizeLinear and DequantizeLinear are constants, no prompt exceeds
them, and no row changes another. They are powers of two, which 16-bit types hold exactly, as they
hold the products of them with quantised numbers. Columns of massive channels are multiplied apart
in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from intaglio_export.passes.products import (
    NORMS,
    Anchors,
    Maker,
    is_quantizable,
    reads_stream,
    replace,
    streams_of,
)
from intaglio_export.passes.tensorrt_fp4 import BLOCK, DOMAIN, DYNAMIC


@dataclass(frozen=True)
class _Type:
    """A type that products multiply, the largest number in it that is used, and what 1 in it
    stands for.

    Numbers in FP4 are multiplied by the scales of their blocks, which are in FP8.
    """

    dtype: DTypeLike
    largest: float
    step: float

    @property
    def reach(self) -> float:
        """What `largest` stands for, which is up to 1."""
        return self.largest * self.step


FP8 = _Type(ml_dtypes.float8_e4m3fn, 448.0, 2.0**-9)
FP4 = _Type(ml_dtypes.float4_e2m1fn, 6.0 * FP8.largest, 2.0**-12)
FP4_LARGEST = 6.0  # of the numbers themselves
SCHEMES = {"fp8": FP8, "int8-qdq": _Type(np.int8, 127.0, 2.0**-7), "fp4": FP4}
# What a value passes without becoming part of another product.
_PASSING = {
    "Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat",
    "Gather", "Einsum", "Mul", "Add", *NORMS,
}  # fmt: skip
SMALLEST = 1e-30


def quantize_dequantize(model: ir.Model, scheme: str, massive: Sequence[int] = ()) -> None:
    """Quantise operands of the MatMuls of blocks by `scheme`, a key of `SCHEMES`.

    `massive` lists channels of the hidden states.

    Precondition: weights are the right operand of MatMul.
    """
    made = (_BlockMaker if scheme == "fp4" else _Maker)(model.graph, SCHEMES[scheme])
    if scheme == "fp4":
        model.opset_imports[DOMAIN] = 1
    streams = streams_of(model.graph)
    anchors = Anchors(model, made)
    # Both are known of the graph as it was, and not of what takes the place of its products.
    found = [
        (node, anchors.of(_operand_of(node)), reads_stream(_operand_of(node), streams))
        for node in model.graph
        if is_quantizable(node) and _is_of_block(node)
    ]
    for node, anchor, reads in found:
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        values = np.asarray(weight.const_value.numpy()).astype(np.float32)
        if anchor is None or (scheme == "fp4" and len(values) % BLOCK):
            continue
        split = list(massive) if reads and len(values) > max(massive, default=0) else []
        made.product(node, _operand_of(node), values, anchor, split)
        if not weight.uses():
            del model.graph.initializers[weight.name or ""]


def _operand_of(product: ir.Node) -> ir.Value:
    """Return what `product` multiplies by its weight, in float32."""
    x, weight = product.inputs
    assert x is not None
    assert weight is not None
    rounded = x.producer()
    if weight.dtype != ir.DataType.FLOAT and rounded is not None and rounded.op_type == "Cast":
        x = rounded.inputs[0]
        assert x is not None
    return x


def _is_of_block(product: ir.Node) -> bool:
    """Return whether `product` is inside a block and does not write the residual stream."""
    before = _ancestors(product)
    made = {node.op_type for value in before if (node := value.producer())}
    if made.isdisjoint(NORMS):
        return False
    seen: set[ir.Node] = set()
    waiting = [product]
    while waiting:
        for output in waiting.pop().outputs:
            if output.is_graph_output():
                return False
            for user, index in output.uses():
                if user in seen or user.op_type not in _PASSING:
                    continue
                if user.op_type == "Add" and _is_stream(user.inputs[1 - index], before):
                    return False
                seen.add(user)
                waiting.append(user)
    return True


def _is_stream(value: ir.Value | None, before: set[ir.Value]) -> bool:
    """Return whether `value` is what a product with the ancestors `before` is computed from, or a
    sum of that with others, as where two attentions of SD3.5 read one stream."""
    if value is None or value in before:
        return value is not None
    node = value.producer()
    if node is None or node.op_type != "Add":
        return False
    return any(_is_stream(v, before) for v in node.inputs)


def _ancestors(node: ir.Node) -> set[ir.Value]:
    """Return the values that `node` is computed from."""
    seen: set[ir.Value] = set()
    waiting = [node]
    while waiting:
        for value in waiting.pop().inputs:
            if value is None or value in seen:
                continue
            seen.add(value)
            if (made := value.producer()) is not None:
                waiting.append(made)
    return seen


class _Maker(Maker):
    """Makes products of quantised operands."""

    def __init__(self, graph: ir.Graph, of: _Type) -> None:
        super().__init__(graph)
        self._type = of
        self._operands: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._own: dict[ir.Value, ir.Value] = {}

    def product(
        self,
        of: ir.Node,
        x: ir.Value,
        values: NDArray[np.float32],
        anchor: ir.Value,
        exact: Sequence[int],
    ) -> None:
        """Replace `of`, which multiplies x by `values`, by a product of quantised operands.

        The columns `exact` of x are multiplied in float32.
        """
        weight = of.inputs[1]
        assert weight is not None
        assert weight.dtype is not None
        dtype = weight.dtype
        if x not in self._operands:
            self._operands[x] = self._operand(of, x, anchor, len(values), exact, dtype)
        operand, scale = self._operands[x]
        rest = values.copy()
        rest[exact] = 0.0
        columns = np.maximum(np.abs(rest).max(axis=0), SMALLEST) / np.float32(self._type.reach)
        result = self.node(of, "MatMul", operand, self.matrix(of, rest / columns, dtype))
        last = of
        if dtype != ir.DataType.FLOAT:
            last, *others = (use.node for use in of.outputs[0].uses())
            assert not others
            assert last.op_type == "Cast"
            result = self.node(of, "Cast", result, to=ir.DataType.FLOAT.value)
        result = self.node(of, "Mul", result, scale)
        result = self.node(of, "Mul", result, self.weight(of, "scale", columns))
        base = self._of_anchor(of, result, anchor)
        result = self.node(of, "Add", result, base)
        if exact:
            apart = self.weight(of, "massive", values[exact])
            apart_of = self.node(of, "MatMul", self.picked(x, exact, of), apart)
            result = self.node(of, "Add", result, apart_of)
        replace(last, result)
        if last is not of:
            self.graph.remove(of, safe=True)

    def matrix(self, of: ir.Node, values: NDArray[np.float32], dtype: ir.DataType) -> ir.Value:
        """Return the weights `values`, which are within reach, quantised and back in `dtype`."""
        values = values / np.float32(self._type.step)
        if self._type.dtype is np.int8:
            values = np.rint(values)
        stored = self.weight(of, "quantized", values.astype(self._type.dtype))
        return self._back(of, stored, dtype)

    def operand(self, of: ir.Node, part: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return the activations `part`, which are within reach, quantised and back in `dtype`."""
        step = self.constant("step", np.float32(self._type.step))
        zero = self.constant("zero", np.zeros((), self._type.dtype))
        return self._back(of, self.node(of, "QuantizeLinear", part, step, zero), dtype)

    def _operand(
        self,
        of: ir.Node,
        x: ir.Value,
        anchor: ir.Value,
        channels: int,
        exact: Sequence[int],
        dtype: ir.DataType,
    ) -> tuple[ir.Value, ir.Value]:
        """Return x, or its differences from the rows `anchor`, quantised and back in `dtype` as
        numbers within reach, and the factor of each token."""
        difference = self.node(of, "Sub", x, self._of_anchor(of, x, anchor))
        if exact:
            kept = np.ones(channels, np.float32)
            kept[exact] = 0.0
            difference = self.node(of, "Mul", difference, self.weight(of, "kept", kept))
        last = self.constant("last_axis", np.array([-1], np.int64))
        size = self.node(of, "Abs", difference)
        largest = self.node(of, "ReduceMax", size, last, keepdims=1)
        largest = self.node(of, "Max", largest, self.constant("tiny", np.float32(SMALLEST)))
        scale = self.node(of, "Div", largest, self.constant("reach", np.float32(self._type.reach)))
        part = self.node(of, "Div", difference, scale)
        return self.operand(of, part, dtype), scale

    def _back(self, of: ir.Node, stored: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return quantised numbers as numbers within reach in `dtype`."""
        step = np.asarray(self._type.step, dtype.numpy())
        return self.node(of, "DequantizeLinear", stored, self.constant("step_back", step))

    def _of_anchor(self, of: ir.Node, x: ir.Value, anchor: ir.Value) -> ir.Value:
        """Return for each row of x that of its anchor, or zeros if it is its own."""
        nothing = self.constant("nothing", np.float32(0))
        rows = self.node(of, "Gather", x, anchor, axis=0)
        return self.node(of, "Where", self._is_own(of, anchor), nothing, rows)

    def _is_own(self, of: ir.Node, anchor: ir.Value) -> ir.Value:
        """Return whether each row is its own anchor, [rows, 1, 1]."""
        if anchor not in self._own:
            start, step = (self.constant(f"number_{i}", np.array(i, np.int64)) for i in (0, 1))
            count = self.node(of, "Size", anchor)
            rows = self.node(of, "Range", start, count, step)
            same = self.node(of, "Equal", anchor, rows)
            axes = self.constant("inner_axes", np.array([1, 2], np.int64))
            self._own[anchor] = self.node(of, "Unsqueeze", same, axes)
        return self._own[anchor]


class _BlockMaker(_Maker):
    """Makes products of numbers with a scale for each block, which is a number in FP8 times the
    step."""

    def matrix(self, of: ir.Node, values: NDArray[np.float32], dtype: ir.DataType) -> ir.Value:
        """Return the weights `values`, which are within reach, quantised and back in `dtype`."""
        blocks = values.reshape(-1, BLOCK, values.shape[1])
        scales = (np.abs(blocks).max(axis=1) / (FP4_LARGEST * FP4.step)).astype(FP8.dtype)
        sizes = scales.astype(np.float32)[:, None] * np.float32(FP4.step)
        numbers = np.divide(blocks, sizes, out=np.zeros_like(blocks), where=sizes > 0)
        stored = self.weight(of, "quantized", numbers.reshape(values.shape).astype(FP4.dtype))
        of_blocks = self.weight(of, "blocks", scales)
        return self._back_of_blocks(of, stored, of_blocks, 0, dtype)

    def operand(self, of: ir.Node, part: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return the activations `part`, which are within reach, quantised and back in `dtype`."""
        if dtype != ir.DataType.FLOAT:
            part = self.node(of, "Cast", part, to=dtype.value)
        given = {"axis": -1, "block_size": BLOCK, "scale_type": ir.DataType.FLOAT8E4M3FN.value}
        made = self.add(of, DYNAMIC, (part, self._step(dtype)), DOMAIN, 2, given)
        stored, scales = made.outputs
        return self._back_of_blocks(of, stored, scales, 2, dtype)

    def _back_of_blocks(
        self, of: ir.Node, stored: ir.Value, scales: ir.Value, axis: int, dtype: ir.DataType
    ) -> ir.Value:
        sizes = self.node(of, "DequantizeLinear", scales, self._step(dtype))
        return self.node(of, "DequantizeLinear", stored, sizes, axis=axis, block_size=BLOCK)

    def _step(self, dtype: ir.DataType) -> ir.Value:
        return self.constant("block_step", np.asarray(FP4.step, dtype.numpy()))
