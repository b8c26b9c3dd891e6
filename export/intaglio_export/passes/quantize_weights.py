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
    found = [(node, anchors.of(node.inputs[0])) for node in model.graph if is_quantizable(node)]
    for node, anchor in found:
        x, weight = node.inputs
        assert x is not None
        assert weight is not None
        assert weight.const_value is not None
        values = np.asarray(weight.const_value.numpy())
        reads = len(values) > max(massive, default=0) and reads_stream(x, streams)
        split = list(massive) if reads else []
        rest = values.copy()
        rest[split] = 0.0
        added = _bias(node) if anchor is not None else None
        if anchor is not None:
            bias = added[1] if added else None
            result = made.dynamic(node, x, rest, bias, anchor, split)
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
        if added:
            replace(added[0], result)
            model.graph.remove(node, safe=True)
        else:
            replace(node, result)
        if not weight.uses():
            del model.graph.initializers[weight.name or ""]


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


class _Maker(Maker):
    """Makes products of integers."""

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
