"""Compute with FP4 numbers in operators that ONNX Runtime's CPU provider has, to measure errors.

An FP4 number (E2M1) is half of one of the integers 0, 1, 2, 3, 4, 6, 8, 12 or of its negative.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from intaglio_export.passes.products import Maker, replace
from intaglio_export.passes.quantize_dequantize import FP4, FP4_LARGEST, SMALLEST
from intaglio_export.passes.tensorrt_fp4 import BLOCK, DYNAMIC


def simulate_fp4(model: ir.Model) -> None:
    """Replace FP4 weights by 8-bit integers, and what makes FP4 numbers at run time by arithmetic.

    Postcondition: no value is FP4, and results are those of FP4 products that sum in float32.
    """
    made = _Maker(model.graph)
    for node in list(model.graph):
        if node.op_type == DYNAMIC:
            made.activations(node)
    for node in list(model.graph):
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if stored is not None and stored.dtype == ir.DataType.FLOAT4E2M1:
            made.weights(node, stored)


def _step_of(node: ir.Node | None) -> ir.DataType:
    """Return the type of the step of `node`, which is that of the numbers that are made of it."""
    step = None if node is None else node.inputs[1]
    assert step is not None
    assert step.dtype is not None
    return step.dtype


class _Maker(Maker):
    def _number(self, value: float, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        return self.constant(f"{dtype}_{value}", np.asarray(value, dtype.numpy()))

    def weights(self, node: ir.Node, stored: ir.Value) -> None:
        assert stored.const_value is not None
        sizes = node.inputs[1]
        assert sizes is not None
        integers = (stored.const_value.numpy().astype(np.float32) * 2).astype(np.int8)
        halves = self.node(node, "Mul", sizes, self._number(0.5, _step_of(sizes.producer())))
        doubled = self.constant(f"{stored.name}_doubled", integers)
        axis = node.attributes["axis"].as_int()
        wide = self.node(node, "DequantizeLinear", doubled, halves, axis=axis, block_size=BLOCK)
        replace(node, wide)
        del self.graph.initializers[stored.name or ""]

    def activations(self, node: ir.Node) -> None:
        """Replace `node` and the nodes that make floats of its numbers and scales."""
        (back,) = (use.node for use in node.outputs[0].uses())
        (sizes_of,) = (use.node for use in node.outputs[1].uses())
        x = node.inputs[0]
        assert x is not None

        do = partial(self.node, back)

        last = self.constant("last", np.array([-1], np.int64))
        split = self.constant("split", np.array([0, 0, -1, BLOCK], np.int64))
        blocks = do("Reshape", do("Cast", x, to=ir.DataType.FLOAT.value), split)
        largest = do("ReduceMax", do("Abs", blocks), last, keepdims=1)
        scales = do("Mul", largest, self._number(1 / (FP4_LARGEST * FP4.step)))
        scales = do("Cast", scales, to=ir.DataType.FLOAT8E4M3FN.value)
        scales = do("Cast", scales, to=ir.DataType.FLOAT.value)
        sizes = do("Mul", scales, self._number(FP4.step))
        numbers = do("Div", blocks, do("Max", sizes, self._number(SMALLEST)))
        rounded = do("Mul", self._rounded(do, numbers), sizes)
        whole = do("Reshape", rounded, do("Shape", x))
        whole = do("Cast", whole, to=_step_of(node).value)
        replace(back, whole)
        self.graph.remove([sizes_of, node], safe=True)

    def _rounded(self, do: Callable[..., ir.Value], numbers: ir.Value) -> ir.Value:
        """Return the nearest FP4 numbers, of two the one with an even mantissa."""
        size = do("Abs", numbers)
        two, half = self._number(2), self._number(0.5)
        fine = do("Mul", do("Round", do("Mul", size, two)), half)
        coarse = do("Mul", do("Round", do("Mul", size, half)), two)
        coarse = do("Min", coarse, self._number(6))
        above = do("Where", do("Less", size, self._number(4)), do("Round", size), coarse)
        return do("Mul", do("Sign", numbers), do("Where", do("Less", size, two), fine, above))
